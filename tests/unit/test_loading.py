"""`load` finds an app's object in a module or a file, or says in one line why not."""

import re
import sys

import pytest

from batchbridge.errors import AppError
from batchbridge.loading import load


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder; what is imported is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(value):
    with pytest.raises(AppError) as caught:
        load(value)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(value) in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def test_from_a_file_and_its_neighbours(folder):
    (folder / "apps").mkdir()
    (folder / "apps" / "neighbour_a.py").write_text("answer = 42")
    (folder / "apps" / "app_a.py").write_text(
        "import neighbour_a\nclass Holder: server = neighbour_a.answer\nname = __name__\nthis = object()"
    )
    assert load("apps/app_a.py:Holder.server") == 42
    assert load("apps/app_a.py:name") == "app_a"
    assert load("apps/app_a.py:this") is load(f"{folder}/apps/app_a.py:this")
    assert sys.modules["app_a"].this is load("apps/app_a.py:this")


def test_from_a_module_of_the_current_folder(folder):
    (folder / "package_b").mkdir()
    (folder / "package_b" / "__init__.py").touch()
    (folder / "package_b" / "app.py").write_text("server = 'yes'")
    assert load("package_b.app:server") == "yes"


def test_a_file_named_as_a_loaded_module_leaves_that_alone(folder):
    import json

    (folder / "json.py").write_text("server = 'mine'\nthis = object()")
    assert load("./json.py:server") == "mine"
    assert load("json.py:this") is load("json.py:this")
    assert sys.modules["json"] is json


@pytest.mark.parametrize("value", ["hello", ":server", "hello:", ""])
def test_what_is_not_of_the_form(value):
    assert "is not MODULE_OR_FILE:OBJECT" in refusal(value)


def test_what_is_not_there(folder):
    assert "there is no file nowhere.py" in refusal("nowhere.py:server")
    assert "there is no module 'nowhere'" in refusal("nowhere:server")
    (folder / "package_c").mkdir()
    (folder / "package_c" / "__init__.py").touch()
    assert "there is no module 'package_c.app'" in refusal("package_c.app:server")
    (folder / "text.txt").touch()
    assert "is not a Python file" in refusal("./text.txt:server")


def test_a_missing_object_is_answered_with_those_there_are(folder):
    (folder / "app_d.py").write_text("import os\nserver = 1\nother = 2\n_hidden = 3")
    assert refusal("app_d.py:sever").endswith("there is no 'sever' in app_d.py; did you mean 'server'?")
    assert refusal("app_d.py:zzz").endswith("there is no 'zzz' in app_d.py; it has server, other")
    (folder / "app_e.py").write_text("\n".join(f"name{i} = {i}" for i in range(30)))
    assert refusal("app_e.py:zzz").endswith("name9 and more")
    assert "there is no 'x'" in refusal("app_e.py:name1.x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os\nimport no_such_thing", r"ModuleNotFoundError: No module named 'no_such_thing' \(NAME:2\)$"),
        ("\n\nraise ValueError('a\\nb')", r"ValueError: a b \(NAME:3\)$"),
        ("def f():\n  int('x')\nf()", r"ValueError: invalid literal .* \(NAME:2\)$"),
        ("import json\njson.loads('')", r"JSONDecodeError: .* \(NAME:2\)$"),
        ("raise SystemExit(3)", r"SystemExit: 3 \(NAME:1\)$"),
        ("x = (", r"SyntaxError: '\(' was never closed \(NAME:1\)$"),
        ("raise KeyError", r"raised KeyError \(NAME:1\)$"),
    ],
)
@pytest.mark.parametrize("form", ["{}.py:server", "{}:server"])
def test_an_exception_at_import_is_told_with_its_place(folder, text, words, form):
    name = f"app_f{abs(hash((text, form)))}"
    (folder / f"{name}.py").write_text(text)
    if form == "{}:server" and "JSONDecodeError" in words:
        words = r"JSONDecodeError"  # of a module, the innermost place is told
    assert re.search(words.replace("NAME", f"{name}.py"), refusal(form.format(name)))
    assert name not in sys.modules


def test_a_package_that_fails_within_a_module(folder):
    (folder / "package_g").mkdir()
    (folder / "package_g" / "__init__.py").write_text("import no_such_thing")
    assert "ModuleNotFoundError: No module named 'no_such_thing' (__init__.py:1)" in refusal("package_g.app:server")
