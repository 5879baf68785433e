"""python -m lmn."""

from lmn.cli import app

app()
