"""What every stage notebook begins and ends with: parameters checked, prerequisites there, results and times kept."""

import ast
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from studylib import config, datasets, grid, judges, mixture, products, tables, validation
from studylib.config import Profile, StudyError, digest
from studylib.evaluate import COLUMNS, Runner, trained
from studylib.grid import Cell, Unit
from studylib.paths import NOTEBOOKS, ROOT, RunPaths
from studylib.results import Clock, write_parquet, write_text

LOG = logging.getLogger("studylib")

# What a stage reads, as the stages whose results it needs.
NEEDS = {
    "00_prepare": (),
    "01_baseline": ("00_prepare",),
    "02_finetune": ("00_prepare",),
    "03_defences": ("00_prepare",),
    "04_mitigation": ("00_prepare",),
    "05_helpfulness": ("01_baseline", "02_finetune", "03_defences", "04_mitigation"),
    "06_findings": ("01_baseline", "02_finetune", "03_defences", "04_mitigation", "05_helpfulness"),
    config.LABORATORY: ("00_prepare",),
    config.LABELS: ("01_baseline",),
}
# Of these the stages without which it goes on, saying so.
LOOSE = {
    "05_helpfulness": ("02_finetune", "03_defences", "04_mitigation"),
    "06_findings": ("02_finetune", "03_defences", "04_mitigation", "05_helpfulness"),
}
# What a stage shows beside its own where it is there; in a whole study it is, as the graph waits for it.
BESIDE = {"03_defences": ("01_baseline", "02_finetune")}
# What of a profile a notebook's `overrides` may change: keys, and sections of which every key has an effect there.
OVERRIDES = {
    "01_baseline": ("generation", "system_prompt", "judges"),
    "02_finetune": ("lora", "tuning", "generation", "system_prompt", "judges"),
    "03_defences": ("lora", "tuning", "generation", "system_prompt", "judges", "grid.safety_fraction", "guards"),
    "04_mitigation": ("lora", "tuning", "generation", "system_prompt", "judges", "grid.safety_fraction"),
}
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
            verdicts = validation.verdicts(self.profile, self.paths, responses, runner)
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
            rows, verdicts = products.finished(self.profile, run, stage)
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
            rows, judged = products.finished(self.profile, self.paths, stage)
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
        return products.collect(self.paths, self.profile, kind, NEEDS[self.name], LOOSE.get(self.name, ()))

    def missing(self) -> list[Unit]:
        """The notebook runs that this stage goes on without, because they have not left all their files."""
        units = [unit for stage in LOOSE.get(self.name, ()) for unit in grid.units(self.profile, stage)]
        return [unit for unit in units if not products.is_finished(self.profile, self.paths, unit)]

    def verdicts(self) -> pd.DataFrame:
        """The verdicts of the profile's first judge on the responses of every unit that this stage needs."""
        return self.first(self.collect("verdicts"))

    def so_far(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Responses and verdicts, of all judges, of whatever stage has run; but nothing of `coherence` on what it finds coherent.

        To it that is unjudged, which would be a disagreement with every other judge.
        """
        found = [
            products.finished(self.profile, self.paths, stage) for stage in ("01_baseline", *config.STAGE_SAFETY_DATA)
        ]
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
    known = parameters_of(stage)
    injected = {
        name for source in variables.get("In", []) if source.startswith("# Parameters") for name in _assigned(source)
    }
    given = {name: variables[name] for name in (*known, *injected) if name in variables}
    check_parameters(stage, given)
    if missing := set(known) - set(given):
        raise StudyError(
            f"{stage}: the parameters cell was not run ({', '.join(sorted(missing))} missing): run all cells from the top."
        )
    overrides = given.get("overrides", {})
    _check_overrides(stage, overrides)
    profile = config.load_profile(given["profile"], overrides)
    cells, unit, outside = [], "all", {}
    if stage in config.STAGE_SAFETY_DATA:
        asked = given["task"], given["styles"], given["seeds"], _models(profile, given["models"])
        cells = grid.cells(profile, config.STAGE_SAFETY_DATA[stage], *asked)
        unit = grid.unit_name(profile, *asked)
        outside = outside_grid(profile, cells)
        if stage == "04_mitigation":
            cells += grid.arm_cells(profile, *asked)
    elif stage == "01_baseline":
        asked = _models(profile, given["models"])
        cells, unit = grid.untuned(profile, asked), "+".join(asked) or "all"
    judges.check_first(profile.judges)
    validation.check(profile.labelled)
    paths = RunPaths.of(profile.name, digest({**overrides, **outside}) if overrides or outside else "")
    check_prerequisites(stage, profile, paths, given["profile"])
    check_space(paths.run, profile.execution.min_free_gb)
    launched = float(
        os.environ.get("STUDY_LAUNCHED") or time.time()
    )  # set by studylib.run just before the kernel starts
    missing = datasets.absent(paths) if cells else {}
    not_run = {cell: why for cell in cells if (why := mixture.not_run_because(cell, missing))}
    cells = [cell for cell in cells if cell not in not_run]
    if stage in config.STAGE_SAFETY_DATA:
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


def parameters_of(stage: str) -> dict:
    """Names and defaults of the literals in the notebook's cell tagged `parameters`."""
    for cell in notebook_cells(NOTEBOOKS / f"{stage}.ipynb"):
        if "parameters" in cell["metadata"].get("tags", []):
            return {name: ast.literal_eval(value) for name, value in _assigned(cell["source"]).items()}
    raise StudyError(f"{stage}.ipynb has no cell tagged `parameters`.")


def _assigned(source: str) -> dict[str, ast.expr]:
    return {node.targets[0].id: node.value for node in ast.parse(source).body if isinstance(node, ast.Assign)}


def _check_overrides(stage: str, overrides: dict) -> None:
    allowed = []
    for key in OVERRIDES.get(stage, ()):
        section = Profile.model_fields[key].annotation if key in Profile.model_fields else None
        allowed += [f"{key}.{name}" for name in section.model_fields] if hasattr(section, "model_fields") else [key]
    for key in overrides:
        if key not in allowed and not (stage == "01_baseline" and re.fullmatch(r"models\.\w+\.quantization", key)):
            raise StudyError(
                f"{stage} cannot override {key!r}: it can override {', '.join(allowed) or 'nothing'}; for the rest "
                "copy a profile to a YAML file of your own and run that."
            )


def notebook_cells(path: Path) -> list[dict]:
    """The code cells of a notebook, each with its source as one string."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def check_parameters(stage: str, given: dict) -> None:
    """Raises StudyError for a name that the notebook's parameters cell does not have, or a value of another type than its default."""
    if stage not in NEEDS:
        raise StudyError(f"Unknown stage {stage!r}: known are {', '.join(NEEDS)}.")
    known = parameters_of(stage)
    for name, value in given.items():
        if name not in known:
            raise StudyError(f"{stage} has no parameter {name!r}: it has {', '.join(known)}.")
        if not _alike(value, known[name]):
            raise StudyError(f"{stage}: parameter {name!r} should look like {known[name]!r}, found {value!r}.")


def _alike(value, default) -> bool:
    if isinstance(default, list) and isinstance(value, list):
        if not default:  # all of a profile unless named
            return all(type(item) is str for item in value)
        return bool(value) and all(type(item) is type(default[0]) for item in value)
    return type(value) is type(default)


def check_prerequisites(stage: str, profile: Profile, paths: RunPaths, given: str) -> None:
    """Raises StudyError naming the first result of an earlier stage that is missing or damaged, and how to make it.

    Data are checked by hash, the built model by its size, another model's folder for its parts. `given` is the name
    or path by which the profile was asked for.
    """
    if stage != "00_prepare":
        check_models(profile)
    for needed in (name for name in NEEDS[stage] if name not in LOOSE.get(stage, ())):
        for unit in grid.units(profile, needed):
            if missing := [p for p in products.files(profile, paths, unit) if not p.exists()]:
                setting = "".join(f", {k} = {v!r}" for k, v in unit.parameters.items())
                raise StudyError(
                    f"{stage} needs {missing[0]}, which is not there: run `make study "
                    f"PROFILE={_for_make(given)}`, or notebooks/{needed}.ipynb with profile = {given!r}{setting} first."
                )

    if stage in ("01_baseline", config.LABORATORY, *config.STAGE_SAFETY_DATA):
        datasets.check(paths)
        for name in products.built_models(profile):
            weights, card = paths.model(name) / "model.safetensors", json.loads(paths.model_card(name).read_text())
            if not weights.is_file() or weights.stat().st_size != card["bytes"]:
                raise StudyError(
                    f"{weights} is missing or truncated: delete {weights.parent} and {paths.model_card(name)}, "
                    "then run 00_prepare again (`make study`, or open notebooks/00_prepare.ipynb)."
                )


def check_models(profile: Profile) -> None:
    """Raises StudyError where a model of the profile that 00_prepare does not build is no usable folder or pinned hub id."""
    others = [
        m for m in profile.models.values() if m.source != config.MINIATURE and not m.source.startswith(config.TINY)
    ]
    for model in others:
        from studylib import models

        models.check_source(model.source, model)


def _for_make(given: str) -> str:
    """The profile as `make` takes it, which sees paths from the repository's root."""
    path = config.profile_path(given)
    here = path.parent == config.PROFILES or (ROOT / given).resolve() == path
    return shlex.quote(given if here else str(path))


def check_space(folder: Path, min_free_gb: float) -> None:
    """Raises StudyError where the disk of the folder has less free space than the profile asks for."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < min_free_gb:
        raise StudyError(
            f"Only {free:.1f} GB are free at {existing}, the profile asks for {min_free_gb:g} (execution.min_free_gb): "
            "free some space, or set STUDY_RUNS to a folder on another disk."
        )


def by_work(log: dict) -> dict[str, float]:
    """Seconds by kind of work in the log of a notebook run, each part's of the execution that last did it."""
    seconds = pd.DataFrame(log.get(PARTS, {})).T.sum()
    return {kind: round(value, 2) for kind, value in seconds.items()}
