"""Exported networks in ONNX Runtime, which knows nothing of this library."""

import numpy as np
import pytest
import torch
import torchvision
from integer_nets import images, onnx_activations, settled
from small_nets import batch, small_net
from test_network_lowering import OPERATIONS
from torch import nn

import mvq
from mvq.accel.network import from_torch, to_onnx, write_onnx
from mvq.accel.network.export import _chunks
from mvq.errors import FileError, MissingDependencyError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def check(network, x, *, optimized=False):
    """Every tensor, bit for bit."""
    found = onnx_activations(network, x, optimized=optimized)
    expected = network.activations(x)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert values.dtype == found[name].dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("model", OPERATIONS.values(), ids=OPERATIONS)
def test_operation(model):
    network = from_torch(model.float().eval(), [images(2, 12)])
    check(network, 1.5 * images(3, 12, seed=5).numpy())


def test_compressed_residual_network():
    net = settled(small_net(), size=16)
    recipe = mvq.Recipe(pattern="4:16", d=16, n_codewords=32, max_iters=3)
    mvq.prune_(net, recipe)
    mvq.cluster_(net, recipe)
    check(mvq.integer_network(net, [batch(8)[0]]), images(8, 16).numpy())


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
)
@pytest.mark.parametrize("optimized", [False, True])
def test_torchvision_network(name, optimized):
    torch.manual_seed(0)
    model = settled(getattr(torchvision.models, name)(num_classes=50), size=48)
    check(from_torch(model, [images(2, 48)]), images(2, 48, seed=4).numpy(), optimized=optimized)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "resnext50_32x4d", "googlenet", "mnasnet0_5"])
def test_more_torchvision_networks(name):
    torch.manual_seed(0)
    extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = settled(getattr(torchvision.models, name)(num_classes=50, **extra), size=64)
    check(from_torch(model, [images(2, 64)]), images(2, 64, seed=4).numpy())


def test_sums_beyond_float32():
    """Largest products of one sign: a single float32 convolution could not hold every sum."""
    model = nn.Sequential(nn.Conv2d(1800, 2, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(1 + 0.001 * torch.rand(2, 1800, 1, 1))
    x = 1 + 0.01 * images(1, 3, channels=1800).clamp(-1, 1)
    network = from_torch(model, [x], method="max")
    assert len(_chunks(network.codes["0"], 1)) == 2
    assert network.activations(x.numpy())["_0"].max() > 1 << 24
    check(network, x.numpy())
    check(network, x.numpy(), optimized=True)


def test_form_of_the_model(tmp_path):
    network = mvq.integer_network(small_net().eval(), [batch(4)[0]])
    assert write_onnx(network, tmp_path / "a.onnx") == (tmp_path / "a.onnx").stat().st_size
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model == to_onnx(network)
    assert model.opset_import[0].version == 17
    kinds = [node.op_type for node in model.graph.node]
    n_tensors = sum(spec.dtype == "int8" for spec in network.tensors.values())
    # Reshaping moves int8 values as they are.
    assert kinds.count("QuantizeLinear") == n_tensors - 1
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["N", 3, 16, 16], ["N", 10]]
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    assert all(any(np.array_equal(codes, w) for w in weights) for codes in network.codes.values())
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["mvq.psum_bits"] == "32"
    assert f'"{network.input}": {network.tensors[network.input].scale}' in properties["mvq.scales"]


def test_failures(tmp_path, monkeypatch):
    network = from_torch(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), [images(1, 4)])
    with pytest.raises(FileError):
        write_onnx(network, tmp_path / "none" / "a.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependencyError) as error:
        to_onnx(network)
    assert str(error.value) == "exporting to ONNX needs onnx; install it with: pip install 'mvq[accel]'"
