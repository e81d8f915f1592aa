"""Fault: each standard chunk in turn takes its best free one: not the best pair of all.

Loses: test_best_pair_is_taken_first test_length_and_exchange_change_nothing
"""
import torch.nn.functional as F


def matches(standard, generated, threshold=0.85):
    if len(standard) == 0 or len(generated) == 0:
        return []
    S = F.normalize(standard, dim=1) @ F.normalize(generated, dim=1).T   # (M,N)
    taken = []
    for m in range(len(S)):
        n = int(S[m].argmax())
        if S[m, n] <= threshold:
            continue
        taken.append((m, n))
        S[m], S[:, n] = -2, -2
    return taken


def f1(standard, generated, threshold=0.85):
    both = len(standard) + len(generated)
    return 2 * len(matches(standard, generated, threshold)) / both if both else 0.0
