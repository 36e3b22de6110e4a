import re

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mvq.errors import ConfigError, DataError, ModelError
from mvq.tasks import objective


class Gives(nn.Module):
    def __init__(self, wrap=lambda *x: x[0]):
        super().__init__()
        self.wrap = wrap

    def forward(self, *inputs):
        return self.wrap(*inputs)


def test_classification():
    scores, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1], dtype=torch.int16)
    for smoothing in (0.0, 0.1):
        loss = objective("classification", label_smoothing=smoothing)(Gives(), (scores, targets))
        assert torch.equal(loss, cross_entropy(scores, targets.long(), label_smoothing=smoothing))


def test_segmentation_adds_the_auxiliary_head_and_ignores():
    scores, aux = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    targets = torch.randint(0, 3, (2, 4, 5))
    targets[0, :2] = 255
    main, side = (cross_entropy(s, targets, ignore_index=255) for s in (scores, aux))
    for outputs, expected in (
        (scores, main),
        ({"out": scores}, main),
        ({"out": scores, "aux": aux}, main + 0.5 * side),
    ):
        loss = objective("segmentation")(Gives(lambda _, o=outputs: o), (scores, targets))
        assert torch.allclose(loss, expected)
    scores.requires_grad_()
    nothing = objective("segmentation")(Gives(), (scores, torch.full_like(targets, 255)))
    assert float(nothing.detach()) == 0
    nothing.backward()
    assert (scores.grad == 0).all()


def test_detection_sums_losses_and_leaves_out_what_cannot_be_trained_on():
    seen = []

    def losses(images, targets):
        seen.append((images, targets))
        return {"a": torch.tensor(1.5), "b": torch.tensor([2.0])}

    images = (torch.zeros(3, 8, 8), torch.zeros(3, 6, 6))
    target = {
        "boxes": torch.tensor([[0, 0, 2, 2], [1, 1, 1, 5], [0, 0, 4, 4]], dtype=torch.float64),
        "labels": torch.tensor([3, 1, 2], dtype=torch.int32),
        "iscrowd": torch.tensor([0, 0, 1]),
        "masks": torch.arange(3, dtype=torch.uint8)[:, None, None].expand(3, 8, 8),
    }
    empty = {"boxes": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = objective("detection")(Gives(losses), (images, [target, empty]))
    assert loss.shape == ()
    assert float(loss) == 3.5
    (given, (first, second)) = seen[0]
    assert isinstance(given, list)
    assert first["boxes"].tolist() == [[0, 0, 2, 2]]
    assert first["boxes"].dtype == torch.float32
    assert first["labels"].tolist() == [3]
    assert first["labels"].dtype == torch.int64
    assert first["masks"].shape == (1, 8, 8)
    assert second["boxes"].shape == (0, 4)
    assert set(second) == {"boxes", "labels"}


def test_classes_the_model_does_not_have():
    scores = torch.zeros(2, 3)
    with pytest.raises(DataError) as error:
        objective("classification")(Gives(), (scores, torch.tensor([0, 3])))
    text = "training: class numbers 0..3 are not in 0..2; model and data have different classes"
    assert str(error.value) == text
    with pytest.raises(DataError, match=re.escape("class numbers 255..255 are not in 0..2")):
        objective("segmentation", ignore_index=254)(Gives(), (torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1), 255)))
    detector = Gives(lambda *_: {"a": torch.zeros(())})
    detector.head = nn.Module()
    detector.head.classification_head = nn.Module()
    detector.head.classification_head.num_classes = 3
    target = {"boxes": torch.tensor([[0.0, 0, 1, 1]] * 2), "labels": torch.tensor([0, 3])}
    with pytest.raises(DataError) as error:
        objective("detection")(detector, ([torch.zeros(3, 4, 4)], [target]))
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("pose", {}, "task 'pose' is not known; known are classification, detection, segmentation"),
        (
            "segmentation",
            {"label_smoothing": 0.1, "x": 1},
            "objective of segmentation: 'label_smoothing', 'x' not known; known are ignore_index, aux_weight",
        ),
        ("detection", {"x": 1}, "objective of detection: 'x' not known; known are none"),
        ("classification", {"label_smoothing": 1.5}, "objective: label_smoothing=1.5 is not in 0..1"),
        ("segmentation", {"aux_weight": -1}, "objective: aux_weight=-1 is negative"),
    ],
)
def test_faults(name, options, text):
    with pytest.raises(ConfigError) as error:
        objective(name, **options)
    assert str(error.value) == text


def test_a_detector_that_gives_no_losses():
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(ModelError) as error:
        objective("detection")(Gives(), ([torch.zeros(3, 4, 4)], [target]))
    assert str(error.value) == (
        "objective: the model gives a list for images and targets; detection needs a model that gives a dictionary of "
        "losses in training mode"
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fasterrcnn_mobilenet_v3_large_320_fpn", marks=pytest.mark.slow),
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_torchvision_detectors_train_without_boxes(name):
    from mvq.tasks import build_model
    from mvq.tasks.objectives import n_detected

    model = build_model(f"torchvision/{name}", num_classes=4).train()
    assert n_detected(model) == 4
    image, box = torch.rand(3, 64, 64), torch.tensor([[4.0, 4, 40, 40]])
    targets = [
        {"boxes": box, "labels": torch.tensor([3])},
        {"boxes": box[:0], "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    loss = objective("detection")(model, ([image, image], targets))
    loss.backward()
    assert loss > 0
