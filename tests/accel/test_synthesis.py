"""Synthesis to a library of seven cells."""

import dataclasses
import gzip
from pathlib import Path

import pytest

from mvq.accel.cycle.model import tree_cycles
from mvq.accel.rtl.synthesis import synthesise
from mvq.accel.spec import preset
from mvq.errors import FileError, MvqError

CELLS = Path(__file__).with_name("cells.lib")
AREAS = {"INV": 1, "BUF": 1, "NAND2": 2, "NOR2": 2, "DFF": 8, "LATCH": 5, "GATE": 6}


def small(kind, **changes):
    sizes = {"rows": 3, "cols": 8, "d": 4, "wrf_entries": 4, "prf_entries": 2, "n_codewords": 4, "weight_port_bits": 32}
    pattern = {} if kind in ("ews", "ews-c") else {"pattern": "2:4"}
    return dataclasses.replace(preset(f"{kind}-16"), **{**sizes, **pattern, **changes})


@pytest.fixture(scope="module")
def sparse():
    return synthesise(small("ews-cms"), CELLS)


def test_areas_are_those_of_the_cells(sparse):
    assert {"NAND2", "DFF", "LATCH"} <= set(sparse.cells) <= set(AREAS)
    assert sparse.total_um2 == pytest.approx(sum(n * AREAS[cell] for cell, n in sparse.cells.items()))
    parts = {part.name: part for part in sparse.components}
    assert (parts["tile rows"].instances, parts["adder trees"].instances, parts["codebook"].instances) == (6, 8, 1)
    assert sparse.array_um2 < sparse.total_um2


def test_registers_are_those_of_the_specification(sparse):
    spec = sparse.spec
    lanes = spec.lane_bits
    weights = spec.n_multipliers * spec.wrf_entries * (spec.weight_bits + lanes)
    inputs = spec.rows * spec.arf_entries * spec.activation_bits
    sums = spec.cols * spec.prf_entries * spec.psum_bits
    assert sparse.cells["LATCH"] == weights + inputs + sums + spec.codebook_bits
    tile = synthesise(spec, CELLS, top="mvq_tile")
    product = spec.activation_bits + spec.weight_bits
    # Products and their lanes; for a row an activation, the address of its weights and two signs of life.
    row = spec.q * (product + lanes) + spec.activation_bits + 2 + 2
    assert tree_cycles(spec.rows) == 1
    assert tile.cells["DFF"] > spec.rows * row + spec.d * (product + 2 + spec.psum_bits)


def test_a_sparse_tile_is_smaller_than_a_dense_one(sparse):
    dense = synthesise(small("ews"), CELLS, top="mvq_tile")
    assert sparse.array_um2 / 2 < dense.array_um2
    plain = synthesise(small("ews"), CELLS, top="mvq_tile", booth=False)
    assert plain.array_um2 != dense.array_um2


def test_libraries_that_are_none_are_named(tmp_path):
    spec = small("ews")
    with pytest.raises(FileError, match="cannot be read"):
        synthesise(spec, tmp_path / "none.lib")
    text = tmp_path / "text.lib"
    text.write_text("no cells")
    with pytest.raises(FileError, match="is not Liberty"):
        synthesise(spec, text)
    cut = tmp_path / "cut.lib.gz"
    cut.write_bytes(gzip.compress(CELLS.read_bytes())[:-20])
    with pytest.raises(FileError, match="cannot be read"):
        synthesise(spec, cut)
    without = tmp_path / "without.lib"
    lines = CELLS.read_text().split("  cell(LATCH)")[0] + "}\n"
    without.write_text(lines)
    with pytest.raises(MvqError, match="D latches are not supported"):
        synthesise(spec, without, top="mvq_tile")
