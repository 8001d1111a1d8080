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


def test_a_name_that_is_no_figure_is_an_error():
    with pytest.raises(KeyError, match="no_figure"):
        caption.caption("no_figure", cells())
