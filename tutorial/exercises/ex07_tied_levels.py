"""ex07 (chapter 7): MDPO when some answers are equally good

Goal          The auto-check often gives two answers the same accuracy and score. Eq. 7 would still call one of them the
              winner. Write MDPO over levels with ties: compare only what differs, and penalize only for the best.
Deliverable   tied_mdpo(), below
Points        16
Time          75 minutes
Hardware      any CPU, under a second
Expected      K = 4 with levels 0, 1, 1, 2 at policy = reference: 5 of the 6 pairs count, so 5 ln 2 = 3.4657
Check         pytest tests/exercises -m ex07 --student my

Hints, each says more than the one before
1. A (B,K,K) tensor of all ordered pairs has every margin you need; a mask says which of them count.
2. counts[b, i, j] = levels[b, i] < levels[b, j]. The columns are not sorted, so i < j means nothing.
3. The penalty of a pair that counts is there when its winner i is on the lowest level of its row. Sum the pairs of a
   row first; the mean over rows comes last, and a row without pairs is a row.
"""


def tied_mdpo(policy, ref, levels, beta=0.1, penalty=1.0):
    """Eq. 7 over levels with ties.

    policy (B,K), ref (B,K): summed log-probs of the answers, in any order. levels (B,K) of int: 0 is best, equal
    numbers are tied; the lowest of a row need not be 0. In a row, every pair (i, j) with levels[i] < levels[j] adds
        -log sigma(beta * (r_i - r_j))  -  penalty * r_i  if i is on the row's lowest level,     r = policy - ref
    and the loss is the mean over the B rows of these sums; a row with all answers tied adds 0.
    Returns a scalar. No gradient reaches the reference.
    """
    raise NotImplementedError
