"""Is one row of a table better than another?  Paired differences with bootstrap intervals, and a verdict.

Every metric here is a ratio of two sums over scenes: CHAIR_i is hallucinated / mentioned objects, F1 is
2 TP / (said yes + is yes), a mean is sum / count.  So a training's answers shrink to two numbers a scene, and a
resampled benchmark is a weighted sum of them.

The interval: both rows answered the same scenes, and were trained with the same seeds (order of the batches, the
annotator's errors, sampling), so what is compared is their difference, scene by scene and seed by seed.
  scenes   are resampled (bootstrap): drawn with replacement, the same ones for both rows, the difference averaged over
           the seeds
  seeds    are too few to resample: five would be drawn from five, and the interval come out a third too narrow.  To each
           draw we add Student's t with R-1 degrees of freedom times the seeds' standard error
95 % of the sums lie in the interval.  It covers the choice of the evaluation scenes and of the training seed (with one
seed, of the scenes alone), and errs, if at all, on the wide side, since a seed's part holds some of the scenes' again.
It does not cover the choice of the world, the pre-trained models or the preference prompts: those are the same
throughout.  Many claims are tested: where there is no difference at all, one claim in twenty still gets a verdict.
"""

import json
import math
from collections import defaultdict

import numpy as np

from amp_min import metrics, records
from amp_min.world import oracle

DRAWS = 10_000


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
        text = " ".join(answers)
        said, shown, words = oracle.mentioned(text), oracle.present(row["scene"]), text.lower().split()
        fours = list(zip(words, words[1:], words[2:], words[3:]))
        return [(f"chair_i_{how}", len(said - shown), len(said)), (f"chair_s_{how}", bool(said - shown), 1),
                (f"coverage_{how}", len(said & shown), len(shown)), (f"words_{how}", len(words), 1),
                (f"repeated_{how}", len(fours) - len(set(fours)), len(fours))]      # share of 4-word runs said before
    if benchmark == "pope":
        yes, true = metrics.pope_answer(answers[0]) == "yes", row["label"] == "yes"
        return [("pope_accuracy", yes == true, 1), ("pope_yes_ratio", yes, 1),
                *((name, 2 * (yes and true), yes + true) for name in ("pope_f1", f"pope_{row['split']}_f1"))]
    rated = oracle.row_ratings(answers, row["answers"], row["scene"])
    wrong = [rating < metrics.HALLUCINATED_BELOW for rating in rated]
    n = len(rated)                                                                              # Eq. 8, both sides
    return [("mrhal_score_cumulative", sum(rated), n), ("mrhal_hallucination_cumulative", sum(wrong), n),
            ("mrhal_score_mean", sum(rated) / n, 1), ("mrhal_hallucination_mean", sum(wrong) / n, 1)]


def stack(sums):
    """One {scene: [numerator, denominator]} a seed -> array (seeds, scenes, 2), scenes in one order.

    Raises ValueError when the scenes are not the same: what is not paired must not be compared as pairs.
    """
    scenes = sorted(sums[0])
    if any(sorted(one) != scenes for one in sums):
        raise ValueError("the scenes differ between seeds or rows; evaluate them on the same benchmark")
    return np.array([[one[scene] for scene in scenes] for one in sums], dtype=float)


def ratio(numerator, denominator):
    """Their quotient, 0 where nothing was said (amp_min/metrics.py)."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def per_seed(sums):
    """(seeds, scenes, 2) -> (seeds,): the metric."""
    return ratio(*np.moveaxis(sums.sum(axis=1), -1, 0))


def metric(scenes):
    """One training's metric from its {scene: [numerator, denominator]}."""
    return float(per_seed(stack([scenes]))[0])


def difference(a, b, seed=0):
    """Mean over seeds of metric(a) - metric(b), and its 95 % interval (low, high), or None with nothing to resample.

    a, b (seeds, scenes, 2), paired in both.
    """
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape}: pairs need the same seeds and scenes")
    R, N, _ = a.shape
    estimate = float((per_seed(a) - per_seed(b)).mean())
    if R * N == 1:
        return estimate, None
    rng = np.random.default_rng(seed)
    times = rng.multinomial(N, [1 / N] * N, DRAWS).astype(float)                # (DRAWS, N) how often each scene is drawn
    drawn = lambda x: ratio(times @ x[..., 0].T, times @ x[..., 1].T)           # (DRAWS, R)
    differences = (drawn(a) - drawn(b)).mean(axis=1)                            # (DRAWS,)
    if R > 1:
        error = (per_seed(a) - per_seed(b)).std(ddof=1) / math.sqrt(R)
        differences += error * rng.standard_t(R - 1, DRAWS)
    low, high = np.quantile(differences, [0.025, 0.975])
    return estimate, (float(low), float(high))


def verdict(interval):
    """From the interval of an advantage alone: it holds when all of it is above zero."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "holds" if interval[0] > 0 else "does not hold"


def claim(text, paper, a, b, sign=1):
    """One row of "claims": ours is a's advantage over b, positive when the claim is right."""
    advantage, interval = difference(a, b) if sign > 0 else difference(b, a)
    return {"claim": text, "paper": paper, "ours": advantage, "interval": interval, "verdict": verdict(interval)}
