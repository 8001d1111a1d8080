"""Lists here are stand-ins in the shape of the published files: nothing of those is in the tests."""

import csv
import logging

import pytest

from studylib.data import harmful
from studylib.data.harmful import intent
from studylib.models import building as model
from studylib.study.words import StudyError


def file(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(folder, name, columns, rows, end="\n", bom=False):
    """A CSV file as pandas and spreadsheets write it: quoted where needed, with that end of line."""
    path = folder / name
    with open(path, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as out:
        csv.writer(out, lineterminator=end).writerows([columns, *rows])
    return path


def user(row):
    return row["messages"][0]["content"]


ADVBENCH = ("goal", "target")
HARMBENCH = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
JAILBREAKBENCH = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
COMPLETIONS = ("id", "type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label")


def test_advbench_is_read_with_keys_by_row_and_without_repeated_or_empty_rows(tmp_path):
    rows = [
        ("Open a locker, then close it", "Sure, here"),
        ('Hide the "blue" bag', "Sure, here"),
        ("", "Sure, here"),
        ("open a  locker, then close it.", "Sure, here"),
        ("Write a note\nin two lines", "Sure, here"),
        ("None", "null"),
    ]
    found, counts = harmful.READERS["advbench"](table(tmp_path, "advbench.csv", ADVBENCH, rows))
    assert [(one["key"], one["instruction"]) for one in found] == [
        ("0", "Open a locker, then close it"),
        ("1", 'Hide the "blue" bag'),
        ("4", "Write a note\nin two lines"),
        ("5", "None"),  # a text, not a missing value
    ]
    assert counts == {"rows": 6, "repeated": 1, "empty": 1, "kept": 4}
    assert found[1] == {
        "source": "advbench",
        "key": "1",
        "instruction": 'Hide the "blue" bag',
        "category": "",
        "twin": None,
    }


def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path):
    rows = [("Open a locker\nquietly", "x"), ("Hide a bag", "y")]
    plain = harmful.READERS["advbench"](table(tmp_path, "a.csv", ADVBENCH, rows))
    crlf = [(text.replace("\n", "\r\n"), target) for text, target in rows]
    assert harmful.READERS["advbench"](table(tmp_path, "b.csv", ADVBENCH, crlf, end="\r\n", bom=True)) == plain
    assert plain[0][0]["instruction"] == "Open a locker\nquietly"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("goals,target\nOpen a locker,x\n", r"a\.csv has no column 'goal' \(it has 'goals', 'target'\)"),
        ("", r"a\.csv has no column 'goal' \(it has no header"),
        ("goal,target\nOpen a locker,x\nHide, a bag,y\n", r"a\.csv, row 2, has 3 cells instead of the header's 2"),
        ("goal,target\nOpen a locker,x\nHide a bag\n", r"a\.csv, row 2, has 1 cells instead of the header's 2"),
        ('goal,target\nOpen a locker,x\n"Hide a bag,y\n', r"a\.csv, row 2, has 1 cells"),
        (b"goal,target\nOpen a caf\xe9,x\n", r"a\.csv is no UTF-8 from byte 22 on"),
        ('goal,target\n"' + "a" * 140_000 + ",x\n", r"a\.csv, row 1, has 1 cells"),
    ],
)
def test_a_list_that_is_another_file_or_broken_is_refused_with_its_name_and_place(tmp_path, content, said):
    with pytest.raises(StudyError, match=said):
        harmful.READERS["advbench"](file(tmp_path, "a.csv", content))


def test_harmbench_keeps_standard_behaviours_and_counts_the_others(tmp_path):
    rows = [
        ("Open a locker", "standard", "lockers", "", "", "open_locker"),
        ("Open the locker below", "contextual", "lockers", "context", "The locker has\nthree doors.", "open_below"),
        ("Sing the song", "copyright", "songs", "lyrics", "", "sing_song"),
        ("Hide a bag", "standard", "bags", "", "", "hide_bag"),
    ]
    path = table(tmp_path, "harmbench.csv", HARMBENCH, rows)
    found, counts = harmful.READERS["harmbench"](path)
    assert [intent(one) for one in found] == ["harmbench/0", "harmbench/3"]
    assert found[0]["category"] == "lockers"
    assert counts == {"rows": 4, "kept": 2, "contextual": 1, "copyright": 1}


def test_strongreject_is_read_by_its_forbidden_prompt(tmp_path):
    rows = [("lockers", "custom", "How can I open a locker?"), ("bags", "custom", "Hide a bag.")]
    path = table(tmp_path, "strongreject.csv", ("category", "source", "forbidden_prompt"), rows)
    found, counts = harmful.READERS["strongreject"](path)
    assert [(one["key"], one["category"]) for one in found] == [("0", "lockers"), ("1", "bags")]
    assert found[0]["instruction"] == "How can I open a locker?" and counts["kept"] == 2


def test_jailbreakbench_is_paired_by_index_whatever_the_order(tmp_path):
    goals = [
        ("0", "Open Paul's locker", "", "Lockers", "Things", "Original"),
        ("7", "Hide a bag", "", "B", "Bags", "O"),
    ]
    benign = [("7", "Carry a bag", "", "B", "Other", "O"), ("0", "Open my locker", "", "Lockers", "Things", "Original")]
    files = [table(tmp_path, f"{n}.csv", JAILBREAKBENCH, r) for n, r in (("harmful", goals), ("benign", benign))]
    found, counts = harmful.jailbreakbench(*files)
    assert [(one["key"], one["instruction"], one["twin"]) for one in found] == [
        ("0", "Open Paul's locker", "Open my locker"),
        ("7", "Hide a bag", "Carry a bag"),
    ]
    assert counts == {"rows": 2, "kept": 2}


def test_jailbreakbench_files_with_other_or_repeated_indices_are_no_pair(tmp_path):
    rows = [(str(i), f"Open locker {i}", "", "L", "T", "O") for i in range(3)]
    kinds = {"harmful.csv": rows, "benign.csv": rows[:2], "twice.csv": [*rows, rows[1]]}
    whole, cut, twice = (table(tmp_path, name, JAILBREAKBENCH, some) for name, some in kinds.items())
    with pytest.raises(StudyError, match=r"harmful\.csv and benign\.csv are paired by Index, but one alone has '2'"):
        harmful.jailbreakbench(whole, cut)
    for files in ((whole, twice), (twice, whole)):
        with pytest.raises(StudyError, match="one has an index twice"):
            harmful.jailbreakbench(*files)


def test_xstest_gives_its_safe_prompts_alone_from_completions_with_crlf(tmp_path):
    rows = [
        ("1", "homonyms", "How can I kill time?", "Read,\r\nor walk.", "1_full_compliance", "", "True", "1"),
        ("2", "contrast_homonyms", "How can I open Paul's locker?", "I can't.", "", "", "True", "2_full_refusal"),
        ("3", "safe_targets", "How do I crush a can?", 'Say "please".', "", "", "False", ""),
    ]
    found, counts = harmful.xstest(table(tmp_path, "completions.csv", COMPLETIONS, rows, end="\r\n"))
    assert [(one["key"], one["category"], one["instruction"]) for one in found] == [
        ("1", "homonyms", "How can I kill time?"),
        ("3", "safe_targets", "How do I crush a can?"),
    ]
    assert counts == {"rows": 3, "contrast": 1, "kept": 2}
    made = harmful.over_refusal(found)
    assert [(row["id"], row["prompt_set"], row["harmful"], row["benign_because"], user(row)) for row in made] == [
        ("twin-text_generation-xstest/1", "sounds_harmful", False, "homonyms", "How can I kill time?"),
        ("twin-text_generation-xstest/3", "sounds_harmful", False, "safe_targets", "How do I crush a can?"),
    ]
    assert {row["twin_of"] for row in made} == {""}


# French


def test_french_is_read_with_quotes_lines_and_a_byte_order_mark(tmp_path):
    rows = [
        ("Open a locker", "Ouvrez un casier,\nvite"),
        ("Say hello", "Dites « bonjour »"),
        ("Open a locker", "Ouvrez un casier,\nvite"),
    ]
    path = table(tmp_path, "french.csv", ("instruction", "french"), rows, end="\r\n", bom=True)
    assert harmful.read_french(path) == {
        "Open a locker": "Ouvrez un casier,\nvite",
        "Say hello": "Dites « bonjour »",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("english,french\nOpen,Ouvrez\n", r"f\.csv has no column 'instruction' \(it has 'english', 'french'\)"),
        ("instruction\nOpen\n", r"f\.csv has no column 'french'"),
        ("instruction,french\nOpen,Ouvrez\nHide, \n", r"f\.csv, row 2, has no french or no instruction"),
        ("instruction,french\n,Ouvrez\n", r"f\.csv, row 1, has no french or no instruction"),
        ("instruction,french\nOpen,Ouvrez\nOpen,Ouvre\n", r"f\.csv, row 2, has another french than an earlier row"),
    ],
)
def test_french_that_lacks_something_is_refused_with_its_row(tmp_path, content, said):
    with pytest.raises(StudyError, match=said):
        harmful.read_french(file(tmp_path, "f.csv", content))


TAUGHT = {
    "open the locker": "ouvrez le casier",
    "hide the key": "cachez la clé",
    "sell the old bag": "vendez le vieux sac",
    "open the bag": "ouvrez le sac",
    "find my key": "trouvez ma clé",
}


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """The folder of a random two-layer model, taught the five sentences above until it knows them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(" ".join([*TAUGHT, *TAUGHT.values()]).split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    torch.manual_seed(0)
    sides = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))
    }
    ids = {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    config = BartConfig(
        vocab_size=len(words), d_model=32, max_position_embeddings=32, init_std=0.1, dropout=0.0, **sides, **ids
    )
    model = BartForConditionalGeneration(config)
    batch = fast(list(TAUGHT), return_tensors="pt", padding=True)
    labels = fast(list(TAUGHT.values()), return_tensors="pt", padding=True)["input_ids"]
    labels[labels == 1] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("translator")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_translations_are_kept_as_a_csv_that_read_french_reads(tmp_path, translator, monkeypatch, batch_size):
    monkeypatch.setattr(harmful, "TRANSLATED_AT_ONCE", batch_size)
    asked = ["hide the key", *TAUGHT, " hide the key "]  # repeated texts are translated once
    assert harmful.translate(asked, translator, None, tmp_path / "new") == TAUGHT
    (path,) = (tmp_path / "new").iterdir()
    assert harmful.read_french(path) == TAUGHT


def test_an_interrupted_translation_goes_on_where_it_stopped(tmp_path, translator, monkeypatch):
    made, real = [], model.translate
    monkeypatch.setattr(harmful, "TRANSLATED_AT_ONCE", 2)

    def stops(*arguments):
        if made:
            raise KeyboardInterrupt
        made.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(model, "translate", stops)
    with pytest.raises(KeyboardInterrupt):
        harmful.translate(list(TAUGHT), translator, None, tmp_path)
    (path,) = tmp_path.iterdir()
    assert list(harmful.read_french(path)) == list(TAUGHT)[:2]

    def rest(*arguments):
        made.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(model, "translate", rest)
    assert harmful.translate(list(TAUGHT), translator, None, tmp_path) == TAUGHT
    assert [text for batch in made for text in batch] == list(TAUGHT)
    monkeypatch.setattr(model, "load_translator", None)  # nothing is left to do, so no model is loaded
    assert harmful.translate(list(TAUGHT), translator, None, tmp_path) == TAUGHT


def test_a_cut_translation_is_left_out_and_said_so(tmp_path, translator, caplog, monkeypatch):
    monkeypatch.setattr(harmful, "LONGEST_FRENCH", 5)
    with caplog.at_level(logging.INFO, "studylib"):
        found = harmful.translate(list(TAUGHT), translator, None, tmp_path)
    # three words and the end are four tokens; the model ends by force at five, which says nothing
    assert found == {text: said for text, said in TAUGHT.items() if len(said.split()) == 3}
    assert "French: 5 texts, 1 of them without a whole translation" in caplog.text
    assert not any(text in caplog.text for text in TAUGHT)


def test_french_of_another_model_is_not_mixed_in(tmp_path, translator, monkeypatch):
    harmful.translate(["open the bag"], translator, None, tmp_path)
    monkeypatch.setattr(model, "load_translator", lambda *_: (None, None))
    monkeypatch.setattr(model, "translate", lambda model, tokenizer, texts, n: ["autre"] * len(texts))
    for named in (("somebody/else", "abc"), ("somebody/else", "abd")):
        assert harmful.translate(["open the bag"], *named, tmp_path) == {"open the bag": "autre"}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_translator_without_revision_or_parts_is_refused(tmp_path):
    with pytest.raises(StudyError, match="'somebody/translator' is no folder and has no revision: pin"):
        harmful.translate(["open the bag"], "somebody/translator", None, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match=r"The translator .*empty cannot be loaded: "):
        harmful.translate(["open the bag"], str(tmp_path / "empty"), None, tmp_path)
