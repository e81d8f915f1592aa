"""The ways to take one MDPO step that bench.py sets side by side, on random models and random sets.

pairs    what a binary DPO trainer does: a set's K(K-1)/2 pairs one by one, each two full sequences with their own look
         at the picture, and a second model as the reference; the vocabulary head on the answers' tokens only
levels   what the released AMP code does: K full sequences in a batch, the picture looked at K times, all logits, a
         second model as the reference. Its batch layout and loss; not its 4-bit adapters
ours     one sequence with a shared prefix (packing.py, attention.py); the reference's log-probs and what the frozen vision
         tower sees are there already, see `once`

All of them give the same loss and the same gradients, and train the same parameters: everything but the vision tower.
"""
import random
import statistics
from types import SimpleNamespace
from typing import NamedTuple

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from amp_min import losses, mllm, packing

# B preference sets, K levels, P image tokens, D hidden size, V vocabulary
PAD, IMAGE, WORDS = 0, 3, 10                  # token ids; words start at 10


# ---- 1. model and sets ------------------------------------------------------------------------------------------

class Shape(NamedTuple):
    side: int               # of the picture, in pixels; (side / patch)^2 image tokens
    patch: int
    vision: dict            # width, depth … of the tower
    text: dict              # and of the decoder
    prompt: int             # text tokens of the prompt
    answer: int             # mean tokens of an answer
    jitter: int             # answers are `answer` ± jitter tokens long
    batch: int = 1          # sets per optimizer step; the toy needs more, or the calls would cost more than the work
    batches: int = 3        # distinct batches that the steps go through

    @property
    def image_tokens(self):
        return (self.side // self.patch) ** 2


def sizes(width, inner, depth, heads, **more):
    return dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=heads, **more)


SHAPES = {
    "toy": Shape(24, 8, sizes(96, 192, 3, 2), sizes(64, 128, 3, 4, vocab_size=640), prompt=20, answer=30, jitter=6, batch=16),
    "llava-1.5-proportions": Shape(336, 14, sizes(128, 512, 2, 4), sizes(256, 688, 4, 8, vocab_size=8000), prompt=50, answer=100, jitter=20),
    "llava-1.5-7b": Shape(336, 14, sizes(1024, 4096, 24, 16), sizes(4096, 11008, 32, 32, vocab_size=32064), prompt=50, answer=100, jitter=0),
}


def build(shape, seed, dtype=torch.float32, device="cpu"):
    """A LLaVA of random weights, the tower frozen, as an Mllm without processor."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision, image_size=shape.side, patch_size=shape.patch),
        text_config=LlamaConfig(**shape.text, max_position_embeddings=4096, pad_token_id=PAD, bos_token_id=1, eos_token_id=2),
        image_token_id=IMAGE, image_seq_length=shape.image_tokens, vision_feature_layer=-2)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.model.vision_tower.requires_grad_(False)
    return mllm.Mllm("random", model.train(), SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=PAD)), IMAGE, shape.image_tokens)


def make_sets(shape, K, seed):
    """batches * batch TokenSets of K random answers, the first words of which differ, and their pictures (N,3,side,side)."""
    rng, V, N = random.Random(seed), shape.text["vocab_size"], shape.batches * shape.batch
    words = lambda n: [rng.randrange(WORDS + K, V) for _ in range(n)]
    found = []
    for _ in range(N):
        head = [1] + [IMAGE] * shape.image_tokens + words(shape.prompt - 1)
        answers = [[WORDS + k] + words(shape.answer + rng.randint(-shape.jitter, shape.jitter) - 1) for k in range(K)]
        found.append(packing.token_set([(head + a, [0] * len(head) + [1] * len(a)) for a in answers]))
    return found, torch.randn(N, 3, shape.side, shape.side, generator=torch.Generator().manual_seed(seed))


def token_counts(K, sets):
    """Tokens that the policy reads in a set's step, mean over the sets: closed forms of prefix p and answers n_k."""
    p, n = (statistics.mean(x) for x in zip(*((len(s.ids[0]), sum(map(len, s.ids[1:]))) for s in sets)))
    return {"pairs": (K - 1) * (K * p + n), "levels": K * p + n, "ours": p + n}     # each answer is in K - 1 pairs


# ---- 2. the three ways, and ours with one saving off ------------------------------------------------------------

class Lab(NamedTuple):
    policy: mllm.Mllm
    reference: mllm.Mllm    # the second model; `ours` uses ref instead
    sets: list
    batches: list           # which sets a step takes: lists of B indices
    pixels: torch.Tensor    # (N,3,side,side)
    features: torch.Tensor  # (N,P,D_vision)
    ref: torch.Tensor       # (N,K)
    trained: list           # parameters
    optimizer: torch.optim.Optimizer


def open_lab(shape, K, seed, both=True):
    policy, (sets, pixels) = build(shape, seed), make_sets(shape, K, seed)
    reference = build(shape, seed) if both else policy
    batches = [list(range(i, i + shape.batch)) for i in range(0, len(sets), shape.batch)]
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    return Lab(policy, reference, sets, batches, pixels, None, None, trained, optimizer)


def once(lab):
    """What ours does once per data set: look at the pictures, and the reference's log-probs. Returns the Lab with both."""
    lab = lab._replace(features=mllm.encode_images(lab.policy, lab.pixels))
    return lab._replace(ref=torch.cat([reference_pass(lab, chosen) for chosen in lab.batches]))


def packed(lab, chosen):
    return packing.pack([lab.sets[i] for i in chosen], PAD)


@torch.no_grad()
def reference_pass(lab, chosen):
    return packing.set_logps(packing.speed_up(lab.reference), packed(lab, chosen), lab.features[chosen])        # (B,K)


def ordinary_attention(m):
    if m.model.model.language_model.config._attn_implementation != "sdpa":
        m.model.model.language_model.set_attn_implementation("sdpa")
    return m


def sequences(m, lab, chosen, answers, head, look=True):
    """log-probs of some answers of the chosen sets as full sequences with ordinary attention: (B, len(answers)).

    head: "all" positions meet the vocabulary, or only the "answers". look: at the picture, once for each sequence.
    """
    rows = [packing.TokenSet([tokens.ids[0], tokens.ids[k + 1]], [tokens.weights[0], tokens.weights[k + 1]])
            for tokens in (lab.sets[i] for i in chosen) for k in answers]                   # B * len(answers) of them
    every = torch.tensor(chosen).repeat_interleave(len(answers))
    features = mllm.encode_images(m, lab.pixels[every]) if look else lab.features[every]
    ordinary_attention(m)
    logps = packing.separate_logps(m, rows, features) if head == "all" else packing.set_logps(m, packing.pack(rows, PAD), features)
    return logps.view(len(chosen), len(answers))


def pairs(lab, chosen, head="answers"):
    indices, total = losses.pair_indices(len(lab.sets[0].ids) - 1), 0.0
    for pair in indices:
        policy = sequences(lab.policy, lab, chosen, pair, head)                             # (B,2)
        with torch.no_grad():
            ref = sequences(lab.reference, lab, chosen, pair, head)
        loss = losses.dpop_loss(*policy.T, *ref.T, penalty=float(pair[0] == 0)).mean()      # Eq. 7's term of this pair
        total += backward(loss / len(indices))
    return total


def levels(lab, chosen, head="all"):
    every = range(len(lab.sets[0].ids) - 1)
    policy = sequences(lab.policy, lab, chosen, every, head)                                # (B,K)
    with torch.no_grad():
        ref = sequences(lab.reference, lab, chosen, every, head)
    return backward(losses.mdpo_loss(policy, ref))


def ours(lab, chosen, chunk=None, fast=True):
    """fast False: the dense mask, and the whole last layer. chunk: scored tokens that meet the head at a time."""
    m = (packing.speed_up if fast else ordinary_attention)(lab.policy)
    policy = packing.set_logps(m, packed(lab, chosen), lab.features[chosen], chunk)         # (B,K)
    return backward(losses.mdpo_loss(policy, lab.ref[chosen]))


def no_shared_prefix(lab, chosen):
    policy = sequences(lab.policy, lab, chosen, range(lab.ref.shape[1]), "answers", look=False)
    return backward(losses.mdpo_loss(policy, lab.ref[chosen]))


def no_answer_head(lab, chosen):
    """Every position of the packed sequence meets the vocabulary: those that predict nothing are scored with weight 0."""
    batch = packed(lab, chosen)
    others = torch.tensor(sorted(set(range(batch.input_ids.numel())) - set(batch.predictor.tolist())))
    nothing = torch.zeros_like(others)
    batch = batch._replace(**{name: torch.cat([getattr(batch, name), more]) for name, more in (
        ("predictor", others), ("targets", nothing), ("weights", nothing.float()), ("owner", nothing))})
    policy = packing.set_logps(packing.speed_up(lab.policy), batch, lab.features[chosen])
    return backward(losses.mdpo_loss(policy, lab.ref[chosen]))


def backward(loss):
    loss.backward()
    return loss.item()


STEPS = {
    "pairs": pairs, "levels": levels, "ours": ours,
    "pairs, all logits": lambda lab, chosen: pairs(lab, chosen, head="all"),
    "levels, head on answers": lambda lab, chosen: levels(lab, chosen, head="answers"),
    "no shared prefix": no_shared_prefix,
    "no answers-only head": no_answer_head,
    "no pieces (dense mask)": lambda lab, chosen: ours(lab, chosen, fast=False),
    "no chunks in the head": lambda lab, chosen: ours(lab, chosen, chunk=10**9),
}


def step(lab, name, i):
    """One optimizer step on batch i; returns the loss before it."""
    loss = STEPS[name](lab, lab.batches[i % len(lab.batches)])
    torch.nn.utils.clip_grad_norm_(lab.trained, 1.0)
    lab.optimizer.step()
    lab.optimizer.zero_grad()
    return loss
