"""STFT for the reference evaluator: onnx 1.23 takes no signal without a channel axis, and computes in complex64."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun

from deepshap_ir.graph import Array


class STFT(OpRun):
    """The transforms of frames of a signal, real and imaginary parts in the last axis."""

    def _run(
        self,
        signal: Array,
        frame_step: Array,
        window: Array | None = None,
        frame_length: Array | None = None,
        onesided: int | None = None,
    ) -> tuple[Array]:
        if signal.ndim == 2:
            signal = signal[..., None]
        values = signal[..., 0] if signal.shape[-1] == 1 else signal[..., 0] + 1j * signal[..., 1]
        length = int(np.asarray(frame_length).item()) if window is None else len(window)
        frames = np.lib.stride_tricks.sliding_window_view(values, length, axis=1)[
            :, :: int(np.asarray(frame_step).item())
        ]
        spectrum = np.fft.fft(frames if window is None else frames * window)
        if onesided in (None, 1):
            spectrum = spectrum[..., : length // 2 + 1]
        return (np.stack([spectrum.real, spectrum.imag], -1).astype(signal.dtype),)
