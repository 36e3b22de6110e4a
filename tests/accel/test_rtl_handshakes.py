"""Handshakes: an offer stands, unchanged, until it is taken."""

import dataclasses
import re
from pathlib import Path

import pytest

from mvq.accel.rtl.emit import run_yosys, scratch, verilog
from mvq.accel.spec import preset
from mvq.errors import MvqError

SPEC = dataclasses.replace(
    preset("ews-16"), rows=2, cols=2, d=2, wrf_entries=4, prf_entries=2, dma_bits=8, psum_bits=16
)
#: What is held and what is under way fit, and new items lie behind those that wait: proven with the rule.
QUEUE = "n_held + asked <= 4 && put_at == ((get_at + n_held) & 2'd3)"
#: Streams out of modules, and what is always true there.
STREAMS = {
    ("mvq_output", "codes"): "1",
    ("mvq_controller", "blocks"): "1",
    ("mvq_controller", "fetches"): "1",
    ("mvq_fetch", "reads"): QUEUE,
    ("mvq_fetch", "activations"): QUEUE,
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


def prove(text, module, stream, invariant, *, deaf=False):
    with scratch() as name:
        folder = Path(name)
        head, body = text.split(f"module {module}(", 1)
        body = body.replace("endmodule", f"always @* assert ({invariant});\nendmodule", 1)
        (folder / "machine.sv").write_text(f"{head}module {module}({body}")
        (folder / "check.sv").write_text(checker(ports(text, module), module, stream, deaf))
        run_yosys(
            "read_verilog -sv -formal machine.sv; read_verilog -sv -formal check.sv; prep -flatten -top check; "
            "async2sync; chformal -lower; opt -full; "
            # It begins with a reset.
            "sat -verify -prove-asserts -set-assumes -tempinduct -seq 1 -set-at 1 rst 1 -maxsteps 4 check",
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
