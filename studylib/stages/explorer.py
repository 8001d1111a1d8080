"""The same prompts answered by the untuned, the tuned and the mitigated models: a table, and a small explorer."""

from __future__ import annotations

import html
from itertools import combinations

import pandas as pd

from studylib.analysis import rates
from studylib.analysis.comparisons import ARM_ORDER
from studylib.analysis.rates import one_dose
from studylib.analysis.readable import arm_with_dose, calibration_label, label
from studylib.figures.parts import VERDICT_COLOURS
from studylib.study.words import FORMS, PROMPT_SETS, SAFETY_DATA, STYLES, TASKS, StudyError
from studylib.text.shown import name_invisible, redact, redact_prompt

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
    style: str = "chat",
    seed: int | None = None,
    system_prompt: bool = False,
    model: str = "",
) -> pd.DataFrame:
    """At most n prompts with every arm's answer: index prompt_id, columns prompt and one per arm, as "refused: No".

    The arms are `untuned`, `tuned` (on the task, without safety data), then the same tuning with generic and multitask
    data and the rival arms, by dose; one that has not run has no column (`in_words` says so). Chosen to be telling, so
    no sample: first the prompts refused (benign ones: answered) untuned, answered after tuning and refused with some
    safety data (the adapter scaled down has none); then those with the most pairs of arms that differ in verdict,
    unjudged ones aside; ties by prompt_id. Texts are cut after MOST characters and the rest is counted; redacted where
    asked for, benign ones too, and harmful prompts by `redact_prompt`. Cells are safe HTML: `<`, `>` and `&` are
    escaped, control, bidi and other invisible characters named, "[U+202E]". Of several judges the first that comes
    decides. `seed` is the training seed, the smallest there is unless named; `model` the first unless named. Left out:
    all samples but the first, and answers in another style than the tuning's (`Stage.across`). General requests have
    one form, so `form` does not count there. No rows where nothing has run. Raises StudyError for an unknown word,
    model or seed, ValueError as `rates.judged`.
    """
    asked = _asked(_judged(responses, verdicts), task, form, prompt_set, style, seed, system_prompt, model)
    return _frame(asked, asked["prompt_id"].unique()[:n], redacted, MOST)


def in_words(
    responses: pd.DataFrame, verdicts: pd.DataFrame, task: str, form: str, prompt_set: str = "harmful", **where
) -> str:
    """What `side_by_side` of the same arguments shows, what it chose from, and which arms are not there. Plain text."""
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
    said = [f"Model {asked['model'].iloc[0]}"] if rows["model"].nunique() > 1 else []
    said += [f"tuned on {label(task)} with training seed {seeds.iloc[0]}" if len(seeds) else "untuned", calibration]
    words = f"Here: {', '.join(said)}; judged by {asked['judge'].iloc[0]}. Of {len(prompts)} {which} those come first "
    if {UNTUNED, TUNED} < there:
        before = "refused" if prompt_set == "harmful" else "answered"
        words += f"that were {before} untuned, answered after tuning and refused with some safety data "
        words += f"({prompts['telling'].sum()}), then those "
    words += "on which the models differ most: chosen to be telling, while the rates say how often it happens."
    lacks = [arm for arm in dict.fromkeys((UNTUNED, TUNED, *rows["arm"].cat.categories)) if arm not in there]
    lacks = [{UNTUNED: "the untuned model", TUNED: "tuning without safety data"}.get(arm, arm) for arm in lacks]
    lacks += [f"{kind} safety data" for kind in SAFETY_DATA[1:] if kind not in set(rows["safety_data"].unique())]
    return words + (f" Not run here: {', '.join(lacks)}." if lacks else "")


def widget(responses: pd.DataFrame, verdicts: pd.DataFrame, redacted: bool, **start):
    """An ipywidgets box: a dropdown per argument of `side_by_side` with what is there, and one prompt with its answers.

    It stays at the prompt where another choice has it too, and goes from a harmful prompt to its benign twin and back,
    which share what follows the prompt set in `prompt_id`. `start` holds values to begin with, by the arguments' names.
    A sentence where there are no responses.
    """
    from ipywidgets import HTML, Button, Dropdown, HBox, Layout, VBox

    rows, choices = _judged(responses, verdicts), {}
    if rows.empty:
        return VBox([HTML(NOTHING)])
    for name, known in _known(rows).items():
        said = {"system_prompt": ("off", "on").__getitem__, "seed": str, "model": str}.get(name, label)
        options, value = [(said(word), word) for word in known], start.get(name)
        value = value if value in known else known[0]
        whole = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
        choices[name] = Dropdown(options=options, value=value, layout=Layout(width="auto"), **whole)
    words, counted, page = HTML(), HTML(), HTML(layout=Layout(max_height="40em", overflow="auto"))
    back, on = Button(description="previous", icon="arrow-left"), Button(description="next", icon="arrow-right")
    shown = was = ""  # the prompt's id and its set

    def draw(step: int = 0) -> None:
        nonlocal shown, was
        where = {name: choice.value for name, choice in choices.items()}
        kind, asked = where["prompt_set"], _asked(rows, **where)
        ids = list(asked["prompt_id"].unique())
        same = next((ids.index(one) for one in (shown, kind + shown.removeprefix(was)) if one in ids), 0)
        place = max(0, min(same + step, len(ids) - 1))
        shown, was = (ids[place], kind) if ids else (shown, was)
        back.disabled, on.disabled, choices["form"].disabled = place == 0, place >= len(ids) - 1, kind == "general"
        words.value = f'<p style="line-height: 1.4">{html.escape(in_words(rows, verdicts, **where))}</p>'
        counted.value = f"<b>{place + 1} of {len(ids)}</b>" if ids else ""
        page.value = _table([(kind, _frame(asked, ids[place : place + 1], redacted, WHOLE))])

    back.on_click(lambda _: draw(-1))
    on.on_click(lambda _: draw(1))
    for choice in choices.values():
        choice.observe(lambda _: draw(), "value")
    draw()
    offered = [choice for name, choice in choices.items() if name != "model" or len(choice.options) > 1]
    return VBox([HBox(offered, layout=Layout(flex_flow="row wrap")), words, HBox([back, on, counted]), page])


def show(
    responses: pd.DataFrame, verdicts: pd.DataFrame, redacted: bool, task: str = "", form: str = "", n: int = 3, **where
) -> None:
    """Displays n harmful prompts, the benign twin after each, and one of the task, side by side; then the `widget`.

    The table is what a copy of the notebook keeps: of the grid's safety data at one dose, as rival arms would make it
    too wide to read; the widget, which works where the notebook runs, has them all. `task` is the one with most arms
    unless named, of several the first, `form` its own; `where`: style, seed, system_prompt, model. Raises as
    `side_by_side`.
    """
    from IPython.display import display

    all_arms = _judged(responses, verdicts)
    tasks = _known(all_arms)["task"] if len(all_arms) else list(TASKS)
    n_arms = all_arms.groupby("finetune_task", observed=True)["arm"].nunique() if len(all_arms) else {}
    task = task or max(tasks, key=lambda one: n_arms.get(one, 0))
    form = form or task
    rows = all_arms
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
    """The responses with the first judge's verdicts and, as `arm`, their column; as they are where they have it."""
    if responses.empty or "arm" in responses:
        return responses
    if "trained_style" in responses:
        responses = responses[responses["trained_style"].fillna(responses["style"]) == responses["style"]]
    rows = rates.judged(responses, verdicts[verdicts["judge"].isin(verdicts["judge"].head(1))])
    kinds = rows[_ARM].drop_duplicates().itertuples(index=False)
    kinds = sorted(kinds, key=lambda of: (of[0] != "none", ARM_ORDER.index(of[1]), of[2]))
    names = {of: UNTUNED if of[0] == "none" else TUNED if of[1] == "none" else arm_with_dose(*of[1:]) for of in kinds}
    arms = [names[of] for of in zip(*(rows[name] for name in _ARM), strict=True)]
    rows = rows.assign(arm=pd.Categorical(arms, list(dict.fromkeys(names.values()))))
    return rows.astype(dict.fromkeys(["model", "finetune_task", "style", "prompt_set", "form"], "category"))


def _known(rows: pd.DataFrame) -> dict[str, list]:
    """The values that the rows have of each argument of `_asked`, in order; all tasks where none was tuned on."""
    tuned = rows["finetune_task"] != "none"
    tasks, seeds = (set(rows.loc[tuned, name].unique()) for name in ("finetune_task", "seed"))
    words = {"form": FORMS, "prompt_set": PROMPT_SETS, "style": STYLES, "system_prompt": (False, True)}
    return {
        "task": [task for task in TASKS if task in tasks] or list(TASKS),
        **{name: [word for word in known if word in set(rows[name].unique())] for name, known in words.items()},
        "seed": sorted(map(int, seeds)) or [0],
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
    given = {prompt_id: {} for prompt_id in rows["prompt_id"]}
    for prompt_id, arm, verdict in zip(rows["prompt_id"], rows["arm"], rows["verdict"], strict=True):
        given[prompt_id][arm] = verdict
    mitigated = set(rows.loc[~rows["safety_data"].isin(["none", "scaled"]), "arm"])
    marks = {prompt_id: _telling(arms, prompt_set, mitigated) for prompt_id, arms in given.items()}
    rows = rows.assign(
        **{name: [marks[i][k] for i in rows["prompt_id"]] for k, name in enumerate(("telling", "pairs"))}
    )
    return rows.sort_values(["telling", "pairs", "prompt_id", "arm"], ascending=[False, False, True, True])


def _telling(given: dict[str, str], prompt_set: str, mitigated: set[str]) -> tuple[bool, int]:
    """Whether a prompt with these verdicts by arm is of the first kind of `side_by_side`, and how many pairs differ.

    `mitigated` are the arms with safety data.
    """
    before = ("refused",) if prompt_set == "harmful" else rates.ANSWERED
    told = given.get(UNTUNED) in before and given.get(TUNED) in rates.ANSWERED
    told &= "refused" in [verdict for arm, verdict in given.items() if arm in mitigated]
    judged = [verdict for verdict in given.values() if verdict != "unjudged"]
    return told, sum(one != other for one, other in combinations(judged, 2))


def _frame(asked: pd.DataFrame, ids, redacted: bool, most: int) -> pd.DataFrame:
    asked = asked[asked["prompt_id"].isin(ids)].reset_index(drop=True)
    shown = asked[["prompt", "response"]].map(lambda text: _text(text, redacted, most))
    if redacted:
        unsaid = asked[asked["harmful"].astype(bool)]
        unsaid = unsaid.assign(prompt=list(map(redact_prompt, unsaid["prompt"], unsaid["intent"], unsaid["form"])))
        shown.loc[unsaid.index, "prompt"] = unsaid["prompt"].map(lambda text: _text(text, False, most))
    cells = asked.assign(
        cell=asked["verdict"] + ": " + shown["response"], prompt=shown["prompt"], arm=asked["arm"].astype(str)
    )
    table = cells.pivot(index="prompt_id", columns="arm", values="cell").fillna(NOT_ASKED).rename_axis(columns=None)
    table = table[[arm for arm in asked["arm"].cat.categories if arm in table]]
    table.insert(0, "prompt", cells.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"])
    return table.loc[[prompt_id for prompt_id in ids if prompt_id in table.index]]


def _text(text: str, redacted: bool, most: int) -> str:
    text = html.unescape(redact(text)) if redacted else text.replace("\r\n", "\n")
    more = f" \u2026 ({len(text) - most} more characters)" if len(text) > most else ""
    return html.escape(name_invisible(text[:most]) + more, quote=False)


def _table(parts: list[tuple[str, pd.DataFrame]]) -> str:
    """Frames of `_frame`, each with its prompt set, as one HTML table in the page's own colours, whichever they are.

    The verdict stands in bold words over the text; the bar at the cell's left repeats it in the colour of the figures.
    """
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
