"""The layers of a framework, one by one: is each exported, explained by rules, and do its attributions sum to delta?"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import pages
from deepshap_ir import DeepExplainer
from deepshap_ir.errors import RuleError, UnsupportedOperatorError

REFERENCES, SAMPLES = 5, 3
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Outcome:
    """What became of one layer.

    Attributes
    ----------
    exports : whether it became ONNX; None where it was not tried.
    rules : names of the rules that explain it, none where an operator has none.
    error : largest gap of the sum, relative to the largest change of the output.
    reason : why it is not explained.
    """

    name: str
    exports: bool | None = None
    rules: tuple[str, ...] = ()
    error: float = float("nan")
    reason: str = ""

    @property
    def fine(self) -> bool:
        """Whether the attributions sum to delta."""
        return self.error <= TOLERANCE


@dataclass(frozen=True)
class LayerTable:
    """The layers of a framework and how each is made.

    Attributes
    ----------
    kind : what the framework calls a layer.
    names : gives the names of all layers.
    cases : names of those that ``build`` makes.
    left_out : layer -> why it is not tried.
    build : makes a model of one layer and ``REFERENCES + SAMPLES`` rows for it.
    outputs : the first output of such a model for rows, (rows, ...).
    marks : of the page.
    """

    kind: str
    names: Callable[[], list[str]]
    cases: Collection[str]
    left_out: Mapping[str, str]
    build: Callable[[str], tuple[Any, Any]]
    outputs: Callable[[Any, Any], NDArray[Any]]
    marks: tuple[str, str]

    def check(self, name: str) -> Outcome:
        """Explain one layer."""
        if name in self.left_out:
            return Outcome(name, reason=self.left_out[name])
        if name not in self.cases:
            return Outcome(name, reason="nothing is known of it here")
        exports = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model, rows = self.build(name)
                explainer = DeepExplainer(model, rows[SAMPLES:], output=0)
                exports = True
                phi = np.asarray(explainer.shap_values(rows[:SAMPLES], check_additivity=False))
                y = self.outputs(model, rows).astype(np.float64).reshape(len(rows), -1)
        except Exception as error:  # the framework's own code may fail on the data
            exports = exports or isinstance(error, RuleError | UnsupportedOperatorError)  # raised of a graph
            return Outcome(name, exports, reason=_short(f"{type(error).__name__}: {error}"))
        delta = y[:SAMPLES] - y[SAMPLES:].mean(0)
        total = phi.reshape(SAMPLES, int(np.prod(rows.shape[1:])), -1).sum(1)
        gap = float(np.abs(total - delta).max() / max(np.abs(delta).max(), 1e-12))
        return Outcome(name, True, tuple(dict.fromkeys(row.rule for row in explainer.rules())), gap)

    def score(self, outcomes: Sequence[Outcome]) -> str:
        """The score in a sentence."""
        tried = [one for one in outcomes if one.exports is not None]
        return (
            f"{sum(one.fine for one in outcomes)} of {len(tried)} {self.kind}s are explained with a relative "
            f"additivity error of at most {TOLERANCE:.0e}; {sum(bool(one.exports) for one in tried)} export."
        )

    def main(self, description: str | None) -> int:
        """Explain the layers, print, and write the page where one is named."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--only", default="", help=f"{self.kind}s whose name has this in it")
        parser.add_argument("--write", type=Path, help="page with the two marker lines")
        given = parser.parse_args()
        outcomes = []
        for name in self.names():
            if given.only in name:
                outcomes.append(self.check(name))
                print(line(outcomes[-1]), flush=True)
        print(self.score(outcomes))
        if given.write:
            head = [f"| {self.kind} | exports | rules | additivity error, or the reason |", "|---|---|---|---|"]
            pages.put(given.write, self.marks, [self.score(outcomes), "", *head, *map(line, outcomes)])
        return 0


def line(one: Outcome) -> str:
    """The layer's line in the table."""
    exports = {None: "", True: "yes", False: "no"}[one.exports]
    return f"| {one.name} | {exports} | {', '.join(one.rules)} | {one.reason or f'{one.error:.1e}'} |"


def _short(reason: str) -> str:
    """One line, without colours and lines of code."""
    line = re.sub(r"\x1b\[\d*m", "", " ".join(reason.split())).replace("|", "/")
    line = re.sub(r", at \S+:\d+: .*", "", line)
    return line if len(line) <= 160 else f"{line[:157]}..."
