"""`lmn regions` on archives of torch.export.save, and archives that are refused."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_regions import mlp
from torch import nn
from typer.testing import CliRunner

import lmn
from lmn.cli import app
from lmn.exported import load_exported


def exported(model: nn.Module, path: Path, *shape: int, batch: bool = True) -> Path:
    dynamic = ({0: torch.export.Dim("batch")},) if batch else None
    dtype = next(model.parameters()).dtype
    torch.export.save(torch.export.export(model, (torch.randn(4, *shape, dtype=dtype),), dynamic_shapes=dynamic), path)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return exported(mlp((2, 16, 12, 1)), tmp_path_factory.mktemp("exported") / "model.pt2", 2)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["regions", *map(str, arguments)])
    return result.exit_code, result.output + result.stderr


def test_the_regions_are_those_of_the_model(archive: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = lmn.regions(mlp((2, 16, 12, 1)), lmn.box([-2, -2], [2, 2], 2))
    picture = tmp_path / "regions.png"
    code, output = run(archive, "--box", -2, 2, "--plot", picture)
    assert code == 0, output
    assert f"{found.count} activation regions, exact" in output
    assert f"{found.n_linear_maps} distinct linear maps, {found.n_linear_regions} linear regions" in output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_above_three_inputs_regions_are_observed(tmp_path: Path) -> None:
    path = exported(mlp((4, 8, 1)), tmp_path / "model.pt2", 4)
    code, output = run(path, "--n", 5)
    assert code == 0, output
    assert "observed at 625 points" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fill", "colour"), "fill is one of"),
        (("--plot", "picture"), "no extension"),
        (("--box", 1, -1), "low"),
        (("--max-regions", 3), "max_regions = 3"),
    ],
)
def test_what_is_asked_wrongly(archive: Path, arguments: tuple, message: str) -> None:
    code, output = run(archive, *arguments)
    assert code == 1
    assert message in output


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    code, output = run(tmp_path / "model.pt2")
    assert code == 1
    assert "can't read" in output


def test_a_batch_that_does_not_vary(tmp_path: Path) -> None:
    path = exported(mlp((2, 4, 1)), tmp_path / "model.pt2", 2, batch=False)
    with pytest.raises(lmn.LmnError, match="for batches of exactly 4"):
        load_exported(path)


class Caught:
    """What a pickle would do, if it were loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


def changed(archive: Path, to: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(to, "w") as new:
        for name, content in files.items():
            new.writestr(name, content)
    return to


def a_weight(caught: bytes) -> Callable[[dict[str, bytes]], None]:
    """One of the weights is said to be a pickle."""

    def change(files: dict[str, bytes]) -> None:
        name = next(name for name in files if name.endswith("_weights_config.json"))
        table = json.loads(files[name])
        entry = next(iter(table["config"].values()))
        entry["use_pickle"] = True
        files[f"{name.split('/')[0]}/data/weights/{entry['path_name']}"] = caught
        files[name] = json.dumps(table).encode()

    return change


def an_object(caught: bytes) -> Callable[[dict[str, bytes]], None]:
    """A custom object among the constants, which torch unpickles."""

    def change(files: dict[str, bytes]) -> None:
        name = next(name for name in files if name.endswith("_constants_config.json"))
        files[f"{name.split('/')[0]}/data/constants/opaque_obj_0"] = caught
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
        files[name] = json.dumps({"config": {"obj": entry}}).encode()

    return change


def an_example(caught: bytes) -> Callable[[dict[str, bytes]], None]:
    """The example inputs."""

    def change(files: dict[str, bytes]) -> None:
        memory = io.BytesIO()
        torch.save({}, memory)  # a frame around it
        with zipfile.ZipFile(memory) as inner:
            parts = {name: inner.read(name) for name in inner.namelist()}
        with zipfile.ZipFile(memory := io.BytesIO(), "w") as inner:
            for name, content in parts.items():
                inner.writestr(name, caught if name.endswith("data.pkl") else content)
        files[next(name for name in files if "/sample_inputs/" in name)] = memory.getvalue()

    return change


@pytest.mark.parametrize("where", [a_weight, an_object, an_example])
def test_no_pickle_is_loaded(archive: Path, tmp_path: Path, where: Callable) -> None:
    file = tmp_path / "caught"
    evil = changed(archive, tmp_path / "evil.pt2", where(pickle.dumps(Caught(file))))
    with pytest.raises(lmn.LmnError, match=r"holds pickled objects|more than tensors"):
        load_exported(evil)
    assert not file.exists()
