"""Worse sentences by changing words: the perturbed levels of generate.py.

The paper changes nouns, adjectives, prepositions and numerals at random. Here a word gives way to another of
the same part of speech and form, a plural to a plural (spaCy's fine-grained tag), drawn from the answers at
hand: so a sentence stays a sentence.
"""

import random
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


def levels(docs, shares, stock, seed):
    """A row's parsed answers with a share of their changeable words replaced: {"perturb-10": texts, ...}.

    The share is of all rounds together, and one word at least: one word a round would be most of a dialogue
    of short answers. A level equal to another one is drawn anew, 20 times, for there may be no other.
    """
    able = [token for doc in docs for token in doc
            if token.pos_ in CHANGED and len(stock.get(token.tag_, ())) > 1]
    made = {"standard": [doc.text for doc in docs]}
    for share in shares:
        # Every level of a row has random numbers of its own: an interruption changes no other's.
        rng, count = random.Random(f"{seed} {share}"), min(len(able), max(1, round(share * len(able))))
        for _ in range(20):
            new = {token: rng.choice([word for word in stock[token.tag_] if word != token.text])
                   for token in rng.sample(able, count)}
            texts = ["".join(written(token, new) + token.whitespace_ for token in doc) for doc in docs]
            if texts not in made.values():
                break
        made[f"perturb-{share:.0%}".rstrip("%")] = texts
    del made["standard"]
    return made


def written(token, new):
    """A token or what takes its place; an article follows a changed word: "a cat" becomes "an owl"."""
    after = token.nbor() if token.i + 1 < len(token.doc) else None
    if token.lower_ in ("a", "an") and after in new:
        return token.text[0] + "n" * (new[after][0].lower() in "aeiou")
    return new.get(token, token.text)
