"""Fault: the share of standard chunks that found a match, as in the paper.

Loses: test_expected_number test_invented_chunks_cost
"""
import torch.nn.functional as F


def matches(standard, generated, threshold=0.85):
    if len(standard) == 0 or len(generated) == 0:
        return []
    S = F.normalize(standard, dim=1) @ F.normalize(generated, dim=1).T   # (M,N)
    taken = []
    while S.max() > threshold:
        m, n = divmod(int(S.argmax()), S.shape[1])
        taken.append((m, n))
        S[m], S[:, n] = -2, -2
    return taken


def f1(standard, generated, threshold=0.85):
    both = len(standard) + len(generated)
    return len(matches(standard, generated, threshold)) / len(standard) if both else 0.0
