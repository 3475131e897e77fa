"""The layering and the house rules that a machine can check, read from the source with `ast` (nothing is imported).

Each rule is a function from one module to its violations, and stands in `RULES` beside snippets that must break it: a
rule that can no longer fail fails its own test. To add one, write the function and its line in the table.
"""

import ast
import graphlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 500
MAX_JOB_LINES = 40
MAX_FUNCTION_LINES = 60

STORAGE_AND_ENGINES = {"ray", "mlflow", "fsspec", "s3fs", "pyarrow", "pandas", "pipelines", "jobs", "safetensors"}
FILES_AND_NETWORK = {"os", "io", "pathlib", "tempfile", "shutil", "urllib", "requests", "socket", "subprocess", "boto3"}
FILE_METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "open"}
FILE_FUNCTIONS = {
    "torch": {"load", "save"},
    "np": {"load", "save", "savez", "savez_compressed", "loadtxt", "savetxt", "fromfile", "genfromtxt", "memmap"},
    "cv2": {"imread", "imwrite", "VideoCapture"},
}
UNPICKLING_MODULES = {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNPICKLING_CALLS = {
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "torch.jit.load",
        "torch.hub.load",
        "torch.package.PackageImporter",
    ),
    *("pd.read_pickle", "pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load", "mlflow.pytorch.load_model"),
}
OWN_PICKLES = {
    # (folder, call): what this job's own driver sent through Ray, and no file
    ("pipelines/training", "pickle.loads(config['job'])"),
}
BANNED_STEMS = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One Python file: its path from the repository's root and its source."""

    path: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return _parse(self.source)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def name(self) -> str:
        """Dotted name; a package's `__init__.py` is the package."""
        return ".".join(PurePosixPath(self.path).with_suffix("").parts).removesuffix(".__init__")

    @property
    def folder(self) -> str:
        """The first folder, or the empty string for a file at the root."""
        parts = PurePosixPath(self.path).parts
        return parts[0] if len(parts) > 1 else ""

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def installed_modules() -> frozenset[str]:
    return frozenset(packages_distributions())


def repository_modules() -> list[Module]:
    folders = ("segcore", "pipelines", "jobs", "benchmarks", "tests")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [Module(path=path.relative_to(ROOT).as_posix(), source=path.read_text()) for path in paths]


MODULES = repository_modules()


def import_statements(module: Module) -> Iterator[tuple[str, list[str], int]]:
    """Every import anywhere in a module, deferred ones too: the module named, what is taken from it, the line."""
    for node in module.nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((alias.name, [], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield _absolute(node, module), [alias.name for alias in node.names], node.lineno


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    if not module.path.endswith("__init__.py"):
        package = package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module] if node.module else package)


def imported_names(module: Module) -> list[tuple[str, int]]:
    """What a module imports, and where: `from a import b` gives both `a` and `a.b`."""
    return [
        (name, line)
        for base, taken, line in import_statements(module)
        for name in (base, *(f"{base}.{one}" for one in taken))
    ]


def imports_of(module: Module, tops: set[str]) -> list[str]:
    return [f"line {line}: imports {name}" for name, line in imported_names(module) if name.split(".")[0] in tops]


# --- rules: one module -> what is wrong with it -----------------------------------------------------------------------


def segcore_knows_no_engine_and_no_storage(module: Module) -> list[str]:
    return imports_of(module, STORAGE_AND_ENGINES | FILES_AND_NETWORK) if module.folder == "segcore" else []


def segcore_opens_no_file(module: Module) -> list[str]:
    if module.folder != "segcore":
        return []
    wrong = []
    for node in module.nodes(ast.Call):
        assert isinstance(node, ast.Call)
        called = node.func
        if isinstance(called, ast.Name) and called.id == "open":
            wrong.append(f"line {node.lineno}: open()")
        if isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            if called.attr in FILE_METHODS or called.attr in FILE_FUNCTIONS.get(owner, ()):
                wrong.append(f"line {node.lineno}: {ast.unparse(called)}()")
        wrong += [
            f"line {node.lineno}: pretrained={ast.unparse(word.value)} downloads weights"
            for word in node.keywords
            if word.arg == "pretrained" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
        ]
    return wrong


def segcore_reads_no_environment(module: Module) -> list[str]:
    if module.folder != "segcore":
        return []
    names = {"environ", "getenv", "environb"}
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in module.nodes(ast.Attribute, ast.Name)
        if (isinstance(node, ast.Attribute) and node.attr in names) or (isinstance(node, ast.Name) and node.id in names)
    ]


def layers_point_one_way(module: Module) -> list[str]:
    above = {"segcore": {"pipelines", "jobs"}, "pipelines": {"jobs"}, "jobs": set()}
    if module.folder not in above:
        return []
    return imports_of(module, above[module.folder] | {"tests", "benchmarks"})


def only_tracking_imports_mlflow(module: Module) -> list[str]:
    if module.path.startswith("pipelines/tracking/") or module.folder not in ("segcore", "pipelines", "jobs"):
        return []
    return imports_of(module, {"mlflow"})


def networks_do_not_import_each_other(module: Module) -> list[str]:
    path = PurePosixPath(module.path)
    if path.parent.as_posix() != "segcore/models" or module.stem == "__init__":
        return []
    allowed = {f"segcore.models.{name}" for name in ("contract", "heads", "main_loss", "block_codes", "config_checks")}
    return [
        f"line {line}: imports {name}"
        for name, line in imported_names(module)
        if name.startswith("segcore.models") and not any(name == one or name.startswith(f"{one}.") for one in allowed)
    ]


def jobs_are_thin(module: Module) -> list[str]:
    if module.folder != "jobs":
        return []
    lines = len(module.source.splitlines())
    wrong = [f"{lines} lines, at most {MAX_JOB_LINES}"] if lines > MAX_JOB_LINES else []
    allowed = {"pipelines", "tyro", *sys.stdlib_module_names}
    wrong += [
        f"line {line}: imports {name}" for name, line in imported_names(module) if name.split(".")[0] not in allowed
    ]
    if f"python jobs/{module.stem}.py" not in (ast.get_docstring(module.tree) or ""):
        wrong.append(f"the docstring does not show the command line 'python jobs/{module.stem}.py'")
    return wrong


def a_job_is_named_like_its_stage_and_like_nothing_else(module: Module) -> list[str]:
    if module.folder != "jobs":
        return []
    # `python jobs/x.py` puts jobs/ first on sys.path: jobs/token.py would replace the standard library's `token`.
    taken = sys.stdlib_module_names | installed_modules()
    wrong = [f"{module.stem} is an installed or standard module, which this file would shadow"] * (module.stem in taken)
    if f"pipelines.{module.stem}" not in {other.name for other in MODULES}:
        wrong.append(f"there is no pipelines/{module.stem}.py")
    return wrong


def files_are_short(module: Module) -> list[str]:
    lines = len(module.source.splitlines())
    return [f"{lines} lines, at most {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []


def functions_are_short(module: Module) -> list[str]:
    if module.folder not in ("segcore", "pipelines", "jobs"):
        return []
    return [
        f"line {node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES} (docstring apart)"
        for node in module.nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := _code_lines(node)) > MAX_FUNCTION_LINES
    ]


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def nothing_prints_but_jobs_and_the_command_line(module: Module) -> list[str]:
    if module.folder not in ("segcore", "pipelines") or module.path == "pipelines/cli.py":
        return []
    return [
        f"line {node.lineno}: print()"
        for node in module.nodes(ast.Call)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def no_module_is_a_drawer(module: Module) -> list[str]:
    parts = set(PurePosixPath(module.path).with_suffix("").parts)
    return [f"'{name}' says nothing; name the file after what it holds" for name in sorted(parts & BANNED_STEMS)]


def configs_are_frozen(module: Module) -> list[str]:
    if module.folder not in ("segcore", "pipelines"):
        return []
    wrong = []
    for node in module.nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        settings: dict[str, object] | None = None
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Name) and decorator.id == "dataclass":
                settings = {}
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in (
                "dataclass",
                "dataclasses.dataclass",
            ):
                settings = {word.arg or "": getattr(word.value, "value", None) for word in decorator.keywords}
        if settings is None or not (node.name.endswith("Config") or node.name == "Recipe"):
            continue
        missing = [option for option in ("frozen", "kw_only", "slots") if settings.get(option) is not True]
        wrong += [f"line {node.lineno}: {node.name} is a dataclass without {', '.join(missing)}"] if missing else []
    return wrong


FOREIGN_SIGNATURES = {"_call_s3"}  # methods of a library's class that ours stands in for


def nothing_takes_any_keyword(module: Module) -> list[str]:
    if module.folder not in ("segcore", "pipelines", "jobs"):
        return []
    return [
        f"line {node.lineno}: {node.name}(**{node.args.kwarg.arg})"
        for node in module.nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.args.kwarg is not None
        and node.name not in FOREIGN_SIGNATURES
    ]


def public_names_are_documented(module: Module) -> list[str]:
    if module.folder not in ("segcore", "pipelines"):
        return []
    wrong = [] if ast.get_docstring(module.tree) else ["the module has no docstring"]
    return wrong + [
        f"line {node.lineno}: {node.name} has no docstring"
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]


def nothing_is_unpickled(module: Module) -> list[str]:
    """What reads a bucket's files cannot run code; a pickle is an attack as soon as somebody else may write there."""
    if module.folder not in ("segcore", "pipelines", "jobs"):
        return []
    wrong = [
        f"line {line}: imports {name}"
        for name, line in imported_names(module)
        if name.split(".")[0] in UNPICKLING_MODULES or name in {*UNPICKLING_CALLS, "torch.load"}
    ]
    for node in module.nodes(ast.Call):
        assert isinstance(node, ast.Call)
        called, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        allowed = (PurePosixPath(module.path).parent.as_posix(), ast.unparse(node)) in OWN_PICKLES
        if called in UNPICKLING_CALLS and not allowed:
            wrong.append(f"line {node.lineno}: {ast.unparse(node)}")
        if called == "torch.load" and options.get("weights_only") != "True":
            wrong.append(f"line {node.lineno}: torch.load() without weights_only=True")
        if options.get("allow_pickle", "False") != "False":
            wrong.append(f"line {node.lineno}: allow_pickle={options['allow_pickle']}")
        if called == "yaml.load" and options.get("Loader") not in ("yaml.SafeLoader", "yaml.CSafeLoader"):
            wrong.append(f"line {node.lineno}: yaml.load() without SafeLoader")
    return wrong


Rule = Callable[[Module], list[str]]
LONG = "\n".join(["x = 1"] * (MAX_FILE_LINES + 1))
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
JOB = '"""python jobs/train.py"""\n'

RULES: dict[Rule, list[tuple[str, str]]] = {
    # rule: (path, source) pairs, each of which must break it
    segcore_knows_no_engine_and_no_storage: [
        ("segcore/x.py", "import ray"),
        ("segcore/x.py", "def f():\n    from pyarrow import parquet"),
        ("segcore/x.py", "import os.path"),
    ],
    segcore_opens_no_file: [
        ("segcore/x.py", "open('a')"),
        ("segcore/x.py", "torch.load(path)"),
        ("segcore/x.py", "np.savez(path)"),
        ("segcore/x.py", "path.read_bytes()"),
        ("segcore/x.py", "timm.create_model('resnet18', pretrained=wanted)"),
    ],
    segcore_reads_no_environment: [
        ("segcore/x.py", "os.environ['HOME']"),
        ("segcore/x.py", "from os import getenv\ngetenv('HOME')"),
    ],
    layers_point_one_way: [
        ("pipelines/x.py", "from jobs import train"),
        ("segcore/x.py", "def f():\n    import pipelines.storage"),
        ("jobs/x.py", "import tests.conftest"),
    ],
    only_tracking_imports_mlflow: [
        ("pipelines/train.py", "def f():\n    import mlflow.pyfunc"),
        ("pipelines/tracking_too.py", "from mlflow import MlflowClient"),
    ],
    networks_do_not_import_each_other: [
        ("segcore/models/deeplab.py", "from segcore.models.dupsampling import DUpsampling"),
        ("segcore/models/deeplab.py", "from . import dupsampling"),
    ],
    jobs_are_thin: [
        ("jobs/train.py", JOB + "import torch"),
        ("jobs/train.py", JOB + "x = 1\n" * MAX_JOB_LINES),
        ("jobs/train.py", '"""Train."""'),
    ],
    a_job_is_named_like_its_stage_and_like_nothing_else: [
        ("jobs/token.py", ""),
        ("jobs/ray.py", ""),
        ("jobs/foo.py", ""),
    ],
    files_are_short: [("tests/test_x.py", LONG)],
    functions_are_short: [("pipelines/x.py", LONG_FUNCTION)],
    nothing_prints_but_jobs_and_the_command_line: [("pipelines/train.py", "print(1)")],
    no_module_is_a_drawer: [("pipelines/utils.py", ""), ("segcore/common/blocks.py", "")],
    configs_are_frozen: [
        ("pipelines/x.py", "@dataclass\nclass XConfig: ..."),
        ("segcore/x.py", "@dataclass(frozen=True, slots=True)\nclass XConfig: ..."),
    ],
    nothing_takes_any_keyword: [("pipelines/x.py", "def f(**kwargs): ...")],
    nothing_is_unpickled: [
        ("pipelines/x.py", "pickle.loads(storage.read_bytes(uri))"),
        ("pipelines/x.py", "pickle.loads(config['job'])"),
        ("pipelines/x.py", "def f():\n    from pickle import loads"),
        ("pipelines/x.py", "import joblib"),
        ("pipelines/x.py", "from torch import load"),
        ("pipelines/x.py", "torch.load(file)"),
        ("pipelines/x.py", "torch.load(file, weights_only=safe)"),
        ("segcore/x.py", "np.load(file, allow_pickle=True)"),
        ("pipelines/x.py", "yaml.load(text, Loader=yaml.Loader)"),
    ],
    public_names_are_documented: [("segcore/x.py", '"""Doc."""\ndef f(): ...'), ("segcore/x.py", "x = 1")],
}


def report(findings: Iterable[tuple[Module, str]]) -> str:
    return "\n".join(f"{module.path}: {problem}" for module, problem in findings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    findings = [(module, problem) for module in MODULES for problem in rule(module)]
    assert not findings, "\n" + report(findings)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        pytest.param(rule, *pair, id=f"{rule.__name__}-{number}")
        for rule, pairs in RULES.items()
        for number, pair in enumerate(pairs)
    ],
)
def test_rule_can_fail(rule: Rule, path: str, source: str) -> None:
    assert rule(Module(path=path, source=source))


def module_imports(module: Module, known: set[str]) -> set[str]:
    """Modules among `known` that `module` imports: `from a import b` is `a.b` where that is a module, otherwise `a`."""
    found = {
        f"{base}.{one}" if f"{base}.{one}" in known else base
        for base, taken, _ in import_statements(module)
        for one in taken or [""]
    }
    return found & known


def import_cycle(modules: list[Module]) -> list[str]:
    """One cycle of imports among `modules`, deferred and type-checking imports included, or an empty list."""
    known = {module.name for module in modules}
    graph = {module.name: module_imports(module, known) - {module.name} for module in modules}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others() -> None:
    modules = [module for module in MODULES if module.folder in ("segcore", "pipelines", "jobs")]
    cycle = import_cycle(modules)
    assert not cycle, " imports ".join(reversed(cycle))


def test_import_cycle_is_found_even_when_deferred() -> None:
    first = Module(path="pipelines/a.py", source="from pipelines import b")
    second = Module(path="pipelines/b.py", source="def f():\n    from pipelines.c import x")
    third = Module(path="pipelines/c.py", source="import pipelines.a")
    assert import_cycle([first, second, third])
    assert not import_cycle([first, second])


def test_a_package_that_lists_its_modules_is_no_cycle() -> None:
    package = Module(path="pipelines/d/__init__.py", source="from pipelines.d import one")
    one = Module(path="pipelines/d/one.py", source="from . import two")
    two = Module(path="pipelines/d/two.py", source="")
    assert not import_cycle([package, one, two])
    back = Module(path="pipelines/d/two.py", source="from pipelines.d import TABLE")
    assert import_cycle([package, one, back])


def test_every_stage_has_a_test_of_its_name() -> None:
    """Beside the formats in tests/pipelines, or above them where it chains other stages (the demo)."""
    stages = [module.stem for module in MODULES if module.folder == "jobs"]
    assert stages
    tests = {module.path for module in MODULES if module.folder == "tests"}
    missing = [stage for stage in stages if not {f"tests/pipelines/test_{stage}.py", f"tests/test_{stage}.py"} & tests]
    assert not missing, f"no tests/pipelines/test_<stage>.py for {', '.join(missing)}"
