"""The house: how many rooms, how large, which may know which."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

LIBRARY = ROOT / "studylib"
ROOMS = ("analysis", "data", "figures", "judges", "models", "scores", "stages", "study", "text")
LIGHT = ("study", "text", "judges", "analysis", "scores", "figures")  # import without torch
SHOW_FIGURES = ("06_findings", "07_laboratory", "09_compare")
CONTRACTS = ("layers", "figures")


def test_there_are_nine_rooms_and_one_command_line():
    assert tuple(sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py"))) == ROOMS
    assert [path.name for path in LIBRARY.glob("[!_]*.py")] == ["run.py"]


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
    from studylib.stages.graph import notebook_cells

    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = "\n".join(cell["source"] for cell in notebook_cells(path))
        froms = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        assert path.stem in SHOW_FIGURES or not any(name.startswith("studylib.figures") for name in froms), path.name
