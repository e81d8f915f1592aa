"""Fault: merging ignores the gates.

Loses: test_merging_changes_nothing
"""
import torch


def forward(x, W, adapters, alpha, gates):
    y = x @ W.detach().T
    for (A, B), gate in zip(adapters, gates):
        y = y + gate * alpha / A.shape[0] ** 0.5 * (x @ A.T @ B.T)       # (...,r), then (...,out)
    return y


def merge(W, adapters, alpha, gates):
    merged = W.clone()
    for (A, B), gate in zip(adapters, gates):
        wide = torch.promote_types(merged.dtype, A.dtype)
        merged = merged.to(wide) + alpha / A.shape[0] ** 0.5 * (B @ A).to(wide)
    return merged.to(W.dtype)


def trained(shapes, layers, rank):
    return layers * sum(rank * (out + size) for out, size in shapes)
