"""PQF: the bound, the order of channels, annealed k-means, and a whole small network."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import batch, small_net
from torch import nn
from torchvision.models import resnet18, resnet50

from mvq import Recipe
from mvq.baselines.forms import compressed_bits, rival_forms
from mvq.baselines.pqf import (
    PqfOptions,
    _decider,
    _Moments,
    _swapped,
    best_order,
    distortion_bound,
    permute_channels_,
    pqf_,
)
from mvq.baselines.product import ProductWeight, blocks, lloyd
from mvq.errors import ConfigError, ModelError
from mvq.nn import Int8Weight, prune_
from mvq.nn.layers import form_of, plan
from mvq.recover.permute import free_spaces
from mvq.train import finetune

RECIPE = Recipe(overrides={"hidden": {"treatment": "skip"}})
TARGET = 60_000
FAST = PqfOptions(n_iters=5, n_swaps=50)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bound_by_hand() -> None:
    # Variances 1, 4, 16: geometric mean 4; 8 codewords for 3 values are a bit a value, a quarter of the error
    assert distortion_bound(np.diag([1.0, 4.0, 16.0]), 8) == pytest.approx(3 * 4 / 4)
    assert distortion_bound(np.eye(2), 1) == pytest.approx(2)


def test_kmeans_of_gaussian_vectors_stays_above_the_bound() -> None:
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    vectors = torch.from_numpy(np.random.default_rng(0).multivariate_normal([0, 0], covariance, 20_000)).float()
    for k in (4, 16, 64):
        error = lloyd(vectors, k, n_iters=40, generator=generator()).objective[-1] / len(vectors)
        bound = distortion_bound(covariance, k)
        assert bound < error < 2.5 * bound


def log_det(values, order, lanes) -> float:
    """Slow and obvious: reorder, cut into blocks, `np.cov`."""
    vectors = values[:, order].reshape(len(values), -1, lanes * values.shape[2]).reshape(-1, lanes * values.shape[2])
    covariance = np.atleast_2d(np.cov(vectors, rowvar=False, bias=True))
    ridge = 1e-6 * values.var() * np.eye(len(covariance))
    return float(np.linalg.slogdet(covariance + ridge)[1])


def scaled(rng, n_out: int, n_channels: int, width: int):
    """Weights whose channels differ in size and mean."""
    sizes = np.exp(rng.normal(size=n_channels))[None, :, None]
    return (sizes * (rng.normal(size=(n_out, n_channels, width)) + 0.3)).astype(np.float32)


@given(seed=st.integers(0, 2**31), lanes=st.sampled_from([1, 2, 4]), width=st.sampled_from([1, 4, 9]))
def test_determinant_agrees_with_the_slow_one(seed: int, lanes: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    values = scaled(rng, 12, 8, width)
    source = _Moments(values, lanes)
    order = rng.permutation(8)
    assert source.log_det(order) == pytest.approx(log_det(values, order, lanes), abs=1e-4)
    swapped, best = _swapped(source, order, 20, rng)
    assert sorted(swapped) == list(range(8))
    assert best == pytest.approx(log_det(values, swapped, lanes), abs=1e-4)
    assert best <= source.log_det(order) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_order_comes_near_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = scaled(rng, 16, 6, 1)
    order = best_order(values, 2, n_swaps=300, rng=rng)
    every = sorted(log_det(values, np.array(p), 2) for p in itertools.permutations(range(6)))
    assert order is not None
    assert log_det(values, order, 2) <= every[len(every) // 50]
    assert log_det(values, order, 2) < log_det(values, np.arange(6), 2)


def test_start_minimises_the_product_of_variances() -> None:
    rng = np.random.default_rng(3)
    values = scaled(rng, 400, 6, 1)
    values -= values.mean(0)

    def product(order) -> float:
        return float(np.prod((values[:, order].reshape(400, 2, 3) ** 2).mean(axis=(0, 1))))

    order = best_order(values, 3, n_swaps=0, rng=rng)
    assert order is not None
    assert product(order) == pytest.approx(min(product(p) for p in map(list, itertools.permutations(range(6)))))


def test_no_order_where_nothing_is_gained() -> None:
    values = scaled(np.random.default_rng(1), 8, 4, 1)
    assert best_order(values, 4, n_swaps=10, rng=np.random.default_rng(0)) is None
    order = best_order(values, 2, n_swaps=200, rng=np.random.default_rng(0))
    again = values if order is None else values[:, order]
    assert best_order(again, 2, n_swaps=0, rng=np.random.default_rng(0)) is None


@pytest.mark.parametrize(("build", "n_spaces"), [(resnet18, 12), (resnet50, 37)])
def test_resnets_have_the_published_sets_of_channels(build, n_spaces: int) -> None:
    with torch.device("meta"):
        model = build()
    spaces = free_spaces(model)
    assert len(spaces) == n_spaces
    stream = next(s for s in spaces if "layer4.0.downsample.0" in s.makers)
    last = ["conv2", "bn2"] if build is resnet18 else ["conv3", "bn3"]
    blocks_of_4 = 2 if build is resnet18 else 3
    assert set(stream.makers) == {
        *(f"layer4.{i}.{name}" for i in range(blocks_of_4) for name in last),
        *("layer4.0.downsample.0", "layer4.0.downsample.1"),
    }
    assert {name for name, _ in stream.users} == {"fc", *(f"layer4.{i}.conv1" for i in range(1, blocks_of_4))}


def test_the_first_layer_with_several_channels_a_block_decides() -> None:
    model = resnet18()
    stream = next(s for s in free_spaces(model) if "layer4.0.downsample.0" in s.makers)
    weight, lanes = _decider(model, stream, {"layer4.1.conv1": 9, "fc": 4})
    assert weight is not None
    assert (weight.shape, lanes) == ((1000, 512, 1), 4)
    weight, lanes = _decider(model, stream, {"layer4.1.conv1": 18, "fc": 4})
    assert weight is not None
    assert (weight.shape, lanes) == ((512, 512, 9), 2)
    assert _decider(model, stream, {"layer4.1.conv1": 9}) == (None, 0)
    assert _decider(model, stream, {"layer4.1.conv1": 6, "fc": 1}) == (None, 0)


@pytest.mark.parametrize("build", [small_net, resnet18])
def test_permutation_keeps_the_function_and_lowers_the_determinants(build) -> None:
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    before = copy.deepcopy(model)
    x = batch()[0]
    # Blocks of two kernels, four channels elsewhere
    compressed = [name for name, _, layer in plan(model, Recipe()) if layer.treatment == "compress"]
    sizes = {name: 18 if model.get_submodule(name).weight[0, 0].numel() == 9 else 4 for name in compressed}
    n_changed = permute_channels_(model, sizes, 40, seed=1)
    assert n_changed == {small_net: 2, resnet18: 12}[build]
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-5)
    for space in free_spaces(before):
        weight, lanes = _decider(before, space, sizes)
        if weight is not None:
            after, _ = _decider(model, space, sizes)
            n = np.arange(space.size)
            assert log_det(after, n, lanes) <= log_det(weight, n, lanes)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) if x.sum() > 0 else self.net(-x)


def test_a_model_that_cannot_be_traced_keeps_its_order() -> None:
    model = Untraceable()
    before = copy.deepcopy(model.state_dict())
    assert permute_channels_(model, {"net.layer1.conv1": 18}, 10) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_permuting_makes_quantization_easier() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 8, 1)).eval()
    with torch.no_grad():
        model[2].weight.mul_(torch.randn(32, 1, 1).exp() ** 2)

    def error() -> float:
        return lloyd(blocks(model[2].weight, 8), 16, n_iters=50, generator=generator()).objective[-1]

    before = error()
    assert permute_channels_(model, {"2": 8}, 500) == 1
    assert error() < 0.6 * before


def test_annealing_ends_without_noise_and_beats_plain_kmeans() -> None:
    vectors = torch.randn(600, 8, generator=generator(2))
    shares = []

    def noise(i: int) -> float:
        shares.append((1 - i / 50) ** 0.5)
        return shares[-1]

    annealed = [lloyd(vectors, 64, n_iters=51, generator=generator(s), noise=noise) for s in range(3)]
    plain = [lloyd(vectors, 64, n_iters=51, generator=generator(s)) for s in range(3)]
    assert shares[:51:25] == [1, 0.5**0.5, 0]
    for found in annealed:
        for k in range(64):
            members = vectors[found.codes == k]
            assert len(members) == 0 or torch.allclose(found.codebook[k], members.mean(0), atol=1e-5)
    assert sum(f.objective[-1] for f in annealed) < sum(f.objective[-1] for f in plain)


def test_whole_network() -> None:
    model = small_net().eval()
    pqf_(model, RECIPE, TARGET, options=FAST)
    layers = ["layer1.conv1", "layer1.conv2", "layer1.down", "layer2.conv1", "layer2.conv2", "layer2.down", "fc"]
    assert [form.layer for form in rival_forms(model)] == layers
    assert all(isinstance(form, ProductWeight) for form in rival_forms(model))
    assert isinstance(form_of(model.stem), Int8Weight)
    assert form_of(model.hidden) is None
    assert 0.9 * TARGET <= compressed_bits(model) <= 1.01 * TARGET
    history = finetune(model, [batch(8)], epochs=8, lr=1e-2, schedule=None)
    assert history[-1].loss < history[0].loss


def test_the_seed_decides_and_state_goes_to_another_copy() -> None:
    one, same, other = (pqf_(small_net(), RECIPE, TARGET, seed=s, options=FAST).eval() for s in (0, 0, 1))
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    x = batch()[0]
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_codebooks_are_of_the_reordered_weights() -> None:
    model = small_net()
    quantized = pqf_(copy.deepcopy(model), RECIPE, 60_000, options=PqfOptions(n_iters=20, n_swaps=50))
    sizes = {form.layer: form.codebook.shape[1] for form in rival_forms(quantized)}
    assert permute_channels_(model, sizes, 50) > 0
    with torch.no_grad():
        for form in rival_forms(quantized):
            weight = model.get_submodule(form.layer).weight
            assert (form() - weight).square().mean() < 0.6 * weight.var()


def test_errors() -> None:
    def rendered(kind: type[Exception], call) -> str:
        with pytest.raises(kind) as caught:
            call()
        return str(caught.value)

    assert rendered(ModelError, lambda: pqf_(prune_(small_net(), RECIPE), RECIPE, TARGET)) == (
        "pqf_: layer 'layer1.conv1' is already pruned or compressed; bake_ the model to start again"
    )
    assert rendered(ConfigError, lambda: PqfOptions(n_iters=0, n_swaps=-1)) == (
        "pqf_: n_iters=0 is not a whole number of at least 1\npqf_: n_swaps=-1 is not a whole number of at least 0"
    )
