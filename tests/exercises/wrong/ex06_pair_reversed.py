"""Fault: chosen and rejected are exchanged.

Loses: test_better_chosen_answer_lowers_the_loss test_gradient test_large_margins_stay_finite test_resting_margin
"""
import math

import torch.nn.functional as F


def smoothed_dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, epsilon=0.1):
    h = beta * ((policy_rejected - ref_rejected.detach()) - (policy_chosen - ref_chosen.detach()))
    return -(1 - epsilon) * F.logsigmoid(h) - epsilon * F.logsigmoid(-h)


def resting_margin(beta, epsilon):
    return math.log((1 - epsilon) / epsilon) / beta
