"""Pruning and assignment that make up for their own error, column by column.

For one layer with weight rows w and second moment `H = E[x x^T]` of its input columns, the output error of `q` is
`(q - w) H (q - w)^T`. Columns are decided in order and each error is passed on to the columns still open, by the rows
of the Cholesky factor of `H^-1` (Frantar and Alistarh, SparseGPT, 2023, eq. 3-5; van Baalen et al., GPTVQ, 2024,
alg. 1). All d lanes of a subvector share their column, so a codeword is chosen for a column as GPTQ rounds one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mvq.codebook import fit_int8
from mvq.grouping import from_subvectors, to_subvectors, valid_lanes
from mvq.nn.parametrizations import VQWeight
from mvq.patterns import Pattern
from mvq.recover.statistics import Moments

_LAZY_COLUMNS = 64
_FIT_STEPS = 30


def least_squares_target(weight: Tensor, second: Tensor, cross: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The dense weight that brings the compressed network's inputs nearest to the dense network's outputs.

    Args:
        weight: `(groups, rows, c)` of the dense network.
        second: `(groups, c, c)` of the compressed network's inputs.
        cross: `(groups, c, c)` of the dense network's inputs with them.
        damping: share of the mean diagonal that pulls towards `weight`.

    Returns:
        Target `(groups, rows, c)`, and `second` with the damping on its diagonal.
    """
    scale = second.diagonal(dim1=1, dim2=2).mean(1)
    ridge = torch.where(scale > 0, damping * scale, torch.ones_like(scale))[:, None, None]
    damped = second + ridge * torch.eye(second.shape[1], device=second.device)
    right = weight @ cross + ridge * weight
    return torch.linalg.solve(damped, right, left=False), damped


def sweep(weight: Tensor, second: Tensor, choose: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Decide columns in order, passing errors on.

    Args:
        weight: `(groups, rows, c)`.
        second: `(groups, c, c)`, positive definite.
        choose: from column index and `(groups * rows,)` values to those that stand for them.

    Returns:
        The decided weight.
    """
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(second)), upper=True)
    open_weight, done = weight.clone(), torch.empty_like(weight)
    n = weight.shape[2]
    for low in range(0, n, _LAZY_COLUMNS):
        high = min(low + _LAZY_COLUMNS, n)
        errors = torch.empty_like(weight[:, :, low:high])
        for j in range(low, high):
            column = open_weight[:, :, j]
            done[:, :, j] = choose(j, column.reshape(-1)).reshape(column.shape)
            error = (column - done[:, :, j]) / upper[:, j, j, None]
            open_weight[:, :, j:high] -= error[:, :, None] * upper[:, j, None, j:high]
            errors[:, :, j - low] = error
        open_weight[:, :, high:] -= errors @ upper[:, low:high, high:]
    return done


def refit(weight: Tensor, target: Tensor, mask: Tensor, second: Tensor) -> Tensor:
    """Kept weights of least `(w - target) H (w - target)^T`, by conjugate gradients on all rows at once.

    Args:
        weight: start, `(groups, rows, c)`.
        target: `(groups, rows, c)`.
        mask: bool `(groups, rows, c)`, True = kept.
        second: `(groups, c, c)`.
    """
    scale = second.diagonal(dim1=1, dim2=2)[:, None, :]
    weight = weight * mask
    residual = mask * ((target - weight) @ second)
    direction = residual / scale
    power = (residual * direction).sum(2, keepdim=True)
    for _ in range(_FIT_STEPS):
        image = mask * (direction @ second)
        step = power / (direction * image).sum(2, keepdim=True).clamp_min(1e-30)
        weight = weight + step * direction
        residual = residual - step * image
        ahead = residual / scale
        new = (residual * ahead).sum(2, keepdim=True)
        direction = ahead + new / power.clamp_min(1e-30) * direction
        power = new
    return weight


def prune_compensated(
    weight: Tensor, moments: Moments, pattern: Pattern, d: int, curvature: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """N:M mask and kept weights that reproduce the dense outputs best.

    Args:
        weight: dense, `(Cout, ...)`.
        moments: of the layer's inputs.
        pattern: N:M along output channels.
        d: lanes of a subvector.
        curvature: `(Cout,)` weight of each output channel's error.
        damping: see `least_squares_target`.

    Returns:
        Bool mask and float32 weight, both of the weight's shape.
    """
    n_out = weight.shape[0]
    padding = -n_out % d
    matrix = _grouped(weight, moments)
    kept_weight = torch.zeros_like(matrix)
    mask = torch.zeros_like(matrix, dtype=torch.bool)
    for part, (second, cross) in zip(moments.slices, moments.shrunk(), strict=True):
        here = mask[:, :, part]

        def choose(j: int, column: Tensor, here: Tensor = here) -> Tensor:
            score = torch.nn.functional.pad(column.square() * curvature, (0, padding), value=-1.0)
            kept = pattern.top_mask(score.reshape(-1, d).numpy()).reshape(-1)[:n_out]
            here[:, :, j] = torch.from_numpy(kept).reshape(here.shape[:2])
            return column * here[:, :, j].reshape(-1)

        target, damped = least_squares_target(matrix[:, :, part], second, cross, damping)
        chosen = sweep(target, damped, choose)
        kept_weight[:, :, part] = refit(chosen, target, here, damped)
    return mask.reshape(weight.shape), kept_weight.reshape(weight.shape)


def assign_compensated_(
    form: VQWeight, weight: Tensor, moments: Moments, curvature: Tensor, *, damping: float, rounds: int
) -> None:
    """Choose a clustered layer's assignments with error feedback, and fit its codebook to the outputs.

    Args:
        form: changed in place; its codebook only where it belongs to this layer alone.
        weight: that the layer should stand for, `(Cout, ...)`.
        moments: of the layer's inputs.
        curvature: `(Cout,)`.
        damping: see `least_squares_target`.
        rounds: alternations; with a shared codebook there is one.
    """
    matrix = _grouped(weight, moments)
    found = [
        least_squares_target(matrix[:, :, part], second, cross, damping)
        for part, (second, cross) in zip(moments.slices, moments.shrunk(), strict=True)
    ]
    layer = _Lanes(form, curvature)
    own = int(form.codebook.counts.sum()) == int(layer.real.sum())
    for _ in range(rounds if own else 1):
        codebook = form.codebook().detach()
        labels = form.assignments.reshape(-1, matrix.shape[2]).clone()
        for part, (target, damped) in zip(moments.slices, found, strict=True):
            sweep(target, damped, layer.chooser(codebook, labels, part.start))
        _replace_assignments_(form, labels.reshape(-1))
        if own:
            _fit_codebook_(form, layer, moments.slices, found)


class _Lanes:
    """Masks of a clustered layer by group of output channels and column."""

    def __init__(self, form: VQWeight, curvature: Tensor) -> None:
        self.shape, self.d = form.shape, form.d
        valid = torch.from_numpy(np.array(valid_lanes(form.shape, form.d)))
        if form.pattern.is_dense:
            mask = torch.ones_like(valid)
        else:
            mask = torch.from_numpy(form.pattern.unrank(form.mask_ids.numpy()))
        n_rows = -(-form.shape[0] // form.d)
        rows = torch.nn.functional.pad(curvature, (0, -form.shape[0] % form.d)).reshape(n_rows, 1, form.d)
        share = rows.expand(n_rows, len(valid) // n_rows, form.d).reshape(-1, form.d) * (mask & valid)
        width = form.codebook.values.shape[1]
        self.lanes = mask.nonzero()[:, 1].reshape(-1, width) if form.codewords == "packed" else None
        self.mask = mask & valid
        self.real = self.pack(self.mask)
        self.share = self.pack(share)
        self.n_rows = n_rows

    def pack(self, rows: Tensor) -> Tensor:
        """`(n_sub, d)` lanes to the values of a codeword, `(n_sub, width)`."""
        return rows if self.lanes is None else rows.gather(1, self.lanes)

    def unpack(self, rows: Tensor) -> Tensor:
        """The weight of `(n_sub, width)` codeword values."""
        if self.lanes is None:
            wide = rows * self.mask
        else:
            wide = rows.new_zeros(len(rows), self.d).scatter_(1, self.lanes, rows)
        return from_subvectors(wide, self.shape)

    def chooser(self, codebook: Tensor, labels: Tensor, start: int) -> Callable[[int, Tensor], Tensor]:
        """A `choose` for `sweep` that takes the nearest codeword of each subvector and notes it in `labels`."""
        table, square = codebook.T.contiguous(), codebook.square().T.contiguous()
        n_out = self.shape[0]

        def choose(j: int, column: Tensor) -> Tensor:
            here = slice(start + j, None, labels.shape[1])
            lanes = torch.nn.functional.pad(column, (0, -n_out % self.d)).reshape(-1, self.d)
            share = self.share[here]
            index = None if self.lanes is None else self.lanes[here]
            values = lanes if index is None else lanes.gather(1, index)
            best = torch.addmm(share @ square, share * values, table, alpha=-2).argmin(1)
            labels[:, start + j] = best
            rows = codebook[best]
            wide = rows * self.mask[here] if index is None else torch.zeros_like(lanes).scatter_(1, index, rows)
            return wide.reshape(-1)[:n_out]

        return choose


def _fit_codebook_(form: VQWeight, layer: _Lanes, slices: list[slice], found: list[tuple[Tensor, Tensor]]) -> None:
    """Codewords of least output error under the assignments, by conjugate gradients; then int8."""
    labels, groups = form.assignments.long(), found[0][0].shape[0]
    rows = layer.share.new_zeros(form.codebook.values.shape)

    def pull(weight: Tensor) -> Tensor:
        """Adjoint of decoding, weighted by curvature: from a weight-shaped gradient to codewords."""
        return rows.clone().index_add_(0, labels, layer.pack(to_subvectors(weight, form.d)) * layer.share)

    def times_second(weight: Tensor) -> Tensor:
        matrix = weight.reshape(groups, -1, slices[-1].stop)
        parts = [matrix[:, :, part] @ damped for part, (_, damped) in zip(slices, found, strict=True)]
        return torch.cat(parts, 2).reshape(form.shape)

    target = torch.cat([t for t, _ in found], 2).reshape(form.shape)
    diagonal = torch.cat([m.diagonal(dim1=1, dim2=2) for _, m in found], 1)
    diagonal = diagonal.repeat_interleave(form.shape[0] // groups, 0).reshape(form.shape)
    scale = pull(diagonal).clamp_min(1e-30)
    start = form.codebook().detach()
    values, residual = start.clone(), pull(times_second(target - layer.unpack(start[labels])))
    direction = residual / scale
    power = (residual * direction).sum()
    for _ in range(_FIT_STEPS):
        image = pull(times_second(layer.unpack(direction[labels])))
        step = power / (direction * image).sum().clamp_min(1e-30)
        values, residual = values + step * direction, residual - step * image
        ahead = residual / scale
        new = (residual * ahead).sum()
        direction, power = ahead + new / power.clamp_min(1e-30) * direction, new
    weights = rows.clone().index_add_(0, labels, layer.share)
    fitted = fit_int8(values.numpy(), weights.numpy())
    form.codebook.values.data.copy_(values)
    form.codebook.scale_base.fill_(fitted.scale)
    form.codebook.scale_log.data.zero_()


def _replace_assignments_(form: VQWeight, labels: Tensor) -> None:
    """New assignments, with the members of the codebook counted again."""
    before = form.codebook.counts.clone()
    form.codebook.counts.zero_()
    form.count_members()
    others = before - form.codebook.counts
    form.assignments.copy_(labels)
    form.codebook.counts.zero_()
    form.count_members()
    form.codebook.counts += others


def _grouped(weight: Tensor, moments: Moments) -> Tensor:
    groups = moments.second[0].shape[0]
    return weight.detach().float().reshape(groups, weight.shape[0] // groups, -1)


def set_weight_(module: nn.Module, weight: Tensor) -> None:
    """Give a plain or pruned layer these values."""
    with torch.no_grad():
        module.weight = nn.Parameter(weight) if "weight" in module._parameters else weight
