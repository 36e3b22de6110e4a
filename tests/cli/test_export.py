"""`mvq export`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

COMPRESS = ("compress", "tinycli:net", "-o", "net.mvq", "--set", "n_codewords=16", "--device", "cpu")


@pytest.fixture
def file(mvq, workdir: Path) -> Path:
    result = mvq(*COMPRESS)
    assert result.exit_code == 0, result.output
    return workdir / "net.mvq"


def test_onnx_and_own_file(mvq, file: Path, workdir: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from mvq.accel.network import load

    arguments = ("--model", "tinycli:net", "-d", "tinycli:data", "--onnx", "net.onnx", "-o", "int.mvq")
    done = mvq("export", file, *arguments, "--psum-bits", 24, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["files"] == {name: (workdir / name).stat().st_size for name in ("net.onnx", "int.mvq")}
    assert shown["operations"] == {"average_pool": 1, "conv": 2, "dequantize": 1, "linear": 1, "reshape": 1}
    network = load(workdir / "int.mvq")
    assert network.psum_bits == shown["psum_bits"] == 24
    assert [layer.name for layer in network.weights.vq_layers] == ["3", "7"]
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(workdir / "net.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {session.get_inputs()[0].name: x})[0], network.run(x))

    table = mvq("export", file, *arguments, "--psum-bits", 24, "--device", "cpu")
    assert table.exit_code == 0, table.output
    assert "average pool" in table.stdout
    assert f"int.mvq  {shown['files']['int.mvq']:,} bytes" in table.stdout


def test_a_model_that_is_not_compressed(mvq, workdir: Path) -> None:
    done = mvq("export", "--model", "tinycli:net", "-d", "tinycli:data", "-o", "int.mvq", "--limit", 8, "--json")
    assert done.exit_code == 0, done.output
    inspected = mvq("inspect", "int.mvq")
    assert inspected.exit_code == 0, inspected.output


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("export", "x.mvq", "-d", "tinycli:data"), 2, "say where to write, with --onnx FILE.onnx or -o FILE.mvq"),
        (("export", "x.mvq", "--onnx", "a.onnx"), 2, "say what to calibrate on, with -d DATA"),
        (("export", "-d", "tinycli:data", "--onnx", "a.onnx"), 2, "give a .mvq file, or a model with --model"),
        (
            ("export", "x.mvq", "-w", "w.pth", "-d", "tinycli:data", "--onnx", "a.onnx"),
            2,
            "a .mvq file holds its weights; leave one out",
        ),
        (
            ("export", "--model", "tinycli:net", "-d", "tinycli:data", "--onnx", "no/a.onnx"),
            1,
            "there is no folder 'no'; make it first",
        ),
        (
            ("export", "--model", "tinycli:net", "-d", "tinycli:data", "--onnx", "a.onnx", "--calibration", "kl"),
            1,
            "calibration 'kl' is not known; known are mse, max, percentile",
        ),
    ],
)
def test_wrong_input(mvq, workdir: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = mvq(*arguments)
    assert done.exit_code == code
    assert text in " ".join(done.output.replace("│", " ").split())


def test_images_are_computed_on_a_machine(mvq, file: Path, workdir: Path) -> None:
    done = mvq("export", file, "--model", "tinycli:net", "-d", "tinycli:data", "-o", "int.mvq", "--device", "cpu")
    assert done.exit_code == 0, done.output
    Path("machine.toml").write_text('name = "mine"\nrows = 8\ncols = 32\n')
    arguments = ("int.mvq", "--arch", "machine.toml", "-d", "tinycli:data", "--check")
    shown = json.loads(mvq("run", *arguments, "--json").stdout)
    assert shown["results_that_differ"] == 0
    assert 0 <= shown["top1"] <= 100
    assert shown["macs_per_image"] > 0
    assert shown["weight_word_bytes"] > 0
    table = mvq("run", *arguments)
    assert table.exit_code == 0, table.output
    assert "0 of " in table.stdout
    wrong = mvq("run", "int.mvq", "--arch", "ews-p-16", "-d", "tinycli:data")
    assert wrong.exit_code == 1
    assert "its codewords are masked, the machine's are packed" in wrong.output
    assert mvq("run", "int.mvq").exit_code == 2
