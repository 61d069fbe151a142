"""Tensors of the simulated device: their values are on the CPU, and CUDA's rules apply to them.

Every operation of torch that has one of them as an argument, or that makes one, goes through `run`.
"""

import weakref
from typing import Any, NamedTuple

import torch
from host_waits import note_wait
from torch import Tensor

DEVICE = "pretend"


class PretendTensor(Tensor):
    """A tensor on the device. `values` is a tensor on the CPU of the same shape, strides and type."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendTensor":
        # In inference mode a view of an ordinary tensor is an ordinary tensor, and so is its wrapper.
        with torch.inference_mode(values.is_inference()):
            wrapper = Tensor._make_wrapper_subclass(
                cls,
                values.shape,
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                layout=values.layout,
                device=torch.device(DEVICE, 0),
            )
        wrapper.values = values
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __setitem__(self, index: Any, value: Any) -> None:
        # As for CUDA a number stays on the host, so that `x[mask] = 0` is a masked fill, which waits for nothing.
        if isinstance(value, int | float):
            value = torch.tensor(value, dtype=self.dtype)
        super().__setitem__(index, value)

    def __repr__(self, **_: Any) -> str:
        note_wait("repr")
        return f"{self.values!r} on {self.device}"

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.ndim == 0 else repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PretendTensor":
        if id(self) not in memo:
            with torch.no_grad():
                copied = self.detach().clone()
            copied.requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU: files of the device's own would need it when they are read."""
        cpu = self.detach().cpu()
        return cpu.requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE}:0 device type tensor to numpy; copy it to the host first")

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, PretendTensor):
            raise RuntimeError(f"incompatible tensor type: .data of {self.device} is set to {new.device}")
        self.become(new.values.detach())

    def become(self, values: Tensor) -> None:
        """Replace the values; shape and type may change too."""
        if (self.shape, self.stride(), self.dtype) != (values.shape, values.stride(), values.dtype):
            torch._C.TensorBase.data.__set__(self, PretendTensor(values))
        self.values = values


class _Operation(NamedTuple):
    """What must be known about an operation of torch before it is run."""

    name: str
    waits: bool
    is_composite: bool
    takes_host_scalars: bool
    written: frozenset[int | str]


_operations: dict[Any, _Operation] = {}
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_", "_unsafe_index_put"}
COPIES = {"_to_copy", "copy_", "copy", "_copy_from"}
FILLS = {"fill", "fill_", "masked_fill", "masked_fill_"}
UNTAGGED_WAITS = {"nms"}
"""Operations that wait on a GPU, although torch does not say that their result's size depends on values."""


def _operation(func: Any) -> _Operation:
    if func not in _operations:
        name = func.overloadpacket.__name__
        waits = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags)
        arguments = func._schema.arguments
        written = {
            key
            for place, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for key in (place, argument.name)
        }
        _operations[func] = _Operation(
            name,
            waits=(bool(waits) and name not in INDEXED) or name in UNTAGGED_WAITS,
            is_composite=torch._C._dispatch_has_kernel_for_dispatch_key(
                func.name(), "CompositeImplicitAutograd"
            ),
            takes_host_scalars=torch.Tag.pointwise in func.tags or name in INDEXED | FILLS,
            written=frozenset(written),
        )
    return _operations[func]


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation of which an argument or the result is on the device."""
    operation = _operation(func)
    if operation.is_composite:
        # In inference mode torch passes these operations undecomposed.
        return func.decompose(*args, **kwargs)
    if operation.name in COPIES:
        return _copy(func, args, kwargs)
    on_device = kwargs.get("device") is None or torch.device(kwargs["device"]).type == DEVICE
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if on_device:
        _check_generator(kwargs.get("generator"))
    wrappers: dict[int, PretendTensor] = {}
    hosts: list[tuple[int | str, Tensor]] = []
    on_cpu_args = [_values(arg, place, wrappers, hosts) for place, arg in enumerate(args)]
    on_cpu_kwargs = {key: _values(arg, key, wrappers, hosts) for key, arg in kwargs.items()}
    if operation.name in INDEXED:
        _check_indexing(operation, args, hosts)
    elif operation.waits:
        note_wait(operation.name)
    if wrappers:
        for place, host in hosts:
            _check_host(operation, place, host)
    return _wrapped(func(*on_cpu_args, **on_cpu_kwargs), wrappers, on_device)


def _values(argument: Any, place: int | str, wrappers: dict[int, PretendTensor], hosts: list) -> Any:
    """The argument with values on the CPU; notes wrappers by their values, and tensors that were on the CPU."""
    if isinstance(argument, PretendTensor):
        wrappers[id(argument.values)] = argument
        return argument.values
    if isinstance(argument, Tensor):
        hosts.append((place, argument))
    elif isinstance(argument, list | tuple):
        return type(argument)([_values(item, place, wrappers, hosts) for item in argument])
    return argument


def _wrapped(result: Any, wrappers: dict[int, PretendTensor], on_device: bool) -> Any:
    if isinstance(result, Tensor):
        if id(result) in wrappers:
            wrapper = wrappers[id(result)]
            wrapper.become(result)
            return wrapper
        return PretendTensor(result) if on_device else result
    if isinstance(result, list | tuple):
        return type(result)([_wrapped(item, wrappers, on_device) for item in result])
    return result


def _check_host(operation: _Operation, place: int | str, host: Tensor) -> None:
    """As on CUDA: a number may come from the host where elements are computed one by one, all else may not."""
    if operation.takes_host_scalars and host.ndim == 0 and place not in operation.written:
        return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE}:0 and "
        f"{host.device}! ({operation.name}, argument {place}, shape {list(host.shape)})"
    )


def _check_indexing(operation: _Operation, args: Any, hosts: list[tuple[int | str, Tensor]]) -> None:
    """Indices by a mask are counted first; indices on the host are copied. Removes those from `hosts`."""
    tensor, indices, *rest = args
    if not isinstance(tensor, PretendTensor):
        raise RuntimeError(
            f"indices should be either on cpu or on the same device as the indexed tensor ({tensor.device})"
        )
    given = [index for index in indices if index is not None]
    masks = [index for index in given if index.dtype in (torch.bool, torch.uint8)]
    is_fill = (
        operation.name != "index"
        and len(given) == 1
        and rest[0].numel() == 1
        and rest[0].device.type == "cpu"
    )
    if masks and not is_fill:
        note_wait(f"{operation.name} by a mask")
    for index in given:
        if index.device.type == "cpu":
            note_wait(f"{operation.name} by an index of the host")
    hosts[:] = [(place, host) for place, host in hosts if place != 1]


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and not any(
        torch.equal(generator.get_state(), x.get_state()) for x in _generators
    ):
        raise RuntimeError(f"Expected a '{DEVICE}' device type for generator but found 'cpu'")


def _copy(func: Any, args: Any, kwargs: Any) -> Any:
    """`_to_copy(self, device=…)`, `copy_(self, from)`, `copy(self, from)`, `_copy_from(from, self)`."""
    name = func.overloadpacket.__name__
    if name == "_to_copy":
        (source,) = args
        device = torch.device(kwargs.get("device") or source.device)
        _count_copy(source.device, device, kwargs.get("non_blocking", False))
        copied = func(_plain(source), **{**kwargs, "device": torch.device("cpu")})
        return PretendTensor(copied) if device.type == DEVICE else copied
    first, second, *more = args
    target, source = (second, first) if name == "_copy_from" else (first, second)
    _count_copy(source.device, target.device, more[0] if more else kwargs.get("non_blocking", False))
    if name == "copy":
        return PretendTensor(func(_plain(target), _plain(source)))
    _plain(target).copy_(_plain(source))
    return target


def _plain(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, PretendTensor) else tensor


def _count_copy(source: torch.device, target: torch.device, is_async: bool) -> None:
    if source.type == DEVICE and target.type != DEVICE:
        note_wait("copy to the host")  # an asynchronous copy can be used only after a wait
    elif source.type != DEVICE and target.type == DEVICE and not is_async:
        note_wait("copy to the device")


_CPUGenerator = torch.Generator
_generators: weakref.WeakSet[torch.Generator] = weakref.WeakSet()
"""Those of the device. torch hands operations a generator as a new Python object: it is known by its state."""


class _GeneratorType(type):
    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        generator = _CPUGenerator("cpu" if torch.device(device).type == DEVICE else device)
        if torch.device(device).type == DEVICE:
            _generators.add(generator)
        return generator

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _CPUGenerator)


class PretendGenerator(metaclass=_GeneratorType):
    """Stands for `torch.Generator`: one for the device is a generator of the CPU that counts as the device's."""
