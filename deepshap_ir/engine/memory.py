"""How much memory there is for the work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from deepshap_ir.errors import InputError

UNLIMITED = 1 << 60
"""Control groups without a limit name a number as large as this, or "max"."""


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be had without swapping: of the machine, or of the control group where that leaves less.

    Parameters
    ----------
    root : where ``proc`` and ``sys`` are.
    """
    return max(0, min([_of_machine(root), *_of_control_groups(root)]))


def _of_machine(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 1 << 31


def _of_control_groups(root: Path) -> Iterator[int]:
    """What the limits of this process's control group, and of those around it, leave; versions 1 and 2."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, names = (mount / "memory", _VERSION_1) if controllers else (mount, _VERSION_2)
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            yield from _left(base / group, *names)


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def _left(group: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    """The limit of a group less what it uses; files that it only caches can be dropped."""
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if most != "max" and int(most) < UNLIMITED:
        yield int(most) - used + int(statistics.get(cache, 0))


def number_of_bytes(limit: int | str) -> int:
    """``2_000_000_000``, ``"2GB"``, ``"500 MiB"`` -> bytes.

    Raises
    ------
    InputError : it is neither, or not positive.
    """
    if not isinstance(limit, str):
        if limit <= 0:
            raise InputError(f"memory_limit={limit}: it must be a positive number of bytes")
        return int(limit)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", limit, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"memory_limit={limit!r}: write a number of bytes such as '2GB' or '500MiB'")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
