"""Uniform quantization with a learned step: LSQ (Esser et al., ICLR 2020, arXiv 1902.08153).

`v_hat = s * round(clip(v / s, -Q_N, Q_P))` (eqs. 1, 2) with `Q_N = 2^(b-1)`, `Q_P = 2^(b-1) - 1`, one step s a layer
that starts at `2 <|v|> / sqrt(Q_P)`. Gradients: eq. 3 for the step, times `1 / sqrt(N_W Q_P)`; eq. 5 (straight through
inside the range, zero outside) for the weights.

What we do otherwise:

* The step is `s_0 * exp(log)` and its gradient goes to `log` as it is: always positive, and a step of Adam at the rate
  r changes it by the factor `1 +- r` whatever its size.
* Three levels (`Q_N = Q_P = 1`), five of them in 8 bits, for less than 2 bits a weight.
* To meet a size, layers get the next larger width one after the other, largest first, while that fits.
* Activations are not quantized.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mvq.baselines.forms import SLACK, RivalForm, install_, nearest_below, weights_to_compress
from mvq.nn import as_recipe
from mvq.recipe import Recipe

_TERNARY_IN_A_BYTE = 5


@dataclass(frozen=True, slots=True)
class Levels:
    """Codes `low .. high`; `bits` of them all for n weights."""

    low: int
    high: int

    @classmethod
    def of_bits(cls, bits: int) -> Levels:
        """The signed codes of LSQ."""
        return cls(-(1 << bits - 1), (1 << bits - 1) - 1)

    def bits(self, shape: Sequence[int]) -> int:
        """Bits of codes and float32 step of a weight of this shape."""
        n, count = math.prod(shape), self.high - self.low + 1
        codes = 8 * -(-n // _TERNARY_IN_A_BYTE) if count == 3 else n * (count - 1).bit_length()
        return codes + 32


TERNARY = Levels(-1, 1)
WIDTHS = (TERNARY, *(Levels.of_bits(b) for b in (2, 3, 4, 8)))


class LearnedStep(torch.autograd.Function):
    """`s * round(clip(v / s, low, high))` with the step `s = base * exp(log)`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, base: Tensor, log: Tensor, levels: Levels) -> Tensor:
        """Quantize float32 `values`."""
        step = base * log.exp()
        ctx.save_for_backward(values, step)
        ctx.levels = levels
        return (values / step).clamp_(levels.low, levels.high).round_().mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Eqs. 3 and 5."""
        values, step = ctx.saved_tensors
        low, high = ctx.levels.low, ctx.levels.high
        ratio = values / step
        inside = (ratio > low) & (ratio < high)
        by_step = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
        factor = (values.numel() * high) ** -0.5
        return grads[0] * inside, None, (grads[0] * by_step).sum() * factor, None


class LSQWeight(RivalForm):
    """A dense weight seen through a uniform quantizer; it stays underneath as `parametrizations.weight.original`.

    Attributes:
        step_base: float32 scalar buffer.
        step_log: float32 scalar parameter.
    """

    step_base: Tensor
    step_log: nn.Parameter

    def __init__(self, layer: str, recipe: Recipe, weight: Tensor, levels: Levels) -> None:
        """Start from the step that the paper gives for `weight`."""
        super().__init__(layer, recipe)
        self.levels = levels
        self.shape = tuple(weight.shape)
        step = 2 * weight.detach().float().abs().mean() / levels.high**0.5
        self.register_buffer("step_base", step.clamp_min(torch.finfo(torch.float32).tiny))
        self.step_log = nn.Parameter(torch.zeros_like(step))

    def step(self) -> Tensor:
        """The step s."""
        return self.step_base * self.step_log.exp()

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        quantized: Any = LearnedStep.apply(weight.float(), self.step_base, self.step_log, self.levels)
        return quantized.to(weight.dtype)

    def stored_bits(self) -> int:
        """Bits of codes and step."""
        return self.levels.bits(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight assigned to the layer becomes the dense weight underneath; the step stays."""
        return weight

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"shape={self.shape}, levels={self.levels.low}..{self.levels.high}"


def widths_for(shapes: Mapping[str, Sequence[int]], target_bits: int) -> dict[str, Levels]:
    """Levels of all layers: the widest that all can have, and the next wider for those that fit, largest first.

    Raises:
        ConfigError: if three levels everywhere exceed the target by more than 1%.
    """
    sizes = [(i, sum(width.bits(shape) for shape in shapes.values())) for i, width in enumerate(WIDTHS)]
    common = nearest_below(sizes, target_bits, method="uniform")[0]
    total = sizes[common][1]
    out = {}
    for name in sorted(shapes, key=lambda n: -math.prod(shapes[n])):
        out[name] = WIDTHS[common]
        wider = WIDTHS[min(common + 1, len(WIDTHS) - 1)]
        more = wider.bits(shapes[name]) - out[name].bits(shapes[name])
        if total + more <= SLACK * target_bits:
            out[name], total = wider, total + more
    return out


def uniform_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int,
    *,
    calibration: Any = None,
    seed: int = 0,
) -> nn.Module:
    """Compress a model by uniform quantization; train it with the ordinary trainer.

    Args:
        model: dense, changed in place.
        recipe: says which layers are compressed and which are int8.
        target_bits: of codes and steps; exceeded by 1% at most.
        calibration: not used.
        seed: not used; nothing is random.

    Returns:
        The model.

    Raises:
        ConfigError: if the size is out of reach, which it is below 1.6 bits a weight.
        ModelError: as `install_`.
    """
    recipe = as_recipe(recipe)
    widths = widths_for({name: w.shape for name, w in weights_to_compress(model, recipe).items()}, target_bits)
    return install_(model, recipe, lambda name, weight: LSQWeight(name, recipe, weight, widths[name]))
