"""A language model as judge behind any OpenAI-compatible address, and how such an address is asked.

The address is STUDY_JUDGE_URL (else OPENAI_BASE_URL), the model STUDY_JUDGE_MODEL, the key STUDY_JUDGE_KEY. The key is
read when a call is made and kept nowhere; OPENAI_API_KEY is sent to OpenAI and to OPENAI_BASE_URL, to no other address.

The client retries a 408, 409, 429 or 5xx, a time-out and a failed connection `retries` times; an unreadable reply is
asked for three times in all. A row that then has no verdict is unjudged, with the reason; when `concurrency` rows (16
at least) have failed one after the other, the rest is not asked. Any other status is a StudyError at once. Verdicts,
but not unjudged, are cached (diskcache) as they come, by a hash of what was asked of whom; processes may share a cache.
"""

import json
import logging
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import diskcache
from pydantic import ConfigDict, Field, ValidationError, field_validator

from studylib.study.files import digest, progress, read_yaml
from studylib.study.paths import DATA, runs_folder
from studylib.study.profile import Count, Settings
from studylib.study.words import FORMS, StudyError, Verdict
from studylib.text.normal import is_blank, name_invisible

LOG = logging.getLogger("studylib")
OPENAI = "https://api.openai.com/v1"
ASKS_PER_VERDICT = 3  # where replies cannot be read
BYTES_PER_TOKEN = 3  # for the estimate: English has about 4, French and code less
TEMPORARY_STATUS = (408, 409, 425, 429)  # statuses that leave a row unjudged, as 5xx do
ROW_ERRORS = {"content_filter", "content_policy_violation", "context_length_exceeded", "string_above_max_length"}
NOT_UNDERSTOOD = ("unjudged", "reply not understood")
BROKEN = ("unjudged", "the answer was broken")
ADVICE = {
    400: "the server does not take the request as it is; change the setting it names, or see what the model allows",
    401: "check STUDY_JUDGE_KEY",
    403: "check that the key of STUDY_JUDGE_KEY may use this model",
    404: "check STUDY_JUDGE_URL (it mostly ends in /v1) and STUDY_JUDGE_MODEL",
    429: "the account has no credit left",
}
ADDRESS = re.compile(r"https?://(?:[\w-]+(?:\.[\w-]+)*|\[[\da-fA-F:]+\])(?::\d{1,5})?(?:/[\w.~/%:-]*)?")
# Marks of chat templates, which a server's tokenizer would read as the end of a turn. A space inside makes them text.
SPECIAL = re.compile(
    r"<(?=[|\uff5c])|[|\uff5c](?=>)|<(?=/?(?:s|bos|eos|pad|unk|sep|cls|mask|\w+_of_\w+|im_\w+)>)|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_\w+|AVAILABLE_TOOLS)\])"
)


class Endpoint(Settings):
    """Whom to ask and how; without the key."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: str  # of the API, without user, query or fragment
    model: Annotated[str, Field(min_length=1)]
    prompt: Literal["paper", "verdicts"] = "paper"  # of data/judge_prompts.yaml
    system_role: Literal["template", "fold"] = "template"  # fold: into the user's turn, for models without that role
    temperature: Annotated[float, Field(ge=0)] | None = 0.1  # None: not sent, for models that take none
    max_tokens: Count = 16  # of one reply; a verdict has seven at most
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # newer models of OpenAI: the second
    concurrency: Count = 8
    timeout_s: Annotated[float, Field(gt=0)] = 60.0  # without a byte
    retries: Annotated[int, Field(ge=0)] = 6
    kept_characters: Count = 12_000  # of the beginning, and as many of the end, of a longer prompt or response
    max_calls: Count | None = None

    @field_validator("url")
    @classmethod
    def _address_is_plain(cls, url: str) -> str:
        if not ADDRESS.fullmatch(url):
            raise ValueError(
                "needs an address such as http://localhost:8000/v1, without user, query or fragment; the key belongs "
                "in STUDY_JUDGE_KEY"
            )
        return url.rstrip("/")


def open_endpoint(**given) -> Endpoint:
    """The endpoint of the environment, with these settings (fields of Endpoint) over it.

    Raises StudyError where address or model is missing, and for unknown settings and wrong values; it never shows one.
    """
    address = os.environ.get("STUDY_JUDGE_URL") or os.environ.get("OPENAI_BASE_URL")
    values = {"url": address, "model": os.environ.get("STUDY_JUDGE_MODEL")} | given
    for name, example in (("url", "http://localhost:8000/v1"), ("model", "gpt-4o")):
        if not values[name]:
            raise StudyError(f"The judge has no {name}: set STUDY_JUDGE_{name.upper()}, for example to {example}.")
    try:
        return Endpoint(**values)
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
    raise StudyError("The judge's endpoint: " + "; ".join(f"{key!r}: {problem}" for key, problem in found) + ".")


# Judging


def judge_id(settings: Endpoint) -> str:
    """Which judge gave a verdict: model, prompt and its version, temperature."""
    return f"{settings.model}/{settings.prompt}-v{wordings()['version']}/t{settings.temperature}"


def judge_all(
    prompts: list[str],
    responses: list[str],
    forms: list[str],
    stop_reasons: list[str],
    *,
    settings: Endpoint | None = None,
    cache_path: Path | None = None,
) -> list[Verdict]:
    """The model's verdict on each response, in order; settings from the environment, cache `judge_cache` in the runs.

    `refused` and `answered` with the prompt `paper`; also `partial` and `incoherent` with `verdicts`. A blank response
    is incoherent, without a call. Of long texts the judge sees the beginning and the end, and the reason says so; it
    does not see the stop reason, as in the paper. Raises StudyError before any call where the columns do not fit or
    max_calls would be exceeded. During the work that cap leaves the rest unjudged.
    """
    settings = settings or open_endpoint()
    check_texts(prompts=prompts, stop_reasons=stop_reasons)
    found = questions(prompts, responses, forms, settings)
    outcomes = ask_all([one for one in found if isinstance(one, Question)], settings, cache_path)
    return [outcomes[one.key] if isinstance(one, Question) else one for one in found]


# Questions


@dataclass(frozen=True)
class Question:
    """One call: what is sent where, and how a reply is read (None: not in the declared form)."""

    key: str
    judge: str
    resource: str
    body: dict
    tokens_in: int
    read: Callable[[dict], Verdict | None]


@cache
def wordings() -> dict:
    """What a judge is asked: `data/judge_prompts.yaml`."""
    return read_yaml(DATA / "judge_prompts.yaml")


def chat_question(wording: dict, message: str, judge: str, notes: list[str], settings: Endpoint) -> Question:
    """A question to a chat model with the `instructions` and `replies` of that wording; notes join the reason."""
    instructions = wording["instructions"]
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": message}]
    if settings.system_role == "fold":
        messages = [{"role": "user", "content": f"{instructions}\n{message}"}]
    body = {"model": settings.model, "messages": messages, settings.limit_parameter: settings.max_tokens}
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    return question("chat", body, judge, partial(_read_chat, wording["replies"], notes), settings)


def question(resource: str, body: dict, judge: str, read: Callable, settings: Endpoint) -> Question:
    """The question with this body; `read` gives the verdict of a reply, None where there is none."""
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


def questions(
    prompts: list[str], responses: list[str], forms: list[str], settings: Endpoint
) -> list[Question | Verdict]:
    """What to ask on each response, in order, or the verdict where no call is needed."""
    check_texts(prompts=prompts, responses=responses, forms=forms)
    if unknown := sorted(set(forms) - set(FORMS)):
        raise StudyError(f"Unknown form {unknown[0]!r}: known are {', '.join(FORMS)}.")
    texts, judge, kept = wordings(), judge_id(settings), settings.kept_characters
    wording = texts["prompts"][settings.prompt]
    found: list[Question | Verdict] = []
    for prompt, response, form in zip(prompts, responses, forms, strict=True):
        if is_blank(response):
            found.append(("incoherent", "empty"))
            continue
        (asked, cut_prompt), (said, cut) = shown(prompt, kept), shown(response, kept)
        parts = {"form": texts["forms"][form], "prompt": asked, "response": said, "reminder": wording["reminder"]}
        message = texts["message"].format(mark=digest([prompt, response]), **parts)
        notes = [f"judged on its first and last {kept} characters"] if cut else []
        notes += [f"its prompt shown by the first and last {kept}"] if cut_prompt else []
        found.append(chat_question(wording, message, judge, notes, settings))
    return found


def shown(text: str, kept: int) -> tuple[str, bool]:
    """The text as a judge sees it, and whether its middle was left out."""
    text = SPECIAL.sub(lambda sign: sign[0] + " ", name_invisible(text, "<U+{:04X}>"))
    if (left_out := len(text) - 2 * kept) <= 0:
        return text, False
    return f"{text[:kept]}\n[... {left_out} characters are left out here ...]\n{text[-kept:]}", True


def _read_chat(replies: dict[str, list[str]], notes: list[str], reply: dict) -> Verdict | None:
    choice = reply["choices"][0]
    said = choice["message"].get("content")
    if not isinstance(said, str) or choice.get("finish_reason") == "length":  # the rest may change the verdict
        return None
    verdict = replies.get(said.strip().lower())
    return (verdict[0], ", ".join([verdict[1], *notes])) if verdict else None


# Calls


class _Texts(diskcache.Disk):
    """Reads texts alone: diskcache would unpickle other values, and so run code of whoever passed the folder on."""

    def fetch(self, mode, filename, value, read):
        return value if isinstance(value, str) else None


def open_cache(path: Path | None = None) -> diskcache.Cache:
    """The cache of verdicts in that folder, by default `judge_cache` in the runs. StudyError where unusable."""
    path = Path(path or runs_folder() / "judge_cache")
    try:
        return diskcache.Cache(str(path), disk=_Texts, eviction_policy="none", cull_limit=0)
    except (OSError, sqlite3.Error) as error:
        raise StudyError(f"{path} cannot be used as a cache of verdicts ({error}): move it away.") from None


def ask_all(questions: list[Question], settings: Endpoint, cache_path: Path | None = None) -> dict[str, Verdict]:
    """The outcome of every question by its key, from the cache or asked."""
    if not questions:
        return {}
    kept = open_cache(cache_path)
    left = {question.key: question for question in questions}
    outcomes = {key: tuple(json.loads(verdict)) for key in left if (verdict := kept.get(key))}
    left = {key: question for key, question in left.items() if key not in outcomes}
    if not left:
        return outcomes
    asked = "%s at %s: %d calls at least (%d known), about %d tokens in, at most %d out"
    tokens = sum(question.tokens_in for question in left.values()), len(left) * settings.max_tokens
    LOG.info(asked, settings.model, settings.url, len(left), len(outcomes), *tokens)
    if settings.max_calls and len(left) > settings.max_calls:
        raise StudyError(f"Judging needs {len(left)} calls, max_calls allows {settings.max_calls}: raise it.")
    work = _Work(settings, kept)
    pool = ThreadPoolExecutor(settings.concurrency, "judge")
    keys = {pool.submit(work.outcome, question): key for key, question in left.items()}
    try:
        with progress(total=len(left), what=settings.model, unit="judged") as bar:
            for future in as_completed(keys):
                outcomes[keys[future]] = future.result()
                bar.update()
                bar.set_postfix_str(work.spent(), refresh=False)
    except BaseException as error:
        work.stopped.set()
        # An interrupt does not wait for the calls under way; their verdicts are kept all the same when they come.
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
        raise
    pool.shutdown()
    undecided = Counter(outcomes[key][1] for key in left if outcomes[key][0] == "unjudged")
    LOG.info("%d judged, %d unjudged, %s", len(left) - undecided.total(), undecided.total(), work.spent())
    for reason, count in undecided.most_common():
        LOG.warning("%d unjudged: %s", count, reason)
    return outcomes


class _Failed(Exception):
    """A row without a verdict, and why."""


class _NoAnswer(_Failed):
    """The same, where the endpoint may have stopped to answer at all."""


class _Work:
    """What the threads of one judging share: the client, the cache, the counts, and when to stop."""

    def __init__(self, settings: Endpoint, kept: diskcache.Cache):
        from openai import DefaultHttpxClient, OpenAI

        self.settings, self.kept = settings, kept
        hooks = DefaultHttpxClient(event_hooks={"request": [self._before], "response": [self._after]})
        options = {"timeout": settings.timeout_s, "max_retries": settings.retries, "http_client": hooks}
        client = OpenAI(api_key=_key(settings.url), base_url=settings.url, **options)
        client.organization = client.project = None  # which the client takes from the environment, for any server
        self.send = {
            "chat": client.chat.completions.with_raw_response.create,
            "moderations": client.moderations.with_raw_response.create,
        }
        self.stopped, self.lock = threading.Event(), threading.Lock()
        self.calls = self.tokens_in = self.tokens_out = self.failed_rows = 0

    def spent(self) -> str:
        """Tokens until now, for a log line."""
        return f"{self.tokens_in} tokens in, {self.tokens_out} out"

    def outcome(self, question: Question) -> Verdict:
        """The verdict, kept in the cache, or unjudged and why."""
        for _ in range(ASKS_PER_VERDICT):
            try:
                verdict = self._ask(question)
            except _Failed as failure:
                if isinstance(failure, _NoAnswer):
                    self._count(failed_rows=1)
                return "unjudged", str(failure)
            if verdict != BROKEN:
                self.failed_rows = 0
            if verdict[0] != "unjudged":
                self.kept.add(question.key, json.dumps(verdict), tag=question.judge)
                return verdict
        self._count(failed_rows=verdict == BROKEN)
        return verdict

    def _count(self, **more: int) -> None:
        with self.lock:
            for name, number in more.items():
                setattr(self, name, getattr(self, name) + number)

    def _before(self, request) -> None:
        """Counts a call, the client's own retries too. Raises _Failed where no further call may be made."""
        settings = self.settings
        with self.lock:
            if self.stopped.is_set():
                raise _Failed("stopped")
            if self.failed_rows >= max(16, settings.concurrency):
                raise _Failed("not asked: too many rows before it had no answer")
            if settings.max_calls and self.calls >= settings.max_calls:
                raise _Failed(f"not asked: max_calls {settings.max_calls} is reached")
            self.calls += 1

    def _after(self, response) -> None:
        if response.is_error:
            self._count(calls=-1)  # nobody charges for it
        if response.status_code == 429 and b"insufficient_quota" in response.read():
            response.headers["x-should-retry"] = "false"  # which the client obeys

    def _ask(self, question: Question) -> Verdict:
        """The verdict of one call, NOT_UNDERSTOOD or BROKEN. Raises _Failed where there was no reply."""
        from openai import APIError

        problem = None
        try:
            response = self.send[question.resource](**question.body).http_response
        except APIError as error:
            problem = error
        if problem is not None:  # outside of the handler: an error raised inside would carry the request, with the key
            raise self._trouble(problem)
        try:
            reply = response.json()
            verdict, usage = question.read(reply) or NOT_UNDERSTOOD, reply.get("usage")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return BROKEN
        usage = usage if isinstance(usage, dict) else {}
        used = usage.get("prompt_tokens", question.tokens_in), usage.get("completion_tokens", self.settings.max_tokens)
        if all(isinstance(number, int) for number in used):
            self._count(tokens_in=used[0], tokens_out=used[1])
        return verdict

    def _trouble(self, error) -> Exception:
        """What to raise for an error of the client: _Failed, or StudyError where every call would end so."""
        n = int(error.request.headers.get("x-stainless-retry-count", 0)) + 1
        failed = f"{n} failed call{'s' * (n > 1)}, the last: "
        if (status := getattr(error, "status_code", None)) is None:
            late = type(error).__name__ == "APITimeoutError"
            return _NoAnswer(failed + ("no answer in time" if late else "the connection failed or broke off"))
        # the server's words for the error and for the setting; never its sentences, which may repeat key or prompt
        words = [word for word in (error.code, error.param) if word and re.fullmatch("[a-z_]{1,40}", str(word))]
        named = f"{status} ({', '.join(words)})" if words else str(status)
        if ROW_ERRORS & set(words):
            return _Failed(f"the endpoint declines this row: {named}")
        if status >= 500 or (status in TEMPORARY_STATUS and "insufficient_quota" not in words):
            return _NoAnswer(f"{failed}status {named}")
        self.stopped.set()  # no thread takes up another row
        return StudyError(
            f"{self.settings.url} answered {named} for the model {self.settings.model!r}: "
            f"{ADVICE.get(status, ADVICE[400])}, then run again; the verdicts until here are kept."
        )


def _key(url: str) -> str:
    """The key for that address, `none` where there is none; servers of one's own need none."""
    key = os.environ.get("STUDY_JUDGE_KEY", "").strip()
    if not key and url in (OPENAI, os.environ.get("OPENAI_BASE_URL", "").strip().rstrip("/")):
        key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):  # the client's own error would show it
        raise StudyError("The key in STUDY_JUDGE_KEY has characters that no header can carry: copy it anew.")
    return key or "none"
