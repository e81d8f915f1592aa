"""Is one variant better than another? A difference of means, its 95 % interval, and what the interval
decides.

Every metric here is a ratio of two sums over scenes: CHAIR_i is invented / mentioned objects, POPE accuracy
right / asked. A training's answers shrink to two numbers a scene, so a variant is an array (R, N, 2): R
seeds, N scenes.

Two things are accidents: the seed (order of the batches, what is sampled) and which scenes stand in the
benchmark. All variants were trained with the same seeds and answered the same scenes, so we look at
differences d_r, one for each seed, in which most of both accidents has cancelled. How uncertain is their mean
over R seeds?

    Var(mean d) = s^2 / R + C

s^2, the variance of d_r over the seeds, holds what a seed changes in the model *and* the scene noise that is
a seed's own. C is the scene noise that all seeds have in common because they answered the same scenes: more
seeds do not remove it. It can be read off: the covariance of two seeds' scene noise. Adding the whole
bootstrap variance of the mean in place of C, as one is tempted to, counts the own part twice and makes the
intervals 1.35 to 1.55 times too wide.

The scene noise needs no bootstrap: near its value a ratio X / Y moves in a straight line, by (x_n - X/Y y_n)
/ Y for scene n (the delta method). tests/test_experiments.py simulates all of it: of 100 pairs of equal
variants some 5 get a verdict. The interval does not cover the choice of the world, of its pictures or of the
preference prompts: there is one of each.
"""

import math
from functools import lru_cache

import numpy as np

# ---- the difference and its noise --------------------------------------------------------------------------

def ratio(numerator, denominator):
    """Their quotient, 0 where nothing was said (amp_min/metrics.py)."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def per_seed(sums):
    """(R, N, 2) -> (R,): the metric of each seed."""
    return ratio(*np.moveaxis(sums.sum(axis=1), -1, 0))


def influence(sums):
    """(R, N, 2) -> (R, N): by how much each scene moves the metric; they add up to 0."""
    x, y = np.moveaxis(sums, -1, 0)                                             # (R, N) each
    return ratio(x - per_seed(sums)[:, None] * y, np.broadcast_to(y.sum(1, keepdims=True), y.shape))


def contrast(weighted):
    """[(weight, sums (R, N, 2)), ...] -> (mean, its standard error, degrees of freedom) of the weighted sum
    of metrics.

    Weights +1 and -1 compare two variants; +1 -1 -1 +1 ask whether a difference is larger here than there.
    With one seed only the scenes are uncertain. ValueError where seeds or scenes are not the same.
    """
    if len({sums.shape for _, sums in weighted}) > 1:
        raise ValueError(f"{[sums.shape for _, sums in weighted]}: pairs need the same seeds and scenes")
    d = sum(weight * per_seed(sums) for weight, sums in weighted)               # (R,)
    i = sum(weight * influence(sums) for weight, sums in weighted)              # (R, N)
    R, N = i.shape
    noise = i @ i.T * N / max(1, N - 1)  # (R, R) covariances of the scene noise
    if R == 1:
        return float(d[0]), math.sqrt(noise[0, 0]), N - 1
    own = d.var(ddof=1) / R
    shared = max(0.0, (noise.sum() - np.trace(noise)) / (R * (R - 1)))          # C: the mean off the diagonal
    # The seeds' part rests on R - 1 degrees of freedom, the scenes' on N - 1; their sum lies between
    # (Satterthwaite).
    df = (own + shared) ** 2 / (own ** 2 / (R - 1) + shared ** 2 / max(1, N - 1)) if own + shared else R - 1
    # Five seeds may happen to agree better than chance allows. The mean scene noise is a floor: seeds add,
    # never take.
    return float(d.mean()), math.sqrt(max(own + shared, noise.mean())), float(df)


# ---- Student's t, without another package ------------------------------------------------------------------

ANGLES = np.linspace(0, math.pi / 2, 20_001)  # with t = sqrt(df) tan(u) the density of |t| is cos(u)^(df - 1)


@lru_cache(maxsize=4096)
def student(df):
    """P(|T| < t) at each of ANGLES."""
    density = np.cos(ANGLES) ** (df - 1)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return area / area[-1]


def quantile(share, df):
    """t with P(|T| < t) = share: 1.96 for 95 % and many degrees of freedom, 2.78 for four."""
    return math.sqrt(df) * math.tan(np.interp(share, student(round(df, 1)), ANGLES))


def p_value(t, df):
    """P(|T| > t): how often chance alone would be as far from 0."""
    return 1 - float(np.interp(math.atan(abs(t) / math.sqrt(df)), ANGLES, student(round(df, 1))))


# ---- what an interval decides ------------------------------------------------------------------------------

def region(test, margin):
    """Where the true difference lies when a claim is right. To find no difference is not to show that there
    is none."""
    return {"better": (0, math.inf), "not worse": (-margin, math.inf), "as good as": (-margin, margin)}[test]


def verdict(interval, test="better", margin=0.0):
    """A claim holds when the whole interval lies in its region, and does not when none of it does."""
    if interval is None:
        return "undecided"
    low, high = region(test, margin)
    if low < interval[0] and interval[1] < high:
        return "holds"
    return "does not hold" if interval[1] < low or interval[0] > high else "undecided"


def claim(text, paper, kind, weighted, test="better", margin=0.0):
    """One row of "claims". ours: the contrast, positive when the claim is right (for "as good as": the
    difference).

    kind: "paper", "ours" or "control". p: the level at which the verdict would still stand. smallest: the
    difference from the region's end that would be decided four times in five (80 % power) with this noise.
    """
    ours, error, df = contrast(weighted)
    found = {"claim": text, "paper": paper, "kind": kind, "ours": ours, "interval": None, "p": 1.0,
             "smallest": None}
    if df > 0:  # else one seed, one scene: nothing varies
        t = quantile(0.95, df)
        edge = min(abs(ours - end) for end in region(test, margin) if math.isfinite(end))
        found |= {"interval": (ours - t * error, ours + t * error),
                  "smallest": (t + quantile(0.6, df)) * error,          # P(T < t) = 0.8 is P(|T| < t) = 0.6
                  "p": p_value(edge / error, df) if error else float(edge == 0)}
    return found | {"verdict": verdict(found["interval"], test, margin)}


def holm(claims, level=0.05):
    """The claims of one study, with "corrected": the verdict when the chance of *any* false one must stay
    below 5 %.

    Of forty true nothings two would get a verdict each at 5 %. Holm: the smallest p must pass 5 % / n, the
    next 5 % / (n - 1), and so on; the first that fails, fails for all behind it.
    """
    passed = True
    for rank, one in enumerate(sorted(claims, key=lambda one: one["p"])):
        passed = passed and one["p"] < level / (len(claims) - rank)
        one["corrected"] = one["verdict"] if passed else "undecided"
    return claims
