"""Seconds and megabytes that work takes. Linux only: memory is read from /proc."""
import os
import statistics
import time
from pathlib import Path

import torch


def alternate(works, repeats, sets=1, device="cpu"):
    """Per set, {name: {"seconds": median, "range": [least, most]}}; on a GPU also "peak_mb" with the weights.

    works: {name: function of the call's number}; a call works through `sets` sets. They take turns in one
    process: what else happens on the machine meets all of them, and the range shows how much that was. The
    first call of each is not counted: PyTorch reads kernels and chooses algorithms then.
    """
    seconds, peaks, on_gpu = {name: [] for name in works}, dict.fromkeys(works, 0.0), device == "cuda"
    for i in range(repeats + 1):
        for name, work in works.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            work(i)
            if on_gpu:
                torch.cuda.synchronize()         # a call only puts its work into the GPU's queue
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() / 2**20)
            seconds[name].append((time.perf_counter() - started) / sets)
    return {name: {"seconds": statistics.median(s[1:]), "range": [min(s[1:]), max(s[1:])]}
            | ({"peak_mb": peaks[name]} if on_gpu else {}) for name, s in seconds.items()}


def resident(field):
    """VmRSS (now) or VmHWM (the most so far) of this process in MB; getrusage's begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def device_name(device="cpu"):
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    return f"CPU: {names[0] if names else 'unknown'}, {cores}"
