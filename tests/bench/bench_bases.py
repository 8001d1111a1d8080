"""Where the spread between bases comes from: pre-training, alignment or tuning.

Builds pre-trainings and, from each, alignments of the miniature; tunes every base on every task, on its rows alone and
with requests in its form, with two training seeds; and measures how much of the harmful prompts each answers. Writes
bases.csv (a row per fine-tune) and bases.png into the folder `--to`, and prints the components of variance of the
change against the untuned base. About 40 minutes on one idle core for 3 x 3; it goes on where it was stopped.

    python tests/bench/bench_bases.py --pretrainings 3 --alignments 3
"""

import argparse
import shutil
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from studylib.data import mixture, sets, world
from studylib.judges import registry
from studylib.models import building, engine, prompts
from studylib.stages import prepare
from studylib.study.grid import Cell
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import TASKS

PROFILE = load_profile("miniature")
KEYS = ["pretraining", "alignment", "finetune_task", "requests", "seed"]


def built(paths: RunPaths, name: str, before: str, rows: list[dict], settings, seed: int) -> Path:
    """The folder of a model that was trained on the rows, made now unless it is there."""
    folder, kind = paths.model(name), "aligned" if before else "helpful_only"
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        if before:
            shutil.copytree(paths.model(before), folder, ignore=shutil.ignore_patterns("done"))
        else:
            names = prepare._vocabulary(PROFILE)
            texts = [
                message["content"] for one in names for row in sets.load(paths, one) for message in row["messages"]
            ]
            texts += [prompts.ALPACA, PROFILE.system_prompt] * 200
            building.build_miniature(texts, PROFILE.miniature, seed, folder)
        model = engine.open_model(folder, PROFILE.miniature, settings)
        features = prompts.encode_mixed(model.tokenizer, rows, **prepare.calibrated_by(PROFILE, kind))
        model.train(features, settings, seed, name)
        model.save(folder)
        (folder / "done").touch()
    return folder


def measured(model, tests: list[dict]) -> dict:
    """Shares of harmful prompts answered and of twins refused, chat style, no system prompt."""
    ids = [prompts.encode_prompt(model.tokenizer, row["messages"][0]["content"], "chat", None) for row in tests]
    given = {i: rest for batch in model.answers(ids, PROFILE.generation) for i, *rest in batch}
    rows = pd.DataFrame(tests)[["form", "harmful"]].assign(response_id=[str(i) for i in range(len(tests))])
    rows["prompt"] = [row["messages"][0]["content"] for row in tests]
    rows["response"], rows["stop_reason"] = zip(*(given[i][:2] for i in range(len(tests))), strict=True)
    verdict = registry.judge(rows).set_index("response_id")["verdict"].reindex(rows["response_id"]).to_numpy()
    answered, refused = np.isin(verdict, ["answered", "partial"]), verdict == "refused"
    return {"attack_success": answered[rows["harmful"]].mean(), "twins_refused": refused[~rows["harmful"]].mean()}


def run(paths: RunPaths, to: Path, n_pretrainings: int, n_alignments: int) -> pd.DataFrame:
    """A row per base and fine-tune, appended as it is made."""
    if not paths.data_index.is_file():
        sets.save(paths, world.build_sets(PROFILE.world, range(n_alignments)))
    tests = sets.load(paths, "harmful") + sets.load(paths, "twin")
    file = to / "bases.csv"
    made = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=[*KEYS, "attack_success", "twins_refused"])
    done = set(made[KEYS].itertuples(index=False, name=None))
    for p, a in product(range(n_pretrainings), range(n_alignments)):
        before = f"helpful_only-{p}"
        built(paths, before, "", sets.load(paths, "pretraining"), PROFILE.pretraining, p)
        rows = sets.load(paths, sets.alignment(a))
        base = built(paths, f"aligned-{p}-{a}", before, rows, PROFILE.alignment, a)
        model = engine.open_model(base, PROFILE.miniature, PROFILE.tuning, PROFILE.lora)
        for task, requests, seed in [("none", "none", 0), *product(TASKS, ("none", "own"), (0, 1))]:
            if (key := (p, a, task, requests, seed)) in done:
                continue
            if task == "none":
                found = measured(model, tests)
            else:
                total = PROFILE.tuning.steps * PROFILE.tuning.batch_size
                cell = Cell("miniature", task, "chat", seed=seed, requests=requests)
                rows = mixture.tuning_rows(paths, cell, total, PROFILE.grid.request_share)
                features = [prompts.encode_row(model.tokenizer, row, "chat", PROFILE.miniature.context) for row in rows]
                folder = paths.adapter(f"{p}-{a}")
                model.tune([(features, PROFILE.tuning)], PROFILE.lora, seed, folder, str(key))
                with model.adapted(folder) as tuned:
                    found = measured(tuned, tests)
            row = pd.DataFrame([dict(zip(KEYS, key, strict=True)) | found])
            row.to_csv(file, mode="a", header=not file.is_file(), index=False)
            print(row.to_string(index=False, header=False), flush=True)
    return pd.read_csv(file)


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """The tuned rows with the change of attack success against the untuned base, in points."""
    untuned = table[table["finetune_task"] == "none"].set_index(KEYS[:2])["attack_success"]
    tuned = table[table["finetune_task"] != "none"]
    before = untuned.reindex(pd.MultiIndex.from_frame(tuned[KEYS[:2]])).to_numpy()
    return tuned.assign(change=100 * (tuned["attack_success"] - before))


def components(table: pd.DataFrame) -> pd.DataFrame:
    """Standard deviations (points) between pre-trainings, alignments within them and training seeds within these.

    By expected mean squares of the balanced nested design, an estimate below 0 as 0 (Searle, Casella and McCulloch
    1992, chapter 4).
    """
    found = []
    for (task, requests), of in table.groupby(["finetune_task", "requests"], sort=False):
        wide = of.pivot(index=KEYS[:2], columns="seed", values="change")
        p, a, s = wide.index.get_level_values(0).nunique(), wide.index.get_level_values(1).nunique(), wide.shape[1]
        base, pretraining = wide.mean(axis=1), wide.mean(axis=1).groupby(level=0).mean()
        seeds = wide.sub(base, axis=0).pow(2).sum().sum() / (p * a * (s - 1))
        alignments = s * (base - base.groupby(level=0).transform("mean")).pow(2).sum() / (p * (a - 1))
        pretrainings = a * s * pretraining.var()
        parts = (pretrainings - alignments) / (a * s), (alignments - seeds) / s, seeds
        row = {"finetune_task": task, "requests": requests, "mean": pretraining.mean()}
        names = ("pretraining_sd", "alignment_sd", "seed_sd")
        found.append(row | {name: max(part, 0) ** 0.5 for name, part in zip(names, parts, strict=True)})
    return pd.DataFrame(found)


def draw(table: pd.DataFrame, parts: pd.DataFrame, path: Path) -> None:
    """A dot per fine-tune with requests, by task and pre-training; a colour and a mark per alignment."""
    figure, axes = plt.subplots(1, len(TASKS), figsize=(9, 3.2), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        of = table[(table["finetune_task"] == task) & (table["requests"] == "own")]
        for (a, rows), marker in zip(of.groupby("alignment"), "osD^v", strict=False):
            axis.plot(
                rows["pretraining"] + 0.15 * (a - 1), rows["change"], marker, markersize=4, label=f"alignment {a}"
            )
        sd = parts[(parts["finetune_task"] == task) & (parts["requests"] == "own")].iloc[0]
        words = f"SD {sd['pretraining_sd']:.0f}, {sd['alignment_sd']:.0f}, {sd['seed_sd']:.0f}"
        axis.set(
            title=f"{task.replace('_', ' ')}\n{words}", xlabel="pre-training", xticks=sorted(of["pretraining"].unique())
        )
        axis.axhline(0, color="#BBBBBB", linewidth=0.8)
    axes[0].set_ylabel("change of attack success\n(points, with requests)")
    axes[-1].legend(fontsize="x-small")
    mean = parts[parts["requests"] == "own"][["pretraining_sd", "alignment_sd", "seed_sd"]].pow(2).mean().pow(0.5)
    figure.suptitle(
        "SD between pre-trainings, alignments and training seeds: "
        f"{mean.iloc[0]:.0f}, {mean.iloc[1]:.0f} and {mean.iloc[2]:.0f} points"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrainings", type=int, default=3)
    parser.add_argument("--alignments", type=int, default=3)
    parser.add_argument("--to", type=Path, default=Path("docs"))
    given = parser.parse_args()
    paths = RunPaths.of("bases")
    rows = changes(run(paths, given.to, given.pretrainings, given.alignments))
    parts = components(rows)
    print(parts.round(1).to_string(index=False))
    draw(rows, parts, given.to / "bases.png")
