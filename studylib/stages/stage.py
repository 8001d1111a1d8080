"""A stage under way, from what its notebook begins with to what it ends with."""

import json
import logging
import os
import sys
import time
import warnings
from dataclasses import dataclass, field

import pandas as pd

from studylib.analysis import readable, tables
from studylib.data import mixture, sets
from studylib.judges import registry
from studylib.stages import graph, judging
from studylib.stages.cells import COLUMNS, Runner, trained
from studylib.stages.graph import COMPARED, NEEDS, OPTIONAL, check_prerequisites, check_space, parameters_given
from studylib.study import grid
from studylib.study.files import Clock, digest, write_parquet, write_text
from studylib.study.grid import Cell, Unit
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile, load_profile
from studylib.study.words import STAGE_SAFETY_DATA, StudyError, counted

LOG = logging.getLogger("studylib")


@dataclass(repr=False)
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
    missing: list[Unit] = field(default_factory=list)  # notebook runs without whose files it goes on
    _runner: Runner | None = None

    def __repr__(self) -> str:
        about = f"{self.name} of the profile {self.profile.name}"
        if not self.cells:
            return about
        words = {"model": "models", "base": "bases", "finetune_task": "tasks", "style": "styles", "seed": "seeds"}
        values = {word: [getattr(cell, name) for cell in self.cells] for name, word in words.items()}
        values["mixed in"] = map(_arm, self.cells)
        size = counted(len(self.cells), "model")
        lines = (f"\n  {word}: {', '.join(map(str, dict.fromkeys(each)))}" for word, each in values.items())
        return f"{about}: {size} to test" + "".join(lines)

    def tune(self):
        """A matplotlib figure: the loss curves of this stage's fine-tunes, which are made where they are not there yet.

        A line per base and seed.
        """
        import matplotlib.pyplot as plt
        import seaborn as sns

        curves, columns = [], ["step", "loss", "mixed in", "style", "cell"]
        for cell in (cell for cell in self.cells if trained(cell) == cell):
            note = json.loads((self._runner_of(cell).adapter(cell) / "study.json").read_text(encoding="utf-8"))
            curves += [(row["step"], row["loss"], _arm(cell), cell.style, cell.name) for row in note["loss"]]
        figure, axes = plt.subplots(figsize=(7, 3))
        plt.close(figure)  # shown once, as the cell's result
        look = {"hue": "mixed in", "style": "style", "units": "cell", "estimator": None, "linewidth": 1}
        sns.lineplot(pd.DataFrame(curves, columns=columns), x="step", y="loss", **look, ax=axes)
        axes.set(ylabel="loss on the answers (nats per token)", yscale="log")
        sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
        return figure

    def answer(self, across: bool = False) -> pd.DataFrame:
        """The responses of all cells to every test prompt, made where they are missing, as stored in `responses/`.

        With `across` those to the harmful prompts in the styles in which the cells were not tuned, as stored in
        `across/`, of the cells that are tested with the system prompt too. None where the profile's
        `grid.across_styles` is off or the grid has one style.
        """
        styles = self.profile.grid.styles if self.profile.grid.across_styles else []
        made = [pd.DataFrame(columns=[*COLUMNS, "trained_style"] if across else COLUMNS)]
        for cell in self.cells:
            explored = len(grid.system_prompts(self.profile, cell)) > 1
            others = [style for style in styles if style != cell.style and explored]
            for style in others if across else [cell.style]:
                made.append(self._runner_of(cell).responses(cell, style))
        return self.save("across" if across else "responses", pd.concat(made[1:] or made, ignore_index=True))

    def judge(self, responses: pd.DataFrame) -> pd.DataFrame:
        """The verdicts of the profile's first judge; those of all its judges are saved."""
        with self.clock("judging"):
            verdicts = judging.verdicts(self.profile, self.paths, responses)
        kind = "across_verdicts" if "trained_style" in responses else "verdicts"
        return _of_first_judge(self.profile, self.save(kind, verdicts))

    def compare(self, table: pd.DataFrame) -> pd.DataFrame:
        """Attack success of all forms together, in percent: of this stage, the untuned model, and in a tweak the run's.

        `table` is this stage's (tables.attack_success). What has not run, or was not judged by the profile's first
        judge, is left out, and that is logged.
        """
        run = RunPaths(self.paths.base, self.paths.base)
        earlier = {"untuned": "01_baseline"} if self.name != "01_baseline" else {}
        earlier |= {"the run": self.name} if run != self.paths else {}
        made = {label: self._earlier(run, stage) for label, stage in earlier.items()}
        found = {label: tables.attack_success(*one) for label, one in made.items() if all(map(len, one))}
        keys = ["model", "style", "system_prompt"]
        whole = pd.concat(found | {"this": table}, names=["who"]).reset_index("who").query("form == 'all'")
        whole = whole.assign(answered=readable.percent(whole, "rate", "low", "high")).sort_values(keys, kind="stable")
        shown = whole.set_index(["who", *keys, "requests", "safety_data", "safety_fraction"])
        return shown[["answered", "n", "n_unjudged", "n_bases", "n_seeds"]]

    def with_earlier(self, responses: pd.DataFrame, verdicts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The stage's responses and verdicts after those of the untuned models and the fine-tunes without safety data.

        What has not run yet is missing, and that is logged; a tweak has this stage's alone, as its settings are others.
        """
        stages = COMPARED[self.name] if self.paths.run == self.paths.base else ()
        found = [*(self._earlier(self.paths, stage) for stage in stages), (responses, verdicts)]
        return tuple(
            pd.concat([frame for frame in frames if len(frame)] or frames[-1:], ignore_index=True)
            for frames in zip(*found, strict=True)
        )

    def save(self, kind: str, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame as stored in `<kind>/<stage>/<unit>.parquet`."""
        path = self.paths.table_of_unit(kind, self.name, self.unit)
        write_parquet(path, frame)
        return pd.read_parquet(path)

    def collect(self, kind: str, all_judges: bool = False) -> pd.DataFrame:
        """The frames of that kind of every unit that this stage needs, as one; verdicts are those of the first judge.

        Of OPTIONAL stages, the units that have left all their files; empty where there is none.
        """
        found = graph.collect(self.paths, self.profile, kind, NEEDS[self.name], OPTIONAL.get(self.name, ()))
        return found if all_judges or kind not in graph.VERDICTS_OF else _of_first_judge(self.profile, found)

    def finish(self) -> pd.Series:
        """Seconds of this execution by kind of work; also written to the run's logs for the manifest."""
        total = time.time() - self.started
        times = {kind: round(seconds, 2) for kind, seconds in self.clock.items()}
        times["rest"] = round(max(0.0, total - sum(times.values())), 2)
        times["total"] = round(total, 2)
        noted = times | {"ended": round(self.started + total, 2)}
        write_text(self.paths.log(self.name, self.unit, "json"), json.dumps(noted, indent=1) + "\n")
        return pd.Series(times, name="seconds")

    def _earlier(self, run: RunPaths, stage: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Responses and first-judge verdicts of a stage of the run, of this stage's part of the grid.

        Of all the grid's seeds where this stage has others.
        """
        rows, verdicts = graph.finished(self.profile, run, stage)
        verdicts = _of_first_judge(self.profile, verdicts)
        if rows.empty:
            LOG.info("%s has not run yet: nothing of it is shown here. Run it, then this cell again.", stage)
        elif verdicts.empty:  # a tweak may have another first judge
            LOG.info("%s was not judged by %s: nothing of it is shown here.", stage, self.profile.judges[0])
        cells = [*self.cells, *self.not_run]
        names = ("model", "base", "style", "finetune_task", "seed")
        own = {name: {getattr(cell, name) for cell in cells} for name in names}
        own["seed"] = own["seed"] & set(self.profile.grid.seeds) or self.profile.grid.seeds
        same = {name: rows[name].isin(values) for name, values in own.items()}
        untuned = rows["finetune_task"] == "none"
        rows = rows[same["model"] & same["base"] & same["style"] & (untuned | (same["finetune_task"] & same["seed"]))]
        return rows, verdicts[verdicts["response_id"].isin(rows["response_id"])]

    def _runner_of(self, cell: Cell) -> Runner:
        """Tunes and tests the cells of that cell's model and base; a model loaded before is let go."""
        if self._runner is None or (self._runner.model, self._runner.number) != (cell.model, cell.base):
            self._runner = Runner(self.paths, self.profile, self.clock, cell.model, cell.base)
        return self._runner


def _arm(cell: Cell) -> str:
    """What is mixed into the task's rows: "own requests + multitask 10%", "nothing"."""
    mixed = [f"{cell.requests} requests"] if cell.requests != "none" else []
    mixed += [f"{cell.safety_data} {cell.safety_fraction:.0%}"] if cell.safety_fraction else []
    return " + ".join(mixed) or "nothing"


def _of_first_judge(profile: Profile, verdicts: pd.DataFrame) -> pd.DataFrame:
    return verdicts[verdicts["judge"] == profile.judges[0]].reset_index(drop=True)


def one_batch(now: Stage, n_rows: int = 4) -> tuple:
    """The untuned model of the stage's first cell (engine.open_model) and that cell's first training examples."""
    runner = now._runner_of(now.cells[0])
    return runner.base, runner.tuning_parts(now.cells[0])[0][0][:n_rows]


def finished_responses(now: Stage) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Responses and verdicts, of all judges, of whatever stage has run; without `coherence` on what it finds coherent.

    It calls that unjudged, a disagreement with every other judge.
    """
    found = [graph.finished(now.profile, now.paths, stage) for stage in ("01_baseline", *STAGE_SAFETY_DATA)]
    responses, verdicts = (
        pd.concat([frame for frame in frames if len(frame)], ignore_index=True) for frames in zip(*found, strict=True)
    )
    coherent = (verdicts["judge"] == "coherence") & (verdicts["verdict"] == "unjudged")
    return responses, verdicts[~coherent].reset_index(drop=True)


def begin(stage: str, variables: dict) -> Stage:
    """The stage under way, after its parameters and prerequisites were checked: `begin("01_baseline", globals())`.

    Raises StudyError, before any work starts, for a parameter that is unknown or of the wrong type, a stage that has to
    run before, a model folder that cannot be used, or too little free space.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s", force=True)
    LOG.setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of an optional CPU kernel on every import
    pd.set_option("display.max_colwidth", None, "display.max_rows", 100)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # bars of milliseconds would drown the study's own progress lines
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # of peft's own call
    given = parameters_given(stage, variables)
    overrides = given.get("overrides", {})
    profile = load_profile(given["profile"], overrides)
    cells, unit, outside = [], "all", {}
    if stage in STAGE_SAFETY_DATA:
        asked = given["task"], given["styles"], given["seeds"], _models(profile, given["models"]), given["bases"]
        cells = grid.cells(profile, STAGE_SAFETY_DATA[stage], *asked)
        unit = grid.unit_name(profile, *asked)
        outside = outside_grid(profile, cells)
        if stage == "04_mitigation":
            cells += grid.arm_cells(profile, *asked)
        if not cells:
            raise StudyError(f"{unit} is outside grid.safety_styles or grid.explore_bases: set them in your profile.")
    elif stage == "01_baseline":
        asked = _models(profile, given["models"])
        cells, unit = grid.untuned(profile, asked), "+".join(asked) or "all"
    registry.check_first(profile.judges)
    judging.check(profile.labelled)
    paths = RunPaths.of(profile.name, digest({**overrides, **outside}) if overrides or outside else "")
    check_prerequisites(stage, profile, paths, given["profile"])
    check_space(paths.run, profile.execution.min_free_gb)
    launched = float(os.environ.get("STUDY_LAUNCHED") or time.time())  # set by studylib.run before the kernel starts
    absent = sets.absent(paths) if cells else {}
    not_run = {cell: why for cell in cells if (why := mixture.not_run_because(cell, absent))}
    cells = [cell for cell in cells if cell not in not_run]
    if stage in STAGE_SAFETY_DATA:
        mixture.check_tunings(profile, paths, cells)
    optional = [one for earlier in OPTIONAL.get(stage, ()) for one in grid.units(profile, earlier)]
    missing = [one for one in optional if not graph.is_finished(profile, paths, one)]
    under_way = Stage(stage, unit, profile, paths, cells, started=launched, not_run=not_run, missing=missing)
    for cell, why in not_run.items():
        LOG.info("%s: not run, %s", cell.name, why)
    under_way.clock["start-up"] = time.time() - launched
    if paths.run != paths.base:
        reasons = [f"{key} = {value!r}" for key, value in overrides.items()]
        reasons += [f"{word} {', '.join(map(str, values))} not in the grid" for word, values in outside.items()]
        said = "Results go to %s, apart from the run of %s, and no later stage reads them: %s."
        LOG.info(said, paths.run, profile.name, "; ".join(reasons))
    return under_way


def _models(profile: Profile, asked: list[str]) -> list[str]:
    """The models asked for, none where that is all of them."""
    if unknown := [name for name in asked if name not in profile.models]:
        raise StudyError(f"Unknown model {unknown[0]!r}: {profile.name} has {', '.join(profile.models)}.")
    return [] if list(asked) == list(profile.models) else list(asked)


def outside_grid(profile: Profile, cells: list[Cell]) -> dict[str, list]:
    """What of the fine-tunes is not in the profile's grid, by its word there; no later stage reads such results."""
    words = {"tasks": "finetune_task", "styles": "style", "safety_data": "safety_data", "seeds": "seed"}
    asked = {word: {getattr(cell, name) for cell in cells} for word, name in words.items()}
    outside = {word: sorted(values - set(getattr(profile.grid, word))) for word, values in asked.items()}
    return {word: values for word, values in outside.items() if values}
