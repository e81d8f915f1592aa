"""The reference's log-probs, computed once per data set.

The reference is the model before training, so its log-probs never change: one pass over the data replaces a second
model in memory and a second forward pass in every step.  The result is kept beside the preferences and found again by a
hash of everything it depends on: weights, tokens and pictures.
"""

import contextlib
import hashlib
import os

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from amp_min import lora, packing
from amp_min.support.script import UserError


def key(m, sets, paths, settings):
    """sha256 over the weights, the tokens and the pictures: if any of them changes, the log-probs are computed again."""
    digest = hashlib.sha256()
    for name, p in sorted(m.model.named_parameters()):
        if not name.endswith((".A", ".B")):                                                  # adapters are off in the reference
            digest.update(name.encode() + p.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    for tokens in sets:
        digest.update(repr(tokens).encode())
    for path in dict.fromkeys(paths):
        digest.update(path.read_bytes())
    digest.update(f"{settings.dtype} {torch.__version__} {m.device.type}".encode())
    return digest.hexdigest()


@torch.no_grad()
def logps(m, sets, ids, see, paths, autocast, settings):
    """log pi_ref of every answer, (N, K), from the cache beside the preferences or in one pass."""
    name = key(m, sets, paths, settings)
    path = f"{settings.preferences}.reference-{name[:16]}.safetensors"
    try:
        cached = load_file(path)["logps"]
        print(f"reference log-probs: from {path}")
        return check_start(m, sets, ids, see, autocast, cached, settings)
    except FileNotFoundError:
        pass
    except SafetensorError as error:
        print(f"reference log-probs: {path} cannot be read ({error}), so they are computed again")
    K = len(sets[0].ids) - 1
    ref = torch.zeros(len(sets), K)
    for chosen in tqdm(packing.batches([packing.length(s) for s in sets], settings.micro_batch, seed=0), desc="reference",
                       unit="batch", disable=None):
        ref[chosen] = forward(m, sets, see, autocast, chosen)
    temporary = f"{path}.{os.getpid()}.tmp"     # of its own: another training on the same rows may be at the same point
    try:
        save_file({"logps": ref}, temporary)
        os.replace(temporary, path)             # a killed run leaves no half cache for the next one to trip over
    except (OSError, SafetensorError) as error:
        print(f"reference log-probs: not kept, {path} cannot be written ({error})")
    return ref


def forward(m, sets, see, autocast, chosen):
    """Reference log-probs of some sets: adapters off, or the model itself, which has not moved yet."""
    batch = packing.pack([sets[i] for i in chosen], m.tokenizer.pad_token_id)
    adapted = any(isinstance(layer, lora.Adapted) for layer in m.model.modules())
    with autocast, lora.disabled(m.model) if adapted else torch.no_grad():
        return packing.set_logps(m, batch, see(chosen)).float().cpu()                        # (B, K)


def check_start(m, sets, ids, see, autocast, cached, settings):
    """The policy starts as the reference.  If it does not, the cache belongs to something else."""
    some = list(range(min(len(sets), settings.micro_batch)))
    must_agree(forward(m, sets, see, autocast, some), cached[some], [ids[i] for i in some], m, autocast, settings)
    return cached


def must_agree(policy, ref, ids, m, autocast, settings):
    """Refuse to train when log-probs (B, K) of the policy before its first step are not the reference's, naming the rows.

    Relative 1e-5 in float32, where sums near -900 round by 2e-4; 1e-2 in bf16, whose products keep 3 digits, and there no
    less than 0.2: a set's rounding depends on the others in its batch, and a short answer's log-prob can be near 0.
    """
    in_bf16 = next(m.model.parameters()).dtype == torch.bfloat16 or not isinstance(autocast, contextlib.nullcontext)
    bound, least = (1e-2, 20) if in_bf16 else (1e-5, 1)
    # Not "difference > bound": NaN is on no side of a bound.
    wrong = (~((policy - ref).abs() <= bound * policy.abs().clamp(min=least))).any(1).nonzero().flatten().tolist()
    if wrong:
        raise UserError(f"{settings.preferences}: reference log-probs of row {', '.join(repr(ids[i]) for i in wrong)} are not the model's; "
                        f"delete {settings.preferences}.reference-*.safetensors")
