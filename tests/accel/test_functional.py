"""The functional view against plain integer arithmetic."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_nets import images, settled
from stored_layers import prepared
from torch import nn

import mvq
from mvq.accel.cycle import best_mapping, layer_actions, loaded_bytes, stored_bytes
from mvq.accel.functional import Machine, load_order, pack, run_images, run_layer, stored_weight, unpack
from mvq.accel.functional.loader import positions
from mvq.accel.mapping import Mapping, candidates
from mvq.accel.network.arithmetic import conv2d_int
from mvq.accel.network.graph import weight_codes
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.compressed import Codebook, CompressedModel, Int8Layer, VQLayer
from mvq.errors import ConfigError, PsumOverflowError, StreamError
from mvq.patterns import Pattern
from mvq.recipe import Recipe

KINDS = ("ws", "ews", "ews-nm", "ews-c", "ews-cm", "ews-cms", "ws-cms", "ews-p")


def machine(kind, **changes):
    return dataclasses.replace(preset(f"{kind}-16"), **changes)


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(KINDS))
    base = preset(f"{kind}-16")
    changes = {"rows": draw(st.integers(1, 9)), "n_codewords": draw(st.sampled_from([1, 2, 5, 16]))}
    pattern = Pattern(1, 1)
    if base.has_masks:
        pattern = Pattern.parse(draw(st.sampled_from(["1:2", "2:4", "1:4", "3:8", "4:16"])))
        changes |= {"pattern": pattern, "mask_decode": draw(st.sampled_from(["lzc", "position-lut"]))}
        d = draw(st.sampled_from([n for n in (4, 8, 16) if n % pattern.group == 0]))
    else:
        d = draw(st.sampled_from([4, 8]))
    changes |= {"d": d, "cols": d * draw(st.integers(1, 3))}
    if base.dataflow == "ews":
        changes["wrf_entries"] = draw(st.sampled_from([1, 2, 4, 8]))
    spec = dataclasses.replace(base, **changes)
    is_plain = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3])) if is_plain else 1
    c_in, c_out = groups * draw(st.integers(1, 12)), groups * draw(st.integers(1, 20))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    lanes = (
        None if is_plain else draw(st.sampled_from([n for n in (4, 8, 16) if d % n == 0 and n % pattern.group == 0]))
    )
    layer = Layer(
        name="layer",
        c_in=c_in,
        c_out=c_out,
        groups=groups,
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        in_size=(draw(st.integers(5, 8)), draw(st.integers(5, 8))),
        compressed=not is_plain,
        pattern=pattern if not is_plain else Pattern(1, 1),
        index_bits=None if is_plain else (spec.n_codewords - 1).bit_length(),
        lanes=lanes,
    )
    found = list(itertools.islice(candidates(spec, layer), 40))
    return spec, layer, draw(st.sampled_from(found)), draw(st.integers(0, 2**31))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_a_layer_is_computed_from_its_words(case):
    spec, layer, mapping, seed = case
    codes, stored, stream, ifmap = prepared(spec, layer, mapping, seed)
    done = run_layer(spec, layer, mapping, stored, stream, ifmap)
    wanted = conv2d_int(
        ifmap, codes, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
    )
    np.testing.assert_array_equal(done.psums, wanted)
    if layer.c_out % layer.pattern.group == 0:  # random masks keep padding, those of pruning do not
        assert done.macs == layer_actions(spec, layer, mapping).macs
    assert len(stream) == loaded_bytes(spec, layer, mapping) >= stored_bytes(spec, layer)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_every_word_is_read_in_each_pass(case):
    spec, layer, mapping, seed = case
    _, stored, stream, _ = prepared(spec, layer, mapping, seed)
    order = load_order(spec, layer, mapping, stored)
    real = order[order[:, 2] >= 0]
    n_words = stored.n_words * stored.fields[0][0][0].size
    assert len({tuple(row) for row in real[:, :4]}) == len(real) == n_words * layer.passes(spec)
    again = unpack(stream, stored, order, spec.weight_port_bits)
    for (values, _), found in zip(stored.fields, again, strict=True):
        np.testing.assert_array_equal(found, values)
    with pytest.raises(StreamError, match="in beats of 128 bits take"):
        unpack(stream + b"x", stored, order, spec.weight_port_bits)


@pytest.mark.parametrize("pattern", ["1:1", "1:2", "2:4", "3:8", "4:16", "15:16"])
def test_both_mask_decoders_find_the_kept_lanes(pattern):
    pattern = Pattern.parse(pattern)
    ids = np.arange(pattern.n_masks)
    wanted = [list(np.flatnonzero(row)) for row in pattern.unrank(ids[:, None])]
    for how in ("lzc", "position-lut"):
        assert positions(pattern, ids, how).tolist() == wanted


def test_words_of_the_specification():
    """The example of docs/spec/weight-words.md."""
    spec = machine("ews-cms", rows=2, cols=4, d=4, pattern="2:4", n_codewords=4, wrf_entries=2)
    layer = Layer(name="layer", c_in=2, c_out=4, compressed=True, pattern=Pattern(2, 4), index_bits=2)
    stored_layer = VQLayer(
        name="layer",
        kind="conv",
        role="conv",
        shape=(4, 2, 1, 1),
        pattern=Pattern(2, 4),
        d=4,
        codewords="masked",
        codebook="layer",
        n_codewords=4,
        assignments=np.array([3, 1], np.uint32),
        mask_ids=np.array([[0], [5]], np.uint32),
    )
    codes = np.array([[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0], [-5, 6, 7, 8]], np.int8)
    model = CompressedModel(
        recipe=Recipe(), layers=(stored_layer,), codebooks={"layer": Codebook(codes, 1.0)}, tensors={}
    )
    stored = stored_weight(spec, layer, model, weight_codes(model, "layer"))
    mapping = Mapping()
    stream = pack(stored, load_order(spec, layer, mapping, stored), spec.weight_port_bits)
    assert stream.hex() == "a302" + 14 * "00"  # a beat of 128 bits
    ifmap = np.array([10, 100], np.int8).reshape(1, 2, 1, 1)
    assert run_layer(spec, layer, mapping, stored, stream, ifmap).psums.ravel().tolist() == [-50, 60, 300, 400]


@pytest.mark.parametrize("bits", [17, 18, 19])
def test_psums_that_overflow_on_the_way_are_named(bits):
    # 3 x 127 x 127 and the same taken away: the sum fits any register, its way does not fit 16 bits and a sign.
    spec = machine("ews", rows=1, cols=4, d=4, psum_bits=bits)
    layer = Layer(name="layer", c_in=6, c_out=1)
    codes = np.array([127] * 3 + [-127] * 3, np.int8).reshape(1, 6, 1, 1)
    rows = Int8Layer(name="layer", kind="conv", role="conv", codes=codes, scales=np.ones(1, np.float32))
    model = CompressedModel(recipe=Recipe(), layers=(rows,), codebooks={}, tensors={})
    stored, mapping = stored_weight(spec, layer, model, codes), Mapping(b=2)
    stream = pack(stored, load_order(spec, layer, mapping, stored), spec.weight_port_bits)
    ifmap = np.full((1, 6, 1, 1), 127, np.int8)
    if 3 * 127 * 127 < 1 << (bits - 1):
        assert run_layer(spec, layer, mapping, stored, stream, ifmap).psums.item() == 0
        return
    with pytest.raises(PsumOverflowError) as error:
        run_layer(spec, layer, mapping, stored, stream, ifmap)
    limit = 1 << (bits - 1)
    assert str(error.value).startswith("layer 'layer': the psum of channel 0 at (0, 0) is ")
    assert f"which psum_bits={bits} do not hold ({-limit}..{limit - 1})" in str(error.value)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


@pytest.mark.parametrize(
    ("kind", "codewords"), [("ews", "masked"), ("ews-nm", "masked"), ("ews-cm", "masked"), ("ews-p", "packed")]
)
def test_a_network_is_what_the_integer_network_says(kind, codewords):
    model = settled(net())
    recipe = Recipe(pattern="2:4", d=8, n_codewords=8, codewords=codewords, scope="layer", first_conv="int8")
    mvq.cluster_(model, recipe)
    network = mvq.integer_network(model, [images()])
    spec = machine(kind) if kind == "ews" else machine(kind, pattern="2:4", d=8)
    laid = Machine(network, spec)
    x = images(3, seed=5).numpy()
    found = run_images(laid, x, keep=tuple(network.tensors))
    for name, values in network.activations(x).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    for name, layer in laid.layers.items():
        assert laid.macs[name] == layer_actions(spec, layer, laid.mappings[name]).macs
    assert sum(map(len, laid.streams.values())) >= sum(layer.n_weights for layer in laid.layers.values()) // 16


def test_layers_that_a_machine_cannot_take_are_listed_together():
    model = settled(net())
    mvq.cluster_(model, Recipe(pattern="2:4", d=8, n_codewords=8, first_conv="int8"))
    network = mvq.integer_network(model, [images()])
    with pytest.raises(ConfigError) as error:
        Machine(network, machine("ews-p", pattern="2:4", d=8))
    assert str(error.value).splitlines() == [
        f"layer {name!r} on 'ews-p-16': its codewords are masked, the machine's are packed" for name in ("3", "7", "10")
    ]
    with pytest.raises(ConfigError, match=r"weights='vq' has no masks, the layer has those of 2:4"):
        Machine(network, machine("ews-c"))


def test_the_mapping_does_not_change_a_bit():
    spec = machine("ews-cms", rows=4, pattern="2:4", d=8, cols=8, wrf_entries=8)
    layer = Layer(
        name="layer", c_in=9, c_out=24, kernel=(3, 3), in_size=(6, 7), compressed=True, pattern=Pattern(2, 4), lanes=8
    )
    seen = set()
    for mapping in itertools.islice(candidates(spec, layer), 0, None, 3):
        _, stored, stream, ifmap = prepared(spec, layer, mapping, 0)
        seen.add(run_layer(spec, layer, mapping, stored, stream, ifmap).psums.tobytes())
    assert len(seen) == 1
    assert best_mapping(spec, layer)[0] in list(candidates(spec, layer))
