"""The differentiable operations of a compressed weight, each with the gradient the method prescribes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvq.grouping import from_subvectors, to_subvectors
from mvq.patterns import Pattern

LOW, HIGH = -128, 127


class DecodeWeight(torch.autograd.Function):
    """Codewords to the dense weight; backward gives codewords the masked average of their members' gradients.

    Gradient of codeword c, lane by lane: `sum_p(dL/dv_p o n_p) / sum_p n_p` over the members p that keep the
    lane (MVQ), and 0 where none does. Pruned lanes have no path back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        assignments: Tensor,
        lanes: Tensor | None,
        counts: Tensor,
        shape: tuple[int, ...],
        d: int,
        latent: Tensor | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            ctx: autograd's context.
            table: `(k, width)` codewords.
            assignments: `(n_sub,)`.
            lanes: bool `(n_sub, d)` mask for masked codewords, int64 `(n_sub, Q)` kept lanes for packed ones,
                None where every lane is kept.
            counts: `(k, width)` members that keep each lane, over all layers of the codebook.
            shape: of the weight.
            d: lanes of a subvector.
            latent: `(n_sub, width)` values that get the gradient of the subvectors straight through, or None.
        """
        ctx.save_for_backward(assignments, lanes, counts)
        ctx.d = d
        ctx.has_latent = latent is not None
        rows = table.index_select(0, assignments)
        if lanes is not None and lanes.dtype == torch.bool:
            rows = rows * lanes
        elif lanes is not None:
            rows = rows.new_zeros(len(rows), d).scatter_(1, lanes, rows)
        return from_subvectors(rows, shape).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Masked average."""
        assignments, lanes, counts = ctx.saved_tensors
        rows = to_subvectors(grads[0].float(), ctx.d)
        if lanes is not None:
            rows = rows * lanes if lanes.dtype == torch.bool else rows.gather(1, lanes)
        sums = rows.new_zeros(counts.shape).index_add_(0, assignments, rows)
        follow = rows if ctx.has_latent else None
        return sums / counts.clamp_min(1), None, None, None, None, None, follow


class SparseWeight(torch.autograd.Function):
    """`weight * mask` with SR-STE's gradient, `g + decay * (1 - mask) * weight` (Zhou et al., ICLR 2021).

    Pruned weights get the gradient of the weight straight through, and are pulled to zero, so that a weight
    that goes stays gone unless its gradient insists.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        """Prune `weight`; `mask` is bool of its shape."""
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """SR-STE."""
        weight, mask = ctx.saved_tensors
        return torch.add(grads[0], weight.masked_fill(mask, 0), alpha=ctx.decay), None, None


def magnitude_mask(weight: Tensor, pattern: Pattern) -> Tensor:
    """`mvq.prune.magnitude_mask` of a weight on its device, shaped like the weight: ties keep the lowest channel.

    Each lane counts the lanes of its block that go before it: with M <= 32 that takes half the time of a sort.

    Args:
        weight: `(Cout, ...)`; where M does not divide Cout the last block is short and may keep fewer than N.
        pattern: N:M along output channels; d, a multiple of M, makes no difference.
    """
    scores = weight.detach().abs().reshape(len(weight), -1)
    short = -len(scores) % pattern.group
    if short:
        scores = torch.cat([scores, scores.new_full((short, scores.shape[1]), -1)])
    blocks = scores.reshape(-1, pattern.group, scores.shape[1])
    n_before = torch.zeros_like(blocks, dtype=torch.uint8)
    for lane in range(pattern.group):
        score = blocks[:, lane : lane + 1]
        n_before[:, :lane] += score > blocks[:, :lane]
        n_before[:, lane + 1 :] += score >= blocks[:, lane + 1 :]
    return (n_before < pattern.keep).reshape(scores.shape)[: len(weight)].reshape(weight.shape)


class FakeQuantCodebook(torch.autograd.Function):
    """`scale * clamp(round(v / scale), -128, 127)`: straight-through in v, learned step (LSQ) in the scale.

    The scale is `base * exp(log)`. With x = v / scale: `d/dv` is 1 inside the range and 0 outside; the gradient of
    the step is `round(x) - x` inside and the bound outside (Esser et al., LSQ, eq. 3), times LSQ's own factor
    `1 / sqrt(n * 127)` for n values. It goes to `log` as it is: one more factor `scale`, which the chain rule
    would give, pushes it below the epsilon of Adam.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, base: Tensor, log: Tensor) -> Tensor:
        """Quantize float32 `values` `(k, width)`; `base` and `log` are scalars."""
        scale = base * log.exp()
        ctx.save_for_backward(values, scale)
        return (values / scale).round_().clamp_(LOW, HIGH).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """LSQ."""
        values, scale = ctx.saved_tensors
        grad = grads[0]
        ratio = values / scale
        inside = (ratio >= LOW) & (ratio <= HIGH)
        codes = ratio.round().clamp_(LOW, HIGH)
        step = torch.where(inside, codes - ratio, codes)
        return grad * inside, None, (grad * step).sum() / (values.numel() * HIGH) ** 0.5


class FakeQuantChannels(torch.autograd.Function):
    """`scale_c * clamp(round(w / scale_c), -128, 127)` for output channel c, straight-through in range."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor) -> Tensor:
        """Quantize float32 `weight` `(Cout, ...)` with `scales` `(Cout,)`."""
        scales = scales.reshape(-1, *[1] * (weight.ndim - 1))
        ctx.save_for_backward(weight, scales)
        return channel_codes(weight, scales) * scales

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Straight through."""
        weight, scales = ctx.saved_tensors
        ratio = weight / scales
        return grads[0] * ((ratio >= LOW) & (ratio <= HIGH)), None


def channel_codes(weight: Tensor, scales: Tensor) -> Tensor:
    """Float codes -128..127 of float32 `weight`; `scales` broadcast over it."""
    return (weight / scales).round_().clamp_(LOW, HIGH)
