"""Reordering channels: nothing that the network computes may change."""

import itertools

import pytest
import torch
import torchvision
from recover_nets import Untraceable, images, randomised, residual
from torch import nn

import mvq
from mvq.errors import ModelError
from mvq.nn import eligible_layers
from mvq.patterns import Pattern
from mvq.prune import magnitude_mask, weight_mask
from mvq.recover import permute_
from mvq.recover.permute import best_order

RECIPE = mvq.Recipe(pattern="1:2", d=4)


def kept_energy(model):
    """Squared weights that magnitude masks keep, and where each weight sits."""
    total = 0.0
    for _, module, role in eligible_layers(model):
        if role not in ("first_conv", "depthwise"):
            weight = module.weight.detach().numpy()
            mask = weight_mask(magnitude_mask(weight, Pattern(1, 2), 4), weight.shape)
            total += float((weight[mask].astype("float64") ** 2).sum())
    return total


@pytest.mark.parametrize(
    ("name", "n_changed"), [("mobilenet_v2", 20), ("resnet18", 11), ("squeezenet1_1", 20), ("mobilenet_v3_small", 10)]
)
def test_the_function_stays(name, n_changed):
    torch.manual_seed(0)
    model = randomised(getattr(torchvision.models, name)(num_classes=10)).double()
    x = images(2, 32).double()
    before, energy = model(x), kept_energy(model)
    assert permute_(model, RECIPE, rounds=3) >= n_changed
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
    assert kept_energy(model) > energy


def test_residual_channels_share_one_order():
    model, x = residual(), images(4)
    stem, project = model.stem[0].weight.clone(), model.project[0].weight.clone()
    before = model(x)
    permute_(model, RECIPE)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    order = [next(j for j in range(16) if torch.equal(row, stem[j])) for row in model.stem[0].weight]
    assert order != list(range(16))
    # Columns of the projection moved with the expanded channels, its rows with the stem's.
    torch.testing.assert_close(model.project[0].weight.sum(1), project[order].sum(1))


def test_the_order_of_outputs_is_fixed():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1)).eval()
    last = net[2].weight.detach().flatten(1).clone()
    permute_(net, RECIPE)
    assert torch.equal(last.sort(1).values, net[2].weight.flatten(1).sort(1).values)


@pytest.mark.parametrize(
    "tail",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(16 * 4, 10)),
        nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(4, 8, 1)),
        nn.Sequential(nn.Conv2d(16, 16, 1, groups=4), nn.Conv2d(16, 8, 1)),
        nn.Sequential(nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 1)),
        nn.Sequential(nn.PReLU(16), nn.Conv2d(16, 8, 1)),
    ],
)
def test_operations_that_mix_channels_fix_the_order(tail):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), tail).eval()
    if isinstance(tail[0], nn.PReLU):
        nn.init.uniform_(tail[0].weight)
    x = images(2, 2)
    before = net(x)
    permute_(net, mvq.Recipe(pattern="1:2", d=4, first_conv="compress"))
    torch.testing.assert_close(net(x), before)


def test_a_layer_used_twice_keeps_its_order():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x))))

    net, x = Twice().eval(), images(2)
    before = net(x)
    permute_(net, mvq.Recipe(pattern="1:2", d=4, first_conv="compress"))
    torch.testing.assert_close(net(x), before)


def test_swaps_find_the_best_pairs():
    scores = torch.rand(6, 40, generator=torch.Generator().manual_seed(2))

    def kept(order):
        return float(scores[torch.as_tensor(order)].reshape(3, 2, 40).amax(1).sum())

    best = max(kept(order) for order in itertools.permutations(range(6)))
    order = best_order(scores, 1, 2, rounds=50, seed=0)
    assert sorted(order.tolist()) == list(range(6))
    assert kept(order) > 0.5 * (best + kept(range(6)))
    assert torch.equal(order, best_order(scores, 1, 2, rounds=50, seed=0))


def test_channels_beyond_the_last_group_stay():
    order = best_order(torch.rand(11, 9), 2, 4, rounds=30, seed=0)
    assert order[8:].tolist() == [8, 9, 10]
    assert sorted(order.tolist()) == list(range(11))


def test_nothing_to_gain_is_no_order():
    assert best_order(torch.eye(8)[:, :1].expand(8, 3) * 0 + 1, 1, 2, rounds=20, seed=0) is None
    assert best_order(torch.rand(2, 3), 1, 2, rounds=20, seed=0) is None


def test_untraceable_networks_are_refused_untouched():
    net = Untraceable()
    with pytest.raises(ModelError, match=r"^model Untraceable cannot be traced by torch.fx"):
        permute_(net, RECIPE)
