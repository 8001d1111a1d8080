"""Candidates for a safety data set: refusals with their benign twins, of the miniature's world, of lists, of own files.

A candidate is a dict of a refusal with its `twin` (such a dict or None), or why it `lacks` one. `content` is what is
asked as it stands in the prompt, `english` the same in English.
"""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

from studylib.data import fetching, harmful, instructions, real, safety, tasks, world
from studylib.data.duplicates import THRESHOLD
from studylib.data.french import read_french
from studylib.data.grammar import Scene, lexicon, phrasings, refusal, request
from studylib.data.instructions import NEAR
from studylib.study.words import FORMS, STAND_IN, StudyError
from studylib.text.normal import languages
from studylib.text.refusals import judge_rules

SPARE = 3  # times the pairs asked for are drawn of the miniature's world, as near duplicates go
OWN_COLUMNS = ("instruction", "french", "twin", "twin_french", "twin_answer", "response", "form")

# The words of the counts: rows that are dropped, and refusals by why they have no twin.
NO_FRENCH = "without French"
NO_TWIN, NO_ANSWER, REFUSED_TWIN = "without a twin", "twin without an answer", "twin refused"
UNREAD_TWIN = "twin of a safety set, not taken"


def _candidate(form: str, source: str, key: str, intent: str, asked: tuple[str, str, str], answer: str) -> dict:
    about = {"form": form, "source": source, "key": key, "intent": intent, "answer": answer}
    return about | dict(zip(("prompt", "content", "english"), asked, strict=True)) | {"twin": None, "lacks": NO_TWIN}


def of_the_world(split: dict, per_form: int, seed: int, forms: tuple[str, ...]) -> list[dict]:
    """Candidates of the miniature's world, more than are needed; those of a form do not depend on the other forms."""
    sensitive, out = split["alignment"] + split["safety"], []

    def made(scene: Scene, form: str, key: str, wording: float) -> dict:
        rng = random.Random(wording)
        prompt, answer = request(scene, form, rng.choice(phrasings(form, "train")), split["known"], rng)
        said, intent = harmful.imperative(scene), f"{STAND_IN}/{scene.verb}/{scene.noun}"
        return _candidate(form, STAND_IN, key, intent, (prompt, said[form == "translation"], said[0]), answer)

    for form in forms:
        rng = random.Random(f"safety-dataset-{form}-{seed}")
        for number in range(SPARE * per_form):
            scene, about = world.harmful_scene({"": sensitive}, rng), (form, str(number), rng.random())
            twin = made(world.twin(scene, split["benign_known"], rng), *about)  # in the same wording
            refused = {"answer": refusal(form, rng, suited=True), "twin": twin, "lacks": ""}
            out.append(made(scene, *about) | refused)
    return out


def as_published(rows: list[dict]) -> list[dict]:
    """Candidates of a safety set, whose rows the importers of safety.py made: its refusals as they are, without twins."""
    return [
        _candidate(row["form"], row["source"], row["key"], harmful.intent(row), (row["prompt"],) * 3, row["answer"])
        for row in rows
    ]


def of_a_list(
    source: str, seed: int, forms: tuple[str, ...], french: Path | None, benign: str
) -> tuple[list[dict], Counter, bool]:
    """Candidates of a list or a file of one's own in an order that the seed draws, the counts, and whether they
    are a safety set as it is."""
    if french and not Path(french).is_file():
        raise StudyError(f"There is no file {french} with French: give a CSV with the columns instruction, french.")
    said, answers = read_french(Path(french)) if french else {}, {}
    if source in instructions.READERS:
        paths = [fetching.fetch(name) for name in real.LISTS.get(source, (source,))]
        listed, read = instructions.READERS[source](*paths)
    elif (path := Path(source).expanduser()).is_file():
        rows = read_own(path)
        if any("response" in row for row in rows):
            return _own_safety_set(path.name, rows)
        items = [(str(i), row["instruction"], "", row.get("twin")) for i, row in enumerate(rows)]
        listed, read = instructions.as_instructions(path.name, items)
        for number, row in enumerate(rows):
            spoken = (row["instruction"], row.get("french")), (row.get("twin"), row.get("twin_french"))
            said |= {text.strip(): other.strip() for text, other in spoken if text and other and other.strip()}
            answers[str(number)] = row.get("twin_answer", "").strip()
    else:
        known = ", ".join((STAND_IN, *instructions.READERS, *real.SAFETY))
        raise StudyError(f"There is no source {source!r}: give one of {known}, or the path of a .csv, .jsonl or .txt.")
    different = instructions.different(listed, THRESHOLD)
    counts = Counter(read) + Counter({NEAR: len(listed) - len(different)})
    order = sorted(different, key=lambda one: hashlib.sha256(f"{seed}/{harmful.intent(one)}".encode()).digest())
    near, out = _nearest(order, benign, seed) if benign else {}, []
    for form in forms:
        spoken = [one for one in order if form != "translation" or one["instruction"] in said]
        counts[NO_FRENCH] += len(order) - len(spoken)
        out += [_in_form(one, form, seed, said, answers.get(one["key"], ""), near) for one in spoken]
    return out, counts, False


def _nearest(listed: list[dict], benign: str, seed: int) -> dict[str, dict]:
    """The most similar benign text row by intent, for instructions without a twin; half as many as there are rows."""
    lone = [one for one in listed if not one["twin"]]
    if not lone:
        return {}
    rows, _ = tasks.load(benign, 2 * len(lone), seed)
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
    row = near.get(intent)
    if twin:
        answer = {"text_generation": answer, "translation": twin if twin in french else ""}.get(form, "")
        return made | _with_twin(_candidate(*about, asked(twin, again)[0], answer) if answer else None)
    if row and form == "text_generation":
        about = form, row["source"], row["key"], harmful.intent(row)
        twin = _candidate(*about, (row["prompt"], row["content"], row["content"]), row["answer"])
        return made | _with_twin(twin | {"similarity": row["similarity"]})
    return made | _with_twin(None) if row else made


def _with_twin(twin: dict | None) -> dict:
    """`twin` and `lacks` of a candidate: none where there is no answer, or the rules read it as a refusal."""
    if twin is None:
        return {"twin": None, "lacks": NO_ANSWER}
    refused = judge_rules(twin["prompt"], twin["answer"], twin["form"], "eos")[0] == "refused"
    return {"twin": None, "lacks": REFUSED_TWIN} if refused else {"twin": twin, "lacks": ""}


def _refusal(form: str, phrasing: str, rng: random.Random) -> str:
    """A refusal suited to the form, in French where the wording is."""
    wording = harmful.templates()[form]["train"][int(phrasing.rpartition("/")[2])][0]
    if "french" not in languages(wording.replace("{french}", "")):
        return refusal(form, rng, suited=True)
    return rng.choice([said for said in lexicon()["refusals"][form] if "french" in languages(said)])


# Files of one's own


def read_own(path: Path) -> list[dict[str, str]]:
    """The rows of a file of one's own: `instruction`, and what it has of the other OWN_COLUMNS; others are not read.

    CSV with a header, JSONL of objects, or TXT with an instruction a line (empty lines are skipped). `french` and
    `twin_french` are the French of instruction and benign `twin`, `twin_answer` the helpful answer to it in the text
    form. With the column `response` the file is a safety set: instructions as they are asked, in the form that `form`
    names (else text_generation), and their refusals; its twins are not taken, and counted. Raises StudyError for another
    kind of file, one without instructions, and a cell that is no text.
    """
    ending = path.suffix.lower()
    if ending not in (".csv", ".jsonl", ".txt"):
        raise StudyError(f"{path.name} is no .csv, .jsonl or .txt: save the instructions as one of these.")
    if ending == ".csv":
        rows = instructions.read_csv(path, ("instruction",))
    else:
        lines = enumerate(instructions.decoded(path).split("\n"), 1)  # not splitlines: texts may hold U+2028
        read = _own_row if ending == ".jsonl" else lambda line, where: {"instruction": line}
        rows = [read(line, f"{path.name}, line {number},") for number, line in lines if line.strip()]
    if not rows:
        raise StudyError(f"{path.name} has no instructions: write one a line.")
    return [{name: row[name] for name in OWN_COLUMNS if row.get(name) is not None} for row in rows]


def _own_row(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise StudyError(f"{where} is no JSON ({error}): write one object a line.") from None
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        raise StudyError(f"{where} has no text `instruction`: write one object with it a line.")
    if wrong := [name for name in OWN_COLUMNS if not isinstance(row.get(name), str | None)]:
        raise StudyError(f"{where} has a {wrong[0]!r} that is no text: write it in quotes, or leave it out.")
    return row


def _own_safety_set(name: str, rows: list[dict]) -> tuple[list[dict], Counter, bool]:
    items = []
    for number, row in enumerate(rows):
        form = row.get("form") or "text_generation"
        if form not in FORMS:
            raise StudyError(f"Row {number} of {name} has the form {form!r}: known are {', '.join(FORMS)}.")
        items.append((str(number), form, row["instruction"], row.get("response", "")))
    kept, counts = safety.kept(name, items, safety.DROPPED)
    pairs = as_published(kept)
    for pair in pairs:
        pair["lacks"] = UNREAD_TWIN if rows[int(pair["key"])].get("twin", "").strip() else NO_TWIN
    return pairs, Counter(counts), True
