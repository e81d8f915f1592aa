"""ex10 (chapter 10): Eq. 8 when the judge did not answer

Goal          A judge's reply does not always parse. The released code then takes the rating before it once more;
              leaving the round out is honest. Write Eq. 8 with gaps, and with weights for later rounds.
Deliverable   aggregate(), below
Points        10
Time          40 minutes
Hardware      any CPU, under a second
Expected      [[6, 6, 0], [1]]: score 3.25 cumulative, 2.5 mean; hallucination 0.5 cumulative, 0.6667 mean
Check         pytest tests/exercises -m ex10 --student my

Hints, each says more than the one before
1. Turn each dialogue into a list of (weight, rating) without gaps. Four numbers follow from the same two sums.
2. "Hallucinated" is a number per round, 0 or 1, and is averaged exactly as the ratings are.
3. A round keeps its number t when the one before it is missing, so enumerate first and leave out afterwards.
"""


def aggregate(dialogues, step=0.0):
    """Cumulative and mean score and hallucination rate of rated dialogues.

    dialogues: a list of ratings each, by round: a number from 0 to 6, or None where the judge's reply did not parse.
    Round t = 0, 1, … of a dialogue weighs 1 + step * t. Unrated rounds are left out of every sum, and so are dialogues
    without any rated round. A rating below 3 means hallucinated.
    Returns a dict of floats. For x the ratings, and for x the indicator of hallucination:
        …_cumulative   sum of weight * x over all rounds of all dialogues / sum of those weights
        …_mean         the mean over dialogues of (sum of weight * x over its rounds / sum of its weights)
    with the keys score_cumulative, score_mean, hallucination_cumulative, hallucination_mean.
    Raises ValueError when no round at all is rated.
    """
    raise NotImplementedError
