"""Sums over the background: the same in any pieces, no forward pass twice, within the memory that is allowed."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from deepshap_ir import DeepExplainer, InputError, ModelError
from deepshap_ir.engine.backends import Backend, OnnxRuntime, Reference
from deepshap_ir.engine.evaluator import Evaluator, Rows
from deepshap_ir.engine.memory import available_memory
from deepshap_ir.engine.pieces import REFERENCES_PER_SUM, Pieces, cut
from deepshap_ir.engine.program import Plan, build_plan, nbytes
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.value import BACKGROUND, OUTPUT, SAMPLE
from deepshap_ir.importing.importer import import_model
from tests.onnx_text import data, parsed

Array = NDArray[Any]

NET = """{ w = Constant <value = float[4,3] {0.5,1,0, -0.5,0,0.5, 1,0,-1, 0,0.5,0.5}> ()
    h = MatMul(x, w) a = Relu(h) g = Sigmoid(h) b = Mul(a, g) y = Softmax <axis=-1> (b) }"""
SIGNATURE = "(float[N,4] x) => (float[N,3] y)"
N, B, K = 7, 11, 3
HUGE = 1 << 40


def plan_of(**options: Any) -> Plan:
    graph = import_model(parsed(NET, SIGNATURE), data(5, 4)).graph
    return build_plan(graph, Resolver(), explained=["x"], **options)


class Given(Evaluator):
    """An evaluator with given pieces."""

    def cut(self, workers: int = 1, **lengths: int) -> Given:
        self.lengths, self.workers = lengths, workers
        return self

    def pieces(self, k: int, n: int, b: int) -> Pieces:
        most = {OUTPUT: k, SAMPLE: n, BACKGROUND: b}
        return Pieces({axis: min(self.lengths[axis], most[axis]) for axis in most}, self.workers)


def rows(count: int, seed: int) -> Array:
    return data(count, 4, seed=seed)[:, None]


SAMPLES, REFERENCES = {"x": rows(N, 1)}, {"x": rows(B, 2)}
SEEDS = np.eye(K, dtype=np.float32)[:, None]


def assert_same(got: Rows, expected: Rows) -> None:
    np.testing.assert_allclose(got.output, expected.output, rtol=1e-5)
    np.testing.assert_allclose(got.base, expected.base, rtol=1e-5)
    np.testing.assert_allclose(got.base_magnitude, expected.base_magnitude, rtol=1e-5)
    assert set(got.sums) == set(expected.sums)
    for role, array in expected.sums.items():
        assert got.sums[role].dtype == np.float64
        np.testing.assert_allclose(got.sums[role], array, rtol=1e-4, atol=2e-6, err_msg=str(role))


LENGTHS = [(1, 1, 1), (3, 7, 11), (2, 3, 4), (1, 7, 5), (3, 2, 11), (2, 1, 10), (1, 4, 1)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"details": True, "ledger": True},
    {"own_references": True, "details": True, "ledger": True},
    {"ranked": True, "details": True},
    {"hold": ["g"], "details": True, "ledger": True},
    {"at": ["h"], "details": True},
    {"ranked": True, "own_references": True},
    {"per_reference": True, "multipliers": True, "hypothetical": {"x": 1}},
    {"per_reference": True, "ranked": True, "own_references": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_any_pieces_give_the_same_sums(options: dict[str, Any]) -> None:
    plan = plan_of(**options)
    references: Any = REFERENCES
    if options.get("own_references"):
        own = data(N, B, 1, 4, seed=3)
        references = lambda i: {"x": own[i]}  # noqa: E731
    seeds = np.stack([SEEDS] * N, axis=1) if options.get("ranked") else SEEDS
    if options.get("ranked"):
        seeds = seeds * data(N, 1, K, seed=5)
    whole = Given(plan, Reference(), HUGE).cut(output=K, sample=N, background=B)
    expected = whole.evaluate(SAMPLES, references, seeds, B)
    assert all(np.abs(array).max() > 0 for role, array in expected.sums.items() if role[0] != "residual")
    evaluator = Given(plan, OnnxRuntime(threads=1), HUGE)
    for k, n, b in LENGTHS:
        got = evaluator.cut(output=k, sample=n, background=b).evaluate(SAMPLES, references, seeds, B)
        assert_same(got, expected)
        for workers in (2, 5):  # the sums are added up in one order whatever the threads do
            parallel = evaluator.cut(workers, output=k, sample=n, background=b)
            for role, array in parallel.evaluate(SAMPLES, references, seeds, B).sums.items():
                np.testing.assert_array_equal(array, got.sums[role])


@pytest.mark.parametrize("limit", [1, 3_000, 20_000, 200_000, HUGE])
def test_any_memory_limit_gives_the_same_sums(limit: int) -> None:
    plan = plan_of(details=True)
    expected = Evaluator(plan, Reference(), HUGE).evaluate(SAMPLES, REFERENCES, SEEDS, B)
    evaluator = Evaluator(plan, OnnxRuntime(threads=1), limit)
    if limit == 1:
        with pytest.warns(UserWarning, match=r"one triple .* takes [\d,]+ bytes, more than memory_limit=1; it is run"):
            assert_same(evaluator.evaluate(SAMPLES, REFERENCES, SEEDS, B), expected)
    else:
        assert_same(evaluator.evaluate(SAMPLES, REFERENCES, SEEDS, B), expected)


@pytest.mark.parametrize("limit", [1_000, 10_000, 100_000, 10_000_000])
@pytest.mark.parametrize(("k", "n", "b"), [(1, 1, 1), (3, 7, 11), (10, 1000, 1000), (1000, 3, 7)])
@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.filterwarnings("ignore:one triple")
def test_pieces_fit_the_limit(cores: int, limit: int, k: int, n: int, b: int) -> None:
    plan = plan_of()
    pieces = cut(plan, limit, cores, k, n, b)
    assert 1 <= pieces.sizes[OUTPUT] <= k
    assert 1 <= pieces.sizes[SAMPLE] <= n
    assert 1 <= pieces.sizes[BACKGROUND] <= min(b, REFERENCES_PER_SUM)
    assert pieces.workers <= max(1, k * n * b)
    peaks = [program.peak_bytes(pieces.sizes) for program in plan.programs().values()]
    assert max(peaks) * pieces.workers <= limit or (set(pieces.sizes.values()), pieces.workers) == ({1}, 1)


@pytest.mark.parametrize(
    ("k", "n", "b", "workers"),
    [(1, 1, 1, 1), (1, 1, 100, 4), (1, 100, 1, 4), (1, 2, 1, 2), (3, 1, 1, 1), (1, 1000, 1000, 4)],
)
def test_pieces_run_side_by_side_where_there_are_enough(k: int, n: int, b: int, workers: int) -> None:
    pieces = cut(plan_of(), HUGE, 4, k, n, b)
    assert pieces.workers == workers
    lengths = {OUTPUT: k, SAMPLE: n, BACKGROUND: b}
    assert math.prod(math.ceil(lengths[axis] / size) for axis, size in pieces.sizes.items()) >= workers


def test_a_failure_in_a_thread_is_raised() -> None:
    evaluator = Given(plan_of(own_references=True), OnnxRuntime(threads=2), HUGE).cut(
        2, output=1, sample=1, background=1
    )
    with pytest.raises(Exception, match="Got invalid dimensions"):
        evaluator.evaluate(SAMPLES, lambda i: {"x": np.zeros((B, 1, 3), np.float32)}, SEEDS, B)


# --- how often things run


@dataclass
class Counting:
    """onnxruntime, and how many rows of each program it runs."""

    cores = 1
    inner: OnnxRuntime = field(default_factory=lambda: OnnxRuntime(threads=1))
    rows: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)

    def load(self, model: ModelProto, weights: Mapping[str, Array], alone: bool = True) -> Any:
        names = {value.name for value in model.graph.input}
        stage = "explain" if "seed" in names else "background" if "background_x" in names else "sample"
        return stage, self.inner.load(model, weights)

    def run(self, session: Any, outputs: Sequence[str], feeds: Mapping[str, Any], odd: bool) -> list[Any]:
        stage, loaded = session
        self.runs[stage] += 1
        if stage != "explain":
            self.rows[stage] += feeds[f"{stage}_x"].shape()[0]
        return self.inner.run(loaded, outputs, feeds, odd)

    def put(self, array: Array) -> Any:
        return self.inner.put(array)

    def get(self, value: Any) -> Array:
        return self.inner.get(value)


def test_no_forward_pass_is_repeated() -> None:
    backend = Counting()
    evaluator = Given(plan_of(), backend, HUGE).cut(output=2, sample=3, background=4)
    evaluator.evaluate(SAMPLES, REFERENCES, SEEDS, B)
    assert backend.rows == {"background": B, "sample": N}
    assert backend.runs == {"background": 3, "sample": 3, "explain": 3 * 3 * 2}


def test_samples_run_again_only_where_their_values_do_not_fit() -> None:
    backend = Counting()
    evaluator = Given(plan_of(), backend, 1).cut(output=3, sample=3, background=4)
    evaluator.evaluate(SAMPLES, REFERENCES, SEEDS, B)
    assert backend.rows == {"background": B, "sample": 3 * N}


def test_values_at_the_references_stay_for_the_next_call() -> None:
    backend = Counting()
    evaluator = Given(plan_of(details=True), backend, HUGE).cut(output=2, sample=3, background=4)
    first, again = (evaluator.evaluate(SAMPLES, REFERENCES, SEEDS, B) for _ in range(2))
    assert backend.rows == {"background": B, "sample": 2 * N}
    for role, array in first.sums.items():
        np.testing.assert_array_equal(again.sums[role], array)
    np.testing.assert_array_equal(again.base, first.base)
    evaluator.evaluate(SAMPLES, {**REFERENCES}, SEEDS, B)  # they may be others
    assert backend.rows["background"] == 2 * B
    evaluator.cut(output=2, sample=3, background=5).evaluate(SAMPLES, REFERENCES, SEEDS, B)
    assert backend.rows["background"] == 3 * B


def test_values_at_the_references_stay_as_far_as_they_fit() -> None:
    backend, plan = Counting(), plan_of()
    block = sum(nbytes(v, {BACKGROUND: 4}) for v in plan.background.outputs)
    evaluator = Given(plan, backend, 8 * 2 * block).cut(output=2, sample=3, background=4)
    for _ in range(3):
        evaluator.evaluate(SAMPLES, REFERENCES, SEEDS, B)
    assert backend.rows["background"] == B + 2 * (B - 8)


def test_references_that_meet_an_input_of_the_call_run_in_every_call() -> None:
    signature = "(float[N,4] x, float[4] t) => (float[N,4] y)"
    model = parsed("{ s = Mul(x, t) a = Sigmoid(s) y = Mul(a, t) }", signature)
    background, samples = data(B, 4, seed=2), data(N, 4, seed=1)
    for threads in (1, 2):
        e = DeepExplainer(
            model,
            {"x": background, "t": np.ones(4, np.float32)},
            inputs=["x"],
            batch_axes={"t": None},
            threads=threads,
        )
        for scale in (1, 3):
            t = np.full(4, scale, np.float32)
            phi = e.shap_values({"x": samples, "t": t}).sum(1)
            y, y0 = (scale / (1 + np.exp(-scale * rows)) for rows in (samples, background))
            np.testing.assert_allclose(phi, y - y0.mean(0), atol=1e-5)


def test_one_evaluator_of_a_model_keeps_its_references() -> None:
    e = DeepExplainer(parsed(NET, SIGNATURE), data(B, 4), threads=1)
    e.shap_values(data(N, 4))
    usual, references = e._evaluator().at_references, e._latest.background
    assert usual.find(references, slice(0, B)) is not None
    assert usual.find({**references}, slice(0, B)) is None
    assert usual.find(references, slice(0, B - 1)) is None
    e.multipliers(data(N, 4))
    assert usual.find(references, slice(0, B)) is None


def test_references_of_a_sample_are_asked_for_once() -> None:
    asked: Counter[int] = Counter()
    rng = np.random.default_rng(0)

    def references(i: int) -> dict[str, Array]:
        asked[i] += 1
        return {"x": rng.normal(size=(B, 1, 4)).astype(np.float32)}

    plan = plan_of(own_references=True)
    evaluator = Given(plan, OnnxRuntime(threads=1), HUGE).cut(output=1, sample=2, background=3)
    got = evaluator.evaluate(SAMPLES, references, SEEDS, B)
    assert asked == dict.fromkeys(range(N), 1)
    total = got.sums["sum", "x"].sum((-1, -2)).T / B
    np.testing.assert_allclose(total, (got.output - got.base)[:, 0], atol=1e-6)


def test_own_references_must_be_equally_many() -> None:
    evaluator = Evaluator(plan_of(own_references=True), OnnxRuntime(threads=1), HUGE)
    with pytest.raises(
        InputError, match=r"the function for the references gave \[2, 3\] rows; each sample needs as many"
    ):
        evaluator.evaluate(SAMPLES, lambda i: {"x": rows(2 + i % 2, i)}, SEEDS, 2)


def test_own_references_that_agree_are_the_background() -> None:
    model = parsed(NET, SIGNATURE)
    background, samples = data(B, 4, seed=2), data(N, 4, seed=1)
    shared, own = DeepExplainer(model, background), DeepExplainer(model, lambda sample: background)
    np.testing.assert_allclose(own.shap_values(samples), shared.shap_values(samples), atol=1e-6)
    assert shared.expected_value is not None
    assert own.expected_value is not None
    np.testing.assert_allclose(own.expected_value, np.tile(shared.expected_value, (N, 1)), rtol=1e-6)


# --- digits


def test_a_thousand_references_lose_no_digits() -> None:
    """Sums in float32 throughout would be off by 1e-5."""
    background, samples = 10 * data(1000, 4), 10 * data(20, 4, seed=1)
    body = "{ t = Tanh(x) a = Relu(x) s = Add(t, a) y = Add(s, x) }"
    single = DeepExplainer(parsed(body), background)
    double = DeepExplainer(parsed(body), background, precision="float64")
    got, expected = single.shap_values(samples), double.shap_values(samples)
    assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max()


def test_the_backends_agree() -> None:
    model, background, samples = parsed(NET, SIGNATURE), data(B, 4, seed=2), data(N, 4, seed=1)
    values = [DeepExplainer(model, background, backend=b).shap_values(samples) for b in ("onnxruntime", "reference")]
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)
    threads = DeepExplainer(model, background, threads=1).shap_values(samples)
    np.testing.assert_allclose(threads, values[0], atol=1e-6)


# --- backends


@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])
def test_data_on_which_the_model_does_not_run(backend: str) -> None:
    body = "{ table = Constant<value_floats=[1.0,2.0,3.0]>() e = Gather(table, x) y = Tanh(e) }"
    model = parsed(body, "(int64[N,2] x) => (float[N,2] y)")
    explainer = DeepExplainer(model, np.array([[0, 1]]), backend=backend)
    with pytest.raises(ModelError, match=r"the model does not run on the samples: .*out of.*bounds"):
        explainer.shap_values(np.array([[0, 1], [7, 2]]))


def test_a_missing_provider_is_said() -> None:
    with pytest.raises(
        InputError, match=r"no provider \['CUDAExecutionProvider'\]; it has \[.*pip install onnxruntime-gpu"
    ):
        OnnxRuntime(["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match="NoSuchProvider"):
        DeepExplainer(parsed("{ y = Relu(x) }"), data(3, 4), providers=[("NoSuchProvider", {})])
    assert OnnxRuntime([("CPUExecutionProvider", {})]).providers == [("CPUExecutionProvider", {})]


def test_what_onnxruntime_cannot_run_is_said() -> None:
    model = parsed("{ y = my.domain.Nonsense(x) }")
    with pytest.raises(ModelError, match=r"onnxruntime cannot run this model's attribution program: .*Nonsense"):
        OnnxRuntime().load(model, {})


@pytest.mark.parametrize("backend", [OnnxRuntime(), Reference()], ids=["onnxruntime", "reference"])
def test_arrays_come_back_as_they_were_put(backend: Backend) -> None:
    arrays: list[Array] = [np.array(3.5), data(2, 3).T, np.zeros((0, 4), np.float32), np.array([True])]
    for array in arrays:
        back = backend.get(backend.put(array))
        np.testing.assert_array_equal(back, array)
        assert (back.shape, back.dtype) == (array.shape, array.dtype)


# --- progress


def test_progress_is_silent_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, background = parsed(NET, SIGNATURE), data(B, 4, seed=2)
    for wanted, seen in ((None, False), (False, False), (True, True)):
        DeepExplainer(model, background, progress=wanted).shap_values(data(N, 4))
        assert ("explaining" in capsys.readouterr().err) == seen


def test_the_bar_counts_all_triples(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepshap_ir.engine.evaluator as module

    bars = []

    class Bar:
        def __init__(self, total: int, **options: Any) -> None:
            self.total, self.done, self.options = total, 0, options
            bars.append(self)

        def update(self, done: int) -> None:
            self.done += done

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(module, "tqdm", Bar)
    evaluator = Given(plan_of(), Reference(), HUGE).cut(output=2, sample=3, background=4)
    evaluator.evaluate(SAMPLES, REFERENCES, SEEDS, B)
    (bar,) = bars
    assert bar.total == bar.done == K * N * B
    assert bar.closed
    assert (bar.options["delay"], bar.options["disable"]) == (2.0, None)  # seconds; on a terminal


# --- memory

MEASURE = """
    import sys
    import numpy as np
    from deepshap_ir import DeepExplainer
    from onnx import TensorProto, helper, numpy_helper

    def peak():
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    rng = np.random.default_rng(0)
    def weights(name, *shape):
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(shape[1] * 9)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h1"], pads=[1] * 4),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Conv", ["a1", "w2"], ["h2"], pads=[1] * 4),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("ReduceMean", ["a2", "axes"], ["y"], keepdims=0),
    ]
    initializers = [
        weights("w1", 32, 3, 3, 3), weights("w2", 32, 32, 3, 3), numpy_helper.from_array(np.array([2, 3]), "axes")
    ]
    graph = helper.make_graph(
        nodes, "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    background = rng.normal(size=(24, 3, 64, 64)).astype(np.float32)
    samples = rng.normal(size=(5, 3, 64, 64)).astype(np.float32)
    explainer = DeepExplainer(model, background[:2], output="y", memory_limit=sys.argv[1], threads=1)
    explainer.shap_values(samples[:1])
    before = peak()
    explainer = DeepExplainer(model, background, output="y", memory_limit=sys.argv[1], threads=1)
    explainer.shap_values(samples, ranked_outputs=2)
    print(before, peak())
"""


def peak_megabytes(limit: str) -> tuple[float, float]:
    """Resident memory of a process before and at the end of the work, in MB."""
    code = textwrap.dedent(MEASURE)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, limit], capture_output=True, text=True, cwd=root, check=True)
    before, after = (int(number) / 1000 for number in done.stdout.split())
    return before, after


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_the_limit() -> None:
    small, large = peak_megabytes("100MB"), peak_megabytes("1GB")
    print(f"peak resident memory: 100MB {small}, 1GB {large}")
    assert small[1] - small[0] < 130
    assert large[1] - large[0] < 1100
    assert small[1] < large[1]


def control_group(root: Path, version: int, limit: str, used: int, cached: int) -> Path:
    folder = root / "sys/fs/cgroup" / ("memory/jobs/one" if version == 1 else "jobs/one")
    folder.mkdir(parents=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    cache = "total_inactive_file" if version == 1 else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{cache} {cached}\n")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("4:memory:/jobs/one\n3:cpu:/\n" if version == 1 else "0::/jobs/one\n")
    (root / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable: 2000000 kB\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_available_memory_counts_the_control_group(tmp_path: Path, version: int) -> None:
    limited = control_group(tmp_path / "limited", version, "1000000000", 400_000_000, 100_000_000)
    assert available_memory(limited) == 700_000_000
    full = control_group(tmp_path / "full", version, "1000000", 3_000_000, 0)
    assert available_memory(full) == 0
    unlimited = control_group(tmp_path / "unlimited", version, {1: str(2**63 - 4096), 2: "max"}[version], 7, 0)
    assert available_memory(unlimited) == 2_048_000_000


def test_available_memory_of_this_machine() -> None:
    assert 1 << 26 < available_memory() < 1 << 50
