"""Stage 3: multi-level direct preference optimisation (MDPO), the loop by hand.

    python train.py --model M/llava-7b --preferences preferences.jsonl --out M/mdpo --levels 4

One input row (written by verify.py, or by you; only these keys are needed):
{"id": "s1", "image": "images/s1.png", "questions": ["Is there a dog?"], "responses": [{"source": "standard", "answers": ["No, there is no dog."]}, {"source": "a", "answers": ["There is a cat."]}, {"source": "b", "answers": ["Yes, there is a dog."]}]}
One line of the log (--out/log.jsonl; the tutorial explains each figure):
{"step": 1, "epoch": 0.5, "loss": 0.693, "accuracy": 0.0, "margin": 0.0, "logp": [-9.1, -9.8, -11.2], "ratio": [0.0, 0.0, 0.0], "grad_norm": 3.2, "lr": 0.0001, "tokens_per_second": 5000}

The controls are settings: binary DPO is --levels 2 --penalty 0, supervised training on the standard answers is --loss sft.
Departures from the paper: the mean over pairs (released code; --reduction sum is Eq. 7) is the default, so that the
loss and --clip mean the same for every K.  The vision tower is frozen, and so is the projector unless --train-projector.
The whole language model trains by default; the paper's adapters are --lora-rank 64.
"""

import contextlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from amp_min import lora, losses, mllm, packing, records, reference
from amp_min.support import checkpoint, hub, memory, script
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import UserError


@dataclass
class Settings:
    model: str = field(metadata={"help": "LLaVA to train: folder or hub id"})
    preferences: str = field(metadata={"help": "preference rows (JSONL), responses best first"})
    out: str = field(metadata={"help": "folder for the trained model, its log and its settings"})
    image_root: str | None = field(default=None, metadata={"help": "folder of the pictures, when it is not the rows' own"})
    loss: Literal["mdpo", "kwise", "pro", "sft"] = field(default="mdpo", metadata={"help": "sft: supervised, on the best answer alone"})
    levels: int = field(default=0, metadata={"help": "K: learn from the K best-ranked responses of each row; 0 takes all", "min": 0})
    beta: float = field(default=0.1, metadata={"help": "how strongly the reference holds the policy (DPO's usual value)", "above": 0})
    penalty: float = field(default=1.0, metadata={"help": "coefficient of Eq. 6's penalty; 0 switches it off", "min": 0})
    penalty_on: Literal["best", "all"] = field(default="best", metadata={"help": "best: Eq. 7, the best answer alone"})
    pairs: str = field(default="all", metadata={"help": "all, adjacent, best, or a list such as 0-1,0-2"})
    reduction: Literal["mean", "sum"] = field(default="mean", metadata={"help": "over pairs: mean as released, sum as Eq. 7"})
    round_step: float = field(default=0.0, metadata={"help": "extra weight per later dialogue round (released code: 0.05)", "min": 0})
    lr: float = field(default=5e-5, metadata={"help": "peak learning rate (the paper's, for adapters on a 7B model)", "above": 0, "max": 1e38})
    epochs: float = field(default=4, metadata={"help": "passes over the rows (the paper's)", "above": 0})
    batch: int = field(default=16, metadata={"help": "preference sets per optimizer step (the paper's)", "min": 1})
    micro_batch: int = field(default=16, metadata={"help": "sets per forward pass; smaller needs less memory, the result is the same", "min": 1})
    warmup: float = field(default=0.03, metadata={"help": "share of the steps in which the learning rate rises", "min": 0, "max": 1})
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm", "above": 0})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's; adapters start at zero and stay small by themselves", "min": 0})
    lora_rank: int = field(default=0, metadata={"help": "0 trains all of the language model; the paper uses 64", "min": 0})
    lora_alpha: float = field(default=16, metadata={"help": "adapters are scaled by alpha / rank", "above": 0})
    train_projector: bool = field(default=False, metadata={"help": "train the projector too (full training only)"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations: less memory, a third more time"})
    dtype: Literal["auto", "bf16", "fp32"] = field(default="auto", metadata={"help": "auto: bf16 on a GPU that has it"})
    features_gb: float = field(default=4.0, metadata={"help": "keep what the vision tower sees in memory up to this size", "min": 0})
    save_every: int = field(default=200, metadata={"help": "steps between checkpoints; the newest two are kept", "min": 1})
    resume: bool = field(default=False, metadata={"help": "continue from the newest checkpoint"})
    skip_bad: bool = field(default=False, metadata={"help": "drop and count bad rows instead of stopping"})
    show: int = field(default=0, metadata={"help": "print what is scored in the first N sets", "min": 0})
    seed: int = field(default=0, metadata={"help": "same seed, same bytes on one machine (on a GPU: but for the order of sums)"})


# ---- 1. model ---------------------------------------------------------------------------------------------------

def choose_trained(model, settings):
    """Say which parameters train: the adapters, or the language model and, if asked, the projector."""
    model.requires_grad_(False)
    if settings.lora_rank:
        lora.add(model, settings.lora_rank, settings.lora_alpha)
    else:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(settings.train_projector)


def load_policy(settings):
    """The model to train, the parameters that train, and the context that its forward pass runs in."""
    if settings.lora_rank and (Path(settings.model) / lora.CONFIG).is_file():
        raise UserError(f"--lora-rank: {settings.model} is an adapter itself, and new ones would forget it; merge it first: python -c "
                        f"\"from amp_min import mllm; m = mllm.load('{settings.model}'); m.model.save_pretrained('MERGED'); "
                        "m.processor.save_pretrained('MERGED')\"")
    device = hub.choose_device()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")          # fp32 products in TF32, or the small adapters would take most of the time
    dtype, why = hub.choose_dtype(settings.dtype, device)
    print(f"{settings.model} on {device} in {dtype}: {why}")
    config = mllm.read_config(settings.model)
    shapes = memory.skeleton(config)
    choose_trained(shapes, settings)
    print(memory.report(shapes, settings, dtype.itemsize, mllm.image_tokens_of(config), memory.capacity(device)), flush=True)
    # What trains is kept in fp32: at a learning rate of 5e-5 most updates are smaller than half the gap between two
    # neighbouring bf16 numbers and would be rounded away.  With adapters the frozen base alone is bf16; in full
    # training the weights are fp32 and autocast makes bf16 copies of them for each product.
    m = packing.speed_up(mllm.load(settings.model, dtype if settings.lora_rank else torch.float32, device))
    choose_trained(m.model, settings)
    if settings.gradient_checkpointing:
        m.model.activation_checkpointing_enable()
    m.model.train()                     # no dropout in Llama, so this changes nothing but lets checkpointing work
    trained = {name: p for name, p in m.model.named_parameters() if p.requires_grad}
    use_autocast = dtype == torch.bfloat16 and not settings.lora_rank
    autocast = torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if use_autocast else contextlib.nullcontext()
    return m, trained, autocast


# ---- 2. data ----------------------------------------------------------------------------------------------------

def read_sets(m, settings):
    """Every row as one TokenSet of its K best answers, with its id, picture and (for PRO) rewards."""
    K, sets, ids, paths, rewards, dropped = settings.levels, [], [], [], [], {}
    limit, equal, tokens = m.model.config.text_config.max_position_embeddings, 0, None

    def on_bad(bad):
        dropped[bad.reason] = dropped.get(bad.reason, 0) + 1

    def usable(row):
        """Raise what is wrong with a row, for records.read to name its line; leave the tokens of a good one."""
        nonlocal K, tokens
        open_image(image_path(row, settings.preferences, settings.image_root))
        n, levels = len(row["responses"]), K or len(row["responses"])
        if n < levels and settings.loss != "sft":
            raise UserError(f"responses has {n} entries, " + (f"--levels asks for {K}" if settings.levels else f"the first row {K}; take --levels"))
        if n > levels and not settings.levels and settings.loss != "sft":
            raise UserError(f"responses has {n} entries, the first row {K}; say with --levels how many of each row to learn from")
        if settings.loss == "pro" and any(response.get("accuracy") is None for response in row["responses"][1:]):
            raise UserError("responses lack an accuracy, which --loss pro weighs by; rank them with verify.py")
        responses = row["responses"][:1 if settings.loss == "sft" else levels]
        encoded = [mllm.encode(m, row["questions"], response["answers"]) for response in responses]
        if (longest := max(len(ids) for ids, _ in encoded)) > limit:
            raise UserError(f"responses need {longest} tokens, {m.name} reads {limit}; shorten them (image tokens are never cut)")
        try:
            tokens = packing.token_set(encoded, settings.round_step)
        except ValueError as error:
            raise UserError(str(error)) from None
        K = levels                              # a row that is dropped decides nothing

    for row in records.read(settings.preferences, "preference", settings.skip_bad, on_bad, check=usable):
        sets.append(tokens)
        responses = row["responses"][:len(tokens.ids) - 1]
        equal += len({tuple(response["answers"]) for response in responses}) < len(responses)
        ids.append(row["id"])
        paths.append(image_path(row, settings.preferences, settings.image_root))
        rewards.append([1.0 if response.get("accuracy") is None else response["accuracy"] for response in responses])
    for reason, n in dropped.items():
        print(f"dropped {n} rows: {reason}")
    if equal:
        print(f"{equal} of {len(sets)} rows hold equal answers: between these there is nothing to prefer")
    return sets, ids, paths, torch.tensor(rewards)


def show(m, tokens):
    """Print one set as the loss sees it: scored text in [brackets]."""
    for k, (piece, weights) in enumerate(zip(tokens.ids, tokens.weights)):
        text, inside = "", False
        for token, weight in zip(piece, weights):
            if token == m.image_token_id and text.endswith("<image>"):
                continue                                                                    # P image tokens: print one
            text += ("[" if weight and not inside else "]" if inside and not weight else "") + m.tokenizer.decode([token])
            inside = bool(weight)
        print(("prefix   " if k == 0 else f"answer {k - 1} ") + repr(text + "]" * inside))


# ---- 3. loss ----------------------------------------------------------------------------------------------------

def parse_pairs(text, K):
    """'all', 'adjacent', 'best' or '0-1,0-2' -> what losses.mdpo_loss takes; checked once, before the first step."""
    try:
        pairs = text if text.isalpha() else [tuple(map(int, pair.split("-"))) for pair in text.split(",")]
        losses.pair_indices(K, pairs)
    except ValueError as error:
        raise UserError(f"--pairs {text}: {error}") from None
    return pairs


def preference_loss(policy, ref, counts, rewards, pairs, settings):
    """policy, ref (B, K) summed log-probs; counts (B, K) scored tokens; rewards (B, K) -> scalar."""
    if settings.loss == "sft":
        return -(policy.sum() / counts.sum())                                               # mean over tokens, as usual
    if settings.loss == "kwise":
        return losses.kwise_loss(policy, ref, settings.beta)
    if settings.loss == "pro":
        return losses.pro_loss(policy / counts, rewards, policy[:, 0])
    return losses.mdpo_loss(policy, ref, settings.beta, settings.penalty, pairs, settings.reduction, settings.penalty_on)  # Eq. 7


def learning_rate(step, steps, settings):
    """Linear warm-up, then cosine to zero; `step` counts from 0."""
    up = max(1, round(settings.warmup * steps))
    if step < up:
        return settings.lr * (step + 1) / up
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


# ---- 4. the loop ------------------------------------------------------------------------------------------------

def train(m, trained, autocast, sets, ids, see, ref, rewards, pairs, settings, folder):
    lengths = [packing.length(tokens) for tokens in sets]
    per_epoch = math.ceil(len(sets) / settings.batch)
    steps = max(1, round(settings.epochs * per_epoch))
    on_gpu = m.device.type == "cuda"
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=on_gpu or None)
    first = checkpoint.restore(folder, trained, optimizer) if settings.resume else 0
    log = checkpoint.open_log(folder / "log.jsonl", first)
    print(f"{len(sets)} sets x {settings.epochs:g} epochs / {settings.batch} a step = {steps} steps; "
          f"{sum(p.numel() for p in trained.values()) / 1e6:.2f} M parameters train")
    # What a step's mean is over: sets, or scored tokens in supervised training.
    counted = [sum(w > 0 for piece in tokens.weights for w in piece) if settings.loss == "sft" else 1 for tokens in sets]
    order, started = [], time.perf_counter()
    for step in tqdm(range(first, steps), desc=Path(settings.out).name, unit="step", initial=first, total=steps, disable=None):
        # The order of an epoch follows from seed and epoch alone: the position in the data is the step, nothing more.
        epoch, at = divmod(step, per_epoch)
        if at == 0 or not order:
            order = packing.batches(lengths, settings.batch, seed=f"{settings.seed} {epoch}")
        window = order[at]
        whole, seen = sum(counted[j] for j in window), []
        for i in range(0, len(window), settings.micro_batch):
            chosen = window[i:i + settings.micro_batch]
            batch = packing.pack([sets[j] for j in chosen], m.tokenizer.pad_token_id)
            with autocast:
                policy = packing.set_logps(m, batch, see(chosen))                            # (B, K)
            reference_logps = ref[chosen].to(policy.device)                                  # (B, K)
            if step == 0 and settings.loss in ("mdpo", "kwise"):
                reference.must_agree(policy.detach().cpu(), ref[chosen], [ids[j] for j in chosen], m, autocast, settings)
            loss = preference_loss(policy, reference_logps, batch.counts.to(policy.device), rewards[chosen].to(policy.device), pairs, settings)
            # Each set (token) counts alike in the step, also in a shorter last window or micro-batch.
            part = sum(counted[j] for j in chosen)
            (loss * part / whole).backward()
            seen.append((loss.detach() * part, policy.detach().cpu(), reference_logps.cpu(), int((batch.segment >= 0).sum())))
        loss = float(sum(part[0] for part in seen)) / whole                                 # the true mean of this step
        grad_norm = float(torch.nn.utils.clip_grad_norm_(trained.values(), settings.clip))
        if not math.isfinite(loss + grad_norm):
            raise UserError(f"step {step + 1}: loss {loss}, gradient norm {grad_norm}; rows {', '.join(ids[j] for j in window)}")
        lr = optimizer.param_groups[0]["lr"] = learning_rate(step, steps, settings)
        optimizer.step()
        optimizer.zero_grad()
        now = time.perf_counter()
        log.write(checkpoint.log_line(step + 1, (step + 1) / per_epoch, loss, grad_norm, lr, seen, now - started,
                                      settings.loss in ("mdpo", "kwise")))
        started = now
        if (step + 1) % settings.save_every == 0 and step + 1 < steps:
            checkpoint.save(folder, step + 1, trained, optimizer)
    log.close()


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    torch.manual_seed(settings.seed)
    if settings.train_projector and settings.lora_rank:
        raise UserError("--train-projector goes with full training: adapters off would no longer be the reference")
    folder = checkpoint.begin(settings)
    if folder is None:
        print(f"{settings.out}: finished before, nothing left to do")
        return
    with checkpoint.kept(folder):
        m, trained, autocast = load_policy(settings)
        sets, ids, paths, rewards = read_sets(m, settings)
        K = len(sets[0].ids) - 1
        pairs = parse_pairs(settings.pairs, K) if settings.loss != "sft" else None
        for tokens in sets[:settings.show]:
            show(m, tokens)
        see = mllm.eyes(m, paths, settings.features_gb)
        ref = reference.logps(m, sets, ids, see, paths, autocast, settings) if settings.loss in ("mdpo", "kwise") else torch.zeros(len(sets), K)
        checkpoint.make(folder, settings)
        train(m, trained, autocast, sets, ids, see, ref, rewards, pairs, settings, folder)
        if settings.lora_rank:
            lora.save(m.model, folder)
        else:
            m.model.save_pretrained(folder)
        m.processor.save_pretrained(folder)
        checkpoint.finish(folder, settings)
        print(f"{settings.out}: saved")


if __name__ == "__main__":
    script.run(main)
