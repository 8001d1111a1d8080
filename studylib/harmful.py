"""Harmful instructions: reading lists of them, benign twins, French, and the same instruction asked in the four forms.

An instruction is a plain dict: `source` (the list), `key` (stable within it, as the file has it or the row's number from 0),
`instruction`, `category` ("" where the list has none) and `twin`, a benign counterpart (None where there is none). Its intent,
"advbench/12", identifies it everywhere. Lists come as files that were fetched elsewhere; nothing of them is kept here or
shown. The wordings are in `data/forms.yaml`.
"""

import csv
import hashlib
import io
import logging
import random
import re
import time
from collections import Counter
from functools import cache
from pathlib import Path

from studylib import world
from studylib.config import FORMS, STAND_IN, StudyError, load_profile, read_yaml
from studylib.grammar import Scene, capital, lexicon, owned
from studylib.paths import DATA
from studylib.results import write_text

LOG = logging.getLogger("studylib")
USES = ("test", "train")
SLOTS = ("do", "ask", "instruction", "quoted", "french", "labels")
SENTENCES = re.compile(
    r"[.!?][\"'\u201d\u2019)\]]*\s+\S|\n"
)  # more than one; takes "U.S. law" for two, which is then quoted
GERUND = re.compile(r"\w*[aeiouy]\w*ing\b", re.I)  # not "bring"


# Lists


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as strings; cells may span lines, which then end in LF, whatever the file has.

    Nothing is taken for a missing value: "None" is a text. Raises StudyError where a column is missing, a row is longer or
    shorter than the header, or the file is no UTF-8 (a byte order mark is skipped).
    """
    reader = csv.DictReader(io.StringIO(decoded(path), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise StudyError(f"{path.name}, line {reader.line_num}, is no CSV ({error}): fetch the file again.") from None
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing:
        has = ", ".join(map(repr, reader.fieldnames or [])) or "no header at all"
        raise StudyError(
            f"{path.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} (it has {has}): "
            "it is another file, or another version of it, than was meant."
        )
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise StudyError(
                f"Row {number} of {path.name} has {'more' if None in row else 'fewer'} cells than the header's "
                f"{len(reader.fieldnames)}: the file is cut or not quoted as CSV is, fetch it again."
            )
    return [{name: re.sub(r"\r\n?", "\n", cell) for name, cell in row.items()} for row in rows]


def decoded(path: Path) -> str:
    """The file's text, without a byte order mark. Raises StudyError where it is no UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path.name} is no UTF-8 from byte {error.start} on: fetch it again.") from None


def as_instructions(source: str, rows: list[tuple]) -> tuple[list[dict], dict[str, int]]:
    """Instructions of (key, instruction, category, twin) without empty and repeated ones (the first stays), and how many
    there were of each."""
    kept, seen, counts = [], set(), Counter(rows=len(rows))
    for key, text, category, twin in rows:
        text = text.strip()
        if not text or _same(text) in seen:
            counts["repeated" if text else "empty"] += 1
            continue
        seen.add(_same(text))
        twin = (twin or "").strip() or None
        one = {"source": source, "key": key, "instruction": text, "category": category.strip(), "twin": twin}
        kept.append(one)
    return kept, dict(counts) | {"kept": len(kept)}


def advbench(path: Path) -> tuple[list[dict], dict[str, int]]:
    """AdvBench's instructions (column `goal`) and the counts of what was dropped; `target` is not read into anything."""
    rows = read_csv(path, ("goal", "target"))
    return as_instructions("advbench", [(str(i), row["goal"], "", None) for i, row in enumerate(rows)])


def harmbench(path: Path, functional: tuple[str, ...] = ("standard",)) -> tuple[list[dict], dict[str, int]]:
    """HarmBench's text behaviours of these functional categories, and the counts of what was dropped.

    Keys are row numbers, because a BehaviorID tells what is asked for and keys are shown. `contextual` behaviours come after their context, as HarmBench itself asks them; they and `copyright` ones are dropped
    by default, since the one is no single instruction and the other no harm of the same kind.
    """
    columns = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
    rows, others = [], Counter()
    for number, row in enumerate(read_csv(path, columns)):
        kind, context = row["FunctionalCategory"], row["ContextString"].strip()
        if kind in functional:
            text = f"{context}\n\n---\n\n{row['Behavior']}" if context else row["Behavior"]
            rows.append((str(number), text, row["SemanticCategory"], None))
        else:
            others[kind or "no category"] += 1
    kept, counts = as_instructions("harmbench", rows)
    return kept, counts | {"rows": len(rows) + others.total()} | dict(others)


def strongreject(path: Path) -> tuple[list[dict], dict[str, int]]:
    """StrongREJECT's forbidden prompts with their categories, and the counts of what was dropped."""
    rows = read_csv(path, ("category", "source", "forbidden_prompt"))
    listed = [(str(i), row["forbidden_prompt"], row["category"], None) for i, row in enumerate(rows)]
    return as_instructions("strongreject", listed)


def jailbreakbench(harmful: Path, benign: Path) -> tuple[list[dict], dict[str, int]]:
    """JailbreakBench's harmful goals, each with the benign goal of the same Index as twin, and the counts.

    `other category` counts pairs whose two categories differ. Raises StudyError where the files have not the same indices,
    or one has an index twice.
    """
    columns = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
    tables = [read_csv(path, columns) for path in (harmful, benign)]
    rows, twins = ({row["Index"]: row for row in table} for table in tables)
    lone = sorted(set(rows) ^ set(twins))
    if lone or any(len(table) != len(rows) for table in tables):
        raise StudyError(
            f"{harmful.name} and {benign.name} are paired by Index, but {f'one alone has {lone[0]!r}' if lone else 'one has an index twice'}"
            ": take both from the same revision."
        )
    listed = [(index, row["Goal"], row["Category"], twins[index]["Goal"]) for index, row in rows.items()]
    kept, counts = as_instructions("jailbreakbench", listed)
    return kept, counts | {"other category": sum(rows[i]["Category"] != twins[i]["Category"] for i in rows)}


def xstest(path: Path) -> tuple[list[dict], dict[str, int]]:
    """XSTest's safe prompts, which are benign and sound harmful, with their type as category, and the counts.

    Reads the prompts and the `model_completions`, which have the same prompts. Unsafe ones, whose type begins with
    `contrast_` (XSTest's readme), are dropped and counted. Candidates for `nearest`, or rows by `over_refusal`.
    """
    rows = read_csv(path, ("id", "type", "prompt"))
    safe = [(row["id"], row["prompt"], row["type"], None) for row in rows if not row["type"].startswith("contrast_")]
    kept, counts = as_instructions("xstest", safe)
    return kept, counts | {"rows": len(rows), "contrast": len(rows) - len(safe)}


def over_refusal(benign: list[dict]) -> list[dict]:
    """Benign instructions as test rows of the set `twin`, verbatim in the text form.

    Their `prompt_set` is sounds_harmful, as they are no twins: `twin_of` is empty, `benign_because` the category.
    """
    form, about = "text_generation", {"prompt_set": "sounds_harmful", "harmful": False}
    return [
        _row("twin", form, one, one["instruction"], "", one["instruction"], **about, benign_because=one["category"])
        for one in benign
    ]


READERS = {"advbench": advbench, "harmbench": harmbench, "strongreject": strongreject, "jailbreakbench": jailbreakbench}
SOUND_HARMFUL = {"xstest": xstest}  # readers of benign prompts, for `over_refusal`


# The miniature's own


def stand_in_parts(seed: int) -> dict[str, list]:
    """Verb-object pairs of the miniature's world by use (see world.split), as the shipped profile shares them out."""
    return world.split(load_profile("miniature").world.model_copy(update={"seed": seed}))


def imperative(scene: Scene) -> tuple[str, str]:
    """A scene as an imperative in English and French, without full stop: *Open Paul's locker without being seen*."""
    words, (thing, chose) = lexicon(), owned(scene.noun, scene.owner)
    french = [words["verbs"][scene.verb]["imperative"], chose, words["contexts"][scene.context]["french"][0]]
    return tuple(capital(" ".join(filter(None, said))) for said in ([scene.verb, thing, scene.context], french))


def stand_in(seed: int, n: int) -> tuple[list[dict], dict[str, str]]:
    """n instructions with benign twins from the miniature's world, and the French of them all.

    No two have the same verb and object, and none has a pair that the alignment or the safety data of a miniature with that
    seed have (world.split). The first n of a larger n are the same. Raises StudyError where there are fewer pairs.
    """
    parts, rng = stand_in_parts(seed), random.Random(f"stand-in-{seed}")
    pairs = parts["new"] + parts["test"]
    if n > len(pairs):
        raise StudyError(
            f"{n} stand-in instructions are asked for, but the miniature's world has {len(pairs)} held-out pairs of verb and "
            "object: ask for fewer (data.harmful_per_form) or add words to data/world.yaml."
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
        kind = lexicon()["verbs"][scene.verb]["kind"]
        one = {"source": STAND_IN, "key": "/".join(pair), "instruction": english, "category": kind, "twin": twin}
        out.append(one)
    return out, french


# Twins


def nearest(instructions: list[dict], benign: list[str]) -> list[dict]:
    """The instructions, each with the most similar of the benign ones as `twin`, none of which is used twice.

    Similar are words and word pairs, and characters in threes to fives within words: the mean of the two TF-IDF cosines
    (scikit-learn's conventions). The sum over all pairs is the greatest possible (scipy's linear_sum_assignment), after
    as many pairs as possible that are alike in being imperatives or not, so that they can have the same wording. Benign
    ones that equal an instruction are left out. `similarity` (0-1) is that mean: below about 0.2 a twin shares little
    more with its instruction than being one. Raises StudyError where there are too few.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [one["instruction"] for one in instructions]
    taken = set(map(_same, texts))
    candidates = list({same: text.strip() for text in reversed(benign) if (same := _same(text)) not in taken}.values())
    candidates.reverse()  # of equal ones the first
    if len(candidates) < len(texts):
        raise StudyError(
            f"{len(texts)} harmful instructions need as many benign ones as twins, but {len(candidates)} different ones were "
            "given: give more, or ask for fewer harmful ones."
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


def different(instructions: list[dict], threshold: float) -> list[dict]:
    """The instructions without near duplicates (see duplicates.pairs) of an earlier one that stays."""
    from studylib import duplicates

    gone: set[int] = set()
    found = duplicates.pairs([one["instruction"] for one in instructions], threshold=threshold)
    for earlier, later in sorted(zip(found["a"].tolist(), found["b"].tolist(), strict=True)):
        if earlier not in gone:
            gone.add(later)
    return [one for i, one in enumerate(instructions) if i not in gone]


def _same(text: str) -> str:
    """What two texts share that differ in case, spaces and a final full stop at most."""
    return " ".join(text.casefold().split()).rstrip(". ")


# French


def read_french(path: Path) -> dict[str, str]:
    """French by instruction, from a CSV with the columns `instruction` and `french`; other columns are not read.

    Raises StudyError where a column or a translation is missing, or an instruction has two different ones.
    """
    french = {}
    for number, row in enumerate(read_csv(path, ("instruction", "french"))):
        english, said = row["instruction"].strip(), row["french"].strip()
        if not english or not said:
            raise StudyError(
                f"Row {number} of {path.name} has no {'french' if english else 'instruction'}: fill it in or delete the row."
            )
        if french.setdefault(english, said) != said:
            raise StudyError(
                f"Row {number} of {path.name} gives an instruction of an earlier row another French: delete one of the two."
            )
    return french


def translate(
    texts: list[str],
    model: str,
    revision: str | None,
    path: Path,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    prefix: str = "",
) -> dict[str, str]:
    """French by text, made by a sequence-to-sequence model (a hub id at a pinned revision, or a folder) and kept in `path`.

    Greedy, without the randomness of sampling; each text after `prefix`, which some models want. The CSV, which `read_french`
    reads, is rewritten whole after every batch; texts that it has already are not translated again. Translations that are
    empty or reach max_new_tokens are not kept: they lack in what is returned, and a log line tells how many. Raises
    StudyError for a hub id without revision, a model that cannot be loaded, and a file of another model or revision.
    """
    if not Path(model).is_dir() and not revision:
        raise StudyError(
            f"data.translator {model!r} is no folder here and has no revision: pin data.translator_revision."
        )
    columns = ("instruction", "french", "model", "revision")
    origin = {"model": model, "revision": revision or ""}
    rows = read_csv(path, columns) if path.is_file() else []
    for row in rows:
        if {name: row[name] for name in origin} != origin:
            raise StudyError(
                f"{path} holds French of {row['model']} ({row['revision'] or 'no revision'}), not of {model} "
                f"({revision or 'no revision'}): delete it or give another path."
            )
    french = {row["instruction"]: row["french"] for row in rows}
    todo = [text for text in dict.fromkeys(text.strip() for text in texts) if text and text not in french]
    if todo:
        loaded = _load_translator(model, revision)
        started = shown = time.monotonic()
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            made = _translated(*loaded, [prefix + text for text in batch], max_new_tokens)
            french |= {text: said for text, said in zip(batch, made, strict=True) if said}
            out = io.StringIO()
            writer = csv.DictWriter(out, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({"instruction": text, "french": said} | origin for text, said in french.items())
            write_text(path, out.getvalue())
            done = start + len(batch)
            if (now := time.monotonic()) - shown > 10 and done < len(todo):
                shown, left = now, (now - started) / done * (len(todo) - done)
                LOG.info("French: %d of %d texts, %.0f s left", done, len(todo), left)
        lost = sum(text not in french for text in todo)
        LOG.info("French: %d texts, %d of them without a whole translation", len(todo), lost)
    return {text: french[text] for text in map(str.strip, texts) if text in french}


def _load_translator(model: str, revision: str | None) -> tuple:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    pinned = {} if Path(model).is_dir() else {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **pinned)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(model, use_safetensors=True, dtype=torch.float32, **pinned)
    except (ImportError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StudyError(f"The translator {model} cannot be loaded: {first}") from None
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _translated(model, tokenizer, texts: list[str], max_new_tokens: int) -> list[str]:
    """The translations of one batch; empty where one is cut."""
    import torch

    encoded = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    ends, made = model.generation_config.eos_token_id, []
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    for ids in out[:, 1:].tolist():  # the first token starts the decoder
        length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        whole = length < max_new_tokens  # some models end by force at the last place
        made.append(tokenizer.decode(ids[:length], skip_special_tokens=True).strip() if whole else "")
    return made


# The four forms


@cache
def templates(path: Path = DATA / "forms.yaml") -> dict:
    """The wordings of `data/forms.yaml`: form -> use -> texts, and the words that tell imperatives from the rest.

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
        for text in (text for use in USES for entry in words[form][use] for text in entry if isinstance(text, str)):
            unknown = set(re.findall(r"{(.*?)}", text)) - set(SLOTS)
            if unknown:
                raise StudyError(
                    f"{path.name}: {form} has the unknown slot {sorted(unknown)[0]!r}; known are {', '.join(SLOTS)}."
                )
    return words


def clause(instruction: str) -> str | None:
    """The instruction as it stands after *to*: "Open a locker." is "open a locker". None where it is no single imperative.

    That are questions, more than one sentence or line, and what begins with a word of `not_imperative` or in -ing. A
    leading *please* goes; a capital stays where the second letter is one too ("SQL").
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

    The same state of rng gives the same wording and order of options for any instruction. It is embedded where `embed` and
    the instruction allow it, and quoted otherwise (data/forms.yaml). Raises StudyError for the translation form without
    French.
    """
    entries = templates()[form][use]
    number = rng.randrange(len(entries))
    texts = [part for part in entries[number] if isinstance(part, str)]
    options = next((part for part in entries[number] if isinstance(part, list)), [])
    options = rng.sample(options, len(options))
    if form == "translation" and not french.strip():
        raise StudyError(
            "An instruction has no French for the translation form: give a CSV of it (data.french) or a model that makes it "
            "(data.translator)."
        )
    do = clause(instruction) if embed else None
    text = texts[0] if do or len(texts) == 1 else texts[1]
    if options and "{labels}" not in text:
        text += "".join(f" {letter}) {option}" for letter, option in zip("ABCDEFGH", options, strict=False))
    asks = do and re.match(rf"(?:{'|'.join(templates()['text_requests'])})\b", do)
    slots = {
        "do": do,
        "ask": do if asks else f"explain how to {do}",
        "instruction": instruction.strip(),
        "quoted": f"“{instruction.strip()}”",
        "french": french.strip(),
        "labels": " / ".join(options),
    }
    return capital(text.format(**slots)), f"{form}/{use}/{number}"


def four_forms(
    instructions: list[dict],
    per_form: int = 50,
    seed: int = 0,
    french: dict[str, str] | None = None,
    use: str = "test",
) -> tuple[list[dict], list[dict]]:
    """Harmful rows and their twins: the same `per_form` instructions in each of the four forms, form by form.

    Deviates from the paper, whose forms have different prompts: the same ones compare forms within pairs. Which
    instructions and wordings a row gets depends on the seed and its intent alone, so it keeps its wording when others come
    or go. With `use` "test" every instruction needs a twin; with "train" those that have one get a row. The twin has the
    same wording and options, the intent of its harmful row, and its id in `twin_of`. Needs French, by text, of the
    instructions and twins. Rows are those of world.py, with `content` (the bare instruction, or its French) beside; the
    assistant's text is empty. Raises StudyError where there are too few instructions, or too few with twin or French.
    """
    french, intents = french or {}, [intent(one) for one in instructions]
    name = intents[0].partition("/")[0] if intents else "the list"
    if len(set(intents)) < len(intents):
        twice = Counter(intents).most_common(1)[0][0]
        raise StudyError(f"The instruction {twice} is there twice: keys must differ within a source.")
    usable = [one for one in instructions if one["twin"] or use != "test"]
    spoken = [one for one in usable if all(text in french for text in (one["instruction"], one["twin"]) if text)]
    for n, what, remedy in (
        (len(instructions), "instructions", "ask for fewer"),
        (len(usable), "with a benign twin", "ask for fewer, or set data.twins to nearest"),
        (len(spoken), "with French, twin included", "ask for fewer, or give French (data.french or data.translator)"),
    ):
        if n < per_form:
            raise StudyError(
                f"{per_form} instructions per form are asked for (data.harmful_per_form), but {name} has {n} {what}: {remedy}."
            )
    order = sorted(spoken, key=lambda one: hashlib.sha256(f"{seed}/{intent(one)}".encode()).digest())
    chosen = set(map(intent, order[:per_form]))
    rows, twins = [], []
    for form in FORMS:
        for one in (one for one in spoken if intent(one) in chosen):
            both = [text for text in (one["instruction"], one["twin"]) if text]
            embed = None not in map(clause, both)
            asked = []
            for text in both:
                rng = random.Random(f"{form}-{use}-{seed}-{intent(one)}")  # afresh: the same wording for both
                said = in_form(text, form, use, rng, french[text], embed)
                asked.append((*said, french[text].strip() if form == "translation" else text))
            kinds = ("harmful", "twin") if use == "test" else ("train_harmful", "train_twin")
            rows.append(_row(kinds[0], form, one, *asked[0], harmful=True))
            if one["twin"]:
                twins.append(_row(kinds[1], form, one, *asked[1], harmful=False, twin_of=rows[-1]["id"]))
    return rows, twins


def intent(one: dict) -> str:
    """What identifies an instruction: its source and key, "advbench/12"."""
    return f"{one['source']}/{one['key']}"


def _row(name: str, form: str, one: dict, prompt: str, phrasing: str, content: str, **more) -> dict:
    """A row of world.py whose id is made of name, form and intent, not of its place."""
    about = {"id": f"{name}-{form}-{intent(one)}", "intent": intent(one), "phrasing": phrasing, "content": content}
    return world.row_of(name, 0, form, prompt, "", **about, **more)


def shown(row: dict, redact: bool) -> str:
    """The prompt of a row as a notebook may show it: itself, or with `redact` its form, wording, length and a hash.

    Benign and stand-in prompts are shown in any case.
    """
    prompt = row["messages"][0]["content"]
    if not redact or not row["harmful"] or row["intent"].startswith(f"{STAND_IN}/"):
        return prompt
    return hidden(prompt, row["intent"], row["phrasing"] or row["form"])


def hidden(prompt: str, *about: str) -> str:
    """What is shown instead of a harmful prompt: `about`, its length and 8 hex digits of its SHA-256, no word of it."""
    digest = hashlib.sha256(prompt.encode(errors="replace")).hexdigest()[:8]
    return f"[{', '.join([*about, f'{len(prompt.split())} words', digest])}]"
