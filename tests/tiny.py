"""A tiny untrained model of the miniature's kind, with its tokenizer and world, for tests on the CPU."""

from functools import cache

from studylib.data import world
from studylib.models import building, prompts
from studylib.study.profile import load_profile

PROFILE = load_profile("smoke")


@cache
def sets():
    return world.build_sets(PROFILE.world)


@cache
def tokenizer():
    texts = [message["content"] for row in sets()["pretraining"] for message in row["messages"]]
    return building.build_tokenizer([*texts, prompts.ALPACA, PROFILE.system_prompt], PROFILE.miniature.vocabulary)


def model(seed=0):
    return building.build_model(PROFILE.miniature, tokenizer(), seed).eval()
