from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import shap

from deepshap_ir import explanation as module
from deepshap_ir.errors import InputError
from deepshap_ir.explanation import Explanation, OutputName, make_explanation, plain_explanations

mpl.use("Agg")

FEATURES = ["age", "height", "weight", "pulse"]
OUTPUTS = ["low", "middle", "high"]
PARTS = ["values", "base_values", "data", "standard_error", "unattributed", "output_indexes", "outputs"]


@pytest.fixture(params=[True, False], ids=["shap", "no_shap"])
def has_shap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Run with both classes that `make_explanation` can return."""
    if not request.param:
        monkeypatch.setitem(sys.modules, "shap", None)
    module._explanation_class.cache_clear()
    yield request.param
    module._explanation_class.cache_clear()


def tabular() -> Any:
    """5 samples of 4 features, 3 outputs, with every part."""
    rng = np.random.default_rng(0)
    return make_explanation(
        rng.normal(size=(5, 4, 3)),
        rng.normal(size=3),
        rng.normal(size=(5, 4)),
        FEATURES,
        OUTPUTS,
        standard_error=rng.random((5, 4, 3)),
        unattributed=rng.random((5, 3)),
        output_indexes=rng.permutation(15).reshape(5, 3),
        outputs=rng.random((5, 3)),
    )


def one_output(rows: int = 6) -> Any:
    rng = np.random.default_rng(1)
    return make_explanation(rng.normal(size=(rows, 4, 1)), [0.5], rng.normal(size=(rows, 4)), FEATURES, "risk")


@pytest.mark.usefixtures("has_shap")
@pytest.mark.parametrize(
    ("item", "values", "per_output", "data"),
    [
        (0, np.s_[0], np.s_[0], np.s_[0]),
        (-1, np.s_[-1], np.s_[-1], np.s_[-1]),
        (np.int64(2), np.s_[2], np.s_[2], np.s_[2]),
        (slice(1, 4, 2), np.s_[1:4:2], np.s_[1:4:2], np.s_[1:4:2]),
        ([3, 0], np.s_[[3, 0]], np.s_[[3, 0]], np.s_[[3, 0]]),
        ([], np.s_[:0], np.s_[:0], np.s_[:0]),
        (range(2), np.s_[:2], np.s_[:2], np.s_[:2]),
        (np.array([True, False, False, True, False]), np.s_[::3], np.s_[::3], np.s_[::3]),
        ((slice(None), "weight"), np.s_[:, 2], np.s_[:], np.s_[:, 2]),
        ((slice(None), ["pulse", "age"]), np.s_[:, ::-3], np.s_[:], np.s_[:, ::-3]),
        ((..., 1), np.s_[..., 1], np.s_[:, 1], np.s_[:]),
        ((..., "high"), np.s_[..., 2], np.s_[:, 2], np.s_[:]),
        ((2, ..., "high"), np.s_[2, :, 2], np.s_[2, 2], np.s_[2]),
        ((0, slice(None), [0, 2]), np.s_[0, :, ::2], np.s_[0, ::2], np.s_[0]),
        (([0, 1], slice(None), [0, 2]), np.s_[:2, :, ::2], np.s_[:2, ::2], np.s_[:2]),
        ((1, "age", "low"), np.s_[1, 0, 0], np.s_[1, 0], np.s_[1, 0]),
        (..., np.s_[:], np.s_[:], np.s_[:]),
    ],
)
def test_every_part_is_cut_alike(item: Any, values: Any, per_output: Any, data: Any) -> None:
    whole = tabular()
    part = whole[item]
    where = dict.fromkeys(PARTS, per_output) | {"values": values, "standard_error": values, "data": data}
    for name in PARTS:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[where[name]], err_msg=name)
    assert part.shape == np.shape(part.values)


@pytest.mark.usefixtures("has_shap")
def test_names_follow_the_cuts() -> None:
    whole = tabular()
    assert whole[:, ["pulse", "age"]].feature_names == ["pulse", "age"]
    assert whole[:, np.array([False, True, True, False])].feature_names == ["height", "weight"]
    assert whole[0, "age"].feature_names == "age"
    assert whole[..., "low"].output_names == "low"
    assert whole[2:4].output_names == OUTPUTS
    assert whole[0][:, "high"]["weight"].values == whole.values[0, 2, 2]


def test_cutting_in_steps_and_at_once_agree() -> None:
    np.testing.assert_array_equal(tabular()[1:][..., "low"][:, "age"].values, tabular()[1:, "age", "low"].values)


@pytest.mark.usefixtures("has_shap")
@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ((slice(None), "shoe size"), InputError, r"no entry 'shoe size' on axis 1 .* has age, height, weight, pulse"),
        ("age", InputError, "no entry 'age' on axis 0 of the attributions, which has no names"),
        ((..., "age"), InputError, "no entry 'age' on axis 2 .* has low, middle, high"),
        (5, IndexError, "out of bounds"),
        ((0, 0, 0, 0), IndexError, "the attributions have 3 axes"),
        ((..., ...), IndexError, "the attributions have 3 axes"),
        (None, IndexError, "integers, a mask or names, not None"),
        (1.5, IndexError, "integers, a mask or names, not 1.5"),
        (np.array([True, False]), IndexError, "integers, a mask or names"),
    ],
)
def test_an_index_that_does_not_fit(item: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tabular()[item]


def test_iterates_over_samples() -> None:
    assert [part.values.shape for part in one_output()] == [(4,)] * 6
    assert len(one_output()) == 6


def test_is_a_shap_explanation_exactly_where_shap_can_be_imported(has_shap: bool) -> None:
    explanation = tabular()
    assert isinstance(explanation, Explanation)
    assert isinstance(explanation, shap.Explanation) == has_shap
    assert isinstance(explanation[0], shap.Explanation) == has_shap


def test_importing_the_package_does_not_import_shap() -> None:
    code = (
        "import sys, deepshap_ir.explanation; sys.exit(any(n in sys.modules for n in ('shap', 'pandas', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shap_is_left_alone_on_request() -> None:
    code = """if True:
        import sys
        from deepshap_ir.explanation import Explanation, make_explanation, plain_explanations
        with plain_explanations():
            explanation = make_explanation([[[1.0]]], [0.0], [[2.0]])
        sys.exit(type(explanation) is not Explanation or "shap" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with plain_explanations():
        assert not isinstance(tabular(), shap.Explanation)
    assert isinstance(tabular(), shap.Explanation)


@pytest.mark.usefixtures("has_shap")
def test_pickle_and_copies_keep_everything() -> None:
    original = tabular()[1:, :, ["high", "low"]]
    copies: list[Callable[[Any], Any]] = [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy]
    for duplicate in copies:
        made = duplicate(original)
        assert type(made) is type(original)
        assert (made.feature_names, made.output_names) == (FEATURES, ["high", "low"])
        assert made.output_dims == original.output_dims
        for name in PARTS:
            np.testing.assert_array_equal(getattr(made, name), getattr(original, name))


def test_a_pickle_opens_without_shap(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = pickle.dumps(tabular())
    monkeypatch.setitem(sys.modules, "shap", None)
    module._explanation_class.cache_clear()
    try:
        assert type(pickle.loads(stored)) is Explanation
    finally:
        module._explanation_class.cache_clear()


def test_a_deep_copy_is_independent() -> None:
    original = tabular()
    duplicate = copy.deepcopy(original)
    duplicate.values[:] = 0
    assert np.abs(original.values).min() > 0


@pytest.mark.usefixtures("has_shap")
def test_the_axis_of_an_only_output_is_dropped() -> None:
    explanation = one_output()
    assert explanation.shape == (6, 4)
    assert explanation.base_values.tolist() == [0.5] * 6
    assert (explanation.output_names, explanation[0].output_names) == ("risk", "risk")
    assert explanation.op_history == []


def test_a_list_with_the_only_name_is_that_name() -> None:
    assert make_explanation(np.ones((2, 3, 1)), [0.0], np.ones((2, 3)), None, ["risk"]).output_names == "risk"


def test_base_values_may_differ_by_sample() -> None:
    explanation = make_explanation(np.ones((2, 3, 2)), [[1.0, 2.0], [3.0, 4.0]], np.ones((2, 3)))
    assert explanation[1].base_values.tolist() == [3.0, 4.0]
    assert explanation.output_names == ["Output 0", "Output 1"]


def test_as_many_outputs_as_samples() -> None:
    explanation = make_explanation(np.ones((3, 2, 3)), [1.0, 2.0, 3.0], np.ones((3, 2)))
    assert explanation[0].base_values.tolist() == [1.0, 2.0, 3.0]


def test_outputs_may_have_several_axes() -> None:
    explanation = make_explanation(np.ones((2, 3, 4, 5)), np.ones((4, 5)), np.ones((2, 3)), ["a", "b", "c"])
    assert explanation.output_names is None
    assert explanation[0, "b"].base_values.shape == (4, 5)
    assert explanation[..., 1].output_dims == (2,)


def test_names_lie_along_the_last_axis_of_the_features() -> None:
    series = make_explanation(np.ones((2, 7, 3, 1)), [0.0], np.ones((2, 7, 3)), ["open", "close", "volume"])
    assert series[:, 2].feature_names == ["open", "close", "volume"]
    assert series[..., "close"].shape == (2, 7)


def test_names_of_outputs_may_differ_by_sample() -> None:
    names = [["cat", "dog"], ["dog", "emu"]]
    ranked = make_explanation(np.ones((2, 3, 2)), np.ones((2, 2)), np.ones((2, 3)), None, names)
    assert ranked[1].output_names.tolist() == ["dog", "emu"]
    assert ranked[:, :, 0].output_names.tolist() == ["cat", "dog"]


@pytest.mark.parametrize(
    ("ranks", "expected"), [([[3, 0], [1, 2]], ["Output 3", "Output 0"]), ([[3], [1]], "Output 3")]
)
def test_ranked_outputs_are_named_by_their_index(ranks: list[list[int]], expected: Any) -> None:
    shape = (2, 3, len(ranks[0]))
    ranked = make_explanation(np.ones(shape), np.ones((2, shape[2])), np.ones((2, 3)), output_indexes=ranks)
    np.testing.assert_array_equal(ranked[0].output_names, expected)


def test_several_inputs_give_one_explanation_each() -> None:
    data = [np.ones((2, 3)), np.ones((2, 4, 4))]
    values = [np.full((2, 3, 2), 1.0), np.full((2, 4, 4, 2), 2.0)]
    first, second = make_explanation(values, [0.0, 1.0], data, [["a", "b", "c"], None], unattributed=np.ones((2, 2)))
    assert (first[:, "b"].shape, second.shape) == ((2, 2), (2, 4, 4, 2))
    assert first.feature_names == ["a", "b", "c"]
    assert second.unattributed.tolist() == [[1.0, 1.0]] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": np.ones((2, 4))}, r"attributions \[2, 3, 2\] do not begin with .* samples \[2, 4\]"),
        ({"data": 1.0}, r"the shape of the samples \[\]"),
        ({"base_values": [1.0]}, r"base_values have shape \[1\], expected \[2\] or \[2, 2\]"),
        ({"standard_error": np.ones((2, 3))}, r"standard_error has shape \[2, 3\], expected \[2, 3, 2\]"),
        ({"unattributed": np.ones(2)}, r"unattributed has shape \[2\], expected \[2, 2\]"),
        ({"feature_names": ["a"]}, r"feature_names a has shape \[1\], expected \[3\] or \[2, 3\]"),
        ({"output_names": list("abc")}, r"output_names a, b, c has shape \[3\], expected \[2\] or \[2, 2\]"),
    ],
)
def test_parts_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    fitting: dict[str, Any] = {"values": np.ones((2, 3, 2)), "base_values": [0.0, 0.0], "data": np.ones((2, 3))}
    with pytest.raises(InputError, match=message):
        make_explanation(**(fitting | arguments))


def test_lists_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="attributions of 1 inputs need as many data"):
        make_explanation([np.ones((2, 3, 1))], [0.0], [np.ones((2, 3)), np.ones((2, 3))])


@pytest.mark.usefixtures("has_shap")
def test_new_values_forget_what_belonged_to_the_old_ones() -> None:
    explanation = tabular()
    explanation.values = explanation.values * 2
    assert explanation.standard_error is None
    assert explanation.unattributed is None
    assert explanation.outputs is None
    assert explanation[0].values.shape == (4, 3)


@pytest.mark.usefixtures("has_shap")
def test_names_can_be_set_later() -> None:
    explanation = make_explanation(np.ones((2, 3, 1)), [0.0], np.ones((2, 3)))
    explanation.feature_names = ["a", "b", "c"]
    assert explanation[:, "b"].shape == (2,)
    with pytest.raises(InputError, match="feature_names a, b has shape"):
        explanation.feature_names = ["a", "b"]


@pytest.mark.usefixtures("has_shap")
def test_repr_tells_shapes_names_and_range() -> None:
    explanation = tabular()
    explanation.feature_names = FEATURES
    text = repr(explanation)
    assert "values [5, 4, 3], base_values [5, 3], data [5, 4]" in text
    assert "feature_names: age, height, weight, pulse" in text
    assert f"values: {explanation.values.min():.4g} to {explanation.values.max():.4g}" in text
    assert "output_names: low" in repr(explanation[0, "age", "low"])


class TestShapTakesItAsItIs:
    @pytest.fixture(autouse=True)
    def _close_figures(self) -> Iterator[None]:
        yield
        plt.close("all")

    def test_waterfall(self) -> None:
        shap.plots.waterfall(one_output()[0], show=False)
        labels = [text.get_text() for text in plt.gcf().axes[0].get_yticklabels()]
        assert any("age" in label for label in labels)

    @pytest.mark.parametrize("plot", ["beeswarm", "bar", "heatmap", "violin"])
    def test_plots_of_many_samples(self, plot: str) -> None:
        getattr(shap.plots, plot)(one_output(), show=False)
        getattr(shap.plots, plot)(tabular()[..., "high"], show=False)
        labels = [text.get_text() for axis in plt.gcf().axes for text in axis.get_yticklabels()]
        assert set(FEATURES) <= set(labels)

    def test_bar_of_one_sample_and_of_cohorts(self) -> None:
        shap.plots.bar(one_output()[0], show=False)
        shap.plots.bar(one_output(30).cohorts(2).abs.mean(0), show=False)

    def test_scatter_and_force(self) -> None:
        shap.plots.scatter(one_output()[:, "age"], show=False)
        shap.plots.force(one_output()[0], matplotlib=True, show=False)

    def test_text(self) -> None:
        tokens = make_explanation(np.ones((1, 3, 1)), [0.0], np.array([["a ", "b ", "c"]]), output_names="mood")
        assert "mood" in shap.plots.text(tokens[0], display=False)

    @pytest.mark.parametrize("names", [None, "lit"])
    def test_image_of_one_output(self, names: str | None) -> None:
        pixels = np.random.default_rng(0).random((2, 8, 9, 3))
        shap.plots.image(make_explanation(pixels[..., None], [0.0], pixels, output_names=names), show=False)
        assert plt.gcf().axes[1].get_title() == (names or "")

    def test_image_of_several_outputs_and_of_one_of_them(self) -> None:
        pixels = np.random.default_rng(0).random((2, 8, 9, 3))
        explanation = make_explanation(pixels[..., None] * [1, 2], [0.0, 0.0], pixels, output_names=["cat", "dog"])
        shap.plots.image(explanation, show=False)
        assert [axis.get_title() for axis in plt.gcf().axes[:3]] == ["", "cat", "dog"]
        shap.plots.image(explanation[..., "dog"], show=False)
        assert [axis.get_title() for axis in plt.gcf().axes[:2]] == ["", "dog"]

    def test_image_with_the_channels_moved(self) -> None:
        pixels = np.random.default_rng(0).random((2, 3, 8, 9))
        moved = make_explanation(pixels[..., None], [0.0], pixels, output_names="lit").channels_last()
        np.testing.assert_array_equal(moved.values, pixels.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(moved.data, pixels.transpose(0, 2, 3, 1))
        shap.plots.image(moved, show=False)

    def test_reductions_of_shap(self) -> None:
        explanation = one_output()
        mean = explanation.abs.mean(0)
        np.testing.assert_allclose(mean.values, np.abs(explanation.values).mean(0))
        assert mean.feature_names == FEATURES
        assert [step.name for step in mean.op_history] == ["abs", "mean"]
        np.testing.assert_array_equal((explanation - explanation).values, 0)
        order = np.argsort(-np.abs(explanation.values).mean(0))
        shap.plots.beeswarm(explanation, order=shap.Explanation.abs.mean(0).argsort.flip, show=False)
        lowest_first = [text.get_text() for text in plt.gca().get_yticklabels()]
        assert lowest_first == [FEATURES[i] for i in order[::-1]]

    def test_shap_orders_and_samples(self) -> None:
        explanation = one_output()
        order = explanation[:, shap.Explanation.abs.mean(0).argsort]
        np.testing.assert_array_equal(np.argsort(np.abs(order.values).mean(0)), range(4))
        assert explanation.sample(3).shape == (3, 4)


def test_channels_last_wants_images() -> None:
    with pytest.raises(
        InputError, match=r"channels_last\(\) is for samples of shape \[N, C, H, W\], these have \[5, 4\]"
    ):
        tabular().channels_last()


def test_a_name_of_an_output_is_a_string_and_can_be_reshaped() -> None:
    name = OutputName("cat")
    assert name == "cat"
    assert name.reshape(-1, 1).tolist() == [["cat"]]
