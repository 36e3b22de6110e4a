"""The three tasks from the command line to a file and back: measure, prune, train, cluster, fine-tune, load."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))

import layouts

import mvq as package
from mvq import outputs
from mvq.cli.options import TrainingOptions
from mvq.cli.training import arguments
from mvq.nn.parametrizations import NMMask

SOURCE = """
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

def detector(num_classes=91):
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, 4, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()
    )
    backbone.out_channels = 16
    return MaskRCNN(
        backbone, min_size=64, max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 1), mask_roi_pool=MultiScaleRoIAlign(["0"], 4, 1),
        box_head=TwoMLPHead(16 * 9, 32), box_predictor=FastRCNNPredictor(32, num_classes),
        mask_head=MaskRCNNHeads(16, (16,), 1), mask_predictor=MaskRCNNPredictor(16, 16, num_classes),
        rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_train=20, rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=20, box_score_thresh=0.0, box_detections_per_img=5,
    )

class segmenter(nn.Module):
    def __init__(self, num_classes=21):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier, self.aux = nn.Conv2d(16, num_classes, 3, padding=1), nn.Conv2d(16, num_classes, 1)

    def forward(self, x):
        features = self.body(x)
        return {"out": self.classifier(features), "aux": self.aux(features)}
"""
FEW = ("--set", "n_codewords=16", "--set", "max_iters=2", "--device", "cpu", "-b", 2)


def values(result: dict) -> dict:
    return {k: v for k, v in result.items() if k not in ("seconds", "device")}


def compress_and_measure(mvq, command: list, task: str, data: Path, model: list | None = None) -> dict:
    """Compress with training and again measure the file; both must agree."""
    command = [*command, "--task", task, "-d", data, "-o", "net.mvq", "--json"]
    done = mvq("compress", *command, "--sparse-epochs", 1, "--finetune-epochs", 1, "--max-steps", 2)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert list(made["accuracy"]) == ["dense", "pruned", "compressed", "finetuned"]
    again = mvq("eval", "net.mvq", "-d", data, "-b", 2, "--device", "cpu", "--json", *(model or []))
    assert again.exit_code == 0, again.output
    assert values(json.loads(again.stdout)) == pytest.approx(made["accuracy"]["finetuned"])
    return made


@pytest.fixture
def models(workdir: Path) -> Iterator[Path]:
    """The current folder with the module `tinymodels`."""
    (workdir / "tinymodels.py").write_text(SOURCE)
    yield workdir
    sys.modules.pop("tinymodels", None)


@pytest.fixture
def coco(models: Path) -> Path:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    for split in ("train", "val"):
        layouts.coco(models / "coco", split, n=4)
    return models / "coco"


def test_detection(mvq, coco: Path) -> None:
    command = ["tinymodels:detector", *FEW, "--image-size", 48, "--sparse-method", "asp"]
    made = compress_and_measure(mvq, command, "detection", coco, ["--model", "tinymodels:detector"])
    assert set(made["accuracy"]["dense"]) >= {"value", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75"}
    facts = json.loads(mvq("inspect", "net.mvq", "--json").stdout)["provenance"]
    assert (facts["task"], facts["image_size"]) == ("detection", 48)
    tuned = mvq(
        "finetune", "net.mvq", "--model", "tinymodels:detector", "-d", coco, "-b", 2, "--max-steps", 1, "-o", "b.mvq"
    )
    assert tuned.exit_code == 0, tuned.output
    assert "mask_ap50" in tuned.stdout


def test_segmentation(mvq, models: Path) -> None:
    for split in ("train", "val"):
        layouts.voc(models / "voc", split)
    command = ["tinymodels:segmenter", *FEW, "-r", "mvq-deeplab", "--image-size", 32, "--preprocessing", "tf"]
    command += ["--distill"]
    made = compress_and_measure(mvq, command, "segmentation", models / "voc", ["--model", command[0]])
    assert set(made["accuracy"]["dense"]) == {"task", "metric", "value", "n", "pixel_accuracy"}
    # What the file notes of the preprocessing is used again.
    facts = json.loads(mvq("inspect", "net.mvq", "--json").stdout)["provenance"]
    assert facts["preprocessing"]["std"] == [0.5, 0.5, 0.5]
    assert (facts["preprocessing"]["crop"], facts["preprocessing"]["resize"]) == (32, None)


def test_segmentation_recovers_the_classes_of_pixels(mvq, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name, real in {name: getattr(outputs, name) for name in ("drawn_cross_entropy", "divergence")}.items():

        def noted(*args: Any, name: str = name, real: Any = real) -> torch.Tensor:
            asked.append(name)
            return real(*args)

        monkeypatch.setattr(outputs, name, noted)
    layouts.voc(models / "voc", "train")
    layouts.voc(models / "voc", "val")
    command = ["tinymodels:segmenter", *FEW, "-r", "mvq-deeplab", "--image-size", 32, "--task", "segmentation"]
    done = mvq("compress", *command, "-d", models / "voc", "--recover", "-o", "net.mvq", "--json")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["accuracy"]) == ["dense", "compressed"]
    assert set(asked) == {"drawn_cross_entropy", "divergence"}


def test_distillation_keeps_the_loss_of_the_task() -> None:
    """Label smoothing, pixels that do not count, the auxiliary head."""
    batch = (torch.rand(2, 3, 5, 5), torch.tensor([[[0, 1, 2, 255, 255]] * 5] * 2))
    options = {"epochs": 1, "teacher": nn.Conv2d(3, 4, 1)}
    student = nn.Conv2d(3, 4, 1)
    objective = arguments(TrainingOptions(), "finetune", task="segmentation", **options)["objective"]
    own = package.tasks.objective("segmentation")
    wanted = 0.9 * 16 * outputs.divergence(student(batch[0]), options["teacher"](batch[0]), 4) + 0.1 * own(
        student, batch
    )
    assert torch.allclose(objective(student, batch), wanted)
    rows = (torch.rand(6, 3), torch.tensor([0, 1, 2, 3, 0, 1]))
    options["teacher"], student = nn.Linear(3, 4), nn.Linear(3, 4)
    found = [
        arguments(TrainingOptions(label_smoothing=s), "finetune", task="classification", **options)["objective"]
        for s in (0.0, 0.5)
    ]
    own = [package.tasks.objective("classification", label_smoothing=s) for s in (0.0, 0.5)]
    difference = found[1](student, rows) - found[0](student, rows)
    assert torch.allclose(difference, 0.1 * (own[1](student, rows) - own[0](student, rows)), atol=1e-6)


@pytest.mark.parametrize("name", ["pruned.safetensors", "pruned.pt"])
def test_prune_then_compress(mvq, workdir: Path, name: str) -> None:
    recipe = ["--set", "n_codewords=16", "--device", "cpu", "-d", "tinycli:data"]
    done = mvq("prune", "tinycli:net", *recipe, "--epochs", 2, "--sparse-method", "sr-ste", "-o", name, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert list(made["accuracy"]) == ["dense", "pruned"]
    # conv2 and fc: a quarter of 32 channels, all of 4 outputs; conv1 stays.
    assert made["zeros"] == pytest.approx(0.75 * 4608 / (432 + 4608 + 128))
    next_one = mvq("compress", "tinycli:net", "-w", name, *recipe, "-o", "net.mvq", "--json")
    assert next_one.exit_code == 0, next_one.output
    assert json.loads(next_one.stdout)["accuracy"]["dense"] == made["accuracy"]["pruned"]
    # The zeros give the masks back.
    import tinycli  # type: ignore[import-not-found]

    model = package.tasks.load_weights_(tinycli.net(), workdir / name)
    zeros = {n: m.weight == 0 for n, m in model.named_children() if n in ("3", "7")}
    package.prune_(model, package.Recipe(n_codewords=16))
    for layer, zero in zeros.items():
        form = model.get_submodule(layer).parametrizations["weight"][0]
        assert isinstance(form, NMMask)
        assert torch.equal(model.get_submodule(layer).weight == 0, zero)


def test_prune_for_people_and_its_errors(mvq, workdir: Path) -> None:
    done = mvq("prune", "tinycli:net", "-d", "tinycli:data", "-o", "p.pt")
    assert done.exit_code == 0, done.output
    assert "66.9% of 5,168 convolution and linear weights are zero" in done.stdout
    assert "compress it with the same recipe and --weights p.pt" in done.stdout
    wrong = mvq("prune", "tinycli:net", "-d", "tinycli:data", "-o", "p.mvq")
    assert wrong.stderr == "mvq: error: --output 'p.mvq': the name must end in .safetensors, .pt, .pth\n"
    wrong = mvq("prune", "tinycli:net", "-d", "tinycli:data", "--sparse-method", "x", "-o", "p.pt")
    assert wrong.exit_code == 1
    assert "method='x' is not one of sr-ste, asp" in wrong.stderr


def test_finetune_goes_on_and_distils(mvq, workdir: Path) -> None:
    import tinycli  # type: ignore[import-not-found]

    torch.save(tinycli.net().state_dict(), "dense.pt")
    common = ["--device", "cpu", "-d", "tinycli:data", "--json"]
    done = mvq("compress", "tinycli:net", "-w", "dense.pt", *common, "--set", "n_codewords=16", "-o", "a.mvq")
    first = json.loads(done.stdout)
    tuned = mvq(
        "finetune", "a.mvq", "--model", "tinycli:net", *common, "--epochs", 3, "--teacher", "dense.pt", "-o", "b.mvq"
    )
    assert tuned.exit_code == 0, tuned.output
    result = json.loads(tuned.stdout)
    assert list(result["accuracy"]) == ["compressed", "finetuned"]
    assert result["accuracy"]["compressed"] == first["accuracy"]["compressed"]
    measured = json.loads(mvq("eval", "b.mvq", "--model", "tinycli:net", *common).stdout)
    assert values(measured) == result["accuracy"]["finetuned"]
    facts = [json.loads(mvq("inspect", f, "--json").stdout)["provenance"] for f in ("a.mvq", "b.mvq")]
    assert facts[1] == {**facts[0], "result": result["accuracy"]["finetuned"]}
    a, b = (json.loads(mvq("inspect", f, "--json").stdout)["layers"] for f in ("a.mvq", "b.mvq"))
    assert [layer["bits_assign"] for layer in a] == [layer["bits_assign"] for layer in b]


def test_options_reach_the_training(mvq, workdir: Path, monkeypatch) -> None:
    from mvq import train

    seen = {}
    for name in ("sparse_train", "finetune"):
        real = getattr(train, name)

        def spy(*arguments, _real=real, _name=name, **options):
            seen[_name] = options
            return _real(*arguments, **options)

        monkeypatch.setattr(train, name, spy)
    common = ["compress", "tinycli:net", "-d", "tinycli:data", "-b", 16, "--set", "n_codewords=16", "-o", "a.mvq"]
    stages = ["--sparse-epochs", 1, "--finetune-epochs", 2]
    plain = mvq(*common, *stages)
    assert plain.exit_code == 0, plain.output
    # What is not given is left to the stage.
    given = {"epochs", "bn_eval", "objective", "resume", "progress"}
    assert set(seen["finetune"]) == given | {"learn_assignments"}
    assert not seen["finetune"]["learn_assignments"]
    assert set(seen["sparse_train"]) == given | {"method"}
    assert (seen["sparse_train"]["epochs"], seen["finetune"]["epochs"]) == (1, 2)
    assert seen["sparse_train"]["method"] == "sr-ste"
    options = ["--lr", 0.01, "--optimizer", "adamw", "--weight-decay", 0.1, "--ema", 0.9, "--max-steps", 2]
    options += ["--warmup-steps", 1, "--checkpoint", "state", "--distill", "--sparse-method", "asp"]
    done = mvq(*common, *stages, *options, "--no-resume")
    assert done.exit_code == 0, done.output
    for name, file in (("sparse_train", "sparse.pt"), ("finetune", "finetune.pt")):
        found = seen[name]
        assert {k: found[k] for k in ("lr", "optimizer", "weight_decay", "ema", "max_steps", "warmup_steps")} == {
            "lr": 0.01,
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "ema": 0.9,
            "max_steps": 2,
            "warmup_steps": 1,
        }
        assert found["checkpoint"] == Path("state") / file
        assert found["checkpoint"].is_file()
        assert found["resume"] is False
    assert seen["sparse_train"]["method"] == "asp"
    assert type(seen["finetune"]["objective"]).__name__ == "Distillation"


def test_compress_goes_on_from_a_checkpoint(mvq, workdir: Path, monkeypatch) -> None:
    from mvq import train

    command = ["compress", "tinycli:net", "-d", "tinycli:data", "-b", 16, "--set", "n_codewords=16", "--device", "cpu"]
    command += ["--sparse-epochs", 1, "--finetune-epochs", 2, "--lr", 0.01]
    assert mvq(*command, "-o", "whole.mvq").exit_code == 0
    steps = []
    real = train.finetune

    def stop(*arguments, **options):
        def on_step(step, loss):
            steps.append(step)
            if len(steps) == 4:
                raise KeyboardInterrupt

        return real(*arguments, **options, on_step=on_step)

    monkeypatch.setattr(train, "finetune", stop)
    assert mvq(*command, "-o", "a.mvq", "--checkpoint", "state").exit_code == 130
    done = mvq(*command, "-o", "a.mvq", "--checkpoint", "state")
    assert done.exit_code == 0, done.output
    # The first epoch's 3 steps were not made again.
    assert steps[4:] == [3, 4, 5]
    assert (workdir / "a.mvq").read_bytes() == (workdir / "whole.mvq").read_bytes()


def test_recover_takes_the_place_of_pruning_and_clustering(mvq, workdir: Path, monkeypatch) -> None:
    import types

    seen = {}

    def recover(model, recipe, calibration, *, score, loss, progress):
        seen.update(recipe=recipe, meaning=(score, loss), batches=len(list(calibration)))
        package.prune_(model, recipe)
        return package.cluster_(model, recipe)

    monkeypatch.setitem(sys.modules, "mvq.recover", types.SimpleNamespace(recover=recover))
    done = mvq("compress", "tinycli:net", "-d", "tinycli:data", "-b", 16, "--recover", "-o", "a.mvq", "--seed", 3)
    assert done.exit_code == 0, done.output
    assert (seen["recipe"].seed, seen["batches"], seen["meaning"]) == (3, 3, (None, None))
    command = ["compress", "tinycli:net", "-d", "tinycli:data", "-b", 16, "--recover", "--ratio", 5, "-o", "b.mvq"]
    done = mvq(*command, "--json")
    assert done.exit_code == 0, done.output
    assert seen["recipe"].to_dict() == json.loads(done.stdout)["recipe"]
    assert "1:1" in {str(dict(changes).get("pattern")) for _, changes in seen["recipe"].overrides}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["prune", "resnet18", "-o", "x.pt"], "say what to train on, with -d DATA"),
        (["prune", "resnet18", "-d", "x"], "say where to write, with -o FILE.safetensors"),
        (["finetune", "x.mvq", "-d", "x"], "say where to write, with -o OUT.mvq"),
        (["finetune", "x.mvq", "-o", "y.mvq"], "say what to train on, with -d DATA"),
        (["compress", "resnet18", "-o", "x.mvq", "--recover"], "training needs --data"),
        (
            ["compress", "resnet18", "-o", "x.mvq", "-d", "x", "--recover", "--sparse-epochs", "1"],
            "it takes the place of sparse training; leave one out",
        ),
        (["compress", "resnet18", "-o", "x.mvq", "--ratio", "9"], "it needs --data"),
        (["compress", "resnet18", "-o", "x.mvq", "-d", "x", "--learn-assignments"], "it needs --finetune-epochs"),
        (["compress", "resnet18", "-o", "x.mvq", "-d", "x", "--distill"], "it needs --finetune-epochs"),
        (
            ["compress", "resnet18", "-o", "x.mvq", "-d", "x", "--max-steps", "1"],
            "it needs --sparse-epochs or --finetune-epochs",
        ),
    ],
)
def test_usage_errors(mvq, arguments: list[str], text: str) -> None:
    result = mvq(*arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.replace("│", " ").split())


def test_input_errors(mvq, coco: Path) -> None:
    result = mvq("eval", "--model", "tinymodels:detector", "-d", coco, "--task", "pose")
    assert result.stderr == (
        "mvq: error: task 'pose' is not known; known are classification, detection, segmentation\n"
    )
    train = [
        "compress",
        "tinymodels:detector",
        "-d",
        coco,
        "--task",
        "detection",
        "--finetune-epochs",
        1,
        "-o",
        "x.mvq",
    ]
    result = mvq(*train, "--distill")
    assert result.stderr == (
        "mvq: error: --distill: detectors give losses in training, no classes to follow; leave it out\n"
    )
    result = mvq(*train, "--num-classes", 3, *FEW)
    assert "training: class numbers 1.." in result.stderr
    assert "are not in 0..2; model and data have different classes" in result.stderr


@pytest.fixture
def real(workdir: Path, data_root: Path) -> Path:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    for split, n in (("train", 6), ("val", 4)):
        layouts.real(workdir, data_root, split, n)
    return workdir


@pytest.mark.slow
def test_mask_rcnn_on_real_images(mvq, real: Path) -> None:
    command = ["--model", "torchvision/maskrcnn_resnet50_fpn", "-r", "mvq-maskrcnn", *FEW[2:], "--image-size", 128]
    made = compress_and_measure(mvq, command, "detection", real / "coco")
    assert made["sizes"]["compressed_convs"]["ratio"] > 22


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision/deeplabv3_mobilenet_v3_large", "mvq/deeplabv3_mobilenet_v2"])
def test_deeplab_on_real_images(mvq, real: Path, data_root: Path, model: str) -> None:
    command = ["--model", model, "-r", "mvq-deeplab", *FEW[2:], "--image-size", 161]
    own = model.startswith("mvq/")
    if own:
        weights = data_root / "coco" / "deeplabv3_mobilenetv2_voc.safetensors"
        command += ["--preprocessing", "tf", "-w", weights, "--lr", 1e-4]
    else:
        command += ["--num-classes", 21]
    made = compress_and_measure(mvq, command, "segmentation", real / "voc")
    assert 12 < made["sizes"]["compressed_convs"]["ratio"] < 20
    if own:
        assert made["accuracy"]["dense"]["pixel_accuracy"] > 50
