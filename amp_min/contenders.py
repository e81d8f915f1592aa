"""The ways to take one MDPO step that bench.py sets side by side, on random models and random sets.

pairs    what a binary DPO trainer does: a set's K(K-1)/2 pairs one by one, each two full sequences with their own look
         at the picture, and a second model as the reference; the vocabulary head on the answers' tokens only
levels   what the released AMP code does: K full sequences in a batch, the picture looked at K times, all logits, a
         second model as the reference. Its batch layout and loss; not its 4-bit adapters
ours     one sequence with a shared prefix (packing.py, pieces.py); the reference's log-probs and what the frozen vision
         tower sees are there already, see `once`

All of them give the same loss and the same gradients, and train the same parameters: everything but the vision tower.
"""
import random
import statistics
from types import SimpleNamespace
from typing import NamedTuple

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

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
    sets: int = 3           # distinct sets that the steps go through

    @property
    def image_tokens(self):
        return (self.side // self.patch) ** 2


def sizes(width, inner, depth, heads, **more):
    return dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=heads, **more)


SHAPES = {
    "toy": Shape(24, 8, sizes(96, 192, 3, 2), sizes(64, 128, 3, 4, vocab_size=640), prompt=20, answer=30, jitter=6),
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
    """shape.sets TokenSets of K random answers, the first words of which differ, and their pictures (N,3,side,side)."""
    rng, V = random.Random(seed), shape.text["vocab_size"]
    words = lambda n: [rng.randrange(WORDS + K, V) for _ in range(n)]
    found = []
    for _ in range(shape.sets):
        head = [1] + [IMAGE] * shape.image_tokens + words(shape.prompt - 1)
        answers = [[WORDS + k] + words(shape.answer + rng.randint(-shape.jitter, shape.jitter) - 1) for k in range(K)]
        found.append(packing.token_set([(head + a, [0] * len(head) + [1] * len(a)) for a in answers]))
    return found, torch.randn(shape.sets, 3, shape.side, shape.side, generator=torch.Generator().manual_seed(seed))


def token_counts(K, sets):
    """Tokens that the policy reads in a set's step, mean over the sets: closed forms of prefix p and answers n_k."""
    p, n = (statistics.mean(x) for x in zip(*((len(s.ids[0]), sum(map(len, s.ids[1:]))) for s in sets)))
    return {"pairs": (K - 1) * (K * p + n), "levels": K * p + n, "ours": p + n}     # each answer is in K - 1 pairs


# ---- 2. the three ways, and ours with one saving off ------------------------------------------------------------

class Lab(NamedTuple):
    policy: mllm.Mllm
    reference: mllm.Mllm    # the second model; `ours` uses ref instead
    sets: list
    pixels: torch.Tensor    # (N,3,side,side)
    features: torch.Tensor  # (N,P,D_vision)
    ref: torch.Tensor       # (N,K)
    trained: list           # parameters
    optimizer: torch.optim.Optimizer


def open_lab(shape, K, seed, device="cpu", both=True):
    policy, (sets, pixels) = build(shape, seed, device=device), make_sets(shape, K, seed)
    reference = build(shape, seed, device=device) if both else policy
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    return Lab(policy, reference, sets, pixels, None, None, trained, optimizer)


def once(lab):
    """What ours does once per data set: look at the pictures, and the reference's log-probs. Returns the Lab with both."""
    lab = lab._replace(features=mllm.look(lab.policy, lab.pixels))
    return lab._replace(ref=torch.cat([reference_pass(lab, i) for i in range(len(lab.sets))]))


@torch.no_grad()
def reference_pass(lab, i):
    packing.speed_up(lab.reference)
    return packing.set_logps(lab.reference, packing.pack([lab.sets[i]], PAD), lab.features[i:i + 1])    # (1,K)


def sequences(m, tokens, chosen, picture, head, features=None):
    """log-probs of the chosen answers as full sequences with ordinary attention: (1, len(chosen)).

    head: "all" positions meet the vocabulary, or only the "answers". features: None looks once for each sequence.
    """
    m.model.model.language_model.set_attn_implementation("sdpa")
    rows = [packing.TokenSet([tokens.ids[0], tokens.ids[k + 1]], [tokens.weights[0], tokens.weights[k + 1]]) for k in chosen]
    if features is None:
        features = mllm.look(m, picture.expand(len(rows), -1, -1, -1))                      # (n,P,D_vision)
    if head == "all":
        return packing.separate_logps(m, rows, features).T
    return packing.set_logps(m, packing.pack(rows, PAD), features).T


def pairs(lab, i, head="answers"):
    K, tokens, picture, total = len(lab.sets[i].ids) - 1, lab.sets[i], lab.pixels[i:i + 1], 0.0
    indices = losses.pair_indices(K)
    for pair in indices:
        policy = sequences(lab.policy, tokens, pair, picture, head)                         # (1,2)
        with torch.no_grad():
            ref = sequences(lab.reference, tokens, pair, picture, head)
        loss = losses.dpop_loss(*policy[0], *ref[0], penalty=float(pair[0] == 0)) / len(indices)        # Eq. 7, as a mean
        loss.backward()
        total += loss.item()
    return total


def levels(lab, i, head="all"):
    tokens, picture, every = lab.sets[i], lab.pixels[i:i + 1], range(len(lab.sets[i].ids) - 1)
    policy = sequences(lab.policy, tokens, every, picture, head)                            # (1,K)
    with torch.no_grad():
        ref = sequences(lab.reference, tokens, every, picture, head)
    return backward(losses.mdpo_loss(policy, ref))


def ours(lab, i, chunk=None, fast=True):
    """fast False: the dense mask, and the whole last layer. chunk: the head in recomputed chunks."""
    if fast:
        packing.speed_up(lab.policy)
    else:
        lab.policy.model.model.language_model.set_attn_implementation("sdpa")
    policy = packing.set_logps(lab.policy, packing.pack([lab.sets[i]], PAD), lab.features[i:i + 1], chunk)
    return backward(losses.mdpo_loss(policy, lab.ref[i:i + 1]))


def no_shared_prefix(lab, i):
    every = range(len(lab.sets[i].ids) - 1)
    policy = sequences(lab.policy, lab.sets[i], every, None, "answers", lab.features[i:i + 1].expand(len(every), -1, -1))
    return backward(losses.mdpo_loss(policy, lab.ref[i:i + 1]))


def no_answer_head(lab, i):
    """Every position of the packed sequence meets the vocabulary, as without the selection."""
    m, tokens = packing.speed_up(lab.policy), packing.pack([lab.sets[i]], PAD)
    T = tokens.input_ids.shape[1]
    others = torch.tensor(sorted(set(range(T)) - set(tokens.predictor.tolist())))           # scored too, with weight 0
    everywhere = tokens._replace(
        predictor=torch.cat([tokens.predictor, others]), targets=torch.cat([tokens.targets, torch.zeros_like(others)]),
        weights=torch.cat([tokens.weights, torch.zeros(len(others))]), owner=torch.cat([tokens.owner, torch.zeros_like(others)]))
    return backward(losses.mdpo_loss(packing.set_logps(m, everywhere, lab.features[i:i + 1]), lab.ref[i:i + 1]))


def backward(loss):
    loss.backward()
    return loss.item()


STEPS = {
    "pairs": pairs, "levels": levels, "ours": ours,
    "pairs, all logits": lambda lab, i: pairs(lab, i, head="all"),
    "levels, head on answers": lambda lab, i: levels(lab, i, head="answers"),
    "no shared prefix": no_shared_prefix,
    "no answers-only head": no_answer_head,
    "no pieces (dense mask)": lambda lab, i: ours(lab, i, fast=False),
    "head recomputed": lambda lab, i: ours(lab, i, chunk=128),
}


def step(lab, name, i):
    """One optimizer step on set i; returns the loss before it."""
    loss = STEPS[name](lab, i % len(lab.sets))
    torch.nn.utils.clip_grad_norm_(lab.trained, 1.0)
    lab.optimizer.step()
    lab.optimizer.zero_grad()
    return loss
