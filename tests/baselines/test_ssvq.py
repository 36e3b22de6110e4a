"""SSVQ: the paper's ratio, signs that learn, signs that freeze."""

import math

import pytest
import torch
from rivals import N_WEIGHTS, RECIPE, check_rival, compressed, net

from mvq.baselines.ssvq import SignThrough, SSVQWeight, freezing_threshold, ssvq_, ssvq_bits
from mvq.baselines.vectors import VectorSetting, cluster
from mvq.errors import ConfigError, ModelError
from mvq.grouping import to_subvectors


def form_for(weight: torch.Tensor, *, freeze_every: int = 8, alpha: float = 1.0) -> SSVQWeight:
    clusters = cluster(weight.abs(), VectorSetting(3, 4), seed=0)
    return SSVQWeight("layer", RECIPE, weight, clusters, alpha=alpha, freeze_every=freeze_every)


def test_ratios_as_published() -> None:
    """DeiT-tiny at "21x" has k = 16, d = 8; 16x is k = 256, d = 8. A projection of DeiT-tiny is 768 x 192."""
    shape = (768, 192)
    indices_and_signs = ssvq_bits(shape, 16, 8) - 8 * 16 * 8 - 32
    assert 32 * math.prod(shape) / indices_and_signs == pytest.approx(64 / 3)
    assert 32 * math.prod(shape) / ssvq_bits(shape, 16, 8) == pytest.approx(21, abs=0.3)
    assert 32 * math.prod(shape) / (ssvq_bits(shape, 256, 8) - 8 * 256 * 8 - 32) == 16


def test_starts_as_codewords_of_magnitudes_with_the_signs_of_the_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(14, 5, 3, 3)
    out = form_for(weight)().detach()
    assert torch.equal(out >= 0, weight >= 0)
    clusters = cluster(weight.abs(), VectorSetting(3, 4), seed=0)
    expected = clusters.codebook[clusters.assignments.long()]
    torch.testing.assert_close(to_subvectors(out.abs(), 4)[: 3 * 45], expected[: 3 * 45], atol=0.05, rtol=0)


def test_gradients() -> None:
    logits = torch.tensor([-2.0, 0.0, 0.5], requires_grad=True)
    signs: torch.Tensor = SignThrough.apply(logits)  # type: ignore[assignment]
    assert signs.tolist() == [-1, 1, 1]
    (signs * torch.tensor([3.0, 4.0, 5.0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [3, 4, 5]

    torch.manual_seed(0)
    form, upstream = form_for(torch.randn(8, 6)), torch.randn(8, 6)
    out = form()
    (out * upstream).sum().backward()
    torch.testing.assert_close(form.logits.grad, upstream * out.detach().abs())
    # Codewords: the mean over members of the gradient times the sign.
    grad = torch.zeros_like(form.codebook.values)
    signed = to_subvectors(upstream * out.detach().sign(), 4)
    for row, label in zip(signed, form.assignments.tolist(), strict=True):
        grad[label] += row / (form.assignments == label).sum()
    torch.testing.assert_close(form.codebook.values.grad, grad)


def test_threshold_falls_as_a_cosine() -> None:
    assert [freezing_threshold(p) for p in (0, 0.5, 1)] == pytest.approx([0.04, 0.025, 0.01])


def test_oscillating_signs_freeze_at_their_majority() -> None:
    form = form_for(torch.ones(4, 4))
    signs = {
        (0, 0): [1, -1, 1, 1, -1, 1, 1, 1],  # oscillates, mostly positive
        (1, 1): [1, -1, -1, -1, 1, -1, -1, -1],  # oscillates, mostly negative
        (2, 2): [1, 1, 1, 1, 1, -1, -1, -1],  # changes once
    }
    for step in range(8):
        with torch.no_grad():
            for where, values in signs.items():
                form.logits[where] = values[step]
        form.after_step(step, 100)
        assert bool((form.frozen != 0).any()) == (step == 7)
    expected = torch.zeros(4, 4, dtype=torch.int8)
    expected[0, 0], expected[1, 1] = 1, -1
    assert torch.equal(form.frozen, expected)
    assert not form.n_flips.any()
    with torch.no_grad():
        form.logits.neg_()
    out = form()
    assert out[0, 0] > 0
    assert out[1, 1] < 0
    assert out[3, 3] < 0
    # A frozen sign is out of training.
    out.sum().backward()
    assert form.logits.grad is not None
    assert form.logits.grad[0, 0] == 0
    assert form.logits.grad[3, 3] != 0


def test_trains_and_hardens_to_what_it_stores() -> None:
    model = check_rival(ssvq_, 2.2)
    for form, weight in compressed(model):
        assert isinstance(form, SSVQWeight)
        k, d = form.codebook.values.shape
        whole = len(weight) // d * d
        assert len(to_subvectors(weight[:whole].abs(), d).unique(dim=0)) <= k
        scale = float(form.codebook.scale().detach())
        assert len((weight / scale).round().unique()) <= 256
        assert (form.frozen != 0).all()
        assert form.stored_bits() == ssvq_bits(weight.shape, k, d)


def test_errors() -> None:
    with pytest.raises(ConfigError, match=rf"^ssvq: {N_WEIGHTS} bits are out of reach; .* size is 1\d{{4}} bits"):
        ssvq_(net(), RECIPE, N_WEIGHTS)
    model = ssvq_(net(), RECIPE, 2 * N_WEIGHTS)
    with pytest.raises(ModelError) as caught:
        model[2].weight = torch.zeros(48, 16, 3, 3)  # type: ignore[index,union-attr]
    assert str(caught.value) == (
        "layer '2': its weight is computed from a codebook and cannot be assigned; bake_ the model first, or change "
        "the codewords"
    )
