"""Every term of SGCL's loss, and what it is made of, against plain loops in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from encoder.config import TrainConfig
from encoder.errors import UsageError
from encoder.methods.protocol import Batch
from encoder.methods.sgcl import clusters, loss, semantic
from encoder.methods.sgcl.memory import Memory
from encoder.methods.sgcl.method import Sgcl, SgclOptions
from encoder.methods.sgcl.options import PublishedFaults, settle_sizes
from encoder.methods.sgcl.semantic import cells_of, semantic_neighbours
from encoder.methods.sgcl.spatial import source_neighbours, spatial_neighbours
from encoder.processes import ALONE, Processes
from tests.encoder import sgcl_reference as reference

NETWORK = {"model": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}
TILES, ANCHORS, PROJECTED, POOLED, SIDE = 120, 12, 12, 16, 64
# float32 against float64: similarities are off by about 1e-7, divided by a temperature of 0.07.
CLOSE = 1e-5


class Placed:
    """Tiles of three slides in mixed order: an 8 x 8 grid, a 6 x 7 grid of larger tiles, and a row with strays."""

    tile_px = SIDE
    labels = groups = splits = None

    def __init__(self) -> None:
        rows: list[tuple[str, int, int, int]] = []
        rows += [("a", 256 * x, 256 * y, 256) for y in range(8) for x in range(8)]
        rows += [("b", 512 * x - 1024, 512 * y - 2048, 512) for y in range(7) for x in range(6)]
        rows += [("c", 300 * x + 77, 41, 240) for x in range(8)]
        rows += [("c", 5000 + 1200 * x, 9000, 240) for x in range(6)]
        mixed = [rows[i] for i in np.random.default_rng(5).permutation(len(rows))]
        self.names = [f"tile{i}" for i in range(len(mixed))]
        self.slide_ids = [row[0] for row in mixed]
        self.positions_px0 = np.array([row[1:3] for row in mixed], dtype=np.int64)
        self.extents_px0 = np.array([row[3] for row in mixed], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)


SOURCE = Placed()
NEAR = {
    distance: reference.spatial_neighbours(SOURCE.slide_ids, SOURCE.positions_px0, SOURCE.extents_px0, distance)
    for distance in (2, 3, 4)
}
# What the batch of most tests holds: tiles of all slides, two of them without spatial neighbours.
STRAYS = [i for i in range(TILES) if not NEAR[3][i]]
OWN = [*STRAYS[:2], *[i for i in range(0, TILES, 7) if i not in STRAYS][: ANCHORS - 2]]


def config(**method: Any) -> TrainConfig:
    options = {"name": "sgcl", "network": NETWORK, "hidden_dim": 16, "projection_dim": PROJECTED} | method
    values = {"name": "t", "method": options, "tile_px": SIDE, "batch": ANCHORS, "max_steps": 200, "precision": "fp32"}
    return TrainConfig.model_validate(values)


def random_units(*shape: int, seed: int = 0) -> Tensor:
    """Random float32 directions."""
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def kinds_of_tissue(*shape: int, seed: int) -> Tensor:
    """Float32 directions [..., N, D] around one of five, that of tile i being number i modulo 5."""
    kinds = random_units(*shape[:-2], 5, shape[-1], seed=seed)
    noise = random_units(*shape, seed=seed + 1)
    return F.normalize(kinds[..., torch.arange(shape[-2]) % 5, :] + 0.9 * noise, dim=-1)


def exact(tensor: Tensor) -> NDArray[np.float64]:
    """A copy in float64."""
    copied: NDArray[np.float64] = tensor.detach().double().numpy().copy()
    return copied


def memory_of(method: Sgcl) -> Memory:
    """The banks."""
    memory = method.module["memory"]
    assert isinstance(memory, Memory)
    return memory


def entries(table: Tensor | NDArray[np.int32]) -> list[list[int]]:
    """The rows of a table without the -1 that fill them up."""
    return [[j for j in row if j >= 0] for row in table.tolist()]


@dataclass
class Seen:
    """What the network says of a batch: unit projections, features, and unit projections of the corners."""

    own: list[int] = field(default_factory=lambda: list(OWN))
    projected: Tensor = field(default_factory=lambda: kinds_of_tissue(TILES, PROJECTED, seed=30)[OWN])
    features: Tensor = field(default_factory=lambda: 3 * kinds_of_tissue(TILES, POOLED, seed=40)[OWN])
    corners: Tensor = field(default_factory=lambda: kinds_of_tissue(4, TILES, PROJECTED, seed=50)[:, OWN])


class Bench:
    """The real method with banks of five kinds of tissue, fed with given vectors in place of the network's.

    Attributes:
        options: of the method.
        memory: its banks.
        views: what the network was given in the last step, whole views first.
        drawn: the random tiles of the last step.
        candidates, ranks, listed: what hard negatives were chosen from in the last step.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **method: Any) -> None:
        torch.manual_seed(0)
        self.method = Sgcl(config(**method), SOURCE)
        self.options = self.method._options
        self.memory = memory_of(self.method)
        self.memory.whole.copy_(kinds_of_tissue(TILES, self.memory.whole.shape[1], seed=10))
        self.memory.corners.copy_(kinds_of_tissue(4, TILES, self.memory.whole.shape[1], seed=15))
        self.memory.pooled.copy_(kinds_of_tissue(TILES, self.memory.pooled.shape[1], seed=20))
        self.views: list[Tensor] = []
        self.drawn = torch.empty(0)
        self.candidates = torch.empty(0)
        self.ranks = torch.empty(0)
        self.listed = 0
        self._spy(monkeypatch)
        self.begin(ALONE)

    def begin(self, processes: Processes) -> None:
        """Begin an epoch, and list by plain loops what the method should have listed."""
        self.method.begin_epoch(1, processes)
        options, bank = self.options, self.memory.whole
        labels = [
            clusters.cluster(bank, min(options.clusters, max(4, TILES // 50)), options.cluster_iterations, 1234 + i)
            for i in range(options.clusterings)
        ]
        self.mates = reference.cell_mates(torch.stack(labels).numpy())
        nearest = min(options.semantic_nearest, TILES // 20)
        kept = min(options.semantic_kept, nearest)
        self.semantic = reference.semantic_neighbours(exact(bank), self.mates, nearest, kept)

    def step(
        self, seen: Seen, epoch: int = 1, progress: float = 0.1, seed: int = 3, processes: Processes = ALONE
    ) -> dict[str, Tensor]:
        """The method's losses."""
        self.views = []
        given = iter([(seen.features, seen.projected), (seen.features, seen.corners.flatten(0, 1))])

        def forward(views: Tensor) -> tuple[Tensor, Tensor]:
            self.views.append(views)
            return next(given)

        self.method._forward = forward  # type: ignore[method-assign]
        pixels = np.random.default_rng(0).integers(0, 256, (len(seen.own), SIDE, SIDE, 3), dtype=np.uint8)
        generator = torch.Generator().manual_seed(seed)
        batch = Batch(torch.from_numpy(pixels), torch.tensor(seen.own), generator, progress, epoch, processes)
        return self.method.losses(batch, "network")

    def literal(
        self, seen: Seen, projected: NDArray[np.float64] | None = None, corners: NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """The terms by the formula, with the random draws of the last step.

        Args:
            seen: what was given to that step.
            projected, corners: in the place of the seen ones, hard negatives of `constant_negatives` excepted.
        """
        options, faults, memory = self.options, self.options.faults, self.memory
        queries = exact(seen.projected) if projected is None else projected
        corner_queries = exact(seen.corners) if corners is None else corners
        drawn = self.drawn.numpy()
        terms = {
            "instance_loss": reference.instance_loss(
                queries, seen.own, exact(memory.whole), drawn, options.temperature, faults.self_negatives
            )
        }
        if options.corner_weight:
            terms["corner_loss"] = reference.corner_loss(
                corner_queries, seen.own, exact(memory.corners), drawn, options.temperature, faults.self_negatives
            )
        if options.spatial_weight:
            around = reference.Surroundings(
                exact(memory.whole),
                exact(memory.pooled),
                NEAR[round(options.neighbour_tiles)],
                self.semantic,
                self.mates,
            )
            terms["spatial_loss"], counts = reference.spatial_loss(
                queries,
                reference.unit(exact(seen.features)),
                seen.own,
                around,
                self.candidates.tolist(),
                round(options.hard_share * min(options.ranked_tiles, TILES)),
                self.ranks.tolist(),
                options.spatial_temperature,
                faults.spurious_ones,
                faults.lonely_anchors,
                exact(seen.projected) if faults.constant_negatives else None,
            )
            terms["positives"] = float(np.mean(counts))
        return terms

    def total(self, terms: dict[str, float], weight: float) -> float:
        """The loss: its terms by their weights, the spatial one's at its strength of now."""
        options = self.options
        return (
            terms["instance_loss"]
            + options.corner_weight * terms.get("corner_loss", 0.0)
            + options.spatial_weight * weight * terms.get("spatial_loss", 0.0)
        )

    def _spy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draw, choose, pick = self.method._draw_negatives, self.method._hard_negatives, loss.hard_negatives

        def drawing(batch: Batch) -> Tensor:
            self.drawn = draw(batch)
            return self.drawn

        def choosing(
            batch: Batch, pooled: Tensor, own: Tensor, auxiliary: Tensor, positives: Tensor
        ) -> tuple[Tensor, Tensor]:
            self.candidates, places = choose(batch, pooled, own, auxiliary, positives)
            return self.candidates, places

        def picking(pooled: Tensor, bank: Tensor, excluded: Tensor, ranks: Tensor, listed: int) -> Tensor:
            self.ranks, self.listed = ranks, listed
            return pick(pooled, bank, excluded, ranks, listed)

        self.method._draw_negatives = drawing  # type: ignore[method-assign]
        self.method._hard_negatives = choosing  # type: ignore[method-assign]
        monkeypatch.setattr(loss, "hard_negatives", picking)


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    """Losses as plain numbers."""
    return {name: value.item() for name, value in losses.items()}


@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize("shared", [True, False])
def test_instance_discrimination_equals_its_definition(temperature: float, shared: bool) -> None:
    queries, bank = random_units(10, 8, seed=1), random_units(150, 8, seed=2)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(150, (40,) if shared else (10, 40), generator=generator)
    own = torch.arange(10) * 11
    drawn[..., :5] = own[4]
    found = loss.similarities(queries, bank, drawn)
    assert found.shape == (10, 40)
    for count_itself in (True, False):
        kept = found if count_itself else found.masked_fill(drawn == own[:, None], -torch.inf)
        parts = list((kept / temperature).split([25, 15], dim=1))
        each = loss.discrimination((queries * bank[own]).sum(dim=1) / temperature, parts)
        literal = reference.instance_loss(
            exact(queries), own.tolist(), exact(bank), drawn.numpy(), temperature, count_itself
        )
        assert each.mean().item() == pytest.approx(literal, rel=CLOSE)
    # The five draws of anchor 4's own tile weigh as much as its positive, five times.
    alone = loss.discrimination(torch.tensor([0.5]), [torch.full((1, 5), -torch.inf)])
    with_itself = loss.discrimination(torch.tensor([0.5]), [torch.full((1, 5), 0.5)])
    assert alone.item() == 0 and with_itself.item() == pytest.approx(math.log(6))


def test_corners_meet_their_own_bank_and_a_quarter_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for shared in (True, False):
        bench, seen = Bench(monkeypatch, shared_negatives=shared), Seen()
        losses = bench.step(seen)
        assert bench.drawn.shape == ((60,) if shared else (ANCHORS, 60))
        before = losses["corner_loss"].item()
        assert before == pytest.approx(bench.literal(seen)["corner_loss"], rel=CLOSE)
        # Exchanging two corners together with their banks and quarters changes nothing; the corners alone do.
        swapped = [1, 0, 2, 3]
        exchanged = Seen(corners=seen.corners[swapped])
        assert bench.step(exchanged)["corner_loss"].item() > before + 0.1
        bench.memory.corners.copy_(bench.memory.corners[swapped].clone())
        quarters = bench.drawn.chunk(4, dim=-1)
        bench.drawn = torch.cat([quarters[i] for i in swapped], dim=-1)
        assert bench.literal(exchanged)["corner_loss"] == pytest.approx(before, rel=CLOSE)


def test_views_of_corners_are_cut_from_the_quarter_that_their_bank_stands_for() -> None:
    still = {
        "stain_probability": 0, "brightness": 0, "contrast": 0, "grey_probability": 0, "blur_probability": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    method = Sgcl(config(corner_augment={**still, "min_area": 0.2, "max_area": 0.56}), SOURCE)
    given: list[Tensor] = []

    def forward(views: Tensor) -> tuple[Tensor, Tensor]:
        given.append(views)
        return torch.zeros(len(views), POOLED), random_units(len(views), PROJECTED)

    method._forward = forward  # type: ignore[method-assign]
    tiles = torch.zeros(ANCHORS, SIDE, SIDE, 3, dtype=torch.uint8)
    grey = (40, 100, 160, 220)
    for number, value in enumerate(grey):
        rows, columns = divmod(number, 2)
        tiles[:, 32 * rows : 32 * rows + 32, 32 * columns : 32 * columns + 32] = value
    method.losses(Batch(tiles, torch.arange(ANCHORS), torch.Generator().manual_seed(0), 0.1, 1), "network")
    whole, corners = given
    assert whole.shape == (ANCHORS, 3, 64, 64) and corners.shape == (4 * ANCHORS, 3, 27, 27)
    pixels = method._scale.undo(corners).view(4, ANCHORS, 3, 27, 27)
    for number, value in enumerate(grey):
        # The middle of a view lies well inside the quarter; optical densities cost a little accuracy.
        assert (pixels[number, :, :, 6:21, 6:21] - value / 255).abs().max() < 0.01


def neighbours_by_loops(
    slides: Sequence[str], places: NDArray[np.int64], sides: NDArray[np.int64], distance: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Spatial neighbours by the code and by plain loops."""
    numbers_of = {name: number for number, name in enumerate(sorted(set(slides)))}
    table = spatial_neighbours(
        np.array([numbers_of[name] for name in slides]), places / sides[:, None], float(distance)
    )
    found = entries(table)
    assert table.shape == (len(slides), max(1, *map(len, found))) and table.dtype == np.int32
    assert all((row[len(mine) :] == -1).all() for row, mine in zip(table, found, strict=True))
    return found, reference.spatial_neighbours(slides, places, sides, distance)


def test_spatial_neighbours_are_those_of_a_search_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    grid = np.array([(x, y) for y in range(9) for x in range(9)])
    for side in (1, 224, 256):
        found, literal = neighbours_by_loops(["s"] * 81, grid * side, np.full(81, side), 3)
        assert found == literal
        # 24 in the middle: 5 x 5 without the tile itself, but not what lies three away in a straight line.
        assert len(found[40]) == 24 and len(found[0]) == 8
    # Off any grid, many slides, negative coordinates, a side for each slide, two tiles at one place.
    slides = [f"s{i}" for i in rng.integers(0, 12, 300)]
    side_of = {f"s{i}": int(side) for i, side in enumerate(rng.integers(90, 700, 12))}
    sides = np.array([side_of[name] for name in slides])
    places = rng.integers(-3000, 3000, (300, 2))
    slides[1], sides[1], places[1] = slides[0], sides[0], places[0]
    for distance in (1, 3, 5):
        found, literal = neighbours_by_loops(slides, places, sides, distance)
        assert found == literal
        assert 1 not in found[0] and 0 not in found[1]
    assert any(not mine for mine in neighbours_by_loops(slides, places, sides, 1)[0])
    assert neighbours_by_loops(["s", "t"], np.zeros((2, 2), np.int64), np.array([5, 5]), 3)[0] == [[], []]


@pytest.mark.parametrize(("origin", "side"), [(37, 224.0), (0, 443.56), (17.3, 460.72)])
def test_tiles_three_steps_apart_are_no_neighbours_on_any_slide(origin: float, side: float) -> None:
    # Positions and sides are rounded to whole level-0 pixels; what counts are the steps of the grid.
    grid = np.array([(x, y) for y in range(12) for x in range(12)])
    source = Placed()
    source.slide_ids = ["s"] * 144
    source.positions_px0 = np.rint(origin + grid * side).astype(np.int64)
    source.extents_px0 = np.full(144, round(side))
    found = entries(source_neighbours(source, 3.0))
    assert found == reference.spatial_neighbours(source.slide_ids, grid, np.ones(144, dtype=np.int64), 3)


def test_spatial_neighbours_of_a_source_count_in_its_tile_sides() -> None:
    for distance, literal in NEAR.items():
        assert entries(source_neighbours(SOURCE, float(distance))) == literal
    assert len(STRAYS) == 6 and {SOURCE.slide_ids[i] for i in STRAYS} == {"c"}


@pytest.mark.parametrize(("count", "number", "iterations"), [(120, 2, 20), (200, 8, 5), (130, 60, 4)])
def test_clusters_are_those_of_plain_lloyd(
    count: int, number: int, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_units(count, 6, seed=count)
    if number == 60:
        # Half of the rows are alike, so that many centres begin at one point and all but one of them are empty.
        rows[::2] = rows[0]
    used: list[Tensor] = []
    assign = clusters.assign

    def assigning(vectors: Tensor, centres: Tensor) -> Tensor:
        used.append(centres)
        return assign(vectors, centres)

    monkeypatch.setattr(clusters, "assign", assigning)
    labels = clusters.cluster(rows, number, iterations, 1234)
    assert torch.equal(labels, clusters.cluster(rows, number, iterations, 1234))
    assert len(used) == 2 * (iterations + 1)
    generator = torch.Generator().manual_seed(1234)
    order = torch.randperm(count, generator=generator)
    restarts = torch.stack([torch.randint(count, (number,), generator=generator) for _ in range(iterations)])
    literal, centres, inertias = reference.lloyd(exact(rows), order[:number].numpy(), order[restarts].numpy())
    assert np.allclose(exact(used[iterations]), centres, atol=1e-6)
    away = [float(((exact(rows)[i] - centres[c]) ** 2).sum()) for i, c in enumerate(labels.tolist())]
    # Of centres at one point any may be named, so distances are compared and not their numbers.
    assert np.allclose(away, [reference.nearest_centre(row, centres)[1] for row in exact(rows)], atol=1e-6)
    assert sum(away) == pytest.approx(inertias[-1], rel=CLOSE) and inertias[-1] <= inertias[0]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(inertias))
    if number != 60:
        assert labels.tolist() == literal
    other = clusters.cluster(rows, number, iterations, 1235)
    assert not torch.equal(labels, other) and int(other.max()) < number


def test_long_sets_are_clustered_by_some_of_their_rows_but_all_are_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, lengths = random_units(400, 5, seed=2), []
    assign = clusters.assign
    monkeypatch.setattr(clusters, "_ROWS_PER_CLUSTER", 16)

    def assigning(vectors: Tensor, centres: Tensor) -> Tensor:
        lengths.append(len(vectors))
        return assign(vectors, centres)

    monkeypatch.setattr(clusters, "assign", assigning)
    labels = clusters.cluster(rows, 10, 3, 7)
    assert lengths == [160, 160, 160, 400] and len(labels) == 400
    monkeypatch.setattr(clusters, "_CHUNK_BYTES", 4 * 10 * 7)
    assert torch.equal(labels, clusters.cluster(rows, 10, 3, 7))


def test_cells_are_equal_exactly_where_all_clusterings_agree() -> None:
    labels = torch.randint(4, (3, 130), generator=torch.Generator().manual_seed(0))
    cells, mates = cells_of(labels), reference.cell_mates(labels.numpy())
    assert cells.shape == (130,) and cells.dtype == torch.int64
    for i in range(130):
        assert {j for j in range(130) if cells[j] == cells[i]} == mates[i] | {i}


@pytest.mark.parametrize(("nearest", "kept"), [(15, 15), (40, 3), (299, 40), (1, 5)])
def test_semantic_neighbours_are_those_of_a_search_by_brute_force(
    nearest: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = kinds_of_tissue(300, 10, seed=3)
    labels = torch.stack([clusters.cluster(bank, 4, 5, 1234 + i) for i in range(2)])
    # A tile alone in its cell has no neighbour.
    labels[:, 17] = 9
    cells = cells_of(labels)
    literal = reference.semantic_neighbours(exact(bank), reference.cell_mates(labels.numpy()), nearest, kept)
    table = semantic_neighbours(bank, cells, nearest, kept, seed=0)
    assert table.shape == (300, kept) and table.dtype == torch.int32
    assert entries(table) == literal
    assert all(-1 not in row[: len(mine)] for row, mine in zip(table.tolist(), literal, strict=True))
    assert literal[17] == [] and any(literal)
    monkeypatch.setattr(semantic, "_CHUNK_BYTES", 4 * 300 * 3)
    assert torch.equal(table, semantic_neighbours(bank, cells, nearest, kept, seed=0))


def test_ranks_estimated_from_some_tiles_give_the_beginning_or_more_of_the_exact_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = kinds_of_tissue(300, 10, seed=3)
    cells = cells_of(torch.stack([clusters.cluster(bank, 4, 5, 1234 + i) for i in range(2)]))
    whole = entries(semantic_neighbours(bank, cells, 299, 300, 0))
    exactly = entries(semantic_neighbours(bank, cells, 45, 300, 0))
    monkeypatch.setattr(semantic, "_RANKED_COLUMNS", 100)
    lengths = []
    for seed in range(6):
        table = semantic_neighbours(bank, cells, 45, 300, seed)
        found = entries(table)
        lengths.append(sum(map(len, found)))
        for i in range(300):
            assert i not in found[i] and all(cells[j] == cells[i] for j in found[i])
            assert found[i] == whole[i][: len(found[i])]
        assert torch.equal(table, semantic_neighbours(bank, cells, 45, 300, seed))
    expected = sum(map(len, exactly))
    assert expected > 1500 and len(set(lengths)) > 1
    assert np.mean(lengths) == pytest.approx(expected, rel=0.1)
    assert all(length == pytest.approx(expected, rel=0.25) for length in lengths)


def test_positives_are_joined_once_without_the_anchor() -> None:
    generator = torch.Generator().manual_seed(0)
    lists = [torch.randint(-1, 25, (50, width), generator=generator) for width in (6, 1, 9)]
    own = torch.randint(25, (50,), generator=generator)
    joined = loss.union(lists, own)
    assert joined.shape == (50, 16)
    for row, rows in zip(joined.tolist(), zip(own.tolist(), *lists, strict=True), strict=True):
        tile, *parts = rows
        expected = {int(j) for part in parts for j in part} - {-1, tile}
        assert sorted(j for j in row if j >= 0) == sorted(expected)


def test_auxiliary_anchor_is_the_most_similar_spatial_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(monkeypatch), Seen()
    near, auxiliary = bench.method._near(seen.projected, torch.tensor(seen.own))
    bank, queries = exact(bench.memory.whole), exact(seen.projected)
    for anchor, tile in enumerate(seen.own):
        assert [j for j in near[anchor].tolist() if j >= 0] == NEAR[3][tile]
        literal = reference.auxiliary_of(queries[anchor], bank, NEAR[3][tile], 0.07)
        assert auxiliary[anchor].item() == (-1 if literal is None else literal)
    assert auxiliary[:2].tolist() == [-1, -1] and len(set(auxiliary.tolist())) > 5


@pytest.mark.parametrize("ranked", [250, 90])
def test_hard_negatives_are_the_tiles_at_the_drawn_ranks(ranked: int) -> None:
    generator = torch.Generator().manual_seed(ranked)
    pooled, bank = random_units(9, 16, seed=4), random_units(250, 16, seed=5)
    candidates = torch.randperm(250, generator=generator)[:ranked]
    excluded = torch.rand(9, ranked, generator=generator) < 0.3
    # So few remain for the last anchors that some ranks, or all of them, are not taken.
    excluded[7] = torch.arange(ranked) >= 4
    excluded[8] = True
    listed = ranked // 5
    ranks = torch.randint(listed, (30,), generator=generator)
    places = loss.hard_negatives(pooled, bank[candidates], excluded, ranks, listed)
    for anchor in range(9):
        left_out = {int(j) for j in candidates[excluded[anchor]]}
        literal = reference.hard_negatives(
            exact(pooled[anchor]), exact(bank), left_out, candidates.tolist(), listed, ranks.tolist()
        )
        assert [int(candidates[p]) for p in places[anchor] if p >= 0] == literal
    taken = (places >= 0).sum(dim=1).tolist()
    assert taken[:7] == [30] * 7 and taken[7] == int((ranks < 4).sum()) and taken[8] == 0


@pytest.mark.parametrize(("as_histogram", "mean"), [(False, 0.25), (True, 0.318)])
def test_ranks_follow_the_beta_density(as_histogram: bool, mean: float) -> None:
    for length in (200, 13_107):
        weights = loss.rank_weights(length, (5.0, 15.0), as_histogram).numpy()
        shares = weights / weights.sum()
        middles = (np.arange(length) + 0.5) / length
        assert float((shares * middles).sum()) == pytest.approx(mean, abs=0.002)
        mode = middles[shares.argmax()]
        assert mode == pytest.approx(0.275 if as_histogram else 4 / 18, abs=0.02 if as_histogram else 0.003)
        at = middles if not as_histogram else 0.006 + 0.769 * middles
        literal = np.array([reference.beta_density(x, 5, 15) for x in at])
        assert np.allclose(shares, literal / literal.sum(), rtol=1e-9, atol=1e-15)
    flat = loss.rank_weights(10, (1.0, 1.0), False)
    assert torch.allclose(flat / flat.sum(), torch.full((10,), 0.1, dtype=torch.float64))


def test_attraction_equals_its_definition() -> None:
    queries, bank = random_units(8, 12, seed=6), random_units(150, 12, seed=7)
    generator = torch.Generator().manual_seed(8)
    positives = torch.randint(-1, 150, (8, 10), generator=generator)
    negatives = torch.randint(-1, 150, (8, 40), generator=generator)
    negatives[0] = -1
    for name, ones in (("none", None), ("spurious", 140)):
        attracted = loss.few_similarities(queries, bank, positives.clamp(min=0)).masked_fill(positives < 0, -torch.inf)
        repelled = loss.few_similarities(queries, bank, negatives.clamp(min=0)).masked_fill(negatives < 0, -torch.inf)
        spurious = None if ones is None else torch.full((8,), ones)
        each = loss.attraction(attracted, repelled, 0.07, spurious)
        for anchor in range(8):
            wanted = [j for j in positives[anchor].tolist() if j >= 0]
            unwanted = [j for j in negatives[anchor].tolist() if j >= 0]
            # A tile drawn twice counts twice, here among positives too, which `union` rules out.
            query, rows = exact(queries[anchor]), exact(bank)
            literal = reference.attraction(query, rows, wanted, unwanted, 0.07, ones or 0)
            assert each[anchor].item() == pytest.approx(literal, rel=CLOSE, abs=1e-7), name
    # One strong positive satisfies it, whatever the others are.
    strong = loss.attraction(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0]]), 0.07, None)
    assert 0 <= strong.item() < 1e-5


def test_ramp_is_the_papers() -> None:
    def at(epoch: int, progress: float = 0.0) -> float:
        return loss.ramp(epoch, progress, epochs=10, share=0.25)

    assert at(0) == pytest.approx(0.0067, abs=5e-5) and at(5) == pytest.approx(0.29, abs=0.005)
    assert [at(epoch) for epoch in range(15)] == pytest.approx([reference.ramp(epoch, 10) for epoch in range(15)])
    assert at(10) == at(11) == at(99) == 1
    # Of 100 epochs the paper's hold; of few, a quarter of the run is enough, but never the first epoch.
    assert all(at(e, e / 100) == pytest.approx(reference.ramp(e, 10)) for e in range(100))
    assert at(1, 0.125) == pytest.approx(reference.ramp(5, 10)) and at(2, 0.25) == at(2, 0.9) == 1
    assert at(0, 0.3) == at(0) and loss.ramp(1, 0.25, 10, 0.5) == pytest.approx(reference.ramp(5, 10))


def test_banks_remember_half_of_the_old_and_half_of_the_new() -> None:
    memory = Memory(40, PROJECTED, POOLED, 3, torch.float32)
    half = Memory(40, PROJECTED, POOLED, 3, torch.float16)
    for bank in (memory.whole, memory.corners, memory.pooled):
        assert torch.allclose(bank.norm(dim=-1), torch.ones(bank.shape[:-1]), atol=1e-6)
    assert torch.equal(memory.semantic, torch.full((40, 3), -1)) and len(memory.cells.unique()) == 40
    half.load_state_dict(memory.state_dict())
    assert half.whole.dtype == torch.float16
    literal = {name: exact(getattr(memory, name)) for name in ("whole", "pooled", "corners")}
    for round_ in range(6):
        tiles = torch.randperm(40, generator=torch.Generator().manual_seed(round_))[:15]
        whole, corners = random_units(15, PROJECTED, seed=round_), random_units(4, 15, PROJECTED, seed=9 + round_)
        pooled = random_units(15, POOLED, seed=60 + round_)
        for kind in (memory, half):
            kind.update(tiles, whole, corners if round_ else None, pooled, 0.5)
        for row, tile in enumerate(tiles.tolist()):
            for name, seen in (("whole", whole), ("pooled", pooled)):
                literal[name][tile] = reference.remembered(literal[name][tile], exact(seen[row]), 0.5)
            for corner in range(4 if round_ else 0):
                old = literal["corners"][corner, tile]
                literal["corners"][corner, tile] = reference.remembered(old, exact(corners[corner, row]), 0.5)
    for name, expected in literal.items():
        assert np.allclose(exact(getattr(memory, name)), expected, atol=1e-6)
        assert np.allclose(exact(getattr(half, name)), expected, atol=2e-3)
        assert not np.array_equal(exact(getattr(half, name)), exact(getattr(memory, name)))


TERMS = ("instance_loss", "corner_loss", "spatial_loss", "positives", "spatial_weight")
SPATIAL = {"spatial_loss", "positives"}
# For each option: another value than the default's for these tiles, and the terms that change with it. What changes
# how much is drawn at random shifts the ranks of hard negatives, which are drawn after it.
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "temperature": (0.4, {"instance_loss", "corner_loss"}),
    "spatial_temperature": (0.2, {"spatial_loss"}),
    "instance_negatives": (20, {"instance_loss", "corner_loss", "spatial_loss"}),
    "shared_negatives": (False, {"instance_loss", "corner_loss", "spatial_loss"}),
    "neighbour_tiles": (2.0, SPATIAL),
    "semantic_nearest": (2, SPATIAL),
    "semantic_kept": (2, SPATIAL),
    "clusterings": (1, SPATIAL),
    "cluster_iterations": (1, SPATIAL),
    "hard_share": (0.6, {"spatial_loss"}),
    "hard_negatives": (5, {"spatial_loss"}),
    "hard_beta": ((1.0, 1.0), {"spatial_loss"}),
    "ranked_tiles": (100, {"spatial_loss"}),
    "bank_precision": ("fp16", {"instance_loss", "corner_loss", "spatial_loss"}),
    "spatial_weight": (0.3, {"spatial_weight"}),
    "corner_weight": (0.5, set()),
    "ramp_epochs": (2, {"spatial_weight"}),
    "ramp_share": (0.12, {"spatial_weight"}),
}
FAULTS: dict[str, set[str]] = {
    "spurious_ones": {"spatial_loss"},
    "constant_negatives": set(),
    "histogram_ranks": {"spatial_loss"},
    "lonely_anchors": SPATIAL,
    "self_negatives": {"instance_loss", "corner_loss"},
}
# These have tests of their own below.
ELSEWHERE = {
    "name", "network", "view_px", "corner_px", "hidden_dim", "projection_dim", "augment", "corner_augment", "clusters",
    "bank_momentum", "faults",
}  # fmt: skip


def test_every_option_is_looked_at() -> None:
    assert set(SgclOptions.model_fields) == set(CHANGES) | ELSEWHERE
    assert set(PublishedFaults.model_fields) == set(FAULTS) | {"unshared_clusters"}


def check_step(bench: Bench, seen: Seen, weight: float) -> dict[str, float]:
    """Compare a step with the formula, and give its terms."""
    found, literal = numbers(bench.step(seen)), bench.literal(seen)
    expected = literal | {"loss": bench.total(literal, weight)}
    if bench.options.spatial_weight:
        expected["spatial_weight"] = bench.options.spatial_weight * weight
    assert found == pytest.approx(expected, rel=CLOSE)
    return {name: found[name] for name in TERMS}


@pytest.fixture(scope="module")
def usual() -> Iterator[dict[str, float]]:
    """The terms of a step with the default options."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        bench = Bench(monkeypatch)
        assert bench.drawn.numel() == 0
        # Epoch 1 of 10, and 0.1 of the run where 0.25 is the ramp.
        yield check_step(bench, Seen(), reference.ramp(0.4, 1))


@pytest.mark.parametrize("name", CHANGES)
def test_a_step_equals_the_literal_formula_under_each_option(
    name: str, usual: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, changed = CHANGES[name]
    reached = {"ramp_epochs": 0.5, "ramp_share": 0.1 / 0.12}.get(name, 0.4)
    found = check_step(Bench(monkeypatch, **{name: value}), Seen(), reference.ramp(reached, 1))
    assert {term for term in TERMS if found[term] != usual[term]} == changed


@pytest.mark.parametrize("name", FAULTS)
def test_a_step_equals_the_literal_formula_under_each_fault(
    name: str, usual: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check_step(Bench(monkeypatch, faults={name: True}), Seen(), reference.ramp(0.4, 1))
    assert {term for term in TERMS if found[term] != usual[term]} == FAULTS[name]
    if name in ("spurious_ones", "self_negatives"):
        # The denominator only grows.
        assert all(found[term] > usual[term] for term in FAULTS[name])


def test_steps_use_the_banks_of_now_and_the_lists_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    listed = bench.memory.semantic.clone()
    for step in range(4):
        own = [(17 * step + 9 * i) % TILES for i in range(ANCHORS)]
        projected, features = (random_units(ANCHORS, length, seed=step) for length in (PROJECTED, POOLED))
        seen = Seen(own, projected, features, random_units(4, ANCHORS, PROJECTED, seed=step))
        found = numbers(bench.step(seen, seed=step))
        assert found["spatial_loss"] == pytest.approx(bench.literal(seen)["spatial_loss"], rel=CLOSE)
        assert found["loss"] == pytest.approx(bench.total(bench.literal(seen), reference.ramp(0.4, 1)), rel=CLOSE)
        banks = [exact(bank) for bank in (bench.memory.whole, bench.memory.pooled, *bench.memory.corners)]
        bench.method.after_step(0.1)
        now = [exact(bank) for bank in (bench.memory.whole, bench.memory.pooled, *bench.memory.corners)]
        views = [exact(seen.projected), exact(F.normalize(seen.features, dim=1)), *exact(seen.corners)]
        for before, after, view in zip(banks, now, views, strict=True):
            for row, tile in enumerate(own):
                assert np.allclose(after[tile], reference.remembered(before[tile], view[row], 0.5), atol=1e-6)
            others = [i for i in range(TILES) if i not in own]
            assert np.array_equal(before[others], after[others])
        assert torch.equal(listed, bench.memory.semantic)
    assert entries(listed) == bench.semantic
    bench.begin(ALONE)
    assert not torch.equal(listed, bench.memory.semantic)
    assert entries(bench.memory.semantic) == bench.semantic


def test_the_real_network_takes_a_step_that_equals_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    forward, outcomes = bench.method._forward, []

    def listening(views: Tensor) -> tuple[Tensor, Tensor]:
        outcomes.append(forward(views))
        return outcomes[-1]

    bench.method._forward = listening  # type: ignore[method-assign]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (ANCHORS, SIDE, SIDE, 3), dtype=np.uint8))
    batch = Batch(pixels, torch.tensor(OWN), torch.Generator().manual_seed(0), 0.1, 10)
    losses = bench.method.losses(batch, "network")
    (features, projected), (_, corners) = outcomes
    assert features.shape == (ANCHORS, POOLED) and projected.shape == (ANCHORS, PROJECTED)
    assert torch.allclose(projected.norm(dim=1), torch.ones(ANCHORS))
    seen = Seen(list(OWN), projected, features, corners.view(4, ANCHORS, -1))
    literal = bench.literal(seen)
    literal |= {"loss": bench.total(literal, 1.0), "spatial_weight": 1.0}
    assert numbers(losses) == pytest.approx(literal, rel=CLOSE)
    _, own, remembered, corner_views, pooled = bench.method._seen or pytest.fail("nothing to remember")
    assert own.tolist() == OWN and torch.equal(remembered, projected.detach())
    assert corner_views is not None and torch.equal(corner_views, seen.corners.detach())
    assert np.allclose(exact(pooled), reference.unit(exact(features)), atol=1e-6)
    assert not any(kept.requires_grad for kept in (remembered, corner_views, pooled))
    losses["loss"].backward()
    gradients = [weight.grad for weight in bench.method.phases()["network"].parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert all(buffer.grad is None for buffer in bench.memory.buffers())


def test_losses_are_computed_in_float32_within_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    for method in ({}, {"shared_negatives": False}, {"bank_precision": "fp16"}):
        bench = Bench(monkeypatch, **method)
        plain = numbers(bench.step(seen))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert numbers(bench.step(seen)) == plain


@pytest.mark.parametrize("faults", [{}, {"constant_negatives": True}, {"spurious_ones": True}])
def test_gradients_are_those_of_finite_differences(faults: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(monkeypatch, faults=faults), Seen()
    seen.projected.requires_grad_()
    seen.corners.requires_grad_()
    losses = bench.step(seen, epoch=10)
    losses["spatial_loss"].backward(retain_graph=True)
    spatial = seen.projected.grad.clone()  # type: ignore[union-attr]
    seen.projected.grad = None
    losses["loss"].backward()

    def of_queries(term: str) -> Any:
        def value(queries: NDArray[np.float64]) -> float:
            terms = bench.literal(seen, projected=queries)
            return bench.total(terms, 1.0) if term == "loss" else terms[term]

        return value

    def of_corners(corners: NDArray[np.float64]) -> float:
        return bench.literal(seen, corners=corners)["corner_loss"]

    point = exact(seen.projected)
    for coordinate in ((3, 2), (7, 11)):
        literal = reference.slope(of_queries("spatial_loss"), point, coordinate)
        assert spatial[coordinate].item() == pytest.approx(literal, rel=1e-4, abs=1e-6) and abs(literal) > 1e-4
        literal = reference.slope(of_queries("loss"), point, coordinate)
        assert seen.projected.grad[coordinate].item() == pytest.approx(literal, rel=1e-4, abs=1e-6)  # type: ignore[index]
    literal = reference.slope(of_corners, exact(seen.corners), (2, 5, 1))
    assert seen.corners.grad[2, 5, 1].item() == pytest.approx(literal, rel=1e-4, abs=1e-6)  # type: ignore[index]


def test_constant_negatives_keep_the_value_but_only_attract(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, values = [], []
    for fault in (False, True):
        bench, seen = Bench(monkeypatch, faults={"constant_negatives": fault}), Seen()
        seen.projected.requires_grad_()
        value = bench.step(seen)["spatial_loss"]
        value.backward()
        values.append(value.item())
        gradients.append(seen.projected.grad)
    repelling = gradients[0] - gradients[1]  # type: ignore[operator]
    assert values[0] == values[1] and repelling.norm() > 0.1 * gradients[1].norm()  # type: ignore[union-attr]
    # Attraction is the slope of the positives alone, a sum of their entries with weights of one sign.
    around = [NEAR[3][tile] for tile in OWN]
    assert all(around[2:])
    bank = exact(bench.memory.whole)
    for anchor, tile in enumerate(OWN):
        auxiliary = reference.auxiliary_of(exact(seen.projected[anchor]), bank, around[anchor], 0.07)
        positives = reference.positives_of(tile, around[anchor], bench.semantic, auxiliary)
        weights = np.array([math.exp(float(exact(seen.projected[anchor]) @ bank[j]) / 0.07) for j in positives])
        direction = -(weights[:, None] * bank[list(positives)]).sum(axis=0) if positives else np.zeros(PROJECTED)
        pulled = exact(gradients[1][anchor])  # type: ignore[index]
        if np.linalg.norm(pulled) > 1e-4:
            cosine = direction @ pulled / np.linalg.norm(direction) / np.linalg.norm(pulled)
            assert cosine == pytest.approx(1, abs=1e-4)


def without_semantic(bench: Bench) -> None:
    """Let no tile have semantic neighbours."""
    bench.memory.semantic.fill_(-1)
    bench.semantic = [[] for _ in range(TILES)]


def test_anchors_without_positives_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(monkeypatch), Seen()
    without_semantic(bench)
    seen.projected.requires_grad_()
    losses = bench.step(seen)
    literal = bench.literal(seen)
    assert losses["spatial_loss"].item() == pytest.approx(literal["spatial_loss"], rel=CLOSE)
    assert losses["positives"].item() == pytest.approx(literal["positives"], rel=CLOSE)
    losses["spatial_loss"].backward()
    gradient = seen.projected.grad
    assert gradient is not None and gradient.isfinite().all()
    assert (gradient[:2] == 0).all() and (gradient[2:].abs().sum(dim=1) > 0).all()
    # The mean is over the others alone.
    rest = Seen(OWN[2:], seen.projected.detach()[2:], seen.features[2:], seen.corners[:, 2:])
    assert bench.literal(rest)["spatial_loss"] == pytest.approx(literal["spatial_loss"], rel=1e-12)
    strays = Seen(STRAYS[:2], seen.projected[:2], seen.features[:2], seen.corners[:, :2])
    assert bench.step(strays)["spatial_loss"].item() == 0


def test_the_fault_of_lonely_anchors_adds_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(monkeypatch, faults={"lonely_anchors": True}), Seen()
    _, auxiliary = bench.method._near(seen.projected, torch.tensor(OWN))
    assert auxiliary[:2].tolist() == [0, 0]
    without_semantic(bench)
    seen.projected.requires_grad_()
    losses = bench.step(seen)
    literal = bench.literal(seen)
    assert losses["spatial_loss"].item() == pytest.approx(literal["spatial_loss"], rel=CLOSE)
    losses["spatial_loss"].backward()
    gradient = seen.projected.grad
    assert gradient is not None and gradient.isfinite().all()
    assert (gradient[:2] == 0).all() and (gradient[2:].abs().sum(dim=1) > 0).all()
    strays = Seen(STRAYS[:2], seen.projected[:2], seen.features[:2], seen.corners[:, :2])
    assert bench.step(strays)["spatial_loss"].item() == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert math.log(1e7) == pytest.approx(16.1, abs=0.05)


def test_without_hard_negatives_the_spatial_loss_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(monkeypatch), Seen()
    # All tiles of one cell: none is a negative.
    bench.memory.cells.zero_()
    bench.mates = [set(range(TILES)) - {i} for i in range(TILES)]
    seen.projected.requires_grad_()
    value = bench.step(seen)["spatial_loss"]
    assert value.item() == pytest.approx(bench.literal(seen)["spatial_loss"], abs=1e-6)
    assert value.item() == pytest.approx(-math.log(1 + 1e-7), abs=1e-6)
    value.backward()
    assert seen.projected.grad is not None and seen.projected.grad.abs().max() < 1e-5


def test_terms_without_weight_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(monkeypatch, corner_weight=0), Seen()
    found = numbers(bench.step(seen, epoch=10))
    assert "corner_loss" not in found and len(bench.views) == 1
    assert found["loss"] == pytest.approx(found["instance_loss"] + found["spatial_loss"], rel=CLOSE)
    corners = bench.memory.corners.clone()
    bench.method.after_step(0.1)
    assert torch.equal(corners, bench.memory.corners)
    bench = Bench(monkeypatch, spatial_weight=0)
    found = numbers(bench.step(seen, epoch=10))
    assert set(found) == {"loss", "instance_loss", "corner_loss"}
    assert found["loss"] == pytest.approx(found["instance_loss"] + found["corner_loss"], rel=CLOSE)
    assert (bench.memory.semantic == -1).all() and "spatial_neighbours_mean" not in bench.method.settled()
    bench = Bench(monkeypatch, spatial_weight=0, corner_weight=0)
    found = numbers(bench.step(seen, epoch=10))
    assert set(found) == {"loss", "instance_loss"} and found["loss"] == found["instance_loss"]
    assert found["loss"] == pytest.approx(bench.literal(seen)["instance_loss"], rel=CLOSE)


@pytest.mark.parametrize(
    ("name", "value", "size"),
    [
        ("instance_negatives", 22, ("instance_negatives", 20)),
        ("semantic_nearest", 4, ("semantic_nearest", 4)),
        ("semantic_nearest", 3, ("semantic_kept", 3)),
        ("semantic_kept", 2, ("semantic_kept", 2)),
        ("hard_share", 0.1, ("hard_list", 12)),
        ("hard_share", 0.1, ("hard_negatives", 12)),
        ("hard_negatives", 9, ("hard_negatives", 9)),
        ("ranked_tiles", 100, ("ranked_tiles", 100)),
        ("ranked_tiles", 100, ("hard_list", 20)),
        ("neighbour_tiles", 1.1, ("tiles_without_neighbours", 14)),
    ],
)
def test_options_settle_the_sizes_that_are_used(
    name: str, value: Any, size: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, bench = Bench(monkeypatch), Bench(monkeypatch, **{name: value})
    assert bench.method.settled()[size[0]] == size[1] != plain.method.settled()[size[0]]
    if name == "neighbour_tiles":
        assert bench.method.settled()["spatial_neighbours_mean"] < plain.method.settled()["spatial_neighbours_mean"]
        return
    bench.step(Seen())
    settled = bench.method.settled()
    assert (
        len(bench.drawn) == settled["instance_negatives"] and bench.memory.semantic.shape[1] == settled["semantic_kept"]
    )
    assert len(bench.candidates) == settled["ranked_tiles"] == len(set(bench.candidates.tolist()))
    assert bench.listed == settled["hard_list"] and len(bench.ranks) == settled["hard_negatives"]
    assert int(bench.ranks.max()) < bench.listed


def test_options_change_the_loss_in_the_direction_that_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def spatial(**method: Any) -> tuple[float, float]:
        bench = Bench(monkeypatch, projection_dim=POOLED, **method)
        # Ranked by what they are compared by, so that the first in the list are the hardest.
        bench.memory.pooled.copy_(bench.memory.whole)
        queries = kinds_of_tissue(TILES, POOLED, seed=30)[OWN]
        seen = Seen(projected=queries, features=queries, corners=random_units(4, ANCHORS, POOLED))
        losses = bench.step(seen)
        return losses["spatial_loss"].item(), losses["positives"].item()

    usual_loss, usual_positives = spatial()
    assert spatial(hard_share=0.05, hard_negatives=24)[0] > spatial(hard_share=0.9, hard_negatives=6)[0]
    assert spatial(hard_beta=(1.0, 20.0))[0] > usual_loss > spatial(hard_beta=(20.0, 1.0))[0]
    assert spatial(faults={"histogram_ranks": True})[0] < usual_loss
    assert spatial(hard_negatives=5)[0] < usual_loss
    assert spatial(neighbour_tiles=2.0)[1] < usual_positives < spatial(neighbour_tiles=4.0)[1]
    assert spatial(semantic_kept=1)[1] < usual_positives
    assert spatial(semantic_nearest=1)[1] < usual_positives


def test_more_clusters_make_smaller_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    # 120 tiles allow four clusters; what is asked for beyond that does not change them.
    assert Bench(monkeypatch, clusters=2).method.settled()["clusters"] == 2
    assert Bench(monkeypatch, clusters=50).method.settled()["clusters"] == 4
    assert settle_sizes(SgclOptions(clusters=7), 10_000).clusters == 7
    cells = [len(Bench(monkeypatch, clusters=2, clusterings=n).memory.cells.unique()) for n in (1, 2, 4)]
    assert cells[0] == 2 and cells[0] < cells[1] <= cells[2]


def test_options_of_the_network_and_the_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = NETWORK["arguments"] | {"channels": [8, 8, 16, 24]}  # type: ignore[operator]
    wide = Sgcl(config(network={"model": "resnet18", "arguments": arguments}, hidden_dim=20, projection_dim=9), SOURCE)
    memory, shapes = memory_of(wide), {name: tuple(w.shape) for name, w in wide.module.named_parameters()}
    assert memory.pooled.shape == (TILES, 24) and memory.whole.shape == (TILES, 9)
    assert memory.corners.shape == (4, TILES, 9)
    assert shapes["network.head.0.weight"] == (20, 24) and shapes["network.head.2.weight"] == (9, 20)
    half = memory_of(Sgcl(config(bank_precision="fp16"), SOURCE))
    assert {bank.dtype for bank in (half.whole, half.corners, half.pooled)} == {torch.float16}
    for momentum in (0.0, 0.9):
        bench, seen = Bench(monkeypatch, bank_momentum=momentum), Seen()
        before = exact(bench.memory.whole)[OWN]
        bench.step(seen)
        bench.method.after_step(0.1)
        literal = [
            reference.remembered(old, new, momentum) for old, new in zip(before, exact(seen.projected), strict=True)
        ]
        assert np.allclose(exact(bench.memory.whole)[OWN], literal, atol=1e-6)


def test_options_of_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    def views(**method: Any) -> list[Tensor]:
        bench = Bench(monkeypatch, **method)
        bench.step(Seen())
        return bench.views

    whole, corners = views()
    smaller = views(view_px=56)
    # Corner views follow at 3/7, as 96 of 224.
    assert smaller[0].shape[-2:] == (56, 56) and smaller[1].shape[-2:] == (24, 24)
    assert views(corner_px=20)[1].shape == (4 * ANCHORS, 3, 20, 20)
    other = views(augment={"min_area": 0.2, "brightness": 0.5})
    assert not torch.equal(other[0], whole) and torch.equal(other[1], corners)
    other = views(corner_augment={"min_area": 0.2, "max_area": 0.56, "brightness": 0.5})
    assert torch.equal(other[0], whole) and not torch.equal(other[1], corners)


@dataclass(frozen=True)
class Pretended(Processes):
    """One of several processes, the others being what it is told.

    Attributes:
        valid: sum over all of them.
        labels: what the first one gives.
        gathered: what was gathered.
    """

    valid: float = 0.0
    labels: Tensor | None = None
    gathered: list[Tensor] = field(default_factory=list)

    def gather(self, rows: Tensor) -> Tensor:
        self.gathered.append(rows)
        return rows

    def total(self, values: Tensor) -> Tensor:
        return torch.full_like(values, self.valid)

    def from_first(self, values: Tensor) -> Tensor:
        assert self.labels is not None
        return self.labels


@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_over_processes_is_the_loss_of_one(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(monkeypatch, shared_negatives=shared), Seen()
    without_semantic(bench)
    together, drawn = numbers(bench.step(seen)), bench.drawn
    parts = []
    for rank in range(3):
        mine = slice(4 * rank, 4 * rank + 4)
        own = Seen(OWN[mine], seen.projected[mine], seen.features[mine], seen.corners[:, mine])
        parts.append(numbers(bench.step(own, processes=Pretended(rank, 3, valid=ANCHORS - 2.0))))
        assert torch.equal(bench.drawn, drawn if shared else drawn[mine])
    for name, value in together.items():
        assert np.mean([part[name] for part in parts]) == pytest.approx(value, rel=CLOSE)


def test_clusters_come_from_the_first_process_unless_the_fault_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Bench(monkeypatch)
    labels = torch.stack([clusters.cluster(first.memory.whole, 4, 20, 1234 + i) for i in range(3)])
    bench = Bench(monkeypatch)
    bench.method.begin_epoch(1, Pretended(1, 2, labels=labels))
    assert torch.equal(bench.memory.cells, first.memory.cells)
    assert torch.equal(bench.memory.semantic, first.memory.semantic)
    faulty = Bench(monkeypatch, faults={"unshared_clusters": True})
    assert torch.equal(faulty.memory.cells, first.memory.cells)
    cells = []
    for rank in (1, 2):
        faulty.method.begin_epoch(1, Pretended(rank, 3))
        # The same random labels in all clusterings: as many cells as clusters.
        assert len(faulty.memory.cells.unique()) == 4
        cells.append(faulty.memory.cells.clone())
    assert not torch.equal(*cells)
    faulty.method.begin_epoch(2, Pretended(2, 3))
    assert torch.equal(cells[1], faulty.memory.cells)


def test_banks_are_shared_in_a_run_that_is_resumed_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    # As after the state is loaded: the epoch has begun before, so the method is only told by the batch.
    bench, processes = Bench(monkeypatch), Pretended(0, 2, valid=10.0)
    bench.step(Seen(), processes=processes)
    bench.method.after_step(0.1)
    assert len(processes.gathered) == 7


def test_sizes_follow_the_number_of_tiles() -> None:
    assert vars(settle_sizes(SgclOptions(), 681_486)) == {
        "instance_negatives": 65_536, "clusters": 1000, "semantic_nearest": 4096, "semantic_kept": 512,
        "ranked_tiles": 32_768, "hard_list": 6554, "hard_negatives": 4096,
    }  # fmt: skip
    whole = settle_sizes(SgclOptions(ranked_tiles=10**6, semantic_kept=4096), 681_486)
    # As the paper: a fifth of all tiles is ranked.
    assert (whole.ranked_tiles, whole.hard_list, whole.semantic_kept) == (681_486, 136_297, 4096)
    assert vars(settle_sizes(SgclOptions(), 1000)) == {
        "instance_negatives": 500, "clusters": 20, "semantic_nearest": 50, "semantic_kept": 50,
        "ranked_tiles": 1000, "hard_list": 200, "hard_negatives": 200,
    }  # fmt: skip
    assert vars(settle_sizes(SgclOptions(), 100)) == {
        "instance_negatives": 48, "clusters": 4, "semantic_nearest": 5, "semantic_kept": 5,
        "ranked_tiles": 100, "hard_list": 20, "hard_negatives": 20,
    }  # fmt: skip
    for tiles in (100, 101, 999, 20_000, 300_000):
        sizes = settle_sizes(SgclOptions(), tiles)
        assert sizes.instance_negatives % 4 == 0 and 2 * sizes.instance_negatives <= tiles
        assert (tiles / sizes.clusters >= 50 or sizes.clusters == 4) and 20 * sizes.semantic_nearest <= tiles
        assert sizes.hard_negatives <= sizes.hard_list <= sizes.ranked_tiles <= tiles
    assert settle_sizes(SgclOptions(hard_share=0.001), 100).hard_list == 1
    with pytest.raises(UsageError, match="There are 99 tiles; sgcl needs at least 100"):
        settle_sizes(SgclOptions(), 99)
