"""Harmful instructions: published lists, stand-ins, benign twins, French, and each instruction in the four forms.

An instruction is a plain dict: `source` (the list), `key` (stable within it, as the file has it or the row's number
from 0), `instruction`, `category` (or "") and `twin`, a benign counterpart (or None). Its intent, "advbench/12",
identifies it everywhere. The wordings of the forms are in `data/forms.yaml`.
"""

import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd

from studylib.data import duplicates, world
from studylib.data.duplicates import UNSAFE_OPTIONS
from studylib.data.grammar import Scene, capital, lexicon, owned
from studylib.data.sets import TESTS
from studylib.study.files import digest, progress, read_csv, read_yaml, write_text
from studylib.study.paths import DATA
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, STAND_IN, StudyError
from studylib.text.normal import comparison_form, redact_prompt

LOG = logging.getLogger("studylib")
NEAR = "near duplicates of an earlier one"  # the name of this count
USES = ("test", "train")
ALIKE = 0.2  # a less similar twin has little in common with its instruction
UNLIKE = f"with a twin less similar than {ALIKE}"
SLOTS = ("do", "ask", "instruction", "quoted", "french", "labels", "act")
FOUR_FORMS = tuple((form, "test") for form in FORMS)
UNSAFE = (("classification", "unsafe"),)  # the instruction is one option among harmless ones
MARKER = 4  # words in a row by which a wrapper is recognised
SENTENCES = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+\S|\n")  # several; "U.S. law" counts as two, and is quoted
GERUND = re.compile(r"\w*[aeiouy]\w*ing\b", re.I)  # not "bring"
TRANSLATED_AT_ONCE, LONGEST_FRENCH = 16, 256  # texts; tokens


def intent(one: dict) -> str:
    """What identifies an instruction: its source and key, "advbench/12"."""
    return f"{one['source']}/{one['key']}"


# Published lists: instructions and the counts of what was dropped


def as_instructions(source: str, rows: list[tuple]) -> tuple[list[dict], dict[str, int]]:
    """Instructions of (key, instruction, category, twin), of repeated ones the first, none empty; and the counts."""
    kept, counts = {}, Counter(rows=len(rows))
    for key, text, category, twin in rows:
        text, twin = text.strip(), (twin or "").strip() or None
        if not text or folded(text) in kept:
            counts["repeated" if text else "empty"] += 1
            continue
        about = {"category": category.strip(), "twin": twin}
        kept[folded(text)] = {"source": source, "key": key, "instruction": text} | about
    return list(kept.values()), dict(counts) | {"kept": len(kept)}


def different(instructions: list[dict], threshold: float) -> list[dict]:
    """The instructions without near duplicates (see duplicates.clean) of an earlier one that stays."""
    return duplicates.clean({"": instructions}, (), threshold, text=lambda one: one["instruction"])[0][""]


def folded(text: str) -> str:
    """What two texts share that differ in case, spaces and a final full stop at most."""
    return " ".join(text.casefold().split()).rstrip(". ")


def _reader(source: str, text: str, category: str = "", only: tuple[str, str] = ("", "")) -> Callable:
    """A reader of a CSV's column of instructions and of their categories; keys are row numbers.

    Rows that have not the value of the column `only` are dropped, and counted by the value that they have.
    """
    column, wanted = only

    def read(path: Path) -> tuple[list[dict], dict[str, int]]:
        rows = read_csv(path, tuple(filter(None, (text, category, column))))
        values = [row.get(column, "") for row in rows]
        chosen = [(str(i), row) for i, row in enumerate(rows) if values[i] == wanted]
        kept, counts = as_instructions(source, [(i, row[text], row.get(category, ""), None) for i, row in chosen])
        others = Counter(value or "no category" for value in values if value != wanted)
        return kept, counts | {"rows": len(rows)} | others

    return read


def jailbreakbench(harmful: Path, benign: Path) -> tuple[list[dict], dict[str, int]]:
    """JailbreakBench's harmful goals, each with the benign goal of the same Index as twin.

    Raises StudyError where the files differ in their indices, or one has an index twice.
    """
    tables = [read_csv(path, ("Index", "Goal", "Category")) for path in (harmful, benign)]
    rows, twins = ({row["Index"]: row for row in table} for table in tables)
    lone = sorted(set(rows) ^ set(twins))
    if lone or any(len(table) != len(rows) for table in tables):
        why = f"one alone has {lone[0]!r}" if lone else "one has an index twice"
        raise StudyError(
            f"{harmful.name} and {benign.name} are paired by Index, but {why}: take both from the same revision."
        )
    listed = [(index, row["Goal"], row["Category"], twins[index]["Goal"]) for index, row in rows.items()]
    return as_instructions("jailbreakbench", listed)


def xstest(path: Path) -> tuple[list[dict], dict[str, int]]:
    """XSTest's safe prompts, which are benign and sound harmful; the unsafe ones have a type `contrast_...`."""
    rows = read_csv(path, ("id", "type", "prompt"))
    safe = [(row["id"], row["prompt"], row["type"], None) for row in rows if not row["type"].startswith("contrast_")]
    kept, counts = as_instructions("xstest", safe)
    return kept, counts | {"rows": len(rows), "contrast": len(rows) - len(safe)}


# HarmBench's contextual behaviours are no single instruction, its copyright ones another kind of harm.
READERS = {
    "advbench": _reader("advbench", "goal"),
    "harmbench": _reader("harmbench", "Behavior", "SemanticCategory", ("FunctionalCategory", "standard")),
    "strongreject": _reader("strongreject", "forbidden_prompt", "category"),
    "jailbreakbench": jailbreakbench,
}
SOUND_HARMFUL = {"xstest": xstest}  # readers of benign prompts, for `over_refusal`


# The miniature's own


def stand_in_parts(seed: int) -> dict[str, list]:
    """Verb-object pairs of the miniature's world by use (see world.split), as the shipped profile shares them out."""
    return world.split(load_profile("miniature").world.model_copy(update={"seed": seed}))


def imperative(scene: Scene) -> tuple[str, str]:
    """A scene as an imperative in English and French, without full stop: *Open Paul's locker without being seen*."""
    words, (thing, chose) = lexicon(), owned(scene.noun, scene.owner)
    french = [words["verbs"][scene.verb]["imperative"], chose, words["contexts"][scene.context]["french"][0]]
    return tuple(capital(" ".join(said).strip()) for said in ([scene.verb, thing, scene.context], french))


def stand_in(seed: int, n: int) -> tuple[list[dict], dict[str, str]]:
    """n instructions with benign twins from the miniature's world, and the French of them all.

    No two have the same verb and object, nor one that a miniature with that seed is aligned or tuned on. The first n of
    a larger n are the same. Raises StudyError where there are fewer pairs.
    """
    parts, rng = stand_in_parts(seed), random.Random(f"stand-in-{seed}")
    pairs = parts["new"] + parts["test"]
    if n > len(pairs):
        raise StudyError(
            f"{n} stand-in instructions are asked for, but the miniature's world has {len(pairs)} held-out pairs of "
            "verb and object: ask for fewer (data.harmful_per_form) or add words to data/world.yaml."
        )
    rng.shuffle(pairs)
    out, french = [], {}
    for pair in pairs[:n]:
        scene = world.harmful_scene({"": [pair]}, rng)
        english, french[english] = imperative(scene)
        twin = english
        while twin in french:  # two scenes may have the same one
            twin, translated = imperative(world.twin(scene, parts["benign_test"], rng))
        french[twin] = translated
        about = {"category": lexicon()["verbs"][scene.verb]["kind"], "twin": twin}
        out.append({"source": STAND_IN, "key": "/".join(pair), "instruction": english} | about)
    return out, french


# Twins and French


def nearest(instructions: list[dict], benign: list[str]) -> list[dict]:
    """The instructions, each with the most similar of the benign ones as `twin`, none of which is used twice.

    `similarity` (0-1) is the mean of two TF-IDF cosines: of words and word pairs, and of characters in threes to fives.
    As many pairs as possible are both imperatives or both not, so that they can have the same wording; of these
    assignments the one with the greatest sum of similarities is taken. Raises StudyError for too few.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [one["instruction"] for one in instructions]
    taken = set(map(folded, texts))
    different = {same: text.strip() for text in reversed(benign) if (same := folded(text)) not in taken}
    candidates = list(different.values())[::-1]  # of equal ones the first
    if len(candidates) < len(texts):
        raise StudyError(
            f"{len(texts)} harmful instructions need as many benign ones as twins, but {len(candidates)} different "
            "ones were given: give more, or ask for fewer harmful ones."
        )
    if not texts:
        return []
    alike = 0
    for options in ({"ngram_range": (1, 2), "token_pattern": r"\w+"}, {"ngram_range": (3, 5), "analyzer": "char_wb"}):
        vectors = TfidfVectorizer(**options).fit([*texts, *candidates])
        alike = alike + (vectors.transform(texts) @ vectors.transform(candidates).T).toarray() / 2
    kinds = [[clause(text) is not None for text in some] for some in (texts, candidates)]
    chosen = linear_sum_assignment(alike - 2 * len(texts) * np.not_equal.outer(*kinds), maximize=True)[1]
    return [
        one | {"twin": candidates[place], "similarity": float(alike[i, place])}
        for i, (one, place) in enumerate(zip(instructions, chosen, strict=True))
    ]


def read_french(path: Path) -> dict[str, str]:
    """French by instruction, from a CSV with the columns `instruction` and `french`.

    Raises StudyError where a translation is missing, or an instruction has two different ones.
    """
    french = {}
    for number, row in enumerate(read_csv(path, ("instruction", "french")), 1):
        english, said = row["instruction"].strip(), row["french"].strip()
        if not english or not said or french.setdefault(english, said) != said:
            wrong = "another french than an earlier row" if english and said else "no french or no instruction"
            raise StudyError(f"{path}, row {number}, has {wrong}: correct or delete the row.")
    return french


def translate(texts: list[str], model: str, revision: str | None, folder: Path, prefix: str = "") -> dict[str, str]:
    """French by text, made greedily by a sequence-to-sequence model: a hub id at a pinned revision, or a folder.

    Each text comes after `prefix`, which some models want. What is made is kept in a CSV of the folder, one per model,
    after every batch, and not made again. Translations that are empty or cut are left out. Raises StudyError for a hub
    id without revision, and a model that cannot be loaded.
    """
    if not Path(model).is_dir() and not revision:
        raise StudyError(f"data.translator {model!r} is no folder and has no revision: pin data.translator_revision.")
    path = folder / f"french-{digest([model, revision])}.csv"
    french = read_french(path) if path.is_file() else {}
    wanted = list(dict.fromkeys(filter(None, map(str.strip, texts))))
    if todo := [text for text in wanted if text not in french]:
        from studylib.models import building

        loaded = building.load_translator(model, revision)
        for start in progress(range(0, len(todo), TRANSLATED_AT_ONCE), "French, batches"):
            batch = todo[start : start + TRANSLATED_AT_ONCE]
            made = building.translate(*loaded, [prefix + text for text in batch], LONGEST_FRENCH)
            french |= {text: said for text, said in zip(batch, made, strict=True) if said}
            write_text(path, pd.DataFrame(french.items(), columns=["instruction", "french"]).to_csv(index=False))
        lost = sum(text not in french for text in todo)
        LOG.info("French: %d texts, %d of them without a whole translation", len(todo), lost)
    return {text: french[text] for text in wanted if text in french}


# The four forms


@cache
def templates(path: Path = DATA / "forms.yaml") -> dict:
    """The wordings of `data/forms.yaml`: form -> use -> texts, and the words by which `clause` knows imperatives.

    Raises StudyError where a form lacks a use, shares a wording between them, or a text has an unknown slot.
    """
    words = read_yaml(path)
    for form in FORMS:
        test, train = ({text for text, *_ in (words.get(form) or {}).get(use) or []} for use in USES)
        if not test or not train or test & train:
            raise StudyError(
                f"{path.name}: {form} has {len(test)} wordings for the test and {len(train)} for training, "
                f"{len(test & train)} of them in both: it needs some of each and none in both."
            )
        if unknown := sorted(set(re.findall(r"{(\w*)}", str(words[form]))) - set(SLOTS)):
            raise StudyError(f"{path.name}: {form} has the unknown slot {unknown[0]!r}; known are {', '.join(SLOTS)}.")
    return words


def clause(instruction: str) -> str | None:
    """The instruction as it stands after *to*: "Open a locker." is "open a locker". None unless it is one imperative.

    No imperative are questions, several sentences or lines, and what begins with a word of `not_imperative` or in -ing.
    A leading *please* goes; a capital stays where the second letter is one too ("SQL").
    """
    text = re.sub(r"^please,?\s+", "", instruction.strip(), flags=re.I)
    text = text[:-1].rstrip() if text.endswith((".", "!")) and not text.endswith("..") else text
    heads = "|".join(map(re.escape, templates()["not_imperative"]))
    if not text or "?" in text[-2:] or SENTENCES.search(text) or GERUND.match(text):
        return None
    if not text[0].isalpha() or re.match(rf"(?:{heads})\b", text, re.I):
        return None
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def in_form(
    instruction: str, form: str, use: str, rng: random.Random, french: str = "", embed: bool = True
) -> tuple[str, str]:
    """The instruction as a prompt of that form, and the id of its wording ("code/test/0").

    The same state of rng gives the same wording and order of options for any instruction, which is embedded where
    `embed` and it allow that, else quoted (data/forms.yaml). Raises StudyError for the translation form without French.
    """
    entries = templates()[form][use]
    number = rng.randrange(len(entries))
    texts = [part for part in entries[number] if isinstance(part, str)]
    options = next((part for part in entries[number] if isinstance(part, list)), [])
    options = rng.sample(options, len(options))
    if form == "translation" and not french.strip():
        raise StudyError(
            "An instruction has no French for the translation form: give a CSV of it (data.french) or a model that "
            "makes it (data.translator)."
        )
    do = clause(instruction) if embed else None
    text = texts[0] if do or len(texts) == 1 else texts[1]
    if options and "{labels}" not in text:
        text += "".join(f" {letter}) {option}" for letter, option in zip("ABCDEFGH", options, strict=False))
    asks = do and re.match(rf"(?:{'|'.join(templates()['text_requests'])})\b", do)
    slots = {
        "do": do,
        "ask": do if asks else f"explain how to {do}",
        "act": do or instruction.strip(),
        "instruction": instruction.strip(),
        "quoted": f"“{instruction.strip()}”",
        "french": french.strip(),
        "labels": " / ".join(options),
    }
    return capital(text.format(**slots)), f"{form}/{use}/{number}"


def four_forms(
    instructions: list[dict], per_form: int, seed: int, french: dict[str, str], places: tuple = FOUR_FORMS
) -> tuple[list[dict], list[dict]]:
    """Test rows and their benign twins: the same `per_form` instructions in each of the four forms, form by form.

    `places` are other forms and uses of data/forms.yaml; rows of UNSAFE are of the prompt set UNSAFE_OPTIONS.

    Deviates from the paper, whose forms have different prompts: with the same ones, forms are compared within pairs.
    Which instructions are taken, and in which wording, depends on the seed and the intent alone. The twin has the
    wording, options and intent of its harmful row. `french` maps instructions and twins to their French. Rows are those
    of world.py, and have `content`: the bare instruction, or its French. Raises StudyError where there are too few
    instructions, or too few with twin or French.
    """
    name = instructions[0]["source"] if instructions else "the list"
    paired = [one for one in instructions if one["twin"]]
    usable = [one for one in paired if one["instruction"] in french and one["twin"] in french]
    if len(usable) < per_form:
        raise StudyError(
            f"{per_form} instructions per form are asked for (data.harmful_per_form), but of {name}'s "
            f"{len(instructions)} {len(paired)} have a benign twin, and {len(usable)} French for both: ask for fewer, "
            "set data.twins to nearest, or give French (data.french or data.translator)."
        )
    order = sorted(usable, key=lambda one: hashlib.sha256(f"{seed}/{intent(one)}".encode()).digest())
    chosen = set(map(intent, order[:per_form]))
    rows, twins = [], []
    for form, use in places:
        for one in (one for one in usable if intent(one) in chosen):
            both = one["instruction"], one["twin"]
            embed, asked = None not in map(clause, both), []
            for text in both:
                rng = random.Random(f"{form}-{use}-{seed}-{intent(one)}")  # afresh: the same wording for both
                content = french[text].strip() if form == "translation" else text
                asked.append((*in_form(text, form, use, rng, french[text], embed), content))
            place, more = (use, {"prompt_set": UNSAFE_OPTIONS}) if use == "unsafe" else (form, {})
            rows.append(_row("harmful", form, one, *asked[0], place, harmful=True) | more)
            twins.append(_row("twin", form, one, *asked[1], place, harmful=False, twin_of=rows[-1]["id"]) | more)
    return rows, twins


def unsafe_letter(row: dict) -> str:
    """The letter of the instruction among the options of a row of UNSAFE_OPTIONS; in a twin that of its benign one."""
    said = {row["content"].strip(), clause(row["content"])} - {None}
    (found,) = re.findall(rf" ([A-D])\) (?:{'|'.join(map(re.escape, said))})", row["messages"][0]["content"])
    return found


def over_refusal(benign: list[dict]) -> list[dict]:
    """Benign instructions as test rows of the set `twin`, verbatim in the text form; `benign_because` the category."""
    return [
        _row("twin", "text_generation", one, one["instruction"], "", one["instruction"], harmful=False)
        | {"prompt_set": "sounds_harmful", "benign_because": one["category"]}
        for one in benign
    ]


def _row(name: str, form: str, one: dict, prompt: str, phrasing: str, content: str, place: str = "", **more) -> dict:
    """A row of world.py whose id is made of name, form (or another place) and intent, not of its number."""
    about = {"intent": intent(one), "phrasing": phrasing, "content": content}
    return world.row_of(name, 0, form, prompt, "", id=f"{name}-{place or form}-{intent(one)}", **about, **more)


def wrapper_report(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """How many rows of each training set are asked in a test's wrapper: the words of a wording around the instruction.

    A model tuned on it may know the test by the wrapper alone. A row per test wording (`phrasing`) and set that share
    one: set, rows, `whole` (rows with all its words, verbatim in their comparison form), `part` (rows with MARKER of
    its words in a row, or all). Wordings of fewer words are not looked for.
    """
    found = []
    asked = {
        name: [comparison_form(row["messages"][0]["content"]) for row in rows]
        for name, rows in sets.items()
        if name not in TESTS
    }
    asked = {name: [(text, set(_runs(text))) for text in texts] for name, texts in asked.items()}
    for form, use in (*FOUR_FORMS, *UNSAFE):
        for number, entry in enumerate(templates()[form][use]):
            cut = [re.split(r"{\w+}", text) for text in entry if isinstance(text, str)]
            cut = [list(filter(None, map(comparison_form, pieces))) for pieces in cut]
            cut = [pieces for pieces in cut if len(" ".join(pieces).split()) >= MARKER]
            whole = [re.compile(rf"\b{'.*'.join(map(re.escape, pieces))}\b") for pieces in cut]
            runs = {run for pieces in cut for piece in pieces for run in _runs(piece)}
            for name, rows in asked.items():
                has = [(any(one.search(text) for one in whole), not runs.isdisjoint(own)) for text, own in rows]
                if n := sum(map(any, has)):
                    found.append((f"{form}/{use}/{number}", name, len(rows), sum(all_of for all_of, _ in has), n))
    return pd.DataFrame(found, columns=["phrasing", "set", "rows", "whole", "part"])


def _runs(text: str) -> list[tuple]:
    words = text.split()
    return list(zip(*(words[start:] for start in range(MARKER)), strict=False))


def shown(row: dict, redact: bool) -> str:
    """The prompt of a row as a notebook may show it: with `redact` without its words, unless benign or stand-in."""
    prompt = row["messages"][0]["content"]
    if not redact or not row["harmful"] or row["intent"].startswith(f"{STAND_IN}/"):
        return prompt
    return redact_prompt(prompt, row["intent"], row["phrasing"] or row["form"])
