"""Which converter takes a model, how others are found, and what is compared."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer
from deepshap_ir.converters import compare, registry
from deepshap_ir.converters.registry import BUILT_IN, Conversion, Settings, converters, find
from deepshap_ir.errors import InputError, ModelError
from tests.onnx_text import Array, data, parsed

ROOT = Path(__file__).parent.parent.parent
DOUBLE = parsed("<float two = {2}> { y = Mul(x, two) }")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """The entry points that packages have in the group, to be filled."""
    entries: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    converters.cache_clear()
    yield entries
    converters.cache_clear()


def test_the_entry_points_of_the_distribution_are_the_built_in_converters() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["deepshap_ir.converters"] == BUILT_IN


def test_without_metadata_the_built_in_converters_are_there(installed: list[EntryPoint]) -> None:
    assert [vars(converter)["__name__"] for converter in converters()] == list(BUILT_IN.values())


def test_a_converter_of_another_package_is_asked_first(
    installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(model: Any, background: Any, settings: Settings) -> Conversion:
        return Conversion(DOUBLE, output=settings.output, rows={"x": np.asarray(background)}, run=run)

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": factor * arrays["x"]}

    mine = SimpleNamespace(ACCEPTS="the text 'double'", takes=lambda model: model == "double", convert=convert)
    monkeypatch.setitem(sys.modules, "a_package", mine)
    installed.append(EntryPoint("double", "a_package", registry.__name__))
    factor = 2.0
    background, samples = data(3, 4), data(2, 4, seed=1)
    phi = DeepExplainer("double", background).shap_values(samples)
    own = 2.0 * (samples - background.mean(0))
    np.testing.assert_allclose(phi, own[:, :, None] * np.eye(4), atol=1e-6)
    with pytest.raises(InputError, match="belong to TensorFlow 1 graphs, not to the text 'double'"):
        DeepExplainer("double", background, learning_phase_flags=[])
    factor = 3.0
    with pytest.raises(
        ModelError, match=r"'y' at \[0, \d\] is (\S+) in ONNX and (\S+) in the original on 1 background"
    ):
        DeepExplainer("double", background)


def test_a_broken_converter_is_named(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("broken", "no_such_module_anywhere", "deepshap_ir.converters"))
    with pytest.raises(ModelError, match="converter 'no_such_module_anywhere' of a package cannot be loaded"):
        find("model.onnx")


@pytest.mark.parametrize("model", [3, None, object(), {"a": 1}, ("a", "b", "c"), np.ones(3)])
def test_an_unknown_object_is_told_what_is_accepted(model: Any) -> None:
    with pytest.raises(InputError, match=r"a model of type .* cannot be explained; give one of\n.*torch[^\0]*onnx_ir"):
        DeepExplainer(model, data(3, 4))


def test_onnx_models_need_no_framework() -> None:
    script = (
        "import sys, numpy as np, onnx.parser\n"
        "from deepshap_ir import DeepExplainer\n"
        "text = '<ir_version: 8, opset_import: [\"\" : 18]> g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }'\n"
        "DeepExplainer(onnx.parser.parse_model(text), np.ones((2, 2), np.float32))\n"
        "print('torch' in sys.modules, 'tensorflow' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "False"]


def test_a_session_belongs_to_tensorflow() -> None:
    with pytest.raises(InputError, match="session= and learning_phase_flags= belong to TensorFlow 1 graphs"):
        DeepExplainer(DOUBLE, data(3, 4), session=object())


def test_rows_to_compare_are_three_and_differ() -> None:
    arrays = {"x": data(1, 4), "t": np.array([[3, 4]]), "shared": data(5)}
    found = compare.some_rows(arrays, {"x": 0, "t": 0, "shared": None})
    assert [found[name].shape for name in arrays] == [(3, 4), (3, 2), (5,)]
    assert len(np.unique(found["x"], axis=0)) == 3
    assert (found["t"] == [3, 4]).all()
    many = data(7, 2)
    assert np.array_equal(compare.some_rows({"x": many}, {"x": 0})["x"], many[[0, 3, 6]])


def test_a_model_frozen_at_one_batch_size_is_seen() -> None:
    frozen = parsed("<int64[2] s = {2, 4}> { y = Reshape(x, s) }")
    with pytest.raises(ModelError, match="the converted model does not run on"):
        compare.compare(frozen, lambda arrays: {"y": arrays["x"]}, {"x": data(3, 4)}, {"x": 0})
    mixed = parsed("{ m = ReduceMean <keepdims = 1> (x) \n y = Sub(x, m) }")
    alone = {"y": 0}
    with pytest.raises(ModelError, match="in the original on 3 background rows"):
        compare.compare(
            mixed,
            lambda arrays: {"y": arrays["x"] - (arrays["x"].mean() if len(arrays["x"]) == 1 else alone["y"])},
            {"x": data(3, 4)},
            {"x": 0},
        )


@pytest.mark.parametrize("size", [1e-36, 1e-40])
def test_what_is_flushed_to_zero_is_no_other_function(size: float) -> None:
    same = parsed("{ y = Identity(x) }")
    small = {"x": (1 + data(3, 4) ** 2) * np.float32(size)}

    def flushed(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": arrays["x"] * 0}

    if size < 1e-38:
        compare.compare(same, flushed, small, {"x": 0})
    else:
        with pytest.raises(ModelError, match="the converted model is another function"):
            compare.compare(same, flushed, small, {"x": 0})


def test_a_model_for_one_row_is_compared_row_by_row() -> None:
    one = parsed("<int64[2] s = {1, 4}> { y = Reshape(x, s) }", "(float[1,4] x) => (float[1,4] y)")
    calls = []

    def original(arrays: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(len(arrays["x"]))
        return {"y": arrays["x"]}

    compare.compare(one, original, {"x": data(3, 4)}, {"x": 0})
    assert calls == [1, 1, 1]


def test_an_argument_that_is_a_constant_stays_what_it_was() -> None:
    conversion = Conversion(DOUBLE, constants={"scale": 2})
    assert conversion.data({"x": 1, "scale": 2}) == {"x": 1}
    with pytest.raises(InputError, match="samples: 'scale' is 3, but 2 in the background"):
        conversion.data({"x": 1, "scale": 3}, "samples")
