"""What every model needs first: a device, a number format, and a `from_pretrained` that fails in one line."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from amp_min.support.script import UserError, is_out_of_memory

logging.disable_progress_bar()          # transformers' own, two per model: they would go into log files, too


def choose_dtype(name, device):
    """(dtype, reason) for "auto" | "bf16" | "fp32"."""
    if name == "auto":
        if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16, "this GPU computes in bf16: half the memory, no loss scaling needed"
        return torch.float32, "no bf16 GPU: on a CPU bf16 is slower than fp32"
    if name in (dtypes := {"bf16": torch.bfloat16, "fp32": torch.float32}):
        return dtypes[name], "as asked"
    raise UserError(f"--dtype {name}: choose auto, bf16 or fp32")


def choose_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def pretrained(load, name, **kwargs):
    """Call a `from_pretrained`; what can go wrong outside our code becomes one line that says what to do."""
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"{name}: has no config.json, so it is not a model folder")
    pickles = [path.name for end in ("bin", "pt", "pth") for path in sorted(Path(name).glob(f"*.{end}"))]
    if pickles and not any(Path(name).glob("*.safetensors")):
        raise UserError(f"{name}: its weights are a pickle, {pickles[0]}, which can run code when it is "
                        "read; only safetensors are read: save them as such where you trust the file")
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise UserError(f"{name}: no such model folder")
    try:
        return load(name, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise                                # script.run has better advice
        first = str(error).strip().split("\n")[0].rstrip(".")
        if not Path(name).is_dir():
            raise UserError(f"{name}: cannot be had from the hub ({first}); where there is a network, "
                            f"`hf download {name} --local-dir DIR`, and give DIR instead") from error
        raise UserError(f"{name}: cannot be loaded: {first}") from error
