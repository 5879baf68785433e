"""Input that can't be measured: the error says what to do; and what looks bad but can be measured gives a right answer."""

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lmn

from models import PaperNetwork, Transformer


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


class AcrossTheBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class Diverging(nn.Module):
    """Finite at -1 and 1, infinite between."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / x


class SkipsTheTap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.inner(x))


class AroundByAFactor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x)) * (1 + 5 * x[:, :1])


class GivesADictionary(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pred": x}


class Reuses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.relu(self.inner(x)))


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.T


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x)


class NormalisesInSingle(nn.Module):
    """RMSNorm as language models have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def bad(value: float) -> torch.Tensor:
    x = torch.ones(5, 4)
    x[2, 1] = value
    return x


def measure(model: nn.Module, grid: object, **options: object) -> lmn.Measurement:
    return lmn.measure(model, grid, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "grid", "options", "message"),
    [
        (mlp(), bad(torch.nan), {}, "1 of 5 samples have a NaN"),
        (mlp(), bad(torch.inf), {}, "1 of 5 samples have a NaN or an infinity"),
        (mlp(), torch.ones(0, 4), {}, "the grid is empty"),
        (mlp(), torch.tensor(1.0), {}, "the grid is one number"),
        (mlp(), "samples", {}, "the grid is str; give the samples as a tensor"),
        (mlp(), np.array(["a"]), {}, "an array of dtype <U1; give numbers"),
        (mlp(), torch.ones(3, 4, dtype=torch.complex64), {}, "complex64; give real ones"),
        (mlp(), torch.ones(3, 5), {}, r"can't be run on the grid's samples, float32 of shape \(batch, 5\)"),
        (mlp(), torch.ones(3, 4).double(), {}, r"the samples are torch.float64 and the model is torch.float32; pass"),
        (mlp(), torch.ones(3, 4, device="meta"), {}, "move one of them"),
        (mlp(), torch.ones(3, 4).long(), {}, "name the submodule whose output is to be interpolated"),
        (PaperNetwork(), torch.zeros(3, 2).long(), {}, "tap='embedding'"),
        (PaperNetwork(), torch.zeros(3, 2).long(), {"tap": "linaer1"}, "close names: 'linear1'"),
        (nn.ReLU(), torch.ones(3, 4), {"tap": "x"}, "the model has no submodules"),
        (TwoInputs(), torch.ones(3, 4), {}, r"takes 2 inputs \(x, mask\)"),
        (AcrossTheBatch(), torch.randn(5, 4), {}, "a sample's output changes with the batch it is in"),
        (nn.BatchNorm1d(4, track_running_stats=False), torch.randn(5, 4), {}, "on a batch of 3 samples and not on one"),
        (SkipsTheTap(), torch.randn(5, 4), {"tap": "inner"}, "by a way around tap 'inner'"),
        (Reuses(), torch.randn(5, 4), {"tap": "inner"}, "tap 'inner' is called 2 times"),
        (Reuses(), torch.randn(5, 4), {"tap": "unused"}, "tap 'unused' is never called"),
        (nn.LSTM(4, 3), torch.randn(5, 2, 4), {}, r"returned tuple of 2, not one tensor.*select=lambda out: out\[0\]"),
        (Transposed(), torch.randn(5, 4), {}, "first dimension must be the batch"),
        (mlp(), torch.ones(5, 4), {"select": lambda y: y.argmax(-1)}, "dtype torch.int64; pick a real-valued one"),
        (Diverging(), torch.zeros(3, 1), {}, "output is not finite"),
        (Diverging(), torch.tensor([[-1.0], [1.0]]), {}, "not finite .* on a segment between two samples"),
        (mlp(), torch.ones(3, 4), {"backend": "cuda"}, r"no backend 'cuda' for connectivity; choose 'auto' or one of \["),
        (Diverging(), torch.ones(3, 1), {"backend": "cpp"}, "'cpp' can't run this connectivity .*neither an affine map"),
        (mlp(), torch.ones(3, 4), {"m": 2}, "must be at least 3; got 2"),
        (mlp(), torch.ones(3, 4), {"threads": 0}, "threads must be at least 1"),
        (mlp(), torch.ones(3, 4), {"max_points": 0}, r"max_points \(or None\) must be at least 1; got 0"),
        (mlp(), torch.ones(3, 4), {"metrics": ("jacobian",)}, r"out of \('lmn', .*'local_complexity'\); got \('jacobian',\)"),
        (mlp(), torch.ones(3, 4), {"metrics": "lmn"}, "metrics is a sequence of names"),
        (mlp(), torch.ones(3, 4), {"metrics": ()}, "metrics is a sequence of names"),
        (mlp(), torch.ones(3, 4), {"metrics": 5}, "metrics is a sequence of names"),
        (mlp(), torch.ones(3, 4), {"threads": 2.5}, "threads is a whole number, at least 1; got 2.5"),
        (mlp(), torch.ones(3, 4), {"max_points": True}, "max_points .* is a whole number, at least 1; got True"),
        (mlp(), torch.ones(3, 4), {"max_points": 2, "seed": -1}, "seed must be at least 0; got -1"),
        (mlp(), torch.ones(3, 4), {"tap": 3}, "tap is the name of a submodule, .* got int"),
        (mlp(), torch.ones(3, 4), {"tap": "embed"}, "no submodule 'embed' to tap; there are: '0', '1', '2'"),
        (mlp(), torch.ones(3, 4).to_sparse(), {}, "sparse_coo; give dense ones"),
        (mlp(), torch.ones(3), {}, r"shape \(batch\) .* One value a sample\? Pass samples\[:, None\]"),
        (PaperNetwork(), torch.ones(3, 2), {"tap": "embedding"}, "Does it take tokens"),
        (mlp(), torch.ones(3, 4), {"select": "logits"}, "select= is a function of the model's output.* got 'logits'"),
        (
            mlp(),
            torch.ones(3, 4),
            {"select": lambda y: y[:, 9]},
            r"select= failed on .* a tensor of shape \(3, 2\): IndexError",
        ),
        (mlp(), torch.ones(3, 4), {"select": lambda y: y.sum()}, "the output's first dimension must be the batch"),
        (mlp(), torch.ones(3, 4), {"select": lambda y: y[:, :0]}, "the output is empty"),
        (mlp(), torch.ones(3, 4), {"select": lambda y: y.to_sparse()}, "out.to_dense"),
        (
            nn.Sequential(nn.LazyLinear(4), nn.Tanh()),
            torch.ones(3, 4),
            {},
            "lazy modules that are not initialised; run it once",
        ),
        (GivesADictionary(), torch.ones(3, 4), {}, r"dict with the keys \['pred'\].*out\['pred'\]"),
        (AroundByAFactor(), lmn.box([-1] * 4, [1] * 4, 3), {"tap": "inner"}, "by a way around tap 'inner'"),
        (AroundByAFactor(), torch.ones(5, 4), {"tap": "inner"}, "by a way around tap 'inner'"),
        (lambda x: x, torch.ones(3, 4), {}, "the model is function; give a torch.nn.Module"),
    ],
)
def test_an_error_says_what_to_do(model: nn.Module, grid: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        measure(model, grid, **options)


def test_a_model_that_is_sharded_over_processes() -> None:
    """Its training would wait for processes that don't measure."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = mlp()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(lmn.LmnError, match="sharded over processes"):
            lmn.measure(model, torch.randn(5, 4))
    finally:
        distributed.destroy_process_group()


def test_a_failed_lazy_model_still_works() -> None:
    model, x = nn.Sequential(nn.LazyLinear(4), nn.Tanh()), torch.ones(3, 4)
    with pytest.raises(lmn.LmnError):
        measure(model, x)
    assert model(x).shape == (3, 4)


def test_a_wrapped_models_own_names() -> None:
    x = torch.randn(5, 4)
    expected = measure(mlp(), x, tap="1").lmn
    assert measure(nn.DataParallel(mlp()), x, tap="module.1").lmn == expected
    assert measure(torch.compile(mlp()), x, tap="_orig_mod.1").lmn == expected
    assert measure(torch.compile(mlp()), x, tap="1").lmn == expected


def test_a_model_that_writes_into_its_input() -> None:
    x = torch.randn(5, 4)
    model = nn.Sequential(nn.SiLU(inplace=True), nn.Linear(4, 2))
    before = x.clone()
    expected = measure(nn.Sequential(nn.SiLU(), model[1]), x).lmn
    assert measure(model, x).lmn == expected
    assert torch.equal(x, before)


@pytest.mark.parametrize("which", [0, 1])
def test_a_replaced_forward_is_seen(which: int) -> None:
    x = torch.randn(9, 4)
    model = mlp()
    original = model[which].forward
    expected = lmn.connectivity(nn.Sequential(*model[: which + 1], Sine(), *model[which + 1 :]), x, backend="reference")
    model[which].forward = lambda h: torch.sin(3 * original(h))  # as accelerate and PEFT do
    torch.testing.assert_close(lmn.connectivity(model, x, progress=False), expected, rtol=0, atol=1e-5)


def test_a_global_hook_is_seen() -> None:
    x, model = torch.randn(9, 4), mlp()
    expected = lmn.connectivity(nn.Sequential(model[0], Sine(), *model[1:]), x, backend="reference")
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, out: torch.sin(3 * out) if module is model[0] else None
    )
    try:
        got = lmn.connectivity(model, x, progress=False)
    finally:
        handle.remove()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_model_that_computes_in_float32_by_itself_says_so() -> None:
    measured = measure(NormalisesInSingle(), torch.randn(9, 4).double())
    assert "computes in float32 or less whatever it is given" in measured.notes[0]


def test_weights_that_are_nan() -> None:
    model = mlp()
    nn.init.constant_(model[2].bias, torch.nan)
    with pytest.raises(lmn.LmnError, match=r"output is not finite .* is the training diverged"):
        measure(model, torch.ones(3, 4))


def test_activations_at_the_tap_that_are_nan() -> None:
    class Hides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nan_to_num(self.inner(x))

    model = Hides()
    nn.init.constant_(model.inner.weight, torch.nan)
    with pytest.raises(lmn.LmnError, match="activations at the tap are not finite"):
        measure(model, torch.ones(3, 2), tap="inner")


def test_a_model_in_training_mode_is_measured_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    x = torch.randn(7, 4)
    training, evaluating = measure(model.train(), x), measure(model.eval(), x)
    assert training.lmn == evaluating.lmn


def test_numpy_samples_follow_the_models_dtype() -> None:
    x = torch.randn(7, 4)
    assert measure(mlp(), x.double().numpy()).lmn == measure(mlp(), x).lmn
    assert measure(mlp().double(), x.numpy()).dtype == "float64"


def test_half_precision_models_are_computed_in_float32() -> None:
    x = torch.randn(7, 4)
    measured = measure(mlp().bfloat16(), x.bfloat16())
    assert measured.dtype == "float32"
    assert measured.lmn == measure(mlp().bfloat16().float(), x.bfloat16().float()).lmn


def test_two_equal_samples() -> None:
    assert measure(mlp(), torch.ones(2, 4)).lmn == pytest.approx(1)


def test_several_outputs_of_a_position() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(12, (5, 3))
    model = Transformer()
    measured = measure(model, tokens, tap="embedding")  # all positions: 3 * 12 outputs
    assert 1 <= measured.lmn <= 5
    assert measured.lmn == pytest.approx(measure(model, tokens, tap="embedding", backend="reference").lmn, rel=1e-3)
