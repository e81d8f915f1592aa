"""Stage 1: make K answers of different quality for every prompt, without people.

    python generate.py --strategy meg --models M/llava-34b M/llava-13b M/llava-7b M/llava-2b --prompts P.jsonl --out candidates.jsonl

Three strategies:
  meg      multi-size expert generation: one answer from each model of a family, --models from largest to smallest
  ig       incremental generation: models fine-tuned on growing subsets (amp_min.pretrain --part increments),
           --models from most to least data, the pre-trained model last
  perturb  no models: the standard answer with a share of its words changed (Table 6's baseline)
The standard answer comes first, so K is one more than the number of models.

One input row:
{"id": "scene-1", "image": "images/scene-1.png", "questions": ["Is there a dog?"], "answers": ["No, there is no dog."]}
One output row:
{"id": "scene-1", "image": "images/scene-1.png", "questions": ["Is there a dog?"], "responses": [{"source": "standard", "answers": ["No, there is no dog."]}, {"source": "llava-34b", "answers": ["No, there is no dog."]}, {"source": "llava-13b", "answers": ["Yes, there is a dog."]}]}

Departures from the paper: none in the decoding (4 beams, repetition penalty 1.1 on the model's own words, at most 512
new tokens); the printed "temperature 0.7" has no effect without sampling and is left out.  Special tokens are forbidden.
In a dialogue every model goes on from its *own* earlier answers.
"""

import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from amp_min import mllm, perturb, records
from amp_min.support import hub, script, storage
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import UserError


@dataclass
class Settings:
    prompts: str = field(metadata={"help": "prompt rows (JSONL)"})
    out: str = field(metadata={"help": "candidate rows to write (JSONL)"})
    strategy: Literal["meg", "ig", "perturb"] = field(default="meg", metadata={"help": "where the K answers come from"})
    models: list[str] = field(default_factory=list, metadata={"help": "model folders or hub ids, best first"})
    shares: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.5], metadata={"help": "perturb: shares of words changed, best first", "min": 0, "max": 1})
    only: str | None = field(default=None, metadata={"help": "answer with this one of the models and stop, so that each can have a process, or a "
                                                             "GPU, of its own; then 'join' puts their answers side by side"})
    image_root: str | None = field(default=None, metadata={"help": "folder of the pictures, when it is not the prompts' own"})
    beams: int = field(default=4, metadata={"help": "beam search width (the paper's)", "min": 1})
    repetition_penalty: float = field(default=1.1, metadata={"help": "above 1 discourages repeated words (the paper's)", "above": 0})
    max_new_tokens: int = field(default=512, metadata={"help": "longest answer (the paper's)", "min": 1})
    batch: int = field(default=64, metadata={"help": "conversations answered together; lower it when memory runs out", "min": 1})
    block: int = field(default=512, metadata={"help": "rows read at a time; batches are sorted by length within it", "min": 1})
    dtype: Literal["auto", "bf16", "fp32"] = field(default="auto", metadata={"help": "auto: bf16 on a GPU that has it"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run"})
    skip_bad: bool = field(default=False, metadata={"help": "drop and count bad rows instead of stopping"})
    seed: int = field(default=0, metadata={"help": "for perturb; beam search is not random"})


# What all answers of a row must share; a batch size, for one, may differ between models.
DECIDES = ("beams", "repetition_penalty", "max_new_tokens", "skip_bad", "seed")


def read_prompts(settings, dropped=None):
    """The prompt rows whose pictures open, in order."""
    return records.read(settings.prompts, "prompt", settings.skip_bad,
                        on_bad=lambda bad: dropped is not None and dropped.update([bad.reason]),
                        check=lambda row: open_image(image_path(row, settings.prompts, settings.image_root)))


def write_answers(name, path, settings):
    """All answers of one model, to a file of its own: {"id", "answers"}.

    One model after the other, because a family of large models does not fit into memory together.
    """
    same = ("prompts", "image_root", "beams", "repetition_penalty", "max_new_tokens", "batch", "block", "dtype", "skip_bad")
    with storage.Writer(path, {"model": name} | {key: getattr(settings, key) for key in same},
                        [settings.prompts, *storage.weights(name)], settings.resume) as out:
        todo = sum(row["id"] not in out.done for row in read_prompts(settings))
        if not todo:
            return
        device = hub.choose_device()
        dtype, why = hub.choose_dtype(settings.dtype, device)
        m = mllm.load(name, dtype, device)
        print(f"{name}: {m.model.num_parameters() / 1e6:.2f} M parameters on {device} in {dtype}: {why}")
        decoding = dict(num_beams=settings.beams, do_sample=False, repetition_penalty=settings.repetition_penalty,
                        max_new_tokens=settings.max_new_tokens)
        started, rows = time.perf_counter(), read_prompts(settings)
        while block := list(itertools.islice(rows, settings.block)):
            if all(row["id"] in out.done for row in block):
                continue
            # Answered whole even when part of it is done: a batch's rounding then never depends on an interruption.
            see = mllm.image_features(m, [image_path(row, settings.prompts, settings.image_root) for row in block])
            answers = mllm.converse(m, see, [row["questions"] for row in block], decoding, settings.batch, Path(name).name)
            for row, said in zip(block, answers):
                if row["id"] not in out.done:
                    out.write({"id": row["id"], "answers": said})
        print(f"{name}: {todo} rows, {todo / (time.perf_counter() - started):.1f} rows/s")


def write_perturbed(share, path, settings):
    """The standard answers with `share` of their content words changed, to a file like a model's."""
    with storage.Writer(path, {"share": share, "seed": settings.seed, "skip_bad": settings.skip_bad}, [settings.prompts],
                        settings.resume) as out:
        words = perturb.Words(answer for row in read_prompts(settings) for answer in row["answers"])
        for row in tqdm(read_prompts(settings), desc=f"perturb {share:.0%}", unit="row", disable=None):
            changed = [words.change(text, share, seed=f"{settings.seed} {share} {row['id']} {turn}")
                       for turn, text in enumerate(row["answers"])]
            if row["id"] not in out.done:
                out.write({"id": row["id"], "answers": changed})


def join(sources, settings):
    """Put the standard answer and each source's answers side by side: the candidate rows."""
    inputs, prompts = [settings.prompts, *(path for _, path in sources)], storage.sha256_file(settings.prompts)
    for name, path in sources:                  # --only made them in runs of their own
        with storage.open_input(f"{path}.meta.json") as file:
            made = json.load(file)
        if prompts not in made["inputs"].values() or any(made["settings"].get(key, getattr(settings, key)) != getattr(settings, key) for key in DECIDES):
            raise UserError(f"{path}: was made from other prompts or with other settings; run --only {name} again")
    with storage.Writer(settings.out, vars(settings), inputs, settings.resume) as out:
        files = [open(path, encoding="utf-8") for _, path in sources]
        for row, *lines in itertools.zip_longest(read_prompts(settings, out.dropped), *files):
            answers = [json.loads(line or '{"id": null}') for line in lines]
            if row is None or any(answer["id"] != row["id"] for answer in answers):
                raise UserError(f"{settings.out}: the models' answers are not those to the rows of {settings.prompts}, first "
                                f"{'behind its end' if row is None else row['id']!r}; start again without --resume")
            responses = [{"source": "standard", "answers": row.pop("answers")}]
            responses += [{"source": name, "answers": answer["answers"]} for (name, _), answer in zip(sources, answers)]
            if row["id"] not in out.done:
                out.write(row | {"responses": responses})
        for file in files:
            file.close()


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    if settings.strategy == "perturb":
        jobs = [(f"perturb-{share:.0%}".rstrip("%"), share) for share in settings.shares]
    else:
        jobs = [(Path(model).resolve().name if Path(model).is_dir() else Path(model).name, model) for model in settings.models]
    if not jobs or (settings.strategy == "perturb") == bool(settings.models):
        raise UserError("--strategy perturb takes no --models; meg and ig need at least one, best first")
    if len({name for name, _ in jobs}) < len(jobs):
        raise UserError(f"--models: two of {', '.join(name for name, _ in jobs)} have the same name; rename a folder")
    if taken := {"standard", "join"} & {name for name, _ in jobs}:
        raise UserError(f"--models: {taken.pop()} is no name for a model here; rename its folder")
    if Path(settings.out).is_dir() or Path(settings.out).resolve() == Path(settings.prompts).resolve():
        raise UserError(f"--out {settings.out}: is a folder, or the prompts themselves; name a file to write")
    parts = Path(f"{settings.out}.answers")
    sources = [(name, parts / f"{name}.jsonl") for name, _ in jobs]
    if settings.only not in (None, "join", *(name for name, _ in jobs)):
        raise UserError(f"--only {settings.only}: choose join or one of {', '.join(name for name, _ in jobs)}")
    for (name, job), (_, path) in zip(jobs, sources):
        if settings.only in (None, name):
            (write_perturbed if settings.strategy == "perturb" else write_answers)(job, path, settings)
    if settings.only not in (None, "join"):
        return
    join(sources, settings)
    print(f"{settings.out}: K = {len(jobs) + 1} answers for every prompt, the initial ranking is standard > "
          + " > ".join(name for name, _ in jobs))


if __name__ == "__main__":
    script.run(main)
