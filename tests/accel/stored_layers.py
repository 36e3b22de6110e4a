"""Layers of random weights as a machine stores them."""

import numpy as np

from mvq.accel.functional import load_order, pack, stored_weight
from mvq.accel.network.graph import weight_codes
from mvq.compressed import Codebook, CompressedModel, Int8Layer, VQLayer
from mvq.recipe import Recipe


def compressed(rng, spec, shape, *, pattern, d):
    """A network of one vector-quantized layer as the machine stores it."""
    n_sub = -(-shape[0] // d) * int(np.prod(shape[1:]))
    codewords = "packed" if spec.codewords == "packed" else "masked"
    n_blocks = 0 if pattern.is_dense else d // pattern.group
    layer = VQLayer(
        name="layer",
        kind="conv",
        role="conv",
        shape=shape,
        pattern=pattern,
        d=d,
        codewords=codewords,
        codebook="layer",
        n_codewords=spec.n_codewords,
        assignments=rng.integers(0, spec.n_codewords, n_sub).astype(np.uint32),
        mask_ids=rng.integers(0, pattern.n_masks, (n_sub, n_blocks)).astype(np.uint32),
    )
    codebook = Codebook(rng.integers(-128, 128, (layer.n_codewords, layer.width)).astype(np.int8), 1.0)
    return CompressedModel(recipe=Recipe(), layers=(layer,), codebooks={"layer": codebook}, tensors={})


def plain(rng, shape):
    codes = rng.integers(-128, 128, shape).astype(np.int8)
    layer = Int8Layer(name="layer", kind="conv", role="conv", codes=codes, scales=np.ones(shape[0], np.float32))
    return CompressedModel(recipe=Recipe(), layers=(layer,), codebooks={}, tensors={})


def prepared(spec, layer, mapping, seed):
    rng = np.random.default_rng(seed)
    shape = (layer.c_out, layer.c_in // layer.groups, *layer.kernel)
    lanes = layer.lanes or spec.d
    model = compressed(rng, spec, shape, pattern=layer.pattern, d=lanes) if layer.compressed else plain(rng, shape)
    codes = weight_codes(model, "layer")
    stored = stored_weight(spec, layer, model, codes)
    stream = pack(stored, load_order(spec, layer, mapping, stored), spec.weight_port_bits)
    return codes, stored, stream, rng.integers(-128, 128, (2, layer.c_in, *layer.in_size)).astype(np.int8)
