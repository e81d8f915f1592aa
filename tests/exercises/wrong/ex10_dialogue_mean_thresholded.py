"""Fault: a dialogue counts as hallucinated when its mean rating is below 3, as in the released code.

Loses: test_every_round_is_judged_by_itself test_expected_number test_gaps_are_left_out test_rounds_keep_their_weight
"""

def aggregate(dialogues, step=0.0):
    rated = [[(1 + step * t, r) for t, r in enumerate(rounds) if r is not None] for rounds in dialogues]
    rated = [rounds for rounds in rated if rounds]
    if not rated:
        raise ValueError("no round is rated")
    found = {}
    for name, value in (("score", lambda r: r), ("hallucination", lambda r: float(r < 3))):
        sums = [(sum(w * value(r) for w, r in rounds), sum(w for w, _ in rounds)) for rounds in rated]
        found[f"{name}_cumulative"] = sum(top for top, _ in sums) / sum(below for _, below in sums)
        found[f"{name}_mean"] = sum(top / below for top, below in sums) / len(sums)
        if name == "hallucination":
            means = [sum(w * r for w, r in rounds) / sum(w for w, _ in rounds) for rounds in rated]
            found["hallucination_mean"] = sum(mean < 3 for mean in means) / len(means)
    return found
