"""DFT and STFT: linear, by matrices of cosines and sines."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepshap_ir.extend import Array, Expansion, RuleError, Value, expand

LARGEST = 1 << 25
"""Lengths before and after the transform, multiplied."""


@expand("DFT")
def dft(ctx: Expansion) -> Value:
    """``y_k = sum_n x_n e^(-2 pi i k n / N)``, real and imaginary parts in the last axis: one product with a matrix.

    The signal is cut or filled with zeros to N. The inverse turns the other way and divides by N; the real inverse
    adds the conjugates of the frequencies that a one-sided spectrum leaves out.
    """
    op, x, shape = ctx.op, ctx.x(), ctx.shape()
    axis = ctx.attribute("axis", 1) if ctx.opset < 20 else _number(ctx, 2, -2)
    axis %= len(shape)
    inverse, onesided = ctx.attribute("inverse", 0), ctx.attribute("onesided", 0)
    given = shape[axis]
    default = 2 * (given - 1) if inverse and onesided else given
    length = _number(ctx, 1, default)
    matrix = _inverse_real(length, given) if inverse and onesided else _transform(length, given, shape[-1], inverse)
    if onesided and not inverse:
        matrix = matrix[:, :, : length // 2 + 1]
    order = [a for a in range(len(shape)) if a not in (axis, len(shape) - 1)]
    forth = [*order, axis, len(shape) - 1]
    parts, count = matrix.shape[3], matrix.shape[2]
    rows = op.Reshape(op.Transpose(x, perm=forth), [*(shape[a] for a in order), given * shape[-1]])
    product = op.MatMul(rows, matrix.reshape(given * shape[-1], count * parts).astype(x.dtype))
    split = op.Reshape(product, [*(shape[a] for a in order), count, parts])
    result: Value = op.Transpose(split, perm=np.argsort(forth).tolist())
    return result


@expand("STFT")
def stft(ctx: Expansion) -> Value:
    """``y[f, k] = sum_n w_n x[f step + n] e^(-2 pi i k n / N)``: frames by index, then one product with a matrix."""
    op, x, shape = ctx.op, ctx.x(), ctx.shape()
    step = _number(ctx, 1, 0)
    window: Array | None = ctx.constant(2) if ctx.has(2) else None
    if ctx.has(2) and window is None:
        weights: Value | None = ctx.x(2)
        length = ctx.shape(2)[0]
    else:
        weights, length = None, _number(ctx, 3, 0) if window is None else len(window)
    frames = (shape[1] - length) // step + 1
    places = np.arange(frames)[:, None] * step + np.arange(length)
    parts = shape[2] if len(shape) > 2 else 1
    matrix = _transform(length, length, parts, 0)
    if ctx.attribute("onesided", 1):
        matrix = matrix[:, :, : length // 2 + 1]
    if window is not None:
        matrix = matrix * window.reshape(-1, 1, 1, 1)
    pieces: Any = op.Reshape(op.Gather(x, places, axis=1), [shape[0], frames, length, parts])
    if weights is not None:
        pieces = pieces * op.Reshape(weights, [length, 1])
    count = matrix.shape[2]
    flat = op.Reshape(pieces, [shape[0], frames, length * parts])
    product = op.MatMul(flat, matrix.reshape(length * parts, count * 2).astype(x.dtype))
    result: Value = op.Reshape(product, [shape[0], frames, count, 2])
    return result


def _number(ctx: Expansion, i: int, default: int) -> int:
    """Input `i`, a fixed number."""
    if not ctx.has(i):
        return default
    value = ctx.constant(i)
    if value is None:
        raise RuleError(f"its input {i}, a length, depends on a model input")
    return int(value.reshape(()))


def _transform(length: int, given: int, parts: int, inverse: int) -> Array:
    """``[given, parts of x, length, 2]``: what each part of each element adds to each frequency."""
    if given * length > LARGEST:
        raise RuleError(
            f"a transform of {given} numbers to {length} would be a matrix of {4 * given * length} elements"
        )
    turn = (1 if inverse else -1) * 2 * np.pi / length * np.outer(np.arange(given), np.arange(length) % length)
    real, imaginary = np.cos(turn), np.sin(turn)
    matrix = np.stack([np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)], 1)
    matrix[length:] = 0.0
    return matrix[:, :parts] / (length if inverse else 1)


def _inverse_real(length: int, given: int) -> Array:
    """``[given, 2, length, 1]``: the real signal of a one-sided spectrum."""
    turn = 2 * np.pi / length * np.outer(np.arange(given), np.arange(length))
    twice = np.full(given, 2.0)
    twice[0] = 1.0
    if length % 2 == 0 and given > length // 2:
        twice[length // 2] = 1.0
    twice[length // 2 + 1 :] = 0.0
    matrix = np.stack([np.cos(turn), -np.sin(turn)], 1) * twice[:, None, None] / length
    return np.asarray(matrix[..., None])
