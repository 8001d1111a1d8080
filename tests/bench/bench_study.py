"""`make bench`: how long the study takes from nothing, again, and after an edit; and what its choices save.

Works in a fresh clone of the committed files, so it takes longer than the study does: about twenty-five minutes. With
the path of a clone whose miniature study is finished it leaves out the first part. Every figure is one run; ratios
compare runs that follow each other.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def timed(label: str, command: str, project: Path) -> float:
    """Seconds that a shell command took in the project; its output is shown only when it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("STUDY_RUNS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    start = time.monotonic()
    done = subprocess.run(
        command, shell=True, cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{label} failed:\n{done.stdout[-3000:]}")
    print(f"{label:<62} {seconds:7.1f} s", flush=True)
    return seconds


def where(project: Path, profile: str) -> None:
    """Prints the seconds of all notebooks by kind of work, and their share."""
    times = json.loads((project / "runs" / profile / "manifest.json").read_text())["seconds_of_last_execution"].values()
    kinds = sorted(
        {kind for t in times for kind in t} - {"total"}, key=lambda kind: -sum(t.get(kind, 0) for t in times)
    )
    total = sum(t["total"] for t in times)
    print(
        "  in notebooks: "
        + ", ".join(
            f"{kind} {(spent := sum(t.get(kind, 0) for t in times)):.0f} s ({100 * spent / total:.0f} %)"
            for kind in kinds
        )
    )


def from_nothing(project: Path) -> float:
    """Seconds of the environment and the whole miniature study in a fresh clone."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    environment = timed("environment from the lock", "make .venv/ready", project)
    return environment + timed("make study, miniature, from nothing", "make study", project)


def afterwards(project: Path) -> dict[str, float]:
    """Seconds of running again, after edits, and of the small profile, in a project with a finished miniature study."""
    where(project, "miniature")
    seconds = {"again": timed("make study again, nothing changed", "make study", project)}
    for module in ("figures/rates", "scores/benign", "judges/registry"):
        path = project / "studylib" / f"{module}.py"
        before = path.read_text()
        path.write_text(before + "\n# edited\n")
        seconds[module] = timed(f"make study after an edit to {module}.py", "make study", project)
        path.write_text(before)
    seconds["smoke"] = timed("make study PROFILE=smoke, from nothing", "make study PROFILE=smoke", project)
    where(project, "smoke")
    single = (project / "studylib/profiles/smoke.yaml").read_text()
    single = single.replace("name: smoke", "name: single").replace("grouped: [style, seed]", "grouped: []")
    (project / "single.yaml").write_text(single)
    seconds["single"] = timed("the same with one kernel per fine-tune", "make study PROFILE=single.yaml", project)
    where(project, "single")
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
        project = finished or Path(folder) / "project"
        whole = None if finished else from_nothing(project)
        seconds = afterwards(project)
    if whole:
        print(f"\nenvironment and study from nothing:  {whole / 60:6.1f} min (goal: 15)")
        print(f"nothing changed / from nothing:      {seconds['again'] / whole:6.3f}")
        print(f"figures drawn again / from nothing:  {seconds['plots'] / whole:6.3f}")
    print(f"nothing changed:                     {seconds['again']:6.1f} s (goal: 10)")
    print(f"figures drawn again after an edit:   {seconds['plots']:6.1f} s (goal: 45)")
    print(f"smoke from nothing:                  {seconds['smoke']:6.1f} s (goal: 120)")
    print(f"one kernel per fine-tune / grouped:  {seconds['single'] / seconds['smoke']:6.2f}")


if __name__ == "__main__":
    main()
