"""A stage under way, from what its notebook begins with to what it ends with: its cells run, results and times kept."""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pandas as pd

from studylib.analysis import tables
from studylib.data import mixture, sets
from studylib.judges import registry
from studylib.stages import graph, judging
from studylib.stages.cells import COLUMNS, Runner, trained
from studylib.stages.graph import BESIDE, LOOSE, NEEDS, check_prerequisites, check_space, parameters_given
from studylib.study import grid
from studylib.study.files import Clock, digest, write_parquet, write_text
from studylib.study.grid import Cell, Unit
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile, load_profile
from studylib.study.words import STAGE_SAFETY_DATA, StudyError

LOG = logging.getLogger("studylib")

# The times in a notebook run's log: of its last execution, and of each part (a cell, the rest) when it was last made.
LAST, PARTS = "seconds_of_last_execution", "seconds_by_part"
CELL_WORK = ("training", "generation")  # is not done again where its results can be used again


@dataclass
class Stage:
    """A notebook run under way: its profile, where it writes, the cells of the grid it makes, and its clock."""

    name: str
    unit: str
    profile: Profile
    paths: RunPaths
    cells: list[Cell]
    clock: Clock = field(default_factory=Clock)
    started: float = 0.0

    not_run: dict[Cell, str] = field(default_factory=dict)  # cells whose data are not there, and why

    def runner(self, model: str) -> Runner:
        """Tunes and tests the cells of that model; a model loaded before is let go."""
        if self._runner is None or self._runner.model != model:
            self._runner = Runner(self.paths, self.profile, self.clock, model)
        return self._runner

    _runner: Runner | None = None

    def loss(self, cell: Cell) -> pd.Series:
        """The loss curve of the cell's fine-tune by step, after tuning it where its adapter is not there yet."""
        with self._timed(cell):
            folder = self.runner(cell.model).adapter(cell)
        note = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        return pd.Series({row["step"]: row["loss"] for row in note["loss"]})

    def responses(self) -> pd.DataFrame:
        """The responses of all cells of this stage, made where they are not there yet."""
        made = []
        for cell in self.cells:
            with self._timed(cell):
                made.append(self.runner(cell.model).responses(cell))
        return pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=COLUMNS)

    def across(self) -> pd.DataFrame:
        """The responses of all cells to the harmful prompts in the styles in which they were not tuned; made where missing.

        Empty where the profile's `grid.across_styles` is off or the grid has one style.
        """
        styles = self.profile.grid.styles if self.profile.grid.across_styles else []
        made = []
        for cell, style in ((cell, style) for cell in self.cells for style in styles if style != cell.style):
            with self._timed(cell):
                made.append(self.runner(cell.model).responses(cell, style))
        return pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=[*COLUMNS, "trained_style"])

    def judge(self, responses: pd.DataFrame, kind: str = "verdicts") -> pd.DataFrame:
        """The verdicts of the profile's first judge, by which everything is shown; those of all its judges are kept."""
        with self.clock("judging"):
            runner = self.runner(self.profile.miniature_name) if self.profile.miniature else None
            verdicts = judging.verdicts(self.profile, self.paths, responses, runner)
        return self.first(self.save(kind, verdicts))

    def first(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        return verdicts[verdicts["judge"] == self.profile.judges[0]].reset_index(drop=True)

    def losses(self):
        """A matplotlib figure: the loss curves of this stage's fine-tunes, which are made where they are not there yet."""
        import matplotlib.pyplot as plt

        losses = {cell.name: self.loss(cell) for cell in self.cells if trained(cell) == cell}
        figure, axes = plt.subplots(figsize=(7, 3))
        plt.close(figure)  # shown once, as the cell's result
        for name, loss in losses.items():
            axes.plot(loss.index, loss, label=name)
        axes.set(xlabel="step", ylabel="loss on the answers (nats per token)", yscale="log")
        if 0 < len(losses) <= 12:
            axes.legend(fontsize=7, ncols=2)
        return figure

    def beside(self, table: pd.DataFrame) -> pd.DataFrame:
        """Attack success of all forms together: this stage, the untuned model, and the run's own where this is a tweak.

        What was not judged by the profile's first judge is left out, and that is logged.
        """
        found, run = {"this": table}, RunPaths(self.paths.base, self.paths.base)
        others = {"untuned": "01_baseline"} | ({"the run": self.name} if run != self.paths else {})
        for label, stage in others.items():
            rows, verdicts = graph.finished(self.profile, run, stage)
            verdicts = self.first(verdicts)
            if len(rows) and verdicts.empty:  # a tweak may have another first judge
                LOG.info("%s was not judged by %s: nothing of it is shown here.", label, self.profile.judges[0])
            elif len(rows):
                alike = rows["style"].isin([cell.style for cell in self.cells])
                alike &= rows["model"].isin([cell.model for cell in self.cells])
                if label == "the run":
                    alike &= rows["finetune_task"].isin([cell.finetune_task for cell in self.cells])
                    seeds = {cell.seed for cell in self.cells} & set(self.profile.grid.seeds)
                    alike &= rows["seed"].isin(seeds or self.profile.grid.seeds)
                if alike.any():
                    found[label] = tables.attack_success(rows[alike], verdicts)
        keys, columns = ["model", "style", "system_prompt"], ["rate", "low", "high", "n", "n_seeds"]
        whole = {label: t[t["form"] == "all"].set_index(keys)[columns] for label, t in found.items()}
        return pd.concat(whole, names=["who"]).sort_index(level=keys)

    def with_beside(self, responses: pd.DataFrame, verdicts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The stage's responses and verdicts after those of the untuned models and the fine-tunes without safety data.

        Of the fine-tunes, tasks, styles, seeds and models are this stage's own. What 01_baseline and 02_finetune have
        not made yet is missing, and is said; a tweak has none beside it, as its settings are others.
        """
        cells = [*self.cells, *self.not_run]
        own = {name: {getattr(cell, name) for cell in cells} for name in ("model", "style", "finetune_task", "seed")}
        found = [(responses, verdicts)]
        for stage in BESIDE[self.name] if self.paths.run == self.paths.base else ():
            rows, judged = graph.finished(self.profile, self.paths, stage)
            judged = self.first(judged)
            if rows.empty:
                LOG.info("%s has not run yet: nothing of it is shown here.", stage)
            tuned = rows["finetune_task"] != "none"
            alike = rows["model"].isin(own["model"]) & rows["style"].isin(own["style"])
            alike &= ~tuned | (rows["finetune_task"].isin(own["finetune_task"]) & rows["seed"].isin(own["seed"]))
            found.insert(-1, (rows[alike], judged[judged["response_id"].isin(rows.loc[alike, "response_id"])]))
        return tuple(
            pd.concat([frame for frame in frames if len(frame)] or frames[-1:], ignore_index=True)
            for frames in zip(*found, strict=True)
        )

    def save(self, kind: str, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame as kept on disk in `<kind>/<stage>/<unit>.parquet`."""
        path = self.paths.table_of_unit(kind, self.name, self.unit)
        write_parquet(path, frame)
        return pd.read_parquet(path)

    def collect(self, kind: str) -> pd.DataFrame:
        """The frames of that kind of every unit that this stage needs, as one; verdicts are those of all judges.

        Of stages that it can go on without, the units that have left all their files; empty where there is none.
        """
        return graph.collect(self.paths, self.profile, kind, NEEDS[self.name], LOOSE.get(self.name, ()))

    def missing(self) -> list[Unit]:
        """The notebook runs that this stage goes on without, because they have not left all their files."""
        units = [unit for stage in LOOSE.get(self.name, ()) for unit in grid.units(self.profile, stage)]
        return [unit for unit in units if not graph.is_finished(self.profile, self.paths, unit)]

    def verdicts(self) -> pd.DataFrame:
        """The verdicts of the profile's first judge on the responses of every unit that this stage needs."""
        return self.first(self.collect("verdicts"))

    def so_far(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Responses and verdicts, of all judges, of whatever stage has run; but nothing of `coherence` on what it finds coherent.

        To it that is unjudged, which would be a disagreement with every other judge.
        """
        found = [graph.finished(self.profile, self.paths, stage) for stage in ("01_baseline", *STAGE_SAFETY_DATA)]
        responses, verdicts = (
            pd.concat([f for f in frames if len(f)], ignore_index=True) for frames in zip(*found, strict=True)
        )
        coherent = (verdicts["judge"] == "coherence") & (verdicts["verdict"] == "unjudged")
        return responses, verdicts[~coherent].reset_index(drop=True)

    def finish(self) -> pd.Series:
        """Seconds of this execution by kind of work; also kept in the run's logs for the manifest."""
        total = time.time() - self.started
        times = {kind: round(seconds, 2) for kind, seconds in self.clock.items()}
        times["rest"] = round(max(0.0, total - sum(times.values())), 2)
        own = {kind: seconds for kind, seconds in times.items() if not (self.cells and kind in CELL_WORK)}
        times["total"] = round(total, 2)
        self._keep("notebook", own, {LAST: times})
        return pd.Series(times, name="seconds")

    @contextmanager
    def _timed(self, cell: Cell) -> Iterator[None]:
        """Nothing; how long the cell is tuned and tested meanwhile is kept; results that are used again keep their time."""
        before = dict(self.clock)
        yield
        spent = {kind: self.clock.get(kind, 0.0) - before.get(kind, 0.0) for kind in CELL_WORK}
        if any(spent.values()):
            self._keep(cell.name, {kind: round(seconds, 2) for kind, seconds in spent.items() if seconds})

    def _keep(self, part: str, seconds: dict[str, float], more: dict | None = None) -> None:
        """Writes a part's seconds into the log beside those of earlier executions: at once, as the run may be stopped."""
        path = self.paths.log(self.name, self.unit, "json")
        log = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        parts = log.get(PARTS, {})
        parts[part] = {**parts.get(part, {}), **seconds}
        now = {name: parts[name] for name in ("notebook", *(cell.name for cell in self.cells)) if name in parts}
        write_text(path, json.dumps({LAST: log.get(LAST, {}), **(more or {}), PARTS: now}, indent=1) + "\n")


def begin(stage: str, variables: dict) -> Stage:
    """The stage under way, after its parameters and prerequisites were checked. Call it as `begin("01_baseline", globals())`.

    Raises StudyError for a parameter that the notebook does not know or that has the wrong type, a stage that has to run
    before, a model folder that cannot be used, or too little free space: before any work starts.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s", force=True)
    LOG.setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of an optional CPU kernel on every import
    pd.set_option("display.max_colwidth", None, "display.max_rows", 100)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # bars of milliseconds would drown the study's own progress lines
    warnings.filterwarnings(
        "ignore", "`is_gradient_checkpointing`", FutureWarning
    )  # peft's call, nothing to do with the reader
    given = parameters_given(stage, variables)
    overrides = given.get("overrides", {})
    profile = load_profile(given["profile"], overrides)
    cells, unit, outside = [], "all", {}
    if stage in STAGE_SAFETY_DATA:
        asked = given["task"], given["styles"], given["seeds"], _models(profile, given["models"])
        cells = grid.cells(profile, STAGE_SAFETY_DATA[stage], *asked)
        unit = grid.unit_name(profile, *asked)
        outside = outside_grid(profile, cells)
        if stage == "04_mitigation":
            cells += grid.arm_cells(profile, *asked)
    elif stage == "01_baseline":
        asked = _models(profile, given["models"])
        cells, unit = grid.untuned(profile, asked), "+".join(asked) or "all"
    registry.check_first(profile.judges)
    judging.check(profile.labelled)
    paths = RunPaths.of(profile.name, digest({**overrides, **outside}) if overrides or outside else "")
    check_prerequisites(stage, profile, paths, given["profile"])
    check_space(paths.run, profile.execution.min_free_gb)
    launched = float(
        os.environ.get("STUDY_LAUNCHED") or time.time()
    )  # set by studylib.run just before the kernel starts
    missing = sets.absent(paths) if cells else {}
    not_run = {cell: why for cell in cells if (why := mixture.not_run_because(cell, missing))}
    cells = [cell for cell in cells if cell not in not_run]
    if stage in STAGE_SAFETY_DATA:
        mixture.check_tunings(profile, paths, cells)
    under_way = Stage(stage, unit, profile, paths, cells, started=launched, not_run=not_run)
    for cell, why in not_run.items():
        LOG.info("%s: not run, %s", cell.name, why)
    under_way.clock["start-up"] = time.time() - launched
    if paths.run != paths.base:
        reasons = [f"{key} = {value!r}" for key, value in overrides.items()]
        reasons += [f"{word} {', '.join(map(str, values))} not in the grid" for word, values in outside.items()]
        LOG.info(
            "Results go to %s, apart from the run of %s, and no later stage reads them: %s.",
            paths.run,
            profile.name,
            "; ".join(reasons),
        )
    return under_way


def _models(profile: Profile, asked: list[str]) -> list[str]:
    """The models asked for, none where that is all of them. Raises StudyError for one that the profile does not have."""
    if unknown := [name for name in asked if name not in profile.models]:
        raise StudyError(f"Unknown model {unknown[0]!r}: {profile.name} has {', '.join(profile.models)}.")
    return [] if list(asked) == list(profile.models) else list(asked)


def outside_grid(profile: Profile, cells: list[Cell]) -> dict[str, list]:
    """What of the fine-tunes is not in the profile's grid, by its word there; no later stage reads such results."""
    asked = {
        "tasks": {cell.finetune_task for cell in cells},
        "styles": {cell.style for cell in cells},
        "safety_data": {cell.safety_data for cell in cells},
        "seeds": {cell.seed for cell in cells},
    }
    outside = {word: sorted(values - set(getattr(profile.grid, word))) for word, values in asked.items()}
    return {word: values for word, values in outside.items() if values}


def by_work(log: dict) -> dict[str, float]:
    """Seconds by kind of work in the log of a notebook run, each part's of the execution that last did it."""
    seconds = pd.DataFrame(log.get(PARTS, {})).T.sum()
    return {kind: round(value, 2) for kind, value in seconds.items()}
