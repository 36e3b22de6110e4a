import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mvq.errors import ModelError
from mvq.tasks import build_model, load_weights_, set_input_size_

MODULE = """
import torch
from torch import nn

def small(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, num_classes))

def fixed():
    return nn.Linear(2, 2)

def nothing():
    return 5

class Holder:
    inner = small

value = 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "task_models_sample.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "task_models_sample"
    sys.modules.pop("task_models_sample", None)


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def test_torchvision_name_builds_without_weights():
    model = build_model("torchvision/squeezenet1_1", num_classes=7)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_segmentation_builds_without_fetching_a_backbone(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("fetched weights"))
    model = build_model("torchvision/lraspp_mobilenet_v3_large", num_classes=4).eval()
    assert model(torch.zeros(1, 3, 64, 64))["out"].shape == (1, 4, 64, 64)


def test_detector_builds_without_fetching_a_backbone(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("fetched weights"))
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", num_classes=5).eval()
    assert set(model([torch.zeros(3, 64, 64)])[0]) == {"boxes", "labels", "scores"}


def test_googlenet_builds_without_warning():
    build_model("torchvision/googlenet", num_classes=2)


def test_callable_of_the_current_folder(module):
    assert build_model(f"{module}:small")[3].out_features == 3
    assert build_model(f"{module}:small", num_classes=9)[3].out_features == 9
    assert build_model(f"{module}:Holder.inner")[3].out_features == 3


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("torchvision/resnet81", "torchvision has no model 'resnet81'; did you mean torchvision/resnet18 or "),
        ("torchvision/zzzz", "torchvision has no model 'zzzz'"),
        (
            "resnet18",
            "model 'resnet18' is not understood; write torchvision/NAME, as in torchvision/resnet18, or "
            "package.module:callable; did you mean torchvision/resnet18 or ",
        ),
        (
            "no_such_module:f",
            "'no_such_module:f': there is no module 'no_such_module'; it must be installed or lie in the "
            "current folder",
        ),
        ("json:no_such", "'json:no_such': module 'json' has no 'no_such'"),
        ("sys:path", "'sys:path' is a list; name a function or class to call"),
    ],
)
def test_unknown_names(spec, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModelError) as error:
        build_model(spec)
    assert str(error.value).startswith(text)
    assert "did you mean" in text or str(error.value) == text


def test_callable_that_gives_no_module(module):
    with pytest.raises(ModelError) as error:
        build_model(f"{module}:nothing")
    assert str(error.value) == "model 'task_models_sample:nothing' gave a int, not a torch.nn.Module"


def test_callable_that_takes_no_classes(module):
    with pytest.raises(ModelError) as error:
        build_model(f"{module}:fixed", num_classes=4)
    assert str(error.value) == (
        "model 'task_models_sample:fixed' cannot be called as fixed(num_classes=4): got an unexpected keyword "
        "argument 'num_classes'"
    )


def test_fault_inside_the_module_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "task_models_broken.py").write_text("import no_such_dependency_xyz\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency_xyz"):
        build_model("task_models_broken:f")


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "prefixed", "nested_prefixed", "safetensors"])
def test_weights_in_every_form(form, tmp_path):
    source = small()
    state = source.state_dict()
    if "prefixed" in form:
        state = {f"module.{k}": v for k, v in state.items()}
    content = {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "model": {"model": state, "optimizer": {}},
        "prefixed": state,
        "nested_prefixed": {"state_dict": state},
        "safetensors": state,
    }[form]
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    save_file(content, path) if form == "safetensors" else torch.save(content, path)
    loaded = load_weights_(small(), path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.state_dict().items())


def test_missing_batch_norm_counter_and_half_precision_are_accepted(tmp_path):
    state = {k: v.half() for k, v in small().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    model = load_weights_(small(), tmp_path / "w.safetensors")
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, state["0.weight"].float())


def test_all_misfits_in_one_error(tmp_path):
    state = small().state_dict()
    del state["0.bias"]
    state["3.weight"] = torch.zeros(5, 4)
    for i in range(7):
        state[f"extra{i}"] = torch.zeros(1)
    path = tmp_path / "w.pt"
    torch.save(state, path)
    with pytest.raises(ModelError) as error:
        load_weights_(small(), path)
    assert str(error.value) == (
        f"weights {str(path)!r} do not fit Sequential\n"
        "  1 missing: 0.bias\n"
        "  7 unexpected: extra0, extra1, extra2, extra3, extra4, and 2 more\n"
        "  1 of another shape: 3.weight (5, 4) instead of (3, 4)"
    )


def test_other_number_of_classes_is_hinted_at(tmp_path):
    state = small().state_dict()
    state["3.weight"], state["3.bias"] = torch.zeros(5, 4), torch.zeros(5)
    path = tmp_path / "w.pt"
    torch.save(state, path)
    with pytest.raises(ModelError) as error:
        load_weights_(small(), path)
    assert str(error.value) == (
        f"weights {str(path)!r} do not fit Sequential\n"
        "  2 of another shape: 3.weight (5, 4) instead of (3, 4), 3.bias (5,) instead of (3,)\n"
        "  if only the number of classes differs, pass num_classes"
    )


def test_misfit_leaves_the_model_as_it_was(tmp_path):
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()}
    state["more"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError):
        load_weights_(model, tmp_path / "w.pt")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


class Unsafe:
    pass


def test_unreadable_files(tmp_path):
    missing, text = tmp_path / "none.pth", tmp_path / "w.txt"
    text.write_text("x")
    damaged, tensors, code = tmp_path / "d.pth", tmp_path / "d.safetensors", tmp_path / "c.pth"
    damaged.write_bytes(b"nonsense")
    tensors.write_bytes(b"nonsense")
    torch.save({"w": Unsafe()}, code)
    numbers = tmp_path / "n.pth"
    torch.save({"epoch": 3, "lr": 0.1}, numbers)
    expected = {
        missing: f"weights {str(missing)!r}: there is no such file",
        text: f"weights {str(text)!r}: the name must end in .safetensors, .pth or .pt",
        damaged: f"weights {str(damaged)!r} cannot be read: the file is damaged, or holds Python objects, which are "
        "never loaded; save the model's state_dict() instead",
        code: f"weights {str(code)!r} cannot be read: the file is damaged, or holds Python objects, which are "
        "never loaded; save the model's state_dict() instead",
        tensors: f"weights {str(tensors)!r} cannot be read as safetensors: Error while deserializing header",
        numbers: f"weights {str(numbers)!r} hold a dict with keys 'epoch', 'lr'; expected a dictionary of tensors, "
        "or one under 'state_dict', 'model_state_dict', 'model'",
    }
    for path, message in expected.items():
        with pytest.raises(ModelError) as error:
            load_weights_(small(), path)
        assert str(error.value).startswith(message)


def test_a_model_torchvision_refuses():
    with pytest.raises(ModelError) as error:
        build_model("torchvision/raft_large", num_classes=3)
    assert str(error.value).startswith("torchvision model 'raft_large' cannot be built: ")


@pytest.mark.parametrize(
    ("name", "shape", "n_params"),
    [
        ("cifar_resnet20", (2, 10), 269_722),
        ("cifar_resnet32", (2, 10), 464_154),
        ("cifar_resnet56", (2, 10), 853_018),
        ("mobilenet_v1", (2, 1000), 4_231_976),
        ("deeplabv3_mobilenet_v2", (2, 21, 40, 40), 2_113_557),
    ],
)
def test_own_networks(name, shape, n_params):
    model = build_model(f"mvq/{name}").eval()
    assert sum(p.numel() for p in model.parameters()) == n_params
    assert model(torch.zeros(2, 3, 40, 40)).shape == shape
    assert build_model(f"mvq/{name}", num_classes=4).eval()(torch.zeros(1, 3, 40, 40)).shape == (1, 4, *shape[2:])


def test_unknown_own_network():
    with pytest.raises(ModelError) as error:
        build_model("mvq/resnet20")
    assert str(error.value) == (
        "model 'mvq/resnet20' is not known; known are mvq/cifar_resnet20, mvq/cifar_resnet32, mvq/cifar_resnet56, "
        "mvq/deeplabv3_mobilenet_v2, mvq/mobilenet_v1"
    )


def test_input_size_of_detectors():
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    model = nn.Module()
    model.transform = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3)
    set_input_size_(model, 200)
    images, _ = model.transform([torch.zeros(3, 100, 120)])
    assert images.image_sizes == [(200, 240)]
    assert model.transform.max_size == 333
    ssd = build_model("torchvision/ssdlite320_mobilenet_v3_large")
    for other in (ssd, nn.Linear(1, 1)):
        with pytest.raises(ModelError, match=f"model {type(other).__name__} does not let its input size be set; "):
            set_input_size_(other, 200)


def test_squeeze_and_excitation_is_compressed():
    """EfficientNet: 1x1 convolutions inside the blocks, down to 4 output channels, fewer than a subvector's lanes."""
    import mvq
    from mvq.compressed import VQLayer
    from mvq.nn import extract

    whole = build_model("torchvision/efficientnet_b0", num_classes=5)
    # The first blocks have the smallest layers.
    model = nn.Sequential(whole.features[:4], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 5))
    mvq.compress(model, mvq.Recipe(pattern="1:2", d=8, n_codewords=8, max_iters=1))
    layers = {layer.name: layer for layer in extract(model).layers}
    squeeze = [name for name in layers if name.endswith(("fc1", "fc2"))]
    assert len(squeeze) == 10
    assert all(isinstance(layers[name], VQLayer) for name in squeeze)
    assert min(layers[name].shape[0] for name in squeeze) == 4
    for name in squeeze:
        weight = model.get_submodule(name).weight
        kept = (weight.flatten(1).T.unflatten(1, (-1, 2)) != 0).sum(2)
        assert (kept <= 1).all()
    x = torch.randn(2, 3, 32, 32)
    model(x).sum().backward()
    assert model.eval()(x).isfinite().all()
