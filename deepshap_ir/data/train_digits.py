"""Train the network of ``deepshap demo digits`` and write it, its background and its samples beside this file.

Run it as ``python deepshap_ir/data/train_digits.py``. It needs the extra ``test`` (torch, and scikit-learn for the
scans) and prints the accuracy on scans that the network never saw. One seed, one thread and deterministic kernels: a
second run on the same versions writes the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED = 0
EPOCHS = 40
BATCH = 64
OPSET = 18
FOLDER = Path(__file__).parent

Scans = NDArray[np.float32]
Labels = NDArray[np.int64]


def scans() -> tuple[Scans, Scans, Labels, Labels]:
    """Split the digits into training and held-out scans, ``[N, 1, 8, 8]`` in 0 (paper) to 1 (ink), and their labels."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    training, held_out, labels, held_out_labels = train_test_split(
        images, digits.target.astype(np.int64), test_size=0.25, random_state=SEED, stratify=digits.target
    )
    return training, held_out, labels, held_out_labels


def network() -> nn.Sequential:
    """Two convolutions with a max pooling between them: scans ``[N, 1, 8, 8]`` to logits ``[N, 10]``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def train(images: Scans, labels: Labels) -> nn.Sequential:
    """Train with Adam and a falling learning rate; the weight decay keeps the pictures of attributions calm."""
    torch.manual_seed(SEED)
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        schedule.step()
    return model.eval()


def export(model: nn.Sequential) -> onnx.ModelProto:
    """Write `model` as ONNX: input ``image [batch, 1, 8, 8]``, output ``logits [batch, 10]``."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export(dynamo=True) returned no program")
    proto = program.model_proto
    # The exporter notes the stack trace of every node and weight, with the paths of the machine that it ran on.
    del proto.metadata_props[:]
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    proto.producer_name, proto.producer_version = "deepshap-ir", ""
    proto.doc_string = "Trained by train_digits.py on the digits of scikit-learn"
    onnx.checker.check_model(proto, full_check=True)
    return proto


def rows_per_digit(labels: Labels, count: int) -> NDArray[np.int64]:
    """Return the first `count` row numbers of every digit, digits in order."""
    return np.concatenate([np.flatnonzero(labels == digit)[:count] for digit in range(10)])


def main() -> None:
    """Train, compare the exported file with the network, write the two files, print what they are worth."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training, held_out, labels, held_out_labels = scans()
    model = train(training, labels)
    file = export(model).SerializeToString()

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": held_out})
    (one_row,) = session.run(None, {"image": held_out[:1]})
    with torch.no_grad():
        expected = model(torch.from_numpy(held_out)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one_row, expected[:1], rtol=1e-4, atol=1e-4)

    background = training[rows_per_digit(labels, 10)]
    chosen = rows_per_digit(held_out_labels, 2)
    (FOLDER / "digits.onnx").write_bytes(file)
    np.savez_compressed(
        FOLDER / "digits.npz", background=background, samples=held_out[chosen], labels=held_out_labels[chosen]
    )
    accuracy = float(np.mean(logits.argmax(axis=1) == held_out_labels))
    print(f"accuracy {accuracy:.2%} on {len(held_out)} held-out scans, {len(file) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
