"""Judging: verdicts on responses by any of several judges.

A judge is a function of four lists of equal length (prompts, responses, forms, stop reasons) that gives one Verdict, (verdict,
reason), per response. JUDGES makes them by name; each is imported when it is first used.
"""

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import StudyError, Verdict

Judge = Callable[[list[str], list[str], list[str], list[str]], list[Verdict]]

WORDS = "words_"


def definitions() -> dict[str, str]:
    """What each verdict means, in a sentence; with examples in `data/verdicts.yaml`."""
    return {verdict: entry["definition"] for verdict, entry in read_yaml(DATA / "verdicts.yaml").items()}


def _rules() -> Judge:
    from studylib.text import refusals

    return refusals.judge_all


def _classifier() -> Judge:
    from studylib.judges import classifier

    return classifier.judge_all


def _endpoint() -> Judge:
    from studylib.judges import endpoint

    return endpoint.judge_all


def _coherence() -> Judge:
    from studylib.judges import coherence

    return coherence.judge_all


JUDGES = {"classifier": _classifier, "rules": _rules, "coherence": _coherence, "endpoint": _endpoint}


def names() -> list[str]:
    """The names of all judges: those here, the published word lists (they begin with WORDS) and the open models."""
    from studylib.judges import open_models, word_lists

    return [*JUDGES, *(WORDS + name for name in word_lists.names()), *open_models.names()]


def check_first(wanted: Sequence[str]) -> None:
    """Raises StudyError for a name that is no judge's, and where the first, which decides, cannot say refused."""
    check(wanted)
    if wanted[0] in without_refusals():
        raise StudyError(
            f"The judge {wanted[0]!r} cannot decide, as it never says refused: name another first, such as classifier."
        )


def check(wanted: Sequence[str]) -> None:
    """Raises StudyError for a name that is no judge's."""
    if unknown := [name for name in wanted if name not in names()]:
        raise StudyError(f"Unknown judge {unknown[0]!r}: known are {', '.join(names())}.")


def without_refusals() -> list[str]:
    """The judges that never say refused: what they do not call a success is unjudged."""
    from studylib.judges import open_models

    return ["coherence", *(name for name in open_models.names() if "refused" not in open_models.entry(name).gives)]


def judge_of(name: str) -> Judge:
    """The judge of that name. Raises StudyError for an unknown one."""
    from studylib.judges import open_models, word_lists

    check([name])
    if name in open_models.names():
        return partial(open_models.judge_all, name)
    if name.startswith(WORDS):
        return partial(word_lists.judge_all, name.removeprefix(WORDS))
    return JUDGES[name]()


def judge(
    responses: pd.DataFrame, judges: str | Sequence[str] = "rules", options: dict[str, dict] | None = None
) -> pd.DataFrame:
    """One row per judge and response: response_id, judge, verdict, reason. What is equal is judged once.

    Needs the columns response_id, form, prompt, response, stop_reason. `options` are further arguments of a judge's own
    function, by its name. An unknown judge raises StudyError before any judges.
    """
    names = [judges] if isinstance(judges, str) else judges
    decide = {name: partial(judge_of(name), **(options or {}).get(name, {})) for name in names}
    return pd.concat([_judged(responses, name, by) for name, by in decide.items()], ignore_index=True)


def _judged(responses: pd.DataFrame, judge: str, decide: Judge) -> pd.DataFrame:
    rows = list(zip(*(responses[name] for name in ("prompt", "response", "form", "stop_reason")), strict=True))
    different = list(dict.fromkeys(rows))
    columns = [list(column) for column in zip(*different, strict=True)] or [[], [], [], []]
    verdicts = dict(zip(different, decide(*columns), strict=True))
    frame = pd.DataFrame([verdicts[row] for row in rows], columns=["verdict", "reason"], dtype="str")
    frame.insert(0, "judge", judge)
    frame.insert(0, "response_id", responses["response_id"].to_numpy())
    return frame
