"""Batches: every draw in exactly one update, steps under their budget, padding that nothing sees, and little of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import MixtureConfig
from xlt_ray.corpora import loaders, mixture
from xlt_ray.corpora.arrow import take
from xlt_ray.model import batching, collate
from xlt_ray.training import batches


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_encoder)


def rows(*sizes: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": list(range(2, 2 + size)), "token_type_ids": [0] * size} for size in sizes]


def table(*texts: str, pairs: list[str] | None = None) -> pa.Table:
    columns = {"text": pa.array(texts, pa.string()), "label": pa.array([0] * len(texts), pa.int32())}
    return pa.table(columns | ({"text_pair": pa.array(pairs, pa.string())} if pairs else {}))


# tokens


def test_a_prefix_goes_before_the_first_text_alone(tokenizer: Any) -> None:
    tokenize = collate.Tokenize(tokenizer, "eng7 ", 32)
    ids = tokenizer.convert_tokens_to_ids(["eng1", "eng2", "eng7", "[CLS]", "[SEP]"])
    one, two, prefix, first, last = ids
    assert tokenize(["eng1"])[0]["input_ids"] == [first, prefix, one, last]
    assert tokenize(["eng1"], ["eng2"])[0]["input_ids"] == [first, prefix, one, last, two, last]
    paired = tokenize.rows(table("eng2", "eng1", pairs=["eng1", "eng2"]))[1]
    assert paired["input_ids"] == [first, prefix, one, last, two, last]
    assert paired.get("token_type_ids", [0, 0, 0, 0, 1, 1]) == [0, 0, 0, 0, 1, 1]


def test_a_long_text_is_cut_and_keeps_its_end_token(tokenizer: Any) -> None:
    row = collate.Tokenize(tokenizer, "", 8)(["eng1 " * 50])[0]["input_ids"]
    assert len(row) == 8 and row[-1] == tokenizer.sep_token_id


def test_rows_come_in_the_order_asked_for(tokenizer: Any) -> None:
    tokenize = collate.Tokenize(tokenizer, "", 32)
    texts = [f"eng{i}" for i in range(5)]
    found = tokenize.rows(take(table(*texts), np.array([3, 0, 3])))
    assert found == [tokenize([texts[i]])[0] for i in (3, 0, 3)]


# lengths


def test_estimated_lengths_follow_the_true_ones(tiny_experiment: Experiment, tokenizer: Any) -> None:
    rows = loaders.load(tiny_experiment.corpus).table("train", "eng_Latn")
    tokenize = collate.Tokenize(tokenizer, "", 32)
    estimate = batches.Lengths(rows, tokenize)(np.arange(rows.num_rows))
    true = [len(row["input_ids"]) for row in tokenize(rows["text"].to_pylist())]
    assert estimate.dtype == np.int32 and len(estimate) == rows.num_rows
    assert np.corrcoef(estimate, true)[0, 1] > 0.95
    assert estimate.mean() == pytest.approx(np.mean(true), rel=0.1)


def test_estimates_keep_within_one_and_the_longest_and_count_both_texts(tokenizer: Any) -> None:
    tokenize = collate.Tokenize(tokenizer, "", 16)
    estimate = batches.Lengths(table("", "eng1", "eng1 " * 500), tokenize)(np.arange(3))
    assert estimate[0] == 1 and estimate[2] == 16
    both = batches.Lengths(table("eng1", "eng1", pairs=["eng1", "eng1 " * 9]), tokenize)(np.arange(2))
    assert both[1] > both[0]


# updates


@given(
    sizes=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 120), min_size=1),
    batch_size=st.integers(1, 40),
    draws_per_epoch=st.none() | st.integers(1, 400),
    epoch=st.integers(0, 3),
    window=st.sampled_from([1, 2, batches.WINDOW]),
    blocks=st.sampled_from([1, 3, 64]),
    most=st.sampled_from([1, 100, batches.DRAWS]),
    first=st.integers(0, 30),
)
@settings(derandomize=True, deadline=None)
def test_updates_hold_every_draw_once_and_all_but_the_last_of_the_last_window_are_full(
    sizes: dict[str, int],
    batch_size: int,
    draws_per_epoch: int | None,
    epoch: int,
    window: int,
    blocks: int,
    most: int,
    first: int,
) -> None:
    draws = mixture.epoch(sizes, MixtureConfig(alpha=0.3, draws_per_epoch=draws_per_epoch), 0, epoch)
    rng = np.random.default_rng(0)
    length = {name: rng.integers(1, 128, count).astype(np.int32).__getitem__ for name, count in sizes.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "WINDOW", window)
        patch.setattr(batches, "BLOCK", blocks * window)
        patch.setattr(batches, "DRAWS", most)
        plan, rest = (list(batches.updates(draws, length, batch_size, start)) for start in (0, first))
    assert sorted(np.concatenate([update.place for update in plan]).tolist()) == list(range(len(draws)))
    assert len(plan) == -(-len(draws) // batch_size)
    partial = [len(update) for update in plan if len(update) != batch_size]
    assert partial == ([len(draws) % batch_size] if len(draws) % batch_size else [])
    assert [update.place.tolist() for update in rest] == [update.place.tolist() for update in plan[first:]]


def planned(rows: int, seed: int = 0, epoch: int = 0) -> list[mixture.Draws]:
    draws = mixture.epoch({"a": rows}, MixtureConfig(), seed, epoch)
    return list(batches.updates(draws, {"a": np.arange(rows, dtype=np.int32).__getitem__}, 10))


def test_workers_share_an_update_without_a_gap_or_a_double() -> None:
    for world in (1, 2, 3, 4, 16):
        for update in planned(100):
            parts = [update.take(np.arange(rank, len(update), world)).place for rank in range(world)]
            assert sorted(np.concatenate(parts).tolist()) == sorted(update.place.tolist())
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_updates_have_a_seeded_order_that_each_epoch_changes() -> None:
    one, again = planned(300), planned(300)
    assert all(np.array_equal(a.row, b.row) for a, b in zip(one, again, strict=True))
    for seed, epoch in ((1, 0), (0, 1)):
        assert not all(np.array_equal(a.row, b.row) for a, b in zip(one, planned(300, seed, epoch), strict=True))
    # from long to short would be a curriculum; the rows are as long as their numbers
    means = [update.row.mean() for update in one]
    assert means != sorted(means) and means != sorted(means, reverse=True)


# steps and padding


@given(
    lengths=st.lists(st.integers(1, 128), min_size=1, max_size=60),
    tokens=st.integers(8, 2048),
)
@settings(derandomize=True, deadline=None)
def test_steps_hold_every_row_once_under_the_budget(lengths: list[int], tokens: int) -> None:
    encoded = rows(*lengths)
    groups = batching.steps(lengths, tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group, batch in collate.budgeted(encoded, tokens, pad_id=0):
        size, width = batch["input_ids"].shape
        assert size == len(group)
        assert size * width <= tokens or size == 1
        assert width % batching.MULTIPLE == 0 and width - max(lengths[i] for i in group) < batching.MULTIPLE
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_padding_is_masked_and_nothing_else_is() -> None:
    batch = collate.pad(rows(3, 10), pad_id=1)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(batch, (2, 16))
    assert batch["attention_mask"].sum(1).tolist() == [3, 10]
    assert batch["attention_mask"][0].tolist() == [1] * 3 + [0] * 13
    assert batch["input_ids"][0].tolist() == [2, 3, 4] + [1] * 13
    assert batch["token_type_ids"].sum() == 0
    assert {str(tensor.dtype) for tensor in batch.values()} == {"torch.int64"}


def test_little_of_what_is_forwarded_is_padding(tokenizer: Any) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"eng{i}" for i in rng.integers(0, 60, size)) for size in rng.geometric(0.06, 2000).clip(1, 120)]
    tokenize = collate.Tokenize(tokenizer, "", 128)
    data = table(*texts)
    draws = mixture.epoch({"a": 2000}, MixtureConfig(), 0, 0)
    real = padded = unsorted = 0
    for update in batches.updates(draws, {"a": batches.Lengths(data, tokenize)}, 32):
        encoded = tokenize.rows(take(data, update.row))
        for _, batch in collate.budgeted(encoded, 4096, 0):
            real += int(batch["attention_mask"].sum())
            padded += batch["attention_mask"].numel()
    for start in range(0, 2000, 32):
        batch = collate.pad(tokenize.rows(take(data, draws.draws(start, start + 32).row)), 0)
        unsorted += batch["attention_mask"].numel()
    assert 1 - real / padded < 0.25
    assert 1 - real / unsorted > 0.5  # what it would be without sorting
