"""Tagging: spans as seqeval has them, one tag for every word however long a text is, and answers with their places."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from search_runs import tune, write
from test_every_task import fitted
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from xlt_ray import cli, tasks
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate, metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.export import export
from xlt_ray.inference import bundle, model, tagging
from xlt_ray.languages import words as splitting
from xlt_ray.model.collate import Tokenize
from xlt_ray.reports import report
from xlt_ray.runs import anchors, geometry, sweep
from xlt_ray.search import prepare, space
from xlt_ray.tasks import tag
from xlt_ray.training import checks

Settings = dict[str, Any]


@pytest.fixture
def settings(tiny_settings: Settings, tagged_corpus: Path) -> Settings:
    corpus = {"path": str(tagged_corpus), "words": "words", "label": "tags"}
    return {**tiny_settings, "task": "tag", "corpus": {**tiny_settings["corpus"], **corpus}}


@pytest.fixture
def tokenize(tiny_encoder: Path) -> Tokenize:
    return Tokenize(AutoTokenizer.from_pretrained(tiny_encoder), "", 16)


# spans


def sequences() -> list[dict[str, str]]:
    """Return what seqeval 1.2.2 counts of 1,000 random sequences, each in its default mode; tags are numbers."""
    with (Path(__file__).parent / "seqeval.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def tagger(scheme: str) -> tasks.Task:
    return tasks.build("tag", ["O", *(f"{prefix}-{kind}" for prefix in scheme for kind in ("LOC", "PER"))])


@pytest.mark.parametrize("scheme", ["BI", "BIES"])
def test_spans_and_f1_are_those_of_seqeval(scheme: str) -> None:
    task, rows = tagger(scheme), [one for one in sequences() if one["scheme"] == scheme]
    assert len(rows) == 500
    gold, predicted = (np.array([*map(int, "".join(one[name] for one in rows))]) for name in ("gold", "predicted"))
    sizes = np.array([len(one["gold"]) for one in rows])
    cells = task.cells(gold, predicted, sizes)
    wanted = np.array([[int(one[name]) for name in ("right", "of_gold", "of_predicted")] for one in rows])
    assert np.array_equal(cells[:, 0], wanted[:, 0]) and np.array_equal(cells[:, 1], wanted[:, 1:].sum(1))
    f1, accuracy = task.measure(cells, np.ones(len(rows), dtype=np.int64))
    assert f1 == 2 * wanted[:, 0].sum() / wanted[:, 1:].sum()
    assert accuracy == (gold == predicted).mean()


def test_last_and_unit_are_other_names_of_end_and_single() -> None:
    names = {"E": "L", "S": "U"}
    one = tagger("BIES")
    other = tasks.build("tag", [names.get(label[0], label[0]) + label[1:] for label in one.labels])
    for row in sequences()[1::2]:
        tags = [*map(int, row["gold"])]
        assert one.spans(tags) == other.spans(tags)


def test_tags_that_are_of_no_spans_are_measured_word_by_word() -> None:
    task = tasks.build("tag", ["ADJ", "NOUN", "VERB"])
    assert task.metrics == ("accuracy", "macro_f1") and task.spans([0, 1, 1]) == []
    gold, predicted, sizes = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), np.array([1, 3])
    cells = task.cells(gold, predicted, sizes)
    accuracy, f1 = task.measure(cells, np.ones(2, dtype=np.int64))
    assert accuracy == 0.75 and f1 == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    ratios = task.ratios(gold, predicted, sizes)
    assert ratios.tolist() == [[1, 1], [2, 3]]


# windows


@pytest.mark.parametrize("length", [1, 5, 13, 14, 15, 40, 200])
def test_every_word_is_answered_once_however_long_the_text_is(tokenize: Tokenize, length: int) -> None:
    words = [f"eng{number % 60}" for number in range(length)]
    (windows,) = tag._windows(tokenize, [" ".join(words)], [splitting.spans(" ".join(words), words)])
    answered = []
    for one in windows:
        ids = one.encoded["input_ids"]
        assert len(ids) <= 16 and (one.first == 0 or len(one.encoded["word"]) < 14)
        vocabulary = tokenize.tokenizer.convert_ids_to_tokens(ids)
        found = [vocabulary[place - 1] for place in one.encoded["word"]]
        assert found == words[one.first : one.first + len(found)]  # each by its own piece
        answered += range(one.first, one.first + len(found))
    assert answered == [*range(length)]
    assert len(windows) == 1 or all(len(one.encoded["input_ids"]) > 8 for one in windows[:-1])


@pytest.mark.parametrize("seed", range(20))
def test_words_of_many_pieces_are_answered_by_their_first(seed: int) -> None:
    rng, letters = np.random.default_rng(seed), "abcdefghij"
    by_letter = Tokenize(letter_tokenizer(letters), "", 16)
    for _ in range(20):
        sizes = rng.choice([1, 2, 3, 13, 14, 15, 30], size=int(rng.integers(1, 40)))
        words = ["".join(letters[int(one)] for one in rng.integers(len(letters), size=size)) for size in sizes]
        (windows,) = tag._windows(by_letter, [" ".join(words)], [splitting.spans(" ".join(words), words)])
        answered = []
        for one in windows:
            pieces = by_letter.tokenizer.convert_ids_to_tokens(one.encoded["input_ids"])
            own = words[one.first : one.first + len(one.encoded["word"])]
            assert [pieces[place - 1] for place in one.encoded["word"]] == [word[0] for word in own]
            answered += own
        assert answered == words


def letter_tokenizer(letters: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer to which every letter is a piece, the first of a word another one than the rest."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    made = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def test_a_word_without_a_piece_of_its_own_is_answered_by_the_one_before(tokenize: Tokenize) -> None:
    pieces = [(-1, -1), (0, 4), (9, 12), (-1, -1)]
    assert tag._first_pieces(pieces, [(0, 2), (2, 4), (5, 8), (9, 12), (13, 14)]) == [1, 1, 1, 2, 3]


def test_a_long_row_is_trained_on_in_a_window_that_is_drawn(tokenize: Tokenize) -> None:
    words = [f"eng{number}" for number in range(40)]
    table = pa.table({"text": [" ".join(words)], "words": [words], "label": [[*range(40)]]})
    task = tasks.build("tag", [f"t{number}" for number in range(40)])
    drawn = {
        tuple(one["tag"])
        for epoch in range(20)
        for one in task.encode(tokenize, table, ([" ".join(words)], None), (0, epoch), np.zeros(1, dtype=np.int64))
    }
    assert len(drawn) > 2 and {number for tags in drawn for number in tags} == {*range(40)}
    for tags in drawn:
        assert [*tags] == [*range(tags[0], tags[0] + len(tags))]


def test_the_prefix_of_an_encoder_shifts_no_tag(tiny_encoder: Path) -> None:
    tokenize = Tokenize(AutoTokenizer.from_pretrained(tiny_encoder), "eng1: ", 16)
    ((one,),) = tag._windows(tokenize, ["eng7 eng8"], [[(0, 4), (5, 9)]])
    found = tokenize.tokenizer.convert_ids_to_tokens(one.encoded["input_ids"])
    assert [found[place - 1] for place in one.encoded["word"]] == ["eng7", "eng8"]


# answers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tagged_corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    settings = {
        "name": "tiny", "task": "tag", "sources": ["eng_Latn", "deu_Latn"], "tracking": {"uri": "off"},
        "corpus": {"loader": "files", "path": str(tagged_corpus), "words": "words", "label": "tags", "id": "id",
                   "cache_dir": str(folder / "cache")},
        "network": {"init": str(tiny_encoder), "max_length": 32, "freeze": []},
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 5e-3, "precision": "float32"},
    }  # fmt: skip
    run, _ = fitted(settings)
    net, made = run.network, run.setup
    bundle.save(folder / "bundle", bundle.Bundle(net, run.tokenize, made.corpus.labels, made.experiment, None), "tiny")
    return folder / "bundle"


def test_words_and_spans_are_answered_with_their_places(trained: Path) -> None:
    kept = bundle.load(trained)
    texts = ["eng3 eng22,  eng21 eng45", "eng1", "eng45" + " eng2" * 60]
    found = tagging.tag(kept, texts)
    for text, words in zip(texts, found, strict=True):
        assert [text[one.start : one.end] for one in words] == text.replace(",", " ,").split()
        assert all(0 < one.score <= 1 and one.tag in kept.labels for one in words)
    assert [one.tag for one in found[0]][:2] == ["O", "B-food"]
    assert [one.type for one in tagging.spans(kept.task, found[0])][-1] == "place"
    last = tagging.spans(kept.task, found[2])[0]
    assert (last.type, texts[2][last.start : last.end]) == ("place", "eng45")
    assert tagging.tag(kept, ["  "]) == [[]] and tagging.tag(kept, []) == []


def test_the_table_of_a_model_tells_places_spans_and_probabilities(trained: Path) -> None:
    found = model.Model("tiny", bundle.load(trained)).tag(["eng22 eng3", "eng1"], "eng_Latn")
    assert found["word"].tolist() == ["eng22", "eng3", "eng1"] and found["text"].tolist() == [0, 0, 1]
    assert found["span"].isna().tolist() == [False, True, True] and found["end"].tolist() == [5, 10, 4]
    assert model.Model("tiny", bundle.load(trained)).tag([]).dtypes.equals(found.dtypes)
    with pytest.raises(InputError, match="use tag"):
        model.Model("tiny", bundle.load(trained)).predict(["eng22"])
    with pytest.raises(InputError, match="'eng9' does not follow"):
        model.Model("tiny", bundle.load(trained)).tag(["eng22"], words=[["eng9"]])


def test_the_command_line_tags_lines_and_says_which_it_cannot(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    lines = [
        "eng22 eng3",
        {"text": "eng22", "words": ["eng22"], "id": 7},
        {"text": "eng1", "words": ["x"]},
        {},
        "\ud800",
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = CliRunner().invoke(cli.app, ["predict", str(trained), str(file), "--jsonl"])
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.exit_code == 1 and len(answers) == 5 and "half a character" in answers[4]["error"]
    assert answers[0]["spans"] == [
        {"start": 0, "end": 5, "type": "food", "score": answers[0]["words"][0]["score"], "text": "eng22"}
    ]
    assert answers[1]["id"] == 7 and answers[1]["words"][0]["tag"] == "B-food"
    assert "does not follow" in answers[2]["error"] and "no text" in answers[3]["error"]


def test_what_only_labels_of_texts_have_is_refused_on_the_command_line(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("eng1\n", encoding="utf-8")
    found = CliRunner().invoke(cli.app, ["predict", str(trained), str(tmp_path / "lines.txt"), "--top", "2"])
    assert found.exit_code == 2 and "--top: is for labels of whole texts" in found.stderr


def test_what_is_for_labels_of_whole_texts_is_refused(settings: Settings) -> None:
    for changed, named in (
        ({"training": {**settings["training"], "method": "probe"}}, "training.method: probe cannot learn task: tag"),
        ({"mixture": {"label_balance": 0.5}}, "mixture.label_balance"),
    ):
        with pytest.raises(InputError, match=named):
            checks.prepare(build({**settings, **changed}))


def test_masked_words_are_filled_in_beside_tags(settings: Settings) -> None:
    settings = {**settings, "techniques": ["mlm"], "training": {**settings["training"], "epochs": 6}}
    checks.prepare(build(settings))
    run, losses = fitted(settings)
    assert np.isfinite(losses).all()
    found = evaluate.predict(run.network, run.setup.task, run.setup.tables("test"), run.inputs("float32"))
    assert found["eng_Latn"].score > 0.3


def test_what_has_not_learned_of_words_yet_refuses_by_name(settings: Settings, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="task: tag: shots are of labels of whole texts"):
        sweep.sweep(build(settings), [1], 1)
    with pytest.raises(InputError, match="which is not exported; serve the bundle itself: `xlt serve"):
        export.export(trained, tmp_path / "artefact")
    for measured in (geometry.of_bundle, anchors.of_bundle):
        with pytest.raises(InputError, match="it answers for words, and this is of whole texts"):
            measured(trained, (), geometry.Asked() if measured is geometry.of_bundle else None, lambda event: None)


def searched(settings: Settings, **asked: Any) -> Settings:
    retrained = {"seeds": 1, "baselines": ["all_alpha_1"]}
    return {**settings, "search": {"space": {"sources": {"at_most": 1}}, "retraining": retrained, **asked}}


BY_FINE_TUNING = {"screening": {"trials": 0}, "selection": {"languages": "sources"}}


def test_a_search_that_wants_probes_of_words_is_refused_and_the_way_out_works(settings: Settings) -> None:
    corpus = loaders.load(build(settings).corpus)
    with pytest.raises(InputError) as error:
        prepare.check(space.build(searched(settings, selection={"compare_oracle": True})), corpus)
    for key in ("screening.trials", "selection.languages", "selection.compare_oracle"):
        assert f"search.{key}: " in str(error.value)
    assert str(error.value).count("(task: tag is learned by fine-tuning alone)") == 3
    prepare.check(space.build(searched(settings, **BY_FINE_TUNING)), corpus)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_search_chooses_by_f1_and_says_so_everywhere(settings: Settings, tmp_path: Path) -> None:
    settings = settings | {"tracking": {"uri": f"sqlite:///{tmp_path / 'xlt.db'}", "flush_seconds": 120}}
    asked = {**BY_FINE_TUNING, "fine_tuning": {"trials": 2, "concurrent": 1}}
    data = searched(settings, **asked)
    called = tune(write(data, tmp_path / "tiny.yaml"))
    head, *rest = called.table.splitlines()
    assert "mean dev F1 over the mix's own languages" in head and "accuracy" not in called.table
    assert any(line.startswith("Retrained, test F1 in %") for line in rest)
    assert "), mean F1,\n" in (called.folder / "chosen.yaml").read_text(encoding="utf-8")
    page = (called.folder / "search.html").read_text(encoding="utf-8")
    assert "Test F1 in %" in page and "Map of dev F1 by mix and language" in page and "ccuracy" not in page
    with (called.folder / "search.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    trials = called.tuned().values()
    assert len(rows) == len(trials) == 2
    for row, line in zip(rows, trials, strict=True):
        assert {code: float(row[f"dev/f1/{code}"]) for code in settings["sources"]} == line["accuracy"]
    again = tune(called.config)
    assert again.table == called.table and "starting Ray" not in again.printed


def test_the_page_of_a_run_speaks_of_words_and_of_its_own_metric(settings: Settings, tmp_path: Path) -> None:
    run, _ = fitted(settings)
    found = evaluate.predict(run.network, run.setup.task, run.setup.tables("test"), run.inputs("float32"))
    scores = metrics.score(found, run.setup.corpus.labels, Roles(run.experiment.sources), 200, 0, "tag")
    history = [{"epoch": 1, "step": 1, "train/epoch_loss": 1.0, "dev/f1": 0.5}]
    files = report.write(tmp_path, scores, run.experiment, {}, history, {})
    text = " ".join(files["report.html"].read_text(encoding="utf-8").split())
    for there in ("A finder of spans of 2 types", "its F1 is", "F1 in each language", "model.tag(", "% of the words"):
        assert there in text
    for absent in ("model.predict", "min_confidence", "right label", "Accuracy in each language"):
        assert absent not in text
    head = files["scores.tsv"].read_text(encoding="utf-8").split("\n")[0].split("\t")
    assert {"f1", "f1_low", "f1_high", "accuracy", "transfer_gap"} <= {*head}
