"""Plausible inputs for models of which only the file is known: shapes, kinds of values, and where the rows are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

Array = NDArray[Any]
T = TypeVar("T")

LENGTHS = {
    **dict.fromkeys(("height", "width", "h", "w", "m1", "m2"), 64),
    **dict.fromkeys(("image_width",), 96),
    **dict.fromkeys(("seq", "seq_len", "sequence", "src_len", "tgt_len", "time", "t"), 12),
    **dict.fromkeys(("frames",), 60),
    **dict.fromkeys(("n", "samples"), 4000),
}
"""Name of a free axis, in small letters -> its length where no recipe says otherwise."""


@dataclass(frozen=True)
class Recipe:
    """What the file does not say.

    Attributes
    ----------
    shapes : input -> shape with the rows, 0 at their axis.
    values : input -> a kind of value, one of `KINDS`, or an array that is one value for all rows.
    hold : inputs that are not explained.
    lengths : value of the held inputs that are integers with one number per row.
    outputs : how many are explained at most.
    references, samples : how many rows.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    hold: tuple[str, ...] = ()
    lengths: int | None = None
    outputs: int = 3
    references: int = 3
    samples: int = 2


def image(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A smooth picture in 0 to 1 with a few edges, ``[1, C, H, W]`` or ``[1, H, W, C]``."""
    last = shape[-1] <= 4
    height, width, channels = (shape[1], shape[2], shape[3]) if last else (shape[2], shape[3], shape[1])
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = np.empty((channels, height, width))
    for c in range(channels):
        a, b, phase, radius = rng.uniform(2, 9), rng.uniform(2, 9), rng.uniform(0, 6), rng.uniform(0.1, 0.4)
        disc = (x - rng.uniform(0.2, 0.8)) ** 2 + (y - rng.uniform(0.2, 0.8)) ** 2 < radius**2
        picture[c] = 0.5 + 0.25 * np.sin(a * x + b * y + phase) + 0.2 * disc
    picture = np.clip(picture + rng.normal(0, 0.02, picture.shape), 0, 1)[None]
    return np.moveaxis(picture, 1, -1) if last else picture


def text(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A line of dark glyphs on light ground in -1 to 1, ``[1, C, H, W]``."""
    height, width = shape[2:]
    size = max(height // 12, 1)
    picture = np.full((height, width), 0.9)
    for left in range(2 * size, width - 5 * size, 6 * size):
        glyph = np.kron(rng.uniform(size=(7, 4)) < 0.5, np.ones((size, size)))
        picture[2 * size : 9 * size, left : left + 4 * size] -= 0.8 * glyph
    picture = picture * 2 - 1 + rng.normal(0, 0.02, picture.shape)
    return np.broadcast_to(np.clip(picture, -1, 1), shape).copy()


def sound(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A chord that swells, with noise, along the longest axis."""
    long = int(np.argmax(shape))
    t = np.arange(shape[long]) / 16000
    wave = sum(rng.uniform(0.02, 0.2) * np.sin(2 * np.pi * f * t + f) for f in rng.uniform(100, 3000, 4))
    wave = wave * np.abs(np.sin(rng.uniform(2, 9) * t)) + rng.normal(0, 0.01, t.shape)
    spread = np.reshape(wave, [-1 if a == long else 1 for a in range(len(shape))])
    return np.broadcast_to(spread, shape) * rng.uniform(0.5, 1, shape[:1] + (1,) * (len(shape) - 1))


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers."""
    return rng.normal(size=shape)


def spectrogram(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Decibels between -80 and 0."""
    return np.clip(rng.normal(-40, 15, shape), -80, 0)


def loudness(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Logarithms of energies in bands, which change slowly in time (the axis before the last)."""
    steps = rng.normal(size=shape).cumsum(axis=-2) / np.sqrt(np.arange(1, shape[-2] + 1))[:, None]
    return -4 + steps


Kind = Callable[[np.random.Generator, tuple[int, ...]], Array]

KINDS: dict[str, Kind] = {
    "image": image,
    "text": text,
    "bytes": lambda rng, shape: np.round(image(rng, shape) * 255),
    "centred": lambda rng, shape: image(rng, shape) * 2 - 1,
    "sound": sound,
    "normal": normal,
    "spectrogram": spectrogram,
    "loudness": loudness,
    "ids": lambda rng, shape: rng.integers(1, 20, shape),
    "near": lambda rng, shape: rng.integers(1, 4, shape),
    "few": lambda rng, shape: rng.integers(0, 3, shape),
    "yes": lambda rng, shape: np.ones(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "positive": lambda rng, shape: rng.uniform(1, 5, shape),
    "octets": lambda rng, shape: rng.integers(32, 127, shape),
}


def fitting(name: str, recipes: Mapping[str, T], default: T) -> T:
    """What belongs to the first pattern that fits the model's name."""
    return next((found for pattern, found in recipes.items() if fnmatch(name, pattern)), default)


def fed(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs of the file without those that have a value in it."""
    known = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in known]


def shape_of(value: ValueInfoProto, rows: str | None, recipe: Recipe) -> tuple[int, ...]:
    """The shape of an input, 0 at the axis of the rows; `rows` is the name of that axis in the first input."""
    if value.name in recipe.shapes:
        return recipe.shapes[value.name]
    shape = []
    for position, dim in enumerate(value.type.tensor_type.shape.dim):
        free = not dim.HasField("dim_value") or dim.dim_value < 1
        if free and (dim.dim_param == rows or (position == 0 and 0 not in shape)):
            shape.append(0)
        elif free:
            shape.append(LENGTHS.get(dim.dim_param.lower(), 16))
        else:
            shape.append(0 if position == 0 and dim.dim_value == 1 and rows is None else dim.dim_value)
    return tuple(shape)


def kind_of(value: ValueInfoProto, shape: tuple[int, ...]) -> str:
    """What the values of an input probably are."""
    dtype = value.type.tensor_type.elem_type
    if dtype == TensorProto.BOOL:
        return "yes"
    if dtype not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        return "ids"
    if len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)):
        return "image"
    if len(shape) == 2 and shape[1] >= 400:
        return "sound"
    return "normal"


@dataclass(frozen=True)
class Feeds:
    """Data for a model.

    Attributes
    ----------
    background, samples : input -> rows.
    batch_axes : input -> axis of the rows, None where there is none.
    """

    background: dict[str, Array]
    samples: dict[str, Array]
    batch_axes: dict[str, int | None]


def feeds(model: ModelProto, recipe: Recipe) -> Feeds:
    """Rows for every input of `model`, the same each time."""
    rng = np.random.default_rng(0)
    inputs = fed(model)
    dims = inputs[0].type.tensor_type.shape.dim
    rows = dims[0].dim_param if dims and dims[0].dim_param else None
    data: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    axes: dict[str, int | None] = {}
    rowless = all(0 not in shape_of(value, rows, recipe) for value in inputs)
    for value in inputs:
        shape = shape_of(value, rows, recipe)
        axis = shape.index(0) if 0 in shape else None
        axes[value.name] = axis
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        kind = recipe.values.get(value.name, kind_of(value, shape))
        if recipe.lengths is not None and value.name in recipe.hold:
            kind = "zeros"
        for target, count in zip(data, (recipe.references, recipe.samples), strict=True):
            if not isinstance(kind, str):
                array = np.asarray(kind)
            elif axis is None and (rowless and value.name not in recipe.hold):
                array = KINDS[kind](rng, shape)
            elif axis is None:
                known = data[0].get(value.name)
                array = KINDS[kind](rng, shape) if known is None else known
            else:
                one = tuple(1 if a == axis else length for a, length in enumerate(shape))
                array = np.concatenate([KINDS[kind](rng, one) for _ in range(count)], axis=axis)
            if recipe.lengths is not None and value.name in recipe.hold:
                array = array + recipe.lengths
            target[value.name] = array.astype(dtype)
    return Feeds(*data, axes)
