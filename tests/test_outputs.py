"""What outputs say, and how far two networks' are apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mvq.errors import ModelError
from mvq.outputs import divergence, drawn_cross_entropy, logits, output_loss, output_score, score_and_loss, tensors_in


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_divergence_is_the_mean_over_places() -> None:
    ours, theirs = values(2, 5, 3, 4), values(2, 5, 3, 4, seed=1)
    p, q = ((x / 2).softmax(1) for x in (theirs, ours))
    want = (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(divergence(ours, theirs, 2.0), want, atol=1e-6)
    nested = divergence({"out": ours, "aux": theirs}, {"out": theirs, "aux": ours}, 2.0)
    assert torch.equal(nested, divergence(ours, theirs, 2.0))
    assert float(divergence(ours, ours)) == pytest.approx(0, abs=1e-6)


def test_drawn_classes_follow_the_logits() -> None:
    """The gradient of the drawn loss has mean zero; its square is the Fisher information, `p (1 - p)`."""
    x = values(1, 3).repeat(20_000, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(drawn_cross_entropy(x, torch.Generator().manual_seed(0)), x)
    p = x[0].softmax(0).detach()
    assert torch.allclose(gradient.mean(0), torch.zeros(3), atol=0.02)
    assert torch.allclose(gradient.square().mean(0), p * (1 - p), atol=0.02)


def test_pixels_are_drawn_as_rows_are() -> None:
    maps = values(2, 5, 3, 4)
    rows = maps.movedim(1, -1).reshape(-1, 5)
    found = [drawn_cross_entropy(x, torch.Generator().manual_seed(3)) for x in (maps, rows, {"out": maps, "aux": rows})]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("outputs", "what"),
    [([torch.zeros(2, 3)], "a list"), (torch.zeros(4), "shape (4,)"), ({"boxes": torch.zeros(2, 3)}, "a dict")],
)
def test_what_is_not_logits(outputs: object, what: str) -> None:
    with pytest.raises(ModelError) as error:
        logits(outputs)
    want = f"the model gives {what}, not logits (n, n_classes, ...); give a score or a loss of its own"
    assert str(error.value) == want


def test_output_loss_is_relative_where_no_classes_are_known() -> None:
    ours, theirs = values(2, 5, 3, 4), values(2, 5, 3, 4, seed=1)
    found = output_loss([ours, 10 * ours, torch.arange(3)], [theirs, 10 * theirs, torch.arange(3)])
    assert torch.allclose(found, (ours - theirs).square().mean() / theirs.var())
    rows = ours[..., 0, 0], theirs[..., 0, 0]
    assert torch.allclose(output_loss(*rows), 4 * divergence(*rows, temperature=2))


def test_output_score_is_unit_noise_where_no_classes_are_known() -> None:
    x = values(1, 4, 100, 100).requires_grad_()
    found = output_score({"map": x, "n": torch.arange(3)}, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(found, x)
    assert float(gradient.square().mean()) == pytest.approx(1, abs=0.03)
    rows = values(6, 4)
    found = [score(rows, torch.Generator().manual_seed(1)) for score in (output_score, drawn_cross_entropy)]
    assert found[0] == found[1]


def test_segmentation_has_classes_at_every_pixel() -> None:
    assert score_and_loss("segmentation") == (drawn_cross_entropy, divergence)
    assert score_and_loss("classification") == score_and_loss("detection") == (None, None)


def test_tensors_of_anything_nested() -> None:
    one, two, three = values(1), values(2), nn.Parameter(values(3))
    assert [len(t) for t in tensors_in({"a": [one, (two, "text")], "b": {"c": three}, "d": 3})] == [1, 2, 3]
