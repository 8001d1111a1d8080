"""What captions add to every figure: what is missing, doses, seeds; and that every figure has its texts."""

import pandas as pd
import pytest
from drawn import texts

from studylib.figures import catalogue, style


def cells(*fractions, **columns):
    """A row without safety data and one with generic data per fraction."""
    rows = [("none", 0.0), *(("generic", fraction) for fraction in fractions)]
    table = pd.DataFrame(rows, columns=["safety_data", "safety_fraction"])
    where = {"finetune_task": "code", "style": "chat", "system_prompt": False, "form": "all", "n": 50}
    return table.assign(**{**where, **columns})


def footer(table, **options):
    return catalogue.footer_of(style.Drawn(None, table, {}), **options)


def test_what_is_missing_is_said_by_kind():
    grid = [(task, trained) for task in ("code", "translation") for trained in ("chat", "alpaca")]
    table = pd.concat([cells(0.1, finetune_task=task, style=trained) for task, trained in grid])
    table = table.assign(rate=0.5).reset_index(drop=True)
    said = footer(table, expected=("none", "generic", "multitask"))
    assert (
        "Not of the grid, or not run: multitask safety data and the aligned model." in said and "left empty" not in said
    )
    table.loc[0, "rate"] = float("nan")
    said = footer(table.drop(index=1), expected=("none", "generic"))
    assert (
        "Not of the grid, or not run: the aligned model and 1 cell, left empty. Nothing judged: 1 mark, left empty."
        in said
    )


def test_the_footer_names_the_only_styles_of_safety_data_instead_of_empty_cells():
    table = pd.concat([cells(0.1), cells(style="alpaca")]).assign(rate=0.5)
    assert "1 cell, left empty" in footer(table, expected=("none", "generic"))
    said = footer(table, expected=("none", "generic"), safety_styles=["chat"])
    assert "10 % of the tuning rows, tried in the chat template alone (`grid.safety_styles`)." in said
    assert "left empty" not in said


def test_the_footer_says_doses_seeds_judge_and_omissions_where_the_rows_have_them():
    table = cells(0.1, 0.02, rate=0.5, n_bases=1, n_seeds=1, judge="rules", n_unjudged=2, n_effective=40.0)
    said = footer(table)
    for words in (
        "Each mark: n = 50 responses.",
        "Safety data: 2 and 10 % of the tuning rows.",
        "Training seeds pooled: 1. Of fewer than three training runs, intervals are about these models alone.",
        "Judge: rules.",
        "Left out: 6 responses that could not be judged.",
        "Intervals: 95 % Wilson, clustered by prompt and base or training run.",
        "A mark is worth 40 independent responses.",
    ):
        assert words in said, words
    several = footer(table.assign(n_bases=4))
    assert "Training seeds pooled: 1 of each of 4 base models." in several and "fewer than three" not in several
    more = table.assign(n_bases=[12, 2, 12], safety_data=["none", "generic", "multitask"])
    said = footer(pd.concat([more, more.assign(style="alpaca", n_bases=2)]))
    cells_of_12 = "12 base models of chat template, no system prompt (no safety data and multitask safety data)"
    assert f"Training seeds pooled: 1 of each base model. There are {cells_of_12}, 2 of the rest." in said
    short = footer(table[["n", "rate"]], mark="bar", unit="prompts", intervals="No intervals.")
    assert short == "Each bar: n = 50 prompts. No intervals."


def test_the_footer_says_that_benign_requests_were_among_the_rows_where_all_tuned_models_had_them():
    table = cells(0.1, rate=0.5, requests="own")
    untuned = cells(rate=0.5, requests="none", finetune_task="none")
    assert "Tuned on the task's rows with a few benign requests" in footer(pd.concat([untuned, table]))
    assert "benign requests" not in footer(pd.concat([table, table.assign(requests="none")]))


def test_every_figure_has_its_texts_and_every_text_its_figure():
    assert set(catalogue.captions()) == {*catalogue.FIGURES, "runs_side_by_side"}
    for name, entry in catalogue.captions().items():
        assert {"title", "shows", "alternative"} <= set(entry) <= {"title", "shows", "alternative", "footer"}, name


@pytest.mark.parametrize("name", catalogue.FIGURES)
def test_a_figure_of_empty_tables_says_that_it_has_nothing_to_draw(name):
    frames = [pd.DataFrame() for _ in catalogue.FIGURES[name][1:]]
    with pytest.raises(ValueError, match=f"^{name} has nothing to draw: no row in "):
        texts(name, *frames)


def test_a_name_that_is_no_figure_is_an_error():
    with pytest.raises(KeyError, match="no_figure"):
        texts("no_figure", cells())
