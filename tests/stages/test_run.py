"""The whole chain, for real: the smoke profile through Snakemake and papermill, edited, killed, broken, run again."""

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from conftest import command

from studylib import run
from studylib.study.grid import units
from studylib.study.profile import PROFILES, load_profile
from studylib.study.words import STAGES

pytestmark = pytest.mark.slow
JOBS = [f"{unit.stage}_{unit.name}" for name in STAGES for unit in units(load_profile("smoke"), name)]
TUNED = [job for job in JOBS if job.startswith(("02", "03", "04"))]


def planned(project):
    """The notebook runs that a dry run would do, sorted."""
    done = command("study", "--profile", "smoke", "--", "-n", project=project, timeout=120)
    assert done.returncode == 0, done.stdout
    return sorted({line.split()[0] for line in done.stdout.splitlines() if line.split() and line.split()[0] in JOBS})


@contextmanager
def edited(path, change):
    """A file with changed text for a while."""
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    try:
        yield
    finally:
        path.write_text(before)


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_finished_run_has_nothing_to_do(smoke_project):
    assert planned(smoke_project) == []


def test_the_summary_prints_the_attack_success_table_and_where_the_time_went(smoke_project):
    done = command("summary", "--profile", "smoke", project=smoke_project)
    assert all(
        word in done.stdout for word in ("Harmful prompts answered", "multitask", "training", "generation", "start-up")
    )
    places = [line.rpartition("  ")[2] for line in done.stdout.splitlines()[-2:]]
    assert all(Path(place).exists() and place.startswith(str(smoke_project / "runs")) for place in places)


AFTER_DATA = [job for job in JOBS if not job.startswith("00")]


def test_an_edited_module_runs_what_depends_on_it_and_reworded_lines_and_prose_nothing(smoke_project):
    """Two dry runs; `test_graph` has the table of every room, and a test below runs a figure and a judge for real."""
    library, notebook = smoke_project / "studylib", smoke_project / "notebooks" / "05_helpfulness.ipynb"
    with edited(library / "scores" / "benign.py", lambda text: text + "\nX = 1\n"):
        assert planned(smoke_project) == ["05_helpfulness_all", "06_findings_all"]
    reworded = edited(library / "stages" / "cells.py", lambda text: text.replace('LOG.info("', 'LOG.info("Reworded: '))
    prose = edited(notebook, lambda text: text.replace("**Question.**", "**The question.**"))
    with reworded, prose, edited(library / "run.py", lambda text: text + "\nX = 1\n"):
        assert planned(smoke_project) == []


def test_an_edited_notebook_runs_itself_and_what_follows(smoke_project):
    path = smoke_project / "notebooks" / "05_helpfulness.ipynb"
    with edited(path, lambda text: text.replace("len(responses)", "len(responses) + 0")):
        assert planned(smoke_project) == ["05_helpfulness_all", "06_findings_all"]


def test_a_changed_profile_value_runs_the_stages_that_use_it(smoke_project):
    with edited(
        smoke_project / "studylib" / "profiles" / "smoke.yaml",
        lambda text: text.replace("tuning:", "tuning:\n  weight_decay: 0.5"),
    ):
        assert planned(smoke_project) == sorted([*TUNED, "05_helpfulness_all", "06_findings_all"])


def test_an_added_seed_keeps_the_finished_fine_tunes(smoke_project):
    with edited(
        smoke_project / "studylib" / "profiles" / "smoke.yaml",
        lambda text: text.replace("  seeds: [0]\n  requests", "  seeds: [0, 1]\n  requests"),
    ):
        assert set(planned(smoke_project)) == {
            *TUNED,
            "05_helpfulness_all",
            "06_findings_all",
        }  # inside, adapters are used again


@pytest.fixture
def other_project(smoke_project, tmp_path):
    """A copy of the project and its finished run, elsewhere and without its times."""
    shutil.copytree(smoke_project, tmp_path / "copy", copy_function=shutil.copyfile)
    return tmp_path / "copy"


def test_a_run_that_was_copied_without_its_times_has_nothing_to_do(other_project):
    assert planned(other_project) == []


def test_an_edited_figure_or_judge_trains_and_generates_nothing(other_project):
    """For real, in the copied project: so its run knows in another folder what made it."""
    run, library = other_project / "runs" / "smoke", other_project / "studylib"
    rows = run.glob("responses/rows/*.jsonl")
    made = {path: path.stat().st_mtime_ns for path in (*run.glob("adapters/*/adapter_model.safetensors"), *rows)}
    assert len(made) > 10

    def studied(*targets):
        before = {path: path.stat().st_mtime_ns for path in run.glob("notebooks/*/*.ipynb")}
        done = command("study", "--profile", "smoke", "--", *targets, project=other_project, timeout=900)
        assert done.returncode == 0, done.stdout[-5000:]
        assert {path: path.stat().st_mtime_ns for path in made} == made
        return sorted(f"{p.parent.name}_{p.stem}" for p, at in before.items() if p.stat().st_mtime_ns != at)

    style = library / "figures" / "style.py"
    style.write_text(style.read_text() + "\nX = 1\n")
    assert studied() == ["06_findings_all"]

    edits = library / "judges" / "word_lists.py"
    edits.write_text(edits.read_text() + "\nX = 1\n")
    assert planned(other_project) == AFTER_DATA
    code = ("01_baseline/all", "02_finetune/code")  # the others go the same way, and take a minute
    verdicts = {path: path.stat().st_mtime_ns for path in (run / "verdicts" / f"{unit}.parquet" for unit in code)}
    targets = [f"notebooks/{unit}.ipynb" for unit in code]
    assert studied(*targets) == ["01_baseline_all", "02_finetune_code"]
    assert all(path.stat().st_mtime_ns != at for path, at in verdicts.items())


def test_a_stopped_run_leaves_no_orphan_and_goes_on_where_it_stopped(smoke_runs, tmp_path):
    """Twice: interrupted as by Ctrl-C, and killed."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
    content["name"] = "long"  # the same data and models, but work that is not over before it can be stopped
    content["base_seeds"], content["tuning"]["steps"], content["grid"]["seeds"] = [0, 1], 12, [0, 1]
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(content))
    run = tmp_path / "long"
    for part in ("data", "models"):  # what 00_prepare would make again, second for second
        shutil.copytree(smoke_runs / "smoke" / part, run / part)
    last = run / "notebooks/02_finetune/code.ipynb"  # a target may be named by its whole path
    wanted = ["study", "--profile", str(tmp_path / "long.yaml"), "--cores", "1", "--", str(last)]

    def begun():
        adapters = {p: p.stat().st_mtime_ns for p in run.glob("adapters/[!.]*/adapter_model.safetensors")}
        return adapters, {p: p.read_bytes().rpartition(b"\n")[0] for p in run.glob("responses/rows/*.jsonl")}

    def goes_on_from(adapters, rows):
        assert all(p.stat().st_mtime_ns == mtime for p, mtime in adapters.items())
        assert all(p.read_bytes().startswith(lines) for p, lines in rows.items())

    def lines(begun):
        return sum(rows.count(b"\n") for rows in begun[1].values())

    def stopped(how, left):
        driver = command(*wanted, runs=tmp_path, start=subprocess.Popen, start_new_session=True)
        more = lambda now: len(now[0]) > len(left[0]) and lines(now) > lines(left)  # noqa: E731
        wait_for(lambda: more(begun()) or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()[0]
        family = psutil.Process(driver.pid).children(recursive=True)
        if how == signal.SIGINT:
            os.killpg(driver.pid, how)
        else:
            driver.kill()
        wait_for(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 30)
        driver.communicate()
        goes_on_from(*left)
        assert all(map(any, begun())) and not last.exists()
        return begun()

    left = stopped(signal.SIGKILL, stopped(signal.SIGINT, begun()))
    done = command(*wanted, runs=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout
    goes_on_from(*left)
    made = list(run.glob("responses/rows/miniature-base*-code*.jsonl"))  # not of the untuned model, which judging needs
    across = [path for path in made if "-asked-" in path.stem]  # in the other style, harmful prompts alone
    assert len(across) == 2 and len(made) - len(across) == 2 * 2 * 2 + 1  # bases, requests, seeds; Alpaca on one
    assert {len(path.read_bytes().splitlines()) for path in across} == {48}
    n_asked = Counter(len(path.read_bytes().splitlines()) for path in made if path not in across)
    assert n_asked == {68: 7, 136: 2}  # where all is tried with the system prompt too


def test_two_runs_of_one_profile_do_not_get_into_each_others_way(smoke_runs):
    with open(smoke_runs / "smoke" / ".lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = command("study", "--profile", "smoke", runs=smoke_runs)
    assert done.returncode == 1 and "already under way" in done.stdout and len(done.stdout.splitlines()) == 1


def test_progress_goes_to_the_terminal_line_by_line_and_everything_to_the_log(tmp_path, capsys):
    run._log_to(tmp_path / "log.txt", "02_finetune code")
    log = logging.getLogger("papermill")
    for level, text in (
        (logging.INFO, "a table"),
        (logging.WARNING, "\rtexts: 3 of 9, 00:20 left"),
        (logging.WARNING, "\rtexts: 6 of 9, 00:10 left\r        \r"),
        (logging.WARNING, "\r        \r"),
    ):
        log.log(level, text)
    lines = ["  02_finetune code: texts: 3 of 9, 00:20 left", "  02_finetune code: texts: 6 of 9, 00:10 left"]
    assert capsys.readouterr().out.splitlines() == lines
    assert "a table" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(("deaths", "runs"), [(0, True), (2, True), (3, False)])
def test_a_kernel_that_dies_at_its_start_is_started_again(tmp_path, monkeypatch, deaths, runs):
    count, start = tmp_path / "count", tmp_path / "start.sh"
    start.write_text(
        f'echo >> "{count}"; [ $(wc -l < "{count}") -le {deaths} ] && exit 1; '
        f'exec "{sys.executable}" -m ipykernel_launcher -f "$1"'
    )
    spec = {"argv": ["sh", str(start), "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    parameters = nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_code_cell("print(n + 1)")]
    about = {"language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), tmp_path / "a.ipynb")
    if not runs:
        with pytest.raises(RuntimeError, match="Kernel died"):
            run.execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {"n": 3})
        assert len(count.read_text()) == 3
        return
    run.execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {"n": 3})
    assert nbformat.read(tmp_path / "b.ipynb", 4).cells[-1].outputs[0].text == "4\n"
    assert len(count.read_text()) == deaths + 1


def test_a_failing_stage_names_itself_and_leaves_its_notebook_with_the_traceback(smoke_project):
    run, before = (
        smoke_project / "runs" / "smoke",
        (smoke_project / "runs/smoke/notebooks/05_helpfulness/all.ipynb").read_bytes(),
    )
    with edited(
        smoke_project / "notebooks" / "05_helpfulness.ipynb",
        lambda text: text.replace("len(responses)", "len(respnses)"),
    ):
        done = command("stage", "--profile", "smoke", "--stage", "05_helpfulness", project=smoke_project)
    assert done.returncode == 1
    last, notebook = done.stdout.splitlines()[-1], run / "logs" / "05_helpfulness" / "all.ipynb"
    assert (
        last.startswith("error: 05_helpfulness (all) failed in cell") and "NameError" in last and str(notebook) in last
    )
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert [o.ename for cell in cells for o in cell.outputs if o.output_type == "error"] == ["NameError"]
    assert cells[-1].execution_count is None  # executed up to the error
    assert (run / "notebooks" / "05_helpfulness" / "all.ipynb").read_bytes() == before  # the good copy stays


@pytest.mark.parametrize("damage", ["data/harmful.jsonl", "models/aligned-0/model.safetensors"])
def test_damaged_data_or_weights_are_named_before_a_kernel_starts(smoke_runs, tmp_path, damage):
    for part in ("data", "models"):
        shutil.copytree(smoke_runs / "smoke" / part, tmp_path / "smoke" / part)
    path = tmp_path / "smoke" / damage
    path.write_bytes(path.read_bytes()[:-100])
    done = command("stage", "--profile", "smoke", "--stage", "01_baseline", runs=tmp_path)
    assert done.returncode == 1 and len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert str(path) in done.stdout and "truncated" in done.stdout and "00_prepare" in done.stdout
    assert not (tmp_path / "smoke" / "logs").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("lora:", "lorra:"), "unknown key 'lorra'"),
        (lambda text: text.replace("steps: 20", "steps: many"), "'pretraining.steps'"),
        (
            lambda text: text.replace("source: miniature", "source: /nowhere/model").replace("[0, 1, 2]", "[0]"),
            "There is no model folder /nowhere/model",
        ),
        (lambda text: text.replace("min_free_gb: 1", "min_free_gb: 1.0e+9"), "are free"),
    ],
)
def test_bad_settings_are_one_sentence_before_work_starts(tmp_path, monkeypatch, change, said):
    profile = tmp_path / "mine.yaml"
    text = (PROFILES / "smoke.yaml").read_text()
    profile.write_text(change(text).replace("name: smoke", "name: mine"))
    assert change(text) != text
    assert said in complaint(monkeypatch, tmp_path / "runs", "study", "--profile", str(profile))
    assert not (tmp_path / "runs").exists()


def test_a_size_that_the_world_cannot_fill_stops_the_study_in_its_first_notebook(tmp_path):
    profile = tmp_path / "mine.yaml"
    text = (PROFILES / "smoke.yaml").read_text().replace("name: smoke", "name: mine")
    profile.write_text(text.replace("harmful_per_form: 6", "harmful_per_form: 6000"))
    done = command("study", "--profile", str(profile), runs=tmp_path / "runs", timeout=120)
    assert done.returncode != 0 and "harmful_per_form is 6000" in done.stdout, done.stdout
    assert not list((tmp_path / "runs").glob("*/models"))


def complaint(monkeypatch, runs, *arguments) -> str:
    """The sentence with which the command line, called in this process, exits."""
    monkeypatch.setenv("STUDY_RUNS", str(runs))
    monkeypatch.setenv("PYTHONPATH", "")  # put back, as the command line adds to it
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("Snakemake was started"))
    with pytest.raises(SystemExit) as end:
        run.main()
    assert end.value.code.startswith("error: ") and len(end.value.code.splitlines()) == 1
    return end.value.code


def test_an_unknown_profile_or_stage_or_unit_is_one_sentence(tmp_path, monkeypatch):
    for arguments, said in [
        (["study", "--profile", "smok"], "There is no profile 'smok'"),
        (["stage", "--profile", "smoke", "--stage", "02_finetune", "--unit", "cooking"], "it has code, translation"),
        (["stage", "--profile", "smoke", "--stage", "07_more"], "Unknown stage '07_more'"),
        (["summary", "--profile", "smoke"], "is not finished: `make study` goes on with it"),
    ]:
        assert said in complaint(monkeypatch, tmp_path, *arguments)
    done = command(*arguments, runs=tmp_path)  # as a user sees it
    assert done.returncode == 1 and said in done.stdout and len(done.stdout.strip().splitlines()) == 1, done.stdout


def test_times_are_kept_for_every_notebook(smoke_runs):
    manifest = json.loads((smoke_runs / "smoke" / "manifest.json").read_text())
    last = manifest["seconds_of_last_execution"]
    assert all({"start-up", "rest"} <= set(times) and times["total"] > 0 for times in last.values())
    jobs = [job.replace("_", "/", 2).replace("/", "_", 1) for job in TUNED]
    assert all({"training", "generation"} <= set(last[job]) for job in jobs)
    rates = json.loads((smoke_runs / "smoke" / "tables" / "seconds.json").read_text())
    assert rates["total"] == manifest["wall"]["total"] and 0.5 < rates["stretch"] < 5


def test_the_time_of_a_run_has_the_starts_of_its_notebooks_and_no_pause(monkeypatch):
    monkeypatch.setenv("STUDY_CORES", "3")
    spans = [(0, 100), (20, 90), (110, 130), (125, 200), (5000, 5030)]  # a start of 10 s, then a night
    logs = {str(n): {"total": end - start, "ended": end} for n, (start, end) in enumerate(spans)}
    assert run._wall(logs | {"old": {"total": 7.0}}) == {"total": 200 + 30, "cores": 3}
    assert run._wall({"old": {"total": 7.0}}) == {}


def test_the_manifest_counts_the_logs_of_its_grid_and_no_leftovers(smoke_runs, tmp_path, monkeypatch):
    for part in ("data", "logs"):
        shutil.copytree(smoke_runs / "smoke" / part, tmp_path / "smoke" / part)
    logs = tmp_path / "smoke" / "logs" / "02_finetune"
    shutil.copy(logs / "code.json", logs / "code-seed7.json")
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    run.write_manifest("smoke")
    manifest = json.loads((tmp_path / "smoke" / "manifest.json").read_text())
    names = {f"{unit.stage}/{unit.name}" for name in STAGES for unit in units(load_profile("smoke"), name)}
    assert set(manifest["seconds_of_last_execution"]) == names


def test_the_manifest_names_the_commit_of_the_project_and_of_no_repository_around_it(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=t", "-c", "user.email=t@t")
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "t")
    (tmp_path / "checkout").mkdir()
    monkeypatch.setattr(run, "ROOT", tmp_path / "checkout")
    assert run._git("rev-parse", "HEAD") is run._git("status", "--porcelain") is None
    monkeypatch.setattr(run, "ROOT", tmp_path)
    own = git("rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert run._git("rev-parse", "HEAD") == own
    assert run._git("status", "--porcelain") == "?? checkout/" or run._git("status", "--porcelain") == ""
