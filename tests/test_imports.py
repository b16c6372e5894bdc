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
EVERY = ("config", "data", "model", "losses", "metrics", "train", "plan", "claims", "figures", "report", "cli")
OTHERWISE = {"visualization": "figures"}
"""Names that an original study gave a module, and what it counts as."""
SOME = ("analysis", "visualizer")
"""Names that count wherever a study has them: analysis for notebooks, and a page over it."""
MAY_REACH = {
    "config": "",
    "data": "config model",
    "model": "config data",
    "losses": "config data model metrics",
    "metrics": "config data model losses",
    "train": "config data model losses metrics",
    "plan": "config data model losses metrics",
    "claims": "config data model losses metrics plan",
    "figures": "config data model losses metrics",
    "report": "config data model losses metrics plan claims figures",
    "cli": " ".join((*EVERY, *SOME)),
    "analysis": "config data model losses metrics plan",
    "visualizer": "config data model losses metrics plan analysis",
}
"""Which of these modules each may import, itself or through any others of the study.

Further modules need not be named: what they import decides who may import them. Those that a declaration names as
training, plan, claims or report count as these, whatever they are called.
"""
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


@cache
def roles(study: str) -> dict[str, str]:
    """First name below the package -> which of EVERY it counts as, by its name or by the study's declaration."""
    parts = {part(module) for module in imports(study)} - {"", "__main__"}
    names = {
        name: next((r for r in (*EVERY, *SOME) if OTHERWISE.get(name, name).rstrip("s") == r.rstrip("s")), "")
        for name in parts
    }
    declared = {"train_together": "train", "columns": "claims", "doctor": "", "options": "", "seeds": "", "resolve": ""}
    for call in (node for node in ast.walk(trees(study)[f"{study}.cli"]) if isinstance(node, ast.Call)):
        for keyword in call.keywords:
            role = declared.get(keyword.arg or "", keyword.arg)
            text = keyword.value.value if isinstance(keyword.value, ast.Constant) else ""
            if role in EVERY and isinstance(text, str) and text.startswith(f"{study}."):
                name = part(text.partition(":")[0])
                names[name] = names[name] or role
    return names


def wrong_ways(study: str) -> list[str]:
    """Each way by which a module reaches another that lies above it."""
    found = []
    for module in imports(study):
        role = roles(study).get(part(module), "")
        for other in sorted(reached(study, module)) if role else []:
            above = roles(study).get(part(other), "")
            if above and above not in (role, *MAY_REACH[role].split()):
                found.append(path_between(study, module, other))
    return found


def named_elsewhere(study: str) -> list[str]:
    """Imports and "module:name" of trainings and reports outside the declaration, and of the declaration outside __main__."""
    found = set()
    for module, tree in trees(study).items():
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        texts = [text.partition(":")[0] for text in texts if re.fullmatch(r"[\w.]+:\w+", text)]
        is_package = any(other.startswith(f"{module}.") for other in trees(study))
        for name in {*names_in(module, tree, is_package), *texts}:
            if not name.startswith(f"{study}.") or part(name) == part(module):
                continue
            role, of_module = roles(study).get(part(name), ""), part(module)
            if role in ("train", "report") and of_module != "cli" and roles(study).get(of_module) != role:
                found.add(f"{module}: {name}")
            if role == "cli" and of_module != "__main__":
                found.add(f"{module}: {name}")
    return sorted(found)


@each_study
def test_imports_run_from_the_declaration_down_to_the_configuration(study):
    assert wrong_ways(study) == []


@each_study
def test_only_the_declaration_names_training_and_report(study):
    """Only `cli` imports or names them, but for a verb's module that imports the loop: it counts as training itself. The
    declaration itself is what __main__ imports."""
    assert named_elsewhere(study) == []


@each_study
def test_a_plan_is_made_of_the_configuration_alone(study):
    """What it imports at once; a function of it may read a checkpoint."""
    names = [module for module, role in roles(study).items() if role == "plan"]
    heavy = {module for module, role in roles(study).items() if role not in ("", "config", "plan")}
    for name in names:
        tree = trees(study)[f"{study}.{name}"]
        at_once = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not {part(found) for found in names_in(f"{study}.{name}", at_once, False)} & heavy
    assert names


@each_study
def test_a_study_has_the_modules_that_a_reader_looks_for(study):
    """Under these names, or as what a module counts as."""
    assert set(EVERY) - set(roles(study).values()) == set()


GOOD = {
    "config": "", "data": "from {s}.config import x", "model": "from {s} import data, config", "losses": "import {s}.model",
    "metrics": "from .losses import x", "train": "from {s}.metrics import x\nfrom {s} import helper", "plan": "import {s}.config",
    "claims": "from {s} import helper", "figures": "", "report": "from {s} import claims, figures", "helper": "",
    "cli": 'STUDY = Study(train="{s}.train:train", report="{s}.report:report", more=OneRun(train="{s}.second:train"))',
    "second": "from {s} import losses, train", "__main__": "from {s} import cli",
}  # fmt: skip
BAD = {
    "config imports": {"config": "from {s} import data", "data": ""},
    "data imports losses": {"data": "def f():\n    from {s}.losses import x"},
    "losses import training": {"losses": "import {s}.train"},
    "through a further module": {"helper": "from {s}.report import x", "train": "from {s} import helper"},
    "through two": {
        "helper": "from {s} import more",
        "more": "from {s} import claims",
        "metrics": "from {s} import helper",
    },
    "plan imports claims": {"plan": "from {s}.claims import x"},
    "claims import a report": {"claims": "from {s} import report"},
    "figures import claims": {"figures": "from {s}.claims import x"},
    "a further module imports training": {"helper": "from {s}.train import x", "train": ""},
    "a further module names training": {"helper": 'WORK = "{s}.train:train"'},
    "a second training imported": {"data": "from {s}.second import x", "second": ""},
    "a second training reads claims": {"second": "from {s}.claims import x"},
    "analysis imports training": {"analysis": "from {s}.train import x"},
    "analysis imports the page": {"analysis": "from {s} import visualizer", "visualizer": ""},
    "claims import the analysis": {"claims": "from {s}.analysis import x", "analysis": ""},
    "the page imports a report": {"visualizer": "from {s}.report import x", "analysis": ""},
    "a further module imports the declaration": {"helper": "from {s}.cli import x"},
}


@pytest.mark.parametrize("case", ["good", *BAD])
def test_every_wrong_way_is_found(case, tmp_path, monkeypatch):
    name = re.sub(r"\W", "_", case)
    (tmp_path / name).mkdir()
    for module, text in {"__init__": "", **GOOD, **BAD.get(case, {})}.items():
        (tmp_path / name / f"{module}.py").write_text(text.replace("{s}", name), encoding="utf-8")
    monkeypatch.setitem(ALL, name, tmp_path / name)
    assert bool(wrong_ways(name) or named_elsewhere(name)) == (case != "good"), (
        wrong_ways(name),
        named_elsewhere(name),
    )
