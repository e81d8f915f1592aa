"""ex10b (chapter 10): find the fault in four scorers

Goal          tests/exercises/scorers.py holds four short scorers that each do something else than they say. Three of
              the faults are in the paper's released code. Find each and prove it with the smallest input that shows it.
Deliverable   four functions without arguments, below: each returns one input on which the scorer is wrong
Points        12
Time          60 minutes
Hardware      any CPU, under a second
Expected      the smallest inputs: 1 word, 3 rewards, 2 ratings, 2 replies
Check         pytest tests/exercises -m ex10b --student my

Hints, each says more than the one before
1. Read what the docstring promises, then do by hand what the code does, on the smallest input that is not trivial.
2. For each line ask: what would have to be in the input for this line to matter?
3. says_no: which words contain other words? pair_accuracy: which variables still exist after a loop? hallucination:
   is the share of an average the average of the shares? read_ratings: what does a failed search leave behind?
"""


def breaks_says_no():
    """A str of one word that scorers.says_no gets wrong."""
    raise NotImplementedError


def breaks_pair_accuracy():
    """A list of 3 numbers, the rewards of one set, best first, that scorers.pair_accuracy gets wrong."""
    raise NotImplementedError


def breaks_hallucination():
    """Dialogues (a list of lists of ratings 0-6) with 2 ratings in all that scorers.hallucination gets wrong."""
    raise NotImplementedError


def breaks_read_ratings():
    """A list of 2 replies (str) that scorers.read_ratings gets wrong."""
    raise NotImplementedError
