"""Fault: the reference is not detached.

Loses: test_no_gradient_in_the_reference
"""
import math

import torch.nn.functional as F


def smoothed_dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, epsilon=0.1):
    h = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    return -(1 - epsilon) * F.logsigmoid(h) - epsilon * F.logsigmoid(-h)


def resting_margin(beta, epsilon):
    return math.log((1 - epsilon) / epsilon) / beta
