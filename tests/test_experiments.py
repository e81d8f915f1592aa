"""The studies: what is compared, the rankings, the intervals and verdicts, and one study as a process."""

import json
import math
import random
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from amp_min import demo
from amp_min.experiments import __main__ as experiments
from amp_min.experiments import intervals, measures, rankings, studies, tables
from amp_min.support import script
from amp_min.support.script import UserError
from amp_min.world import oracle

ROOT = Path(__file__).parent.parent


# ---- what is compared --------------------------------------------------------------------------------------

def parses(command):
    module, *argv = shlex.split(command)
    return script.command_line(script.module_of(module).Settings, argv)         # exits when a flag is unknown


def test_every_variant_belongs_to_a_study_and_every_command_parses(tmp_path):
    assert {name for study in studies.STUDIES.values() for name in study.variants} == set(studies.VARIANTS)
    for preset, name in product(demo.PRESETS, studies.VARIANTS):
        typed = experiments.commands(name, 3, experiments.Settings("all", preset=preset), tmp_path)
        assert len(list(map(parses, typed))) == 1 + bool(studies.VARIANTS[name].ranking)


def test_what_is_prepared_is_made_by_commands_that_parse(tmp_path):
    typed, needed = [], {(one.base, one.ranking) for one in studies.VARIANTS.values()}
    for run, preset in product(("a", "a folder"), demo.PRESETS):
        settings = experiments.Settings("all", preset=preset, run=str(tmp_path / run))
        (tmp_path / run / "models/clip").mkdir(parents=True, exist_ok=True)
        experiments.prepare(needed, settings, tmp_path / run, lambda stage, *commands: typed.extend(commands))
    assert len(list(map(parses, typed))) == 4 * (1 + 2 + 2 + 2 * 4 + 7)


def test_a_line_of_claims_is_read():
    first, second, third = studies.claims("a > b: false chair; control b >= a: pope")
    assert first == studies.Claim(None, {"a": 1, "b": -1}, "false") and second.metric == "chair"
    assert third == studies.Claim(None, {"b": 1, "a": -1}, "pope", "control", "not worse")


def test_claims_stand_as_the_papers_figures_do():
    """Both of its figures must speak for a claim called the paper's; a metric is named before the run."""
    for study in studies.STUDIES.values():
        for claim in study.claims:
            assert claim.weights.keys() <= study.variants.keys() and claim.metric in studies.METRICS
            assert claim.metric == "level0" or sum(claim.weights.values()) == pytest.approx(0)
            figures = [study.variants[name][1] for name in list(claim.weights)[:2]]
            if claim.test == "better" and claim.kind != "control" and len(figures) == 2 and all(figures):
                a, b = ([float(x) for x in re.findall(r"[\d.]+", text)] for text in figures)    # score, rate
                assert a[0] > b[0] and a[1] <= b[1], claim


def demo_penalty():
    return float(experiments.flags(demo.PRESETS["demo"]["mdpo"]).get("penalty", 1))


def test_what_is_the_same_training_is_trained_once():
    assert experiments.trained_as(f"penalty-{demo_penalty():g}", "demo") == "mdpo"
    assert experiments.trained_as("k2", "demo") == "k2"
    assert experiments.flags("--lr 1 --a --levels 4 --lr 2e-3 --pairs 0-1,1-2") == {
        "lr": "2e-3", "a": "", "levels": "4", "pairs": "0-1,1-2"}


@pytest.mark.parametrize("K, name", [(2, "k2-fixed"), (4, "mdpo"), (5, "k5-fixed")])
def test_fixed_penalty_weighs_the_best_answer_as_at_four_levels(K, name):
    options = experiments.flags(experiments.options_of(name, "demo"))
    weight = lambda K, penalty: penalty * (K - 1) / math.comb(K, 2)      # K - 1 of the mean's pairs hold y_0
    assert int(options["levels"]) == K
    assert weight(K, float(options["penalty"])) == pytest.approx(weight(4, demo_penalty()))


def test_few_rows_are_trained_as_many_steps():
    steps = lambda name: float(experiments.flags(experiments.options_of(name, "demo"))["epochs"])
    assert steps("few-5-sft") * 0.05 == steps("sft") == steps("few-25-mdpo") * 0.25


# ---- rankings ----------------------------------------------------------------------------------------------

def is_cycle(won):
    """Of three answers each is called better once."""
    return sorted(won.values()) == [0, 1, 2]


class Outcomes:
    """A random number generator that makes the comparisons of a list wrong, and no others."""
    def __init__(self, wrong):
        self.wrong = iter(wrong)

    def random(self):
        return 0.0 if next(self.wrong) else 1.0


@pytest.mark.parametrize("share", [0.0, 0.144, 0.1195, 0.25])
def test_error_gives_this_share_of_contradictory_triples(share):
    e = rankings.comparison_error(share)
    assert 0 <= e <= 0.5
    exact = sum(math.prod(e if w else 1 - e for w in wrong) for wrong in product([False, True], repeat=3)
                if is_cycle(rankings.compare(3, e or 0.1, Outcomes(wrong))))     # all eight outcomes
    assert exact == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("share", [-0.1, 0.26, math.nan])
def test_more_contradictions_than_guessing_makes_are_refused(share):
    with pytest.raises(ValueError):
        rankings.comparison_error(share)


def test_ranking_without_errors_is_the_truth_and_with_them_a_permutation():
    rng = random.Random(1)
    assert rankings.noisy_order(5, 0, rng) == [0, 1, 2, 3, 4]
    assert all(sorted(rankings.noisy_order(4, 0.5, rng)) == [0, 1, 2, 3] for _ in range(50))


def sets(n):
    """Preference rows about one red car; the generated answers stand from worst to best."""
    car = {"kind": "car", "color": "red", "size": "small", "cells": [[1, 1]]}
    texts = ["A small red car.", "A large blue boat.", "A small blue car.", "A car.", "A small red car."]
    return [{"id": f"s{i}", "image": "x.png", "questions": ["What is there?"],
             "initial_order": [0, 4, 3, 2, 1], "scene": {"theme": "street", "groups": [car]},
             "responses": [{"source": str(k), "answers": [text]} for k, text in enumerate(texts)]}
            for i in range(n)]


def sources(row):
    return "".join(response["source"] for response in row["responses"])


def test_replaced_rows_are_exactly_that_share_and_the_same_ones_at_every_share():
    rows, changed = sets(40), {}
    for share in (0, 0.3, 0.7, 1):
        new = list(rankings.replaced(rows, share, 0.0, seed=5))
        changed[share] = {row["id"] for row, old in zip(new, rows, strict=True) if row != old}
        assert len(changed[share]) == round(share * 40)
        for row in new:
            if row["id"] in changed[share]:
                assert sources(row) == "04321"                      # the standard answer stays
                assert row["initial_order"] == [0, 1, 2, 3, 4]
    assert changed[0.3] < changed[0.7] < changed[1]
    assert rows == sets(40)                                         # and nobody's rows are changed in place
    assert list(rankings.replaced(rows, 0.7, 0.2, 1)) == list(rankings.replaced(rows, 0.7, 0.2, 1))
    assert list(rankings.replaced(rows, 0.7, 0.2, 1)) != list(rankings.replaced(rows, 0.7, 0.2, 2))


def test_oracle_order_has_no_inconsistency_and_keeps_ties():
    rows = list(rankings.changed(sets(3), "oracle"))
    assert oracle.order_quality(rows)["inconsistency"] == 0 and oracle.order_quality(rows)["agreement"] == 1
    row = sets(1)[0]
    row["responses"][1] = row["responses"][2] | {"source": "T"}     # a twin
    assert sources(next(rankings.changed([row], "oracle"))) == "043T2"


def test_claims_count_what_a_rating_cannot_see():
    row = sets(1)[0]
    row["responses"] = [{"source": str(k), "answers": [text]} for k, text in enumerate(
        ["A small red car.", "A large blue car.", "A large red car.", "A small red car, a boat and a cup."])]
    assert rankings.by_claims(row) == [1 - 2 * 2, 2 - 2 * 1, 3 - 2 * 2]     # a car; its size; its color
    assert sources(next(rankings.changed([row], "claims"))) == "0231"


def test_random_and_reversed_orders_are_what_they_say():
    rows = sets(200)
    ordered = lambda how, seed: list(map(sources, rankings.changed(rows, how, seed)))
    assert set(ordered("reversed", 1)) == {"04321"}
    drawn = ordered("random", 1)
    assert {one[0] for one in drawn} == {"0"} and len(set(drawn)) == 24         # every order of four
    assert drawn == ordered("random", 1) != ordered("random", 2)
    few, more = ([row["id"] for row in rankings.changed(rows, how)] for how in ("few-5", "few-25"))
    assert len(few) == 10 and len(more) == 50 and set(few) < set(more)


def test_agreement_is_told_apart_by_kind_of_prompt(tmp_path):
    row = {key: value for key, value in sets(1)[0].items() if key != "initial_order"}
    seen = lambda text, accuracy: {"source": text, "answers": ["A car.", text],
                                   "evidence": [{"levels": []}, {"levels": [[accuracy, 0]]}]}
    dialogue = row | {"id": "d", "questions": ["What?", "Is there a boat?"], "responses": [
        {"source": "standard", "answers": ["A car.", "No, there is no boat."]},
        seen("Yes, there is a boat.", 0.7), seen("No, there is no boat.", 0.7), seen("No.", 0.9)]}
    path, (described,) = tmp_path / "rows.jsonl", rankings.changed([row], "oracle")
    path.write_text(f"{json.dumps(described)}\n{json.dumps(dialogue)}\n", encoding="utf-8")
    found, _ = rankings.quality(path)
    assert found["agreement_descriptions"] == 1
    assert found["agreement_dialogues"] == 1 / 3                # the full No stands above No., no more
    assert found["yes_no"] == 0.5                                   # Yes below No. is right; the full No ties
    assert found["adjacent_wrong"] == 1 / 5                       # of 3 + 2 neighbors told apart


# ---- intervals ---------------------------------------------------------------------------------------------

def draw(seeds, scenes, seed=0):
    """Counts such as CHAIR's: wrong of mentioned."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 6, (seeds, scenes))
    return np.stack([rng.binomial(whole, 0.3), whole], axis=-1).astype(float)


def difference(a, b):
    return intervals.claim("", "", "", [(1, a), (-1, b)])


def test_noise_of_scenes_is_the_bootstraps():
    """s^2/R + B - (V - B)/(R - 1), with B and V from resampling scenes, is what the delta method gives."""
    R, N = 4, 300
    a, b = draw(R, N, seed=1), draw(R, N, seed=2)
    hard = np.random.default_rng(3).binomial(1, 0.4, N)             # for every seed
    a[..., 0] = np.minimum(a[..., 1], a[..., 0] + hard)
    rng, value = np.random.default_rng(0), lambda sums: sums[..., 0].sum(-1) / sums[..., 1].sum(-1)
    drawn = [rng.integers(0, N, N) for _ in range(3000)]
    booted = np.array([value(a[:, n]) - value(b[:, n]) for n in drawn])                         # (3000, R)
    B, V, d = booted.mean(1).var(), booted.var(0).mean(), value(a) - value(b)
    mean, error, df = intervals.contrast([(1, a), (-1, b)])
    assert mean == pytest.approx(d.mean(), abs=1e-12) and R - 1 < df < N - 1
    assert error ** 2 == pytest.approx(max(B, d.var(ddof=1) / R + B - (V - B) / (R - 1)), rel=0.1)


def test_students_quantiles_are_the_tables():
    for df, expected in ((1, 12.706), (2.0, 4.303), (4, 2.776), (9.5, 2.244), (30, 2.042), (1e4, 1.960)):
        assert intervals.quantile(0.95, df) == pytest.approx(expected, abs=2e-3)
        assert intervals.p_value(expected, df) == pytest.approx(0.05, abs=1e-4)


def test_interval_of_one_seed_is_the_textbooks():
    rng, N = np.random.default_rng(3), 400
    values = rng.normal(size=N)
    found = difference(np.stack([values, np.ones(N)], axis=-1)[None], np.array([[[0.0, 1.0]] * N]))
    half = 1.966 * values.std(ddof=1) / math.sqrt(N)
    assert found["ours"] == pytest.approx(values.mean(), abs=1e-12)
    assert found["interval"] == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-3)


def test_pairing_removes_what_variants_share():
    a = draw(5, 200)
    b = a.copy()
    b[..., 0] += a[..., 1] * 0.1                                # by exactly 0.1 in every scene, however hard
    found = difference(b, a)
    assert [found["ours"], *found["interval"]] == pytest.approx([0.1] * 3, abs=1e-12) and found["p"] < 1e-6


def test_interval_over_seeds_alone_is_students():
    a = np.ones((4, 100, 2))
    a[:, :, 0] = np.array([[0.0], [1.0], [0.0], [1.0]])             # scenes all alike, seeds not
    found = difference(a, np.zeros_like(a) + [0.5, 1])
    half = 3.182 * np.std([0, 1, 0, 1], ddof=1) / 2                 # t with 3 degrees of freedom, 97.5 %
    assert found["ours"] == 0 and found["interval"] == pytest.approx((-half, half), rel=1e-3)


@pytest.mark.parametrize("R, seeds_differ_by", [(5, 0.0), (5, 0.01), (3, 0.01)])
def test_five_of_a_hundred_equal_variants_get_a_verdict(R, seeds_differ_by, capsys):
    """Scenes that are hard for all, seeds that see differently well: the noise that real trainings have."""
    rng, N, times = np.random.default_rng(4), 300, 600

    def answers(hard, better):
        wrong = 0.2 + hard - better + 0.1 * rng.normal(size=(R, N))
        wrong = wrong + seeds_differ_by * rng.normal(size=(R, 1))
        whole = rng.integers(3, 10, N) + np.zeros((R, 1), int)
        return np.stack([rng.binomial(whole, np.clip(wrong, 0, 1)), whole], axis=-1).astype(float)

    def decided(better):
        hard = 0.08 * rng.normal(size=(times, 2, N))                # the two do not find the same scenes hard
        verdicts = [difference(answers(h, 0), answers(g, better))["verdict"] for h, g in hard]
        return np.mean([one == "holds" if better else one != "undecided" for one in verdicts])

    false, power = decided(0), decided(0.03)
    with capsys.disabled():
        print(f"\n{R} seeds, {N} scenes, differ by {seeds_differ_by}: {false:.3f} false, power {power:.2f}")
    assert 0.01 < false < 0.075 and power > 5 * false


@pytest.mark.parametrize("interval, better, not_worse, as_good", [
    ((0.1, 0.2), "holds", "holds", "does not hold"),
    ((-0.2, -0.1), "does not hold", "does not hold", "does not hold"),
    ((-0.1, 0.1), "undecided", "undecided", "undecided"), ((-0.02, 0.2), "undecided", "holds", "undecided"),
    ((-0.02, 0.02), "undecided", "holds", "holds"), ((0.01, 0.02), "holds", "holds", "holds"),
    ((0.0, 0.1), "undecided", "holds", "undecided"), (None, "undecided", "undecided", "undecided")])
def test_verdicts(interval, better, not_worse, as_good):
    """No difference found is no equality: for that, the interval must lie within the margin, here 0.05."""
    tests = ("better", "not worse", "as good as")
    assert tuple(intervals.verdict(interval, test, 0.05) for test in tests) == (better, not_worse, as_good)


def test_holm_by_hand():
    def corrected(*ps):
        return [one["corrected"] for one in intervals.holm([{"p": p, "verdict": "holds"} for p in ps])]

    assert corrected(0.04, 0.001, 0.012, 0.02) == ["holds"] * 4     # below .05/4, .05/3, .05/2, .05
    # .018 fails
    assert corrected(0.04, 0.001, 0.018, 0.02) == ["undecided", "holds", "undecided", "undecided"]


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match="scenes differ"):
        measures.stack([{"x": [1, 2]}, {"y": [1, 2]}])
    with pytest.raises(ValueError, match="same seeds and scenes"):
        difference(draw(2, 5), draw(3, 5))
    assert difference(draw(1, 1), draw(1, 1))["verdict"] == "undecided"


# ---- on a run ----------------------------------------------------------------------------------------------

def test_sums_give_the_figures_of_evaluate(tiny_run):
    folder, _ = tiny_run
    for model in demo.MODELS:
        found = json.loads((folder / f"evaluate/{model}.json").read_text(encoding="utf-8"))["metrics"]
        sums = measures.scene_sums(folder / f"evaluate/{model}.json.answers.jsonl", folder / "world/eval")
        ours = {name: measures.metric(scenes) for name, scenes in sums.items()}
        assert {key for key in [*tables.COLUMNS, *tables.WHY] if "log_ratio" not in key} <= ours.keys()
        shared = sorted(ours.keys() & found.keys())
        assert len(shared) >= 9
        assert [ours[name] for name in shared] == pytest.approx([found[name] for name in shared], abs=1e-12)


def test_false_claims_are_counted_by_kind():
    scene = {"groups": [{"kind": "car", "color": "red", "size": "small", "cells": [[1, 1]]}]}
    text = "The image shows two large red cars on the left and a green tree. The car is above the tree."
    found = {name: (part, whole) for name, part, whole in measures.description(text, scene)}
    assert found["false_objects"] == (2, 4) and found["false_colors"] == (0, 1)   # the absent has no color
    assert found["false_numbers"] == found["false_sizes"] == found["false_places"] == (1, 1)
    assert found["false_claims"] == (5, 8) and found["chair_i"] == (1, 2)


def test_log_ratios_are_means_over_the_last_epoch(tmp_path):
    steps = [(0.5, 1), (1.0, 3), (1.5, 10), (2.0, 20)]
    lines = (json.dumps({"epoch": epoch, "logp": [-x, -2 * x], "ratio": [x, x / 2]}) for epoch, x in steps)
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert measures.log_ratios(tmp_path / "log.jsonl") == [15, 7.5]
    assert measures.log_ratios(tmp_path / "none.jsonl") == []       # a base: nothing was trained


def test_a_study_as_a_process_and_once_more(tiny_run, tmp_path, capsys):
    folder, _ = tiny_run
    argv = ["penalty", "--seeds", "1", "--run", str(folder), "--preset", "tiny", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "amp_min.experiments", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = json.loads((tmp_path / "penalty.json").read_text(encoding="utf-8"))
    assert found["rows"].keys() == studies.STUDIES["penalty"].variants.keys() and found["seeds"] == [1]
    assert len(found["claims"]) == len(studies.STUDIES["penalty"].claims)
    for claim in found["claims"]:
        assert {"claim", "paper", "ours", "interval", "verdict", "kind"} <= claim.keys()
        assert claim["verdict"] == intervals.verdict(claim["interval"])
        assert claim["kind"] in ("paper", "ours", "control")
    for row in found["rows"].values():
        assert set(demo.SHOWN) | set(tables.WHY) <= row["seeds"][0].keys() and 0 <= row["prefers_worse"] <= 1
    assert tables.markdown(found) in done.stdout
    assert (tmp_path / "penalty.md").read_text(encoding="utf-8") == tables.markdown(found)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert tables.summary([found]) in page and "Tried and dropped" in page

    before = (tmp_path / "penalty.json").read_bytes()
    experiments.main(argv)                                      # nothing left to train: the same bytes again
    assert re.search(r"(\d+) trainings and evaluations, \1 done before", capsys.readouterr().out)
    assert (tmp_path / "penalty.json").read_bytes() == before


def test_without_a_demo_run_one_line_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="candidates.jsonl: is missing; finish the demo run first"):
        experiments.main(["table3", "--run", str(tmp_path)])
