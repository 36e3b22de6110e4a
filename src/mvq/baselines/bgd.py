"""BGD: quantization by the error of a layer's output, Stock et al., "And the Bit Goes Down", ICLR 2020.

A layer with weight W and input rows x is quantized to minimise `|x W - x W_hat|^2` (section 3.2, eq. 3), where all
blocks of W share one codebook and, as in the paper, all blocks of x are pooled. With X the pooled rows of d values
that objective is `sum_v (v - c)^T X^T X (v - c)` over the blocks v and their codewords c: k-means under one metric, the
second moment `X^T X`, for which both steps are exact. Layers follow one another, each with the inputs that the already
quantized network gives it, and each followed by training of its codewords on the teacher's outputs (section 3.3,
algorithm 1). The last step of the method, training of all codewords at once, is left to the caller.

Deviations: the second moment is of all positions of the calibration images, where the authors draw a few thousand
rows anew for each iteration; a small ridge takes the place of the pseudo-inverse; empty clusters as in
`product.lloyd`; limits of k as in `product.setting`. Training of a layer's codewords starts from the same values as
theirs (SGD, learning rate 0.05, momentum 0.9, weight decay 1e-4, gradients averaged over a codeword's blocks), for
`layer_steps` steps where they take 2500.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvq.baselines.product import Clusters, ProductWeight, Setting, attach_int8_, blocks, check_effort, lloyd, planned
from mvq.errors import ConfigError, DataError
from mvq.nn.layers import as_recipe, attach, dense_weight, unwrap
from mvq.progress import track
from mvq.recipe import Recipe
from mvq.train.objectives import Distillation, Objective, to_device

_RIDGE = 1e-4
_LR, _MOMENTUM, _WEIGHT_DECAY = 0.05, 0.9, 1e-4
#: Images unfolded at a time: their rows are `kh * kw` times as large as the input.
_UNFOLD = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BgdOptions:
    """Effort of BGD.

    Attributes:
        n_iters: most EM iterations a layer.
        n_images: calibration images that a layer's inputs are taken of, rounded up to whole batches.
        layer_steps: optimizer steps on a layer's codewords, 0 for none.

    Raises:
        ConfigError: if a number is out of range.
    """

    n_iters: int = 100
    n_images: int = 1024
    layer_steps: int = 100

    def __post_init__(self) -> None:
        check_effort(self, {"n_iters": 1, "n_images": 1, "layer_steps": 0}, "bgd_")


def bgd_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int,
    *,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool = False,
    options: BgdOptions | None = None,
    objective: Objective | None = None,
) -> nn.Module:
    """Compress a model by BGD up to, and without, the training of all layers at once.

    Args:
        model: dense; changed in place. It also is the teacher.
        recipe: says which layers are compressed, int8 or left alone; its patterns and sizes are not used.
        target_bits: of all compressed weights; exceeded by 1% at most.
        calibration: yields `(inputs, targets)`, gone through several times; targets are used by `objective` only.
        seed: of starts and splits.
        progress: show a bar over layers.
        options: effort.
        objective: scalar of `(model, batch)` that a layer's codewords are trained on; by default KL divergence
            between the softmax outputs of teacher and model over axis 1, so other outputs than class scores need
            one (or no `layer_steps`).

    Returns:
        The model.

    Raises:
        ConfigError: without calibration, or if the size cannot be reached.
        DataError: if the calibration yields nothing.
        ModelError: as `product.planned`.
        WeightError: on NaN or infinite weights.
    """
    recipe, options, root = as_recipe(recipe), options or BgdOptions(), unwrap(model)
    if calibration is None:
        raise ConfigError("bgd_: it weighs errors by a layer's inputs; give calibration, a loader of (inputs, targets)")
    layers, settings = planned(model, recipe, target_bits, method="bgd_", seed=seed)
    modes = {module: module.training for module in root.modules()}
    root.eval()
    objective = objective or Distillation(copy.deepcopy(root), temperature=1, weight=1)
    attach_int8_(layers, recipe)
    generator = torch.Generator().manual_seed(seed)
    try:
        jobs = [(name, module) for name, module, _ in layers if name in settings]
        for name, module in track(jobs, "bgd", enabled=progress):
            moment = input_moment(root, module, calibration, settings[name].d, options.n_images)
            weight = dense_weight(module)
            found = quantize(weight, settings[name], moment, n_iters=options.n_iters, generator=generator)
            form = ProductWeight(name, recipe, weight.shape, found.codebook.to(weight.dtype), found.codes)
            attach(module, form)
            _train_codewords(root, form, calibration, objective, options.layer_steps)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return model


def quantize(weight: Tensor, setting: Setting, moment: Tensor, *, n_iters: int, generator: torch.Generator) -> Clusters:
    """EM in the metric of the inputs (section 3.2).

    Args:
        weight: of the layer.
        setting: block size and codewords.
        moment: `(d, d)` second moment of the input blocks, up to a factor; zero stands for the identity.
        n_iters: most iterations.
        generator: on the CPU.

    Returns:
        Codewords in the weight's own coordinates; the objective is in the metric, scaled to trace d.
    """
    vectors = blocks(weight, setting.d)
    whitened = vectors @ _root(moment).to(vectors)
    found = lloyd(whitened, setting.n_codewords, n_iters=n_iters, generator=generator)
    # Means commute with the linear map, so the codewords need no inverse of it.
    return found.of(vectors)


def _root(moment: Tensor) -> Tensor:
    """`L` with `L L^T` the moment, scaled to trace d and made positive definite."""
    identity = torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    scale = moment.double().trace() / len(moment)
    if scale <= 0:
        return identity
    return torch.linalg.cholesky(moment.double() / scale + _RIDGE * identity)


@torch.no_grad()
def input_moment(root: nn.Module, layer: nn.Module, calibration: Iterable[Any], d: int, n_images: int) -> Tensor:
    """Second moment `(d, d)` in float64 of a layer's input, cut into blocks as the layer's weight is.

    Args:
        root: run as it is.
        layer: a convolution or linear layer in it; zero if it is not called.
        calibration: yields `(inputs, targets)`.
        d: values of a block.
        n_images: batches are taken until this many images are seen.

    Raises:
        DataError: if there is no batch.
    """
    total = torch.zeros(d, d, dtype=torch.float64, device=_place(root))

    def collect(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for rows in _unfolded(layer, inputs[0].detach().float()):
            cut = rows.reshape(-1, d, rows.shape[-1])
            total.add_((cut @ cut.transpose(1, 2)).sum(0, dtype=torch.float64))

    handle = layer.register_forward_pre_hook(collect)
    seen = 0
    try:
        for inputs, _ in _batches(calibration, _place(root)):
            root(inputs)
            seen += len(inputs)
            if seen >= n_images:
                break
    finally:
        handle.remove()
    if not seen:
        raise DataError("bgd_: calibration yields no batch; give it data, or a list, not a used-up iterator")
    return total


def _unfolded(layer: Any, inputs: Tensor) -> Iterator[Tensor]:
    """`(n, Cin * kh * kw, positions)`: the values that each row of the weight meets."""
    if isinstance(layer, nn.Linear):
        yield inputs.reshape(1, -1, inputs.shape[-1]).transpose(1, 2)
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    for part in inputs.split(_UNFOLD):
        padded = F.pad(part, layer._reversed_padding_repeated_twice, mode=mode)
        yield F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)


def _train_codewords(
    root: nn.Module, form: ProductWeight, calibration: Iterable[Any], objective: Objective, n_steps: int
) -> None:
    """SGD on one layer's codewords, all else fixed (section 3.3)."""
    if not n_steps:
        return
    members = torch.bincount(form.codes.flatten(), minlength=len(form.codebook)).clamp_min(1).unsqueeze(1)
    optimizer = torch.optim.SGD([form.codebook], lr=_LR, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    for batch in islice(_forever(calibration, _place(root)), n_steps):
        (gradient,) = torch.autograd.grad(objective(root, batch), form.codebook)
        form.codebook.grad = gradient / members
        optimizer.step()
    form.codebook.grad = None


def _forever(calibration: Iterable[Any], place: torch.device) -> Iterator[Any]:
    while True:
        yield from _batches(calibration, place)


def _batches(calibration: Iterable[Any], place: torch.device) -> Iterator[tuple[Any, Any]]:
    for inputs, targets in calibration:
        yield to_device(inputs, place), to_device(targets, place)


def _place(root: nn.Module) -> torch.device:
    return next(root.parameters()).device
