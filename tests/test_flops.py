"""Dense and executed multiply-accumulates."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from mvq import Recipe
from mvq.errors import ModelError
from mvq.flops import count
from mvq.nn import NMMask, cluster_, prune_
from mvq.nn.layers import attach, plan

RECIPE = Recipe(n_codewords=4, first_conv="compress")


@pytest.mark.parametrize(("build", "dense"), [(resnet18, 1_814_073_344), (resnet50, 4_089_184_256)])
def test_published_counts_of_resnets(build, dense: int) -> None:
    with torch.device("meta"):
        flops = count(build(), torch.empty(1, 3, 224, 224))
    assert flops.dense == flops.executed == dense
    assert sum(layer.dense for layer in flops.layers) == dense


def test_resnet18_at_4_16_executes_0_54_g() -> None:
    model = prune_(resnet18(), Recipe(classifier="int8"))
    flops = count(model, torch.zeros(1, 3, 224, 224))
    assert flops.dense == 1_814_073_344
    # conv1 118013952 and fc 512000 in full, a quarter of the rest
    assert flops.executed == 118_013_952 + 512_000 + (1_814_073_344 - 118_013_952 - 512_000) // 4
    assert round(flops.executed / 1e9, 2) == 0.54


@pytest.mark.parametrize(("build", "dense", "executed"), [(resnet18, 1.81, 0.54), (resnet50, 4.09, 1.11)])
@pytest.mark.parametrize("classifier", ["compress", "int8"])
def test_resnets_at_4_16_to_the_digits_of_the_paper(build, dense: float, executed: float, classifier: str) -> None:
    """Either way: of the 1000 classes' products all are executed, or those of 252 kept outputs at each input."""
    recipe = Recipe(pattern="4:16", classifier=classifier)
    with torch.device("meta"):
        model = build()
    full = 0
    for name, module, layer in plan(model, recipe):
        if layer.treatment == "compress":
            attach(module, NMMask(name, recipe, layer.pattern, torch.empty_like(module.weight, dtype=torch.bool)))
        elif name == "fc":
            full = 3 * module.weight.numel() // 4
    flops = count(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert round(flops.dense / 1e9, 2) == dense
    assert round(flops.executed / 1e9, 2) == executed
    padding = 0 if full else module.in_features * (252 - 250)
    conv1 = 118_013_952
    assert flops.executed == conv1 + (flops.dense - conv1) // 4 + full + padding


def test_layers_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 40, 1, groups=4),
        nn.Flatten(),
        nn.Linear(40 * 25, 3),
    ).train()
    macs = [(layer.name, layer.dense) for layer in count(model, torch.zeros(2, 4, 10, 10)).layers]
    assert macs == [("0", 2 * 8 * 25 * 36), ("1", 2 * 8 * 25 * 9), ("2", 2 * 40 * 25 * 2), ("4", 2 * 3 * 1000)]
    assert all(m.training for m in model.modules())
    cluster_(model, RECIPE)
    executed = {layer.name: layer.executed for layer in count(model, torch.zeros(1, 4, 10, 10)).layers}
    # 8 outputs keep 4; depth-wise is int8; 40 keep 4 + 4 + 4; 3 keep 3
    assert executed == {"0": 4 * 25 * 36, "1": 8 * 25 * 9, "2": 12 * 25 * 2, "4": 3 * 1000}


def test_executed_equals_the_weights_that_are_not_zero() -> None:
    model = prune_(nn.Sequential(nn.Conv2d(3, 40, 3, bias=False)), RECIPE)
    flops = count(model, torch.zeros(1, 3, 3, 3))
    assert flops.executed == int((model[0].weight != 0).sum())


def test_uncalled_and_repeated_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x)) + y

    flops = count(Net(), (torch.zeros(1, 4), torch.zeros(1, 4)))
    assert [(layer.name, layer.dense) for layer in flops.layers] == [("a", 32), ("b", 0)]


def test_no_eligible_layer() -> None:
    with pytest.raises(ModelError) as caught:
        count(nn.ReLU(), torch.zeros(1))
    assert str(caught.value) == (
        "model ReLU without eligible layers: it has no nn.Conv2d and no nn.Linear; give the model that holds them"
    )
