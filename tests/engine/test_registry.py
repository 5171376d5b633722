"""Which rule a node gets, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, InputError, RuleError
from deepshap_ir.engine.registry import BUILT_IN, Resolver, collected
from deepshap_ir.engine.rule_sets import rule_set
from deepshap_ir.extend import Context, Expansion, Node, RuleSet, Value, expand, rule
from tests.onnx_text import Array, data, parsed

BACKGROUND, SAMPLES = data(5, 4), data(3, 4, seed=1)
TWO_RELUS = "{ [one] a = Relu(x) b = Neg(a) [two] y = Relu(b) }"


def doubled(ctx: Context, m: Sequence[Value]) -> Value:
    """Twice the right multiplier of Relu: breaks the sum, and so shows that it was asked."""
    return m[0] * 2.0 * (ctx.delta_y() / (ctx.delta_x() + 1e-20))


def zero(ctx: Context, m: Sequence[Value]) -> Value:
    return m[0] * 0.0


def values(body: str, **settings: Any) -> Array:
    found: Array = DeepExplainer(parsed(body), BACKGROUND, **settings).shap_values(SAMPLES, check_additivity=False)
    return found


def node(op_type: str = "Relu", name: str = "n", domain: str = "", version: int = 18) -> Node:
    return Node(name, op_type, ("x",), ("y",), domain=domain, version=version)


# --- registering


def test_a_second_rule_for_an_operator_is_refused() -> None:
    rules = RuleSet()
    rules.rule("Relu", "my::Op")(doubled)
    with pytest.raises(
        RuleError,
        match=r"my::Op already has the rule tests.engine.test_registry\.doubled for opsets 1 to 10000; "
        r"tests.engine.test_registry\.zero would be a second one\. "
        r"Give your rule to one explainer \(rules=\{\.\.\.\}\), .* or restrict its opsets",
    ):
        rules.rule("my::Op")(zero)


def test_a_built_in_rule_is_not_replaced_for_all() -> None:
    with pytest.raises(RuleError, match=r"Relu already has the rule .*test_registry\.zero would be a second one"):
        rule("Relu")(zero)
    assert Resolver().rule(node()) is not None


def test_opset_ranges_may_not_overlap() -> None:
    rules = RuleSet()
    rules.rule("Op", since=13, until=17)(doubled)
    rules.rule("Op", since=18)(zero)
    rules.rule("Op", until=12)(zero)
    for since, until in ((17, 18), (1, 1), (13, 13), (30, 40), (1, 99)):
        with pytest.raises(RuleError, match="Op already has the rule"):
            rules.rule("Op", since=since, until=until)(zero)


def test_the_opset_chooses_the_rule() -> None:
    rules = RuleSet()
    rules.rule("my::Op", since=2, until=3)(doubled)
    rules.rule("my::Op", since=5)(zero)
    found = {v: rules.find(node("Op", domain="my", version=v)) for v in range(1, 7)}
    assert {v: r and r.function for v, r in found.items()} == {
        1: None,
        2: doubled,
        3: doubled,
        4: None,
        5: zero,
        6: zero,
    }


def test_domains_are_apart() -> None:
    rules = RuleSet()
    rules.rule("my::Relu")(doubled)
    assert rules.find(node()) is None
    assert rules.find(node(domain="my")) is not None


def test_one_rule_and_one_expansion_for_a_name() -> None:
    rules = RuleSet()
    rules.for_node("n")(zero)
    with pytest.raises(RuleError, match=r"node 'n' already has the rule tests.engine.test_registry\.zero"):
        rules.for_node("n")(doubled)
    rules.expand("my::Op")(lambda ctx: ctx.x())
    with pytest.raises(RuleError, match="my::Op already has the expansion <lambda>"):
        rules.expand("my::Op")(lambda ctx: ctx.x())


def test_what_is_no_function_is_no_rule() -> None:
    with pytest.raises(RuleError, match=r"the rule for 'Relu' is a int, not a function \(ctx, m\)"):
        rule_set({"Relu": 3})  # type: ignore[dict-item]
    given = RuleSet()
    assert rule_set(given) is given
    assert rule_set(None) == RuleSet()


def test_the_name_of_a_rule_says_where_it_is() -> None:
    rules = RuleSet()
    rules.rule("my::Op")(zero)
    found = rules.find(node("Op", domain="my"))
    assert found is not None
    assert found.name == "tests.engine.test_registry.zero"
    built_in = Resolver().rule(node())
    assert built_in is not None
    assert not built_in.name.startswith("deepshap_ir")


# --- finding


def test_precedence_is_node_then_explainer_then_registry() -> None:
    usual = values(TWO_RELUS)
    everywhere = values(TWO_RELUS, rules={"Relu": doubled})
    np.testing.assert_allclose(everywhere, 4 * usual, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values(TWO_RELUS, rules={"one": doubled}), 2 * usual, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(values(TWO_RELUS, rules={"Relu": doubled, "two": zero}), 0)
    np.testing.assert_array_equal(values(TWO_RELUS, rules={"two": zero, "Relu": doubled}), 0)


def test_a_rule_set_is_what_the_mapping_is() -> None:
    rules = RuleSet()
    rules.rule("Relu")(doubled)
    rules.for_node("two")(zero)
    np.testing.assert_array_equal(values(TWO_RELUS, rules=rules), 0)


def test_rules_of_one_explainer_do_not_touch_another() -> None:
    usual = values(TWO_RELUS)
    mine = DeepExplainer(parsed(TWO_RELUS), BACKGROUND, rules={"Relu": doubled})
    theirs = DeepExplainer(parsed(TWO_RELUS), BACKGROUND)
    np.testing.assert_allclose(mine.shap_values(SAMPLES, check_additivity=False), 4 * usual, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(theirs.shap_values(SAMPLES), usual)
    assert all(r.function is not doubled for r in BUILT_IN.rules["Relu"])


def test_the_table_of_rules_tells_which_and_whether_exact() -> None:
    rules = RuleSet()
    rules.for_node("two", exact=False)(zero)
    explainer = DeepExplainer(parsed(TWO_RELUS), BACKGROUND, rules=rules)
    rows = {row.node: row for row in explainer.rules()}
    assert [row.operator for row in rows.values()] == ["Relu", "Neg", "Relu"]
    assert (rows["two"].rule, rows["two"].exact) == ("tests.engine.test_registry.zero", False)
    assert rows["one"].exact
    assert rows["one"].rule.split(".")[0] in ("piecewise", "elementwise")


def test_rules_collected_from_a_file_stay_out_of_the_registry() -> None:
    with collected() as rules:

        @rule("my::Collected")
        def one(ctx: Context, m: Sequence[Value]) -> Value:
            return m[0]

        @expand("my::Expanded")
        def two(ctx: Expansion) -> Value:
            return ctx.x()

    assert set(rules.rules) == {"my::Collected"}
    assert set(rules.expansions) == {"my::Expanded"}
    assert "my::Collected" not in BUILT_IN.rules
    assert "my::Expanded" not in BUILT_IN.expansions


def test_an_own_rule_comes_before_a_built_in_expansion_and_the_reverse() -> None:
    """Whatever the explainer's own set has for an operator wins, be it a rule or an expansion."""
    rules = RuleSet()
    rules.expand("Relu")(lambda ctx: ctx.op.Max(ctx.x(), 0.0))
    explainer = DeepExplainer(parsed(TWO_RELUS), BACKGROUND, rules=rules)
    assert [row.operator for row in explainer.rules()] == ["Max", "Neg", "Max"]
    np.testing.assert_allclose(explainer.shap_values(SAMPLES), values(TWO_RELUS), rtol=1e-4, atol=1e-6)
    resolver = Resolver([rule_set({"one": zero}), rules])
    assert resolver.expansion(node(name="one")) is None
    assert resolver.expansion(node(name="other")) is not None
    assert resolver.is_own(node(name="one"))


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match=r"options: there is no 'pooling'; there are 'max_pooling'"):
        Resolver(options={"pooling": "shap"})
    with pytest.raises(InputError, match=r"options: max_pooling='exact'; choose 'shap' or 'shapley'"):
        Resolver(options={"max_pooling": "exact"})
