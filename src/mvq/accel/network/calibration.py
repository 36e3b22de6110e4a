"""Scales of activations from what a network computes on sample images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from mvq.errors import ConfigError, DataError, ModelError

Method = Literal["mse", "max", "percentile"]
METHODS: tuple[Method, ...] = ("mse", "max", "percentile")
#: Share of values, in percent, that `percentile` keeps in range.
PERCENTILE = 99.99

_BINS = 2048
_LEVELS = 127
#: Ranges `mse` tries, as shares of the largest magnitude.
_SHARES = 100


class Observer:
    """A histogram of magnitudes whose range grows with what it sees.

    Attributes:
        largest: magnitude so far.
        counts: float64 `(2048,)`, of equal bins from 0 to `top`.
        top: end of the last bin; 0 before the first value that is not 0.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self.top = 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def observe(self, values: Tensor) -> None:
        """Add values of any shape.

        Raises:
            ModelError: if one is NaN or infinite.
        """
        magnitudes = values.detach().float().abs().flatten()
        largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
        if not math.isfinite(largest):
            raise ModelError("it holds values that are NaN or infinite")
        self.largest = max(self.largest, largest)
        if self.top == 0.0:
            self.top = largest
        while self.top and largest > self.top:
            # Twice the range: neighbouring bins join.
            self.counts = torch.cat([self.counts.reshape(-1, 2).sum(1), torch.zeros(_BINS // 2, dtype=torch.float64)])
            self.top *= 2
        if self.top:
            self.counts += torch.histc(magnitudes, _BINS, 0.0, self.top).double().cpu()

    def scale(self, method: Method) -> float:
        """Real value of one step, exact in float32; 1 if nothing but zeros was seen."""
        if not self.largest:
            return 1.0
        limit = {"max": lambda: self.largest, "percentile": self._percentile, "mse": self._least_error}[method]()
        return float(torch.tensor(limit / _LEVELS, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny))

    def _percentile(self) -> float:
        # Zeros, half of what a ReLU leaves, say nothing about the range.
        counts = self.counts.clone()
        counts[0] = 0
        shares = counts.cumsum(0) / counts.sum().clamp(min=1)
        return min(self.largest, (int((shares < PERCENTILE / 100).sum()) + 1) * self.top / _BINS)

    def _least_error(self) -> float:
        """The range of least squared error: of rounding, uniform within a step, and of clipping."""
        centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (self.top / _BINS)
        limits = self.largest * torch.arange(1, _SHARES + 1, dtype=torch.float64)[:, None] / _SHARES
        steps = limits / _LEVELS
        rounding = torch.where(centres < steps / 2, centres.square(), steps.square() / 12)
        errors = torch.where(centres > limits, (centres - limits).square(), rounding)
        return float(limits[int((errors * self.counts).sum(1).argmin())])


def image_batches(batches: Iterable[Any]) -> Iterator[Tensor]:
    """The images of batches: tensors, or pairs `(images, targets)`.

    Raises:
        DataError: if a batch is neither.
    """
    for batch in batches:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise DataError(
                f"calibration: a batch of {type(images).__name__} {tuple(getattr(images, 'shape', ()))}; expected "
                f"tensors (N, C, H, W), alone or first in a pair"
            )
        yield images


def check_method(method: str) -> None:
    """Check the name of a method.

    Raises:
        ConfigError: if there is no such method.
    """
    if method not in METHODS:
        raise ConfigError(f"calibration {method!r} is not known; known are {', '.join(METHODS)}")
