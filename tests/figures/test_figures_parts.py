"""Stacked bars, published counts and the ranking of models: values, labels and tiers, never pixels; and their captions."""

from itertools import combinations, pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from frames import study
from matplotlib.colors import to_hex, to_rgb

from studylib.analysis import claims, tables
from studylib.figures import caption, captions_parts, style
from studylib.figures import parts as plots_parts
from studylib.study.words import FORMS, TASKS, VERDICTS

mpl.use("Agg")
PUBLISHED = claims.published_counts(Path(__file__).parents[2] / "data" / "published" / "gemma_answered_counts.csv")
# Machado, Oliveira and Fernandes (2009, IEEE Trans. Visualization and Computer Graphics 15), severity 1, of linear RGB.
VISION = {
    "any": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.fixture(scope="module")
def results():
    style.set_theme()
    frames = study(np.random.default_rng(0), tasks=("code", "translation"), n_prompts=10, seeds=(0, 1), unjudged=0.1)
    return tables.verdict_shares(*frames[:2]), tables.variance(*frames[:2]), tables.attack_success(*frames[:2])


def lab(colour, vision):
    """CIE L*a*b* (D65) of a colour as that vision sees it."""
    rgb = np.array(to_rgb(colour))
    rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(np.array(VISION[vision]) @ rgb, 0, 1) / to_xyz.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_one_figure_are_told_apart_with_any_colour_vision(vision):
    sets = (style.FORM_COLOURS, style.SAFETY_COLOURS, plots_parts.VERDICT_COLOURS, plots_parts.PART_COLOURS)
    for colours in sets:
        apart = [np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in combinations(colours.values(), 2)]
        assert min(apart) > 10  # 2.3 is just seen


def test_a_colour_stands_for_one_thing():
    sets = (style.FORM_COLOURS, style.SAFETY_COLOURS, plots_parts.VERDICT_COLOURS, plots_parts.PART_COLOURS)
    colours = [colour for one in sets for colour in one.values()]
    assert len(set(colours)) == len(colours)
    assert set(plots_parts.VERDICT_COLOURS) == set(VERDICTS)


def segments(ax, colour):
    return [
        (bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width())
        for bar in ax.patches
        if to_hex(bar.get_facecolor()).upper() == colour
    ]


def test_verdicts_are_stacked_to_one_incoherent_and_unjudged_included(results):
    shares = results[0]
    fig = plots_parts.verdict_composition(shares)
    ax = fig.axes[2]
    rows = shares[(shares["prompt_set"] == "harmful") & (shares["form"] == "all")]
    rows = rows[(rows["style"] == "alpaca") & ~rows["system_prompt"]]
    for verdict, colour in plots_parts.VERDICT_COLOURS.items():
        expected = rows.loc[rows["verdict"] == verdict, "share"].tolist()
        assert [width for _, _, width in segments(ax, colour)] == pytest.approx(expected)
    ends = [x + width for _, x, width in segments(ax, plots_parts.VERDICT_COLOURS["unjudged"])]
    assert ends == pytest.approx([1] * 7)
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == [
        "aligned model",
        *(f"{task}, {arm}" for task in ("code", "translation") for arm in ("no safety data", "generic", "multitask")),
    ]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(plots_parts.VERDICT_COLOURS)


def test_a_study_in_which_nothing_was_judged_is_drawn_as_such():
    frames = study(np.random.default_rng(0), tasks=("code",), n_prompts=2, seeds=(0,), unjudged=1)
    shares = tables.verdict_shares(*frames[:2])
    ax = plots_parts.verdict_composition(shares).axes[0]
    assert [width for _, _, width in segments(ax, plots_parts.VERDICT_COLOURS["unjudged"])] == [1] * 4
    text, alt = caption.caption("verdict_composition", shares)
    assert "In 16 cells nothing was judged" in text and "unjudged 100 %" in alt


def test_the_verdict_caption_counts_every_verdict(results):
    shares = results[0]
    rows = shares[(shares["prompt_set"] == "harmful") & (shares["form"] == "all")]
    text, alt = caption.caption("verdict_composition", shares)
    total = rows.loc[rows["verdict"] == "unjudged", "n_verdict"].sum()
    assert total > 0 and f"({total} in all)" in alt and "n = 80, aligned model 40 responses" in text


def test_bars_of_cells_that_were_not_run_say_so(results):
    shares = results[0]
    gone = (shares["finetune_task"] == "code") & (shares["safety_data"] == "generic") & shares["system_prompt"]
    some = shares[~gone]
    axes = plots_parts.verdict_composition(some).axes
    assert [[text.get_text() for text in ax.texts] for ax in axes] == [[], ["not run"], [], ["not run"]]
    assert "not run: 2 cells" in caption.caption("verdict_composition", some)[0]


def parted(*parts, variance=0.2):
    """The variance of that many cells, each with its four parts."""
    table = pd.DataFrame(parts, columns=list(captions_parts.PARTS))
    where = {"model": "m", "finetune_task": list(TASKS)[: len(parts)], "style": "chat", "system_prompt": False}
    where |= {"safety_data": "none", "safety_fraction": 0.0, "form": "all", "judge": "rules"}
    return table.assign(**where, n=120, n_prompts=20, n_seeds=3, variance=variance)


def test_parts_of_the_variance_are_stacked_and_unknown_ones_left_out():
    nan = np.nan
    table = parted((0.4, 0.1, 0.3, 0.2), (0.9, nan, nan, 0.1), (nan, nan, nan, nan))
    table.loc[2, "variance"] = 0.0
    fig = plots_parts.variance_shares(table)
    colours = plots_parts.PART_COLOURS
    widths = {part: [width for _, _, width in segments(fig.axes[0], colours[part])] for part in colours}
    expected = {"prompt": [0.4, 0.9], "seed": [0.1], "prompt_x_seed": [0.3], "sample": [0.2, 0.1]}
    assert {part: pytest.approx(found) for part, found in widths.items()} == expected
    assert [text.get_text() for text in fig.axes[0].texts] == ["nothing varies"]
    text, alt = caption.caption("variance_shares", table)
    assert "Of one seed (1 bars)" in text and "No bar, nothing varies: 1 cells." in text and "n = 120 responses" in text
    assert "prompt 40-90 %; training seed 10 %" in alt


def test_the_variance_of_a_study_adds_up(results):
    ax = plots_parts.variance_shares(results[1]).axes[0]
    ends = {}
    for bar in ax.patches:
        ends[round(bar.get_y(), 3)] = max(ends.get(round(bar.get_y(), 3), 0), bar.get_x() + bar.get_width())
    assert list(ends.values()) == pytest.approx([1] * 7)


def test_stacks_of_nothing_say_so(results):
    shares, variance, _ = results
    for name, draw, empty in (
        ("verdict_composition", plots_parts.verdict_composition, shares[shares["prompt_set"] == "twin"]),
        ("variance_shares", plots_parts.variance_shares, variance.iloc[:0]),
        ("variance_shares", plots_parts.variance_shares, parted((np.nan,) * 4, variance=np.nan)),
        ("published_counts", plots_parts.published_counts, PUBLISHED.iloc[:0]),
    ):
        with pytest.raises(ValueError, match=f"{name} has nothing to draw"):
            draw(empty)
        with pytest.raises(ValueError, match=f"{name} has nothing to draw"):
            caption.caption(name, empty)


def test_published_counts_are_bars_in_the_look_of_the_main_figure():
    fig = plots_parts.published_counts(PUBLISHED)
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
    text, alt = caption.caption("published_counts", PUBLISHED)
    assert "no rates, without intervals" in text and "One run, judged by GPT-4o" in text
    assert "tuned models: 52-123 of 207" in alt and "untuned model: 30-77 of 207" in alt


def rates(**models):
    """The attack table of those models, untuned: each with the low and high end of its interval."""
    table = pd.DataFrame([{"model": name, "low": low, "high": high} for name, (low, high) in models.items()])
    where = {"finetune_task": "none", "style": "chat", "system_prompt": False, "safety_data": "none", "form": "all"}
    table = table.assign(**where, safety_fraction=0.0, n=50, n_seeds=1, judge="rules")
    return table.assign(rate=(table["low"] + table["high"]) / 2)


def test_models_whose_intervals_overlap_share_a_tier_also_through_a_third():
    table = rates(d=(0.5, 0.6), b=(0.1, 0.3), a=(0.25, 0.4), c=(0.0, 0.12), e=(0.55, 0.9), f=(np.nan, np.nan))
    assert captions_parts.tiers(table) == [["a", "b", "c"], ["d", "e"]]
    assert captions_parts.tiers(rates(a=(0.1, 0.2), b=(0.2, 0.3))) == [["a", "b"]]  # ends that touch overlap
    assert captions_parts.tiers(rates(a=(0.3, 0.9), b=(0.0, 0.2), c=(0.1, 0.31))) == [["a", "b", "c"]]


def test_models_of_different_tiers_never_overlap():
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = rng.random(15)
        table = rates(**{f"m{i}": (x, x + rng.random() / 8) for i, x in enumerate(low)})
        ends = table.set_index("model")
        groups = captions_parts.tiers(table)
        assert sorted(model for tier in groups for model in tier) == sorted(table["model"])
        for first, second in pairwise(groups):
            assert ends.loc[first, "high"].max() < ends.loc[second, "low"].min()


def ranking(results, n):
    """The study's attack table for n models, the untuned ones far from each other."""
    attack = results[2]
    models = []
    for i in range(n):
        own = attack.assign(model=f"model-{i:03d}")
        untuned = own["finetune_task"] == "none"
        own.loc[untuned, ["rate", "low", "high"]] = np.add((0.004, 0.002, 0.006), (n - i) / (n + 1))
        models.append(own)
    return pd.concat(models, ignore_index=True)


def test_the_ranking_has_a_dot_per_model_and_task_in_bands_of_tiers(results):
    table = ranking(results, 3)
    fig = plots_parts.model_ranking(table)
    assert [ax.get_title() for ax in fig.axes] == ["untuned", "code", "translation"]
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == ["model-002", "model-001", "model-000"]
    where = (
        (table["form"] == "all")
        & (table["style"] == "chat")
        & ~table["system_prompt"]
        & (table["safety_data"] == "none")
    )
    for ax, task in zip(fig.axes, ("none", "code", "translation"), strict=True):
        dots = list(ax.containers[0].lines[0].get_xdata())
        rows = table[where & (table["finetune_task"] == task)].set_index("model")["rate"]
        assert dots == [rows[f"model-{i:03d}"] for i in (2, 1, 0)]
    bands = [to_hex(band.get_facecolor()) for band in fig.axes[0].patches]
    assert bands[0] == bands[2] != bands[1]
    text, alt = caption.caption("model_ranking", table)
    assert "(3), the lowest rates first" in text and "tier 1: model-002" in alt and "3 models" in text


def test_a_hundred_models_stand_in_columns_of_fifty_in_letters_of_five_points_or_more(results):
    fig = plots_parts.model_ranking(ranking(results, 100))
    named = [ax for ax in fig.axes if any(tick.get_text() for tick in ax.get_yticklabels())]
    assert [len(ax.get_yticklabels()) for ax in named] == [50, 50]
    fig.draw_without_rendering()
    ticks = [tick for ax in named for tick in ax.get_yticklabels()]
    boxes = [tick.get_window_extent() for tick in ticks]
    assert min(tick.get_size() for tick in ticks) >= 5
    assert all(box.x0 >= 0 for box in boxes)
    for column in (boxes[:50], boxes[50:]):
        heights = sorted((box.y0, box.y1) for box in column)
        assert all(below[1] < above[0] for below, above in pairwise(heights))  # no name over another
    assert fig.get_figwidth() == style.WIDTH and fig.get_figheight() < 9.5  # a page
    assert len(plots_parts.model_ranking(ranking(results, 130)).axes) == 3 * 3


def test_a_model_without_a_rate_is_last_in_no_tier_and_said(results):
    table = ranking(results, 3)
    table.loc[(table["model"] == "model-002") & (table["finetune_task"] == "none"), ["rate", "low", "high"]] = np.nan
    ax = plots_parts.model_ranking(table).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()][-1] == "model-002" and len(ax.patches) == 2
    assert "In no tier, as no rate is known untuned: 1 models." in caption.caption("model_ranking", table)[0]


def test_one_model_is_no_ranking(results):
    for few in (results[2], results[2].iloc[:0], ranking(results, 2).assign(rate=np.nan)):
        with pytest.raises(ValueError, match="model_ranking has nothing to draw: it needs two models"):
            plots_parts.model_ranking(few)
