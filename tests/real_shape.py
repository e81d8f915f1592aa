"""LLaVA-1.5-7B's shape with random weights: one MDPO step through train.py, and its adapter loaded again.

    python tests/real_shape.py               2 of the 32 layers where there is no GPU: 1.0 B parameters, 2 GB
    python tests/real_shape.py --layers 32   the whole depth: 7.06 B parameters, 14 GB on disk and on the GPU

Not part of the test suite: it takes minutes. What `python -m amp_min.bench --gpu` leaves out is here: files,
processor, data, the memory estimate and train.py itself. It stops at the first thing that is not as it should
be, and writes what it measured to results/real_shape.json. The tokenizer is a small one made here (the real
one needs the hub), so the image token has another id than 32000; every shape is the real one.
"""
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPImageProcessorPil, LlavaProcessor  # noqa: E402

import train  # noqa: E402
from amp_min import lora, mllm  # noqa: E402
from amp_min.bench import measure, variants  # noqa: E402
from amp_min.pretrain import __main__ as pretrain  # noqa: E402
from amp_min.support import hub, memory, script, storage  # noqa: E402
from amp_min.support.script import arg  # noqa: E402

WORDS = "a the cat dog car tree red blue big small there is on under no yes two image left right".split()
ROWS, LEVELS, RANK = 2, 4, 64


@dataclass
class Settings:
    layers: int = arg(0, "of the language model; 0: 32 on a GPU, 2 elsewhere", min=0)
    build: str = arg("", "only make the model in this folder: what the script asks of a process of its own")
    out: str = arg(str(ROOT / "results" / "real_shape.json"), "what was measured")


def build(folder, layers):
    """The model with random weights in bf16, and a processor: what llava-hf/llava-1.5-7b-hf has."""
    words = pretrain.make_tokenizer([{"questions": [" ".join(WORDS)], "answers": [" ".join(WORDS)]}])
    tokenizer = pretrain.framed(words, "<s> $A")
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    LlavaProcessor(image_processor=pictures, tokenizer=tokenizer, patch_size=14, image_token="<image>",
                   vision_feature_select_strategy="default", num_additional_image_tokens=1,
                   chat_template=mllm.LLAVA_TEMPLATE).save_pretrained(folder)
    shape = variants.SHAPES["llava-1.5-7b"]
    m = variants.build(shape._replace(text=shape.text | {"num_hidden_layers": layers}), 0, torch.bfloat16)
    m.model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    m.model.save_pretrained(folder)


def write_rows(folder):
    """Rows of K = 4 answers of 100 words to a question of 30, with noise for pictures."""
    rng, rows = random.Random(0), []
    say = lambda n: " ".join(rng.choices(WORDS, k=n))
    for i in range(ROWS):
        Image.frombytes("RGB", (500, 375), rng.randbytes(500 * 375 * 3)).save(folder / f"{i}.png")
        responses = [{"source": f"level-{k}", "answers": [say(100)]} for k in range(LEVELS)]
        row = {"id": f"row-{i}", "image": f"{i}.png", "questions": [say(30)], "responses": responses}
        rows.append(json.dumps(row) + "\n")
    (folder / "preferences.jsonl").write_text("".join(rows), encoding="utf-8")


@torch.no_grad()
def logits(m):
    """Of the last eight of some words, without a picture: (8,V)."""
    embeds = m.model.get_input_embeddings()(torch.arange(10, 30, device=m.device)[None])
    hidden = m.model.model.language_model(inputs_embeds=embeds).last_hidden_state
    return m.model.lm_head(hidden[0, -8:]).float()


def step(folder, layers, device):
    """train.py from its command line, and what it leaves."""
    model, out = str(folder / "model"), folder / "adapter"
    started, busy = time.perf_counter(), time.process_time()
    train.main(["--model", model, "--preferences", str(folder / "preferences.jsonl"), "--out", str(out),
                "--levels", str(LEVELS), "--lora-rank", str(RANK), "--batch", str(ROWS), "--micro-batch", "1",
                "--epochs", "1", "--lr", "5e-5", "--dtype", "bf16"])
    seconds = {"train_py": time.perf_counter() - started, "of_which_computing": time.process_time() - busy}
    used = {"process_peak_gb": measure.resident("VmHWM") / 1024}
    if device == "cuda":
        used["gpu_peak_gb"] = torch.cuda.max_memory_allocated() / memory.GB
    (line,) = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    assert abs(line["loss"] - math.log(2)) < 1e-3, line          # the first step's policy is the reference
    assert line["grad_norm"] > 0 and len(line["logp"]) == LEVELS, line
    m = mllm.load(model, torch.bfloat16, device)
    before = logits(m)
    adapted = logits(m) if lora.load(m.model, out) else None
    assert before.shape == (8, 32064) and adapted.isfinite().all() and not torch.equal(before, adapted)
    # The estimate that train.py printed, beside what was used.
    config = mllm.read_config(model)
    run = train.Settings(model="", preferences="", out="", lora_rank=RANK, levels=LEVELS, micro_batch=1)
    skeleton = memory.skeleton(config)
    parameters = skeleton.num_parameters()
    train.choose_trained(skeleton, run)
    estimate = memory.estimate(skeleton, run, 2, mllm.image_tokens_of(config))
    return {
        "what": "LLaVA-1.5-7B's shape, random weights: one MDPO step over 2 accumulated sets, adapter saved "
                "and loaded",
        "note": "seconds by the clock, and of the processor; what lies between is what others took of the "
                "machine",
        "device": measure.device_name(device), "threads": torch.get_num_threads(), "dtype": "bf16",
        "versions": storage.versions(), "layers": layers, "layers_of_the_real_model": 32,
        "parameters": parameters, "lora_rank": RANK,
        "adapter_parameters": sum(map(torch.numel, lora.parameters(skeleton))),
        "levels": LEVELS, "sets_per_step": ROWS, "image_tokens": mllm.image_tokens_of(config),
        "loss": line["loss"], "grad_norm": line["grad_norm"], "seconds": seconds, "memory": used,
        "estimate_gb": {key: round(value / memory.GB, 2) for key, value in estimate.items()}}


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    device = hub.choose_device()
    layers = settings.layers or (32 if device == "cuda" else 2)
    if settings.build:
        return build(settings.build, layers)
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: its memory must not count.
        command = [sys.executable, __file__, "--layers", str(layers), "--build", f"{folder}/model"]
        subprocess.run(command, check=True)
        write_rows(Path(folder))
        result = step(Path(folder), layers, device)
    storage.write_json(settings.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    script.run(main)
