"""The README's captioned tree, held to what is tracked.

The tree is the first code block fenced as ```tree. One entry a line: two spaces a level, a name (folders end in /),
two or more spaces, a caption. A folder listed with children lists all of them; one listed without is not descended into.
Names that begin with a dot, and __init__.py, need no entry but may have one.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(r"(?P<indent>(?:  )*)(?P<name>\S+) {2,}(?P<caption>\S.*)")
MUST_BE_OPEN = ("recsys/", "cluster/", "serve/")


def tree_block(readme: str) -> str:
    found = re.search(r"^```tree\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert found, "README.md has no code block fenced as ```tree"
    return found[1]


def parse(block: str) -> list[str]:
    """Paths of the tree's entries, folders with a final slash. Fails on a line that is not an entry with a caption."""
    paths: list[str] = []
    parents: list[str] = []
    for line in block.splitlines():
        entry = ENTRY.fullmatch(line)
        assert entry, f"not `name  caption`, indented by two spaces a level: {line!r}"
        level = len(entry["indent"]) // 2
        assert level <= len(parents), f"indented deeper than its folder: {line!r}"
        path = "".join(parents[:level]) + entry["name"]
        parents = parents[:level] + ([entry["name"]] if path.endswith("/") else [])
        paths.append(path)
    return paths


def faults(paths: list[str], tracked: list[str]) -> list[str]:
    """Entries of the tree that are not there, are there twice, and tracked paths that the tree ought to name."""
    nodes = _nodes(tracked)
    opened = {""} | {parent(path) for path in paths}
    due = {node for node in nodes if parent(node) in opened and not _optional(node)}
    closed = [f"{name}: its modules are not listed" for name in MUST_BE_OPEN if name in nodes and name not in opened]
    twice = [f"{path}: listed twice" for path in sorted(set(paths)) if paths.count(path) > 1]
    gone = [f"{path}: listed, but not tracked" for path in paths if path not in nodes]
    return closed + twice + gone + [f"{node}: not listed" for node in sorted(due - set(paths))]


def _nodes(tracked: list[str]) -> set[str]:
    """Tracked files and every folder above them."""
    folders = {f"{folder}/" for path in tracked for folder in map(str, Path(path).parents) if folder != "."}
    return folders | set(tracked)


def parent(path: str) -> str:
    """The folder a path lies in, with a final slash; empty at the top."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    return head + slash


def _optional(path: str) -> bool:
    name = Path(path).name
    return name.startswith(".") or name == "__init__.py"


def test_readme_tree_is_what_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked cannot be told")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [path for path in listed.split("\0") if path]
    paths = parse(tree_block((ROOT / "README.md").read_text("utf-8")))
    assert faults(paths, tracked) == []


# The check itself.

TRACKED = ["README.md", ".gitignore", "recsys/__init__.py", "recsys/errors.py", "recsys/data/schema.py", "docs/a.md"]
TREE = """\
README.md     this page
docs/         guides
recsys/       the science
  errors.py   what went wrong
  data/       who watched what
"""


def test_accepts_a_true_tree() -> None:
    assert faults(parse(TREE), TRACKED) == []


@pytest.mark.parametrize(
    ("tracked", "tree", "fault"),
    [
        ([*TRACKED, "Makefile"], TREE, "Makefile: not listed"),
        ([*TRACKED, "recsys/config.py"], TREE, "recsys/config.py: not listed"),
        ([*TRACKED, "recsys/models/mf.py"], TREE, "recsys/models/: not listed"),
        (TRACKED, TREE + "  gone.py  was here\n", "recsys/gone.py: listed, but not tracked"),
        (TRACKED, TREE + "docs/  again\n", "docs/: listed twice"),
        (TRACKED, "README.md  page\ndocs/  guides\nrecsys/  science\n", "recsys/: its modules are not listed"),
    ],
)
def test_names_what_is_wrong(tracked: list[str], tree: str, fault: str) -> None:
    assert fault in faults(parse(tree), tracked)


@pytest.mark.parametrize("line", ["README.md", "README.md one space", " README.md  odd indent", "  README.md  in no folder"])
def test_refuses_a_malformed_entry(line: str) -> None:
    with pytest.raises(AssertionError):
        parse(line)


def test_no_two_test_files_share_a_name() -> None:
    """pytest takes the second for the first, and the whole run ends there."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
