"""Programs saved by torch.export: loaded only where nothing in the archive could run code."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lmn.errors import LmnError, in_short


def load_exported(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """The module in an archive that ``torch.export.save`` wrote, and the shape of one sample.

    torch loads an archive's tensors from plain bytes, but some archives hold pickles, which can run any code when they are
    loaded: tensors of unusual types, custom objects, and all of the old format. These are refused: torch is given a new archive
    of what was looked at, so that it reads nothing else. The example inputs are always a pickle; it is read by torch's
    restricted reader, which makes tensors and nothing else.

    Raises
    ------
    LmnError
        No such file, no such archive, an archive with pickles, a program of several inputs or with a fixed batch size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        _check_harmless(files, path)
        program = torch.export.load(_archive(files))
        return program.module(), _sample_shape(program)
    except OSError as error:
        raise LmnError(f"can't read {path}: {error.strerror or error}.") from error
    except LmnError:
        raise
    except Exception as error:  # whatever torch's reader makes of a file that is something else
        raise LmnError(f"{path} is no archive of torch.export.save that this torch can read: {in_short(error)}.") from error


_TENSOR = r"(weight|tensor)_\d+"  # what torch calls the files that it reads as a tensor's bytes
_CONFIG = r".*_(weights|constants)_config\.json"
_HARMLESS = (
    rf"[^/]+/(data/(weights|constants)/{_TENSOR}|models/[^/]+\.json|data/sample_inputs/[^/]+\.pt|archive_format"
    r"|archive_version|byteorder|\.data/(version|serialization_id))"
)


def _check_harmless(files: dict[str, bytes], path: Path) -> None:
    """Raise where a file, or what an archive's tables say of one, is anything but a program, a table or a tensor's bytes."""
    configs = [name for name in files if re.fullmatch(_CONFIG, name)]
    unsafe = [name for name in files if name not in configs and not re.fullmatch(_HARMLESS, name)]
    for name in configs:
        for key, payload in json.loads(files[name]).get("config", {}).items():
            plain = payload.get("use_pickle", True) is False and payload.get("tensor_meta") is not None
            if not plain or not re.fullmatch(_TENSOR, str(payload.get("path_name"))):
                unsafe.append(key)
    if unsafe or not configs:
        what = f": {', '.join(unsafe[:5])}" if unsafe else ", for it is of an old format"
        raise LmnError(
            f"{path} holds pickled objects, which can run any code when they are loaded{what}; export the model again."
        )
    for name, content in files.items():
        if "/sample_inputs/" in name:
            try:
                torch.load(io.BytesIO(content), weights_only=True)
            except pickle.UnpicklingError as error:
                raise LmnError(
                    f"{path} has example inputs that are more than tensors; export the model with tensors."
                ) from error


def _archive(files: dict[str, bytes]) -> io.BytesIO:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    memory.seek(0)
    return memory


def _sample_shape(program: ExportedProgram) -> tuple[int, ...]:
    inputs: list[Any] = [
        node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    ]  # fmt: skip
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        raise LmnError(f"the exported program takes {len(inputs)} inputs; export one that takes one tensor.")
    batch, *shape = inputs[0].shape
    if isinstance(batch, int):
        raise LmnError(
            f"the program was exported for batches of exactly {batch}; export it with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},), which lets the batch vary."
        )
    return tuple(int(n) for n in shape)
