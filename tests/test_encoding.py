"""Files of text are opened as UTF-8, whatever the locale of the machine says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted([*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("shared/src/**/*.py")])


def opened_in_the_locale(source: str) -> list[str]:
    """Calls that open text and name no encoding; a path's or the built-in's open, read_text, write_text."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = ast.unparse(call)
        modes = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        is_text = name in ("read_text", "write_text") or (
            name == "open"
            and not any(isinstance(mode, str) and set(mode) <= set("rwabx+") and "b" in mode for mode in modes)
        )
        elsewhere = any(word in given for word in ("os.open", "archive.open", "devnull", "lock"))
        own = isinstance(call.func, ast.Name) and name == "read_text"
        if is_text and not elsewhere and not own and "encoding" not in {k.arg for k in call.keywords}:
            found.append(f"line {call.lineno}: {given}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_opened_as_utf_8(module):
    assert not opened_in_the_locale(module.read_text(encoding="utf-8"))


def test_what_would_depend_on_the_locale_is_found():
    assert len(opened_in_the_locale("p.read_text()\np.write_text(x)\nopen(p)\nopen(p, 'a')\np.open('w')")) == 5
    assert not opened_in_the_locale(
        "p.read_text(encoding='utf-8')\nopen(p, 'rb')\nopen(p, 'w', encoding='utf-8')\nread_text(p)"
    )
