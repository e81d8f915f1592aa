"""How much memory a training run takes, said before anything large is loaded.

    memory: weights 13.2 GB, adapters 0.6, gradients 0.6, optimizer 1.2, activations 0.5 for 1 set of 576 + 50
    + 4 x 100 tokens; with a tenth to spare 17.7 GB: fits in 24 GB: yes

Parameters are counted on a skeleton, the model on torch's "meta" device: it has every shape and no numbers,
so a 7B model takes half a second and no memory. The counts are exact. What the forward pass keeps for the
backward pass is a sum over the layers of a Llama-like decoder, written out in `kept_per_token`; the tests
compare it with what torch keeps on a CPU. The lengths of a set are assumed (PROMPT, ANSWER): the data is not
read yet.

1 GB is 2**30 bytes here, as in "a 24 GB card". Source of the formulas: the shapes in transformers' Llama and
lora.py.
"""

import os
from dataclasses import replace

import torch
from transformers import LlavaForConditionalGeneration

from amp_min import losses

GB = 2**30
PROMPT, ANSWER = 50, 100            # text tokens of a prompt and of an answer, about what descriptions have
SPARE = 1.1                         # the allocator's gaps, the CUDA context and what is forgotten here


def skeleton(config):
    """The model that a config describes, with shapes and without numbers."""
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


def has_class_token(config):
    """CLIP puts a token for the whole picture before those of the patches; SigLIP has none."""
    return config.vision_config.model_type == "clip_vision_model"


def image_tokens_of(config):
    """P from the config: the patches that fit into the picture, and CLIP's class token; "default" drops the
    first of all.

    576 for LLaVA-1.5 (CLIP, 336 / 14, default), 729 for interleave (SigLIP has no class token, 384 // 14 =
    27, full).
    """
    vision = config.vision_config
    seen = (vision.image_size // vision.patch_size) ** 2 + has_class_token(config)
    return seen - (config.vision_feature_select_strategy == "default")


def kept_per_token(text, width, rank):
    """Bytes that one decoder layer keeps for its backward pass, per token.

    text: the language model's config; width: bytes of a number in the products (2 in bf16); rank: the
    adapters', or 0. D hidden size, Q the width of the queries (keys and values are repeated to it), F the
    feed-forward's width.
    """
    D, F = text.hidden_size, text.intermediate_size
    Q = text.num_attention_heads * (getattr(text, "head_dim", None) or D // text.num_attention_heads)
    norms = 2 * D * 4 * (1 if rank else 2)  # what goes in, in fp32; if the norms train, normalized as well
    attention = 4 * Q * width                           # q, k and v after the rotation, and what comes out
    feed_forward = 3 * F * width                        # gate, silu(gate), up
    # Inputs of the seven linear layers: q, k and v share one, and so do gate and up; o's is counted above.
    # But autocast, in full training, makes a bf16 copy for each product.
    linears = (2 * D + F if rank or width == 4 else 5 * D + F) * width
    return norms + attention + feed_forward + linears + 7 * rank * 4  # A x of each adapter


def kept(text, width, rank, sets, tokens, checkpointing, mask=None):
    """Bytes that all layers keep for the backward pass of `sets` sets of `tokens` tokens each.

    mask: numbers in a set's attention mask, by default the whole square.
    """
    between = width if rank else 4                      # full training is in fp32 between the products
    layer = sets * tokens * kept_per_token(text, width, rank)
    mask = sets * (mask or tokens**2)
    if checkpointing:                                   # the input of each layer, and one layer made again
        return text.num_hidden_layers * sets * tokens * text.hidden_size * between + layer + mask * between
    layer += mask * width * (width < between)           # autocast copies the mask, too, in every layer
    return text.num_hidden_layers * layer + mask * between


def joined(text, width, prefix, K, checkpointing):
    """Bytes of what packing.attend joins for a set: the prefix's keys and values once more for each answer,
    and the mask."""
    heads = text.num_attention_heads
    Q = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    layer = K * (2 * (prefix + ANSWER) * Q + ANSWER * (prefix + ANSWER)) * width
    return layer if checkpointing else text.num_hidden_layers * layer


def estimate(model, settings, width, image_tokens):
    """{what: bytes} of a training step; model is a skeleton (adapters added, requires_grad set) or a real
    model.

    settings: train.Settings; its lora_rank, levels, loss, micro_batch and gradient_checkpointing count.
    width: bytes of a number in the frozen weights and in the products, 2 for bf16, 4 for fp32.
    """
    text, rank, sets = model.config.text_config, settings.lora_rank, settings.micro_batch
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    K, prefix, checkpointing = levels(settings), image_tokens + PROMPT, settings.gradient_checkpointing
    mask = ANSWER * (prefix + ANSWER)                   # packing.answers_mask
    activations = kept(text, width, rank, sets, prefix + K * ANSWER, checkpointing, mask)
    activations += sets * joined(text, width, prefix, K, checkpointing)
    # A chunk's logits, made again in the backward pass (losses.token_logps), with softmax and gradient beside
    # them.
    activations += 3 * min(losses.LOGITS, sets * K * ANSWER * text.vocab_size) * 4
    if rank == 0 and width < 4:  # autocast's bf16 copies of the trained weights live as long
        activations += trained * width
    # What trains is fp32, and so is everything in full training: see train.load_policy.
    if rank:
        parts = {"weights": frozen * width, "adapters": trained * 4}
    else:
        parts = {"weights": (frozen + trained) * 4}
    moments = 2                                         # AdamW's
    return parts | {"gradients": trained * 4, "optimizer": trained * 4 * moments, "activations": activations}


def levels(settings):
    """K, as far as it is known before the data is read."""
    return 1 if settings.loss == "sft" else settings.levels or 4


def capacity(device):
    """Bytes of the GPU or of the machine, what the estimate is held against; None where they cannot be asked
    (Windows)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None


def line(config, choose_trained, settings, width, device):
    """`report` of a model that is not loaded yet. choose_trained(model, settings) says which parameters
    train."""
    model = skeleton(config)
    choose_trained(model, settings)
    return report(model, settings, width, image_tokens_of(config), capacity(device))


def report(model, settings, width, image_tokens, available):
    """The estimate as one line, and when it does not fit, the smallest change of settings that does."""
    parts = estimate(model, settings, width, image_tokens)
    total = SPARE * sum(parts.values())
    unit, name = (GB, "GB") if total > GB else (2**20, "MB")
    words = ", ".join(f"{what} {size / unit:.1f}" for what, size in parts.items())
    words = words.replace(",", f" {name},", 1)          # the unit is said once
    sets = "1 set" if settings.micro_batch == 1 else f"{settings.micro_batch} sets"
    tokens = f"{image_tokens} + {PROMPT} + {levels(settings)} x {ANSWER}"
    line = (f"memory: {words} for {sets} of {tokens} tokens; "
            f"with a tenth to spare {total / unit:.1f} {name}")
    if available is None:
        return line
    line += f": fits in {available / GB:.0f} GB: {'yes' if total <= available else 'no'}"
    if total <= available:
        return line
    saving = "--gradient-checkpointing"
    for flags, sets in ((saving, settings.micro_batch), (f"{saving} --micro-batch 1", 1)):
        change = replace(settings, gradient_checkpointing=True, micro_batch=sets)
        smaller = SPARE * sum(estimate(model, change, width, image_tokens).values())
        if smaller <= available:
            return f"{line}; with {flags} {smaller / GB:.1f} GB"
    rank = "a smaller --lora-rank" if settings.lora_rank else "--lora-rank 64"
    return f"{line}; take {rank} or a smaller model"


def answering_batch(m, asked, beams, new_tokens, most=64):
    """How many conversations are answered together: `asked`, or for 0 what fits, a power of two up to `most`.

    m: an Mllm; new_tokens: the longest answer. Prints the estimate. Generation keeps the keys and values of
    every token in every layer, for every beam; to that come one layer's activations while the prompt is read
    and a few copies of the last token's logits.
    """
    text, weights = m.model.config.text_config, sum(p.nbytes for p in m.model.parameters())
    width = m.model.dtype.itemsize
    tokens = min(m.image_tokens + PROMPT + new_tokens, text.max_position_embeddings)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * width         # bytes a token
    passing = (4 * text.hidden_size + 3 * text.intermediate_size) * width
    one = beams * (tokens * (cache + passing) + 3 * 4 * text.vocab_size)              # bytes a conversation
    room, batch = capacity(m.device), asked or most
    while room and not asked and batch > 1 and SPARE * (weights + batch * one) > room:
        batch //= 2
    unit, name = (GB, "GB") if weights > GB else (2**20, "MB")
    print(f"memory: weights {weights / unit:.1f} {name}, {one / unit:.2f} {name} for each conversation of "
          f"{beams} x {tokens} tokens; {batch} are answered together, "
          f"{SPARE * (weights + batch * one) / unit:.1f} {name}" + (f" of {room / GB:.0f} GB" if room else ""))
    return batch
