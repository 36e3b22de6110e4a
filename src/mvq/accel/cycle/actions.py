"""What the components of a machine do during a layer, counted in closed form.

Registers and multipliers are counted where there is work: a position of the array without a channel or a weight does
nothing. Inputs of the padding are known to be zero and not fetched.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

from mvq.accel.cycle.loads import loaded_bytes
from mvq.accel.mapping import Extent, Mapping, input_rows, nest, points_of
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Actions:
    """Counts of one layer or the sum over several; bytes where the name says so.

    Attributes:
        dense_macs: multiply-accumulates of the layer with every weight.
        macs: multiplications with a weight that the tile holds.
        nonzero_macs: those with a weight that was not pruned.
        wrf_reads: weights read from the registers of the processing elements.
        wrf_writes: weights written there.
        arf_reads: activations taken from the registers of the rows.
        arf_writes: activations fetched from L1 into them.
        prf_accesses: partial sums read and written back in the registers of the columns.
        crf_reads: codewords read.
        mask_decodes: mask ids of a subvector decoded.
        requantizations: outputs made int8.
        l1_read_bytes: activations to the array, partial sums back to it, outputs to L2.
        l1_write_bytes: inputs from L2, partial sums, outputs.
        l2_read_bytes: weights to the loader, inputs to L1.
        l2_write_bytes: outputs from L1.
        dram_read_bytes: weights and feature maps that L2 does not hold.
        dram_write_bytes: feature maps that L2 does not hold.
    """

    dense_macs: int = 0
    macs: int = 0
    nonzero_macs: int = 0
    wrf_reads: int = 0
    wrf_writes: int = 0
    arf_reads: int = 0
    arf_writes: int = 0
    prf_accesses: int = 0
    crf_reads: int = 0
    mask_decodes: int = 0
    requantizations: int = 0
    l1_read_bytes: int = 0
    l1_write_bytes: int = 0
    l2_read_bytes: int = 0
    l2_write_bytes: int = 0
    dram_read_bytes: int = 0
    dram_write_bytes: int = 0

    def __add__(self, other: Actions) -> Actions:
        return Actions(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def layer_actions(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> Actions:
    """Counts of one layer, DRAM left out.

    Raises:
        ConfigError: if the mapping does not fit.
    """
    n = nest(spec, layer, mapping)
    per_group_in, per_group_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    positions, entries = layer.n_positions, n.entries.total
    points = layer.n_points * layer.passes(spec)
    macs, loads = layer.executed_macs(spec), n.tiles.n
    spread = layer.n_weights if spec.tile == "dense" else round(layer.n_weights * layer.density_on(spec))
    fetched = _fetches(layer, layer.passes(spec), mapping.fold, n.entries)
    fetched *= layer.c_in * n.outputs.n
    partial = positions * layer.c_out * (n.inputs.n * n.entries.n - 1) * spec.psum_bytes
    subvectors = 0
    if not layer.is_plain_on(spec):
        subvectors = loads * -(-layer.c_out // spec.d) * per_group_in * layer.n_points
    inputs = _input_bytes(layer, mapping, n.tiles, n.outputs.n) + layer.residual_bytes
    return Actions(
        dense_macs=layer.dense_macs,
        macs=macs,
        nonzero_macs=round(layer.dense_macs * layer.density_on(spec)),
        wrf_reads=macs,
        wrf_writes=loads * spread,
        arf_reads=positions * layer.c_in * points * -(-per_group_out // spec.cols),
        arf_writes=fetched,
        prf_accesses=positions * layer.c_out * entries * -(-per_group_in // spec.rows),
        crf_reads=subvectors if spec.has_codebook else 0,
        mask_decodes=subvectors if layer.uses_masks(spec) else 0,
        requantizations=layer.output_bytes,
        l1_read_bytes=fetched + partial + layer.output_bytes + layer.residual_bytes,
        l1_write_bytes=inputs + partial + layer.output_bytes,
        l2_read_bytes=loads * loaded_bytes(spec, layer, mapping) + layer.codebook_bits(spec) // 8 + inputs,
        l2_write_bytes=layer.output_bytes,
    )


def _input_bytes(layer: Layer, mapping: Mapping, tiles: Extent, n_output_steps: int) -> int:
    """Input that enters L1: every tile with the rows it shares with its neighbours."""
    rows = sum(input_rows(layer, t * tiles.full, tiles.size(t)) for t in range(tiles.n))
    return rows * layer.in_size[1] * layer.c_in * (1 if mapping.resident else n_output_steps)


@functools.lru_cache(maxsize=4096)
def _fetches(layer: Layer, passes: int, fold: int, entries: Extent) -> int:
    """Activations of one channel that are fetched from L1 for one step over outputs.

    Along an output row, an input that another kernel point of a block needed one output before on the same row of the
    array is still in its registers.
    """
    total = 0
    for block in range(entries.n):
        first = block * entries.full
        steps = sorted({e // passes for e in range(first, first + entries.size(block))})
        for lane in range(fold):
            points = [p[lane] for step in steps if lane < len(p := points_of(layer, fold, step))]
            total += _lane_fetches(layer, frozenset(divmod(p, layer.kernel[1]) for p in points))
    return total


@functools.lru_cache(maxsize=4096)
def _lane_fetches(layer: Layer, points: frozenset[tuple[int, int]]) -> int:
    """Of the rows that see these kernel points."""
    hop = kernel_hop(layer)
    total = 0
    for y, x in points:
        kept = hop > 0 and (y, x + hop) in points
        offset = x * layer.dilation[1] - layer.padding[1]
        outputs = range(1 if kept else layer.out_size[1])
        total += valid_rows(layer, y) * sum(0 <= o * layer.stride[1] + offset < layer.in_size[1] for o in outputs)
    return total


def kernel_hop(layer: Layer) -> int:
    """Columns of the kernel that an input goes back by from one output to the next; 0 if it falls between them."""
    hop, rest = divmod(layer.stride[1], layer.dilation[1])
    return 0 if rest else hop


@functools.lru_cache(maxsize=4096)
def valid_rows(layer: Layer, y: int) -> int:
    """Output rows for which a kernel row lies inside the input."""
    offset = y * layer.dilation[0] - layer.padding[0]
    return sum(0 <= o * layer.stride[0] + offset < layer.in_size[0] for o in range(layer.out_size[0]))
