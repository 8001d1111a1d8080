"""Harmful instructions: stand-ins, benign twins, the same instruction asked in the four forms, and what is shown of it.

Instructions are those of instruction_lists.py. The intent of one, "advbench/12", identifies it everywhere. The wordings
are in `data/forms.yaml`.
"""

import hashlib
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

from studylib.data import world
from studylib.data.grammar import Scene, capital, lexicon, owned
from studylib.data.instructions import folded
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, STAND_IN, StudyError
from studylib.text.shown import redact_prompt

USES = ("test", "train")
ALIKE = 0.2  # a less similar twin shares little more with its instruction than being one
UNLIKE = f"with a twin less similar than {ALIKE}"
SLOTS = ("do", "ask", "instruction", "quoted", "french", "labels")
SENTENCES = re.compile(
    r"[.!?][\"'\u201d\u2019)\]]*\s+\S|\n"
)  # more than one; takes "U.S. law" for two, which is quoted
GERUND = re.compile(r"\w*[aeiouy]\w*ing\b", re.I)  # not "bring"


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

    No two have the same verb and object, and the alignment and safety data of a miniature with that seed have none of
    these pairs (world.split). The first n of a larger n are the same. Raises StudyError where there are fewer pairs.
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
        kind = lexicon()["verbs"][scene.verb]["kind"]
        one = {"source": STAND_IN, "key": "/".join(pair), "instruction": english, "category": kind, "twin": twin}
        out.append(one)
    return out, french


# Twins


def nearest(instructions: list[dict], benign: list[str]) -> list[dict]:
    """The instructions, each with the most similar of the benign ones as `twin`, none of which is used twice.

    `similarity` (0-1) is the mean of two TF-IDF cosines (scikit-learn's conventions): of words and word pairs, and of
    characters in threes to fives within words. scipy's linear_sum_assignment makes as many pairs as possible that are
    both imperatives or both not, so that they can have the same wording; of these assignments it takes the one with the
    greatest sum of similarities. Benign ones that equal an instruction are left out. Raises StudyError for too few.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [one["instruction"] for one in instructions]
    taken = set(map(folded, texts))
    candidates = list({same: text.strip() for text in reversed(benign) if (same := folded(text)) not in taken}.values())
    candidates.reverse()  # of equal ones the first
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
        for text in (text for use in USES for entry in words[form][use] for text in entry if isinstance(text, str)):
            unknown = set(re.findall(r"{(.*?)}", text)) - set(SLOTS)
            if unknown:
                raise StudyError(
                    f"{path.name}: {form} has the unknown slot {sorted(unknown)[0]!r}; known are {', '.join(SLOTS)}."
                )
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

    Deviates from the paper, whose forms have different prompts: with the same ones, forms are compared within pairs.
    Which instructions are taken, and in which wording, depends on the seed and the intent alone, whatever others there
    are. With `use` "test" every instruction needs a twin; with "train" those that have one get a row. The twin has the
    wording, options and intent of its harmful row, whose id is its `twin_of`. `french` maps instructions and twins to
    their French. Rows are those of world.py, and have `content`: the bare instruction, or its French. The assistant's
    text is empty. Raises StudyError where there are too few instructions, or too few with twin or French.
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
                f"{per_form} instructions per form are asked for (data.harmful_per_form), but {name} has {n} {what}: "
                f"{remedy}."
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


def over_refusal(benign: list[dict]) -> list[dict]:
    """Benign instructions as test rows of the set `twin`, verbatim in the text form.

    Their `prompt_set` is sounds_harmful, as they are no twins: `twin_of` is empty, `benign_because` the category.
    """
    form, about = "text_generation", {"prompt_set": "sounds_harmful", "harmful": False}
    return [
        _row("twin", form, one, one["instruction"], "", one["instruction"], **about, benign_because=one["category"])
        for one in benign
    ]


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
    return redact_prompt(prompt, row["intent"], row["phrasing"] or row["form"])
