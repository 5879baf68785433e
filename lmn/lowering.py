"""From a traced tail to the alternating chain of affine maps and activations that kernels take, where it is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from lmn.errors import LmnError
from lmn.kernels.activations import Activation
from lmn.operations import (
    ACTIVATION_FUNCTIONS,
    ACTIVATION_MODULES,
    custom_activation,
    is_custom,
    is_plain,
    name_of,
    parameters_of,
    read_activation,
)


@dataclass(frozen=True)
class Affine:
    """x → weight x + bias on flattened samples; a weight of shape (n_hidden,) is a diagonal.

    Attributes
    ----------
    weight : Tensor of shape (n_next, n_hidden) or (n_hidden,), float64, on the CPU
    bias : Tensor of shape (n_next,), float64, on the CPU
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def identity(cls, width: int) -> Affine:
        return cls(torch.ones(width, dtype=torch.float64, device="cpu"), torch.zeros(width, dtype=torch.float64, device="cpu"))

    @property
    def diagonal(self) -> bool:
        return self.weight.ndim == 1

    @property
    def dense(self) -> Tensor:
        """The weight as a matrix of shape (n_next, n_hidden)."""
        return torch.diag(self.weight) if self.diagonal else self.weight

    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.weight if self.diagonal else x @ self.weight.T) + self.bias

    def then(self, after: Affine) -> Affine:
        """The composition: this map first."""
        if after.diagonal:
            weight = self.weight * (after.weight if self.diagonal else after.weight[:, None])
        else:
            weight = after.weight * self.weight if self.diagonal else after.weight @ self.weight
        return Affine(weight, after(self.bias))


ChainStep = Affine | Activation


@dataclass(frozen=True)
class NotAChain:
    """Why a tail takes the generic path."""

    why: str


def lower(root: nn.Module, graph: fx.Graph, example: Tensor) -> list[ChainStep] | NotAChain:
    """Read the chain off a graph of one placeholder, with the weights it has now.

    Every node either does not depend on the sample (a weight, and what is computed from weights: evaluated), or asks for a
    shape, or is the next step: an operation whose only sample-dependent argument is the step before.

    Parameters
    ----------
    example : Tensor of shape (2, ...)
        Two samples. Their values don't matter.
    """
    reader = _ChainReader(root, graph)
    try:
        with torch.no_grad():
            reader.run(example)
    except _Refusal as refusal:
        return NotAChain(str(refusal))
    return reader.steps


class _Refusal(Exception):  # noqa: N818
    """The graph has something that is no step of a chain."""


class _ChainReader(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False  # a refusal's message is for the user
        self.steps: list[ChainStep] = []
        self._tip: fx.Node | None = None  # the latest result that depends on the sample
        self._depends: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        sources = [node for node in n.all_input_nodes if node in self._depends]
        if n.op == "output":
            if sources != [self._tip]:
                raise _Refusal("the output is not one tensor")
        elif sources and sources != [self._tip]:
            raise _Refusal(f"'{n.name}' combines results (a residual or skip connection, or a branch)")
        value = super().run_node(n)
        if n.op == "placeholder":
            self._tip = n
            self._depends.add(n)
        elif self._tip is not None and sources and n.op != "output":
            if n.target in _CASTS and n.args[0] not in self._depends:
                pass  # a weight in the sample's dtype, still a weight
            elif isinstance(value, Tensor):
                self.steps += _Operation(self, n, self._tip, self.env[self._tip], value).read()
                self._tip = n
                self._depends.add(n)
            elif not _is_shape(value):
                raise _Refusal(f"'{n.name}' gives {type(value).__name__}")
        return value


def _is_shape(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_shape(item) for item in value)
    return isinstance(value, int | bool | torch.dtype | torch.device)


_CASTS = ("to", "type_as", torch.ops.aten.to.other, torch.ops.aten.type_as.default)

# Operations that keep the values and their order, where they keep the batch, the dtype and the number of values.
_RESHAPES = {
    *("flatten", "unflatten", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "contiguous", "clone", "detach"),
    *("to", "float", "double", "alias", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
}
_RESHAPE_MODULES = (
    *(nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
# Affine operations on each value by itself, and affine operations that are few values wide: read off by probing them.
_POINTWISE_AFFINE = {"batch_norm", "add", "sub", "rsub", "mul", "div", "truediv", "neg"}
_PROBED_AFFINE = {"getitem", "select", "slice", "narrow", "mean", "sum"}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_PROBED = 1 << 18  # entries of a weight found by probing


@dataclass(frozen=True)
class _Operation:
    """One node that takes the tip (the step before) and gives a tensor."""

    interpreter: fx.Interpreter
    node: fx.Node
    tip: fx.Node
    before: Tensor
    after: Tensor

    def read(self) -> list[ChainStep]:
        if self.after.shape[:1] != self.before.shape[:1]:
            raise _Refusal(f"'{self.node.name}' does not keep the batch first")
        steps = self._read_module() if self.node.op == "call_module" else self._read_function()
        if steps is None:
            raise _Refusal(f"'{self.node.name}' ({self._name}) is neither an affine map nor a known activation")
        return steps

    @property
    def _module(self) -> nn.Module:
        module: nn.Module = self.interpreter.fetch_attr(str(self.node.target))
        return module

    @property
    def _where(self) -> str:
        return str(self.node.target).removeprefix("model.") if self.node.op == "call_module" else self.node.name

    @property
    def _name(self) -> str:
        return name_of(self.node, self._module if self.node.op == "call_module" else None)

    # -- reading ---------------------------------------------------------------------------------------------------------

    def _read_module(self) -> list[ChainStep] | None:
        module = self._module
        if is_custom(module) and self.node.args == (self.tip,) and self.before.shape == self.after.shape:
            try:
                return [custom_activation(module, self._where)]
            except LmnError as error:
                raise _Refusal(error.short) from error
        if not is_plain(module) or self.node.args != (self.tip,) or self.node.kwargs:
            return None
        if isinstance(module, nn.Linear):
            return self._linear(module.weight, module.bias)
        if isinstance(module, _BATCH_NORMS):
            return self._probe_pointwise()
        if isinstance(module, _RESHAPE_MODULES):
            return self._reshape()
        name = ACTIVATION_MODULES.get(type(module))
        if name is None:
            return None
        return self._activation(name, {key: getattr(module, key) for key in ACTIVATION_FUNCTIONS[name]})

    def _read_function(self) -> list[ChainStep] | None:
        name = self._name
        args: Any = self.interpreter.map_nodes_to_values(self.node.args, self.node)
        kwargs: Any = self.interpreter.map_nodes_to_values(self.node.kwargs, self.node)
        places = [i for i, arg in enumerate(self.node.args) if arg is self.tip]
        if len(places) != 1 or self.tip in self.node.kwargs.values():  # given by keyword, inside a list, or twice
            return None
        place, tensors = places[0], [arg for arg in args if isinstance(arg, Tensor)]
        if name == "linear" and place == 0:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return self._linear(args[1] if len(args) > 1 else kwargs["weight"], bias)
        if name in ("matmul", "mm") and place == 0 and tensors[1].ndim == 2:
            return self._linear(tensors[1].T, None)
        if name == "addmm" and place == 1 and not kwargs and args[0].ndim == 1:
            return self._linear(args[2].T, args[0])
        if place != 0 and name not in ("add", "sub", "mul"):
            return None
        if name in ACTIVATION_FUNCTIONS:
            given = parameters_of(name, args[1:], kwargs)
            if name == "elu" and any(x != 1 for x in args[2:] if not isinstance(x, bool)):
                return None  # aten's elu has two more scales, which SELU and CELU use
            return self._activation(name, given)
        if name in _RESHAPES:
            if "dropout" in name and (args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))):
                return None
            return self._reshape()
        if name in _POINTWISE_AFFINE and self.before.shape == self.after.shape:
            return self._probe_pointwise()
        return self._probe() if name in _PROBED_AFFINE else None

    def _linear(self, weight: Tensor, bias: Tensor | None) -> list[ChainStep] | None:
        if math.prod(self.before.shape[1:-1]) != 1 or weight.ndim != 2:
            return None  # applied along the last of several dimensions
        weight = _double(weight)
        return [Affine(weight, _double(bias).expand(len(weight)) if bias is not None else weight.new_zeros(len(weight)))]

    def _activation(self, name: str, parameters: dict[str, Any]) -> list[ChainStep] | None:
        if self.before.shape != self.after.shape:
            return None
        found = read_activation(name, parameters, tuple(self.before.shape[1:]), self._where)
        return None if found is None else [found]

    def _reshape(self) -> list[ChainStep] | None:
        same = self.after.numel() == self.before.numel() and self.after.dtype == self.before.dtype
        return [] if same else None

    # -- probing: what an affine operation does, by what it does to known samples, in float64 ----------------------------------

    def _probe_pointwise(self) -> list[ChainStep] | None:
        at_zero = self._at(torch.zeros(2, self.before[0].numel(), dtype=torch.float64, device="cpu"))
        at_one = self._at(torch.ones(2, self.before[0].numel(), dtype=torch.float64, device="cpu"))
        return self._verified(Affine(at_one[0] - at_zero[0], at_zero[0]))

    def _probe(self) -> list[ChainStep] | None:
        n_in, n_out = self.before[0].numel(), self.after[0].numel()
        if n_in * n_out > _MAX_PROBED:
            return None
        bias = self._at(torch.zeros(2, n_in, dtype=torch.float64, device="cpu"))[0]
        return self._verified(Affine(self._at(torch.eye(n_in, dtype=torch.float64, device="cpu")).T - bias[:, None], bias))

    def _verified(self, affine: Affine) -> list[ChainStep] | None:
        x = torch.linspace(-3, 5, 2 * self.before[0].numel(), dtype=torch.float64, device="cpu").reshape(2, -1).sin()
        got, expected = affine(x), self._at(x)
        return [affine] if got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-10, atol=1e-12) else None

    def _at(self, x: Tensor) -> Tensor:
        """The operation in float64 on flattened samples, flattened."""
        sample = x.reshape(len(x), *self.before.shape[1:]).to(self.before.device)
        if self.node.op == "call_module":
            module = self._module
            parameters = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            out: Tensor = functional_call(module, {k: _double(v, keep_device=True) for k, v in parameters.items()}, (sample,))
        else:

            def argument(node: fx.Node) -> Any:
                value = sample if node is self.tip else self.interpreter.env[node]
                floating = isinstance(value, Tensor) and value.is_floating_point()
                return _double(value, keep_device=True) if floating else value

            args: Any = fx.node.map_arg(self.node.args, argument)
            kwargs: Any = fx.node.map_arg(self.node.kwargs, argument)
            target: Callable[..., Tensor]
            if self.node.op == "call_method":
                target, args = getattr(args[0], str(self.node.target)), args[1:]
            else:
                target = self.node.target  # type: ignore[assignment]
            out = target(*args, **kwargs)
        return out.reshape(len(x), -1).cpu()


def _double(x: Tensor, keep_device: bool = False) -> Tensor:
    if not x.is_floating_point():
        return x if keep_device else x.cpu()
    return x.detach().double() if keep_device else x.detach().to("cpu", torch.float64)
