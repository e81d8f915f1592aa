"""What keeps a training run safe: checkpoints that can be continued (on a CPU to the byte), the log, and the
final folder.

A run works in "<out>.part" and is renamed to <out> when it is complete, so <out> is never half a model. A
checkpoint holds the trained weights, the optimizer's state and torch's random state as safetensors (a pickle
could run code), and in its name the step: learning rate and order of the data follow from seed and step, so
it is the position in both.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from amp_min.support import folders, storage
from amp_min.support.script import UserError

FREE = ("resume", "out", "show", "save_every")  # settings that may differ between a run and its continuation


def begin(settings, facts):
    """The folder to work in, or None when --resume finds the run complete. Nothing is written: see `make`.

    facts: what a continuation must share with its beginning, {name: JSON value}.
    """
    out = Path(settings.out)             # Path drops the slash of "DIR/": else the work would lie inside DIR
    folder = out.with_name(f"{out.name}.part") if out.name else Path(f"{out}.part")
    if out.resolve() == Path(settings.model).resolve():
        raise UserError(f"--out {out}: is the model that is trained, and would be lost; give another name")
    if out.exists() and not (out / "train.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already, and train.py did not write it; give --out another name")
    for place in (folder, out):
        if settings.resume and (place / "train.json").is_file():
            same_run(place, "run", facts)
            if place == folder:
                return folder
            clear(out)                   # killed at the last moment, it may still hold them
            return None
    return folder


def same_run(folder, part, now):
    """Refuse to continue a run that was begun with something else, naming the first thing that changed."""
    before = json.loads((folder / "train.json").read_text(encoding="utf-8")).get(part, {})
    if changed := [key for key in now if key not in FREE and before.get(key) != now[key]]:
        old, new = before.get(changed[0]), now[changed[0]]
        raise UserError(f"{folder}: was begun with {changed[0]} = {old!r}, now it is {new!r}; "
                        "go back to that, or drop --resume")


def make(folder, settings, facts, found):
    """Make the folder and write what the run is, or go on in it with --resume. A new run clears what an old
    one left.

    found: what reading the data brought up; a continuation must find the same. Called when the input has been
    read: a start that fails on it leaves nothing behind.
    """
    if settings.resume and (folder / "train.json").is_file():
        return same_run(folder, "found", found)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    run = {key: value for key, value in facts.items() if key not in FREE}
    storage.write_json(folder / "train.json", {"run": run, "found": found, "versions": storage.versions()})


@contextlib.contextmanager
def kept(folder):
    """What stops the run inside is told which checkpoint there is, and how to go on."""
    try:
        yield
    except BaseException as error:       # Ctrl-C is no Exception
        if found := sorted(folder.glob("checkpoint-*")):
            # A UserError would come again: what it names has to be mended first.
            how = "" if isinstance(error, UserError) else "; the same command with --resume continues there"
            error.add_note(f"step {int(found[-1].name.split('-')[1])} is saved in {found[-1]}{how}")
        raise


def finish(folder, settings):
    """Give the folder its final name, then drop the checkpoints: killed in between, no step is lost."""
    folders.replace_folder(folder, settings.out)
    clear(Path(settings.out))


def clear(folder):
    for old in [*folder.glob("checkpoint-*"), *folder.glob("saving")]:
        shutil.rmtree(old)


def save(folder, step, trained, optimizer):
    """Write checkpoint-<step>, whole or not at all, and keep the newest two."""
    temporary, final = folder / "saving", folder / f"checkpoint-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    weights = {name: p.detach().cpu().contiguous() for name, p in trained.items()}
    save_file(weights, temporary / "weights.safetensors")
    state = {f"{name}/{key}": value.detach().cpu().contiguous() for name, p in trained.items()
             for key, value in optimizer.state[p].items()}  # exp_avg, exp_avg_sq, step
    save_file(state | random_states(), temporary / "optimizer.safetensors")
    os.rename(temporary, final)
    for old in sorted(folder.glob("checkpoint-*"))[:-2]:
        shutil.rmtree(old)


def random_states():
    """Nothing is random in a training step now; a model with dropout would draw from these."""
    on_gpus = torch.cuda.get_rng_state_all()
    return {"random/cpu": torch.get_rng_state()} | {f"random/{i}": state for i, state in enumerate(on_gpus)}


def restore(folder, trained, optimizer):
    """Load the newest checkpoint into the model and the optimizer; returns its step, 0 when there is none."""
    found = sorted(folder.glob("checkpoint-*"))
    if not found:
        return 0
    try:
        weights, state = (load_file(found[-1] / f"{name}.safetensors") for name in ("weights", "optimizer"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{found[-1]}: cannot be read ({error}); "
                        "delete it, and --resume continues from the one before") from None
    if weights.keys() != trained.keys():
        raise UserError(f"{found[-1]}: holds other parameters than those that train now; drop --resume")
    # The fused optimizer keeps its step count beside the weights, the plain one on the CPU.
    fused = optimizer.param_groups[0]["fused"]
    place = lambda key, p: p.device if key != "step" or fused else "cpu"
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(weights[name])
            optimizer.state[p] = {key: state[f"{name}/{key}"].to(place(key, p))
                                  for key in ("step", "exp_avg", "exp_avg_sq")}
    torch.set_rng_state(state["random/cpu"])
    for i in range(torch.cuda.device_count()):
        if f"random/{i}" in state:                          # not when it was begun with fewer GPUs
            torch.cuda.set_rng_state(state[f"random/{i}"], i)
    return int(found[-1].name.split("-")[1])


def open_log(path, steps):
    """The log, cut back to the first `steps` lines: what came after the checkpoint will be done again."""
    with open(path, "ab+") as file:  # cut in place: a kill while the lines are written anew would lose them
        file.seek(0)
        file.truncate(sum(len(file.readline()) for _ in range(steps)))
    return open(path, "a", encoding="utf-8", buffering=1)
