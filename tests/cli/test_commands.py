from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mvq as package
from mvq.allocate import achieved_bits
from mvq.compressed import VQLayer
from mvq.format import open_file

LAYER_KEYS = [
    "name",
    "shape",
    "pattern",
    "d",
    "codewords",
    "n_codewords",
    "n_sub",
    "bits_assign",
    "bits_mask",
    "bits_codebook",
    "masked_sse",
    "total_sse",
]
CONVENTIONS = ["compressed_convs", "plus_first_conv", "plus_classifier", "whole_model", "on_disk"]
COMPRESS = ("compress", "tinycli:net", "-o", "net.mvq", "--set", "n_codewords=16", "--device", "cpu")


@pytest.fixture
def file(mvq, workdir: Path) -> Path:
    result = mvq(*COMPRESS)
    assert result.exit_code == 0, result.output
    return workdir / "net.mvq"


def test_round_trip(mvq, workdir: Path) -> None:
    done = mvq(*COMPRESS, "-d", "tinycli:data", "--sparse-epochs", 2, "--finetune-epochs", 3, "--lr", 0.01, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert list(made["accuracy"]) == ["dense", "pruned", "compressed", "finetuned"]
    assert made["bytes"] == (workdir / "net.mvq").stat().st_size == made["sizes"]["on_disk"]["bytes"]
    assert list(made["sizes"]) == CONVENTIONS
    # 432 weights of conv1 at 8x8 positions, 4608 of conv2 at 4x4, a quarter of which 4:16 keeps; all of fc's 4 outputs
    assert made["flops"] == {"dense": 432 * 64 + 4608 * 16 + 128, "executed": 432 * 64 + 1152 * 16 + 128}

    shown = json.loads(mvq("inspect", "net.mvq", "--json").stdout)
    assert shown["sizes"] == made["sizes"]
    assert shown["recipe"] == made["recipe"]
    assert [layer["name"] for layer in shown["layers"]] == ["3", "7"]
    assert [layer["name"] for layer in shown["other_layers"]] == ["0"]
    assert shown["provenance"]["model"] == "tinycli:net"

    measured = mvq("eval", "net.mvq", "--model", "tinycli:net", "-d", "tinycli:data", "--device", "cpu", "--json")
    assert measured.exit_code == 0, measured.output
    result = json.loads(measured.stdout)
    assert list(result)[:4] == ["task", "metric", "value", "n"]
    assert {k: result[k] for k in ("task", "metric", "value", "n")} == made["accuracy"]["finetuned"]
    assert result["n"] == 48
    assert result["value"] > 40


def test_assignments_are_learned_on_request(mvq, workdir: Path) -> None:
    def assignments(name: str) -> list[bytes]:
        with open_file(workdir / name) as found:
            return [layer.assignments.tobytes() for layer in found.read().layers if isinstance(layer, VQLayer)]

    training = ("-d", "tinycli:data", "--finetune-epochs", 3, "--lr", 0.01)
    found = {}
    for name, options in {"fixed": (), "learned": ("--learn-assignments",)}.items():
        done = mvq(*COMPRESS, *training, *options, "-o", f"{name}.mvq")
        assert done.exit_code == 0, done.output
        found[name] = assignments(f"{name}.mvq")
    assert found["fixed"] != found["learned"]
    for name, options in {"on": (), "further": ("--learn-assignments",)}.items():
        command = ("finetune", "fixed.mvq", "--model", "tinycli:net", "-d", "tinycli:data", "--epochs", 3, "--lr", 0.01)
        done = mvq(*command, "--device", "cpu", *options, "-o", f"{name}.mvq")
        assert done.exit_code == 0, done.output
        found[name] = assignments(f"{name}.mvq")
    assert found["on"] == found["fixed"] != found["further"]


def test_layers_are_allocated_for_a_ratio(mvq, workdir: Path) -> None:
    options = ("--ratio", 5, "--finetune-epochs", 2, "--learn-assignments", "--lr", 0.01, "--json")
    done = mvq(*COMPRESS, "-d", "tinycli:data", "-b", 16, *options)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert list(made["accuracy"]) == ["dense", "compressed", "finetuned"]
    patterns = {dict(changes).get("pattern") for changes in made["recipe"]["overrides"].values()}
    assert "1:1" in patterns
    assert 5 <= achieved_bits(import_module("tinycli").net(), made["recipe"]).ratio < 5.5
    assert made["flops"]["executed"] > 0.8 * made["flops"]["dense"]


def test_layers_are_allocated_for_less_work(mvq, workdir: Path) -> None:
    done = mvq(*COMPRESS, "-d", "tinycli:data", "-b", 16, "--ratio", 5, "--max-macs", 0.6, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["flops"]["executed"] < 0.7 * made["flops"]["dense"]
    refused = mvq(*COMPRESS, "--max-macs", 0.6)
    assert refused.exit_code == 2
    assert "'--max-macs': it needs --ratio" in refused.output


def test_inspect_json(mvq, file: Path) -> None:
    shown = json.loads(mvq("inspect", file, "--json").stdout)
    conv, fc = shown["layers"]
    assert list(conv) == LAYER_KEYS
    # 2 groups of 16 channels at 144 positions: 4-bit indices, 11-bit mask ids, 16 codewords of 16 bytes
    assert {k: conv[k] for k in LAYER_KEYS[:10]} == {
        "name": "3",
        "shape": [32, 16, 3, 3],
        "pattern": "4:16",
        "d": 16,
        "codewords": "masked",
        "n_codewords": 16,
        "n_sub": 288,
        "bits_assign": 288 * 4,
        "bits_mask": 288 * 11,
        "bits_codebook": 16 * 16 * 8,
    }
    assert 0 < conv["masked_sse"] < conv["total_sse"]
    assert fc["shape"] == [4, 32]
    assert shown["other_layers"] == [
        {"name": "0", "shape": [16, 3, 3, 3], "treatment": "int8", "bits": 8 * 432 + 32 * 16}
    ]
    assert all(list(size) == ["bytes", "ratio"] for size in shown["sizes"].values())


def test_inspect_for_people(mvq, file: Path) -> None:
    result = mvq("inspect", file)
    assert result.exit_code == 0
    for text in ("32x16x3x3", "4:16", "1,152", "3,168", "int8", "tinycli:net", *CONVENTIONS):
        assert text in result.stdout
    assert result.stderr == ""


def test_shared_codebook_is_shown_once(mvq, workdir: Path) -> None:
    assert mvq(*COMPRESS, "--set", "scope=network").exit_code == 0
    shown = mvq("inspect", "net.mvq").stdout
    assert (shown.count("2,048"), shown.count("shared")) == (1, 1)


def test_compress_and_eval_for_people(mvq, workdir: Path) -> None:
    done = mvq(*COMPRESS, "--data", "tinycli:data")
    assert done.exit_code == 0, done.output
    for text in ("Accuracy", "dense", "compressed", "top1", "on_disk", "executed", "wrote net.mvq"):
        assert text in done.stdout
    shown = mvq("eval", "--model", "tinycli:net", "-d", "tinycli:data")
    assert shown.exit_code == 0
    assert "top1" in shown.stdout


def test_weights_and_seed(mvq, workdir: Path) -> None:
    import tinycli  # type: ignore[import-not-found]
    import torch

    state = {k: 2 * v for k, v in tinycli.net().state_dict().items()}
    torch.save(state, "weights.pth")
    files = []
    for name, more in (("a", ["--seed", 1]), ("b", ["--seed", 1]), ("c", ["--seed", 2]), ("d", ["-w", "weights.pth"])):
        assert mvq(*COMPRESS[:3], f"{name}.mvq", *COMPRESS[4:], *more).exit_code == 0
        files.append(Path(f"{name}.mvq").read_bytes())
    assert files[0] == files[1] != files[2]
    stored = json.loads(mvq("inspect", "d.mvq", "--json").stdout)
    assert stored["provenance"]["weights"] == "weights.pth"
    assert stored["recipe"]["seed"] == 0


def test_number_of_classes_is_stored(mvq, workdir: Path) -> None:
    assert mvq(*COMPRESS, "--num-classes", 6).exit_code == 0
    result = mvq("eval", "net.mvq", "--model", "tinycli:net", "-d", "tinycli:data", "--json")
    assert result.exit_code == 0, result.output


def test_preprocessing_is_stored_and_used(mvq, workdir: Path) -> None:
    import numpy as np

    from mvq.cli.models import load
    from mvq.cli.options import DataOptions

    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    np.savez("data.npz", x=images, y=np.arange(8) % 4)
    assert mvq(*COMPRESS, "-d", "data.npz", "--preprocessing", "cifar10").exit_code == 0
    facts = json.loads(mvq("inspect", "net.mvq", "--json").stdout)["provenance"]
    assert facts["preprocessing"]["mean"] == [0.4914, 0.4822, 0.4465]
    result = json.loads(mvq("eval", "net.mvq", "--model", "tinycli:net", "-d", "data.npz", "--json").stdout)
    assert result["value"] == facts["result"]["value"]
    options = DataOptions(data="data.npz", batch_size=8)
    first = next(iter(load(options, "val", stored=facts["preprocessing"])))[0]
    mean, std = (np.array(facts["preprocessing"][k])[:, None, None] for k in ("mean", "std"))
    np.testing.assert_allclose(first, (images.transpose(0, 3, 1, 2) / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    # What the user says goes before what the file says.
    chosen = DataOptions(data="data.npz", batch_size=8, preprocessing="unit")
    first = next(iter(load(chosen, "val", stored=facts["preprocessing"])))[0]
    np.testing.assert_allclose(first, images.transpose(0, 3, 1, 2) / 255, rtol=1e-5)
    assert mvq(*COMPRESS, "-d", "data.npz").exit_code == 0
    facts = json.loads(mvq("inspect", "net.mvq", "--json").stdout)["provenance"]
    assert facts["preprocessing"]["std"] == [1.0]


def test_version(mvq) -> None:
    assert mvq("--version").stdout == f"mvq {package.__version__}\n"


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ([], "recipes"),
        (["compress"], "mvq compress resnet18"),
        (["eval"], "mvq eval r18.mvq"),
        (["inspect"], "mvq inspect r18.mvq"),
        (["recipes"], "mvq recipes mvq-22x > my.toml"),
        (["demo"], "mvq demo -o mvq-demo"),
    ],
)
def test_help(mvq, command: list[str], example: str) -> None:
    result = mvq(*command, "--help")
    assert result.exit_code == 0
    assert example in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compress", "-o", "x.mvq"], "say which model to compress"),
        (["compress", "resnet18", "--model", "resnet18", "-o", "x.mvq"], "give the model once, not twice"),
        (["compress", "resnet18"], "say where to write, with -o FILE.mvq"),
        (["compress", "resnet18", "-o", "x.mvq", "--finetune-epochs", "1"], "training needs --data"),
        (["eval", "x.mvq"], "say what to measure on, with -d DATA"),
        (["eval", "-d", "x"], "give a .mvq file, or a model with --model"),
        (["eval", "x.mvq", "-d", "x", "-w", "y"], "a .mvq file holds its weights; leave one out"),
        (["compress", "resnet18", "-o", "x.mvq", "--colour"], "No such option: --colour"),
        (["squeeze"], "No such command 'squeeze'"),
    ],
)
def test_usage_errors(mvq, arguments: list[str], text: str) -> None:
    result = mvq(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert text in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["compress", "resnet19", "-o", "x.mvq", "--recipe", "huge"],
            "recipe 'huge' is neither a preset nor a .toml file; presets are mvq-16x, mvq-19x, mvq-22x, mvq-25x, "
            "mvq-28x, mvq-16x-packed, mvq-22x-packed, mvq-25x-packed, mvq-maskrcnn, mvq-deeplab, vq-22x",
        ),
        (
            ["compress", "tinycli:net", "-o", "no/where/x.mvq"],
            "--output 'no/where/x.mvq': there is no folder 'no/where'; make it first",
        ),
        (
            ["compress", "tinycli:net", "-o", "x.mvq", "--device", "abacus"],
            "--device 'abacus' is not a device; write cpu, cuda or cuda:0",
        ),
        (
            ["compress", "tinycli:net", "-o", "x.mvq", "--device", "cuda:99"],
            "--device 'cuda:99': there are {cuda} CUDA devices; use cpu",
        ),
        (
            ["eval", "--model", "tinycli:net", "-d", "tinycli:once"],
            "data 'tinycli:once' gave an iterator, which ends after one pass; return a list or a loader instead",
        ),
        (["compress", "tinycli:nets", "-o", "x.mvq"], "'tinycli:nets': module 'tinycli' has no 'nets'"),
        (
            ["compress", "tinycli:net", "-o", "x.mvq", "--set", "fd*:d=32"],
            "override 'fd*' matches none of the 3 layers; names look like '0', '3', '7'",
        ),
        (["recipes", "mvq-1x"], None),
        (["inspect", "none.mvq"], None),
        (["inspect", "tinycli.py"], None),
        (["eval", "--model", "tinycli:net", "-d", "nowhere"], None),
    ],
)
def test_input_errors(mvq, workdir: Path, arguments: list[str], text: str | None) -> None:
    import torch

    result = mvq(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mvq: error: ")
    assert "Traceback" not in result.stderr
    if text is not None:
        assert result.stderr == f"mvq: error: {text.format(cuda=torch.cuda.device_count())}\n"


def test_code_that_only_a_file_names_is_not_run(mvq, file: Path) -> None:
    result = mvq("eval", file, "-d", "tinycli:data")
    assert result.exit_code == 1
    assert result.stderr == (
        f"mvq: error: file {str(file)!r} names the model 'tinycli:net', whose code would be run; "
        "if you trust it, pass --model tinycli:net\n"
    )


def test_file_that_names_no_model(mvq, workdir: Path) -> None:
    import tinycli  # type: ignore[import-not-found]

    model = tinycli.net()
    package.compress(model, package.Recipe(n_codewords=8))
    package.save(model, "net.mvq")
    result = mvq("eval", "net.mvq", "-d", "tinycli:data")
    assert result.stderr == "mvq: error: file 'net.mvq' names no model; say which with --model\n"


def test_debug_shows_the_error_itself(mvq, workdir: Path) -> None:
    result = mvq("--debug", "recipes", "mvq-1x")
    assert isinstance(result.exception, package.MvqError)


def test_interrupt(mvq, workdir: Path) -> None:
    result = mvq("compress", "tinycli:broken", "-o", "x.mvq")
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "mvq: interrupted\n")


def test_random_weights_are_remarked_on(mvq, workdir: Path) -> None:
    result = mvq("compress", "squeezenet1_1", "-o", "x.mvq", "--set", "max_iters=1", "--set", "n_codewords=4")
    assert result.exit_code == 0
    assert result.stderr == "mvq: no --weights: the model has random weights\n"


def test_numbers_that_json_lacks_are_null(capsys) -> None:
    from mvq.cli.output import print_json

    print_json({"a": [math.nan, math.inf, 1.5], "b": {"c": -math.inf}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "b": {"c": None}}


def test_as_a_program(workdir: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONWARNINGS": "error"}
        return subprocess.run([sys.executable, "-m", "mvq", *arguments], capture_output=True, text=True, env=env)

    done = run("recipes", "mvq-22x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("schema_version = 1\n")
    done = run("inspect", "none.mvq")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mvq: error: ")
    assert run("inspect").returncode == 2
