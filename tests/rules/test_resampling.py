"""Resize, GridSample, RoiAlign, AffineGrid and DeformConv."""

from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepshap_ir import DeepExplainer
from deepshap_ir.engine.resizing import resized_axes
from deepshap_ir.errors import RuleError
from deepshap_ir.testing import check_rule

RNG = np.random.default_rng(0)
MODES = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"]


@pytest.mark.parametrize(("mode", "place"), list(product(["nearest", "linear", "cubic"], MODES)))
def test_resize(mode: str, place: str) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": place}
    for sizes in ([1, 2, 7, 5], [1, 2, 2, 3], [1, 2, 8, 8]):
        check_rule("Resize", [(1, 2, 4, 4), None, None, np.array(sizes)], attributes=attributes)


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5},
        {"mode": "cubic", "exclude_outside": 1},
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"mode": "nearest", "nearest_mode": "floor"},
        {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
        {"mode": "nearest", "keep_aspect_ratio_policy": "not_larger"},
        {"mode": "nearest", "keep_aspect_ratio_policy": "not_smaller"},
    ],
    ids=str,
)
def test_resize_of_named_axes(attributes: dict[str, Any]) -> None:
    inputs = [(1, 2, 4, 5), None, None, np.array([3, 9])]
    check_rule("Resize", inputs, attributes={**attributes, "axes": [3, 2]})


def test_resize_crops() -> None:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 10.0}
    region = np.array([0.41, -0.3, 1.2, 0.83])
    inputs = [(1, 1, 4, 4), region, None, np.array([5, 5])]
    check_rule("Resize", inputs, attributes={**attributes, "axes": [2, 3]})


def test_matrices_are_those_of_torch() -> None:
    x = torch.from_numpy(RNG.normal(size=(1, 1, 5, 1)))
    for mode, size in [("bilinear", 9), ("bicubic", 12), ("bilinear", 2)]:
        expected = torch.nn.functional.interpolate(x, (size, 1), mode=mode)
        attributes = {"mode": mode.removeprefix("bi"), "axes": [0]}
        (axis,) = resized_axes((5,), attributes, None, np.array([size]), None)
        np.testing.assert_allclose(axis.matrix(attributes) @ x.numpy()[0, 0, :, 0], expected[0, 0, :, 0], atol=1e-12)


@pytest.mark.parametrize("mode", MODES[:4])
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_nearest_elements_are_those_of_the_runtime(mode: str, rounding: str) -> None:
    """Where a coordinate is on the edge between two elements but for its rounding; lengths that it decides too."""
    attributes = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": rounding}
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **attributes)
    types = [helper.make_tensor_value_info(*t) for t in (("x", 1, ["n"]), ("scales", 1, [1]), ("y", 1, ["m"]))]
    graph = helper.make_graph([node], "resized", types[:2], types[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size, scale in product([2, 5, 9, 14, 20], [0.1, 0.3, 0.6, 1.1, 1.4, 8 / 7, 5 / 3]):
        scales, x = np.array([scale], np.float32), np.arange(size, dtype=np.float32)
        if size * scales[0] >= 1:
            axes = resized_axes((size,), attributes, scales, None, None)
            found = axes[0].matrix(attributes) @ x if axes else x
            np.testing.assert_array_equal(found, session.run(None, {"x": x, "scales": scales})[0])


def test_resize_to_the_same_lengths_copies() -> None:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    check_rule("Resize", [(1, 2, 2, 3), None, np.array([1, 1, 1.3, 1.2]), None], attributes=attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": align}
    grid = RNG.uniform(-1.3, 1.3, (1, 3, 2, 2))
    check_rule("GridSample", [(1, 2, 4, 5), grid], attributes=attributes, opset=20)
    if mode != "nearest":  # its places are steps
        inputs = [(1, 2, 4, 5), grid.shape]
        for varying in ([1], [0, 1]):
            given = [RNG.normal(size=inputs[0]) if varying == [1] else inputs[0], inputs[1]]
            domain = {1: (-1.3, 1.3)}
            check_rule(
                "GridSample", given, varying=varying, attributes=attributes, opset=20, domain=domain, derivative=False
            )


def test_grid_sample_of_volumes() -> None:
    grid = RNG.uniform(-1.3, 1.3, (1, 2, 3, 2, 3))
    check_rule("GridSample", [(1, 2, 3, 4, 5), grid], attributes={"mode": "linear"}, opset=20)


def test_roi_align() -> None:
    regions = np.array([[0.2, 0.3, 3.1, 2.7], [1.0, 0.0, 4.0, 4.0]])
    indices = np.array([1, 0])
    attributes = {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.9}
    check_rule("RoiAlign", [(2, 3, 5, 5), regions, indices], attributes=attributes)
    both = [(2, 3, 5, 5), regions.shape, indices]
    check_rule("RoiAlign", both, varying=[0, 1], attributes=attributes, domain={1: (0.0, 4.0)}, derivative=False)
    with pytest.raises(RuleError, match="only fixed regions"):
        check_rule("RoiAlign", both, varying=[0, 1], attributes={**attributes, "mode": "max"}, derivative=False)


@pytest.mark.parametrize("attributes", [{}, {"coordinate_transformation_mode": "output_half_pixel"}], ids=str)
def test_roi_align_of_any_opset(attributes: dict[str, Any]) -> None:
    """onnxruntime has no kernel of opset 22, which is that of opset 16 for more types."""
    given = {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.9, **attributes}
    regions = np.array([[0.2, 0.3, 3.1, 2.7], [1.0, 0.0, 4.0, 4.0]], np.float32)
    constants = [numpy_helper.from_array(a, name) for a, name in ((regions, "rois"), (np.zeros(2, np.int64), "images"))]
    images = RNG.normal(size=(5, 2, 5, 5)).astype(np.float32)
    found = []
    for opset in (16, 22, 24):
        node = helper.make_node("RoiAlign", ["x", "rois", "images"], ["y"], **given)
        types = [helper.make_tensor_value_info(*t) for t in (("x", 1, [1, 2, 5, 5]), ("y", 1, [2, 2, 2, 3]))]
        graph = helper.make_graph([node], "aligned", types[:1], types[1:], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        phi = DeepExplainer(model, images[2:]).shap_values(images[:2])
        evaluator = ReferenceEvaluator(model)
        y = np.stack([np.asarray(next(iter(evaluator.run(None, {"x": image[None]})))) for image in images])
        np.testing.assert_allclose(
            np.sum(phi, (1, 2, 3)).reshape(2, -1), (y[:2] - y[2:].mean(0)).reshape(2, -1), atol=1e-5
        )
        found.append(phi)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "groups", "given"),
    [
        ({}, (1, 1), 3),
        ({"strides": [2, 1], "pads": [1, 0, 1, 1], "dilations": [1, 2]}, (1, 1), 4),
        ({"group": 2, "offset_group": 2}, (2, 2), 5),
    ],
    ids=str,
)
def test_deformable_convolution(attributes: dict[str, Any], groups: tuple[int, int], given: int) -> None:
    """Of fixed offsets it is linear; offsets and masks that vary are players."""
    group, offset_group = groups
    pads, strides, steps = (
        attributes.get(*default) for default in (("pads", [0] * 4), ("strides", [1, 1]), ("dilations", [1, 1]))
    )
    size = [(5 + pads[k] + pads[k + 2] - steps[k] - 1) // strides[k] + 1 for k in (0, 1)]
    moved, masked = (1, offset_group * 8, *size), (1, offset_group * 4, *size)
    weights, bias, mask = RNG.normal(size=(2, 4 // group, 2, 2)), RNG.normal(size=2), RNG.uniform(0.1, 1.0, masked)
    domain = {0: (-2.0, 2.0), 2: (-0.7, 0.7), 4: (0.1, 1.0)}

    def check(varying: list[int], derivative: bool, *inputs: Any) -> None:
        check_rule(
            "DeformConv",
            inputs[:given],
            varying=varying,
            attributes=attributes,
            opset=19,
            domain=domain,
            derivative=derivative,
        )

    offsets = RNG.uniform(-0.7, 0.7, moved)
    check([0], True, (1, 4, 5, 5), weights, offsets, bias, mask)
    check([0, 2], False, (1, 4, 5, 5), weights, moved, bias, mask)
    if given == 5:
        check([0, 4], True, (1, 4, 5, 5), weights, offsets, bias, masked)
