"""Stage 1: K answers of different quality for every prompt, without people.

Learning from preferences needs better and worse answers to the same question. People who write and rank them
are slow and contradict themselves (in 14 % of the paper's triples). So the answers are *made in an order*, by
models of which is known beforehand who is better. All sound alike: a learner that could tell good from bad by
style would learn the style. Stage 2 (verify.py) looks at what was said and corrects the order.

    python generate.py --strategy meg --models M/llava-34b M/llava-13b --prompts P.jsonl --out out.jsonl

    meg      multi-size expert generation: a family of models, from largest to smallest
    ig       incremental generation: one model fine-tuned on growing subsets, from most to least data, the
             pre-trained model last (python -m amp_min.pretrain --part increments makes them)
    self     one model, several sampled answers: on-policy levels, of the very model that learns from them, as
             RLAIF-V (2405.17220) and iterative DPO (2404.19733) make them; not in the paper
    perturb  no models: the standard answer with a share of its words changed, Table 6's baseline

One input row:

    {"id": "scene-1", "image": "scene-1.png", "questions": ["Is there a dog?", "Where is the cat?"],
     "answers": ["No, there is no dog.", "It sits on the sofa."]}

One output row, the K levels in their initial ranking:

    {"id": "scene-1", "image": "scene-1.png", "questions": ["Is there a dog?", "Where is the cat?"],
     "responses": [{"source": "standard", "answers": ["No, there is no dog.", "It sits on the sofa."]},
                   {"source": "llava-34b", "answers": ["No, there is no dog.", "The cat sits on a chair."]},
                   {"source": "llava-13b", "answers": ["Yes, there is a dog.", "The dog is on the left."]}]}

Departures from the paper: none in the decoding (4 beams, repetition penalty 1.1, at most 512 new tokens).
Left open there: the penalty is on the answer's own words, and special tokens cannot be said. The temperature
of 0.7 is left out: it has no effect without sampling.
"""

import itertools
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from amp_min import chunks, mllm, records  # parser; LLaVA; rows, read and checked
from amp_min.decoding import check_readable, converse, ready  # how a model answers
from amp_min.support import script, server, storage, words
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import UserError, arg, needed  # an error's text is all that a user sees


@dataclass
class Settings:
    # What is asked, and who answers. The order of the models is the initial ranking. No file says which model
    # is better, so nothing can correct a wrong order here; verify.py looks at the answers, not at the models.
    prompts: str = needed("prompt rows (JSONL)")
    out: str = needed("candidate rows to write (JSONL)")
    strategy: Literal["meg", "ig", "self", "perturb"] = arg("meg", "where the answers come from")
    models: list[str] = arg([], "model folders or hub ids, best first")
    image_root: str | None = arg(None, "folder of the pictures, when it is not the prompts' own")
    # How an answer is found: the paper's values. Longer, or with fewer repetitions, would be another style,
    # and a learner would learn the style; so all answers of a row come from the same values (join sees to
    # it).
    beams: int = arg(4, "beginnings of an answer that are followed side by side", min=1)
    repetition_penalty: float = arg(1.1, "above 1 discourages words that the answer has said before", above=0)
    max_new_tokens: int = arg(512, "longest answer", min=1)
    # The other strategies' own. Six draws leave a choice of levels: verify.py --keep 4 takes four, evenly
    # spaced.
    shares: list[float] = arg([0.1, 0.3, 0.5], "perturb: shares of words changed, best first", min=0, max=1)
    samples: int = arg(6, "self: answers drawn for every prompt", min=1)
    temperature: float = arg(1.0, "self: 1 draws what the model holds likely, 0.5 squares the odds", above=0)
    seed: int = arg(0, "self: which draws, perturb: which words; beam search has no luck")
    # What it costs. These change no answer, but for how a batch's sums are rounded: on one machine the same
    # values give the same bytes.
    batch: int = arg(0, "conversations answered together; 0: as many as memory allows, at most 64", min=0)
    block: int = arg(512, "rows read at once: more fill better batches, fewer are lost by a kill", min=1)
    dtype: Literal["auto", "bf16", "fp32"] = arg("auto", "auto: bf16 where a GPU has it: half the memory")
    server: str | None = arg(None, "ask a served model instead: an OpenAI-compatible URL ending in /v1")
    # How the run goes. Three ways not to lose an afternoon: one model a process, go on after a kill, drop one
    # broken picture in ten thousand (and count it in OUT.meta.json).
    only: str | None = arg(None, "let this one of the models answer, and stop; after the last: --only join")
    resume: bool = arg(False, "continue an interrupted run; gives the bytes of an unbroken one")
    skip_bad: bool = arg(False, "drop and count bad rows instead of stopping")


# What makes an answer what it is: files that differ in one of these are not joined.
DECIDES = ("strategy", "beams", "repetition_penalty", "max_new_tokens", "shares", "samples", "temperature",
           "seed", "skip_bad")


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    names = ["perturb"] if settings.strategy == "perturb" else list(map(name_of, settings.models))
    check(settings, names)                                          # before anything large is loaded
    settings.beams = 1 if settings.strategy == "self" else settings.beams   # a draw follows one beginning
    # Every model writes to a file of its own, OUT.answers/<name>.jsonl, and a last step lays the files side
    # by side. So an interruption costs little, a family need not fit into memory together, and with --only
    # each model can have a process, or a GPU, to itself.
    files = [Path(f"{settings.out}.answers/{name}.jsonl") for name in names]
    for i, name in enumerate(names):
        if settings.only in (None, name):
            if settings.strategy == "perturb":
                perturb(files[i], settings)
            else:
                ask(settings.models[i], files[i], settings)
    if settings.only in (None, "join"):
        join(names, files, settings)


def name_of(model):
    """What a model is called in the rows: the last part of its folder or hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else Path(model).name


def check(settings, names):
    """Refuse command lines that mean nothing."""
    if (settings.strategy == "perturb") == bool(settings.models) or settings.strategy == "self" and names[1:]:
        raise UserError("--strategy perturb takes no --models, self takes one; meg and ig need at least one, "
                        "best first")
    if settings.server and settings.beams > 1 and settings.strategy != "self":
        raise UserError("--server: the protocol has no beam search; add --beams 1")
    # The name tells the levels apart in every later file and table: two cannot share one, two are taken.
    if len(set(names)) < len(names) or {"standard", "join"} & set(names):
        raise UserError(f"--models: {', '.join(names)}: two have the same name, or one is called standard or "
                        "join, which mean something else here; rename a folder")
    if Path(settings.out).is_dir() or Path(settings.out).resolve() == Path(settings.prompts).resolve():
        raise UserError(f"--out {settings.out}: is a folder, or the prompts themselves; name a file to write")
    if settings.only not in (None, "join", *names):
        raise UserError(f"--only {settings.only}: choose join or one of {', '.join(names)}")


# ---- 1. the prompts ----------------------------------------------------------------------------------------

def read_prompts(settings, dropped=None):
    """The prompt rows in order, one in memory at a time; `dropped` counts why others were left out."""
    # Every row is checked again by everybody who reads it: form, picture, text. Nothing is answered that a
    # later stage would refuse. A picture that does not open makes a bad row like any other. And so does a
    # question that one of the models cannot read: a row is for all of them or for none.
    readable = check_readable(*settings.models * (not settings.server))

    def check(row):
        readable(row)
        open_image(image_path(row, settings.prompts, settings.image_root))

    return records.read(settings.prompts, "prompt", settings.skip_bad, check=check,
                        on_bad=lambda bad: dropped is not None and dropped.update([bad.reason]))


# ---- 2. the answers of a model (meg, ig, self) -------------------------------------------------------------

def ask(model, path, settings):
    """All answers of one model, a line a prompt: {"id": …, "responses": [{"source", "answers"}]}."""
    # The file goes on after an interruption only with the settings and the contents that it was begun with:
    # the prompts and the weights stand in its meta file by their sha256. A retrained model is another
    # model.
    same = ("prompts", "image_root", "batch", "block", "dtype", "server", *DECIDES)
    begun_with = {"model": model} | {key: getattr(settings, key) for key in same}
    inputs = [settings.prompts, *([] if settings.server else storage.weights(model))]
    with storage.Writer(path, begun_with, inputs, settings.resume) as out:
        m, name, started, rows = None, name_of(model), time.perf_counter(), read_prompts(settings)
        # A block is read, answered and written before the next: a million rows need no more memory than
        # these.
        while block := list(itertools.islice(rows, settings.block)):
            if all(row["id"] in out.done for row in block):
                continue                                            # written before an interruption
            m = m or load(model, settings)                          # late: a finished file needs no model
            if settings.server:                                     # its batches are its own affair
                block = [row for row in block if row["id"] not in out.done]
            # A block that was cut short is answered whole again. Which conversations share a batch decides
            # how sums are rounded, and now and then a word: the batches must be those of an unbroken run.
            for row, responses in zip(block, responses_of(m, block, model, settings), strict=True):
                if row["id"] not in out.done:
                    out.write({"id": row["id"], "responses": responses})
        # The rate, for planning: large models take hours for what small ones do in minutes.
        print(f"{name}: {out.written} rows, {out.written / (time.perf_counter() - started):.1f} rows/s")


def load(model, settings):
    """The model and how many conversations it answers together; of a served model, how to reach it."""
    if settings.server:
        return server.connect(settings.server), settings.batch or 64    # requests under way at once
    # Generation keeps the keys and values of every token for every beam. 64 conversations with 4 beams would
    # take 150 GB in a 7B model: so the batch is estimated, not tried. Should it still be too large, it is
    # halved and the answers go on.
    return ready(model, settings.dtype, settings.batch, settings.beams, settings.max_new_tokens)


def responses_of(loaded, block, model, settings):
    """The responses of one model to a block of rows: for each row a list of one, or of --samples."""
    (m, batch), name = loaded, name_of(model)
    # Beam search follows the likeliest beginnings side by side and keeps the likeliest whole answer. It draws
    # nothing: where two answers of a row differ, two models differ, and not two throws of dice.
    decoding = dict(num_beams=settings.beams, do_sample=False, max_new_tokens=settings.max_new_tokens,
                    repetition_penalty=settings.repetition_penalty)
    sources, seeds = [name], None
    if settings.strategy == "self":
        # Here the dice are the point: one model, N throws, some of them better than others. Each throw has a
        # seed of its own; it does not depend on who is answered in the same batch.
        decoding["temperature"] = settings.temperature
        sources = [f"{name}-s{n}" for n in range(settings.samples)]
        seeds = [f"{settings.seed} {source} {row['id']}" for row in block for source in sources]
    # One conversation for each row and source. In a dialogue each model goes on from its *own* earlier
    # answers: one that says in round 1 that there is a dog may have to say in round 2 where it is. Errors
    # grow over a dialogue, as they do for a user.
    questions = [row["questions"] for row in block for _ in sources]
    paths = [image_path(row, settings.prompts, settings.image_root) for row in block for _ in sources]
    if settings.server:
        said, cut = server.converse(m, model, paths, questions, decoding, batch, seeds)
    else:
        # What the frozen vision tower sees of the distinct pictures, once for all rounds and samples: numbers
        # of B conversations -> (B, P, D_vision), with P image tokens a picture.
        features_of = mllm.image_features(m, paths)
        said, cut = converse(m, features_of, questions, decoding, batch, name, seeds)
    # `cut` marks, for each round, an answer without an end: it ran into --max-new-tokens.
    # Answers come row by row, a row's samples side by side: cut into one list for each row.
    responses = [{"source": source, "answers": texts} | ({"cut": ends} if any(ends) else {})
                 for source, texts, ends in zip(sources * len(block), said, cut, strict=True)]
    return [responses[start:start + len(sources)] for start in range(0, len(responses), len(sources))]


# ---- 3. the standard answer with words changed (perturb) ---------------------------------------------------

def perturb(path, settings):
    """The perturbed levels of every row, to a file like a model's."""
    # The control: how far does one come without the models? K = 4, with 10, 30 and 50 % of the words changed.
    # What they lack is what makes the answers of models useful: nobody *believes* these errors. A learner may
    # learn from them what no sentence looks like, instead of what the picture does not show.
    begun_with = {key: getattr(settings, key) for key in DECIDES}
    with storage.Writer(path, begun_with, [settings.prompts], settings.resume) as out:
        parser = chunks.load_parser()
        # Twice through the prompts: first for the words there are to draw from, then for the changes.
        stock = words.stock_of(parser.pipe(text for row in read_prompts(settings) for text in row["answers"]))
        for row in tqdm(read_prompts(settings), desc="perturb", unit="row", disable=None):
            if row["id"] in out.done:
                continue                                            # written before an interruption
            # All levels are made from the standard answer, not from one another: 50 % may leave a word alone
            # that 10 % changed. No level equals another one, where there are words enough.
            levels = words.levels(list(parser.pipe(row["answers"])), settings.shares, stock,
                                  seed=f"{settings.seed} {row['id']}")
            out.write({"id": row["id"], "responses": [
                {"source": name, "answers": answers} for name, answers in levels.items()]})


# ---- 4. side by side ---------------------------------------------------------------------------------------

def join(names, files, settings):
    """The candidate rows: for every prompt the standard answer and behind it each file's, best first."""
    # The files may come from runs of their own (--only). All must have been asked the same, in the same way.
    prompts = storage.sha256_file(settings.prompts)
    for name, path in zip(names, files, strict=True):
        with storage.open_input(f"{path}.meta.json") as file:
            made = json.load(file)
        same = all(made["settings"].get(key) == getattr(settings, key) for key in DECIDES)
        if not same or prompts not in made["inputs"].values():
            raise UserError(f"{path}: was made from other prompts or with other settings; "
                            f"run --only {name} again")
    with storage.Writer(settings.out, vars(settings), [settings.prompts, *files], settings.resume) as out:
        counts = Counter()
        # Line n of every file answers prompt n. The files are read in step, none is ever whole in memory.
        opened = [open(path, encoding="utf-8") for path in files]   # K - 1 of them, or one with all samples
        for row, *lines in itertools.zip_longest(read_prompts(settings, out.dropped), *opened):
            # A file that is too short gives None here, and so does the prompts' end: neither passes unseen.
            answered = [json.loads(line or '{"id": null}') for line in lines]
            if row is None or any(one["id"] != row["id"] for one in answered):
                raise UserError(f"{settings.out}: row {row and row['id']!r} of {settings.prompts} is not "
                                "what was answered there; start again without --resume")
            # The standard answer is level 1, so K is one more than the number of models. It is the only one
            # that does not come from a model; it is true, and verify.py measures the others by it.
            responses = [{"source": "standard", "answers": row.pop("answers")}]
            responses += [response for one in answered for response in one["responses"]]
            # Counted over all rows, those of an earlier, interrupted run included.
            different = {tuple(response["answers"]) for response in responses}
            counts.update(answers=sum(len(response["answers"]) for response in responses[1:]),
                          answers_cut=sum(sum(response.get("cut", [])) for response in responses),
                          rows_with_equal_answers=int(len(different) < len(responses)))
            if row["id"] not in out.done:
                out.write(row | {"responses": responses})       # other keys of the prompt row travel along
        for file in opened:
            file.close()
        # What a reader of the file should know stands beside it, in OUT.meta.json.
        ignored = {"server_may_ignore": server.MAY_IGNORE} if settings.server else {}
        out.facts = {"generated": dict(counts) | ignored}
    report(settings, [response["source"] for response in responses], counts)


def report(settings, sources, counts):
    """Say what has been made, and what is wrong with it."""
    # Of samples nobody knows beforehand which is better: their order is the order in which they were drawn.
    ranking = " > ".join(sources) if settings.strategy != "self" else "not known: verify.py makes it"
    print(f"{settings.out}: K = {len(sources)} answers for every prompt, the initial ranking is {ranking}")
    # Equal answers are two levels in name only. Sampling below temperature 1 and short answers make many.
    if equal := counts["rows_with_equal_answers"]:
        print(f"{equal} rows hold equal answers; verify.py --keep passes over them")
    # A cut answer has no end. Scored as if it had one, it would teach to stop in the middle of a sentence.
    if counts["answers_cut"]:
        print(f"{counts['answers_cut']} of {counts['answers']} answers were cut at --max-new-tokens "
              f"{settings.max_new_tokens}; \"cut\" marks them, and train.py does not score their end")


if __name__ == "__main__":
    script.run(main)
