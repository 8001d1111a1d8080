"""What all figures share: their colours, and the files of a saved one."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import figure, texts
from frames import study
from matplotlib.colors import to_hex

from studylib.analysis import claims, tables
from studylib.figures import style
from studylib.study.words import FORMS, SAFETY_DATA

mpl.use("Agg")
PUBLISHED = claims.published_counts(Path(__file__).parents[2] / "data" / "published" / "gemma_answered_counts.csv")


@pytest.fixture(scope="module")
def share():
    """The share table of a small study."""
    style.set_theme()
    return tables.answered_share(*study(np.random.default_rng(0), n_prompts=4, seeds=(0, 1))[:2])


def test_colours_are_distinct_and_forms_share_none_with_safety_data():
    colours = [*style.FORM_COLOURS.values(), *style.SAFETY_COLOURS.values()]
    assert len(set(colours)) == len(colours) == 7
    assert list(style.FORM_COLOURS) == list(FORMS)
    assert list(style.SAFETY_COLOURS) == list(SAFETY_DATA)
    assert len(set(style.SAFETY_MARKERS.values())) == 3


@pytest.mark.slow
def test_saving_writes_four_files_and_the_same_bytes_each_time(tmp_path, share):
    text, alt = texts("answered_share", share, PUBLISHED)
    for folder in ("first", "second"):
        fig = figure("answered_share", share, PUBLISHED)
        style.save(fig, tmp_path / folder, "answered_share", text, alt)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == [f"answered_share.{ending}" for ending in ("md", "pdf", "png", "svg")]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    words = (tmp_path / "first" / "answered_share.md").read_text(encoding="utf-8")
    assert text in words
    assert f"Alternative text: {alt}" in words
    pdf = (tmp_path / "first" / "answered_share.pdf").read_bytes()
    assert b"/CreationDate" not in pdf and b"/Type3" not in pdf and b"/CIDFontType2" in pdf


def test_figures_bring_their_white_ground_to_a_dark_page(tmp_path, share):
    with mpl.rc_context({"figure.facecolor": "black", "savefig.facecolor": "black", "savefig.transparent": True}):
        fig = figure("answered_share", share, PUBLISHED)
        style.save(fig, tmp_path, "x", "", "")
    assert to_hex(fig.get_facecolor()) == "#ffffff"
    corner = plt.imread(tmp_path / "x.png")[0, 0]
    assert list(corner) == [1, 1, 1, 1]


def test_a_failed_save_leaves_the_old_file_and_no_part_behind(tmp_path):
    class Broken:
        def savefig(self, *_, **__):
            raise OSError("disk full")

    (tmp_path / "x.png").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        style.save(Broken(), tmp_path, "x", "", "")
    assert (tmp_path / "x.png").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
