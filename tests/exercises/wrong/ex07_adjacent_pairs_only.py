"""Fault: a level is compared with the next one only.

Loses: test_expected_number test_penalty_is_for_the_best_level test_without_ties_it_is_eq_7
"""
import torch.nn.functional as F


def tied_mdpo(policy, ref, levels, beta=0.1, penalty=1.0):
    r = policy - ref.detach()                                            # (B,K)
    better = levels.unsqueeze(2) + 1 == levels.unsqueeze(1)                  # (B,K,K) i is better than j
    best = levels == levels.amin(dim=1, keepdim=True)                    # (B,K)
    pairs = -F.logsigmoid(beta * (r.unsqueeze(2) - r.unsqueeze(1)))      # (B,K,K)
    pairs = pairs - penalty * (r * best).unsqueeze(2)
    return (pairs * better).sum(dim=(1, 2)).mean()
