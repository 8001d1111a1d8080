"""A safety data set for others: harmful prompts with refusals in four forms, benign twins with answers, and its export.

A row has chat `messages` (user, assistant), `form`, `kind` (refusal or twin), `source`, `key` (stable within source,
form and kind), `intent`, `pair` (shared by a refusal and its twin) and `language` (fr in the translation form, else
en). `datasets.load_dataset` reads the written set, and a run takes it as its safety data (`safety.exported`).

A candidate for a row is a dict of a refusal with its `twin` (such a dict or None). `content` is
what is asked as it stands in the prompt, `english` the same in English.
"""

import argparse
import hashlib
import json
import random
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from studylib.data import duplicates, fetching, harmful, real, safety, sets, tasks, world
from studylib.data.duplicates import THRESHOLD
from studylib.data.grammar import Scene, lexicon, phrasings, refusal, request
from studylib.data.harmful import ALIKE, NEAR, UNLIKE, read_french
from studylib.data.safety import CARD_KEY, EXPORTED, KINDS
from studylib.study.files import write_text
from studylib.study.paths import DATA, RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, STAND_IN, StudyError
from studylib.text.normal import comparison_form, languages
from studylib.text.refusals import judge_rules

PER_FORM = 500  # MultiTaskBench's refusals per form (the paper)
DRAWN = 3  # candidates drawn from the miniature's world for each that is asked for, as near duplicates go
BENIGN = "instruction_data"  # where instructions without a twin get one

# The words of the counts.
NO_FRENCH, SHORT, LEFT_OVER = "without French", "fewer than asked for", "left over"
TESTED, TESTED_INTENT = "like a test prompt", "with an intent of the test"
AGAINST = "test prompts compared with"
NO_TWIN = "refusals without a twin"


def build(
    source: str = STAND_IN,
    per_form: int = PER_FORM,
    twins: bool = True,
    seed: int = 0,
    exclude: Iterable[str] = (),
    exclude_intents: Collection[str] = (),
    forms: tuple[str, ...] = FORMS,
    french: Path | None = None,
) -> tuple[list[dict], dict[str, int]]:
    """The rows in random order, and the counts of what was read, dropped and why, and kept (by kind and form).

    `source` is stand_in, a registered list (harmful.READERS) or safety set (real.SAFETY), or the path of a file of
    one's own (`safety.read_own`). Of every form come `per_form` refusals and, with `twins`, the benign twins that have
    an answer. Deviates from MultiTaskBench, which has no twins.

    - stand_in: training requests of the miniature's world, on pairs of verb and object that its harmful test does not
      have, whatever `seed`; a twin has the same wording and the grammar's answer.
    - lists: the same instructions in every form, in training wordings of data/forms.yaml. French is the file's own or
      from the CSV `french`. A list's own twin is answered in the translation form (by itself in English), and in the
      text form where the file has a `twin_answer`. An instruction without one gets, in the text form, the nearest row
      of the data set BENIGN. Other twins have no answer: they are left out and counted.
    - safety sets: rows as published, without twins. Fewer than `per_form` are counted, not refused.

    Dropped and counted are near duplicates within a form, what is like a test prompt in `exclude` (by what is asked or
    by the whole), or has an intent of `exclude_intents`; a refusal takes its twin along. Refusals are suited to the
    form, and French where the wording is.

    Raises StudyError for a source that is not known, settings that make no sense, and where nothing is left or (save
    for safety sets) fewer than `per_form` in a form; fetching.Absent where the source cannot be had.
    """
    if per_form < 1:
        raise StudyError(f"per_form is {per_form}: give how many refusals each form shall have, 1 or more.")
    if not forms or not set(forms) <= set(FORMS) or len(set(forms)) < len(forms):
        raise StudyError(f"forms are {', '.join(forms) or 'none'}: give one or more of {', '.join(FORMS)}, each once.")
    exclude, intents = list(exclude), {one.removeprefix(f"{STAND_IN}/") for one in exclude_intents}
    if source == STAND_IN:
        split = harmful.stand_in_parts(load_profile("miniature").world.seed)
        intents |= {"/".join(pair) for pair in split["new"] + split["test"]}
        pairs = _of_the_world(split, per_form, seed, forms)
        counts, fixed = Counter(drawn=len(pairs)), False
    elif source in real.SAFETY:
        rows, read = real.SAFETY[source](fetching.fetch(source))
        pairs, counts, fixed = _as_published(rows), Counter(read), True
    else:
        pairs, counts, fixed = _of_a_list(source, seed, forms, french, twins)
    # under the templates of the lists different instructions make similar prompts, in a small list above all
    parts = ("content", "prompt") if source == STAND_IN else ("content",)
    pairs = _different(_untested(pairs, exclude, intents, counts), parts, counts)
    if not twins:
        pairs = [pair | {"twin": None} for pair in pairs]
    chosen, counts[AGAINST] = [], len(exclude)
    for form in forms:
        there = sorted((pair for pair in pairs if pair["form"] == form), key=lambda pair: pair["twin"] is None)
        if len(there) < per_form and not fixed:
            remedy = "ask for fewer (per_form) or give more instructions"
            if form == "translation" and counts[NO_FRENCH]:
                remedy = "give French (a column `french`, or a CSV of it), or leave this form out (forms)"
            raise StudyError(
                f"{per_form} refusals per form are asked for, but {source} has {len(there)} different ones for the "
                f"form {form}: {remedy}."
            )
        counts[SHORT] += max(0, per_form - len(there))
        counts[LEFT_OVER] += max(0, len(there) - per_form)
        chosen += there[:per_form]
    if not chosen:
        raise StudyError(f"Of {source} nothing is left ({dict(counts)}): give another source, or exclude less.")
    counts[NO_TWIN] = sum(twins and not pair["twin"] for pair in chosen)
    counts[UNLIKE] = sum((pair["twin"] or {}).get("similarity", 1) < ALIKE for pair in chosen)
    rows = [_row(pair, kind) for pair in chosen for kind in KINDS if kind == "refusal" or pair["twin"]]
    random.Random(f"safety-dataset-{seed}").shuffle(rows)
    made = Counter((row["kind"], row["form"]) for row in rows)
    by_form = {f"{kind} {form}": made[kind, form] for kind in KINDS for form in forms if twins or kind == "refusal"}
    return rows, {what: n for what, n in counts.items() if n} | by_form


def _row(pair: dict, kind: str) -> dict:
    one = pair["twin"] if kind == "twin" else pair
    messages = [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["answer"]}]
    about = {"form": pair["form"], "kind": kind, "source": one["source"], "key": one["key"], "intent": one["intent"]}
    joined = f"{pair['source']}/{pair['form']}/{pair['key']}"
    return {"messages": messages, **about, "pair": joined, "language": "fr" if pair["form"] == "translation" else "en"}


# Candidates


def _candidate(form: str, source: str, key: str, intent: str, asked: tuple[str, str, str], answer: str) -> dict:
    names = ("form", "source", "key", "intent", "prompt", "content", "english", "answer", "twin")
    return dict(zip(names, (form, source, key, intent, *asked, answer, None), strict=True))


def _of_the_world(split: dict, per_form: int, seed: int, forms: tuple[str, ...]) -> list[dict]:
    """Candidates of the miniature's world, more than are needed; those of a form do not depend on the other forms."""
    sensitive, out = split["alignment"] + split["safety"], []

    def made(scene: Scene, form: str, key: str, wording: float) -> dict:
        rng = random.Random(wording)
        prompt, answer = request(scene, form, rng.choice(phrasings(form, "train")), split["known"], rng)
        said, intent = harmful.imperative(scene), f"{STAND_IN}/{scene.verb}/{scene.noun}"
        return _candidate(form, STAND_IN, key, intent, (prompt, said[form == "translation"], said[0]), answer)

    for form in forms:
        rng = random.Random(f"safety-dataset-{form}-{seed}")
        for number in range(DRAWN * per_form):
            scene, about = world.harmful_scene({"": sensitive}, rng), (form, str(number), rng.random())
            twin = made(world.twin(scene, split["benign_known"], rng), *about)  # in the same wording
            out.append(made(scene, *about) | {"answer": refusal(form, rng, suited=True), "twin": twin})
    return out


def _as_published(rows: list[dict]) -> list[dict]:
    """Candidates of a safety set, as the importers of safety.py made its rows: refusals as they are, without twins."""
    return [
        _candidate(row["form"], row["source"], row["key"], harmful.intent(row), (row["prompt"],) * 3, row["answer"])
        for row in rows
    ]


def _of_a_list(source: str, seed: int, forms: tuple, french: Path | None, twins: bool) -> tuple[list, Counter, bool]:
    """Candidates of a list or own file in an order that the seed draws, the counts, and whether it is a safety set."""
    if french and not Path(french).is_file():
        raise StudyError(f"There is no file {french} with French: give a CSV with the columns instruction, french.")
    said, answers = read_french(Path(french)) if french else {}, {}
    if source in harmful.READERS:
        paths = [fetching.fetch(name) for name in real.LISTS.get(source, (source,))]
        listed, read = harmful.READERS[source](*paths)
    elif (path := Path(source).expanduser()).is_file():
        rows = safety.read_own(path)
        if any("response" in row for row in rows):
            return _own_safety_set(path.name, rows)
        items = [(str(i), row["instruction"], "", row.get("twin")) for i, row in enumerate(rows)]
        listed, read = harmful.as_instructions(path.name, items)
        for number, row in enumerate(rows):
            spoken = (row["instruction"], row.get("french")), (row.get("twin"), row.get("twin_french"))
            said |= {text.strip(): other.strip() for text, other in spoken if text and (other or "").strip()}
            answers[str(number)] = row.get("twin_answer", "").strip()
    else:
        known = ", ".join((STAND_IN, *harmful.READERS, *real.SAFETY))
        raise StudyError(f"There is no source {source!r}: give one of {known}, or the path of a .csv, .jsonl or .txt.")
    different = harmful.different(listed, THRESHOLD)
    counts = Counter(read) + Counter({NEAR: len(listed) - len(different)})
    order = sorted(different, key=lambda one: hashlib.sha256(f"{seed}/{harmful.intent(one)}".encode()).digest())
    near, out = _nearest(order, seed) if twins else {}, []
    for form in forms:
        spoken = [one for one in order if form != "translation" or one["instruction"] in said]
        counts[NO_FRENCH] += len(order) - len(spoken)
        out += [_in_form(one, form, seed, said, answers.get(one["key"], ""), near) for one in spoken]
    return out, counts, False


def _nearest(listed: list[dict], seed: int) -> dict[str, dict]:
    """The most similar benign text row by intent, for instructions without a twin; half as many as there are rows."""
    lone = [one for one in listed if not one["twin"]]
    if not lone:
        return {}
    rows, _ = tasks.load(BENIGN, 2 * len(lone), seed)
    by_prompt = {row["prompt"].strip(): row for row in reversed(rows) if row["form"] == "text_generation"}
    found = harmful.nearest(lone[: len(by_prompt) // 2], list(by_prompt))
    return {harmful.intent(one): by_prompt[one["twin"]] | {"similarity": one["similarity"]} for one in found}


def _in_form(one: dict, form: str, seed: int, french: dict[str, str], answer: str, near: dict[str, dict]) -> dict:
    """The candidate of an instruction in a form; `answer` to its own twin in the text form, "" where there is none."""
    intent, twin = harmful.intent(one), one["twin"]
    embed = None not in map(harmful.clause, filter(None, (one["instruction"], twin)))

    def asked(text: str, rng: random.Random) -> tuple[tuple[str, str, str], str]:
        said = french[text] if form == "translation" else ""
        prompt, phrasing = harmful.in_form(text, form, "train", rng, said, embed)
        return (prompt, said or text, text), phrasing

    rng, again = (random.Random(f"{form}-train-{seed}-{intent}") for _ in range(2))  # the same wording for both
    mine, phrasing = asked(one["instruction"], rng)
    about = form, one["source"], one["key"], intent
    made = _candidate(*about, mine, _refusal(form, phrasing, rng))
    row, paired = near.get(intent), None
    if twin:
        answer = {"text_generation": answer, "translation": twin if twin in french else ""}.get(form, "")
        paired = _candidate(*about, asked(twin, again)[0], answer) if answer else None
    elif row and form == "text_generation":
        about = form, row["source"], row["key"], harmful.intent(row)
        paired = _candidate(*about, (row["prompt"], row["content"], row["content"]), row["answer"])
        paired["similarity"] = row["similarity"]
    if paired and judge_rules(paired["prompt"], paired["answer"], form, "eos")[0] == "refused":
        paired = None
    return made | {"twin": paired}


def _refusal(form: str, phrasing: str, rng: random.Random) -> str:
    """A refusal suited to the form, in French where the wording is."""
    wording = harmful.templates()[form]["train"][int(phrasing.rpartition("/")[2])][0]
    if "french" not in languages(wording.replace("{french}", "")):
        return refusal(form, rng, suited=True)
    return rng.choice([said for said in lexicon()["refusals"][form] if "french" in languages(said)])


def _own_safety_set(name: str, rows: list[dict]) -> tuple[list[dict], Counter, bool]:
    items = []
    for number, row in enumerate(rows):
        form = row.get("form") or "text_generation"
        if form not in FORMS:
            raise StudyError(f"Row {number} of {name} has the form {form!r}: known are {', '.join(FORMS)}.")
        items.append((str(number), form, row["instruction"], row.get("response", "")))
    kept, counts = safety.kept(name, items, safety.DROPPED)
    return _as_published(kept), Counter(counts), True


# What is dropped


def _untested(pairs: list[dict], exclude: list[str], intents: set[str], counts: Counter) -> list[dict]:
    """The candidates that are no test's; without their twin where that is a test's."""

    def why(rows: list[dict]) -> list[str]:
        parts = [duplicates.like([row[part] for row in rows], exclude) for part in ("prompt", "content", "english")]
        plain = [row["intent"].removeprefix(f"{STAND_IN}/") for row in rows]  # as the generated world writes them
        like = map(any, zip(*parts, strict=True))
        return [TESTED_INTENT if one in intents else TESTED * tested for one, tested in zip(plain, like, strict=True)]

    reasons = why(pairs)
    counts.update(filter(None, reasons))
    fresh = [pair for pair, reason in zip(pairs, reasons, strict=True) if not reason]
    paired = [pair["twin"] for pair in fresh if pair["twin"]]
    gone = {id(twin) for twin, reason in zip(paired, why(paired), strict=True) if reason}
    return [pair | {"twin": None} if id(pair["twin"]) in gone else pair for pair in fresh]


def _different(pairs: list[dict], parts: tuple[str, ...], counts: Counter) -> list[dict]:
    """The candidates without repetitions within a form; a twin goes alone, also where it has a refusal's words."""
    kept = _without_repetitions(pairs, parts)
    counts[NEAR] += len(pairs) - len(kept)
    refused = {(pair["form"], comparison_form(pair["prompt"])) for pair in kept}
    single = set(map(id, _without_repetitions([pair["twin"] for pair in kept if pair["twin"]], parts)))
    for place, pair in enumerate(kept):
        twin = pair["twin"]
        if twin and (id(twin) not in single or (pair["form"], comparison_form(twin["prompt"])) in refused):
            kept[place] = pair | {"twin": None}
    return kept


def _without_repetitions(rows: list[dict], parts: tuple[str, ...]) -> list[dict]:
    for part in parts:
        rows = duplicates.clean({"rows": rows}, tests=(), text=lambda row, part=part: row[part])[0]["rows"]
    return rows


def tests_of(profile_name: str) -> tuple[list[str], set[str]]:
    """`exclude` and `exclude_intents` for `build`, of that profile's test prompts, with and without template."""
    rows = sets.evaluation_rows(RunPaths.of(load_profile(profile_name).name))
    texts = [text for row in rows for text in (row["messages"][0]["content"], duplicates.content(row))]
    return list(dict.fromkeys(texts)), {row["intent"] for row in rows if row["harmful"]}


# The export


def write(
    rows: list[dict],
    counts: dict[str, int],
    folder: Path,
    name: str,
    local: bool = False,
    licence: str | None = None,
    command: str = "",
) -> Path:
    """The path of `data/train.jsonl` in a new folder, written with a card by which `load_dataset(folder)` finds it.

    `name` is the card's title, `licence` that of a file of one's own, `command` how the set was made. With `local` a
    set is written that may not be passed on; its card says so. Raises StudyError for a folder that is not empty and,
    unless `local`, where a licence is not given or does not let anyone pass the source on.
    """
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise StudyError(f"{folder} is there and no empty folder: name a new folder for the data set.")
    origins = [one for source in sorted({row["source"] for row in rows}) for one in real.origin(source, licence)]
    closed = [f"{one['source']} ({one['licence']})" for one in origins if not one["redistributable"]]
    if closed and not local:
        raise StudyError(
            f"The licence of {', '.join(closed)} does not let anyone pass it on: the set can be built and used on this "
            "machine (--local), but not exported. The licence of a file of your own is given with --licence."
        )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / EXPORTED, text)
    card = _card(rows, text.encode(), name, origins, closed, folder=folder.name, counts=counts, command=command)
    write_text(folder / "README.md", card)
    return folder / EXPORTED


def _card(rows: list[dict], raw: bytes, name: str, origins: list[dict], closed: list[str], **more) -> str:
    """The card that `data/cards/safety.md` makes of the rows, whose file is `raw`."""
    from huggingface_hub import DatasetCard, DatasetCardData

    made = Counter((form, row["kind"]) for row in rows for form in (row["form"], "all"))
    named = {row["source"] for row in rows}
    about = {"rows": len(rows), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    front = DatasetCardData(
        pretty_name=name,
        license="apache-2.0" if named == {STAND_IN} else "other",
        language=sorted({"en", *(row["language"] for row in rows)}),
        task_categories=["text-generation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": EXPORTED}]}],
        **{CARD_KEY: about | {"origins": origins}},  # read by safety.exported_card
    )
    first = next(row for row in rows if row["kind"] == "refusal")
    example = json.dumps(first, ensure_ascii=False) if named == {STAND_IN} else ""
    how = "world" if STAND_IN in named else "published"
    about |= {"forms": [form for form in FORMS if any(row["form"] == form for row in rows)], "file": EXPORTED}
    about |= {"kinds": [kind for kind in KINDS if made["all", kind]], "made": made, "example": example}
    about |= {"how": how if named <= {STAND_IN, *real.SAFETY} else "list", "threshold": THRESHOLD}
    path = str(DATA / "cards" / "safety.md")
    return f"{DatasetCard.from_template(front, path, origins=origins, closed=closed, **about, **more)}\n"


def main(arguments: list[str] | None = None) -> None:
    """`python -m studylib.data.safety_builder --to FOLDER`; errors are one sentence and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="studylib.data.safety_builder", description=main.__doc__)
    option = parser.add_argument
    option("--source", default=STAND_IN, help="stand_in, a registered list or safety set, or a file of your own")
    option("--per-form", type=int, default=PER_FORM, help="refusals of each form (%(default)s)")
    option("--to", required=True, type=Path, help="a new folder")
    option("--forms", nargs="+", default=FORMS, help="some of the four forms alone")
    option("--no-twins", action="store_true", help="refusals alone")
    option("--seed", type=int, default=0)
    option("--exclude-run", metavar="PROFILE", help="leave out what is in the tests of that profile's run")
    option("--french", type=Path, help="a CSV with the columns instruction, french")
    option("--licence", help="of a file of your own, if it may be passed on")
    option("--local", action="store_true", help="write what may not be passed on, for this machine")
    given = parser.parse_args(arguments)
    words = [Path(word).name if "/" in word else word for word in arguments]  # no folder of this machine
    command = shlex.join(["python", "-m", "studylib.data.safety_builder", *words])
    title = f"Refusals{'' if given.no_twins else ' and benign twins'}: {Path(given.source).name}"
    try:
        texts, intents = tests_of(given.exclude_run) if given.exclude_run else ([], set())
        drawn = given.source, given.per_form, not given.no_twins, given.seed
        rows, counts = build(*drawn, texts, intents, tuple(given.forms), given.french)
        path = write(rows, counts, given.to, title, given.local, given.licence, command)
    except StudyError as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"{n:>8} {what}" for what, n in counts.items()))
    print(f"{path}: {len(rows)} rows; datasets.load_dataset({str(given.to)!r}) reads them")


if __name__ == "__main__":
    main()
