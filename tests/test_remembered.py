"""A model's graph is used again, and only where the model still looks and does as it did."""

import copy
import gc
import linecache
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.fx.graph_module import _loader

import lmn
import lmn.network

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """Reads a plain attribute, an entry of a container, and its activation by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scale, self.settings, self.act = 1.0, {"skip": False}, nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x)) * self.scale
        return self.second(h) + (x[:, :2] if self.settings["skip"] else 0)


def measured(model: nn.Module, **options: object) -> Tensor:
    return lmn.jacobians(model, X, progress=False, **options)


def fresh(model: nn.Module, **options: object) -> Tensor:
    return measured(copy.deepcopy(model), **options)


@pytest.fixture
def tracings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each tracing."""
    seen: list[int] = []
    for name in ("traced_symbolically", "traced_by_running"):
        trace = getattr(lmn.network, name)
        monkeypatch.setattr(lmn.network, name, lambda *args, trace=trace: seen.append(1) or trace(*args))
    return seen


def test_a_model_is_traced_once(tracings: list[int]) -> None:
    model = Scaled()
    first = measured(model)
    assert torch.equal(measured(model), first)
    lmn.connectivity(model, X, progress=False)
    assert len(tracings) == 1


def test_a_training_step_is_seen(tracings: list[int]) -> None:
    model = Scaled()
    measured(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    assert torch.equal(measured(model), fresh(model))
    assert len(tracings) == 2  # one of them for the copy


def attribute(model: Scaled) -> None:
    model.scale = 2.0


def container(model: Scaled) -> None:
    model.settings["skip"] = True


def submodule(model: Scaled) -> None:
    model.act = nn.ReLU()


def parameter(model: Scaled) -> None:
    model.first.weight = nn.Parameter(torch.ones(8, 4))


def forward_of_its_own(model: Scaled) -> None:
    model.forward = lambda x: model.second(model.act(3 * model.first(x)))  # type: ignore[method-assign]


def hook(model: Scaled) -> None:
    model.act.register_forward_hook(lambda _module, _inputs, output: 5 * output)


@pytest.mark.parametrize("change", [attribute, container, submodule, parameter, forward_of_its_own, hook])
def test_a_change_is_seen(change: Callable[[Scaled], None]) -> None:
    model, same = Scaled(), Scaled()
    measured(model)
    change(model)
    change(same)
    torch.testing.assert_close(measured(model), measured(same))


def test_a_changed_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaled()
    measured(model)
    monkeypatch.setattr(Scaled, "forward", lambda self, x: self.second(torch.sin(self.first(x))))
    torch.testing.assert_close(measured(model), fresh(model))


class Configured(nn.Module):
    """Reads an object, a set, and what a hook on a block of its own reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.settings, self.stopped = SimpleNamespace(stop=False, scale=1.0), set()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = h.detach() + x.sum() * 0 if self.settings.stop or "h" in self.stopped else h
        return self.second(h) * self.settings.scale + x[:, :2] + 1000.0


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.settings, "stop", True),
        lambda model: setattr(model.settings, "scale", 1.0008),
        lambda model: model.stopped.add("h"),
    ],
    ids=["detached by an object", "a little by an object", "detached by a set"],
)
def test_a_change_inside_an_attribute_is_seen(change: Callable[[Configured], None]) -> None:
    model, same = Configured().double(), Configured().double()
    lmn.jacobians(model, X.double(), progress=False)
    change(model)
    change(same)
    got, expected = (lmn.jacobians(each, X.double(), progress=False) for each in (model, same))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_model_with_hooks_is_traced_each_time(tracings: list[int]) -> None:
    model, flags = Scaled(), {"factor": 1.0}
    model.act.register_forward_hook(lambda _module, _inputs, output: output * flags["factor"])
    before = measured(model)
    flags["factor"] = 1.0003
    assert not torch.equal(measured(model), before)
    assert len(tracings) == 2


@pytest.mark.parametrize("read", [torch.Tensor.tolist, lambda size: size.numpy().item(), float, bool])
def test_reading_a_value_in_any_way_is_noticed(read: Callable[[Tensor], object], tracings: list[int]) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            self.register_buffer("size", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * float(read(self.size))  # type: ignore[arg-type]

    model = Reads()
    measured(model)
    measured(model)
    assert len(tracings) == 2


FACTOR = 1.0


class ReadsAGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * FACTOR


def test_what_no_look_shows_is_seen_in_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ReadsAGlobal()
    before = measured(model)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    torch.testing.assert_close(measured(model), 3 * before)


class ReadsValues(nn.Module):
    """A number that is computed from a weight while it is traced, and would be kept in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("size", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.size.item()


def test_a_graph_with_a_value_in_it_is_not_kept(tracings: list[int]) -> None:
    model = ReadsValues()
    before = measured(model)
    model.size.fill_(1.0004)  # too little for the outputs to tell
    torch.testing.assert_close(measured(model), 1.0004 * before, rtol=1e-6, atol=0)
    assert len(tracings) == 2


class TracedByRunning(nn.Module):
    """Looks at its samples' type, which torch.fx's stand-ins lack; has a buffer, a constant, and what is made of both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.held = nn.Linear(4, 2), torch.full((2,), 0.5)
        self.register_buffer("size", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError
        shift = torch.tensor([1.0, 2.0]) * (self.size + 1) + self.held
        return torch.tanh(self.linear(x) * self.size.sqrt() + shift)


def test_a_graph_that_was_traced_by_running_is_kept(tracings: list[int]) -> None:
    model = TracedByRunning()
    measured(model)
    assert len(tracings) == 2  # by symbols it can't be
    with torch.no_grad():
        model.linear.weight.add_(0.3)
        model.size.fill_(1.0004)
    after = measured(model)
    assert len(tracings) == 2
    assert torch.equal(after, fresh(model))


def test_a_recurrent_model_is_traced_once(tracings: list[int]) -> None:
    """Its list of weights, which torch makes anew where they are put in other memory, is no look."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x[:, None])[0][:, -1])

    model = Recurrent()
    measured(model)
    once = len(tracings)
    model.half().float()
    assert torch.equal(measured(model), measured(model))
    assert len(tracings) == once


def test_what_is_traced_again_and_again_leaves_nothing() -> None:
    """torch.fx keeps the source of each graph's code, and Python what it was read by."""
    model = Scaled()
    model.act.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    before = None
    for _ in range(3):
        lmn.measure(model, X, metrics=("lmn", "jacobians", "local_complexity"), progress=False)
        gc.collect()
        now = len(_loader.eval_cache), [name for name in linecache.cache if "eval_with_key" in name]
        assert before is None or before == now
        before = now


@pytest.mark.parametrize("change", [lambda held: held.fill_(0.5004), lambda _: torch.full((2,), 0.5004)])
def test_a_plain_tensor_of_such_a_model_is_seen_to_change(change: Callable[[Tensor], Tensor]) -> None:
    model = TracedByRunning()
    before = measured(model)
    model.held = change(model.held)
    after = measured(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh(model))


def test_parameters_that_are_shared_no_more_are_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    measured(model)
    model[2].weight = nn.Parameter(2 * model[0].weight.detach().clone())
    torch.testing.assert_close(measured(model), fresh(model))
    lmn.measure(model, X, metrics=("lmn",), progress=False)


class ByMethod(nn.Module):
    """Calls a method that an attribute has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 3), self.soft

    def soft(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def hard(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


def test_methods_are_told_apart() -> None:
    model = ByMethod()
    measured(model)
    model.act = model.hard
    torch.testing.assert_close(measured(model), lmn.jacobians(nn.Sequential(model.linear, nn.ReLU()), X, progress=False))


def test_selections_are_told_apart() -> None:
    model = Scaled()
    columns = [measured(model, select=lambda out: out[:, :1]), measured(model, select=lambda out: out[:, 1:])]
    torch.testing.assert_close(torch.cat(columns, dim=1), measured(model))
    for column in range(2):  # one code, another number in it
        torch.testing.assert_close(measured(model, select=lambda out, c=column: out[:, c : c + 1]), columns[column])


def test_taps_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    assert not torch.equal(measured(model, tap="0"), measured(model, tap="1"))


def test_a_derivative_of_its_own_is_remembered_as_such() -> None:
    class Cut(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.second(torch.tanh(h.detach() + (h - h.detach())))

    model = Cut()
    first = measured(model)
    assert torch.equal(measured(model), first)
    assert torch.equal(first, fresh(model))


@pytest.mark.parametrize("build", [Scaled, lambda: nn.Linear(4, 2), TracedByRunning])
def test_what_is_remembered_does_not_keep_a_model_alive(build: Callable[[], nn.Module]) -> None:
    model = build()
    measured(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_other_samples_of_the_same_model() -> None:
    model = Scaled().double()
    measured(Scaled())
    x = X.double()
    expected = torch.func.vmap(torch.func.jacrev(model))(x)
    torch.testing.assert_close(lmn.jacobians(model, x, progress=False), expected)
    torch.testing.assert_close(lmn.jacobians(model.float(), X, progress=False).double(), expected, rtol=1e-5, atol=1e-6)
