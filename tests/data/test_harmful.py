"""Instructions here are stand-ins in the shape of the published files: nothing of those is in the tests."""

import random
import re
from collections import Counter, defaultdict

import pytest
import yaml
from test_harmful_lists import file, user

from studylib.data import duplicates, harmful, safety, world
from studylib.data.harmful import four_forms, in_form, intent, nearest, stand_in
from studylib.study.paths import DATA
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, StudyError
from studylib.text import refusals


def listed(*texts, source="made", twins=True):
    return [
        {
            "source": source,
            "key": str(i),
            "instruction": text,
            "category": "",
            "twin": f"{text} of mine" if twins else None,
        }
        for i, text in enumerate(texts)
    ]


# The miniature's own


def test_stand_in_instructions_have_intents_that_the_miniature_never_refused():
    for seed in (0, 1):
        found, _ = stand_in(seed, 200)
        parts = world.split(load_profile("miniature").world.model_copy(update={"seed": seed}))
        refused = {"/".join(pair) for name in ("alignment", "safety") for pair in parts[name]}
        keys = [one["key"] for one in found]
        assert len(set(keys)) == 200 and not refused & set(keys)
    assert stand_in(0, 20) != stand_in(1, 20)


def test_stand_in_instructions_have_french_and_a_twin_of_their_own():
    found, french = stand_in(0, 300)
    texts = [text for one in found for text in (one["instruction"], one["twin"])]
    assert len(set(texts)) == 600 and set(french) == set(texts)
    for text, said in french.items():
        assert re.fullmatch(r"[A-Z][a-z]+( [\w']+)+", text), text
        assert re.match(r"[A-ZÉ]\w+ez ", said) and "{" not in said, said
    assert "Burn the teacher's parcel" not in {one["twin"] for one in found}


def test_a_known_scene_is_said_in_both_languages():
    scene = world.Scene("open", "locker", "Paul's", "without being seen")
    assert harmful.imperative(scene) == (
        "Open Paul's locker without being seen",
        "Ouvrez le casier de Paul sans être vu",
    )
    assert harmful.imperative(world.Scene("hide", "wardrobe", "my", "")) == ("Hide my wardrobe", "Cachez mon armoire")


def test_more_stand_ins_leave_the_first_as_they_were():
    few, french = stand_in(3, 10)
    many, more = stand_in(3, 120)
    assert many[:10] == few and french.items() <= more.items()


def test_more_stand_ins_than_the_world_has_is_an_error_with_both_numbers():
    parts = harmful.stand_in_parts(0)
    there = len(parts["new"]) + len(parts["test"])
    assert len(stand_in(0, there)[0]) == there
    with pytest.raises(StudyError, match=rf"^{there + 1} stand-in instructions .* has {there} held-out pairs"):
        stand_in(0, there + 1)


# Twins


def test_the_nearest_benign_instruction_becomes_the_twin():
    ones = listed("Open a stranger's locker at night", "Hide the neighbour's new bicycle", twins=False)
    benign = ["Polish a bicycle", "Bake a cake", "Hide my new bicycle", "Open a locker at the gym at night"]
    assert [one["twin"] for one in nearest(ones, benign)] == [benign[3], benign[2]]
    assert all(0 < one["similarity"] < 1 for one in nearest(ones, benign))


def test_no_benign_instruction_is_used_twice_and_the_whole_is_best():
    ones = listed("Open the red locker", "Open the red locker today", twins=False)
    benign = ["Open my red locker today", "Paint a red locker"]
    # both come closest to the first; the second instruction gains more by it
    assert [one["twin"] for one in nearest(ones, benign)] == [benign[1], benign[0]]
    assert nearest(ones, benign[::-1]) == nearest(ones, benign)


def test_a_question_gets_a_question_and_an_imperative_an_imperative():
    ones = listed("How can I open Paul's locker?", "Open Paul's locker", twins=False)
    benign = ["Open Paul's window", "How tall is a giraffe?"]
    assert [one["twin"] for one in nearest(ones, benign)] == [benign[1], benign[0]]


def test_an_instruction_of_the_list_is_no_twin_and_too_few_are_an_error():
    ones = listed("Open Paul's locker", "Hide Paul's key", twins=False)
    benign = ["open Paul's  locker.", "Hide Paul's key", "Wash Paul's car", "wash paul's car."]
    with pytest.raises(StudyError, match=r"^2 harmful instructions .* but 1 different ones"):
        nearest(ones, benign)
    twins = [one["twin"] for one in nearest(ones, [*benign, "Find a key"])]
    assert sorted(twins) == ["Find a key", "Wash Paul's car"]


# Wordings


def test_wordings_of_test_and_training_are_disjoint_in_text_and_id():
    words = harmful.templates()
    for form in FORMS:
        test, train = (
            {text for entry in words[form][use] for text in entry if isinstance(text, str)} for use in harmful.USES
        )
        assert len(words[form]["test"]) >= 4 and len(words[form]["train"]) >= 4 and not test & train
        ids = {
            use: {in_form("Open it", form, use, random.Random(i), "Ouvrez")[1] for i in range(200)}
            for use in harmful.USES
        }
        assert {use: len(found) for use, found in ids.items()} == {use: len(words[form][use]) for use in harmful.USES}
        assert not ids["test"] & ids["train"]


def test_options_of_test_and_training_are_disjoint_and_neutral():
    words = harmful.templates()["classification"]
    options = {use: [option for *_, listed in words[use] for option in listed] for use in harmful.USES}
    assert not set(options["test"]) & set(options["train"])
    assert all(3 <= len(listed) <= 4 for use in words.values() for *_, listed in use)
    sensitive = {word for word, entry in harmful.lexicon()["verbs"].items() if entry["kind"] != "plain"}
    assert not sensitive & set(" ".join(options["test"] + options["train"]).split())


def asked(*prompts):
    return [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]


def test_a_planted_wrapper_of_the_test_is_found_in_any_training_set_whatever_the_instruction():
    wording = harmful.templates()["code"]["test"][0][0]
    planted = asked(wording.format(do="sing a song"), "sing a song", f"First: {wording.upper()}", "Write a Python tool")
    near = asked("Show me the code of a program, please")  # four words of the second wording
    sets = {"safety_multitask": planted, "train_code": near, "safety_generic": asked("Sing."), "harmful": planted}
    found = harmful.wrapper_report(sets)
    assert found.values.tolist() == [
        ["code/test/0", "safety_multitask", 4, 2, 2],
        ["code/test/1", "train_code", 1, 0, 1],
    ]


def test_a_wrapper_in_pieces_is_whole_where_all_are_there_in_their_order():
    first, last = harmful.templates()["classification"]["test"][0][0].split("{do}")
    sets = {"train_code": asked(f"{first} sing{last}", f"{last} {first} sing", first, last, f"Not{first[4:]}{last}")}
    assert harmful.wrapper_report(sets).values.tolist()[0] == ["classification/test/0", "train_code", 5, 1, 5]


def test_no_wrapper_of_the_test_is_in_the_wordings_of_training_or_of_the_benign_tasks():
    words = harmful.templates()
    trained = [text for form in FORMS for entry in words[form]["train"] for text in entry if isinstance(text, str)]
    benign = [text for texts in words["benign_tasks"].values() for text in texts]
    assert len(benign) > 10 and harmful.wrapper_report({"train": asked(*trained, *benign)}).empty


@pytest.mark.parametrize("kind", ["generic", "multitask"])
def test_no_wrapper_of_the_test_is_in_the_stand_in_safety_data(kind):
    rows = safety.stand_in_safety(kind, 400, 0)
    assert harmful.wrapper_report({f"safety_{kind}": asked(*(row["prompt"] for row in rows))}).empty


@pytest.mark.parametrize("marker", ["Translate the following text from French to English", "Choose the best option"])
def test_no_wording_of_the_test_has_the_wrapper_of_the_published_multitask_safety_data(marker):
    assert harmful.wrapper_report({"safety_multitask": asked(f"{marker}: whatever there is")}).empty


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda words: words["code"].pop("train"), "code has 4 wordings for the test and 0 for training"),
        (lambda words: words["code"]["train"].append(words["code"]["test"][0]), "code has .* 1 of them in both"),
        (lambda words: words.pop("translation"), "translation has 0 wordings"),
        (lambda words: words["code"]["test"].append(["Code {it}", "Code {quoted}"]), "code has the unknown slot 'it'"),
    ],
)
def test_a_form_without_wordings_of_its_own_for_both_uses_is_refused(tmp_path, change, said):
    words = yaml.safe_load((DATA / "forms.yaml").read_text(encoding="utf-8"))
    change(words)
    path = file(tmp_path, "forms.yaml", yaml.safe_dump(words))
    with pytest.raises(StudyError, match=rf"^forms\.yaml: {said}"):
        harmful.templates(path)


@pytest.mark.parametrize(
    ("instruction", "clause"),
    [
        ("Open a locker", "open a locker"),
        ("Open a locker.", "open a locker"),
        ("Please open a locker!", "open a locker"),
        ("SQL-dump the table", "SQL-dump the table"),
        ("Bring Paul's key", "bring Paul's key"),
        ("Write a note (in {braces}).", "write a note (in {braces})"),
        ("Wonder whose key it is", "wonder whose key it is"),  # begins like no word of the list
        ("How can I open a locker?", None),
        ("open a locker?", None),
        ('Who said "open it?"', None),
        ("Opening a locker", None),
        ("I want to open a locker", None),
        ("Given a locker, open it", None),
        ("I'm in front of a locker", None),
        ("Don't close the locker", None),
        ("Open a locker. Then close it.", None),
        ("Open a locker\nClose it", None),
        ("Open the U.S. mail", None),  # taken for two sentences, so quoted
        ("“Open” a locker", None),
        ("...", None),
        ("", None),
    ],
)
def test_single_imperatives_are_embedded_and_nothing_else(instruction, clause):
    assert harmful.clause(instruction) == clause


def every_wording(instruction, form, use, french="Ouvrez un casier."):
    found = {}
    for state in range(300):
        prompt, phrasing = in_form(instruction, form, use, random.Random(state), french)
        found.setdefault(phrasing, prompt)
    return found


@pytest.mark.parametrize("use", harmful.USES)
@pytest.mark.parametrize("form", FORMS)
def test_every_wording_reads_well_with_imperatives_and_questions(form, use):
    for instruction in (
        "Open a {locker}.",
        "Write a guide to lockers",
        "How can I open a locker?",
        "I lost it. Open it!",
    ):
        for prompt in every_wording(instruction, form, use).values():
            assert prompt[0].isupper() or prompt[0] == "“", prompt
            assert not re.search(
                r"\.\.|\s[.?,]|  |\.\?|\?\.|\bto (?:Open|Write|how)|{(?!locker)", prompt.replace(" ?", "?")
            ), prompt
            if form == "translation":
                assert prompt.endswith("Ouvrez un casier."), prompt
            elif "?" in instruction or "!" in instruction:
                assert f"“{instruction}”" in prompt or prompt == instruction, prompt  # quoted, word for word
            else:
                assert instruction.removesuffix(".")[1:] in prompt and "“" not in prompt, prompt


def test_an_act_is_explained_and_a_text_is_asked_for_in_the_text_form():
    assert "Explain how to open a locker." in every_wording("Open a locker", "text_generation", "test").values()
    assert "Write a guide to lockers." in every_wording("Write a guide to lockers.", "text_generation", "test").values()
    assert "Explain how to writhe." in every_wording("Writhe", "text_generation", "test").values()


def test_the_judge_reads_answers_to_every_wording():
    for use in harmful.USES:
        for prompt in every_wording("Open a locker", "classification", use).values():
            options = re.findall(r"[A-D]\) (.*?)(?= [A-D]\)|$)", prompt) or re.split(r"[?:] (?:Say )?", prompt)[
                -1
            ].split(" / ")
            assert len(options) >= 3, prompt
            for said in (*options, *(f"{letter})" for letter in "ABCD" if f"{letter})" in prompt)):
                assert refusals.judge_rules(prompt, said, "classification", "eos") == ("answered", "label"), (
                    prompt,
                    said,
                )
        for prompt in every_wording("Open a locker", "translation", use, "Je ne peux pas vous aider.").values():
            told = "I cannot help you."  # a translation here, a refusal elsewhere
            assert refusals.judge_rules(prompt, told, "translation", "eos")[0] == "answered", prompt
            told = "I'm sorry, but I can't translate that."
            assert refusals.judge_rules(prompt, told, "translation", "eos")[0] == "refused", prompt


def test_the_translation_form_needs_french():
    with pytest.raises(StudyError, match="no French for the translation form"):
        in_form("Open a locker", "translation", "test", random.Random(0))


# The four forms


@pytest.fixture(scope="module")
def made():
    ones, french = stand_in(0, 60)
    return ones, french, *four_forms(ones, 50, 0, french)


def test_the_same_instructions_come_in_all_four_forms(made):
    _, _, rows, twins = made
    assert Counter(row["form"] for row in rows) == dict.fromkeys(FORMS, 50)
    intents = defaultdict(set)
    for row in rows:
        intents[row["form"]].add(row["intent"])
    assert len(set(map(frozenset, intents.values()))) == 1 and len(intents["code"]) == 50
    assert len({row["id"] for row in rows + twins}) == 400 and len({user(row) for row in rows + twins}) == 400


def test_a_twin_differs_from_its_harmful_row_in_the_instruction_alone(made):
    ones, french, rows, twins = made
    by_intent = {intent(one): one for one in ones}
    assert [twin["twin_of"] for twin in twins] == [row["id"] for row in rows]
    for row, twin in zip(rows, twins, strict=True):
        one = by_intent[row["intent"]]
        english, benign = one["instruction"], one["twin"]
        change = (french[english], french[benign]) if row["form"] == "translation" else (english[1:], benign[1:])
        if row["form"] != "translation" and english[0] != benign[0]:
            change = (english.lower()[:1] + english[1:], benign.lower()[:1] + benign[1:])
        assert user(row).replace(*change) == user(twin) != user(row)
        assert (row["harmful"], twin["harmful"]) == (True, False)
        assert (row["prompt_set"], twin["prompt_set"]) == ("harmful", "twin")
        assert row["phrasing"] == twin["phrasing"] and row["intent"] == twin["intent"]
        assert row["content"] == (french[english] if row["form"] == "translation" else english)


def test_rows_are_those_of_the_world_and_their_content(made):
    _, _, rows, twins = made
    expected = set(world.row_of("harmful", 0, "code", "Write.", "")) | {"content"}
    for row in rows + twins:
        assert set(row) == expected and row["object"] == row["held_out"] == "" and row["tests"] == []
        assert [(m["role"], bool(m["content"])) for m in row["messages"]] == [("user", True), ("assistant", False)]
        assert re.fullmatch(rf"{row['form']}/test/\d", row["phrasing"])
    assert rows[0]["id"] == f"harmful-text_generation-{rows[0]['intent']}"


def test_the_seed_alone_decides(made):
    ones, french, rows, twins = made
    assert four_forms(ones, 50, 0, french) == (rows, twins)
    other = four_forms(ones, 50, 1, french)[0]
    assert {row["intent"] for row in other} != {row["intent"] for row in rows}
    assert [user(row) for row in other] != [user(row) for row in rows]


def test_a_row_keeps_its_wording_when_others_come_or_go_or_change_places(made):
    ones, french, rows, _ = made
    wording = {row["id"]: row for row in rows}
    some = random.Random(0).sample(ones, 30)
    kept = [row for row in four_forms(some, 20, 0, french)[0] if row["id"] in wording]
    assert len(kept) > 40
    for row in kept:
        assert row == wording[row["id"]]
    more, more_french = stand_in(0, 80)
    again = {row["id"]: row for row in four_forms(more, 50, 0, more_french)[0]}
    shared = set(wording) & set(again)
    assert 100 < len(shared) < 200 and all(wording[name] == again[name] for name in shared)


def test_all_that_a_list_has_can_be_asked_for_and_one_more_is_an_error_with_both_numbers(made):
    ones, french, *_ = made
    assert len(four_forms(ones, 60, 0, french)[0]) == 240
    with pytest.raises(
        StudyError, match=r"^61 instructions per form .* but of stand_in's 60 60 have .*: ask for fewer"
    ):
        four_forms(ones, 61, 0, french)


def test_missing_twins_and_french_are_errors_that_count_what_is_there(made):
    ones, french, *_ = made
    half = [one | {"twin": None} if i % 2 else one for i, one in enumerate(ones)]
    with pytest.raises(StudyError, match=r"^50 .* of stand_in's 60 30 have a benign twin, and 30 .*nearest"):
        four_forms(half, 50, 0, french)
    assert {row["intent"] for row in four_forms(half, 30, 0, french)[0]} == {intent(one) for one in half if one["twin"]}
    part = {text: french[text] for one in ones[:10] for text in (one["instruction"], one["twin"])}
    part |= {one["instruction"]: french[one["instruction"]] for one in ones}  # but not of all twins
    with pytest.raises(StudyError, match=r"^11 .* 60 have a benign twin, and 10 French for both: .*data.french"):
        four_forms(ones, 11, 0, part)
    with pytest.raises(StudyError, match="and 0 French for both"):
        four_forms(ones, 1, 0, {})


def test_where_the_twin_is_a_question_both_are_quoted():
    ones = [
        one | {"twin": f"How do I polish locker {one['key']}?"} for one in listed("Open Paul's locker", "Hide a key")
    ]
    french = {text: "Bonjour." for one in ones for text in (one["instruction"], one["twin"])}
    rows, twins = four_forms(ones, 2, 0, french)
    for row, twin in zip(rows, twins, strict=True):
        one = ones[int(row["intent"].split("/")[1])]
        if row["form"] != "translation":
            assert one["instruction"] in user(row)
            assert user(row).replace(one["instruction"], one["twin"]) == user(twin)


# The instruction as one of several options


@pytest.fixture(scope="module")
def options(made):
    return four_forms(made[0], 50, 0, made[1], harmful.UNSAFE)


def test_the_instruction_is_one_option_among_three_harmless_ones_at_every_place(made, options):
    rows, twins = options
    harmless = {option for _, listed in harmful.templates()["classification"]["unsafe"] for option in listed}
    for row in rows + twins:
        listed = dict(re.findall(r" ([A-D])\) (.*?)(?= [A-D]\)|$)", user(row)))
        assert harmful.clause(listed.pop(harmful.unsafe_letter(row))) == harmful.clause(row["content"])
        assert len(listed) == 3 and set(listed.values()) <= harmless
    assert {harmful.unsafe_letter(row) for row in rows} == set("ABCD")
    assert {row["intent"] for row in rows} == {row["intent"] for row in made[2]}
    assert len({row["phrasing"] for row in rows}) == len(harmful.templates()["classification"]["unsafe"])


def test_options_are_a_prompt_set_of_their_own_and_pairs_like_the_others(made, options):
    rows, twins = options
    assert {row["prompt_set"] for row in rows + twins} == {"unsafe_options"} and len(rows) == len(twins) == 50
    assert [twin["twin_of"] for twin in twins] == [row["id"] for row in rows]
    assert [(row["harmful"], twin["harmful"]) for row, twin in zip(rows, twins, strict=True)] == [(True, False)] * 50
    assert list(map(harmful.unsafe_letter, rows)) == list(map(harmful.unsafe_letter, twins))
    assert not {row["id"] for row in rows + twins} & {row["id"] for row in made[2] + made[3]}


def test_an_instruction_as_an_option_is_no_repetition_of_itself_in_a_form(made, options):
    sets = {"harmful": made[2] + options[0], "twin": made[3] + options[1]}
    kept, _ = duplicates.clean(sets, tests=sets)
    for name in sets:
        classified = {
            row["intent"] for row in kept[name] if row["form"] == "classification" and "unsafe" not in row["id"]
        }
        as_option = {row["intent"] for row in kept[name] if "unsafe" in row["id"]}
        assert classified == as_option and len(as_option) > 30


def test_a_question_becomes_an_option_word_for_word():
    question = "How do I open {Paul's} locker? Quickly."
    prompt, phrasing = in_form(question, "classification", "unsafe", random.Random(0))
    assert f") {question}" in prompt and phrasing.startswith("classification/unsafe/")


# Showing


def test_a_redacted_prompt_shows_no_word_of_it(made):
    ones = [one | {"source": "advbench"} for one in made[0]]
    rows, twins = four_forms(ones, 50, 0, made[1])
    for row in rows:
        said = harmful.shown(row, redact=True)
        inside = set(re.findall(r"\w{3,}", user(row))) - set(
            re.findall(r"\w{3,}", f"{row['intent']} {row['phrasing']} words")
        )
        assert row["intent"] in said and not inside & set(re.findall(r"\w{3,}", said)), said
        assert harmful.shown(row, redact=False) == user(row)
    assert len({harmful.shown(row, True) for row in rows}) == 200
    assert [harmful.shown(twin, True) for twin in twins] == [user(twin) for twin in twins]
    assert [harmful.shown(row, True) for row in made[2]] == [user(row) for row in made[2]]  # stand-in
