"""What is asked, which variants are trained to answer it, and which claims are tested on which metric. Data only.

A variant is one training: which base it starts from, whose rankings it learns from, at which learning rate, and
train.py's other options. A study is one question: its variants, the paper's own figures beside them, and its claims.
Each claim names its metric before anything is run: whoever looks at forty figures and then picks one will always
find something. A training that two studies need is done once.

Three kinds of claim: the paper's ("paper"), whose direction follows from its printed figures; our own ("ours"); and a
control, which must come out as it should or the study measures nothing ("control").
"""

from itertools import combinations
from typing import NamedTuple

LETTERS = "SABC"        # Table 4's names of the levels, best first: the standard answer, then the generated, as ranked


def pairs(text):
    """Table 4's pairs as train.py's options: "S>A, A>B" -> "--levels 3 --pairs 0-1,1-2".

    "+ cross-level" adds every pair of the levels named. Only the levels up to the worst one named are read. Raises
    ValueError for another letter, or a pair that is not better > worse.
    """
    named, cross, _ = text.partition("+ cross-level")
    chosen = []
    for pair in named.split(","):
        better, worse = (LETTERS.index(letter.strip()) for letter in pair.split(">"))
        if better >= worse:
            raise ValueError(f"{pair.strip()}: the better level comes first, in the order {' > '.join(LETTERS)}")
        chosen.append((better, worse))
    levels = sorted({level for pair in chosen for level in pair})
    if cross:
        chosen = list(combinations(levels, 2))
    return f"--levels {levels[-1] + 1} --pairs {','.join(f'{i}-{j}' for i, j in chosen)}"


# ---- variants --------------------------------------------------------------------------------------------------------

class Variant(NamedTuple):
    """One training. Without rankings it is the base itself, which is only evaluated."""
    rankings: str | None = None         # who ranked: __main__.prepare makes these files
    rate: str = "mdpo"                  # whose learning rate (and penalty) of the preset
    options: str = "--levels 4"
    base: str = "careless"              # or "clean", never trained on careless texts; or a point of the dial between


AUTO = "auto-check"
DIAL = ("half", "double")               # of the demo's careless steps; "clean" and "careless" are the points 0 and 1
PENALTIES = ("0", "0.01", "0.1", "0.3", "1", "5")
VARIANTS = {
    "base": Variant(), "clean": Variant(base="clean"),
    "sft": Variant(AUTO, "sft", "--loss sft"), "clean-sft": Variant(AUTO, "sft", "--loss sft", "clean"),
    "mdpo": Variant(AUTO), "clean-mdpo": Variant(AUTO, base="clean"),
    # Levels. The mean over pairs gives the penalty on y_0 the weight 2/K: "fixed" scales it to what K = 4 has.  "slow"
    # is without a penalty, at DPO's rate: at MDPO's nothing would hold the best answer up.
    "k2": Variant(AUTO, options="--levels 2"), "k3": Variant(AUTO, options="--levels 3"),
    "k5": Variant(AUTO, options="--levels 5"),
    "k2-fixed": Variant(AUTO, options="--levels 2 --penalty *0.5"),
    "k3-fixed": Variant(AUTO, options="--levels 3 --penalty *0.75"),
    "k5-fixed": Variant(AUTO, options="--levels 5 --penalty *1.25"),
    "slow-2": Variant(AUTO, "dpo", "--levels 2 --penalty 0"), "slow-4": Variant(AUTO, "dpo", "--levels 4 --penalty 0"),
    # Who ranks: with MDPO's penalty, which holds the standard answer whatever the order, and without.
    **{name: Variant(name) for name in ("initial", "random", "reversed", "attributes", "oracle", "ig", "ig-initial",
                                        "noisy-30", "noisy-70", "noisy-100", "perturb")},
    **{f"slow-{name}": Variant(name, "dpo", "--levels 4 --penalty 0") for name in ("initial", "random", "reversed")},
    # Six sampled answers of the base itself, four of them spaced over the ranking; "best": supervised on the best one.
    **{f"own-{check}": Variant(f"own-{check}", "own", base="clean")
       for check in ("recall", "symmetric", "attributes", "claims", "random", "reversed")},
    **{f"best-{check}": Variant(f"own-{check}", "sft", "--loss sft", "clean") for check in ("attributes", "claims")},
    "own-standard": Variant("own-attributes-standard", "own", base="clean"),
    "careless-own": Variant("own-attributes", "own"),
    **{f"penalty-{size}": Variant(AUTO, options=f"--levels 4 --penalty {size}") for size in PENALTIES},
    "penalty-all": Variant(AUTO, options="--levels 4 --penalty-on all"),
    # Table 4. S>A is k2, and S>A, A>B + cross-level is k3. A>C and B>C hold no standard answer, so nothing that the
    # penalty could be on: DPO's rate, as wherever nothing holds the best answer up.
    "s-b": Variant(AUTO, options=pairs("S>B")), "s-a-b": Variant(AUTO, options=pairs("S>A, A>B")),
    "s-a-b-c": Variant(AUTO, options=pairs("S>A, A>B, B>C")),
    "a-c": Variant(AUTO, "dpo", pairs("A>C")), "b-c": Variant(AUTO, "dpo", pairs("B>C")),
    "kwise": Variant(AUTO, "dpo", "--levels 4 --loss kwise"), "pro": Variant(AUTO, options="--levels 4 --loss pro"),
    # Few standard answers, as many steps: the epochs grow as the rows shrink.
    **{f"few-{share}-{how}": Variant(f"few-{share}", how, VARIANT) for share in (5, 25)
       for how, VARIANT in (("sft", "--loss sft"), ("mdpo", "--levels 4"))},
    **{f"{point}-{how}": variant._replace(base=point) for point in DIAL
       for how, variant in (("base", Variant()), ("sft", Variant(AUTO, "sft", "--loss sft")), ("mdpo", Variant(AUTO)))},
}


# ---- claims ----------------------------------------------------------------------------------------------------------

# metric: (its name in a claim, +1 when more is better)
METRICS = {"false_claims_sampled": ("all false claims", -1), "chair_i_sampled": ("CHAIR_i", -1),
           "coverage_sampled": ("coverage", +1), "pope_accuracy": ("POPE accuracy", +1),
           "mrhal_hallucination_cumulative": ("MRHal hallucination", -1)}
FALSE, CHAIR, COVERAGE, POPE, ROUNDS = METRICS


class Claim(NamedTuple):
    """test "better": the contrast is above 0.  "not worse": above -margin.  "as good as": within both margins."""
    text: str | None                    # None: "A beats B", from the variants' names
    weights: dict                       # variant -> weight: the metric's contrast
    metric: str
    kind: str
    test: str = "better"
    margin: float = 0.0


def beats(better, worse, *metrics, kind="ours"):
    return [Claim(None, {better: 1, worse: -1}, metric, kind) for metric in metrics]


def close(test, a, b, *metrics, margin=0.01, kind="ours"):
    """Equality has to be shown: the interval must lie within the margin. One point in a hundred is ours, chosen before."""
    return [Claim(None, {a: 1, b: -1}, metric, kind, test, margin) for metric in metrics]


class Study(NamedTuple):
    title: str
    question: str
    figures: str                        # what the paper's figures are
    variants: dict                      # variant -> (its name in the table, the paper's figures or None)
    claims: list                        # the first is the study's answer
    orders: tuple = ()                  # rankings whose agreement with the oracle is shown too


SCORES = "MMHal score / hallucination rate"
NONE = "no figure in the paper"
MDPO = "MDPO, K = 4, auto-check"
FIGURE4 = {"mdpo": 0, "noisy-30": 30, "noisy-70": 70, "noisy-100": 100}             # percent replaced
# The questions that must be decided come first: interrupted, `all` has these.
STUDIES = {
    "table3": Study(
        "Table 3: how many levels", "Do four levels beat two?", SCORES,
        {"k2": ("K = 2", "2.69 / .47"), "k3": ("K = 3", "2.88 / .42"), "mdpo": ("K = 4", "3.17 / .35"),
         "k5": ("K = 5", "2.96 / .41"), "k2-fixed": ("K = 2, y_0 weighs as at K = 4", None),
         "k3-fixed": ("K = 3, y_0 weighs as at K = 4", None), "k5-fixed": ("K = 5, y_0 weighs as at K = 4", None),
         "slow-2": ("K = 2, no penalty, DPO's rate", None), "slow-4": ("K = 4, no penalty, DPO's rate", None)},
        [*beats("mdpo", "k2", FALSE, CHAIR, kind="paper"), *beats("slow-4", "slow-2", FALSE, POPE),
         *beats("k3", "k2", FALSE, kind="paper"), *beats("mdpo", "k3", FALSE, kind="paper"),
         *beats("mdpo", "k5", FALSE, kind="paper"), *beats("mdpo", "k2-fixed", FALSE, kind="control"),
         *close("as good as", "mdpo", "k2", FALSE), *close("as good as", "mdpo", "k5-fixed", FALSE)]),
    "table5": Study(
        "Table 5: who ranks", "Does it matter who ranks the generated answers?", SCORES,
        {"mdpo": (MDPO, "3.17 / .35"), "initial": ("initial order: larger model first", "2.79 / .49"),
         "random": ("random order", None), "reversed": ("auto-check reversed", None),
         "noisy-100": ("annotator with GPT-4V's 11.95 % contradictions", "2.87 / .44"),
         "attributes": ("symmetric + attributes", None), "oracle": ("oracle (bound)", None),
         "slow-4": ("auto-check, no penalty", None), "slow-initial": ("initial, no penalty", None),
         "slow-random": ("random, no penalty", None), "slow-reversed": ("reversed, no penalty", None)},
        [*beats("mdpo", "initial", FALSE, kind="paper"), *beats("mdpo", "random", FALSE, kind="control"),
         *beats("mdpo", "reversed", FALSE, kind="control"), *beats("slow-4", "slow-initial", FALSE),
         *beats("slow-4", "slow-random", FALSE, kind="control"), *beats("slow-4", "slow-reversed", FALSE, kind="control"),
         *beats("mdpo", "noisy-100", FALSE, kind="paper"), *beats("noisy-100", "initial", FALSE, kind="paper"),
         *beats("oracle", "mdpo", FALSE, kind="control"), *beats("attributes", "mdpo", FALSE),
         *close("as good as", "mdpo", "random", FALSE)],
        orders=("initial", "random", AUTO, "attributes", "noisy-100", "ig-initial", "ig")),
    "own": Study(
        "Levels of the model's own answers", "When does preference beat supervised training?", NONE,
        {"clean": ("clean base", None), "clean-sft": ("supervised, standard answers", None),
         "best-attributes": ("supervised, best own answer (symmetric + attributes)", None),
         "own-attributes": ("own, symmetric + attributes", None), "own-symmetric": ("own, symmetric", None),
         "own-recall": ("own, auto-check (recall)", None), "own-random": ("own, random order", None),
         "own-reversed": ("own, auto-check reversed", None),
         "own-claims": ("own, oracle: true - 2 false claims (bound)", None),
         "best-claims": ("supervised, best own answer by the oracle (bound)", None),
         "own-standard": ("standard answer + 3 own, symmetric + attributes", None),
         "base": ("careless base", None), "careless-own": ("careless base: own, symmetric + attributes", None)},
        [*beats("own-attributes", "clean-sft", FALSE, CHAIR), *beats("own-attributes", "best-attributes", FALSE, CHAIR),
         *close("not worse", "own-attributes", "clean-sft", POPE, COVERAGE), *beats("own-symmetric", "clean-sft", CHAIR),
         *close("not worse", "own-symmetric", "clean-sft", COVERAGE), *beats("own-symmetric", "own-recall", CHAIR),
         *beats("own-recall", "own-symmetric", COVERAGE), *beats("own-recall", "own-random", COVERAGE, kind="control"),
         *beats("own-recall", "own-reversed", COVERAGE, kind="control"),
         *beats("own-attributes", "own-random", FALSE, kind="control"), *beats("own-attributes", "clean", FALSE),
         *beats("own-claims", "clean-sft", FALSE, kind="control"), *beats("own-claims", "best-claims", FALSE),
         *beats("own-claims", "own-attributes", FALSE, kind="control"), *beats("own-attributes", "own-standard", FALSE),
         *beats("careless-own", "base", FALSE)],
        orders=("clean-own-recall", "clean-own-symmetric", "clean-own-attributes")),
    "controls": Study(
        "MDPO and supervised training, in two regimes", "Does MDPO beat supervised training on the standard answers?",
        "MRHal score / hallucination rate, cumulative",
        {"base": ("careless base", "3.38 / .32"), "sft": ("supervised, standard answers", None),
         "slow-2": ("binary DPO, no penalty", None), "mdpo": (MDPO, "4.07 / .20"),
         "clean": ("clean base", None), "clean-sft": ("clean base: supervised", None),
         "clean-mdpo": ("clean base: MDPO, K = 4", None)},
        [*beats("mdpo", "sft", FALSE, CHAIR), *beats("clean-mdpo", "clean-sft", FALSE, CHAIR),
         *beats("mdpo", "base", FALSE, POPE, ROUNDS, kind="paper"), *beats("mdpo", "slow-2", FALSE),
         *beats("clean-sft", "clean", FALSE), *close("as good as", "mdpo", "sft", FALSE),
         *close("as good as", "clean-mdpo", "clean-sft", FALSE)]),
    "penalty": Study(
        "The penalty of Eq. 6 and 7", "What does the penalty do, and how large should it be?", "no table; section 3",
        {**{f"penalty-{size}": (f"penalty {size}", None) for size in PENALTIES},
         "slow-4": ("no penalty, DPO's rate", None), "penalty-all": ("on every pair's winner", None),
         "mdpo": ("MDPO as in the demo: on the best answer", None)},
        [*beats("penalty-1", "penalty-0", FALSE, POPE, kind="paper"), *beats("penalty-0.1", "penalty-1", FALSE),
         *beats("penalty-1", "penalty-5", FALSE), *beats("mdpo", "slow-4", FALSE, kind="paper"),
         *beats("mdpo", "penalty-all", FALSE, kind="paper")]),
    "table4": Study(
        "Table 4: which pairs", "Which pairs of levels teach most?", SCORES,
        {"s-b": ("S>B", "2.50 / .50"), "k2": ("S>A", "2.61 / .51"), "s-a-b": ("S>A, A>B", "2.68 / .43"),
         "k3": ("S>A, A>B + cross-level", "2.79 / .44"), "s-a-b-c": ("S>A, A>B, B>C", "2.85 / .40"),
         "mdpo": ("S>A, A>B, B>C + cross-level", "3.17 / .35"), "a-c": ("A>C", "2.33 / .57"),
         "b-c": ("B>C", "2.45 / .51")},
        # Not tested: S>A over S>B, and cross-level on S>A, A>B, where the paper's two figures point in opposite ways.
        [*beats("mdpo", "s-a-b-c", FALSE, kind="paper"), *beats("s-a-b-c", "s-a-b", FALSE, kind="paper"),
         *beats("s-a-b", "k2", FALSE, kind="paper"), *beats("mdpo", "s-b", FALSE, kind="paper"),
         *beats("k2", "b-c", FALSE, kind="paper"), *beats("b-c", "a-c", FALSE, kind="paper")]),
    "table6": Study(
        "Table 6: other losses over a ranking, and levels made by perturbation", "Is MDPO's loss the best for a ranking?",
        SCORES, {"mdpo": ("MDPO", "3.17 / .35"), "kwise": ("K-wise MLE", "2.96 / .41"), "pro": ("PRO", "3.01 / .38"),
                 "perturb": ("MDPO on perturbed answers", "2.83 / .46")},
        [*beats("mdpo", "kwise", FALSE, kind="paper"), *beats("mdpo", "pro", FALSE, kind="paper"),
         *beats("mdpo", "perturb", FALSE, kind="paper")]),
    "figure4": Study(
        "Figure 4: rankings replaced by an annotator's", "Do more of an annotator's rankings mean more hallucination?",
        "curves without printed figures", {name: (f"{share} % replaced", None) for name, share in FIGURE4.items()},
        # The slope from 0 to 100 %: weights that add up to 0 and rise by 1 with the share replaced.
        [Claim("false claims rise with the share replaced", {name: (50 - share) * 100 / 5800 for name, share in
                                                             FIGURE4.items()}, FALSE, "paper")]),
    "ig": Study(
        "Table 5: incremental generation (IG)", "Do subsets of the data make as good levels as sizes of the model?", SCORES,
        {"mdpo": ("MEG: auto-check", "3.17 / .35"), "ig": ("IG: auto-check", "3.12 / .41"),
         "ig-initial": ("IG: initial order", "2.80 / .48")},
        [*beats("mdpo", "ig", FALSE, kind="paper"), *beats("ig", "ig-initial", FALSE, kind="paper"),
         *close("as good as", "mdpo", "ig", FALSE)]),
    "few": Study(
        "Few standard answers", "Do levels help more where standard answers are scarce?", NONE,
        {"few-5-sft": ("5 %: supervised", None), "few-5-mdpo": ("5 %: MDPO", None),
         "few-25-sft": ("25 %: supervised", None), "few-25-mdpo": ("25 %: MDPO", None),
         "sft": ("100 %: supervised", None), "mdpo": ("100 %: MDPO", None)},
        [*beats("few-5-mdpo", "few-5-sft", FALSE), *beats("few-25-mdpo", "few-25-sft", FALSE),
         *beats("sft", "few-5-sft", FALSE, kind="control")]),
    "dial": Study(
        "From a clean to a careless base", "Does MDPO's advantage depend on what the standard answers can still teach?", NONE,
        {**{name: (f"{steps} the careless steps: {how}", None) for steps, names in
            (("no", ("clean", "clean-sft", "clean-mdpo")), ("half", ("half-base", "half-sft", "half-mdpo")),
             ("all", ("base", "sft", "mdpo")), ("twice", ("double-base", "double-sft", "double-mdpo")))
            for name, how in zip(names, ("base", "supervised", "MDPO"))}},
        [Claim("MDPO's advantage over supervised training is larger on the careless base than on the clean one",
               {"mdpo": 1, "sft": -1, "clean-mdpo": -1, "clean-sft": 1}, FALSE, "ours"),
         *beats("half-mdpo", "half-sft", FALSE), *beats("double-mdpo", "double-sft", FALSE)]),
}
