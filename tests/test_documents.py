"""What the documents say is true: commands and Python run, figures are stored, links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lulc import config
from lulc.cli.commandline import parser_for
from lulc.labels.schemes import load_scheme

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

CONFIGS = {
    "preprocess": config.PreprocessConfig,
    "train_model": config.TrainConfig,
    "make_classifications": config.ClassifyConfig,
    "evaluate_classifications": config.EvaluateConfig,
}

FURTHER = {
    "serve_map": config.ServeConfig,
    "export_map": config.ExportConfig,
    "export_model": config.ExportModelConfig,
    "import_model": config.ImportModelConfig,
    "reproduce_map": config.ReproduceConfig,
}

PAGES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ["README.md", *PAGES]

MEASURED = ("accuracy", "performance", "scaling", "reliability", "real-scenes")
"""Pages of measurements; their history is in benchmarks/log."""

GENERATED = {
    "index.md", "changes.md", "contributing.md", "security.md", "citation.md", "license.md",
    "reference/commands.md",
}  # fmt: skip
"""Pages that docs/hooks.py makes of other files, beside the notebooks."""


def blocks(document: str, *languages: str) -> list[str]:
    """Contents of a document's fenced blocks in one of these languages."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [content for language, content in found if language in languages]


def commands_in(document: str) -> list[list[str]]:
    """Command lines of the toolkit in a document, continued lines joined."""
    text = "\n".join(blocks(document, "", "text", "bash", "console", "sh"))
    called = r"\s*(?:\$ )?(?:\w+=\S+ |srun )*(?:(?:python )?(\w+)\.py|lulc-([\w-]+)) ([^>]+)"
    found = [m for m in (re.match(called, line) for line in text.replace("\\\n", " ").splitlines()) if m]
    named = [((m[1] or m[2]).replace("-", "_"), m[3]) for m in found]
    return [[name, *shlex.split(rest, comments=True)] for name, rest in named if name in CONFIGS | FURTHER]


def prose(document: str) -> str:
    """A document without its fenced blocks."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_the_first_page_shows_each_of_the_four_commands() -> None:
    assert {line[0] for line in commands_in("README.md")} >= set(CONFIGS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_parse(document: str) -> None:
    for name, *arguments in commands_in(document):
        if "--print-completion" not in arguments:
            parser = parser_for((CONFIGS | FURTHER)[name], "", lenient="--config" in arguments)
            try:
                parser.parse_intermixed_args(arguments)
            except SystemExit as end:
                # As of an option that prints and stops; a wrong command line ends with 2.
                assert end.code == 0, arguments


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_of_codes_in_documents_are_schemes(document: str, tmp_path: Path) -> None:
    for table in blocks(document, "text"):
        if table.startswith("code,class,name,color\n"):
            (tmp_path / "table.csv").write_text(table, encoding="utf-8")
            assert len(load_scheme(str(tmp_path / "table.csv")).legend)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_page_is_short(document: str) -> None:
    words = [word for word in prose(document).split() if re.search(r"\w", word)]
    assert len(words) <= (900 if Path(document).stem in MEASURED else 1200)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_paragraph_is_longer_than_six_lines(document: str) -> None:
    for paragraph in re.split(r"\n\s*\n", prose(document)):
        lines = paragraph.strip().splitlines()
        if not re.match(r"[|>#:-]|\d+\. ", lines[0] if lines else "|"):
            assert len(lines) <= 6, lines[0]
            assert max(map(len, lines)) <= 120, lines


@pytest.mark.parametrize("document", [page for page in PAGES if page != "docs/index.md"])
def test_a_page_says_first_what_its_reader_will_be_able_to_do(document: str) -> None:
    heading, _, rest = (ROOT / document).read_text(encoding="utf-8").partition("\n\n")
    assert re.fullmatch(r"# [^\n]+", heading)
    assert rest.startswith("After this page you ")


def test_every_page_of_the_documentation_is_in_its_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in PAGES if f": {page.removeprefix('docs/')}" not in text] == []


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, "CONTRIBUTING.md", "SECURITY.md", "CHANGES.md", "jobs/README.md", "weights/README.md",
     *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "benchmarks" / "log").glob("*.md")))],
)  # fmt: skip
def test_links_between_documents_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    made = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")} | GENERATED
    for target in re.findall(r"\]\(([^)#\s]+)", prose(document)):
        path = (folder / target).resolve()
        generated = path.is_relative_to(ROOT / "docs") and str(path.relative_to(ROOT / "docs")) in made
        assert "://" in target or generated or path.exists(), target


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in (*DOCUMENTS, "CONTRIBUTING.md", ".ci/run"):
        text = (ROOT / document).read_text(encoding="utf-8")
        named = set(re.findall(r"^\s*(?:\$ )?make ([a-z-]+)", text, re.MULTILINE))
        assert named | set(re.findall(r"`make ([a-z-]+)", text)) <= targets, document


@pytest.mark.parametrize("document", ["README.md", "docs/accuracy.md"])
def test_figures_with_a_spread_are_those_that_are_stored(document: str) -> None:
    shown = re.findall(r"\d\.\d{3} ± \d\.\d{3}", prose(document).replace("\N{NO-BREAK SPACE}", " "))
    stored = "".join((RESULTS / f"{name}.md").read_text("utf-8") for name in ("ablation", "real-scenes"))
    assert shown
    assert [figure for figure in shown if figure not in stored] == []


def test_seconds_of_a_map_are_those_that_are_stored() -> None:
    rows = json.loads((RESULTS / "classify-4096.json").read_text(encoding="utf-8"))["rows"]
    stored = {f"{row['seconds']:.1f}" for row in rows}
    table = re.search(r"^\| \| seconds \|.*?\n\n", prose("docs/performance.md"), re.DOTALL | re.MULTILINE)
    assert table
    shown = {line.split("|")[2].strip() for line in table[0].strip().splitlines()[2:]}
    assert len(shown) >= 3
    assert shown <= stored


@pytest.mark.parametrize("document", ["README.md", "docs/performance.md"])
def test_processor_seconds_of_a_map_are_those_of_the_log(document: str) -> None:
    log = (ROOT / "benchmarks" / "log" / "lean-engines.md").read_text(encoding="utf-8")
    stored = {row.split("|")[-2].split()[0] for row in re.findall(r"^\| `openvino.*", log, re.MULTILINE)}
    rows = re.findall(r"^\| .*`.*openvino.*\| (\d+\.\d) \|$", prose(document), re.MULTILINE)
    assert len(rows) == len(stored)
    assert set(rows) == stored


def test_costs_of_a_cluster_are_those_that_are_stored() -> None:
    stored = (RESULTS / "scale.md").read_text(encoding="utf-8")
    shown = re.findall(r"\b(\d+\.\d{3}) (?:s|ms)\b|(\+\d\.\d%)", prose("docs/scaling.md"))
    assert shown
    assert [a or b for a, b in shown if f" {a or b} " not in stored] == []


def runnable() -> list[list[str]]:
    """Commands of the documents that need nothing but the demonstration, and take seconds on its scene."""
    found = []
    for document in DOCUMENTS:
        for name, *arguments in commands_in(document):
            files = [
                word for word in arguments if "/" in word or re.fullmatch(r"\.[a-z].*", Path(word).suffix)
            ]
            long = name in {"train_model", "serve_map"} and "--print-config" not in arguments
            if files and all(word.startswith("demo/") for word in files) and not long:
                repeat = ["--overwrite"] * ("overwrite" in fields_of(name) and "--overwrite" not in arguments)
                line = [name, *arguments, *repeat]
                found += [] if line in found else [line]
    return found


def fields_of(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields((CONFIGS | FURTHER)[name])}


@pytest.fixture(scope="module")
def workplace(demonstration: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a demonstration of its own, which commands may change."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(demonstration[0], folder / "demo")
    return folder


@pytest.mark.documents
@pytest.mark.parametrize("line", runnable(), ids=" ".join)
def test_commands_in_documents_run(
    line: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    main = importlib.import_module(f"lulc.cli.{line[0]}").main
    assert main(line[1:]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_in_documents_is_python_and_imports_what_exists(document: str) -> None:
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.documents
@pytest.mark.parametrize("document", ["README.md", "docs/howto/python.md"])
def test_python_in_documents_runs_on_the_demonstration(
    document: str, workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "demo", tmp_path / "demo")
    code = re.sub(
        r'"epochs": \d+, "steps": \d+', '"epochs": 1, "steps": 2', "\n".join(blocks(document, "python"))
    )
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert (tmp_path / "map.tif").exists()
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "SECURITY.md", "jobs/README.md"])
def test_files_of_the_project_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|benchmarks|docs|jobs|lulc|packaging|weights)/[\w./-]+\w)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
