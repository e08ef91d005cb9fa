"""Promote a run's model to the one that is served, and roll back: gate, fast artefact, trial, and only then the alias.

Each step may be interrupted and repeated: versions, artefacts and tags that exist already are found and kept, and the
alias, which a service follows, moves last. What a promotion did is in the version's tags, one set for each alias:
`xlt.promoted_from.ALIAS` (the version before, or none), `xlt.gate.ALIAS` (the comparison in short) and
`xlt.forced.ALIAS` (the reasons against it that were overruled).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xlt_ray import durable
from xlt_ray.config.masking import masked
from xlt_ray.errors import InputError, RegistryError
from xlt_ray.evaluation.paired import gate
from xlt_ray.evaluation.paired.gate import Gate, Rules
from xlt_ray.events import OnEvent
from xlt_ray.inference.artefact import FORMAT_OF_WORDS, verify_bundle
from xlt_ray.languages import codes
from xlt_ray.registry import fetch, publish, versions
from xlt_ray.registry.publish import CheckRows
from xlt_ray.registry.versions import Version
from xlt_ray.tracking import courier, mlflow_run, outbox, preflight
from xlt_ray.tracking.mlflow_run import Refused
from xlt_ray.tracking.tracking_uri import absolute, whole

PREVIOUS, GATE, FORCED, ROLLED_BACK = "xlt.promoted_from", "xlt.gate", "xlt.forced", "xlt.rolled_back"


@dataclass(frozen=True)
class Outcome:
    """The result of a promotion: `reasons` against it, which were overruled where it was `promoted` nevertheless.

    `present` is the version the alias pointed at, None where there was no such alias; `previous` is the other version
    that was compared with; `gate` is None where there was none.
    """

    version: Version
    alias: str
    present: str | None
    previous: Version | None
    gate: Gate | None
    artefact: publish.Made | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    promoted: bool


@dataclass(frozen=True)
class Address:
    """The place a model is registered at: models:/NAME@ALIAS of the server at `uri`, by default the run's own."""

    alias: str = "champion"
    name: str | None = None
    uri: str | None = None


def promote(
    run: str,
    address: Address,
    rules: Rules,
    checked_on: CheckRows,
    cache: Path | None = None,
    on_event: OnEvent = lambda event: None,
) -> Outcome:
    """Register a run's model where needed, compare it with the alias's present version, and move the alias to it.

    `run` is the folder of a finished run or models:/NAME/VERSION. With `force` in the rules, reasons against it are
    recorded and overruled, but for one: a model that does not load and answer is never promoted. How many rows the
    artefact was `checked_on` is recorded. Where it is refused, `promoted` is False and the alias stays. Raises
    InputError for invalid arguments, RegistryError where MLflow fails.
    """
    alias, force = address.alias, rules.force
    if wrong := preflight.alias_fault(alias):
        raise InputError(f"--alias: {wrong}")
    if not 0 <= rules.tolerance <= 1:
        raise InputError(f"tolerance: {100 * rules.tolerance:g} points; give 0 to 100")
    rules = replace(rules, served=tuple(codes.resolve(code) for code in rules.served))
    on_event({"stage": "register"})
    candidate = find(run, address.name, address.uri)
    if checked_on.rows is not None and _of_words(versions.listing(candidate, "bundle")):
        raise InputError(
            f"--rows: of the check of an artefact, and {candidate.model}, a model of words, has none; leave it out"
        )
    with _alone(candidate, alias, cache, on_event):
        candidate = versions.resolve(candidate.model, candidate.uri)  # another promotion may have tagged it meanwhile
        present, previous, note = _before(candidate, alias)
        compared: Gate | None = None
        reasons: list[str] = []
        if previous is not None:
            on_event({"stage": "gate"})
            compared, reasons = _compared(candidate, previous, rules, cache, on_event)
        outcome = Outcome(candidate, alias, present, previous, compared, None, tuple(reasons), note, False)
        if reasons and not force:
            return outcome
        folder = None if run.startswith("models:") else Path(run) / "bundle"
        made = publish.make(candidate, folder, checked_on, force, cache, on_event)
        reasons += made.reasons
        outcome = replace(outcome, artefact=made, reasons=tuple(reasons), notes=(*note, *made.notes))
        if not made.answers or (reasons and not force):
            return outcome
        on_event({"stage": "alias"})
        _move(outcome)
        return replace(outcome, promoted=True)


@contextlib.contextmanager
def _alone(candidate: Version, alias: str, cache: Path | None, on_event: OnEvent) -> Iterator[None]:
    """Let promotions to one alias come one after the other on this machine, so that none does the other's work again.

    Of two machines each looks whether the alias was moved meanwhile, just before it moves it; MLflow cannot do both in
    one step.
    """
    what = hashlib.sha256(f"{candidate.uri}\0{candidate.name}\0{alias}".encode()).hexdigest()[:16]
    file = (cache or durable.cache_folder()) / "promotions" / f"{what}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with durable.locked(file, wait=False) as free:
        if free:
            yield
            return
    note = f"another process promotes to models:/{candidate.name}@{alias} already; this one comes after it"
    on_event({"stage": "wait", "note": note})
    with durable.locked(file):
        yield


def _before(candidate: Version, alias: str) -> tuple[str | None, Version | None, tuple[str, ...]]:
    """Return the version the alias points at, the one to compare the candidate with, and notes on the choice."""
    present = versions.aliased(candidate.name, alias, candidate.uri)
    if present is None:
        return None, None, (f"{candidate.name} has no {alias} yet: nothing to compare with",)
    if present.version != candidate.version:
        return present.version, present, ()
    if f"{PREVIOUS}.{alias}" in candidate.tags:
        return present.version, None, (f"{candidate.model} is the {alias} already, since its promotion",)
    earlier = versions.held_before(candidate, alias)  # training with tracking.alias moves it without any gate
    if earlier is None:
        return present.version, None, (f"{candidate.model} is the first {alias}: nothing to compare with",)
    note = f"{candidate.model} is the {alias} already, moved there by its training; it is compared only now"
    return present.version, earlier, (note,)


def find(run: str, name: str | None = None, uri: str | None = None) -> Version:
    """Find the registered version of a run, or register it, checks included; no alias is moved."""
    if run.startswith("models:"):
        return versions.resolve(run, uri or versions.default_uri())
    folder = Path(run)
    if not (folder / "bundle" / "bundle.json").is_file():
        if folder.is_dir():
            fetch.bundle_in(folder)  # its error names what the folder is instead
        raise InputError(f"{run}: no finished run (no bundle/bundle.json); give a run's folder or models:/NAME/VERSION")
    verify_bundle(folder / "bundle")
    where = outbox.address(folder)
    if where is None:
        raise InputError(f"{run}: was not tracked, so MLflow knows nothing of it; train it with a tracking.uri")
    known = [record for _, record in outbox.records(folder, 0) if record["kind"] == "model" and record["name"]]
    experiment = json.loads((folder / "bundle" / "bundle.json").read_text(encoding="utf-8"))["experiment"]
    if name is not None and (wrong := preflight.name_fault(name)):
        raise InputError(f"--name: {wrong}")
    name = name or (known[-1]["name"] if known else experiment["tracking"]["register_as"])
    if name is None:
        raise InputError(f"{run}: tracking.register_as was not set; name the registered model with --name")
    target = absolute(uri, "--uri") if uri else whole(str(where["uri"]))
    messages: list[str] = []
    courier.sync([folder], uri, messages.append)
    # a model refused under the name or alias of its training is not missed: it is registered below under these
    refused = outbox.Sent.load(folder, target).failed.values()
    if outbox.waiting(folder, target) or any(not one.startswith("model: ") for one in refused):
        raise RegistryError(f"{run}: not all of it is in MLflow, which the gate needs: {'; '.join(messages)[-700:]}")
    return _registered(folder, target, name, bool(experiment["corpus"]["text_pair"]))


def _registered(folder: Path, uri: str, name: str, pairs: bool) -> Version:
    record = {"kind": "model", "path": "bundle", "name": name, "alias": None, "pairs": pairs}
    with durable.locked(folder / outbox.LOCK):
        where = outbox.address(folder)
        assert where is not None
        try:
            run = mlflow_run.Run(folder, uri, where, outbox.Sent.load(folder, uri).run_id)
            with contextlib.redirect_stderr(io.StringIO()):  # MLflow's remarks would break the progress display
                run.log([record])
        except Refused as error:
            raise RegistryError(f"{folder}: {error}") from error
    found = versions.of_run(name, run.id, mlflow_run.bundle_digest(folder / "bundle"), uri)
    if found is None:
        raise RegistryError(f"{folder}: was registered as {name}, but {masked(uri)} has no such version; try again")
    return found


def _compared(
    candidate: Version, champion: Version, rules: Rules, cache: Path | None, on_event: OnEvent
) -> tuple[Gate | None, list[str]]:
    """Compare two versions and record it on the candidate's run; return the gate, or None, and reasons against it."""
    from xlt_ray.registry import rivals

    try:
        sides = rivals.predictions(candidate, champion, rules.served, cache, on_event)
        rules = replace(rules, served=rules.served or sides.served)
        found = replace(gate.judge(sides.candidate, sides.champion, sides.labels, rules), metric=sides.metric)
    except InputError as error:
        return None, [f"cannot be compared with {champion.model}: {error}"]
    figures = {"gate/mean_difference": found.difference, "gate/mean_low": found.low, "gate/mean_high": found.high}
    figures["gate/passed"] = float(found.passed)
    for row in found.rows:
        for key, value in (("difference", row.difference), ("champion", row.champion), ("candidate", row.candidate)):
            if value is not None:
                figures[f"gate/{key}/{row.code}"] = value
    table = {"champion": champion.model, "candidate": candidate.model, **asdict(found), "passed": found.passed}
    files = {"gate.json": json.dumps(table, indent=1), "gate.tsv": tsv(found)}
    versions.record(candidate, figures, int(champion.version), files, f"gate/against-{champion.version}")
    return found, list(found.reasons)


def tsv(found: Gate) -> str:
    """Write the table of a gate, a language a line, as tab-separated values; fractions, empty where unknown."""
    keys = ("code", "rows", "champion", "candidate", "difference", "low", "high", "p_value", "verdict")
    lines = ["\t".join(keys)]
    for row in found.rows:
        values = (getattr(row, key) for key in keys)
        lines.append("\t".join("" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for v in values))
    return "\n".join(lines) + "\n"


def _move(outcome: Outcome) -> None:
    """Record a promotion in the version's tags, then move the alias, unless it was moved elsewhere meanwhile."""
    version, alias, before = outcome.version, outcome.alias, outcome.previous
    now = versions.aliased(version.name, alias, version.uri)
    if (now and now.version) != outcome.present:
        raise RegistryError(
            f"{version.name}@{alias} was moved to version {now and now.version} meanwhile; promote again"
        )
    tags = {"xlt.alias": alias}  # so that sending the run's records again moves no alias
    if before is not None or outcome.present is None or f"{PREVIOUS}.{alias}" not in version.tags:
        tags[f"{PREVIOUS}.{alias}"] = before.version if before else "none"
        tags[f"{GATE}.{alias}"] = json.dumps(_short(outcome.gate, before))
    if outcome.reasons or f"{FORCED}.{alias}" in version.tags:
        tags[f"{FORCED}.{alias}"] = "; ".join(outcome.reasons) or "no"
    versions.tag(version, tags)
    versions.move_alias(version.name, alias, version.version, version.uri)


def _short(found: Gate | None, before: Version | None) -> dict[str, Any]:
    if found is None:
        return {"against": before.version if before else None, "passed": None}
    unclear = [row.code for row in found.rows if row.verdict == "unclear"]
    figures = {key: round(getattr(found, key), 5) for key in ("difference", "low", "high", "tolerance")}
    against = before.version if before else None
    return {"against": against, "passed": found.passed, "languages": len(found.rows), **figures, "unclear": unclear}


def _of_words(card: bytes | None) -> bool:
    """Return whether a version's bundle.json is that of a model of words."""
    with contextlib.suppress(ValueError, AttributeError):
        return bool(card) and bool(json.loads(card or b"").get("format") == FORMAT_OF_WORDS)
    return False


def rollback(name: str, alias: str = "champion", uri: str | None = None, cache: Path | None = None) -> str:
    """Move an alias back to the version it was promoted from; return a sentence that names both versions.

    The earlier version's artefact, or its bundle of words, is fetched, loaded and asked once before. Raises InputError
    where there is no earlier version and RegistryError where it does not answer.
    """
    uri = uri or versions.default_uri()
    present = versions.aliased(name, alias, uri)
    if present is None:
        raise InputError(f"models:/{name}@{alias}: no such alias in {masked(uri)}; `xlt promote` moves one")
    number = present.tags.get(f"{PREVIOUS}.{alias}", "none")
    if not number.isdecimal():
        raise InputError(f"{present.model}: was not promoted from another version, so there is none to go back to")
    earlier = versions.resolve(f"models:/{name}/{number}", uri)
    card = versions.listing(earlier, "bundle")
    # of another version without an artefact a server exports one, which takes minutes
    if earlier.tags.get(versions.SERVING) or _of_words(card):
        with durable.scratch() as elsewhere:
            why = publish.trial(earlier, (mlflow_run.QUESTION, None), None, cache, elsewhere)
        if why:
            raise RegistryError(f"{earlier.model}: {why}; the alias stays at version {present.version}")
    elif card is None:
        raise RegistryError(f"{earlier.model}: its files are gone; the alias stays at version {present.version}")
    versions.tag(present, {f"{ROLLED_BACK}.{alias}": f"to {earlier.version}"})
    versions.move_alias(name, alias, earlier.version, uri)
    return f"models:/{name}@{alias} goes back from version {present.version} to version {earlier.version}"
