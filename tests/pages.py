"""The tutorial's pages and the code, held together: what a page takes from elsewhere is taken anew, and its blocks are run.

    python tests/pages.py                         which pages are stale
    python tests/pages.py --update                quoted code, figures in the prose, help texts and tables from their sources
    python tests/pages.py --update --run runs/demo    and the outputs of all commands, from a finished run

A fenced block obeys the HTML comment on the line above it:
    quote: FILE NAME            a verbatim run of lines of a function, class, method or top-level name (or `docstring`)
    skip: reason                a command that is not run here
    output: exact               what the block before prints, to the letter
    output: sample, …           the same, but it depends on the run: not compared
    output: help train          the help text of train.py (of a module: help amp_min.evaluate)
    output: table               the table of results/demo.json
    equation: TAG | FILES       the tag stands in the block and in every file
Without a comment, sh and python blocks run, page by page, in a folder that looks like the repository's root. In the prose,
`<!-- value: EXPRESSION FORMAT -->` stands before a number and `<!-- holds: EXPRESSION -->` beside a claim; the names in an
expression are those of the files in results/, `figures` is tutorial/pictures/figures.json, and over(study, row, key) a mean.
"""

import argparse
import ast
import contextlib
import datetime
import io
import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from amp_min.support import script  # noqa: E402

BLOCK = re.compile(r"(?:^<!-- (?P<rule>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
VALUE = re.compile(r"<!-- value: (?P<expression>[^>]+?) (?P<format>\S+) -->(?P<shown>[-−+]?[\d.,]*\d%?)?")
HOLDS = re.compile(r"<!-- holds: (?P<claim>.+?) -->")
TABLE = re.compile(r"<!-- (table: [^\n]+) -->\n.*?<!-- end -->", re.S)
KINDS = ("quote", "skip", "output", "equation")


class Stale(Exception):
    """A page cannot be refreshed without a person."""


class Block(NamedTuple):
    kind: str           # quote, skip, output, equation, or "" for a block without a rule
    argument: str
    language: str
    body: str
    line: int           # of the fence, from 1


def pages():
    """The tutorial in English: its blocks are run. The Chinese first pages repeat commands, so they are refreshed only."""
    return sorted(path for path in (ROOT / "tutorial").glob("*.md") if "zh-CN" not in path.name)


def translations():
    return [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "tutorial/README.zh-CN.md"]


def results_tables():
    """The tables of README and its translation, from results/: {name of the table: its lines}."""
    from amp_min.experiments import studies, tables
    found = [json.loads(path.read_text(encoding="utf-8")) for name in studies.STUDIES
             if (path := ROOT / f"results/{name}.json").is_file()]
    return {"table: results/demo.json": table().rstrip("\n"),
            "table: results of experiments": tables.summary(found).replace("](", "](results/")}


def as_block(match):
    kind, _, argument = (match["rule"] or "").partition(": ")
    return Block(kind, argument, match["language"], match["body"], match.string.count("\n", 0, match.start("language")) + 1)


def blocks(text):
    """The fenced blocks of a page, in order; Stale for an unknown rule or an unpaired fence."""
    found = [as_block(match) for match in BLOCK.finditer(text)]
    if 2 * len(found) != len(re.findall(r"^\s*```", text, re.M)):
        raise Stale("a fence is indented, has no end or no plain language")
    for block in found:
        if block.kind not in ("", *KINDS):
            raise Stale(f"line {block.line}: the comment above the block is none of {', '.join(KINDS)}")
    return found


# ---- what is taken from elsewhere ----

def section(path, name):
    """The source lines of a function, class, method ("Run.__call__") or top-level name; of `docstring`, the module's text."""
    source = (ROOT / path).read_text(encoding="utf-8")
    node = ast.parse(source)
    if name == "docstring":
        return node.body[0].value.value.strip("\n") + "\n"
    for part in name.split("."):
        named = {}
        for child in node.body:
            for target in getattr(child, "targets", [getattr(child, "target", None)]):
                named[getattr(target, "id", None)] = child
            named[getattr(child, "name", None)] = child
        if part not in named:
            raise Stale(f"{path} has no {name}")
        node = named[part]
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    return "".join(source.splitlines(keepends=True)[first - 1:node.end_lineno])


def quoted(path, name, body):
    """The block as it should be: unchanged when it is a run of the section's lines, else refreshed between its ends."""
    source = section(path, name)
    if not body.strip():
        return source
    lines, have = source.splitlines(), body.splitlines()
    runs = [lines[start:end + 1] for start, line in enumerate(lines) if line == have[0]
            for end in range(start, len(lines)) if lines[end] == have[-1]]
    if not runs:
        raise Stale(f"{path} {name} has no longer the lines that the quote begins and ends with; quote it anew")
    return "\n".join(min(runs, key=lambda run: (run != have, abs(len(run) - len(have))))) + "\n"


class Dots(dict):
    """JSON whose keys are attributes, too: demo.models.mdpo."""
    def __getattr__(self, key):
        return self[key]


def over(study, row, key):
    """A figure's mean over the seeds of one row of a study."""
    return statistics.mean(seed[key] for seed in study.rows[row].seeds)


def evaluate(expression):
    """An expression over results/*.json and tutorial/pictures/figures.json."""
    files = [*ROOT.glob("results/*.json"), ROOT / "tutorial/pictures/figures.json"]
    names = {path.stem: json.loads(path.read_text(encoding="utf-8"), object_hook=Dots) for path in files if path.stem in expression}
    return eval(expression, names | {"over": over})


def help_text(name):
    os.environ["COLUMNS"] = "110"                         # argparse breaks its lines by the terminal's width
    return command_in_process(script.module_of(name).main, ["--help"])


def table():
    from amp_min import demo
    return demo.table(json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))) + "\n"


def fresh(text):
    """The page with its quotes, values, help texts and tables as their sources have them now."""
    def value(match):
        return match[0][:len(match[0]) - len(match["shown"] or "")] + format(evaluate(match["expression"]), match["format"])

    def block(match):
        kind, argument, language, body, _ = as_block(match)
        if kind == "quote":
            body = quoted(*argument.split(), body)
        if kind == "output" and argument.startswith("help "):
            body = help_text(argument.removeprefix("help "))
        if kind == "output" and argument == "table":
            body = table()
        return match[0][:match.start("body") - match.start()] + body + "```"

    # A Chinese page has the README's tables of results as they stand there.
    tables = results_tables() if TABLE.search(text) else {}
    filled = lambda match: f"<!-- {match[1]} -->\n{tables[match[1]]}\n<!-- end -->"
    return TABLE.sub(lambda match: filled(match) if match[1] in tables else match[0], BLOCK.sub(block, VALUE.sub(value, text)))


def false_claims(text):
    return [match["claim"] for match in HOLDS.finditer(text) if not evaluate(match["claim"])]


# ---- running a page ----

def desk(folder, run):
    """Make `folder` look like the repository's root, with a finished run as its runs/demo."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git", ".venv"):
            (folder / path.name).symlink_to(path)
    (folder / "runs").mkdir()
    (folder / "runs/demo").symlink_to(Path(run).resolve())
    return folder


def command_in_process(main, argv):
    """What main(argv) prints. A process of its own would spend eight seconds on imports."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main(argv)
        except SystemExit as stopped:                      # --help
            if stopped.code:
                raise
    return printed.getvalue()


def run_line(line):
    """One shell command: this project's own in this process, up to the first pipe; everything else by bash."""
    first, pipe, rest = line.partition(" | ")
    words, printed = shlex.split(first, comments=True), None
    if words[:1] == ["python"]:
        name, argv = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
        here = ROOT / name.replace(".", "/")
        if here.with_suffix(".py").is_file() or (here / "__main__.py").is_file():
            printed, line = command_in_process(script.module_of(name).main, argv), rest
    if printed is None or pipe:
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], input=printed, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            raise Stale(f"{line}: exit status {done.returncode}: {done.stderr}")
        printed = done.stdout
    return printed


def run_block(block, namespace, page):
    """What the block prints."""
    if block.language == "sh":
        lines = block.body.replace("\\\n", " ").splitlines()
        return "".join(run_line(line) for line in lines if line.strip() and not line.startswith("#"))
    printed = io.StringIO()
    code = compile("\n" * block.line + block.body, str(page), "exec")          # tracebacks name the page's own lines
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def runs_here(block):
    return block.language in ("sh", "python") and block.kind == ""


def run_page(page, text, folder):
    """Run a page's blocks in `folder`: a list of (block, what it printed, or None where it does not run)."""
    namespace = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        return [(block, run_block(block, namespace, page) if runs_here(block) else None) for block in blocks(text)]


def with_outputs(text, outputs):
    """The page with the outputs of a run in place of its own.  outputs: from run_page."""
    before, machine = iter([None, *(printed for _, printed in outputs)]), platform.processor() or platform.machine()
    made_by = f"output: sample, {machine}, {multiprocessing.cpu_count()} cores, {datetime.date.today()}"

    def block(match):
        kind, argument, language, body, _ = as_block(match)
        printed = next(before)
        if kind == "output" and argument.startswith(("exact", "sample")) and printed is not None:
            rule = made_by if argument.startswith("sample") else match["rule"]
            return f"<!-- {rule} -->\n```text\n{printed}```"
        return match[0]

    return BLOCK.sub(block, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write what is stale")
    parser.add_argument("--run", help="a finished run: take the outputs of all commands from it")
    parser.add_argument("--page", default="", help="only pages whose name contains this")
    options = parser.parse_args()
    for page in [*pages(), *translations()]:
        text = page.read_text(encoding="utf-8")
        if options.page not in page.name:
            continue
        try:
            new = fresh(text)
            if options.run and page in pages():
                with tempfile.TemporaryDirectory() as folder:
                    new = with_outputs(new, run_page(page, new, desk(Path(folder), options.run)))
            notes = [f"no longer true: {claim}" for claim in false_claims(new)]
        except (Stale, LookupError, NameError, StopIteration) as error:       # a study that is not there yet
            new, notes = text, [f"cannot be refreshed: {error}"]
        if options.update and new != text:
            page.write_text(new, encoding="utf-8")
        print(f"{page.name}: {'; '.join(['fresh' if new == text else 'updated' if options.update else 'stale', *notes])}")


if __name__ == "__main__":
    main()
