"""Hypothetical contributions of one-hot sequences, and the recipes with which genomics labs compute them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shap
import torch
from onnx import numpy_helper
from torch import nn

from deepshap_ir import DeepExplainer, InputError
from tests.onnx_text import Array, data, parsed

LENGTH, N, B = 24, 3, 6


def one_hot(*shape: int, seed: int = 0) -> Array:
    """Random letters, ``[*shape, 4]``."""
    return np.eye(4, dtype=np.float32)[np.random.default_rng(seed).integers(0, 4, shape)]


def shuffled(sequence: Array, rng: np.random.Generator) -> Array:
    """A sequence ``[L, 4]`` with the same pairs of neighbouring letters: a random walk through all of them."""
    letters = sequence.argmax(1)
    after: dict[int, list[int]] = {letter: [] for letter in range(4)}
    for first, second in pairwise(letters):
        after[int(first)].append(int(second))
    while True:  # until a walk uses all pairs
        left = {letter: list(rng.permutation(follow)) for letter, follow in after.items()}
        walk = [int(letters[0])]
        while left[walk[-1]]:
            walk.append(int(left[walk[-1]].pop()))
        if len(walk) == len(letters):
            return np.eye(4, dtype=np.float32)[walk]


def dinucleotide_shuffles(sample: list[Array]) -> list[Array]:
    """Seeded references of one sequence ``[4, L]``."""
    rng = np.random.default_rng(7)
    return [np.stack([shuffled(sample[0].T, rng).T for _ in range(B)])]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    """Without max pooling: where a number is that of the reference, shap's rule for it forgets the derivative."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 6, 5), nn.ReLU(), nn.AvgPool1d(4), nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2)
    ).eval()


@pytest.fixture(scope="module")
def sequences() -> Array:
    return one_hot(N, LENGTH, seed=1).transpose(0, 2, 1).copy()


@pytest.fixture(scope="module")
def explainer(module: nn.Module, sequences: Array) -> DeepExplainer:
    """Of the same network, in ONNX text with the weights of the module."""
    body = """{ c = Conv(x, w0, w1) r = Relu(c) p = AveragePool <kernel_shape=[4], strides=[4]> (r) f = Flatten(p)
        g = Gemm <transB=1> (f, w2, w3) h = Relu(g) y = Gemm <transB=1> (h, w4, w5) }"""
    model = parsed(body, f"(float[N,4,{LENGTH}] x) => (float[N,2] y)")
    for i, weight in enumerate(module.parameters()):
        model.graph.initializer.append(numpy_helper.from_array(weight.detach().numpy(), f"w{i}"))
    return DeepExplainer(model, dinucleotide_shuffles)


def test_shuffles_keep_the_pairs_of_neighbours(sequences: Array) -> None:
    def pairs(sequence: Array) -> list[tuple[int, int]]:
        letters = sequence.argmax(0).tolist()
        return sorted(pairwise(letters))

    (references,) = dinucleotide_shuffles([sequences[0]])
    assert all(pairs(reference) == pairs(sequences[0]) for reference in references)
    assert any(not np.array_equal(reference, sequences[0]) for reference in references)


def test_the_formula_for_each_reference(explainer: DeepExplainer, sequences: Array) -> None:
    m = explainer.multipliers(sequences, per_reference=True)
    references = np.stack([dinucleotide_shuffles([x])[0] for x in sequences])[..., None]
    expected = m - (m * references).sum(2, keepdims=True)
    each = explainer.shap_values(sequences, hypothetical=True, hypothetical_axis=1, per_reference=True)
    np.testing.assert_allclose(each, expected, atol=1e-6)
    mean = explainer.shap_values(sequences, hypothetical=True, hypothetical_axis=1)
    np.testing.assert_allclose(mean, expected.mean(1), atol=1e-6)


def test_at_the_own_letter_it_is_the_contribution_of_the_position(explainer: DeepExplainer, sequences: Array) -> None:
    hypothetical = explainer.shap_values(sequences, hypothetical=True, hypothetical_axis=1)
    contributions = explainer.shap_values(sequences)
    own = (hypothetical * sequences[..., None]).sum(1)
    np.testing.assert_allclose(own, contributions.sum(1), atol=1e-6)
    assert np.abs(hypothetical - contributions).max() > 0.01


def test_ranked_outputs_and_the_axis_from_the_end(explainer: DeepExplainer, sequences: Array) -> None:
    every = explainer.shap_values(sequences, hypothetical=True, hypothetical_axis=-2)
    ranked, indexes = explainer.shap_values(sequences, ranked_outputs=1, hypothetical=True, hypothetical_axis=1)
    np.testing.assert_allclose(ranked, np.take_along_axis(every, indexes[:, None, None], 3), atol=1e-6)


def combine_mult_and_diffref(mult: list[Array], orig_inp: list[Array], bg_data: list[Array]) -> list[Array]:
    """As laboratories give it to their fork of shap, for one sequence ``[L, 4]`` with references ``[B, L, 4]``."""
    to_return = []
    for part in range(len(mult)):
        projected = np.zeros_like(bg_data[part]).astype("float")
        for i in range(orig_inp[part].shape[-1]):
            letter = np.zeros_like(orig_inp[part]).astype("float")
            letter[:, i] = 1.0
            contributions = (letter[None] - bg_data[part]) * mult[part]
            projected[:, :, i] = np.sum(contributions, axis=-1)
        to_return.append(np.mean(projected, axis=0))
    return to_return


def test_agrees_with_the_recipe_on_the_multipliers_of_shap(
    explainer: DeepExplainer, module: nn.Module, sequences: Array
) -> None:
    ours = explainer.shap_values(sequences, hypothetical=True, hypothetical_axis=1)
    for i, sequence in enumerate(sequences):
        (references,) = dinucleotide_shuffles([sequence])
        theirs = shap.DeepExplainer(module, torch.from_numpy(references)).explainer
        theirs.add_handles(theirs.model, *_handles())
        pairs = torch.cat([torch.from_numpy(sequence).expand(B, -1, -1), torch.from_numpy(references)])
        for output in range(2):
            multipliers = np.asarray(theirs.gradient(output, [pairs])[0])[:B]
            (expected,) = combine_mult_and_diffref(
                [multipliers.transpose(0, 2, 1)], [sequence.T], [references.transpose(0, 2, 1)]
            )
            np.testing.assert_allclose(ours[i, ..., output], expected.T, atol=1e-5)
        theirs.remove_attributes(theirs.model)


def _handles() -> tuple[Any, Any]:
    from shap.explainers._deep import deep_pytorch

    return deep_pytorch.add_interim_values, deep_pytorch.deeplift_grad


def two_inputs() -> DeepExplainer:
    body = """{ a = Mul(x, h) g = Tanh(a) k = Constant <value_ints=[1,2]> ()
        s = ReduceSum <keepdims=0> (g, k) y = Exp(s) }"""
    model = parsed(body, "(float[N,6,4] x, float[N,6,4] h) => (float[N] y)")
    return DeepExplainer(model, [one_hot(B, 6), data(B, 6, 4)])


def test_inputs_that_are_not_named_keep_their_contributions() -> None:
    e, samples = two_inputs(), [one_hot(N, 6, seed=1), data(N, 6, 4, seed=2)]
    hypothetical = e.shap_values(samples, hypothetical=True, hypothetical_axis={"x": 2})
    contributions = e.shap_values(samples)
    np.testing.assert_allclose(hypothetical[1], contributions[1], atol=1e-7)
    np.testing.assert_allclose((hypothetical[0] * samples[0][..., None]).sum(2), contributions[0].sum(2), atol=1e-5)
    with pytest.raises(InputError, match=r"those of 'h' are not along axis 2 \(sample 0\)\. Say where"):
        e.shap_values(samples, hypothetical=True)


def test_letters_inside_the_model() -> None:
    """Tokens are fed, their one-hot codes have the attributions."""
    body = """{ depth = Constant <value_int=4> () values = Constant <value = float[2] {0, 1}> ()
        hot = OneHot <axis=-1> (x, depth, values) w = Constant <value = float[4,2] {1,2, 3,4, 5,6, 7,9}> ()
        h = MatMul(hot, w) y = Tanh(h) }"""
    model = parsed(body, "(int64[N,6] x) => (float[N,6,2] y)")
    letters = np.random.default_rng(0).integers(0, 4, (B + N, 6))
    e = DeepExplainer(model, letters[:B], at=["hot"])
    hypothetical = e.shap_values(letters[B:], hypothetical=True)
    contributions = e.shap_values(letters[B:])
    hot = np.eye(4)[letters[B:]][..., None, None]
    np.testing.assert_allclose((hypothetical * hot).sum(2), contributions.sum(2), atol=1e-5)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (-1, r"those of 'x' are not along axis 2 \(sample 0\); along axis 1 they are\. Say .* hypothetical_axis="),
        (3, r"hypothetical_axis=3: 'x' has 3 axes"),
        (0, r"hypothetical_axis=0: this is the batch axis of 'x'; name that of the letters"),
        ({"z": 1}, r"hypothetical_axis: nothing is attributed to 'z'\. There are: 'x'"),
    ],
)
def test_axes_that_are_none(axis: int | Mapping[str, int], message: str) -> None:
    body = "{ k = Constant <value_ints=[1,2]> () s = ReduceSum <keepdims=0> (x, k) y = Exp(s) }"
    sequences = one_hot(N, LENGTH).transpose(0, 2, 1)
    e = DeepExplainer(parsed(body, f"(float[N,4,{LENGTH}] x) => (float[N] y)"), sequences)
    with pytest.raises(InputError, match=message):
        e.shap_values(sequences, hypothetical=True, hypothetical_axis=axis)


def test_unknown_letters_may_be_zeros_or_shares() -> None:
    e, (x, h) = two_inputs(), [one_hot(N, 6, seed=1), data(N, 6, 4, seed=2)]
    x[1, 2], x[2, 3] = 0, 0.25
    values = e.shap_values([x, h], hypothetical=True, hypothetical_axis={"x": -1})
    assert np.isfinite(values[0]).all()
    x[1, 2] = -1, 1, 1, 0
    with pytest.raises(InputError, match=r"those of 'x' are not along axis 2 \(sample 1\)"):
        e.shap_values([x, h], hypothetical=True, hypothetical_axis={"x": -1})
