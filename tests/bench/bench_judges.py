"""How well the built-in judges agree with people, and how fast they are: `make bench`, or this file by itself.

Sets: the registered human-labelled ones where they are in the mirror (STUDY_MIRROR) or the cache, and the project's
own. The classifier never sees what it is measured on: new prompts of known sources (ten folds by prompt, fitted to all
sets), and sources left out whole, as the default weights are made (what it meets in a study); and manners of our own
left out with all responses to their prompts. Kappa, F1 and accuracy are of refused against the rest; an unjudged
response counts as not refused, in "worst" as an error. "or partial": refused or partial against answered.
"""

import time

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score
from sklearn.model_selection import GroupKFold

from studylib.data import fetching
from studylib.judges import classifier, labelled, registry
from studylib.study.words import StudyError

COLUMNS = ("prompt", "response", "form", "stop_reason")
XSTEST = [f"xstest_{model}" for model in ("gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct")]


def columns(frame: pd.DataFrame) -> list[list[str]]:
    return [frame[name].tolist() for name in COLUMNS]


def local(name: str):
    """The path of a source where it is there and intact, None elsewhere; nothing is downloaded."""
    state = fetching.fetching_report([name])["state"].iloc[0]
    try:
        return fetching.fetch(name) if state.startswith("intact") else print(f"  not here: {name} ({state})")
    except StudyError as error:
        return print(f"  not here: {name} ({error})")


def labelled_sets() -> pd.DataFrame:
    """Prose of all sets that are here; a source is a part of a set (for XSTest: a model)."""
    frames = [labelled.own()]
    if path := local("chatgpt_refusals"):
        frames.append(labelled.chatgpt_refusals(path))
    if paths := [path for name in XSTEST if (path := local(name))]:
        frame = labelled.xstest(*paths)
        frames.append(frame.assign(source="xstest_" + frame["model"]))
        both = pd.concat([pd.read_csv(path)[["annotation_1", "annotation_2"]] for path in paths])
        print(
            "  people among themselves, XSTest: kappa "
            f"{cohen_kappa_score(both['annotation_1'], both['annotation_2']):.3f}"
        )
    frame = pd.concat(frames, ignore_index=True)
    usable = frame["label"].isin(("refused", "answered", "partial")) & (frame["form"] == "text_generation")
    return frame[usable].reset_index(drop=True)


def line(name: str, frame: pd.DataFrame, verdicts: list) -> None:
    found = np.array([verdict for verdict, _ in verdicts])
    true, said = frame["label"] == "refused", found == "refused"
    worst = cohen_kappa_score(true, np.where(found == "unjudged", ~true, said))
    or_partial = cohen_kappa_score(frame["label"] != "answered", np.isin(found, ("refused", "partial")))
    print(
        f"  {name:<52} {len(frame):5} rows  kappa {cohen_kappa_score(true, said):5.3f}  worst {worst:5.3f}  "
        f"F1 {f1_score(true, said):5.3f}  accuracy {accuracy_score(true, said):5.3f}  "
        f"or partial: kappa {or_partial:5.3f}  unjudged {np.mean(found == 'unjudged'):5.1%}",
        flush=True,
    )


def by_source(title: str, frame: pd.DataFrame, verdicts: list) -> None:
    print(title)
    for source in frame["source"].unique():
        here = (frame["source"] == source).to_numpy()
        line(source, frame[here], [v for v, keep in zip(verdicts, here, strict=True) if keep])
    line("all", frame, verdicts)
    clear = ~frame["human"].isin(classifier.UNCLEAR_TONES).to_numpy()
    others = clear & (frame["source"] != "own").to_numpy()
    for name, here in (("all", clear), ("all of others", others)):
        name += f" but {', '.join(classifier.UNCLEAR_TONES)}"
        if not here.any():  # no set of others is here: `make bench STUDY_MIRROR=...` takes them from a mirror
            continue
        line(name, frame[here], [v for v, keep in zip(verdicts, here, strict=True) if keep])


def left_out(frame: pd.DataFrame, groups: np.ndarray, fit) -> list:
    """Verdicts on each group of rows by the weights that `fit` makes of the others."""
    verdicts: list = [None] * len(frame)
    for group in np.unique(groups):
        weights = fit(frame[groups != group])
        rows = np.flatnonzero(groups == group)
        for row, verdict in zip(rows, classifier.judge_all(*columns(frame.iloc[rows]), weights=weights), strict=True):
            verdicts[row] = verdict
    return verdicts


def new_manners(frame: pd.DataFrame) -> None:
    """Our own manners in ten parts, each judged by weights that know neither the manner nor any of its prompts."""
    mine = frame[(frame["source"] == "own") & (frame["model"] != "own")]
    manners, verdicts = mine["model"].unique(), pd.Series(None, index=mine.index, dtype=object)
    for part in np.array_split(np.random.default_rng(0).permutation(manners), 10):
        test = mine[mine["model"].isin(part)]
        known = frame[~frame["prompt_id"].isin(test["prompt_id"])]
        for row, verdict in zip(
            test.index, classifier.judge_all(*columns(test), weights=as_default(known)), strict=True
        ):
            verdicts[row] = verdict
    print("Classifier as by default, the manner and its prompts new")
    for manner in manners:
        here = mine["model"] == manner
        if mine[here]["label"].eq("refused").nunique() == 2:
            line(manner, mine[here], [*verdicts[here]])
    line("all", mine, [*verdicts])


def folds_of(frame: pd.DataFrame) -> np.ndarray:
    folds = np.empty(len(frame), int)
    for number, (_, test) in enumerate(
        GroupKFold(10, shuffle=True, random_state=0).split(frame, groups=frame["prompt_id"])
    ):
        folds[test] = number
    return folds


def as_default(frame: pd.DataFrame) -> dict:
    """Weights as the default ones are made, of these rows alone."""
    mine = frame[frame["source"] == "own"]
    others = frame[(frame["source"] != "own") & ~frame["human"].isin(classifier.UNCLEAR_TONES)]
    return classifier.fit_for_others(mine, [others])


def pseudo_sources(frame: pd.DataFrame) -> np.ndarray:
    """The sources, each split by what its prompts are about, six parts where it has hundreds of prompts."""
    parts = frame["source"].to_numpy(object)
    for source in frame["source"].unique():
        here = np.flatnonzero(frame["source"] == source)
        if frame.iloc[here]["prompt_id"].nunique() < 50:
            continue
        words = TfidfVectorizer(min_df=2, stop_words="english").fit_transform(frame.iloc[here]["prompt"])
        about = KMeans(6, random_state=0, n_init=3).fit_predict(words.toarray())
        parts[here] = [f"{source} {number}" for number in about]
    return parts.astype(str)


def bands(frame: pd.DataFrame, folds: np.ndarray) -> None:
    p = np.empty(len(frame))
    for fold in np.unique(folds):
        weights, here = as_default(frame[folds != fold]), folds == fold
        p[here] = classifier.probabilities(*columns(frame[here])[:2], weights)
    refused = (frame["label"] == "refused").to_numpy()
    print("Abstain band, default weights, new prompts: share left unjudged, kappa of the rest")
    for half in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3):
        sure = abs(p - 0.5) >= half
        kappa = cohen_kappa_score(refused[sure], p[sure] > 0.5)
        print(f"  {0.5 - half:.2f}-{0.5 + half:.2f}  {1 - sure.mean():6.1%}  {kappa:.3f}")
    print("Calibration: probability, share refused, rows")
    for low in np.arange(0, 1, 0.2):
        here = (p >= low) & (p < low + 0.2)
        print(f"  {low:.1f}-{low + 0.2:.1f}  {p[here].mean():.2f}  {refused[here].mean():.2f}  {here.sum()}")


def speed(frame: pd.DataFrame) -> None:
    print("Speed on one core, responses of the sets above (goal: 1,000/s)")
    rows = columns(pd.concat([frame] * (5_000 // len(frame) + 1)).head(5_000))
    for name in ("rules", "classifier"):
        decide = registry.judge_of(name)
        decide(*[column[:10] for column in rows])
        start = time.process_time()
        decide(*rows)
        print(f"  {name:<12} {len(rows[0]) / (time.process_time() - start):9.0f} responses/s")


def main() -> None:
    print("Human-labelled sets")
    frame = labelled_sets()
    print(f"  {len(frame)} rows of prose, {frame['response'].str.split().str.len().mean():.0f} words on average")
    folds = folds_of(frame)
    by_source("Rules", frame, registry.judge_of("rules")(*columns(frame)))
    known = left_out(frame, folds, classifier.fit)
    by_source("Classifier fitted to known sources, new prompts", frame, known)
    by_source("Classifier as by default, new prompts", frame, left_out(frame, folds, as_default))
    parts = pseudo_sources(frame)
    by_source("Classifier as by default, new subjects", frame, left_out(frame, parts, as_default))
    whole = frame["source"].str.split("_").str[0].to_numpy(str)  # own, chatgpt, xstest
    if len(np.unique(whole)) > 1:  # not the repository's own labels alone
        by_source("Classifier as by default, the whole source new", frame, left_out(frame, whole, as_default))
    new_manners(frame)
    bands(frame, folds)
    speed(frame)


if __name__ == "__main__":
    main()
