"""Runs beside each other: settings from the manifests, results from the tables, and the notebook that shows both."""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from two_runs import ONE, TWO, both, changed, copied, where, with_a_second_model

from studylib.analysis import runs as between_runs
from studylib.analysis import stats, tables
from studylib.study.paths import NOTEBOOKS
from studylib.study.words import StudyError

CODE = {"finetune_task": "code", "style": "chat", "system_prompt": False, "safety_data": "none", "form": "all"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return both(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    return copied(made, tmp_path, monkeypatch)


def with_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_a_difference_is_the_one_that_newcombe_published(one, other, low, high):
    from studylib.analysis.stats import wilson

    ends = stats.newcombe(one[0] / one[1], *wilson(*one), other[0] / other[1], *wilson(*other))
    assert ends == pytest.approx((low, high), abs=5e-5)


def test_a_run_and_its_copy_differ_in_nothing(runs):
    shutil.copytree(runs / ONE, runs / "copy")
    pair = between_runs.read_runs([ONE, "copy"])
    found = between_runs.differences(pair)
    n_results = sum(
        run.tables[t][v].notna().sum()
        for run in pair[:1]
        for t, v in (("attack_success", "rate"), ("helpfulness", "value"))
    )
    assert len(found) == n_results > 100
    assert found["difference"].eq(0).all() and found["interval"].eq("includes 0").all()
    assert (
        found["note"].eq("").all()
        and between_runs.in_one_run(pair).empty
        and between_runs.largest_differences(found).empty
    )
    assert between_runs.settings(pair).empty
    words = between_runs.runs_in_words(pair)
    assert words.startswith(
        f"**The interval of the difference excludes 0 in 0 of {n_results} comparable results (0 %)**"
    )
    assert "largest" not in words and "Caveats" not in words and "before tuning" not in words


def test_the_later_run_is_lower_where_it_answers_less_and_the_first_is_what_it_is_compared_with(runs):
    found = between_runs.differences(between_runs.read_runs([ONE, TWO]))
    row = where(found, measure="attack_success_rate", **CODE).iloc[0]
    assert (row["run"], row["run_against"], row["interval"]) == (TWO, ONE, "below 0")
    assert (row["value"], row["value_against"], row["difference"]) == (0, 1, -1)
    assert -1 <= row["difference_low"] < row["difference_high"] < -0.5
    ends = stats.newcombe(0, row["low"], row["high"], 1, row["low_against"], row["high_against"])
    assert (row["difference_low"], row["difference_high"]) == ends
    differ = found[found["interval"] != "includes 0"]
    assert set(differ["measure"]) == {"attack_success_rate"} and set(differ["finetune_task"]) == {"code"}
    turned = between_runs.differences(between_runs.read_runs([TWO, ONE]))
    assert where(turned, measure="attack_success_rate", **CODE)["interval"].tolist() == ["above 0"]


def test_the_words_and_the_short_table_give_the_share_of_intervals_that_exclude_0_and_the_largest(runs):
    pair = between_runs.read_runs([ONE, TWO])
    found, words = between_runs.differences(pair), between_runs.runs_in_words(between_runs.read_runs([ONE, TWO]))
    differ = found[found["interval"] == "below 0"]
    share = 100 * len(differ) / len(found)
    assert f"excludes 0 in {len(differ)} of {len(found)} comparable results ({share:.0f} %)**: " in words
    assert f"attack success rate {len(differ)} of {len(where(found, measure='attack_success_rate'))}" in words
    assert "-100 percentage points" in words and "0 % in two against 100 % in one" in words
    short = between_runs.largest_differences(found)
    assert len(short) == len(differ) and short["points"].iloc[0].startswith("-100 (-100 to ")
    assert where(short, **CODE)["its_percent"].iloc[0].startswith("100 (")
    shown = between_runs.runs_in_percent(pair)
    assert list(shown) == [ONE, TWO]
    cell = shown.xs("code", level="finetune_task").xs("none", level="safety_data")
    assert cell[ONE].str.startswith("100 (").all() and cell[TWO].str.startswith("0 (0-").all()


def test_only_settings_that_differ_are_shown_with_both_values_and_what_is_missing_is_nan(runs):
    def change(manifest):
        manifest["profile"]["tuning"] = {"steps": 96, "warmup_ratio": 1}  # 1.0 and 1 are the same
        manifest["profile"]["grid"]["seeds"] = manifest["seeds"] = [0, 1, 2]
        manifest["profile"] |= {"description": "other words", "name": "yours"}
        manifest["data"]["harmful"] |= {"sha256": "9" * 64, "bytes": 51, "forms": {"code": 6}}
        manifest["models"]["aligned"]["sha256"] = "8" * 64
        manifest |= {"git_commit": "d" * 40, "packages": {}, "seconds_by_work": {}}
        manifest["hardware"]["gpu"] = "H200"

    with_manifest(runs / TWO, change)
    found = between_runs.settings(between_runs.read_runs([ONE, TWO]))
    assert found.fillna("missing").T.to_dict("list") == {
        "profile.name": ["mine", "yours"],
        "profile.tuning.steps": ["48", "96"],
        "profile.grid.seeds": ["[0, 1]", "[0, 1, 2]"],
        "git_commit": ["a" * 12, "d" * 12],
        "packages.torch": ["2.9.0", "missing"],
        "hardware.gpu": ["null", "H200"],
        "data.harmful.sha256": ["h" * 12, "9" * 12],
        "models.aligned.sha256": ["b" * 12, "8" * 12],
    }


def test_a_manifest_of_another_version_that_lacks_keys_is_compared(runs):
    (runs / TWO / "manifest.json").write_text("{}")
    pair = between_runs.read_runs([ONE, TWO])
    assert between_runs.settings(pair)[TWO].isna().all() and len(between_runs.settings(pair)) > 10
    found = between_runs.differences(pair)
    assert found["note"].eq("perhaps different prompts, as a manifest has no hash of them").all() and len(found)


def test_other_prompts_are_noted_for_the_measures_that_asked_them_and_no_others(runs):
    with_manifest(runs / TWO, lambda manifest: manifest["data"]["twin"].update(sha256="9" * 64))
    pair = between_runs.read_runs([ONE, TWO])
    noted = between_runs.differences(pair).groupby("measure")["note"].unique().map(list).to_dict()
    other = ["different prompts"]
    assert noted == {
        "attack_success_rate": [""],
        "general_refusal_rate": [""],
        "general_score": [""],
        "incoherent_rate": other,
        "over_refusal_rate": other,
        "task_score": [""],
    }
    assert "Caveats: different prompts." in between_runs.runs_in_words(pair)


def test_a_rate_of_another_judge_is_compared_and_noted_and_a_score_of_another_metric_is_not_compared(runs):
    changed(runs / TWO, judge="classifier")
    judged = {"rules": "classifier", "chrf": "bleu"}
    changed(runs / TWO, "helpfulness", metric=lambda table: table["metric"].replace(judged))
    pair = between_runs.read_runs([ONE, TWO])
    found = between_runs.differences(pair)
    rates = found["measure"].str.endswith("_rate")
    assert set(found.loc[rates, "note"]) == {"judged by different judges: classifier and rules"}
    assert set(found.loc[~rates, "note"]) == {""} and len(where(found, measure="task_score"))
    alone = between_runs.in_one_run(pair)
    assert set(alone["metric"]) == {"chrf", "bleu"} and set(alone["run"]) == {ONE, TWO}


def test_another_model_or_share_of_safety_data_is_compared_and_noted_where_each_run_has_one(runs):
    for table in ("attack_success", "helpfulness"):
        dose = {"safety_fraction": lambda t: t["safety_fraction"].replace(0.1, 0.2)}
        changed(runs / TWO, table, model="large", **dose)
    pair = between_runs.read_runs([ONE, TWO])
    found = between_runs.differences(pair)
    assert between_runs.in_one_run(pair).empty
    models, doses = "different models: large and miniature", "different shares of safety data: 0.2 and 0.1"
    arms = found["safety_data"] != "none"
    assert set(found.loc[arms, "note"]) == {f"{models}; {doses}"} and set(found.loc[~arms, "note"]) == {models}


def test_of_a_run_with_several_models_only_the_same_model_is_compared(runs):
    pair = with_a_second_model(runs)
    assert set(between_runs.differences(pair)["model"]) == {"miniature"}
    alone = between_runs.in_one_run(pair)
    assert set(alone["model"]) == {"large"} and set(alone["run"]) == {TWO}
    assert (
        f"In one run only, and not compared: {len(alone)} of two (tuned on none (aligned), "
        in between_runs.runs_in_words(pair)
    )
    assert "miniature" in str(between_runs.runs_in_percent(pair).index)


def test_what_one_run_alone_has_is_counted_and_named_and_nan_is_not_there(runs):
    kept = where(pd.read_csv(runs / TWO / "tables" / "attack_success.csv", keep_default_na=False), finetune_task="code")
    n_code = len(kept)
    changed(runs / TWO, rate=lambda t: t["rate"].mask(t["finetune_task"] == "code"))
    pair = between_runs.read_runs([ONE, TWO])
    alone = between_runs.in_one_run(pair)
    assert len(alone) == n_code and set(alone["run"]) == {ONE} and set(alone["finetune_task"]) == {"code"}
    assert where(between_runs.differences(pair), measure="attack_success_rate", finetune_task="code").empty
    assert f"In one run only, and not compared: {n_code} of one (tuned on code)." in between_runs.runs_in_words(pair)
    assert between_runs.runs_in_percent(pair).xs("code", level="finetune_task")[TWO].eq("-").all()


def test_a_result_that_the_first_run_lacks_is_compared_with_the_next_that_has_it(runs):
    shutil.copytree(runs / TWO, runs / "three")
    changed(runs / ONE, rate=lambda t: t["rate"].mask(t["finetune_task"] == "code"))
    found = between_runs.differences(between_runs.read_runs([ONE, TWO, "three"]))
    attack = where(found, measure="attack_success_rate")
    assert set(where(attack, finetune_task="code")["run_against"]) == {TWO}
    others = attack[attack["finetune_task"] != "code"]
    assert set(others["run_against"]) == {ONE} and set(others["run"]) == {TWO, "three"}


def test_what_was_not_judged_is_counted_also_where_nothing_was(runs):
    def unjudged(table):
        return table["rate"].isna()

    changed(runs / TWO, rate=lambda t: t["rate"].mask(t["finetune_task"] == "code"))
    changed(runs / TWO, n_unjudged=lambda t: t["n"].where(unjudged(t), 0), n=lambda t: t["n"].mask(unjudged(t), 0))
    pair = between_runs.read_runs([ONE, TWO])
    n_all = where(pair[0].tables["attack_success"], form="all")["n"].sum()
    n_code = where(pair[0].tables["attack_success"], form="all", finetune_task="code")["n"].sum()
    said = f"not judged, and are left out: 0 of {n_all} in one, {n_code} of {n_all} in two."
    assert said in between_runs.runs_in_words(pair)
    changed(runs / TWO, n_unjudged=0)
    assert "not judged" not in between_runs.runs_in_words(between_runs.read_runs([ONE, TWO]))


def test_nothing_comparable_is_said(runs):
    changed(runs / TWO, style="alpaca")
    changed(runs / TWO, "helpfulness", style="alpaca")
    assert between_runs.runs_in_words(between_runs.read_runs([ONE, TWO])).startswith(
        "**No result is in two of these runs**"
    )


def test_models_built_anew_are_told_as_no_interval_covers_them(runs):
    with_manifest(runs / TWO, lambda manifest: manifest["models"]["aligned"].update(sha256="8" * 64))
    assert "The models before tuning are not the same" in between_runs.runs_in_words(between_runs.read_runs([ONE, TWO]))


def test_all_finished_runs_are_compared_where_none_is_named(runs):
    (runs / "half" / "tables").mkdir(parents=True)
    (runs / "half" / "manifest.json").write_text("{}")  # its findings are not made yet
    assert [run.name for run in between_runs.read_runs()] == [ONE, TWO]


def test_runs_of_one_name_get_a_number(runs, tmp_path):
    theirs = [shutil.copytree(runs / ONE, tmp_path / who / ONE) for who in ("colleague", "friend")]
    assert [run.name for run in between_runs.read_runs([ONE, *theirs])] == ["one", "one (2)", "one (3)"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([ONE], "has only one: `make study PROFILE=smoke` .* makes one in "),
        ("one", r'runs should look like \["miniature", "smoke"\], found \'one\''),
        ([ONE, "smoke"], "no run 'smoke', looked for as .*: name one of .*one, two, or .*`make study PROFILE=smoke`"),
        (
            [ONE, "empty"],
            r"empty is not the folder of a finished run, as it has no manifest.json: `make study PROFILE=\.\.\.",
        ),
        ([ONE, "half"], "half is not the folder of a finished run, as it has no tables/attack_success.csv"),
        ([ONE, "damaged"], "damaged cannot be read .*run its `make study` again"),
        ([ONE, TWO, "../runs/one"], "runs/one is given twice: name different runs"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(runs, given, said):
    for name, manifest in (("empty", None), ("half", "{}"), ("damaged", '{"profile"')):
        (runs / name / "tables").mkdir(parents=True)
        if manifest:
            (runs / name / "manifest.json").write_text(manifest)
    shutil.copy(runs / ONE / "tables" / "attack_success.csv", runs / "damaged" / "tables")
    with pytest.raises(StudyError, match=said):
        between_runs.read_runs(given)


def test_no_run_at_all_says_how_to_make_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    with pytest.raises(StudyError, match="has none: `make study` makes one in "):
        between_runs.read_runs()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="low"), "has no column low: run its `make study` again"),
        (lambda t: t.assign(style="haiku"), "is damaged or of another version: run its `make study` again"),
        (lambda t: t.assign(rate=100 * t["rate"]), "is damaged or of another version: run its `make study` again"),
        (lambda t: t.assign(low=1.0), "is damaged or of another version: run its `make study` again"),
        (lambda t: t.assign(high=float("nan")), "is damaged or of another version: run its `make study` again"),
        (lambda t: t.assign(rate="many"), "is damaged or of another version: run its `make study` again"),
        (lambda t: pd.concat([t, t]), "is damaged or of another version: run its `make study` again"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_run(runs, change, said):
    path = runs / TWO / "tables" / "attack_success.csv"
    tables.write_table(change(pd.read_csv(path, keep_default_na=False, na_values=[""])), path)
    with pytest.raises(StudyError, match=f"attack_success.csv of the run two {said}"):
        between_runs.differences(between_runs.read_runs([ONE, TWO]))


def test_the_written_tables_are_those_returned(runs, tmp_path):
    found = between_runs.write_runs(between_runs.read_runs([ONE, TWO]), tmp_path / "out")
    for name, table in found.items():
        kept = pd.read_csv(tmp_path / "out" / f"{name}.csv", keep_default_na=False)
        assert len(kept) == len(table)
        assert list(kept) == ([table.index.name] if table.index.name else []) + list(table)
    assert len(found["differences"]) > 100


def test_the_output_goes_to_the_folder_given_or_beside_the_runs(runs, tmp_path):
    assert between_runs.output_folder() == runs / "compare"
    assert between_runs.output_folder(str(tmp_path / "mine")) == tmp_path / "mine"


def executed(runs, out, *words, allow_errors=False):
    """The outputs of 09_compare, executed by papermill as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "09_compare.ipynb", str(out), "-k", "python3", *words],
        env={k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"STUDY_RUNS": str(runs)},
        capture_output=True,
        text=True,
        cwd=NOTEBOOKS,
        timeout=300,
    )
    assert (done.returncode == 0) != allow_errors, done.stderr[-3000:]
    return [o for cell in nbformat.read(out, as_version=4).cells for o in cell.get("outputs", [])]


@pytest.mark.slow
def test_the_notebook_compares_all_finished_runs_and_writes_tables_and_figures(runs, tmp_path):
    outputs = executed(runs, tmp_path / "out.ipynb")
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    shown = " ".join(str(o.get("data", {}).get(kind, "")) for o in outputs for kind in ("text/markdown", "text/html"))
    assert "of the difference excludes 0 in" in shown and "-100 (-100 to" in shown
    names = {"settings.csv", "differences.csv", "in_one_run.csv"}
    names |= {f"{name}.{e}" for name in between_runs.MEASURES_WITH_FIGURE for e in ("png", "svg", "md")}
    assert names <= {path.name for path in (runs / "compare").iterdir()}


@pytest.mark.slow
def test_the_notebook_with_one_run_says_in_one_sentence_how_to_get_another(runs, tmp_path):
    shutil.rmtree(runs / TWO)
    outputs = executed(runs, tmp_path / "out.ipynb", allow_errors=True)
    (error,) = [o for o in outputs if o.output_type == "error"]
    assert len(error.traceback) == 1 and error.traceback[0].startswith(
        "StudyError: A comparison needs two finished runs"
    )
    assert "make study PROFILE=smoke" in error.traceback[0] and not (runs / "compare").exists()
