"""What is written comes back equal, to the bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from format_samples import (
    DTYPES,
    assert_same,
    int8_layer,
    model_of,
    random_tensor,
    small_model,
    take_apart,
    vq_layer,
)
from hypothesis import given
from hypothesis import strategies as st

from mvq.compressed import CompressedModel, DenseLayer
from mvq.errors import FileError, ModelError
from mvq.format import open_file, read, to_bytes, write
from mvq.recipe import PRESETS, Recipe
from mvq.sizes import sizes

SETTINGS = [("4:16", 16), ("2:4", 8), ("1:2", 2), ("1:1", 3), ("8:32", 32), ("6:16", 16), ("2:3", 6)]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
DIMS = st.integers(0, 20) | st.integers(1, 5)


@st.composite
def models(draw: st.DrawFn) -> CompressedModel:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers: list[Any] = []
    names = draw(st.lists(st.text(max_size=6), max_size=6, unique=True))
    for name in names:
        shape = draw(st.tuples(DIMS, DIMS, DIMS, DIMS) | st.tuples(DIMS, DIMS))
        storage = draw(st.sampled_from(["vq", "vq", "int8", "dense"]))
        if storage == "int8":
            layers.append(int8_layer(rng, name, shape))
        elif storage == "dense":
            layers.append(DenseLayer(name, "conv", "depthwise", shape))
        else:
            pattern, d = draw(st.sampled_from(SETTINGS))
            k = draw(st.sampled_from([1, 2, 3, 16, 17, 300]))
            codewords = draw(st.sampled_from(["masked", "packed"]))
            shared = f"network.{pattern}.{d}.{k}.{codewords}"
            codebook = draw(st.sampled_from([name, shared]))
            sse = draw(st.sampled_from([math.nan, 0.0, 1 / 3]))
            more = {"codewords": codewords, "codebook": codebook, "masked_sse": sse, "total_sse": sse}
            layers.append(vq_layer(rng, name, shape, pattern, d, k, **more))
    tensors = {}
    for name in draw(st.lists(st.text("ab.", max_size=4), max_size=8, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        tensors[name] = random_tensor(rng, draw(st.sampled_from(DTYPES)), shape)
    tensors = {name: t for name, t in tensors.items() if name.removesuffix(".weight") not in names}
    recipe = draw(st.sampled_from([Recipe(), Recipe(tol=0), *PRESETS.values()]))
    return model_of(rng, layers, tensors, recipe=recipe, provenance=draw(st.dictionaries(st.text(), JSON, max_size=3)))


@given(model=models())
def test_round_trip(model: CompressedModel, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.mvq"
    n_bytes = write(model, path)
    assert n_bytes == path.stat().st_size
    assert_same(model, read(path))
    assert to_bytes(read(path)) == path.read_bytes()
    with open_file(path) as file:
        assert file.file_bytes == n_bytes
        dense = file.dense_weights()
        assert list(dense) == [layer.name for layer in model.layers]
        for layer in model.layers:
            if 0 not in layer.shape:
                assert dense[layer.name].tobytes() == model.dense_weight(layer).tobytes()
            assert dense[layer.name].shape == layer.shape


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write(small_model(), tmp_path / "small.mvq")
    return tmp_path / "small.mvq"


def test_small_model(small: Path) -> None:
    assert_same(small_model(), read(small))


def test_order_of_overrides_survives(small: Path) -> None:
    """Later overrides win, so sorting them would change the recipe."""
    assert [glob for glob, _ in read(small).recipe.overrides] == ["z*", "a*"]


def test_lazy_access(small: Path) -> None:
    model = small_model()
    with open_file(small) as file:
        assert file.path == str(small)
        assert file.recipe == model.recipe
        assert file.provenance == model.provenance
        assert [(e.name, e.storage, e.shape) for e in file.layers] == [
            ("stem", "int8", (2, 1, 2, 2)),
            ("a.conv", "vq", (6, 3, 1, 1)),
            ("b.conv", "vq", (5, 2, 1, 1)),
            ("c.conv", "vq", (4, 1, 2, 1)),
            ("head", "dense", (2, 3)),
        ]
        entry = file.layers[1]
        assert (str(entry.pattern), entry.d, entry.codewords, entry.n_codewords) == ("2:4", 4, "masked", 5)
        assert (entry.masked_sse, entry.total_sse) == (1.5, 2.25)
        assert file.tensor_names == tuple(model.tensors)
        for name, tensor in model.tensors.items():
            assert file.tensor(name).tobytes() == tensor.tobytes()
        for layer in model.layers:
            assert type(file.layer(layer.name)) is type(layer)
            weight = file.dense_weight(layer.name)
            assert (weight.dtype, weight.flags.writeable) == (np.float32, True)
            assert weight.tobytes() == model.dense_weight(layer).tobytes()
        assert list(file.codebooks) == list(model.codebooks)
        assert_same(model, file.read())


def test_opening_reads_the_header_only(small: Path) -> None:
    """A damaged stream is found when it is used; the others stay readable."""
    data = bytearray(small.read_bytes())
    data[-1] ^= 1
    small.write_bytes(data)
    with open_file(small) as file:
        assert file.tensor("bn1.weight").shape == (2,)


def test_results_are_independent(small: Path) -> None:
    with open_file(small) as file:
        for name in ("stem", "a.conv", "head"):
            file.dense_weight(name)[:] = 7
            assert (
                file.dense_weight(name).tobytes() == small_model().dense_weight(file.layer(name)).tobytes()
                or name == "head"
            )
        file.codebooks.clear()
        file.tensor("bn1.weight")[:] = 7
        assert_same(small_model(), file.read())


def test_closed_file(small: Path) -> None:
    with open_file(small) as file:
        file.tensor("flags")
    assert file.tensor("flags").tolist() == [True, False]
    file.close()
    with pytest.raises(FileError) as caught:
        file.read()
    assert str(caught.value) == f"file {str(small)!r} is closed; open it again"


def test_a_forgotten_file_is_closed(small: Path) -> None:
    before = len(os.listdir("/dev/fd")) if Path("/dev/fd").exists() else None
    if before is None:
        pytest.skip("the system does not list open files")
    for _ in range(3):
        open_file(small)
    assert len(os.listdir("/dev/fd")) == before


def test_a_replaced_file_does_not_disturb_an_open_one(small: Path, rng) -> None:
    with open_file(small) as file:
        write(model_of(rng, []), small)
        assert_same(small_model(), file.read())
    assert read(small).layers == ()


def test_unknown_names(small: Path) -> None:
    with open_file(small) as file:
        for call in (file.layer, file.dense_weight):
            with pytest.raises(ModelError) as caught:
                call("conv9")
            assert str(caught.value) == (
                f"file {str(small)!r} has no layer 'conv9'; its 5 layers look like 'stem', 'a.conv', 'b.conv'"
            )
        with pytest.raises(ModelError) as caught:
            file.tensor("bn9")
        assert str(caught.value) == f"file {str(small)!r} has no tensor 'bn9'; see tensor_names"


def test_safetensors_reads_it(small: Path) -> None:
    _, header, streams = take_apart(small.read_bytes())
    with safetensors.safe_open(small, framework="numpy") as file:
        assert sorted(file.keys()) == sorted(streams)
        assert json.loads(file.metadata()["mvq"]) == header
        assert sorted(file.metadata()) == ["mvq", "mvq_sha256"]
    for name, tensor in safetensors.numpy.load_file(small).items():
        assert tensor.ndim == 1
        assert tensor.tobytes() == streams[name]


def test_a_file_saved_again_by_safetensors_is_read(small: Path, tmp_path: Path) -> None:
    """Streams and keys may come in another order."""
    with safetensors.safe_open(small, framework="numpy") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(small)
    safetensors.numpy.save_file(tensors, tmp_path / "again.mvq", metadata)
    assert_same(small_model(), read(tmp_path / "again.mvq"))


def test_same_bytes_however_many_threads() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import hashlib, format_samples, numpy as np; from mvq.format import to_bytes\n"
        "rng = np.random.default_rng(0)\n"
        "layers = [format_samples.vq_layer(rng, n, (256, 64, 3, 3), '4:16', 16, 512) for n in 'abc']\n"
        "print(hashlib.sha256(to_bytes(format_samples.model_of(rng, layers))).hexdigest())"
    )
    digests = set()
    for threads in ("1", "3"):
        # The seed of string hashing moves the order of sets, which must not show either.
        env = os.environ | {"NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", code, str(Path(__file__).parent)]
        digests.add(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1


def test_threads_may_share_a_file(tmp_path: Path, rng) -> None:
    layers = [vq_layer(rng, f"l{i}", (64, 16, 3, 3), "4:16", 16, 100) for i in range(8)]
    model = model_of(rng, layers)
    write(model, tmp_path / "f.mvq")
    faults = []

    def use(file, names) -> None:
        for name in names:
            layer = next(layer for layer in layers if layer.name == name)
            if file.dense_weight(name).tobytes() != model.dense_weight(layer).tobytes():
                faults.append(name)

    with open_file(tmp_path / "f.mvq") as file:
        names = [layer.name for layer in layers]
        threads = [threading.Thread(target=use, args=(file, names[i:] + names[:i])) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert faults == []


def mobilenet_v2() -> CompressedModel:
    """The shapes of MobileNet-V2 (Sandler et al. 2018, table 2): 35 point-wise convolutions compressed."""
    rng = np.random.default_rng(0)
    layers: list[Any] = [int8_layer(rng, "features.0.0", (32, 3, 3, 3))]
    bns = [("features.0.1", 32)]
    n_in, index = 32, 1
    for expand, n_out, repeats in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(repeats):
            base, hidden, at = f"features.{index}.conv", n_in * expand, 0
            if expand > 1:
                layers.append(
                    vq_layer(
                        rng,
                        f"{base}.0.0",
                        (hidden, n_in, 1, 1),
                        "1:2",
                        8,
                        512,
                        masked_sse=rng.random(),
                        total_sse=rng.random(),
                    )
                )
                bns.append((f"{base}.0.1", hidden))
                at = 1
            layers.append(int8_layer(rng, f"{base}.{at}.0", (hidden, 1, 3, 3)))
            bns.append((f"{base}.{at}.1", hidden))
            layers.append(
                vq_layer(
                    rng,
                    f"{base}.{at + 1}",
                    (n_out, hidden, 1, 1),
                    "1:2",
                    8,
                    512,
                    masked_sse=rng.random(),
                    total_sse=rng.random(),
                )
            )
            bns.append((f"{base}.{at + 2}", n_out))
            n_in, index = n_out, index + 1
    layers.append(
        vq_layer(
            rng, "features.18.0", (1280, 320, 1, 1), "1:2", 8, 512, masked_sse=rng.random(), total_sse=rng.random()
        )
    )
    bns.append(("features.18.1", 1280))
    layers.append(vq_layer(rng, "classifier.1", (1000, 1280), "1:2", 8, 512))
    tensors: dict[str, Any] = {}
    for name, channels in bns:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{leaf}"] = np.zeros(channels, np.float16)
        tensors[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    tensors["classifier.1.bias"] = np.zeros(1000, np.float16)
    return model_of(rng, layers, tensors, recipe=Recipe(pattern="1:2", d=8, n_codewords=512, other_dtype="float16"))


def test_overhead_of_a_network_of_many_small_tensors() -> None:
    model = mobilenet_v2()
    assert len(model.tensors) == 261
    n_file, payload = len(to_bytes(model)), sizes(model)["whole_model"].bytes
    assert sum(layer.n_weights for layer in model.layers) == 3_469_760
    assert 1_000_000 < payload < 1_400_000
    assert payload < n_file < 1.02 * payload
