"""Rows past the first 2^31 values of their arrays, in Triton's interpreter: what kernels read and write there, and where.

Launches of real measurements are made again as the last ones of far longer arrays, whose files have no other pages.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_gpu import interpreted
from torch import Tensor, nn
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import lmn
from lmn.activation_patterns import observe
from lmn.grid import as_grid
from lmn.kernels.connectivity import triton_ops as connectivity
from lmn.kernels.connectivity.pairs import Pairs
from lmn.kernels.triton_tuned import Launch, Tuned
from lmn.subject import Subject

pytestmark = interpreted

FAR = 1 << 31  # values


@dataclass(frozen=True)
class Rows:
    """What of a kernel is a row a point.

    Attributes
    ----------
    arrays : tuple of str
    number : str
        The argument that says how many rows there are; "" where the grid says it.
    tile : str
        The constexpr that says how many of them a program takes; "" for one.
    """

    arrays: tuple[str, ...]
    number: str = ""
    tile: str = ""


MOST_PROGRAMS = 2**31 - 1

ROWS = {
    "patterns.triton_fused.fused_patterns": Rows(("x", "indices", "words", "hashes"), "n_points", "POINTS"),
    "patterns.triton_wide.layer_of_patterns": Rows(("u", "out", "words", "edges"), "n_points", "ROWS"),
    "patterns.triton_bits.pack": Rows(("z", "words"), "n_points", "POINTS"),
    "patterns.triton_bits.hashed": Rows(("words", "hashes"), "n_points", "POINTS"),
    "jacobians.triton_fused.fused_jacobians": Rows(("x", "out"), "n_points", "POINTS"),
    "jacobians.triton_wide.gram_products": Rows(("a", "out", "slopes"), "n_rows", "ROWS"),
    "local_complexity.triton_fused.fused_local_complexity": Rows(("at_samples", "counts")),
    "local_complexity.triton_wide.layer_of_local_complexity": Rows(("u", "at_samples", "out", "counts")),
    "triton_products.products": Rows(("a", "out", "slopes"), "n_rows", "ROWS"),
}


def name_of(kernel: Any) -> str:
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}".removeprefix("lmn.kernels.")


def programs_of_tile(name: str, given: dict[str, Any]) -> int:
    """How many take the same rows, each some of their columns."""
    if name.endswith("pack"):
        return -(-given["n_units"] * given["n_breakpoints"] // 64)
    if name.endswith("products.products"):
        return -(-given["n_out"] // given["OUTS"])
    return -(-given["n_units"] // given["UNITS"]) if "triton_wide.layer" in name else 1


FLAGS = ("GRID", "INDEXED", "EDGES", "LAST", "FIRST", "MODE", "REVERSE", "SLOPED", "EPILOGUE")  # of which each is other code


@pytest.fixture(scope="module")
def launches() -> dict[str, list[Launch]]:
    """Of each kernel, the first launch in measurements by its flags, with its arrays as they are before it."""
    found: dict[str, dict[tuple[Any, ...], Launch]] = {}
    launch = Tuned.launch

    def noted(tuned: Tuned, grid: Any, precision: str = "", **arguments: Any) -> None:
        given = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
        given |= tuned.choices[0].tile | ({"PRECISION": "ieee"} if "PRECISION" in tuned.kernel.arg_names else {})
        flags = tuple(given.get(flag) for flag in FLAGS)
        found.setdefault(name_of(tuned.kernel), {}).setdefault(flags, Launch(tuned, given))
        launch(tuned, grid, precision, **arguments)

    torch.manual_seed(0)
    x, grid = torch.randn(5, 3), lmn.box(-1, 1, [2, 3, 2])
    options: dict[str, Any] = {"backend": "triton", "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuned, "launch", noted)
        for width in (9, 150):
            model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
            for points, edges_apart in ((grid, False), (x, False), (x, True)):
                with Subject(model, as_grid(points)) as subject:
                    seen = observe(subject, edges_apart=edges_apart, ids=False, threads=1, **options)
                    seen.words_at(np.array([1, 3]))
            for reduce in ("frobenius_norm", None):
                lmn.jacobians(model, x, reduce=reduce, **options)
                lmn.jacobians(model[1:], torch.randn(5, width), reduce=reduce, **options)
            lmn.local_complexity(model, x, r=0.5, n_directions=2, **options)
        convolutions = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        lmn.activation_patterns(convolutions, torch.randn(5, 1, 3, 3), **options)
    return {name: [*by_flags.values()] for name, by_flags in found.items()}


@pytest.fixture
def first_program(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Of each axis, what programs are numbered from."""
    first: dict[int, int] = {}
    number = InterpreterBuilder.create_get_program_id

    def from_first(builder: InterpreterBuilder, axis: int) -> TensorHandle:
        handle = number(builder, axis)
        return TensorHandle(handle.data + np.int32(first.get(axis, 0)), handle.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", from_first)
    return first


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Any]:
    """Arrays in files of holes."""
    numbers = count()

    def made(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        path = tmp_path / f"{next(numbers)}"
        return torch.from_file(str(path), shared=True, size=torch.Size(shape).numel(), dtype=dtype).view(shape)

    yield made
    for path in tmp_path.iterdir():
        path.unlink()


@pytest.mark.parametrize("name", ROWS)
def test_rows_far_away(name: str, launches: dict[str, list[Launch]], first_program: dict[int, int], far: Any) -> None:
    """With all flags that there are, and so all of its arrays."""
    seen = [array for launch in launches[name] for array in at_far_rows(name, launch, first_program, far)]
    assert set(seen) == set(ROWS[name].arrays)


def at_far_rows(name: str, launch: Launch, first_program: dict[int, int], far: Any) -> list[str]:
    """What rows are read from and written to, which are the same there as near."""
    rows = ROWS[name]
    near = {
        key: value.flatten(0, -2) if key in rows.arrays and value.ndim > 1 else value for key, value in launch.arguments.items()
    }
    n = near[rows.number] if rows.number else len(near["counts"])
    tile = near[rows.tile] if rows.tile else 1
    a_point = near.get("rows_a_point", 1)
    if name.endswith("gram_products"):  # all rows of points
        tile -= tile % a_point
    together = math.lcm(tile, a_point)  # rows: of whole tiles, and of whole points
    arrays = [each for each in rows.arrays if each in launch.tuned.arrays(launch.arguments)]
    least = min(near[each].numel() // n for each in arrays)
    of_tile = programs_of_tile(name, near)
    skipped = min(FAR // least // together + 1, (MOST_PROGRAMS // of_tile - n) * tile // together) * together  # rows
    arguments = dict(near)
    if rows.number:
        arguments[rows.number] = skipped + n
    if "begin" in near:  # the same points of a grid, and the same numbers
        arguments["begin"] -= skipped
    for each in arrays:
        value = near[each]
        arguments[each] = far(((skipped + n) * len(value) // n, *value.shape[1:]), value.dtype)
        arguments[each][-len(value) :] = value
    first_program[0] = skipped // tile * of_tile
    grid = (-(-n // tile) * of_tile,)
    launch.tuned.kernel[grid](**arguments)
    first_program[0] = 0
    launch.tuned.kernel[grid](**near)
    for each in arrays:
        torch.testing.assert_close(arguments[each][-len(near[each]) :], near[each], rtol=0, atol=0, equal_nan=True)
    return arrays


# ---- pairs of many samples ---------------------------------------------------------------------------------------------------

N, LAST = 65_600, 17  # samples, of which the last are asked: more than 2^31 pairs


def test_pairs_of_many_samples(far: Any) -> None:
    torch.manual_seed(0)
    z, y, weights = torch.randn(LAST, 32), torch.randn(LAST, 32), torch.randn(1, 32, 32)
    ones, none = torch.ones(1, 32), torch.zeros(1, 32)
    rest = {"weights": weights, "scales": ones, "straights": none, "parameters": torch.ones(1, 2), "noise": none[0],
            "cores": [3], "n_rows": LAST, "n_out": 32, "m": 5, "sxx": 0.625, "constant": 0.0, "tolerance": 1.0}  # fmt: skip
    near = torch.full((LAST, LAST), 7.0)
    connectivity.narrow_pairs(z, 0 * z, y, 0 * y, **rest, first_row=0, first_column=0, out=near)
    out, z_far, y_far = far((N, N), torch.float32), torch.zeros(N, 32), torch.zeros(N, 32)
    z_far[-LAST:], y_far[-LAST:] = z, y
    none_far = torch.zeros(N, 32)
    connectivity.narrow_pairs(
        z_far, none_far, y_far, none_far, **rest, first_row=N - LAST, first_column=N - LAST, out=out
    )  # fmt: skip
    found = out[-LAST:, -LAST:].clone().fill_diagonal_(7.0)
    assert torch.equal(found, near)
    assert not torch.isin(near, torch.tensor([0.0, 7.0]))[~torch.eye(LAST, dtype=torch.bool)].any()


def test_deviations_of_many_pairs(first_program: dict[int, int], far: Any) -> None:
    """At the second step along segments, where the places of two units of each pair are past 2^31."""
    torch.manual_seed(0)
    pairs, tile = len(Pairs(N)), connectivity._DEVIATIONS.choices[0].tile
    skipped = pairs // tile["PAIRS"] * tile["PAIRS"] - tile["PAIRS"]
    z = torch.randn(N, 2)
    one, none, numbers = torch.ones(2), torch.zeros_like(z), {"p0": 1.0, "p1": 0.0, "n_points": N, "n_rows": 0}
    rest = {"z_high": z, "z_low": none, "scales": one, "straights": one, **numbers, "n_units": 2, "m": 4, "ALL": True}
    kernel, u = connectivity._DEVIATIONS.kernel, torch.randn(2, pairs - skipped, 2)
    u_far = far((2, pairs, 2), torch.float32)
    u_far[:, skipped:] = u
    first_program[0] = skipped // tile["PAIRS"]
    grid = (-(-(pairs - skipped) // tile["PAIRS"]), 1)
    kernel[grid](u=u_far, first_pair=0, n_pairs=pairs, **rest, SHIFTED=True, CORE=3, **tile)
    first_program[0] = 0
    before = u.clone()
    kernel[grid](u=u, first_pair=skipped, n_pairs=pairs - skipped, **rest, SHIFTED=True, CORE=3, **tile)
    assert torch.equal(u_far[:, skipped:], u)
    assert not torch.equal(u, before)


def test_sums_of_many_pairs(first_program: dict[int, int], far: Any) -> None:
    torch.manual_seed(0)
    pairs, tile = len(Pairs(N)), connectivity._SUMS.choices[0].tile
    skipped = pairs // tile["PAIRS"] * tile["PAIRS"] - tile["PAIRS"]
    y = torch.randn(N, 2)
    rest = {"y_high": y, "y_low": torch.zeros_like(y), "noise": torch.zeros(2), "n_points": N, "n_rows": 0, "n_out": 2, "m": 4,
            "sxx": 0.55, "constant": 0.0, "tolerance": 1.0, "ALL": True, **tile}  # fmt: skip
    u, u_far, out, out_far = torch.randn(2, pairs - skipped, 2), *(far(shape, torch.float32) for shape in (
        (2, pairs, 2), (N, N), (N, N)
    ))  # fmt: skip
    u_far[:, skipped:] = u
    first_program[0] = skipped // tile["PAIRS"]
    grid = (-(-(pairs - skipped) // tile["PAIRS"]),)
    connectivity._SUMS.kernel[grid](u=u_far, first_pair=0, n_pairs=pairs, out=out_far, **rest)
    first_program[0] = 0
    connectivity._SUMS.kernel[grid](u=u, first_pair=skipped, n_pairs=pairs - skipped, out=out, **rest)
    some = slice(-20, None)
    assert torch.equal(out_far[some, some], out[some, some])
    assert int((out[some, some] != 0).sum()) == 2 * (pairs - skipped)
