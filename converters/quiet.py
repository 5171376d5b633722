"""What exporters print and log, kept to themselves."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

ALONE = threading.RLock()
"""Held while what belongs to the whole process is another: two threads would restore each other's."""


@contextmanager
def quiet(names: Sequence[str]) -> Iterator[None]:
    """Silence standard output, standard error, warnings, and the loggers of these names, in one thread at a time."""
    loggers = [logging.getLogger(name) for name in names]
    with ALONE, warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
