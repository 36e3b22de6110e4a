"""The commands and their options."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import mvq
from mvq.cli import benching, machines
from mvq.cli.options import (
    DataOptions,
    JsonOption,
    LearnOption,
    ModelOptions,
    OutputOption,
    RecipeOptions,
    SparseMethodOption,
    TrainingOptions,
    grouped,
    need_data,
)
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


# What a command has where nothing is given; `grouped` replaces them by what is.
_MODEL, _DATA, _RECIPE, _TRAINING = ModelOptions(), DataOptions(), RecipeOptions(), TrainingOptions()

_COMPRESS_EXAMPLES = """[bold]Examples[/bold]

mvq compress resnet18 -w resnet18.pth -o r18.mvq

mvq compress resnet18 -w resnet18.pth -d imagenet/ --sparse-epochs 5 --finetune-epochs 3 --distill -o r18.mvq

mvq compress resnet18 -w resnet18.pth -d imagenet/ --ratio 16 --finetune-epochs 3 --learn-assignments -o r18.mvq

mvq compress resnet18 -w resnet18.pth -d imagenet/ --recover --ratio 12 --max-macs 0.75 -o r18.mvq

mvq compress maskrcnn_resnet50_fpn -w mask.pth --task detection -d coco/ -b 2 -r mvq-maskrcnn --sparse-epochs 4
--finetune-epochs 4 --lr 5e-5 --checkpoint state/ -o mask.mvq

mvq compress my.models:net --recipe my.toml --set 'fc:treatment=int8' -o net.mvq"""

ModelArgument = Annotated[str | None, typer.Argument(help="The model; or give --model.", metavar="[MODEL]")]
EpochsOption = Annotated[int, typer.Option("--epochs", help="Passes over the training images.", min=1)]


@app.command(epilog=_COMPRESS_EXAMPLES)
@grouped
def compress(
    model: ModelArgument = None,
    output: OutputOption = None,
    network: ModelOptions = _MODEL,
    data: DataOptions = _DATA,
    recipe: RecipeOptions = _RECIPE,
    sparse_epochs: Annotated[
        int, typer.Option(help="Epochs of training after pruning, before clustering; needs --data.", min=0)
    ] = 0,
    sparse_method: SparseMethodOption = None,
    recover: Annotated[
        bool, typer.Option("--recover", help="Prune and cluster block by block on training images; needs --data.")
    ] = False,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Choose pattern, d and codewords of each layer for this ratio, by measured error; needs --data."
        ),
    ] = None,
    max_macs: Annotated[
        float | None,
        typer.Option(
            help="With --ratio: most multiply-accumulates that stay, as a share; without it little is pruned.",
            min=0.0,
            max=1.0,
        ),
    ] = None,
    finetune_epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning the codebooks; needs --data.", min=0)] = 0,
    distill: Annotated[bool, typer.Option("--distill", help="Fine-tune towards the dense network's outputs.")] = False,
    learn_assignments: LearnOption = False,
    training: TrainingOptions = _TRAINING,
    as_json: JsonOption = False,
) -> None:
    """Compress a model into a .mvq file.

    With --data the accuracy is measured on its val split before and after; training uses its train split. A network
    needs training after pruning (--sparse-epochs, --finetune-epochs) to keep its accuracy. With little training
    --ratio --finetune-epochs --learn-assignments keeps most, with images alone --recover --ratio.
    """
    from mvq.cli import compressing

    network, output = _one_model(model, network), _needed(output, "FILE.mvq")
    if data.data is None and (sparse_epochs or finetune_epochs or recover):
        raise typer.BadParameter("training needs --data", param_hint="'--data'")
    if recover and sparse_epochs:
        raise typer.BadParameter("it takes the place of sparse training; leave one out", param_hint="'--recover'")
    if ratio is not None and data.data is None:
        raise typer.BadParameter("it needs --data", param_hint="'--ratio'")
    if max_macs is not None and ratio is None:
        raise typer.BadParameter("it needs --ratio", param_hint="'--max-macs'")
    for name, wanted in {"--distill": distill, "--learn-assignments": learn_assignments}.items():
        if wanted and not finetune_epochs:
            raise typer.BadParameter("it needs --finetune-epochs", param_hint=f"'{name}'")
    if training.max_steps is not None and not (sparse_epochs or finetune_epochs):
        raise typer.BadParameter("it needs --sparse-epochs or --finetune-epochs", param_hint="'--max-steps'")
    compressing.run(
        network,
        output,
        data=None if data.data is None else data,
        recipe=recipe,
        training=training,
        stages=compressing.Stages(
            sparse_epochs=sparse_epochs,
            sparse_method=sparse_method,
            recover=recover,
            ratio=ratio,
            max_macs=max_macs,
            finetune_epochs=finetune_epochs,
            distill=distill,
            learn_assignments=learn_assignments,
        ),
        as_json=as_json,
    )


_PRUNE_EXAMPLES = """[bold]Examples[/bold]

mvq prune resnet18 -w resnet18.pth -d imagenet/ --epochs 5 --lr 0.01 --optimizer sgd -o pruned.safetensors

mvq compress resnet18 -w pruned.safetensors -d imagenet/ --finetune-epochs 3 -o r18.mvq"""


@app.command(epilog=_PRUNE_EXAMPLES)
@grouped
def prune(
    model: ModelArgument = None,
    output: OutputOption = None,
    network: ModelOptions = _MODEL,
    data: DataOptions = _DATA,
    recipe: RecipeOptions = _RECIPE,
    epochs: EpochsOption = 1,
    sparse_method: SparseMethodOption = None,
    training: TrainingOptions = _TRAINING,
    as_json: JsonOption = False,
) -> None:
    """Prune a model and train it under its masks.

    Writes weights with zeros, .safetensors or .pt; mvq compress goes on from there, with the same recipe.
    """
    from mvq.cli import pruning

    network, output = _one_model(model, network), _needed(output, "FILE.safetensors")
    need_data(data, "say what to train on, with -d DATA")
    pruning.run(
        network,
        output,
        data=data,
        recipe=recipe,
        training=training,
        epochs=epochs,
        method=sparse_method,
        as_json=as_json,
    )


@app.command(epilog="[bold]Example[/bold]\n\nmvq finetune r18.mvq -d imagenet/ --epochs 3 -o tuned.mvq")
@grouped
def finetune(
    file: Annotated[Path, typer.Argument(help="A .mvq file.", metavar="FILE")],
    output: OutputOption = None,
    network: ModelOptions = _MODEL,
    data: DataOptions = _DATA,
    epochs: EpochsOption = 1,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="Weights of the dense network, to train towards its outputs.", metavar="FILE"),
    ] = None,
    learn_assignments: LearnOption = False,
    training: TrainingOptions = _TRAINING,
    seed: Annotated[int, typer.Option(help="Seed of order and augmentation.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train the codebooks of a .mvq file on, and write another."""
    from mvq.cli import finetuning

    output = _needed(output, "OUT.mvq")
    need_data(data, "say what to train on, with -d DATA")
    _no_weights(network)
    finetuning.run(
        file,
        output,
        network,
        data=data,
        training=training,
        epochs=epochs,
        teacher=teacher,
        learn_assignments=learn_assignments,
        seed=seed,
        as_json=as_json,
    )


_EVAL_EXAMPLES = """[bold]Examples[/bold]

mvq eval r18.mvq -d imagenet/

mvq eval --model resnet18 -w resnet18.pth -d imagenet/ --limit 5000

mvq eval mask.mvq -d coco/ -b 2

mvq eval mvq-demo/mvq-4of16.mvq -d mvq.demo:digits --json"""


@app.command("eval", epilog=_EVAL_EXAMPLES)
@grouped
def evaluate(
    file: Annotated[
        Path | None, typer.Argument(help="A .mvq file; without it, --model is evaluated as it is.", metavar="[FILE]")
    ] = None,
    network: ModelOptions = _MODEL,
    data: DataOptions = _DATA,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    as_json: JsonOption = False,
) -> None:
    """Measure a .mvq file, or an uncompressed model, on data."""
    from mvq.cli import evaluating

    need_data(data, "say what to measure on, with -d DATA")
    if file is None and network.spec is None:
        raise typer.BadParameter("give a .mvq file, or a model with --model", param_hint="'FILE'")
    if file is not None:
        _no_weights(network)
    evaluating.run(file, network, data=data, split=split, as_json=as_json)


@app.command("inspect", epilog="[bold]Example[/bold]\n\nmvq inspect r18.mvq")
def inspect(
    file: Annotated[Path, typer.Argument(help="A .mvq file.", metavar="FILE")], as_json: JsonOption = False
) -> None:
    """Show what is in a .mvq file: layers, bits, errors, and its size under every convention."""
    from mvq.cli import inspecting

    inspecting.run(file, as_json=as_json)


_EXPORT_EXAMPLES = """[bold]Examples[/bold]

mvq export r18.mvq -d imagenet/ --onnx r18.onnx

mvq export mvq-demo/mvq-4of16.mvq -d mvq.demo:digits --onnx digits.onnx -o digits-int8.mvq

mvq export --model resnet18 -w resnet18.pth -d imagenet/ --limit 512 --onnx r18-int8.onnx"""


@app.command("export", epilog=_EXPORT_EXAMPLES)
@grouped
def export(
    file: Annotated[
        Path | None, typer.Argument(help="A .mvq file; without it, --model is exported in int8.", metavar="[FILE]")
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="Write the integer network as QDQ ONNX.", metavar="FILE")
    ] = None,
    output: OutputOption = None,
    network: ModelOptions = _MODEL,
    data: DataOptions = _DATA,
    split: Annotated[str, typer.Option(help="Images that calibrate the activations: train or val.")] = "train",
    calibration: Annotated[
        str, typer.Option("--calibration", help="Range of an activation: mse, max or percentile.")
    ] = "mse",
    psum_bits: Annotated[int, typer.Option("--psum-bits", help="Width of the accumulator.", min=8, max=32)] = 32,
    as_json: JsonOption = False,
) -> None:
    """Turn a network into int8 activations and weights, and write it as ONNX (--onnx) or as mvq's own file (-o).

    Calibrates on 256 images unless --limit says otherwise.
    """
    from mvq.cli import exporting

    if onnx is None and output is None:
        raise typer.BadParameter("say where to write, with --onnx FILE.onnx or -o FILE.mvq", param_hint="'--onnx'")
    need_data(data, "say what to calibrate on, with -d DATA")
    if file is None and network.spec is None:
        raise typer.BadParameter("give a .mvq file, or a model with --model", param_hint="'FILE'")
    if file is not None:
        _no_weights(network)
    exporting.run(
        file,
        network,
        data=data,
        split=split,
        onnx=onnx,
        output=output,
        method=calibration,
        psum_bits=psum_bits,
        as_json=as_json,
    )


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


app.add_typer(machines.app)
app.add_typer(benching.app, name="bench")


def _one_model(argument: str | None, network: ModelOptions) -> ModelOptions:
    if (argument is None) == (network.spec is None):
        fault = "say which model to compress" if argument is None else "give the model once, not twice"
        raise typer.BadParameter(fault, param_hint="'MODEL'")
    return dataclasses.replace(network, spec=argument or network.spec)


def _needed(output: Path | None, example: str) -> Path:
    if output is None:
        raise typer.BadParameter(f"say where to write, with -o {example}", param_hint="'--output'")
    return output


def _no_weights(network: ModelOptions) -> None:
    if network.weights is not None:
        raise typer.BadParameter("a .mvq file holds its weights; leave one out", param_hint="'--weights'")


if __name__ == "__main__":
    sys.exit(app())
