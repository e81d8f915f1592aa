"""What only a GPU can show, in one command of at most nine minutes: python -m amp_min.bench --gpu

Needs PyTorch and transformers (from 2.11 and 5.17 on), no network, no spaCy. LLaVA-1.5-7B is made on the GPU
from its config, with random weights: speed and memory do not depend on what weights say. A part that fails
leaves its error in its place, and the others still run; the file is written anew after each part.
"""
import copy
import gc
import json
import math
import signal
import time
from dataclasses import replace
from functools import partial
from statistics import mean
from types import SimpleNamespace

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from amp_min import lora, losses, mllm
from amp_min.bench import measure, variants
from amp_min.support import storage
from amp_min.support.script import UserError

# Dense bf16 products and sums a second, NVIDIA's data sheets (SXM boards).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}
BEAMS, NEW_TOKENS = 4, 64


# ---- 1. is it right on this device? ----

def distances(ours, plain, truth):
    """Largest distances from float64. Rounding is no fault; three times as much as the plain twin's is."""
    truth = truth.detach()
    ours, plain = (float((x.detach().double() - truth).abs().max()) for x in (ours, plain))
    return {"ours": ours, "plain": plain, "right": ours <= 3 * plain + 1e-9 * float(truth.abs().max())}


def equal(dtype, shape, device, attention, K=4, N=4):
    """Shared prefix and chunked head against separate sequences and all logits; log-probs and gradients."""
    torch.set_float32_matmul_precision("highest")
    m, (sets, pixels) = variants.build(shape, 0, dtype, device), variants.make_sets(shape, K, 0, N)
    exact = replace(m, model=copy.deepcopy(m.model).double())
    features = variants.encode_images(exact, pixels)

    def of(m, logps):
        values = logps(m, sets, features.to(m.model.dtype))                          # (N,K)
        weights = m.model.model.language_model.layers[0].mlp.down_proj.weight, m.model.lm_head.weight
        return values, *torch.autograd.grad(values.sum(), weights)
    twins = of(m, variants.separate_logps), of(exact, variants.separate_logps)
    ours = of(variants.use_attention(m, attention), variants.packed_logps)
    names = ("log-probs", "gradient, layer 1", "gradient, head")
    return dict(zip(names, map(distances, ours, *twins), strict=True))


def closed_forms(device):
    """ln 2 and ln K! at the start; each level's pull in a sum without penalty, beta / 2 * (K - 1 - 2k)."""
    ref = -100 * torch.rand(1, 4, device=device)
    policy = ref.clone().requires_grad_()
    (pull,), = torch.autograd.grad(-losses.mdpo_loss(policy, ref, penalty=0.0, reduction="sum"), policy)
    found = torch.stack([losses.mdpo_loss(ref, ref), losses.kwise_loss(ref, ref), *pull]).tolist()
    want = [math.log(2), math.log(24), 0.15, 0.05, -0.05, -0.15]
    right = all(math.isclose(x, y, rel_tol=1e-4) for x, y in zip(found, want, strict=True))
    return {"MDPO, K-wise, pulls": {"ours": found, "want": want, "right": right}}


# ---- 2. how fast, and in how much memory? ----

def flops(shape, tokens, rank):
    """Products and sums of a step on one packed set, adapters trained and the rest frozen.

    A matrix of n weights costs a token 2n forward and 2n for the gradient of its input; adapters need 2n
    more, for their own. A score of attention costs 4 D forward (query-key, and weighting the value), 8 D
    backward. What checkpointing and the head compute again is not counted: the result did not need it. Padding
    is not counted either; the gradient that the first layer is spared is.
    """
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    D, F, depth, V = (shape.text[key] for key in sizes)
    p, *answers = map(len, tokens.ids)
    per_token = 4 * (4 * D * D + 3 * D * F) + 6 * rank * (8 * D + 3 * (D + F))
    scores = p * p / 2 + sum(n * (p + n / 2) for n in answers)
    return depth * (per_token * (p + sum(answers)) + 12 * D * scores) + 4 * D * V * sum(answers)


def policy(run):
    """The model of all that follows: bf16, adapters in fp32."""
    torch.set_float32_matmul_precision("high")             # TF32, or the adapters would take most of the time
    run.m = variants.build(run.shape, 0, torch.bfloat16, run.device)
    lora.add(run.m.model, run.rank)
    trained = sum(map(torch.numel, lora.parameters(run.m.model)))
    return {"parameters": run.m.model.num_parameters(), "trained": trained}


def lab(run, K, N, checkpointing=False):
    model = run.m.model.train()                               # in eval mode layers are not checkpointed
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"     # before 5.23
    getattr(model, f"{word}_checkpointing_{'enable' if checkpointing else 'disable'}")()
    return variants.once(variants.lab(run.m, None, run.shape, K, 0, N))


def steps(run, K, names=("ours", "levels"), checkpointing=False, cudnn=True):
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    # Every step meets a set of new lengths, as in training: what is chosen or compiled by shape is so anew.
    some = lab(run, K, run.repeats + 1, checkpointing)
    found, seconds = variants.timed(some, names, run.repeats, run.device)
    peak = next((peak for name, peak in PEAKS.items() if name in measure.device_name(run.device)), None)
    work = mean(flops(run.shape, tokens, run.rank) for tokens in some.sets)
    share = {name: peak and work / found[name]["seconds"] / peak for name in names}
    return found | {"seconds_per_set": seconds, "share_of_bf16_peak": share,
                    "tokens_per_set": variants.token_counts(K, some.sets)}


def calls(run):
    """How often PyTorch's profiler sees what in one step of ours on one set, per decoder layer."""
    some = lab(run, 4, 2)
    variants.step(some, "ours", 0)
    with torch.profiler.profile() as profile:
        variants.step(some, "ours", 1)
    seen = {event.key: event.count / run.shape.text["num_hidden_layers"] for event in profile.key_averages()}
    return {name: seen.get(name, 0) for name in (
        "aten::scaled_dot_product_attention", "aten::_to_copy", "aten::cat", "aten::item",
        "cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize")}


def generation(run):
    """Answers as decoding.answer makes them, as many at once as their beams' keys and values leave room for."""
    (tokens,), _ = variants.make_sets(run.shape, 2, 0, 1)
    text, prompt, side = run.shape.text, tokens.ids[0], run.shape.side
    kept = BEAMS * (len(prompt) + NEW_TOKENS) * 4 * text["num_hidden_layers"] * text["hidden_size"]    # bytes
    free = torch.cuda.mem_get_info()[0] if run.device == "cuda" else 0
    batch = min(64, max(2, free // (3 * kept)))             # 3: beams are reordered into a copy, and the rest
    ids = torch.tensor([prompt] * batch, device=run.device)   # (batch,T)
    how = dict(num_beams=BEAMS, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
               logits_processor=[RepetitionPenaltyLogitsProcessor(1.1)], pad_token_id=variants.PAD)
    with torch.no_grad(), lora.disabled(variants.use_attention(run.m, "sdpa").model.eval()):
        embeds = mllm.embed(run.m, ids, variants.encode_images(run.m, torch.randn(batch, 3, side, side)))
        how |= dict(inputs_embeds=embeds, attention_mask=torch.ones_like(ids))
        works = {"answers": lambda i: run.m.model.generate(**how)}
        found = measure.alternate(works, 1, batch, run.device)["answers"]
    return found | {"batch": batch, "beams": BEAMS, "tokens_per_second": NEW_TOKENS / found["seconds"]}


# ---- 3. the run ----

def main(settings):
    tiny, device = settings.tiny, "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        raise UserError("--gpu: needs a CUDA GPU, and there is none; --gpu --tiny takes two layers and a CPU")
    run = SimpleNamespace(device=device, repeats=settings.repeats, rank=4 if tiny else 64,
                          shape=variants.SHAPES["tiny" if tiny else "llava-1.5-7b"])
    small = variants.SHAPES["tiny" if tiny else "llava-1.5-proportions"]
    parts = {"losses": partial(closed_forms, device)}
    for attention in ("prefix sharing", "sdpa"):
        for dtype in (torch.float32, torch.bfloat16):
            parts[f"{attention}, {dtype}"] = partial(equal, dtype, small, device, attention)
    # Without checkpointing, K = 8 full sequences of a 7B model need about 80 GB: only K = 4 has all four.
    parts |= {"policy": partial(policy, run),
              "K = 4": partial(steps, run, 4, ("ours", "levels", "whole mask", "no shared prefix")),
              "K = 4, checkpointing": partial(steps, run, 4, checkpointing=True),
              "calls": partial(calls, run), "generation": partial(generation, run),
              "K = 4, without cuDNN's attention": partial(steps, run, 4, cudnn=False)}
    for K in (2, 8):
        parts[f"K = {K}"] = partial(steps, run, K, ("ours",))
        parts[f"K = {K}, checkpointing"] = partial(steps, run, K, checkpointing=True)
    about = {"device": measure.device_name(device), "shape": run.shape._asdict(),
             "versions": storage.versions()}
    record(parts, settings.out or "results/gpu.json", settings.minutes, about)


def record(parts, out, minutes, result):
    """Each part in what is left of the time; its result, or why there is none, is in the file at once."""
    end, wrong = time.monotonic() + 60 * minutes, []

    def stop(*_):
        raise TimeoutError(f"left out or cut short: the {minutes:g} minutes are over")
    signal.signal(signal.SIGALRM, stop)
    for name, part in parts.items():
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(end - started, 1e-3))
        try:
            found = part()
            json.dumps(found, allow_nan=False)       # the file takes no NaN, and no part may end with one
        except Exception as error:          # any error: it is recorded here, and told at the end
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        if "failed" in found or any(isinstance(x, dict) and x.get("right") is False for x in found.values()):
            wrong.append(name)
        result[name] = found | {"part_seconds": time.monotonic() - started}
        print(f"{name}: {found}", flush=True)
        storage.write_json(out, result)
        gc.collect()                        # what a failed part held
        torch.cuda.empty_cache()
    if wrong:
        raise UserError(f"{out}: is written, but these parts failed or are not right: {'; '.join(wrong)}")
