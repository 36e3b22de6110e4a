"""The output unit against the arithmetic of the integer network."""

import dataclasses

import numpy as np
import pytest
from amaranth.sim import Simulator
from output_unit import batch, through

from mvq.accel.network.arithmetic import Requantization, round_shift
from mvq.accel.rtl.output import OutputUnit
from mvq.accel.spec import preset

SPEC = dataclasses.replace(preset("ews-cms-16"), dma_bits=16)


def test_layers_are_requantized():
    rng = np.random.default_rng(1)
    batches, wanted = [], []
    for low, high in ((-128, 127), (0, 127), (0, 60), (-3, 5)):
        multiplier = np.exp(rng.uniform(-14, 2, 2)) * rng.choice([-1, 1], 2)
        requantization = Requantization.of(multiplier, low, high)
        bias = rng.integers(-(1 << 28), 1 << 28, 2, endpoint=True)
        scale = 10.0 ** rng.integers(1, 10, (40, 2))
        sums = np.clip(rng.normal(size=(40, 2)) * scale - bias, -(1 << 31), (1 << 31) - 1).astype(np.int64)
        lanes = zip(bias, requantization.mantissa, (0, 0), requantization.shift, strict=True)
        batches.append(batch(list(lanes), [[(s, 77) for s in row] for row in sums], low, high))
        wanted.append(requantization.apply(sums, bias))
    found = through(SPEC, batches)
    assert (found == np.concatenate(wanted)).all()
    assert len(np.unique(found)) > 30


@pytest.mark.parametrize("shift", [0, 1, 2, 23, 61, 62])
def test_halves_go_to_even(shift):
    """Products that lie between two integers, exactly and by the least that can be."""
    mantissa = 1 << min(max(shift - 1, 0), 24)
    sums = np.arange(-9, 10)
    requantization = Requantization(np.array([mantissa, mantissa - 1], np.int32), np.array([shift] * 2, np.uint8))
    values = [[(s, 0), (s, 0)] for s in sums]
    found = through(SPEC, [batch([(0, m, 0, shift) for m in requantization.mantissa], values)])
    assert (found == requantization.apply(np.stack([sums, sums], 1))).all()


def test_residuals_are_added():
    rng = np.random.default_rng(2)
    codes = rng.integers(-128, 128, (60, 2, 2))
    lanes, wanted = [], []
    for lane in range(2):
        m0, m1, shift = (int(n) for n in (*rng.integers(-(1 << 24), 1 << 24, 2, endpoint=True), rng.integers(20, 28)))
        lanes.append((0, m0, m1, shift))
        total = codes[:, lane, 0].astype(np.int64) * m0 + codes[:, lane, 1].astype(np.int64) * m1
        wanted.append(np.clip(round_shift(total, shift), 0, 127))
    found = through(SPEC, [batch(lanes, codes.tolist(), 0, 127)])
    assert (found == np.stack(wanted, 1)).all()


def test_it_takes_a_value_a_cycle():
    """Without stalls: four cycles to the first, then one each."""
    unit = OutputUnit(SPEC)
    factors, values = batch([(0, 1, 0, 0)] * 2, [[(i, 0), (-i, 0)] for i in range(20)])
    out = []

    async def bench(ctx):
        ctx.set(unit.factors.payload, factors)
        ctx.set(unit.factors.valid, 1)
        await ctx.tick()
        ctx.set(unit.factors.valid, 0)
        ctx.set(unit.values.valid, 1)
        ctx.set(unit.codes.ready, 1)
        for i in range(24):
            if i < 20:
                ctx.set(unit.values.payload, values[i])
                assert ctx.get(unit.values.ready)
            if ctx.get(unit.codes.valid):
                out.append((i, ctx.get(unit.codes.payload[0]), ctx.get(unit.codes.payload[1])))
            await ctx.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert out == [(i + 4, i, -i) for i in range(20)]
