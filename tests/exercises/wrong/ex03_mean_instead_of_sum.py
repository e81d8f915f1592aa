"""Fault: always the mean per token, whatever alpha.

Loses: test_expected_number test_gradient test_length_exponent
"""
import torch


def predictors(roles):
    if (roles[:, 0] == 1).any():
        raise ValueError("an answer begins at position 0, where nothing predicts it")
    next_is_answer = torch.zeros_like(roles, dtype=torch.bool)
    next_is_answer[:, :-1] = roles[:, 1:] == 1
    return next_is_answer


def answer_logps(logits, ids, roles, alpha=0.0):
    scored = predictors(roles)[:, :-1]                               # (B,T-1)
    targets = ids[:, 1:].where(scored, 0)
    logps = logits[:, :-1].log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return logps.where(scored, 0.0).sum(1) / scored.sum(1) ** 1
