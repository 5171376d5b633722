"""What the commands print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepshap_ir.commands.explain_files import Explained
from deepshap_ir.commands.inspection import Inspection
from deepshap_ir.commands.results import Result

MOST_FEATURES = 10
MOST_SAMPLES = 3
MOST_OUTPUTS = 10


def print_explained(console: Console, model: Path, explained: Explained, written: list[Path]) -> None:
    """Print the largest attributions, the expected value, and how well the attributions sum."""
    result = explained.result
    rows = len(result.outputs)
    shape = list(explained.output_shape)
    error = np.abs(result.additivity_error).max()
    size = np.abs(result.outputs).max()
    _line(
        console, f"{model}: {rows} samples, {explained.references} references, output {explained.output_name} {shape}"
    )
    console.print(_largest(result))
    _line(console, _expected(explained))
    _line(
        console,
        f"Sum to delta: expected value + attributions miss f(x) by at most {error:.2g} (f(x) is up to {size:.4g})",
    )
    _line(console, f"Wrote {', '.join(map(str, written))}")


def _line(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, however long."""
    console.print(Text(text, style=style), soft_wrap=True)


def _largest(result: Result) -> Table:
    """Features by mean |attribution| to each sample's largest output, and those of the first few samples."""
    rows = len(result.outputs)
    outputs = result.outputs.reshape(rows, -1)
    best = outputs.argmax(axis=1)
    values = result.matrix[np.arange(rows), :, best]
    mean = np.abs(values).mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    shown = order[:MOST_FEATURES]
    samples = range(min(rows, MOST_SAMPLES))
    several = outputs.shape[1] > 1
    title = "Largest attributions" + (", to each sample's largest output" if several else "")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("feature", overflow="fold")
    table.add_column("mean |attribution|", justify="right")
    for sample in samples:
        name = f"\n{_output_name(result, sample, int(best[sample]))}" if several else ""
        table.add_column(Text(f"sample {sample}{name}"), justify="right", overflow="fold")
    labels = result.features
    for i in shown:
        table.add_row(Text(labels[i]), f"{mean[i]:.4g}", *[_signed(values[sample, i]) for sample in samples])
    if len(order) > len(shown):
        rest = order[len(shown) :]
        sums = [_signed(values[sample, rest].sum()) for sample in samples]
        table.add_row(f"the {len(rest)} others", f"{mean[rest].sum():.4g}", *sums, style="dim")
    table.add_section()
    base = result.first.base_values.reshape(rows, -1)
    table.add_row(Text("E[f]"), "", *[f"{base[sample, best[sample]]:.4g}" for sample in samples])
    table.add_row("f(x)", "", *[f"{outputs[sample, best[sample]]:.4g}" for sample in samples])
    return table


def _signed(value: float) -> Text:
    return Text(f"{value:+.4g}", style="red" if value > 0 else "blue")


def _output_name(result: Result, sample: int, output: int) -> str:
    names: Any = result.first.output_names
    own = isinstance(names, np.ndarray)
    return str(names.reshape(len(names), -1)[sample, output]) if own else result.output_labels[output]


def _expected(explained: Explained) -> str:
    values = explained.expected_value
    if values.shape != explained.output_shape:
        return f"Expected value: {values.min():.4g} to {values.max():.4g}, another for each sample"
    shown = ", ".join(f"{value:.4g}" for value in values.ravel()[:MOST_OUTPUTS])
    return f"Expected value: {shown}{', ...' * (values.size > MOST_OUTPUTS)}"


def print_inspection(console: Console, model: Path, inspection: Inspection) -> None:
    """Print the inputs, outputs and operators of a model."""
    lines = [
        *[f"input   {name}: {what}" for name, what in inspection.inputs.items()],
        *[
            f"output  {name}: {what}{'' if name in inspection.explained else ' (not explained)'}"
            for name, what in inspection.outputs.items()
        ],
    ]
    for line in (str(model), *lines):
        _line(console, line)
    table = Table()
    for name in ("operator", "nodes", "rule", "sums to delta"):
        table.add_column(name, justify="right" if name == "nodes" else "left", overflow="fold")
    for row in inspection.operators:
        exact = {True: "exact", False: "not always", None: ""}[row.exact]
        rule, style = row.rule or "not reached by the explained inputs", None if row.rule else "dim"
        if not row.supported:
            some = ", ".join(row.nodes[:3]) + ", ..." * (len(row.nodes) > 3)
            rule, exact, style = f"none: {some}", "UNSUPPORTED", "bold red"
        elif inspection.refusal is not None and row.rule is None:
            rule, style = "", None
        table.add_row(Text(row.operator), str(row.count), Text(rule), exact, style=style)
    console.print(table)
    if inspection.refusal is not None:
        _line(console, inspection.refusal, "red")
    unsupported = dict.fromkeys(row.operator for row in inspection.operators if not row.supported)
    if unsupported and inspection.refusal is None:
        _line(
            console,
            f"No rule for {', '.join(unsupported)}: write one (see deepshap_ir.extend) and give it with --rules",
            "red",
        )
    elif inspection.refusal is None:
        _line(console, "Every operator has a rule.")
