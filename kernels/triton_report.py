"""Triton kernels compiled ahead of time for GPUs that are not here, and what the compiler says of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lmn.kernels.triton_work import RATES, works

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_90": GPUTarget("cuda", 90, 32),  # H100
    "sm_100": GPUTarget("cuda", 100, 32),  # B200
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300X
}
# What a thread block may have at most, in bytes (CUDA C++ Programming Guide, "Compute Capabilities"; AMD CDNA3 ISA).
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

_MATRIX_UNIT = {
    "HGMMA": r"wgmma\.mma_async",
    "HMMA": r"\bmma\.sync",
    "UTCMMA": r"tcgen05\.mma",
    "MFMA": r"v_mfma_",
}


@dataclass(frozen=True, eq=False)
class Configuration:
    """A kernel as it is launched.

    Attributes
    ----------
    operation, label : str
    kernel : triton.JITFunction
    constants : dict
        Its constexprs; ``PRECISION`` is the target's.
    types : dict of str to str
        Triton's names of the types of arguments that are no pointers to float32.
    warps, stages : int
        Of 32 threads; a target with warps of 64 gets half as many.
    default : bool
        Whether it is what is launched where nothing was timed, and must not spill.
    """

    operation: str
    label: str
    kernel: Any
    constants: dict[str, Any]
    types: dict[str, str]
    warps: int
    stages: int
    default: bool = True


@dataclass(frozen=True)
class Compiled:
    """What a compiler says of one configuration for one target.

    Attributes
    ----------
    registers : int
        A thread.
    spills : int
        Bytes of a thread's stack on NVIDIA, registers on AMD.
    shared : int
        Bytes a block.
    matrix : dict of str to int
        Instructions of the matrix unit, by kind, in the assembly.
    """

    target: str
    registers: int
    spills: int
    shared: int
    matrix: dict[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.spills == 0 and self.shared <= SHARED[self.target]


def configurations() -> Iterator[Configuration]:
    """All configurations of all operations."""
    from lmn.kernels import triton_product_ops
    from lmn.kernels.connectivity import triton_ops as connectivity
    from lmn.kernels.jacobians import triton_ops as jacobians
    from lmn.kernels.local_complexity import triton_ops as local_complexity
    from lmn.kernels.patterns import triton_ops as patterns

    for kernels in (triton_product_ops, connectivity, jacobians, patterns, local_complexity):
        yield from kernels.configurations()


def compiled(configuration: Configuration, target: str) -> Compiled:
    """Compile for a target; the interpreter must be off (TRITON_INTERPRET)."""
    gpu = TARGETS[target]
    amd = gpu.backend == "hip"
    constants = dict(configuration.constants)
    if "PRECISION" in constants:
        constants["PRECISION"] = "ieee" if amd else "tf32x3"
    names = configuration.kernel.arg_names
    signature = {name: "constexpr" if name in constants else configuration.types.get(name, "*fp32") for name in names}
    warps = max(1, configuration.warps * 32 // gpu.warp_size)
    made = triton.compile(
        ASTSource(configuration.kernel, signature, constants),
        target=gpu,
        options={"num_warps": warps, "num_stages": configuration.stages},
    )
    registers, spills = _of_amd(made.asm["amdgcn"]) if amd else _of_nvidia(made.asm["cubin"])
    text = made.asm["amdgcn" if amd else "ptx"]
    matrix = {name: len(re.findall(pattern, text)) for name, pattern in _MATRIX_UNIT.items()}
    return Compiled(target, registers, spills, made.metadata.shared, {name: n for name, n in matrix.items() if n})


def _of_nvidia(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([_cuobjdump(), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump said something else: {said.stdout}")
    return int(found[1]), int(found[2])


@cache
def _cuobjdump() -> Path:
    """NVIDIA's tool, which triton's wheels bring."""
    return Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"


def _of_amd(assembly: str) -> tuple[int, int]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    return number("vgpr_count"), number("vgpr_spill_count")  # scalar registers are kept in vector registers, not in memory


@cache
def _all() -> list[Configuration]:
    return list(configurations())


def _compiled_number(number: int, target: str) -> Compiled:
    return compiled(_all()[number], target)


def table(progress: Callable[[str], object]) -> bool:
    """Compile everything for every target and tell a line each; whether all of it fits."""
    fits = True
    progress(f"{'kernel':<68} {'target':<7} {'registers':>9} {'spills':>6} {'shared':>7}  matrix unit")
    tasks = [(number, target) for number in range(len(_all())) for target in TARGETS]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for (number, target), found in zip(tasks, pool.map(_compiled_number, *zip(*tasks, strict=True)), strict=True):
            configuration = _all()[number]
            fits &= found.fits or not configuration.default
            matrix = ", ".join(f"{n} {name}" for name, n in found.matrix.items()) or "-"
            label = f"{configuration.operation}: {configuration.label}"
            note = "" if found.fits else "  DOES NOT FIT" if configuration.default else "  not a default"
            progress(f"{label:<68} {target:<7} {found.registers:>9} {found.spills:>6} {found.shared:>7}  {matrix}{note}")
    progress("\nModelled times: operations and bytes over the data sheets' rates, one after the other; nobody measured them.")
    for work in works():
        for gpu in RATES:
            seconds, bound = work.seconds(gpu)
            progress(f"{work.case:<68} {gpu.name:<14} {seconds * 1e3:8.3f} ms, most of it {bound}")
    return fits
