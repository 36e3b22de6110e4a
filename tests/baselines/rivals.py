"""A small network and the checks that every rival's weight has to pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mvq.baselines.forms import RivalForm, compressed_bits, rival_forms
from mvq.nn import Int8Weight
from mvq.nn.layers import form_of
from mvq.recipe import Recipe
from mvq.train import finetune

#: First convolution int8, the other three layers compressed; 40 channels are no multiple of most d and M.
RECIPE = Recipe()
N_WEIGHTS = 48 * 16 * 9 + 40 * 48 + 40 * 10
N_STEPS = 25


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2),
        nn.ReLU(),
        nn.Conv2d(16, 48, 3),
        nn.ReLU(),
        nn.Conv2d(48, 40, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 10),
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that differ in colour, so that a few steps are enough to learn something."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(32) % 10
    colours = torch.randn(10, 3, 1, 1, generator=generator)
    return colours[targets] + 0.3 * torch.randn(32, 3, 12, 12, generator=generator), targets


def train_and_harden(model: nn.Module, n_steps: int = N_STEPS) -> list[float]:
    """Losses of the steps, as the harness trains."""
    forms, losses = list(rival_forms(model)), []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        for form in forms:
            form.after_step(step, n_steps)

    finetune(model, [data()] * n_steps, lr=3e-3, on_step=on_step)
    for form in forms:
        form.harden_()
    return losses


def compressed(model: nn.Module) -> list[tuple[RivalForm, torch.Tensor]]:
    """Forms and the weights they give."""
    pairs = []
    for module in model.modules():
        form = form_of(module) if isinstance(module, (nn.Conv2d, nn.Linear)) else None
        if isinstance(form, RivalForm):
            pairs.append((form, module.weight.detach()))  # type: ignore[union-attr]
    return pairs


def check_rival(method_: Callable[..., nn.Module], bits_per_weight: float, **options: Any) -> nn.Module:
    """Size, training, hardening and `state_dict` of a method; the trained model, hard."""
    target = round(bits_per_weight * N_WEIGHTS)
    model = method_(net(), RECIPE, target, calibration=[data()], seed=3, **options)
    assert 0.9 * target < compressed_bits(model) <= 1.01 * target
    first = model[0]
    assert isinstance(form_of(first), Int8Weight)
    assert len(compressed(model)) == 3
    bits = compressed_bits(model)
    losses = train_and_harden(model)
    assert losses[-1] < 0.95 * losses[0]
    assert compressed_bits(model) == bits

    hard = {i: w.clone() for i, (_, w) in enumerate(compressed(model))}
    model.train()
    assert all(torch.equal(w, hard[i]) for i, (_, w) in enumerate(compressed(model)))
    model.eval()
    assert all(torch.equal(w, hard[i]) for i, (_, w) in enumerate(compressed(model)))

    other = method_(net(1), RECIPE, target, seed=4, **options).eval()
    state = copy.deepcopy(model.state_dict())
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(other(data()[0]), model(data()[0]))
    return model
