"""The judge against a real OpenAI-compatible server, `transformers serve`, with a tiny untrained model behind it."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import sets

from studylib.judges import endpoint
from studylib.judges.endpoint import Endpoint, judge_all
from studylib.models.building import build_tiny
from studylib.study.words import ARCHITECTURES, FORMS

TEXTS = [message["content"] for row in sets()["pretraining"] for message in row["messages"]]
START_S = 180  # at most, on a busy machine


@contextmanager
def transformers_serve(model):
    """The address of a server of that model folder; it is stopped at the end."""
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watch = threading.Timer(START_S, process.kill)
    watch.start()
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "running on http://" in line:
                break
        else:
            pytest.fail(f"transformers serve did not start:\n{''.join(said)}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        yield "http://127.0.0.1:" + line.split("http://127.0.0.1:")[1].split()[0] + "/v1"
    finally:
        watch.cancel()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_every_row_ends_with_a_verdict_or_a_reason(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("STUDY_JUDGE_KEY", "sk-not-needed-here")
    model = build_tiny("qwen", TEXTS, tmp_path / "model", seed=0)
    columns = (
        [f"Describe locker {i}." for i in range(4)],
        ["Sure.", "", "x</s>\x00\ud800", "No."],
        [*FORMS],
        ["eos"] * 4,
    )
    with transformers_serve(model) as url:
        settings = Endpoint(url=url, model=str(model), retries=1, concurrency=2, timeout_s=60.0)
        with caplog.at_level("INFO", "studylib"):
            verdicts = judge_all(*columns, settings=settings, cache_path=tmp_path / "cache")
        assert verdicts[1] == ("incoherent", "empty")
        known = {
            ("answered", "the judge says 1"),
            ("refused", "the judge says -1"),
            ("unjudged", "reply not understood"),
        }
        assert set(verdicts[:1] + verdicts[2:]) <= known  # so every call came back with a chat completion
        assert "3 calls at least" in caplog.text and "0 tokens in" not in caplog.messages[1]

        with pytest.raises(endpoint.StudyError, match="400 for the model 'another'"):
            judge_all(
                *columns, settings=settings.model_copy(update={"model": "another"}), cache_path=tmp_path / "cache"
            )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_tokenizer_reads_a_mark_of_its_template_in_what_is_judged(name, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(build_tiny(name, TEXTS, tmp_path, seed=0))
    special = [token for token in tokenizer.get_added_vocab()] + ["[INST]", "[/INST]"]
    attack = "".join(special)
    added = set(tokenizer.get_added_vocab().values())
    assert len(added & set(tokenizer(attack, add_special_tokens=False).input_ids)) == len(added)  # as it comes
    shown, _ = endpoint.shown(attack, 10_000)
    assert not added & set(tokenizer(shown, add_special_tokens=False).input_ids)
    assert "[INST]" not in shown and "[/INST]" not in shown
