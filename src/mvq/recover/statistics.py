"""What calibration images tell about a layer: moments of its input columns, curvature at its outputs.

Input columns are those of im2col in the order of the weight's `(cin, kh, kw)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mvq.outputs import Score, output_score

#: Share of the curvature that all output channels have alike, at least: none is free to be wrong.
_SHARED = 0.1


def n_groups(module: nn.Module) -> int:
    """Groups of a convolution, 1 for a linear layer."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def input_columns(module: nn.Module, x: Tensor, positions: int | None = None) -> Tensor:
    """The columns a weight is multiplied with.

    Args:
        module: convolution or linear layer.
        x: its input.
        positions: most output positions taken of an image, evenly spread; None for all.

    Returns:
        Float32 `(groups, n, Cin/groups * kh * kw)`.
    """
    if isinstance(module, nn.Linear):
        return x.float().reshape(1, -1, x.shape[-1])
    assert isinstance(module, nn.Conv2d)
    padding: Any = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = functional.pad(x, module._reversed_padding_repeated_twice, mode), 0
    found = functional.unfold(x.float(), module.kernel_size, module.dilation, padding, module.stride)
    if positions is not None and found.shape[2] > positions:
        found = found[:, :, torch.linspace(0, found.shape[2] - 1, positions, device=x.device).long()]
    found = found.reshape(len(x), module.groups, -1, found.shape[2])
    return found.permute(1, 0, 3, 2).reshape(module.groups, -1, found.shape[2])


class Moments:
    """Mean of `x x^T` over the input columns of one layer, and of the dense network's columns with them.

    Blocks on the diagonal where there are more than `max_columns` columns, so that at most
    `2 * groups * columns * min(columns, max_columns)` float32 values are held.

    Attributes:
        slices: columns of each block.
        second: for each block `(groups, c, c)`, mean of `x x^T`.
        cross: for each block `(groups, c, c)`, mean of `x_dense x^T`.
    """

    def __init__(self, n_columns: int, max_columns: int) -> None:
        self.slices = [slice(low, min(low + max_columns, n_columns)) for low in range(0, n_columns, max_columns)]
        self.second: list[Tensor] = []
        self.cross: list[Tensor] = []
        self._n = 0
        self._images = 0
        # A first guess of the columns' means and scales, in which the noise of `second` is judged.
        self._guess: list[tuple[Tensor, Tensor]] = []
        self._mean: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, columns: Tensor, dense: Tensor | None = None, *, n_images: int | None = None) -> None:
        """Take in columns, and those of the dense network at the same places.

        Args:
            columns: `(groups, n, c)`.
            dense: as `columns`, which it is by default.
            n_images: that they come from, in equal numbers and one after the other; n by default.
        """
        n, n_images = columns.shape[1], n_images or columns.shape[1]
        first = self._n == 0
        share = n / (self._n + n)
        for i, part in enumerate(self.slices):
            x = columns[:, :, part]
            y = x if dense is None else dense[:, :, part]
            second, cross, mean = x.mT @ x / n, y.mT @ x / n, x.mean(1)
            if first:
                self.second.append(second)
                self.cross.append(cross)
                self._mean.append(mean)
                scale = x.std(1, correction=0)
                self._guess.append((mean.clone(), torch.where(scale > 0, scale, 1.0)))
                self._squares.append(x.new_zeros(len(x)))
            else:
                self.second[i].lerp_(second, share)
                self.cross[i].lerp_(cross, share)
                self._mean[i].lerp_(mean, share)
            self._squares[i] += _squared_off_diagonals(x, *self._guess[i], n_images)
        self._n += n
        self._images += n_images

    def shrunk(self) -> list[tuple[Tensor, Tensor]]:
        """`second` and `cross` by block, without what a few images suggest by chance.

        Covariances of columns are drawn to zero by the share of their squares that is noise (Schaefer and Strimmer,
        2005, target D), with images as the independent samples: positions of one image are not. Without it a layer
        with more columns than images, such as a classifier, would be fitted to these images alone.
        """
        found = []
        for second, cross, mean, (a, scale), squares in zip(
            self.second, self.cross, self._mean, self._guess, self._squares, strict=True
        ):
            shift = a[:, :, None] * mean[:, None, :]
            about = second - shift - shift.mT + a[:, :, None] * a[:, None, :]
            scaled = about / (scale[:, :, None] * scale[:, None, :])
            total = scaled.square().sum((1, 2)) - scaled.diagonal(dim1=1, dim2=2).square().sum(1)
            noise = (squares / self._images - total) / max(self._images - 1, 1)
            share = (noise / total.clamp_min(1e-30)).clamp(0, 1)[:, None, None]
            # About the mean itself: the sum of what is left and the mean's square is positive semidefinite.
            square = mean[:, :, None] * mean[:, None, :]
            covariance = second - square
            own = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
            firm = (1 - share) * covariance + share * own + square
            found.append((firm, firm + (1 - share) * (cross - second)))
        return found

    def diagonal(self) -> Tensor:
        """E[x^2] `(groups, columns)`."""
        return torch.cat([m.diagonal(dim1=1, dim2=2) for m in self.second], 1)


def _squared_off_diagonals(x: Tensor, mean: Tensor, scale: Tensor, n_images: int) -> Tensor:
    """Squares of the off-diagonals of each image's moments, summed, `(groups,)`; of `(groups, n, c)` columns."""
    z = ((x - mean[:, None]) / scale[:, None]).reshape(len(x), n_images, -1, x.shape[2])
    n = z.shape[2]
    gram = z @ z.mT if n < x.shape[2] else z.mT @ z
    diagonals = z.square().sum(2)
    return (gram.square().sum((2, 3)) - diagonals.square().sum(2)).sum(1) / n**2


@contextmanager
def watching(modules: Sequence[nn.Module], see: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `see(module, input, output)` at each forward of the modules; what it returns replaces the output."""

    def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        return see(module, args[0], output)

    handles = [m.register_forward_hook(hook) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_energies(
    model: nn.Module, modules: dict[str, nn.Module], batches: Sequence[Tensor], positions: int
) -> dict[str, Tensor]:
    """E[x^2] of every input position, in one pass.

    Args:
        model: in `eval` mode.
        modules: layers by name.
        batches: of images.
        positions: most output positions taken of an image.

    Returns:
        `(groups, Cin/groups * kh * kw)` by layer name.
    """
    sums: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, x: Tensor, _: Tensor) -> None:
        square = input_columns(module, x, positions).square().mean(1) * len(x)
        sums[module] = sums.get(module, torch.zeros(())) + square

    with torch.no_grad(), watching(list(modules.values()), see):
        for batch in batches:
            model(batch)
    total = sum(len(batch) for batch in batches)
    return {name: sums[module] / total for name, module in modules.items() if module in sums}


def output_curvature(
    model: nn.Module,
    modules: dict[str, nn.Module],
    batches: Sequence[Tensor],
    *,
    score: Score | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Mean squared gradient at each output channel: the diagonal of the Fisher information, without labels.

    Labels are drawn from the network's own predictions where it gives `(n, classes)` scores; of any other output the
    gradient of a random projection is taken, whose squared mean is the Gauss-Newton diagonal of the squared error.

    Args:
        model: in `eval` mode.
        modules: layers by name.
        batches: of images.
        score: `(outputs, generator)` to the summed negative log-likelihood of drawn targets, instead.
        seed: of the drawn labels or projections.

    Returns:
        `(Cout,)` by layer name, of mean 1, drawn to 1 by the share of the channels' differences that is noise of the
        images and draws (James and Stein, 1961), at least `_SHARED`: few images say nothing of most of a thousand
        classes. Ones where no gradient arrives.
    """
    by_image: dict[nn.Module, list[Tensor]] = {module: [] for module in modules.values()}
    generator = torch.Generator().manual_seed(seed)

    def see(module: nn.Module, _: Tensor, y: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            channels = gradient.movedim(-1 if isinstance(module, nn.Linear) else 1, -1)
            square = channels.float().square()
            by_image[module].append(square.reshape(len(square), -1, square.shape[-1]).sum(1))

        y.register_hook(add)

    with watching(list(modules.values()), see):
        for batch in batches:
            (score or output_score)(model(batch.clone().requires_grad_()), generator).backward()
    model.zero_grad(set_to_none=True)
    return {name: _curvature(by_image[m], m.weight.shape[0]) for name, m in modules.items()}  # type: ignore[union-attr]


def _curvature(by_image: list[Tensor], n_channels: int) -> Tensor:
    """Mean over images relative to that of all channels, without what is noise."""
    ones = torch.ones(n_channels)
    squares = torch.cat(by_image) if by_image else ones[None]
    mean = squares.mean(0)
    if len(squares) < 2 or not mean.mean() > 0:
        return ones
    noise, all_ = squares.var(0).mean() / len(squares), mean.var(correction=0)
    share = float((noise / all_).clamp(_SHARED, 1)) if all_ > 0 else 1.0
    return share + (1 - share) * mean / mean.mean()
