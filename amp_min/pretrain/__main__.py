"""Trains the models that a hub would otherwise supply: a tiny CLIP and a family of tiny LLaVAs, on the
picture world.

    python -m amp_min.pretrain --world runs/demo/world --out runs/demo/models

writes ordinary Hugging Face folders with processors: clip/ and, standing for the paper's 2B, 7B, 13B and 34B,
llava-2b/ llava-7b/ llava-13b/ llava-34b/.  As in LLaVA, CLIP is trained first, its vision tower is frozen inside every
LLaVA, and its text tower is the expert of the auto-check.

A LLaVA is then made in two stages.
Stage 1 learns to see, from plain, true texts.
Stage 2 learns manners and bad habits: a short tuning on careless texts, at half the rate.
LLaVA itself was made so: a language model that had not seen the pictures wrote its instructions.
Careless texts from the first step would teach blindness instead: looking does not pay where texts invent.
--careless-steps 0 leaves stage 2 out: a base that sees and does not invent.

    python -m amp_min.pretrain --world W --out DIR --part increments --increments 3 --base runs/demo/models/llava-7b

is Algorithm 1 (incremental generation): the base model fine-tuned on F_1, on F_1 + F_2, … of world/finetune.
"""

import math
import random
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from amp_min import losses, mllm, packing, records
from amp_min.support import folders, pictures, script, storage
from amp_min.support.script import UserError

IMAGE, PATCH, P = 48, 16, 9                     # pixels, pixels, image tokens: (48 / 16)^2
SPECIAL = ["<pad>", "<s>", "<unk>", "</s>", "<image>"]
# Width and depth of each language model; the ratios of size, not the sizes, are the paper's idea.
FAMILY = {"llava-2b": (32, 2), "llava-7b": (64, 3), "llava-13b": (80, 3), "llava-34b": (96, 3)}
MUON = 10                                       # Muon's rate, in AdamW's: its steps have another scale
FIRST = 10                                      # weight of an answer's first token, see `token_weights`
# The share of --steps that each size learns to see. The small ones only have to be worse: that saves time.
SHARE = {"llava-2b": 0.25, "llava-7b": 0.33, "llava-13b": 1.0, "llava-34b": 0.8}


@dataclass
class Settings:
    world: str = field(metadata={"help": "folder written by amp_min.world"})
    out: str = field(metadata={"help": "folder for the model folders"})
    part: Literal["all", "clip", "llava", "increments"] = field(default="all", metadata={"help": "llava: on the CLIP that lies in --out already"})
    family: list[str] = field(default_factory=lambda: list(FAMILY), metadata={"help": "which sizes to train"})
    clip_steps: int = field(default=420, metadata={"help": "contrastive steps; with half of them every LLaVA on top reads pictures far worse", "min": 1})
    steps: int = field(default=1900, metadata={
        "help": "stage 1, learning to see; the small sizes take a share of it, see SHARE", "min": 1})
    careless_steps: int = field(default=200, metadata={
        "help": "stage 2, on careless texts; 0 leaves it out: a base that does not invent", "min": 0})
    batch: int = field(default=16, metadata={"help": "conversations a step (CLIP: eight times as many pictures)", "min": 1})
    lr: float = field(default=2e-3, metadata={"help": "peak learning rate of llava-7b; wider models take less, CLIP three quarters", "above": 0, "max": 1e38})
    increments: int = field(default=3, metadata={"help": "K-2 of Algorithm 1: fine-tune --base on that many growing subsets", "min": 1})
    base: str | None = field(default=None, metadata={"help": "model that --part increments starts from"})
    resume: bool = field(default=False, metadata={"help": "skip the models that are complete"})
    seed: int = field(default=0, metadata={"help": "same seed, same bytes on one machine"})


# ---- data --------------------------------------------------------------------------------------------------

def read_split(path):
    """Rows of a file and their pictures as Pillow images."""
    rows = list(records.read(path, "prompt"))
    return rows, [pictures.open_image(pictures.image_path(row, path)) for row in rows]


def make_tokenizer(rows):
    """Byte-pair encoding, in which every word of the world becomes one token; characters it never saw become
    <unk>."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    texts = (f"USER: \n{q} ASSISTANT: {a}" for row in rows for q, a in zip(row["questions"], row["answers"]))
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=640, special_tokens=SPECIAL, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>",
                                   extra_special_tokens={"image_token": "<image>"}, padding_side="left", model_max_length=1024)
    return framed(tokenizer, "<s> $A </s>")                  # CLIP takes a text's feature at its end token


def framed(tokenizer, frame):
    """The tokenizer, with these special tokens put around every text."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 1), ("</s>", 3)])
    return tokenizer


def image_processor():
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})


def warm_cosine(step, steps, warmup=0.05):
    """Learning-rate factor: up in a straight line, then down in half a cosine."""
    up = max(1, int(steps * warmup))
    return (step + 1) / up if step < up else 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


# ---- CLIP --------------------------------------------------------------------------------------------------

def texts_of(row):
    """Texts that belong to a picture: the sentences said about it, and the bare phrases inside."""
    texts = set()
    for answer in row["answers"]:
        texts.update(re.findall(r"[^.]+\.", answer))
        texts.update(re.findall(r"\b(?:an?|two|three) (?:small|large) \w+ \w+(?: (?:at|on|in) the (?:\w+ ?){1,2}\b)?", answer))
    return sorted(text.strip() for text in texts)


def train_clip(rows, pixel_values, tokenizer, settings):
    """Contrastive training: in a batch of pictures and texts, each picture must find its own text and the
    reverse."""
    torch.manual_seed(settings.seed)
    text = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
                max_position_embeddings=96, pad_token_id=0, bos_token_id=1, eos_token_id=3, projection_dim=96)
    vision = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2, image_size=IMAGE, patch_size=PATCH,
                  projection_dim=96)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96)).train()
    # Position embeddings usually begin at 0.02. Beside patches of 0.76 nobody would see them.
    # "Where" would stay unlearned.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.7)
    optimizers = make_optimizers(model)
    rng = random.Random(f"{settings.seed} clip")
    encoded = [tokenizer(texts_of(row))["input_ids"] for row in rows]
    for step in tqdm(range(settings.clip_steps), desc="clip", unit="step", disable=None):
        chosen = rng.sample(range(len(rows)), min(8 * settings.batch, len(rows)))
        ids, mask = pad([rng.choice(encoded[i]) for i in chosen])
        loss = model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values[chosen], return_loss=True).loss
        update(model, optimizers, loss, 0.75 * settings.lr * warm_cosine(step, settings.clip_steps))
    return model.eval()


def pad(sequences):
    """Lists of token ids -> (ids (B, T) padded on the right with 0, mask (B, T))."""
    T = max(map(len, sequences))
    return (torch.tensor([s + [0] * (T - len(s)) for s in sequences]),
            torch.tensor([[1] * len(s) + [0] * (T - len(s)) for s in sequences]))


def make_optimizers(model):
    """Muon for the matrices of layers and projector, AdamW for all else: [(optimizer, factor of the rate), …].

    Muon turns each gradient into the nearest matrix that stretches all directions alike.
    A rare direction, such as "is that word in this picture?", is then learned as fast as a frequent one.
    It takes matrices only, and it is not meant for embeddings or for the head.
    The projector matters most: all that a decoder sees passes it. Left to AdamW, one seed of two still named
    every sixth place wrongly after 1,900 steps, and the other learned yes/no questions twice as late.
    Its weight decay is not small print: with 0.01 the weights outgrow the steps.
    In a trial of an earlier recipe 30 % of the places were then false, against 12 % with 0.1.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inside = lambda name, p: p.ndim == 2 and (".layers." in name or ".multi_modal_projector." in name)
    matrices = [p for name, p in trained.items() if inside(name, p)]
    others = [p for name, p in trained.items() if not inside(name, p)]
    # foreach: the same numbers with less Python.
    adam = torch.optim.AdamW(others, weight_decay=0.01, betas=(0.9, 0.98), foreach=True)
    return [(torch.optim.Muon(matrices, weight_decay=0.1), MUON), (adam, 1.0)]


def update(model, optimizers, loss, lr):
    model.zero_grad()
    loss.backward()
    clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    for optimizer, factor in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * lr
        optimizer.step()


# ---- LLaVA -------------------------------------------------------------------------------------------------

def make_llava(name, clip, processor, seed):
    """A LLaVA with CLIP's trained vision tower and a fresh projector and Llama."""
    torch.manual_seed(seed)
    width, depth = FAMILY[name]
    text = LlamaConfig(vocab_size=len(processor.tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
                       num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
                       pad_token_id=0, bos_token_id=1, eos_token_id=3,
                       # the usual 0.02 suits widths of thousands; here it learns slowly
                       initializer_range=width ** -0.5)
    # LLaVA takes the last layer but one, in which a patch knows its surroundings.
    # The first, added here, still says exactly which place a patch has and what is drawn there.
    config = LlavaConfig(vision_config=clip.config.vision_config, text_config=text, image_seq_length=P,
                         image_token_id=SPECIAL.index("<image>"), vision_feature_layer=[-4, -2],
                         vision_feature_select_strategy="default", tie_word_embeddings=True)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    return mllm.check(mllm.Mllm(name, model, processor, config.image_token_id, P))


def supervised(m, encoded, features, steps, batch, lr, seed, name, from_scratch=False):
    """Train projector and language model to give the answers: cross-entropy on answer tokens, vision tower
    frozen.

    encoded: (ids, rounds) of each conversation, from mllm.encode; features (N, P, D_vision), from
    mllm.encode_images; lr: AdamW's peak rate; from_scratch: the model knows no word yet, see `token_weights`.
    """
    m.model.train()
    m.model.model.vision_tower.requires_grad_(False)
    optimizers = make_optimizers(m.model)
    lengths, queue, epoch, surprise = [len(ids) for ids, _ in encoded], [], 0, 1.0
    for step in tqdm(range(steps), desc=name, unit="step", disable=None):
        if not queue:
            queue, epoch = packing.batches(lengths, batch, seed=f"{seed} {epoch}"), epoch + 1
        chosen = queue.pop()
        ids, _ = pad([encoded[i][0] for i in chosen])                                        # (B, T)
        rounds, _ = pad([encoded[i][1] for i in chosen])                                     # (B, T)
        hidden = m.model.model.language_model(inputs_embeds=mllm.embed(m, ids, features[chosen])).last_hidden_state
        scored = rounds[:, 1:] > 0  # token t+1 is predicted at t
        logps = losses.token_logps(hidden[:, :-1][scored], m.model.lm_head.weight, ids[:, 1:][scored])
        # surprise: a running mean of what an answer's first token costs. While every yes or no is a guess, at
        # ln 2 nats, it is about 0.5, for the other answers' first tokens are soon known.
        guessing = min(1.0, 2 * surprise) if from_scratch else 0.0
        weights = token_weights(rounds, guessing)[scored]                                    # (N,)
        update(m.model, optimizers, -(logps * weights).sum() / weights.sum(), lr * warm_cosine(step, steps))
        opens = (rounds[:, 1:] != rounds[:, :-1])[scored]                                    # (N,)
        surprise = 0.98 * surprise - 0.02 * logps.detach()[opens].mean().item()
    m.model.eval()
    return m


def token_weights(rounds, guessing):
    """How much each answer token counts in the loss: rounds (B, T) -> (B, T-1), for tokens 1 … T-1.

    guessing 0: all the same, as in LLaVA's loss.  1: an answer of n tokens weighs sqrt(n) and not n, and its
    first token, which is the "yes" or "no", counts FIRST times as much.  Between them, between.

    In the plain loss a "yes" or "no" drowns in the descriptions.
    A model guesses these until, all at once, it has learned to look a word up in the picture.
    When that happens is luck: with weight 4, which fell with time, one seed of two had not had it in 1,900 steps.
    With 10 both had it; with 20 one had it late, for then all else is learned too slowly.
    Descriptions pay for the weights, so these go when they have done their work.
    """
    B, now, before = len(rounds), rounds[:, 1:], rounds[:, :-1]
    owner = torch.arange(B).unsqueeze(1) * (1 + rounds.max()) + now      # (B, T-1) one number per answer
    share = torch.bincount(owner.flatten())[owner].float() ** (-guessing / 2)
    return torch.where((now > 0) & (now != before), (1 + (FIRST - 1) * guessing) * share, share)


def save(m, path, facts):
    with folders.whole_folder(path, facts) as folder:
        m.model.save_pretrained(folder)
        m.processor.save_pretrained(folder)


def made_from(settings, *inputs):
    """What a model follows from: kept in its folder, so that --resume knows whether it is this one."""
    kept = {key: value for key, value in vars(settings).items() if key not in ("resume", "part", "family", "out")}
    return kept | {f"sha256 of {path}": storage.sha256_file(path) for path in inputs}


def make_processor(tokenizer):
    return LlavaProcessor(image_processor=image_processor(), tokenizer=tokenizer, patch_size=PATCH, image_token="<image>",
                          vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=mllm.LLAVA_TEMPLATE)


def train_and_save_clip(settings):
    world, out = Path(settings.world), Path(settings.out) / "clip"
    files = [world / f"{split}/{name}.jsonl"
             for split in ("train", "closeups") for name in ("captions", "prompts")]
    facts = made_from(settings, *files)
    if folders.folder_is_made(out, facts, settings.resume):
        return
    rows, images = [], []
    for captions, prompts in (files[:2], files[2:]):
        described, pictures_of_split = read_split(captions)
        asked = list(records.read(prompts, "prompt"))           # about the same pictures, in the same order
        images += pictures_of_split
        rows += [row | {key: row[key] + more[key] for key in ("questions", "answers")}
                 for row, more in zip(described, asked, strict=True)]
    tokenizer = make_tokenizer(rows)
    pixel_values = image_processor()(images=images, return_tensors="pt")["pixel_values"]
    clip = train_clip(rows, pixel_values, tokenizer, settings)
    with folders.whole_folder(out, facts) as folder:
        clip.save_pretrained(folder)
        CLIPProcessor(image_processor=image_processor(), tokenizer=tokenizer).save_pretrained(folder)


@lru_cache(maxsize=1)
def training_data(world, clip_folder):
    """CLIP, processor, each stage's encoded conversations and picture features: the same for all sizes."""
    clip = CLIPModel.from_pretrained(clip_folder)
    # LLaVA goes on speaking
    processor = make_processor(framed(PreTrainedTokenizerFast.from_pretrained(clip_folder), "<s> $A"))
    m = make_llava(next(iter(FAMILY)), clip, processor, seed=0)
    stages = {}
    for name in ("prompts", "careless"):
        rows, images = read_split(Path(world) / "train" / f"{name}.jsonl")
        encoded = [mllm.encode(m, row["questions"], row["answers"]) for row in rows]
        stages[name] = encoded, mllm.encode_images(m, mllm.pixels(m, images))
    return clip, processor, stages


def train_family(settings):
    clip_folder = Path(settings.out) / "clip"
    texts = [Path(settings.world) / "train" / f"{name}.jsonl" for name in ("prompts", "careless")]
    facts = made_from(settings, *texts, *storage.weights(clip_folder))
    todo = [name for name in settings.family if not folders.folder_is_made(Path(settings.out) / name, facts, settings.resume)]
    for name in todo:
        clip, processor, stages = training_data(settings.world, str(clip_folder))
        # a wider model wants smaller steps
        lr = settings.lr * (FAMILY["llava-7b"][0] / FAMILY[name][0]) ** 0.5
        m = make_llava(name, clip, processor, settings.seed)
        steps = max(1, round(SHARE[name] * settings.steps))
        supervised(m, *stages["prompts"], steps, settings.batch, lr, settings.seed, name, from_scratch=True)
        if settings.careless_steps:
            # Half the rate: enough to pick up habits, too little to forget how to see.
            steps = settings.careless_steps
            supervised(m, *stages["careless"], steps, settings.batch, lr / 2, settings.seed, name)
        save(m, Path(settings.out) / name, facts)


# ---- incremental generation --------------------------------------------------------------------------------

def nested_subsets(n, parts):
    """Algorithm 1's S_1 … S_parts as index lists: S_i = F_1 + … + F_i, n rows in equal parts.

    The trap in the printed pseudocode: i grows with quality, so S_1 makes the *weakest* fine-tuned model.
    """
    return [list(range(n * i // parts)) for i in range(1, parts + 1)]


def train_increments(settings):
    prompts = Path(settings.world) / "finetune/prompts.jsonl"
    facts = made_from(settings, prompts, *storage.weights(settings.base))
    rows, images = read_split(prompts)
    for i, subset in enumerate(nested_subsets(len(rows), settings.increments), start=1):
        if folders.folder_is_made(Path(settings.out) / f"ig-{i}", facts, settings.resume):
            continue
        m = mllm.load(settings.base)            # always the pre-trained model, never the one before
        encoded = [mllm.encode(m, rows[r]["questions"], rows[r]["answers"]) for r in subset]
        features = mllm.encode_images(m, mllm.pixels(m, [images[r] for r in subset]))
        # Equal epochs, so a larger subset also means more steps, as in fine-tuning on more data.
        steps = max(1, settings.steps * i // settings.increments)
        supervised(m, encoded, features, steps, settings.batch, settings.lr / 4, settings.seed, f"ig-{i}")
        save(m, Path(settings.out) / f"ig-{i}", facts)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    started = time.perf_counter()
    if unknown := [name for name in settings.family if name not in FAMILY]:
        raise UserError(f"--family {unknown[0]}: choose from {', '.join(FAMILY)}")
    if settings.part == "increments" and not settings.base:
        raise UserError("--part increments needs --base, the pre-trained model to start from")
    try:
        if settings.part == "increments":
            train_increments(settings)
        if settings.part in ("all", "clip"):
            train_and_save_clip(settings)
        if settings.part in ("all", "llava"):
            train_family(settings)
    except KeyboardInterrupt as error:
        error.add_note(f"models that were complete are in {settings.out}; the same command with --resume skips them")
        raise
    print(f"{settings.out}: {settings.part} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    script.run(main)
