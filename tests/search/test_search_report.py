import csv
import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from outline import Outline, printed

from xlt_ray import config
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.paired import comparison
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.languages import codes as language_codes
from xlt_ray.search import selection, space
from xlt_ray.search.findings import Correlation, Findings, Retrained, correlation, importance, rule_choices, shortlist
from xlt_ray.search.report import figures as search_figures
from xlt_ray.search.report import page as search_page
from xlt_ray.search.report import summary
from xlt_ray.search.selection import Judge, Tried

CODES = [one.code for one in language_codes.all_languages() if one.in_xlmr]
UNSEEN = [one.code for one in language_codes.all_languages() if not one.in_xlmr]
PLOTS = ("cost", "alpha", "importance", "heat")


def search(pool, targets, rule="held_out_sources", objectives=("mean",), alpha=True, weights=False, **settings):
    ranges: dict = {"sources": {"at_most": min(4, len(pool) - 1)}}
    ranges |= {"mixture.alpha": {"uniform": [0, 1]}} if alpha else {}
    ranges |= {"mixture.weights": "simplex"} if weights else {}
    selected = {"languages": rule, "objectives": list(objectives)}
    return space.build(
        {
            "name": "mixes",
            "sources": list(pool),
            "targets": list(targets),
            "search": {"space": ranges, "selection": selected, **settings},
        }
    )


def tried(rng, asked, ease, worth, fidelity, seconds, point=None, whole=True, slope=0.0):
    """Make a mix and its dev scores up: what its languages are worth, how easy each language is, and chance."""
    keys = {one.key for one in asked.dimensions}
    if point is None:
        size = rng.integers(1, asked.dimensions[0].high + 1)
        point = {"sources": sorted(rng.choice(asked.pool, size, replace=False).tolist())}
        point |= {"mixture.alpha": round(float(rng.random()), 3)} if "mixture.alpha" in keys else {}
        if "mixture.weights" in keys:
            point["mixture.weights"] = dict(zip(point["sources"], rng.dirichlet(np.ones(size)).tolist(), strict=True))
    sources = point["sources"]
    shares = point.get("mixture.weights", dict.fromkeys(sources, 1.0))
    level = 0.5 + sum(worth[code] * shares[code] for code in sources) + 0.02 * np.sqrt(len(sources))
    level += slope * point.get("mixture.alpha", 0.0) * (len(sources) > 1) + (0.05 if fidelity == "fine_tune" else 0.0)
    measured = (*asked.pool, *asked.base.targets) if asked.oracle else asked.pool
    accuracy = {
        code: float(np.clip(level + ease[code] + 0.15 * (code in sources) + rng.normal(0, 0.01), 0.02, 0.99))
        for code in measured
    }
    epochs = 0 if fidelity == "probe" else 5 if whole else 1
    spent: dict[str, float] = {"seconds": seconds, "cost": 0.5 if fidelity == "probe" else 60.0}
    one = Tried(point, fidelity, epochs=epochs, whole=whole, accuracy=accuracy, **spent)
    judge = Judge(asked, difficulty(asked, ease))
    value = judge.value(one)
    return one if value is None else replace(one, low=value - 0.021, high=value + 0.019)


def difficulty(asked, ease):
    mean = np.mean([ease[code] for code in asked.pool])
    found = {code: ease[code] - mean for code in asked.pool}
    return {"probe": found, "fine_tune": found} if not asked.oracle else {}


def retrained(asked, named, seeds, gains, rows=60):
    """Make the test scores of retrained mixes up, a better one right on the rows of a worse one and on more."""
    rng = np.random.default_rng(1)
    chance = {code: rng.random(rows) for code in (*asked.pool, *asked.base.targets)}
    found, predictions = [], {}
    for (name, point), gain in zip(named, gains, strict=True):
        each = []
        for _ in range(seeds):
            codes = (*point["sources"], *asked.base.targets)
            right = {code: chance[code] + rng.normal(0, 0.03, rows) < 0.6 + gain for code in codes}
            ids, gold = np.arange(rows).astype(str), np.zeros(rows, int)
            each.append({code: Predictions(gold, (~one).astype(int), ids) for code, one in right.items()})
        roles = Roles(tuple(point["sources"]), seen=frozenset(CODES))
        scores = [metrics.score(one, ("a", "b"), roles, resamples=200) for one in each]
        found.append(Retrained(name, point, tuple(f"retrained/{name}-{n}" for n in range(seeds)), tuple(scores)))
        predictions[name] = each
    targets = asked.base.targets
    grouped = {"zero-shot": list(targets), "zero-shot unseen": [code for code in targets if code in UNSEEN]}
    compared = {
        name: {
            group: comparison.compare_seeds([{c: one[c] for c in codes} for one in predictions["chosen"]], each)
            for group, codes in grouped.items()
            if codes
        }
        for name, each in predictions.items()
        if name != "chosen"
    }
    return tuple(found), compared


def findings(
    pool=6, targets=8, probes=120, tuned=6, seeds=3, gains=(0.1, 0.0, 0.1), compare_oracle=False, slope=0.0, **asked
):
    """Make the findings of a search up; `pool` may be codes."""
    rng = np.random.default_rng(0)
    codes = CODES[20 : 20 + pool] if isinstance(pool, int) else list(pool)
    seen = [code for code in CODES[-60:] if code not in codes][: targets // 2]
    others = seen + UNSEEN[: targets - len(seen)]
    made = search(codes, others, **asked)
    ease = {code: float(rng.normal(0, 0.08)) for code in (*codes, *others)}
    worth = {code: 0.02 * (at - len(codes) / 2) for at, code in enumerate(codes)}
    judge = Judge(made, difficulty(made, ease))
    each = [tried(rng, made, ease, worth, "probe", 0.3 * n + 2, slope=slope) for n in range(probes)]
    best = [one.point for one in judge.ranked(each)[:tuned]]
    for n in range(tuned):
        point = best[n % len(best)] if best else None
        at = 0.3 * probes + 60 * (n + 1)
        each.append(tried(rng, made, ease, worth, "fine_tune", at, point, n % 3 != 2, slope))
    chosen = judge.choose(each)
    rules = rule_choices(judge, each)
    if compare_oracle:
        known = [(one, 0.4 + 0.01 * (codes[0] in one.point["sources"])) for one in each if one.fidelity == "probe"]
        extra = [replace(one, accuracy={**one.accuracy, **dict.fromkeys(others, value)}) for one, value in known]
        rules = rule_choices(judge, extra)
    named = [
        ("chosen", chosen.point),
        ("best single source", {"sources": [codes[-1]]}),
        ("all sources, alpha 1", {"sources": codes, "mixture.alpha": 1.0}),
    ]
    runs, compared = retrained(made, named, seeds, gains) if seeds else ((), {})
    correlated = correlation(judge, each)
    busy = 0.83 if tuned else None
    ranking = tuple({"code": code, "score": 0.5} for code in codes)
    seconds = each[-1].seconds
    return Findings(made, judge, tuple(each), chosen, rules, correlated, runs, compared, ranking, seconds, busy)


@pytest.fixture(scope="module")
def usual():
    """Return the findings of an ordinary search."""
    return findings(pool=6, targets=8, probes=120, tuned=15)


@pytest.fixture(scope="module")
def oracle():
    """Return the findings of a search that target labels ranked."""
    return findings(pool=6, targets=8, probes=60, tuned=6, rule="targets", objectives=("mean", "worst"))


def page(folder, found):
    files = search_page.write(folder, found)
    return files, files["search.html"].read_text(encoding="utf-8")


def rows_of(found):
    """Print the trials' table wide and return its rows, a line each."""
    text = printed(search_page.table(found), 200)
    return [line for line in text.split("chosen:")[0].splitlines() if re.search(r"fine-tuned|stopped|probe", line)]


def test_importance_recovers_what_languages_are_worth():
    found = findings(pool=8, targets=2, probes=400, tuned=0, seeds=0)
    pool = found.search.pool
    effects = importance(found.judge, found.tried)
    worth = np.array([0.02 * at for at in range(8)])
    assert list(effects) == list(reversed(pool)), "the greatest first"
    assert [effects[code].value for code in pool] == pytest.approx(worth - worth.mean(), abs=0.004)
    assert sum(one.value for one in effects.values()) == pytest.approx(0, abs=1e-9)
    for code, one in effects.items():
        assert one.low < one.value < one.high and one.high - one.low < 0.02
        mixes = {tuple(each.point["sources"]) for each in found.tried}
        assert one.mixes == sum(code in mix for mix in mixes)


def test_importance_is_per_tenth_of_the_weight_where_weights_were_searched():
    found = findings(pool=5, targets=2, probes=400, tuned=0, seeds=0, weights=True, alpha=False)
    worth = np.array([0.02 * at for at in range(5)])
    effects = importance(found.judge, found.tried)
    assert [effects[code].value for code in found.search.pool] == pytest.approx(0.1 * (worth - worth.mean()), abs=0.001)


def test_importance_covers_no_effect_as_often_as_it_says():
    asked, rng, missed, found = search(CODES[:6], UNSEEN[:2]), np.random.default_rng(3), 0, 0
    nothing = dict.fromkeys((*asked.pool, *asked.base.targets), 0.0)
    for _ in range(60):
        each = [tried(rng, asked, nothing, nothing, "probe", 1.0) for _ in range(40)]
        effects = importance(Judge(asked), each)
        missed += sum(not one.low <= 0 <= one.high for one in effects.values())
        found += len(effects)
    assert found == 360 and missed < 0.12 * found


def test_a_mix_that_the_searcher_returns_to_counts_once_for_importance():
    found = findings(probes=100, tuned=0, seeds=0)
    often = [replace(found.tried[0], accuracy=found.tried[0].accuracy) for _ in range(500)]
    first, again = (importance(found.judge, each) for each in (found.tried, [*found.tried, *often]))
    assert {code: one.mixes for code, one in first.items()} == {code: one.mixes for code, one in again.items()}
    for code, one in first.items():
        assert again[code].high - again[code].low == pytest.approx(one.high - one.low, rel=0.2)


def test_importance_says_nothing_where_it_cannot_tell():
    few = findings(pool=6, probes=8, tuned=0, seeds=0)
    assert importance(few.judge, few.tried) == {}
    assert importance(few.judge, []) == {}
    found = findings(pool=6, probes=200, tuned=0, seeds=0)
    never = found.search.pool[2]
    without = [one for one in found.tried if never not in one.point["sources"]]
    effects = importance(found.judge, without)
    assert set(effects) == set(found.search.pool) - {never}
    first, second = found.search.pool[:2]
    twins = [one for one in found.tried if (first in one.point["sources"]) == (second in one.point["sources"])]
    assert set(importance(found.judge, twins)) == set(found.search.pool) - {first, second}


def test_importance_is_of_fine_tunings_where_nothing_was_probed():
    found = findings(pool=4, probes=0, tuned=40, seeds=0)
    whole = {tuple(one.point["sources"]) for one in found.tried if one.whole}
    for code, one in importance(found.judge, found.tried).items():
        assert one.mixes == sum(code in mix for mix in whole)


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_shows_all_of_it_within_the_width(usual, oracle, width):
    for found in (usual, oracle):
        text = printed(search_page.table(found), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text.split("Retrained")[1]
        assert "optimistic" in text and "chosen:" in text and "Workers of fine-tuning" in text


def test_the_terminal_ranks_fine_tuned_mixes_then_probes(usual):
    lines, judge = rows_of(usual), usual.judge
    kinds = [re.search("fine-tuned|stopped|probe", line)[0] for line in lines]
    assert kinds == 10 * ["fine-tuned"] + 5 * ["probe"]
    listed = shortlist(judge, usual.tried, 10, 5)
    assert listed[0] == usual.chosen
    tuned = {one.mix for one in usual.tried if one.fidelity == "fine_tune"}
    for part in (listed[:10], listed[10:]):
        assert all(judge.value(a) >= judge.value(b) for a, b in pairwise(part))
    assert not any(one.mix in tuned for one in listed[10:])
    for line, one in zip(lines, listed, strict=True):
        worst = min(judge.languages(one), key=lambda code: one.accuracy[code])
        assert f"{100 * judge.value(one):.1f}" in line and f"[{100 * one.low:4.1f}, {100 * one.high:4.1f}]" in line
        assert f"{100 * one.accuracy[worst]:.1f} {language_codes.name(worst)}" in line
        assert worst not in one.point["sources"]


def test_stopped_trials_come_after_whole_ones_and_say_how_far_they_got():
    lines = rows_of(findings(tuned=6))
    assert [re.search("fine-tuned|stopped|probe", line)[0] for line in lines[:7]] == [
        *(4 * ["fine-tuned"]), *(2 * ["stopped"]), "probe",
    ]  # fmt: skip
    assert all("1 of 5" in line for line in lines[4:6])


def test_retrained_means_spreads_and_differences_are_the_very_numbers(usual, tmp_path):
    text, outlined = printed(search_page.table(usual), 200), Outline(page(tmp_path, usual)[1]).text
    for one in usual.retrained:
        values = [100 * score.summary["accuracy/mean_zero_shot"] for score in one.scores]
        assert f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" in text
        assert f"{np.mean(values):.1f} {min(values):.1f}–{max(values):.1f}" in outlined
    for name, groups in usual.comparisons.items():
        for group, one in groups.items():
            low, high, by = 100 * one.low, 100 * one.high, 100 * one.difference
            interval = re.escape(f"[{low:+.1f}, {high:+.1f}]")
            assert re.search(rf"{name} +{group} +{one.languages} +{re.escape(f'{by:+.1f}')} +{interval}", text)
    better, level = (
        usual.comparisons["best single source"]["zero-shot"],
        usual.comparisons["all sources, alpha 1"]["zero-shot"],
    )
    assert better.low > 0 > level.low
    assert f"better than “best single source” by {100 * better.difference:.1f} points" in outlined
    assert (
        "not told apart from “all sources, alpha 1”" in outlined
        and "not told apart from 'all sources, alpha 1'" in outlined
    )


def test_the_spread_over_seeds_of_a_difference_is_over_pairs(usual):
    found = {(name, group): seeds for name, group, _, seeds in summary.differences(usual)}
    chosen, other = usual.retrained[0].scores, usual.retrained[1].scores
    key = "accuracy/mean_zero_shot"
    gains = [a.summary[key] - b.summary[key] for a, b in zip(chosen, other, strict=True)]
    assert found["best single source", "zero-shot"] == (min(gains), max(gains))


def pictures(found):
    figures = {stem: getattr(search_figures, stem)(found) for stem in PLOTS}
    return {stem: figure for stem, figure in figures.items() if figure is not None}


def words(figure):
    """List the texts that are drawn, so without ticks that lie outside of the view."""
    hidden = set()
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    shown = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    return [
        one for one in shown if one not in hidden and (one.axes is None or one.axes.axison or one in one.axes.texts)
    ]


def test_an_oracle_is_called_one_everywhere(oracle, tmp_path):
    text = printed(search_page.table(oracle), 200)
    heads = ("mixes:", "Pareto front", "Retrained", "Chosen less baseline")
    for head in heads:
        (line,) = [line for line in text.splitlines() if line.startswith(head)]
        assert "oracle, an upper bound" in line
    assert "targets (oracle)" in text
    files, html = page(tmp_path, oracle)
    outline = Outline(html)
    assert "(oracle, an upper bound)" in re.search("<title>(.*?)</title>", html)[1]
    assert (
        "not a zero-shot result" in outline.text
        and "Chosen by rule targets (oracle" in files["chosen.yaml"].read_text()
    )
    captions = re.findall("<caption hidden>(.*?)</caption>", html)
    assert {one for one in captions if "oracle" not in one} <= {"Rules and their choices", "Ranking by similarity"}
    header = files["search.tsv"].read_text().splitlines()[0].split("\t")
    assert {"oracle_dev/objective/mean", "oracle_dev/objective/worst", "oracle_dev/objective/mean_low"} <= set(header)
    for code in oracle.search.base.targets:
        assert f"oracle_dev/accuracy/{code}" in header and f"dev/accuracy/{code}" not in header
    for stem, figure in pictures(oracle).items():
        assert any("oracle, an upper bound" in one.get_text() for one in words(figure)), stem


def test_nothing_else_is_called_an_oracle(usual, tmp_path):
    assert "oracle" not in printed(search_page.table(usual), 200).lower()
    files, _ = page(tmp_path, usual)
    for name, path in files.items():
        assert "oracle" not in path.read_bytes().decode(errors="ignore").lower().replace("compare_oracle", ""), name


def test_the_targets_rule_is_an_oracle_beside_a_search_that_is_none(tmp_path):
    found = findings(compare_oracle=True)
    text = printed(search_page.table(found), 200)
    assert "oracle" not in text.split("What each rule")[0]
    assert re.search(r"^targets \(oracle\) ", text, re.MULTILINE) and "(probe mixes)" in text
    assert "the best mix by held_out_sources (probe) scores 1.0 points less than the oracle's" in text
    _, html = page(tmp_path, found)
    assert "oracle" not in re.search("<title>(.*?)</title>", html)[1] and 'class="tag"' not in html
    assert "upper bound" not in Outline(html).text
    assert re.search(r'<th scope="row">targets \(oracle\)', html)


def test_the_choice_is_an_experiment_that_trains(usual, oracle, tmp_path):
    for name, found in (("usual", usual), ("oracle", oracle)):
        path = search_page.write(tmp_path / name, found)["chosen.yaml"]
        assert config.load(path) == found.search.experiment(found.chosen.point)
        text = path.read_text()
        assert text.startswith("# ") and "search.html" in text and found.search.settings.selection.languages in text


def test_every_trial_is_a_row_of_the_table_file(usual, tmp_path):
    with search_page.write(tmp_path, usual)["search.tsv"].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == len(usual.tried)
    for row, one in zip(rows, usual.tried, strict=True):
        assert json.loads(row["point"]) == one.point and row["fidelity"] == one.fidelity
        assert (int(row["epochs"]), row["whole"]) == (one.epochs, str(one.whole))
        assert float(row["dev/objective/mean"]) == usual.judge.value(one)
        assert float(row["dev/objective/mean_low"]) == one.low and float(row["seconds"]) == one.seconds
        assert {code: float(row[f"dev/accuracy/{code}"]) for code in one.accuracy} == one.accuracy


def test_a_mix_without_a_score_has_none_in_the_files(tmp_path):
    found = findings(probes=60)
    pool = {"sources": sorted(found.search.pool), "mixture.alpha": 1.0}
    whole = Tried(pool, "probe", accuracy=dict.fromkeys(found.search.pool, 0.7), seconds=1.5, cost=0.4)
    found = replace(found, tried=(whole, *found.tried))
    with search_page.write(tmp_path, found)["search.tsv"].open(encoding="utf-8", newline="") as stream:
        first = next(csv.DictReader(stream, delimiter="\t"))
    assert first["dev/objective/mean"] == first["dev/objective/mean_low"] == ""
    assert "all 6 of the pool" not in "".join(rows_of(found))


def test_the_page_stands_alone_and_can_be_used_without_seeing_it(usual, oracle, tmp_path):
    for name, found in (("usual", usual), ("oracle", oracle)):
        files, html = page(tmp_path / name, found)
        outline = Outline(html)
        for tag, attributes in outline.tags:
            for key in ("src", "href", "xlink:href", "srcset"):
                assert not attributes.get(key) or attributes[key].startswith(("#", "data:")), (tag, attributes)
        headings = [attributes for tag, attributes in outline.tags if tag == "th"]
        assert headings and all(attributes["scope"] in ("col", "row") for attributes in headings)
        tables = sum(tag == "table" for tag, _ in outline.tags)
        assert tables == sum(tag == "caption" for tag, _ in outline.tags) >= 5
        drawn = [attributes for tag, attributes in outline.tags if tag == "svg"]
        assert len(drawn) == 4 and all(attributes["role"] == "img" for attributes in drawn)
        ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {a["aria-labelledby"] for _, a in outline.tags if "aria-labelledby" in a} <= set(ids)
        assert set(files) == {"search.html", "search.tsv", "chosen.yaml"} | {
            f"{stem}.{suffix}" for stem in PLOTS for suffix in ("svg", "png")
        }
        assert all(path.is_file() and path.name == name for name, path in files.items())
        for code in (*found.search.base.targets, *found.chosen.point["sources"]):
            assert language_codes.name(code) in outline.text


@pytest.mark.parametrize(
    "missing",
    [
        {"seeds": 0}, {"probes": 0, "tuned": 4}, {"tuned": 0}, {"seeds": 1}, {"alpha": False}, {"tuned": 1},
        {"pool": 3, "targets": 1, "probes": 10, "tuned": 0},
        {"pool": 2, "targets": 1, "probes": 3, "tuned": 0, "seeds": 0},
        {"rule": "sources"}, {"weights": True, "alpha": False}, {"targets": 0, "seeds": 0},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_there_is_left_out_and_not_made_up(missing, tmp_path):
    found = findings(**({"probes": 40, "tuned": 5} | missing))
    text = printed(search_page.table(found))
    files, html = page(tmp_path, found)
    outlined = Outline(html).text
    for shown in (text, outlined):
        assert "nan" not in shown.lower().split() and "None" not in shown
    assert ("Retrained" in text) == ("Trained again and" in outlined) == bool(found.retrained)
    assert ("nothing was measured on test" in " ".join(text.split())) == (not found.retrained)
    assert ("Nothing was fine-tuned" in outlined) == (not any(one.fidelity == "fine_tune" for one in found.tried))
    assert ("alpha.svg" in files) == ("alpha" not in missing and len(found.search.pool) > 2)
    assert (" to " in text.split("Retrained")[-1].split("Chosen less")[0]) == (
        missing.get("seeds", 3) > 1
    ) or not found.retrained
    assert ("One seed was retrained" in outlined) == (missing.get("seeds") == 1)


def test_scores_that_count_as_equal_are_said_to_and_why_one_of_them_was_chosen():
    found = findings(pool=6, targets=8, probes=120, tuned=0, seeds=0)
    assert "count as equal" not in printed(search_page.table(found), 200), "nothing is known of similarity"
    lenient = found.search.settings.selection.model_copy(update={"standard_errors": 4.0})
    asked = replace(found.search, settings=found.search.settings.model_copy(update={"selection": lenient}))
    found = replace(found, search=asked, judge=replace(found.judge, search=asked))
    nearness = {code: dict.fromkeys(found.search.base.targets, 0.5) for code in found.search.pool}
    first, *others = replace(found.judge, nearness=nearness).near(found.tried)
    rare = next(code for one in others for code in one.point["sources"] if code not in first.point["sources"])
    nearness[rare] = dict.fromkeys(found.search.base.targets, 0.75)
    judge = replace(found.judge, nearness=nearness)
    chosen = judge.choose(found.tried)
    assert rare in chosen.point["sources"] and chosen in others
    text = printed(search_page.table(replace(found, judge=judge, chosen=chosen)), 1000)
    assert f"{1 + len(others)} probed mixes are within 4 standard errors of the best score and count as equal" in text
    away = 100 * (judge.value(first) - judge.value(chosen))
    assert f"which scores {away:.1f} points less than the best, is the most similar to the targets" in text
    assert "covers them to 0.75, all of the pool to 0.75" in text


def test_a_fidelity_that_misleads_is_said_to(usual):
    misleading = replace(usual, correlation=Correlation(0.2, -0.4, 0.7, 9))
    assert "Screening may mislead here" in printed(search_page.table(misleading), 200)
    unknown = replace(usual, correlation=Correlation(float("nan"), float("nan"), float("nan"), 4))
    assert "Screening may mislead here" in printed(search_page.table(unknown), 200)
    weak = replace(usual, correlation=Correlation(0.4, 0.1, 0.7, 9))
    assert "only roughly" in printed(search_page.table(weak), 200)
    strong = replace(usual, correlation=Correlation(0.8, 0.4, 0.9, 9))
    assert "much as fine-tuning does: Spearman's correlation 0.80 [0.40, 0.90] over 9" in printed(
        search_page.table(strong), 200
    )
    assert "unknown" in printed(search_page.table(replace(usual, correlation=None)), 200)


def test_several_objectives_have_a_pareto_front_and_one_has_none(usual, tmp_path):
    assert "Pareto" not in printed(search_page.table(usual)) + page(tmp_path / "one", usual)[1]
    found = findings(probes=40, tuned=12, objectives=("mean", "worst"))
    one = next(one for one in found.tried if one.fidelity == "fine_tune" and one.whole and one != found.chosen)
    best = {code: (0.6 if code not in one.point["sources"] else value) for code, value in one.accuracy.items()}
    found = replace(
        found, tried=(*found.tried, replace(one, point={**one.point, "training.warmup": 0.3}, accuracy=best))
    )
    front = found.judge.pareto(selection.whole_fine_tunings(found.tried))
    outlined = printed(search_page.table(found), 200).split("Pareto front")[1].split("Retrained")[0]
    for each in front:
        mean, worst = (100 * found.judge.value(each, objective) for objective in ("mean", "worst"))
        assert f"mean {mean:.1f}, worst {worst:.1f}" in outlined
    assert outlined.count("worst") == len(front)
    html = page(tmp_path / "two", found)[1]
    table = html.split("<caption hidden>Pareto front")[1].split("</table>")[0]
    assert table.count("<tr") == 1 + len(front)


def test_names_cannot_put_code_into_the_page_or_break_a_picture(tmp_path):
    evil = "<script>alert(1)</script>"
    with pytest.warns(UserWarning, match="is not in xlt_ray/languages/languages.tsv"):
        found = findings(pool=[evil, "$\\foo$", "[red]x[/red]", *CODES[:3]], probes=60, tuned=4)
        found = replace(found, notes=(evil,), ranking=({"code": evil, "score": 1.0},))
        _, html = page(tmp_path, found)
        text = printed(search_page.table(found), 200)
    assert evil not in html and html.count("<script>") == 1
    assert evil in text and "[red]x[/red]" in text


def test_notes_keep_no_password(usual, tmp_path):
    found = replace(usual, notes=("could not reach https://me:secret@host",))
    assert "secret" not in page(tmp_path, found)[1]


def test_the_same_findings_give_the_same_files(tmp_path):
    first, again = (search_page.write(tmp_path / name, findings(probes=40)) for name in ("first", "again"))
    for name in first:
        assert first[name].read_bytes() == again[name].read_bytes(), name


@pytest.mark.parametrize(
    "size",
    [
        {"pool": 12, "targets": 40, "probes": 200, "tuned": 15, "rule": "targets"},
        {"pool": 3, "targets": 2, "probes": 10, "tuned": 0},
        {"pool": 12, "targets": 150, "probes": 30, "tuned": 3, "rule": "targets"},
        {"pool": 6, "targets": 4, "probes": 120, "tuned": 5, "weights": True},
    ],
    ids=lambda size: f"{size['pool']}-{size['targets']}",
)
def test_no_words_meet_or_leave_a_picture(size):
    for stem, figure in pictures(findings(**size, seeds=0)).items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        boxes = [(one.get_text(), one.get_window_extent()) for one in words(figure)]
        for text, box in boxes:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (stem, text)
        for at, (text, box) in enumerate(boxes):
            for other, beside in boxes[:at]:
                assert not box.overlaps(beside), (stem, text, other)


def test_alpha_is_drawn_at_equal_languages():
    found = findings(pool=6, probes=300, tuned=0, seeds=0, slope=-0.04)
    axes = search_figures.alpha(found).axes[0]
    (curve,) = axes.lines
    at, values = np.asarray(curve.get_data())
    assert values[-1] - values[0] == pytest.approx(-4 * (at[-1] - at[0]), abs=0.8)
    dots, intervals = axes.collections[0].get_offsets(), axes.collections[1].get_segments()
    assert len(dots) == sum(len(one.point["sources"]) > 1 for one in found.tried)
    assert np.std(dots[:, 1]) < 3  # without the languages' own part, which spreads over 30 points
    assert len(intervals) == len(values) and all(
        low < value < high for value, ((_, low), (_, high)) in zip(values, intervals, strict=True)
    )
    assert search_figures.alpha(findings(alpha=False, probes=40)) is None


def test_few_values_of_alpha_are_averaged_each_by_itself():
    found = findings(pool=6, probes=300, tuned=0, seeds=0, slope=-0.04)
    coarse = [
        replace(one, point={**one.point, "mixture.alpha": round(one.point["mixture.alpha"])}) for one in found.tried
    ]
    axes = search_figures.alpha(replace(found, tried=tuple(coarse))).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0, 1]


def test_cost_shows_every_scored_trial_and_the_best_so_far(usual):
    axes = search_figures.cost(usual).axes[0]
    assert sum(len(dots.get_offsets()) for dots in axes.collections if dots.get_label()[0] != "_") == len(usual.tried)
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    for fidelity in ("probe", "fine-tuned"):
        steps = lines[f"best so far, {fidelity}"]
        assert all(a <= b for a, b in pairwise(steps))
    assert lines["best so far, fine-tuned"][-1] == pytest.approx(100 * usual.judge.value(usual.chosen))
    assert lines["chosen, 95% interval"] == pytest.approx([100 * usual.judge.value(usual.chosen)])
    hollow = [dots for dots in axes.collections if "stopped" in str(dots.get_label())]
    assert len(hollow[0].get_offsets()) == sum(not one.whole for one in usual.tried)


def test_the_map_outlines_own_sources_and_prints_every_value(usual):
    figure = search_figures.heat(usual)
    shown = [one.get_text() for one in words(figure)]
    rows = shortlist(usual.judge, usual.tried, 12, 12)[:12]
    outlined = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    assert len(outlined) == sum(len(one.point["sources"]) for one in rows)
    values = [f"{100 * value:.0f}" for one in rows for value in one.accuracy.values()]
    assert sorted(one for one in shown if one.isdigit()) == sorted(values)
