"""How work is cut: pieces that fit the memory and the processor's cache, and how many of them run side by side."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from deepshap_ir.engine.program import Plan, nbytes
from deepshap_ir.engine.value import BACKGROUND, OUTPUT, SAMPLE

T = TypeVar("T")
Result = Callable[[], T]
"""Waits for what was submitted."""
Submit = Callable[[Callable[[], T]], Result[T]]

REFERENCES_PER_SUM = 50
"""Longest float32 sum over references: 1.5e-7 relative, before pieces are added up in float64."""
CACHE_BYTES = 1 << 21
"""Small models run in pieces whose widest value has about this size."""


@dataclass(frozen=True)
class Pieces:
    """Lengths of a piece along the batch axes, and how many pieces are worked on at a time.

    Attributes
    ----------
    sizes : axis -> length.
    workers : 1: one piece at a time, on all threads of the backend.
    """

    sizes: Mapping[str, int]
    workers: int = 1


def cut(plan: Plan, memory_limit: int, cores: int, k: int, n: int, b: int) -> Pieces:
    """The pieces for `k` outputs, `n` samples and `b` references.

    One thread for each piece wastes less time than many threads that meet after every operator, so this is done unless
    there are fewer pieces than half of the cores, or one triple for each of them is too much for the memory.
    """
    triple = peak(plan, {OUTPUT: 1, SAMPLE: 1, BACKGROUND: 1})
    if cores > 1 and triple * cores <= memory_limit // 2:
        sizes = _sizes(plan, memory_limit // cores, cores, k, n, b)
        count = math.ceil(k / sizes[OUTPUT]) * math.ceil(n / sizes[SAMPLE]) * math.ceil(b / sizes[BACKGROUND])
        if count >= cores / 2:
            return Pieces(sizes, min(cores, count))
    if triple > memory_limit:
        warnings.warn(
            f"one triple of sample, reference and output takes {triple:,} bytes, more than "
            f"memory_limit={memory_limit:,}; it is run all the same",
            stacklevel=2,
        )
    return Pieces(_sizes(plan, memory_limit, 1, k, n, b))


def _sizes(plan: Plan, memory_limit: int, workers: int, k: int, n: int, b: int) -> dict[str, int]:
    budget = memory_limit // 2  # onnxruntime's workspaces and fragmentation take the other half
    sizes = {OUTPUT: k, SAMPLE: 1, BACKGROUND: min(math.ceil(b / workers), REFERENCES_PER_SUM)}
    while peak(plan, sizes) > budget and max(sizes.values()) > 1:
        axis = BACKGROUND if sizes[BACKGROUND] >= sizes[OUTPUT] else OUTPUT
        sizes[axis] = math.ceil(sizes[axis] / 2)
    sizes[BACKGROUND] = _even(b, sizes[BACKGROUND])
    if not plan.explain.steps:
        return sizes
    others = math.ceil(k / sizes[OUTPUT]) * math.ceil(b / sizes[BACKGROUND])
    most = math.ceil(n / math.ceil(workers / others))
    widest = plan.explain.widest(sizes)
    while sizes[SAMPLE] < most:
        more = sizes | {SAMPLE: min(most, 2 * sizes[SAMPLE])}
        if peak(plan, more) > budget or nbytes(widest, more) > CACHE_BYTES:
            break
        sizes = more
    sizes[SAMPLE] = _even(n, sizes[SAMPLE])
    return sizes


def peak(plan: Plan, sizes: Mapping[str, int]) -> int:
    """Most bytes alive at once in any of the programs."""
    return max(program.peak_bytes(sizes) for program in plan.programs().values())


def ranges(stop: int, piece: int) -> Iterator[slice]:
    """Slices of at most `piece` up to `stop`."""
    for first in range(0, stop, piece):
        yield slice(first, min(stop, first + piece))


def length(block: slice) -> int:
    """How many indexes a slice with both ends has."""
    return int(block.stop - block.start)


def _even(total: int, most: int) -> int:
    """The length of the pieces when `total` is cut as evenly as can be into pieces of at most `most`."""
    return math.ceil(total / math.ceil(total / most))


@contextmanager
def workers(count: int) -> Iterator[Submit[Any]]:
    """A function that hands tasks to so many threads and gives what waits for the result; for 1 it runs them itself.

    Tasks start in the order in which they are handed in. On an error or an interruption those that have not started
    never do.
    """
    if count == 1:
        yield _run
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="deepshap")
    try:
        yield lambda task: pool.submit(task).result
    finally:
        pool.shutdown(cancel_futures=True)


def _run(task: Callable[[], T]) -> Result[T]:
    return given(task())


def given(result: T) -> Result[T]:
    """A result that is there already."""
    return lambda: result


def in_order(items: Iterable[T], ahead: int) -> Iterator[T]:
    """The items, taken from their iterator up to `ahead` items before they are needed."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
