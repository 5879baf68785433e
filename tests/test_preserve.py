"""A measurement leaves the model bit for bit as it was, whatever happens."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import lmn
from lmn.connectivity import Subject


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
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
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
