"""From the options of a command to models, data and devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvq.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data is read; None leaves the choice to the file, then to the default."""

    spec: str
    batch_size: int
    image_size: int | None = None
    preprocessing: str | None = None
    workers: int = 0
    limit: int | None = None
    seed: int = 0

    def load(self, split: str, *, stored: Mapping[str, Any] | None = None) -> Iterable[Any]:
        """The loader of a split; `stored` is the preprocessing that a file names.

        Raises:
            MvqError: as `mvq.tasks.load_data`, or if the data can be gone through only once.
        """
        from mvq.tasks import Preprocessing, load_data

        chosen: Any = self.preprocessing
        is_callable = ":" in self.spec and not Path(self.spec).exists()
        if chosen is None and stored is not None and self.image_size is None and not is_callable:
            chosen = Preprocessing.from_dict(stored)
        loader = load_data(
            self.spec,
            split=split,
            batch_size=self.batch_size,
            image_size=self.image_size,
            preprocessing=chosen,
            workers=self.workers,
            limit=self.limit,
            shuffle=split == "train" and not is_callable,
            seed=self.seed,
        )
        if iter(loader) is loader:
            raise DataError(
                f"data {self.spec!r} gave an iterator, which ends after one pass; return a list or a loader instead"
            )
        return loader


def full_spec(spec: str) -> str:
    """`torchvision/NAME` for a bare name."""
    return spec if "/" in spec or ":" in spec else f"torchvision/{spec}"


def build(spec: str, *, weights: Path | None = None, num_classes: int | None = None) -> nn.Module:
    """`mvq.tasks.build_model`, for a spec that the user gave."""
    from mvq.tasks import build_model

    return build_model(full_spec(spec), weights=weights, num_classes=num_classes)


def from_file(path: Path, spec: str | None, num_classes: int | None) -> tuple[nn.Module, Mapping[str, Any]]:
    """The decoded network of a `.mvq` file, and the facts that the file notes about it.

    A `package.module:callable` that only the file names is not imported, unless it is part of mvq.

    Raises:
        FormatError: if the file is damaged.
        ModelError: if no model is named, or it does not fit.
    """
    from mvq import api
    from mvq.format import open_file

    with open_file(path) as reader:
        stored = reader.provenance
    if spec is None:
        spec = stored.get("model")
        if not isinstance(spec, str):
            raise ModelError(f"file {str(path)!r} names no model; say which with --model")
        if ":" in spec and not spec.startswith("mvq."):
            raise ModelError(
                f"file {str(path)!r} names the model {spec!r}, whose code would be run; "
                f"if you trust it, pass --model {spec}"
            )
    if num_classes is None and isinstance(stored.get("num_classes"), int):
        num_classes = stored["num_classes"]
    return api.load_into(build(spec, num_classes=num_classes), path, dense=True), stored


def pick_device(name: str | None) -> str:
    """The device to run on: the named one, or CUDA where there is one.

    Raises:
        ConfigError: if it is not there.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name!r} is not a device; write cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name!r}: there are {torch.cuda.device_count()} CUDA devices; use cpu")
    return name
