"""The figures of the rival mitigations: what is drawn where, by values and labels; and their captions."""

import matplotlib as mpl
import numpy as np
import pytest
from drawn import figure, texts
from frames import study, with_arms
from matplotlib.text import Text

from studylib.analysis import comparisons, rates, tables
from studylib.analysis.readable import arm_with_dose, label, span
from studylib.figures import planes, style
from studylib.study.words import ARMS, FORMS

mpl.use("Agg")
ALONE = {(f"{form}_only", 0.1): ({other: 0.9 for other in FORMS} | {form: 0.0}, 0.05) for form in FORMS}
TRIED = ALONE | {("multitask", 0.2): (0.02, 0.4), ("multitask_twins", 0.1): (0.2, 0.1), ("scaled", 0.5): (0.6, 0.03)}


@pytest.fixture(scope="module")
def results():
    style.set_theme()
    made = study(np.random.default_rng(0), tasks=("code", "translation"), n_prompts=20, seeds=(0, 1))
    frames = with_arms(np.random.default_rng(1), made, TRIED)
    rows = rates.judged(*frames[:2])
    attack, costs = tables.attack_success(rows), tables.helpfulness(rows, None, frames[2])
    return comparisons.compare_arms(rows, None, frames[2]), attack, costs


def test_the_matrix_has_a_row_per_form_alone_then_all_forms_and_twins_at_one_dose(results):
    fig = figure("transfer_matrix", results[0])
    ax = fig.axes[0]
    assert ax.get_title() == "tuned on code, chat template" and not fig.axes[1].get_title()  # where they were tried
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [f"{label(form)} alone" for form in FORMS] + ["multitask", "multitask with twins"]
    assert set(planes.transfers(results[0])["safety_fraction"]) == {0.1}


def test_a_cell_of_the_matrix_is_the_change_of_its_form_by_its_data(results):
    shown = planes.transfers(results[0]).set_index(["safety_data", "form"])
    values = figure("transfer_matrix", results[0]).axes[0].collections[0].get_array().reshape(6, 5).filled(np.nan)
    for row, form in enumerate(FORMS):
        cell = shown.loc[(f"{form}_only", form)]
        assert cell["value"] == 0 and cell["difference"] < 0
        drawn = cell["difference"] if cell["low"] > 0 or cell["high"] < 0 else np.nan
        assert values[row, row] == pytest.approx(drawn, nan_ok=True)
    assert np.isfinite(np.diag(values)).sum() >= 2


def test_a_change_whose_interval_includes_0_is_hatched_and_in_brackets(results):
    table = results[0].assign(low=-0.1, high=0.1)
    ax = figure("transfer_matrix", table).axes[0]
    assert len([patch for patch in ax.patches if patch.get_hatch()]) == 30
    assert all(text.get_text().startswith("(") for text in ax.texts)


def test_the_matrix_without_data_of_one_form_says_so(results):
    table = results[0][~results[0]["safety_data"].isin([name for name, _ in ALONE])]
    with pytest.raises(ValueError, match=r"^transfer_matrix has nothing to draw"):
        figure("transfer_matrix", table)


def test_the_caption_of_the_matrix_counts_pairs_and_what_is_told(results):
    text, alt = texts("transfer_matrix", results[0])
    rows = planes.transfers(results[0])
    single = rows[rows["form"] != "all"]
    assert f"n = {span(single['n'])} pairs per form" in text and "Safety data: 10 % of the tuning rows." in text
    assert "unadjusted" in text and "Judge: rules." in text and "Training seeds pooled: 2." in text
    own = single[single["safety_data"] == single["form"].astype(str) + "_only"]
    beside = (own["low"] > 0) | (own["high"] < 0)
    assert f"{beside.sum()} of 4 intervals exclude 0." in alt and "significant" not in text + alt


def test_the_plane_has_a_row_per_task_with_rivals_and_every_mark_at_its_rates(results):
    fig = figure("arms_plane", *results[1:])
    assert [ax.get_ylabel() for ax in fig.axes] == ["", "", "tuned on code"]
    for ax, panel in zip(fig.axes, comparisons.PLANES, strict=True):
        points = planes.plane(*results[1:]).query(f"panel == '{panel}'")
        drawn = {tuple(np.round(one[0].get_xydata()[0], 9)) for one in ax.containers}
        assert drawn == {tuple(np.round(pair, 9)) for pair in points[["x", "rate"]].to_numpy()}


def test_doses_and_what_is_left_of_the_adapter_are_said_once_and_apart(results):
    fig = figure("arms_plane", *results[1:])
    *others, last = fig.axes
    assert sorted(text.get_text() for text in last.texts) == ["10 %", "20 %", "50 %"]
    assert not any(ax.texts for ax in others)
    fig.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in last.texts]  # without its line
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_a_mark_that_cannot_be_told_from_the_front_is_hollow(results):
    points = planes.plane(*results[1:])
    for ax, panel in zip(figure("arms_plane", *results[1:]).axes, planes.PANELS, strict=True):
        hollow = sum(one[0].get_markerfacecolor() == "white" for one in ax.containers)
        assert hollow == ((points["panel"] == panel) & (points["front"] == "undecided")).sum()


def test_every_arm_has_a_look_of_its_own():
    assert set(planes.LOOKS) == set(comparisons.ARM_ORDER)
    for part in ("color", "marker"):
        assert len({look[part] for look in planes.LOOKS.values()}) == len(planes.LOOKS)


def test_words_of_the_plane_do_not_leave_the_figure_or_touch_each_other(results):
    fig = figure("arms_plane", *results[1:])
    fig.draw_without_rendering()
    boxes = [ax.xaxis.label.get_window_extent() for ax in fig.axes]
    boxes += [fig.legends[0].get_window_extent()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert not any(boxes[-1].overlaps(ax.get_window_extent()) for ax in fig.axes)
    assert all(fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 and box.y0 >= fig.bbox.y0 for box in boxes)


def test_without_rivals_the_plane_says_so(results):
    attack, costs = (
        frame[~(frame["safety_data"].isin(ARMS) | (frame["safety_fraction"] == 0.2))] for frame in results[1:]
    )
    with pytest.raises(ValueError, match=r"^arms_plane has nothing to draw: no other mitigation"):
        figure("arms_plane", attack, costs)


def test_the_caption_of_the_plane_names_ends_front_and_numbers(results):
    text, alt = texts("arms_plane", *results[1:])
    points = planes.plane(*results[1:]).query("panel == 'over_refusal_rate' and finetune_task != 'none'")
    assert f"n = {span(points['n'])} responses to harmful prompts" in text and "Judge: rules." in text
    lowest = points.loc[points["rate"].idxmin()]
    assert (
        f"from {100 * lowest['rate']:.0f} % ({arm_with_dose(lowest['safety_data'], lowest['safety_fraction'])}) to"
        in alt
    )
    for row in points[points["front"] == "yes"].to_dict("records"):
        assert (
            arm_with_dose(row["safety_data"], row["safety_fraction"]) in alt.split("on the front of over-refusal: ")[1]
        )
    assert "translation" not in alt.split("Tuned on ", 1)[1].split(" from ")[0]
