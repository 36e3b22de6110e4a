"""BGD: moments of inputs against loops, EM in their metric, and a whole small network."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import batch, small_net
from torch import nn

from mvq import Recipe
from mvq.baselines.bgd import BgdOptions, bgd_, input_moment, quantize
from mvq.baselines.forms import compressed_bits, rival_forms
from mvq.baselines.product import ProductWeight, Setting, blocks, lloyd
from mvq.errors import ConfigError, DataError, ModelError
from mvq.nn import Int8Weight, prune_
from mvq.nn.layers import form_of
from mvq.train import finetune

RECIPE = Recipe(overrides={"hidden": {"treatment": "skip"}})
LAYERS = ["layer1.conv1", "layer1.conv2", "layer1.down", "layer2.conv1", "layer2.conv2", "layer2.down", "fc"]
TARGET = 60_000
FAST = BgdOptions(n_iters=5, layer_steps=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loader(n: int = 2):
    return [batch(8) for _ in range(n)]


@pytest.mark.parametrize(
    ("layer", "d", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), 9, (2, 4, 5, 6)),
        (nn.Conv2d(4, 6, (3, 1), stride=2, padding=(2, 0), dilation=(2, 1)), 6, (10, 4, 7, 5)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), 18, (1, 4, 5, 5)),
        (nn.Conv2d(4, 6, 1, groups=2), 2, (2, 4, 3, 3)),
        (nn.Linear(8, 3), 4, (2, 5, 8)),
    ],
)
def test_moment_is_that_of_the_rows_a_weight_meets(layer, d, shape) -> None:
    """The slow way: the gradient of one output value with respect to the weight is the row of inputs behind it."""
    x = torch.randn(shape, generator=generator())
    moment = input_moment(layer, layer, [(x, None)], d, 1)
    outputs = layer(x)
    channel_last = isinstance(layer, nn.Linear)
    outputs = outputs if channel_last else outputs.movedim(1, -1)
    groups = getattr(layer, "groups", 1)
    expected = torch.zeros(d, d)
    for positions in outputs.reshape(-1, outputs.shape[-1]):
        for group in range(groups):
            channel = group * len(positions) // groups
            (row,) = torch.autograd.grad(positions[channel], layer.weight, retain_graph=True)
            cut = row[channel].reshape(-1, d)
            expected += cut.T @ cut
    np.testing.assert_allclose(moment.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_moment_takes_whole_batches_until_enough_images() -> None:
    layer = nn.Linear(4, 2)
    batches = [(torch.full((3, 4), float(i)), None) for i in (1, 2, 4)]
    # Three rows each of one block of four: 3 * 1 + 3 * 4
    assert input_moment(layer, layer, batches, 4, 4)[0, 0] == 15
    with pytest.raises(DataError) as caught:
        input_moment(layer, layer, iter(()), 4, 4)
    assert str(caught.value) == ("bgd_: calibration yields no batch; give it data, or a list, not a used-up iterator")


@pytest.mark.parametrize("moment", [torch.eye(4), 7 * torch.eye(4), torch.zeros(4, 4)])
def test_uncorrelated_inputs_give_plain_kmeans(moment) -> None:
    weight = torch.randn(32, 16, generator=generator(1))
    found = quantize(weight, Setting(4, 8), moment, n_iters=6, generator=generator())
    plain = lloyd(blocks(weight, 4), 8, n_iters=6, generator=generator())
    assert torch.equal(found.codes, plain.codes)
    torch.testing.assert_close(found.codebook, plain.codebook)


def inputs(n: int = 4000, d: int = 6) -> torch.Tensor:
    mixing = torch.randn(d, d, generator=generator(5)) * torch.logspace(0, -2, d)
    return torch.randn(n, d, generator=generator(6)) @ mixing.T


def output_error(weight, found, x) -> float:
    difference = blocks(weight, x.shape[1]) - found.codebook[found.codes]
    return float((x @ difference.T).double().square().sum())


def test_objective_is_the_output_error_and_never_rises() -> None:
    weight, x = torch.randn(40, 12, generator=generator(1)), inputs()
    moment = x.T.double() @ x.double()
    found = quantize(weight, Setting(6, 16), moment, n_iters=25, generator=generator())
    assert len(found.objective) > 3
    assert all(b <= a * (1 + 1e-6) for a, b in zip(found.objective, found.objective[1:], strict=False))
    scale = float(moment.trace()) / 6
    ridge = 1e-4 * scale * float((blocks(weight, 6) - found.codebook[found.codes]).square().sum())
    assert found.objective[-1] * scale == pytest.approx(output_error(weight, found, x) + ridge, rel=1e-3)


def test_output_error_is_below_that_of_plain_kmeans() -> None:
    weight, x = torch.randn(40, 12, generator=generator(1)), inputs()
    found = quantize(weight, Setting(6, 16), x.T @ x, n_iters=25, generator=generator())
    plain = lloyd(blocks(weight, 6), 16, n_iters=25, generator=generator())
    assert output_error(weight, found, x) < 0.5 * output_error(weight, plain, x)


def test_whole_network() -> None:
    model = small_net().eval()
    model.layer1.train()
    dense = {name: p.clone() for name, p in model.named_parameters()}
    bgd_(model, RECIPE, TARGET, calibration=loader(), options=FAST)
    assert [form.layer for form in rival_forms(model)] == LAYERS
    assert all(isinstance(form, ProductWeight) for form in rival_forms(model))
    assert isinstance(form_of(model.stem), Int8Weight)
    assert isinstance(form_of(model.dw), Int8Weight)
    assert torch.equal(model.hidden.weight, dense["hidden.weight"])
    assert 0.9 * TARGET <= compressed_bits(model) <= 1.01 * TARGET
    assert model.layer1.training
    assert not model.layer2.training
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_decides() -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        return bgd_(small_net(), RECIPE, TARGET, calibration=loader(), seed=seed, options=FAST).state_dict()

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def kl(model: nn.Module, teacher: nn.Module) -> float:
    x = batch(8)[0]
    with torch.no_grad():
        wanted = teacher.eval()(x).softmax(1)
        return float(F.kl_div(model.eval()(x).log_softmax(1), wanted, reduction="batchmean"))


def test_training_of_codewords_brings_the_outputs_nearer() -> None:
    teacher = small_net()
    with torch.no_grad():
        teacher.fc.weight.mul_(20)  # outputs that differ from uniform ones
    errors = [
        kl(
            bgd_(
                copy.deepcopy(teacher),
                RECIPE,
                TARGET,
                calibration=loader(),
                options=BgdOptions(n_iters=5, layer_steps=steps),
            ),
            teacher,
        )
        for steps in (0, 30)
    ]
    assert errors[1] < 0.97 * errors[0]


def test_state_dict_goes_to_another_copy_and_finetuning_lowers_the_loss() -> None:
    one, other = (bgd_(small_net(i), RECIPE, TARGET, calibration=loader(), seed=i, options=FAST) for i in range(2))
    other.load_state_dict(one.state_dict())
    x = batch(8)[0]
    assert torch.equal(one.eval()(x), other.eval()(x))
    codes = [form.codes.clone() for form in rival_forms(one)]
    history = finetune(one, loader(), epochs=6, lr=1e-2, schedule=None)
    assert history[-1].loss < history[0].loss
    assert all(torch.equal(a, form.codes) for a, form in zip(codes, rival_forms(one), strict=True))


def test_an_objective_of_ones_own() -> None:
    seen = []

    def objective(model: nn.Module, batch) -> torch.Tensor:
        seen.append(batch[1])
        return F.cross_entropy(model(batch[0]), batch[1])

    bgd_(small_net(), RECIPE, TARGET, calibration=loader(), options=FAST, objective=objective)
    assert len(seen) == 2 * len(LAYERS)


def test_errors() -> None:
    def rendered(kind: type[Exception], call) -> str:
        with pytest.raises(kind) as caught:
            call()
        return str(caught.value)

    assert rendered(ConfigError, lambda: bgd_(small_net(), RECIPE, TARGET)) == (
        "bgd_: it weighs errors by a layer's inputs; give calibration, a loader of (inputs, targets)"
    )
    assert rendered(ModelError, lambda: bgd_(prune_(small_net(), RECIPE), RECIPE, TARGET, calibration=loader())) == (
        "bgd_: layer 'layer1.conv1' is already pruned or compressed; bake_ the model to start again"
    )
    none = Recipe(classifier="int8", overrides={"layer*": {"treatment": "int8"}, "hidden": {"treatment": "skip"}})
    assert rendered(ModelError, lambda: bgd_(small_net(), none, TARGET, calibration=loader())) == (
        "bgd_: the recipe compresses none of the 10 layers; leave at least one"
    )
    assert rendered(ConfigError, lambda: BgdOptions(n_iters=0, layer_steps=True)) == (
        "bgd_: n_iters=0 is not a whole number of at least 1\n"
        "bgd_: layer_steps=True is not a whole number of at least 0"
    )
