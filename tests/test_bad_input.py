"""Input that can't be measured: the error says what to do; and what looks bad but can be measured gives a right answer."""

import numpy as np
import pytest
import torch
from torch import nn

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


class Reuses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.relu(self.inner(x)))


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.T


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
        (mlp(), torch.tensor(1.0), {}, "the grid is empty"),
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
        (nn.BatchNorm1d(4, track_running_stats=False), torch.randn(5, 4), {}, "the batch it is in|can't be run"),
        (SkipsTheTap(), torch.randn(5, 4), {"tap": "inner"}, "by a way around tap 'inner'"),
        (Reuses(), torch.randn(5, 4), {"tap": "inner"}, "tap 'inner' is called 2 times"),
        (Reuses(), torch.randn(5, 4), {"tap": "unused"}, "tap 'unused' is never called"),
        (nn.LSTM(4, 3), torch.randn(5, 2, 4), {}, r"returned tuple, not one tensor.*select=lambda out: out\[0\]"),
        (Transposed(), torch.randn(5, 4), {}, "first dimension must be the batch"),
        (mlp(), torch.ones(5, 4), {"select": lambda y: y.argmax(-1)}, "dtype torch.int64; pick a real-valued one"),
        (Diverging(), torch.zeros(3, 1), {}, "output is not finite"),
        (Diverging(), torch.tensor([[-1.0], [1.0]]), {}, "not finite .* on a segment between two samples"),
        (mlp(), torch.ones(3, 4), {"backend": "cuda"}, r"no backend 'cuda' for connectivity; choose 'auto' or one of \["),
        (Diverging(), torch.ones(3, 1), {"backend": "cpp"}, "'cpp' can't run this connectivity .*neither an affine map"),
        (mlp(), torch.ones(3, 4), {"m": 2}, "at least 3; got 2"),
        (mlp(), torch.ones(3, 4), {"threads": 0}, "threads must be at least 1"),
        (mlp(), torch.ones(3, 4), {"max_points": 0}, "max_points is a positive whole number or None"),
        (mlp(), torch.ones(3, 4), {"metrics": ("jacobian",)}, r"out of \('lmn',\); got \('jacobian',\)"),
        (mlp(), torch.ones(3, 4), {"metrics": "lmn"}, "metrics is a sequence of names"),
        (lambda x: x, torch.ones(3, 4), {}, "the model is function; give a torch.nn.Module"),
    ],
)
def test_an_error_says_what_to_do(model: nn.Module, grid: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        measure(model, grid, **options)


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
    measured = measure(Transformer(), tokens, tap="embedding")  # all positions: 3 * 12 outputs
    assert 1 <= measured.lmn <= 5
