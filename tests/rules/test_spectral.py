"""The matrices of DFT and STFT against numpy."""

import numpy as np
import pytest

from deepshap_ir.errors import RuleError
from deepshap_ir.rules.spectral import _inverse_real, _transform

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("given", [5, 8, 11])
@pytest.mark.parametrize("inverse", [0, 1])
def test_the_matrix_is_the_transform(given: int, inverse: int) -> None:
    signal = RNG.normal(size=(given, 2))
    got = np.einsum("np,npkq->kq", signal, _transform(8, given, 2, inverse))
    transform = np.fft.ifft if inverse else np.fft.fft
    expected = transform(signal[:, 0] + 1j * signal[:, 1], 8)
    np.testing.assert_allclose(got, np.stack([expected.real, expected.imag], -1), atol=1e-12)


@pytest.mark.parametrize("length", [8, 9])
def test_the_matrix_of_half_a_spectrum(length: int) -> None:
    x = RNG.normal(size=length)
    spectrum = np.fft.rfft(x)
    parts = np.stack([spectrum.real, spectrum.imag], -1)
    got = np.einsum("np,npkq->kq", parts, _inverse_real(length, len(spectrum)))[:, 0]
    np.testing.assert_allclose(got, x, atol=1e-12)


def test_long_transforms_are_refused() -> None:
    with pytest.raises(RuleError, match=r"a transform of 100000 numbers to 100000 would be a matrix of 4\d+ elements"):
        _transform(100_000, 100_000, 1, 0)
