"""The operator cases of the standard: a fixed sample of them, the committed score, and reasons for every exception."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages
from benchmarks.operators import MARKS, cases, check, reason

PAGE = Path(__file__).parent.parent / "rules" / "README.md"
SCORE = 1005
"""Outputs that sum to delta: may rise, must not fall."""

SAMPLE = [
    "abs",
    "adagrad_multiple",
    "adam",
    "add_bcast",
    "affine_grid_2d",
    "affine_grid_3d_align_corners",
    "asin",
    "attention_23_boolmask_fullymasked_row_nan_robustness",
    "attention_4d_attn_mask_4d_causal",
    "attention_4d_causal",
    "attention_local_window_with_past",
    "averagepool_2d_ceil",
    "basic_conv_with_padding",
    "basic_deform_conv_with_padding",
    "batchnorm_example",
    "causal_conv_with_state_silu",
    "celu",
    "center_crop_pad_crop",
    "clip_example",
    "concat_2d_axis_1",
    "convtranspose_pads",
    "cumprod_2d_axis_0",
    "cumsum_2d_axis_1",
    "deform_conv_with_mask_bias",
    "depthtospace_crd_mode_example",
    "dequantizelinear_blocked",
    "det_nd",
    "dft_axis_opset19",
    "dft_inverse",
    "dft_irfft",
    "dft_rfft",
    "div_bcast",
    "dropout_default_ratio",
    "einsum_batch_diagonal",
    "elu",
    "erf",
    "expand_dim_changed",
    "flatten_axis1",
    "gather_1",
    "gelu_tanh_1",
    "gemm_all_attributes",
    "globalmaxpool",
    "gridsample_bicubic_align_corners_0_additional_1",
    "gridsample_volumetric_bilinear_align_corners_1",
    "group_normalization_example",
    "hardsigmoid",
    "hardswish",
    "instancenorm_example",
    "l2normalization_axis_1",
    "layer_normalization_3d_axis_negative_1_epsilon",
    "linear_attention_gated_delta_gqa",
    "logsoftmax_large_number",
    "lppool_2d_dilations",
    "lrn",
    "matmul_4d",
    "max_example",
    "maxpool_2d_dilations",
    "maxunpool_export_without_output_shape",
    "mish",
    "mod_mixed_sign_float32",
    "momentum",
    "mvn",
    "nesterov_momentum",
    "nllloss_NCd1d2_with_weight_reduction_mean",
    "onehot_with_axis",
    "pow_bcast_scalar",
    "pow_types_float32_uint64",
    "prelu_broadcast",
    "reduce_l1_keep_dims_random",
    "reduce_log_sum_exp_keepdims_random",
    "reduce_prod_default_axes_keepdims_random",
    "reduce_sum_square_keepdims_random",
    "resize_downsample_scales_cubic_antialias",
    "resize_tf_crop_and_resize_axes_3_2",
    "resize_upsample_sizes_nearest_not_smaller",
    "rotary_embedding",
    "sce_mean_weight_ii_3d",
    "scatter_elements_with_reduction_mul",
    "scatternd_max",
    "softmax_axis_1",
    "spacetodepth_dcr_mode_example",
    "stft_with_window",
    "swiglu",
    "tensorscatter_circular",
    "top_k",
    "where_example",
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return {case.name: case for case in cases([f"test_{name}" for name in SAMPLE])}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_case_sums_to_delta(found: dict[str, Any], name: str) -> None:
    outcomes = check(found[f"test_{name}"])
    assert outcomes
    assert [(o.status, o.reason) for o in outcomes] == [("ok", "")] * len(outcomes)


def page() -> str:
    return pages.inside(PAGE, MARKS)


def test_the_committed_score_holds() -> None:
    score = re.search(r"(\d+) of (\d+) outputs of \d+ operators sum to delta .* (\d+) do not, .* (\d+) fail", page())
    assert score is not None
    assert int(score[1]) >= SCORE
    assert int(score[2]) >= 1044
    assert int(score[4]) == 0


def test_every_exception_has_a_reason() -> None:
    lines = re.findall(r"^\* (\S+): \w+, (.*)$", page(), re.MULTILINE)
    assert lines
    without = [(case, said) for case, said in lines if reason(case) != said]
    assert without == []
