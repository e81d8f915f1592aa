"""ex03 (chapter 3): how likely is an answer, short or long?

Goal          Score the answer tokens of a batch and nothing else: not the prompt, not the padding, and each token from
              the position that predicts it. Then take the preference for short answers out of the sum, as much as you
              like: alpha = 0 is DPO's sum, alpha = 1 the mean per token.
Deliverable   predictors() and answer_logps(), below
Points        14
Time          60 minutes
Hardware      any CPU, under a second
Expected      all logits equal, V = 8, an answer of 5 tokens: -5 ln 8 = -10.3972 at alpha = 0 and -ln 8 = -2.0794 at 1
Check         pytest tests/exercises -m ex03 --student my

Hints, each says more than the one before
1. Write one row on paper: tokens above, roles below, and an arrow from each position to the token that it predicts.
2. logits[:, :-1] and ids[:, 1:] belong together. So do predictors(roles)[:, :-1] and (roles == 1)[:, 1:].
3. gather() must not meet the id -1. Put any valid id where nothing is scored, and throw its log-prob away with where().
"""


def predictors(roles):
    """At which positions does the model predict an answer token?

    roles (B,T) of int: 0 prompt or picture, 1 answer, -1 padding, on either side.
    Returns (B,T) of bool: true at t exactly when token t+1 is an answer token. So the last column is always false.
    Raises ValueError when an answer begins at position 0, where nothing predicts it.
    """
    raise NotImplementedError


def answer_logps(logits, ids, roles, alpha=0.0):
    """Log-prob of each row's answer, divided by (number of its tokens) ** alpha.

    logits (B,T,V) of float: logits[b, t] are the scores for token t+1. ids (B,T) of int: the tokens; where the role is
    not 1 they may be anything, -1 included. roles as above; each row has at least one answer token.
    Returns (B,): natural log, with gradient.
    """
    raise NotImplementedError
