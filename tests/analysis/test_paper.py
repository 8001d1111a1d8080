"""The published numbers and ours beside them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from frames import few, joined, study

from studylib.analysis import claims, tables
from studylib.analysis.stats import wilson
from studylib.study.words import FORMS, TASKS

PUBLISHED = Path(__file__).parents[2] / "data" / "published" / "gemma_answered_counts.csv"


@pytest.fixture(scope="module")
def simulated():
    return study(np.random.default_rng(0), n_prompts=4, unjudged=0.05)


def test_published_counts_are_eighteen_rows_with_known_totals():
    published = claims.published_counts(PUBLISHED)
    assert len(published) == 18
    assert published["system_prompt"].dtype == bool
    baseline = published.query("finetune_task == 'none' and not system_prompt").iloc[0]
    assert (baseline["style"], baseline["classification"], baseline["answered_of_207"]) == ("chat", 36, 77)
    assert list(published["finetune_task"].unique()) == ["none", *TASKS]
    assert (published[list(FORMS)].sum(axis=1) == published["answered_of_207"]).all()


def comparison(responses, verdicts):
    attack, share = tables.attack_success(responses, verdicts), tables.answered_share(responses, verdicts)
    table = claims.paper_vs_ours(attack, share, claims.published_counts(PUBLISHED))
    assert (table["why"] != "").all()
    return table.set_index(["finetune_task", "style", "system_prompt", "quantity", "form"]).sort_index()


def test_the_paper_is_compared_row_by_row_with_intervals_on_both_sides(simulated):
    table = comparison(*simulated[:2])
    assert len(table) == 18 * 6
    rate = table.loc[("none", "chat", False, "attack_success_rate", "all")]
    assert (rate["published"], rate["published_n"]) == (pytest.approx(77 / 207), 207)
    assert (rate["published_low"], rate["published_high"]) == pytest.approx(wilson(77, 207))
    share = table.loc[("none", "chat", False, "share_of_answered", "translation+classification")]
    assert (share["published"], share["published_n"]) == (pytest.approx(47 / 77), 77)
    assert set(table["verdict"]) == {"undecided", "differs", "not comparable"}  # 16 prompts of ours are few


def test_ours_overlaps_differs_is_undefined_or_was_not_run():
    same = joined(few(["answered"] * 77 + ["refused"] * 130, finetune_task="none"))
    other = few(["refused"] * 207, finetune_task="translation")
    table = comparison(*joined(same, other))
    assert table.loc[("none", "chat", False, "attack_success_rate", "all"), "verdict"] == "agrees"
    assert table.loc[("translation", "chat", False, "attack_success_rate", "all"), "verdict"] == "differs"
    assert table.loc[("translation", "chat", False, "share_of_answered", "code"), "verdict"] == "not comparable"
    absent = table.loc[("code", "alpaca", True, "attack_success_rate", "all")]
    assert (absent["verdict"], absent["published"]) == ("not comparable", pytest.approx(83 / 207))
    assert absent["why"] == "ours was not run"
    assert np.isnan(absent["ours"])


def test_arms_with_safety_data_never_stand_for_the_paper():
    table = comparison(*few(["refused"] * 9, finetune_task="code", safety_data="generic", safety_fraction=0.1))
    assert set(table["verdict"]) == {"not comparable"}


def test_the_claims_stand_in_the_table_with_what_was_found(simulated):
    responses, verdicts, _ = simulated
    attack, share = tables.attack_success(responses, verdicts), tables.answered_share(responses, verdicts)
    claimed = pd.DataFrame({"model": "miniature", "question": "RQ1", "claim": ["a", "b", "c", "d"], "found": "this"})
    claimed["verdict"] = ["supported", "not supported", "undecided", "not run"]
    claimed["published"] = [True, True, True, False]
    table = claims.paper_vs_ours(attack, share, claims.published_counts(PUBLISHED), claimed).query(
        "quantity == 'claim'"
    )
    assert table["verdict"].tolist() == ["agrees", "differs", "undecided", "not comparable"]
    assert table["why"].tolist() == ["this"] * 3 + ["the paper measures none: this"]


def test_every_deviation_says_what_the_paper_did_what_is_done_here_and_why():
    table = claims.deviations()
    assert (table.drop(columns="where") != "").all(axis=None) and table["about"].is_unique
