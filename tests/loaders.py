"""Exported sets in the hands of the tools they are for: each loads one with its own code. Not in make test.

    python tests/loaders.py TOOL MODEL PREFERENCES IMAGE_ROOT       TOOL: trl, llama-factory or ms-swift

MODEL is a small LLaVA, such as runs/demo/models/llava-2b. The three want different versions of the same
packages, so each needs an environment of its own: pip install --no-deps --target DIR llamafactory …
Checked 2026-11-28 beside torch 2.13 and transformers 5.23: TRL 1.16.0 (which also trains two steps, in
tests/test_convert.py), LLaMA-Factory 0.9.5 with trl 0.24.0, ms-swift 4.6.0. LLaMA-Factory's check of its
dependencies' versions was off, and torchaudio, which it imports and pictures do not need, was a stand-in.
"""
import dataclasses
import importlib.machinery
import os
import re
import shlex
import sys
import tempfile
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from amp_min.convert import __main__ as convert  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(FOLDER / "cache"), DISABLE_VERSION_CHECK="1",
                  MODELSCOPE_CACHE=str(FOLDER / "modelscope"))


def options(command):
    """The options of one of the commands that `python -m amp_min.convert --help` prints, as a dict."""
    text = convert.__doc__.replace("\\\n", " ")
    words = shlex.split(re.search(rf"^.*{re.escape(command)}.*$", text, re.M)[0].split(command)[1])
    pairs = zip(words, [*words[1:], "--"], strict=True)
    return {a[2:]: True if b.startswith("--") else b for a, b in pairs if a.startswith("--")}


def trl(model, path):
    """The collator that cuts a pair into prompt and completion."""
    import datasets
    import transformers
    import trl
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    known = {f.name for c in (trl.DPOConfig, trl.ModelConfig) for f in dataclasses.fields(c)}
    assert options("trl.scripts.dpo").keys() - {"config"} <= known
    data = datasets.load_dataset("json", data_files=str(path), split="train")
    processor = transformers.AutoProcessor.from_pretrained(model)
    collate = DataCollatorForVisionPreference(processor, max_length=None)
    batch = collate([dict(data[0])])
    return len(data), processor.decode(batch["input_ids"][0])


def llama_factory(model, path):
    """Its dataset_info.json, converter, template and pairwise processor."""
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    given = options("llamafactory-cli train") | {                        # an unknown option raises
        "model_name_or_path": model, "dataset_dir": str(path.parent), "dataset": path.stem, "bf16": "false",
        "output_dir": str(FOLDER / "out")}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    model_args, data_args, train_args, _, _ = get_train_args(words)
    tools = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tools["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, train_args, stage="rm", **tools)["train_dataset"]
    return len(data), tools["tokenizer"].decode(data[0]["chosen_input_ids"])


def ms_swift(model, path):
    """Its loader and the LLaVA-1.5 template."""
    from swift import RLHFArguments, get_processor, get_template
    from swift.dataset import load_dataset
    assert options("swift rlhf").keys() <= {f.name for f in dataclasses.fields(RLHFArguments)}
    data, _ = load_dataset(str(path), num_proc=1)
    template = get_template(get_processor(model, model_type="llava1_5_hf"), template_type="llava1_5_hf")
    template.set_mode("rlhf")
    return len(data), template.safe_decode(template.encode(dict(data[0]))["chosen_input_ids"])


if __name__ == "__main__":
    tool, model, preferences, root = sys.argv[1:]
    out = FOLDER / "pairs.jsonl"
    given = ["--in", preferences, "--image-root", root, "--out", str(out)]
    convert.main(["--from", "rows", "--to", tool, *given])
    written = out.read_text(encoding="utf-8").count("\n")
    loaded, text = {"trl": trl, "llama-factory": llama_factory, "ms-swift": ms_swift}[tool](model, out)
    print(f"{tool}: {loaded} of {written} pairs loaded; the first chosen dialogue as it reads it:\n{text}")
    assert loaded == written
