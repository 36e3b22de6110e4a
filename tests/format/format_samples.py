"""Models to store, and files taken apart and put together by hand."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from mvq.compressed import Codebook, CompressedModel, DenseLayer, Int8Layer, VQLayer, index_dtype
from mvq.grouping import n_subvectors
from mvq.patterns import Pattern
from mvq.recipe import Recipe

DTYPES = ("bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8")


def vq_layer(rng: np.random.Generator, name: str, shape: tuple[int, ...], pattern: str, d: int, k: int, **more: Any):
    """A layer of random indices."""
    parsed = Pattern.parse(pattern)
    n_sub = n_subvectors(shape, d)
    n_blocks = 0 if parsed.is_dense else d // parsed.group
    fields: dict[str, Any] = {
        "name": name,
        "kind": "linear" if len(shape) == 2 else "conv",
        "role": "classifier" if len(shape) == 2 else "conv",
        "shape": shape,
        "pattern": parsed,
        "d": d,
        "codewords": "masked",
        "codebook": name,
        "n_codewords": k,
        "assignments": rng.integers(0, k, n_sub).astype(np.uint16),
        "mask_ids": rng.integers(0, parsed.n_masks, (n_sub, n_blocks)).astype(index_dtype(parsed.n_masks)),
    }
    return VQLayer(**(fields | more))


def int8_layer(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Int8Layer:
    codes = rng.integers(-128, 128, shape).astype(np.int8)
    scales = rng.uniform(0.01, 1, shape[0]).astype(np.float32)
    return Int8Layer(name, "linear" if len(shape) == 2 else "conv", "first_conv", codes, scales)


def model_of(rng: np.random.Generator, layers: list[Any], tensors: dict[str, Any] | None = None, **more: Any):
    """A model of these layers; each codebook they name is made, dense weights too."""
    codebooks = {}
    for layer in layers:
        if isinstance(layer, VQLayer) and layer.codebook not in codebooks:
            codes = rng.integers(-128, 128, (layer.n_codewords, layer.width)).astype(np.int8)
            codebooks[layer.codebook] = Codebook(codes, float(np.float32(rng.uniform(1e-3, 1))))
    tensors = dict(tensors or {})
    for layer in layers:
        if isinstance(layer, DenseLayer):
            tensors[f"{layer.name}.weight"] = rng.standard_normal(layer.shape).astype(np.float32)
    return CompressedModel(
        **({"recipe": Recipe(), "layers": tuple(layers), "codebooks": codebooks} | more), tensors=tensors
    )


def random_tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any bit pattern of the dtype: NaN, infinity and -0.0 too."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = rng.integers(0, 2 if dtype == "bool" else 256, n_bytes).astype(np.uint8)
    return np.frombuffer(raw.tobytes(), dtype=dtype).reshape(shape).copy()


def small_model() -> CompressedModel:
    """Everything the format has, in few bytes."""
    rng = np.random.default_rng(7)
    layers = [
        int8_layer(rng, "stem", (2, 1, 2, 2)),
        vq_layer(rng, "a.conv", (6, 3, 1, 1), "2:4", 4, 5, masked_sse=1.5, total_sse=2.25),
        vq_layer(rng, "b.conv", (5, 2, 1, 1), "1:1", 2, 3, codebook="network.0"),
        vq_layer(rng, "c.conv", (4, 1, 2, 1), "1:2", 4, 3, codewords="packed", codebook="network.0"),
        DenseLayer("head", "linear", "classifier", (2, 3)),
    ]
    tensors = {
        "bn1.weight": random_tensor(rng, "float16", (2,)),
        "bn1.steps": random_tensor(rng, "int64", ()),
        "bn2.weight": random_tensor(rng, "float16", (2,)),
        "bn2.steps": random_tensor(rng, "int64", ()),
        "flags": np.array([True, False]),
    }
    recipe = Recipe(overrides={"z*": {"d": 32}, "a*": {"pattern": "2:4", "d": 4}}, other_dtype="float16")
    return model_of(rng, layers, tensors, recipe=recipe, provenance={"model": "tiny", "classes": [1, None, "é"]})


def assert_same(a: CompressedModel, b: CompressedModel) -> None:
    """Equal in all that a file keeps, to the bit and in order."""
    assert a.recipe == b.recipe
    assert a.provenance == b.provenance
    assert list(a.codebooks) == list(b.codebooks)
    for key, codebook in a.codebooks.items():
        assert codebook.scale == b.codebooks[key].scale
        _assert_array(codebook.codes, b.codebooks[key].codes)
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
    for one, other in zip(a.layers, b.layers, strict=True):
        assert type(one) is type(other)
        for field, value in vars(one).items():
            found = vars(other)[field]
            if isinstance(value, np.ndarray):
                _assert_array(value, found)
            else:
                assert value == found or (value != value and found != found), field
    assert list(a.tensors) == list(b.tensors)
    for name, tensor in a.tensors.items():
        _assert_array(tensor, b.tensors[name])


def _assert_array(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    assert b.flags.writeable


def take_apart(data: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """Table, header and streams of a file, by the text of the specification."""
    (length,) = struct.unpack_from("<Q", data)
    table = json.loads(data[8 : 8 + length])
    header = json.loads(table["__metadata__"]["mvq"])
    streams = {}
    for name, entry in table.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            streams[name] = data[8 + length + start : 8 + length + end]
    return table, header, streams


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def put_together(table: dict[str, Any], header: Any, streams: dict[str, bytes]) -> bytes:
    """A file of this table, with the header and its digest in it and the streams in the table's order of offsets."""
    text = header if isinstance(header, str) else canonical(header)
    table["__metadata__"] |= {"mvq": text, "mvq_sha256": digest(text)}
    return raw_file(table, streams)


def raw_file(table: Any, streams: dict[str, bytes]) -> bytes:
    raw = (table if isinstance(table, str) else canonical(table)).encode()
    raw += b" " * (-len(raw) % 8)
    order = [n for n in table if n in streams] if isinstance(table, dict) else []
    order.sort(key=lambda name: table[name]["data_offsets"][0])
    return struct.pack("<Q", len(raw)) + raw + b"".join(streams[name] for name in order)


def edited(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with its header changed and the header's digest made right again."""
    table, header, streams = take_apart(data)
    replacement = change(header)
    return put_together(table, header if replacement is None else replacement, streams)


def restreamed(data: bytes, name: str, change: Callable[[bytearray], None]) -> bytes:
    """The file with a stream changed in place and all digests made right again."""
    table, header, streams = take_apart(data)
    stream = bytearray(streams[name])
    change(stream)
    streams[name] = bytes(stream)
    header["streams"][name] = digest(streams[name])
    return put_together(table, header, streams)
