"""PyTorch modules."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepshap_ir.converters.compare import some_rows
from deepshap_ir.converters.needs import needed
from deepshap_ir.converters.registry import Conversion, Settings, comes_from
from deepshap_ir.converters.remembered import content, remembered, shapes
from deepshap_ir.errors import InputError
from deepshap_ir.importing.feeds import Array, as_array, is_list, suggest

if TYPE_CHECKING:
    from torch import nn

    from deepshap_ir.converters.torch_export import Exported

ACCEPTS = "a torch.nn.Module, or a pair (module, layer) to explain at the inputs of a layer"


def takes(model: Any) -> bool:
    """Tell whether `model` is a module, or a pair that begins with one."""
    return _is_module(model) or (isinstance(model, tuple | list) and len(model) == 2 and _is_module(model[0]))


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Export a module, in evaluation mode, with rows of the background; it is left as it was.

    Raises
    ------
    InputError : the background does not fit the module, or the output or the layer is not there.
    ModelError : the exporter fails.
    MissingDependencyError : torch or onnxscript is not installed.
    """
    with needed("to explain a torch module", "torch"):
        import onnxscript  # noqa: F401  (torch's exporter needs it)
        import torch
    from deepshap_ir.converters.torch_export import Subject, export

    module, layer = _parts(model)
    if layer is not None and settings.at:
        raise InputError("a layer is given beside the module, and at= too: give one of them.")
    lazy = next((name for name, p in module.named_parameters() if torch.nn.parameter.is_lazy(p)), None)
    if lazy is not None:
        raise InputError(f"the parameter {lazy!r} of the module has no shape yet: call the module on some rows first.")
    call = _call(module, background, settings)
    subject = Subject(module, layer, call.positional, call.keyword, call.constants, call.axes)
    observed = subject.observe(call.rows, settings.output)
    key = (_state(module), call.key(), settings.output, _name_of(module, layer), subject.floats)

    def conversion(found: Exported) -> Conversion:
        return Conversion(
            model=found.model,
            output=found.output,
            at=found.at,
            hold=call.hold,
            constants=call.constants,
            rows=call.rows,
            run=observed.run,
            axes=call.axes,
            tolerance=observed.tolerance,
        )

    return remembered(module, key, lambda: export(observed, call.rows), conversion)


@dataclass(frozen=True)
class _Call:
    """How the data are given to the module.

    Attributes
    ----------
    rows : three rows of the background by input name.
    axes : input name -> axis of the batch, None where it has none.
    positional, keyword : names of the inputs.
    constants : arguments by keyword that are part of the model.
    hold : what is left for the importer of the user's ``hold=``.
    """

    rows: dict[str, Array]
    axes: dict[str, int | None]
    positional: tuple[str, ...]
    keyword: tuple[str, ...]
    constants: dict[str, Any]
    hold: Any

    def key(self) -> Hashable:
        """What an export depends on."""
        constants = tuple((name, _content(value)) for name, value in self.constants.items())
        return shapes(self.rows, self.axes), self.positional, self.keyword, constants


def _is_module(model: Any) -> bool:
    return any(cls.__module__ == "torch.nn.modules.module" and cls.__name__ == "Module" for cls in type(model).__mro__)


def _parts(model: Any) -> tuple[nn.Module, nn.Module | None]:
    """Return the module and the layer, without what torch.compile and the parallel modules wrap around them.

    Raises
    ------
    InputError : the layer is not one of the module.
    """
    if _is_module(model):
        return _unwrapped(model), None
    module, layer = _unwrapped(model[0]), model[1]
    names = [name for name, _ in module.named_modules() if name]
    if isinstance(layer, str):
        if layer not in names:
            raise InputError(f"the module {type(module).__name__} has no layer {layer!r}.{suggest(layer, names)}")
        layer = dict(module.named_modules())[layer]
    if not _is_module(layer):
        raise InputError(
            f"the second of a pair (module, layer) is a module or the name of one, not {type(layer).__name__}."
        )
    layer = _unwrapped(layer)
    if comes_from(module, "torch", "ScriptModule") or comes_from(layer, "torch", "ScriptModule"):
        raise InputError("TorchScript does not tell what its layers are given; explain the module that it was made of.")
    if _name_of(module, layer) is None:
        raise InputError(
            f"the layer {type(layer).__name__} is not among the modules of {type(module).__name__}.{suggest('', names)}"
        )
    return module, layer


def _unwrapped(module: Any) -> Any:
    while True:
        if comes_from(module, "torch", "OptimizedModule"):
            module = module._orig_mod
        elif comes_from(module, "torch", "DataParallel") or comes_from(module, "torch", "DistributedDataParallel"):
            module = module.module
        else:
            return module


def _name_of(module: nn.Module, layer: nn.Module | None) -> str | None:
    return next((name for name, other in module.named_modules() if _unwrapped(other) is layer), None)


def _call(module: nn.Module, background: Any, settings: Settings) -> _Call:
    """Match the background with the parameters of the module's ``forward``.

    Raises
    ------
    InputError : there are more arrays than parameters, or arrays that have no rows.
    """
    names, more, by_any_name = _parameters(module)
    constants: dict[str, Any] = {}
    hold: Any = settings.hold
    if isinstance(hold, Mapping):
        constants = {name: value for name, value in hold.items() if value is not None and name in names}
        hold = {name: value for name, value in hold.items() if name not in constants}
    if isinstance(background, Mapping) and not hasattr(background, "__array__"):
        given = {str(name): value for name, value in background.items()}
        unknown = [name for name in given if name not in names and not by_any_name]
        if unknown:
            raise InputError(
                f"background: forward of {type(module).__name__} has no parameter {unknown[0]!r}."
                f"{suggest(unknown[0], names)}"
            )
        constants |= {name: value for name, value in given.items() if not _is_data(value)}
        arrays = {name: value for name, value in given.items() if _is_data(value)}
        positional: tuple[str, ...] = ()
        keyword = tuple(arrays)
    else:
        free = [name for name in names if name not in constants]
        values = list(background) if is_list(background) else [background]
        listed = free + [f"{more}_{i}" for i in range(len(values) - len(free))] if more else free
        if len(values) > len(listed):
            raise InputError(
                f"background: forward of {type(module).__name__} takes {len(listed)} inputs "
                f"({', '.join(map(repr, listed))}), given {len(values)} arrays."
            )
        arrays = dict(zip(listed, values, strict=False))
        after = next((i for i, name in enumerate(names) if name in constants), len(names))
        # what comes after a constant can be given by its name alone
        positional = tuple(arrays)[: after if not more else None]
        keyword = tuple(arrays)[len(positional) :]
    if not arrays:
        raise InputError("background: no arrays among the arguments.")
    read = {name: _numbers(value, name) for name, value in arrays.items()}
    axes = {name: settings.batch_axes.get(name, 0) if a.ndim else None for name, a in read.items()}
    return _Call(some_rows(read, axes), axes, positional, keyword, constants, hold)


def _parameters(module: Any) -> tuple[list[str], str | None, bool]:
    """Return the names of forward's parameters, that of ``*args`` if it has them, and whether it has ``**kwargs``."""
    schema = getattr(module.forward, "schema", None)
    if schema is not None:  # TorchScript
        return [argument.name for argument in schema.arguments[1:]], None, False
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    more = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    return named, more, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _is_data(value: Any) -> bool:
    """Tell arrays of numbers from flags, numbers and absent values."""
    return hasattr(value, "__array__") or (isinstance(value, list | tuple) and len(value) > 0)


def _numbers(value: Any, name: str) -> Array:
    array = as_array(value)
    if array.dtype.kind == "O":
        array = np.array(array.tolist())
    if array.dtype.kind not in "fiub":
        raise InputError(f"background of input {name!r}: expected numbers, given {array.dtype}.")
    return array


def _state(module: nn.Module) -> Hashable:
    """What a module computes with: parameters and buffers with their versions, numbers and names among its attributes.

    A change of a tensor in place counts its version up, except through ``tensor.data``.
    """
    from deepshap_ir.converters.torch_state import version

    tensors = tuple(
        (name, t.data_ptr(), version(t), tuple(t.shape), str(t.dtype), str(t.device))
        for named in (module.named_parameters(), module.named_buffers())
        for name, t in named
    )
    plain = (bool, int, float, str, bytes, type(None))
    layers = tuple(
        (
            name,
            id(layer),
            tuple((key, value) for key, value in vars(layer).items() if isinstance(value, plain) and key != "training"),
            tuple(map(id, (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()))),
        )
        for name, layer in module.named_modules()
        if not comes_from(layer, "torch", "ScriptModule")
    )
    return tensors, layers


def _content(value: Any) -> Hashable:
    if not _is_data(value):
        return repr(value)
    return content([as_array(value)])
