"""The report of the Triton kernels: compiled for GPUs that are not here, which configurations there are, and modelled times."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from lmn.kernels import triton_report, triton_work
from lmn.kernels.activations import CORES, STRAIGHT_CORES
from lmn.kernels.connectivity.triton_ops import Fused
from lmn.kernels.triton_targets import Target
from lmn.kernels.triton_tuned import Choice
from lmn.kernels.triton_work import Work

_COMPILE = """
import json
from lmn.kernels import triton_report
from lmn.kernels.triton_targets import Target
cases = {}
for case in triton_report.cases():
    cases.setdefault(case.operation, case)  # the first of each
found = []
for case in cases.values():
    for target, gpu in triton_report.TARGETS.items():
        choice = case.launch.tuned.fitting(case.launch.arguments, Target.of(gpu))[0]
        made = triton_report.compiled(case.launch, choice, target)
        found.append([case.operation, target, made.spills, made.fits, made.matrix, made.registers])
print(json.dumps(found))
"""


def test_kernels_compile_for_four_targets_without_spills() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", _COMPILE], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row[1] for row in found] == ["sm_80", "sm_90", "sm_100", "gfx942"] * 5
    assert all(spills == 0 and fits and registers > 0 for _, _, spills, fits, _, registers in found)
    of_products = {target: set(matrix) for operation, target, _, _, matrix, _ in found if operation == "products"}
    assert of_products == {"sm_80": {"HMMA"}, "sm_90": {"HGMMA"}, "sm_100": {"UTCHMMA"}, "gfx942": {"MFMA"}}


def test_a_target_that_nothing_is_compiled_for_is_not_taken_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_report, "_tasks", lambda _thorough: iter(()))
    lines = list[str]()
    assert triton_report.table(lines.append)
    monkeypatch.setattr(triton_report, "_not_here", lambda gpu: "there is no linker." if gpu.backend == "hip" else "")
    assert not triton_report.table(lines.append)
    assert "Nothing is compiled for gfx942, and so it is not known to fit: there is no linker." in lines


# ---- which configuration ----------------------------------------------------------------------------------------------------


def test_every_case_of_the_report_launches_one_kernel_that_fits_somewhere() -> None:
    cases = list(triton_report.cases(thorough=True))
    assert len({(case.operation, case.label) for case in cases}) == len(cases)
    for case in cases:
        launch = case.launch
        for target in (Target("cuda"), Target("hip"), Target("cpu")):
            assert launch.tuned.fitting(launch.arguments, target)
        assert set(launch.arguments) | set(launch.tuned.choices[0].tile) == set(launch.tuned.kernel.arg_names)


def launched(*, thorough: bool) -> dict[tuple[str, Target, Choice], bool]:
    """Configurations that kernels are launched in, and whether they are of activations with slopes of their own."""
    found: dict[tuple[str, Target, Choice], bool] = {}
    for case in triton_report.cases(thorough):
        arguments = case.launch.arguments
        cores = [CORES[value] for name, value in arguments.items() if name.startswith("CORE")]
        for target in map(Target.of, triton_report.TARGETS.values()):
            for choice in case.launch.tuned.fitting(arguments, target):
                of_slopes = found.get((case.operation, target, choice), False)
                found[case.operation, target, choice] = of_slopes or not STRAIGHT_CORES.issuperset(cores)
    return found


def test_every_configuration_is_in_the_default_report() -> None:
    """With activations of slopes, which take more registers, where there are such."""
    assert launched(thorough=False) == launched(thorough=True)


def test_warps_of_amd_are_twice_as_wide() -> None:
    choice = Choice({"ROWS": 16}, warps=8, stages=2, roomy=True)
    assert choice.options("cuda") == {"num_warps": 8, "num_stages": 2, "maxnreg": 255}
    assert choice.options("hip") == {"num_warps": 4, "num_stages": 2, "waves_per_eu": 1}
    assert choice.config("cuda").all_kwargs() == {"ROWS": 16, **choice.options("cuda"), "num_ctas": 1}
    assert choice.config("hip").all_kwargs() == {"ROWS": 16, **choice.options("hip"), "num_ctas": 1}


_COUNT = """
import re
from lmn.kernels import triton_report
(case,) = (case for case in triton_report.cases() if case.label == "1 x 128 to 32, ztanh")
choice = next(each for each in case.launch.tuned.choices if each.warps == 4)
sass = triton_report.compiled(case.launch, choice, "sm_90").assembly
code = [(int(at, 16), text) for at, text in re.findall(r"/\\*([0-9a-f]{4,5})\\*/\\s+([^;]+);", sass)]
loops = [(int(to, 16), at) for at, text in code for to in re.findall(r"\\bBRA.*?(0x[0-9a-f]+)", text) if int(to, 16) < at - 16]
(first, last), = loops  # over the steps along segments
print(sum(first <= at <= last for at, _ in code))
"""


def test_the_models_instructions_are_those_that_the_compiler_makes() -> None:
    """Of the paper's tail, a step: of 128 threads, each its share of 16 pairs."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True, env=environment)
    n = 768
    steps = n * (n + 16) // 2 * 19 / 16
    modelled = triton_work.connectivity(n, (100,), 31).instructions / steps / 128
    assert abs(int(done.stdout) / modelled - 1) < 0.1


def test_the_modelled_time_of_the_papers_tail() -> None:
    """Less than 5 ms on an H100, of 768 samples."""
    (h100,) = (gpu for gpu in triton_work.RATES if gpu.name == "H100 SXM")
    of_parts = triton_work.connectivity(768, (100,), 31).seconds(h100)
    assert 1e-4 < sum(of_parts.values()) < 5e-3
    assert max(of_parts, key=lambda part: of_parts[part]) == "instructions"


def test_weights_that_would_be_streamed_come_too_often() -> None:
    """What connectivity/triton_wide.py says of three layers of 256."""
    (h100,) = (gpu for gpu in triton_work.RATES if gpu.name == "H100 SXM")
    by_layer = triton_work.connectivity_by_layer(768, (256, 256, 256), 10)
    streamed = triton_work.connectivity_in_one_kernel(768, Fused(3, 256, 32))
    assert round(streamed.on(h100)["second cache"] / 1e9) == 199
    assert (round(by_layer.memory / 1e9), round(by_layer.on(h100)["second cache"] / 1e9)) == (58, 57)
    assert round(1e3 * sum(streamed.seconds(h100).values())) == 64
    assert round(1e3 * sum(by_layer.seconds(h100).values())) == 44


def test_what_memory_takes_of_wide_layers_times() -> None:
    """What triton_products.py says of an H100."""
    (h100,) = (gpu for gpu in triton_work.RATES if gpu.name == "H100 SXM")
    wide = (784, 200, 200, 200, 200, 10)
    shares = []
    for work in (
        triton_work.connectivity(768, (256, 256, 256), 10),
        triton_work.jacobians(4096, (64, 256, 256, 10)),
        triton_work.patterns(1_000_000, wide, h100.target),
        triton_work.local_complexity(10_000, wide, h100.target),
    ):
        of_parts = work.seconds(h100)
        shares.append(round(100 * of_parts["memory"] / sum(of_parts.values())))
    assert shares == [39, 31, 15, 9]


def test_what_products_take_beside_cublas() -> None:
    """Also there, of three layers of 256: 768 samples, of whose segments 19 points are inside."""
    points = 768 * 767 // 2 * 19
    tiles = ((256, "large"), (256, "large"), (10, "rows"))
    work = sum((triton_work._product(points, 256, n, tile=tile) for n, tile in tiles), Work(""))
    of_products = replace(work, memory=0.0)
    a100, h100, _ = triton_work.RATES
    assert [round(1e3 * sum(of_products.seconds(gpu).values())) for gpu in (a100, h100)] == [82, 22]
    assert [round(1e3 * work.operations / rate) for rate in (19.5e12, 67e12)] == [85, 25]
