"""Checkpoints of training: written atomically, read without pickle, refused where they do not fit.

A file is `MVQTRAIN`, a SHA-256 of the rest, and what `torch.save` writes; it is read with `weights_only=True`,
which makes nothing but tensors and plain values.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvq.errors import FileError, ModelError
from mvq.nn import unwrap
from mvq.nn.parametrizations import WeightForm
from mvq.train.config import TrainConfig

_MAGIC = b"MVQTRAIN"
_VERSION = 1
_SHOWN = 20


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint: whole, or not at all.

    Raises:
        FileError: if the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"version": _VERSION, **content}, buffer)
    data = buffer.getbuffer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(data).digest())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"checkpoint {path} cannot be written: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename last; not every system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        FileError: if the file cannot be read, is no checkpoint of this version, or is damaged.
    """
    remedy = "delete it, or pass resume=False to start over"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    head = len(_MAGIC) + 32
    if data[: len(_MAGIC)] != _MAGIC:
        raise FileError(f"checkpoint {path} is not a checkpoint of mvq.finetune; {remedy}")
    if hashlib.sha256(memoryview(data)[head:]).digest() != data[len(_MAGIC) : head]:
        raise FileError(f"checkpoint {path} is damaged: its {len(data)} bytes do not match their digest; {remedy}")
    content = torch.load(io.BytesIO(memoryview(data)[head:]), map_location="cpu", weights_only=True)
    if content["version"] != _VERSION:
        raise FileError(f"checkpoint {path} has version {content['version']}, this one reads {_VERSION}; {remedy}")
    return content


def identity(
    model: nn.Module, config: TrainConfig, *, objective: str, n_batches: int | None, n_processes: int
) -> dict[str, dict[str, str]]:
    """What has to be equal for training to go on as if it had never stopped, by section, as text."""
    root = unwrap(model)
    forms = {name: m for name, m in root.named_modules() if isinstance(m, WeightForm)}
    recipe = next((form.recipe.to_dict() for form in forms.values()), {})
    return {
        "option": config.describe(),
        "run": {"objective": objective, "batches an epoch": str(n_batches), "processes": str(n_processes)},
        "recipe": {key: repr(value) for key, value in recipe.items()},
        "layer": {form.layer: f"{type(form).__name__}({form.extra_repr()})" for form in forms.values()},
        "state": {
            name: f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
            if isinstance(t, Tensor)
            else type(t).__name__
            for name, t in root.state_dict().items()
        },
    }


def check_identity(path: Path, stored: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> None:
    """Check that a checkpoint is of this very training.

    Raises:
        ModelError: listing the differences.
    """
    faults = [
        f"{section} {key!r}: {stored[section].get(key, 'nothing')} in the checkpoint, "
        f"{now[section].get(key, 'nothing')} now"
        for section in now
        for key in dict.fromkeys([*stored[section], *now[section]])
        if stored[section].get(key) != now[section].get(key)
    ]
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise ModelError(
            f"checkpoint {path} is of another training; train as then, or pass resume=False to start over:\n  "
            + "\n  ".join([*faults[:_SHOWN], *more])
        )


def generators_of(loader: Iterable[Any]) -> list[torch.Generator]:
    """The generators of a loader and its samplers, each once."""
    sampler = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    return list({id(g): g for g in found}.values())


def random_state(loader: Iterable[Any], place: torch.device) -> dict[str, Any]:
    """All random states that training uses: torch (and the device's), Python, NumPy, the loader's own."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(place) if place.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "loader": [g.get_state() for g in generators_of(loader)],
    }


def set_random_state(state: dict[str, Any], loader: Iterable[Any], place: torch.device) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if place.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], place)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    for generator, own in zip(generators_of(loader), state["loader"], strict=False):
        generator.set_state(own)
