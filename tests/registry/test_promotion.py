"""Promotion: the alias moves last, only to what passed, or by force that is recorded; interrupted, it goes on."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests import registered
from xlt_ray import cli, config
from xlt_ray.corpora.loaders import load_corpus
from xlt_ray.errors import InputError, RegistryError
from xlt_ray.evaluation.paired.gate import Rules
from xlt_ray.export import agreement
from xlt_ray.inference import artefact, tagging
from xlt_ray.inference.bundle import load
from xlt_ray.registry import fetch, promotion, publish, rivals, versions
from xlt_ray.runs import measure
from xlt_ray.tracking import mlflow_run

GOOD = {"eng_Latn": 0.8, "deu_Latn": 0.8, "swh_Latn": 0.8, "hin_Deva": 0.8}
BETTER = GOOD | {"eng_Latn": 0.9}
WORSE = BETTER | {"swh_Latn": 0.2}


class Home:
    """An empty registry and runs to fill it with; each test names its own registered model."""

    def __init__(self, folder: Path, encoder: Path, corpus: Path) -> None:
        self.folder, self.uri, self.cache, self.corpus = folder, registered.database(folder), folder / "cache", corpus
        self.data = registered.settings(encoder, corpus, folder / "corpus")
        self.made = registered.made_bundle(folder / "made", self.data)
        for name, right in {"good": GOOD, "better": BETTER, "worse": WORSE}.items():
            registered.finished(folder / name, self.uri, self.made, registered.answers(self.data, right))

    def promote(self, run: str, name: str, **asked: Any) -> promotion.Outcome:
        where = run if run.startswith("models:") else str(self.folder / run)
        asked = {"name": name, "uri": self.uri} | asked

        def of(kind: Any) -> Any:
            return kind(**{key: asked.pop(key) for key in kind.__dataclass_fields__ if key in asked})

        address, rules, checked_on = of(promotion.Address), of(Rules), of(publish.CheckRows)
        return promotion.promote(where, address, rules, checked_on, self.cache, **asked)

    def champion(self, name: str) -> str | None:
        found = versions.aliased(name, "champion", self.uri)
        return found.version if found else None

    def register(self, run: str, name: str, champion: bool = False) -> versions.Version:
        version = promotion.find(str(self.folder / run), name, self.uri)
        if champion:
            versions.move_alias(name, "champion", version.version, self.uri)
        return version


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tiny_corpus: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_run, "_ask", lambda *question: None)  # tests/tracking/test_tracking.py shows what it does
        yield Home(tmp_path_factory.mktemp("home"), tiny_encoder, tiny_corpus)


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the two fresh processes, seconds each, that another test of this file shows at work."""
    monkeypatch.setattr(publish, "trial", lambda *question: None)


def test_a_first_promotion_interrupted_at_its_end_goes_on_and_is_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: str) -> None:
        raise KeyboardInterrupt

    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(versions, "move_alias", interrupted)
        with pytest.raises(KeyboardInterrupt):
            home.promote("good", "first", on_event=registered.stages(seen))
    assert seen == ["register", "check", "export", "agree", "upload", "ask", "alias"]
    assert home.champion("first") is None
    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(publish, "trial", lambda *question: None)
        found = home.promote("good", "first", on_event=registered.stages(seen))
    assert seen == ["register", "check", "ask", "alias"]  # what was made and passed is not made again
    assert found.promoted and found.reasons == () and found.gate is None
    assert "first has no champion yet: nothing to compare with" in found.notes
    assert home.champion("first") == "1"
    version = versions.resolve("models:/first@champion", home.uri)
    assert version.tags["xlt.promoted_from.champion"] == "none"
    assert version.tags["xlt.serving"].startswith("serving/")
    assert "xlt.forced.champion" not in version.tags
    served = fetch.fetch("models:/first@champion", home.uri, cache=home.cache)
    made = artefact.read(served.folder)
    assert made.checks[made.precisions[0]]["passed"] is True
    assert len(registered.client(home.uri).search_model_versions("name = 'first'")) == 1


def test_a_worse_run_is_refused_with_its_table_and_nothing_moves(home: Home) -> None:
    home.register("good", "refused", champion=True)
    asked = ["promote", str(home.folder / "worse"), "--name", "refused", "--cache", str(home.cache)]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 1, done.output
    assert "Swahili" in done.output and "-60.0" in done.output and "falls" in done.output
    assert "refused: swh_Latn: falls by 60.0 points, more than 2" in done.output
    assert "models:/refused@champion still means version 1; version 2 stays registered" in done.output
    assert home.champion("refused") == "1"
    version = versions.resolve("models:/refused/2", home.uri)
    assert set(version.tags) == {"xlt.bundle"}
    client = registered.client(home.uri)
    figures = client.get_run(version.run_id).data.metrics
    assert figures["gate/difference/swh_Latn"] == pytest.approx(-0.6)
    assert figures["gate/mean_difference"] == pytest.approx(-0.125, abs=0.01)
    assert (figures["gate/passed"], figures["gate/champion/eng_Latn"]) == (0, 0.8)
    files = [file.path for file in client.list_artifacts(version.run_id, "gate/against-1")]
    assert files == ["gate/against-1/gate.json", "gate/against-1/gate.tsv"]
    history = client.get_metric_history(version.run_id, "gate/mean_difference")
    home.promote("worse", "refused")
    assert client.get_metric_history(version.run_id, "gate/mean_difference") == history


def test_force_is_recorded_and_a_rollback_goes_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(publish, "trial", lambda *question: None)
        home.promote("good", "forced")
        found = home.promote("worse", "forced", force=True)
    assert found.promoted and home.champion("forced") == "2"
    assert "swh_Latn: falls by 60.0 points, more than 2" in found.reasons
    tags = versions.resolve("models:/forced@champion", home.uri).tags
    assert tags["xlt.promoted_from.champion"] == "1"
    assert tags["xlt.forced.champion"] == "; ".join(found.reasons)
    assert json.loads(tags["xlt.gate.champion"])["passed"] is False
    said = promotion.rollback("forced", uri=home.uri, cache=home.cache)
    assert said == "models:/forced@champion goes back from version 2 to version 1"
    assert home.champion("forced") == "1"
    assert versions.resolve("models:/forced/2", home.uri).tags["xlt.rolled_back.champion"] == "to 1"
    with pytest.raises(InputError, match="models:/forced/1: was not promoted from another version"):
        promotion.rollback("forced", uri=home.uri, cache=home.cache)
    with pytest.raises(InputError, match="no such alias"):
        promotion.rollback("forced", "rival", home.uri)


@pytest.mark.usefixtures("untried")
def test_a_better_run_is_promoted_under_each_alias_apart(home: Home) -> None:
    for run in ("good", "better"):
        assert home.promote(run, "aliases").promoted
    again = home.promote("models:/aliases/2", "aliases")
    assert again.promoted and "is the champion already" in again.notes[0]
    assert home.promote("models:/aliases/1", "aliases", alias="rival").promoted
    assert home.promote("models:/aliases/2", "aliases", alias="rival").promoted
    asked = ["promote", "models:/aliases/2", "--uri", home.uri, "--cache", str(home.cache)]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert "models:/aliases@champion means version 2, as it did\n" in done.output
    assert "float32 agrees on 100.00% of 180 rows" in done.output
    tags = versions.resolve("models:/aliases/2", home.uri).tags
    assert (tags["xlt.promoted_from.champion"], tags["xlt.promoted_from.rival"]) == ("1", "1")
    gate = json.loads(tags["xlt.gate.champion"])
    assert (gate["against"], gate["passed"], gate["languages"]) == ("1", True, 4)


@pytest.mark.usefixtures("untried")
def test_an_alias_that_training_moved_is_held_against_the_version_before(home: Home) -> None:
    """`tracking.alias` moves it without any gate; a promotion makes up for that and knows the way back."""
    for run in ("good", "worse"):
        version = home.register(run, "trained", champion=True)
        versions.tag(version, {"xlt.alias": "champion"})
    found = home.promote("worse", "trained")
    assert not found.promoted and "swh_Latn: falls by 60.0 points, more than 2" in found.reasons
    assert "moved there by its training" in found.notes[0]
    assert home.champion("trained") == "2"
    assert home.promote("worse", "trained", force=True).promoted
    assert versions.resolve("models:/trained/2", home.uri).tags["xlt.promoted_from.champion"] == "1"


def test_only_served_languages_count_and_their_codes_may_be_of_any_kind(home: Home) -> None:
    champion = home.register("good", "served", champion=True)
    candidate = home.register("worse", "served")
    rules = Rules(("eng_Latn",))
    found, reasons = promotion._compared(candidate, champion, rules, home.cache, lambda event: None)
    assert found is not None and found.passed and not reasons
    with pytest.warns(UserWarning, match="klingon"):
        refused = home.promote("worse", "served", served=("en", "klingon"))
    assert refused.reasons == ("klingon: served, but the candidate was not measured in it",)


def test_other_labels_are_refused_by_name(home: Home) -> None:
    labels = ("sport", "food", "voyage")
    made = registered.made_bundle(home.folder / "renamed_made", home.data, labels=labels)
    registered.finished(home.folder / "renamed", home.uri, made, registered.answers(home.data, GOOD))
    home.register("good", "labels", champion=True)
    found = home.promote("renamed", "labels")
    assert not found.promoted and found.gate is None
    assert (
        "labels: the candidate's differ from the champion's: travel, voyage only in one of the two" in found.reasons[0]
    )


def test_a_champion_measured_on_other_rows_is_measured_anew(home: Home) -> None:
    """Its own answers on the candidate's rows are what is compared, where the rows of its run are others or gone."""
    other = registered.answers(home.data, {"eng_Latn": 1.0, "deu_Latn": 1.0})
    other["deu_Latn"] = type(other["deu_Latn"])(
        *(getattr(other["deu_Latn"], k)[:9] for k in ("gold", "predicted", "ids"))
    )
    registered.finished(home.folder / "elsewhere", home.uri, home.made, other)
    champion, candidate = home.register("elsewhere", "rows"), home.register("good", "rows")
    sides = rivals.predictions(candidate, champion, (), home.cache, lambda event: None)
    assert sides.served == ("deu_Latn", "eng_Latn")
    assert sides.champion["eng_Latn"].score == 1.0  # the same rows: taken from its run
    model = load(home.made)
    table = config.build(home.data) and load_corpus(model.experiment)[0].table("test", "deu_Latn")
    expected = model.probabilities(table["text"].to_pylist()).argmax(1)
    assert (sides.champion["deu_Latn"].predicted == expected).all() and len(expected) == 45
    registered.finished(home.folder / "bare", home.uri, home.made, None)
    sides = rivals.predictions(candidate, home.register("bare", "rows"), (), home.cache, lambda event: None)
    assert (sides.champion["deu_Latn"].predicted == expected).all() and len(sides.served) == 4


# the artefact


def checked(int8: bool, float32: bool) -> Any:
    return lambda *arguments, **options: {
        name: {
            "passed": passed,
            "agreement": 0.999 if passed else 0.97,
            "texts": 180,
            "reasons": [] if passed else ["5 of 180 rows get another label, more than 0.5%"],
        }
        for name, passed in (("int8", int8), ("float32", float32))
    }


@pytest.mark.usefixtures("untried")
def test_an_int8_that_does_not_agree_is_dropped_and_a_float32_refuses(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "check", checked(False, False))
    found = home.promote("good", "checks")
    assert not found.promoted and home.champion("checks") is None
    why = "5 of 180 rows get another label, more than 0.5%"
    assert found.reasons == (f"float32 is not the original: {why}",)
    assert "xlt.serving" not in versions.resolve("models:/checks/1", home.uri).tags
    monkeypatch.setattr(agreement, "check", checked(False, True))
    found = home.promote("good", "checks")
    assert found.promoted and found.artefact is not None and found.artefact.precisions == ("float32",)
    assert f"int8 is dropped and float32 served: {why}" in found.notes
    tags = versions.resolve("models:/checks/1", home.uri).tags
    agreed = "int8 agrees on 97.00% of 180 rows; float32 agrees on 99.90% of 180 rows"
    assert tags["xlt.checked"] == f"{agreed}; int8 is dropped and float32 served: {why}"
    kept = fetch.fetch("models:/checks@champion", home.uri, cache=home.cache)
    assert not list(Path(kept.folder).glob("*int8*"))


@pytest.mark.usefixtures("untried")
def test_fewer_rows_are_said_to_be_fewer_and_do_not_count_as_all_of_them(home: Home) -> None:
    asked = ["promote", str(home.folder / "good"), "--name", "sampled", "--cache", str(home.cache), "--rows", "10"]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    agreed = "float32 agrees on 100.00% of 40 rows drawn from 180 (95% interval from 91.2%)"
    assert agreed in done.output and "models:/sampled@champion now means version 1\n" in done.output
    tags = versions.resolve("models:/sampled/1", home.uri).tags
    assert agreed in tags["xlt.checked"]
    fewer = home.promote("good", "sampled", rows=5)
    assert "its artefact was made and checked before" in fewer.notes
    assert fewer.artefact is not None and fewer.artefact.checks["float32"]["texts"] == 40
    whole = home.promote("good", "sampled")
    assert whole.artefact is not None and whole.artefact.checks["float32"]["texts"] == 180
    assert "its artefact was made and checked before" not in whole.notes
    assert "its artefact was made and checked before" in home.promote("good", "sampled", rows=10).notes


def test_what_does_not_load_is_never_promoted_not_even_by_force(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(version: versions.Version, folder: Path, place: str) -> None:
        (folder / "tokenizer.json").write_text("{}")
        upload(version, folder, place)

    upload = versions.upload
    monkeypatch.setattr(versions, "upload", damaged)
    found = home.promote("good", "broken", force=True)
    assert not found.promoted and home.champion("broken") is None
    assert (
        "cannot be fetched: error: models:/broken/1: tokenizer.json is not the file that was logged" in found.reasons[0]
    )
    assert "xlt.serving" not in versions.resolve("models:/broken/1", home.uri).tags


@pytest.mark.usefixtures("untried")
def test_a_corpus_out_of_reach_is_refused_with_a_remedy(home: Home, tmp_path: Path) -> None:
    data = home.data | {"corpus": home.data["corpus"] | {"path": str(tmp_path / "corpus")}}
    shutil.copytree(home.corpus, tmp_path / "corpus")
    made = registered.made_bundle(tmp_path / "made", data)
    registered.finished(home.folder / "orphan", home.uri, made, registered.answers(data, GOOD))
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(InputError, match=r"the corpus is out of reach .*give texts to check on with --texts FILE"):
        home.promote("orphan", "orphan")
    assert home.champion("orphan") is None
    (tmp_path / "texts").write_text("eng1 eng2 eng3\n\nswh1 swh2\n" * 20)
    found = home.promote("orphan", "orphan", texts=tmp_path / "texts")
    assert found.promoted and not found.reasons
    by_force = home.promote("orphan", "unchecked", force=True)
    assert by_force.promoted and by_force.reasons == ("the artefact was not checked against the original",)
    assert by_force.artefact is not None and by_force.artefact.precisions == ("float32",)


# models of words

NER = {"eng_Latn": 0.9, "deu_Latn": 0.9, "swh_Latn": 0.9}
ASKED_BY_MLFLOW = mlflow_run._ask  # before the fixtures below leave it out


@pytest.fixture(scope="module")
def words(home: Home, tagged_corpus: Path) -> Home:
    """The same registry with runs of taggers: a good one, a worse one, and one whose predictions are gone."""
    found = copy.copy(home)
    corpus = home.data["corpus"] | {"path": str(tagged_corpus), "words": "words", "label": "tags"}
    found.data = home.data | {"task": "tag", "corpus": corpus}
    found.made = registered.made_bundle(home.folder / "words_made", found.data)
    for name, right in {"words": NER, "fewer_words": NER | {"swh_Latn": 0.3}, "unmeasured": None}.items():
        answers = right and registered.answers(found.data, right)
        registered.finished(home.folder / name, home.uri, found.made, answers)
    return found


def test_a_tagger_is_registered_promoted_and_served_from_its_bundle(
    words: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_run, "_ask", ASKED_BY_MLFLOW)
        found = words.promote("words", "ner", on_event=registered.stages(seen))
    assert found.promoted and found.reasons == () and words.champion("ner") == "1"
    assert seen == ["register", "check", "ask", "alias"]
    assert found.artefact is not None and found.artefact.answers and found.artefact.precisions == ()
    assert "xlt.serving" not in versions.resolve("models:/ner@champion", words.uri).tags
    served = Path(fetch.fetch("models:/ner@champion", words.uri, cache=words.cache).folder)
    assert artefact.bundle_digest(served) == artefact.bundle_digest(words.made)
    with pytest.raises(InputError, match="precision: int8 is of exported models"):
        fetch.fetch("models:/ner@champion", words.uri, fetch.Form(precision="int8"), words.cache)
    (tmp_path / "lines.txt").write_text("eng1 eng2\n", encoding="utf-8")
    asked = ["predict", "models:/ner@champion", str(tmp_path / "lines.txt"), "--uri", words.uri]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert [one["tag"] for one in json.loads(done.stdout)["words"]] == [
        one.tag for one in tagging.tag(load(words.made), ["eng1 eng2"])[0]
    ]


def test_a_worse_tagger_is_refused_by_its_f1_and_forced_and_rolled_back(
    words: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    words.register("words", "gated", champion=True)
    asked = ["promote", str(words.folder / "fewer_words"), "--name", "gated", "--cache", str(words.cache)]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 1, done.output
    f1 = [registered.answers(words.data, NER | {"swh_Latn": share})["swh_Latn"].score for share in (0.9, 0.3)]
    assert f"refused: swh_Latn: falls by {100 * (f1[0] - f1[1]):.1f} points, more than 2" in done.output
    assert "mean F1 over the served languages" in done.output and "accuracy" not in done.output
    version = versions.resolve("models:/gated/2", words.uri)
    figures = registered.client(words.uri).get_run(version.run_id).data.metrics
    assert figures["gate/candidate/swh_Latn"] == pytest.approx(f1[1])
    with monkeypatch.context() as patch:
        patch.setattr(publish, "trial", lambda *question: None)
        done = CliRunner().invoke(cli.app, [*asked, "--force"])
    assert done.exit_code == 0 and "bundle       served as it is; fetched back, it answers as before" in done.output
    assert words.champion("gated") == "2"
    asked_of: list[str] = []

    def trial(version: versions.Version, *others: object) -> str:
        asked_of.append(version.version)
        return "is gone"

    with monkeypatch.context() as patch:
        patch.setattr(publish, "trial", trial)
        with pytest.raises(RegistryError, match="models:/gated/1: is gone; the alias stays at version 2"):
            promotion.rollback("gated", uri=words.uri, cache=words.cache)
    assert asked_of == ["1"]
    promotion.rollback("gated", uri=words.uri, cache=words.cache)
    assert words.champion("gated") == "1"


def test_a_tagger_that_answers_otherwise_is_never_promoted(words: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    question = publish._question(load(words.made), {})[0]
    monkeypatch.setattr(publish, "_question", lambda *asked: (question, "O"))
    found = words.promote("words", "otherwise", force=True)
    assert not found.promoted and words.champion("otherwise") is None
    assert "where the bundle answers 'O'" in found.reasons[0]
    monkeypatch.setattr(publish, "make", lambda *others: pytest.fail("it is refused before anything is made"))
    with pytest.raises(InputError, match="--rows: of the check of an artefact, .*leave it out"):
        words.promote("words", "otherwise", rows=10)


@pytest.mark.usefixtures("untried")
def test_a_tagger_and_a_classifier_under_one_name_are_refused_and_the_way_out_works(words: Home) -> None:
    words.register("words", "mixed", champion=True)
    for run, name in (("good", "mixed"), ("words", "mixed_too")):
        words.register("good", "mixed_too", champion=True)
        found = words.promote(run, name)
        assert not found.promoted and found.gate is None and words.champion(name) == "1"
        assert "promote the folder of its run under another name (--name), or give another alias" in found.reasons[0]
    assert (
        "models:/mixed/2 learned classification, and models:/mixed/1 tag" in words.promote("good", "mixed").reasons[0]
    )
    assert words.promote("words", "mixed_too", alias="tagger").promoted


def test_a_tagger_measured_on_other_rows_is_measured_anew(words: Home) -> None:
    champion, candidate = words.register("unmeasured", "words_rows"), words.register("words", "words_rows")
    sides = rivals.predictions(candidate, champion, (), words.cache, lambda event: None)
    assert sides.metric == "f1" and sides.served == ("deu_Latn", "eng_Latn", "swh_Latn")
    model = load(words.made)
    experiment, tables = measure.rows(model, model.experiment)
    expected = measure.predict(model, experiment, tables, lambda event: None)
    for code, one in expected.items():
        assert np.array_equal(sides.champion[code].predicted, one.predicted)
        assert np.array_equal(sides.champion[code].ratios, one.ratios)
        order = np.arange(one.rows)[::-1]
        ends, parts = np.cumsum(one.sizes), [one.gold, one.predicted]
        gold, predicted = (np.concatenate([part[ends[i] - one.sizes[i] : ends[i]] for i in order]) for part in parts)
        turned = type(one)(gold, predicted, np.asarray(one.ids)[order], None, one.sizes[order], one.ratios[order])
        assert rivals._same(one, turned) and rivals._same(turned, one)
        assert not rivals._same(one, replace(turned, gold=1 - gold % 2))


# invalid arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alias": "latest"}, "alias: 'latest'"),
        ({"alias": "v3"}, "alias: 'v3'"),
        ({"tolerance": 2.0}, "tolerance: 200 points"),
        ({"run": "nowhere"}, "no finished run"),
        ({"run": "models:/none/1"}, "no registered model 'none'"),
        ({"texts": Path("nowhere.txt")}, "nowhere.txt: cannot be read"),
    ],
)
def test_an_invalid_argument_is_refused(home: Home, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        home.promote(**{"run": "good", "name": "nonsense"} | changes)


def test_an_alias_that_somebody_moved_meanwhile_is_left_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    version = home.register("good", "raced")
    outcome = promotion.Outcome(version, "champion", None, None, None, None, (), (), False)
    versions.move_alias("raced", "champion", version.version, home.uri)
    with pytest.raises(RegistryError, match="was moved to version 1 meanwhile; promote again"):
        promotion._move(outcome)


@pytest.mark.slow
@pytest.mark.long
def test_the_same_promotion_started_several_times_at_once_is_done_once(home: Home) -> None:
    command = [sys.executable, "-m", "xlt_ray.cli", "promote", str(home.folder / "good"), "--name", "many"]
    command += ["--cache", str(home.cache)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(4)]
    told = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0] * 4, told
    assert sum("making the fast artefact" in one for one in told) == 1, told
    assert sum("another process promotes to models:/many@champion already" in one for one in told) == 3
    assert home.champion("many") == "1"
    assert len(registered.client(home.uri).search_model_versions("name = 'many'")) == 1
