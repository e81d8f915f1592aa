"""A finished run as one HTML page: figures, pictures, answers with their false words marked, training curves.

    python -m amp_min.report --run runs/demo --out runs/demo/report.html

The page is one file without scripts or outside resources, so it can be mailed, printed and kept.  It only shows what
the run wrote; where a stage was not run, its section says so.  Examples are the first rows of a file, never the best.
Answers come from models, rows from other people: every text of theirs is escaped.  Equal runs give equal bytes.
"""

import base64
import io
import math
import os
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from pathlib import Path

from amp_min import records
from amp_min.records import check_texts, is_finite
from amp_min.support import script, storage
from amp_min.support.pictures import image_path, open_image
from amp_min.support.script import BadRow
from amp_min.world import oracle

MODELS = ["base", "sft", "dpo", "mdpo"]
GOOD = {"↓": lambda value: -value, "↑": lambda value: value, "→ 50": lambda value: -abs(value - 50)}
CAPTIONS = [("chair_i", "objects named that are not there, % (CHAIR<sub>i</sub>)", "↓"),
            ("chair_s", "descriptions with such objects, % (CHAIR<sub>s</sub>)", "↓"),
            ("coverage", "objects there that are named, %", "↑")]
METRICS = {"Descriptions, greedy": [(f"{key}_greedy", name, good) for key, name, good in CAPTIONS],
           "Descriptions, sampled at temperature 1": [(f"{key}_sampled", name, good) for key, name, good in CAPTIONS],
           "POPE: “Is there a … in the image?”": [
               ("pope_random_f1", "F1, random absent objects, %", "↑"),
               ("pope_popular_f1", "F1, frequent absent objects, %", "↑"),
               ("pope_adversarial_f1", "F1, absent objects that would fit, %", "↑"),
               ("pope_yes_ratio", "answers that are yes, %", "→ 50")],
           "MRHal: dialogues of 2 to 5 rounds": [
               ("mrhal_score_cumulative", "score of 0 to 6, mean over rounds", "↑"),
               ("mrhal_score_mean", "score of 0 to 6, mean over dialogues", "↑"),
               ("mrhal_hallucination_cumulative", "rounds with a hallucination, %", "↓"),
               ("mrhal_hallucination_mean", "the same, mean over dialogues, %", "↓")]}
AGREEMENT = {"agreement_initial": "pairs that the oracle orders alike, before the auto-check",
             "agreement_autocheck": "pairs that the oracle orders alike, after it",
             "inconsistency_rate": "neighbors, after it, that the oracle orders the other way"}
EXAMPLES = 6                     # rows to show in each section with pictures
POINTS = 100                     # of a curve at most; each is the mean of equally many steps

# The line colors are Okabe and Ito's (told apart with any color vision), darkened or lightened until text is readable.
CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5c5c62; --line: #d0d0d6; --page: #fff; --false: #b3001b;
  --tint: #fdecee; --l0: #0068a8; --l1: #b84700; --l2: #00745a; --l3: #9c4580; --l4: #7d5f00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a6a6ae; --line: #44444c; --page: #161618;
  --false: #ff8f98; --tint: #3d1a1f; --l0: #56b4e9; --l1: #f08a4b; --l2: #2fc39a; --l3: #dd93c0; --l4: #e5bb3f } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin: 3rem 0 .5rem } p { max-width: 42rem }
.note, figcaption { color: var(--soft); font-size: .875rem } .missing { font-style: italic }
.scroll { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .4rem; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal }
tbody th { text-align: left; font-weight: normal } th[colspan] { font-weight: 600; padding-top: 1rem }
.case, .charts { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem 1.5rem }
.case { padding: 1rem 0; border-top: 1px solid var(--line) } .case > :first-child { width: 192px; margin: 0 }
.case > :last-child, figure { flex: 1 1 20rem; min-width: 0 } figure { margin: 0 0 1rem; max-width: 27rem }
img { display: block; height: auto; border-radius: 4px } dt { font-weight: 600 } dl, dd, dd p, ol { margin: 0 }
ol { padding-left: 1.5rem } dd, .case > div > * { margin-bottom: .6rem } .answers > li + li { margin-top: .6rem }
mark { background: var(--tint); color: var(--false); font-weight: 600; text-decoration: underline wavy 1px }
mark::before { content: "[false: " } mark::after { content: "]" } /* for screen readers, which do not tell marks */
mark::before, mark::after { position: absolute; width: 1px; overflow: hidden; clip-path: inset(50%); white-space: pre }
svg { display: block; width: 100%; height: auto; font-size: 13px; fill: var(--soft) } line { stroke: var(--line) }
path { fill: none; stroke-width: 2 } .zero { stroke: var(--soft) } .name { font-weight: 600 }
"""


@dataclass
class Settings:
    run: str = field(metadata={"help": "folder of a finished run, with its results.json"})
    out: str = field(metadata={"help": "page to write (HTML)"})


# ---- parts ------------------------------------------------------------------------------------------------------

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


def case(row, path, root, standard, content):
    """A row's picture, described by its standard answer, and what was said about it."""
    file = image_path(row, path, root)
    shown = missing(f"There is no picture {row['image']}.")
    if file.is_file():
        image, data = open_image(file), io.BytesIO()
        image.thumbnail((384, 384))                # a photo: as much as a sharp screen shows; drawings are smaller
        image.save(data, "PNG")
        code = base64.b64encode(data.getvalue()).decode("ascii")
        height = max(1, round(192 * image.height / image.width))
        shown = (f'<img alt="{escape(" ".join(standard))}" width="192" height="{height}" '
                 f'src="data:image/png;base64,{code}">')
    return f'<div class="case">{shown}{content}</div>'


def table(pairs):
    cells = ((escape(str(name)), escape(str(value))) for name, value in pairs)
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in cells)
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def parse(data, place):
    """Bytes of JSON -> dict; errors name the place."""
    try:
        return records.parse(data)
    except BadRow as error:
        raise BadRow(error.problem, place) from None


def read_lines(path, check):
    """The objects of a log or an answers file, none when there is no such file.  check(line) may raise BadRow."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    found = [parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    for number, line in enumerate(found, 1):
        try:
            check(line)
        except BadRow as error:
            raise BadRow(error.problem, f"{path}:{number}") from None
    return found


def check_numbers(found, keys, name):
    """BadRow unless found is an object whose keys, where it has them, are finite numbers or null (not measured)."""
    if not isinstance(found, dict):
        raise BadRow(f"{name} is not an object; run the stage that writes it again")
    for key in keys:
        if found.get(key) is not None and not is_finite(found[key]):
            raise BadRow(f"{name}.{key} is not a finite number; run the stage that writes it again")


def check_results(results):
    models = results.get("models") or {}
    check_numbers(models, (), "models")
    for model in MODELS:
        check_numbers(models.get(model) or {}, [key for group in METRICS.values() for key, _, _ in group], f"models.{model}")
    check_numbers(results.get("autocheck") or {}, AGREEMENT, "autocheck")
    check_numbers(results.get("seconds") or {}, results.get("seconds") or (), "seconds")
    check_numbers(results.get("versions") or {}, (), "versions")


def check_answers(line):
    for key in ("id", "benchmark"):
        if not isinstance(line.get(key), str):
            raise BadRow(f"{key} is no text; evaluate the model again")
    check_texts(line.get("answers"), "answers", may_be_empty=True)


def check_log(line):
    ratio = line.get("ratio", [])                  # supervised training has none
    if not is_finite(line.get("loss")) or not isinstance(ratio, list) or not all(map(is_finite, ratio)):
        raise BadRow("loss or ratio is not made of finite numbers; train the model again")


def ordinal(k):
    return ["1st", "2nd", "3rd"][k] if k < 3 else f"{k + 1}th"


# ---- sections ---------------------------------------------------------------------------------------------------

def figures(results):
    models = results.get("models")
    if not models:
        return missing("results.json holds no models: none was evaluated.")
    body = ""
    for group, metrics in METRICS.items():
        body += f'<tr><th scope="colgroup" colspan="{1 + len(MODELS)}">{group}</th></tr>\n'
        for key, name, good in metrics:
            factor, digits = (1, 2) if "score" in key else (100, 1)
            # Rounded first: of two figures that look equal on the page neither is better.
            found = {m: models[m][key] for m in MODELS if (models.get(m) or {}).get(key) is not None}
            values = {m: round(factor * value, digits) for m, value in found.items()}
            best = max(map(GOOD[good], values.values()), default=None)
            shown = {m: f"{value:.{digits}f}" for m, value in values.items()}
            shown |= {m: f"<b>{shown[m]}</b>" for m, value in values.items() if GOOD[good](value) == best}
            cells = "".join(f"<td>{shown.get(m, '–')}</td>" for m in MODELS)
            body += f'<tr><th scope="row">{name}&nbsp;{good.replace(" ", "&nbsp;")}</th>{cells}</tr>\n'
    head = "".join(f'<th scope="col">{m}</th>' for m in MODELS)
    return f"""<div class="scroll"><table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p class="note">↓ less is better, ↑ more is better, → 50 nearer to 50 is better. The best of a row is bold; – was not
measured. base: before preference training. sft: trained on the standard answers alone. dpo: on one good and one bad
answer a picture. mdpo: on all levels. This is one run with one seed: small differences may be chance.</p>"""


def descriptions(run):
    path, said = run / "world/eval/captions.jsonl", {}
    for model in ("base", "mdpo"):
        lines = read_lines(run / f"evaluate/{model}.json.answers.jsonl", check_answers)
        said[model] = {line["id"]: line["answers"] for line in lines if line["benchmark"] == "captions_sampled"}
    if not path.is_file() or not any(said.values()):
        return missing("There are no sampled descriptions: python -m amp_min.evaluate was not run.")
    parts = [f"<p>The first {EXAMPLES} scenes of the evaluation set in the order of its file, not the flattering ones. "
             "The descriptions are sampled at temperature 1, which shows what a model holds possible.</p>"]
    for row in islice(records.read(path, "prompt"), EXAMPLES):
        content = f"<dt>standard</dt><dd>{rounds(row['answers'])}</dd>"
        for model, texts in said.items():
            text = rounds(texts[row["id"]], oracle.scene_of(row)) if row["id"] in texts else missing("It was not asked.")
            content += f"<dt>{model}</dt><dd>{text}</dd>"
        parts.append(case(row, path, None, row["answers"], f"<dl>{content}</dl>"))
    return "\n".join(parts)


def rankings(run):
    path, kind, order = run / "preferences.jsonl", "preference", "best first by the auto-check, with their place before"
    if not path.is_file():
        path, kind, order = run / "candidates.jsonl", "candidate", "in their initial order: verify.py was not run"
    if not path.is_file():
        return missing("There are no answers to rank: generate.py was not run.")
    parts = [f"<p>The first {EXAMPLES} rows of {path.name}, their answers {order}.</p>"]
    root = run / "world/preference"                # rows keep the picture paths of the prompts that they were made from
    for row in islice(records.read(path, kind), EXAMPLES):
        items = ""
        for k, response in enumerate(row["responses"]):
            notes = [f"{name} {response[name]:.2f}" for name in ("accuracy", "score") if response.get(name) is not None]
            before = row.get("initial_order", range(k + 1))[k]
            notes += [f"was&nbsp;{ordinal(before)}"] if before != k else []
            items += (f'<li><b>{escape(response["source"])}</b> <span class="note">{", ".join(notes)}</span><br>'
                      f'{rounds(response["answers"], oracle.scene_of(row))}</li>\n')
        content = f'<div><div>{rounds(row["questions"])}</div><ol class="answers">{items}</ol></div>'
        parts.append(case(row, path, root if root.is_dir() else None, row["responses"][0]["answers"], content))
    return "\n".join(parts)


def agreement(results):
    found = results.get("autocheck") or {}
    if rows := [(name, f"{found[key]:.1%}") for key, name in AGREEMENT.items() if found.get(key) is not None]:
        return "<p>Pairs of generated answers that the oracle tells apart; tossing a coin gives 50%.</p>" + table(rows)
    return missing("results.json holds no agreement: verify.py was not run, or nothing could judge its order.")


def curves(run):
    logs = {model: read_lines(run / f"models/{model}/log.jsonl", check_log) for model in MODELS[1:]}
    parts = [missing(f"There is no log of {model}: it was not trained.") for model in logs if not logs[model]]
    charts = [chart(f"{model}: loss, nats", {"": [line["loss"] for line in log]}) for model, log in logs.items() if log]
    if logs["mdpo"]:
        levels = zip(*(line.get("ratio", []) for line in logs["mdpo"]))                     # K levels, one value a step
        named = {ordinal(k): values for k, values in enumerate(levels)}
        charts.insert(0, chart("mdpo: log-prob ratio of each level to the reference, nats", named))
        parts.append("<p>The ratio is log π(answer) − log π<sub>ref</sub>(answer), summed over an answer’s tokens and "
                     "averaged over a step’s sets; training is to pull the levels apart. 1st is the standard answer. "
                     "Losses of different methods are different quantities: compare courses, not heights.</p>")
    return "\n".join([*parts, f'<div class="charts">{"".join(charts)}</div>'])


def costs(results):
    seconds = [(stage, s) for stage, s in (results.get("seconds") or {}).items() if s is not None]
    seconds.sort(key=lambda stage: stage[0] == "total")                                                # the total last
    facts = {"machine": results.get("machine"), "seed": results.get("seed")} | (results.get("versions") or {})
    return ((table((stage, f"{s:.1f} s") for stage, s in seconds) if seconds else missing("Times were not recorded."))
            + table((name, value) for name, value in facts.items() if value is not None))


# ---- charts -----------------------------------------------------------------------------------------------------

def ticks(low, high):
    """About four round numbers that span low to high."""
    span = (high - low) or abs(high) or 1
    unit = 10 ** math.floor(math.log10(span / 4))
    step = min((unit * m for m in (1, 2, 5, 10)), key=lambda size: abs(span / size - 4))
    first = math.floor(low / step)
    return [i * step for i in range(first, max(math.ceil(high / step), first + 1) + 1)]


def chart(title, lines):
    """A <figure> with a curve for each name -> values, one value an optimizer step; names stand at the curves' ends."""
    n = len(next(iter(lines.values())))
    size = math.ceil(n / POINTS)
    thin = lambda values: [sum(part) / len(part) for part in (values[i:i + size] for i in range(0, n, size))]
    steps, lines = thin(range(1, n + 1)), {name: thin(values) for name, values in lines.items()}
    left, right, top, bottom = 50, 355, 10, 215                                             # of 400 x 256 units
    scale = ticks(min(map(min, lines.values())), max(map(max, lines.values())))
    x = lambda step: round(left + (right - left) * step / n, 1)
    y = lambda value: round(bottom - (bottom - top) * (value - scale[0]) / (scale[-1] - scale[0]), 1)
    text = lambda across, down, anchor, what: f'<text x="{across}" y="{down}" text-anchor="{anchor}">{what}</text>'
    number = lambda value: f"{value:.6g}".replace("-", "−")
    parts = [f'<line class="{"grid" if tick else "zero"}" x1="{left}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>'
             + text(left - 6, y(tick) + 4, "end", number(tick)) for tick in scale]
    parts += [text(x(t), bottom + 18, "middle", number(t)) for t in ticks(0, n) if t <= n and t == int(t)]
    parts.append(text((left + right) / 2, bottom + 36, "middle", "optimizer step"))
    downward = sorted(enumerate(lines.items()), key=lambda line: -line[1][1][-1])
    at = [y(values[-1]) + 4 for _, (_, values) in downward]
    # Names keep 15 units apart: pushed down where curves end together, then up again from the axis.
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + 15)
    for i in range(len(at)):
        at[i] = min(at[i], bottom + 4 - 15 * (len(at) - 1 - i))
    for down, (k, (name, values)) in zip(at, downward):
        points = " ".join(f"{x(step)} {y(value)}" for step, value in zip(steps, values))
        parts.append(f'<path style="stroke: var(--l{k % 5})" d="M{points}"/>'
                     f'<text class="name" style="fill: var(--l{k % 5})" x="{right + 6}" y="{down:.1f}">{name}</text>')
    spoken = "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}".strip() for name, values in lines.items())
    note = f" (a point is the mean of {size} steps)" if size > 1 else ""
    return (f'<figure><figcaption>{title}{note}</figcaption>\n<svg viewBox="0 0 400 256" role="img" '
            f'aria-label="{title}, over {n} steps: {spoken}">{"".join(parts)}</svg></figure>\n')


# ---- the page ---------------------------------------------------------------------------------------------------

def page(run, results):
    """The whole page as text. run: Path of the run's folder; results: its results.json, parsed."""
    sections = {"Before and after, in figures": figures(results), "Before and after, in pictures": descriptions(run),
                "K answers to one question": rankings(run), "Is the auto-check’s order right?": agreement(results),
                "Training": curves(run), "Time, machine and versions": costs(results)}
    body = "\n".join(f"<section>\n<h2>{title}</h2>\n{content}\n</section>" for title, content in sections.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Multi-level preferences: {escape(run.resolve().name)}</title>
<style>{CSS}</style></head><body>
<h1>Multi-level preferences against hallucination</h1>
<p>A small vision-language model describes pictures and tells of things that are not there. This page shows how often,
before and after training on automatically ranked answers. Words that the scene contradicts look
<mark>like this</mark>; an exact oracle finds them, which training never sees and which knows drawn scenes only.</p>
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
