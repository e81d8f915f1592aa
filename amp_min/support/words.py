"""Worse sentences by changing words: the perturbed levels of generate.py.

The paper changes nouns, adjectives, prepositions and numerals at random. Here a word gives way to another of the
same part of speech and form, a plural to a plural (spaCy's fine-grained tag), drawn from the answers at hand: so
a sentence stays a sentence.
"""

from collections import defaultdict

CHANGED = {"NOUN", "PROPN", "ADJ", "ADP", "NUM"}      # spaCy's names; ADP is a preposition


def stock_of(docs):
    """The changeable words of parsed texts by their tag, to draw replacements from: {tag: [word, ...]}."""
    found = defaultdict(set)
    for doc in docs:
        for token in doc:
            if token.pos_ in CHANGED:
                found[token.tag_].add(token.text)
    return {tag: sorted(words) for tag, words in found.items()}         # sorted: a set has no order to repeat


def changed(doc, share, stock, rng):
    """A parsed text with `share` of its changeable words replaced, at least one. rng: random.Random."""
    able = [token for token in doc if token.pos_ in CHANGED and len(stock.get(token.tag_, ())) > 1]
    chosen = {token.i for token in rng.sample(able, min(len(able), max(1, round(share * len(able)))))}
    other = lambda token: rng.choice([word for word in stock[token.tag_] if word != token.text])
    return "".join((other(token) if token.i in chosen else token.text) + token.whitespace_ for token in doc)
