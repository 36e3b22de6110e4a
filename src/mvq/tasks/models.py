"""Models by name, and their weights from files."""

from __future__ import annotations

import difflib
import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvq.errors import ModelError
from mvq.tasks.imports import import_callable, is_import_spec
from mvq.tasks.networks import NETWORKS

_PREFIXES = ("module.", "_orig_mod.")
_NESTS = ("state_dict", "model_state_dict", "model")
_SHOWN = 5


def build_model(spec: str, *, weights: str | Path | None = None, num_classes: int | None = None) -> nn.Module:
    """Build a model and load its weights. Nothing is ever downloaded.

    Args:
        spec: `torchvision/NAME`, any name of `torchvision.models.list_models()`; `mvq/NAME`, any name of
            `mvq.tasks.networks.NETWORKS`; or `package.module:callable`, called without arguments (with
            `num_classes` where that is given), for which the current folder is searched, too.
        weights: a `.safetensors`, `.pth` or `.pt` file, see `load_weights_`; None leaves the model as it was
            built, which for torchvision is random.
        num_classes: size of the last layer; None for the model's default.

    Raises:
        ModelError: if the spec names nothing, the callable gives no module, or the weights do not fit.
    """
    if spec.startswith("torchvision/"):
        model = _torchvision(spec, num_classes)
    elif spec.startswith("mvq/"):
        model = _own(spec, num_classes)
    elif is_import_spec(spec):
        model = _imported(spec, num_classes)
    else:
        raise ModelError(
            f"model {spec!r} is not understood; write torchvision/NAME, as in torchvision/resnet18, "
            f"or package.module:callable{_suggestion(spec)}"
        )
    if weights is not None:
        load_weights_(model, weights)
    return model


def load_weights_(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a weights file into a model, strictly: every name and shape must match.

    A `.safetensors` file, or one of `torch.save` (read with `weights_only=True`, so no code in it runs). A
    state dictionary nested under `state_dict`, `model_state_dict` or `model` is found; the prefixes that
    `DataParallel` and `torch.compile` add are removed. Counters of batch norm (`num_batches_tracked`) may be
    missing.

    Returns:
        The model.

    Raises:
        ModelError: if the file cannot be read, or listing what is missing, unexpected or of another shape.
    """
    path = Path(path)
    state = _read_state(path)
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    mismatched = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or mismatched:
        lines = [f"weights {str(path)!r} do not fit {type(model).__name__}"]
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        ):
            if names:
                more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"  {len(names)} {what}: {', '.join(names[:_SHOWN])}{more}")
        if mismatched and not missing and not unexpected:
            lines.append("  if only the number of classes differs, pass num_classes")
        raise ModelError("\n".join(lines))
    model.load_state_dict(state, strict=False)
    return model


def set_input_size_(model: nn.Module, image_size: int) -> nn.Module:
    """Make a torchvision detector resize images to a short side of this many pixels, the long side in proportion.

    Returns:
        The model.

    Raises:
        ModelError: if it is no detector that resizes by the short side (SSD has a fixed size).
    """
    transform: Any = getattr(model, "transform", None)
    if not hasattr(transform, "min_size") or getattr(transform, "fixed_size", None) is not None:
        raise ModelError(
            f"model {type(model).__name__} does not let its input size be set; leave the image size out, or give a "
            f"detector of torchvision that resizes by the short side"
        )
    transform.max_size = round(transform.max_size * image_size / transform.min_size[-1])
    transform.min_size = (image_size,)
    return model


def _torchvision(spec: str, num_classes: int | None) -> nn.Module:
    from torchvision.models import get_model_builder, list_models

    name = spec.removeprefix("torchvision/").lower()
    if name not in list_models():
        raise ModelError(f"torchvision has no model {name!r}{_suggestion(name)}")
    builder = get_model_builder(name)
    arguments: dict[str, Any] = {"weights": None}
    # The backbone of a detector or segmenter has weights of its own, which would otherwise be fetched.
    if "weights_backbone" in inspect.signature(builder).parameters:
        arguments["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        return builder(**arguments)
    except (ImportError, TypeError, ValueError) as error:
        raise ModelError(f"torchvision model {name!r} cannot be built: {error}") from error


def _own(spec: str, num_classes: int | None) -> nn.Module:
    builder = NETWORKS.get(spec.removeprefix("mvq/"))
    if builder is None:
        raise ModelError(f"model {spec!r} is not known; known are {', '.join(f'mvq/{name}' for name in NETWORKS)}")
    return builder() if num_classes is None else builder(num_classes=num_classes)


def _imported(spec: str, num_classes: int | None) -> nn.Module:
    builder = import_callable(spec, ModelError)
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        given = ", ".join(f"{k}={v}" for k, v in arguments.items())
        raise ModelError(f"model {spec!r} cannot be called as {spec.split(':')[1]}({given}): {error}") from None
    model = builder(**arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec!r} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _suggestion(name: str) -> str:
    from torchvision.models import list_models

    close = difflib.get_close_matches(name.lower(), list_models(), n=3)
    return f"; did you mean {' or '.join('torchvision/' + c for c in close)}?" if close else ""


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ModelError(f"weights {str(path)!r}: there is no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content: Any = load_file(path)
        except SafetensorError as error:
            raise ModelError(f"weights {str(path)!r} cannot be read as safetensors: {error}") from error
    elif path.suffix in (".pth", ".pt"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
            # torch's own text advises to load without weights_only, which would run the file's code.
            raise ModelError(
                f"weights {str(path)!r} cannot be read: the file is damaged, or holds Python objects, which are "
                f"never loaded; save the model's state_dict() instead"
            ) from error
    else:
        raise ModelError(f"weights {str(path)!r}: the name must end in .safetensors, .pth or .pt")
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        keys = f" with keys {', '.join(map(repr, list(content)[:_SHOWN]))}" if isinstance(content, Mapping) else ""
        raise ModelError(
            f"weights {str(path)!r} hold a {type(content).__name__}{keys}; expected a dictionary of tensors, "
            f"or one under {', '.join(map(repr, _NESTS))}"
        )
    state = {str(k): v for k, v in content.items()}
    while True:
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k.removeprefix(prefix): v for k, v in state.items()}
