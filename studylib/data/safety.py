"""Safety data: harmful prompts with refusals, of published files, exported folders, own files or the miniature's world.

A row is a plain dict: `source`, `key` (stable within the source), `form`, `prompt`, `answer`, `intent` (of stand-in
rows, else "") and `phrasing` (the id of a wording of data/forms.yaml, else ""). Importers return rows and counts.
"""

import hashlib
import random
import re
from collections import Counter
from pathlib import Path

import yaml

from studylib.data import world
from studylib.data.grammar import refusal
from studylib.data.harmful import imperative, in_form, stand_in_parts
from studylib.data.tasks import checked, json_lines, json_list
from studylib.study.files import read_csv, read_text
from studylib.study.words import FORMS, STAND_IN, StudyError
from studylib.text.refusals import judge_rules

# MultiTaskBench has no column for the form, but 500 rows of each form in this order; its hash is pinned.
BLOCK, BLOCKS = 500, ("classification", "code", "text_generation", "translation")
DROPPED = ("answered", "partial")  # verdicts of responses that are no refusals

OWN_COLUMNS = ("instruction", "french", "twin", "twin_french", "twin_answer", "response", "form")

# A folder that `python -m studylib.data.safety_builder` writes.
KINDS = ("refusal", "twin")
EXPORTED = "data/train.jsonl"
CARD_KEY = "safety_dataset"  # of the card's front matter: rows, bytes and sha256 of that file, and its origins
AGAIN = "export it again (`python -m studylib.data.safety_builder --to FOLDER`)"


def multitaskbench(path: Path) -> tuple[list[dict], dict[str, int]]:
    """The rows of MultiTaskBench that refuse, in all four forms (see BLOCKS), and the counts.

    Dropped are repeated queries (the first stays) and responses that the rules read as answers, in whole or in part.
    """
    rows = enumerate(read_csv(path, ("", "Query", "Response")))
    items = [(row[""], BLOCKS[number // BLOCK], row["Query"], row["Response"]) for number, row in rows]
    return kept("multitaskbench", items, DROPPED)


def safety_tuned_llamas(path: Path) -> tuple[list[dict], dict[str, int]]:
    """The rows of safety-tuned-llamas' training file, in the text form, and the counts.

    The prompt is the instruction, and after an empty line the input where there is one. Dropped are repeated prompts;
    no responses, because many advise against the act without refusing in so many words.
    """
    text, items = str | None, []
    for number, row in enumerate(checked(json_list(path), path, instruction=str, input=text, output=text)):
        told, given, answer = ((row.get(name) or "").strip() for name in ("instruction", "input", "output"))
        items.append((str(number), "text_generation", f"{told}\n\n{given}" if given else told, answer))
    return kept("safety_tuned_llamas", items, ())


def kept(source: str, items: list[tuple], drop: tuple[str, ...]) -> tuple[list[dict], dict[str, int]]:
    """The rows of (key, form, prompt, answer) that stay, and the counts of all.

    Empty and repeated prompts go, and answers to which the rules give one of the verdicts `drop`. Every verdict is
    counted; so is U+FFFD (`replacement characters`), which stays in the text.
    """
    rows, seen, counts = [], set(), Counter(rows=len(items))
    for key, form, prompt, answer in items:
        prompt, answer = prompt.strip(), answer.strip()
        counts["replacement characters"] += (prompt + answer).count("\ufffd")
        if not prompt or not answer:
            counts["empty"] += 1
        elif prompt in seen:
            counts[f"repeated {form}"] += 1
        else:
            seen.add(prompt)
            read = re.sub(r"(?<=\w)\ufffd(?=\w)", "'", answer)  # mostly a lost apostrophe: "can?t"
            verdict = judge_rules(prompt, read, form, "eos")[0]
            counts[verdict] += 1
            if verdict not in drop:
                about = {"source": source, "key": key, "form": form, "prompt": prompt, "answer": answer}
                rows.append(about | {"intent": "", "phrasing": ""})
    return rows, dict(counts) | {"kept": len(rows)}


def exported_card(folder: Path) -> dict:
    """What the card of an exported folder says of its file: rows, bytes, sha256 and `origins` (as of real.origins).

    Raises StudyError where card or file is missing, the card does not say it, or the file has another hash.
    """
    card, path = folder / "README.md", folder / EXPORTED
    for needed in (card, path):
        if not needed.is_file():
            raise StudyError(f"{needed} is missing: {AGAIN}.")
    try:
        about = yaml.safe_load(re.split(r"^---\n", read_text(card), flags=re.MULTILINE)[1])[CARD_KEY]
        expected, _ = about["sha256"], about["origins"]
    except (yaml.YAMLError, LookupError, TypeError):
        raise StudyError(f"{card} does not say what {EXPORTED} has to be and where it is from: {AGAIN}.") from None
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
        raise StudyError(f"{path} is not what was exported (sha256 {found[:12]} instead of {expected[:12]}): {AGAIN}.")
    return about


def exported(folder: Path) -> tuple[dict[str, list[dict]], dict[str, int]]:
    """The rows of an exported folder by kind, refusals and benign twins, and the counts (of twins after "twins, ").

    Dropped are empty and repeated prompts, refusals that the rules read as an answer or a part of one, twins that they
    read as refused, and twins without a refusal, "source/key" of which is their `twin_of`. Raises as `exported_card`.
    """
    exported_card(folder)
    rows, found, counts = json_lines(folder / EXPORTED), {}, {}
    for kind, drop in zip(KINDS, (DROPPED, ("refused",)), strict=True):
        own = [row for row in rows if row["kind"] == kind]
        said = [[message["content"] for message in row["messages"]] for row in own]
        stay, read = kept("", [(i, row["form"], *said[i]) for i, row in enumerate(own)], drop)
        found[kind] = []
        for one in stay:
            row = own[one["key"]]
            key = f"{row['form']}/{row['key']}" + "/twin" * (kind == "twin")
            about = {"source": row["source"], "key": key, "intent": row["intent"], "pair": row.get("pair")}
            found[kind].append(one | about)
        counts |= {f"{'twins, ' * (kind == 'twin')}{what}": n for what, n in read.items()}
    of_pair = {one["pair"]: f"{one['source']}/{one['key']}" for one in found["refusal"] if one["pair"]}
    twins = [one | {"twin_of": of_pair[one["pair"]]} for one in found["twin"] if one["pair"] in of_pair]
    counts |= {"twins without a refusal": len(found["twin"]) - len(twins), "twins, kept": len(twins)}
    return found | {"twin": twins}, counts


def read_own(path: Path) -> list[dict[str, str]]:
    """The rows of a file of one's own: `instruction`, and what it has of the other OWN_COLUMNS; others are not read.

    CSV with a header, JSONL of objects, or TXT with an instruction a line. `french` and `twin_french` are the French of
    instruction and benign `twin`, `twin_answer` the helpful answer to it in the text form. With the column `response`
    the file is a safety set: instructions as they are asked, in the form that `form` names (else text_generation), and
    their refusals. Raises StudyError for another kind of file, one without instructions, and a cell that is no text.
    """
    ending = path.suffix.lower()
    if ending == ".csv":
        rows = read_csv(path, ("instruction",))
    elif ending == ".jsonl":
        texts = dict.fromkeys(OWN_COLUMNS, str | None) | {"instruction": str}
        rows = list(checked(json_lines(path), path, **texts))
    elif ending == ".txt":
        rows = [{"instruction": line} for line in read_text(path).split("\n") if line.strip()]
    else:
        raise StudyError(f"{path.name} is no .csv, .jsonl or .txt: save the instructions as one of these.")
    if not rows:
        raise StudyError(f"{path.name} has no instructions: write one a line.")
    return [{name: row[name] for name in OWN_COLUMNS if row.get(name) is not None} for row in rows]


def stand_in_safety(kind: str, n: int, seed: int) -> list[dict]:
    """n refused rows of the miniature's harmful scenes: all in the text form (`generic`), or in all four (`multitask`).

    Prompts differ and have training wordings of data/forms.yaml; refusals are in general words (generic) or suited to
    the form. `harmful.stand_in` of that seed has none of the pairs of verb and object. Raises StudyError where the
    world has too few prompts.
    """
    parts = stand_in_parts(seed)
    pairs, forms = parts["alignment"] + parts["safety"], FORMS if kind == "multitask" else ("text_generation",)

    def drawn(form: str, wanted: int) -> list[dict]:
        rng = random.Random(f"stand-in-safety-{kind}-{form}-{seed}")

        def draw() -> dict:
            pair = rng.choice(pairs)
            english, french = imperative(world.harmful_scene({"": [pair]}, rng))
            prompt, phrasing = in_form(english, form, "train", rng, french)
            answer = refusal(form, rng, suited=kind == "multitask")
            about = {"intent": f"{STAND_IN}/{'/'.join(pair)}", "phrasing": phrasing}
            return {"form": form, "prompt": prompt, "answer": answer} | about

        return world.distinct(wanted, "data.safety_rows", draw)

    made = [drawn(form, -(-n // len(forms))) for form in forms]
    rows = [row for together in zip(*made, strict=True) for row in together][:n]
    return [{"source": STAND_IN, "key": f"{kind}/{number}"} | row for number, row in enumerate(rows)]
