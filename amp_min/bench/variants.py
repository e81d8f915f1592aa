"""The variants of an MDPO step that are set side by side, on random models and random sets.

pairs    what a binary DPO trainer does: a set's K(K-1)/2 pairs one by one, each two full sequences that
         encode their picture, the reference in every step; the vocabulary head on the answers' tokens only
levels   what the released AMP code does: K full sequences in a batch, the picture encoded K times, all
         logits, the reference in every step. Its batch layout and loss; not its 4-bit weights
ours     one sequence with a shared prefix (packing.py); the reference's log-probs and the
         frozen vision tower's features are there already, see `once`

All give the same loss and the same gradients, and train the same parameters.
"""
import random
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
)

from amp_min import lora, losses, mllm, packing
from amp_min.bench import measure

# B preference sets of a step, K levels, N sets in all, P image tokens of a picture, V vocabulary
PAD, IMAGE, WORDS = 0, 3, 10              # token ids; words start at 10
EPOCHS = 4                              # the paper's: what is done once per data set costs an epoch a quarter


# ---- 1. models and sets ----

class Shape(NamedTuple):
    side: int           # of the picture, in pixels; P = (side / patch)^2
    patch: int
    vision: dict        # width, depth … of the tower
    text: dict          # and of the decoder
    prompt: int = 50    # text tokens
    answer: int = 100   # tokens, on average
    jitter: int = 20    # answers are `answer` ± jitter tokens long
    B: int = 1


def sizes(width, inner, depth, heads, **more):
    return dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=depth,
                num_attention_heads=heads, **more)


SHAPES = {
    # 16 sets a step: with one, the calls would cost more than the work.
    "toy": Shape(24, 8, sizes(96, 192, 3, 2), sizes(64, 128, 3, 4, vocab_size=640), 20, 30, 6, B=16),
    # LLaVA-1.5's token counts and a small model. Its vocabulary is 8,000: with 32,064 the head, 2 % of
    # LLaVA-1.5-7B, would be most of the model, in our favor.
    "llava-1.5-proportions": Shape(336, 14, sizes(128, 512, 2, 4), sizes(256, 688, 4, 8, vocab_size=8000)),
    "llava-1.5-7b": Shape(336, 14, sizes(1024, 4096, 24, 16), sizes(4096, 11008, 32, 32, vocab_size=32064)),
    # For tests: two layers, and long enough for attention to count.
    "tiny": Shape(64, 4, sizes(16, 32, 2, 2), sizes(32, 48, 2, 4, vocab_size=200), 4, 9, 3),
}


def build(shape, seed, dtype=torch.float32, device="cpu"):
    """A LLaVA of random weights, made on the device, the tower frozen, as an Mllm without processor."""
    torch.manual_seed(seed)
    ends, P = dict(pad_token_id=PAD, bos_token_id=1, eos_token_id=2), (shape.side // shape.patch) ** 2
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision, image_size=shape.side, patch_size=shape.patch),
        text_config=LlamaConfig(**shape.text, max_position_embeddings=4096, **ends),
        image_token_id=IMAGE, image_seq_length=P, vision_feature_layer=-2)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).train()
    model.model.vision_tower.requires_grad_(False)
    return mllm.Mllm("random", model, SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=PAD)), IMAGE, P)


def make_sets(shape, K, seed, N):
    """N TokenSets of K random answers whose first words differ, and their pictures (N,3,side,side)."""
    rng, V, sets = random.Random(seed), shape.text["vocab_size"], []
    words = lambda n: [rng.randrange(WORDS + K, V) for _ in range(n)]
    for _ in range(N):
        head = [1] + [IMAGE] * (shape.side // shape.patch) ** 2 + words(shape.prompt - 1)
        lengths = [shape.answer + rng.randint(-shape.jitter, shape.jitter) for _ in range(K)]
        answers = [[WORDS + k] + words(n - 1) for k, n in enumerate(lengths)]
        sets.append(packing.token_set([(head + a, [0] * len(head) + [1] * len(a)) for a in answers]))
    return sets, torch.randn(N, 3, shape.side, shape.side, generator=torch.Generator().manual_seed(seed))


def token_counts(K, sets):
    """Tokens that the policy reads in a set's step, mean over the sets; p in the prefix, n in all answers."""
    p, n = mean(len(s.ids[0]) for s in sets), mean(sum(map(len, s.ids[1:])) for s in sets)
    return {"pairs": (K - 1) * (K * p + n), "levels": K * p + n, "ours": p + n}  # an answer is in K - 1 pairs


# ---- 2. the method, by the names that it has elsewhere: the bench calls it here and nowhere else ----

encode_images, separate_logps = mllm.encode_images, packing.separate_logps


def packed_logps(m, sets, features):
    return packing.set_logps(m, packing.pack(sets, PAD), features)                  # (B,K)


def use_attention(m, name):
    """"prefix sharing" is packing.attend; with transformers' own "sdpa" the whole mask is computed."""
    if name == "prefix sharing":
        return packing.speed_up(m)
    m.model.model.language_model.set_attn_implementation(name)
    return m


# ---- 3. the variants ----

def lab(policy, reference, shape, K, seed, N):
    """What N steps need. reference: a second model; None: the policy without its adapters."""
    sets, pixels = make_sets(shape, K, seed, N * shape.B)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    batches = [slice(i, i + shape.B) for i in range(0, len(sets), shape.B)]
    return SimpleNamespace(policy=policy, reference=reference, trained=trained, optimizer=optimizer, K=K,
                           sets=sets, pixels=pixels, batches=batches)


def once(lab):
    """What ours does once per data set: encode the pictures, and take the reference's log-probs."""
    lab.features = encode_images(lab.policy, lab.pixels)                            # (N,P,D_vision)
    lab.ref = torch.cat([of_reference(shared, lab, rows) for rows in lab.batches])  # (N,K)
    return lab


@torch.no_grad()
def of_reference(logps, lab, rows, **how):
    if lab.reference:
        return logps(lab.reference, lab, rows, **how)
    with lora.disabled(lab.policy.model):
        return logps(lab.policy, lab, rows, **how)


def shared(m, lab, rows, attention="prefix sharing"):
    return packed_logps(use_attention(m, attention), lab.sets[rows], lab.features[rows])        # (B,K)


def separate(m, lab, rows, answers=None, all_logits=False, encode=False):
    """Log-probs (B, len(answers)) of all or some answers as full sequences with ordinary causal attention.

    all_logits: every position meets the vocabulary, not only those that predict an answer's token; encode:
    the picture, once for each sequence.
    """
    answers = answers or range(lab.K)
    alone = [packing.TokenSet([s.ids[0], s.ids[k + 1]], [s.weights[0], s.weights[k + 1]])  # of one answer
             for s in lab.sets[rows] for k in answers]
    features = (lab.pixels if encode else lab.features)[rows].repeat_interleave(len(answers), dim=0)
    if encode:
        features = encode_images(m, features)
    logps = separate_logps if all_logits else packed_logps
    return logps(use_attention(m, "sdpa"), alone, features).view(-1, len(answers))


def pairs(lab, rows):
    indices, total = losses.pair_indices(lab.K), 0.0
    for pair in indices:
        how = dict(answers=pair, encode=True)
        policy, ref = separate(lab.policy, lab, rows, **how), of_reference(separate, lab, rows, **how)
        loss = losses.dpop_loss(*policy.T, *ref.T, penalty=float(pair[0] == 0)).mean()     # its term of Eq. 7
        total += backward(loss / len(indices))
    return total


def levels(lab, rows):
    how = dict(all_logits=True, encode=True)
    policy, ref = separate(lab.policy, lab, rows, **how), of_reference(separate, lab, rows, **how)     # (B,K)
    return backward(losses.mdpo_loss(policy, ref))


def ours(lab, rows, logps=shared, **how):
    return backward(losses.mdpo_loss(logps(lab.policy, lab, rows, **how), lab.ref[rows]))


def backward(loss):
    loss.backward()
    return loss.item()


# The three sides of the comparison; then ours with another attention, and without its shared prefix.
STEPS = {
    "pairs": pairs, "levels": levels, "ours": ours,
    "whole mask": lambda lab, rows: ours(lab, rows, attention="sdpa"),
    "no shared prefix": lambda lab, rows: ours(lab, rows, separate),
}


def step(lab, name, i):
    """One optimizer step of a variant on batch i; returns the loss before it."""
    loss = STEPS[name](lab, lab.batches[i % len(lab.batches)])
    torch.nn.utils.clip_grad_norm_(lab.trained, 1.0)
    lab.optimizer.step()
    lab.optimizer.zero_grad()
    return loss


def timed(lab, names, repeats, device="cpu"):
    """(what `measure.alternate` says of the variants and of what ours does once, {variant: seconds per set}).

    `pairs` and `levels` do everything in every step; a quarter of what is done once is added to the others.
    """
    rows = lambda i: lab.batches[i % len(lab.batches)]
    works = {name: lambda i, name=name: step(lab, name, i) for name in names}
    works["reference pass"] = lambda i: of_reference(shared, lab, rows(i))
    works["picture"] = lambda i: encode_images(lab.policy, lab.pixels[rows(i)])
    found = measure.alternate(works, repeats, len(lab.sets[rows(0)]), device)
    once = found["reference pass"]["seconds"] + found["picture"]["seconds"]
    added = {"pairs": 0, "levels": 0}
    return found, {name: found[name]["seconds"] + added.get(name, once / EPOCHS) for name in names}


# ---- 4. peak memory, in a process of its own: a function of this module can be sent there ----

def open_lab(preset, K, seed, second=True):
    """Three steps' sets, a policy, and the second model that is the reference of `pairs` and `levels`."""
    shape = SHAPES[preset]
    policy = build(shape, seed)
    return lab(policy, build(shape, seed) if second else policy, shape, K, seed, N=3)


def peak_here(preset, K, side, threads, seed):
    """Peak memory in MB of two steps above the loaded models; the first one makes the optimizer's state."""
    torch.set_num_threads(threads)
    # A step of the toy first: kernels are read into memory at their first use, and are no part of a step.
    step(once(open_lab("toy", 2, seed)), side, 0)
    lab = open_lab(preset, K, seed, second=side != "ours")
    loaded = measure.resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")                               # VmHWM starts again from here
    if side == "ours":
        once(lab)
    for i in range(2):
        step(lab, side, i)
    return measure.resident("VmHWM") - loaded
