"""Many machines on one network: a grid of specifications, timed and costed side by side on all cores."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvq.accel.cost import CostTable, area, energy
from mvq.accel.cycle import run_network
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What one machine does on a network.

    Attributes:
        spec: the machine.
        cycles: of an image.
        seconds: of an image.
        chip_pj: energy of an image without DRAM.
        total_pj: the same with DRAM.
        array_mm2: area of the array with its registers and loader.
        total_mm2: with memories.
    """

    spec: AcceleratorSpec
    cycles: int
    seconds: float
    chip_pj: float
    total_pj: float
    array_mm2: float
    total_mm2: float

    def dominates(self, other: Point) -> bool:
        """Whether it is at least as fast, frugal (with DRAM) and small, and better in one of them."""
        mine, theirs = self._goods(), other._goods()
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def _goods(self) -> tuple[float, float, float]:
        return self.seconds, self.total_pj, self.total_mm2


def grid(base: AcceleratorSpec, axes: Mapping[str, Sequence[Any]]) -> tuple[list[AcceleratorSpec], list[str]]:
    """Every combination of values in place of those of a machine.

    Args:
        base: machine.
        axes: field of `AcceleratorSpec` -> its values.

    Returns:
        Machines, named after their values, and why the other combinations contradict themselves.

    Raises:
        ConfigError: on an unknown field, a field without values, or if no combination is left.
    """
    known = [f.name for f in dataclasses.fields(AcceleratorSpec) if f.name != "name"]
    faults = [f"{key!r} is not one of {', '.join(known)}" for key in axes if key not in known]
    faults += [f"{key!r} has no values" for key, values in axes.items() if key in known and not values]
    if faults:
        raise ConfigError("\n".join(f"grid: {fault}" for fault in faults))
    specs, left_out = [], []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        name = " ".join([base.name, *(f"{key}={value}" for key, value in changes.items())])
        try:
            specs.append(dataclasses.replace(base, name=name, **changes))
        except ConfigError as error:
            left_out.append(str(error))
    if not specs:
        raise ConfigError("grid: no combination is a machine\n" + "\n".join(left_out))
    return specs, left_out


def sweep(
    specs: Sequence[AcceleratorSpec],
    layers: Iterable[Layer],
    table: CostTable,
    *,
    objective: str = "edp",
    jobs: int = 1,
) -> Iterator[Point | ConfigError]:
    """Run a network on many machines.

    Args:
        specs: machines.
        layers: the network.
        table: of costs.
        objective: of mappings, by name.
        jobs: processes.

    Yields:
        In the order of the machines, what each does, or why it cannot take the network.
    """
    work = list(layers)
    if jobs == 1 or len(specs) == 1:
        yield from (_point(spec, work, table, objective) for spec in specs)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _prepare, (work, table, objective)) as pool:
        yield from pool.map(_work, specs, chunksize=max(1, min(16, len(specs) // (4 * jobs))))


_prepared: tuple[list[Layer], CostTable, str] | None = None


def _prepare(layers: list[Layer], table: CostTable, objective: str) -> None:
    """Once a process, so that a task carries its machine alone."""
    global _prepared
    _prepared = layers, table, objective


def _work(spec: AcceleratorSpec) -> Point | ConfigError:
    assert _prepared is not None
    return _point(spec, *_prepared)


def _point(spec: AcceleratorSpec, layers: list[Layer], table: CostTable, objective: str) -> Point | ConfigError:
    try:
        run = run_network(spec, layers, objective=objective)
        bill, size = energy(run, table), area(spec, table)
    except ConfigError as error:
        return error
    return Point(
        spec=spec,
        cycles=run.cycles.total,
        seconds=run.seconds,
        chip_pj=bill.total_pj(dram=False),
        total_pj=bill.total_pj(),
        array_mm2=size.array_mm2,
        total_mm2=size.total_mm2,
    )


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other one dominates, in their order."""
    return [point for point in points if not any(other.dominates(point) for other in points)]
