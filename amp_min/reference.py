"""The reference's log-probs, computed once per data set.

The reference is the model before training, so its log-probs never change: one pass over the data replaces a
second model in memory and a second forward pass in every step. The result is kept beside the preferences and
found again by a fingerprint of everything that it depends on: the model's files, the tokens and the pictures.
"""
import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from amp_min import lora, losses, mllm, packing
from amp_min.support import storage
from amp_min.support.script import UserError

# B preference sets of a micro-batch, K levels
DECIDES = (".safetensors", ".json", ".jinja", ".model", ".txt")  # weights, configs, chat template, vocabulary
NOTES = ("made.json", "train.json", "README.json")                      # what a run says of itself


def fingerprint(name):
    """sha256 over the files of a local model folder that decide what it answers; for a hub id, its commit.

    An adapter's folder includes its base. A changed chat template or image processor is another model, too.
    """
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(mllm.read_config(name), '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in DECIDES and path.name not in NOTES:
            digest.update(f"{path.name} {storage.sha256_file(path)}\n".encode())
    if (folder / lora.CONFIG).is_file():
        digest.update(fingerprint(lora.base_of(folder)).encode())
    return digest.hexdigest()


def key(model_fingerprint, data, settings):
    """sha256 over model, tokens, pictures and number format: if any of them changes, the log-probs are
    new."""
    digest = hashlib.sha256(model_fingerprint.encode())
    for tokens in data.sets:
        digest.update(json.dumps(tokens).encode())
    for path in dict.fromkeys(data.images):
        digest.update(path.read_bytes())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    digest.update(f"{settings.dtype} {device} {torch.__version__} {transformers.__version__}".encode())
    return digest.hexdigest()


@torch.no_grad()
def logps(m, data, autocast, name, settings):
    """log pi_ref of every answer, (rows,K), from the cache beside the preferences or in one pass.

    name: the data's `key`. Raises UserError when the policy, adapters on, does not begin as its reference.
    """
    path = f"{settings.preferences}.reference-{name[:16]}.safetensors"
    try:
        ref = load_file(path)["logps"]
        print(f"reference log-probs: from {path}")
    except (FileNotFoundError, SafetensorError) as error:
        if isinstance(error, SafetensorError):
            print(f"reference log-probs: {path} cannot be read ({error}), so they are computed again")
        ref = computed(m, data, autocast, settings)
        keep(ref, path)
    check_policy_is_reference(m, data, autocast, ref, settings)
    return ref


def computed(m, data, autocast, settings):
    """One pass over all sets, adapters off: the policy has not moved yet, so it is its own reference.
    (rows,K)"""
    adapted = any(isinstance(layer, lora.Adapted) for layer in m.model.modules())
    ref = torch.zeros(len(data.sets), len(data.sets[0].ids) - 1)
    some = packing.batches([packing.length(tokens) for tokens in data.sets], settings.micro_batch, seed=0)
    with lora.disabled(m.model) if adapted else contextlib.nullcontext():
        for rows in tqdm(some, desc="reference", unit="batch", disable=None):
            ref[rows] = forward(m, data, autocast, rows)
    return ref


def forward(m, data, autocast, rows):
    """Log-probs of some sets as the model is now: (B,K) in float32 on the CPU."""
    batch = packing.pack([data.sets[i] for i in rows], m.tokenizer.pad_token_id)
    with autocast:
        return packing.set_logps(m, batch, data.features(rows)).float().cpu()


def keep(ref, path):
    # of its own: another training on the same rows may be at this point
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        save_file({"logps": ref}, temporary)
        os.replace(temporary, path)  # a killed run leaves no half cache for the next one to trip over
    except (OSError, SafetensorError) as error:
        print(f"reference log-probs: not kept, {path} cannot be written ({error})")


def check_policy_is_reference(m, data, autocast, ref, settings):
    """Refuse to train when log-probs of the policy before its first step are not the reference's, naming the
    rows.

    They may differ by rounding: a set's sums depend on what it is padded to. In float32 that is 1e-5 of a
    log-prob (sums near -900 differ by 2e-4). Products in bf16 or TF32 keep 2 to 3 digits, so a token's
    log-prob is off by about 0.1, at random: n tokens by 0.1 * sqrt(n). Five times that passes; another model
    is off by far more.
    """
    rows = list(range(min(len(data.sets), settings.micro_batch)))
    policy = forward(m, data, autocast, rows)                                           # (B,K)
    counts = packing.pack([data.sets[i] for i in rows], 0).counts                       # (B,K) scored tokens
    tf32 = m.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    in_bf16 = next(m.model.parameters()).dtype == torch.bfloat16 or isinstance(autocast, torch.autocast)
    bound = 0.5 * counts.sqrt() if tf32 or in_bf16 else 1e-5 * policy.abs().clamp(min=1)
    # Not "difference > bound": NaN is on no side of a bound.
    wrong = (~((policy - ref[rows]).abs() <= bound)).any(1).nonzero().flatten().tolist()
    if wrong:
        some = ", ".join(repr(data.ids[i]) for i in wrong[:5])
        raise UserError(f"{settings.preferences}: reference log-probs of row {some} are not the model's; "
                        f"delete {settings.preferences}.reference-*.safetensors")


def prefers_worse(ref):
    """Share of all pairs in which the reference finds the worse answer likelier. (rows,K) -> a number from 0
    to 1.

    There DPO has to turn an order round, and that is where training has most to do.
    """
    i, j = torch.tensor(losses.pair_indices(ref.shape[1])).T                            # (pairs,) each
    return float((ref[:, i] < ref[:, j]).float().mean())
