"""Studies as Markdown: one page each, and results/README.md about all of them.

    page = tables.markdown(json.loads(Path("results/table3.json").read_text()))
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from amp_min.experiments.studies import STUDIES

COLUMNS = {"false_claims_sampled": "all false claims, sampled ↓", "false_claims_greedy": "greedy ↓",
           "chair_i_sampled": "CHAIR_i, sampled ↓", "coverage_sampled": "coverage, sampled ↑",
           "pope_accuracy": "POPE accuracy ↑", "pope_yes_ratio": "POPE yes-ratio",
           "mrhal_hallucination_cumulative": "MRHal hallucination ↓"}
# What moved: a variant that only says less, or says yes less often, has learned no seeing.
WHY = {"words_sampled": "words", "repeated_sampled": "said twice", "false_objects_sampled": "false objects",
       "false_numbers_sampled": "numbers", "false_sizes_sampled": "sizes", "false_colors_sampled": "colors",
       "false_places_sampled": "places", "false_relations_sampled": "relations",
       "log_ratio_first": "log-ratio of the best level", "log_ratio_last": "of the worst"}
ORDERS = {"agreement": "agreement ↑", "agreement_descriptions": "descriptions",
          "agreement_dialogues": "dialogues", "yes_no": "yes/no rounds",
          "inconsistency": "adjacent pairs wrong ↓",
          "adjacent_wrong": "generated, told apart: wrong ↓", "told_apart": "told apart"}


def line(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def spread(values):
    """Mean ± standard deviation over the seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def share(value):
    return "—" if value is None else f"{value:.3f}"


def cells(row):
    return [spread([seed[key] for seed in row["seeds"]]) for key in COLUMNS]


def markdown(found):
    """The content of results/<study>.json (found_in) as text."""
    rows = [found["rows"][name] for name in found["order"]]
    lines = [f"## {found['title']}", "", f"**{found['question']}** {answer(found)}", "",
             f"Seeds {', '.join(map(str, found['seeds']))} (mean ± standard deviation), {found['split']} "
             f"scenes, {found['machine']}. The paper's figures ({found['figures']}) measure something else: "
             "compare the order, not the size.", "", line("", "paper", *COLUMNS.values()),
             line("---", "---", *["---:"] * len(COLUMNS))]
    lines += [line(row["name"], row["paper"] or "—", *cells(row)) for row in rows]
    lines += ["", "What moved: length, repetition, the share of false claims of each kind (sampled "
              "descriptions), and in the last epoch the log-ratio of the best and the worst level. Last: in "
              "how many of the training pairs the reference finds the *worse* answer likelier.", "",
              line("", *WHY.values(), "reference prefers the worse"), line("---", *["---:"] * (len(WHY) + 1))]
    for row in rows:
        moved = [[seed[key] for seed in row["seeds"] if key in seed] for key in WHY]
        lines.append(line(row["name"], *(share(np.mean(values) if values else None) for values in moved),
                          share(row["prefers_worse"])))
    lines += orders(found["orders"]) if found["orders"] else []
    return "\n".join(lines + claims(found["claims"])) + "\n"


def orders(rankings):
    lines = ["", "Rankings against the oracle. Agreement: over pairs of generated answers that the oracle "
             "tells apart. The paper's 2.25 % inconsistent pairs, by hand, include those with the standard "
             "answer, which cannot be wrong, and pairs of equals: the next column has neither.", "",
             line("ranking", *ORDERS.values()), line("---", *["---:"] * len(ORDERS))]
    return lines + [line(one["ranking"], *(share(one.get(key)) for key in ORDERS)) for one in rankings]


def signed(one):
    interval = "" if one["interval"] is None else " ({:+.4f} … {:+.4f})".format(*one["interval"])
    return f"{one['ours']:+.4f}{interval}"


def claims(every):
    lines = ["", f"{counted(every)} The advantage is the difference in the claim's direction: above zero it "
             "speaks for the claim. Behind it the 95 % interval. *Corrected* is the verdict when all claims "
             "of this page together may err in 5 % (Holm). *Smallest*: a true difference of this size is "
             "decided four times in five.", "",
             line("claim", "kind", "paper", "advantage", "verdict", "corrected", "smallest"),
             line("---", "---", "---", "---:", "---", "---", "---:")]
    return lines + [line(one["claim"], one["kind"], one["paper"], signed(one), f"**{one['verdict']}**",
                         one["corrected"], share(one["smallest"])) for one in every]


def counted(every):
    of = {key: Counter(one[key] for one in every) for key in ("verdict", "corrected")}
    text = "{}: {} hold, {} do not, {} undecided"
    return "; ".join([text.format(f"{len(every)} claims", *(of["verdict"][v] for v in VERDICTS)),
                      text.format("corrected", *(of["corrected"][v] for v in VERDICTS))]) + "."


VERDICTS = ("holds", "does not hold", "undecided")


# ---- one page about all ------------------------------------------------------------------------------------

def answer(found):
    """The study's first claim, in a word."""
    first = found["claims"][0]
    undecided = f"Not decided: a difference of {share(first['smallest'])} would have been seen."
    return {"holds": "Yes.", "does not hold": "No, the opposite.", "undecided": undecided}[first["verdict"]]


def summary(studies):
    """README's tables, and this page's first screen: question, answer, figure, file; then the headline
    figures."""
    lines = [line("question", "answer", "figure", "claims: hold / do not / undecided"),
             line("---", "---", "---", "---:")]
    for found in studies:
        first, count = found["claims"][0], Counter(one["verdict"] for one in found["claims"])
        lines.append(line(f"[{found['question']}]({found['study']}.md)", answer(found),
                          f"{first['claim']}: {signed(first)}",
                          " / ".join(str(count[verdict]) for verdict in VERDICTS)))
    for found in (one for one in studies if one["study"] == "controls"):
        lines += ["", line(f"mean ± standard deviation over seeds {', '.join(map(str, found['seeds']))}",
                           *COLUMNS.values()), line("---", *["---:"] * len(COLUMNS))]
        for row in (found["rows"][name] for name in found["order"]):
            lines.append(line(row["name"], *cells(row)))
    return "\n".join(lines)


def write_page(out):
    """OUT/README.md from the studies that are finished."""
    files = [Path(out) / f"{key}.json" for key in STUDIES]
    studies = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.exists()]
    every = [one for found in studies for one in found["claims"]]
    negative = [f"- {one['claim']}: {signed(one)} ([{found['study']}]({found['study']}.md))"
                for found in studies for one in found["claims"] if one["verdict"] == "does not hold"]
    tried = Path(__file__).with_name("tried.md").read_text(encoding="utf-8")
    (Path(out) / "README.md").write_text("\n".join([
        "# What the experiments found", "",
        "Made by `python -m amp_min.experiments all`. Each study asks one question; its claims, and the "
        "metric of each, were fixed before it ran. Nothing was chosen on these scenes or these seeds.", "",
        summary(studies), "", counted(every), "", "## What came out the other way round", "",
        *(negative or ["Nothing."]), "", tried]), encoding="utf-8")
