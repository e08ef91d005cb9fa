"""Filling in masked words: what is masked, the head it begins with, what is measured, on any number of workers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from test_adversarial import train
from test_catalogue import mislabelled, parallel_corpus, resumed_bit_by_bit, run_of
from test_contrast import CODES, settings
from workers import on_workers

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.streams import Singles, held_out
from xlt_ray.errors import InputError
from xlt_ray.model import encoders
from xlt_ray.model.collate import Tokenize
from xlt_ray.supervision import PARALLEL, UNLABELLED
from xlt_ray.techniques.losses import lm_head, mlm
from xlt_ray.techniques.losses.lm_head import Examples
from xlt_ray.techniques.losses.masking import LONGEST, Masking
from xlt_ray.techniques.losses.mlm import Filling
from xlt_ray.training import loop
from xlt_ray.training.batches import Feed
from xlt_ray.training.checkpoint import Progress

Settings = dict[str, Any]
__all__ = ["parallel_corpus", "settings"]


def filling(settings: Settings, name: str = "mlm", **parameters: Any) -> Settings:
    return {**settings, "techniques": [{name: parameters}]}


def alone(settings: Settings, name: str = "mlm", **parameters: Any) -> Settings:
    changed = filling(settings, name, **parameters)
    return {**changed, "training": {**settings["training"], "method": "adapt"}}


# the words of a text


@pytest.fixture(scope="module")
def tokenize() -> Tokenize:
    return Tokenize(encoders.load("bundled:e5-small", weights=False).tokenizer, "query: ", 64)


TEXTS = ["Hello, wonderful internationalization!", "这是一个测试句子。我们去北京。", "नमस्ते दुनिया", "", "  ½ ﬁne"]


def test_words_are_told_and_the_prefix_and_what_the_tokenizer_adds_are_none(tokenize: Tokenize) -> None:
    rows, words, seconds = tokenize.words(TEXTS, ["Zweiter Satz."] * 5)
    assert rows == tokenize(TEXTS, ["Zweiter Satz."] * 5)
    shown = tokenize.tokenizer.convert_ids_to_tokens
    for row, own, second in zip(rows, words, seconds, strict=True):
        outside = [piece for piece, word in zip(shown(row["input_ids"]), own, strict=True) if word < 0]
        assert {*outside} <= {"<s>", "</s>", "▁que", "ry", ":", "▁"}
        assert shown(row["input_ids"][second : second + 2]) == ["▁Zwei", "ter"]
        known = [word for word in own if word >= 0]
        assert known == sorted(known) and {*known} == {*range(max(known) + 1)}
    assert [own[5] == own[6] for own in words[:1]] == [False]  # Hello and the comma are one word to no one
    assert tokenize.words(["a b"])[2] == [len(tokenize(["a b"])[0]["input_ids"])], "without a pair there is no second"


def masking_of(tokenize: Tokenize, texts: list[str], rate: float = 0.15, **more: Any) -> Masking:
    ids = np.unique(np.concatenate([row["input_ids"] for row in tokenize(texts)]))
    special = tokenize.tokenizer.all_special_ids
    return Masking(np.setdiff1d(ids, special), tokenize.tokenizer.mask_token_id, rate, **more)


def test_whole_words_are_masked_and_long_ones_in_parts(tokenize: Tokenize) -> None:
    masking = masking_of(tokenize, TEXTS)
    (row, other, *_), (words, characters, *_), _ = tokenize.words(TEXTS)
    parts = masking.parts(row["input_ids"], words)
    assert all(len({words[place] for place in part}) == 1 for part in parts)
    assert sorted(place for part in parts for place in part) == [i for i, word in enumerate(words) if word >= 0]
    lengths = [len(part) for part in masking.parts(other["input_ids"], characters)]
    assert max(lengths) == LONGEST and len(lengths) > 1, "a sentence without spaces is one word to the tokenizer"


def test_about_the_rate_is_asked_for_and_most_of_it_is_the_mask(tokenize: Tokenize) -> None:
    text = " ".join(f"word{i} river mountain" for i in range(8))
    masking = masking_of(tokenize, [text], 0.15)
    (whole,) = tokenize([text])
    found = masking(tokenize, [text] * 400, None, [np.random.default_rng(i) for i in range(400)])
    asked = kept = masks = 0
    for row in found:
        at = np.flatnonzero(row["answers"])
        own = masking.vocabulary[np.array(row["answers"])[at] - 1]
        assert np.array_equal(own, np.array(whole["input_ids"])[at]), "what is asked for is what stood there"
        others = np.setdiff1d(np.arange(len(whole["input_ids"])), at)
        assert np.array_equal(np.array(row["input_ids"])[others], np.array(whole["input_ids"])[others])
        asked, kept = asked + len(at), kept + int((np.array(row["input_ids"])[at] == own).sum())
        masks += int((np.array(row["input_ids"])[at] == masking.mask).sum())
    pieces = len([word for word in tokenize.words([text])[1][0] if word >= 0]) * 400
    assert 0.15 <= asked / pieces < 0.2  # a word is taken whole, so somewhat more
    assert masks / asked == pytest.approx(0.8, abs=0.03) and kept / asked == pytest.approx(0.1, abs=0.03)


def test_a_generator_decides_and_nothing_else(tokenize: Tokenize) -> None:
    masking = masking_of(tokenize, TEXTS, 0.3)
    once, again, other = (
        masking(tokenize, TEXTS, None, [np.random.default_rng([seed, i]) for i in range(5)]) for seed in (1, 1, 2)
    )
    assert once == again != other
    assert masking(tokenize, TEXTS[1:2], None, [np.random.default_rng([1, 1])]) == once[1:2]


def test_each_word_is_measured_once_and_of_a_pair_the_first_text_alone(tokenize: Tokenize) -> None:
    masking = masking_of(tokenize, [*TEXTS, "Zweiter Satz."], 0.25)
    for pairs in (None, ["Zweiter Satz."] * 5):
        found = masking.each_once(tokenize, TEXTS, pairs)
        _, words, seconds = tokenize.words(TEXTS, pairs)
        for rows, own, second in zip(found, words, seconds, strict=True):
            asked = np.array([row["answers"] for row in rows]).reshape(-1, len(own)) > 0
            assert np.array_equal(asked.sum(0), (np.array(own) >= 0) * (np.arange(len(own)) < second))
            assert all(
                (np.array(row["input_ids"])[one] == masking.mask).all() for row, one in zip(rows, asked, strict=True)
            )
            assert len(rows) <= 4 and all(one.any() for one in asked)
    assert found[3] == [] or all(any(row["answers"]) for row in found[3]), "of an empty text nothing is asked"


def test_positions_begin_anew_in_the_second_text(tokenize: Tokenize) -> None:
    masking = masking_of(tokenize, TEXTS, restart=True, first=2)
    (row,) = masking(tokenize, TEXTS[:1], ["Zweiter Satz."], [np.random.default_rng(0)])
    second = tokenize.words(TEXTS[:1], ["Zweiter Satz."])[2][0]
    length = len(row["input_ids"])
    assert row["position_ids"] == [*range(2, 2 + second), *range(2, 2 + length - second)]


# the head


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_the_head_of_a_checkpoint_is_taken_as_it_is(family: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(vocab_size=60, intermediate_size=32, **sizes, **special)
    model = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
    model.save_pretrained(tmp_path / "whole")
    model.base_model.save_pretrained(tmp_path / "without")
    assert lm_head.prediction_head(str(tmp_path / "without")) is None
    found = lm_head.prediction_head(str(tmp_path / "whole"))
    assert found is not None
    ids = torch.arange(5, 26).reshape(3, 7)
    pieces = np.array([4, 7, 9, 30])
    head = lm_head.Head(pieces, found.transform, found.bias[pieces], own=found.weight[pieces])
    with torch.no_grad():
        hidden = model.base_model(ids).last_hidden_state
        wanted = model(ids).logits[..., pieces]
        tied = lm_head.Head(pieces, found.transform, found.bias[pieces])(hidden, found.weight)
        torch.testing.assert_close(head(hidden, torch.zeros(60, 16)), wanted)
        torch.testing.assert_close(tied, wanted)


def test_a_head_in_closed_form_finds_what_can_be_found() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(50, 16)).astype(np.float32)
    answers = rng.choice(50, 2000, p=np.arange(1, 51) / 1275)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    hidden = embeddings[answers] @ turn + 0.5 + rng.normal(size=(2000, 16)) * 0.3
    few = Examples(hidden[:1500].astype(np.float32), answers[:1500])
    head = lm_head.closed_form(few, np.arange(50), embeddings, np.bincount(answers, minlength=50))
    with torch.no_grad():
        found = head(torch.from_numpy(hidden[1500:].astype(np.float32)), torch.from_numpy(embeddings)).argmax(1).numpy()
    assert (found == answers[1500:]).mean() > 0.9 > 0.1 > (answers[1500:] == 49).mean()


def test_without_anything_to_learn_it_knows_how_frequent_pieces_are() -> None:
    rng = np.random.default_rng(0)
    answers = rng.choice(50, 1000, p=np.arange(1, 51) / 1275)
    few = Examples(rng.normal(size=(1000, 16)).astype(np.float32), answers)
    counts = np.bincount(answers, minlength=50)
    head = lm_head.closed_form(few, np.arange(50), rng.normal(size=(50, 16)).astype(np.float32), counts)
    with torch.no_grad():
        scores = head(torch.zeros(1, 16), torch.from_numpy(rng.normal(size=(50, 16)).astype(np.float32)))[0]
    assert np.corrcoef(scores.numpy(), np.log(counts + 0.5))[0, 1] > 0.2


# what is learned and measured


def term_of(settings: Settings) -> tuple[Filling, Any]:
    run = run_of(build(settings))
    loop.begin(run)
    (term,) = run.network.terms.values()
    assert isinstance(term, Filling) and isinstance(term.stream, Singles)
    return term, run


def test_texts_that_are_measured_are_not_learned_from_nor_are_their_translations(settings: Settings) -> None:
    term, run = term_of(filling(settings))
    ids = {code: {*table["id"].to_pylist()} for code, table in term.stream.tables.items()}
    assert ids["eng_Latn"] == ids["swh_Latn"] == ids["hin_Deva"] and len(ids["eng_Latn"]) == 96
    assert {code: len(texts) for code, texts in term.measured.items()} == dict.fromkeys(CODES, 24)
    assert {*run.setup.material.texts["eng_Latn"]["id"].to_pylist()} > ids["eng_Latn"]


def test_rows_to_measure_by_are_chosen_by_id_alone() -> None:
    table = pa.table({"id": [f"row{i}" for i in range(50)], "text": [str(i) for i in range(50)]})
    turned = table.take(np.random.default_rng(0).permutation(50))
    chosen = [{*one.take(held_out(one, 10))["id"].to_pylist()} for one in (table, turned)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 10
    assert held_out(table.slice(0, 0), 10).tolist() == [] and held_out(table, 0).tolist() == []


def test_perplexity_is_of_each_piece_asked_for_once(settings: Settings) -> None:
    term, run = term_of(filling(settings))
    counts = term.measure(run.network)
    embeddings = run.network.encoder.get_input_embeddings().weight
    rows = term.measured["swh_Latn"][3]
    nats, pieces, found = 0.0, 0, 0
    run.network.eval()
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            hidden = run.network.encode({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]
            for place, answer in enumerate(row["answers"]):
                if answer:
                    chances = term.head(hidden[place : place + 1], embeddings).softmax(1)[0]
                    nats, pieces = nats - float(chances[answer - 1].log()), pieces + 1
                    found += int((chances > chances[answer - 1]).sum() < 10)
    assert counts["swh_Latn"][3] == pytest.approx([nats, pieces, found], rel=1e-4)
    table = run.setup.material.texts["swh_Latn"]
    text = str(table["text"][int(held_out(table, 24)[3])])
    assert pieces == len(text.split()) - 1, "one of its words is not in the vocabulary, so it is asked of nobody"


@pytest.mark.parametrize("method", ["fine_tune", "adapt"])
def test_it_fills_in_better_after_it(settings: Settings, method: str) -> None:
    settings["training"] |= {"method": method, "epochs": 12, "learning_rate": 3e-3}
    *_, facts = train({**settings, "techniques": [{"mlm": {"rows": 64}}]})
    for code in CODES:
        assert facts[f"mlm/perplexity_after/{code}"] < 0.9 * facts[f"mlm/perplexity_before/{code}"]
    assert facts["mlm/top10_after"] > facts["mlm/top10_before"]
    logs = [np.log(facts[f"mlm/perplexity_after/{code}"]) for code in CODES]
    assert facts["mlm/perplexity_after"] == pytest.approx(np.exp(np.mean(logs)))


@pytest.mark.parametrize(("name", "method"), [("mlm", "fine_tune"), ("tlm", "adapt")])
def test_one_loss_curve_on_two_workers_and_by_another_budget(settings: Settings, name: str, method: str) -> None:
    settings["training"]["method"] = method
    settings = filling(settings, name, rows=9)
    losses, weights, facts = train(settings)
    workers = on_workers(2, train, settings)
    settings["training"]["tokens_per_step"] = 16
    for found, others, figures in (*workers, train(settings)):
        assert found == pytest.approx(losses, rel=1e-4)
        assert max(float(np.abs(array - weights[key]).max()) for key, array in others.items()) < 1e-3
        assert figures == pytest.approx(facts, rel=0.05, abs=0.05)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlm", "contrast"])
def test_one_loss_curve_on_four_workers_without_labels(settings: Settings, name: str) -> None:
    settings = alone(settings, name, **({"rows": 3} if name == "mlm" else {"group": 4, "groups": 1}))
    losses, weights, _ = train(settings)
    for found, others, _ in on_workers(4, train, settings):  # one of them at least has nothing to do in every update
        assert found == pytest.approx(losses, rel=1e-4)
        assert max(float(np.abs(array - weights[key]).max()) for key, array in others.items()) < 1e-3


# without labels


@pytest.mark.parametrize("name", ["mlm", "tlm", "contrast", "distil"])
def test_a_run_without_labels_goes_on_bit_by_bit_and_trains_the_encoder_alone(
    settings: Settings, name: str, tmp_path: Path
) -> None:
    settings["training"] |= {"epochs": 2, "checkpoint_every": 3, "batch_size": 40}
    experiment = build(alone(settings, name))
    before = run_of(experiment).network.state_dict()
    after = resumed_bit_by_bit(experiment, tmp_path)
    assert torch.equal(before["head.weight"], after["head.weight"])
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("encoder"))


@pytest.mark.parametrize("name", ["mlm", "contrast"])
def test_labels_change_nothing_of_a_run_without_them(settings: Settings, name: str) -> None:
    experiment = build(alone(settings, name))
    one, other = run_of(experiment), run_of(experiment)
    wrong = mislabelled(loaders.load(experiment.corpus), CODES)
    other.setup = type(other.setup).of(experiment, wrong)
    for run in (one, other):
        loop.fit(run)
    first, second = one.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_epoch_draws_as_many_rows_as_there_are_texts(settings: Settings) -> None:
    settings["training"] |= {"epochs": 2, "batch_size": 50}
    run = run_of(build(alone(settings)))
    assert run.setup.updates == 2 * 8  # of 360 texts
    assert [share.language for share in run.setup.mixture] == [*CODES]
    loop.begin(run)
    feed = Feed(run, 0, 1)
    assert len([*feed.updates(0)]) == 8 and len([*feed.updates(1, first=3)]) == 5
    batches = [*feed.batches(next(iter(feed.updates(0))), Progress(), 16)]
    assert sum(len(batch["stream"]) for batch in batches) == 50
    assert all((batch["stream"] == 2).all() and not batch["weight"].any() for batch in batches)
    assert batches[0]["counts"].tolist() == [0, 0, 50]


def test_the_loss_is_the_mean_over_rows_whatever_their_number(settings: Settings) -> None:
    run = run_of(build(alone(settings, rows=7)))
    state = loop.begin(run)
    run.network.eval()
    feed, losses = Feed(run, 0, 1), []
    batches = [*feed.batches(next(iter(feed.updates(0))), Progress(), 10)]
    total = float(sum(state.forward(batch) for batch in batches))
    term = run.network.terms["mlm"]
    for batch in batches:
        hidden: Any = run.network.encode(batch)
        for row in range(len(hidden)):
            at = batch["answers"][row].nonzero()[:, 0]
            scores = term.head(hidden[row, at], run.network.encoder.get_input_embeddings().weight)
            losses.append(torch.nn.functional.cross_entropy(scores, batch["answers"][row, at] - 1).item())
    assert len(losses) == 7 and total == pytest.approx(np.mean(losses), rel=1e-4)


def test_what_it_read_is_told_of_targets(settings: Settings) -> None:
    for name, rung in (("mlm", UNLABELLED), ("tlm", PARALLEL)):
        run = run_of(build(alone(settings, name)))
        assert run.setup.supervision == dict.fromkeys(CODES, rung), "of its source it reads no more than of targets"


# with the translation in view


def test_tlm_measures_what_a_translation_is_worth(settings: Settings) -> None:
    settings["training"] |= {"method": "adapt", "epochs": 2}
    term, run = term_of(filling(settings, "tlm", rows=16))
    assert {*term.measured} == {f"{code} {kind}" for code in CODES[1:] for kind in ("translated", "unrelated")}
    learned = {one for table in term.stream.tables.values() for one in table["id"].to_pylist()}
    texts = run.setup.material.texts["eng_Latn"]
    pairs = {row["text"]: row["text_pair"] for code in CODES[1:] for row in term.stream.tables[code].to_pylist()}
    english = dict(zip(texts["id"].to_pylist(), texts["text"].to_pylist(), strict=True))
    swahili = run.setup.material.texts["swh_Latn"].to_pylist()
    assert all(pairs[row["text"]] == english[row["id"]] for row in swahili if row["id"] in learned)
    assert len(learned) == 70
    facts = run_facts(run)
    for when in ("before", "after"):
        gain = facts[f"tlm/gain_{when}/swh_Latn"]
        assert facts[f"tlm/gain_low_{when}/swh_Latn"] <= gain <= facts[f"tlm/gain_high_{when}/swh_Latn"]
        shares = [facts[f"tlm/top10_{kind}_{when}/swh_Latn"] for kind in ("translated", "unrelated")]
        assert gain == pytest.approx(shares[0] - shares[1])


def run_facts(run: Any) -> dict[str, float]:
    return loop.fit(run).facts


@pytest.mark.parametrize("positions", ["continued", "restarted"])
def test_tlm_learns_with_positions_of_either_kind(settings: Settings, positions: str) -> None:
    losses, _, facts = train(alone(settings, "tlm", rows=32, positions=positions))
    assert np.isfinite(losses).all() and np.isfinite([*facts.values()]).all()


# what is refused


def test_what_cannot_be_is_refused_with_a_way_out(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learns by losses of techniques alone, and none has any; add one of .*mlm"):
        techniques.build(build({**settings, "training": {"method": "adapt"}}))
    for key, value, match in (
        ("training", {"select": "source_dev"}, "training.select: source_dev asks for labels of dev"),
        ("network", {"head": "bundle"}, "network.head: bundle, but training.method: adapt learns no task"),
        ("mixture", {"weights": {"eng_Latn": 2}}, "mixture.weights: of labelled rows"),
        ("mixture", {"label_balance": 1}, "mixture.label_balance: of labelled rows"),
        ("tracking", {"register_as": "model"}, "there is nothing to serve"),
    ):
        changed = alone(settings)
        changed[key] = {**changed.get(key, {}), **value}
        with pytest.raises(InputError, match=match):
            build(changed)


def test_a_tokenizer_without_a_mask_is_refused(settings: Settings, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["network"]["init"])
    tokenizer.mask_token = None
    for name in ("mlm", "tlm"):
        (made,) = techniques.build(build(filling(settings, name)))
        with pytest.raises(InputError, match=f"techniques.{name}: the tokenizer of the encoder .* has no mask"):
            made.check_encoder(run_of(build(settings)).network, tokenizer)


def test_equal_texts_are_on_one_side_and_ids_that_tell_nothing_apart_hold_nothing_out() -> None:
    texts = [f"text {i % 30}" for i in range(200)]
    rows = {"eng_Latn": pa.table({"id": [f"file:{i}" for i in range(200)], "text": texts})}
    learned, held = mlm.apart(rows)
    assert held["eng_Latn"].num_rows == 40 and learned
    assert not {*learned["eng_Latn"]["text"].to_pylist()} & {*held["eng_Latn"]["text"].to_pylist()}
    learned, held = mlm.apart({"eng_Latn": pa.table({"id": ["same"] * 200, "text": texts})})
    assert learned["eng_Latn"].num_rows == 200 and not held


def test_the_prefix_is_no_text(settings: Settings) -> None:
    settings["network"]["prefix"] = "eng0 eng1 "
    run = run_of(build(filling(settings)))
    learned, held = mlm.apart(run.setup.material.all_texts)
    masking, counts = mlm.vocabulary(run.network, learned, held, run.tokenize, 0.15)
    words = Counter(word for table in learned.values() for text in table["text"].to_pylist() for word in text.split())
    pieces = run.tokenize.tokenizer.convert_ids_to_tokens(masking.vocabulary.tolist())
    assert dict(zip(pieces, counts.tolist(), strict=True)) == {piece: words[piece] for piece in pieces}
    asked = {word for table in held.values() for text in table["text"].to_pylist() for word in text.split()}
    known = {*run.tokenize.tokenizer.get_vocab()}
    assert {*pieces} == ({*words} | asked) & known, "what is measured can be asked for, be it counted or not"


def test_pairs_of_few_distinct_texts_are_refused_by_tlm(settings: Settings, tmp_path: Path) -> None:
    rows = [f"eng{i % 40} eng{i % 40 + 1} eng{i % 13}\tswh{i % 40} swh{i % 40 + 1} swh{i % 13}" for i in range(40)] * 4
    (tmp_path / "beside.tsv").write_text("\n".join(["eng_Latn\tswh_Latn", *rows]) + "\n")
    settings["corpus"] |= {"id": None, "parallel": str(tmp_path / "beside.tsv")}
    run = run_of(build(alone(settings, "tlm")))
    with pytest.raises(InputError, match="no language has rows that can be learned from as translations"):
        run.setup.techniques[0].loss_term(run.network, run.setup.material, run.computing("float32"))


def test_texts_too_few_to_hold_any_out_are_all_learned_from() -> None:
    table = pa.table({"id": ["a", "b"], "text": ["x", "y"]})
    learned, held = mlm.apart({"eng_Latn": table})
    assert learned["eng_Latn"].num_rows == 2 and not held
