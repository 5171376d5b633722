"""The command line: ``deepshap explain``, ``inspect``, ``convert`` and ``demo``."""

# What is imported here delays `deepshap --help`; the rest is imported by the command that needs it.
from __future__ import annotations

import json
import shlex
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deepshap_ir import __version__
from deepshap_ir.commands.messages import one_line
from deepshap_ir.errors import DeepShapError, InputError

UsageError: Any = typer.BadParameter.__base__
"""That of click, which newer versions of typer have inside."""


class Commands(TyperGroup):
    """Commands whose errors on purpose end in one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except DeepShapError as error:
                typer.echo(f"deepshap: error: {one_line(str(error))}", err=True)
                raise typer.Exit(2) from error
            except UsageError as error:
                path = error.ctx.command_path if error.ctx else ctx.command_path
                typer.echo(f"deepshap: error: {one_line(error.format_message())} See: {path} --help", err=True)
                raise typer.Exit(2) from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"deepshap: warning: {one_line(str(message))}", err=True)


app = typer.Typer(
    cls=Commands,
    help="Deep SHAP attributions for any model that can be written as an ONNX graph.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Argument(help="A file: ONNX, Keras, SavedModel, TorchScript, torch.export.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", metavar="NAME=1,3,224,224", help="The shape of an input where the file leaves dimensions free."
    ),
]
Output = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|INDEX|top:K", help="The explained output; top:K: its K largest entries for each sample."
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME", help="Explain only this input; or feed this value inside the model."),
]
Hold = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A value that keeps the sample's own value in every reference.")
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE.py|NAME",
        help="Rules of your own, see deepshap_ir.extend; or a rule set such as reveal_cancel, for what these leave.",
    ),
]

CustomOps = Annotated[
    list[Path] | None,
    typer.Option("--custom-ops", metavar="LIBRARY", help="A library of onnxruntime kernels for operators of your own."),
]


class Backend(StrEnum):
    """What runs the graphs."""

    onnxruntime = "onnxruntime"
    reference = "reference"


class Precision(StrEnum):
    """Choices of precision."""

    float64 = "float64"


class Demo(StrEnum):
    """The demos."""

    digits = "digits"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deepshap-ir {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def explain(
    model: Model,
    background: Annotated[Path, typer.Option("--background", "-b", help="References: .npy, .npz, .csv or .parquet.")],
    samples: Annotated[
        Path, typer.Option("--samples", "-s", help="The rows to explain: .npy, .npz, .csv or .parquet.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the attributions go: .npz, .csv or .parquet.")],
    plot: Annotated[Path | None, typer.Option(help="Where a picture goes: .png, .pdf or .svg.")] = None,
    output: Output = None,
    inputs: Inputs = None,
    hold: Hold = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column of the tables to leave out.")
    ] = None,
    rules: Rules = None,
    custom_ops: CustomOps = None,
    backend: Annotated[Backend, typer.Option(help="reference is numpy: slow, the oracle.")] = Backend.onnxruntime,
    provider: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An execution provider of onnxruntime, in order of preference."),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Compute in double precision, on the reference backend.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Such as 2GB; a quarter of what is free by default.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Fail where attributions do not sum to delta.")
    ] = True,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show a bar for long work.")] = True,
) -> None:
    """Explain the rows of a file: how much each feature moved the output away from its mean over the background."""
    from deepshap_ir.commands.results import check_target

    check_target(out)
    if plot is not None:
        from deepshap_ir.plots import check_picture

        check_picture(plot)
    from rich.console import Console

    from deepshap_ir.commands.explain_files import explain_files
    from deepshap_ir.commands.report import print_explained
    from deepshap_ir.commands.results import write_result
    from deepshap_ir.commands.rule_files import load_rules

    explained = explain_files(
        model,
        background,
        samples,
        output=output or (),
        inputs=inputs or (),
        hold=hold or (),
        rules=load_rules(rules or ()),
        custom_ops=custom_ops or (),
        drop=drop or (),
        check=check,
        backend=backend.value,
        providers=provider or None,
        precision=precision and precision.value,
        memory_limit=memory_limit,
        progress=None if progress else False,
    )
    write_result(out, explained.result)
    if plot is not None:
        from deepshap_ir.plots import plot_result

        plot_result(plot, explained.result)
    print_explained(Console(), model, explained, [path for path in (out, plot) if path is not None])


@app.command()
def inspect(
    model: Model,
    output: Output = None,
    inputs: Inputs = None,
    hold: Hold = None,
    rules: Rules = None,
    custom_ops: CustomOps = None,
    shape: Shapes = None,
    background: Annotated[
        Path | None, typer.Option("--background", "-b", help="Rows to trace the model of a framework with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print json.")] = False,
) -> None:
    """List the inputs, outputs and operators of a model, and the rule of each; exit code 1 if one has none."""
    from rich.console import Console

    from deepshap_ir.commands.inspection import inspect_model
    from deepshap_ir.commands.report import print_inspection
    from deepshap_ir.commands.rule_files import load_rules

    inspection = inspect_model(
        model,
        output=output or (),
        inputs=inputs or (),
        hold=hold or (),
        rules=load_rules(rules or ()),
        custom_ops=custom_ops or (),
        shapes=_shapes(shape),
        background=background,
    )
    if as_json:
        typer.echo(json.dumps(inspection.as_dict(), indent=2))
    else:
        print_inspection(Console(), model, inspection)
    if not inspection.supported:
        raise typer.Exit(1)


@app.command()
def convert(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the ONNX model goes.")],
    background: Annotated[
        Path | None,
        typer.Option("--background", "-b", help="Rows to trace the model with and to compare on; ONNX needs none."),
    ] = None,
    shape: Shapes = None,
    output: Output = None,
) -> None:
    """Write a model as ONNX, checked, and compared with the original on rows that are given or made up."""
    from deepshap_ir.commands.model_files import check_model_target, is_onnx, open_model, read_output, write_model

    check_model_target(out)
    if (top := read_output(output or ())[1]) is not None:
        raise InputError(f"--output top:{top}: a model is written with whole outputs: name one")
    if (given := ["--shape"] * bool(shape) + ["--output"] * bool(output)) and is_onnx(model):
        raise InputError(f"{model}: is taken as ONNX, which stays as it is: leave out {' and '.join(given)}")
    converted, _ = open_model(model, background, _shapes(shape), output or ())
    write_model(out, converted)
    opset = next((entry.version for entry in converted.opset_import if entry.domain == ""), None)
    typer.echo(f"{out}: {len(converted.graph.node)} nodes of opset {opset}")


def _shapes(given: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Name -> shape, of ``NAME=1,3,224,224``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in given or ():
        name, shape = _shape(text)
        if name in shapes:
            raise InputError(f"--shape {text}: another shape is given for {name!r}")
        shapes[name] = shape
    return shapes


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``("image", (1, 3, 224, 224))`` from ``image=1,3,224,224``."""
    name, _, sizes = text.rpartition("=")
    parts = sizes.split(",")
    if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--shape {text}: write NAME=1,3,224,224 with the batch first")
    return name, tuple(map(int, parts))


@app.command()
def demo(
    what: Annotated[Demo, typer.Argument(help="digits: handwritten digits and a small network.")],
    folder: Annotated[Path | None, typer.Argument(help="Where the files go, ./digits-demo by default.")] = None,
) -> None:
    """Explain a real model on real data: write both into a folder, and run the command that is printed."""
    from deepshap_ir.commands.demo import write_digits
    from deepshap_ir.plots import check_picture

    folder = folder or Path(f"{what.value}-demo")
    paths = write_digits(folder)
    out, picture = folder / "attributions.npz", folder / "picture.png"
    check_picture(picture)
    arguments = ["explain", str(paths["model"]), "--background", str(paths["background"])]
    arguments += ["--samples", str(paths["samples"]), "--out", str(out), "--plot", str(picture)]
    typer.echo(f"$ {shlex.join(['deepshap', *arguments])}\n")
    explain(paths["model"], paths["background"], paths["samples"], out, picture)


def main() -> None:
    """Run the command line."""
    app(prog_name="deepshap")


if __name__ == "__main__":
    main()
