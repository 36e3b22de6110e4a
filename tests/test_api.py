"""compress, save, load_into, load."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import mvq
from mvq.api import register_model
from mvq.compressed import CompressedModel
from mvq.errors import DigestError, ModelError
from mvq.nn import VQWeight, extract

RECIPE = mvq.Recipe(n_codewords=16)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(width: int = 40) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, width, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


def compressed(recipe=RECIPE, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return mvq.compress(build(), recipe, **kwargs).eval()


def test_same_seed_same_file_at_one_and_two_threads(tmp_path, set_threads):
    import numba

    files = []
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        set_threads(threads)
        for recipe in (RECIPE, mvq.Recipe(n_codewords=16, codewords="packed", scope="network")):
            mvq.save(compressed(recipe), tmp_path / "model.mvq")
            files.append((tmp_path / "model.mvq").read_bytes())
    assert files[:2] == files[2:]
    assert files[0] != files[1]


def rendered(call) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


def same(a: CompressedModel, b: CompressedModel) -> bool:
    return (
        a.recipe == b.recipe
        and all(np.array_equal(c.codes, b.codebooks[k].codes) for k, c in a.codebooks.items())
        and all(c.scale == b.codebooks[k].scale for k, c in a.codebooks.items())
        and list(a.tensors) == list(b.tensors)
        and all(np.array_equal(t, b.tensors[k]) for k, t in a.tensors.items())
        and all(
            np.array_equal(v, getattr(y, f))
            for x, y in zip(a.layers, b.layers, strict=True)
            for f, v in vars(x).items()
        )
    )


def test_compress_takes_every_kind_of_recipe() -> None:
    by_dict = compressed(RECIPE.to_dict())
    assert same(extract(by_dict), extract(compressed()))
    assert extract(compressed("vq-22x")).recipe == mvq.Recipe.preset("vq-22x")
    assert extract(compressed("mvq-22x-packed")).vq_layers[0].codewords == "packed"


def test_compress_with_data_fine_tunes() -> None:
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,))) for _ in range(3)]
    tuned, raw = extract(compressed(data=data, epochs=2)), extract(compressed())
    assert all(
        np.array_equal(a.assignments, b.assignments) for a, b in zip(tuned.vq_layers, raw.vq_layers, strict=True)
    )
    assert not all(np.array_equal(c.codes, raw.codebooks[k].codes) for k, c in tuned.codebooks.items())


@pytest.mark.parametrize("recipe", [RECIPE, mvq.Recipe(n_codewords=16, codewords="packed", scope="network")])
def test_save_and_load_into(recipe, tmp_path) -> None:
    model = compressed(recipe)
    path = tmp_path / "a.mvq"
    assert mvq.save(model, path, provenance={"task": "test"}) == path.stat().st_size
    loaded = mvq.load_into(build(), path).eval()
    assert torch.equal(loaded(X), model(X))
    assert same(extract(loaded), extract(model))
    assert any(isinstance(m, VQWeight) for m in loaded.modules())
    mvq.save(loaded, tmp_path / "b.mvq", provenance={"task": "test"})
    assert (tmp_path / "b.mvq").read_bytes() == path.read_bytes()
    dense = mvq.load_into(build(), str(path), dense=True).eval()
    assert torch.equal(dense(X), model(X))
    assert list(dense.state_dict()) == list(build().state_dict())


def test_skipped_layers_and_float16_state(tmp_path) -> None:
    recipe = mvq.Recipe(n_codewords=16, classifier="skip", other_dtype="float16")
    model = compressed(recipe)
    mvq.save(model, tmp_path / "a.mvq")
    for dense in (False, True):
        loaded = mvq.load_into(build(), tmp_path / "a.mvq", dense=dense)
        assert torch.equal(loaded[6].weight, model[6].weight.half().float())


def test_loading_into_another_architecture_changes_nothing(tmp_path) -> None:
    mvq.save(compressed(), tmp_path / "a.mvq")
    for dense in (False, True):
        other = build(41)
        before = {k: v.clone() for k, v in other.state_dict().items()}
        assert rendered(lambda other=other, dense=dense: mvq.load_into(other, tmp_path / "a.mvq", dense=dense)) == (
            "the compressed network does not fit the model:\n"
            "  layer '3' is conv (40, 16, 3, 3) in the file, conv (41, 16, 3, 3) in the model\n"
            "  layer '6' is linear (5, 40) in the file, linear (5, 41) in the model\n"
            "  tensor '3.bias' is (40,) in the file, (41,) in the model"
        )
        assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_a_damaged_file_changes_nothing(tmp_path) -> None:
    path = tmp_path / "a.mvq"
    mvq.save(compressed(), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for dense in (False, True):
        model = build()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(DigestError):
            mvq.load_into(model, path, dense=dense)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_load_builds_registered_models(tmp_path) -> None:
    register_model("test-api-net", build)
    model = compressed()
    mvq.save(model, tmp_path / "a.mvq", provenance={"model": "test-api-net"})
    for dense in (False, True):
        loaded = mvq.load(tmp_path / "a.mvq", dense=dense)
        assert not loaded.training
        assert torch.equal(loaded(X), model(X))


def test_load_builds_torchvision_models(tmp_path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = mvq.compress(models.squeezenet1_1(num_classes=1000), mvq.Recipe(max_iters=2)).eval()
    mvq.save(model, tmp_path / "a.mvq", provenance={"model": "torchvision/squeezenet1_1"})
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(mvq.load(tmp_path / "a.mvq")(x), model(x))


def test_load_imports_code_only_when_trusted(tmp_path, monkeypatch) -> None:
    module = types.ModuleType("mvq_test_nets")
    module.build = build
    module.wrong = dict
    monkeypatch.setitem(sys.modules, "mvq_test_nets", module)
    path = tmp_path / "a.mvq"
    model = compressed()
    mvq.save(model, path, provenance={"model": "mvq_test_nets:build"})
    assert rendered(lambda: mvq.load(path)) == (
        "model 'mvq_test_nets:build' would import and run code that the file names; pass trust=True if you trust the "
        "file, or build the model and use load_into"
    )
    assert torch.equal(mvq.load(path, trust=True)(X), model(X))
    mvq.save(model, path, provenance={"model": "mvq_test_nets:wrong"})
    assert rendered(lambda: mvq.load(path, trust=True)) == (
        "model 'mvq_test_nets:wrong' made a dict, expected a torch.nn.Module"
    )
    mvq.save(model, path, provenance={"model": "mvq_no_such_package:build"})
    assert rendered(lambda: mvq.load(path, trust=True)) == (
        "model 'mvq_no_such_package:build' cannot be imported (No module named 'mvq_no_such_package'); build the model "
        "and use load_into"
    )


def test_load_without_a_known_model(tmp_path) -> None:
    path = tmp_path / "a.mvq"
    mvq.save(compressed(), path)
    assert rendered(lambda: mvq.load(path)) == (
        f"file {str(path)!r} names no model in its provenance; build the model and use load_into"
    )
    mvq.save(compressed(), path, provenance={"model": "mynet"})
    assert rendered(lambda: mvq.load(path)) == (
        "model 'mynet' is not known; register_model it, or build the model and use load_into"
    )


def test_saving_a_dense_model_is_an_error(tmp_path) -> None:
    assert rendered(lambda: mvq.save(build(), tmp_path / "a.mvq")) == (
        "model Sequential has no compressed weight to read off; call cluster_ first"
    )
    assert not (tmp_path / "a.mvq").exists()
