"""Detection and segmentation data in their standard layouts."""

import json
import re
import shutil

import layouts
import numpy as np
import pytest
import torch
from PIL import Image

from mvq.errors import ConfigError, DataError
from mvq.tasks import Preprocessing, load_data


def batch(spec, **options):
    return next(iter(load_data(spec, batch_size=8, **options)))


@pytest.fixture
def coco(tmp_path):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    return layouts.coco(tmp_path)


@pytest.mark.parametrize("augment", [False, True])
def test_coco_boxes_masks_and_pixels_agree(coco, tmp_path, augment):
    images, targets = batch(tmp_path, task="detection", augment=augment)
    assert [len(t["boxes"]) for t in targets] == [0, 1, 2]
    assert [t["labels"].tolist() for t in targets] == [[], [1], [1, 3]]
    assert [int(t["image_id"]) for t in targets] == [100, 101, 102]
    for image, target in zip(images, targets, strict=True):
        assert image.shape == (3, 48, 60)
        assert target["masks"].shape == (len(target["boxes"]), 48, 60)
        for j, (mask, box) in enumerate(zip(target["masks"], target["boxes"], strict=True)):
            x1, y1, x2, y2 = (int(v) for v in box)
            inside = torch.zeros(48, 60, dtype=torch.bool)
            inside[y1:y2, x1:x2] = True
            bright = image[0] == (200 + j) / 255
            assert bright.any()
            # A later rectangle may lie above an earlier one.
            assert not (bright & ~inside).any()
            assert not (bright & (mask == 0)).any()
            assert not ((mask > 0) & ~inside).any()


def test_coco_mirroring_moves_boxes_with_the_pixels(coco, tmp_path):
    loader = load_data(tmp_path, task="detection", batch_size=3, augment=True)
    plain = batch(tmp_path, task="detection")
    seen = set()
    for _ in range(6):
        for image, target, old, true in zip(*next(iter(loader)), *plain, strict=True):
            mirrored = not torch.equal(image, old)
            seen.add(mirrored)
            if mirrored:
                assert torch.equal(image.flip(2), old)
                assert torch.equal(target["masks"].flip(2), true["masks"])
                assert torch.equal(60 - target["boxes"][:, [2, 0]], true["boxes"][:, [0, 2]])
                assert torch.equal(target["boxes"][:, [1, 3]], true["boxes"][:, [1, 3]])
    assert seen == {False, True}


def test_coco_other_layouts(coco, tmp_path):
    whole = batch(tmp_path, task="detection")[1]
    layouts.coco(tmp_path / "plain", layout="")
    shutil.copytree(tmp_path / "val2017", tmp_path / "some")
    shutil.copy(coco, tmp_path / "some.json")
    for spec in (tmp_path / "plain", tmp_path / "some.json", str(tmp_path / "some.json")):
        other = batch(spec, task="detection")[1]
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(whole, other, strict=True))
    shutil.move(tmp_path / "val2017", tmp_path / "images" / "val2017")
    assert len(batch(tmp_path, task="detection")[0]) == 3


def test_coco_without_outlines_has_no_masks(coco, tmp_path):
    content = json.loads(coco.read_text())
    del content["annotations"][0]["segmentation"]
    coco.write_text(json.dumps(content))
    assert "masks" not in batch(tmp_path, task="detection")[1][2]


def test_coco_limit_and_callables(coco, tmp_path):
    assert [int(t["image_id"]) for t in batch(tmp_path, task="detection", limit=2)[1]] == [100, 101]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.update(images=[]), "it names no image"),
        (lambda c: c.pop("categories"), "expected lists 'images', 'annotations', 'categories'"),
        (lambda c: c["images"][0].pop("width"), "an image without id, file_name, height and width: {'id': 100, "),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 1 has no image_id, category_id or bbox"),
        (
            lambda c: c["annotations"][1].update(image_id=7),
            "annotation 2 is for image 7, which the file does not name",
        ),
        (
            lambda c: c["annotations"][1].update(category_id=2),
            "annotation 2 has category 2, which is not among the 3 of the file",
        ),
        (
            lambda c: (c["annotations"][1].update(category_id=0), c["categories"].append({"id": 0})),
            "annotation 2 has category 0; ids start at 1, because 0 is the background of detectors",
        ),
        (
            lambda c: c["annotations"][1].update(bbox=[1, 2, 3]),
            "annotation 2 has the box [1, 2, 3]; expected [x, y, width, height]",
        ),
        (
            lambda c: c["images"][1].update(file_name="no.jpg"),
            "1 of 3 images are not in '{folder}', the first is 'no.jpg'",
        ),
    ],
)
def test_coco_faults(coco, tmp_path, change, text):
    content = json.loads(coco.read_text())
    change(content)
    coco.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="detection")
    assert str(error.value).startswith(f"data {str(coco)!r}")
    assert text.replace("{folder}", str(tmp_path / "val2017")) in str(error.value)


def test_coco_faults_of_one_image(coco, tmp_path):
    content = json.loads(coco.read_text())
    content["annotations"][0]["segmentation"] = {"size": [48, 60]}
    content["images"][0]["width"] = 61
    coco.write_text(json.dumps(content))
    data = load_data(tmp_path, task="detection").dataset
    with pytest.raises(DataError) as error:
        data[0]
    assert str(error.value) == (
        "data: image '000000000000.png' is 60x48, its annotations are for 61x48; they must be equal"
    )
    with pytest.raises(DataError, match=re.escape("data: annotation 1: its segmentation is neither polygons nor run")):
        data[1]
    content["annotations"][0]["segmentation"] = {"size": [48, 61], "counts": [48 * 61]}
    coco.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="detection").dataset[1]
    assert str(error.value) == "data: annotation 1: its segmentation is for 61x48, not 60x48"


def test_coco_not_there(tmp_path):
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="detection")
    assert str(error.value) == (
        f"data {str(tmp_path)!r}: no COCO annotations of split 'val' there; expected "
        "annotations/instances_val2017.json with val2017/, or val.json with val/, or a .json file"
    )
    for year in ("2014", "2015"):
        layouts.coco(tmp_path, layout=year)
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="detection")
    assert str(error.value) == (
        f"data {str(tmp_path)!r}: instances_val2014.json, instances_val2015.json are there; give the one to use as a "
        ".json file"
    )
    with pytest.raises(ConfigError) as config_error:
        load_data(tmp_path, task="detection", image_size=8)
    assert str(config_error.value) == (
        f"data {str(tmp_path)!r}: a detector resizes and normalises images itself; leave out preprocessing and "
        "image_size"
    )
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(DataError, match=re.escape(f"data {str(bad)!r} cannot be read as JSON: ")):
        load_data(bad, task="detection")


def test_voc_puts_images_on_a_canvas(tmp_path):
    base = layouts.voc(tmp_path)
    for spec in (tmp_path, tmp_path / "VOCdevkit", base):
        images, targets = batch(spec, task="segmentation", image_size=40, preprocessing="unit")
    assert images.shape == (3, 3, 40, 40)
    assert targets.shape == (3, 40, 40)
    for i in range(3):
        pixels = np.array(Image.open(base / "JPEGImages" / f"val_{i}.jpg"))
        height, width = pixels.shape[:2]
        np.testing.assert_allclose(images[i, :, :height, :width], pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
        assert (images[i, :, height:] == 0).all()
        assert (images[i, :, :, width:] == 0).all()
        assert (targets[i, height:] == 255).all()
        assert (targets[i, :height, : 10 + i] == 1).all()
        assert (targets[i, :height, 10 + i] == 255).all()
        assert (targets[i, :height, 11 + i : width] == 0).all()


def test_voc_shrinks_what_is_too_large(tmp_path):
    layouts.voc(tmp_path, size=(64, 32), n=2)
    images, targets = batch(tmp_path, task="segmentation", image_size=32, limit=1)
    assert (targets[0, :16, :5] == 1).all()
    assert (targets[0, :16, 6:] == 0).all()
    assert (targets[0, 16:] == 255).all()
    assert images.shape == (1, 3, 32, 32)
    default = batch(tmp_path, task="segmentation", preprocessing="tf")[0]
    assert default.shape == (2, 3, 513, 513)
    assert torch.allclose(default[0, :, 32:], torch.zeros(()))
    own = Preprocessing(mean=(0.5,), std=(0.5,), resize=None, crop=513)
    assert torch.equal(batch(tmp_path, task="segmentation", preprocessing=own)[0], default)


def test_voc_augmentation_keeps_classes_with_their_pixels(tmp_path):
    layouts.voc(tmp_path, n=3)
    loader = load_data(tmp_path, task="segmentation", image_size=24, preprocessing="unit", augment=True)
    sizes = set()
    for images, targets in (next(iter(loader)) for _ in range(5)):
        assert images.shape == (3, 3, 24, 24)
        for image, target in zip(images, targets, strict=True):
            # Class 1 is brighter by 100 of 255; the border is smeared.
            if (target == 1).sum() > 20 and (target == 0).sum() > 20:
                assert image[:, target == 1].mean() > image[:, target == 0].mean() + 0.2
            assert (image[:, (target == 255) & (image.sum(0) == 0)] == 0).all()
            sizes.add(int((target != 255).sum()))
    assert len(sizes) > 5


def test_voc_faults(tmp_path):
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="segmentation")
    assert str(error.value) == (
        f"data {str(tmp_path)!r}: no VOC segmentation data there; expected JPEGImages, SegmentationClass and "
        "ImageSets/Segmentation, in it or in VOCdevkit/VOC2012"
    )
    base = layouts.voc(tmp_path)
    listing = base / "ImageSets" / "Segmentation" / "val.txt"
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="segmentation", split="train")
    assert str(error.value) == (
        f"data {str(base)!r}: there is no ImageSets/Segmentation/train.txt, which names the images"
    )
    gone = base / "JPEGImages" / "val_1.jpg"
    gone.unlink()
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="segmentation")
    assert str(error.value) == f"data {str(listing)!r}: 1 of 6 files are missing, the first is {str(gone)!r}"
    Image.new("RGB", (5, 5)).save(gone)
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="segmentation").dataset[1]
    assert str(error.value) == (
        f"data: class map {str(base / 'SegmentationClass' / 'val_1.png')!r} is 31x22, its image 5x5; they must be equal"
    )
    Image.new("RGB", (5, 5)).save(base / "SegmentationClass" / "val_1.png")
    with pytest.raises(DataError, match=r"has mode RGB; expected class numbers, one byte a pixel"):
        load_data(tmp_path, task="segmentation").dataset[1]
    (base / "SegmentationClass" / "val_1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"class map .* cannot be decoded"):
        load_data(tmp_path, task="segmentation").dataset[1]
    listing.write_text("\n")
    with pytest.raises(DataError) as error:
        load_data(tmp_path, task="segmentation")
    assert str(error.value) == f"data {str(listing)!r} names no image"


def test_nothing_there(tmp_path):
    for task, kinds in (
        ("detection", "a folder in COCO's layout, a .json file"),
        ("segmentation", "a folder in PASCAL"),
    ):
        with pytest.raises(DataError, match=re.escape(f"there is no such file or folder; give {kinds}")):
            load_data(tmp_path / "no", task=task)
    with pytest.raises(ConfigError, match=re.escape("task 'pose' is not known; known are classification, detection")):
        load_data(tmp_path, task="pose")
