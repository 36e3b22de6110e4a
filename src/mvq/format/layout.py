"""What a `.mvq` file holds, and where: entries of the header's tables and the byte ranges that follow from them.

Normative text: `docs/spec/format.md`. Everything a reader needs to find a part of a stream is derived here from
the tables, by accumulation in table order, so parts cannot overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mvq.compressed import Kind, code_bits
from mvq.format.bits import packed_bytes
from mvq.grouping import n_subvectors
from mvq.patterns import Pattern
from mvq.recipe import Codewords, Recipe, Role

VERSION = 1
MAX_HEADER_BYTES = 1 << 24
MAX_VALUES = 1 << 20
MAX_NESTING = 32
MAX_NAME = 1024
MAX_NAMES_TOTAL = 1 << 24
MAX_ROWS = 1 << 16
MAX_DIM = (1 << 31) - 1
MAX_ELEMENTS = 1 << 48
MAX_FREE_SUBVECTORS = 1 << 20

Storage = Literal["vq", "int8", "dense"]

#: NumPy name -> (safetensors name, bytes), of tensors outside the compressed layers.
TENSOR_DTYPES: dict[str, tuple[str, int]] = {
    "bool": ("BOOL", 1),
    "float16": ("F16", 2),
    "float32": ("F32", 4),
    "float64": ("F64", 8),
    "int16": ("I16", 2),
    "int32": ("I32", 4),
    "int64": ("I64", 8),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
}
#: Stream -> (safetensors name, bytes of an element).
STREAM_DTYPES: dict[str, tuple[str, int]] = {
    "assignments": ("U8", 1),
    "codebooks": ("I8", 1),
    "int8": ("I8", 1),
    "masks": ("U8", 1),
    "scales": ("F32", 4),
    **{f"tensors.{name}": dtype for name, dtype in TENSOR_DTYPES.items()},
}
#: Widest elements first, so that each stream is aligned to its element.
STREAM_ORDER = tuple(sorted(STREAM_DTYPES, key=lambda name: (-STREAM_DTYPES[name][1], name)))


@dataclass(frozen=True)
class LayerEntry:
    """One row of the layers table.

    Attributes:
        name: module name.
        kind: `conv` or `linear`.
        role: place in the network.
        shape: of the dense weight.
        storage: `vq`, `int8` or `dense`; the fields below are set for `vq` only.
        pattern: N:M pattern.
        d: lanes of a subvector.
        codewords: `masked` or `packed`.
        codebook: key of its codebook.
        n_codewords: size of that codebook.
        masked_sse: as of `VQLayer`; NaN if unknown.
        total_sse: as of `VQLayer`; NaN if unknown.
    """

    name: str
    kind: Kind
    role: Role
    shape: tuple[int, ...]
    storage: Storage
    pattern: Pattern = field(default_factory=lambda: Pattern(1, 1))
    d: int = 1
    codewords: Codewords = "masked"
    codebook: str = ""
    n_codewords: int = 1
    masked_sse: float = math.nan
    total_sse: float = math.nan

    @property
    def n_weights(self) -> int:
        """Weights of the dense layer."""
        return math.prod(self.shape)

    @property
    def n_sub(self) -> int:
        """Number of subvectors."""
        return n_subvectors(self.shape, self.d)

    @property
    def n_blocks(self) -> int:
        """Mask ids of a subvector, 0 for a dense pattern."""
        return 0 if self.pattern.is_dense else self.d // self.pattern.group

    @property
    def assign_bits(self) -> int:
        """Bits of one assignment."""
        return code_bits(self.n_codewords)

    @property
    def assign_bytes(self) -> int:
        """Bytes of its part of `assignments`."""
        return packed_bytes(self.assign_bits, self.n_sub)

    @property
    def mask_bytes(self) -> int:
        """Bytes of its part of `masks`."""
        return packed_bytes(self.pattern.mask_bits, self.n_sub * self.n_blocks)

    @property
    def is_free(self) -> bool:
        """Whether its subvectors take no bits at all: one codeword, dense pattern."""
        return self.storage == "vq" and self.assign_bits == 0 and self.n_blocks == 0


@dataclass(frozen=True)
class CodebookEntry:
    """One row of the codebooks table: key, number of codewords, values of a codeword."""

    key: str
    n_codewords: int
    width: int


@dataclass(frozen=True)
class TensorEntry:
    """One tensor outside the compressed layers: full name, NumPy dtype name, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its part of the stream of its dtype."""
        return math.prod(self.shape) * TENSOR_DTYPES[self.dtype][1]


@dataclass(frozen=True)
class Header:
    """The header, checked."""

    recipe: Recipe
    provenance: Mapping[str, Any]
    codebooks: tuple[CodebookEntry, ...]
    layers: tuple[LayerEntry, ...]
    tensors: tuple[TensorEntry, ...]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """Byte offsets of every part inside its stream.

    Attributes:
        stream_bytes: length of every stream that is not empty.
        codebooks: key -> (offset in `codebooks`, index of its scale).
        layers: name -> (offset in `assignments`, offset in `masks`) of a `vq` layer, (offset in `int8`, index of
            its first scale) of an `int8` one.
        tensors: name -> offset in the stream of its dtype.
    """

    stream_bytes: Mapping[str, int]
    codebooks: Mapping[str, tuple[int, int]]
    layers: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, int]

    @classmethod
    def of(
        cls,
        codebooks: tuple[CodebookEntry, ...],
        layers: tuple[LayerEntry, ...],
        tensors: tuple[TensorEntry, ...],
    ) -> Layout:
        """Accumulate the tables."""
        end = dict.fromkeys(STREAM_ORDER, 0)

        def take(stream: str, n_bytes: int) -> int:
            start = end[stream]
            end[stream] += n_bytes
            return start

        of_codebooks = {c.key: (take("codebooks", c.n_codewords * c.width), take("scales", 4) // 4) for c in codebooks}
        of_layers = {}
        for layer in layers:
            if layer.storage == "vq":
                of_layers[layer.name] = (
                    take("assignments", layer.assign_bytes),
                    take("masks", layer.mask_bytes),
                )
            elif layer.storage == "int8":
                of_layers[layer.name] = (
                    take("int8", layer.n_weights),
                    take("scales", 4 * layer.shape[0]) // 4,
                )
        of_tensors = {t.name: take(f"tensors.{t.dtype}", t.n_bytes) for t in tensors}
        return cls({s: n for s, n in end.items() if n}, of_codebooks, of_layers, of_tensors)
