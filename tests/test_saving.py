"""Explainers in files: read without a framework, written whole or not at all, and nothing in them is pickled."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference.op_run import OpRun

from deepshap_ir import DeepExplainer, InputError, ModelError, archive
from deepshap_ir.extend import Context, Value
from tests.onnx_text import Array, data, parsed

BACKGROUND, SAMPLES = data(5, 4), data(3, 4, seed=1)
NET = "{ a = Sigmoid(x) b = Tanh(x) y = Mul(a, b) }"
TWO = "{ a = Mul(x, h) g = Tanh(a) y = Exp(g) }"
TWO_INPUTS = "(float[N,4] x, float[N,4] h) => (float[N,4] y)"
CLASSIFIER = "{ a = Tanh(x) y = Softmax <axis=-1> (a) }"
BOTH = {"x": BACKGROUND, "h": BACKGROUND[::-1]}


def of(body: str = NET, signature: str | None = None, background: Any = BACKGROUND, **settings: Any) -> DeepExplainer:
    model = parsed(body) if signature is None else parsed(body, signature)
    return DeepExplainer(model, background, **settings)


def again(e: DeepExplainer, **settings: Any) -> DeepExplainer:
    file = io.BytesIO()
    e.save(file)
    file.seek(0)
    return DeepExplainer.load(file, **settings)


def same(a: DeepExplainer, b: DeepExplainer, samples: Any = SAMPLES) -> None:
    one, other = a.shap_values(samples), b.shap_values(samples)
    assert isinstance(one, list) == isinstance(other, list)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(a.expected_value, b.expected_value)
    assert (a.input_names, a.output_name) == (b.input_names, b.output_name)
    assert [row.rule for row in a.rules()] == [row.rule for row in b.rules()]


SETTINGS: dict[str, tuple[Callable[[], DeepExplainer], Any]] = {
    "plain": (of, SAMPLES),
    "several inputs": (lambda: of(TWO, TWO_INPUTS, [BACKGROUND, BACKGROUND]), [SAMPLES, SAMPLES]),
    "a held input": (lambda: of(TWO, TWO_INPUTS, BOTH, hold=["h"]), {"x": SAMPLES, "h": SAMPLES}),
    "a held constant": (
        lambda: of("{ y = Mul(x, h) }", "(float[N,4] x, float[4] h) => (float[N,4] y)", hold={"h": data(4, seed=3)}),
        SAMPLES,
    ),
    "a value held inside": (lambda: of(hold=["a"]), SAMPLES),
    "some inputs": (lambda: of(TWO, TWO_INPUTS, BOTH, inputs=["h"]), {"x": SAMPLES, "h": SAMPLES}),
    "fed inside": (lambda: of(TWO, TWO_INPUTS, BACKGROUND, inputs=["a"]), SAMPLES),
    "a place inside": (lambda: of(at=["a", "b"]), SAMPLES),
    "another output": (lambda: of(output="b"), SAMPLES),
    "an output by index": (lambda: of(NET, "(float[N,4] x) => (float[N,4] a, float[N,4] y)", output=-1), SAMPLES),
    "logits": (lambda: of(CLASSIFIER, logits=True), SAMPLES),
    "double": (lambda: of(precision="float64"), SAMPLES),
    "a batch elsewhere": (
        lambda: of("{ y = Tanh(x) }", "(float[4,N] x) => (float[4,N] y)", BACKGROUND.T, batch_axes={"x": 1}),
        SAMPLES.T,
    ),
    "how it runs": (lambda: of(memory_limit="1MB", threads=1, progress=False, options={"max": "shap"}), SAMPLES),
    "providers": (lambda: of(providers=[("CPUExecutionProvider", {"use_arena": "0"})]), SAMPLES),
    "half": (lambda: of(NET, "(float16[N,4] x) => (float16[N,4] y)", BACKGROUND.astype(np.float16)), SAMPLES),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_read_is_what_was_written(name: str) -> None:
    make, samples = SETTINGS[name]
    e = make()
    found = again(e)
    same(e, found, samples)
    assert again(found).memory_limit == pytest.approx(e.memory_limit, rel=0.5)
    same(again(found), e, samples)


def test_files(tmp_path: Path) -> None:
    e, path = of(), tmp_path / "explainer.zip"
    for target in (path, str(path)):
        e.save(target)
        same(e, DeepExplainer.load(target))
    with path.open("rb") as opened:
        same(e, DeepExplainer.load(opened))
    assert os.listdir(tmp_path) == ["explainer.zip"]
    with zipfile.ZipFile(path) as parts:
        assert set(parts.namelist()) == {"explainer.json", "model.onnx", "weights.bin", "arrays.npz"}
        assert parts.testzip() is None


@pytest.mark.parametrize("form", ["path", "bytes", "bytearray", "file", "onnx_ir", "external data"])
def test_models_from_anywhere(form: str, tmp_path: Path) -> None:
    weight = data(4, 40, seed=5)
    model = parsed("{ h = MatMul(x, w) y = Tanh(h) }", "(float[N,4] x) => (float[N,40] y)")
    model.graph.initializer.append(numpy_helper.from_array(np.tile(weight, (1, 1)), "w"))
    content, path = model.SerializeToString(), tmp_path / "model.onnx"
    path.write_bytes(content)
    given: Any = {"path": path, "bytes": content, "bytearray": bytearray(content), "file": io.BytesIO(content)}.get(
        form
    )
    if form == "onnx_ir":
        given = pytest.importorskip("onnx_ir").from_proto(model)
    if form == "external data":
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
        given = path
    e = DeepExplainer(given, BACKGROUND)
    saved = pickle.dumps(e)
    for left in tmp_path.iterdir():
        left.unlink()
    same(e, pickle.loads(saved))


def test_large_and_typed_tensors_are_stored_apart() -> None:
    """Also those whose numbers are no raw bytes."""
    model = parsed(
        "{ h = MatMul(x, w) g = Add(h, b) s = Gather <axis=1> (g, i) y = Tanh(s) }",
        "(float[N,4] x) => (float[N,2] y)",
    )
    weight = data(4, 2000, seed=2)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(onnx.helper.make_tensor("b", 1, [2000], weight[0].tolist()))
    model.graph.initializer.append(onnx.helper.make_tensor("i", 7, [2], [3, 1999]))
    e = DeepExplainer(model, BACKGROUND)
    before = model.SerializeToString()
    content = archive.to_bytes(e._contents())
    assert model.SerializeToString() == before
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.getinfo("model.onnx").file_size < 1000
        assert opened.getinfo("weights.bin").file_size == 5 * 2000 * 4
    same(e, again(e))


def test_columns_are_matched_by_name_after_reading() -> None:
    pandas = pytest.importorskip("pandas")
    e = of(background=pandas.DataFrame(BACKGROUND, columns=["a", "b", 3, "d"]))
    found = again(e)
    frame = pandas.DataFrame(SAMPLES, columns=["a", "b", 3, "d"])
    np.testing.assert_array_equal(found.shap_values(frame[["d", "b", 3, "a"]]), e.shap_values(frame))
    assert list(again(found)(SAMPLES).feature_names) == ["a", "b", "3", "d"]
    with pytest.raises(InputError, match="missing column 3"):
        found.shap_values(frame.drop(columns=[3]))


@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy", "joblib"])
def test_copies(way: str, tmp_path: Path) -> None:
    joblib: Any = pytest.importorskip("joblib")
    e = of()
    joblib.dump(e, tmp_path / "explainer")
    ways: dict[str, Callable[[], DeepExplainer]] = {
        "pickle": lambda: pickle.loads(pickle.dumps(e)),
        "copy": lambda: copy.copy(e),
        "deepcopy": lambda: copy.deepcopy(e),
        "joblib": lambda: joblib.load(tmp_path / "explainer"),
    }
    same(e, ways[way]())


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_module_is_read_without_its_framework(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def read(self, x: Any) -> Any:  # which makes it no file
            return self.layer(x)

        def forward(self, x: Any) -> Any:
            return torch.tanh(self.read(x))

    module = Net().eval()
    e = DeepExplainer(module, torch.from_numpy(BACKGROUND))
    e.save(tmp_path / "e.zip")
    (tmp_path / "e.pickle").write_bytes(pickle.dumps(e))
    np.save(tmp_path / "samples.npy", SAMPLES)
    out = in_new_process(
        f"""
        import pickle, sys
        import numpy as np
        sys.modules["torch"] = sys.modules["tensorflow"] = sys.modules["keras"] = None
        from deepshap_ir import DeepExplainer
        samples = np.load({str(tmp_path / "samples.npy")!r})
        a = DeepExplainer.load({str(tmp_path / "e.zip")!r}).shap_values(samples)
        b = pickle.load(open({str(tmp_path / "e.pickle")!r}, "rb")).shap_values(samples)
        assert np.array_equal(a, b)
        print(a.tolist())
        """
    )
    np.testing.assert_array_equal(json.loads(out), e.shap_values(SAMPLES))


# --- what is not in the file


def secant(ctx: Context, m: Any) -> Value:
    value: Value = m[0] * (ctx.delta_y() / (ctx.delta_x() + 1e-20))
    return value


def shifted(sample: list[Array]) -> Array:
    return BACKGROUND + sample[0]


def test_rules_are_given_again() -> None:
    e = of(rules={"Tanh": secant, "Sigmoid": secant})
    with pytest.raises(InputError, match=r"rules of its own, for 'Sigmoid', 'Tanh'; .* give them again: rules="):
        again(e)
    same(e, again(e, rules={"Tanh": secant, "Sigmoid": secant}))
    same(e, pickle.loads(pickle.dumps(e)))


class Halved(OpRun):
    """``x / 2``."""

    op_domain = "lab"

    def _run(self, x: Array) -> tuple[Array]:
        return ((x / 2).astype(x.dtype),)


def half(ctx: Context, m: Any) -> Value:
    value: Value = m[0] * 0.5
    return value


def test_kernels_are_given_again() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "lab" : 1]> g (float[N,4] x) => (float[N,4] y) '
        "{ h = lab.Halved(x) y = Tanh(h) }"
    )
    settings: dict[str, Any] = {"rules": {"lab::Halved": half}, "custom_ops": [Halved]}
    e = DeepExplainer(model, BACKGROUND, backend="reference", **settings)
    with pytest.raises(InputError, match=r"kernels of its own, 'Halved', .* give them again: custom_ops="):
        again(e, rules=settings["rules"])
    same(e, again(e, **settings))


def test_a_function_for_the_references_is_given_again() -> None:
    e = of(background=shifted)
    with pytest.raises(InputError, match="the references are a function: explain some samples first"):
        e.save(io.BytesIO())
    e.shap_values(SAMPLES)
    with pytest.raises(InputError, match=r"the references of the explainer were a function, .* data="):
        again(e)
    np.testing.assert_array_equal(again(e, data=shifted).shap_values(SAMPLES), e.shap_values(SAMPLES))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(e)).shap_values(SAMPLES), e.shap_values(SAMPLES))
    plain = again(e, data=BACKGROUND)
    np.testing.assert_array_equal(plain.shap_values(SAMPLES), of().shap_values(SAMPLES))


def test_how_it_runs_can_be_changed() -> None:
    e = of(memory_limit="1MB")
    found = again(e, backend="reference", memory_limit="2MB", data=BACKGROUND[:2])
    assert found.memory_limit == 2_000_000
    expected = of(background=BACKGROUND[:2], backend="reference").shap_values(SAMPLES)
    np.testing.assert_array_equal(found.shap_values(SAMPLES), expected)
    with pytest.raises(
        InputError, match=r"load: 'output' is part of what was saved, .* can be changed is 'data', 'rules'"
    ):
        again(e, output="a")


def test_a_setting_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    e = of(providers=[("CPUExecutionProvider", {"key": object()})])
    with pytest.raises(InputError, match=r"save: settings\['providers'\]\['key'\] has <object .*, of type object"):
        e.save(tmp_path / "e.zip")
    assert os.listdir(tmp_path) == []


# --- files that are something else


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "e.zip"
    with pytest.raises(ModelError, match=r"e\.zip': no such file"):
        DeepExplainer.load(path)
    path.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"e\.zip' is no explainer that DeepExplainer\.save wrote, or it is truncated"):
        DeepExplainer.load(path)
    np.savez(path.with_suffix(".npz"), a=SAMPLES)
    with pytest.raises(ModelError, match=r"no explainer that DeepExplainer\.save wrote, .*: a zip archive of other"):
        DeepExplainer.load(path.with_suffix(".npz"))
    with pytest.raises(ModelError, match="cannot be read"):
        DeepExplainer.load(tmp_path)


def rewritten(change: Callable[[str, bytes], bytes]) -> io.BytesIO:
    """A file of `of()`, each part changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive.to_bytes(of()._contents()))) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    file.seek(0)
    return file


def test_a_newer_format_is_refused() -> None:
    def newer(name: str, content: bytes) -> bytes:
        if name != "explainer.json":
            return content
        return json.dumps(json.loads(content) | {"format": 2, "written_by": "deepshap-ir 9.0"}).encode()

    with pytest.raises(ModelError, match=r"has format 2, written by deepshap-ir 9\.0; this is .* reads format 1: use"):
        DeepExplainer.load(rewritten(newer))


@pytest.mark.parametrize("part", ["explainer.json", "model.onnx", "arrays.npz"])
def test_damaged_parts(part: str) -> None:
    with pytest.raises(ModelError, match=r"damaged|not an ONNX model"):
        DeepExplainer.load(rewritten(lambda name, content: content[: len(content) // 2] if name == part else content))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_files(share: float) -> None:
    content = archive.to_bytes(of()._contents())
    with pytest.raises(ModelError, match="truncated or damaged"):
        DeepExplainer.load(io.BytesIO(content[: int(share * len(content))]))


def test_objects_are_never_unpickled() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.abort, ()

    def evil(name: str, content: bytes) -> bytes:
        if name != "arrays.npz":
            return content
        file = io.BytesIO()
        np.savez(file, np.array([Evil()], dtype=object))
        return file.getvalue()

    with pytest.raises(ModelError, match="allow_pickle=False"):
        DeepExplainer.load(rewritten(evil))


# --- whole or not at all


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.zip"
    of().save(path)
    before = path.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "_move_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        of(output="a").save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["e.zip"]
    with pytest.raises(InputError, match="a path or a binary file open for writing is needed, not int"):
        of().save(3)  # type: ignore[arg-type]


def test_a_model_that_changed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(parsed(NET).SerializeToString())
    e = DeepExplainer(path, BACKGROUND)
    path.write_bytes(parsed("{ y = Tanh(x) }").SerializeToString())
    with pytest.raises(ModelError, match=r"model\.onnx' has changed since the explainer was made of it"):
        e.save(tmp_path / "e.zip")
    model = parsed(NET)
    e = DeepExplainer(model, BACKGROUND)
    expected = e.shap_values(SAMPLES)
    model.graph.node[0].op_type = "Exp"
    np.testing.assert_array_equal(again(e).shap_values(SAMPLES), expected)
