"""`mvq inspect` and `mvq recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mvq.cli.output import console, make_table, number, print_json, sizes_json, sizes_table
from mvq.cli.recipes import to_toml
from mvq.compressed import CompressedModel, Int8Layer, VQLayer
from mvq.recipe import PRESETS, Recipe
from mvq.sizes import sizes


def run(path: Path, *, as_json: bool) -> None:
    """Print what is in a file.

    Raises:
        FormatError: if it is damaged.
    """
    from mvq.format import open_file

    with open_file(path) as file:
        model = file.read()
        found = sizes(model, file.file_bytes)
    layers = [_vq_row(layer) for layer in model.vq_layers]
    others = [_other_row(model, layer) for layer in model.layers if not isinstance(layer, VQLayer)]
    if as_json:
        print_json(
            {
                "file": str(path),
                "layers": layers,
                "other_layers": others,
                "sizes": sizes_json(found),
                "recipe": model.recipe.to_dict(),
                "provenance": dict(model.provenance),
            }
        )
        return
    out = console()
    facts = [f"{key}: {model.provenance[key]}" for key in ("model", "task") if key in model.provenance]
    out.print("  ".join([str(path), *facts]), markup=False)
    if layers:
        out.print(_vq_table(layers, [layer.codebook for layer in model.vq_layers]))
    if others:
        out.print(_other_table(others))
    out.print(sizes_table(found))


def _vq_row(layer: VQLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "pattern": str(layer.pattern),
        "d": layer.d,
        "codewords": layer.codewords,
        "n_codewords": layer.n_codewords,
        "n_sub": layer.n_sub,
        "bits_assign": layer.bits_assign,
        "bits_mask": layer.bits_mask,
        "bits_codebook": layer.bits_codebook,
        "masked_sse": layer.masked_sse,
        "total_sse": layer.total_sse,
    }


def _other_row(model: CompressedModel, layer: Any) -> dict[str, Any]:
    if isinstance(layer, Int8Layer):
        treatment, bits = "int8", 8 * layer.codes.size + 32 * layer.scales.size
    else:
        weight = model.tensors[f"{layer.name}.weight"]
        treatment, bits = str(weight.dtype), 8 * weight.nbytes
    return {"name": layer.name, "shape": list(layer.shape), "treatment": treatment, "bits": bits}


def _shape(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _vq_table(rows: list[dict[str, Any]], codebooks: list[str]) -> Any:
    headers = ["layer", "shape", "pattern", "d", "codewords", "k", "subvectors"]
    headers += ["index bits", "mask bits", "codebook bits", "masked SSE", "total SSE"]
    sides = "<<><" + "<" + ">" * 7
    table = make_table("Vector-quantized layers", list(zip(headers, sides, strict=True)))
    for i, (row, codebook) in enumerate(zip(rows, codebooks, strict=True)):
        counts = [f"{row[key]:,}" for key in ("n_sub", "bits_assign", "bits_mask", "bits_codebook")]
        if codebook in codebooks[:i]:
            counts[-1] = "shared"
        errors = [number(row[key], ".4g") for key in ("masked_sse", "total_sse")]
        table.add_row(
            row["name"],
            _shape(row["shape"]),
            row["pattern"],
            str(row["d"]),
            row["codewords"],
            str(row["n_codewords"]),
            *counts,
            *errors,
        )
    return table


def _other_table(rows: list[dict[str, Any]]) -> Any:
    table = make_table("Other layers", [("layer", "<"), ("shape", "<"), ("stored as", "<"), ("bits", ">")])
    for row in rows:
        table.add_row(row["name"], _shape(row["shape"]), row["treatment"], f"{row['bits']:,}")
    return table


def show_recipes(name: str | None, *, as_json: bool) -> None:
    """Print the presets, or one as TOML.

    Raises:
        ConfigError: if there is no such preset.
    """
    if name is not None:
        recipe = Recipe.preset(name)
        if as_json:
            print_json(recipe.to_dict())
        else:
            console().print(to_toml(recipe), end="", markup=False)
        return
    if as_json:
        print_json({preset: recipe.to_dict() for preset, recipe in PRESETS.items()})
        return
    headers = [("preset", "<"), ("pattern", ">"), ("d", ">"), ("codewords", ">"), ("kind", "<"), ("k-means", "<")]
    table = make_table("Presets", headers)
    for preset, recipe in PRESETS.items():
        table.add_row(
            preset, str(recipe.pattern), str(recipe.d), str(recipe.n_codewords), recipe.codewords, recipe.kmeans
        )
    console().print(table)
