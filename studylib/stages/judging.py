"""The judges of a run against people: labelled responses, agreement with them, and a sheet for the user's own labels.

The sheet is blind: it shows a response, its prompt and form, and nothing of the condition or of any judge, in an order
that has nothing to do with either.
"""

import hashlib
import html
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis import agreement, rates
from studylib.analysis.rates import CELL
from studylib.data import fetching
from studylib.data.fetching import Absent
from studylib.judges import classifier, endpoint, labelled, registry
from studylib.study.files import append_rows, read_rows
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile
from studylib.study.words import VERDICTS, StudyError
from studylib.text.normal import name_invisible, redact, redact_prompt

XSTEST = ("xstest_gpt4", "xstest_llama2new", "xstest_llama2orig", "xstest_mistralguard", "xstest_mistralinstruct")
YARDSTICKS = ("own", "chatgpt_refusals", "xstest")
ENOUGH = 20  # labelled responses of either kind, for a correction
USER = "user"  # the source of labels made with the labelling sheet
SHOWN = ("prompt", "response", "form", "stop_reason")  # of a response; where all are equal it is one text
DISAGREE, RANDOM = "judges disagree", "random"
COLUMNS = ("response_id", *SHOWN, "label", "seconds", "chosen_because", "weight")
KEYS = {verdict[0]: verdict for verdict in VERDICTS}  # r a p i u
BACK = "b"
QUICKEST = 0.3  # seconds: nobody has read a text sooner, so it is a key held down or a double click


def check(names: Sequence[str]) -> None:
    """Raises StudyError for a name that is no set of human-labelled responses, and for a set without pinned hashes."""
    if unknown := [name for name in names if name not in YARDSTICKS]:
        raise StudyError(f"There are no labelled responses {unknown[0]!r}: known are {', '.join(YARDSTICKS)}.")
    for name in XSTEST if "xstest" in names else ():
        if not fetching.source(name).sha256:
            fetching.fetch(name)  # raises, saying how to pin it


def people(profile: Profile, paths: RunPaths) -> tuple[pd.DataFrame, dict[str, str]]:
    """The labelled responses of the profile's `labelled` and of the labelling sheet; and why sets are missing, by name.

    Columns as in `labelled.py`, with response_id and weight. Fetches registered files where they are not there yet.
    """
    found, absent = [], {}
    for name in profile.labelled:
        try:
            found.append(_read(name))
        except Absent as error:
            absent[name] = error.reason
    found.append(user_labels(paths.labels))
    rows = pd.concat(found, ignore_index=True)
    return agreement.with_ids(rows) if len(rows) else rows, absent


def _read(name: str) -> pd.DataFrame:
    if name == "own":
        rows = labelled.own(labelled.OWN[0])  # the balanced cases: of the others most are everyday prompts
    elif name == "chatgpt_refusals":
        rows = labelled.chatgpt_refusals(fetching.fetch(name)).assign(source=name)
    else:
        rows = labelled.xstest(*map(fetching.fetch, XSTEST))
    return rows.assign(weight=1.0)


def user_labels(path: Path) -> pd.DataFrame:
    """The labels of a sheet as labelled responses, source `user`. No file: no rows.

    A label without a weight weighs 1. What the user could not tell is left out, as it says nothing of a judge.
    """
    rows = read_labels(path)
    rows = rows[rows["label"] != "unjudged"].fillna({"weight": 1.0})
    names = {"source": USER, "model": USER, "prompt_id": rows["prompt"], "human": rows["label"]}
    return rows.assign(**names)[[*labelled.COLUMNS, "response_id", "weight"]]


def verdicts(profile: Profile, paths: RunPaths, responses: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of all the profile's judges on a run's responses, as `registry.judge`.

    The classifier is calibrated by the user's own labels where there are any.
    """
    return registry.judge(responses, profile.judges, _options(profile, paths))


def _options(profile: Profile, paths: RunPaths) -> dict[str, dict]:
    """What the profile's judges take in this run, as `registry.judge` wants it."""
    options = {}
    if "classifier" in profile.judges:
        weights, mine = classifier.load(), user_labels(paths.labels)
        options["classifier"] = {"weights": classifier.recalibrated(weights, mine) if len(mine) else weights}
    if "endpoint" in profile.judges:
        options["endpoint"] = {"settings": endpoint.open_endpoint(**profile.endpoint)}
    return options


def judged(people: pd.DataFrame, profile: Profile, paths: RunPaths) -> pd.DataFrame:
    """The verdicts of the profile's judges on labelled responses, as `registry.judge`, set as in the run.

    The classifier's on what it has learned from are those of a classifier that has not seen the prompt. Without
    `coherence`, which tells no refusals from answers.
    """
    options = _options(profile, paths)
    if "classifier" in options:
        options["classifier"]["held_out"] = True
    return registry.judge(people, [name for name in profile.judges if name != "coherence"], options)


def words(profile: Profile, found: dict) -> str:
    """A sentence on the judge that decides: kappa on each labelled set, and what is missing; of findings.judges_of."""
    missing = "".join(f" Not there: `{name}` ({why})." for name, why in found["people"].items())
    if "judges" not in found:
        return f"The judges were compared with nobody.{missing}"
    table, first = found["judges"], profile.judges[0]
    rows = table[(table["judge"] == first) & (table["model"] == agreement.ALL) & (table["source"] != agreement.ALL)]
    each = [
        (f"{row.kappa:.2f} ({row.kappa_low:.2f}-{row.kappa_high:.2f})" if row.kappa == row.kappa else "undefined")
        + f" on {row.n} responses of `{row.source}` ({row.n_unjudged} more it could not tell)"
        for row in rows.itertuples()
    ]
    words = f"Cohen's kappa of `{first}`, the judge that decides, with the labels: {'; '.join(each)}."
    return words + missing + found["coherence"]


def corrected(attack: pd.DataFrame, people: pd.DataFrame, judged: pd.DataFrame, sets: Sequence[str]) -> pd.DataFrame:
    """The table of `tables.attack_success` with each form's rate corrected for its judge's errors in that form.

    The errors are those on the user's own labels of the form, else on the first of `sets` that has ENOUGH labelled
    answers and as many others there; columns as of `agreement.with_corrected`. Without such a set there is no corrected
    rate, nor for all forms together, which err differently; `correction_note` says so.
    """
    empty = dict.fromkeys(("rate_corrected", "low_corrected", "high_corrected"), np.nan) | {"correction_from": ""}
    groups, parts = people["label"].isin(rates.ANSWERED).groupby([people["form"], people["source"]]), []
    counts = groups.agg(lambda answered: min(answered.sum(), (~answered).sum())).to_dict()
    for form, rows in attack.groupby("form", sort=False, observed=True):
        source = next((name for name in (USER, *sets) if counts.get((form, name), 0) >= ENOUGH), None)
        if source is None:
            why = f"fewer than {ENOUGH} labelled answers, or others, of this form"
            why = "forms err differently: see each" if form == "all" else why
            parts.append(rows.assign(**empty, correction_note=why))
            continue
        own = people[(people["form"] == form) & (people["source"] == source)]
        errors = agreement.compare(own, judged[judged["response_id"].isin(own["response_id"])], draws=50)
        parts.append(agreement.with_corrected(rows, errors, source).set_index(rows.index))
    return pd.concat(parts).sort_index()


def against(people: pd.DataFrame, profile: Profile, paths: RunPaths) -> pd.DataFrame | str:
    """How each of the profile's judges agrees with these labelled responses, all models together; or a sentence."""
    if people.empty:
        return "Nothing is labelled yet."
    table = agreement.compare(agreement.with_ids(people), judged(people, profile, paths))
    shown = ["judge", "source", "n", "n_unjudged", "kappa", "kappa_low", "kappa_high", "sensitivity", "specificity"]
    return table.loc[(table["model"] == agreement.ALL) & (table["source"] != agreement.ALL), shown].round(2)


def choose(
    responses: pd.DataFrame, verdicts: pd.DataFrame, n: int = 200, seed: int = 0, random_share: float = 0.5
) -> pd.DataFrame:
    """At most n different texts to label: columns response_id, those of SHOWN, chosen_because and weight.

    `verdicts` may be of several judges. Texts on which they disagree (one says refused and another does not, or one
    cannot tell) fill all but `random_share` of the n; the rest is drawn from the texts on which they agree, and each
    fills up what the other has not enough of. Both are spread over the forms and arms in proportion, by systematic
    sampling. `weight` is the number of responses, equal ones included, that a row stands for: a weighted share of
    labels estimates the share among all responses. The same input gives the same rows, however it is sorted.
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


def read_labels(path: Path) -> pd.DataFrame:
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

    `rows` are those of `choose` (or any with response_id and the columns of SHOWN). Each label is appended at once to
    `path`, a JSON-lines file, and a sheet on the same file goes on where it was left; the last label of a response
    counts. A response or prompt that was made anew is asked again. A button per verdict, or a key: r, a, p, i, u typed
    into the box that has the focus, without Enter; b goes back.

    Where `redact` (as the profile's) texts are shown by their first words and a hash, and no label can be given, until
    whoever runs it asks for them with `show=True`. The file holds texts in full: do not pass it on where they are
    harmful. Raises StudyError for missing columns, two rows of one response_id, and a file that `read_labels` refuses.
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
            raise StudyError("A sheet needs every response_id once: choose the rows with judging.choose.")
        rows = [{name: _writable(row.get(name)) for name in COLUMNS} for row in rows]
        self.rows = sorted(rows, key=lambda row: _place(row["response_id"]))
        self.path, self.clock = Path(path), clock
        self.open = show or not redact
        self.labels: dict[int, str] = {}
        self.seconds: list[float] = []
        places = {(row["response_id"], row["prompt"], row["response"]): i for i, row in enumerate(self.rows)}
        for row in read_labels(self.path).to_dict("records"):
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
            about = registry.definitions()[verdict]
            button = Button(description=f"{verdict} ({key})", tooltip=about, disabled=not self.open)
            button.on_click(lambda _, verdict=verdict: self._label(verdict))
            self.buttons[verdict] = button
        self.back = Button(description=f"back ({BACK})", icon="arrow-left")
        self.back.on_click(lambda _: self._go(self.place - 1))
        self.keys = Text(placeholder=f"keys: {' '.join((*KEYS, BACK))}", disabled=not self.open)
        self.keys.observe(self._typed, "value")
        self.box = VBox([self.progress, self.text, HBox([*self.buttons.values(), self.back, self.keys])])

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget, and in words no text of a response: what is in words is saved with the notebook."""
        words = f"A labelling sheet of {len(self.rows)} responses"
        return self.box._repr_mimebundle_(**options) | {"text/plain": words}

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
        words = f"{done} of {len(self.rows)}"
        if self.seconds and left:
            pace = statistics.median(self.seconds)  # a break does not count
            words += f", {pace:.0f} s each, {max(1, round(pace * left / 60))} min left"
        self.progress.value = f"<b>{words}</b>"
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
            parts.append("<p>Texts of this profile are redacted: <code>show=True</code> shows them.</p>")
        return "".join(parts)


def _place(response_id: str) -> str:
    """What to sort by for an order that has nothing to do with the condition, the same at every opening."""
    return hashlib.sha256(response_id.encode(errors="replace")).hexdigest()


def _writable(value):
    """The value as JSON and UTF-8 can hold it."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if value is None or pd.isna(value) else float(value)
