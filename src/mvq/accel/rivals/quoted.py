"""Figures that papers print, as MVQ (ASPLOS 2025, table of comparison) brings them together: never modelled ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Quoted:
    """A row of that table.

    Attributes:
        machine: name.
        node: technology in nm.
        clock_ghz: clock.
        macs: multipliers.
        workload: network.
        tops_per_watt: as published, dense-equivalent, without DRAM.
        at_40nm: the same brought to 40 nm by the authors of MVQ.
    """

    machine: str
    node: str
    clock_ghz: str
    macs: int
    workload: str
    tops_per_watt: str
    at_40nm: str


QUOTED = (
    Quoted(
        machine="SparTen", node="45", clock_ghz="0.8", macs=32, workload="AlexNet", tops_per_watt="0.68", at_40nm="0.97"
    ),
    Quoted(
        machine="CGNet", node="28", clock_ghz="0.5", macs=576, workload="ResNet-18", tops_per_watt="4.5", at_40nm="2.43"
    ),
    Quoted(
        machine="SPOTS", node="45", clock_ghz="0.5", macs=512, workload="VGG-16", tops_per_watt="0.47", at_40nm="0.67"
    ),
    Quoted(
        machine="S2TA",
        node="16 / 65",
        clock_ghz="1 / 0.5",
        macs=2048,
        workload="AlexNet",
        tops_per_watt="14 / 1.1",
        at_40nm="1.64 / 2.19",
    ),
    Quoted(
        machine="MVQ-64",
        node="40",
        clock_ghz="0.3",
        macs=1024,
        workload="ResNet-18",
        tops_per_watt="6.9",
        at_40nm="6.9",
    ),
    Quoted(
        machine="MVQ-64, 50%",
        node="40",
        clock_ghz="0.3",
        macs=2048,
        workload="AlexNet",
        tops_per_watt="3.8",
        at_40nm="3.8",
    ),
)
