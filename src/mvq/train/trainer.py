"""The training loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mvq.errors import ConfigError, DataError, ModelError, MvqError
from mvq.nn import eligible_layers, unwrap
from mvq.nn.layers import dense_weight, form_of
from mvq.nn.parametrizations import NMMask
from mvq.nn.precision import mixed
from mvq.train import checkpoint
from mvq.train.bar import StepBar
from mvq.train.config import EpochRecord, TrainConfig
from mvq.train.distributed import World, global_batch_norm
from mvq.train.objectives import Objective, check_inputs, to_device
from mvq.train.optim import WeightAverage, check_schedule, codebook_parameters, lr_factor, make_optimizer

#: Training has diverged when the loss is above this multiple of its running mean, and above the first loss, for
#: this many steps on end. Such steps do not enter the mean, and no checkpoint is written at them.
DIVERGED_RATIO = 10.0
DIVERGED_STEPS = 100
_MEMORY = 0.99


@dataclass
class Progress:
    """How far training is; all of it goes into a checkpoint.

    Attributes:
        step: steps made.
        epoch: epochs done.
        position: batches done of the present epoch.
        loss_sum: of the present epoch's steps.
        lr: of the last step.
        first_loss: of step 0.
        mean_loss: running mean, its recent past weighed with 0.99 a step.
        n_high: last steps on end whose loss was far above it.
        history: records of the epochs done.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    loss_sum: float = 0.0
    lr: float = 0.0
    first_loss: float = math.inf
    mean_loss: float = math.inf
    n_high: int = 0
    history: list[EpochRecord] = field(default_factory=list)

    def done(self, config: TrainConfig) -> bool:
        """Whether nothing is left to do."""
        return self.epoch >= config.epochs or (config.max_steps is not None and self.step >= config.max_steps)

    def watch(self, loss: float) -> None:
        """Take in the loss of a step."""
        if self.step == 0:
            self.first_loss = self.mean_loss = loss
        high = 0 < self.first_loss < loss and loss > DIVERGED_RATIO * self.mean_loss > 0
        self.n_high = self.n_high + 1 if high else 0
        if not high:
            self.mean_loss = _MEMORY * self.mean_loss + (1 - _MEMORY) * loss

    def end_epoch(self) -> None:
        """Write down the record of the present epoch, complete or cut short, and begin the next."""
        self.history.append(EpochRecord(self.epoch, self.position, self.loss_sum / self.position, self.lr))
        self.epoch, self.position, self.loss_sum = self.epoch + 1, 0, 0.0


class Trainer:
    """One run of training.

    Args:
        model: changed in place.
        loader: yields batches.
        objective: loss of a model and a batch on the device.
        config: everything else.
        progress: show a bar.
        on_step: called with `(step, loss)` after each step, on every process.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        objective: Objective,
        config: TrainConfig,
        *,
        progress: bool = False,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        self.model = model
        self.loader = loader
        self.objective = objective
        self.config = config
        self.on_step = on_step
        self.place = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.world = World.join(self.place)
        self.state = Progress()
        self.bar = StepBar(enabled=progress and self.world.rank == 0)
        self._total = total_steps(loader, config)
        self._epoch_start: list[dict[str, Any]] = []
        self._resume_from: list[dict[str, Any]] | None = None
        self._kept: int | None = None

    def run(self) -> list[EpochRecord]:
        """Train; as documented at `finetune`."""
        check_schedule(self.config, self._total)
        with (
            prepared(self.model, self.config) as parameters,
            flushed_denormals(self.place),
            global_batch_norm(self.model, self.world),
        ):
            self.parameters = parameters
            self.world.share_state_(self.model)
            self.optim, self.rates = make_optimizer(self.model, parameters, self.config)
            self.average = WeightAverage(self.model, self.config.ema) if self.config.ema is not None else None
            self._identity = self._describe() if self.config.checkpoint is not None else {}
            self._restore()
            while not self.state.done(self.config):
                self._run_epoch()
            if self.average is not None:
                self.average.copy_to_model_()
            update_masks_(self.model)
        return self.state.history

    def _run_epoch(self) -> None:
        state = self.state
        with contextlib.closing(self._batches()) as batches, self.bar:
            self.bar.start(f"epoch {state.epoch + 1}/{self.config.epochs}", loader_length(self.loader), state.position)
            for batch in batches:
                loss = self._checked_step(batch)
                state.loss_sum += loss
                state.step += 1
                state.position += 1
                self.bar.advance(loss)
                if self.on_step is not None:
                    self.on_step(state.step - 1, loss)
                if state.step == self.config.max_steps:
                    break
                if self.config.checkpoint_every is not None and state.step % self.config.checkpoint_every == 0:
                    self._save()
        if not state.position:
            raise DataError(
                f"train_loader yields no batch in epoch {state.epoch}; give it data, or a list, not a used-up iterator"
            )
        state.end_epoch()
        self._epoch_start = []
        self._save()

    def _batches(self) -> Generator[Any]:
        """The batches of the present epoch that are left, in the order it began with."""
        resumed, self._resume_from = self._resume_from, None
        if not self._epoch_start:
            # All processes draw the same order, or their parts would not make up the batch
            first = self.world.from_first(checkpoint.random_state(self.loader, self.place))
            self._epoch_start = [first] * self.world.size
        checkpoint.set_random_state(self._epoch_start[self.world.rank], self.loader, self.place)
        for owner in (self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)):
            if callable(set_epoch := getattr(owner, "set_epoch", None)):
                set_epoch(self.state.epoch)
        batches = iter(self.loader)
        if self.state.position:
            for _ in islice(batches, self.state.position):
                pass
        if resumed is not None:
            checkpoint.set_random_state(resumed[self.world.rank], self.loader, self.place)
        yield from batches

    def _checked_step(self, batch: Any) -> float:
        try:
            loss = self._step(batch)
            self.state.watch(loss)
            if self.state.n_high >= DIVERGED_STEPS:
                raise self._failure(
                    f"the loss is {loss:.6g} and has been above {DIVERGED_RATIO:g} times its running mean of "
                    f"{self.state.mean_loss:.6g} for {DIVERGED_STEPS} steps"
                )
        except MvqError as error:
            error.args = (f"finetune: step {self.state.step} (epoch {self.state.epoch}): {error}",)
            raise
        return loss

    def _step(self, batch: Any) -> float:
        own, share = self._own_part(batch)
        own = to_device(own, self.place)
        check_inputs(own)
        factor = lr_factor(self.state.step, self._total, self.config)
        for group, rate in zip(self.optim.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.state.lr = self.optim.param_groups[0]["lr"]
        self.optim.zero_grad(set_to_none=True)
        with mixed(self.config.autocast, self.place.type):
            loss = self.objective(self.model, own)
        value = self.world.total(share * float(loss.detach()) if share else 0.0, self.place)
        if not math.isfinite(value):
            raise self._failure(f"the loss is {value}")
        # The mean over processes of these is the gradient of the mean over the samples of all
        (loss if self.world.size == 1 else loss * (share * self.world.size)).backward()
        self.world.average_gradients_(self.parameters)
        self._check_gradients()
        self.optim.step()
        if self.average is not None:
            self.average.update(self.state.step)
        return value

    def _own_part(self, batch: Any) -> tuple[Any, float]:
        """What this process computes of the batch, and its share of the samples of all."""
        if self.world.size == 1:
            return batch, 1.0
        if getattr(self.loader, "sharded", False):
            _, _, n = World().part(batch)
            return batch, n / self.world.total(n, self.place)
        own, n_own, n = self.world.part(batch)
        return own, n_own / n

    def _check_gradients(self) -> None:
        """Refuse gradients that are not finite, then clip."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            names = (name for name, p in self.model.named_parameters() if p.grad is not None and _not_finite(p.grad))
            name = next(names, None)
            which = f"the gradient of {name!r} is" if name else "the norm of the gradients is"
            raise self._failure(f"{which} not finite")
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, norm)

    def _failure(self, what: str) -> ModelError:
        kept = "no checkpoint was kept; give checkpoint a file name"
        if self._kept is not None:
            kept = f"checkpoint {self.config.checkpoint} keeps the state after {self._kept} steps"
        return ModelError(f"{what}; lower the learning rate or check the data; {kept}")

    def _describe(self) -> dict[str, dict[str, str]]:
        objective = getattr(self.objective, "loss_fn", self.objective)
        name = type(self.objective).__name__ + ":" + getattr(objective, "__qualname__", type(objective).__name__)
        return checkpoint.identity(
            self.model,
            self.config,
            objective=name,
            n_batches=loader_length(self.loader),
            n_processes=self.world.size,
        )

    def _save(self) -> None:
        """Write a checkpoint, unless the state is not one to go back to."""
        path = self.config.checkpoint
        if path is None or self.state.n_high:
            return
        now = self.world.gather(checkpoint.random_state(self.loader, self.place))
        bad = next(
            (name for name, t in self.model.state_dict().items() if isinstance(t, Tensor) and _not_finite(t)), ""
        )
        if bad:
            raise self._failure(f"finetune: {bad!r} is not finite after {self.state.step} steps")
        if self.world.rank == 0:
            checkpoint.save_checkpoint(
                path,
                {
                    "identity": self._identity,
                    "progress": asdict(self.state),
                    "model": unwrap(self.model).state_dict(),
                    "optimizer": self.optim.state_dict(),
                    "average": self.average.average if self.average is not None else {},
                    "epoch_start": self._epoch_start,
                    "random": now,
                },
            )
        self._kept = self.state.step

    def _restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.config.checkpoint
        if path is None or not self.config.resume or not self.world.from_first(path.exists()):
            return
        found = checkpoint.load_checkpoint(path)
        checkpoint.check_identity(path, found["identity"], self._identity)
        unwrap(self.model).load_state_dict(found["model"])
        self.optim.load_state_dict(found["optimizer"])
        if self.average is not None:
            self.average.load_(found["average"])
        history = [EpochRecord(**record) for record in found["progress"].pop("history")]
        self.state = Progress(**found["progress"], history=history)
        self._epoch_start = found["epoch_start"]
        self._kept = self.state.step
        if self._epoch_start:
            self._resume_from = found["random"]
        else:
            # Between epochs the states now are the ones the next epoch begins with
            checkpoint.set_random_state(found["random"][self.world.rank], self.loader, self.place)


def _not_finite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


@torch.no_grad()
def update_masks_(model: nn.Module) -> None:
    """Bring masks that follow the weights up to the weights as they are."""
    for _, module, form in masks_of(model):
        form.update_mask_(dense_weight(module))


def masks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, NMMask]]:
    """Name, module and mask of every pruned layer."""
    if any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in unwrap(model).modules()):
        for name, module, _ in eligible_layers(model):
            if isinstance(form := form_of(module), NMMask):
                yield name, module, form


@contextlib.contextmanager
def prepared(model: nn.Module, config: TrainConfig) -> Iterator[list[nn.Parameter]]:
    """Training mode and the parameters to train; both put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    flags = {p: p.requires_grad for p in model.parameters()}
    codebooks = codebook_parameters(model)
    if not config.train_other:
        for parameter in flags:
            parameter.requires_grad_(parameter in codebooks and flags[parameter])
    parameters = [p for p in flags if p.requires_grad]
    try:
        if not parameters:
            raise ConfigError(
                "finetune: no parameter to train; with train_other=False a model needs codebooks, so call "
                "cluster_ first, "
                "and none may be frozen"
            )
        model.train()
        if config.bn_eval:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        yield parameters
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def flushed_denormals(place: torch.device) -> Iterator[None]:
    """Denormal numbers are zero meanwhile: near zero loss they make a CPU ten times slower."""
    if place.type != "cpu" or float(torch.full((1,), 1e-40) * 1.0) == 0 or not torch.set_flush_denormal(True):
        yield
        return
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def loader_length(loader: Iterable[Any]) -> int | None:
    """Batches of an epoch, where the loader tells."""
    # A DataLoader over an iterable data set has the method and raises TypeError.
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None


def total_steps(loader: Iterable[Any], config: TrainConfig) -> int | None:
    """Steps of the whole training, where the loader or the configuration tells."""
    length = loader_length(loader)
    if length is None:
        return config.max_steps
    return min(config.epochs * length, config.max_steps or config.epochs * length)
