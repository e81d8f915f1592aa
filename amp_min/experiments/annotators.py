"""Rankings by someone else than the auto-check: the exact oracle, and an annotator who errs.

For experiments only: the oracle never ranks the training data of a method (amp_min/world/oracle.py).

The annotator stands where the paper has people: three answers compared pairwise came out contradictory (A>B, B>C, C>A)
in 14.40 % of cases.  Ours knows the oracle's order and errs in each comparison, independently, with probability e.  Of
the eight outcomes of three comparisons two are contradictory: only the outer pair wrong, e (1-e)^2, or only the two
inner ones, e^2 (1-e).  Together e (1-e), so 14.40 % contradictions mean e = 17.4 %.
"""

import math
import random
from itertools import combinations

from amp_min import records
from amp_min.support import storage
from amp_min.world import oracle


def comparison_error(contradictions):
    """e with e (1-e) = contradictions, e <= 1/2.  Raises ValueError above 1/4: guessing makes no more."""
    if not 0 <= contradictions <= 0.25:
        raise ValueError(f"a share of {contradictions} contradictory triples: between 0 and 0.25 is possible")
    return (1 - math.sqrt(1 - 4 * contradictions)) / 2


def compare(n, error, rng):
    """All comparisons of n answers, 0 the best: {(i, j): the one called better}, i < j."""
    return {(i, j): j if rng.random() < error else i for i, j in combinations(range(n), 2)}


def ranking(n, error, rng):
    """Indices of n answers by the number of comparisons won; ties, as after a contradiction, fall at random."""
    won = list(compare(n, error, rng).values())
    return sorted(range(n), key=lambda i: (-won.count(i), rng.random()))


def reordered(row, order):
    """The row with its generated answers in another order: order[k] is the index, from 0, of the k-th best."""
    order = [0] + [1 + i for i in order]
    row = row | {"responses": [row["responses"][i] for i in order]}
    if "initial_order" in row:
        row["initial_order"] = [row["initial_order"][i] for i in order]
    return row


def by_oracle(row):
    """The row as the oracle ranks it; answers that it rates alike stay in the order they had."""
    standard, *generated = [response["answers"] for response in row["responses"]]
    rating = [sum(oracle.row_ratings(answers, standard, row["scene"])) for answers in generated]
    return reordered(row, sorted(range(len(rating)), key=lambda i: -rating[i]))


def replaced(rows, share, error, seed):
    """The rows, a random share of them (to the nearest row) ranked by the annotator instead."""
    rows, rng = list(rows), random.Random(f"{seed} annotator")
    # The same rng for every share, so that the rows replaced at 30 % are among those at 70 %.
    chosen = set(rng.sample(range(len(rows)), len(rows))[:round(share * len(rows))])
    for at, row in enumerate(rows):
        order = ranking(len(row["responses"]) - 1, error, rng)
        yield reordered(by_oracle(row), order) if at in chosen else row


def write(path, source, share, error, seed):
    """Preference rows re-ranked, from the auto-check's; share 1 with error 0 is the oracle's own ranking."""
    settings = {"share": share, "error": error, "seed": seed}
    with storage.Writer(path, settings, [source]) as out:
        for row in replaced(records.read(source, "preference"), share, error, seed):
            out.write(row)
