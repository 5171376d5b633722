"""Packages that a conversion needs, and what to install where one is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deepshap_ir.errors import MissingDependencyError


@contextmanager
def needed(purpose: str, extra: str) -> Iterator[None]:
    """Say of imports that fail while this lasts what they are for, and the extra of this package that brings them.

    Raises
    ------
    MissingDependencyError
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose}, {error.name} is needed: pip install 'deepshap-ir[{extra}]'"
        ) from error
