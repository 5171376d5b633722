"""Attributions of Keras models: sums, PyTorch's numbers for the same weights, and what scripts for shap rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepshap_ir import DeepExplainer, InputError
from tests.converters.keras_models import Array, B, N, gap, rows

import keras  # isort: skip  # after the variable that silences TensorFlow
import torch  # isort: skip
from keras import layers as k  # isort: skip
from torch import nn  # isort: skip


def stack(shape: tuple[int, ...], *made: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *made])


def shared(shape: tuple[int, ...], function: Callable[[Any], Any]) -> Any:
    """A functional model with one number at its end."""
    x = keras.Input(shape)
    return keras.Model(x, k.Dense(1)(k.Flatten()(function(x))))


def reused(x: Any) -> Any:
    relu = k.ReLU()
    return relu(k.Dense(5)(relu(k.Dense(5)(x))))


def gate(x: Any) -> Any:
    return keras.ops.sigmoid(k.Dense(4)(x)) * keras.ops.tanh(k.Dense(4)(x))


def log_sum_exp(x: Any) -> Any:
    return keras.ops.log(keras.ops.exp(k.Dense(3)(x)) + keras.ops.exp(k.Dense(3)(x)))


def encoder(x: Any) -> Any:
    x = k.LayerNormalization()(x + k.MultiHeadAttention(2, 2)(x, x))
    return k.LayerNormalization()(x + k.Dense(4)(k.Dense(6, activation="gelu")(x)))


IMAGE, SERIES = (6, 6, 2), (5, 4)

WRONG = {
    "functional relu": ((5,), lambda x: keras.ops.relu(k.Dense(6)(x))),
    "one ReLU twice": ((5,), reused),
    "conv, relu, max pooling": (IMAGE, lambda x: k.MaxPooling2D()(k.Conv2D(3, 3, activation="relu")(x))),
    "overlapping max pooling": (IMAGE, lambda x: k.MaxPooling2D(3, strides=1)(k.Conv2D(2, 2)(x))),
    "adaptive max pooling": (IMAGE, lambda x: k.AdaptiveMaxPooling2D(4)(x)),
    "global max pooling": (IMAGE, lambda x: k.GlobalMaxPooling2D()(k.Conv2D(3, 3)(x))),
    "GELU": ((5,), lambda x: k.Dense(6, activation="gelu")(x)),
    "SiLU": ((5,), lambda x: k.Dense(6, activation="silu")(x)),
    "PReLU": ((5,), lambda x: k.PReLU(alpha_initializer="random_normal")(x)),
    "LayerNormalization": ((5,), lambda x: k.LayerNormalization()(k.Dense(6)(x))),
    "softmax inside": ((5,), lambda x: k.Dense(4)(keras.ops.softmax(k.Dense(6)(x)))),
    "gate": ((5,), gate),
    "LSTM": (SERIES, lambda x: k.LSTM(4)(x)),
    "GRU": (SERIES, lambda x: k.GRU(4, return_sequences=True)(x)),
    "Bidirectional": (SERIES, lambda x: k.Bidirectional(k.SimpleRNN(3))(x)),
    "log of exponentials": ((5,), log_sum_exp),
    "encoder": (SERIES, encoder),
    "Dot": (SERIES, lambda x: k.Dot(2)([k.Dense(3)(x), k.Dense(3)(x)])),
    "depthwise and separable": (IMAGE, lambda x: k.SeparableConv2D(3, 2)(k.DepthwiseConv2D(2, activation="relu")(x))),
    "transposed": (IMAGE, lambda x: keras.ops.relu(k.Conv2DTranspose(2, 3, strides=2)(x))),
    "grouped": (IMAGE, lambda x: k.Conv2D(4, 3, groups=2, activation="softsign")(x)),
    "square root and sine": ((5,), lambda x: keras.ops.sqrt(keras.ops.abs(x) + 1.0) + keras.ops.sin(x)),
    "log of one more": ((5,), lambda x: keras.ops.log1p(keras.ops.relu(k.Dense(6)(x)))),
}


@pytest.mark.parametrize("name", WRONG)
def test_models_that_shap_gets_wrong_sum_to_delta(name: str) -> None:
    keras.utils.set_random_seed(0)
    shape, function = WRONG[name]
    model = shared(shape, function)
    background, samples = rows(*shape), rows(*shape, n=N, seed=1)
    phi = DeepExplainer(model, background).shap_values(samples)
    assert phi.shape == (N, *shape, 1)
    assert gap(phi, model, samples, background) < 1e-5


def test_a_choice_stays_one() -> None:
    """A sum of both ways, times 0 and 1, is not the same function: a score of -1e30 drowns what it is added to."""
    model = shared((5,), lambda x: keras.ops.where(x[:, :1] > 0, k.Dense(4)(x), k.Dense(4)(x)))
    explainer = DeepExplainer(model, rows(5))
    operators = [row.operator for row in explainer.rules()]
    assert "Where" in operators
    assert not {"Not", "Cast"}.intersection(operators)
    samples = rows(5, n=N, seed=1)
    assert gap(explainer.shap_values(samples), model, samples, rows(5)) < 1e-5


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def dense(weight: Array, bias: Array) -> nn.Linear:
    layer = nn.Linear(*weight.shape)
    layer.load_state_dict({"weight": tensor(weight.T), "bias": tensor(bias)})
    return layer


class Last(nn.Module):
    """The last step of an LSTM with Keras's weights, and a linear layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        kernel, recurrent, bias, weight, offset = model.get_weights()
        self.lstm = nn.LSTM(kernel.shape[0], recurrent.shape[0], batch_first=True)
        weights = {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent.T, "bias_ih_l0": bias, "bias_hh_l0": 0.0 * bias}
        self.lstm.load_state_dict({name: tensor(array) for name, array in weights.items()})
        self.out = dense(weight, offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.lstm(x)[0][:, -1])
        return y


def test_the_same_weights_give_pytorchs_numbers() -> None:
    keras.utils.set_random_seed(0)
    mlp = stack((5,), k.Dense(8, "relu"), k.Dense(6, "tanh"), k.Dense(2, "softmax"))
    w = mlp.get_weights()
    inner = (dense(*w[:2]), nn.ReLU(), dense(*w[2:4]), nn.Tanh(), dense(*w[4:]), nn.Softmax(-1))
    series = stack((6, 3), k.LSTM(4), k.Dense(2))
    image = stack((6, 6, 2), k.Conv2D(3, 3, activation="relu"), k.MaxPooling2D(), k.Flatten(), k.Dense(2))
    kernel, bias, weight, offset = image.get_weights()
    conv = nn.Conv2d(2, 3, 3)
    conv.load_state_dict({"weight": tensor(kernel.transpose(3, 2, 0, 1)), "bias": tensor(bias)})
    weight = weight.reshape(2, 2, 3, 2).transpose(2, 0, 1, 3).reshape(12, 2)  # channels lead when torch flattens
    cnn = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), dense(weight, offset))
    for model, module, shape, last in (
        (mlp, nn.Sequential(*inner), (5,), False),
        (series, Last(series), (6, 3), False),
        (image, cnn, (6, 6, 2), True),
    ):
        background, samples = rows(*shape), rows(*shape, n=N, seed=1)
        mine = DeepExplainer(model, background).shap_values(samples)
        turned = [np.ascontiguousarray(np.moveaxis(a, -1, 1)) if last else a for a in (background, samples)]
        theirs = DeepExplainer(module, turned[0]).shap_values(turned[1])
        theirs = np.moveaxis(theirs, 1, -2) if last else theirs
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


# what shap tests of its own explainer with TensorFlow, on models of our own


def test_a_linear_model_has_its_coefficients() -> None:
    keras.utils.set_random_seed(0)
    model = stack((4,), k.Dense(1))
    background, samples = rows(4, n=50), rows(4, n=N, seed=1)
    explainer = DeepExplainer(model, background)
    expected = model.get_weights()[0][:, 0] * (samples - background.mean(0))
    np.testing.assert_allclose(explainer.shap_values(samples)[..., 0], expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(explainer.expected_value), np.asarray(model(background)).mean(0), atol=1e-6)


def test_nested_models_and_several_inputs_with_one_disconnected() -> None:
    keras.utils.set_random_seed(0)
    a, b, c = keras.Input((4,)), keras.Input((3,)), keras.Input((2,))
    left = keras.Model(a, k.Dense(3, activation="relu")(a))
    nested = stack((3,), stack((3,), k.Dense(3, activation="tanh")), k.Dense(3))
    model = keras.Model([a, b, c], k.Dense(2)(k.Concatenate()([left(a), nested(b), nested(left(a))])))
    background = [rows(4), rows(3), rows(2)]
    samples = [rows(4, n=N, seed=1), rows(3, n=N, seed=2), rows(2, n=N, seed=3)]
    phi = DeepExplainer(model, background).shap_values(samples)
    assert gap(phi, model, samples, background) < 1e-5
    assert not phi[2].any()


@pytest.mark.parametrize(
    "activation", ["elu", "exponential", "hard_sigmoid", "linear", "relu", "selu", "sigmoid", "softmax", "softplus"]
)
def test_activations(activation: str) -> None:
    keras.utils.set_random_seed(0)
    model = stack((4,), k.Dense(5, activation=activation), k.Dense(2))
    phi = DeepExplainer(model, rows(4)).shap_values(rows(4, n=N, seed=1))
    assert gap(phi, model, rows(4, n=N, seed=1), rows(4)) < 1e-5


def test_a_network_of_images_with_dropout_in_training_and_ranked_outputs() -> None:
    keras.utils.set_random_seed(0)
    model = stack(
        (12, 12, 1),
        k.Conv2D(4, 3, activation="relu"),
        k.Conv2D(4, 3, activation="relu"),
        k.MaxPooling2D(),
        k.Dropout(0.25),
        k.Flatten(),
        k.Dense(16, activation="relu"),
        k.Dropout(0.5),
        k.Dense(10),
        k.Activation("softmax"),
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    background, samples = rows(12, 12, 1, n=12), rows(12, 12, 1, n=3, seed=1)
    model.fit(background, np.arange(12) % 10, verbose=0)
    explainer = DeepExplainer((model.inputs, model.layers[-2].output), background)
    logits = keras.Model(model.inputs, model.layers[-2].output)
    phi = explainer.shap_values(samples)
    assert gap(phi[0] if isinstance(phi, list) else phi, logits, samples, background) < 1e-5
    ranked, indexes = explainer.shap_values(samples, ranked_outputs=2)
    np.testing.assert_array_equal(indexes, np.asarray(logits(samples)).argsort(1)[:, :-3:-1])
    np.testing.assert_allclose(ranked[0][..., 0], np.asarray(phi)[0][..., indexes[0, 0]], atol=1e-6)


def test_an_lstm_on_padded_sequences_of_words() -> None:
    keras.utils.set_random_seed(0)
    model = stack(
        (8,),
        k.Embedding(30, 4, keras.initializers.RandomNormal(stddev=1.0)),
        k.LSTM(5, dropout=0.2, recurrent_dropout=0.2),
        k.Dense(1, "sigmoid"),
    )
    words = np.random.default_rng(0).integers(1, 30, (B, 8))
    words[:, :3] = 0
    samples = words[::-1][:N] % 7
    embedded = model.layers[0]
    phi = DeepExplainer((model.layers[0].output, model.layers[-1].output), np.asarray(embedded(words)))
    at = np.asarray(embedded(samples))
    assert gap(phi.shap_values(at), lambda x: model(x), samples, words) < 1e-5
    assert gap(DeepExplainer(model, words).shap_values(samples), model, samples, words) < 1e-5


def test_the_input_of_a_functional_models_first_layer() -> None:
    """Keras gives an InputLayer no input: it is the model's, where that has one."""
    model = shared((5,), lambda x: k.Dense(3, activation="relu")(x))
    assert model.layers[0].input == []
    phi = DeepExplainer((model.layers[0].input, model.layers[-1].output), rows(5)).shap_values(rows(5, n=N, seed=1))
    assert gap(phi, model, rows(5, n=N, seed=1), rows(5)) < 1e-5
    x, z = keras.Input((5,), name="x"), keras.Input((5,), name="z")
    with pytest.raises(InputError, match=r"several inputs .*give them in a list, such as model\.inputs"):
        DeepExplainer(([], k.Add()([x, z])), [rows(5), rows(5)])


def test_attention_over_padded_words() -> None:
    """Keras masks padded queries as a whole, with 0.7 times the lowest float: their rows of the softmax are uniform."""
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int32")
    embedded = k.Embedding(10, 4, mask_zero=True)(words)
    attended = k.MultiHeadAttention(2, 2)(embedded, embedded, use_causal_mask=True)
    model = keras.Model(words, k.Dense(2)(k.GlobalAveragePooling1D()(attended + embedded)))
    ids = np.random.default_rng(0).integers(1, 10, (8, 6))
    ids[1, 4:] = ids[6, 3:] = ids[7, :2] = 0
    phi = DeepExplainer(model, ids[:5]).shap_values(ids[5:])
    assert gap(phi, model, ids[5:], ids[:5]) < 1e-5


def test_calls_and_fits_go_on_after_an_explanation() -> None:
    keras.utils.set_random_seed(0)
    model = stack((4,), k.Dense(5, activation="relu"), k.Dense(1))
    model.compile("adam", "mse")
    before = np.asarray(model(rows(4)))
    DeepExplainer(model, rows(4)).shap_values(rows(4, n=N))
    np.testing.assert_array_equal(np.asarray(model(rows(4))), before)
    model.fit(rows(4), rows(1), verbose=0)
    assert not np.array_equal(model.predict(rows(4), verbose=0), before)
