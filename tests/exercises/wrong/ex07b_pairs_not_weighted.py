"""Fault: every pair counts the same.

Loses: test_expected_number test_gradients_are_those_of_the_first_step test_ratio
"""
from fractions import Fraction


def pull(K, beta, k):
    """Each pair pushes its winner with -beta/2 and its loser with +beta/2, times the pair's distance."""
    wins, losses = K - 1 - k, k
    return -beta / 2 * (wins - losses)


def first_gradients(K, beta, penalty):
    gradients = [pull(K, beta, k) for k in range(K)]
    gradients[0] -= penalty * (K - 1)
    return gradients


def penalty_ratio(K, beta, penalty):
    return penalty * (K - 1) / -pull(K, beta, 0)


def unmoved(K):
    return [k for k in range(K) if pull(K, Fraction(1), k) == 0]
