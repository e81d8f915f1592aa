"""ex05 (chapter 5): a stricter check than the paper's

Goal          In Eq. 1-2 each standard chunk takes its best generated chunk: an invented chunk costs nothing, and one
              generated "a dog" serves three standard dogs. Match one to one instead, and charge for what is left over.
Deliverable   matches() and f1(), below
Points        10
Time          45 minutes
Hardware      any CPU, under a second
Expected      standard e1, e2 and generated e1, e1, e3 (unit vectors): one match, f1 = 2 * 1 / (2 + 3) = 0.4
Check         pytest tests/exercises -m ex05 --student my

Hints, each says more than the one before
1. One matrix of cosines; everything happens in it.
2. A pair that is taken removes its row and its column. Writing -2 over both will do.
3. argmax() of the flattened matrix, then divmod() by its width.
"""


def matches(standard, generated, threshold=0.85):
    """Greedy one-to-one matching by cosine.

    standard (M,D), generated (N,D) of float: features, of any length but never 0. Take the pair (m, n) with the largest
    cosine of all; then the largest among the rows and columns that are still free; and so on, while it is strictly
    above the threshold. No two cosines are equal unless they are of equal rows.
    Returns a list of (m, n) in the order taken; [] when M or N is 0.
    """
    raise NotImplementedError


def f1(standard, generated, threshold=0.85):
    """2 * matched / (M + N), the harmonic mean of recall matched/M and precision matched/N. A float; 0.0 if M = N = 0."""
    raise NotImplementedError
