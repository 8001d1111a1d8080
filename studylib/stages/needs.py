"""What a run will need, before anything is loaded: disk, GPU memory, hours, access, judge calls; and what is there.

Estimates from the profile alone, good to a factor of two; the two rates in `execution` one measures on one's own card.
"""

import os
import shutil
from pathlib import Path

import pandas as pd

from studylib.data import fetching
from studylib.study.grid import system_prompts, tunings, untuned
from studylib.study.paths import RunPaths
from studylib.study.profile import ModelSettings, Profile
from studylib.study.words import MINIATURE, TINY, StudyError

PROMPT_TOKENS, ROW_BYTES = 300, 3000  # of a typical prompt with its answer; of a row of responses on disk
GB = 1e9


def table(profile: Profile, paths: RunPaths) -> pd.DataFrame:
    """One row per need: `need`, `what`, `needed`, `found` (words) and `enough` (True, False, or None where unknown)."""
    models = (row for name in large(profile) for row in _of_model(profile, name))
    rows = [_disk(profile, paths), *models, _hours(profile), _judge_calls(profile)]
    return pd.DataFrame(rows, columns=["need", "what", "needed", "found", "enough"])


def require(found: pd.DataFrame, here: bool) -> None:
    """Raises StudyError that lists what is missing; `here`: also what the machine that loads the model must have."""
    missing = found[found["enough"].eq(False)]
    if not here:  # a driver without a GPU may send the work to machines that have one
        missing = missing[missing["need"] != "GPU memory"]
    if len(missing):
        listed = "; ".join(f"{r.need} for {r.what}: needs {r.needed}, found {r.found}" for r in missing.itertuples())
        raise StudyError(f"This machine cannot run the profile: {listed}.")


def large(profile: Profile) -> list[str]:
    """Names of the profile's models that are neither built here nor tiny."""
    return [name for name, m in profile.models.items() if m.source != MINIATURE and not m.source.startswith(TINY)]


def counts(profile: Profile) -> dict[str, int]:
    """How many fine-tunes, tuning tokens, responses, generated tokens (at most) and pairs the grid and its arms have.

    A pair is two answers to a general prompt without system prompt, as `benign.pairs` makes them.
    """
    grid, tuning, sizes, tuned = profile.grid, profile.tuning, profile.data or profile.world, tunings(profile)
    # the same in four forms, and with real data as one of several options too
    n_harmful = (5 if profile.data else 4) * sizes.harmful_per_form
    alone = profile.data.over_refusal if profile.data else None
    more = fetching.source(alone).rows or 0 if alone else 0  # at most: a file may have others among them
    n_tests = 2 * n_harmful + 4 * sizes.task_test_rows + sizes.general_test_rows + more
    asked = sum(len(system_prompts(profile, cell)) for cell in (*untuned(profile), *tuned))
    responses = asked * n_tests
    if grid.across_styles:
        plain = [cell for cell in tuned if cell.safety_data == "none"]
        twice = sum(len(system_prompts(profile, cell)) > 1 for cell in plain)
        responses += 2 * twice * (len(grid.styles) - 1) * n_harmful
    n_mitigated = sum(c.safety_data != "none" for c in tuned) * ("none" in grid.safety_data)  # else nothing to compare
    fine_tunes = sum(cell.safety_data != "scaled" for cell in tuned)
    return {
        "fine_tunes": fine_tunes,
        "tuning_tokens": fine_tunes * tuning.steps * tuning.batch_size * PROMPT_TOKENS,
        "responses": responses,
        "generated_tokens": responses * profile.generation.max_new_tokens,
        "pairs": (len(tuned) + n_mitigated) * sizes.general_test_rows,
    }


def weight_bytes(model: ModelSettings) -> float:
    """Bytes of the loaded weights: 16 bits each, or NF4 with a 32-bit scale per 64 weights, embeddings apart."""
    parameters = model.parameters or 0.0
    if model.quantization == "none":
        return 2 * parameters
    embeddings = min(parameters, 2.0 * model.vocabulary * model.hidden_size)
    return 2 * embeddings + (0.5 + 4 / 64) * (parameters - embeddings)


def adapter_weights(profile: Profile, model: ModelSettings) -> int:
    """Weights of one adapter on all seven projections; an upper bound where keys and values are shared by heads."""
    width, inner = model.hidden_size, model.intermediate_size or 3 * model.hidden_size
    return profile.lora.r * model.layers * (4 * 2 * width + 3 * (width + inner))


def _of_model(profile: Profile, name: str) -> list[tuple]:
    model, tuning, rows = profile.models[name], profile.tuning, []
    if model.gated:
        home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        found = "a token" if os.environ.get("HF_TOKEN") or (home / "token").is_file() else "no token"
        found = "the model" if _cached(model) else found
        needed = f"the licence of {model.source} accepted on its page, and HF_TOKEN in the environment"
        enough = {"the model": True, "a token": None, "no token": False}[found]
        rows.append(("access", name, needed, found, enough))
    tokens = (tuning.micro_batch_size or tuning.batch_size) * model.context
    inner = model.intermediate_size or 3 * model.hidden_size
    # checkpointed: every layer's input, and one layer's inside; then the answers' logits in fp32 with their gradient
    activations = 2 * tokens * (model.layers * model.hidden_size + 4 * inner + 10 * model.hidden_size)
    activations += 8 * tokens * model.vocabulary
    needed, found = weight_bytes(model) + 16 * adapter_weights(profile, model) + activations, _gpu_memory()
    there = f"{found / GB:.0f} GB" if found else "no GPU"
    return [*rows, ("GPU memory", name, f"{needed / GB:.0f} GB", there, found >= needed)]


def _disk(profile: Profile, paths: RunPaths) -> tuple:
    found = counts(profile)
    downloads = sum(2 * (m.parameters or 0) for m in map(profile.models.get, large(profile)) if not _cached(m))
    weights = sum(adapter_weights(profile, m) for m in profile.models.values()) / len(profile.models)
    made = sum(path.stat().st_size for path in paths.run.rglob("*") if path.is_file())  # by an interrupted run
    needed = max(0.0, downloads + 4 * found["fine_tunes"] * weights + ROW_BYTES * found["responses"] - made)
    free = shutil.disk_usage(next(p for p in (paths.run, *paths.run.parents) if p.exists())).free
    words = f"{needed / GB:.1f} GB", f"{free / GB:.1f} GB free"
    return "disk", "models, adapters, responses", *words, free >= needed


def _hours(profile: Profile) -> tuple:
    found, speed = counts(profile), profile.execution
    parameters = sum(m.parameters or 0 for m in profile.models.values()) / len(profile.models)
    # frozen weights: 2 operations a weight and token forward, again for checkpointing, 2 backward
    tuning = 6 * parameters * found["tuning_tokens"] / (speed.tflops * 1e12)
    asking = found["generated_tokens"] / speed.tokens_per_second
    hours = f"about {(tuning + asking) / 3600:.0f} (tuning {tuning / 3600:.0f}, answers {asking / 3600:.0f} at most)"
    what = f"{found['fine_tunes']} fine-tunes, {found['responses']:,} responses"
    assumed = f"at {speed.tflops:g} TFLOP/s, {speed.tokens_per_second:g} tokens/s (profile)"
    return "hours", what, hours, assumed, None


def _judge_calls(profile: Profile) -> tuple:
    """At most one call per response, as equal ones are asked once (few are), and two per pair of general answers."""
    if "endpoint" not in profile.judges:
        return "judge calls", "all responses", "0", "", True
    count, cap = counts(profile), profile.endpoint.get("max_calls")
    needed = f"{count['responses'] + 2 * count['pairs']:,}" + (f" (capped at {cap:,} a notebook)" if cap else "")
    there = bool(os.environ.get("STUDY_JUDGE_URL") or os.environ.get("OPENAI_BASE_URL"))
    found = "an address is set" if there else "no address: set STUDY_JUDGE_URL and STUDY_JUDGE_MODEL"
    what = f"all responses and, twice, {count['pairs']:,} pairs of general answers"
    return "judge calls", what, needed, found, there


def _cached(model: ModelSettings) -> bool:
    """Whether the model is here: a folder, or its pinned revision in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(model.source).is_dir():
        return True
    return isinstance(try_to_load_from_cache(model.source, "config.json", revision=model.revision), str)


def _gpu_memory() -> int:
    """Bytes of the first GPU, 0 where there is none."""
    from studylib.models import hub  # only here: it imports torch

    return hub.gpu_memory()
