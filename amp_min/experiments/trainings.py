"""One training with its evaluation, as a worker of the experiments runs it: a module of its own, so that it can be sent there."""

import contextlib
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np

from amp_min import demo
from amp_min.experiments import intervals
from amp_min.support import storage


def do(typed, path, data):
    """In a worker: one row's commands, then its result file."""
    started, model = time.perf_counter(), path.with_suffix("")
    with open(f"{model}.log", "w", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            demo.run_chain([demo.parsed(command) for command in typed], threads=1)
    levels = levels_by_epoch(model / "log.jsonl") if model.is_dir() else []
    evaluated = json.loads(Path(f"{model}.evaluate.json").read_text(encoding="utf-8"))
    storage.write_json(path, {"commands": typed, "metrics": evaluated["metrics"], "levels": levels,
                              "sums": intervals.scene_sums(f"{model}.evaluate.json.answers.jsonl", data),
                              "seconds": round(time.perf_counter() - started, 1)})
    shutil.rmtree(model, ignore_errors=True)            # its answers stay; the weights of a hundred models need not


def levels_by_epoch(log):
    """train.py's log -> for each epoch {"logp": (K,), "ratio": (K,), if it has one}, means over its steps, best level first."""
    epochs = {}
    for step in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        epochs.setdefault(math.ceil(step["epoch"]), []).append(step)
    return [{key: np.mean([step[key] for step in steps], axis=0).tolist() for key in ("logp", "ratio") if key in steps[0]}
            for steps in epochs.values()]
