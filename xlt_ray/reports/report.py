"""Report the scores of a run: a table for the terminal, a table file, and an HTML page that needs no other file.

The page is for a person who has never seen this project: what was trained on what, how good it is in each language and
how sure that is, what to beware of, how to load the model and how to get the same result again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from xlt_ray import config, durable, supervision, tasks
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.masking import masked
from xlt_ray.errors import InputError
from xlt_ray.evaluation import calibration, groups
from xlt_ray.evaluation.metrics import classification_report
from xlt_ray.evaluation.scores import ENDS, LanguageScore, Scores, load_scores, metric_title
from xlt_ray.languages import codes
from xlt_ray.reports import plots
from xlt_ray.reports.page import percent, render, terminal_table

LEAST = (0.0, 0.5, 0.7, 0.8, 0.9)  # confidences below which abstaining is shown
FEW_ROWS = 100  # below this an accuracy near 80% has an interval of more than 16 points
ORACLE = (
    "Oracle: dev labels of the target languages chose the epoch that was kept, so these scores are an upper bound "
    "and not a zero-shot result."
)
FEW_SHOT = (
    "Few-shot: some labelled rows of the languages with that role were trained on, so their scores are no zero-shot "
    "results."
)
REFIT = (
    "After the penalty was chosen, the probe was fitted once more with dev of the sources, so no score on "
    "them is held out; confidences were calibrated on them before that."
)
_SUMMARY = (groups.ZERO_SHOT, groups.ZERO_SHOT_SEEN, groups.ZERO_SHOT_UNSEEN, groups.FEW_SHOT, groups.SOURCE)


def few_shot(scores: Scores) -> bool:
    """Return whether rows of a language besides the sources were trained on."""
    return groups.FEW_SHOT in groups.of(scores.languages)


SHORT = {"accuracy": "acc", "macro_f1": "F1"}  # headings of metrics, else their titles


def table(scores: Scores, experiment: Experiment) -> Group:
    """Lay out scores in per cent for a terminal of 80 columns or more."""
    title = f"{experiment.name}: test scores in % ({_called(scores, experiment)})"
    calibrated = any(one.calibration_error is not None for one in scores.languages.values())
    main, second = (SHORT.get(name, metric_title(name)) for name in scores.metrics[:2])
    heads = ("n", main, "95% interval", second, "gap", *(["ECE"] if calibrated else []))
    rows = terminal_table(title, ("language", "code", "role", "seen"), heads)
    for one in scores.ranked():
        name = Text(codes.name(one.code), no_wrap=True, overflow="ellipsis")
        first, beside = [*one.metrics.values()][:2]
        value, other, gap = map(percent, (first.value, beside.value, one.transfer_gap))
        numbers = (str(one.support), value, _interval(first.low, first.high), other, gap)
        error = [percent(one.calibration_error)] if calibrated else []
        rows.add_row(name, one.code, _short_role(one), _seen(one), *numbers, *error)
    lines = [line for sentence in _supervised(scores, experiment) for line in (sentence, "")]
    return Group(rows, Text("\n".join(["", *lines, *_summary_lines(scores)])))


def role(one: LanguageScore) -> str:
    """Return the role of a language with what was read of it, such as "zero-shot + parallel text"."""
    return supervision.shown(one.supervision) if one.role == groups.ZERO_SHOT else one.role


def _short_role(one: LanguageScore) -> str:
    return role(one).removeprefix(f"{groups.ZERO_SHOT} ").removesuffix(" text")


def _called(scores: Scores, experiment: Experiment) -> str:
    """Return what the scores of targets are called in a title: their highest rung, and the oracle as what it is."""
    members = groups.of(scores.languages)
    found = [supervision.shown(scores.supervision)] if groups.ZERO_SHOT in members else []
    found = ["oracle, an upper bound"] if experiment.oracle else found
    return ", ".join([*found, *([groups.FEW_SHOT] if few_shot(scores) else [])]) or "sources alone"


def _supervised(scores: Scores, experiment: Experiment) -> list[str]:
    """Say in sentences what was read of the targets, where that was more than nothing or is not known."""
    found = [ORACLE] if experiment.oracle else []
    found += [FEW_SHOT] if few_shot(scores) else []
    zero_shot = groups.of(scores.languages).get(groups.ZERO_SHOT, ())
    each = [scores.languages[code].supervision for code in zero_shot]
    if None in each:
        found.append("What was read of the zero-shot languages is not recorded: the scores are older than that.")
    for rung in supervision.LADDER[1:]:
        if count := each.count(rung):
            if rung == supervision.ORACLE and experiment.oracle:
                continue
            some = "" if count == len(each) else f" in {count} of {len(each)} languages"
            told = f"{supervision.shown(rung)}{some}: {supervision.MEANING[rung]}; compare with figures of that kind."
            found.append(told[0].upper() + told[1:])
    return found


def _summary_lines(scores: Scores) -> list[str]:
    def line(title: str, fraction: float, *rest: str) -> str:
        return "  ".join([f"{title:<33} {100 * fraction:5.1f}", *rest])

    summary, counts, lines, titles = scores.summary, _counts(scores), [], scores.titles()
    main, second = scores.metrics[:2]
    for group in _SUMMARY:
        title, key = titles[group], groups.GROUPS[group].key
        if f"{main}/{key}" in summary:
            mean, low, high = (summary[f"{main}/{key}{end}"] for end in ENDS)
            # a part of the group above is named by what is different in it
            titled = f"{title}, mean" if group in groups.ROLES else "  " + title.partition(", ")[2]
            error = summary.get(f"calibration_error/{key}")
            rest = [f"{SHORT.get(second, second)} {percent(summary[f'{second}/{key}'])}"]
            rest += [] if error is None else [f"ECE {percent(error)}"]
            lines.append(line(f"{titled} ({counts[key]})", mean, _interval(low, high), *rest))
    worst = scores.worst()
    value, *ends = worst.main
    lines.append(line("worst", value, _interval(*ends), codes.name(worst.code)))
    lines.append(line("standard deviation over languages", summary[f"{main}/std"]))
    if "transfer_gap/mean" in summary:
        mean, low, high = (summary[f"transfer_gap/mean{end}"] for end in ("", "_low", "_high"))
        lines.append(line("transfer gap, mean", mean, _interval(low, high)))
    if "calibration_error/mean" in summary:
        fitted = "none, as no source has dev rows" if scores.temperature == 1 else f"{scores.temperature:5.2f}"
        lines.append(f"{'temperature, fitted on source dev':<33} {fitted}")
    return lines


def _counts(scores: Scores) -> dict[str, int]:
    members = groups.of(scores.languages)
    return {group.key: len(members.get(name, ())) for name, group in groups.GROUPS.items()}


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:4.1f}, {100 * high:4.1f}]"


def _seen(one: LanguageScore) -> str:
    return "?" if one.seen is None else "yes" if one.seen else "no"


def write_table(file: Path, scores: Scores) -> None:
    """Write one language a row, fractions from 0 to 1, as tab-separated values."""
    nested = ("code", "confusion", "reliability")
    ranked = [
        (one.code, {name: value for name, value in one.flat().items() if name not in nested}) for one in scores.ranked()
    ]
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["code", "name", "script", "family", *ranked[0][1]])
        for code, measured in ranked:
            known = codes.get(code)
            about = (known.name, known.script, known.family) if known else ("", "", "")
            writer.writerow([code, *about, *measured.values()])


def cautions(scores: Scores, experiment: Experiment) -> list[str]:
    """List, in sentences, what a reader of the scores should beware of."""
    each = scores.ranked()
    found = _supervised(scores, experiment)
    found += [REFIT] if experiment.training.refit != "none" else []
    if f"{scores.main}/mean_zero_shot" not in scores.summary:
        found.append("Only source languages were measured, so nothing is known here about other languages.")
    if all(one.transfer_gap is None for one in each):
        found.append("No source language was measured, so there is no transfer gap.")
    few = [one for one in each if one.support < FEW_ROWS]
    if few:
        found.append(f"Fewer than {FEW_ROWS} test rows, so a wide interval: {_some(few, len(each))}.")
    wide = max(each, key=lambda one: one.main.high - one.main.low)
    points = 100 * (wide.main.high - wide.main.low)
    if points > 10:
        found.append(
            f"Intervals span up to {points:.0f} points, as in {codes.name(wide.code)}; a difference smaller than "
            "that between two models may be chance. Compare models row by row rather than by their intervals."
        )
    if "calibration_error/mean" in scores.summary and scores.temperature == 1:
        found.append("No source has dev rows, so no temperature was fitted: confidences are as the training left them.")
    weak = [one for one in each if one.accuracy_low <= commonest(one)]
    if weak:
        found.append(
            f"Not told apart from always answering the commonest label of the test rows: {_some(weak, len(each))}."
        )
    found.append("Intervals say how scores may move with other test rows; another training seed would move them too.")
    return found


def commonest(one: LanguageScore) -> float:
    """Return the accuracy of always answering the label most frequent in this language's test rows."""
    return max(sum(row) for row in one.confusion) / sum(map(sum, one.confusion))


def _some(listed: Sequence[LanguageScore], measured: int) -> str:
    if len(listed) == measured > 1:
        return f"all {measured} languages"
    names = [codes.name(one.code) for one in listed[:8]]
    return ", ".join(names) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def write(
    folder: Path,
    scores: Scores,
    experiment: Experiment,
    corpus_facts: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    environment: Mapping[str, Any],
) -> dict[str, Path]:
    """Write report.html, scores.json, scores.tsv and the pictures; return file name -> path.

    `corpus_facts` may hold `name`, `description`, `licence`, `fingerprint`, `mixture` (a list of {language, rows,
    weight, share, draws, repeats}), `added` (technique -> language -> rows that it added, which `mixture` counts too),
    `refit` (source -> dev rows that were trained on) and `dropped` (split -> language -> rows also found in test).
    `environment` holds versions and the like, shown as they are. Without `history`, as after a probe, there is no
    picture of training. Names and passwords in URLs are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("report.html", "scores.json", "scores.tsv")}
    durable.write(files["scores.json"], scores.to_json())
    write_table(files["scores.tsv"], scores)
    picture, training = plots.bars(scores), plots.curve(history, scores.main)
    files |= plots.save(picture, folder, "languages")
    if training:
        files |= plots.save(training, folder, "training")
    reliable = plots.reliability(reliability(scores))
    page = _page(scores, experiment, corpus_facts, environment)
    page |= {
        "picture": plots.svg(
            picture, "languages", f"{page['main']['heading']} in each language, with its 95% interval"
        ),
        "reliable": reliable and plots.svg(reliable, "reliability", "Share of right answers by confidence"),
        "training": training
        and plots.svg(training, "training", f"Training loss and {page['main']['title']} on dev, per epoch"),
    }
    files["report.html"].write_text(render("report.html", page), encoding="utf-8")
    return files


def write_again(folder: Path) -> tuple[Scores, Experiment, dict[str, Path]]:
    """Write a finished run's report again from what it kept; raise InputError where the run is not finished."""
    scores, kept = load_scores(folder), []
    for name in ("corpus.json", "history.json", "environment.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; give the folder of a finished run, such as runs/quickstart-...")
        kept.append(json.loads((folder / name).read_text(encoding="utf-8")))
    experiment = config.load(folder / "experiment.yaml")
    return scores, experiment, write(folder, scores, experiment, *kept)


def _page(
    scores: Scores, experiment: Experiment, facts: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    mixture = [{**row, "name": codes.name(row["language"])} for row in facts.get("mixture", ())]
    rungs = {one.supervision for one in scores.languages.values()}
    added = {name: (sum(rows.values()), len(rows)) for name, rows in facts.get("added", {}).items()}
    trained = sum(row["rows"] for row in mixture) + sum(facts.get("refit", {}).values())
    task = tasks.build(experiment.task, scores.labels)
    main, second = map(_metric, scores.metrics[:2])
    return {
        "experiment": experiment,
        "lead": task.lead,
        "tagged": task.tagged,
        "main": main,
        "second": second,
        "facts": dict.fromkeys(("name", "description", "licence", "fingerprint"), "") | dict(facts),
        "dropped": {split: sum(rows.values()) for split, rows in facts.get("dropped", {}).items()},
        "mixture": mixture,
        "rows_trained": trained - sum(rows for rows, _ in added.values()),
        "added": added,
        "sources": [codes.name(code) for code in experiment.sources],
        "labels": scores.labels,
        "temperature": scores.temperature,
        "languages": [_language(one) for one in scores.ranked()],
        "counts": _counts(scores),
        "titles": {group.key: scores.titles()[name] for name, group in groups.GROUPS.items()},
        "called": _called(scores, experiment),
        "supervision": supervision.shown(scores.supervision),
        "ladder": {rung: meaning for rung, meaning in supervision.MEANING.items() if rung in rungs},
        "summary": {key.replace("/", "_"): value for key, value in scores.summary.items()},
        "worst": _language(scores.worst()),
        "commonest": float(np.mean([commonest(one) for one in scores.languages.values()])),
        "classes": _classes(scores),
        "least": LEAST,
        "answered": {name: [calibration.answered(t, c) for c in LEAST] for name, t in reliability(scores).items()},
        "cautions": cautions(scores, experiment),
        "configuration": config.dump(experiment),
        "versions": {key: masked(str(value)) for key, value in environment.items()},
    }


def _metric(name: str) -> dict[str, str]:
    title = metric_title(name)
    heading = title[0].upper() + title[1:]
    return {"name": name, "title": title, "heading": heading, "short": "F1" if name == "macro_f1" else title}


def _language(one: LanguageScore) -> dict[str, Any]:
    known = codes.get(one.code)
    return {
        "score": one,
        "name": codes.name(one.code),
        "family": known.family if known else "",
        "script": known.script if known else "",
        "seen": _seen(one),
        "role": role(one),
    }


def _classes(scores: Scores) -> list[dict[str, Any]]:
    # over the zero-shot languages, for that is where labels get lost; over all where there are none
    members = groups.of(scores.languages)
    counted = members.get(groups.ZERO_SHOT) or members[groups.ALL]
    together = np.sum([scores.languages[code].confusion for code in counted], axis=0)
    return classification_report(together, scores.labels)


def reliability(scores: Scores) -> dict[str, calibration.Reliability]:
    """Add up tables of reliability by group of languages, every row counting the same; only groups that have one."""
    found = {}
    for name, members in groups.apart(scores.languages).items():
        tables = [table for code in members if (table := scores.languages[code].reliability) is not None]
        if tables:
            found[scores.titles()[name]] = calibration.pooled(tables)
    return found
