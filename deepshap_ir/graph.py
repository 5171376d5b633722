"""The static program for one example, on which everything else works.

A `Graph` is what the importer makes of a model and what the walker differentiates: nodes in topological order,
every value with a known shape and dtype, every value that no model input determines folded into a constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]


@dataclass(frozen=True)
class Node:
    """One operator of the program.

    Attributes
    ----------
    name : unique in its graph; the name in the model file where it has one.
    domain : ``""`` for the ONNX standard (never ``"ai.onnx"``).
    version : the opset of `domain` under which the operator is read.
    inputs, outputs : value names, ``""`` where an optional one is absent.
    attributes : plain Python values: int, float, str, lists of them, `numpy.ndarray` for a tensor,
        `onnx.GraphProto` for a subgraph.
    captures : values of the graph that the subgraphs read by name, in order of first use. They are no `inputs`.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    version: int = 18
    captures: tuple[str, ...] = ()

    @property
    def operator(self) -> str:
        """``"Relu"``, or ``"com.microsoft::Gelu"`` outside the standard domain."""
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value that the node depends on: its inputs that are present, and what its subgraphs capture."""
        return (*filter(None, self.inputs), *self.captures)

    def __str__(self) -> str:
        return f"{self.operator} node {self.name!r}"


@dataclass
class Graph:
    """A program for one example: shapes are static, and include the batch axis with length 1.

    Attributes
    ----------
    inputs : names of the values that are fed, in the model's order.
    outputs : names of the explained outputs (one, unless several are wanted at once).
    nodes : topologically sorted.
    constants : values that no input determines.
    shapes, dtypes : of every value, inputs and constants included.
    batch_axes : per input, the axis of the batch (length 1 in `shapes`), or None where the input has none.
    opsets : domain -> version under which the nodes are read.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    batch_axes: dict[str, int | None]
    opsets: dict[str, int]

    @property
    def float_dtype(self) -> np.dtype[Any]:
        """The dtype of multipliers at the output: its own, or for a whole number or truth value the widest there is."""
        output = self.dtypes[self.outputs[0]]
        widest = np.float64 if np.dtype(np.float64) in self.dtypes.values() else np.float32
        return output if output.kind == "f" else np.dtype(widest)

    def producer(self) -> dict[str, Node]:
        """Value name -> the node that makes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def downstream(self, names: Iterable[str]) -> set[str]:
        """All values that depend on any of `names`, these included."""
        reached = set(names)
        for node in self.nodes:
            if any(name in reached for name in node.reads):
                reached.update(name for name in node.outputs if name)
        return reached

    def upstream(self, names: Iterable[str]) -> set[str]:
        """All values on which any of `names` depends, these included."""
        reached = set(names)
        for node in reversed(self.nodes):
            if any(name in reached for name in node.outputs):
                reached.update(node.reads)
        return reached

    def astype(self, dtype: Any) -> Graph:
        """The same program with every floating-point value in `dtype`, Cast targets and bodies included."""
        target = np.dtype(dtype)
        code = int(helper.np_dtype_to_tensor_dtype(target))

        def number(name: str, old: np.dtype[Any]) -> np.dtype[Any]:
            return target if old.kind == "f" else old

        def attribute(node: Node, key: str, value: Any) -> Any:
            if isinstance(value, Graph):
                return value.astype(target)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                return value.astype(target)
            floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
            return code if node.op_type == "Cast" and key == "to" and value in floats else value

        return replace(
            self,
            nodes=tuple(
                replace(node, attributes={k: attribute(node, k, v) for k, v in node.attributes.items()})
                for node in self.nodes
            ),
            constants={n: a.astype(number(n, a.dtype), copy=False) for n, a in self.constants.items()},
            dtypes={n: number(n, d) for n, d in self.dtypes.items()},
        )
