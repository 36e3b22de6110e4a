"""The embedded default: a study on handwritten digits that needs no download."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import mvq
from mvq.bench.methods import METHODS
from mvq.bench.study import Budget, Network, Output, Size, Study
from mvq.demo import DENSE_EPOCHS, digits, network
from mvq.recipe import Recipe


def trained(folder: Path | None = None) -> nn.Module:
    """The demo's network, trained on its digits; kept in the folder, where one is given."""
    from safetensors.torch import load_file, save_file

    from mvq.train import finetune

    path = None if folder is None else folder / f"digits-{mvq.__version__}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
        if path is not None and path.is_file():
            model.load_state_dict(load_file(path))
            return model
        finetune(model, digits("train", 64), epochs=DENSE_EPOCHS, lr=3e-3)
    if path is not None:
        partial = path.with_suffix(".partial")
        save_file(model.state_dict(), partial)
        partial.replace(path)
    return model


def digits_study(folder: str | Path, methods: tuple[str, ...] = tuple(METHODS)) -> Study:
    """All methods at two sizes on the digits; a few minutes.

    Args:
        folder: receives all files.
        methods: which ones.
    """
    folder = Path(folder)
    return Study(
        name="digits",
        title="Handwritten digits",
        about="The demo's network (221 thousand weights) on 514 test images of scikit-learn's handwritten digits.",
        networks=(Network(name="digitnet", model="mvq.bench.builtin:trained"),),
        train="mvq.demo:digits",
        evaluate={"val": "mvq.demo:digits"},
        recipe=Recipe(scope="network"),
        sizes=(
            Size(ratio=16, pattern="1:2", d=8),
            Size(ratio=22, pattern="4:16", d=16, without=tuple(m for m in ("uniform",) if m in methods)),
        ),
        methods=methods,
        seeds=(0, 1),
        budget=Budget(n_steps=160, batch_size=64, sparse_share=0.5, calibration_images=256),
        sparse={"lr": 2e-3},
        finetune={"lr": 2e-3},
        distillation={"temperature": 4.0, "weight": 0.9},
        output=Output(
            rows=str(folder / "rows.csv"),
            work=str(folder / "work"),
            report=str(folder / "results.md"),
            images=str(folder / "img"),
        ),
    )
