"""Netlists of cells: what yosys leaves of a design, flattened to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.rtl.gates.liberty import Cell, Library
from mvq.errors import MvqError

Array = NDArray[Any]
#: Nets of constants.
ZERO, ONE = 0, 1


@dataclass(frozen=True, eq=False, slots=True)
class Netlist:
    """Cells and nets; nets 0 and 1 are the constants.

    Attributes:
        library: of the cells.
        kinds: cells of the library that occur.
        kind: of each cell, in `kinds`.
        inputs: `(cells, most inputs)` nets; -1 beyond those that a cell has.
        outputs: likewise; -1 where nothing is connected.
        module: of each cell, in `modules`: the path of kinds of modules it lies in.
        modules: paths, outermost first.
        n_nets: nets.
        ports: nets of the top module's ports, lowest bit first.
    """

    library: Library
    kinds: tuple[Cell, ...]
    kind: Array
    inputs: Array
    outputs: Array
    module: Array
    modules: tuple[tuple[str, ...], ...]
    n_nets: int
    ports: Mapping[str, Array]


def flatten(design: Mapping[str, Any], top: str, library: Library) -> Netlist:
    """The netlist of a design.

    Args:
        design: modules as `write_json` of yosys has them.
        top: the outermost module.
        library: whose cells it was mapped to.

    Raises:
        FileError: if the library lacks a cell, or its behaviour is not known.
        MvqError: if a net has several drivers, or an asynchronous input of a flip-flop is in use.
    """
    builder = _Builder(design["modules"], library)
    module = builder.template(top)
    nets = builder.fresh(module.n_nets)
    builder.place(module, nets, (top,))
    netlist = builder.netlist({name: nets[bits] for name, bits in module.ports.items()})
    _check(netlist)
    return netlist


@dataclass(frozen=True, eq=False, slots=True)
class _Template:
    """A module, its nets numbered from 2."""

    n_nets: int
    ports: dict[str, Array]
    kind: Array
    inputs: Array
    outputs: Array
    children: list[tuple[str, dict[str, Array]]]


class _Builder:
    def __init__(self, modules: Mapping[str, Any], library: Library) -> None:
        self.source = {name.removeprefix("\\"): module for name, module in modules.items()}
        self.library = library
        self.kinds: dict[str, int] = {}
        self.cells: list[Cell] = []
        self.templates: dict[str, _Template] = {}
        self.n_nets = 2
        self.parts: list[tuple[Array, Array, Array, int]] = []
        self.modules: dict[tuple[str, ...], int] = {}
        self.same: list[tuple[int, int]] = []

    def template(self, name: str) -> _Template:
        if name not in self.templates:
            self.templates[name] = self._template(self.source[name])
        return self.templates[name]

    def _template(self, module: Mapping[str, Any]) -> _Template:
        numbers: dict[int | str, int] = {"0": ZERO, "x": ZERO, "z": ZERO, "1": ONE}

        def nets(bits: list[int | str]) -> Array:
            return np.array([numbers.setdefault(bit, len(numbers) - 2) for bit in bits], np.int64)

        ports = {key: nets(port["bits"]) for key, port in module["ports"].items()}
        kind, inputs, outputs, children = [], [], [], []
        for cell in module["cells"].values():
            name, pins = cell["type"].removeprefix("\\"), cell["connections"]
            if name in self.source and name not in self.library.groups:
                children.append((name, {pin: nets(bits) for pin, bits in pins.items()}))
                continue
            if name not in self.kinds:
                self.kinds[name] = len(self.kinds)
                self.cells.append(self.library.cell(name))
            number = self.kinds[name]
            one = self.cells[number]
            kind.append(number)
            inputs.append([int(nets(pins[pin])[0]) if pins.get(pin) else ZERO for pin in one.inputs])
            outputs.append([int(nets(pins[pin])[0]) if pins.get(pin) else -1 for pin in one.outputs])
        return _Template(
            # The constants' four names stand for two nets.
            n_nets=max(len(numbers) - 2, 2),
            ports=ports,
            kind=np.array(kind, np.int32),
            inputs=_padded(inputs),
            outputs=_padded(outputs),
            children=children,
        )

    def fresh(self, n: int) -> Array:
        """Global numbers of a module's nets, all of them new but the constants."""
        found = np.arange(self.n_nets - 2, self.n_nets + n - 2, dtype=np.int64)
        found[:2] = ZERO, ONE
        self.n_nets += n - 2
        return found

    def place(self, module: _Template, nets: Array, path: tuple[str, ...]) -> None:
        if len(module.kind):
            at = self.modules.setdefault(path, len(self.modules))
            # Minus one, which stands for no net, is the last entry.
            table = np.append(nets, -1)
            self.parts.append((module.kind, table[module.inputs], table[module.outputs], at))
        for name, pins in module.children:
            child = self.template(name)
            inner = self.fresh(child.n_nets)
            known = {ZERO, ONE}
            for pin, bits in pins.items():
                for local, outer in zip(child.ports[pin], nets[bits], strict=True):
                    if int(local) in known:
                        self.same.append((int(inner[local]), int(outer)))
                    else:
                        known.add(int(local))
                        inner[local] = outer
            self.place(child, inner, (*path, name))

    def netlist(self, ports: Mapping[str, Array]) -> Netlist:
        width = max(part[1].shape[1] for part in self.parts), max(part[2].shape[1] for part in self.parts)
        inputs = np.concatenate([_widened(part[1], width[0]) for part in self.parts])
        outputs = np.concatenate([_widened(part[2], width[1]) for part in self.parts])
        names = np.arange(self.n_nets + 1)
        names[-1] = -1

        def find(net: int) -> int:
            while names[net] != net:
                net = int(names[net])
            return net

        for one, other in self.same:
            low, high = sorted((find(one), find(other)))
            names[high] = low
        for net in {net for pair in self.same for net in pair}:
            names[net] = find(net)
        return Netlist(
            library=self.library,
            kinds=tuple(self.cells),
            kind=np.concatenate([part[0] for part in self.parts]),
            inputs=names[inputs].astype(np.int32),
            outputs=names[outputs].astype(np.int32),
            module=np.concatenate([np.full(len(part[0]), part[3], np.int32) for part in self.parts]),
            modules=tuple(self.modules),
            n_nets=self.n_nets,
            ports={name: names[nets].astype(np.int32) for name, nets in ports.items()},
        )


def _padded(rows: list[list[int]]) -> Array:
    width = max(map(len, rows), default=1)
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int64).reshape(len(rows), width)


def _widened(rows: Array, width: int) -> Array:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=-1)


def _check(netlist: Netlist) -> None:
    driven = netlist.outputs[netlist.outputs >= 0]
    nets, times = np.unique(driven, return_counts=True)
    if (times > 1).any():
        raise MvqError(f"{(times > 1).sum()} nets of the netlist have several drivers, such as {nets[times > 1][0]}")
    for i, cell in enumerate(netlist.kinds):
        for pin in cell.asynchronous:
            if (netlist.inputs[netlist.kind == i, pin] > ONE).any():
                raise MvqError(f"the netlist uses {cell.inputs[pin]} of {cell.name}, which is not simulated")
