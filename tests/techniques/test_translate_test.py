"""Translate-test: who is read in translation, what it is estimated on, and how readings are weighed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_catalogue import parallel_corpus, run_of

from xlt_ray import techniques
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.predictions import load_predictions
from xlt_ray.inference import adapt, bundle
from xlt_ray.inference.bundle import Bundle
from xlt_ray.languages import lexicon
from xlt_ray.model import network as networks
from xlt_ray.runs import measure, run
from xlt_ray.techniques.technique import Material, Score
from xlt_ray.techniques.translate_test import agreement
from xlt_ray.training import checks, frozen, loop
from xlt_ray.training.setup import Setup
from xlt_ray.translation import induced

Settings = dict[str, Any]
__all__ = ["parallel_corpus"]
SWAHILI = ["swh4 swh5 swh6", "swh41 swh42"]


@pytest.fixture
def settings(tiny_settings: Settings, parallel_corpus: Path) -> Settings:
    changed = copy.deepcopy(tiny_settings)
    changed["corpus"]["path"] = str(parallel_corpus)
    changed |= {"sources": ["eng_Latn"], "techniques": [{"translate_test": {"scores": [0.5, 0.1]}}, "centre"]}
    changed["training"] |= {"epochs": 1}
    return changed


def translated(settings: Settings, **parameters: Any) -> Settings:
    return {**settings, "techniques": [{"translate_test": {"scores": [0.5, 0.1], **parameters}}, "centre"]}


def setup_of(settings: Settings) -> Setup:
    experiment = build(settings)
    return Setup.of(experiment, loaders.load(experiment.corpus))


def trained(settings: Settings) -> tuple[Bundle, Setup]:
    run = run_of(build(settings))
    loop.fit(run)
    made = Bundle(
        run.network.eval(), run.tokenize, run.setup.corpus.labels, run.experiment, None, readings=run.setup.readings
    )
    return made, run.setup


def test_targets_are_read_word_by_word_and_sources_as_they_stand(settings: Settings) -> None:
    setup = setup_of(settings).read()
    assert setup.readings is not None
    assert setup.readings.keys("eng_Latn") == ["eng_Latn"]
    original, _, last = setup.readings.texts(SWAHILI[:1], "swh_Latn")
    assert original == SWAHILI[:1] and last == ["eng4 eng5 eng6"]
    assert setup.build().network.languages == (
        *setup.languages, *setup.readings.keys("hin_Deva")[1:], *setup.readings.keys("swh_Latn")[1:]
    )  # fmt: skip


def test_train_rows_are_drawn_as_they_stand(settings: Settings) -> None:
    setup = setup_of(settings)
    assert setup.read().tables("train")["eng_Latn"].equals(setup.tables("train")["eng_Latn"])
    assert not setup.prepare_techniques(lambda done, total: None)


def test_what_is_estimated_is_read_by_a_lexicon_that_has_not_seen_it(settings: Settings) -> None:
    setup = setup_of(settings).read()
    assert setup.readings is not None
    rows = setup.material.texts["swh_Latn"]
    unseen = setup.readings.unseen["swh_Latn"]
    assert 0 < unseen.sum() < len(unseen) / 2
    for key, table in setup.material.to_estimate("swh_Latn", rows).items():
        if key == "swh_Latn":
            assert table.equals(rows), "no lexicon is needed to read a text as it stands"
            continue
        assert table["id"].to_pylist() == rows.filter(pa.array(unseen))["id"].to_pylist(), key
        # swhrow17 stands in row 17 alone, so a lexicon that has not seen that row cannot know it
        assert not any("engrow" in text for text in table["text"].to_pylist()), key
    assert "engrow" in setup.readings.texts(rows["text"].to_pylist()[:1], "swh_Latn")[-1][0]


def test_no_label_of_a_target_and_no_test_row_changes_how_texts_are_read(settings: Settings) -> None:
    experiment = build(settings)
    corpus = loaders.load(experiment.corpus)
    splits = {split: dict(tables) for split, tables in corpus.splits.items()}
    for code in ("swh_Latn", "hin_Deva"):
        for split in ("train", "dev"):
            table = splits[split][code]
            turned = pa.array(np.roll(table["label"].to_numpy(), 1), pa.int32())
            splits[split][code] = table.set_column(table.schema.get_field_index("label"), "label", turned)
        splits["test"][code] = splits["test"][code].slice(0, 3)
    one, other = (Setup.of(experiment, each).read().readings for each in (corpus, replace(corpus, splits=splits)))
    assert one is not None and other is not None
    for code in ("swh_Latn", "hin_Deva"):
        assert one.texts(SWAHILI, code) == other.texts(SWAHILI, code)


def test_lexicons_are_induced_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = setup_of(settings).read().readings
    monkeypatch.setattr(lexicon, "induce_tables", None)
    again = setup_of(settings).read().readings
    assert first is not None and again is not None
    assert again.texts(SWAHILI, "swh_Latn") == first.texts(SWAHILI, "swh_Latn")


def test_it_predicts_the_mean_of_the_logits_of_all_readings(settings: Settings) -> None:
    made, setup = trained(settings)
    assert setup.readings is not None
    inputs = evaluate.Inputs(made.tokenize, "float32")
    tables = {"swh_Latn": setup.corpus.table("test", "swh_Latn")}
    found = evaluate.predict(made.network, made.task, tables, inputs, readings=setup.readings)["swh_Latn"]
    scores = evaluate.score(made.network, made.task, setup.readings.tables(tables), inputs)
    mean = np.mean([scores[key] for key in setup.readings.keys("swh_Latn")], axis=0)
    assert found.predicted.tolist() == mean.argmax(1).tolist()
    texts = tables["swh_Latn"]["text"].to_pylist()
    answers = made.probabilities(texts, languages=["swh_Latn"] * len(texts))
    np.testing.assert_allclose(answers, torch.tensor(mean).softmax(-1).numpy(), atol=1e-5)


def test_centring_keeps_a_mean_for_every_reading(settings: Settings) -> None:
    made, setup = trained(settings)
    shift: Any = made.network.steps["centre"].get_buffer("shift")
    rows = [shift[made.network.index(key)] for key in ("swh_Latn", "swh_Latn/1", "swh_Latn/2")]
    assert not torch.equal(rows[0], rows[2])
    inputs = evaluate.Inputs(made.tokenize, "float32")
    read = setup.material.to_estimate("swh_Latn", setup.material.texts["swh_Latn"])
    features = evaluate.embed(made.network, read, inputs)
    origin = made.network.steps["centre"].get_buffer("origin").numpy()
    for key, row in zip(read, rows, strict=True):
        np.testing.assert_allclose(row.numpy() + origin, features[key].mean(0), atol=1e-4)
    plain = [shift[made.network.index(code)] for code in setup.languages]
    np.testing.assert_allclose(
        shift[-1], torch.stack(plain).mean(0), atol=1e-5
    )  # an unknown language: no reading counts


def test_a_bundle_answers_as_before_it_was_saved(settings: Settings, tmp_path: Path) -> None:
    made, _ = trained(settings)
    bundle.save(tmp_path / "bundle", made, networks.build(made.experiment.network, 3, 0).identity)
    again = bundle.load(tmp_path / "bundle")
    for code in ("eng_Latn", "swh_Latn", "hin_Deva", "xxx_Latn", None):
        one, other = (model.probabilities(SWAHILI, languages=[code] * 2) for model in (made, again))
        assert np.array_equal(one, other), code
    (file,) = (tmp_path / "bundle").glob("readings-*.json")
    file.write_text(file.read_text().replace("eng_Latn", "fra_Latn"))
    with pytest.raises(InputError, match=r"readings-.*json: not the file that was saved"):
        bundle.load(tmp_path / "bundle")


def test_a_language_is_added_with_its_lexicon(settings: Settings, tmp_path: Path) -> None:
    made, _ = trained({**settings, "targets": ["swh_Latn"]})
    folder = tmp_path / "bundle"
    bundle.save(folder, made, networks.build(made.experiment.network, 3, 0).identity)
    texts = tmp_path / "hindi.txt"
    texts.write_text("".join(f"hin{i} hin{i + 1} hin{i + 30}\n" for i in range(29)))
    words = tmp_path / "words.tsv"
    words.write_text("".join(f"hin{i}\teng{i}\t0.9\n" for i in range(60)))
    as_it_stands = adapt.adapt(folder, "hi", texts)
    assert as_it_stands.new and as_it_stands.languages == 3 and as_it_stands.read == "original"
    found = adapt.adapt(folder, "hi", texts, words)
    assert not found.new and found.languages == 3 and found.read == "original + 2 word-by-word English readings"
    again = bundle.load(folder)
    assert again.readings is not None and again.readings.texts(["hin7"], "hin_Deva") == [["hin7"], ["eng7"], ["eng7"]]
    assert {"hin_Deva", "hin_Deva/1", "hin_Deva/2"} <= set(again.network.languages)
    assert len(list(folder.glob("readings-*"))) == len(list(folder.glob("steps-*"))) == 1
    for code in ("eng_Latn", "swh_Latn", None):
        one, other = (model.probabilities(SWAHILI, languages=[code] * 2) for model in (made, again))
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_lexicon_is_refused_where_texts_are_read_as_they_stand(settings: Settings, tmp_path: Path) -> None:
    made, _ = trained({**settings, "techniques": ["centre"]})
    bundle.save(tmp_path / "bundle", made, networks.build(made.experiment.network, 3, 0).identity)
    texts = tmp_path / "hindi.txt"
    texts.write_text("".join(f"hin{i} hin{i + 1}\n" for i in range(29)))
    with pytest.raises(InputError, match="--lexicon .*: the bundle reads texts as they stand"):
        adapt.adapt(tmp_path / "bundle", "hi", texts, tmp_path / "words.tsv")


def test_dictionaries_stand_in_for_parallel_rows(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "swh_Latn-eng_Latn.tsv").write_text("swh4\teng4\nswh5\teng5\t0.2\n")
    for where in (str(tmp_path), str(tmp_path / "{language}-{into}.tsv")):
        chosen = translated(settings, lexicons=where)
        checks.prepare(build(chosen))
        readings = setup_of(chosen).read().readings
        assert readings is not None
        assert readings.texts(["swh4 swh5"], "swh_Latn") == [["swh4 swh5"], ["eng4 swh5"], ["eng4 eng5"]]
        assert readings.keys("hin_Deva") == ["hin_Deva"], "there is no file of it"
        table = setup_of(chosen).material.texts["swh_Latn"]
        assert readings.to_estimate("swh_Latn", table)["swh_Latn"].num_rows == table.num_rows


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scores": []}, r"translate_test\.scores"),
        ({"scores": [0]}, "a score is above 0"),
        ({"scores": [0.1, 0.1]}, "stands there twice"),
        ({"weights": [1, 0, 1]}, "above 0"),
        ({"weights": [1, 1]}, "2 of them for 3 readings"),
        ({"weights": "agree"}, r"translate_test\.weights"),
        ({"lexicons": "/no/such/folder"}, "is no folder"),
        ({"into": "tha_Thai"}, "no target has a lexicon into tha_Thai"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: Settings, parameters: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checks.prepare(build(translated(settings, **parameters)))


def test_two_ways_to_read_are_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(techniques.load("few_shot"), "readings", lambda self, material: None)
    with pytest.raises(InputError, match="translate_test and few_shot: one may say how texts are read"):
        techniques.build(build({**settings, "techniques": ["translate_test", "few_shot"]}))


def test_a_language_without_spaces_is_read_as_it_stands() -> None:
    tables = {
        code: pa.table({"id": [str(i) for i in range(200)], "text": ["a b"] * 200})
        for code in ("tha_Thai", "bod_Tibt", "eng_Latn")
    }
    assert "without spaces" in (induced.fault(("tha_Thai", "eng_Latn"), tables) or "")
    assert induced.fault(("bod_Tibt", "eng_Latn"), tables) is None, "syllables are words enough to be translated"
    assert "without spaces" in (induced.fault(("eng_Latn", "bod_Tibt"), tables) or "")


def test_agreement_weighs_what_predicts_and_not_what_does_not() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(4, size=200)
    good = 3 * np.eye(4)[wanted] + rng.normal(0, 1, (200, 4))
    noise = rng.normal(0, 3, (200, 4))
    alone, useless = agreement(np.stack([good, noise]), wanted)
    assert alone > 0.9 and alone + useless == pytest.approx(1)
    alike = agreement(np.stack([good, good]), wanted)
    assert alike == pytest.approx((0.5, 0.5), abs=1e-3)
    few = agreement(np.stack([good, noise])[:, :3], wanted[:3])
    assert few[1] > useless, "few rows decide less"


def test_agreement_is_asked_of_a_head_that_has_not_seen_the_rows(settings: Settings) -> None:
    settings = translated(settings, weights="agreement")
    settings["training"] |= {"method": "probe", "probe_strengths": [100.0]}
    experiment = build(settings)
    setup = Setup.of(experiment, loaders.load(experiment.corpus)).read()
    assert setup.readings is not None
    asked = {**frozen.training_tables(setup), **frozen.texts(setup)}
    net = setup.build().network
    rng = np.random.default_rng(0)  # features of noise, which can only be remembered
    known = {
        text: rng.normal(size=32).astype(np.float32) for table in asked.values() for text in table["text"].to_pylist()
    }
    found = {name: np.stack([known[text] for text in table["text"].to_pylist()]) for name, table in asked.items()}
    frozen.calibrate(setup, net, found)
    rows = frozen.Frozen.of(frozen.training_tables(setup), found, 3, net)
    fitted = frozen.choose(rows, experiment)
    told: dict[str, np.ndarray] = {}

    class Listening(type(setup.techniques[0])):  # type: ignore[misc]
        def weigh(self, material: Material, score: Score) -> Any:
            told.update(score(self.texts(material)))
            return super().weigh(material, score)

    listening = Listening(**setup.techniques[0].model_dump())
    weighed = frozen.weigh(replace(setup, techniques=(listening, *setup.techniques[1:])), net, rows, found, fitted)
    table = setup.techniques[0].texts(setup.material)["eng_Latn"]
    labels = dict(
        zip(
            *(rows_.to_pylist() for rows_ in setup.corpus.table("train", "eng_Latn").select(["id", "label"])),
            strict=True,
        )
    )
    gold = np.array([labels[one] for one in table["id"].to_pylist()])
    remembered = fitted.predict(rows.features["train/eng_Latn"]) == rows.labels["train/eng_Latn"]
    assert remembered.mean() > (told["eng_Latn"].argmax(1) == gold).mean() + 0.15
    assert weighed.readings is not None and set(weighed.readings.by_language) == {"swh_Latn", "hin_Deva"}
    for weights in weighed.readings.by_language.values():
        assert sum(weights) == pytest.approx(1) and min(weights) > 0


def test_a_fine_tuned_model_is_not_asked_to_weigh(settings: Settings) -> None:
    with pytest.raises(InputError, match=r"translate_test\.weights: agreement .* set training\.method to probe"):
        checks.prepare(build(translated(settings, weights="agreement")))


def test_without_the_original_a_language_keeps_a_mean_of_its_texts_as_they_stand(settings: Settings) -> None:
    made, setup = trained(translated(settings, keep_original=False))
    assert setup.readings is not None and setup.readings.keys("swh_Latn") == ["swh_Latn/1", "swh_Latn/2"]
    features = evaluate.embed(
        made.network, {"swh_Latn": setup.material.texts["swh_Latn"]}, evaluate.Inputs(made.tokenize, "float32")
    )
    step = made.network.steps["centre"]
    mean = step.get_buffer("shift")[made.network.index("swh_Latn")] + step.get_buffer("origin")
    np.testing.assert_allclose(mean.numpy(), features["swh_Latn"].mean(0), atol=1e-4)


def test_a_target_without_a_lexicon_is_named_and_owes_nothing_to_parallel_text(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "swh_Latn-eng_Latn.tsv").write_text("swh4\teng4\n")
    chosen = translated(settings, lexicons=str(tmp_path))
    with pytest.warns(UserWarning, match=r"1 of 2 targets are read as they stand\n  hin_Deva: no file of it"):
        checks.prepare(build(chosen))
    rungs = setup_of(chosen).read().supervision
    assert rungs == {"swh_Latn": "+ parallel text", "hin_Deva": "+ unlabelled text"}


def test_a_dictionary_of_the_wrong_direction_or_of_nothing_is_refused(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "swh_Latn-eng_Latn.tsv"
    for content, message in (
        ("eng_Latn\tswh_Latn\neng4\tswh4\n", "its header names eng_Latn for swh_Latn"),
        ("", "is empty"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            checks.prepare(build(translated(settings, lexicons=str(tmp_path))))


def test_heads_that_tell_languages_apart_do_not_count_readings(settings: Settings) -> None:
    run = run_of(build({**settings, "techniques": [*settings["techniques"], "language_id"]}))
    term: Any = run.setup.techniques[-1].loss_term(run.network, run.setup.material, lambda tables: {})
    assert term.layer.out_features == 3 < len(run.network.languages)


def test_no_lexicon_of_a_source_is_added(settings: Settings, tmp_path: Path) -> None:
    made, _ = trained(settings)
    bundle.save(tmp_path / "bundle", made, networks.build(made.experiment.network, 3, 0).identity)
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"eng{i} eng{i + 1}\n" for i in range(29)))
    with pytest.raises(InputError, match="eng_Latn is a source"):
        adapt.adapt(tmp_path / "bundle", "en", texts, tmp_path / "words.tsv")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["probe", pytest.param("fine_tune", marks=pytest.mark.long)])
def test_a_run_on_ray_measures_what_its_bundle_answers(
    settings: Settings, tmp_path: Path, method: str, local_ray: None
) -> None:
    weights = "agreement" if method == "probe" else []
    settings = translated(settings, weights=weights) | {"storage": str(tmp_path / "runs")}
    settings["tracking"] = {"uri": "off"}
    settings["corpus"]["cache_dir"] = str(tmp_path / "cache")
    settings["training"] |= {"method": method, "epochs": 2}
    settings["resources"] = {"workers": 2}
    outcome = run.run(build(settings))
    made = bundle.load(outcome.folder.local / "bundle")
    assert made.readings is not None and set(made.readings.by_language) <= {"hin_Deva", "swh_Latn"}
    predicted = load_predictions(outcome.folder.local / "predictions.npz")
    corpus = loaders.load(outcome.experiment.corpus)
    for code in ("eng_Latn", "swh_Latn", "hin_Deva"):
        texts = corpus.table("test", code)["text"].to_pylist()
        answers = made.probabilities(texts, languages=[code] * len(texts))
        same = answers.argmax(1) == predicted[code].predicted
        assert same.mean() > 0.9, "a close call may differ between precisions"
    again = measure.measure(made, outcome.experiment, lambda event: None)
    for code, one in again.languages.items():
        assert one.accuracy == pytest.approx(outcome.scores.languages[code].accuracy, abs=0.1)
        assert one.role == outcome.scores.languages[code].role


def apart(folder: Path, parallel_corpus: Path, ids: dict[str, Any]) -> Settings:
    """Settings of the corpus with other ids in train, `ids[language](row)`, and its own rows as corpus.parallel."""
    columns: dict[str, list[str]] = {}
    for language in ("eng_Latn", "swh_Latn", "hin_Deva"):
        (folder / "data" / language).mkdir(parents=True, exist_ok=True)
        for split in ("train", "dev", "test"):
            text = (parallel_corpus / language / f"{split}.tsv").read_text(encoding="utf-8")
            head, *lines = text.splitlines()
            if split == "train":
                columns[language] = [line.split("\t")[1] for line in lines]
                renamed = ids.get(language, str)
                lines = [f"{renamed(row)}\t{line.partition(chr(9))[2]}" for row, line in enumerate(lines)]
            (folder / "data" / language / f"{split}.tsv").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    rows = zip(*columns.values(), strict=True)
    (folder / "beside.tsv").write_text("\n".join(["\t".join(columns), *map("\t".join, rows)]), encoding="utf-8")
    return {"path": str(folder / "data"), "parallel": str(folder / "beside.tsv")}


def test_parallel_text_of_its_own_stands_in_for_rows_of_equal_ids(
    settings: Settings, parallel_corpus: Path, tmp_path: Path
) -> None:
    ids = {code: (lambda row, code=code: f"{code}{row}") for code in ("swh_Latn", "hin_Deva")}
    given = apart(tmp_path, parallel_corpus, ids)
    alone = {**settings, "corpus": {**settings["corpus"], "path": given["path"]}}
    with pytest.raises(InputError, match="no target has a lexicon into eng_Latn; .*corpus.parallel"):
        checks.prepare(build(alone))
    both = {**settings, "corpus": {**settings["corpus"], **given}}
    with pytest.raises(InputError, match="agreement compares rows of targets .* no target has 80 rows"):
        checks.prepare(build({**translated(both, weights="agreement"), "training": {"method": "probe"}}))
    setup = checks.prepare(build(both)).read()
    assert setup.readings is not None
    assert setup.readings.texts(SWAHILI[:1], "swh_Latn")[-1] == ["eng4 eng5 eng6"]
    # the parallel text is that of the corpus, so a lexicon that has seen it has seen the corpus
    unseen = setup.readings.unseen["swh_Latn"]
    assert 0 < unseen.sum() < len(unseen) / 2
    estimated = setup.material.to_estimate("swh_Latn", setup.material.texts["swh_Latn"])
    assert not any("engrow" in text for text in estimated["swh_Latn/2"]["text"].to_pylist())
    assert min(setup.readings.match_rates.values()) > 0.9
    assert set(setup.supervision.values()) == {"+ parallel text"}


def test_rows_that_share_an_id_and_nothing_else_are_read_as_they_stand(
    settings: Settings, parallel_corpus: Path, tmp_path: Path
) -> None:
    order = np.random.default_rng(3).permutation(120)

    def moved(row: int) -> str:
        return str(order[row])

    given = apart(tmp_path, parallel_corpus, {"hin_Deva": moved})
    one = {**settings, "corpus": {**settings["corpus"], "path": given["path"]}}
    setup = checks.prepare(build(one))
    with pytest.warns(UserWarning, match=r"1 of 2 languages are read as they stand.*\n  rows of hin_Deva and eng_Latn"):
        setup = setup.read()
    assert setup.readings is not None
    assert setup.readings.languages == ("swh_Latn",)
    assert setup.supervision == {"swh_Latn": "+ parallel text", "hin_Deva": "+ unlabelled text"}
    none = apart(tmp_path / "none", parallel_corpus, {"hin_Deva": moved, "swh_Latn": moved})
    with pytest.raises(
        InputError, match=r"no language has rows that translate those of eng_Latn; leave out corpus\.id"
    ):
        checks.prepare(build({**settings, "corpus": {**settings["corpus"], "path": none["path"]}})).read()
    code_switch = {**settings, "techniques": ["code_switch"]}
    switching = checks.prepare(build({**code_switch, "corpus": one["corpus"]}))
    with pytest.warns(UserWarning, match="code_switch: left out 1 of 2 lexicons\n  eng_Latn -> hin_Deva: rows of"):
        switching.prepare_techniques(lambda done, total: None)
    with pytest.warns(UserWarning, match="translate_train: 1 of 2 languages get no translations\n  hin_Deva: rows of"):
        added = checks.prepare(build({**settings, "techniques": ["translate_train"], "corpus": one["corpus"]}))
    assert dict(added.added["translate_train"]) == {"swh_Latn": 120}
    with pytest.raises(InputError, match=r"translate_train\.languages: hin_Deva: no lexicon from eng_Latn"):
        named = [{"translate_train": {"languages": ["hi"]}}]
        checks.prepare(build({**settings, "techniques": named, "corpus": one["corpus"]}))
