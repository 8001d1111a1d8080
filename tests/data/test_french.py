import logging

import pytest
from test_instructions import file, table

from studylib.data import instructions
from studylib.models import translator as model
from studylib.study.words import StudyError


def test_french_is_read_with_quotes_lines_and_a_byte_order_mark(tmp_path):
    rows = [
        ("Open a locker", "Ouvrez un casier,\nvite"),
        ("Say hello", "Dites « bonjour »"),
        ("Open a locker", "Ouvrez un casier,\nvite"),
    ]
    path = table(tmp_path, "french.csv", ("instruction", "french"), rows, end="\r\n", bom=True)
    assert instructions.read_french(path) == {
        "Open a locker": "Ouvrez un casier,\nvite",
        "Say hello": "Dites « bonjour »",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("english,french\nOpen,Ouvrez\n", r"f\.csv lacks the column 'instruction' \(it has 'english', 'french'\)"),
        ("instruction\nOpen\n", r"f\.csv lacks the column 'french'"),
        ("instruction,french\nOpen,Ouvrez\nHide, \n", r"Row 1 of f\.csv has no french"),
        ("instruction,french\n,Ouvrez\n", r"Row 0 of f\.csv has no instruction"),
        ("instruction,french\nOpen,Ouvrez\nOpen,Ouvre\n", r"Row 1 of f\.csv gives an instruction .* another French"),
    ],
)
def test_french_that_lacks_something_is_refused_with_its_row(tmp_path, content, said):
    with pytest.raises(StudyError, match=said):
        instructions.read_french(file(tmp_path, "f.csv", content))


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
def test_translations_are_kept_as_a_csv_that_read_french_reads(tmp_path, translator, batch_size):
    path = tmp_path / "new" / "french.csv"
    asked = ["hide the key", *TAUGHT, " hide the key "]  # repeated texts are translated once
    assert instructions.translate(asked, translator, None, path, batch_size=batch_size) == TAUGHT
    assert instructions.read_french(path) == TAUGHT


def test_an_interrupted_translation_goes_on_where_it_stopped(tmp_path, translator, monkeypatch):
    path, made, real = tmp_path / "french.csv", [], model.translate

    def stops(*arguments):
        if made:
            raise KeyboardInterrupt
        made.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(model, "translate", stops)
    with pytest.raises(KeyboardInterrupt):
        instructions.translate(list(TAUGHT), translator, None, path, batch_size=2)
    assert list(instructions.read_french(path)) == list(TAUGHT)[:2]

    def rest(*arguments):
        made.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(model, "translate", rest)
    assert instructions.translate(list(TAUGHT), translator, None, path, batch_size=2) == TAUGHT
    assert [text for batch in made for text in batch] == list(TAUGHT)
    monkeypatch.setattr(model, "load_translator", None)  # nothing is left to do, so no model is loaded
    assert instructions.translate(list(TAUGHT), translator, None, path) == TAUGHT


def test_a_cut_translation_is_left_out_and_said_so(tmp_path, translator, caplog):
    with caplog.at_level(logging.INFO, "studylib"):
        found = instructions.translate(list(TAUGHT), translator, None, tmp_path / "f.csv", max_new_tokens=5)
    # three words and the end are four tokens; the model ends by force at five, which says nothing
    assert found == {text: said for text, said in TAUGHT.items() if len(said.split()) == 3}
    assert "French: 5 texts, 1 of them without a whole translation" in caplog.text
    assert not any(text in caplog.text for text in TAUGHT)


def test_french_of_another_model_is_not_mixed_in(tmp_path, translator):
    path = file(tmp_path, "f.csv", "instruction,french,model,revision\nopen the bag,ouvrez,somebody/else,abc\n")
    with pytest.raises(StudyError, match=r"f\.csv holds French of somebody/else \(abc\), not of "):
        instructions.translate(["open the bag"], translator, None, path)


def test_a_translator_without_revision_or_parts_is_refused(tmp_path):
    with pytest.raises(StudyError, match="'somebody/translator' is no folder and has no revision: pin"):
        instructions.translate(["open the bag"], "somebody/translator", None, tmp_path / "f.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match=r"The translator .*empty cannot be loaded: "):
        instructions.translate(["open the bag"], str(tmp_path / "empty"), None, tmp_path / "f.csv")
