"""The error of a layer under one option, measured by clustering it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mvq.compressed import Codebook
from mvq.errors import FewDistinctError
from mvq.grouping import pack_lanes, to_subvectors
from mvq.nn.clustering import Rows, cut_rows, fit_codebook
from mvq.recipe import LayerRecipe, Recipe


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What counts as error: `sum h (w - w_hat)^2` against the dense weights.

    Attributes:
        importance: h >= 0 by layer name, shaped like the weights; None for 1 everywhere.
        pruned: factor of the error on pruned weights. 1 is right for a network that is not trained on; sparse training
            makes up for most of that part and for little of the rest.
        max_rows: subvectors a codebook is fitted to at most; all are then assigned.
        seed: of the sample.
    """

    importance: dict[str, Tensor] | None
    pruned: float
    max_rows: int
    seed: int


@dataclass(frozen=True, eq=False)
class Cut:
    """One layer under one option, ready to be measured.

    Attributes:
        layer: the option.
        rows: its subvectors and masks.
        weights: float32 `(n_sub, d)` h of the metric, or None.
        lost: error of the pruned weights, which no codebook changes.
    """

    layer: LayerRecipe
    rows: Rows
    weights: Tensor | None
    lost: float


def cut(name: str, module: nn.Module, layer: LayerRecipe, metric: Metric) -> Cut:
    """Cut a layer and add up what its mask loses."""
    rows = cut_rows(name, module, layer)
    weights = None
    if metric.importance is not None:
        weights = to_subvectors(metric.importance[name].to(rows.values.device), layer.d)
    square = rows.values.masked_fill(torch.from_numpy(rows.kept).to(rows.values.device), 0.0).double() ** 2
    lost = float((square if weights is None else square * weights).sum())
    return Cut(layer, rows, weights, metric.pruned * lost)


def fit(cuts: Sequence[Cut], recipe: Recipe, n_codewords: int, metric: Metric) -> Codebook | None:
    """One codebook for these layers, fitted to a sample; None where there are too few distinct subvectors."""
    share = min(1.0, metric.max_rows / sum(len(c.rows.values) for c in cuts))
    rng = np.random.default_rng(metric.seed)
    sample = [_sample(c.rows, share, rng) for c in cuts]
    try:
        return fit_codebook(sample, cuts[0].layer, recipe, n_codewords, metric.seed)[0]
    except FewDistinctError:
        return None


def error(cut: Cut, codebook: Codebook) -> float:
    """Error of a layer whose subvectors all take their nearest codeword."""
    from mvq.cluster import assign

    rows, packed = cut.rows, cut.layer.codewords == "packed"
    values = torch.from_numpy(codebook.values).to(rows.values.device)
    if packed:
        # As wide as the fullest row, which a layer of few channels leaves below Q
        values = values[:, : int(rows.kept.sum(1).max())].contiguous()
    labels, distances = assign(rows.targets, rows.fitted, values, codewords=cut.layer.codewords)
    plain = cut.layer.kmeans == "plain" and not packed
    if cut.weights is None and not plain:
        return cut.lost + float(distances.double().sum())
    return cut.lost + _weighted(cut, values[labels.long()])


def _weighted(cut: Cut, decoded: Tensor) -> float:
    """`sum h (w - w_hat)^2` over kept weights."""
    kept = cut.rows.kept
    mask = torch.from_numpy(kept).to(decoded.device)
    values, weights = cut.rows.values, mask.float() if cut.weights is None else cut.weights * mask
    if cut.layer.codewords == "packed":
        width = decoded.shape[1]
        values, weights = (
            torch.from_numpy(pack_lanes(t.cpu().numpy(), kept, width)).to(decoded.device) for t in (values, weights)
        )
    return float((weights.double() * (values - decoded).double() ** 2).sum())


def _sample(rows: Rows, share: float, rng: np.random.Generator) -> Rows:
    n = len(rows.values)
    n_taken = max(1, round(share * n))
    if n_taken == n:
        return rows
    picked = np.sort(rng.choice(n, n_taken, replace=False))
    index = torch.from_numpy(picked).to(rows.values.device)
    return replace(
        rows,
        values=rows.values[index],
        mask_ids=rows.mask_ids[picked],
        kept=rows.kept[picked],
        fitted=rows.fitted[index],
    )
