"""A picture of attributions: bars for features, heat maps over images and sequences."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepshap_ir.commands.results import Result, check_folder, feature_labels, whole_file
from deepshap_ir.errors import InputError, MissingDependencyError
from deepshap_ir.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Array = NDArray[Any]

MOST_BARS = 20
MOST_SAMPLES = {"bars": 3, "image": 6, "sequence": 4}
MOST_OUTPUTS = 3
SUFFIXES = (".png", ".pdf", ".svg")
POSITIVE, NEGATIVE, NEUTRAL = "#d62f4b", "#2b6cb8", "#7b8794"


def check_picture(path: str | os.PathLike[str]) -> None:
    """Refuse a picture that `plot_result` cannot draw, before anything is computed.

    Raises
    ------
    InputError
        The suffix is not .png, .pdf or .svg, or the folder is not there.
    MissingDependencyError
        matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: cannot be drawn: pictures are {', '.join(SUFFIXES)} files")
    check_folder(path)
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise MissingDependencyError("matplotlib is needed to draw: pip install 'deepshap-ir[plot]'") from None


def plot_result(path: str | os.PathLike[str], result: Result) -> None:
    """Draw `result` into a file, whole or not at all.

    The inputs with one axis of features become bars: of the mean over all samples, and of a few samples. Those with
    more become heat maps of a few samples, over the input. Where the model has several outputs,
    the ones of largest ``f(x)`` are shown.

    Raises
    ------
    InputError
        The file cannot be written, or its suffix is not .png, .pdf or .svg.
    MissingDependencyError
        matplotlib is not installed.
    """
    path = Path(path)
    check_picture(path)
    figure = draw(result)
    with whole_file(path) as handle:
        figure.savefig(handle, format=path.suffix[1:].lower(), dpi=150)


def draw(result: Result) -> Figure:
    """`result` as a figure that belongs to no window."""
    from matplotlib.figure import Figure

    flat = {name: one for name, one in result.explanations.items() if kind(one) == "bars"}
    groups = [{name: one} for name, one in result.explanations.items() if name not in flat]
    sizes = [_map_size(result, one) for group in groups for one in group.values()]
    if flat:
        groups.insert(0, flat)
        sizes.insert(0, _bar_size(result, flat))
    figure = Figure(figsize=(max(w for w, _ in sizes), sum(h for _, h in sizes)), layout="constrained")
    parts = figure.subfigures(len(groups), 1, height_ratios=[h for _, h in sizes], squeeze=False).ravel()
    for part, group in zip(parts, groups, strict=True):
        if group is flat:
            _draw_bars(part, result, flat)
        else:
            name, one = next(iter(group.items()))
            _draw_maps(part, result, name, one)
    return figure


def shown_samples(rows: int, most: int) -> list[int]:
    """Positions of at most so many samples, spread evenly over all."""
    return [int(i) for i in np.linspace(0, rows - 1, min(rows, most)).round()]


def kind(explanation: Explanation) -> str:
    """``"bars"``, ``"image"`` or ``"sequence"``, from the shape and names of the features."""
    shape = [size for size in explanation.data.shape[1:] if size > 1]
    if len(shape) < 2:
        return "bars"
    square = min(shape) >= 8 and max(shape) <= 4 * min(shape)
    return "image" if len(shape) > 2 or (square and explanation.feature_names is None) else "sequence"


def _top_outputs(result: Result, sample: int) -> list[int]:
    """Positions of the outputs of `sample` with the largest ``f(x)``, the largest first."""
    return [int(k) for k in np.argsort(-result.outputs[sample].ravel(), kind="stable")[:MOST_OUTPUTS]]


def _output_title(result: Result, sample: int, output: int) -> str:
    """The output's name, ``f(x)`` and the base value."""
    names = result.first.output_names
    own = isinstance(names, np.ndarray)
    label = str(names.reshape(len(names), -1)[sample, output]) if own else result.output_labels[output]
    value = result.outputs.reshape(len(result.outputs), -1)[sample, output]
    base = result.first.base_values.reshape(len(result.outputs), -1)[sample, output]
    return f"{_literal(label)}\n" * bool(label) + f"f(x) = {value:.4g}, E[f] = {base:.4g}"


def _literal(text: str) -> str:
    """`text` for matplotlib, which reads what stands between dollars as mathematics."""
    return text.replace("$", r"\$")


def _bar_size(result: Result, flat: dict[str, Explanation]) -> tuple[float, float]:
    features = sum(one.data[0].size for one in flat.values())
    panels = 1 + min(len(result.outputs), MOST_SAMPLES["bars"]) if len(result.outputs) > 1 else 1
    return max(6.4, 4.6 * panels), 1.1 + 0.27 * max(4, min(features, MOST_BARS))


def _draw_bars(part: SubFigure, result: Result, flat: dict[str, Explanation]) -> None:
    alone = len(result.explanations) == 1
    labels = [label for name, one in flat.items() for label in feature_labels(one, name, alone)]
    rows = len(result.outputs)
    values = np.concatenate([one.values.reshape(rows, one.data[0].size, -1) for one in flat.values()], axis=1)
    data = np.concatenate([one.data.reshape(rows, -1).astype(object) for one in flat.values()], axis=1)
    best = [_top_outputs(result, sample)[0] for sample in range(rows)]
    chosen = values[np.arange(rows), :, best]
    samples = shown_samples(rows, MOST_SAMPLES["bars"])
    panels = part.subplots(1, len(samples) + (rows > 1), squeeze=False)[0]
    if rows > 1:
        what = "" if values.shape[2] == 1 else "\nfor each sample's largest output"
        title = f"mean |attribution|, {rows} samples{what}"
        _bars(panels[0], np.abs(chosen).mean(axis=0), labels, title, "mean |attribution|", signed=False)
    for axes, sample in zip(panels[rows > 1 :], samples, strict=True):
        described = [f"{label} = {_short(value)}" for label, value in zip(labels, data[sample], strict=True)]
        title = f"sample {sample}: {_output_title(result, sample, best[sample])}"
        _bars(axes, chosen[sample], described, title, "attribution", signed=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bars(axes: Axes, values: Array, labels: list[str], title: str, unit: str, signed: bool) -> None:
    """The bars of largest magnitude, largest on top, and the sum of the others."""
    order = np.argsort(-np.abs(values), kind="stable")
    shown = order if len(order) <= MOST_BARS else order[: MOST_BARS - 1]
    heights = list(values[shown])
    names = [_literal(labels[i]) for i in shown]
    if len(shown) < len(order):
        heights.append(values[order[len(shown) :]].sum())
        names.append(f"the {len(order) - len(shown)} others")
    colours = [(POSITIVE if height >= 0 else NEGATIVE) if signed else NEUTRAL for height in heights]
    bars = axes.barh(range(len(heights)), heights, color=colours, height=0.72)
    axes.bar_label(bars, [f"{height:+.3g}" if signed else f"{height:.3g}" for height in heights], padding=3, fontsize=8)
    axes.set_yticks(range(len(heights)), names, fontsize=8)
    axes.set_ylim(max(len(heights), 4) - 0.5, -0.5)
    axes.axvline(0, color="#333333", linewidth=0.8)
    finite = [0.0, *(height for height in heights if np.isfinite(height))]
    low, high = min(finite), max(finite)
    room = (high - low or 1.0) * (0.6 if low < 0.0 < high else 0.4)  # for the numbers beside the bars
    axes.set_xlim(low - room * (low < 0.0), high + room * (high > 0.0 or low == 0.0))
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _map_grid(result: Result, explanation: Explanation) -> tuple[list[int], int]:
    """Which samples, and how many outputs, are drawn."""
    outputs = min(result.outputs[0].size, MOST_OUTPUTS)
    return shown_samples(len(result.outputs), MOST_SAMPLES[kind(explanation)]), outputs


def _map_size(result: Result, explanation: Explanation) -> tuple[float, float]:
    samples, outputs = _map_grid(result, explanation)
    shape = _plane(explanation, explanation.data[0], sequence=kind(explanation) == "sequence").shape
    if kind(explanation) == "image":
        return max(5.0, 1.8 * (outputs + 1) + 0.8), 0.2 + len(samples) * (1.6 * min(2.0, shape[0] / shape[1]) + 0.42)
    return 1.0 + 4.4 * (outputs + 1), 0.5 + len(samples) * (0.9 + min(3.0, max(0.9, 0.19 * shape[0])))


def _plane(explanation: Explanation, array: Array, sequence: bool) -> Array:
    """One sample's array as ``[H, W]``, or ``[H, W, 3]`` for the data of colour images; features by time."""
    array = np.asarray(array, np.float64).squeeze()
    if sequence:
        return array.T
    last = _channels_last(explanation)
    while array.ndim > 3:
        array = array.mean(axis=0)
    if array.ndim == 3:
        array = array if last else np.moveaxis(array, 0, -1)
        array = array if array.shape[-1] == 3 else array.mean(axis=-1)
    return array


def _channels_last(explanation: Explanation) -> bool:
    shape = [size for size in explanation.data.shape[1:] if size > 1]
    return bool(shape[-1] <= 4 < shape[0])


def _heat(explanation: Explanation, values: Array, sequence: bool) -> Array:
    """One sample's attributions added up over channels, ``[H, W]``."""
    array = values.squeeze()
    if sequence:
        return array.T
    if array.ndim > 2 and _channels_last(explanation):
        array = array.sum(axis=-1)
    while array.ndim > 2:
        array = array.sum(axis=0)
    return array


def _draw_maps(part: SubFigure, result: Result, name: str, explanation: Explanation) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    sequence = kind(explanation) == "sequence"
    samples, outputs = _map_grid(result, explanation)
    axes = part.subplots(len(samples), outputs + 1, squeeze=False)
    values = explanation.values.reshape(*explanation.data.shape, -1)
    tops = [_top_outputs(result, sample) for sample in samples]
    heats = [
        [_heat(explanation, values[s][..., k], sequence) for k in top] for s, top in zip(samples, tops, strict=True)
    ]
    limit = float(np.percentile(np.abs(heats), 99.8)) or float(np.abs(heats).max()) or 1.0
    for row, sample in enumerate(samples):
        plane = _plane(explanation, explanation.data[sample], sequence)
        light = _scaled(plane, sequence)
        _show(axes[row, 0], light, sequence)
        axes[row, 0].set_title(f"sample {sample}", fontsize=9, loc="left")
        for column, (output, heat) in enumerate(zip(tops[row], heats[row], strict=True), start=1):
            _show(axes[row, column], _faint(light, sequence), sequence)
            axes[row, column].imshow(
                _coloured(heat / limit), aspect="auto" if sequence else "equal", interpolation="nearest"
            )
            axes[row, column].set_title(_output_title(result, sample, output), fontsize=7.5, loc="left")
        if sequence:
            _label_sequence(axes[row], explanation, plane.shape)
    colours = LinearSegmentedColormap.from_list("attribution", [NEGATIVE, "white", POSITIVE])
    clipped = max(float(np.abs(heat).max()) for row in heats for heat in row) > limit
    bar = part.colorbar(
        ScalarMappable(Normalize(-limit, limit), colours),
        ax=axes,
        shrink=min(1.0, 1.6 / len(samples)),
        aspect=18,
        extend="both" if clipped else "neither",
    )
    bar.set_label("attribution" if len(result.explanations) == 1 else f"attribution of {_literal(name)}", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _scaled(plane: Array, sequence: bool) -> Array:
    """From 0 to 1: over an image, or for every feature of a sequence on its own."""
    axis = 1 if sequence else None
    low, high = plane.min(axis=axis, keepdims=True), plane.max(axis=axis, keepdims=True)
    scaled: Array = (plane - low) / np.where(high > low, high - low, 1)
    return scaled


def _faint(light: Array, sequence: bool) -> Array:
    """The same in light grey; an image on white, whether it is dark on light or light on dark."""
    grey = light if light.ndim == 2 else light @ [0.299, 0.587, 0.114]
    ink = 1 - grey if sequence or grey.mean() > 0.5 else grey
    faint: Array = 1 - 0.2 * ink
    return faint


def _show(axes: Axes, image: Array, sequence: bool) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, aspect="auto" if sequence else "equal", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#c8ccd1")


def _coloured(heat: Array) -> Array:
    """Attributions over the limit as ``[H, W, 4]``: the sign as colour, the magnitude as opacity."""
    from matplotlib.colors import to_rgb

    image = np.empty((*heat.shape, 4))
    image[..., :3] = np.where((heat >= 0)[..., None], to_rgb(POSITIVE), to_rgb(NEGATIVE))
    image[..., 3] = np.clip(np.abs(heat), 0, 1)
    return image


def _label_sequence(row: Any, explanation: Explanation, shape: tuple[int, ...]) -> None:
    from matplotlib.ticker import MaxNLocator

    names = explanation.feature_names
    for axes in row:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("position", fontsize=8)
        axes.tick_params(labelsize=8, length=2)
    if isinstance(names, list) and len(names) == shape[0] <= 30:
        row[0].set_yticks(range(len(names)), [_literal(name) for name in names], fontsize=8)
    elif shape[0] <= 30:
        row[0].yaxis.set_major_locator(MaxNLocator(6, integer=True))
        row[0].set_ylabel("feature", fontsize=8)
