"""ex09 (chapter 9): share more than one prefix

Goal          packing.py shares one prefix among K answers. Here anything may be shared: a picture among its questions,
              a question among its answers. The segments form a tree, and a token sees its own branch up to the root.
Deliverable   visible(), positions() and predictors(), below
Points        15
Time          90 minutes
Hardware      any CPU, under a second
Expected      a prefix of 4 tokens with answers of 2 and 3: 39 pairs of 81 are visible
Check         pytest tests/exercises -m ex09 --student my

Hints, each says more than the one before
1. First a table over segments: is a an ancestor of s, or s itself? Follow the parents in a loop. Then index with it.
2. Backwards in the sequence and along the branch: both must hold. A token sees itself.
3. A segment's first position is its parent's first position plus its parent's length; the same recursion, one token
   back, says which token predicts its first.

Tokens T are given by segment (T,) of int: the number s = 0 … S-1 of the segment that the token belongs to, -1 for
padding. A segment's tokens stand together and every segment has at least one. parent: list of S ints, parent[s] < s,
or -1 for a root. There may be several roots. packing.py's example: segment 0 0 0 0 1 1 2 2 2 -1, parent [-1, 0, 0].
"""


def visible(segment, parent):
    """(T,T) of bool: true at (q, k) when token q sees token k.

    q sees k when k is not after q, and k's segment is q's or an ancestor of it. Padding sees itself alone, and nobody
    else sees it: a row without anything to see would become NaN in the softmax.
    """
    raise NotImplementedError


def positions(segment, parent):
    """(T,) of int: each token's position in the sequence from the root to its segment's end, from 0; padding 0."""
    raise NotImplementedError


def predictors(segment, parent):
    """(T,) of int: the index in the packed sequence of the token whose state predicts token t.

    That is the token before it in its own branch; -1 for the first token of a root and for padding.
    """
    raise NotImplementedError
