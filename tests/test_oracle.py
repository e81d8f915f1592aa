"""The exact judge on one scene made by hand: what it reads, what it finds false and where, and MMHal's scale."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_min.world import oracle

SCENE = {"theme": "street", "groups": [
    {"kind": "car", "color": "red", "size": "large", "cells": [[2, 0]]},                     # at the bottom left
    {"kind": "tree", "color": "green", "size": "small", "cells": [[0, 1], [0, 2]]},          # two, at the top
    {"kind": "sun", "color": "blue", "size": "small", "cells": [[1, 1]]}]}                   # in the middle
STANDARD = "The image shows a large red car at the bottom left. There are two small green trees at the top."


def found(text):
    return [claim[:3] for claim in oracle.claims(text)]


@pytest.mark.parametrize("text, claims", [
    ("a large red car", [("car", "exists", True), ("car", "size", "large"), ("car", "color", "red")]),
    ("There are two small green trees at the top.",
     [("tree", "exists", True), ("tree", "number", 2), ("tree", "size", "small"), ("tree", "color", "green"), ("tree", "place", "at the top")]),
    ("at the top left there is a car at the top left.", [("car", "exists", True), ("car", "place of one", "at the top left")]),
    ("The car is below the trees.", [("car", "exists", True), ("car", "below", "tree"), ("tree", "exists", True)]),
    ("The trees are to the right of the car.",
     [("tree", "exists", True), ("tree", "to the right of", "car"), ("car", "exists", True)]),
    ("The car is red.", [("car", "exists", True), ("car", "color", "red")]),
    ("No, there is no cat.", [("cat", "absent", True)]),
    ("No, because there is no car or boat.", [("car", "absent", True), ("boat", "absent", True)]),
    ("no car or boat or tree, a cat", [("car", "absent", True), ("boat", "absent", True), ("tree", "absent", True), ("cat", "exists", True)]),
    ("a car or a boat", [("car", "exists", True), ("boat", "exists", True)]),
    ("A CAR. Three Suns", [("car", "exists", True), ("sun", "exists", True), ("sun", "number", 3)]),
    ("a carpet and a category, scarce", []),
    ("", []), ("Yes.", []),
])
def test_claims(text, claims):
    assert found(text) == claims


@pytest.mark.parametrize("text, wrong", [
    ("a large red car at the bottom left", []),
    ("a small red car", ["small"]),
    ("a large blue car at the top left", ["blue", "at the top left"]),
    ("There is a large black cat at the top.", ["a large black cat"]),           # absent: one falsehood, not four
    ("There are three trees.", ["three trees"]),
    ("The car is above the trees.", ["above"]),
    ("The car is below the sun, the car is to the left of the sun.", []),        # a row and a column apart: both hold
    ("The car is above the sun. The sun is to the left of the car.", ["above", "to the left of"]),
    ("The trees are to the right of the sun, the sun is above the trees", ["above"]),
    ("The trees are to the left of the trees.", []),                             # of itself: decides nothing
    ("a tree, an tree, trees", []),                                              # "a" says one at least, not how many
    ("a tree at the top right, one tree at the top, a tree at the top left", ["one tree", "at the top left"]),     # one of the two
    ("trees at the top right, the trees at the top", ["at the top right"]),      # speaks of both, and they are a row
    ("The car is above the cat.", ["the cat"]),                                  # a relation to nothing is not false twice
    ("There is no tree.", ["no tree"]),
    ("There is no cat or car.", [" or car"]),
    ("The sun is yellow.", ["yellow"]),
])
def test_false_spans_point_at_the_words(text, wrong):
    assert [text[start:end] for start, end in oracle.false_spans(text, SCENE)] == wrong


@pytest.mark.parametrize("text, counted", [
    ("", {}),
    ("a small red car", {"objects": [0, 1], "sizes": [1, 1], "colors": [0, 1]}),
    ("a small red car and a small red car", {"objects": [0, 2], "sizes": [2, 2], "colors": [0, 2]}),     # said twice, read twice
    ("There is a large black cat at the top.", {"objects": [1, 1]}),             # of what is not there the rest is undecided
    ("No, there is no cat or sun. There are three trees in the middle.", {"objects": [1, 3], "numbers": [1, 1], "places": [1, 1]}),
    ("The car is above the sun.", {"objects": [0, 2], "relations": [1, 1]}),
    ("The car is above the cat.", {"objects": [1, 2]}),
])
def test_claims_are_tallied_by_what_they_are_about(text, counted):
    nothing = dict.fromkeys(["objects", "numbers", "sizes", "colors", "places", "relations"], [0, 0])
    assert oracle.tally(text, SCENE) == nothing | counted


def test_what_chair_counts():
    assert oracle.mentioned("A red car, two dogs; there is no cat or kite. The trees are green.") == {"car", "dog", "tree"}
    assert oracle.present(SCENE) == {"car", "tree", "sun"}


@pytest.mark.parametrize("answer, rating", [
    (STANDARD, 6),
    (STANDARD + " There is a small blue sun in the middle.", 6),         # more than asked for, and true
    ("The image shows a large red car. There are two small green trees.", 5),
    ("There is a car.", 4),
    ("There is a sun.", 3),
    ("", 3), ("I do not know.", 3),                                      # says nothing, and nothing false
    (STANDARD + " There is a cat.", 2),
    ("The image shows a large red car and two small green trees and a cat.", 2),
    ("There is a car and a cat.", 1),
    ("There is a cat.", 0),
])
def test_rating_scale(answer, rating):
    assert oracle.rating(answer, STANDARD, SCENE) == rating


@pytest.mark.parametrize("answer, standard, rating", [
    ("Yes, there is a car.", "Yes, there is a car.", 6),
    ("Yes.", "Yes, there is a car.", 3),                                 # right, but says nothing of it
    ("No.", "Yes, there is a car.", 0),                                  # a wrong yes or no is a hallucination
    ("Yes.", "No, there is no cat.", 0),
    ("Yes, there is a cat.", "No, there is no cat.", 0),
    ("No, there is no cat.", "No, there is no cat.", 6),
    ("There is no cat.", "No, there is no cat.", 6),                     # without the word, but the same claim
    (" yes, there is no cat.", "No, there is no cat.", 2),
])
def test_yes_and_no(answer, standard, rating):
    assert oracle.rating(answer, standard, SCENE) == rating


def test_row_ratings_and_rounds():
    assert oracle.row_ratings([STANDARD, ""], [STANDARD, STANDARD], SCENE) == [6, 3]
    with pytest.raises(ValueError):
        oracle.row_ratings([STANDARD], [STANDARD, STANDARD], SCENE)


def row(*answers):
    return {"scene": SCENE, "responses": [{"source": "x", "answers": [answer]} for answer in answers]}


def test_order_quality():
    good, middle, bad = STANDARD, "There is a car.", "There is a cat."                       # 6, 4, 0
    best = oracle.order_quality([row(good, good, middle, bad)])
    assert best == {"agreement": 1.0, "inconsistency": 0.0, "told_apart": 1.0}
    worst = oracle.order_quality([row(good, bad, middle, good)])
    assert worst == {"agreement": 0.0, "inconsistency": 2 / 3, "told_apart": 1.0}
    ties = oracle.order_quality([row(good, middle, middle, bad), row(good, bad, bad)])       # pairs: 3 + 1, told apart: 2
    assert ties == {"agreement": 1.0, "inconsistency": 0.0, "told_apart": 0.5}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("a no the two red small car cars tree or and is at the top . Yes No, below cat in middle".split(" ")), max_size=30))
def test_spans_are_inside_and_ratings_on_the_scale(words):
    text = " ".join(words)
    counts = oracle.tally(text, SCENE).values()
    assert sum(false for false, _ in counts) == sum(oracle.is_true(claim, SCENE) is False for claim in oracle.claims(text))
    assert bool(oracle.false_spans(text, SCENE)) == any(false for false, _ in counts)    # the figure is what is red
    for claim in oracle.claims(text):
        assert claim.kind in text[claim.start:claim.end].lower() or claim.field not in ("exists", "absent")
        assert 0 <= claim.start < claim.end <= len(text)
    rating = oracle.rating(text, STANDARD, SCENE)
    assert 0 <= rating <= 6 and (rating >= 3 or oracle.false_spans(text, SCENE))


def test_spans_of_adjectives_are_where_the_words_stand():
    """Lower-casing can lengthen a text: the dotted capital I becomes two characters."""
    text = "\u0130\u0130 In red letters: a Small RED car."
    assert [text[c.start:c.end] for c in oracle.claims(text)] == ["a Small RED car", "Small", "RED"]


def test_a_scene_is_only_what_the_world_writes():
    scene = SCENE
    assert oracle.scene_of({"scene": scene}) is scene and oracle.scene_of({}) is None
    group = scene["groups"][0]
    for foreign in ["street", 3, [], {}, {"groups": None}, {"groups": ["car"]}, {"groups": [group | {"kind": "zebra"}]},
                    {"groups": [group | {"cells": []}]}, {"groups": [group | {"cells": [[0, 7]]}]}, {"groups": [group | {"kind": ["car"]}]}]:
        assert oracle.scene_of({"scene": foreign}) is None
