"""Rules as users give them: by mapping, by name, several; and keys that match nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, InputError, RuleError
from deepshap_ir.engine import rule_sets
from deepshap_ir.extend import RuleSet, named_rules
from tests.onnx_text import data, parsed

BODY = "{ [first] a = Relu(x) [Tanh] b = Sigmoid(a) [my_tanh] c = Tanh(b) [second] y = Relu(c) }"
BACKGROUND, SAMPLES = data(3, 4), data(2, 4, seed=1)


def explainer(rules: Any, body: str = BODY) -> DeepExplainer:
    return DeepExplainer(parsed(body), BACKGROUND, rules=rules)


def usual(ctx: Any, m: Any) -> Any:
    return ctx.usual(m)


def named_by(rules: Any) -> list[str]:
    """The nodes that the rule `usual` or a named set explains."""
    return [r.node for r in explainer(rules).rules() if r.rule.split(".")[-1] == "usual" or "alternatives" in r.rule]


# --- keys


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("Rellu", r"'Rellu' is neither a node nor an operator: did you mean 'Relu'\?"),
        ("relu", r"'relu' is neither a node nor an operator: did you mean 'Relu'\?"),
        ("frist", r"did you mean 'first'\?"),
        ("my::Op", r"'my::Op' is neither an operator nor a node: there are 'Relu', 'Sigmoid', 'Tanh', 'first', 'my_t"),
        ("Softmax", r"'Softmax' is read as the operator: there are 'Relu', 'Sigmoid', 'Tanh'"),
    ],
)
def test_a_key_that_matches_nothing_is_an_error(key: str, message: str) -> None:
    with pytest.raises(InputError, match=r"(?s)rules are given for what is not in the model.*" + message):
        explainer({key: usual})
    with pytest.raises(InputError, match=message):
        explainer({key: "gradient"})


def test_all_wrong_keys_are_listed() -> None:
    with pytest.raises(InputError, match=r"(?s)'Elu' is read.*did you mean 'Relu'.*'first2' is neither"):
        explainer({"Relu": usual, "Elu": usual, "first2": usual})


def test_a_set_may_hold_rules_for_what_is_not_there_but_not_for_a_node() -> None:
    rules = RuleSet()
    rules.rule("Softmax", "my::Op")(usual)
    explainer(rules)
    rules.for_node("thrid")(usual)
    with pytest.raises(InputError, match=r"the node 'thrid' there are 'Tanh', 'first', 'my_tanh', 'second'"):
        explainer(rules)


def test_the_name_of_an_operator_is_the_operator() -> None:
    """A node may be called Tanh and be none."""
    assert named_by({"Tanh": usual}) == ["my_tanh"]
    rules = RuleSet()
    rules.for_node("Tanh")(usual)
    assert named_by(rules) == ["Tanh"]
    body = BODY.replace("c = Tanh(b)", "c = Sigmoid(b)")
    with pytest.raises(InputError, match=r"'Tanh' is read as the operator, though a node has this name: RuleSet"):
        explainer({"Tanh": usual}, body)


def test_a_named_set_that_has_no_rule_for_it() -> None:
    with pytest.raises(InputError, match=r"set that is named for 'Softmax' has no rule for Softmax node 'last'"):
        explainer({"Softmax": "reveal_cancel"}, "{ a = Relu(x) [last] y = Softmax(a) }")
    assert named_by({"Tanh": "gradient"}) == ["my_tanh"]
    assert named_by({"my_tanh": "gradient"}) == ["my_tanh"]


def test_keys_reach_into_loops() -> None:
    body = "<int64[1] one = {1}, float[1,1,1] w = {0.7}> { s = Unsqueeze(x, one) t = Transpose<perm = [2, 0, 1]>(s) \
h, z = RNN<hidden_size = 1>(t, w, w) y = Squeeze(z, one) }"
    model = parsed(body, "(float[N,4] x) => (float[1,N,1] y)")
    found = DeepExplainer(model, BACKGROUND, rules={"Tanh": usual}, batch_axes={"x": 0})
    assert [row.rule.split(".")[-1] for row in found.rules() if row.operator == "Tanh"] == ["usual"]


# --- names


def test_an_unknown_name_lists_what_there_is() -> None:
    expected = (
        r"rules: there is no rule set 'reveal_cancle'; did you mean 'reveal_cancel'\? There are "
        r"'gradient', 'integrated_gradients', 'universal', 'reveal_cancel'"
    )
    with pytest.raises(InputError, match=expected):
        explainer("reveal_cancle")
    with pytest.raises(InputError, match="no rule set 'saliency'; there are"):
        explainer({"Relu": "saliency"})


@pytest.mark.parametrize("rules", [3, [3], [usual], usual])
def test_what_is_no_rule_set_is_refused(rules: Any) -> None:
    with pytest.raises(RuleError, match=r"rules is a (int|function); give a mapping .* a list of these"):
        explainer(rules)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(RuleError, match="there is a rule set 'gradient' already"):
        named_rules("gradient")


def test_the_first_in_a_list_is_asked() -> None:
    assert named_by([{"Relu": usual}, "reveal_cancel"]) == ["first", "second"]
    assert named_by(["reveal_cancel", {"Relu": usual}]) == []
    assert named_by(["reveal_cancel", {"first": usual}]) == ["first"]  # node names come before operators
    assert named_by([{"Tanh": usual}, "gradient"]) == ["first", "Tanh", "my_tanh", "second"]
    assert named_by([]) == named_by(None) == []


def test_named_sets_leave_joined_operators_joined() -> None:
    body = "{ a = Sigmoid(x) b = Mul(x, a) y = Neg(b) }"  # SiLU
    for rules in ("reveal_cancel", "gradient", "integrated_gradients"):
        assert [node.operator for node in explainer(rules, body).graph.nodes] == ["deepshap_ir::Swish", "Neg"]


def test_a_saved_explainer_asks_for_its_rules_again() -> None:
    file = io.BytesIO()
    explainer({"first": usual}).save(file)
    with pytest.raises(InputError, match="rules of its own, for 'first'"):
        DeepExplainer.load(file)


@pytest.mark.parametrize("rules", ["gradient", ["reveal_cancel"], {"first": "gradient"}])
def test_a_saved_explainer_knows_its_rules_by_name(rules: Any) -> None:
    file, e = io.BytesIO(), explainer(rules)
    e.save(file)
    assert DeepExplainer.load(file).rules() == e.rules()


# --- sets that packages bring


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on the path that an entry point of the group names."""
    entry = EntryPoint("half", "lab_sets:half", rule_sets.GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rule_sets, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    rule_sets._brought.cache_clear()
    yield tmp_path / "lab_sets.py"
    sys.modules.pop("lab_sets", None)
    rule_sets._brought.cache_clear()


def test_a_package_brings_a_named_set(installed: Path) -> None:
    installed.write_text(
        "from deepshap_ir.extend import RuleSet\nhalf = RuleSet(general=True)\n\n"
        "@half.rule('Relu')\ndef halved(ctx, m):\n    return ctx.usual(m)[0] * 0.5\n"
    )
    found = explainer("half").shap_values(SAMPLES, check_additivity=False)
    np.testing.assert_allclose(found, explainer(None).shap_values(SAMPLES) / 4, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="'reveal_cancel', 'half'"):
        explainer("helf3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 / 0", r"the rule set 'half' of a package \(lab_sets:half\) cannot be loaded: division by zero; update or"),
        ("half = {}", r"the rule set 'half' of a package \(lab_sets:half\) is a dict, no RuleSet"),
    ],
)
def test_a_broken_set_is_named(installed: Path, content: str, message: str) -> None:
    installed.write_text(content)
    with pytest.raises(RuleError, match=message):
        explainer("half")


def test_a_package_may_not_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("gradient", "lab_sets:half", rule_sets.GROUP)
    monkeypatch.setattr(rule_sets, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    rule_sets._brought.cache_clear()
    with pytest.raises(RuleError, match="'gradient' of a package has the name of a built-in one; uninstall it"):
        explainer("gradient")
    rule_sets._brought.cache_clear()
