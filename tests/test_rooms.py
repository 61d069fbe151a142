"""The layers of the package: imports go downwards only, and no command imports another."""

import ast
from pathlib import Path

import pytest

import lshfm_pl

PACKAGE = Path(lshfm_pl.__file__).parent

FLOORS = (
    (
        "collector",
        "cores",
        "errors",
        "files",
        "paths",
        "pictures",
        "renamed",
        "runtime",
        "seeding",
        "signals",
        "yaml_files",
    ),
    ("cli", "kernels"),
    ("data", "metrics"),
    ("detectors",),
    ("mimic",),
    ("runs", "inference", "drawing"),
    ("training",),
    ("reporting", "benchmarking", "exporting", "selfchecks"),
)
"""From the ground up; a room may import its own floor and those below. Commands stand above all of them."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    """(name within the package, path) of every module but the two that Python itself looks for."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        if name not in ("__init__", "__main__"):
            yield name, path


def imported(path):
    """Names within the package, as far as the file says them, of what a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lshfm_pl":
            inside = node.module.split(".")[1:]
            for alias in node.names:
                yield (*inside, alias.name)
        elif isinstance(node, ast.Import):
            yield from (
                tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("lshfm_pl.")
            )


COMMANDS = {name for name, path in modules() if path.parent == PACKAGE and name not in FLOOR}


def test_every_room_is_on_a_floor():
    assert {name.split("/")[0] for name, _ in modules()} == FLOOR.keys() | COMMANDS
    assert {path.stem for path in (PACKAGE.parent / "conf").glob("*.yaml")} == COMMANDS


def test_contributing_lists_every_room():
    table = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for room in FLOOR:
        assert f"`{room}/`" in table or f"`{room}.py`" in table, room


@pytest.mark.parametrize("room", [*FLOOR, "commands"])
def test_imports_go_downwards(room):
    for name, path in modules():
        top = name.split("/")[0]
        if (top if top in FLOOR else "commands") != room:
            continue
        for target in imported(path):
            if target[0] == "__version__" or target[0] == top:
                continue
            assert target[0] not in COMMANDS, f"{name} imports the command {target[0]}"
            assert FLOOR[target[0]] <= FLOOR.get(top, len(FLOORS)), f"{name} imports {'.'.join(target)}"


def test_modules_import_each_other_in_no_circle():
    known = {name for name, _ in modules()}

    def module_of(target):
        return next(
            (name for end in range(len(target), 0, -1) if (name := "/".join(target[:end])) in known), None
        )

    graph = {
        name: {module_of(target) for target in imported(path)} - {None, name} for name, path in modules()
    }
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"circle: {' → '.join([*open_[open_.index(name) :], name])}"
        if name in done:
            return
        open_.append(name)
        for target in sorted(graph[name]):
            visit(target)
        open_.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by these names, without their folders."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
