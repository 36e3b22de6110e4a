"""The controller's blocks and the inputs that are fetched for them, against those that a program lays out."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from amaranth.sim import Simulator
from random_layers import random_layer, random_spec
from stored_layers import prepared

from mvq.accel.mapping import candidates
from mvq.accel.rtl.controller import Controller
from mvq.accel.rtl.fetch import Fetch
from mvq.accel.rtl.program import activations, program
from mvq.accel.rtl.sequencer import block_layout

KINDS = ("ws", "ews", "ews-cm", "ews-cms", "ews-p")


def random_program(rng, kind, most=4000):
    """Of a layer that takes not too long here."""
    while True:
        spec = random_spec(rng, kind)
        layer = random_layer(rng, spec)
        mapping = rng.choice(list(itertools.islice(candidates(spec, layer), 60)))
        mapping = dataclasses.replace(mapping, tile_rows=rng.randrange(1, layer.out_size[0] + 1))
        _, stored, _, ifmap = prepared(spec, layer, mapping, rng.randrange(1 << 30))
        work = program(spec, layer, mapping, stored, ifmap[0])
        if work.steps <= most:
            return spec, work, activations(spec, layer, mapping, ifmap[0])


def simulate(component, bench):
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def counted(spec, layers, rng, stalls=0.3):
    """Blocks and fetches of layers, one after the other, as fields."""
    controller = Controller(spec)
    found = {"blocks": [], "fetches": []}

    async def bench(ctx):
        waiting = list(layers)
        for _ in range(200_000):
            ctx.set(controller.layer.valid, int(bool(waiting)))
            if waiting:
                ctx.set(controller.layer.payload, waiting[0])
            taken = waiting and ctx.get(controller.layer.ready)
            for name, items in found.items():
                port = getattr(controller, name)
                ctx.set(port.ready, int(rng.random() >= stalls))
                if ctx.get(port.valid) and ctx.get(port.ready):
                    items.append(ctx.get(port.payload))
            await ctx.tick()
            if taken:
                waiting.pop(0)
            if not waiting and ctx.get(controller.idle):
                return
        raise AssertionError("the controller does not come to its end")

    simulate(controller, bench)
    return found["blocks"], found["fetches"]


def fetched(spec, work, fetches, rng, stalls):
    """Inputs that the rows get, and the cycles that it took."""
    unit, found, cycles = Fetch(spec), [], 0

    async def bench(ctx):
        nonlocal cycles
        ctx.set(unit.shape, work.shape)
        ctx.set(unit.points, work.points)
        waiting, read = list(fetches), None
        while waiting or not ctx.get(unit.idle):
            ctx.set(unit.blocks.valid, int(bool(waiting)))
            if waiting:
                ctx.set(unit.blocks.payload, waiting[0])
            # What no row asked for is anything.
            ctx.set(unit.found, [-1] * spec.rows if read is None else read)
            ctx.set(unit.reads.ready, int(rng.random() >= stalls))
            ctx.set(unit.activations.ready, int(rng.random() >= stalls))
            if waiting and ctx.get(unit.blocks.ready):
                waiting.pop(0)
            read = None
            if ctx.get(unit.reads.valid) and ctx.get(unit.reads.ready):
                asked = ctx.get(unit.reads.payload)
                rows = asked.rows
                read = [int(work.banks[i, asked.addresses[i]]) if rows >> i & 1 else -1 for i in range(spec.rows)]
            if ctx.get(unit.activations.valid) and ctx.get(unit.activations.ready):
                values = ctx.get(unit.activations.payload)
                found.append([values[i] for i in range(spec.rows)])
            await ctx.tick()
            cycles += 1
            assert cycles < 100 * work.steps + 1000, "the unit does not come to its end"

    simulate(unit, bench)
    return np.array(found, np.int8), cycles


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_inputs_of_random_layers(kind):
    rng = random.Random(KINDS.index(kind))
    for _ in range(4):
        spec, work, wanted_inputs = random_program(rng, kind)
        # A layer twice: the second begins as the first did.
        blocks, fetches = counted(spec, [work.layer] * 2, rng)
        wanted = [block_layout(spec).const(block).as_value().value for block in work.blocks]
        assert [block.as_value().value for block in blocks] == wanted * 2
        assert len(fetches) == len(wanted) * 2
        found, _ = fetched(spec, work, fetches[: len(wanted)], rng, rng.choice([0.0, 0.5]))
        assert (found == wanted_inputs).all()
