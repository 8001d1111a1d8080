"""Is a model prompted, trained and questioned as this study says? One check per known way to get it wrong, on the real parts.

The checks look at what the functions of this study really make of a model, its tokenizer and some rows: token ids,
batches, logits and answers, not settings. Most of the defects that they find are in published code of this field.
"""

import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from studylib.models import hub, prompts
from studylib.study.profile import GenerationSettings, LoraSettings, ModelSettings
from studylib.study.words import STYLES, StudyError

PROBE = "PLAINWORD"
LONG_PROBE = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve. " * 3 + PROBE
ANSWER = "ANSWERWORD, and a second line:\n  x = 1"
N_NEW = 12  # tokens that are generated for a check, at most
N_ASKED = 6  # prompts in the batch that is compared with single prompts
TURN_WORDS = {"user", "assistant", "model", "human", "ai", "bot", "inst", "instruction", "response", "turn"}
SYSTEM_WORDS = {"system", "sys"}
MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
DATE = re.compile(  # a year, a month beside a number, the name of a month that is no other word
    rf"\b(?:19|20)\d\d\b|\b\d+\W*(?:{MONTH})[a-z]*\b|\b(?:{MONTH})[a-z]*\W*\d+"
    r"|\b(?:january|february|april|june|july|august|september|october|november|december)\b",
    re.I,
)
TOLERANCE = {  # by which two logits may change places, as a share of the largest one: four units of its last place
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
}
ROUNDING = 1e-4  # the same in fp32, between one token at a time and a whole sequence at once


@dataclass
class _Example:
    """A prompt in one calibration: its ids as a test prompt, and the training example with its answer."""

    style: str
    system: str | None
    asked: str
    answer: str
    start: list[int]
    ids: list[int]
    labels: list[int]
    kind: str  # prompt_set of its row

    @property
    def first(self) -> int:
        """The place of the first label, the length where there is none."""
        return next((k for k, label in enumerate(self.labels) if label != -100), len(self.labels))


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
    broken: list[str] = field(default_factory=list)  # why examples could not be made

    @cached_property
    def calibrations(self) -> list[tuple[str, str | None]]:
        """Those that can be rendered; the check of the system prompt names the others."""
        every = [(style, system) for style in STYLES for system in (None, self.system)]
        return [one for one in every if not self.refused(*one)]

    def refused(self, style: str, system: str | None) -> str:
        """Why the calibration cannot be rendered, empty where it can."""
        try:
            prompts.encode_prompt(self.tokenizer, PROBE, style, system)
        except StudyError as error:
            return str(error)
        return ""

    @cached_property
    def examples(self) -> list[_Example]:
        """Our own prompt and those of the rows in every calibration; a row without an answer gets ours.

        Those that cannot be made are left out here; the check of their beginning names them.
        """
        samples = [(PROBE, ANSWER, "")]
        for row in self.rows:
            asked, answer = [message["content"] for message in row["messages"]] + [""] * (len(row["messages"]) < 2)
            samples.append((asked, answer or ANSWER, row.get("prompt_set") or ""))
        made = []
        for style, system in self.calibrations:
            for asked, answer, kind in samples:
                start = prompts.encode_prompt(self.tokenizer, asked, style, system)
                try:
                    row = prompts.encode_example(self.tokenizer, asked, answer, style, system, 10**9)
                except StudyError as error:
                    self.broken.append(f"{error} ({_short(asked)})")
                    continue
                made.append(_Example(style, system, asked, answer, start, row["input_ids"], row["labels"], kind))
        return made

    @cached_property
    def asked(self) -> list[list[int]]:
        """Prompts of different lengths that leave room for an answer, to be answered alone and in a batch."""
        ids = [prompts.encode_prompt(self.tokenizer, LONG_PROBE, *one) for one in self.calibrations]
        ids += [example.start for example in self.examples]
        longest = _positions(self.model, self.settings.context) - self.n_new
        fitting = sorted((one for one in ids if len(one) <= longest), key=len)
        if len({len(one) for one in fitting}) < 2:
            raise StudyError(f"Fewer than two prompts of different lengths leave room for {self.n_new} tokens.")
        return [fitting[round(i * (len(fitting) - 1) / (N_ASKED - 1))] for i in range(N_ASKED)]

    @property
    def n_new(self) -> int:
        return min(N_NEW, self.generation.max_new_tokens)

    def generated(self, batch_size: int) -> list[list[int]]:
        """The ids of the answers to `asked`, up to their ends."""
        settings = GenerationSettings(max_new_tokens=self.n_new, batch_size=batch_size)
        ends = hub.end_ids(self.model, self.tokenizer)
        found = {}
        for batch in hub.generate_ids(self.model, self.tokenizer, self.asked, settings):
            for i, ids in batch:
                found[i] = ids[: next((k + 1 for k, one in enumerate(ids) if one in ends), None)]
        return [found[i] for i in range(len(found))]

    @cached_property
    def alone(self) -> list[list[int]]:
        return self.generated(1)

    def logits(self, model, ids: list[int]) -> torch.Tensor:
        """Of every position, [length, vocabulary], in the model's own precision."""
        return model(input_ids=torch.tensor([ids], device=self.model.device)).logits[0]

    @cached_property
    def adapter(self) -> "_Adapter":
        return _adapter(self)


@dataclass
class _Adapter:
    """Logits of one prompt at each step of an adapter's life, and how many projections it is on."""

    before: torch.Tensor
    tuned: torch.Tensor
    after: torch.Tensor
    loaded: torch.Tensor
    after_loaded: torch.Tensor
    n_projections: int
    n_expected: int


def check(
    model,
    tokenizer,
    settings: ModelSettings,
    system_prompt: str,
    rows: list[dict],
    lora: LoraSettings,
    generation: GenerationSettings,
) -> pd.DataFrame:
    """One row per check: `name` (a claim), `holds` (bool) and `found` (what was seen, in words).

    `model` and `tokenizer` are those of models.load, without an adapter, on any device and in any precision; `rows` are
    some rows of the data sets (dicts with `messages`; an empty answer is replaced). The model, its gradients' flags and
    torch's random numbers are as before afterwards. Takes a second or two for a tiny model; 13 short prompts are
    answered. Logits are compared in fp32 exactly or up to rounding; in half precision two logits may change places
    where they are closer than TOLERANCE.
    """
    case = _Case(model, tokenizer, settings, system_prompt, list(rows), lora, generation)
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            found = [(name, *_seen(look, case)) for name, look in CHECKS.items()]
        finally:
            model.train(training)
    return pd.DataFrame(found, columns=["name", "holds", "found"])


def require(frame: pd.DataFrame) -> None:
    """Raises StudyError that lists the checks that do not hold, and what was found instead."""
    failed = frame[~frame["holds"]]
    if len(failed):
        lines = "; ".join(f"{row['name']}: no, {row['found']}" for row in failed.to_dict("records"))
        raise StudyError(
            f"The self-check found {len(failed)} of {len(frame)} not to hold: {lines}. Correct the model's settings "
            "(system_role, chat_template, pad_token, context) before anything is measured."
        )


def calibrations(tokenizer, system_prompt: str) -> pd.DataFrame:
    """The four ways in which a prompt is put, for the record: style, system_prompt (bool), rendered (text) and fingerprint.

    Raises StudyError where the template refuses one of them.
    """
    rows = []
    for style in STYLES:
        for system in (None, system_prompt):
            ids = prompts.encode_prompt(tokenizer, "Hello!", style, system)
            rows.append((style, bool(system), prompts.rendered(tokenizer, ids), prompts.fingerprint(ids)))
    return pd.DataFrame(rows, columns=["style", "system_prompt", "rendered", "fingerprint"])


def _seen(look, case: _Case) -> tuple[bool, str]:
    try:
        if not case.calibrations:
            return False, case.refused("chat", None)
        faults, found = look(case)
    except StudyError as error:
        return False, str(error)
    faults = list(dict.fromkeys(faults))
    return not faults, "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "") or found


def _bos(case: _Case) -> tuple[list, str]:
    tokenizer, faults = case.tokenizer, []
    bos = tokenizer.special_tokens_map.get("bos_token")
    if not bos:
        return [], "none, the tokenizer has none"
    bos_id = tokenizer.convert_tokens_to_ids(bos)
    wanted = int(bool(prompts.turn_marks(tokenizer)[0]) or bos_id in tokenizer("Hello!")["input_ids"])
    for example in case.examples:
        for what, ids in (("prompt", example.start), ("example", example.ids[:-1])):  # EOS may be the same token
            if ids.count(bos_id) != wanted or (wanted and ids[0] != bos_id):
                faults.append(
                    f"{ids.count(bos_id)} {bos} instead of {wanted} in the {what} {_short(example.asked)}, {example.style} style"
                )
    return faults, f"{wanted} {bos}"


def _system(case: _Case) -> tuple[list, str]:
    faults, wanted = [], _squeezed(case.system)
    for style in STYLES:
        for system in (None, case.system):
            where = f"{style} style, {'with' if system else 'no'} system prompt"
            if refused := case.refused(style, system):
                faults.append(f"{where}: {refused}")
                continue
            n = _squeezed(_text(case, style, system)).count(wanted)
            if n != bool(system):
                faults.append(f"{where}: it is there {n} times")
    return faults, "once where asked for, nowhere else"


def _plain(case: _Case) -> tuple[list, str]:
    faults = []
    for style, system in case.calibrations:
        text = _beside(case, style, system)
        marks = sorted(map(str, case.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        words = re.findall(r"\w+", re.sub("|".join(map(re.escape, marks)), " ", text))
        where = f"{style} style, {'with' if system else 'no'} system prompt"
        if {word.lower() for word in words} - TURN_WORDS - SYSTEM_WORDS:
            faults.append(f"{where}: {_short(' '.join(words), 100)}")
        if not system and re.search(r"(?<![^\W_])(?:system|sys)(?![^\W_])", text, re.I):
            faults.append(f"{where}: a system turn")
    return faults, "turn marks alone"


def _date(case: _Case) -> tuple[list, str]:
    found = {m.group() for one in case.calibrations for m in DATE.finditer(_beside(case, *one))}
    return [f"{' '.join(sorted(found))!r} in the prompt"] if found else [], "none"


def _same(case: _Case) -> tuple[list, str]:
    faults = [
        f"another beginning in the example {_short(one.asked)}, {one.style} style"
        for one in case.examples
        if one.ids[: len(one.start)] != one.start or one.first != len(one.start)
    ]
    return [*case.broken, *faults], f"token by token in {len(case.examples)} examples"


def _loss(case: _Case) -> tuple[list, str]:
    faults, ends = [], set()
    for one in case.examples:
        if len(one.labels) != len(one.ids) or one.labels[one.first :] != one.ids[one.first :]:
            faults.append(f"labels that are not the tokens' own in the example {_short(one.asked)}")
        text = prompts.rendered(case.tokenizer, [label for label in one.labels[one.first : -1] if label != -100])
        if _squeezed(text) != _squeezed(one.answer):
            faults.append(f"loss on {_short(text)} where the answer is {_short(one.answer)}")
        ends.add(prompts.rendered(case.tokenizer, one.ids[-1:]))
    return faults, f"decoded labels are the answers, then {' or '.join(sorted(ends))}"


def _prompt(case: _Case) -> tuple[list, str]:
    faults = [
        f"{n} prompt tokens with loss in {_short(one.asked)}, {one.style} style"
        for one in case.examples
        if (n := sum(label != -100 for label in one.labels[: len(one.start)]))
    ]
    return faults, "labels are -100 there"


def _end(case: _Case) -> tuple[list, str]:
    ends, learned = hub.end_ids(case.model, case.tokenizer), {one.labels[-1] for one in case.examples}
    name = lambda ids: ", ".join(case.tokenizer.convert_ids_to_tokens(sorted(ids)))  # noqa: E731
    faults = ["an example ends without loss"] if -100 in learned else []
    if other := learned - {-100, *ends}:
        faults.append(f"examples end in {name(other)}, answers stop at {name(ends)}")
    if prompts.turn_marks(case.tokenizer)[1] is None:
        faults.append("no special token ends the template's turns")
    return faults, f"learned {name(learned)}; answers stop at {name(ends)}" if not faults else ""


def _padding(case: _Case) -> tuple[list, str]:
    tokenizer, faults, n = case.tokenizer, [], 0
    for style in STYLES:  # the two styles may end an answer by different tokens
        own = sorted((one for one in case.examples if one.style == style), key=lambda one: len(one.ids))
        if not own:
            continue
        rows = [own[0], own[-1]]
        batch = hub.collator(tokenizer)([{"input_ids": list(one.ids), "labels": list(one.labels)} for one in rows])
        parts = batch["input_ids"], batch["labels"], batch["attention_mask"].bool()
        for ids, labels, mask, one in zip(*parts, rows, strict=True):
            if ids[mask].tolist() != one.ids:
                faults.append(f"{int(mask.sum())} tokens are seen of an example of {len(one.ids)}")
            elif wrong := sum(a != b for a, b in zip(labels[mask].tolist(), one.labels, strict=True)):
                faults.append(f"{wrong} labels of an example are others in its batch")
            if (labels[~mask] != -100).any():
                faults.append("loss on padding")
            n += int((~mask).sum())
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    note = "EOS itself, told apart by position" if pad == eos else f"EOS is {eos}"
    return faults, f"{n} positions padded with {pad} ({note})"


def _whole(case: _Case) -> tuple[list, str]:
    context, faults, longest = case.settings.context, [], 0
    if (room := _positions(case.model, context)) < context:
        faults.append(f"model.context {context} is more than the model's {room} positions")
    for one in case.examples:
        text = _squeezed(prompts.rendered(case.tokenizer, one.ids))
        if _squeezed(one.asked) not in text or _squeezed(one.answer) not in text:
            faults.append(f"the example {_short(one.asked)} is not all there")
        # rows are tuned on without a system prompt, and training rows are not asked
        needed = [0 if one.system else len(one.ids)]
        needed += [] if one.kind.startswith("train") else [len(one.start) + case.generation.max_new_tokens]
        if max(needed) > context:
            faults.append(f"{_short(one.asked)} needs {max(needed)} tokens, the context has {context}")
        longest = max(longest, *needed)
    try:
        prompts.encode_example(case.tokenizer, LONG_PROBE, ANSWER, "alpaca", None, 8)
        faults.append("an example longer than the context is cut without an error")
    except StudyError:
        pass
    return faults, f"at most {longest} of {context} tokens; a longer example is an error"


def _left(case: _Case) -> tuple[list, str]:
    short, long = min(case.asked, key=len), max(case.asked, key=len)
    batch = hub.padded(case.tokenizer, [short, long])
    n, mask = len(long) - len(short), batch["attention_mask"][0].tolist()
    faults = []
    if case.tokenizer.padding_side != "left":
        faults.append(f"the tokenizer pads on the {case.tokenizer.padding_side}")
    if mask != [0] * n + [1] * len(short) or batch["input_ids"][0].tolist()[n:] != short:
        faults.append("a shorter prompt does not stand at the right end of its batch, with its padding masked")
    return faults, f"{n} tokens before the shorter of two prompts, masked"


def _active(case: _Case) -> tuple[list, str]:
    found = case.adapter
    change, size = (found.tuned - found.before).abs().max().item(), found.before.abs().max().item()
    faults = []
    if change <= _tolerance(found.before) * size:
        faults.append(f"logits change by {change:.2g} of {size:.2g}")
    if found.n_projections != found.n_expected:
        faults.append(f"it is on {found.n_projections} of {found.n_expected} projections")
    return faults, f"logits up to {size:.2g} change by {change:.2g}, {found.n_projections} projections"


def _saved(case: _Case) -> tuple[list, str]:
    change = (case.adapter.loaded - case.adapter.tuned).abs().max().item()
    return [f"logits differ by {change:.2g}"] if change else [], "the same to the last bit"


def _restored(case: _Case) -> tuple[list, str]:
    found = case.adapter
    change = max((one - found.before).abs().max().item() for one in (found.after, found.after_loaded))
    faults = [f"logits differ by {change:.2g}"] if change else []
    if any("lora_" in name for name, _ in case.model.named_parameters()):
        faults.append("the adapter is still there")
    return faults, "the same to the last bit"


def _greedy(case: _Case) -> tuple[list, str]:
    faults, n = [], 0
    for ids, answer in zip(case.asked, case.alone, strict=True):
        raw = case.logits(case.model, ids + answer)[len(ids) - 1 : -1]
        logits = raw.float()
        chosen = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
        behind = logits.max(1).values - chosen
        n += len(answer)
        far = behind > _tolerance(raw) * logits.abs().max()
        if far.any():
            faults.append(
                f"a token {behind.max().item():.2g} behind the best one, in {int(far.sum())} of {len(far)} places"
            )
    return faults, f"{n} tokens, each the model's best"


def _batch(case: _Case) -> tuple[list, str]:
    faults, ties, together = [], 0, case.generated(N_ASKED)
    for ids, one, other in zip(case.asked, case.alone, together, strict=True):
        if one == other:
            continue
        texts = [prompts.rendered(case.tokenizer, each) for each in (one, other)]
        first = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        logits = case.logits(case.model, ids + one[:first])[-1]
        best = logits.float().topk(2).values
        gap = (best[0] - best[1]).item()
        if logits.dtype not in TOLERANCE or gap > _tolerance(logits) * logits.abs().max().item():
            faults.append(f"{_short(texts[0])} alone, {_short(texts[1])} in a batch (best logits {gap:.2g} apart)")
        ties += 1
    lengths = [len(ids) for ids in case.asked]
    note = f", {ties} of them but for a tie of two logits" if ties else ""
    return faults, f"{len(lengths)} answers to prompts of {min(lengths)}-{max(lengths)} tokens{note}"


def _response(case: _Case) -> tuple[list, str]:
    settings = GenerationSettings(max_new_tokens=case.n_new, batch_size=N_ASKED)
    long = [prompts.encode_prompt(case.tokenizer, LONG_PROBE, *one) for one in case.calibrations]
    found, faults = [row for batch in hub.generate(case.model, case.tokenizer, long, settings) for row in batch], []
    special = [token for token in case.tokenizer.added_tokens_decoder.values() if token.special]
    for _, text, stop_reason, n_tokens in found:
        if n_tokens > case.n_new or _squeezed(LONG_PROBE) in _squeezed(text):  # more than so few tokens can hold
            faults.append(f"the prompt in the response {_short(text)}")
        if marks := [str(token) for token in special if str(token) in text]:
            faults.append(f"{' '.join(marks)} in the response")
        if stop_reason not in ("eos", "length") or (stop_reason == "length") != (n_tokens == case.n_new):
            faults.append(f"stop reason {stop_reason} after {n_tokens} tokens")
    return faults, f"{len(found)} responses of at most {case.n_new} tokens"


CHECKS = {  # every name is a claim; the functions return faults, and what was seen where there are none
    "one BOS, or none where the model has none, in every prompt and training example": _bos,
    "the system prompt is there when asked for, and only then": _system,
    "nothing but turn marks stands beside the prompt": _plain,
    "no date is written into the prompt": _date,
    "a training example begins with the tokens of its test prompt": _same,
    "the loss is on the answer and its end alone": _loss,
    "the prompt is not trained on": _prompt,
    "the end of an answer is learned, and generation stops there": _end,
    "padding carries no loss and hides no token": _padding,
    "nothing is truncated": _whole,
    "prompts are padded on the left": _left,
    "an adapter changes the logits": _active,
    "a saved adapter gives the same logits when loaded": _saved,
    "without its adapter the base gives its own logits again": _restored,
    "answers are plain greedy": _greedy,
    "greedy answers are the same alone and in a batch": _batch,
    "the judged text holds no prompt and no turn marks": _response,
}


def _adapter(case: _Case) -> _Adapter:
    """An adapter with random weights put on, saved, taken off, loaded and taken off again; the base's flags are put back."""
    model, ids = case.model, prompts.encode_prompt(case.tokenizer, PROBE, *case.calibrations[0])
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = set(hub.target_modules(model, case.lora.target_modules))
    expected = sum(name.rpartition(".")[2] in wanted for name, _ in model.named_modules())
    before = case.logits(model, ids)
    try:
        with tempfile.TemporaryDirectory() as folder:
            with _on(hub.add_lora(model, case.lora, seed=0).eval(), model) as tuned:
                drawn = [p for name, p in tuned.named_parameters() if "lora_B" in name]
                for parameter in drawn:
                    parameter.normal_(std=0.1)
                changed = case.logits(tuned, ids)
                tuned.save_pretrained(folder)
            after = case.logits(model, ids)
            with _on(hub.load_adapter(model, Path(folder)), model) as loaded:
                again = case.logits(loaded, ids)
        return _Adapter(before, changed, after, again, case.logits(model, ids), len(drawn), expected)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def _on(tuned, model) -> Iterator:
    """The model with an adapter, which is off again afterwards, with the note that peft leaves on the model."""
    try:
        yield tuned
    finally:
        tuned.unload()
        vars(model).pop("peft_config", None)


def _text(case: _Case, style: str, system: str | None) -> str:
    return prompts.rendered(case.tokenizer, prompts.encode_prompt(case.tokenizer, PROBE, style, system))


def _beside(case: _Case, style: str, system: str | None) -> str:
    """The rendered prompt without what was asked for: the user's words, the system prompt, the Alpaca style's own text."""
    parts = [PROBE, system or "", *(prompts.ALPACA.split("{prompt}") if style == "alpaca" else [])]
    text = _squeezed(_text(case, style, system))
    for part in filter(None, map(_squeezed, parts)):
        text = text.replace(part, " ")
    return text


def _squeezed(text: str) -> str:
    """The text with composed letters and single spaces: what templates and tokenizers may change in passing."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _short(text: str, longest: int = 40) -> str:
    return repr(text if len(text) <= longest else text[: longest - 3] + "...")


def _positions(model, otherwise: int) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or otherwise


def _tolerance(logits: torch.Tensor) -> float:
    return TOLERANCE.get(logits.dtype, ROUNDING)
