"""Product quantization: published sizes, settings of a wanted size, k-means, and the weight form."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from mvq import Recipe
from mvq.baselines.product import (
    LARGE_BLOCKS_RESNET18,
    LARGE_BLOCKS_RESNET50,
    SMALL_BLOCKS,
    ProductWeight,
    Setting,
    lloyd,
    nearest,
    setting,
    settings_for,
)
from mvq.cluster import reference
from mvq.errors import ConfigError, ModelError
from mvq.nn.layers import attach


@pytest.mark.parametrize(
    ("build", "regime", "classifier", "megabytes", "ratio"),
    [
        (resnet18, SMALL_BLOCKS, 2048, 1.54, 29),
        (resnet18, LARGE_BLOCKS_RESNET18, 2048, 1.03, 43),
        (resnet50, SMALL_BLOCKS, 1024, 5.09, 19),
        (resnet50, LARGE_BLOCKS_RESNET50, 1024, 3.19, 31),
    ],
)
def test_published_sizes_of_both_methods(build, regime, classifier, megabytes, ratio) -> None:
    """256 codewords, the first convolution and all other parameters in float32, megabytes of 2^20 bytes."""
    with torch.device("meta"):
        model = build()
    bits = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name == "conv1.weight":
            bits += 32 * parameter.numel()
        else:
            bits += setting(parameter.shape, regime, classifier if name == "fc.weight" else 256).bits(parameter.shape)
    dense = 4 * sum(p.numel() for p in model.parameters())
    assert round(bits / 8 / 2**20, 2) == megabytes
    assert round(8 * dense / bits) == ratio


def test_setting_by_hand() -> None:
    # 64 blocks of 9 in each of 64 rows; a quarter of 4096 allows 1024
    assert setting((64, 64, 3, 3), SMALL_BLOCKS, 4096) == Setting(9, 1024)
    assert setting((64, 64, 3, 3), LARGE_BLOCKS_RESNET18, 256) == Setting(18, 256)
    # 27 values a row: 18 does not divide them, 9 does
    assert setting((16, 3, 3, 3), LARGE_BLOCKS_RESNET18, 256) == Setting(9, 8)
    assert setting((10, 7), SMALL_BLOCKS, 256) == Setting(1, 16)
    assert setting((1, 3, 1, 1), SMALL_BLOCKS, 256) == Setting(3, 1)
    assert Setting(9, 256).bits((64, 64, 3, 3)) == 64 * 64 * 8 + 256 * 9 * 16
    assert Setting(3, 1).bits((1, 3, 1, 1)) == 48


def random(shapes):
    return {name: torch.randn(shape, generator=generator(i)) for i, (name, shape) in enumerate(shapes.items())}


SHAPES = {"a": (64, 32, 3, 3), "b": (64, 64, 3, 3), "c": (128, 64, 1, 1), "d": (50, 128)}


@pytest.mark.parametrize("target", [20_000, 45_678, 80_000, 123_456, 200_000])
def test_settings_come_near_the_target_from_below(target: int) -> None:
    chosen = settings_for(random(SHAPES), target, method="m")
    bits = sum(chosen[name].bits(shape) for name, shape in SHAPES.items())
    assert 0.9 * target <= bits <= 1.01 * target
    for name, shape in SHAPES.items():
        n_blocks = math.prod(shape) // chosen[name].d
        assert n_blocks * chosen[name].d == math.prod(shape)
        assert chosen[name].n_codewords <= n_blocks / 4
        assert chosen[name].n_codewords.bit_count() == 1


@pytest.mark.parametrize(("kernels", "other"), [(1, Setting(3, 16)), (2, Setting(9, 256))])
def test_settings_follow_the_structure_of_the_weights(kernels: int, other: Setting) -> None:
    """Of two settings of one size the one that finds the few blocks which the weight is made of wins."""
    wanted = Setting(9 * kernels, 256)
    words = torch.randn(128, wanted.d, generator=generator())
    codes = torch.randint(0, len(words), (128 * 64 // kernels,), generator=generator(1))
    weight = words[codes].reshape(128, 64, 3, 3)
    target = wanted.bits(weight.shape)
    assert 0.9 * target < other.bits(weight.shape) <= target
    assert settings_for({"a": weight}, target, method="m") == {"a": wanted}


def test_sizes_out_of_reach() -> None:
    weights = random({"a": (8, 4, 3, 3)})
    # 96 blocks of 3: one bit each, two codewords
    with pytest.raises(ConfigError) as caught:
        settings_for(weights, 10, method="bgd_")
    assert str(caught.value) == (
        "bgd_: 10 bits for 288 weights in 1 layers are out of reach; the nearest reachable size is 192 bits"
    )
    # 8 codewords for 32 blocks are the most
    with pytest.raises(ConfigError) as caught:
        settings_for(weights, 32 * 288, method="pqf_")
    assert str(caught.value) == (
        "pqf_: 9216 bits for 288 weights in 1 layers are out of reach; the nearest reachable size is 1248 bits"
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "d", "k"), [(50, 3, 1), (64, 9, 8), (300, 4, 32)])
def test_lloyd_is_plain_kmeans(n: int, d: int, k: int) -> None:
    vectors = torch.randn(n, d, generator=generator(3))
    found = lloyd(vectors, k, n_iters=4, generator=generator())
    start = vectors[torch.randperm(n, generator=generator())[:k]].numpy()
    mask = np.ones((n, d), bool)
    slow = start.astype(np.float64)
    for _ in range(len(found.objective)):
        codes, _ = reference.assign(vectors.numpy(), mask, slow)
        slow = reference.update(vectors.numpy(), mask, codes, slow)
    assert found.codes.tolist() == codes.tolist()
    np.testing.assert_allclose(found.codebook.numpy(), slow, atol=1e-5)
    assert found.objective[-1] == pytest.approx(((vectors.numpy() - slow[codes]) ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_objective_never_rises_and_no_cluster_is_empty(seed: int) -> None:
    centres = torch.randn(6, 4, generator=generator(seed))
    vectors = centres.repeat(40, 1) + 0.01 * torch.randn(240, 4, generator=generator(seed + 10))
    vectors[:100] = vectors[0]  # starts coincide
    found = lloyd(vectors, 60, n_iters=30, generator=generator(seed))
    assert all(b <= a * (1 + 1e-6) for a, b in zip(found.objective, found.objective[1:], strict=False))
    assert len(found.objective) > 1
    assert (torch.bincount(found.codes, minlength=60) > 0).all()


def test_equal_vectors_leave_codewords_unused() -> None:
    found = lloyd(torch.ones(20, 3), 4, n_iters=5, generator=generator())
    assert found.objective[-1] == 0
    assert torch.isfinite(found.codebook).all()


def test_nearest_takes_the_lowest_of_equals() -> None:
    assert nearest(torch.zeros(2, 2), torch.tensor([[1.0, 0], [0, 1], [-1, 0]])).tolist() == [0, 0]


def form(shape=(4, 2, 3, 3), d: int = 6, k: int = 5) -> ProductWeight:
    codes = torch.randint(0, k, (math.prod(shape) // d,), generator=generator())
    return ProductWeight("x", Recipe(), shape, torch.randn(k, d, generator=generator(1)), codes)


def test_form_decodes_block_by_block() -> None:
    weight = form()
    dense = weight()
    rows = dense.reshape(4, 18)
    for row in range(4):
        for block in range(3):
            codeword = weight.codebook[weight.codes[row, block]]
            assert torch.equal(rows[row, 6 * block : 6 * block + 6], codeword)
    assert weight.stored_bits() == 12 * 3 + 5 * 6 * 16


def test_gradient_of_a_codeword_is_the_sum_over_its_blocks() -> None:
    weight = form()
    slope = torch.randn(4, 2, 3, 3, generator=generator(2))
    (weight() * slope).sum().backward()
    for k in range(5):
        expected = slope.reshape(-1, 6)[weight.codes.flatten() == k].sum(0)
        assert torch.allclose(weight.codebook.grad[k], expected, atol=1e-6)


def test_hardened_codewords_are_float16() -> None:
    weight = form()
    before = weight.codebook.detach().clone()
    weight.harden_()
    assert torch.equal(weight.codebook, before.half().float())
    assert not torch.equal(weight.codebook, before)


def test_form_on_a_layer() -> None:
    layer = nn.Conv2d(2, 4, 3)
    attach(layer, form())
    copied = copy.deepcopy(layer)
    state = layer.state_dict()
    assert set(state) == {"bias", "parametrizations.weight.0.codebook", "parametrizations.weight.0.codes"}
    with torch.no_grad():
        copied.parametrizations.weight[0].codebook.zero_()
    copied.load_state_dict(state)
    x = torch.randn(1, 2, 5, 5, generator=generator())
    assert torch.equal(copied(x), layer(x))
    with pytest.raises(ModelError) as caught:
        layer.weight = torch.zeros(4, 2, 3, 3)
    assert str(caught.value) == (
        "layer 'x': its weight is computed from a codebook and cannot be assigned; bake_ the model first, or change "
        "the codewords"
    )
