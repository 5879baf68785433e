"""The gallery's scripts still run, in their short modes, and draw what the README shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "gallery")


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) == 6


@pytest.mark.parametrize("name", SCRIPTS)
def test_example(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--short", "--out", str(tmp_path)]
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {f"{name}.png"}


def test_the_pictures_of_the_readme_are_there() -> None:
    root = EXAMPLES.parent
    named = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (root / "README.md").read_text())
    assert len(named) > 5
    assert [name for name in named if not (root / name).exists()] == []
