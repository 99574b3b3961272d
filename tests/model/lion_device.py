"""A device "lion" that PyTorch does not know: registered through PrivateUse1, as a vendor's module does, with kernels in Python.

Its memory is the host's, its arithmetic the CPU's, but its tensors are on `lion`: whoever asks for `cuda`, for a pointer to the
data, or mixes a host tensor into an operation fails as on a chip. Import it, then use the device; `pytest --device lion
tests/model` runs the model's tests on it. `operations` counts what ran there.

Source: PyTorch, "Facilitating New Backend Integration by PrivateUse1", and torch.utils.backend_registration.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "lion"

operations: Counter[str] = Counter()
"""Times that each operator ran on the device."""

_aten = torch.ops.aten


class LionTensor(Tensor):
    """A tensor on the device; `host` holds its elements, with the same sizes and strides."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> LionTensor:
        with torch.inference_mode(False):  # a view of an ordinary tensor must be one, in inference mode too
            tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=f"{NAME}:0"
            )
        tensor.host = host
        return tensor

    def tolist(self) -> Any:
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
            parts = op.decompose(*args, **kwargs)  # what it is made of comes here again
            if parts is not NotImplemented:
                return parts
        return _run(op, *args, **kwargs)


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run one operator on the host's copies of its operands."""
    operations[op.name()] += 1
    if op is _aten.copy_.default:
        return _copy_from(args[1], args[0])
    if op is _aten._to_copy.default:
        device = torch.device(kwargs.pop("device", None) or args[0].device)
        copied = op(_host(args[0]), **kwargs)
        return LionTensor(copied) if device.type == NAME else copied
    operands: dict[int, LionTensor] = {}

    def to_host(value: Any) -> Any:
        if isinstance(value, LionTensor):
            operands[id(value.host)] = value
            return value.host
        if isinstance(value, torch.device) and value.type == NAME:
            return torch.device("cpu")
        if isinstance(value, Tensor) and value.ndim > 0:
            raise RuntimeError(f"{op.name()} got a tensor on {value.device} among those on {NAME}")
        return value

    def to_device(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return operands[id(value)] if id(value) in operands else LionTensor(value)  # an operand: the operator works in place

    host_args, host_kwargs = tree_map(to_host, (args, kwargs))
    return tree_map(to_device, op(*host_args, **host_kwargs))


def _host(tensor: Tensor) -> Tensor:
    return tensor.host if isinstance(tensor, LionTensor) else tensor


def _copy_from(source: Tensor, into: Tensor, non_blocking: bool = False) -> Tensor:
    _host(into).copy_(_host(source))
    return into


def _empty(size: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return LionTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return LionTensor(torch.empty_strided(size, stride, dtype=dtype))


_setup_privateuseone_for_python_backend(NAME)
_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(_run, "PrivateUse1")

torch.library.impl("aten::empty.memory_format", "PrivateUse1")(_empty)
torch.library.impl("aten::empty_strided", "PrivateUse1")(_empty_strided)
torch.library.impl("aten::_copy_from", "PrivateUse1")(_copy_from)
