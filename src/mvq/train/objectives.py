"""What is minimised: a supervised loss, or distillation from a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvq.errors import ConfigError, DataError
from mvq.outputs import Loss, divergence, output_loss, tensors_in

Objective = Callable[[nn.Module, Any], Tensor]
_IGNORED = -100


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy; class targets are checked first, since a device may only crash on wrong ones.

    Args:
        outputs: `(n, n_classes, ...)` logits.
        targets: integer classes `(n, ...)`, -100 to leave an entry out; or probabilities shaped like `outputs`.

    Raises:
        DataError: if a class lies outside 0..n_classes - 1.
    """
    if isinstance(targets, Tensor) and not targets.is_floating_point() and targets.numel() and outputs.ndim > 1:
        real = targets[targets != _IGNORED]
        if real.numel():
            low, high = int(real.min()), int(real.max())
            n_classes = outputs.shape[1]
            if low < 0 or high >= n_classes:
                raise DataError(
                    f"labels span {low}..{high}, but the model has {n_classes} classes, 0..{n_classes - 1}; "
                    "renumber the labels or give the model another last layer"
                )
    return F.cross_entropy(outputs, targets)


class Supervised:
    """`loss_fn(model(inputs), targets)` of a pair."""

    def __init__(self, loss_fn: Loss | None = None) -> None:
        self.loss_fn = loss_fn or cross_entropy

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one batch.

        Raises:
            DataError: if the batch is not a pair.
        """
        inputs, targets = pair(batch)
        return self.loss_fn(model(inputs), targets)


class _Taught:
    """Holds a teacher, which runs in eval mode, without gradients, on the device of the inputs."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def _ask(self, inputs: Any) -> Any:
        place = next((t.device for t in tensors_in(inputs)), None)
        if place is not None and any(p.device != place for p in self.teacher.parameters()):
            self.teacher.to(place)
        modes = {m: m.training for m in self.teacher.modules() if m.training}
        self.teacher.eval()
        try:
            return self.teacher(inputs)
        finally:
            for module in modes:
                module.training = True


class Matching(_Taught):
    """`loss_fn(model(inputs), teacher(inputs))`: towards another network's outputs, without labels.

    The teacher runs in eval mode, without gradients, on the device of the inputs. A loader may yield inputs alone.

    Args:
        teacher: gives outputs like the model that is trained.
        loss_fn: of the outputs and the teacher's.
    """

    def __init__(self, teacher: nn.Module, loss_fn: Loss = output_loss) -> None:
        super().__init__(teacher)
        self.loss_fn = loss_fn

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one batch."""
        inputs = inputs_of(batch)
        return self.loss_fn(model(inputs), self._ask(inputs))


class Distillation(_Taught):
    """`weight * T^2 * KL(teacher || student) + (1 - weight) * loss`, T the temperature (Hinton et al., 2015).

    The teacher runs in eval mode, without gradients, on the device of the inputs.

    Args:
        teacher: gives logits, see `mvq.outputs.logits`, as the model that is trained.
        temperature: softens both distributions.
        weight: share of the teacher, 0..1; at 1 labels are not looked at, and a loader may yield inputs alone.
        loss_fn: of the labels.

    Raises:
        ConfigError: on a temperature or weight out of range.
    """

    def __init__(
        self, teacher: nn.Module, *, temperature: float = 4.0, weight: float = 0.9, loss_fn: Loss = cross_entropy
    ) -> None:
        faults = []
        if not 0 < temperature < math.inf:
            faults.append(f"Distillation: temperature={temperature} is not positive and finite")
        if not 0 <= weight <= 1:
            faults.append(f"Distillation: weight={weight} is not in 0..1")
        if faults:
            raise ConfigError("\n".join(faults))
        super().__init__(teacher)
        self.temperature = temperature
        self.weight = weight
        self.loss_fn = loss_fn

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one batch.

        Raises:
            DataError: if labels are needed and the batch is not a pair.
            ModelError: if the outputs are not logits.
        """
        inputs, targets = pair(batch) if self.weight < 1 else (inputs_of(batch), None)
        outputs = model(inputs)
        loss = self.weight * self.temperature**2 * divergence(outputs, self._ask(inputs), self.temperature)
        return loss if self.weight == 1 else loss + (1 - self.weight) * self.loss_fn(outputs, targets)


def pair(batch: Any) -> tuple[Any, Any]:
    """A batch as `(inputs, targets)`.

    Raises:
        DataError: if it is not a pair.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(
            f"train_loader yields a {type(batch).__name__}, expected pairs (inputs, targets); "
            f"give an objective for other data"
        )
    return batch[0], batch[1]


def inputs_of(batch: Any) -> Any:
    """The inputs of a pair, or the batch itself where it is none."""
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch


def check_inputs(batch: Any) -> None:
    """Check the inputs of a batch before the model, whose batch norm would remember them, sees them.

    Raises:
        DataError: if one is NaN or infinite.
    """
    for tensor in tensors_in(inputs_of(batch)):
        # The sum first: it reads once and makes no tensor; it overflows only where the values are huge
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach().sum(dtype=torch.float32))):
            n_bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if n_bad:
                raise DataError(f"inputs hold {n_bad} NaN or infinite of {tensor.numel()} values; repair the data")


def to_device(part: Any, place: torch.device) -> Any:
    """The batch with all its tensors on the device."""
    if isinstance(part, Tensor):
        return part.to(place, non_blocking=True)
    if isinstance(part, dict):
        return {k: to_device(v, place) for k, v in part.items()}
    if isinstance(part, (list, tuple)):
        return _rebuild(part, (to_device(v, place) for v in part))
    return part


def _rebuild(like: list | tuple, parts: Iterator[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
