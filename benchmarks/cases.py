"""The networks of the comparison, and how many samples each side explains in a turn."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from benchmarks.compare import OURS, Case
from benchmarks.models import cnn, mlp, resnet18

POOLING = "With any max pooling, overlapping or not, Captum's attributions do not sum to the difference of the outputs."
OVERLAP = (
    "The windows of the stem's max pooling overlap. Where two of them choose one position, shap's torch rule keeps\n"
    "the part of one and drops the other: its additivity shows it, and is why this library differs from it here.\n"
    "With windows of 2 and stride 2 in the stem, shap's sum is right to 1e-6. Captum's is wrong at every max pooling."
)


def cases(quick: bool, without: Collection[str] = ()) -> dict[str, Case]:
    """Return the three cases; `quick` takes fewer samples and references, sides named in `without` are left out."""

    def sides(ours: int, shap: int, captum: int) -> dict[str, int]:
        samples = {OURS: ours, "shap": shap, "captum": captum}
        return {side: count for side, count in samples.items() if side not in without}

    small, medium = (4, 20) if quick else (10, 100)
    return {
        "mlp": Case("MLP 20-128-128-1", mlp, sides(50, 50, 50) if quick else sides(200, 200, 200)),
        "cnn": Case(
            "CNN 28x28", partial(cnn, references=medium), sides(1, 1, 1) if quick else sides(4, 4, 2), note=POOLING
        ),
        "resnet18": Case(
            "ResNet-18 at 224",
            partial(resnet18, references=small),
            sides(1, 1, 1) if quick else sides(2, 2, 2),
            note=OVERLAP,
        ),
    }
