"""Every Triton operator inside torch.compile, in Triton's interpreter, and what is not to happen between launches."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from poison import poisoned_memory
from real_gpu import compiled, interpreted
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import lmn
from lmn.kernels import triton_product_ops
from lmn.kernels.connectivity import triton_gpu as _connectivity  # noqa: F401 - registers operators
from lmn.kernels.jacobians import triton_gpu as _jacobians  # noqa: F401
from lmn.kernels.local_complexity import triton_gpu as _local_complexity  # noqa: F401
from lmn.kernels.patterns import triton_gpu as _patterns  # noqa: F401
from lmn.kernels.triton_checks import check_arrays, check_grid, single

OPERATORS = sorted(
    {schema.name.removeprefix("lmn::") for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("lmn::")}
)

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Recorder(TorchDispatchMode):
    """Notes the calls of lmn's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lmn":
            self.calls.append((func, _copied(args), _copied(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return tuple(_copied(each) for each in value) if isinstance(value, tuple) else value


def _measured() -> Iterator[Callable[[], object]]:
    """What launches all of them: by a kernel for the chain, and layer by layer."""
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    options = {"backend": "triton", "progress": False}
    for width in (9, 150):
        model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
        yield partial(lmn.connectivity, model, x, m=4, **options)
        yield partial(lmn.activation_patterns, model, x, **options)
        yield partial(lmn.jacobians, model, x, reduce="frobenius_norm", **options)
        yield partial(lmn.jacobians, model, x, **options)
        yield partial(lmn.local_complexity, model, x, r=0.5, n_directions=2, **options)
    convolutions = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    yield partial(lmn.activation_patterns, convolutions, torch.randn(5, 1, 3, 3), **options)


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    recorder = Recorder()
    for measure in _measured():
        with poisoned_memory(), recorder:  # where a call writes, memory may hold the same results from before
            measure()
    return {func.name().removeprefix("lmn::"): (func, args, kwargs) for func, args, kwargs in recorder.calls}


def test_all_operators_are_launched(calls: dict[str, Call]) -> None:
    assert len(OPERATORS) == 14
    assert sorted(calls) == OPERATORS


def results(function: Callable[..., object], call: Call) -> list[Tensor]:
    """All tensors of a call after it."""
    args, kwargs = _copied(call[1]), _copied(call[2])
    function(*args, **kwargs)
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_live_under_torch_compile(name: str, calls: dict[str, Call]) -> None:
    """In one graph with operations that are compiled, on what they wrote and on what they read."""
    call = calls[name]

    def scaled(*args: Any, **kwargs: Any) -> None:
        call[0](*args, **kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                value.mul_(2.0)

    torch.compiler.reset()
    eager, compiled = results(scaled, call), results(torch.compile(scaled, fullgraph=True, backend="inductor"), call)
    before = [value for value in (*call[1], *call[2].values()) if isinstance(value, Tensor)]
    for got, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    unwritten = [2 * value if value.is_floating_point() else value for value in before]
    assert not all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(compiled, unwritten, strict=True))


@compiled
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_live_in_cuda_graphs(name: str, calls: dict[str, Call]) -> None:
    """Captured on a GPU and replayed on what its arrays hold by then."""
    func, args, kwargs = calls[name]
    expected = [value.cuda() for value in results(func, calls[name])]
    captured: Any = (func, *_on_the_gpu((args, kwargs)))
    results(func, captured)  # compiles it
    arrays = [value for value in (*captured[1], *captured[2].values()) if isinstance(value, Tensor)]
    before, graph = [value.clone() for value in arrays], torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        func(*captured[1], **captured[2])
    for array, value in zip(arrays, before, strict=True):
        array.copy_(value)
    graph.replay()
    torch.testing.assert_close(arrays, expected, rtol=0, atol=0, equal_nan=True)


def _on_the_gpu(value: Any) -> Any:
    return tree_map_only(Tensor, Tensor.cuda, value)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_what_they_say(name: str, calls: dict[str, Call]) -> None:
    """Of what they write and what they leave alone, of shapes, of what can be traced."""
    func, args, kwargs = calls[name]
    torch.library.opcheck(func, _copied(args), _copied(kwargs))


# ---- what operators are given ------------------------------------------------------------------------------------------------

# Fewer steps or directions, fewer bits, and fewer columns that are summed over, are as good; a layer that is not the first does
# not read those of samples; and where a wide layer's words and counts go is data.
FREE = {
    "a row less": {
        "connectivity_deviations": "u", "connectivity_sums": "u", "local_complexity": "steps",
        "local_complexity_layer": "at_samples",
    },
    "a column less": {
        "hash_patterns": "words", "pack_patterns": "z", "patterns": "words", "local_complexity": "counts",
        "local_complexity_layer": "at_samples, steps", "jacobian_grams": "weights",
    },
    "another type": {"local_complexity_layer": "at_samples, steps"},
    "not contiguous": {"local_complexity_layer": "at_samples, steps"},
}  # fmt: skip
SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "a row less": lambda value: value[:-1].contiguous(),
    "a column less": lambda value: value[..., :-1].contiguous(),
    "another type": lambda value: value.to(torch.float64 if value.is_floating_point() else torch.int16),
    "not contiguous": lambda value: value.repeat_interleave(2, dim=-1)[..., ::2],
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_refuse_arrays_that_are_not_what_the_others_say(name: str, how: str, calls: dict[str, Call]) -> None:
    """Each of them; nothing is launched, and so nothing read or written past an array's end."""
    func, args, kwargs = calls[name]
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    arrays = {key: value for key, value in given.items() if isinstance(value, Tensor) and min(value.shape) > 1}
    for key in arrays.keys() - set(FREE[how].get(name, "").split(", ")):
        with pytest.raises(
            ValueError,
            match=r"has to be a contiguous|no such pairs|pairs; got|cores of|padded to|are multiplied|up to word|no multiple",
        ):
            func(**_copied(given) | {key: SPOILT[how](given[key])})


BAD: dict[str, dict[str, Any]] = {
    "connectivity": {"m": (2, 0, -3), "n_out": (0, -1, 33), "sxx": (0.0,), "first_row": (-1, 4), "first_column": (-1,)},
    "connectivity_deviations": {"n_rows": (-2, 99), "first_pair": (-1, 1), "core": (-1, 99)},
    "connectivity_sums": {"n_rows": (-2, 99), "first_pair": (-1, 1), "sxx": (0.0,)},
    "jacobians": {"cores": ([], [99, 0], [1, 1, 1])},
    "local_complexity": {"cores": ([], [99, 0], [1, 1, 1])},
    "local_complexity_layer": {"core": (-1, 99)},
    "pack_patterns": {"first_word": (-1, 9)},
    "patterns": {"cores": ([], [99, 0], [1, 1, 1])},
    "patterns_layer": {"first_word": (-1, 9), "core": (-1, 99)},
    "products_sloped": {"rows_a_point": (0, 7)},
    "products_with_slopes": {"core": (-1, 99)},
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_refuse_numbers_that_say_nothing(name: str, calls: dict[str, Call]) -> None:
    func, args, kwargs = calls[name]
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    bad = BAD.get(name, {}) | ({"precision": ("tf64",)} if "precision" in str(func._schema) else {})
    for key, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=r"; got|no such pairs|up to word|no multiple|cores of"):
                func(**_copied(given) | {key: value})


def test_rows_of_another_length_are_refused() -> None:
    for a in (torch.ones(2, 2), torch.ones(()), torch.ones(0, 4)):
        with pytest.raises(ValueError, match="rows of 5 values are multiplied; got a of shape"):
            triton_product_ops.plain(a, torch.ones(5, 3), torch.ones(8, 3))
    with pytest.raises(ValueError, match="out has to be"):
        triton_product_ops.plain(torch.ones(0, 5), torch.ones(5, 3), torch.ones(8, 3))


@interpreted
def test_kernels_without_a_gpu_or_the_interpreter_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="run on a GPU, or with TRITON_INTERPRET=1 in its interpreter; got arrays on cpu"):
        triton_product_ops.plain(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2))


def test_arrays_of_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) on cpu, as the other arguments say; got .* on meta"):
        check_arrays({"x": torch.empty(3, device="meta")}, single(x=(3,)), torch.device("cpu"))


@pytest.mark.parametrize("grid", [(1 << 31,), (1, 1 << 16), (1, 1, 1 << 16)])
def test_more_programs_than_a_gpu_takes_are_refused(grid: tuple[int, ...]) -> None:
    check_grid(tuple(n - 1 for n in grid))
    with pytest.raises(ValueError, match="more than a GPU takes"):
        check_grid(grid)
