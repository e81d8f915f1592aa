"""Fault: R_1 is taken for the second best, as the printed indices suggest.

Loses: test_initial_ranking
"""

def check(K):
    if K < 3:
        raise ValueError(f"K = {K}: with fewer than 3 levels no model is fine-tuned")


def training_sets(sources, K):
    check(K)
    rows = {}
    for number, source in enumerate(sources):
        rows.setdefault(source, []).append(number)
    return [sorted(n for own in rows.values() for n in own[:len(own) * i // (K - 2)]) for i in range(1, K - 1)]


def best_first(K):
    check(K)
    return list(range(K))
