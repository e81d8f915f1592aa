"""Speed and memory of one MDPO step: pairs, K full sequences and the shared prefix, side by side.

    python -m amp_min.bench --out results/bench.json                             # both presets, K = 2, 4, 8
    python -m amp_min.bench --preset llava-1.5-proportions --levels 4 --json     # one row, as one JSON line
    python -m amp_min.bench --gpu                                           # LLaVA-1.5-7B's shape, see gpu.py

variants.py says what is compared. Ours computes the reference's log-probs and the picture's features once per
data set: counted at 1/4 in "ours", for the paper's 4 epochs, and whole in seconds_live_reference. Peak memory
is that of a fresh process, above what it holds once PyTorch's kernels and its model (or two) are loaded:
gradients, the optimizer's state, activations.
"""
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal

import torch

from amp_min.bench import gpu, measure, variants
from amp_min.support import script, storage
from amp_min.support.script import arg

SIDES = ("pairs", "levels", "ours")


@dataclass
class Settings:
    preset: Literal["all", "llava-1.5-proportions", "toy"] = arg("all", "shape of the model")
    levels: list[int] = arg([2, 4, 8], "K, one row each", min=2)
    repeats: int = arg(5, "timed calls of each variant", min=1)
    threads: int = arg(0, "CPU threads; 0 leaves PyTorch's choice", min=0)
    json: bool = arg(False, "print one JSON line per row instead of a table")
    out: str = arg("", "also write the rows to this file (with --gpu: results/gpu.json by default)")
    seed: int = arg(0, "weights, pictures and sets")
    gpu: bool = arg(False, "what needs a GPU, in one run of at most nine minutes: see gpu.py")
    tiny: bool = arg(False, "with --gpu: the same run with two small layers, also on a CPU")
    minutes: float = arg(9.0, "with --gpu: what does not fit into this time is left out, and named", above=0)


def peak_in_fresh_process(*what):
    # glibc reads this when a process starts, and then gives back what is freed: what is held counts, not what
    # is kept for later in blocks of ever other sizes.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(variants.peak_here, *what).result()


def row(preset, K, settings):
    """Everything about one preset and one K, as results/bench.json has it."""
    shape, threads = variants.SHAPES[preset], torch.get_num_threads()
    lab = variants.once(variants.open_lab(preset, K, settings.seed))
    measured, seconds = variants.timed(lab, (*SIDES, "whole mask", "no shared prefix"), settings.repeats)
    return {
        "preset": preset, "levels": K, "sets_per_step": shape.B,
        "seconds_per_set": {side: seconds[side] for side in SIDES},
        "seconds_live_reference": sum(measured[x]["seconds"] for x in ("ours", "reference pass", "picture")),
        "tokens_per_set": variants.token_counts(K, lab.sets),
        "peak_mb": {side: peak_in_fresh_process(preset, K, side, threads, settings.seed) for side in SIDES},
        "max_logp_difference": gpu.equal(torch.float64, shape, "cpu", "prefix sharing", K, 1)["log-probs"]["ours"],
        "times_ours": {name: seconds[name] / seconds["ours"] for name in seconds}, "measured": measured,
        "device": measure.device_name(), "threads": threads, "versions": storage.versions()}


def table(r):
    sides = [f"  {side:8}{r['seconds_per_set'][side]:8.4f} s per set, {r['times_ours'][side]:5.1f} x ours, "
             f"{r['tokens_per_set'][side]:6.0f} tokens, {r['peak_mb'][side]:5.0f} MB" for side in SIDES]
    return "\n".join([f"{r['preset']}, K = {r['levels']}; {r['device']}, {r['threads']} threads", *sides])


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    if settings.gpu:
        return gpu.main(settings)
    rows = []
    for preset in ["llava-1.5-proportions", "toy"] if settings.preset == "all" else [settings.preset]:
        for K in settings.levels:
            rows.append(row(preset, K, settings))
            print(json.dumps(rows[-1]) if settings.json else table(rows[-1]), flush=True)
    if settings.out:
        storage.write_json(settings.out, {"rows": rows})


if __name__ == "__main__":
    script.run(main)
