"""From a traced tail to the steps that regions of any piecewise-linear network are found from (kernels/program.py)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lmn import operations
from lmn.errors import LmnError, in_short
from lmn.graph_modules import copied
from lmn.kernels.activations import Activation
from lmn.kernels.pieces import Pieces, pieces
from lmn.kernels.program import Program, Step, Value
from lmn.kernels.windows import Windows
from lmn.recorder import Recorder, batch_unlike, has_tensor, in_dtype, is_cast, storages, where_of


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
    return _Builder(copied(graph_module, sample), sample).build()


@dataclass(frozen=True)
class _OfBatch:
    """A number that grows linearly with the batch, such as its size or a number of values: offset + slope * batch."""

    offset: int
    slope: int


class _Builder:
    def __init__(self, module: fx.GraphModule, sample: Tensor) -> None:
        self._module, self._sample = module, sample
        self._few, self._more = Recorder(module, sample.dtype), Recorder(module, sample.dtype)
        self._n = batch_unlike(module, sample)  # samples of the few; one more are the more
        self._few.run_on(sample, self._n)
        self._more.run_on(sample, self._n + 1)
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
            writes = node.op.startswith("call") and operations.in_place(node, self._more.submodule(node))
            if node in live or writes or node.op in ("output", "placeholder"):
                live |= {node, *node.all_input_nodes}
        return live

    def _read(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._slots]
        value = self._more.env[node]
        grows = any(self._of_batch(source) for source in node.all_input_nodes if source not in self._slots)
        if not has_tensor(value) or not (sources or grows):
            return  # a shape, a number, or what depends on weights alone
        module = self._more.submodule(node)
        if self._more.is_weight(node, self._slots):
            return
        of_maximum = node.target in (operator.getitem, getattr) and node.args[0] in self._values_only
        if of_maximum and node.args[1] not in (0, "values"):
            self._check_unused(node)
            return
        if of_maximum or is_cast(node, self._more.env):
            self._slots[node] = self._slots[sources[0]]
            return
        in_place = bool(sources) and operations.in_place(node, module)
        if in_place:
            self._check_nothing_else_is_written(node, sources[0])
        bend = self._bend(node, sources)
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
        memory, slot = storages(self._more.env[source]), self._slots[source]
        for other, its_slot in self._slots.items():
            used_later = any(self._place[user] > self._place[node] for user in other.users)
            if its_slot != slot and used_later and memory & storages(self._more.env[other]):
                raise LmnError(
                    f"'{where_of(node)}' writes in place into what '{where_of(other)}' is a view of, and that is used "
                    "afterwards; write it without the operation in place."
                )

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
            return in_dtype(out, dtype)

        return run

    # -- what a node is ----------------------------------------------------------------------------------------------------

    def _bend(self, node: fx.Node, sources: list[fx.Node]) -> Pieces | Windows | None:
        found = self._more.bend(node, sources)
        if not isinstance(found, Activation):
            return found
        if not found.piecewise_linear:
            raise not_piecewise_linear(found.name, found.where)
        return pieces(found, math.prod(self._more.shapes[sources[0]][1:]))

    def _check_affine(
        self, node: fx.Node, module: nn.Module | None, run: Callable[[Sequence[Value], int], Value], sources: list[fx.Node]
    ) -> None:
        """Known to be affine, and it is: of a mixture of two arguments it gives the mixture of its results."""
        name = operations.name_of(node, module)
        kind = None if module is None else operations.unparametrized(module)
        known = kind in operations.KNOWN_MODULES if module is not None else name in operations.AFFINE
        if name in operations.SMOOTH:
            raise not_piecewise_linear(name, where_of(node))
        if module is not None and known and not operations.is_plain(module, but_for_torchs=True):
            raise LmnError(
                f"'{where_of(node)}' ({name}) has hooks, or a forward of its own, that may change what it does; remove them "
                "while its regions are looked for."
            )
        if not known:
            raise LmnError(
                f"'{where_of(node)}' ({name}) is not known to be affine or piecewise linear; write it with modules and "
                "functions that are, such as nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, or measure the linear mapping number."
            )
        generator = torch.Generator().manual_seed(0)
        probes = []
        for source in sources:
            shape = self._more.shapes.get(source)
            if shape is None:
                return  # parts of a tuple: checked where they are used
            some = torch.randn(self._n + 1, *shape[1:], generator=generator, dtype=torch.float64, device="cpu")
            some[2] = 0.3 * some[0] + 0.7 * some[1]
            probes.append(some.to(self._sample))
        try:
            with torch.no_grad():
                out = run(probes, self._n + 1)
        except Exception as error:
            raise LmnError(f"'{where_of(node)}' ({name}) can't be run on a batch of its own: {in_short(error)}.") from error
        for part in out if isinstance(out, tuple | list) else (out,):
            if part.shape[:1] != (self._n + 1,):
                raise _batch_elsewhere(f"'{where_of(node)}' ({name})")
            expected = 0.3 * part[0] + 0.7 * part[1]
            tolerance = 100 * torch.finfo(self._sample.dtype).eps * float(part.abs().max() + 1) if part.numel() else 0.0
            if part.numel() and float((part[2] - expected).abs().max()) > tolerance:
                raise not_piecewise_linear(name, where_of(node))

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
