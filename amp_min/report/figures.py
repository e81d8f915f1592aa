"""The tutorial's pictures, drawn from a finished run, and the numbers in them.

    python -m amp_min.report.figures --run runs/demo --out tutorial/pictures

Writes NAME.svg for every function in FIGURES, and figures.json with what they counted.  Examples are the first rows of a
file, never the best.  One thing is trained when it is missing: MDPO without its penalty, into RUN/models/no-penalty.
"""

import importlib
import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from amp_min import autocheck, chunks, losses, mllm, packing, records
from amp_min.demo import POLICY
from amp_min.report import svg
from amp_min.report.__main__ import check_answers, check_log, ordinal, read_lines
from amp_min.support import script, storage
from amp_min.support.pictures import image_path
from amp_min.support.script import UserError
from amp_min.world import oracle

SETS = 128                       # preference sets and descriptions that are averaged over


@dataclass
class Settings:
    run: str = field(metadata={"help": "folder of a finished run (make demo)"})
    out: str = field(metadata={"help": "folder for the pictures"})


# ---- what a run holds ----

def first_rows(path, kind, n):
    return list(islice(records.read(path, kind), n))


def said_by(run, model):
    """Sampled descriptions of the evaluation scenes: id -> text."""
    lines = read_lines(run / f"evaluate/{model}.json.answers.jsonl", check_answers)
    return {line["id"]: line["answers"][0] for line in lines if line["benchmark"] == "captions_sampled"}


def token_logps(m, encoded, path):
    """log-prob of every scored token of one conversation with its picture: (N,)"""
    batch = packing.pack([packing.token_set([encoded])], m.tokenizer.pad_token_id)
    embeds = mllm.embed(m, batch.input_ids, mllm.image_features(m, [path])([0]))
    hidden = m.model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state.flatten(0, 1)
    return losses.token_logps(hidden[batch.predictor], m.model.lm_head.weight, batch.targets)


def ratios(run, models, rows):
    """(log pi_ref(y_k) of the rows' answers (N, K), their tokens (N, K), {model: log pi_theta(y_k) - log pi_ref(y_k)})."""
    path, found = run / "preferences.jsonl", {}
    for name in [POLICY, *models]:
        m = mllm.load(run / "models" / name)
        sets = [packing.token_set([mllm.encode(m, row["questions"], r["answers"]) for r in row["responses"][:4]]) for row in rows]
        see = mllm.image_features(m, [image_path(row, path, run / "world/preference") for row in rows])
        parts = torch.arange(len(rows)).split(16)
        found[name] = torch.cat([packing.set_logps(m, packing.pack([sets[i] for i in part], m.tokenizer.pad_token_id), see(part.tolist()))
                                 for part in parts])
    counts = torch.tensor([[sum(w > 0 for w in tokens.weights[0] + rest) for rest in tokens.weights[1:]] for tokens in sets])
    ref = found.pop(POLICY)
    return ref, counts, {name: logps - ref for name, logps in found.items()}


def wins(values):
    """K x K: share of rows in which level i has more than level j, of the rows that tell them apart; None on the diagonal."""
    values = torch.as_tensor(values)                                                        # (N, K)
    more = (values[:, :, None] > values[:, None, :]).double().sum(0)                        # (K, K)
    both = more + more.T
    return [[None if i == j or not both[i, j] else round(float(more[i, j] / both[i, j]), 4) for j in range(len(more))]
            for i in range(len(more))]


# ---- the pictures: run -> (SVG text, numbers) ----

def scenes_and_answers(run, models, title, n):
    parts, y, rows = [], 16, first_rows(run / "world/eval/captions.jsonl", "prompt", n)
    said = {name: said_by(run, name) for name in models}
    for row in rows:
        top, at = y, y
        parts += svg.scene(16, y, 150, **row["scene"])
        for name, texts in {"what is there": {row["id"]: row["answers"][0]}, **said}.items():
            parts.append(svg.text(186, at + 14, name, fill=svg.SOFT, font_weight="bold"))
            more, height = svg.answer(186, at + svg.ROW, svg.WIDTH - 206, texts[row["id"]], row["scene"])
            parts, at = parts + more, at + svg.ROW + height + 8
        y = max(top + 166, at + 8)
    return svg.card(title, y, parts)


def answers(run):
    title = "Three scenes, each with its true description and what the base model says; words that the scene contradicts are red"
    return scenes_and_answers(run, {"base": "base"}, title, 3), {}


def before_after(run):
    title = "Three scenes, described by the base model and by the one trained with MDPO; words that the scene contradicts are red"
    return scenes_and_answers(run, ["base", "mdpo"], title, 3), {}


def patches(run):
    """How much a picture helps: the loss of true descriptions with the right and with another scene's picture."""
    m, path = mllm.load(run / "models" / POLICY), run / "world/eval/captions.jsonl"
    rows = first_rows(path, "prompt", SETS)
    sets = [packing.token_set([mllm.encode(m, row["questions"], row["answers"])]) for row in rows]
    see = mllm.image_features(m, [image_path(row, path) for row in rows])
    batch, order = packing.pack(sets, m.tokenizer.pad_token_id), list(range(len(rows)))
    loss = lambda features: float(-packing.set_logps(m, batch, features).sum() / batch.counts.sum())
    numbers = {"right": loss(see(order)), "wrong": loss(see(order[1:] + order[:1]))}
    parts = svg.scene(16, 16, 210, **rows[0]["scene"])
    parts += [svg.box(16 + 70 * (i % 3), 16 + 70 * (i // 3), 70, 70, "none", svg.INK, stroke_width=2) for i in range(m.image_tokens)]
    parts += [svg.text(22 + 70 * (i % 3), 34 + 70 * (i // 3), i + 1, font_weight="bold") for i in range(m.image_tokens)]
    parts.append(svg.text(250, 30, f"{m.image_tokens} patches become {m.image_tokens} tokens, in reading order:", font_weight="bold"))
    parts += [svg.box(250 + 40 * i, 44, 36, 36, svg.TINT, svg.CURVES[0], rx=4) + svg.text(268 + 40 * i, 67, i + 1, "middle") for i in range(m.image_tokens)]
    parts.append(svg.text(250, 122, "loss of the true description, nats per token:", font_weight="bold"))
    for n, (name, value) in enumerate({"with its own picture": numbers["right"], "with another scene's": numbers["wrong"]}.items()):
        parts += [svg.text(250, 155 + 36 * n, name), svg.text(410 + 260 * value / max(numbers.values()) + 8, 155 + 36 * n, f"{value:.3f}"),
                  svg.box(410, 138 + 36 * n, 260 * value / max(numbers.values()), 24, svg.CURVES[n])]
    title = "A scene cut into patches, which become image tokens; bars: the loss with the right picture and with a wrong one"
    return svg.card(title, 244, parts), {"shuffle": numbers}


def mask_strip(run):
    """The first dialogue of the preference data as tokens: what is scored is tinted, with its log-prob below."""
    m, path = mllm.load(run / "models" / POLICY), run / "preferences.jsonl"
    row = next(row for row in records.read(path, "preference") if len(row["questions"]) > 1)
    ids, rounds = mllm.encode(m, row["questions"], row["responses"][0]["answers"])
    logps = iter(token_logps(m, (ids, rounds), image_path(row, path, run / "world/preference")).tolist())
    parts, x, y, pictured = [], 16, 50, False
    for token, number in zip(ids, rounds):
        if token == m.image_token_id and pictured:
            continue
        pictured = token == m.image_token_id
        word = f"<image> × {m.image_tokens}" if pictured else m.tokenizer.decode([token]).replace("\n", "\\n").replace(" ", "·")
        width = max(8.6 * len(word) + 10, 46 if number else 0)                              # room for the number below
        if x + width > svg.WIDTH - 16:
            x, y = 16, y + 56
        parts.append(svg.box(x, y, width, 26, "#cfe3f2" if number else "#f0f0f2", svg.CURVES[0] if number else svg.LINE, rx=4))
        parts.append(svg.text(x + width / 2, y + 18, word, "middle", font_family="ui-monospace, DejaVu Sans Mono, monospace"))
        parts += [svg.text(x + width / 2, y + 42, f"{next(logps):.2f}".replace("-", "−"), "middle", font_size=13)] if number else []
        x += width + 3
    parts.append(svg.text(16, 28, "blue: scored, with log π of the token below it; gray: prompt and picture, not scored (· is a space)"))
    numbers = {"tokens": len(ids), "scored": sum(map(bool, rounds)), "rounds": len(row["questions"])}
    return svg.card("A dialogue as a strip of tokens; only the words of the answers and their end tokens are scored", y + 62, parts), {"mask": numbers}


def levels(run):
    row = first_rows(run / "preferences.jsonl", "preference", 1)[0]
    parts, y = svg.scene(16, 16, 150, **row["scene"]), 16
    for k, response in enumerate(row["responses"]):
        label = f"{ordinal(k)}: {response['source']}"
        label += "" if k == 0 else f", accuracy {response['accuracy']:.2f}, score {response['score']:.2f}, was {ordinal(row['initial_order'][k])}"
        parts.append(svg.text(186, y + 14, label, fill=svg.SOFT, font_weight="bold"))
        more, height = svg.answer(186, y + svg.ROW, svg.WIDTH - 206, " ".join(response["answers"]), row["scene"])
        parts, y = parts + more, y + svg.ROW + height + 12
    return svg.card("One picture and its K answers, best first by the auto-check; false words are red", max(y, 182), parts), {}


def similarity(run):
    """Eq. 1 of one answer: every standard chunk against every generated one."""
    row = first_rows(run / "preferences.jsonl", "preference", 1)[0]
    nlp, encoder = chunks.load_parser(), autocheck.load_encoder(run / "models/clip")
    found = [[autocheck.plain(chunk.text) for chunk in chunks.noun_chunks(nlp, response["answers"][0])] for response in row["responses"]]
    k = max(range(1, len(found)), key=lambda k: (len(found[k]), k))      # the generated answer that says most
    standard, generated = found[0], list(dict.fromkeys(found[k]))
    features = [autocheck.encode(encoder, texts)[0] for texts in (standard, generated)]
    S = autocheck.cosines(*features) if generated else torch.zeros(len(standard), 0)
    width, best = min(150, 500 // max(1, len(generated))), [(i, int(line.argmax())) for i, line in enumerate(S) if len(line)]
    across = [str(n + 1) for n in range(len(generated))]
    parts = svg.matrix(240, 84, 44, S.tolist(), across, standard, width, best)
    parts += [svg.text(16, 28, f"rows: chunks of the standard answer; columns: chunks of {row['responses'][k]['source']}'s", font_weight="bold"),
              svg.text(16, 50, "framed: the best match of a row; above 0.85 it counts as found")]
    y = 84 + 44 * len(standard) + 26
    parts += [svg.text(240, y + svg.ROW * n, f"{n + 1}: {words}") for n, words in enumerate(generated)]
    alike = lambda a, b: round(float(autocheck.cosines(*autocheck.encode(encoder, [a, b])[0][:, None])), 4)
    above = sum(float(S[i, j]) > 0.85 for i, j in best)
    title = "Heat map of cosine similarities between the noun chunks of the standard and of a generated answer"
    return svg.card(title, y + svg.ROW * len(generated) + 4, parts), {
        "similarity": {"chunks": len(standard), "above": above, "best": [round(float(S[i, j]), 4) for i, j in best],
                       "sides": alike("the bottom right", "the bottom left"), "colors": alike("a large red house", "a large blue house")}}


def two_matrices(title, numbers, names):
    parts = []
    for n, (name, rows) in enumerate(numbers.items()):
        x = 70 + 370 * n
        parts.append(svg.text(x - 54, 28, names[name], font_weight="bold"))
        parts += svg.matrix(x, 66, 52, rows, [f"y{k}" for k in range(len(rows))], [f"y{k}" for k in range(len(rows))])
    return svg.card(title, 66 + 52 * len(next(iter(numbers.values()))) + 16, parts)


def win_order(run):
    numbers = {}
    for name, path, kind in (("initial", "candidates.jsonl", "candidate"), ("checked", "preferences.jsonl", "preference")):
        rated = [[sum(oracle.row_ratings(r["answers"], row["responses"][0]["answers"], row["scene"])) / len(row["questions"])
                  for r in row["responses"]] for row in records.read(run / path, kind)]
        numbers[name] = wins(rated)
    title = "Two tables: how often the oracle rates level i above level j, in the initial order and in the auto-check's"
    return two_matrices(title, numbers, {"initial": "initial order: row beats column", "checked": "after the auto-check"}), {"win_order": numbers}


def win_policy(run):
    ref, counts, found = ratios(run, ["dpo", "mdpo"], first_rows(run / "preferences.jsonl", "preference", SETS))
    numbers = {name: wins(values.round(decimals=3)) for name, values in found.items()}  # of equal answers none wins by rounding
    title = "Two tables: in how many sets level i's log-prob ratio beats level j's, after binary DPO and after MDPO"
    return two_matrices(title, numbers, {"dpo": "binary DPO: row beats column", "mdpo": "MDPO, K = 4"}), {
        "win_policy": numbers, "reference": {"logp": ref.mean(0).tolist(), "tokens": counts.double().mean(0).tolist()}}


def level_curves(run, model):
    log = read_lines(run / f"models/{model}/log.jsonl", check_log)
    return {f"y{k}": list(values) for k, values in enumerate(zip(*(line["ratio"] for line in log)))}


def last_epoch(run, model):
    """Each level's log-prob ratio, mean over the steps of the last epoch."""
    log = read_lines(run / f"models/{model}/log.jsonl", check_log)
    return torch.tensor([line["ratio"] for line in log if line["epoch"] > log[-1]["epoch"] - 1]).mean(dim=0).tolist()


def dpo_logps(run):
    curves = dict(zip(["chosen", "rejected"], level_curves(run, "dpo").values()))
    title = "Binary DPO: the log-prob ratio of the chosen and of the rejected answer over the optimizer steps"
    parts = svg.chart(16, 16, 728, 270, "binary DPO, no penalty: log π(y) − log π_ref(y), nats", curves)
    return svg.card(title, 300, parts), {"dpo": dict(zip(curves, last_epoch(run, "dpo")))}


def penalty(run):
    if not (run / "models/no-penalty").is_dir():
        settings = json.loads((run / "models/mdpo/train.json").read_text(encoding="utf-8"))["run"]
        kept = ("model", "preferences", "image_root", "levels", "lr", "epochs", "seed")
        flags = [word for key in kept for word in (f"--{key.replace('_', '-')}", str(settings[key]))]
        importlib.import_module("train").main([*flags, "--penalty", "0", "--out", str(run / "models/no-penalty")])
    curves = {"with": level_curves(run, "mdpo"), "without": level_curves(run, "no-penalty")}
    parts = [svg.text(16, 28, "MDPO: log π(y_k) − log π_ref(y_k), nats; y0 is the best answer", font_weight="bold")]
    for n, (name, lines) in enumerate(curves.items()):
        parts += svg.chart(16 + 370 * n, 46, 366, 270, f"{name} the penalty", lines)
    numbers = {"with": last_epoch(run, "mdpo"), "without": last_epoch(run, "no-penalty")}
    return svg.card("Log-prob ratio of all levels over the optimizer steps, with and without the penalty", 326, parts), {"penalty": numbers}


def training(run):
    log, parts = read_lines(run / "models/mdpo/log.jsonl", check_log), []
    for n, (key, name) in enumerate({"loss": "loss, nats", "lr": "learning rate", "grad_norm": "gradient norm"}.items()):
        parts += svg.chart(10 + 248 * n, 16, 262, 230, name, {"": [line[key] for line in log]})
    return svg.card("MDPO's training: loss, learning rate and gradient norm over the optimizer steps", 260, parts), {}


def shared_prefix(run):
    """packing.mask of the docstring's example, and what sharing saves on the first real set."""
    toy = packing.TokenSet([[1] * 4, [2] * 2, [3] * 3], [[0.0] * 4, [1.0] * 2, [1.0] * 3])
    batch, names, parts = packing.pack([toy], 0), ["I", "I", "p", "p", "a", "a", "b", "b", "b"], []
    fills, cell = ["#c9c9d1", svg.CURVES[0], svg.CURVES[1]], 26
    for q, line in enumerate(packing.mask(batch.segment)[0, 0].tolist()):
        parts.append(svg.text(90, 62 + cell * q, f"position {batch.position_ids[0, q]}  {names[q]}", "end", font_size=13))
        parts.append(svg.text(111 + cell * q, 36, names[q], "middle"))
        parts += [svg.box(98 + cell * k, 44 + cell * q, cell, cell, fills[batch.segment[0, k]] if seen else "#fff") for k, seen in enumerate(line)]
    m = mllm.load(run / "models" / POLICY)
    row = first_rows(run / "preferences.jsonl", "preference", 1)[0]
    tokens = packing.token_set([mllm.encode(m, row["questions"], r["answers"]) for r in row["responses"][:4]])
    numbers = {"shared": packing.length(tokens), "separate": sum(len(tokens.ids[0]) + len(rest) for rest in tokens.ids[1:])}
    notes = ["Filled: the row's token may look at the column's.", "Gray: prefix, I picture and p prompt;", "blue: answer 0, a; orange: answer 1, b.", "",
             "Each answer sees the prefix and itself, never the", "other, and its positions go on from the prefix.", "",
             f"The first set of this run, K = 4: {numbers['separate']} tokens as", f"four sequences, {numbers['shared']} as one."]
    parts += [svg.text(356, 62 + svg.ROW * n, note) for n, note in enumerate(notes)]
    return svg.card("Attention mask of two answers that share a prefix: both see the prefix, neither sees the other", 300, parts), {"prefix": numbers}


FIGURES = (answers, patches, mask_strip, levels, similarity, win_order, dpo_logps, penalty, win_policy, training, shared_prefix, before_after)


@torch.no_grad()
def draw_all(run, out):
    numbers = {}
    for figure in FIGURES:
        with torch.set_grad_enabled(figure is penalty):                  # the one that may have to train
            picture, counted = figure(run)
        (out / f"{figure.__name__.replace('_', '-')}.svg").write_text(picture, encoding="utf-8", newline="\n")
        numbers |= counted
    storage.write_json(out / "figures.json", numbers)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    run, out = Path(settings.run), Path(settings.out)
    if not (run / "results.json").is_file():
        raise UserError(f"{run}: holds no results.json, so it is not a finished run; make one with `make demo`")
    out.mkdir(parents=True, exist_ok=True)
    draw_all(run, out)
    print(f"{out}: {len(FIGURES)} pictures and figures.json")


if __name__ == "__main__":
    script.run(main)
