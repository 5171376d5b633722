"""Why torch could not run or export a module, in one line."""

from __future__ import annotations

import traceback
from pathlib import Path

from deepshap_ir.importing.runner import one_line

REMEDIES = {
    "Guard failed": "; write the program with a batch of any size, torch.export.export(..., dynamic_shapes=...)",
    "No ONNX function found": "; compute it with other functions of torch",
}
"""By how messages begin."""


def cause(error: BaseException) -> str:
    """Return the message of the first of a chain of errors, and where in the module it arose.

    The last errors of a chain only name the exporter's stages.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    where = _line(error)
    if "data-dependent" in str(error):
        return (
            f"forward chooses its way by a value of the data{where}; compute both ways and choose with torch.where, or "
            f"leave a check of the data out: if not torch.compiler.is_exporting()"
        )
    remedy = next((remedy for start, remedy in REMEDIES.items() if str(error).startswith(start)), "")
    return one_line(error).removesuffix(".") + where + remedy


def _line(error: BaseException) -> str:
    """Return the line of the module's own code that was run last, as ``, at net.py:12: if x.sum() > 0:``."""
    import torch

    own, libraries = Path(__file__).parent, Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    called = [i for i, frame in enumerate(frames) if Path(frame.filename).parent == own and frame.name == "call"]
    inside = [
        frame
        for frame in frames[called[-1] + 1 if called else len(frames) :]
        if libraries not in Path(frame.filename).parents and own not in Path(frame.filename).parents
    ]
    return f", at {inside[-1].filename}:{inside[-1].lineno}: {inside[-1].line}" if inside else ""
