"""What follows from a torch module's parameters alone, computed before the export.

ONNX has no operator for a matrix exponential, an inverse or a Cholesky factor, and needs none where it is a constant:
in an orthogonal parametrisation, a flow's invertible layer, a normal distribution's covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx, nn


def folded(program: nn.Module, tensors: Sequence[Tensor], dims: Sequence[Any]) -> nn.Module | None:
    """Return a module in which what follows from parameters and buffers is a buffer; None where nothing does."""
    import torch

    exported = torch.export.export(program, tuple(tensors), dynamic_shapes=(tuple(dims),), strict=False)
    # without operators in place, which would change a constant after it is made
    module: fx.GraphModule = exported.run_decompositions({}).module()
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = _attribute(module, node.target)
        elif node.op == "call_function" and _is_constant(node, values):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    made = [
        node
        for node, value in values.items()
        if isinstance(value, torch.Tensor) and node.op != "get_attr" and any(user not in values for user in node.users)
    ]
    for i, node in enumerate(made):
        module.register_buffer(f"folded_{i}", values[node])
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(f"folded_{i}"))
    for node in reversed(list(module.graph.nodes)):
        if (node in values and not node.users) or node.op == "call_module":  # guards on shapes
            module.graph.erase_node(node)
    module.recompile()
    return module if made else None


def _is_constant(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    import torch

    target: Any = node.target
    random = isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags
    return not random and bool(node.all_input_nodes) and all(given in values for given in node.all_input_nodes)


def _attribute(module: torch.nn.Module, path: Any) -> Any:
    found: Any = module
    for name in str(path).split("."):
        found = getattr(found, name)
    return found
