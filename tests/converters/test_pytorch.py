"""PyTorch modules: every way to give one, its data and its output; and it is left as it was."""

from __future__ import annotations

import builtins
import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepshap_ir import DeepExplainer, InputError, MissingDependencyError, ModelError
from deepshap_ir.converters import pytorch, remembered, torch_export
from tests.converters.modules import B, N, Net, delta, dense, mlp, rows, total


@pytest.fixture(scope="module")
def explained() -> tuple[nn.Sequential, Tensor, DeepExplainer]:
    module, background = mlp(), rows(6)
    return module, background, DeepExplainer(module, background)


def test_a_module_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.drop = nn.Linear(6, 8), nn.Linear(8, 2), nn.Dropout()
            self.norm = nn.BatchNorm1d(8)
            self.register_buffer("count", torch.zeros(()))
            self.calls, self.seen = 0, [1]

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.count += 1
            self.seen.append(self.calls)
            self.last = self.norm(self.a(x))
            y: Tensor = self.b(self.drop(torch.relu(self.last)))
            return y

    module = Busy()
    module.norm.eval()
    module.a.weight.grad = gradient = torch.ones(8, 6)

    def state() -> Any:
        return (
            [layer.training for layer in module.modules()],
            {name: (tensor.clone(), tensor.requires_grad) for name, tensor in module.named_parameters()},
            {name: tensor.clone() for name, tensor in module.named_buffers()},
            [list(vars(layer)) for layer in module.modules()],
            [len(layer._forward_pre_hooks) for layer in module.modules()],
            (module.calls, list(module.seen), torch.get_rng_state()),
        )

    before, attributes = state(), [dict(vars(layer)) for layer in module.modules()]
    fastpath, gradients = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()

    def check() -> None:
        assert str(state()) == str(before)
        for layer, was in zip(module.modules(), attributes, strict=True):
            assert all(vars(layer)[name] is value for name, value in was.items())
        assert module.a.weight.grad is gradient
        assert (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()) == (fastpath, gradients)
        assert torch.backends.cudnn.enabled

    DeepExplainer((module, module.drop), rows(6)).shap_values(rows(6, n=N, seed=1))
    check()

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    module.b.bias.data.add_(0)  # the same numbers, remembered
    monkeypatch.setattr(torch.onnx, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DeepExplainer((module, "norm"), rows(6))
    check()
    monkeypatch.setattr(torch_export, "leaves", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DeepExplainer((module, "a"), rows(6))
    check()


def test_nothing_is_printed_or_warned(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeepExplainer(nn.Sequential(nn.Linear(6, 3), nn.Tanh()).train(), rows(6))
    assert capfd.readouterr() == ("", "")


def test_conversions_are_remembered_until_the_module_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.onnx.export

    def export(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", export)
    module, background, samples = mlp(), rows(6), rows(6, n=N, seed=1)
    factor = [1.0]
    module.register_forward_hook(lambda _, args, y: y * factor[0])

    def explain(exports: int) -> None:
        calls.clear()
        phi = DeepExplainer(module, background).shap_values(samples)
        np.testing.assert_allclose(total(phi), delta(module, samples, background), atol=1e-5)
        assert len(calls) == exports

    explain(1)
    explain(0)
    module.train()
    background = rows(6, n=9, seed=3)
    explain(0)
    with torch.no_grad():
        module[0].get_parameter("weight").mul_(2.0)
    explain(1)
    module[1] = nn.Tanh()
    explain(1)
    module[0].get_parameter("weight").data.mul_(0.5)  # is not counted by torch
    explain(1)
    factor[0] = 3.0  # is no attribute
    explain(1)
    key = id(module)
    assert 1 < len(remembered._remembered[key]) <= remembered.KEPT
    module = mlp()
    gc.collect()
    assert key not in remembered._remembered


def test_wrapped_modules_are_their_modules(explained: tuple[nn.Sequential, Tensor, DeepExplainer]) -> None:
    module, background, explainer = explained
    samples = rows(6, n=N, seed=1)
    expected = explainer.shap_values(samples)
    compiled: Any = torch.compile(module, backend="eager")
    part: Any = torch.compile(module[1:], backend="eager")
    inside = nn.Sequential(module[0], part)
    in_place = mlp()
    in_place.compile(backend="eager")
    for wrapped in (compiled, nn.DataParallel(module), inside, in_place):
        np.testing.assert_allclose(DeepExplainer(wrapped, background).shap_values(samples), expected, atol=1e-6)
    layer = DeepExplainer((compiled, module[2]), background)
    np.testing.assert_allclose(
        layer.shap_values(samples), DeepExplainer((module, "2"), background).shap_values(samples), atol=1e-6
    )


class Branch(nn.Module):
    """Chooses its way by the value of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x[0, 0] > 10) else torch.relu(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript(explained: tuple[nn.Sequential, Tensor, DeepExplainer]) -> None:
    module, background, explainer = explained
    samples = rows(6, n=N, seed=1)
    expected = explainer.shap_values(samples)
    scripted: Any = torch.jit.script(module)
    scripted.train()
    for given in (scripted, torch.jit.trace(module, background), torch.jit.freeze(torch.jit.script(mlp().eval()))):
        np.testing.assert_allclose(DeepExplainer(given, background).shap_values(samples), expected, atol=1e-6)
    assert scripted.training
    inside = nn.Sequential(module[0], torch.jit.script(module[1:]))
    np.testing.assert_allclose(DeepExplainer(inside, background).shap_values(samples), expected, atol=1e-6)
    with pytest.raises(InputError, match="TorchScript does not tell what its layers are given"):
        DeepExplainer((scripted, "1"), background)


def test_every_input_of_a_layer_gets_attributions() -> None:
    torch.manual_seed(0)

    def function(net: Net, x: Tensor) -> Any:
        cell = net.q(x[:, 0])[None]
        return net.c(net.a(net.p(x), (torch.zeros_like(cell), cell))[0][:, -1])

    layers = {"p": nn.Linear(3, 3), "q": nn.Linear(3, 4), "a": nn.LSTM(3, 4, batch_first=True), "c": nn.Linear(4, 1)}
    module, background, samples = Net(function, **layers), rows(5, 3), rows(5, 3, n=N, seed=1)
    explainer = DeepExplainer((module, layers["a"]), background)
    phi = explainer.shap_values(samples)  # the sequence and the cell; the other state is a constant
    assert [a.shape for a in phi] == [(N, 5, 3, 1), (N, 1, 4, 1)]
    np.testing.assert_allclose(total(phi[0]) + total(phi[1]), delta(module, samples, background), atol=1e-6)

    def attention(net: Net, x: Tensor) -> Any:
        return net.c(net.a(x + 1, x - 1, value=(y := net.p(x)))[0].mean(1)) + y.sum((1, 2))[:, None]

    layers = {"p": nn.Linear(4, 4), "a": nn.MultiheadAttention(4, 2, batch_first=True), "c": nn.Linear(4, 1)}
    module, background, samples = Net(attention, **layers), rows(5, 4), rows(5, 4, n=N, seed=1)
    phi = DeepExplainer((module, "a"), background).shap_values(samples)
    assert [a.shape for a in phi] == [(N, 5, 4, 1)] * 3
    # the value's way around the layer counts too, as in shap
    np.testing.assert_allclose(sum(map(total, phi)), delta(module, samples, background), atol=1e-5)


def test_a_layer_that_is_given_nothing_or_is_elsewhere() -> None:
    module = Net(lambda net, x: net.a(x) + net.b(torch.ones(6)), a=dense(), b=dense(), unused=nn.ReLU())
    with pytest.raises(InputError, match="Net gives no tensor to the layer ReLU"):
        DeepExplainer((module, module.unused), rows(6))
    with pytest.raises(InputError, match="inputs of the layer Linear do not depend on the data"):
        DeepExplainer((module, module.b), rows(6))
    with pytest.raises(InputError, match=r"layer Tanh is not among the modules of Net. There are: 'a', 'b', 'unused'"):
        DeepExplainer((module, nn.Tanh()), rows(6))
    with pytest.raises(InputError, match=r"Net has no layer 'unusd'. Did you mean 'unused'"):
        DeepExplainer((module, "unusd"), rows(6))
    with pytest.raises(InputError, match=r"a pair \(module, layer\) is a module or the name of one, not int"):
        DeepExplainer((module, 3), rows(6))
    with pytest.raises(InputError, match="a layer is given beside the module, and at= too"):
        DeepExplainer((module, module.a), rows(6), at=["input"])


class Two(nn.Module):
    """Two inputs, a flag and a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, z: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        y = torch.tanh(self.a(x) * self.b(z)) * scale
        return y if mask is None else y * mask


def test_several_inputs_and_arguments_that_are_no_arrays() -> None:
    module = Two()
    background, samples = [rows(6), rows(3)], [rows(6, n=N, seed=1), rows(3, n=N, seed=2)]
    listed = DeepExplainer(module, background)
    assert listed.input_names == ("x", "z")
    phi = listed.shap_values(samples)
    assert [a.shape for a in phi] == [(N, 6, 2), (N, 3, 2)]
    named = DeepExplainer(module, {"z": background[1], "x": background[0], "scale": 2.0, "mask": None})
    again = named.shap_values({"x": samples[0], "z": samples[1], "scale": 2.0})
    np.testing.assert_allclose(again[0], 2 * phi[1], atol=1e-6)
    np.testing.assert_allclose(again[1], 2 * phi[0], atol=1e-6)
    with pytest.raises(InputError, match=r"samples: 'scale' is 3.0, but 2.0 in the background"):
        named.shap_values({"x": samples[0], "z": samples[1], "scale": 3.0})
    masked = DeepExplainer(module, background, hold={"mask": np.array([1.0, 0.0]), "scale": 3})
    np.testing.assert_allclose(masked.shap_values(samples)[0], 3 * phi[0] * [1, 0], atol=1e-6)
    held = DeepExplainer(module, background, hold=["z"]).shap_values(samples)
    assert isinstance(held, list)
    assert [a.shape for a in held] == [(N, 6, 2)]
    with pytest.raises(InputError, match=r"forward of Two has no parameter 'y'. There are: 'x', 'z', 'scale', 'mask'"):
        DeepExplainer(module, {"x": background[0], "y": background[1]})
    with pytest.raises(InputError, match=r"forward of Two takes 4 inputs .*given 5 arrays"):
        DeepExplainer(module, [*background, *background, background[0]])
    with pytest.raises(InputError, match=r"Two fails on rows of the background .*missing 1 required positional"):
        DeepExplainer(module, background[0])


def test_a_disconnected_input_gets_zeros_and_a_variable_number_is_numbered() -> None:
    class Sum(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return torch.relu(parts[0] + parts[2])

    given = [rows(2), rows(5), rows(2, seed=4)]
    explainer = DeepExplainer(Sum(), given)
    assert explainer.input_names == ("parts_0", "parts_1", "parts_2")
    phi = explainer.shap_values([a[:2] for a in given])
    assert np.array_equal(phi[1], np.zeros((2, 5, 2)))
    assert np.abs(phi[0]).max() > 0


@dataclass
class Result:
    """Outputs, as models of transformers return them."""

    logits: Tensor
    loss: Tensor | None
    states: tuple[Tensor, ...]


def test_outputs_in_tuples_mappings_and_dataclasses() -> None:
    layer, x, samples = dense(), rows(6), rows(6, n=N, seed=1)

    def explained(function: Callable[..., Any], **options: Any) -> Any:
        return DeepExplainer(Net(function, a=layer), x, **options).shap_values(samples)

    plain = explained(lambda net, x: torch.relu(net.a(x)))

    def several(net: Net, x: Tensor) -> Any:
        return {"x": torch.relu(net.a(x)), "labels": net.a(x).argmax(1)}

    np.testing.assert_allclose(explained(several), plain, atol=1e-6)  # the only float; its name is an input's too
    np.testing.assert_allclose(explained(several, output="x"), plain, atol=1e-6)

    def nested(net: Net, x: Tensor) -> Any:
        return Result(net.a(x), None, (x, torch.relu(net.a(x))))

    np.testing.assert_allclose(explained(nested, output="states.1"), plain, atol=1e-6)
    with pytest.raises(InputError, match=r"3 tensors of floats; choose one .* There are: 'logits', 'states.0', 'sta"):
        explained(nested)
    with pytest.raises(InputError, match=r"no output 3; the module returns 'logits', 'states.0', 'states.1'"):
        explained(nested, output=3)
    with pytest.raises(InputError, match=r"output: the model has no value 'logit'. Did you mean 'logits'"):
        explained(nested, output="logit")
    with pytest.raises(InputError, match="the model has no value 'logits'"):
        DeepExplainer(mlp(), rows(6), output="logits")
    with pytest.raises(InputError, match="returns no tensor"):
        explained(lambda net, x: 3)

    def pair(net: Net, x: Tensor) -> Any:
        return net.a(x), torch.relu(net.a(x))

    np.testing.assert_allclose(explained(pair, output=-1), plain, atol=1e-6)
    rank_one = explained(lambda net, x: torch.relu(net.a(x))[:, :1].squeeze())
    np.testing.assert_allclose(rank_one, plain[:, :, :1], atol=1e-6)


def test_a_batch_on_another_axis() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(3, 4)
    background = rows(5, 3)
    explainer = DeepExplainer(module, background.transpose(0, 1), output=0, batch_axes={"input": 1})
    module.batch_first = True
    expected = DeepExplainer(module, background, output=0).shap_values(background[:2])
    phi = explainer.shap_values(background[:2].transpose(0, 1))
    np.testing.assert_allclose(phi.reshape(expected.shape), expected, atol=1e-6)


def test_modules_made_for_one_row() -> None:
    layer = dense()
    fixed = Net(lambda net, x: torch.relu(net.a(x.view(1, 6))), a=layer)
    free = Net(lambda net, x: torch.relu(net.a(x)), a=layer)
    samples = rows(6, n=N, seed=1)
    phi = DeepExplainer(fixed, rows(6)).shap_values(samples)
    np.testing.assert_allclose(phi, DeepExplainer(free, rows(6)).shap_values(samples), atol=1e-6)


def test_tokens() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    background, samples = torch.randint(0, 10, (B, 3)), torch.randint(0, 10, (N, 3))
    for given in (module, (module, module[1])):
        phi = DeepExplainer(given, background).shap_values(samples)
        np.testing.assert_allclose(total(phi), delta(module, samples, background), atol=1e-6)


def test_data_of_every_kind(explained: tuple[nn.Sequential, Tensor, DeepExplainer]) -> None:
    module, background, explainer = explained
    samples = rows(6, n=N, seed=1)
    expected = explainer.shap_values(samples)
    array = background.numpy().astype(np.float64)
    names = list("abcdef")
    frame = pd.DataFrame(array, columns=names)
    wanted = pd.DataFrame(samples.numpy(), columns=names)
    recording = samples.clone().requires_grad_()
    for given, x in (
        (array, recording * 1),
        (array.tolist(), samples.double()),
        (frame, wanted[names[::-1]]),
        ({"input": background}, {"input": samples.to_sparse()}),
        (background, wanted),
    ):
        np.testing.assert_allclose(DeepExplainer(module, given).shap_values(x), expected, atol=1e-6)
    assert DeepExplainer(module, [background]).shap_values([samples])[0].shape == expected.shape
    own = DeepExplainer(module, lambda sample: [background])
    np.testing.assert_allclose(own.shap_values(recording), expected, atol=1e-6)
    framed = DeepExplainer(module, frame)
    assert list(framed(wanted[names[::-1]]).feature_names) == names
    assert list(framed(samples).feature_names) == names
    assert list(explainer(wanted).feature_names) == names
    with pytest.raises(InputError, match=r"samples of input 'input': missing column 'b', 'e'\. There are: 'a', 'c'"):
        framed.shap_values(wanted.drop(columns=["b", "e"]))
    with pytest.raises(InputError, match="samples of input 'input': column 'label' is not in the background"):
        framed.shap_values(wanted.assign(label=1))
    whole = frame.round().astype(int)
    assert DeepExplainer(module, whole).shap_values(wanted).shape == expected.shape  # whole numbers for floats
    with pytest.raises(InputError, match=r"background of input 'input': expected numbers, given <U"):
        DeepExplainer(module, frame.astype(object).assign(a="x"))


def test_modules_that_are_not_their_export() -> None:
    with pytest.raises(ModelError, match=r"another function: .* in ONNX and .* in the original on 1 background row"):
        DeepExplainer(Net(lambda net, x: x * torch.rand(())), rows(6))
    with pytest.raises(ModelError, match="cannot export Net to ONNX: forward chooses its way by a value of the data"):
        DeepExplainer(Net(lambda net, x: x if x[0, 0] > 0 else -x), rows(6))
    with pytest.raises(ModelError, match="mixes the rows of its batch"):
        DeepExplainer(Net(lambda net, x: x - x.mean(0)), rows(6))
    with pytest.raises(InputError, match=r"Linear fails on rows of the background .input .3, 5. of float32.*mat1"):
        DeepExplainer(dense(), rows(5))
    with pytest.raises(InputError, match="parameter 'weight' of the module has no shape yet: call the module"):
        DeepExplainer(nn.LazyLinear(3), rows(6))
    with pytest.raises(InputError, match=r"belong to TensorFlow 1 graphs, not to a torch.nn.Module"):
        DeepExplainer(dense(), rows(6), session=1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_that_froze_a_branch_is_explained_as_the_trace_computes() -> None:
    traced = torch.jit.trace(Branch(), rows(6))
    phi = DeepExplainer(traced, rows(6)).shap_values(rows(6, n=N, seed=1) + 20)
    expected = functional.relu(rows(6, n=N, seed=1) + 20) - functional.relu(rows(6)).mean(0)
    np.testing.assert_allclose(total(phi), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["onnxscript", "torch"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(module: str, *args: Any, **kwargs: Any) -> Any:
        if module == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(module, *args, **kwargs)

    module = dense()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=rf"{name} is needed: pip install 'deepshap-ir\[torch\]'"):
        DeepExplainer(module, np.ones((2, 6)))


def test_what_shap_asks_of_an_explainer(explained: tuple[nn.Sequential, Tensor, DeepExplainer]) -> None:
    explainer = explained[2]
    samples = rows(6, n=N, seed=1)
    row = explainer.explain_row(samples[1])
    np.testing.assert_allclose(row["values"], explainer.shap_values(samples)[1], atol=1e-7)
    np.testing.assert_allclose(row["expected_values"], np.asarray(explainer.expected_value), atol=1e-6)
    assert row["mask_shapes"] == [(6,)]
    assert not DeepExplainer.supports_model_with_masker(explainer.model, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_modules_on_a_gpu() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).cuda()
    background, samples = rows(1, 8, 8), rows(1, 8, 8, n=N, seed=1)
    phi = DeepExplainer(module, background).shap_values(samples.cuda())
    assert all(parameter.is_cuda for parameter in module.parameters())
    np.testing.assert_allclose(DeepExplainer(module, background.cuda()).shap_values(samples), phi, atol=1e-6)
    expected = delta(module.cpu(), samples, background)
    assert np.abs(total(phi) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_modules_are_told_by_their_class_alone() -> None:
    assert pytorch.takes(nn.ReLU())
    assert pytorch.takes((nn.ReLU(), "x"))
    assert not any(map(pytorch.takes, (torch.ones(3), nn.ReLU, "nn.Module", (1, nn.ReLU()), torch.relu)))
