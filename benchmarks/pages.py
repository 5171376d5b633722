"""What a command writes between two marker lines of a page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def marks(name: str) -> tuple[str, str]:
    """Return the marker lines around what has the name."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def inside(page: Path, marks: tuple[str, str]) -> str:
    """Return what stands between the markers; raise `ValueError` where the page has no such two lines."""
    return _parts(page, marks)[1]


def put(page: Path, marks: tuple[str, str], lines: Iterable[str]) -> None:
    """Write lines between the markers, in the place of what stands there."""
    before, _, after = _parts(page, marks)
    page.write_text("\n".join([before + marks[0], *lines, marks[1] + after]))


def _parts(page: Path, marks: tuple[str, str]) -> tuple[str, str, str]:
    before, begin, rest = page.read_text().partition(marks[0])
    middle, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{page} has no lines {marks[0]} and {marks[1]} to write between.")
    return before, middle, after
