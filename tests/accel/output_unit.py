"""The output unit in Amaranth's simulator."""

import numpy as np
from amaranth.sim import Simulator

from mvq.accel.rtl.output import OutputUnit, output_lanes


def through(spec, batches, seed=0, stalls=0.3):
    """Codes of batches of `(factors, values)`, in order, with stalls on every stream."""
    unit, rng, found = OutputUnit(spec), np.random.default_rng(seed), []
    factors = [factor for factor, _ in batches]
    values = [value for _, these in batches for value in these]

    async def bench(ctx):
        streams = ((unit.factors, factors), (unit.values, values))
        places, offered, cycles = [0, 0], [False, False], 0
        while len(found) < len(values):
            for i, (port, items) in enumerate(streams):
                offered[i] = offered[i] or (places[i] < len(items) and rng.random() >= stalls)
                ctx.set(port.valid, int(offered[i]))
                if places[i] < len(items):
                    ctx.set(port.payload, items[places[i]])
            ctx.set(unit.codes.ready, int(rng.random() >= stalls))
            for i, (port, _) in enumerate(streams):
                if offered[i] and ctx.get(port.ready):
                    places[i], offered[i] = places[i] + 1, False
            if ctx.get(unit.codes.valid) and ctx.get(unit.codes.ready):
                found.append([ctx.get(unit.codes.payload[lane]) for lane in range(output_lanes(spec))])
            await ctx.tick()
            cycles += 1
            assert cycles < 100 * len(values) + 1000, "the unit does not come to its end"

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return np.array(found)


def batch(lanes, values, low=-128, high=127):
    """Factors and values as the ports take them; `lanes` and the entries of `values` are by lane."""
    keys = ("bias", "factor", "other_factor", "shift")
    listed = [dict(zip(keys, map(int, lane), strict=True)) for lane in lanes]
    items = [{"lanes": [{"sum": int(s), "other": int(o)} for s, o in row]} for row in values]
    return {"positions": len(values), "low": low, "high": high, "lanes": listed}, items
