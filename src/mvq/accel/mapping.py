"""How a layer is laid onto an array: the loop nest, its sizes, and what it needs of the memories.

The nest is that of enhanced weight stationarity (`docs/spec/machine.md`), of which plain weight stationarity is the
case A = B = D = 1:

    for tile in output tiles, for g in groups, for K/(L A), for C/(H B), for entries/D:
        load A B D weights into every processing element
        for position in tile, for D, for B, for A: one cycle of the array

Entries are kernel points, each as often as the weights of d lanes exceed the multipliers for them. Where a layer has
few input channels, `fold` kernel points lie side by side on the rows and count as one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapping:
    """Sizes of the loop nest.

    Attributes:
        a: sets of output channels that share an activation.
        b: sets of input channels that share a partial sum.
        d: kernel points (times passes) whose weights are in the array together.
        fold: kernel points on the rows at a time.
        tile_rows: output rows of a tile.
        resident: whether a tile's input stays in L1 for all output channels; otherwise it is read again for each
            L A of them.
        overlapped: whether the next weights are loaded while these are used, which takes half of the register files.
    """

    a: int = 1
    b: int = 1
    d: int = 1
    fold: int = 1
    tile_rows: int = 1
    resident: bool = True
    overlapped: bool = False


@dataclass(frozen=True, slots=True)
class Extent:
    """A loop over parts of one size, of which the last may be smaller.

    Attributes:
        n: parts.
        full: size of all but the last.
        last: size of the last.
    """

    n: int
    full: int
    last: int

    @classmethod
    def of(cls, total: int, part: int) -> Extent:
        """`total` cut into parts of `part`."""
        n = -(-total // part)
        return cls(n, min(part, total), total - (n - 1) * part)

    @property
    def total(self) -> int:
        """Of all parts."""
        return (self.n - 1) * self.full + self.last

    def size(self, i: int) -> int:
        """Of part i."""
        return self.last if i == self.n - 1 else self.full

    def parts(self) -> list[tuple[int, int]]:
        """Sizes, and how many parts have them."""
        return [(self.full, self.n - 1), (self.last, 1)] if self.n > 1 else [(self.last, 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Nest:
    """A layer's loops on a machine.

    Attributes:
        groups_at_once: groups of channels side by side on the diagonal of the array.
        groups: steps over groups, in groups.
        outputs: steps over the output channels of a group, in channels.
        inputs: steps over its input channels, in channels.
        entries: steps over folded kernel points and passes.
        tiles: steps over output rows.
    """

    groups_at_once: int
    groups: Extent
    outputs: Extent
    inputs: Extent
    entries: Extent
    tiles: Extent


@functools.lru_cache(maxsize=16)
def nest(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> Nest:
    """The loops of a layer.

    Raises:
        ConfigError: as `check`.
    """
    if faults := check(spec, layer, mapping):
        raise ConfigError("\n".join(f"layer {layer.name!r} on {spec.name!r}: {fault}" for fault in faults))
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    at_once = groups_at_once(spec, layer)
    return Nest(
        groups_at_once=at_once,
        groups=Extent.of(layer.groups, at_once),
        outputs=Extent.of(c_out, spec.cols * mapping.a),
        inputs=Extent.of(c_in, spec.rows * mapping.b),
        entries=Extent.of(folds(layer, mapping.fold) * layer.passes(spec), mapping.d),
        tiles=Extent.of(layer.out_size[0], mapping.tile_rows),
    )


def folds(layer: Layer, fold: int) -> int:
    """Steps over the kernel points with `fold` of them on the rows."""
    return -(-layer.n_points // fold)


def points_of(layer: Layer, fold: int, step: int) -> range:
    """Kernel points on the rows in a step."""
    return range(step * fold, min((step + 1) * fold, layer.n_points))


def steps_together(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> int:
    """Most folded kernel points that `d` entries in a row belong to."""
    passes = layer.passes(spec)
    if passes == 1:
        return mapping.d
    return min(folds(layer, mapping.fold), (mapping.d + passes - 2) // passes + 1)


def groups_at_once(spec: AcceleratorSpec, layer: Layer) -> int:
    """Groups that fit on the diagonal of the array; in sparse tiles, if the columns of each begin where a pass does."""
    if layer.groups == 1:
        return 1
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    if spec.tile == "sparse" and c_out > 1 and c_out % spec.d:
        sizes = spec.nm.keep, spec.nm.group, spec.d
        if spec.nm.group % spec.nm.keep or any(size % c_out and c_out % size for size in sizes):
            return 1
    return max(1, min(spec.rows // c_in, spec.cols // c_out, layer.groups))


def input_rows(layer: Layer, first: int, n: int) -> int:
    """Input rows that `n` output rows from `first` on need, those of the padding left out."""
    low = first * layer.stride[0] - layer.padding[0]
    high = (first + n - 1) * layer.stride[0] - layer.padding[0] + (layer.kernel[0] - 1) * layer.dilation[0] + 1
    return max(min(high, layer.in_size[0]) - max(low, 0), 0)


def most_input_rows(layer: Layer, tile_rows: int) -> int:
    """Input rows of the largest tile."""
    span = (tile_rows - 1) * layer.stride[0] + (layer.kernel[0] - 1) * layer.dilation[0] + 1
    return min(span, layer.in_size[0])


def l1_bytes(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> int:
    """What a mapping keeps in L1: inputs and outputs twice where there is a next tile, and partial sums."""
    at_once = groups_at_once(spec, layer)
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    columns = min(c_out, spec.cols * mapping.a) * at_once
    channels = layer.c_in if mapping.resident else min(c_in, spec.rows * mapping.b) * at_once
    positions = mapping.tile_rows * layer.out_size[1]
    copies = 1 if mapping.resident and mapping.tile_rows >= layer.out_size[0] else 2
    inputs = copies * most_input_rows(layer, mapping.tile_rows) * layer.in_size[1] * channels
    return inputs + positions * columns * (spec.psum_bytes + 2)


def check(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> list[str]:
    """Why a mapping does not fit; empty if it does."""
    faults = []
    sizes = {key: getattr(mapping, key) for key in ("a", "b", "d", "fold", "tile_rows")}
    for key, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            faults.append(f"{key}={value!r} is not a whole number of at least 1")
    if faults:
        return faults
    if (fault := layer.fault_on(spec)) is not None:
        faults.append(fault)
    entries = mapping.a * mapping.b * mapping.d
    room = spec.wrf_entries // 2 if mapping.overlapped else spec.wrf_entries
    if entries > room:
        faults.append(f"a*b*d={entries} weights exceed {room} of wrf_entries={spec.wrf_entries}")
    if mapping.a > spec.prf_entries:
        faults.append(f"a={mapping.a} exceeds prf_entries={spec.prf_entries}")
    if (held := mapping.b * steps_together(spec, layer, mapping)) > spec.arf_entries:
        faults.append(f"{held} activations of b={mapping.b}, d={mapping.d} exceed arf_entries={spec.arf_entries}")
    if mapping.d > folds(layer, mapping.fold) * layer.passes(spec):
        faults.append(
            f"d={mapping.d} exceeds {folds(layer, mapping.fold)} kernel points in {layer.passes(spec)} passes"
        )
    if mapping.fold > most_fold(spec, layer):
        faults.append(f"fold={mapping.fold} exceeds {most_fold(spec, layer)}, as {spec.rows} rows have room for")
    if mapping.tile_rows > layer.out_size[0]:
        faults.append(f"tile_rows={mapping.tile_rows} exceeds the {layer.out_size[0]} output rows")
    if (need := l1_bytes(spec, layer, mapping)) > spec.l1_bytes:
        faults.append(f"it needs {need} bytes of L1, there are {spec.l1_bytes}")
    return faults


def most_fold(spec: AcceleratorSpec, layer: Layer) -> int:
    """Kernel points for which there are rows."""
    return max(1, min(spec.rows // (layer.c_in // layer.groups * groups_at_once(spec, layer)), layer.n_points))


def candidates(spec: AcceleratorSpec, layer: Layer) -> Iterator[Mapping]:
    """Mappings that fit and may be best."""
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    most_a = min(spec.prf_entries, -(-c_out // spec.cols))
    most_b = -(-c_in // spec.rows)
    fold = _even_fold(layer, most_fold(spec, layer))
    for overlapped in (True, False):
        room = spec.wrf_entries // 2 if overlapped else spec.wrf_entries
        sizes = []
        for d in _entries(spec, layer, fold, room):
            start = Mapping(d=d, fold=fold, overlapped=overlapped)
            for b in _upto(min(most_b, room // d, spec.arf_entries // steps_together(spec, layer, start))):
                sizes += [(a, b, d) for a in _upto(min(most_a, room // (d * b)))]
        # The least one, too: a layer waits for its first load, which is shortest then.
        for a, b, d in sorted({*_maximal(sizes), *sizes[:1]}):
            start = Mapping(a=a, b=b, d=d, fold=fold, overlapped=overlapped)
            yield from _tiled(spec, layer, start)
            yield from _tiled(spec, layer, replace(start, resident=False))


def _maximal(sizes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Without those that another one is at least as large as in every direction: more reuse, fewer loads."""
    return [
        one
        for one in sizes
        if not any(other != one and all(x >= y for x, y in zip(other, one, strict=True)) for other in sizes)
    ]


def _even_fold(layer: Layer, most: int) -> int:
    """Few steps, and of them whole kernel rows where that takes no more."""
    fewest = folds(layer, most)
    return next(
        (n for n in range(layer.kernel[1], most + 1, layer.kernel[1]) if folds(layer, n) == fewest),
        -(-layer.n_points // fewest),
    )


def _entries(spec: AcceleratorSpec, layer: Layer, fold: int, most: int) -> list[int]:
    """Numbers of entries: one, whole points, whole kernel rows, all, and what just fits."""
    passes = layer.passes(spec)
    total = folds(layer, fold) * passes
    row = max(layer.kernel[1] // fold, 1) * passes
    wanted = {1, passes, *range(row, total + 1, row), min(most, total)}
    return sorted(n for n in wanted if 1 <= n <= most)


def _upto(most: int) -> list[int]:
    """Powers of two up to `most`, and `most` itself."""
    return sorted({most, *(1 << i for i in range(most.bit_length()))} - {0}) if most >= 1 else []


def _tiled(spec: AcceleratorSpec, layer: Layer, start: Mapping) -> Iterator[Mapping]:
    """With tiles as large as L1 allows, as weights are then loaded least often, and halves of them.

    Smaller tiles hide more of the first transfer behind the array's work.
    """
    # One tile of the whole layer holds its input once, smaller ones twice: it may fit where they do not.
    if l1_bytes(spec, layer, replace(start, tile_rows=layer.out_size[0])) <= spec.l1_bytes:
        yield replace(start, tile_rows=layer.out_size[0])
    low, high = 0, layer.out_size[0] - 1
    while low < high:
        middle = (low + high + 1) // 2
        if l1_bytes(spec, layer, replace(start, tile_rows=middle)) <= spec.l1_bytes:
            low = middle
        else:
            high = middle - 1
    if low:
        height = layer.out_size[0]
        fewest = -(-height // low)
        for rows in {-(-height // n) for n in (fewest, 2 * fewest, 4 * fewest) if n <= height}:
            yield replace(start, tile_rows=rows)
