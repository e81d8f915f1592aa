"""ex03b (chapter 3): one mean for each round of a dialogue

Goal          Dialogues in a batch have different numbers of rounds, and the positions that nobody scores may hold
              anything, even -inf. Average round by round without letting one bad number into the result or its
              gradient.
Deliverable   round_logps(), below
Points        7
Time          30 minutes
Hardware      any CPU, under a second
Expected      the example in the docstring: [[-2.0, -4.0, 0.0]]
Check         pytest tests/exercises -m ex03b --student my

Hints, each says more than the one before
1. What is 0 * -inf? What is its gradient?
2. torch.where, before anything is multiplied or summed, keeps both out.
3. Compare rounds (B,T,1) with arange(1, R+1): the result (B,T,R) says which token belongs to which round.
"""


def round_logps(token_logps, rounds, R):
    """Mean log-prob per token of every round.

    token_logps (B,T) of float: log-prob of each token; anything, -inf and NaN included, where rounds is 0.
    rounds (B,T) of int: 0 where nothing is scored, else the round 1 … R that the token answers in. R: most rounds.
    Returns (B,R): the mean over the round's own tokens, and 0.0 for a round that the dialogue does not have.
    The gradient is 1/n for each of a round's n tokens and exactly 0 everywhere else.

    round_logps([[-9.0, -1.0, -3.0, -4.0]], [[0, 1, 1, 2]], 3) -> [[-2.0, -4.0, 0.0]]      (as tensors)
    """
    raise NotImplementedError
