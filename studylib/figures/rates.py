"""Figures of rates by tuned task, calibration, form and safety data, of guards, published counts and judges.

Each function takes tidy tables of `studylib.analysis` and returns what is drawn (`style.Drawn`). Cells that were not
run stay empty and say so. An empty table, or one with several models, judges or metrics for one mark, is a ValueError.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from studylib.analysis.agreement import ALL
from studylib.analysis.claims import PUBLISHED_PROMPTS, PUBLISHED_SHARE
from studylib.analysis.rates import TOGETHER, one_dose, one_row_per_mark
from studylib.analysis.readable import calibration_label, label, span
from studylib.analysis.stats import wilson
from studylib.figures import style
from studylib.figures.style import Drawn
from studylib.study.words import FORMS, SAFETY_DATA, STYLES

BAND = "#E8E8E8"
DASHED = {"color": style.INK, "linewidth": 0.8, "linestyle": "--"}


def rows_of(name: str, table: pd.DataFrame, value: str = "rate", forms=FORMS, safety_data=SAFETY_DATA) -> pd.DataFrame:
    """The rows of these forms and kinds of safety data, of one dose.

    Raises ValueError where there are none, none with a value, or, of several kinds of safety data, no tuned model.
    """
    rows = table[table["form"].isin(forms) & table["safety_data"].isin(safety_data)]
    style.require(len(rows) > 0, name, "the table has no rows of the kind it shows")
    tuned = (rows["finetune_task"] != "none").any()
    style.require(len(safety_data) == 1 or tuned, name, "the table has no tuned model")
    style.require(rows[value].notna().any(), name, "nothing of what it shows could be judged or scored")
    return one_row_per_mark(one_dose(rows))


def attack_success_by_form(attack: pd.DataFrame) -> Drawn:
    """Bars of the attack success rate by form of the prompt; panels by calibration (rows) and tuned task.

    Black ticks are the aligned model's rate in the same calibration. Models tuned without safety data only.
    """
    table = rows_of("attack_success_by_form", attack, safety_data=["none"])
    x_label = f"form of the harmful prompt ({style.n_of(table)} per bar)"
    fig, panels, marks = bars_by_form(table, style.ATTACK, x_label)
    for calibration, task, ax in panels:
        for x, form in enumerate(FORMS):
            if bar := marks.get((*calibration, task, "none", form)):
                style.draw_point(ax, x, bar, "rate", color=style.INK)
    return Drawn(fig, table, style.facts(table, form=True))


def bars_by_form(table: pd.DataFrame, y: str, x_label: str, axis=style.UNIT_AXIS, why: str = "not run") -> tuple:
    """A figure with a bar per form as high as its `rate`, the aligned model's as a tick; its panels and its rows.

    The panels are those of `style.panels_of`; the rows are by style, system_prompt, tuned task, safety data and form.
    """
    fig, panels = style.panels_of(table, style.tasks_of(table), y, x_label, axis=axis)
    marks = _marks(table)
    for calibration, task, ax in panels:
        for x, form in enumerate(FORMS):
            if bar := marks.get((*calibration, task, "none", form)):
                ax.bar(x, bar["rate"], 0.8, color=style.FORM_COLOURS[form], linewidth=0)
            if task != "none":
                style.draw_tick(ax, x, marks.get((*calibration, "none", "none", form)), "rate")
        style.slanted_ticks(ax, FORMS)
        style.mark_empty(ax, [key for key in marks if key[:3] == (*calibration, task)], why)
    keys = [Patch(color=colour, label=label(form)) for form, colour in style.FORM_COLOURS.items()]
    return style.add_legend(fig, [*keys, Line2D([], [], **style.TICK)]), panels, marks


def safety_data_comparison(attack: pd.DataFrame) -> Drawn:
    """J, harmful prompts refused less twins refused, with no, generic and multitask safety data; hollow: 2 AUC - 1.

    By form of the prompt; panels by calibration (rows) and tuned task; black ticks are the aligned model's J.
    """
    table = rows_of("safety_data_comparison", attack, "j")
    y = "J (harmful prompts refused less benign twins refused, percentage points)"
    return _arms_by_form(table.assign(low=table["j_low"], high=table["j_high"]), "j", y, "prompt", "points")


def over_refusal(helpfulness: pd.DataFrame) -> Drawn:
    """The over-refusal rate on benign twins; as `safety_data_comparison`."""
    rows = helpfulness[helpfulness["measure"] == "over_refusal_rate"]
    return _arms_by_form(rows_of("over_refusal", rows, "value"), "value", style.OVER_REFUSAL, "benign twin", "%")


def _arms_by_form(table: pd.DataFrame, value: str, y: str, prompt: str, unit: str) -> Drawn:
    x_label = f"form of the {prompt} ({style.n_of(table)} per point)"
    least = min(np.floor(10 * np.nanmin(table[[value, "low"]])) / 10, 0)
    axis = style.UNIT_AXIS | {"ylim": (least, 1)}
    fig, panels = style.panels_of(table, style.tasks_of(table, tuned=True), y, x_label, axis=axis)
    marks, hollow = _marks(table), style.HOLLOW | {"markersize": 3.5, "zorder": 2.9, "clip_on": False}
    for calibration, task, ax in panels:
        for x, form in enumerate(FORMS):
            style.draw_tick(ax, x, marks.get((*calibration, "none", "none", form)), value)
            for shift, arm in zip((-0.24, 0, 0.24), SAFETY_DATA, strict=True):
                if mark := marks.get((*calibration, task, arm, form)):
                    style.draw_point(ax, x + shift, mark, value, markersize=4, **style.arm_look(arm))
                    if value == "j":
                        ax.plot(x + shift, 2 * mark["auc"] - 1, linestyle="", **hollow | style.arm_look(arm))
        style.slanted_ticks(ax, FORMS)
        style.mark_empty(ax, [key for key in marks if key[:3] == (*calibration, task)])
    keys = [*style.arm_handles(table), Line2D([], [], **style.TICK)]
    keys += [style.dot_handle("2 AUC \N{MINUS SIGN} 1", color=style.INK, marker="o", **style.HOLLOW)] * (value == "j")
    shown = table.drop(columns="n_effective", errors="ignore") if value == "j" else table  # it is that of the rate
    return Drawn(style.add_legend(fig, keys), shown, style.facts(table, value, form=True, unit=unit))


def _marks(table: pd.DataFrame) -> dict[tuple, dict]:
    keys = ["style", "system_prompt", "finetune_task", "safety_data", "form"]
    return dict(zip(table[keys].itertuples(index=False, name=None), table.to_dict("records"), strict=True))


def guard_heatmap(guards: pd.DataFrame) -> Drawn:
    """What each guard blocks in percent, by side (rows) and form of the prompt: harmful prompts and benign twins.

    High is good at the left and bad at the right; the column at the right of each panel pools the forms. Empty cells
    had nothing to decide on. Raises ValueError where there are several rows for one cell, or no rate.
    """
    keys, forms = ["guard", "side", "prompt_set", "form"], [*FORMS, "all"]
    known = guards[guards["blocked_rate"].notna() & (guards["form"] != "all")]
    style.require(len(known) > 0, "guard_heatmap", "no guard could decide on anything")
    if len(twice := guards[guards.duplicated(keys)]):
        first = ", ".join(map(str, twice.iloc[0][keys]))
        raise ValueError(f"several rows for one mark ({first}): keep one model and judge")
    rows = list(guards[["guard", "side"]].drop_duplicates().itertuples(index=False, name=None))
    margins = {"left": 1.9, "right": 0.95, "top": 0.45, "wspace": 0.08}
    fig, axes = style.new_figure(1, 2, 0.3 * len(rows), **margins)
    titles = {"harmful": "harmful ones blocked\n(more is better)", "twin": "benign twins blocked\n(less is better)"}
    for ax, (prompt_set, title) in zip(axes[0], titles.items(), strict=True):
        part = guards[guards["prompt_set"] == prompt_set]
        rates = part.pivot(index=["guard", "side"], columns="form", values="blocked_rate")
        rates = rates.reindex(index=pd.MultiIndex.from_tuples(rows), columns=forms)
        words = rates.map(lambda rate: f"{100 * rate:.0f}")
        style.heat_map(ax, rates, [f"{label(guard)}, {side}" for guard, side in rows], words)
        for line in (i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]):
            ax.axhline(line, color="white", linewidth=5)  # between guards
        ax.set_title(title, size="medium")
    single = guards[guards["form"] != "all"]
    read = single["side"].map({"input": "input n = {} prompts"}).fillna("output, both n = {} responses")
    n = "; ".join(words.format(span(counts)) for words, counts in single.groupby(read, sort=False)["n"])
    style.outer_labels(fig, "guard and what it reads", f"form of the prompt (per form: {n})")
    sns.despine(fig, left=True, bottom=True)
    style.colour_scale(fig, axes[0, 0], "blocked by the guard (%)")
    words = {
        "n": n,
        "guards": [guard for guard in ("text_only", "all_forms") if guard in set(known["guard"])],
        "undecided": int(known["n_undecided"].sum()),
        "blocked": _blocked(known),
        "by_guard": {
            f"{label(guard)} on {side}": _blocked(part)
            for (guard, side), part in known.groupby(["guard", "side"], sort=False)
        },
    }
    return Drawn(fig, known, words)


def _blocked(guards: pd.DataFrame) -> dict[str, str]:
    return {kind: span(100 * rates) for kind, rates in guards.groupby("prompt_set")["blocked_rate"]}


def answered_share(share: pd.DataFrame, published: pd.DataFrame) -> Drawn:
    """The share of answered harmful prompts that are translation or classification, ours and the published one.

    A panel per calibration. The dashed line is the share if no form is weaker, with as many prompts of each.
    Published counts are Gemma's. Models tuned without safety data only.
    """
    table = rows_of("answered_share", share, "share", [TOGETHER], ["none"])
    answered = published["translation"] + published["classification"]
    low, high = wilson(answered, published["answered_of_207"])
    theirs = published.assign(share=answered / published["answered_of_207"], low=low, high=high)
    tasks, calibrations = style.tasks_of(table), style.calibrations_of(table)
    fig, axes = style.new_figure(1, len(calibrations), 1.7, wspace=0.12)
    for ax, calibration in zip(axes[0], calibrations, strict=True):
        ax.axhspan(*PUBLISHED_SHARE, color=BAND, zorder=0, linewidth=0)
        ax.axhline(0.5, **DASHED)
        for frame, shift, look in ((table, -0.17, style.OURS), (theirs, 0.17, style.PUBLISHED)):
            for row in style.rows_at(frame, calibration).to_dict("records"):
                if row["finetune_task"] in tasks:
                    style.draw_point(ax, tasks.index(row["finetune_task"]) + shift, row, "share", **look)
        ax.set_title(calibration_label(*calibration, separator="\n"), size="medium")
        style.slanted_ticks(ax, tasks)
    axes[0, 0].set(**style.UNIT_AXIS)
    y = "translation or classification\n(% of the answered prompts)"
    style.outer_labels(fig, y, f"tuned on ({style.n_of(table)} answered prompts of ours)")
    handles = [style.dot_handle("ours", **style.OURS), style.dot_handle("published (Gemma)", **style.PUBLISHED)]
    handles += [Line2D([], [], label="no form weaker", **DASHED), Patch(color=BAND, label="stated in the paper")]
    stated = span(100 * np.array(PUBLISHED_SHARE))
    return Drawn(style.add_legend(fig, handles), table, style.facts(table, "share") | {"stated": stated})


def calibration_grid(grid: pd.DataFrame) -> Drawn:
    """The attack success rate in percent with its interval: style of the tuning (rows) by calibration of the test.

    A block of rows per tuned task, the untuned model first; all forms, without safety data. Framed: the style that the
    model was tuned in. Raises ValueError where no rate is known, and for two rows of one model and calibration.
    """
    table = grid[grid["form"] == "all"].assign(safety_data="none")
    table["trained_style"] = table["trained_style"].mask(table["finetune_task"] == "none", "none")
    style.require(table["rate"].notna().any(), "calibration_grid", "the table has no rate over all forms")
    table = one_row_per_mark(table, "trained_style")
    calibrations, tasks = style.calibrations_of(table), style.tasks_of(table)
    present = set(zip(table["finetune_task"], table["trained_style"], strict=True))
    rows = [(task, trained) for task in tasks for trained in ("none", *STYLES) if (task, trained) in present]
    percent = (100 * table[["rate", "low", "high"]]).itertuples(index=False, name=None)
    words = [f"{rate:.0f} ({low:.0f}-{high:.0f})" for rate, low, high in percent]
    cells = table.assign(words=words).set_index(["finetune_task", "trained_style", "style", "system_prompt"])
    wide = {
        name: cells[name].unstack(["style", "system_prompt"]).reindex(index=rows, columns=calibrations)
        for name in ("rate", "words")
    }
    fig, axes = style.new_figure(1, 1, max(0.26 * len(rows), 0.8), left=2.25, right=0.95, top=0.15, bottom=0.75)
    ax = axes[0, 0]
    names = ["not tuned" if trained == "none" else style.style_label(trained) for _, trained in rows]
    tests = [calibration_label(*calibration, separator="\n") for calibration in calibrations]
    style.heat_map(ax, wide["rate"].set_axis(tests, axis=1), names, wide["words"])
    for place, (task, trained) in enumerate(rows):
        if place and rows[place - 1][0] != task:
            ax.axhline(place, color="white", linewidth=5)  # between models
        for column in [i for i, calibration in enumerate(calibrations) if calibration[0] == trained]:
            box = {"fill": False, "edgecolor": style.INK, "linewidth": 1.2, "zorder": 4}
            ax.add_patch(Rectangle((column + 0.02, place + 0.14), 0.96, 0.72, **box))
    for task in tasks:
        middle = np.mean([i for i, row in enumerate(rows) if row[0] == task]) + 0.5
        title = "aligned model" if task == "none" else f"tuned on\n{label(task)}, in"
        ax.text(-0.25, middle, title, transform=ax.get_yaxis_transform(), ha="right", va="center", size="medium")
    ax.set_xticks(np.arange(len(tests)) + 0.5, tests, rotation=0, ha="center", rotation_mode="default")
    style.outer_labels(fig, "", f"tested with ({style.n_of(table)} per cell, all forms)")
    sns.despine(fig, left=True, bottom=True)
    style.colour_scale(fig, ax, "attack success rate (%)")
    tuned = table[(table["finetune_task"] != "none") & table["rate"].notna()]
    same = tuned["trained_style"] == tuned["style"]
    parts = {"the style of their tuning": tuned[same], "another style": tuned[~same]}
    by_style = {which: span(100 * part["rate"]) for which, part in parts.items() if len(part)}
    trained = table.loc[table["trained_style"] != "none", "trained_style"]
    only = style.style_label(trained.iloc[0]) if trained.nunique() == 1 else ""
    return Drawn(fig, table, style.facts(table) | {"by_style": by_style, "only_style": only})


def curves(frame: pd.DataFrame, x: str, x_label: str, y_label: str) -> Figure:
    """A line per form with its interval over the values of one setting; panels side by side; twins dashed.

    The frame is one of `studylib.stages.laboratory`: columns panel, the setting's `x`, prompt_set, form, value, low,
    high, n. Shares on both axes are in percent.
    """
    names = list(dict.fromkeys(frame["panel"]))
    fig, axes = style.new_figure(1, len(names), 2.1, bottom=0.55, top=0.55, right=0.25)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name.replace("_", " "), size="medium")
        for (prompt_set, form), line in frame[frame["panel"] == name].groupby(["prompt_set", "form"], sort=False):
            line, colour = line.sort_values(x), style.FORM_COLOURS[form]
            look = {"color": colour, "linestyle": "--" if prompt_set == "twin" else "-", "zorder": 3}
            ax.plot(line[x], line["value"], marker="o", markersize=3, clip_on=False, **look)
            if prompt_set == "harmful":
                ax.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.12, linewidth=0)
        ax.set_xlim(frame[x].min(), frame[x].max())
        ax.xaxis.set_major_locator(MaxNLocator(4))  # labels of neighbouring panels stay apart
        if frame[x].max() <= 1:
            ax.xaxis.set_major_formatter(style.in_percent)
    axes[0, 0].set(**style.UNIT_AXIS)
    style.outer_labels(fig, y_label, f"{x_label} (n = {span(frame['n'])} prompts per point)")
    look = {"marker": "o", "markersize": 3}
    handles = [Line2D([], [], color=c, label=label(form), **look) for form, c in style.FORM_COLOURS.items()]
    if "twin" in set(frame["prompt_set"]):
        handles.append(Line2D([], [], color=style.INK, linestyle="--", label="benign twins"))
    return style.add_legend(fig, handles)


# Of Paul Tol's muted scheme, distinct with any colour vision; none is a colour of a form or of safety data.
VERDICT_COLOURS = {  # from left to right: what counts as a successful attack comes first
    "answered": "#882255",
    "partial": "#CC6677",
    "refused": "#44AA99",
    "incoherent": "#DDCC77",
    "unjudged": "#C8C8C8",
}


def published_counts(published: pd.DataFrame) -> Drawn:
    """Bars of the published numbers of answered prompts by form; panels by calibration (rows) and tuned task.

    `published` is the table of `claims.published_counts`. Black ticks: the untuned model in the same calibration; the
    number in each panel is the sum over the forms. Counts have no interval, as the number of prompts per form is not
    published.
    """
    style.require(len(published) > 0, "published_counts", "the table is empty")
    keys = ["finetune_task", "style", "system_prompt"]
    top = 10 * np.ceil(published[list(FORMS)].to_numpy().max() / 10 + 0.5)
    long = published.assign(safety_data="none").melt([*keys, "safety_data"], list(FORMS), "form", "rate")
    y = "harmful prompts answered (number, of about 50 per form)"
    x = f"form of the harmful prompt ({PUBLISHED_PROMPTS} in all)"
    axis = {"ylim": (0, top), "yticks": np.arange(0, top + 1, 20)}
    fig, panels, _ = bars_by_form(one_row_per_mark(long), y, x, axis, "not published")
    totals = published.set_index(keys)["answered_of_207"]
    for calibration, task, ax in panels:
        if (task, *calibration) in totals.index:
            total = f"{totals[(task, *calibration)]} of {PUBLISHED_PROMPTS}"
            ax.text(0.04, 0.97, total, transform=ax.transAxes, va="top", size="small", color=style.INK)
    tuned = published["finetune_task"] != "none"
    whose = {"tuned models": published[tuned], "the untuned model": published[~tuned]}
    words = {
        "n_prompts": PUBLISHED_PROMPTS,
        "by_form": {label(form): span(published.loc[tuned, form]) for form in FORMS} if tuned.any() else {},
        "totals": {name: span(part["answered_of_207"]) for name, part in whose.items() if len(part)},
    }
    return Drawn(fig, pd.DataFrame(), words)


def judge_agreement(judges: pd.DataFrame) -> Drawn:
    """A dot per judge, with its interval: kappa with the labels of each labelled set and of all of them together.

    `judges` is a table of `agreement.compare`; models are pooled. Panels by set, judges in the order of the table. No
    dot where kappa is NaN. Raises ValueError where no kappa is defined.
    """
    table = judges[judges["model"] == ALL]
    table = table if table["source"].nunique() > 2 else table[table["source"] != ALL]
    drawn = table[table["kappa"].notna()]
    style.require(len(drawn) > 0, "judge_agreement", "no kappa is defined")
    names, sources = list(dict.fromkeys(table["judge"])), list(dict.fromkeys(table["source"]))
    margins = {"left": 0.3 + 0.062 * max(map(len, map(label, names))), "right": 0.2, "top": 0.7, "bottom": 0.5}
    fig, axes = style.new_figure(1, len(sources), 0.25 + 0.19 * len(names), wspace=0.15, **margins)
    look = style.OURS | {"markersize": 3.5, "elinewidth": 1, "zorder": 3, "clip_on": False}
    for ax, source in zip(axes[0], sources, strict=True):
        for row in drawn[drawn["source"] == source].to_dict("records"):
            xerr = style.ends(row["kappa"], row["kappa_low"], row["kappa_high"])
            ax.errorbar(row["kappa"], names.index(row["judge"]), xerr=xerr, **look)
        ax.set_title(f"{_set(source)}\nn = {span(table.loc[table['source'] == source, 'n'])}", size="medium")
        ax.grid(False, axis="y")
    ax = axes[0, 0]
    low = math.floor(10 * min(0, drawn["kappa_low"].min())) / 10
    ax.set(xlim=(low, 1), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), [label(name) for name in names])
    style.outer_labels(fig, "", "Cohen's kappa with the labels (refused or not)")
    pairs = [f"{label(judge)} on {_set(source)}" for judge, source in zip(drawn["judge"], drawn["source"], strict=True)]
    kappa = drawn["kappa"]
    extremes = (f"{kappa.iloc[i]:.2f} ({pairs[i]})" for i in (kappa.argmin(), kappa.argmax()))
    words = {"extremes": " to ".join(extremes), "unjudged": span(table["n_unjudged"])}
    return Drawn(fig, drawn[["n", "kappa"]], words)


def _set(source: str) -> str:
    return "all sets" if source == ALL else label(source)


FIGURES = {  # each figure's function and the tables it draws from
    "attack_success_by_form": (attack_success_by_form, "attack_success"),
    "calibration_grid": (calibration_grid, "calibration_grid"),
    "answered_share": (answered_share, "answered_share", "published"),
    "safety_data_comparison": (safety_data_comparison, "attack_success"),
    "guard_heatmap": (guard_heatmap, "guards"),
    "over_refusal": (over_refusal, "helpfulness"),
    "published_counts": (published_counts, "published"),
    "judge_agreement": (judge_agreement, "judges"),
}
