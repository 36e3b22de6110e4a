"""Four prior sparse accelerators, each by the principle that makes it cheap and what the principle costs.

All are generous to the rival: see `model` and the docstring of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from mvq.accel.cost.area import Line
from mvq.accel.rivals.model import Rival, Sparsity, Work
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer


def side(multipliers: int) -> int:
    """Rows and columns of a square of so many multipliers."""
    return max(math.isqrt(multipliers), 1)


def _macs(multipliers: int, spec: AcceleratorSpec, *, operand_bits: int, psums: int) -> Iterator[Line]:
    """Multipliers with registers for operands, products and accumulators."""
    product = spec.activation_bits + spec.weight_bits
    yield "array", "multipliers", multipliers, "multiply", spec.activation_bits * spec.weight_bits / 64
    yield "array", "product bits", multipliers * product, "flip_flop_bit", 1.0
    yield "array", "accumulator bits", multipliers * spec.psum_bits, "adder_bit", 1.0
    yield "registers", "operand bits", multipliers * operand_bits, "flip_flop_bit", 1.0
    yield "registers", "partial sums, stored bits", multipliers * psums * spec.psum_bits, "latch_bit", 1.0
    yield "registers", "partial sums, read ports", multipliers * psums * spec.psum_bits, "read_port_bit", 1.0


class SparTen(Rival):
    """Inner joins of bit masks (Gondimalla et al., MICRO 2019).

    Both operands are stored as a mask of 128 bits and their nonzero values. Clusters of 32 units take one chunk of the
    input together, each against its own two filters (greedy balancing collocates a dense and a sparse one); the cluster
    goes on when its slowest unit is done. Prefix sums over both masks locate the values, a priority encoder finds the
    next match.

    Assumed: the matches of a chunk are binomial, the slowest of 32 units is the expected largest of 32 normals; a unit
    keeps its filter chunks for 16 positions; Brent-Kung prefix sums of two additions a bit, of 1 to 7 bits, those of
    weights shared by the 16 positions; outputs are compacted for free.
    """

    name = "SparTen"
    default = Sparsity(
        weights=0.35,
        activations=0.5,
        source="weights pruned as in Deep Compression, 0.27 to 0.38 of AlexNet's and VGG-16's convolutions",
    )
    chunk, units, filters, positions, prefix_bits = 128, 32, 2, 16, 3.5
    #: Expected largest of 32 standard normal values (Harter, Biometrika 48, 1961).
    largest_of_32 = 2.07

    def work(self, layer: Layer, sparsity: Sparsity, multipliers: int) -> Work:
        """As `Rival.work`."""
        match = sparsity.weights * sparsity.activations
        active = layer.dense_macs * match
        trials = self.filters * min(self.chunk, layer.n_weights // layer.c_out)
        late = self.largest_of_32 * math.sqrt(trials * match * (1 - match)) / (trials * match)
        compute = active / multipliers
        act_bytes = (sparsity.activations + 1 / 8) / (self.units * self.filters)
        weight_bytes = (sparsity.weights + 1 / 8) / self.positions
        return Work(
            compute=compute,
            idle=compute * late,
            macs=active,
            active=active,
            weight_reads=active,
            activation_reads=active,
            psum_accesses=active,
            l1_read_bytes=layer.dense_macs * (act_bytes + weight_bytes),
            index_adds=layer.dense_macs * 2 * (1 / self.filters + 1 / self.positions) * self.prefix_bits / 8 + active,
            weight_bytes=layer.n_weights * (sparsity.weights + 1 / 8),
            activation_share=sparsity.activations + 1 / 8,
        )

    def parts(self, multipliers: int, spec: AcceleratorSpec) -> Iterator[Line]:
        """As `Rival.parts`: chunks of both operands in every unit, two prefix sums, an encoder."""
        values = (1 + self.filters) * self.chunk * (spec.weight_bits + 1)
        yield from _macs(multipliers, spec, operand_bits=0, psums=self.filters * self.positions)
        yield "registers", "chunks, stored bits", multipliers * values, "latch_bit", 1.0
        yield "registers", "chunks, read ports", multipliers * values, "read_port_bit", 1.0
        yield "array", "prefix sums", multipliers * 2 * 2 * self.chunk * self.prefix_bits, "adder_bit", 1.0
        yield "array", "match and priority", multipliers * self.chunk, "zero_counter_bit", 1.0


class CGNet(Rival):
    """Channel gating (Hua et al., MICRO 2019): part of the input channels decides whether the others are needed.

    A weight-stationary array of dense int8 weights; 60% of the multiplications are skipped. Every output keeps the
    partial sum of its first channels, is compared with a threshold, and goes on where it passes.

    Assumed: skipping fills the array perfectly; partial sums stay in registers of the columns but for the decision,
    for which they pass L1 once. Multipliers are not gated by zeros: the paper has a conventional array.
    """

    name = "CGNet"
    default = Sparsity(weights=0.4, activations=0.5, source="CGNet, MICRO 2019: 60% of ResNet-18 skipped")

    def work(self, layer: Layer, sparsity: Sparsity, multipliers: int) -> Work:
        """As `Rival.work`."""
        n = side(multipliers)
        macs = layer.dense_macs * sparsity.weights
        return Work(
            compute=macs / multipliers,
            macs=macs,
            active=macs,
            weight_reads=macs,
            activation_reads=macs / n,
            psum_accesses=macs / n,
            l1_read_bytes=macs / n + 4 * layer.output_bytes + layer.n_weights,
            l1_write_bytes=4 * layer.output_bytes,
            index_adds=4 * layer.output_bytes,
            weight_bytes=layer.n_weights,
        )

    def parts(self, multipliers: int, spec: AcceleratorSpec) -> Iterator[Line]:
        """As `Rival.parts`: two weights a multiplier, and a comparator a column."""
        yield from _macs(multipliers, spec, operand_bits=2 * spec.weight_bits, psums=0)
        n = side(multipliers)
        yield "registers", "partial sums, stored bits", n * 16 * spec.psum_bits, "latch_bit", 1.0
        yield "registers", "partial sums, read ports", n * 16 * spec.psum_bits, "read_port_bit", 1.0
        yield "array", "thresholds", n * spec.psum_bits, "adder_bit", 1.0


class SPOTS(Rival):
    """Sparse GEMM on a systolic array with an im2col unit (Soltaniyeh et al., TACO 2022).

    Output-stationary; groups of weights are pruned and skipped, with their columns of patches; the im2col unit reads
    an input once for all windows it lies in. 8 bits here, as everything else.

    Assumed: the array is square, where it reads least; skipping is perfect; a mask bit for each group of 8 weights;
    zero activations hold their multiplier.
    """

    name = "SPOTS"
    default = Sparsity(
        weights=0.73,
        activations=0.5,
        source="MVQ, ASPLOS 2025: 27% of VGG-16 in groups, which with 16 bits makes its 3x",
    )

    def work(self, layer: Layer, sparsity: Sparsity, multipliers: int) -> Work:
        """As `Rival.work`."""
        n = side(multipliers)
        macs = layer.dense_macs * sparsity.weights
        passes = math.ceil(layer.c_out / layer.groups / n)
        return Work(
            compute=macs / multipliers,
            macs=macs,
            active=macs * sparsity.activations,
            weight_reads=macs,
            activation_reads=macs,
            psum_accesses=macs * sparsity.activations,
            l1_read_bytes=layer.input_bytes * passes + macs / n,
            index_adds=layer.n_weights / 8,
            weight_bytes=layer.n_weights * (sparsity.weights + 1 / 64),
        )

    def parts(self, multipliers: int, spec: AcceleratorSpec) -> Iterator[Line]:
        """As `Rival.parts`: both operands move through every multiplier."""
        yield from _macs(multipliers, spec, operand_bits=spec.weight_bits + spec.activation_bits, psums=1)


class S2TA(Rival):
    """Density bound blocks on both sides, activations unrolled in time (Liu et al., HPCA 2022, S2TA-AW).

    Of 8 weights in a row 4 are kept. Of 8 activations as many are kept as a dynamic pruning unit leaves; a multiplier
    takes them one after the other and picks the weight that belongs to each, or holds where there is none. Tensor
    elements of 8 x 4 multipliers share operands; output-stationary.

    Assumed: the array is square; blocks are full (the bound is the mean); an accumulation for every multiplication that
    is not held.
    """

    name = "S2TA"
    default = Sparsity(weights=0.5, activations=0.5, source="S2TA, HPCA 2022: 4/8 weights and 4/8 activations")
    block, element = 8, (8, 4)

    def work(self, layer: Layer, sparsity: Sparsity, multipliers: int) -> Work:
        """As `Rival.work`."""
        n = side(multipliers)
        taken = math.ceil(sparsity.activations * self.block) / self.block
        kept = math.ceil(sparsity.weights * self.block) / self.block
        slots = layer.dense_macs * taken
        active = slots * kept
        bits = 1 / 8
        return Work(
            compute=slots / multipliers,
            macs=slots,
            active=active,
            weight_reads=slots / self.element[0],
            activation_reads=slots / self.element[1],
            psum_accesses=active,
            l1_read_bytes=layer.dense_macs * ((taken + bits) + (kept + bits)) / n,
            index_adds=2 * layer.output_bytes,
            weight_bytes=layer.n_weights * (kept + bits),
            activation_share=taken + bits,
        )

    def parts(self, multipliers: int, spec: AcceleratorSpec) -> Iterator[Line]:
        """As `Rival.parts`: operands shared in an element, and a choice of 4 weights at every multiplier."""
        shared = spec.weight_bits * self.block / self.element[0] + spec.activation_bits / self.element[1]
        yield from _macs(multipliers, spec, operand_bits=math.ceil(shared), psums=1)
        yield "array", "choice of a weight", multipliers * 4 * spec.weight_bits, "read_port_bit", 1.0


RIVALS: dict[str, Rival] = {rival.name: rival for rival in (SparTen(), CGNet(), SPOTS(), S2TA())}
