"""Rankings by others than the auto-check: chance, its reverse, an annotator who errs, the exact oracle as a
bound.

For experiments only: the oracle never ranks the training data of a method (amp_min/world/oracle.py).

The annotator stands where Table 5 and Fig. 4 have GPT-4V. Three answers that it compared pairwise came out
contradictory (A>B, B>C, C>A) in 11.95 % of cases, people's in 14.40 %. Ours knows the oracle's order and errs
in each comparison, independently, with probability e. Of the eight outcomes of three comparisons two are
contradictory: only the outer pair wrong, e (1-e)^2, or only the two inner ones, e^2 (1-e). Together e (1-e):
11.95 % mean e = 13.9 %.
"""

import math
import random
from itertools import combinations, pairwise

from amp_min import records
from amp_min.experiments import intervals
from amp_min.world import oracle


def comparison_error(contradictions):
    """e with e (1-e) = contradictions, e <= 1/2. Raises ValueError above 1/4: guessing makes no more."""
    if not 0 <= contradictions <= 0.25:
        raise ValueError(f"a share of {contradictions} contradictory triples: between 0 and 0.25 is possible")
    return (1 - math.sqrt(1 - 4 * contradictions)) / 2


ERROR = comparison_error(0.1195)        # GPT-4V's


def compare(n, error, rng):
    """All comparisons of n answers, 0 the best: {(i, j): the one called better}, i < j."""
    return {(i, j): j if rng.random() < error else i for i, j in combinations(range(n), 2)}


def noisy_order(n, error, rng):
    """Indices of n answers by the number of comparisons won; ties, as after a contradiction, fall at
    random."""
    won = list(compare(n, error, rng).values())
    return sorted(range(n), key=lambda i: (-won.count(i), rng.random()))


# ---- one row -----------------------------------------------------------------------------------------------

def reordered(row, order):
    """The row with its generated answers in another order: order[k] is the index, from 0, of the k-th
    best."""
    order = [0] + [1 + i for i in order]
    row = row | {"responses": [row["responses"][i] for i in order]}
    if "initial_order" in row:
        row["initial_order"] = [row["initial_order"][i] for i in order]
    return row


def by_rating(row):
    """How the oracle rates each generated answer, on evaluation's scale (0-6, summed over rounds)."""
    standard, *generated = [response["answers"] for response in row["responses"]]
    return [sum(oracle.row_ratings(answers, standard, row["scene"])) for answers in generated]


def by_claims(row):
    """True minus twice false claims: a rating of 0-6 cannot tell one false claim from five."""
    told = [[oracle.is_true(claim, row["scene"]) for text in response["answers"]
             for claim in oracle.claims(text)] for response in row["responses"][1:]]
    return [truths.count(True) - 2 * truths.count(False) for truths in told]


def best_first(row, values):
    """The row by these values; answers that have the same stay in the order they had."""
    return reordered(row, sorted(range(len(values)), key=lambda i: -values[i]))


# ---- a file of rows ----------------------------------------------------------------------------------------

def replaced(rows, share, error, seed):
    """The rows, a random share of them (to the nearest row) ranked by the annotator instead."""
    rng = random.Random(f"{seed} annotator")
    # The same rng for every share, so that the rows replaced at 30 % are among those at 70 %.
    chosen = set(rng.sample(range(len(rows)), len(rows))[:round(share * len(rows))])
    for at, row in enumerate(rows):
        order = noisy_order(len(row["responses"]) - 1, error, rng)
        yield reordered(best_first(row, by_rating(row)), order) if at in chosen else row


def changed(rows, how, seed=0):
    """Rows ranked by someone else: "random", "reversed", "oracle", "claims", "noisy-30" (percent); or "few-5"
    of them."""
    rows, rng = list(rows), random.Random(f"{seed} {how}")
    how, _, percent = how.partition("-")
    if how == "noisy":
        return replaced(rows, int(percent) / 100, ERROR, seed)
    if how == "few":                                    # the few are among the more
        n = max(1, round(int(percent) * len(rows) / 100))
        return random.Random(f"{seed} few").sample(rows, len(rows))[:n]
    value = {"oracle": by_rating, "claims": by_claims,
             "reversed": lambda row: range(len(row["responses"]) - 1),
             "random": lambda row: [rng.random() for _ in row["responses"][1:]]}[how]
    return (best_first(row, value(row)) for row in rows)


# ---- how good is an order? ---------------------------------------------------------------------------------

def quality(path):
    """How the order in a file agrees with the oracle: (figures for a table, per row the share of adjacent
    pairs wrong).

    Descriptions and dialogues apart, and in dialogues the yes/no rounds: a check may live on one of them
    alone.
    """
    rows = list(records.read(path, "preference"))
    parts = {"": rows, "_descriptions": [row for row in rows if len(row["questions"]) == 1],
             "_dialogues": [row for row in rows if len(row["questions"]) > 1]}
    found = {key + name: value for name, part in parts.items() if part
             for key, value in oracle.order_quality(part).items()}
    # the standard answer left out
    wrong = [a < b for row in rows for a, b in pairwise(by_rating(row)) if a != b]
    right = [pair for row in rows for pair in yes_no_pairs(row)]
    found |= {"adjacent_wrong": sum(wrong) / max(1, len(wrong)),
              "yes_no": sum(right) / len(right) if right else None}
    return found, [[oracle.order_quality([row])["inconsistency"], 1] for row in rows]


def yes_no_pairs(row):
    """Of two answers to a yes/no question: does the check's evidence for that round agree with the oracle?"""
    standard, *generated = row["responses"]
    for t, answer in enumerate(standard["answers"]):
        if answer.split(",")[0] in ("Yes", "No") and all(response.get("evidence") for response in generated):
            rated = [oracle.rating(response["answers"][t], answer, row["scene"]) for response in generated]
            seen = [[sum(level) for level in zip(*response["evidence"][t]["levels"], strict=True)]
                    for response in generated]
            yield from ((rated[i] > rated[j]) == (seen[i] > seen[j])
                        for i, j in combinations(range(len(rated)), 2)
                        if rated[i] != rated[j] and seen[i] != seen[j])


def inconsistency_claims(wrong):
    """wrong: {ranking: (1, rows, 2)} -> claims on the share of adjacent pairs that the oracle orders the
    other way."""
    auto = wrong["auto-check"]
    wanted = [("at most 2.25 %", "2.25 %", "paper", auto * 0 + [0.0225, 1]),
              ("fewer than the initial order", "no figure", "ours", wrong["initial"]),
              ("fewer than an annotator", "2.25 % against 11.95 % (GPT-4V)", "paper", wrong["noisy-100"])]
    return [intervals.claim(f"auto-check's adjacent pairs inconsistent: {text}", paper, kind,
                            [(1, other), (-1, auto)]) for text, paper, kind, other in wanted]
