"""The studies: what is compared, the annotator's noise, the intervals and verdicts, and one study as a process."""

import json
import math
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from amp_min import demo
from amp_min.experiments import __main__ as experiments
from amp_min.experiments import annotators, intervals, studies, tables, trainings
from amp_min.losses import pair_indices
from amp_min.support import script, storage
from amp_min.support.script import UserError
from amp_min.world import oracle

ROOT = Path(__file__).parent.parent


# ---- what is compared -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, levels, expected", [
    ("S>A", 2, [(0, 1)]), ("S>B", 3, [(0, 2)]), ("A>C", 4, [(1, 3)]), ("B>C", 4, [(2, 3)]),
    ("S>A, A>B", 3, [(0, 1), (1, 2)]),
    ("S>A, A>B + cross-level", 3, pair_indices(3)), ("S>A, A>B, B>C", 4, pair_indices(4, "adjacent")),
    ("S>A, A>B, B>C + cross-level", 4, pair_indices(4))])
def test_letters_name_levels(text, levels, expected):
    flag, K, flag_pairs, chosen = studies.pairs(text).split()
    assert (flag, int(K), flag_pairs) == ("--levels", levels, "--pairs")
    assert pair_indices(levels, [tuple(map(int, pair.split("-"))) for pair in chosen.split(",")]) == expected


@pytest.mark.parametrize("text", ["A>S", "S>S", "S>D", "S"])
def test_pairs_that_do_not_exist_are_refused(text):
    with pytest.raises(ValueError):
        studies.pairs(text)


def test_every_claim_is_about_rows_of_its_table_and_every_command_parses(tmp_path):
    assert {name for study in studies.STUDIES.values() for name in study.rows} == set(studies.TRAININGS)
    for study in studies.STUDIES.values():
        assert {name for claim in study.claims for name in claim} <= set(study.rows)
    for preset, name in product(demo.PRESETS, studies.TRAININGS):
        typed = experiments.commands(name, 3, experiments.Settings("all", preset=preset), tmp_path)
        assert len(typed) == (1 if name == "base" else 2)
        for command in typed:
            module, *argv = command.split()
            settings = script.module_of(module).Settings
            script.command_line(settings, argv)                     # exits when a flag is unknown
    assert set(studies.DECIDING) <= set(demo.SHOWN)


# ---- the annotator ----------------------------------------------------------------------------------------------

def is_cycle(won):
    """Of three answers each is called better once."""
    return sorted(won.values()) == [0, 1, 2]


class Outcomes:
    """A random number generator that makes the comparisons of a list wrong, and no others."""
    def __init__(self, wrong):
        self.wrong = iter(wrong)

    def random(self):
        return 0.0 if next(self.wrong) else 1.0


@pytest.mark.parametrize("share", [0.0, 0.1195, studies.CONTRADICTIONS, 0.25])
def test_error_gives_this_share_of_contradictory_triples(share):
    e = annotators.comparison_error(share)
    assert 0 <= e <= 0.5
    exact = sum(math.prod(e if w else 1 - e for w in wrong) for wrong in product([False, True], repeat=3)
                if is_cycle(annotators.compare(3, e or 0.1, Outcomes(wrong))))              # all eight outcomes
    assert exact == pytest.approx(share, abs=1e-12)


def test_drawn_triples_hold_that_share_too():
    e, rng, n = annotators.comparison_error(0.144), random.Random(0), 20_000
    drawn = sum(is_cycle(annotators.compare(3, e, rng)) for _ in range(n)) / n
    assert drawn == pytest.approx(0.144, abs=4 * math.sqrt(0.144 * 0.856 / n))


@pytest.mark.parametrize("share", [-0.1, 0.26, math.nan])
def test_more_contradictions_than_guessing_makes_are_refused(share):
    with pytest.raises(ValueError):
        annotators.comparison_error(share)


def test_ranking_without_errors_is_the_truth_and_with_them_a_permutation():
    rng = random.Random(1)
    assert annotators.ranking(5, 0, rng) == [0, 1, 2, 3, 4]
    assert all(sorted(annotators.ranking(4, 0.5, rng)) == [0, 1, 2, 3] for _ in range(50))


def sets(n):
    """Preference rows about one red car; the generated answers stand from worst to best."""
    scene = {"theme": "street", "groups": [{"kind": "car", "color": "red", "size": "small", "cells": [[1, 1]]}]}
    texts = ["A small red car.", "A large blue boat.", "A small blue car.", "A car.", "A small red car."]
    return [{"id": f"s{i}", "image": "x.png", "questions": ["What is there?"], "scene": scene,
             "initial_order": [0, 4, 3, 2, 1],
             "responses": [{"source": str(k), "answers": [text]} for k, text in enumerate(texts)]} for i in range(n)]


def test_replaced_rows_are_exactly_that_share_and_the_same_ones_at_every_share():
    rows, changed = sets(40), {}
    for share in (0, 0.3, 0.7, 1):
        new = list(annotators.replaced(rows, share, 0.0, seed=5))
        changed[share] = {row["id"] for row, old in zip(new, rows, strict=True) if row != old}
        assert len(changed[share]) == round(share * 40)
        for row in new:
            if row["id"] in changed[share]:
                assert "".join(response["source"] for response in row["responses"]) == "04321"      # the standard stays
                assert row["initial_order"] == [0, 1, 2, 3, 4]
    assert changed[0.3] < changed[0.7] < changed[1]
    assert rows == sets(40)                                         # and nobody's rows are changed in place
    assert list(annotators.replaced(rows, 0.7, 0.2, 1)) == list(annotators.replaced(rows, 0.7, 0.2, 1))
    assert list(annotators.replaced(rows, 0.7, 0.2, 1)) != list(annotators.replaced(rows, 0.7, 0.2, 2))


def test_oracle_order_has_no_inconsistency_and_keeps_ties():
    rows = [annotators.by_oracle(row) for row in sets(3)]
    assert oracle.order_quality(rows)["inconsistency"] == 0 and oracle.order_quality(rows)["agreement"] == 1
    row = sets(1)[0]
    row["responses"][1] = row["responses"][2] | {"source": "twin"}
    assert [r["source"] for r in annotators.by_oracle(row)["responses"]] == ["0", "4", "3", "twin", "2"]


# ---- intervals --------------------------------------------------------------------------------------------------

def draw(seeds, scenes, seed=0):
    """Counts such as CHAIR's: wrong of mentioned."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 6, (seeds, scenes))
    return np.stack([rng.binomial(whole, 0.3), whole], axis=-1).astype(float)


def test_difference_is_the_naive_paired_bootstrap():
    a, b = draw(3, 7, seed=1), draw(3, 7, seed=2)
    a[:, :, 0] += a[:, :, 1] * np.array([[0.0], [0.1], [0.3]])      # seeds that differ
    estimate, interval = intervals.difference(a, b)
    metric = lambda sums: sums[:, 0].sum() / max(1, sums[:, 1].sum())
    assert estimate == pytest.approx(np.mean([metric(a[r]) - metric(b[r]) for r in range(3)]), abs=1e-12)
    rng = np.random.default_rng(0)
    values = []
    for times in rng.multinomial(7, [1 / 7] * 7, intervals.DRAWS):
        drawn = np.repeat(np.arange(7), times)                      # with replacement, the same for a and b
        values.append(sum(metric(a[r, drawn]) - metric(b[r, drawn]) for r in range(3)) / 3)
    spread = np.std([metric(a[r]) - metric(b[r]) for r in range(3)], ddof=1)
    values += rng.standard_t(2, intervals.DRAWS) * spread / math.sqrt(3)
    assert interval == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)


def test_interval_of_a_mean_is_the_textbooks():
    rng, N = np.random.default_rng(3), 400
    values = rng.normal(size=N)
    a = np.stack([values, np.ones(N)], axis=-1)[None]                                       # (1, N, 2)
    estimate, (low, high) = intervals.difference(a, np.zeros_like(a) + [0, 1])
    half = 1.96 * values.std() / math.sqrt(N)
    assert estimate == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == pytest.approx((estimate - half, estimate + half), abs=0.1 * half)


def test_pairing_removes_what_rows_share():
    a = draw(5, 200)
    b = a.copy()
    b[..., 0] += a[..., 1] * 0.1                                    # more by exactly 0.1 in every scene, however hard
    estimate, interval = intervals.difference(b, a)
    assert [estimate, *interval] == pytest.approx([0.1] * 3, abs=1e-12)


def test_interval_over_seeds_alone_is_students():
    a = np.ones((4, 100, 2))
    a[:, :, 0] = np.array([[0.0], [1.0], [0.0], [1.0]])             # scenes all alike, seeds not
    estimate, interval = intervals.difference(a, np.zeros_like(a) + [0.5, 1])
    half = 3.182 * np.std([0, 1, 0, 1], ddof=1) / 2                 # t with 3 degrees of freedom, 97.5 %
    assert estimate == 0 and interval == pytest.approx((-half, half), rel=0.1)


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match="scenes differ"):
        intervals.stack([{"x": [1, 2]}, {"y": [1, 2]}])
    with pytest.raises(ValueError, match="same seeds and scenes"):
        intervals.difference(draw(2, 5), draw(3, 5))
    assert intervals.difference(draw(1, 1), draw(1, 1))[1] is None


@pytest.mark.parametrize("interval, expected", [
    ((0.1, 0.2), "holds"), ((-0.2, -0.1), "does not hold"), ((-0.1, 0.1), "undecided"), ((0.0, 0.1), "undecided"),
    ((-0.1, 0.0), "undecided"), (None, "undecided")])
def test_verdict(interval, expected):
    assert intervals.verdict(interval) == expected


def test_claim_turns_less_is_better_round():
    few, many = draw(2, 50), draw(2, 50)
    many[..., 0] = many[..., 1]                                     # everything mentioned is wrong
    claim = intervals.claim("less", "paper", few, many, sign=-1)
    assert claim["ours"] > 0 and claim["interval"][0] > 0 and claim["verdict"] == "holds"
    assert intervals.claim("more", "paper", few, many, sign=+1)["verdict"] == "does not hold"


# ---- on a run ---------------------------------------------------------------------------------------------------

def test_sums_give_the_figures_of_evaluate(tiny_run):
    folder, _ = tiny_run
    for model in demo.MODELS:
        found = json.loads((folder / f"evaluate/{model}.json").read_text(encoding="utf-8"))["metrics"]
        sums = intervals.scene_sums(folder / f"evaluate/{model}.json.answers.jsonl", folder / "world/eval")
        ours = {name: intervals.metric(scenes) for name, scenes in sums.items()}
        assert set(demo.SHOWN) <= ours.keys()
        shared = ours.keys() & found.keys()
        assert {name: ours[name] for name in shared} == pytest.approx({name: found[name] for name in shared}, abs=1e-12)


def test_orders_tell_how_rankings_agree_with_the_oracle(tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("auto-check", "initial", "symmetric", "noisy-100")}
    with storage.Writer(files["initial"], {}, []) as out:
        for row in sets(20):
            out.write(row)                                          # all the wrong way round
    annotators.write(files["auto-check"], files["initial"], 1, 0, seed=0)
    annotators.write(files["symmetric"], files["initial"], 1, 0, seed=1)
    annotators.write(files["noisy-100"], files["initial"], 1, 0.3, seed=0)
    table, claims = experiments.orders_of(files)
    assert {row["ranking"]: row["agreement"] for row in table}["auto-check"] == 1
    assert [claim["verdict"] for claim in claims] == ["holds", "holds", "holds", "undecided"]
    assert claims[0]["ours"] == pytest.approx(0.0225) and claims[1]["ours"] == pytest.approx(0.75)


def test_levels_are_means_over_the_steps_of_an_epoch(tmp_path):
    steps = [(0.5, 1), (1.0, 3), (1.5, 10), (2.0, 20)]
    (tmp_path / "log.jsonl").write_text("".join(
        json.dumps({"epoch": epoch, "logp": [-x, -2 * x], "ratio": [x, x / 2]}) + "\n" for epoch, x in steps), encoding="utf-8")
    assert trainings.levels_by_epoch(tmp_path / "log.jsonl") == [{"logp": [-2, -4], "ratio": [2, 1]},
                                                                   {"logp": [-15, -30], "ratio": [15, 7.5]}]


def test_a_study_as_a_process_and_once_more(tiny_run, tmp_path, capsys):
    folder, _ = tiny_run
    argv = ["penalty", "--seeds", "1", "--run", str(folder), "--preset", "tiny", "--workers", "1",
            "--out", str(tmp_path)]
    command = [sys.executable, "-m", "amp_min.experiments", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = json.loads((tmp_path / "penalty.json").read_text(encoding="utf-8"))
    assert list(found["rows"]) == sorted(["penalty-off", "penalty-off-slow", "mdpo", "penalty-all"]) and found["seeds"] == [0]
    assert {"machine", "versions", "claims"} <= found.keys()
    assert len(found["claims"]) == 3 * len(studies.DECIDING) + 2 * (4 + 1)
    for claim in found["claims"]:
        assert claim.keys() == {"claim", "paper", "ours", "interval", "verdict"}
        assert claim["verdict"] == intervals.verdict(claim["interval"])
    for row in found["rows"].values():
        assert set(demo.SHOWN) <= row["seeds"][0].keys() and len(row["seeds"]) == 1
        assert [len(level) for level in row["levels"][0][-1].values()] == [4, 4]
    assert tables.markdown(found) in done.stdout
    assert (tmp_path / "penalty.md").read_text(encoding="utf-8") == tables.markdown(found)

    before = (tmp_path / "penalty.json").read_bytes()
    experiments.main(argv)                                          # nothing left to train: the same bytes again
    assert "4 done before" in capsys.readouterr().out and (tmp_path / "penalty.json").read_bytes() == before


def test_without_a_demo_run_one_line_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="candidates.jsonl: is missing; finish the demo run first"):
        experiments.main(["table3", "--run", str(tmp_path)])
