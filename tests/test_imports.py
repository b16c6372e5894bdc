"""Imports run one way, in every study and in studycore. The files are read and not imported: nothing needs to be installed."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path.parent.name: path.parent for path in sorted(ROOT.glob("packages/*/src/*/__init__.py"))}
SHARED = ROOT / "shared/src/studycore"
ALL = {**SOURCES, "studycore": SHARED}
LEVELS = {
    "config": 0,
    "data": 1,
    "model": 1,
    "models": 1,
    "losses": 2,
    "metrics": 2,
    "train": 3,
}
"""A module imports none of a higher level, itself or through others."""
each_study = pytest.mark.parametrize("study", SOURCES)
each_package = pytest.mark.parametrize("package", ALL)


@cache
def trees(package: str) -> dict[str, ast.Module]:
    """Name of each module -> what is in it."""
    found = {}
    for path in sorted(ALL[package].rglob("*.py")):
        parts = path.relative_to(ALL[package].parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def for_types_alone(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:`, which nothing runs."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs, at the top of the module or in a function."""
    for child in ast.iter_child_nodes(node):
        if not for_types_alone(child):
            yield child
            yield from statements(child)


def names_in(module: str, tree: ast.Module, is_package: bool) -> set[str]:
    """Full names that are imported: of `from a import b` both a and a.b, one of which may be no module."""
    found = set()
    for node in statements(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".") if is_package else module.split(".")[:-1]
            base = [
                *above[: len(above) - node.level + 1],
                *([node.module] if node.module else []),
            ]
            source = ".".join(base) if node.level else str(node.module)
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


@cache
def imports(package: str) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports."""
    modules = trees(package)
    return {
        module: {
            name
            for name in names_in(module, tree, any(other.startswith(f"{module}.") for other in modules))
            if name in modules and name not in (module, package)
        }
        for module, tree in modules.items()
    }


def reached(package: str, module: str) -> set[str]:
    """What the module imports, itself or through others."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports(package)[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def part(module: str) -> str:
    """The first name below the package."""
    return module.split(".")[1] if "." in module else ""


def path_between(package: str, one: str, other: str) -> str:
    """The shortest way by which one module imports another, for the message."""
    ways, seen = [[one]], {one}
    for way in ways:
        for following in sorted(imports(package)[way[-1]] - seen | (imports(package)[way[-1]] & {other})):
            if following == other:
                return " -> ".join([*way, other])
            seen.add(following)
            ways.append([*way, following])
    return ""


def wrong(package: str, who: str, whom: str) -> list[str]:
    """Each way from a module whose part fits the pattern `who` to one that fits `whom`."""
    modules = imports(package)
    return [
        path_between(package, module, other)
        for module in modules
        if re.fullmatch(who, part(module))
        for other in sorted(reached(package, module))
        if re.fullmatch(whom, part(other))
    ]


@each_package
def test_there_is_no_circle(package):
    assert [
        path_between(package, module, module) for module in imports(package) if module in reached(package, module)
    ] == []


@each_package
def test_every_module_that_is_imported_is_there(package):
    """A name that was moved is found here, also where a function imports it."""
    modules = trees(package)
    sources = {
        (module, node.module)
        for module, tree in modules.items()
        for node in statements(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ALL
    }
    there = {name for known in ALL for name in trees(known)}
    assert sorted(f"{module}: {name}" for module, name in sources if name not in there) == []


@each_package
def test_a_package_imports_no_study_but_itself(package):
    others = set(SOURCES) - {package}
    found = [
        f"{module}: {name}"
        for module, tree in trees(package).items()
        for name in names_in(module, tree, False)
        if name.split(".")[0] in others
    ]
    assert found == []


def test_studycore_names_no_study():
    words = {name for study, source in SOURCES.items() for name in (study, source.parents[1].name)}
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in sorted(words)))
    files = [path for path in SHARED.rglob("*") if path.suffix in (".py", ".j2", ".yaml")]
    assert files
    assert [f"{path.name}: {found[0]}" for path in files if (found := pattern.search(path.read_text()))] == []


@each_study
def test_training_and_reporting_know_nothing_of_each_other(study):
    assert wrong(study, r"train.*", r"(report|figures).*") == []
    assert wrong(study, r"(report|claims|figures).*", r"train.*") == []
    assert wrong(study, r"claims.*", r"report.*") == []


@each_study
def test_only_the_declaration_names_training_and_report(study):
    """Neither imports nor "module:name" of them stand anywhere else; the declaration itself is what __main__ imports."""
    named = re.compile(rf"{study}\.(train\w*|report\w*|cli)\b")
    found = []
    for module, tree in trees(study).items():
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        texts = [text for text in texts if re.fullmatch(r"[\w.]+:\w+", text)]
        for name in {*names_in(module, tree, False), *texts}:
            match = named.match(name)
            if match and part(module) != "cli" and not (part(module) == "__main__" and match[1] == "cli"):
                same_part = part(module).rstrip("s").startswith(match[1].rstrip("s"))
                found += [] if same_part else [f"{module}: {match[0]}"]
    assert sorted(set(found)) == []


@each_study
def test_imports_run_from_training_down_to_the_configuration(study):
    found = []
    for module in imports(study):
        level = LEVELS.get(part(module))
        for other in sorted(reached(study, module)):
            if level is not None and LEVELS.get(part(other), -1) > level:
                found.append(path_between(study, module, other))
    assert found == []
    assert wrong(study, r"plan", r"(train|report|claims|figures|cli).*") == []
    assert wrong(study, r"config", r".*") == []
