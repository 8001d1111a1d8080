"""The command line behind `make`: the study through Snakemake, one stage through papermill, and the manifest."""

import argparse
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
from joblib import cpu_count  # of the cores that this process may use

from studylib.stages import graph
from studylib.study import grid
from studylib.study.files import write_text
from studylib.study.paths import DATA, NOTEBOOKS, ROOT, RunPaths
from studylib.study.profile import Profile, load_profile, profile_path
from studylib.study.words import STAGES, StudyError

PAUSE = 60  # seconds between two notebooks from which on nothing was running
PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "papermill", "snakemake", "pooch", "datasets"),
    *("pandas", "scikit-learn", "statsmodels", "seaborn", "sacrebleu", "rouge-score"),
)


def run_stage(name: str, profile_name: str, unit_name: str) -> None:
    """Executes one unit's notebook with papermill; its executed copy is moved into place when it succeeded.

    Raises StudyError that names the stage, the error and the partly executed notebook.
    """
    profile = load_profile(profile_name)
    unit = next((u for u in grid.units(profile, name) if u.name == unit_name), None)
    if unit is None:
        known = ", ".join(u.name for u in grid.units(profile, name))
        raise StudyError(f"{name} has no unit {unit_name!r} in profile {profile.name}: it has {known}.")
    paths = RunPaths.of(profile.name)
    parameters = {"profile": profile_name, **unit.parameters}
    graph.check_parameters(name, parameters)
    graph.check_prerequisites(name, profile, paths, profile_name)
    graph.check_space(paths.run, profile.execution.min_free_gb)
    if driver := os.environ.get("STUDY_PID"):
        threading.Thread(target=_stop_with, args=(int(driver),), daemon=True).start()

    label = f"{name} {unit_name}"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _end(f"{label}: stopped; the same command goes on from here"))

    from nbclient.exceptions import DeadKernelError  # only now: the checks above answer at once
    from papermill import PapermillExecutionError

    notebook, text = paths.log(name, unit_name, "ipynb"), paths.log(name, unit_name, "txt")
    notebook.parent.mkdir(parents=True, exist_ok=True)
    _log_to(text, label)
    print(f"{label}: started", flush=True)
    os.environ |= {"STUDY_LAUNCHED": str(time.time()), "OMP_NUM_THREADS": str(grid.threads(profile, name))}
    try:
        # in a thread, as the notebook client would handle signals itself in the main one, and wait for the running cell
        with ThreadPoolExecutor(1) as pool:
            pool.submit(execute, NOTEBOOKS / f"{name}.ipynb", notebook, parameters).result()
    except PapermillExecutionError as error:
        why = error.evalue if error.ename == "StudyError" else f"{error.ename}: {error.evalue}"
        raise StudyError(
            f"{name} ({unit_name}) failed in cell [{error.exec_count}]: {why} The notebook up to there, with the "
            f"traceback: {notebook}"
        ) from None
    except DeadKernelError:
        raise StudyError(
            f"{name} ({unit_name}) was ended by the system, most likely for want of memory: close other programs, or "
            "run one notebook at a time (`make study CORES=1`). The same command goes on from here."
        ) from None
    done = paths.notebook(name, unit_name)
    done.parent.mkdir(parents=True, exist_ok=True)
    os.replace(notebook, done)
    print(f"{label}: done", flush=True)


def execute(source: Path, target: Path, parameters: dict, tries: int = 3) -> None:
    """Executes a notebook with papermill in its own folder.

    A kernel that dies at its start is started again, `tries` times in all: of several that start at once, two may have
    been given one port. Raises RuntimeError for the last, and what papermill raises.
    """
    import papermill

    options = {"kernel_name": "python3", "cwd": source.parent, "extra_arguments": ["--log-level=40"]}
    for left in reversed(range(tries)):
        try:
            papermill.execute_notebook(source, target, parameters, log_output=True, progress_bar=False, **options)
            return
        except RuntimeError as error:
            if "Kernel died before replying" not in str(error) or not left:
                raise


def _log_to(path: Path, label: str) -> None:
    """Sends what the notebook prints to a text log, and its progress to the terminal too, a line at a time."""
    handler, terminal = logging.FileHandler(path, mode="w"), logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.WARNING)  # papermill's level of what a notebook writes to stderr
    terminal.addFilter(lambda record: record.getMessage().strip())
    terminal.format = lambda record: f"  {label}: {record.getMessage().strip().rpartition(chr(13))[2]}"
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler, terminal]


def _stop_with(driver: int) -> None:
    """Ends this process and its kernel when the driver is gone (kill -9): no orphan writes into a restarted run."""
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(driver).status() != psutil.STATUS_ZOMBIE:  # dead, and nobody has asked yet
            time.sleep(0.5)
    _end()


def _end(said: str = "") -> None:
    """Ends this process and its kernel at once; what was made is on the disk, row by row."""
    if said:
        print(said, flush=True)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def study(profile_name: str, cores: int, arguments: list[str]) -> None:
    """Replaces this process by Snakemake on the profile's run; a lock that a killed run left is removed first."""
    from studylib.analysis import contrasts  # only now: each notebook run is started from this module too

    profile = load_profile(profile_name)
    graph.check_models(profile)
    paths = RunPaths.of(profile.name)
    check_needs(profile, paths)
    contrasts.check_profile(contrasts.load_plan(), profile)
    run = paths.run
    graph.check_space(run, profile.execution.min_free_gb)
    run.mkdir(parents=True, exist_ok=True)
    guard = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however this process ends
    except BlockingIOError:
        raise StudyError(
            f"A run of profile {profile.name} is already under way in {run}: wait for it, or stop it first."
        ) from None
    except OSError:  # this file system has no locks
        pass
    os.set_inheritable(guard, True)
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(run)),
        *("--cores", str(cores), "--config", f"profile={profile_name}", "--rerun-incomplete"),
        *("--max-checksum-file-size", "1TB"),  # times say little of a run that was copied
        *("--quiet", "host", "reason", "rules"),
        "--keep-going",  # last, as --quiet and --config would swallow a target that follows
        *(os.path.relpath(a, run) if Path(a).is_absolute() else a for a in arguments),  # as the Snakefile has them
    ]
    if any((run / ".snakemake" / "locks").glob("*")):
        subprocess.run([*command, "--unlock"], check=True, capture_output=True, cwd=ROOT)
    os.environ |= {"STUDY_PID": str(os.getpid()), "STUDY_CORES": str(cores)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell ignores for what it starts in the background
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execv(sys.executable, command)


def check_needs(profile: Profile, paths: RunPaths) -> None:
    """Prints what a run of large models or real data needs, and raises StudyError where this machine surely lacks it.

    Nothing is loaded. A GPU may be missing here, on the machine that hands the work out; 00_prepare asks again.
    """
    from studylib.data import real  # slow, as each notebook run is started from this module
    from studylib.stages import needs

    if profile.data:
        real.check_real(profile.data)
    if needs.large(profile):
        found = needs.table(profile, paths)
        marks = found["enough"].map({True: "ok", False: "MISSING"}).fillna("?")
        print(f"What profile {profile.name} needs:\n{found.assign(enough=marks).to_string(index=False)}", flush=True)
        needs.require(found, here=False)


def export(profile_name: str, folder: Path) -> str:
    """What was exported of the run's data sets, as text for the terminal; see sets.export."""
    from studylib.data import sets

    found = sets.export(_prepared(load_profile(profile_name)), folder, DATA / "cards")
    return f"{found.to_string(index=False)}\n{folder}: {found['exported'].sum()} of {len(found)} sets"


def _prepared(profile: Profile) -> RunPaths:
    """The paths of the profile's run. Raises StudyError where it has no data yet."""
    paths = RunPaths.of(profile.name)
    if not paths.data_index.is_file():
        raise StudyError(f"The run of {profile.name} in {paths.run} has no data yet: `make study` makes them.")
    return paths


def plan(profile_name: str, cores: int) -> str:
    """What a run of the profile will show, and what it takes, as text; see stages.planning."""
    from studylib.stages import planning

    profile = load_profile(profile_name)
    return planning.in_words(profile, RunPaths.of(profile.name), cores)


def write_manifest(profile_name: str) -> None:
    """Writes `manifest.json`: what ran, on what, from which data and code, and where the time went.

    Of the miniature `tables/seconds.json` too, from which other runs are foreseen (`planning.measured`).
    """
    from studylib.stages import planning

    profile = load_profile(profile_name)
    paths = _prepared(profile)
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    units = [unit for name in STAGES for unit in grid.units(profile, name)]
    logs = _read({f"{unit.stage}/{unit.name}": paths.log(unit.stage, unit.name, "json") for unit in units})
    cards = _read({name: paths.model_card(name) for name in graph.built_models(profile)})
    gpu = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None
    manifest = {
        "profile": profile.model_dump(mode="json"),
        "seeds": profile.grid.seeds,
        "git_commit": commit or None,
        "uncommitted_changes": None if changed is None else bool(changed),  # None: not known
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": cpu_count(), "gpu": gpu},
        "data": json.loads(paths.data_index.read_text()),
        "models": {name: {k: v for k, v in card.items() if k != "loss"} for name, card in cards.items()},
        "wall": _wall(logs),
        "seconds_of_last_execution": logs,  # what was made before and used again took no time
    }
    write_text(paths.manifest, json.dumps(manifest, indent=1) + "\n")
    if profile.miniature:
        planning.write_seconds(profile, paths)


def _wall(logs: dict[str, dict]) -> dict:
    """Seconds from the first notebook's beginning to the last one's end, each the last time, but pauses; the cores."""
    spans = sorted((log["ended"] - log["total"], log["ended"]) for log in logs.values() if "ended" in log)
    total, end = 0.0, -math.inf
    for first, last in spans:
        total += max(0.0, last - (first if first - end > PAUSE else end))
        end = max(end, last)
    return {"total": round(total, 1), "cores": int(os.environ.get("STUDY_CORES", cpu_count()))} if spans else {}


def _read(files: dict[str, Path]) -> dict[str, dict]:
    """What those of the JSON files hold that are there."""
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}


def _git(*arguments: str) -> str | None:
    """What git says of this repository, and not of one around it; None where it says nothing."""
    return _said("git", "-C", str(ROOT), f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", *arguments)


def _said(*command: str) -> str | None:
    """What a program printed; None where there is no such program or it failed."""
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def summary(profile_name: str) -> str:
    """Attack success and costs in a finished run, where its time went and what to look at, as text."""
    import pandas as pd

    from studylib.analysis import readable

    profile = load_profile(profile_name)
    paths = RunPaths.of(profile.name)
    if not paths.manifest.is_file():
        raise StudyError(f"The run of {profile.name} in {paths.run} is not finished: `make study` goes on with it.")
    tables = (paths.table(name).with_suffix(".parquet") for name in ("attack_success", "helpfulness"))
    try:
        wide = readable.headline(*map(pd.read_parquet, tables))
        seconds = pd.DataFrame(json.loads(paths.manifest.read_text())["seconds_of_last_execution"]).T.sum()
        seconds = seconds.drop("ended", errors="ignore").astype(float).round(1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"The run in {paths.run} cannot be summed up ({type(error).__name__}: {error}): its manifest.json, or a "
        raise StudyError(
            f"{said}table, is damaged; delete its findings.md, and `make study` makes them again."
        ) from None
    return (
        "Harmful prompts answered in % (95 % interval), by form, and what the tuning costs in %; chat style, no system "
        f"prompt:\n{wide.to_string(sparsify=False)}\n\n"
        f"Seconds in all notebooks, when last executed: {', '.join(f'{k} {v}' for k, v in seconds.items())}\n"
        f"Findings in words  {paths.run / 'findings.md'}\n"
        f"Tables, figures and executed notebooks  {paths.run}"
    )


def main() -> None:
    """`python -m studylib.run study|stage|plan|manifest|summary|export`; errors are one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="studylib.run", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in ("study", "stage", "plan", "manifest", "summary", "export")}
    for command in made.values():
        command.add_argument("--profile", default="miniature")
    for name in ("study", "plan"):
        made[name].add_argument("--cores", type=int, default=cpu_count())
    made["study"].add_argument("snakemake", nargs=argparse.REMAINDER, help="more arguments for Snakemake, after --")
    made["stage"].add_argument("--stage", required=True)
    made["stage"].add_argument("--unit", default="all")
    made["export"].add_argument("--to", required=True, type=Path, help="a new folder")
    given = parser.parse_args()
    # what is started from here runs this code, wherever its environment was made
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        if given.profile.endswith((".yaml", ".yml")):  # Snakemake and the kernels work in other folders
            given.profile = str(profile_path(given.profile))
        match given.command:
            case "study" | "plan" if given.cores < 1:
                raise StudyError(f"cores should be a whole number from 1, as in `make study CORES=2`: {given.cores}.")
            case "study":
                study(given.profile, given.cores, [a for a in given.snakemake if a != "--"])
            case "stage":
                run_stage(given.stage, given.profile, given.unit)
            case "plan":
                print(plan(given.profile, given.cores))
            case "manifest":
                write_manifest(given.profile)
            case "export":
                print(export(given.profile, given.to))
            case "summary":
                print(summary(given.profile))
    except StudyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
