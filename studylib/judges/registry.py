"""Judges by name: a verdict for every response.

A judge is a function of four lists of equal length (prompts, responses, forms, stop reasons) and of options of its
own, by name, that gives one Verdict, (verdict, reason), per response.
"""

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from studylib.judges import classifier, endpoint, open_models, word_lists
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import StudyError, Verdict
from studylib.text import refusals

Judge = Callable[..., list[Verdict]]

JUDGES: dict[str, Judge] = {
    "classifier": classifier.judge_all,
    "rules": refusals.judge_all,
    "coherence": word_lists.judge_coherence,
    "endpoint": endpoint.judge_all,
}
WORD_LIST_PREFIX = "words_"  # of the judges' names
COLUMNS = ("response_id", "form", "prompt", "response", "stop_reason")  # of responses


def definitions() -> dict[str, str]:
    """What each verdict means, in a sentence; with examples in `data/verdicts.yaml`."""
    return {verdict: entry["definition"] for verdict, entry in read_yaml(DATA / "verdicts.yaml").items()}


def names() -> list[str]:
    """The names of all judges: those of JUDGES, the published word lists and the open models."""
    return [*JUDGES, *(WORD_LIST_PREFIX + name for name in word_lists.names()), *open_models.names()]


def check(wanted: Sequence[str]) -> None:
    """Raises StudyError for a name that is no judge's."""
    if unknown := [name for name in wanted if name not in names()]:
        raise StudyError(f"Unknown judge {unknown[0]!r}: known are {', '.join(names())}.")


def check_first(wanted: Sequence[str]) -> None:
    """Raises StudyError for an unknown name, and where the first judge, which decides, cannot say refused."""
    check(wanted)
    if wanted[0] in without_refusals():
        raise StudyError(
            f"The judge {wanted[0]!r} cannot decide, as it never says refused: name another first, such as classifier."
        )


def without_refusals() -> list[str]:
    """The judges that never say refused: what they do not call a success is unjudged."""
    return ["coherence", *(name for name in open_models.names() if "refused" not in open_models.entry(name).gives)]


def judge_of(name: str) -> Judge:
    """The judge of that name, which has to be a known one."""
    if name in open_models.names():
        return partial(open_models.judge_all, name=name)
    if name.startswith(WORD_LIST_PREFIX):
        return partial(word_lists.judge_all, name=name.removeprefix(WORD_LIST_PREFIX))
    return JUDGES[name]


def judge(
    responses: pd.DataFrame, judges: str | Sequence[str] = "rules", options: dict[str, dict] | None = None
) -> pd.DataFrame:
    """One row per judge and response: response_id, judge, verdict, reason. What is equal is judged once.

    Needs COLUMNS. `options` are further arguments of a judge's function, by its name. Raises StudyError before any
    judges for an unknown judge and a missing column.
    """
    named = [judges] if isinstance(judges, str) else judges
    check(named)
    if missing := [name for name in COLUMNS if name not in responses]:
        raise StudyError(f"Responses to judge need a column {', '.join(missing)}; found are {', '.join(responses)}.")
    decide = {name: partial(judge_of(name), **(options or {}).get(name, {})) for name in named}
    return pd.concat([_judged(responses, name, by) for name, by in decide.items()], ignore_index=True)


def _judged(responses: pd.DataFrame, judge: str, decide: Judge) -> pd.DataFrame:
    rows = list(responses[["prompt", "response", "form", "stop_reason"]].itertuples(index=False, name=None))
    different = list(dict.fromkeys(rows))
    columns = [list(column) for column in zip(*different, strict=True)] or [[], [], [], []]
    verdicts = dict(zip(different, decide(*columns), strict=True))
    frame = pd.DataFrame([verdicts[row] for row in rows], columns=["verdict", "reason"], dtype="str")
    frame.insert(0, "judge", judge)
    frame.insert(0, "response_id", responses["response_id"].to_numpy())
    return frame
