"""Random machines that there is RTL of, and layers for them."""

import dataclasses

from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.patterns import Pattern

KINDS = ("ws", "ews", "ews-nm", "ews-c", "ews-cm", "ews-cms", "ws-cms", "ews-p")


def random_spec(rng, kind):
    base = preset(f"{kind}-16")
    d, changes = 8, {}
    if base.has_masks:
        group = rng.choice([2, 4, 8])
        keep = rng.randrange(1, group)
        d = group * rng.choice([1, 2])
        changes |= {"pattern": f"{keep}:{group}", "mask_decode": rng.choice(["lzc", "position-lut"])}
    width = {"masked": d, "packed": Pattern.parse(changes.get("pattern", "1:1")).kept_per(d)}[base.codewords] * 8
    port = width * rng.choice([1, 2, 4, 8]) // 2 if base.has_codebook else rng.choice([8, 24, 64, 200])
    changes |= {
        "d": d,
        "cols": d * rng.randrange(1, 4),
        "rows": rng.randrange(1, 8),
        "n_codewords": 4 * rng.randrange(1, 5),
        "weight_port_bits": max(port - port % 8, 8),
        "psum_bits": rng.choice([24, 32]),
        "activation_bits": 8,
        "zero_gating": rng.random() < 0.8,
    }
    if base.dataflow == "ews":
        changes |= {"wrf_entries": rng.choice([2, 4, 8]), "prf_entries": rng.choice([1, 2, 8])}
        changes |= {"arf_entries": rng.choice([1, 3, 4, 8])}
    return dataclasses.replace(base, name=f"{kind}-random", **changes)


def random_layer(rng, spec):
    plain = spec.weights == "int8" or rng.random() < 0.4
    groups = rng.choice([1, 1, 2, 5, 8]) if plain else 1
    return Layer(
        name="layer",
        c_in=groups * rng.randrange(1, 13),
        c_out=groups * rng.randrange(1, 25),
        groups=groups,
        kernel=(rng.randrange(1, 4), rng.randrange(1, 4)),
        stride=(rng.randrange(1, 4), rng.randrange(1, 4)),
        dilation=(rng.randrange(1, 3), rng.randrange(1, 3)),
        padding=tuple(rng.randrange(3) for _ in range(4)),
        in_size=(rng.randrange(5, 8), rng.randrange(5, 8)),
        compressed=not plain,
        pattern=Pattern(1, 1) if plain else spec.nm,
        index_bits=None if plain or not spec.has_codebook else spec.index_bits,
    )
