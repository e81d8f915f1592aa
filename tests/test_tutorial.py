"""The tutorial cannot drift from the code: quotes, figures, outputs and links are compared, and every block is run.

To mend a stale page: python tests/pages.py --update
"""

import difflib
import json
import re
import xml.dom.minidom
from pathlib import Path

import pytest
from pages import (
    ROOT,
    VALUE,
    Stale,
    blocks,
    desk,
    evaluate,
    false_claims,
    fresh,
    pages,
    quoted,
    run_page,
    runs_here,
    section,
    with_outputs,
)

from amp_min.report import figures
from tutorial import diagrams

PAGES = {page.name: page.read_text(encoding="utf-8") for page in pages()}
CHAPTERS = [name for name in PAGES if name[0].isdigit()]
page = pytest.mark.parametrize("name", PAGES)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def compare(old, new, mend):
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), "the page", "its source", lineterm="")
    assert old == new, f"\n{chr(10).join(diff)}\n{mend}"


@pytest.fixture(scope="module")
def place(tiny_run, tmp_path_factory):
    return desk(tmp_path_factory.mktemp("desk"), tiny_run[0])


# ---- each page ----

@page
def test_what_is_taken_from_elsewhere_is_fresh(name):
    compare(PAGES[name], fresh(PAGES[name]), "run: python tests/pages.py --update")
    assert false_claims(PAGES[name]) == []


@page
def test_every_block_has_a_rule(name):
    before = None
    for block in blocks(PAGES[name]):
        where = f"{name}:{block.line}"
        assert block.language, f"{where}: a block needs a language"
        assert block.kind != "skip" or len(block.argument.split()) >= 3, f"{where}: skip needs a reason"
        assert block.language != "math" or block.kind == "equation", f"{where}: an equation needs its tag and files"
        if block.kind == "output":
            assert block.argument.split(",")[0].split()[0] in ("exact", "sample", "help", "table"), where
            if block.argument.startswith(("exact", "sample")):
                assert before and before.language in ("sh", "python"), f"{where}: an output follows its command"
                assert runs_here(before) or block.argument.startswith("sample"), f"{where}: a skipped block has no exact output"
        before = block


@page
def test_blocks_run(name, place):
    text = PAGES[name]
    outputs = run_page(name, text, place)
    should = [block for block in blocks(text) if block.language in ("sh", "python") and block.kind not in ("quote", "skip")]
    assert sum(printed is not None for _, printed in outputs) == len(should)
    for (before, printed), (block, _) in zip(outputs, outputs[1:]):
        if block.kind == "output" and block.argument == "exact":
            compare(block.body, printed, f"{name}:{block.line}: paste it, or run: python tests/pages.py --update --run runs/demo")


@page
def test_equations_stand_in_code_and_test(name):
    for block in blocks(PAGES[name]):
        if block.kind == "equation":
            tag, files = block.argument.split(" | ")
            assert tag in block.body, f"{name}:{block.line}: {tag} is not in the equation"
            for file in files.split():
                assert tag in (ROOT / file).read_text(encoding="utf-8"), f"{name}:{block.line}: {tag} is not in {file}"
            assert any(file.startswith("tests/") for file in files.split()), f"{name}:{block.line}: name the test, too"


def anchors(path):
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@page
def test_links_and_files_exist(name):
    folder = ROOT / "tutorial"
    prose = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.M | re.S)
    for image, words, target in LINK.findall(prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        path = (folder / path) if path else folder / name
        assert path.exists(), f"{name}: {target} is not there"
        assert not anchor or anchor in anchors(path), f"{name}: {path.name} has no heading for #{anchor}"
        assert not image or len(words) > 30, f"{name}: say in words what {target} shows"
    for path in re.findall(r"`((?:amp_min|tests|tutorial|results)/[\w./-]+)`", prose):
        assert "NN" in path or (ROOT / path).exists(), f"{name}: there is no {path}"      # exNN_name.py: any exercise


@page
def test_pages_are_short(name):
    assert PAGES[name].count("\n") < (400 if name == "glossary.md" else 200)


# ---- the tutorial as a whole ----

def test_chapters_follow_one_another():
    for name, following in zip(CHAPTERS, CHAPTERS[1:]):
        assert f"]({following})" in PAGES[name].split("## Next")[1], f"{name} does not lead to {following}"
        assert f"]({name})" in PAGES["README.md"]


def test_glossary_explains_every_logged_figure(tiny_run):
    terms = set(re.findall(r"^### (?:`([^`]+)`|(.+))$", PAGES["glossary.md"], re.M))
    terms = {code or words for code, words in terms}
    log = json.loads((tiny_run[0] / "models/mdpo/log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    found = json.loads((tiny_run[0] / "results.json").read_text(encoding="utf-8"))
    for key in [*log, *found["models"]["base"], *found["autocheck"]]:
        assert key in terms, f"glossary.md has no entry ### `{key}`"


def test_pictures_are_those_that_figures_draws(tiny_run, tmp_path):
    stand_in = str(tiny_run[0] / "models/mdpo")                          # what is without the penalty there does not matter
    figures.main(["--run", str(tiny_run[0]), "--out", str(tmp_path), "--no-penalty", stand_in])
    drawn = {path.name for path in tmp_path.iterdir()}
    for name, picture in diagrams.draw().items():
        compare((ROOT / "tutorial/pictures" / name).read_text(encoding="utf-8"), picture, "run: python -m tutorial.diagrams --out tutorial/pictures")
        (tmp_path / name).write_text(picture, encoding="utf-8")
    drawn |= set(diagrams.draw())
    assert drawn == {path.name for path in (ROOT / "tutorial/pictures").iterdir()}
    for path in tmp_path.glob("*.svg"):
        picture = xml.dom.minidom.parse(str(path)).documentElement
        assert float(picture.getAttribute("width")) <= 800 and picture.getElementsByTagName("title")
    used = {Path(target).name for text in PAGES.values() for image, _, target in LINK.findall(text) if image}
    assert used <= drawn


# In reading order: the page on which a word first stands, where it is bold because it is explained there.
TERMS = {"hallucination": "README", "multimodal model": "README", "supervised training": "README", "RLHF": "README",
         "KL divergence": "README", "DPO": "README", "policy": "README", "reference": "README", "standard answer": "README",
         "MDPO": "README", "penalty": "README", "oracle": "01", "CHAIR": "01", "coverage": "01", "greedy": "01",
         "sampled": "01", "beam search": "01", "POPE": "06", "micro-batches": "08", "precision": "05", "interval": "05", "F1": "10",
         "yes-ratio": "10", "LoRA": "11"}


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_explained_where_it_first_stands(term):
    """Defining it later, or using it earlier, fails. The way through on the first page names what comes, and is left out."""
    home = next(name for name in ["README.md", *CHAPTERS] if name.startswith(TERMS[term]))
    assert re.search(rf"\*\*{term}\b[^*]*\*\*", PAGES[home], re.I), f"{home} does not explain **{term}**"
    for name in ["README.md", *CHAPTERS]:
        if name == home:
            break
        prose = re.sub(r"^```.*?^```$|<!--.*?-->|!?\[[^\]]*\]\([^)]*\)|^\|.*?$|`[^`]*`", "", PAGES[name], flags=re.M | re.S)
        assert not re.search(rf"(?<![\w-]){term}(?![\w-])", prose), f"{name} uses {term}, which {home} explains"


# ---- two languages ----

TABLE = re.compile(r"<!-- (table: [^\n]+) -->\n(.*?)\n<!-- end -->", re.S)


def skeleton(text):
    """What two languages must share: heading levels, pictures, commands, the tables of results, and rows of other tables."""
    return {"headings": [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)],
            "commands": [re.sub(r"\s+#.*", "", line) for block in blocks(text) if block.language == "sh" for line in block.body.splitlines()],
            "results": TABLE.findall(text),
            "figures": [(match["expression"], match["format"], match["shown"]) for match in VALUE.finditer(text)],
            "pictures": [target for image, _, target in LINK.findall(text) if image],
            "numbers": sorted(re.findall(r"\d+\.\d+", re.sub(r"^```.*?^```$|^\|.*?$|\]\([^)]*\)|<!--.*?-->", "", text, flags=re.M | re.S))),
            "files": re.findall(r"^\| (`[^`]+`) \|", text, re.M)}


@pytest.mark.parametrize("folder", ["", "tutorial/"])
def test_both_languages_say_the_same(folder):
    english, chinese = ((ROOT / f"{folder}{name}").read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert skeleton(english) == skeleton(chinese)
    for _, _, target in LINK.findall(chinese):
        assert "://" in target or (ROOT / folder / target.partition("#")[0]).exists(), f"{target} is not there"
    compare(chinese, fresh(chinese), "run: python tests/pages.py --update")


# ---- the checks themselves ----

def test_a_stale_page_is_found():
    good = section("amp_min/losses.py", "round_weights")
    assert quoted("amp_min/losses.py", "round_weights", good) == quoted("amp_min/losses.py", "round_weights", "\n") == good
    head, *_, last = good.splitlines()
    assert quoted("amp_min/losses.py", "round_weights", f"{head}\n    changed\n{last}\n") == good
    assert quoted("amp_min/losses.py", "round_weights", f"{last}\n") == f"{last}\n"
    for wrong in ("    not there\n", f"{last}\n{head}\n"):
        with pytest.raises(Stale):
            quoted("amp_min/losses.py", "round_weights", wrong)
    share = format(evaluate("demo.autocheck.agreement_initial"), ".1%")
    shown = "it is <!-- value: demo.autocheck.agreement_initial .1% -->{}."
    assert fresh(shown.format("99.9%")) == fresh(shown.format("")) == shown.format(share)
    assert false_claims("<!-- holds: demo.seed == 0 --> <!-- holds: demo.seed == 1 -->") == ["demo.seed == 1"]


def test_blocks_are_run_in_order_and_outputs_are_put_in(tmp_path):
    text = ("```python\nx = 2\n```\n\n```python\nprint(x + 1)\n```\n\n<!-- output: exact -->\n```text\n4\n```\n\n<!-- skip: never ends -->\n"
            "```sh\nyes\n```\n\n```sh\n# a comment\necho a \\\n  b | tr a c\n```\n\n<!-- output: sample, x -->\n```text\n```\n")
    outputs = run_page("page", text, tmp_path)
    assert [printed for _, printed in outputs] == ["", "3\n", None, None, "c b\n", None]
    new = with_outputs(text, outputs)
    assert "```text\n3\n```" in new and "```text\nc b\n```" in new and "yes" in new
    for wrong in ("```python\nraise KeyError(1)\n```\n", "```sh\nfalse\n```\n", "```sh\npython train.py --nonsense\n```\n"):
        with pytest.raises((KeyError, Stale, SystemExit)):
            run_page("page", wrong, tmp_path)
    for wrong in ("```python\n", " ```python\n ```\n", "<!-- qoute: a b -->\n```python\n```\n"):
        with pytest.raises(Stale):
            blocks(wrong)
