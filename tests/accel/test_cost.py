"""Costs: tables, scaling, and bills that add up."""

import copy
import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.accel.cost import CostTable, area, energy
from mvq.accel.cost.area import parts, route_candidates, tree_bits
from mvq.accel.cost.scaling import area_factor, energy_factor
from mvq.accel.cycle import run_network
from mvq.accel.cycle.model import TREE_LEVELS
from mvq.accel.spec import PRESETS, preset
from mvq.accel.workload import Layer
from mvq.errors import ConfigError, FileError
from mvq.patterns import Pattern

CONV = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "in_size": (28, 28)}
LAYERS = [
    Layer(name="first", c_in=3, c_out=64, **CONV),
    Layer(name="second", c_in=64, c_out=128, **CONV, compressed=True, pattern=Pattern(4, 16)),
]
ROW = {"part": "multiply", "kind": "energy", "value": 200, "unit": "fJ", "node_nm": 45, "voltage": 0.9, "source": "x"}


@pytest.mark.parametrize("table", ["cited", "published", "gates"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_bill_is_the_sum_of_its_parts(table, name):
    run = run_network(preset(name), LAYERS)
    bill = energy(run, CostTable.load(table))
    assert bill.total_pj() == pytest.approx(sum(bill.by_level().values()))
    assert bill.total_pj() - bill.total_pj(dram=False) == pytest.approx(bill.by_level()["DRAM"])
    assert bill.tops_per_watt(dram=True) < bill.tops_per_watt()
    assert bill.tops_per_watt(executed=True) == pytest.approx(bill.tops_per_watt() * bill.macs / bill.dense_macs)
    assert all(entry.source for entry in bill.entries)
    assert bill.explain().count("\n") == len(bill.entries)


def test_zero_gating_saves_multiplications_with_zeros():
    table = CostTable.load("published")

    def array(**changes):
        spec = dataclasses.replace(preset("ews-cm-64"), **changes)
        return energy(run_network(spec, LAYERS), table, activation_zeros=0.5).by_level()["array"]

    first, second = (layer.dense_macs for layer in LAYERS)
    assert array(zero_gating=False) / array() == pytest.approx((first + second) / (0.5 * (first + second / 4)))


def test_measured_gates_price_each_kind_of_tile():
    """Rows of a kind of tile come before those of any; what single operations lack is counted only where a row is."""
    table = CostTable.load("gates")
    bills = {
        kind: {entry.what: entry for entry in energy(run, table, activation_zeros=0.25).entries}
        for kind in ("ews-cm", "ews-p")
        for run in [run_network(preset(f"{kind}-64"), LAYERS)]
    }
    for kind, tile in (("ews-cm", "dense"), ("ews-p", "sparse")):
        assert bills[kind]["multiplications"].pj == table.get(f"multiply_{tile}", "energy").value
        assert bills[kind]["weights"].pj == table.get(f"wrf_access_{tile}", "energy").value
    dense = sum(layer.dense_macs for layer in LAYERS)
    live = LAYERS[0].dense_macs + LAYERS[1].dense_macs / 4
    assert bills["ews-cm"]["multiplications"].count == pytest.approx(0.75 * live)
    assert bills["ews-cm"]["products of zeros"].count == pytest.approx(0.75 * (dense - live))
    assert "products of zeros" not in bills["ews-p"]
    run = run_network(preset("ews-p-64"), LAYERS)
    assert bills["ews-p"]["control of a tile"].count == 4 * run.cycles.total
    plain = {entry.what for entry in energy(run, CostTable.load("cited")).entries}
    assert not plain & {"products of zeros", "control of a tile", "control", "weights loaded"}


def test_masked_networks_cost_less():
    table = CostTable.load("cited")
    cost = {kind: energy(run_network(preset(f"{kind}-64"), LAYERS), table) for kind in ("ews", "ews-cms")}
    assert cost["ews-cms"].total_pj() < cost["ews"].total_pj()
    assert cost["ews-cms"].by_level()["L2"] < cost["ews"].by_level()["L2"]


def test_published_energies_are_multiples_of_a_multiply_accumulate():
    table = CostTable.load("published", node_nm=45, voltage=0.9)
    mac = table.get("multiply", "energy").value + table.get("add", "energy").value
    for part, times in {"dram_byte": 200, "l2_byte": 15, "l1_byte": 6, "prf_access": 0.22, "wrf_access": 0.02}.items():
        assert table.get(part, "energy").value == pytest.approx(times * mac)


@given(st.sampled_from([16.0, 22.0, 32.0, 40.0, 45.0, 65.0]), st.sampled_from([16.0, 28.0, 45.0, 65.0]))
def test_scaling_there_and_back(a, b):
    assert energy_factor(a, 0.9, b, 0.8) * energy_factor(b, 0.8, a, 0.9) == pytest.approx(1)
    assert area_factor(a, b) * area_factor(b, a) == pytest.approx(1)
    assert (area_factor(a, b) < 1) == (b < a)


def test_scaling_knows_its_nodes():
    assert area_factor(65, 45) == pytest.approx(0.66)
    assert area_factor(45, 32) == pytest.approx(0.46)
    assert energy_factor(45, 1.0, 32, 1.0) == pytest.approx((0.9559 - 0.7823 + 0.471) / (1.103 - 0.362 + 0.2767))
    with pytest.raises(ConfigError, match="scaling: 7 nm lies outside of 16 to 65 nm; give a value at such a node"):
        area_factor(7, 45)


@given(st.integers(1 << 12, 1 << 21))
def test_memories_grow_with_their_size(n_bytes):
    table = CostTable.load("cited")
    here, larger = table.sram(n_bytes), table.sram(2 * n_bytes)
    assert 0 < here.read_pj < larger.read_pj
    assert here.area_mm2 < larger.area_mm2
    assert here.leak_mw < larger.leak_mw


def test_a_memory_between_two_known_ones():
    small, large = CostTable.load("cited").sram(128 << 10), CostTable.load("cited").sram(256 << 10)
    middle = CostTable.load("cited").sram(round(128 * math.sqrt(2) * 1024))
    assert (small.read_pj, large.read_pj) == (10.517, 15.882)
    assert middle.read_pj == pytest.approx(math.sqrt(10.517 * 15.882), rel=1e-4)


def test_units_and_nodes_are_brought_to_one():
    table = CostTable.from_dict({"name": "t", "row": [ROW]}, node_nm=45, voltage=0.9)
    row = table.get("multiply", "energy")
    assert row.value == pytest.approx(0.2)
    assert row.cited == "200 fJ at 45 nm, 0.9 V"


def test_what_cannot_be_scaled_is_named():
    with pytest.raises(ConfigError) as error:
        CostTable.load("cited", node_nm=45, voltage=0.9)
    faults = str(error.value).splitlines()
    wanted = r"cost table 'cited': row \d+ \(wrf_access\): without voltage it cannot be brought from 40 to 45 nm"
    assert any(re.fullmatch(wanted, fault) for fault in faults)
    with pytest.raises(ConfigError, match="has memories at 40 nm, none at 45 nm, and they are not scaled"):
        CostTable.load("published", node_nm=45, voltage=0.9).sram(1024)


def test_dram_costs_the_same_at_every_node():
    row = {key: value for key, value in ROW.items() if key not in ("node_nm", "voltage")}
    for node in (16, 65):
        table = CostTable.from_dict({"name": "t", "row": [row]}, node_nm=node, voltage=0.8)
        assert table.get("multiply", "energy").value == pytest.approx(0.2)
        assert table.get("multiply", "energy").cited == "200 fJ"


def test_faults_of_a_table_are_listed_together(tmp_path):
    rows = [copy.deepcopy(ROW) for _ in range(5)]
    rows[0]["unit"] = "um2"
    rows[1]["value"] = -1
    del rows[2]["source"]
    with pytest.raises(ConfigError) as error:
        CostTable.from_dict({"name": "t", "row": rows, "memory": [{"kib": 1}]}, node_nm=45, voltage=0.9)
    faults = str(error.value).splitlines()
    assert faults[0].startswith(
        "cost table 't': row 0 (multiply): kind 'energy' in 'um2' is not one of energy, area, leakage in "
    )
    assert faults[1] == "cost table 't': row 1 (multiply): value=-1 must be finite and not negative"
    assert faults[2] == "cost table 't': row 2 (multiply): missing keys ['source'], unknown keys []"
    assert faults[3] == "cost table 't': row 4 (multiply): there are two rows for the energy of 'multiply'"
    assert faults[4].startswith("cost table 't': memory 0: missing keys ['width_bits', ")
    with pytest.raises(ConfigError, match="has no area of 'multiply'; add a row with this part and kind"):
        CostTable.from_dict({"name": "t", "row": [ROW]}, node_nm=45, voltage=0.9).get("multiply", "area")
    with pytest.raises(ConfigError, match="has memories at no nm, none at 45 nm"):
        CostTable.from_dict({"name": "t", "row": [ROW]}, node_nm=45, voltage=0.9).sram(1024)
    with pytest.raises(FileError, match="is none of cited, published, cells, gates, and no file that can be read"):
        CostTable.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        CostTable.load(tmp_path / "bad.toml")


def test_a_table_extends_another_and_replaces_its_rows(tmp_path):
    base, own = tmp_path / "base.toml", tmp_path / "own.toml"
    row = "[[row]]\npart = {}\nkind = 'area'\nvalue = {}\nunit = 'um2'\nsource = 'x'\n"
    base.write_text(row.format("'multiply'", 1) + row.format("'adder_bit'", 2))
    own.write_text(f"name = 'own'\nextends = '{base}'\n" + row.format("'multiply'", 3))
    table = CostTable.load(own)
    assert [table.get(part, "area").value for part in ("multiply", "adder_bit")] == [3, 2]
    assert table.name == "own"
    base.write_text(f"extends = '{own}'\n")
    with pytest.raises(ConfigError, match=r"extends itself: .*own.toml -> .*base.toml -> .*own.toml"):
        CostTable.load(own)
    assert CostTable.load("cited").sram(4096) == CostTable.load("cells").sram(4096)


@pytest.mark.parametrize("name", PRESETS)
def test_area_is_the_sum_of_its_parts(name):
    found = area(preset(name), CostTable.load("cells"))
    levels = found.by_level()
    assert (
        found.total_mm2
        == pytest.approx(sum(levels.values()))
        == pytest.approx(found.array_mm2 + sum(levels[level] for level in ("output", "L1", "L2")))
    )
    assert all(entry.source and entry.count > 0 and entry.um2 > 0 for entry in found.entries)
    assert found.explain().count("\n") == len(found.entries)


@given(rows=st.integers(1, 256), width=st.integers(2, 32))
def test_a_tree_of_adders_adds_every_row(rows, width):
    # One adder fewer than rows, and each level one bit wider than the one before.
    sums, bits, level, registers = rows, 0, 0, 0
    while sums > 1:
        pairs = sums // 2
        level += 1
        bits += pairs * (width + level)
        sums = pairs + sums % 2
        if level % TREE_LEVELS == 0 or sums == 1:
            registers += sums * (width + level)
    assert tree_bits(rows, width) == (bits, registers)
    assert (rows - 1) * (width + 1) <= bits <= (rows - 1) * (width + level)


@pytest.mark.parametrize(("keep", "group"), [(1, 2), (2, 4), (4, 16), (3, 8), (16, 16)])
def test_products_are_routed_to_every_lane_that_masks_use(keep, group):
    pattern = Pattern(keep, group)
    spec = dataclasses.replace(preset("ews-cms-16"), pattern=pattern)
    lanes = {
        (i, lane)
        for row in pattern.unrank([[m] for m in range(pattern.n_masks)])
        for i, lane in enumerate(row.nonzero()[0])
    }
    assert route_candidates(spec) == len(lanes) * spec.d // group


def test_packed_codewords_take_less_area_than_masked_ones_and_less_than_dense_weights():
    table = CostTable.load("cells")
    for side in (16, 32, 64):
        size = {kind: area(preset(f"{kind}-{side}"), table).array_mm2 for kind in ("ews", "ews-cm", "ews-cms", "ews-p")}
        assert size["ews-p"] < size["ews-cms"] < size["ews-cm"]
        assert size["ews-p"] < size["ews"] < size["ews-cm"]


def test_codewords_in_memory_are_read_from_memory():
    table = CostTable.load("cited")
    runs = {
        kind: run_network(dataclasses.replace(preset("ews-cms-64"), codebook_memory=kind), LAYERS)
        for kind in ("registers", "sram")
    }
    loader = {kind: [e for e in energy(run, table).entries if e.level == "loader"] for kind, run in runs.items()}
    memory = table.sram(512 * 16)
    assert [e.what for e in loader["registers"]] == ["codeword values"]
    (read,) = loader["sram"]
    assert read.total_pj == pytest.approx(runs["sram"].actions.crf_reads * 128 * memory.read_pj / memory.width_bits)
    (copies,) = [e for e in area(runs["sram"].spec, table).entries if e.what == "codebook, copies"]
    assert copies.total_um2 == pytest.approx(4 * memory.area_mm2 * 1e6)


def test_leakage_goes_with_area_time_and_voltage():
    table, spec = CostTable.load("cited"), preset("ews-64")
    bill = energy(run_network(spec, LAYERS), table)
    leaking = {entry.what: entry for entry in bill.entries if entry.level == "leakage"}
    assert set(leaking) == {f"{part}, us" for part in ("array", "registers", "loader", "output", "L1", "L2")}
    assert all(entry.count == pytest.approx(bill.seconds * 1e6) for entry in leaking.values())
    lines = [line for line in parts(spec) if line[0] == "registers"]
    milliwatts = sum(n * scale * table.get(part, "leakage").value for _, _, n, part, scale in lines)
    assert leaking["registers, us"].pj == pytest.approx(milliwatts * 1e3)
    assert leaking["L2, us"].pj == pytest.approx(88.077e3)
    assert "leakage" not in {e.level for e in energy(run_network(spec, LAYERS), CostTable.load("published")).entries}
    values = [
        CostTable.load("cells", node_nm=node, voltage=volts).get("multiply", "leakage").value
        for node, volts in ((45, 1.1), (45, 0.55), (65, 1.1))
    ]
    assert values[1] == pytest.approx(values[0] / 2)
    assert values[2] == pytest.approx(values[0] / 0.66)


def test_kinds_of_dram_differ_where_the_table_says_so():
    def dram(table, kind):
        run = run_network(dataclasses.replace(preset("ews-64"), dram=kind), LAYERS)
        return energy(run, CostTable.load(table)).by_level()["DRAM"]

    assert dram("cited", "ddr3") / dram("cited", "lpddr4") == pytest.approx(70 / 8)
    assert dram("cited", "hbm2") / dram("cited", "lpddr4") == pytest.approx(3.9 / 8)
    assert dram("published", "ddr3") == dram("published", "lpddr4")
    with pytest.raises(ConfigError, match="dram='ddr9' is not one of lpddr4, lpddr, ddr3, gddr5, hbm2"):
        dram("cited", "ddr9")
