"""ex04 (chapter 4): the split of Algorithm 1, source by source, and its index trap

Goal          Incremental generation trains model M_i on S_i = F_1 + … + F_i. Cut so that every S_i has its fair share
              of every data source, then put the K answers in their initial order, where the printed indices mislead.
Deliverable   training_sets() and best_first(), below
Points        8
Time          30 minutes
Hardware      any CPU, under a second
Expected      10 rows of one source with K = 5: sets of 3, 6 and 10 rows; and best_first(5) begins with 0
Check         pytest tests/exercises -m ex04 --student my

Hints, each says more than the one before
1. With K levels there are K-2 fine-tuned models. Which of them has seen most?
2. Collect each source's row numbers first. S_i takes the first n * i // (K-2) of a source's n.
3. The weakest answer of all is not R_1 but that of the model before any fine-tuning. Which index has it?
"""


def training_sets(sources, K):
    """S_1 … S_{K-2} as lists of row numbers, rising.

    sources: the name of the data set that each row comes from. Of a source with n rows, S_i holds the first
    n * i // (K-2), in order of appearance. Raises ValueError for K < 3, where there is nothing to train.
    """
    raise NotImplementedError


def best_first(K):
    """The initial ranking of Algorithm 1's answers R_0 … R_{K-1}, as a list of their indices, best first.

    R_0 is the standard answer; R_i for i = 1 … K-2 is that of M_i, which was fine-tuned on S_i; R_{K-1} is that of M,
    the model before fine-tuning. Raises ValueError for K < 3.
    """
    raise NotImplementedError
