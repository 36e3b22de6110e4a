"""Real networks: built and run on a few images; whole baselines are slow."""

import pytest
import torch
from benchmarks.networks import REGISTRY
from benchmarks.networks.adapter import data_file

from mvq.errors import DataError

NAMES = sorted(REGISTRY)
#: Least share of the whole baseline that the first images must reach.
FEW = {"classification": (16, 0.7), "segmentation": (4, 0.7), "detection": (8, 0.5)}


@pytest.fixture
def needs(data_root):
    def check(name):
        adapter = REGISTRY[name]
        if name == "yolox_nano":
            pytest.importorskip("onnx", reason="onnx (group bench) is not installed")
        if adapter.task == "detection":
            pytest.importorskip("pycocotools", reason="pycocotools (extra detection) is not installed")
        return adapter

    return check


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(("bgd", "pqf_resnet18_large", "pqf_resnet50"))])
def test_few_images(name, needs):
    adapter = needs(name)
    model = adapter.build()
    assert not model.training
    n, share = FEW[adapter.task]
    result = adapter.evaluate(model, limit=n)
    assert result.n == n
    assert set(result.metrics()) >= set(adapter.baseline)
    assert result.value >= share * next(iter(adapter.baseline.values()))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "yolox_nano", "deeplab_v3"])
def test_example_and_calibration_have_the_same_shape(name, needs):
    adapter = needs(name)
    inputs, targets = next(iter(adapter.calibration(limit=2)))
    assert inputs.shape == (2, *adapter.input_shape) == (2, *adapter.example_input.shape[1:])
    assert inputs.dtype == torch.float32
    assert len(targets) == 2


def test_same_padding_keeps_names_and_sizes(needs):
    import torchvision

    model = needs("mobilenet_v2").build()
    plain = torchvision.models.mobilenet_v2(weights=None)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.features(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)
    padded = model.features[0](torch.zeros(1, 3, 224, 224))
    assert padded.shape == plain.features[0](torch.zeros(1, 3, 224, 224)).shape


def test_folded_channels_have_equal_rms(needs):
    from benchmarks.networks.yolox_nano import BaseConv

    for module in needs("yolox_nano").build().modules():
        if isinstance(module, BaseConv):
            rms = module.conv.weight.square().mean((1, 2, 3)).sqrt()
            assert torch.allclose(rms, rms[:1].expand_as(rms), rtol=1e-4)


def test_without_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MVQ_DATA", raising=False)
    with pytest.raises(DataError) as error:
        REGISTRY["resnet20"].build()
    assert str(error.value) == ("MVQ_DATA is not set; set it to the folder that holds 'cifar10/resnet20.safetensors'")
    monkeypatch.setenv("MVQ_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        data_file("a/b.npz")
    assert str(error.value) == (
        f"MVQ_DATA={str(tmp_path)!r}: 'a/b.npz' is not there; set it to the folder that holds that file"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_baseline(name, needs):
    adapter = needs(name)
    result = adapter.evaluate(adapter.build())
    for metric, value in adapter.baseline.items():
        assert result.metrics()[metric] == pytest.approx(value, abs=0.3)
