"""scikit-learn estimators and pipelines: sums against the estimator's own numbers, tables with names and strings."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import ensemble, linear_model, multiclass, naive_bayes, neural_network, preprocessing, svm, tree
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union

from deepshap_ir import DeepExplainer, InputError, MissingDependencyError, ModelError
from deepshap_ir.errors import RuleError
from deepshap_ir.testing import exact_shapley
from tests.onnx_text import Array

FEATURES = 5


def data(load: Callable[..., Any]) -> tuple[Array, Array]:
    x, y = load(return_X_y=True)
    return x[::3, :FEATURES], y[::3]


def check(explained: Any, background: Any, samples: Any, tolerance: float = 1e-5) -> Array:
    """Attributions add up to the change of what the method itself says; they are returned, ``[N, F, K]``."""
    phi = np.asarray(DeepExplainer(explained, background).shap_values(samples))
    method = explained if callable(explained) else default(explained)
    f = np.asarray(method(samples), np.float64).reshape(len(samples), -1)
    expected = f - np.asarray(method(background), np.float64).reshape(len(background), -1).mean(0)
    assert phi.shape == (*np.shape(samples), f.shape[1])
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(phi.sum(1), expected, atol=tolerance * np.abs(f).max())
    return phi


def default(model: Any) -> Any:
    names = ("predict_proba", "decision_function", "predict", "transform")
    return getattr(model, next(name for name in names if hasattr(model, name)))


CLASSIFIERS: dict[str, Any] = {
    "logistic": linear_model.LogisticRegression(max_iter=500),
    "pipeline of a network": make_pipeline(
        preprocessing.StandardScaler(), neural_network.MLPClassifier((8,), max_iter=30, random_state=0)
    ),
    "support vectors": make_pipeline(preprocessing.MinMaxScaler(), svm.SVC()),
    "linear scores": make_pipeline(preprocessing.RobustScaler(), linear_model.SGDClassifier(random_state=0)),
    "ridge": linear_model.RidgeClassifier(),
    "forest": ensemble.RandomForestClassifier(8, max_depth=4, random_state=0),
    "scaled forest": make_pipeline(
        preprocessing.StandardScaler(), ensemble.ExtraTreesClassifier(8, max_depth=4, random_state=0)
    ),
    "boosted trees": ensemble.GradientBoostingClassifier(n_estimators=6, random_state=0),
    "histograms": ensemble.HistGradientBoostingClassifier(max_iter=6),
    "AdaBoost": ensemble.AdaBoostClassifier(n_estimators=6, random_state=0),
    "bagging": ensemble.BaggingClassifier(linear_model.LogisticRegression(max_iter=500), 3, random_state=0),
    "calibrated": CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2),
    "voting": ensemble.VotingClassifier(
        [("a", linear_model.LogisticRegression(max_iter=500)), ("b", tree.DecisionTreeClassifier(max_depth=3))],
        voting="soft",
    ),
    "stacking": ensemble.StackingClassifier(
        [("a", naive_bayes.GaussianNB()), ("b", tree.DecisionTreeClassifier(max_depth=3))], cv=2
    ),
    "one against the rest": multiclass.OneVsRestClassifier(linear_model.LogisticRegression(max_iter=500)),
    "searched": GridSearchCV(
        make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
        {"logisticregression__C": [0.1, 1.0]},
        cv=2,
    ),
    "union": make_pipeline(
        make_union(PCA(2), SelectKBest(k=2)), preprocessing.StandardScaler(), linear_model.LogisticRegression()
    ),
}
REGRESSORS: dict[str, Any] = {
    "linear": linear_model.LinearRegression(),
    "lasso of polynomials": make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Lasso(0.01)),
    "network": make_pipeline(
        preprocessing.StandardScaler(),
        neural_network.MLPRegressor(hidden_layer_sizes=(8,), max_iter=30, random_state=0),
    ),
    "tree": tree.DecisionTreeRegressor(max_depth=4),
    "forest": ensemble.RandomForestRegressor(8, max_depth=4, random_state=0),
    "boosted trees": ensemble.GradientBoostingRegressor(n_estimators=6, random_state=0),
    "histograms": ensemble.HistGradientBoostingRegressor(max_iter=6),
    "support vectors": make_pipeline(preprocessing.StandardScaler(), svm.SVR()),
    "gaussian process": GaussianProcessRegressor(alpha=1.0),
    "poisson": linear_model.PoissonRegressor(),
    "voting": ensemble.VotingRegressor(
        [("a", linear_model.LinearRegression()), ("b", tree.DecisionTreeRegressor(max_depth=3))]
    ),
}


OF_THREE = ("logistic", "pipeline of a network", "support vectors", "scaled forest", "AdaBoost", "searched")


@pytest.mark.parametrize(
    ("name", "load"),
    [*((name, load_breast_cancer) for name in CLASSIFIERS), *((name, load_wine) for name in OF_THREE)],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_classifiers(name: str, load: Any) -> None:
    x, y = data(load)
    check(CLASSIFIERS[name].fit(x, y), x[:40:4], x[40:44])


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_regressors(name: str) -> None:
    x, y = data(load_diabetes)
    check(REGRESSORS[name].fit(x, y), x[:40:4], x[40:44])


@pytest.mark.parametrize("package", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("load", [load_diabetes, load_breast_cancer, load_wine])
def test_trees_of_other_packages(package: str, load: Any) -> None:
    module = pytest.importorskip(package, reason="optional: onnxmltools converts its estimators")
    pytest.importorskip("onnxmltools")
    x, y = data(load)
    prefix, kind = (
        {"lightgbm": "LGBM", "xgboost": "XGB"}[package],
        "Regressor" if load is load_diabetes else "Classifier",
    )
    model = getattr(module, prefix + kind)(n_estimators=6, max_depth=3, verbosity=-1 if package == "lightgbm" else 0)
    check(model.fit(x, y), x[:40:4], x[40:44])


def test_votes_of_boosted_trees_are_exact() -> None:
    x, y = data(load_wine)
    model = ensemble.AdaBoostClassifier(n_estimators=4, random_state=0).fit(x, y)
    phi = check(model.decision_function, x[:2], x[90:92] if len(x) > 92 else x[50:52])
    sample = x[90:92] if len(x) > 92 else x[50:52]
    expected = [np.mean([exact_shapley(model.decision_function, row, x0) for x0 in x[:2]], 0) for row in sample]
    np.testing.assert_allclose(phi, np.array(expected), atol=1e-6)


def test_methods_and_outputs() -> None:
    x, y = data(load_breast_cancer)
    model = make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()).fit(x, y)
    logits = check(model.decision_function, x[:9], x[20:24])
    assert logits.shape[-1] == 1
    for output in ("decision_function", 1):
        np.testing.assert_allclose(DeepExplainer(model, x[:9], output=output).shap_values(x[20:24]), logits)
    assert DeepExplainer(model, x[:9], output="predict_proba").output_shape == (2,)
    scaler = model[0]
    check(scaler, x[:9], x[20:24])
    for wrong, message in (
        ("predict", "predicts labels, which are no numbers; explain one of 'predict_proba', 'decision_function'"),
        ("nothing", "has no 'nothing'.* There are: 'predict_proba', 'decision_function'"),
        (5, "has no 5"),
    ):
        with pytest.raises(InputError, match=message):
            DeepExplainer(model, x[:9], output=wrong)
    with pytest.raises(InputError, match="output='transform' is given beside the method 'predict_proba'"):
        DeepExplainer(model.predict_proba, x[:9], output="transform")
    with pytest.raises(InputError, match="not fitted: call fit first"):
        DeepExplainer(linear_model.LogisticRegression(), x[:9])
    with pytest.raises(InputError, match=r"fails on rows of the background.*expecting 5 features"):
        DeepExplainer(model, x[:9, :3])
    with pytest.raises(InputError, match=r"takes a table, \[rows, columns\], given shape \[5\]"):
        DeepExplainer(model, x[0])


def people() -> tuple[pd.DataFrame, Array]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, 60),
            "city": rng.choice(["Lima", "Oslo", "Rome"], 60),
            "income": rng.normal(50, 9, 60),
            "grade": rng.choice(["low", "mid", "high"], 60),
        }
    )
    return frame, np.asarray((frame.age > 40) ^ (frame.city == "Oslo"), np.int64)


def columns_one_by_one(final: Any) -> Any:
    return make_pipeline(
        ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(), preprocessing.StandardScaler()), ["income", "age"]),
                ("names", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["city"]),
                ("ranks", preprocessing.OrdinalEncoder(categories=[["low", "mid", "high"]]), ["grade"]),
            ]
        ),
        final,
    )


@pytest.mark.parametrize(
    "final",
    [linear_model.LogisticRegression(), ensemble.RandomForestClassifier(6, max_depth=4, random_state=0)],
    ids=["linear", "forest"],
)
def test_frames_with_columns_of_strings(final: Any) -> None:
    frame, y = people()
    model = columns_one_by_one(final).fit(frame, y)
    background, samples = frame[:30], frame[40:46]
    phi = check(model, background, samples)
    explainer = DeepExplainer(model, background)
    shuffled = samples[["grade", "income", "city", "age"]]
    np.testing.assert_allclose(explainer.shap_values(shuffled), phi, atol=1e-6)
    assert explainer(samples).feature_names == list(frame.columns)
    same = samples.assign(city="Rome")
    assert np.abs(DeepExplainer(model, background.assign(city="Rome")).shap_values(same)[:, 1]).max() == 0
    with pytest.raises(InputError, match=r"column 'city' has 'Osle', which neither .* Did you mean 'Oslo'"):
        explainer.shap_values(samples.assign(city="Osle"))
    with pytest.raises(InputError, match="column 'city' is of strings, but has"):
        DeepExplainer(model, background.assign(city=[None, *["Rome"] * 29]))
    with pytest.raises(InputError, match="missing column 'age'"):
        explainer.shap_values(samples.drop(columns="age"))


def test_exactly_on_strings() -> None:
    frame, y = people()
    model = columns_one_by_one(tree.DecisionTreeClassifier(max_depth=5)).fit(frame, y)
    background, samples = frame[:1], frame[40:43]
    phi = DeepExplainer(model, background).shap_values(samples)

    def mixed(masks: Array) -> Array:
        rows = [samples.iloc[i].where(mask.astype(bool), background.iloc[0]) for mask in masks]
        table = pd.DataFrame(rows).astype(frame.dtypes.to_dict())
        return np.asarray(model.predict_proba(table))

    for i in range(len(samples)):
        np.testing.assert_allclose(phi[i], exact_shapley(mixed, np.ones(4), np.zeros(4)), atol=1e-6)


def test_one_input_per_column() -> None:
    frame, y = people()
    model = columns_one_by_one(linear_model.LogisticRegression()).fit(frame, y)
    whole = DeepExplainer(model, frame[:30]).shap_values(frame[40:46])
    explainer = DeepExplainer(model, {name: frame[name][:30] for name in frame})
    assert explainer.input_names == tuple(frame.columns)
    parts = explainer.shap_values({name: frame[name][40:46].to_numpy() for name in frame})
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-6)


def test_names_of_columns_that_need_no_encoder() -> None:
    x, y = data(load_diabetes)
    frame = pd.DataFrame(x, columns=list("abcde"))
    model = make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge()).fit(frame, y)
    phi = check(model, frame[:20], frame[30:34])
    np.testing.assert_allclose(DeepExplainer(model, frame[:20]).shap_values(frame[30:34][list("edcba")]), phi)


def test_missing_numbers() -> None:
    x, y = data(load_diabetes)
    x = x.copy()
    x[::4, 0] = x[1::5, 2] = np.nan
    imputed = make_pipeline(SimpleImputer(), preprocessing.StandardScaler(), linear_model.Ridge())
    for model in (
        imputed,
        ensemble.HistGradientBoostingRegressor(max_iter=6),
        tree.DecisionTreeRegressor(max_depth=4),
        make_pipeline(preprocessing.StandardScaler(), tree.DecisionTreeRegressor(max_depth=4, random_state=0)),
        make_pipeline(preprocessing.MinMaxScaler(), ensemble.HistGradientBoostingRegressor(max_iter=6)),
        FeatureUnion([("a", SimpleImputer()), ("b", SimpleImputer(strategy="median"))]),
    ):
        check(model.fit(x, y), x[:20], x[24:30])


def test_numbers_that_float32_puts_on_the_other_side() -> None:
    """A threshold in double precision, and data that float32 would round across it."""
    x = np.float64(np.float32(0.1)) + np.array([[0.0], [1e-10], [-1e-10], [1.0], [1.0 + 1e-12], [2.0]])
    model = tree.DecisionTreeRegressor().fit(x, [0.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    explainer = DeepExplainer(model, x)
    np.testing.assert_allclose(explainer(x).outputs.ravel(), model.predict(x), atol=1e-6)
    line = make_pipeline(preprocessing.StandardScaler(), linear_model.LinearRegression())
    x = 1e6 + np.random.default_rng(0).normal(size=(40, 3))  # the spread is lost in float32
    line.fit(x, x @ [1.0, 2.0, 3.0])
    check(line, x[:20], x[30:34], tolerance=1e-9)


COLUMNS: dict[str, Any] = {
    "bins, one-hot": preprocessing.KBinsDiscretizer([2, 3, 4]),
    "bins, dense": preprocessing.KBinsDiscretizer(3, encode="onehot-dense", strategy="uniform"),
    "bins, ordinal": preprocessing.KBinsDiscretizer(4, encode="ordinal", strategy="kmeans"),
    "quantiles": preprocessing.QuantileTransformer(n_quantiles=7),
    "all quantiles": preprocessing.QuantileTransformer(n_quantiles=60),
}


@pytest.mark.filterwarnings("ignore:.*Feature|.*Bins")
@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_in_bins_and_quantiles(name: str, double: bool) -> None:
    """On edges, beyond the range, and where many numbers are equal; each column gets what its own function gives."""
    rng = np.random.default_rng(0)
    table = np.stack([rng.normal(size=60), rng.integers(0, 4, 60), np.full(60, 3.0)], axis=-1)
    if "quantiles" in name:
        table[:30, 0] = table[:30, 0].min()
    table = table.astype(np.float64 if double else np.float32)
    model = make_pipeline(COLUMNS[name], linear_model.Ridge()).fit(table, table.sum(1) + table[:, 1] ** 2)
    low, high = table.min(0), table.max(0)
    background, samples = table[20:], np.concatenate([table[:8], np.stack([low, high, low - 1, high + 1])])
    phi = check(model, background, samples)[:, :, 0]
    for column in range(3):
        moved = np.repeat(background[None], len(samples), 0)
        moved[:, :, column] = samples[:, None, column]
        outputs = model.predict(moved.reshape(-1, 3)).reshape(len(samples), -1)
        np.testing.assert_allclose(phi[:, column], outputs.mean(1) - model.predict(background).mean(), atol=1e-5)


def test_what_skl2onnx_gets_wrong_or_does_not_know() -> None:
    x, y = data(load_breast_cancer)
    with pytest.raises(ModelError, match=r"writes LinearDiscriminantAnalysis as another function.*\d in ONNX and"):
        DeepExplainer(LinearDiscriminantAnalysis().fit(x, y), x[:20])
    with pytest.raises(ModelError, match="skl2onnx cannot convert BernoulliRBM"):
        DeepExplainer(neural_network.BernoulliRBM(2).fit(x > x.mean(0)), x[:20])
    with pytest.raises(RuleError, match=r"computed from a model input.*nearest rows"):
        DeepExplainer(KNeighborsRegressor(3).fit(x, y), x[:20])
    with pytest.raises(RuleError, match=r"computed from a model input.*weighted median"):
        DeepExplainer(ensemble.AdaBoostRegressor(n_estimators=3).fit(x, y), x[:20])


def test_without_skl2onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "skl2onnx":
            raise ImportError("no skl2onnx", name="skl2onnx")
        return original(name, *args, **kwargs)

    x, y = data(load_diabetes)
    model = linear_model.Ridge().fit(x, y)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deepshap-ir\[sklearn\]'"):
        DeepExplainer(model, x)
