"""The commands and their options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import mvq
from mvq.cli.output import note
from mvq.errors import MvqError

DOCS = """Compress convolutional networks by masked vector quantization.

Results go to standard output, progress and remarks to standard error. Exit codes: 0 done, 1 wrong input, 2 wrong
usage, 130 interrupted."""


class Commands(TyperGroup):
    """Turns errors of the input into text and exit codes, for every command."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note("mvq: interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise
        except (MvqError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            note(f"mvq: error: {error}")
            raise typer.Exit(1) from None


app = typer.Typer(
    name="mvq",
    cls=Commands,
    help=DOCS,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mvq {mvq.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options of every command."""


ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="torchvision/NAME (or just NAME), or package.module:callable.", metavar="MODEL"),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", "-w", help="Weights: .safetensors, .pth or .pt.", metavar="FILE")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Folder of class folders (ImageNet style), CIFAR folder, .npz file, or package.module:callable.",
        metavar="DATA",
    ),
]
ClassesOption = Annotated[
    int | None, typer.Option("--num-classes", help="Size of the last layer, where not the default.", min=1)
]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="classification, segmentation or detection.", metavar="TASK")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda; CUDA where there is one, unless given.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", "-b", help="Images in a batch.", min=1)]
ImageSizeOption = Annotated[
    int | None, typer.Option("--image-size", help="Side of the network's input in pixels.", min=1)
]
PreprocessingOption = Annotated[
    str | None,
    typer.Option("--preprocessing", help="imagenet, tf, unit, cifar10 or cifar100.", metavar="NAME"),
]
WorkersOption = Annotated[int, typer.Option("--workers", help="Processes that read images.", min=0)]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Use at most this many images, spread evenly.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_COMPRESS_EXAMPLES = """[bold]Examples[/bold]

mvq compress resnet18 -w resnet18.pth -o r18.mvq

mvq compress resnet18 -w resnet18.pth -d imagenet/ --sparse-epochs 5 --finetune-epochs 3 -o r18.mvq

mvq compress my.models:net --recipe my.toml --set 'fc:treatment=int8' -o net.mvq"""


@app.command(epilog=_COMPRESS_EXAMPLES)
def compress(
    model: Annotated[str | None, typer.Argument(help="The model; or give --model.", metavar="[MODEL]")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.", metavar="FILE.mvq")
    ] = None,
    model_option: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="A preset (see: mvq recipes) or a .toml file.")
    ] = "mvq-22x",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe: key=value, or glob:key=value for some layers."),
    ] = None,
    sparse_epochs: Annotated[
        int, typer.Option(help="Epochs of training after pruning, before clustering; needs --data.", min=0)
    ] = 0,
    finetune_epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning the codebooks; needs --data.", min=0)] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate of both.")] = 1e-3,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.", min=0)] = None,
    task: TaskOption = None,
    num_classes: ClassesOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = 64,
    image_size: ImageSizeOption = None,
    preprocessing: PreprocessingOption = None,
    workers: WorkersOption = 0,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compress a model into a .mvq file.

    With --data the accuracy is measured on its val split before and after; training uses its train split. A network
    needs training after pruning (--sparse-epochs, --finetune-epochs) to keep its accuracy.
    """
    from mvq.cli import compressing
    from mvq.cli.models import DataOptions

    spec = _one_model(model, model_option)
    if output is None:
        raise typer.BadParameter("say where to write, with -o FILE.mvq", param_hint="'--output'")
    if data is None and (sparse_epochs or finetune_epochs):
        raise typer.BadParameter("training needs --data", param_hint="'--data'")
    compressing.run(
        spec,
        output,
        weights=weights,
        data=None
        if data is None
        else DataOptions(
            spec=data,
            batch_size=batch_size,
            image_size=image_size,
            preprocessing=preprocessing,
            workers=workers,
            limit=limit,
            seed=seed or 0,
        ),
        recipe=recipe,
        settings=settings or [],
        sparse_epochs=sparse_epochs,
        finetune_epochs=finetune_epochs,
        lr=lr,
        seed=seed,
        task=task or "classification",
        num_classes=num_classes,
        device=device,
        as_json=as_json,
    )


_EVAL_EXAMPLES = """[bold]Examples[/bold]

mvq eval r18.mvq -d imagenet/

mvq eval --model resnet18 -w resnet18.pth -d imagenet/ --limit 5000

mvq eval mvq-demo/mvq-4of16.mvq -d mvq.demo:digits --json"""


@app.command("eval", epilog=_EVAL_EXAMPLES)
def evaluate(
    file: Annotated[
        Path | None, typer.Argument(help="A .mvq file; without it, --model is evaluated as it is.", metavar="[FILE]")
    ] = None,
    data: DataOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    task: TaskOption = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    num_classes: ClassesOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = 64,
    image_size: ImageSizeOption = None,
    preprocessing: PreprocessingOption = None,
    workers: WorkersOption = 0,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a .mvq file, or an uncompressed model, on data."""
    from mvq.cli import evaluating
    from mvq.cli.models import DataOptions

    if data is None:
        raise typer.BadParameter("say what to measure on, with -d DATA", param_hint="'--data'")
    if file is None and model is None:
        raise typer.BadParameter("give a .mvq file, or a model with --model", param_hint="'FILE'")
    if file is not None and weights is not None:
        raise typer.BadParameter("a .mvq file holds its weights; leave one out", param_hint="'--weights'")
    evaluating.run(
        file,
        DataOptions(
            spec=data,
            batch_size=batch_size,
            image_size=image_size,
            preprocessing=preprocessing,
            workers=workers,
            limit=limit,
        ),
        model=model,
        weights=weights,
        task=task,
        split=split,
        num_classes=num_classes,
        device=device,
        as_json=as_json,
    )


@app.command("inspect", epilog="[bold]Example[/bold]\n\nmvq inspect r18.mvq")
def inspect(
    file: Annotated[Path, typer.Argument(help="A .mvq file.", metavar="FILE")], as_json: JsonOption = False
) -> None:
    """Show what is in a .mvq file: layers, bits, errors, and its size under every convention."""
    from mvq.cli import inspecting

    inspecting.run(file, as_json=as_json)


@app.command("recipes", epilog="[bold]Example[/bold]\n\nmvq recipes mvq-22x > my.toml")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this preset as TOML.", metavar="[NAME]")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the presets, or print one as a TOML file to start from."""
    from mvq.cli import inspecting

    inspecting.show_recipes(name, as_json=as_json)


@app.command(epilog="[bold]Example[/bold]\n\nmvq demo -o mvq-demo")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the files and the report.", metavar="FOLDER")
    ] = Path("mvq-demo"),
    seed: Annotated[int, typer.Option(help="Seed of all random choices.", min=0)] = 0,
    epochs: Annotated[int | None, typer.Option(help="Epochs of dense training.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a small network on handwritten digits, compress it in several ways, and compare.

    Needs no download and about a minute. Writes the .mvq files and an HTML report.
    """
    from mvq.cli import demonstrating

    demonstrating.run(output, seed=seed, epochs=epochs, as_json=as_json)


def _one_model(argument: str | None, option: str | None) -> str:
    if (argument is None) == (option is None):
        fault = "say which model to compress" if argument is None else "give the model once, not twice"
        raise typer.BadParameter(fault, param_hint="'MODEL'")
    return argument or option or ""


if __name__ == "__main__":
    sys.exit(app())
