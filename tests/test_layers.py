"""The rules of the house: who may import whom, how heavy an import may be, how long a file and a function may get."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("xlt_ray", "jobs", "serve")  # serve where it exists

# A module imports from its own layer or from below. A package stands for all its modules.
LAYERS = {
    0: "config config_keys errors languages masking plain_yaml sniff",
    1: "bootstrap calibration comparison corpora corpus dimensions gate identify labels lexicon metrics mixture "
    "overlap search_config soundness space tracking_check tracking_uri typology word_alignment",
    2: "adapt agreement artefact batching bert_graph bundle bundled checkpoint collate cpu_training encoder_check "
    "encoders engine evaluate export feed frozen loop network objective onnx_graph pieces precision prepare probe "
    "quantising techniques tracing trimming",
    3: "cluster courier delivery environment fetch few_shot_sweep journal listings measure outbox plots progress "
    "promotion proposals registry report retraining rivals run screening search search_events search_plots "
    "search_records search_report search_summary search_techniques selection serving_artefact similarity storage "
    "tracking train trial tuning",
    4: "cli cli_lexicon cli_promote cli_serving cli_techniques jobs serve",
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules.split()}

# Third-party packages that cost seconds, or belong to one place: who may import them, be it inside a function.
ABOVE_CORPORA = {module for module, layer in LAYER.items() if layer >= 2}
WITHOUT_TORCH = {"artefact", "batching", "pieces"}  # with the late part of `engine`, what a server on CPUs loads
CONFINED = {
    "ray": {"train", "cli", "cluster", "jobs", "screening", "serve", "trial", "tuning"},
    "mlflow": {"registry", "tracking", "serve"},
    "matplotlib": {"report", "plots", "search_plots"},
    "datasets": {"corpora"},
    "onnxruntime": {"agreement", "engine", "export"},
    "onnx": {"export", "onnx_graph", "quantising"},
    "torch": ABOVE_CORPORA - WITHOUT_TORCH,
    "transformers": ABOVE_CORPORA - WITHOUT_TORCH,
    "tokenizers": ABOVE_CORPORA,
    "sentencepiece": {"pieces"},
    "safetensors": ABOVE_CORPORA,
    "sklearn": ABOVE_CORPORA,
}
LAYER_0_MAY_IMPORT = {"pydantic", "yaml", "xlt_ray"} | sys.stdlib_module_names
SLOW = ("torch", "ray", "mlflow", "transformers", "datasets", "matplotlib", "sklearn", "pandas", "scipy", "pyarrow")

# The one import against the direction: delivery needs `tracking`, and with it MLflow, once there is something to send.
LATE = {("delivery", "tracking")}

LINES_A_FILE = 350
LINES_A_FUNCTION = 60
VAGUE_NAMES = {"base", "common", "handler", "handlers", "helper", "helpers", "manager", "misc", "util", "utils"}


@dataclass(frozen=True)
class Import:
    """One import: `name` is dotted and reaches down to the thing imported; `late` ones stand inside a function."""

    file: Path
    line: int
    name: str
    late: bool

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def sources() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str | None:
    """Give the name under which LAYERS knows a module, None for a third party and for `xlt_ray` itself."""
    package, _, inner = module.partition(".")
    if package in PACKAGES[1:]:
        return package
    return inner.split(".")[0] or None if package == "xlt_ray" else None


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, file: Path, late: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if only_for_types(child):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(file, child.lineno, alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file.relative_to(ROOT)}:{child.lineno}: relative import; write the whole name"
            yield from (Import(file, child.lineno, f"{child.module}.{alias.name}", late) for alias in child.names)
        yield from walk(child, file, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


@functools.cache
def imports() -> tuple[Import, ...]:
    return tuple(found for file in sources() for found in walk(ast.parse(file.read_text(encoding="utf-8")), file))


def inner_imports() -> Iterator[tuple[str, str, Import]]:
    """Give (importing room, imported room, import) for imports within the project, from one room to another."""
    for found in imports():
        importing, imported = room(dotted(found.file)), room(found.name)
        if importing and imported and importing != imported and importing in LAYER and imported in LAYER:
            yield importing, imported, found


def test_every_module_has_a_layer() -> None:
    for file in sources():
        name = room(dotted(file))
        assert name is None or name in LAYER, (
            f"{file.relative_to(ROOT)}: in no layer; add {name!r} to LAYERS in tests/test_layers.py, "
            "in the lowest layer its imports allow"
        )


def test_imports_go_down_or_sideways() -> None:
    faults = [
        f"{found.place}: {importing} (layer {LAYER[importing]}) imports {imported} (layer {LAYER[imported]})"
        for importing, imported, found in inner_imports()
        if LAYER[imported] > LAYER[importing]
    ]
    assert not faults, "move what is needed down, or pass it in:\n" + "\n".join(faults)


def test_there_is_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    modules = {dotted(file) for file in sources()}
    for found in imports():
        target = next((name for name in (found.name, found.name.rpartition(".")[0]) if name in modules), None)
        importing = dotted(found.file)
        # a module names its package when it imports a sibling from it; that is no dependence on the package's own code
        if target and not importing.startswith(f"{target}.") and (room(importing), room(target)) not in LATE:
            graph.setdefault(importing, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle, also where it is inside functions: " + " <- ".join(error.args[1]))


def test_late_imports_are_still_needed() -> None:
    found = {(importing, imported) for importing, imported, one in inner_imports() if one.late}
    assert found >= LATE, f"no longer there; take out of LATE: {LATE - found}"


@pytest.mark.parametrize("package", CONFINED)
def test_heavy_packages_stay_in_their_place(package: str) -> None:
    faults = [
        f"{found.place}: {room(dotted(found.file))} imports {package}"
        for found in imports()
        if found.name.split(".")[0] == package and room(dotted(found.file)) not in CONFINED[package]
    ]
    whole = CONFINED[package] >= ABOVE_CORPORA - WITHOUT_TORCH
    home = "layers 2 and above" if whole else ", ".join(sorted(CONFINED[package]))
    assert not faults, f"{package} belongs to {home}:\n" + "\n".join(faults)


def test_layer_0_needs_only_pydantic_and_yaml() -> None:
    faults = [
        f"{found.place}: {found.name}"
        for found in imports()
        if LAYER.get(room(dotted(found.file)) or "") == 0 and found.name.split(".")[0] not in LAYER_0_MAY_IMPORT
    ]
    assert not faults, "\n".join(faults)


def slow_imports(*command: str) -> tuple[list[str], str]:
    """Run a Python command and give the slow packages it loaded, and its standard output."""
    timed = [sys.executable, "-X", "importtime", *command]
    done = subprocess.run(timed, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
    assert "xlt_ray" in loaded
    return sorted(loaded & set(SLOW)), done.stdout


@pytest.mark.parametrize("module", ["xlt_ray", "xlt_ray.config", "xlt_ray.languages", "xlt_ray.cli"])
def test_light_modules_load_nothing_slow(module: str) -> None:
    assert slow_imports("-c", f"import {module}") == ([], "")


def test_help_loads_nothing_slow() -> None:
    slow, shown = slow_imports("-m", "xlt_ray.cli", "--help")
    assert not slow
    assert all(verb in shown for verb in ("train", "tune", "evaluate", "predict", "catalogue"))


def test_reading_a_configuration_loads_nothing_slow() -> None:
    slow, _ = slow_imports("-c", "from xlt_ray import config; config.load('jobs/configs/quickstart.yaml')")
    assert not slow


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_A_FILE, f"over {LINES_A_FILE} lines: give a part of it a file of its own"
    long = [
        f"{node.name}, line {node.lineno}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LINES_A_FUNCTION
    ]
    assert not long, f"over {LINES_A_FUNCTION} lines: {long}"


def test_file_names_say_what_is_inside() -> None:
    vague = [str(file.relative_to(ROOT)) for file in sources() if VAGUE_NAMES & set(file.stem.lower().split("_"))]
    assert not vague, f"name what they do instead: {vague}"


MACHINE_PATH = re.compile(r"(?<![\w.$~{}/*-])/(?:home|root|Users|work|tmp|mnt|media|private/var)/[\w.-]+")


def texts() -> list[Path]:
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".tsv", ".ipynb", ".sh"}
    within = [file for name in (*PACKAGES, "docs", "benchmarks", ".ci") for file in (ROOT / name).rglob("*")]
    written = [file for file in (*ROOT.glob("*"), *within) if file.is_file()]
    return sorted(f for f in written if f.suffix in kinds or f.name in {"Makefile", "run", ".rayignore", ".gitignore"})


def test_no_text_names_a_path_of_one_machine() -> None:
    assert len(texts()) > 20
    faults = [
        f"{file.relative_to(ROOT)}:{number}: {found.group()}"
        for file in texts()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for found in MACHINE_PATH.finditer(line)
    ]
    assert not faults, "write a path relative to the repository, or a place to fill in:\n" + "\n".join(faults)
