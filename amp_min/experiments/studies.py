"""What is asked, which variants are trained to answer it, and which claims are tested on which metric. Data
only.

A variant is one training: which base it starts from, whose ranking it learns from, at which learning rate,
and train.py's other options. A study is one question: its variants, the paper's own figures beside them, its
claims. Each claim names its metric before anything is run: whoever looks at forty figures and picks one
always finds something. A training that two studies need is done once.
"""

import re
from typing import NamedTuple

# ---- variants ----------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """One training. Without a ranking it is the base itself, which is only evaluated."""
    ranking: str | None = None      # who ranked: __main__.prepare and write make these files
    rate: str = "mdpo"              # whose learning rate (and penalty) of the preset
    options: str = "--levels 4"
    base: str = "careless"  # or "clean": never trained on careless texts; or a point of the dial between


AUTO = "auto-check"
SFT, FREE = "--loss sft", "--levels 4 --penalty 0"
PENALTIES = ("0", "0.01", "0.1", "0.3", "1", "5")
VARIANTS = {
    "base": Variant(), "sft": Variant(AUTO, "sft", SFT), "mdpo": Variant(AUTO),
    # The dial: bases with none, half and all (above) of the demo's careless steps.
    **{f"{base}{name}": variant._replace(base=base) for base in ("clean", "half")
       for name, variant in (("", Variant()), ("-sft", Variant(AUTO, "sft", SFT)), ("-mdpo", Variant(AUTO)))},
    # Levels. The mean over pairs gives the penalty on y_0 the weight 2/K; "fixed" scales it to what K = 4
    # has.
    "k2": Variant(AUTO, options="--levels 2"), "k2-fixed": Variant(AUTO, options="--levels 2 --penalty *0.5"),
    "k3": Variant(AUTO, options="--levels 3"),
    "k5": Variant(AUTO, options="--levels 5"),
    "k5-fixed": Variant(AUTO, options="--levels 5 --penalty *1.25"),
    # "slow": no penalty, at DPO's rate, since at MDPO's nothing would hold the best answer up.
    "slow-2": Variant(AUTO, "dpo", "--levels 2 --penalty 0"), "slow-4": Variant(AUTO, "dpo", FREE),
    # Who ranks: with MDPO's penalty, which holds the standard answer whatever the order, and without.
    **{name: Variant(name) for name in ("initial", "random", "reversed", "attributes", "oracle", "ig",
                                        "ig-initial", "noisy-30", "noisy-100", "perturb")},
    **{f"slow-{name}": Variant(name, "dpo", FREE) for name in ("initial", "random", "reversed")},
    # Six sampled answers of the base itself, four of them spaced over the ranking, the standard answer left
    # out. "best": supervised training on the best of them, the fair control. "standard": it and three of its
    # own.
    **{f"own-{check}": Variant(f"own-{check}", "own", base="clean")
       for check in ("recall", "symmetric", "attributes", "claims", "random")},
    **{f"best-{check}": Variant(f"own-{check}", "sft", SFT, "clean") for check in ("attributes", "claims")},
    "own-standard": Variant("own-attributes-standard", "own", base="clean"),
    "careless-own": Variant("own-attributes", "own"),
    "careless-best": Variant("own-attributes", "sft", SFT),
    **{f"penalty-{size}": Variant(AUTO, options=f"--levels 4 --penalty {size}") for size in PENALTIES},
    "penalty-all": Variant(AUTO, options="--levels 4 --penalty-on all"),
    # Table 4: S is level 0, A, B, C are 1, 2, 3. S>A is k2, and S>A, A>B + cross-level is k3. A>C and B>C
    # hold no standard answer, so nothing that the penalty could be on: DPO's rate, as wherever nothing holds
    # y_0 up.
    "s-b": Variant(AUTO, options="--levels 3 --pairs 0-2"),
    "s-a-b": Variant(AUTO, options="--levels 3 --pairs 0-1,1-2"),
    "s-a-b-c": Variant(AUTO, options="--levels 4 --pairs 0-1,1-2,2-3"),
    "a-c": Variant(AUTO, "dpo", "--levels 4 --pairs 1-3"),
    "b-c": Variant(AUTO, "dpo", "--levels 4 --pairs 2-3"),
    "kwise": Variant(AUTO, "dpo", "--levels 4 --loss kwise"),
    "pro": Variant(AUTO, options="--levels 4 --loss pro"),
    # Few standard answers, as many steps: the epochs grow as the rows shrink.
    **{f"few-{percent}-{how}": Variant(f"few-{percent}", how, options) for percent in (5, 25)
       for how, options in (("sft", SFT), ("mdpo", "--levels 4"))},
}


# ---- claims ------------------------------------------------------------------------------------------------

# In a claim: the metric's key, its name, +1 when more is better. Sampled descriptions: what a model holds
# possible.
METRICS = {"false": ("false_claims_sampled", "all false claims", -1),
           "chair": ("chair_i_sampled", "CHAIR_i", -1), "coverage": ("coverage_sampled", "coverage", +1),
           "pope": ("pope_accuracy", "POPE accuracy", +1),
           "rounds": ("mrhal_hallucination_cumulative", "MRHal hallucination", -1),
           "level0": ("log_ratio_first", "log-prob of level 0 against the reference's", +1)}
MARGIN = 0.01       # "as good as", "not worse": by less than one in a hundred. Ours, chosen before the run
TESTS = {">": "better", ">=": "not worse", "=": "as good as"}


class Claim(NamedTuple):
    """kind: "paper" says so, "ours", or a "control" that must come out right or the study measures
    nothing."""
    text: str | None                # None: "A beats B", from the variants' names
    weights: dict                   # variant -> weight of its metric; the weighted sum is what is tested
    metric: str
    kind: str | None = None         # None: "paper" where both variants have a figure of it, else "ours"
    test: str = "better"


def claims(text):
    """ "mdpo > k2: false chair; control mdpo > random: false" -> Claims: better, >= not worse, = as good
    as."""
    found = []
    for one in text.split(";"):
        match = re.fullmatch(r"\s*(control |paper |)(\S+) (\S+) (\S+): (.+)", one)
        kind, a, sign, b, metrics = match.groups()
        found += [Claim(None, {a: 1, b: -1}, metric, kind.strip() or (None if sign == ">" else "ours"),
                        TESTS[sign])
                  for metric in metrics.split()]
    return found


class Study(NamedTuple):
    title: str
    question: str
    figures: str                    # what the paper's figures are
    variants: dict                  # variant -> (its name in the table, the paper's figures or None)
    claims: list                    # the first is the study's answer
    orders: tuple = ()              # rankings whose agreement with the oracle is shown too


SCORES, NONE = "MMHal score / hallucination rate", "no figure in the paper"
MDPO = "MDPO, K = 4, auto-check"
REPLACED = {"mdpo": 0.0, "noisy-30": 0.3, "noisy-100": 1.0}         # Figure 4
MIDDLE = sum(REPLACED.values()) / 3
SLOPE = {name: (MIDDLE - share) / sum((one - MIDDLE) ** 2 for one in REPLACED.values())
         for name, share in REPLACED.items()}       # of the best straight line; false claims count as minus
# The questions that must be decided come first: cut off, `all` has these.
STUDIES = {
    "table3": Study(
        "Table 3: how many levels", "Do four levels beat two?", SCORES,
        {"k2": ("K = 2", "2.69 / .47"), "k3": ("K = 3", "2.88 / .42"), "mdpo": ("K = 4", "3.17 / .35"),
         "k5": ("K = 5", "2.96 / .41"), "k2-fixed": ("K = 2, y_0 weighs as at K = 4", None),
         "k5-fixed": ("K = 5, y_0 weighs as at K = 4", None),
         "slow-2": ("K = 2, no penalty, DPO's rate", None),
         "slow-4": ("K = 4, no penalty, DPO's rate", None)},
        claims("mdpo > k2: false chair; slow-4 > slow-2: false pope; k3 > k2: false; mdpo > k3: false;"
               "mdpo > k5: false; mdpo > k2-fixed: false; mdpo = k2: false; mdpo = k5-fixed: false")),
    "table5": Study(
        "Table 5: who ranks", "Is the auto-check's ranking better than the initial one?", SCORES,
        {"mdpo": (MDPO, "3.17 / .35"), "initial": ("initial order: larger model first", "2.79 / .49"),
         "random": ("random order", None), "reversed": ("auto-check reversed", None),
         "noisy-100": ("annotator with GPT-4V's 11.95 % contradictions", "2.87 / .44"),
         "attributes": ("symmetric + attributes", None), "oracle": ("oracle (bound)", None),
         "slow-4": ("auto-check, no penalty", None), "slow-initial": ("initial, no penalty", None),
         "slow-random": ("random, no penalty", None), "slow-reversed": ("reversed, no penalty", None)},
        claims("mdpo > initial: false; control mdpo > random: false; control mdpo > reversed: false;"
               "slow-4 > slow-initial: false; control slow-4 > slow-random: false;"
               "control slow-4 > slow-reversed: false; mdpo > noisy-100: false; noisy-100 > initial: false;"
               "control oracle > mdpo: false; attributes > mdpo: false; mdpo = random: false"),
        orders=("initial", "random", AUTO, "attributes", "noisy-100", "ig-initial", "ig")),
    "own": Study(
        "Levels of the model's own answers", "Do its own levels beat supervised training?", NONE,
        {"clean": ("clean base", None), "clean-sft": ("supervised, standard answers", None),
         "best-attributes": ("supervised, best own answer (symmetric + attributes)", None),
         "own-attributes": ("own, symmetric + attributes", None), "own-symmetric": ("own, symmetric", None),
         "own-recall": ("own, auto-check (recall)", None), "own-random": ("own, random order", None),
         "own-claims": ("own, oracle: true - 2 false claims (bound)", None),
         "best-claims": ("supervised, best own answer by the oracle (bound)", None),
         "own-standard": ("standard answer + 3 own, symmetric + attributes", None),
         "base": ("careless base", None),
         "sft": ("careless base: supervised, standard answers", None),
         "careless-best": ("careless base: supervised, best own answer", None),
         "careless-own": ("careless base: own, symmetric + attributes", None)},
        claims("own-attributes > clean-sft: false chair; own-attributes > best-attributes: false chair;"
               "own-attributes >= clean-sft: pope coverage; own-symmetric > clean-sft: chair;"
               "own-symmetric >= clean-sft: coverage; own-symmetric > own-recall: chair;"
               "own-recall > own-symmetric: coverage; control own-recall > own-random: coverage;"
               "control own-attributes > own-random: false;"
               "own-attributes > clean: false; control own-claims > own-attributes: false;"
               "own-claims > clean-sft: false; own-claims > best-claims: false;"
               "own-attributes > own-standard: false; careless-own > base: false;"
               "careless-own > careless-best: false chair; careless-own > sft: false"),
        orders=("own-recall", "own-symmetric", "own-attributes")),
    "controls": Study(
        "MDPO and supervised training, in two regimes",
        "Does MDPO beat supervised training on the standard answers?",
        "MRHal score / hallucination rate, cumulative",
        {"base": ("careless base", "3.38 / .32"), "sft": ("supervised, standard answers", None),
         "slow-2": ("binary DPO, no penalty", None), "mdpo": (MDPO, "4.07 / .20"),
         "clean": ("clean base", None), "clean-sft": ("clean base: supervised", None),
         "clean-mdpo": ("clean base: MDPO, K = 4", None)},
        claims("mdpo > sft: false chair; clean-mdpo > clean-sft: false chair; mdpo > base: false pope rounds;"
               "mdpo > slow-2: false; clean-sft > clean: false; mdpo = sft: false;"
               "clean-mdpo = clean-sft: false")),
    "penalty": Study(
        "The penalty of Eq. 6 and 7", "Is training better with the penalty?", "no table; section 3",
        {**{f"penalty-{size}": (f"penalty {size}", None) for size in PENALTIES},
         "slow-4": ("no penalty, DPO's rate", None), "penalty-all": ("on every pair's winner", None),
         "mdpo": ("MDPO as in the demo: on the best answer", None)},
        claims("paper penalty-1 > penalty-0: false pope level0; penalty-0.1 > penalty-1: false;"
               "penalty-1 > penalty-5: false; paper mdpo > slow-4: false; paper mdpo > penalty-all: false")
        + [Claim(f"the best answer's log-prob falls, {label}", {name: -1}, "level0", "paper")
           for name, label in (("penalty-0", "no penalty"), ("slow-4", "no penalty, DPO's rate"))]),
    "table4": Study(
        "Table 4: which pairs", "Do cross-level pairs help?", SCORES,
        {"s-b": ("S>B", "2.50 / .50"), "k2": ("S>A", "2.61 / .51"), "s-a-b": ("S>A, A>B", "2.68 / .43"),
         "k3": ("S>A, A>B + cross-level", "2.79 / .44"), "s-a-b-c": ("S>A, A>B, B>C", "2.85 / .40"),
         "mdpo": ("S>A, A>B, B>C + cross-level", "3.17 / .35"), "a-c": ("A>C", "2.33 / .57"),
         "b-c": ("B>C", "2.45 / .51")},
        # Not tested: S>A over S>B, and cross-level on S>A, A>B: there the paper's two figures contradict each
        # other.
        claims("mdpo > s-a-b-c: false; s-a-b-c > s-a-b: false; s-a-b > k2: false; mdpo > s-b: false;"
               "k2 > b-c: false; b-c > a-c: false")),
    "table6": Study(
        "Table 6: other losses over a ranking, and perturbed answers", "Is MDPO better than K-wise MLE?",
        SCORES,
        {"mdpo": ("MDPO", "3.17 / .35"), "kwise": ("K-wise MLE", "2.96 / .41"), "pro": ("PRO", "3.01 / .38"),
         "perturb": ("MDPO on perturbed answers", "2.83 / .46")},
        claims("mdpo > kwise: false; mdpo > pro: false; mdpo > perturb: false")),
    "figure4": Study(
        "Figure 4: rankings replaced by an annotator's",
        "Do more of an annotator's rankings mean more hallucination?", "curves without printed figures",
        {name: (f"{share:.0%} replaced", None) for name, share in REPLACED.items()},
        [Claim("false claims rise with the share replaced", SLOPE, "false", "paper")]),
    "ig": Study(
        "Table 5: incremental generation", "Does the auto-check improve IG's ranking?", SCORES,
        {"mdpo": ("MEG: auto-check", "3.17 / .35"), "ig": ("IG: auto-check", "3.12 / .41"),
         "ig-initial": ("IG: initial order", "2.80 / .48")},
        claims("ig > ig-initial: false; mdpo > ig: false; mdpo = ig: false")),
    "few": Study(
        "Few standard answers", "Do levels help more where standard answers are scarce?", NONE,
        {"few-5-sft": ("5 %: supervised", None), "few-5-mdpo": ("5 %: MDPO", None),
         "few-25-sft": ("25 %: supervised", None), "few-25-mdpo": ("25 %: MDPO", None),
         "sft": ("100 %: supervised", None), "mdpo": ("100 %: MDPO", None)},
        claims("few-5-mdpo > few-5-sft: false; few-25-mdpo > few-25-sft: false;"
               "control sft > few-5-sft: false")),
    "dial": Study(
        "From a clean to a careless base",
        "Does MDPO gain more where the standard answers can teach more?", NONE,
        {name: (f"{steps} careless steps: {what}", None) for steps, names in
         (("no", ("clean", "clean-sft", "clean-mdpo")), ("half the", ("half", "half-sft", "half-mdpo")),
          ("all", ("base", "sft", "mdpo")))
         for name, what in zip(names, ("base", "supervised", "MDPO"), strict=True)},
        [Claim("MDPO's advantage over supervised training is larger on the careless than on the clean base",
               {"mdpo": 1, "sft": -1, "clean-mdpo": -1, "clean-sft": 1}, "false", "ours"),
         *claims("half-mdpo > half-sft: false")]),
}
