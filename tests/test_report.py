"""amp_min.report: the page of a small run made by hand, its marks, its escapes, and what it says when stages are missing."""
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from amp_min.metrics import NAMES
from amp_min.report import __main__ as report
from amp_min.report import charts, figures
from amp_min.support.script import BadRow, UserError
from amp_min.world import drawing, oracle

ROOT = Path(__file__).resolve().parents[1]
SCENE = {"theme": "street", "groups": [
    {"kind": "car", "color": "blue", "size": "small", "cells": [[2, 0]]},
    {"kind": "tree", "color": "green", "size": "large", "cells": [[1, 1], [1, 2]]}]}
STANDARD = "The image shows a small blue car at the bottom left. There are two large green trees in the middle."
BASE = "The image shows a small red car at the bottom left & a large yellow boat at the top."
MDPO = "The image shows a small blue car at the bottom left."
EVIL = "<script>alert('x')</script> a red car \"&amp;\""
KINDS = {"objects": [4, 10], "places": [8, 10], "relations": [0, 0]}
MODELS = {model: {name: 0.1 * (k + 1) for name in NAMES} | {"claims_by_kind_sampled": KINDS, "mrhal_by_aspect": {"a": 3}}
          for k, model in enumerate(report.MODELS)}
TITLES = list(report.SECTIONS)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_run(folder, examples=2):
    """A run folder with every file that the page reads, as small as it can be."""
    captions, preferences, said = [], [], []
    for i in range(examples):
        for split in ("eval", "preference"):
            image = folder / f"world/{split}/images/{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            drawing.draw(SCENE["theme"], SCENE["groups"]).save(image)
        head = {"id": f"r{i}", "image": f"images/{i}.png", "scene": SCENE}
        captions.append(head | {"questions": ["Describe it."], "answers": [STANDARD]})
        responses = [{"source": "standard", "answers": [STANDARD, "Yes, there is a car."], "accuracy": None},
                     {"source": "small", "answers": [MDPO, "Yes."], "accuracy": 0.5, "score": 0.75, "evidence": []},
                     {"source": "large", "answers": [BASE, ""], "accuracy": 0.25, "score": 0.5, "evidence": []}]
        preferences.append(head | {"questions": ["Describe it.", "Is there a car?"], "responses": responses,
                                   "initial_order": [0, 2, 1]})
        said.append({"benchmark": "captions_sampled", "id": f"r{i}"})
    write_lines(folder / "world/eval/captions.jsonl", captions)
    write_lines(folder / "preferences.jsonl", preferences)
    for model, text in {"base": BASE, "mdpo": MDPO}.items():
        greedy = {"benchmark": "captions_greedy", "id": "r0", "answers": ["only greedy says this"]}
        write_lines(folder / f"evaluate/{model}.json.answers.jsonl",
                    [greedy, *(line | {"answers": [text]} for line in said)])
    for model, K in {"sft": 1, "dpo": 2, "mdpo": 3}.items():
        write_lines(folder / f"models/{model}/log.jsonl", [
            {"step": i + 1, "loss": 1 / (i + 1), "ratio": [(1.0 - k) * i for k in range(K)]} for i in range(250)])
    results = {"models": MODELS, "seed": 7, "machine": "two <cores>", "versions": {"python": "3.11.7"},
               "seconds": {"total": 12.0, "world": 2.5},
               "autocheck": {"agreement_initial": 0.6, "agreement_autocheck": 0.75, "inconsistency_initial": 0.25,
                             "inconsistency_rate": 0.125}}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def made(run):
    report.main(["--run", str(run), "--out", str(run / "page/report.html")])
    return (run / "page/report.html").read_text(encoding="utf-8")


class Tree(HTMLParser):
    """Checks that tags are closed in order; collects (tag, attributes) and the text of each kind of element."""
    VOID = {"meta", "img", "br", "line", "rect", "polyline", "image"}       # those of SVG close themselves

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else None, data))

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def section(page, title):
    return next(part for part in page.split("<section>") if f"<h2>{title}</h2>" in part)


# ---- the whole page ---------------------------------------------------------------------------------------------

def test_a_page_of_its_own(run):
    page = made(run)
    tree = Tree(page)
    assert page.startswith("<!DOCTYPE html>\n") and tree.of("html") == [{"lang": "en"}]
    assert {tag for tag, _ in tree.tags}.isdisjoint({"script", "link", "iframe", "object"})
    addresses = [value for _, attributes in tree.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(addresses) == 4 and all(value.startswith("data:image/png;base64,") for value in addresses)
    assert "url(" not in page and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert [text for tag, text in tree.texts if tag == "h2"] == TITLES
    assert "Of 100 things that the model says of a picture, <mark>10</mark> were false before training, and <mark>40<" in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert os.listdir(run / "page") == ["report.html"]               # nothing temporary is left


def test_equal_runs_give_equal_bytes(tmp_path):
    first, second = (made(make_run(tmp_path / place / "run")) for place in ("a", "b"))
    assert first == second


def test_pictures_are_the_rows_and_described_by_the_standard_answer(run):
    pictures = Tree(made(run)).of("img")
    assert [img["alt"] for img in pictures] == [STANDARD, STANDARD, *[STANDARD + " Yes, there is a car."] * 2]
    drawn = drawing.draw(SCENE["theme"], SCENE["groups"])
    for img in pictures:
        shown = Image.open(io.BytesIO(base64.b64decode(img["src"].split(",")[1])))
        assert (img["width"], img["height"]) == ("192", "192") and shown.tobytes() == drawn.tobytes()


def test_only_the_first_rows_are_shown(tmp_path):
    tree = Tree(made(make_run(tmp_path / "run", examples=report.EXAMPLES + 2)))
    assert len(tree.of("img")) == 2 * report.EXAMPLES


# ---- texts and marks --------------------------------------------------------------------------------------------

def test_marks_are_the_false_words(run):
    page = made(run)
    shown = section(page, "Before and after, in pictures")
    assert re.findall("<mark>(.*?)</mark>", shown) == ["red", "a large yellow boat"] * 2
    assert ("<h3>before: base <span>2 of 5 claims false</span></h3><p>The image shows a small <mark>red</mark> car at the "
            "bottom left &amp; <mark>a large yellow boat</mark> at the top.</p>") in shown
    assert f"<h3>after: mdpo <span>0 of 4 claims false</span></h3><p>{MDPO}</p>" in shown
    assert f"<figcaption>{STANDARD}</figcaption>" in shown and "only greedy" not in page
    assert "text-decoration: underline" in page.split("mark {")[1].split("}")[0]         # red alone is not seen by everybody


WORDS = ["two", "three", "a", "no", "small", "large", "red", "blue", "cars", "car", "trees", "boat", "is", "at the top",
         "above the car", "or", ".", "<b>", "&", "ß"]


@given(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join))
@settings(deadline=None, derandomize=True, database=None, max_examples=200)
def test_marks_cover_exactly_the_false_spans(text):
    tree = Tree(report.marked(text, SCENE))
    assert "".join(part for _, part in tree.texts) == text           # nothing lost, doubled or left unescaped
    inside = [tag == "mark" for tag, part in tree.texts for _ in part]
    spans = oracle.false_spans(text, SCENE)
    assert inside == [any(start <= i < end for start, end in spans) for i in range(len(text))]


def test_nested_spans_are_marked_once():
    assert len(oracle.false_spans("two red cars", SCENE)) == 2
    assert report.marked("two red cars", SCENE) == "<mark>two red cars</mark>"
    assert report.marked("two red cars", None) == "two red cars"     # without a scene nothing can be judged


def test_texts_of_rows_stay_texts(run):
    path = run / "preferences.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    row["questions"] = [EVIL, EVIL]
    row["responses"] = [response | {"source": EVIL, "answers": [EVIL, EVIL]} for response in row["responses"]]
    row["responses"][0]["accuracy"] = row["responses"][0]["score"] = 1.0
    write_lines(path, [row])
    for name in ("base", "mdpo"):
        write_lines(run / f"evaluate/{name}.json.answers.jsonl",
                    [{"benchmark": "captions_sampled", "id": "r0", "answers": [EVIL]}])
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    results |= {"machine": EVIL, "seconds": {EVIL: 1.0}, "versions": {EVIL: EVIL}}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    tree = Tree(made(run))
    assert tree.of("script") == []
    assert "".join(text for _, text in tree.texts).count("<script>alert('x')</script>") == 2 + 3 * 3 + 2 + 4
    assert tree.of("img")[-1]["alt"] == f"{EVIL} {EVIL}"


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_a_browser_shows_hostile_text_and_runs_none_of_it(run):
    """The page as the browser has it after running what it would run: the text is there, and the title is ours."""
    evil = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\"> a red car"
    for path in run.rglob("*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace(json.dumps(BASE)[1:-1], json.dumps(evil)[1:-1]), encoding="utf-8")
    made(run)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=360,800", "--virtual-time-budget=2000",
               f"--user-data-dir={run / 'browser'}", "--dump-dom", (run / "page/report.html").as_uri()]
    dom = Tree(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert "ran" not in [data for tag, data in dom.texts if tag == "title"]
    assert dom.of("script") == [] and not any("onerror" in attributes for _, attributes in dom.tags)
    assert "<script>document.title='ran'</script>" in "".join(data for _, data in dom.texts)



# ---- sections ---------------------------------------------------------------------------------------------------

def test_the_best_of_each_row_is_bold():
    results = {"models": {
        "base": {"chair_i_greedy": 0.3, "coverage_greedy": 0.50004, "pope_yes_ratio": 0.9, "mrhal_score_mean": 2},
        "sft": {"chair_i_greedy": 0.2, "coverage_greedy": 0.49996, "pope_yes_ratio": 0.45, "mrhal_score_mean": None},
        "mdpo": {"chair_i_greedy": 0.25, "coverage_greedy": 0.4, "pope_yes_ratio": 0.52, "mrhal_score_mean": 3.456}}}
    rows = [re.findall("<td>(.*?)</td>", cells)
            for cells in re.findall('<th scope="row">.*?</th>(.*?)</tr>', report.figures(None, results))]
    rows = dict(zip(NAMES, rows, strict=True))
    assert rows["chair_i_greedy"] == ["30.0", "<b>20.0</b>", "–", "25.0"]
    assert rows["coverage_greedy"] == ["<b>50.0</b>", "<b>50.0</b>", "–", "40.0"]    # equal as far as the page shows
    assert rows["pope_yes_ratio"] == ["90.0", "45.0", "–", "<b>52.0</b>"]
    assert rows["mrhal_score_mean"] == ["2.00", "–", "–", "<b>3.46</b>"]
    assert rows["false_claims_sampled"] == ["–"] * 4
    page = report.figures(None, results)
    assert "POPE yes-ratio, %&nbsp;→&nbsp;50<" in page and "MRHal score, mean&nbsp;↑<" in page
    assert page.index("false claims") < page.index("CHAIR_i")


def test_bars_add_up_to_the_share_of_false_claims():
    counts = {"base": {"objects": [1, 20], "places": [9, 20], "relations": [0, 0]}, "mdpo": {"objects": [1, 50], "places": [0, 50]}}
    results = {"models": {model: {"claims_by_kind_sampled": two} for model, two in counts.items()}}
    shown = report.by_kind(None, results)
    Tree(shown)
    assert re.findall(r'font-size="13">(.*?)<', shown) == [
        "22.5 (45%)", "0.0 (0%)", "2.5 (5%)", "1.0 (2%)", "0.0 (none made)", "0.0 (none made)"]      # most of the red first
    widths = [float(width) for width in re.findall(r'<rect x="92" [^>]*?width="(.*?)"', shown)]
    assert widths == pytest.approx([190, 1, 190 * 2.5 / 22.5, 190 / 22.5, 1, 1], abs=0.01)
    assert "sampled: places: base 22.5 (45%), mdpo 0.0 (0%); objects" in shown and "greedy" not in shown
    nothing = {"models": {model: {"claims_by_kind_sampled": {"objects": [0, 0]}} for model in counts}}
    assert 'class="missing"' in report.by_kind(None, nothing)


def test_answers_stand_in_the_auto_check_s_order(run):
    shown = section(made(run), "K answers to one question")
    assert re.findall("<li><b>(.*?)</b> <span class=\"note\">(.*?)</span>", shown) == [
        ("standard", ""), ("small", "accuracy 0.50, score 0.75, was&nbsp;3rd"),
        ("large", "accuracy 0.25, score 0.50, was&nbsp;2nd")] * 2
    assert '<ol type="a"><li>Describe it.</li><li>Is there a car?</li></ol>' in shown
    assert "<li>Yes.</li>" in shown and '<span class="note">(nothing)</span>' in shown


def test_candidates_are_shown_when_nothing_ranked_them(run):
    rows = [json.loads(line) for line in (run / "preferences.jsonl").read_text(encoding="utf-8").splitlines()]
    (run / "preferences.jsonl").unlink()
    for row in rows:
        del row["initial_order"]
        row["responses"] = [{key: response[key] for key in ("source", "answers")} for response in row["responses"]]
    write_lines(run / "candidates.jsonl", rows)
    shown = section(made(run), "K answers to one question")
    assert "in their initial order: verify.py was not run" in shown
    assert "accuracy" not in shown and "2nd" not in shown


def test_movement_of_the_auto_check_and_costs(run):
    page = made(run)
    shown = section(page, "What the auto-check moves")
    assert re.findall("<td>([^<]+)</td>", shown) == ["60.0%", "75.0%", "25.0%", "12.5%"]
    assert "In 2 of 2 sets it changed the order." in shown
    # initial_order [0, 2, 1]: the 1st stays, the 2nd goes to place 3 and the 3rd to place 2, in all sets.
    cells = re.findall(r'text-anchor="middle" fill="[^"]*">(.*?)<', shown)
    assert cells == ["1.00", "0.00", "0.00", "0.00", "0.00", "1.00", "0.00", "1.00", "0.00"]
    assert re.findall('<th scope="row">(.*?)</th><td>(.*?)</td>', section(page, "Time, machine and versions")) == [
        ("world", "2.5 s"), ("total", "12.0 s"), ("machine", "two &lt;cores&gt;"), ("seed", "7"), ("python", "3.11.7")]


@pytest.mark.parametrize("low, high, expected", [
    (0, 4, [0, 1, 2, 3, 4]), (-0.13, 0.05, [-0.15, -0.1, -0.05, 0, 0.05]), (0, 150, [0, 50, 100, 150]),
    (0, 0, [0, 0.2]), (3, 3, [3, 4])])
def test_ticks(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
@settings(deadline=None, derandomize=True, database=None, max_examples=200)
def test_ticks_span_the_values(low, span):
    found = charts.ticks(low, low + span)
    assert 2 <= len(found) <= 9
    slack = 1e-9 * (abs(low) + span)
    assert found[0] <= low + slack and found[-1] >= low + span - slack


def test_curves_are_where_the_values_are(run):
    # Two steps, one point each: the axis spans 0 to 4, ticks at 0 to 4; the drawing area is 62 to 362 by 36 to 224.
    drawn = "".join(charts.chart(10, 10, 400, 240, "t", {"up": [0.0, 4.0], "down": [4.0, 0.0]}))
    assert re.findall('points="(.*?)"', drawn) == ["62.0,224.0 360.0,36.0", "62.0,36.0 360.0,224.0"]
    shown = section(made(run), "Training")
    assert shown.count("means of 7") == 4 and shown.count("<svg") == 4
    first = shown.split("</svg>")[0]
    assert re.findall('font-weight="bold">(.*?)<', first) == ["mdpo: log-prob ratio, nats", "1st", "2nd", "3rd"]    # best on top
    assert "over 250 steps: 1st from 0 to 249; 2nd from 0 to 0; 3rd from -0 to -249" in first
    # The first of 36 points is the mean of steps 1 to 7, the last that of the five that are left.
    assert re.findall('points="(.*?),', first.replace(" ", ","))[0] == "62.0"


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_names_of_curves_do_not_overlap(value):
    lines = {name: [0.0, value - k / 1000] for k, name in enumerate("dcba")} | {"high": [1.0, 1.0], "low": [-1.0, -1.0]}
    named = re.findall(r'y="([0-9.]*)" text-anchor="start" fill="[^"]*" font-weight="bold">(.*?)<',
                       "".join(charts.chart(0, 0, 400, 240, "t", lines)))
    at = [float(y) for y, _ in named]
    assert len(at) == 6 and all(below - above >= 15 for above, below in zip(at, at[1:])) and 10 <= at[0] and at[-1] <= 230
    assert [name for _, name in named if len(name) == 1] == list("dcba")        # best above, wherever they crowd


def test_figures_names_the_training_that_it_lacks(run, tmp_path):
    out = tmp_path / "pictures"
    with pytest.raises(UserError, match=r"no-penalty: holds no log\.jsonl; train .* with --penalty 0") as stopped:
        figures.main(["--run", str(run), "--out", str(out)])
    assert not out.exists() and len(str(stopped.value)) < 300 + 2 * len(str(run))


# ---- what can be missing or wrong -------------------------------------------------------------------------------

def test_a_run_with_results_alone(run):
    for name in ("world", "models", "evaluate"):
        (run / name).rename(run.parent / name)
    (run / "preferences.jsonl").unlink()
    (run / "results.json").write_text("{}", encoding="utf-8")
    page = made(run)
    Tree(page)
    for title in set(TITLES) - {"Training"}:
        assert section(page, title).count('<p class="missing">') == 1
    assert section(page, "Training").count("it was not trained") == 3
    assert not Tree(page).of("img")


def test_one_model_was_not_evaluated(run):
    (run / "evaluate/mdpo.json.answers.jsonl").unlink()
    shown = section(made(run), "Before and after, in pictures")
    assert shown.count('<h3>after: mdpo</h3><p class="missing">') == 2 and shown.count("<mark>") == 4


def test_a_lost_picture_is_named(run):
    (run / "world/eval/images/1.png").unlink()
    page = made(run)
    assert "There is no picture images/1.png." in page and len(Tree(page).of("img")) == 3


def test_a_picture_outside_the_run_is_refused(run):
    path = run / "world/eval/captions.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("images/0.png", "../../../secret.png"), encoding="utf-8")
    with pytest.raises(BadRow, match="image leads out of its folder"):
        made(run)
    assert not (run / "page").exists()


def test_a_damaged_log_names_its_line(run):
    with open(run / "models/mdpo/log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 251, "lo')
    with pytest.raises(BadRow, match=r"log\.jsonl:251: line is not JSON"):
        made(run)


@pytest.mark.parametrize("content, problem",
                         [(None, "No such file"), ("{", "line is not JSON"), ("[]", "line is a list")])
def test_results_that_cannot_be_read(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"results\.json: {problem}"):
        report.main(["--run", str(tmp_path), "--out", str(tmp_path / "r.html")])


@pytest.mark.parametrize("path, content, problem", [
    ("results.json", {"models": [1]}, "models is not an object"),
    ("results.json", {"models": {"base": 5}}, "models.base is not an object"),
    ("results.json", {"models": {"mdpo": {"chair_i_sampled": "0.1"}}}, "models.mdpo.chair_i_sampled is not a finite number"),
    ("results.json", {"models": {"base": {"claims_by_kind_sampled": {"objects": [1]}}}},
     "models.base.claims_by_kind_sampled.objects is not two numbers"),
    ("results.json", {"models": {"base": {"chair_i_greedy": {}}}}, "models.base.chair_i_greedy is not a finite number"),
    ("results.json", {"autocheck": {"agreement_initial": []}}, "autocheck.agreement_initial is not a finite number"),
    ("results.json", {"seconds": {"train": {}}}, "seconds.train is not a finite number"),
    ("results.json", {"versions": "3.11"}, "versions is not an object"),
    ("models/mdpo/log.jsonl", {"step": 1}, "loss or ratio"),
    ("models/mdpo/log.jsonl", {"loss": 0.1, "ratio": ["0"]}, "loss or ratio"),
    ("evaluate/base.json.answers.jsonl", {"id": "a", "answers": ["b"]}, "benchmark is no text"),
    ("evaluate/base.json.answers.jsonl", {"id": "a", "benchmark": "pope", "answers": "b"}, "answers is a string"),
])
def test_what_the_page_cannot_write_is_named(run, path, content, problem):
    (run / path).write_text(json.dumps(content) + "\n", encoding="utf-8")
    with pytest.raises(BadRow, match=re.escape(f"{path}") + rf"(:1)?: {re.escape(problem)}"):
        made(run)
    assert not (run / "page").exists()


def test_figures_that_were_not_measured_are_left_out(run):
    results = {"models": {"base": None, "mdpo": {"chair_i_sampled": None}}, "seconds": {"train": None, "total": 3.0},
               "autocheck": {"agreement_initial": None, "agreement_autocheck": 0.75}}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = made(run)
    assert re.findall("<td>([^<]+)</td>", section(page, "What the auto-check moves")) == ["–", "75.0%", "–", "–"]
    assert "3.0 s" in section(page, "Time, machine and versions")


def test_as_a_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "amp_min.report", "--run", tmp_path / "none", "--out", tmp_path / "r"],
                          cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "none/results.json") in done.stderr and os.listdir(tmp_path) == []
