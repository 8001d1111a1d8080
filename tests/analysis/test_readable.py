"""Tables made for reading, of a handful of responses and of a simulated study."""

import re

import numpy as np
import pandas as pd
import pytest
from frames import few, study

from studylib.analysis import agreement, claims, readable, tables
from studylib.study.paths import DATA
from studylib.study.words import FORMS, TASKS


@pytest.fixture(scope="module")
def simulated():
    return study(np.random.default_rng(0), n_prompts=4, unjudged=0.05)


def test_examples_show_one_response_of_each_form_and_verdict_and_hide_it_where_asked():
    responses, verdicts = few(["answered", "answered", "refused"])
    responses["prompt"], responses["response"] = "Please open the locker now", "First take this and then that"
    shown, hidden = (readable.examples(responses, verdicts, redacted) for redacted in (False, True))
    assert shown["verdict"].tolist() == hidden["verdict"].tolist() == ["answered", "refused"]
    assert shown["response"][0].endswith("then that") and "then that" not in hidden["response"][0]
    assert hidden["response"][0].startswith("First take this ")
    assert shown["prompt"].tolist() == ["Please open the locker now"] * 2
    assert re.fullmatch(r"\[codeharmful0, code, 5 words, [0-9a-f]{8}\]", hidden["prompt"][0])


def test_the_readable_table_has_percent_and_interval_in_the_fixed_order(simulated):
    wide = readable.in_percent(tables.attack_success(*simulated[:2]))
    assert list(wide.columns) == [*FORMS, "all"] and wide.index[0][:2] == ("none", "none")
    assert wide.index.get_level_values("finetune_task").unique().tolist() == ["none", *TASKS]
    assert wide.map(lambda text: bool(re.fullmatch(r"\d+ \(\d+-\d+\)", text))).all(axis=None)


def test_costs_stand_beside_rates_in_whole_percent(simulated):
    responses, verdicts, scores = simulated
    plain = responses[(responses["style"] == "chat") & ~responses["system_prompt"]]
    cost = tables.helpfulness(*_of(plain, verdicts, scores))
    shown = readable.headline(
        tables.attack_success(plain, verdicts[verdicts["response_id"].isin(plain["response_id"])]), cost
    )
    assert shown.loc[("none", "none"), "task score"] == "-"  # tuned on no task
    wanted = cost.query("finetune_task == 'code' and safety_data == 'generic'").set_index(["measure", "form"])["value"]
    costs = ["twins refused", "general refused", "general score", "task score"]
    assert shown.loc[("code", "generic"), costs].tolist() == [
        f"{100 * wanted[key]:.0f}"
        for key in (
            *(("over_refusal_rate", "all"), ("general_refusal_rate", "all")),
            *(("general_score", "all"), ("task_score", "code")),
        )
    ]
    row = tables.discrimination(plain, verdicts[verdicts["response_id"].isin(plain["response_id"])])
    row = row.query("finetune_task == 'code' and safety_data == 'generic' and form == 'all'").iloc[0]
    assert shown.loc[("code", "generic"), "J"].split()[0] == f"{100 * row['j']:.0f}"
    assert shown.loc[("code", "generic"), "AUC"] == f"{row['auc']:.2f}"


def _of(responses, verdicts, scores):
    ids = set(responses["response_id"])
    return responses, *(frame[frame["response_id"].isin(ids)] for frame in (verdicts, scores))


def test_several_doses_of_one_kind_are_rows_of_their_own_in_the_readable_table(simulated):
    table = tables.attack_success(*simulated[:2])
    more = table[table["safety_data"] == "multitask"].assign(safety_fraction=0.2, rate=0.0, low=0.0, high=0.5)
    wide = readable.in_percent(pd.concat([table, more], ignore_index=True))
    assert wide.index.names == ["finetune_task", "safety_data", "safety_fraction", "style", "system_prompt"]
    assert (wide.xs(0.2, level="safety_fraction") == "0 (0-50)").all(axis=None)
    assert len(wide) == len(readable.in_percent(table)) + len(more) / 5  # four forms and all


def test_a_cell_is_told_in_full():
    row = {"finetune_task": "code", "safety_data": "generic", "style": "chat", "system_prompt": False, "form": "code"}
    words = "tuned on code, generic safety data, chat template, no system prompt, code prompts"
    assert readable.cell_words(row, form=True) == words
    aligned = row | {"finetune_task": "none", "safety_data": "none", "form": "all"}
    assert readable.cell_words(aligned, form=True) == "aligned model, chat template, no system prompt"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([148, 150.2], "148-150"),
        ([3.1, 2.9, np.nan], "3"),
        ([-1.2, 5], "-1 to 5"),
        ([-0.2, 5], "0-5"),
        ([np.nan], "no"),
        ([], "no"),
    ],
)
def test_a_span_copes_with_nan(numbers, text):
    assert readable.span(np.array(numbers)) == text


@pytest.fixture(scope="module")
def attack():
    """Attack success of a simulated study as two judges find it; the second takes every answer for a refusal."""
    rows, verdicts, _ = study(np.random.default_rng(0), tasks=("code",), safety_data=("none",), seeds=(0,))
    blind = verdicts.assign(judge="words_gcg", verdict="refused")
    return tables.attack_success(rows, pd.concat([verdicts, blind]))


def test_rates_by_judge_are_those_of_the_plain_chat_style_all_forms_together(attack):
    shown = readable.attack_by_judge(attack)
    assert list(shown) == ["rules", "words_gcg"] and list(shown.index.names) == [
        "model",
        "finetune_task",
        "safety_data",
    ]
    assert [arm[1] for arm in shown.index] == ["none", "code"]
    one = attack.query("judge == 'rules' and finetune_task == 'code' and style == 'chat' and form == 'all'")
    one = one[~one["system_prompt"]].iloc[0]
    wanted = f"{100 * one['rate']:.0f} ({100 * one['low']:.0f}-{100 * one['high']:.0f})"
    assert shown.loc[("miniature", "code", "none"), "rules"] == wanted
    assert shown["words_gcg"].str.startswith("0 (").all()


def test_rates_by_judge_are_of_the_grids_safety_data_at_one_dose(attack):
    tuned = attack[attack["finetune_task"] == "code"]
    arms = {"multitask": 0.1, "code_only": 0.1}
    more = [tuned.assign(safety_data=name, safety_fraction=dose) for name, dose in arms.items()]
    other = tuned.assign(safety_data="multitask", safety_fraction=0.2, rate=0.99).head(1)
    shown = readable.attack_by_judge(pd.concat([attack, *more, other]))
    assert [arm[1:] for arm in shown.index] == [("none", "none"), ("code", "none"), ("code", "multitask")]
    assert shown.loc[("miniature", "code", "multitask"), "rules"] == shown.loc[("miniature", "code", "none"), "rules"]


def test_corrected_rates_are_the_deciding_judges_alone_with_the_source_of_the_correction(attack):
    raw = readable.corrected_in_percent(attack, "rules")
    assert len(raw) == 2 * 4 and "corrected" not in raw  # two arms in four forms
    assert (raw["rate_if_unjudged_refused"] <= raw["rate_if_unjudged_answered"]).all()
    people = pd.DataFrame({"label": ["refused"] * 100 + ["answered"] * 100, "source": "own", "model": "m"})
    people["prompt_id"] = people["response_id"] = people.index.astype(str)
    flawless = people[["response_id"]].assign(judge="rules", verdict=people["label"])
    corrected = agreement.with_corrected(attack, agreement.compare(people, flawless), "own")
    shown = readable.corrected_in_percent(corrected, "rules")
    # of a judge without errors the corrected rate is the raw one, with a wider interval
    assert shown["corrected"].str.split().str[0].tolist() == shown["raw"].str.split().str[0].tolist()
    assert shown["corrected"].tolist() != shown["raw"].tolist() and set(shown["correction_from"]) == {"own"}
    other = readable.corrected_in_percent(corrected, "words_gcg")
    assert set(other["corrected"]) == {"-"} and set(other["correction_note"]) == {"no labelled set for this judge"}


def test_the_headline_has_a_row_per_tuned_model_and_the_numbers_are_those_that_it_shows(simulated):
    attack = tables.attack_success(*simulated[:2])
    costs = tables.helpfulness(*simulated)
    shown, numbers = readable.headline(attack, costs), readable.headline_numbers(attack, costs)
    assert shown.index.names == ["finetune_task", "safety_data"] and shown.index.is_unique
    named = ["twins refused", "general refused", "general score", "task score"]
    assert list(shown)[-8:] == ["all", "J", "AUC", "bases", *named]
    for row in numbers:
        cell = shown.loc[(row["finetune_task"], row["safety_data"])]
        if row["measure"] == "attack_success_rate":
            assert cell[row["form"]] == f"{row['percent']} ({row['low']}-{row['high']})"
        elif row["measure"] == "over_refusal_rate" and row["form"] == "all":
            assert cell["twins refused"] == str(row["percent"])
        elif row["measure"] == "j" and row["form"] == "all":
            assert cell["J"].split()[0] == str(row["percent"])
    assert {row["measure"] for row in numbers} == {
        "attack_success_rate",
        "j",
        "auc",
        "over_refusal_rate",
        "general_refusal_rate",
        "general_score",
        "task_score",
    }
    assert readable.headline(attack.iloc[:0], costs.iloc[:0]).empty


@pytest.mark.slow
def test_only_comparable_numbers_are_shown(simulated):
    published = claims.published_counts(DATA / "published" / "gemma_answered_counts.csv")
    pair = tables.attack_success(*simulated[:2]), tables.answered_share(*simulated[:2])
    shown = readable.paper_in_percent(claims.paper_vs_ours(*pair, published))
    assert len(shown) and "not comparable" not in set(shown["verdict"]) and shown["ours"].str.contains(r"\(").all()


def test_tables_of_scores_are_in_percent_of_the_rows_that_they_show(simulated):
    costs = tables.helpfulness(*simulated)
    wide = readable.scores_in_percent(costs)
    row = costs.query("measure == 'task_score' and form == 'code' and finetune_task == 'code' and style == 'chat'")
    row = row[~row["system_prompt"].astype(bool) & (row["safety_data"] == "none")].iloc[0]
    key = ("miniature", "code", "chat", "none", 0.0)
    assert wide.loc[key, ("task_score", "code")] == f"{100 * row['value']:.0f}"
    asked = simulated[0]["prompt_id"].unique()
    by_kind = tables.over_refusal_by_kind(*simulated[:2], dict.fromkeys(asked, "owner"))
    shown = readable.over_refusal_in_percent(by_kind)
    assert set(shown["twins"]) == {"owner", "all"} and (shown["twins", "owner"] == shown["twins", "all"]).all()


def test_requests_are_named_where_tuned_models_have_several_kinds_and_the_headline_shows_task_rows_alone_too():
    given = {"tasks": ("code",), "styles": ("chat",), "system_prompts": (False,), "n_prompts": 4}
    frames = study(np.random.default_rng(0), requests=("none", "own"), **given)
    attack, cost = tables.attack_success(*frames[:2]), tables.helpfulness(*frames)
    wide = readable.in_percent(attack)
    assert list(wide.index.get_level_values("requests")) == ["none", "none", "own", "own", "own"]
    own, its = (of[of["requests"].ne("none") | of["finetune_task"].eq("none")] for of in (attack, cost))
    assert "requests" not in readable.in_percent(own).index.names
    shown = readable.headline(attack, cost)
    plain = [("none", "none", "none"), ("code", "none", "none"), ("code", "own", "none")]
    assert list(shown.index)[:3] == plain and set(shown.index) >= {("code", "own", "multitask")}
    usual = shown.drop(index=("code", "none", "none")).droplevel("requests")
    pd.testing.assert_frame_equal(usual, readable.headline(own, its))
    row = attack[(attack["requests"] == "none") & (attack["finetune_task"] == "code")].iloc[0]
    assert readable.cell_words(row) == "tuned on code, no requests, chat template, no system prompt"
    assert "requests" not in readable.cell_words(own.iloc[-1])
