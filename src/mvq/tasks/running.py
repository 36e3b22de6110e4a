"""Running a model for measurement only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def running(model: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """`eval` mode without gradients, on a device; the mode of every submodule is restored.

    Args:
        model: moved to the device, where it stays.
        device: None for the device of the model's first parameter or buffer, the CPU if it has none.

    Yields:
        The device.
    """
    if device is None:
        state = next(iter(model.parameters()), None)
        state = next(iter(model.buffers()), None) if state is None else state
        place = torch.device("cpu") if state is None else state.device
    else:
        place = torch.device(device)
        model.to(place)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield place
    finally:
        for module, training in modes.items():
            module.training = training


def loader_length(loader: Iterable[Any]) -> int | None:
    """Number of batches, where the loader tells."""
    try:
        return len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
