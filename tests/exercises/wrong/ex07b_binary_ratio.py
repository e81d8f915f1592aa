"""Fault: 2 * penalty / beta, which is right for K = 2 alone.

Loses: test_expected_number test_ratio
"""
from fractions import Fraction


def pull(K, beta, k):
    """Each pair pushes its winner with -beta/2 and its loser with +beta/2, times the pair's distance."""
    wins, losses = (K - 1 - k) * (K - k) // 2, k * (k + 1) // 2
    return -beta / 2 * (wins - losses)


def first_gradients(K, beta, penalty):
    gradients = [pull(K, beta, k) for k in range(K)]
    gradients[0] -= penalty * (K - 1)
    return gradients


def penalty_ratio(K, beta, penalty):
    return 2 * penalty / beta


def unmoved(K):
    return [k for k in range(K) if pull(K, Fraction(1), k) == 0]
