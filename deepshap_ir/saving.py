"""What of an explainer is saved, and how one is made of that again, without the framework of its model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from deepshap_ir.archive import Contents
from deepshap_ir.converters.registry import Conversion, comes_from
from deepshap_ir.engine.registry import RuleSet
from deepshap_ir.engine.rule_sets import rule_sets
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.graph import Array
from deepshap_ir.importing.load import load_model
from deepshap_ir.specialisation import Specialisation

CHANGEABLE = ("backend", "providers", "precision", "memory_limit", "progress", "threads", "options", "custom_ops")
"""Settings that say how an explainer runs, not what it explains."""


@dataclass(frozen=True)
class Source:
    """A model as it was given, so that it can be read again later.

    Attributes
    ----------
    model : the model; a copy of what may change in memory, and the content of a file object, which is read once.
    stamp : of a file, when it was changed last and its size.
    """

    model: Any
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, model: Any) -> Source:
        """Of an ONNX model as a user gave it."""
        if isinstance(model, ModelProto) or hasattr(model, "read") or comes_from(model, "onnx_ir", "Model"):
            return cls(load_model(model))
        if isinstance(model, bytearray | memoryview):
            return cls(bytes(model))
        return cls(model, _stamp(model))

    def loaded(self, model: Any) -> ModelProto:
        """The ONNX model that a converter made of the source, to be written.

        Raises
        ------
        ModelError : its file has changed since.
        """
        if self.stamp is not None and model is self.model and _stamp(model) != self.stamp:
            raise ModelError(
                f"{os.fspath(model)!r} has changed since the explainer was made of it; make another explainer, or give "
                "the content of the file in place of its path."
            )
        return load_model(model)


def _stamp(model: Any) -> tuple[int, int] | None:
    if not isinstance(model, str | os.PathLike) or not os.path.isfile(model):
        return None
    found = os.stat(model)
    return found.st_mtime_ns, found.st_size


def contents(program: Specialisation, source: Source, rules: Any, memory_limit: int | str | None) -> Contents:
    """What is saved of an explainer.

    Parameters
    ----------
    rules, memory_limit : as they were given.

    Raises
    ------
    ModelError : the model's file has changed since.
    """
    setup, conversion, imported = program.setup, program.conversion, program.imported
    hold, named, kernels = conversion.hold, by_name(rules), setup.custom_ops
    if isinstance(hold, Mapping):
        hold = {name: None if array is None else np.asarray(array) for name, array in hold.items()}
    return Contents(
        model=source.loaded(conversion.model),
        settings={
            "conversion": {
                "output": conversion.output,
                "at": program.at,
                "hold": hold,
                "constants": conversion.constants,
            },
            "rules": named,
            "logits": setup.logits,
            "inputs": setup.inputs,
            "batch_axes": setup.settings.batch_axes,
            "backend": setup.backend,
            "providers": setup.providers,
            "precision": setup.precision,
            "memory_limit": memory_limit,
            "progress": setup.progress,
            "threads": setup.threads,
            "options": setup.resolver.options,
        },
        background=None if setup.own_references else imported.background,
        columns={spec.name: spec.columns for spec in imported.specs if spec.columns is not None},
        own_kernels=[str(getattr(k, "__name__", k)) for k in (*kernels.libraries, *kernels.functions)],
        own_rules=[] if named is not None else described(rule_sets(rules)),
    )


def arguments(contents: Contents, data: Any, rules: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `deepshap_ir.DeepExplainer`.

    Parameters
    ----------
    data, rules : what was given again.
    changes : settings that replace saved ones.

    Raises
    ------
    InputError : something that was not saved is missing, or a setting cannot be changed.
    """
    fixed = [name for name in changes if name not in CHANGEABLE]
    if fixed:
        raise InputError(
            f"load: {fixed[0]!r} is part of what was saved, or unknown; what can be changed is "
            f"{', '.join(map(repr, ('data', 'rules', *CHANGEABLE)))}."
        )
    if contents.own_rules and rules is None:
        raise InputError(
            f"load: the explainer had rules of its own, for {', '.join(map(repr, contents.own_rules))}; functions are "
            "not saved, so give them again: rules=."
        )
    if contents.own_kernels and not changes.get("custom_ops"):
        raise InputError(
            f"load: the explainer had kernels of its own, {', '.join(map(repr, contents.own_kernels))}, which are not "
            "saved; give them again: custom_ops=."
        )
    if data is None and contents.background is None:
        raise InputError(
            "load: the references of the explainer were a function, which is not saved; give it again, or a "
            "background: data=."
        )
    if data is None and contents.background is not None:
        data = {
            name: Labelled(array, contents.columns[name]) if name in contents.columns else array
            for name, array in contents.background.items()
        }
    settings = {**contents.settings, **changes}
    saved = settings.pop("rules")
    if settings["providers"] is not None:  # onnxruntime takes (name, options), not [name, options]
        settings["providers"] = [tuple(p) if isinstance(p, list) else p for p in settings["providers"]]
    parts = settings.pop("conversion")
    conversion = Conversion(contents.model, **(parts | {"at": tuple(parts["at"])}))
    return {"model": conversion, "data": data, "rules": saved if rules is None else rules, **settings}


class Labelled:
    """An array with labels of its columns, in the words of a DataFrame."""

    def __init__(self, array: Array, labels: Any) -> None:
        self.array = array
        self.columns = tuple(labels)
        self.shape = array.shape

    def to_numpy(self) -> Array:
        """The array."""
        return self.array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.array if dtype is None else self.array.astype(dtype)


def by_name(rules: Any) -> Any:
    """Rules that are names of rule sets alone, which can be written; None for functions."""
    if isinstance(rules, Mapping):
        return dict(rules) if all(isinstance(name, str) for name in rules.values()) else None
    if isinstance(rules, list | tuple):
        found = [by_name(one) for one in rules]
        return None if None in found else found
    return rules if isinstance(rules, str) else None


def described(sets: Iterable[RuleSet]) -> list[str]:
    """The operators and nodes for which there are rules or expansions."""
    for_all = [s.all.operator for s in sets if s.all is not None]
    return sorted({key for s in sets for key in (*s.rules, *s.expansions, *s.nodes, *s.borrowed)} | {*for_all})
