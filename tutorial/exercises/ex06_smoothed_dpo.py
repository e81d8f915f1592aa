"""ex06 (chapter 6): DPO when a label may be wrong

Goal          A share epsilon of the preference pairs is the wrong way round: in the paper, people who compared three
              answers contradicted themselves in 14.4 % of cases. Conservative DPO (Mitchell 2023) therefore asks for a
              probability of 1 - epsilon, not 1. Write it, and predict the margin at which it stops pushing.
Deliverable   smoothed_dpo() and resting_margin(), below
Points        14
Time          60 minutes
Hardware      any CPU, under a second
Expected      ln 2 = 0.6931 at policy = reference whatever epsilon is; resting_margin(0.1, 0.1) = ln 9 / 0.1 = 21.972
Check         pytest tests/exercises -m ex06 --student my

Hints, each says more than the one before
1. With probability epsilon the pair should have been swapped. Write the expected loss: two terms.
2. 1 - sigma(h) = sigma(-h). And log(sigma(h)) is -inf at h = -800 while logsigmoid(h) is -800.
3. The gradient in h is epsilon - sigma(-h). Where is it 0? Then go back from h to the margin.
"""


def smoothed_dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, epsilon=0.1):
    """Expected DPO loss when chosen and rejected are exchanged with probability epsilon.

    Four tensors of log-probs (B,), summed over tokens; with h = beta * ((policy_chosen - ref_chosen) -
    (policy_rejected - ref_rejected)) the loss is (1 - epsilon) * -log sigma(h) + epsilon * -log sigma(-h).
    Returns (B,), finite for any finite input. No gradient reaches the reference.
    """
    raise NotImplementedError


def resting_margin(beta, epsilon):
    """The margin (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected) with the smallest loss, as a float.

    beta > 0; 0 < epsilon < 1. In nats, before beta is applied. Plain mathematics: no training, no search.
    """
    raise NotImplementedError
