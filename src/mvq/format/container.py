"""The safetensors container: an 8-byte little-endian length, a JSON table, the streams.

Written here and not by the safetensors library because that one does not fix the order of metadata keys; tests
check that it reads the result.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mvq.errors import (
    BadMagicError,
    DigestError,
    HeaderError,
    OverlapError,
    OversizedError,
    TruncatedError,
)
from mvq.format.layout import MAX_HEADER_BYTES, STREAM_DTYPES, STREAM_ORDER
from mvq.format.strict_json import canonical, loads, short

PREFIX_BYTES = 8
_KEYS = ("mvq", "mvq_sha256")


@dataclass(frozen=True)
class Extent:
    """Where a stream lies, in bytes from the start of the file."""

    start: int
    n_bytes: int


def build(header: str, streams: Mapping[str, bytes]) -> list[bytes]:
    """The parts of the file, in order.

    Args:
        header: canonical JSON header.
        streams: by name; empty ones are left out.
    """
    table: dict[str, Any] = {"__metadata__": {"mvq": header, "mvq_sha256": sha256(header.encode("ascii"))}}
    end = 0
    parts = []
    for name in STREAM_ORDER:
        data = streams.get(name, b"")
        if data:
            dtype, size = STREAM_DTYPES[name]
            table[name] = {
                "dtype": dtype,
                "shape": [len(data) // size],
                "data_offsets": [end, end + len(data)],
            }
            end += len(data)
            parts.append(data)
    text = canonical(table).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise OversizedError(f"header: {len(text)} bytes, more than the limit of {MAX_HEADER_BYTES}")
    return [struct.pack("<Q", len(text)), text, *parts]


def sha256(data: bytes) -> str:
    """Hex digest, lower case."""
    return hashlib.sha256(data).hexdigest()


def table_bytes(start: bytes, file_bytes: int) -> int:
    """Length of the JSON table.

    Args:
        start: the first 9 bytes of the file, fewer if it is shorter.
        file_bytes: length of the file.
    """
    if len(start) <= PREFIX_BYTES:
        raise TruncatedError(f"{file_bytes} bytes, even an empty one has more than {PREFIX_BYTES}")
    (length,) = struct.unpack_from("<Q", start)
    if start[PREFIX_BYTES : PREFIX_BYTES + 1] != b"{":
        raise BadMagicError("not a safetensors file: no JSON table at offset 8")
    if length > MAX_HEADER_BYTES:
        raise OversizedError(f"offset 0: a table of {length} bytes is announced, the limit is {MAX_HEADER_BYTES}")
    if length > file_bytes - PREFIX_BYTES:
        raise TruncatedError(f"offset 0: a table of {length} bytes is announced, {file_bytes - PREFIX_BYTES} follow")
    return length


def parse(raw: bytes, file_bytes: int) -> tuple[str, dict[str, Extent]]:
    """Check the JSON table.

    Args:
        raw: its bytes.
        file_bytes: length of the file.

    Returns:
        The mvq header, matching its digest, and the extents of the streams, which fill the file exactly.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError(f"table: not UTF-8 at offset {PREFIX_BYTES + error.start}") from None
    table = loads(text, "table")
    header = _header(table.pop("__metadata__", None))
    extents = {name: _extent(name, entry) for name, entry in table.items()}
    base = PREFIX_BYTES + len(raw)
    _check_tiling(extents, file_bytes - base)
    return header, {name: Extent(base + e.start, e.n_bytes) for name, e in extents.items()}


def _header(metadata: Any) -> str:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("mvq"), str):
        raise BadMagicError("a safetensors file, but its metadata holds no mvq header")
    if sorted(metadata) != sorted(_KEYS) or not isinstance(metadata["mvq_sha256"], str):
        raise HeaderError(
            f"metadata: expected the strings {', '.join(map(repr, _KEYS))} only, got the keys "
            f"{', '.join(short(key) for key in sorted(metadata)[:4])}"
        )
    header = metadata["mvq"]
    if not header.isascii():
        raise HeaderError("header: not ASCII")
    found = sha256(header.encode("ascii"))
    if found != metadata["mvq_sha256"]:
        raise DigestError(f"header: SHA-256 is {found}, {short(metadata['mvq_sha256'])} was recorded")
    return header


def _extent(name: str, entry: Any) -> Extent:
    if name not in STREAM_DTYPES:
        raise HeaderError(f"table: tensor {short(name)} is not a stream of the format")
    if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
        raise HeaderError(f"table: stream {name!r}: expected exactly dtype, shape and data_offsets")
    dtype, size = STREAM_DTYPES[name]
    if entry["dtype"] != dtype:
        raise HeaderError(f"table: stream {name!r}: dtype {short(entry['dtype'])}, must be {dtype!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape, 1) or not _naturals(offsets, 2):
        raise HeaderError(
            f"table: stream {name!r}: shape {short(shape)} and data_offsets {short(offsets)} must be one and "
            f"two whole numbers"
        )
    n_bytes = offsets[1] - offsets[0]
    if n_bytes <= 0 or n_bytes != shape[0] * size:
        raise HeaderError(
            f"table: stream {name!r}: {shape[0]} elements of {size} bytes do not fill the bytes "
            f"{offsets[0]} to {offsets[1]}"
        )
    return Extent(offsets[0], n_bytes)


def _naturals(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(v) is int and v >= 0 for v in value)


def _check_tiling(extents: Mapping[str, Extent], data_bytes: int) -> None:
    """Streams, in whatever order, must fill the data area without gap or overlap."""
    end = 0
    before = "the start"
    for name, extent in sorted(extents.items(), key=lambda item: item[1].start):
        if extent.start != end:
            raise OverlapError(
                f"stream {name!r} begins at byte {extent.start} of the data, {before} ends at byte {end}"
            )
        end += extent.n_bytes
        before = f"stream {name!r}"
        if end > data_bytes:
            raise TruncatedError(f"{before} ends at byte {end} of the data, which has {data_bytes}")
    if end < data_bytes:
        raise OversizedError(f"{data_bytes - end} bytes follow the last stream")
