"""Labelling responses by hand: which ones, a sheet to do it on in a notebook, and the labels read back.

The sheet is blind: it shows a response, its prompt and form, and nothing of the condition or of any judge, in an order
that has nothing to do with either.
"""

import hashlib
import html
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis.rates import CELL
from studylib.judges.registry import definitions
from studylib.study.files import append_rows, read_rows
from studylib.study.words import VERDICTS, StudyError
from studylib.text.shown import name_invisible, redact, redact_prompt

SHOWN = ("prompt", "response", "form", "stop_reason")  # of a response; where all are equal it is one text
DISAGREE, RANDOM = "judges disagree", "random"
COLUMNS = ("response_id", *SHOWN, "label", "seconds", "chosen_because", "weight")
KEYS = {verdict[0]: verdict for verdict in VERDICTS}  # r a p i u
BACK = "b"
QUICKEST = 0.3  # seconds: nobody has read a text sooner, so it is a key held down or a double click


def choose(
    responses: pd.DataFrame, verdicts: pd.DataFrame, n: int = 200, seed: int = 0, random_share: float = 0.5
) -> pd.DataFrame:
    """At most n different texts to label: columns response_id, those of SHOWN, chosen_because and weight.

    `verdicts` may be of several judges. Texts on which they disagree (one says refused and another does not, or one
    cannot tell) fill all but `random_share` of the n; the rest is drawn from the texts on which they agree, and each
    fills up what the other has not enough of. Both are spread over the forms and arms (model, tuning, calibration,
    safety data) in proportion, by systematic sampling from texts sorted by them. `weight` is the number of responses,
    equal ones included, that a row stands for: a weighted share of labels estimates the share among all responses,
    which the plain share of so chosen rows does not. Every response had its chance. The same input gives the same rows,
    however it is sorted.
    Raises StudyError for missing columns, n below 2, and responses without a verdict.
    """
    arm = [name for name in ("prompt_set", *CELL) if name in responses]
    if missing := [name for name in ("response_id", *SHOWN) if name not in responses]:
        raise StudyError(f"Responses to label need a column {', '.join(missing)}.")
    if responses.empty:
        raise StudyError("There are no responses to label.")
    if n < 2:
        raise StudyError(f"At least two responses are needed, one of each kind, found n = {n}.")
    if without := len(set(responses["response_id"]) - set(verdicts["response_id"])):
        raise StudyError(f"{without} responses have no verdict of any judge: judge them first.")
    rows = responses.sort_values("response_id")
    groups = rows.groupby(list(SHOWN), sort=False)
    rows["text"] = groups.ngroup()
    texts = rows.drop_duplicates("text").assign(weight=groups.size().to_numpy(float))
    said = rows[["response_id", "text"]].merge(verdicts[["response_id", "verdict"]], on="response_id")
    said["kind"] = said["verdict"].where(said["verdict"].isin(["refused", "unjudged"]), "other")
    kinds = said.groupby("text")["kind"].agg(["nunique", lambda kinds: (kinds == "unjudged").any()])
    split = ((kinds["nunique"] > 1) | kinds.iloc[:, 1]).to_numpy()
    texts["chosen_because"] = np.where(split, DISAGREE, RANDOM)
    rng, n_split, n_same = np.random.default_rng(seed), int(split.sum()), int((~split).sum())
    wanted = min(max(n - max(round(random_share * n), 1), 1), n_split)
    wanted_same = min(n - wanted, n_same)
    sizes = {DISAGREE: min(n - wanted_same, n_split), RANDOM: wanted_same}
    chosen = []
    for because, size in sizes.items():
        part = texts[texts["chosen_because"] == because]
        if size:
            part = part.iloc[rng.permutation(len(part))].sort_values(["form", *arm], kind="stable")
            step = len(part) / size
            part = part.iloc[((rng.random() + np.arange(size)) * step).astype(int)]
            chosen.append(part.assign(weight=part["weight"] * step))
    rows = pd.concat(chosen)[["response_id", *SHOWN, "chosen_because", "weight"]]
    return rows.iloc[np.argsort([_place(i) for i in rows["response_id"]])].reset_index(drop=True)


def visible(text: str) -> str:
    """The text as HTML that shows it as it is: escaped, with control, bidi and other invisible characters named.

    Line ends and tabs are kept, so it wants a `white-space: pre-wrap` around it.
    """
    text = html.escape(text.replace("\r\n", "\n"))
    return name_invisible(text, '<mark title="an invisible character">U+{:04X}</mark>')


def read(path: Path) -> pd.DataFrame:
    """The labels of a sheet, columns as COLUMNS: a row per response, the last one where labelled again.

    seconds and weight are floats, NaN where they are empty. A last line that was cut off is left out. No file: no rows.
    Raises StudyError for a file that is not JSON lines with these columns, and for a label that is no verdict, with
    the row.
    """
    path = Path(path)
    try:
        rows = read_rows(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StudyError(f"{path} is not JSON lines in UTF-8 ({error}): repair or delete the line.") from None
    for number, row in enumerate(rows, 1):
        if missing := [name for name in COLUMNS if not isinstance(row, dict) or name not in row]:
            raise StudyError(f"{path}, row {number}: no {', '.join(missing)}; is it the file of a labelling sheet?")
        if row["label"] not in VERDICTS:
            raise StudyError(f"{path}, row {number}: unknown label {row['label']!r}, known are {', '.join(VERDICTS)}.")
    types = dict.fromkeys(COLUMNS, "str") | {"seconds": float, "weight": float}
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)
    return frame.drop_duplicates("response_id", keep="last", ignore_index=True)


class Sheet:
    """A widget that shows one response at a time and keeps a label for each; the last expression of a notebook cell.

    `rows` are those of `choose` (or any with response_id and the columns of SHOWN); `path` is the JSON-lines file that
    every label is appended to at once, so nothing is lost when the notebook ends, and a sheet on the same file goes on
    where it was left. A label counts as made when response and prompt are those that were labelled: a response made
    anew is asked again. Labelling again appends too; the last label counts (see `read`).

    A button per verdict, or a key: r, a, p, i, u typed into the box that has the focus, without Enter; b goes back.
    What comes within 0.3 s of a new text is taken for a key held down and ignored.

    Labelling needs the text. Where `redact` (as the profile's: real models, real harm) texts are shown as elsewhere, by
    their first words and a hash, and no label can be given, until whoever runs it asks for them with `show=True`. The
    file holds texts in full: keep it with the run, and do not pass it on where they are harmful.
    Raises StudyError for missing columns, two rows of one response_id, and a file that `read` refuses.
    """

    def __init__(
        self,
        rows: pd.DataFrame | list[dict],
        path: Path,
        redact: bool = True,
        show: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else [dict(row) for row in rows]
        if any(name not in row for row in rows for name in ("response_id", *SHOWN)):
            raise StudyError(f"A sheet needs rows with response_id, {', '.join(SHOWN)}.")
        if len({row["response_id"] for row in rows}) < len(rows):
            raise StudyError("A sheet needs every response_id once: choose the rows with labels.choose.")
        rows = [{name: _writable(row.get(name)) for name in COLUMNS} for row in rows]
        self.rows = sorted(rows, key=lambda row: _place(row["response_id"]))
        self.path, self.clock = Path(path), clock
        self.open = show or not redact
        self.labels: dict[int, str] = {}
        self.seconds: list[float] = []
        places = {(row["response_id"], row["prompt"], row["response"]): i for i, row in enumerate(self.rows)}
        for row in read(self.path).to_dict("records"):
            place = places.get((row["response_id"], row["prompt"], row["response"]))
            if place is not None:
                self.labels[place] = row["label"]
                self.seconds.append(row["seconds"])
        self._build()
        self._go(self._next(-1))

    def _build(self) -> None:
        from ipywidgets import HTML, Button, HBox, Layout, Text, VBox

        self.progress, self.text = HTML(), HTML(layout=Layout(max_height="32em", overflow="auto"))
        self.buttons = {}
        for key, verdict in KEYS.items():
            button = Button(description=f"{verdict} ({key})", tooltip=definitions()[verdict], disabled=not self.open)
            button.on_click(lambda _, verdict=verdict: self._label(verdict))
            self.buttons[verdict] = button
        self.back = Button(
            description=f"back ({BACK})", icon="arrow-left", tooltip="To the one before, to label it again."
        )
        self.back.on_click(lambda _: self._go(self.place - 1))
        keys = " ".join((*KEYS, BACK))
        self.keys = Text(placeholder=f"keys: {keys}", layout=Layout(width="12em"), disabled=not self.open)
        self.keys.observe(self._typed, "value")
        self.box = VBox([self.progress, self.text, HBox([*self.buttons.values(), self.back, self.keys])])

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget, and in words no text of a response: what is in words is saved with the notebook."""
        return self.box._repr_mimebundle_(**options) | {
            "text/plain": f"A labelling sheet of {len(self.rows)} responses"
        }

    def _typed(self, change: dict) -> None:
        """The last character is the key: a quick typist's next one may come before the box is empty again."""
        key = change["new"][-1:].lower()
        if change["new"]:
            self.keys.value = ""
        if key == BACK:
            self._go(self.place - 1)
        elif key in KEYS:
            self._label(KEYS[key])

    def _label(self, verdict: str) -> None:
        seconds = self.clock() - self.since
        if not self.open or self.place == len(self.rows) or seconds < QUICKEST:
            return
        append_rows(self.path, [self.rows[self.place] | {"label": verdict, "seconds": round(seconds, 1)}])
        self.labels[self.place] = verdict
        self.seconds.append(seconds)
        self._go(self._next(self.place))

    def _next(self, place: int) -> int:
        """The first place without a label after this one, else the first of all, else the end."""
        left = [i for i in range(len(self.rows)) if i not in self.labels]
        return next((i for i in left if i > place), left[0] if left else len(self.rows))

    def _go(self, place: int) -> None:
        self.place = max(place, 0)
        self.back.disabled = self.place == 0
        done, left = len(self.labels), len(self.rows) - len(self.labels)
        words = [f"{done} of {len(self.rows)}"]
        if self.seconds and left:
            pace = statistics.median(self.seconds)  # a break does not count
            words += [f"{pace:.0f} s each", f"{max(1, round(pace * left / 60))} min left"]
        self.progress.value = f"<b>{', '.join(words)}</b>"
        self.text.value = self._page()
        for verdict, button in self.buttons.items():
            button.button_style = "info" if self.labels.get(self.place) == verdict else ""
        self.keys.focus()
        self.since = self.clock()

    def _page(self) -> str:
        if self.place == len(self.rows):
            return "<p>All are labelled.</p>"
        row = self.rows[self.place]
        shown = {"prompt": visible, "response": visible} if self.open else {"prompt": redact_prompt, "response": redact}
        parts = [f"<p>Asked for: <b>{html.escape(row['form'].replace('_', ' '))}</b></p>"]
        for name in ("prompt", "response"):
            style = "white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; line-height: 1.4"
            parts.append(f'<p>{name.capitalize()}</p><pre style="{style}">{shown[name](row[name])}</pre>')
        if row["stop_reason"] == "length":
            parts.append("<p><i>cut off here, at its greatest length</i></p>")
        if not self.open:
            parts.append(
                "<p>Texts of this profile are redacted. Labelling needs them: <code>show=True</code> shows them.</p>"
            )
        return "".join(parts)


def _place(response_id: str) -> str:
    """What to sort by for an order that has nothing to do with the condition, the same at every opening."""
    return hashlib.sha256(response_id.encode(errors="replace")).hexdigest()


def _writable(value):
    """The value as JSON and UTF-8 can hold it."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if value is None or pd.isna(value) else float(value)
