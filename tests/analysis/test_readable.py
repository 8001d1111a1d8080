"""Tables made for reading, of a handful of responses and of a simulated study."""

import re

import numpy as np
import pandas as pd
import pytest
from frames import few, study

from studylib.analysis import readable, tables
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
    shown = readable.costs_in_percent(cost, ["finetune_task", "safety_data"])
    assert shown.loc[("none", "none"), "task score"] == "-"  # tuned on no task
    wanted = cost.query("finetune_task == 'code' and safety_data == 'generic'").set_index(["measure", "form"])["value"]
    assert shown.loc[("code", "generic")].tolist() == [
        f"{100 * wanted[key]:.0f}"
        for key in (("over_refusal_rate", "all"), ("general_score", "all"), ("task_score", "code"))
    ]


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
    ("numbers", "text"), [([148, 150.2], "148-150"), ([3.1, 2.9, np.nan], "3"), ([np.nan], "no"), ([], "no")]
)
def test_a_span_copes_with_nan(numbers, text):
    assert readable.span(np.array(numbers)) == text
