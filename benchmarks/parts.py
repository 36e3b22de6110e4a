"""What each thing that this library adds to the method contributes after training: methods of `accuracy/parts.toml`."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from mvq.allocate import fit_codewords, layer_fisher
from mvq.bench import LEARNED, Method, Point, own_masks
from mvq.nn import cluster_
from mvq.recover import equalize_


def _packed(name: str, label: str, *, equal: bool = False, weighed: bool = False, learned: bool = False) -> Method:
    """Packed codewords, and what else is on."""

    def compress(model: nn.Module, point: Point) -> nn.Module:
        recipe = fit_codewords(model, replace(point.recipe, codewords="packed"), point.target_bits)
        if equal:
            equalize_(model, recipe)
        importance = layer_fisher(model, point.calibration, seed=point.seed) if weighed else None
        return cluster_(model, recipe, importance=importance, soft=learned)

    # At one RMS the weights are others, their errors not comparable.
    return Method(
        name=name,
        label=label,
        source="this library",
        compress=compress,
        masks=own_masks,
        clusters=not equal,
        settings=LEARNED if learned else "",
    )


def equalized() -> Method:
    """Layers at one RMS, which the batch norm behind undoes."""
    return _packed("equalized", "packed, layers of equal RMS", equal=True)


def sensitive() -> Method:
    """K-means weighed by what a change of each layer's weights does to the output, for the shared codebook."""
    return _packed("sensitive", "packed, layers weighed", weighed=True)


def both() -> Method:
    """The two together."""
    return _packed("both", "packed, layers of equal RMS and weighed", equal=True, weighed=True)


def reassigned() -> Method:
    """The two together, with assignments that follow training."""
    return _packed(
        "reassigned", "packed, equal RMS, weighed, assignments learned", equal=True, weighed=True, learned=True
    )
