"""Handshakes: an offer stands, unchanged, until it is taken."""

import dataclasses
import re
import tempfile
from pathlib import Path

import pytest

from mvq.accel.rtl.emit import run_yosys, scratch, verilog
from mvq.accel.spec import preset
from mvq.errors import MvqError

SPEC = dataclasses.replace(
    preset("ews-16"), rows=2, cols=2, d=2, wrf_entries=4, prf_entries=2, dma_bits=8, psum_bits=16
)
#: Streams out of modules: proven by induction, or where that takes an invariant of what is held, so many cycles far.
STREAMS = {
    ("mvq_output", "codes"): None,
    ("mvq_controller", "blocks"): None,
    ("mvq_controller", "fetches"): None,
    ("mvq_fetch", "reads"): 12,
    ("mvq_fetch", "activations"): 12,
}
#: Ports that are stable while a layer is at work.
STABLE = ("shape", "points")


def ports(text, module):
    """Direction, bits and name of a module's ports."""
    body = text[text.index(f"module {module}(") :]
    body = body[: body.index("endmodule")]
    found = re.findall(r"^\s*(input|output)(?: reg| wire)?(?: signed)? *(\[\d+:0\])? *(\w+);", body, re.MULTILINE)
    assert {"clk", "rst"} <= {name for _, _, name in found}
    return found


def _stable(name):
    return name.startswith(STABLE)


def checker(listed, module, stream, deaf):
    """A module around it that asserts the rule."""
    outer = ", ".join(f"input {bits} {name}" for way, bits, name in listed if way == "input" and not _stable(name))
    wires = "\n".join(f"wire {bits} {name};" for way, bits, name in listed if way == "output")
    for _, bits, name in listed:
        if _stable(name):
            wires += f"\nreg {bits} {name}; always @(posedge clk) {name} <= {name};"
    width = next(bits for _, bits, name in listed if name == f"{stream}_payload")
    heard = {f"{stream}_ready": "1'b1"} if deaf else {}
    connections = ", ".join(f".{name}({heard.get(name, name)})" for _, _, name in listed)
    return f"""
module check({outer});
{wires}
{module} dut({connections});
reg waits;
initial waits = 0;
reg {width} before;
always @(posedge clk) begin
  waits <= {stream}_valid & ~{stream}_ready & ~rst;
  before <= {stream}_payload;
end
always @* if (waits) begin
  assert ({stream}_valid);
  assert ({stream}_payload == before);
end
endmodule
"""


def prove(text, module, stream, cycles, *, deaf=False):
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        folder = Path(name)
        (folder / "machine.sv").write_text(text)
        (folder / "check.sv").write_text(checker(ports(text, module), module, stream, deaf))
        # Without induction a run begins with a reset.
        bounded = f"-seq 1 -set-at 1 rst 1 -tempinduct-baseonly -maxsteps {cycles}"
        how = f"-tempinduct {'-maxsteps 4' if cycles is None else bounded}"
        run_yosys(
            "read_verilog -sv -formal machine.sv; read_verilog -sv -formal check.sv; prep -flatten -top check; "
            f"async2sync; chformal -lower; opt -full; sat -verify -prove-asserts -set-assumes {how} check",
            folder,
        )


@pytest.fixture(scope="module")
def text():
    return verilog(SPEC)


@pytest.mark.parametrize(("module", "stream"), STREAMS)
def test_offers_stand_until_they_are_taken(text, module, stream):
    prove(text, module, stream, STREAMS[module, stream])


@pytest.mark.parametrize(("module", "stream"), STREAMS)
def test_a_broken_rule_is_found(text, module, stream):
    """A module that takes what it offers for taken in any case."""
    with pytest.raises(MvqError, match="proof did fail"):
        prove(text, module, stream, STREAMS[module, stream], deaf=True)
