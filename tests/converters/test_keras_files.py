"""Keras models in files, and an LSTM over windows of a series of prices, from training to time steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.cbook import get_sample_data

from deepshap_ir import DeepExplainer, ModelError
from tests.converters.keras_models import Array, N, gap, rows

import keras  # isort: skip  # after the variable that silences TensorFlow
import tensorflow as tf  # isort: skip
from keras import layers  # isort: skip

WINDOW = 12


def windows() -> Array:
    """Windows of days: closing price and volume of a share, 2004 to 2008, a sample of matplotlib; ``[N, 13, 2]``."""
    days: Any = get_sample_data("goog.npz")
    days = days["price_data"]
    series = np.stack([days["adj_close"] / days["adj_close"].max(), days["volume"] / days["volume"].max()], -1)
    places = np.arange(0, len(series) - WINDOW, 4)[:, None] + np.arange(WINDOW + 1)
    return np.asarray(series[places], np.float32)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Array, Path]:
    """A regressor of the next day's price, its windows, and the folder where it is saved."""
    keras.utils.set_random_seed(0)
    data = windows()
    regressor = keras.Sequential([keras.Input((WINDOW, 2)), layers.LSTM(8), layers.Dense(4, "relu"), layers.Dense(1)])
    regressor.compile("adam", "mse")
    regressor.fit(data[:, :WINDOW], data[:, WINDOW, 0], epochs=3, batch_size=32, verbose=0)
    folder = tmp_path_factory.mktemp("regressor")
    regressor.save(folder / "lstm_stock.keras")
    regressor.save(folder / "lstm_stock.h5")
    return regressor, data[:, :WINDOW], folder


def test_an_lstm_of_prices_is_explained_per_time_step(story: tuple[Any, Array, Path]) -> None:
    trained, data, folder = story
    random_ind = np.random.default_rng(0).choice(200, 30, replace=False)
    test = data[-N:]
    expected = DeepExplainer(trained, data[random_ind]).shap_values(test)
    assert expected.shape == (N, WINDOW, 2, 1)
    assert gap(expected, trained, test, data[random_ind]) < 1e-5
    assert (np.abs(expected).max((0, 3)) > 0.0).all()
    for name in ("lstm_stock.keras", "lstm_stock.h5"):
        regressor = keras.models.load_model(folder / name, compile=False)
        explainer = DeepExplainer((regressor.layers[0].input, regressor.layers[-1].output), data[random_ind])
        phi = explainer.shap_values(test)
        assert gap(phi, regressor, test, data[random_ind]) < 1e-5
        np.testing.assert_allclose(phi, expected, atol=1e-6)
        np.testing.assert_allclose(DeepExplainer(folder / name, data[random_ind]).shap_values(test), phi, atol=1e-6)
    hidden = keras.Model(regressor.inputs, regressor.layers[0].output)
    middle = DeepExplainer((regressor.layers[0].input, regressor.layers[0].output), data[random_ind])
    assert gap(middle.shap_values(test), hidden, test, data[random_ind]) < 1e-5


def test_saved_models(story: tuple[Any, Array, Path]) -> None:
    trained, data, folder = story
    background, test = data[:20], data[-N:]
    expected = DeepExplainer(trained, background).shap_values(test)
    trained.export(folder / "exported", verbose=False)
    phi = DeepExplainer(folder / "exported", background).shap_values(test)
    np.testing.assert_allclose(phi, expected, atol=1e-6)
    loaded = tf.saved_model.load(str(folder / "exported"))
    named = DeepExplainer(loaded.signatures["serving_default"], background)
    np.testing.assert_allclose(named.shap_values(test), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_files_is_not_run(suffix: str, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x * 2.0)])
    path = tmp_path / f"model{suffix}"
    model.save(path)
    with pytest.raises(ModelError, match=r"holds Python code \(a Lambda layer\), which is not run: if you trust"):
        DeepExplainer(path, rows(3))
    assert gap(DeepExplainer(model, rows(3)).shap_values(rows(3, n=N)), model, rows(3, n=N), rows(3)) < 1e-5


def test_files_that_hold_no_model(story: tuple[Any, Array, Path], tmp_path: Path) -> None:
    trained, data, folder = story
    trained.save_weights(tmp_path / "some.weights.h5")
    for path, message in (
        (tmp_path / "some.weights.h5", "holds weights alone: build the model, load them with"),
        (tmp_path / "none.keras", "there is no such file"),
        (tmp_path / "text.keras", "is no file of a Keras model"),
        (tmp_path / "text.h5", "is no file of a Keras model"),
        (tmp_path / "cut.keras", "is no file of a Keras model"),
    ):
        if "text" in path.name:
            path.write_text("text")
        if "cut" in path.name:
            path.write_bytes((folder / "lstm_stock.keras").read_bytes()[:3000])
        with pytest.raises(ModelError, match=message):
            DeepExplainer(path, data)
    broken = tmp_path / "folder"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"text")
    with pytest.raises(ModelError, match="TensorFlow cannot load the SavedModel"):
        DeepExplainer(broken, data)


def test_classes_of_the_users_own_are_named(tmp_path: Path) -> None:
    class Own(layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return 2.0 * x

    keras.Sequential([keras.Input((3,)), Own()]).save(tmp_path / "own.keras")
    with pytest.raises(ModelError, match=r"cannot be loaded \(keras: .*Own.*custom_objects= and explain the model"):
        DeepExplainer(tmp_path / "own.keras", rows(3))
