"""The figures of a simulated study: labels, values, orders and colours, never pixels."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from drawn import figure, texts
from frames import study
from matplotlib.colors import to_hex

from studylib.analysis import claims, tables
from studylib.analysis.rates import TOGETHER
from studylib.analysis.readable import label
from studylib.figures import planes, style
from studylib.study.words import FORMS, SAFETY_DATA, SIDES, TASKS

mpl.use("Agg")
PUBLISHED = claims.published_counts(Path(__file__).parents[2] / "data" / "published" / "gemma_answered_counts.csv")
CALIBRATIONS = [("chat", False), ("chat", True), ("alpaca", False), ("alpaca", True)]


@pytest.fixture(scope="module")
def results():
    """The attack, helpfulness and share tables of a small study."""
    style.set_theme()
    frames = study(np.random.default_rng(0), n_prompts=4, seeds=(0, 1))
    return tables.attack_success(*frames[:2]), tables.helpfulness(*frames), tables.answered_share(*frames[:2])


@pytest.fixture(scope="module")
def drawn(results):
    """Every figure by name, with the table that it shows first."""
    attack, helpfulness, share = results
    arguments = {
        "attack_success_by_form": (attack,),
        "safety_data_comparison": (attack,),
        "safety_vs_helpfulness": (attack, helpfulness),
        "answered_share": (share, PUBLISHED),
        "over_refusal": (helpfulness,),
    }
    return {name: (figure(name, *tidy), *tidy) for name, tidy in arguments.items()}


def one(table, calibration, task, form, arm="none", **more):
    """The only row of that cell and form."""
    wanted = {"finetune_task": task, "safety_data": arm, "form": form, **more}
    style, system_prompt = calibration
    rows = table[(table["style"] == style) & (table["system_prompt"] == system_prompt)]
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def points(ax):
    """Position and colour of the points with intervals in a panel."""
    lines = [bar.lines[0] for bar in ax.containers if isinstance(bar, mpl.container.ErrorbarContainer)]
    return [(line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_color()).upper()) for line in lines]


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_rates_are_drawn_from_0_to_1_and_labelled_with_direction_unit_and_n(drawn):
    for name in ("attack_success_by_form", "safety_vs_helpfulness", "over_refusal"):
        fig, *_ = drawn[name]
        assert all(ax.get_ylim() == (0, 1) for ax in fig.axes)
        expected = style.OVER_REFUSAL if name == "over_refusal" else style.ATTACK
        assert fig._supylabel.get_text() == expected
        assert "n = " in fig._supxlabel.get_text()
    assert "% of harmful prompts answered" in style.ATTACK
    ticks = drawn["over_refusal"][0].axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == ["0", "", "50", "", "100"]


def test_bars_are_as_high_as_the_rates_in_fixed_order_and_colour(drawn):
    fig, attack, *_ = drawn["attack_success_by_form"]
    panels = np.reshape(fig.axes, (4, 5))
    for calibration, row in zip(CALIBRATIONS, panels, strict=True):
        for task, ax in zip(("none", *TASKS), row, strict=True):
            assert len(ax.patches) == len(FORMS)
            for bar, form in zip(ax.patches, FORMS, strict=True):
                assert bar.get_height() == one(attack, calibration, task, form)["rate"]
                assert to_hex(bar.get_facecolor()).upper() == style.FORM_COLOURS[form]
    assert [label.get_text() for label in panels[-1, 0].get_xticklabels()] == [
        *("text generation", "code", "translation", "classification")
    ]
    assert panels[0, 0].get_title() == "aligned model\n(not tuned)"
    assert panels[0, 3].get_title() == "tuned on\ntranslation"
    assert panels[1, -1].get_ylabel() == "chat template\nsystem prompt"


def test_every_bar_has_its_interval_and_the_aligned_model_as_a_tick(drawn):
    fig, attack, *_ = drawn["attack_success_by_form"]
    ax = np.reshape(fig.axes, (4, 5))[2, 1]
    bars = [bar for bar in ax.containers if isinstance(bar, mpl.container.ErrorbarContainer)]
    for bar, form in zip(bars, FORMS, strict=True):
        row = one(attack, ("alpaca", False), "text_generation", form)
        ends = bar.lines[2][0].get_segments()[0][:, 1]
        assert ends == pytest.approx([row["low"], row["high"]])
    ticks = [c.get_segments()[0][0, 1] for c in ax.collections if c.get_linewidth() == 1.5]
    assert ticks == pytest.approx([one(attack, ("alpaca", False), "none", form)["rate"] for form in FORMS])
    assert legend(fig)[-1] == "aligned model"


@pytest.fixture(scope="module")
def guards():
    """A table of two guards on three sides, every rate another, one undefined."""
    style.set_theme()
    rows = [
        {"model": "m", "guard": guard, "side": side, "prompt_set": prompt_set, "form": form}
        for guard in ("text_only", "all_forms")
        for side in SIDES
        for prompt_set in ("harmful", "twin")
        for form in (*FORMS, "all")
    ]
    table = pd.DataFrame(rows).assign(n=50, n_undecided=0, n_effective=50.0, judge="rules", note="")
    table["blocked_rate"] = np.arange(len(table)) / 100
    table.loc[table["side"] != "input", "n"] = 700
    table.loc[7, "blocked_rate"] = np.nan
    return table


def test_the_guard_heatmap_has_a_row_per_guard_and_side_and_both_errors_side_by_side(guards):
    fig = figure("guard_heatmap", guards)
    left, right = (ax for ax in fig.axes if ax.get_title())
    assert "harmful ones blocked" in left.get_title() and "more is better" in left.get_title()
    assert "benign twins blocked" in right.get_title() and "less is better" in right.get_title()
    assert [tick.get_text() for tick in left.get_yticklabels()] == [
        *("fitted on texts, input", "fitted on texts, output", "fitted on texts, both"),
        *("fitted on all forms, input", "fitted on all forms, output", "fitted on all forms, both"),
    ]
    for ax, prompt_set in ((left, "harmful"), (right, "twin")):
        rates = guards.loc[guards["prompt_set"] == prompt_set, "blocked_rate"].dropna()
        assert [text.get_text() for text in ax.texts] == [f"{100 * rate:.0f}" for rate in rates]
        assert ax.collections[0].get_clim() == (0, 1)
        assert [tick.get_text() for tick in ax.get_xticklabels()][-1] == "all forms"
    assert "n = 50 prompts" in fig._supxlabel.get_text() and "n = 700 responses" in fig._supxlabel.get_text()


def test_several_models_or_judges_in_one_place_of_the_guard_heatmap_are_refused(guards):
    with pytest.raises(ValueError, match="keep one model and judge"):
        figure("guard_heatmap", pd.concat([guards, guards.assign(model="other")]))
    with pytest.raises(ValueError, match="nothing to draw"):
        figure("guard_heatmap", guards.iloc[:0])


def test_the_guard_caption_takes_every_number_from_the_table(guards):
    text, alt = texts("guard_heatmap", guards)
    for words in ("input n = 50 prompts", "output, both n = 700 responses", "Judge: rules", "95 % Wilson"):
        assert words in text, words
    assert "Fitted on texts on input: 0-3 % of harmful prompts and 5-8 % of twins." in alt
    assert "all forms, on those of every form" in text
    alone = guards[guards["guard"] == "text_only"]
    assert "every form" not in texts("guard_heatmap", alone)[0]
    with pytest.raises(ValueError, match="no guard could decide on anything"):
        texts("guard_heatmap", guards.assign(blocked_rate=np.nan))


@pytest.mark.parametrize("name", ["safety_data_comparison", "over_refusal"])
def test_the_safety_arms_stand_side_by_side_in_fixed_order_and_colour(drawn, name):
    fig, table, *_ = drawn[name]
    more, value = ({"measure": "over_refusal_rate"}, "value") if name == "over_refusal" else ({}, "j")
    found = points(np.reshape(fig.axes, (4, 4))[3, 2])
    rows = [one(table, ("alpaca", True), "translation", f, a, **more) for f in FORMS for a in SAFETY_DATA]
    assert [y for _, y, _ in found] == [row[value] for row in rows]
    assert [colour for _, _, colour in found] == list(style.SAFETY_COLOURS.values()) * 4
    assert [x for x, _, _ in found] == sorted(x for x, _, _ in found)
    keys = ["no safety data", "generic safety data", "multitask safety data", "aligned model"]
    assert legend(fig) == keys + ["2 AUC \N{MINUS SIGN} 1"] * (value == "j")


def test_auc_stands_hollow_beside_j_on_its_scale_and_the_axis_holds_what_is_below_0(results):
    attack = results[0].assign(j=-0.2, j_low=-0.45, j_high=0.1, auc=0.75)
    fig = figure("safety_data_comparison", attack)
    hollow = [line for line in fig.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [line.get_ydata()[0] for line in hollow] == [0.5] * 12
    assert fig.axes[0].get_ylim() == (-0.5, 1)
    text, alt = texts("safety_data_comparison", attack)
    assert "-20 points with multitask safety data" in text and "independent" not in text  # which is of the rate
    assert alt.endswith("The aligned model: -20 points.")


def test_safety_stands_over_the_score_of_the_tuned_task_with_the_aligned_model_as_star(results, drawn):
    attack, helpfulness, _ = results
    ax = np.reshape(drawn["safety_vs_helpfulness"][0].axes, (4, 4))[0, 1]
    cells = [("code", arm) for arm in SAFETY_DATA] + [("none", "none")]
    score = [one(helpfulness, ("chat", False), t, "code", a, measure="task_score")["value"] for t, a in cells]
    rate = [one(attack, ("chat", False), t, "all", a)["rate"] for t, a in cells]
    assert [(x, y) for x, y, _ in points(ax)] == list(zip(score, rate, strict=True))
    markers = [bar.lines[0].get_marker() for bar in ax.containers]
    assert markers == ["o", "s", "^", "*"]
    assert all(len(bar.lines[2]) == 2 for bar in ax.containers)  # intervals in both directions
    assert ax.get_xlim() == (0, 1)
    assert drawn["safety_vs_helpfulness"][0].axes[0].texts[0].get_text() == "better"


def test_metrics_are_named_under_their_task(drawn):
    bottom = np.reshape(drawn["safety_vs_helpfulness"][0].axes, (4, 4))[3]
    assert [ax.get_xlabel() for ax in bottom] == ["ROUGE-L", "exact match", "chrF", "accuracy"]


def test_two_metrics_for_one_task_are_refused(results):
    attack, helpfulness, _ = results
    twice = pd.concat([helpfulness, helpfulness.assign(metric="another")])
    with pytest.raises(ValueError, match="judge, metric"):
        figure("safety_vs_helpfulness", attack, twice)


def test_ours_stands_left_of_the_published_share_around_the_equal_share(results, drawn):
    share = results[2]
    ax = drawn["answered_share"][0].axes[0]
    found = points(ax)
    ours = [one(share, ("chat", False), task, TOGETHER)["share"] for task in ("none", *TASKS)]
    assert [y for x, y, _ in found if x % 1 > 0.5] == pytest.approx(ours, nan_ok=True)
    theirs = [y for x, y, _ in found if x % 1 < 0.5]
    assert theirs[0] == pytest.approx(47 / 77)
    assert len(theirs) == 5
    assert ax.lines[0].get_ydata()[0] == 0.5
    alpaca = drawn["answered_share"][0].axes[2]
    assert len(points(alpaca)) == 9  # no untuned model was published in that style


def test_parts_of_the_grid_leave_their_place_empty_and_nan_draws_nothing(results):
    attack, helpfulness, share = results

    def part(table):
        kept = table["finetune_task"].isin(["none", "code"]) & (table["style"] == "alpaca")
        return table[kept & ~((table["finetune_task"] == "code") & table["system_prompt"])].copy()

    some = part(attack)
    some.loc[some["form"] == "translation", ["rate", "low", "high"]] = np.nan
    fig = figure("attack_success_by_form", some)
    assert len(fig.axes) == 4
    assert [len(ax.patches) for ax in fig.axes] == [4, 4, 4, 0]
    assert np.isnan(fig.axes[1].patches[2].get_height())
    assert [[text.get_text() for text in ax.texts] for ax in fig.axes] == [[], [], [], ["not run"]]
    for fig in (
        figure("safety_data_comparison", some),
        figure("over_refusal", part(helpfulness)),
        figure("safety_vs_helpfulness", some, part(helpfulness)),
        figure("answered_share", part(share), PUBLISHED),
    ):
        fig.draw_without_rendering()


def test_no_figure_stays_open_for_a_notebook_to_show_twice(drawn):
    assert plt.get_fignums() == []


def test_an_empty_table_says_that_there_is_nothing_to_draw(results):
    attack, helpfulness, share = (table.iloc[:0] for table in results)
    for name, *frames in (
        ("attack_success_by_form", attack),
        ("safety_data_comparison", attack),
        ("over_refusal", helpfulness),
        ("safety_vs_helpfulness", attack, helpfulness),
        ("answered_share", share, PUBLISHED),
    ):
        with pytest.raises(ValueError, match="nothing to draw"):
            figure(name, *frames)
    with pytest.raises(ValueError, match="no tuned model"):
        figure("safety_data_comparison", results[0][results[0]["finetune_task"] == "none"])


def test_two_judges_or_models_for_one_mark_are_refused(results):
    attack = results[0]
    with pytest.raises(ValueError, match="keep one model, judge"):
        figure("attack_success_by_form", pd.concat([attack, attack.assign(judge="another")]))
    with pytest.raises(ValueError, match="keep one model"):
        figure("attack_success_by_form", pd.concat([attack, attack.assign(model="another")]))


@pytest.mark.slow
def test_of_several_doses_the_most_frequent_is_drawn_and_named(drawn):
    of_one, attack = drawn["safety_data_comparison"]
    more = attack[(attack["safety_data"] == "generic") & (attack["style"] == "chat")]
    both = pd.concat([more.assign(safety_fraction=0.02, rate=0.9), attack])
    assert points(figure("safety_data_comparison", both).axes[0]) == points(of_one.axes[0])
    assert "Safety data: 10 % of the tuning rows." in texts("safety_data_comparison", both)[0]


def _front(*marks):
    """Attack success and scores of so many arms as (rate, half width, score, half width), and who is on the front."""
    cells = [("none", "none"), ("code", "none"), ("code", "generic"), ("code", "multitask")][-len(marks) :]
    rows = [
        {"finetune_task": task, "safety_data": arm, "safety_fraction": 0.1, "style": "chat", "system_prompt": False}
        | {"rate": rate, "low": rate - dy, "high": rate + dy, "score": score, "dx": dx, "n": 100, "metric": "f1"}
        for (task, arm), (rate, dy, score, dx) in zip(cells, marks, strict=True)
    ]
    table = pd.DataFrame(rows)
    scores = table.assign(form="code", measure="task_score", value=table["score"])
    scores = scores.assign(low=table["score"] - table["dx"], high=table["score"] + table["dx"])
    attack = table.assign(form="all").drop(columns=["metric", "score", "dx"])
    return attack, scores, list(planes.task_plane(attack, scores)["front"])


def test_the_front_holds_what_nothing_beats_on_both_axes():
    assert _front((0.1, 0, 0.5, 0), (0.8, 0, 0.9, 0), (0.9, 0, 0.8, 0), (0.2, 0, 0.7, 0))[2] == [
        "yes",
        "yes",
        "no",
        "yes",
    ]
    assert _front((0.3, 0, 0.5, 0), (0.3, 0, 0.5, 0))[2] == ["yes", "yes"]  # equal marks do not beat each other


def test_a_beaten_arm_whose_intervals_overlap_on_both_axes_cannot_be_told():
    assert _front((0.3, 0.1, 0.7, 0.1), (0.4, 0.1, 0.6, 0.1))[2] == ["yes", "undecided"]
    assert _front((0.3, 0.04, 0.7, 0.1), (0.4, 0.04, 0.6, 0.1))[2] == ["yes", "no"]  # the rates are apart
    assert _front((0.3, 0.1, 0.7, 0.04), (0.4, 0.1, 0.6, 0.04))[2] == ["yes", "no"]  # the scores are
    # near one mark of the front, but clearly beaten by another
    assert _front((0.1, 0.02, 0.7, 0.1), (0.39, 0.1, 0.71, 0.1), (0.4, 0.1, 0.65, 0.1))[2] == ["yes", "yes", "no"]
    # near the front, but clearly beaten by a mark that is itself near it
    assert _front((0.2, 0.2, 0.7, 0.2), (0.3, 0.01, 0.65, 0.01), (0.4, 0.05, 0.6, 0.02))[2][1:] == [
        "undecided",
        "no",
    ]


def test_the_front_is_a_step_line_and_what_cannot_be_told_is_hollow():
    attack, scores, _ = _front((0.1, 0.02, 0.5, 0.02), (0.4, 0.1, 0.9, 0.1), (0.45, 0.1, 0.85, 0.1))
    fig = figure("safety_vs_helpfulness", attack, scores)
    line = next(line for line in fig.axes[0].lines if line.get_drawstyle() == "steps-pre")
    assert list(line.get_xdata()) == [0.4, 0.5, 0.9, 0.9] and list(line.get_ydata()) == [0.1, 0.1, 0.4, 1]
    hollow = [bar.lines[0].get_markerfacecolor() == "white" for bar in fig.axes[0].containers]
    assert hollow == [False, False, True]
    assert legend(fig)[-1] == "possibly on the front"


def test_fronts_are_counted_where_safety_data_are_compared(results):
    attack, helpfulness, _ = results
    alone = [table[~((table["style"] == "alpaca") & (table["safety_data"] != "none"))] for table in results[:2]]
    for tables_of, n_tuned in (((attack, helpfulness), 4 * 4 * 3), (alone, 4 * 2 * 3)):
        assert re.match(
            rf"In the panels that compare safety data, \d+ of {n_tuned} ", texts("safety_vs_helpfulness", *tables_of)[0]
        )
    plain = [table[table["safety_data"] == "none"] for table in results[:2]]
    assert re.match(r"\d+ of 16 tuned models", texts("safety_vs_helpfulness", *plain)[0])


def test_without_scores_the_plane_says_that_it_has_nothing(results):
    attack, helpfulness, _ = results
    with pytest.raises(ValueError, match="both a rate and a score"):
        figure("safety_vs_helpfulness", attack, helpfulness[helpfulness["measure"] != "task_score"])


def test_rates_of_exactly_0_and_1_and_unjudged_arms_are_drawn_and_said(results):
    attack = results[0].copy()
    attack.loc[attack["safety_data"] == "multitask", ["rate", "low", "high"]] = (0, 0, 0.1)
    attack.loc[attack["finetune_task"] == "code", ["rate", "low", "high"]] = (1, 0.9, 1)
    attack.loc[attack["finetune_task"] == "translation", ["rate", "low", "high", "j", "j_low", "j_high"]] = np.nan
    shown = attack[attack["safety_data"] != "generic"]
    figure("safety_data_comparison", shown).draw_without_rendering()
    text, _ = texts("safety_data_comparison", shown)
    assert "Not of the grid, or not run: generic safety data." in text and "Nothing judged: 32 marks" in text


def test_intervals_of_one_or_two_training_runs_are_said_to_be_about_these_models(results):
    two, three = (texts("attack_success_by_form", results[0].assign(n_seeds=n))[0] for n in (2, 3))
    assert "intervals are about these models alone" in two and "these models alone" not in three


@pytest.mark.slow
def test_captions_take_every_number_from_the_table(drawn):
    for name, (_, *frames) in drawn.items():
        text, alt = texts(name, *frames)
        of_rates = () if name == "safety_data_comparison" else ("independent",)
        for word in ("95 % Wilson", "n = ", "seeds pooled: 2", "Judge: rules", *of_rates):
            assert word in text, (name, word)
        assert "%" in alt or not of_rates
    text, alt = texts("attack_success_by_form", drawn["attack_success_by_form"][1])
    shown = drawn["attack_success_by_form"][1].query("safety_data == 'none' and form != 'all'")
    assert f"{shown['n_unjudged'].sum()} responses that could not be judged" in text or not shown["n_unjudged"].sum()
    top = shown.loc[shown["rate"].idxmax()]
    assert f"to {100 * top['rate']:.0f} % (tuned on {label(top['finetune_task'])}" in alt


def test_a_caption_of_nothing_but_nan_is_refused(results):
    share = results[2].assign(share=np.nan)
    with pytest.raises(ValueError, match="nothing of what it shows could be judged"):
        texts("answered_share", share, PUBLISHED)


def test_a_figure_of_a_model_that_answered_nothing_has_a_caption(results):
    share = results[2].copy()
    aligned = share["finetune_task"] == "none"
    share.loc[aligned, ["share", "low", "high"]], share.loc[aligned, "n"] = np.nan, 0
    text, alt = texts("answered_share", share, PUBLISHED)
    assert "answered prompts" in text and alt
