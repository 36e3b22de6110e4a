"""Training on several processes: parts of a batch, gradients and batch statistics of the whole.

The model is not wrapped: its names, attributes and hooks stay what they are, an objective may use any of them,
and parameters without a gradient are no special case. Gradients are averaged after the backward pass, one
reduction for each dtype, so every process makes the same step and holds the same weights.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from mvq.errors import DataError
from mvq.outputs import tensors_in


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, place: torch.device) -> World:
        """The process group there is, or the one that the environment of `torchrun` describes, or this process alone.

        A group made here (`nccl` for a CUDA device, else `gloo`) stays for later calls until the process ends.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
                return cls()
            if place.type == "cuda":
                torch.cuda.set_device(place)
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size())

    def part(self, batch: Any) -> tuple[Any, int, int]:
        """This process's part of a batch, its samples, and those of the whole batch.

        Process r of W takes samples `r * n // W` up to `(r + 1) * n // W`. Inputs that are a list are one of
        samples (detection), and so are targets then; else tensors are cut along their first axis, wherever they are.
        """
        n = n_samples(batch)
        low, high = self.rank * n // self.size, (self.rank + 1) * n // self.size
        if self.size == 1:
            return batch, n, n
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        parts = list(batch) if pair else [batch]
        by_sample = isinstance(parts[0], (tuple, list))
        cut = [p[low:high] if by_sample and _is_sequence(p, n) else _cut(p, low, high, n) for p in parts]
        return tuple(cut) if pair else cut[0], high - low, n

    def total(self, value: float, place: torch.device) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        out = torch.tensor(value, dtype=torch.float64, device=place)
        dist.all_reduce(out)
        return float(out)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def from_first(self, value: Any) -> Any:
        """What process 0 has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    @torch.no_grad()
    def share_state_(self, model: nn.Module) -> None:
        """Make the parameters and buffers of process 0 those of all."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.numel():
                    whole = tensor.detach().contiguous()
                    dist.broadcast(whole, 0)
                    tensor.copy_(whole)

    @torch.no_grad()
    def average_gradients_(self, parameters: list[nn.Parameter]) -> None:
        """Make each gradient its mean over the processes; one that no process has stays None."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            chosen = [p for p in parameters if p.dtype == dtype]
            has = torch.tensor([p.grad is not None for p in chosen], device=chosen[0].device).to(dtype)
            flat = torch.cat([has, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen)])
            dist.all_reduce(flat)
            held, flat = flat[: len(chosen)].tolist(), flat[len(chosen) :] / self.size
            for p, n_held, grad in zip(chosen, held, flat.split([p.numel() for p in chosen]), strict=True):
                p.grad = grad.reshape(p.shape).clone() if n_held else None


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def n_samples(batch: Any) -> int:
    """Samples of a batch: of its first tensor, or the length of its list of tensors.

    Raises:
        DataError: if there is no tensor to tell.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
    if isinstance(inputs, dict):
        inputs = next((v for v in inputs.values() if isinstance(v, (Tensor, list, tuple))), None)
    if isinstance(inputs, Tensor) and inputs.ndim:
        return len(inputs)
    if isinstance(inputs, (list, tuple)):
        return len(inputs)
    raise DataError(
        f"a batch of {type(inputs).__name__} cannot be divided among processes; yield tensors, or shard in the "
        "loader and set its attribute sharded = True"
    )


def _cut(part: Any, low: int, high: int, n: int) -> Any:
    if isinstance(part, Tensor) and part.ndim and len(part) == n:
        return part[low:high]
    if isinstance(part, dict):
        return {k: _cut(v, low, high, n) for k, v in part.items()}
    if _is_sequence(part, n) and next(tensors_in(part), None) is None:
        return part[low:high]
    if isinstance(part, (list, tuple)):
        return [_cut(v, low, high, n) for v in part]
    return part


def _is_sequence(part: Any, n: int) -> bool:
    return isinstance(part, (list, tuple)) and len(part) == n


@contextlib.contextmanager
def global_batch_norm(model: nn.Module, world: World) -> Iterator[None]:
    """Meanwhile batch norm in training mode uses the statistics of all processes' samples."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if world.size > 1 else []
    for norm in norms:
        norm.forward = functools.partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    out, mean, var, n = _GlobalBatchNorm.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[misc]
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore[arg-type]
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((var * n / (n - 1).clamp_min(1)).to(norm.running_var.dtype), share)
    return out


class _GlobalBatchNorm(torch.autograd.Function):
    """Batch norm over the samples of all processes; statistics in float32.

    The sums that the gradient needs go over all processes too, so that what each of them has is its part of the
    gradient of the summed losses.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalized `x` `(n, C, ...)`; mean, variance `(C,)` and count, a scalar, of the whole."""
        rows = x.float()
        axes = [0, *range(2, x.ndim)]
        n_own = x.numel() // max(x.shape[1], 1)
        mean = rows.sum(axes) / max(n_own, 1)
        square = (rows - _wide(mean, x)).square().sum(axes)
        own = torch.cat([mean.new_full((1,), n_own), mean, square])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        counts, means, squares = torch.stack(parts).split([1, len(mean), len(mean)], 1)
        n = counts.sum()
        # Chan et al. 1979: moments of parts to moments of the whole, without cancellation
        mean = (counts * means).sum(0) / n
        var = (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / n
        inv_std = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inv_std, n)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, var, n)
        out = (rows - _wide(mean, x)) * _wide(inv_std if weight is None else inv_std * weight.float(), x)
        return (out if bias is None else out + _wide(bias.float(), x)).to(x.dtype), mean, var, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of `x` from the sums over all processes, of weight and bias from this one's samples."""
        x, weight, mean, inv_std, n = ctx.saved_tensors
        grad = grads[0].float()
        axes = [0, *range(2, x.ndim)]
        ratio = (x.float() - _wide(mean, x)) * _wide(inv_std, x)
        sums = torch.stack([grad.sum(axes), (grad * ratio).sum(axes)])
        grad_bias, grad_weight = sums.clone()
        dist.all_reduce(sums)
        sums = sums / n
        scale = inv_std if weight is None else inv_std * weight.float()
        grad_x = (grad - _wide(sums[0], x) - ratio * _wide(sums[1], x)) * _wide(scale, x)
        return (
            grad_x.to(x.dtype),
            None if weight is None else grad_weight.to(weight.dtype),
            grad_bias.to(x.dtype if weight is None else weight.dtype) if ctx.has_bias else None,
            None,
        )


def _wide(channels: Tensor, like: Tensor) -> Tensor:
    return channels.reshape(1, -1, *[1] * (like.ndim - 2))
