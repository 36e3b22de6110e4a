"""Codewords along output channels for methods that leave block size and codebook size open, at a wanted size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvq.baselines.forms import nearest_below
from mvq.cluster import masked_kmeans
from mvq.errors import FewDistinctError
from mvq.grouping import n_subvectors, to_subvectors, valid_lanes

#: Index bits and lanes that are tried; DKM publishes up to 8 bits and SSVQ 4 bits for 8 lanes.
INDEX_BITS = range(1, 11)
LANES = range(1, 17)
#: Codebooks of small layers shrink until this many subvectors share a codeword, as in our own recipes.
_ROWS_PER_CODEWORD = 4
#: Settings this near to the largest that fits compete in error.
_NEAR = 0.95
_TRIAL_ITERS = 5


@dataclass(frozen=True, slots=True)
class VectorSetting:
    """`index_bits` bits for every d weights."""

    index_bits: int
    d: int

    def n_codewords(self, shape: Sequence[int]) -> int:
        """`2**index_bits`, or the largest power of two that leaves each codeword four subvectors of this weight."""
        most = max(n_subvectors(shape, self.d) // _ROWS_PER_CODEWORD, 1)
        return min(1 << self.index_bits, 1 << most.bit_length() - 1)


@dataclass(frozen=True, eq=False)
class Clusters:
    """K-means of one weight.

    Attributes:
        codebook: float32 `(k, d)`.
        assignments: int32 `(n_sub,)`.
        sse: squared error.
    """

    codebook: Tensor
    assignments: Tensor
    sse: float


def cluster(weight: Tensor, setting: VectorSetting, *, seed: int, max_iters: int = 100) -> Clusters:
    """Conventional k-means of a weight; lanes that pad it do not count, and k is limited to distinct subvectors."""
    shape = tuple(weight.shape)
    rows = to_subvectors(weight.float(), setting.d)
    valid = torch.from_numpy(np.array(valid_lanes(shape, setting.d))).to(rows.device)
    k = setting.n_codewords(shape)
    try:
        result = masked_kmeans(rows, valid, k, max_iters=max_iters, seed=seed)
    except FewDistinctError as error:
        fewer = 1 << error.distinct.bit_length() - 1
        result = masked_kmeans(rows, valid, fewer, max_iters=max_iters, seed=seed)
    return Clusters(result.codebook.float(), result.assignments.int(), result.sse)


def choose(
    weights: Mapping[str, Tensor],
    target_bits: int,
    bits: Callable[[Sequence[int], int, int], int],
    *,
    method: str,
    seed: int,
) -> VectorSetting:
    """One setting for all layers: of those within 5% of the nearest size, the one of least k-means error.

    Layers weigh alike by weight: the error of each is relative to its mean square.

    Args:
        weights: what is clustered, by layer name.
        target_bits: exceeded by 1% at most.
        bits: `(shape, n_codewords, d)` to the bits of one layer.
        method: name for the message.
        seed: of k-means.

    Raises:
        ConfigError: if every setting is larger.
    """
    options = [VectorSetting(b, d) for b in INDEX_BITS for d in LANES]
    sizes = [
        (option, sum(bits(w.shape, option.n_codewords(w.shape), option.d) for w in weights.values()))
        for option in options
    ]
    finalists = nearest_below(sizes, target_bits, method=method, within=_NEAR)
    if len(finalists) == 1:
        return finalists[0]

    def error(setting: VectorSetting) -> float:
        return sum(
            cluster(w, setting, seed=seed, max_iters=_TRIAL_ITERS).sse / max(float(w.double().square().mean()), 1e-30)
            for w in weights.values()
        )

    return min(finalists, key=error)
