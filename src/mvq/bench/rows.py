"""The table of finished rows: one CSV, and the per-image results beside it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.errors import DataError

Row = dict[str, str]

_FIRST = ("key", "setup", "network", "method", "size_ratio", "seed", "pattern", "d", "n_codewords", "n_weights")
_SIZE = ("target_bits", "bits", "bytes", "ratio", "model_bytes", "macs_dense", "macs_executed", "metric")
_SET = ("n", "dense_percent", "before_percent", "percent", "agreement_percent")
_LAST = ("important_sse", "total_sse", "sparse_steps", "finetune_steps", "sparse_seconds", "seconds")
_FACTS = ("device", "hardware", "mvq", "torch", "error")


def columns(sets: Iterable[str]) -> list[str]:
    """Names of the CSV's columns; `sets` are the evaluation sets."""
    return [*_FIRST, *_SIZE, *(f"{name}_{what}" for name in sets for what in _SET), *_LAST, *_FACTS]


class Rows:
    """Finished rows by key, written after each addition.

    Args:
        path: of the CSV file; correctness by image, in packed bits, is kept in `.npz` of the same name.
        sets: names of the evaluation sets.

    Raises:
        DataError: if the file exists and is not such a table.
    """

    def __init__(self, path: Path, sets: Sequence[str]) -> None:
        self.path = path
        self.bits_path = path.with_suffix(".npz")
        self.columns = columns(sets)
        self.rows: dict[str, Row] = {}
        self.bits: dict[str, NDArray[np.uint8]] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if "key" not in (reader.fieldnames or ()):
                    raise DataError(f"rows {str(path)!r}: it has no column 'key'; name another file, or remove it")
                self.rows = {row["key"]: {c: row.get(c) or "" for c in self.columns} for row in reader}
        if self.bits_path.is_file():
            with np.load(self.bits_path, allow_pickle=False) as arrays:
                self.bits = {name: arrays[name] for name in arrays.files}

    def done(self, key: str) -> bool:
        """Whether the row was measured; a failed one was not."""
        return key in self.rows and not self.rows[key]["error"]

    def add(self, row: Mapping[str, Any], correct: Mapping[str, NDArray[np.bool_]]) -> None:
        """Add a row in place of an older one of its network, size, method and seed; write both files atomically."""
        key = str(row["key"])
        text = {c: _text(row.get(c)) for c in self.columns}
        self.rows = {k: old for k, old in self.rows.items() if _place(old) != _place(text)}
        self.rows[key] = text
        for name, values in correct.items():
            self.bits[f"{key}.{name}"] = np.packbits(values)
        # Per-image results first: a row without them would count as done.
        self._write_bits()
        self._write_rows()

    def correct(self, row: Row, name: str) -> NDArray[np.bool_] | None:
        """Correctness by image of a row on an evaluation set, where it is known."""
        packed = self.bits.get(f"{row['key']}.{name}")
        return None if packed is None else np.unpackbits(packed, count=int(row[f"{name}_n"])).astype(bool)

    def _write_rows(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(self.rows.values(), key=_order))
        partial.replace(self.path)

    def _write_bits(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: array for name, array in self.bits.items() if name.split(".")[0] in self.rows}
        partial = self.bits_path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **kept)  # pyright: ignore[reportArgumentType]
        partial.replace(self.bits_path)


def _place(row: Row) -> tuple[str, ...]:
    return row["network"], row["size_ratio"], row["method"], row["seed"]


def _order(row: Row) -> tuple[Any, ...]:
    return row["network"], float(row["size_ratio"]), row["method"], int(row["seed"]), row["key"]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
