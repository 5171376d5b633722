"""What a model is made of, and which rule explains each part: what `deepshap inspect` does before it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from deepshap_ir.commands.explain_files import Choices, fed_inputs
from deepshap_ir.commands.model_files import is_onnx, open_model
from deepshap_ir.commands.tables import Input
from deepshap_ir.custom_ops import CustomOp, CustomOps
from deepshap_ir.engine.expansion_kernels import expansion_functions
from deepshap_ir.engine.registry import Resolver, RuleSet
from deepshap_ir.engine.rule_sets import check_keys
from deepshap_ir.errors import InputError, ModelError, UnsupportedOperatorError
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.dependence import operator
from deepshap_ir.importing.feeds import Array, suggest
from deepshap_ir.importing.importer import Imported, import_model
from deepshap_ir.importing.interface import float_outputs
from deepshap_ir.specialisation import rewrite


@dataclass(frozen=True)
class Operators:
    """Nodes of one operator that are explained alike.

    Attributes
    ----------
    operator : ``"Relu"``, or ``"com.microsoft::Gelu"`` outside the standard domain.
    count : how many nodes.
    rule : its name; None where there is none, and where no explained input reaches the nodes.
    exact : whether the rule sums to delta for every input; None without a rule.
    supported : False for an operator that needs a rule and has none, and for nodes that no rule could explain.
    nodes : their names; in the file of a refused model, names of what they give where it does not name them.
    """

    operator: str
    count: int
    rule: str | None
    exact: bool | None
    supported: bool
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` finds.

    Attributes
    ----------
    inputs, outputs : name -> what the file declares, such as ``float32 [batch, 3, 224, 224]``.
    explained : names of the outputs that were looked at.
    operators : of all nodes between the inputs and these outputs, after constants are folded and operators expanded.
    refusal : why the model cannot be explained whatever rules there are, or None. The operators are those of the
        file then.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    explained: tuple[str, ...]
    operators: tuple[Operators, ...]
    refusal: str | None = None

    @property
    def supported(self) -> bool:
        """Whether the model can be explained."""
        return self.refusal is None and all(row.supported for row in self.operators)

    def as_dict(self) -> dict[str, Any]:
        """For json."""
        return asdict(self) | {"supported": self.supported}


def inspect_model(
    path: Path,
    *,
    output: Sequence[str] = (),
    inputs: Sequence[str] = (),
    hold: Sequence[str] = (),
    rules: Sequence[RuleSet] = (),
    custom_ops: Sequence[CustomOp] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    background: Path | None = None,
) -> Inspection:
    """Look at a model without data.

    Parameters
    ----------
    path : a file, of ONNX or of a framework.
    output, inputs, hold, rules : see `Choices.of`; all float outputs by default.
    custom_ops : as `DeepExplainer` takes them.
    shapes : of inputs, batch axis included, where the file leaves dimensions free; 1 otherwise.
    background : rows to trace the model of a framework with; shapes do too.

    Raises
    ------
    ModelError, InputError
        The model cannot be read or run, or a name is unknown.
    """
    foreign = not is_onnx(path)
    model, output = open_model(path, background, shapes or {}, output)
    if foreign:
        shapes = {}  # they are in the model now
    chosen = Choices.of(model, output, inputs, hold, rules)
    floats: list[str | int | None] = [*float_outputs(model)]  # None is refused with the reason
    outputs = [chosen.output] if chosen.output is not None else floats or [None]
    resolver = Resolver(chosen.rules)
    kernels = CustomOps.of(custom_ops).with_functions(expansion_functions(resolver))
    found: dict[str, tuple[Node, bool]] = {}
    explained, graphs, refusal = [], [], None
    refused: set[str] = set()
    for name in outputs:
        try:
            with kernels.known():
                imported = _imported(model, Choices(name, None, chosen.inputs, chosen.hold), resolver, shapes or {})
        except UnsupportedOperatorError as error:
            refusal = str(error)
            refused |= error.values
            continue
        explained.append(imported.output)
        graphs.append(imported.graph)
        found |= _nodes(imported.graph, imported.explained)
    if refusal is None:
        check_keys(resolver.given, *graphs)
    else:
        versions = {entry.domain: entry.version for entry in model.opset_import}
        nodes = [_read(node, versions.get(node.domain, 1)) for node in model.graph.node]
        found = {f"{position} {node.name}": (node, True) for position, node in enumerate(nodes)}
    return Inspection(
        {value.name: _declared(value) for value in model.graph.input if value.name not in _fixed(model)},
        {value.name: _declared(value) for value in model.graph.output},
        tuple(explained),
        _grouped(found.values(), resolver, refused if refusal else None),
        refusal,
    )


def _imported(
    model: ModelProto, chosen: Choices, resolver: Resolver, shapes: Mapping[str, tuple[int, ...]]
) -> Imported:
    fed = fed_inputs(model, chosen)
    names = [one.name for one in fed]
    for name in shapes:
        if name not in names:
            raise InputError(f"--shape: the model has no input {name!r}.{suggest(name, names)}")
    rows = {one.name: _row(one, shapes.get(one.name)) for one in fed}
    free = [one.name for one in fed if one.name not in shapes and (one.shape is None or None in one.shape)]
    try:
        return import_model(
            model,
            rows,
            output=chosen.output,
            inputs=chosen.inputs,
            hold=chosen.hold,
            rewrite=lambda graph, protected: rewrite(graph, protected, resolver),
            calls=resolver.is_called,
        )
    except ModelError as error:
        if not free:
            raise
        shape = ",".join(map(str, rows[free[0]].shape))
        raise ModelError(
            f"{error} Free dimensions of {', '.join(map(repr, free))} were taken as 1; give others: "
            f"--shape {free[0]}={shape}"
        ) from None


def _row(one: Input, shape: tuple[int, ...] | None) -> Array:
    """Something to run the model on: ones, or small random numbers for floats."""
    dtype = np.dtype(np.float32) if one.dtype is None else one.dtype
    if shape is None:
        shape = () if one.single else (1, *[size or 1 for size in ((1,) if one.shape is None else one.shape)])
    if dtype.kind == "f":
        return np.asarray(np.random.default_rng(0).normal(size=shape)).astype(dtype)
    return np.ones(shape, dtype)


def _nodes(graph: Graph, explained: Sequence[str]) -> dict[str, tuple[Node, bool]]:
    """Node name -> the node, and whether an explained input reaches it."""
    varying, needed = graph.downstream(explained), graph.upstream(graph.outputs)
    return {
        node.name: (node, bool(varying.intersection(node.outputs)))
        for node in graph.nodes
        if needed.intersection(node.outputs)
    }


def _grouped(found: Any, resolver: Resolver, refused: Set[str] | None) -> tuple[Operators, ...]:
    """The nodes by operator and rule, most frequent first, those without a rule before all others.

    Parameters
    ----------
    refused : what the nodes give that no rule could explain; None where the model is not refused, so that what has no
        rule will have none.
    """
    groups: dict[tuple[str, str | None, bool | None, bool], list[str]] = {}
    for node, varies in found:
        standing = refused is not None and not refused.isdisjoint(node.outputs)
        rule = resolver.rule(node) if varies and not standing else None
        supported = not standing and (rule is not None or not varies or refused is not None)
        key = (node.operator, rule.name if rule else None, rule.exact if rule else None, supported)
        groups.setdefault(key, []).append(node.name)
    rows = [Operators(key[0], len(names), *key[1:], tuple(names)) for key, names in groups.items()]
    return tuple(sorted(rows, key=lambda row: (row.supported, -row.count, row.operator)))


def _read(node: Any, version: int) -> Node:
    domain, _, name = operator(node).rpartition("::")
    given = node.name or next(iter(node.output), "")
    return Node(given, name, tuple(node.input), tuple(node.output), domain=domain, version=version)


def _fixed(model: ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def _declared(value: ValueInfoProto) -> str:
    """``float32 [batch, 3, 224, 224]``."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return str(value.type.WhichOneof("value") or "unknown type").removesuffix("_type")
    dtype = helper.tensor_dtype_to_string(tensor.elem_type).removeprefix("TensorProto.").lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if not tensor.HasField("shape"):
        return f"{dtype} of unknown shape"
    sizes = [str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{dtype} [{', '.join(sizes)}]"
