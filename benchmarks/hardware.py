"""How large is the RTL after synthesis, part by part?

    uv run python -m benchmarks.hardware --liberty FILE.lib[.gz] [--liberty ...] [--sides 16 32 64] [--kinds ews ...]

Yosys maps the core of each machine to the cells of each library (`mvq synth`). Rows go to `results/hardware_area.csv`;
those that are there stay unless `--force` is given. `docs/results-hardware.md` shows them.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, write_csv
from mvq.accel.rtl.synthesis import Synthesis, synthesise
from mvq.accel.spec import preset

KINDS = ("ws", "ews", "ews-nm", "ews-c", "ews-cm", "ews-cms", "ws-cms", "ews-p")
PATH = RESULTS / "hardware_area.csv"


def rows(one: Synthesis, seconds: float) -> list[dict[str, Any]]:
    """One a component."""
    kind, _, side = one.spec.name.rpartition("-")
    return [
        {
            "liberty": one.liberty,
            "kind": kind,
            "side": int(side),
            "booth": one.booth,
            "component": part.name,
            "instances": part.instances,
            "um2_each": f"{part.um2:.1f}",
            "of_it_latches_um2": f"{part.latches_um2:.1f}",
            "total_um2": f"{part.total_um2:.0f}",
            "seconds": f"{seconds:.0f}",
        }
        for part in one.components
    ]


def measured() -> list[dict[str, Any]]:
    """Rows of an earlier run."""
    if not PATH.is_file():
        return []
    with PATH.open(newline="") as file:
        return list(csv.DictReader(file))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--liberty", type=Path, action="append", required=True, metavar="FILE", help="cell library")
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--no-booth", action="store_true", help="multipliers as arrays of adders")
    parser.add_argument("--force", action="store_true", help="measure again what was measured")
    args = parser.parse_args(argv)
    for side in args.sides:
        for liberty in args.liberty:
            for kind in args.kinds:
                name = liberty.name.removesuffix(".gz").removesuffix(".lib")
                key = (name, kind, str(side), str(not args.no_booth))
                others = [row for row in measured() if _key(row) != key]
                if len(others) < len(measured()) and not args.force:
                    continue
                start = time.perf_counter()
                one = synthesise(preset(f"{kind}-{side}"), liberty, booth=not args.no_booth)
                found = rows(one, time.perf_counter() - start)
                write_csv(PATH, sorted([*others, *found], key=_order))
                print(
                    f"{name} {kind}-{side}: array {one.array_um2 * 1e-6:.3f} mm2, core {one.total_um2 * 1e-6:.3f} mm2, "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("liberty", "kind", "side", "booth"))


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["liberty"], str(row["booth"]), int(row["side"]), KINDS.index(row["kind"])


if __name__ == "__main__":
    main()
