"""One side in a process of its own: its memory is its own, and it waits while another side is measured."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from benchmarks.sides import EXPLAINERS, Attributions, Forward, Job, Rows

STATUS = Path("/proc/self/status")


class Turn(NamedTuple):
    """What one turn of an explainer gave.

    Attributes
    ----------
    first : seconds of the first call of a new explainer.
    seconds : per call after it.
    attributions : ``[N, *features, K]``.
    """

    first: float
    seconds: float
    attributions: Attributions


class Memory(NamedTuple):
    """Resident memory of a side's process in MiB: after its imports, and at its highest since."""

    loaded: float
    peak: float


class SideFailedError(RuntimeError):
    """A side raised; the message is its last line, the cause is in the process of that side."""


class Worker:
    """Runs one side; use it as a context manager.

    Parameters
    ----------
    side : a key of `EXPLAINERS`, or ``"forward"``.
    """

    def __init__(self, side: str, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(side, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.send(job)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipe.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()

    def call(self, request: str, *arguments: Any) -> Any:
        """Do `request` over there and wait for its result; `SideFailedError` where it raised."""
        try:
            self.pipe.send((request, arguments))
            succeeded, result = self.pipe.recv()
        except (EOFError, BrokenPipeError) as cause:
            self.process.join(timeout=10)
            raise SideFailedError(f"its process ended with exit code {self.process.exitcode}") from cause
        if not succeeded:
            raise SideFailedError(result)
        return result


def use_threads(threads: int) -> None:
    """Keep this process and its children to `threads` processors and threads, whichever library asks."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class _ExplainerProcess:
    """The requests that the process of an explainer answers."""

    def __init__(self, side: str, job: Job) -> None:
        self.job = job
        self.explainer = EXPLAINERS[side]()
        self.explainer.load()
        _forget_peak()
        self.loaded = _resident_mib("VmRSS")

    def prepare(self, sample: Rows) -> float:
        """Build the explainer and explain one sample, so that nothing is compiled later; seconds."""
        started = time.perf_counter()
        self.explainer.prepare(self.job)
        self.explainer.attribute(sample)
        return time.perf_counter() - started

    def attribute(self, samples: Rows, at_least: float) -> Turn:
        """Explain `samples` with a new explainer, then over and over for `at_least` seconds: luck favours no side."""
        self.explainer.prepare(self.job)
        started = time.perf_counter()
        self.explainer.attribute(samples)
        first = time.perf_counter() - started
        calls, started = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - started < at_least:
            attributions = self.explainer.attribute(samples)
            calls += 1
        return Turn(first, (time.perf_counter() - started) / calls, attributions)

    def memory(self) -> Memory:
        """Memory up to now."""
        return Memory(self.loaded, _resident_mib("VmHWM"))


def _serve(side: str, pipe: Connection) -> None:
    """Answer requests until the other end closes the pipe."""
    warnings.simplefilter("ignore")
    job: Job = pipe.recv()
    target: Any = None
    while True:
        try:
            request, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if target is None:
                target = Forward(job) if side == "forward" else _ExplainerProcess(side, job)
            answer = (True, getattr(target, request)(*arguments))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _resident_mib(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (highest) of this process in MiB; nan where the system does not tell."""
    if not STATUS.exists():
        return float("nan")
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def _forget_peak() -> None:
    """Let ``VmHWM`` start again from the memory in use (proc(5), "clear_refs")."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
