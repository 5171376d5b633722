from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import parser

from deepshap_ir.commands.inspection import Inspection, Operators, inspect_model
from deepshap_ir.engine.registry import BUILT_IN, RuleSet
from deepshap_ir.errors import InputError, ModelError

MIXED = """
    mixed (float[batch, 3] x, int64[batch, 2] ids, float[batch, 3] extra) => (float[batch, 3] y, int64[batch, 2] same)
    {
        hidden = Tanh(x)
        again = Tanh(hidden)
        positive = Relu(again)
        y = Add(positive, extra)
        same = Identity(ids)
    }
"""
CONV = """
    conv (float[batch, 1, height, width] image) => (float[batch, 1, h, w] y)
    <float[1, 1, 3, 3] weight = {1, 1, 1, 1, 1, 1, 1, 1, 1}>
    { y = Conv<kernel_shape = [3, 3]>(image, weight) }
"""
TWO = """
    two (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)
    { common = Relu(x) y = Tanh(common) z = Sigmoid(common) }
"""
RANDOM = """
    noisy (float[N, 2] x) => (float[N, 2] y)
    { noise = RandomNormalLike(x) tan = Tanh(x) y = Add(tan, noise) }
"""


@pytest.fixture
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The file of the model that the test is parametrised with."""
    return save(tmp_path, request.param)


def save(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}'), path)
    return path


def row(inspection: Inspection, operator: str) -> Operators:
    (found,) = [row for row in inspection.operators if row.operator == operator]
    return found


@pytest.mark.parametrize("saved", [MIXED], indirect=True)
def test_inputs_outputs_and_operators(saved: Path) -> None:
    inspection = inspect_model(saved)
    assert inspection.inputs == {
        "x": "float32 [batch, 3]",
        "ids": "int64 [batch, 2]",
        "extra": "float32 [batch, 3]",
    }
    assert inspection.outputs == {"y": "float32 [batch, 3]", "same": "int64 [batch, 2]"}
    assert inspection.explained == ("y",)
    assert [(found.operator, found.count) for found in inspection.operators] == [("Tanh", 2), ("Add", 1), ("Relu", 1)]
    assert all(found.rule and found.exact and found.supported for found in inspection.operators)
    assert inspection.supported


@pytest.mark.parametrize("saved", [MIXED], indirect=True)
def test_an_operator_without_a_rule_comes_first(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BUILT_IN.rules, "Tanh")
    inspection = inspect_model(saved)
    first = inspection.operators[0]
    assert inspection.operators[1:] == inspect_model(saved).operators[1:]
    assert (first.operator, first.count, first.rule, first.exact, first.supported) == ("Tanh", 2, None, None, False)
    assert not inspection.supported
    rules = RuleSet()
    rules.rule("Tanh", exact=False)(lambda ctx, m: m[0])
    helped = inspect_model(saved, rules=[rules])
    assert helped.supported
    assert row(helped, "Tanh").exact is False


@pytest.mark.parametrize("saved", [MIXED], indirect=True)
def test_what_no_explained_input_reaches_needs_no_rule(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BUILT_IN.rules, "Tanh")
    inspection = inspect_model(saved, inputs=["extra"])
    assert row(inspection, "Tanh") == Operators("Tanh", 2, None, None, True, row(inspection, "Tanh").nodes)
    assert inspection.supported
    assert inspect_model(saved, inputs=["again", "extra"]).supported
    assert not inspect_model(saved).supported


@pytest.mark.parametrize("saved", [TWO], indirect=True)
def test_all_outputs_are_looked_at_or_the_chosen_one(saved: Path) -> None:
    both = inspect_model(saved)
    assert both.explained == ("y", "z")
    assert {found.operator: found.count for found in both.operators} == {"Relu": 1, "Tanh": 1, "Sigmoid": 1}
    for chosen, operators in {"z": {"Relu", "Sigmoid"}, "0": {"Relu", "Tanh"}, "common": {"Relu"}}.items():
        assert {found.operator for found in inspect_model(saved, output=[chosen]).operators} == operators


@pytest.mark.parametrize("saved", [RANDOM], indirect=True)
def test_a_model_that_is_refused_shows_its_operators_and_the_reason(saved: Path) -> None:
    inspection = inspect_model(saved)
    assert not inspection.supported
    assert inspection.refusal is not None
    assert "RandomNormalLike" in inspection.refusal
    assert {found.operator for found in inspection.operators} == {"RandomNormalLike", "Tanh", "Add"}
    assert row(inspection, "Tanh").rule is not None
    assert row(inspection, "Tanh").supported
    noise = inspection.operators[0]  # first, as it is what has to be changed
    assert (noise.operator, noise.rule, noise.supported, noise.nodes) == ("RandomNormalLike", None, False, ("noise",))


@pytest.mark.parametrize(
    "saved",
    [
        "one (float[N] x) => (float[N] y) { y = Exp(x) }",
        "two (float[N, 3] x, float s) => (float[N, 3] y) { y = Mul(x, s) }",
    ],
    indirect=True,
    ids=["rows of one number", "a number for all rows"],
)
def test_inputs_of_few_axes(saved: Path) -> None:
    inspection = inspect_model(saved)
    assert inspection.supported
    assert [row.count for row in inspection.operators] == [1]


@pytest.mark.parametrize("saved", [CONV], indirect=True)
def test_free_dimensions_are_1_or_given(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"Free dimensions of 'image' were taken as 1; .* --shape image=1,1,1,1"):
        inspect_model(saved)
    assert inspect_model(saved, shapes={"image": (1, 1, 5, 5)}).supported
    assert inspect_model(saved, shapes={"image": (2, 1, 5, 5)}).supported


@pytest.mark.parametrize("saved", [CONV], indirect=True)
def test_a_shape_for_an_input_that_is_not_there(saved: Path) -> None:
    with pytest.raises(InputError, match=r"--shape: the model has no input 'imag'\. Did you mean 'image'"):
        inspect_model(saved, shapes={"imag": (1, 1, 5, 5)})


@pytest.mark.parametrize("saved", [MIXED], indirect=True)
def test_as_json(saved: Path) -> None:
    found = json.loads(json.dumps(inspect_model(saved).as_dict()))
    assert found["supported"] is True
    assert found["operators"][0]["operator"] == "Tanh"
    assert len(found["operators"][0]["nodes"]) == 2
