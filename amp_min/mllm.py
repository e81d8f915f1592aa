"""A LLaVA-family checkpoint as this project uses it: load, look at pictures, build the prompt.

Everything works on ordinary Hugging Face folders (or hub ids) with a processor, so a tiny LLaVA made here and
llava-hf/llava-1.5-7b-hf are interchangeable. A picture becomes P "image tokens" (P = 576 for LLaVA-1.5; D is the
language model's width, B the batch, T the tokens of a sequence):

    picture --image processor--> pixels --vision tower--> (P, D_vision) --projector--> (P, D)  put where <image> stands
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
)

from amp_min import lora

# noqa: F401  callers know them by this module
from amp_min.prompt import LLAVA_TEMPLATE, conversation, encode, tokens  # noqa: F401  known by this module, too
from amp_min.support import hub
from amp_min.support.hub import pretrained
from amp_min.support.memory import has_class_token, image_tokens_of
from amp_min.support.pictures import open_image
from amp_min.support.script import UserError


@dataclass
class Mllm:
    name: str                           # folder or hub id, for messages
    model: LlavaForConditionalGeneration
    processor: object
    image_token_id: int
    image_tokens: int                   # P, the same for every picture

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def device(self):
        return self.model.device


# ---- loading -----------------------------------------------------------------------------------------------

def read_config(name):
    """The config of a LLaVA folder or hub id, or of an adapter folder's base; no weights are read."""
    name = str(name)
    if (Path(name) / lora.CONFIG).is_file():
        hub.refuse_placeholders(Path(name))
        base = lora.base_of(name)
        try:
            return read_config(base)
        except UserError:
            if Path(base).is_dir():              # what is wrong with it is said already
                raise
            raise UserError(f"{name}/{lora.CONFIG}: base_model_name_or_path {base!r} is no folder beside the "
                            "adapter or here, and not to be had from the hub; write its full path") from None
    config = hub.read_config(name)
    if config.model_type != "llava":
        raise UserError(f"{name}: model type {config.model_type!r} is not supported; this code handles "
                        "'llava' (LLaVA-1.5 and interleave checkpoints), where every picture has the same number "
                        "of image tokens")
    return config


def load(name, dtype=torch.float32, device="cpu"):
    """Load a LLaVA and its processor, strictly: every weight present, none left over, and all parts agree.

    An adapter folder becomes its base with the adapters merged in. In bf16 they stay apart: merged, most of
    what they learned would be rounded away. Only safetensors are read, no checkpoint's code runs.
    """
    name, config = str(name), read_config(name)
    if (Path(name) / lora.CONFIG).is_file():
        m = load(lora.base_of(name), dtype, device)
        lora.load(m.model, name)
        if torch.finfo(dtype).bits >= 32:
            lora.merge(m.model)
        m.model.requires_grad_(False)            # a model to use: train.py puts adapters of its own on a base
        return replace(m, name=name)
    kinds = [f"{kind}_config.json" for kind in ("processor", "preprocessor")]
    if Path(name).is_dir() and not any((Path(name) / kind).is_file() for kind in kinds):
        raise UserError(f"{name}: has no processor_config.json; save the processor beside the weights "
                        "(processor.save_pretrained)")
    processor = pretrained(AutoProcessor.from_pretrained, name)
    if processor.patch_size is None:             # saved before transformers 4.46: the model's config knows
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = int(has_class_token(config))
    model, info = pretrained(LlavaForConditionalGeneration.from_pretrained, name, dtype=dtype,
                             use_safetensors=True, output_loading_info=True)
    for problem in [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]]:
        raise UserError(f"{name}: weights do not fit the model: {problem.replace('_', ' ')} "
                        f"{sorted(map(str, info[problem]))[:3]}")
    model.to(device).eval()
    return check(Mllm(name, model, processor, config.image_token_id, image_tokens_of(config)))


def check(m):
    """Cross-check tokenizer, processor and model; a mismatch here is silent nonsense later."""
    rows = m.model.get_input_embeddings().weight.shape[0]
    if len(m.tokenizer) > rows:
        raise UserError(f"{m.name}: the tokenizer has {len(m.tokenizer)} tokens, the model {rows} embeddings")
    if m.tokenizer.eos_token_id is None or m.tokenizer.pad_token_id is None:
        raise UserError(f"{m.name}: the tokenizer has no end-of-sequence or no padding token")
    if m.tokenizer.convert_tokens_to_ids(m.processor.image_token) != m.image_token_id:
        raise UserError(f"{m.name}: image token {m.processor.image_token!r} is not id {m.image_token_id} in "
                        "the tokenizer")
    blank = m.processor(images=Image.new("RGB", (64, 64)), text=m.processor.image_token, return_tensors="pt")
    made = int((blank["input_ids"] == m.image_token_id).sum())
    if made != m.image_tokens:
        raise UserError(f"{m.name}: the processor makes {made} image tokens, the vision tower {m.image_tokens}")
    side = m.model.config.vision_config.image_size
    if tuple(blank["pixel_values"].shape[-2:]) != (side, side):
        raise UserError(f"{m.name}: the processor makes {tuple(blank['pixel_values'].shape[-2:])} pixels, the vision "
                        f"tower reads {side}")
    m.processor.chat_template = m.processor.chat_template or m.tokenizer.chat_template or LLAVA_TEMPLATE
    return m


# ---- pictures ----------------------------------------------------------------------------------------------

def pixels(m, pictures):
    """Pillow pictures -> (N, 3, H, W), by the checkpoint's own preprocessing: the same in training and
    evaluation."""
    return m.processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]


@torch.no_grad()
def encode_images(m, pixel_values, batch=64):
    """What the frozen vision tower sees, before the projector: (N, 3, H, W) -> (N, P, D_vision).

    The tower is never trained here, so a picture needs this once for all its answers, epochs and the
    reference.
    """
    config, tower = m.model.config, m.model.model.vision_tower
    seen = []
    for chunk in pixel_values.to(m.device, next(tower.parameters()).dtype).split(batch):
        with torch.autocast(m.device.type, enabled=False):  # the same inside a training step
            hidden = tower(chunk, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer if isinstance(config.vision_feature_layer, (list, tuple)) else [config.vision_feature_layer]
        first = 0 if config.vision_feature_select_strategy == "full" else 1  # "default" drops the class token
        seen.append(torch.cat([hidden[layer][:, first:] for layer in layers], dim=-1))  # (chunk, P, D_vision)
    return torch.cat(seen)


def image_features(m, paths, limit_gb=4.0):
    """A function from row numbers to what the vision tower sees of their pictures: list of B -> (B, P,
    D_vision).

    paths: the picture of each row. Each distinct picture is looked at once and kept in memory when all fit into
    limit_gb, else again whenever it is needed. The tower is frozen: both give the same.
    """
    distinct = {path: i for i, path in enumerate(dict.fromkeys(paths))}
    pictures = list(distinct)
    see = lambda some: encode_images(m, pixels(m, map(open_image, some)))
    gigabytes = see(pictures[:1]).nbytes * len(pictures) / 1e9
    if gigabytes > limit_gb:
        print(f"{len(pictures)} pictures would take {gigabytes:.1f} GB of features, more than {limit_gb:g}: looking at them anew each time")
        return lambda rows: see([paths[i] for i in rows])
    bar = tqdm(range(0, len(pictures), 64), desc="look", unit="64 pictures", leave=False, disable=None)
    features = torch.cat([see(pictures[start:start + 64]).cpu() for start in bar])
    return lambda rows: features[[distinct[paths[i]] for i in rows]].to(m.device)


def embed(m, input_ids, features):
    """Token embeddings with the projected pictures in the places of the image tokens.

    input_ids (B, T), features (B, P, D_vision) from `encode_images` -> (B, T, D). The projector runs here, so it may train.
    """
    words = m.model.get_input_embeddings()(input_ids)                                       # (B, T, D)
    projected = m.model.model.multi_modal_projector(features).to(words.dtype)               # (B, P, D)
    places = (input_ids == m.image_token_id).unsqueeze(-1).expand_as(words)                 # (B, T, D)
    return words.masked_scatter(places, projected)
