"""Layer-wise choices for a network that is compressed without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from mvq.allocate.bits import budget, plan_compressed
from mvq.allocate.choose import (
    allocate,
    check_max_macs,
    default_candidates,
    dense_candidates,
    pruned_candidates,
)
from mvq.allocate.sensitivity import fisher
from mvq.errors import ConfigError
from mvq.flops import count
from mvq.nn.layers import as_recipe, dense_weight
from mvq.outputs import Score
from mvq.recipe import Recipe

#: Best of 0, 1/4, 1/2 and 1 for SqueezeNet at 16x, and recovered: `docs/decisions.md`.
TRUST = 0.25
_SMALLEST = 1e-30


def allocate_untrained(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    calibration: Iterable[Any],
    target_bits: int | None = None,
    *,
    ratio: float | None = None,
    n_images: int = 64,
    trust: float = TRUST,
    score: Score | None = None,
    max_macs: float | None = None,
    progress: bool = False,
) -> Recipe:
    """Whether each layer is pruned, and its subvectors and codewords, for compression from unlabelled images alone.

    `allocate` with errors weighed by the Fisher information, a codebook a layer, and options that prune nothing beside
    those that do. What follows is `mvq.recover.recover` with the recipe that this returns.

    The Fisher information of a layer says what its error costs while all others stay. Recovery lets later layers make
    up for earlier ones, so that a layer counts `fisher ** trust * (1 / energy) ** (1 - trust)`: between that (1) and
    equal relative errors (0).

    Args:
        model: dense; not changed.
        recipe: says which layers are compressed; its pattern, d and n_codewords are where the search starts.
        calibration: batches of inputs, or pairs that begin with them; labels are not looked at.
        target_bits: as `allocate`.
        ratio: as `allocate`.
        n_images: images that the Fisher information is measured on, one after the other.
        trust: in differences of the information between layers, 0..1; 1 where nothing follows.
        score: as `fisher`; needed for outputs that are not logits.
        max_macs: as `allocate`, counted on the first image. Without it next to nothing is pruned, as pruning costs
            such networks more than it saves bits.
        progress: show bars.

    Returns:
        The recipe with an override for each compressed layer.

    Raises:
        ConfigError: as `allocate`; if trust is not in 0..1.
        DataError: as `fisher`.
        ModelError: as `fisher` and `allocate`.
    """
    if not 0 <= trust <= 1:
        raise ConfigError(f"allocate_untrained: trust={trust} is not in 0..1")
    check_max_macs(max_macs, "allocate_untrained")
    start = replace(as_recipe(recipe), scope="layer", codewords="packed")
    layers = plan_compressed(model, start)
    budget(layers, target_bits, ratio, "allocate_untrained")
    images = list(islice(_singly(calibration), n_images))
    importance = fisher(model, images, n_batches=n_images, score=score, seed=start.seed)
    for name, module, _ in layers:
        h, energy = importance[name], dense_weight(module).square().mean()
        importance[name] = h * (h.mean() * energy).clamp_min(_SMALLEST) ** (trust - 1)
    candidates, macs = [*default_candidates(start), *dense_candidates()], None
    if max_macs is not None:
        candidates += pruned_candidates()
        example = images[0].to(next(model.parameters()).device)
        macs = {layer.name: layer.dense for layer in count(model, example).layers}
    return allocate(
        model,
        start,
        target_bits,
        ratio=ratio,
        candidates=candidates,
        importance=importance,
        macs=macs,
        max_macs=max_macs,
        progress=progress,
    )


def _singly(calibration: Iterable[Any]) -> Iterator[Tensor]:
    """One image at a time: the square of a batch's gradient is a sample of the information, however large it is."""
    for batch in calibration:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        yield from inputs.split(1)
