"""Small models in the text format of ONNX, and what tests do with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, parser

from deepshap_ir.graph import Graph
from deepshap_ir.importing.importer import Imported
from deepshap_ir.importing.runner import Runner
from deepshap_ir.onnx_io import graph_to_model

Array = NDArray[Any]

X = "(float[N,4] x) => (float[N,4] y)"


def parsed(body: str, signature: str = X, version: int = 18, more: str = "") -> ModelProto:
    imports = f'"" : {version}, "ai.onnx.ml" : 3, "com.microsoft" : 1'
    return parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {signature} {body} {more}")


def data(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operators(imported: Imported) -> list[str]:
    return [node.operator for node in imported.graph.nodes]


def run(graph: Graph, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
    return list(Runner(graph_to_model(graph, outputs)).run(feeds).values())
