"""Static timing of a netlist: loads, slews and delays of every arc, and the longest path.

Clocks are ideal: a net that the clock reaches through gates alone has no delay, and a slew of its own. Nets without
buffers can carry more than their driver may; delays and slews are then those at the driver's limit, as if the net were
buffered. Wires have no load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mvq.accel.rtl.gates.liberty import AXIS, Arc, Cell, Table
from mvq.accel.rtl.gates.netlist import Netlist
from mvq.errors import MvqError

Array = NDArray[Any]
#: Entry of a table's axis of slews that clocks and ports have.
_IDEAL = 2


@dataclass(frozen=True, eq=False, slots=True)
class Timing:
    """Delays of a netlist.

    Attributes:
        load: of each net in fF.
        slew: `(nets, 2)` of rising and falling edges in ns.
        arrival: likewise, after the clock edge.
        first_arc: of each cell; its arcs are `first_arc + (input * outputs + output) * 2 + falling`.
        delay: of each arc in ns.
        energy: of each arc in fJ, within the cell.
        clocks: whether a net belongs to the clock network.
        levels: gates on the longest path.
        longest: path between registers or ports in ns, without set-up times.
        ideal_slew: of clocks and ports in ns.
    """

    load: Array
    slew: Array
    arrival: Array
    first_arc: Array
    delay: Array
    energy: Array
    clocks: Array
    levels: int
    longest: float
    ideal_slew: float


def analyse(netlist: Netlist, clock: str = "clk") -> Timing:
    """Delays of every arc.

    Args:
        netlist: cells and nets.
        clock: port.

    Raises:
        MvqError: if there is a loop of gates.
    """
    kinds = netlist.kinds
    n_in, n_out = np.array([len(c.inputs) for c in kinds]), np.array([len(c.outputs) for c in kinds])
    load = loads(netlist)
    clocks = _clock_nets(netlist, clock)
    order = _order(netlist)
    tables = _Tables()
    arcs = _arc_tables(kinds, tables, netlist.inputs.shape[1], netlist.outputs.shape[1])
    width = n_in * n_out * 2
    first_arc = np.concatenate([[0], np.cumsum(width[netlist.kind])])
    slew = np.full((netlist.n_nets, 2), tables.ideal_slew)
    arrival = np.zeros((netlist.n_nets, 2))
    depth = np.zeros(netlist.n_nets, np.int32)
    delay, energy = np.zeros(first_arc[-1]), np.zeros(first_arc[-1])
    sequential = np.array([c.next_state is not None for c in kinds])
    _propagate(
        order,
        netlist.kind,
        netlist.inputs,
        netlist.outputs,
        n_in,
        n_out,
        sequential,
        _is_clock_pin(kinds, netlist.inputs.shape[1]),
        _senses(kinds, netlist.inputs.shape[1], netlist.outputs.shape[1]),
        arcs,
        *tables.arrays(),
        load,
        clocks,
        first_arc,
        slew,
        arrival,
        depth,
        delay,
        energy,
    )
    return Timing(
        load=load,
        slew=slew,
        arrival=arrival,
        first_arc=first_arc,
        delay=delay,
        energy=energy,
        clocks=clocks,
        levels=int(depth.max(initial=0)),
        longest=float(arrival.max(initial=0.0)),
        ideal_slew=tables.ideal_slew,
    )


def loads(netlist: Netlist) -> Array:
    """Capacitance of the pins on each net in fF."""
    load = np.zeros(netlist.n_nets)
    for i, cell in enumerate(netlist.kinds):
        members = netlist.kind == i
        for pin, farads in enumerate(cell.capacitance):
            np.add.at(load, netlist.inputs[members, pin], farads)
    return load


def _clock_nets(netlist: Netlist, clock: str) -> Array:
    """Nets that the clock reaches through gates and clock gates."""
    found = np.zeros(netlist.n_nets, bool)
    if clock not in netlist.ports:
        return found
    found[netlist.ports[clock]] = True
    # A latch opens with its gate, but its output is data.
    through = np.array([c.next_state is None or (c.gates != () and _gates_clock(c)) for c in netlist.kinds])
    passing = through[netlist.kind]
    while True:
        reached = (found[netlist.inputs] & (netlist.inputs >= 0)).any(1) & passing
        outputs = netlist.outputs[reached]
        outputs = outputs[outputs >= 0]
        if found[outputs].all():
            return found
        found[outputs] = True


def _gates_clock(cell: Cell) -> bool:
    """Whether an output follows the gate while the state stays: a clock gate, not a latch."""
    assert cell.next_state is not None
    size = len(cell.next_state) // 2
    states = np.arange(2 * size) >= size
    held = np.isin(np.arange(2 * size), np.flatnonzero(cell.next_state == states))
    for gate in cell.gates:
        pairs = np.arange(2 * size) ^ (1 << gate)
        for function in cell.functions:
            if (function != function[pairs])[held & held[pairs]].any():
                return True
    return False


def _order(netlist: Netlist) -> Array:
    """Cells: those with state, then gates after what they depend on."""
    sequential = np.array([c.next_state is not None for c in netlist.kinds])[netlist.kind]
    driver = np.full(netlist.n_nets + 1, -1, np.int64)
    for pin in range(netlist.outputs.shape[1]):
        nets = netlist.outputs[:, pin]
        gates = (nets >= 0) & ~sequential
        driver[nets[gates]] = np.flatnonzero(gates)
    order, n = _topological(netlist.inputs, driver, sequential)
    if n < len(order):
        raise MvqError(f"{len(order) - n} gates of the netlist are in a loop")
    return order


@numba.njit(cache=True)
def _topological(  # noqa: C901
    inputs: Array, driver: Array, sequential: Array
) -> tuple[Array, int]:
    n, width = inputs.shape
    waits = np.zeros(n, np.int32)
    first = np.zeros(n + 1, np.int64)
    for cell in range(n):
        if not sequential[cell]:
            for pin in range(width):
                source = driver[inputs[cell, pin]] if inputs[cell, pin] >= 0 else -1
                if source >= 0:
                    waits[cell] += 1
                    first[source + 1] += 1
    for cell in range(n):
        first[cell + 1] += first[cell]
    at, sinks = first[:-1].copy(), np.zeros(first[n], np.int64)
    for cell in range(n):
        if not sequential[cell]:
            for pin in range(width):
                source = driver[inputs[cell, pin]] if inputs[cell, pin] >= 0 else -1
                if source >= 0:
                    sinks[at[source]] = cell
                    at[source] += 1
    order, end = np.zeros(n, np.int64), 0
    for cell in range(n):
        if sequential[cell]:
            order[end] = cell
            end += 1
    for cell in range(n):
        if not sequential[cell] and waits[cell] == 0:
            order[end] = cell
            end += 1
    begin = 0
    while begin < end:
        cell = order[begin]
        begin += 1
        for k in range(first[cell], first[cell + 1]):
            waits[sinks[k]] -= 1
            if waits[sinks[k]] == 0:
                order[end] = sinks[k]
                end += 1
    return order, end


class _Tables:
    """Tables of one shape, for compiled code."""

    def __init__(self) -> None:
        self.found: list[Table] = []
        self.numbers: dict[int, int] = {}
        self.ideal_slew = 0.0

    def add(self, table: Table | None) -> int:
        if table is None:
            return -1
        if id(table) not in self.numbers:
            self.numbers[id(table)] = len(self.found)
            self.found.append(table)
            if not self.ideal_slew and len(table.slews) > 1:
                self.ideal_slew = float(table.slews[min(_IDEAL, len(table.slews) - 1)])
        return self.numbers[id(table)]

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        n = len(self.found)
        sizes, values = np.ones((n, 2), np.int32), np.zeros((n, AXIS, AXIS))
        slews, capacitances = np.zeros((n, AXIS)), np.zeros((n, AXIS))
        for i, table in enumerate(self.found):
            a, b = sizes[i] = table.values.shape
            slews[i, :a], capacitances[i, :b], values[i, :a, :b] = table.slews, table.loads, table.values
        return sizes, slews, capacitances, values


def _arc_tables(kinds: Iterable[Cell], tables: _Tables, n_in: int, n_out: int) -> Array:
    """`(kinds, inputs, outputs, 6)` tables: delays, slews and energies of rising and falling outputs."""
    cells = list(kinds)
    found = np.full((len(cells), n_in, n_out, 6), -1, np.int32)
    for i, cell in enumerate(cells):
        for (pin, output), arc in cell.arcs.items():
            found[i, pin, output] = [tables.add(table) for table in _tables_of(arc)]
    return found


def _tables_of(arc: Arc) -> tuple[Table | None, ...]:
    return (*arc.delay, *arc.slew, *arc.energy)


def _is_clock_pin(kinds: Iterable[Cell], n_in: int) -> Array:
    return np.array([[pin == cell.clock or pin in cell.gates for pin in range(n_in)] for cell in kinds])


def _senses(kinds: Iterable[Cell], n_in: int, n_out: int) -> Array:
    """`(kinds, inputs, outputs, 2)`: whether an output can follow an input, and go against it."""
    cells = list(kinds)
    found = np.zeros((len(cells), n_in, n_out, 2), bool)
    for i, cell in enumerate(cells):
        index = np.arange(2 << len(cell.inputs))
        for pin in range(len(cell.inputs)):
            low = index[index >> pin & 1 == 0]
            for output, function in enumerate(cell.functions):
                before, after = function[low], function[low | 1 << pin]
                found[i, pin, output] = (~before & after).any(), (before & ~after).any()
                if not found[i, pin, output].any():
                    found[i, pin, output] = True
    return found


@numba.njit(cache=True, inline="always")
def lookup(sizes: Array, slews: Array, loads: Array, values: Array, table: Any, slew: float, load: float) -> float:
    """A table between its entries; at its ends beyond them."""
    a, x = _between(slews[table], sizes[table, 0], slew)
    b, y = _between(loads[table], sizes[table, 1], load)
    here = values[table]
    a1, b1 = min(a + 1, sizes[table, 0] - 1), min(b + 1, sizes[table, 1] - 1)
    low = here[a, b] * (1 - y) + here[a, b1] * y
    high = here[a1, b] * (1 - y) + here[a1, b1] * y
    return low * (1 - x) + high * x


@numba.njit(cache=True)
def _between(axis: Array, n: int, value: float) -> tuple[int, float]:
    if n == 1 or value <= axis[0]:
        return 0, 0.0
    if value >= axis[n - 1]:
        return n - 2, 1.0
    i = 0
    while value > axis[i + 1]:
        i += 1
    return i, (value - axis[i]) / (axis[i + 1] - axis[i])


@numba.njit(cache=True)
def _propagate(  # noqa: C901
    order: Array,
    kind: Array,
    inputs: Array,
    outputs: Array,
    n_in: Array,
    n_out: Array,
    sequential: Array,
    is_clock: Array,
    senses: Array,
    arcs: Array,
    sizes: Array,
    slews: Array,
    capacitances: Array,
    values: Array,
    load: Array,
    clocks: Array,
    first_arc: Array,
    slew: Array,
    arrival: Array,
    depth: Array,
    delay: Array,
    energy: Array,
) -> None:
    # Twice: what a latch passes on depends on slews that the first pass finds.
    for last in range(2):
        for cell in order:
            k = kind[cell]
            for o in range(n_out[k]):
                net = outputs[cell, o]
                carried = float(load[net]) if net >= 0 else 0.0
                latest, sharpest, deepest = np.zeros(2), np.zeros(2), 0
                for i in range(n_in[k]):
                    source = inputs[cell, i]
                    for edge in range(2):
                        table = arcs[k, i, o, edge]
                        if table < 0:
                            continue
                        # Of inputs that may cause this edge, the slower.
                        came, slow = 0.0, 0.0
                        for against in range(2):
                            if senses[k, i, o, against]:
                                other = edge ^ against
                                came = max(came, arrival[source, other])
                                slow = max(slow, slew[source, other])
                        at = first_arc[cell] + (i * n_out[k] + o) * 2 + edge
                        found = max(lookup(sizes, slews, capacitances, values, table, slow, carried), 0.0)
                        arrives = sequential[k] and not is_clock[k, i]
                        if last:
                            delay[at] = found
                            if arcs[k, i, o, 4 + edge] >= 0:
                                energy[at] = lookup(
                                    sizes, slews, capacitances, values, arcs[k, i, o, 4 + edge], slow, carried
                                )
                        if not arrives:
                            out = lookup(sizes, slews, capacitances, values, arcs[k, i, o, 2 + edge], slow, carried)
                            sharpest[edge] = max(sharpest[edge], out)
                            start = 0.0 if sequential[k] else came
                            latest[edge] = max(latest[edge], start + found)
                            if not sequential[k]:
                                deepest = max(deepest, depth[source])
                if net < 0 or clocks[net]:
                    # Of a clock network the delay is taken for balanced.
                    if net >= 0:
                        for i in range(n_in[k]):
                            for edge in range(2):
                                delay[first_arc[cell] + (i * n_out[k] + o) * 2 + edge] = 0.0
                    continue
                slew[net] = sharpest
                arrival[net] = latest
                depth[net] = deepest + 1
