"""A language model as judge, and a moderation model as guard, behind any OpenAI-compatible address (see `calls.py`)."""

import json
import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from studylib.judges.calls import Endpoint, Question, ask_all, endpoint, expected_calls, read_cache
from studylib.study.files import digest, read_yaml
from studylib.study.paths import DATA, runs_folder
from studylib.study.words import FORMS, StudyError, Verdict
from studylib.text.shown import is_blank, name_invisible

LOG = logging.getLogger("studylib")
MODERATION_MODEL = "omni-moderation-latest"
BYTES_PER_TOKEN = 3  # for the estimate: English has about 4, French and code less
# Marks of chat templates, which a server's tokenizer would read as the end of a turn. A space inside makes them plain text.
SPECIAL = re.compile(
    r"<(?=[|\uff5c])|[|\uff5c](?=>)|<(?=/?(?:s|bos|eos|pad|unk|sep|cls|mask|\w+_of_\w+|im_\w+)>)|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_\w+|AVAILABLE_TOOLS)\])"
)


def judge_id(settings: Endpoint) -> str:
    """Which judge gave a verdict: model, prompt and its version, temperature."""
    return f"{settings.model}/{settings.prompt}-v{wordings()['version']}/t{settings.temperature}"


def judge_all(
    prompts: list[str],
    responses: list[str],
    forms: list[str],
    stop_reasons: list[str],
    settings: Endpoint | None = None,
    cache_path: Path | None = None,
) -> list[Verdict]:
    """The model's verdict on each response, in order; settings from the environment, cache `judge_cache.jsonl` beside the runs.

    `refused` and `answered` with the prompt `paper`; also `partial` and `incoherent` with `verdicts`. A response with
    nothing to see in it is incoherent, without a call (the paper's judge would have had to say 1 or -1). What is left
    without a verdict is unjudged, with the reason. Of long texts the judge sees the beginning and the end, and the reason says
    so; invisible characters are shown as their numbers, marks of chat templates broken up. The stop reason is not told
    the judge, as in the paper. Raises StudyError before any call where the columns do not fit (lengths, a form that is
    unknown, what is no text) or a cap would be exceeded, and at once where the endpoint declines to work for us (see
    ADVICE); the verdicts had until then are in the cache. During the work, caps leave the rest unjudged; the cost may
    exceed its cap by the calls under way.
    """
    settings = settings or endpoint()
    check_texts(prompts=prompts, stop_reasons=stop_reasons)
    found = _judge_questions(prompts, responses, forms, settings)
    outcomes = ask_all([one for one in found if isinstance(one, Question)], settings, cache_file(cache_path))
    return [outcomes[one.key] if isinstance(one, Question) else one for one in found]


def plan(
    prompts: list[str],
    responses: list[str],
    forms: list[str],
    settings: Endpoint | None = None,
    cache_path: Path | None = None,
) -> dict:
    """What judging these would take: judge, rows, without_call, known, calls, tokens_in, tokens_out, cost.

    `known` rows are in the cache, `calls` those left after equal ones have been put together: at least so many, as
    nothing has to be asked again. Tokens are estimated (UTF-8 bytes / 3, and max_tokens for each reply); cost None: unknown.
    """
    settings = settings or endpoint()
    found = _judge_questions(prompts, responses, forms, settings)
    questions = [one for one in found if isinstance(one, Question)]
    rows = {"judge": judge_id(settings), "rows": len(found), "without_call": len(found) - len(questions)}
    return rows | expected_calls(questions, read_cache(cache_file(cache_path))[0], settings)


def moderate(texts: list[str], settings: Endpoint | None = None, cache_path: Path | None = None) -> list[bool | None]:
    """Whether a moderation endpoint flags each text, in order; None where it could not be decided, for the reasons logged.

    Without settings, the endpoint of the environment with the model omni-moderation-latest. An empty text is not flagged,
    without a call. Long texts, retries, cache, caps and errors as in `judge_all`.
    """
    settings = settings or endpoint(model=MODERATION_MODEL)
    check_texts(texts=texts)
    judge, questions = f"{settings.model}/moderation", []
    for text in texts:
        body = {"model": settings.model, "input": shown(text, settings.kept_characters)[0]}
        questions.append(_question("moderations", body, judge, _read_moderation, settings) if not is_blank(text) else None)
    outcomes = ask_all(list(filter(None, questions)), settings, cache_file(cache_path))
    found = [outcomes[question.key][0] if question else "clean" for question in questions]
    return [{"flagged": True, "clean": False}.get(one) for one in found]


# Questions


@cache
def wordings() -> dict:
    """What a judge is asked: `data/judge_prompts.yaml`."""
    return read_yaml(DATA / "judge_prompts.yaml")


def cache_file(path: Path | None) -> Path:
    """That file, or `judge_cache.jsonl` beside the runs."""
    return Path(path or runs_folder() / "judge_cache.jsonl")


def chat_question(wording: dict, message: str, judge: str, notes: list[str], settings: Endpoint) -> Question:
    """The question to a chat model with the `instructions` and `replies` of that wording; notes are added to the reason."""
    messages = [{"role": "system", "content": wording["instructions"]}, {"role": "user", "content": message}]
    if settings.system_role == "fold":
        messages = [{"role": "user", "content": f"{wording['instructions']}\n{message}"}]
    body = {"model": settings.model, "messages": messages, settings.limit_parameter: settings.max_tokens}
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    return _question("chat", body, judge, _reader(wording["replies"], tuple(notes)), settings)


def _question(resource: str, body: dict, judge: str, read: Callable, settings: Endpoint) -> Question:
    size = len(json.dumps(body, ensure_ascii=False).encode())
    return Question(digest([settings.url, judge, body]), judge, resource, body, -(-size // BYTES_PER_TOKEN), read)


def check_texts(**columns: list) -> None:
    """Raises StudyError, which names the column and row, unless all are texts and the columns have one length."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StudyError(f"Judging needs columns of one length, found {lengths}.")
    for name, column in columns.items():
        for row, value in enumerate(column):
            if not isinstance(value, str):
                raise StudyError(f"Row {row} of {name} is no text but {type(value).__name__}: judging needs texts.")


def _judge_questions(prompts, responses, forms, settings: Endpoint) -> list[Question | Verdict]:
    check_texts(prompts=prompts, responses=responses, forms=forms)
    if unknown := sorted(set(forms) - set(FORMS)):
        raise StudyError(f"Unknown form {unknown[0]!r}: known are {', '.join(FORMS)}.")
    texts, judge = wordings(), judge_id(settings)
    wording = texts["prompts"][settings.prompt]
    found: list[Question | Verdict] = []
    for prompt, response, form in zip(prompts, responses, forms, strict=True):
        if is_blank(response):
            found.append(("incoherent", "empty"))
            continue
        (asked, cut_prompt), (said, cut) = (shown(text, settings.kept_characters) for text in (prompt, response))
        parts = {"form": texts["forms"][form], "prompt": asked, "response": said, "reminder": wording["reminder"]}
        message = texts["message"].format(mark=digest([prompt, response]), **parts)
        notes = [f"judged on its first and last {settings.kept_characters} characters"] if cut else []
        notes += [f"its prompt shown by the first and last {settings.kept_characters}"] if cut_prompt else []
        found.append(chat_question(wording, message, judge, notes, settings))
    return found


def shown(text: str, kept: int) -> tuple[str, bool]:
    """The text as a judge sees it, and whether its middle was left out."""
    text = name_invisible(text, "<U+{:04X}>")
    text = SPECIAL.sub(lambda sign: sign[0] + " ", text)
    left_out = len(text) - 2 * kept
    if left_out <= 0:
        return text, False
    return f"{text[:kept]}\n[... {left_out} characters are left out here ...]\n{text[-kept:]}", True


def _reader(replies: dict[str, list[str]], notes: tuple[str, ...]) -> Callable[[dict], Verdict | None]:
    def read(reply: dict) -> Verdict | None:
        choice = reply["choices"][0]
        said = choice["message"].get("content")
        if not isinstance(said, str) or choice.get("finish_reason") == "length":  # what is cut may mean another verdict
            return None
        verdict = replies.get(said.strip().lower())
        return (verdict[0], ", ".join([verdict[1], *notes])) if verdict else None

    return read


def _read_moderation(reply: dict) -> Verdict | None:
    flagged = reply["results"][0]["flagged"]
    return ("flagged" if flagged else "clean", "moderation") if isinstance(flagged, bool) else None
