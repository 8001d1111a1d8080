"""The figures of change: what is drawn where, by values, labels and marks, never pixels; and their captions."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from drawn import figure, texts
from frames import study

from studylib.analysis import comparisons, rates, tables
from studylib.analysis.readable import calibration_label
from studylib.figures import changes, style
from studylib.study.words import FORMS, STYLES

mpl.use("Agg")


@pytest.fixture(scope="module")
def results():
    """The tables of a small study of two tasks."""
    style.set_theme()
    frames = study(np.random.default_rng(0), tasks=("code", "translation"), n_prompts=12, seeds=(0, 1))
    rows = rates.judged(*frames[:2])
    return {
        "comparisons": comparisons.compare_arms(rows),
        "by_run": tables.by_run(rows),
        "attack": tables.attack_success(rows),
        "helpfulness": tables.helpfulness(rows, None, frames[2]),
    }


@pytest.fixture(scope="module")
def steps():
    """The table of runs of a small study on three bases, with and without requests."""
    asked = {"tasks": ("code", "translation"), "n_prompts": 12, "seeds": (0,), "bases": (0, 1, 2)}
    frames = study(np.random.default_rng(0), requests=("none", "own"), **asked)
    return tables.by_run(rates.judged(*frames[:2]))


def pick(table, **wanted):
    """The only row with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def changed(lows, differences, kind="tuning", **columns):
    """A table of comparisons with a row per form of one arm; intervals reach as far up as down."""
    forms = [*FORMS, "all"][: len(lows)]
    table = pd.DataFrame({"form": forms, "difference": differences, "low": lows})
    table["high"] = 2 * table["difference"] - table["low"]
    where = {"model": "m", "finetune_task": "code", "style": "chat", "system_prompt": False, "safety_fraction": 0.0}
    where |= {"kind": kind, "safety_data": "none", "measure": "attack_success_rate", "metric": "rules"}
    numbers = {"n": 40, "n_bases": 1, "n_seeds": 2}
    return table.assign(**{**where, **numbers, **columns})


def words(ax):
    """The texts of a heat map by column of its first row, each with whether it is slanted."""
    texts = [text for text in ax.texts if text.get_position()[1] == 0.5]
    return [(t.get_text(), t.get_style()) for t in sorted(texts, key=lambda text: text.get_position()[0])]


def test_the_erosion_colours_changes_whose_interval_excludes_0_and_brackets_the_others():
    table = changed([0.1, -0.1, -0.3, np.nan, np.nan], [0.456, 0.3, -0.2, np.nan, 0.9])
    fig = figure("erosion_heatmap", table)
    assert words(fig.axes[0]) == [
        ("+46", "normal"), ("(+30)", "italic"), ("\N{MINUS SIGN}20", "normal"), ("-", "italic"), ("-", "italic")
    ]  # fmt: skip
    assert len([patch for patch in fig.axes[0].patches if patch.get_hatch()]) == 1
    values = fig.axes[0].collections[0].get_array().ravel()
    assert values.filled(np.nan) == pytest.approx([0.456, np.nan, -0.2, np.nan, np.nan], nan_ok=True)
    assert [text.get_text() for text in fig.legends[0].get_texts()][-1] == "not run, or no interval"


def test_the_scale_of_change_is_the_same_in_every_figure(results):
    for name in ("erosion_heatmap", "repair_heatmap"):
        fig = figure(name, results["comparisons"])
        assert {ax.collections[0].get_clim() for ax in fig.axes if ax.get_title()} == {(-1, 1)}
    low = mpl.colormaps[changes.CHANGE["cmap"]](0.0)
    assert low[2] > low[0]  # blue is less


def test_panels_of_the_erosion_are_calibrations_and_of_the_repair_styles_by_safety_data(results):
    titles = [ax.get_title() for ax in figure("erosion_heatmap", results["comparisons"]).axes if ax.get_title()]
    assert titles == [calibration_label(style, on) for style in STYLES for on in (False, True)]
    repair = figure("repair_heatmap", results["comparisons"])
    titles = [ax.get_title() for ax in repair.axes if ax.get_title()]
    assert titles == [
        f"{arm} safety data, {style}" for style in ("chat template", "Alpaca style") for arm in ("generic", "multitask")
    ]
    rows = results["comparisons"]
    told = pick(
        rows[rows["measure"] == "attack_success_rate"],
        **{"kind": "mitigation", "finetune_task": "code", "style": "chat", "system_prompt": False},
        **{"safety_data": "multitask", "form": "all"},
    )
    assert dict(words(repair.axes[1])).keys() >= {f"{100 * told['difference']:+.0f}".replace("-", "\N{MINUS SIGN}")}


def test_the_erosion_caption_counts_intervals_beside_0_and_gives_no_verdict():
    table = changed([0.1, -0.1, np.nan, 0.2], [0.4, 0.1, np.nan, 0.6])
    table.loc[2, "n"] = 0
    text, alt = texts("erosion_heatmap", table)
    assert "unadjusted" in text and "No colour is a verdict" in text and "significant" not in text + alt
    assert (
        "n = 40 pairs" in text and "not run, no pairs, or too few prompts (2 cells)" in text and "Judge: rules." in text
    )
    assert "from +10 (tuned on code" in alt and "2 of 3 cells (2 above, 0 below)" in alt
    assert text.startswith("Of 3 changes ") and "2 have a 95 % interval above 0 and 0 one below 0." in text


def test_changes_of_nothing_and_of_two_judges_are_refused(results):
    table = changed([0.1], [0.4])
    for name, other in (("erosion_heatmap", "mitigation"), ("repair_heatmap", "tuning")):
        for empty in (
            table.iloc[:0],
            table.assign(kind=other),
            table.assign(n=0),
            table.assign(measure="over_refusal_rate"),
        ):
            with pytest.raises(ValueError, match=f"{name} has nothing to draw"):
                texts(name, empty)
    with pytest.raises(ValueError, match="keep one model, judge"):
        figure("erosion_heatmap", pd.concat([table, table.assign(metric="another")]))


def test_the_repair_is_without_system_prompt_and_of_one_dose():
    arm = {"kind": "mitigation", "safety_data": "generic"}
    table = pd.concat(
        [
            changed([-0.5] * 2, [-0.4, -0.4], safety_fraction=0.1, **arm),
            changed([-0.9], [-0.8], safety_fraction=0.2, **arm),
            changed([-1.0], [-0.9], safety_fraction=0.1, system_prompt=True, **arm),
        ]
    )
    assert [word for word, _ in words(figure("repair_heatmap", table).axes[0])][:2] == [
        "\N{MINUS SIGN}40",
        "\N{MINUS SIGN}40",
    ]
    assert "Safety data: 10 % of the tuning rows." in texts("repair_heatmap", table)[0]


def lines_of(ax, colour):
    return [line for line in ax.lines if line.get_color() == colour and len(line.get_xdata()) > 1]


def cell(**wanted):
    return {"style": "chat", "system_prompt": False, "measure": "attack_success_rate"} | wanted


def test_each_run_is_a_thin_line_from_its_base_over_the_steps_and_the_mean_a_thick_one(steps):
    axes = np.reshape(figure("what_each_step_adds", steps).axes, (3, 2))
    kinds = [("none", "none"), ("own", "none"), ("own", "multitask")]
    kinds = [dict(zip(("requests", "safety_data"), kind, strict=True)) for kind in kinds]
    for row, measure in enumerate(("attack_success_rate", "over_refusal_rate", "j")):
        runs = [
            [pick(steps, finetune_task="none", base=base, **cell(measure=measure))["value"]]
            + [pick(steps, finetune_task="code", base=base, **kind, **cell(measure=measure))["value"] for kind in kinds]
            for base in (0, 1, 2)
        ]
        thin = lines_of(axes[row, 0], changes.RUN["color"])
        assert [list(line.get_ydata()) for line in thin] == runs
        (thick,) = lines_of(axes[row, 0], style.INK)
        assert list(thick.get_ydata()) == pytest.approx(np.mean(runs, axis=0))
        shown = [text.get_text() for text in axes[row, 0].texts]
        assert shown == [f"{100 * value:.0f}" for value in np.mean(runs, axis=0)]


def test_the_finding_is_the_mean_change_of_each_step_over_tasks_and_bases(steps):
    text, alt = texts("what_each_step_adds", steps)
    attack = steps[(steps["measure"] == "attack_success_rate") & (steps["style"] == "chat") & ~steps["system_prompt"]]
    means = [
        attack.query(f"{task} and requests == '{requests}' and safety_data == '{safety}'")["value"].mean()
        for task, requests, safety in (
            ("finetune_task == 'none'", "none", "none"),
            ("finetune_task != 'none'", "none", "none"),
            ("finetune_task != 'none'", "own", "none"),
            ("finetune_task != 'none'", "own", "multitask"),
        )
    ]
    first = changes.points(means[1] - means[0])
    assert text.startswith(f"Attack success changes by {first} points (task rows alone), ")
    assert "Bases: 3, runs: 3." in text and f"untuned {100 * means[0]:.0f}" in alt and "; J by " in text


def test_a_negative_j_is_inside_the_axes(steps):
    below = steps.assign(value=steps["value"].mask(steps["measure"] == "j", -0.34))
    assert figure("what_each_step_adds", below).axes[0].get_ylim() == (-0.4, 1)


def planned(**columns):
    """The contrasts of two questions as `contrasts.marked` has them."""
    table = pd.DataFrame({"contrast": ["text_generation", "code", "translation", "classification"]})
    numbers = {"margin": 0.1, "n_bases": 6, "n_seeds": 2, "n_intents": 100, "detectable": 0.2, "difference": 0.3}
    table = table.assign(model="m", question="requests", metric="rules", measure="attack_success_rate", **numbers)
    table = table.assign(direction="up", low=0.1, high=0.5, verdict="yes", status="confirmatory", built_in="")
    other = {"question": "task_score", "metric": "score", "measure": "task_score", "direction": "down"}
    return pd.concat([table, table.assign(**other, verdict="no")], ignore_index=True).assign(**columns)


def marks_of(fig):
    """Position, shape and whether it is hollow, of the marks of the contrasts, by column of questions."""
    lines = [bar.lines[0] for ax in fig.axes for bar in ax.containers if np.isfinite(bar.lines[0].get_xdata()[0])]
    return [(line.get_xdata()[0], line.get_marker(), line.get_markerfacecolor() == "white") for line in lines]


def test_each_planned_contrast_has_its_interval_margin_and_verdict():
    table = planned()
    table.loc[1, ["difference", "low", "high", "verdict", "n_bases"]] = [np.nan, np.nan, np.nan, "not run", 0]
    fig = figure("planned_contrasts", table)
    assert [x for x, *_ in marks_of(fig)] == pytest.approx([0.3] * 7) and len(fig.axes) == 2
    asked = {"Do a few": ["yes", "not run", "yes", "yes"], "Do multi": ["no"] * 4}
    for ax, (asks, verdicts) in zip(fig.axes, asked.items(), strict=True):
        words = [text.get_text() for text in ax.texts]
        assert words[0].startswith(asks) and words[2::2] == verdicts and words[1] == "text generation"
    bands = [patch.get_x() + patch.get_width() for ax in fig.axes for patch in ax.patches]
    assert bands == pytest.approx([0.1, -0.1])  # on the side of yes
    ends = fig.axes[0].containers[0].lines[2][0].get_segments()[0][:, 0]
    assert list(ends) == pytest.approx([0.1, 0.5])


def test_the_caption_of_the_plan_counts_verdicts_and_names_their_questions():
    text, _ = texts("planned_contrasts", planned())
    assert text.startswith(
        "Of 8 contrasts that the plan decides 4 say yes, 4 no, and 0 are undecided. Yes: requests (4 of 4). No: "
    )
    assert "Each point: base models 6, training seeds of each 2, intents 100. Judge: rules." in text
    assert "Smallest detectable difference (80 % power): 20 points." in text and "exploratory" not in text


def test_exploratory_and_built_in_contrasts_have_marks_of_their_own_and_no_verdict():
    table = planned(verdict="exploratory")
    table.loc[:1, "verdict"] = "built in"
    table.loc[2, ["low", "high"]] = [-0.1, 0.7]
    fig = figure("planned_contrasts", table)
    assert [mark for _, *mark in marks_of(fig)] == [["s", False]] * 2 + [["o", True]] * 6
    text, _ = texts("planned_contrasts", table)
    # above 0 is the side of yes for requests, and the other one for a loss of score
    assert "as the run is exploratory: of 6 intervals 1 lie on the side of yes and 4 on the other." in text
    assert "(requests (2 of 4))" in text
    text, _ = texts("planned_contrasts", table.assign(verdict="built in"))
    assert text.startswith("Every planned contrast that was run is built in.")


def test_a_plan_of_which_nothing_was_run_and_two_models_are_refused():
    with pytest.raises(ValueError, match="planned_contrasts has nothing to draw"):
        figure("planned_contrasts", planned(verdict="not run"))
    with pytest.raises(ValueError, match="keep one model"):
        figure("planned_contrasts", pd.concat([planned(), planned(model="other")]))


def test_steps_that_were_not_run_leave_a_gap_and_one_run_is_said_to_hide_the_spread(steps):
    some = steps[(steps["requests"] != "own") | (steps["safety_data"] != "none")]
    some = some[some["base"] == 0]
    axes = np.reshape(figure("what_each_step_adds", some).axes, (3, 2))
    assert {tuple(line.get_xdata()) for line in lines_of(axes[0, 0], changes.RUN["color"])} == {(0, 1, 3)}
    assert "One run shows no spread." in texts("what_each_step_adds", some)[0]


def test_of_several_doses_the_most_frequent_is_a_step(steps):
    more = steps[(steps["safety_data"] == "multitask") & (steps["finetune_task"] == "code")]
    both = pd.concat([steps, more.assign(safety_fraction=0.2, value=0.0)], ignore_index=True)
    assert texts("what_each_step_adds", both) == texts("what_each_step_adds", steps)


def test_steps_without_a_tuned_model_say_so(steps):
    unjudged = steps.assign(value=np.nan)
    for empty in (steps.iloc[:0], steps[steps["finetune_task"] == "none"], steps[steps["system_prompt"]], unjudged):
        with pytest.raises(ValueError, match="what_each_step_adds has nothing to draw"):
            figure("what_each_step_adds", empty)


@pytest.fixture
def grid():
    """A calibration grid: every rate another, chat and Alpaca training of one task, and the untuned model."""
    rows = [("none", style, style, on) for style in STYLES for on in (False, True)]
    rows += [("code", trained, style, on) for trained in STYLES for style in STYLES for on in (False, True)]
    table = pd.DataFrame(rows, columns=["finetune_task", "trained_style", "style", "system_prompt"])
    rate = np.arange(len(table)) / 20
    return table.assign(
        model="m", form="all", n=50, n_bases=1, n_seeds=1, rate=rate, low=rate, high=rate + 0.1, judge="rules"
    )


def test_the_calibration_grid_has_a_row_per_trained_style_and_frames_the_same_style(grid):
    fig = figure("calibration_grid", grid)
    ax = fig.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["not tuned", "chat template", "Alpaca style"]
    texts = [text.get_text() for text in ax.texts]
    assert texts[:12] == [f"{5 * i} ({5 * i}-{5 * i + 10})" for i in range(12)]
    assert texts[12:] == ["aligned model", "tuned on\ncode, in"]
    frames = [(round(p.get_x()), round(p.get_y())) for p in ax.patches]
    assert sorted(frames) == [(0, 1), (1, 1), (2, 2), (3, 2)]


def test_the_grid_caption_tells_the_same_style_from_another(grid):
    text, alt = texts("calibration_grid", grid)
    assert "n = 50" in text and "95 %" in text and "Judge: rules." in text
    assert "Tested in the style of their tuning: 20-55 %. Tested in another style: 30-45 %." in alt
    one = grid[grid["trained_style"] == "chat"]
    assert "Not run: tuning in another style than the chat template." in texts("calibration_grid", one)[0]


def test_the_grid_leaves_unjudged_cells_empty_and_refuses_none(grid):
    some = grid.copy()
    some.loc[5, ["rate", "low", "high"]] = np.nan
    assert len(figure("calibration_grid", some).axes[0].texts) == 11 + 2
    assert "Nothing judged: 1 cell," in texts("calibration_grid", some)[0]
    for empty in (grid.iloc[:0], grid.assign(rate=np.nan), grid[grid["form"] != "all"]):
        with pytest.raises(ValueError, match="calibration_grid has nothing to draw"):
            figure("calibration_grid", empty)


def test_every_figure_of_change_fits_the_page_and_keeps_its_words_inside(results, grid):
    drawn = [
        figure("erosion_heatmap", changed([0.1], [0.4])),  # one row is lower than its scale
        figure("calibration_grid", grid[:1]),
        figure("erosion_heatmap", results["comparisons"]),
        figure("what_each_step_adds", results["by_run"]),
        figure("safety_vs_helpfulness", results["attack"], results["helpfulness"]),
        figure("calibration_grid", grid),
        figure("planned_contrasts", planned()),
    ]
    for fig in drawn:
        fig.draw_without_rendering()
        ticks = [tick for ax in fig.axes for tick in ax.get_yticklabels()]
        labels = [ax.yaxis.label for ax in fig.axes]
        boxes = [thing.get_window_extent() for thing in [*fig.legends, *ticks, *labels]]
        assert fig.get_figwidth() == style.WIDTH
        assert all(box.x0 >= 0 and box.x1 <= fig.bbox.x1 and box.y0 >= 0 and box.y1 <= fig.bbox.y1 for box in boxes)
