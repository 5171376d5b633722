from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepshap_ir.commands.rule_files import load_rules
from deepshap_ir.engine.registry import BUILT_IN, Resolver, collected
from deepshap_ir.errors import InputError, RuleError
from deepshap_ir.graph import Node

RELU = """
from deepshap_ir.extend import rule

@rule("Relu")
def half(ctx, m):
    return 0.5 * m[0]
"""

Written = Callable[[str, str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content)
        return path

    return write


def node(operator: str, name: str = "n") -> Node:
    return Node(name, operator, ("x",), ("y",))


def test_rules_of_a_file_precede_the_built_in_ones_and_leave_them_alone(written: Written) -> None:
    before = Resolver().rule(node("Relu"))
    (rules,) = load_rules([written("mine.py", RELU)])
    found = Resolver([rules]).rule(node("Relu"))
    assert found is not None
    assert found.function.__name__ == "half"
    assert Resolver().rule(node("Relu")) is before
    assert all(entry.function is not found.function for entries in BUILT_IN.rules.values() for entry in entries)


def test_what_is_registered_later_is_for_all_again(written: Written) -> None:
    load_rules([written("mine.py", RELU)])
    from deepshap_ir.extend import rule

    try:
        rule("test.rule_files::Later")(lambda ctx, m: m[0])
        assert "test.rule_files::Later" in BUILT_IN.rules
    finally:
        del BUILT_IN.rules["test.rule_files::Later"]


def test_expansions_and_several_files(written: Written) -> None:
    content = "from deepshap_ir.extend import expand\n@expand('my::Op')\ndef op(ctx):\n    return ctx.x()\n"
    (rules,) = load_rules([written("a.py", RELU), written("b.py", content)])
    assert (list(rules.rules), list(rules.expansions)) == (["Relu"], ["my::Op"])


def test_rule_sets_that_a_file_names(written: Written) -> None:
    content = """
from deepshap_ir.extend import RuleSet

mine = RuleSet()

@mine.for_node("conv1")
@mine.rule("Tanh", since=13, exact=False)
def passed(ctx, m):
    return m[0]
"""
    (rules,) = load_rules([written("mine.py", content)])
    tanh, named = rules.rules["Tanh"][0], rules.nodes["conv1"]
    assert (tanh.since, tanh.exact, named.exact) == (13, False, True)
    assert Resolver([rules]).rule(node("Sigmoid", "conv1")) == named


def test_a_file_may_use_what_pickle_and_dataclasses_need(written: Written) -> None:
    content = RELU + "from dataclasses import dataclass\n\n@dataclass\nclass Options:\n    slope: float = 0.5\n"
    (rules,) = load_rules([written("mine.py", content)])
    module = sys.modules[rules.rules["Relu"][0].function.__module__]
    assert module.Options().slope == 0.5


def test_an_explainer_takes_them(written: Written) -> None:
    from onnx import parser

    from deepshap_ir import DeepExplainer

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }'
    )
    explainer = DeepExplainer(model, np.zeros((1, 2), np.float32), rules=load_rules([written("mine.py", RELU)]))
    phi = explainer.shap_values(np.ones((1, 2), np.float32), check_additivity=False)
    np.testing.assert_array_equal(phi[0], np.eye(2) / 2)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("x = (", InputError, r"mine\.py: is not Python: .* \(mine\.py, line 1\)"),
        ("\n\n1 / 0\n", RuleError, r"mine\.py, line 3: ZeroDivisionError: division by zero"),
        ("import not_a_package_of_mine", RuleError, r"line 1: ModuleNotFoundError: No module named"),
        ("x = 1", RuleError, r"mine\.py: registers no rule; write @rule"),
        (RELU + RELU, RuleError, r"mine\.py: Relu already has the rule deepshap_rules_0_mine\.half"),
    ],
)
def test_a_file_that_does_not_work(written: Written, content: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_rules([written("mine.py", content)])


def test_two_files_with_rules_for_one_operator(written: Written) -> None:
    with pytest.raises(RuleError, match=r"b\.py: Relu already has the rule"):
        load_rules([written("a.py", RELU), written("b.py", RELU)])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.py: no such file \(the current folder is "):
        load_rules([tmp_path / "gone.py"])


def test_a_file_that_is_not_named_as_python(written: Written) -> None:
    with pytest.raises(InputError, match=r"mine\.txt: rules come from \.py files"):
        load_rules([written("mine.txt", RELU)])


def test_no_files_are_no_rules() -> None:
    (rules,) = load_rules([])
    assert rules.rules == {}


def test_an_error_ends_the_collection() -> None:
    with pytest.raises(ValueError, match="stop"), collected():
        raise ValueError("stop")
    with collected() as rules:
        pass
    assert rules.rules == {}


def test_names_come_after_files(written: Written) -> None:
    from deepshap_ir.engine.rule_sets import find_rule_set

    rules, named = load_rules(["reveal_cancel", written("mine.py", RELU)])
    assert named is find_rule_set("reveal_cancel")
    found = Resolver([rules, named]).rule(node("Relu"))
    assert found is not None
    assert found.function.__name__ == "half"


def test_a_file_may_bind_a_set_for_all_operators(written: Written) -> None:
    content = """
from deepshap_ir.extend import RuleSet

mine = RuleSet(general=True)

@mine.for_all(exact=False)
def nothing(ctx, m):
    return [m[0] * 0.0] * ctx.n_inputs
"""
    rules, general, named = load_rules([written("mine.py", content), "gradient"])
    assert rules.rules == {}
    found = Resolver([rules, general, named]).rule(node("Relu"))
    assert found is not None
    assert (found.function.__name__, found.exact) == ("nothing", False)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(
        InputError,
        match=r"no rule set 'gradeint'; did you mean 'gradient'\? There are 'gradient', .*; rules of your own come",
    ):
        load_rules(["gradeint"])
