"""The data sets of a study on real files: four benign tasks, general instructions, harmful prompts, safety data.

The same sets, rows and names as the generated world's (world.py, but no pre-training and alignment). What is not
available leaves empty sets and its reason. Only the harmful prompts are needed, as without them nothing is measured.
"""

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd

from studylib.data import duplicates, fetching, harmful, safety, tasks, world
from studylib.data.fetching import Absent
from studylib.data.sets import REAL_SETS, SAFETY_SETS, TESTS
from studylib.study.paths import places, users_own
from studylib.study.profile import DataSettings, Profile
from studylib.study.words import FORMS, STAND_IN, TASKS, StudyError

LOG = logging.getLogger("studylib")
SPARE = 2  # times the rows asked for are read from hub sets, as some are dropped
SAFETY = {"multitaskbench": safety.multitaskbench, "safety_tuned_llamas": safety.safety_tuned_llamas}
SAFETY_FORMS = {"safety_generic": ("text_generation",), "safety_multitask": FORMS}
# The register's names of lists that come in several files.
LISTS = {"jailbreakbench": ("jailbreakbench_harmful", "jailbreakbench_benign")}
FACTS = ("licence", "redistributable", "citation")


def _named(data: DataSettings) -> list[tuple[str, str, Collection[str]]]:
    """(setting, source, what may stand there) for every source that the settings name, but safety data."""
    benign = {*tasks.GROUPS, *tasks.READERS}
    return [
        *((f"tasks.{task}", name, benign) for task, name in data.tasks.items()),
        *((f"task_tests.{task}", name, benign) for task, name in data.task_tests.items()),
        ("general", data.general, benign),
        ("harmful", data.harmful, {STAND_IN, *harmful.READERS}),
        *([("over_refusal", data.over_refusal, harmful.SOUND_HARMFUL)] if data.over_refusal else []),
    ]


def used(data: DataSettings) -> list[str]:
    """Names in the register of all files and data sets that the settings name."""
    names = [name for _, name, _ in _named(data) if name != STAND_IN]
    names += [name for name in (data.safety_generic, data.safety_multitask) if name in SAFETY]
    return list(dict.fromkeys(part for name in names for part in _parts(name)))


def _parts(name: str) -> tuple[str, ...]:
    """The register's names of a source: several where it comes in several files."""
    return tasks.GROUPS.get(name, LISTS.get(name, (name,)))


def origin(source: str, licence: str | None = None) -> list[dict]:
    """Where rows are from, a dict for each file of a source: source, licence, redistributable, citation.

    What is neither registered nor stand-in is a file of one's own, under that licence.
    """
    known, found = fetching.register(), []
    for name in _parts(source):
        facts = licence or "not stated", bool(licence), "a file of one's own"
        if name == STAND_IN:
            facts = "Apache-2.0", True, "this study"
        elif name in known:
            facts = (getattr(known[name], fact) for fact in FACTS)
        found.append({"source": name, **dict(zip(FACTS, facts, strict=True))})
    return found


def origins(data: DataSettings, absent: Collection[str] = ()) -> dict[str, list[dict]]:
    """Where each set is from (see `origin`), without what is absent of it."""
    of = {f"train_{task}": name for task, name in data.tasks.items()}
    of |= {f"test_{task}": name for task, name in (data.tasks | data.task_tests).items()}
    of |= {"train_general": data.general, "general": data.general, "harmful": data.harmful, "twin": data.harmful}
    found = {name: origin(source) for name, source in of.items()}
    for place in SAFETY_FORMS:
        folder = _folder(getattr(data, place))
        found[place] = safety.exported_card(folder)["origins"] if folder else origin(getattr(data, place))
    found["safety_twins"] = found["safety_multitask"] if _folder(data.safety_multitask) else []
    if data.twins == "nearest":  # taken from the general instructions
        found["twin"] = found["harmful"] + found["general"]
    if data.over_refusal and "over_refusal" not in absent:
        found["twin"] = found["twin"] + origin(data.over_refusal)
    return found


def _folder(source: str) -> Path | None:
    """The folder of an exported safety set; None for other sources."""
    return None if source == STAND_IN or source in SAFETY else users_own(source, Path.is_dir)


def own_files(data: DataSettings) -> list[Path]:
    """The user's own files that the settings name, there or not: French, and exported safety sets."""
    folders = filter(None, (_folder(getattr(data, place)) for place in SAFETY_FORMS))
    french = [_french(data) or Path(data.french)] if data.french else []
    return [*(folder / safety.EXPORTED for folder in folders), *french]


def _french(data: DataSettings) -> Path | None:
    return users_own(data.french, Path.is_file)


def check_real(data: DataSettings) -> None:
    """Raises StudyError for a name that is in no register or does not fit its place, and a damaged safety folder."""
    for place, name, fitting in _named(data):
        if name not in fitting:
            raise StudyError(f"data.{place} is {name!r}: known there are {', '.join(sorted(fitting))}.")
    for place in SAFETY_FORMS:
        name = getattr(data, place)
        if folder := _folder(name):
            safety.exported_card(folder)
        elif name not in {STAND_IN, *SAFETY}:
            raise StudyError(
                f"data.{place} is {name!r}: known there are {', '.join(sorted({STAND_IN, *SAFETY}))}, and the path of "
                f"a folder that `python -m studylib.data.safety_builder` wrote; there is none at {_looked_for(name)}."
            )
    csv = "a CSV with the columns instruction, french"
    if data.harmful != STAND_IN and not (data.french or data.translator):
        raise StudyError(
            f"data.harmful {data.harmful} has no French for the translation form: give {csv} (data.french) or a model "
            "that makes it (data.translator)."
        )
    if data.french and not _french(data):
        raise StudyError(f"data.french: there is no file ({csv}) at {_looked_for(data.french)}.")


def _looked_for(name: str) -> str:
    return " or ".join(map(str, places(name)))


def read(data: DataSettings, folder: Path) -> tuple[dict[str, list[dict]], dict[str, str], pd.DataFrame]:
    """All sets by name, why empty ones are absent, and the importers' counts, a row per source and kind of row.

    Prompts that only sound harmful are in the set twin; why they are absent stands under `over_refusal`. Training sets
    are longer than asked for, as rows will be dropped (see `cut`). `folder` keeps French that is made here. Raises
    StudyError where the harmful prompts are absent, or a file is damaged.
    """
    check_real(data)
    sets: dict[str, list[dict]] = {}
    absent: dict[str, str] = {}
    counted: dict[str, dict] = {}

    def attempt(make: Callable, source: str, *names: str) -> None:
        try:
            sets.update(make(data, source, counted, *names))
        except Absent as error:
            LOG.info("%s: not run, %s", ", ".join(names), error)
            sets.update({name: [] for name in names})
            absent.update(dict.fromkeys(names, f"{source}: {error.reason}"))

    for task, source in {**data.tasks, "general": data.general}.items():
        train, test = f"train_{task}", f"test_{task}" if task in TASKS else "general"
        if tests := data.task_tests.get(task):
            attempt(_alone, source, train)
            attempt(_alone, tests, test)
        else:
            attempt(_task, source, train, test)
    for name in SAFETY_FORMS:
        attempt(_safety, getattr(data, name), name)
    if not sets.setdefault("safety_twins", []):
        absent["safety_twins"] = f"{data.safety_multitask}: it has no benign twins with answers"
    sets["harmful"], sets["twin"] = _harmful(data, sets.get("train_general", []), folder, counted, absent)
    if data.over_refusal:
        attempt(_sound_harmful, data.over_refusal, "over_refusal")
        sets["twin"] += sets["over_refusal"]  # after the others: of two that are alike the first stays
    rows = [(source, what, n) for source, counts in counted.items() for what, n in counts.items() if n]
    table = pd.DataFrame(rows, columns=["source", "what", "rows"])
    return {name: sets[name] for name in (*REAL_SETS, *TESTS)}, absent, table


def _task(data: DataSettings, source: str, counted: dict, train: str, test: str) -> dict[str, list[dict]]:
    n_test = data.task_test_rows if test != "general" else data.general_test_rows
    rows, counted[source] = tasks.load(source, SPARE * (data.task_rows + n_test), data.seed)
    parts = tasks.split(rows, n_test=n_test, seed=data.seed)
    return {name: [_row(name, one) for one in part] for name, part in zip((train, test), parts, strict=True)}


def _alone(data: DataSettings, source: str, counted: dict, name: str) -> dict[str, list[dict]]:
    """A training or test set from a source of its own; of a test set the rows that the seed draws."""
    test = name.startswith("test_")
    n = data.task_test_rows if test else SPARE * data.task_rows
    rows, counted[source] = tasks.load(source, n, data.seed)
    return {name: [_row(name, one) for one in (_sample(rows, n, data.seed) if test else rows)]}


def _row(name: str, one: dict) -> dict:
    """An importer's row as a row of a set, with its own text as `content`."""
    empty = {"intent": "", "phrasing": "", "twin_of": "", "tests": []}
    more = {key: one.get(key) or nothing for key, nothing in empty.items()}
    more |= {"id": f"{one['source']}/{one['key']}", "content": one.get("content") or one["prompt"]}
    return world.row_of(name, 0, one["form"], one["prompt"], one["answer"], harmful=name in SAFETY_FORMS, **more)


def _safety(data: DataSettings, source: str, counted: dict, name: str) -> dict[str, list[dict]]:
    """The safety set; of a folder in all forms the set safety_twins too."""
    made = {}
    if folder := _folder(source):
        found, counted[source] = safety.exported(folder)
        made[name] = [one for one in found["refusal"] if one["form"] in SAFETY_FORMS[name]]
        if lacking := [form for form in SAFETY_FORMS[name] if form not in {one["form"] for one in made[name]}]:
            raise StudyError(
                f"{folder} has no refusals in the form {lacking[0]}, as data.{name} needs: {safety.AGAIN}."
            )
        if name == "safety_multitask" and found["twin"]:
            made["safety_twins"] = found["twin"]
    elif source == STAND_IN:
        made[name] = safety.stand_in_safety(name.removeprefix("safety_"), data.safety_rows, data.seed)
    else:
        made[name], counted[source] = SAFETY[source](fetching.fetch(source))
    return {of: [_row(of, one) for one in some] for of, some in made.items()}


def _sound_harmful(data: DataSettings, source: str, counted: dict, name: str) -> dict[str, list[dict]]:
    listed, counted[source] = harmful.SOUND_HARMFUL[source](fetching.fetch(source))
    return {name: harmful.over_refusal(listed)}


def _harmful(
    data: DataSettings, general: list[dict], folder: Path, counted: dict, absent: dict[str, str]
) -> tuple[list[dict], list[dict]]:
    n = data.harmful_per_form
    if data.harmful == STAND_IN:
        listed, french = harmful.stand_in(data.seed, n)
        return _all_forms(listed, n, data.seed, french)
    read, counts = harmful.READERS[data.harmful](*map(fetching.fetch, _parts(data.harmful)))
    listed = harmful.different(read, data.near_duplicate)
    counts = counted[data.harmful] = counts | {harmful.NEAR: len(read) - len(listed)}
    if not data.french:  # twins are compared and French is made for twice as many as are needed, not for all
        listed = sorted(listed, key=lambda one: hashlib.sha256(f"{data.seed}\n{one['key']}".encode()).digest())
        counts["not drawn"] = max(0, len(listed) - SPARE * n)
        listed = listed[: SPARE * n]
    if data.twins == "nearest":
        if not general:
            raise StudyError(
                f"data.twins nearest takes them from {data.general}, which is not there ({absent['general']}): get it, "
                "or take another source for data.general."
            )
        listed = harmful.nearest(listed, [row["content"] for row in general])
        counts[harmful.UNLIKE] = sum(one["similarity"] < harmful.ALIKE for one in listed)
    if data.french:
        french = harmful.read_french(_french(data))
    else:
        texts = [text for one in listed for text in (one["instruction"], one["twin"]) if text]
        french = harmful.translate(
            texts, data.translator, data.translator_revision, folder, prefix=data.translator_prefix
        )
    usable = [one for one in listed if one["twin"] and {one["instruction"], one["twin"]} <= french.keys()]
    counts["without a twin, or French of both"] = len(listed) - len(usable)
    counts["left over"] = max(0, len(usable) - n)
    return _all_forms(listed, n, data.seed, french)


def _all_forms(*of) -> tuple[list[dict], list[dict]]:
    """`harmful.four_forms` of these, then the same instructions as options of which one is unsafe."""
    made = harmful.four_forms(*of), harmful.four_forms(*of, harmful.UNSAFE)
    return tuple(rows + options for rows, options in zip(*made, strict=True))


def cut(
    sets: dict[str, list[dict]], profile: Profile, lengths: Callable[[dict], int], seed: int
) -> tuple[dict[str, list[dict]], pd.DataFrame, pd.DataFrame]:
    """The sets without rows that are too long, contaminated or repeated, at their sizes; the counts; the dropped rows.

    `lengths(row)` is by how many tokens a row is longer than the models' context allows, 0 or less where it fits.
    Columns of the counts, a row per set: read, too_long, dropped (see duplicates.clean), tested (a safety row with an
    intent of the harmful test), unpaired (a harmful prompt or twin without the other, of safety_twins one without its
    refusal), incomplete (its intent lost a prompt in another form), left_over, kept. Raises StudyError where more than
    `too_long_share` of a training set or any test prompt is too long, and where no harmful prompt is left.
    """
    data, counts, fitting = profile.data, {}, {}
    for name, rows in sets.items():
        long = [row for row in rows if lengths(row) > 0]
        if long and (name in TESTS or len(long) > data.too_long_share * len(rows)):
            allowed = "none" if name in TESTS else f"{data.too_long_share:.0%}"
            raise StudyError(
                f"{len(long)} of {len(rows)} rows of {name} are too long for a model's context (allowed: {allowed}): "
                "raise the models' context or data.too_long_share, or take another source."
            )
        gone = {row["id"] for row in long}
        fitting[name] = [row for row in rows if row["id"] not in gone]
        counts[name] = {"read": len(rows), "too_long": len(long)}
    kept, dropped = duplicates.clean(fitting, tests=TESTS, threshold=data.near_duplicate)
    for name in kept:
        counts[name] |= {"dropped": len(fitting[name]) - len(kept[name]), "tested": 0, "unpaired": 0, "incomplete": 0}
    for name, lost in _without_their_others(fitting, kept).items():
        counts[name] |= Counter(lost.values())
        kept[name] = [row for row in kept[name] if row["id"] not in lost]
    for name, rows in kept.items():
        used = data.safety_rows if name.startswith("safety_") else data.task_rows
        kept[name] = rows if name in TESTS else _sample(rows, used, seed)
        counts[name] |= {"left_over": len(rows) - len(kept[name]), "kept": len(kept[name])}
    if not kept["harmful"]:
        said = ", ".join(f"{n} {what}" for what, n in counts["harmful"].items() if n)
        raise StudyError(
            f"No harmful prompt is left ({said}): take another list or more of it (data.harmful_per_form)."
        )
    return kept, pd.DataFrame.from_dict(counts, orient="index"), dropped


def _without_their_others(fitting: dict[str, list[dict]], kept: dict[str, list[dict]]) -> dict[str, dict[str, str]]:
    """By set and id, why a kept harmful prompt or twin goes: an intent stays in all its forms and with its twins; and
    why a safety row does: its intent is tested, or a twin's refusal went."""
    there = {name: {row["id"] for row in kept[name]} for name in ("harmful", "twin")}
    twinned = {row["twin_of"] for row in kept["twin"]}
    rows = [("harmful", row, row["id"] in twinned) for row in fitting["harmful"]]
    rows += [("twin", row, row["twin_of"] in there["harmful"]) for row in fitting["twin"] if row["twin_of"]]
    broken = {row["intent"] for name, row, paired in rows if not paired or row["id"] not in there[name]}
    lost: dict[str, dict[str, str]] = {name: {} for name in there}
    for name, row, paired in rows:
        if row["intent"] in broken and row["id"] in there[name]:
            lost[name][row["id"]] = "incomplete" if paired else "unpaired"
    tested = {row["intent"] for row in fitting["harmful"]}
    for name in SAFETY_SETS:
        lost[name] = {row["id"]: "tested" for row in kept[name] if row["intent"] in tested - {""}}
    there = {row["id"] for row in kept["safety_multitask"]} - set(lost["safety_multitask"])
    alone = {row["id"]: "unpaired" for row in kept["safety_twins"] if row["twin_of"] not in there}
    lost["safety_twins"] = alone | lost["safety_twins"]
    return lost


def emptied(counts: pd.DataFrame, absent: Collection[str]) -> dict[str, str]:
    """Why nothing is left of sets that were not absent before, by name; `counts` are those of `cut`."""
    found = {}
    for name, row in counts[(counts["kept"] == 0) & ~counts.index.isin(list(absent))].iterrows():
        lost = [f", {n} {what.replace('_', ' ')}" for what, n in row.items() if n and what not in ("read", "kept")]
        found[name] = f"none of the {row['read']} rows read of its source is left{''.join(lost)}"
        LOG.info("%s: not run, %s", name, found[name])
    return found


def _sample(rows: list[dict], n: int, seed: int) -> list[dict]:
    if len(rows) <= n:
        return rows
    chosen = sorted(random.Random(f"cut-{seed}").sample(range(len(rows)), n))
    return [rows[i] for i in chosen]
