"""Cell libraries in Liberty: functions, capacitances, delays and energies of cells.

Read is what static timing and switching energy need: non-linear delay and power tables of combinational cells,
flip-flops, latches and clock gates, whose asynchronous inputs are not in use. Values leave in ns, fF and fJ.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.errors import FileError

Array = NDArray[Any]
#: Entries of a table along one axis that are kept at most; larger tables are thinned to it.
AXIS = 8
_SECONDS = {"1ps": 1e-3, "10ps": 1e-2, "100ps": 1e-1, "1ns": 1.0}
_WATTS = {"1pW": 1e-3, "10pW": 1e-2, "100pW": 1e-1, "1nW": 1.0, "10nW": 10.0, "100nW": 100.0, "1uW": 1e3, "1mW": 1e6}
_FARADS = {"ff": 1.0, "pf": 1e3}
_STATEMENT = re.compile(
    r'(?P<close>\})|(?P<name>\w+)\s*(?:\((?P<arguments>[^()]*)\)\s*(?P<open>\{)?|:\s*(?P<value>"[^"]*"|[^;\n}]*))'
)


@dataclass(slots=True)
class Group:
    """A group of a Liberty file.

    Attributes:
        kind: such as `cell`.
        name: its first argument.
        values: simple attributes, and the arguments of complex ones.
        groups: within it.
    """

    kind: str
    name: str
    values: dict[str, str] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def of(self, *kinds: str) -> Iterator[Group]:
        """Groups of some kinds within it."""
        return (group for group in self.groups if group.kind in kinds)


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """A table over input slew in ns and output load in fF; either axis may have one entry."""

    slews: Array
    loads: Array
    values: Array


@dataclass(frozen=True, eq=False, slots=True)
class Arc:
    """From an input to an output.

    Attributes:
        delay: tables of a rising and a falling output, in ns.
        slew: of the output, likewise.
        energy: in fJ within the cell; None where the library gives none.
    """

    delay: tuple[Table, Table]
    slew: tuple[Table, Table]
    energy: tuple[Table | None, Table | None]


@dataclass(frozen=True, eq=False, slots=True)
class Hidden:
    """Energy of a change of an input beside that of the outputs.

    Attributes:
        when: by `index` of inputs and state, whether it is spent.
        energy: tables of a rising and a falling input, in fJ.
    """

    when: Array
    energy: tuple[Table | None, Table | None]


@dataclass(frozen=True, eq=False, slots=True)
class Cell:
    """A cell.

    Functions are tables over `index`: bit i is input i, the bit above the inputs the state.

    Attributes:
        name: in the library.
        area: in um2.
        leakage: in nW, the mean over its states.
        inputs: names.
        capacitance: of each input in fF.
        outputs: names.
        functions: of each output.
        next_state: of a cell with state; None otherwise.
        clock: input at whose edge a flip-flop takes its next state; -1 of others, whose state follows at any time.
        rising: whether that is the rising edge.
        gates: inputs that open a latch or are gated: with `clock` the ends of a clock network.
        asynchronous: inputs that clear or set a flip-flop at any time; they have to be tied off.
        arcs: by input and output.
        hidden: by input.
        load_limit: of its outputs in fF.
    """

    name: str
    area: float
    leakage: float
    inputs: tuple[str, ...]
    capacitance: tuple[float, ...]
    outputs: tuple[str, ...]
    functions: tuple[Array, ...]
    next_state: Array | None
    clock: int
    rising: bool
    gates: tuple[int, ...]
    asynchronous: tuple[int, ...]
    arcs: Mapping[tuple[int, int], Arc]
    hidden: Mapping[int, tuple[Hidden, ...]]
    load_limit: float


@dataclass(frozen=True, eq=False, slots=True)
class Library:
    """Cells of a library.

    Attributes:
        name: of the library.
        voltage: nominal, in V.
        groups: cells as they stand in the file.
        units: ns, fF, fJ and nW of the file's units.
        templates: groups of them, with the axes of tables.
    """

    name: str
    voltage: float
    groups: Mapping[str, Group]
    units: tuple[float, float, float, float]
    templates: Mapping[str, Group]
    _cells: dict[str, Cell] = field(default_factory=dict)

    def cell(self, name: str) -> Cell:
        """A cell.

        Raises:
            FileError: if the library has none, or its behaviour is not one that is known here.
        """
        if name not in self._cells:
            group = self.groups.get(name)
            if group is None:
                raise FileError(f"library {self.name!r} has no cell {name!r}")
            self._cells[name] = _Reader(self, group).cell()
        return self._cells[name]


def read_text(path: Path) -> str:
    """The text of a cell library, which may be gzip.

    Raises:
        FileError: if it cannot be read or is none.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", errors="replace")
    except (OSError, EOFError) as error:
        raise FileError(f"cell library {str(path)!r} cannot be read: {error}") from error
    if not re.search(r"^\s*library\s*\(", text, re.MULTILINE) or not re.search(r"^\s*cell\s*\(", text, re.MULTILINE):
        raise FileError(f"cell library {str(path)!r} is not Liberty: it has no library (...) with cells")
    return text


@functools.lru_cache(maxsize=4)
def read_library(path: Path) -> Library:
    """A library; cells are looked at when they are asked for.

    Raises:
        FileError: if it cannot be read, or lacks units.
    """
    top = _parse(read_text(path), str(path))
    values = top.values
    try:
        scale, unit = values["capacitive_load_unit"].replace('"', "").split(",")
        farads = float(scale) * _FARADS[unit.strip().lower()]
        volt = float(values["voltage_unit"].removesuffix("V"))
        voltage = float(values["nom_voltage"]) * volt
        units = (_SECONDS[values["time_unit"]], farads, farads * volt**2, _WATTS[values["leakage_power_unit"]])
    except (KeyError, ValueError) as error:
        raise FileError(
            f"cell library {str(path)!r}: units of time, capacitance, voltage and leakage are needed, as well as "
            f"nom_voltage; at fault: {error}"
        ) from error
    templates = {group.name: group for group in top.of("lu_table_template", "power_lut_template")}
    return Library(top.name, voltage, {group.name: group for group in top.of("cell")}, units, templates)


def _parse(text: str, path: str) -> Group:
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).replace("\\\n", " ")
    root = Group("", "")
    open_groups = [root]
    for found in _STATEMENT.finditer(text):
        if found["close"]:
            open_groups.pop()
            if not open_groups:
                break
        elif found["open"]:
            name = (found["arguments"] or "").split(",")[0].strip().strip('"')
            group = Group(found["name"], name)
            if group.kind in ("ff", "latch", "statetable"):
                group.values["arguments"] = found["arguments"]
            open_groups[-1].groups.append(group)
            open_groups.append(group)
        elif found["arguments"] is not None:
            open_groups[-1].values[found["name"]] = found["arguments"]
        else:
            open_groups[-1].values[found["name"]] = found["value"].strip().strip('"')
    if open_groups != [root] or not root.groups or root.groups[0].kind != "library":
        raise FileError(f"cell library {path!r} is not Liberty: its braces do not match")
    return root.groups[0]


class _Expression:
    """A Boolean expression: `'` and `!` come before `^`, that before `*`, `&` and blanks, those before `+` and `|`."""

    def __init__(self, text: str, names: Mapping[str, Array]) -> None:
        self.tokens, self.names = re.findall(r"\w+|\S", text)[::-1], names

    def value(self) -> Any:
        """Of all of it; raises KeyError and IndexError."""
        found = self._any()
        if self.tokens:
            raise KeyError(self.tokens[-1])
        return found

    def _next(self, signs: str) -> bool:
        return bool(self.tokens) and self.tokens[-1] in signs

    def _any(self) -> Any:
        found = self._all()
        while self._next("+|"):
            self.tokens.pop()
            found = found | self._all()
        return found

    def _all(self) -> Any:
        found = self._differ()
        while self.tokens and not self._next(")+|"):
            if self._next("*&"):
                self.tokens.pop()
            found = found & self._differ()
        return found

    def _differ(self) -> Any:
        found = self._one()
        while self._next("^"):
            self.tokens.pop()
            found = found ^ self._one()
        return found

    def _one(self) -> Any:
        token = self.tokens.pop()
        if token == "(":
            found = self._any()
            self.tokens.pop()
        elif token == "!":
            found = ~self._one()
        elif token in ("0", "1"):
            found = np.full(len(next(iter(self.names.values()))), token == "1")
        else:
            found = self.names[token]
        while self._next("'"):
            self.tokens.pop()
            found = ~found
        return found


class _Reader:
    """Makes a cell of its group."""

    def __init__(self, library: Library, group: Group) -> None:
        self.library, self.group = library, group
        pins = {pin.name: pin for pin in group.of("pin")}
        self.inputs = [name for name, pin in pins.items() if pin.values.get("direction") == "input"]
        self.outputs = [name for name, pin in pins.items() if pin.values.get("direction") == "output"]
        self.pins = pins
        size = 1 << (len(self.inputs) + 1)
        bits = np.arange(size)
        #: What a name means in a function, by index.
        self.names: dict[str, Array] = {name: (bits >> i & 1).astype(bool) for i, name in enumerate(self.inputs)}
        self.state = (bits >> len(self.inputs) & 1).astype(bool)

    def cell(self) -> Cell:
        group, pins = self.group, self.pins
        next_state, clock, rising, gates, asynchronous = self._sequential()
        functions = []
        for name in self.outputs:
            function = pins[name].values.get("function", pins[name].values.get("state_function"))
            if function is None:
                raise FileError(f"{self._where()}: output {name} has no function")
            functions.append(self._table(function))
            self.names[name] = functions[-1]
        time, farads, _, watts = self.library.units
        limits = [float(pins[name].values.get("max_capacitance", "inf")) * farads for name in self.outputs]
        states = [float(one.values["value"]) for one in group.of("leakage_power") if "value" in one.values]
        leakage = group.values.get("cell_leakage_power", np.mean(states) if states else 0.0)
        return Cell(
            name=group.name,
            area=float(group.values["area"]),
            leakage=float(leakage) * watts,
            inputs=tuple(self.inputs),
            capacitance=tuple(float(pins[name].values["capacitance"]) * farads for name in self.inputs),
            outputs=tuple(self.outputs),
            functions=tuple(functions),
            next_state=next_state,
            clock=clock,
            rising=rising,
            gates=gates,
            asynchronous=asynchronous,
            arcs=dict(self._arcs(time)),
            hidden=dict(self._hidden()),
            load_limit=min(limits, default=np.inf),
        )

    def _where(self) -> str:
        return f"library {self.library.name!r}, cell {self.group.name!r}"

    def _table(self, text: str) -> Array:
        """A Boolean expression of Liberty by index."""
        try:
            return np.asarray(_Expression(text, self.names).value(), bool)
        except (KeyError, IndexError) as error:
            raise FileError(f"{self._where()}: {text!r} is no function of its pins; at fault: {error}") from None

    def _sequential(self) -> tuple[Array | None, int, bool, tuple[int, ...], tuple[int, ...]]:
        """Next state, clock, its edge, gates and asynchronous inputs of a cell."""
        kinds = list(self.group.of("ff", "latch", "statetable"))
        if not kinds:
            return None, -1, True, (), ()
        one = kinds[0]
        asynchronous = self._inputs_in(" ".join(one.values.get(key, "") for key in ("clear", "preset")))
        state = [name.strip().strip('"') for name in one.values["arguments"].split(",")]
        if one.kind == "statetable":
            return self._clock_gate()
        self.names[state[0]] = self.state
        if len(state) > 1:
            self.names[state[1]] = ~self.state
        if one.kind == "ff":
            clock = one.values["clocked_on"].replace(" ", "").strip("()")
            rising = not clock.startswith("!") and not clock.endswith("'")
            pin = self.inputs.index(clock.strip("!'()"))
            return self._table(one.values["next_state"]), pin, rising, (), asynchronous
        enable, data = self._table(one.values["enable"]), self._table(one.values["data_in"])
        gates = self._inputs_in(one.values["enable"])
        return np.where(enable, data, self.state), -1, True, gates, asynchronous

    def _inputs_in(self, function: str) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.inputs) if name in re.findall(r"\w+", function))

    def _clock_gate(self) -> tuple[Array, int, bool, tuple[int, ...], tuple[int, ...]]:
        kind = self.group.values.get("clock_gating_integrated_cell", "")
        if not kind.startswith("latch_posedge"):
            raise FileError(f"{self._where()}: a state table that is not a clock gate for a rising edge")
        marked = {
            sign: next((n for n in self.inputs if self.pins[n].values.get(f"clock_gate_{sign}_pin") == "true"), None)
            for sign in ("clock", "enable", "test")
        }
        clock = marked["clock"]
        if clock is None or marked["enable"] is None:
            raise FileError(f"{self._where()}: a clock gate whose clock and enable are not marked")
        through = self.names[marked["enable"]]
        if marked["test"] is not None:
            through = through | self.names[marked["test"]]
        inner = next(pin.values["internal_node"] for pin in self.group.of("pin") if "internal_node" in pin.values)
        for name in (inner, *(pin.name for pin in self.group.of("pin") if "internal_node" in pin.values)):
            self.names[name] = self.state
        next_state = np.where(self.names[clock], self.state, through)
        return next_state, -1, True, (self.inputs.index(clock),), ()

    def _read(self, group: Group | None, scale: float) -> Table | None:
        """A table, thinned to `AXIS` entries an axis."""
        if group is None or "values" not in group.values:
            return None
        time, farads = self.library.units[:2]
        template = self.library.templates.get(group.name, Group("", ""))
        given = {**template.values, **group.values}
        axes = [_numbers(given[key]) for key in ("index_1", "index_2") if key in given]
        values = _numbers(group.values["values"])
        slew_first = "capacitance" not in given.get("variable_1", "")
        if not axes:
            axes = [np.zeros(1), np.zeros(1)]
        elif len(axes) == 1:
            axes.append(np.zeros(1))
        values = values.reshape(len(axes[0]), len(axes[1]))
        if not slew_first:
            axes, values = axes[::-1], values.T
        chosen = [np.unique(np.linspace(0, len(axis) - 1, min(len(axis), AXIS)).round().astype(int)) for axis in axes]
        return Table(axes[0][chosen[0]] * time, axes[1][chosen[1]] * farads, values[np.ix_(*chosen)] * scale)

    def _mean(self, groups: list[Group], names: tuple[str, str], scale: float) -> tuple[Table | None, Table | None]:
        """Rising and falling tables; of several that differ in a condition, the mean."""
        found = []
        for name in names:
            tables = [self._read(next(group.of(name), None), scale) for group in groups]
            kept = [table for table in tables if table is not None]
            full = max(kept, key=lambda table: table.values.size, default=None)
            if full is not None:
                values = np.mean([np.broadcast_to(t.values, full.values.shape) for t in kept], axis=0)
                full = Table(full.slews, full.loads, values)
            found.append(full)
        return found[0], found[1]

    def _arcs(self, time: float) -> Iterator[tuple[tuple[int, int], Arc]]:
        joule = self.library.units[2]
        for o, name in enumerate(self.outputs):
            pin = self.pins[name]
            for i, source in enumerate(self.inputs):
                timing = [
                    group
                    for group in pin.of("timing")
                    if source in group.values.get("related_pin", "").split()
                    and "three_state" not in group.values.get("timing_type", "")
                ]
                delay = self._mean(timing, ("cell_rise", "cell_fall"), time)
                slew = self._mean(timing, ("rise_transition", "fall_transition"), time)
                if delay[0] is None and delay[1] is None:
                    continue
                energy = [g for g in self._powers(pin) if source in g.values.get("related_pin", "").split()]
                both = (_either(delay), _either(slew))
                yield (i, o), Arc(*both, self._mean(energy, ("rise_power", "fall_power"), joule))

    def _hidden(self) -> Iterator[tuple[int, tuple[Hidden, ...]]]:
        joule = self.library.units[2]
        for i, name in enumerate(self.inputs):
            found = []
            for group in self._powers(self.pins[name]):
                when = self._table(group.values["when"]) if "when" in group.values else np.ones(len(self.state), bool)
                found.append(Hidden(when, self._mean([group], ("rise_power", "fall_power"), joule)))
            if found:
                yield i, tuple(found)

    def _powers(self, pin: Group) -> list[Group]:
        """Internal energies of a pin; of libraries that tell supply from ground, what comes from the supply."""
        supplies = {pg.name for pg in self.group.of("pg_pin") if pg.values.get("pg_type") == "primary_power"}
        groups = list(pin.of("internal_power"))
        return [g for g in groups if g.values.get("related_pg_pin", "") in supplies | {""}]


def _either(tables: tuple[Table | None, Table | None]) -> tuple[Table, Table]:
    """Both tables; an arc of one edge alone, as of a clock gate, serves for the other."""
    rise = tables[0] if tables[0] is not None else tables[1]
    fall = tables[1] if tables[1] is not None else tables[0]
    assert rise is not None
    assert fall is not None
    return rise, fall


def _numbers(text: str) -> Array:
    return np.array([float(number) for number in text.replace('"', " ").replace(",", " ").split()])
