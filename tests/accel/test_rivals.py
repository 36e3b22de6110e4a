"""Prior sparse accelerators: conservation, limits, and what their papers print."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvq.accel.cost import CostTable
from mvq.accel.cost.area import priced
from mvq.accel.rivals import QUOTED, RIVALS, Sparsity, run_rival
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

CONV = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
LAYERS = [
    Layer(name="first", c_in=64, c_out=128, in_size=(28, 28), **CONV),
    Layer(name="second", c_in=128, c_out=256, in_size=(14, 14), residual_bytes=196 * 256, **CONV),
    Layer(name="last", c_in=256, c_out=1000),
]
LIKE = preset("ews-p-64")
DENSE = sum(layer.dense_macs for layer in LAYERS)
EVERY = pytest.mark.parametrize("name", RIVALS)
SHARES = st.sampled_from([n / 8 for n in range(1, 9)])


def run(name, *, like=LIKE, table="cited", **options):
    return run_rival(RIVALS[name], LAYERS, like=like, table=CostTable.load(table), **options)


@EVERY
@pytest.mark.parametrize("table", ["cited", "published"])
def test_a_bill_is_the_sum_of_its_parts(name, table):
    bill = run(name, table=table).bill
    assert bill.total_pj() == pytest.approx(sum(entry.total_pj for entry in bill.entries))
    assert bill.total_pj() == pytest.approx(sum(bill.by_level().values()))
    assert all(entry.source and entry.total_pj >= 0 for entry in bill.entries)
    assert bill.dense_macs == DENSE


@EVERY
@given(weights=SHARES, activations=SHARES)
@settings(max_examples=15, deadline=None)
def test_work_goes_with_what_is_not_zero(name, weights, activations):
    found = run(name, sparsity=Sparsity(weights=weights, activations=activations, source="test"))
    actions = found.actions
    share = {
        "SparTen": weights * activations,
        "CGNet": weights,
        "SPOTS": weights * activations,
        "S2TA": weights * activations,
    }[name]
    assert actions.nonzero_macs == pytest.approx(DENSE * share, rel=1e-6)
    busy = {"SparTen": weights * activations, "CGNet": weights, "SPOTS": weights, "S2TA": activations}[name]
    assert actions.macs == pytest.approx(DENSE * busy, rel=1e-6)
    assert found.cycles.compute == pytest.approx(DENSE * busy / LIKE.n_multipliers, abs=len(LAYERS))
    # Everything stored enters L1 once, and is at least the values that are not zero.
    stored = sum(layer.n_weights for layer in LAYERS) * (1 if name == "CGNet" else weights)
    assert actions.l2_read_bytes >= stored
    assert actions.dram_read_bytes + actions.dram_write_bytes > 0


@EVERY
def test_laws_of_bandwidth_and_multipliers(name):
    base = run(name)
    for key in ("dma_bits", "weight_port_bits", "dram_gbytes_per_s"):
        half = dataclasses.replace(LIKE, **{key: type(getattr(LIKE, key))(getattr(LIKE, key) / 2)})
        assert run(name, like=half).cycles.total >= base.cycles.total
    assert run(name, multipliers=2 * LIKE.n_multipliers).cycles.total <= base.cycles.total
    assert base.multipliers == LIKE.n_multipliers == 1024


@EVERY
def test_without_zeros_every_multiplier_multiplies_every_weight(name):
    found = run(name, sparsity=Sparsity(weights=1.0, activations=1.0, source="test"))
    assert found.actions.macs == found.actions.nonzero_macs == DENSE
    assert found.cycles.bubble == 0
    # Codes without zeros are no smaller than plain ones.
    assert found.actions.l2_read_bytes >= run("CGNet").actions.l2_read_bytes


def test_weights_are_stored_as_their_papers_say():
    # S2TA: 8 of 8 int8 weights become 4 and a mask of 8 bits, 6.4 times smaller than float32; SPOTS about 3 at 16 bits.
    work = {name: rival.work(LAYERS[0], rival.default, 1024) for name, rival in RIVALS.items()}
    assert 4 * LAYERS[0].n_weights / work["S2TA"].weight_bytes == pytest.approx(6.4)
    assert 2 * LAYERS[0].n_weights / work["SPOTS"].weight_bytes == pytest.approx(3.0, rel=0.15)
    assert work["CGNet"].weight_bytes == LAYERS[0].n_weights


def test_density_bound_blocks_are_twice_as_fast_and_frugal_as_dense_ones():
    # HPCA 2022: more than twice the speed and efficiency of an array with clock gating.
    dense = run("S2TA", sparsity=Sparsity(weights=1.0, activations=1.0, source="test"))
    found = run("S2TA")
    assert dense.cycles.compute / found.cycles.compute == pytest.approx(2, rel=0.01)
    assert found.bill.tops_per_watt() / dense.bill.tops_per_watt() > 2


def test_a_cluster_of_sparten_is_as_large_as_its_paper_prints():
    # 0.766 mm2 at 45 nm for 32 units: within half of it.
    lines = priced(RIVALS["SparTen"].parts(32, LIKE), CostTable.load("cells", node_nm=45, voltage=1.1))
    assert 0.766 / 1.5 < sum(line.total_um2 for line in lines) * 1e-6 < 0.766 * 1.5


def test_the_cluster_waits_for_its_slowest_unit():
    found = run("SparTen")
    assert 0.1 < found.cycles.bubble / found.cycles.compute < 0.6
    finer = run("SparTen", sparsity=Sparsity(weights=0.9, activations=0.9, source="test"))
    assert finer.cycles.bubble / finer.cycles.compute < found.cycles.bubble / found.cycles.compute


def test_faults_of_a_sparsity_are_listed_together():
    with pytest.raises(ConfigError) as error:
        Sparsity(weights=0, activations=1.5, source="test")
    assert str(error.value).splitlines() == [
        "sparsity: weights=0 is not in (0, 1]",
        "sparsity: activations=1.5 is not in (0, 1]",
    ]


def test_every_rival_has_its_quoted_row():
    assert set(RIVALS) <= {row.machine for row in QUOTED}
    assert all(rival.default.source for rival in RIVALS.values())
