"""What every model needs first: a device, a number format, and a `from_pretrained` that fails in one line."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from amp_min.support.script import UserError, is_out_of_memory

logging.disable_progress_bar()          # transformers' own, two per model: they would go into log files, too


def choose_dtype(name, device):
    """(dtype, reason) for "auto" | "bf16" | "fp32"."""
    if name == "auto":
        if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes in bf16: half the memory, no loss scaling needed"
        return torch.float32, "no bf16 GPU: on a CPU bf16 is slower than fp32"
    if name in (dtypes := {"bf16": torch.bfloat16, "fp32": torch.float32}):
        return dtypes[name], "as asked"
    raise UserError(f"--dtype {name}: choose auto, bf16 or fp32")


def choose_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_config(name):
    """The config of a model folder or hub id; UserError for what is recognizably no checkpoint of ours.

    The one place where a checkpoint's kind is recognized, before a weight is read or memory taken: where
    transformers half understands a config, it fills it up with defaults, those of a 7B model.
    """
    folder, config_file = Path(name), Path(name) / "config.json"
    if folder.is_dir():
        if not config_file.is_file():
            raise UserError(f"{name}: has no config.json, so it is not a model folder")
        refuse_placeholders(folder)
    elif name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"{name}: no such model folder")
    raw = pretrained(PreTrainedConfig.get_config_dict, name)[0]
    if "mm_vision_tower" in raw:
        size = "13b" if raw.get("hidden_size") == 5120 else "7b"
        where = config_file if folder.is_dir() else name
        raise UserError(f"{where}: is a model of the original LLaVA code (mm_vision_tower); take "
                        f"llava-hf/llava-1.5-{size}-hf, or convert it with transformers' "
                        "convert_llava_weights_to_hf.py")
    pickles = [path.name for end in ("bin", "pt", "pth") for path in sorted(folder.glob(f"*.{end}"))]
    if pickles and not any(folder.glob("*.safetensors")):
        auto = "AutoModelForImageTextToText" if raw.get("model_type") == "llava" else "AutoModel"
        raise UserError(f"{name}: its weights are a pickle, {pickles[0]}, which can run code; if you trust "
                        f"it, make safetensors: cd {name} && python -c \"from transformers import {auto} as "
                        "M; M.from_pretrained('.', use_safetensors=False).save_pretrained('.')\"")
    return pretrained(AutoConfig.from_pretrained, name)


def refuse_placeholders(folder):
    """Refuse a folder where a download left something else in place of a file: a pointer or a web page."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        with open(path, "rb") as file:
            start = file.read(64).lstrip().lower()
        for sign, what in ((b"version https://git-lfs", f"a Git LFS pointer of {path.stat().st_size} bytes"),
                           (b"<!doctype", "a web page"), (b"<html", "a web page")):
            if start.startswith(sign):
                rest = "weights" if path.suffix == ".safetensors" else "file itself"
                raise UserError(f"{path}: is {what}, not the {rest}; fetch it: git lfs pull, or hf download")


def pretrained(load, name, **kwargs):
    """Call a `from_pretrained`; what can go wrong outside our code becomes one line that says what to do."""
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
