"""SCALE-Sim's weight-stationary array beside ours, and its file formats.

SCALE-Sim (Samajdar et al., ISPASS 2020) runs a convolution as a matrix product: a column of im2col, which is all
channels of all kernel points, lies on the rows, filters on the columns. A product that is larger than the array is cut
into *folds*, one after the other. Each loads a row of weights a cycle, streams all output positions, and waits until
the last sum has left the array; nothing overlaps. Nothing here runs that tool: `benchmarks/scalesim.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from mvq.accel.cycle.model import Cycles, Timeline, layer_cycles, pipeline_depth
from mvq.accel.cycle.network import LayerRun, NetworkRun
from mvq.accel.mapping import nest
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

#: Columns of `COMPUTE_REPORT.csv`, as version 3.0.0 writes it.
REPORT = (
    "LayerID",
    "Total Cycles (incl. prefetch)",
    "Total Cycles",
    "Stall Cycles",
    "Overall Util %",
    "Mapping Efficiency %",
    "Compute Util %",
)
TOPOLOGY_HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,"
#: More than any layer can use.
_PLENTY = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Folds:
    """A layer on SCALE-Sim's weight-stationary array.

    Attributes:
        products: matrix products one after the other: each group of channels is a layer of its own there.
        down: folds of a product over the rows.
        across: folds of a product over the columns.
        load: cycles of a fold until its weights are there: a row each, used or not.
        stream: cycles it takes inputs: output positions.
        drain: cycles from the last input until the last sum has passed all rows and columns.
    """

    products: int
    down: int
    across: int
    load: int
    stream: int
    drain: int

    @property
    def n(self) -> int:
        """Folds of the layer."""
        return self.products * self.down * self.across

    @property
    def cycles_each(self) -> int:
        """Of one fold: `2 R + C + T - 2` (SCALE-Sim, runtime of a fold)."""
        return self.load + self.stream + self.drain

    @property
    def cycles(self) -> int:
        """Of the layer, without stalls for memory."""
        return self.n * self.cycles_each

    @property
    def reported(self) -> int:
        """What its `Total Cycles` add up to, without stalls: of each product the number of the last cycle, from 0."""
        return self.cycles - self.products


def folds(layer: Layer, *, rows: int, cols: int) -> Folds:
    """SCALE-Sim's weight-stationary folds of a layer, dense whatever its pattern.

    Args:
        layer: work.
        rows: of the array.
        cols: of the array.
    """
    column = layer.c_in // layer.groups * layer.n_points
    return Folds(
        products=layer.groups,
        down=-(-column // rows),
        across=-(-(layer.c_out // layer.groups) // cols),
        load=rows,
        stream=layer.n_positions,
        drain=rows + cols - 2,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Causes:
    """Why SCALE-Sim's cycles of a layer differ from ours, theirs minus ours; the causes add up to the difference.

    The first two count folds, at the time SCALE-Sim takes for one. The others are about what a fold takes: its time
    there is turned into ours a step at a time, in this order, each step what our model says with one thing changed.

    Attributes:
        groups: groups of channels lie side by side on the diagonal of our array, there they follow one another.
        im2col: a column of im2col fills the rows there; our rows take channels of `fold` whole kernel points, and
            sparse tiles several passes over them.
        unused_rows: a row without weights is loaded there.
        overlap: our next weights are loaded while these are used.
        weight_port: waiting because a row of weights takes as long as our port needs, there always a cycle. A codebook
            comes through it, too.
        reloads: waiting because weights are loaded again for each tile of output rows, as L1 holds no more.
        fill_drain: sums pass rows and columns one a cycle there, and the next fold waits for them; our adder trees are
            shallower, and only the last block drains.
    """

    groups: int
    im2col: int
    unused_rows: int
    overlap: int
    weight_port: int
    reloads: int
    fill_drain: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, f.name) for f in fields(self))


def array_cycles(run: LayerRun) -> int:
    """Of ours, what compares with SCALE-Sim's compute cycles: the array's own time, without memory and DRAM."""
    return run.cycles.compute + run.cycles.bubble + run.cycles.weights


def causes(spec: AcceleratorSpec, run: LayerRun) -> Causes:
    """Split the difference between SCALE-Sim's cycles on an array of the same size and `array_cycles`.

    Args:
        spec: machine of the run.
        run: of one layer.
    """
    layer, mapping, cycles = run.layer, run.mapping, run.cycles
    theirs, ours = folds(layer, rows=spec.rows, cols=spec.cols), nest(spec, layer, mapping)
    down = ours.entries.total * -(-(layer.c_in // layer.groups) // spec.rows)
    n = ours.groups.n * down * theirs.across
    whole = replace(mapping, tile_rows=layer.out_size[0])
    roomy = replace(spec, l1_bytes=_PLENTY)
    wide = replace(roomy, weight_port_bits=_PLENTY)
    # Loads run beside bubbles, so that both are taken together.
    in_turn = _waits(layer_cycles(wide, layer, replace(whole, overlapped=False)))
    beside = _waits(layer_cycles(wide, layer, whole))
    once = _waits(layer_cycles(roomy, layer, whole))
    depth = pipeline_depth(spec)
    return Causes(
        groups=(theirs.products - ours.groups.n) * theirs.down * theirs.across * theirs.cycles_each,
        im2col=ours.groups.n * theirs.across * (theirs.down - down) * theirs.cycles_each,
        unused_rows=n * theirs.load - (in_turn - depth),
        overlap=in_turn - beside,
        weight_port=beside - once,
        reloads=once - _waits(cycles),
        fill_drain=n * theirs.drain - depth,
    )


def _waits(cycles: Cycles) -> int:
    return cycles.weights + cycles.bubble


def compute_report(run: NetworkRun) -> list[dict[str, int | float]]:
    """A run of ours in the columns of SCALE-Sim's `COMPUTE_REPORT.csv`.

    A layer has its number from 0 and

    * `Total Cycles (incl. prefetch)`: all of the layer;
    * `Total Cycles`: those but what the first input takes longer than the first weights, and the transfer of the last
      output, as SCALE-Sim counts neither what is prefetched before nor what is written back after;
    * `Stall Cycles`: waiting for memory or DRAM within these. Weights and the pipeline are the array's own time, as
      there;
    * `Overall Util %`: multipliers busy in `Total Cycles`;
    * `Mapping Efficiency %`: multipliers busy where the array issues;
    * `Compute Util %`: multipliers busy in the array's own time.

    Returns:
        One row a layer.
    """
    rows: list[dict[str, int | float]] = []
    for number, each in enumerate(run.layers):
        total, own = each.cycles.total - _outside(run.spec, each), array_cycles(each)
        shares = (
            100 * each.actions.macs / (cycles * run.spec.n_multipliers) for cycles in (total, each.cycles.compute, own)
        )
        values = (number, each.cycles.total, total, total - own, *shares)
        rows.append(dict(zip(REPORT, values, strict=True)))
    return rows


def report_csv(run: NetworkRun) -> str:
    """`compute_report` to the letter of SCALE-Sim's file, whose lines end in a comma, for programs that read it."""
    lines = [REPORT, *(row.values() for row in compute_report(run))]
    return "".join(", ".join(map(str, line)) + ",\n" for line in lines)


def _outside(spec: AcceleratorSpec, run: LayerRun) -> int:
    """Cycles that the first input takes longer than the first weights, and those of the last output."""
    line = Timeline(spec, run.layer, run.mapping)
    phases = [phase for _, phase in line.phases()]
    codebook = -(-run.layer.codebook_bits(spec) // spec.weight_port_bits)
    return max(phases[0].load - codebook - line.block(0, 0, 0, 0, 0).load, 0) + phases[-1].store


def topology(layers: Iterable[Layer]) -> str:
    """Layers as the text of a SCALE-Sim topology file, which `mvq.accel.workload.read_topology` reads, too.

    Of the padded input only what a kernel covers is written, since SCALE-Sim rounds the number of positions up. A group
    of channels is a line of its own.

    Raises:
        ConfigError: listing every layer that such a file cannot say.
    """
    lines, faults = [TOPOLOGY_HEADER], []
    for layer in layers:
        if fault := _fault(layer):
            faults.append(f"layer {layer.name!r}: {fault}")
            continue
        sizes = zip(layer.out_size, layer.stride, layer.kernel, strict=True)
        covered = [(n - 1) * step + points for n, step, points in sizes]
        channels = layer.c_in // layer.groups, layer.c_out // layer.groups
        values = ", ".join(map(str, (*covered, *layer.kernel, *channels, layer.stride[0])))
        names = [layer.name] if layer.groups == 1 else [f"{layer.name}.{g}" for g in range(layer.groups)]
        lines += [f"{name}, {values}," for name in names]
    if faults:
        raise ConfigError("\n".join(faults))
    return "\n".join(lines) + "\n"


def _fault(layer: Layer) -> str:
    """Why a topology file cannot say a layer; empty if it can."""
    if not layer.name.strip() or not layer.name.isprintable() or any(sign in layer.name for sign in ',"'):
        return "a topology file has no quoting; give it a printable name without commas and quotes"
    if "DP" in layer.name:
        return "SCALE-Sim takes names with 'DP' for depth-wise layers; give it another name"
    if layer.stride[0] != layer.stride[1]:
        return f"stride={layer.stride} is not the same down and right, a topology file has one"
    if any(step > 1 and points > 1 for step, points in zip(layer.dilation, layer.kernel, strict=True)):
        return f"dilation={layer.dilation} has no place in a topology file"
    return ""
