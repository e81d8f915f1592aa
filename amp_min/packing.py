"""One preference set as one sequence: the picture and the prompt once, then its K answers, none of which sees
another.

The K answers of a set are answers to the same picture and prompt, and these are most of the tokens: 576 for
LLaVA-1.5's picture, about 50 for a prompt, about 100 for an answer. As K = 4 full sequences that is 4 * 726 =
2,904 tokens, with a shared prefix 626 + 4 * 100 = 1,026. What makes the two equal is the attention mask. Here
the prefix is two picture tokens I and two prompt tokens p, answer 0 is a a, answer 1 is b b b, _ is padding,
and # marks what the token at the left may look at:

                   I I p p a a _ b b b
      position 0 I # . . . . . . . . .
               1 I # # . . . . . . . .
               2 p # # # . . . . . . .
               3 p # # # # . . . . . .   predicts the first a and the first b
               4 a # # # # # . . . . .
               5 a # # # # # # . . . .
               6 _ # # # # # # # . . .   padding: what it computes is read by nobody
               4 b # # # # . . . # . .   answer 1 starts at position 4 again, and answer 0 is hidden
               5 b # # # # . . . # # .
               6 b # # # # . . . # # #

Two things follow from padding all prefixes of a batch to one length and all answers to another: the answers
are a plain (B, K, N) block, and attention is two calls (`attend`) instead of one over this whole, mostly
empty square.
"""
import random
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from amp_min import losses
from amp_min.mllm import embed

# Shapes: B preference sets, K levels, T tokens of the longest prefix, N of the longest answer behind it, D
# hidden size.


# ---- 1. K conversations become a prefix and K remainders ----

class TokenSet(NamedTuple):
    """K + 1 lists: the prefix, then the K answers. A weight multiplies its token's log-prob; 0 means not
    scored."""
    ids: list[list[int]]
    weights: list[list[float]]


def token_set(encodings, step=0.0):
    """Cut K encoded conversations after their longest common beginning.

    encodings: K pairs (ids, rounds) from `prompt.encode`, best first: rounds[t] is the dialogue round (1, 2,
    …) whose answer token t belongs to, 0 in picture and prompt. step: the released code's extra weight per
    later round (it uses 0.05; the paper has none). Raises ValueError for K = 0, for encodings that begin
    differently (the first token cannot be predicted, so it must be shared and not scored), and for one
    without any scored token.
    """
    marked = [list(zip(ids, rounds, strict=True)) for ids, rounds in encodings]
    # A token is shared only if its role is, too. Answers may share words: "The image shows" is then run once
    # as well.
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*marked)))
    if shared == 0 or marked[0][0][1]:
        raise ValueError("the answers of a set must begin with the same picture and prompt")
    for k, tokens in enumerate(marked):
        if not any(round_number for _, round_number in tokens):
            raise ValueError(f"answer {k} of the set has no scored token")
    parts = [marked[0][:shared], *(tokens[shared:] for tokens in marked)]
    return TokenSet(ids=[[token for token, _ in part] for part in parts],
                    weights=[[losses.round_weights(number - 1, step) if number else 0.0 for _, number in part]
                             for part in parts])


def length(tokens):
    """Tokens of a set without padding: what `batches` sorts by."""
    return sum(map(len, tokens.ids))


# ---- 2. B sets become tensors ----

class Batch(NamedTuple):
    prefix_ids: Tensor      # (B,T)    picture, prompt, and what all K answers begin with; padded on the right
    prefix_weights: Tensor  # (B,T)    0 where a token is not scored
    prefix_length: Tensor   # (B,)
    answer_ids: Tensor      # (B,K,N)  what is each answer's own; padded on the right
    answer_weights: Tensor  # (B,K,N)

    @property
    def counts(self):
        """Scored tokens of each answer, for a mean per token: (B,K)."""
        shared = (self.prefix_weights != 0).sum(-1, keepdim=True)                           # (B,1)
        return shared + (self.answer_weights != 0).sum(-1)


def padded(rows, length, filler):
    """Lists of unequal length -> (len(rows), length), filled up on the right."""
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


def pack(sets, pad_id):
    """B TokenSets -> Batch, padded with pad_id. Raises ValueError when K differs between sets."""
    K = len(sets[0].ids) - 1
    for b, tokens in enumerate(sets):
        if len(tokens.ids) - 1 != K:
            raise ValueError(f"set {b} of the batch has {len(tokens.ids) - 1} answers, set 0 has {K}")
    T = max(len(tokens.ids[0]) for tokens in sets)
    # 1 at least: equal answers share it all
    N = max(1, *(len(ids) for tokens in sets for ids in tokens.ids[1:]))
    return Batch(prefix_ids=padded([tokens.ids[0] for tokens in sets], T, pad_id),
                 prefix_weights=padded([tokens.weights[0] for tokens in sets], T, 0.0),
                 prefix_length=torch.tensor([len(tokens.ids[0]) for tokens in sets]),
                 answer_ids=torch.stack([padded(tokens.ids[1:], N, pad_id) for tokens in sets]),
                 answer_weights=torch.stack([padded(tokens.weights[1:], N, 0.0) for tokens in sets]))


def flat(batch):
    """The sequence that the decoder reads: token ids (B,T+K*N) and their positions (B,T+K*N)."""
    B, K, N = batch.answer_ids.shape
    T = batch.prefix_ids.shape[1]
    steps = lambda n: torch.arange(n, device=batch.prefix_ids.device)
    # Every answer goes on where its prefix ends: rotary positions count what a token can see, not where it
    # lies.
    behind = (batch.prefix_length[:, None, None] + steps(N)).expand(B, K, N)                # (B,K,N)
    return (torch.cat([batch.prefix_ids, batch.answer_ids.flatten(1)], dim=1),
            torch.cat([steps(T).expand(B, T), behind.flatten(1)], dim=1))


# ---- 3. Who sees whom ----

def mask(batch):
    """The square in the docstring: (B,1,T+K*N,T+K*N), true where the row's token sees the column's.

    This is the definition. `attend` computes the same from the part of it that is not empty.
    """
    B, K, N = batch.answer_ids.shape
    T = batch.prefix_ids.shape[1]
    at = torch.arange(T + K * N, device=batch.prefix_ids.device)
    segment = torch.where(at < T, 0, 1 + (at - T) // N)  # 0 prefix, k + 1 answer k
    causal, same = at <= at[:, None], segment == segment[:, None]                           # (L,L) each
    in_prefix = at < batch.prefix_length[:, None, None]  # (B,1,L) without padding
    return (causal & (same | in_prefix)).unsqueeze(1)                                       # (B,1,L,L)


def answers_mask(batch):
    """Its lower left part, once for all K answers: what an answer's N tokens see of [prefix, own].
    (B,1,N,T+N)"""
    B, _, N = batch.answer_ids.shape
    T = batch.prefix_ids.shape[1]
    device = batch.prefix_ids.device
    in_prefix = torch.arange(T, device=device) < batch.prefix_length[:, None, None]         # (B,1,T)
    own = torch.ones(N, N, dtype=torch.bool, device=device).tril()                          # (N,N)
    return torch.cat([in_prefix.expand(B, N, T), own.expand(B, N, N)], dim=-1).unsqueeze(1)


def attend(module, query, key, value, attention_mask, **settings):
    """Attention in the form that transformers calls: query (B,H,L,d), key and value (B,H,L,d) -> (B,L,H,d),
    None.

    With `answers_mask`, L = T + K*N: the prefix looks at itself, then all answers as a batch of B*K look at
    [prefix, own]. At LLaVA-1.5's lengths and K = 4 that is 626²/2 + 4 * 100 * 726 = 486,000 scores a head
    instead of 1,026² = 1,053,000. With any other mask (generation, full sequences) it is transformers' own
    "sdpa".
    """
    if attention_mask is None or attention_mask.shape[2] == query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    N = attention_mask.shape[2]
    T = attention_mask.shape[3] - N
    K = (query.shape[2] - T) // N
    first = [x[:, :, :T] for x in (query, key, value)]                                      # (B,H,T,d) each
    prefix, _ = sdpa_attention_forward(module, *first, None, **settings)  # (B,T,H,d), causal
    # (B*K,H,N,d)
    own = [x[:, :, T:].unflatten(2, (K, N)).transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    keys, values = (torch.cat([x.repeat_interleave(K, dim=0), y], dim=2) for x, y in zip(first[1:], own[1:]))
    added = attention_mask.repeat_interleave(K, dim=0)                                      # (B*K,1,N,T+N)
    answers, _ = sdpa_attention_forward(module, own[0], keys, values, added, **settings)    # (B*K,N,H,d)
    return torch.cat([prefix, answers.unflatten(0, (-1, K)).flatten(1, 2)], dim=1), None    # (B,T+K*N,H,d)


PREFIX_SHARING = "amp_min_prefix_sharing"       # a name for attend, as transformers has "sdpa" and "eager"
AttentionInterface.register(PREFIX_SHARING, attend)
AttentionMaskInterface.register(PREFIX_SHARING, sdpa_mask)


def speed_up(m):
    """Choose `attend` for the decoder of m; returns m. Without it `set_logps` takes the whole mask."""
    m.model.model.language_model.set_attn_implementation(PREFIX_SHARING)
    return m


# ---- 4. Log-probabilities, with the shared prefix and without ----

def set_logps(m, batch, features, chunk=None):
    """log pi(y_k | picture, prompt) of every answer of every set, with one pass over each prefix.

    m: Mllm; features (B,P,D_vision): the frozen tower's, one picture a set (`mllm.encode_images`); chunk: see
    `losses.token_logps`. Returns (B,K): natural log, summed over scored tokens, float32 or the model's wider
    dtype.
    """
    batch = Batch(*(part.to(m.device) for part in batch))
    (B, K, N), T = batch.answer_ids.shape, batch.prefix_ids.shape[1]
    decoder, head = m.model.model.language_model, m.model.lm_head.weight
    ids, positions = flat(batch)                                                            # (B,T+K*N) each
    embeds = embed(m, ids, features.to(m.device))                                           # (B,T+K*N,D)
    sees = (answers_mask if decoder.config._attn_implementation == PREFIX_SHARING else mask)(batch)
    # Added to the scores: 0 or -inf. A boolean mask would be turned into this once per layer. Column 0 is a
    # real token of the prefix that everybody sees, so no row is all -inf: softmax of nothing is NaN.
    added = torch.zeros_like(sees, dtype=embeds.dtype).masked_fill_(~sees, float("-inf"))
    hidden = decoder(inputs_embeds=embeds, attention_mask=added, position_ids=positions,
                     use_cache=False).last_hidden_state                                     # (B,T+K*N,D)
    prefix, answers = hidden[:, :T], hidden[:, T:].unflatten(1, (K, N))  # (B,T,D), (B,K,N,D)
    # The shift: what stands before a token predicts it. Before every answer's first token stands the prefix's
    # end.
    end = prefix[torch.arange(B), batch.prefix_length - 1]                                  # (B,D)
    before = torch.cat([end[:, None, None].expand(B, K, 1, -1), answers[:, :, :-1]], dim=2)  # (B,K,N,D)

    def summed(states, targets, weights):
        """Only scored tokens meet the head: the logits of 576 image tokens would be the largest tensor of
        all."""
        scored = weights != 0
        logps = losses.token_logps(states[scored], head, targets[scored], chunk=chunk)      # (scored tokens,)
        weights = weights.to(logps.dtype)
        return torch.zeros_like(weights).masked_scatter(scored, logps * weights[scored]).sum(-1)

    # A scored token of the prefix is the beginning of every answer, so it counts for all K.
    shared = summed(prefix[:, :-1], batch.prefix_ids[:, 1:], batch.prefix_weights[:, 1:])   # (B,)
    return shared[:, None] + summed(before, batch.answer_ids, batch.answer_weights)         # (B,K)


def separate_logps(m, sets, features):
    """The same numbers the plain way: K full sequences a set, ordinary causal attention, all logits. (B,K)

    Nothing here knows about shared prefixes. Read it to see what `set_logps` must equal, and what that saves.
    """
    K = len(sets[0].ids) - 1
    rows = [tokens.ids[0] + rest for tokens in sets for rest in tokens.ids[1:]]             # B*K lists
    T = max(map(len, rows))
    real = padded([[1] * len(row) for row in rows], T, 0).to(m.device)                      # (B*K,T)
    ids = padded(rows, T, m.tokenizer.pad_token_id).to(m.device)                            # (B*K,T)
    weights = [tokens.weights[0] + rest for tokens in sets for rest in tokens.weights[1:]]
    weights = padded(weights, T, 0.0).to(m.device)                                          # (B*K,T)
    embeds = embed(m, ids, features.to(m.device).repeat_interleave(K, dim=0))               # (B*K,T,D)
    hidden = m.model.model.language_model(inputs_embeds=embeds, attention_mask=real, use_cache=False)
    logits = m.model.lm_head(hidden.last_hidden_state)                                      # (B*K,T,V)
    labels = ids.masked_fill(weights == 0, losses.NOT_SCORED)
    return losses.sequence_logps(logits, labels, weights).view(-1, K)


# ---- 5. Which sets share a batch ----

def batches(lengths, size, seed, window=64):
    """Indices of all sets, each once, in batches of `size` whose members are about equally long; the last may
    be short.

    lengths: tokens of each set, see `length`. The order follows from seed alone: give another one in every
    epoch. Sorting everything would leave the same sets together in each epoch, and no sorting would pad each
    batch to its longest set. So: shuffle, sort within windows of `window` batches, cut, and shuffle the
    batches. Data of fewer than window * size sets, as the demo's, is one window: most sets then keep their
    company, and the short batch is always the longest sets.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(lengths)), len(lengths))
    for start in range(0, len(order), window * size):
        stop = start + window * size
        order[start:stop] = sorted(order[start:stop], key=lambda i: lengths[i])
    cut = [order[start:start + size] for start in range(0, len(order), size)]
    short = [cut.pop()] if len(order) % size else []              # not shuffled: the short one stays last
    rng.shuffle(cut)
    return cut + short
