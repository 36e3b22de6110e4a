"""The closed form of the cycles against the machine stepped through."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvq.accel.cycle import OBJECTIVES, best_mapping, layer_actions, layer_cycles
from mvq.accel.cycle.loads import stored_bytes
from mvq.accel.cycle.model import least_cycles
from mvq.accel.cycle.reference import count, simulate
from mvq.accel.mapping import Mapping, candidates, check, most_fold
from mvq.accel.spec import PRESETS, preset
from mvq.accel.workload import Layer
from mvq.errors import ConfigError
from mvq.patterns import Pattern


@st.composite
def specs(draw):
    base = preset(draw(st.sampled_from(PRESETS)))
    d = base.d if base.has_masks else draw(st.sampled_from([2, 4, 8]))
    pattern = base.pattern
    if base.has_masks:
        d = draw(st.sampled_from([4, 8, 16]))
        pattern = draw(st.sampled_from(["1:2", "2:4", "1:4"]))
    entries = 2 if base.dataflow == "ws" else draw(st.sampled_from([1, 2, 4, 8, 16]))
    return dataclasses.replace(
        base,
        d=d,
        pattern=pattern,
        rows=draw(st.integers(1, 9)),
        cols=d * draw(st.integers(1, 3)),
        n_codewords=draw(st.integers(1, 64)),
        wrf_entries=entries,
        weight_port_bits=draw(st.sampled_from([8, 32, 128, 1000])),
        dma_bits=draw(st.sampled_from([8, 64, 512])),
    )


@st.composite
def layers(draw, spec):
    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    compressed = draw(st.booleans())
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return Layer(
        name="layer",
        c_in=groups * draw(st.integers(1, 20)),
        c_out=groups * draw(st.integers(1, 40)),
        groups=groups,
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        in_size=(draw(st.integers(6, 9)), draw(st.integers(6, 9))),
        compressed=compressed,
        pattern=draw(st.sampled_from([spec.nm, Pattern(1, 1)])) if compressed else Pattern(1, 1),
        residual_bytes=draw(st.sampled_from([0, 100])),
    )


@st.composite
def mapped(draw):
    spec = draw(specs())
    layer = draw(layers(spec))
    found = list(candidates(spec, layer))
    rows = draw(st.integers(1, layer.out_size[0]))
    fold = draw(st.integers(1, most_fold(spec, layer)))
    changed = [dataclasses.replace(base, tile_rows=rows, fold=fold, d=1) for base in found]
    found += [mapping for mapping in changed if not check(spec, layer, mapping)]
    return spec, layer, draw(st.sampled_from(found))


@settings(max_examples=300, deadline=None)
@given(mapped())
def test_closed_form_equals_the_stepped_machine(case):
    assert layer_cycles(*case) == simulate(*case)


@settings(max_examples=200, deadline=None)
@given(mapped())
def test_the_least_cycles_are_never_more_than_those_taken(case):
    assert least_cycles(*case) <= layer_cycles(*case).total


@settings(max_examples=100, deadline=None)
@given(mapped(), st.sampled_from(sorted(OBJECTIVES)))
def test_the_mapper_leaves_out_none_that_is_better(case, objective):
    spec, layer, _ = case
    found = [(m, layer_cycles(spec, layer, m), layer_actions(spec, layer, m)) for m in candidates(spec, layer)]
    assert best_mapping(spec, layer, objective=objective) == min(found, key=lambda one: OBJECTIVES[objective](*one[1:]))


@settings(max_examples=150, deadline=None)
@given(mapped())
def test_actions_are_those_counted_one_by_one(case):
    spec, layer, _ = case
    found, wanted = layer_actions(*case), count(*case)
    extra = layer.output_bytes + layer.residual_bytes
    assert {name: getattr(found, name) for name in ("arf_reads", "arf_writes", "prf_accesses")} == {
        name: wanted[name] for name in ("arf_reads", "arf_writes", "prf_accesses")
    }
    assert found.l1_read_bytes == wanted["arf_writes"] + wanted["partial_bytes"] + extra
    assert found.l1_write_bytes == wanted["input_bytes"] + wanted["partial_bytes"] + extra
    assert found.l2_read_bytes >= wanted["input_bytes"] + stored_bytes(spec, layer)
    assert found.macs <= found.dense_macs


@settings(max_examples=100, deadline=None)
@given(mapped(), st.sampled_from(["weight_port_bits", "dma_bits"]))
def test_half_the_bandwidth_never_speeds_up(case, port):
    spec, layer, mapping = case
    slow = dataclasses.replace(spec, **{port: max(getattr(spec, port) // 2, 1)})
    assert layer_cycles(slow, layer, mapping).total >= layer_cycles(spec, layer, mapping).total


@settings(max_examples=100, deadline=None)
@given(mapped())
def test_the_array_has_a_cycle_for_every_multiplication(case):
    spec, layer, mapping = case
    cycles = layer_cycles(spec, layer, mapping)
    assert cycles.compute * spec.n_multipliers >= layer.executed_macs(spec)
    assert cycles.total == cycles.compute + cycles.bubble + cycles.weights + cycles.memory + cycles.dram


def test_mappings_that_do_not_fit_are_named():
    spec = preset("ews-16")
    layer = Layer(name="conv", c_in=64, c_out=64, kernel=(3, 3), padding=(1, 1, 1, 1), in_size=(56, 56))
    with pytest.raises(ConfigError) as error:
        layer_cycles(spec, layer, Mapping(a=32, b=2, d=10, tile_rows=60))
    assert str(error.value).splitlines() == [
        "layer 'conv' on 'ews-16': a*b*d=640 weights exceed 16 of wrf_entries=16",
        "layer 'conv' on 'ews-16': a=32 exceeds prf_entries=16",
        "layer 'conv' on 'ews-16': 20 activations of b=2, d=10 exceed arf_entries=16",
        "layer 'conv' on 'ews-16': d=10 exceeds 9 kernel points in 1 passes",
        "layer 'conv' on 'ews-16': tile_rows=60 exceeds the 56 output rows",
        "layer 'conv' on 'ews-16': it needs 1490944 bytes of L1, there are 131072",
    ]
