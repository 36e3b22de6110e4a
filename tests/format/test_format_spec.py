"""The test vectors of the specification hold, read from its text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from format_samples import assert_same, take_apart

from mvq import errors
from mvq.compressed import Codebook, CompressedModel, VQLayer
from mvq.format import layout, open_file, read, to_bytes
from mvq.format.bits import pack, unpack
from mvq.patterns import MAX_GROUP, Pattern
from mvq.recipe import MAX_CODEWORDS, MAX_D, Recipe

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "format.md"
TEXT = SPEC.read_text()
VECTORS = TEXT[TEXT.index("## 9.") :]


def rows(heading: str) -> list[list[str]]:
    """Cells of the vector table with this heading."""
    table = VECTORS[VECTORS.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


def numbers(cell: str) -> list[int]:
    return [int(n, 0) for n in cell.split(",") if n.strip()]


def vector_model() -> CompressedModel:
    """The network the specification describes, with the recipe of its file: defaults may change, files do not."""
    recipe = Recipe.from_dict(take_apart(vector_file())[1]["recipe"])
    layer = VQLayer(
        name="c",
        kind="conv",
        role="conv",
        shape=(3, 2, 1, 1),
        pattern=Pattern(1, 2),
        d=2,
        codewords="masked",
        codebook="c",
        n_codewords=3,
        assignments=np.array([2, 0, 1, 2], dtype=np.uint16),
        mask_ids=np.array([[0], [1], [1], [0]], dtype=np.uint16),
    )
    codebook = Codebook(np.array([[1, -2], [3, 4], [-5, 6]], dtype=np.int8), 0.5)
    tensors = {"bn.weight": np.array([1, 2, 3], dtype=np.float32), "bn.steps": np.array(7, dtype=np.int64)}
    return CompressedModel(recipe, (layer,), {"c": codebook}, tensors)


def vector_file() -> bytes:
    """The bytes the specification shows."""
    prefix, data = (bytes.fromhex(block) for block in re.findall(r"```hex\n(.*?)```", VECTORS, re.S))
    (table,) = re.findall(r"```json\n(.*?)\n```", VECTORS, re.S)
    (spaces,) = re.findall(r"followed by (\d+) spaces", VECTORS)
    return prefix + table.encode() + b" " * int(spaces) + data


@pytest.mark.parametrize("row", rows("| bits |"))
def test_bit_packing(row: list[str]) -> None:
    bits, values, packed = int(row[0]), numbers(row[1]), bytes.fromhex(row[2])
    assert pack(np.array(values, dtype=np.uint32), bits).tobytes() == packed
    assert unpack(np.frombuffer(packed, np.uint8), bits, len(values)).tolist() == values


@pytest.mark.parametrize("row", rows("| pattern |"))
def test_mask_ids(row: list[str]) -> None:
    mask = Pattern.parse(row[0]).unrank(np.array([int(row[1])]))
    assert np.nonzero(mask)[0].tolist() == numbers(row[2])


def test_the_vector_file_is_what_is_written() -> None:
    data = vector_file()
    assert data == to_bytes(vector_model())
    assert f"{len(data)} bytes" in VECTORS
    assert hashlib.sha256(data).hexdigest() in VECTORS


def test_the_vector_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vector.mvq"
    path.write_bytes(vector_file())
    assert_same(vector_model(), read(path))
    assert "((-2.5, 0), (0, -1), (0, -2.5))" in VECTORS
    with open_file(path) as file:
        assert file.dense_weight("c").reshape(3, 2).tolist() == [[-2.5, 0], [0, -1], [0, -2.5]]


def test_streams_errors_and_limits_are_those_of_the_code() -> None:
    streams = re.findall(r"^\| `([a-z0-9.]+)` \| `([A-Z0-9]+)` \|", TEXT, re.M)
    assert dict(streams) == {name: dtype for name, (dtype, _) in layout.STREAM_DTYPES.items()}
    named = re.findall(r"^\| `(\w+Error)` \|", TEXT, re.M)
    assert sorted(named) == sorted(error.__name__ for error in errors.FormatError.__subclasses__())
    limits = TEXT[TEXT.index("## 7.") : TEXT.index("## 8.")]
    for limit in (
        f"| {layout.MAX_HEADER_BYTES} bytes |",
        f"opening brackets) | {layout.MAX_VALUES} |",
        f"| rows of a table; tensors | {layout.MAX_ROWS} |",
        f"| {layout.MAX_NAME}; {layout.MAX_NAMES_TOTAL} |",
        f"| {MAX_CODEWORDS}; {MAX_D}; {MAX_GROUP} |",
        f"| {layout.MAX_DIM}; {layout.MAX_ELEMENTS} |",
        f"dense pattern) | {layout.MAX_FREE_SUBVECTORS} |",
    ):
        assert limit in limits
    assert f"At most {layout.MAX_NESTING} levels deep" in TEXT
    assert f"version {layout.VERSION}\n" in TEXT
