"""CGNet: a weight-stationary systolic array that leaves out channels where they matter little.

Hua, Zhou, De Sa, Zhang, Suh, "Boosting the Performance of CNN Accelerators with Dynamic Fine-Grained Channel Gating",
MICRO 2019; the method is that of "Channel Gating Neural Networks", NeurIPS 2019.

A layer runs in two phases. The base phase sums over a fixed share of the input channels for every output; each
partial sum is compared with a learned threshold. The rest of the channels is added only to outputs that pass; the
others are left as they are. Weights stay in the array, products are summed down its columns, partial sums go to L1
and come back where the channels or kernel points of a layer exceed the rows. Weights and feature maps are stored
dense, in int8.

Assumed, in its favour where the paper leaves it open: outputs that pass fill the array without gaps; kernel points
lie beside channels on the rows; any aspect of the array, layer by layer; weights of the next pass are loaded
meanwhile; sums down a column meet in adder trees, as in the machine compared with, rather than in a register of every
element; inputs that overlap along an output row are read once; the weights of what is gated everywhere in a layer are
loaded all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from mvq.accel.cost.area import Line, tree_bits
from mvq.accel.cycle import Actions
from mvq.accel.mapping import Extent, most_input_rows
from mvq.accel.rivals.common import Count, Job, Rival, Work
from mvq.accel.rivals.sparsity import ACTIVATIONS, HAN, Bounds, Share, Sparsity
from mvq.accel.rivals.tiling import Tiling, layer_time, shapes, transfers, window_values
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer


@dataclass(frozen=True, kw_only=True)
class ChannelGating(Sparsity):
    """What is computed for every output and for how many the rest is left out.

    Attributes:
        base: share of the input channels of the base phase.
        gated: share of outputs that stop there.
        activations: share of activations that are not zero, where multipliers hold for others.
    """

    BOUNDS: ClassVar[dict[str, Bounds]] = {
        "base": Bounds(0, 1, 1),
        "gated": Bounds(0, 1, 0, low_allowed=True),
        "activations": Bounds(0, 1, 1),
    }

    base: Share
    gated: Share
    activations: Share = 1.0


#: MVQ quotes 60% and a compression of 10x, from 32 bits: 4 / (1 - 0.6) = 10.
_QUOTED = "60% of ResNet-18 left out, as MVQ (ASPLOS 2025) quotes CGNet; a base of a quarter assumed"
_PUBLISHED = {
    "resnet18": ChannelGating(
        base=0.25, gated=0.8, activations=ACTIVATIONS["resnet18"], source=f"{_QUOTED}; half of the activations assumed"
    ),
    "alexnet": ChannelGating(
        base=0.25,
        gated=0.8,
        activations=ACTIVATIONS["alexnet"],
        source=f"gating: assumed as ResNet-18; activations: {HAN}",
    ),
    "vgg16": ChannelGating(
        base=0.25,
        gated=0.8,
        activations=ACTIVATIONS["vgg16"],
        source=f"gating: assumed as ResNet-18; activations: {HAN}",
    ),
}


class CGNet(Rival[ChannelGating]):
    """See the module."""

    name = "CGNet"
    source = "Hua et al., MICRO 2019"
    statement = ChannelGating
    published = _PUBLISHED

    def weight_bits(self, layer: Layer, sparsity: ChannelGating) -> float:
        """All of them: which are not needed is known only as the network runs."""
        return 8.0 * layer.n_weights

    def works(self, job: Job[ChannelGating]) -> Iterator[Work]:
        """Any aspect of the array, and tiles as large as L1 allows."""
        for rows, cols in shapes(job.multipliers):
            yield from (_work(job, rows, cols, tiling) for tiling in _tilings(job, cols))

    def parts(self, like: AcceleratorSpec, multipliers: int) -> Iterator[Line]:
        """Elements with a weight in use and one being loaded, adder trees of a square array, comparators."""
        side = max(round(multipliers**0.5), 1)
        adders, registers = tree_bits(side, like.activation_bits + like.weight_bits)
        yield "array", "multipliers", multipliers, "multiply", like.activation_bits * like.weight_bits / 64
        yield "array", "activations passed on", multipliers * like.activation_bits, "flip_flop_bit", 1.0
        yield "array", "adder tree bits", side * adders, "adder_bit", 1.0
        yield "array", "adder tree registers", side * registers, "flip_flop_bit", 1.0
        yield "array", "accumulators and thresholds", 2 * side * like.psum_bits, "adder_bit", 1.0
        yield "registers", "weights", multipliers * 2 * like.weight_bits, "flip_flop_bit", 1.0


def _tilings(job: Job[ChannelGating], cols: int) -> Iterator[Tiling]:
    """Tiles with partial sums of as many channels as the array has columns beside their input."""
    layer, spec = job.layer, job.like
    height, columns = layer.out_size[0], min(cols, job.c_out)

    def need(rows: int) -> int:
        taken = most_input_rows(layer, rows) * layer.in_size[1] * layer.c_in * (1 if rows >= height else 2)
        return taken + rows * layer.out_size[1] * columns * (spec.psum_bytes + 2)

    fitting = [rows for rows in {-(-height // n) for n in range(1, height + 1)} if need(rows) <= spec.l1_bytes]
    for rows in sorted(fitting)[-3:]:
        tiles = Extent.of(height, rows)
        yield Tiling(tiles=tiles, n_groups=1, streamed=True, weight_loads=tiles.n, input_loads=1)


def _work(job: Job[ChannelGating], rows: int, cols: int, tiling: Tiling) -> Work:
    layer, like = job.layer, job.like
    base, gated = job.sparsity.value("base"), job.sparsity.value("gated")
    # The channels of the base phase, whole ones, and how many outputs each phase works for.
    first = min(max(round(job.c_in * base), 1), job.c_in)
    phases = [(first, 1.0), (job.c_in - first, 1.0 - gated)]
    tiles, width = tiling.tiles, layer.out_size[1]
    columns = -(-job.c_out // cols)
    compute = waits = sums = 0.0
    products = 0.0
    for channels, share in phases:
        depth = channels * layer.n_points
        passes = -(-depth // rows)
        products += depth * share
        sums += passes * share
        for n, size in ((tiles.n - 1, tiles.full), (1, tiles.last)):
            work = size * width * share
            load = -(-8 * depth * job.c_out // (max(passes * columns, 1) * like.weight_port_bits))
            compute += n * layer.groups * columns * passes * work
            waits += n * layer.groups * columns * passes * max(load - work, 0)
    dense_positions = layer.groups * layer.n_positions * job.c_out
    first_weights = min(rows, job.depth) * min(cols, job.c_out)
    time = layer_time(
        job,
        tiling,
        compute=math.ceil(compute),
        bubble=layer.groups * tiles.n * (rows.bit_length() + cols),
        weight_bytes_moved=0,
        first_weights=first_weights,
    )
    time = replace(time, weights=time.weights + math.ceil(waits), memory=max(time.memory - math.ceil(waits), 0))
    executed = dense_positions * products
    active = executed * job.sparsity.value("activations")
    share = products / job.depth
    actions = transfers(job, tiling, fetched=columns * window_values(job) * share, weight_reads=tiles.n)
    # Sums go to L1 after every pass but the last of an output, and come back before every pass but the first.
    spilled = math.ceil(dense_positions * max(sums - 1, 0) * like.psum_bytes)
    passed = executed * like.activation_bits
    tree = dense_positions * sums * tree_bits(min(rows, job.depth), like.activation_bits + like.weight_bits)[1]
    actions += Actions(
        macs=round(executed),
        nonzero_macs=round(active),
        wrf_reads=round(executed),
        wrf_writes=tiles.n * layer.n_weights,
        prf_accesses=0,
        l1_read_bytes=spilled,
        l1_write_bytes=spilled,
    )
    compared = 0.0 if gated == 0 and base >= 1 else float(layer.output_bytes * like.psum_bits)
    return Work(
        cycles=time,
        actions=actions,
        counts=(
            Count("array", "thresholds, bits", compared, "adder_bit"),
            Count("array", "accumulations", dense_positions * sums, "add"),
            Count("array", "pipeline bits", passed + tree, "flip_flop_bit"),
        ),
    )
