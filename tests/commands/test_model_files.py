"""`deepshap convert`, and the other commands on files of frameworks."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path

import joblib  # type: ignore[import-untyped]
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deepshap_ir import DeepExplainer, MissingDependencyError, ModelError
from deepshap_ir.converters import torch_files
from tests.commands.test_cli import TABULAR, deepshap, save

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()


@pytest.fixture
def files(tmp_path: Path, module: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the module in two forms, and rows."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), "scripted.pt")
        batch = torch.export.Dim("batch")
        torch.export.save(
            torch.export.export(module, (torch.ones(3, 4),), dynamic_shapes=({0: batch},)), "exported.pt2"
        )
    np.save("rows.npy", ROWS)
    np.savez("rows.npz", ROWS)
    return tmp_path


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", ["scripted.pt", "exported.pt2"])
@pytest.mark.parametrize("more", [("-b", "rows.npy"), ("-b", "rows.npz"), ("--shape", "x=1,4")])
def test_files_of_torch_become_onnx(name: str, more: tuple[str, ...], module: nn.Sequential) -> None:
    result = deepshap("convert", name, "-o", "out.onnx", *more)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("out.onnx: ")
    phi = DeepExplainer("out.onnx", ROWS).shap_values(ROWS[:2])
    np.testing.assert_allclose(phi, DeepExplainer(module, ROWS).shap_values(ROWS[:2]), atol=1e-6)
    assert {path.name for path in Path().iterdir()} == {
        "out.onnx",
        "scripted.pt",
        "exported.pt2",
        "rows.npy",
        "rows.npz",
    }


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", ["scripted.pt", "exported.pt2"])
def test_other_commands_take_them(name: str, module: nn.Sequential) -> None:
    result = deepshap("explain", name, "-b", "rows.npy", "-s", "rows.npy", "-o", "out.npz", "--output", "top:1")
    assert result.exit_code == 0, result.output
    with np.load("out.npz") as found:
        values, indexes = found["values"], found["output_indexes"]
    expected, ranks = DeepExplainer(module, ROWS).shap_values(ROWS, ranked_outputs=1)
    np.testing.assert_allclose(values.reshape(expected.shape), expected, atol=1e-6)
    np.testing.assert_array_equal(indexes.reshape(ranks.shape), ranks)
    result = deepshap("inspect", name, "--shape", "x=1,4", "--json")
    assert json.loads(result.stdout)["supported"], result.output


def test_onnx_passes_through_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(TABULAR)
    assert deepshap("convert", "model.onnx", "-o", "copy.onnx").exit_code == 0
    assert onnx.load("copy.onnx").graph == onnx.load("model.onnx").graph
    Path("broken.onnx").write_bytes(Path("model.onnx").read_bytes()[:-30])
    result = deepshap("convert", "broken.onnx", "-o", "copy2.onnx")
    assert result.exit_code == 2
    assert not Path("copy2.onnx").exists()


@pytest.mark.usefixtures("files")
def test_files_that_need_unpickling_are_refused(module: nn.Sequential) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("unpickled",)

    Path("model.pkl").write_bytes(pickle.dumps(Harmful()))
    joblib.dump(Harmful(), "model.joblib")
    torch.save(Harmful(), "plain.pt")
    torch.save(module.state_dict(), "weights.pth")
    torch.save(module.state_dict(), "old.pt", _use_new_zipfile_serialization=False)
    for name, remedy in (
        ("model.pkl", "load it in Python and explain the object: DeepExplainer(model, background)"),
        ("model.joblib", "load it in Python and explain the object: DeepExplainer(model, background)"),
        ("plain.pt", "write it with torch.jit.save or torch.export.save"),
        ("weights.pth", "write it with torch.jit.save or torch.export.save"),
        ("old.pt", "write it with torch.jit.save or torch.export.save"),
    ):
        for arguments in (("convert", "-o", "out.onnx"), ("inspect",)):
            result = deepshap(arguments[0], name, *arguments[1:])
            assert result.exit_code == 2
            assert f"'{name}' is a pickle: reading it runs whatever code is in it, so it is not read" in result.stderr
            assert remedy in result.stderr
            assert "unpickled" not in result.output
    assert not Path("out.onnx").exists()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"use_pickle": false', '"use_pickle": true', "has tensors or objects in a pickle"),
        ('"path_name": "weight_0"', '"path_name": "custom_obj_0"', "has tensors or objects in a pickle"),
        ('"expr_str": "', '"expr_str": "__import__(\'os\').getcwd() + ', "is no expression of dimensions"),
    ],
)
def test_an_archive_with_code_in_it_is_refused(old: str, new: str, message: str) -> None:
    with zipfile.ZipFile("exported.pt2") as whole, zipfile.ZipFile("changed.pt2", "w") as changed:
        contents = {name: whole.read(name) for name in whole.namelist()}
        assert any(old.encode() in content for content in contents.values())
        for name, content in contents.items():
            changed.writestr(name, content.replace(old.encode(), new.encode()))
    with pytest.raises(ModelError, match=message):
        torch_files.load("changed.pt2")


@pytest.mark.usefixtures("files")
def test_what_is_missing() -> None:
    for arguments, message in (
        (
            ("scripted.pt",),
            "the file does not say of which shape: give --background FILE, or --shape NAME=1,3,224,224 for every input",
        ),
        (("nowhere.pt", "--shape", "x=1,4"), "'nowhere.pt': there is no such file"),
        (("scripted.pt", "--shape", "x=1,5"), "fails on rows of the background"),
        (("scripted.pt", "--shape", "x=1,4", "--output", "logits"), "no value 'logits'"),
        (("scripted.pt", "--shape", "4"), "write NAME=1,3,224,224"),
    ):
        result = deepshap("convert", *arguments, "-o", "out.onnx")
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    result = deepshap("convert", "scripted.pt", "--shape", "x=1,4", "-o", "no/folder/out.onnx")
    assert "there is no folder" in result.stderr
    Path("cut.pt").write_bytes(Path("scripted.pt").read_bytes()[:-200])
    assert "is a pickle" in deepshap("inspect", "cut.pt", "--shape", "x=1,4").stderr


@pytest.mark.usefixtures("files")
def test_a_program_of_one_batch_size(module: nn.Sequential) -> None:
    torch.export.save(torch.export.export(module, (torch.ones(2, 4),)), "fixed.pt2")
    result = deepshap("explain", "fixed.pt2", "-b", "rows.npy", "-s", "rows.npy", "-o", "out.npz")
    assert result.exit_code == 2
    assert "write the program with a batch of any size, torch.export.export(..., dynamic_shapes=" in result.stderr


@pytest.mark.usefixtures("files")
def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deepshap-ir\[torch\]'"):
        torch_files.load("scripted.pt")


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of two inputs, the second of whole numbers, in the three forms that Keras writes, and its rows."""
    from tests.converters.keras_models import rows  # before Keras: it silences TensorFlow

    import keras  # isort: skip

    folder = tmp_path_factory.mktemp("keras")
    keras.utils.set_random_seed(0)
    x, ids = keras.Input((4,), name="x"), keras.Input((2,), name="ids", dtype="int32")
    words = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(ids))
    y = keras.layers.Dense(6, activation="relu")(keras.layers.Concatenate()([x, words]))
    model = keras.Model([x, ids], keras.layers.Dense(2)(y))
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.export(folder / "saved", verbose=False)
    np.savez(folder / "rows.npz", x=rows(4), ids=np.arange(12).reshape(6, 2) % 5)
    return folder


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved"])
def test_files_of_keras(name: str, keras_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, rows = str(keras_files / name), str(keras_files / "rows.npz")
    result = deepshap("convert", file, "-o", "out.onnx")  # the file says what its inputs are
    assert result.exit_code == 0, result.output
    found = []
    for model in (file, "out.onnx"):
        result = deepshap("explain", model, "-b", rows, "-s", rows, "-o", "phi.npz", "--input", "x")
        assert result.exit_code == 0, result.output
        with np.load("phi.npz") as archive:
            found.append(archive["values"])
    assert found[0].shape == (6, 4, 2)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    if name == "saved":
        return
    result = deepshap("inspect", file, "--json")
    assert list(json.loads(result.stdout)["inputs"]) == ["x", "ids"], result.output
    result = deepshap("inspect", file, "--shape", "y=1,4")
    assert "--shape: the model has no input 'y'. There are: 'x', 'ids'." in result.stderr


def test_a_keras_file_with_free_dimensions(tmp_path: Path) -> None:
    from tests.converters import keras_models  # noqa: F401

    import keras  # isort: skip

    path = tmp_path / "series.keras"
    series = keras.Input((None, 2), name="series")
    keras.Model(series, keras.layers.GlobalAveragePooling1D()(series)).save(path)
    result = deepshap("inspect", str(path))
    assert result.exit_code == 2
    assert (
        "the input 'series' has free dimensions, (None, 2): give --background FILE, or --shape NAME=" in result.stderr
    )
    assert deepshap("inspect", str(path), "--shape", "series=1,7,2").exit_code == 0
