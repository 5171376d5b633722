"""When something is wrong: which error, and that its message says what, where and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepshap_ir import (
    AdditivityError,
    DeepExplainer,
    DeepShapError,
    InputError,
    MissingDependencyError,
    ModelError,
    NonFiniteError,
    RuleError,
    UnsupportedOperatorError,
)
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.extend import Context, Value
from tests.onnx_text import Array, data, parsed

BACKGROUND, SAMPLES = data(5, 4), data(3, 4, seed=1)
NET = "{ [first] a = Relu(x) [second] b = Tanh(a) [last] y = Exp(b) }"
TWO = "(float[N,4] x, float[N,4] h) => (float[N,4] y)"
WRONG_BYTES = b"not a model at all"


def explain(body: str = NET, samples: Any = SAMPLES, background: Any = BACKGROUND, **settings: Any) -> Any:
    return DeepExplainer(parsed(body), background, **settings).shap_values(samples)


def with_one(array: Array, index: tuple[int, ...], number: float) -> Array:
    changed = array.copy()
    changed[index] = number
    return changed


# --- classes


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (AdditivityError, AssertionError),
        (InputError, ValueError),
        (NonFiniteError, ArithmeticError),
        (MissingDependencyError, ImportError),
        (ModelError, DeepShapError),
        (RuleError, DeepShapError),
        (UnsupportedOperatorError, DeepShapError),
    ],
)
def test_errors_are_caught_as_what_scripts_catch(error: type[Exception], also: type[Exception]) -> None:
    assert issubclass(error, also)
    assert issubclass(error, DeepShapError)


# --- models


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ONNX"):
        DeepExplainer(WRONG_BYTES, BACKGROUND)
    with pytest.raises(ModelError, match=r"missing\.onnx"):
        DeepExplainer(tmp_path / "missing.onnx", BACKGROUND)
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(parsed(NET).SerializeToString()[:-20])
    with pytest.raises(ModelError, match=r"truncated\.onnx|ONNX"):
        DeepExplainer(truncated, BACKGROUND)


def test_an_operator_without_a_rule_is_an_error_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepshap_ir.engine.registry import Resolver

    usual = Resolver.rule
    monkeypatch.setattr(Resolver, "rule", lambda self, node: None if node.op_type == "Tanh" else usual(self, node))
    monkeypatch.setattr("deepshap_ir.engine.expand._has_body", lambda node: False)
    with pytest.raises(
        UnsupportedOperatorError,
        match=r"No rule for 1 node between the explained inputs and the output:\n"
        r"  Tanh \(opset 18\), node 'second': \[1, 4\] -> \[1, 4\]\n"
        r"Give one with rules=\{'Tanh': my_rule\}, .*deepshap_ir\.extend.*, or hold the node's output .*hold=\[name\]",
    ):
        DeepExplainer(parsed(NET), BACKGROUND)


# --- options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "tensorflow"}, r"backend='tensorflow': choose 'onnxruntime' or 'reference'"),
        ({"precision": "half"}, r"precision='half': choose None \(as the model\) or 'float64'"),
        (
            {"precision": "float64", "providers": ["X"]},
            "precision='float64' runs on the reference backend, which takes no",
        ),
        ({"memory_limit": "much"}, r"memory_limit='much': write a number of bytes such as '2GB' or '500MiB'"),
        ({"memory_limit": "0GB"}, "memory_limit='0GB': write a number"),
        ({"memory_limit": -1}, "memory_limit=-1: it must be a positive number of bytes"),
        ({"session": object()}, "session= and learning_phase_flags= belong to TensorFlow"),
        ({"options": {"max_pooling": "other"}}, "max_pooling='other'; choose 'shap' or 'shapley'"),
        ({"output": "z"}, "output: the model has no value 'z'"),
        ({"output": 3}, "output: there is no output 3; the model has 1: 'y'"),
        ({"inputs": ["z"]}, "inputs: the model has no value 'z'"),
        ({"output": "t"}, r"output: the model has no value 't'. There are: 'y', 'a', 'b'"),
        ({"output": 1.5}, "output=1.5: expected a name or an index"),
        ({"output": True}, "output=True: expected a name or an index"),
        ({"at": ["z"]}, "at: the model has no value 'z'. There are: 'x', 'a', 'b', 'y'"),
        ({"threads": 0}, "threads=0: expected at least 1, or None"),
        ({"backend": "reference", "providers": ["X"]}, "backend='reference' takes no providers="),
        ({"threads": 1.5}, "threads=1.5: expected at least 1, or None"),
        ({"providers": "CPUExecutionProvider"}, r"providers: expected a list, given the text 'CPU.*write \['CPUEx"),
        ({"at": 3}, "at: expected a list of names, given 3"),
        ({"inputs": [0]}, r"inputs: expected a list of names, given \[0\]"),
        ({"hold": 1.0}, "hold: expected a list of names, given 1.0"),
        ({"hold": ["z"]}, "hold: the model has no value 'z'"),
        ({"hold": ["x"]}, "does not depend on any input"),
        ({"hold": ["b"]}, r"'y' does not depend on the explained inputs \['x'\] but through the held values \['b'\]"),
        ({"batch_axes": {"z": 1}}, "batch_axes: the model has no input 'z'"),
        ({"batch_axes": {"x": "rows"}}, "batch_axes: expected a position or None for 'x', given 'rows'"),
        ({"batch_axes": {"x": 2}}, "batch_axes: 'x' has 2 axes, so its batch cannot be axis 2"),
    ],
)
def test_options_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranked_outputs": 5}, "ranked_outputs=5: the model has 4 outputs"),
        ({"ranked_outputs": 0}, "ranked_outputs=0: the model has 4 outputs"),
        (
            {"ranked_outputs": 1, "output_rank_order": "best"},
            "output_rank_order='best': choose 'max', 'min', 'max_abs'",
        ),
    ],
)
def test_ranks_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DeepExplainer(parsed(NET), BACKGROUND).shap_values(SAMPLES, **arguments)


# --- data


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (SAMPLES[:, :3], r"samples of input 'x': expected shape \[rows, 4\], given \[3, 3\]"),
        (SAMPLES[0], r"samples of input 'x': expected shape \[rows, 4\], given \[4\]"),
        (SAMPLES[:0], r"samples: no rows \(input 'x' is empty\)"),
        ({"z": SAMPLES}, "samples: missing 'x'"),
        ({"x": SAMPLES, "z": SAMPLES}, "samples: no input 'z'"),
        ([SAMPLES, SAMPLES], r"samples: expected 1 array \(inputs 'x'\), given 2"),
        (np.array([["a", "b", "c", "d"]]), r"samples of input 'x': expected float32, given <U1"),
    ],
)
def test_samples_that_do_not_fit(samples: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(samples=samples)


def test_inputs_with_different_numbers_of_rows() -> None:
    e = DeepExplainer(parsed("{ y = Add(x, h) }", TWO), [BACKGROUND, BACKGROUND])
    with pytest.raises(InputError, match=r"samples: the inputs differ in their number of rows: 'x' has 3, 'h' has 2"):
        e.shap_values([SAMPLES, SAMPLES[:2]])


def test_references_that_do_not_fit() -> None:
    with pytest.raises(
        InputError, match=r"references of sample 0 of input 'x': expected shape \[rows, 4\], given \[5, 3\]"
    ):
        explain(background=lambda sample: BACKGROUND[:, :3])
    with pytest.raises(InputError, match=r"samples of input 'x': expected shape \[rows, 4\], given \[3, 3\]"):
        explain(background=lambda sample: BACKGROUND, samples=SAMPLES[:, :3])
    sizes = iter([2, 3, 4])
    with pytest.raises(
        InputError, match=r"the function for the references gave \[2, 3, 4\] rows; each sample needs as many"
    ):
        explain(background=lambda sample: BACKGROUND[: next(sizes)])


# --- numbers that are not finite


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_data_that_are_not_finite(number: float) -> None:
    with pytest.raises(NonFiniteError, match=rf"samples of input 'x': {number} in row 1, at index \[1, 2\]"):
        explain(samples=with_one(SAMPLES, (1, 2), number))
    with pytest.raises(NonFiniteError, match=rf"background of input 'x': {number} in row 4, at index \[4, 0\]"):
        explain(background=with_one(BACKGROUND, (4, 0), number))


def test_no_background() -> None:
    with pytest.raises(InputError, match="data=None: expected the background"):
        DeepExplainer(parsed(NET), None)


LOG = "{ [log] a = Log(x) [neg] y = Neg(a) }"


def test_a_model_that_is_not_finite_at_a_sample() -> None:
    with pytest.raises(NonFiniteError, match=r"^Log node 'log' gives -inf at sample 2 \(value 'a'\)"):
        explain(LOG, with_one(np.abs(SAMPLES), (2, 1), 0), np.abs(BACKGROUND))


def test_a_model_that_is_not_finite_at_a_reference() -> None:
    with pytest.raises(NonFiniteError, match=r"^Log node 'log' gives nan at reference 3 \(value 'a'\)"):
        explain(LOG, np.abs(SAMPLES), with_one(np.abs(BACKGROUND), (3, 1), -1))
    with pytest.raises(NonFiniteError, match=r"^Log node 'log' gives nan at reference 3 \(value 'a'\)"):
        explain(LOG, np.abs(SAMPLES), lambda sample: with_one(np.abs(BACKGROUND), (3, 1), -1))


def test_numbers_that_overflow() -> None:
    with pytest.raises(NonFiniteError, match=r"^Exp node 'outer' gives inf at sample 0 \(value 'y'\)"):
        explain("{ [inner] a = Exp(x) [outer] y = Exp(a) }", np.full((1, 4), 6, np.float32))


def unguarded(ctx: Context, m: Sequence[Value]) -> Value:
    return m[0] * (ctx.delta_y() / ctx.delta_x())


def test_a_multiplier_that_is_not_finite() -> None:
    """Reference 2 agrees with the sample in one number, and the rule divides by the delta."""
    samples = SAMPLES.copy()
    samples[1, 3] = BACKGROUND[2, 3]
    with pytest.raises(
        NonFiniteError,
        match=r"^the multiplier of value 'a', from the rule at Tanh node 'second', is not finite for sample 1 and "
        r"reference 2, though all values of the model are",
    ):
        explain("{ [first] a = Neg(x) [second] b = Tanh(a) [last] y = Exp(b) }", samples, rules={"Tanh": unguarded})


def test_a_multiplier_that_overflows_in_single_precision_only() -> None:
    def huge(ctx: Context, m: Sequence[Value]) -> Value:
        """Minus one, by way of numbers that only float64 holds."""
        return m[0] * (((ctx.x() * 0.0 - 1e30) * 1e30) * 1e-30) * 1e-30

    message = (
        r"^the attributions of sample 0 are not finite: the multiplier of value 'x', from the rule at Neg node 'only', "
        r"overflows in single precision\. Use precision='float64'"
    )
    with pytest.raises(NonFiniteError, match=message):
        explain("{ [only] y = Neg(x) }", rules={"Neg": huge})
    explain("{ [only] y = Neg(x) }", rules={"Neg": huge}, precision="float64")


# --- sums that do not add up


def half(ctx: Context, m: Sequence[Value]) -> Value:
    return m[0] * 0.5 * (ctx.delta_y() / (ctx.delta_x() + 1e-20))


def test_attributions_that_do_not_sum_up() -> None:
    samples = np.concatenate([SAMPLES[:1], 0 * SAMPLES[:1] - 5, SAMPLES[:1] * 3])
    with pytest.raises(AdditivityError) as caught:
        explain(samples=samples, rules={"Tanh": half})
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(
        "The attributions do not sum to the model's output minus its mean: they miss it by up to 0."
    )
    assert lines[0].endswith("of its size, at 3 of 3 samples.")
    assert lines[1].startswith("Worst samples: 2 (gap ")
    assert " at output " in lines[1]
    assert lines[2].startswith("Nodes that leak most: Tanh node 'second' (")
    assert "node 'first'" not in lines[2]
    assert lines[3] == (
        "precision='float64' tells rounding from a wrong rule; check_additivity=False skips this check."
    )


def test_only_what_leaks_is_named() -> None:
    def slightly(ctx: Context, m: Sequence[Value]) -> Value:
        return m[0] * 0.99 * (ctx.delta_y() / (ctx.delta_x() + 1e-20))

    with pytest.raises(AdditivityError, match=r"leak most: Tanh node 'second' \(\S+\), Exp node 'last' \(\S+\)\.\n"):
        explain(rules={"Tanh": half, "Exp": slightly})


def test_the_check_covers_ranked_outputs_and_own_references() -> None:
    with pytest.raises(AdditivityError, match="Tanh node 'second'"):
        explain(background=lambda sample: BACKGROUND, rules={"Tanh": half})
    e = DeepExplainer(parsed(NET), BACKGROUND, rules={"Tanh": half})
    with pytest.raises(AdditivityError, match="Tanh node 'second'"):
        e.shap_values(SAMPLES, ranked_outputs=1)
    with pytest.raises(AdditivityError, match="Tanh node 'second'"):
        e(SAMPLES)


def test_a_gap_within_the_tolerance_passes() -> None:
    """Relative to the contributions, where these cancel in the output."""
    body = (
        "{ axes = Constant <value_ints=[1]> () c = Constant <value = float[4] {1e4, -1e4, 1, 1}> () "
        "a = Mul(x, c) y = ReduceSum <keepdims=1> (a, axes) }"
    )
    model = parsed(body, "(float[N,4] x) => (float[N,1] y)")
    DeepExplainer(model, BACKGROUND, rules={"Mul": lambda ctx, m: [m[0] * ctx.x(1) * 1.00005, None]}).shap_values(
        SAMPLES
    )
    with pytest.raises(AdditivityError):
        DeepExplainer(model, BACKGROUND, rules={"Mul": lambda ctx, m: [m[0] * ctx.x(1) * 1.01, None]}).shap_values(
            SAMPLES
        )


def test_contributions_that_are_nothing_but_rounding_do_not_pass() -> None:
    """Where they are 1e9 times the output, the sum has no digit that is right."""
    body = (
        "{ axes = Constant <value_ints=[1]> () c = Constant <value = float[4] {1e9, -1e9, 1, 1}> () "
        "a = Mul(x, c) y = ReduceSum <keepdims=1> (a, axes) }"
    )
    model = parsed(body, "(float[N,4] x) => (float[N,1] y)")
    background, samples = (np.concatenate([a[:, :1], a[:, :1], a[:, 2:]], 1) for a in (BACKGROUND, SAMPLES))
    scaled = {"Mul": lambda ctx, m: [m[0] * ctx.x(1) * (1 + 1e-7 * ctx.op.Sign(ctx.x(1))), None]}
    with pytest.raises(AdditivityError, match="precision='float64' tells rounding"):
        DeepExplainer(model, background, rules=scaled).shap_values(samples)


# --- interruptions


def test_an_interruption_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepshap_ir.engine.evaluator import Evaluator

    model = parsed(NET)
    before = model.SerializeToString()
    e = DeepExplainer(model, BACKGROUND)
    expected = e.shap_values(SAMPLES)
    usual, runs = Evaluator.run, []

    def interrupted(self: Evaluator, *arguments: Any, **options: Any) -> Any:
        runs.append(arguments[0])
        if arguments[0] == "explain":
            raise KeyboardInterrupt
        return usual(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            e.shap_values(SAMPLES)
    assert "explain" in runs
    assert model.SerializeToString() == before
    np.testing.assert_array_equal(e.shap_values(SAMPLES), expected)


def test_a_failed_explanation_does_not_spoil_the_next() -> None:
    e = DeepExplainer(parsed(LOG), np.abs(BACKGROUND))
    expected = e.shap_values(np.abs(SAMPLES))
    with pytest.raises(NonFiniteError):
        e.shap_values(0 * SAMPLES)
    np.testing.assert_array_equal(e.shap_values(np.abs(SAMPLES)), expected)


def test_values_name_themselves() -> None:
    op = Emitter({"": 18})
    value = op.input("x", (1, 3), np.float32, ["sample"])
    assert repr(value) == "Value(x, float32[1, 3], axes=sample)"
    assert repr(op.constant(np.float32(2))).endswith("float32[], axes=none)")
