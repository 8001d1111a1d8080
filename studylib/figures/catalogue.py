"""Which figures there are, and their captions and alternative texts: data/captions.yaml, filled from what is drawn.

To add a figure: its function and its line in FIGURES in one module of this folder, its texts in data/captions.yaml, and
a cell in 06_findings that shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from studylib.analysis.readable import calibration_label, span
from studylib.analysis.stats import CONFIDENCE, POWER
from studylib.figures import changes, planes, rates, style
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import STYLES, counted

FIGURES = rates.FIGURES | changes.FIGURES | planes.FIGURES  # name: (function, *tables it draws from)
LEVEL = f"{100 * CONFIDENCE:.0f} %"


def draw(name: str, *frames: pd.DataFrame, safety_styles: Sequence[str] = ()) -> tuple[Figure, str, str]:
    """The figure of that name from its tables, its caption and its alternative text.

    `safety_styles` are the only styles in which safety data are tried; none: they are tried in all.
    Raises ValueError, a sentence that says what is missing, where there is nothing to draw, and KeyError for no figure.
    """
    function, *tables = FIGURES[name]
    style.require(not all(frame.empty for frame in frames), name, f"no row in {' or '.join(tables)}")
    drawn = function(*frames)
    return drawn.figure, *texts(name, drawn, safety_styles)


def draw_runs(rows: pd.DataFrame, names: Sequence[str], folder: Path) -> Figure:
    """`planes.runs_side_by_side`, also written to the folder as `<measure>.png`, `.svg` and `.pdf` with its caption."""
    drawn = planes.runs_side_by_side(rows, names)
    style.save(drawn.figure, folder, rows["measure"].iloc[0], *texts("runs_side_by_side", drawn))
    return drawn.figure


def texts(name: str, drawn: style.Drawn, safety_styles: Sequence[str] = ()) -> tuple[str, str]:
    """Caption (the finding, what is shown, the footer) and alternative text of a figure that was drawn."""
    templates = captions()[name]
    footer = footer_of(drawn, safety_styles=safety_styles, **templates.get("footer", {}))
    finding, shows, footer, alt = (
        " ".join(_ENVIRONMENT.from_string(text).render(drawn.words, level=LEVEL).split())
        for text in (templates["title"], templates["shows"], footer, templates["alternative"])
    )
    return " ".join(part for part in (finding, shows, footer) if part), alt


@cache
def captions() -> dict[str, dict]:
    """The templates of data/captions.yaml by figure: `title`, `shows`, `alternative`, and what `footer_of` is given."""
    return read_yaml(DATA / "captions.yaml")


def footer_of(
    drawn: style.Drawn,
    mark: str = "mark",
    unit: str = "responses",
    value: str = "rate",
    expected: Sequence[str] = (),
    intervals: str = "drawn",
    safety_styles: Sequence[str] = (),
) -> str:
    """Sample sizes, requests, doses, seeds, judge, omissions, intervals, and what the plan detects.

    `unit` is what n counts and `value` the column that is drawn; a row without it is left out. `expected` are the kinds
    of safety data that the figure compares, of which what was not run is named. `intervals` is "drawn", or a sentence
    on where they are. `safety_styles` as of `draw`. What the rows have no column for is not mentioned.
    """
    rows, words = drawn.rows, drawn.words
    if rows.empty:
        return ""
    known = rows[rows[value].notna()]
    text = [f"Each {mark}: {words.get('n') or f'{style.n_of(known)} {unit}'}."]
    if "requests" in rows and set(rows.loc[rows["finetune_task"] != "none", "requests"]) == {"own"}:
        text.append("Tuned on the task's rows with a few benign requests in its form among them.")
    if "safety_fraction" in rows:
        doses = sorted(set(rows.loc[rows["safety_data"] != "none", "safety_fraction"]))
        alone = listed(map(style.style_label, safety_styles))
        alone = f", tried in the {alone} alone (`grid.safety_styles`)" if safety_styles else ""
        shares = listed(f"{100 * dose:g}" for dose in doses)
        text += [f"Safety data: {shares} % of the tuning rows{alone}."] if doses else []
    if "n_seeds" in rows and len(runs := known.query("finetune_task != 'none' and n_seeds > 0")):
        text.append(f"Training seeds pooled: {span(runs['n_seeds'])}{_of_bases(runs)}.")
        alone = (runs["n_bases"] * runs["n_seeds"]).max() < 3
        text += ["Of fewer than three training runs, intervals are about these models alone."] if alone else []
    if judge := next((column for column in ("judge", "metric") if column in rows), None):
        text.append(f"Judge: {words.get('judge') or listed(sorted(set(known[judge])))}.")
    if n := int(known["n_unjudged"].sum()) if "n_unjudged" in rows else 0:
        text.append(f"Left out: {counted(n, 'response')} that could not be judged.")
    text += _missing(rows, value, expected, mark, safety_styles) if expected else []
    wilson = f"Intervals: {LEVEL} Wilson, clustered by prompt and base or training run."
    text.append(wilson if intervals == "drawn" else intervals)
    if intervals == "drawn" and "n_effective" in rows and known["n_effective"].notna().any():
        text.append(f"A {mark} is worth {span(known['n_effective'])} independent {unit}.")
    if "detectable" in rows:
        smallest = span(100 * known["detectable"])
        text.append(f"Smallest detectable difference ({100 * POWER:.0f} % power): {smallest} points.")
    text += [f"{mark.capitalize()}s whose intervals overlap are not ranked."] if intervals == "drawn" else []
    return " ".join(text)


def _of_bases(runs: pd.DataFrame) -> str:
    """Of how many base models, and which cells have more of them than the others."""
    least, most = runs["n_bases"].min(), runs["n_bases"].max()
    if least == most or not {"style", "system_prompt", "safety_data"} <= {*runs}:
        return f" of each of {span(runs['n_bases'])} base models" if most > 1 else ""
    text = " of each base model. There are "
    for at, more in runs[runs["n_bases"] > least].groupby(["style", "system_prompt"], sort=False):
        arms = listed(map(style.safety_label, more["safety_data"].unique()))
        text += f"{span(more['n_bases'])} base models of {calibration_label(*at)} ({arms}), "
    return f"{text}{least} of the rest"


def _missing(rows: pd.DataFrame, value: str, expected: Sequence[str], mark: str, safety_styles) -> list[str]:
    """Sentences on what is not drawn: kinds of safety data and cells not in the table, marks without a value."""
    tuned = rows[rows["finetune_task"] != "none"]
    arms = [arm for arm in expected if arm in set(tuned["safety_data"])]
    names = ["finetune_task", "style", "system_prompt", "safety_data"]
    calibrations = rows[names[1:3]].drop_duplicates()
    safe = calibrations["style"].isin(safety_styles or STYLES).sum()  # where safety data are tried
    n_cells = tuned["finetune_task"].nunique() * sum(len(calibrations) if arm == "none" else safe for arm in arms)
    absent, unknown = n_cells - len(tuned[names].drop_duplicates()), int(rows[value].isna().sum())
    not_run = [f"{arm} safety data" for arm in expected if arm not in arms and arm != "none"]
    not_run += ["tuning without safety data"] if len(tuned) and "none" not in arms else []
    not_run += ["the aligned model"] if len(tuned) == len(rows) else []
    not_run += [f"{counted(absent, 'cell')}, left empty"] if absent else []
    text = [f"Not of the grid, or not run: {listed(not_run)}."] if not_run else []
    return text + ([f"Nothing judged: {counted(unknown, mark)}, left empty."] if unknown else [])


def listed(words) -> str:
    """The words as in "a, b and c"."""
    *first, last = [*map(str, words)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _by_arm(shares: dict, unit: str = "%") -> str:
    """Values with their unit by safety data, as in "3-80 % without safety data and 0-5 % with generic safety data"."""
    arms = {arm: "without safety data" if arm == "none" else f"with {arm} safety data" for arm in shares}
    return listed(f"{share} {unit} {arms[arm]}" for arm, share in shares.items())


_ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # plain text, no page
_ENVIRONMENT.filters |= {"listed": listed, "by_arm": _by_arm, "counted": counted}
