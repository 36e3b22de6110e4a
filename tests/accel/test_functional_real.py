"""Real compressed networks on real images, from their packed words."""

import dataclasses

import numpy as np
import pytest
from benchmarks.networks import REGISTRY
from real_nets import integer_network_of

from mvq.accel.functional import Machine, run_images
from mvq.accel.spec import preset
from mvq.recipe import Recipe

NETWORK = {"scope": "network", "first_conv": "int8", "classifier": "int8"}


@pytest.fixture(autouse=True)
def _data(data_root, monkeypatch):
    monkeypatch.setenv("MVQ_DATA", str(data_root))


def check(name, recipe, machine, n_calibration, n_images):
    """Every tensor of every image is that of the integer network; returns top-1 of both."""
    adapter, network = REGISTRY[name], integer_network_of(name, recipe, n_calibration)
    laid = Machine(network, dataclasses.replace(preset(machine), pattern=recipe.pattern, d=recipe.d))
    right = [0, 0]
    for inputs, labels in adapter.data(split="val", limit=n_images, batch_size=8):
        wanted = network.activations(inputs.numpy())
        found = run_images(laid, inputs.numpy(), keep=tuple(wanted))
        for tensor, values in wanted.items():
            np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)
        for i, each in enumerate((wanted, found)):
            right[i] += int((each[network.outputs[0]].argmax(1) == labels.numpy()).sum())
    return right


@pytest.mark.parametrize("machine", ["ews-p-16", "ews-cms-64"])
def test_resnet20(machine):
    codewords = "packed" if machine.startswith("ews-p") else "masked"
    recipe = Recipe(pattern="4:16", d=16, n_codewords=512, codewords=codewords, **NETWORK)
    right = check("resnet20", recipe, machine, 100, 16)
    assert right[0] == right[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "machine"), [("squeezenet1_1", "ews-cms-32"), ("mobilenet_v1", "ews-p-64"), ("mobilenet_v2", "ews-cm-64")]
)
def test_imagenet_networks(name, machine):
    codewords = "packed" if machine.startswith("ews-p") else "masked"
    recipe = Recipe(pattern="1:2", d=8, n_codewords=256, codewords=codewords, first_conv="int8")
    right = check(name, recipe, machine, 32, 16)
    assert right[0] == right[1]
