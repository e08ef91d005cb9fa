"""A probe that is fitted once more with dev of the sources: what it then knows, and what it must go on not knowing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_runs import Settings, settings

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.inference import bundle
from xlt_ray.runs import run
from xlt_ray.training import checks, frozen, probe
from xlt_ray.training.frozen import Frozen
from xlt_ray.training.probe import Labelled

ENG, DEU, SWH = "eng_Latn", "deu_Latn", "swh_Latn"
SIZES = {f"train/{ENG}": 90, f"dev/{ENG}": 40, f"train/{DEU}": 30, f"dev/{DEU}": 20, f"dev/{SWH}": 50}
STRENGTHS = (0.001, 0.1, 10.0)


@pytest.fixture(scope="module")
def rows() -> Frozen:
    """Features of three classes in two sources and a target, near enough to each other for a probe to be unsure."""
    places = np.random.default_rng(9).normal(0, 1, (3, 5))
    labels = {name: np.arange(count) % 3 for name, count in SIZES.items()}
    drawn = np.random.default_rng(1)
    features = {
        name: (places[gold] + drawn.normal(0, 1.5, (len(gold), 5))).astype(np.float32) for name, gold in labels.items()
    }
    ids = {name: np.array([f"{name}/{row}" for row in range(count)]) for name, count in SIZES.items()}
    return Frozen(features, labels, ids, 3)


def asked(refit: str = "source_dev", **sections: Any) -> Experiment:
    return build({"sources": [ENG, DEU], "training": {"method": "probe", "refit": refit}, **sections})


def fitted(rows: Frozen, experiment: Experiment) -> probe.Fit:
    first = frozen.fit_temperature(rows, frozen.fit(rows, experiment, STRENGTHS), experiment.sources)
    return frozen.refit(rows, experiment, first)


def changed(rows: Frozen, name: str) -> Frozen:
    return replace(rows, labels={**rows.labels, name: (rows.labels[name] + 1) % 3})


# what it is fitted to


def test_it_is_the_probe_that_train_and_dev_as_one_split_give(rows: Frozen) -> None:
    experiment = asked()
    again = fitted(rows, experiment)
    joined = [
        {code: np.concatenate([of[f"{split}/{code}"] for split in ("train", "dev")]) for code in (ENG, DEU)}
        for of in (rows.features, rows.labels)
    ]
    alone = probe.fit(Labelled(*joined), Labelled({}, {}), 3, experiment.mixture, (again.strength,))
    assert np.array_equal(again.weight, alone.weight) and np.array_equal(again.bias, alone.bias)
    assert np.abs(again.weight - fitted(rows, asked("none")).weight).max() > 0.01


def test_a_label_that_dev_alone_has_can_be_answered_after_it(rows: Frozen) -> None:
    names = {f"train/{ENG}": rows.labels[f"train/{ENG}"] < 2, f"dev/{ENG}": np.ones(40, dtype=bool)}
    features, labels = ({name: of[name][kept] for name, kept in names.items()} for of in (rows.features, rows.labels))
    few, experiment = Frozen(features, labels, {}, 3), asked(sources=[ENG])
    first = frozen.fit(few, experiment, (0.1,))
    again = frozen.refit(few, experiment, first)
    answered = [set(fit.predict(few.features[f"dev/{ENG}"])) for fit in (first, again)]
    assert answered == [{0, 1}, {0, 1, 2}]


def test_repeated_rows_change_nothing_because_a_strength_is_relative_to_the_mean_loss(rows: Frozen) -> None:
    experiment, split = asked(), rows.part("train", [ENG])
    first = probe.fit(split, Labelled({}, {}), 3, experiment.mixture, (0.1,))
    twice = probe.refit(split, split, 3, experiment.mixture, first)
    np.testing.assert_allclose(twice.weight, first.weight, atol=1e-3)


def test_labels_of_a_target_are_never_read_even_where_they_chose_the_penalty(rows: Frozen) -> None:
    experiment = asked()
    first = frozen.fit(rows, experiment, (0.1,))
    usual = frozen.refit(rows, experiment, first)
    for name in (f"dev/{SWH}", f"dev/{ENG}"):
        same = np.array_equal(frozen.refit(changed(rows, name), experiment, first).weight, usual.weight)
        assert same is (name == f"dev/{SWH}")


def test_without_the_field_nothing_is_fitted_again(rows: Frozen) -> None:
    first = frozen.fit(rows, asked("none"), STRENGTHS)
    assert frozen.refit(rows, asked("none"), first) is first


# what was decided while dev was held out


def test_penalty_dev_scores_and_temperature_are_of_the_probe_that_had_not_seen_dev(rows: Frozen) -> None:
    before, again = fitted(rows, asked("none")), fitted(rows, asked())
    assert replace(again, weight=before.weight, bias=before.bias) == before
    assert set(again.dev_loss) == set(STRENGTHS)
    seen = frozen.fit_temperature(rows, again, [ENG, DEU]).temperature
    assert seen < before.temperature, "rows that were trained on would promise too much"


# what is refused


def test_a_second_stage_that_leaves_source_rows_out_is_refused(tiny_settings: Settings) -> None:
    tiny_settings["training"] |= {"method": "probe", "refit": "source_dev"}
    tiny_settings["techniques"] = {"few_shot": {"alone": True}}
    with pytest.raises(InputError, match=r"training\.refit: source_dev .* techniques\.few_shot .* set training\.refit"):
        checks.prepare(build(tiny_settings))
    tiny_settings["training"]["refit"] = "none"
    assert checks.prepare(build(tiny_settings)).few_shot


# a run


def test_shots_of_a_target_are_kept_and_its_dev_is_not_added(tiny_settings: Settings) -> None:
    tiny_settings["training"] |= {"method": "probe", "refit": "source_dev", "select": "target_dev"}
    tiny_settings["techniques"] = {"few_shot": {"shots": 1}}
    setup = checks.prepare(build(tiny_settings, ["mixture.weights.deu_Latn=0"]))
    assert {SWH, ENG} <= set(setup.tables("dev")) and SWH in setup.few_shot
    assert set(frozen.refitted(setup)) == {ENG}, "a source of weight 0 is not trained on either"


@pytest.mark.usefixtures("local_ray")
def test_a_run_says_that_dev_was_trained_on_and_answers_with_the_refitted_probe(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[probe.Fit] = []
    refit = frozen.refit

    def kept(*given: Any) -> probe.Fit:
        made.append(refit(*given))
        return made[-1]

    monkeypatch.setattr(frozen, "refit", kept)
    data = settings(tiny_encoder, tiny_corpus, tmp_path, training={"method": "probe", "refit": "source_dev"})
    events: list[dict[str, Any]] = []
    outcome = run.run(build(data), events.append)
    dev = {code: len((tiny_corpus / code / "dev.tsv").read_text().splitlines()) - 1 for code in (ENG, DEU)}
    (note,) = [event["note"] for event in events if event["stage"] == "fit" and "note" in event]
    assert note.startswith(f"the probe was fitted once more with {sum(dev.values())} dev rows of the sources, at")
    page = (outcome.folder.local / "report.html").read_text(encoding="utf-8")
    assert "fitted once more with dev of the sources" in page
    facts = (outcome.folder.local / "corpus.json").read_text(encoding="utf-8")
    assert all(f'"{code}": {count}' in facts for code, count in dev.items())
    head = bundle.load(outcome.folder.local / "bundle").network.head.weight.detach().numpy()
    np.testing.assert_allclose(head, made[0].weight, atol=1e-6)


# a penalty chosen by cross-validation


def cross_validated(**changes: Any) -> Experiment:
    return asked(training={"method": "probe", "probe_select": "cross_validation", **changes})


def test_cross_validation_takes_the_strongest_penalty_within_one_standard_error(rows: Frozen) -> None:
    experiment = cross_validated(probe_strengths=STRENGTHS)
    found = frozen.choose(rows, experiment)
    assert set(found.dev_accuracy) == set(found.dev_loss) == set(STRENGTHS)
    best = max(found.dev_accuracy.values())
    weaker = [strength for strength in STRENGTHS if strength < found.strength]
    assert found.dev_accuracy[found.strength] >= best - 0.2, "an error is smaller on these rows"
    assert all(found.dev_accuracy[strength] < best for strength in weaker)
    alone = frozen.fit(rows, experiment, (found.strength,))
    np.testing.assert_allclose(found.weight, alone.weight, atol=1e-6)


def test_every_row_is_scored_by_a_fit_without_its_fold_and_without_translations_of_it() -> None:
    rng = np.random.default_rng(0)
    gold = np.arange(200) % 2
    noise = rng.normal(size=(200, 150)).astype(np.float32)  # by which rows can only be remembered
    both = Labelled({ENG: noise, DEU: noise}, {ENG: gold, DEU: gold})
    folds = {code: np.arange(200) % 5 for code in (ENG, DEU)}
    _, _, accuracy = probe.cross_validate(both, folds, (ENG, DEU), 2, asked().mixture, (1.0,))
    assert accuracy[1.0] == pytest.approx(0.5, abs=0.15)
    apart = {ENG: folds[ENG], DEU: (folds[DEU] + 1) % 5}
    _, _, leaking = probe.cross_validate(both, apart, (ENG, DEU), 2, asked().mixture, (1.0,))
    assert leaking[1.0] > accuracy[1.0] + 0.2


def test_labels_of_targets_do_not_choose_a_penalty(rows: Frozen) -> None:
    experiment = cross_validated(probe_strengths=STRENGTHS)
    usual = frozen.choose(rows, experiment)
    other = frozen.choose(changed(rows, f"dev/{SWH}"), experiment)
    assert other.strength == usual.strength and other.dev_accuracy == usual.dev_accuracy
    assert frozen.choose(changed(rows, f"dev/{ENG}"), experiment).dev_accuracy != usual.dev_accuracy


def test_cross_validation_is_for_a_probe_and_leaves_keys_of_before(tiny_settings: Settings) -> None:
    tiny_settings["training"] |= {"method": "fine_tune", "probe_select": "cross_validation"}
    with pytest.raises(InputError, match=r"training\.probe_select: cross_validation is for a probe"):
        build(tiny_settings)
    tiny_settings["training"] |= {"method": "probe"}
    chosen = build(tiny_settings).key()
    tiny_settings["training"]["probe_select"] = "source_dev"
    stated = build(tiny_settings).key()
    del tiny_settings["training"]["probe_select"]
    assert chosen != stated == build(tiny_settings).key()
