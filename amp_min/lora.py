"""Low-rank adapters (LoRA, Hu et al. 2021), by hand: train 2 % of the weights, get the reference for free.

A linear layer computes W x. LoRA freezes W and learns a correction of rank r beside it:

    y = W x + (alpha / r) * B (A x)        W (out,in) frozen;  A (r,in) random;  B (out,r) zero

Three things follow, and preference training uses all of them:
- B = 0 at the start, so the first step's policy is the reference exactly: every pair's loss starts at ln 2.
- The reference is the same model with its adapters switched off, see `disabled`: no second copy in memory.
- Gradients and the optimizer's two moments are kept for r * (in + out) numbers a layer instead of in * out.
  For LLaVA-1.5-7B at r = 64, that is 160 million of 7 billion.

A random and B zero, not both zero: dL/dB is made with A x and dL/dA with B, so both would stay zero for ever.
alpha / r is LoRA's own scaling; it is meant to spare a new learning rate for each rank.

From the paper (AMP, arXiv 2405.11165): r = 64 on the language model's attention and feed-forward layers. From
the released code: alpha = 16. Departures from that code: W stays as loaded, there in 4 bits (QLoRA); A and B
are float32, there bf16. Files are PEFT's: `PeftModel.from_pretrained` opens what is saved here, and what PEFT
trained opens here.
"""
import hashlib
import json
import math
import os
import re
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from amp_min.support.script import UserError
from amp_min.support.storage import write_json

# The whole name must match. "language_model" is needed: a CLIP vision tower has a q_proj as well.
TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Down(torch.autograd.Function):
    """x A^T in A's float32, (...,in) -> (...,r), keeping x as it came for the backward pass.

    Autograd would keep the float32 copy of a bf16 x, twice its size, of every adapted layer.
    """

    @staticmethod
    def forward(ctx, x, A):
        ctx.save_for_backward(x, A)
        return F.linear(x.to(A.dtype), A)

    @staticmethod
    def backward(ctx, g):
        x, A = ctx.saved_tensors
        return (g @ A).to(x.dtype), g.flatten(0, -2).T @ x.flatten(0, -2).to(A.dtype)         # dL/dx, dL/dA


class Adapted(nn.Module):
    """A frozen nn.Linear and its low-rank correction, in that layer's place: (...,in) -> (...,out)."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        # float32 even over a bf16 base. bf16 has 8 significant bits: near 0.02 its numbers lie 2^-13 = 1.2e-4
        # apart, so a step of 5e-5, the paper's learning rate, is less than half the way to the next one:
        # rounded away every time. For the same reason bf16 weights do not take in a correction, see merge.
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        self.base, self.scale, self.on = base, alpha / rank, True
        self.A = nn.Parameter(torch.empty(rank, base.in_features, dtype=dtype, device=base.weight.device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=dtype, device=base.weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # uniform in ±1/sqrt(in), as nn.Linear's own

    def forward(self, x):
        y = self.base(x)                                          # (...,out) in the model's own dtype
        if not self.on:
            return y
        low = self.scale * Down.apply(x, self.A)                  # (...,r): scaled where it is small
        return (y + F.linear(low, self.B)).to(y.dtype)            # added in float32, rounded once


# ---- put in, take out, switch off --------------------------------------------------------------------------

def matching(model, targets, exclude=None, spelled=str):
    """The linear layers that targets names, {name: layer}, but for those that exclude names, by PEFT's rule.

    targets, exclude: a string is a regular expression for the whole name; a list holds names, or their ends
    behind a dot. spelled: how the adapter's file spells a layer's name. Raises UserError when the model has
    adapters already, when nothing matches, or when a match is no plain nn.Linear (a quantized layer has no W
    that a correction could be merged into).
    """
    if any(isinstance(layer, Adapted) for layer in model.modules()):
        raise UserError("the model has adapters already: merge them first, or start from the base model")

    def named_by(rule, name):
        if isinstance(rule, str):
            return re.fullmatch(rule, name)
        return any(name == end or name.endswith("." + end) for end in rule or [])

    found = {name: layer for name, layer in model.named_modules()
             if named_by(targets, spelled(name)) and not named_by(exclude, spelled(name))}
    if not found:
        raise UserError(f"no layer of the model matches the adapter's target modules {targets!r}")
    for name, layer in found.items():
        if type(layer) is not nn.Linear:
            raise UserError(f"{name} is a {type(layer).__name__}: adapters go on plain nn.Linear layers only")
    return found


def add(model, rank=64, alpha=16, targets=TARGETS):
    """Freeze the whole model and put an adapter on every layer that targets names; returns the model.

    The outputs do not change: B is zero. To train the projector too, unfreeze it afterwards, but then a
    switched-off adapter is no longer the reference. While adapted, the layers have other names in the model's
    state: write `save`'s files, or `merge` before save_pretrained. Raises UserError for a bad rank and for
    what `matching` refuses.
    """
    if rank < 1:
        raise UserError(f"rank {rank}: an adapter's rank is 1 or more")
    linears = matching(model, targets)
    model.requires_grad_(False)
    for name, linear in linears.items():
        model.set_submodule(name, Adapted(linear, rank, alpha))
    model.adapter_config = {"r": rank, "lora_alpha": alpha, "target_modules": targets}  # PEFT's names
    return model


def adapters(model):
    """{layer name: Adapted}; UserError when there is none: the reference would be the policy itself."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, Adapted)}
    if not found:
        raise UserError("the model has no adapters: call lora.add or lora.load first")
    return found


def parameters(model):
    """What the optimizer trains: every A and B, r * (in + out) numbers a layer."""
    return [weight for layer in adapters(model).values() for weight in (layer.A, layer.B)]


@contextmanager
def disabled(model):
    """Inside `with disabled(model):` the model is its own reference, bit for bit the base; errors undo it."""
    layers = list(adapters(model).values())
    before = [layer.on for layer in layers]                       # not just True: the block may be nested
    try:
        for layer in layers:
            layer.on = False
        yield model
    finally:
        for layer, on in zip(layers, before):
            layer.on = on


@torch.no_grad()
def merge(model):
    """Fold every correction into its W and put the plain layers back; returns the model, an ordinary one now.

    Nothing is lost in float32 but the order of sums. Do not merge into bf16: W + s B A rounds back to W
    wherever the correction is under half a bf16 step of W, and after a short training that is most weights.
    """
    for name, layer in adapters(model).items():
        W = layer.base.weight
        W.copy_(W.to(layer.A.dtype) + layer.scale * (layer.B @ layer.A))       # (out,in); copy_ rounds
        model.set_submodule(name, layer.base)
    del model.adapter_config
    return model


# ---- files, as PEFT writes them ----------------------------------------------------------------------------

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "adapter_base.json"
# PEFT wraps the model twice (PeftModel.base_model, LoraModel.model), hence the first two words of its keys.
A_KEY, B_KEY = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"
# Entries of the config that say what this file reads, or that cannot change the trained adapter's output.
READ = {"r": int, "lora_alpha": (int, float), "target_modules": (str, list),
        "exclude_modules": (str, list, type(None))}
HARMLESS = {"auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core",
            "peft_version", "qalora_group_size", "revision", "task_type"}
# Every other entry must be off. Not ignored: DoRA or rank-stabilized LoRA would compute something else.
ONLY = {"peft_type": ["LORA"], "bias": ["none"], "init_lora_weights": [True, False, "gaussian"]}


def fingerprint(model):
    """What a base is known by: sha256 over 64 numbers of each weight, in bf16, so that every dtype agrees."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not name.endswith((".A", ".B")):
            some = weight.detach().flatten()[::max(1, weight.numel() // 64)].bfloat16().tolist()
            digest.update(f"{name.replace('.base.', '.')} {tuple(weight.shape)} {some}".encode())
    return digest.hexdigest()


def spellings(name):
    """A layer's name in transformers 5, in 4.52 and before that: PEFT's files keep those of their time."""
    four = re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name)
    older = re.sub(r"^language_model\.", "language_model.model.", four.removeprefix("model."))
    return name, four, "language_model.lm_head" if name == "lm_head" else older


def spelling_in(tensors, model):
    """How the keys of an adapter's file spell the model's layers: a function from our name to theirs."""
    eras = zip(*(spellings(name) for name, _ in model.named_modules()))
    fitting = [sum(A_KEY.format(name) in tensors for name in names) for names in eras]
    return lambda name: spellings(name)[fitting.index(max(fitting))]


def save(model, folder):
    """Write the adapters, a few per cent of the model's size, and their config into the folder."""
    folder, tensors = Path(folder), {}
    for name, layer in adapters(model).items():
        tensors[A_KEY.format(name)] = layer.A.detach().cpu().contiguous()
        tensors[B_KEY.format(name)] = layer.B.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".tmp")                       # an interrupted save leaves the old file
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / WEIGHTS)
    write_json(folder / BASE, {"sha256": fingerprint(model)})      # a file of ours: PEFT does not look at it
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0,
        "base_model_name_or_path": model.config._name_or_path or None, **model.adapter_config})


def read_config(path):
    """The config of a plain LoRA adapter as a dict; UserError for any other kind of adapter."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an adapter's config: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: is not the config of a LoRA adapter (peft_type LORA)")
    for key, kind in READ.items():
        if not isinstance(config.get(key), kind):
            raise UserError(f"{path}: {key} is {config.get(key)!r}; PEFT writes it otherwise for LoRA")
    for key, value in config.items():
        if key not in READ and key not in HARMLESS and value not in ONLY.get(key, [None, False, {}, []]):
            raise UserError(f"{path}: {key} is {value!r}; only plain LoRA adapters can be loaded")
    return config


def base_of(folder):
    """The base model's folder or hub id, as the adapter folder names it.

    A relative path is one from the folder in which the training was started, which is likely a parent of the
    adapter's: the nearest that has it counts, and only then the folder we are in.
    """
    base = read_config(Path(folder) / CONFIG).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder}/{CONFIG}: names no base_model_name_or_path; add the adapter's base model")
    folder = Path(folder).resolve()
    found = next((place / base for place in folder.parents if (place / base).is_dir()), Path(base))
    if found.resolve() == folder:
        raise UserError(f"{folder / CONFIG}: base_model_name_or_path {base!r} is the adapter itself")
    return str(found) if found.is_dir() else base


def load(model, folder):
    """Put the saved adapters on a base model, ready to train on or to merge; returns the model.

    Everything is checked before the model is touched: a key too few or too many, a tensor of another shape or
    other weights than `save` saw mean another base, and end in a UserError that names the file. Only
    safetensors are read.
    """
    path, config = Path(folder) / WEIGHTS, read_config(Path(folder) / CONFIG)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from error
    shapes, rank, targets, exclude = {}, config["r"], config["target_modules"], config.get("exclude_modules")
    spelled = spelling_in(tensors, model)
    linears = matching(model, targets, exclude, spelled)
    for name, linear in linears.items():
        shapes[A_KEY.format(spelled(name))] = (rank, linear.in_features)
        shapes[B_KEY.format(spelled(name))] = (linear.out_features, rank)
    missing, unexpected = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    for problem, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            raise UserError(f"{path}: {len(keys)} {problem} keys, first {min(keys)}; "
                            "the adapter is for another base")
    for key, shape in shapes.items():
        found = tuple(tensors[key].shape)
        if found != shape:
            raise UserError(f"{path}: {key} has shape {found}; this model and rank {rank} need {shape}")
    base = Path(folder) / BASE                                    # PEFT writes none
    if base.is_file() and fingerprint(model) not in base.read_text(encoding="utf-8"):
        raise UserError(f"{base}: the adapter was trained on another base, {model.config._name_or_path} has "
                        f"other weights; name the right one as base_model_name_or_path in {CONFIG}")
    is_plain = not exclude and all(spelled(name) == name for name in linears)
    add(model, rank, config["lora_alpha"], targets if is_plain else list(linears))
    with torch.no_grad():
        for name, layer in adapters(model).items():
            layer.A.copy_(tensors[A_KEY.format(spelled(name))])
            layer.B.copy_(tensors[B_KEY.format(spelled(name))])
    return model
