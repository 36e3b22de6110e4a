"""Figures that papers print of prior machines: quoted, never beside modelled ones in a column."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Quoted:
    """A row of the comparison of MVQ (ASPLOS 2025); where a machine was built twice, a row for each.

    Attributes:
        machine: name, as in `RIVALS` where it is modelled.
        node_nm: technology.
        clock_ghz: of it.
        macs: multipliers.
        sram: as printed, in bytes; None where not given.
        sparsity: as printed.
        bits: of operands.
        compression: of weights; None where not given.
        workload: network of the figures.
        dataflow: `OS`, `WS` or `EWS`.
        peak_tops: operations, pruned ones counted.
        mm2: area.
        tops_per_watt: at its node, without DRAM.
        tops_per_watt_40nm: as MVQ normalises it.
    """

    machine: str
    node_nm: int
    clock_ghz: float
    macs: int
    sram: str | None
    sparsity: str
    bits: int
    compression: float | None
    workload: str
    dataflow: str
    peak_tops: float
    mm2: float
    tops_per_watt: float
    tops_per_watt_40nm: float


def _quoted(*values: object) -> Quoted:
    return Quoted(**dict(zip(Quoted.__dataclass_fields__, values, strict=True)))  # type: ignore[arg-type]


_MVQ = "2M+128K", "2M+256K"
QUOTED: tuple[Quoted, ...] = (
    _quoted("SparTen", 45, 0.8, 32, None, "random", 8, None, "AlexNet", "OS", 0.2, 0.766, 0.68, 0.97),
    _quoted("CGNet", 28, 0.5, 576, "606K+576K", "channel 60%", 8, 10.0, "ResNet-18", "WS", 2.4, 5.574, 4.5, 2.43),
    _quoted("SPOTS", 45, 0.5, 512, "1M+512K", "group 27%", 16, 3.0, "VGG-16", "OS", 0.5, 8.61, 0.47, 0.67),
    _quoted("S2TA", 16, 1.0, 2048, "2M+512K", "N:M 50%", 8, 6.4, "AlexNet", "OS", 8.0, 3.8, 14.0, 1.64),
    _quoted("S2TA", 65, 0.5, 2048, "2M+512K", "N:M 50%", 8, 6.4, "AlexNet", "OS", 4.0, 24.0, 1.1, 2.19),
    _quoted("MVQ-16", 40, 0.3, 64, _MVQ[0], "75%", 8, 22.0, "ResNet-18", "EWS", 0.15, 8.66, 2.3, 2.3),
    _quoted("MVQ-32", 40, 0.3, 256, _MVQ[1], "75%", 8, 22.0, "ResNet-18", "EWS", 0.6, 10.02, 4.1, 4.1),
    _quoted("MVQ-64", 40, 0.3, 1024, _MVQ[1], "75%", 8, 22.0, "ResNet-18", "EWS", 2.4, 11.68, 6.9, 6.9),
    _quoted("MVQ-64", 40, 0.3, 1024, _MVQ[1], "75%", 8, 25.0, "AlexNet", "EWS", 2.4, 11.68, 4.4, 4.4),
    _quoted("MVQ-64", 40, 0.3, 2048, _MVQ[1], "50%", 8, 25.0, "AlexNet", "EWS", 4.8, 12.48, 3.8, 3.8),
)
