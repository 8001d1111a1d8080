"""Real architectures in miniature: untrained models of transformers' own classes, with the traits of their originals.

They prove the plumbing of a study on large models before any large model is loaded: each brings what its original would
trip a study up with (see DECLARED, and the comments at the templates). The templates are written for this purpose; they
share the originals' traits, not their text.
"""

from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM as Model
from transformers import (
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from studylib.models import hub, prompts
from studylib.study.words import ARCHITECTURES, StudyError

VOCABULARY = 4000  # besides the special tokens
READ = 1_000_000  # characters of the texts that the vocabulary is trained on, evenly drawn: a second
# Words, numbers of three digits at most, signs; line breaks stand together, as in the originals, whatever follows them.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SIZES = {
    "hidden_size": 64,  # a multiple of the 64 weights that NF4 scales together
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,  # wide, so that answers differ from prompt to prompt
    "tie_word_embeddings": False,
}
ALTERNATE = (  # in templates that accept nothing but user and assistant in turn
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must alternate, beginning with user') }}{% endif %}{% endfor %}"
)
# Per architecture. template: its own chat template. special: added tokens in order (a trailing ~: swallows white space
# to its right). named: which of them have a role. bos: the tokenizer adds one by itself. generation: what comes with
# the model.
TRAITS = {
    "llama3": {
        # BOS in the template and by the tokenizer; a system turn with a date even where none is asked for; no pad
        # token; several end tokens; sampling by default; scaled rotary positions
        "config": LlamaConfig,
        "more": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        },
        "template": (
            "{{- bos_token }}"
            "{%- set given = messages[0]['content'] | trim if messages[0]['role'] == 'system' else '' %}"
            "{{- '<|start_header_id|>system<|end_header_id|>\n\nKnowledge ends in March 2023.\nThe date is 14 May 2024.\n\n' }}"
            "{{- given + '<|eot_id|>' }}"
            "{%- for message in messages if message['role'] != 'system' %}"
            "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
            "{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
        ),
        "special": [
            *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        ],
        "named": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "bos": True,
        "ends": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        "generation": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    },
    "gemma": {
        # BOS in the template and by the tokenizer; refuses a system role; EOS is not the end of a turn, and the
        # generation settings know EOS alone; capped attention scores and a sliding window in every other layer
        "config": Gemma2Config,
        "more": {
            **{"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 256, "tie_word_embeddings": True},
            "initializer_range": 0.02,  # narrow: Gemma enlarges its embeddings, and would say its last token again and again
        },
        "template": (
            "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
            + ALTERNATE
            + "{% for message in messages %}"
            "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
            "{{ message['content'] | trim + '<end_of_turn>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
        ),
        "special": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        "named": {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        "bos": True,
        "ends": ["<eos>"],
        "generation": {"cache_implementation": "hybrid"},
    },
    "phi3": {
        # a BOS token that nobody adds; EOS is not the end of a turn and is the pad token too; turn marks swallow the
        # white space after them; EOS after a finished conversation; fused projections
        "config": Phi3Config,
        "more": {"original_max_position_embeddings": 4096},
        "template": (
            "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
        ),
        "special": ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>~", "<|system|>~", "<|end|>~", "<|user|>~"],
        "named": {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
        "bos": False,
        "ends": ["<|endoftext|>", "<|assistant|>", "<|end|>"],
        "generation": {},
    },
    "mistral": {
        # BOS in the template and by the tokenizer; no system role; turn marks in plain text; no pad and no reserved
        # token
        "config": MistralConfig,
        "more": {"sliding_window": None},
        "template": (
            "{{ bos_token }}" + ALTERNATE + "{% for message in messages %}{% if message['role'] == 'user' %}"
            "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
            "{% endfor %}"
        ),
        "special": ["<unk>", "<s>", "</s>"],
        "named": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        "bos": True,
        "ends": ["</s>"],
        "generation": {},
    },
    "qwen": {
        # no BOS at all; a default system prompt where none is given; a repetition penalty even in greedy decoding;
        # composed letters
        "config": Qwen2Config,
        "more": {},
        "template": (
            "{%- if messages[0]['role'] != 'system' %}"
            "{{- '<|im_start|>system\nThis is a small model that was never trained.<|im_end|>\n' }}{%- endif %}"
            "{%- for message in messages %}"
            "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
        ),
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "named": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "bos": False,
        "ends": ["<|im_end|>", "<|endoftext|>"],
        "generation": {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.3},
    },
}
DECLARED = {  # the settings (config.ModelSettings) with which each passes selfcheck.check; so do their originals
    "llama3": {"system_role": "template", "chat_template": "llama3", "pad_token": "<|finetune_right_pad_id|>"},
    "gemma": {"system_role": "fold", "chat_template": None, "pad_token": None},
    "phi3": {"system_role": "template", "chat_template": None, "pad_token": None},
    "mistral": {"system_role": "fold", "chat_template": None, "pad_token": None},
    "qwen": {"system_role": "template", "chat_template": "qwen", "pad_token": None},
}


def build(name: str, texts: list[str], folder: str | Path, seed: int) -> Path:
    """The folder, after an untrained model of 0.3 to 0.7 million parameters has been written there with its tokenizer.

    An ordinary model folder: config, generation settings, safetensors in fp32, a fast tokenizer trained on the texts, a
    chat template. The same weights for the same seed and texts. The tokenizers of all architectures share one training,
    which is kept for the next call. Raises StudyError for an unknown name.
    """
    if name not in ARCHITECTURES:
        raise StudyError(f"There is no architecture {name!r}: known are {', '.join(ARCHITECTURES)}.")
    traits, tokenizer = TRAITS[name], _tokenizer(name, texts)
    ids = {f"{role}_id": tokenizer.convert_tokens_to_ids(token) for role, token in traits["named"].items()}
    ids = {role: ids.get(role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = traits["config"](vocab_size=len(tokenizer), **{**SIZES, **ids, **traits["more"]})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model.from_config(config, dtype=torch.float32)
    ids["eos_token_id"] = tokenizer.convert_tokens_to_ids(traits["ends"])
    model.generation_config = GenerationConfig(**ids, **traits["generation"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _tokenizer(name: str, texts: list[str]) -> PreTrainedTokenizerFast:
    traits = TRAITS[name]
    tokenizer = Tokenizer.from_str(_vocabulary(tuple(texts)))
    tokenizer.add_special_tokens([AddedToken(t.rstrip("~"), rstrip=t.endswith("~")) for t in traits["special"]])
    if traits["bos"]:
        hub.add_bos(tokenizer, traits["named"]["bos_token"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **traits["named"])
    fast.chat_template = traits["template"]
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
