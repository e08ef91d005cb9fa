"""Record a search in MLflow: one run for it, and below it one for every mix fine-tuned and every mix retrained.

Probes are not runs of their own, thousands of them would bury the rest; they are rows of search.tsv, an artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xlt_ray import techniques
from xlt_ray.config.experiment import Experiment
from xlt_ray.runs.records import flat
from xlt_ray.search.findings import Findings
from xlt_ray.search.journal import Journal
from xlt_ray.search.selection import Judge
from xlt_ray.search.space import Search, describe
from xlt_ray.supervision import ORACLE, ZERO_SHOT, highest
from xlt_ray.tracking.outbox import Outbox


def start(outbox: Outbox, search: Search) -> None:
    """Record what is searched."""
    outbox.params(flat(search.base.model_dump(mode="json")))
    outbox.params(flat({"search": search.settings.model_dump(mode="json")}))
    outbox.tags(_tags(search, search.base) | {"xlt.method": "search"})


def _tags(search: Search, experiment: Experiment) -> dict[str, str]:
    rule, found = search.settings.selection.languages, techniques.supervised(experiment, search.base.targets)
    rung = ORACLE if search.oracle else highest(found.values()) or ZERO_SHOT
    return {
        "xlt.selection": "oracle" if search.oracle else rule,
        "xlt.searcher": search.settings.searcher,
        "xlt.supervision": rung,
    }


def trials(judge: Judge, journal: Journal, folder: Path, run_key: str) -> None:
    """Write an outbox for every fine-tuned mix, to be nested below the search's own run."""
    search, tracking = judge.search, judge.search.base.tracking
    if tracking.uri == "off":
        return
    for name, one in journal.tuned().items():
        title = describe(one.point)[:200]
        outbox = Outbox.open(folder / "trials" / name, tracking, f"{run_key}-{name}", title, run_key)
        experiment = search.experiment(one.point)
        outbox.params(flat(experiment.model_dump(mode="json")))
        outbox.tags(_tags(search, experiment) | {"xlt.method": "trial", "xlt.whole": str(one.whole)})
        kind = "oracle_dev" if search.oracle else "dev"
        splits = {code: "dev" if code in search.pool else "oracle_dev" for code in one.accuracy}
        found = {f"{splits[code]}/{search.metric}/{code}": value for code, value in one.accuracy.items()}
        for objective in search.settings.selection.objectives:
            found[f"{kind}/objective/{objective}"] = judge.value(one, objective) or 0.0
        outbox.metrics(found | {"seconds": one.cost}, step=one.epochs)
        outbox.finish("FINISHED" if one.whole else "KILLED")


def end(outbox: Outbox, findings: Findings, files: Mapping[str, Path]) -> None:
    """Record what was found, and the report."""
    kind = "oracle_dev" if findings.search.oracle else "dev"
    values = {f"{kind}/objective": findings.judge.value(findings.chosen) or 0.0, "seconds": findings.seconds}
    for one in findings.retrained:
        name = one.name.replace(" ", "_")
        values |= {f"test/{name}/{group}": one.mean(group) for group in one.scores[0].summary}
    if findings.correlation is not None:
        values["fidelity/spearman"] = findings.correlation.rho
    outbox.metrics(values, step=0)
    outbox.tags({"xlt.chosen": describe(findings.chosen.point)})
    for path in files.values():
        outbox.artifact(path)
    outbox.finish("FINISHED")
