"""What a prior machine says of itself.

What its weights and feature maps take when stored in its own form, how it may run a layer (`Work`), and what its logic
consists of; everything else is in `running` and the same for all.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from mvq.accel.cost.area import Line
from mvq.accel.cycle import Actions, Cycles
from mvq.accel.rivals.sparsity import Sparsity
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer

S = TypeVar("S", bound=Sparsity)


@dataclass(frozen=True, slots=True)
class Count:
    """Actions of a kind that only some machines have.

    Attributes:
        level: of the bill.
        what: was done.
        n: how often.
        part: row of the table, or the bytes of a memory that is read or written by the byte.
    """

    level: str
    what: str
    n: float
    part: str | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One way of running a layer.

    Attributes:
        cycles: without DRAM.
        actions: without DRAM; `nonzero_macs` are those executed.
        counts: of what `Actions` has no name for.
    """

    cycles: Cycles
    actions: Actions
    counts: tuple[Count, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Generic[S]):
    """A layer to run.

    Attributes:
        layer: shape.
        sparsity: of this layer.
        after: sparsity of what reads its output.
        weight_bytes: stored, of all weights.
        input_bytes: stored.
        output_bytes: stored.
        like: memories, ports and clock.
        multipliers: of the machine.
    """

    layer: Layer
    sparsity: S
    after: S
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    like: AcceleratorSpec
    multipliers: int

    @property
    def c_in(self) -> int:
        """Input channels of a group."""
        return self.layer.c_in // self.layer.groups

    @property
    def c_out(self) -> int:
        """Output channels of a group."""
        return self.layer.c_out // self.layer.groups

    @property
    def depth(self) -> int:
        """Products of one output, zeros included."""
        return self.c_in * self.layer.n_points


class Rival(abc.ABC, Generic[S]):
    """A prior machine."""

    #: In tables.
    name: ClassVar[str]
    #: Where it was published.
    source: ClassVar[str]
    #: Kind of sparsity it has use for.
    statement: type[S]
    #: Statements by network; that of the network its paper is quoted with comes first.
    published: Mapping[str, S]
    #: Multipliers come in units of so many.
    unit: ClassVar[int] = 1

    @abc.abstractmethod
    def weight_bits(self, layer: Layer, sparsity: S) -> float:
        """Stored bits of a layer's weights, with what says where they belong."""

    def map_bits(self, n_values: int, sparsity: S) -> float:
        """Stored bits of a feature map of int8 values that a layer of this sparsity reads."""
        return 8.0 * n_values

    @abc.abstractmethod
    def works(self, job: Job[S]) -> Iterator[Work]:
        """Ways of running a layer; empty if L1 has no room for any."""

    @abc.abstractmethod
    def parts(self, like: AcceleratorSpec, multipliers: int) -> Iterator[Line]:
        """What its logic consists of."""

    def buffers(self, multipliers: int) -> Iterator[tuple[str, int, int]]:
        """Name, bytes and number of its memories beside L1 and L2."""
        return iter(())
