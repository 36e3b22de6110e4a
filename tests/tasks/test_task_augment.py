"""Augmentation: what it does, and that seed, epoch and image alone decide."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvq.errors import DataError
from mvq.tasks import Preprocessing, load_data
from mvq.tasks.augment import _part, shift_and_flip


@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_shift_and_flip_agrees_with_slicing(n, height, width, channels, seed):
    rng = np.random.default_rng(seed)
    images, numbers = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8), rng.random((n, 3))
    found = shift_and_flip(images, numbers)
    assert found.dtype == np.uint8
    down, right = height // 8, width // 8
    for image, (v, h, m), out in zip(images, numbers, found, strict=True):
        padded = np.zeros((height + 2 * down, width + 2 * right, channels), np.uint8)
        padded[down : down + height, right : right + width] = image
        top, left = int(v * (2 * down + 1)), int(h * (2 * right + 1))
        cut = padded[top : top + height, left : left + width]
        assert np.array_equal(out, cut[:, ::-1] if m >= 0.5 else cut)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32 - 1), st.sampled_from([0.08, 0.35, 1.0]))
def test_random_part_is_inside(height, width, seed, least):
    top, left, h, w = _part(height, width, np.random.default_rng(seed), least)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h * w > 0


@pytest.fixture(params=["arrays", "floats", "folders"])
def data(request, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    if request.param == "folders":
        for i, image in enumerate(pixels):
            (tmp_path / str(labels[i])).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / str(labels[i]) / f"{i:02d}.png")
        return tmp_path, {"preprocessing": Preprocessing(resize=None, crop=16)}
    x = pixels if request.param == "arrays" else pixels.transpose(0, 3, 1, 2).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=labels)
    return tmp_path / "d.npz", {}


def epoch(loader, number=None):
    if number is not None:
        loader.sampler.set_epoch(number)
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_seed_epoch_and_image_decide(data):
    spec, options = data

    def load(**more):
        return load_data(spec, augment=True, **{**options, "batch_size": 5, "seed": 3, **more})

    plain = epoch(load_data(spec, **options))[0]
    images = epoch(load(), 4)[0]
    assert images.shape == plain.shape
    assert not torch.equal(images, plain)
    assert torch.equal(epoch(load(batch_size=12), 4)[0], images)
    assert not torch.equal(epoch(load(seed=4), 4)[0], images)
    assert not torch.equal(epoch(load(), 5)[0], images)
    # Some images of a shuffled or limited set are the same ones.
    order = epoch(load(shuffle=True), 4)[0]
    assert not torch.equal(order, images)
    assert torch.equal(order.sum((1, 2, 3)).sort().values, images.sum((1, 2, 3)).sort().values)
    assert torch.equal(epoch(load(limit=4), 4)[0], images[[0, 3, 6, 9]])


def test_passes_go_through_epochs(data):
    spec, options = data
    loader = load_data(spec, augment=True, shuffle=True, **options)
    first, second = (epoch(loader)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(epoch(loader, 0)[0], first)
    assert torch.equal(epoch(loader)[0], second)


def test_workers_follow_the_epoch(data):
    spec, options = data
    loaders = [load_data(spec, augment=True, batch_size=5, workers=w, **options) for w in (0, 1)]
    seen = []
    for number in (0, 3, 0):
        alone, apart = (epoch(loader, number) for loader in loaders)
        assert torch.equal(alone[0], apart[0])
        assert torch.equal(alone[1], apart[1])
        seen.append(alone[0])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_last_batch_is_left_out_unless_it_is_the_only_one(data):
    spec, options = data
    sizes = [[len(y) for _, y in load_data(spec, batch_size=b, drop_last=True, **options)] for b in (5, 12, 20)]
    assert sizes == [[5, 5], [12], [12]]


def test_resized_crop_without_crop_size_only_mirrors(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    loader = load_data(tmp_path, preprocessing="unit", augment=True)
    seen = {image.numpy().tobytes() for image in (epoch(loader)[0][0] for _ in range(8))}
    straight = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    assert seen == {straight.numpy().tobytes(), straight.flip(2).numpy().tobytes()}


def test_an_epoch_of_cifar_costs_little(tmp_path, set_threads):
    np.savez(tmp_path / "d.npz", x=np.zeros((10_000, 32, 32, 3), np.uint8), y=np.zeros(10_000, int))
    loader = load_data(tmp_path / "d.npz", preprocessing="cifar10", batch_size=128, shuffle=True, augment=True)
    set_threads(1)  # threads that wait for others count as work
    batched = _cpu_seconds(lambda: sum(len(y) for _, y in loader))
    singly = _cpu_seconds(lambda: sum(len(loader.dataset[i][0][:1]) for i in range(10_000)))
    assert batched < singly / 2


def _cpu_seconds(work: Callable[[], int]) -> float:
    """The least of three runs over 10,000 images."""
    found = []
    for _ in range(3):
        start = time.process_time()
        assert work() == 10_000
        found.append(time.process_time() - start)
    return min(found)


def test_missing_image_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "0.png")
    loader = load_data(tmp_path)
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0.png' cannot be decoded \(.*No such file"):
        list(loader)
