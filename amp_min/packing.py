"""One preference set as one sequence: the picture and the prompt once, then its K answers, none of which sees another.

The K answers of a set are answers to the same picture and prompt, and these are most of the tokens: 576 for LLaVA-1.5's
picture, about 50 for a prompt, about 100 for an answer. As K = 4 full sequences that is 4 * 726 = 2,904 tokens, as one
sequence with a shared prefix 626 + 4 * 100 = 1,026. What makes the two equal is the attention mask. Here the prefix is
two picture tokens I and two prompt tokens p, answer 0 is a a, answer 1 is b b b, _ is padding, and # marks what the
token at the left may look at (T = 10):

                   I I p p a a b b b _
      position 0 I # . . . . . . . . .
               1 I # # . . . . . . . .
               2 p # # # . . . . . . .
               3 p # # # # . . . . . .   predicts the first a and the first b
               4 a # # # # # . . . . .
               5 a # # # # # # . . . .
               4 b # # # # . . # . . .   answer 1 starts at position 4 again, and answer 0 is hidden
               5 b # # # # . . # # . .
               6 b # # # # . . # # # .
               0 _ # # # # . . . . . #   seen by nobody and never scored

This is exact, not an approximation. Attention is the only place in a transformer where tokens meet, and place in the
sequence enters by the position number and the mask alone; each answer keeps its own sequence's neighbours and numbers,
so only the order of floating-point sums differs. Gradients are equal too: the prefix collects them from all K answers at once.
`separate_logps` does the same the plain way, K full sequences side by side, and the tests hold the two together.

Departure from the paper (AMP, arXiv 2405.11165): none in what is computed. The paper does not say how it runs a set;
the released code runs K full sequences, and looks at the picture again for each.
"""
import random
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from amp_min import attention, losses
from amp_min.mllm import embed

# Shapes: B preference sets, K levels, T tokens of the longest packed set, N scored tokens of the batch, D hidden size,
# V vocabulary, P image tokens of a picture.


# ---- 1. K conversations become a prefix and K remainders ----

class TokenSet(NamedTuple):
    """K + 1 pieces: the prefix, then the K answers. A weight multiplies its token's log-prob; 0 means not scored."""
    ids: list[list[int]]
    weights: list[list[float]]


def token_set(encodings, step=0.0):
    """Cut K encoded conversations after their longest common beginning.

    encodings: K pairs (ids, rounds) from `mllm.encode`, best first: rounds[t] is the dialogue round (1, 2, …) whose
    answer token t belongs to, 0 in picture and prompt. step: the released code's extra weight per later round (it uses
    0.05; the paper has none). Raises ValueError for K = 0, for encodings that begin differently (the first token cannot
    be predicted, so it must be shared and not scored), and for one without any scored token.
    """
    marked = [list(zip(ids, rounds, strict=True)) for ids, rounds in encodings]
    # A token is shared only if its role is, too. Answers may share words: "The image shows" is then run once as well.
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*marked))))
    if shared == 0 or marked[0][0][1]:
        raise ValueError("the answers of a set must begin with the same picture and prompt")
    for k, tokens in enumerate(marked):
        if not any(round_number for _, round_number in tokens):
            raise ValueError(f"answer {k} of the set has no scored token")
    pieces = [marked[0][:shared], *(tokens[shared:] for tokens in marked)]
    return TokenSet(ids=[[token for token, _ in piece] for piece in pieces],
                    weights=[[losses.round_weights(number - 1, step) if number else 0.0 for _, number in piece]
                             for piece in pieces])


def length(tokens):
    """Tokens that a packed set takes: what `batches` sorts by."""
    return sum(map(len, tokens.ids))


# ---- 2. B sets become tensors ----

class Batch(NamedTuple):
    input_ids: Tensor      # (B,T)  prefix, answers one after the other, padding
    position_ids: Tensor   # (B,T)  starts again behind the prefix for every answer
    segment: Tensor        # (B,T)  0 in the prefix, k + 1 in answer k, -1 in the padding
    predictor: Tensor      # (N,)   b * T + t: the position whose hidden state predicts the scored token
    targets: Tensor        # (N,)   the scored token
    weights: Tensor        # (N,)   its weight
    owner: Tensor          # (N,)   b * K + k: whose log-prob it adds to
    counts: Tensor         # (B,K)  scored tokens of each answer, for a mean per token


def pack(sets, pad_id):
    """B TokenSets -> Batch, padded on the right with pad_id. Raises ValueError when K differs between sets."""
    B, K, T = len(sets), len(sets[0].ids) - 1, max(map(length, sets))
    input_ids = torch.full((B, T), pad_id)
    position_ids = torch.zeros(B, T, dtype=torch.long)
    segment = torch.full((B, T), -1)
    scored = []                                                   # (predictor, target, weight, owner)
    for b, tokens in enumerate(sets):
        if len(tokens.ids) - 1 != K:
            raise ValueError(f"set {b} of the batch has {len(tokens.ids) - 1} answers, set 0 has {K}")
        prefix, at = len(tokens.ids[0]), 0
        for n, (ids, weights) in enumerate(zip(tokens.ids, tokens.weights)):
            here, start = slice(at, at + len(ids)), prefix if n else 0
            input_ids[b, here] = torch.tensor(ids, dtype=torch.long)
            position_ids[b, here] = torch.arange(start, start + len(ids))
            segment[b, here] = n
            # A scored token of the prefix is the beginning of every answer, so it counts for all K.
            owners = [b * K + n - 1] if n else range(b * K, b * K + K)
            for i, (token, weight) in enumerate(zip(ids, weights)):
                # The shift: t - 1 predicts t. What stands before an answer's first token is the end of the prefix.
                before = at + i - 1 if i else prefix - 1
                scored += [(b * T + before, token, weight, k) for k in owners if weight]
            at += len(ids)
    predictor, targets, weights, owner = map(torch.tensor, zip(*scored))
    counts = torch.bincount(owner, minlength=B * K).view(B, K)
    return Batch(input_ids, position_ids, segment, predictor, targets, weights, owner, counts)


# ---- 3. Who sees whom ----

def sees(segment, b, q, k):
    """May token q of set b look at token k? At itself and backwards, into the prefix or its own answer.

    b, q, k are index tensors that broadcast. A padding token sees the prefix and earlier padding: nobody reads the
    result, but a token that sees nothing could turn into NaN (softmax of nothing) and poison the gradient.
    """
    return (k <= q) & ((segment[b, k] == 0) | (segment[b, k] == segment[b, q]))


def mask(segment):
    """segment (B,T) -> (B,1,T,T), true where the row's token sees the column's; the 1 serves all attention heads."""
    B, T = segment.shape
    b, t = torch.arange(B, device=segment.device), torch.arange(T, device=segment.device)
    return sees(segment, b[:, None, None], t[:, None], t).unsqueeze(1)                      # (B,1,T,T)


def block_mask(segment):
    """The same rule for FlexAttention, which skips 128 x 128 blocks where nobody sees anybody and keeps no T x T mask.

    For a CUDA GPU: choose it with model.model.language_model.set_attn_implementation("flex_attention"). Values were
    compared on the CPU, where PyTorch has no backward pass for it; untested on a GPU.
    """
    from torch.nn.attention.flex_attention import create_block_mask
    B, T = segment.shape
    return create_block_mask(lambda b, head, q, k: sees(segment, b, q, k), B, None, T, T, device=segment.device)


# ---- 4. Log-probabilities, with the shared prefix and without ----

def speed_up(m):
    """Choose the attention that skips the empty parts of the mask (attention.py), where the model suits; returns m."""
    decoder = m.model.model.language_model
    if attention.suits(decoder) and decoder.config._attn_implementation != attention.NAME:
        decoder.set_attn_implementation(attention.NAME)
    return m


def set_logps(m, batch, features, chunk=None):
    """log pi(y_k | picture, prompt) of every answer of every set, with one pass over each prefix.

    m: Mllm; batch: Batch; features (B,P,D_vision): what the vision tower sees, one picture a set (`mllm.encode_images`); chunk:
    see `losses.token_logps`. Returns (B,K): natural log, summed over scored tokens, float32 or the model's dtype if
    that is wider. The mask says what is computed; after `speed_up(m)`, or with FlexAttention, its empty parts are free.
    """
    B, K = batch.counts.shape
    T = batch.input_ids.shape[1]
    # Before the first token that predicts something, nobody reads what the last layer says: `attention.run` leaves it out.
    first = int((batch.predictor % T).min())
    batch = Batch(*(part.to(m.device) for part in batch))
    decoder = m.model.model.language_model
    embeds = embed(m, batch.input_ids, features.to(m.device))                               # (B,T,D)

    def added_mask():
        # Added to the scores: 0 or -inf. A boolean mask would be turned into this once per layer, and transformers'
        # "eager" attention would add its ones and zeros. Each row has a 0, in column 0, so no row is all -inf.
        hidden_from = ~mask(batch.segment)                                                  # (B,1,T,T)
        return torch.zeros_like(hidden_from, dtype=embeds.dtype).masked_fill_(hidden_from, float("-inf"))

    if decoder.config._attn_implementation == attention.NAME:
        hidden = attention.run(decoder, embeds, batch.position_ids, batch.segment, added_mask, first)      # (B,T-first,D)
    else:
        flex = decoder.config._attn_implementation == "flex_attention"
        hidden = decoder(inputs_embeds=embeds, attention_mask=block_mask(batch.segment) if flex else added_mask(),
                         position_ids=batch.position_ids, use_cache=False).last_hidden_state[:, first:]  # (B,T-first,D)
    # Only scored positions meet the head: the logits of 576 image tokens would be the largest tensor of all.
    b, t = batch.predictor // T, batch.predictor % T
    predicting = hidden.flatten(0, 1)[b * (T - first) + t - first]                          # (N,D)
    logps = losses.token_logps(predicting, m.model.lm_head.weight, batch.targets, chunk=chunk)  # (N,)
    sums = logps.new_zeros(B * K).index_add(0, batch.owner, logps * batch.weights.to(logps.dtype))
    return sums.view(B, K)


def separate_logps(m, sets, features):
    """The same numbers the plain way: K full sequences a set, ordinary causal attention, all logits. (B,K)

    Nothing here knows about shared prefixes; read it to see what `set_logps` must equal, and what it saves.
    """
    K = len(sets[0].ids) - 1
    ids = [tokens.ids[0] + rest for tokens in sets for rest in tokens.ids[1:]]              # B*K lists
    weights = [tokens.weights[0] + rest for tokens in sets for rest in tokens.weights[1:]]
    T = max(map(len, ids))
    padded = lambda rows, filler: torch.tensor([row + [filler] * (T - len(row)) for row in rows], device=m.device)
    real = padded([[1] * len(row) for row in ids], 0)                                       # (B*K,T)
    ids, weights = padded(ids, m.tokenizer.pad_token_id), padded(weights, 0.0)              # (B*K,T)
    embeds = embed(m, ids, features.to(m.device).repeat_interleave(K, dim=0))               # (B*K,T,D)
    hidden = m.model.model.language_model(inputs_embeds=embeds, attention_mask=real, use_cache=False).last_hidden_state
    logits = m.model.lm_head(hidden)                                                        # (B*K,T,V)
    labels = ids.masked_fill(weights == 0, losses.NOT_SCORED)
    return losses.sequence_logps(logits, labels, weights).view(-1, K)


# ---- 5. Which sets share a batch ----

def batches(lengths, size, seed, window=64):
    """Indices of all sets, each once, in batches of `size` whose members are about equally long; the last may be short.

    lengths: tokens of each set, see `length`. The order follows from seed alone: give another one in every epoch.
    Sorting everything would leave the same sets together in each epoch, and no sorting would pad each batch to its
    longest set. So: shuffle, sort within windows of `window` batches, cut, and shuffle the batches. Data of fewer than
    window * size sets, as the demo's, is one window: most sets then keep their company, and the short batch is always
    the longest sets.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(lengths)), len(lengths))
    for start in range(0, len(order), window * size):
        order[start:start + window * size] = sorted(order[start:start + window * size], key=lambda i: lengths[i])
    cut = [order[start:start + size] for start in range(0, len(order), size)]
    short = [cut.pop()] if len(order) % size else []              # not shuffled: the short one stays last
    rng.shuffle(cut)
    return cut + short
