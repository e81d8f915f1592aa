"""LLaVA-1.5-7B's shape with random weights: one accumulated MDPO step through train.py, its adapter saved and loaded again.

    python tests/real_shape.py                        2 of the 32 layers where there is no GPU: 1.0 B parameters, 2 GB
    python tests/real_shape.py --layers 32            the whole depth: 7.06 B parameters, 14 GB on disk and on the GPU

Not part of the test suite: it takes minutes.  It stops at the first thing that is not as it should be, and writes what it
measured to results/real_shape.json.  The weights say nothing, so no figure of quality comes out of this.  The tokenizer is
a small one made here (the real one needs the hub), so the image token has another id than 32000; every shape is the real one.
"""

import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import train  # noqa: E402
from amp_min import lora, mllm
from amp_min.pretrain import __main__ as pretrain
from amp_min.support import hub, memory, script, storage

WORDS = "a the cat dog car tree red blue big small there is on under no yes two three image shows and left right of".split()
ROWS, LEVELS, RANK = 2, 4, 64


@dataclass
class Settings:
    layers: int = field(default=0, metadata={"help": "of the language model; 0: 32 on a GPU, 2 elsewhere"})
    folder: str | None = field(default=None, metadata={"help": "where the model is made and left; by default a temporary one"})
    out: str = field(default=str(ROOT / "results" / "real_shape.json"), metadata={"help": "what was measured"})
    build_only: bool = field(default=False, metadata={"help": "make the model and stop"})


def config(layers, image_token):
    """The config of llava-hf/llava-1.5-7b-hf: Vicuna-7B, CLIP ViT-L/14 at 336 pixels, two-layer projector."""
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, num_hidden_layers=layers)     # 4096, 11008, 32 heads
    vision = CLIPVisionConfig(hidden_size=1024, image_size=336, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24,
                              patch_size=14, projection_dim=768)
    return LlavaConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_index=image_token, vision_feature_layer=-2,
                       vision_feature_select_strategy="default")


def build(folder, layers):
    """The model with random weights in bf16, and a processor."""
    tokenizer = pretrain.framed(pretrain.make_tokenizer([{"questions": [" ".join(WORDS)], "answers": [" ".join(WORDS)]}]), "<s> $A")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), tokenizer=tokenizer,
        patch_size=14, image_token="<image>", vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=mllm.LLAVA_TEMPLATE)
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlavaForConditionalGeneration(config(layers, tokenizer.convert_tokens_to_ids("<image>"))).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)


def data(folder):
    """Rows of K = 4 answers of 100 words to a question of 30, with noise for pictures."""
    rng, rows = random.Random(0), []
    say = lambda n: " ".join(rng.choices(WORDS, k=n))
    for i in range(ROWS):
        Image.frombytes("RGB", (500, 375), rng.randbytes(500 * 375 * 3)).save(folder / f"{i}.png")
        rows.append({"id": f"row-{i}", "image": f"{i}.png", "questions": [say(30)],
                     "responses": [{"source": f"level-{k}", "answers": [say(100)]} for k in range(LEVELS)]})
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


@torch.no_grad()
def logits(model, ids):
    """The last eight positions' logits of an answer, without its picture: (8, V)."""
    embeds = model.get_input_embeddings()(torch.tensor([ids], device=model.device))
    return model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state[0, -8:]).float().cpu()


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    device = hub.choose_device()
    layers = settings.layers or (32 if device == "cuda" else 2)
    temporary = tempfile.TemporaryDirectory() if settings.folder is None else None
    folder = Path(settings.folder or temporary.name)
    if settings.build_only:
        build(folder / "model", layers)
        return
    if not (folder / "model" / "config.json").is_file():         # in a process of its own: its memory must not count
        subprocess.run([sys.executable, __file__, "--build-only", "--layers", str(layers), "--folder", str(folder)], check=True)
    rows, out = data(folder), folder / "adapter"
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter()
    busy = time.process_time()
    held, save = {}, lora.save

    def save_and_keep(model, into):
        """What train.py calls at its end; the trained model's logits are kept to hold the reloaded one against."""
        held["ids"] = tokens[0]
        held["logits"] = logits(model, held["ids"])
        save(model, into)
    shapes = mllm.read_config(folder / "model")
    processor = mllm.hub(mllm.AutoProcessor.from_pretrained, str(folder / "model"))
    tokens = [processor.tokenizer(rows[0]["responses"][0]["answers"][0])["input_ids"]]
    train.lora.save = save_and_keep
    train.main(["--model", str(folder / "model"), "--preferences", str(folder / "preferences.jsonl"), "--out", str(out), "--levels", str(LEVELS),
                "--lora-rank", str(RANK), "--batch", str(ROWS), "--micro-batch", "1", "--epochs", "1", "--lr", "5e-5", "--dtype", "bf16"])
    train.lora.save = save
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (line,) = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    assert abs(line["loss"] - math.log(2)) < 1e-3, line          # the first step's policy is the reference
    assert line["grad_norm"] > 0 and len(line["logp"]) == LEVELS, line

    reloaded = mllm.load(folder / "model", torch.bfloat16, device)
    base = logits(reloaded.model, held["ids"])
    lora.load(reloaded.model, out)
    again = logits(reloaded.model, held["ids"])
    assert again.shape == (8, 32064) and torch.equal(again, held["logits"]) and not torch.equal(again, base)

    skeleton = memory.skeleton(shapes)
    parameters = skeleton.num_parameters()
    run = train.Settings(model="", preferences="", out="", lora_rank=RANK, levels=LEVELS, micro_batch=1)
    train.choose_trained(skeleton, run)
    estimate = memory.estimate(skeleton, run, 2, mllm.image_tokens_of(shapes))
    memory_used = {"process_before_gb": round(before, 2), "process_peak_gb": round(peak, 2)}
    if device == "cuda":
        memory_used["gpu_peak_gb"] = round(torch.cuda.max_memory_allocated() / memory.GB, 2)
    name = torch.cuda.get_device_name() if device == "cuda" else next(
        line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name"))
    note = "seconds are by the clock, computing is processor time; the difference is what other programs on the machine took"
    result = {"note": note, "what": "LLaVA-1.5-7B's shape, random weights: one MDPO step over 2 accumulated sets, adapter saved and reloaded",
              "device": name, "threads": torch.get_num_threads() if device == "cpu" else None, "dtype": "bf16", "layers": layers, "layers_of_the_real_model": 32,
              "parameters": parameters, "lora_rank": RANK, "levels": LEVELS, "sets_per_step": ROWS, "image_tokens": mllm.image_tokens_of(shapes),
              "adapter_parameters": sum(p.numel() for p in lora.parameters(skeleton)), "loss": line["loss"], "grad_norm": line["grad_norm"],
              "reloaded_logits_equal": True, "seconds": {"train_py": round(seconds, 1), "of_which_computing": round(busy, 1)}, "tokens_per_second_of_the_step": line["tokens_per_second"],
              "memory": memory_used, "estimate_gb": {key: round(value / memory.GB, 2) for key, value in estimate.items()}, "versions": storage.versions()}
    storage.write_json(settings.out, result)
    print(json.dumps(result, indent=2))
    if temporary:
        temporary.cleanup()


if __name__ == "__main__":
    script.run(main)
