"""Damaged and malicious files: each fault has its own error and its own words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from format_samples import assert_same, model_of, vq_layer
from hostile_files import CASES, DAMAGED, GOOD

from mvq.errors import (
    FileError,
    FormatError,
    OversizedError,
    StreamError,
    TruncatedError,
)
from mvq.format import open_file, read, to_bytes
from mvq.format.container import build
from mvq.format.layout import MAX_HEADER_BYTES


@pytest.mark.parametrize(("change", "error", "text"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_fault(change, error: type[FormatError], text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.mvq"
    path.write_bytes(change(GOOD))
    with pytest.raises(FormatError) as caught:
        read(path)
    assert str(caught.value) == f"file {str(path)!r}: {text}"
    assert type(caught.value) is error


def test_every_kind_of_format_error_has_a_file() -> None:
    assert {case[2] for case in CASES} == set(FormatError.__subclasses__())


def test_any_flipped_bit_is_found(tmp_path: Path, rng) -> None:
    """Not one byte of the file is free: padding, names, digests, streams."""
    layers = [vq_layer(rng, "c", (3, 1, 1, 1), "1:2", 2, 3)]
    model = model_of(rng, layers, {"b": rng.standard_normal(1)})
    data = bytearray(to_bytes(model))
    path = tmp_path / "bit.mvq"
    path.write_bytes(data)
    accepted = []
    with open(path, "r+b", buffering=0) as file:
        for at in range(len(data)):
            for bit in range(8):
                file.seek(at)
                file.write(bytes([data[at] ^ 1 << bit]))
                try:
                    read(path)
                except FormatError:
                    continue
                accepted.append((at, bit))
            file.seek(at)
            file.write(data[at : at + 1])
    assert accepted == []
    assert_same(model, read(path))


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "cut.mvq"
    path.write_bytes(GOOD)
    for length in reversed(range(len(GOOD))):
        os.truncate(path, length)
        with pytest.raises(TruncatedError):
            read(path)


def test_a_file_cut_while_open(tmp_path: Path) -> None:
    path = tmp_path / "cut.mvq"
    path.write_bytes(GOOD)
    with open_file(path) as file:
        os.truncate(path, len(GOOD) - 1)
        with pytest.raises(TruncatedError) as caught:
            file.read()
    assert str(caught.value) == (
        f"file {str(path)!r}: 1 bytes are missing at its end, it became shorter while open{DAMAGED}"
    )


def test_faults_of_streams_come_on_use(tmp_path: Path) -> None:
    path = tmp_path / "late.mvq"
    path.write_bytes({case[0]: case[1] for case in CASES}["assignment range"](GOOD))
    with open_file(path) as file:
        assert file.dense_weight("b.conv").shape == (5, 2, 1, 1)
        for use in (file.layer, file.dense_weight):
            with pytest.raises(StreamError, match=r"layer 'a.conv': assignments: entry 0 is 7, not in 0..4"):
                use("a.conv")
        with pytest.raises(StreamError):
            file.dense_weights()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "No such file or directory; check the path"),
        (lambda path: path.mkdir(), "it is not a regular file; check the path"),
        (lambda path: os.mkfifo(path), "it is not a regular file; check the path"),
    ],
)
def test_what_cannot_be_opened(make, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.mvq"
    make(path)
    with pytest.raises(FileError) as caught:
        open_file(path)
    assert str(caught.value) == f"cannot open {str(path)!r}: {text}"


def test_what_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.mvq"
    path.write_bytes(GOOD)

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(FileError) as caught:
        read(path)
    assert str(caught.value) == f"cannot read {str(path)!r}: Input/output error"


def test_reads_that_return_less_than_asked(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.mvq"
    path.write_bytes(GOOD)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, at: pread(descriptor, min(count, 7), at))
    assert to_bytes(read(path)) == GOOD


def test_systems_without_positioned_reads(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.mvq"
    path.write_bytes(GOOD)
    monkeypatch.delattr(os, "pread")
    assert to_bytes(read(path)) == GOOD


def test_a_header_beyond_the_limit_is_not_written() -> None:
    with pytest.raises(OversizedError) as caught:
        build('"' * (MAX_HEADER_BYTES // 2), {})
    assert str(caught.value) == "header: 16777328 bytes, more than the limit of 16777216"
