"""The linear probe: scikit-learn's regression in terms of raw features, weighted by the mixture, its penalty by dev."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import MixtureConfig
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation import evaluate
from xlt_ray.model import network
from xlt_ray.training import probe
from xlt_ray.training.probe import Labelled

Data = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
WIDTH = 6


def data(sizes: dict[str, int], seed: int = 0, labels: tuple[int, ...] = (0, 1, 2), noise: float = 1.5) -> Data:
    """Make features whose label shows in their place, on axes far from standard, a little elsewhere per language."""
    places = np.random.default_rng(99).normal(0, 1, (10, WIDTH))
    features, gold = {}, {}
    for index, (code, rows) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, index])
        gold[code] = np.asarray(labels)[np.arange(rows) % len(labels)]
        raw = places[gold[code]] + 0.5 * index + rng.normal(0, noise, (rows, WIDTH))
        features[code] = (raw * np.array([1, 10, 0.1, 1, 3, 100]) + 7).astype(np.float32)
    return features, gold


def fitted(
    sizes: dict[str, int], config: MixtureConfig, strengths: tuple[float, ...] = (1.0,), **kind: object
) -> probe.Fit:
    labels = kind.pop("labels", (0, 1, 2))
    classes = kind.pop("classes", 3)
    train, dev = (Labelled(*data(sizes, seed, labels)) for seed in (0, 1))  # type: ignore[arg-type]
    return probe.fit(train, dev, classes, config, strengths)


SIZES = {"eng_Latn": 150, "deu_Latn": 30}
NONE = Labelled({}, {})


def by_scikit_learn(config: MixtureConfig, strength: float, labels: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Fit the same thing by hand; return probabilities of unseen rows of the first language."""
    features, gold = data(SIZES, 0, labels)
    raw = {code: config.weights.get(code, 1.0) * rows**config.alpha for code, rows in SIZES.items()}
    weight = np.concatenate([np.full(rows, raw[code] / sum(raw.values()) * 180 / rows) for code, rows in SIZES.items()])
    x = np.concatenate([features[code].astype(np.float64) for code in SIZES])
    model = LogisticRegression(C=strength * 1000 / 180, max_iter=500)
    model.fit((x - x.mean(0)) / x.std(0), np.concatenate([gold[code] for code in SIZES]), sample_weight=weight)
    unseen = data(SIZES, 2, labels)[0]["eng_Latn"].astype(np.float64)
    return model.predict_proba((unseen - x.mean(0)) / x.std(0))


def probabilities(fit: probe.Fit, features: np.ndarray) -> np.ndarray:
    return softmax(features.astype(np.float64) @ fit.weight.T + fit.bias, axis=1)


# what is fitted


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_it_is_scikit_learns_regression_with_the_mixtures_weights(alpha: float, strength: float) -> None:
    config = MixtureConfig(alpha=alpha, weights={"deu_Latn": 2.0})
    fit = fitted(SIZES, config, (strength,))
    found = probabilities(fit, data(SIZES, 2)[0]["eng_Latn"])
    np.testing.assert_allclose(found, by_scikit_learn(config, strength), atol=2e-3)
    assert fit.weight.dtype == fit.bias.dtype == np.float32
    assert fit.weight.shape == (3, WIDTH) and fit.bias.shape == (3,)


def test_the_mixture_matters() -> None:
    unseen = data(SIZES, 2)[0]["deu_Latn"]
    one, other = (probabilities(fitted(SIZES, MixtureConfig(alpha=alpha)), unseen) for alpha in (0, 1))
    assert np.abs(one - other).max() > 0.02


def test_a_language_of_weight_zero_is_left_out() -> None:
    without = fitted({"eng_Latn": 150}, MixtureConfig())
    features, gold = data(SIZES)
    dev = Labelled(*({"eng_Latn": part["eng_Latn"]} for part in data(SIZES, 1)))
    with_it = probe.fit(Labelled(features, gold), dev, 3, MixtureConfig(weights={"deu_Latn": 0}), (1.0,))
    np.testing.assert_allclose(with_it.weight, without.weight, rtol=1e-5)


def test_the_scale_of_features_changes_no_probability() -> None:
    (features, gold), unseen = data(SIZES), data(SIZES, 2)[0]["eng_Latn"]
    other = {code: 30 * rows + 1 for code, rows in features.items()}
    one, two = (probe.fit(Labelled(x, gold), NONE, 3, MixtureConfig(), (1.0,)) for x in (features, other))
    np.testing.assert_allclose(probabilities(one, unseen), probabilities(two, 30 * unseen + 1), atol=1e-3)


def test_a_strength_means_the_same_at_every_size_of_corpus() -> None:
    features, gold = data(SIZES)
    twice = ({c: np.concatenate([x, x]) for c, x in part.items()} for part in (features, gold))
    one = probe.fit(Labelled(features, gold), NONE, 3, MixtureConfig(), (0.1,))
    more, labels = twice
    two = probe.fit(Labelled(more, labels), NONE, 3, MixtureConfig(), (0.1,))
    unseen = data(SIZES, 2)[0]["eng_Latn"]
    np.testing.assert_allclose(probabilities(one, unseen), probabilities(two, unseen), atol=1e-3)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    features, gold = data(SIZES)
    constant = {code: np.concatenate([x, np.full((len(x), 1), 3.0)], 1) for code, x in features.items()}
    fit = probe.fit(Labelled(constant, gold), NONE, 3, MixtureConfig(), (1.0,))
    assert np.isfinite(fit.weight).all() and np.isfinite(fit.bias).all()
    unseen = data(SIZES, 2)[0]["eng_Latn"]
    plain = probabilities(probe.fit(Labelled(features, gold), NONE, 3, MixtureConfig(), (1.0,)), unseen)
    wide = np.concatenate([unseen, np.full((len(unseen), 1), 3.0)], 1)
    np.testing.assert_allclose(probabilities(fit, wide), plain, atol=1e-3)


# labels


def test_two_classes() -> None:
    config = MixtureConfig(alpha=1)
    fit = fitted(SIZES, config, labels=(0, 1), classes=2)
    found = probabilities(fit, data(SIZES, 2, (0, 1))[0]["eng_Latn"])
    np.testing.assert_allclose(found, by_scikit_learn(config, 1.0, (0, 1)), atol=2e-3)


@pytest.mark.parametrize("labels", [(0, 2), (0, 2, 3)])
def test_a_label_that_no_source_has_is_never_predicted(labels: tuple[int, ...]) -> None:
    fit = fitted(SIZES, MixtureConfig(), labels=labels, classes=4)
    unseen = np.concatenate([data(SIZES, 2, labels)[0]["eng_Latn"], np.zeros((1, WIDTH)), np.full((1, WIDTH), 500)])
    found = probabilities(fit, unseen)
    absent = sorted({0, 1, 2, 3} - {*labels})
    assert np.isfinite(found).all() and found[:, absent].max() == 0
    accuracy = (found[:-2].argmax(1) == data(SIZES, 2, labels)[1]["eng_Latn"]).mean()
    assert accuracy > 0.6


def test_one_label_alone_is_refused() -> None:
    with pytest.raises(InputError, match="one label only; a classifier needs two or more"):
        fitted(SIZES, MixtureConfig(), labels=(1,))


# the penalty


def test_the_strength_is_the_best_on_source_dev_and_of_equals_the_surest() -> None:
    strengths = (10.0, 1e-5, 0.001, 0.1)
    fit = fitted(SIZES, MixtureConfig(), strengths)
    features, gold = data(SIZES, 1)
    accuracy, loss = {}, {}
    for strength in strengths:
        alone = fitted(SIZES, MixtureConfig(), (strength,))
        logs = {code: log_softmax(features[code] @ alone.weight.T + alone.bias, axis=1) for code in SIZES}
        accuracy[strength] = np.mean([(logs[code].argmax(1) == gold[code]).mean() for code in SIZES])
        loss[strength] = np.mean([-logs[code][np.arange(len(gold[code])), gold[code]].mean() for code in SIZES])
    assert fit.dev_accuracy == pytest.approx(accuracy) and fit.dev_loss == pytest.approx(loss, rel=1e-3)
    assert len(set(accuracy.values())) > 1
    assert fit.strength == max(strengths, key=lambda strength: (accuracy[strength], -loss[strength]))
    assert np.array_equal(fit.weight, fitted(SIZES, MixtureConfig(), (fit.strength,)).weight)


def test_dev_counts_languages_alike_whatever_their_size() -> None:
    fit = fitted(SIZES, MixtureConfig())
    features, gold = data(SIZES, 1)
    right = {code: probabilities(fit, features[code]).argmax(1) == gold[code] for code in SIZES}
    assert fit.dev_accuracy[1.0] == pytest.approx(np.mean([right[code].mean() for code in SIZES]))
    assert fit.dev_accuracy[1.0] != pytest.approx(np.concatenate(list(right.values())).mean())


def test_without_dev_one_strength_is_taken_and_several_are_refused() -> None:
    features, gold = data(SIZES)
    assert probe.fit(Labelled(features, gold), NONE, 3, MixtureConfig(), (0.5,)).strength == 0.5
    with pytest.raises(InputError, match="training.probe_strengths: no source has dev rows"):
        probe.fit(Labelled(features, gold), NONE, 3, MixtureConfig(), (0.5, 1.0))


# in a network


def test_a_network_with_the_probe_in_it_gives_the_probes_scores(tiny_experiment: Experiment) -> None:
    corpus = loaders.load(tiny_experiment.corpus)
    net, tokenize, _ = network.build(tiny_experiment.network, 3, 0)
    device = net.eval().head.weight.device

    def outputs(call: object, split: str, code: str) -> np.ndarray:
        table = corpus.table(split, code)
        inputs = evaluate.Inputs(tokenize, "float32", 512)
        return evaluate.outputs(call, device, table, np.arange(table.num_rows), inputs)  # type: ignore[arg-type]

    codes = tiny_experiment.sources
    features = {split: {code: outputs(net.features, split, code) for code in codes} for split in ("train", "dev")}
    gold = {s: {code: corpus.table(s, code)["label"].to_numpy() for code in codes} for s in ("train", "dev")}
    strengths = tiny_experiment.training.probe_strengths
    train, dev = (Labelled(features[split], gold[split]) for split in ("train", "dev"))
    fit = probe.fit(train, dev, 3, tiny_experiment.mixture, strengths)
    probe.install(net, fit)
    test = outputs(net.features, "test", "eng_Latn") @ fit.weight.T + fit.bias
    np.testing.assert_allclose(outputs(net, "test", "eng_Latn"), test, rtol=1e-4, atol=1e-4)
    assert (test.argmax(1) == corpus.table("test", "eng_Latn")["label"].to_numpy()).mean() > 0.6
