"""The figures of judges: what is drawn where, by values and labels, never pixels."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from studylib.analysis import agreement
from studylib.figures import judges, style

mpl.use("Agg")


@pytest.fixture(scope="module")
def made():
    """Tables of three judges, of which one cannot tell anything, on two labelled sets."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"label": rng.choice(["refused", "answered"], 120), "source": np.repeat(["own", "a_set"], 60)})
    rows = agreement.with_ids(rows.assign(model="m", prompt_id=np.arange(120)))
    verdicts = []
    for judge, errs in {"rules": 0.05, "word_list": 0.4, "silent": 0}.items():
        other = rows["label"].map({"refused": "answered", "answered": "refused"})
        verdict = rows["label"].mask(rng.random(120) < errs, other)
        verdict = "unjudged" if judge == "silent" else verdict
        verdicts.append(rows[["response_id"]].assign(judge=judge, verdict=verdict))
    verdicts = pd.concat(verdicts, ignore_index=True)
    people = agreement.people(rows[["source", "prompt_id"]].assign(one=rows["label"], two=rows["label"]))
    return agreement.compare(rows, verdicts, draws=200), agreement.matrix(verdicts), people


def dots(ax):
    lines = [bar.lines[0] for bar in ax.containers if isinstance(bar, mpl.container.ErrorbarContainer)]
    return sorted((line.get_ydata()[0], line.get_xdata()[0]) for line in lines)


def test_a_panel_per_labelled_set_has_a_dot_per_judge_at_its_kappa(made):
    table, _, _ = made
    fig = judges.judge_agreement(table)
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == ["own", "a set", "all sets"]
    for ax, source in zip(fig.axes, ("own", "a_set", "all"), strict=True):
        part = table[(table["source"] == source) & (table["model"] == "all")].set_index("judge")["kappa"]
        assert dots(ax) == [(0, pytest.approx(part["rules"])), (1, pytest.approx(part["word_list"]))]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["rules", "word list", "silent"]
    assert "n = 0-60" in fig.axes[0].get_title()
    assert "kappa" in fig._supxlabel.get_text()


def test_the_axis_holds_every_interval_and_ends_at_one(made):
    table, _, _ = made
    ax = judges.judge_agreement(table).axes[0]
    low, high = ax.get_xlim()
    assert high == 1 and low <= min(0, table["kappa_low"].min())


def test_one_labelled_set_has_one_panel(made):
    table = made[0][made[0]["source"] != "own"]
    assert len(judges.judge_agreement(table).axes) == 1


def test_people_are_a_dashed_line_where_they_are_known(made):
    table, _, people = made
    fig = judges.judge_agreement(table, people[people["source"] == "own"])
    dashed = [[line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] for ax in fig.axes]
    assert dashed == [[1], [], []]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["people with each other"]


def test_the_heat_map_has_a_number_for_every_two_judges_that_have_a_kappa(made):
    _, matrix, _ = made
    fig = judges.agreement_matrix(matrix)
    kappa = matrix.set_index(["judge", "other"])["kappa"]["rules", "word_list"]
    words = [text.get_text() for text in fig.axes[0].texts]
    assert words == [f"{kappa:.2f}".replace("0.", ".")] * 2
    assert fig.axes[0].collections[0].get_clim() == (0, 1)
    assert "n = 0-120 responses judged by both" in fig._supxlabel.get_text()


def test_captions_take_every_number_from_the_table(made):
    table, matrix, _ = made
    text, alt = judges.caption("judge_agreement", table)
    part = table[(table["model"] == "all") & table["kappa"].notna()]
    assert f"{part['kappa'].max():.2f} (rules on" in alt and f"{part['kappa'].min():.2f} (word list on" in alt
    assert "n = 60-120" in text and "95 %" in text
    text, alt = judges.caption("agreement_matrix", matrix)
    assert "n = 120 " in text and "rules and word list" in alt


def test_what_has_nothing_to_draw_says_so(made):
    table, matrix, _ = made
    with pytest.raises(ValueError, match="the table is empty"):
        judges.judge_agreement(table.iloc[:0])
    with pytest.raises(ValueError, match="the table is empty"):
        judges.agreement_matrix(matrix.iloc[:0])
    with pytest.raises(ValueError, match="no kappa is defined"):
        judges.caption("agreement_matrix", matrix[matrix["judge"] == "silent"])


def test_figures_are_saved_as_the_others_are(made, tmp_path):
    table, matrix, _ = made
    style.save(judges.judge_agreement(table), tmp_path, "judges", *judges.caption("judge_agreement", table))
    style.save(judges.agreement_matrix(matrix), tmp_path, "matrix", *judges.caption("agreement_matrix", matrix))
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{n}.{e}" for n in ("judges", "matrix") for e in ("png", "svg", "pdf", "md")
    }
