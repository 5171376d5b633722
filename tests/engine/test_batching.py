"""Every lowered operator against the same operator run on one row at a time, for all combinations of batch axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir.engine.backends import Backend, OnnxRuntime, Reference
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.inference import BROADCASTING, UNARY, onnx_node
from deepshap_ir.engine.lowering import BATCHING
from deepshap_ir.engine.program import Program, split
from deepshap_ir.engine.value import AXES, BACKGROUND, OUTPUT, SAMPLE, Value
from deepshap_ir.reference.operators import REPAIRED

Array = NDArray[Any]

LENGTHS = {OUTPUT: 2, SAMPLE: 3, BACKGROUND: 2}
NOT_INFERRED = ("GroupNormalization", "MeanVarianceNormalization")
"""onnx infers no shape of what has a function body that depends on the operands' types."""
SUBSETS = [axes for n in range(4) for axes in itertools.combinations(AXES, n)]
FEW = [(), (SAMPLE,), (BACKGROUND,), (OUTPUT, BACKGROUND), (SAMPLE, BACKGROUND), AXES]
"""Enough to have every kind of missing axis, in front, in the middle and behind."""


@dataclass(frozen=True)
class Drawn:
    """An operand that may vary over the batch axes."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -2.0
    high: float = 2.0

    def rows(self, rng: np.random.Generator, lead: Sequence[int]) -> Array:
        size = (*lead, *self.shape)
        if self.dtype == "bool":
            return rng.uniform(size=size) < 0.5
        if np.dtype(self.dtype).kind in "iu":
            return rng.integers(int(self.low), int(self.high), size).astype(self.dtype)
        return rng.uniform(self.low, self.high, size).astype(self.dtype)


@dataclass(frozen=True)
class Case:
    operator: str
    operands: tuple[Drawn | Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 18
    backends: tuple[str, ...] = ("onnxruntime", "reference")
    thorough: bool = False

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, o.shape)) if o is not None else "" for o in self.operands)
        return f"{self.operator}({shapes}){self.attributes or ''}"

    def shape(self, i: int) -> tuple[int, ...]:
        operand = self.operands[i]
        assert operand is not None
        return operand.shape

    @property
    def places(self) -> list[int]:
        """Positions of the operands that may vary."""
        return [i for i, o in enumerate(self.operands) if isinstance(o, Drawn)]

    def combinations(self) -> Iterator[tuple[tuple[str, ...], ...]]:
        """Axes of the varying operands; not all are fixed."""
        subsets = SUBSETS if self.thorough or len(self.places) == 1 else FEW if len(self.places) == 2 else FEW[1:5]
        yield from (c for c in itertools.product(subsets, repeat=len(self.places)) if any(c))


def x(*shape: int, dtype: str = "float32", low: float = -2.0, high: float = 2.0) -> Drawn:
    return Drawn(shape, dtype, low, high)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


def floats(*shape: int) -> Array:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def lowered(case: Case, sources: dict[tuple[int, tuple[str, ...]], Array]) -> tuple[Emitter, list[tuple[Value, ...]]]:
    """One step for each combination of axes."""
    op = Emitter({"": case.opset})
    fed = {
        (i, axes): op.input(f"x{i}_{'_'.join(axes)}", a.shape[len(axes) :], a.dtype, axes)
        for (i, axes), a in sources.items()
    }
    made = []
    for combination in case.combinations():
        axes_of = dict(zip(case.places, combination, strict=True))
        inputs = [
            o if o is None else fed[i, axes_of[i]] if i in axes_of else op.constant(_fixed(o))
            for i, o in enumerate(case.operands)
        ]
        if case.operator in NOT_INFERRED:
            made.append(
                op.emit(case.operator, "", inputs, case.attributes, types=[(case.shape(0), np.dtype("float32"))])
            )
        else:
            made.append(op.call(case.operator, *inputs, outputs=case.outputs, **case.attributes))
    return op, made


def _fixed(operand: Drawn | Array) -> Array:
    return operand.rows(np.random.default_rng(3), ()) if isinstance(operand, Drawn) else operand


def run(programs: Sequence[Program], backend: Backend, feeds: dict[str, Array]) -> dict[str, Array]:
    """All outputs of the programs by value name."""
    known = dict(feeds)
    for program in programs:
        if not program.outputs:
            continue
        onnx.checker.check_model(program.model)
        given = {v.name: backend.put(known[v.name]) for v in program.inputs}
        given |= {f"size_of_{a}": backend.put(np.array([LENGTHS[a]], np.int64)) for a in program.dimensions}
        names = [o.name for o in program.model.graph.output]
        found = backend.run(backend.load(program.model, program.weights), names, given, odd=False)
        known |= {v.name: backend.get(a) for v, a in zip(program.outputs, found, strict=True)}
    return known


class OneRow:
    """The operator itself, on one example."""

    def __init__(self, case: Case, backend: str) -> None:
        names = [f"x{i}" if o is not None else "" for i, o in enumerate(case.operands)]
        self.fed = [n for i, n in enumerate(names) if i in case.places]
        self.names = [f"y{j}" for j in range(case.outputs)]
        operands = dict(zip(names, case.operands, strict=True))
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(o.dtype)), o.shape)
            for n, o in operands.items()
            if n in self.fed and o is not None
        ]
        fixed = [
            numpy_helper.from_array(_fixed(o), n) for n, o in operands.items() if o is not None and n not in self.fed
        ]
        node = onnx_node(case.operator, "", names, self.names, case.attributes)
        graph = helper.make_graph([node], "row", infos, [helper.make_empty_tensor_value_info(n) for n in self.names])
        graph.initializer.extend(fixed)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session: Any = (
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            if backend == "onnxruntime"
            else ReferenceEvaluator(model, new_ops=REPAIRED)
        )

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        with np.errstate(all="ignore"):
            found = self.session.run(self.names, dict(zip(self.fed, map(np.asarray, arrays), strict=True)))
        return [np.asarray(a) for a in found]


def check(case: Case, backend: str) -> None:
    rng = np.random.default_rng(0)
    used = {(i, axes) for combination in case.combinations() for i, axes in zip(case.places, combination, strict=True)}
    drawn = {i: o for i, o in enumerate(case.operands) if isinstance(o, Drawn)}
    sources = {(i, axes): drawn[i].rows(rng, [LENGTHS[a] for a in axes]) for i, axes in sorted(used)}
    op, made = lowered(case, sources)
    programs = split(op, [v for values in made for v in values])
    feeds = {f"x{i}_{'_'.join(axes)}": a for (i, axes), a in sources.items()}
    known = run(programs, OnnxRuntime(threads=1) if backend == "onnxruntime" else Reference(), feeds)
    one = OneRow(case, backend)
    for combination, values in zip(case.combinations(), made, strict=True):
        union = tuple(a for a in AXES if any(a in axes for axes in combination))
        for value in values:
            assert value.axes == union, (str(case), combination)
            assert known[value.name].shape == (*(LENGTHS[a] for a in union), *value.shape), (str(case), combination)
            assert known[value.name].dtype == value.dtype
        lengths = [LENGTHS[a] for a in union]
        expected = []
        for index in itertools.product(*map(range, lengths)):
            at = dict(zip(union, index, strict=True))
            places = zip(case.places, combination, strict=True)
            expected.append(one([sources[i, axes][tuple(at[a] for a in axes)] for i, axes in places]))
        for value, rows in zip(values, zip(*expected, strict=True), strict=True):
            np.testing.assert_allclose(
                known[value.name],
                np.stack(rows).reshape(*lengths, *value.shape),
                rtol=1e-5,
                atol=1e-5,
                err_msg=f"{case} on {backend}, operands over {combination}",
            )


NO_ORT = ("reference",)
"""onnxruntime leaves the memory of empty sums as it was."""
NO_REFERENCE = ("onnxruntime",)
"""onnx.reference computes it wrongly, or not at all."""

UNARY_DOMAINS = {
    "Acos": (-0.9, 0.9),
    "Acosh": (1.1, 3.0),
    "Asin": (-0.9, 0.9),
    "Atanh": (-0.9, 0.9),
    "Log": (0.1, 2.0),
    "Sqrt": (0.1, 2.0),
    "Reciprocal": (0.5, 2.0),
}
UNARY_FLOAT = sorted(UNARY - {"BitwiseNot", "Cast", "Clip", "Dropout", "Gelu", "Identity", "Not", "Swish"})
UNARY_CASES = [
    *(Case(name, (Drawn((2, 3), "float32", *UNARY_DOMAINS.get(name, (-2.0, 2.0))),)) for name in UNARY_FLOAT),
    Case("Cast", (x(2, 3),), {"to": 7}),
    Case("Cast", (x(2, 3, dtype="bool"),), {"to": 1}),
    Case("Not", (x(2, 3, dtype="bool"),)),
    Case("BitwiseNot", (x(2, 3, dtype="int32", low=-9, high=9),)),
    Case("Gelu", (x(2, 3),), {"approximate": "tanh"}, opset=20),
    Case("Gelu", (x(2, 3),), opset=20),
    Case("Swish", (x(2, 3),), {"alpha": 1.5}, opset=24),
    Case("LeakyRelu", (x(),), {"alpha": 0.3}),
    Case("Dropout", (x(2, 3),)),
    Case("Dropout", (x(2, 3),), outputs=2),
    Case("Clip", (x(2, 3), number(-1), number(0.5))),
    Case("Clip", (x(2, 3), None, number(0.5))),
    Case("Clip", (x(2, 3), x(low=-2, high=-0.5), x(low=-0.5, high=1))),
    Case("Clip", (x(3), None, x(low=-0.5, high=1))),
    Case("Clip", (x(3, dtype="int32", low=-9, high=9), x(dtype="int32", low=-3, high=0))),
]

TYPED = {"And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Mod", "Or", "Where", "Xor"}
BROADCASTING_CASES = [
    *(Case(name, (x(2, 3, low=0.5), x(2, 3, low=0.5))) for name in sorted(BROADCASTING - TYPED)),
    *(Case(name, (x(1, 4, 3), x(3)), thorough=name == "Add") for name in ("Add", "PRelu", "Max", "Mean")),
    *(Case(name, (x(3), x(1, 4, 1))) for name in ("Sub", "Less", "Min", "Sum")),
    Case("Mul", (x(), x(2, 3))),
    Case("Mul", (x(), x())),
    Case("Add", (floats(2, 3), x(3))),
    Case("Add", (x(3), floats(4, 1))),
    Case("PRelu", (x(1, 3, 2, 2), x(3, 1, 1))),
    Case("PRelu", (x(1, 3, 2), floats(3, 1))),
    Case("Pow", (x(2, 3, low=0.5), x(1, dtype="int64", low=0, high=3))),
    Case("Mod", (x(2, 3, dtype="int64", low=-9, high=9), x(3, dtype="int64", low=1, high=5))),
    Case("Mod", (x(2, 3), x(1, low=0.5)), {"fmod": 1}),
    Case("BitShift", (x(3, dtype="uint8", low=0, high=60), x(3, dtype="uint8", low=0, high=4)), {"direction": "LEFT"}),
    *(
        Case(name, (x(3, dtype="int32", low=0, high=9), x(2, 1, dtype="int32", low=0, high=9)))
        for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ),
    *(Case(name, (x(3, dtype="bool"), x(2, 1, dtype="bool"))) for name in ("And", "Or", "Xor")),
    *(Case(name, (x(2, 1), x(3), x(1, 1, 1))) for name in ("Max", "Min", "Sum", "Mean")),
    Case("Sum", (x(2, 3),)),
    Case("Where", (x(2, 3, dtype="bool"), x(3), x(2, 1))),
    Case("Where", (x(1, dtype="bool"), x(2, 3), floats(1, 1))),
    Case("Where", (np.array([True, False, True]), x(2, 3), x())),
    Case("Add", (x(0, 3), x(3))),
]

PRODUCT_CASES = [
    Case("MatMul", (x(2, 3), x(3, 4)), thorough=True),
    Case("MatMul", (x(2, 3), floats(3, 4))),
    Case("MatMul", (floats(2, 3), x(3, 4))),
    Case("MatMul", (x(5, 2, 3), x(3, 4))),
    Case("MatMul", (x(2, 3), x(5, 3, 4))),
    Case("MatMul", (x(5, 1, 2, 3), x(4, 3, 2))),
    Case("MatMul", (x(3), x(3))),
    Case("MatMul", (x(3), x(3, 4))),
    Case("MatMul", (x(2, 3), x(3))),
    Case("MatMul", (x(3), x(5, 3, 4))),
    Case("MatMul", (x(5, 2, 3), x(3))),
    Case("MatMul", (floats(3), x(5, 3, 4))),
    Case("MatMul", (x(5, 2, 3), floats(3))),
    Case("MatMul", (x(0, 3), x(3, 4))),
    Case("MatMul", (x(2, 0), x(0, 4)), backends=NO_ORT),
    Case("Gemm", (x(2, 3), x(3, 4))),
    Case("Gemm", (x(2, 3), floats(3, 4), floats(4)), {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (x(1, 3), floats(4, 3), floats(4)), {"transB": 1}),
    Case("Gemm", (x(2, 3), floats(3, 4), floats(2, 1))),
    Case("Gemm", (x(2, 3), floats(3, 4), number(0.5))),
    Case("Gemm", (x(3, 2), x(4, 3), x(4)), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 0.3}),
    Case("Gemm", (x(2, 3), x(3, 4), x(2, 1)), {"beta": 0.3}),
    Case("Gemm", (floats(2, 3), floats(3, 4), x(2, 4))),
    Case("Gemm", (x(0, 3), floats(3, 4))),
    Case("Einsum", (x(2, 3), x(3, 4)), {"equation": "ij,jk->ik"}),
    Case("Einsum", (x(2, 3), x(3, 4)), {"equation": "ij, jk"}),
    Case("Einsum", (x(2, 3, 4), x(4, 5)), {"equation": "...j,jk->...k"}),
    Case("Einsum", (x(3, 3),), {"equation": "ii->i"}),
    Case("Einsum", (x(2, 3),), {"equation": "ZY->YZ"}),
    Case("Einsum", (x(2), x(2), x(2)), {"equation": "i,i,i->"}),
]

AXIS_CASES = [
    *(Case(name, (x(2, 3, 4),), {"axis": axis}) for name in ("Softmax", "LogSoftmax", "Hardmax") for axis in (1, -1)),
    Case("Softmax", (x(2, 3),)),
    Case("LpNormalization", (x(2, 3),), {"axis": 0, "p": 1}),
    Case("LpNormalization", (x(2, 3),)),
    Case("ArgMax", (x(2, 3),)),
    Case("ArgMin", (x(2, 3),), {"axis": -1, "keepdims": 0, "select_last_index": 1}),
    Case("Split", (x(4, 6),), {"num_outputs": 2}, outputs=2),
    Case("Split", (x(4, 6), ints(1, 5)), {"axis": 1}, outputs=2),
    Case("Split", (x(4, 5),), {"axis": -1, "num_outputs": 2}, outputs=2),
    Case("TopK", (x(2, 5), ints(2)), outputs=2),
    Case("TopK", (x(5, 2), ints(2)), {"axis": 0, "largest": 0}, outputs=2),
    Case("Concat", (x(2, 3), x(1, 3)), {"axis": 0}),
    Case("Concat", (x(2, 3), floats(2, 2), x(2, 1)), {"axis": -1}),
    Case("Concat", (x(2, 0), x(2, 1)), {"axis": 1}),
    Case("LayerNormalization", (x(2, 3, 4), floats(4), floats(4))),
    Case("LayerNormalization", (x(2, 3, 4), floats(3, 4)), {"axis": 1, "epsilon": 0.1}),
    Case("LayerNormalization", (x(2, 3), x(3), x(3)), {"axis": 1}),
    Case("LayerNormalization", (x(2, 3, 4), floats(4)), outputs=3),
    Case("RMSNormalization", (x(2, 3, 4), floats(4)), opset=23),
    Case("RMSNormalization", (x(2, 3, 4), floats(3, 4)), {"axis": -2}, opset=23),
    Case("CumSum", (x(2, 3), np.array(0, np.int64))),
    Case("CumSum", (x(2, 3), np.array(1, np.int64)), {"reverse": 1, "exclusive": 1}),
    Case("CumProd", (x(2, 3), np.array(-1, np.int64)), {"reverse": 1}, opset=26),
    Case("CumSum", (x(2, 3), np.array(-2, np.int32))),
    Case("Gather", (x(3, 4), ints(2, 0)), {"axis": 0}),
    Case("Gather", (x(3, 4), np.array(1, np.int64)), {"axis": -1}),
    Case("Gather", (x(2, 3, 4), np.array([[0, -1], [2, 1]], np.int64)), {"axis": 1}),
    Case("Gather", (floats(5, 3), x(2, 2, dtype="int64", low=0, high=5))),
    Case("Gather", (floats(2, 5, 3), x(4, dtype="int64", low=-5, high=5)), {"axis": 1}),
    Case("Gather", (floats(2, 5), x(dtype="int64", low=0, high=5)), {"axis": -1}),
    Case("Gather", (x(5, 3), x(2, dtype="int64", low=0, high=5))),
    Case("GatherElements", (x(3, 4), x(3, 2, dtype="int64", low=0, high=4)), {"axis": 1}),
    Case("GatherElements", (x(3, 4), x(2, 4, dtype="int64", low=0, high=3))),
    Case("GatherElements", (x(3, 4), np.array([[0, 3], [1, 1], [2, 0]], np.int64)), {"axis": -1}),
    Case("ScatterElements", (x(3, 4), np.array([[0, 2], [1, 3]], np.int64), x(2, 2)), {"axis": 1}),
    Case("ScatterElements", (x(3, 4), ints(2, 0).reshape(2, 1), x(2, 1)), {"reduction": "add"}),
    Case("GatherND", (x(2, 3, 4), np.array([[0, 1], [1, 2]], np.int64))),
    Case("GatherND", (x(2, 3), x(2, 1, dtype="int64", low=0, high=3)), {"batch_dims": 1}),
    Case("Trilu", (x(3, 4),)),
    Case("Trilu", (x(2, 3, 4), np.array(1, np.int64)), {"upper": 0}),
    Case("Det", (x(3, 3),)),
    Case("Det", (x(2, 3, 3),)),
]

REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]
REDUCTION_CASES = [
    *(Case(f"Reduce{name}", (x(2, 3, 4, low=0.5), ints(0, -1))) for name in REDUCTIONS),
    *(Case(f"Reduce{name}", (x(2, 3, low=0.5),), {"keepdims": 0}) for name in REDUCTIONS),
    *(Case(f"Reduce{name}", (x(2, 3, low=-2.0),), {"noop_with_empty_axes": 1}) for name in REDUCTIONS),
    Case("ReduceSum", (x(2, 3), ints())),
    Case("ReduceSum", (x(2, 3), ints(1)), {"keepdims": 0}),
    Case("ReduceMax", (x(2, 3, dtype="bool"), ints(1)), opset=20),
    Case("ReduceSum", (x(0, 3), ints(0)), backends=NO_ORT),
    *(Case(f"Reduce{name}", (x(low=-2.0),)) for name in REDUCTIONS if not name.startswith("Log")),
    *(Case(f"Reduce{name}", (x(low=0.5),), backends=NO_REFERENCE) for name in ("LogSum", "LogSumExp")),
]

MOVEMENT_CASES = [
    Case("Squeeze", (x(1, 3, 1), ints(0))),
    Case("Squeeze", (x(1, 3, 1),)),
    Case("Squeeze", (x(1, 1),)),
    Case("Unsqueeze", (x(3, 2), ints(0, -1))),
    Case("Unsqueeze", (x(), ints(0))),
    Case("Reshape", (x(2, 6), ints(0, 3, -1))),
    Case("Reshape", (x(2, 6), ints(12))),
    Case("Reshape", (x(1, 1), ints())),
    Case("Reshape", (x(0, 6), ints(3, 0, 2)), {"allowzero": 1}),
    Case("Reshape", (x(2, 0), ints(0, 0))),
    Case("Flatten", (x(2, 3, 2),)),
    Case("Flatten", (x(2, 3, 2),), {"axis": -1}),
    Case("Flatten", (x(2, 3),), {"axis": 0}),
    Case("Flatten", (x(0, 3),), backends=NO_REFERENCE),
    Case("Transpose", (x(2, 3, 4),)),
    Case("Transpose", (x(2, 3, 4),), {"perm": [1, 2, 0]}),
    Case("Transpose", (x(),)),
    Case("Expand", (x(3, 1), ints(3, 4))),
    Case("Expand", (x(3, 1), ints(2, 1, 4))),
    Case("Expand", (x(2, 3), ints(1))),
    Case("Expand", (x(), ints(2, 2))),
    Case("Expand", (x(1, 3), ints(0, 3))),
    Case("Tile", (x(2, 3), ints(2, 1))),
    Case("Tile", (x(3), ints(2))),
    Case("Pad", (x(2, 3), ints(0, 1, 2, 0))),
    Case("Pad", (x(2, 3), ints(0, 1, 2, 0), number(1.5))),
    Case("Pad", (x(2, 3), ints(1, 2), number(1.5), ints(-1))),
    Case("Pad", (x(2, 4), ints(2, 1), None, ints(1)), {"mode": "reflect"}),
    Case("Pad", (x(2, 4), ints(0, 2, 0, 1)), {"mode": "edge"}),
    Case("Pad", (x(2, 4), ints(0, -1, 0, 1)), backends=NO_REFERENCE),
    Case("Pad", (x(2, 4), ints(0, 2, 0, 1)), {"mode": "wrap"}, opset=19),
    Case("Pad", (x(2, 3), ints(0, 1, 2, 0), x())),
    Case("Slice", (x(4, 5), ints(1), ints(3))),
    Case("Slice", (x(4, 5), ints(1, 0), ints(3, 9))),
    Case("Slice", (x(4, 5), ints(-1), ints(-9), ints(1), ints(-2))),
    Case("Slice", (x(4, 5), ints(1, 0), ints(4, 9), ints(-1, 0))),
    Case("Slice", (x(4, 5), ints(1), ints(4), None, ints(2))),
    Case("Slice", (x(4, 5), ints(2), ints(2), ints(1))),
    Case("Slice", (x(4, 5), *(ints(a).astype(np.int32) for a in (1, 3, 0)))),
]

OWN_BATCH_CASES = [
    Case("Conv", (x(1, 2, 5, 5), floats(3, 2, 3, 3), floats(3))),
    Case("Conv", (x(2, 2, 7), floats(2, 1, 3)), {"group": 2, "strides": [2], "pads": [1, 0]}),
    Case("Conv", (x(1, 2, 4), x(2, 2, 3))),
    Case("Conv", (x(1, 2, 4), floats(2, 2, 3), x(2))),
    Case("ConvTranspose", (x(2, 2, 3), floats(2, 1, 3)), {"strides": [2], "output_padding": [1]}),
    Case("MaxPool", (x(2, 2, 4, 4),), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", (x(2, 2, 4),), {"kernel_shape": [2]}, outputs=2),
    Case("AveragePool", (x(2, 2, 5),), {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}),
    Case("LpPool", (x(1, 2, 4),), {"kernel_shape": [2], "p": 2}),
    Case("GlobalMaxPool", (x(2, 3, 4),)),
    Case("GlobalAveragePool", (x(2, 3, 4, 4),)),
    Case("GlobalLpPool", (x(2, 3, 4),), backends=NO_REFERENCE),
    Case("BatchNormalization", (x(2, 3, 4), floats(3), floats(3), floats(3), np.abs(floats(3)))),
    Case("BatchNormalization", (x(2, 3), x(3), floats(3), floats(3), np.abs(floats(3)))),
    Case(
        "BatchNormalization", (x(2, 3), x(3), np.zeros(3, np.float32), np.zeros(3, np.float32), np.ones(3, np.float32))
    ),
    Case("InstanceNormalization", (x(2, 3, 4), floats(3), floats(3))),
    Case("InstanceNormalization", (x(1, 3, 4), x(3), x(3))),
    Case("GroupNormalization", (x(2, 4, 3), floats(4), floats(4)), {"num_groups": 2}, opset=21),
    Case("LRN", (x(2, 4, 3, 3),), {"size": 3}, backends=NO_REFERENCE),
    Case("DepthToSpace", (x(2, 4, 2, 2),), {"blocksize": 2}),
    Case("SpaceToDepth", (x(2, 1, 4, 4),), {"blocksize": 2}),
    Case("Resize", (x(1, 2, 3, 3), None, np.array([1, 1, 2, 2], np.float32)), {"mode": "nearest"}),
    Case("Resize", (x(2, 2, 3, 3), None, None, ints(2, 2, 5, 4)), {"mode": "linear"}),
    Case("Resize", (x(1, 2, 3, 3), None, None, ints(5, 4)), {"mode": "linear", "axes": [2, 3]}),
    Case("GridSample", (x(1, 2, 3, 3), np.clip(floats(1, 2, 2, 2), -1, 1))),
    Case("GridSample", (x(1, 2, 3, 3), x(1, 2, 2, 2, low=-1, high=1))),
    Case("Col2Im", (x(2, 4, 4), ints(3, 3), ints(2, 2))),
    Case("MeanVarianceNormalization", (x(1, 3, 2, 2),)),
    Case("MeanVarianceNormalization", (x(2, 3, 2, 2),)),
    Case("MeanVarianceNormalization", (x(2, 3, 4),), {"axes": [1, 2]}),
]

SCANNED_CASES = [
    Case("ScatterND", (x(4, 2), np.array([[1], [3]], np.int64), x(2, 2))),
    Case("ReverseSequence", (x(4, 2), x(2, dtype="int64", low=1, high=4))),
    Case("OneHot", (x(3, dtype="int64", low=0, high=4), np.array(4, np.int64), np.array([0, 1], np.float32))),
    Case("CastLike", (x(3), x(1, dtype="int64", low=0, high=4))),
    Case("DFT", (x(1, 4, 1), None, np.array(1, np.int64)), opset=20),
    Case("CenterCropPad", (x(4, 3), ints(2, 5)), backends=NO_REFERENCE),
]

CASES = [
    *UNARY_CASES,
    *BROADCASTING_CASES,
    *PRODUCT_CASES,
    *AXIS_CASES,
    *REDUCTION_CASES,
    *MOVEMENT_CASES,
    *OWN_BATCH_CASES,
    *SCANNED_CASES,
]


@pytest.mark.parametrize(("case", "backend"), [(c, b) for c in CASES for b in c.backends], ids=str)
def test_batched_operator_equals_rows(case: Case, backend: str) -> None:
    check(case, backend)


def test_every_batching_rule_is_tested() -> None:
    standard = {name for name in BATCHING if "::" not in name} - {"Identity"}  # which the emitter leaves out
    assert standard - {c.operator for c in CASES} == set()
