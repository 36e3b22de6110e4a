"""Whole networks on the machines."""

import dataclasses

import pytest

from mvq.accel.cycle import OBJECTIVES, Actions, Cycles, best_mapping, run_network, stored_bytes
from mvq.accel.spec import PRESETS, preset
from mvq.accel.workload import Layer
from mvq.errors import ConfigError
from mvq.patterns import Pattern

MASKED = {"compressed": True, "pattern": Pattern(4, 16)}


def network(scale=1):
    """The shapes of a small residual network."""
    same = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "in_size": (28, 28)}
    return [
        Layer(name="stem", c_in=3, c_out=64, kernel=(7, 7), stride=(2, 2), padding=(3, 3, 3, 3), in_size=(56, 56)),
        Layer(name="a", c_in=64, c_out=128 * scale, **same, **MASKED),
        Layer(name="depthwise", c_in=128 * scale, c_out=128 * scale, groups=128 * scale, **same),
        Layer(name="b", c_in=128 * scale, c_out=128, **same, **MASKED, residual_bytes=128 * 28 * 28),
        Layer(name="fc", c_in=128, c_out=1000, **MASKED),
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_it(name):
    spec = preset(name)
    run = run_network(spec, network())
    assert [layer.layer.name for layer in run.layers] == ["stem", "a", "depthwise", "b", "fc"]
    assert run.cycles == sum((layer.cycles for layer in run.layers), Cycles())
    assert run.actions == sum((layer.actions for layer in run.layers), Actions())
    assert run.actions.dense_macs == sum(layer.dense_macs for layer in network())
    assert run.actions.macs == sum(layer.executed_macs(spec) for layer in network())
    assert run.actions.macs <= run.cycles.compute * spec.n_multipliers
    assert run.seconds == pytest.approx(run.cycles.total / 300e6)
    weights = sum(stored_bytes(spec, layer) for layer in network())
    assert run.actions.l2_read_bytes >= weights
    expected = network()[0].input_bytes + (0 if run.weights_resident else weights)
    assert run.actions.dram_read_bytes >= expected
    assert run.actions.dram_write_bytes == 1000


def test_masks_and_codebooks_shrink_what_is_stored():
    sizes = {
        kind: sum(stored_bytes(preset(f"{kind}-64"), n) for n in network()) for kind in ("ews", "ews-nm", "ews-cms")
    }
    assert sizes["ews"] > 2 * sizes["ews-nm"] > 4 * sizes["ews-cms"] / 1.5


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("change", [{"l2_bytes": 1 << 14}, {"dram_gbytes_per_s": 0.1}, {"dma_bits": 8}])
def test_less_memory_never_speeds_up(name, change):
    spec = preset(name)
    slow = dataclasses.replace(spec, **change)
    assert run_network(slow, network()).cycles.total >= run_network(spec, network()).cycles.total


@pytest.mark.parametrize("kind", ["ws", "ews", "ews-cms"])
def test_more_rows_never_add_work_to_a_divisible_layer(kind):
    layer = Layer(name="a", c_in=256, c_out=256, in_size=(14, 14), kernel=(3, 3), padding=(1, 1, 1, 1), **MASKED)
    work = []
    for rows in (16, 32, 64):
        spec = dataclasses.replace(preset(f"{kind}-64"), rows=rows)
        work.append(best_mapping(spec, layer)[1].compute)
    assert work == sorted(work, reverse=True)
    assert work[0] == 4 * work[2]


def test_weights_that_fit_into_l2_are_read_once():
    spec = preset("ews-cms-64")
    assert run_network(spec, network()).weights_resident
    assert not run_network(dataclasses.replace(spec, l2_bytes=1 << 17), network()).weights_resident


def test_mappings_are_best_by_their_objective():
    spec, layer = preset("ews-64"), network()[1]
    found = {name: best_mapping(spec, layer, objective=name)[1:] for name in OBJECTIVES}
    for name, least in OBJECTIVES.items():
        assert all(least(*found[name]) <= least(*other) for other in found.values())
    assert found["cycles"][0].total < found["energy"][0].total
    little = best_mapping(spec, layer, objective=lambda _, actions: actions.l1_read_bytes)[2]
    assert little.l1_read_bytes <= min(actions.l1_read_bytes for _, actions in found.values())
    with pytest.raises(ConfigError, match="objective 'speed' is not one of edp, cycles, energy"):
        best_mapping(spec, layer, objective="speed")


@pytest.mark.parametrize("width", ["dma_bits", "weight_port_bits", "dram_gbytes_per_s"])
@pytest.mark.parametrize("name", ["ws-16", "ews-64", "ews-cms-64"])
def test_half_the_bandwidth_never_speeds_a_network_up(name, width):
    spec = preset(name)
    half = dataclasses.replace(spec, **{width: type(getattr(spec, width))(getattr(spec, width) / 2)})
    times = [run_network(each, network(), objective="cycles").cycles.total for each in (spec, half)]
    assert times[0] <= times[1]


def test_layers_that_do_not_fit_are_listed_together():
    wide = Layer(name="wide", c_in=64, c_out=64, kernel=(3, 3), in_size=(3, 100_000))
    with pytest.raises(ConfigError) as error:
        run_network(preset("ews-64"), [wide, dataclasses.replace(wide, name="wider", in_size=(3, 200_000))])
    assert str(error.value).splitlines() == [
        f"layer {name!r} does not fit on 'ews-64': one output row and its inputs exceed l1_bytes=262144; "
        "give it more L1"
        for name in ("wide", "wider")
    ]


def test_a_layer_that_contradicts_itself_is_named():
    with pytest.raises(ConfigError) as error:
        Layer(name="x", c_in=0, c_out=4, padding=(-1, 0, 0, 0))
    assert str(error.value).splitlines() == [
        "layer 'x': c_in=0 is not of whole numbers of at least 1",
        "layer 'x': padding=(-1, 0, 0, 0) is not of whole numbers of at least 0",
    ]
    with pytest.raises(ConfigError, match="groups=3 divides not both 4 and 4 channels"):
        Layer(name="x", c_in=4, c_out=4, groups=3, pattern=Pattern(1, 2))
