"""A real model on real data, for a first look: handwritten digits and a small convolutional network."""

from __future__ import annotations

import io
import os
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepshap_ir.errors import InputError


def write_digits(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write the digits network, a background and samples into `folder`.

    The network takes scans ``[batch, 1, 8, 8]`` in 0 (paper) to 1 (ink) to ten logits. ``data/digits.md`` names the
    source of the scans, ``data/train_digits.py`` trained the network.

    Parameters
    ----------
    folder : made where it does not exist; files of these names that lie there are replaced.

    Returns
    -------
    dict of str to Path
        ``"model"``: ``model.onnx``; ``"background"``: ``background.npy``, ``[100, 1, 8, 8]``; ``"samples"``:
        ``samples.npy``, ``[20, 1, 8, 8]``, two of each digit in order.

    Raises
    ------
    InputError
        Where the folder cannot be written. No new file is left behind.
    """
    data = files("deepshap_ir") / "data"
    with np.load(io.BytesIO((data / "digits.npz").read_bytes())) as arrays:
        contents = {
            "model.onnx": (data / "digits.onnx").read_bytes(),
            "background.npy": _npy(arrays["background"]),
            "samples.npy": _npy(arrays["samples"]),
        }
    try:
        paths = _write_together(Path(folder), contents)
    except OSError as cause:
        raise InputError(
            f"the demo cannot be written to {os.fspath(folder)!r}: {cause.strerror or cause}. "
            "Name a folder that you may write to."
        ) from cause
    return dict(zip(("model", "background", "samples"), paths, strict=True))


def _npy(array: NDArray[Any]) -> bytes:
    """Return the bytes of an ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write_together(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    """Write all files under other names first, and give them theirs when every one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".deepshap-", dir=folder) as unfinished:
        for name, content in contents.items():
            (Path(unfinished) / name).write_bytes(content)
        for name in contents:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{name!r} is a folder there")
        return [Path(unfinished, name).replace(folder / name) for name in contents]
