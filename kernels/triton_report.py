"""Triton kernels compiled ahead of time for GPUs that are not here, and what the compiler says of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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

    configuration: Configuration
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
    return Compiled(
        configuration, target, registers, spills, made.metadata.shared, {name: n for name, n in matrix.items() if n}
    )


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


# ---- modelled times --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What a GPU can do by its vendor's data sheet, dense: operations/s of the matrix unit as the kernels use it, of float32
    vectors, and bytes/s of memory.

    The kernels multiply float32: on NVIDIA as three TF32 products, on AMD in the matrix unit's float32.
    """

    name: str
    matrix: float
    products: int
    vector: float
    memory: float


RATES = (
    Rates("A100 SXM 80GB", 156e12, 3, 19.5e12, 2.039e12),
    Rates("H100 SXM", 494.7e12, 3, 66.9e12, 3.35e12),
    Rates("MI300X", 163.4e12, 1, 163.4e12, 5.3e12),
)


@dataclass(frozen=True)
class Work:
    """What a case takes of a GPU, padding included.

    Attributes
    ----------
    case : str
    matrix : float
        Operations of float32 products, before they are taken apart into those of the matrix unit.
    vector : float
        Of everything else.
    memory : float
        Bytes that come from memory or go there at least once.
    """

    case: str
    matrix: float
    vector: float
    memory: float

    def seconds(self, gpu: Rates) -> tuple[float, str]:
        """One after the other, and which of the three takes longest."""
        parts = {
            "matrix unit": self.matrix * gpu.products / gpu.matrix,
            "vectors": self.vector / gpu.vector,
            "memory": self.memory / gpu.memory,
        }
        return sum(parts.values()), max(parts, key=lambda name: parts[name])


def works() -> Iterator[Work]:
    """The modelled cases of all operations."""
    from lmn.kernels.connectivity import triton_ops as connectivity

    yield from connectivity.works()


def table(progress: Callable[[str], object]) -> bool:
    """Compile everything for every target and tell a line each; whether all of it fits."""
    fits = True
    progress(f"{'kernel':<52} {'target':<7} {'registers':>9} {'spills':>6} {'shared':>7}  matrix unit")
    for configuration in configurations():
        for target in TARGETS:
            found = compiled(configuration, target)
            fits &= found.fits or not configuration.default
            matrix = ", ".join(f"{n} {name}" for name, n in found.matrix.items()) or "-"
            label = f"{configuration.operation}: {configuration.label}"
            note = "" if found.fits else "  DOES NOT FIT" if configuration.default else "  not a default"
            progress(f"{label:<52} {target:<7} {found.registers:>9} {found.spills:>6} {found.shared:>7}  {matrix}{note}")
    progress("\nModelled times: operations and bytes over the data sheets' rates, one after the other; nobody measured them.")
    for work in works():
        for gpu in RATES:
            seconds, bound = work.seconds(gpu)
            progress(f"{work.case:<60} {gpu.name:<14} {seconds * 1e3:8.3f} ms, most of it {bound}")
    return fits
