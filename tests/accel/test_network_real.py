"""Integer networks of real pretrained networks on real images."""

import numpy as np
import pytest
import torch
from benchmarks.networks import REGISTRY
from integer_nets import onnx_activations, snr_db

import mvq

pytest.importorskip("onnxruntime")

#: Network -> images to calibrate with, images to check, least signal-to-noise ratio of the results.
FAST = {"resnet20": (100, 100, 25.0)}
SLOW = {
    "resnet32": (100, 100, 24.0),
    "mobilenet_v1": (32, 16, 16.0),
    "mobilenet_v2": (32, 16, 16.0),
    "squeezenet1_1": (32, 16, 20.0),
    # Its SiLU inputs reach 100 where most are below 1: eight bits for a whole tensor do not carry them.
    "yolox_nano": (8, 2, 3.0),
    "deeplab_v3": (4, 1, 10.0),
}


@pytest.fixture(autouse=True)
def _data(data_root, monkeypatch):
    monkeypatch.setenv("MVQ_DATA", str(data_root))


def batches(adapter, split, limit):
    batch = min(limit, 8)
    return [inputs for inputs, _ in adapter.data(split=split, limit=limit, batch_size=batch)]


def check(name, n_calibration, n_images, least_db):
    adapter = REGISTRY[name]
    model = adapter.build()
    network = mvq.integer_network(model, batches(adapter, "train", n_calibration))
    found, expected = [], []
    for inputs in batches(adapter, "val", n_images):
        activations = network.activations(inputs.numpy())
        other = onnx_activations(network, inputs.numpy())
        for tensor, values in activations.items():
            np.testing.assert_array_equal(other[tensor], values, err_msg=tensor)
        found.append(activations[network.outputs[0]])
        with torch.no_grad():
            expected.append(model(inputs).numpy())
    exact, ours = np.concatenate(expected), np.concatenate(found)
    assert snr_db(exact, ours) >= least_db
    return exact, ours


@pytest.mark.parametrize("name", FAST)
def test_real_network(name):
    exact, ours = check(name, *FAST[name])
    assert (exact.argmax(1) == ours.argmax(1)).mean() >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_real_networks(name):
    check(name, *SLOW[name])


@pytest.mark.slow
def test_accuracy_of_integers():
    """On all 700 images the top-1 of ResNet-20 stays within a point."""
    adapter = REGISTRY["resnet20"]
    network = mvq.integer_network(adapter.build(), batches(adapter, "train", 400))
    right = total = 0
    for inputs, labels in adapter.data(split="val"):
        right += int((network.run(inputs.numpy()).argmax(1) == labels.numpy()).sum())
        total += len(labels)
    assert total == 700
    assert 100 * right / total >= adapter.baseline["top1"] - 1
