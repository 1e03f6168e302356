"""Published weights for timm models: from a file, or from the model hub."""

from __future__ import annotations

import pickle
import threading
import urllib.error
import urllib.request
from pathlib import Path

import safetensors
from torch import nn

from encoder.architectures import build_timm
from encoder.errors import EncoderError

_REACH_SECONDS = 8.0


def load_weights_file(model: str, file: Path) -> nn.Module:
    """Build a timm model and load its weights from a safetensors or PyTorch file; a classifier is left out.

    Raises:
        EncoderError: the file is absent, unreadable, or of another model.
    """
    if not file.is_file():
        raise EncoderError(f"Weights file {file} does not exist.", fix="Write timm:MODEL@FILE with its path.")
    from timm.models import load_state_dict

    module = build_timm(model)
    try:
        state = load_state_dict(str(file), use_ema=False, weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise EncoderError(
            f"Weights file {file} cannot be read: {error}", fix="Give a safetensors or a plain PyTorch file."
        ) from error
    classifier = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    wanted = module.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith(heads or "\0")}
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    shapes = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or extra or shapes:
        counts = f"{len(missing)} tensors missing, {len(extra)} unknown, {len(shapes)} of another shape"
        first = (missing or extra or shapes)[0]
        raise EncoderError(
            f"{file} does not hold the weights of {model}: {counts}, such as {first}.",
            fix="Name the model that they belong to.",
        )
    module.load_state_dict(state)
    return module


def download_timm(model: str) -> nn.Module:
    """Build a timm model with the weights that the model hub, or its local cache, has for it.

    Raises:
        EncoderError: timm names no weights for it, or they are not cached and the hub does not answer.
    """
    import timm

    module = build_timm(model)
    settings = getattr(module, "pretrained_cfg", None) or {}
    repository = settings.get("hf_hub_id")
    if not repository and not settings.get("url"):
        raise EncoderError(
            f"timm names no pretrained weights for {model}.",
            fix=f"Use a tagged name, timm:{model}@FILE, or random:{model} for an untrained network.",
        )
    if not (repository and _cached(repository)):
        _check_hub(model)
    try:
        return timm.create_model(model, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise EncoderError(
            f"The weights of {model} cannot be had from the model hub: {error}", fix=_by_hand(model)
        ) from error


def _cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _check_hub(model: str) -> None:
    from huggingface_hub import constants

    problem = ["no answer"]

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
                problem.clear()
        except urllib.error.HTTPError:
            problem.clear()
        except (OSError, ValueError) as error:
            problem[0] = str(error)

    # In a thread of its own, because no time-out reaches the resolution of the hub's name.
    asking = threading.Thread(target=ask, daemon=True, name="hub")
    asking.start()
    asking.join(_REACH_SECONDS)
    if problem:
        raise EncoderError(
            f"The weights of {model} are not on this machine and the model hub cannot be reached ({problem[0]}).",
            fix=_by_hand(model),
        )


def _by_hand(model: str) -> str:
    return f"Fetch its weights elsewhere and give timm:{model}@FILE, or use random:{model}, a checkpoint or colour."
