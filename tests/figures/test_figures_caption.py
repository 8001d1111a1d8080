"""What captions pick and say: one dose of several, what is missing, the cells at the ends."""

import pandas as pd
import pytest

from studylib.figures import caption


def cells(*fractions, **columns):
    """A row without safety data and one with generic data per fraction."""
    rows = [("none", 0.0), *(("generic", fraction) for fraction in fractions)]
    table = pd.DataFrame(rows, columns=["safety_data", "safety_fraction"])
    where = {"finetune_task": "code", "style": "chat", "system_prompt": False, "form": "all"}
    return table.assign(**{**where, **columns})


def test_the_most_frequent_dose_is_kept_and_the_smaller_of_two():
    assert list(caption.one_dose(cells(0.2, 0.1, 0.2))["safety_fraction"]) == [0, 0.2, 0.2]
    assert list(caption.one_dose(cells(0.2, 0.1))["safety_fraction"]) == [0, 0.1]


def test_a_dose_that_is_asked_for_is_kept_or_missed_with_what_there_is():
    assert list(caption.one_dose(cells(0.2, 0.1), 0.2)["safety_fraction"]) == [0, 0.2]
    assert list(caption.one_dose(cells(0.1 + 0.2), 0.3)["safety_fraction"]) == [0, 0.1 + 0.2]
    with pytest.raises(ValueError, match=r"no rows with safety fraction 0\.3: the table has 0\.1, 0\.2"):
        caption.one_dose(cells(0.1, 0.2), 0.3)


def test_a_table_without_safety_data_is_as_it_was():
    table = cells()
    assert caption.one_dose(table, 0.1).equals(table)
    assert caption.one_dose(table.drop(columns="safety_fraction")).shape == (1, 5)


def test_what_is_missing_is_said_by_kind():
    table = pd.concat(
        [
            cells(0.1, finetune_task=task, style=style)
            for task in ("code", "translation")
            for style in ("chat", "alpaca")
        ]
    )
    table = table.assign(rate=0.5).reset_index(drop=True)
    arms = ("none", "generic", "multitask")
    assert caption.missing_said(table, "rate", arms) == [
        "Not run: multitask safety data.",
        "Not run: the aligned model.",
    ]
    table.loc[0, "rate"] = float("nan")
    said = caption.missing_said(table.drop(index=1), "rate", ("none", "generic"))
    assert said == [
        "Not run: the aligned model.",
        "Left empty, not run: 1 cells.",
        "Left empty, nothing judged: 1 marks.",
    ]


def test_a_cell_is_told_in_full():
    row = cells(0.1, form="code").iloc[1]
    assert (
        caption.cell_words(row, form=True)
        == "tuned on code, generic safety data, chat template, no system prompt, code prompts"
    )
    aligned = cells(finetune_task="none").iloc[0]
    assert caption.cell_words(aligned, form=True) == "aligned model, chat template, no system prompt"


def test_a_name_that_is_no_figure_is_an_error():
    with pytest.raises(KeyError, match="no_figure"):
        caption.caption("no_figure", cells())
