"""The auto-check's two tools: Eq. 1-2, which compare texts by their features, and an encoder that makes them.

    answer --chunks.py--> chunks, sentences --encoder--> features --Eq. 1-2--> accuracy, score --> ranking

verify.py puts the steps in order and says what the two levels and the rounds of a dialogue are.

Every standard chunk looks for its best generated chunk. That is recall: one hallucinated chunk more costs
nothing. Two remedies are not in the paper and so are off unless asked for, see `compare` and `agreement`.
"""
import re
from itertools import groupby
from typing import NamedTuple

import torch
from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection
from transformers.utils import logging

from amp_min.support.hub import pretrained, read_config
from amp_min.support.script import UserError

# M standard texts, N generated texts, D features of the encoder.


# ---- Eq. 1-2 and the ranking -------------------------------------------------------------------------------

def cosines(standard, generated):
    """(M, D), (N, D) -> (M, N) cosine similarities in float64; a row of zeros is similar to nothing (0)."""
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (standard, generated))
    a, b = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (a, b))
    return a @ b.T


def similarity(standard, generated, threshold=0.85, agree=None):
    """Eq. 1-2: how much of the standard answer the generated one says.

    standard (M, D), generated (N, D): features, of any length (they are normalized here).
    agree (M, N) of bool, optional: pairs that may match; the others count as similarity 0.
    Returns (accuracy, score), floats: the share of standard rows whose best match is strictly above
    `threshold`, and the mean of the best matches. (0.0, 0.0) when either side is empty.
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
    """Indices of a list of (accuracy, score), best first: by accuracy, then score, then the earlier one."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i][0], -scores[i][1]))


def spaced(n, K):
    """K of n ranks, evenly: the first, the last, and those between in equal steps (rounded down)."""
    return [i * (n - 1) // max(1, K - 1) for i in range(K)]


# ---- one level of one round --------------------------------------------------------------------------------

def compare(standard, generated, features, threshold=0.85, symmetric=False, attributes=False):
    """How much of the standard texts do the generated ones say? -> ((accuracy, score), matches).

    standard, generated: M and N texts; features: text -> (D,) tensor. (0.0, 0.0) when a side is empty.
    matches: for each standard text, [it, its best generated text or None, their similarity].

    attributes: only texts that name equal colors, numbers, sizes and places may match, see `agreement`.
    symmetric: Eq. 1-2 once more with the roles exchanged, which is precision (a generated chunk that the
    standard answer does not support now costs something), and the mean of both. The plain mean, not F1: F1 is
    0 as soon as one of the two is, and on short answers that would leave most of the ranking to chance.
    """
    if not standard or not generated:
        return (0.0, 0.0), [[text, None, 0.0] for text in standard]
    S = torch.stack([features[text] for text in standard])              # (M, D)
    G = torch.stack([features[text] for text in generated])             # (N, D)
    agree = agreement(standard, generated) if attributes else torch.ones(len(S), len(G), dtype=bool)
    accuracy, score = similarity(S, G, threshold, agree)
    if symmetric:
        precision = similarity(G, S, threshold, agree.T)
        accuracy, score = (accuracy + precision[0]) / 2, (score + precision[1]) / 2
    best = (cosines(S, G) * agree).max(dim=1)                           # (M,)
    return (accuracy, score), [[text, generated[n], round(s, 4)]
                               for text, n, s in zip(standard, best.indices, best.values.tolist())]


def plain(text):
    """Upper case and runs of white space do not count: CLIP ignores them as well."""
    return " ".join(text.lower().split())


# ---- attributes: what a cosine does not see ----------------------------------------------------------------

# To a text encoder "a red car" is closer to "a blue car" than to "a crimson automobile". Words of one axis
# exclude one another here, except those between the same two bars, which mean the same.
AXES = {
    "color": "red crimson scarlet|orange|yellow golden|green|blue navy|purple violet|pink|brown|black|white|"
             "gray grey silver",
    "number": "zero|a an one single|two pair couple|three|four|five|six|seven|eight|nine|ten|eleven|"
              "twelve dozen|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty",
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
    for word in re.findall(r"n't|[a-z]+(?=n't)|[a-z]+|\d{1,18}", text):
        if word in NEGATIONS:
            found["denied"] = {True}
        elif word in MEANINGS or word.isdigit():
            axis, meaning = MEANINGS.get(word) or ("number", int(word))     # the words count from zero, too
            found.setdefault(axis, set()).add(meaning)
    return found


def agreement(standard, generated):
    """(M, N) of bool, not in the paper: False where two texts name other colors, numbers, sizes or places.

    A text that says nothing on an axis contradicts nothing; two with several meanings agree when they share
    one. Lists of words, no understanding: "not only red" denies, and "orange" is a color where it is a fruit.
    """
    a, b = ([attributes_of(text) for text in texts] for texts in (standard, generated))
    return torch.tensor([[all(x[axis] & y[axis] for axis in x.keys() & y.keys()) for y in b] for x in a])


# ---- encoders ----------------------------------------------------------------------------------------------

class Encoder(NamedTuple):
    model: torch.nn.Module
    tokenizer: object
    is_clip: bool
    window: int          # most tokens that the model reads at once, start and end tokens included


def load_encoder(name, device="cpu"):
    """A folder or hub id -> Encoder: a CLIP's text tower and projection, or a sentence encoder for AutoModel.

    A sentence encoder's feature is the mean over its tokens, whatever pooling its authors trained it with.
    Reads safetensors only. UserError when the weights cannot be had or do not fit their tokenizer.
    """
    config = read_config(name)
    tokenizer = pretrained(AutoTokenizer.from_pretrained, name)
    is_clip = config.model_type in {"clip", "clip_text_model"}
    if not is_clip and hasattr(config, "vision_config"):
        raise UserError(f"{name}: model type {config.model_type!r} is not supported as text encoder; "
                        "give a CLIP or a sentence encoder")
    before = logging.get_verbosity()
    logging.set_verbosity_error()        # or transformers lists every weight of the vision tower as left over
    model_class = CLIPTextModelWithProjection if is_clip else AutoModel
    model, info = pretrained(model_class.from_pretrained, name, dtype=torch.float32, use_safetensors=True,
                             output_loading_info=True)
    logging.set_verbosity(before)
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]     # BERT's is not used
    if wrong := missing + list(info["mismatched_keys"]):
        raise UserError(f"{name}: weights do not fit the model: {sorted(map(str, wrong))[:3]}")
    text = config.text_config if config.model_type == "clip" else config
    # RoBERTa, XLM-R and MPNet number their positions from behind the padding id: 514 of them read 512 tokens.
    unused = [layer.padding_idx + 1 for part, layer in model.named_modules()
              if part.endswith("position_embeddings") and getattr(layer, "padding_idx", None) is not None]
    window = min(text.max_position_embeddings - sum(unused), tokenizer.model_max_length)
    check_encoder(name, tokenizer, text, is_clip)
    return Encoder(model.to(device).eval(), tokenizer, is_clip, window)


def check_encoder(name, tokenizer, config, is_clip):
    """Cross-check model and tokenizer: a mismatch gives features, only not those of the text."""
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size} "
                        "embeddings")
    if not is_clip:
        return
    ids = tokenizer("a dog").input_ids
    # CLIP reads its feature off the end token. With eos_token_id 2, an old mistake in OpenAI's configs that
    # transformers keeps working, it takes the position of the largest id instead: that must be the end token.
    end = max(ids) if config.eos_token_id == 2 else config.eos_token_id
    if ids[-1] != end:
        raise UserError(f"{name}: the tokenizer ends a text with token {ids[-1]}, the model (eos_token_id "
                        f"{config.eos_token_id}) takes its feature at token {end}; give both one end token")


def special_token_in(encoder, text):
    """A special token that the encoder would see in `text`, or None. Behind its end token CLIP is blind."""
    # One letter is none: some CLIPs pad with "!".
    return next((s for s in encoder.tokenizer.all_special_tokens if len(s) > 1 and s in plain(text)), None)


def unknown_shares(encoder, texts):
    """For each text, the share of its tokens that the encoder does not know: to it they are all one word."""
    tokens = encoder.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
    return [ids.count(encoder.tokenizer.unk_token_id) / max(1, len(ids)) for ids in tokens]


@torch.no_grad()
def encode(encoder, texts, B=32):
    """texts -> (features (len(texts), D) of length 1, number of texts longer than the model's window).

    A longer text (CLIP reads 77 tokens) is cut into windows; its feature is their mean, weighted by their
    tokens. Nothing is dropped. Every batch holds B windows of one length, filled up with copies: a matrix
    product rounds differently for each shape, so this way a text's feature does not depend on the texts that
    it happens to meet, and an interrupted run ends with the same file. It also needs no padding. Windows of
    more than 64 tokens go alone: few have the same length, and copies of them cost too much.
    """
    if not texts:
        return torch.zeros(0, 0), 0
    pieces = encoder.tokenizer(texts, truncation=True, max_length=encoder.window,
                               return_overflowing_tokens=True)
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
    weighted = torch.stack(windows) * lengths[:, None]                  # (windows, D)
    sums = torch.zeros(len(texts), weighted.shape[1]).index_add(0, owner, weighted)
    features = torch.nn.functional.normalize(sums, dim=1)               # (len(texts), D)
    # Without digits "3 dogs" and "5 dogs" are both "<unk> dogs". What is half unknown is similar to nothing.
    features[torch.tensor(unknown_shares(encoder, texts)) >= 0.5] = 0
    if not features.isfinite().all():
        raise UserError("the encoder's features are not finite: its weights are damaged")
    return features, int((owner.bincount(minlength=len(texts)) > 1).sum())


def features_of(encoder, tokens):
    """(B, T) token ids without padding -> (B, D) on the CPU, each of length 1."""
    tokens = tokens.to(encoder.model.device)
    out = encoder.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    pooled = out.text_embeds if encoder.is_clip else out.last_hidden_state.mean(dim=1)       # (B, D)
    return torch.nn.functional.normalize(pooled, dim=-1).cpu()
