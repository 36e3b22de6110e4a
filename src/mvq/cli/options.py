"""Options that several commands share, in groups. `grouped` makes a command take them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network, for what, and where it runs; None leaves the choice to the file, then to the default."""

    spec: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="torchvision/NAME (or just NAME), mvq/NAME, or package.module:callable.",
            metavar="MODEL",
        ),
    ] = None
    weights: Annotated[
        Path | None, typer.Option("--weights", "-w", help="Weights: .safetensors, .pth or .pt.", metavar="FILE")
    ] = None
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", help="Size of the last layer, where not the default.", min=1)
    ] = None
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="classification (unless given), detection or segmentation.",
            metavar="TASK",
        ),
    ] = None
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; CUDA where there is one, unless given.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data, and how it is read; None leaves the choice to the file, then to the default."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Class folders (ImageNet style), CIFAR folder, .npz file; COCO folder or .json file for detection; "
            "VOC folder for segmentation; or package.module:callable.",
            metavar="DATA",
        ),
    ] = None
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Images in a batch.", min=1)] = 64
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", help="Side of the network's input in pixels; a detector's short side.", min=1),
    ] = None
    preprocessing: Annotated[
        str | None,
        typer.Option("--preprocessing", help="imagenet, tf, unit, cifar10 or cifar100.", metavar="NAME"),
    ] = None
    workers: Annotated[int, typer.Option("--workers", help="Processes that read images.", min=0)] = 0
    limit: Annotated[
        int | None, typer.Option("--limit", help="Use at most this many images, spread evenly.", min=1)
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How each stage of training goes; None leaves the choice to the stage."""

    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate; 0.01 under masks, 0.001 for codebooks, unless given.")
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer", help="sgd (momentum 0.9), adam or adamw; sgd under masks, then adam, unless given."
        ),
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="5e-5 under masks, then 0, unless given.", min=0)
    ] = None
    warmup_steps: Annotated[
        int | None,
        typer.Option("--warmup-steps", help="Rising learning rate; 1/24 of the steps under masks, then 0.", min=0),
    ] = None
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", help="End each stage of training after this many steps.", min=1)
    ] = None
    ema: Annotated[
        float | None, typer.Option("--ema", help="Keep a moving average of the weights with this decay, as 0.999.")
    ] = None
    bn_eval: Annotated[
        bool | None,
        typer.Option(
            "--bn-eval/--no-bn-eval", help="Keep batch norm statistics as they are; so for detection, unless given."
        ),
    ] = None
    label_smoothing: Annotated[float, typer.Option("--label-smoothing", help="Of classification.")] = 0.0
    augment: Annotated[bool, typer.Option("--augment/--no-augment", help="Crop and mirror training images.")] = True
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Folder in which training keeps its state, to go on from.", metavar="FOLDER"),
    ] = None
    checkpoint_every: Annotated[
        int | None, typer.Option("--checkpoint-every", help="Write it after so many steps, too.", min=1)
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the checkpoint where there is one.")
    ] = True


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """How to compress."""

    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A preset (see: mvq recipes) or a .toml file.")] = (
        "mvq-22x"
    )
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe: key=value, or glob:key=value for some layers."),
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Seed, instead of the recipe's.", min=0)] = None


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.", metavar="FILE")]
LearnOption = Annotated[
    bool, typer.Option("--learn-assignments", help="Let subvectors change their codewords in fine-tuning.")
]
SparseMethodOption = Annotated[
    str | None,
    typer.Option(
        "--sparse-method",
        help="sr-ste or asp; sr-ste for classification and asp for the rest, unless given.",
    ),
]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups: a parameter annotated with one stands for all options of the group."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        types = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
            for f in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        built = {
            name: kind(**{f.name: values.pop(f.name) for f in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **built)

    # The parser reads the signature; `wraps` would lead it to the command's own.
    del flat.__wrapped__
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def need_data(data: DataOptions, fault: str) -> None:
    """Refuse a command without --data."""
    if data.data is None:
        raise typer.BadParameter(fault, param_hint="'--data'")
