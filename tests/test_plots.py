from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from deepshap_ir import plots
from deepshap_ir.commands.results import Result
from deepshap_ir.errors import InputError, MissingDependencyError
from deepshap_ir.explanation import make_explanation
from deepshap_ir.plots import check_picture, draw, kind, plot_result, shown_samples

OUTPUTS = ["cat", "dog", "emu", "fox"]


def explained(shape: tuple[int, ...], outputs: int = 1, rows: int = 2, **parts: Any) -> Any:
    rng = np.random.default_rng(0)
    data = rng.random((rows, *shape))
    return make_explanation(rng.normal(size=(*data.shape, outputs)), np.zeros(outputs), data, **parts)


def result_of(*explanations: Any, outputs: Any = None) -> Result:
    first = explanations[0]
    total = sum(e.values.sum(axis=tuple(range(1, e.data.ndim))) for e in explanations)
    return Result(
        {f"in{i}": e for i, e in enumerate(explanations)}, first.base_values + total if outputs is None else outputs
    )


def panels(result: Result) -> list[Axes]:
    figure = draw(result)
    figure.canvas.draw()
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def bar_lengths(axes: Axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((), None, "bars"),
        ((30,), None, "bars"),
        ((1, 30, 1), None, "bars"),
        ((28, 28), None, "image"),
        ((1, 8, 8), None, "image"),
        ((3, 20, 30), None, "image"),
        ((20, 30, 3), None, "image"),
        ((4, 3, 20, 30), None, "image"),
        ((60, 4), None, "sequence"),
        ((100, 9), None, "sequence"),
        ((8, 8), list("abcdefgh"), "sequence"),
    ],
)
def test_what_is_drawn_follows_from_the_shape(shape: tuple[int, ...], names: Any, expected: str) -> None:
    assert kind(explained(shape, feature_names=names)) == expected


@pytest.mark.parametrize(("rows", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (20, [0, 10, 19])])
def test_the_samples_that_are_drawn_are_spread(rows: int, expected: list[int]) -> None:
    assert shown_samples(rows, 3) == expected


class TestBars:
    def test_one_sample(self) -> None:
        explanation = make_explanation([[[0.5], [-2.0], [1.0]]], [0.25], [[1.0, 20.0, 3.5]], ["a", "b", "c"], "risk")
        (axes,) = panels(result_of(explanation))
        assert bar_lengths(axes) == [-2.0, 1.0, 0.5]
        assert labels(axes) == ["b = 20", "c = 3.5", "a = 1"]
        assert [bar.get_facecolor()[:3] for bar in axes.patches] == [
            to_rgb(plots.NEGATIVE),
            to_rgb(plots.POSITIVE),
            to_rgb(plots.POSITIVE),
        ]
        assert axes.get_title(loc="left") == "sample 0: risk\nf(x) = -0.25, E[f] = 0.25"
        assert [text.get_text() for text in axes.texts] == ["-2", "+1", "+0.5"]

    def test_several_samples_begin_with_their_mean(self) -> None:
        explanation = explained((4,), rows=7, feature_names=list("abcd"))
        mean, *samples = panels(result_of(explanation))
        expected = np.abs(explanation.values).mean(axis=0)
        np.testing.assert_allclose(bar_lengths(mean), np.sort(expected)[::-1])
        assert labels(mean) == [list("abcd")[i] for i in np.argsort(-expected)]
        assert mean.get_title(loc="left") == "mean |attribution|, 7 samples"
        assert len(samples) == plots.MOST_SAMPLES["bars"]
        assert samples[2].get_title(loc="left").startswith("sample 6: ")
        np.testing.assert_allclose(sorted(bar_lengths(samples[2])), np.sort(explanation.values[6]))

    def test_the_largest_twenty_add_up_with_the_rest(self) -> None:
        explanation = explained((50,), rows=1)
        (axes,) = panels(result_of(explanation))
        assert len(bar_lengths(axes)) == plots.MOST_BARS
        assert labels(axes)[-1] == "the 31 others"
        assert sum(bar_lengths(axes)) == pytest.approx(explanation.values.sum())

    def test_the_output_that_is_largest(self) -> None:
        explanation = explained((3,), 4, output_names=OUTPUTS)
        outputs = np.array([[0.0, 9.0, 1.0, 2.0], [0.0, 1.0, 2.0, 9.0]])
        mean, first, second = panels(result_of(explanation, outputs=outputs))
        assert first.get_title(loc="left").startswith("sample 0: dog\nf(x) = 9,")
        assert second.get_title(loc="left").startswith("sample 1: fox\n")
        np.testing.assert_allclose(sorted(bar_lengths(second)), np.sort(explanation.values[1, :, 3]))
        chosen = np.abs([explanation.values[0, :, 1], explanation.values[1, :, 3]]).mean(axis=0)
        np.testing.assert_allclose(bar_lengths(mean), np.sort(chosen)[::-1])
        assert "for each sample's largest output" in mean.get_title(loc="left")

    def test_several_inputs_share_the_bars(self) -> None:
        (axes,) = panels(result_of(explained((2,), rows=1), explained((1,), rows=1)))
        assert sorted(label.partition(" = ")[0] for label in labels(axes)) == ["in0[0]", "in0[1]", "in1"]

    def test_dollars_are_not_mathematics(self, tmp_path: Path) -> None:
        explanation = explained((2,), rows=1, feature_names=["US$ {", "x$^"], output_names="$\\frac")
        plot_result(tmp_path / "out.png", result_of(explanation))
        assert (tmp_path / "out.png").stat().st_size > 5000


class TestMaps:
    def test_an_image_and_its_largest_outputs(self) -> None:
        explanation = explained((1, 9, 8), 4, rows=8, output_names=OUTPUTS)
        result = result_of(explanation)
        axes: Any = np.array(panels(result)).reshape(plots.MOST_SAMPLES["image"], 1 + plots.MOST_OUTPUTS)
        order = np.argsort(-result.outputs[4])
        titles = [panel.get_title(loc="left").partition("\n")[0] for panel in axes[3]]
        assert titles == ["sample 4", *(OUTPUTS[k] for k in order[:3])]
        faint, heat = (image.get_array() for image in axes[3, 1].images)
        values = explanation.values[4, 0, :, :, order[0]]
        np.testing.assert_array_equal(heat[..., 0] == to_rgb(plots.POSITIVE)[0], values >= 0)
        assert np.corrcoef(heat[..., 3].ravel(), np.abs(values).ravel())[0, 1] > 0.99
        assert faint.min() >= 0.79
        assert np.abs(np.corrcoef(faint.ravel(), explanation.data[4].ravel())[0, 1]) > 0.99

    @pytest.mark.parametrize(
        ("shape", "axis"), [((3, 9, 10), 0), ((9, 10, 3), 2), ((5, 9, 10), 0), ((2, 3, 9, 10), (0, 1))]
    )
    def test_attributions_are_added_up_over_channels(self, shape: tuple[int, ...], axis: Any) -> None:
        explanation = explained(shape, rows=1)
        picture, heat = panels(result_of(explanation))
        colours = heat.images[1].get_array()
        expected = explanation.values[0].sum(axis=axis)
        assert colours is not None
        np.testing.assert_array_equal(colours[..., 0] == to_rgb(plots.POSITIVE)[0], expected >= 0)
        shown = picture.images[0].get_array()
        assert shown is not None
        assert shown.shape == ((9, 10, 3) if 3 in shape else (9, 10))

    def test_a_sequence_runs_to_the_right(self) -> None:
        names = ["open", "close", "volume"]
        explanation = explained((20, 3), feature_names=names, output_names="price")
        picture, heat, *_ = panels(result_of(explanation))
        assert labels(picture) == names
        colours = heat.images[1].get_array()
        assert colours is not None
        np.testing.assert_array_equal(colours[..., 0] == to_rgb(plots.POSITIVE)[0], explanation.values[0].T >= 0)
        assert heat.get_xlabel() == "position"
        assert heat.get_title(loc="left").startswith("price\n")

    def test_images_and_features_of_one_model(self) -> None:
        result = result_of(explained((3,), 2), explained((10, 10), 2))
        titles = [axes.get_title(loc="left") for axes in panels(result)]
        assert titles[0].startswith("mean |attribution|")
        assert [title for title in titles if title in ("sample 0", "sample 1")] == ["sample 0", "sample 1"]

    def test_outputs_that_differ_by_sample(self) -> None:
        explanation = explained((8, 8), 2, output_names=[["cat", "dog"], ["emu", "cat"]])
        titles = [axes.get_title(loc="left").partition("\n")[0] for axes in panels(result_of(explanation))]
        assert set(titles[:3]) == {"sample 0", "cat", "dog"}
        assert set(titles[3:]) == {"sample 1", "emu", "cat"}

    def test_nothing_but_zeros(self, tmp_path: Path) -> None:
        zeros = make_explanation(np.zeros((1, 8, 8, 1)), [0.0], np.zeros((1, 8, 8)))
        plot_result(tmp_path / "out.png", result_of(zeros))
        assert imread(tmp_path / "out.png").shape[2] == 4


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    plot_result(path, result_of(explained((4,))))
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_no_window_system_is_touched(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    plot_result(tmp_path / "out.png", result_of(explained((4,))))
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.gif", r"out\.gif: cannot be drawn: pictures are \.png, \.pdf, \.svg files"),
        ("gone/out.png", "cannot be written: there is no folder .*gone"),
    ],
)
def test_a_picture_that_cannot_be_drawn(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_picture(tmp_path / name)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"to draw: pip install 'deepshap-ir\[plot\]'"):
        check_picture(tmp_path / "out.png")


def test_numbers_beside_bars_stay_between_the_names_and_the_edge() -> None:
    data = np.ones((1, 5))
    values = np.array([[0.408, -0.0911, 0.0748, -0.00436, -0.0285]])
    outputs = values.sum(1)[:, None]
    panel = panels(result_of(make_explanation(values[..., None], np.zeros(1), data), outputs=outputs))[-1]
    frame = panel.get_window_extent()
    written = [text.get_window_extent() for text in panel.texts]
    assert len(written) == 5
    assert min(text.x0 for text in written) >= frame.x0
    assert max(text.x1 for text in written) <= frame.x1
