"""Calls to an OpenAI-compatible address: who is asked, how failures are tried again, what is kept and what it costs.

The address is STUDY_JUDGE_URL (else OPENAI_BASE_URL), the model STUDY_JUDGE_MODEL, the key STUDY_JUDGE_KEY. The key is
read when a call is made and kept nowhere; OPENAI_API_KEY is sent to OpenAI and to OPENAI_BASE_URL, to no other address.

One policy for calls that fail; the client's own retries are off. A 429, 408, 409, 425 or 5xx, a time-out, a connection
that fails or breaks off, and a body that is no answer are tried again `retries` times, after backoff_s, twice that, four
times that (at most longest_wait_s, each shortened at random by up to a half). Retry-After makes all calls wait; one
that asks for more than longest_wait_s ends the tries. An answer that holds no verdict in the declared form is asked for
three times in all. What then has no verdict is unjudged, with the reason. When `concurrency` rows (16 at least) have
failed one after the other, the rest is not asked. Any other status is a StudyError at once.

Verdicts are appended to a JSON-lines file as they come, under a hash of what was asked of whom, without any text; what is
in it is not asked again. Unjudged is not kept. Several processes may append to one file.
"""

import json
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from studylib.study.files import append_rows
from studylib.study.profile import Count, Settings
from studylib.study.words import StudyError, Verdict

LOG = logging.getLogger("studylib")
OPENAI = "https://api.openai.com/v1"
ASKS = 3  # for one verdict, where replies cannot be read
PROGRESS_S = 10.0
AGAIN = (408, 409, 425, 429)  # and 5xx
OF_THE_ROW = {"content_filter", "content_policy_violation", "context_length_exceeded", "string_above_max_length"}
# outcomes that a cache may hold
KEPT = ("refused", "answered", "partial", "incoherent", "flagged", "clean", "first", "second", "tie")
ADVICE = {
    400: "the server does not take the request as it is; change the setting it names, or see what the model allows",
    401: "check STUDY_JUDGE_KEY",
    403: "check that the key of STUDY_JUDGE_KEY may use this model",
    404: "check STUDY_JUDGE_URL (it mostly ends in /v1) and STUDY_JUDGE_MODEL",
    429: "the account has no credit left",
}
ADDRESS = re.compile(r"https?://(?:[\w-]+(?:\.[\w-]+)*|\[[\da-fA-F:]+\])(?::\d{1,5})?(?:/[\w.~/%:-]*)?")


class Endpoint(Settings):
    """Whom to ask and how; without the key. Costs are per million tokens, in any one currency, None where unknown."""

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
    backoff_s: Annotated[float, Field(ge=0)] = 1.0
    longest_wait_s: Annotated[float, Field(ge=0)] = 120.0
    kept_characters: Count = 12_000  # of the beginning, and as many of the end, of a longer prompt or response
    cost_per_million_in: Annotated[float, Field(ge=0)] | None = None
    cost_per_million_out: Annotated[float, Field(ge=0)] | None = None
    max_calls: Count | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None

    @field_validator("url")
    @classmethod
    def _address_is_plain(cls, url: str) -> str:
        if not ADDRESS.fullmatch(url):
            raise ValueError(
                "needs an address such as http://localhost:8000/v1, without user, query or fragment; the key belongs in "
                "STUDY_JUDGE_KEY"
            )
        return url.rstrip("/")

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost, None where a price is unknown."""
        prices = self.cost_per_million_in, self.cost_per_million_out
        return None if None in prices else (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6


def endpoint(**given) -> Endpoint:
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


@dataclass(frozen=True)
class Question:
    """One call: what is sent where, and how a reply is read (None: not in the declared form)."""

    key: str
    judge: str
    resource: str
    body: dict
    tokens_in: int
    read: Callable[[dict], Verdict | None]


def read_cache(path: Path) -> tuple[dict[str, Verdict], int]:
    """The verdicts by key, the first of each, and how many lines are broken (their writer was killed)."""
    known, broken = {}, 0
    *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    for line in filter(None, lines):
        try:
            row = json.loads(line)
            key, verdict, reason = row["key"], row["verdict"], row["reason"]
            if verdict not in KEPT or not (isinstance(key, str) and isinstance(reason, str)):
                raise ValueError
            known.setdefault(key, (verdict, reason))
        except (ValueError, TypeError, LookupError):
            broken += 1
    return known, broken + bool(rest)


def expected_calls(questions: list[Question], known: dict[str, Verdict], settings: Endpoint) -> dict:
    left = {question.key: question for question in questions if question.key not in known}
    tokens_in = sum(question.tokens_in for question in left.values())
    tokens_out = len(left) * settings.max_tokens
    return {
        "known": sum(question.key in known for question in questions),
        "calls": len(left),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost": settings.cost(tokens_in, tokens_out),
    }


def ask_all(questions: list[Question], settings: Endpoint, cache_path: Path) -> dict[str, Verdict]:
    """The outcome of every question by its key, from the cache or asked."""
    known, broken = read_cache(cache_path)
    expected = expected_calls(questions, known, settings)
    left = {question.key: question for question in questions if question.key not in known}
    outcomes = {question.key: known[question.key] for question in questions if question.key in known}
    if broken:
        LOG.warning("%s: %d broken lines skipped, their verdicts are asked again", cache_path.name, broken)
    if not left:
        return outcomes
    price = "unknown" if expected["cost"] is None else f"about {expected['cost']:.4g}"
    LOG.info(
        "%s at %s: %d calls at least (%d known), about %d tokens in, at most %d out, cost %s",
        *(settings.model, settings.url, expected["calls"], expected["known"]),
        *(expected["tokens_in"], expected["tokens_out"], price),
    )
    if settings.max_calls and expected["calls"] > settings.max_calls:
        raise StudyError(f"Judging needs {expected['calls']} calls, max_calls allows {settings.max_calls}: raise it.")
    if settings.max_cost and expected["cost"] is None:
        raise StudyError("max_cost needs the prices: set cost_per_million_in and cost_per_million_out.")
    if settings.max_cost and expected["cost"] > settings.max_cost:
        raise StudyError(f"Judging costs {price}, max_cost allows {settings.max_cost:g}: raise it, or judge less.")
    if broken:
        with open(cache_path, "ab") as file:  # the next row must not join a line without its end
            file.write(b"\n")
    work = _Work(settings, cache_path)
    pool = ThreadPoolExecutor(settings.concurrency, "judge")
    keys = {pool.submit(work.outcome, question): key for key, question in left.items()}
    pending = set(keys)
    try:
        while pending:
            done, pending = wait(pending, PROGRESS_S, FIRST_EXCEPTION)
            outcomes.update((keys[future], future.result()) for future in done)
            if pending:
                LOG.info("%d of %d judged, %d left%s", len(left) - len(pending), len(left), len(pending), work.spent())
    except BaseException as error:
        work.stopped.set()
        # An interrupt does not wait for the calls under way; their verdicts are kept all the same when they come.
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
        raise
    pool.shutdown()
    undecided = Counter(outcomes[key][1] for key in left if outcomes[key][0] == "unjudged")
    LOG.info("%d judged, %d unjudged%s", len(left) - undecided.total(), undecided.total(), work.spent())
    for reason, count in undecided.most_common():
        LOG.warning("%d unjudged: %s", count, reason)
    return outcomes


class _Failed(Exception):
    """A call without an answer, and why. Whether to try again, and after how many seconds at the server's wish."""

    def __init__(self, reason: str, again: bool = True, told_s: float = 0.0):
        super().__init__(reason)
        self.again, self.told_s = again, told_s


class _Work:
    """What the threads of one judging share: the client, the counts, and when to wait or stop."""

    def __init__(self, settings: Endpoint, cache_path: Path):
        from openai import OpenAI

        self.settings, self.cache_path = settings, cache_path
        client = OpenAI(api_key=_key(settings.url), base_url=settings.url, timeout=settings.timeout_s, max_retries=0)
        client.organization = client.project = None  # which the client takes from the environment, for any server
        self.send = {
            "chat": client.chat.completions.with_raw_response.create,
            "moderations": client.moderations.with_raw_response.create,
        }
        self.stopped, self.lock, self.random = threading.Event(), threading.Lock(), random.Random()
        self.calls = self.tokens_in = self.tokens_out = self.failed_rows = 0
        self.resume_at = 0.0  # on the monotonic clock

    def spent(self) -> str:
        """Tokens and cost so far, for a log line."""
        cost = self.settings.cost(self.tokens_in, self.tokens_out)
        price = "" if cost is None else f", cost {cost:.4g}"
        return f", {self.tokens_in} tokens in, {self.tokens_out} out{price}"

    def outcome(self, question: Question) -> Verdict:
        """The verdict, appended to the cache, or unjudged and why."""
        settings, failed, misread = self.settings, 0, 0
        while misread < ASKS:
            self.stopped.wait(self.resume_at - time.monotonic())
            if ended := self._ended():
                return "unjudged", ended
            try:
                verdict = self._ask(question)
            except _Failed as failure:
                failed += 1
                if not failure.again:
                    return "unjudged", str(failure)
                if failed > settings.retries or failure.told_s > settings.longest_wait_s:
                    with self.lock:
                        self.failed_rows += 1
                    return "unjudged", f"{failed} failed call{'s' * (failed > 1)}, the last: {failure}"
                self.resume_at = max(self.resume_at, time.monotonic() + failure.told_s)
                delay_s = min(settings.backoff_s * 2 ** (failed - 1), settings.longest_wait_s)
                self.stopped.wait(delay_s * self.random.uniform(0.5, 1))
                continue
            self.failed_rows = 0
            if verdict:
                row = {"key": question.key, "judge": question.judge, "verdict": verdict[0], "reason": verdict[1]}
                append_rows(self.cache_path, [row])
                return verdict
            misread += 1
        return "unjudged", "reply not understood"

    def _ended(self) -> str:
        """Why no further call may be made; else empty, and the call is counted."""
        settings = self.settings
        with self.lock:
            if self.stopped.is_set():
                return "stopped"
            if self.failed_rows >= max(16, settings.concurrency):
                return "not asked: too many rows before it had no answer"
            if settings.max_calls and self.calls >= settings.max_calls:
                return f"not asked: max_calls {settings.max_calls} is reached"
            if settings.max_cost and settings.cost(self.tokens_in, self.tokens_out) >= settings.max_cost:
                return f"not asked: max_cost {settings.max_cost:g} is reached"
            self.calls += 1
        return ""

    def _ask(self, question: Question) -> Verdict | None:
        """The verdict of one call, None where its reply cannot be read. Raises _Failed where there was no reply."""
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
            verdict, usage = question.read(reply), reply.get("usage")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Failed("the answer was broken") from None
        usage = usage if isinstance(usage, dict) else {}
        used = usage.get("prompt_tokens", question.tokens_in), usage.get("completion_tokens", self.settings.max_tokens)
        if all(isinstance(number, int) for number in used):
            with self.lock:
                self.tokens_in, self.tokens_out = self.tokens_in + used[0], self.tokens_out + used[1]
        return verdict

    def _trouble(self, error) -> Exception:
        """What to raise for an error of the client: _Failed, or StudyError where every call would end so."""
        if (status := getattr(error, "status_code", None)) is None:
            late = type(error).__name__ == "APITimeoutError"
            return _Failed("no answer in time" if late else "the connection failed or broke off")
        with self.lock:
            self.calls -= 1  # nobody charges for it
        # the server's words for the error and for the setting; never its sentences, which may repeat key or prompt
        words = [word for word in (error.code, error.param) if word and re.fullmatch("[a-z_]{1,40}", str(word))]
        named = f"{status} ({', '.join(words)})" if words else str(status)
        if OF_THE_ROW & set(words):
            return _Failed(f"the endpoint declines this row: {named}", again=False)
        if status >= 500 or (status in AGAIN and "insufficient_quota" not in words):
            told_s = _retry_after_s(error.response.headers)
            told = f", to be tried again in {told_s:.0f} s" if told_s else ""
            return _Failed(f"status {named}{told}", told_s=told_s)
        self.stopped.set()  # no thread takes up another row
        advice = ADVICE.get(status, ADVICE[400])
        return StudyError(
            f"{self.settings.url} answered {named} for the model {self.settings.model!r}: {advice}, then run again; the "
            "verdicts had so far are kept."
        )


def _key(url: str) -> str:
    """The key for that address, `none` where there is none; servers of one's own need none."""
    key = os.environ.get("STUDY_JUDGE_KEY", "").strip()
    if not key and url in (OPENAI, os.environ.get("OPENAI_BASE_URL", "").strip().rstrip("/")):
        key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):  # the client's own error would show it
        raise StudyError("The key in STUDY_JUDGE_KEY has characters that no header can carry: copy it anew.")
    return key or "none"


def _retry_after_s(headers) -> float:
    """Seconds that the server asks to wait, 0 where it does not say, or not in a form that HTTP knows."""
    told = headers.get("retry-after", "")
    try:
        wait_s = float(told) if re.fullmatch(r"[\d.]+", told) else parsedate_to_datetime(told).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, wait_s)
