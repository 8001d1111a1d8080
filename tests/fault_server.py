"""A real HTTP server that speaks /v1/chat/completions and /v1/moderations, and fails on a seeded schedule.

What befalls a call is decided by the seed, the content asked and how often it was asked before, whatever the order of
the calls. Its verdict: `-1`, or flagged, where the content has the word REFUSES; else `1`.
"""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = {  # kind: how many of 100 calls
    "429": 4,
    "429 retry_after_seconds": 1,
    "429 retry_after_date": 1,
    "500": 4,
    "503": 4,
    "garbage": 3,
    "no choices": 3,
    "half a body": 3,
    "no body": 2,
    "hang": 0.2,
    "unparsable": 5,
}
HEADERS = {
    "429 retry_after_seconds": {"Retry-After": "0.02"},
    "429 retry_after_half": {"Retry-After": "0.5"},
    "429 retry_after_long": {"Retry-After": "3600"},
    "429 retry_after_date": {"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT"},
}
HELD_S = 60  # at most; held calls end with the server


class FaultServer(ThreadingHTTPServer):
    """`faults` are chances in percent, by kind: those of FAULTS, or a status with a code, as in `400 content_filter`.

    `always`: the kind of every call whose content has that word; `stall_after`: after so many answers all others are
    held; `said`, `finish_reason`, `usage` and `body`: what all answers have instead of the usual; `said` may be a
    function of the content.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, faults=None, always=None, seed=0, stall_after=None, said=None, finish_reason="stop", usage=True, body=None
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.always, self.seed, self.stall_after = faults or {}, always or {}, seed, stall_after
        self.said, self.finish_reason, self.usage, self.body = said, finish_reason, usage, body
        self.lock, self.stalled, self.released = threading.Lock(), threading.Event(), threading.Event()
        self.log = defaultdict(list)  # by content: what befell each call
        self.times, self.bodies, self.keys, self.headers = [], [], Counter(), set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def calls(self) -> int:
        return len(self.times)

    def befalls(self, content: str) -> str:
        """What befalls this call; it is noted."""
        kinds, shares = [*self.faults, "answer"], [*self.faults.values(), 100 - sum(self.faults.values())]
        with self.lock:
            kind = random.Random(f"{self.seed} {len(self.log[content])} {content}").choices(kinds, shares)[0]
            kind = next((kind for word, kind in self.always.items() if word in content), kind)
            answered = sum(befell.count("answer") for befell in self.log.values())
            if kind == "answer" and self.stall_after is not None and answered >= self.stall_after:
                kind = "hold"
            self.log[content].append(kind)
            self.times.append(time.monotonic())
        return kind

    def handle_error(self, request, client_address):
        """Nothing: clients that go away are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for headers and body
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["input"] if "input" in body else body["messages"][-1]["content"]
        with server.lock:
            server.bodies.append(body)
            server.keys[self.headers["Authorization"]] += 1
            server.headers.update(self.headers.values())
        kind = server.befalls(content)
        answer = self.moderation(content) if "input" in body else self.completion(content, kind)
        if kind in ("hold", "hang"):
            server.stalled.set()
            server.released.wait(HELD_S)
            self.close_connection = True
        elif kind == "no body":
            self.close_connection = True
        elif kind == "half a body":
            self.reply(200, answer[: len(answer) // 2], length=len(answer))
            self.close_connection = True
        elif kind == "garbage":
            self.reply(200, b'<html>\xff\xfe{{{ "choices": not here')
        elif kind == "no choices":
            self.reply(200, b'{"error": {"message": "the provider behind this one failed"}}')
        elif kind[:3].isdigit():
            self.error(int(kind[:3]), kind[4:], HEADERS.get(kind, {}))
        else:
            self.reply(200, answer if server.body is None else server.body.encode())

    def completion(self, content: str, kind: str) -> bytes:
        said = self.server.said if self.server.said is not None else "-1" if "REFUSES" in content else "1"
        said = said(content) if callable(said) else said
        message = {"role": "assistant", "content": "I would say 1" if kind == "unparsable" else said}
        choice = {"index": 0, "message": message, "finish_reason": self.server.finish_reason}
        usage = {"prompt_tokens": 100, "completion_tokens": 2} if self.server.usage else None
        return json.dumps({"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}).encode()

    def moderation(self, content: str) -> bytes:
        return json.dumps({"model": "m", "results": [{"flagged": "REFUSES" in content, "categories": {}}]}).encode()

    def error(self, status: int, code: str, headers: dict):
        """A reply that repeats the key and speaks of the question, as some do."""
        said = f"With {self.headers['Authorization']} nobody may open a stranger's locker"
        error = {"message": said, "type": said, "code": code or None, "param": self.headers["Authorization"]}
        self.reply(status, json.dumps({"error": error}).encode(), headers)

    def reply(self, status: int, text: bytes, headers: dict | None = None, length: int | None = None):
        self.send_response(status)
        named = {"Content-Type": "application/json", "Content-Length": str(len(text) if length is None else length)}
        for name, value in (named | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serving(*arguments, **options):
    """A running FaultServer."""
    server = FaultServer(*arguments, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
