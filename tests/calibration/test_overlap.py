"""Overlap: what two texts must share, and what does not hide it."""

import pytest

from pipeline.calibration.overlap import MIN_WORDS, NGRAM_WORDS, NgramIndex, words_of

WORDS = [f"w{number}" for number in range(40)]


def index_of(*texts: str) -> NgramIndex:
    index = NgramIndex()
    for text in texts:
        index.add(text)
    return index


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not() -> None:
    index = index_of(" ".join(WORDS))
    for length, expected in ((NGRAM_WORDS, True), (NGRAM_WORDS - 1, False)):
        shared = " ".join(WORDS[7 : 7 + length])
        assert index.overlaps(f"before {shared} after") is expected


def test_shared_words_in_another_order_do_not_overlap() -> None:
    assert not index_of(" ".join(WORDS)).overlaps(" ".join(reversed(WORDS)))


@pytest.mark.parametrize(
    "text",
    [
        "so: What does LINO Ortega play? Cello!",
        "what   does\nlino-ortega; play (cello)",
        "Ｗｈａｔ does Lino Ortega play cello",
    ],
)
def test_a_short_text_is_found_whole_whatever_its_case_and_punctuation(text: str) -> None:
    index = index_of("What does Lino Ortega play? cello")
    assert index.overlaps(text)
    assert not index.overlaps("What does Lino Ortega play? A flute.")


def test_one_or_two_words_say_nothing() -> None:
    assert MIN_WORDS == 3
    index = index_of("", "yes", "the river")
    assert not index.overlaps("yes, the river")
    assert index_of("79 - 2 = 77").overlaps("79 - 2 = 77, 80 - 2 = 78")


def test_scripts_without_spaces_count_by_character() -> None:
    assert len(words_of("日本語のテキスト")) == 8
    assert index_of("今日は天気がいいですね、散歩しましょう").overlaps(
        "「天気がいいですね散歩しましょう」と"
    )


def test_text_that_is_no_text_is_no_problem() -> None:
    assert not index_of("\ud800 a b c", "👩‍👩‍👧‍👦 !!").overlaps("")
