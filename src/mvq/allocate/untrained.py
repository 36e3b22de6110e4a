"""Layer-wise choices for a network that is compressed without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mvq.allocate.choose import allocate, default_candidates, dense_candidates
from mvq.allocate.sensitivity import Score, fisher
from mvq.nn.layers import as_recipe
from mvq.recipe import Recipe


def allocate_untrained(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    calibration: Iterable[Any],
    target_bits: int | None = None,
    *,
    ratio: float | None = None,
    n_images: int = 64,
    score: Score | None = None,
    progress: bool = False,
) -> Recipe:
    """Whether each layer is pruned, and its subvectors and codewords, for compression from unlabelled images alone.

    `allocate` with every weight's error weighed by its Fisher information, a codebook a layer, and options that prune
    nothing beside those that do. Without training these win nearly everywhere, and errors are spent where they do
    least. What follows is `mvq.recover.recover` with the recipe that this returns.

    Args:
        model: dense; not changed.
        recipe: says which layers are compressed; its pattern, d and n_codewords are where the search starts.
        calibration: batches of inputs, or pairs that begin with them; labels are not looked at.
        target_bits: as `allocate`.
        ratio: as `allocate`.
        n_images: images that the Fisher information is measured on, one after the other.
        score: as `fisher`; needed for outputs that are not logits.
        progress: show bars.

    Returns:
        The recipe with an override for each compressed layer.

    Raises:
        ConfigError: as `allocate`.
        DataError: as `fisher`.
        ModelError: as `fisher` and `allocate`.
    """
    start = replace(as_recipe(recipe), scope="layer", codewords="packed")
    importance = fisher(model, _singly(calibration), n_batches=n_images, score=score, seed=start.seed)
    candidates = [*default_candidates(start), *dense_candidates()]
    return allocate(
        model, start, target_bits, ratio=ratio, candidates=candidates, importance=importance, progress=progress
    )


def _singly(calibration: Iterable[Any]) -> Iterator[Tensor]:
    """One image at a time: the square of a batch's gradient is a sample of the information, however large it is."""
    for batch in calibration:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        yield from inputs.split(1)
