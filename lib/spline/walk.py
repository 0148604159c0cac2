"""A network followed layer by layer on all regions at once: what is affine, what bends, what is refused."""

import operator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lib.provenance import CompanionError
from lib.spline.cells import OTHER, Cells, envelope, join, subdivide

REGIONS = 512  # handled at once; 64 must divide it: BLAS sums a rest in another order, and last digits would move
AFFINE = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.BatchNorm1d, nn.BatchNorm2d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.UpsamplingNearest2d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.neg, operator.getitem),
    *(torch.add, torch.sub, torch.neg, torch.cat, torch.flatten, torch.reshape, torch.sum, torch.mean),
    *(torch.squeeze, torch.unsqueeze, torch.transpose, torch.permute),
    *(F.pad, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.interpolate, F.dropout),
    *("add", "add_", "sub", "sub_", "neg", "sum", "mean", "flatten", "view", "reshape", "contiguous", "expand"),
    *("squeeze", "unsqueeze", "transpose", "permute"),
)
# Affine in one value that depends on the input, but not in a product of two; a quotient only in its numerator.
PRODUCTS = (
    *(operator.mul, operator.imul, operator.matmul, torch.mul, torch.matmul, "mul", "mul_", "matmul"),
    *(F.linear, F.conv1d, F.conv2d, F.conv_transpose2d),
)
QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
RELU = (nn.ReLU, F.relu, torch.relu, "relu", "relu_")
RELU6 = (nn.ReLU6, F.relu6)
CLAMPS = (nn.Hardtanh, F.hardtanh, torch.clamp, torch.clip, "clamp", "clamp_", "clip")
LEAKY = (nn.LeakyReLU, F.leaky_relu)
PRELU = (nn.PReLU, F.prelu, torch.prelu)
ABSOLUTE = (torch.abs, operator.abs, "abs", "abs_")
POOLS = (nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d)
MAXIMA = (torch.maximum, torch.minimum, "maximum", "minimum", torch.amax, torch.amin, "amax", "amin")
BLOCK = 2**21  # numbers of one layer that are in memory at once; more regions are walked block by block


@dataclass
class State:
    """Some regions on their way through the network, with the values of the regions that they were part of."""

    cells: Cells
    window: np.ndarray  # (regions,) index of the window that each is part of
    codes: np.ndarray  # (regions, bytes) of the layers so far
    values: dict[fx.Node | str, Tensor]  # by node (3 * parents, ...): two slopes and a constant each
    parent: Tensor  # of each region, as its place in `values`
    bends: dict[fx.Node, tuple["_Bend", Tensor]] = field(default_factory=dict)  # codes that are not in `values` yet

    def take(self, index: np.ndarray) -> "State":
        """Some of the regions."""
        bends = {node: (bend, codes[index]) for node, (bend, codes) in self.bends.items()}
        cells, window, codes = self.cells.take(index), self.window[index], self.codes[index]
        return State(cells, window, codes, self.values, self.parent[index], bends)

    def own_values(self, part: slice) -> dict[fx.Node | str, Tensor]:
        """The values of some regions themselves."""
        parent = self.parent[part]
        own = {key: value.unflatten(0, (-1, 3)).index_select(0, parent) for key, value in self.values.items()}
        for node, (bend, codes) in self.bends.items():
            bend.apply(own[node], codes[part])
        return {key: value.flatten(0, 1) for key, value in own.items()}


@dataclass(frozen=True)
class _Bend:
    """A continuous piecewise affine activation: x on pieces of slope 1, constant where the slope is 0, else slope * x.

    There is one more piece than knots; slopes are (pieces, channels) or (pieces, 1).
    """

    knots: tuple[float, ...]  # where it bends, in rising order
    slopes: Tensor

    @classmethod
    def of(cls, knots: list[float], *slopes: float | Tensor) -> "_Bend":
        """From one slope a piece, or one for each channel of it."""
        slopes = [torch.as_tensor(slope, dtype=torch.float64).flatten() for slope in slopes]
        return cls(tuple(map(float, knots)), torch.stack(torch.broadcast_tensors(*slopes)))

    def apply(self, values: Tensor, codes: Tensor) -> None:
        """Make values (regions, 3, ...) those behind the activation, by the codes (regions, units), in place."""
        shape = values[:, :1].shape
        if self.slopes.tolist() == [[0], [1]] and self.knots == (0,):
            values.mul_(codes.view(shape))
            return
        slopes, codes = self.slopes.repeat_interleave(codes.shape[1] // self.slopes.shape[1], 1), codes.long()
        values.mul_(slopes.gather(0, codes).view(shape))
        offsets = self.slopes.new_zeros(len(self.slopes))
        for end in (0, -1):
            offsets[end] = 0.0 if self.slopes[end].any() else self.knots[end]
        if offsets.any():
            values[:, 2:].add_(offsets[codes].view(shape))


class Walk:
    """A traced network; `layers` names those that bend, with the label of their first unit, units and pieces."""

    def __init__(self, traced: fx.GraphModule, inputs: Tensor, finest: float):
        self.traced, self.nodes, self.layers, self.constants = traced, list(traced.graph.nodes), {}, {}
        self.interpreter, self.finest = fx.Interpreter(traced), finest
        self.last_use = {used: place for place, node in enumerate(self.nodes) for used in node.all_input_nodes}
        once, twice = _Recorder(traced), _Recorder(traced)  # two batches show which numbers are sizes of the batch
        once.run(inputs), twice.run(torch.cat([inputs, inputs]))
        depends = set()
        for node in self.nodes:
            if node.op == "placeholder" or depends & set(node.all_input_nodes):
                depends.add(node)
        self.fixed = {node: once.seen[node] for node in self.nodes if node not in depends}
        self.numbers = {node: (once.seen[node], twice.seen[node]) for node in depends if _is_number(once.seen[node])}
        self.bends = {node: bend for node in self.nodes if (bend := self._bend(node))}

    def go(self, step: int, state: State) -> tuple[Cells, np.ndarray, np.ndarray, Tensor]:
        """Walk some regions from a step to the end, block by block if they are many: cells, windows, codes, outputs."""
        for place in range(step, len(self.nodes)):
            node, regions = self.nodes[place], len(state.cells)
            if node.op != "output" and node not in self.bends:
                continue
            values = self._between(step, place, state)
            state = State(state.cells, state.window, state.codes, values, torch.arange(regions))
            if node.op == "output":
                return state.cells, state.window, state.codes, state.values[node.args[0]]
            if isinstance(bend := self.bends[node], _Bend):
                value = state.values[node.all_input_nodes[0]]
                state, codes = self._cut(node, bend, value, state)
                state.values[node], state.bends[node] = value, (bend, codes)
            else:
                state = self._maximum(node, state)
            state.values, step = self._alive(state.values, place), place + 1
            most = max(1, BLOCK // sum(3 * value[0].numel() for value in state.values.values()))
            if regions < len(state.cells) > most:
                blocks = np.split(np.arange(len(state.cells)), range(most, len(state.cells), most))
                cells, *arrays, outputs = zip(*(self.go(step, state.take(block)) for block in blocks), strict=True)
                return join(cells), *map(np.concatenate, arrays), torch.cat(outputs)
        raise CompanionError(f"{type(self.traced).__name__} has no output: return the last layer's value.")

    def _alive(self, values: dict, place: int) -> dict:
        return {key: value for key, value in values.items() if self.last_use.get(key, -1) > place}

    def _between(self, start: int, stop: int, state: State) -> dict[fx.Node, Tensor]:
        """The values that are needed at the node `stop`, from those at `start`: all nodes between them are affine."""
        parts = []
        for first in range(0, len(state.cells), REGIONS):
            values = state.own_values(slice(first, first + REGIONS))
            for place in range(start, stop):
                node = self.nodes[place]
                if node.op != "placeholder" and node not in self.fixed and node not in self.numbers:
                    values[node] = self._affine(node, values)
                values = self._alive(values, place)
            parts.append(values)
        return {key: torch.cat([values[key] for values in parts]) for key in parts[0]}

    def _kind(self, node: fx.Node) -> object:
        return type(self.traced.get_submodule(node.target)) if node.op == "call_module" else node.target

    def _argument(self, node: fx.Node, place: int, *names: str, default: object = None) -> object:
        """An argument of a call, by its place or one of its names, or the attribute of a layer of the first name."""
        if node.op == "call_module":
            return getattr(self.traced.get_submodule(node.target), names[0], default)
        named = [node.kwargs[name] for name in names if node.kwargs.get(name) is not None]
        value = node.args[place] if len(node.args) > place else (named or [default])[0]
        return self.fixed.get(value, value) if isinstance(value, fx.Node) else value

    def _bend(self, node: fx.Node) -> "_Bend | str | None":
        """Where a node bends: an activation, the word "maximum", or None if it does not bend."""
        kind = self._kind(node)
        if kind in RELU:
            return _Bend.of([0], 0, 1)
        if kind in RELU6:
            return _Bend.of([0, 6], 0, 1, 0)
        if kind in ABSOLUTE:
            return _Bend.of([0], -1, 1)
        if kind in LEAKY:
            return _Bend.of([0], self._argument(node, 1, "negative_slope", default=0.01), 1)
        if kind in PRELU and isinstance(weight := self._argument(node, 1, "weight"), Tensor):
            return _Bend.of([0], weight.detach(), 1)
        if kind in CLAMPS:
            low, high = (-1, 1) if kind is F.hardtanh else (None, None)
            low = self._argument(node, 1, "min_val", "min", default=low)
            high = self._argument(node, 2, "max_val", "max", default=high)
            if not any(isinstance(value, Tensor | fx.Node) for value in (low, high)):
                knots = [value for value in (low, high) if value is not None]
                return _Bend.of(knots, *[0] * (low is not None), 1, *[0] * (high is not None))
        two = kind in (torch.max, torch.min, "max", "min") and isinstance(
            self._argument(node, 1, "other"), Tensor | fx.Node
        )
        return "maximum" if kind in POOLS or kind in MAXIMA or two else None

    def _affine(self, node: fx.Node, values: dict) -> Tensor:
        """The node's value; what it makes of zeros is its constant and belongs to no slope."""
        kind, varying = self._kind(node), [used for used in node.all_input_nodes if used in values]
        name = node.target if node.op == "call_module" else node.name
        label = f"Layer {name} ({getattr(kind, '__name__', kind)})"
        if kind in PRODUCTS or kind in QUOTIENTS:
            twice = len(varying) > 1 or list(node.args).count(varying[0]) > 1
            if twice or (kind in QUOTIENTS and node.args[0] not in values):
                raise CompanionError(f"{label} multiplies or divides values that depend on the input: use sums.")
        elif (
            kind not in AFFINE or node.kwargs.get("training") or getattr(self._module(node), "running_mean", 0) is None
        ):
            raise CompanionError(f"{label} is not known to be piecewise affine: use ReLU or max pooling.")

        def call(values: dict) -> Tensor:
            batch = len(next(iter(values.values())))
            arguments = fx.map_arg((node.args, node.kwargs), lambda used: self._value(used, values, batch))
            return getattr(self.interpreter, node.op)(node.target, *arguments)

        if node not in self.constants:
            self.constants[node] = call({key: torch.zeros_like(value[:1]) for key, value in values.items()})
        value, constant = call(values), self.constants[node]
        if not value.dim() or len(value) != len(next(iter(values.values()))):
            raise CompanionError(f"Layer {node.name} mixes the inputs of a batch: every input must go its own way.")
        if constant.any():
            value.unflatten(0, (-1, 3))[:, :2] -= constant
        return value

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.traced.get_submodule(node.target) if node.op == "call_module" else None

    def _value(self, node: fx.Node, values: dict, batch: int) -> object:
        """What a node is for a batch of this size: a value, something fixed, or a number such as a shape."""
        if node in self.numbers:
            return _at_batch(*self.numbers[node], batch)
        return values[node] if node in values else self.fixed[node]

    def _maximum(self, node: fx.Node, state: State) -> State:
        """Cut the regions where the winner among the entries of a maximum changes, and go on with the winner."""
        sign, entries = self._entries(node, state.values)
        shape = entries.shape[1:-1]
        state.values["entries"] = sign * entries.reshape(len(entries), -1, entries.shape[-1])
        functions = state.values["entries"].unflatten(0, (-1, 3)).permute(0, 2, 3, 1).contiguous().numpy()
        units, most = functions.shape[1:3]
        label, *_ = self.layers.setdefault(node.name, (self._next_label(), units, most))
        cells, parent, winner = envelope(state.cells, functions, label)
        codes = np.concatenate([state.codes.take(parent, 0), _pack(winner, most)], 1)
        state = State(cells, state.window[parent], codes, state.values, torch.from_numpy(parent))
        state.values = state.own_values(slice(None))
        state.parent, won = torch.arange(len(parent)), torch.from_numpy(winner).repeat_interleave(3, 0)
        state.values[node] = sign * state.values.pop("entries").gather(2, won[..., None]).view(-1, *shape)
        return state

    def _entries(self, node: fx.Node, values: dict) -> tuple[int, Tensor]:
        """The entries (3 * regions, ..., entries) among which a maximum chooses; the sign is -1 for a minimum."""
        kind, value = self._kind(node), values.get(node.all_input_nodes[0])
        sign = -1 if "min" in getattr(kind, "__name__", str(kind)) else 1
        if kind in POOLS:
            size = self._argument(node, 1, "kernel_size")
            options = {"kernel_size": size, "stride": self._argument(node, 2, "stride") or size}
            options["padding"] = self._argument(node, 3, "padding", default=0)
            options["dilation"] = self._argument(node, 4, "dilation", default=1)
            if self._argument(node, 5, "ceil_mode"):
                raise CompanionError(f"Layer {node.target} pools with ceil_mode: use windows that fit the image.")
            seen = _windows(options, value.shape[2:])
            shape = getattr(F, f"max_pool{value.dim() - 2}d")(value[:1], **options).shape[2:]
            return sign, value.flatten(2)[:, :, seen.T].unflatten(2, shape)
        if kind in (torch.amax, torch.amin, "amax", "amin"):
            dims = self._argument(node, 1, "dim", default=())
            dims = [dim % value.dim() for dim in (dims if isinstance(dims, tuple | list) else [dims])]
            if not dims or 0 in dims or self._argument(node, 2, "keepdim"):
                raise CompanionError(f"Layer {node.name} is a maximum that cannot be followed: name dimensions but 0.")
            kept = [dim for dim in range(value.dim()) if dim not in dims]
            return sign, value.permute(*kept, *dims).flatten(len(kept))
        both = [node.args[0], self._argument(node, 1, "other")]
        like = next(values[one] for one in both if isinstance(one, fx.Node) and one in values)
        both = [
            values[one] if isinstance(one, fx.Node) and one in values else _constant(self.fixed.get(one, one), like)
            for one in both
        ]
        return sign, torch.stack(torch.broadcast_tensors(*both), -1)

    def _next_label(self) -> int:
        return sum(units for _, units, _ in self.layers.values())

    def _cut(self, node: fx.Node, bend: _Bend, values: Tensor, state: State) -> tuple[State, Tensor]:
        """Cut the regions at every unit's knots; codes (pieces, units) say which piece of the activation it is on."""
        lines = values.unflatten(0, (-1, 3)).flatten(2).transpose(1, 2).numpy()
        units, most = lines.shape[1], len(bend.knots) + 1
        label, *_ = self.layers.setdefault(node.name, (self._next_label(), units, most))
        if bend.knots != (0,):
            lines = np.concatenate([lines - [0, 0, knot] for knot in bend.knots], 1)
        cells, parent, codes = subdivide(state.cells, lines, label, self.finest)
        if most > 2:
            codes = codes.reshape(len(codes), most - 1, units).sum(1, np.uint8)
        drawn = cells.labels >= label
        unit = np.where(drawn, (cells.labels - label) % units, 0)
        shown = drawn & (np.take_along_axis(codes, unit, 1) % 2 == 1)  # of two sides, the one of odd code
        cells = replace(cells, labels=np.where(drawn, np.where(shown, unit + label, OTHER), cells.labels))
        packed = np.concatenate([state.codes.take(parent, 0), _pack(codes, most)], 1)
        state = State(cells, state.window[parent], packed, state.values, torch.from_numpy(parent))
        return state, torch.from_numpy(codes)


class _Recorder(fx.Interpreter):
    """Runs a traced network and keeps what every node gives."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced, garbage_collect_values=False)
        self.seen = {}

    def run_node(self, node: fx.Node) -> object:
        """The node's value."""
        self.seen[node] = super().run_node(node)
        return self.seen[node]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | torch.Size) and not isinstance(value, bool)


def _at_batch(once: object, twice: object, batch: int) -> object:
    """A number or shape for this batch, from those for batches of 3 and 6."""
    if isinstance(once, torch.Size):
        return torch.Size(_at_batch(a, b, batch) for a, b in zip(once, twice, strict=True))
    return once if once == twice else once * batch // 3


def _constant(value: Tensor | float, like: Tensor) -> Tensor:
    """Something fixed as a value like another one, without slopes."""
    value = torch.as_tensor(value, dtype=like.dtype)
    value = value[0] if value.dim() == like.dim() else value
    spread = like.new_zeros(len(like), *torch.broadcast_shapes(value.shape, like.shape[1:]))
    spread[2::3] = value
    return spread


def bits_of(pieces: int) -> int:
    """Bits that hold the code of a unit with this many pieces."""
    return max(1, (pieces - 1).bit_length())


def _pack(codes: np.ndarray, pieces: int) -> np.ndarray:
    """Codes (regions, units) as bytes, the fewest bits each."""
    if codes.dtype == bool:
        return np.packbits(codes, axis=1)
    bits = codes[..., None] >> np.arange(bits_of(pieces)) & 1
    return np.packbits(bits.reshape(len(codes), -1).astype(np.uint8), axis=1)


def _windows(options: dict, shape: tuple[int, ...]) -> Tensor:
    """Places (entries, windows) of a flattened map that each window of a pooling sees; padding repeats one of them."""
    alone = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}  # a sequence is a map of height 1
    pairs = {
        name: (*value,) if isinstance(value, tuple | list) else (value,) * len(shape) for name, value in options.items()
    }
    pairs = {name: (alone[name],) * (2 - len(shape)) + value for name, value in pairs.items()}
    places = torch.arange(1.0, np.prod(shape) + 1).view(1, 1, *[1] * (2 - len(shape)), *shape)
    seen = F.unfold(places, **pairs)[0].long() - 1
    return torch.where(seen < 0, seen.amax(0), seen)
