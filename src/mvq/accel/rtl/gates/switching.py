"""Event-driven simulation of a netlist with the delays of its gates, and the energy of every change.

Delays are inertial: a gate whose inputs change back before its output has followed gives no pulse. The energy of a
change is what the library states for the cell, and half of the square of the voltage times the load of the net; a
change of an input that is not an output's adds the hidden energy of that input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mvq.accel.rtl.gates.liberty import Cell, Table
from mvq.accel.rtl.gates.netlist import ONE, Netlist
from mvq.accel.rtl.gates.timing import Timing, analyse
from mvq.errors import MvqError

Array = NDArray[Any]
#: Steps of time in a ns.
STEPS = 4000
#: Inputs follow the clock by this, as if they came from registers, in ns.
INPUT_DELAY = 0.1
#: Events at the end of which a simulation that does not settle is given up, per cell.
_EVENTS = 2000


@dataclass(frozen=True, eq=False, slots=True)
class _Model:
    """Arrays of the compiled code."""

    kind: Array
    inputs: Array
    outputs: Array
    n_in: Array
    n_out: Array
    functions: Array
    next_state: Array
    has_state: Array
    clock: Array
    rising: Array
    first_sink: Array
    sink_cell: Array
    sink_pin: Array
    first_arc: Array
    delay: Array
    arc_energy: Array
    net_energy: Array
    first_hidden: Array
    hidden_when: Array
    hidden_energy: Array


@dataclass(eq=False, slots=True)
class _State:
    """What changes as the simulation goes on.

    A change that an output is about to make lies in the slot of its time, in a list of both directions.
    """

    net: Array
    pins: Array
    state: Array
    slot_of: Array
    cause: Array
    head: Array
    after: Array
    before: Array
    energy: Array
    changes: Array


class Switching:
    """A netlist at work.

    Args:
        netlist: cells and nets.
        period: of the clock in ns.
        clock: port.
        timing: of the netlist; worked out where it is not given.

    Attributes:
        timing: of the netlist.
        energy: of each cell in fJ: its own, and that of the nets it drives.
        changes: of each net.

    Raises:
        MvqError: if gates are in a loop.
    """

    def __init__(self, netlist: Netlist, *, period: float, clock: str = "clk", timing: Timing | None = None) -> None:
        self.netlist = netlist
        self.timing = analyse(netlist, clock) if timing is None else timing
        self.period = round(period * STEPS)
        self._clock = netlist.ports[clock]
        self._model = _model(netlist, self.timing)
        cells, n_out = netlist.outputs.shape
        longest = int(self._model.delay.max(initial=0)) + 2
        self._state = _State(
            net=np.zeros(netlist.n_nets, np.uint8),
            pins=np.zeros(cells, np.uint8),
            state=np.zeros(cells, np.uint8),
            slot_of=np.full(cells * n_out, -1, np.int32),
            cause=np.zeros(cells * n_out, np.int8),
            head=np.full(1 << longest.bit_length(), -1, np.int32),
            after=np.full(cells * n_out, -1, np.int32),
            before=np.full(cells * n_out, -1, np.int32),
            energy=np.zeros(cells + 1),
            changes=np.zeros(netlist.n_nets, np.int64),
        )
        self._now = 0
        self._offset = round(INPUT_DELAY * STEPS)
        self._next: list[tuple[Array, Array]] = []
        self._settle()

    @property
    def energy(self) -> Array:
        """Of each cell in fJ: its own, and that of the nets it drives."""
        return self._state.energy[:-1]

    @property
    def ports_energy(self) -> float:
        """Of the nets that ports drive, in fJ."""
        return float(self._state.energy[-1])

    @property
    def changes(self) -> Array:
        """Of each net."""
        return self._state.changes

    def reset(self) -> None:
        """Forget what energy was spent."""
        self._state.energy[:] = 0
        self._state.changes[:] = 0

    def put(self, port: str, value: int) -> None:
        """Change a port after the coming clock edge; the value may have as many bits as the port."""
        nets = self.netlist.ports[port]
        size = -(-len(nets) // 8)
        bits = np.unpackbits(np.frombuffer(value.to_bytes(size, "little"), np.uint8), bitorder="little")[: len(nets)]
        self.put_bits(port, bits)

    def put_bits(self, port: str, bits: Array) -> None:
        """Likewise, bit by bit."""
        self._next.append((self.netlist.ports[port], np.asarray(bits, np.uint8)))

    def get(self, port: str) -> int:
        """The value of a port."""
        bits = self.get_bits(port)
        return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")

    def get_bits(self, port: str) -> Array:
        """Likewise, bit by bit."""
        return self._state.net[self.netlist.ports[port]]

    def cycle(self) -> None:
        """A cycle from a rising edge of the clock to the next; ports that were put change shortly after the edge.

        Raises:
            MvqError: if gates do not come to rest.
        """
        start = self._now
        self._drive(self._clock, np.ones(1, np.uint8), start)
        self._advance(start + self._offset)
        for nets, bits in self._next:
            self._drive(nets, bits, start + self._offset)
        self._next.clear()
        self._advance(start + self.period // 2)
        self._drive(self._clock, np.zeros(1, np.uint8), start + self.period // 2)
        self._advance(start + self.period)

    def late(self) -> bool:
        """Whether gates are still at work: the period is too short."""
        return bool((self._state.slot_of >= 0).any())

    def _settle(self) -> None:
        """Bring every gate into agreement with nets of zeros."""
        self._state.net[ONE] = 1
        model, state = self._model, self._state
        _start(self._now, *_arguments(model), *_arguments(state))
        self._advance(self._now + STEPS * 1000, until_rest=True)
        self.reset()

    def _drive(self, nets: Array, bits: Array, now: int) -> None:
        _drive(nets, bits, now, *_arguments(self._model), *_arguments(self._state))

    def _advance(self, end: int, *, until_rest: bool = False) -> None:
        most = _EVENTS * max(len(self.netlist.kind), 100)
        done = _advance(self._now, end, until_rest, most, *_arguments(self._model), *_arguments(self._state))
        if done < 0:
            raise MvqError(f"gates do not come to rest: more than {most} changes at once")
        self._now = end


def _arguments(record: _Model | _State) -> list[Array]:
    return [getattr(record, name) for name in record.__slots__]


def _model(netlist: Netlist, timing: Timing) -> _Model:
    kinds, (cells, _) = netlist.kinds, netlist.outputs.shape
    most = max(len(cell.inputs) for cell in kinds) + 1
    functions = np.zeros((len(kinds), netlist.outputs.shape[1], 1 << most), np.uint8)
    next_state = np.zeros((len(kinds), 1 << most), np.uint8)
    for i, cell in enumerate(kinds):
        for o, function in enumerate(cell.functions):
            functions[i, o, : len(function)] = function
        if cell.next_state is not None:
            next_state[i, : len(cell.next_state)] = cell.next_state
    valid = netlist.inputs >= 0
    nets, owners = netlist.inputs[valid], np.broadcast_to(np.arange(cells)[:, None], valid.shape)[valid]
    pins = np.broadcast_to(np.arange(valid.shape[1])[None], valid.shape)[valid]
    order = np.argsort(nets, kind="stable")
    first_sink = np.concatenate([[0], np.cumsum(np.bincount(nets, minlength=netlist.n_nets))])
    hidden = _hidden(kinds, timing)
    return _Model(
        kind=netlist.kind,
        inputs=netlist.inputs,
        outputs=netlist.outputs,
        n_in=np.array([len(c.inputs) for c in kinds], np.int32),
        n_out=np.array([len(c.outputs) for c in kinds], np.int32),
        functions=functions,
        next_state=next_state,
        has_state=np.array([c.next_state is not None for c in kinds]),
        clock=np.array([c.clock for c in kinds], np.int32),
        rising=np.array([c.rising for c in kinds]),
        first_sink=first_sink.astype(np.int64),
        sink_cell=owners[order].astype(np.int32),
        sink_pin=pins[order].astype(np.int8),
        first_arc=timing.first_arc.astype(np.int64),
        delay=_steps(timing, netlist),
        arc_energy=timing.energy.astype(np.float32),
        net_energy=0.5 * timing.load * netlist.library.voltage**2,
        first_hidden=hidden[0],
        hidden_when=hidden[1],
        hidden_energy=hidden[2],
    )


def _steps(timing: Timing, netlist: Netlist) -> Array:
    """Delays as whole steps: at least one, but none in the clock network."""
    steps = np.maximum(np.rint(timing.delay * STEPS), 1).astype(np.int32)
    n_out = np.array([len(c.outputs) for c in netlist.kinds])[netlist.kind]
    for o in range(netlist.outputs.shape[1]):
        nets = netlist.outputs[:, o]
        for cell in np.flatnonzero((nets >= 0) & timing.clocks[nets]):
            n = n_out[cell]
            arcs = np.arange(timing.first_arc[cell] + 2 * o, timing.first_arc[cell + 1], 2 * n)
            steps[arcs] = steps[arcs + 1] = 0
    return steps


def _hidden(kinds: Iterable[Cell], timing: Timing) -> tuple[Array, Array, Array]:
    """Hidden energies: `(kinds, inputs + 1)` first of each input, when, and `(hidden, 2)` of rising and falling."""
    cells = list(kinds)
    most = max(len(cell.inputs) for cell in cells)
    ideal, usual = timing.ideal_slew, float(np.median(timing.slew))
    first, when, energy = np.zeros((len(cells), most + 1), np.int32), [], []
    for i, cell in enumerate(cells):
        for pin in range(most):
            first[i, pin] = len(when)
            slew = ideal if pin == cell.clock or pin in cell.gates else usual
            for hidden in cell.hidden.get(pin, ()):
                row = np.zeros(2 << most, bool)
                row[: len(hidden.when)] = hidden.when
                when.append(row)
                energy.append([_at(table, slew) for table in hidden.energy])
        first[i, most] = len(when)
    shape = (len(when), 2 << most)
    return first, np.array(when, bool).reshape(shape), np.array(energy, np.float64).reshape(len(when), 2)


def _at(table: Table | None, slew: float) -> float:
    return 0.0 if table is None else float(np.interp(slew, table.slews, table.values[:, 0]))


@numba.njit(cache=True)
def _drive(
    nets, bits, now,
    kind, inputs, outputs, n_in, n_out, functions, next_state, has_state, clock, rising, first_sink, sink_cell,
    sink_pin, first_arc, delay, arc_energy, net_energy, first_hidden, hidden_when, hidden_energy,
    net, pins, state, slot_of, cause, head, after, before, energy, changes,
):  # fmt: skip
    for k in range(len(nets)):
        if net[nets[k]] != bits[k]:
            energy[-1] += net_energy[nets[k]]
            _change(
                nets[k], now,
                kind, outputs, n_in, n_out, functions, next_state, has_state, clock, rising, first_sink, sink_cell,
                sink_pin, first_arc, delay, first_hidden, hidden_when, hidden_energy,
                net, pins, state, slot_of, cause, head, after, before, energy, changes,
            )  # fmt: skip


@numba.njit(cache=True)
def _change(
    n, now,
    kind, outputs, n_in, n_out, functions, next_state, has_state, clock, rising, first_sink, sink_cell,
    sink_pin, first_arc, delay, first_hidden, hidden_when, hidden_energy,
    net, pins, state, slot_of, cause, head, after, before, energy, changes,
):  # fmt: skip
    """A net takes its other value; the gates on it look at their inputs."""
    value = net[n] ^ 1
    net[n] = value
    changes[n] += 1
    for s in range(first_sink[n], first_sink[n + 1]):
        cell, pin = sink_cell[s], sink_pin[s]
        k = kind[cell]
        index = pins[cell] | state[cell] << n_in[k]
        for h in range(first_hidden[k, pin], first_hidden[k, pin + 1]):
            if hidden_when[h, index]:
                energy[cell] += hidden_energy[h, 1 - value]
        pins[cell] ^= 1 << pin
        if has_state[k]:
            if clock[k] < 0 or (pin == clock[k] and (value == 1) == rising[k]):
                state[cell] = next_state[k, pins[cell] | state[cell] << n_in[k]]
            elif pin != clock[k]:
                continue
        _evaluate(
            cell, pin, now,
            kind, outputs, n_in, n_out, functions, first_arc, delay,
            net, pins, state, slot_of, cause, head, after, before,
        )  # fmt: skip


@numba.njit(cache=True)
def _evaluate(
    cell, pin, now,
    kind, outputs, n_in, n_out, functions, first_arc, delay,
    net, pins, state, slot_of, cause, head, after, before,
):  # fmt: skip
    """Order a change of outputs that no longer agree with the inputs, or call one off."""
    k = kind[cell]
    index = pins[cell] | state[cell] << n_in[k]
    for o in range(n_out[k]):
        n = outputs[cell, o]
        if n < 0:
            continue
        place = cell * outputs.shape[1] + o
        wanted, slot = functions[k, o, index], slot_of[place]
        if wanted == net[n]:
            if slot >= 0:
                if before[place] >= 0:
                    after[before[place]] = after[place]
                else:
                    head[slot] = after[place]
                if after[place] >= 0:
                    before[after[place]] = before[place]
                slot_of[place] = -1
        elif slot < 0:
            at = first_arc[cell] + (pin * n_out[k] + o) * 2 + 1 - wanted
            slot = (now + delay[at]) & (len(head) - 1)
            if head[slot] >= 0:
                before[head[slot]] = place
            after[place], before[place], head[slot] = head[slot], -1, place
            slot_of[place], cause[place] = slot, pin


@numba.njit(cache=True)
def _start(
    now,
    kind, inputs, outputs, n_in, n_out, functions, next_state, has_state, clock, rising, first_sink, sink_cell,
    sink_pin, first_arc, delay, arc_energy, net_energy, first_hidden, hidden_when, hidden_energy,
    net, pins, state, slot_of, cause, head, after, before, energy, changes,
):  # fmt: skip
    for cell in range(len(kind)):
        k = kind[cell]
        for pin in range(n_in[k]):
            pins[cell] |= net[inputs[cell, pin]] << pin
        if has_state[k] and clock[k] < 0:
            state[cell] = next_state[k, pins[cell]]
    for cell in range(len(kind)):
        _evaluate(
            cell, 0, now,
            kind, outputs, n_in, n_out, functions, first_arc, delay,
            net, pins, state, slot_of, cause, head, after, before,
        )  # fmt: skip


@numba.njit(cache=True)
def _advance(
    now, end, until_rest, most,
    kind, inputs, outputs, n_in, n_out, functions, next_state, has_state, clock, rising, first_sink, sink_cell,
    sink_pin, first_arc, delay, arc_energy, net_energy, first_hidden, hidden_when, hidden_energy,
    net, pins, state, slot_of, cause, head, after, before, energy, changes,
):  # fmt: skip
    """Events up to, not including, `end`; how many."""
    done, quiet = 0, 0
    while now < end:
        slot = now & (len(head) - 1)
        quiet = quiet + 1 if head[slot] < 0 else 0
        if until_rest and quiet > len(head):
            break
        while head[slot] >= 0:
            place = head[slot]
            head[slot] = after[place]
            if after[place] >= 0:
                before[after[place]] = -1
            slot_of[place] = -1
            done += 1
            if done > most:
                return -1
            cell, o = place // outputs.shape[1], place % outputs.shape[1]
            n, k = outputs[cell, o], kind[cell]
            at = first_arc[cell] + (cause[place] * n_out[k] + o) * 2 + net[n]
            energy[cell] += arc_energy[at] + net_energy[n]
            _change(
                n, now,
                kind, outputs, n_in, n_out, functions, next_state, has_state, clock, rising, first_sink, sink_cell,
                sink_pin, first_arc, delay, first_hidden, hidden_when, hidden_energy,
                net, pins, state, slot_of, cause, head, after, before, energy, changes,
            )  # fmt: skip
        now += 1
    return done
