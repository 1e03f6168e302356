"""Several processes that train one network: the same as one process with the same batch, and as safe to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from torch import nn

import encoder.processes
from encoder.__main__ import main
from encoder.config import TrainConfig
from encoder.errors import EncoderError, UsageError
from encoder.metrics_log import read_metrics
from encoder.processes import ALONE, Processes, joined
from encoder.run_folder import RunFolder
from encoder.shared_batchnorm import SharedBatchNorm, share_batchnorm
from encoder.train import _check_tiles

ROOT = Path(__file__).parents[2]
TILES, SLIDES, SIDE = 128, 4, 48
BROKEN = 37
STEPS = {"contrastive": 24, "sgcl": 40}
# The rate is so low because otherwise rounding, which differs with the order of summing, grows tenfold with every
# step, as it does in one process whose weights are disturbed in their last digit.
CONFIG: dict[str, Any] = {
    "name": "tiny", "tile_px": SIDE, "batch": 16, "precision": "fp32", "log_every_steps": 1, "save_every_steps": 5,
    "tensorboard": False, "monitor": {"looks": 3, "tiles": 48, "labelled_tiles": 64, "k": 5},
    "optimiser": {"lr": 1e-4, "warmup_steps": 4},
}  # fmt: skip
NETWORK = {"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}
METHODS: dict[str, dict[str, Any]] = {
    "contrastive": {"temperature": 0.5},
    "sgcl": {"corner_px": 20, "ramp_epochs": 2},
}
WINDOWS = {"side_px": 16, "stride_px": 8, "draws": 6}
# Of these only single steps are compared. Noise is each process's own.
COMPARED: dict[str, dict[str, Any]] = {
    "stain_invariant": {"name": "stain_invariant", "network": NETWORK, "latent_dim": 16, "noise": 0.0},
    "patch_contrast": {"name": "patch_contrast", "window": WINDOWS},
    "patch_contrast-pixels": {"name": "patch_contrast", "window": WINDOWS, "contrast": {"kind": "pixels"}},
}


class Tiles:
    """Names of tiles, for checks that read none."""

    tile_px = 16

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


def tiny(batch: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {"name": "tiny", "tile_px": 16, "batch": batch, "max_steps": 1, "method": {"name": "contrastive"}}
    )


def test_one_process_alone_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as (processes, device):
        assert processes is ALONE and device == torch.device("cpu") and not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cpu") as (processes, _):
        assert processes is ALONE and not dist.is_initialized()
    rows = torch.randn(6, 2, requires_grad=True)
    assert ALONE.first and ALONE.count == 1 and ALONE.share(6) == slice(0, 6)
    assert ALONE.gather(rows) is rows and ALONE.total(rows) is rows
    values = torch.arange(3.0)
    assert ALONE.mean_(values) is values and ALONE.from_first(values) is values
    assert values.tolist() == [0, 1, 2]
    assert ALONE.collect("thing") == ["thing"]
    ALONE.wait()
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, 2.0])
    ALONE.average_gradients([weight])
    assert weight.grad.tolist() == [1, 2]
    network = nn.Sequential(nn.BatchNorm1d(4))
    share_batchnorm(network, ALONE)
    assert type(network[0]) is nn.BatchNorm1d


def test_shares_are_equal_disjoint_and_in_order_of_rank() -> None:
    rows = list(range(12))
    shares = [rows[Processes(rank, 3).share(12)] for rank in range(3)]
    assert shares == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [Processes(rank, 3).first for rank in range(3)] == [True, False, False]


@pytest.mark.parametrize(("batch", "count", "instead"), [(9, 2, 8), (15, 4, 16), (2, 3, 3), (7, 8, 8)])
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(batch: int, count: int, instead: int) -> None:
    with pytest.raises(UsageError) as refused:
        _check_tiles(tiny(batch), Tiles(50), Processes(0, count))  # type: ignore[arg-type]
    assert str(refused.value) == (f"A batch of {batch} does not divide among {count} processes. Set batch={instead}.")
    assert instead % count == 0
    _check_tiles(tiny(instead), Tiles(50), Processes(0, count))  # type: ignore[arg-type]
    _check_tiles(tiny(batch), Tiles(50), ALONE)  # type: ignore[arg-type]


def test_each_process_takes_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    groups: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: groups.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setenv("WORLD_SIZE", "6")
    for local_rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        for name in (None, "cuda"):
            with joined(name) as (processes, device):
                assert processes == Processes(5, 6) and device == torch.device("cuda", local_rank)
        with joined("cpu") as (_, device):
            assert device == torch.device("cpu")
        with (
            pytest.raises(UsageError, match=r"All processes were given the device cuda:1\. Give cuda"),
            joined("cuda:1"),
        ):
            pass
    assert groups == ["cpu:gloo,cuda:nccl", "cpu:gloo,cuda:nccl", "gloo"] * 2
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="Device cuda:2 does not exist"), joined(None):
        pass
    assert len(groups) == 6


def test_one_process_may_name_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cuda:1") as (processes, device):
        assert processes is ALONE and device == torch.device("cuda", 1)
    assert encoder.processes.choose_device("cuda:1") == device


def test_a_shared_normalisation_takes_over_weights_under_their_names() -> None:
    inner = nn.BatchNorm2d(3, eps=0.1)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(inner, nn.ReLU()), nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        inner.weight.uniform_(1, 2)
        inner.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        inner.running_var.uniform_(1, 2)  # type: ignore[union-attr]
    keys, parameters = list(network.state_dict()), list(network.parameters())
    images = torch.randn(4, 3, 5, 5)
    before = network(images)
    share_batchnorm(network, Processes(1, 2))
    assert isinstance(network[1][0], SharedBatchNorm) and isinstance(network[2], SharedBatchNorm)
    assert list(network.state_dict()) == keys
    assert all(mine is other for mine, other in zip(network.parameters(), parameters, strict=True))
    # Not in training, so that nothing is asked of the other process, which is not there.
    assert torch.allclose(network(images), before, atol=1e-6) and not network[1][0].training
    network.load_state_dict(dict.fromkeys(network.state_dict(), torch.zeros(())) | network.state_dict())


@pytest.mark.parametrize("lacking", [{"track_running_stats": False}, {"affine": False}, {"momentum": None}])
def test_a_normalisation_that_cannot_be_shared_is_refused(lacking: dict[str, Any]) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, **lacking))
    share_batchnorm(network, ALONE)
    with pytest.raises(
        EncoderError, match=r"without momentum, weights or running statistics\. Train it in one process"
    ):
        share_batchnorm(network, Processes(0, 2))


def children(parent: int) -> list[int]:
    """Processes that another one started, oldest first."""
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return sorted(int(line) for line in found.split())


class Launch:
    """Two processes under `torchrun`, on the CPU; a context manager that leaves none behind."""

    def __init__(self, said: Path, *arguments: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._said = said
        with said.open("w") as stream:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                    *("--master-port", str(port), "--log-dir", str(said.with_suffix(".torchrun"))),
                    *map(str, arguments),
                ],
                stdout=stream,
                stderr=stream,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        # Workers are in sessions of their own and would outlive torchrun.
        workers = children(self.process.pid)
        for pid in [self.process.pid, *workers] if self.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def said(self) -> str:
        """All that the processes have printed so far."""
        return self._said.read_text(errors="replace")

    def end(self, seconds: float = 200) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s:\n{self.said}")

    def await_step(self, metrics: Path, step: int) -> None:
        """Wait until a step is logged."""
        deadline = time.monotonic() + 200
        while not any(line["step"] >= step for line in read_metrics(metrics)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"step {step} was not reached:\n{self.said}")
            time.sleep(0.005)


class Workplace:
    """A folder of tiles, one of them broken, a config for each method, and runs that several tests look at."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tiles = folder, folder / "tiles"
        draw_tiles(self.tiles)
        for method, options in METHODS.items():
            named = {"name": method, "hidden_dim": 32, "projection_dim": 16, "network": NETWORK, **options}
            values = CONFIG | {"max_steps": STEPS[method], "method": named}
            (folder / f"{method}.yaml").write_text(yaml.safe_dump(values))
        for name, options in COMPARED.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(CONFIG | {"max_steps": 16, "method": options}))

    def arguments(self, method: str, run: Path) -> list[str]:
        """Of `python -m encoder`."""
        return [str(self.folder / f"{method}.yaml"), "--tiles", str(self.tiles), "--out", str(run), "--device", "cpu"]

    def launch(self, method: str, run: Path) -> Launch:
        return Launch(self.folder / f"{run.name}.log", "-m", "encoder", *self.arguments(method, run))

    @cached_property
    def job(self) -> list[dict[str, Any]]:
        """What the processes of process_job.py report, in order of rank."""
        folder = self.folder
        with Launch(folder / "job.log", Path(__file__).with_name("process_job.py"), folder) as launch:
            assert launch.end() == 0, launch.said
        return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]

    @cached_property
    def runs(self) -> Callable[[str], tuple[Path, Path]]:
        """Folders of the runs of one and of two processes with a method, uninterrupted."""
        known: dict[str, tuple[Path, Path]] = {}

        def pair(method: str) -> tuple[Path, Path]:
            if method not in known:
                one, two = self.folder / f"{method}-one", self.folder / f"{method}-two"
                assert main(self.arguments(method, one)) == 0
                with self.launch(method, two) as launch:
                    assert launch.end() == 0, launch.said
                known[method] = one, two
            return known[method]

        return pair


def draw_tiles(folder: Path) -> None:
    """Noisy tiles of a grid on each slide, coloured by slide and place; one picture is cut short.

    The tiles of the last slide lie too far apart to be neighbours.
    """
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["file,slide_id,x0,y0,extent_px0,label"]
    for number in range(TILES):
        slide, place = divmod(number, TILES // SLIDES)
        row, column = divmod(place, 8)
        colour = np.array([200 - 30 * (slide % 2), 120 + 20 * slide, 190 - 10 * column])
        pixels = (colour + rng.normal(0, 25, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        step = 960 if slide == SLIDES - 1 else 96
        lines.append(f"{number:03}.png,s{slide},{step * column},{step * row},96,{'ab'[slide % 2]}")
    broken = folder / "images" / f"{BROKEN:03}.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (folder / "tiles.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("processes"))


def lines_of(run: Path, kind: str) -> list[dict[str, float]]:
    """The logged lines of a kind, without what depends on the clock."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind]
    return [{k: v for k, v in line.items() if k not in ("kind", "seconds", "tiles_per_s")} for line in lines]


def written(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "checkpoint" / "encoder.json").read_text())
    return document


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoint" / "encoder.safetensors")


def assert_same_curve(found: Path, wanted: Path) -> None:
    """Within what the order of summing costs: one in 20,000 of a loss, one in 1,000 of a gradient's norm."""
    mine, other = lines_of(found, "train"), lines_of(wanted, "train")
    assert [line["step"] for line in mine] == list(range(1, len(other) + 1))
    for left, right in zip(mine, other, strict=True):
        near = {k: pytest.approx(v, rel=1e-3 if k == "grad_norm" else 5e-5, abs=1e-6) for k, v in right.items()}
        assert left == near
    mine, other = lines_of(found, "monitor"), lines_of(wanted, "monitor")
    assert len(mine) == len(other) == 3
    for left, right in zip(mine, other, strict=True):
        # All but the rank count tiles, of which one or another may be a tie.
        assert left == {
            k: pytest.approx(v, rel=1e-3, abs=0 if k == "effective_rank" else 0.03) for k, v in right.items()
        }


def assert_same_weights(found: Path, wanted: Path) -> None:
    mine, other = weights(found), weights(wanted)
    assert mine.keys() == other.keys()
    for name, value in other.items():
        assert torch.allclose(mine[name].float(), value.float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["contrastive", "sgcl"])
def test_two_processes_learn_as_one_with_the_same_batch(place: Workplace, method: str) -> None:
    one, two = place.runs(method)
    logged = {"step", "loss", "grad_norm", "lr"}
    if method == "sgcl":
        logged |= {"instance_loss", "corner_loss", "spatial_loss", "spatial_weight", "positives"}
    curve = lines_of(two, "train")
    assert len(curve) == STEPS[method] and all(line.keys() == logged for line in curve)
    assert_same_curve(two, one)
    assert_same_weights(two, one)
    left, right = written(two), written(one)
    assert left["provenance"]["processes"] == 2 and right["provenance"]["processes"] == 1
    for counted in ("tiles", "tiles_seen", "broken_tiles", "settled", "tiles_digest"):
        assert left["provenance"][counted] == right["provenance"][counted]
    assert left["provenance"]["broken_tiles"] == 1
    assert left["metrics"]["kept_step"] == right["metrics"]["kept_step"]
    assert left["spec"].keys() == right["spec"].keys() and left["config"] == right["config"]
    said = (place.folder / f"{two.name}.log").read_text()
    # The first process speaks for all.
    assert said.count("among 2 processes") == said.count("Trained") == 1
    assert (
        said.count(f"1 tiles cannot be read and are skipped; the last: Cannot read 1 picture(s) of {place.tiles}") == 1
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_stopped_runs_go_on_as_if_nothing_had_happened(place: Workplace) -> None:
    _, whole = place.runs("sgcl")
    parts = place.folder / "parts"
    folder = RunFolder(parts)
    with place.launch("sgcl", parts) as launch:
        launch.await_step(folder.metrics, 7)
        first, second = children(launch.process.pid)
        os.kill(second, signal.SIGKILL)
        assert launch.end(100) != 0 and "Stopped after" not in launch.said
        # The first one must not wait for the dead for ever, nor keep the folder.
        assert not Path(f"/proc/{first}").exists()
    state = folder.load_state()
    assert state is not None and 5 <= state["step"] < STEPS["sgcl"] and state["step"] % 5 == 0
    for number, later in ((signal.SIGINT, 17), (signal.SIGTERM, 26)):
        before = state["step"]
        with place.launch("sgcl", parts) as launch:
            launch.await_step(folder.metrics, max(later, before + 2))
            launch.process.send_signal(number)
            assert launch.end(100) != 0
            assert f"going on after step {before}" in launch.said
        state = folder.load_state()
        assert state is not None and before < state["step"] < STEPS["sgcl"]
        assert f"Stopped after step {state['step']}; the same command goes on from there." in launch.said
        assert read_metrics(folder.metrics)[-1]["step"] == state["step"]
    with place.launch("sgcl", parts) as launch:
        assert launch.end() == 0, launch.said
    assert folder.finished and not list(parts.glob("state.pt*"))
    assert lines_of(parts, "train") == lines_of(whole, "train")
    assert lines_of(parts, "monitor") == lines_of(whole, "monitor")
    assert (parts / "checkpoint" / "encoder.safetensors").read_bytes() == (
        whole / "checkpoint" / "encoder.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_first_process_refuses_ends_all(place: Workplace) -> None:
    taken = place.folder / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    with place.launch("contrastive", taken) as launch:
        assert launch.end(100) != 0
    assert launch.said.count("error: ") >= 1
    assert f"error: {taken} is not empty and holds no training run." in launch.said
    assert [file.name for file in taken.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rows_and_sums_travel_and_so_do_their_gradients(place: Workplace) -> None:
    for rank, report in enumerate(place.job):
        found = report["exchange"]
        for name in ("gather", "gather_gradient", "gather_gradient_of_a_sum", "total", "total_gradient"):
            assert found[name] < 1e-12, (rank, name)
        assert found["gather_numbers"] is True
        assert found["mean"] == 0.5 and found["from_first"] == 7
        assert found["collect"] == [{"rank": 0}, {"rank": 1}]
        assert found["average"] == [[[0.5] * 3] * 2, [0, 0.5, 1, 1.5], None]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "BatchNormAct2d"])
def test_a_shared_normalisation_is_that_of_the_joined_batch(place: Workplace, kind: str) -> None:
    for report in place.job:
        found = dict(report["normalisation"][kind])
        assert found.pop("same_type") and found.pop("counted") and found.pop("same_keys")
        assert set(found) == {
            *("output", "input_gradient", "weight_gradient", "bias_gradient"),
            *("running_mean", "running_var", "evaluated"),
        }  # fmt: skip
        assert all(value < 2e-6 for value in found.values()), found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["contrastive", "sgcl", "sgcl-other", *COMPARED])
def test_every_gradient_and_every_bank_is_that_of_one_process(place: Workplace, method: str) -> None:
    for report in place.job:
        gaps = report[f"steps {method}"]["apart"]
        assert len(gaps) == 5
        # Of four steps the gradients of all weights and the scalars; at last weights, statistics and banks, where
        # biases that began at zero are no more than the first few changes, rounding included.
        assert all(count > 40 for _, _, count in gaps)
        assert all(value < 2e-4 for _, value, _ in gaps[:3]), gaps
        # From then on the banks differ in their last bits, and of two tiles that are equally similar either may
        # be the hard negative of a rank; the curves of whole runs are compared above.
        assert gaps[3][1] < 0.1 and gaps[4][1] < 0.05, gaps


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_share_their_clusters_unless_the_published_fault_is_restored(place: Workplace) -> None:
    first, second = (report["clusters"] for report in place.job)
    assert first == second and 1 < len(set(first["cells"])) < TILES
    faulty, random = (report["clusters unshared"] for report in place.job)
    assert faulty == first
    assert random["cells"] != first["cells"] and random["semantic"] != first["semantic"]
    # Random labels: knowing a tile's cell in one process says nothing of it in the other.
    left, right = (np.array(report["cells"]) for report in (first, random))
    pairs = np.triu_indices(TILES, 1)
    together = [(cells[:, None] == cells)[pairs] for cells in (left, right)]
    assert abs(float(np.corrcoef(together[0], together[1])[0, 1])) < 0.15


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_agree_bit_for_bit_also_after_a_stop(place: Workplace) -> None:
    first, second = place.job
    for method, names in (("contrastive", ["whole"]), ("sgcl", ["whole", "stopped", "parts", "one-two"])):
        for name in names:
            assert first[method][name] == second[method][name], (method, name)
            assert first[method][name]["finished"] is (name != "stopped")
    assert first["sgcl"]["stopped"]["step"] == 11
    assert first["sgcl"]["parts"] == first["sgcl"]["whole"]
    folder = place.folder / "sgcl"
    assert lines_of(folder / "parts", "train") == lines_of(folder / "whole", "train")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("change", ["one-two", "two-one"])
def test_a_run_goes_on_with_another_number_of_processes(place: Workplace, change: str) -> None:
    assert place.job[0]["sgcl"][change]["finished"]
    folder = place.folder / "sgcl"
    assert_same_curve(folder / change, folder / "whole")
    assert_same_weights(folder / change, folder / "whole")
