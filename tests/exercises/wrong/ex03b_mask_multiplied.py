"""Fault: the mask is multiplied in, and 0 * -inf is NaN.

Loses: test_what_is_not_scored_does_not_matter
"""
import torch


def round_logps(token_logps, rounds, R):
    belongs = rounds.unsqueeze(-1) == torch.arange(1, R + 1)         # (B,T,R)
    clean = token_logps.unsqueeze(-1)                                # (B,T,1)
    return (clean * belongs).sum(1) / belongs.sum(1).clamp(min=1)    # (B,R)
