"""Who may import whom, as docs/architecture.md draws it, read from the source by its syntax tree."""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bundles import write_planted
from tests.encoders import ENCODED

ROOT = Path(__file__).parents[2]
PACKAGES = ("recsys", "cluster", "serve")

# What of recsys each of its rooms may import, itself apart. The bare package holds only the version.
DATA_TYPES = {"recsys.data", "recsys.data.schema", "recsys.data.histories", "recsys.data.windows"}
ROOMS = {
    "recsys.errors": set(),
    "recsys.config": {"recsys.errors"},
    "recsys.data": {"recsys.errors", "recsys.config"},
    "recsys.models": {"recsys.errors", "recsys.config", "recsys.data"},
    "recsys.training": {"recsys.errors", "recsys.config", "recsys.data", "recsys.models"},
    "recsys.evaluation": {"recsys.errors", "recsys.config", "recsys.data", "recsys.models", "recsys.training"},
    "recsys.bundle": {"recsys.errors", "recsys.config"},
    "recsys.retrieval": {"recsys.errors", "recsys.config", "recsys.bundle"},
}
OF_DATA_ONLY_TYPES = {"recsys.bundle", "recsys.retrieval"}
SERVE_MAY = {"recsys.errors", "recsys.bundle", "recsys.retrieval"}
FRAMEWORKS = {"ray", "cluster", "serve", "fastapi", "starlette", "uvicorn"}

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "torch.jit.load", "torch.export.load", "np.load_pickle", "pd.read_pickle"}


class Import(NamedTuple):
    """One import statement: what it names, where, and whether it stands inside a function."""

    target: str
    line: int
    inside: bool


def modules() -> dict[str, Path]:
    """Every module of our packages, and train.py, by dotted name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    named = {_name(path): path for path in paths}
    train = ROOT / "train.py"
    return named | ({"train": train} if train.exists() else {})


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a source, relative ones made absolute. `from a import b` names a.b."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield from (Import(f"{base}.{alias.name}", node.lineno, id(node) in inside) for alias in node.names)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, node.module] if node.module else parts)


MODULES = modules()
IMPORTS = {name: list(imports(path.read_text("utf-8"), name, path.name == "__init__.py")) for name, path in MODULES.items()}


def resolve(target: str, known: dict[str, Path] = MODULES) -> str | None:
    """The module of ours that an imported name lies in, or None if it is somebody else's."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target or None


def within(module: str, rooms: set[str]) -> bool:
    """Whether a module is one of these, or lies in one of these packages."""
    return any(module == room or module.startswith(room + ".") for room in rooms)


def layer_faults(module: str, found: list[Import], known: dict[str, Path] = MODULES) -> list[str]:
    """What a module imports that its layer may not."""
    return [
        f"{module}, line {one.line}: imports {one.target}"
        for one in found
        if not _allowed(module, resolve(one.target, known) or one.target, one.inside)
    ]


def _allowed(module: str, target: str, inside: bool) -> bool:
    top, target_top = module.split(".")[0], target.split(".")[0]
    if top == "recsys":
        return _allowed_in_recsys(module, target) if target_top == "recsys" else target_top not in FRAMEWORKS
    if top == "serve":
        return target_top != "cluster" and (target_top != "recsys" or target == "recsys" or within(target, SERVE_MAY))
    if top == "cluster" and target_top == "serve":
        return module.startswith("cluster.cli") and inside
    return True


def _allowed_in_recsys(module: str, target: str) -> bool:
    room = ".".join(module.split(".")[:2])
    if target == "recsys" or module == "recsys" or within(target, {room}):
        return True
    return within(target, ROOMS[room]) or (room in OF_DATA_ONLY_TYPES and target in DATA_TYPES)


def unsafe(source: str) -> list[str]:
    """What in a source can run code from a file it reads."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            faults += [f"line {node.lineno}: {called}()"] if called in UNSAFE_CALLS else []
            faults += [f"line {node.lineno}: allow_pickle" for word in node.keywords if _allows_pickle(word)]
    found = imports(source, "module", is_package=False)
    names = {target for one in found for target in (one.target.split(".")[0], one.target)}
    return faults + [f"imports {name}" for name in sorted(names & (UNSAFE_MODULES | UNSAFE_CALLS))]


def _allows_pickle(word: ast.keyword) -> bool:
    return word.arg == "allow_pickle" and not (isinstance(word.value, ast.Constant) and word.value.value is False)


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a ring, if there are."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def test_every_room_of_recsys_has_its_layer() -> None:
    rooms = {".".join(name.split(".")[:2]) for name in MODULES if name.startswith("recsys.")}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_layer(module: str) -> None:
    assert layer_faults(module, IMPORTS[module]) == []


def test_no_cycles() -> None:
    graph = {name: {resolve(one.target) for one in found} & set(MODULES) - {name} for name, found in IMPORTS.items()}
    assert cycle(graph) is None


@pytest.mark.parametrize("module", MODULES)
def test_nothing_read_from_a_file_can_run(module: str) -> None:
    assert unsafe(MODULES[module].read_text("utf-8")) == []


LOADS_TORCH = {"recsys.retrieval.gpu"}  # where there is a GPU to search on, and nowhere else
LOADED_AFTER = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = {"torch", "ray", "fastapi"} & set(sys.modules)
    if loaded:
        sys.exit(f"{name} loads {sorted(loaded)}")
"""


def test_retrieval_and_bundle_load_neither_torch_nor_ray() -> None:
    names = [name for name in MODULES if within(name, {"recsys.retrieval", "recsys.bundle"}) and name not in LOADS_TORCH]
    run = subprocess.run([sys.executable, "-c", LOADED_AFTER, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


ASKED = """
import sys
from pathlib import Path
from recsys.bundle.read import open_bundle
from recsys.retrieval.recommender import Event, Recommender, Request
recommender = Recommender(open_bundle(Path(sys.argv[1])))
(known, sent) = recommender.recommend([Request(user="u1"), Request(history=(Event("i1"), Event("i2")))])
assert known.path == sent.path == "exact" and "onnxruntime" in sys.modules
sys.exit(f"loaded: {sorted({'torch', 'ray', 'fastapi'} & set(sys.modules))}")
"""


def test_a_history_is_encoded_without_torch(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", ASKED, str(write_planted(tmp_path / "bundles", **ENCODED))]
    env = os.environ | {"RECSYS_CACHE": str(tmp_path)}
    run = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert run.stderr == "loaded: []\n"


def test_that_check_would_notice() -> None:
    run = subprocess.run([sys.executable, "-c", LOADED_AFTER, "fastapi"], capture_output=True, text=True, check=False)
    assert "fastapi loads ['fastapi']" in run.stderr


# The lint itself, on sources that must not pass.

KNOWN = {name: Path() for name in (*ROOMS, "recsys", "recsys.data.schema", "recsys.data.split", "cluster.cli", "serve.app")}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("recsys.data.split", "import ray"),
        ("recsys.data.split", "def f():\n    from cluster import cli"),
        ("recsys.data.split", "from recsys.models import build"),
        ("recsys.data.split", "from ..models import build"),
        ("recsys.models", "from recsys import training"),
        ("recsys.bundle", "from recsys.data import split"),
        ("recsys.retrieval", "from recsys.models import MODELS"),
        ("recsys.training", "import recsys.evaluation"),
        ("serve.app", "from recsys.data import schema"),
        ("serve.app", "from recsys.config import Config"),
        ("serve.app", "import cluster.cli"),
        ("cluster.cli", "from serve.app import build"),
        ("cluster.pipeline", "def f():\n    from serve.app import build"),
    ],
)
def test_refuses_a_forbidden_import(module: str, source: str) -> None:
    assert layer_faults(module, list(imports(source, module, module in ROOMS)), KNOWN)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("recsys.bundle", "from recsys.data import schema"),
        ("recsys.evaluation", "from recsys.models import MODELS"),
        ("cluster.cli", "def f():\n    from serve.app import build"),
        ("cluster.pipeline", "from recsys.data import split"),
        ("serve.app", "import ray\nfrom recsys.bundle import read\nfrom recsys import __version__"),
    ],
)
def test_lets_pass_what_the_layers_allow(module: str, source: str) -> None:
    assert layer_faults(module, list(imports(source, module, module in ROOMS)), KNOWN) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import torch\ndef f(path):\n    return torch.load(path, weights_only=True)",
        "from torch import load",
        "from torch.export import load",
        "import torch\ntorch.export.load(path)",
    ],
)
def test_refuses_what_can_run_code_from_a_file(source: str) -> None:
    assert unsafe(source)


def test_finds_a_ring_of_imports() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
