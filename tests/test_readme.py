"""What the README shows is what is printed."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(marker: str) -> str:
    """The fenced block after a marker."""
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def without_seconds(text: str) -> str:
    return re.sub(r"\d+\.\d+ s\b", "_ s", text)


def test_the_example_prints_what_it_says() -> None:
    done = subprocess.run([sys.executable, "-c", block("example")], capture_output=True, text=True, check=True)
    assert without_seconds(done.stdout) == without_seconds(block("its output"))
