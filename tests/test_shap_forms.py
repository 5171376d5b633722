"""Every form of `shap.DeepExplainer`'s interface, and those that shap refuses, has a test that is there and runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KERAS, KERAS_FILES = "converters/test_keras.py", "converters/test_keras_files.py"
TORCH, TENSORFLOW = "converters/test_pytorch.py", "converters/test_tensorflow.py"
INTERFACE, EXPLAINER = "test_interface.py", "test_explainer.py"

FORMS: dict[str, list[tuple[str, str]]] = {
    "Keras Model and Sequential; pairs of inputs and output": [
        (KERAS, "test_model_pair_and_layer_are_the_same_where_they_mean_the_same"),
        (KERAS, "test_pairs_of_tensors_begin_and_end_anywhere"),
        (KERAS_FILES, "test_an_lstm_of_prices_is_explained_per_time_step"),
    ],
    "list of inputs": [
        (KERAS, "test_inputs_by_name"),
        (TORCH, "test_several_inputs_and_arguments_that_are_no_arrays"),
        (EXPLAINER, "test_several_inputs_give_a_list"),
    ],
    "subclassed Keras model": [
        (KERAS, "test_subclassed_models_take_arrays_lists_and_dicts_and_are_left_as_they_were"),
        (TENSORFLOW, "test_tf_keras_graphs_and_subclasses_are_left_as_they_were"),
    ],
    "multi-output model; output of rank 3 or more": [
        (KERAS, "test_outputs_by_name_and_index"),
        (EXPLAINER, "test_any_value_may_be_the_output"),
        (EXPLAINER, "test_outputs_of_any_rank"),
    ],
    "torch Module; (module, layer), all inputs of the layer": [
        (TORCH, "test_a_module_is_left_as_it_was"),
        (TORCH, "test_every_input_of_a_layer_gets_attributions"),
    ],
    "torch output of rank 1, tuple, dict, dataclass": [(TORCH, "test_outputs_in_tuples_mappings_and_dataclasses")],
    "data: array, list, DataFrame, callable, tensor; X too": [
        (INTERFACE, "test_data_and_samples_in_any_form"),
        (INTERFACE, "test_columns_are_matched_by_name"),
        (INTERFACE, "test_one_frame_for_several_inputs_of_one_column"),
        (TORCH, "test_data_of_every_kind"),
        (KERAS, "test_callable_backgrounds"),
    ],
    "session, learning_phase_flags": [
        (INTERFACE, "test_session_and_flags_reach_the_converter"),
        (TENSORFLOW, "test_tensors_of_graphs_with_sessions"),
    ],
    "shapes of what is returned": [(INTERFACE, "test_shapes_and_dtypes")],
    "ranked_outputs in every order": [
        (INTERFACE, "test_ranked_outputs_pass_the_check_in_every_order"),
        ("test_peers.py", "test_ranked_outputs_are_those_of_shap"),
    ],
    "expected_value": [
        (INTERFACE, "test_shapes_and_dtypes"),
        (INTERFACE, "test_the_expected_value_of_a_function_follows_the_samples"),
    ],
    "an Explanation that is complete": [
        (EXPLAINER, "test_an_explanation_holds_all_there_is"),
        (INTERFACE, "test_plots_of_features"),
        (INTERFACE, "test_plots_of_pictures"),
        (INTERFACE, "test_plots_of_texts"),
    ],
    "explain_row": [(INTERFACE, "test_one_row_in_the_words_of_shap")],
    "save, load": [("test_saving.py", "test_what_is_read_is_what_was_written")],
    "supports_model_with_masker": [(INTERFACE, "test_maskers_are_not_for_this_explainer")],
    "a disconnected input": [(EXPLAINER, "test_an_input_that_nothing_reads_gets_nothing")],
    "the check of the sum": [("test_errors.py", "test_attributions_that_do_not_sum_up")],
    "an interrupt leaves the model as it was": [
        ("test_errors.py", "test_an_interruption_leaves_everything_as_it_was"),
        (KERAS, "test_an_interrupt_leaves_the_model_as_it_was"),
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_a_test(form: str) -> None:
    for file, name in FORMS[form]:
        tree = ast.parse((TESTS / file).read_text())
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
        assert found, f"{file} has no {name}"
        marks = [ast.unparse(decorator) for decorator in found[0].decorator_list]
        assert not any("skip" in mark or "xfail" in mark for mark in marks), f"{name} of {file} does not run"
