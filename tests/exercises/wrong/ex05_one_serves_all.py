"""Fault: a generated chunk that was taken stays in the game.

Loses: test_length_and_exchange_change_nothing test_one_chunk_serves_once
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
        S[m] = -2
    return taken


def f1(standard, generated, threshold=0.85):
    both = len(standard) + len(generated)
    return 2 * len(matches(standard, generated, threshold)) / both if both else 0.0
