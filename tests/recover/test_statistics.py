"""Moments of input columns and curvature at the outputs."""

import pytest
import torch
from recover_nets import images, residual
from torch import nn

from mvq.recover.statistics import Moments, input_columns, input_energies, output_curvature


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(6, 8, 3, dilation=2, groups=2),
        nn.Conv2d(6, 8, (1, 3), padding="same"),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Linear(6, 5),
    ],
)
def test_columns_times_weight_are_the_outputs(layer):
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 9, 9)
    columns = input_columns(layer, x)
    weight = layer.weight.reshape(len(columns), -1, columns.shape[2])
    out = columns @ weight.mT + layer.bias.reshape(len(columns), 1, -1)
    expected = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
    torch.testing.assert_close(out.transpose(0, 1).reshape(-1, len(layer.bias)), expected.reshape(-1, len(layer.bias)))


def test_a_sample_of_positions_is_taken_of_every_image():
    layer = nn.Conv2d(2, 4, 3)
    x = torch.randn(5, 2, 10, 10)
    every, some = input_columns(layer, x), input_columns(layer, x, 7)
    assert some.shape == (1, 5 * 7, 18)
    # First and last position of each image are among them.
    torch.testing.assert_close(some[0, ::7], every[0, ::64])
    torch.testing.assert_close(some[0, 6::7], every[0, 63::64])


@pytest.mark.parametrize("max_columns", [100, 5, 4])
def test_moments_do_not_depend_on_batches(max_columns):
    x, y = torch.randn(2, 30, 12), torch.randn(2, 30, 12)
    moments = Moments(12, max_columns)
    for low, high in ((0, 3), (3, 20), (20, 30)):
        moments.add(x[:, low:high], y[:, low:high])
    for part, second, cross in zip(moments.slices, moments.second, moments.cross, strict=True):
        torch.testing.assert_close(second, x[:, :, part].mT @ x[:, :, part] / 30)
        torch.testing.assert_close(cross, y[:, :, part].mT @ x[:, :, part] / 30)
    torch.testing.assert_close(moments.diagonal(), x.square().mean(1))
    assert max(len(m[0]) for m in moments.second) <= max_columns
    assert moments.slices[-1].stop == 12


def drawn(n_images: int, positions: int) -> torch.Tensor:
    """Columns `(1, n_images * positions, 24)` of known second moment; those of one image are nearly alike."""
    generator = torch.Generator().manual_seed(0)
    of_image = torch.randn(n_images, 1, 24, generator=generator)
    of_position = torch.randn(n_images, positions, 24, generator=generator)
    x = (of_image + 0.1 * of_position) @ mixing()
    return (x + 1.5).reshape(1, -1, 24)


def mixing() -> torch.Tensor:
    generator = torch.Generator().manual_seed(99)
    return torch.diag(torch.logspace(-1, 1, 24)) @ (torch.eye(24) + 0.1 * torch.randn(24, 24, generator=generator))


def true_second() -> torch.Tensor:
    return 1.01 * mixing().T @ mixing() + 1.5**2


def moments_of(x: torch.Tensor, n_images: int) -> Moments:
    moments = Moments(24, 10**6)
    half = n_images // 2 * (x.shape[1] // n_images)
    moments.add(x[:, :half], n_images=n_images // 2)
    moments.add(x[:, half:], n_images=n_images - n_images // 2)
    return moments


@pytest.mark.parametrize("positions", [1, 8, 40])
def test_shrinking_is_as_the_formula_says(positions):
    """Against Schaefer and Strimmer's estimate written out, on columns whose mean is guessed from the first half."""
    x = drawn(10, positions)
    moments = moments_of(x, 10)
    first = x[0, : 5 * positions]
    mean, scale = first.mean(0), first.std(0, correction=0)
    z = ((x[0] - mean) / scale).reshape(10, positions, 24)
    of_images = z.mT @ z / positions
    noise = of_images.var(0, correction=1) / 10
    off = ~torch.eye(24, dtype=torch.bool)
    share = float((noise[off].sum() / of_images.mean(0)[off].square().sum()).clamp(0, 1))
    assert 0.01 < share < 0.9
    covariance = torch.cov(x[0].T, correction=0)
    square = torch.outer(x[0].mean(0), x[0].mean(0))
    expected = torch.where(off, (1 - share) * covariance, covariance) + square
    second, cross = moments.shrunk()[0]
    torch.testing.assert_close(second[0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cross, second, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("positions", [1, 20])
def test_few_images_say_little_of_how_columns_move_together(positions):
    """However many positions they have. Moments of many images are left as they are."""

    def error(moment: torch.Tensor) -> float:
        scale = true_second().diagonal().sqrt()
        return float(((moment[0] - true_second()) / scale[:, None] / scale).norm())

    few = moments_of(drawn(12, positions), 12)
    assert error(few.shrunk()[0][0]) < 0.9 * error(few.second[0])
    many = moments_of(drawn(4000, 2), 4000)
    torch.testing.assert_close(many.shrunk()[0][0], many.second[0], rtol=0.02, atol=0.05)


def test_shrunk_moments_stay_positive_semidefinite():
    """Although the first batch, from which means are guessed, may be far off."""
    x = torch.randn(1, 12, 24, generator=torch.Generator().manual_seed(1))
    moments = Moments(24, 10**6)
    moments.add(x[:, :2], n_images=2)
    moments.add(x[:, 2:], n_images=10)
    second = moments.shrunk()[0][0]
    eigenvalues = torch.linalg.eigvalsh(second[0].double())
    assert eigenvalues.min() > -1e-6 * eigenvalues.max()


def test_what_a_few_images_say_of_the_dense_network_counts_as_little():
    """Changed inputs that have nothing to do with the columns must not seem to be explained by them."""
    x = drawn(12, 1)
    moments = Moments(24, 10**6)
    moments.add(x, x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5)))
    second, cross = moments.shrunk()[0]
    assert (cross - second).norm() < 0.8 * (moments.cross[0] - moments.second[0]).norm()


def test_input_energies_are_those_of_the_inputs():
    model, x = residual(), images(6)
    modules = {"project": model.project[0], "fc": model.fc}
    found = input_energies(model, modules, x.split(4), 10**6)
    with torch.no_grad():
        hidden = model.depthwise(model.expand(model.stem(x)))
    torch.testing.assert_close(found["project"][0], hidden.square().mean((0, 2, 3)))


def own(found: torch.Tensor, share: float) -> torch.Tensor:
    """What is left of a curvature when the share that is alike for all channels is taken out."""
    return (found - share) / (1 - share)


def test_curvature_is_the_mean_squared_gradient_of_drawn_labels():
    """Against the exact expectation over labels: `p_o (1 - p_o)` at the outputs of the last layer."""
    model, x = residual(), images(4000)
    with torch.no_grad():
        model.fc.bias += torch.arange(10) / 3
    found = output_curvature(model, {"fc": model.fc}, [x])["fc"]
    with torch.no_grad():
        p = model(x).softmax(1)
    expected = (p * (1 - p)).mean(0)
    assert expected.max() > 5 * expected.min()
    torch.testing.assert_close(own(found, 0.1), expected / expected.mean(), rtol=0.1, atol=0.05)
    assert all(p.grad is None for p in model.parameters())
    again = output_curvature(model, {"fc": model.fc}, [x])["fc"]
    assert torch.equal(found, again)


def test_curvature_of_a_few_images_is_what_they_can_tell():
    """Against the estimate written out, and nearer to that of many images than without it."""
    model, many = residual(), images(2000)
    exact = own(output_curvature(model, {"fc": model.fc}, [many])["fc"], 0.1)
    x = many[:12]
    squares: list[torch.Tensor] = []

    def note(module: nn.Module, _: object, y: torch.Tensor) -> None:
        y.register_hook(lambda gradient: squares.append(gradient.square()))

    handle = model.fc.register_forward_hook(note)
    found = output_curvature(model, {"fc": model.fc}, [x[:5], x[5:]])["fc"]
    handle.remove()
    of_images = torch.cat(squares)
    mean = of_images.mean(0)
    share = float((of_images.var(0).mean() / 12 / mean.var(correction=0)).clamp(0.1, 1))
    assert share > 0.3
    torch.testing.assert_close(found, share + (1 - share) * mean / mean.mean())
    assert (found - exact).norm() < 0.8 * (mean / mean.mean() - exact).norm()


def test_curvature_of_maps_is_that_of_squared_error():
    layer = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        tail = nn.Conv2d(4, 5, 1, bias=False)
        tail.weight[:, 0] = 0
    found = output_curvature(nn.Sequential(layer, tail), {"a": layer}, [images(8)])["a"]
    expected = tail.weight.detach().flatten(1).square().sum(0)
    torch.testing.assert_close(own(found, 0.1), expected / expected.mean(), rtol=0.2, atol=1e-6)


def test_a_score_says_which_outputs_count():
    layer, tail, x = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), images(8)

    def first_alone(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        y = outputs[:, 0]
        return (y * torch.randn(y.shape, generator=generator)).sum()

    found = output_curvature(nn.Sequential(layer, tail), {"a": layer}, [x], score=first_alone)["a"]
    expected = tail.weight.detach()[0].flatten().square()
    torch.testing.assert_close(own(found, 0.1), expected / expected.mean(), rtol=1e-4, atol=1e-5)


def test_channels_that_no_image_says_anything_of_still_count():
    layer, x = nn.Conv2d(3, 4, 1), images(8)
    with torch.no_grad():
        tail = nn.Conv2d(4, 5, 1)
        tail.weight[:, 2] = 0
    found = output_curvature(nn.Sequential(layer, tail), {"a": layer}, [x])["a"]
    assert float(found[2]) == pytest.approx(0.1)
    assert float(found.mean()) == pytest.approx(1)


def test_one_image_says_nothing_of_channels():
    layer = nn.Conv2d(3, 4, 1)
    assert torch.equal(output_curvature(layer, {"a": layer}, [images(1)])["a"], torch.ones(4))


def test_layers_without_gradient_count_alike():
    net = nn.ModuleDict({"used": nn.Conv2d(3, 4, 1), "unused": nn.Conv2d(3, 4, 1)})
    net.forward = lambda x: net["used"](x)  # type: ignore[method-assign]
    found = output_curvature(net, dict(net.items()), [images(2)])
    assert torch.equal(found["unused"], torch.ones(4))
