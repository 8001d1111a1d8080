"""Choosing what to label, the sheet driven as in a notebook, and the file it leaves."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from frames import study

from studylib.stages import judging
from studylib.study.files import read_rows
from studylib.study.words import FORMS, VERDICTS, StudyError

NASTY = 'He said "no",\r\nthen\n\n,"";\ttab \u202eevil\u2066 <b>bold</b> & \ud800 \x00\x1b[31m = end"'


def responses(n=6, **columns):
    rows = pd.DataFrame(
        {
            "response_id": [f"miniature-code-chat-multitask/plain/{i}" for i in range(n)],
            "prompt": [f"Write the steps to open a stranger's locker, case {i}." for i in range(n)],
            "response": [f"First find locker {i}. Then open it." for i in range(n)],
            "form": [FORMS[i % 4] for i in range(n)],
            "stop_reason": "eos",
        }
    )
    return rows.assign(**columns)


def ticking(step=4):
    """A clock on which `step` seconds pass between any two looks."""
    return itertools.count(step=step).__next__


def sheet(path, rows=None, **options):
    rows = responses() if rows is None else rows
    return judging.Sheet(rows, path, **{"redact": False, "clock": ticking(), **options})


def press(one, *verdicts):
    for verdict in verdicts:
        one.buttons[verdict].click()


def shown(one):
    """Every text of the widget, as the browser gets it."""

    def texts(widget):
        for name in ("value", "description", "tooltip", "placeholder"):
            yield str(getattr(widget, name, "") or "")
        for child in getattr(widget, "children", ()):
            yield from texts(child)

    return "\n".join(texts(one.box))


def current(one):
    return one.rows[one.place]["response_id"]


# --- choosing


@pytest.fixture(scope="module")
def judged():
    """A simulated study in which no two texts are equal, with two judges that disagree on a tenth of it."""
    rows, verdicts, _ = study(np.random.default_rng(0), tasks=("code", "translation"), seeds=(0,))
    rows = rows[rows["prompt_set"] == "harmful"].assign(response=lambda r: r["response_id"])
    verdicts = verdicts[verdicts["response_id"].isin(rows["response_id"])]
    flip = np.random.default_rng(1).random(len(verdicts)) < 0.1
    other = verdicts["verdict"].where(
        ~flip, verdicts["verdict"].map(lambda v: "answered" if v == "refused" else "refused")
    )
    return rows, pd.concat([verdicts, verdicts.assign(judge="words", verdict=other)])


def split_ids(verdicts):
    kinds = verdicts["verdict"].where(verdicts["verdict"].isin(["refused", "unjudged"]), "other")
    seen = kinds.groupby(verdicts["response_id"]).agg(set)
    return set(seen[seen.map(lambda s: len(s) > 1 or "unjudged" in s)].index)


def test_half_of_the_rows_are_disagreements_and_half_drawn_from_the_rest(judged):
    rows, verdicts = judged
    chosen = judging.choose(rows, verdicts, n=40)
    assert len(chosen) == chosen["response_id"].nunique() == 40
    assert chosen["chosen_because"].value_counts().to_dict() == {judging.DISAGREE: 20, judging.RANDOM: 20}
    split = chosen["response_id"].isin(split_ids(verdicts))
    assert (split == (chosen["chosen_because"] == judging.DISAGREE)).all()


def test_what_one_kind_lacks_the_other_fills_up(judged):
    rows, verdicts = judged
    n_split = len(split_ids(verdicts))
    many = judging.choose(rows, verdicts, n=n_split + 60, random_share=0.01)
    assert many["chosen_because"].value_counts().to_dict() == {judging.DISAGREE: n_split, judging.RANDOM: 60}
    alone = judging.choose(rows, verdicts[verdicts["judge"] == "rules"].replace("unjudged", "answered"), n=30)
    assert set(alone["chosen_because"]) == {judging.RANDOM} and len(alone) == 30
    assert len(judging.choose(rows, verdicts, n=10**6)) == len(rows)


def test_the_choice_is_the_same_however_the_rows_are_sorted_and_another_with_another_seed(judged):
    rows, verdicts = judged
    first = judging.choose(rows, verdicts, n=40)
    mixed = judging.choose(rows.sample(frac=1, random_state=1), verdicts.sample(frac=1, random_state=2), n=40)
    pd.testing.assert_frame_equal(first, mixed)
    other = judging.choose(rows, verdicts, n=40, seed=1)
    assert set(other["response_id"]) != set(first["response_id"])


@pytest.mark.slow
def test_weights_stand_for_all_responses_and_undo_the_choice(judged):
    rows, verdicts = judged
    truth = verdicts[verdicts["judge"] == "rules"].set_index("response_id")["verdict"] == "refused"
    disagreed = rows["response_id"].isin(split_ids(verdicts)).mean()
    weighted, plain = [], []
    for seed in range(40):
        chosen = judging.choose(rows, verdicts, n=60, seed=seed)
        assert chosen["weight"].sum() == pytest.approx(len(rows))
        refused = chosen["response_id"].map(truth)
        weighted.append((refused * chosen["weight"]).sum() / chosen["weight"].sum())
        plain.append((chosen["chosen_because"] == judging.DISAGREE).mean())
    assert np.mean(weighted) == pytest.approx(truth.mean(), abs=0.015)
    assert np.mean(plain) > 3 * disagreed  # or there is nothing to undo


def test_forms_and_arms_come_in_proportion(judged):
    rows, verdicts = judged
    chosen = judging.choose(rows, verdicts, n=80).merge(rows[["response_id", "safety_data", "finetune_task"]])
    drawn = chosen[chosen["chosen_because"] == judging.RANDOM]
    same = rows[~rows["response_id"].isin(split_ids(verdicts))]
    for name in ("form", ["form", "finetune_task"]):
        expected = same.groupby(name).size() / len(same) * len(drawn)
        assert (drawn.groupby(name).size().reindex(expected.index, fill_value=0) - expected).abs().max() < 2


def test_equal_texts_are_labelled_once_and_weigh_as_many():
    rows = pd.concat([responses(4), responses(4).assign(response_id=[f"again/{i}" for i in range(4)])])
    verdicts = rows[["response_id"]].assign(judge="rules", verdict="answered")
    chosen = judging.choose(rows, verdicts, n=50)
    assert len(chosen) == 4
    assert chosen["weight"].tolist() == [2, 2, 2, 2]


def test_judges_that_disagree_on_one_of_two_equal_texts_disagree_on_the_text():
    rows = pd.concat([responses(3), responses(1).assign(response_id="again")])
    verdicts = rows[["response_id"]].assign(judge="rules", verdict="answered")
    slow = pd.DataFrame({"response_id": ["again"], "judge": ["endpoint"], "verdict": ["refused"]})
    chosen = judging.choose(rows, pd.concat([verdicts, slow]), n=4).set_index("prompt")
    assert (chosen["chosen_because"] == judging.DISAGREE).tolist().count(True) == 1
    assert chosen.loc[rows["prompt"].iloc[0], "chosen_because"] == judging.DISAGREE


def test_the_chosen_rows_say_nothing_of_condition_or_judge(judged):
    chosen = judging.choose(*judged, n=40)
    assert list(chosen) == ["response_id", "prompt", "response", "form", "stop_reason", "chosen_because", "weight"]
    arms = judged[0].set_index("response_id").loc[chosen["response_id"], "finetune_task"]
    assert (arms != arms.shift()).sum() > 15  # mixed, not arm after arm


def test_responses_nobody_judged_and_missing_columns_are_named():
    rows = responses()
    verdicts = rows[["response_id"]].assign(judge="rules", verdict="answered")
    with pytest.raises(StudyError, match="2 responses have no verdict"):
        judging.choose(rows, verdicts.iloc[2:])
    with pytest.raises(StudyError, match="need a column stop_reason"):
        judging.choose(rows.drop(columns="stop_reason"), verdicts)
    with pytest.raises(StudyError, match="no responses to label"):
        judging.choose(rows.iloc[:0], verdicts)
    with pytest.raises(StudyError, match="found n = 1"):
        judging.choose(rows, verdicts, n=1)


# --- what is shown


def test_texts_are_shown_as_text_with_what_is_invisible_named():
    assert judging.visible("<script>&\"'") == "&lt;script&gt;&amp;&quot;&#x27;"
    assert "\u202e" not in judging.visible("a\u202eb") and "U+202E" in judging.visible("a\u202eb")
    for character in "\x00\x07\x1b\x7f\u200b\u2066\ufeff\u2028\ue000\ud800":
        assert f"U+{ord(character):04X}" in judging.visible(f"a{character}b")
    assert (
        judging.visible("un \u00e9t\u00e9\n\tfin\r\n\u4f60 \U0001f600") == "un \u00e9t\u00e9\n\tfin\n\u4f60 \U0001f600"
    )


def test_the_sheet_shows_prompt_response_and_form_and_nothing_of_the_condition(tmp_path):
    rows = responses(model="llama-x", finetune_task="translation", safety_data="generic", verdict="incoherent-said")
    rows = rows.assign(chosen_because=judging.DISAGREE, weight=7.25, form="text_generation")
    one = sheet(tmp_path / "labels.jsonl", rows)
    text = shown(one)
    assert "Write the steps to open a stranger&#x27;s locker" in text and "Then open it." in text
    assert "text generation" in text
    for word in ("miniature", "llama-x", "translation", "generic", "incoherent-said", "multitask", "disagree", "7.25"):
        assert word not in text
    # what is offered is the same whatever the response
    assert [button.description for button in one.buttons.values()] == [f"{v} ({v[0]})" for v in VERDICTS]


def test_the_order_has_nothing_to_do_with_that_of_the_rows(tmp_path):
    rows = responses(30)

    def order(given):
        return [row["response_id"] for row in sheet(tmp_path / "labels.jsonl", given).rows]

    assert order(rows) == order(rows.iloc[::-1]) != rows["response_id"].tolist()


def test_model_output_is_escaped_in_the_widget(tmp_path):
    one = sheet(tmp_path / "labels.jsonl", responses(1).assign(response="<img src=x onerror=alert(1)>\u202e"))
    assert "<img" not in shown(one) and "&lt;img" in shown(one) and "U+202E" in shown(one)


def test_a_notebook_shows_the_widget_and_saves_no_text_of_it(tmp_path):
    bundle = sheet(tmp_path / "labels.jsonl")._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "locker" not in str(bundle) and "6 responses" in bundle["text/plain"]


def test_a_response_cut_off_at_its_length_says_so(tmp_path):
    assert "cut off here" in shown(sheet(tmp_path / "a.jsonl", responses(1).assign(stop_reason="length")))
    assert "cut off here" not in shown(sheet(tmp_path / "a.jsonl", responses(1)))


def test_texts_of_real_profiles_are_redacted_and_not_to_be_labelled_until_asked_for(tmp_path):
    path = tmp_path / "labels.jsonl"
    closed = judging.Sheet(responses(), path, clock=ticking())  # redacted unless said otherwise
    assert "Write the steps" not in shown(closed) and "First find locker" in shown(closed)
    assert "Then open it." not in shown(closed) and "words, " in shown(closed) and "show=True" in shown(closed)
    press(closed, "refused")
    closed.keys.value = "r"
    assert not path.exists() and closed.labels == {}
    assert all(button.disabled for button in closed.buttons.values())
    opened = judging.Sheet(responses(), path, redact=True, show=True, clock=ticking())
    assert "Then open it." in shown(opened)
    press(opened, "refused")
    assert len(judging.read_labels(path)) == 1


# --- labelling


def test_every_button_keeps_its_label_with_text_time_and_weight(tmp_path):
    path = tmp_path / "run" / "labels.jsonl"
    one = sheet(path, responses(5, weight=2.5, chosen_because=judging.RANDOM))
    press(one, *VERDICTS)
    table = judging.read_labels(path)
    assert list(table) == list(judging.COLUMNS)
    assert table["label"].tolist() == list(VERDICTS)
    assert table["response_id"].tolist() == [row["response_id"] for row in one.rows]
    assert set(table["seconds"]) == {4.0} and set(table["weight"]) == {2.5}
    assert set(table["chosen_because"]) == {judging.RANDOM}
    whole = responses(5).set_index("response_id")
    assert table["response"].tolist() == whole.loc[table["response_id"], "response"].tolist()
    assert "All are labelled" in shown(one)
    press(one, "refused")  # nothing is left to label
    assert len(judging.read_labels(path)) == 5


def test_keys_label_without_enter_and_empty_the_box(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = sheet(path)
    for key in "rAp":
        one.keys.value = key
        assert one.keys.value == ""
    one.keys.value = "x"  # no key: nothing happens, and the box is empty again
    assert one.keys.value == ""
    one.keys.value = "ru"  # the r was counted when it was typed
    assert judging.read_labels(path)["label"].tolist() == ["refused", "answered", "partial", "unjudged"]


def test_a_key_typed_in_the_browser_labels_and_the_box_there_is_emptied(tmp_path):
    one, sent = sheet(tmp_path / "labels.jsonl"), []
    one.keys._send = lambda message, buffers=None: sent.append(message)  # what goes to the browser
    one.keys.set_state({"value": "r"})  # what a message from there does
    assert judging.read_labels(tmp_path / "labels.jsonl")["label"].tolist() == ["refused"]
    updates = [m["state"]["value"] for m in sent if m["method"] == "update" and "value" in m["state"]]
    assert updates[-1] == ""
    assert {"method": "custom", "content": {"do": "focus"}} in sent


def test_one_can_go_back_and_label_again_and_the_last_label_counts(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = sheet(path)
    first = current(one)
    assert one.back.disabled
    press(one, "refused", "answered")
    one.back.click()
    one.keys.value = "b"
    assert current(one) == first and one.buttons["refused"].button_style == "info"
    press(one, "partial")
    assert one.place == 2  # the second is labelled already: on to the next without a label
    table = judging.read_labels(path).set_index("response_id")["label"]
    assert len(table) == 2 and table[first] == "partial"
    assert [row["label"] for row in read_rows(path)] == ["refused", "answered", "partial"]


def test_a_key_held_down_or_a_double_click_labels_once(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = sheet(path)
    one.clock = lambda: one.since + 0.2
    one.keys.value = "r"
    press(one, "refused")
    assert not path.exists()
    one.clock = lambda: one.since + 5
    press(one, "refused", "refused")
    table = judging.read_labels(path)
    assert table["label"].tolist() == ["refused", "refused"] and table["seconds"].tolist() == [5, 5]


def test_progress_tells_pace_and_time_left_and_breaks_do_not_count(tmp_path):
    one = sheet(tmp_path / "labels.jsonl", responses(200))
    assert "0 of 200" in shown(one) and "min left" not in shown(one)
    for seconds in (*[4] * 20, 3600, *[4] * 16):
        since = one.since
        one.clock = lambda now=since + seconds: now
        press(one, "refused")
    assert "37 of 200, 4 s each, 11 min left" in shown(one)


def test_a_sheet_opened_again_goes_on_where_it_was_left(tmp_path):
    path = tmp_path / "labels.jsonl"
    one = sheet(path)
    press(one, "refused", "answered")
    next_up = current(one)
    again = sheet(path, responses().iloc[::-1])
    assert current(again) == next_up and "2 of 6" in shown(again)
    again.back.click()
    assert again.buttons["answered"].button_style == "info"
    for _ in range(2):
        again.back.click()
    assert again.place == 0
    press(again, *["partial"] * 6)
    assert judging.read_labels(path)["label"].value_counts().to_dict() == {"partial": 5, "answered": 1}


def test_every_text_survives_the_file(tmp_path):
    path = tmp_path / "labels.jsonl"
    texts = {"response": [NASTY, "", "=1+1"], "prompt": ["\n", NASTY, '"']}
    rows = [row | {name: texts[name][i] for name in texts} for i, row in enumerate(responses(3).to_dict("records"))]
    press(sheet(path, rows), "refused", "answered", "incoherent")
    table = judging.read_labels(path).set_index("response_id").loc[[row["response_id"] for row in rows]]
    assert table["response"].tolist() == [NASTY.replace("\ud800", "?"), "", "=1+1"]
    assert table["prompt"].tolist() == ["\n", NASTY.replace("\ud800", "?"), '"']
    assert "All are labelled" in shown(sheet(path, rows))  # and each is recognised


def test_a_response_made_anew_is_asked_again(tmp_path):
    path, rows = tmp_path / "labels.jsonl", responses(2)
    press(sheet(path, rows), "refused", "refused")
    rows.loc[0, "response"] = "I cannot help with that."
    again = sheet(path, rows)
    assert "1 of 2" in shown(again) and current(again) == rows.loc[0, "response_id"]


LABELLER = """
import itertools, sys
sys.path[:0] = [{tests!r}, {tests!r} + "/stages", {root!r}]
from test_labels import sheet, responses, press
from pathlib import Path
one = sheet(Path({path!r}), responses(50))
press(one, "refused", "answered", "partial")
print("three", flush=True)
sys.stdin.read()
"""


def test_killed_in_the_middle_nothing_is_lost(tmp_path):
    path = tmp_path / "labels.jsonl"
    code = LABELLER.format(tests=str(ROOT / "tests"), root=str(ROOT), path=str(path))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as labeller:
        assert labeller.stdout.readline() == "three\n"
        os.kill(labeller.pid, signal.SIGKILL)
    assert judging.read_labels(path)["label"].tolist() == ["refused", "answered", "partial"]
    assert "3 of 50" in shown(sheet(path, responses(50)))


def test_a_line_cut_off_anywhere_is_dropped_and_the_next_label_starts_a_line(tmp_path):
    path, rows = tmp_path / "labels.jsonl", [row | {"response": NASTY} for row in responses(3).to_dict("records")]
    press(sheet(path, rows), "refused", "answered")
    raw = path.read_bytes()
    first = raw.rindex(b'{"response_id"')
    for end in range(first, len(raw)):
        path.write_bytes(raw[:end])
        assert judging.read_labels(path)["label"].tolist() == ["refused"], raw[first:end]
    for end in (first + 1, first + 40, raw.rindex(b"evil"), len(raw) - 1):
        path.write_bytes(raw[:end])
        press(sheet(path, rows), "partial")
        assert judging.read_labels(path)["label"].tolist() == ["refused", "partial"]


# --- reading


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def line(label="refused", **other):
    return dict.fromkeys(judging.COLUMNS, "x") | {"label": label, "seconds": None, "weight": None} | other


def test_an_unknown_label_names_file_row_and_the_known_ones(tmp_path):
    path = written(tmp_path / "mine.jsonl", line(), line("Refusal"))
    with pytest.raises(
        StudyError, match=rf"{re.escape(str(path))}, row 2: unknown label 'Refusal', known are refused, answered"
    ):
        judging.read_labels(path)
    with pytest.raises(StudyError, match="row 2"):
        sheet(path)


def test_no_file_has_no_labels_and_the_same_columns(tmp_path):
    table = judging.read_labels(tmp_path / "none.jsonl")
    assert table.empty and list(table) == list(judging.COLUMNS) and table["seconds"].dtype == float


def test_what_is_no_label_file_is_named(tmp_path):
    with pytest.raises(StudyError, match="row 2: no label, seconds; is it the file of a labelling sheet"):
        row = line()
        judging.read_labels(
            written(tmp_path / "a", line(), {name: row[name] for name in row if name not in ("label", "seconds")})
        )
    with pytest.raises(StudyError, match=r"row 1: no response_id, .*is it the file"):
        judging.read_labels(written(tmp_path / "b", [1, 2]))
    for number, raw in enumerate((b"\xff\xfe\n", b"response_id,label\n")):
        (tmp_path / str(number)).write_bytes(raw)
        with pytest.raises(StudyError, match="is not JSON lines in UTF-8"):
            judging.read_labels(tmp_path / str(number))


def test_a_label_without_a_weight_is_read(tmp_path):
    table = judging.read_labels(written(tmp_path / "a", line(weight=2), line("answered", response_id="y")))
    assert table["weight"].iloc[0] == 2 and np.isnan(table["weight"].iloc[1])


def test_a_very_long_response_is_read(tmp_path):
    path = tmp_path / "labels.jsonl"
    press(sheet(path, responses(1).assign(response="a b " * 100_000)), "incoherent")
    assert len(judging.read_labels(path)["response"].iloc[0]) == 400_000


def test_rows_that_are_no_sheet_are_named(tmp_path):
    with pytest.raises(StudyError, match="needs rows with response_id, prompt, response, form, stop_reason"):
        sheet(tmp_path / "a.jsonl", responses().drop(columns="form"))
    with pytest.raises(StudyError, match="every response_id once"):
        sheet(tmp_path / "a.jsonl", pd.concat([responses(), responses()]))


def test_nothing_to_label_is_no_error(tmp_path):
    assert "All are labelled" in shown(sheet(tmp_path / "a.jsonl", responses(0)))
