"""Sparse training, from pruning to clustering."""

import pytest
import torch
from ddp_worker import RECIPE, data, net
from torch import nn

from mvq import Recipe
from mvq.errors import ConfigError, ModelError
from mvq.nn import cluster_, extract, prune_
from mvq.nn.functional import magnitude_mask
from mvq.train import mask_flips, sparse_train
from mvq.train.config import OPTIMIZERS
from mvq.train.trainer import masks_of


def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: form.mask.clone() for name, _, form in masks_of(model)}


@pytest.mark.parametrize("method", ["sr-ste", "asp"])
def test_masks_follow_or_stay(method: str) -> None:
    model = net()
    start = masks(prune_(net(), RECIPE))
    flips = []
    history = sparse_train(
        model, RECIPE, data(), method=method, epochs=4, lr=0.1, on_step=lambda *_: flips.append(mask_flips(model))
    )
    assert history[-1].loss < 0.9 * history[0].loss
    end = masks(model)
    assert start.keys() == end.keys()
    moved = any(not torch.equal(start[name], end[name]) for name in start)
    assert moved == (method == "sr-ste") == (max(flips) > 0)
    assert flips[0] == 0
    for _, module, form in masks_of(model):
        if method == "sr-ste":
            weight = module.parametrizations.weight.original
            assert torch.equal(form.mask, magnitude_mask(weight, form.pattern))
    cluster_(model, RECIPE)
    extract(model)


@pytest.mark.parametrize(("ema", "step"), [(None, 3), (0.9, 2)])
def test_masks_are_those_of_the_weights_the_model_ends_with(ema: float | None, step: int) -> None:
    model = net()

    def turn(at: int, loss: float) -> None:
        if at == step:
            with torch.no_grad():
                for _, module, _ in masks_of(model):
                    module.parametrizations.weight.original.copy_(module.parametrizations.weight.original.flip(0))

    sparse_train(model, RECIPE, data(), ema=ema, on_step=turn)
    for _, module, form in masks_of(model):
        assert torch.equal(form.mask, magnitude_mask(module.parametrizations.weight.original, form.pattern))


def test_defaults_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[dict] = []
    monkeypatch.setitem(OPTIMIZERS, "sgd", lambda gs: groups.extend(gs) or torch.optim.SGD(gs, momentum=0.9))
    rates: list[float] = []
    model = net()
    # 48 steps, of which 2 warm up
    sparse_train(model, RECIPE, data((8, 8)), epochs=24, on_step=lambda *_: rates.append(groups[0]["lr"]))
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert rates[-1] < 1e-4
    assert {g["weight_decay"] for g in groups} == {0, 5e-5}
    assert {form.decay for _, _, form in masks_of(model)} == {5e-4}


def test_a_pruned_model_goes_on() -> None:
    recipe = Recipe(pattern="2:4", d=4, n_codewords=8, overrides={"3": {"pattern": "1:4"}})
    model = prune_(net(), recipe)
    sparse_train(model, recipe, data(), decay=1e-3)
    assert {name: (str(f.pattern), f.decay) for name, _, f in masks_of(model)} == {
        "3": ("1:4", 1e-3),
        "7": ("2:4", 1e-3),
        "9": ("2:4", 1e-3),
    }
    with pytest.raises(ModelError) as caught:
        sparse_train(model, RECIPE, data())
    assert str(caught.value) == (
        "sparse_train: the model was pruned with another recipe; use that one, or bake_ the model first:\n"
        "  layer '3' is pruned 1:4, the recipe says 2:4"
    )
    with pytest.raises(ConfigError) as caught:
        sparse_train(model, recipe, data(), method="ste")  # type: ignore[arg-type]
    assert str(caught.value) == "sparse_train: method='ste' is not one of sr-ste, asp"
    with pytest.raises(ConfigError) as caught:
        sparse_train(model, recipe, data(), decay=-1)
    assert str(caught.value) == "sparse_train: decay=-1 is not at least 0 and finite"
