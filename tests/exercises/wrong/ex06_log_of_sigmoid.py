"""Fault: log(sigmoid(h)), which is -inf for large margins.

Loses: test_large_margins_stay_finite
"""
import math

import torch


def smoothed_dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, epsilon=0.1):
    h = beta * ((policy_chosen - ref_chosen.detach()) - (policy_rejected - ref_rejected.detach()))
    return -(1 - epsilon) * torch.sigmoid(h).log() - epsilon * torch.sigmoid(-h).log()


def resting_margin(beta, epsilon):
    return math.log((1 - epsilon) / epsilon) / beta
