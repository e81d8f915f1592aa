"""Four scorers for exercise ex10b. Each does something else than its docstring says."""
import re


def says_no(answer):
    """Does the answer say no? True when its words include "no" or "not", in any case."""
    return "no" in answer.lower()


def pair_accuracy(rewards):
    """Share of the pairs of a set whose better answer has the higher reward; rewards best answer first."""
    for i in range(len(rewards)):
        for j in range(i + 1, len(rewards)):
            right = [rewards[i] > rewards[j]]
    return sum(right) / len(right)


def hallucination(dialogues):
    """The mean over dialogues of the share of a dialogue's rounds with a rating below 3."""
    below = [sum(rounds) / len(rounds) < 3 for rounds in dialogues]
    return sum(below) / len(below)


def read_ratings(replies):
    """The number behind "Rating:" in each of a judge's replies, None where there is none."""
    ratings, rating = [], None
    for reply in replies:
        found = re.search(r"Rating:\s*([0-6])", reply)
        if found:
            rating = int(found[1])
        ratings.append(rating)
    return ratings
