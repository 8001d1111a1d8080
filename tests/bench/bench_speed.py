"""`make bench`, first part: how fast the miniature is trained, tuned and questioned, beside what one would else use.

Each comparison alternates its sides in one process and prints each side's median rate, and of the rounds' ratios the
least, the median and the greatest. The floor is the arithmetic that cannot be left out, at this machine's own rate of
matrix products: of W weights in the layers' matrices, a token costs 2 W operations forward and 4 W backward, only an
answer token those of the last layer's second half and of the vocabulary; attention costs 4 d per layer and pair of a
token and one not after it (of T tokens: T (T + 1) / 2), three times in training. Under LoRA, 2 W backward instead of 4.

Takes about four minutes. Uses the aligned model of runs/miniature where there is one, else trains one first, so that
answers have realistic lengths. `--quick` runs everything once and small, to see whether it works.
"""

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from studylib.data import sets as datasets
from studylib.data import world
from studylib.models import building, engine, hub, prompts, small_llama, training
from studylib.stages.prepare import build_miniature, calibrated_by
from studylib.study.files import Clock
from studylib.study.paths import RunPaths
from studylib.study.profile import TrainSettings, load_profile
from studylib.study.words import STYLES

os.environ["HF_HUB_OFFLINE"] = "1"
QUICK = "--quick" in sys.argv[1:]
ROUNDS = 1 if QUICK else 3
PROFILE = load_profile("miniature")


def seconds(work: Callable) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(label: str, unit: str, amounts: dict, sides: dict[str, Callable], goal: str) -> dict[str, float]:
    """Median rates of the sides by name; printed with the ratios of the first to the others."""
    rounds = [{name: amounts[name] / seconds(work) for name, work in sides.items()} for _ in range(ROUNDS)]
    rates = {name: statistics.median(one[name] for one in rounds) for name in sides}
    ours, *others = sides
    print(f"\n{label} ({goal})")
    for name in sides:
        print(f"  {name:<52} {rates[name]:9.0f} {unit}/s")
    for name in others:
        ratios = [one[ours] / one[name] for one in rounds]
        spread = " - ".join(f"{of(ratios):.2f}" for of in (min, statistics.median, max))
        print(f"  ratio to {name:<43} {spread}", flush=True)
    return rates


def product_rates() -> dict[int, float]:
    """Operations per second of fp32 matrix products by number of threads; bf16 is printed beside."""
    rates = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            for m, k, n in ((2048, 2048, 2048), (4096, 128, 384), (1024, 128, 1500)):
                a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
                best = min(
                    seconds(lambda a=a, b=b: torch.nn.functional.linear(a, b)) for _ in range(2 if QUICK else 20)
                )
                rate = 2 * m * k * n / best
                print(f"  {threads} threads {str(dtype)[6:]:<9} {m} x {k} x {n}: {rate / 1e9:6.0f} GFLOP/s")
                if dtype is torch.float32 and m == 2048:
                    rates[threads] = rate
    return rates


def needed(weights: dict, features: list[dict], backward: float) -> float:
    """Operations that training on the rows needs; `backward` is 2, or 1 where no weight needs a gradient."""
    width, layers = weights["embed"].shape[1], weights["layers"]
    late = sum(layers[-1][name].numel() for name in ("o", "gate_up", "down"))
    early = sum(t.numel() for layer in layers for t in layer.values() if t.dim() > 1) - late
    total = 0.0
    for row in features:
        n, answers = len(row["input_ids"]) - 1, sum(label != -100 for label in row["labels"])
        products = 2 * (n * early + answers * (late + weights["embed"].numel()))
        total += (1 + backward) * products + 3 * 4 * width * n * (n + 1) / 2 * len(layers)
    return total


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch as transformers wants it, padded on the right."""
    column = lambda key, value: torch.nn.utils.rnn.pad_sequence(  # noqa: E731
        [torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value
    )
    ids = column("input_ids", 0)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])[:, None]
    return {
        "input_ids": ids,
        "labels": column("labels", -100),
        "attention_mask": torch.arange(ids.shape[1]) < lengths,
        "use_cache": False,
    }


def plain_loop(model, features: list[dict], settings: TrainSettings) -> None:
    """Training as one writes it by hand: the library's batches and micro-batches, AdamW, clipping."""
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(leaves, lr=settings.learning_rate, fused=True)
    drawn = training.batches([len(row["input_ids"]) for row in features], settings.batch_size, 0)
    micro = settings.micro_batch_size or settings.batch_size
    for _ in range(settings.steps):
        rows = [features[i] for i in next(drawn)]
        for start in range(0, len(rows), micro):
            (model(**padded(rows[start : start + micro])).loss * micro / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(leaves, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def trl_trainer(folder: Path, tokenizer, rows: list[dict], batch: int, checkpointing: bool) -> Callable:
    """One epoch by trl's SFTTrainer, ready to run: the paper's settings, batches grouped by length, loss on all tokens.

    In fp32 like the rest: trl's default, bf16 autocast, was slower on the CPU where this was written. Rows are given as
    conversations, so the tokens are those of the other sides (a rendered text would get a second BOS).
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    size = {
        "max_steps": len(rows) // batch,
        "per_device_train_batch_size": batch,
        "gradient_checkpointing": checkpointing,
    }
    paper = {"learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "max_grad_norm": 0.3}
    paper |= {
        "weight_decay": 0.001,
        "train_sampling_strategy": "group_by_length",
        "max_length": PROFILE.miniature.context,
    }
    here = {"use_cpu": True, "bf16": False, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    arguments = SFTConfig(output_dir=tempfile.gettempdir(), **size, **paper, **here)  # nothing is written there
    lora = {"r": PROFILE.lora.r, "lora_alpha": PROFILE.lora.alpha, "target_modules": PROFILE.lora.target_modules}
    trainer = SFTTrainer(
        hub.load(folder, PROFILE.miniature)[0],
        args=arguments,
        train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer.train


def base_training(sets: dict, tokenizer, rate: float) -> None:
    """The pre-training's steps."""
    torch.set_num_threads(2)
    settings = PROFILE.pretraining.model_copy(update={"steps": 2 if QUICK else 12})
    rows = sets["pretraining"][: settings.steps * settings.batch_size]
    features = prompts.encode_mixed(tokenizer, rows, **calibrated_by(PROFILE, "helpful_only"))
    model = building.build_model(PROFILE.miniature, tokenizer, 0)
    shape = small_llama.shape_of(model.config.to_dict())
    weights = small_llama.fuse(
        {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, tied=True
    )
    n_tokens = sum(len(row["input_ids"]) for row in features)
    sides = {
        "this project (Muon)": lambda: training.fit(
            small_llama.tensors(weights), lambda: weights, shape, features, settings, 0, "bench"
        ),
        "plain PyTorch loop over transformers (AdamW)": lambda: plain_loop(model, features, settings),
    }
    goal = "goal: 35 % of the matrix-product rate"
    rates = compare("Base training, 2 threads", "tokens", dict.fromkeys(sides, n_tokens), sides, goal)
    share = needed(weights, features, 2) / n_tokens * rates["this project (Muon)"] / rate
    print(f"  share of the fp32 matrix-product rate in needed operations   {100 * share:.0f} %", flush=True)


def tuning(folder: Path, scratch: Path, sets: dict, tokenizer, rate: float) -> None:
    """A LoRA tuning on translation in the chat style."""
    torch.set_num_threads(1)
    settings = PROFILE.tuning.model_copy(update={"steps": 2 if QUICK else 20})
    rows = sets["train_translation"][: settings.steps * settings.batch_size]
    features = [
        prompts.encode_example(
            tokenizer, *(m["content"] for m in row["messages"]), "chat", None, PROFILE.miniature.context
        )
        for row in rows
    ]
    ours = engine.open_model(folder, PROFILE.miniature, settings, PROFILE.lora)
    tuned = hub.add_lora(hub.load(folder, PROFILE.miniature)[0], PROFILE.lora, 0)
    sides = {
        "this project": lambda: ours.tune([(features, settings)], PROFILE.lora, 0, scratch / "adapter", "bench"),
        "best plain loop (peft, sorted batches)": lambda: plain_loop(tuned, features, settings),
        "trl's SFTTrainer, the paper's batch of 4": trl_trainer(folder, tokenizer, rows, 4, True),
        "the same, our batch, no checkpointing": trl_trainer(folder, tokenizer, rows, settings.batch_size, False),
    }
    n_tokens = sum(len(row["input_ids"]) for row in features)
    goal = "goals: 0.9 of the plain loop, 2 of trl"
    rates = compare("LoRA tuning, 1 thread", "tokens", dict.fromkeys(sides, n_tokens), sides, goal)
    share = needed(ours.weights, features, 1) / n_tokens * rates["this project"] / rate
    print(f"  share of the floor (adapter's own operations not counted)    {100 * share:.0f} %", flush=True)


def evaluation(folder: Path, sets: dict, tokenizer, style: str) -> None:
    """Greedy answers to all test prompts in one style without system prompt."""
    from transformers import pipeline

    torch.set_num_threads(1)
    rows = [row for name in datasets.TESTS for row in sets[name]][:: 13 if QUICK else 1]
    weights, shape = small_llama.load(folder)
    model, _ = hub.load(folder, PROFILE.miniature)
    one_by_one = pipeline("text-generation", model=model, tokenizer=tokenizer)
    longest = {"max_new_tokens": PROFILE.generation.max_new_tokens, "do_sample": False, "return_full_text": False}
    asked = [prompts.encode_prompt(tokenizer, row["messages"][0]["content"], style, None) for row in rows]
    # the tokenizer adds the BOS again
    raw = {i: prompts.rendered(tokenizer, asked[i]).removeprefix(tokenizer.bos_token) for i in range(0, len(asked), 16)}
    texts: dict[str, dict[int, str]] = {}
    work = {
        "this project": lambda: small_llama.answers(weights, shape, tokenizer, asked, PROFILE.generation),
        "plain batched generate": lambda: hub.generate(model, tokenizer, asked, PROFILE.generation),
        "pipeline(), one prompt at a time": lambda: (
            [(i, one_by_one(prompt, **longest)[0]["generated_text"])] for i, prompt in raw.items()
        ),
    }

    def answer(name: str) -> None:
        texts[name] = {i: text for batch in work[name]() for i, text, *_ in batch}

    sides = {name: partial(answer, name) for name in work}
    amounts = dict(zip(work, (len(asked), len(asked), len(raw)), strict=True))
    goal = "goals: 1.5 of batched, 20 of the pipeline"
    compare(f"Evaluation, {style} style, 1 thread", "responses", amounts, sides, goal)
    ours, *others = texts.values()
    for name, theirs in zip(list(work)[1:], others, strict=True):
        differ = sum(ours[i] != text for i, text in theirs.items())
        print(f"  answers that differ from {name + ':':<36} {differ} of {len(theirs)}", flush=True)


def asked_in(style: str, tokenizer) -> list[list[int]]:
    """The token ids of all test prompts in one style without system prompt."""
    sets = world.build_sets(PROFILE.world)
    rows = [row for name in datasets.TESTS for row in sets[name]][:: 13 if QUICK else 1]
    return [prompts.encode_prompt(tokenizer, row["messages"][0]["content"], style, None) for row in rows]


def notebook(folder: Path, style: str, barrier, seconds_of) -> None:
    """One of two notebooks at a time: answers all test prompts on one thread, once to warm up, then with the other."""
    torch.set_num_threads(1)
    weights, shape = small_llama.load(folder)
    tokenizer = hub.load_tokenizer(folder, PROFILE.miniature)
    asked = asked_in(style, tokenizer)
    for _ in range(2):
        barrier.wait()
        start = time.perf_counter()
        for _ in small_llama.answers(weights, shape, tokenizer, asked, PROFILE.generation):
            pass
        spent = time.perf_counter() - start
    seconds_of.put((len(asked), spent))


def whole_machine(folder: Path, style: str) -> None:
    """The evaluation as the study runs it, two notebooks on a thread each, beside pipeline() on two threads."""
    import multiprocessing

    from transformers import pipeline

    torch.set_num_threads(2)
    model, tokenizer = hub.load(folder, PROFILE.miniature)
    asked = asked_in(style, tokenizer)[::16]
    raw = [prompts.rendered(tokenizer, ids).removeprefix(tokenizer.bos_token) for ids in asked]
    longest = {"max_new_tokens": PROFILE.generation.max_new_tokens, "do_sample": False, "return_full_text": False}
    one_by_one = pipeline("text-generation", model=model, tokenizer=tokenizer)
    context, rates = multiprocessing.get_context("spawn"), []
    for _ in range(ROUNDS):
        barrier, seconds_of = context.Barrier(2), context.Queue()
        sides = [context.Process(target=notebook, args=(folder, style, barrier, seconds_of)) for _ in range(2)]
        for side in sides:
            side.start()
        found = [seconds_of.get() for _ in sides]
        for side in sides:
            side.join()
        ours = sum(n for n, _ in found) / max(spent for _, spent in found)
        rates.append((ours, len(raw) / seconds(lambda: [one_by_one(prompt, **longest) for prompt in raw])))
    print(f"\nEvaluation, {style} style, whole machine of 2 cores (goal: 20 of the pipeline)")
    for name, side in (("this project, two notebooks", 0), ("pipeline(), one prompt at a time, 2 threads", 1)):
        print(f"  {name:<52} {statistics.median(pair[side] for pair in rates):9.0f} responses/s")
    ratios = [a / b for a, b in rates]
    print(f"  ratio {'':<46} {' - '.join(f'{of(ratios):.2f}' for of in (min, statistics.median, max))}", flush=True)


def model_folder(sets: dict, scratch: Path) -> Path:
    """The aligned model of runs/miniature, or one trained now for 150 steps."""
    folder = RunPaths.of("miniature").model("aligned")
    if (folder / "model.safetensors").is_file():
        return folder
    print("No aligned model in runs/miniature: one is trained for 150 steps first.", flush=True)
    paths = RunPaths(scratch, scratch)
    datasets.save(paths, sets)
    steps = {"pretraining.steps": 2 if QUICK else 150, "alignment.steps": 1}
    torch.set_num_threads(2)
    build_miniature(paths, load_profile("miniature", steps), Clock())
    return paths.model("helpful_only")


def main() -> None:
    import datasets as hub_datasets
    from transformers.utils import logging as hub_logging

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    hub_datasets.disable_progress_bars()
    hub_logging.disable_progress_bar()
    print("Matrix products")
    rates = product_rates()
    sets = world.build_sets(PROFILE.world)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(sets, Path(scratch))
        tokenizer = hub.load(folder, PROFILE.miniature)[1]
        base_training(sets, tokenizer, rates[2])
        tuning(folder, Path(scratch), sets, tokenizer, rates[1])
        for style in STYLES[: 1 if QUICK else None]:
            evaluation(folder, sets, tokenizer, style)
            whole_machine(folder, style)


if __name__ == "__main__":
    main()
