import random

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from studylib.data import duplicates
from studylib.study.words import StudyError
from studylib.text.normal import comparison_form

TEMPLATE = "Read the following request with care and answer it in one short friendly sentence: "  # 83 characters


def words(n: int, seed: int) -> list[str]:
    """n different made-up words."""
    rng, made = random.Random(seed), {}
    while len(made) < n:
        made["".join(rng.choice("bdfglmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))] = None
    return list(made)


def sentences(n: int, seed: int, length: tuple[int, int] = (10, 18)) -> list[str]:
    """n sentences of made-up words, so different that none is like another."""
    rng, vocabulary = random.Random(seed), words(2000, 0)
    return [" ".join(rng.choices(vocabulary, k=rng.randint(*length))) for _ in range(n)]


def rows(texts, **more) -> list[dict]:
    return [{"id": f"{i}", "messages": [{"role": "user", "content": text}], **more} for i, text in enumerate(texts)]


def pairs(texts, others=None, threshold=0.8) -> pd.DataFrame:
    """The duplicate pairs that `_compare` finds within the texts, or between two lists; equal ones by the first."""
    found = duplicates._compare({"a": rows(texts), "b": rows(others or [])}, threshold, duplicates.content)
    a, b = found.first["a"], found.first["a" if others is None else "b"]
    if others is None:
        made = [(a[code], i, 1.0, "exact") for i, code in enumerate(found.codes["a"]) if a[code] != i]
    else:
        made = [(a[code], b[code], 1.0, "exact") for code in range(found.n) if min(a[code], b[code]) >= 0]
    for i, j, cosine in zip(found.i, found.j, found.cosine, strict=True):
        both = [(i, j)] if others is None else [(i, j), (j, i)]
        made += [(a[one], b[other], cosine, "near") for one, other in both if min(a[one], b[other]) >= 0]
    return pd.DataFrame(sorted(made), columns=["a", "b", "cosine", "kind"])


def brute_force(texts_a, texts_b, threshold) -> pd.DataFrame:
    """What `pairs` promises, by comparing each text with every other."""
    plain = [comparison_form(text) for text in [*texts_a, *(texts_b or [])]]
    try:
        weigh = TfidfVectorizer(analyzer="char", ngram_range=(5, 5), lowercase=False, sublinear_tf=True)
        cosine = cosine_similarity(weigh.fit_transform(plain))
    except ValueError:  # no text is as long as an n-gram
        cosine = np.zeros((len(plain), len(plain)))
    start = 0 if texts_b is None else len(texts_a)
    a, b = plain[: len(texts_a)], plain[start:]
    found = []
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            stand = a.index(one) == i, b.index(other) == j
            if one == other and stand[0] and (i < j if texts_b is None else stand[1]):
                found.append((i, j, 1.0, "exact"))
            elif (
                one != other
                and all(stand)
                and cosine[i, start + j] >= threshold - 1e-9
                and (texts_b is not None or i < j)
            ):
                found.append((i, j, cosine[i, start + j], "near"))
    return pd.DataFrame(found, columns=["a", "b", "cosine", "kind"])


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    assert (
        found[["a", "b", "kind"]].astype(str).to_numpy().tolist()
        == wanted[["a", "b", "kind"]].astype(str).to_numpy().tolist()
    )
    assert np.allclose(found["cosine"], wanted["cosine"].astype(float), rtol=0, atol=1e-9)


def odd_texts(n: int, seed: int) -> list[str]:
    """Texts of all sorts: short, empty, punctuation, emoji, several scripts, repetitive, equal but for case, alike."""
    rng = random.Random(seed)
    alphabets = [
        "ab",
        "abc d",
        "aeiou bcdfg",
        "\U0001f600\U0001f916 x",
        "\u00e9\u00e8 \u00fc-7",
        "\u4f60\u597d\u4e16\u754c ",
        "?! .,",
    ]
    made = ["", "...", "!?", "a", "abcd", "abcde", "aaaaaaaaaaaa"]
    while len(made) < n:
        if rng.random() < 0.5:
            text = "".join(rng.choices(rng.choice(alphabets), k=rng.randint(0, 40)))
        else:  # an edit of an earlier one
            text = list(rng.choice(made)) * rng.choice([1, 1, 1, 2])
            for _ in range(rng.randint(0, 2)):
                text.insert(rng.randint(0, len(text)), rng.choice("abcX !"))
            text = "".join(text)
        made.append(text.upper() if rng.random() < 0.1 else text)
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("threshold", [0.15, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_comparing_each_with_every_other(seed, threshold):
    texts = odd_texts(80, seed)
    wanted = brute_force(texts, None, threshold)
    assert set(wanted["kind"]) == ({"exact", "near"} if threshold < 1 else set(wanted["kind"]))
    assert_same(pairs(texts, threshold=threshold), wanted)
    others = odd_texts(50, seed + 100)
    between = brute_force(texts, others, threshold)
    assert_same(pairs(texts, others, threshold), between)
    if threshold == duplicates.THRESHOLD:
        alike = {comparison_form(texts[place]) for place in between["a"]}  # of equal texts the first stands there
        assert duplicates.like(texts, others).tolist() == [comparison_form(text) in alike for text in texts]


@pytest.mark.parametrize("seed", range(3))
def test_prose_and_templates_give_the_same_pairs_as_brute_force(seed):
    rng = random.Random(seed)
    prose = sentences(120, seed)
    edited = [one if rng.random() < 0.5 else one[:30] + "x" + one[31:] for one in rng.sample(prose, 40)]
    texts = prose + [TEMPLATE + one for one in edited] + [one[:-20] for one in edited] + edited
    wanted = brute_force(texts, None, 0.8)
    assert min(wanted["kind"].value_counts()) > 5
    assert_same(pairs(texts), wanted)


def test_texts_too_short_for_an_n_gram_have_exact_duplicates_only():
    found = pairs(["abc", "ABC!", "abcd", "", "?", "a longer text"])
    assert found.to_numpy().tolist() == [[0, 1, 1.0, "exact"], [3, 4, 1.0, "exact"]]
    assert len(pairs([])) == len(pairs([], ["abc"])) == len(pairs(["ab"], [])) == 0


def test_ten_thousand_equal_rows_make_as_many_pairs_and_no_fifty_million():
    texts = sentences(50, 0)
    found = pairs([*texts, *[texts[7].upper()] * 10_000])
    assert len(found) == 10_000 and set(found["a"]) == {7} and set(found["kind"]) == {"exact"}
    assert pairs([texts[7]] * 10_000, [texts[7] + "!"] * 10_000).to_numpy().tolist() == [[0, 0, 1.0, "exact"]]


def test_a_thousand_rows_under_one_template_are_distinguished_and_no_time_is_lost():
    texts = [TEMPLATE + text[:40] for text in sentences(1000, 3)]
    assert len(pairs(texts)) == 0
    texts[500] = texts[3][:-1] + "x"
    assert pairs(texts)[["a", "b"]].to_numpy().tolist() == [[3, 500]]


@pytest.mark.parametrize("block", [1, 3000, 10_000_000])
def test_the_size_of_the_blocks_does_not_change_what_is_found(monkeypatch, block):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    texts = [TEMPLATE + text[: 9 + i % 40] for i, text in enumerate(sentences(25, 1) * 3)]
    wanted = brute_force(texts, None, 0.7)
    assert len(wanted) > 20
    assert_same(pairs(texts, threshold=0.7), wanted)
    others = [text[::-1][:60] + text for text in texts[:40]]
    assert_same(pairs(texts, others, 0.6), brute_force(texts, others, 0.6))


def test_n_grams_are_counted_as_scikit_learn_does_even_of_too_many_characters_for_one_number():
    rng = random.Random(0)
    alphabet = [chr(code) for code in range(0x4E00, 0x9000)] + [
        "a",
        "\U0001f600",
    ]  # 2 ** 14 characters: 70 bits in five
    texts = [
        "".join(rng.choices(rng.choice([alphabet, ["a", "b", "\U0001f600"]]), k=rng.randint(0, 300)))
        for _ in range(200)
    ]
    assert len(set("".join(texts))) ** 5 > 2**63
    ours = duplicates._count(texts)
    theirs = CountVectorizer(analyzer="char", ngram_range=(5, 5), lowercase=False).fit_transform(texts).astype(float)
    assert ours.shape == theirs.shape and ours.nnz == theirs.nnz
    assert (sorted(ours.sum(axis=0)) == np.sort(np.asarray(theirs.sum(axis=0)).ravel())).all()
    assert abs(ours @ ours.T - theirs @ theirs.T).max() == 0


def test_n_grams_that_would_have_the_same_number_in_64_bits_are_distinguished():
    letters = [chr(0x4E00 + i) for i in range(2**14)]  # the first of five letters would count 2 ** 56
    ending = "".join(letters[5:9])
    counted = duplicates._count(["".join(letters), letters[0] + ending, letters[256] + ending]).toarray()
    assert (counted[1] != counted[2]).sum() == 2


def test_more_pairs_than_memory_holds_are_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 100)
    with pytest.raises(StudyError, match=r"More than 100 near duplicates among 40 texts: compare what differs"):
        pairs([f"{TEMPLATE * 3} {i}" for i in range(40)], threshold=0.3)


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    with pytest.raises(StudyError, match="cosine above 0 and up to 1, not"):
        pairs(["one text"], threshold=threshold)


SENTENCE = (
    "please write a polite letter to the town council that asks for %s more benches beside the northern river path"
)


@pytest.mark.parametrize(
    "edit, near",
    [
        (lambda text: text.replace("7", "8"), True),  # another number
        (lambda text: text.replace("asks", "does not ask"), True),  # the opposite
        (lambda text: text.replace("benches", "lanterns"), True),  # one other noun of nineteen words
        (lambda text: "Kindly: " + text.upper() + "!!", True),
        (lambda text: " ".join(reversed(text.split())), False),  # the same words in another order
        (
            lambda text: "could you draft a courteous note to our council requesting additional seating by the river?",
            False,
        ),
        (lambda text: text.split(" that ")[0], False),  # a part of it
    ],
)
def test_a_long_text_with_one_word_changed_is_near_and_a_paraphrase_is_not(edit, near):
    text = SENTENCE % 7
    found = pairs([text, *sentences(300, 0)], [edit(text)])
    assert found["kind"].tolist() == ["near"] * near


def test_what_a_template_fills_in_decides_when_many_rows_share_the_template():
    fillings = words(600, 5)[300:]
    texts = [f"Translate this word into French and use it in a sentence: {word * 2}" for word in fillings]
    assert len(pairs(texts)) < 5
    assert len(pairs(texts[:2], threshold=0.6)) == 1  # of two rows alone the template is most of the text
    contents = [
        {"id": word, "content": word * 2, "messages": [{"content": text}]}
        for word, text in zip(fillings, texts, strict=True)
    ]
    alone = duplicates.duplicates_report({"train": contents[:1], "test": contents[1:2]}, threshold=0.6)
    assert not alone[["exact", "near"]].to_numpy().any()


# Reports and clean sets


def planted() -> dict[str, list[dict]]:
    """MultiTaskBench's published overlaps as sets: by block 0/6/66/6; 97, 67 and 156 rows of other sets."""
    templates = {
        "classification": "choose the best option: %s (a) one (b) two",
        "code": "write a program for this: %s",
        "text_generation": "write a text about this: %s",
        "translation": "translate into English: %s",
    }
    new = iter(sentences(6000, 42))
    bench = []
    for (form, template), repeated in zip(templates.items(), (0, 6, 66, 6), strict=True):
        block = [template % next(new) for _ in range(500 - repeated)]
        for k in range(repeated):  # other rows than those in other sets
            block.insert(300 + k, block[200 + k] if k % 2 else block[200 + k].upper() + " ")
        bench += rows(block, form=form)
    texts = [row["messages"][0]["content"] for row in bench]
    behaviours = texts[:97] + [next(new) for _ in range(423)]
    others = texts[500:567] + [next(new) for _ in range(133)]
    tuning = texts[1500:1656] + [next(new) for _ in range(2327)]
    benign = [next(new) for _ in range(50)]
    benign[10] = texts[1900].replace("translate", "please translate")  # one near duplicate
    return {
        "safety_multitask": bench,
        "safety_generic": rows(tuning, form="text_generation"),
        "behaviours": rows(behaviours),
        "others": rows(others),
        "general": rows(benign),
    }


@pytest.fixture(scope="module")
def sets():
    return planted()


def counted(frame: pd.DataFrame, name: str, other: str) -> list[int]:
    return frame.set_index(["set", "other"]).loc[(name, other), ["rows", "exact", "near", "clean"]].tolist()


def test_the_report_finds_exactly_the_planted_duplicates(sets):
    found = duplicates.duplicates_report(sets)
    assert counted(found, "safety_multitask", "safety_multitask") == [2000, 78, 0, 1922]
    assert counted(found, "safety_multitask", "behaviours") == [2000, 97, 0, 1903]
    assert counted(found, "behaviours", "safety_multitask") == [520, 97, 0, 423]
    assert counted(found, "safety_multitask", "others") == [2000, 67, 0, 1933]
    assert counted(found, "safety_multitask", "safety_generic") == [2000, 156, 0, 1844]
    assert counted(found, "safety_multitask", "general") == [2000, 0, 1, 1999]
    assert counted(found, "general", "safety_multitask") == [50, 0, 1, 49]
    rest = found.set_index(["set", "other"])[["exact", "near"]].sum(axis=1)
    assert (rest > 0).sum() == 9 and len(rest) == 25
    blocks = {
        form: [row for row in sets["safety_multitask"] if row["form"] == form]
        for form in ("classification", "code", "text_generation", "translation")
    }
    by_block = duplicates.duplicates_report(blocks)
    assert [counted(by_block, form, form)[1] for form in blocks] == [0, 6, 66, 6]
    assert not by_block.loc[by_block["set"] != by_block["other"], ["exact", "near"]].to_numpy().any()


def test_training_sets_lose_what_a_test_has_and_every_set_its_repetitions(sets):
    kept, dropped = duplicates.clean(sets, tests=["behaviours", "others", "general"])
    assert {name: len(some) for name, some in kept.items()} == {
        "safety_multitask": 2000 - 97 - 67 - 1 - 78,
        "safety_generic": 2483,  # in safety_multitask 156: two training sets
        "behaviours": 520,
        "others": 200,
        "general": 50,
    }
    for name, some in kept.items():  # in their order, and nothing in both
        gone = set(dropped.loc[dropped["set"] == name, "row"])
        assert some == [row for i, row in enumerate(sets[name]) if i not in gone]
    assert dropped.groupby("other")["kind"].agg(list).map(sorted).map(
        lambda kinds: (len(kinds), kinds[-1])
    ).to_dict() == {
        "behaviours": (97, "exact"),
        "others": (67, "exact"),
        "general": (1, "near"),
        "safety_multitask": (78, "exact"),
    }
    again = duplicates.duplicates_report(kept)
    assert again.set_index(["set", "other"])[["exact", "near"]].sum(axis=1).loc[lambda n: n > 0].index.tolist() == [
        ("safety_multitask", "safety_generic"),
        ("safety_generic", "safety_multitask"),
    ]
    assert duplicates.clean(kept, tests=["behaviours", "others", "general"])[1].empty


def test_what_was_dropped_is_named_with_its_reason():
    a, b, c, d = sentences(4, 0)
    train = rows([a, b, b + "!", c, c[:-2] + "zz", d + " so"])
    test = [{**row, "id": f"test/{i}"} for i, row in enumerate(rows([d, a.upper()]))]
    _, dropped = duplicates.clean({"train": train, "test": test}, tests=["test"])
    assert dropped.drop(columns="cosine").to_numpy().tolist() == [
        ["train", 0, "0", "exact", "test", 1, "test/1"],
        ["train", 2, "2", "exact", "train", 1, "1"],
        ["train", 4, "4", "near", "train", 3, "3"],
        ["train", 5, "5", "near", "test", 0, "test/0"],
    ]
    assert dropped["cosine"].between(0.8, 1).all() and (dropped.loc[dropped["kind"] == "exact", "cosine"] == 1).all()


def test_of_several_reasons_the_exact_then_the_nearest_test_is_named_and_a_row_goes_once():
    text, other = sentences(2, 3)
    like, liker = text[:20] + "x" + text[20:] + " so it is", text + " so"
    sets = {
        "train": rows([text, other, other + " one", other + " two", text + "?"]),
        "far": rows([like]),
        "near": rows([liker]),
        "same": rows([other]),
        "too": rows(["nothing", other]),
    }
    tests = ["far", "near", "same", "too"]
    dropped = duplicates.clean(sets, tests)[1]
    assert dropped[["row", "kind", "other"]].to_numpy().tolist() == [
        [0, "near", "near"],
        [1, "exact", "same"],
        [2, "near", "same"],
        [3, "near", "same"],
        [4, "near", "near"],
    ]
    within = duplicates.clean(sets, [])[1]
    assert within[["row", "kind", "other_row"]].to_numpy().tolist() == [[2, "near", 1], [3, "near", 1], [4, "exact", 0]]
    assert counted(duplicates.duplicates_report(sets), "same", "train") == [1, 1, 0, 0]  # and two near ones


def chain() -> list[str]:
    """Three texts of which the second is like both others, and they are not alike."""
    first = sentences(1, 9, (30, 30))[0].split()
    other = words(300, 8)[200:]
    return [" ".join(first), " ".join(first[:26] + other[:4]), " ".join(first[:22] + other[4:8] + other[:4])]


def test_only_an_earlier_row_that_stays_makes_a_row_superfluous():
    texts = [*chain(), *sentences(20, 1)]
    assert pairs(texts)[["a", "b"]].to_numpy().tolist() == [[0, 1], [1, 2]]
    kept, dropped = duplicates.clean({"train": rows(texts)}, tests=[])
    assert dropped["row"].tolist() == [1] and len(kept["train"]) == 22
    assert counted(duplicates.duplicates_report({"train": rows(texts)}), "train", "train") == [23, 0, 1, 22]
    _, dropped = duplicates.clean({"train": rows([texts[1], texts[0], *texts[2:]])}, tests=[])
    assert dropped[["row", "other_row"]].to_numpy().tolist() == [[1, 0], [2, 0]]
    _, dropped = duplicates.clean(
        {"train": rows([texts[0], texts[2], texts[1], texts[0] + " so", *texts[3:]])}, tests=[]
    )
    assert dropped[["row", "other_row"]].to_numpy().tolist() == [[2, 0], [3, 0]]  # once, though it is like both


def test_a_row_that_clashes_with_a_test_does_not_drag_down_the_row_that_repeats_it():
    texts = chain()
    kept, dropped = duplicates.clean(
        {"train": rows([texts[1], texts[0], *sentences(20, 1)]), "test": rows([texts[2]])}, tests=["test"]
    )
    assert dropped[["set", "row", "other"]].to_numpy().tolist() == [["train", 0, "test"]] and len(kept["train"]) == 21


def test_two_tests_may_share_rows_and_twins_are_no_fault():
    some = sentences(30, 0)
    twins = [text.replace(text.split()[0], "polite", 1) for text in some]
    sets = {"harmful": rows(some), "twin": rows(twins), "general": rows(some[:5]), "train": rows(sentences(10, 5))}
    found = duplicates.duplicates_report(sets)
    assert not {("harmful", "twin"), ("twin", "harmful")} & set(zip(found["set"], found["other"], strict=True))
    assert counted(found, "general", "harmful") == [5, 5, 0, 0]
    assert counted(found, "twin", "general")[2] == 5
    kept, dropped = duplicates.clean(sets, tests=["harmful", "twin", "general"])
    assert dropped.empty and kept == sets


def test_a_request_in_four_forms_is_no_repetition_but_clashes_with_a_test_in_any_form():
    request = {"content": sentences(1, 0)[0], "messages": [{"content": "whatever"}]}
    safety = [{**request, "id": form, "form": form} for form in ("text_generation", "code", "code", "translation")]
    kept, dropped = duplicates.clean(
        {"safety_multitask": safety, "harmful": rows(["nothing of the kind"])}, ["harmful"]
    )
    assert dropped["row"].tolist() == [2] and len(kept["safety_multitask"]) == 3
    harmful = [{**request, "id": "h", "form": "classification"}]
    kept, _ = duplicates.clean({"safety_multitask": safety, "harmful": harmful}, ["harmful"])
    assert kept["safety_multitask"] == [] and kept["harmful"] == harmful


def test_a_set_without_rows_is_reported():
    sets = {"train": rows(["one text here"]), "test": []}
    assert counted(duplicates.duplicates_report(sets), "test", "train") == [0, 0, 0, 0]
    kept, dropped = duplicates.clean(sets, tests=["test"])
    assert kept == sets and dropped.empty and list(dropped)[:3] == ["set", "row", "id"]


def test_neither_the_report_nor_cleaning_changes_what_it_was_given(sets):
    before = {name: [dict(row) for row in some] for name, some in sets.items()}
    duplicates.clean(sets, tests=["behaviours"])
    duplicates.duplicates_report(sets)
    assert sets == before
