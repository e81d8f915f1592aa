"""Worse sentences by changing words: the perturbed levels of generate.py.

The paper changes nouns, adjectives, prepositions and numerals at random. Here a word gives way to another of
the same part of speech and form, a plural to a plural (spaCy's fine-grained tag), drawn from the answers at
hand: so a sentence stays a sentence.
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


def worse(docs, share, stock, rng, unlike):
    """The answers of a row (parsed) with `share` of their changeable words replaced, but one at least: list of texts.

    The share is of all rounds together: one word a round would be most of a dialogue of short answers. Drawn
    anew while equal to one of `unlike`, the other levels; 20 times, for there may be no other. rng: random.Random.
    """
    able = [token for doc in docs for token in doc if token.pos_ in CHANGED and len(stock.get(token.tag_, ())) > 1]
    count = min(len(able), max(1, round(share * len(able))))
    for _ in range(20):
        new = {token: rng.choice([word for word in stock[token.tag_] if word != token.text])
               for token in rng.sample(able, count)}
        texts = ["".join(written(token, new) + token.whitespace_ for token in doc) for doc in docs]
        if texts not in unlike:
            break
    return texts


def written(token, new):
    """A token or what takes its place; an article follows a changed word: "a cat" becomes "an owl"."""
    after = token.nbor() if token.i + 1 < len(token.doc) else None
    if token.lower_ in ("a", "an") and after in new:
        return token.text[0] + "n" * (new[after][0].lower() in "aeiou")
    return new.get(token, token.text)
