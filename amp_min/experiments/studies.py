"""What the paper claims, as rows to train and pairs of rows to compare.  Data only; experiments.py runs it.

A row is one training: which rankings it learns from, with whose learning rate, and train.py's other options.  A study
is one table of the paper: its rows, the paper's own figures, and the claims, each "this row is better than that one".
A row that stands in several tables is trained once.
"""

from itertools import combinations
from typing import NamedTuple

LETTERS = "SABC"        # Table 4's names of the levels, best first: the standard answer, then the generated, as ranked


def pairs(text):
    """Table 4's pairs as train.py's options: "S>A, A>B" -> "--levels 3 --pairs 0-1,1-2".

    "+ cross-level" adds every pair of the levels named.  Only the levels up to the worst one named are read.  Raises
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


class Training(NamedTuple):
    """One row.  Without rankings it is the model before preference training."""
    rankings: str | None = None         # experiments.prepare makes them
    rate: str = "mdpo"                  # whose learning rate of the demo's preset
    options: str = "--levels 4"


CONTRADICTIONS = 0.144                  # of three answers compared pairwise by people
TRAININGS = {
    "base": Training(),
    "sft": Training("auto-check", "sft", "--loss sft"),
    "dpo": Training("auto-check", "dpo", "--levels 2 --penalty 0"),
    "mdpo": Training("auto-check"),
    # Table 3: the K best answers of each set
    "k2": Training("auto-check", options="--levels 2"), "k3": Training("auto-check", options="--levels 3"),
    "k5": Training("auto-check", options="--levels 5"),
    # the penalty of Eq. 6
    "penalty-off": Training("auto-check", options="--levels 4 --penalty 0"),
    "penalty-off-slow": Training("auto-check", "dpo", "--levels 4 --penalty 0"),
    "penalty-all": Training("auto-check", options="--levels 4 --penalty-on all"),
    # Table 4.  S>A is k2, and S>A, A>B + cross-level is k3.  A>C and B>C hold no standard answer, so nothing that the
    # penalty could be on; the rate is DPO's, as wherever nothing holds the best answer up
    "s-b": Training("auto-check", options=pairs("S>B")), "s-a-b": Training("auto-check", options=pairs("S>A, A>B")),
    "s-a-b-c": Training("auto-check", options=pairs("S>A, A>B, B>C")),
    "a-c": Training("auto-check", "dpo", pairs("A>C")), "b-c": Training("auto-check", "dpo", pairs("B>C")),
    # Table 5
    "initial": Training("initial"), "symmetric": Training("symmetric"), "oracle": Training("oracle"),
    "noisy-100": Training("noisy-100"), "ig": Training("ig"), "ig-initial": Training("ig-initial"),
    # Fig. 4: that share of the auto-checked rankings replaced by the annotator's
    "noisy-30": Training("noisy-30"), "noisy-70": Training("noisy-70"),
    # Table 6.  K-wise has, like DPO, nothing that holds the best answer up: it takes DPO's rate
    "kwise": Training("auto-check", "dpo", "--levels 4 --loss kwise"),
    "pro": Training("auto-check", options="--levels 4 --loss pro"), "perturb": Training("perturb"),
}


class Study(NamedTuple):
    title: str
    figures: str                        # what the paper's figures are
    rows: dict                          # training -> (its name in the table, the paper's figures or None)
    claims: list                        # (better, worse): the paper, or the method, says that one row beats the other
    says: str = "no figure"             # the paper's word where it prints no figure
    orders: tuple = ()                  # rankings whose agreement with the oracle is shown too


SCORES = "MMHal score / hallucination rate"
AUTO = "auto-check, K = 4 (MDPO)"
# The most important first: interrupted, `all` has these.
STUDIES = {
    "controls": Study(
        "Before, and the controls", "MRHal score / hallucination rate, cumulative",
        {"base": ("base: no preference training", "3.38 / .32"), "sft": ("supervised, standard answers alone", None),
         "dpo": ("binary DPO, no penalty", None), "mdpo": ("MDPO, K = 4", "4.07 / .20")},
        [("mdpo", "base"), ("mdpo", "sft"), ("mdpo", "dpo")]),
    "table3": Study(
        "Table 3: how many levels", SCORES,
        {"k2": ("K = 2", "2.69 / .47"), "k3": ("K = 3", "2.88 / .42"), "mdpo": ("K = 4", "3.17 / .35"),
         "k5": ("K = 5", "2.96 / .41")},
        [("mdpo", "k2"), ("k3", "k2"), ("mdpo", "k3"), ("mdpo", "k5")]),
    "penalty": Study(
        "The penalty of Eq. 6 and 7", "no table; section 3",
        {"penalty-off": ("no penalty (Eq. 5), same learning rate", None),
         "penalty-off-slow": ("no penalty (Eq. 5), DPO's learning rate", None), "mdpo": ("penalty on the best answer (Eq. 7)", None),
         "penalty-all": ("penalty on every pair's winner", None)},
        [("mdpo", "penalty-off"), ("mdpo", "penalty-off-slow"), ("mdpo", "penalty-all")],
        says="with the penalty, and on the best answer alone"),
    "table5": Study(
        "Table 5: who ranks", SCORES,
        {"mdpo": (AUTO, "3.17 / .35"), "initial": ("initial order: larger model first", "2.79 / .49"),
         "noisy-100": ("annotator, 14.4 % contradictions (GPT-4V in the paper)", "2.87 / .44"),
         "symmetric": ("symmetric auto-check (ours)", None), "oracle": ("oracle (upper bound, ours)", None),
         "ig": ("IG: auto-check", "3.12 / .41"), "ig-initial": ("IG: initial order", "2.80 / .48")},
        [("mdpo", "initial"), ("mdpo", "noisy-100"), ("noisy-100", "initial"), ("ig", "ig-initial"), ("mdpo", "ig"),
         ("symmetric", "mdpo"), ("oracle", "mdpo")],
        orders=("initial", "auto-check", "symmetric", "symmetric-attributes", "noisy-100", "ig-initial", "ig")),
    "table4": Study(
        "Table 4: which pairs", SCORES,
        {"s-b": ("S>B", "2.50 / .50"), "k2": ("S>A", "2.61 / .51"), "s-a-b": ("S>A, A>B", "2.68 / .43"),
         "k3": ("S>A, A>B + cross-level", "2.79 / .44"), "s-a-b-c": ("S>A, A>B, B>C", "2.85 / .40"),
         "mdpo": ("S>A, A>B, B>C + cross-level", "3.17 / .35"), "a-c": ("A>C", "2.33 / .57"),
         "b-c": ("B>C", "2.45 / .51")},
        [("mdpo", "s-a-b-c"), ("k3", "s-a-b"), ("s-a-b", "k2"), ("s-a-b-c", "s-a-b"), ("k2", "s-b"), ("b-c", "a-c")]),
    "table6": Study(
        "Table 6: other losses over a ranking, and levels made by perturbation", SCORES,
        {"mdpo": ("MDPO", "3.17 / .35"), "kwise": ("K-wise MLE", "2.96 / .41"), "pro": ("PRO", "3.01 / .38"),
         "perturb": ("MDPO on perturbed answers", "2.83 / .46")},
        [("mdpo", "kwise"), ("mdpo", "pro"), ("mdpo", "perturb")]),
    "figure4": Study(
        "Figure 4: rankings replaced by an annotator's", "curves without printed figures",
        {"mdpo": ("0 % replaced", None), "noisy-30": ("30 %", None), "noisy-70": ("70 %", None),
         "noisy-100": ("100 %", None)},
        [("mdpo", "noisy-100"), ("mdpo", "noisy-30"), ("noisy-30", "noisy-70"), ("noisy-70", "noisy-100")],
        says="falls steadily"),
}
# The claims are decided on these, each alone: +1 more is better, -1 less is better.
DECIDING = {"chair_i_sampled": -1, "pope_accuracy": +1, "mrhal_score_cumulative": +1,
            "mrhal_hallucination_cumulative": -1}
