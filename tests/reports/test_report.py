import csv
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from outline import Outline, printed

from xlt_ray import config
from xlt_ray.config import plain_yaml
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.evaluation.scores import Scores
from xlt_ray.languages import codes as language_codes
from xlt_ray.reports import plots, report

LABELS = ("weather", "music", "alarm", "light <on>")


def scores(count, sources=("eng_Latn",), rows=120, chance=None, seen=True, extra=(), sure=True):
    """Make scores up: `count` languages, the sources first, each some way less accurate than the one before."""
    rng = np.random.default_rng(0)
    others = [one.code for one in language_codes.all_languages() if one.code not in sources]
    codes = [*sources, *extra, *rng.permutation(others)][:count]
    gold = rng.integers(len(LABELS), size=rows)
    predictions = {}
    for position, code in enumerate(codes):
        right = rng.random(rows) < (chance if chance is not None else 0.95 - 0.6 * position / count)
        predicted = np.where(right, gold, (gold + rng.integers(1, len(LABELS), size=rows)) % len(LABELS))
        confidence = np.where(right, 0.9, 0.6).astype(np.float32) if sure else None
        predictions[code] = Predictions(gold, predicted, [str(index) for index in range(rows)], confidence)
    known = frozenset(code for code in codes if (one := language_codes.get(code)) and one.in_xlmr) if seen else None
    return metrics.score(predictions, LABELS, Roles(tuple(sources), seen=known), resamples=200, seed=0)


def experiment(*overrides):
    return config.build({"name": "trial", "sources": ["eng_Latn"]}, overrides)


MIXTURE = [{"language": "eng_Latn", "rows": 1701, "weight": 1.0, "share": 1.0, "draws": 1701.0, "repeats": 1.0}]
FACTS = {"name": "tiny", "description": "Only made for tests.", "licence": "CC0-1.0", "mixture": MIXTURE}
HISTORY = [{"epoch": n, "step": 40 * n, "train/epoch_loss": 2 / n, "dev/accuracy": 1 - 1 / (n + 1)} for n in (1, 2, 3)]


def page(folder, measured, chosen=None, history=HISTORY, environment=None, facts=FACTS):
    files = report.write(folder, measured, chosen or experiment(), facts, history, environment or {})
    return files, files["report.html"].read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_holds_every_number_whole_within_the_width(width):
    measured = scores(60)
    lines = printed(report.table(measured, experiment()), width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for one in measured.languages.values():
        (line,) = [line for line in lines if one.code in line]
        interval = f"[{100 * one.accuracy_low:4.1f}, {100 * one.accuracy_high:4.1f}]"
        for part in (one.role, f"{100 * one.accuracy:.1f}", interval, f"{100 * one.macro_f1:.1f}", "120"):
            assert part in line
        assert line.endswith(f"{100 * one.calibration_error:.1f}")
        assert f"{100 * one.transfer_gap:.1f}" in line
    mean = measured.summary["accuracy/mean_zero_shot"]
    assert re.search(rf"zero-shot languages, mean \(59\) +{100 * mean:.1f}", text)
    assert "  seen in pre-training (" in text and "  unseen in pre-training (" in text
    assert re.search(
        rf"worst +{100 * measured.worst().accuracy:.1f}.*{language_codes.name(measured.worst().code)}", text
    )


def test_how_far_to_trust_a_confidence_is_drawn_and_tabled(tmp_path):
    measured = replace(scores(60), temperature=1.3)
    _, text = page(tmp_path, measured)
    shown = Outline(text).text
    assert "divided by a temperature of 1.30" in shown and "What abstaining brings" in shown
    table = report.reliability(measured)
    assert list(table) == ["source languages", "zero-shot, seen in pre-training", "zero-shot, unseen in pre-training"]
    # of these scores every right answer has a confidence of 0.9, every wrong one of 0.6
    for rows in table.values():
        assert [rows[6][1], rows[9][0]] == [0, rows[9][1]]
        right = 100 * rows[9][0] / (rows[6][0] + rows[9][0])
        assert f"100.0 {right:.1f} 100.0 {right:.1f} {right:.1f} 100.0 {right:.1f} 100.0 {right:.1f} 100.0" in shown
    assert "zero-shot languages, mean (59)" in printed(report.table(measured, experiment()))
    assert re.search(r"temperature, fitted on source dev +1\.30", printed(report.table(measured, experiment())))


def test_without_dev_rows_or_confidences_that_is_stated_or_nothing(tmp_path):
    uncalibrated = scores(6)
    assert "none, as no source has dev rows" in printed(report.table(uncalibrated, experiment()))
    assert "No source has dev rows, so no temperature was fitted" in Outline(page(tmp_path, uncalibrated)[1]).text
    older = scores(6, sure=False)
    assert "ECE" not in printed(report.table(older, experiment()))
    assert "temperature" not in printed(report.table(older, experiment()))
    text = Outline(page(tmp_path, older)[1]).text
    assert "confidence" not in text.lower() and "Calibration error" not in text


def test_sources_come_first_and_then_the_best():
    measured = scores(30, sources=("eng_Latn", "swh_Latn"))
    order = measured.ranked()
    assert [one.role for one in order[:3]] == ["source", "source", "zero-shot"]
    assert all(a.accuracy >= b.accuracy for a, b in pairwise(order[2:]))
    lines = printed(report.table(measured, experiment())).splitlines()
    codes = [code for line in lines for code in re.findall(r" (\w{3}_\w{4}) ", line)]
    assert codes == [one.code for one in order]


def test_an_oracle_is_called_one_wherever_its_scores_are_shown(tmp_path):
    oracle, measured = experiment("training.select=target_dev"), scores(6)
    assert "oracle" in printed(report.table(measured, oracle)).splitlines()[0]
    _, text = page(tmp_path / "oracle", measured, oracle)
    assert "(oracle, an upper bound)" in re.search("<title>(.*)</title>", text)[1]
    assert "upper bound" in Outline(text).text
    assert "oracle" not in printed(report.table(measured, experiment())).lower()
    assert "oracle" not in Outline(page(tmp_path / "plain", measured)[1]).text.lower()


def test_a_table_file_holds_every_language_and_the_very_numbers(tmp_path):
    measured = scores(12, extra=("tst_Test",))
    path = tmp_path / "scores.tsv"
    report.write_table(path, measured)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = {row["code"]: row for row in csv.DictReader(stream, delimiter="\t")}
    assert set(rows) == set(measured.languages)
    for code, one in measured.languages.items():
        assert float(rows[code]["accuracy_low"]) == one.accuracy_low
        assert (rows[code]["role"], int(rows[code]["support"])) == (one.role, one.support)
    assert rows["eng_Latn"]["name"] == "English"
    assert rows["tst_Test"]["name"] == ""


def test_cautions_name_what_weakens_the_scores():
    shown = " ".join(report.cautions(scores(4, rows=400), experiment()))
    assert "Fewer than" not in shown and "commonest label" not in shown and "seed" in shown
    few = " ".join(report.cautions(scores(4, rows=30), experiment()))
    assert "Fewer than 100 test rows" in few and "all 4 languages" in few and "Intervals span up to" in few
    guessing = scores(12, rows=100, chance=0.2)
    assert "commonest label of the test rows: all 12 languages" in " ".join(report.cautions(guessing, experiment()))
    only_sources = " ".join(report.cautions(scores(1), experiment()))
    assert "nothing is known here about other languages" in only_sources
    no_source = " ".join(report.cautions(scores(3, sources=()), experiment()))
    assert "no transfer gap" in no_source
    refit = " ".join(report.cautions(scores(4), experiment("training.method=probe", "training.refit=source_dev")))
    assert "no score on them is held out" in refit and "held out" not in shown


def test_the_page_stands_alone_and_says_what_one_needs(tmp_path):
    chosen = experiment("tracking.uri=http://me:secret@host:5000", "mixture.alpha=0.5")
    environment = {"torch": "2.13.0", "proxy": "http://me:secret@host:5000"}
    measured = scores(30)
    facts = FACTS | {"fingerprint": "c0ffee"}
    facts["dropped"] = {"train": {"eng_Latn": 2, "deu_Latn": 1}, "dev": {"eng_Latn": 1}}
    files, text = page(tmp_path, measured, chosen, environment=environment, facts=facts)
    outline = Outline(text)

    for tag, attributes in outline.tags:
        for key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert not attributes.get(key) or attributes[key].startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))

    for shown in (
        "1,701 labelled rows in English",
        "In 29 other languages",
        "Only made for tests.",
        "Licence of the data: CC0-1.0",
        "3 rows of train left out because they stand in test too.",
        "1 row of dev left out because it stands in test too.",
        "the fingerprint c0ffee",
        "2.13.0",
        'xlt_ray.load("bundle")',
        "light <on>",
    ):
        assert shown in outline.text
    assert "secret" not in text
    for one in measured.languages.values():
        assert one.code in text and f"{100 * one.accuracy_low:.1f}–{100 * one.accuracy_high:.1f}" in text
    written = re.search(r"<summary>Configuration, as YAML</summary>\s*<pre><code>(.*?)</code>", text, re.DOTALL)[1]
    public = chosen.model_copy(update={"tracking": chosen.tracking.model_copy(update={"uri": "http://***@host:5000"})})
    assert config.build(plain_yaml.loads(written.replace("&#39;", "'"))) == public
    assert set(files) == {
        *("report.html", "scores.json", "scores.tsv"),
        *("languages.svg", "languages.png", "training.svg", "training.png"),
    }
    assert all(path.is_file() and path.name == name for name, path in files.items())
    assert Scores.from_json(files["scores.json"].read_text()) == measured
    assert files["languages.png"].read_bytes().startswith(b"\x89PNG")


def test_the_page_tells_rows_that_were_added_from_labelled_ones(tmp_path):
    facts = FACTS | {"added": {"one": {"swh_Latn": 500, "hin_Deva": 200}, "another": {"swh_Latn": 1}}}
    text = Outline(page(tmp_path, scores(4), facts=facts)[1]).text
    told = "700 rows that one added in 2 languages and 1 rows that another added in 1 language. In"
    assert f"trained on 1,000 labelled rows in English and {told}" in text


def test_the_page_can_be_used_without_seeing_it(tmp_path):
    outline = Outline(page(tmp_path, scores(30))[1])
    headings = [attributes for tag, attributes in outline.tags if tag == "th"]
    assert headings and all(attributes["scope"] in ("col", "row") for attributes in headings)
    pictures = [attributes for tag, attributes in outline.tags if tag == "svg"]
    assert len(pictures) == 3 and all(attributes["role"] == "img" for attributes in pictures)
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [attributes["aria-labelledby"] for _, attributes in outline.tags if "aria-labelledby" in attributes]
    assert set(named) <= set(ids)
    assert ("html", {"lang": "en", "dir": "ltr"}) in outline.tags


def test_what_is_unknown_is_left_out_of_the_page_and_not_made_up(tmp_path):
    measured = scores(5, sources=(), seen=False, extra=("tst_Test",))
    files, text = page(tmp_path, measured, history=[], facts={})
    shown = Outline(text).text
    assert "training.svg" not in files and "How training went" not in shown
    assert (
        "Transfer gap, mean" not in shown
        and "seen in pre-training, mean" not in shown
        and "nan" not in shown.lower().split()
    )
    assert "tst_Test" in shown and "unknown family" not in shown
    assert "Licence" not in shown and "None" not in shown
    assert "Only source languages" in Outline(page(tmp_path, scores(1))[1]).text


def test_names_from_a_corpus_cannot_put_code_into_the_page(tmp_path):
    evil = "<script>alert(1)</script>"
    facts = FACTS | {"description": evil, "licence": evil}
    text = page(tmp_path, scores(3), facts=facts, environment={evil: evil})[1]
    assert evil not in text
    assert text.count("<script>") == 1


def test_the_same_scores_give_the_same_files(tmp_path):
    first, again = (page(tmp_path / name, scores(30))[0] for name in ("first", "again"))
    for name in first:
        assert first[name].read_bytes() == again[name].read_bytes(), name


@pytest.mark.parametrize("count", [1, 2, 12, 50, 90, 200, 228])
def test_in_the_chart_every_language_has_a_place_and_no_words_meet(count):
    measured = scores(count)
    figure = plots.bars(measured)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    words = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    (legend,) = figure.legends
    boxes = [text.get_window_extent() for text in [*words, *legend.get_texts()]]
    width, height = canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    assert not any(a.overlaps(b) for at, a in enumerate(boxes) for b in boxes[:at])
    shown = [text.get_text().removesuffix(" †") for text in words]
    for code in measured.languages:
        assert language_codes.name(code).replace(" script)", ")") in shown
    assert len(figure.axes) <= 3


def test_the_chart_puts_sources_first_then_families_from_large_to_small():
    listed = plots.groups(scores(120))
    titles = list(listed)
    assert titles[0] == "Source languages" and titles[-1] == "Families of one language here"
    sizes = [len(listed[title]) for title in titles[1:-1]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 1
    for members in listed.values():
        assert all(a.accuracy >= b.accuracy for a, b in pairwise(members))
    assert sum(map(len, listed.values())) == 120
    assert list(plots.groups(scores(12))) == ["Source languages", "Zero-shot languages"]


def test_training_curves_show_what_was_recorded_and_nothing_else():
    assert plots.curve([], "accuracy") is None
    assert plots.curve([{"step": 3.0}], "accuracy") is None
    loss, dev = plots.curve(HISTORY, "accuracy").axes
    assert loss.lines[0].get_xydata().tolist() == [[row["epoch"], row["train/epoch_loss"]] for row in HISTORY]
    assert dev.lines[0].get_ydata() == pytest.approx([100 * row["dev/accuracy"] for row in HISTORY])
    oracle = [row | {"oracle_dev/accuracy": 0.5} for row in HISTORY]
    assert [line.get_label() for line in plots.curve(oracle, "accuracy").axes[1].lines] == ["source", "target (oracle)"]
    assert len(plots.curve([{"epoch": 1, "train/loss": 0.5}], "accuracy").axes) == 1


def test_drawing_leaves_matplotlib_as_it_was():
    code = (
        "import sys, matplotlib; before = list(dict.items(matplotlib.rcParams))\n"  # not .items(): it picks a backend
        "from xlt_ray.reports import plots\n"
        "plots.svg(plots.curve([{'epoch': 1, 'train/loss': 1.0}], 'accuracy'), 'one', 'two')\n"
        "assert list(dict.items(matplotlib.rcParams)) == before and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
