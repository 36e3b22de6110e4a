import math
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mvq.errors import ConfigError, DataError, MissingDependencyError
from mvq.tasks import Result, evaluate
from mvq.tasks.segmentation import ConfusionMatrix


class Echo(nn.Module):
    """Gives its input back, so that a test chooses the scores."""

    def forward(self, x):
        return x


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


def test_top1_and_top5_by_hand():
    scores = torch.tensor(
        [
            [9.0, 8, 7, 6, 5, 4, 3],  # class 0 is first
            [9.0, 8, 7, 6, 5, 4, 3],  # class 4 is fifth
            [9.0, 8, 7, 6, 5, 4, 3],  # class 5 is sixth
            [0.0, 1, 2, 3, 4, 5, 6],  # class 6 is first
        ]
    )
    targets = torch.tensor([0, 4, 5, 6])
    result = evaluate(Echo(), [(scores[:3], targets[:3]), (scores[3:], targets[3:])])
    assert result == Result("classification", "top1", 50.0, 4, {"top5": 75.0})
    assert result.to_dict() == {"task": "classification", "metric": "top1", "value": 50.0, "n": 4, "top5": 75.0}
    assert Result.from_dict(result.to_dict()) == result
    assert result.metrics() == {"top1": 50.0, "top5": 75.0}
    assert result.standard_error == pytest.approx(25.0)


def test_few_classes_have_no_top5():
    result = evaluate(Echo(), [(torch.eye(3), torch.tensor([0, 1, 1]))])
    assert result == Result("classification", "top1", pytest.approx(200 / 3), 3, {})


@given(st.integers(6, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_topk_agrees_with_sorting(n_classes, n, seed):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(n_classes), (n, 1)), axis=1).astype(np.float32)
    targets = rng.integers(0, n_classes, n)
    first = np.mean([row.argmax() == t for row, t in zip(scores, targets, strict=True)])
    fifth = np.mean([t in np.argsort(-row)[:5] for row, t in zip(scores, targets, strict=True)])
    result = evaluate(Echo(), [(torch.from_numpy(scores), torch.from_numpy(targets))])
    assert (result.value, result.extra["top5"]) == (pytest.approx(100 * first), pytest.approx(100 * fifth))


def test_modes_are_restored_and_no_statistics_move():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, [(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))], device="cpu")
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_modes_are_restored_after_an_error():
    model = Echo().train()
    with pytest.raises(DataError):
        evaluate(model, [])
    assert model.training


@pytest.mark.parametrize(
    ("model", "batches", "text"),
    [
        (Echo(), [], "the loader yields no image"),
        (
            Echo(),
            [(torch.zeros(2, 3, 4), torch.tensor([0, 1]))],
            "the model gives shape (2, 3, 4); classification needs scores (N, n_classes)",
        ),
        (
            Wrapped(lambda x: {"out": x}),
            [(torch.zeros(2, 3), torch.tensor([0, 1]))],
            "the model gives a dict; classification needs scores (N, n_classes)",
        ),
        (
            Echo(),
            [(torch.zeros(2, 3), torch.tensor([0, 1, 2]))],
            "targets torch.int64 (3,) for scores (2, 3); classification needs one whole class number an image",
        ),
        (
            Echo(),
            [(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))],
            "targets torch.float32 (2,) for scores (2, 3); classification needs one whole class number an image",
        ),
        (
            Echo(),
            [(torch.zeros(2, 3), torch.tensor([0, 3]))],
            "class numbers 0..3 are not in 0..2; model and data have different classes",
        ),
    ],
)
def test_classification_faults(model, batches, text):
    with pytest.raises(DataError) as error:
        evaluate(model, batches)
    assert str(error.value) == f"evaluation: {text}"


def test_unknown_task_and_incomplete_result():
    with pytest.raises(ConfigError) as error:
        evaluate(Echo(), [], task="regression")
    assert str(error.value) == "task 'regression' is not known; known are classification, detection, segmentation"
    with pytest.raises(DataError) as data_error:
        Result.from_dict({"task": "classification", "n": 3})
    assert str(data_error.value) == "result: 'metric', 'value' missing; needed are task, metric, value, n"
    assert math.isnan(Result("segmentation", "miou", 50.0, 3).standard_error)


def one_hot(classes, n):
    return nn.functional.one_hot(classes, n).movedim(-1, 1).float()


def test_miou_by_hand():
    predicted = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
    target = torch.tensor([[[0, 1, 1], [1, 255, 0]]])
    # Counted pixels: (0,0) (1,0) (1,1) (1,1) (0,2). IoU: class 0 1/3, class 1 2/3, class 2 0/1; class 3 is absent.
    result = evaluate(Echo(), [(one_hot(predicted, 4), target)], task="segmentation")
    assert result.metrics() == {"miou": pytest.approx(100 * (1 / 3 + 2 / 3 + 0) / 3), "pixel_accuracy": 60.0}
    assert (result.task, result.n) == ("segmentation", 1)
    torchvision_style = Wrapped(lambda x: {"out": x, "aux": None})
    assert evaluate(torchvision_style, [(one_hot(predicted, 4), target)], task="segmentation") == result


def slow_miou(predicted, target, n_classes, ignore):
    ious = []
    for c in range(n_classes):
        both = either = 0
        for p, t in zip(predicted.flat, target.flat, strict=True):
            if t != ignore:
                both += p == c and t == c
                either += p == c or t == c
        if either:
            ious.append(both / either)
    return 100 * np.mean(ious)


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_miou_agrees_with_counting_and_does_not_depend_on_batches(n_classes, seed):
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, n_classes, (4, 3, 5))
    target = rng.choice([*range(n_classes), 255], (4, 3, 5))
    target[0, 0, 0] = 0
    whole, parts = ConfusionMatrix(n_classes), ConfusionMatrix(n_classes)
    whole.update(torch.from_numpy(predicted), torch.from_numpy(target))
    for p, t in zip(predicted, target, strict=True):
        parts.update(torch.from_numpy(p), torch.from_numpy(t))
    assert torch.equal(whole.counts, parts.counts)
    assert whole.result(4).value == pytest.approx(slow_miou(predicted, target, n_classes, 255))


def test_confusion_matrix_counts_true_classes_in_rows():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([1, 1, 2]), torch.tensor([0, 0, 2]))
    assert matrix.counts.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_segmentation_faults():
    scores, target = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    cases = [
        ([], "evaluation: the loader yields no image"),
        ([(scores, target + 255)], "evaluation: the loader yields no labelled pixel"),
        (
            [(scores[0], target)],
            "evaluation: the model gives shape (3, 2, 2); segmentation needs scores (N, n_classes, H, W)",
        ),
        (
            [(scores, target[:, :1])],
            "segmentation: predicted (1, 2, 2) and target (1, 1, 2) differ in shape",
        ),
        (
            [(scores, target + 3)],
            "segmentation: target classes 3..3 are not in 0..2; pixels to ignore must hold 255",
        ),
    ]
    for batches, text in cases:
        with pytest.raises(DataError) as error:
            evaluate(Echo(), batches, task="segmentation")
        assert str(error.value) == text
    matrix = ConfusionMatrix(2, ignore_index=None)
    with pytest.raises(DataError, match=re.escape("predicted classes 0..2 are not in 0..1; ")):
        matrix.update(torch.tensor([0, 2]), torch.tensor([0, 1]))


class Detector(nn.Module):
    """Gives prepared detections, image by image."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, images):
        return [next(self.outputs) for _ in images]


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def found(rows, labels, scores):
    return {"boxes": boxes(*rows), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


def truth(rows, labels):
    return {"boxes": boxes(*rows), "labels": torch.tensor(labels, dtype=torch.int64)}


BOX, OTHER = (10, 10, 50, 50), (60, 60, 90, 90)


@pytest.fixture
def pycocotools():
    return pytest.importorskip("pycocotools", reason="pycocotools is not installed")


@pytest.mark.usefixtures("pycocotools")
def test_box_ap_by_hand(capsys):
    images = [torch.zeros(3, 100, 100)] * 2
    targets = [truth([BOX, OTHER], [1, 1]), truth([BOX], [1])]
    perfect = [found([BOX, OTHER], [1, 1], [0.9, 0.8]), found([BOX], [1], [0.7])]
    result = evaluate(Detector(perfect), [(images, targets)], task="detection")
    assert result == Result(
        "detection", "box_ap", pytest.approx(100), 2, {"ap50": pytest.approx(100), "ap75": pytest.approx(100)}
    )
    # IoU of the shifted box is 36*40 / (2*1600 - 36*40) = 0.818: right at 0.50 .. 0.80, that is 7 of 10 thresholds.
    shifted = [found([(14, 10, 54, 50)], [1], [0.9])]
    result = evaluate(Detector(shifted), [(images[:1], targets[1:])], task="detection")
    assert result.metrics() == {
        "box_ap": pytest.approx(70),
        "ap50": pytest.approx(100),
        "ap75": pytest.approx(100),
    }
    # One of two classes is found.
    half = evaluate(
        Detector([found([BOX], [1], [0.9])]), [(images[:1], [truth([BOX, OTHER], [1, 2])])], task="detection"
    )
    assert half.value == pytest.approx(50)
    # A false box ranked first halves the precision at every recall.
    worse = evaluate(Detector([found([OTHER, BOX], [1, 1], [0.9, 0.8])]), [(images[:1], targets[1:])], task="detection")
    assert worse.value == pytest.approx(50)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("pycocotools")
def test_crowds_do_not_count():
    target = {**truth([BOX, OTHER], [1, 1]), "iscrowd": torch.tensor([0, 1])}
    for rows in ([BOX], [OTHER, BOX]):
        output = found(rows, [1] * len(rows), [0.9, 0.8][: len(rows)])
        result = evaluate(Detector([output]), [([torch.zeros(3, 9, 9)], [target])], task="detection")
        assert result.value == pytest.approx(100)


@pytest.mark.usefixtures("pycocotools")
def test_nothing_found_and_postprocess():
    images, targets = torch.zeros(1, 3, 9, 9), [truth([BOX], [1])]
    assert evaluate(Detector([found([], [], [])]), [(images, targets)], task="detection").metrics() == {
        "box_ap": 0.0,
        "ap50": 0.0,
        "ap75": 0.0,
    }
    seen = []

    def postprocess(outputs, given):
        seen.append((outputs, given))
        return [found([BOX], [1], [0.9])]

    result = evaluate(Echo(), [(images, targets)], task="detection", postprocess=postprocess)
    assert result.value == pytest.approx(100)
    assert torch.equal(seen[0][0], images)
    assert seen[0][1] is targets
    model = Echo()
    model.postprocess = postprocess
    assert evaluate(model, [(images, targets)], task="detection").value == pytest.approx(100)


@pytest.mark.usefixtures("pycocotools")
def test_detection_faults():
    from mvq.tasks.detection import box_ap

    images = [torch.zeros(3, 9, 9)]
    cases = [
        (Echo(), [], "evaluation: the loader yields no image"),
        (
            Wrapped(lambda x: 3),
            [(images, [truth([BOX], [1])])],
            "evaluation: the model gives a int; detection needs a list of 1 dictionaries with boxes, labels, scores, "
            "or a postprocess that makes them",
        ),
        (
            Detector([found([BOX], [1], [0.9])]),
            [(images, [truth([], [])])],
            "detection: the 1 images have no annotated box to compare with",
        ),
    ]
    for model, batches, text in cases:
        with pytest.raises(DataError) as error:
            evaluate(model, batches, task="detection")
        assert str(error.value) == text
    annotated = {
        "images": [{"id": 1}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}],
        "categories": [{"id": 1}],
    }
    with pytest.raises(DataError) as error:
        box_ap(annotated, [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}])
    assert str(error.value) == "detection: predictions for image 7, which is not among the 1 annotated images"


def test_detection_names_what_to_install(monkeypatch):
    for name in ("pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as error:
        evaluate(Echo(), [], task="detection")
    assert str(error.value) == "detection needs pycocotools; install it with: pip install 'mvq[detection]'"


def masked(dictionary, *rows, soft=False):
    """With masks that fill the boxes, as the task gives them or as a model does."""
    masks = torch.zeros(len(rows), 100, 100)
    for mask, (x1, y1, x2, y2) in zip(masks, rows, strict=True):
        mask[y1:y2, x1:x2] = 1
    return {**dictionary, "masks": masks[:, None] * 0.7 + 0.2 if soft else masks.to(torch.uint8)}


@pytest.mark.usefixtures("pycocotools")
def test_mask_ap_by_hand():
    images = [torch.zeros(3, 100, 100)] * 2
    targets = [masked(truth([BOX, OTHER], [44, 91]), BOX, OTHER), masked(truth([], []))]
    # Boxes are right; the mask of the first is shifted, IoU 36*40 / (2*1600 - 36*40): 7 of 10 thresholds.
    outputs = [
        masked(found([BOX, OTHER], [44, 91], [0.9, 0.8]), (14, 10, 54, 50), OTHER, soft=True),
        masked(found([], [], []), soft=True),
    ]
    result = evaluate(Detector(outputs), [(images, targets)], task="detection")
    assert result.metrics() == {
        "box_ap": pytest.approx(100),
        "ap50": pytest.approx(100),
        "ap75": pytest.approx(100),
        "mask_ap": pytest.approx((70 + 100) / 2),
        "mask_ap50": pytest.approx(100),
        "mask_ap75": pytest.approx(100),
    }
    assert result.n == 2


@pytest.mark.usefixtures("pycocotools")
def test_mask_ap_needs_masks_on_both_sides():
    image, target, output = torch.zeros(3, 100, 100), truth([BOX], [1]), found([BOX], [1], [0.9])
    for t, o in ((masked(target, BOX), output), (target, masked(output, BOX, soft=True))):
        result = evaluate(Detector([o]), [([image], [t])], task="detection")
        assert list(result.metrics()) == ["box_ap", "ap50", "ap75"]


@pytest.mark.usefixtures("pycocotools")
def test_mask_ap_of_nothing_found():
    target, nothing = masked(truth([BOX], [1]), BOX), masked(found([], [], []), soft=True)
    result = evaluate(Detector([nothing]), [([torch.zeros(3, 100, 100)], [target])], task="detection")
    assert set(result.metrics().values()) == {0.0}
    assert "mask_ap" in result.metrics()
