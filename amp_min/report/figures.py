"""The tutorial's pictures, drawn from a finished run, and the numbers in them.

    python -m amp_min.report.figures --run runs/demo --out tutorial/pictures

Writes NAME.svg for every function in FIGURES, and figures.json with what they counted. Examples are the
first rows of a file, never the best. The penalty's picture needs a model that the demo does not train: mdpo
again, by the settings in its train.json but with --penalty 0.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from amp_min import autocheck, chunks, losses, mllm, packing, records
from amp_min.demo import POLICY
from amp_min.report import charts
from amp_min.report.__main__ import check_log, ordinal, read_lines, sampled
from amp_min.support import script, storage
from amp_min.support.pictures import image_path
from amp_min.support.script import UserError, arg, needed
from amp_min.world import oracle

SETS = 128                       # preference sets and descriptions that are averaged over


@dataclass
class Settings:
    run: str = needed("folder of a finished run (make demo)")
    out: str = needed("folder for the pictures")
    no_penalty: str | None = arg(None, "mdpo trained with --penalty 0 (default: RUN/models/no-penalty)")


# ---- what a run holds ----

def first_rows(path, kind, n):
    return list(islice(records.read(path, kind), n))


def token_logps(m, encoded, path):
    """log-prob of every scored token of one conversation with its picture: (N,)"""
    ids, rounds = (torch.tensor([column]) for column in encoded)                            # (1,T) each
    embeds = mllm.embed(m, ids, mllm.image_features(m, [path])([0]))                        # (1,T,D)
    hidden = m.model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    scored = rounds[:, 1:] > 0                                          # the shift: t - 1 predicts t
    return losses.token_logps(hidden[:, :-1][scored], m.model.lm_head.weight, ids[:, 1:][scored])


def encoded_sets(m, rows):
    """The first four levels of each row as tokens."""
    return [packing.token_set([mllm.encode(m, row["questions"], r["answers"]) for r in row["responses"][:4]])
            for row in rows]


def ratios(run, models, rows):
    """(log pi_ref(y_k) (N, K), tokens (N, K), {model: log pi_theta(y_k) - log pi_ref(y_k)}) of N rows."""
    path, found = run / "preferences.jsonl", {}
    for name in [POLICY, *models]:
        m = mllm.load(run / "models" / name)
        sets = encoded_sets(m, rows)
        see = mllm.image_features(m, [image_path(row, path, run / "world/preference") for row in rows])
        found[name] = torch.cat([
            packing.set_logps(m, packing.pack([sets[i] for i in part], m.tokenizer.pad_token_id),
                              see(part.tolist()))
            for part in torch.arange(len(rows)).split(16)])
    counts = [[sum(w > 0 for w in one.weights[0] + rest) for rest in one.weights[1:]] for one in sets]
    ref = found.pop(POLICY)
    return ref, torch.tensor(counts), {name: logps - ref for name, logps in found.items()}


def wins(values):
    """K x K: share of rows in which level i has more than level j, of those that tell them apart."""
    values = torch.as_tensor(values)                                                        # (N, K)
    more = (values[:, :, None] > values[:, None, :]).double().sum(0)                        # (K, K)
    both = more + more.T
    share = lambda i, j: round(float(more[i, j] / both[i, j]), 4) if both[i, j] else None   # i = j: None
    return [[share(i, j) for j in range(len(more))] for i in range(len(more))]


def level_curves(folder):
    log = read_lines(folder / "log.jsonl", check_log)
    return {f"y{k}": list(values) for k, values in enumerate(zip(*(line["ratio"] for line in log)))}


def last_epoch(folder):
    """Each level's log-prob ratio, mean over the steps of the last epoch."""
    log = read_lines(folder / "log.jsonl", check_log)
    last = [line["ratio"] for line in log if line["epoch"] > log[-1]["epoch"] - 1]
    return torch.tensor(last).mean(dim=0).tolist()


# ---- the pictures: run -> (SVG text, numbers) ----

def with_scenes(title, rows):
    """Rows of (scene, [(heading, text), …]): each picture, and beside it what was said of it."""
    parts, y = [], 16
    for scene, texts in rows:
        top, at = y, y
        parts += charts.scene(16, y, 150, **scene)
        for heading, said in texts:
            parts.append(charts.text(186, at + 14, heading, fill=charts.SOFT, font_weight="bold"))
            more, height = charts.answer(186, at + charts.ROW, charts.WIDTH - 206, said, scene)
            parts, at = parts + more, at + charts.ROW + height + 8
        y = max(top + 166, at + 8)
    return charts.card(title, y, parts)


def described(run, models, title):
    rows = first_rows(run / "world/eval/captions.jsonl", "prompt", 3)
    said = {"what is there": {row["id"]: row["answers"] for row in rows}}
    said |= {model: sampled(run, model) for model in models}
    texts = lambda row: [(name, found[row["id"]][0]) for name, found in said.items()]
    return with_scenes(f"Three scenes, {title}; words that the scene contradicts are red",
                       [(row["scene"], texts(row)) for row in rows]), {}


def answers(run):
    return described(run, ["base"], "each with its true description and what the base model says")


def before_after(run):
    return described(run, ["base", "mdpo"], "described by the base model and by the one trained with MDPO")


def levels(run):
    row = first_rows(run / "preferences.jsonl", "preference", 1)[0]
    texts = []
    for k, r in enumerate(row["responses"]):
        was = ordinal(row["initial_order"][k])
        notes = f", accuracy {r['accuracy']:.2f}, score {r['score']:.2f}, was {was}" if k else ""
        texts.append((f"{ordinal(k)}: {r['source']}{notes}", " ".join(r["answers"])))
    title = "One picture and its K answers, best first by the auto-check; false words are red"
    return with_scenes(title, [(row["scene"], texts)]), {}


def patches(run):
    """How much a picture helps: the loss of true descriptions with the right and with a wrong picture."""
    m, path = mllm.load(run / "models" / POLICY), run / "world/eval/captions.jsonl"
    rows = first_rows(path, "prompt", SETS)
    sets = [packing.token_set([mllm.encode(m, row["questions"], row["answers"])]) for row in rows]
    see = mllm.image_features(m, [image_path(row, path) for row in rows])
    batch, order = packing.pack(sets, m.tokenizer.pad_token_id), list(range(len(rows)))
    loss = lambda features: float(-packing.set_logps(m, batch, features).sum() / batch.counts.sum())
    numbers = {"right": loss(see(order)), "wrong": loss(see(order[1:] + order[:1]))}
    parts, n, bold = charts.scene(16, 16, 210, **rows[0]["scene"]), m.image_tokens, {"font_weight": "bold"}
    for i in range(n):
        x, y = 16 + 70 * (i % 3), 16 + 70 * (i // 3)
        parts += [charts.box(x, y, 70, 70, "none", charts.INK, stroke_width=2),
                  charts.text(x + 6, y + 18, i + 1, **bold),
                  charts.box(250 + 40 * i, 44, 36, 36, charts.TINT, charts.CURVES[0], rx=4),
                  charts.text(268 + 40 * i, 67, i + 1, "middle")]
    parts += [charts.text(250, 30, f"{n} patches become {n} tokens, in reading order:", **bold),
              charts.text(250, 122, "loss of the true description, nats per token:", **bold)]
    for i, (which, value) in enumerate(numbers.items()):
        length = 260 * value / max(numbers.values())
        parts += [charts.text(250, 155 + 36 * i, f"with the {which} picture"),
                  charts.text(418 + length, 155 + 36 * i, f"{value:.3f}"),
                  charts.box(410, 138 + 36 * i, length, 24, charts.CURVES[i])]
    title = "A scene cut into patches, which become image tokens; bars: the loss with right and wrong picture"
    return charts.card(title, 244, parts), {"shuffle": numbers}


def mask_strip(run):
    """The first dialogue of the preference data as tokens: what is scored is blue, its log-prob below it."""
    m, path = mllm.load(run / "models" / POLICY), run / "preferences.jsonl"
    row = next(row for row in records.read(path, "preference") if len(row["questions"]) > 1)
    ids, rounds = mllm.encode(m, row["questions"], row["responses"][0]["answers"])
    logps = iter(token_logps(m, (ids, rounds), image_path(row, path, run / "world/preference")).tolist())
    parts, x, y, pictured = [], 16, 50, False
    for token, number in zip(ids, rounds):
        if token == m.image_token_id and pictured:
            continue
        pictured = token == m.image_token_id
        word = m.tokenizer.decode([token]).replace("\n", "\\n").replace(" ", "·")
        word = f"<image> × {m.image_tokens}" if pictured else word
        width = max(8.6 * len(word) + 10, 46 if number else 0)                  # room for the number below
        if x + width > charts.WIDTH - 16:
            x, y = 16, y + 56
        fill, edge = ("#cfe3f2", charts.CURVES[0]) if number else ("#f0f0f2", charts.LINE)
        mono = {"font_family": "ui-monospace, DejaVu Sans Mono, monospace"}
        parts += [charts.box(x, y, width, 26, fill, edge, rx=4),
                  charts.text(x + width / 2, y + 18, word, "middle", **mono)]
        if number:
            logp = f"{next(logps):.2f}".replace("-", "−")
            parts.append(charts.text(x + width / 2, y + 42, logp, "middle", font_size=13))
        x += width + 3
    head = "blue: scored, with log π of the token below it; gray: prompt and picture, not scored (· space)"
    title = "A dialogue as a strip of tokens; only the words of the answers and their end tokens are scored"
    numbers = {"tokens": len(ids), "scored": sum(map(bool, rounds)), "rounds": len(row["questions"])}
    return charts.card(title, y + 62, [charts.text(16, 28, head), *parts]), {"mask": numbers}


def similarity(run):
    """Eq. 1 of one answer: every standard chunk against every generated one."""
    row = first_rows(run / "preferences.jsonl", "preference", 1)[0]
    nlp, encoder = chunks.load_parser(), autocheck.load_encoder(run / "models/clip")
    found = [[autocheck.plain(chunk.text) for chunk in chunks.noun_chunks(nlp, response["answers"][0])]
             for response in row["responses"]]
    k = max(range(1, len(found)), key=lambda k: (len(found[k]), k))      # the generated answer that says most
    standard, generated = found[0], list(dict.fromkeys(found[k]))
    features = [autocheck.encode(encoder, texts)[0] for texts in (standard, generated)]
    S = autocheck.cosines(*features) if generated else torch.zeros(len(standard), 0)
    width = min(150, 500 // max(1, len(generated)))
    best = [(i, int(line.argmax())) for i, line in enumerate(S) if len(line)]
    across, y = [str(n + 1) for n in range(len(generated))], 84 + 44 * len(standard) + 26
    head = f"rows: chunks of the standard answer; columns: chunks of {row['responses'][k]['source']}'s"
    parts = [*charts.matrix(240, 84, 44, S.tolist(), across, standard, width, best),
             charts.text(16, 28, head, font_weight="bold"),
             charts.text(16, 50, "framed: the best match of a row; above 0.85 it counts as found"),
             *(charts.text(240, y + charts.ROW * n, f"{n + 1}: {text}") for n, text in enumerate(generated))]
    alike = lambda a, b: round(float(autocheck.cosines(*autocheck.encode(encoder, [a, b])[0][:, None])), 4)
    numbers = {"chunks": len(standard), "above": sum(float(S[i, j]) > 0.85 for i, j in best),
               "best": [round(float(S[i, j]), 4) for i, j in best],
               "sides": alike("the bottom right", "the bottom left"),
               "colors": alike("a large red house", "a large blue house")}
    title = "Heat map of cosine similarities: noun chunks of the standard answer and of a generated one"
    return charts.card(title, y + charts.ROW * len(generated) + 4, parts), {"similarity": numbers}


def two_matrices(title, numbers, names):
    parts = []
    for n, rows in enumerate(numbers.values()):
        x, labels = 70 + 370 * n, [f"y{k}" for k in range(len(rows))]
        parts += [charts.text(x - 54, 28, names[n], font_weight="bold"),
                  *charts.matrix(x, 66, 52, rows, labels, labels)]
    return charts.card(f"Two tables: {title}", 66 + 52 * len(rows) + 16, parts)


def win_order(run):
    def rated(path, kind):
        standard = lambda row: row["responses"][0]["answers"]
        ratings = lambda row, r: oracle.row_ratings(r["answers"], standard(row), row["scene"])
        return [[sum(ratings(row, r)) / len(row["questions"]) for r in row["responses"]]
                for row in records.read(run / path, kind)]
    numbers = {"initial": wins(rated("candidates.jsonl", "candidate")),
               "checked": wins(rated("preferences.jsonl", "preference"))}
    title = "how often the oracle rates level i above level j, in the initial order and in the auto-check's"
    names = ["initial order: row beats column", "after the auto-check"]
    return two_matrices(title, numbers, names), {"win_order": numbers}


def win_policy(run):
    rows = first_rows(run / "preferences.jsonl", "preference", SETS)
    ref, counts, found = ratios(run, ["dpo", "mdpo"], rows)
    # Rounded: of equal answers none wins by the last digit.
    numbers = {name: wins(values.round(decimals=3)) for name, values in found.items()}
    title = "in how many sets level i's log-prob ratio beats level j's, after binary DPO and after MDPO"
    return two_matrices(title, numbers, ["binary DPO: row beats column", "MDPO, K = 4"]), {
        "win_policy": numbers,
        "reference": {"logp": ref.mean(0).tolist(), "tokens": counts.double().mean(0).tolist()}}


def dpo_logps(run):
    names = ["chosen", "rejected"]
    title = "Binary DPO: the log-prob ratio of the chosen and of the rejected answer over the optimizer steps"
    drawn = charts.chart(16, 16, 728, 270, "binary DPO, no penalty: log π(y) − log π_ref(y), nats",
                         dict(zip(names, level_curves(run / "models/dpo").values())))
    return charts.card(title, 300, drawn), {"dpo": dict(zip(names, last_epoch(run / "models/dpo")))}


def penalty(run, bare):
    folders = {"with": run / "models/mdpo", "without": bare}
    head = "MDPO: log π(y_k) − log π_ref(y_k), nats; y0 is the best answer"
    parts = [charts.text(16, 28, head, font_weight="bold")]
    for n, (name, folder) in enumerate(folders.items()):
        parts += charts.chart(16 + 370 * n, 46, 366, 270, f"{name} the penalty", level_curves(folder))
    title = "Log-prob ratio of all levels over the optimizer steps, with and without the penalty"
    numbers = {name: last_epoch(folder) for name, folder in folders.items()}
    return charts.card(title, 326, parts), {"penalty": numbers}


def training(run):
    log, parts = read_lines(run / "models/mdpo/log.jsonl", check_log), []
    names = {"loss": "loss, nats", "lr": "learning rate", "grad_norm": "gradient norm"}
    for n, (key, name) in enumerate(names.items()):
        parts += charts.chart(10 + 248 * n, 16, 262, 230, name, {"": [line[key] for line in log]})
    title = "MDPO's training: loss, learning rate and gradient norm over the optimizer steps"
    return charts.card(title, 260, parts), {}


def shared_prefix(run):
    """packing.mask of the docstring's example, and what sharing saves on the first real set."""
    toy = packing.TokenSet([[1] * 4, [2] * 2, [3] * 3], [[0.0] * 4, [1.0] * 2, [1.0] * 3])
    batch, names, parts = packing.pack([toy], 0), ["I", "I", "p", "p", "a", "a", "_", "b", "b", "b"], []
    owner = [0] * 4 + [1] * 3 + [2] * 3                                 # prefix, answer 0, answer 1
    fills, cell = ["#c9c9d1", charts.CURVES[0], charts.CURVES[1]], 24
    positions, square = packing.flat(batch)[1][0].tolist(), packing.mask(batch)[0, 0].tolist()
    for q, line in enumerate(square):
        parts += [charts.text(90, 60 + cell * q, f"position {positions[q]}  {names[q]}", "end", font_size=13),
                  charts.text(110 + cell * q, 36, names[q], "middle")]
        parts += [charts.box(98 + cell * k, 44 + cell * q, cell, cell, fills[owner[k]] if seen else "#fff")
                  for k, seen in enumerate(line)]
    row = first_rows(run / "preferences.jsonl", "preference", 1)
    tokens, = encoded_sets(mllm.load(run / "models" / POLICY), row)
    separate = sum(len(tokens.ids[0]) + len(rest) for rest in tokens.ids[1:])
    numbers = {"shared": packing.length(tokens), "separate": separate}
    notes = ["Filled: the row's token may look at the column's.", "Gray: prefix, I picture and p prompt;",
             "blue: answer 0, a; orange: answer 1, b.", "_ is padding, read by nobody.",
             "Each answer sees the prefix and itself, never the",
             "other, and its positions go on from the prefix.", "",
             f"The first set of this run, K = 4: {separate} tokens as",
             f"four sequences, {packing.length(tokens)} as one."]
    parts += [charts.text(356, 62 + charts.ROW * n, note) for n, note in enumerate(notes)]
    title = "Attention mask of two answers that share a prefix: both see the prefix, neither sees the other"
    return charts.card(title, 300, parts), {"prefix": numbers}


FIGURES = (answers, patches, mask_strip, levels, similarity, win_order, dpo_logps, penalty, win_policy,
           training, shared_prefix, before_after)


@torch.no_grad()
def draw_all(run, out, bare):
    numbers = {}
    for figure in FIGURES:
        picture, counted = (partial(figure, bare=bare) if figure is penalty else figure)(run)
        (out / f"{figure.__name__.replace('_', '-')}.svg").write_text(picture, encoding="utf-8", newline="\n")
        numbers |= counted
    storage.write_json(out / "figures.json", numbers)


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    run, out = Path(settings.run), Path(settings.out)
    if not (run / "results.json").is_file():
        raise UserError(f"{run}: holds no results.json: it is no finished run; make one with `make demo`")
    bare = Path(settings.no_penalty or run / "models/no-penalty")
    if not (bare / "log.jsonl").is_file():
        raise UserError(f"{bare}: holds no log.jsonl; train there once more by the settings in "
                        f"{run / 'models/mdpo/train.json'}, but with --penalty 0")
    out.mkdir(parents=True, exist_ok=True)
    draw_all(run, out, bare)
    print(f"{out}: {len(FIGURES)} pictures and figures.json")


if __name__ == "__main__":
    script.run(main)
