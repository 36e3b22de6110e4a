"""What each thing that this library adds to the method contributes after training: methods of `accuracy/parts.toml`."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from mvq.allocate import fit_codewords
from mvq.bench import OURS, Method, Options, Point, ours
from mvq.nn import cluster_
from mvq.recover import equalize_

_PACKED = {"codewords": "packed"}


def equalized() -> Method:
    """Packed codewords, layers at one RMS."""
    return replace(
        ours(Options(recipe=_PACKED, prepare=equalize_)), name="equalized", label="packed, layers of equal RMS"
    )


def sensitive() -> Method:
    """Packed codewords, k-means weighed by each layer's Fisher information."""
    return replace(
        ours(Options(recipe=_PACKED, importance=OURS.importance)), name="sensitive", label="packed, layers weighed"
    )


def both() -> Method:
    """The two together, at the pattern of the size."""
    return replace(ours(OURS), name="both", label="packed, layers of equal RMS and weighed")


def reassigned() -> Method:
    """The two together, with assignments that follow training."""

    assert OURS.importance is not None
    sensitivity = OURS.importance

    def compress(model: nn.Module, point: Point) -> nn.Module:
        recipe = fit_codewords(model, replace(point.recipe, **_PACKED), point.target_bits)
        equalize_(model, recipe)
        importance = sensitivity(model, point)
        return cluster_(model, recipe, importance=importance, soft=True)

    return replace(
        ours(OURS), name="reassigned", label="packed, equal RMS, weighed, assignments learned", compress=compress
    )
