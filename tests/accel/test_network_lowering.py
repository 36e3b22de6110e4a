"""From torch modules to integer operations."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from integer_nets import images, settled, snr_db
from small_nets import batch, small_net
from torch import nn
from torch.nn import functional

import mvq
from mvq.accel.network import from_torch
from mvq.accel.network.arithmetic import MAX_BIAS
from mvq.accel.network.calibration import METHODS, Observer
from mvq.accel.network.graph import Add, Affine, AveragePool, Conv, Dequantize, Linear, Lookup, Pad, Rescale
from mvq.errors import ConfigError, DataError, ModelError, PsumOverflowError
from mvq.nn import extract


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Call(nn.Module):
    """A function as a module; what comes after keeps its result int8."""

    def __init__(self, function, *modules: nn.Module, end: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.parts, self.end = function, nn.ModuleList(modules), end or nn.Identity()

    def forward(self, x):
        return self.end(self.function(x, *self.parts))


def conv(*args, bn=True, gamma=1.0, **kwargs):
    torch.manual_seed(len(args))
    norm = nn.BatchNorm2d(args[1])
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, -1.5 * gamma, 1.5 * gamma)
    nn.init.uniform_(norm.bias, -1, 1)
    return nn.Sequential(nn.Conv2d(*args, **kwargs), *([norm] if bn else []))


def on_codes(model, network, x):
    """The float network on the values that the integer network works with: quantized images and weights."""
    scale = network.tensors[network.input].scale
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                layer = next(layer for layer in network.weights.layers if layer.name == name)
                module.weight.copy_(torch.from_numpy(layer.dense()))
        coded = torch.from_numpy(network.activations(x.numpy())[network.input]).double() * scale
        return model.double()(coded).numpy()


SHAPES = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "uneven": {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
    "same": {"padding": "same", "dilation": 2},
    "grouped": {"groups": 3},
    "depthwise": {"groups": 6, "padding": 1},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_convolution_with_folded_batch_norm(settings, bn):
    """Within half a step of the same layer in float64; half the gammas are negative."""
    model = nn.Sequential(conv(6, 12, 3, bn=bn, **settings), nn.ReLU()).eval()
    x = images(3, 9, channels=6)
    network = from_torch(model, [x], method="max")
    (node,) = [n for n in network.nodes if isinstance(n, Conv)]
    assert node.requantization is not None
    assert (node.requantization.low, node.requantization.high) == (0, 127)
    negative = (node.requantization.mantissa < 0).sum()
    assert 0 < negative < 12 if bn else negative == 0
    found = network.run(x.numpy())
    step = network.tensors[node.name].scale
    # Calibration saw the images before they were quantized; the largest result may have grown beyond the range.
    assert np.abs(found - np.minimum(on_codes(model, network, x), 127 * step)).max() <= 0.51 * step


def test_codes_do_not_change_with_the_batch_norm():
    model = nn.Sequential(conv(3, 8, 3), nn.ReLU()).eval()
    codes = from_torch(model, [images(2, 8)]).codes["0.0"]
    with torch.no_grad():
        model[0][1].weight.mul_(-3.7)
    np.testing.assert_array_equal(from_torch(model, [images(2, 8)]).codes["0.0"], codes)


@pytest.mark.parametrize("gamma", [0.0, 1e-12, 1e-7])
def test_channels_that_a_batch_norm_makes_constant(gamma):
    model = nn.Sequential(conv(3, 16, 3, gamma=gamma), nn.ReLU()).eval()
    x = images(4, 8)
    network = from_torch(model, [x], method="max")
    (node,) = [n for n in network.nodes if isinstance(n, Conv)]
    assert np.abs(node.bias).max() <= MAX_BIAS
    found = network.run(x.numpy())
    assert np.abs(found - on_codes(model, network, x)).max() <= 0.55 * network.tensors[node.name].scale


def test_a_layer_at_the_end_keeps_its_sums():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    x = images(4, 4)
    network = from_torch(model, [x])
    sums, real = network.nodes[-2:]
    assert isinstance(sums, Linear)
    assert isinstance(real, Dequantize)
    assert sums.requantization is None
    assert network.tensors[sums.name].dtype == "int32"
    np.testing.assert_allclose(network.run(x.numpy()), on_codes(model, network, x), rtol=1e-4, atol=1e-4)


RELU = nn.ReLU()
OPERATIONS = {
    "relu6": Call(functional.relu6, end=RELU),
    "hardtanh": Call(lambda x: functional.hardtanh(x, -0.5, 0.25), end=nn.ReLU()),
    "clamp": Call(lambda x: x.clamp(min=-0.3), end=nn.MaxPool2d(1)),
    "hardswish": Call(functional.hardswish, end=nn.MaxPool2d(2)),
    "silu": nn.Sequential(nn.SiLU(), nn.MaxPool2d(2)),
    "gelu": Call(lambda x: functional.gelu(x, approximate="tanh"), end=nn.MaxPool2d(2)),
    "leaky relu": Call(lambda x: functional.leaky_relu(x, 0.2), end=nn.MaxPool2d(2)),
    "prelu": nn.Sequential(nn.PReLU(), nn.MaxPool2d(2)),
    "sigmoid": Call(lambda x: x.sigmoid(), end=nn.MaxPool2d(2)),
    "hardsigmoid": nn.Sequential(nn.Hardsigmoid(), nn.MaxPool2d(2)),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "max pool, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max pool, dilated": nn.MaxPool2d(2, 1, dilation=2),
    "max pool, in a row": Call(
        lambda x: torch.cat([functional.max_pool2d(x, k, 1, k // 2) for k in (3, 5)], 1), end=RELU
    ),
    "average pool": nn.Sequential(nn.AvgPool2d(2), nn.ReLU()),
    "average pool, padded": nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.ReLU()),
    "average pool, border": nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.ReLU()),
    "average pool, ceil": nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True), nn.ReLU()),
    "average pool, sums": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive": nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.ReLU()),
    "adaptive, same": nn.AdaptiveAvgPool2d(12),
    "global": Call(lambda x: x.mean((2, 3)), end=nn.ReLU()),
    "global, kept": Call(lambda x: x.mean([-1, -2], keepdim=True), end=nn.ReLU()),
    "global, expanded": Call(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:]), end=nn.ReLU()),
    "global, sums": Call(lambda x: x.mean((2, 3))),
    "add": Call(lambda x: x + functional.max_pool2d(x, 3, 1, 1), end=nn.ReLU()),
    "add to a pooled one": Call(lambda x: x + x.mean((2, 3), keepdim=True)),
    "twice": Call(lambda x: x + x),
    "multiply": Call(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
    "concat": Call(
        lambda x: torch.cat([x, functional.silu(x), x.mean((2, 3), keepdim=True).expand_as(x)], 1), end=RELU
    ),
    "subsampled": Call(lambda x: functional.pad(x[:, :, ::2, 1::2], (0, 0, 0, 0, 1, 2)), end=RELU),
    "ellipsis": Call(lambda x: x[..., 1:-1, ::3], end=RELU),
    "chunks": Call(lambda x: torch.cat(x.chunk(3, dim=1)[::-1], 1), end=RELU),
    "split": Call(lambda x: x.split([1, 2], 1)[1], end=RELU),
    "cropped": Call(lambda x: functional.pad(x, (-1, 2, 1, -2)), end=RELU),
    "shuffled": Call(lambda x: x.view(x.size(0), 3, 4, -1).transpose(1, 2).reshape(x.shape[0], -1, 12), end=RELU),
    "permuted": Call(lambda x: x.flatten(2).permute(0, 2, 1)),
    "unsqueezed": Call(lambda x: x.unsqueeze(1).squeeze(1).contiguous(), end=nn.Dropout()),
    "nearest": nn.Sequential(nn.Upsample(scale_factor=2.0), nn.ReLU()),
    "bilinear": Call(lambda x: functional.interpolate(x, size=(25, 7), mode="bilinear", align_corners=True)),
    "bilinear, borders": Call(lambda x: functional.interpolate(x, size=(25, 7), mode="bilinear"), end=RELU),
    "batch norm alone": nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
}


@pytest.mark.parametrize("model", OPERATIONS.values(), ids=OPERATIONS)
def test_operation(model):
    """One rounding to the result's own scale, so half a step; another one where a tensor comes between."""
    if isinstance(model[0] if isinstance(model, nn.Sequential) else None, nn.BatchNorm2d):
        settled(model, size=12)
    x = images(3, 12)
    network = from_torch(model.eval(), [x], method="max")
    found, expected = network.run(x.numpy()), on_codes(model.eval(), network, x)
    model.float()
    assert found.shape == expected.shape
    steps = [network.tensors[node.name].scale for node in network.nodes if network.tensors[node.name].dtype == "int8"]
    # Calibration saw the images before they were quantized, so the largest result may be clipped by as much.
    clipped = 0.51 * network.tensors[network.input].scale
    assert np.abs(found - expected).max() <= 0.52 * sum(sorted(set(steps))) + clipped


def names(network, kind):
    return [node.name for node in network.nodes if isinstance(node, kind)]


def test_what_joins_what():
    net = small_net().eval()
    network = mvq.integer_network(net, [batch(4)[0]])
    kinds = [node.kind for node in network.nodes]
    assert kinds == [*("conv", "conv", "conv", "conv", "add"), *("conv", "conv", "conv", "add"), "conv", "average_pool",
                     "reshape", "linear", "linear", "dequantize"]  # fmt: skip
    add = network.node(names(network, Add)[0])
    assert (add.low, add.high) == (0, 127)


def test_a_value_read_twice_keeps_its_scale():
    """Batch norm and ReLU join nothing whose value before them somebody else reads."""
    model = Call(lambda x, c, n: torch.relu(n(y := c(x))) + y, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    network = from_torch(model, [images(2, 6)])
    assert len(names(network, Affine)) == 1


def test_a_second_batch_norm_stands_alone():
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()), size=6)
    x = images(2, 6)
    network = from_torch(model, [x])
    assert [node.kind for node in network.nodes] == ["conv", "affine", "dequantize"]
    with torch.no_grad():
        assert snr_db(model(x).numpy(), network.run(x.numpy())) > 30


@pytest.mark.parametrize("pad", [nn.ZeroPad2d((0, 1, 0, 1)), Call(lambda x: functional.pad(x, (2, 0, 1, 3)))])
def test_padding_joins_the_convolution(pad):
    model = nn.Sequential(pad, nn.Conv2d(3, 8, 3, 2, padding=(0, 1)), nn.ReLU()).eval()
    x = images(2, 8)
    network = from_torch(model, [x], method="max")
    assert not names(network, Pad)
    node = network.node(names(network, Conv)[0])
    assert node.padding == ((0, 1, 1, 2) if isinstance(pad, nn.ZeroPad2d) else (1, 3, 3, 1))
    found = network.run(x.numpy())
    step = network.tensors[node.name].scale
    assert np.abs(found - np.minimum(on_codes(model, network, x), 127 * step)).max() <= 0.51 * step


def test_concatenated_layers_need_no_rescaling():
    model = Call(
        lambda x, a, b: torch.cat([torch.relu(a(x)), functional.silu(b(x))], 1),
        *(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)),
        end=nn.Conv2d(8, 2, 1),
    ).eval()
    network = from_torch(model, [images(2, 6)])
    assert not names(network, Rescale)
    assert len({network.tensors[name].scale for name in network.node("cat").inputs}) == 1


def test_results_of_different_ranges_keep_their_own():
    """A detector's head: boxes and probabilities side by side."""
    model = Call(
        lambda x, a, b: torch.cat([a(x), b(x).sigmoid()], 1).flatten(2).transpose(1, 2),
        *(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)),
    ).eval()
    with torch.no_grad():
        model.parts[0].weight.mul_(1000)
    x = images(2, 6)
    network = from_torch(model, [x])
    assert network.node(names(network, Lookup)[0]).table.dtype == np.float32
    found = network.run(x.numpy())
    with torch.no_grad():
        assert np.abs(found - model(x).numpy())[..., 4:].max() < 0.02


def test_in_place_operations_change_what_is_read_later():
    model = Call(lambda x, c: functional.relu(y := c(x), inplace=True) + y, nn.Conv2d(3, 4, 1)).eval()
    x = images(2, 6)
    found = from_torch(model, [x]).run(x.numpy())
    with torch.no_grad():
        assert snr_db(model(x).numpy(), found) > 30


def test_several_results():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = torch.relu(self.conv(x))
            return OrderedDict(out=y, pooled=y.mean((2, 3)))

    x = images(2, 6)
    network = from_torch(Two().eval(), [x])
    out, pooled = network.run(x.numpy())
    assert out.shape == (2, 4, 6, 6)
    np.testing.assert_allclose(pooled, out.mean((2, 3)), rtol=1e-5)
    assert out.dtype == pooled.dtype == np.float32


def test_one_module_in_two_places():
    model = Call(lambda x, c: c(torch.relu(c(x))), nn.Conv2d(3, 3, 1)).eval()
    x = images(2, 6)
    network = from_torch(model, [x])
    assert [node.layer for node in network.nodes if isinstance(node, Conv)] == ["parts.0", "parts.0"]
    assert len(network.weights.layers) == 1
    with torch.no_grad():
        assert snr_db(model(x).numpy(), network.run(x.numpy())) > 25


def test_codes_of_the_compressed_model_are_the_weights():
    net = small_net().eval()
    recipe = mvq.Recipe(pattern="4:16", d=16, n_codewords=16, max_iters=3)
    mvq.prune_(net, recipe)
    mvq.cluster_(net, recipe)
    x = batch(8)[0]
    network = mvq.integer_network(net, [x])
    stored = extract(net)
    assert {layer.name for layer in stored.vq_layers} == {layer.name for layer in network.weights.vq_layers}
    for layer in stored.vq_layers:
        scale = np.float32(stored.codebooks[layer.codebook].scale)
        np.testing.assert_array_equal(stored.dense_weight(layer), network.codes[layer.name].astype(np.float32) * scale)
    with torch.no_grad():
        assert snr_db(net(x).numpy(), network.run(x.numpy())) > 30
    np.testing.assert_array_equal(network.run(x.numpy()[:3]), network.run(x.numpy())[:3])


def test_compressed_weights_must_be_given_and_fit():
    net = small_net().eval()
    recipe = mvq.Recipe(pattern="4:16", d=16, n_codewords=16, max_iters=3)
    mvq.prune_(net, recipe)
    mvq.cluster_(net, recipe)
    with pytest.raises(ModelError) as error:
        from_torch(net, [batch(2)[0]])
    assert str(error.value) == ("layer 'stem' is compressed; pass its codes with compressed=mvq.nn.extract(model)")
    other = nn.Sequential(nn.Conv2d(3, 5, 1)).eval()
    with pytest.raises(ModelError) as error:
        from_torch(other, [images(1, 8)], compressed=extract(net))
    assert str(error.value) == (
        "layer '0' of shape (5, 3, 1, 1) is missing among the compressed weights; give those of this model"
    )


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(2, 4)
        self.fc = nn.Linear(6, 6)
        self.shift = nn.Parameter(torch.zeros(4, 6, 6))

    def forward(self, x):
        x = self.fc(self.norm(self.conv(x))) * self.shift
        x = functional.pad(x + 1, (1, 1), value=2.0)
        return torch.cumsum(x.mean(2), 1)


def test_all_unsupported_operations_are_listed():
    with pytest.raises(ModelError) as error:
        from_torch(Unsupported().eval(), [images(2, 6)])
    assert str(error.value).splitlines() == [
        "model Unsupported has 9 operations without an integer form:",
        "  conv: module Conv2d 'conv': padding reflect",
        "  norm: module GroupNorm 'norm'",
        "  fc: module Linear 'fc': its input has the shape ('N', 4, 6, 6), not ('N', C)",
        "  shift: constant 'shift': its result is no tensor whose first axis is the batch",
        "  mul: function mul: operands have different numbers of axes",
        "  add: function add: one operand is no activation",
        "  pad: function pad: mode 'constant', value 2.0; only zeros",
        "  mean: method mean: over the axes 2; only both spatial axes at once",
        "  cumsum: function cumsum",
        "replace them by supported ones, or export the part of the network before them",
    ]


def test_untraceable_and_odd_networks():
    with pytest.raises(ModelError) as error:
        from_torch(Call(lambda x: x if x.sum() > 0 else -x).eval(), [images(1, 4)])
    assert str(error.value).startswith("model Call cannot be traced: ")
    with pytest.raises(ModelError) as error:
        from_torch(Call(lambda x: x.reshape(-1, 4)).eval(), [images(2, 4)])
    assert "reshape: method reshape: its result is no tensor whose first axis is the batch" in str(error.value)


def test_mode_is_restored():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    from_torch(model, [images(2, 6)])
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        ([], DataError, "calibration: there is no batch of images; give some that are typical of the use"),
        ([torch.zeros(3, 4, 4)], DataError, "calibration: a batch of Tensor (3, 4, 4); expected tensors (N, C, H, W)"),
        ([{"x": 1}], DataError, "calibration: a batch of dict (); expected tensors"),
        (
            [torch.full((1, 3, 4, 4), torch.nan)],
            ModelError,
            "it holds values that are NaN or infinite; check the images",
        ),
    ],
)
def test_calibration_data_is_checked(data, kind, text):
    with pytest.raises(kind) as error:
        from_torch(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), data)
    assert text in str(error.value)


def test_unknown_method():
    with pytest.raises(ConfigError) as error:
        from_torch(nn.Sequential(nn.Conv2d(3, 4, 1)), [images(1, 4)], method="kl")  # type: ignore[arg-type]
    assert str(error.value) == "calibration 'kl' is not known; known are mse, max, percentile"


def test_overflow_names_the_layer():
    model = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 64, 3), relu=nn.ReLU(), second=nn.Conv2d(64, 4, 3))).eval()
    x = images(2, 8)
    from_torch(model, [x], psum_bits=24).run(x.numpy())
    with pytest.raises(PsumOverflowError) as error:
        from_torch(model, [x], psum_bits=14).run(x.numpy())
    assert str(error.value).startswith("layer 'first': a psum of ")
    assert "does not fit 14 bits, -8192..8191" in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_observer_on_known_values(method):
    observer = Observer()
    rng = np.random.default_rng(3)
    parts = [rng.normal(size=20000), 3 * rng.normal(size=20000), np.zeros(5000)]
    for part in parts:
        observer.observe(torch.from_numpy(part))
    values = np.abs(np.concatenate(parts))
    limit = observer.scale(method) * 127
    assert observer.counts.sum() == values.size
    assert observer.largest == pytest.approx(values.max())
    expected = {"max": values.max(), "percentile": np.percentile(values[values > 0], 99.99)}
    if method != "mse":
        assert limit == pytest.approx(expected[method], rel=0.02)
        return

    def error(top):
        step = top / 127
        return np.square(np.clip(np.rint(values / step), 0, 127) * step - values).mean()

    best = min(error(top) for top in np.linspace(0.05, 1, 200) * values.max())
    assert error(limit) <= 1.02 * best


def test_observer_of_nothing_but_zeros():
    observer = Observer()
    observer.observe(torch.zeros(4, 4))
    assert [observer.scale(method) for method in METHODS] == [1.0, 1.0, 1.0]


def test_average_pool_divisors():
    network = from_torch(nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.ReLU()), [images(1, 6)])
    node = network.node(names(network, AveragePool)[0])
    multipliers = node.requantization.multiplier[0]
    np.testing.assert_allclose(
        multipliers[1, 1] / multipliers, [[4 / 9, 6 / 9, 6 / 9]] + [[6 / 9, 1, 1]] * 2, rtol=1e-6
    )


def test_every_operation_can_be_computed_and_written():
    from mvq.accel.network import NODES, compute
    from mvq.accel.network.export import _emit

    for function in (compute, _emit):
        assert set(function.registry) - {object} >= set(NODES.values())
