"""Writing `.mvq` files: deterministic bytes, put in place atomically."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvq.compressed import CompressedModel, Int8Layer, Layer, VQLayer
from mvq.errors import ConfigError, FileError, HeaderError, OversizedError, ShapeError, StreamError
from mvq.format import container
from mvq.format.bits import pack
from mvq.format.header import decode, encode
from mvq.format.layout import TENSOR_DTYPES, CodebookEntry, Header, LayerEntry, TensorEntry
from mvq.format.strict_json import plain


def write(model: CompressedModel, path: str | os.PathLike[str]) -> int:
    """Write a compressed network to a file.

    The file appears at once and complete: it is written under a temporary name in the same directory, flushed to the
    device and renamed. On any failure a file that was there stays as it was. The bytes depend on the model only.

    Args:
        model: the network.
        path: of the file, `.mvq` by custom; replaced if it exists. A symbolic link is followed.

    Returns:
        Bytes of the file.

    Raises:
        FileError: if it cannot be written; nothing has changed then.
        MvqError: as `to_bytes`.
    """
    return replace_file(path, _parts(model))


def to_bytes(model: CompressedModel) -> bytes:
    """The bytes of the file `write` makes.

    Raises:
        ConfigError: if the provenance holds what JSON cannot.
        ShapeError: if a tensor's dtype cannot be stored, names repeat, or sizes are beyond the format's limits.
        StreamError: if an index does not fit its code or a recorded error is infinite.
    """
    return b"".join(_parts(model))


def _parts(model: CompressedModel) -> list[bytes]:
    tensors = {name: _tensor(name, value) for name, value in model.tensors.items()}
    streams = _streams(model, tensors.values())
    header = Header(
        recipe=model.recipe,
        provenance=_provenance(model),
        codebooks=tuple(CodebookEntry(key, c.n_codewords, c.width) for key, c in model.codebooks.items()),
        layers=tuple(_entry(layer) for layer in model.layers),
        tensors=tuple(TensorEntry(name, t.dtype.name, t.shape) for name, t in tensors.items()),
        digests={name: container.sha256(data) for name, data in streams.items()},
    )
    text = encode(header)
    try:
        # What the reader would refuse is refused here, by the same rules.
        _, layout = decode(text)
        parts = container.build(text, streams)
    except (HeaderError, OversizedError) as error:
        raise ShapeError(f"the model does not fit the file format: {error}") from None
    assert layout.stream_bytes == {name: len(data) for name, data in streams.items()}
    return parts


def _provenance(model: CompressedModel) -> dict[str, object]:
    try:
        return plain(dict(model.provenance), "provenance")
    except HeaderError as error:
        raise ConfigError(str(error)) from None


def _tensor(name: str, value: NDArray) -> NDArray:
    if not isinstance(name, str):
        raise ShapeError(f"tensor {name!r}: its name is not a string")
    if value.dtype.name not in TENSOR_DTYPES:
        raise ShapeError(
            f"tensor {name!r}: dtype {value.dtype.name} cannot be stored; convert it to one of "
            f"{', '.join(TENSOR_DTYPES)}"
        )
    return value.astype(value.dtype.newbyteorder("<"), copy=False)


def _entry(layer: Layer) -> LayerEntry:
    shape = tuple(int(n) for n in layer.shape)
    if isinstance(layer, Int8Layer):
        return LayerEntry(layer.name, layer.kind, layer.role, shape, "int8")
    if not isinstance(layer, VQLayer):
        return LayerEntry(layer.name, layer.kind, layer.role, shape, "dense")
    for what, sse in (("masked_sse", layer.masked_sse), ("total_sse", layer.total_sse)):
        if np.isinf(sse):
            raise StreamError(f"layer {layer.name!r}: {what} is {sse}; it must be finite, or NaN if unknown")
    return LayerEntry(
        layer.name,
        layer.kind,
        layer.role,
        shape,
        "vq",
        pattern=layer.pattern,
        d=layer.d,
        codewords=layer.codewords,
        codebook=layer.codebook,
        n_codewords=layer.n_codewords,
        masked_sse=float(layer.masked_sse),
        total_sse=float(layer.total_sse),
    )


def _streams(model: CompressedModel, tensors: Iterable[NDArray]) -> dict[str, bytes]:
    """Bytes of every stream that is not empty."""
    parts: dict[str, list[bytes]] = {}

    def put(stream: str, data: NDArray) -> None:
        if data.size:
            parts.setdefault(stream, []).append(data.tobytes())

    for codebook in model.codebooks.values():
        put("codebooks", codebook.codes)
        put("scales", np.array([codebook.scale], dtype="<f4"))
    for layer in model.layers:
        if isinstance(layer, VQLayer):
            put("assignments", _pack(layer, layer.assignments, layer.n_codewords))
            put("masks", _pack(layer, layer.mask_ids, layer.pattern.n_masks))
        elif isinstance(layer, Int8Layer):
            put("int8", layer.codes)
            put("scales", layer.scales.astype("<f4"))
    for tensor in tensors:
        put(f"tensors.{tensor.dtype.name}", tensor)
    return {name: b"".join(data) for name, data in parts.items()}


def _pack(layer: VQLayer, ids: NDArray[np.integer], limit: int) -> NDArray[np.uint8]:
    if ids.size and int(ids.max()) >= limit:
        raise StreamError(f"layer {layer.name!r}: index {int(ids.max())} is not in 0..{limit - 1}")
    return pack(ids, (limit - 1).bit_length())


def replace_file(path: str | os.PathLike[str], parts: Sequence[bytes]) -> int:
    """Put a file in place at once and complete, or leave what was there; gives its length.

    Raises:
        FileError: if it cannot be written.
    """
    try:
        _replace(Path(os.path.realpath(path)), parts)
    except OSError as error:
        raise FileError(
            f"cannot write {os.fspath(path)!r}: {error.strerror or error}; nothing was changed, choose a directory "
            f"that exists, is writable and has {sum(map(len, parts))} bytes free"
        ) from error
    return sum(map(len, parts))


def _replace(target: Path, parts: Iterable[bytes]) -> None:
    with _temporary(target) as (descriptor, name):
        with open(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    # The new file is in place; a system that cannot flush a directory is no reason to report a failure.
    with contextlib.suppress(OSError):
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[int, str]]:
    """A new file beside the target, gone again unless the block ends well."""
    name = str(target.parent / f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        # Ordinary creation mode, so that the umask decides who may read the file.
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        yield descriptor, name
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
