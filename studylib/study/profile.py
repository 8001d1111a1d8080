"""Every setting of a run: the fields of a profile, what each may be, which have to agree, and reading them."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from studylib.study import words
from studylib.study.files import read_yaml
from studylib.study.paths import ROOT, places, users_own
from studylib.study.words import MINIATURE, STAND_IN, TASKS, TINY, StudyError

PROFILES = ROOT / "studylib" / "profiles"

Task = Literal[TASKS]
Style = Literal[words.STYLES]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Positive = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(gt=0, lt=1)]


def _each_once(values: list) -> list:
    if len(set(values)) != len(values):
        raise ValueError("needs every value once")
    return values


def _for_each(names: tuple[str, ...], total: float | None = None) -> AfterValidator:
    def check(values: dict) -> dict:
        if set(values) != set(names) or (total and abs(sum(values.values()) - total) > 1e-6):
            sums = f" that add up to {total}" if total else ""
            raise ValueError(f"needs a value for each of {', '.join(names)}{sums}")
        return {name: values[name] for name in names}

    return AfterValidator(check)


T = TypeVar("T")
Distinct = Annotated[list[T], AfterValidator(_each_once)]
Some = Annotated[list[T], Field(min_length=1), AfterValidator(_each_once)]
PRETRAINING = ("tasks", "talk", "benign", "harmful")
INTENTS = ("alignment", "safety", "test")
REQUESTS = ("benign", "harmful")


class Settings(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WorldSettings(Settings):
    """Sizes of the generated data sets of the miniature."""

    seed: int = 0
    pretraining_rows: Count
    alignment_rows: Count
    pretraining_share: Annotated[dict[Literal[PRETRAINING], Share], _for_each(PRETRAINING, total=1)]
    alignment_harmful_share: Share  # of the alignment rows, the rest is benign
    alignment_task_share: Share  # of the benign alignment rows; the rest are requests
    alignment_alpaca_share: Share  # of the alignment rows; the rest are in the chat style
    # of the alignment rows: those with the system prompt
    alignment_system_share: Annotated[dict[Literal[REQUESTS], Share], _for_each(REQUESTS)]
    # of the harmful alignment rows, by form; real data are skewed to text
    refusal_share: Annotated[dict[Task, Share], _for_each(TASKS, total=1)]
    task_rows: Count  # training rows of each task
    request_rows: Count  # benign requests in the form of each task, which a tuning may mix in
    safety_rows: Count  # rows of each safety set
    harmful_per_form: Count
    task_test_rows: Count  # held-out rows of each task
    general_test_rows: Count
    new_object_share: Share  # of the objects of each class, in no training set but the pre-training
    # of the sensitive pairs of known objects
    intent_share: Annotated[dict[Literal[INTENTS], Share], _for_each(INTENTS, total=1)]


class DataSettings(Settings):
    """Real data instead of the generated world: names in data/sources.yaml, and how much of each."""

    seed: int = 0
    tasks: Annotated[dict[Task, str], _for_each(TASKS)]  # of each task's training rows, and of its test rows
    task_tests: dict[Task, str] = {}  # another source for the test rows of a task
    general: str  # of general instructions: a test of helpfulness, and benign prompts for the guard
    task_rows: Count  # training rows of each task, at most
    task_test_rows: Count  # held-out rows of each task
    general_test_rows: Count
    harmful: str = STAND_IN  # a list of harmful instructions
    harmful_per_form: Count = 50
    twins: Literal["paired", "nearest"] = "paired"  # supplied with the list, or the most similar benign instruction
    over_refusal: str | None = None  # benign prompts that only sound harmful, in the text form: a measure of their own
    french: str | None = None  # CSV with the columns instruction, french, for lists without French
    translator: str | None = None  # or the model that makes the French, a seq2seq hub id or folder
    translator_revision: str | None = None
    translator_prefix: str = ""  # what the translator wants before each text
    safety_generic: str = STAND_IN  # refusals in the text form; a source, or a folder that data.safety_builder wrote
    safety_multitask: str = STAND_IN  # in all forms; such a folder's benign twins are the set safety_twins
    safety_rows: Count  # of each safety set, at most
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.8  # cosine from which two texts count as one
    too_long_share: Share = 0.02  # of a training set's rows that may be dropped for their length


class ModelSettings(Settings):
    """An aligned model: `miniature` or `tiny/<architecture>`, built by 00_prepare, or a model folder or hub id."""

    source: str = "miniature"
    revision: str | None = None  # commit of a hub model, required there
    quantization: Literal["none", "nf4"] = "none"
    system_role: Literal["template", "fold"] = "template"  # fold: into the user's turn, for models without the role
    chat_template: str | None = None  # a file of data/templates, or a path, instead of the model's own template
    pad_token: str | None = None  # instead of the tokenizer's own
    gated: bool = False  # behind a licence that has to be accepted
    parameters: Positive | None = None  # for the estimate of what a large model needs
    vocabulary: Count = 1500
    hidden_size: Count = 128
    intermediate_size: Count | None = None
    layers: Count = 4
    heads: Count = 4
    context: Count = 192  # longest prompt and answer together, in tokens


class TrainSettings(Settings):
    """One supervised training: pre-training, alignment or a LoRA tuning."""

    learning_rate: Positive
    steps: Count
    batch_size: Count  # rows per step
    micro_batch_size: Count | None = None  # rows computed at once, a divisor of batch_size; None: all
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.001
    max_grad_norm: Positive = 0.3
    adam_beta2: Part = 0.999
    matrix_learning_rate: Positive | None = None  # of the layers' matrices, by Muon; the miniature's training alone
    gradient_checkpointing: bool = False  # memory for time, in transformers' Trainer
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"] = "adamw_torch"

    @model_validator(mode="after")
    def _micro_batches_fit(self):
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class LoraSettings(Settings):
    """The adapter; the paper has r 64, alpha 16, dropout 0.1 on all seven linear projections."""

    r: Count
    alpha: Count
    dropout: Share
    target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class GenerationSettings(Settings):
    """Greedy decoding; `max_new_tokens` is a cap, a response that reaches it has stop_reason `length`."""

    max_new_tokens: Count
    batch_size: Count


class ArmSettings(Settings):
    """Rival mitigations, other than generic and multitask data at the grid's fraction; without the system prompt."""

    tasks: Distinct[Task]
    styles: Distinct[Style]
    seeds: Distinct[int]
    safety_data: Distinct[Literal[words.ARMS]] = []  # at the grid's safety_fraction
    safety_fractions: Distinct[Part] = []  # other doses of the multitask data
    removed: Distinct[Part] = []  # of arm `scaled`: shares of the adapter taken away

    @model_validator(mode="after")
    def _scaled_has_its_shares(self):
        if ("scaled" in self.safety_data) != bool(self.removed):
            raise ValueError("grid.arms: `scaled` in safety_data and the shares in `removed` go together")
        return self


class GridSettings(Settings):
    """The cells of the study, see `studylib.study.grid`: what is tuned, once per base and seed, and tested."""

    tasks: Some[Task]
    styles: Some[Style]
    safety_data: Some[Literal[words.SAFETY_DATA]]
    safety_fraction: Part  # of the tuning rows, in the generic and multitask arms
    safety_styles: Some[Style] | None = None  # of `styles`, in which safety data are tried; None: in all
    seeds: Some[int]
    # benign requests among the tuning rows; safety data are tried on top of "own", of "none" where that is not named
    requests: Some[Literal[words.REQUESTS]] = ["none"]
    request_share: Part = 0.05  # of the tuning rows
    # bases on which all that is not in the plan's confirmatory part is tried too; None: on all
    explore_bases: Distinct[int] | None = None
    arms: ArmSettings | None = None  # rival mitigations, made by 04_mitigation
    across_styles: bool = False  # ask models tuned without safety data in the style of no tuning too (PTST, 2402.18540)


class ExecutionSettings(Settings):
    """How the grid is cut into notebook runs: the named dimensions share one kernel."""

    grouped: list[Literal["model", "style", "seed"]] = ["model", "style", "seed"]
    threads: Count = 1  # of one tuning notebook; as many notebooks run side by side as cores / threads
    min_free_gb: Annotated[float, Field(ge=0)] = 1.0
    tflops: Positive = 100  # sustained in tuning, for the estimate of hours
    tokens_per_second: Positive = 1000  # generated, all of a batch together


class Profile(Settings):
    """One way to run the study, a file in `studylib/profiles/` or any YAML file of that form."""

    name: Name
    description: str
    redact: bool = True  # notebooks show hashes of harmful prompts, and of responses the first words and a hash
    system_prompt: str
    # draws of the aligned model: initialisation, order of the batches, alignment rows; others have one base
    base_seeds: Some[Annotated[int, Field(ge=0)]] = [0]
    # of the pre-training; base number i takes them in turn, and what is left over is not made
    pretraining_seeds: Some[Annotated[int, Field(ge=0)]] = [0]
    world: WorldSettings | None = None
    data: DataSettings | None = None
    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)]
    pretraining: TrainSettings | None = None
    alignment: TrainSettings | None = None
    lora: LoraSettings
    tuning: TrainSettings
    generation: GenerationSettings
    grid: GridSettings
    judges: Some[Name] = list(words.JUDGES)  # the first decides
    labelled: Distinct[Name] = ["own"]  # human-labelled sets that judges are compared with, of stages.judging
    endpoint: dict[str, str | int | float] = {}  # of the LLM judge: fields of its settings, without address and key
    # tried in 03_defences, each on prompts, on responses and on both
    guards: Some[Literal[words.GUARDS]] = list(words.EMBEDDED_GUARDS)
    execution: ExecutionSettings

    @field_validator("pretraining_seeds")
    @classmethod
    def _no_more_than_bases(cls, seeds, info):
        return seeds[: len(info.data.get("base_seeds", seeds))]

    @property
    def miniature(self) -> ModelSettings | None:
        """The model that 00_prepare trains, None where the profile studies others."""
        return next((model for model in self.models.values() if model.source == MINIATURE), None)

    @model_validator(mode="after")
    def _parts_agree(self):
        if (self.world is None) == (self.data is None):
            raise ValueError("needs either `world` (generated data) or `data` (real data)")
        if self.miniature and (len(self.models) > 1 or not (self.world and self.pretraining and self.alignment)):
            raise ValueError(
                "a model with source miniature is trained on the generated world: it needs `world`, `pretraining` and "
                "`alignment`, and no other model"
            )
        if not self.miniature and (len(self.base_seeds) > 1 or len(self.pretraining_seeds) > 1):
            raise ValueError("base_seeds: several draws of the aligned model need a model with source miniature")
        grid, arms = self.grid, self.grid.arms
        within = [("explore_bases", grid.explore_bases, "base_seeds", self.base_seeds)]
        within += [("safety_styles", grid.safety_styles, "grid.styles", grid.styles)]
        if arms:
            same = ("tasks", "styles", "seeds")
            within += [(f"arms.{name}", getattr(arms, name), f"grid.{name}", getattr(grid, name)) for name in same]
        for key, named, whole, known in within:
            if unknown := sorted(set(named or []) - set(known)):
                raise ValueError(f"grid.{key} names {unknown[0]}, {whole} has {known}: change one of them")
        if self.data and set(grid.requests) != {"none"}:
            raise ValueError("grid.requests: benign requests are made of the generated world; real data have none")
        return self

    @model_validator(mode="after")
    def _models_fit(self):
        tiny = {m.source.removeprefix(TINY) for m in self.models.values() if m.source.startswith(TINY)}
        if unknown := sorted(tiny - set(words.ARCHITECTURES)):
            raise ValueError(f"there is no {TINY}{unknown[0]}: known are {', '.join(words.ARCHITECTURES)}")
        if tiny and not self.data:
            raise ValueError("tiny models are built from real data: they need `data`")
        longest = self.generation.max_new_tokens
        for name, model in self.models.items():
            its, size, heads, context = f"models.{name}", model.hidden_size, model.heads, model.context
            if size % (2 * heads):
                raise ValueError(f"{its}.hidden_size {size} is not an even multiple of {its}.heads {heads}")
            if longest >= context:
                raise ValueError(
                    f"generation.max_new_tokens {longest} leaves no room for a prompt in {its}.context {context}"
                )
        if self.tuning.matrix_learning_rate:
            raise ValueError("tuning.matrix_learning_rate has no effect: an adapter is trained by AdamW alone")
        return self


def profile_names() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def profile_path(name: str) -> Path:
    """The file of a profile: of that name, or the YAML file at that path, as seen from here or from the repository."""
    own = name.endswith((".yaml", ".yml"))
    path = users_own(name, Path.is_file) if own else PROFILES / f"{name}.yaml"
    if path and path.is_file():
        return path
    looked = f", looked for as {' and '.join(map(str, places(name)))}" if own else ""
    raise StudyError(
        f"There is no profile {name!r}{looked}: take one of {', '.join(profile_names())}, or a path to a .yaml file."
    )


def load_profile(name: str, overrides: dict | None = None) -> Profile:
    """The profile of that name, or of the YAML file at that path, with dotted keys such as `lora.r` replaced.

    A file that says `extends: miniature` holds only what differs from that profile, which may extend another.
    """
    path = profile_path(name)
    content = _content(path)
    for key, value in (overrides or {}).items():
        *sections, last = key.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"Profile {path.name}: {explain(error, Profile)}.") from None
    if profile.name in profile_names() and path != PROFILES / f"{profile.name}.yaml":
        raise StudyError(
            f"{path} has the name of the profile {profile.name!r} and would overwrite its run: give it a `name` of its "
            "own."
        )
    return profile


def _content(path: Path, *above: Path) -> dict:
    """The settings in the file, over those of the profile that it extends; `above` are the files that extend it."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise StudyError(f"{path.name} holds no settings; start from a copy of {profile_names()[0]}.yaml.")
    if (name := content.pop("extends", None)) is None:
        return content
    if not isinstance(name, str) or (below := profile_path(name)) in (path, *above):
        raise StudyError(f"{path.name}: `extends` names one other profile, and not in a circle, found {name!r}.")
    return _over(_content(below, path, *above), content)


def _over(below: dict, above: dict) -> dict:
    """The mapping `below` with what `above` sets instead, section by section."""
    both = [key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)]
    nested = {key: _over(below[key], above[key]) for key in both}
    return below | above | nested


def explain(error: ValidationError, settings: type[Settings]) -> str:
    """What is wrong in values that were to be `settings`: each key, what it may be and what was found."""
    said = []
    for one in error.errors():
        key, wrong = ".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")
        section = settings
        for part in one["loc"][:-1]:
            section = _section(getattr(section.model_fields.get(part), "annotation", None)) or section
        if one["type"] == "extra_forbidden":
            wrong = f"unknown key {key!r}, known here are {', '.join(section.model_fields)}"
        elif one["type"] == "missing":
            wrong = f"the key {key!r} is missing"
        elif key:
            wrong = f"{key!r}: {wrong}, found {shorten(repr(one['input']), 160)}"
        said.append(wrong)
    return "; ".join(said)


def _section(annotation) -> type[Settings] | None:
    """The settings class that a field holds, by itself, optionally or by name; None where it holds plain values."""
    if not get_args(annotation):
        return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None
    return next(filter(None, map(_section, get_args(annotation))), None)
