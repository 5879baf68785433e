"""A measurement leaves the model bit for bit as it was, whatever happens."""

import copy
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo import convert_frame

import lmn
from lmn.subject import Subject
from lmn.tracing import traced_by_running, traced_symbolically


class Busy(nn.Module):
    """Writes to itself as it runs: a buffer, an attribute, a random number, a counter in a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.frozen = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = x
        torch.rand(3)
        return self.second(self.frozen(torch.tanh(self.norm(self.first(x)))))


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "state": copy.deepcopy(model.state_dict()),
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: list(module._forward_hooks) for name, module in model.named_modules()},
        "attributes": {name: {key: id(value) for key, value in vars(module).items()} for name, module in model.named_modules()},
        "identities": [id(p) for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def busy() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Busy()
    model.first.register_forward_hook(lambda *_: None)
    model.frozen.eval()  # of mixed flags
    x = torch.randn(6, 4)
    model(x).sum().backward()
    return model, x


@pytest.mark.parametrize("tap", [None, "norm"])
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_after_a_measurement(tap: str | None, backend: str) -> None:
    model, x = busy()
    before = state(model)
    lmn.measure(model, x, tap=tap, backend=backend, progress=False)
    assert_same(before, state(model))


@pytest.mark.parametrize("tap", [None, "norm"])
@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception(tap: str | None, exception: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = busy()
    before = state(model)

    def fails(*_: Any) -> None:
        raise exception

    monkeypatch.setattr(Subject, "samples", fails)
    with pytest.raises(exception):
        lmn.measure(model, x, tap=tap, progress=False)
    assert_same(before, state(model))


@pytest.mark.parametrize("calls", range(1, 8))
def test_after_an_interrupt_in_the_model(calls: int) -> None:
    model, x = busy()
    left = calls

    def interrupt(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    handle = model.second.register_forward_hook(interrupt)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        lmn.measure(model, x, tap="norm", backend="torch", progress=False)
    assert_same(before, state(model))
    handle.remove()


class Recording(nn.Module):
    """Keeps what it saw, draws random numbers of every kind, and renormalises its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4, max_norm=0.5), nn.Linear(4, 2)
        self.seen: list[int] = []
        self.kinds: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        self.kinds.add(x.dtype)
        np.random.rand()  # noqa: NPY002
        random.random()
        return self.head(self.embedding(x))


def test_containers_embeddings_and_every_random_generator_are_restored() -> None:
    model = Recording()
    weight = model.embedding.weight.detach().clone()
    states = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]  # noqa: NPY002
    lmn.measure(model, torch.arange(5), tap="embedding", progress=False)
    assert (model.seen, model.kinds) == ([], set())
    assert torch.equal(model.embedding.weight, weight)
    assert states == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr]  # noqa: NPY002


def test_a_scripted_model_keeps_training() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.ReLU()))
    model.train()
    measured = lmn.measure(model, torch.randn(5, 4), progress=False)
    assert measured.path == "whole model"
    assert all(module.training for module in model.modules())


def test_a_failed_trace_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lmn.measure(torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU())), torch.randn(5, 4), progress=False)
    assert capsys.readouterr().err == ""


def test_threads_that_measure_one_model_wait_for_each_other() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 2)).train()
    x = torch.randn(30, 4)
    expected = lmn.measure(model, x, progress=False).lmn
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: lmn.measure(model, x, threads=1, progress=False).lmn, range(12)))
    assert found == [expected] * 12
    assert all(module.training for module in model.modules())


def test_a_measurement_that_succeeds_and_one_that_fails_do_not_change_training() -> None:
    losses = []
    for measuring in (False, True):
        model, x = busy()
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if measuring:
                lmn.measure(model, x, tap="norm", progress=False)
                with pytest.raises(lmn.LmnError):
                    lmn.measure(model, x, tap="nowhere", progress=False)
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]


class Untidy(nn.Module):
    """Writes into its weight, a tensor of its own, nested containers, an array and generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.calls, self.log, self.last = torch.zeros(3), {"rows": [[0]]}, deque([0], maxlen=2)
        self.array, self.generator, self.numbers = np.zeros(2), torch.Generator().manual_seed(1), np.random.default_rng(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.layer.weight.copy_(self.layer.weight / self.layer.weight.norm())
        self.calls += 1
        self.log["rows"][0].append(len(x))
        self.last.append(len(x))
        self.array += 1
        torch.rand(2, generator=self.generator)
        self.numbers.random()
        return self.layer(x)


def test_what_a_model_writes_to_anywhere_in_itself_is_put_back() -> None:
    torch.manual_seed(0)
    model, x = Untidy(), torch.randn(5, 4)
    weight, states = model.layer.weight.detach().clone(), (model.generator.get_state(), model.numbers.bit_generator.state)
    lmn.measure(model, x, progress=False)
    assert torch.equal(model.layer.weight, weight)
    assert torch.equal(model.calls, torch.zeros(3))
    assert (model.log, list(model.last), model.array.tolist()) == ({"rows": [[0]]}, [0], [0.0, 0.0])
    assert torch.equal(model.generator.get_state(), states[0])
    assert model.numbers.bit_generator.state == states[1]


class Autocasting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 2
        h = self.first(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = torch.relu(self.second(h)).float()
        return self.third(h)


def test_autocast_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = Autocasting(), torch.randn(10, 2)
    lmn.connectivity(model, x, progress=False)
    lmn.activation_patterns(model, x, progress=False)
    assert not torch.is_autocast_enabled("cpu")
    assert model(x).dtype == torch.float32


def test_under_autocast_the_model_is_measured_as_without() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(20, 2)
    expected = lmn.measure(model, x, progress=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lmn.measure(model, x, progress=False)
        assert torch.is_autocast_enabled("cpu")
    assert (found.lmn, found.path, found.regions.count) == (expected.lmn, "chain", expected.regions.count)


def test_another_thread_does_not_draw_the_same_numbers_again() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 2)), torch.randn(40, 4)
    drawn, stop = [], threading.Event()

    def draw() -> None:
        while not stop.is_set():
            drawn.append(float(torch.rand(())))

    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(draw)
        for _ in range(10):
            lmn.connectivity(model, x, progress=False)
        stop.set()
        drawing.result()
    assert len(set(drawn)) > 0.99 * len(drawn)  # float32 numbers meet by chance


def test_threads_that_measure_different_models_keep_the_streams() -> None:
    models = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(4)]
    before = sys.stdout, sys.stderr
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: lmn.connectivity(model, torch.randn(6, 4), progress=False), models * 4))
    assert (sys.stdout, sys.stderr) == before


def test_tracing_does_not_disturb_what_other_threads_run() -> None:
    training = torch.compile(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), backend="eager")
    training(torch.randn(3, 4))
    stop, failures = threading.Event(), list[Exception]()
    call = nn.Module.__call__

    def train() -> None:
        while not stop.is_set():
            try:
                training(torch.randn(3, 4)).sum().backward()
            except Exception as error:
                failures.append(error)

    def measure(seed: int) -> float:
        torch.manual_seed(seed)
        return lmn.measure(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(6, 4), progress=False).lmn

    thread = threading.Thread(target=train)
    thread.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            measured = list(pool.map(measure, range(40)))
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert nn.Module.__call__ is call
    assert len(measured) == 40


class RunsCompiled(nn.Module):
    """Has another thread run a model that was compiled before, while it is traced; that may wait for the trace's end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.pool, self.others = nn.Linear(4, 2), [ThreadPoolExecutor(1)], list[Future[Tensor]]()
        other = nn.Linear(4, 2)
        self.run = [torch.compile(other, backend="eager")]  # no submodule
        self.run[0](torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.others.append(self.pool[0].submit(self.run[0], torch.zeros(3, 4)))
        time.sleep(0.2)
        return self.layer(x)


def test_compiled_models_run_in_other_threads_during_a_trace_by_running() -> None:
    model = RunsCompiled()
    traced_by_running(model, torch.randn(6, 4), model)
    assert len(model.others) == 1
    assert model.others[0].result(timeout=20).shape == (3, 2)


@pytest.mark.parametrize("compiled", ["the model, in place", "a submodule", "a submodule, in place", "a function"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_compiled_stays_compiled(compiled: str, asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured as it is written: compiled code that a mode of the dispatcher saw would run eagerly ever after, and so
    would what was compiled for too many kinds of samples."""
    torch._dynamo.reset()
    ran, compilations = [0], list[fx.GraphModule]()

    def backend(graph: fx.GraphModule, _inputs: Any) -> Any:
        compilations.append(graph)
        return lambda *args: (ran.__setitem__(0, ran[0] + 1), graph.forward(*args))[1]

    class Pair(nn.Module):  # in place, torch.compile leaves torch's own modules as they are
        def __init__(self, *modules: nn.Module) -> None:
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[1](self.parts[0](x))

    model, x = Pair(nn.Linear(4, 8), Pair(nn.Tanh(), nn.Linear(8, 2))), torch.randn(9, 4)
    expected = lmn.measure(model, x, metrics=("lmn",), progress=False)
    if compiled == "the model, in place":
        model.compile(backend=backend)
    elif compiled == "a submodule":
        model.parts[1] = torch.compile(model.parts[1], backend=backend)  # type: ignore[assignment]
    elif compiled == "a submodule, in place":
        model.parts[1].compile(backend=backend)
    else:
        monkeypatch.setattr(Pair, "forward", torch.compile(Pair.forward, backend=backend))
    callback = lmn.Callback(x, every=1, metrics=("lmn",), asynchronous=asynchronous)
    for step in range(3):
        callback(model, step)
        callback._finish()
        ran[0] = 0
        model(x)
        assert ran[0] == 1
    callback.close()
    assert len(compilations) == 1
    assert callback.last is not None
    assert (callback.last.lmn, callback.last.path) == (expected.lmn, "chain")
    assert all("error" not in row for row in callback.rows)


class SeesLock(nn.Module):
    """Asks, while it is traced, whether another thread could compile now."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.free = nn.Linear(4, 2), list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as other:
            self.free.append(other.submit(convert_frame.compile_lock.acquire, blocking=False).result())
        return self.layer(x)


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(lambda model: traced_symbolically(model, None), id="symbolically"),
        pytest.param(lambda model: traced_by_running(model, torch.randn(6, 4), model), id="by_running"),
    ],
)
def test_nothing_is_compiled_by_other_threads_during_a_trace(trace: Callable[[nn.Module], Any]) -> None:
    """It would put back torch.fx's own methods of modules when the trace is over, for good."""
    model = SeesLock()
    trace(model)
    assert model.free
    assert not any(model.free)


class OwnMode(nn.Module):
    """Keeps its mode by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.noisy = nn.Linear(4, 2), True

    def train(self, mode: bool = True) -> "OwnMode":
        self.noisy = mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + (torch.randn(2) if self.noisy else 0)


def test_a_mode_that_a_model_keeps_by_itself() -> None:
    model = OwnMode()
    assert lmn.measure(model, torch.randn(6, 4), progress=False).lmn == pytest.approx(1)
    assert model.noisy
    assert model.training


class CastsItself(nn.Module):
    """Switches autocast on for itself, which keeps copies of weights until the outermost autocast ends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.second(torch.relu(self.first(x))).float()


@pytest.mark.parametrize("how", [{}, {"asynchronous": True}, {"metrics": ("lmn", "jacobians", "local_complexity")}])
def test_a_model_that_casts_itself_goes_on_training(how: dict[str, Any]) -> None:
    losses: list[list[float]] = []
    for measured in (False, True):
        model, x = CastsItself(), torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        callback = lmn.Callback(x, every=2, **({"metrics": ("lmn",)} | how)).attach(model, optimizer) if measured else None
        losses.append([])
        for _ in range(8):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        if callback is not None:
            callback.close()
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 8


@torch.compile(fullgraph=True, backend="eager")
def softened(x: Tensor) -> Tensor:
    return torch.tanh(x) * 1.5


class Odd(nn.Module):
    """With what not every mode or tracer takes."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.middle = nn.Linear(4, 8), nn.Linear(8, 2), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.middle(torch.tanh(self.first(x))))


def jagged(h: Tensor) -> Tensor:
    offsets = torch.arange(0, len(h) + 1, 1)
    return torch.nested.nested_tensor_from_jagged(h, offsets).values()


@pytest.mark.parametrize(
    ("middle", "same"),
    [
        (softened, lambda h: torch.tanh(h) * 1.5),
        (jagged, lambda h: h),
        (lambda h: torch.cond(h.sum() > 1e9, lambda h: h.sin(), lambda h: h.cos(), (h,)), torch.cos),
    ],
    ids=["a compiled function", "nested tensors", "a higher-order operator"],
)
def test_whatever_a_forward_pass_is_made_of(middle: Callable[[Tensor], Tensor], same: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(9, 4)
    expected = lmn.measure(Odd(same), x, metrics=("lmn",), progress=False).lmn
    assert lmn.measure(Odd(middle), x, metrics=("lmn",), progress=False).lmn == pytest.approx(expected, rel=1e-4)


def test_torch_compile_is_left_as_it_was() -> None:
    model, x = Odd(softened), torch.randn(9, 4)
    before = torch._dynamo.config.error_on_nested_fx_trace
    lmn.measure(model, x, metrics=("lmn",), progress=False)
    assert torch._dynamo.config.error_on_nested_fx_trace == before
    assert torch._dynamo.eval_frame._stance.stance == "default"
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="fail_on_recompile"):
        softened(torch.randn(9, 5, 3).double())
