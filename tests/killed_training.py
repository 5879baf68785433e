"""A training that is killed again and again, and resumed in one file: what each run told, and what the file had after it.

    python killed_training.py history.jsonl 50 asynchronous

One process loads all that it takes, and forks a run at a time.
"""

import json
import os
import random
import signal
import sys
import threading
import time

from test_callback import OPTIONS, built, data
from torch.nn import functional
from tqdm import tqdm

import lmn
from lmn import journal


def run(path: str, asynchronous: bool, step: int, told: int) -> None:
    """Train on from a step, measure each, and tell of each step and how many measurements there are."""
    tqdm.set_lock(threading.RLock())  # its own is all processes': one that is killed with it would stop those after it
    model, optimizer = built()
    x, y = data()
    callback = lmn.Callback(x, every=1, path=path, asynchronous=asynchronous, **OPTIONS).attach(model, optimizer, step=step)
    while True:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        step += 1
        os.write(told, f"{step} {len(callback.rows)}\n".encode())


def main(path: str, n: int, asynchronous: bool) -> None:
    lmn.measure(built()[0], data()[0], **OPTIONS, threads=1, progress=False)  # loads what each run needs
    moments = random.Random(0)
    step = rows = 0
    for _ in range(n):
        receive, tell = os.pipe()
        child = os.fork()
        if child == 0:
            run(path, asynchronous, step, tell)
        os.close(tell)
        # A moment is some measurements after the start, and a while: by time alone a slow machine kills all before the first.
        enough, while_ = rows + moments.randrange(4), moments.uniform(0, 0.05)
        with os.fdopen(receive) as told:
            lines = (tuple(map(int, line.split())) for line in told if line.endswith("\n"))
            while rows < enough:
                step, rows = next(lines)
            time.sleep(while_)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for step, rows in lines:  # noqa: B007  # the last is what counts
                pass
        kept = [row["step"] for row in journal.read(path)]
        print(json.dumps({"told": rows, "kept": kept}), flush=True)
        rows = len(kept)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "asynchronous")
