"""ex11 (chapter 11): several adapters on one layer

Goal          Put several low-rank adapters on one frozen layer, mix them with gates, scale them so that a larger rank
              does not weaken them (rank-stabilised LoRA, Kalajdzievski 2023: alpha / sqrt(r) where LoRA has alpha / r),
              and merge them away. Then count what LLaVA-1.5-7B would train.
Deliverable   forward(), merge() and trained(), below
Points        13
Time          60 minutes
Hardware      any CPU, under a second
Expected      LLaVA-1.5-7B at rank 64: 159,907,840 numbers are trained, of about 7 billion
Check         pytest tests/exercises -m ex11 --student my

Hints, each says more than the one before
1. (B A) x is B (A x): which of the two is cheap when r is small? Which one does merging need?
2. rank r is A.shape[0], and every adapter has its own.
3. bf16 keeps 8 significant bits. Add everything in float32 and round once, at the very end.
"""


def forward(x, W, adapters, alpha, gates):
    """y = W x + sum over adapters of gate * alpha / sqrt(r) * B (A x).

    x (...,in); W (out,in), frozen: no gradient reaches it. adapters: a list of (A (r,in), B (out,r)), ranks may differ;
    gates: as many floats. Returns (...,out), with gradient in x, A and B.
    """
    raise NotImplementedError


def merge(W, adapters, alpha, gates):
    """One matrix (out,in) that does the same as all of it, in W's dtype, W itself unchanged.

    W may be bfloat16 while A and B are float32: the sum is made in the wider of the two and rounded once.
    """
    raise NotImplementedError


def trained(shapes, layers, rank):
    """How many numbers adapters of this rank train.

    shapes: a list of (out, in), the adapted linear layers of one transformer block; layers: the number of blocks.
    """
    raise NotImplementedError
