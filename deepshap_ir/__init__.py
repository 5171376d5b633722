"""Deep SHAP attributions for any model that can be written as an ONNX graph."""
