"""A trial of a search is the training of `xlt train`: the same bits, also on an actor that had another trial before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from ray import tune
from search_runs import Plain, fit_plainly, search_settings

from xlt_ray.config.experiment import Experiment
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.model import network
from xlt_ray.model.network import Network
from xlt_ray.search import prepare, screening, space, trial, tuning
from xlt_ray.search.selection import Judge
from xlt_ray.search.space import Point, Search
from xlt_ray.training import checkpoint
from xlt_ray.training.workers import process_group

pytestmark = pytest.mark.slow

ENGLISH: Point = {"sources": ["eng_Latn"], "training.learning_rate": 5e-3}
MIXED: Point = {"sources": ["deu_Latn", "swh_Latn"], "training.learning_rate": 2e-3}


@pytest.fixture(scope="module", autouse=True)
def _threads(local_ray: None) -> Iterator[None]:
    """Keep the threads of this process: a trial in it takes one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Asked:
    """A search, what its trials are handed, and what the loop alone makes of two of its points."""

    search: Search
    corpus: Corpus
    plain: dict[str, Plain]
    texts: Mapping[str, pa.Table] = field(default_factory=dict)

    def trial(self, point: Point) -> trial.Trial:
        """Start a trial of one worker in this process, where its weights can be seen."""
        rungs = tuning.rungs(self.search)
        handed = {"judge": Judge(self.search), "data": trial.TrialData(self.corpus, self.texts), "rungs": rungs}
        made: Any = tune.with_parameters(trial.Trial, **handed)
        return made(config={"point": point})  # type: ignore[no-any-return]


def sums(point: Point) -> str:
    return space.point_key(point)


@pytest.fixture(scope="module")
def asked(tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    data = search_settings(
        tiny_encoder, tiny_corpus, tmp_path_factory.mktemp("trial"),
        training={"average_last": 2}, network={"dropout": 0.2},
        search={"space": {"sources": {"at_most": 2}, "training.learning_rate": {"choice": [5e-3, 2e-3]}}},
    )  # fmt: skip
    found, corpus = prepare.prepared(space.build(data))
    corpus = corpus.for_training(found.pool)
    points = (ENGLISH, MIXED)
    return Asked(found, corpus, {sums(one): fit_plainly(found.experiment(one), corpus) for one in points})


def to_the_end(one: trial.Trial) -> dict[str, Any]:
    while True:
        result = one.step()
        if result["done"]:
            return result


def same_bits(found: network.Weights, expected: network.Weights) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_trial_gives_the_bits_of_the_loop(asked: Asked) -> None:
    one = asked.trial(ENGLISH)
    first = one.step()
    assert (first["epoch"], first["done"]) == (1, False)
    last = to_the_end(one)
    assert last["epoch"] == 3 and last["accuracy"] == asked.plain[sums(ENGLISH)].accuracy
    assert set(last["accuracy"]) == set(asked.search.pool)
    same_bits(network.trained(one.worker.net), asked.plain[sums(ENGLISH)].weights)


def test_an_actor_gives_the_bits_of_the_loop_after_a_trial_that_was_stopped(asked: Asked) -> None:
    one = asked.trial(ENGLISH)
    assert one.step()["epoch"] == 1
    for point in (MIXED, ENGLISH):
        assert one.reset({"point": point})
        assert to_the_end(one)["accuracy"] == asked.plain[sums(point)].accuracy
        same_bits(network.trained(one.worker.net), asked.plain[sums(point)].weights)


def test_a_trial_goes_on_where_it_was_saved(asked: Asked, tmp_path: Path) -> None:
    one = asked.trial(MIXED)
    one.step()
    one.save_checkpoint(str(tmp_path))
    spent = one.cost
    assert one.reset({"point": ENGLISH})
    assert one.reset({"point": MIXED})
    one.load_checkpoint(str(tmp_path))
    assert (one.worker.training_state.progress.epoch, one.cost) == (1, spent)
    to_the_end(one)
    same_bits(network.trained(one.worker.net), asked.plain[sums(MIXED)].weights)


def test_a_trial_whose_end_tune_had_not_noted_ends_again(asked: Asked, tmp_path: Path) -> None:
    one = asked.trial(MIXED)
    to_the_end(one)
    one.save_checkpoint(str(tmp_path))
    assert one.reset({"point": MIXED})
    one.load_checkpoint(str(tmp_path))
    again = one.step()
    assert (again["epoch"], again["done"]) == (3, True)
    assert again["accuracy"] == asked.plain[sums(MIXED)].accuracy
    same_bits(network.trained(one.worker.net), asked.plain[sums(MIXED)].weights)


@pytest.mark.parametrize("gone", ["file", "folder"])
def test_a_trial_whose_checkpoint_was_deleted_just_before_a_kill_begins_anew(
    asked: Asked, tmp_path: Path, gone: str
) -> None:
    one = asked.trial(MIXED)
    kept = one.save(str(tmp_path / "kept"))
    (tmp_path / "kept" / checkpoint.FILE).unlink()
    if gone == "folder":
        (tmp_path / "kept").rename(tmp_path / "elsewhere")
    one.restore(kept)
    assert (one.worker.training_state.progress.epoch, one.cost) == (0, 0.0)
    to_the_end(one)
    same_bits(network.trained(one.worker.net), asked.plain[sums(MIXED)].weights)


def test_every_mix_trains_on_as_many_rows(asked: Asked) -> None:
    one, found = asked.trial(ENGLISH), []
    for codes in (["eng_Latn"], ["swh_Latn"], ["deu_Latn", "eng_Latn"]):
        assert one.reset({"point": {"sources": codes}})
        one.step()
        training_state = one.worker.training_state
        draws = training_state.feed.epoch(0)
        assert set(draws.sizes) == set(codes)
        found.append((len(draws), training_state.progress.step))
    assert set(found) == {(160, 10)}, "160 rows of English, the largest, in batches of 16"


def test_a_mix_that_diverges_ends_with_the_worst_score_and_the_actor_goes_on(asked: Asked) -> None:
    one = asked.trial({**ENGLISH, "training.learning_rate": 1e30})
    worst = one.step()
    assert worst["done"] and worst["objective_mean"] == 0.0 and "training diverged" in worst["diverged"]
    assert one.reset({"point": ENGLISH})
    to_the_end(one)
    same_bits(network.trained(one.worker.net), asked.plain[sums(ENGLISH)].weights)


def known(net: Network) -> network.Weights:
    net.terms.clear()  # which no bundle holds
    return network.trained(net)


def on_two_workers(
    experiment: Experiment, corpus: Corpus, texts: Mapping[str, pa.Table]
) -> list[tuple[dict[str, Predictions], network.Weights]]:
    """Fine-tune on two workers, measured after an epoch and at the end; what each of them predicts and holds then."""
    remote: Any = ray.remote(trial.Worker)
    store = process_group.meeting_place("127.0.0.1")
    group = trial.WorkerGroup(f"{store.host}:{store.port}", size=2, cpus=1, gpus=0)
    data = trial.TrialData(corpus, texts)
    workers = [remote.options(num_cpus=1).remote(data, rank, group) for rank in range(2)]
    try:
        ray.get([one.begin.remote(experiment) for one in workers])
        ray.get([one.advance.remote(1) for one in workers])
        dev = ray.get([one.advance.remote(3) for one in workers])
        nets = ray.get([one.__ray_call__.remote(lambda self: self.net) for one in workers])
        return list(zip(dev, map(known, nets), strict=True))
    finally:
        for one in workers:
            ray.kill(one)


def check_the_same(
    found: list[tuple[dict[str, Predictions], network.Weights]], expected: Plain, languages: Sequence[str]
) -> None:
    (dev, weights), (other_dev, other_weights) = found
    same_bits(weights, other_weights)
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-3)
    for code in dev:
        assert (dev[code].predicted == other_dev[code].predicted).all()
    for code in languages:
        assert (dev[code].predicted == expected.dev[code].predicted).mean() > 0.9


UNDROPPED = {"dropout": 0.0}  # masks go by rank


@pytest.mark.long
def test_two_workers_give_the_model_of_one(asked: Asked, tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    found, _ = prepare.prepared(space.build(search_settings(tiny_encoder, tiny_corpus, tmp_path, network=UNDROPPED)))
    experiment = found.experiment({"sources": ["deu_Latn", "eng_Latn"]})
    plain = fit_plainly(experiment, asked.corpus)
    check_the_same(on_two_workers(experiment, asked.corpus, {}), plain, found.pool)


# techniques

MANY: Point = {
    "sources": ["eng_Latn"],
    "techniques.centre": True,
    "techniques.code_switch": True,
    "techniques.code_switch.rate": 0.5,
    "techniques.lora": False,
}
LOSSES: Point = {"sources": ["deu_Latn", "eng_Latn"], "techniques.adversarial": True}
ADAPTED: Point = {"sources": ["deu_Latn"], "techniques.lora": True, "techniques.centre": {"rows": 8}}
SPACE = {
    "sources": {"at_most": 2},
    "techniques.code_switch": {"choice": [False, True]},
    "techniques.code_switch.rate": {"uniform": [0.1, 0.9]},
    "techniques.adversarial": {"choice": [False, True]},
    "techniques.lora": {"choice": [False, True]},
    "techniques.centre": {"choice": [False, True, {"rows": 8}]},
}


def lexicons(folder: Path) -> Path:
    """Write dictionaries from every language of the pool into the target."""
    for code in ("eng", "deu", "swh"):
        lines = [f"{code}{word}\thin{word}\n" for word in range(0, 60, 2)]
        (folder / f"{code}_Latn-hin_Deva.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def varied(tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """A search over techniques."""
    folder = tmp_path_factory.mktemp("techniques")
    data = search_settings(
        tiny_encoder, tiny_corpus, folder, training={"average_last": 2}, network={"dropout": 0.2},
        techniques={"code_switch": {"lexicons": str(lexicons(folder)), "languages": ["hin_Deva"]}},
        search={"space": SPACE},
    )  # fmt: skip
    found, corpus = prepare.prepared(space.build(data))
    texts = prepare.texts(found, corpus)
    plain = {sums(one): fit_plainly(found.experiment(one), corpus) for one in (MANY, LOSSES, ADAPTED)}
    return Asked(found, corpus.for_training(found.pool), plain, {"hin_Deva": texts["hin_Deva"]})


def test_a_trial_with_techniques_gives_the_bits_of_the_loop_whatever_was_tried_before(varied: Asked) -> None:
    one = varied.trial(MANY)
    for point in (MANY, LOSSES, ADAPTED, {**MANY, "techniques.centre": False}, LOSSES, MANY):
        assert one.reset({"point": point})
        last = to_the_end(one)
        if sums(point) in varied.plain:
            same_bits(known(one.worker.net), varied.plain[sums(point)].weights)
            assert last["accuracy"]["eng_Latn"] == varied.plain[sums(point)].accuracy["eng_Latn"] or point == ADAPTED


@pytest.mark.long
def test_two_workers_give_the_model_of_one_with_techniques(
    varied: Asked, tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    switched = {"code_switch": {"lexicons": str(lexicons(tmp_path)), "languages": ["hin_Deva"]}, "centre": {}}
    data = search_settings(
        tiny_encoder, tiny_corpus, tmp_path, network=UNDROPPED, techniques={**switched, "adversarial": {}}
    )
    found, corpus = prepare.prepared(space.build(data))
    experiment = found.experiment({"sources": ["deu_Latn", "eng_Latn"]})
    # a language that the mix leaves out is centred in a trial, as a target is, and not in the loop alone
    plain = fit_plainly(experiment, corpus)
    check_the_same(on_two_workers(experiment, varied.corpus, varied.texts), plain, experiment.sources)


def test_what_is_calibrated_to_measure_at_a_rung_is_not_trained_or_saved(varied: Asked, tmp_path: Path) -> None:
    one = varied.trial(ADAPTED)
    one.step()
    shift: Any = one.worker.net.steps["centre"].shift
    assert not shift.any() and len(shift) == 3, "a source, the target, and any other"
    one.save_checkpoint(str(tmp_path))
    assert one.reset({"point": LOSSES})
    assert one.reset({"point": ADAPTED})
    one.load_checkpoint(str(tmp_path))
    to_the_end(one)
    same_bits(known(one.worker.net), varied.plain[sums(ADAPTED)].weights)


def test_languages_that_a_mix_leaves_out_are_centred_as_targets(varied: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[str, ...], torch.Tensor]] = []
    predict = evaluate.predict

    def watched(net: Any, *others: Any) -> Any:
        seen.append((net.languages, net.steps["centre"].shift.clone()))
        return predict(net, *others)

    monkeypatch.setattr(evaluate, "predict", watched)
    one = varied.trial(MANY)
    to_the_end(one)
    languages, shift = seen[-1]
    assert languages == ("eng_Latn", "hin_Deva", "deu_Latn", "swh_Latn")
    tables = varied.corpus.unlabelled(languages)
    means = {code: rows.mean(0) for code, rows in one.worker.training_state.run.embed(tables, "float32").items()}
    for place, code in enumerate(languages):
        if code in means and code != "eng_Latn":  # a source stays where the head has learned it
            assert np.allclose(shift[place], means[code] - means["eng_Latn"], atol=1e-5)
    assert not shift[0].any() and shift[2:4].abs().max() > 1e-4
    assert len(seen) == 2 and seen[0][0] == languages, "at the first rung likewise"
    assert one.worker.net.languages == ("eng_Latn", "hin_Deva")


def test_probes_see_features_centred_where_the_base_centres(varied: Asked) -> None:
    plain = screening.embed(varied.search.base, varied.corpus, lambda event: None, varied.texts)
    base = varied.search.base.model_copy(update={"techniques": {"centre": {}}})
    texts = {**varied.corpus.unlabelled(varied.search.pool, ids=True), **varied.texts}
    centred = screening.embed(base, varied.corpus, lambda event: None, texts)
    origins = np.stack([centred.features[f"train/{code}"].mean(0) for code in varied.search.pool])
    assert np.ptp(origins, axis=0).max() < 1e-4, "the languages lie on one another"
    assert np.ptp([plain.features[f"train/{code}"].mean(0) for code in varied.search.pool], axis=0).max() > 1e-2
    moved = centred.features["dev/deu_Latn"] - plain.features["dev/deu_Latn"]
    assert np.ptp(moved, axis=0).max() < 1e-4


REFUSED: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "unknown technique": (
        [], {"techniques.center": {"choice": [False, True]}},
        ["search.space.techniques.center: ", "techniques.center: there is no such technique; there are few_shot"],
    ),
    "unknown parameter": (
        ["centre"], {"techniques.centre.row": {"integers": [5, 9]}},
        ["search.space.techniques.centre.row: ", "unknown key", "rows"],
    ),
    "bound out of range": (
        [], {"techniques.lora": {"choice": [False, True]}, "techniques.lora.rank": {"integers": [0, 4]}},
        ["search.space.techniques.lora.rank: ", "greater than or equal to 1", "0"],
    ),
    "option out of range": (
        [], {"techniques.centre": {"choice": [False, {"rows": -1}]}},
        ["search.space.techniques.centre: ", "techniques.centre.rows", "-1"],
    ),
    "labels of targets": (["few_shot"], {}, ["techniques.few_shot: reads labels of targets", "`xlt few-shot`"]),
    "labels of targets as an option": (
        [], {"techniques.few_shot": {"choice": [False, True]}},
        ["search.space.techniques.few_shot: ", "reads labels of targets", "`xlt few-shot`"],
    ),
    "what fine-tuning cannot do": (
        [], {"techniques.centre": {"choice": [{"remove": 4}]}},
        ["search.space.techniques.centre: ", "techniques.centre.remove: 4"],
    ),
    "a dictionary of no mix but one": (
        [{"code_switch": {"lexicons": "induced"}}], {}, ["techniques.code_switch", "fewer than 100"],
    ),
    "a dictionary from one language alone": (
        [{"code_switch": {"lexicons": "LEXICONS"}}], {},
        ["no lexicon from deu_Latn", "in the mix of deu_Latn alone", "search.space.sources.at_least to 2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_technique_that_cannot_be_is_refused_before_ray_starts(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, fault: str
) -> None:
    configured, ranges, expected = REFUSED[fault]
    (tmp_path / "eng_Latn-hin_Deva.tsv").write_text("eng0\thin0\n", encoding="utf-8")
    if "LEXICONS" in str(configured):
        configured = [{"code_switch": {"lexicons": str(tmp_path)}}]
    asked = {"space": {"sources": {"at_most": 2}, **ranges}}
    data = search_settings(tiny_encoder, tiny_corpus, tmp_path, techniques=configured, search=asked)
    with pytest.raises(InputError) as refused:
        prepare.prepared(space.build(data))
    assert [words for words in expected if words not in str(refused.value)] == [], str(refused.value)


def test_what_cannot_be_saved_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used: list[Path] = []

    def full(self: Any, checkpoint_dir: str) -> None:
        used.append(Path(checkpoint_dir))
        (used[-1] / "training.pt").write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tune.Trainable, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trial.Trial.save(trial.Trial.__new__(trial.Trial))
    assert len(used) == 1 and used[0].parent == tmp_path and not list(tmp_path.iterdir())
