"""SparTen: multipliers that each find the pairs of a sparse dot product on their own.

Gondimalla, Chesnut, Thottethodi, Vijaykumar, "SparTen: A Sparse Tensor Accelerator for Convolutional Neural
Networks", MICRO 2019.

Weights and activations are stored as chunks of 128 positions: a bit mask and the values that are not zero. A cluster
of 32 units takes one chunk of the input for all; each unit holds chunks of two filters, which greedy balancing pairs
so that all units have as many weights. An inner join finds the pairs: the masks are ANDed, a priority encoder takes
the next match, prefix sums over the masks say where its values lie in the unit's buffer. A pair takes a cycle.
Outputs are compacted by a prefix sum over the units.

Time: given equal numbers of weights and the activations of a chunk, matches are hypergeometric; the cluster waits for
its slowest unit, over the two chunks that a doubled buffer holds. The largest of 32 is taken from normal order
statistics.

Assumed, in its favour where the paper leaves it open: chunks are full whatever the channels; filters stay for 32
positions, so that the prefix sum of their masks is not paid again; the prefix sum of the input is paid once for both
filters, with adders as few as those of Brent and Kung; clusters divide positions and filters as is best, layer by
layer, and receive what they share at once; a unit's buffer is as cheap as an SRAM of its size, by the byte; an
accumulator costs half an access of a partial-sum register file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import ClassVar

from mvq.accel.cost.area import Line
from mvq.accel.rivals.common import Count, Job, Rival, Work
from mvq.accel.rivals.sparsity import ACTIVATIONS, HAN, Bounds, Share, Sparsity
from mvq.accel.rivals.tiling import Tiling, layer_time, shapes, tilings, transfers
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer

CHUNK = 128
UNITS = 32
#: Filters of a unit.
_PAIR = 2
#: Positions that a filter stays for: as many sums of two filters fill a quarter of the buffer.
_STAY = 32
#: Of a unit: two chunks of two filters and two of the input, with masks, and sums.
BUFFER_BYTES = 2 * 3 * (CHUNK + CHUNK // 8) + _STAY * _PAIR * 4
_BUFFERED_CHUNKS = 2
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class RandomSparsity(Sparsity):
    """Values that are not zero, wherever they are.

    Attributes:
        weights: share of weights.
        activations: share of a layer's input.
    """

    BOUNDS: ClassVar[dict[str, Bounds]] = {"weights": Bounds(0, 1, 1), "activations": Bounds(0, 1, 1)}

    weights: Share
    activations: Share


#: SparTen uses the pruned networks of Han et al.
_PUBLISHED = {
    "alexnet": RandomSparsity(
        weights=(0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25), activations=ACTIVATIONS["alexnet"], source=HAN
    ),
    "vgg16": RandomSparsity(
        weights=(0.58, 0.22, 0.34, 0.36, 0.53, 0.24, 0.42, 0.32, 0.27, 0.34, 0.35, 0.29, 0.36, 0.04, 0.04, 0.23),
        activations=ACTIVATIONS["vgg16"],
        source=HAN,
    ),
    "resnet18": RandomSparsity(
        weights=0.25,
        activations=ACTIVATIONS["resnet18"],
        source="assumed: as many weights as 4:16 keeps, half of the activations",
    ),
}


class SparTen(Rival[RandomSparsity]):
    """See the module."""

    name = "SparTen"
    source = "Gondimalla et al., MICRO 2019"
    statement = RandomSparsity
    unit = UNITS
    published = _PUBLISHED

    def weight_bits(self, layer: Layer, sparsity: RandomSparsity) -> float:
        """Values and a bit for each position, or all values where that is less."""
        return _stored_bits(layer.n_weights, sparsity.value("weights"))

    def map_bits(self, n_values: int, sparsity: RandomSparsity) -> float:
        """The same of activations."""
        return _stored_bits(n_values, sparsity.value("activations"))

    def works(self, job: Job[RandomSparsity]) -> Iterator[Work]:
        """Any division of the clusters over positions and filters."""
        for positions, filters in shapes(job.multipliers // UNITS):
            for paired in (True, False):
                for tiling in tilings(job, UNITS * (_PAIR if paired else 1) * filters):
                    yield _work(job, positions, filters, _PAIR if paired else 1, tiling)

    def parts(self, like: AcceleratorSpec, multipliers: int) -> Iterator[Line]:
        """Multiplier, accumulator and inner join of every unit, and the compaction of every cluster."""
        units = multipliers // UNITS * UNITS
        yield "array", "multipliers", units, "multiply", like.activation_bits * like.weight_bits / 64
        yield "array", "accumulator adders", units * like.psum_bits, "adder_bit", 1.0
        yield "registers", "accumulators", units * like.psum_bits, "flip_flop_bit", 1.0
        yield "array", "masks ANDed", units * CHUNK, "and_bit", 1.0
        yield "array", "prefix sums", units * 2 * prefix_bits(CHUNK), "adder_bit", 1.0
        yield "array", "priority encoders", units * CHUNK, "zero_counter_bit", 1.0
        yield "array", "compaction", units // UNITS * prefix_bits(UNITS), "adder_bit", 1.0

    def buffers(self, multipliers: int) -> Iterator[tuple[str, int, int]]:
        """One for each unit."""
        yield "unit buffers", BUFFER_BYTES, multipliers // UNITS * UNITS


def prefix_bits(n: int) -> int:
    """Bits of the adders of a prefix sum over n bits, n a power of two, after Brent and Kung."""
    levels = n.bit_length() - 1
    up = sum((n >> level) * level for level in range(1, levels + 1))
    down = sum(((n >> level) - 1) * levels for level in range(1, levels))
    return up + down


def chunk_cycles(filters: int, depth: float, weights: float, activations: float) -> float:
    """Cycles of a cluster for a chunk of the input and the filters of a unit, the slowest unit's.

    Args:
        filters: of a unit.
        depth: positions of the chunk.
        weights: share of weights that are not zero.
        activations: likewise.
    """
    active = depth * activations
    mean = filters * active * weights
    spread = (depth - active) / max(depth - 1, 1)
    deviation = math.sqrt(filters * active * weights * (1 - weights) * spread)
    largest = NormalDist().inv_cdf((UNITS - 0.375) / (UNITS + 0.25))
    return max(mean + largest * deviation / math.sqrt(_BUFFERED_CHUNKS), 1.0)


def _stored_bits(n_values: int, density: float) -> float:
    return n_values * min(8 * density + 1, 8.0)


def _work(job: Job[RandomSparsity], positions: int, clusters: int, pair: int, tiling: Tiling) -> Work:
    layer, like = job.layer, job.like
    weights, activations = job.sparsity.value("weights"), job.sparsity.value("activations")
    filters = UNITS * pair * clusters
    columns = -(-job.c_out // filters)
    chunks = -(-job.depth // CHUNK)
    steps = tiling.position_steps(layer.out_size[1], positions)
    cycles = chunks * chunk_cycles(pair, job.depth / chunks, weights, activations)
    compute = math.ceil(layer.groups * steps * columns * cycles)
    executed = layer.dense_macs * weights * activations
    # A filter's chunks are taken anew for every so many positions of its cluster.
    takes = tiling.position_steps(layer.out_size[1], positions * _STAY)
    time = layer_time(
        job,
        tiling,
        compute=compute,
        bubble=layer.groups * tiling.tiles.n * tiling.n_groups * UNITS,
        weight_bytes_moved=job.weight_bytes * (takes if tiling.streamed else tiling.weight_loads),
        first_weights=job.weight_bytes // (layer.groups * (columns if tiling.streamed else tiling.n_groups)),
    )
    stored = job.input_bytes / layer.input_bytes
    windows = layer.groups * layer.n_positions * job.depth
    actions = transfers(job, tiling, fetched=columns * windows * stored, weight_reads=takes)
    units = -(-job.c_out // pair)
    joins = layer.groups * layer.n_positions * chunks * job.c_out
    written = windows * stored * units + job.weight_bytes * takes * positions
    dense = weights >= 1 and activations >= 1
    # Of its tree, a match that is taken changes no more than the path to the next one.
    encoded = joins * CHUNK + executed * (CHUNK.bit_length() - 1)
    return Work(
        cycles=time,
        actions=replace(actions, macs=round(executed), nonzero_macs=round(executed), prf_accesses=joins),
        counts=(
            Count("registers", "accumulators", _HALF * executed, "prf_access"),
            Count("registers", "unit buffers, bytes", 2 * executed + written, BUFFER_BYTES),
            Count("array", "masks ANDed, bits", 0 if dense else joins * CHUNK, "and_bit"),
            Count("array", "prefix sums, bits", 0 if dense else joins / pair * prefix_bits(CHUNK), "adder_bit"),
            Count("array", "priority encoders, bits", 0 if dense else encoded, "zero_counter_bit"),
            Count("array", "compaction, bits", layer.output_bytes / UNITS * prefix_bits(UNITS), "adder_bit"),
            Count("array", "pipeline bits", executed * (like.activation_bits + like.weight_bits), "flip_flop_bit"),
        ),
    )
