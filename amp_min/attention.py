"""The decoder over packed sets, without computing what nobody reads: the fast path of `packing.set_logps`.

Two things are left out, and neither changes a result:

1. Most of the T x T scores of packing.py's mask are empty: above the diagonal, and between answers. `attend` computes
   the rest in pieces: the prefix looks at itself, and answer k at [prefix, answer k]. At LLaVA-1.5's lengths and K = 4
   that is 1/2 * 626^2 + 4 * 100 * 726 = 486,000 scores a head instead of 1026^2 = 1,053,000, and a further answer adds
   its own 72,600 however many there are.
2. In the last layer, a picture or prompt token is only looked at: its key and value count, and what the layer would
   make of it (its query, its feed-forward part) is read by nobody. A token before the first one that predicts an answer
   token gets the key and the value alone.

The mask stays the definition: it is what every other attention of transformers takes, the tests hold the two together,
and below DENSE_BELOW tokens one call over T x T is faster than many small ones.

For decoders built like Llama's (Llama, Vicuna, Qwen2): `suits` says so, and everything else takes the mask.
"""
from functools import lru_cache, partial

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

# B preference sets, T tokens of a packed set, D hidden size, H heads (keys and values may have fewer), d head size
NAME = "amp_min_pieces"         # decoder.set_attn_implementation(NAME) chooses all this; `packing.speed_up` does
DENSE_BELOW = 256               # tokens


def suits(decoder):
    """Is this a decoder whose last layer can be taken apart as `run` does?"""
    return {type(layer).__name__ for layer in decoder.layers} <= {"LlamaDecoderLayer", "Qwen2DecoderLayer"}


def cut(segment):
    """segment (B,T) of a packing.Batch -> per set the lengths of its prefix and of its answers (those that have a token)."""
    return [[row.count(0), *(n for k in range(1, max(row) + 1) if (n := row.count(k)))] for row in segment.tolist()]


@lru_cache(maxsize=8)         # the layers of one set share them
def corner(n, m, dtype, device):
    """(1,1,n,m), added to the scores of the last n of m tokens: 0 up to the token itself, -inf behind it."""
    return torch.full((n, m), float("-inf"), dtype=dtype, device=device).triu_(m - n + 1)[None, None]


def look_back(attention, query, key, value):
    """The queries are the last n of the m tokens that key and value have; each sees itself and what is before it.

    query (1,H,n,d), key and value (1,H,m,d) -> (1,n,H,d).
    """
    n, m = query.shape[2], key.shape[2]
    # Without a mask transformers takes the kernel for n = m, which skips what is above the diagonal.
    hidden_from = corner(n, m, query.dtype, query.device) if 1 < n < m else None
    return attention(query, key, value, hidden_from)[0]


def look_back_over(attention, query, prefix, own, join_again):
    """`look_back` at [prefix, own], each a (key, value); with join_again, their joined copies are made anew in the backward pass.

    Autograd would keep K copies of the prefix's keys and values in every layer: a fifth of all activations.
    """
    key, value = (torch.cat(pair, dim=2) for pair in zip(prefix, own))                      # (1,H,m,d)
    if not join_again:
        return look_back(attention, query, key, value)
    # By address, as autograd hands over other Python objects. The hooks live as long as the graph: nothing joined in them.
    halves = {whole.data_ptr(): [half.detach() for half in pair] for whole, pair in zip((key, value), zip(prefix, own))}
    shape = key.shape
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: halves[x.data_ptr()] if x.data_ptr() in halves and x.shape == shape else x,
            lambda kept: torch.cat(kept, dim=2) if isinstance(kept, list) else kept):
        return look_back(attention, query, key, value)


def attend(module, query, key, value, attention_mask, pieces=None, before=None, join_again=True, **settings):
    """Attention in the form that transformers calls: query (B,H,T,d), key and value (B,H,T,d) -> (B,T,H,d), None.

    before: keys and values of tokens that come first and have no query here. pieces: from `cut`; without them this is
    transformers' own "sdpa" (generation, full sequences, short batches).
    """
    if before is not None:
        key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value)))         # (B,H,T,d)
    if pieces is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    attention = partial(sdpa_attention_forward, module, **settings)
    first, rows = key.shape[2] - query.shape[2], []
    for b, lengths in enumerate(pieces):
        # One split, not many slices: a slice's gradient is a whole tensor of zeros with one part filled in.
        padding = key.shape[2] - sum(lengths)
        q_prefix, *q_answers, _ = query[b:b + 1].split([lengths[0] - first, *lengths[1:], padding], dim=2)
        k_prefix, *k_answers, _ = key[b:b + 1].split([*lengths, padding], dim=2)
        v_prefix, *v_answers, _ = value[b:b + 1].split([*lengths, padding], dim=2)
        out = [look_back(attention, q_prefix, k_prefix, v_prefix)]
        for q, k, v in zip(q_answers, k_answers, v_answers):
            out.append(look_back_over(attention, q, (k_prefix, v_prefix), (k, v), join_again))
        out.append(out[0].new_zeros(1, padding, *out[0].shape[2:]))                         # read by nobody
        rows.append(torch.cat(out, dim=1))                                                  # (1,T-first,H,d)
    return torch.cat(rows), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def run(decoder, embeds, position_ids, segment, mask, first):
    """The decoder's last hidden states from token `first` on: embeds (B,T,D) -> (B,T-first,D).

    first: no later than the first token whose state is read, and inside every prefix. mask: a function that makes the
    (B,1,T,T) mask, called for short batches only. Everything else as in `packing.Batch`.
    """
    pieces = cut(segment) if segment.shape[1] >= DENSE_BELOW else None
    *layers, last = decoder.layers
    # Gradient checkpointing makes a whole layer anew; what a hook inside it kept would stay in memory, beside that.
    checkpointing = last.gradient_checkpointing and last.training
    attention = {"attention_mask": mask() if pieces is None else None, "pieces": pieces, "join_again": not checkpointing}
    cos, sin = decoder.rotary_emb(embeds, position_ids=position_ids)                        # (B,T,d) each
    hidden = embeds
    for layer in layers:
        hidden = layer(hidden, position_embeddings=(cos, sin), **attention)                 # (B,T,D)
    # The last layer: key and value for the tokens before `first`, everything for the others.
    early, own = last.input_layernorm(hidden[:, :first]), last.self_attn                    # (B,first,D)
    heads = lambda x: x.unflatten(-1, (-1, own.head_dim)).transpose(1, 2)                   # (B,H,first,d)
    key, value = heads(own.k_proj(early)), heads(own.v_proj(early))
    key, _ = apply_rotary_pos_emb(key, key, cos[:, :first], sin[:, :first])
    if pieces is None:
        attention["attention_mask"] = attention["attention_mask"][:, :, first:]
    hidden = last(hidden[:, first:], position_embeddings=(cos[:, first:], sin[:, first:]), before=(key, value), **attention)
    return decoder.norm(hidden)                                                             # (B,T-first,D)
