"""Attention of ``com.microsoft``: all forms that onnxruntime's kernels for the processor know."""

from __future__ import annotations

import math

import numpy as np

from deepshap_ir.extend import Array, Expansion, RuleError, Value, expand

DOMAIN = "com.microsoft"

MASKED = -1e30
"""Added to the scores that a kernel leaves out altogether."""


def heads(value: Value, count: int) -> Value:
    """``[1, S, N H]`` -> ``[1, N, S, H]``."""
    batch, length, size = value.shape
    split = value.op.Reshape(value, [batch, length, count, size // count])
    result: Value = value.op.Transpose(split, perm=[0, 2, 1, 3])
    return result


def joined(value: Value) -> Value:
    """``[1, N, S, H]`` -> ``[1, S, N H]``."""
    batch, count, length, size = value.shape
    turned = value.op.Transpose(value, perm=[0, 2, 1, 3])
    result: Value = value.op.Reshape(turned, [batch, length, count * size])
    return result


def scores(ctx: Expansion, q: Value, k: Value) -> Value:
    """``scale q k^T``, ``[1, N, S, T]``; the scale is ``1 / sqrt(H)`` where it is absent or 0."""
    scale = ctx.attribute("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    product: Value = ctx.op.MatMul(q, ctx.op.Transpose(k, perm=[0, 1, 3, 2]))
    return product * scale


def ahead(queries: int, keys: int, window: int = -1) -> Array:
    """``[S, T]``: the keys that come after each query, or lie `window` or more before it; the last ones are level."""
    distance = np.arange(queries)[:, None] + (keys - queries) - np.arange(keys)
    return (distance < 0) | (distance >= window if window > 0 else False)


def mask_bias(ctx: Expansion, i: int, queries: int, keys: int) -> Value | None:
    """What a mask adds to the scores, in a shape that broadcasts to ``[1, 1, S, T]``; None where there is no mask."""
    if not ctx.has(i):
        return None
    op, mask = ctx.op, ctx.x(i)
    if mask.rank == 1:
        if mask.shape[0] not in (1, 2):
            raise RuleError("a mask of cumulated lengths has no expansion; give the mask as [batch, keys]")
        keep = op.Less(np.arange(keys, dtype=mask.dtype), op.Slice(mask, [0], [1], [0]))
        if mask.shape[0] == 2:
            start = op.Slice(mask, [1], [2], [0])
            keep = op.And(keep, op.Not(op.Less(np.arange(keys, dtype=mask.dtype), start)))
        keep = op.Reshape(keep, [1, 1, 1, keys])
    elif mask.rank in (2, 3):
        shape = [1, 1, 1, keys] if mask.rank == 2 else [1, 1, queries, keys]
        keep = op.Reshape(op.Greater(mask, op.constant(0, mask.dtype)), shape)
    else:
        raise RuleError(f"a mask of rank {mask.rank} has no expansion; give the mask as [batch, queries, keys]")
    bias: Value = op.Where(keep, 0.0, ctx.attribute("mask_filter_value", -10000.0))
    return bias


def attended(ctx: Expansion, q: Value, k: Value, v: Value, mask: Value | None, extra: int) -> tuple[Value, Value]:
    """``softmax(q k^T + masks) v``, ``[1, S, N H]``, and the softmax; input `extra` is added to the scores."""
    op, table = ctx.op, scores(ctx, q, k)
    if ctx.has(extra):
        table = table + ctx.x(extra)
    if mask is not None:
        table = table + mask
    if ctx.attribute("unidirectional", 0):
        table = table + np.where(ahead(q.shape[2], k.shape[2]), MASKED, 0.0)
    weights = op.Softmax(table, axis=-1)
    return joined(op.MatMul(weights, v)), weights


def refuse(ctx: Expansion, *names: str) -> None:
    """RuleError where one of the attributes is not 0."""
    for name in names:
        if ctx.attribute(name, 0):
            raise RuleError(f"{name} = {ctx.attribute(name)} has no expansion")


@expand(f"{DOMAIN}::Attention")
def attention(ctx: Expansion) -> list[Value | None]:
    """Self-attention of ``x W + b`` split into q, k and v, after what is past."""
    projected = ctx.op.MatMul(ctx.x(0), ctx.x(1))
    if ctx.has(2):
        projected = projected + ctx.x(2)
    return self_attention(ctx, projected, mask=3, past=4, extra=5)


def self_attention(ctx: Expansion, projected: Value, mask: int, past: int, extra: int) -> list[Value | None]:
    """Attention on ``[1, S, q + k + v]``, and the new past ``[2, 1, N, T, H]``."""
    op, count = ctx.op, ctx.attribute("num_heads")
    refuse(ctx, "do_rotary", "past_present_share_buffer")
    sizes = ctx.attribute("qkv_hidden_sizes") or [projected.shape[-1] // 3] * 3
    q, k, v = (heads(part, count) for part in op.Split(projected, sizes, outputs=3, axis=-1))
    if ctx.has(past):
        before = op.Split(ctx.x(past), [1, 1], outputs=2, axis=0)
        k, v = (op.Concat(op.Squeeze(old, [0]), new, axis=2) for old, new in zip(before, (k, v), strict=True))
    y, _ = attended(ctx, q, k, v, mask_bias(ctx, mask, q.shape[2], k.shape[2]), extra)
    if not ctx.wanted(1):
        return [y, None]
    return [y, op.Concat(op.Unsqueeze(k, [0]), op.Unsqueeze(v, [0]), axis=0)]


@expand(f"{DOMAIN}::MultiHeadAttention")
def multi_head_attention(ctx: Expansion) -> list[Value | None]:
    """Attention on q, k and v, flat or by head, after what is past."""
    op, count = ctx.op, ctx.attribute("num_heads")
    if ctx.has(8) or ctx.has(9):
        raise RuleError("past_sequence_length and cache_indirection have no expansion")
    q, k, v = by_head(ctx, count, bias=3)
    if ctx.has(6):
        k, v = op.Concat(ctx.x(6), k, axis=2), op.Concat(ctx.x(7), v, axis=2)
    y, weights = attended(ctx, q, k, v, mask_bias(ctx, 4, q.shape[2], k.shape[2]), 5)
    return [y, k, v, weights]


@expand(f"{DOMAIN}::DecoderMaskedMultiHeadAttention")
def decoder_attention(ctx: Expansion) -> list[Value | None]:
    """Attention of one query after what is past, in a cache that has room for more."""
    op, count = ctx.op, ctx.attribute("num_heads")
    if ctx.has(9):
        raise RuleError("cache_indirection has no expansion")
    q, k, v = by_head(ctx, count, bias=10)
    presents: list[Value | None] = [None, None]
    if ctx.has(5):
        past = int(_fixed(ctx, 7, "past_sequence_length").reshape(-1)[0])
        caches = [in_cache(ctx, i, value, past) for i, value in ((5, k), (6, v))]
        k, v = (op.Slice(cache, [0], [past + 1], [2]) for cache in caches)
        presents = list(caches)
    y, weights = attended(ctx, q, k, v, mask_bias(ctx, 3, 1, k.shape[2]), 4)
    return [y, *presents, weights]


def in_cache(ctx: Expansion, i: int, new: Value, past: int) -> Value:
    """Input `i`, a cache ``[1, N, room, H]``, with `new` after its first `past` places; what lies beyond is 0."""
    op, count = ctx.op, new.shape[2]
    room = ctx.x(i).shape[2] if ctx.has(i) else 0
    before = [op.Slice(ctx.x(i), [0], [past], [2])] if past else []
    shape = (*new.shape[:2], max(room - past - count, 0), new.shape[3])
    after = [op.zeros(shape, new.dtype)] if shape[2] else []
    result: Value = op.Concat(*before, new, *after, axis=2) if before or after else new
    return result


def by_head(ctx: Expansion, count: int, bias: int) -> list[Value]:
    """Inputs q, k and v as ``[1, N, S, H]``, with their parts of the bias."""
    op = ctx.op
    parts = [ctx.x(i) for i in range(3)]
    if ctx.has(bias):
        sizes = [p.shape[-1] * (count if p.rank == 4 else 1) for p in parts]
        added = op.Split(ctx.x(bias), sizes, outputs=3, axis=0)
        # what comes by head is a cache, which has its bias already
        parts = [p + b if p.rank == 3 else p for p, b in zip(parts, added, strict=True)]
    return [part if part.rank == 4 else heads(part, count) for part in parts]


@expand(f"{DOMAIN}::RotaryEmbedding")
def rotary_embedding(ctx: Expansion) -> Value:
    """Pairs of numbers turned by angles that grow with the position: ``[1, S, N H]`` or ``[1, N, S, H]``."""
    op, x, cos = ctx.op, ctx.x(), ctx.x(2)
    refuse(ctx, "is_packed_batching")
    flat = x.rank == 3
    if flat:
        size = x.shape[-1] // ctx.attribute("num_heads") if ctx.attribute("num_heads", 0) else cos.shape[-1] * 2
        x = heads(x, x.shape[-1] // size)
    positions = ctx.x(1)
    if positions.rank == 1:
        positions = op.Reshape(positions, [1, 1]) + np.arange(x.shape[2], dtype=positions.dtype)
    turned = rotated(x, cos, ctx.x(3), positions, bool(ctx.attribute("interleaved", 0)))
    return joined(turned) if flat else turned


def rotated(x: Value, cos: Value, sin: Value, positions: Value, interleaved: bool) -> Value:
    """``[1, N, S, H]``, of each head the first ``2 C`` numbers turned; tables ``[P, C]``, positions ``[1, S]``."""
    op, width = x.op, 2 * cos.shape[-1]
    cos, sin = (op.Unsqueeze(op.Gather(table, positions, axis=0), [1]) for table in (cos, sin))
    order = np.arange(width).reshape(-1, 2).T if interleaved else np.arange(width).reshape(2, -1)
    a, b = (op.Gather(x, indices, axis=-1) for indices in order)
    back = np.argsort(order.reshape(-1))
    turned = op.Concat(a * cos - b * sin, b * cos + a * sin, axis=-1)
    turned = op.Gather(turned, back, axis=-1) if interleaved else turned
    if width < x.shape[-1]:
        turned = op.Concat(turned, op.Slice(x, [width], [x.shape[-1]], [3]), axis=-1)
    return turned


@expand(f"{DOMAIN}::GroupQueryAttention")
def group_query_attention(ctx: Expansion) -> list[Value | None]:
    """Causal attention whose heads share keys and values, with rotary embedding, window, soft cap and sinks."""
    op, count, shared = ctx.op, ctx.attribute("num_heads"), ctx.attribute("kv_num_heads")
    refuse(ctx, "sliding_window_cache", "qk_output")
    if ctx.attribute("k_quant_type", "NONE") != "NONE" or ctx.attribute("v_quant_type", "NONE") != "NONE":
        raise RuleError("a quantised cache has no expansion")
    q, k, v = _grouped_parts(ctx, count, shared)
    new, total = q.shape[2], int(_fixed(ctx, 5, "seqlens_k").reshape(-1)[0]) + 1
    past = total - new if total > new else 0
    if ctx.has(14):
        q, k = (_unit(ctx, value, i) for value, i in ((q, 14), (k, 15)))
    if ctx.attribute("do_rotary", 0):
        positions = ctx.x(9) if ctx.has(9) else op.constant(np.arange(past, past + new)[None])
        pairs = bool(ctx.attribute("rotary_interleaved", 0))
        q, k = (rotated(value, ctx.x(7), ctx.x(8), positions, pairs) for value in (q, k))
    presents = [in_cache(ctx, i, value, past) for i, value in ((3, k), (4, v))]
    k, v = (op.Slice(p, [0], [past + new], [2]) for p in presents)
    groups = np.repeat(np.arange(shared), count // shared)
    k, v = op.Gather(k, groups, axis=1), op.Gather(v, groups, axis=1)
    return [joined(op.MatMul(_grouped_weights(ctx, q, k, past + new), v)), *presents]


def _fixed(ctx: Expansion, i: int, what: str) -> Array:
    array = ctx.constant(i)
    if array is None:
        raise RuleError(f"{what} comes from a model input; fix that input to a constant: hold={{name: array}}")
    return array


def _grouped_parts(ctx: Expansion, count: int, shared: int) -> list[Value]:
    q = ctx.x(0)
    if ctx.has(1):
        return [heads(q, count), heads(ctx.x(1), shared), heads(ctx.x(2), shared)]
    size = q.shape[-1] // (count + 2 * shared)
    parts = ctx.op.Split(q, [count * size, shared * size, shared * size], outputs=3, axis=-1)
    return [heads(part, n) for part, n in zip(parts, (count, shared, shared), strict=True)]


def _unit(ctx: Expansion, x: Value, i: int) -> Value:
    """RMS normalisation of each head."""
    op = ctx.op
    return x / op.Sqrt(op.ReduceMean(x * x, [-1]) + ctx.attribute("qk_norm_epsilon", 1e-6)) * ctx.x(i)


def _grouped_weights(ctx: Expansion, q: Value, k: Value, keys: int) -> Value:
    """The softmax over keys, ``[1, N, S, T]``."""
    op, table = ctx.op, scores(ctx, q, k)
    cap = ctx.attribute("softcap", 0.0)
    if cap:
        table = op.Tanh(table * (1 / cap)) * cap
    if ctx.has(10):
        table = table + op.Slice(ctx.x(10), [0], [keys], [3])
    if ctx.attribute("causal", 1):
        masked = ahead(q.shape[2], keys, ctx.attribute("local_window_size", -1))
        table = table + np.where(masked, MASKED, 0.0)
    if ctx.has(11) or ctx.attribute("smooth_softmax", 0):
        sink = op.Reshape(ctx.x(11), [1, -1, 1, 1]) if ctx.has(11) else op.zeros((1, 1, 1, 1))
        sink = op.Expand(sink, [*table.shape[:3], 1])
        weights = op.Softmax(op.Concat(table, sink, axis=-1), axis=-1)
        result: Value = op.Slice(weights, [0], [keys], [3])
        return result
    plain: Value = op.Softmax(table, axis=-1)
    return plain
