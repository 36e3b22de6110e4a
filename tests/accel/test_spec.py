"""Machines: presets, derived sizes, files, and every fault at once."""

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.accel.spec import PRESETS, AcceleratorSpec, preset
from mvq.errors import ConfigError, FileError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_their_files(name, tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text(preset(name).to_toml())
    assert AcceleratorSpec.from_toml(path) == preset(name)
    assert tomllib.loads(path.read_text())["pattern"] == str(preset(name).pattern)


def test_sizes_of_the_published_machine():
    spec = preset("ews-cms-64")
    assert spec.q == 4
    assert spec.n_multipliers == 1024
    assert spec.word_bits == 9 + 11
    assert spec.codebook_bits == 8 * 8 << 10
    assert spec.peak_executed_tops == pytest.approx(0.6144)
    assert spec.peak_equivalent_tops == pytest.approx(2.4576)
    assert preset("ews-64").word_bits == 16 * 8
    assert preset("ews-c-64").word_bits == 10
    assert preset("ews-nm-64").word_bits == 4 * 8 + 11
    assert preset("ews-p-64").codebook_bits == 512 * 4 * 8


def test_a_file_may_start_from_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "ews-cms-32"\nname = "mine"\nl1_bytes = 65536\n')
    assert AcceleratorSpec.from_toml(path) == dataclasses.replace(preset("ews-cms-32"), name="mine", l1_bytes=65536)


@given(st.text(max_size=20).filter(str.isprintable))
def test_any_name_survives_its_file(name):
    spec = dataclasses.replace(preset("ews-16"), name=name or "x")
    assert AcceleratorSpec.from_dict(tomllib.loads(spec.to_toml())) == spec


def test_faults_are_listed_together():
    with pytest.raises(ConfigError) as error:
        AcceleratorSpec(name="x", rows=0, tile="odd", clock_mhz=-1.0)  # pyright: ignore[reportArgumentType]
    assert str(error.value).splitlines() == [
        "accelerator 'x': tile='odd' is not one of dense, sparse",
        "accelerator 'x': rows=0 is not a whole number in 1..256",
        "accelerator 'x': clock_mhz=-1.0 is not positive and finite",
    ]
    with pytest.raises(ConfigError) as error:
        AcceleratorSpec(name="x", weights="int8", cols=24, psum_bits=8, codewords="packed")
    assert str(error.value).splitlines() == [
        "accelerator 'x': cols=24 is not a multiple of d=16; a tile has d columns",
        "accelerator 'x': weights='int8' has no masks, pattern=4:16 needs them; set pattern to 1:1",
        "accelerator 'x': tile='sparse' needs masks, weights='int8' has none; set tile='dense'",
        "accelerator 'x': codewords='packed' is for weights='mvq', not 'int8'; set codewords='masked'",
        "accelerator 'x': psum_bits=8 cannot hold one product of 16 bits",
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"d": 8}, "d=8 is not a multiple of M=16 of pattern 4:16"),
        ({"pattern": "x"}, "pattern 'x': expected N:M with whole numbers, as in '4:16'"),
        ({"tile": "dense", "codewords": "packed"}, "set tile='sparse'"),
        ({"dataflow": "ws"}, "wrf_entries is 2 at most"),
        ({"zero_gating": 1}, "zero_gating=1 is not true or false"),
        ({"name": ""}, "name='' is not a printable text"),
        ({"name": "a\n"}, "is not a printable text"),
    ],
)
def test_each_contradiction_is_named(change, text):
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        AcceleratorSpec(**{"name": "x", **change})


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(ConfigError, match=r"^accelerator 'ews-8' is not known; known are ws-16, "):
        preset("ews-8")
    with pytest.raises(ConfigError, match=r"^accelerator 'x': unknown keys 'speed'; known are name, "):
        AcceleratorSpec.from_dict({"name": "x", "speed": 1})
    with pytest.raises(ConfigError, match=r"^accelerator: it has no name; give name, or preset to start from$"):
        AcceleratorSpec.from_dict({})
    with pytest.raises(FileError, match="cannot be read: No such file"):
        AcceleratorSpec.from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        AcceleratorSpec.from_toml(tmp_path / "bad.toml")
