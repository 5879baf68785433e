"""Triton kernels compiled ahead of time for GPUs that are not here, and what the compiler says of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import triton
import triton.backends.nvidia
from triton.backends.amd.compiler import HIPBackend
from triton.backends.compiler import GPUTarget

from lmn.kernels.triton_cases import Case
from lmn.kernels.triton_targets import IS_TRITON_3_2, Target, precision_on
from lmn.kernels.triton_tuned import Choice, Launch
from lmn.kernels.triton_work import RATES, works

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
NAMES = {"sm_80": "A100", "sm_90": "H100", "sm_100": "B200", "gfx942": "MI300X"}
# What a thread block may have at most, in bytes (CUDA C++ Programming Guide, "Compute Capabilities"; AMD CDNA3 ISA).
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

REGISTERS = {"sm_80": 65_536, "sm_90": 65_536, "sm_100": 65_536, "gfx942": 131_072}  # and in registers of 32 bits

_TASKS_A_POOL = 2048
_LABEL = 104  # characters of the longest

_MATRIX_UNIT = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA)\b|\bv_(mfma)_")


@dataclass(frozen=True)
class Compiled:
    """What a compiler says of one configuration for one target.

    Attributes
    ----------
    threads : int
        A block.
    registers : int
        A thread.
    spills : int
        Bytes of a thread's stack on NVIDIA; registers of 4 bytes on AMD.
    shared : int
        Bytes a block.
    matrix : dict of str to int
        Instructions of the matrix unit, by kind, in the assembly.
    assembly : str
        Of the machine: SASS, or AMD's.
    """

    target: str
    threads: int
    registers: int
    spills: int
    shared: int
    matrix: dict[str, int]
    assembly: str = field(repr=False)

    @property
    def fits(self) -> bool:
        has_registers = self.threads * self.registers <= REGISTERS[self.target]
        return self.spills == 0 and has_registers and self.shared <= SHARED[self.target]


def cases(thorough: bool = False) -> Iterator[Case]:
    """Of all operators: each flag of each kernel for the largest chains, or, if thorough, each activation and depth as well."""
    from lmn.kernels import triton_product_ops
    from lmn.kernels.connectivity import triton_ops as connectivity
    from lmn.kernels.jacobians import triton_ops as jacobians
    from lmn.kernels.local_complexity import triton_ops as local_complexity
    from lmn.kernels.patterns import triton_ops as patterns

    for kernels in (triton_product_ops, connectivity, jacobians, patterns, local_complexity):
        yield from kernels.cases(thorough)


class _Pretended:
    """A driver of a GPU that is not here: so far as compiling goes, triton asks nothing else."""

    def __init__(self, target: str) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self._target]

    def get_current_device(self) -> str:
        return self._target  # what is compiled is kept by device

    def get_current_stream(self, _device: str) -> int:
        return 0


def compiled(launch: Launch, choice: Choice, target: str) -> Compiled:
    """Compile a launch for a target, as triton does where it launches.

    For a process of its own: triton takes the target for the GPU from here on. Its interpreter must be off (TRITON_INTERPRET).
    """
    backend = TARGETS[target].backend
    arguments = launch.arguments | choice.tile | choice.options(backend)
    if "PRECISION" in arguments:
        arguments["PRECISION"] = precision_on(backend)
    triton.runtime.driver.set_active(_Pretended(target))
    made = launch.tuned.kernel.warmup(**arguments, grid=(1,))
    amd = backend == "hip"
    assembly = made.asm["amdgcn"] if amd else _said_of(made.asm["cubin"], "--dump-sass")
    registers, spills = _of_amd(assembly) if amd else _of_nvidia(made.asm["cubin"])
    matrix = Counter((nvidias or amds).upper() for nvidias, amds in _MATRIX_UNIT.findall(assembly))
    threads = TARGETS[target].warp_size * made.metadata.num_warps
    return Compiled(target, threads, registers, spills, made.metadata.shared, dict(matrix), assembly)


def _said_of(cubin: bytes, option: str) -> str:
    """By NVIDIA's cuobjdump, which triton's wheels bring."""
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _of_nvidia(cubin: bytes) -> tuple[int, int]:
    said = _said_of(cubin, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump said something else: {said}")
    return int(found[1]), int(found[2])


def _of_amd(assembly: str) -> tuple[int, int]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    # Scalar registers are kept in vector registers; what is in memory is a thread's private segment, in bytes.
    return number("vgpr_count"), number("vgpr_spill_count") + number("private_segment_fixed_size") // 4


Task = tuple[int, int, str]  # which case, which of its kernel's configurations, which target


@cache
def _all(thorough: bool) -> list[Case]:
    return list(cases(thorough))


def _not_here(gpu: GPUTarget) -> str:
    """Why nothing can be compiled for a target by this Triton, or ""; up to 3.4 AMD's linker has to be installed."""
    if gpu.arch == 100 and IS_TRITON_3_2:
        return "Triton 3.2 does not know it."
    if gpu.backend == "hip" and hasattr(HIPBackend, "path_to_rocm_lld"):
        try:
            HIPBackend.path_to_rocm_lld()
        except Exception as error:
            return str(error)
    return ""


def _tasks(thorough: bool) -> Iterator[Task]:
    """Every configuration that is launched where it fits."""
    targets = {target: gpu for target, gpu in TARGETS.items() if not _not_here(gpu)}
    for number, case in enumerate(_all(thorough)):
        launch = case.launch
        for target, gpu in targets.items():
            for choice in launch.tuned.fitting(launch.arguments, Target.of(gpu)):
                yield number, launch.tuned.choices.index(choice), target


def _done(thorough: bool, task: Task) -> Compiled:
    number, choice, target = task
    launch = _all(thorough)[number].launch
    return replace(compiled(launch, launch.tuned.choices[choice], target), assembly="")  # long, and of no more use


def _all_done(thorough: bool, tasks: list[Task]) -> Iterator[Compiled]:
    """In workers that are new after some, as compilers keep of each kernel what it took.

    Not by max_tasks_per_child: from Python 3.11 to 3.14 a pool hangs where its workers end (CPython's issue 115634).
    """
    for first in range(0, len(tasks), _TASKS_A_POOL):
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            yield from pool.map(partial(_done, thorough), tasks[first : first + _TASKS_A_POOL], chunksize=4)


def table(progress: Callable[[str], object], *, thorough: bool = False) -> bool:
    """Compile everything for every target and tell a line each; whether all of it fits, and there is no target without."""
    fits = True
    progress(f"Compiled for {', '.join(f'{target} ({NAMES[target]})' for target in TARGETS)}; some minutes.")
    for target, gpu in TARGETS.items():
        if why := _not_here(gpu):
            fits = False
            progress(f"Nothing is compiled for {target}, and so it is not known to fit: {why}")
    progress(f"{'kernel':<{_LABEL}} {'target':<7} {'registers':>9} {'spills':>6} {'shared':>7}  matrix unit")
    tasks = sorted(_tasks(thorough))
    for (number, choice, target), found in zip(tasks, _all_done(thorough, tasks), strict=True):
        case = _all(thorough)[number]
        fits &= found.fits
        matrix = ", ".join(f"{n} {name}" for name, n in found.matrix.items()) or "-"
        label = f"{case.operation}: {case.label}, {case.launch.tuned.choices[choice]}".ljust(_LABEL)
        note = "" if found.fits else "  DOES NOT FIT"
        progress(f"{label} {target:<7} {found.registers:>9} {found.spills:>6} {found.shared:>7}  {matrix}{note}")
    progress(f"\n{len(tasks)} configurations: {'all fit, without a spill' if fits else 'not all fit, see above'}.")
    progress("\nModelled times: operations and bytes over the data sheets' rates, one after the other; nobody measured them.")
    for gpu in RATES:
        progress(str(gpu))
    for of_gpus in zip(*(works(gpu.target) for gpu in RATES), strict=True):
        progress(f"\n{of_gpus[0].case}")
        for gpu, work in zip(RATES, of_gpus, strict=True):
            of_parts = work.seconds(gpu)
            parts = ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in of_parts.items())
            progress(f"  {gpu.name:<14} {sum(of_parts.values()) * 1e3:8.3f} ms: {parts}; {work}")
    return fits
