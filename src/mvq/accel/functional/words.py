"""Weight words: what the loader reads, bit by bit, in the order the array is written (`docs/spec/weight-words.md`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.mapping import Mapping, nest
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.compressed import CompressedModel, VQLayer
from mvq.errors import ConfigError, StreamError
from mvq.patterns import Pattern

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredWeight:
    """A layer's weights as the machine stores them.

    A word holds the lanes of `lanes` consecutive output channels at one input channel and kernel point. Of a plain
    layer a pass stores the codes that its multipliers take, of a compressed one the whole word.

    Attributes:
        lanes: output channels of a word.
        n_words: words at one input channel and kernel point.
        fields: of a word, values `(n_words, Cin / groups, points)` and their width in bits: the codes of a plain
            layer's lanes, or those of a compressed word from its low bits up.
        pattern: of the masks; dense where a word has none.
        subvector: lanes of a stored subvector, of which a word may have several.
        codebook: int8 `(k, width)`; None where codes are stored themselves.
        packed: whether a codeword lists kept values.
        per_group: words of a group of channels.
        slots: of a plain layer, the lanes that each pass stores, `(passes, n)`, of a whole word and of the last one of
            a group; -1 for a multiplier that has none, for which a zero is stored. None for a compressed layer.
    """

    lanes: int
    n_words: int
    fields: tuple[tuple[Array, int], ...]
    pattern: Pattern
    subvector: int
    codebook: NDArray[np.int8] | None
    packed: bool
    per_group: int
    slots: tuple[Array, Array] | None = None

    def stored(self, order: Array) -> tuple[Array, Array]:
        """What is stored of each word read: numbers of fields `(n, fields)`, -1 for a zero, and how many there are."""
        if self.slots is None:
            every = np.broadcast_to(np.arange(len(self.fields)), (len(order), len(self.fields)))
            return np.where(order[:, 2:3] >= 0, every, -1), np.full(len(order), len(self.fields))
        whole, last = self.slots
        is_last = order[:, 0] % self.per_group == self.per_group - 1
        padded = np.full((2, *whole.shape), -1)
        padded[0], padded[1, :, : last.shape[1]] = whole, last
        found = np.where(order[:, 2:3] >= 0, padded[is_last.astype(int), order[:, 3]], -1)
        return found, np.where(is_last, last.shape[1], whole.shape[1])


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
        slots=(
            pass_lanes(spec, layer, lanes),
            pass_lanes(spec, layer, grouped.shape[1] - (per_group - 1) * lanes),
        ),
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


def pass_lanes(spec: AcceleratorSpec, layer: Layer, lanes: int) -> Array:
    """Lanes `(passes, n)` of a plain word that a row of a tile multiplies in each pass, -1 for none.

    A sparse tile has N multipliers for each M lanes, which take N of them in a row at a time. The i-th reaches lanes i
    to i + M - N.
    """
    if spec.tile == "dense":
        return np.arange(lanes)[None]
    keep, group = spec.nm.keep, spec.nm.group
    blocks, at = np.divmod(np.arange(spec.q), keep)
    stored = blocks * group + at < lanes
    passes = np.arange(layer.passes(spec))[:, None]
    # A multiplier reaches lanes up to M - N above its place: those left over in the end sit as far up as can be.
    lane = np.where(passes < group // keep, passes * keep, group - keep) + at
    found = blocks * group + lane
    return np.where((lane >= passes * keep) & (found < lanes), found, -1)[:, stored]


def load_order(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, stored: StoredWeight) -> Array:
    """Which words the loader reads, one after the other, for one tile of output rows.

    By the loop nest: groups, output steps, input steps, blocks of entries; in a block entries, sets of input channels,
    sets of output channels, rows of the array, and the words of a row.

    Returns:
        `(n, 5)`: word, input channel of its group, kernel point, pass, and number of the block. The point is -1 in
        rows that the last points leave over, where zeros are stored.

    Raises:
        ConfigError: if the mapping does not fit.
    """
    n, passes = nest(spec, layer, mapping), layer.passes(spec)
    parts, number = [], 0
    for g in range(n.groups.n):
        groups = range(g * n.groups.full, g * n.groups.full + n.groups.size(g))
        for k in range(n.outputs.n):
            first = k * n.outputs.full
            columns = _parts(first, n.outputs.size(k), spec.cols)
            for c in range(n.inputs.n):
                rows = _parts(c * n.inputs.full, n.inputs.size(c), spec.rows)
                for e in range(n.entries.n):
                    start = e * n.entries.full
                    entries = [divmod(i, passes) for i in range(start, start + n.entries.size(e))]
                    for found in _block(groups, columns, rows, entries, layer, mapping, stored.lanes, stored.per_group):
                        parts.append(np.concatenate([found, np.full((len(found), 1), number)], axis=1))
                    number += 1
    return np.concatenate(parts)


def _parts(first: int, n: int, size: int) -> list[range]:
    return [range(i, min(i + size, first + n)) for i in range(first, first + n, size)]


def _block(
    groups: range,
    columns: list[range],
    rows: list[range],
    entries: list[tuple[int, int]],
    layer: Layer,
    mapping: Mapping,
    lanes: int,
    per_group: int,
) -> Iterator[Array]:
    for step, number in entries:
        points = np.arange(step * mapping.fold, (step + 1) * mapping.fold)
        points[points >= layer.n_points] = -1
        for channels in rows:
            for outs in columns:
                words = np.arange(outs.start // lanes, -(-outs.stop // lanes))
                grid = np.meshgrid(np.array(groups), points, np.array(channels), words, indexing="ij")
                g, p, c, w = (axis.ravel() for axis in grid)
                yield np.stack([g * per_group + w, c, p, np.full(len(g), number)], axis=1)


def pack(stored: StoredWeight, order: Array, beat_bits: int) -> bytes:
    """The stream: words in their order, the low bit of the first field first, without gaps inside a block.

    Args:
        stored: layer.
        order: as `load_order` gives it.
        beat_bits: of the weight port; a block begins at a new beat.
    """
    which, n = stored.stored(order)
    start, total = _places(stored, which, n, order, beat_bits)
    bits = np.zeros(total, np.uint8)
    words, channels, points = order[:, :3].T
    at = start
    for slot in range(which.shape[1]):
        for field in np.unique(which[:, slot]):
            here = (which[:, slot] == field) & (slot < n)
            values, width = stored.fields[max(field, 0)]
            if field >= 0:
                chosen = values[words[here], channels[here], points[here]]
                bits[at[here][:, None] + np.arange(width)] = _bits(chosen, width)
        at = at + _width(stored, slot)
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(stream: bytes, stored: StoredWeight, order: Array, beat_bits: int) -> list[Array]:
    """Fields `(n_words, Cin / groups, points)` of a stream; of `stored` only their widths are looked at.

    Raises:
        StreamError: if the stream has another length.
    """
    which, n = stored.stored(order)
    start, total = _places(stored, which, n, order, beat_bits)
    if len(stream) != -(-total // 8):
        raise StreamError(
            f"weight words: {len(order)} words in beats of {beat_bits} bits take {-(-total // 8)} bytes, "
            f"the stream has {len(stream)}"
        )
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little", count=total)
    words, channels, points = order[:, :3].T
    fields = [np.zeros(values.shape, np.int64) for values, _ in stored.fields]
    at = start
    for slot in range(which.shape[1]):
        for field in np.unique(which[:, slot]):
            here = (which[:, slot] == field) & (slot < n)
            width = stored.fields[max(field, 0)][1]
            if field >= 0:
                found = bits[at[here][:, None] + np.arange(width)] @ (1 << np.arange(width, dtype=np.int64))
                fields[field][words[here], channels[here], points[here]] = found
        at = at + _width(stored, slot)
    return fields


def _width(stored: StoredWeight, slot: int) -> int:
    """Of what is stored in a slot."""
    return stored.fields[slot if stored.slots is None else 0][1]


def _places(stored: StoredWeight, which: Array, n: Array, order: Array, beat_bits: int) -> tuple[Array, int]:
    """Bit at which each word begins, and how many there are in all."""
    ends = np.cumsum([_width(stored, slot) for slot in range(which.shape[1])])
    sizes = ends[n - 1]
    blocks = np.bincount(order[:, 4], weights=sizes).astype(np.int64)
    beats = -(-blocks // beat_bits) * beat_bits
    before = np.cumsum(sizes) - sizes
    shift = np.cumsum(beats) - beats - (np.cumsum(blocks) - blocks)
    return before + shift[order[:, 4]], int(beats.sum())


def _bits(values: Array, width: int) -> Array:
    return ((values[:, None] >> np.arange(width)) & 1).astype(np.uint8)
