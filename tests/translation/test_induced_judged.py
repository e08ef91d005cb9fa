"""Whether rows of equal ids are translations is told from the rows, without a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xlt_ray.translation import induced

PAIR = ("swh_Latn", "eng_Latn")


def tables(shuffled: bool) -> tuple[pa.Table, pa.Table]:
    """240 rows of 8 of 60 words; those of the same id are the same words, or `shuffled` those of another row."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(60, size=(240, 8))
    other = drawn[rng.permutation(240)] if shuffled else drawn
    ids = [f"r{row}" for row in range(240)]
    sides = [
        [" ".join(f"{name}{word}" for word in words) for words in side]
        for name, side in (("neno", drawn), ("word", other))
    ]
    return pa.table({"id": ids, "text": sides[0]}), pa.table({"id": ids, "text": sides[1]})


def judged(both: tuple[pa.Table, pa.Table], folder: Path) -> induced.Judged:
    held = both[0]["id"].filter(pa.array(induced.held_out(*both))).combine_chunks()
    return induced.judge(PAIR, both, held, induced.Settings(0.05, True, str(folder)))


def test_translations_are_told_from_rows_that_share_no_more_than_an_id(tmp_path: Path) -> None:
    parallel, not_parallel = (judged(tables(shuffled), tmp_path) for shuffled in (False, True))
    assert parallel.match_rate > 0.95 and induced.unlike(PAIR, parallel.match_rate) is None
    assert 0.4 < not_parallel.match_rate < 0.6
    why = induced.unlike(PAIR, not_parallel.match_rate)
    assert why is not None and "swh_Latn and eng_Latn" in why


def test_rows_of_the_corpus_and_parallel_text_are_judged_apart(tmp_path: Path) -> None:
    good, bad = tables(shuffled=False), tables(shuffled=True)
    moved = [one.set_column(0, "id", pa.array([f"file:{row}" for row in range(240)])) for one in good]
    both = tuple(
        pa.concat_tables(parts).append_column("beside", pa.array([False] * 240 + [True] * 240))
        for parts in zip(bad, moved, strict=True)
    )
    assert induced.unlike(PAIR, judged((both[0], both[1]), tmp_path).match_rate) is not None


def test_too_few_rows_are_not_judged(tmp_path: Path) -> None:
    both = tables(True)
    settings = induced.Settings(0.05, True, str(tmp_path))
    found = induced.judge(PAIR, both, both[0]["id"].combine_chunks()[: induced.FEWEST_JUDGED - 1], settings)
    assert np.isnan(found.match_rate) and induced.unlike(PAIR, found.match_rate) is None


def test_a_match_rate_is_the_chance_to_tell_a_counterpart() -> None:
    texts = ["a b", "c d", "e f"]
    assert induced.match_rate(texts, texts) == 1.0
    assert induced.match_rate(texts, ["x", "y", "z"]) == 0.5
    assert induced.match_rate(texts, ["c d", "e f", "a b"]) == pytest.approx(0.25)
    assert induced.match_rate(["a the", "b the"], ["a the", "b the"]) == 1.0  # what all share tells nothing


def test_rows_without_a_counterpart_are_held_out_before_any_are_taken_from_the_others() -> None:
    mine, theirs = tables(False)
    fold = induced.held_out(mine, theirs)
    assert np.array_equal(fold, induced.held_out(mine)) and 0 < fold.sum() < len(fold) / 2
    half = theirs.slice(0, 100)
    found = induced.held_out(mine, half)
    assert found[100:].all() and np.array_equal(found[:100], fold[:100])
    assert induced.held_out(mine, theirs.slice(0, 0)).all()
    many = pa.table({"id": [f"n{number}" for number in range(4000)]})
    capped = induced.held_out(many, many.slice(0, 1200))
    assert capped.sum() == induced.MOST and (capped[:1200] == induced.held_out(many.slice(0, 1200))).all()
