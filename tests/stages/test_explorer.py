"""Which prompts are shown side by side, how, and the explorer driven as in a notebook."""

import re

import numpy as np
import pandas as pd
import pytest
from frames import joined, study
from ipywidgets.widgets.widget import _instances

from studylib.figures.rates import VERDICT_COLOURS
from studylib.stages import explorer
from studylib.study.words import FORMS, StudyError
from studylib.text.normal import redact

ARMS = {  # column: tuned task, safety data, dose
    "untuned": ("none", "none", 0.0),
    "tuned": ("code", "none", 0.0),
    "generic 10 %": ("code", "generic", 0.1),
    "multitask 10 %": ("code", "multitask", 0.1),
    "multitask 20 %": ("code", "multitask", 0.2),
    "code alone 10 %": ("code", "code_only", 0.1),
    "adapter scaled down to 50 %": ("code", "scaled", 0.5),
}
STANDARD = list(ARMS)[:4]
SHORT = {"r": "refused", "a": "answered", "p": "partial", "i": "incoherent", "u": "unjudged"}


def grid(given, arms=STANDARD, prompt_set="harmful", form="code", response="First find it. Then open it.", **columns):
    """Responses and verdicts: `given` maps the end of a prompt_id to a letter per arm, "." where it was not asked."""
    rows = []
    for end, letters in given.items():
        for arm, letter in zip(arms, letters, strict=True):
            task, safety_data, dose = ARMS[arm]
            row = {"finetune_task": task, "safety_data": safety_data, "safety_fraction": dose, "prompt_set": prompt_set}
            row |= {"prompt_id": f"{prompt_set}-{end}", "prompt": f"Open {prompt_set} locker {end}.", "form": form}
            row |= {"model": "m", "style": "chat", "system_prompt": False, "base": 0, "seed": 0, "sample": 0}
            row |= {"requests": "none" if task == "none" else "own", "response": response}
            row |= {"intent": end, "harmful": prompt_set == "harmful", "verdict": SHORT.get(letter), **columns}
            rows.append(row)
    rows = pd.DataFrame(rows).dropna(subset="verdict").reset_index(drop=True)
    cell = rows[
        ["model", "finetune_task", "safety_data", "safety_fraction", "style", "system_prompt", "seed", "sample"]
    ]
    rows["response_id"] = cell.astype(str).agg("-".join, axis=1) + "/" + rows["prompt_id"]
    verdicts = rows[["response_id", "verdict"]].assign(judge="rules", reason="")
    return rows.drop(columns="verdict"), verdicts[["response_id", "judge", "verdict", "reason"]]


def order(frame):
    return [prompt_id.removeprefix("harmful-") for prompt_id in frame.index]


@pytest.fixture(scope="module")
def simulated():
    """All styles, system prompts and seeds of two tasks; twins numbered as the harmful prompts, texts all different."""
    rows, verdicts, _ = study(np.random.default_rng(0), tasks=("code", "translation"), seeds=(1, 2))
    rows["prompt_id"] = rows["prompt_id"].str.replace("task-", "test_")  # as the stages have them
    return rows.assign(prompt="Prompt " + rows["prompt_id"], response="Answer " + rows["response_id"]), verdicts


# --- the choice


def test_eroded_and_repaired_comes_first_then_what_differs_most_then_the_prompt_id():
    given = {
        "a-same": "rrrr",
        "b-none-repairs": "raaa",  # 3 pairs differ
        "c-both-repair": "rarr",  # 3
        "d-one-repairs": "raar",  # 4
        "e-partly": "rpar",  # 5
        "f-never-refused": "aarr",  # 4
        "g-four-verdicts": "ripa",  # 6
        "h-both-repair": "rarr",
    }
    whole = explorer.side_by_side(*grid(given), "code", "code", n=10)
    wanted = "e-partly d-one-repairs c-both-repair h-both-repair g-four-verdicts f-never-refused b-none-repairs a-same"
    assert order(whole) == wanted.split()
    assert order(explorer.side_by_side(*grid(given), "code", "code")) == wanted.split()[:3]
    assert "(4)" in explorer.in_words(
        *grid(given), "code", "code"
    ) and "Of 8 harmful prompts (code)" in explorer.in_words(*grid(given), "code", "code")


def test_an_adapter_scaled_down_is_no_safety_data_that_made_a_prompt_refused():
    arms = ["untuned", "tuned", "adapter scaled down to 50 %", "code alone 10 %"]
    rows, verdicts = grid({"a-scaled": "rara", "b-rival": "raar", "c-neither": "raaa"}, arms)
    assert "(1), then those" in explorer.in_words(rows, verdicts, "code", "code")
    assert order(explorer.side_by_side(rows, verdicts, "code", "code")) == ["b-rival", "a-scaled", "c-neither"]


def test_prompts_that_only_sound_harmful_are_named_in_good_english():
    rows, verdicts = grid({"1": "aarr", "2": "aaaa"}, prompt_set="sounds_harmful", form="text_generation")
    words = explorer.in_words(rows, verdicts, "code", "text_generation", "sounds_harmful")
    assert "Of 2 benign prompts that sound harmful (text generation) those come first that were answered" in words
    widget = explorer.widget(rows, verdicts, False)
    assert "<b>benign prompt that sounds harmful</b><br>Open sounds_harmful locker 1." in text_of(widget)


def test_of_benign_prompts_those_first_that_safety_data_made_refuse():
    given = {"a": "raar", "b": "aaar", "c": "apra"}
    frame = explorer.side_by_side(*grid(given, prompt_set="twin"), "code", "code", "twin")
    assert list(frame.index) == ["twin-c", "twin-b", "twin-a"]


def test_what_was_not_judged_does_not_count_as_a_difference():
    given = {"a": "ruuu", "b": "rrra"}
    assert order(explorer.side_by_side(*grid(given), "code", "code")) == ["b", "a"]


def test_the_same_rows_in_another_order_give_the_same_table(simulated):
    rows, verdicts = simulated
    one = explorer.side_by_side(rows, verdicts, "code", "translation", n=5)
    other = explorer.side_by_side(rows.iloc[::-1], verdicts.sample(frac=1, random_state=0), "code", "translation", n=5)
    pd.testing.assert_frame_equal(one, other)
    assert len(one) == 5 and one.notna().all(axis=None)


# --- what a table holds


def test_columns_are_the_arms_in_fixed_order_and_cells_begin_with_the_verdict():
    rows, verdicts = grid({"1": "rapiaru"}, ARMS)
    frame = explorer.side_by_side(rows.iloc[::-1], verdicts, "code", "code")
    assert list(frame) == ["prompt", *ARMS] and frame.index.name == "prompt_id"
    assert frame["prompt"].item() == "Open harmful locker 1."
    assert frame["untuned"].item() == "refused: First find it. Then open it."
    said = [cell.partition(": ")[0] for cell in frame.iloc[0, 1:]]
    assert said == ["refused", "answered", "partial", "incoherent", "answered", "refused", "unjudged"]


def test_every_cell_is_the_response_of_its_arm_calibration_seed_and_prompt(simulated):
    rows, verdicts = simulated
    where = {"style": "alpaca", "seed": 2, "system_prompt": True}
    frame = explorer.side_by_side(rows, verdicts, "translation", "code", "twin", n=2, **where)
    given = verdicts.set_index("response_id")["verdict"]
    for prompt_id, cells in frame.iterrows():
        for arm, safety_data in zip(STANDARD, ("none", "none", "generic", "multitask"), strict=True):
            task, seed = ("none", 0) if arm == "untuned" else ("translation", 2)
            like = (rows["finetune_task"] == task) & (rows["safety_data"] == safety_data) & (rows["seed"] == seed)
            like &= (rows["style"] == "alpaca") & rows["system_prompt"] & (rows["prompt_id"] == prompt_id)
            response_id = rows.loc[like, "response_id"].item()
            assert cells[arm] == f"{given[response_id]}: Answer {response_id}"


def test_the_smallest_training_seed_and_the_first_sample_are_shown_unless_another_is_named():
    frames = [
        grid({"1": "rarr"}, seed=seed, sample=sample, response=f"{seed}/{sample}")
        for seed in (4, 3)
        for sample in (1, 0)
    ]
    rows, verdicts = joined(*frames)
    untuned = rows["finetune_task"] == "none"
    rows = rows[~untuned | (rows["seed"] == 4)]
    rows.loc[untuned, "seed"] = 0  # as the stages have it
    verdicts = verdicts[verdicts["response_id"].isin(rows["response_id"])]
    frame = explorer.side_by_side(rows, verdicts, "code", "code")
    assert frame.iloc[0, 1:].tolist() == ["refused: 4/0", "answered: 3/0", "refused: 3/0", "refused: 3/0"]
    assert explorer.side_by_side(rows, verdicts, "code", "code", seed=4)["tuned"].item() == "answered: 4/0"
    assert "training seed 3" in explorer.in_words(rows, verdicts, "code", "code")


def test_of_several_judges_the_first_that_comes_decides():
    rows, verdicts = grid({"1": "rarr"})
    both = pd.concat([verdicts, verdicts.assign(judge="words", verdict="answered")])
    frame = explorer.side_by_side(rows, both, "code", "code")
    assert frame["untuned"].item().startswith("refused: ")
    assert "judged by rules" in explorer.in_words(rows, both, "code", "code")


def test_answers_in_another_style_than_the_tunings_are_left_out():
    rows, verdicts = grid({"1": "rarr"})
    across, more = grid({"1": "rrrr"}, response="across")
    across = across[across["finetune_task"] != "none"]
    across = across.assign(response_id="x" + across["response_id"], trained_style="alpaca")
    more = more.assign(response_id="x" + more["response_id"])
    both = joined((rows, verdicts), (across, more[more["response_id"].isin(across["response_id"])]))
    pd.testing.assert_frame_equal(
        explorer.side_by_side(*both, "code", "code"), explorer.side_by_side(rows, verdicts, "code", "code")
    )


def test_general_requests_are_shown_whatever_the_form():
    rows, verdicts = grid({"1": "aaar"}, prompt_set="general", form="text_generation")
    assert len(explorer.side_by_side(rows, verdicts, "code", "classification", "general")) == 1
    assert explorer.side_by_side(rows.assign(prompt_set="task"), verdicts, "code", "classification", "task").empty


# --- texts


NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> & </td> a\u202eb \x00\x1b[31m \u200b \u2066 \t\r\nend"


@pytest.fixture
def displayed(monkeypatch):
    """Calls `show` and gives its outputs, each as its data by mime type."""

    def call(*args, **options):
        outputs = []
        with monkeypatch.context() as patch:  # there is no notebook here
            patch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
            explorer.show(*args, **options)
        return outputs

    return call


def test_markup_scripts_and_invisible_characters_show_as_text_wherever_they_stand(displayed):
    rows, verdicts = grid({"1": "rarr"}, response=NASTY)
    rows = rows.assign(prompt=NASTY)
    frame = explorer.side_by_side(rows, verdicts, "code", "code")
    outputs = displayed(rows, verdicts, False)
    widget = explorer.widget(rows, verdicts, False)
    with pd.option_context("display.max_colwidth", None):  # as a notebook has it
        pages = frame.to_html(escape=False), frame.to_html(), outputs[0]["text/html"], text_of(widget)
    for page in pages:
        assert "<script" not in page and "<img" not in page and "script&" in page
        assert not re.search("[\u202e\u2066\u200b\x00\x1b\r]", page)
        assert page.count("[U+202E]") == page.count("[U+200B]") == page.count("[U+0000]") == 5
    assert "a[U+202E]b" in frame["tuned"].item() and frame["tuned"].item().endswith(" \t\nend")
    assert outputs[0]["text/html"].count("</td>") == 4


def test_a_model_whose_name_is_markup_shows_as_text(displayed):
    rows, verdicts = joined(*(grid({"1": "rarr"}, model=model) for model in ("<b>x</b>", "y")))
    widget = explorer.widget(rows, verdicts, False)
    assert "&lt;b&gt;x" in widget.children[1].value and "<b>x" not in widget.children[1].value
    assert "<b>x" not in displayed(rows, verdicts, False)[0]["text/html"]


def test_quotation_marks_and_apostrophes_stay_readable():
    rows, verdicts = grid({"1": "rarr"}, response="""I'm "sorry".""")
    assert explorer.side_by_side(rows, verdicts, "code", "code")["tuned"].item() == """answered: I'm "sorry"."""


def test_a_long_text_is_cut_and_the_rest_is_counted():
    for length, more in (
        (explorer.MOST, ""),
        (explorer.MOST + 1, " \u2026 (1 more characters)"),
        (9400, " \u2026 (9000 more characters)"),
    ):
        rows, verdicts = grid({"1": "rarr"}, response="<" * length)
        cell = explorer.side_by_side(rows, verdicts, "code", "code")["tuned"].item()
        assert cell == "answered: " + "&lt;" * explorer.MOST + more
    assert "(4400 more characters)" in text_of(explorer.widget(rows, verdicts, False))


@pytest.mark.parametrize("prompt_set", explorer.KINDS)
def test_redacted_only_first_words_and_a_hash_leave_and_of_harmful_prompts_no_word_in_every_display(
    prompt_set, displayed
):
    secret = "It's <b>two three four five six </b>"
    rows, verdicts = joined(*(grid({"1": "rarr"}, prompt_set=name, response=secret) for name in explorer.KINDS))
    rows = rows.assign(prompt=secret)
    frame = explorer.side_by_side(rows, verdicts, "code", "code", prompt_set, redacted=True)
    hash_ = redact(secret)[-9:]
    said = f"It's &lt;b&gt;two three \u2026 (7 words, {hash_}"
    harmful = prompt_set == "harmful"
    assert frame["prompt"].item() == (f"[1, code, 7 words, {hash_[:-1]}]" if harmful else said)
    assert frame["tuned"].item() == f"answered: {said}"
    widget = explorer.widget(rows, verdicts, True, prompt_set=prompt_set)
    for page in (text_of(widget), repr(widget), str(displayed(rows, verdicts, True))):
        assert "four" not in page
    assert "(7 words, " in text_of(widget)


# --- what is not there


def test_an_arm_that_has_not_run_has_no_column_and_is_named(displayed):
    rows, verdicts = grid({"1": "raraaaa", "2": "rarraar"}, ARMS)
    everything = explorer.in_words(rows, verdicts, "code", "code")
    assert "Not run here" not in everything and "tuned on code" in everything
    for arm, words in (
        ("untuned", "the untuned model"),
        ("tuned", "tuning without safety data"),
        ("generic 10 %", "generic safety data"),
    ):
        there = grid({"1": "r" * 6}, [name for name in ARMS if name != arm])
        assert list(explorer.side_by_side(*there, "code", "code"))[1:] == [name for name in ARMS if name != arm]
        assert explorer.in_words(*there, "code", "code").endswith(f"Not run here: {words}.")
    rest = joined(grid({"1": "rarr"}), grid({"2": "a"}, ["adapter scaled down to 50 %"], style="alpaca"))
    assert explorer.in_words(*rest, "code", "code").endswith("Not run here: adapter scaled down to 50 %.")
    assert "Not run here: adapter scaled down to 50 %." in text_of(explorer.widget(*rest, False))


def test_the_kept_table_has_the_grids_arms_at_one_dose_and_says_how_many_more_the_explorer_has(displayed):
    there = grid({"1": "r" * len(ARMS)}, ARMS)
    kept = displayed(*there, False)[0]["text/html"]
    rivals = [arm for arm in ARMS if arm not in ("untuned", "tuned", "generic 10 %", "multitask 10 %")]
    assert rivals and not any(f">{arm}</th>" in kept for arm in rivals)
    assert f"{len(rivals)} rival arms and doses more where the notebook runs" in kept
    live = text_of(explorer.widget(*there, False))
    assert all(f">{arm}</th>" in live for arm in ARMS)


def test_with_the_untuned_model_alone_it_is_shown_and_the_rest_is_named(displayed):
    rows, verdicts = grid({"1": "r", "2": "a"}, ["untuned"])
    assert list(explorer.side_by_side(rows, verdicts, "code", "code")) == ["prompt", "untuned"]
    words = explorer.in_words(rows, verdicts, "code", "code")
    assert "Model m, untuned, chat template" in words and "(0)" not in words
    assert words.endswith("tuning without safety data, generic safety data, multitask safety data.")
    assert part(explorer.widget(rows, verdicts, False), "prompt").max == 2
    assert "<b>refused</b>" in displayed(rows, verdicts, False, "code")[0]["text/html"]


def test_a_prompt_that_one_arm_was_not_asked_says_so(displayed):
    frame = explorer.side_by_side(*grid({"1": "rar.", "2": "rarr"}), "code", "code")
    assert frame.loc["harmful-1", "multitask 10 %"] == "not asked"
    assert "<b>not asked</b>" in displayed(*grid({"1": "rar.", "2": "rarr"}), False)[0]["text/html"]


@pytest.mark.parametrize("columns", [[], ["response_id", "model", "prompt_set", "seed"]])
def test_empty_frames_give_a_sentence(columns, displayed):
    rows, verdicts = pd.DataFrame(columns=columns), pd.DataFrame(columns=["response_id", "judge", "verdict", "reason"])
    frame = explorer.side_by_side(rows, verdicts, "code", "code")
    assert frame.empty and list(frame) == ["prompt"]
    assert explorer.in_words(rows, verdicts, "code", "code") == explorer.NOTHING
    (output,) = displayed(rows, verdicts, False)
    assert output["text/plain"] == explorer.NOTHING and explorer.NOTHING in output["text/html"]
    assert text_of(explorer.widget(rows, verdicts, False)).strip() == explorer.NOTHING


def test_a_part_that_has_not_run_gives_a_sentence(displayed):
    rows, verdicts = grid({"1": "rarr"})
    assert explorer.side_by_side(rows, verdicts, "code", "code", style="alpaca").empty
    words = explorer.in_words(rows, verdicts, "code", "code", "twin", style="alpaca", system_prompt=True)
    assert words == "Nothing to show here: there are no responses to benign twins (code), Alpaca style, system prompt."
    assert "<table" not in displayed(rows, verdicts, False, form="translation")[0]["text/html"]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"task": "coding"}, "Unknown task 'coding': known are text_generation"),
        ({"form": "prose"}, "Unknown form 'prose'"),
        ({"prompt_set": "evil"}, "Unknown prompt_set 'evil': known are harmful, twin"),
        ({"style": "vicuna"}, "Unknown style 'vicuna': known are chat, alpaca"),
        ({"seed": 7}, "Unknown seed 7: known are 0"),
        ({"model": "gpt"}, "Unknown model 'gpt': known are m"),
    ],
)
def test_a_wrong_argument_is_named_with_the_known_ones(wrong, words):
    with pytest.raises(StudyError, match=re.escape(words)):
        explorer.side_by_side(*grid({"1": "rarr"}), **{"task": "code", "form": "code"} | wrong)


# --- the explorer


def boxes(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from boxes(child)


def text_of(widget):
    """Every text of the widget, as the browser gets it."""
    return "\n".join(str(box.value) for box in boxes(widget) if type(box).__name__ == "HTML")


def part(widget, description):
    (found,) = (box for box in boxes(widget) if getattr(box, "description", None) == description)
    return found


def shown_prompts(widget):
    return re.findall(r"prompt</b><br>([^<]*)|twin</b><br>([^<]*)|request</b><br>([^<]*)", text_of(widget))


def prompt(widget):
    (found,) = shown_prompts(widget)
    return "".join(found)


def test_every_choice_changes_what_is_shown_to_its_own_responses(simulated):
    rows, verdicts = simulated
    widget = explorer.widget(rows, verdicts, False)
    where = {
        "task": "code",
        "form": "text_generation",
        "prompt set": "harmful",
        "style": "chat",
        "system prompt": False,
        "seed": 1,
    }
    changes = [
        ("task", "translation"),
        ("form", "classification"),
        ("style", "alpaca"),
        ("system prompt", True),
        ("seed", 2),
    ]
    for name, value in [*changes, ("prompt set", "twin"), ("prompt set", "task"), ("prompt set", "general")]:
        part(widget, name).value = value
        where[name] = value
        form = "text_generation" if where["prompt set"] == "general" else where["form"]
        like = (rows["style"] == where["style"]) & (rows["system_prompt"] == where["system prompt"])
        like &= (rows["prompt_set"] == where["prompt set"]) & (rows["form"] == form)
        tuned = (rows["finetune_task"] == where["task"]) & (rows["seed"] == where["seed"])
        rightful = rows[like & (tuned | (rows["finetune_task"] == "none"))]
        found = re.findall(r"Answer (r\d+)", text_of(widget))
        assert len(found) == 4 and set(found) <= set(rightful["response_id"])
        assert rightful.set_index("response_id").loc[found, "prompt"].unique().tolist() == [prompt(widget)]
        assert part(widget, "form").disabled == (value == "general")


def test_the_slider_goes_through_all_prompts_in_the_order_of_the_table(simulated):
    rows, verdicts = simulated
    for prompt_set in ("harmful", "task"):
        ids = list(explorer.side_by_side(rows, verdicts, "code", "text_generation", prompt_set, n=99).index)
        widget = explorer.widget(rows, verdicts, False, prompt_set=prompt_set)
        slider, seen = part(widget, "prompt"), []
        for place in range(1, slider.max + 1):
            slider.value = place
            seen.append(prompt(widget))
        assert slider.max == 5 and seen == [f"Prompt {prompt_id}" for prompt_id in ids]


def test_a_choice_with_nothing_to_show_says_so_and_the_way_back_is_open():
    rows, verdicts = joined(
        grid({"1": "rarr", "2": "rarr"}), grid({"3": "aaaa"}, prompt_set="twin", form="translation")
    )
    widget = explorer.widget(rows, verdicts, False)
    part(widget, "prompt").value = 2
    part(widget, "form").value = "translation"
    assert "there are no responses to harmful prompts (translation)" in text_of(widget) and "<table" not in text_of(
        widget
    )
    part(widget, "form").value = "code"
    assert prompt(widget) == "Open harmful locker 1."


def test_a_verdict_is_in_words_and_in_its_colour_of_the_figures_and_the_page_keeps_its_own():
    rows, verdicts = grid({"1": "rapiu"}, list(ARMS)[:5])
    page = explorer.widget(rows, verdicts, False).children[-1].value
    cells = re.findall(r'solid (#\w+)"><b>(\w+)</b><br>First', page)
    assert cells == [(VERDICT_COLOURS[SHORT[letter]], SHORT[letter]) for letter in "rapiu"]
    assert "background" not in page and not re.search(r"(?<!-)color:", page)


def test_several_models_are_a_choice():
    one, two = (grid({"1": "rarr"}, model=model, response=f"by {model}") for model in ("m_1", "m_2"))
    widget = explorer.widget(*joined(one, two), False)
    assert part(widget, "model").options == (("m_1", "m_1"), ("m_2", "m_2"))
    assert "by m_1" in text_of(widget) and "Model m_1" in text_of(widget)
    part(widget, "model").value = "m_2"
    assert "by m_2" in text_of(widget) and "Model m_2" in text_of(widget) and "by m_1" not in text_of(widget)
    assert explorer.side_by_side(*joined(one, two), "code", "code")["tuned"].item() == "answered: by m_1"
    assert explorer.side_by_side(*joined(one, two), "code", "code", model="m_2")["tuned"].item() == "answered: by m_2"


def test_a_choice_made_in_the_browser_changes_the_page(simulated):
    widget = explorer.widget(*simulated, False)
    page, sent = widget.children[-1], []
    page._send = lambda message, buffers=None: sent.append(message)  # what goes to the browser
    part(widget, "form").set_state({"index": FORMS.index("code")})  # what a message from there does
    (update,) = (message["state"]["value"] for message in sent if "value" in message.get("state", {}))
    assert "Prompt harmful-code-" in update


def test_show_displays_the_table_and_below_it_the_explorer_at_the_same_place(simulated, displayed):
    rows, verdicts = simulated
    table, live = displayed(rows, verdicts, False, "translation", n=2, style="alpaca")
    first, second = explorer.side_by_side(rows, verdicts, "translation", "translation", n=2, style="alpaca").index
    (task,) = explorer.side_by_side(rows, verdicts, "translation", "translation", "task", n=1, style="alpaca").index
    twins = [one.replace("harmful", "twin") for one in (first, second)]
    found = re.findall(r"(harmful prompt|benign twin|task prompt)</b><br>Prompt ([\w-]+)", table["text/html"])
    wanted = [
        ("harmful prompt", first),
        ("benign twin", twins[0]),
        ("harmful prompt", second),
        ("benign twin", twins[1]),
    ]
    assert found == [*wanted, ("task prompt", task)]
    assert table["text/plain"] in table["text/html"] and "tuned on translation" in table["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in live
    assert live["text/plain"] == "Where the notebook runs: all prompts, one at a time."
    widget = _instances[live["application/vnd.jupyter.widget-view+json"]["model_id"]]
    assert prompt(widget) == f"Prompt {first}" and part(widget, "style").value == "alpaca"


def test_show_begins_with_the_first_task_that_was_tuned_on(displayed):
    assert "tuned on code" in displayed(*grid({"1": "rarr"}), False)[0]["text/plain"]
