"""SPOTS: a systolic array for products of matrices, fed by a unit that makes columns of windows.

Soltaniyeh, Martin, Nagarakatte, "An Accelerator for Sparse Convolutional Neural Networks Leveraging Systolic General
Matrix-Matrix Multiplication", ACM TACO 19(3), 2022, arXiv 2107.13386.

Weights are pruned in groups, so that whole rows of the product fall out for the filters in the array; bitmaps say
which, and only those left are multiplied. The unit reads the feature map once for the filters in the array, keeps
what windows share in local memories on a ring, and hands out columns; blocks of a column that are all zero are
skipped, too. Sums stay in the array until they are done. The array is tall: filters down, windows across, or several
of a smaller height.

Assumed, in its favour where the paper leaves it open: groups of 8 filters, of which those in the array lose the same
rows; any aspect of the array, layer by layer; multipliers hold where an activation is zero; an accumulator costs half
an access of a partial-sum register file; a column's value costs one access of an activation register. No block of
activations is skipped unless the statement says so: random zeros seldom fill one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from mvq.accel.cost.area import Line
from mvq.accel.rivals.common import Count, Job, Rival, Work
from mvq.accel.rivals.sparsity import ACTIVATIONS, HAN, Bounds, Share, Sparsity
from mvq.accel.rivals.tiling import Tiling, layer_time, shapes, tilings, transfers
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer

GROUP = 8
#: Bytes of a local memory of the unit that makes columns: three rows of 64 values, and half as much again.
_LOCAL_BYTES = 256
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class GroupSparsity(Sparsity):
    """Groups of weights and blocks of activations that are left.

    Attributes:
        weights: share of groups kept.
        blocks: share of blocks of window columns with a value that is not zero.
        activations: share of activations in those blocks that are not zero.
    """

    BOUNDS: ClassVar[dict[str, Bounds]] = {key: Bounds(0, 1, 1) for key in ("weights", "blocks", "activations")}

    weights: Share
    blocks: Share = 1.0
    activations: Share = 1.0


#: MVQ quotes 27% and a compression of 3x of 16-bit weights, from 32 bits: 2 / (1 - 0.27) = 2.7, so 27% are left out.
_QUOTED = "27% of the groups of VGG-16 left out, as MVQ (ASPLOS 2025) quotes SPOTS"
_PUBLISHED = {
    "vgg16": GroupSparsity(
        weights=0.73, activations=ACTIVATIONS["vgg16"], source=f"weights: {_QUOTED}; activations: {HAN}"
    ),
    "alexnet": GroupSparsity(
        weights=0.73, activations=ACTIVATIONS["alexnet"], source=f"weights: assumed as VGG-16; activations: {HAN}"
    ),
    "resnet18": GroupSparsity(
        weights=0.73, activations=ACTIVATIONS["resnet18"], source="assumed: weights as VGG-16, half of the activations"
    ),
}


class Spots(Rival[GroupSparsity]):
    """See the module."""

    name = "SPOTS"
    source = "Soltaniyeh et al., ACM TACO 19(3), 2022, arXiv 2107.13386"
    statement = GroupSparsity
    published = _PUBLISHED

    def weight_bits(self, layer: Layer, sparsity: GroupSparsity) -> float:
        """Kept groups and a bit for every group, or all weights where that is less."""
        kept = sparsity.value("weights")
        return layer.n_weights * min(8 * kept + 1 / GROUP, 8.0)

    def works(self, job: Job[GroupSparsity]) -> Iterator[Work]:
        """Any aspect of the array: filters down, windows across."""
        for windows, filters in shapes(job.multipliers):
            for tiling in tilings(job, filters):
                yield _work(job, windows, filters, tiling)

    def parts(self, like: AcceleratorSpec, multipliers: int) -> Iterator[Line]:
        """Elements of the array, and local memories for a square one."""
        n, bits = multipliers, like.activation_bits + like.weight_bits
        yield "array", "multipliers", n, "multiply", like.activation_bits * like.weight_bits / 64
        yield "array", "accumulator adders", n * like.psum_bits, "adder_bit", 1.0
        yield "registers", "accumulators", n * like.psum_bits, "flip_flop_bit", 1.0
        yield "registers", "operands", n * bits, "flip_flop_bit", 1.0
        yield "registers", "local memories", round(n**0.5) * _LOCAL_BYTES * 8, "latch_bit", 1.0


def _work(job: Job[GroupSparsity], windows: int, filters: int, tiling: Tiling) -> Work:
    layer, like = job.layer, job.like
    here = job.sparsity
    kept, blocks, active = (here.value(key) for key in ("weights", "blocks", "activations"))
    positions = tiling.position_steps(layer.out_size[1], windows)
    columns = -(-job.c_out // filters)
    steps = layer.groups * positions * columns
    cycles_a_step = job.depth * kept * blocks
    compute = round(-(-steps * cycles_a_step // 1))
    executed = layer.dense_macs * kept * blocks * active
    phases = layer.groups * tiling.tiles.n * tiling.n_groups
    time = layer_time(
        job,
        tiling,
        compute=compute,
        bubble=phases * (windows + filters),
        weight_bytes_moved=job.weight_bytes * (positions if tiling.streamed else tiling.weight_loads),
        first_weights=job.weight_bytes // (layer.groups * (columns if tiling.streamed else tiling.n_groups)),
    )
    # The ring keeps what windows share, so that a value leaves L1 once for the filters in the array.
    fetched = columns * layer.input_bytes
    handed_out = columns * layer.n_positions * layer.c_in * layer.n_points * kept * blocks
    actions = transfers(job, tiling, fetched=fetched, weight_reads=positions)
    passed = steps * cycles_a_step * windows * min(filters, job.c_out) * (like.activation_bits + like.weight_bits)
    return Work(
        cycles=time,
        actions=replace(
            actions,
            macs=round(executed),
            nonzero_macs=round(executed),
            arf_reads=round(handed_out),
            arf_writes=fetched,
        ),
        counts=(
            Count("registers", "accumulators", _HALF * executed, "prf_access"),
            Count("array", "pipeline bits", passed, "flip_flop_bit"),
        ),
    )
