"""Perturbation-made levels (Table 6's baseline): worse answers by changing words of the standard one, without a model.

The paper changes nouns, adjectives, prepositions and numerals at random.  A word is replaced by another word of the
same part of speech and form (a plural by a plural), drawn from the answers at hand, so that the sentence stays a
sentence.  What such levels lack is what makes generated ones useful: nobody *believes* these errors.
"""

import random
from collections import defaultdict

from amp_min import chunks

CHANGED = {"NOUN", "PROPN", "ADJ", "ADP", "NUM"}        # spaCy's names for the paper's four kinds of word


class Words:
    """The words of a set of texts by fine-grained part of speech, to draw replacements from."""

    def __init__(self, texts):
        self.parser = chunks.load_parser()
        found = defaultdict(set)
        for doc in self.parser.pipe(texts):
            for token in doc:
                if token.pos_ in CHANGED:
                    found[token.tag_].add(token.text)
        self.by_tag = {tag: sorted(words) for tag, words in found.items()}      # sorted: sets have no order to repeat

    def change(self, text, share, seed):
        """`text` with `share` of its changeable words replaced, at least one; the same seed changes the same words."""
        rng = random.Random(seed)
        doc = self.parser(text)
        able = [token for token in doc if token.pos_ in CHANGED and len(self.by_tag.get(token.tag_, ())) > 1]
        chosen = {token.i for token in rng.sample(able, min(len(able), max(1, round(share * len(able)))))}
        return "".join((rng.choice([word for word in self.by_tag[token.tag_] if word != token.text]) if token.i in chosen
                        else token.text) + token.whitespace_ for token in doc)
