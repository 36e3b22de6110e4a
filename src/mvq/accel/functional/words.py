"""Weight words: what the loader reads, bit by bit, in the order the array is written (`docs/spec/weight-words.md`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.mapping import Mapping, nest, points_of
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.compressed import CompressedModel, VQLayer
from mvq.errors import ConfigError, StreamError
from mvq.patterns import Pattern

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredWeight:
    """A layer's weights as the machine stores them.

    A word holds the lanes of `lanes` consecutive output channels at one input channel and kernel point. The last word
    of a compressed layer may have padding, that of a plain one has fewer lanes.

    Attributes:
        lanes: output channels of a word.
        n_words: words at one input channel and kernel point.
        fields: from the low bits of a word up, values `(n_words, Cin / groups, points)` and their width in bits.
        pattern: of the masks; dense where a word has none.
        subvector: lanes of a stored subvector, of which a word may have several.
        codebook: int8 `(k, width)`; None where codes are stored themselves.
        packed: whether a codeword lists kept values.
        per_group: words of a group of channels.
        last_fields: of the last word of a group; the others are not stored, as they would be padding.
    """

    lanes: int
    n_words: int
    fields: tuple[tuple[Array, int], ...]
    pattern: Pattern
    subvector: int
    codebook: NDArray[np.int8] | None
    packed: bool
    per_group: int
    last_fields: int

    @property
    def word_bits(self) -> int:
        """Bits of a word."""
        return sum(bits for _, bits in self.fields)

    def present(self, words: Array) -> NDArray[np.bool_]:
        """`(n, word_bits)` bits of words that are stored."""
        widths = [bits for _, bits in self.fields]
        field = np.repeat(np.arange(len(widths)), widths)
        return (words[:, None] % self.per_group < self.per_group - 1) | (field < self.last_fields)


def stored_weight(spec: AcceleratorSpec, layer: Layer, model: CompressedModel, codes: NDArray[np.int8]) -> StoredWeight:
    """How a machine stores a layer.

    Args:
        spec: machine.
        layer: its shape; the name is that of the layer in the model.
        model: compressed network.
        codes: int8 `(Cout, Cin / groups, kh, kw)` weights, for layers and machines that store codes.

    Raises:
        ConfigError: if the machine cannot take the layer as it is compressed; says why.
    """
    found = next(one for one in model.layers if one.name == layer.name)
    flat = codes.reshape(codes.shape[0], codes.shape[1], -1).astype(np.int64)
    if not isinstance(found, VQLayer) or spec.weights == "int8":
        return _plain(spec, layer, flat)
    if (fault := fault_of(spec, layer, found)) is not None:
        raise ConfigError(f"layer {layer.name!r} on {spec.name!r}: {fault}")
    d, ratio = spec.d, spec.d // found.d
    n_words = -(-found.shape[0] // d)
    grid = (-(-found.shape[0] // found.d), flat.shape[1], flat.shape[2])
    masks = _words(found.mask_ids.reshape(*grid, -1), n_words, ratio)
    pattern = found.pattern if spec.has_masks else Pattern(1, 1)
    mask_fields = [(ids, pattern.mask_bits) for ids in masks] if not pattern.is_dense else []
    if spec.weights == "nm":
        kept = _kept_codes(flat, found, n_words, d)
        return StoredWeight(
            lanes=d,
            n_words=n_words,
            fields=(*((each, spec.weight_bits) for each in kept), *mask_fields),
            pattern=pattern,
            subvector=d,
            codebook=None,
            packed=True,
            per_group=n_words,
            last_fields=len(kept) + len(mask_fields),
        )
    indices = _words(found.assignments.reshape(*grid, 1), n_words, ratio)
    return StoredWeight(
        lanes=d,
        n_words=n_words,
        fields=(*((each, (found.n_codewords - 1).bit_length()) for each in indices), *mask_fields),
        pattern=pattern,
        subvector=found.d,
        codebook=model.codebooks[found.codebook].codes,
        packed=found.codewords == "packed",
        per_group=n_words,
        last_fields=len(indices) + len(mask_fields),
    )


def fault_of(spec: AcceleratorSpec, layer: Layer, stored: VQLayer) -> str | None:
    """Why a machine cannot take a compressed layer as it is; None if it can."""
    if layer.groups > 1:
        return f"compressed layers have one group of channels, not {layer.groups}"
    if (fault := layer.fault_on(spec)) is not None:
        return fault
    if spec.weights == "vq" and not stored.pattern.is_dense:
        return f"weights='vq' has no masks, the layer has those of {stored.pattern}"
    if spec.weights == "mvq" and stored.codewords != spec.codewords and not stored.pattern.is_dense:
        return f"its codewords are {stored.codewords}, the machine's are {spec.codewords}"
    return None


def _plain(spec: AcceleratorSpec, layer: Layer, codes: Array) -> StoredWeight:
    lanes = min(spec.d, layer.c_out // layer.groups)
    per_group = -(-(layer.c_out // layer.groups) // lanes)
    grouped = codes.reshape(layer.groups, layer.c_out // layer.groups, *codes.shape[1:])
    padded = np.pad(grouped, ((0, 0), (0, per_group * lanes - grouped.shape[1]), (0, 0), (0, 0)))
    words = padded.reshape(layer.groups * per_group, lanes, *codes.shape[1:])
    return StoredWeight(
        lanes=lanes,
        n_words=len(words),
        fields=tuple((words[:, i] & ((1 << spec.weight_bits) - 1), spec.weight_bits) for i in range(lanes)),
        pattern=Pattern(1, 1),
        subvector=lanes,
        codebook=None,
        packed=False,
        per_group=per_group,
        last_fields=grouped.shape[1] - (per_group - 1) * lanes,
    )


def _words(ids: Array, n_words: int, ratio: int) -> list[Array]:
    """Ids `(n_sub_groups, C, P, n)` as fields of words: the subvectors of a word one after the other."""
    missing = n_words * ratio - ids.shape[0]
    padded = np.pad(ids.astype(np.int64), ((0, missing), (0, 0), (0, 0), (0, 0)))
    grouped = padded.reshape(n_words, ratio, *padded.shape[1:])
    return [grouped[:, i, :, :, j] for i in range(ratio) for j in range(ids.shape[-1])]


def _kept_codes(codes: Array, stored: VQLayer, n_words: int, d: int) -> list[Array]:
    """The codes that masks keep, in the order of their lanes; those of padding are 0."""
    padded = np.pad(codes, ((0, n_words * d - codes.shape[0]), (0, 0), (0, 0)))
    lanes = np.moveaxis(padded.reshape(n_words, d, *codes.shape[1:]), 1, -1)
    grid = (-(-stored.shape[0] // stored.d), *codes.shape[1:])
    ids = stored.mask_ids.reshape(*grid, -1)
    missing = n_words * d // stored.d - grid[0]
    ids = np.pad(ids, ((0, missing), (0, 0), (0, 0), (0, 0)))
    masks = stored.pattern.unrank(ids).reshape(n_words, -1, *codes.shape[1:], stored.d)
    mask = np.moveaxis(masks, 1, -2).reshape(*lanes.shape)
    kept = lanes[mask].reshape(*lanes.shape[:-1], stored.pattern.kept_per(d))
    return [kept[..., i] & 0xFF for i in range(kept.shape[-1])]


def load_order(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, stored: StoredWeight) -> Array:
    """Which words the loader reads, one after the other, for one tile of output rows.

    By the loop nest: groups, output steps, input steps, blocks of entries; in a block entries, sets of input channels,
    sets of output channels, rows of the array, and the words of a row. A word is read with the first pass of its point.

    Returns:
        `(n, 3)`: word, input channel of its group, kernel point.

    Raises:
        ConfigError: if the mapping does not fit.
    """
    n, passes = nest(spec, layer, mapping), layer.passes(spec)
    parts = []
    for g in range(n.groups.n):
        groups = range(g * n.groups.full, g * n.groups.full + n.groups.size(g))
        for k in range(n.outputs.n):
            first = k * n.outputs.full
            columns = _parts(first, n.outputs.size(k), spec.cols)
            for c in range(n.inputs.n):
                rows = _parts(c * n.inputs.full, n.inputs.size(c), spec.rows)
                for e in range(n.entries.n):
                    start = e * n.entries.full
                    steps = [i // passes for i in range(start, start + n.entries.size(e)) if i % passes == 0]
                    parts += list(_block(groups, columns, rows, steps, layer, mapping, stored.lanes, stored.per_group))
    return np.concatenate(parts)


def _parts(first: int, n: int, size: int) -> list[range]:
    return [range(i, min(i + size, first + n)) for i in range(first, first + n, size)]


def _block(
    groups: range,
    columns: list[range],
    rows: list[range],
    steps: list[int],
    layer: Layer,
    mapping: Mapping,
    lanes: int,
    per_group: int,
) -> Iterator[Array]:
    for step in steps:
        points = np.array(points_of(layer, mapping.fold, step))
        for channels in rows:
            for outs in columns:
                words = np.arange(outs.start // lanes, -(-outs.stop // lanes))
                grid = np.meshgrid(np.array(groups), points, np.array(channels), words, indexing="ij")
                g, p, c, w = (axis.ravel() for axis in grid)
                yield np.stack([g * per_group + w, c, p], axis=1)


def pack(stored: StoredWeight, order: Array) -> bytes:
    """The stream: words in their order, the low bit of the first field first, without gaps; zero bits at the end."""
    words, channels, points = order.T
    bits = [_bits(values[words, channels, points], width) for values, width in stored.fields]
    return np.packbits(np.concatenate(bits, axis=1)[stored.present(words)], bitorder="little").tobytes()


def unpack(stream: bytes, stored: StoredWeight, order: Array) -> list[Array]:
    """Fields `(n_words, Cin / groups, points)` of a stream; of `stored` only their widths are looked at.

    Raises:
        StreamError: if the stream has another length.
    """
    words, channels, points = order.T
    present = stored.present(words)
    total = int(present.sum())
    if len(stream) != -(-total // 8):
        raise StreamError(
            f"weight words: {len(order)} words of {total} bits together take {-(-total // 8)} bytes, "
            f"the stream has {len(stream)}"
        )
    rows, start, fields = np.zeros(present.shape, np.int64), 0, []
    rows[present] = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little", count=total)
    for values, width in stored.fields:
        field = np.zeros(values.shape, np.int64)
        field[words, channels, points] = rows[:, start : start + width] @ (1 << np.arange(width, dtype=np.int64))
        fields.append(field)
        start += width
    return fields


def _bits(values: Array, width: int) -> Array:
    return ((values[:, None] >> np.arange(width)) & 1).astype(np.uint8)
