"""Stage 3: multi-level direct preference optimization (MDPO), the loop by hand.

A row holds K answers to one picture, best first. The policy is the model that trains; the reference is the
same model before its first step. What counts is how much likelier an answer has become, its log-ratio: log
pi_policy(y|x) - log pi_ref(y|x). Of every two answers the better one shall have the larger log-ratio
(K(K-1)/2 pairs, Eq. 5), and the best answer of all shall not become less likely than it was (the penalty of
Eq. 6 and 7).

    python train.py --model M/llava-13b --preferences preferences.jsonl --out M/mdpo --levels 4

One input row (written by verify.py, or by you; only these keys are needed):

    {"id": "s1", "image": "images/s1.png", "questions": ["Is there a dog?"], "responses": [
     {"source": "standard", "answers": ["No, there is no dog."]},
     {"source": "a", "answers": ["There is a cat."]}, {"source": "b", "answers": ["Yes, there is a dog."]}]}

One line of the log, OUT/log.jsonl (lists hold one figure per level, best first; `log_line` explains each):

    {"step": 1, "epoch": 0.5, "loss": 0.693, "accuracy": 0.0, "margin": 0.0, "logp": [-9.1, -9.8, -11.2],
     "ratio": [0.0, 0.0, 0.0], "grad_norm": 3.2, "lr": 0.0001, "tokens_per_second": 5000}

The controls are settings: binary DPO is --levels 2 --penalty 0, supervised training is --loss sft. Departures
from the paper: the mean over pairs, as in the released code, is the default (--reduction sum is Eq. 7), so
that loss and gradient norm mean the same for every K. The vision tower is frozen, and so is the projector
unless --train-projector. The whole language model trains by default; the paper's adapters are --lora-rank 64.
"""
import contextlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from amp_min import lora, losses, mllm, packing, preferences, reference
from amp_min.support import checkpoint, hub, memory, script, storage
from amp_min.support.script import UserError, arg, needed

# Shapes: B preference sets of a micro-batch, K levels (the ranked answers of a set, column 0 is the best).


# Settings are read from the command line: `beta` is --beta. Each line gives the default and the reason for
# it.

@dataclass
class Settings:
    # What comes in and goes out.
    model: str = needed("LLaVA to train: folder or hub id")
    preferences: str = needed("preference rows (JSONL), responses best first")
    out: str = needed("folder for the trained model, its log and its settings")
    image_root: str | None = arg(None, "folder of the pictures, when it is not the rows' own")
    skip_bad: bool = arg(False, "drop and count bad rows instead of stopping")
    # What is asked of the answers. The defaults are the paper's.
    loss: Literal["mdpo", "kwise", "pro", "sft"] = arg("mdpo", "sft: supervised, on the best answer alone")
    levels: int = arg(0, "K: learn from the K best-ranked responses of each row; 0 takes all", min=0)
    beta: float = arg(0.1, "how strongly the reference holds the policy (DPO's usual value)", above=0)
    penalty: float = arg(1.0, "coefficient of Eq. 6's penalty; 0 switches it off", min=0)
    penalty_on: Literal["best", "all"] = arg("best", "best: Eq. 7, the best answer alone")
    pairs: str = arg("all", "all, adjacent, best, or a list such as 0-1,0-2")
    reduction: Literal["mean", "sum"] = arg("mean", "over pairs: mean as released, sum as Eq. 7")
    round_step: float = arg(0.0, "extra weight per later dialogue round (released code: 0.05)", min=0)
    # How the weights move. A tiny model takes a far higher rate than a 7B model: the demo's is 1e-3.
    lr: float = arg(5e-5, "peak learning rate (the paper's, for adapters on a 7B model)", above=0, max=1e38)
    epochs: float = arg(4, "passes over the rows (the paper's)", above=0)
    batch_size: int = arg(16, "preference sets per optimizer step (the paper's)", min=1, was="batch")
    micro_batch: int = arg(16, "sets per forward pass; fewer need less memory, the result is the same", min=1)
    warmup_ratio: float = arg(0.03, "share of the steps in which the rate rises", min=0, max=1, was="warmup")
    max_grad_norm: float = arg(1.0, "longer gradients are scaled down to this norm", above=0, was="clip")
    weight_decay: float = arg(0.0, "AdamW's; adapters start at zero and stay small by themselves", min=0)
    lora_rank: int = arg(0, "0 trains all of the language model; the paper uses 64", min=0)
    lora_alpha: float = arg(16, "adapters are scaled by alpha / rank", above=0)
    train_projector: bool = arg(False, "train the projector too (full training only)")
    # What fits into the machine. None of these changes the result by more than rounding.
    gradient_checkpointing: bool = arg(False, "recompute activations: less memory, a third more time")
    dtype: Literal["auto", "bf16", "fp32"] = arg("auto", "auto: bf16 on a GPU that has it")
    features_gb: float = arg(4.0, "keep the vision tower's features in memory up to this size", min=0)
    # The run itself.
    save_every: int = arg(200, "steps between checkpoints; the newest two are kept", min=1)
    resume: bool = arg(False, "continue from the newest checkpoint")
    show: int = arg(0, "print what is scored in the first N sets", min=0)
    seed: int = arg(0, "same seed, same bytes on one machine (on a GPU: but for the order of sums)")


# ---- 1. The policy: which weights train, and in which number format ----------------------------------------

def choose_trained(model, settings):
    """Say which parameters train: the adapters, or the language model and, if asked, the projector."""
    model.requires_grad_(False)  # the vision tower stays so: what it sees is computed once, before the loop
    if settings.lora_rank:
        lora.add(model, settings.lora_rank, settings.lora_alpha)
    else:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(settings.train_projector)


def load_policy(settings):
    """-> the policy, {name: parameter} of all that trains, and the context that its forward pass runs in."""
    if settings.lora_rank and (Path(settings.model) / lora.CONFIG).is_file():
        raise UserError(f"--lora-rank: {settings.model} is an adapter itself, and new ones would forget it; "
                        "merge it first: python -c \"from amp_min import mllm; "
                        f"m = mllm.load('{settings.model}'); "
                        "m.model.save_pretrained('MERGED'); m.processor.save_pretrained('MERGED')\"")
    device = hub.choose_device()
    if device == "cuda":
        # TF32, or the small fp32 adapters would take most of the time
        torch.set_float32_matmul_precision("high")
    dtype, why = hub.choose_dtype(settings.dtype, device)
    print(f"{settings.model} on {device} in {dtype}: {why}")
    # Before any weight is read: does the run fit? Parameters are counted on a skeleton of shapes without
    # numbers.
    config = mllm.read_config(settings.model)
    print(memory.line(config, choose_trained, settings, dtype.itemsize, device), flush=True)
    # What trains is kept in fp32. At a learning rate of 5e-5 most updates are smaller than half the gap
    # between two neighboring bf16 numbers: added to a bf16 weight, they would be rounded away, every time.
    # - With adapters, the frozen base alone is bf16.
    # - In full training the weights are fp32, and autocast makes a bf16 copy of them for each product.
    m = mllm.load(settings.model, dtype if settings.lora_rank else torch.float32, device)
    use_autocast = dtype == torch.bfloat16 and not settings.lora_rank
    autocast = torch.autocast(device, dtype=torch.bfloat16) if use_autocast else contextlib.nullcontext()
    packing.speed_up(m)  # attention without the empty parts of the mask; the numbers stay the same
    choose_trained(m.model, settings)
    if settings.gradient_checkpointing:
        enable = getattr(m.model, "activation_checkpointing_enable", None)  # since transformers 5.23
        enable() if enable else m.model.gradient_checkpointing_enable({"use_reentrant": False})
    m.model.train()  # no dropout in Llama, so this changes nothing but lets checkpointing work
    return m, {name: p for name, p in m.model.named_parameters() if p.requires_grad}, autocast


# ---- 2. The loss and the learning rate ---------------------------------------------------------------------

def parse_pairs(text, K):
    """'all', 'adjacent', 'best' or '0-1,0-2' -> what losses.mdpo_loss takes.

    Called before the first step, so that a mistyped pair is refused and not met an hour later.
    """
    try:
        pairs = text if text.isalpha() else [tuple(map(int, pair.split("-"))) for pair in text.split(",")]
        losses.pair_indices(K, pairs)
    except ValueError as error:
        raise UserError(f"--pairs {text}: {error}") from None
    return pairs


def preference_loss(policy, ref, counts, rewards, pairs, settings):
    """What the step makes smaller: a scalar, the mean over the B sets.

    policy, ref (B,K) summed log-probs under policy and reference; counts (B,K) scored tokens; rewards (B,K).
    """
    # A control: what do the worse answers add to learning the best one by heart? It sees nothing but y_0.
    if settings.loss == "sft":
        return -(policy.sum() / counts.sum())                           # cross-entropy: the mean over tokens
    # Two other ways to learn from a ranking, for the comparison of Table 6.
    if settings.loss == "kwise":
        return losses.kwise_loss(policy, ref, settings.beta)            # Plackett-Luce over the whole ranking
    if settings.loss == "pro":
        return losses.pro_loss(policy / counts, rewards, policy[:, 0])  # no reference, log-probs per token
    # Eq. 7. For each pair i < j: -log sigmoid(beta * (log-ratio of i - log-ratio of j)), and where i is the
    # best answer, minus penalty * its log-ratio. At the first step all log-ratios are 0, so this is ln 2.
    # With K = 3 the pairs are (0,1), (0,2), (1,2). At the start each pulls its winner up and its loser down
    # by beta/2 per nat. Answer 1 wins one pair and loses one, so the pairs leave it where it is. The penalty
    # pulls answer 0 up by 1 per nat, 2/beta = 20 times as hard: at first MDPO is mostly supervised learning
    # on y_0. Later the loss may well be negative: the penalty's part has no lower bound.
    return losses.mdpo_loss(policy, ref, settings.beta, settings.penalty, pairs, settings.reduction,
                            settings.penalty_on)


def learning_rate(step, steps, settings):
    """Linear warm-up, then half a cosine down to zero; `step` counts from 0."""
    up = max(1, round(settings.warmup_ratio * steps))
    if step < up:  # AdamW's first moments are noisy: full steps at once could wreck the model
        return settings.lr * (step + 1) / up
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


# ---- 3. The loop -------------------------------------------------------------------------------------------

def train(m, trained, autocast, data, pairs, settings, folder):
    """Every step: pack -> log-probs -> loss -> backward for each micro-batch, then clip, move, log.

    m: the policy; trained: {name: parameter}; data: preferences.PreferenceSets; pairs: from `parse_pairs`;
    folder: for log and checkpoints. Raises UserError, naming the rows, when loss or gradient are no numbers.
    """
    lengths = [packing.length(tokens) for tokens in data.sets]                  # without padding
    steps_per_epoch = math.ceil(len(data.sets) / settings.batch_size)           # the last may be short
    steps = max(1, round(settings.epochs * steps_per_epoch))
    # AdamW keeps two moments of each trained weight, in fp32. With adapters that is 2 % of the model, in full
    # training it is twice the model again: the reason why LoRA fits where full training does not.
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.lr, weight_decay=settings.weight_decay,
                                  fused=m.device.type == "cuda" or None)   # one kernel for all weights
    first = checkpoint.restore(folder, trained, optimizer) if settings.resume else 0
    log = checkpoint.open_log(folder / "log.jsonl", first)
    # Read this line before you wait: it is what the settings came to.
    size = sum(p.numel() for p in trained.values()) / 1e6
    print(f"{len(data.sets)} sets x {settings.epochs:g} epochs / {settings.batch_size} a step = "
          f"{steps} steps; {size:.2f} M parameters train")
    # A step's loss is a mean: over its sets or, in supervised training, over its scored tokens. A row's
    # weight is how many of these it brings.
    weight = [sum(w > 0 for part in tokens.weights for w in part) if settings.loss == "sft" else 1
              for tokens in data.sets]
    order, started = [], time.perf_counter()
    bar = {"desc": Path(settings.out).name, "unit": "step", "initial": first, "total": steps, "disable": None}
    for step in tqdm(range(first, steps), **bar):
        # An epoch's order follows from seed and epoch alone: a continued run needs to know its step, no more.
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0 or not order:
            order = packing.batches(lengths, settings.batch_size, seed=f"{settings.seed} {epoch}")
        rows = order[position]
        total, loss, logps = sum(weight[i] for i in rows), 0.0, []

        # Gradient accumulation. The sets of a step pass through the model a few at a time, and backward()
        # adds each part's gradient to those before: the same step as with all at once, in less memory.
        for start in range(0, len(rows), settings.micro_batch):
            some = rows[start:start + settings.micro_batch]
            # Pack: picture and prompt once, behind them the K answers. None of them sees another.
            batch = packing.pack([data.sets[i] for i in some], m.tokenizer.pad_token_id)
            # Log-probs: one forward pass gives log pi_policy(y_k|x) of all K answers. Pairs are made of
            # these K numbers afterwards, so a further pair costs nothing and a further answer only itself.
            with autocast:
                policy = packing.set_logps(m, batch, data.features(some))                   # (B,K)
            # Loss: the reference's log-probs were computed before the loop; no second model is in memory.
            ref, rewards = data.reference[some].to(m.device), data.rewards[some].to(m.device)   # (B,K) each
            part = preference_loss(policy, ref, batch.counts.to(m.device), rewards, pairs, settings)
            # Backward: each part counts by its share. A plain mean of parts would give the sets of a short
            # last part more weight than the others, and a step would depend on how it was cut.
            share = sum(weight[i] for i in some) / total
            (part * share).backward()
            loss += part.detach() * share                               # adds up to the true mean of the step
            logps.append(policy.detach())

        # All parts of the step have been seen; the weights have not moved yet.
        # Clip: one odd batch must not throw the model far away. What is logged is the norm before clipping.
        # Where it is above --max-grad-norm in every step, the gradient's size no longer tells anything.
        grad_norm = torch.nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm)
        if not math.isfinite(loss + grad_norm):      # NaN would now be written into every weight
            raise UserError(f"step {step + 1}: loss {float(loss)}, gradient norm {float(grad_norm)}, first "
                            f"at rows {', '.join(data.ids[i] for i in rows[:4])} … of --preferences")
        # Move: each weight by about the learning rate, in the direction that lowers the loss. AdamW divides a
        # gradient by its own usual size, so rare words move as far as frequent ones.
        lr = optimizer.param_groups[0]["lr"] = learning_rate(step, steps, settings)
        optimizer.step()
        optimizer.zero_grad()           # or the next step would add to this one's gradients
        # Log: what the policy thought before it moved, so the first line is that of the reference.
        now = time.perf_counter()
        ref = data.reference[rows] if settings.loss in ("mdpo", "kwise") else None
        speed = sum(lengths[i] for i in rows) / (now - started)
        policy = torch.cat(logps).cpu()                                 # (batch,K)
        log.write(log_line(step + 1, steps_per_epoch, loss, grad_norm, lr, policy, ref, speed))
        started = now
        if (step + 1) % settings.save_every == 0 and step + 1 < steps:
            checkpoint.save(folder, step + 1, trained, optimizer)
    log.close()


def log_line(step, steps_per_epoch, loss, grad_norm, lr, policy, ref, tokens_per_second):
    """One step as one line of JSON. policy, ref (batch,K) log-probs; ref None: the loss knows no reference.

    logp      log pi_policy(y_k), mean over the step's sets, one figure per level. In DPO all of them may
              fall, the best answer's too, while the loss falls: only differences count. Eq. 6's penalty is to
              stop that.
    ratio     how far each has moved from the reference: log pi_policy(y_k) - log pi_ref(y_k). 0 at the start.
    margin    mean of ratio_i - ratio_j over all pairs i < j: it should grow.
    accuracy  share of these pairs whose margin is above zero. 0 at the start, where every margin is 0.
    """
    line = {"step": step, "epoch": round(step / steps_per_epoch, 4), "loss": float(loss)}
    ratio = None if ref is None else policy - ref                                           # (batch,K)
    if ref is not None:
        i, j = torch.tensor(losses.pair_indices(policy.shape[1])).T                         # (pairs,) each
        margin = ratio[:, i] - ratio[:, j]                                                  # (batch,pairs)
        line |= {"accuracy": float((margin > 0).float().mean()), "margin": float(margin.mean())}
    line["logp"] = policy.mean(0).tolist()
    if ref is not None:
        line["ratio"] = ratio.mean(0).tolist()
    line |= {"grad_norm": float(grad_norm), "lr": lr, "tokens_per_second": round(tokens_per_second)}
    return json.dumps(line) + "\n"


# ---- 4. The stage, in the order in which it happens --------------------------------------------------------

def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    torch.manual_seed(settings.seed)                    # new adapters are random; nothing else here is
    if settings.train_projector and settings.lora_rank:
        raise UserError("--train-projector goes with full training: else adapters off would be no reference")
    # What a continued run must share with its beginning. It works in OUT.part, so OUT is never half a model.
    device = hub.choose_device()
    facts = asdict(settings) | {"device": device, "dtype": str(hub.choose_dtype(settings.dtype, device)[0]),
                                "preferences sha256": storage.sha256_file(settings.preferences),
                                "model fingerprint": reference.fingerprint(settings.model)}
    folder = checkpoint.begin(settings, facts)
    if folder is None:
        print(f"{settings.out}: finished before, nothing left to do")
        return
    # From here on, whatever stops the run says which checkpoint there is and how to go on.
    with checkpoint.kept(folder):
        # It prints the memory that the run will need, before any weight is read.
        m, trained, autocast = load_policy(settings)
        # Rows become tokens. --show 2 prints two sets as the loss sees them: look at it once, masks are where
        # preference training goes wrong most often.
        data = preferences.read(m, settings)
        for tokens in data.sets[:settings.show]:
            preferences.show(m, tokens)
        K = len(data.sets[0].ids) - 1
        pairs = parse_pairs(settings.pairs, K) if settings.loss == "mdpo" else None
        # Pictures become features, once: the vision tower is frozen.
        data.features = mllm.image_features(m, data.images, settings.features_gb)
        # The reference becomes a table of numbers, once: it is the policy as it is now. Where it finds the
        # worse answer likelier, the order has to be turned round; where it agrees with the ranking, DPO only
        # widens a gap. supervised training and PRO need no reference, so their table stays empty.
        found = {"data fingerprint": reference.key(facts["model fingerprint"], data, settings)}
        data.reference = torch.zeros(len(data.sets), K)                                     # (rows,K)
        if settings.loss in ("mdpo", "kwise"):
            data.reference = reference.logps(m, data, autocast, found["data fingerprint"], settings)
            found["reference prefers the worse"] = share = reference.prefers_worse(data.reference)
            print(f"the reference finds the worse answer likelier in {share:.0%} of all pairs")
        # All input has been read, so a run that was going to fail on it has failed. Only now is anything
        # written.
        checkpoint.make(folder, settings, facts, found)
        # The first logged loss must be ln 2 = 0.693 with MDPO, whatever the penalty: policy and reference
        # agree. Then the margin should grow. Watch logp of level 0: where it falls, the penalty is too small.
        train(m, trained, autocast, data, pairs, settings, folder)
        # An ordinary Hugging Face folder, processor included: evaluate.py and the hub's own classes open it.
        if settings.lora_rank:
            lora.save(m.model, folder)                                  # PEFT's file format, a few MB
        else:
            m.model.save_pretrained(folder)
        m.processor.save_pretrained(folder)
        checkpoint.finish(folder, settings)
        print(f"{settings.out}: saved")


if __name__ == "__main__":
    script.run(main)
