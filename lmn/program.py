"""From a traced tail to the steps that regions of any piecewise-linear network are found from (kernels/program.py)."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lmn import operations
from lmn.errors import LmnError, in_short
from lmn.kernels.activations import Activation
from lmn.kernels.pieces import Pieces, pieces
from lmn.kernels.program import Program, Step, Value
from lmn.kernels.windows import Windows
from lmn.submodules import own_sizes


def program(graph_module: fx.GraphModule, sample: Tensor) -> Program:
    """The steps of a traced tail, computed in the sample's dtype, with a copy of the weights that it has now.

    Parameters
    ----------
    graph_module : fx.GraphModule
        Of one placeholder, the sample.
    sample : Tensor of shape (1, ...)

    Raises
    ------
    LmnError
        An operation that is not piecewise linear, or not known to be.
    """
    own = copy.deepcopy(graph_module).to(sample.device, sample.dtype).requires_grad_(False)
    return _Builder(own, sample).build()


@dataclass(frozen=True)
class _OfBatch:
    """A number that grows linearly with the batch, such as its size or a number of values: offset + slope * batch."""

    offset: int
    slope: int


class _Recorder(fx.Interpreter):
    """Runs a graph in one dtype, whatever it casts to, and keeps every result."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._dtype = dtype

    def run_node(self, n: fx.Node) -> Any:
        value = self.env[n.args[0]] if _is_cast(n, self.env) else _in_dtype(super().run_node(n), self._dtype)  # type: ignore[index]
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)  # of now: an operation in place may change it
        return value


def _is_cast(node: fx.Node, env: dict[fx.Node, Any]) -> bool:
    """Whether a node casts its argument from one floating dtype to another, and does nothing else."""
    if node.op not in ("call_method", "call_function") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    name, value = operations.name_of(node, None), env.get(node.args[0])
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    others = [env.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in (*node.args[1:], *node.kwargs.values())]
    dtypes = [arg.dtype if isinstance(arg, Tensor) else arg for arg in others if isinstance(arg, Tensor | torch.dtype)]
    floating = all(dtype.is_floating_point for dtype in dtypes)
    return name in operations.FLOATING or (name in operations.CASTS and bool(dtypes) and floating)


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _Builder:
    def __init__(self, module: fx.GraphModule, sample: Tensor) -> None:
        self._module, self._sample = module, sample
        self._few, self._more = _Recorder(module, sample.dtype), _Recorder(module, sample.dtype)
        self._n = _unlike(module, sample)  # samples of the few; one more are the more
        with torch.no_grad():
            for recorder, n in ((self._few, self._n), (self._more, self._n + 1)):
                recorder.run(sample.repeat(n, *[1] * (sample.ndim - 1)))
        self._slots: dict[fx.Node, int] = {}
        self._values_only: set[fx.Node] = set()  # operations that return (values, indices), of which the values are kept
        self._steps: list[Step] = []
        self._place = {node: place for place, node in enumerate(module.graph.nodes)}

    def build(self) -> Program:
        output, live = -1, self._live()
        for node in self._module.graph.nodes:
            if node not in live:
                continue
            if node.op == "placeholder":
                self._slots[node] = 0
            elif node.op == "output":
                output = self._output(node)
            elif node.op != "get_attr":
                self._read(node)
        return Program(self._with_ends(output), output, self._widest(), self._in_dtype)

    def _live(self) -> set[fx.Node]:
        """What the output needs, and what may write into what it needs."""
        live = set[fx.Node]()
        for node in reversed(self._module.graph.nodes):
            writes = node.op.startswith("call") and operations.in_place(node, self._submodule(node))
            if node in live or writes or node.op in ("output", "placeholder"):
                live |= {node, *node.all_input_nodes}
        return live

    def _read(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._slots]
        value = self._more.env[node]
        tensors = isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(x, Tensor) for x in value))
        grows = any(self._of_batch(source) for source in node.all_input_nodes if source not in self._slots)
        if not tensors or not (sources or grows):
            return  # a shape, a number, or what depends on weights alone
        module = self._submodule(node)
        if operations.name_of(node, module) in operations.CASTS and node.args[0] not in self._slots:
            return  # a weight in the dtype of a sample-dependent result, still a weight
        of_maximum = node.target in (operator.getitem, getattr) and node.args[0] in self._values_only
        if of_maximum and node.args[1] not in (0, "values"):
            self._check_unused(node)
            return
        if of_maximum or _is_cast(node, self._more.env):
            self._slots[node] = self._slots[sources[0]]
            return
        in_place = bool(sources) and operations.in_place(node, module)
        if in_place:
            self._check_nothing_else_is_written(node, sources[0])
        bend = self._bend(node, module, sources)
        run = self._runner(node, module, sources)
        if bend is None:
            self._check_affine(node, module, run, sources)
        elif isinstance(value, tuple | list):
            run = _first_of(run)
            self._values_only.add(node)
            value = value[0]
        elif self._few.shapes[node][:1] != (self._n,) or self._more.shapes[node][:1] != (self._n + 1,):
            raise _batch_elsewhere(f"'{node.name}'")
        shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else ()
        target = len(self._steps) + 1
        self._steps.append(Step(node.name, tuple(self._slots[s] for s in sources), target, run, bend, shape))
        if in_place:
            overwritten = self._slots[sources[0]]
            for other, slot in self._slots.items():
                if slot == overwritten:
                    self._slots[other] = target
        self._slots[node] = target

    def _check_unused(self, node: fx.Node) -> None:
        if node.users:
            raise LmnError(f"'{node.name}' uses the indices of a maximum, which are not piecewise linear.")

    def _check_nothing_else_is_written(self, node: fx.Node, source: fx.Node) -> None:
        """An operation in place changes no result but its own: none that is a view of the same memory is used after it."""
        memory, slot = _storages(self._more.env[source]), self._slots[source]
        for other, its_slot in self._slots.items():
            used_later = any(self._place[user] > self._place[node] for user in other.users)
            if its_slot != slot and used_later and memory & _storages(self._more.env[other]):
                raise LmnError(
                    f"'{_where(node)}' writes in place into what '{_where(other)}' is a view of, and that is used afterwards; "
                    "write it without the operation in place."
                )

    def _submodule(self, node: fx.Node) -> nn.Module | None:
        return self._more.fetch_attr(str(node.target)) if node.op == "call_module" else None

    # -- arguments -------------------------------------------------------------------------------------------------------

    def _of_batch(self, node: fx.Node) -> bool:
        return _linear(self._few.env[node], self._more.env[node], self._n) is not None

    def _argument(self, node: fx.Node) -> Any:
        """What a node that is no sample-dependent tensor gives: a constant, or a function of the batch's size."""
        value = self._more.env[node]
        if isinstance(value, Tensor):
            return value
        return _linear(self._few.env[node], value, self._n) or value

    def _runner(
        self, node: fx.Node, module: nn.Module | None, sources: list[fx.Node]
    ) -> Callable[[Sequence[Value], int], Value]:
        places = {source: index for index, source in enumerate(sources)}
        known = {other: self._argument(other) for other in node.all_input_nodes if other not in places}
        target: Any = module if module is not None else node.target
        written, dtype = operations.in_place(node, module), self._sample.dtype

        def run(values: Sequence[Value], batch: int) -> Value:
            if written and values:  # what was there is left alone
                values = [values[0].clone(), *values[1:]]

            def argument(other: fx.Node) -> Any:
                return values[places[other]] if other in places else _at_batch(known[other], batch)

            args: Any = fx.node.map_arg(node.args, argument)
            kwargs: Any = fx.node.map_arg(node.kwargs, argument)
            out = getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
            return _in_dtype(out, dtype)

        return run

    # -- what a node is ----------------------------------------------------------------------------------------------------

    def _bend(self, node: fx.Node, module: nn.Module | None, sources: list[fx.Node]) -> Pieces | Windows | None:
        name, where = operations.name_of(node, module), _where(node)
        shapes = [self._more.shapes[source][1:] for source in sources if source in self._more.shapes]
        others = [arg for arg in node.args if arg not in sources]
        args: Any = tuple(self._more.map_nodes_to_values(others, node))  # type: ignore[arg-type]
        kwargs: Any = self._more.map_nodes_to_values(node.kwargs, node)
        found: Activation | Windows | None = None
        if module is not None and not operations.is_plain(module) and not operations.is_custom(module):
            return None  # what its class says is not what it does
        if module is not None and operations.is_custom(module):
            found = operations.custom_activation(module, where)
        elif module is not None and type(module) in operations.ACTIVATION_MODULES:
            name = operations.ACTIVATION_MODULES[type(module)]
            found = operations.read_activation(
                name, {key: getattr(module, key) for key in operations.ACTIVATION_FUNCTIONS[name]}, shapes[0], where
            )
        elif module is None and name in operations.ACTIVATION_FUNCTIONS and len(sources) == 1:
            found = operations.read_activation(name, operations.parameters_of(name, args, kwargs), shapes[0], where)
        elif shapes and (name in operations.MAXIMA or "pool" in name.lower()):
            value = self._more.env[node]
            out = value[0] if isinstance(value, tuple | list) else value
            options = operations.window_options(name, args, kwargs, module)
            found = operations.read_windows(name, options, shapes, tuple(out.shape[1:]), where)
        if isinstance(found, Activation):
            if not found.piecewise_linear:
                raise not_piecewise_linear(found.name, where)
            return pieces(found, math.prod(shapes[0]))
        return found

    def _check_affine(
        self, node: fx.Node, module: nn.Module | None, run: Callable[[Sequence[Value], int], Value], sources: list[fx.Node]
    ) -> None:
        """Known to be affine, and it is: of a mixture of two arguments it gives the mixture of its results."""
        name = operations.name_of(node, module)
        kind = None if module is None else operations.unparametrized(module)
        known = kind in operations.KNOWN_MODULES if module is not None else name in operations.AFFINE
        if name in operations.SMOOTH:
            raise not_piecewise_linear(name, _where(node))
        if module is not None and known and not operations.is_plain(module, but_for_torchs=True):
            raise LmnError(
                f"'{_where(node)}' ({name}) has hooks, or a forward of its own, that may change what it does; remove them "
                "while its regions are looked for."
            )
        if not known:
            raise LmnError(
                f"'{_where(node)}' ({name}) is not known to be affine or piecewise linear; write it with modules and functions "
                "that are, such as nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, or measure the linear mapping number."
            )
        generator = torch.Generator().manual_seed(0)
        probes = []
        for source in sources:
            shape = self._more.shapes.get(source)
            if shape is None:
                return  # parts of a tuple: checked where they are used
            some = torch.randn(self._n + 1, *shape[1:], generator=generator, dtype=torch.float64)
            some[2] = 0.3 * some[0] + 0.7 * some[1]
            probes.append(some.to(self._sample))
        try:
            with torch.no_grad():
                out = run(probes, self._n + 1)
        except Exception as error:
            raise LmnError(f"'{_where(node)}' ({name}) can't be run on a batch of its own: {in_short(error)}.") from error
        for part in out if isinstance(out, tuple | list) else (out,):
            if part.shape[:1] != (self._n + 1,):
                raise _batch_elsewhere(f"'{_where(node)}' ({name})")
            expected = 0.3 * part[0] + 0.7 * part[1]
            tolerance = 100 * torch.finfo(self._sample.dtype).eps * float(part.abs().max() + 1) if part.numel() else 0.0
            if part.numel() and float((part[2] - expected).abs().max()) > tolerance:
                raise not_piecewise_linear(name, _where(node))

    def _in_dtype(self, dtype: torch.dtype) -> Program:
        return program(self._module, self._sample.to(dtype))

    # -- the whole -------------------------------------------------------------------------------------------------------

    def _output(self, node: fx.Node) -> int:
        (result,) = node.args
        if not isinstance(result, fx.Node) or result not in self._slots:
            raise LmnError("the output does not depend on the sample: there is one region, and nothing to look for.")
        return self._slots[result]

    def _with_ends(self, output: int) -> tuple[Step, ...]:
        """The steps that the output needs, each with the slots that nothing needs after it."""
        needed, steps = {output}, list[Step]()
        for step in reversed(self._steps):
            if step.target in needed:
                done = tuple(slot for slot in dict.fromkeys(step.sources) if slot not in needed)
                needed.update(step.sources)
                steps.append(replace(step, done=done))
        return tuple(reversed(steps))

    def _widest(self) -> int:
        sizes = [self._sample[0].numel()]
        sizes += [shape.numel() for shape in map(torch.Size, (step.shape for step in self._steps))]
        return max(sizes)


def not_piecewise_linear(name: str, where: str) -> LmnError:
    why = f"'{where}' ({name}) is not piecewise linear"
    return LmnError(
        f"{why}, so the model has no linear regions; measure its linear mapping number, "
        "lmn.measure(model, grid, metrics=('lmn',)), which is made for any activation.",
        short=why,
    )


def _storages(value: Any) -> set[int]:
    """The memory that a result stands in."""
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr()} if value.numel() else set()
    return set().union(*map(_storages, value)) if isinstance(value, tuple | list) else set()


def _where(node: fx.Node) -> str:
    return str(node.target).removeprefix("model.") if node.op == "call_module" else node.name


def _first_of(run: Callable[[Sequence[Value], int], Value]) -> Callable[[Sequence[Value], int], Value]:
    return lambda values, batch: run(values, batch)[0]


def _linear(few: Any, more: Any, n: int) -> Any:
    """What numbers, or tuples of them, are as functions of the batch's size, from those for n and n + 1; None: constants."""
    if isinstance(more, tuple | list):
        parts = [_linear(a, b, n) for a, b in zip(few, more, strict=True)]
        return (
            None if all(part is None for part in parts) else [b if p is None else p for p, b in zip(parts, more, strict=True)]
        )
    if isinstance(more, int) and not isinstance(more, bool) and more != few:
        return _OfBatch(few - n * (more - few), more - few)
    return None


def _unlike(module: fx.GraphModule, sample: Tensor) -> int:
    """A batch size that, as one more, is no size of the model's own: what has it is seen to grow with the batch."""
    sizes = own_sizes(module, sample) | {len(child._modules) for child in module.modules()}
    return next(n for n in itertools.count(2) if not sizes & {n, n + 1})


def _batch_elsewhere(what: str) -> LmnError:
    return LmnError(
        f"{what} does not keep the batch first, and regions are found sample by sample; write it with the batch as the first "
        "dimension throughout (stack along dim=1, say), or measure the linear mapping number, metrics=('lmn',)."
    )


def _at_batch(value: Any, batch: int) -> Any:
    if isinstance(value, _OfBatch):
        return value.offset + value.slope * batch
    if isinstance(value, list | tuple) and any(isinstance(x, _OfBatch | list | tuple) for x in value):
        return [_at_batch(x, batch) for x in value]
    return value
