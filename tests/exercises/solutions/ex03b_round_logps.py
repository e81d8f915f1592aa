import torch


def round_logps(token_logps, rounds, R):
    belongs = rounds.unsqueeze(-1) == torch.arange(1, R + 1)         # (B,T,R)
    clean = token_logps.where(rounds > 0, 0.0).unsqueeze(-1)         # (B,T,1) before any product: 0 * -inf is NaN
    return (clean * belongs).sum(1) / belongs.sum(1).clamp(min=1)    # (B,R)
