"""Fault: LoRA's alpha / r instead of alpha / sqrt(r).

Loses: test_gradient_reaches_adapters_only test_scale
"""
import torch


def forward(x, W, adapters, alpha, gates):
    y = x @ W.detach().T
    for (A, B), gate in zip(adapters, gates):
        y = y + gate * alpha / A.shape[0]  * (x @ A.T @ B.T)       # (...,r), then (...,out)
    return y


def merge(W, adapters, alpha, gates):
    merged = W.clone()
    for (A, B), gate in zip(adapters, gates):
        wide = torch.promote_types(merged.dtype, A.dtype)
        merged = merged.to(wide) + gate * alpha / A.shape[0]  * (B @ A).to(wide)
    return merged.to(W.dtype)


def trained(shapes, layers, rank):
    return layers * sum(rank * (out + size) for out, size in shapes)
