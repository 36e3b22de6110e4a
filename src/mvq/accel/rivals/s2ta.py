"""S2TA: a systolic array of tensor processing elements on density-bound blocks of weights and activations.

Liu, Whatmough, Zhu, Mattina, "S2TA: Exploiting Structured Sparsity for Energy-Efficient Mobile CNN Acceleration",
HPCA 2022, arXiv 2107.07983; the version with joint sparsity and time-unrolled activations, of tensor elements 8 x 4 x
4.

Of a block of 8 input channels, weights keep a fixed number of values and activations a number that varies by layer,
to which a dynamic pruning unit cuts them as they are written. A multiplier takes one kept activation a cycle and the
weight at its place, or holds where there is none: time goes with the activations, energy of multiplications with
both. A tensor element makes 8 positions of 4 channels, so that an activation serves 4 multipliers and a block of
weights 8. Sums stay until they are done.

Assumed, in its favour where the paper leaves it open: any aspect of the array, chosen layer by layer; the choice of
weights costs no energy; unpruned weights cost no time; an accumulator costs half an access of a partial-sum register
file, as it is not addressed; inputs that overlap along an output row are read from L1 once; blocks of a layer with
fewer channels than a block are as long as it has channels, and no longer than the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from mvq.accel.cost.area import Line
from mvq.accel.rivals.common import Count, Job, Rival, Work
from mvq.accel.rivals.sparsity import Bounds, Share, Sparsity
from mvq.accel.rivals.tiling import Tiling, layer_time, shapes, tilings, transfers, window_values
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer

BLOCK = 8
#: Positions and channels of a tensor element.
_POSITIONS, _CHANNELS = 8, 4
#: Weights of a block that a tensor element holds.
_HELD = 4
_INDEX_BITS = 3
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class DensityBounds(Sparsity):
    """Values kept of a block of 8.

    Attributes:
        weights: of weights, as pruned.
        activations: of activations, as the pruning unit leaves them; a mean over layers need not be whole.
    """

    BOUNDS: ClassVar[dict[str, Bounds]] = {"weights": Bounds(0, BLOCK, BLOCK), "activations": Bounds(0, BLOCK, BLOCK)}

    weights: Share
    activations: Share


_PUBLISHED = {
    "alexnet": DensityBounds(
        weights=4.0,
        activations=3.9,
        source="S2TA, HPCA 2022, table of accuracies, not checked against its text; mean over layers",
    ),
    "vgg16": DensityBounds(
        weights=3.0,
        activations=3.1,
        source="S2TA, HPCA 2022, table of accuracies, not checked against its text; mean over layers",
    ),
    "resnet18": DensityBounds(
        weights=4.0,
        activations=3.49,
        source="assumed as ResNet-50 in S2TA, HPCA 2022, not checked against its text; mean over layers",
    ),
}


class S2TA(Rival[DensityBounds]):
    """See the module."""

    name = "S2TA"
    source = "Liu et al., HPCA 2022, arXiv 2107.07983"
    statement = DensityBounds
    unit = _POSITIONS * _CHANNELS
    published = _PUBLISHED

    def weight_bits(self, layer: Layer, sparsity: DensityBounds) -> float:
        """Kept values and a mask, block by block, or all values where that is less."""
        return _stored_bits(layer.n_weights, sparsity.value("weights"))

    def map_bits(self, n_values: int, sparsity: DensityBounds) -> float:
        """The same of activations."""
        return _stored_bits(n_values, sparsity.value("activations"))

    def works(self, job: Job[DensityBounds]) -> Iterator[Work]:
        """Any aspect of the grid of tensor elements."""
        for rows, cols in shapes(job.multipliers // self.unit):
            for tiling in tilings(job, _CHANNELS * cols):
                yield _work(job, rows, cols, tiling)

    def parts(self, like: AcceleratorSpec, multipliers: int) -> Iterator[Line]:
        """Multipliers with a choice of weight and an accumulator, operands of tensor elements, the pruning unit."""
        elements, bits = multipliers // self.unit, like.weight_bits
        n = elements * self.unit
        yield "array", "multipliers", n, "multiply", like.activation_bits * bits / 64
        yield "array", "choice of weights", n * _HELD * bits, "route_bit", 1.0
        yield "array", "accumulator adders", n * like.psum_bits, "adder_bit", 1.0
        yield "registers", "accumulators", n * like.psum_bits, "flip_flop_bit", 1.0
        held = _CHANNELS * (_HELD * bits + BLOCK) + _POSITIONS * (like.activation_bits + _INDEX_BITS)
        yield "registers", "operands", elements * held, "flip_flop_bit", 1.0
        yield "array", "pruning unit", _pruning_bits(BLOCK, like), "adder_bit", 1.0


def _stored_bits(n_values: int, kept: float) -> float:
    return n_values * min(kept + 1, BLOCK)


def _pruning_bits(kept: float, like: AcceleratorSpec) -> float:
    """Bits compared to find the largest of a block, as often as values are kept."""
    return kept * (BLOCK - 1) * like.activation_bits


def _work(job: Job[DensityBounds], rows: int, cols: int, tiling: Tiling) -> Work:
    layer, like = job.layer, job.like
    weights, activations = job.sparsity.value("weights"), job.sparsity.value("activations")
    positions = tiling.position_steps(layer.out_size[1], _POSITIONS * rows)
    columns = -(-job.c_out // (_CHANNELS * cols))
    steps = layer.groups * positions * columns
    blocks = layer.n_points * -(-job.c_in // BLOCK)
    # A dense first layer of few channels may pack kernel points into blocks instead.
    ends = layer.n_points * (job.c_in // BLOCK * activations + min(job.c_in % BLOCK, activations))
    packed = -(-job.depth // BLOCK) * activations
    cycles_a_step = min(ends, packed)
    compute = round(-(-steps * cycles_a_step // 1))
    phases = layer.groups * tiling.tiles.n * tiling.n_groups
    executed = layer.dense_macs * weights / BLOCK * activations / BLOCK
    moved = job.weight_bytes * (positions if tiling.streamed else tiling.weight_loads)
    time = layer_time(
        job,
        tiling,
        compute=compute,
        bubble=phases * (rows + cols),
        weight_bytes_moved=moved,
        first_weights=job.weight_bytes // (layer.groups * (columns if tiling.streamed else tiling.n_groups)),
    )
    fetched = columns * window_values(job) * job.input_bytes / layer.input_bytes
    actions = transfers(job, tiling, fetched=fetched, weight_reads=positions)
    held = steps * blocks * rows * _CHANNELS * min(cols, -(-job.c_out // _CHANNELS)) * min(weights, job.c_in)
    passed = steps * cycles_a_step * _POSITIONS * rows * cols * (like.activation_bits + _INDEX_BITS)
    bound = job.after.value("activations")
    pruned = layer.output_bytes / BLOCK * _pruning_bits(bound, like) if bound < BLOCK else 0.0
    return Work(
        cycles=time,
        actions=replace(
            actions,
            macs=round(executed),
            nonzero_macs=round(executed),
            wrf_reads=round(executed),
            wrf_writes=round(held),
        ),
        counts=(
            Count("registers", "accumulators", _HALF * executed, "prf_access"),
            Count("array", "pipeline bits", passed, "flip_flop_bit"),
            Count("array", "activation pruning", pruned, "adder_bit"),
        ),
    )
