import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets

from mvq.errors import ConfigError, DataError
from mvq.tasks import Preprocessing, load_data


def gather(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]).tolist()


def write_images(root, classes, n, size=(40, 30)):
    rng = np.random.default_rng(0)
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            pixels[0, 0] = (c, i, 0)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_class_folders_below_a_split(tmp_path):
    write_images(tmp_path / "val", ["b", "a"], 2)
    write_images(tmp_path / "train", ["b", "a", "c"], 1)
    images, labels = gather(load_data(tmp_path, image_size=16))
    assert images.shape == (4, 3, 16, 16)
    assert labels == [0, 0, 1, 1]
    assert gather(load_data(str(tmp_path), split="train"))[0].shape == (3, 3, 224, 224)


def test_class_folders_follow_torchvision_preprocessing(tmp_path):
    from torchvision.transforms import v2

    write_images(tmp_path, ["x"], 1)
    images, _ = gather(load_data(tmp_path))
    usual = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert torch.allclose(images[0], usual(Image.open(tmp_path / "x" / "0.png")), atol=1e-6)


def test_image_size_scales_the_resize():
    assert Preprocessing().for_size(112) == Preprocessing(resize=128, crop=112)
    assert Preprocessing(resize=None, crop=None).for_size(32) == Preprocessing(resize=None, crop=32)


def test_limit_is_spread_over_the_classes(tmp_path):
    write_images(tmp_path, ["a", "b", "c", "d"], 5, size=(8, 8))
    unit = Preprocessing.preset("unit")
    assert gather(load_data(tmp_path, preprocessing=unit, limit=4))[1] == [0, 1, 2, 3]
    assert len(gather(load_data(tmp_path, preprocessing=unit, limit=100))[1]) == 20


def test_order_is_fixed_or_shuffled_by_the_seed(tmp_path):
    x = np.arange(50, dtype=np.uint8).reshape(50, 1, 1)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(50))
    assert gather(load_data(tmp_path / "d.npz"))[1] == list(range(50))
    first, again, other = (gather(load_data(tmp_path / "d.npz", shuffle=True, seed=s))[1] for s in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == list(range(50))


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("val_x", "val_y")], ids=lambda names: names[0])
def test_npz_keys(names, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", **{names[0]: x, names[1]: np.array([3, 1, 2, 0, 1], dtype=np.int16)})
    images, labels = gather(load_data(tmp_path / "d.npz", batch_size=2))
    assert labels == [3, 1, 2, 0, 1]
    assert torch.allclose(images, torch.from_numpy(x).permute(0, 3, 1, 2) / 255)


def test_npz_split_keys_come_first(tmp_path):
    x = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "d.npz", train_x=x, train_y=[1, 1], x=x, y=[0, 0])
    assert gather(load_data(tmp_path / "d.npz", split="train"))[1] == [1, 1]
    assert gather(load_data(tmp_path / "d.npz", split="val"))[1] == [0, 0]


def test_npz_mean_and_std_of_uint8_and_float(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    floats = (x / 255).astype(np.float32).transpose(0, 3, 1, 2)
    np.savez(tmp_path / "u.npz", x=x, y=np.zeros(4, int))
    np.savez(tmp_path / "f.npz", x=floats, y=np.zeros(4, int))
    p = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), resize=None, crop=None)
    expected = (floats - np.array(p.mean).reshape(3, 1, 1)) / np.array(p.std).reshape(3, 1, 1)
    for name in ("u", "f"):
        images, _ = gather(load_data(tmp_path / f"{name}.npz", preprocessing=p))
        assert np.allclose(images, expected, atol=1e-5)
    assert np.array_equal(gather(load_data(tmp_path / "f.npz"))[0], floats)
    bgr = Preprocessing(mean=(0.0,), std=(1.0,), resize=None, crop=None, channel_order="bgr")
    assert np.allclose(gather(load_data(tmp_path / "u.npz", preprocessing=bgr))[0], floats[:, ::-1])


def test_npz_crop_and_preset(tmp_path):
    x = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    np.savez(tmp_path / "d.npz", x=x, y=[0])
    images, _ = gather(load_data(tmp_path / "d.npz", preprocessing="unit", image_size=2))
    assert torch.allclose(images[0, 0] * 255, torch.tensor([[14.0, 15.0], [20.0, 21.0]]))


def write_cifar(root, name, rng):
    fine = name == "cifar-100-python"
    folder = root / name
    folder.mkdir()
    files = ["train", "test"] if fine else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, file in enumerate(files):
        entry = {"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), "fine_labels" if fine else "labels": [i, 9]}
        (folder / file).write_bytes(pickle.dumps(entry))
    meta = {"fine_label_names" if fine else "label_names": [str(i) for i in range(100 if fine else 10)]}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta))


@pytest.mark.parametrize(
    ("name", "train", "val"),
    [("cifar-10-batches-py", [0, 9, 1, 9, 2, 9, 3, 9, 4, 9], [5, 9]), ("cifar-100-python", [0, 9], [1, 9])],
)
@pytest.mark.parametrize("inside", [True, False])
def test_cifar_layouts(name, train, val, inside, tmp_path, monkeypatch):
    # The small files cannot have the published digests, which torchvision checks.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    write_cifar(tmp_path, name, np.random.default_rng(0))
    path = tmp_path / name if inside else tmp_path
    images, labels = gather(load_data(path))
    assert images.shape == (2, 3, 32, 32)
    assert labels == val
    assert gather(load_data(path, split="train"))[1] == train
    with (tmp_path / name / ("test" if "100" in name else "test_batch")).open("rb") as file:
        raw = pickle.load(file)["data"].reshape(2, 3, 32, 32) / 255
    p = Preprocessing.preset("cifar100" if "100" in name else "cifar10")
    expected = (raw - np.array(p.mean).reshape(3, 1, 1)) / np.array(p.std).reshape(3, 1, 1)
    assert np.allclose(images, expected, atol=1e-5)


def test_cifar_damaged(tmp_path):
    write_cifar(tmp_path, "cifar-10-batches-py", np.random.default_rng(0))
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    assert str(error.value) == (
        f"data {str(tmp_path)!r}: CIFAR10 is incomplete or damaged; unpack its Python version there again"
    )


MODULE = """
import torch
def loader(split="val", batch_size=4):
    x = torch.arange(10.0).reshape(10, 1)
    return [(part, torch.full((len(part),), int(split == "train"))) for part in x.split(batch_size)]
def number():
    return 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "task_data_sample.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "task_data_sample"
    sys.modules.pop("task_data_sample", None)


def test_callable_gets_what_it_takes(module):
    images, labels = gather(load_data(f"{module}:loader", split="train", batch_size=3))
    assert images[:, 0].tolist() == list(range(10))
    assert labels == [1] * 10
    assert [len(y) for _, y in load_data(f"{module}:loader", batch_size=3, limit=7)] == [3, 3, 1]
    assert [len(y) for _, y in load_data(f"{module}:loader", batch_size=3, limit=6)] == [3, 3]


def test_callable_faults(module):
    with pytest.raises(DataError) as error:
        load_data(f"{module}:number")
    assert str(error.value) == "data 'task_data_sample:number' gave a int, not a loader of (inputs, targets)"
    with pytest.raises(DataError) as error:
        load_data(f"{module}:other")
    assert str(error.value) == "'task_data_sample:other': module 'task_data_sample' has no 'other'"
    with pytest.raises(ConfigError) as config_error:
        load_data(f"{module}:loader", image_size=5)
    assert str(config_error.value) == (
        "data 'task_data_sample:loader': preprocessing, image_size, shuffle and augment are up to the "
        "callable; leave them out"
    )


def test_options_are_checked_together(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_data(tmp_path, split="test", batch_size=0, workers=-1, limit=0, image_size=-3)
    assert str(error.value) == (
        "data: split='test' is not one of train, val\n"
        "data: batch_size=0 is not at least 1\n"
        "data: workers=-1 is negative\n"
        "data: limit=0 is not at least 1\n"
        "data: image_size=-3 is not at least 1"
    )


def test_path_faults(tmp_path):
    missing, text = tmp_path / "none", tmp_path / "notes.txt"
    text.write_text("x")
    split, empty, hollow = tmp_path / "split", tmp_path / "empty", tmp_path / "hollow"
    write_images(split / "train", ["a"], 1, size=(8, 8))
    empty.mkdir()
    (hollow / "cat").mkdir(parents=True)
    expected = {
        missing: "there is no such file or folder; give a folder of class folders, a CIFAR folder, a .npz file or "
        "package.module:callable",
        text: "a data file must be a .npz of arrays; images lie in class folders",
        split: "there is train/ but no val/; choose split='train'",
        empty: "there is no class folder; expected one folder for each class, with its images in it",
    }
    for path, message in expected.items():
        with pytest.raises(DataError) as error:
            load_data(path)
        assert str(error.value) == f"data {str(path)!r}: {message}"
    with pytest.raises(DataError) as error:
        load_data(hollow)
    assert str(error.value).startswith(f"data {str(hollow)!r}: Found no valid file for the classes cat")
    assert str(error.value).endswith("; remove empty class folders")


def test_damaged_image_names_itself(tmp_path):
    write_images(tmp_path, ["a"], 1)
    bad = tmp_path / "a" / "1.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(DataError) as error:
        list(load_data(tmp_path))
    assert str(error.value) == (
        f"data: image {str(bad)!r} cannot be decoded (cannot identify image file {str(bad)!r}); repair or remove it"
    )


GOOD = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (
            {"a": GOOD, "y": [1, 2]},
            "it has 'a', 'y'; expected 'val_x' and 'val_y' or 'x' and 'y' or 'images' and 'labels'",
        ),
        ({}, "it has no array; expected 'val_x' and 'val_y' or 'x' and 'y' or 'images' and 'labels'"),
        (
            {"x": GOOD.astype(np.int32), "y": [1, 2]},
            "'x' is int32 (2, 4, 4, 3); expected uint8 (N, H, W) or (N, H, W, C), or float (N, C, H, W)",
        ),
        (
            {"x": np.zeros((2, 4)), "y": [1, 2]},
            "'x' is float64 (2, 4); expected uint8 (N, H, W) or (N, H, W, C), or float (N, C, H, W)",
        ),
        ({"x": GOOD, "y": [1, 2, 3]}, "'y' is int64 (3,) for 2 images; expected one whole number an image"),
        ({"x": GOOD, "y": [1.0, 2.0]}, "'y' is float64 (2,) for 2 images; expected one whole number an image"),
        ({"x": GOOD[:0], "y": np.zeros(0, int)}, "'x' holds no image"),
    ],
)
def test_npz_faults(arrays, text, tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError) as error:
        load_data(path)
    assert str(error.value) == f"data {str(path)!r}: {text}"


def test_npz_channels_must_fit_the_preprocessing(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((2, 4, 4), np.uint8), y=[0, 1])
    with pytest.raises(DataError) as error:
        load_data(path, preprocessing="imagenet")
    assert str(error.value) == (
        f"data {str(path)!r}: images have 1 channel but the preprocessing's mean has 3 values; give one value, "
        "or one a channel"
    )


def test_npz_unreadable(tmp_path):
    path, objects = tmp_path / "d.npz", tmp_path / "o.npz"
    path.write_bytes(b"nonsense")
    np.savez(objects, x=np.array([None, 1]), y=[0, 1])
    for file in (path, objects):
        with pytest.raises(DataError) as error:
            load_data(file)
        assert str(error.value).startswith(f"data {str(file)!r} cannot be read as .npz: ")


@pytest.mark.parametrize("p", [Preprocessing(), Preprocessing(mean=(0,), std=(1,), crop=None, channel_order="bgr")])
def test_preprocessing_round_trip(p):
    import json

    assert Preprocessing.from_dict(json.loads(json.dumps(p.to_dict()))) == p


def test_preprocessing_faults():
    with pytest.raises(ConfigError) as error:
        Preprocessing(mean=(), std=(0.0,), resize=0, crop=True, interpolation="cubic", channel_order="gbr")
    assert str(error.value) == (
        "preprocessing: mean=[] is not a list of finite numbers\n"
        "preprocessing: std=[0.0] is not a list of positive numbers\n"
        "preprocessing: resize=0 is not a positive whole number or None\n"
        "preprocessing: crop=True is not a positive whole number or None\n"
        "preprocessing: interpolation='cubic' is not one of nearest, bilinear, bicubic\n"
        "preprocessing: channel_order='gbr' is not one of rgb, bgr"
    )
    with pytest.raises(ConfigError) as error:
        Preprocessing(mean=(0.5,))
    assert str(error.value) == "preprocessing: mean has 1 values and std 3; give both the same number"
    with pytest.raises(ConfigError) as error:
        Preprocessing(mean="abc")
    assert str(error.value) == "preprocessing: mean='abc' is not a list of numbers"
    with pytest.raises(ConfigError) as error:
        Preprocessing.from_dict({"size": 3, "width": 1})
    assert str(error.value) == (
        "preprocessing: unknown keys 'size', 'width'; known are mean, std, resize, crop, interpolation, channel_order"
    )
    with pytest.raises(ConfigError) as error:
        Preprocessing.preset("imagnet")
    assert str(error.value) == "preprocessing 'imagnet' is not known; known are imagenet, tf, unit, cifar10, cifar100"


def test_workers_give_the_same_images(tmp_path):
    write_images(tmp_path, ["a", "b"], 3)
    alone, parallel = (gather(load_data(tmp_path, image_size=8, workers=w)) for w in (0, 1))
    assert torch.equal(alone[0], parallel[0])
    assert alone[1] == parallel[1]


def test_an_ordinary_loader_passes_through_first_images():
    from mvq.tasks.data import FirstImages

    loader = DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), batch_size=4)
    assert [y.tolist() for _, y in FirstImages(loader, 5)] == [[0, 1, 2, 3], [4]]
    assert [y.tolist() for _, y in FirstImages(loader, 9)] == [[0, 1, 2, 3], [4, 5]]
