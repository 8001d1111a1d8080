"""Models that 00_prepare alone uses: the miniature and the tiny architectures, which it builds, and a translator.

The tiny architectures are untrained models of transformers' own classes with the traits of their originals
(data/tiny_models.yaml): with them a study of large models is tried before any large model is loaded.
"""

from functools import cache, lru_cache
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from studylib.models import prompts
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.profile import ModelSettings
from studylib.study.words import ARCHITECTURES, StudyError

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": "<|unknown|>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 4000  # of the tiny architectures, besides the special tokens
READ = 1_000_000  # characters of the texts that this vocabulary is trained on, evenly drawn: a second
# Words, numbers of three digits at most, signs; line breaks stand together, as in the originals, whatever follows them.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _train_bpe(texts: list[str], vocabulary: int, special: list[str], words, unknown: str | None = None) -> Tokenizer:
    """A byte-level BPE trained on the texts; no token spans two of the `words` (pre-tokenizers)."""
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": special, "show_progress": False, "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, **options))
    return tokenizer


def _add_bos(tokenizer: Tokenizer, begin: str) -> None:
    """Lets the tokenizer begin every text with that token by itself."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )


def build_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """The miniature's tokenizer, trained on the texts, with role tokens, a chat template and one BOS.

    Numbers are tokens of their own, without spaces or letters.
    """
    words = [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = _train_bpe(texts, vocabulary, [*SPECIAL.values(), *ROLES], words, SPECIAL["unk_token"])
    _add_bos(tokenizer, SPECIAL["bos_token"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL,
        additional_special_tokens=ROLES,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(settings: ModelSettings, tokenizer, seed: int) -> transformers.LlamaForCausalLM:
    """A randomly initialised Llama of the settings' size; the same weights for the same seed."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.06,  # the usual 0.02 suits widths in the thousands; here it costs three times the steps
    )
    return transformers.LlamaForCausalLM(config)


def build_miniature(texts: list[str], settings: ModelSettings, seed: int, folder: Path) -> None:
    """Writes an untrained model and its tokenizer into the folder."""
    tokenizer = build_tokenizer(texts, settings.vocabulary)
    build_model(settings, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cache
def traits() -> dict:
    """Of data/tiny_models.yaml: `sizes`, and by name the `architectures` with their traits and declared settings."""
    return read_yaml(DATA / "tiny_models.yaml")


def build_tiny(name: str, texts: list[str], folder: str | Path, seed: int) -> Path:
    """The folder, after an untrained model of 0.3 to 0.7 million parameters has been written there with its tokenizer.

    The same weights for the same seed and texts, on which the tokenizer is trained. Raises StudyError for an unknown
    name.
    """
    if name not in ARCHITECTURES:
        raise StudyError(f"There is no architecture {name!r}: known are {', '.join(ARCHITECTURES)}.")
    own, tokenizer = traits()["architectures"][name], _tiny_tokenizer(name, texts)
    ids = {f"{role}_id": tokenizer.convert_tokens_to_ids(token) for role, token in own["named"].items()}
    ids = {role: ids.get(role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kind = getattr(transformers, own["config"])
    config = kind(vocab_size=len(tokenizer), **{**traits()["sizes"], **ids, **own["more"]})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ids["eos_token_id"] = tokenizer.convert_tokens_to_ids(own["ends"])
    model.generation_config = transformers.GenerationConfig(**ids, **own["generation"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _tiny_tokenizer(name: str, texts: list[str]) -> PreTrainedTokenizerFast:
    own = traits()["architectures"][name]
    tokenizer = Tokenizer.from_str(_vocabulary(tuple(texts)))
    tokenizer.add_special_tokens([AddedToken(t.rstrip("~"), rstrip=t.endswith("~")) for t in own["special"]])
    if own["adds_bos"]:
        _add_bos(tokenizer, own["named"]["bos_token"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **own["named"])
    fast.chat_template = prompts.template(f"tiny/{name}")
    return fast


@lru_cache(maxsize=1)
def _vocabulary(texts: tuple[str, ...]) -> str:
    """The trained tokenizer, which all architectures share, as JSON, without special tokens."""
    every = max(1, sum(map(len, texts)) // READ)
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    words = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return _train_bpe([*texts[::every], prompts.ALPACA], VOCABULARY, [], words).to_str()


def load_translator(model: str, revision: str | None) -> tuple:
    """A seq2seq model (a hub id at a revision, or a folder) and its tokenizer.

    Raises StudyError where loading fails.
    """
    pinned = {} if Path(model).is_dir() else {"revision": revision}
    options = {"use_safetensors": True, "dtype": torch.float32, **pinned}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, **pinned)
        loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(model, **options)
    except (ImportError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StudyError(f"The translator {model} cannot be loaded: {first}") from None
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def translate(model, tokenizer, texts: list[str], max_new_tokens: int) -> list[str]:
    """The translations of one batch, greedy; empty where one is cut."""
    encoded = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    ends, made = model.generation_config.eos_token_id, []
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    for ids in out[:, 1:].tolist():  # the first token starts the decoder
        length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        whole = length < max_new_tokens  # some models end by force at the last place
        made.append(tokenizer.decode(ids[:length], skip_special_tokens=True).strip() if whole else "")
    return made
