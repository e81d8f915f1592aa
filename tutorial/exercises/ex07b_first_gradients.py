"""ex07b (chapter 7): predict the first step

Goal          Before any training you can say, exactly, which answers the first step pushes, how hard, and how much of
              it is the penalty. Here every pair is weighted by its distance: the best against the worst counts most.
Deliverable   first_gradients(), penalty_ratio() and unmoved(), below. Exact fractions, so no torch.
Points        12
Time          60 minutes, 45 of them on paper
Hardware      pencil; any CPU, under a second
Expected      penalty_ratio(2, 1/10, 1) = 20, the 2/beta of binary DPO-P; but penalty_ratio(4, 1/10, 1) = 10
Check         pytest tests/exercises -m ex07b --student my

Hints, each says more than the one before
1. At policy = ref every margin is 0. What is the derivative of -log sigma(x) there?
2. Answer k gets one term from each pair that it wins and one from each that it loses. Add up the distances.
3. Sum of (j - k) over j > k is (K-1-k)(K-k)/2; sum of (k - i) over i < k is k(k+1)/2.
"""


def first_gradients(K, beta, penalty):
    """The gradient of the loss in each policy log-prob, at policy = ref, for one preference set.

    L = sum over i < j of (j - i) * -log sigma(beta * (r_i - r_j))  -  penalty * sum over j = 1 … K-1 of r_0
    with r_k = policy_k - ref_k: Eq. 7 with weighted pairs; the penalty is not weighted.
    K: int >= 2; beta, penalty: fractions.Fraction. Returns a list of K Fractions, dL/dpolicy_k.
    """
    raise NotImplementedError


def penalty_ratio(K, beta, penalty):
    """How many times larger than the pairs' gradient on the best answer is the penalty's? A Fraction."""
    raise NotImplementedError


def unmoved(K):
    """The answers that get no gradient at first, as a list of indices k; [] when all do. (With or without penalty.)"""
    raise NotImplementedError
