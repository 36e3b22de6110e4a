"""mvq: masked vector quantization of convolutional networks.

    recipe = mvq.Recipe(pattern="4:16", d=16, n_codewords=512)
    mvq.prune_(model, recipe)
    mvq.cluster_(model, recipe)
    mvq.finetune(model, train_loader)
    mvq.save(model, "model.mvq")
    mvq.load_into(model, "model.mvq")

Names are imported on first use, so that `import mvq` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mvq import (
        accel,
        allocate,
        baselines,
        bench,
        cluster,
        codebook,
        compressed,
        flops,
        format,
        nn,
        prune,
        recover,
        sizes,
        tasks,
        train,
    )
    from mvq.api import compress, integer_network, load, load_into, save
    from mvq.errors import MvqError
    from mvq.nn import bake_, cluster_, prune_
    from mvq.patterns import Pattern
    from mvq.recipe import LayerRecipe, Recipe
    from mvq.train import finetune

_HOMES = {
    "LayerRecipe": "mvq.recipe",
    "MvqError": "mvq.errors",
    "Pattern": "mvq.patterns",
    "Recipe": "mvq.recipe",
    "bake_": "mvq.nn",
    "cluster_": "mvq.nn",
    "compress": "mvq.api",
    "finetune": "mvq.train",
    "integer_network": "mvq.api",
    "load": "mvq.api",
    "load_into": "mvq.api",
    "prune_": "mvq.nn",
    "save": "mvq.api",
}
_PARTS = (
    "accel",
    "allocate",
    "baselines",
    "bench",
    "cluster",
    "codebook",
    "compressed",
    "flops",
    "format",
    "nn",
    "prune",
    "recover",
    "sizes",
    "tasks",
    "train",
)

__all__ = [
    "LayerRecipe",
    "MvqError",
    "Pattern",
    "Recipe",
    "__version__",
    "accel",
    "allocate",
    "bake_",
    "baselines",
    "bench",
    "cluster",
    "cluster_",
    "codebook",
    "compress",
    "compressed",
    "finetune",
    "flops",
    "format",
    "integer_network",
    "load",
    "load_into",
    "nn",
    "prune",
    "prune_",
    "recover",
    "save",
    "sizes",
    "tasks",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PARTS:
        return importlib.import_module(f"mvq.{name}")
    raise AttributeError(f"module 'mvq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
