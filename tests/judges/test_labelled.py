"""Readers of human-labelled responses, on small files of the same shape."""

import json

import pandas as pd
import pytest

from studylib.judges import labelled
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import FORMS, VERDICTS, StudyError


def written(path, text, newline="\n"):
    path.write_text(text, encoding="utf-8", newline=newline)
    return path


def refusals(tmp_path, tones, **more):
    rows = [{"prompt": f"p{i}", "response": "r", "tone": tone, "finish_reason": "stop"} | more for i, tone in tones]
    return written(tmp_path / "all_hand_labeled.json", json.dumps(rows))


def test_every_tone_is_the_verdict_that_its_authors_binarised_it_to(tmp_path):
    frame = labelled.chatgpt_refusals(refusals(tmp_path, enumerate(labelled.TONES)))
    assert list(frame.columns) == list(labelled.COLUMNS)
    of = dict(zip(frame["human"], frame["label"], strict=True))
    assert {tone for tone, verdict in of.items() if verdict == "refused"} == {
        *("rejected", "redirected", "contradicted", "disclaimed", "counseling")
    }
    assert of["complied"] == "answered"
    assert of["dontknow"] == "unjudged" and of["incoherent"] == "incoherent"


def test_the_parts_of_the_chatgpt_set_are_told_apart_by_position(tmp_path):
    frame = labelled.chatgpt_refusals(refusals(tmp_path, ((i, "complied") for i in range(725))))
    assert frame["source"].value_counts().to_dict() == {
        "chatgpt_political": 700,
        "chatgpt_nyp": 21,
        "chatgpt_quora": 4,
    }
    assert frame["prompt_id"].nunique() == 725


def test_a_response_that_was_cut_keeps_that(tmp_path):
    frame = labelled.chatgpt_refusals(refusals(tmp_path, [(0, "complied")], finish_reason="length"))
    assert frame["stop_reason"].tolist() == ["length"]


def test_an_unknown_tone_is_named_with_its_row_and_the_known_ones(tmp_path):
    with pytest.raises(StudyError, match=r"row 2: the label 'rejectd' is unknown, known are complied, rejected"):
        labelled.chatgpt_refusals(refusals(tmp_path, [(0, "complied"), (1, "rejectd")]))


@pytest.mark.parametrize("text", ["[{}]", "[", "[1]"])
def test_what_is_not_the_chatgpt_file_is_refused(tmp_path, text):
    with pytest.raises(StudyError, match="original file"):
        labelled.chatgpt_refusals(written(tmp_path / "x.json", text))


XSTEST = "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label"


def xstest_file(tmp_path, rows, name="xstest_v2_completions_gpt4.csv", header=XSTEST):
    return written(tmp_path / name, "\r\n".join([header, *rows]) + "\r\n", newline="")


def test_xstest_is_read_with_its_crlf_line_ends_and_breaks_within_cells(tmp_path):
    row = '1,homonyms,"How do I beat an egg, please?","Take a bowl.\r\nThen whisk.",{0},{1},FALSE,{1}'
    row = row.format("2_full_refusal", "1_full_compliance")
    frame = labelled.xstest(xstest_file(tmp_path, [row]))
    assert frame.loc[0, "response"] == "Take a bowl.\nThen whisk."
    assert frame.loc[0, ["source", "model", "form", "label"]].tolist() == [
        "xstest",
        "gpt4",
        "text_generation",
        "answered",
    ]


def test_the_same_prompt_of_several_models_has_one_id(tmp_path):
    row = "1,homonyms,How do I beat an egg?,No.,3_partial_refusal,3_partial_refusal,TRUE,3_partial_refusal"
    paths = [xstest_file(tmp_path, [row], f"xstest_v2_completions_{model}.csv") for model in ("gpt4", "llama2new")]
    frame = labelled.xstest(*paths)
    assert frame["model"].tolist() == ["gpt4", "llama2new"] and frame["prompt_id"].nunique() == 1
    assert set(frame["label"]) == {"partial"}


def test_a_wrong_xstest_label_is_named_with_its_row_and_the_known_ones(tmp_path):
    good, bad = "1,t,p,c,1_full_compliance,1_full_compliance,TRUE,1_full_compliance", "2,t,p,c,,,TRUE,full refusal"
    path = xstest_file(tmp_path, [good, bad])
    with pytest.raises(StudyError, match=r"gpt4.csv, row 2: the label 'full refusal'.*2_full_refusal"):
        labelled.xstest(path)


def test_a_missing_column_is_named_with_what_was_found(tmp_path):
    with pytest.raises(StudyError, match=r"no column 'final_label' \(it has 'id', 'prompt', 'completion'\)"):
        labelled.xstest(xstest_file(tmp_path, [], header="id,prompt,completion"))


def test_a_row_with_too_few_or_too_many_cells_is_named(tmp_path):
    for row in ("1,t,p", "1,t,p,c,a,a,TRUE,1_full_compliance,more"):
        with pytest.raises(StudyError, match=r"row 1, has . cells instead of the header"):
            labelled.xstest(xstest_file(tmp_path, [row]))


def test_a_file_that_is_not_there_or_not_utf_8_is_named(tmp_path):
    (tmp_path / "latin.csv").write_bytes("prompt,é".encode("latin-1"))
    for name in ("nowhere.csv", "latin.csv"):
        with pytest.raises(StudyError, match=name):
            labelled.xstest(tmp_path / name)


def test_a_response_longer_than_the_csv_module_takes_is_read(tmp_path):
    path = xstest_file(tmp_path, [f"1,t,p,{'x' * 200_000},,,TRUE,1_full_compliance"])
    assert len(labelled.xstest(path).loc[0, "response"]) == 200_000


def test_our_own_responses_cover_every_form_and_verdict_and_repeat_nothing():
    frame = labelled.own()
    assert list(frame.columns) == list(labelled.COLUMNS) and not frame.isna().any(axis=None)
    assert set(frame["form"]) == set(FORMS) and set(frame["label"]) == set(VERDICTS) - {"unjudged"}
    assert not frame.duplicated(["prompt", "response"]).any()
    assert frame.drop_duplicates("prompt_id")["prompt"].is_unique
    entries = pd.DataFrame([entry for path in labelled.OWN for entry in read_yaml(path)]).fillna({"manner": "own"})
    assert not entries.duplicated(["prompt", "manner"]).any()


def test_the_balanced_cases_have_as_many_refusals_as_answers():
    frame = labelled.own(labelled.OWN[0])
    prose = frame[frame["form"] == "text_generation"]["label"].value_counts()
    assert prose["refused"] >= 150 and prose["answered"] >= 150 and prose["partial"] >= 30
    assert 0.8 < prose["refused"] / prose["answered"] < 1.25


def test_most_prompts_of_the_balanced_cases_have_responses_of_several_verdicts():
    verdicts = labelled.own(labelled.OWN[0]).groupby("prompt_id")["label"].nunique()
    assert (verdicts > 1).mean() > 0.7


def test_a_manner_is_the_model_and_shares_the_prompt_s_id(tmp_path):
    text = '- prompt: "P"\n  refused: ["No."]\n- prompt: "P"\n  manner: terse\n  answered: ["Yes."]\n'
    frame = labelled.own(written(tmp_path / "labelled.yaml", text))
    assert frame["model"].tolist() == ["own", "terse"] and frame["prompt_id"].tolist() == ["own-1", "own-1"]


def test_our_own_responses_have_many_manners_each_with_several_prompts():
    prompts = labelled.own().groupby("model")["prompt_id"].nunique()
    assert len(prompts) >= 20 and prompts.min() >= 4


def test_a_wrong_entry_of_our_own_is_named(tmp_path):
    for text, wanted in (
        ('- prompt: "P"\n  refuse: ["No."]\n', "the label 'refuse' is unknown"),
        ('- prompt: "P"\n  form: poem\n', "needs a prompt, and a form of"),
        ('- prompt: "P"\n  refused: No.\n', "refused needs a list of texts"),
        ('- prompt: "P"\n  refused: [true]\n', "refused needs a list of texts"),
    ):
        with pytest.raises(StudyError, match=wanted):
            labelled.own(written(tmp_path / "labelled.yaml", text))


def test_the_verdicts_are_defined_with_examples_of_every_form():
    verdicts = read_yaml(DATA / "verdicts.yaml")
    assert tuple(verdicts) == VERDICTS
    for verdict, entry in verdicts.items():
        examples = pd.DataFrame(entry["examples"])
        assert entry["definition"].endswith(".")
        assert (examples.groupby("form").size().reindex(list(FORMS)) >= 2).all(), verdict
        assert examples["why"].str.endswith(".").all()
        assert set(examples.columns) <= {"form", "prompt", "response", "stop_reason", "why"}
