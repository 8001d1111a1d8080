"""Checks that a model is prompted, trained and questioned as this study says: one per known way to get it wrong.

They look at the token ids, batches, logits and answers that this study's own functions make, not at settings.
"""

import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

from studylib.models import engine, hub, prompts
from studylib.study.profile import GenerationSettings, LoraSettings, ModelSettings
from studylib.study.words import STYLES, StudyError

PROBE = "PLAINWORD"
LONG_PROBE = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve. " * 3 + PROBE
ANSWER = "ANSWERWORD, and a second line:\n  x = 1"
N_NEW = 12  # tokens that are generated for a check, at most
N_ASKED = 6  # prompts in the batch that is compared with single prompts
TURN_WORDS = {"user", "assistant", "model", "human", "ai", "bot", "inst", "instruction", "response", "turn", "system"}
HALF = (torch.bfloat16, torch.float16)


@dataclass
class _Case:
    """What is checked, and what several checks look at."""

    model: object
    tokenizer: object
    settings: ModelSettings
    system: str
    rows: list[dict]
    lora: LoraSettings
    generation: GenerationSettings
    broken: list[str] = field(default_factory=list)  # why examples could not be made; filled by `examples`

    @cached_property
    def calibrations(self) -> list[tuple[str, str | None]]:
        """Style and system prompt of those that can be rendered; the check of the system prompt names the others."""
        return [one for one in product(STYLES, (None, self.system)) if not self.refused(*one)]

    def refused(self, style: str, system: str | None) -> str:
        """Why the calibration cannot be rendered, empty where it can."""
        try:
            prompts.encode_prompt(self.tokenizer, PROBE, style, system)
        except StudyError as error:
            return str(error)
        return ""

    @cached_property
    def examples(self) -> list[SimpleNamespace]:
        """Our own prompt and those of the rows in every calibration; those that cannot be made are in `broken`."""
        samples = [(PROBE, ANSWER, "")]
        for row in self.rows:
            asked, answer, *_ = *(message["content"] for message in row["messages"]), ""
            samples.append((asked, answer or ANSWER, row.get("prompt_set") or ""))
        made = []
        for calibration, (asked, answer, kind) in product(self.calibrations, samples):
            start = prompts.encode_prompt(self.tokenizer, asked, *calibration)
            try:
                row = prompts.encode_example(self.tokenizer, asked, answer, *calibration, 10**9)
            except StudyError as error:
                self.broken.append(f"{error} ({_short(asked)})")
                continue
            ids, labels, (style, system) = row["input_ids"], row["labels"], calibration
            first = next((k for k, label in enumerate(labels) if label != -100), len(labels))
            one = {"style": style, "system": system, "asked": asked, "answer": answer, "kind": kind}
            made.append(SimpleNamespace(**one, start=start, ids=ids, labels=labels, first=first))
        return made

    @cached_property
    def asked(self) -> list[list[int]]:
        """Prompts of different lengths, to be answered alone and in a batch."""
        ids = [prompts.encode_prompt(self.tokenizer, LONG_PROBE, *one) for one in self.calibrations]
        ids += [example.start for example in self.examples]
        longest = self.n_positions - self.n_new
        fitting = sorted((one for one in ids if len(one) <= longest), key=len)
        if len({len(one) for one in fitting}) < 2:
            raise StudyError(f"Fewer than two prompts of different lengths leave room for {self.n_new} tokens.")
        return [fitting[round(i * (len(fitting) - 1) / (N_ASKED - 1))] for i in range(N_ASKED)]

    @property
    def n_new(self) -> int:
        return min(N_NEW, self.generation.max_new_tokens)

    @property
    def n_positions(self) -> int:
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or self.settings.context

    def text(self, style: str, system: str | None) -> str:
        """Our own prompt as rendered, in single spaces."""
        return _squeezed(prompts.rendered(self.tokenizer, prompts.encode_prompt(self.tokenizer, PROBE, style, system)))

    def generated(self, batch_size: int) -> list[list[int]]:
        """The ids of the answers to `asked`, up to their ends."""
        settings = GenerationSettings(max_new_tokens=self.n_new, batch_size=batch_size)
        ends = hub.end_ids(self.model, self.tokenizer)
        batches = hub.generate_ids(self.model, self.tokenizer, self.asked, settings)
        found = {i: ids for batch in batches for i, ids, _ in batch}
        first = lambda ids: next((k + 1 for k, one in enumerate(ids) if one in ends), None)  # noqa: E731
        return [found[i][: first(found[i])] for i in sorted(found)]

    alone = cached_property(lambda self: self.generated(1))

    def logits(self, model, ids: list[int]) -> torch.Tensor:
        """Of every position, [length, vocabulary], in the model's own precision."""
        return model(input_ids=torch.tensor([ids], device=self.model.device)).logits[0]

    @cached_property
    def adapter(self) -> SimpleNamespace:
        """Logits of a prompt before, with and after a random adapter, with and after the saved one; its projections."""
        model, ids = self.model, prompts.encode_prompt(self.tokenizer, PROBE, *self.calibrations[0])
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        projections = engine.TransformersModel(model, self.tokenizer).projections(self.lora)
        found = SimpleNamespace(before=self.logits(model, ids), n_expected=len(projections))
        try:
            with tempfile.TemporaryDirectory() as folder:
                with _on(hub.add_lora(model, self.lora, seed=0).eval(), model) as tuned:
                    drawn = [p for name, p in tuned.named_parameters() if "lora_B" in name]
                    for parameter in drawn:
                        parameter.normal_(std=0.1)
                    found.n_projections, found.tuned = len(drawn), self.logits(tuned, ids)
                    tuned.save_pretrained(folder)
                found.after = self.logits(model, ids)
                with _on(hub.load_adapter(model, Path(folder)), model) as loaded:
                    found.loaded = self.logits(loaded, ids)
            found.after_loaded = self.logits(model, ids)
            return found
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    # The checks yield what is wrong, each fault a string, and return what was seen where nothing is.

    def _bos(self) -> Iterator[str]:
        bos = self.tokenizer.special_tokens_map.get("bos_token")
        if not bos:
            return "none, the tokenizer has none"
        bos_id = self.tokenizer.convert_tokens_to_ids(bos)
        wanted = int(bool(prompts.turn_marks(self.tokenizer)[0]) or bos_id in self.tokenizer("Hello!")["input_ids"])
        for one in self.examples:
            for what, ids in (("prompt", one.start), ("example", one.ids[:-1])):  # EOS may be the same token
                if ids.count(bos_id) != wanted or (wanted and ids[0] != bos_id):
                    where = f"in the {what} {_short(one.asked)}, {one.style} style"
                    yield f"{ids.count(bos_id)} {bos} instead of {wanted} {where}"
        return f"{wanted} {bos}"

    def _system(self) -> Iterator[str]:
        for style, system in product(STYLES, (None, self.system)):
            if refused := self.refused(style, system):
                yield f"{_where(style, system)}: {refused}"
            elif (n := self.text(style, system).count(_squeezed(self.system))) != bool(system):
                yield f"{_where(style, system)}: it is there {n} times"
        return "once where asked for, nowhere else"

    def _plain(self) -> Iterator[str]:
        marks = sorted(map(str, self.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        for style, system in self.calibrations:
            text, alpaca = self.text(style, system), prompts.ALPACA.split("{prompt}") if style == "alpaca" else []
            for part in filter(None, map(_squeezed, (PROBE, system or "", *alpaca))):
                text = text.replace(part, " ")
            words = re.findall(r"\w+", re.sub("|".join(map(re.escape, marks)), " ", text))
            if {word.lower() for word in words} - TURN_WORDS - {"sys"}:
                yield f"{_where(style, system)}: {_short(' '.join(words), 100)}"
            if not system and re.search(r"(?<![^\W_])(?:system|sys)(?![^\W_])", text, re.I):
                yield f"{_where(style, system)}: a system turn"
        return "turn marks alone"

    def _same(self) -> Iterator[str]:
        n = len(self.examples)
        yield from self.broken
        for one in self.examples:
            if one.ids[: len(one.start)] != one.start or one.first != len(one.start):
                yield f"another beginning in the example {_short(one.asked)}, {one.style} style"
        return f"token by token in {n} examples"

    def _loss(self) -> Iterator[str]:
        ends = set()
        for one in self.examples:
            if len(one.labels) != len(one.ids) or one.labels[one.first :] != one.ids[one.first :]:
                yield f"labels that are not the tokens' own in the example {_short(one.asked)}"
            text = prompts.rendered(self.tokenizer, [label for label in one.labels[one.first : -1] if label != -100])
            if _squeezed(text) != _squeezed(one.answer):
                yield f"loss on {_short(text)} where the answer is {_short(one.answer)}"
            ends.add(prompts.rendered(self.tokenizer, one.ids[-1:]))
        return f"decoded labels are the answers, then {' or '.join(sorted(ends))}"

    def _end(self) -> Iterator[str]:
        ends, learned = hub.end_ids(self.model, self.tokenizer), {one.labels[-1] for one in self.examples}
        name = lambda ids: ", ".join(self.tokenizer.convert_ids_to_tokens(sorted(ids)))  # noqa: E731
        if -100 in learned:
            yield "an example ends without loss"
        if other := learned - {-100, *ends}:
            yield f"examples end in {name(other)}, answers stop at {name(ends)}"
        if prompts.turn_marks(self.tokenizer)[1] is None:
            yield "no special token ends the template's turns"
        return f"learned {name(learned - {-100})}; answers stop at {name(ends)}"

    def _padding(self) -> Iterator[str]:
        n = 0
        for style in STYLES:  # the two styles may end an answer by different tokens
            own = sorted((one for one in self.examples if one.style == style), key=lambda one: len(one.ids))
            if not own:
                continue
            rows = [own[0], own[-1]]
            batch = hub.collator(self.tokenizer)([{"input_ids": [*one.ids], "labels": [*one.labels]} for one in rows])
            parts = batch["input_ids"], batch["labels"], batch["attention_mask"].bool()
            for ids, labels, mask, one in zip(*parts, rows, strict=True):
                if ids[mask].tolist() != one.ids:
                    yield f"{int(mask.sum())} tokens are seen of an example of {len(one.ids)}"
                elif wrong := sum(a != b for a, b in zip(labels[mask].tolist(), one.labels, strict=True)):
                    yield f"{wrong} labels of an example are others in its batch"
                if (labels[~mask] != -100).any():
                    yield "loss on padding"
                n += int((~mask).sum())
        return f"{n} positions padded with {self.tokenizer.pad_token} (EOS is {self.tokenizer.eos_token})"

    def _whole(self) -> Iterator[str]:
        context, longest = self.settings.context, 0
        if self.n_positions < context:
            yield f"model.context {context} is more than the model's {self.n_positions} positions"
        for one in self.examples:
            text = _squeezed(prompts.rendered(self.tokenizer, one.ids))
            if _squeezed(one.asked) not in text or _squeezed(one.answer) not in text:
                yield f"the example {_short(one.asked)} is not all there"
            # rows are tuned on without a system prompt, and training rows are not asked
            needed = [0 if one.system else len(one.ids)]
            needed += [] if one.kind.startswith("train") else [len(one.start) + self.generation.max_new_tokens]
            if max(needed) > context:
                yield f"{_short(one.asked)} needs {max(needed)} tokens, the context has {context}"
            longest = max(longest, *needed)
        with suppress(StudyError):
            prompts.encode_example(self.tokenizer, LONG_PROBE, ANSWER, "alpaca", None, 8)
            yield "an example longer than the context is cut without an error"
        return f"at most {longest} of {context} tokens; a longer example is an error"

    def _active(self) -> Iterator[str]:
        found = self.adapter
        change, size = _apart(found.tuned, found.before), found.before.abs().max().item()
        if change <= _tolerance(found.before) * size:
            yield f"logits change by {change:.2g} of {size:.2g}"
        if found.n_projections != found.n_expected:
            yield f"it is on {found.n_projections} of {found.n_expected} projections"
        return f"logits up to {size:.2g} change by {change:.2g}, {found.n_projections} projections"

    def _saved(self) -> Iterator[str]:
        if change := _apart(self.adapter.loaded, self.adapter.tuned):
            yield f"logits differ by {change:.2g}"
        return "the same to the last bit"

    def _restored(self) -> Iterator[str]:
        found = self.adapter
        if change := max(_apart(one, found.before) for one in (found.after, found.after_loaded)):
            yield f"logits differ by {change:.2g}"
        if any("lora_" in name for name, _ in self.model.named_parameters()):
            yield "the adapter is still there"
        return "the same to the last bit"

    def _greedy(self) -> Iterator[str]:
        for ids, answer in zip(self.asked, self.alone, strict=True):
            raw = self.logits(self.model, ids + answer)[len(ids) - 1 : -1]
            logits = raw.float()
            behind = logits.max(1).values - logits[range(len(answer)), answer]
            far = behind > _tolerance(raw) * logits.abs().max()
            if far.any():
                places = f"in {int(far.sum())} of {len(far)} places"
                yield f"a token {behind.max().item():.2g} behind the best one, {places}"
        return f"{sum(map(len, self.alone))} tokens, each the model's best"

    def _batch(self) -> Iterator[str]:
        ties, together = 0, self.generated(N_ASKED)
        for ids, one, other in zip(self.asked, self.alone, together, strict=True):
            if one == other:
                continue
            texts = [_short(prompts.rendered(self.tokenizer, each)) for each in (one, other)]
            equal = [a == b for a, b in zip(one, other, strict=False)]
            first = [*equal, False].index(False)
            logits = self.logits(self.model, ids + one[:first])[-1]
            gap = -logits.float().topk(2).values.diff().item()
            if logits.dtype not in HALF or gap > _tolerance(logits) * logits.abs().max().item():
                yield f"{texts[0]} alone, {texts[1]} in a batch (best logits {gap:.2g} apart)"
            ties += 1
        lengths = [len(ids) for ids in self.asked]
        note = f", {ties} of them but for a tie of two logits" if ties else ""
        return f"{len(lengths)} answers to prompts of {min(lengths)}-{max(lengths)} tokens{note}"

    def _response(self) -> Iterator[str]:
        settings = GenerationSettings(max_new_tokens=self.n_new, batch_size=N_ASKED)
        long = [prompts.encode_prompt(self.tokenizer, LONG_PROBE, *one) for one in self.calibrations]
        found = [row for batch in hub.generate(self.model, self.tokenizer, long, settings) for row in batch]
        special = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        for _, text, stop_reason, n_tokens, _ in found:
            if n_tokens > self.n_new or _squeezed(LONG_PROBE) in _squeezed(text):  # more than so few tokens can hold
                yield f"the prompt in the response {_short(text)}"
            if marks := [mark for mark in special if mark in text]:
                yield f"{' '.join(marks)} in the response"
            if stop_reason not in ("eos", "length") or (stop_reason == "length") != (n_tokens == self.n_new):
                yield f"stop reason {stop_reason} after {n_tokens} tokens"
        return f"{len(found)} responses of at most {self.n_new} tokens"


def self_check(
    model,
    tokenizer,
    settings: ModelSettings,
    system_prompt: str,
    rows: list[dict],
    lora: LoraSettings,
    generation: GenerationSettings,
) -> pd.DataFrame:
    """One row per check: `name` (a claim), `holds` (bool) and `found` (what was seen, in words).

    `model` and `tokenizer` are those of hub.load, without an adapter, on any device and in any precision; `rows` are
    some rows of the data sets (an empty answer is replaced). The model, its gradients' flags and torch's random numbers
    are as before afterwards.
    """
    case = _Case(model, tokenizer, settings, system_prompt, list(rows), lora, generation)
    training, cards = model.training, [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), torch.no_grad():
        model.eval()
        try:
            found = [(name, *_seen(look, case)) for name, look in CHECKS.items()]
        finally:
            model.train(training)
    return pd.DataFrame(found, columns=["name", "holds", "found"])


def require_self_check(frame: pd.DataFrame) -> None:
    """Raises StudyError that lists the checks that do not hold, and what was found instead."""
    failed = frame[~frame["holds"]]
    if len(failed):
        lines = "; ".join(f"{row['name']}: no, {row['found']}" for row in failed.to_dict("records"))
        raise StudyError(
            f"The self-check found {len(failed)} of {len(frame)} not to hold: {lines}. Correct the model's settings "
            "(system_role, chat_template, pad_token, context) before anything is measured."
        )


def _seen(look: Callable, case: _Case) -> tuple[bool, str]:
    faults, steps = {}, look(case)
    try:
        if not case.calibrations:
            return False, case.refused("chat", None)
        while True:
            faults[next(steps)] = True
    except StopIteration as end:
        faults = list(faults)
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        return not faults, "; ".join(faults[:3]) + more or end.value
    except StudyError as error:
        return False, str(error)


CHECKS = {  # every name is a claim
    "one BOS, or none where the model has none, in every prompt and training example": _Case._bos,
    "the system prompt is there when asked for, and only then": _Case._system,
    "nothing but turn marks stands beside the prompt": _Case._plain,
    "a training example begins with the tokens of its test prompt": _Case._same,
    "the loss is on the answer and its end alone": _Case._loss,
    "the end of an answer is learned, and generation stops there": _Case._end,
    "padding carries no loss and hides no token": _Case._padding,
    "nothing is truncated": _Case._whole,
    "an adapter changes the logits": _Case._active,
    "a saved adapter gives the same logits when loaded": _Case._saved,
    "without its adapter the base gives its own logits again": _Case._restored,
    "answers are plain greedy": _Case._greedy,
    "greedy answers are the same alone and in a batch": _Case._batch,
    "the judged text holds no prompt and no turn marks": _Case._response,
}


@contextmanager
def _on(tuned, model) -> Iterator:
    """The model with an adapter, which is off again afterwards, with the note that peft leaves on the model."""
    try:
        yield tuned
    finally:
        tuned.unload()
        vars(model).pop("peft_config", None)


def _where(style: str, system: str | None) -> str:
    return f"{style} style, {'with' if system else 'no'} system prompt"


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def _squeezed(text: str) -> str:
    """The text with composed letters and single spaces: what templates and tokenizers may change in passing."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _short(text: str, longest: int = 40) -> str:
    return repr(text if len(text) <= longest else text[: longest - 3] + "...")


def _tolerance(logits: torch.Tensor) -> float:
    """By which two logits may change places, as a share of the largest: half precision's 4 last places, or rounding."""
    return 4 * torch.finfo(logits.dtype).eps if logits.dtype in HALF else 1e-4
