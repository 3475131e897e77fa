"""The documents against the disk: the README's tree, its commands and their flags, and what must not be in any file."""

import ast
import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from pipelines.tables.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent
MAX_README_LINES = 200
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))

# Split, so that this file does not contain what it looks for.
MACHINE_PATHS = re.compile(r"(?<![\w.$}])/(?:wo" + r"rk|ro" + r"ot|home/(?!ray/)|far" + r"m|Users)/\w")
REGISTRY_HOSTS = re.compile(r"py" + r"pi\.org|pythonho" + r"sted|npm" + r"js\.(?:org|com)")
SECRETS = re.compile(r"\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY|\bgh[pousr]_[A-Za-z0-9]{30}")


@cache
def repository_files() -> tuple[str, ...]:
    """Every file that belongs to the repository: all but what `.gitignore` leaves out and git's own folder."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    found = []
    for folder, folders, files in os.walk(ROOT):
        prefix = "" if Path(folder) == ROOT else f"{Path(folder).relative_to(ROOT).as_posix()}/"
        folders[:] = [name for name in folders if name != ".git" and not _ignored(f"{prefix}{name}/", patterns)]
        found += [f"{prefix}{name}" for name in files if not _ignored(f"{prefix}{name}", patterns)]
    return tuple(sorted(found))


def _ignored(path: str, patterns: list[str]) -> bool:
    """Whether one of the simple patterns that our `.gitignore` uses matches: `name`, `name/`, `/name/`, with stars."""
    for pattern in patterns:
        if pattern.endswith("/") and not path.endswith("/"):
            continue
        subject = path.rstrip("/") if pattern.startswith("/") else path.rstrip("/").rpartition("/")[2]
        if fnmatch.fnmatchcase(subject, pattern.strip("/")):
            return True
    return False


def test_ignore_patterns_are_read_as_git_reads_them() -> None:
    patterns = [".venv/", "*.pyc", "/data/", "/mlflow.db*"]
    assert _ignored("segcore/x.pyc", patterns)
    assert _ignored("data/", patterns)
    assert _ignored("mlflow.db-wal", patterns)
    assert not _ignored("tests/data/", patterns)
    assert not _ignored("segcore/data.py", patterns)


# --- the tree in the README -------------------------------------------------------------------------------------------


def tree_entries(readme: str) -> tuple[set[str], set[str]]:
    """Files and childless folders that the README's tree names.

    The tree is the code block that starts with `./`. Two spaces of indentation are one folder; a line names one folder
    (`layers/`) or files that belong together (`conv.py norm.py`), and after two spaces or more says what they are.
    """
    block = re.search(r"```text\n\./.*?\n(.*?)```", readme, re.DOTALL)
    assert block, "README.md has no tree: a ```text block whose first line starts with ./"
    parents: list[str] = []
    files: set[str] = set()
    folders: list[str] = []
    for line in block[1].splitlines():
        depth, rest = divmod(len(line) - len(line.lstrip(" ")), 2)
        assert rest == 0, f"odd indentation in the README's tree: {line!r}"
        assert depth <= len(parents), f"no folder above {line!r} in the README's tree"
        del parents[depth:]
        names = re.split(r" {2,}", line.strip(), maxsplit=1)[0].split(" ")
        above = "".join(parents)
        if names[0].endswith("/"):
            assert len(names) == 1, f"one folder per line in the README's tree: {line!r}"
            folders.append(above + names[0])
            parents.append(names[0])
        else:
            files |= {above + name for name in names}
    childless = {folder for folder in folders if not any(name.startswith(folder) for name in files)}
    return files, childless


def test_tree_of_the_readme_is_the_disk() -> None:
    files, childless = tree_entries((ROOT / "README.md").read_text())
    on_disk = {name for name in repository_files() if not name.startswith(tuple(childless))}
    assert not on_disk - files, f"not in the README's tree: {sorted(on_disk - files)}"
    assert not files - on_disk, f"in the README's tree, but not on disk: {sorted(files - on_disk)}"
    for folder in childless:
        assert (ROOT / folder).is_dir(), f"the README's tree names {folder}, which is not there"


def test_only_tests_may_stand_in_the_tree_without_their_files() -> None:
    _, childless = tree_entries((ROOT / "README.md").read_text())
    assert {folder for folder in childless if not folder.startswith("tests/")} == set()


def test_tree_is_parsed_with_folders_groups_and_notes() -> None:
    tree = "x\n```text\n./  root\na/\n  b.py c.py   two\n  d/  folder\n    e.py\nREADME.md   this\nt/   tests\n```\n"
    assert tree_entries(tree) == ({"a/b.py", "a/c.py", "a/d/e.py", "README.md"}, {"t/"})


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < MAX_README_LINES


# --- the commands in the documents ------------------------------------------------------------------------------------


def shell_lines(text: str) -> Iterator[str]:
    """Commands of the ```bash blocks, continued lines joined, comments left out."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                yield command


def job_calls(text: str) -> list[list[str]]:
    """`["train", "camvid.x", "--data", ...]` for every `python jobs/train.py camvid.x --data ...` in `text`."""
    calls = []
    for match in re.finditer(r"python jobs/(\w+)\.py([^\n`]*)", text.replace("\\\n", " ")):
        words = re.sub(r"\s#.*", "", match[2]).split()
        if not {"...", "<"} & set(words):
            calls.append([match[1], *words])
    return calls


def leading_words(call: list[str]) -> tuple[str, ...]:
    """The job and what stands before its first flag: the subcommand or recipe whose help lists the flags.

    A placeholder in capitals (`RECIPE`) is left out.
    """
    first_flag = next((index for index, word in enumerate(call) if word.startswith("-")), len(call))
    return tuple(word for word in call[:first_flag] if re.fullmatch(r"[a-z][\w.]*", word))


def documented_calls() -> list[tuple[str, list[str]]]:
    texts = {name: "\n".join(shell_lines((ROOT / name).read_text())) for name in DOCUMENTS}
    for job in JOBS:
        texts[f"jobs/{job}.py"] = ast.get_docstring(ast.parse((ROOT / "jobs" / f"{job}.py").read_text())) or ""
    return [(origin, call) for origin, text in texts.items() for call in job_calls(text)]


SHOW_HELP = """
import contextlib, io, json, runpy, sys
answers = []
for call in json.loads(sys.argv[1]):
    text = io.StringIO()
    sys.argv = [f"jobs/{call[0]}.py", *call[1:], "--help"]
    sys.path[0] = "jobs"
    try:
        with contextlib.redirect_stdout(text):
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = None
    except SystemExit as end:
        code = end.code
    answers.append([code, text.getvalue()])
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def help_texts() -> dict[tuple[str, ...], str]:
    """`--help` of every job and of every subcommand or recipe in the documents; one process, as imports are slow."""
    wanted = sorted({(job,) for job in JOBS} | {leading_words(call) for _, call in documented_calls()})
    done = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, json.dumps(wanted)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    for call, (code, _) in zip(wanted, answers, strict=True):
        assert code in (0, None), f"python jobs/{call[0]}.py {' '.join(call[1:])} --help ended with {code}"
    return {call: text for call, (_, text) in zip(wanted, answers, strict=True)}


def test_every_job_says_what_it_does(help_texts: dict[tuple[str, ...], str]) -> None:
    assert JOBS
    for job in JOBS:
        text = help_texts[(job,)]
        assert f"python jobs/{job}.py" in text, f"jobs/{job}.py --help shows no command line"
        assert "usage:" in text


def test_documented_jobs_and_flags_exist(help_texts: dict[tuple[str, ...], str]) -> None:
    calls = documented_calls()
    assert calls
    for origin, call in calls:
        assert call[0] in JOBS, f"{origin} calls jobs/{call[0]}.py, which is not there"
        known = set(re.findall(r"--[a-z][\w.-]*", help_texts[leading_words(call)]))
        flags = [word.partition("=")[0] for word in call if word.startswith("--") and word != "--help"]
        unknown = [flag for flag in flags if flag not in known]
        assert not unknown, f"{origin}: python jobs/{' '.join(call)}: no such flags: {unknown}"


def test_readme_shows_every_job() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = {call[0] for call in job_calls(readme)}
    if "make demo" in readme:
        shown.add("demo")
    assert set(JOBS) <= shown


def test_queries_of_the_readme_fit_the_tables(tmp_path: Path) -> None:
    (block,) = re.findall(r"```sql\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for name, schema in SCHEMAS.items():
        folder = tmp_path / "tables" / name / "run_date=2026-11-20"
        folder.mkdir(parents=True)
        pq.write_table(schema.empty_table(), folder / "part-0.parquet")
    queries = [query for query in block.replace("'tables/", f"'{tmp_path}/tables/").split(";") if query.strip()]
    assert queries
    for query in queries:
        assert duckdb.sql(query).fetchall() == []


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in (*DOCUMENTS, ".ci/run"):
        used = set(re.findall(r"(?:^|`)make ([a-z-]+)\b", (ROOT / name).read_text(), re.MULTILINE))
        assert used <= targets, f"{name} names make targets that do not exist: {sorted(used - targets)}"


def test_readme_starts_with_the_two_commands() -> None:
    commands = [line.split("#")[0].strip() for line in shell_lines((ROOT / "README.md").read_text())]
    assert [line for line in commands if line.startswith("make")][:2] == ["make demo", "make test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_links_in_the_documents_lead_somewhere() -> None:
    for name in (*DOCUMENTS, "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}, which is not there"


def test_files_named_in_the_contributing_guide_exist() -> None:
    for name in re.findall(
        r"`((?:segcore|pipelines|jobs|tests|benchmarks|docs)/[\w./-]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    ):
        assert (ROOT / name).exists(), f"CONTRIBUTING.md names {name}, which is not there"


# --- what no file may hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", [MACHINE_PATHS, REGISTRY_HOSTS, SECRETS], ids=["machine paths", "registries", "secrets"]
)
def test_no_file_holds(pattern: re.Pattern[str]) -> None:
    found = []
    for name in repository_files():
        try:
            lines = (ROOT / name).read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{name}:{number}: {line.strip()[:120]}" for number, line in enumerate(lines, 1) if pattern.search(line)
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATHS, "open('/wo" + "rk/main/x')"),
        (MACHINE_PATHS, "cd /ro" + "ot/x"),
        (REGISTRY_HOSTS, "https://py" + "pi.org/simple"),
        (SECRETS, "AKIA" + "A" * 16),
    ],
)
def test_forbidden_text_is_recognised(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


def test_no_file_is_large() -> None:
    large = [name for name in repository_files() if (ROOT / name).stat().st_size > 2**20]
    assert not large, f"above 1 MiB, so no part of a repository: {large}"


def test_pins_cover_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = {re.split(r"[\[>=<]", line)[0].lower().replace("_", "-") for line in [*project["dependencies"], *extras]}
    pins = (ROOT / "constraints.txt").read_text()
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)}
    assert wanted <= pinned, f"no pin in constraints.txt: {sorted(wanted - pinned)}"


def test_every_import_has_a_declared_dependency() -> None:
    """Nothing is imported that only happens to come along with another package.

    What an extra brings may be imported within functions alone: a module must be there without it.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[>=<]", line)[0].lower() for line in project["dependencies"]}
    export = {re.split(r"[\[>=<]", line)[0].lower() for line in project["optional-dependencies"]["export"]}
    paths = [ROOT / name for name in repository_files() if name.endswith(".py")]
    trees = [
        ast.parse(path.read_text())
        for path in paths
        if path.relative_to(ROOT).parts[0] in ("segcore", "pipelines", "jobs")
    ]
    deferred = {id(node) for tree in trees for node in _within_functions(tree)}
    for within, allowed in ((False, declared), (True, declared | export)):
        nodes = [node for tree in trees for node in ast.walk(tree) if (id(node) in deferred) is within]
        undeclared = _undeclared({name.split(".")[0] for node in nodes for name in _modules(node)}, allowed)
        assert not undeclared, f"imported but not among pyproject.toml's dependencies: {sorted(undeclared)}"


def _within_functions(tree: ast.AST) -> Iterator[ast.AST]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return (inner for function in functions for inner in ast.walk(function) if _modules(inner))


def _undeclared(imported: set[str], declared: set[str]) -> set[str]:
    distributions = _distributions()
    foreign = imported - set(sys.stdlib_module_names) - {"segcore", "pipelines"}
    return {name for name in foreign if not declared & {_normal(one) for one in distributions.get(name, [name])}}


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


_distributions = cache(packages_distributions)


def test_an_import_without_a_dependency_is_found() -> None:
    assert _undeclared({"json", "torch", "onnxruntime", "segcore"}, {"torch"}) == {"onnxruntime"}
    tree = ast.parse("import torch\ndef f():\n    import onnxruntime")
    assert [_modules(node) for node in _within_functions(tree) if _modules(node)] == [["onnxruntime"]]


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module or ""]
    return []
