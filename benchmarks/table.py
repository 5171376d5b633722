"""The numbers on the terminal."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.compare import OURS, Result

COLUMNS = (
    ("samples", "explained in one turn"),
    ("set-up", "seconds to open the model, build the explainer and explain one sample; in no other column"),
    ("per triple", "time for one sample, one reference and one output, the median of the rounds"),
    ("times ours", f"time per triple over that of {OURS} in the same round, the median of the rounds"),
    ("passes", "time per triple over the time per row of the same ONNX file in onnxruntime at its best batch size"),
    ("first", "the same for the first call of a new explainer, which has kept nothing of the references yet"),
    ("memory", "highest resident memory of the side's own process, model included, above what its imports take"),
    ("imports", "resident memory of that process after its imports"),
    ("vs shap", "largest difference of attributions from shap, relative to shap's largest attribution"),
    ("additivity", "largest |sum phi - (f(x) - E f(x0))|, relative to the largest |f(x) - E f(x0)|"),
)


def print_heading(console: Console, rounds: int, threads: int) -> None:
    """Print what ran where, and what the columns mean."""
    versions = ", ".join(f"{name} {_version(name)}" for name in (OURS, "shap", "captum", "torch", "onnxruntime"))
    console.print(f"{_processor()}, {threads} threads for every side, {rounds} rounds in turns\n{versions}\n")
    for name, meaning in COLUMNS:
        console.print(f"[bold]{name:>10}[/]  {meaning}", highlight=False)


def print_result(console: Console, result: Result) -> None:
    """Print one case, a line for each side."""
    title = (
        f"{result.case.name}: {result.references} references, outputs: {result.outputs}; "
        f"forward pass {_time(result.forward())} per row at batch size {result.batch}"
    )
    table = Table("", *(name for name, _ in COLUMNS), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for side, measured in result.sides.items():
        if measured.failure is not None:
            table.add_row(side, str(measured.samples), *["-"] * (len(COLUMNS) - 1))
            continue
        table.add_row(
            side,
            str(measured.samples),
            f"{measured.setup:.2f} s",
            _time(float(np.median(result.per_triple(side)))),
            _number(result.ratio(side), ".2f"),
            _number(result.passes(side), ".2f"),
            _number(result.passes(side, first=True), ".2f"),
            _number(measured.memory.peak - measured.memory.loaded, ".0f", " MiB"),
            _number(measured.memory.loaded, ".0f", " MiB"),
            _number(result.difference(side, "shap"), ".1e"),
            _number(result.additivity(side), ".1e"),
        )
    console.print()
    console.print(table)
    for side, measured in result.sides.items():
        if measured.failure is not None:
            console.print(f"{side} failed: {measured.failure}", style="red", markup=False)
    if result.case.note:
        console.print(result.case.note, highlight=False)


def print_summary(console: Console, results: Iterable[Result]) -> None:
    """Print the geometric mean over the cases of the ratio to each peer, and the passes of this library."""
    results = list(results)
    console.print()
    for side in results[0].sides:
        ratios = np.array([result.ratio(side) for result in results])
        if side != OURS and not np.isnan(ratios).any():
            mean = np.exp(np.log(ratios).mean())
            console.print(f"{side} takes [bold]{mean:.1f}[/] times as long, the geometric mean of {len(ratios)} cases")
    for result in results:
        if result.finished(OURS):
            passes, first = result.passes(OURS), result.passes(OURS, first=True)
            console.print(f"{result.case.name}: [bold]{passes:.2f}[/] forward passes per triple ({first:.2f} at first)")


def _time(seconds: float) -> str:
    """Three digits in the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _number(value: float, form: str, unit: str = "") -> str:
    return "-" if np.isnan(value) else f"{value:{form}}{unit}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _processor() -> str:
    """Return the processor's name where the system tells, else the kind of machine."""
    information = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in information.read_text().splitlines()
            if line.startswith("model name")
        ]
        if information.exists()
        else []
    )
    return names[0] if names else platform.machine()
