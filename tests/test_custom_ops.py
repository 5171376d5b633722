"""Operators of one's own: by a library of onnxruntime kernels, by a class in numpy, by an expansion alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_extensions
import pytest
from onnx import ModelProto, parser
from onnx.reference.op_run import OpRun
from typer.testing import CliRunner

from deepshap_ir import DeepExplainer, InputError, ModelError, NonFiniteError, RuleError, UnsupportedOperatorError
from deepshap_ir.commands.cli import app
from deepshap_ir.engine.lowering import BATCHING
from deepshap_ir.extend import RuleSet, takes_batches
from tests.onnx_text import Array, data

LIBRARY = onnxruntime_extensions.get_library_path()
BACKGROUND, SAMPLES = data(5, 3), data(4, 3, seed=1)
WEIGHTS = (
    "<float[3,4] w = {1, -2, 0.5, -1, 0.25, 2, 0.5, 1.5, -1, -0.75, 1, 1}, float[4,2] v = {1, -1, 0.5, 2, -1, 1, 2, 3}>"
)


def model(body: str, signature: str = "(float[N,3] x) => (float[N,2] y)") -> ModelProto:
    imports = '"" : 18, "ai.onnx.contrib" : 1, "lab" : 1'
    return parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {signature} {body}")


NEGPOS = model(WEIGHTS + "{ h = MatMul(x, w) [parts] n, p = ai.onnx.contrib.NegPos(h) s = Sub(p, n) y = MatMul(s, v) }")
"""NegPos is ``min(x, 0), max(x, 0)``, so that ``p - n = |x|``."""
ABSOLUTE = model(WEIGHTS + "{ h = MatMul(x, w) s = Abs(h) y = MatMul(s, v) }")


def negpos(ctx: Any, m: Any) -> Any:
    """The secants of both."""
    op, delta = ctx.op, ctx.delta_x()
    safe = op.Where(op.Equal(delta, 0.0), 1.0, delta)
    return sum((m[j] * ctx.delta_y(j) / safe for j in (0, 1) if m[j] is not None), op.zeros(ctx.shape()))


RULES = {"ai.onnx.contrib::NegPos": negpos}


@pytest.fixture
def undeclared() -> Iterator[None]:
    before = dict(BATCHING)
    yield
    BATCHING.clear()
    BATCHING.update(before)


def expected() -> Array:
    found: Array = DeepExplainer(ABSOLUTE, BACKGROUND).shap_values(SAMPLES)
    return found


# --- a library


@pytest.mark.parametrize("path", [LIBRARY, Path(LIBRARY)])
def test_kernels_of_a_library(path: Any) -> None:
    explainer = DeepExplainer(NEGPOS, BACKGROUND, rules=RULES, custom_ops=[path])
    np.testing.assert_allclose(explainer.shap_values(SAMPLES), expected(), rtol=1e-4, atol=1e-5)


def test_by_differences_alone() -> None:
    """The kernel is run in loops over elements and rows."""
    explainer = DeepExplainer(NEGPOS, BACKGROUND[:2], rules="universal", custom_ops=[LIBRARY])
    explainer.shap_values(SAMPLES[:2])  # sums to delta


def test_a_kernel_that_takes_batches(undeclared: None) -> None:
    takes_batches("ai.onnx.contrib::NegPos")
    explainer = DeepExplainer(NEGPOS, BACKGROUND, rules=RULES, custom_ops=[LIBRARY])
    np.testing.assert_allclose(explainer.shap_values(SAMPLES), expected(), rtol=1e-4, atol=1e-5)


def test_a_declaration_is_checked(undeclared: None) -> None:
    with pytest.raises(RuleError, match="how='rows'; choose 'element-wise' or 'first axis'"):
        takes_batches("lab::Op", how="rows")
    with pytest.raises(RuleError, match="'Relu' is an operator of the standard"):
        takes_batches("Relu")
    takes_batches("lab::Op")
    takes_batches("lab::Op")
    with pytest.raises(RuleError, match="'lab::Op' is declared already, in another way"):
        takes_batches("lab::Op", how="first axis")


def test_without_the_library_or_the_rule() -> None:
    with pytest.raises(
        ModelError, match=r"NegPos.*An operator of your own needs a kernel or an expansion: custom_ops=\["
    ):
        DeepExplainer(NEGPOS, BACKGROUND, rules=RULES)
    with pytest.raises(UnsupportedOperatorError, match=r"ai\.onnx\.contrib::NegPos \(opset 1\), node 'parts'"):
        DeepExplainer(NEGPOS, BACKGROUND, custom_ops=[LIBRARY])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LIBRARY, r"custom_ops: expected a list, given .*; write \["),
        ([3], r"custom_ops: 3 is neither the path of a library nor a class derived from"),
        (["gone.so"], r"custom_ops: 'gone\.so': no such file"),
        ([__file__], r"test_custom_ops\.py' is no library of custom operators for onnxruntime"),
        ([type("Twice", (OpRun,), {})], r"custom_ops: Twice does not say its domain: op_domain = "),
    ],
)
def test_what_is_no_custom_operator(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DeepExplainer(NEGPOS, BACKGROUND, rules=RULES, custom_ops=given)


# --- a class


class Scaled(OpRun):
    """``max(x, 0) scale``, and the sum of each row."""

    op_domain = "lab"

    def _run(self, x: Array, scale: float | None = None) -> tuple[Array, Array]:
        y = np.maximum(x, 0) * (1.0 if scale is None else scale)
        return y.astype(x.dtype), y.sum(-1, keepdims=True).astype(x.dtype)


SCALED = model(WEIGHTS + "{ h = MatMul(x, w) [mine] a, t = lab.Scaled<scale = 0.5>(h) s = Add(a, t) y = MatMul(s, v) }")
SPELLED = model(
    WEIGHTS + "{ h = MatMul(x, w) r = Relu(h) k = Constant<value_float = 0.5>() a = Mul(r, k) "
    "i = Constant<value_ints = [1]>() t = ReduceSum(a, i) s = Add(a, t) y = MatMul(s, v) }"
)


def scaled(ctx: Any, m: Any) -> Any:
    """Both outputs pass ``scale relu``."""
    above = ctx.op.zeros((1, 1)) if m[1] is None else m[1]
    total = above if m[0] is None else m[0] + above
    delta = ctx.delta_x()
    safe = ctx.op.Where(ctx.op.Equal(delta, 0.0), 1.0, delta)
    return total * ctx.delta_y(0) / safe


@pytest.mark.parametrize("more", [{"backend": "reference"}, {"precision": "float64"}])
def test_a_class_in_numpy(more: dict[str, Any]) -> None:
    explainer = DeepExplainer(SCALED, BACKGROUND, rules={"lab::Scaled": scaled}, custom_ops=[Scaled], **more)
    found = DeepExplainer(SPELLED, BACKGROUND).shap_values(SAMPLES)
    np.testing.assert_allclose(explainer.shap_values(SAMPLES), found, rtol=1e-4, atol=1e-5)
    assert explainer.graph.shapes["t"] == (1, 1)


def test_a_class_is_nothing_for_onnxruntime() -> None:
    with pytest.raises(ModelError, match=r"onnxruntime cannot run .*Scaled.*backend='reference' can"):
        DeepExplainer(SCALED, BACKGROUND, rules={"lab::Scaled": scaled}, custom_ops=[Scaled])


def test_what_is_not_finite_is_found_behind_a_class() -> None:
    body = WEIGHTS + "{ h = MatMul(x, w) a, t = lab.Scaled(h) [log] s = Log(a) y = MatMul(s, v) }"
    settings: dict[str, Any] = {"rules": {"lab::Scaled": scaled}, "custom_ops": [Scaled], "backend": "reference"}
    with pytest.raises(NonFiniteError, match=r"Log node .log. gives -inf"):
        DeepExplainer(model(body), BACKGROUND, **settings).shap_values(SAMPLES)


# --- an expansion


def test_an_expansion_needs_no_kernel() -> None:
    rules = RuleSet()

    @rules.expand("lab::Scaled")
    def spelled(ctx: Any) -> Any:
        y = ctx.op.Relu(ctx.x()) * ctx.attribute("scale", 1.0)
        return y, ctx.op.ReduceSum(y, [-1], keepdims=1)

    explainer = DeepExplainer(SCALED, BACKGROUND, rules=rules)  # on onnxruntime, as nothing of lab is left
    found = DeepExplainer(SPELLED, BACKGROUND).shap_values(SAMPLES)
    np.testing.assert_allclose(explainer.shap_values(SAMPLES), found, rtol=1e-4, atol=1e-5)
    assert not any(node.domain == "lab" for node in explainer.graph.nodes)


def test_an_expansion_that_gives_too_little_is_named() -> None:
    rules = RuleSet()
    rules.expand("lab::Scaled")(lambda ctx: ctx.op.Relu(ctx.x()))
    with pytest.raises(ModelError, match=r"the expansion of lab::Scaled node 'mine' gives 1 of 2 outputs"):
        DeepExplainer(SCALED, BACKGROUND, rules=rules)


# --- the command line


def deepshap(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(NEGPOS, "model.onnx")
    np.save("background.npy", BACKGROUND)
    np.save("samples.npy", SAMPLES)
    data_files = ["-b", "background.npy", "-s", "samples.npy", "-o", "out.npz"]
    more = ["--custom-ops", LIBRARY, "--rules", "universal"]
    inspected = deepshap("inspect", "model.onnx", *more)
    assert inspected.exit_code == 0, inspected.output
    assert "alternatives.any_function" in inspected.stdout
    explained = deepshap("explain", "model.onnx", *data_files, *more)
    assert explained.exit_code == 0, explained.output
    with np.load("out.npz") as archive:
        np.testing.assert_allclose(archive["values"].sum(1), expected().sum(1), rtol=1e-3, atol=1e-4)
    refused = deepshap("explain", "model.onnx", *data_files)
    assert refused.exit_code == 2
    assert "needs a kernel or an expansion: --custom-ops LIBRARY" in refused.stderr


def test_inspection_with_an_expansion_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(SCALED, "model.onnx")
    Path("mine.py").write_text(
        "from deepshap_ir.extend import expand\n\n@expand('lab::Scaled')\ndef scaled(ctx):\n"
        "    y = ctx.op.Relu(ctx.x()) * ctx.attribute('scale', 1.0)\n"
        "    return y, ctx.op.ReduceSum(y, [-1], keepdims=1)\n"
    )
    inspected = deepshap("inspect", "model.onnx", "--rules", "mine.py")
    assert inspected.exit_code == 0, inspected.output
    assert "Every operator has a rule" in inspected.stdout
