"""The auto-check: order generated answers by how much of the standard answer they say.

    answer --chunks.py--> noun chunks, sentences --encoder--> features --Eq. 1-2--> accuracy, score --> ranking

Local level: the chunks. Global level: the sentences that the chunks stand in. Final accuracy and score are the mean of
the two levels; accuracy ranks, score breaks ties, the standard answer stays first.

Every standard chunk looks for its best generated chunk. That is recall: a hallucinated chunk more costs nothing.

What the paper leaves open, and what is done here
- Dialogues: round t of an answer is compared with round t of the standard only (a dog in the first round is no evidence
  for a dog in the third); the result is the mean over rounds.
- A standard round without chunks ("Yes.", "Two.") is compared as a whole answer, instead of not at all.
- A generated round without chunks has accuracy 0 and score 0; so does everything against a blank standard answer.
- A sentence that occurs twice counts once. Upper case and runs of white space do not count: CLIP ignores them as well.
Off unless asked for, because they are not in the paper: `symmetric` and `attributes`, see `compare` and `agreement`,
and the method `whole`.

The method `whole`: both answers are framed as a sentence about a picture ("The picture shows a man on a horse.") and
encoded as one text each. The score is their cosine times the share of the generated answer's content words that repeat
nothing, neither a word of their sentence nor a whole sentence; accuracy is the same number. No threshold, no parser,
no fitted number. Short captions rarely have a chunk above 0.85, and chunks lose their context; a frame tells the
encoder what a fragment is; an unsure model repeats itself ("a bench on a bench"). On 100 COCO pictures with captions of
four models, all-MiniLM-L6-v2, agreement with people over all / clear pairs: Eq. 1-2 0.594 / 0.658, whole 0.671 / 0.779
(results/autocheck_real.json, +-0.07 / 0.09). Found among some 180 variants on these pictures: expect less on others.
"""
import re
from itertools import groupby
from typing import NamedTuple

import torch
from spacy.lang.en.stop_words import STOP_WORDS
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModelWithProjection,
)
from transformers.utils import logging

from amp_min.support.hub import pretrained
from amp_min.support.script import UserError

# M standard texts, N generated texts, D features of the encoder.


# ---- Eq. 1-2 and the ranking ----------------------------------------------------------------------------------------

def cosines(standard, generated):
    """(M, D), (N, D) -> (M, N) cosine similarities in float64; a row of zeros is similar to nothing (0)."""
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (standard, generated))
    a, b = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (a, b))
    return a @ b.T


def similarity(standard, generated, threshold=0.85, agree=None):
    """Eq. 1-2: how much of the standard answer the generated one says.

    standard (M, D), generated (N, D): features, of any length (they are normalised here).
    agree (M, N) of bool, optional: pairs that may match; the others count as similarity 0.
    Returns (accuracy, score), floats: the share of standard rows whose best match is strictly above `threshold`, and
    the mean of the best matches. (0.0, 0.0) when either side is empty.
    """
    if len(standard) == 0 or len(generated) == 0:
        return 0.0, 0.0
    S = cosines(standard, generated)                                    # (M, N)
    if agree is not None:
        S = S * agree
    s = S.max(dim=1).values                                             # (M,)  Eq. 1
    p = (s > threshold).double()                                        # (M,)  Eq. 2
    return p.mean().item(), s.mean().item()


def rank(scores):
    """Indices of a list of (accuracy, score), best first: higher accuracy, then higher score, then the earlier one."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i][0], -scores[i][1]))


def spaced(n, K):
    """K of n ranks, evenly: the first, the last, and those between in equal steps (rounded down). K = 1: the first."""
    return [i * (n - 1) // max(1, K - 1) for i in range(K)]


# ---- one answer against the standard one ----------------------------------------------------------------------------

def levels(standard, generated, method="chunks"):
    """The texts to compare for one round: a list of (standard texts, generated texts), local level first.

    standard, generated: (answer, its chunks). method: "chunks" (the paper's) or "whole": one level, one text.
    """
    if method == "whole":
        return [tuple([framed(answer)] if answer.strip() else [] for answer, _ in (standard, generated))]
    if not standard[1]:                                                 # "Yes.": no noun to look for
        return [([plain(standard[0])], [plain(generated[0])])]
    local, overall = ([[plain(text) for text in texts(chunks)] for _, chunks in (standard, generated)]
                      for texts in (chunk_texts, sentence_texts))
    return [tuple(local), tuple(overall)]


def chunk_texts(chunks):
    return [chunk.text for chunk in chunks]


def sentence_texts(chunks):
    return list(dict.fromkeys(chunk.sentence for chunk in chunks))      # each sentence once, in order


def plain(text):
    return " ".join(text.lower().split())


def framed(text):
    return f"the picture shows {plain(text).rstrip('.')}."


def unrepeated(text):
    """The share of the content words of `text` that repeat nothing, in [0, 1]; 1 where there are none ("No.").

    A word counts once in its sentence, a sentence once in the text: an answer in a loop goes to 0. A noun that the next
    sentence takes up again ("a dog. the dog ...") costs nothing. Content words: those not in spaCy's stop words.
    """
    sentences = [tuple(word for word in re.findall(r"\w+", sentence) if word not in STOP_WORDS)
                 for sentence in re.split(r"[.!?\n]", text.lower())]
    kept = sum(len(set(sentence)) for sentence in set(sentences))
    return kept / max(kept, sum(map(len, sentences))) if kept else 1.0


def check(standard, generated, features, threshold=0.85, symmetric=False, attributes=False, method="chunks"):
    """Compare a whole answer with the standard one.

    standard, generated: one (answer, chunks) per round. features: dict of plain text -> (D,) tensor.
    Returns (accuracy, score, evidence), numbers rounded to 6 digits so that the rounding noise of a matrix product
    orders nothing. evidence: per round, accuracy and score of each level, and for each standard chunk (of a round
    without chunks: for the answer) the best generated chunk and its similarity.
    """
    results, evidence = [], []
    for pair in zip(standard, generated, strict=True):
        to_compare = levels(*pair, method)
        by_level = [compare(*texts, features, threshold, symmetric, attributes) for texts in to_compare]
        if method == "whole":
            by_level = [(score * unrepeated(pair[1][0]),) * 2 for _, score in by_level]
        results.append(mean_of_pairs(by_level))
        evidence.append({"levels": [[round(x, 4) for x in result] for result in by_level],
                         "chunks": best_matches(*to_compare[0], features, attributes)})
    accuracy, score = mean_of_pairs(results)
    return round(accuracy, 6), round(score, 6), evidence


def compare(standard, generated, features, threshold, symmetric, attributes):
    """Accuracy and score of one level of one round.

    symmetric (not in the paper): Eq. 1-2 once more with the roles exchanged, which is precision (a generated chunk that
    the standard answer does not support now costs something), and the mean of both. The plain mean, not F1: F1 is 0
    as soon as one of the two is, and on short answers that would leave most of the ranking to chance.
    """
    if not standard or not generated:
        return 0.0, 0.0
    agree = agreement(standard, generated) if attributes else None
    S, G = (torch.stack([features[text] for text in texts]) for texts in (standard, generated))
    recall = similarity(S, G, threshold, agree)
    if not symmetric:
        return recall
    return mean_of_pairs([recall, similarity(G, S, threshold, None if agree is None else agree.T)])


def best_matches(standard, generated, features, attributes=False):
    """[standard text, best generated text or None, similarity] for each standard text: why the answer got its score."""
    if not standard or not generated:
        return [[text, None, 0.0] for text in standard]
    S, G = (torch.stack([features[text] for text in texts]) for texts in (standard, generated))
    S = cosines(S, G) * (agreement(standard, generated) if attributes else 1)      # (M, N)
    best = S.max(dim=1)
    return [[text, generated[n], round(s, 4)] for text, n, s in zip(standard, best.indices, best.values.tolist())]


def mean_of_pairs(pairs):
    return tuple(sum(values) / len(pairs) for values in zip(*pairs))


# ---- attributes: what a cosine does not see -------------------------------------------------------------------------

# To a text encoder "a red car" is closer to "a blue car" than to "a crimson automobile". Words of one axis exclude one
# another here, except those between the same two bars, which mean the same.
AXES = {
    "colour": "red crimson scarlet|orange|yellow golden|green|blue navy|purple violet|pink|brown|black|white|"
              "gray grey silver",
    "number": "a an one single|two pair couple|three|four|five|six|seven|eight|nine|ten",
    "size": "big large huge giant|small little tiny",
    "height": "tall|short",
    "side": "left|right",
    "level": "above over top upper|below under beneath underneath bottom lower",
    "depth": "front|behind back",
    "inside": "inside within|outside",
}
MEANINGS = {word: (axis, i) for axis, line in AXES.items() for i, words in enumerate(line.split("|"))
            for word in words.split()}
NEGATIONS = {"no", "not", "n't", "without", "never", "none"}


def attributes_of(text):
    """Axis -> set of meanings that the words of `text` have on it, and whether the text denies something."""
    found = {"denied": {False}}
    for word in re.findall(r"n't|[a-z]+(?=n't)|[a-z]+", text):
        if word in NEGATIONS:
            found["denied"] = {True}
        elif word in MEANINGS:
            axis, meaning = MEANINGS[word]
            found.setdefault(axis, set()).add(meaning)
    return found


def agreement(standard, generated):
    """(M, N) of bool, not in the paper: False where two texts name different colours, numbers, sizes or places.

    A text that says nothing on an axis contradicts nothing; two texts with several meanings agree when they share one.
    Lists of words, no understanding: "not only red" denies, and "orange" is a colour even where it is a fruit.
    """
    a, b = ([attributes_of(text) for text in texts] for texts in (standard, generated))
    return torch.tensor([[all(x[axis] & y[axis] for axis in x.keys() & y.keys()) for y in b] for x in a])


# ---- encoders -------------------------------------------------------------------------------------------------------

class Encoder(NamedTuple):
    model: torch.nn.Module
    tokenizer: object
    is_clip: bool
    window: int          # most tokens that the model reads at once, start and end tokens included


def load_encoder(name, device="cpu"):
    """A folder or hub id -> Encoder: CLIP's text tower and projection, or any sentence encoder that AutoModel loads.

    A sentence encoder's feature is the mean over its tokens, whatever pooling its authors trained it with. Reads
    safetensors only. Raises UserError, one line, when the weights cannot be had or do not fit their tokenizer.
    """
    config = pretrained(AutoConfig.from_pretrained, name)
    tokenizer = pretrained(AutoTokenizer.from_pretrained, name)
    is_clip = config.model_type in {"clip", "clip_text_model"}
    if not is_clip and hasattr(config, "vision_config"):
        raise UserError(f"{name}: model type {config.model_type!r} is not supported as text encoder; "
                        "give a CLIP or a sentence encoder")
    before = logging.get_verbosity()
    logging.set_verbosity_error()                # or transformers lists every weight of the vision tower as left over
    model, info = pretrained(CLIPTextModelWithProjection.from_pretrained if is_clip else AutoModel.from_pretrained, name,
                      dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    logging.set_verbosity(before)
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]      # BERT's pooler is not used
    wrong = missing + list(info["mismatched_keys"])
    if wrong:
        raise UserError(f"{name}: weights do not fit the model: {sorted(map(str, wrong))[:3]}")
    text = config.text_config if config.model_type == "clip" else config
    window = min(text.max_position_embeddings, tokenizer.model_max_length)
    check_encoder(name, tokenizer, text, is_clip)
    return Encoder(model.to(device).eval(), tokenizer, is_clip, window)


def check_encoder(name, tokenizer, config, is_clip):
    """Cross-check model and tokenizer: a mismatch gives features, only not those of the text."""
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size} embeddings")
    if not is_clip:
        return
    ids = tokenizer("a dog").input_ids
    # CLIP reads its feature off the end token. With eos_token_id 2, an old mistake in OpenAI's configs that
    # transformers keeps working, it takes the position of the largest id instead, which then must be the end token.
    end = max(ids) if config.eos_token_id == 2 else config.eos_token_id
    if ids[-1] != end:
        raise UserError(f"{name}: the tokenizer ends a text with token {ids[-1]}, but the model (eos_token_id "
                        f"{config.eos_token_id}) takes its feature at token {end}; give both the same end token")


@torch.no_grad()
def encode(encoder, texts, B=32):
    """texts -> (features (len(texts), D) of length 1, number of texts that were longer than the model's window).

    A longer text (CLIP reads 77 tokens) is cut into windows; its feature is their mean, weighted by their tokens.
    Nothing is dropped. Every batch holds B windows of one length, filled up with copies: a matrix product rounds
    differently for each shape, so this way a text's feature does not depend on the texts that it happens to meet, and
    an interrupted run ends with the same file. It also needs no padding. Windows of more than 64 tokens go alone: few
    have the same length, and copies of them cost too much.
    """
    if not texts:
        return torch.zeros(0, 0), 0
    pieces = encoder.tokenizer(texts, truncation=True, max_length=encoder.window, return_overflowing_tokens=True)
    ids, owner = pieces["input_ids"], torch.tensor(pieces["overflow_to_sample_mapping"])
    windows = [None] * len(ids)                                         # each (D,)
    for _, group in groupby(sorted(range(len(ids)), key=lambda w: len(ids[w])), key=lambda w: len(ids[w])):
        group = list(group)
        size = B if len(ids[group[0]]) <= 64 else 1
        for start in range(0, len(group), size):
            batch = group[start:start + size]
            filled = (batch * size)[:size]
            for w, feature in zip(batch, features_of(encoder, torch.tensor([ids[w] for w in filled]))):
                windows[w] = feature
    lengths = torch.tensor([len(window) for window in ids], dtype=torch.float32)
    sums = torch.zeros(len(texts), len(windows[0])).index_add(0, owner, torch.stack(windows) * lengths[:, None])
    features = torch.nn.functional.normalize(sums, dim=1)               # (len(texts), D)
    if not features.isfinite().all():
        raise UserError("the encoder's features are not finite: its weights are damaged")
    return features, int((owner.bincount(minlength=len(texts)) > 1).sum())


def features_of(encoder, tokens):
    """(B, T) token ids without padding -> (B, D) on the CPU, each of length 1."""
    tokens = tokens.to(encoder.model.device)
    out = encoder.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    pooled = out.text_embeds if encoder.is_clip else out.last_hidden_state.mean(dim=1)       # (B, D)
    return torch.nn.functional.normalize(pooled, dim=-1).cpu()
