"""Files of PyTorch: archives of TorchScript and torch.export are read; whatever needs unpickling is refused."""

from __future__ import annotations

import ast
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepshap_ir.converters import pytorch
from deepshap_ir.converters.registry import Conversion, Settings
from deepshap_ir.errors import MissingDependencyError, ModelError
from deepshap_ir.importing.runner import one_line

ACCEPTS = "the path of a TorchScript file (torch.jit.save) or a torch.export file (.pt2)"

_EXPRESSION = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)

ARCHIVES = (".pt", ".pth", ".pt2", ".ts", ".torchscript", ".ckpt")
PICKLES = (".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle")


def takes(model: Any) -> bool:
    """Tell whether `model` is the path of such a file."""
    return isinstance(model, str | os.PathLike) and Path(os.fspath(model)).suffix.lower() in (*ARCHIVES, *PICKLES)


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Load a module from a file and export it.

    Raises
    ------
    ModelError : see `load`.
    InputError, MissingDependencyError : as of a module.
    """
    return pytorch.convert(load(model), background, settings)


def load(path: str | os.PathLike[str]) -> Any:
    """Return the module in a file, without running Python code that may be in it.

    Raises
    ------
    ModelError : there is no such file, torch cannot read it, or reading it would mean to unpickle it.
    MissingDependencyError : torch is not installed.
    """
    place = Path(os.fspath(path))
    if not place.is_file():
        raise ModelError(f"{str(place)!r}: there is no such file.")
    names = _names(place) if place.suffix.lower() in ARCHIVES else []
    exported = any(name.endswith("/models/model.json") for name in names)
    scripted = any("/code/" in name for name in names)
    if not exported and not scripted:
        raise ModelError(_refusal(place))
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"to read {str(place)!r}, torch is needed: pip install 'deepshap-ir[torch]'"
        ) from error
    from deepshap_ir.converters.quiet import quiet
    from deepshap_ir.converters.torch_state import LOGGERS

    if exported:
        _check(place, names)
    try:
        with quiet(LOGGERS):
            return torch.export.load(place).module() if exported else torch.jit.load(place, map_location="cpu")
    except Exception as error:  # its readers raise whatever they like
        raise ModelError(f"torch cannot read {str(place)!r}: {one_line(error)}") from error


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _refusal(path: Path) -> str:
    if path.suffix.lower() in PICKLES:
        remedy = "load it in Python and explain the object: DeepExplainer(model, background)"
    else:
        remedy = "load it in Python and explain the module, or write it with torch.jit.save or torch.export.save"
    return (
        f"{str(path)!r} is a pickle: reading it runs whatever code is in it, so it is not read. "
        f"If you trust it, {remedy}."
    )


def _check(path: Path, names: list[str]) -> None:
    """Refuse a torch.export file of which torch would unpickle or evaluate a part.

    Raises
    ------
    ModelError : it has such a part.
    """
    with zipfile.ZipFile(path) as archive:
        contents = [json.loads(archive.read(name)) for name in names if name.endswith(".json")]
    for key, value in (pair for content in contents for pair in _pairs(content)):
        pickled = key == "use_pickle" and value
        pickled |= key == "path_name" and not str(value).startswith(("weight_", "tensor_"))
        if pickled:
            raise ModelError(_refusal(path).replace("is a pickle", "has tensors or objects in a pickle"))
        if key == "expr_str" and not _is_plain(str(value)):
            raise ModelError(f"{str(path)!r}: {value!r} is no expression of dimensions, so it is not evaluated.")


def _is_plain(expression: str) -> bool:
    """Tell whether an expression, which torch gives to sympy to evaluate, is of sympy's classes and numbers alone."""
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    for node in nodes:
        if isinstance(node, ast.Name) and not re.fullmatch(r"[A-Z]\w*|[a-z]+\d+", node.id):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier():
            return False
        if not isinstance(node, _EXPRESSION):
            return False
    return True


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of nested mappings."""
    if isinstance(content, dict):
        yield from content.items()
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _pairs(part)
