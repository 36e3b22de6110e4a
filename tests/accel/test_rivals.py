"""Prior sparse accelerators: what must hold of any model of them, and what their papers publish."""

import dataclasses

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from mvq.accel.cost import CostTable
from mvq.accel.cost.energy import LEVELS
from mvq.accel.cycle import OBJECTIVES, run_network
from mvq.accel.rivals import (
    QUOTED,
    RIVALS,
    ChannelGating,
    DensityBounds,
    GroupSparsity,
    RandomSparsity,
    run_rival,
    with_parts,
)
from mvq.accel.rivals.sparten import CHUNK, UNITS, chunk_cycles, prefix_bits
from mvq.accel.shapes import shapes_of
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

LIKE = preset("ews-cms-64")
PUBLISHED, CITED = CostTable.load("published"), CostTable.load("cited")
CONV = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "in_size": (28, 28)}
FIRST = Layer(name="first", c_in=3, c_out=64, **CONV)
LAYERS = [
    FIRST,
    Layer(name="wide", c_in=64, c_out=128, **CONV),
    Layer(name="grouped", c_in=128, c_out=128, groups=8, **CONV, residual_bytes=128 * 28 * 28),
    Layer(name="down", c_in=128, c_out=256, stride=(2, 2), **CONV),
    Layer(name="classes", c_in=256 * 14 * 14, c_out=10),
]
#: Fills arrays of any aspect.
EVEN = Layer(name="even", c_in=128, c_out=128, kernel=(3, 3), padding=(1, 1, 1, 1), in_size=(32, 32))
#: A statement of each machine, the share of multiply-accumulates it leaves, and the bits that store a weight.
STATED = {
    "sparten": (RandomSparsity(weights=0.3, activations=0.5), 0.15, 8 * 0.3 + 1),
    "cgnet": (ChannelGating(base=0.25, gated=0.8), 0.25 + 0.75 * 0.2, 8),
    "spots": (GroupSparsity(weights=0.25, blocks=0.9, activations=0.6), 0.25 * 0.9 * 0.6, 8 * 0.25 + 1 / 8),
    "s2ta": (DensityBounds(weights=4.0, activations=3.0), 4 / 8 * 3 / 8, 5),
}
DENSE = {name: type(stated).dense() for name, (stated, _, _) in STATED.items()}


def rival(name, layers=LAYERS, *, like=LIKE, table=PUBLISHED, **options):
    return run_rival(name, layers, like=like, table=table, **options)


def network(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    return shapes_of(model, (224, 224))


def convolutions(name):
    return [layer for layer in network(name) if layer.in_size != (1, 1)]


@pytest.mark.parametrize("name", RIVALS)
def test_work_is_what_sparsity_leaves(name):
    stated, left, bits = STATED[name]
    run = rival(name, sparsity=stated)
    assert run.dense_macs == sum(layer.dense_macs for layer in LAYERS)
    wanted = FIRST.dense_macs + left * (run.dense_macs - FIRST.dense_macs)
    assert run.executed_macs == pytest.approx(wanted, rel=1e-6)
    weights = FIRST.n_weights + sum(layer.n_weights for layer in LAYERS[1:]) * bits / 8
    assert sum(work.actions.l2_read_bytes for work in run.layers) >= weights
    assert not run.weights_resident or weights <= LIKE.l2_bytes


@pytest.mark.parametrize("name", RIVALS)
def test_weights_that_l2_does_not_hold_come_from_dram_compressed(name):
    stated, _, bits = STATED[name]
    layers = [dataclasses.replace(LAYERS[1], name=str(i), c_in=256, c_out=256, in_size=(4, 4)) for i in range(12)]
    run = rival(name, layers, sparsity=stated)
    stored = layers[0].n_weights * (1 + 11 * bits / 8)
    assert not run.weights_resident
    assert 0 <= run.actions.dram_read_bytes - stored - layers[0].input_bytes <= len(layers)
    small = rival(name, layers[:1] * 2, sparsity=stated, like=dataclasses.replace(LIKE, l2_bytes=16 << 20))
    assert small.weights_resident
    assert small.actions.dram_read_bytes == layers[0].input_bytes


@pytest.mark.parametrize("table", [PUBLISHED, CITED], ids=lambda table: table.name)
@pytest.mark.parametrize("name", RIVALS)
def test_a_bill_is_the_sum_of_its_parts(name, table):
    run = rival(name, sparsity=STATED[name][0], table=table)
    bill = run.bill
    assert bill.total_pj() == pytest.approx(sum(bill.by_level().values()))
    assert {entry.level for entry in run.entries} <= set(LEVELS)
    assert bill.total_pj() - bill.total_pj(dram=False) == pytest.approx(bill.by_level()["DRAM"])
    assert bill.by_level()["DRAM"] > 0
    assert bill.tops_per_watt(executed=True) == pytest.approx(bill.tops_per_watt() * bill.macs / bill.dense_macs)
    assert all(entry.source and entry.count >= 0 for entry in run.entries)
    assert (bill.by_level()["leakage"] > 0) == table.leakage
    assert run.seconds == pytest.approx(run.cycles.total / 300e6)


@pytest.mark.parametrize("name", RIVALS)
def test_memories_cost_what_they_cost_the_machine_compared_with(name):
    run = rival(name, sparsity=STATED[name][0])
    actions, bill = run.actions, run.bill
    moved = {
        "L1": actions.l1_read_bytes + actions.l1_write_bytes,
        "L2": actions.l2_read_bytes + actions.l2_write_bytes,
        "DRAM": actions.dram_read_bytes + actions.dram_write_bytes,
    }
    for level, n in moved.items():
        assert bill.by_level()[level] == pytest.approx(n * PUBLISHED.get(f"{level.lower()}_byte", "energy").value)


@pytest.mark.parametrize("name", RIVALS)
def test_pipelines_are_charged_where_the_table_has_their_cost(name):
    clocked = {}
    for table in (PUBLISHED, CITED):
        run = rival(name, sparsity=STATED[name][0], table=table)
        counted = sum(n.n for work in run.layers for n in work.counts if n.part == "flip_flop_bit")
        clocked[table.name] = [entry.count for entry in run.entries if entry.what == "pipeline bits"]
    assert clocked == {"published": [], "cited": [pytest.approx(counted)]}
    # No fewer than the operands of a multiplication in a register of one bit.
    assert counted > run.executed_macs


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(sorted(RIVALS)), st.integers(1, 4), st.sampled_from(["dram", "ports"]))
def test_half_the_bandwidth_never_speeds_up(name, halvings, where):
    def cycles(spec):
        return rival(name, like=spec, sparsity=STATED[name][0], objective="cycles").cycles.total

    n = 2**halvings
    if where == "dram":
        slow = dataclasses.replace(LIKE, dram_gbytes_per_s=LIKE.dram_gbytes_per_s / n)
    else:
        slow = dataclasses.replace(LIKE, dma_bits=LIKE.dma_bits // n, weight_port_bits=LIKE.weight_port_bits // n)
    assert cycles(slow) > cycles(LIKE) or where == "dram"
    assert cycles(slow) >= cycles(LIKE)


def test_dram_can_bind():
    slow = dataclasses.replace(LIKE, dram_gbytes_per_s=0.1)
    for name in RIVALS:
        fast, late = (rival(name, like=spec, sparsity=STATED[name][0]) for spec in (LIKE, slow))
        assert late.cycles.dram > 0
        assert late.cycles.total > fast.cycles.total
        assert late.actions == fast.actions


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(RIVALS)), st.integers(1, 40), st.integers(1, 3))
def test_twice_the_multipliers_are_never_slower(name, few, doublings):
    few, many = 32 * few, 32 * few << doublings
    slow, fast = (rival(name, multipliers=n, sparsity=STATED[name][0], objective="cycles").cycles for n in (few, many))
    assert fast.total <= slow.total


@pytest.mark.parametrize("name", RIVALS)
def test_without_sparsity_it_is_a_dense_machine(name):
    layer = EVEN
    run = rival(name, [layer, layer], sparsity=DENSE[name], table=CITED, objective="cycles")
    assert run.executed_macs == run.dense_macs == 2 * layer.dense_macs
    # One multiplication a cycle and multiplier: every channel, position and product fills the array.
    assert run.cycles.compute == 2 * layer.dense_macs // 1024
    own = {"sparten": {"masks ANDed, bits", "prefix sums, bits", "priority encoders, bits"}}
    own |= {"cgnet": {"thresholds, bits"}, "s2ta": {"activation pruning"}, "spots": set()}
    assert not {entry.what for entry in run.entries} & own[name]
    assert run.actions.dram_read_bytes == layer.input_bytes
    sparse = rival(name, [layer, layer], sparsity=STATED[name][0], table=CITED)
    assert {entry.what for entry in sparse.entries} >= own[name]


@pytest.mark.parametrize("name", RIVALS)
def test_sparser_is_cheaper_and_faster(name):
    layers = convolutions("resnet18")[:8]
    sparse, dense = (rival(name, layers, sparsity=stated) for stated in (STATED[name][0], DENSE[name]))
    assert sparse.bill.total_pj() < dense.bill.total_pj()
    assert sparse.cycles.total < dense.cycles.total


@pytest.mark.parametrize("name", RIVALS)
def test_a_value_for_each_layer(name):
    stated, dense = STATED[name][0], DENSE[name]
    keys = stated.BOUNDS
    spelled = type(stated)(
        **{key: (stated.BOUNDS[key].dense, *[getattr(stated, key)] * (len(LAYERS) - 1)) for key in keys}
    )
    assert rival(name, sparsity=spelled).bill == rival(name, sparsity=stated).bill
    assert rival(name, sparsity=dense).bill != rival(name, sparsity=stated).bill


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_are_met(objective):
    layers = convolutions("alexnet")
    runs = {key: rival("s2ta", layers, objective=key) for key in OBJECTIVES}
    assert runs["cycles"].cycles.total < runs["energy"].cycles.total
    least = {
        "cycles": lambda run: run.cycles.total,
        "energy": lambda run: sum(OBJECTIVES["energy"](w.cycles, w.actions) for w in run.layers),
        "edp": lambda run: sum(OBJECTIVES["edp"](w.cycles, w.actions) for w in run.layers),
    }[objective]
    assert least(runs[objective]) == min(map(least, runs.values()))


# What the papers publish.


def test_s2ta_doubles_speed_and_efficiency_at_half_and_half():
    """HPCA 2022: 2048 multipliers at 1 GHz, 4.1 TOPS dense, peak at 8; over 2x faster, and frugal, than dense."""
    half = DensityBounds(weights=(4.0,) * 3, activations=(4.0,) * 3)
    sparse, dense = (
        rival("s2ta", [EVEN] * 3, sparsity=s, multipliers=2048, table=CITED, objective="cycles")
        for s in (half, DensityBounds.dense())
    )
    assert dense.cycles.compute == 2 * sparse.cycles.compute == 3 * EVEN.dense_macs // 2048
    assert dense.bill.total_pj(dram=False) / sparse.bill.total_pj(dram=False) > 2


def test_s2ta_goes_eight_times_faster_with_one_activation_of_a_block():
    one = DensityBounds(weights=(4.0,), activations=(1.0,))
    dense, sparse = (rival("s2ta", [EVEN], sparsity=s).cycles.compute for s in (DensityBounds.dense(), one))
    assert dense == 8 * sparse


def test_sparten_is_as_much_faster_than_a_dense_machine_as_published():
    """MICRO 2019: on average 4.7x a dense machine, 1.8x one that knows the zeros of one side, on such networks."""
    speeds, sides = [], []
    for name in ("alexnet", "vgg16"):
        layers = convolutions(name)
        both = RIVALS["sparten"].published[name]
        both = RandomSparsity(weights=both.weights[: len(layers)], activations=both.activations[: len(layers)])
        one = dataclasses.replace(both, weights=(1.0,) * len(layers))
        cycles = {
            key: rival("sparten", layers, sparsity=s, objective="cycles").cycles.compute
            for key, s in {"both": both, "one": one, "dense": RandomSparsity.dense()}.items()
        }
        speeds.append(cycles["dense"] / cycles["both"])
        sides.append(cycles["one"] / cycles["both"])
    assert sum(speeds) / 2 == pytest.approx(4.7, rel=0.25)
    assert sum(sides) / 2 > 1.8


def test_cgnet_is_as_much_faster_than_a_dense_machine_as_published():
    """MICRO 2019: ResNet-18 with 2.8x fewer operations runs 2.3x faster."""
    layers = network("resnet18")
    gating = ChannelGating(base=0.25, gated=(1 - 1 / 2.8) / 0.75)
    sparse, dense = (rival("cgnet", layers, sparsity=s, objective="cycles") for s in (gating, ChannelGating.dense()))
    inner = layers[1:]
    wanted = layers[0].dense_macs + sum(layer.dense_macs for layer in inner) / 2.8
    assert sparse.executed_macs == pytest.approx(wanted, rel=1e-3)
    speed = dense.cycles.compute / sparse.cycles.compute
    assert speed == pytest.approx(2.3, rel=0.15)
    assert speed < 2.8


def test_cgnet_leaves_out_what_is_quoted():
    """MVQ's table: 60% of the channels of ResNet-18."""
    layers = network("resnet18")
    run = rival("cgnet", layers, sparsity="resnet18")
    left_out = 1 - sum(w.actions.macs for w in run.layers[1:]) / sum(layer.dense_macs for layer in layers[1:])
    assert left_out == pytest.approx(0.6, abs=0.002)


def test_spots_skips_zero_groups_and_zero_blocks():
    """TACO 2022: rows of weights that are zero, and blocks of a column that are, take no cycle."""
    layer = LAYERS[1]
    dense, groups, both = (
        rival("spots", [layer], sparsity=s).cycles.compute
        for s in (
            GroupSparsity.dense(),
            GroupSparsity(weights=(0.25,)),
            GroupSparsity(weights=(0.25,), blocks=(0.5,)),
        )
    )
    assert dense == pytest.approx(4 * groups, rel=0.01)
    assert groups == pytest.approx(2 * both, rel=0.01)
    gated = rival("spots", [layer], sparsity=GroupSparsity(weights=(0.25,), activations=(0.5,)))
    assert gated.cycles.compute == groups
    assert gated.executed_macs == layer.dense_macs // 8


def test_spots_is_compressed_as_quoted():
    """MVQ's table: 3x from 32 bits with 16 bits and 27% sparsity of VGG-16; 8 bits halve it again."""
    layers = network("vgg16")
    stated = RIVALS["spots"].published["vgg16"]
    bits = sum(RIVALS["spots"].weight_bits(layer, stated.at(i)) for i, layer in enumerate(layers))
    assert round(32 * sum(layer.n_weights for layer in layers) / (2 * bits)) == 3


def test_s2ta_is_compressed_as_quoted():
    """MVQ's table: 6.4x of AlexNet."""
    layers = network("alexnet")[1:]
    stated = RIVALS["s2ta"].published["alexnet"]
    bits = sum(RIVALS["s2ta"].weight_bits(layer, stated) for layer in layers)
    assert 32 * sum(layer.n_weights for layer in layers) / bits == pytest.approx(6.4)


def test_the_slowest_unit_of_a_cluster():
    generator = torch.Generator().manual_seed(0)
    weights, activations, n = 0.35, 0.5, 1000
    kept = round(weights * CHUNK)
    worst = []
    for _ in range(5):
        masks = torch.rand(n // 5, UNITS, 2, 2, CHUNK, generator=generator).argsort(-1) < kept
        active = torch.rand(n // 5, 1, 2, 1, CHUNK, generator=generator).argsort(-1) < CHUNK * activations
        # Two filters a unit over two chunks.
        worst.append((masks & active).sum((-1, -2, -3)).amax(-1).double().mean() / 2)
    assert chunk_cycles(2, CHUNK, kept / CHUNK, activations) == pytest.approx(float(sum(worst) / len(worst)), rel=0.02)


def test_a_prefix_sum_has_as_many_adders_as_brent_and_kung():
    assert prefix_bits(2) == 1
    # Two sums of one bit, one of two; one more on the way down, of two.
    assert prefix_bits(4) == 2 + 2 + 2


# Statements and figures.


def test_all_faults_of_a_statement_are_listed():
    with pytest.raises(ConfigError) as error:
        RandomSparsity(weights=(0.5, 0.0, True), activations=float("nan"))
    assert str(error.value).splitlines() == [
        "RandomSparsity: weights=0.0, True is not in (0, 1]",
        "RandomSparsity: activations=nan is not in (0, 1]",
    ]
    with pytest.raises(ConfigError) as error:
        ChannelGating(base=1.5, gated=-0.1, activations=())
    assert str(error.value).splitlines() == [
        "ChannelGating: base=1.5 is not in (0, 1]",
        "ChannelGating: gated=-0.1 is not in [0, 1]",
        "ChannelGating: activations has no value; give one, or one for each layer",
    ]


def test_all_faults_of_a_request_are_listed():
    stated = DensityBounds(weights=(4.0,) * 3, activations=(4.0,) * 2)
    with pytest.raises(ConfigError) as error:
        rival("s2ta", sparsity=stated, multipliers=16, objective="area")
    assert str(error.value).splitlines() == [
        "S2TA: weights has 3 values, the network 5 layers; give one, or one for each layer",
        "S2TA: activations has 2 values, the network 5 layers; give one, or one for each layer",
        "S2TA: multipliers=16 is not a whole number of at least 32",
        "S2TA: objective 'area' is not one of edp, cycles, energy",
    ]
    with pytest.raises(ConfigError, match="SPOTS: sparsity is of DensityBounds, the machine takes GroupSparsity"):
        rival("spots", sparsity=stated)
    with pytest.raises(ConfigError, match="CGNet: there is no sparsity for 'lenet'; there is for resnet18, alexnet"):
        rival("cgnet", sparsity="lenet")
    with pytest.raises(ConfigError, match="CGNet: the network has no layer"):
        rival("cgnet", [])
    with pytest.raises(ConfigError, match="prior machine 'tpu' is not one of sparten, cgnet, spots, s2ta"):
        rival("tpu")


@pytest.mark.parametrize("name", RIVALS)
def test_layers_that_do_not_fit_are_listed(name):
    with pytest.raises(ConfigError) as error:
        rival(name, like=dataclasses.replace(LIKE, l1_bytes=256), sparsity=STATED[name][0])
    assert [line.split("'")[1] for line in str(error.value).splitlines()] == [layer.name for layer in LAYERS]


@pytest.mark.parametrize("name", RIVALS)
def test_a_layer_fits_to_the_byte(name):
    layer = Layer(name="fits", c_in=1000, c_out=100)
    # The input once, as there is no next tile; outputs twice, or a column's partial sums and outputs.
    need = 1000 + (LIKE.psum_bytes + 2 if name == "cgnet" else 2 * 100)
    rival(name, [layer], like=dataclasses.replace(LIKE, l1_bytes=need), sparsity=DENSE[name])
    with pytest.raises(ConfigError, match="'fits' does not fit"):
        rival(name, [layer], like=dataclasses.replace(LIKE, l1_bytes=need - 1), sparsity=DENSE[name])


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("workload", ["alexnet", "resnet18", "vgg16"])
def test_published_sparsity_describes_the_network_and_has_a_source(name, workload):
    stated = RIVALS[name].published[workload]
    assert not stated.faults_for(len(network(workload)))
    assert stated.source not in ("", "given")


def test_the_pruned_networks_of_sparten_are_as_small_as_published():
    """Han et al.: 11% of the weights of AlexNet are left, 7.5% of those of VGG-16."""
    for name, left in {"alexnet": 0.11, "vgg16": 0.075}.items():
        layers = network(name)
        densities = RIVALS["sparten"].published[name].weights
        kept = sum(layer.n_weights * density for layer, density in zip(layers, densities, strict=True))
        assert kept / sum(layer.n_weights for layer in layers) == pytest.approx(left, abs=0.005)


def test_own_rows_of_a_table_stay():
    row = CITED.rows["multiply", "energy"]
    table = dataclasses.replace(CITED, rows={**CITED.rows, ("adder_bit", "energy"): row})
    assert with_parts(table).get("adder_bit", "energy") is row
    assert with_parts(CITED).get("adder_bit", "energy").value < CITED.get("add", "energy").value / 8


def test_lanes_instead_of_multipliers():
    run = rival("s2ta", multipliers=LIKE.rows * LIKE.cols)
    assert run.multipliers == 4 * rival("s2ta").multipliers == 4 * run_network(LIKE, LAYERS).spec.n_multipliers


def test_quoted_figures_are_apart():
    assert {row.machine for row in QUOTED} >= {machine.name for machine in RIVALS.values()}
    best = max(row.tops_per_watt_40nm for row in QUOTED if row.workload == "AlexNet" and row.dataflow != "EWS")
    ours = min(row.tops_per_watt_40nm for row in QUOTED if row.workload == "AlexNet" and row.dataflow == "EWS")
    assert ours / best == pytest.approx(1.73, abs=0.01)
