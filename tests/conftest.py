"""Shared by all tests: figures without a screen, no network, and one real smoke run for those that need its files."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # under nohup, or behind an &: what is started here would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores
    os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
LINUX = "programs are run in a sandbox, which needs Linux"
needs_sandbox = pytest.mark.skipif(sys.platform != "linux", reason=LINUX)  # on Linux they are run or fail

LONG = ("test_rehearsal.py", "test_findings.py", "test_missing.py", "test_selfcheck.py")


def _need_smoke(source: str) -> set[str]:
    """The tests and fixtures of a file that need the smoke run, by themselves or through another fixture of it."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    takes = {function.name: {argument.arg for argument in function.args.args} for function in functions}
    found, more = set(), {"smoke_project", "smoke_runs"}
    while more - found:
        found |= more
        more = {name for name, arguments in takes.items() if arguments & found}
    return found


SMOKE = {  # by file; the scheduler below, which knows tests by name alone, keeps them together
    path.name: _need_smoke(source)
    for path in (ROOT / "tests").rglob("test_*.py")
    if "smoke_" in (source := path.read_text(encoding="utf-8"))
}


def pytest_collection_modifyitems(items):
    """What takes longest begins first: the tests that share the smoke run, and the files of LONG.

    What needs that run, or a judge that is fitted anew (10 s), is slow.
    """
    shared = {item for item in items if any(name.startswith("smoke_") for name in item.fixturenames)}
    for item in items:
        if item in shared or "own_weights" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: 0 if item in shared else 1 if item.path.name in LONG else 2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Puts each file into one worker, and all tests that share the smoke run into the same one: it is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, test = nodeid.split("::", 1)
            name = path.rsplit("/")[-1]
            return "smoke" if test.split("[")[0] in SMOKE.get(name, ()) else name

    return ByFile(config, log)


def command(*arguments: str, project: Path = ROOT, runs: Path | None = None, start=subprocess.run, **options):
    """`python -m studylib.run ...` with the code of that project and that runs folder; output as text in `stdout`."""
    environment = {k: v for k, v in os.environ.items() if k != "STUDY_RUNS"} | {"PYTHONPATH": str(project)}
    if runs:
        environment["STUDY_RUNS"] = str(runs)
    return start(
        [sys.executable, "-m", "studylib.run", *arguments],
        cwd=project,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def growth(work, size: int) -> float:
    """How many times as long `work(10 * size)` takes as `work(size)`.

    About 10 where time grows with the size, 100 with its square.
    Of processor time, the best of two each: a busy or slow machine moves it little. Speeds are in `make bench`.
    """

    def seconds(n: int) -> float:
        started = time.process_time()
        work(n)
        return time.process_time() - started

    small, big = (min(seconds(n) for _ in range(2)) for n in (size, 10 * size))
    return big / max(small, 1e-3)


@pytest.fixture(scope="session")
def sets() -> dict[str, list[dict]]:
    """The generated data sets of the smoke profile by name, to be read and not changed."""
    from studylib.data import world
    from studylib.study.profile import load_profile

    return world.build_sets(load_profile("smoke").world)


@pytest.fixture
def saved(sets, tmp_path):
    """The paths of a run that has those sets and nothing else."""
    from studylib.data import sets as datasets
    from studylib.study.paths import RunPaths

    paths = RunPaths(tmp_path, tmp_path)
    datasets.save(paths, sets)
    return paths


@pytest.fixture
def in_empty(tmp_path, monkeypatch) -> Path:
    """A runs folder in which nothing has run."""
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def png_alone(monkeypatch):
    """Figures are written as PNG alone: the other two formats take half of the time, test_figures_style has them."""
    from studylib.figures import style

    monkeypatch.setattr(style, "FORMATS", {"png": style.FORMATS["png"]})


@pytest.fixture(scope="session")
def smoke_project(tmp_path_factory) -> Path:
    """A copy of the project with a finished run of the smoke profile, made once; who edits it puts it back."""
    project = tmp_path_factory.mktemp("project")
    for part in ("studylib", "notebooks", "data"):
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "Snakefile", project)
    subprocess.run(
        "git init -q && git add -A && git -c user.name=t -c user.email=t@t commit -qm t",
        shell=True,
        cwd=project,
        check=True,
    )
    done = command("study", "--profile", "smoke", project=project, timeout=800)
    assert done.returncode == 0, done.stdout[-5000:]
    return project


@pytest.fixture(scope="session")
def smoke_runs(smoke_project) -> Path:
    """The runs folder of the finished smoke run, to be read and not changed."""
    return smoke_project / "runs"
