"""Messages for readers of the command line: in one line, with options in the place of Python's arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

MOST_LINES = 6
OPTIONS = {
    "backend": "--backend",
    "custom_ops": "--custom-ops",
    "hold": "--hold",
    "inputs": "--input",
    "memory_limit": "--memory-limit",
    "output": "--output",
    "precision": "--precision",
    "providers": "--provider",
    "rules": "--rules",
}
"""Arguments of Python, and what they are here."""

_NAMES = rf"(?<![\w./-])({'|'.join(OPTIONS)})"
_IN_PYTHON = r"(?<![\w./-])(batch_axes=|hold=\{)"

REWRITINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"[;,] references by a function, data=function, may follow [^.]*", ""),
    (r"check_additivity=False", "--no-check"),
    (r"custom_ops=\[\.\.\.\]", "--custom-ops LIBRARY"),
    (r"(inputs|hold)=\[name\]", lambda found: f"{OPTIONS[found[1]]} NAME"),
    (r"rules=\{('[^']*'): my_rule\}", r"--rules FILE.py, with @rule(\1) above my_rule"),
    (r"ranked_outputs=(\d+)", r"--output top:\1"),
    (r"ranked_outputs=", "--output top:K"),
    (_IN_PYTHON, r"in Python \1"),
    (rf"{_NAMES}='([^']*)'", lambda found: f"{OPTIONS[found[1]]} {shlex.quote(found[2])}"),
    (rf"{_NAMES}=(\w+(?:[,.]\d+)*)", lambda found: f"{OPTIONS[found[1]]} {found[2]}"),
    (rf"{_NAMES}=(?![\w'\"{{\[(])", lambda found: OPTIONS[found[1]]),
    (rf"^{_NAMES}:", lambda found: f"{OPTIONS[found[1]]}:"),
]
"""What messages say of arguments -> what they say here, in the order in which they are looked for."""


def one_line(message: str) -> str:
    """A message of several lines in one, without the middle of a long list, for readers of the command line."""
    for pattern, here in REWRITINGS:
        message = re.sub(pattern, here, message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line if line[-1] in ".:;,!?" else f"{line};" for line in lines[:-1]] + lines[-1:]
    if len(lines) > MOST_LINES:
        left_out = len(lines) - MOST_LINES + 1
        lines = [*lines[: MOST_LINES - 2], f"... {left_out} more ...", lines[-1]]
    return " ".join(lines)
