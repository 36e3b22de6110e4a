"""Modules that are made once and used often.

Amaranth writes a module for each use of a component; an array of 64 x 64 would be thousands of copies. A `Part` is
written once, under its own name, and its uses are instances.
"""

from __future__ import annotations

import re
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In


class Part(wiring.Component):
    """A component with a Verilog module of its own.

    Attributes:
        module: its name; all of a design under this name are alike.
    """

    module: str


class Parts:
    """Collects the parts of a design, and what is in them; it goes through `elaborate` as the platform.

    Attributes:
        texts: RTLIL of each module by name, parts before what they are used in.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._made: dict[str, Part] = {}

    def add(self, kind: type[Part], *arguments: Any) -> Part:
        """Write a module, unless it has been.

        Returns:
            A component whose ports are those of the module.
        """
        if kind.module not in self._made:
            part = self._made[kind.module] = kind(*arguments)
            self.texts[kind.module] = rtlil.convert(part, kind.module, self, emit_src=False)
        return self._made[kind.module]

    def clocks(self, module: str) -> list[str]:
        """Which of `clk` and `rst` a module has."""
        return re.findall(r"^\s*wire .*input \d+ +\\(clk|rst)$", self.texts[module], re.MULTILINE)


def place(m: Module, platform: object, name: str, kind: type[Part], *arguments: Any) -> Any:
    """Use a part.

    Args:
        m: where.
        platform: that of `elaborate`; other than `Parts`, in simulation by Amaranth, the component itself goes there.
        name: of the use.
        kind: of part.
        arguments: of it.

    Returns:
        Something with the ports of the part.
    """
    if not isinstance(platform, Parts):
        part = m.submodules[name] = kind(*arguments)
        return part
    part = platform.add(kind, *arguments)
    ports = part.signature.create(path=(name,))
    connections: dict[str, Any] = {}
    for clock in platform.clocks(kind.module):
        connections[f"i_{clock}"] = ClockSignal() if clock == "clk" else ResetSignal()
    for path, member, value in part.signature.flatten(ports):
        connections[("i_" if member.flow == In else "o_") + "__".join(map(str, path))] = value
    m.submodules[name] = Instance(kind.module, **connections)
    return ports
