"""Put what a search found into rows and sentences, the same for the terminal and for the page.

A search's own scores are not of test and the best of many; those of retrained runs are. Every sentence keeps the two
apart, and states where target labels ranked the mixes.
"""

from __future__ import annotations

from typing import Any

from xlt_ray import supervision
from xlt_ray.config.search import Objective, Rule
from xlt_ray.evaluation.groups import GROUPS, OF_TARGETS, ZERO_SHOT
from xlt_ray.evaluation.paired.comparison import Comparison
from xlt_ray.languages import codes
from xlt_ray.search import proposals, selection, similarity
from xlt_ray.search.findings import Findings, Retrained
from xlt_ray.search.report.figures import KINDS, ORACLE, mix, short
from xlt_ray.search.selection import CHOSEN, RULES, Tried
from xlt_ray.search.space import Point

RULE_NAMES: dict[Rule, str] = {rule: rule + (" (oracle)" if rule == "targets" else "") for rule in RULES}
ALIKE = 0.7  # rank correlation from which about half of the variance of the ranks is shared


def counted(findings: Findings) -> dict[str, int]:
    """Count probes, fine-tunings, and the fine-tunings that ran to their end."""
    fine = [one for one in findings.tried if one.fidelity == "fine_tune"]
    return {"probe": len(findings.tried) - len(fine), "fine_tune": len(fine), "whole": sum(one.whole for one in fine)}


def oracle(findings: Findings) -> str:
    """Return what a title ends in where target labels ranked the mixes; else nothing."""
    return f" ({ORACLE})" if findings.search.oracle else ""


def short_name(point: Point, findings: Findings) -> str:
    """Return a mix in words, with its languages' three letters."""
    return mix(point, findings.search, short(findings.search.pool))


def full_name(point: Point, findings: Findings) -> str:
    """Return a mix in words, with the names of its languages."""
    return mix(point, findings.search, {code: codes.name(code) for code in findings.search.pool})


def trial(one: Tried, findings: Findings) -> dict[str, Any]:
    """Return the row of a trial: names, what was done, objective -> value, and its worst language."""
    judge, epochs = findings.judge, findings.search.base.training.epochs
    values: dict[Objective, float | None] = {
        objective: judge.value(one, objective) for objective in findings.search.settings.selection.objectives
    }
    worst = min(judge.languages(one), key=lambda code: (one.accuracy[code], code), default=None)
    return {
        "tried": one,
        "short": short_name(one.point, findings),
        "mix": full_name(one.point, findings),
        "fidelity": KINDS[one.fidelity] if one.whole else "stopped",
        "epochs": "" if one.fidelity == "probe" else str(one.epochs) if one.whole else f"{one.epochs} of {epochs}",
        "values": values,
        "worst": (codes.name(worst), one.accuracy[worst]) if worst else ("", None),
    }


def pareto(findings: Findings) -> list[Tried]:
    """List the Pareto front of whole fine-tunings, or of probes where there are none; empty for one objective."""
    if len(findings.search.settings.selection.objectives) < 2:
        return []
    return findings.judge.pareto(selection.whole_fine_tunings(findings.tried) or selection.probes(findings.tried))


def rule_columns(findings: Findings) -> list[Rule]:
    """List the rules by which at least one choice was scored."""
    return [rule for rule in RULES if any(one.values.get(rule) is not None for one in findings.rules)]


def supervised(findings: Findings) -> str | None:
    """Return the highest rung of `supervision.LADDER` of the targets in retrained runs, None where it is not known."""
    if findings.search.oracle:
        return supervision.ORACLE
    return supervision.highest(score.supervision for one in findings.retrained for score in one.scores)


def titled(name: str, findings: Findings) -> str:
    """Return what is shown of a group's name or title: of zero-shot languages with what was read of them."""
    return supervision.titled(name, supervised(findings))


def groups(findings: Findings) -> dict[str, str]:
    """Map the groups of targets that retrained runs were measured on, by their keys in a summary, to their names."""
    known = {key for one in findings.retrained for score in one.scores for key in score.summary}
    return {GROUPS[name].key: name for name in OF_TARGETS if f"{findings.search.metric}/{GROUPS[name].key}" in known}


def spread(one: Retrained, group: str) -> tuple[float, float]:
    """Return the least and the greatest mean score of a group of languages over seeds."""
    values = [score.summary.get(f"{score.main}/{group}", float("nan")) for score in one.scores]
    return min(values), max(values)


def differences(findings: Findings) -> list[tuple[str, str, Comparison, tuple[float, float] | None]]:
    """List (baseline, group, comparison, least and greatest difference over pairs of seeds where there are several)."""
    known = {one.name: one.scores for one in findings.retrained}
    found = []
    for name, by_group in findings.comparisons.items():
        for group, one in by_group.items():
            key = f"{findings.search.metric}/{GROUPS[group].key}"
            pairs = zip(known.get(CHOSEN, ()), known.get(name, ()), strict=False)
            gains = [a.summary[key] - b.summary[key] for a, b in pairs if key in a.summary and key in b.summary]
            found.append((name, group, one, (min(gains), max(gains)) if len(gains) > 1 else None))
    return found


def probability(one: Comparison) -> str:
    """Return a p-value as text."""
    return "<0.001" if one.p_value < 0.001 else f"{one.p_value:.3f}"


def optimism(findings: Findings) -> str:
    """Explain that a search's scores are optimistic, and where one that is not stands."""
    better = "the retrained runs say how good the choice is" if findings.retrained else "nothing was measured on test"
    return f"A search's scores are those it chose by, so they are optimistic; {better}."


def remarks(findings: Findings) -> list[str]:
    """Describe, in sentences, how far screening, rule and timing can be relied on, and append the search's notes."""
    found = [_ties(findings), _fidelity(findings), _probe_ahead(findings), *_regret(findings)]
    if findings.busy is not None:
        found.append(f"Workers of fine-tuning trained or measured for {100 * findings.busy:.0f}% of the time.")
    return [sentence for sentence in found if sentence] + list(findings.notes)


def _ties(findings: Findings) -> str:
    judge, chosen = findings.judge, findings.chosen
    near = judge.near(proposals.candidates(findings.search, findings.tried))
    if len(near) < 2:
        return ""
    away = 100 * ((judge.value(near[0]) or 0.0) - (judge.value(chosen) or 0.0))
    how = "has the best score" if chosen.key == near[0].key else f"scores {away:.1f} points less than the best"
    reach = findings.search.settings.selection.standard_errors
    kind = "probed" if chosen.fidelity == "probe" else "fine-tuned"
    far = "a standard error" if reach == 1 else f"{reach:g} standard errors"
    whole = similarity.coverage(judge.nearness, findings.search.pool)
    return (
        f"{len(near)} {kind} mixes are within {far} of the best score and count as equal; of them the chosen one, "
        f"which {how}, is the most similar to the targets: it covers them to {judge.coverage(chosen):.2f}, all of the "
        f"pool to {whole:.2f} (1 would be the nearest by every measure)."
    )


def _fidelity(findings: Findings) -> str:
    counts = counted(findings)
    if not counts["fine_tune"]:
        return "Nothing was fine-tuned: the choice rests on probes of frozen features alone."
    if not counts["probe"]:
        return ""
    one = findings.correlation
    if one is None:
        return "Whether probes rank mixes as fine-tuning does is unknown: fewer than 4 had both, to the end."
    said = f"Spearman's correlation {one.rho:.2f} [{one.low:.2f}, {one.high:.2f}] over {one.mixes} mixes"
    if one.misleads:
        return (
            f"Screening may mislead here: that probes rank mixes as fine-tuning does cannot be said ({said}, and the "
            "interval reaches 0). The mixes compared are the best probes, which lowers it."
        )
    how = "much" if one.rho >= ALIKE else "only roughly"
    return f"Probes rank mixes {how} as fine-tuning does: {said}, taken among the best probes, which lowers it."


def _regret(findings: Findings) -> list[str]:
    asked = {one.rule: one.values.get("targets") for one in findings.rules}
    rule = findings.search.settings.selection.languages
    mine, best = asked.get(rule), asked.get("targets")
    if findings.search.oracle or mine is None or best is None:
        return []
    kinds = " and ".join(sorted({KINDS[one.choice.fidelity] for one in findings.rules}))
    return [
        f"On target dev, which this search did not choose by, the best mix by {rule} ({kinds}) scores "
        f"{100 * (best - mine):.1f} points less than the oracle's."
    ]


def _probe_ahead(findings: Findings) -> str:
    judge = findings.judge
    probes = judge.ranked(selection.probes(findings.tried))
    tuned = judge.ranked(selection.whole_fine_tunings(findings.tried))
    if not probes or not tuned:
        return ""
    ahead = (judge.value(probes[0]) or 0.0) - (judge.value(tuned[0]) or 0.0)
    if ahead <= 0:
        return ""
    return (
        f"By the same rule the probe of {short_name(probes[0].point, findings)} is {100 * ahead:.1f} points above the "
        "best fine-tuning: a model of training.method=probe may serve better, or training needs other settings."
    )


def cautions(findings: Findings) -> list[str]:
    """List, in sentences, what a reader should beware of."""
    rule, found = findings.search.settings.selection.languages, []
    if findings.search.oracle:
        found.append(
            "Oracle: dev labels of the target languages ranked the mixes, so every score here, those on test included, "
            "is an upper bound and not a zero-shot result."
        )
    found.append(optimism(findings))
    if rule == "held_out_sources":
        found.append("Languages of the pool that a mix leaves out stand in for the targets; how well is an assumption.")
    if rule == "sources":
        found.append(
            "Mixes are ranked on their own languages: on different rows each, and with training labels. A mix of easy "
            "languages then scores high, and transfer plays no part."
        )
    if findings.retrained and len(findings.retrained[0].scores) == 1:
        found.append("One seed was retrained: another would move the test scores by an unknown amount.")
    unsure = [
        f"'{name}'" for name, group, one, _ in differences(findings) if group == ZERO_SHOT and one.low <= 0 <= one.high
    ]
    if unsure:
        found.append(f"On the targets' test rows the choice is not told apart from {' and '.join(unsure)}.")
    return found
