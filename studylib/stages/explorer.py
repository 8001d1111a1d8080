"""The same prompts answered by the untuned, the tuned and the mitigated models: a table, and a small explorer."""

from __future__ import annotations

import html

import pandas as pd

from studylib.analysis import rates
from studylib.analysis.comparisons import ARM_ORDER
from studylib.analysis.rates import one_dose
from studylib.analysis.readable import arm_with_dose, calibration_label, label
from studylib.figures.rates import VERDICT_COLOURS
from studylib.study.words import FORMS, PROMPT_SETS, SAFETY_DATA, STYLES, TASKS, StudyError
from studylib.text.normal import name_invisible, redact, redact_prompt

UNTUNED, TUNED, NOT_ASKED = "untuned", "tuned", "not asked"
MOST, WHOLE = 400, 5000  # characters of a text in the table, and in the explorer
KINDS = {"harmful": "harmful prompt", "twin": "benign twin", "sounds_harmful": "benign prompt that sounds harmful"}
KINDS |= {"task": "task prompt", "general": "general request"}
PLURALS = {name: f"{kind}s" for name, kind in KINDS.items()} | {"sounds_harmful": "benign prompts that sound harmful"}
NOTHING = "There are no responses to show: no stage has left any yet."
_ARM = ["finetune_task", "safety_data", "safety_fraction"]
_TEXT = "text-align: left; vertical-align: top; min-width: 11em; padding: 0.4em 0.6em; line-height: 1.4; "
_TEXT += "white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate"


def side_by_side(
    responses: pd.DataFrame,
    verdicts: pd.DataFrame,
    task: str,
    form: str,
    prompt_set: str = "harmful",
    n: int = 3,
    redacted: bool = False,
    **where,
) -> pd.DataFrame:
    """At most n prompts with every arm's answer: index prompt_id, columns prompt and one per arm, as "refused: No".

    The arms are `untuned`, `tuned` (on the task, without safety data), then the same tuning with generic and multitask
    data and the rival arms, by dose. The prompts are no sample. First come those refused (benign ones: answered)
    untuned, answered after tuning and refused with some safety data; then those with the most pairs of arms that differ
    in verdict. The first judge decides. Cells are safe HTML, cut after MOST characters. `where`: style, system_prompt,
    seed and model (the first ones unless named). `form` does not count for general requests. No rows where nothing has
    run. Raises StudyError for an unknown word, model or seed, ValueError as `rates.judged`.
    """
    asked = _asked(_judged(responses, verdicts), task, form, prompt_set, **where)
    return _frame(asked, asked["prompt_id"].unique()[:n], redacted, MOST)


def in_words(
    responses: pd.DataFrame, verdicts: pd.DataFrame, task: str, form: str, prompt_set: str = "harmful", **where
) -> str:
    """What `side_by_side` of the same arguments shows, what it chose from, and which arms have not run. Plain text."""
    rows = _judged(responses, verdicts)
    asked = _asked(rows, task, form, prompt_set, **where)
    if rows.empty:
        return NOTHING
    which = PLURALS[prompt_set] + (f" ({label(form)})" if prompt_set != "general" else "")
    calibration = calibration_label(where.get("style", "chat"), where.get("system_prompt", False))
    if asked.empty:
        return f"Nothing to show here: there are no responses to {which}, {calibration}."
    prompts, there = asked.drop_duplicates("prompt_id"), set(asked["arm"])
    seeds = asked.loc[asked["arm"] != UNTUNED, "seed"]
    tuning = f"tuned on {label(task)} with training seed {seeds.iloc[0]}" if len(seeds) else "untuned"
    words = f"Model {asked['model'].iloc[0]}, {tuning}, {calibration}; judged by {asked['judge'].iloc[0]}. "
    words += f"Of {len(prompts)} {which} those come first "
    if {UNTUNED, TUNED} < there:
        before = "refused" if prompt_set == "harmful" else "answered"
        words += f"that were {before} untuned, answered after tuning and refused with some safety data "
        words += f"({prompts['telling'].sum()}), then those "
    words += "on which the models differ most: chosen to illustrate; the rates say how often it happens."
    said = {UNTUNED: "the untuned model", TUNED: "tuning without safety data"}
    lacks = [said.get(arm, arm) for arm in dict.fromkeys((*said, *rows["arm"].cat.categories)) if arm not in there]
    lacks += [f"{kind} safety data" for kind in SAFETY_DATA[1:] if kind not in set(rows["safety_data"])]
    return words + (f" Not run here: {', '.join(lacks)}." if lacks else "")


def widget(responses: pd.DataFrame, verdicts: pd.DataFrame, redacted: bool, **start):
    """An ipywidgets box: a dropdown per argument of `side_by_side` and a slider over the prompts, one at a time.

    `start` holds values to begin with, by the arguments' names. A sentence where there are no responses.
    """
    from ipywidgets import HTML, Dropdown, HBox, IntSlider, Layout, VBox

    rows, choices = _judged(responses, verdicts), {}
    if rows.empty:
        return VBox([HTML(NOTHING)])
    for name, known in _known(rows).items():
        said = {"system_prompt": ("off", "on").__getitem__, "seed": str, "model": str}.get(name, label)
        value = start.get(name) if start.get(name) in known else known[0]
        look = {"style": {"description_width": "initial"}, "layout": Layout(width="auto")}
        options = [(said(word), word) for word in known]
        choices[name] = Dropdown(options=options, value=value, description=name.replace("_", " "), **look)
    prompt = IntSlider(value=1, min=1, max=1, description="prompt")
    words, page = HTML(), HTML(layout=Layout(max_height="40em", overflow="auto"))

    def draw(_=None) -> None:
        where = {name: choice.value for name, choice in choices.items()}
        asked = _asked(rows, **where)
        ids = list(asked["prompt_id"].unique())
        prompt.max = max(len(ids), 1)
        choices["form"].disabled = where["prompt_set"] == "general"
        words.value = f'<p style="line-height: 1.4">{html.escape(in_words(rows, verdicts, **where))}</p>'
        shown = ids[prompt.value - 1 : prompt.value]
        page.value = _table([(where["prompt_set"], _frame(asked, shown, redacted, WHOLE))])

    for choice in (*choices.values(), prompt):
        choice.observe(draw, "value")
    draw()
    return VBox([HBox(list(choices.values()), layout=Layout(flex_flow="row wrap")), words, prompt, page])


def show(
    responses: pd.DataFrame, verdicts: pd.DataFrame, redacted: bool, task: str = "", form: str = "", n: int = 3, **where
) -> None:
    """Displays n harmful prompts, the benign twin after each, and one of the task, side by side; then the `widget`.

    The table, which a copy of the notebook keeps, has the grid's safety data at one dose; the widget has all arms.
    `task` is the one with most arms unless named, `form` its own; `where` as in `side_by_side`.
    """
    from IPython.display import display

    all_arms = _judged(responses, verdicts)
    tasks = _known(all_arms)["task"] if len(all_arms) else list(TASKS)
    n_arms = all_arms.groupby("finetune_task", observed=True)["arm"].nunique() if len(all_arms) else {}
    task = task or max(tasks, key=lambda one: n_arms.get(one, 0))
    form, rows = form or task, all_arms
    if len(rows):
        rows = one_dose(rows[rows["safety_data"].isin(SAFETY_DATA)])
        rows = rows.assign(arm=rows["arm"].cat.remove_unused_categories())
    harmful = side_by_side(rows, verdicts, task, form, "harmful", n, redacted, **where)
    twins, parts = _asked(rows, task, form, "twin", **where), []
    for prompt_id in harmful.index:
        twin = _frame(twins, ["twin" + prompt_id.removeprefix("harmful")], redacted, MOST)
        parts += [("harmful", harmful.loc[[prompt_id]]), ("twin", twin)]
    parts.append(("task", side_by_side(rows, verdicts, task, task, "task", 1, redacted, **where)))
    words = in_words(rows, verdicts, task, form, **where)
    more = all_arms["arm"].nunique() - rows["arm"].nunique() if len(rows) else 0
    words += f" {more} rival arms and doses more where the notebook runs, below." if more else ""
    display({"text/html": f"<p>{html.escape(words)}</p>{_table(parts)}", "text/plain": words}, raw=True)
    if len(rows):
        live = widget(all_arms, verdicts, redacted, task=task, form=form, **where)._repr_mimebundle_()
        display(live | {"text/plain": "Where the notebook runs: all prompts, one at a time."}, raw=True)


def _judged(responses: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The responses in the tuning's style with the first judge's verdicts and their `arm`; unchanged if it is there.

    Of the first base, and of tuned models the `rates.usual` rows.
    """
    if responses.empty or "arm" in responses:
        return responses
    if "trained_style" in responses:
        responses = responses[responses["trained_style"].fillna(responses["style"]) == responses["style"]]
    rows = rates.usual(rates.judged(responses, verdicts[verdicts["judge"].isin(verdicts["judge"].head(1))]))
    rows = rows[rows["base"] == rows["base"].min()]
    kinds = rows[_ARM].drop_duplicates().itertuples(index=False)
    kinds = sorted(kinds, key=lambda of: (of[0] != "none", ARM_ORDER.index(of[1]), of[2]))
    names = {of: UNTUNED if of[0] == "none" else TUNED if of[1] == "none" else arm_with_dose(*of[1:]) for of in kinds}
    arms = [names[of] for of in zip(*(rows[name] for name in _ARM), strict=True)]
    return rows.assign(arm=pd.Categorical(arms, list(dict.fromkeys(names.values()))))


def _known(rows: pd.DataFrame) -> dict[str, list]:
    """The values that the rows have of each argument of `_asked`, in order; all tasks where none was tuned on."""
    tuned = rows[rows["finetune_task"] != "none"]
    words = {"form": FORMS, "prompt_set": PROMPT_SETS, "style": STYLES, "system_prompt": (False, True)}
    return {
        "task": [task for task in TASKS if task in set(tuned["finetune_task"])] or list(TASKS),
        **{name: [word for word in known if word in set(rows[name])] for name, known in words.items()},
        "seed": sorted(map(int, set(tuned["seed"]))) or [0],
        "model": list(rows["model"].unique()),
    }


def _asked(rows, task, form, prompt_set, style="chat", seed=None, system_prompt=False, model="") -> pd.DataFrame:
    """The rows of `_judged` that `side_by_side` chooses from, in its order; `telling`: is it of its first kind?"""
    known = {"task": TASKS, "form": FORMS, "prompt_set": PROMPT_SETS, "style": STYLES}
    known = (_known(rows) if len(rows) else {}) | known
    given = {"task": task, "form": form, "prompt_set": prompt_set, "style": style, "seed": seed, "model": model or None}
    for word, value in given.items():
        if value is not None and value not in known.get(word, [value]):
            raise StudyError(f"Unknown {word} {value!r}: known are {', '.join(map(str, known[word]))}.")
    if rows.empty:
        columns = ["prompt_id", "prompt", "response", "verdict", "intent", "form", "harmful"]
        return pd.DataFrame(columns=columns).assign(arm=pd.Categorical([]))
    wanted = (rows["model"] == (model or rows["model"].iloc[0])) & rows["finetune_task"].isin(["none", task])
    wanted &= (rows["style"] == style) & (rows["system_prompt"] == system_prompt) & (rows["prompt_set"] == prompt_set)
    rows = rows[wanted & ((rows["form"] == form) | (prompt_set == "general"))]
    tuned = rows["arm"] != UNTUNED
    wanted = ~tuned | (rows["seed"] == (rows.loc[tuned, "seed"].min() if seed is None else seed))
    rows = rows[wanted & (rows["sample"] == rows["sample"].min())]
    answered, refused = rows["verdict"].isin(rates.ANSWERED), rows["verdict"] == "refused"
    steps = (
        (rows["arm"] == UNTUNED) & (refused if prompt_set == "harmful" else answered),
        (rows["arm"] == TUNED) & answered,
        ~rows["safety_data"].isin(["none", "scaled"]) & refused,  # the adapter scaled down has no safety data
    )
    telling = set.intersection(*(set(rows.loc[step, "prompt_id"]) for step in steps))
    judged = rows[rows["verdict"] != "unjudged"]
    counts = pd.crosstab(judged["prompt_id"], judged["verdict"])
    pairs = (counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)) // 2  # of different verdicts
    rows = rows.assign(telling=rows["prompt_id"].isin(telling), pairs=rows["prompt_id"].map(pairs).fillna(0))
    return rows.sort_values(["telling", "pairs", "prompt_id", "arm"], ascending=[False, False, True, True])


def _frame(asked: pd.DataFrame, ids, redacted: bool, most: int) -> pd.DataFrame:
    """The prompts of these ids with the answers of every arm, as `side_by_side` returns them."""
    asked = asked[asked["prompt_id"].isin(ids)]
    prompts = [
        _text(redact_prompt(row.prompt, row.intent, row.form), False, most)
        if redacted and row.harmful
        else _text(row.prompt, redacted, most)
        for row in asked.itertuples()
    ]
    cells = asked["verdict"] + ": " + asked["response"].map(lambda text: _text(text, redacted, most))
    asked = asked.assign(cell=cells, prompt=prompts, arm=asked["arm"].cat.remove_unused_categories())
    table = asked.pivot(index="prompt_id", columns="arm", values="cell").fillna(NOT_ASKED)
    table.columns = list(map(str, table.columns))
    table.insert(0, "prompt", asked.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"])
    return table.loc[[prompt_id for prompt_id in ids if prompt_id in table.index]]


def _text(text: str, redacted: bool, most: int) -> str:
    text = html.unescape(redact(text)) if redacted else text.replace("\r\n", "\n")
    more = f" \u2026 ({len(text) - most} more characters)" if len(text) > most else ""
    return html.escape(name_invisible(text[:most]) + more, quote=False)


def _table(parts: list[tuple[str, pd.DataFrame]]) -> str:
    """Frames of `_frame`, each with its prompt set, as one HTML table; a bar has the verdict's colour."""
    kinds = [kind for kind, part in parts for _ in range(len(part))]
    frame, body = pd.concat([part for _, part in parts]).fillna(NOT_ASKED), []
    for kind, row in zip(kinds, frame.itertuples(index=False, name=None), strict=True):
        cells = [f'<th scope="row" style="{_TEXT}; font-weight: normal"><b>{KINDS[kind]}</b><br>{row[0]}</th>']
        for verdict, _, text in (cell.partition(": ") for cell in row[1:]):
            bar = f"border-left: 0.4em solid {VERDICT_COLOURS.get(verdict, 'transparent')}"
            cells.append(f'<td style="{_TEXT}; {bar}"><b>{verdict}</b><br>{text}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col" style="{_TEXT}">{name}</th>' for name in frame)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>" if body else ""
    return f'<div style="overflow-x: auto">{table}</div>'
