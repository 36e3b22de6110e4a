"""DKM against naive attention, hard k-means, and the authors' sizes."""

import math

import pytest
import torch
from rivals import N_WEIGHTS, RECIPE, check_rival, compressed, net

from mvq.baselines import dkm
from mvq.baselines.dkm import DKMWeight, attention, dkm_, dkm_bits
from mvq.baselines.vectors import LANES, VectorSetting, choose, cluster
from mvq.cluster import assign
from mvq.errors import ConfigError, ModelError
from mvq.grouping import to_subvectors


def form_for(weight: torch.Tensor, codebook: torch.Tensor, tau: float) -> DKMWeight:
    return DKMWeight("layer", RECIPE, weight, codebook, tau=tau)


def naive(rows: torch.Tensor, codebook: torch.Tensor, tau: float, n_iters: int) -> torch.Tensor:
    """The layer as the paper writes it, with explicit distances."""
    for _ in range(n_iters):
        distances = (rows[:, None] - codebook[None]).square().sum(2)
        shares = torch.softmax(-distances / tau, 1)
        codebook = (shares[:, :, None] * rows[:, None]).sum(0) / shares.sum(0)[:, None]
    return shares @ codebook


@pytest.mark.parametrize("part", [1 << 24, 64])
def test_forward_and_gradient_are_those_of_the_naive_formula(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dkm, "_PART", part)
    monkeypatch.setattr(dkm, "_EPSILON", 0.0)
    torch.manual_seed(0)
    weight, codebook, upstream = torch.randn(12, 5, 3, 3), torch.randn(8, 4), torch.randn(12, 5, 3, 3)
    form = form_for(weight, codebook, 0.7)
    out = form()
    (out * upstream).sum().backward()

    dense = weight.clone().requires_grad_()
    expected = naive(to_subvectors(dense, 4), codebook, 0.7, 5)
    torch.testing.assert_close(to_subvectors(out, 4), expected, rtol=1e-4, atol=1e-5)
    (expected * to_subvectors(upstream, 4)).sum().backward()
    torch.testing.assert_close(form.latent.grad, dense.grad, rtol=1e-3, atol=1e-5)


def test_without_temperature_it_is_hard_kmeans() -> None:
    torch.manual_seed(1)
    weight, codebook = torch.randn(32, 6), torch.randn(6, 4)
    rows, start = to_subvectors(weight, 4), codebook
    for _ in range(5):
        labels, _ = assign(rows, torch.ones_like(rows, dtype=torch.bool), codebook)
        before = codebook
        codebook = torch.stack(
            [rows[labels == j].mean(0) if (labels == j).any() else before[j] for j in range(len(before))]
        )
    form = form_for(weight, start, 1e-7)
    torch.testing.assert_close(to_subvectors(form(), 4), codebook[labels.long()])
    torch.testing.assert_close(form.codebook, codebook)
    shares = attention(rows, codebook, 1e-7)
    assert torch.equal(shares.amax(1), torch.ones(len(rows)))


def test_codewords_are_kept_for_the_next_step_and_not_by_evaluation() -> None:
    torch.manual_seed(2)
    form = form_for(torch.randn(16, 9), torch.randn(4, 4), 0.5)
    form.eval()
    before = form.codebook.clone()
    rows = to_subvectors(form(), 4)
    assert torch.equal(form.codebook, before)
    assert len(rows.unique(dim=0)) <= 4
    form.train()
    form()
    assert not torch.equal(form.codebook, before)


# Kernel shapes of the networks the authors report, as (shape, count).
def resnet50() -> list[tuple[int, ...]]:
    shapes, n_in = [], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, n_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, n_in, 1, 1))
            n_in = 4 * width
    return shapes


def test_size_of_resnet50_as_published() -> None:
    """3.3 MB (29.4x) with 6 bits for 6 weights of convolutions, for 4 of the classifier, first convolution 8 bits."""
    convs = resnet50()
    assert sum(map(math.prod, convs)) == 23_445_504
    # Subvectors of the paper do not pad; 64 channels would make 66 here.
    codebook = dkm_bits((6, 1), 64, 6) - 6
    bits = sum(math.prod(shape) * 6 / 6 + codebook for shape in convs)
    bits += dkm_bits((1000, 2048), 64, 4) + 8 * 64 * 3 * 49
    biases = 32 * (26_560 + 1000)  # batch norm folded
    assert (bits + biases) / 8 / 2**20 == pytest.approx(3.3, abs=0.05)
    assert 25_557_032 * 32 / (bits + biases) == pytest.approx(29.4, abs=0.1)


def test_bits() -> None:
    # 2 groups of 8 channels, 3 * 9 positions: 54 indices of 5 bits and 32 float16 codewords.
    assert dkm_bits((16, 3, 3, 3), 32, 8) == 54 * 5 + 16 * 32 * 8
    assert dkm_bits((17, 3, 3, 3), 32, 8) == 81 * 5 + 16 * 32 * 8


def test_trains_and_hardens_to_what_it_stores() -> None:
    model = check_rival(dkm_, 2.0)
    for form, weight in compressed(model):
        assert isinstance(form, DKMWeight)
        k, d = form.codebook.shape
        padded = torch.cat([weight, weight.new_zeros(-len(weight) % d, *weight.shape[1:])])
        if len(weight) % d == 0:
            assert len(to_subvectors(padded, d).unique(dim=0)) <= k
        assert torch.equal(form.codebook, form.codebook.half().float())
        assert form.stored_bits() == dkm_bits(weight.shape, k, d)


def test_setting_is_the_best_of_the_nearest_sizes() -> None:
    weights = {"a": net()[2].weight.detach(), "b": net()[4].weight.detach()}  # type: ignore[union-attr]
    target = 2 * sum(w.numel() for w in weights.values())

    def size(setting: VectorSetting) -> int:
        return sum(dkm_bits(w.shape, setting.n_codewords(w.shape), setting.d) for w in weights.values())

    def error(setting: VectorSetting) -> float:
        return sum(cluster(w, setting, seed=0, max_iters=5).sse / float(w.square().mean()) for w in weights.values())

    chosen = choose(weights, target, dkm_bits, method="dkm", seed=0)
    options = [VectorSetting(b, d) for b in range(1, 11) for d in LANES]
    largest = max(size(option) for option in options if size(option) <= 1.01 * target)
    rivals = [option for option in options if 0.95 * largest <= size(option) <= 1.01 * target]
    assert len(rivals) > 1
    assert error(chosen) == pytest.approx(min(map(error, rivals)))


def test_setting_fits_the_weight() -> None:
    """32 different columns of 16 lanes: only those lanes and codewords have no error."""
    torch.manual_seed(0)
    weight = torch.randn(32, 16)[torch.randint(32, (800,))].reshape(4, 200, 16).transpose(1, 2).reshape(64, 200)
    target = dkm_bits((64, 200), 32, 16)
    assert choose({"a": weight}, target, dkm_bits, method="dkm", seed=0) == VectorSetting(5, 16)


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"^dkm: 100 bits are out of reach; the nearest reachable size is \d+ bits"):
        dkm_(net(), RECIPE, 100)
    with pytest.raises(ConfigError) as caught:
        dkm_(net(), RECIPE, N_WEIGHTS, tau=0.0)
    assert str(caught.value) == "dkm: tau=0.0 is not positive; it divides squared distances"
    model = dkm_(net(), RECIPE, 3 * N_WEIGHTS)
    with pytest.raises(ModelError) as twice:
        dkm_(model, RECIPE, 3 * N_WEIGHTS)
    assert str(twice.value) == "layer '0' is already compressed; bake_ the model to start again"
