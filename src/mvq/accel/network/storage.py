"""Integer networks in files: the container of `.mvq` files, whose provenance holds the graph.

Weights lie in the file as compressed as they are, and every check of the format holds here, too. Bytes depend on the
network only.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.network.arithmetic import Requantization
from mvq.accel.network.execute import describe
from mvq.accel.network.graph import NODES, Affine, Conv, Dequantize, IntegerNetwork, Linear, Lookup, Node, TensorSpec
from mvq.compressed import CompressedModel
from mvq.errors import FormatError, HeaderError, MvqError, UnsupportedVersionError
from mvq.format import read, write

VERSION = 1
_KEY = "integer_network"
_KEYS = ("input", "nodes", "origin", "outputs", "psum_bits", "tensors", "version")
#: Largest size or count in a graph, so that a damaged one cannot ask for memory without end.
_MAX_NUMBER = 1 << 24
_MAX_RESIZED = 1 << 14


def save(network: IntegerNetwork, path: str | os.PathLike[str]) -> int:
    """Write a network to a file, atomically; gives its length in bytes.

    Raises:
        FileError: if it cannot be written; a file that was there stays as it was.
        ConfigError: if the provenance holds what JSON cannot.
    """
    arrays: dict[str, NDArray[Any]] = {}
    graph = {
        "version": VERSION,
        "psum_bits": network.psum_bits,
        "input": network.input,
        "outputs": list(network.outputs),
        "tensors": [[name, spec.dtype, list(spec.shape), spec.scale] for name, spec in network.tensors.items()],
        "nodes": [_row(node, arrays) for node in network.nodes],
        "origin": dict(network.provenance),
    }
    return write(dataclasses.replace(network.weights, tensors=arrays, provenance={_KEY: graph}), path)


def load(path: str | os.PathLike[str]) -> IntegerNetwork:
    """Read a network from a file and check that it fits together.

    Raises:
        FileError: if it cannot be read.
        FormatError: if it is damaged or holds no integer network.
    """
    return from_model(read(path), os.fspath(path))


def from_model(model: CompressedModel, name: str) -> IntegerNetwork:
    """The integer network that a compressed model carries in its provenance.

    Args:
        model: as read from a file.
        name: of the file, for errors.

    Raises:
        FormatError: if there is none or it does not fit together.
    """
    try:
        return _network(model)
    except (MvqError, TypeError, ValueError, LookupError, AttributeError) as error:
        kind = type(error) if isinstance(error, FormatError) else HeaderError
        raise kind(f"file {name!r}: integer network: {error}; write it anew with mvq export") from error


def _row(node: Node, arrays: dict[str, NDArray[Any]]) -> list[Any]:
    """`[kind, name, inputs, settings]`; arrays go into the file's tensors."""
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Requantization):
            settings[field.name] = [value.low, value.high]
            arrays[f"{node.name}.mantissa"], arrays[f"{node.name}.shift"] = value.mantissa, value.shift
        elif isinstance(value, np.ndarray):
            arrays[f"{node.name}.{field.name}"] = value
        elif field.name not in ("name", "inputs"):
            settings[field.name] = value
    return [node.kind, node.name, list(node.inputs), settings]


def _network(model: CompressedModel) -> IntegerNetwork:
    graph = model.provenance.get(_KEY)
    if not isinstance(graph, Mapping):
        raise HeaderError("the file holds a compressed network, but no integer network")
    if graph.get("version") != VERSION:
        raise UnsupportedVersionError(f"version {graph.get('version')!r}, this version of mvq reads {VERSION}")
    if sorted(graph) != list(_KEYS):
        raise HeaderError(f"keys {sorted(graph)}, must be {list(_KEYS)}")
    unread = dict(model.tensors)
    nodes = tuple(_node(row, unread) for row in graph["nodes"])
    if unread:
        raise HeaderError(f"tensors {sorted(unread)[:3]} belong to no operation")
    weights = dataclasses.replace(model, tensors={}, provenance={})
    specs = {name: _spec(name, dtype, shape, scale) for name, dtype, shape, scale in graph["tensors"]}
    network = IntegerNetwork(
        graph["input"],
        tuple(graph["outputs"]),
        specs,
        nodes,
        weights,
        _number(graph["psum_bits"]),
        _mapping(graph["origin"]),
    )
    scales = {name: spec.scale for name, spec in specs.items()}
    found = describe(network.input, specs[network.input], nodes, weights, scales)
    for name, spec in found.items():
        if spec != specs[name]:
            raise HeaderError(f"tensor {name!r} is described as {specs[name]}, its operation gives {spec}")
    return network


def _spec(name: str, dtype: Any, shape: Any, scale: Any) -> TensorSpec:
    exact = isinstance(scale, float) and scale > 0 and float(np.float32(scale)) == scale
    if dtype not in ("int8", "int32", "float32") or not exact:
        raise HeaderError(f"tensor {name!r}: type {dtype!r} with scale {scale!r}; the scale must be a positive float32")
    return TensorSpec(tuple(_number(n) for n in shape), dtype, scale)


def _node(row: Any, unread: dict[str, NDArray[Any]]) -> Node:
    kind, name, inputs, settings = row
    if kind not in NODES:
        raise HeaderError(f"operation {name!r} is of the kind {kind!r}; known are {', '.join(NODES)}")
    cls = NODES[kind]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        part = f"{name}.{field.name}"
        if part in unread:
            values[field.name] = _array(cls, field.name, unread.pop(part), name)
        elif field.name == "requantization" and settings.get(field.name) is not None:
            low, high = settings[field.name]
            mantissa, shift = unread.pop(f"{name}.mantissa"), unread.pop(f"{name}.shift")
            values[field.name] = Requantization(mantissa, shift, _number(low), _number(high))
        elif field.name in settings:
            values[field.name] = _plain(settings[field.name])
    if set(settings) - set(values) or not all(isinstance(i, str) for i in [name, *inputs]):
        raise HeaderError(f"operation {name!r} ({kind}) has the settings {sorted(settings)}, which it does not know")
    node = cls(name=name, inputs=tuple(inputs), **values)
    _check(node)
    return node


#: Arrays of each kind of node: field -> types.
_ARRAYS: dict[type[Node], dict[str, tuple[str, ...]]] = {
    Conv: {"bias": ("int32",)},
    Linear: {"bias": ("int32",)},
    Affine: {"bias": ("int32",)},
    Lookup: {"table": ("int8", "float32")},
    Dequantize: {"scale": ("float32",)},
}


def _array(cls: type[Node], field: str, array: NDArray[Any], name: str) -> NDArray[Any]:
    allowed = _ARRAYS.get(cls, {}).get(field, ())
    if array.dtype.name not in allowed:
        raise HeaderError(
            f"operation {name!r}: {field} is {array.dtype.name}, must be {' or '.join(allowed) or 'none'}"
        )
    return array


def _check(node: Node) -> None:
    """What running the operations on no image would not show."""
    table = getattr(node, "table", None)
    if table is not None and table.shape != (256,):
        raise HeaderError(f"operation {node.name!r}: a table of {table.shape}, must have 256 entries")
    size = getattr(node, "size", (1,))
    if max(size) > _MAX_RESIZED or min(size) < 1:
        raise HeaderError(f"operation {node.name!r}: size {size} is not in 1..{_MAX_RESIZED}")
    for field in ("kernel", "stride", "dilation"):
        if min(getattr(node, field, (1,))) < 1:
            raise HeaderError(f"operation {node.name!r}: {field} {getattr(node, field)} must be positive")
    if min(getattr(node, "padding", (0,))) < 0 or getattr(node, "groups", 1) < 1:
        raise HeaderError(f"operation {node.name!r}: padding must not be negative, groups must be positive")


def _plain(value: Any) -> Any:
    """A setting: strings, booleans, numbers within bounds, lists as tuples."""
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    return value if value is None or isinstance(value, str | bool) else _number(value)


def _number(value: Any) -> int:
    if type(value) is not int or abs(value) > _MAX_NUMBER:
        raise HeaderError(f"{value!r} is not a whole number of at most {_MAX_NUMBER}")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise HeaderError(f"origin is {value!r}, must be an object")
    return typing.cast(Mapping[str, Any], value)
