"""ex08 (chapter 8): accumulate a window whose parts are not equal

Goal          A window of rows is too large for the memory, so it is run in micro-batches and the gradients add up. The
              last micro-batch is short, and rows have different numbers of tokens. Make the sum of the parts equal the
              whole: the mean per token over the window.
Deliverable   scales() and accumulate(), below
Points        10
Time          40 minutes
Hardware      any CPU, under a second
Expected      tokens 3, 1, 4, 1, 5 in micro-batches of 2: scales 4/14, 5/14, 5/14
Check         pytest tests/exercises -m ex08 --student my

Hints, each says more than the one before
1. (mean over the window) = sum over micro-batches of (its mean) * (its tokens) / (the window's tokens).
2. Dividing each loss by the number of micro-batches is right only when all have the same number of tokens.
3. backward() adds to .grad by itself. Call it once for each micro-batch, on the scaled loss, so that only one
   micro-batch's graph is in memory at a time.
"""


def scales(tokens, micro):
    """What to multiply each micro-batch's own mean loss per token with, so that the gradients add up to the window's.

    tokens: each row's number of scored tokens, a list of int >= 1. micro: rows of a micro-batch; the last may be short.
    Returns a list of floats, one for each micro-batch. Raises ValueError for micro < 1.
    """
    raise NotImplementedError


def accumulate(w, x, y, tokens, micro):
    """Loss and gradient of a window, one micro-batch at a time.

    w (D,), x (N,D), y (N,) of float; tokens (N,) of int. Row n has the loss (x[n] . w - y[n]) ** 2 for each of its
    tokens[n] tokens; the window's loss is the mean over all tokens of all rows.
    Returns (loss, gradient): a float and a tensor (D,). Leaves w and its .grad as they were.
    """
    raise NotImplementedError
