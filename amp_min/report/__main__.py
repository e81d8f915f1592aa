"""A finished run as one HTML page: pictures, answers with their false words marked, figures, training curves.

    python -m amp_min.report --run runs/demo --out runs/demo/report.html

The page is one file without scripts or outside resources, so it can be mailed, printed and kept. It only
shows what the run wrote; where a stage was not run, its section says so. Examples are the first rows of a
file, never the best. Answers come from models, rows from other people: every text of theirs is escaped.
"""

import os
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path

from amp_min import records
from amp_min.metrics import NAMES
from amp_min.records import check_texts, is_finite
from amp_min.report import charts
from amp_min.support import script, storage
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import BadRow, needed
from amp_min.world import oracle

MODELS = ["base", "sft", "dpo", "mdpo"]
GROUPS = {"Descriptions": ("false_claims", "chair", "coverage"),
          "POPE: “Is there a … in the image?”": ("pope",), "MRHal: dialogues of 2 to 5 rounds": ("mrhal",)}
CHECKED = {"pairs that the oracle orders alike": ("agreement_initial", "agreement_autocheck"),
           "neighbors that it orders the other way": ("inconsistency_initial", "inconsistency_rate")}
EXAMPLES = 6                     # rows to show in each section with pictures

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5c5c62; --line: #d0d0d6; --page: #fff;
  --false: #b3001b; --tint: #fdecee }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a6a6ae; --line: #44444c;
  --page: #161618; --false: #ff8f98; --tint: #3d1a1f } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin: 3rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 } h3 span { font-weight: normal } p { max-width: 44rem }
.headline { font-size: 1.35rem; line-height: 1.4 } .missing { font-style: italic }
.note, figcaption, h3 span { color: var(--soft); font-size: .875rem }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .4rem; border-bottom: 1px solid var(--line); text-align: right }
tbody th { text-align: left; font-weight: normal } th[colspan] { font-weight: 600; padding-top: 1rem }
.case, .charts { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem 1.5rem }
.case { padding: 1.25rem 0; border-top: 1px solid var(--line) }
.case > div { flex: 1 1 15rem; min-width: 0; overflow-wrap: anywhere }
.charts > div { flex: 1 1 20rem; min-width: 0; max-width: 30rem }
figure { margin: 0; width: 12rem } img { display: block; height: auto; border-radius: 4px }
@media (width < 40rem) { figure { width: auto; display: flex; gap: .8rem } img { flex: none; width: 9rem } }
ol, .case p { margin: 0 0 .6rem } ol { padding-left: 1.5rem } .answers > li + li { margin-top: .6rem }
mark { background: var(--tint); color: var(--false); font-weight: 600; text-decoration: underline wavy 1px }
mark::before { content: "[false: " } mark::after { content: "]" } /* for screen readers: they tell no marks */
mark::before, mark::after { position: absolute; width: 1px; overflow: hidden; clip-path: inset(50%) }
svg { display: block; width: 100%; height: auto }
"""


@dataclass
class Settings:
    run: str = needed("folder of a finished run, with its results.json")
    out: str = needed("page to write (HTML)")


# ---- what a run holds ----

def parse(data, place):
    """Bytes of JSON -> dict; errors name the place."""
    try:
        return records.parse(data)
    except BadRow as error:
        raise BadRow(error.problem, place) from None


def read_lines(path, check):
    """The objects of a log or an answers file, none when there is no file.  check(line) may raise BadRow."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        found.append(parse(line, f"{path}:{number}"))
        try:
            check(found[-1])
        except BadRow as error:
            raise BadRow(error.problem, f"{path}:{number}") from None
    return found


def check_numbers(found, name, depth=0):
    """BadRow unless found is null or a number below `depth` levels of objects; a kind of claim has two."""
    pair = isinstance(found, list) and len(found) == 2 and all(map(is_finite, found))
    if isinstance(found, dict) and (depth > 0 or "_by_" in name):
        for key, value in found.items():
            check_numbers(value, f"{name}.{key}", depth - 1)
    elif found is not None and (depth > 0 or not (pair if "claims_by" in name else is_finite(found))):
        wanted = "an object" if depth > 0 else "two numbers" if "claims_by" in name else "a finite number"
        raise BadRow(f"{name} is not {wanted}; run the stage that writes it again")


def check_results(results):
    for name, depth in {"models": 2, "autocheck": 1, "seconds": 1}.items():
        check_numbers(results.get(name), name, depth)
    if not isinstance(results.get("versions") or {}, dict):
        raise BadRow("versions is not an object; run the stage that writes it again")


def check_answers(line):
    for key in ("id", "benchmark"):
        if not isinstance(line.get(key), str):
            raise BadRow(f"{key} is no text; evaluate the model again")
    check_texts(line.get("answers"), "answers", may_be_empty=True)


def check_log(line):
    ratio = line.get("ratio", [])                  # supervised training has none
    if not is_finite(line.get("loss")) or not isinstance(ratio, list) or not all(map(is_finite, ratio)):
        raise BadRow("loss or ratio is not made of finite numbers; train the model again")


def measured(results, key):
    """{model: figure} of the models that have it."""
    models = results.get("models") or {}
    return {name: models[name][key] for name in MODELS if (models.get(name) or {}).get(key) is not None}


# ---- parts ----

def missing(what):
    return f'<p class="missing">{escape(what)}</p>'


def marked(text, scene):
    """The text as HTML, with what is false of the scene in <mark>; without a scene nothing can be marked."""
    parts, done = [], 0
    for start, end in oracle.false_spans(text, scene) if scene else []:
        start = max(start, done)       # spans may nest: in "two red cars" number and color can both be false
        if start < end:
            parts.append(f"{escape(text[done:start])}<mark>{escape(text[start:end])}</mark>")
            done = end
    return "".join(parts) + escape(text[done:])


def rounds(texts, scene=None):
    """One text as it is, those of a dialogue as a list."""
    made = [marked(text, scene) or '<span class="note">(nothing)</span>' for text in texts]
    return made[0] if len(made) == 1 else f'<ol type="a">{"".join(f"<li>{text}</li>" for text in made)}</ol>'


def case(row, path, root, standard, content, caption=""):
    """A row's picture, described by its standard answer, and what was said about it."""
    file = image_path(row, path, root)
    shown = missing(f"There is no picture {row['image']}.")
    if file.is_file():
        image = open_image(file)
        height = max(1, round(192 * image.height / image.width))
        shown = (f'<img alt="{escape(" ".join(standard))}" width="192" height="{height}" '
                 f'src="{charts.png(image)}">')
    return f'<div class="case"><figure>{shown}{caption}</figure>{content}</div>'


def table(head, rows):
    """head: names of the columns; rows: (name, cells as HTML …), or a name alone, which heads a group."""
    body = ""
    for name, *cells in rows:
        data = "".join(f"<td>{cell}</td>" for cell in cells)
        body += (f'<tr><th scope="row">{name}</th>{data}</tr>\n' if cells else
                 f'<tr><th scope="colgroup" colspan="{1 + len(head)}">{name}</th></tr>\n')
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    columns = f"<thead><tr><td></td>{columns}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{columns}<tbody>{body}</tbody></table></div>'


def ordinal(k):
    return ["1st", "2nd", "3rd"][k] if k < 3 else f"{k + 1}th"


# ---- sections ----

def headline(results):
    """The one sentence to remember, where base and mdpo were measured."""
    share = measured(results, "false_claims_sampled")
    if not {"base", "mdpo"} <= share.keys():
        return ""
    before, after = (f"<mark>{100 * share[model]:.0f}</mark>" for model in ("base", "mdpo"))
    return (f'<p class="headline">Of 100 things that the model says of a picture, {before} were false before '
            f"training, and {after} are false after it.</p>")


def sampled(run, model):
    """Sampled descriptions of the evaluation scenes: id -> answers."""
    lines = read_lines(run / f"evaluate/{model}.json.answers.jsonl", check_answers)
    return {line["id"]: line["answers"] for line in lines if line["benchmark"] == "captions_sampled"}


def descriptions(run, results):
    path, said = run / "world/eval/captions.jsonl", {}
    for model in ("base", "mdpo"):
        said[model] = sampled(run, model)
    if not path.is_file() or not any(said.values()):
        return missing("There are no sampled descriptions: python -m amp_min.evaluate was not run.")
    parts = [f"<p>The first {EXAMPLES} scenes of the evaluation set, not the flattering ones, described at "
             "temperature 1, which shows what a model holds possible. Below a picture: what is there.</p>"]
    for row in islice(records.read(path, "prompt"), EXAMPLES):
        content, scene = "", oracle.scene_of(row)
        for model, name in (("base", "before: base"), ("mdpo", "after: mdpo")):
            texts, count = said[model].get(row["id"]), ""
            if texts and scene:
                false, claims = added(oracle.tally(" ".join(texts), scene))
                count = f" <span>{false} of {claims} claims false</span>"
            text = f"<p>{rounds(texts, scene)}</p>" if texts else missing("It was not asked.")
            content += f"<div><h3>{name}{count}</h3>{text}</div>"
        caption = f"<figcaption>{rounds(row['answers'])}</figcaption>"
        parts.append(case(row, path, None, row["answers"], content, caption))
    return "\n".join(parts)


def figures(run, results):
    if not results.get("models"):
        return missing("results.json holds no models: none was evaluated.")
    rows = []
    for group, prefixes in GROUPS.items():
        rows.append([group])
        for key, name in NAMES.items():
            if key.startswith(prefixes):
                rows.append(compared(name, measured(results, key), 1 if "score" in key else 100))
    return table(MODELS, rows) + """
<p class="note">↓ less is better, ↑ more is better, → 50 nearer to 50 is better. The best of a row is bold;
– was not measured. False claims: of all that a description says and the scene can decide (objects, numbers,
sizes, colors, places, relations); CHAIR counts the objects alone. base: before preference training. sft:
trained on the standard answers alone. dpo: on one good and one bad answer a picture. mdpo: on all levels. One
run with one seed: small differences may be chance.</p>"""


def compared(name, values, factor):
    """A row of the table, the best in bold; shares (factor 100) are shown in per cent."""
    digits, arrow = (1 if factor == 100 else 2), name[-1] if name[-1] in "↓↑" else "→ 50"
    # Rounded first: of two figures that look equal on the page neither is better.
    values = {model: round(factor * value, digits) for model, value in values.items()}
    good = {"↓": lambda value: -value, "↑": float, "→ 50": lambda value: -abs(value - 50)}[arrow]
    best = max(map(good, values.values()), default=None)
    shown = {model: f"<b>{value:.{digits}f}</b>" if good(value) == best else f"{value:.{digits}f}"
             for model, value in values.items()}
    arrow, unit = arrow.replace(" ", "&nbsp;"), ", %" if factor == 100 else ""
    return [f"{name.rstrip(' ↓↑')}{unit}&nbsp;{arrow}", *(shown.get(model, "–") for model in MODELS)]


def added(counts):
    """{kind: [false, decided]} -> (false, decided) of all kinds."""
    return [sum(two[i] for two in counts.values()) for i in (0, 1)]


def by_kind(run, results):
    """What is false, cut by what it is about, before and after."""
    made = ""
    for how in ("sampled", "greedy"):
        counts = measured(results, f"claims_by_kind_{how}")
        if all(added(counts.get(model, {}))[1] for model in ("base", "mdpo")):
            made += f"<div>{red_bars(how, counts['base'], counts['mdpo'])}</div>"
    if not made:
        return missing("results.json holds no claims by kind of both base and mdpo: evaluate them again.")
    return f"""<p>A bar is what a kind of claim adds to the false ones: a model’s bars add up to its share in
the table above. In brackets: how many claims of that kind are false.</p><div class="charts">{made}</div>"""


def red_bars(how, base, mdpo):
    """A card with two bars for each kind of claim: false claims of this kind, of 100 claims of any kind."""
    rows, colors = [], (charts.CURVES[1], charts.CURVES[0])
    for kind in sorted(base, key=lambda kind: -base[kind][0]):              # where most of the red is, first
        values = []
        for counts in (base, mdpo):
            false, decided = counts.get(kind, (0, 0))
            share, own = 100 * false / added(counts)[1], f"{false / decided:.0%}" if decided else "none made"
            values.append((share, f"{share:.1f} ({own})"))
        rows.append((kind, values))
    longest = max(value for _, values in rows for value, _ in values) or 1
    drawn, height = charts.bars(8, 60, 384, rows, longest, colors)
    bold = {"font_weight": "bold"}
    drawn += [charts.text(12, 22, f"{how}: false, of 100 claims", **bold),
              charts.text(12, 44, "upper bar: base", fill=colors[0], **bold),
              charts.text(160, 44, "lower bar: mdpo", fill=colors[1], **bold)]
    spoken = "; ".join(f"{kind}: base {one}, mdpo {two}" for kind, ((_, one), (_, two)) in rows)
    return charts.card(f"False claims of 100, {how}: {spoken}", height + 76, drawn, 400)


def rankings(run, results):
    path, kind = run / "preferences.jsonl", "preference"
    order = "best first by the auto-check, with their place before"
    if not path.is_file():
        path, kind = run / "candidates.jsonl", "candidate"
        order = "in their initial order: verify.py was not run"
    if not path.is_file():
        return missing("There are no answers to rank: generate.py was not run.")
    parts = [f"<p>The first {EXAMPLES} rows of {path.name}, their answers {order}.</p>"]
    root = run / "world/preference"                # rows keep the picture paths of their prompts
    root = root if root.is_dir() else None
    for row in islice(records.read(path, kind), EXAMPLES):
        items = ""
        for k, response in enumerate(row["responses"]):
            found = {key: response.get(key) for key in ("accuracy", "score")}
            notes = [f"{key} {value:.2f}" for key, value in found.items() if value is not None]
            before = row.get("initial_order", range(k + 1))[k]
            notes += [f"was&nbsp;{ordinal(before)}"] if before != k else []
            items += (f'<li><b>{escape(response["source"])}</b> <span class="note">{", ".join(notes)}</span>'
                      f'<br>{rounds(response["answers"], oracle.scene_of(row))}</li>\n')
        content = f'<div><div>{rounds(row["questions"])}</div><ol class="answers">{items}</ol></div>'
        parts.append(case(row, path, root, row["responses"][0]["answers"], content))
    return "\n".join(parts)


def movement(run, results):
    """How far the auto-check moves the answers, and whether its order is nearer to the oracle's."""
    found, path, parts = results.get("autocheck") or {}, run / "preferences.jsonl", []
    shown = lambda key: f"{found[key]:.1%}" if found.get(key) is not None else "–"
    rows = [[name, *map(shown, both)] for name, both in CHECKED.items()]
    if any(cell != "–" for row in rows for cell in row[1:]):
        parts = ["<p>Pairs of answers that the oracle tells apart; a coin orders half of them alike.</p>",
                 table(["initial", "auto-checked"], rows)]
    else:
        parts = [missing("results.json holds no agreement: verify.py was not run, or nobody could judge it.")]
    orders = [row.get("initial_order") for row in records.read(path, "preference")] if path.is_file() else []
    if orders and all(order and len(order) == len(orders[0]) for order in orders):
        n, K = len(orders), len(orders[0])
        share = [[sum(order[new] == old for order in orders) / n for new in range(K)] for old in range(K)]
        names, moved = [ordinal(k) for k in range(K)], sum(order != sorted(order) for order in orders)
        drawn = [charts.text(12, 22, "from place (row) to place (column), share of sets", font_weight="bold"),
                 *charts.matrix(52, 62, 34, share, names, names, min(66, 340 // K))]
        title = f"From which place to which the auto-check moves answers, in {n} sets of {K}"
        parts.append(f"<p>In {moved} of {n} sets it changed the order. The standard answer stays 1st.</p>"
                     f'<div class="charts"><div>{charts.card(title, 72 + 34 * K, drawn, 400)}</div></div>')
    return "\n".join(parts)


def curves(run, results):
    logs = {model: read_lines(run / f"models/{model}/log.jsonl", check_log) for model in MODELS[1:]}
    parts = [missing(f"There is no log of {model}: it was not trained.") for model in logs if not logs[model]]
    lines = {f"{name}: loss, nats": {"": [line["loss"] for line in log]} for name, log in logs.items() if log}
    levels = list(zip(*(line.get("ratio", []) for line in logs["mdpo"])))       # K levels, one value a step
    if levels:
        lines = {"mdpo: log-prob ratio, nats": {ordinal(k): one for k, one in enumerate(levels)}} | lines
        parts.append("""<p>The ratio is log π(answer) − log π<sub>ref</sub>(answer), summed over an answer’s
tokens and averaged over a step’s sets; training is to pull the levels apart. 1st is the standard answer.
Losses of different methods are different quantities: compare courses, not heights.</p>""")
    drawn = ""
    for title, named in lines.items():
        ends = "; ".join(f"{name} from {one[0]:.3g} to {one[-1]:.3g}".strip() for name, one in named.items())
        spoken = f"{title}, over {max(map(len, named.values()))} steps: {ends}"
        drawn += f"<div>{charts.card(spoken, 260, charts.chart(10, 10, 384, 242, title, named), 400)}</div>"
    return "\n".join([*parts, f'<div class="charts">{drawn}</div>'])


def costs(run, results):
    seconds = {stage: f"{s:.1f} s" for stage, s in (results.get("seconds") or {}).items() if s is not None}
    seconds |= {"total": seconds.pop("total")} if "total" in seconds else {}               # the last
    facts = {"machine": results.get("machine"), "seed": results.get("seed")} | (results.get("versions") or {})
    rows = [[escape(name), escape(str(value))] for name, value in [*seconds.items(), *facts.items()]
            if value is not None]
    return ("" if seconds else missing("Times were not recorded.")) + table([], rows)


SECTIONS = {"Before and after, in pictures": descriptions, "Before and after, in figures": figures,
            "Where the red comes from": by_kind, "K answers to one question": rankings,
            "What the auto-check moves": movement, "Training": curves, "Time, machine and versions": costs}


# ---- the page ----

def page(run, results):
    """The whole page as text. run: Path of the run's folder; results: its results.json, parsed."""
    body = "\n".join(f"<section>\n<h2>{title}</h2>\n{section(run, results)}\n</section>"
                     for title, section in SECTIONS.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Multi-level preferences: {escape(run.resolve().name)}</title>
<style>{CSS}</style></head><body>
<h1>Multi-level preferences against hallucination</h1>
{headline(results)}
<p>A small vision-language model describes pictures and tells of things that are not there. This page shows
how often, before and after training on automatically ranked answers. Words that the scene contradicts look
<mark>like this</mark>; an exact oracle finds them, which training never sees and which knows drawn scenes
only.</p>
{body}
</body></html>
"""


def main(argv=None):
    settings = script.command_line(Settings, argv, __doc__)
    run, out = Path(settings.run), Path(settings.out)
    with storage.open_input(run / "results.json") as file:
        results = parse(file.read(), run / "results.json")
    try:
        check_results(results)
    except BadRow as error:
        raise BadRow(error.problem, run / "results.json") from None
    text = page(run, results)
    out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{out}.tmp").write_text(text, encoding="utf-8", newline="\n")
    os.replace(f"{out}.tmp", out)                  # a reader sees the old page or the new one, never a half
    print(f"{out}: {len(text.encode('utf-8')) / 1000:.0f} kB")


if __name__ == "__main__":
    script.run(main)
