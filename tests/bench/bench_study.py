"""`make bench`: how long the study takes from nothing, again, and after an edit; and what its choices save.

Works in a fresh copy of the committed files, so it takes as long as the study does, about fifteen minutes. Every figure is one
run on this machine; ratios compare runs of the same minute, one after the other.
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
    times = json.loads((project / "runs" / profile / "manifest.json").read_text())["seconds"].values()
    kinds = sorted(
        {kind for t in times for kind in t} - {"total"}, key=lambda kind: -sum(t.get(kind, 0) for t in times)
    )
    total = sum(t["total"] for t in times)
    print(
        "  in notebooks: "
        + ", ".join(
            f"{kind} {sum(t.get(kind, 0) for t in times):.0f} s ({100 * sum(t.get(kind, 0) for t in times) / total:.0f} %)"
            for kind in kinds
        )
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        environment = timed("environment from the lock", "make .venv/ready", project)
        study = timed("make study, miniature, from nothing", "make study", project)
        where(project, "miniature")
        again = timed("make study again, nothing changed", "make study", project)
        plots = project / "studylib" / "plots.py"
        plots.write_text(plots.read_text() + "\n# edited\n")
        redrawn = timed("make study after an edit to a figure function", "make study", project)
        scores = project / "studylib" / "scores.py"
        scores.write_text(scores.read_text() + "\n# edited\n")
        timed("make study after an edit to the scores", "make study", project)
        smoke = timed("make study PROFILE=smoke, from nothing", "make study PROFILE=smoke", project)
        where(project, "smoke")
        single = project / "single.yaml"
        single.write_text(
            (project / "studylib/profiles/smoke.yaml")
            .read_text()
            .replace("name: smoke", "name: single")
            .replace("grouped: [style, seed]", "grouped: []")
        )
        apart = timed("the same with one kernel per fine-tune", "make study PROFILE=single.yaml", project)
        where(project, "single")
    print(f"\nenvironment and study:              {(environment + study) / 60:5.1f} min (goal: 15)")
    print(f"nothing changed / from nothing:     {again / study:5.3f}   ({again:.1f} s, goal: 10)")
    print(f"figures drawn again / from nothing: {redrawn / study:5.3f}   ({redrawn:.1f} s, goal: 45)")
    print(f"smoke:                              {smoke:5.1f} s (goal: 120)")
    print(f"one kernel per fine-tune / grouped: {apart / smoke:5.2f}")


if __name__ == "__main__":
    main()
