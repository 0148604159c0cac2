"""A pretended GPU on the CPU: tensors that say `cuda:0`, compute on the CPU, and refuse to meet tensors of the host.

It finds the mistakes that only a GPU shows: an index or a constant made on the CPU, `numpy()` of a device tensor, a
generator of the wrong device. It also counts the calls that make the host wait for the device. It wraps tensors with
torch's internals, so an upgrade of torch may break it. It is kept because no other test finds these mistakes without a
GPU.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lib import data

DEVICE = torch.device("cuda:0")
aten = torch.ops.aten
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}  # their results go to the host
WAITING |= {aten.masked_select.default, aten._unique2.default, aten.repeat_interleave.Tensor}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
waits: Counter = Counter()


def is_cuda(device: object) -> bool:
    return isinstance(device, torch.device | str) and torch.device(device).type == "cuda"


class DeviceTensor(torch.Tensor):
    """A tensor whose values lie in `host`, and whose device is the pretended one."""

    @staticmethod
    def __new__(cls, host: torch.Tensor):
        shape = {"strides": host.stride(), "storage_offset": host.storage_offset()} | {"device": "cpu"}
        own = torch.Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, layout=host.layout, **shape)
        own.host = host
        return own

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, *_, **__):
        return f"DeviceTensor({self.host})"

    def __deepcopy__(self, memo):
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        flat, form = tree_flatten((args, kwargs or {}))
        moving = function in (aten._to_copy.default, aten.copy_.default)
        hosts = [t for t in flat if isinstance(t, torch.Tensor) and not isinstance(t, cls)]
        if function in INDEXING and isinstance(args[0], cls) and hosts:
            waits["indices from the host"] += 1  # allowed, and a copy
            hosts = [t for t in args[2:3] if not isinstance(t, cls)]
        if not moving and any(t.dim() for t in hosts):
            shapes = [tuple(t.shape) for t in hosts]
            raise RuntimeError(f"{function}: all tensors must be on one device, but {shapes} are on the CPU")
        for one in flat:
            if isinstance(one, torch.Generator) and one.device.type != "cuda":
                raise RuntimeError(f"{function}: expected a 'cuda' generator, not one of the CPU")
        if function in WAITING or (function is aten.index.Tensor and any(_mask(t) for t in flat)):
            waits[str(function)] += 1
        if function is aten.copy_.default and hosts:
            waits["copy between host and device"] += 1
        new = tree_unflatten([t.host if isinstance(t, cls) else t for t in flat], form)
        if function is aten._to_copy.default:
            new[1].pop("device", None)
        result = function(*new[0], **new[1])
        if function is aten.copy_.default:
            return args[0]
        wrapped = tree_map(lambda t: cls(t) if isinstance(t, torch.Tensor) else t, result)
        return return_and_correct_aliasing(function, args, kwargs or {}, wrapped)


def _mask(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.dim() > 0


class _Pretending(TorchFunctionMode):
    """Sends what names a CUDA device to the pretended one, and moves tensors between it and the host."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in ("cpu", "cuda") and args and isinstance(args[0], torch.Tensor):
            return _moved(args[0], name)
        if name == "to" and isinstance(args[0], torch.Tensor):
            return _to(*args, **kwargs)
        if function == torch.Tensor.data.__set__ and isinstance(args[0], DeviceTensor):
            args[0].host = args[1].host
        if name == "one_hot" and isinstance(args[0], DeviceTensor):  # makes a constant where the wrapped tensor lies
            return DeviceTensor(function(args[0].host, *args[1:], **kwargs))
        if name.startswith("new_") and isinstance(args[0], DeviceTensor) and kwargs.get("device") is not None:
            kwargs.pop("device")
        if is_cuda(kwargs.get("device")):
            waits["constants from the host"] += name in ("tensor", "as_tensor")
            kwargs["device"] = torch.device("cpu")
            if "generator" in kwargs and kwargs["generator"] is not None and not is_cuda(kwargs["generator"].device):
                raise RuntimeError(f"{name}: expected a 'cuda' generator, not one of the CPU")
            args, kwargs = tree_map(lambda t: t.host if isinstance(t, DeviceTensor) else t, (args, kwargs))
            wish = kwargs.pop("requires_grad", False)
            made = tree_map(lambda t: DeviceTensor(t) if isinstance(t, torch.Tensor) else t, function(*args, **kwargs))
            return made.requires_grad_() if wish else made
        return function(*args, **kwargs)


def _to(tensor, *args, copy=False, other=None, **kwargs):
    """`Tensor.to`, with the device first and everything else then."""
    args = (other, *args) if other is not None else args
    if args and isinstance(args[0], torch.Tensor):
        args, kwargs = args[1:], {"device": args[0].device, "dtype": args[0].dtype} | kwargs
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and device.type not in ("cpu", "cuda"):
        with torch._C.DisableTorchFunction():
            return torch.Tensor.to(getattr(tensor, "host", tensor), device, dtype=dtype or tensor.dtype)
    moved = _moved(tensor, device.type) if device is not None else tensor
    with torch._C.DisableTorchFunction():
        options = {} if layout is None else {"memory_format": layout}
        moved = torch.Tensor.to(moved, dtype=dtype or moved.dtype, **options)
        return moved.clone() if copy and moved is tensor else moved


def _apply(module, fn, recurse=True):
    """`nn.Module._apply`, where a parameter that changes its device becomes another object."""
    for child in module.children() if recurse else ():
        child._apply(fn)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                new = fn(parameter)
            if new.device != parameter.device:
                module._parameters[name] = torch.nn.Parameter(new, parameter.requires_grad)
            elif new is not parameter:
                parameter.data = new
    for name, buffer in module._buffers.items():
        module._buffers[name] = buffer if buffer is None else fn(buffer)
    return module


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, kind):
        return DeviceTensor(tensor.detach().clone()) if kind == "cuda" else tensor.host.clone()

    @staticmethod
    def backward(ctx, gradient):
        return _moved(gradient, "cpu" if isinstance(gradient, DeviceTensor) else "cuda"), None


def _moved(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    if kind not in ("cpu", "cuda") or isinstance(tensor, DeviceTensor) == (kind == "cuda"):
        return tensor
    waits["copy between host and device"] += 1
    return _Move.apply(tensor, kind)


class _Generator(torch.Generator):
    """A generator of the CPU that says it belongs to the pretended device."""

    pretended = False

    def __new__(cls, device="cpu"):
        own = super().__new__(cls, "cpu")
        own.pretended = is_cuda(device)
        return own

    device = property(lambda self: DEVICE if self.pretended else torch.device("cpu"))

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


class _Opened:
    """`safetensors.safe_open`, which would open CUDA by itself."""

    opened = None

    def __init__(self, path, framework, device="cpu", **_):
        self.file, self.device = self.opened(path, framework, "cpu"), device

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def keys(self):
        return self.file.keys()

    def offset_keys(self):
        return self.file.offset_keys()

    def get_tensors(self):
        return {name: self.get_tensor(name) for name in self.keys()}

    def get_tensor(self, name):
        return self.file.get_tensor(name).to(self.device)


def _no_grad(own):
    own.before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)


@contextmanager
def pretended(monkeypatch) -> Iterator[Counter]:
    """Inside, device="cuda" is the pretended GPU; yields the counts of what made the host wait.

    Random numbers are those of the CPU, and so are results.
    """
    autocast = torch.autocast
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch.nn.Module, "_apply", _apply)
    monkeypatch.setattr(torch.inference_mode, "__enter__", _no_grad)  # wrapped tensors know no inference mode
    monkeypatch.setattr(torch.inference_mode, "__exit__", lambda own, *_: torch._C._set_grad_enabled(own.before))

    def on_the_host(kind, dtype=torch.bfloat16, enabled=True):
        return autocast("cpu", dtype, enabled=enabled)

    monkeypatch.setattr(torch, "autocast", on_the_host)
    for name, value in {"get_device_name": "Pretended GPU", "max_memory_allocated": 0, "reset_peak_memory_stats": None,
                        "synchronize": None, "mem_get_info": (2**33, 2**34), "empty_cache": None,
                        "is_bf16_supported": True}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    opened = safetensors.safe_open
    monkeypatch.setattr(_Opened, "opened", staticmethod(opened))
    for module in (safetensors, safetensors.torch):
        monkeypatch.setattr(module, "safe_open", _Opened)
    waits.clear()
    data._by_channel.cache_clear()
    with _Pretending():
        yield waits
    data._by_channel.cache_clear()
