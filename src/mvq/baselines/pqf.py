"""PQF: Martinez et al., "Permute, Quantize, and Fine-tune", CVPR 2021.

1. Permute (section 3.1, 3.2). Input channels of a layer may come in any order if the layers that make them give them
   in that order. The order is chosen to lower `|S|`, the determinant of the covariance of the layer's blocks, because
   `k^(-2/d) d |S|^(1/d)` bounds the error of k codewords for a Gaussian source. A start puts channels of like variance
   on the same place in their blocks; then random swaps are kept where they lower the determinant.
2. Quantize (section 3.3). K-means on noisy blocks, with noise of the coordinates' own deviation times
   `(1 - i/I)^0.5` at iteration i of I: the stochastic relaxation of Zeger et al., "Globally Optimal Vector Quantizer
   Design by Stochastic Relaxation", 1992.
3. Fine-tune: all codebooks by Adam, left to the caller.

Layers that share their input channels share a permutation (a residual stream is one set of channels), and the
first of them whose blocks hold several channels decides, as in the authors' lists for ResNets; here the sets come from
tracing the model (`mvq.recover.permute`). Where a set reaches the network's input or output or an operation that the
tracing does not know (padding or slicing of channels, a flattening with pixels left), its channels stay in order; so
do all where the model cannot be traced.

Deviations: the start is the one that minimises the product of the coordinates' variances exactly, which bounds the
determinant (Hadamard), where the authors fill buckets greedily; empty clusters as in `product.lloyd`, where the
authors leave them; limits of k as in `product.setting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvq.baselines.product import ProductWeight, attach_int8_, blocks, check_effort, lloyd, planned
from mvq.errors import ModelError
from mvq.nn.layers import as_recipe, attach, dense_weight, unwrap
from mvq.progress import track
from mvq.recipe import Recipe
from mvq.recover.permute import Space, free_spaces, reorder_

_NOISE_POWER = 0.5
_RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class PqfOptions:
    """Effort of PQF.

    Attributes:
        n_iters: iterations of annealed k-means a layer.
        n_swaps: swaps tried for each set of channels; 0 for the start alone.

    Raises:
        ConfigError: if a number is out of range.
    """

    n_iters: int = 100
    n_swaps: int = 10_000

    def __post_init__(self) -> None:
        check_effort(self, {"n_iters": 1, "n_swaps": 0}, "pqf_")


def pqf_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int,
    *,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool = False,
    options: PqfOptions | None = None,
) -> nn.Module:
    """Compress a model by PQF up to, and without, fine-tuning.

    Args:
        model: dense; changed in place. Channels are reordered: the function it computes stays, the `state_dict` of an
            uncompressed copy fits it no longer.
        recipe: says which layers are compressed, int8 or left alone; its patterns and sizes are not used.
        target_bits: of all compressed weights; exceeded by 1% at most.
        calibration: not used; PQF needs no data before fine-tuning.
        seed: of starts, noise and swaps.
        progress: show bars over sets of channels and layers.
        options: effort.

    Returns:
        The model.

    Raises:
        ConfigError: if the size cannot be reached.
        ModelError: as `product.planned`.
        WeightError: on NaN or infinite weights.
    """
    del calibration
    recipe, options = as_recipe(recipe), options or PqfOptions()
    layers, settings = planned(model, recipe, target_bits, method="pqf_", seed=seed)
    permute_channels_(
        unwrap(model), {name: s.d for name, s in settings.items()}, options.n_swaps, seed=seed, progress=progress
    )
    attach_int8_(layers, recipe)
    generator = torch.Generator().manual_seed(seed)
    jobs = [(name, module) for name, module, _ in layers if name in settings]
    for name, module in track(jobs, "pqf", enabled=progress):
        weight = dense_weight(module)
        found = lloyd(
            blocks(weight, settings[name].d),
            settings[name].n_codewords,
            n_iters=options.n_iters + 1,
            generator=generator,
            noise=lambda i: (1 - i / options.n_iters) ** _NOISE_POWER,
        )
        attach(module, ProductWeight(name, recipe, weight.shape, found.codebook.to(weight.dtype), found.codes))
    return model


def distortion_bound(covariance: NDArray[np.floating], n_codewords: int) -> float:
    """Least mean squared error of k codewords for a Gaussian source, `k^(-2/d) d |S|^(1/d)` (section 3.1)."""
    d = len(covariance)
    return d * n_codewords ** (-2 / d) * float(np.exp(np.linalg.slogdet(covariance)[1] / d))


# Choosing an order


def permute_channels_(
    model: nn.Module, block_sizes: Mapping[str, int], n_swaps: int, *, seed: int = 0, progress: bool = False
) -> int:
    """Reorder the channels of a model so that its blocks are easier to quantize; it computes what it did.

    Args:
        model: dense; changed in place. Left as it is where it cannot be traced.
        block_sizes: d by name, of the layers to be compressed.
        n_swaps: swaps tried for each set of channels.
        seed: of the swaps.
        progress: show a bar.

    Returns:
        How many sets of channels got another order.
    """
    try:
        spaces = free_spaces(model)
    except ModelError:
        return 0
    rng = np.random.default_rng(seed)
    n_changed = 0
    for space in track(spaces, "permutations", enabled=progress):
        weight, lanes = _decider(model, space, block_sizes)
        order = None if weight is None else best_order(weight, lanes, n_swaps=n_swaps, rng=rng)
        if order is not None:
            reorder_(model, space, torch.from_numpy(order).to(next(model.parameters()).device))
            n_changed += 1
    return n_changed


def _decider(model: nn.Module, space: Space, block_sizes: Mapping[str, int]) -> tuple[NDArray[np.float32] | None, int]:
    """Weight `(Cout, C, kh * kw)` of the first layer whose blocks hold several of these channels, and how many."""
    users = {name for name, _ in space.users}
    for name in (name for name in block_sizes if name in users):
        weight: Any = model.get_submodule(name).weight
        if weight.shape[1] == space.size:
            values = weight.detach().float().flatten(2) if weight.ndim == 4 else weight.detach().float().unsqueeze(2)
            lanes, rest = divmod(block_sizes[name], values.shape[2])
            if lanes >= 2 and not rest:
                return values.cpu().numpy(), lanes
    return None, 0


def best_order(
    values: NDArray[np.float32], lanes: int, *, n_swaps: int, rng: np.random.Generator
) -> NDArray[np.intp] | None:
    """Order of the input channels with a low determinant (section 3.2).

    Args:
        values: `(Cout, C, kh * kw)`.
        lanes: channels in a block; divides C.
        n_swaps: swaps tried.
        rng: of the swaps.

    Returns:
        `(C,)` old position of each new channel, or None where the order given is no worse.
    """
    n_channels = values.shape[1]
    if n_channels == lanes:
        return None
    source = _Moments(values, lanes)
    spread = values.var(axis=(0, 2))
    start = np.argsort(-spread, kind="stable").reshape(lanes, -1).T.flatten()
    order, best = _swapped(source, start, n_swaps, rng)
    return order if best < source.log_det(np.arange(n_channels)) else None


class _Moments:
    """Covariance of blocks for any order of the channels, from moments of the channels taken once."""

    def __init__(self, values: NDArray[np.float32], lanes: int) -> None:
        n_out, self.n_channels, self.width = values.shape
        self.lanes, self.d = lanes, lanes * self.width
        self.n_blocks = n_out * self.n_channels // lanes
        rows = values.astype(np.float64).reshape(n_out, -1)
        self.products = (rows.T @ rows).reshape(self.n_channels, self.width, self.n_channels, self.width)
        self.sums = rows.sum(0).reshape(self.n_channels, self.width)
        self.ridge = _RIDGE * rows.var() * np.eye(self.d)

    def of(self, channels: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums over the block of these channels, in this order: `(d, d)` of products and `(d,)` of values."""
        products = self.products[channels[:, None], :, channels[None, :], :].swapaxes(1, 2)
        return products.reshape(self.d, self.d), self.sums[channels].flatten()

    def total(self, order: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`of`, summed over all blocks."""
        parts = [self.of(channels) for channels in order.reshape(-1, self.lanes)]
        return sum(p for p, _ in parts), sum(s for _, s in parts)  # type: ignore[return-value]

    def log_det_of(self, products: NDArray[np.float64], sums: NDArray[np.float64]) -> float:
        """Logarithm of the determinant of the covariance."""
        mean = sums / self.n_blocks
        return float(np.linalg.slogdet(products / self.n_blocks - np.outer(mean, mean) + self.ridge)[1])

    def log_det(self, order: NDArray[np.intp]) -> float:
        """The same for a whole order."""
        return self.log_det_of(*self.total(order))


def _swapped(
    source: _Moments, order: NDArray[np.intp], n_swaps: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], float]:
    """Local search: random swaps of two channels, kept where the determinant falls; only two blocks change."""
    products, sums = source.total(order)
    best = source.log_det_of(products, sums)
    for pair in rng.integers(source.n_channels, size=(n_swaps, 2)):
        if pair[0] == pair[1]:
            continue
        trial = order.copy()
        trial[pair] = order[pair[::-1]]
        new_products, new_sums = products, sums
        for block in np.unique(pair // source.lanes):
            part = slice(block * source.lanes, (block + 1) * source.lanes)
            (p_new, s_new), (p_old, s_old) = source.of(trial[part]), source.of(order[part])
            new_products, new_sums = new_products + (p_new - p_old), new_sums + (s_new - s_old)
        value = source.log_det_of(new_products, new_sums)
        if value < best:
            order, products, sums, best = trial, new_products, new_sums, value
    return order, best
