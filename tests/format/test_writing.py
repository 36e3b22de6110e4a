"""Writing is all or nothing, and refuses what a file cannot hold."""

from __future__ import annotations

import math
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_samples import assert_same, int8_layer, model_of, small_model, vq_layer

from mvq.compressed import DenseLayer
from mvq.errors import ConfigError, FileError, MvqError, ShapeError, StreamError
from mvq.format import read, to_bytes, write

OLD = b"what was there before"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "dir" / "model.mvq"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == OLD
    assert os.listdir(path.parent) == [path.name]


def raising(error: BaseException):
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def test_a_file_is_replaced(old: Path) -> None:
    n_bytes = write(small_model(), old)
    assert old.read_bytes() == to_bytes(small_model())
    assert n_bytes == old.stat().st_size
    assert os.listdir(old.parent) == [old.name]


def test_the_umask_decides_who_may_read(old: Path) -> None:
    before = os.umask(0o027)
    try:
        write(small_model(), old)
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_links_are_followed(old: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.mvq"
    link.symlink_to(old)
    write(small_model(), link)
    assert link.is_symlink()
    assert_same(small_model(), read(old))


def test_a_name_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".mvq")
    write(small_model(), path)
    assert_same(small_model(), read(path))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        (OSError(28, "No space left on device"), FileError, "No space left on device"),
        (OSError("odd"), FileError, "odd"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (MemoryError(), MemoryError, None),
    ],
)
def test_failures_leave_the_old_file(call, fault, error, reason, old: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, call, raising(fault))
    with pytest.raises(error) as caught:
        write(small_model(), old)
    monkeypatch.undo()
    assert_untouched(old)
    if reason:
        assert str(caught.value) == (
            f"cannot write {str(old)!r}: {reason}; nothing was changed, choose a directory that exists, is writable "
            f"and has {len(to_bytes(small_model()))} bytes free"
        )


def run_python(code: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


PRELUDE = "import sys; sys.path.insert(0, sys.argv[1]); import format_samples; from mvq.format import write\n"


def test_disk_full(old: Path) -> None:
    """The system itself refuses to write more than 1 KB to a file."""
    code = PRELUDE + (
        "import resource, mvq\n"
        "model = format_samples.small_model()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try: write(model, sys.argv[2])\n"
        "except mvq.MvqError as error: print(type(error).__name__, error)\n"
    )
    out, err = run_python(code, old).communicate(timeout=120)
    assert out == (
        f"FileError cannot write {str(old)!r}: File too large; nothing was changed, choose a directory that exists, is "
        f"writable and has {len(to_bytes(small_model()))} bytes free\n"
    ), err
    assert_untouched(old)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle(number: signal.Signals, old: Path) -> None:
    code = PRELUDE + (
        # A shell's background job starts with the interrupt ignored.
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "fsync = os.fsync\n"
        "def slow(fd):\n"
        "    fsync(fd)\n"
        "    print(os.listdir(os.path.dirname(sys.argv[2])), flush=True)\n"
        "    time.sleep(60)\n"
        "os.fsync = slow\n"
        "write(format_samples.small_model(), sys.argv[2])\n"
    )
    process = run_python(code, old)
    assert process.stdout is not None
    assert process.stdout.readline().count(".tmp") == 1
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert old.read_bytes() == OLD
    # Only a kill that the program cannot see leaves the temporary file behind.
    assert len(os.listdir(old.parent)) == (2 if number == signal.SIGKILL else 1)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none/model.mvq", "No such file or directory"),
        ("dir/model.mvq/inside.mvq", "Not a directory"),
        ("dir", "Is a directory"),
    ],
)
def test_places_that_cannot_be_written(path: str, reason: str, old: Path) -> None:
    target = old.parent.parent / path
    with pytest.raises(FileError) as caught:
        write(small_model(), target)
    assert str(caught.value) == (
        f"cannot write {str(target)!r}: {reason}; nothing was changed, choose a directory that exists, is writable and "
        f"has {len(to_bytes(small_model()))} bytes free"
    )
    assert_untouched(old)
    assert os.listdir(old.parent.parent) == ["dir"]


def test_unwritable_directory(old: Path, monkeypatch) -> None:
    if os.geteuid() == 0:
        # The superuser may write anywhere, so the system's answer is played.
        monkeypatch.setattr(os, "open", raising(PermissionError(13, "Permission denied")))
    else:
        old.parent.chmod(0o500)
    with pytest.raises(FileError, match=r"^cannot write .*: Permission denied; nothing was changed"):
        write(small_model(), old)
    monkeypatch.undo()
    old.parent.chmod(0o700)
    assert_untouched(old)


def test_a_directory_that_cannot_be_flushed_is_no_failure(old: Path, monkeypatch) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write(small_model(), old)
    assert_same(small_model(), read(old))


def test_writers_at_once_do_not_mix(old: Path, rng) -> None:
    models = [model_of(rng, [vq_layer(rng, f"m{i}", (16, 64), "4:16", 16, 9)]) for i in range(4)]
    threads = [threading.Thread(target=write, args=(model, old)) for model in models for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert old.read_bytes() in [to_bytes(model) for model in models]
    assert os.listdir(old.parent) == [old.name]


def _mutated_layer(rng: np.random.Generator):
    layer = vq_layer(rng, "x", (4, 2), "1:2", 2, 3)
    layer.assignments[0] = 9
    return layer


REFUSED: list[tuple[str, Any, type[MvqError], str]] = [
    (
        "dtype",
        lambda rng: model_of(rng, [], {"t": np.zeros(2, np.complex64)}),
        ShapeError,
        "tensor 't': dtype complex64 cannot be stored; convert it to one of bool, float16, float32, float64, int16, "
        "int32, int64, int8, uint8",
    ),
    (
        "tensor name",
        lambda rng: model_of(rng, [], {3: np.zeros(2)}),
        ShapeError,
        "tensor 3: its name is not a string",
    ),
    (
        "provenance key",
        lambda rng: model_of(rng, [], provenance={"a": {1: 2}}),
        ConfigError,
        "provenance['a']: key 1 is not a string",
    ),
    (
        "provenance value",
        lambda rng: model_of(rng, [], provenance={"a": [1, math.nan]}),
        ConfigError,
        "provenance['a'][1]: nan is not a JSON value; use strings, finite numbers of up to 18 digits, booleans, None, "
        "lists and dictionaries",
    ),
    (
        "provenance number",
        lambda rng: model_of(rng, [], provenance={"n": 10**18}),
        ConfigError,
        "provenance['n']: 1000000000000000000 is not a JSON value; use strings, finite numbers of up to 18 digits, "
        "booleans, None, lists and dictionaries",
    ),
    (
        "layer twice",
        lambda rng: model_of(rng, [int8_layer(rng, "x", (1, 1)), int8_layer(rng, "x", (1, 1))]),
        ShapeError,
        "the model does not fit the file format: header: layer 'x' appears twice",
    ),
    (
        "dense weight",
        lambda rng: replace(
            model_of(rng, [DenseLayer("x", "linear", "linear", (1, 2))]), tensors={"x.weight": np.zeros((2, 1))}
        ),
        ShapeError,
        "the model does not fit the file format: header: layer 'x': "
        "needs tensor 'x.weight' of shape [1, 2], got [2, 1]",
    ),
    (
        "d",
        lambda rng: model_of(rng, [vq_layer(rng, "x", (600, 1), "1:2", 512, 2)]),
        ShapeError,
        "the model does not fit the file format: header: settings[0]: d: 512 is not a whole number in 1..256",
    ),
    (
        "name",
        lambda rng: model_of(rng, [], {"n" * 1025: np.zeros(1)}),
        ShapeError,
        "the model does not fit the file format: header: forms[0][0]: "
        "name: 1025 characters, more than the limit of 1024",
    ),
    (
        "header too long",
        lambda rng: model_of(rng, [], provenance={"notes": "x" * (1 << 24)}),
        ShapeError,
        "the model does not fit the file format: header: N bytes, more than the limit of 16777216",
    ),
    (
        "sse",
        lambda rng: model_of(rng, [vq_layer(rng, "x", (4, 2), "1:2", 2, 3, total_sse=math.inf)]),
        StreamError,
        "layer 'x': total_sse is inf; it must be finite, or NaN if unknown",
    ),
    (
        "index",
        lambda rng: model_of(rng, [_mutated_layer(rng)]),
        StreamError,
        "layer 'x': index 9 is not in 0..2",
    ),
]


@pytest.mark.parametrize(("make", "error", "text"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_refused(make, error: type[MvqError], text: str, rng, old: Path) -> None:
    with pytest.raises(error) as caught:
        write(make(rng), old)
    # The length of a whole header depends on the recipe's fields.
    assert re.sub(r"header: \d{8} bytes", "header: N bytes", str(caught.value)) == text
    assert_untouched(old)


def test_arrays_of_any_layout_are_stored(old: Path, rng) -> None:
    tensors = {
        "t": np.arange(6.0).reshape(2, 3).T,
        "big": np.arange(3, dtype=">i4"),
        "scalar": np.float32(2).reshape(()),
    }
    write(model_of(rng, [], tensors, provenance={"tuple": (1, np.float64(0.5))}), old)
    found = read(old)
    assert found.tensors["t"].tolist() == tensors["t"].tolist()
    assert found.tensors["big"].tolist() == [0, 1, 2]
    assert found.tensors["scalar"].shape == ()
    assert found.provenance == {"tuple": [1, 0.5]}
