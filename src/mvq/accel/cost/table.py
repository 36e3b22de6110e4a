"""Tables of what an action costs and how large a component is: value, unit, node, conditions and source of each.

A number with a node is brought to the node and voltage that are asked for, one without, such as that of DRAM, stays.
Leakage goes with area and voltage.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mvq.accel.cost.scaling import area_factor, energy_factor
from mvq.errors import ConfigError, FileError

TABLES = ("cited", "published", "cells", "gates")
_UNITS = {"energy": {"pJ": 1.0, "fJ": 1e-3}, "area": {"um2": 1.0, "mm2": 1e6}, "leakage": {"mW": 1.0, "uW": 1e-3}}
_KEYS = ("part", "kind", "value", "unit", "node_nm", "voltage", "per", "conditions", "source")
_MEMORY_KEYS = ("kib", "width_bits", "read_pj", "write_pj", "leak_mw", "area_mm2")


@dataclass(frozen=True, slots=True)
class Row:
    """One cited or measured number.

    Attributes:
        part: of the machine.
        kind: `energy` of an action in pJ, `area` in um2, `leakage` in mW.
        value: in the unit of the kind, at the table's node and voltage.
        per: what one of it is, such as a bit; empty for the part itself.
        cited: the number as its source has it, with unit, node and voltage.
        conditions: under which it holds.
        source: publication, or library and command.
    """

    part: str
    kind: str
    value: float
    per: str
    cited: str
    conditions: str
    source: str


@dataclass(frozen=True, slots=True)
class Memory:
    """A single-port SRAM.

    Attributes:
        kib: size.
        width_bits: of a word.
        read_pj: energy of reading a word.
        write_pj: energy of writing a word.
        leak_mw: leakage.
        area_mm2: area.
    """

    kib: float
    width_bits: int
    read_pj: float
    write_pj: float
    leak_mw: float
    area_mm2: float


@dataclass(frozen=True, slots=True)
class CostTable:
    """Numbers brought to one node and voltage.

    Attributes:
        name: of the table.
        node_nm: technology all values are brought to.
        voltage: likewise.
        rows: by part and kind.
        memories: sizes known, at that node.
        memory_source: where they come from.
        memory_nodes: technologies that memories are known at, which are not scaled.
        leakage: whether energies of this table take leakage into account.
    """

    name: str
    node_nm: float
    voltage: float
    rows: Mapping[tuple[str, str], Row]
    memories: tuple[Memory, ...]
    memory_source: str
    memory_nodes: tuple[float, ...] = ()
    leakage: bool = True

    def get(self, part: str, kind: str) -> Row:
        """A row.

        Raises:
            ConfigError: if the table has none.
        """
        try:
            return self.rows[part, kind]
        except KeyError:
            raise ConfigError(
                f"cost table {self.name!r} has no {kind} of {part!r}; add a row with this part and kind"
            ) from None

    def sram(self, n_bytes: int) -> Memory:
        """A memory of any size: between those known, powers of the size; of the narrowest word.

        Raises:
            ConfigError: if the table knows no memory.
        """
        if not self.memories:
            nodes = ", ".join(f"{node:g}" for node in self.memory_nodes) or "no"
            raise ConfigError(
                f"cost table {self.name!r} has memories at {nodes} nm, none at {self.node_nm:g} nm, and they are not "
                "scaled; add [[memory]] rows"
            )
        width = min(memory.width_bits for memory in self.memories)
        known = sorted((m for m in self.memories if m.width_bits == width), key=lambda m: m.kib)
        kib = n_bytes / 1024
        if len(known) == 1 or kib == known[0].kib:
            return known[0]
        above = next((i for i, m in enumerate(known) if m.kib >= kib), len(known) - 1)
        low, high = known[max(above - 1, 0)], known[max(above, 1)]
        share = math.log(kib / low.kib) / math.log(high.kib / low.kib)

        def between(a: float, b: float) -> float:
            return a * (b / a) ** share

        values = [between(getattr(low, k), getattr(high, k)) for k in _MEMORY_KEYS[2:]]
        return Memory(kib, width, *values)

    def memory_line(self, memory: Memory) -> str:
        """Where the numbers of a memory come from."""
        return f"{self.memory_source}, {memory.kib:g} KiB of {memory.width_bits} bits"

    @classmethod
    def load(cls, name: str | Path, *, node_nm: float = 40.0, voltage: float = 0.99) -> CostTable:
        """A table of ours by name, or a TOML file of yours, at a node and voltage.

        Raises:
            FileError: if the file cannot be read.
            ConfigError: if it is not such a table; lists every fault.
        """
        return cls.from_dict(_read(name), node_nm=node_nm, voltage=voltage)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, node_nm: float, voltage: float) -> CostTable:
        """From the plain values of a TOML file.

        Raises:
            ConfigError: as `load`.
        """
        name = str(data.get("name", "unnamed"))
        faults: list[str] = []
        rows: dict[tuple[str, str], Row] = {}
        for i, entry in enumerate(data.get("row", ())):
            found = _fault(entry, _KEYS, ("per", "conditions", "voltage", "node_nm"))
            if found is None and entry["unit"] not in _UNITS.get(entry["kind"], {}):
                known = [unit for units in _UNITS.values() for unit in units]
                found = f"kind {entry['kind']!r} in {entry['unit']!r} is not one of energy, area, leakage in {known}"
            if found is None and entry["kind"] != "area" and "voltage" not in entry:
                at = entry.get("node_nm", node_nm)
                found = None if at == node_nm else f"without voltage it cannot be brought from {at:g} to {node_nm:g} nm"
            if found is None and (entry["part"], entry["kind"]) in rows:
                found = f"there are two rows for the {entry['kind']} of {entry['part']!r}"
            if found is not None:
                part = f" ({entry['part']})" if isinstance(entry, Mapping) and "part" in entry else ""
                faults.append(f"row {i}{part}: {found}")
                continue
            rows[entry["part"], entry["kind"]] = _row(entry, node_nm, voltage)
        memories: list[tuple[float, Memory]] = []
        for i, entry in enumerate(data.get("memory", ())):
            if (found := _fault(entry, (*_MEMORY_KEYS, "node_nm"), ())) is not None:
                faults.append(f"memory {i}: {found}")
            else:
                memories.append((entry["node_nm"], Memory(**{key: entry[key] for key in _MEMORY_KEYS})))
        if faults:
            raise ConfigError("\n".join(f"cost table {name!r}: {fault}" for fault in faults))
        here = tuple(memory for node, memory in memories if node == node_nm)
        nodes = tuple(sorted({node for node, _ in memories}))
        source, leakage = str(data.get("memory_source", "")), bool(data.get("leakage", True))
        return cls(name, node_nm, voltage, rows, here, source, nodes, leakage)


def _read(name: str | Path, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """A file, with the rows and memories of the tables it extends; its own rows replace theirs."""
    if str(name) in extending:
        raise ConfigError(f"cost table {str(name)!r} extends itself: {' -> '.join((*extending, str(name)))}")
    data = _parse(name)
    base = data.pop("extends", None)
    if base is None:
        return data
    below = _read(base, (*extending, str(name)))
    own = {(row.get("part"), row.get("kind")) for row in data.get("row", ()) if isinstance(row, Mapping)}
    rows = [row for row in below.get("row", ()) if (row.get("part"), row.get("kind")) not in own]
    merged = {**below, **data, "row": [*rows, *data.get("row", ())]}
    if not data.get("memory"):
        merged["memory"] = below.get("memory", [])
    return merged


def _parse(name: str | Path) -> dict[str, Any]:
    if str(name) in TABLES:
        text = resources.files("mvq.accel.cost").joinpath("tables", f"{name}.toml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(
                f"cost table {str(name)!r} is none of {', '.join(TABLES)}, and no file that can be read: {error}"
            ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"cost table {str(name)!r} is not TOML: {error}") from error


def _fault(entry: Any, keys: tuple[str, ...], optional: tuple[str, ...]) -> str | None:
    if not isinstance(entry, Mapping):
        return f"{entry!r} is not a table"
    missing = [key for key in keys if key not in entry and key not in optional]
    unknown = [key for key in entry if key not in keys]
    if missing or unknown:
        return f"missing keys {missing}, unknown keys {unknown}"
    numbers = [key for key in entry if key not in ("part", "kind", "unit", "per", "conditions", "source")]
    wrong = [k for k in numbers if isinstance(entry[k], bool) or not isinstance(entry[k], (int, float))]
    wrong += [k for k in numbers if k not in wrong and not (math.isfinite(entry[k]) and entry[k] >= 0)]
    return f"{', '.join(f'{k}={entry[k]!r}' for k in wrong)} must be finite and not negative" if wrong else None


def _row(entry: Mapping[str, Any], node_nm: float, voltage: float) -> Row:
    at, volts = entry.get("node_nm"), entry.get("voltage")
    value = entry["value"] * _UNITS[entry["kind"]][entry["unit"]]
    if at is not None and entry["kind"] == "area":
        value *= area_factor(at, node_nm)
    elif at is not None and entry["kind"] == "leakage":
        value *= area_factor(at, node_nm) * voltage / entry["voltage"]
    elif at is not None and volts is not None:
        value *= energy_factor(at, volts, node_nm, voltage)
    cited = f"{entry['value']:g} {entry['unit']}" + (f" at {at:g} nm" if at is not None else "")
    cited += f", {volts:g} V" if volts is not None else ""
    return Row(
        part=entry["part"],
        kind=entry["kind"],
        value=value,
        per=entry.get("per", ""),
        cited=cited,
        conditions=entry.get("conditions", ""),
        source=entry["source"],
    )
