import json
import pickle
import zipfile

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from xlt_ray import tasks
from xlt_ray.errors import InputError
from xlt_ray.evaluation import bootstrap, metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.paired import comparison
from xlt_ray.evaluation.predictions import Predictions, load_predictions, save_predictions
from xlt_ray.evaluation.scores import Scores


def rows(gold, predicted, prefix=""):
    return Predictions(np.array(gold), np.array(predicted), [f"{prefix}{index}" for index in range(len(gold))])


def noisy(rng, gold, right, classes, prefix=""):
    """Predict `gold` with the given chance, else any class."""
    guesses = rng.integers(classes, size=len(gold))
    return rows(gold, np.where(rng.random(len(gold)) < right, gold, guesses), prefix)


def compare(a, b):
    return comparison.compare_seeds([a], [b])


@pytest.fixture
def measured():
    rng = np.random.default_rng(3)
    gold = rng.integers(4, size=120)
    chances = {"eng_Latn": 0.95, "deu_Latn": 0.9, "swh_Latn": 0.6, "yor_Latn": 0.4}
    return {code: noisy(rng, gold, right, 4) for code, right in chances.items()}


def score(predictions, sources=("eng_Latn",), seen=frozenset({"eng_Latn", "deu_Latn", "swh_Latn"}), **options):
    roles = Roles(tuple(sources), seen=seen)
    return metrics.score(predictions, ("a", "b", "c", "d"), roles, **{"resamples": 400, "seed": 0} | options)


@pytest.mark.parametrize("seed", range(20))
def test_counts_give_what_scikit_learn_gives(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 9))
    # few rows, so that classes are missing from gold, from predictions, or from both
    gold, predicted = rng.integers(classes, size=(2, int(rng.integers(1, 12))))
    table = metrics.confusion(gold, predicted, classes)
    assert table.sum() == len(gold)
    labels = [str(index) for index in range(classes)]
    task = tasks.build("classification", labels)
    accuracy, f1 = task.measure(*np.unique(task.cells(gold, predicted, None), return_counts=True))
    assert accuracy == (gold == predicted).mean()
    assert f1 == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))
    wanted = precision_recall_fscore_support(gold, predicted, labels=range(classes), zero_division=0)
    for row, *expected in zip(metrics.classification_report(table, labels), labels, *wanted, strict=True):
        assert list(row.values()) == [expected[0], *(pytest.approx(number) for number in expected[1:])]


def test_resampled_counts_are_measured_as_whole_tables_are():
    gold, predicted = np.random.default_rng(0).integers(5, size=(2, 30))
    kinds, counts = bootstrap.alone("eng_Latn", gold * 5 + predicted, 50, 0)
    task = tasks.build("classification", "abcde")
    accuracy, f1 = task.measure(kinds, counts)
    for draw in range(50):
        rows = np.repeat(kinds, counts[:, draw])
        assert len(rows) == 30
        assert accuracy[draw] == pytest.approx(accuracy_score(rows // 5, rows % 5))
        assert f1[draw] == pytest.approx(f1_score(rows // 5, rows % 5, average="macro", zero_division=0))


def test_each_language_is_measured_with_its_role_and_gap(measured):
    scores = score(measured)
    assert list(scores.languages) == sorted(measured)
    for code, one in scores.languages.items():
        assert one.role == ("source" if code == "eng_Latn" else "zero-shot")
        assert one.support == 120 == np.sum(one.confusion)
        assert one.accuracy == np.mean(measured[code].gold == measured[code].predicted)
        assert one.accuracy_low <= one.accuracy <= one.accuracy_high
        assert one.macro_f1_low <= one.macro_f1 <= one.macro_f1_high
        assert one.transfer_gap == scores.languages["eng_Latn"].accuracy - one.accuracy
        assert one.seen is (code != "yor_Latn")
    assert scores.worst().code == "yor_Latn"


def test_the_summary_counts_every_language_the_same(measured):
    measured["swh_Latn"] = rows(measured["swh_Latn"].gold[:10], measured["swh_Latn"].predicted[:10])
    scores = score(measured)
    each = {code: one.accuracy for code, one in scores.languages.items()}
    zero_shot = [each[code] for code in ("deu_Latn", "swh_Latn", "yor_Latn")]
    expected = {
        "mean": np.mean(list(each.values())),
        "mean_zero_shot": np.mean(zero_shot),
        "mean_source": each["eng_Latn"],
        "mean_seen": np.mean(zero_shot[:2]),
        "mean_unseen": each["yor_Latn"],
        "worst": min(each.values()),
        "std": np.std(list(each.values())),
    }
    assert {key: scores.summary[f"accuracy/{key}"] for key in expected} == pytest.approx(expected)
    assert scores.summary["transfer_gap/mean"] == pytest.approx(each["eng_Latn"] - np.mean(zero_shot))
    for key, value in scores.summary.items():
        if f"{key}_low" in scores.summary:
            assert scores.summary[f"{key}_low"] <= value <= scores.summary[f"{key}_high"]
    assert scores.summary["accuracy/mean_source_low"] == scores.languages["eng_Latn"].accuracy_low


def test_what_is_not_known_is_absent_and_never_a_nan(measured):
    scores = score(measured, sources=(), seen=None)
    assert all(one.transfer_gap is None and one.seen is None for one in scores.languages.values())
    absent = ("mean_source", "mean_seen", "mean_unseen", "transfer_gap")
    assert not [key for key in scores.summary if any(name in key for name in absent)]
    assert np.isfinite(list(scores.summary.values())).all()
    alone = score({"eng_Latn": measured["eng_Latn"]})
    assert "accuracy/mean_zero_shot" not in alone.summary
    assert alone.languages["eng_Latn"].transfer_gap == 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    gold, covered = np.zeros(150, int), 0
    for repeat in range(200):
        drawn = rows(gold, rng.random(150) > 0.8)
        one = metrics.score({"x": drawn}, ("a", "b"), Roles(()), resamples=300, seed=repeat).languages["x"]
        covered += one.accuracy_low <= 0.8 <= one.accuracy_high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_macro_f1_over_many_rare_classes_lies_inside_its_interval():
    rng = np.random.default_rng(0)
    gold = rng.integers(60, size=204)
    predictions = {f"l{index}": noisy(rng, gold, 0.7, 60, prefix=f"{index}-") for index in range(12)}
    scores = metrics.score(predictions, [str(index) for index in range(60)], Roles(()), resamples=300, seed=0)
    for one in scores.languages.values():
        assert one.macro_f1_low < one.macro_f1 < one.macro_f1_high
    key = "macro_f1/mean_zero_shot"
    assert scores.summary[f"{key}_low"] < scores.summary[key] < scores.summary[f"{key}_high"]


def test_all_right_and_all_wrong_still_have_an_honest_interval():
    all_right = score({"eng_Latn": rows([0, 1, 2, 3] * 5, [0, 1, 2, 3] * 5)}).languages["eng_Latn"]
    assert all_right.accuracy == all_right.accuracy_high == 1
    assert all_right.accuracy_low == pytest.approx(0.839, abs=0.001)  # Wilson, 20 of 20
    all_wrong = score({"eng_Latn": rows([0] * 20, [1] * 20)}).languages["eng_Latn"]
    assert all_wrong.accuracy == all_wrong.accuracy_low == 0
    assert all_wrong.accuracy_high == pytest.approx(0.161, abs=0.001)


def test_the_same_seed_gives_the_same_scores_and_other_languages_do_not_move_an_interval(measured):
    assert score(measured) == score(dict(reversed(measured.items())))
    assert score(measured, seed=1).summary != score(measured).summary
    fewer = {code: measured[code] for code in ("eng_Latn", "yor_Latn")}
    assert score(fewer).languages["yor_Latn"] == score(measured).languages["yor_Latn"]


def test_parallel_test_sets_give_a_mean_its_true_wider_interval():
    right = np.arange(200) % 10 < 7
    gold = np.zeros(200, int)
    # an item is right in all languages or in none: twenty languages are no more evidence than one
    parallel = {f"l{index}": rows(gold, ~right) for index in range(20)}
    apart = {code: rows(gold, ~right, prefix=f"{code}-") for code in parallel}

    def width(predictions):
        summary = metrics.score(predictions, ("a", "b"), Roles(()), resamples=2000, seed=0).summary
        return summary["accuracy/mean_high"] - summary["accuracy/mean_low"]

    assert width(parallel) == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.1)
    assert width(apart) == pytest.approx(width(parallel) / np.sqrt(20), rel=0.1)
    # one row missing somewhere does not make the sets independent
    parallel["l0"] = rows(gold[:199], ~right[:199])
    assert width(parallel) > 3 * width(apart)


def test_a_language_with_few_of_the_shared_ids_leaves_no_hole():
    gold = np.arange(300) % 2
    predictions = {"big": rows(gold, gold ^ (np.arange(300) % 5 == 0)), "tiny": rows([0, 1], [0, 0])}
    summary = metrics.score(predictions, ("a", "b"), Roles(("big",), seen=frozenset()), resamples=300, seed=0).summary
    assert np.isfinite(list(summary.values())).all()


def test_resampling_in_parts_gives_what_resampling_at_once_gives(measured, monkeypatch):
    whole = score(measured)
    monkeypatch.setattr(bootstrap, "_ELEMENTS", 120 * 7)
    assert score(measured).summary == pytest.approx(whole.summary)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Predictions(np.zeros(0, int), np.zeros(0, int), []), "no rows"),
        (Predictions(np.zeros(3, int), np.zeros(2, int), ["a", "b", "c"]), "3 gold labels, 2 predictions, 3 ids"),
        (rows([0, 1], [0, 7]), "class 7, but there are 4 labels"),
        (rows([0, -1], [0, 1]), "class -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_naming_the_language(measured, broken, message):
    with pytest.raises(InputError, match=f"hau_Latn: .*{message}"):
        score(measured | {"hau_Latn": broken})
    with pytest.raises(InputError, match="hold no language"):
        score({})


def test_scores_survive_json_exactly(measured):
    for scores in (score(measured), score(measured, sources=(), seen=None)):
        text = scores.to_json()
        assert Scores.from_json(text) == scores
        assert set(json.loads(text)["languages"]) == set(measured)
        assert pickle.loads(pickle.dumps(scores)) == scores  # goes between processes


def test_predictions_survive_their_file_exactly(tmp_path, measured):
    path = tmp_path / "predictions.npz"
    measured["zho_Hans"] = Predictions(np.array([1]), np.array([2]), ("第一",))
    save_predictions(path, measured)
    loaded = load_predictions(path)
    assert list(loaded) == list(measured)
    for code, one in measured.items():
        assert loaded[code].gold.tolist() == one.gold.tolist()
        assert loaded[code].predicted.tolist() == one.predicted.tolist()
        assert loaded[code].ids.tolist() == list(one.ids)
    assert score(loaded) == score(measured)
    first = path.read_bytes()
    save_predictions(path, measured)
    assert path.read_bytes() == first


def test_a_file_of_predictions_cannot_run_code_and_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_predictions(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not this")
    with pytest.raises(InputError, match="not a file of predictions"):
        load_predictions(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", **{"eng_Latn/gold": np.zeros(2)})
    with pytest.raises(InputError, match="not a file of predictions"):
        load_predictions(tmp_path / "other.npz")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "pickled.npz", "w") as archive:
        for part in ("gold", "predicted", "ids"):
            archive.write(tmp_path / "object.npy", f"eng_Latn/{part}.npy")
    with pytest.raises(InputError, match="allow_pickle=False"):
        load_predictions(tmp_path / "pickled.npz")


def test_comparison_sees_a_real_difference_and_not_an_absent_one():
    rng = np.random.default_rng(0)
    gold = rng.integers(4, size=300)
    good = {code: noisy(rng, gold, 0.9, 4) for code in ("deu_Latn", "swh_Latn")}
    poor = {code: noisy(rng, gold, 0.6, 4) for code in ("deu_Latn", "swh_Latn", "yor_Latn")}
    better = compare(good, poor)
    assert better.low > 0 and better.p_value == pytest.approx(1 / 2001)
    assert (better.languages, better.rows) == (2, 600)
    assert better.difference == pytest.approx(np.mean(list(better.per_language.values())))
    worse = compare(poor, good)
    assert (worse.difference, worse.low, worse.high) == pytest.approx((-better.difference, -better.high, -better.low))
    same = compare(good, good)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_comparison_of_equal_models_is_called_significant_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    gold, low = np.zeros(100, int), 0
    for _ in range(200):
        models = [{code: rows(gold, rng.random(100) > 0.7) for code in ("x", "y")} for _ in range(2)]
        low += compare(*models).p_value <= 0.05
    assert 0.01 <= low / 200 <= 0.10


def test_comparison_pairs_rows_by_id_and_keeps_only_common_ones():
    a = {"x": Predictions(np.array([0, 1, 0]), np.array([0, 1, 1]), ["p", "q", "r"])}
    b = {"x": Predictions(np.array([0, 1, 1]), np.array([1, 0, 1]), ["r", "q", "only b"])}
    found = compare(a, b)
    # q: only a is right; r: neither is
    assert (found.rows, found.difference) == (2, 0.5)


def test_comparison_refuses_what_cannot_be_paired():
    a = {"x": rows([0, 1], [0, 1])}
    with pytest.raises(InputError, match="no language with a common row id"):
        compare(a, {"y": a["x"]})
    with pytest.raises(InputError, match="no language with a common row id"):
        compare(a, {"x": rows([0, 1], [0, 1], prefix="other")})
    with pytest.raises(InputError, match="x: id '1' has different gold labels"):
        compare(a, {"x": rows([0, 0], [0, 1])})
    with pytest.raises(InputError, match="x: id 'p' occurs 2 times"):
        compare(a, {"x": Predictions(np.array([0, 1]), np.array([0, 1]), ["p", "p"])})
