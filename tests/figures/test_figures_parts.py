"""Colours, published counts and agreement of judges: values and labels, never pixels; and their captions."""

from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from drawn import figure, texts
from matplotlib.colors import to_hex, to_rgb

from studylib.analysis import agreement, claims
from studylib.figures import rates, style
from studylib.study.words import FORMS, VERDICTS

mpl.use("Agg")
PUBLISHED = claims.published_counts(Path(__file__).parents[2] / "data" / "published" / "gemma_answered_counts.csv")
# Machado, Oliveira and Fernandes (2009, IEEE Trans. Visualization and Computer Graphics 15), severity 1, of linear RGB.
VISION = {
    "any": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colour, vision):
    """CIE L*a*b* (D65) of a colour as that vision sees it."""
    rgb = np.array(to_rgb(colour))
    rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(np.array(VISION[vision]) @ rgb, 0, 1) / to_xyz.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_one_figure_are_told_apart_with_any_colour_vision(vision):
    sets = (style.FORM_COLOURS, style.SAFETY_COLOURS, rates.VERDICT_COLOURS)
    for colours in sets:
        apart = [np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in combinations(colours.values(), 2)]
        assert min(apart) > 10  # 2.3 is just seen


def test_a_colour_stands_for_one_thing():
    sets = (style.FORM_COLOURS, style.SAFETY_COLOURS, rates.VERDICT_COLOURS)
    colours = [colour for one in sets for colour in one.values()]
    assert len(set(colours)) == len(colours)
    assert set(rates.VERDICT_COLOURS) == set(VERDICTS)


def test_counts_of_nothing_say_so():
    with pytest.raises(ValueError, match="published_counts has nothing to draw"):
        texts("published_counts", PUBLISHED.iloc[:0])


def test_published_counts_are_bars_in_the_look_of_the_main_figure():
    fig = figure("published_counts", PUBLISHED)
    axes = np.reshape(fig.axes, (4, 5))
    row = PUBLISHED[
        (PUBLISHED["finetune_task"] == "translation") & (PUBLISHED["style"] == "chat") & PUBLISHED["system_prompt"]
    ].iloc[0]
    assert [bar.get_height() for bar in axes[1, 3].patches] == [row[form] for form in FORMS]
    assert [to_hex(bar.get_facecolor()).upper() for bar in axes[1, 3].patches] == list(style.FORM_COLOURS.values())
    assert axes[1, 3].texts[0].get_text() == "97 of 207"
    assert axes[2, 0].texts[0].get_text() == "not published" and not axes[2, 0].patches
    assert axes[0, 0].get_ylim() == (0, 60)


def test_the_published_caption_says_that_counts_are_no_rates():
    text, alt = texts("published_counts", PUBLISHED)
    assert "Counts, not rates, and without intervals" in text and "One run, judged by GPT-4o" in text
    assert "tuned models: 52-123 of 207" in alt and "untuned model: 30-77 of 207" in alt


@pytest.fixture(scope="module")
def table():
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
    return agreement.compare(rows, verdicts, draws=200)


def dots(ax):
    lines = [bar.lines[0] for bar in ax.containers if isinstance(bar, mpl.container.ErrorbarContainer)]
    return sorted((line.get_ydata()[0], line.get_xdata()[0]) for line in lines)


def test_a_panel_per_labelled_set_has_a_dot_per_judge_at_its_kappa(table):
    fig = figure("judge_agreement", table)
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == ["own", "a set", "all sets"]
    for ax, source in zip(fig.axes, ("own", "a_set", "all"), strict=True):
        part = table[(table["source"] == source) & (table["model"] == "all")].set_index("judge")["kappa"]
        assert dots(ax) == [(0, pytest.approx(part["rules"])), (1, pytest.approx(part["word_list"]))]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["rules", "word list", "silent"]
    assert "n = 0-60" in fig.axes[0].get_title()
    assert "kappa" in fig._supxlabel.get_text()


def test_the_axis_holds_every_interval_and_ends_at_one(table):
    ax = figure("judge_agreement", table).axes[0]
    low, high = ax.get_xlim()
    assert high == 1 and low <= min(0, table["kappa_low"].min())


def test_one_labelled_set_has_one_panel(table):
    table = table[table["source"] != "own"]
    assert len(figure("judge_agreement", table).axes) == 1


def test_captions_take_every_number_from_the_table(table):
    text, alt = texts("judge_agreement", table)
    part = table[(table["model"] == "all") & table["kappa"].notna()]
    assert f"{part['kappa'].max():.2f} (rules on" in alt and f"{part['kappa'].min():.2f} (word list on" in alt
    assert "n = 60-120" in text and "95 %" in text


def test_what_has_nothing_to_draw_says_so(table):
    with pytest.raises(ValueError, match="has nothing to draw: no row in judge"):
        figure("judge_agreement", table.iloc[:0])
    with pytest.raises(ValueError, match="no kappa is defined"):
        texts("judge_agreement", table[table["judge"] == "silent"])
