"""Every layer of ``keras.layers``: does it export, have its operators rules, and do the attributions sum to delta?

``python -m benchmarks.keras_layers`` explains each with small random data and prints a table; ``--write FILE`` puts it
between the markers of a page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as k

from benchmarks.layer_table import REFERENCES, SAMPLES, LayerTable
from benchmarks.pages import marks

Function = Callable[[Any], Any]

VECTOR, SERIES, IMAGE, VOLUME, CLIP = (6,), (8, 4), (8, 8, 4), (4, 4, 4, 2), (3, 6, 6, 2)
_AXES = {"1D": SERIES, "2D": IMAGE, "3D": VOLUME}


def _of(name: str, *arguments: Any, **keywords: Any) -> Function:
    return lambda x: getattr(k, name)(*arguments, **keywords)(x)


def _two(name: str, *arguments: Any, **keywords: Any) -> Function:
    return lambda x: getattr(k, name)(*arguments, **keywords)([x, k.Dense(x.shape[-1])(x)])


def _steps(name: str, *arguments: Any) -> Function:
    return lambda x: k.RNN(getattr(k, name)(*arguments), return_sequences=True)(x)


CASES: dict[str, tuple[Function, tuple[int, ...]]] = {
    "Activation": (_of("Activation", "gelu"), VECTOR),
    "ActivityRegularization": (_of("ActivityRegularization", 0.1), VECTOR),
    **{name: (_of(name, 0.5), VECTOR) for name in ("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise")},
    **{f"SpatialDropout{d}": (_of(f"SpatialDropout{d}", 0.5), s) for d, s in _AXES.items()},
    **{name: (_of(name), VECTOR) for name in ("ELU", "Identity", "LeakyReLU", "ReLU", "Softmax", "UnitNormalization")},
    "PReLU": (_of("PReLU", alpha_initializer="random_normal"), VECTOR),
    **{name: (_two(name), VECTOR) for name in ("Add", "Average", "Concatenate", "Maximum", "Minimum")},
    **{name: (_two(name), VECTOR) for name in ("Multiply", "Subtract")},
    "Dot": (_two("Dot", -1), SERIES),
    "Dense": (_of("Dense", 3), VECTOR),
    "EinsumDense": (_of("EinsumDense", "abc,cd->abd", (8, 3)), SERIES),
    "Embedding": (_of("Embedding", 9, 3), (4,)),
    "ReversibleEmbedding": (_of("ReversibleEmbedding", 9, 3), (4,)),
    "Lambda": (_of("Lambda", lambda x: x * x), VECTOR),
    "Masking": (_of("Masking"), SERIES),
    **{name: (_of(name), SERIES) for name in ("BatchNormalization", "LayerNormalization", "RMSNormalization")},
    "GroupNormalization": (_of("GroupNormalization", 2), IMAGE),
    "Normalization": (_of("Normalization", mean=[1.0] * 6, variance=[2.0] * 6), VECTOR),
    "SpectralNormalization": (lambda x: k.SpectralNormalization(k.Dense(3))(x), VECTOR),
    **{f"Conv{d}": (_of(f"Conv{d}", 3, 2, padding="same"), s) for d, s in _AXES.items()},
    **{f"Conv{d}Transpose": (_of(f"Conv{d}Transpose", 3, 2, strides=2), s) for d, s in _AXES.items()},
    **{f"DepthwiseConv{d}": (_of(f"DepthwiseConv{d}", 2), _AXES[d]) for d in ("1D", "2D")},
    **{f"SeparableConv{d}": (_of(f"SeparableConv{d}", 3, 2), _AXES[d]) for d in ("1D", "2D")},
    **{f"{kind}Pooling{d}": (_of(f"{kind}Pooling{d}", 2), s) for d, s in _AXES.items() for kind in ("Max", "Average")},
    **{
        f"Adaptive{kind}Pooling{d}": (_of(f"Adaptive{kind}Pooling{d}", 3), s)
        for d, s in _AXES.items()
        for kind in ("Max", "Average")
    },
    **{
        f"Global{kind}Pooling{d}": (_of(f"Global{kind}Pooling{d}"), s)
        for d, s in _AXES.items()
        for kind in ("Max", "Average")
    },
    **{f"Cropping{d}": (_of(f"Cropping{d}", 1), s) for d, s in _AXES.items()},
    **{f"ZeroPadding{d}": (_of(f"ZeroPadding{d}", 1), s) for d, s in _AXES.items()},
    **{f"UpSampling{d}": (_of(f"UpSampling{d}", 2), s) for d, s in _AXES.items()},
    "Flatten": (_of("Flatten"), IMAGE),
    "Permute": (_of("Permute", (2, 1)), SERIES),
    "RepeatVector": (_of("RepeatVector", 3), VECTOR),
    "Reshape": (_of("Reshape", (4, 8)), SERIES),
    **{name: (_of(name, 3, return_sequences=True), SERIES) for name in ("LSTM", "GRU", "SimpleRNN")},
    **{name: (_steps(name, 3), SERIES) for name in ("LSTMCell", "GRUCell", "SimpleRNNCell")},
    "RNN": (lambda x: k.RNN([k.LSTMCell(3), k.GRUCell(2)])(x), SERIES),
    "StackedRNNCells": (lambda x: k.RNN(k.StackedRNNCells([k.GRUCell(3), k.SimpleRNNCell(2)]))(x), SERIES),
    "Bidirectional": (lambda x: k.Bidirectional(k.LSTM(3))(x), SERIES),
    "TimeDistributed": (lambda x: k.TimeDistributed(k.Dense(3, activation="relu"))(x), SERIES),
    "ConvLSTM1D": (_of("ConvLSTM1D", 2, 2), (3, 6, 2)),
    "ConvLSTM2D": (_of("ConvLSTM2D", 2, 2), CLIP),
    "ConvLSTM3D": (_of("ConvLSTM3D", 2, 2), (3, 4, 4, 4, 2)),
    "Attention": (_two("Attention"), SERIES),
    "AdditiveAttention": (_two("AdditiveAttention"), SERIES),
    "MultiHeadAttention": (lambda x: k.MultiHeadAttention(2, 3)(x, k.Dense(4)(x)), SERIES),
    "GroupQueryAttention": (lambda x: k.GroupQueryAttention(3, 4, 2)(x, k.Dense(4)(x)), SERIES),
    "CenterCrop": (_of("CenterCrop", 4, 4), IMAGE),
    "Resizing": (_of("Resizing", 5, 11), IMAGE),
    "Rescaling": (_of("Rescaling", 0.5, 1.0), IMAGE),
    "Discretization": (_of("Discretization", [-0.5, 0.5], output_mode="one_hot"), VECTOR),
    "CategoryEncoding": (_of("CategoryEncoding", 9, output_mode="multi_hot"), (4,)),
    "Hashing": (_of("Hashing", 3, output_mode="one_hot"), (4,)),
    "HashedCrossing": (lambda x: k.HashedCrossing(3, output_mode="one_hot")((x[:, :1], x[:, 1:2])), (4,)),
    "IntegerLookup": (_of("IntegerLookup", vocabulary=[1, 2, 3], output_mode="multi_hot"), (4,)),
    "STFTSpectrogram": (_of("STFTSpectrogram", frame_length=16, frame_step=8, fft_length=16), (64, 1)),
    "MelSpectrogram": (_of("MelSpectrogram", fft_length=32, sequence_stride=16, num_mel_bins=4), (96,)),
    "Pipeline": (lambda x: k.Pipeline([k.Rescaling(0.5), k.CenterCrop(4, 4)])(x), IMAGE),
    "AutoContrast": (_of("AutoContrast", value_range=(0, 1)), (8, 8, 3)),
    "Solarization": (_of("Solarization", value_range=(0, 1)), (8, 8, 3)),
    "Equalization": (_of("Equalization", value_range=(0, 1)), (8, 8, 3)),
    "ContrastLimitedAdaptiveHistogramEqualization": (
        _of("ContrastLimitedAdaptiveHistogramEqualization", value_range=(0, 1)),
        (8, 8, 3),
    ),
    **{name: (_of(name, value_range=(0, 1)), (8, 8, 3)) for name in ("AugMix", "RandAugment", "RandomColorJitter")},
    **{name: (_of(name, 0.5), (8, 8, 3)) for name in ("RandomBrightness", "RandomContrast", "RandomRotation")},
    **{name: (_of(name, 0.5), (8, 8, 3)) for name in ("RandomZoom", "RandomSaturation", "RandomSharpness")},
    **{name: (_of(name, 0.5), (8, 8, 3)) for name in ("RandomColorDegeneration", "RandomHue", "RandomPosterization")},
    **{name: (_of(name), (8, 8, 3)) for name in ("RandomFlip", "RandomErasing", "RandomGaussianBlur", "RandomShear")},
    **{name: (_of(name), (8, 8, 3)) for name in ("RandomGrayscale", "RandomInvert", "RandomPerspective")},
    "RandomPosterization": (_of("RandomPosterization", 4), (8, 8, 3)),
    "RandomElasticTransform": (_of("RandomElasticTransform"), (8, 8, 3)),
    "RandomTranslation": (_of("RandomTranslation", 0.2, 0.2), (8, 8, 3)),
    "RandomCrop": (_of("RandomCrop", 4, 4), (8, 8, 3)),
}
WHOLE = ("Embedding", "ReversibleEmbedding", "CategoryEncoding", "Hashing", "HashedCrossing", "IntegerLookup")
"""Layers of whole numbers."""

LEFT_OUT = {
    "CutMix": "mixes pictures and labels, for training alone",
    "MixUp": "mixes pictures and labels, for training alone",
    "FlaxLayer": "of the backend jax",
    "JaxLayer": "of the backend jax",
    "InputLayer": "is the input",
    "InputSpec": "is no layer",
    "Layer": "has no function",
    "Wrapper": "has no function",
    "MaxNumBoundingBoxes": "takes boxes, no numbers of a model",
    "StringLookup": "takes strings, which have no differences",
    "TextVectorization": "takes strings, which have no differences",
    "TFSMLayer": "reads a SavedModel, which is explained itself",
    "TorchModuleWrapper": "of the backend torch",
}


def names() -> list[str]:
    """All layers of ``keras.layers``, each by the first of its names that ``CASES`` or its class has."""
    known: dict[int, str] = {}
    for name in dir(k):
        layer = getattr(k, name)
        if isinstance(layer, type) and (id(layer) not in known or name in (layer.__name__, *CASES)):
            known[id(layer)] = name
    return sorted(known.values(), key=str.lower)


def _build(name: str) -> tuple[Any, Any]:
    keras.utils.set_random_seed(0)
    function, shape = CASES[name]
    x = keras.Input(shape, dtype="int32" if name in WHOLE else "float32")
    return keras.Model(x, function(x)), _rows(name, shape)


def _rows(name: str, shape: Sequence[int]) -> Any:
    rng, count = np.random.default_rng(0), REFERENCES + SAMPLES
    if name in WHOLE:
        return rng.integers(0, 9, (count, *shape), dtype=np.int32)
    if shape == (8, 8, 3):  # pictures
        return rng.uniform(size=(count, *shape)).astype(np.float32)
    return rng.normal(size=(count, *shape)).astype(np.float32)


def _outputs(model: Any, rows: Any) -> Any:
    found = model(rows, training=False)  # some layers are random by default
    return np.asarray(found[0] if isinstance(found, list) else found)


TABLE = LayerTable("layer", names, CASES, LEFT_OUT, _build, _outputs, marks("keras layers"))

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
