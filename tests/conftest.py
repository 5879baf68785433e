"""What all tests share."""

import os
import sys
from pathlib import Path

# Triton decides when a kernel is defined whether it is compiled or interpreted; here there may be no GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))  # for models.py
