"""Fault: the reference is not detached.

Loses: test_no_gradient_in_the_reference
"""
import torch.nn.functional as F


def tied_mdpo(policy, ref, levels, beta=0.1, penalty=1.0):
    r = policy - ref                                            # (B,K)
    better = levels.unsqueeze(2) < levels.unsqueeze(1)                   # (B,K,K) i is better than j
    best = levels == levels.amin(dim=1, keepdim=True)                    # (B,K)
    pairs = -F.logsigmoid(beta * (r.unsqueeze(2) - r.unsqueeze(1)))      # (B,K,K)
    pairs = pairs - penalty * (r * best).unsqueeze(2)
    return (pairs * better).sum(dim=(1, 2)).mean()
