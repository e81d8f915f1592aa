"""Speed and memory of one MDPO step: pairs, K full sequences and the shared prefix, side by side.

    python -m amp_min.bench --out results/bench.json                                # everything this machine can measure
    python -m amp_min.bench --preset llava-1.5-proportions --levels 4 --json        # one row, as one JSON line

variants.py says what is compared: the same weights, sets, batches and loss on every side.
- Samples alternate between the variants in one process. A figure is the median of those samples in which other
  processes took little of our CPUs, and it is said how many were dropped; the time itself never decides.
- Ours computes the reference and looks at the pictures once per data set. That is counted, at 1/4 in "ours", for the
  paper's 4 epochs, and whole in "live reference".
- Peak memory is that of a fresh process, above what it holds once PyTorch's kernels and its model (or two) are loaded:
  gradients, the optimizer's state, activations.
- "llava-1.5-proportions" has LLaVA-1.5's token counts and a small model. Its vocabulary is 8,000: with 32,064 the head,
  2 % of LLaVA-1.5-7B, would be most of the model, in our favour. It is the shape of a stand-alone script that drives
  TRL's DPOTrainer; --peer-json FILE sets that script's JSON lines (--freeze-vision, same threads) beside our rows.
- "llava-1.5-7b" is the real shape with random weights in bf16 and adapters of rank 64; it needs a CUDA GPU.
Linux only: load and memory are read from /proc.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from amp_min import lora, losses, mllm, packing
from amp_min.bench import stopwatch, variants
from amp_min.bench.variants import SHAPES, STEPS
from amp_min.support import script, storage
from amp_min.support.script import UserError

EPOCHS = 4                                    # the paper's: what is done once per data set costs an epoch a quarter
SIDES = ("pairs", "levels", "ours")
# Dense bf16 products a second, NVIDIA's data sheets (SXM boards).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass
class Settings:
    preset: Literal["all", "toy", "llava-1.5-proportions", "llava-1.5-7b"] = field(
        default="all", metadata={"help": "model shape; all: the first two, and the third where there is a GPU"})
    levels: list[int] = field(default_factory=lambda: [2, 4, 8], metadata={"help": "K, one row each"})
    samples: int = field(default=7, metadata={"help": "timed samples of each variant; pairs, by far the slowest, take a third"})
    sample_seconds: float = field(default=0.5, metadata={"help": "steps are repeated within a sample until it takes this long"})
    max_foreign: float = field(default=0.05, metadata={"help": "drop a sample when others took more than this share of our CPUs"})
    clock: Literal["wall", "cpu"] = field(
        default="wall", metadata={"help": "cpu: this process's own CPU seconds, for a machine that is never quiet; with --threads 1"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves PyTorch's choice"})
    json: bool = field(default=False, metadata={"help": "print one JSON line per row instead of a table"})
    out: str = field(default="", metadata={"help": "also write the rows to this file"})
    peer_json: str = field(default="", metadata={"help": "JSON lines of the TRL script, set beside our rows"})
    seed: int = field(default=0, metadata={"help": "weights, pictures and sets"})
    peak_of: Literal["", "pairs", "levels", "ours"] = field(
        default="", metadata={"help": "print the peak memory of one side; each fresh process is started with this"})


# ---- 1. memory --------------------------------------------------------------------------------------------------

def peak_here(shape, K, side, settings):
    """Peak memory in MB of two steps above the loaded models; two, as the optimizer's state exists from the first on.

    A step of the toy shape comes first: kernels are read into memory at their first use, and are no part of a step.
    """
    variants.step(variants.once(variants.open_lab(SHAPES["toy"], 2, settings.seed)), side, 0)
    lab = variants.open_lab(shape, K, settings.seed, both=side != "ours")
    loaded = stopwatch.resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")                                           # VmHWM starts again from here
    if side == "ours":
        lab = variants.once(lab)
    for i in range(2):
        variants.step(lab, side, i)
    return stopwatch.resident("VmHWM") - loaded


def peak_in_fresh_process(preset, K, side, settings):
    command = [sys.executable, "-m", "amp_min.bench", "--preset", preset, "--levels", str(K), "--peak-of", side,
               "--threads", str(settings.threads), "--seed", str(settings.seed)]
    # The allocator gives back what is freed: what is held counts, not what is kept for later in ever other pieces.
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2],
                          env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout)


# ---- 2. one row -------------------------------------------------------------------------------------------------

def largest_difference(shape, K, seed):
    """max |log-prob with the shared prefix - log-prob of separate sequences| in float64."""
    m = variants.build(shape, seed, torch.float64)
    for name, layer in list(m.model.named_modules()):
        if type(layer).__name__ == "LlamaRMSNorm":           # computes in float32 whatever the model; PyTorch's own does not
            m.model.set_submodule(name, nn.RMSNorm(shape.text["hidden_size"], eps=layer.variance_epsilon, dtype=torch.float64))
    (tokens, *_), pixels = variants.make_sets(shape, K, seed)
    with torch.no_grad():
        features = mllm.encode_images(m, pixels[:1])
        separate = packing.separate_logps(m, [tokens], features)
        return float((packing.set_logps(packing.speed_up(m), packing.pack([tokens], variants.PAD), features) - separate).abs().max())


def row(preset, K, settings):
    """Everything about one preset and one K, as results/bench.json has it."""
    shape = SHAPES[preset]
    lab = variants.once(variants.open_lab(shape, K, settings.seed))
    works = {name: lambda i, name=name: variants.step(lab, name, i) for name in STEPS}
    chosen = lambda i: lab.batches[i % len(lab.batches)]
    works["reference pass"] = lambda i: variants.reference_pass(lab, chosen(i))
    works["look"] = lambda i: mllm.encode_images(lab.policy, lab.pixels[chosen(i)])
    parts = {name: stopwatch.summary(samples, settings, shape.batch) for name, samples in stopwatch.alternate(works, settings).items()}
    s = {name: part["seconds"] for name, part in parts.items()}
    extra = s["reference pass"] + s["look"]
    seconds = {"pairs": s["pairs"], "levels": s["levels"], "ours": s["ours"] + extra / EPOCHS}
    live = s["ours"] + extra
    off = {name: s[name] + extra / EPOCHS for name in STEPS if name.startswith("no ")}
    off["reference in every step"] = s["ours"] + s["reference pass"] + s["look"] / EPOCHS
    off["look in every step"] = s["ours"] + s["look"] + extra / EPOCHS
    peak = {side: peak_in_fresh_process(preset, K, side, settings) for side in SIDES}
    return {
        "preset": preset, "levels": K, "sets_per_step": shape.batch, "seconds_per_set": seconds, "seconds_live_reference": live,
        "tokens_per_set": variants.token_counts(K, lab.sets), "peak_mb": peak,
        "max_logp_difference": largest_difference(shape, K, settings.seed),
        "device": stopwatch.device_name(), "versions": storage.versions(),
        "times_as_fast": {"levels / ours": seconds["levels"] / seconds["ours"], "pairs / ours": seconds["pairs"] / seconds["ours"],
                          "levels / live reference": seconds["levels"] / live, "memory, levels / ours": peak["levels"] / peak["ours"]},
        "seconds_with_one_saving_off": off, "measured": parts, "threads": torch.get_num_threads(), "clock": settings.clock,
        "dropped_samples": sum(part["dropped"] for part in parts.values()), "samples": sum(part["samples"] for part in parts.values()),
        "disturbed": sorted(name for name, part in parts.items() if part["disturbed"]), "peer": peer(preset, K, settings),
    }


def peer(preset, K, settings):
    """The TRL script's lines for this K: {mode: seconds, memory, …}; empty without --peer-json."""
    if not settings.peer_json or preset != "llava-1.5-proportions":
        return {}
    found = {}
    for number, line in enumerate(Path(settings.peer_json).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            r = json.loads(line)
            if r["k"] == K:
                timed = r["step_seconds"][-r["timed_steps"]:]
                found[r["mode"]] = {"seconds": r["seconds_per_set"], "range": [min(timed), max(timed)],
                                    "peak_mb": r["peak_rss_mb"] - r["rss_before_training_mb"], "tokens": r["tokens_per_set"],
                                    "threads": r["threads"], "dropped": r["timed_steps"] - r["clean_steps"], "trl": r["trl"]}
        except (KeyError, ValueError) as error:
            raise UserError(f"{settings.peer_json}:{number}: is no line of the TRL script ({error!r})") from None
    return found


# ---- 3. the real shape, on a GPU --------------------------------------------------------------------------------

def flops(shape, batch, first, rank):
    """Products and sums of one policy step on a packed set, adapters trained and the rest frozen.

    A matrix of n weights costs a token 2n forward and 2n for the gradient of its input; only adapters need 2n more, for
    their own gradient. A score of attention costs 4 D forward (query-key, and weighting the value), 8 D backward.
    Recomputation, of the head's logits and by checkpointing, is not counted: it is work that the result did not need.
    """
    D, inner, depth = (shape.text[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    T, scored = batch.input_ids.numel(), len(batch.targets)
    layer, adapter = 4 * D * D + 3 * D * inner, rank * (4 * 2 * D + 3 * (D + inner))
    in_layers = (depth - 1) * T + (T - first)                   # tokens that go through a whole layer, see attention.run
    keys_only = first                                           # tokens of which the last layer needs key and value alone
    matrices = 4 * layer * in_layers + 6 * adapter * in_layers + keys_only * (4 * 2 * D * D + 6 * rank * 4 * D)
    matrices -= T * 2 * 3 * (D * D + rank * D)                  # nothing below the first query, key and value is trained
    (p, *answers), = packing.attention.cut(batch.segment)
    scores = p * p / 2 + sum(n * (p + n / 2) for n in answers)
    attention = 12 * D * (depth * scores - p * p / 2)           # the last layer's prefix has no queries
    return matrices + attention + 4 * scored * D * shape.text["vocab_size"]


def gpu_rows(settings, device="cuda", shape=SHAPES["llava-1.5-7b"], rank=64):
    """seconds per set, peak memory and share of the chip's bf16 peak, with gradient checkpointing on and off."""
    torch.set_float32_matmul_precision("high")                  # the float32 adapters in TF32, else they would dominate
    m = packing.speed_up(variants.build(shape, settings.seed, torch.bfloat16, device))
    lora.add(m.model, rank)
    trained = lora.parameters(m.model)
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0, fused=True)
    known = next((peak for name, peak in PEAK_FLOPS.items() if device == "cuda" and name in torch.cuda.get_device_name()), None)
    for K in settings.levels:
        sets, pixels = variants.make_sets(shape, K, settings.seed)
        features, batches = mllm.encode_images(m, pixels), [packing.pack([tokens], variants.PAD) for tokens in sets]
        for checkpointing in (True, False):
            m.model.gradient_checkpointing_enable({"use_reentrant": False}) if checkpointing else m.model.gradient_checkpointing_disable()

            def policy_step(i):
                i %= len(sets)
                policy = packing.set_logps(m, batches[i], features[i:i + 1])
                losses.mdpo_loss(policy, policy.detach()).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()

            @torch.no_grad()
            def reference_pass(i):
                with lora.disabled(m.model):
                    packing.set_logps(m, batches[i % len(sets)], features[i % len(sets)][None])

            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            works = {"step": policy_step, "reference pass": reference_pass, "look": lambda i: mllm.encode_images(m, pixels[i % len(sets)][None])}
            parts = {name: stopwatch.summary(samples, settings) for name, samples in stopwatch.alternate(works, settings, device).items()}
            s = {name: part["seconds"] for name, part in parts.items()}
            work = statistics.mean(flops(shape, b, int(b.predictor.min()), rank) for b in batches)
            yield {"preset": "llava-1.5-7b", "levels": K, "gradient_checkpointing": checkpointing,
                   "seconds_per_set": {"ours": s["step"] + (s["reference pass"] + s["look"]) / EPOCHS},
                   "seconds_live_reference": s["step"] + s["reference pass"] + s["look"],
                   "tokens_per_set": {"ours": variants.token_counts(K, sets)["ours"]},
                   "peak_mb": {"ours": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None},     # weights included
                   "flops_per_step": work, "share_of_bf16_peak": known and work / s["step"] / known,
                   "device": stopwatch.device_name(device), "versions": storage.versions(), "measured": parts}


# ---- 4. what is printed -----------------------------------------------------------------------------------------

def table(r):
    """A row for people. Seconds are medians, ranges in brackets."""
    if "gradient_checkpointing" in r:
        share = r["share_of_bf16_peak"]
        return (f"{r['preset']}, K = {r['levels']}, checkpointing {'on' if r['gradient_checkpointing'] else 'off'}: "
                f"{r['seconds_per_set']['ours']:.3f} s per set, {r['seconds_live_reference']:.3f} s with a live reference, peak "
                f"{r['peak_mb']['ours'] or math.nan:.0f} MB with the weights, {'unknown' if share is None else f'{share:.0%}'} of the bf16 peak")
    lines = [f"{r['preset']}, K = {r['levels']}, {r['sets_per_step']} sets per step; {r['device']}, {r['threads']} threads, {r['clock']} time", "",
             f"{'':26}{'seconds per set':>24}{'tokens':>9}{'peak MB':>9}"]
    line = lambda name, seconds, low, high, tokens="", peak="": lines.append(
        f"{name:26}{f'{seconds:.3f} [{low:.3f}, {high:.3f}]':>24}{tokens:>9}{peak:>9}")
    for side in SIDES:
        m, seconds = r["measured"][side], r["seconds_per_set"][side]
        more = seconds - m["seconds"]                           # ours: its share of what is done once
        line(side, seconds, m["range"][0] + more, m["range"][1] + more, round(r["tokens_per_set"][side]), round(r["peak_mb"][side]))
    lines.append(f"{'ours, live reference':26}{r['seconds_live_reference']:>9.3f}")
    lines += [f"{'  ' + name:26}{seconds:>9.3f}" for name, seconds in r["seconds_with_one_saving_off"].items()]
    for name in ("pairs, all logits", "levels, head on answers", "reference pass", "look"):
        line(name, r["measured"][name]["seconds"], *r["measured"][name]["range"])
    for name, p in r["peer"].items():
        line(f"{name} {p['trl']}", p["seconds"], *p["range"], p["tokens"], p["peak_mb"])
        if p["threads"] != r["threads"] or p["dropped"]:
            lines.append(f"    {p['threads']} threads; {p['dropped']} of its steps were disturbed")
    lines += ["", "  ".join(f"{name} {ratio:.2f}" for name, ratio in r["times_as_fast"].items()),
              f"largest difference of a log-prob, float64: {r['max_logp_difference']:.1e}",
              f"{r['dropped_samples']} of {r['samples']} samples dropped: others used our CPUs" + "".join(
                  f"; no clean sample of {name}, so all of them count" for name in r["disturbed"])]
    return "\n".join(lines) + "\n"


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if min(settings.levels) < 2:
        raise UserError(f"--levels {min(settings.levels)}: a preference needs at least 2")
    if settings.peak_of:
        print(peak_here(SHAPES[settings.preset], settings.levels[0], settings.peak_of, settings))
        return
    gpu, presets = torch.cuda.is_available(), [settings.preset]
    if settings.preset == "llava-1.5-7b" and not gpu:
        raise UserError("--preset llava-1.5-7b: needs a CUDA GPU, and there is none; --preset llava-1.5-proportions runs here")
    if settings.preset == "all":
        presets = ["llava-1.5-proportions", "toy"] + ["llava-1.5-7b"] * gpu
    for preset in presets:                        # a --peer-json that cannot be read is said now, not after minutes
        peer(preset, settings.levels[0], settings)
    rows = []
    for preset in presets:
        for found in gpu_rows(settings) if preset == "llava-1.5-7b" else (row(preset, K, settings) for K in settings.levels):
            print(json.dumps(found) if settings.json else table(found), flush=True)
            rows.append(found)
    if settings.out:
        measured = {} if gpu else {"llava-1.5-7b": "not measured"}
        storage.write_json(settings.out, {"rows": rows, **measured})


if __name__ == "__main__":
    script.run(main)
