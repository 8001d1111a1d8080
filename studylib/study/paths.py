"""Where everything is: the repository's folders and the layout of a run."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"


def runs_folder() -> Path:
    """The folder that holds all runs: what STUDY_RUNS names, as seen from the repository's root, else `runs/` there."""
    return (ROOT / Path(os.environ.get("STUDY_RUNS") or "runs").expanduser()).resolve()


def known_runs() -> list[str]:
    """Names of the runs that are there."""
    return sorted(p.parent.name for p in runs_folder().glob("*/manifest.json"))


def places(name: str) -> list[Path]:
    """Where a file or folder of the user's at that path may be: as seen from here, else from the repository."""
    return list(dict.fromkeys([Path(name).expanduser().resolve(), (ROOT / name).resolve()]))


def users_own(name: str, is_it: Callable[[Path], bool]) -> Path | None:
    """The first of its `places` where the user's file or folder is; None where neither `is_it`."""
    return next(filter(is_it, places(name)), None)


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, `runs/<profile>/...`. A tweak (a notebook run with changed settings) has its own folder and
    shares the data and models of its run."""

    run: Path
    base: Path

    @classmethod
    def of(cls, profile_name: str, tweak: str = "") -> "RunPaths":
        """The paths of the run of that profile, or of a tweak of it."""
        base = runs_folder() / profile_name
        return cls(base / "tweaks" / tweak if tweak else base, base)

    def data(self, name: str) -> Path:
        """A data set of this run, JSON lines."""
        return self.base / "data" / f"{name}.jsonl"

    @property
    def data_index(self) -> Path:
        """Rows, bytes and sha256 of every data set."""
        return self.base / "data" / "index.json"

    @property
    def data_card(self) -> Path:
        return self.data_index.with_name("README.md")

    def model(self, name: str) -> Path:
        """A model folder that 00_prepare built: `helpful_only` or `aligned`."""
        return self.base / "models" / name

    def model_card(self, name: str) -> Path:
        """Hash and training history of a built model; what later stages depend on."""
        return self.base / "models" / f"{name}.json"

    def adapter(self, cell_name: str) -> Path:
        """The adapter of one fine-tune, in peft's format."""
        return self.run / "adapters" / cell_name

    def rows(self, cell_name: str) -> Path:
        """Responses of one cell, appended as they are made."""
        return self.run / "responses" / "rows" / f"{cell_name}.jsonl"

    def table_of_unit(self, kind: str, stage: str, unit: str) -> Path:
        """A table of one finished notebook run, parquet; `kind` is responses, verdicts, scores, guards or the like."""
        return self.run / kind / stage / f"{unit}.parquet"

    @property
    def programs(self) -> Path:
        """Outcomes of programs that were run against their tests, appended one by one."""
        return self.run / "scores" / "programs.jsonl"

    def notebook(self, stage: str, unit: str) -> Path:
        return self.run / "notebooks" / stage / f"{unit}.ipynb"

    def log(self, stage: str, unit: str, ending: str) -> Path:
        """Log files of one notebook run: `ipynb` (kept when it fails), `txt`, `json` (where the time went)."""
        return self.run / "logs" / stage / f"{unit}.{ending}"

    def table(self, name: str) -> Path:
        """A table of the findings, CSV."""
        return self.run / "tables" / f"{name}.csv"

    @property
    def labels(self) -> Path:
        """The user's own labels of the run's responses, made with the labelling sheet."""
        return self.base / "labels.jsonl"

    @property
    def figures(self) -> Path:
        return self.run / "figures"

    @property
    def manifest(self) -> Path:
        """What the run was: profile, versions, hashes, hardware, times."""
        return self.run / "manifest.json"
