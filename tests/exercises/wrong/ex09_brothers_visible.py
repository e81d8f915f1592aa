"""Fault: plain causal attention: an answer sees the answers before it.

Loses: test_each_branch_is_an_ordinary_sequence test_expected_number test_picture
"""
import torch


def branch(parent):
    """(S,S) of bool: is a an ancestor of s, or s itself? Row s, column a."""
    found = torch.eye(len(parent), dtype=torch.bool)
    for s, p in enumerate(parent):                                   # parents come first, so their rows are complete
        if p >= 0:
            found[s] |= found[p]
    return found


def visible(segment, parent):
    t = torch.arange(len(segment))
    own = torch.eye(len(segment), dtype=torch.bool)
    real = segment >= 0
    related = real.unsqueeze(1) & real
    return own | (related & (t <= t.unsqueeze(1)))


def positions(segment, parent):
    start, found = {-1: 0}, torch.zeros_like(segment)
    for s, p in enumerate(parent):
        own = segment == s
        start[s] = start[p] + (int((segment == p).sum()) if p >= 0 else 0)
        found[own] = start[s] + torch.arange(int(own.sum()))
    return found


def predictors(segment, parent):
    found, last = torch.full_like(segment, -1), {-1: -1}
    for s, p in enumerate(parent):
        at = (segment == s).nonzero().flatten()
        found[at[0]], found[at[1:]] = last[p], at[:-1]
        last[s] = int(at[-1])
    return found
