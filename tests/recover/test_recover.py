"""The whole of recovery on a small network."""

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
from recover_nets import Untraceable, images, residual
from torch import nn

import mvq
from mvq.errors import ConfigError, DataError, ModelError
from mvq.nn.layers import form_of
from mvq.nn.parametrizations import Int8Weight, VQWeight
from mvq.recover import PARTS, RecoverConfig, recover, recover_pruned_, refine_, weight_importance
from mvq.recover.pipeline import gather
from mvq.recover.statistics import input_energies, output_curvature

RECIPE = mvq.Recipe(pattern="1:2", d=4, n_codewords=16)
CONFIG = RecoverConfig(
    images=48, batch_size=16, prune_steps=20, prune_epochs=3, block_steps=20, distill_epochs=3, permute_rounds=20
)


def loss(model, dense, x):
    """Relative squared error of the outputs on images that were not calibrated with."""
    with torch.no_grad():
        return float((model(x) - dense(x)).square().mean() / dense(x).var())


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_without_parts_it_is_pruning_and_clustering():
    ours, plain = residual(), residual()
    assert recover(ours, RECIPE, [], parts=()) is ours
    mvq.cluster_(mvq.prune_(plain, RECIPE), RECIPE)
    assert all(torch.equal(a, b) for a, b in zip(state(ours).values(), state(plain).values(), strict=True))


def test_where_nothing_is_pruned_the_first_half_changes_nothing():
    model, fresh = residual(), residual()
    dense = recover_pruned_(model, dataclasses.replace(RECIPE, pattern="1:1"), [images(48)], config=CONFIG)
    for found in (model, dense):
        assert all(torch.equal(a, b) for a, b in zip(state(found).values(), state(fresh).values(), strict=True))


def test_everything_wins_most_of_the_loss_back():
    dense, fresh = residual(), images(64, seed=9)
    plain = mvq.cluster_(mvq.prune_(residual(), RECIPE), RECIPE)
    model = recover(residual(), RECIPE, images(48).split(20), config=CONFIG)
    assert loss(model, dense, fresh) < 0.3 * loss(plain, dense, fresh)
    forms = {n: form_of(m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert isinstance(forms.pop("stem.0"), Int8Weight)
    assert isinstance(forms.pop("depthwise.0"), Int8Weight)
    assert all(isinstance(form, VQWeight) for form in forms.values())


def test_steps_that_make_a_block_worse_are_undone():
    """At such a rate the first block gets worse; the last finds some use in its biases."""
    model = mvq.cluster_(mvq.prune_(residual(), RECIPE), RECIPE)
    before = state(model)
    refine_(model, residual(), [images(48)], parts=("reconstruct",), config=dataclasses.replace(CONFIG, lr=3.0))
    changed = {name.split(".")[0] for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed <= {"wide", "fc"}


@pytest.mark.parametrize("part", ["compensate", "reconstruct", "batchnorm"])
@pytest.mark.parametrize("changes", [{}, {"codewords": "packed"}, {"scope": "network"}, {"pattern": "1:1"}])
def test_each_part_alone_is_not_worse_than_nothing(part, changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    dense, fresh = residual(), images(64, seed=9)
    plain = mvq.cluster_(mvq.prune_(residual(), recipe), recipe)
    model = recover(residual(), recipe, [images(48)], parts=(part,), config=CONFIG)
    assert loss(model, dense, fresh) < 0.95 * loss(plain, dense, fresh)


def test_importance_lowers_the_error_it_weighs():
    dense, x = residual(), images(48)
    names = ("expand.0", "project.0", "wide", "fc")
    modules = {name: dense.get_submodule(name) for name in names}
    curvature = output_curvature(dense, modules, [x])
    energy = input_energies(dense, modules, [x], 64)

    def weighted(model):
        total = 0.0
        for name, module in modules.items():
            h = weight_importance(module, energy[name], curvature[name])
            total += float((h * (model.get_submodule(name).weight - module.weight).square()).sum())
        return total

    plain = mvq.cluster_(mvq.prune_(residual(), RECIPE), RECIPE)
    model = recover(residual(), RECIPE, [x], parts=("importance",), config=CONFIG)
    with torch.no_grad():
        assert weighted(model) < 0.9 * weighted(plain)


def test_the_result_can_be_saved(tmp_path):
    model = recover(residual(), RECIPE, [images(48)], config=CONFIG)
    mvq.save(model, tmp_path / "a.mvq")
    other = residual(seed=5)
    mvq.load_into(other, tmp_path / "a.mvq")
    torch.testing.assert_close(other(images(4)), model(images(4)), rtol=1e-4, atol=1e-5)


def test_it_is_the_same_every_time_and_modes_are_put_back():
    first, second = residual(), residual()
    first.train()
    first.stem[1].eval()
    recover(first, RECIPE, [images(48)], config=CONFIG)
    recover(second, RECIPE, images(48).split(7), config=CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(second).values(), strict=True))
    assert first.training
    assert first.fc.training
    assert not first.stem[1].training


def test_labels_are_not_read():
    pairs = [(images(48), object())]
    a = recover(residual(), RECIPE, pairs, parts=("batchnorm",), config=CONFIG)
    b = recover(residual(), RECIPE, [images(48)], parts="batchnorm", config=CONFIG)
    assert all(torch.equal(x, y) for x, y in zip(state(a).values(), state(b).values(), strict=True))


def test_distillation_takes_the_loss_of_the_outputs():
    """One that has no slope trains nothing; the squared error brings the networks together."""
    dense, x, seen = residual(), images(48), []

    def flat(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        seen.append(wanted)
        return 0 * found.sum()

    def squared(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (found - wanted).square().mean()

    plain = mvq.cluster_(mvq.prune_(residual(), RECIPE), RECIPE)
    states = {}
    for fn in (flat, squared):
        model = mvq.cluster_(mvq.prune_(residual(), RECIPE), RECIPE)
        config = dataclasses.replace(CONFIG, augment=False)
        states[fn] = state(refine_(model, dense, [x], parts=("distill",), config=config, loss=fn))
        if fn is squared:
            assert loss(model, dense, x) < loss(plain, dense, x)
    assert all(torch.equal(a, b) for a, b in zip(states[flat].values(), state(plain).values(), strict=True))
    with torch.no_grad():
        wanted = dense(x)
    assert any(torch.allclose(seen[0][0], one, atol=1e-4) for one in wanted)


def test_importance_follows_the_score():
    def second_class(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (outputs[:, 1] * torch.randn(len(outputs), generator=generator)).sum()

    def error(**options: Any) -> torch.Tensor:
        model = recover(residual(), RECIPE, [images(48)], parts=("importance",), config=CONFIG, **options)
        with torch.no_grad():
            return (model.fc.weight - residual().fc.weight).square().sum(1)

    assert error(score=second_class)[1] < 0.5 * error()[1]


def test_untraceable_networks_need_permute_left_out():
    with pytest.raises(ModelError, match=r"leave out the part 'permute' to recover it as one block$"):
        recover(Untraceable(), RECIPE, [images(8)], config=CONFIG)
    net = Untraceable()
    dense, plain = copy.deepcopy(net), mvq.cluster_(mvq.prune_(copy.deepcopy(net), RECIPE), RECIPE)
    recover(net, RECIPE, [images(48)], parts=[p for p in PARTS if p != "permute"], config=CONFIG)
    x = images(16, seed=9)
    assert loss(net, dense, x) < 0.7 * loss(plain, dense, x)


def test_any_compressed_network_can_be_refined():
    recipe = dataclasses.replace(RECIPE, pattern="1:1", kmeans="plain", n_codewords=4)
    dense, model, fresh = residual(), mvq.cluster_(residual(), recipe), images(64, seed=9)
    before = loss(model, dense, fresh)
    assert refine_(model, dense, [images(48)], config=CONFIG) is model
    assert loss(model, dense, fresh) < 0.7 * before


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        ([], "calibration holds no images; give at least one batch, and no used-up iterator"),
        ([torch.zeros(0, 3, 4, 4)], "calibration holds no images; give at least one batch, and no used-up iterator"),
        (
            ["x"],
            "calibration yields str where images are expected; give batches of floating-point tensors, or pairs "
            "whose first part is one",
        ),
        (
            [torch.full((2, 3, 1, 1), float("nan"))],
            "calibration: 6 of 6 values are NaN or beyond float16; clean the images",
        ),
        (
            [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 5)],
            "calibration images differ in shape, (3, 4, 4) and (3, 5, 5); resize them to one shape",
        ),
    ],
)
def test_bad_calibration_is_named(calibration, text):
    with pytest.raises(DataError, match=f"^{re.escape(text)}$"):
        recover(residual(), RECIPE, calibration)


def test_gathering_stops_at_the_limit():
    def endless():
        while True:
            yield images(7)

    assert gather(endless(), 16).shape == (16, 3, 12, 12)


def test_activations_beyond_float_are_named():
    net = residual()
    net.expand[1].weight.data.fill_(float("inf"))
    with pytest.raises(
        ModelError, match=r"^recover: outputs of the block at '.*' are NaN or infinite; check the weights"
    ):
        recover(net, RECIPE, [images(8)], parts=("batchnorm",), config=CONFIG)


def test_faults_of_the_options_are_listed_together():
    with pytest.raises(ConfigError) as error:
        RecoverConfig(images=0, lr=-1.0, autocast="half")  # pyright: ignore[reportArgumentType]
    assert str(error.value) == (
        "recover: images=0 is not a whole number of at least 1\n"
        "recover: lr=-1.0 is not positive and finite\n"
        "recover: autocast='half' is not 'bfloat16' or None"
    )
    with pytest.raises(ConfigError) as error:
        recover(residual(), RECIPE, [images(2)], parts=("batchnorm", "magic"))
    assert str(error.value) == f"recover: unknown parts 'magic'; known are {', '.join(PARTS)}"
