"""Fault: of two tied answers the one in front wins.

Loses: test_all_tied_adds_nothing test_expected_number test_order_of_the_columns_does_not_matter test_penalty_is_for_the_best_level test_tied_answers_are_not_compared
"""
import torch.nn.functional as F


def tied_mdpo(policy, ref, levels, beta=0.1, penalty=1.0):
    r = policy - ref.detach()                                            # (B,K)
    better = levels.unsqueeze(2) <= levels.unsqueeze(1)                  # (B,K,K) i is better than j
    better = better & ((levels.unsqueeze(2) < levels.unsqueeze(1)) | better.new_ones(better.shape).triu(1))
    best = levels == levels.amin(dim=1, keepdim=True)                    # (B,K)
    pairs = -F.logsigmoid(beta * (r.unsqueeze(2) - r.unsqueeze(1)))      # (B,K,K)
    pairs = pairs - penalty * (r * best).unsqueeze(2)
    return (pairs * better).sum(dim=(1, 2)).mean()
