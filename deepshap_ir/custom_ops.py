"""Operators that neither the ONNX standard nor onnxruntime knows: where their kernels come from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
from onnx.reference.op_run import OpRun

from deepshap_ir.errors import InputError

CustomOp = str | os.PathLike[str] | type[OpRun]
"""The path of a library of onnxruntime kernels, or a class that computes an operator in numpy."""


@dataclass(frozen=True)
class CustomOps:
    """Kernels for operators that the engines do not have.

    Attributes
    ----------
    libraries : paths of shared libraries with custom operators of onnxruntime.
    functions : classes for ``onnx.reference``.
    """

    libraries: tuple[str, ...] = ()
    functions: tuple[type[OpRun], ...] = ()

    @classmethod
    def of(cls, given: Sequence[CustomOp]) -> CustomOps:
        """Check what a user gives.

        Raises
        ------
        InputError : a library is not there or does not load, or a class is no operator.
        """
        if isinstance(given, str | os.PathLike | type):
            raise InputError(f"custom_ops: expected a list, given {given!r}; write [{given!r}].")
        libraries, functions = [], []
        for one in given:
            if isinstance(one, str | os.PathLike):
                libraries.append(_library(Path(one)))
            else:
                functions.append(_function(one))
        return cls(tuple(libraries), tuple(functions))

    def options(self) -> onnxruntime.SessionOptions:
        """Options of a session that has the libraries."""
        options = onnxruntime.SessionOptions()
        for path in self.libraries:
            options.register_custom_ops_library(path)
        return options

    @contextmanager
    def known(self) -> Iterator[None]:
        """Every model that is run meanwhile, to import or to examine it, has these kernels."""
        token = _known.set(self)
        try:
            yield
        finally:
            _known.reset(token)

    def with_functions(self, more: Iterable[type[OpRun]]) -> CustomOps:
        """These and more classes, which are asked last."""
        return replace(self, functions=(*self.functions, *more))


_known: ContextVar[CustomOps] = ContextVar("custom_ops", default=CustomOps())  # noqa: B039  (frozen)


def known_custom_ops() -> CustomOps:
    """The kernels of the explainer at work."""
    return _known.get()


def _library(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"custom_ops: {os.fspath(path)!r}: no such file (the current folder is {os.getcwd()!r})")
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(path))
    except Exception as error:
        raise InputError(
            f"custom_ops: {os.fspath(path)!r} is no library of custom operators for onnxruntime "
            f"{onnxruntime.__version__}: {' '.join(str(error).split())}"
        ) from None
    return str(path)


def _function(given: Any) -> type[OpRun]:
    if not (isinstance(given, type) and issubclass(given, OpRun)):
        raise InputError(
            f"custom_ops: {given!r} is neither the path of a library nor a class derived from "
            "onnx.reference.op_run.OpRun, whose name is the operator's"
        )
    if not given.op_domain:
        raise InputError(f"custom_ops: {given.__name__} does not say its domain: op_domain = 'my.domain'")
    return given
