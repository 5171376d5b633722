"""How each operator takes its batch: the table `BATCHING` of `deepshap_ir.engine.lowering`."""

from __future__ import annotations

import numpy as np

from deepshap_ir.engine.inference import BROADCASTING, UNARY, onnx_node
from deepshap_ir.engine.lowering import (
    Lowering,
    batching,
    constant,
    negative,
    only_first,
    operand,
    row_by_row,
)
from deepshap_ir.engine.value import AXES, Step, Value
from deepshap_ir.graph import Array


@batching(*BROADCASTING)
def broadcast(low: Lowering, step: Step) -> None:
    """Line the axes up and let the operator broadcast."""
    rank, axes = step.outputs[0].rank, step.axes
    names = [low.align(v, axes, rank) if v is not None else "" for v in step.inputs]
    if step.op_type == "PRelu":
        names[0] = low.expand(operand(step), axes, step.outputs[0].shape)
    low.plain(step, names)


@batching(*UNARY)
def unary(low: Lowering, step: Step) -> None:
    """The operator knows no axis; its further operands (bounds, ratios) must not vary."""
    if only_first(step):
        low.plain(step)
    elif step.op_type == "Clip":
        clip_with_varying_bounds(low, step)
    else:
        row_by_row(low, step)


@batching("Swish")
def swish(low: Lowering, step: Step) -> None:
    """``x sigmoid(alpha x)``: onnxruntime 1.31 has no kernel, and expands the operator at opset 24 alone."""
    x, alpha = operand(step), step.attributes.get("alpha", 1.0)
    scaled = low.name(x)
    if alpha != 1.0:
        low.initializers[f"{step.outputs[0].name}_alpha"] = np.array(alpha, x.dtype)
        scaled = low.node("Mul", [scaled, f"{step.outputs[0].name}_alpha"])
    low.node("Mul", [low.name(x), low.node("Sigmoid", [scaled])], step.outputs[0].name)


def clip_with_varying_bounds(low: Lowering, step: Step) -> None:
    """``min(max(x, low), high)``."""
    x, *bounds = step.inputs
    assert x is not None
    name = low.align(x, step.axes, x.rank)
    for op_type, bound in zip(("Max", "Min"), bounds, strict=False):
        if bound is not None:
            name = low.node(op_type, [name, low.align(bound, step.axes, x.rank)])
    low.node("Identity", [name], step.outputs[0].name)


@batching("deepshap_ir::SumOver")
def sum_over(low: Lowering, step: Step) -> None:
    """The sum over one batch axis."""
    value = operand(step)
    position = value.axes.index(step.attributes["axis"])
    reduction = step.attributes["reduction"]
    low.node(reduction, [low.name(value), low.integers([position])], step.outputs[0].name, keepdims=0)


@batching("MatMul")
def matmul(low: Lowering, step: Step) -> None:
    """Leading axes broadcast; a constant matrix stays one large product."""
    a, b = operand(step, 0), operand(step, 1)
    axes, result = step.axes, step.outputs[0]
    rank = max(a.rank, b.rank, 2)
    if a.rank >= 2 and b.rank >= 2:
        low.plain(step, [low.align(a, axes, rank), low.align(b, axes, rank)])
        return
    left, right = low.name(a), low.name(b)
    if a.rank == 1:
        left = low.node("Unsqueeze", [left, low.integers([-2])])
    if b.rank == 1:
        right = low.node("Unsqueeze", [right, low.integers([-1])])
    matrix_a = Value(a.op, left, a.shape if a.rank > 1 else (1, *a.shape), a.dtype, a.axes)
    matrix_b = Value(b.op, right, b.shape if b.rank > 1 else (*b.shape, 1), b.dtype, b.axes)
    product = low.node("MatMul", [low.align(matrix_a, axes, rank), low.align(matrix_b, axes, rank)])
    squeezed = [k for k, v in ((-2, a), (-1, b)) if v.rank == 1]
    low.node("Squeeze", [product, low.integers(squeezed)], result.name)


@batching("Gemm")
def gemm(low: Lowering, step: Step) -> None:
    """The rows of all examples below one another where only the left factor varies, else the product spelled out."""
    a, b, c = operand(step, 0), operand(step, 1), step.inputs[2] if len(step.inputs) > 2 else None
    axes, result = step.axes, step.outputs[0]
    a_flipped, b_flipped = step.attributes.get("transA", 0), step.attributes.get("transB", 0)
    same_for_every_row = c is None or c.rank < 2 or c.shape[0] == 1
    if only_first(step) and not a_flipped and same_for_every_row and a.size:
        rows = low.node("Reshape", [low.name(a), low.integers([-1, a.shape[1]])])
        product = low.node("Gemm", [rows, low.name(b), low.name(c)], **step.attributes)
        low.reshape(product, axes, result.shape, result.name)
        return

    def factor(value: Value, flipped: int) -> str:
        n = len(value.axes)
        name = low.node("Transpose", [low.name(value)], perm=(*range(n), n + 1, n)) if flipped else low.name(value)
        return low.align(Value(value.op, name, value.shape, value.dtype, value.axes), axes, 2)

    def scaled(name: str, key: str) -> str:
        scale = step.attributes.get(key, 1.0)
        return name if scale == 1.0 else low.node("Mul", [name, low.name(a.op.constant(scale, a.dtype))])

    product = scaled(low.node("MatMul", [factor(a, a_flipped), factor(b, b_flipped)]), "alpha")
    if c is not None:
        product = low.node("Add", [product, scaled(low.align(c, axes, 2), "beta")])
    low.node("Identity", [product], result.name)


@batching("Einsum")
def einsum(low: Lowering, step: Step) -> None:
    """One more letter per batch axis."""
    left, arrow, right = step.attributes["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = [c for c in left if c.isalpha()]
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in letters if letters.count(c) == 1))
    free = [c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBAzyxwvutsrqponmlkjihgfedcba" if c not in left]
    if len(free) < len(AXES):
        row_by_row(low, step)
        return
    letter = dict(zip(AXES, free, strict=False))
    spelled = ["".join(letter[a] for a in operand(step, k).axes) + term for k, term in enumerate(terms)]
    equation = ",".join(spelled) + "->" + "".join(letter[a] for a in step.axes) + right
    low.plain(step, equation=equation)


def _default_axis(op_type: str) -> int:
    return {"Concat": 0, "ArgMax": 0, "ArgMin": 0, "Split": 0, "Gather": 0, "GatherElements": 0}.get(op_type, -1)


@batching("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "ArgMax", "ArgMin", "Split", "TopK")
def one_axis(low: Lowering, step: Step) -> None:
    """Count the axis attribute from the end."""
    if not only_first(step):
        row_by_row(low, step)
        return
    axis = step.attributes.get("axis", _default_axis(step.op_type))
    low.plain(step, axis=negative(axis, operand(step).rank))


@batching("LayerNormalization", "RMSNormalization")
def trailing_norm(low: Lowering, step: Step) -> None:
    """Scale and bias broadcast with the trailing axes."""
    axes, x = step.axes, operand(step)
    names = [low.expand(x, axes), *(low.align(v, axes, x.rank) if v is not None else "" for v in step.inputs[1:])]
    if not only_first(step):
        row_by_row(low, step)
        return
    low.plain(step, names, axis=negative(step.attributes.get("axis", -1), x.rank))


@batching("MeanVarianceNormalization")
def mean_variance_norm(low: Lowering, step: Step) -> None:
    """Its axes may include that of the example's own batch."""
    x = operand(step)
    low.plain(step, axes=[len(x.axes) + a % x.rank for a in step.attributes.get("axes", [0, 2, 3])])


@batching("Concat")
def concat(low: Lowering, step: Step) -> None:
    """All operands over the union of the axes."""
    axes = step.axes
    names = [low.expand(v, axes) for v in step.inputs if v is not None]
    low.plain(step, names, axis=negative(step.attributes["axis"], step.outputs[0].rank))


@batching(
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)
def reduction(low: Lowering, step: Step) -> None:
    """Axes as a constant operand, counted from the end."""
    x = operand(step)
    given = constant(step, 1)
    if given is None or given.size == 0:
        axes = [] if step.attributes.get("noop_with_empty_axes", 0) else list(range(-x.rank, 0))
    else:
        axes = [negative(int(a), x.rank) for a in given.reshape(-1)]
    if not axes:  # ReduceL1 and others are not the identity on single numbers
        single = low.node("Unsqueeze", [low.name(x), low.integers([-1])])
        low.plain(step, [single, low.integers([-1])], keepdims=0)
        return
    low.plain(step, [low.name(x), low.integers(axes)])


@batching("Squeeze", "Unsqueeze", "Reshape", "Flatten")
def reshaping(low: Lowering, step: Step) -> None:
    """The result's shape is static."""
    x, result = operand(step), step.outputs[0]
    low.reshape(low.name(x), x.axes, result.shape, result.name)


@batching("Transpose")
def transpose(low: Lowering, step: Step) -> None:
    """The batch axes stay in front."""
    x = operand(step)
    n = len(x.axes)
    permutation = step.attributes.get("perm") or list(range(x.rank))[::-1]
    low.plain(step, perm=[*range(n), *(n + p for p in permutation)])


@batching("Expand")
def expand(low: Lowering, step: Step) -> None:
    """Ones for the batch axes."""
    x, result = operand(step), step.outputs[0]
    target = [1] * len(x.axes) + list(result.shape)
    low.node("Expand", [low.align(x, x.axes, result.rank), low.integers(target)], result.name)


@batching("Tile")
def tile(low: Lowering, step: Step) -> None:
    """Once along the batch axes."""
    x, repeats = operand(step), constant(step, 1)
    assert repeats is not None
    low.plain(step, [low.name(x), low.integers([1] * len(x.axes) + repeats.tolist())])


@batching("Pad")
def pad(low: Lowering, step: Step) -> None:
    """No padding along the batch axes."""
    x, pads, axes = operand(step), constant(step, 1), constant(step, 3)
    assert pads is not None
    if not only_first(step):
        row_by_row(low, step)
        return
    places = [negative(int(a), x.rank) for a in axes] if axes is not None else range(-x.rank, 0)
    before, after = np.zeros((2, x.rank + len(x.axes)), np.int64)
    for k, place in enumerate(places):
        before[place], after[place] = pads[k], pads[k + len(pads) // 2]
    value = low.name(step.inputs[2]) if len(step.inputs) > 2 else ""
    low.plain(step, [low.name(x), low.integers([*before.tolist(), *after.tolist()]), value])


@batching("Slice")
def slice_(low: Lowering, step: Step) -> None:
    """Axes counted from the end; all numbers in one type, as the standard wants them and files of int32 do."""
    x = operand(step)
    starts, ends, axes, steps = ([] if (a := constant(step, i)) is None else a.tolist() for i in range(1, 5))
    places = [negative(int(a), x.rank) for a in axes or range(len(starts))]
    low.plain(step, [low.name(x), *(low.integers(v) for v in (starts, ends, places, steps or [1] * len(starts)))])


@batching("CumSum", "CumProd")
def cumulative(low: Lowering, step: Step) -> None:
    """The axis is a constant operand."""
    x, axis = operand(step), constant(step, 1)
    assert axis is not None
    place = low.node("Squeeze", [low.integers([negative(int(axis.reshape(())), x.rank)])])
    low.plain(step, [low.name(x), place])


@batching("Gather")
def gather(low: Lowering, step: Step) -> None:
    """Fixed indices: an axis from the end. Varying indices into a table: the batch axes come with them."""
    data, indices = operand(step, 0), operand(step, 1)
    axis = negative(step.attributes.get("axis", 0), data.rank)
    if not indices.axes:
        low.plain(step, axis=axis)
    elif not data.axes:
        result = step.outputs[0]
        position = axis + data.rank
        if position == 0:
            low.plain(step, axis=0)
            return
        found = low.node("Gather", [low.name(data), low.name(indices)], axis=position)
        n = len(indices.axes)
        moved = [*range(position, position + n), *range(position), *range(position + n, n + result.rank)]
        low.node("Transpose", [found], result.name, perm=moved)
    else:
        row_by_row(low, step)


@batching("GatherElements", "ScatterElements")
def elements(low: Lowering, step: Step) -> None:
    """All operands over the union of the axes."""
    axes = step.axes
    names = [low.expand(v, axes) for v in step.inputs if v is not None]
    axis = len(axes) + step.attributes.get("axis", 0) % operand(step).rank  # onnx.reference takes no negative one
    low.plain(step, names, axis=axis)


@batching("GatherND")
def gather_nd(low: Lowering, step: Step) -> None:
    """More batch dimensions."""
    axes = step.axes
    names = [low.expand(v, axes) for v in step.inputs if v is not None]
    low.plain(step, names, batch_dims=step.attributes.get("batch_dims", 0) + len(axes))


@batching("Trilu", "Det")
def leading(low: Lowering, step: Step) -> None:
    """The operator itself takes any leading dimensions."""
    if only_first(step):
        low.plain(step)
    else:
        row_by_row(low, step)


@batching(
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalMaxPool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LRN",
    "DepthToSpace",
    "SpaceToDepth",
    "Col2Im",
)
def own_batch(low: Lowering, step: Step) -> None:
    """Merge the axes into the operator's own batch dimension, run, and split them again."""
    x = operand(step)
    if not only_first(step):
        row_by_row(low, step)
        return
    names = [low.merged(x, x.axes), *(low.name(v) for v in step.inputs[1:])]
    run = [f"{v.name}_merged" for v in step.outputs]
    low.nodes.append(onnx_node(step.op_type, step.domain, names, run, step.attributes))
    if step.op_type == "MaxPool" and len(run) > 1:  # Indices count over the whole batch
        run[1] = low.node("Mod", [run[1], low.integers([x.size])])
    for name, value in zip(run, step.outputs, strict=True):
        if name:
            low.reshape(name, x.axes, value.shape, value.name)


@batching("Resize")
def resize(low: Lowering, step: Step) -> None:
    """The batch axes merged; `roi` and `sizes` speak of the other axes alone, as the length of this one differs."""
    x, result = operand(step), step.outputs[0]
    given = [constant(step, k) for k in range(1, len(step.inputs))]
    places = [a % x.rank for a in step.attributes.get("axes", range(x.rank))]
    if not only_first(step) or x.shape[0] != result.shape[0]:
        row_by_row(low, step)
        return
    kept = [k for k, a in enumerate(places) if a > 0]

    def without_batch(array: Array) -> str:
        halves = array.reshape(-1, len(places))[:, kept]  # two halves for roi: where it starts and where it ends
        return low.name(x.op.constant(halves.reshape(-1)))

    names = [low.merged(x, x.axes), *(without_batch(a) if a is not None and a.size else "" for a in given)]
    resized = f"{result.name}_merged"
    attributes = {**step.attributes, "axes": [places[k] for k in kept]}
    low.nodes.append(onnx_node("Resize", "", names, [resized], attributes))
    low.reshape(resized, x.axes, result.shape, result.name)


@batching("GridSample")
def grid_sample(low: Lowering, step: Step) -> None:
    """Both operands over the union of the axes, merged."""
    axes, result = step.axes, step.outputs[0]
    sampled = f"{result.name}_merged"
    names = [low.merged(operand(step, k), axes) for k in (0, 1)]
    low.nodes.append(onnx_node(step.op_type, step.domain, names, [sampled], step.attributes))
    low.reshape(sampled, axes, result.shape, result.name)
