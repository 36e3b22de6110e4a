"""Cell libraries, netlists, their timing and switching, and a core run on its gates."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_layers import prepared

from mvq.accel.functional.array import run_layer
from mvq.accel.mapping import Mapping
from mvq.accel.rtl.gates.liberty import read_library
from mvq.accel.rtl.gates.netlist import ONE, ZERO, flatten
from mvq.accel.rtl.gates.run import run
from mvq.accel.rtl.gates.switching import INPUT_DELAY, STEPS, Switching
from mvq.accel.rtl.gates.timing import analyse, loads
from mvq.accel.rtl.program import activations, program, sums
from mvq.accel.rtl.synthesis import netlist
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.errors import FileError, MvqError
from mvq.patterns import Pattern

CELLS = Path(__file__).with_name("cells.lib")
#: Of `cells.lib`: a load of one pin in fF, and the slew that clocks and ports have in ns.
PIN, IDEAL = 1.0, 0.110


@pytest.fixture(scope="module")
def library():
    return read_library(CELLS)


def design(cells, ports, **modules):
    """A design as yosys writes it: cells by name, each a type and its connections."""

    def module(cells, ports):
        listed = {
            f"c{i}": {"type": kind, "connections": {pin: [bit] for pin, bit in pins.items()}}
            for i, (kind, pins) in enumerate(cells)
        }
        return {"cells": listed, "ports": {name: {"bits": bits} for name, bits in ports.items()}}

    return {"modules": {"top": module(cells, ports), **{name: module(*one) for name, one in modules.items()}}}


def chain(library, n):
    """A flip-flop, and inverters after it."""
    cells = [("DFF", {"C": 2, "D": 3, "Q": 4})]
    cells += [("INV", {"A": 4 + i, "Y": 5 + i}) for i in range(n)]
    return flatten(design(cells, {"clk": [2], "d": [3], "y": [4 + n]}), "top", library)


# ------------------------------------------------------------------------------------------------ libraries


def test_cells_do_what_their_functions_say(library):
    nand = library.cell("NAND2")
    assert nand.functions[0].tolist() == [True, True, True, False] * 2
    assert (nand.area, nand.leakage, nand.capacitance, nand.load_limit) == (2.0, 2.0, (PIN, PIN), 21.0)
    flip_flop = library.cell("DFF")
    assert (flip_flop.clock, flip_flop.rising, flip_flop.gates) == (0, True, ())
    data = np.arange(8) >> 1 & 1
    assert (flip_flop.next_state == data).all()
    latch = library.cell("LATCH")
    opened, data, state = (np.arange(8) >> i & 1 for i in range(3))
    assert (latch.next_state == np.where(opened, data, state)).all()
    assert (latch.clock, latch.gates) == (-1, (0,))
    gate = library.cell("GATE")
    clock, enable, state = (np.arange(8) >> i & 1 for i in range(3))
    assert (gate.next_state == np.where(clock, state, enable)).all()
    assert (gate.functions[0] == clock & state).all()


@pytest.mark.parametrize(
    ("function", "python"),
    [
        ("A'*B", lambda a, b, c: ~a & b),
        ("(A+B)'", lambda a, b, c: ~(a | b)),
        ("!A & (B | C)", lambda a, b, c: ~a & (b | c)),
        ("A ^ B & C", lambda a, b, c: (a ^ b) & c),
        ("((A' + B)' C)'", lambda a, b, c: ~(~(~a | b) & c)),
    ],
)
def test_functions_of_the_format(tmp_path, function, python):
    pins = "".join(f"pin({name}) {{ direction : input; capacitance : 1; }}" for name in "ABC")
    path = tmp_path / "one.lib"
    output = f'pin(Y) {{ direction : output; function : "{function}"; }}'
    path.write_text(
        "library(one) {\n time_unit : 1ps; voltage_unit : 1V; leakage_power_unit : 1pW; nom_voltage : 0.5;\n"
        f"capacitive_load_unit(1, ff);\n cell(X) {{ area : 1; {pins} {output} }}\n}}\n"
    )
    found = read_library(path)
    a, b, c = ((np.arange(16) >> i & 1).astype(bool) for i in range(3))
    assert (found.cell("X").functions[0] == python(a, b, c)).all()
    assert found.voltage == 0.5


def test_units_and_tables(library):
    arc = library.cell("INV").arcs[0, 0]
    assert arc.delay[0].loads.tolist() == [1.0, 21.0]
    assert arc.delay[0].slews.tolist() == [0.010, 0.110]
    assert arc.energy[0].values.tolist() == [[2.0, 2.0], [4.0, 4.0]]
    assert library.cell("DFF").hidden[0][0].energy[1].values.ravel().tolist() == [0.3, 0.5]


def every_cell(path):
    found = read_library(path)
    return [found.cell(name) for name in found.groups]


def test_libraries_that_lack_something_are_named(tmp_path, library):
    text = CELLS.read_text()
    for old, new, fault in (
        ('voltage_unit : "1V";', "", "voltage_unit"),
        ('function : "!A"', 'function : "!Q"', r"'!Q' is no function of its pins; at fault: 'Q'"),
        ('function : "!A";', "", "output Y has no function"),
        ("clock_gating_integrated_cell : latch_posedge;", "", "not a clock gate"),
    ):
        path = tmp_path / f"{abs(hash(fault))}.lib"
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(FileError, match=fault):
            every_cell(path)
    with pytest.raises(FileError, match="has no cell 'XOR9'"):
        library.cell("XOR9")
    broken = tmp_path / "broken.lib"
    broken.write_text(text.rstrip().removesuffix("}"))
    with pytest.raises(FileError, match="braces"):
        read_library(broken)


# ------------------------------------------------------------------------------------------------ netlists


def test_modules_are_flattened(library):
    inner = ([("INV", {"A": 2, "Y": 3}), ("INV", {"A": 3, "Y": 4})], {"a": [2], "y": [4], "same": [2], "one": ["1"]})
    outer = [
        ("sub", {"a": 2, "y": 3, "same": 5, "one": 6}),
        ("sub", {"a": 3, "y": 4}),
        ("NAND2", {"A": 5, "B": 6, "Y": 7}),
    ]
    flat = flatten(design(outer, {"a": [2], "y": [4], "z": [7]}, sub=inner), "top", library)
    assert flat.modules == (("top",), ("top", "sub"))
    assert np.bincount(flat.module).tolist() == [1, 4]
    nand = flat.kind == [cell.name for cell in flat.kinds].index("NAND2")
    # A port that is another within a module is the net outside it; a constant is the constant.
    assert flat.inputs[nand, :2].tolist() == [[flat.ports["a"][0], ONE]]
    inverters = flat.inputs[~nand, 0].tolist(), flat.outputs[~nand, 0].tolist()
    assert inverters[0][1] == inverters[1][0]
    assert inverters[0][2] == inverters[1][1]
    assert flat.ports["y"][0] == inverters[1][3]


def test_netlists_that_are_none_are_refused(library):
    twice = [("INV", {"A": 2, "Y": 3}), ("BUF", {"A": 2, "Y": 3})]
    with pytest.raises(MvqError, match="several drivers"):
        flatten(design(twice, {"a": [2]}), "top", library)
    loop = flatten(design([("NAND2", {"A": 2, "B": 3, "Y": 3})], {"clk": [2]}), "top", library)
    with pytest.raises(MvqError, match="1 gates of the netlist are in a loop"):
        analyse(loop)


# ------------------------------------------------------------------------------------------------ timing


def between(table, slew, load):
    """Two by two entries, over slew and load."""
    x = min(max((slew - 0.010) / 0.100, 0), 1)
    y = min(max((load - 1.0) / 20.0, 0), 1)
    (a, b), (c, d) = table
    return (a * (1 - y) + b * y) * (1 - x) + (c * (1 - y) + d * y) * x


DELAYS, SLEWS = ((0.010, 0.050), (0.030, 0.070)), ((0.010, 0.060), (0.020, 0.070))


def test_a_chain_takes_what_its_gates_take(library):
    flat = chain(library, 5)
    timing = analyse(flat)
    # The last inverter drives nothing.
    arrival, slew = 0.0, IDEAL
    for load in [PIN] * 5 + [0.0]:
        arrival += between(DELAYS, slew, load)
        slew = between(SLEWS, slew, load)
    assert timing.longest == pytest.approx(arrival)
    assert timing.levels == 6
    assert loads(flat)[flat.ports["clk"]] == [PIN]


def test_a_net_beyond_its_drivers_limit_counts_as_buffered(library):
    cells = [("INV", {"A": 2, "Y": 3})] + [("INV", {"A": 3, "Y": 4 + i}) for i in range(40)]
    flat = flatten(design(cells, {"clk": [99], "a": [2]}), "top", library)
    timing = analyse(flat)
    first = between(DELAYS, IDEAL, 21.0)
    assert timing.longest == pytest.approx(first + between(DELAYS, between(SLEWS, IDEAL, 21.0), 0.0))


def test_clocks_are_ideal_also_beyond_gates(library):
    cells = [
        ("GATE", {"C": 2, "E": 3, "G": 4}),
        ("DFF", {"C": 4, "D": 5, "Q": 6}),
        ("INV", {"A": 2, "Y": 7}),
        ("LATCH", {"E": 7, "D": 6, "Q": 8}),
    ]
    flat = flatten(design(cells, {"clk": [2], "e": [3], "d": [5], "q": [8]}), "top", library)
    clocks = analyse(flat).clocks
    gated, inverted = flat.outputs[0, 0], flat.outputs[2, 0]
    assert set(np.flatnonzero(clocks)) == {flat.ports["clk"][0], gated, inverted}


# ------------------------------------------------------------------------------------------------ switching


def test_energy_of_a_change_by_hand(library):
    flat = chain(library, 2)
    gates = Switching(flat, period=2.0)
    gates.put("d", 1)
    gates.cycle()
    # The clock rose and fell, and the input rose: their nets' energies, and hidden ones.
    assert gates.ports_energy == pytest.approx(3 * 0.5 * PIN)
    assert gates.energy.tolist() == pytest.approx([0.7 + 0.5, 0, 0])
    gates.reset()
    gates.cycle()
    assert gates.get("y") == 1
    slews = [IDEAL, between(SLEWS, IDEAL, PIN)]
    slews.append(between(SLEWS, slews[1], PIN))
    rise = [2.0 + 2.0 * (slew - 0.010) / 0.100 for slew in slews]
    fall = [1.0 + 2.0 * (slew - 0.010) / 0.100 for slew in slews]
    wanted = [0.7 + 0.5 + rise[0] + 0.5 * PIN, fall[1] + 0.5 * PIN, rise[2]]
    assert gates.energy.tolist() == pytest.approx(wanted, rel=1e-5)
    assert gates.changes[flat.ports["y"]] == [1]


def test_hidden_energy_depends_on_its_condition(library):
    """The input of a flip-flop costs while the clock is low, and not while it is high."""
    flat = chain(library, 0)
    gates = Switching(flat, period=2.0)
    gates.put("d", 1)
    gates.cycle()
    with_clock_high = gates.energy[0]
    slow = Switching(flat, period=2 * INPUT_DELAY)
    slow._offset = slow.period
    slow.cycle()
    slow.reset()
    slow._drive(flat.ports["d"], np.ones(1, np.uint8), slow._now)
    assert with_clock_high == pytest.approx(1.2)
    assert slow.energy[0] == pytest.approx(0.5 + (np.median(slow.timing.slew) - 0.010) / 0.100 * 0.2)


def test_pulses_shorter_than_a_gate_vanish(library):
    """NAND of a signal and its inverse: a glitch if the inverse is late by more than the gate's delay."""
    for late, glitches in ((1, 0), (9, 2)):
        cells = [("INV", {"A": 2 if i == 0 else 9 + i, "Y": 10 + i}) for i in range(late)]
        cells.append(("NAND2", {"A": 2, "B": 9 + late, "Y": 50}))
        # They make it slower than one inverter, and faster than nine.
        cells += [("BUF", {"A": 50, "Y": 60 + i}) for i in range(5)]
        flat = flatten(design(cells, {"clk": [3], "a": [2], "y": [50]}), "top", library)
        gates = Switching(flat, period=4.0)
        gates.put("a", 1)
        gates.cycle()
        assert gates.get("y") == 1
        assert gates.changes[flat.ports["y"]].item() == glitches


@st.composite
def random_netlists(draw):
    """Gates, flip-flops and latches over inputs and each other, without loops."""
    n_inputs, n_cells = draw(st.integers(1, 4)), draw(st.integers(1, 25))
    nets = [3 + i for i in range(n_inputs)]
    cells = []
    for i in range(n_cells):
        kind = draw(st.sampled_from(["INV", "NAND2", "NOR2", "BUF", "DFF", "LATCH"]))
        y = 100 + i
        a, b = draw(st.sampled_from(nets)), draw(st.sampled_from(nets))
        pins = {"A": a} if kind in ("INV", "BUF") else {"A": a, "B": b}
        output = "Y"
        if kind == "DFF":
            pins, output = {"C": 2, "D": a}, "Q"
        elif kind == "LATCH":
            pins, output = {"E": 2, "D": a}, "Q"
        cells.append((kind, {**pins, output: y}))
        nets.append(y)
    values = draw(st.lists(st.lists(st.integers(0, 1), min_size=n_inputs, max_size=n_inputs), min_size=1, max_size=6))
    return cells, n_inputs, values


class Slow:
    """Events in a dictionary by time, gates in Python."""

    def __init__(self, flat, timing, period):
        self.flat, self.timing, self.period = flat, timing, period
        self.delay = np.maximum(np.rint(timing.delay * STEPS), 1).astype(int)
        self.net = np.zeros(flat.n_nets, int)
        self.net[ONE] = 1
        self.state = [0] * len(flat.kind)
        self.waits: dict[int, tuple[int, int]] = {}
        self.events: dict[int, list[int]] = {}
        self.changes = np.zeros(flat.n_nets, int)
        self.energy, self.now = 0.0, 0
        for cell in range(len(flat.kind)):
            self._look(cell, 0)
        self._until(10**6)
        self.changes[:], self.energy, self.now = 0, 0.0, 0

    def _pins(self, cell):
        kind = self.flat.kinds[self.flat.kind[cell]]
        return kind, sum(int(self.net[n]) << i for i, n in enumerate(self.flat.inputs[cell, : len(kind.inputs)]))

    def _look(self, cell, pin, rose=False):
        kind, index = self._pins(cell)
        if kind.next_state is not None and (kind.clock < 0 or (pin == kind.clock and rose)):
            self.state[cell] = int(kind.next_state[index | self.state[cell] << len(kind.inputs)])
        elif kind.next_state is not None and pin != kind.clock:
            return
        net = int(self.flat.outputs[cell, 0])
        wanted = int(kind.functions[0][index | self.state[cell] << len(kind.inputs)])
        if wanted == self.net[net]:
            if cell in self.waits:
                self.events[self.waits.pop(cell)[0]].remove(cell)
        elif cell not in self.waits:
            arc = int(self.timing.first_arc[cell]) + pin * 2 + 1 - wanted
            time = self.now + self.delay[arc]
            self.waits[cell] = time, arc
            self.events.setdefault(time, []).insert(0, cell)

    def change(self, net):
        self.net[net] ^= 1
        self.changes[net] += 1
        for cell in range(len(self.flat.kind)):
            kind = self.flat.kinds[self.flat.kind[cell]]
            for pin in range(len(kind.inputs)):
                if self.flat.inputs[cell, pin] == net:
                    self._look(cell, pin, bool(self.net[net]))

    def _until(self, end):
        while self.events and min(self.events) < end:
            self.now = min(self.events)
            waiting = self.events[self.now]
            if not waiting:
                del self.events[self.now]
                continue
            cell = waiting.pop(0)
            _, arc = self.waits.pop(cell)
            net = self.flat.outputs[cell, 0]
            self.energy += self.timing.energy[arc] + 0.5 * self.timing.load[net]
            self.change(net)
        self.now = end

    def cycle(self, values):
        begin = self.now
        (clock,) = self.flat.ports["clk"]
        self.change(clock)
        self._until(begin + round(INPUT_DELAY * STEPS))
        for net, value in zip(self.flat.ports["a"], values, strict=True):
            if self.net[net] != value:
                self.change(net)
        self._until(begin + self.period // 2)
        self.change(clock)
        self._until(begin + self.period)


@settings(max_examples=60, deadline=None)
@given(random_netlists())
def test_changes_are_those_of_a_slow_simulation(case):
    cells, n_inputs, values = case
    flat = flatten(design(cells, {"clk": [2], "a": [3 + i for i in range(n_inputs)]}), "top", read_library(CELLS))
    gates = Switching(flat, period=8.0)
    slow = Slow(flat, gates.timing, 8 * STEPS)
    free = [cell for cell in range(len(flat.kind)) if not flat.kinds[flat.kind[cell]].hidden]
    for row in values:
        gates.put_bits("a", np.array(row))
        gates.cycle()
        slow.cycle(row)
        assert not gates.late()
        assert (gates.changes == slow.changes).all()
    hidden = set(range(len(flat.kind))) - set(free)
    if not hidden:
        assert gates.energy.sum() == pytest.approx(slow.energy, rel=1e-5, abs=1e-6)


# ------------------------------------------------------------------------------------------------ cores


@pytest.mark.parametrize("kind", ["ews", "ews-cms", "ews-p"])
def test_a_layer_on_the_gates_of_a_core(kind):
    """The netlist makes the functional view's sums; the energy of its parts is all that was spent."""
    sizes = {"rows": 3, "cols": 8, "d": 4, "wrf_entries": 4, "prf_entries": 2, "n_codewords": 4, "weight_port_bits": 32}
    pattern = {} if kind == "ews" else {"pattern": "2:4"}
    spec = dataclasses.replace(preset(f"{kind}-16"), **sizes, **pattern)
    compressed = spec.weights == "mvq"
    layer = Layer(
        name="layer",
        c_in=5,
        c_out=9,
        kernel=(2, 2),
        in_size=(4, 3),
        compressed=compressed,
        pattern=spec.nm if compressed else Pattern(1, 1),
        index_bits=spec.index_bits if compressed else None,
    )
    mapping = Mapping(d=2, tile_rows=2)
    _, stored, stream, ifmap = prepared(spec, layer, mapping, 5)
    work, inputs = program(spec, layer, mapping, stored, ifmap[0]), activations(spec, layer, mapping, ifmap[0])
    wanted = run_layer(spec, layer, mapping, stored, stream, ifmap).psums[0]
    gates = netlist(spec, CELLS, top="mvq_core")
    # The cells of this library are slow.
    found = run(spec, gates, work, inputs, ns=20.0)
    assert found.ended
    assert (sums(spec, layer, mapping, found.memory) == wanted).all()
    assert found.taken.sum(0).tolist() == [len(work.blocks), len(work.words) // 4, len(inputs)]
    parts = dict(zip(found.components, found.energy.sum(0), strict=True))
    assert {"tile rows", "tile rows: registers", "adder trees", "accumulators", "loader"} <= parts.keys()
    assert min(parts.values()) > 0
    assert found.leakage.sum() == pytest.approx(sum(gates.kinds[k].leakage for k in gates.kind))
    with pytest.raises(MvqError, match=r"still at work after 0\.5 ns; the longest path takes"):
        run(spec, gates, work, inputs, ns=0.5)
    early = run(spec, gates, work, inputs, ns=20.0, most_cycles=10)
    assert not early.ended
    assert (early.energy == found.energy[:10]).all()
    assert ZERO == 0
