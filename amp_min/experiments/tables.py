"""A study as Markdown: a table of its rows, its claims, and what else was measured.

    table3 = tables.markdown(json.loads(Path("results/table3.json").read_text()))
"""

from collections import Counter

import numpy as np

COLUMNS = {"chair_i_sampled": "CHAIR_i, sampled ↓", "coverage_sampled": "coverage, sampled ↑",
           "chair_i_greedy": "CHAIR_i, greedy ↓", "pope_accuracy": "POPE accuracy ↑",
           "pope_yes_ratio": "POPE yes-ratio", "mrhal_score_cumulative": "MRHal score ↑",
           "mrhal_hallucination_cumulative": "MRHal hallucination ↓",
           "words_sampled": "words, sampled", "repeated_greedy": "said twice, greedy ↓"}


def line(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def spread(values):
    """Mean ± standard deviation over the seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def markdown(found):
    """The content of results/<study>.json (experiments.found_in) as text."""
    rows = [found["rows"][name] for name in found["order"]]
    lines = [f"## {found['title']}", "",
             f"Seeds {', '.join(map(str, found['seeds']))} (mean ± standard deviation), {found['split']} scenes, "
             f"{found['machine']}.  The paper's figures ({found['figures']}) measure something else: compare the "
             "order, not the size.", "",
             line("", "paper", *COLUMNS.values()), line("---", "---", *["---:"] * len(COLUMNS))]
    for row in rows:
        ours = [spread([seed[key] for seed in row["seeds"]]) for key in COLUMNS]
        lines.append(line(row["name"], row["paper"] or "—", *ours))
    lines += levels(rows) if found["study"] == "penalty" else []
    lines += orders(found["orders"]) if found["orders"] else []
    return "\n".join(lines + claims(found["claims"])) + "\n"


def levels(rows):
    K = len(rows[0]["levels"][0][-1]["ratio"])
    lines = ["", "How far the log-prob of each level has moved from the reference's, mean over the last epoch "
             "(level 0 is the best):", "", line("", *(f"level {k}" for k in range(K))), line("---", *["---:"] * K)]
    for row in rows:
        moved = np.mean([seed[-1]["ratio"] for seed in row["levels"]], axis=0)                     # (K,)
        lines.append(line(row["name"], *(f"{level:+.1f}" for level in moved)))
    return lines


def orders(rankings):
    lines = ["", "Rankings against the oracle.  The paper, by hand: 2.25 % of the auto-checked data inconsistent; of "
             "three answers compared pairwise, 14.40 % (people) and 11.95 % (GPT-4V) contradictory.", "",
             line("ranking", "adjacent pairs inconsistent ↓", "agreement ↑", "told apart"),
             line("---", "---:", "---:", "---:")]
    for one in rankings:
        lines.append(line(one["ranking"], f"{one['inconsistency']:.2%}", f"{one['agreement']:.3f}",
                          f"{one['told_apart']:.3f}"))
    return lines


def claims(every):
    """An advantage is the difference in the claim's direction."""
    count = Counter(one["verdict"] for one in every)
    lines = ["", f"Of {len(every)} claims {count['holds']} hold, {count['does not hold']} do not hold, "
             f"{count['undecided']} are undecided.  The advantage is the difference in the claim's direction: above "
             "zero it speaks for the claim.", "",
             line("claim", "paper", "advantage", "95 % interval", "verdict"), line("---", "---", "---:", "---:", "---")]
    for one in every:
        interval = "—" if one["interval"] is None else "{:+.4f} … {:+.4f}".format(*one["interval"])
        lines.append(line(one["claim"], one["paper"], f"{one['ours']:+.4f}", interval, f"**{one['verdict']}**"))
    return lines


SHORT = ("chair_i_sampled", "coverage_sampled", "pope_accuracy", "mrhal_hallucination_cumulative")


def summary(controls, studies):
    """The README's tables: the controls' main figures, and how many claims of each study hold."""
    lines = [line(f"{len(controls['seeds'])} seeds, mean ± standard deviation", *(COLUMNS[key] for key in SHORT)),
             line("---", *["---:"] * len(SHORT))]
    for name in controls["order"]:
        row = controls["rows"][name]
        lines.append(line(row["name"], *(spread([seed[key] for seed in row["seeds"]]) for key in SHORT)))
    verdicts = ("holds", "does not hold", "undecided")
    lines += ["", line("study", "seeds", *verdicts), line("---", *["---:"] * (1 + len(verdicts)))]
    for study in studies:
        count = Counter(one["verdict"] for one in study["claims"])
        named = f"[{study['title']}](results/{study['study']}.md)"
        lines.append(line(named, len(study["seeds"]), *(count[verdict] for verdict in verdicts)))
    return "\n".join(lines)
