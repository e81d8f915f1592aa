"""One training with its evaluation, and what is counted in its answers: two numbers a scene and metric.

A module of its own, so that a worker process can import it.
"""

import contextlib
import json
import math
import shutil
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from amp_min import demo, metrics, records
from amp_min.experiments import intervals
from amp_min.support import storage
from amp_min.world import oracle


def do(typed, path, data):
    """In a worker: one variant's commands, then its result file."""
    started, model = time.perf_counter(), path.with_suffix("")
    with open(f"{model}.log", "w", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            demo.run_chain([demo.parsed(command) for command in typed], threads=1)
    sums = scene_sums(f"{model}.evaluate.json.answers.jsonl", data)
    if moved := log_ratios(model / "log.jsonl"):        # as if of one scene: only seeds vary
        sums |= {"log_ratio_first": {"all": [moved[0], 1]}, "log_ratio_last": {"all": [moved[-1], 1]}}
    evaluated = json.loads(Path(f"{model}.evaluate.json").read_text(encoding="utf-8"))
    storage.write_json(path, {"commands": typed, "metrics": evaluated["metrics"], "sums": sums,
                              "seconds": round(time.perf_counter() - started, 1)})
    shutil.rmtree(model, ignore_errors=True)  # its answers stay; the weights of hundreds of models need not


def prefers_worse(preferences, K=4):
    """Share of the pairs of the first K levels in which the reference finds the worse answer likelier, or
    None.

    train.py keeps the reference's log-probs beside the preferences. In such pairs DPO has the order still to
    learn.
    """
    cached = preferences.parent.glob(f"{preferences.name}.reference-*.safetensors")
    logps = [load_file(path)["logps"].numpy()[:, :K] for path in cached]
    if not logps:
        return None                                     # supervised training asks no reference
    logps = max(logps, key=lambda one: one.shape[1])    # (rows, K)
    return float(np.mean([logps[:, j] > logps[:, i] for i, j in combinations(range(logps.shape[1]), 2)]))


def log_ratios(log):
    """How far each level's log-prob is from the reference's, best level first: train.py's means over the last
    epoch.

    Empty where there is no such log: a base, or supervised training, which asks no reference.
    """
    steps = list(map(json.loads, log.read_text(encoding="utf-8").splitlines())) if log.exists() else []
    before = math.ceil(steps[-1]["epoch"]) - 1 if steps else 0
    last = [step["ratio"] for step in steps if step["epoch"] > before and "ratio" in step]
    return np.mean(last, axis=0).tolist() if last else []


# ---- answers -> sums ---------------------------------------------------------------------------------------

def scene_sums(answers, data):
    """evaluate's answers file and its benchmark folder -> {metric: {scene: [numerator, denominator]}}.

    A scene is known by its picture: POPE's questions about one picture stand or fall together.
    """
    asked = {(name, row["id"]): row for name in ("captions", "pope", "mrhal")
             for row in records.read(f"{data}/{name}.jsonl", "prompt")}
    sums = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    with open(answers, encoding="utf-8") as file:
        for said in map(json.loads, file):
            benchmark, _, how = said["benchmark"].partition("_")
            row = asked[benchmark, said["id"]]
            for metric, part, whole in counts(benchmark, how, said["answers"], row):
                scene = sums[metric][row["image"]]
                scene[0] += part
                scene[1] += whole
    return {metric: dict(scenes) for metric, scenes in sums.items()}


def counts(benchmark, how, answers, row):
    """What the answers to one row add: (metric, numerator, denominator)."""
    if benchmark == "captions":
        counted = description(" ".join(answers), row["scene"])
        return [(f"{metric}_{how}", part, whole) for metric, part, whole in counted]
    if benchmark == "pope":
        yes, true = metrics.pope_answer(answers[0]) == "yes", row["label"] == "yes"
        return [("pope_accuracy", yes == true, 1), ("pope_yes_ratio", yes, 1),
                ("pope_f1", 2 * (yes and true), yes + true)]
    rated = oracle.row_ratings(answers, row["answers"], row["scene"])
    wrong = [rating < metrics.HALLUCINATED_BELOW for rating in rated]
    return [("mrhal_score_cumulative", sum(rated), len(rated)),                                 # Eq. 8, left
            ("mrhal_hallucination_cumulative", sum(wrong), len(rated))]


def description(text, scene):
    said, shown, words = oracle.mentioned(text), oracle.present(scene), text.lower().split()
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    tally = oracle.tally(text, scene)           # about -> [false, decided]
    false, decided = (sum(count[i] for count in tally.values()) for i in (0, 1))
    return [("false_claims", false, decided), ("chair_i", len(said - shown), len(said)),
            ("coverage", len(said & shown), len(shown)), ("words", len(words), 1),
            ("repeated", len(fours) - len(set(fours)), len(fours)),  # share of 4-word runs said before
            *((f"false_{about}", *count) for about, count in tally.items())]


def stack(sums):
    """One {scene: [numerator, denominator]} a seed -> array (R, N, 2), scenes in one order.

    Raises ValueError when the scenes are not the same: what is not paired must not be compared as pairs.
    """
    scenes = sorted(sums[0])
    if any(sorted(one) != scenes for one in sums):
        raise ValueError("the scenes differ between seeds or variants; evaluate them on the same benchmark")
    return np.array([[one[scene] for scene in scenes] for one in sums], dtype=float)


def metric(scenes):
    """One training's metric from its {scene: [numerator, denominator]}."""
    return float(intervals.per_seed(stack([scenes]))[0])
