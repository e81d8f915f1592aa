"""How long something takes on a machine that others use, too, and how much memory this process holds. Linux: from /proc."""
import math
import os
import resource
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm


def clock():
    """(wall seconds, busy seconds of the CPUs that we may use, our own CPU seconds)."""
    mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in mine:
            user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])             # idle and waiting left out
            busy += user + nice + system + irq + softirq + steal
    own = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def sample(work, times, device):
    """Run work(0), work(1), …: {"seconds", "cpu_seconds"} per call, and the share of our CPUs that others took."""
    before = clock()
    for i in range(times):
        work(i)
    if device == "cuda":
        torch.cuda.synchronize()
    wall, busy, own = (b - a for a, b in zip(before, clock()))
    return {"seconds": wall / times, "cpu_seconds": own / times,
            "foreign": max(0.0, busy - own) / (wall * len(os.sched_getaffinity(0)))}


def alternate(works, settings, device="cpu"):
    """Samples of every work, taken in turns: {name: list of samples}.

    A call that is not counted goes before each sample: the work before has left memory and caches as it needed them.
    """
    times, found = {}, {name: [] for name in works}
    for name, work in works.items():
        work(0)                                                                             # PyTorch's own first time
        times[name] = max(1, math.ceil(settings.sample_seconds / sample(work, 1, device)["seconds"]))
    for i in tqdm(range(settings.samples), desc="samples", leave=False, disable=None):
        for name, work in works.items():
            if not name.startswith("pairs") or i % 3 == 0:
                work(0)
                found[name].append(sample(work, times[name], device))
    return found


def summary(samples, settings, sets=1):
    """Seconds per set, `sets` of them per call: median and range of the clean samples. Where none is clean, all of them count, and all are said to be disturbed."""
    clean = [s for s in samples if s["foreign"] <= settings.max_foreign or settings.clock == "cpu"]
    seconds = [s["seconds" if settings.clock == "wall" else "cpu_seconds"] / sets for s in clean or samples]
    return {"seconds": statistics.median(seconds), "range": [min(seconds), max(seconds)],
            "samples": len(samples), "dropped": len(samples) - len(clean), "disturbed": not clean}


def resident(field):
    """VmRSS (now) or VmHWM (the most so far) of this process in MB."""
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))


def device_name(device="cpu"):
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"CPU: {models[0] if models else 'unknown'}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
