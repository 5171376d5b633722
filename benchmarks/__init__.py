"""This library, shap's DeepExplainer and Captum's DeepLiftShap on the same networks, in one run."""
