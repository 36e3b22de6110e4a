"""Masks that follow the weights."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import batch, small_net

from mvq import Recipe
from mvq.errors import ConfigError
from mvq.nn import NMMask, bake_, cluster_, extract, prune_
from mvq.nn.functional import magnitude_mask
from mvq.patterns import Pattern
from mvq.prune import magnitude_mask as reference_mask
from mvq.prune import weight_mask

RECIPE = Recipe(n_codewords=8)


@given(
    st.integers(1, 40), st.integers(1, 5), st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(0, 9)
)
def test_masks_equal_those_of_the_reference(
    n_out: int, n_in: int, keep: int, more: int, blocks: int, seed: int
) -> None:
    """Few distinct values: most comparisons are ties."""
    pattern = Pattern(keep, keep + more - 1)
    d = blocks * pattern.group
    weight = np.random.default_rng(seed).integers(-2, 3, (n_out, n_in, 2)).astype(np.float32)
    want = weight_mask(reference_mask(weight, pattern, d), weight.shape)
    assert (magnitude_mask(torch.from_numpy(weight), pattern).numpy() == want).all()
    half = torch.from_numpy(weight).to(torch.bfloat16)
    assert (magnitude_mask(half, pattern).numpy() == want).all()


def form_and_weight(model: torch.nn.Module) -> tuple[NMMask, torch.nn.Parameter]:
    parts = model.layer1.conv1.parametrizations.weight
    return parts[0], parts.original


def test_forward_and_gradient_are_those_of_sr_ste() -> None:
    model = prune_(small_net(), RECIPE, method="sr-ste", decay=0.25)
    form, weight = form_and_weight(model)
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    kept = magnitude_mask(weight, form.pattern)
    assert not torch.equal(form.mask, kept)
    model.eval()
    assert torch.equal(model.layer1.conv1.weight, weight * form.mask)
    model.train()
    n_changed = int((form.mask != kept).sum())
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    out = model.layer1.conv1.weight
    # A later forward that changes the buffer leaves this one's gradient alone
    with torch.no_grad():
        flipped = weight.flip(0)
    form(flipped)
    form.mask.copy_(kept)
    (out * upstream).sum().backward()
    assert torch.equal(out, weight * kept)
    assert torch.allclose(weight.grad, upstream + 0.25 * torch.where(kept, 0.0, weight))
    form.mask.fill_(False)
    form(weight)
    assert form.n_flips == int(kept.sum())
    assert n_changed > 0


def test_frozen_masks_stay() -> None:
    model = prune_(small_net(), RECIPE, method="sr-ste")
    form, weight = form_and_weight(model)
    assert repr(form) == "NMMask(pattern=4:16, decay=0.0005)"
    before = form.mask.clone()
    form.freeze_()
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    model.train()
    assert torch.equal(model.layer1.conv1.weight, weight * before)
    assert torch.equal(form.update_mask_(weight), before)
    assert (form.n_flips, form.decay, repr(form)) == (0, None, "NMMask(pattern=4:16)")


def test_state_copies_and_later_steps() -> None:
    model = prune_(small_net(), RECIPE, method="sr-ste").train()
    with torch.no_grad():
        form_and_weight(model)[1].mul_(torch.rand(32, 1, 1, 1))
    model(batch()[0])
    other = prune_(small_net(2), RECIPE, method="sr-ste")
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    for one in (model, other, twin):
        one.eval()
    assert torch.equal(model(batch()[0]), other(batch()[0]))
    mask = form_and_weight(model)[0].mask.clone()
    clustered = cluster_(twin, RECIPE)
    kept = bake_(clustered).layer1.conv1.weight != 0
    assert not (kept & ~mask).any()
    extract(cluster_(other, RECIPE))


def test_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        prune_(small_net(), RECIPE, method="ste")  # type: ignore[arg-type]
    assert str(caught.value) == "prune_: method='ste' is not one of asp, sr-ste"
    with pytest.raises(ConfigError) as caught:
        prune_(small_net(), RECIPE, method="sr-ste", decay=float("nan"))
    assert str(caught.value) == "prune_: decay=nan is not at least 0 and finite"
