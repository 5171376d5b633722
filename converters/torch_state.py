"""What must not change while a torch module is looked at, and what must not be heard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from deepshap_ir.converters.quiet import ALONE
from deepshap_ir.converters.registry import comes_from
from deepshap_ir.converters.restoring import restore

if TYPE_CHECKING:
    from torch import Tensor, nn

LOGGERS = ("torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, uncompiled, without gradients; however it ends, the module is as it was.

    Its flags, attributes, hooks and buffers are, and the random numbers that come next. One thread at a time.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(ALONE)  # torch's own export is not made for threads either
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=_devices(module)))
        # the module in its own dtypes, whatever the caller's block rounds to
        for kind in {t.device.type for t in (*module.parameters(), *module.buffers())} | {"cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # cuDNN's convolutions are in TF32 by default, and 1e-3 off
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        # the encoder's fast path is another function where rows are padded
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for buffer in module.buffers():
            stack.callback(_restore_tensor, buffer, version(buffer), buffer.clone())
        for layer in list(module.modules()):
            if comes_from(layer, "torch", "ScriptModule"):
                if hasattr(layer, "training"):  # a frozen one has none
                    stack.callback(setattr, layer, "training", layer.training)
                    layer.training = False
                continue
            attributes = vars(layer)
            for value in attributes.values():
                if isinstance(value, dict | list | set):
                    stack.callback(restore, value, value.copy())
            stack.callback(restore, attributes, attributes.copy())
            for name, child in list(layer._modules.items()):
                # those that spread a batch over devices or processes do not export
                inner: Any = child
                while any(comes_from(inner, "torch", kind) for kind in ("DataParallel", "DistributedDataParallel")):
                    inner = inner.module
                layer._modules[name] = inner
            attributes["training"] = False
            attributes["_compiled_call_impl"] = None
        yield


def _devices(module: nn.Module) -> list[int]:
    found = {t.device.index for t in (*module.parameters(), *module.buffers()) if t.device.type == "cuda"}
    return sorted(index for index in found if index is not None)


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; made in inference mode, it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _restore_tensor(buffer: Tensor, before: int, saved: Tensor) -> None:
    if version(buffer) != before:
        buffer.copy_(saved)
