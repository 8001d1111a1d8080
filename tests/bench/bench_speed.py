"""`make bench`, first part: how fast the miniature is trained, tuned and questioned, beside what one would else use.

Each comparison alternates its sides in one process and prints each side's median rate, and of the rounds' ratios the
least, the median and the greatest. The floor is the arithmetic that cannot be left out, at this machine's own rate of
matrix products: of W weights in the layers' matrices, a token costs 2 W operations forward and 4 W backward, only an
answer token those of the last layer's second half and of the vocabulary; attention costs 4 d per layer and pair of a
token and one not after it (of T tokens: T (T + 1) / 2), three times in training. Under LoRA, 2 W backward instead of 4.

Then the levers of a training, one by one, each beside one thread in the same rounds: threads and how they wait, two
trainings side by side, bf16, sizes of the micro-batches, adapters stacked into one batched product.

Takes about eight minutes. Uses the aligned model of runs/miniature where there is one, else trains one first, so that
answers have realistic lengths. `--quick` runs everything once and small, to see whether it works.
"""

import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from studylib.data import sets as datasets
from studylib.data import world
from studylib.models import building, engine, hub, prompts, small_llama, training
from studylib.stages.cells import aligned
from studylib.stages.prepare import build_miniature, calibrated_by
from studylib.study.files import Clock
from studylib.study.paths import RunPaths
from studylib.study.profile import TrainSettings, load_profile
from studylib.study.words import STYLES

os.environ["HF_HUB_OFFLINE"] = "1"
QUICK = "--quick" in sys.argv[1:]
ROUNDS = 1 if QUICK else 3
PROFILE = load_profile("miniature")
OF_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


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
    torch.set_num_threads(1)
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
    rates = compare("Base training, 1 thread", "tokens", dict.fromkeys(sides, n_tokens), sides, goal)
    share = needed(weights, features, 2) / n_tokens * rates["this project (Muon)"] / rate
    print(f"  share of the fp32 matrix-product rate in needed operations   {100 * share:.0f} %", flush=True)


def levers(scratch: Path, sets: dict, tokenizer) -> None:
    """The steps of the pre-training in processes of their own, as one would set them up."""
    settings = PROFILE.pretraining.model_copy(update={"steps": 2 if QUICK else 8})
    rows = sets["pretraining"][: settings.steps * settings.batch_size]
    features = prompts.encode_mixed(tokenizer, rows, **calibrated_by(PROFILE, "helpful_only"))
    model = building.build_model(PROFILE.miniature, tokenizer, 0)
    torch.save((features, model.state_dict(), model.config.to_dict(), settings.model_dump()), scratch / "steps")
    two, passive = {"threads": 2}, {"OMP_WAIT_POLICY": "passive"}
    sides = {
        "one thread": {},
        "two threads, waiting as by default": two,
        "two threads, passive, no spin": two | passive | {"GOMP_SPINCOUNT": "0"},
        "two threads, passive, 10,000 spins": two | passive | {"GOMP_SPINCOUNT": "10000"},
        "two trainings at a time, one thread each": {"processes": 2},
        **{f"one thread, micro-batches of {size}": {"micro": size} for size in (8, 32)},  # of 32 rows
        "one thread, torch's Muon": {"muon": "torch"},
    }
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        sides["one thread, bf16 autocast"] = {"dtype": "bfloat16"}
    else:
        print("\nbf16 is not measured: this processor does not multiply in it")
    n_tokens = sum(len(row["input_ids"]) for row in features)
    running = {name: _started(scratch, **side) for name, side in sides.items()}
    rounds = [
        {name: len(its) * n_tokens / seconds(partial(_all_go, its)) for name, its in running.items()}
        for _ in range(ROUNDS)
    ]
    for one in (one for its in running.values() for one in its):
        one.communicate()  # closes its input, at which it ends
    print("\nLevers of a training, in tokens/s of all processes together, and the ratio to one thread")
    for name in sides:
        ratios = [one[name] / one["one thread"] for one in rounds]
        spread = " - ".join(f"{of(ratios):.2f}" for of in (min, statistics.median, max))
        print(f"  {name:<45} {statistics.median(one[name] for one in rounds):7.0f}   {spread}", flush=True)


def _started(scratch: Path, processes=1, threads=1, micro=16, dtype="float32", muon="ours", **environment) -> list:
    """Processes that take the steps whenever they are told to, warmed up."""
    command = [sys.executable, __file__, "--steps", scratch / "steps", str(threads), str(micro), dtype, muon]
    inherited = {name: value for name, value in os.environ.items() if name not in OF_THREADS}
    ends = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    running = [subprocess.Popen(command, text=True, env=inherited | environment, **ends) for _ in range(processes)]
    said = [one.stdout.readline() for one in running]
    assert said == ["ready\n"] * processes, f"a training process did not start: {said}"
    return running


def _all_go(running: list[subprocess.Popen]) -> None:
    for one in running:
        one.stdin.write("go\n")
        one.stdin.flush()
    assert all(one.stdout.readline() == "done\n" for one in running)


def take_steps(file: str, threads: str, micro: str, dtype: str, muon: str) -> None:
    """One of those processes: a step to warm up, then all steps at each word from the parent."""
    torch.set_num_threads(int(threads))
    if muon == "torch":
        same = {"adjust_lr_fn": "original", "weight_decay": 0.0}
        training.Muon = lambda leaves, chosen: torch.optim.Muon(leaves, **chosen, **same)
    features, state, config, settings = torch.load(file)
    weights, shape = small_llama.fuse(state, tied=True), small_llama.shape_of(config)
    chosen = TrainSettings(**settings | {"micro_batch_size": int(micro)})

    def train(chosen: TrainSettings) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            training.fit(small_llama.tensors(weights), lambda: weights, shape, features, chosen, 0, "bench")

    train(chosen.model_copy(update={"steps": 1}))
    print("ready", flush=True)
    for _ in sys.stdin:
        train(chosen)
        print("done", flush=True)


def stacked_adapters(folder: Path) -> None:
    """A layer of several tuned models on a batch of each: one after the other, and stacked into batched products.

    Forward and backward to the merged weights, one thread: what stacking adapters in a tuning could gain at most.
    """
    torch.set_num_threads(1)
    weights, shape = small_llama.load(folder)
    k, rows, length, d = 4, 16, 48, weights["embed"].shape[1]
    cos, sin = shape.rotation(length)
    stack = {name: torch.stack([tensor] * k).requires_grad_() for name, tensor in weights["layers"][0].items()}
    x = torch.randn(k, rows, length, d)

    def layer(w: dict, x: torch.Tensor) -> torch.Tensor:
        product = lambda y, name: torch.bmm(y.flatten(1, 2), w[name].mT).unflatten(1, (rows, length))  # noqa: E731
        normed = lambda y, name: F.rms_norm(y, (d,), eps=shape.eps) * w[name][:, None, None]  # noqa: E731
        parts = product(normed(x, "norm1"), "qkv").unflatten(-1, (3, shape.heads, shape.head_size)).unbind(-3)
        q, key = (small_llama._rotated(part, cos, sin).flatten(0, 1).transpose(1, 2) for part in parts[:2])
        attended = F.scaled_dot_product_attention(q, key, parts[2].flatten(0, 1).transpose(1, 2), is_causal=True)
        x = x + product(attended.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2]), "o")
        gate, up = product(normed(x, "norm2"), "gate_up").chunk(2, dim=-1)
        return x + product(F.silu(gate) * up, "down")

    def one_by_one() -> None:
        for i in range(k):
            layer({name: tensor[i : i + 1] for name, tensor in stack.items()}, x[i : i + 1]).sum().backward()

    n = 2 if QUICK else 20
    sides = {"four adapters stacked": lambda: [layer(stack, x).sum().backward() for _ in range(n)]}
    sides["one after the other"] = lambda: [one_by_one() for _ in range(n)]
    amounts = dict.fromkeys(sides, x[..., 0].numel() * n)
    compare("Stacked adapters, one layer, 1 thread", "tokens", amounts, sides, "no goal: worth it above 1.3")


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
    folder = RunPaths.of("miniature").model(aligned(0))
    if (folder / "model.safetensors").is_file():
        return folder
    print("No aligned model in runs/miniature: one is trained for 150 steps first.", flush=True)
    paths = RunPaths(scratch, scratch)
    datasets.save(paths, sets)
    steps = {"pretraining.steps": 2 if QUICK else 150, "alignment.steps": 1}
    steps |= {"base_seeds": [0], "grid.explore_bases": [0]}
    torch.set_num_threads(2)
    build_miniature(paths, load_profile("miniature", steps), Clock())
    return paths.model("helpful_only-0")


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
        base_training(sets, tokenizer, rates[1])
        levers(Path(scratch), sets, tokenizer)
        stacked_adapters(folder)
        tuning(folder, Path(scratch), sets, tokenizer, rates[1])
        for style in STYLES[: 1 if QUICK else None]:
            evaluation(folder, sets, tokenizer, style)
            whole_machine(folder, style)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--steps"]:
        logging.disable(logging.WARNING)
        take_steps(*sys.argv[2:])
    else:
        main()
