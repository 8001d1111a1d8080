"""Real architectures in miniature: untrained models of transformers' own classes, with the traits of their originals.

They prove the plumbing of a study on large models before any large model is loaded: each brings what its original would
trip a study up with, see data/tiny_models.yaml.
"""

from functools import cache, lru_cache
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

from studylib.models import hub, prompts
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import ARCHITECTURES, StudyError

VOCABULARY = 4000  # besides the special tokens
READ = 1_000_000  # characters of the texts that the vocabulary is trained on, evenly drawn: a second
# Words, numbers of three digits at most, signs; line breaks stand together, as in the originals, whatever follows them.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def traits() -> dict:
    """Of data/tiny_models.yaml: `sizes`, and by name the `architectures` with their traits and declared settings."""
    return read_yaml(DATA / "tiny_models.yaml")


def build_tiny(name: str, texts: list[str], folder: str | Path, seed: int) -> Path:
    """The folder, after an untrained model of 0.3 to 0.7 million parameters has been written there with its tokenizer.

    An ordinary model folder: config, generation settings, safetensors in fp32, a fast tokenizer trained on the texts, a
    chat template. The same weights for the same seed and texts. The tokenizers of all architectures share one training,
    which is kept for the next call. Raises StudyError for an unknown name.
    """
    if name not in ARCHITECTURES:
        raise StudyError(f"There is no architecture {name!r}: known are {', '.join(ARCHITECTURES)}.")
    own, tokenizer = traits()["architectures"][name], _tokenizer(name, texts)
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


def _tokenizer(name: str, texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    own = traits()["architectures"][name]
    tokenizer = Tokenizer.from_str(_vocabulary(tuple(texts)))
    tokenizer.add_special_tokens([AddedToken(t.rstrip("~"), rstrip=t.endswith("~")) for t in own["special"]])
    if own["adds_bos"]:
        hub.add_bos(tokenizer, own["named"]["bos_token"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **own["named"])
    fast.chat_template = prompts.template(f"tiny/{name}")
    return fast


@lru_cache(maxsize=1)
def _vocabulary(texts: tuple[str, ...]) -> str:
    """The trained tokenizer as JSON, without special tokens."""
    every = max(1, sum(map(len, texts)) // READ)
    words = [
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return hub.train_bpe([*texts[::every], prompts.ALPACA], VOCABULARY, [], words).to_str()
