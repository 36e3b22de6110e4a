"""From the dense weights of the layers that share a codebook to their parametrizations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvq.codebook import fit_int8
from mvq.compressed import Codebook
from mvq.errors import FewDistinctError, MvqError
from mvq.grouping import n_subvectors, pack_lanes, to_subvectors, unpack_lanes, valid_lanes
from mvq.nn.layers import Planned, attach, dense_weight, detach, form_of
from mvq.nn.parametrizations import LearnedCodebook, NMMask, VQWeight
from mvq.prune import complete_mask, magnitude_mask
from mvq.recipe import LayerRecipe, Recipe

GroupKey = tuple[int | None, str, int, int, str]

# Errors are summed by parts of this many rows, so that float64 copies of a large layer are never whole in memory
_ERROR_ROWS = 1 << 14


@dataclass(frozen=True, eq=False)
class Rows:
    """One layer cut into subvectors.

    Attributes:
        values: float32 `(n_sub, d)` dense weights, on the layer's device.
        mask_ids: `(n_sub, n_blocks)`.
        kept: bool `(n_sub, d)`, real lanes the pattern keeps.
        fitted: bool `(n_sub, d)`, lanes that k-means sees.
        importance: float32 `(n_sub, d)` or None.
    """

    values: Tensor
    mask_ids: NDArray[np.uint32]
    kept: NDArray[np.bool_]
    fitted: Tensor
    importance: Tensor | None

    @property
    def targets(self) -> Tensor:
        """What k-means fits: `values`, zero on real lanes that are pruned and yet seen (common k-means)."""
        return torch.where(torch.from_numpy(self.kept).to(self.values.device), self.values, 0.0)


def cluster_group(
    members: list[Planned],
    recipe: Recipe,
    *,
    key: str,
    n_codewords: int,
    seed: int,
    importance: Mapping[str, Tensor] | None,
) -> None:
    """Cluster the layers into one codebook and put the parametrizations on.

    Args:
        members: `(name, module, layer recipe)`; all with equal `group_key`.
        recipe: of the model.
        key: of the codebook.
        n_codewords: its size; halved where there are fewer distinct subvectors and `rows_per_codeword` is on.
        seed: of k-means.
        importance: by layer name, shaped like the weights.

    Raises:
        MvqError: of the clustering, with the layer's name in front.
    """
    spec = members[0][2]
    rows = [cut_rows(name, module, layer, importance) for name, module, layer in members]
    device = rows[0].values.device
    try:
        codebook, latent, assignments = fit_codebook(rows, spec, recipe, n_codewords, seed)
    except MvqError as error:
        where = f"layer {members[0][0]!r}" if recipe.scope == "layer" else f"codebook {key!r} of {len(members)} layers"
        error.args = (f"{where}: {error}",)
        raise
    learned = LearnedCodebook(key, torch.from_numpy(latent).to(device), codebook.scale)
    ends = np.cumsum([len(r.values) for r in rows])
    for (name, module, layer), r, labels in zip(members, rows, np.split(assignments, ends[:-1]), strict=True):
        form = VQWeight(
            name,
            recipe,
            learned,
            spec=layer,
            weight=dense_weight(module),
            assignments=labels,
            mask_ids=r.mask_ids,
            sse=_errors(r, codebook, labels, layer),
        )
        form.count_members()
        replace_form(module, form)


def codebook_groups(recipe: Recipe, layers: list[Planned]) -> list[tuple[str, list[Planned], int, int]]:
    """`(codebook key, layers, n_codewords, seed)` for each codebook."""
    jobs = [(i, entry) for i, entry in enumerate(layers) if entry[2].treatment == "compress"]
    if recipe.scope == "layer":
        return [
            (entry[0], [entry], layer_codewords(recipe, entry[2], dense_weight(entry[1]).shape), _seed(recipe, 0, i))
            for i, entry in jobs
        ]
    shared: dict[GroupKey, list[Planned]] = {}
    for _, entry in jobs:
        shared.setdefault(group_key(entry[2]), []).append(entry)
    return [
        (f"network.{i}", members, members[0][2].n_codewords, _seed(recipe, 1, i))
        for i, members in enumerate(shared.values())
    ]


def layer_codewords(recipe: Recipe, layer: LayerRecipe, shape: torch.Size) -> int:
    """The recipe's size, or the largest power of two leaving `rows_per_codeword` subvectors a codeword."""
    n_sub, k, rows = n_subvectors(shape, layer.d), layer.n_codewords, recipe.rows_per_codeword
    if rows == 0 or n_sub >= k * rows:
        return k
    return 1 << max(n_sub // rows, 1).bit_length() - 1


def group_key(layer: LayerRecipe) -> GroupKey:
    """Layers with equal keys share the codebook of scope `network`.

    Masked codewords of equal d serve any pattern, packed ones of equal width Q any pattern and d: 1:2 at d = 8 and
    4:16 at d = 16, say.
    """
    d = None if layer.codewords == "packed" else layer.d
    return (d, layer.codewords, layer.width, layer.n_codewords, layer.kmeans)


def _seed(recipe: Recipe, *path: int) -> int:
    return int(np.random.SeedSequence(recipe.seed, spawn_key=path).generate_state(1, np.uint32)[0])


def replace_form(module: nn.Module, form: VQWeight) -> None:
    """Put the form in place of the weight, pruned or not; its memory is freed."""
    if form_of(module) is not None:
        detach(module, dense_weight(module))
    attach(module, form)


def cut_rows(name: str, module: nn.Module, layer: LayerRecipe, importance: Mapping[str, Tensor] | None = None) -> Rows:
    """The subvectors of one layer under its mask: that of `prune_`, else the magnitude mask of its weight."""
    weight = dense_weight(module).float()
    shape = tuple(weight.shape)
    form = form_of(module)
    if isinstance(form, NMMask):
        mask = complete_mask(form.mask.cpu().numpy(), layer.pattern, layer.d, name=name)
    else:
        mask = magnitude_mask(weight.cpu().numpy(), layer.pattern, layer.d, name=name)
    valid = valid_lanes(shape, layer.d)
    kept = mask & valid
    plain = layer.kmeans == "plain" and layer.codewords == "masked"
    if layer.pattern.is_dense:
        mask_ids = np.zeros((len(mask), 0), np.uint32)
    else:
        mask_ids = layer.pattern.rank(mask)
    return Rows(
        values=to_subvectors(weight, layer.d),
        mask_ids=mask_ids,
        kept=kept,
        fitted=torch.from_numpy(np.array(valid) if plain else kept).to(weight.device),
        importance=None if importance is None else to_subvectors(importance[name], layer.d),
    )


def fit_codebook(
    rows: list[Rows], spec: LayerRecipe, recipe: Recipe, n_codewords: int, seed: int
) -> tuple[Codebook, NDArray[np.float32], NDArray[np.intp]]:
    """Int8 codebook, float codewords before quantization, and assignments to the int8 ones."""
    from mvq.cluster import assign, masked_kmeans

    values = _join([r.targets for r in rows])
    fitted = _join([r.fitted for r in rows])
    importance = None if rows[0].importance is None else _join([r.importance for r in rows if r.importance is not None])
    options = {
        "codewords": spec.codewords,
        "weights": importance,
        "init": recipe.init,
        "max_iters": recipe.max_iters,
        "tol": recipe.tol,
        "n_init": recipe.n_init,
        "seed": seed,
    }
    try:
        result = masked_kmeans(values, fitted, n_codewords, **options)
    except FewDistinctError as error:
        if recipe.rows_per_codeword == 0 or recipe.scope != "layer":
            raise
        fewer = 1 << error.distinct.bit_length() - 1
        result = masked_kmeans(values, fitted, fewer, **options)
    found = result.codebook.float().cpu().numpy()
    # Packed codewords come as wide as the fullest row, which a layer of few channels leaves below Q.
    width = found.shape[1]
    latent = np.pad(found, ((0, 0), (0, spec.width - width)))
    share = fitted.float() if importance is None else importance * fitted
    codebook = fit_int8(latent, _lane_sums(share, fitted, result.assignments, latent.shape, spec))
    quantized = torch.from_numpy(codebook.values[:, :width]).to(values.device)
    final, _ = assign(values, fitted, quantized, codewords=spec.codewords, weights=importance)
    return codebook, latent, final.cpu().numpy().astype(np.intp)


def _join(parts: list[Tensor]) -> Tensor:
    """Rows below one another; packed ones may differ in d, and lanes that no row keeps make up for it."""
    if len(parts) == 1:
        return parts[0]
    lanes = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, lanes - part.shape[1])) for part in parts])


def _lane_sums(
    share: Tensor, fitted: Tensor, assignments: Tensor, shape: tuple[int, ...], spec: LayerRecipe
) -> NDArray[np.float64]:
    """Summed weight of the members of each codeword value."""
    if spec.codewords == "packed":
        packed = pack_lanes(share.cpu().numpy(), fitted.cpu().numpy(), spec.width)
        share = torch.from_numpy(packed).to(share.device)
    sums = torch.zeros(shape, dtype=torch.float64, device=share.device)
    return sums.index_add_(0, assignments.long(), share.double()).cpu().numpy()


def _errors(
    rows: Rows, codebook: Codebook, assignments: NDArray[np.integer], layer: LayerRecipe
) -> tuple[float, float]:
    """`(masked_sse, total_sse)` against the dense weights."""
    dense, table = rows.values.cpu().numpy(), codebook.values
    masked = total = 0.0
    for low in range(0, len(dense), _ERROR_ROWS):
        part = slice(low, low + _ERROR_ROWS)
        kept, decoded = rows.kept[part], table[assignments[part]]
        decoded = unpack_lanes(decoded, kept) if layer.codewords == "packed" else np.where(kept, decoded, 0)
        # Padding is zero on both sides, so it adds nothing.
        square = (dense[part] - decoded).astype(np.float64) ** 2
        masked += float(square[kept].sum())
        total += float(square.sum())
    return masked, total
