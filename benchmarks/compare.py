"""The comparison: every side on every network in turns, and what follows from the numbers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import Network
from benchmarks.sides import Attributions, Job
from benchmarks.worker import Memory, SideFailedError, Turn, Worker

OURS = "deepshap-ir"
TURN = 1.0  # seconds that a turn lasts at least
UNKNOWN = Memory(float("nan"), float("nan"))


@dataclass(frozen=True)
class Case:
    """One network and how many of its samples each side explains in a turn.

    Attributes
    ----------
    build : makes the network with at least as many samples as the largest count.
    samples : side -> samples; fewer where a side is slow, and the table says so.
    note : printed below the table.
    """

    name: str
    build: Callable[[int], Network]
    samples: dict[str, int]
    note: str = ""


@dataclass
class Measured:
    """One side on one case.

    Attributes
    ----------
    samples : explained in a turn.
    first : seconds of a new explainer's first call in each turn.
    seconds : per call after it.
    forward : seconds per row of the forward pass, taken just before each turn.
    attributions : of the last turn, ``[N, *features, K]``.
    setup : seconds for building the explainer and explaining one sample.
    memory : of the side's process.
    failure : what stopped the side, or None.
    """

    samples: int
    first: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    attributions: Attributions | None = None
    setup: float = float("nan")
    memory: Memory = UNKNOWN
    failure: str | None = None


@dataclass
class Result:
    """All sides on one case.

    Attributes
    ----------
    references, outputs : B and K; a triple is one sample, one reference and one output.
    batch : the batch size at which a row of the forward pass is cheapest.
    fx : the outputs of the samples, ``[N, K]``, by onnxruntime.
    mean_f0 : the mean output over the background, ``[K]``.
    """

    case: Case
    references: int
    outputs: int
    batch: int
    fx: Attributions
    mean_f0: Attributions
    sides: dict[str, Measured]

    def per_triple(self, side: str, first: bool = False) -> NDArray[np.float64]:
        """Seconds per triple, one for each round: of a new explainer's first call, or of those after it."""
        measured = self.sides[side]
        seconds = np.array(measured.first if first else measured.seconds)
        return seconds / (measured.samples * self.references * self.outputs)

    def ratio(self, side: str) -> float:
        """How many times as long as this library `side` takes per triple, the median of the rounds."""
        if not (self.finished(side) and self.finished(OURS)):
            return float("nan")
        return float(np.median(self.per_triple(side) / self.per_triple(OURS)))

    def passes(self, side: str, first: bool = False) -> float:
        """Forward passes of onnxruntime per triple, the median of the rounds."""
        if not self.finished(side):
            return float("nan")
        return float(np.median(self.per_triple(side, first) / np.array(self.sides[side].forward)))

    def forward(self) -> float:
        """Seconds per row of the forward pass, the median of all that were taken; nan where every side failed."""
        taken = [row for measured in self.sides.values() for row in measured.forward]
        return float(np.median(taken)) if taken else float("nan")

    def finished(self, side: str) -> bool:
        """Whether `side` took part and did not fail."""
        return side in self.sides and self.sides[side].failure is None

    def difference(self, side: str, other: str) -> float:
        """Largest difference of the attributions of two sides, relative to the largest of `other`."""
        if not (self.finished(side) and self.finished(other)):
            return float("nan")
        mine, theirs = self.sides[side], self.sides[other]
        if mine.attributions is None or theirs.attributions is None:
            return float("nan")
        shared = min(mine.samples, theirs.samples)
        gap = np.abs(mine.attributions[:shared] - theirs.attributions[:shared]).max()
        return float(gap / np.abs(theirs.attributions[:shared]).max())

    def additivity(self, side: str) -> float:
        """Largest ``|sum phi - (f(x) - E f(x0))|``, relative to the largest ``|f(x) - E f(x0)|``."""
        attributions = self.sides[side].attributions
        if attributions is None:
            return float("nan")
        delta = self.fx[: len(attributions)] - self.mean_f0
        total = attributions.reshape(len(attributions), -1, self.outputs).sum(axis=1)
        return float(np.abs(total - delta).max() / np.abs(delta).max())


def compare(case: Case, rounds: int, threads: int, progress: Callable[[str], None]) -> Result:
    """Measure all sides of `case`, one turn each in every round, the first one another each round.

    Parameters
    ----------
    progress : told what is being done, before it is done.
    """
    progress(f"{case.name}: build and export")
    network = case.build(max(case.samples.values()))
    with ExitStack() as stack:
        job = Job(network.onnx, pickle.dumps(network.module), network.background, threads)
        forward = stack.enter_context(Worker("forward", job))
        progress(f"{case.name}: best batch size of the forward pass")
        fx, f0 = forward.call("values", network.samples), forward.call("values", network.background)
        batch = forward.call("find_best_batch")
        workers = {side: stack.enter_context(Worker(side, job)) for side in case.samples}
        result = Result(
            case,
            references=len(network.background),
            outputs=fx.shape[1],
            batch=batch,
            fx=fx,
            mean_f0=f0.mean(axis=0),
            sides={side: Measured(count) for side, count in case.samples.items()},
        )
        for side, worker in workers.items():
            progress(f"{case.name}: set up {side}")
            with _reported(result.sides[side]):
                result.sides[side].setup = worker.call("prepare", network.samples[:1])
        for number in range(rounds):
            for side in _rotated(list(workers), number):
                measured = result.sides[side]
                if measured.failure is None:
                    progress(f"{case.name}: round {number + 1} of {rounds}, {side}")
                    row = forward.call("seconds", batch, TURN / 2)
                    with _reported(measured):
                        turn: Turn = workers[side].call("attribute", network.samples[: measured.samples], TURN)
                        measured.first.append(turn.first)
                        measured.seconds.append(turn.seconds)
                        measured.forward.append(row)
                        measured.attributions = turn.attributions
        for side, worker in workers.items():
            with _reported(result.sides[side]):
                result.sides[side].memory = worker.call("memory")
    return result


@contextmanager
def _reported(measured: Measured) -> Iterator[None]:
    """Note a failure beside the numbers, so that one side does not stop the others."""
    try:
        yield
    except SideFailedError as failure:
        measured.failure = str(failure)


def _rotated(sides: list[str], number: int) -> list[str]:
    """Start `number` places later and go round."""
    first = number % len(sides)
    return sides[first:] + sides[:first]
