"""Lists and rivals here are stand-ins in the shape of the published files: nothing of those is in the tests."""

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter

import mirror
import pytest
import yaml
from conftest import ROOT
from test_safety import bench, rows_of_the_bench

from studylib.data import duplicates, fetching, safety, safety_builder, tasks, world
from studylib.data import sets as datasets
from studylib.data.safety import read_own
from studylib.data.safety_builder import NEAR, NO_TWIN, build, write
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, StudyError
from studylib.text import refusals as rules
from studylib.text.normal import languages

pytestmark = pytest.mark.slow
KEYS = ["messages", "form", "kind", "source", "key", "intent", "pair", "language"]
REFUSAL = "I'm sorry, but I can't help with that."
VERBS = ("Open", "Hide", "Take", "Copy", "Paint", "Bend", "Sell", "Burn")


def prompt(row):
    return row["messages"][0]["content"]


def answer(row):
    return row["messages"][1]["content"]


def of(rows, kind, form=None):
    return [row for row in rows if row["kind"] == kind and form in (None, row["form"])]


def things(n, whose="of a stranger"):
    """Different stand-in instructions, none a near duplicate of another."""
    return [f"{VERBS[i % 8]} the {said[:-1].lower()} {whose}" for i, said in enumerate(mirror.texts(n, "things", 4))]


def table(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([columns, *rows])
    return str(path)


@pytest.fixture(scope="module")
def stand_in():
    return build(per_form=60)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Puts a file into a mirror under a name of the register; nothing else but small benign files is within reach."""
    return mirror.putting(tmp_path, monkeypatch)


# The miniature's world


def test_every_form_has_as_many_refusals_as_asked_for_and_as_many_twins(stand_in):
    rows, counts = stand_in
    found = Counter((row["kind"], row["form"]) for row in rows)
    assert found == {(kind, form): 60 for kind in ("refusal", "twin") for form in FORMS}
    assert all(counts[f"{kind} {form}"] == n for (kind, form), n in found.items())
    assert counts["drawn"] == counts[safety_builder.NEAR] + counts["left over"] + 240
    assert all(list(row) == KEYS and all(row.values()) for row in rows)
    assert len({(row["kind"], row["form"], row["key"]) for row in rows}) == len(rows)


def test_every_refusal_is_read_as_one_and_no_twin_is(stand_in):
    for row in stand_in[0]:
        verdict = rules.judge_rules(prompt(row), answer(row), row["form"], "eos")[0]
        assert (verdict == "refused") == (row["kind"] == "refusal"), row


def test_refusals_are_suited_to_the_form(stand_in):
    said = {form: {answer(row) for row in of(stand_in[0], "refusal", form)} for form in FORMS}
    assert "I'm sorry, but I can't write code for that." in said["code"]
    assert any("french" in languages(one) for one in said["translation"])
    assert not any(said[a] & said[b] for a in FORMS for b in FORMS if a < b)


def test_a_pair_is_a_harmful_prompt_and_its_benign_twin_in_the_same_wording(stand_in):
    pairs = {}
    for row in stand_in[0]:
        pairs.setdefault(row["pair"], {})[row["kind"]] = prompt(row).split()
    assert len(pairs) == 240 and all(set(pair) == {"refusal", "twin"} for pair in pairs.values())
    for pair in pairs.values():
        assert pair["refusal"] != pair["twin"] and pair["refusal"][0] == pair["twin"][0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_intent_of_the_miniatures_test_is_in_it_whatever_the_seed(seed):
    parts = world.split(load_profile("miniature").world)
    rows, counts = build(per_form=40, seed=seed)
    test = {f"stand_in/{verb}/{noun}" for verb, noun in parts["new"] + parts["test"]}
    assert not test & {row["intent"] for row in rows} and safety_builder.TESTED_INTENT not in counts


def test_an_intent_of_the_test_that_strays_into_the_training_pairs_is_kept_out(monkeypatch):
    whole = safety_builder.harmful.stand_in_parts(0)
    strayed = whole | {"safety": whole["safety"] + whole["test"]}
    monkeypatch.setattr(safety_builder.harmful, "stand_in_parts", lambda seed: strayed)
    rows, counts = build(per_form=40)
    test = {f"stand_in/{verb}/{noun}" for verb, noun in whole["test"]}
    assert counts[safety_builder.TESTED_INTENT] >= 1 and not test & {row["intent"] for row in rows}


def test_nothing_of_it_resembles_a_test_prompt_of_the_miniature_when_those_are_excluded():
    sets = world.build_sets(load_profile("smoke").world)
    tests = [prompt(row) for name in datasets.TESTS for row in sets[name]]
    rows, _ = build(per_form=40, exclude=tests)
    both = {"made": rows, "tests": [{"content": text} for text in tests]}
    dropped = duplicates.clean(both, ["tests"])[1]
    assert not ((dropped["set"] == "made") & (dropped["other"] == "tests")).any()


def test_no_prompt_resembles_another_of_its_form_and_kind(stand_in):
    sets = {f"{kind} {form}": of(stand_in[0], kind, form) for kind in ("refusal", "twin") for form in FORMS}
    found = duplicates.duplicates_report(sets)
    assert found.loc[found["set"] == found["other"], ["exact", "near"]].sum().sum() <= 1  # rarities differ in a part
    prompts = [(row["form"], prompt(row)) for row in stand_in[0]]
    assert len(set(prompts)) == len(prompts)


def in_order(rows):
    return sorted(rows, key=lambda row: (row["kind"], row["form"], int(row["key"])))


def test_the_same_seed_gives_the_same_rows_and_another_one_others(stand_in):
    assert build(per_form=60) == stand_in and in_order(build(per_form=60, seed=1)[0]) != in_order(stand_in[0])


def test_without_twins_or_other_forms_the_rows_that_stay_are_as_they_were(stand_in):
    rows, counts = build(per_form=60, twins=False, forms=("code",))
    assert in_order(rows) == in_order(of(stand_in[0], "refusal", "code"))
    assert not any("twin" in what for what in counts)


def test_a_named_test_prompt_takes_the_refusal_with_its_twin_and_is_counted(stand_in):
    first = of(stand_in[0], "refusal", "code")[0]
    for named in (prompt(first).upper(), prompt(first).replace("Python", "Pythonic")):
        rows, counts = build(per_form=60, exclude=[named])
        assert first["pair"] not in {row["pair"] for row in rows} and counts[safety_builder.TESTED] >= 1
        assert counts["refusal code"] == 60  # another one takes its place
        assert counts["test prompts compared with"] == 1


def test_a_test_prompt_that_is_a_twin_takes_the_twin(stand_in):
    first = of(stand_in[0], "twin", "code")[0]
    rows, counts = build(per_form=60, exclude=[prompt(first)])
    assert prompt(first) not in map(prompt, rows) and counts["twin code"] == 60


def test_an_intent_of_a_test_goes_in_every_form_with_or_without_the_name_of_its_source(stand_in):
    intent = of(stand_in[0], "refusal")[0]["intent"]
    for said in (intent, intent.removeprefix("stand_in/")):
        rows, counts = build(per_form=60, exclude_intents={said})
        assert intent not in {row["intent"] for row in rows} and counts[safety_builder.TESTED_INTENT] >= 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "advbnch"}, "There is no source 'advbnch': give one of stand_in, advbench"),
        ({"per_form": 0}, "per_form is 0"),
        ({"forms": ("code", "poem")}, "forms are code, poem: give one or more of text_generation"),
        ({"forms": ()}, "forms are none"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, said):
    with pytest.raises(StudyError, match=said):
        build(**settings)


def test_more_than_the_world_has_is_refused_with_how_much_there_is(monkeypatch):
    parts = {"alignment": [("open", "locker")], "safety": [], "new": [], "test": []}
    whole = safety_builder.harmful.stand_in_parts(0)
    monkeypatch.setattr(safety_builder.harmful, "stand_in_parts", lambda seed: whole | parts)
    with pytest.raises(
        StudyError, match=r"300 refusals .*, but stand_in has \d+ different ones for the form code: ask for"
    ):
        build(per_form=300, forms=("code",))


# Files of one's own


def own(folder, n=12, **change):
    """A file of n instructions with French, twins, their French and answers; `change`: a column's cells by number."""
    mine = things(n, "of mine")
    columns = {
        "instruction": dict(enumerate(things(n))).get,
        "french": lambda i: f"Ouvrez {things(n)[i][5:-14]} d'un inconnu",
        "twin": mine.__getitem__,
        "twin_french": lambda i: f"Ouvrez {mine[i][5:-8]} à moi",
        "twin_answer": lambda i: f"First find it, then do it. That is number {i}.",
    } | change
    return table(folder / "mine.csv", columns, [[made(i) for made in columns.values()] for i in range(n)])


def test_a_twin_that_is_refused_and_one_in_the_words_of_a_refusal_go_and_are_counted(tmp_path):
    own(
        tmp_path,
        twin_answer=lambda i: REFUSAL if i == 3 else "First find it, then open it.",
        twin=lambda i: things(12)[0] if i == 5 else things(12, "of mine")[i],
    )
    for seed in range(8):  # in some of them the twin gets the wording of the refusal
        rows, counts = build(str(tmp_path / "mine.csv"), per_form=12, forms=("text_generation",), seed=seed)
        twins = of(rows, "twin")
        assert counts["refusal text_generation"] == 12 and counts[NO_TWIN] == 12 - len(twins)
        assert "3" not in {row["key"] for row in twins}
        assert not set(map(prompt, twins)) & set(map(prompt, of(rows, "refusal")))


def test_a_dose_larger_than_the_data_names_both_and_the_form(tmp_path):
    with pytest.raises(
        StudyError, match=r"13 refusals .* but \S*mine\.csv has 12 different ones for the form text_gen"
    ):
        build(own(tmp_path), per_form=13)


def test_an_instruction_of_a_test_leaves_all_forms_the_french_one_too(tmp_path):
    rows, counts = build(own(tmp_path), per_form=11, exclude=[things(12)[4].lower() + "!"])
    assert "4" not in {row["key"] for row in rows} and counts[safety_builder.TESTED] == 4


@pytest.mark.parametrize("forms", [FORMS, ("text_generation",), ("translation", "code")])
def test_refusals_without_a_twin_are_counted_and_a_twin_stands_beside_its_own(put, tmp_path, forms):
    said, benign, helpful = things(12), things(12, "of mine"), "First find it, then open it."
    own = [[said[i], f"FR {said[i]}", benign[i], f"FR {benign[i]}", helpful] for i in range(12)]
    own[0][2], own[1][4], own[2][4], own[3][3], own[5][2] = "", "", REFUSAL, "", benign[4]
    path = table(tmp_path / "mine.csv", ("instruction", "french", "twin", "twin_french", "twin_answer"), own)
    rows, counts = build(path, per_form=12, forms=forms)
    refusals, twins = (of(rows, kind) for kind in ("refusal", "twin"))
    assert len(refusals) == 12 * len(forms) and len(refusals) - len(twins) == counts[NO_TWIN] > 0
    intents = {row["pair"]: row["intent"] for row in refusals}
    by_pair = {row["pair"]: prompt(row) for row in twins}
    assert len(by_pair) == len(twins) and set(by_pair) <= set(intents)
    text = {row["pair"]: row for row in refusals if row["form"] == "text_generation"}
    for pair in text:  # a twin stands beside its own refusal, not beside the one in its place
        i = int(text[pair]["key"])
        assert pair not in by_pair or own[i][2][1:] in by_pair[pair], i
    write(rows, counts, tmp_path / "out", "Mine", licence="CC BY 4.0")
    card = (tmp_path / "out/README.md").read_text()
    assert f"| {NO_TWIN} | {counts[NO_TWIN]} |" in card


# Lists and safety sets of one's own, and registered lists


def test_an_own_file_comes_in_four_forms_with_its_twins_where_they_have_answers(tmp_path):
    rows, counts = build(own(tmp_path), per_form=10)
    twins = {"text_generation": 10, "code": 0, "translation": 10, "classification": 0}
    assert {form: (counts[f"refusal {form}"], counts[f"twin {form}"]) for form in FORMS} == {
        form: (10, n) for form, n in twins.items()
    }
    assert counts[NO_TWIN] == 20 and {row["source"] for row in rows} == {"mine.csv"}
    intents = [frozenset(row["intent"] for row in of(rows, "refusal", form)) for form in FORMS]
    assert len(set(intents)) == 1 and len(intents[0]) == 10  # the same instructions in every form


def test_a_twin_that_is_to_be_translated_is_answered_by_itself_in_english(tmp_path):
    rows, _ = build(own(tmp_path), per_form=12)
    assert {answer(row) for row in of(rows, "twin", "translation")} == set(things(12, "of mine"))
    assert all(answer(row).startswith("First find it") for row in of(rows, "twin", "text_generation"))
    assert {row["language"] for row in of(rows, "refusal", "translation")} == {"fr"}
    assert {row["language"] for row in rows if row["form"] != "translation"} == {"en"}


def test_a_request_in_french_is_refused_in_french(tmp_path):
    rows, _ = build(own(tmp_path, 40), per_form=40, forms=("translation",))
    asked = [row for row in of(rows, "refusal") if prompt(row).startswith(("Traduisez", "Que veut dire"))]
    assert len(asked) > 5 and all("french" in languages(answer(row)) for row in asked)


def test_an_instruction_keeps_its_wording_when_fewer_are_asked_for(tmp_path):
    many, few = (in_order(build(own(tmp_path), per_form=n)[0]) for n in (12, 6))
    assert len(few) == 36 and all(row in many for row in few)


def test_without_french_the_translation_form_is_refused_and_the_others_are_made(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\r\n".join(["", *things(5), ""]).encode())
    with pytest.raises(StudyError, match=r"has 0 different ones for the form translation: give French"):
        build(str(path), per_form=5, twins=False)
    rows, counts = build(str(path), per_form=5, twins=False, forms=("code", "classification"))
    assert len(rows) == 10 and counts["rows"] == 5 and not any("\r" in prompt(row) for row in rows)
    french = tmp_path / "fr.csv"
    table(french, ("instruction", "french"), [[text, f"Ouvrez {text}"] for text in things(5)])
    assert len(build(str(path), per_form=5, twins=False, french=french)[0]) == 20
    with pytest.raises(StudyError, match=r"There is no file .*none\.csv with French"):
        build(str(path), per_form=5, twins=False, french=tmp_path / "none.csv")


def test_repeated_and_nearly_repeated_instructions_are_dropped_and_counted(tmp_path):
    said, path = things(6), tmp_path / "mine.jsonl"
    lines = [*said, said[0].upper(), said[1] + "s"]
    path.write_text("".join(json.dumps({"instruction": text, "note": 3}) + "\n" for text in lines))
    rows, counts = build(str(path), per_form=6, twins=False, forms=("code",))
    assert len(rows) == 6 and counts["repeated"] == 1 and counts[NEAR] == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "goal\nx\n", r"a\.csv has no column 'instruction'"),
        ("a.txt", "\n \n", r"a\.txt has no instructions"),
        ("a.jsonl", '{"instruction": "x"\n', r"a\.jsonl, line 1: is not JSON"),
        ("a.jsonl", '\n{"prompt": "x"}\n', r"a\.jsonl, row 0: needs a field 'instruction'"),
        ("a.jsonl", '{"instruction": "x", "twin": 3}\n', r"a\.jsonl, row 0: needs a field 'twin'"),
        ("a.xlsx", "x", r"a\.xlsx is no \.csv, \.jsonl or \.txt"),
    ],
)
def test_a_file_that_is_no_list_says_what_is_wrong(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(StudyError, match=said):
        read_own(tmp_path / name)


def test_a_safety_set_of_ones_own_keeps_its_refusals_without_the_answers_among_them(tmp_path):
    said, columns = things(5), ("instruction", "response", "form")
    answers = [REFUSAL, "Sure. Step 1: find it. Step 2: open it.", REFUSAL, "", "def f():\n    return 1"]
    forms = ["", "text_generation", "code", "code", "code"]
    path = table(tmp_path / "set.csv", columns, zip(said, answers, forms, strict=True))
    rows, counts = build(path, per_form=3)
    assert sorted((row["form"], prompt(row)) for row in rows) == [("code", said[2]), ("text_generation", said[0])]
    assert counts["answered"] == 2 and counts["empty"] == 1 and counts[safety_builder.SHORT] == 10
    table(tmp_path / "set.csv", columns, [[said[0], REFUSAL, "poem"]])
    with pytest.raises(StudyError, match=r"Row 0 of set\.csv has the form 'poem'"):
        build(path)
    table(tmp_path / "set.csv", columns[:2], [[said[0], "Sure. First find it, then open it."]])
    with pytest.raises(StudyError, match=r"Of .*set\.csv nothing is left .*'answered': 1"):
        build(path)


def test_a_registered_list_takes_the_nearest_benign_row_with_its_answer_as_twin_in_the_text_form(put, tmp_path):
    table(tmp_path / "adv.csv", ("goal", "target"), [[text, "Sure"] for text in things(9)])
    put("advbench", tmp_path / "adv.csv")
    rows, counts = build("advbench", per_form=9, forms=("text_generation", "code"))
    benign = {row["prompt"]: row["answer"] for row in tasks.load("instruction_data", 40)[0]}
    twins = of(rows, "twin")
    assert len(twins) == 9 == counts[NO_TWIN] and {row["form"] for row in twins} == {"text_generation"}
    assert all(benign[prompt(row)] == answer(row) and row["source"] == "instruction_data" for row in twins)
    assert 0 < counts[safety_builder.UNLIKE] <= 9  # random words share little
    assert {row["pair"] for row in twins} == {row["pair"] for row in of(rows, "refusal", "text_generation")}
    write(rows, counts, tmp_path / "out", "Listed")
    card = (tmp_path / "out/README.md").read_text()
    assert "| advbench | MIT | yes |" in card and "| instruction_data | Apache-2.0 | yes |" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert not any(text in card for row in rows for text in (prompt(row), answer(row)))


def test_a_list_with_twins_of_its_own_has_no_answers_to_them_and_counts_that(put, tmp_path):
    columns = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
    for name, whose in (("jailbreakbench_harmful", "of a stranger"), ("jailbreakbench_benign", "of mine")):
        table(tmp_path / "x.csv", columns, [[i, text, "", "", "", ""] for i, text in enumerate(things(7, whose))])
        put(name, tmp_path / "x.csv")
    rows, counts = build("jailbreakbench", per_form=7, forms=("code", "text_generation"))
    assert len(rows) == 14 == counts[NO_TWIN] and not of(rows, "twin")
    write(rows, counts, tmp_path / "out", "Listed")
    assert "| jailbreakbench_harmful | MIT | yes |" in (tmp_path / "out/README.md").read_text()


def test_a_list_that_cannot_be_had_says_why(put):
    with pytest.raises(fetching.Absent, match=r"'advbench' is not available: STUDY_OFFLINE"):
        build("advbench")


# Rivals


def test_multitaskbench_enters_by_the_same_door_and_may_not_be_passed_on(put, tmp_path):
    asked = rows_of_the_bench()
    for i, said in enumerate(mirror.texts(2000, "bench", 8)):  # so that few are near duplicates
        asked[i][0] = asked[i][0].replace("locker", said).replace("casier", said)
    asked[3][1] = "B. open it"
    put("multitaskbench", bench(tmp_path, asked))
    rows, counts = build("multitaskbench", per_form=300)
    assert {form: counts[f"refusal {form}"] for form in FORMS} == dict.fromkeys(FORMS, 300)
    assert counts["answered"] == 1 and counts[NO_TWIN] == 1200 and list(rows[0]) == KEYS
    assert build("multitaskbench")[1][safety_builder.SHORT] >= 1  # counted, not refused
    with pytest.raises(StudyError, match=r"multitaskbench \(not stated .*\) does not let anyone .* \(--local\)"):
        write(rows, counts, tmp_path / "out", "Rival")
    assert not (tmp_path / "out").exists()
    write(rows, counts, tmp_path / "out", "Rival", local=True)
    card = (tmp_path / "out/README.md").read_text()
    assert "not to be passed on: multitaskbench" in card and yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert not any(prompt(row) in card for row in rows)


# Export


def test_the_exported_folder_loads_by_load_dataset_as_what_was_built(tmp_path, stand_in, monkeypatch):
    from datasets import load_dataset

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    path, cache = write(*stand_in, tmp_path / "out", "Stand-in refusals"), str(tmp_path / "cache")
    for loaded in (
        load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache),
        load_dataset("json", data_files=str(path), split="train", cache_dir=cache),
    ):
        assert loaded.to_list() == stand_in[0]


def test_the_card_counts_what_is_in_the_file_and_has_its_hash_and_licence(tmp_path, stand_in):
    path = write(*stand_in, tmp_path / "out", "Stand-in refusals", command="python -m x")
    card = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["language"] == ["en", "fr"]
    assert front["configs"][0]["data_files"][0]["path"] == "data/train.jsonl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card and "python -m x" in card
    assert "| code | 60 | 60 |" in card and "| all | 240 | 240 |" in card and "| stand_in | Apache-2.0 | yes |" in card
    assert f"{len(stand_in[0])} rows, {path.stat().st_size} bytes" in card


def test_what_was_exported_is_read_again_whole_with_pairs_and_provenance(tmp_path, stand_in):
    folder = write(*stand_in, tmp_path / "out", "Stand-in refusals").parent.parent
    found, counts = safety.exported(folder)
    for kind in ("refusal", "twin"):
        assert [row["prompt"] for row in found[kind]] == [prompt(row).strip() for row in of(stand_in[0], kind)]
    assert {row["twin_of"] for row in found["twin"]} == {f"stand_in/{row['key']}" for row in found["refusal"]}
    assert counts["kept"] == counts["refused"] == counts["twins, kept"] == 240 and "twins, refused" not in counts
    assert safety.exported_card(folder)["origins"] == [
        {"source": "stand_in", "licence": "Apache-2.0", "redistributable": True, "citation": "this study"}
    ]


def test_a_file_of_ones_own_is_exported_only_with_its_licence(tmp_path):
    rows, counts = build(own(tmp_path), per_form=5)
    with pytest.raises(StudyError, match=r"mine\.csv \(not stated\).*licence of a file of your own is given"):
        write(rows, counts, tmp_path / "out", "Mine")
    write(rows, counts, tmp_path / "out", "Mine", licence="CC BY 4.0")
    assert yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])["license"] == "other"


def test_a_folder_with_files_and_a_set_without_rows_are_refused(tmp_path, stand_in):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(StudyError, match=r"out is there and no empty folder"):
        write(*stand_in, tmp_path / "out", "x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_command_writes_the_set_and_answers_errors_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    safety_builder.main(["--per-form", "5", "--no-twins", "--to", str(tmp_path / "out")])
    assert len((tmp_path / "out/data/train.jsonl").read_text().splitlines()) == 20
    card = (tmp_path / "out/README.md").read_text()
    assert "--per-form 5 --no-twins --to out" in card and str(tmp_path) not in card and "benign twins" not in card
    assert "5 refusal code" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: .*index\.json is missing: run 00_prepare"):
        safety_builder.main(["--exclude-run", "miniature", "--to", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"^error: There is no source 'nothing'"):
        safety_builder.main(["--source", "nothing", "--to", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_the_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "studylib.data.safety_builder", "--per-form", "0", "--to", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: per_form is 0") and done.stderr.count("\n") == 1


def test_the_tests_of_a_run_are_excluded_by_prompt_and_by_intent(in_empty):
    settings = load_profile("smoke").world.model_copy(update={"seed": 5})  # of another split than the miniature's
    sets = world.build_sets(settings)
    datasets.save(RunPaths.of("smoke"), sets)
    texts, intents = safety_builder.tests_of("smoke")
    assert {prompt(row) for row in sets["harmful"]} <= set(texts)
    assert intents == {row["intent"] for row in sets["harmful"]}
    rows, counts = build(per_form=30, exclude=texts, exclude_intents=intents)
    assert counts[safety_builder.TESTED_INTENT] >= 1
    assert not intents & {row["intent"].removeprefix("stand_in/") for row in of(rows, "refusal")}
