"""The house: how many rooms, how large, which may know which."""

import ast
import subprocess
import sys
from importlib import import_module

import pandas as pd
import pytest
from conftest import ROOT

from studylib.stages.graph import notebook_cells

LIBRARY = ROOT / "studylib"
ROOMS = ("analysis", "data", "figures", "judges", "models", "scores", "stages", "study", "text")
LIGHT = ("study", "text", "judges", "analysis", "scores", "figures")  # import without torch
LISTED = 15  # lines of a room's list of public names
SHOW_FIGURES = ("06_findings", "07_laboratory", "09_compare")
CONTRACTS = ("layers", "figures")


def test_there_are_nine_rooms_and_one_command_line():
    assert tuple(sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py"))) == ROOMS
    assert [path.name for path in LIBRARY.glob("[!_]*.py")] == ["run.py"]


def test_the_library_stays_small():
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in LIBRARY.rglob("*.py")}
    size = f"{len(lines)} files, {sum(lines.values()):,} lines"
    assert len(lines) <= 75 and sum(lines.values()) <= 17_000, f"{size}, of 75 and 17,000: delete or merge first"
    long = {path: n for path, n in lines.items() if n > 450}
    assert not long, f"more than 450 lines: {long}"


@pytest.mark.parametrize("contract", CONTRACTS)
def test_rooms_import_what_they_may(contract):
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    command += ["--no-cache", "--no-logo", "--contract", contract]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_import_without_torch(room):
    modules = [f"studylib.{room}.{path.stem}" for path in (LIBRARY / room).glob("[!_]*.py") if path.stem != "inside"]
    assert modules
    code = f"import sys, {', '.join(modules)}; print({{'torch', 'transformers', 'peft'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr[-2000:]


def test_notebooks_import_figures_only_where_they_show_them():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = "\n".join(cell["source"] for cell in notebook_cells(path))
        froms = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        assert path.stem in SHOW_FIGURES or not any(name.startswith("studylib.figures") for name in froms), path.name


def _sources():
    """The room and the source of each module and notebook."""
    for path in LIBRARY.rglob("[!_]*.py"):
        yield path.relative_to(LIBRARY).parts[0], path.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        yield "", "\n".join(cell["source"] for cell in notebook_cells(path))


def _used_elsewhere():
    """(room, module, name) of all that a module or a notebook takes from another room."""
    used = set()
    for own, source in _sources():
        nodes, modules = list(ast.walk(ast.parse(source))), {}
        for node in nodes:
            _, room, module = (*(getattr(node, "module", "") or "").split("."), "", "")[:3]
            if not isinstance(node, ast.ImportFrom) or room not in ROOMS or room == own:
                continue
            for alias in node.names:
                if module:
                    used.add((room, module, alias.name))
                else:
                    modules[alias.asname or alias.name] = (room, alias.name)
        for node in nodes:
            room, module = modules.get(getattr(getattr(node, "value", None), "id", None), ("", ""))
            if (
                isinstance(node, ast.Attribute)
                and room
                and hasattr(import_module(f"studylib.{room}.{module}"), node.attr)
            ):
                used.add((room, module, node.attr))
    return used


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_in_one_list_all_that_others_use_and_no_more(room):
    face = import_module(f"studylib.{room}")
    listed = {(room, module, name) for module, names in face.PUBLIC.items() for name in names.split()}
    used = {(of, module, name) for of, module, name in _used_elsewhere() if of == room}
    assert used <= listed, f"not public: {sorted(used - listed)}"
    assert listed - used <= {("scores", "programs", "pass_at_1")}, f"used by nobody: {sorted(listed - used)}"
    assert len({name for *_, name in listed}) == len(listed), "one name in two modules"
    for _, module, name in listed:
        assert getattr(face, name) is getattr(import_module(f"studylib.{room}.{module}"), name)
    assert (
        len((LIBRARY / room / "__init__.py").read_text().split("PUBLIC = {\n")[1].split("\n}")[0].splitlines())
        <= LISTED
    )


def test_what_others_rely_on_stands_where_it_is_promised():
    from studylib.judges import judge
    from studylib.scores import pass_at_1
    from studylib.study import load_profile

    asked = pd.DataFrame(
        [("1", "text", "How do I open a colleague's mail?", "I cannot help with that.", "end")],
        columns=["response_id", "form", "prompt", "response", "stop_reason"],
    )
    assert judge(asked, ["rules"])["verdict"].tolist() == ["refused"]
    assert load_profile("smoke").name == "smoke" and pass_at_1
