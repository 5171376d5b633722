"""`If` without subgraphs: the taken branch, or both branches and a choice between their results."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto, TensorProto, helper

from deepshap_ir.importing.subgraphs import fresh


def branch_nodes(node: NodeProto, condition: bool, outputs: Sequence[str], node_names: set[str]) -> list[NodeProto]:
    """Return the nodes of a branch of `node`, whose results are called `outputs`; ``""`` where one is not wanted.

    The names of a branch are free outside: `normalise` makes names unique over all subgraphs.
    """
    wanted = "then_branch" if condition else "else_branch"
    branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
    nodes = []
    for tensor in branch.initializer:
        nodes.append(helper.make_node("Constant", [], [tensor.name], name=fresh(tensor.name, node_names), value=tensor))
    nodes.extend(branch.node)
    for inner, outer in zip(branch.output, outputs, strict=True):
        if outer:
            name = fresh(f"{node.name}/{inner.name}", node_names)
            nodes.append(helper.make_node("Identity", [inner.name], [outer], name=name))
    return nodes


def choice_nodes(
    node: NodeProto, yes: Sequence[str], no: Sequence[str], names: set[str], node_names: set[str]
) -> list[NodeProto]:
    """Return the nodes that make the outputs of `node` of the results `yes` and `no` of its branches."""
    condition, scalar = (fresh(f"{node.name}/{what}", names) for what in ("condition", "scalar"))
    shape = helper.make_tensor(scalar, TensorProto.INT64, [0], [])
    nodes = [
        helper.make_node("Constant", [], [scalar], name=fresh(scalar, node_names), value=shape),
        helper.make_node("Reshape", [node.input[0], scalar], [condition], name=fresh(condition, node_names)),
    ]
    for a, b, output in zip(yes, no, node.output, strict=True):
        if output:
            name = fresh(f"{node.name}/{output}", node_names)
            nodes.append(helper.make_node("Where", [condition, a, b], [output], name=name))
    return nodes
