"""Reading `.mvq` files. Nothing in them is believed before it has been checked.

Opening reads and checks the header only. A stream is read into memory on first use and checked against its digest
there, so later changes of the file cannot do harm. Streams are the unit: one layer costs the read of the streams it
is in, which for compressed weights are small.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mvq.compressed import (
    Codebook,
    CompressedModel,
    DenseLayer,
    Int8Layer,
    Layer,
    VQLayer,
    index_dtype,
)
from mvq.errors import (
    BadMagicError,
    DigestError,
    FileError,
    FormatError,
    HeaderError,
    ModelError,
    StreamError,
    TruncatedError,
    UnsupportedVersionError,
)
from mvq.format import container, decode, header
from mvq.format.bits import unpack
from mvq.format.layout import LayerEntry, TensorEntry
from mvq.recipe import Recipe

_REMEDIES: dict[type[FormatError], str] = {
    BadMagicError: "name a file that mvq.save or mvq compress wrote",
    UnsupportedVersionError: "install a newer mvq",
}
_DAMAGED = "the file is damaged; copy it again or write it anew"


def open_file(path: str | os.PathLike[str]) -> MvqFile:
    """Open a file and check its header; streams are read and checked on first use.

    Args:
        path: of the file.

    Raises:
        FileError: if it cannot be read.
        FormatError: a subclass for every fault.
    """
    return MvqFile(path)


def read(path: str | os.PathLike[str]) -> CompressedModel:
    """Read a whole file, every byte checked.

    Raises:
        FileError: if it cannot be read.
        FormatError: a subclass for every fault.
    """
    with open_file(path) as file:
        return file.read()


class MvqFile:
    """An open `.mvq` file; made by `open_file`. A context manager; threads may share it.

    Attributes:
        path: as given.
        file_bytes: length of the file.
        recipe: what the network was compressed with.
        provenance: what the writer noted about its origin.
        layers: every convolution and linear weight, in module order, as the header describes it.
        tensor_entries: every other tensor: name, dtype and shape.
        stream_bytes: length of every stream.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._lock = threading.RLock()
        descriptor, self.file_bytes = _open(self.path)
        self._close = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        try:
            with self._faults():
                self._read_header()
        except BaseException:
            self._close()
            raise

    def _read_header(self) -> None:
        n_table = container.table_bytes(self._pread(0, min(self.file_bytes, 9)), self.file_bytes)
        text, self._extents = container.parse(self._pread(container.PREFIX_BYTES, n_table), self.file_bytes)
        parsed, self._layout = header.decode(text)
        self._digests = parsed.digests
        self.recipe: Recipe = parsed.recipe
        self.provenance: Mapping[str, Any] = parsed.provenance
        self.layers: tuple[LayerEntry, ...] = parsed.layers
        self.tensor_entries: tuple[TensorEntry, ...] = parsed.tensors
        self.stream_bytes = self._layout.stream_bytes
        found = {name: extent.n_bytes for name, extent in self._extents.items()}
        for name in sorted(found.keys() | self.stream_bytes.keys()):
            if found.get(name) != self.stream_bytes.get(name):
                raise HeaderError(
                    f"stream {name!r} has {found.get(name, 0)} bytes, the tables of the header need "
                    f"{self.stream_bytes.get(name, 0)}"
                )
        self._entries = {layer.name: layer for layer in self.layers}
        self._tensors = {tensor.name: tensor for tensor in self.tensor_entries}
        self._codebook_entries = parsed.codebooks
        self._streams: dict[str, NDArray[np.uint8]] = {}
        self._codebooks: dict[str, Codebook] | None = None
        self._values: dict[str, NDArray[np.float32]] = {}

    def __enter__(self) -> MvqFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what has been read stays usable."""
        with self._lock:
            self._close()

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """Every codebook, by key.

        Raises:
            FormatError: if their streams are damaged.
        """
        with self._faults(), self._lock:
            if self._codebooks is None:
                self._codebooks = self._read_codebooks()
            return dict(self._codebooks)

    def layer(self, name: str) -> Layer:
        """One layer as plain data, still compressed.

        Raises:
            ModelError: if there is no such layer.
            FormatError: if its data are damaged.
        """
        entry = self._entry(name)
        with self._faults():
            return self._layer(entry)

    def dense_weight(self, name: str) -> NDArray[np.float32]:
        """The dense float32 weight of one layer, decoded on several cores.

        Raises:
            ModelError: if there is no such layer.
            FormatError: if its data are damaged.
        """
        entry = self._entry(name)
        self._prepare([entry])
        with self._faults():
            return self._dense(entry, None)

    def dense_weights(self) -> dict[str, NDArray[np.float32]]:
        """The dense float32 weights of all layers, by name; layers are decoded side by side.

        Raises:
            FormatError: if the file is damaged.
        """
        self._prepare(self.layers)
        # Largest first, so that the threads end together.
        order = sorted(self.layers, key=lambda layer: -layer.n_weights)
        with self._faults():
            weights = decode.run_all(
                [lambda entry=entry: self._dense(entry, 1) for entry in order], numba.get_num_threads()
            )
        by_name = dict(zip((entry.name for entry in order), weights, strict=True))
        return {entry.name: by_name[entry.name] for entry in self.layers}

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors outside the compressed layers."""
        return tuple(self._tensors)

    def tensor(self, name: str) -> NDArray:
        """A tensor outside the compressed layers, as a new array.

        Raises:
            ModelError: if there is no such tensor.
            FormatError: if its stream is damaged.
        """
        entry = self._tensors.get(name)
        if entry is None:
            raise ModelError(f"file {self.path!r} has no tensor {name!r}; see tensor_names")
        with self._faults():
            return self._tensor(entry)

    def read(self) -> CompressedModel:
        """The whole network, every byte of the file checked.

        Raises:
            FormatError: if the file is damaged.
        """
        with self._faults():
            for name in self.stream_bytes:
                self._stream(name)
            return CompressedModel(
                recipe=self.recipe,
                layers=tuple(self._layer(entry) for entry in self.layers),
                codebooks=self.codebooks,
                tensors={entry.name: self._tensor(entry) for entry in self.tensor_entries},
                provenance=self.provenance,
            )

    def _entry(self, name: str) -> LayerEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise ModelError(
                f"file {self.path!r} has no layer {name!r}; its {len(self.layers)} layers look like "
                f"{', '.join(repr(layer.name) for layer in self.layers[:3])}"
            )
        return entry

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Put the file's name before, and the remedy after, the text of a fault."""
        try:
            yield
        except FormatError as error:
            if str(error).startswith(f"file {self.path!r}: "):
                raise
            remedy = _REMEDIES.get(type(error), _DAMAGED)
            raise type(error)(f"file {self.path!r}: {error}; {remedy}") from None

    def _pread(self, start: int, n_bytes: int) -> bytes:
        chunks = []
        with self._lock:
            if not self._close.alive:
                raise FileError(f"file {self.path!r} is closed; open it again")
            try:
                while n_bytes and (chunk := _read_at(self._descriptor, n_bytes, start)):
                    chunks.append(chunk)
                    n_bytes -= len(chunk)
                    start += len(chunk)
            except OSError as error:
                raise FileError(f"cannot read {self.path!r}: {error.strerror or error}") from error
        if n_bytes:
            raise TruncatedError(f"{n_bytes} bytes are missing at its end, it became shorter while open")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _stream(self, name: str) -> NDArray[np.uint8]:
        """Bytes of a stream, checked once; an absent one is empty."""
        with self._lock:
            if name not in self._streams:
                extent = self._extents.get(name)
                data = self._pread(extent.start, extent.n_bytes) if extent else b""
                if extent and (found := container.sha256(data)) != self._digests[name]:
                    raise DigestError(
                        f"stream {name!r} at offset {extent.start}: SHA-256 is {found}, {self._digests[name]} was "
                        f"recorded"
                    )
                array = np.frombuffer(data, dtype=np.uint8)
                if name == "scales":
                    _check_scales(array.view("<f4"))
                elif name == "tensors.bool":
                    _check_bools(array)
                self._streams[name] = array
            return self._streams[name]

    def _scales(self, start: int, count: int) -> NDArray[np.float32]:
        return self._stream("scales").view("<f4")[start : start + count].astype(np.float32)

    def _read_codebooks(self) -> dict[str, Codebook]:
        codebooks = {}
        for entry in self._codebook_entries:
            start, scale = self._layout.codebooks[entry.key]
            codes = self._stream("codebooks")[start : start + entry.n_codewords * entry.width]
            codes = codes.view(np.int8).reshape(entry.n_codewords, entry.width).copy()
            codebooks[entry.key] = Codebook(codes, float(self._scales(scale, 1)[0]))
        return codebooks

    def _layer(self, entry: LayerEntry) -> Layer:
        if entry.storage == "dense":
            return DenseLayer(entry.name, entry.kind, entry.role, entry.shape)
        if entry.storage == "int8":
            codes, scales = self._int8(entry)
            return Int8Layer(entry.name, entry.kind, entry.role, codes.copy(), scales)
        assignments, mask_ids = self._indices(entry)
        return VQLayer(
            name=entry.name,
            kind=entry.kind,
            role=entry.role,
            shape=entry.shape,
            pattern=entry.pattern,
            d=entry.d,
            codewords=entry.codewords,
            codebook=entry.codebook,
            n_codewords=entry.n_codewords,
            assignments=assignments,
            mask_ids=mask_ids.reshape(entry.n_sub, entry.n_blocks),
            masked_sse=entry.masked_sse,
            total_sse=entry.total_sse,
        )

    def _int8(self, entry: LayerEntry) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes, not to be written to, and scales."""
        start, scale = self._layout.layers[entry.name]
        codes = self._stream("int8")[start : start + entry.n_weights].view(np.int8)
        return codes.reshape(entry.shape), self._scales(scale, entry.shape[0])

    def _indices(self, entry: LayerEntry) -> tuple[NDArray[np.uint16], NDArray[np.unsignedinteger]]:
        """Assignments and mask ids, in range."""
        starts = self._layout.layers[entry.name]
        n_ids = entry.n_sub * entry.n_blocks
        out = []
        for stream, start, n_bytes, bits, count, limit in (
            ("assignments", starts[0], entry.assign_bytes, entry.assign_bits, entry.n_sub, entry.n_codewords),
            ("masks", starts[1], entry.mask_bytes, entry.pattern.mask_bits, n_ids, entry.pattern.n_masks),
        ):
            try:
                ids = unpack(self._stream(stream)[start : start + n_bytes], bits, count)
            except StreamError as error:
                raise StreamError(f"layer {entry.name!r}: {stream}: {error}") from None
            # Codes that use their bits up cannot be out of range.
            if limit < 1 << bits and count and int(ids.max()) >= limit:
                where = int(np.argmax(ids >= limit))
                raise StreamError(
                    f"layer {entry.name!r}: {stream}: entry {where} is {int(ids[where])}, not in 0..{limit - 1}"
                )
            out.append(ids.astype(index_dtype(limit), copy=False))
        return out[0], out[1]

    def _tensor(self, entry: TensorEntry) -> NDArray:
        start = self._layout.tensors[entry.name]
        data = self._stream(f"tensors.{entry.dtype}")[start : start + entry.n_bytes]
        dtype = np.dtype(entry.dtype)
        return data.view(dtype.newbyteorder("<")).astype(dtype).reshape(entry.shape)

    def _prepare(self, entries: tuple[LayerEntry, ...] | list[LayerEntry]) -> None:
        """Read what several layers share before threads ask for it."""
        if any(entry.storage == "vq" for entry in entries):
            codebooks = self.codebooks
            for entry in entries:
                if entry.storage == "vq" and entry.codebook not in self._values:
                    self._values[entry.codebook] = codebooks[entry.codebook].values

    def _dense(self, entry: LayerEntry, threads: int | None) -> NDArray[np.float32]:
        if entry.storage == "dense":
            return self._tensor(self._tensors[f"{entry.name}.weight"]).astype(np.float32, copy=False)
        if entry.storage == "int8":
            codes, scales = self._int8(entry)
            # As Int8Layer.dense, without an array in between.
            return np.multiply(codes, scales.reshape(-1, *[1] * (codes.ndim - 1)), dtype=np.float32)
        assignments, mask_ids = self._indices(entry)
        return decode.decode(
            assignments,
            mask_ids,
            self._values[entry.codebook],
            shape=entry.shape,
            pattern=entry.pattern,
            d=entry.d,
            packed=entry.codewords == "packed",
            threads=threads,
        )


def _open(path: str) -> tuple[int, int]:
    """Descriptor and length of a regular file."""
    try:
        # Not blocking, or opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise FileError(f"cannot open {path!r}: {error.strerror or error}; check the path") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FileError(f"cannot open {path!r}: it is not a regular file; check the path")
    return descriptor, status.st_size


def _read_at(descriptor: int, n_bytes: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        # Leaves the file position alone, which processes share after a fork.
        return os.pread(descriptor, n_bytes, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, n_bytes)


def _check_scales(scales: NDArray[np.float32]) -> None:
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        where = int(np.argmax(bad))
        raise StreamError(f"stream 'scales': entry {where} is {scales[where]}, not positive and finite")


def _check_bools(data: NDArray[np.uint8]) -> None:
    if data.size and int(data.max()) > 1:
        where = int(np.argmax(data > 1))
        raise StreamError(f"stream 'tensors.bool': byte {where} is {int(data[where])}, not 0 or 1")
