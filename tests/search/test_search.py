"""Whole searches by `xlt tune` on real Ray and real MLflow: what they print, write and record, and cannot know."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS
from ray_runs import Settings
from search_runs import POOL, TARGET, Called, fit_plainly, journal, search_settings, stamps, tune, write
from typer.testing import CliRunner

from xlt_ray import cli, config
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.search import prepare, screening, search, space, tuning
from xlt_ray.search.trial import TrialData

pytestmark = [pytest.mark.slow, pytest.mark.long]

MODEL = "tiny-mix"


@pytest.fixture(scope="module", autouse=True)
def _terminal(local_ray: None) -> Iterator[None]:
    """A terminal of 120 columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        yield


@dataclass(frozen=True)
class Place:
    """Where the searches of this module write: folders of their own, one cache, one MLflow."""

    make: Callable[..., Settings]
    root: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root / 'xlt.db'}"

    def config(self, name: str, tracked: bool = False, **sections: Any) -> Path:
        folder = self.root / name
        folder.mkdir()
        tracking = {"uri": self.uri, "flush_seconds": 120, "experiment": name} if tracked else {"uri": "off"}
        data = self.make(folder, tracking=tracking | sections.pop("tracking", {}), **sections)
        data["corpus"]["cache_dir"] = str(self.root / "cache")
        return write(data, folder / "tiny.yaml")

    def runs(self, experiment: str) -> dict[str, Any]:
        """Return the runs of an experiment of MLflow by name, each of which must be the only one of its name."""
        import mlflow

        client = mlflow.MlflowClient(self.uri)
        found = list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))
        named = {one.info.run_name: one for one in found}
        assert len(named) == len(found)
        return named


@pytest.fixture(scope="module")
def place(tiny_encoder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    def make(folder: Path, corpus: Path = tiny_corpus, **sections: Any) -> Settings:
        return search_settings(tiny_encoder, corpus, folder, **sections)

    return Place(make, tmp_path_factory.mktemp("searches"))


# a search by the default rule, held-out languages of the pool

RATES = {"sources": {"at_most": 2}, "training.learning_rate": {"choice": [5e-3, 2e-3]}}


@dataclass(frozen=True)
class Watched:
    """A search by the command, and the corpora that its probes and its trials were handed."""

    called: Called
    handed: dict[str, Corpus]


@pytest.fixture(scope="module")
def watched(place: Place) -> Watched:
    file = place.config(
        "held_out",
        tracked=True,
        search={"space": RATES, "retraining": {"seeds": 1, "baselines": ["all_alpha_1"]}},
    )
    handed: dict[str, Corpus] = {}
    embed, fine_tune = screening.embed, tuning.fine_tune

    def watched_embed(experiment: Any, corpus: Corpus, *others: Any, also: Any = None) -> Any:
        handed["probes"] = corpus
        for table in (also or {}).values():
            assert "label" not in table.column_names, "texts that are compared have no label"
        return embed(experiment, corpus, *others, also=also)

    def watched_fine_tune(judge: Any, data: TrialData, *others: Any) -> Any:
        handed["trials"] = data.corpus
        return fine_tune(judge, data, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "embed", watched_embed)
        patch.setattr(tuning, "fine_tune", watched_fine_tune)
        return Watched(tune(file), handed)


def test_a_search_prints_its_table_and_leaves_a_page_every_trial_and_the_choice(watched: Watched) -> None:
    called = watched.called
    assert "mean accuracy over the pool's languages outside the mix" in called.table.splitlines()[0]
    for words in ("chosen: ", "fine-tuned", "Retrained, test accuracy", "all sources, alpha 1", "Chosen less baseline"):
        assert words in called.table
    assert f"search.html  {called.folder}/search.html\n" in called.printed
    assert f"chosen.yaml  {called.folder}/chosen.yaml\n" in called.printed
    assert "</html>" in (called.folder / "search.html").read_text(encoding="utf-8")
    with (called.folder / "search.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    known = {line["name"]: line for line in called.journal}
    assert [row["fidelity"] for row in rows] == [line["fidelity"] for line in known.values()]
    for row, line in zip(rows, known.values(), strict=True):
        assert {code: float(row[f"dev/accuracy/{code}"]) for code in POOL} == line["accuracy"]
    probes = [row["point"] for row in rows if row["fidelity"] == "probe"]
    assert len(set(probes)) == len(probes) == 6 + 2, "every mix of one or two of three, and the pool by two alphas"
    assert len(rows) == len(probes) + 4


def test_the_choice_is_a_configuration_of_the_best_fine_tuning(watched: Watched) -> None:
    file = watched.called.folder / "chosen.yaml"
    done = CliRunner().invoke(cli.app, ["check", str(file)])
    assert done.exit_code == 0 and done.stdout.startswith("sound: "), done.output
    chosen = config.load(str(file))
    whole = [line["point"] for line in watched.called.tuned().values() if line["whole"]]
    point = {"sources": list(chosen.sources), "training.learning_rate": chosen.training.learning_rate}
    assert point in whole
    assert chosen.mixture.draws_per_epoch == 160, "rows of English, the largest: equal for all mixes"


def test_the_same_command_again_shows_the_same_and_does_nothing(watched: Watched, place: Place) -> None:
    called = watched.called
    files = [called.folder / "journal.jsonl", *called.folder.glob("retrained/*/result.json")]
    before = stamps(files)
    tracked = {name: run.info.end_time for name, run in place.runs("held_out").items()}
    again = tune(called.config)
    assert again.table == called.table
    assert "starting Ray" in called.printed and "starting Ray" not in again.printed
    assert len(before) == 3
    assert stamps(files) == before
    assert {name: run.info.end_time for name, run in place.runs("held_out").items()} == tracked


def test_probes_and_trials_are_handed_no_test_row_and_no_label_of_a_target(watched: Watched) -> None:
    assert set(watched.handed) == {"probes", "trials"}
    for corpus in watched.handed.values():
        assert corpus.languages("test") == ()
        assert set(corpus.languages("train")) == set(corpus.languages("dev")) == set(POOL)
    assert all(set(line["accuracy"]) == set(POOL) for line in watched.called.journal)


def test_a_search_finds_the_same_whatever_the_labels_of_test_and_targets(
    watched: Watched, place: Place, tiny_corpus: Path, tmp_path: Path
) -> None:
    other = dict(zip(LABELS, (*LABELS[1:], LABELS[0]), strict=True))
    scrambled = Path(shutil.copytree(tiny_corpus, tmp_path / "scrambled"))
    for file in [*scrambled.glob("*/test.tsv"), *scrambled.glob(f"{TARGET}/*.tsv")]:
        head, *rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        changed = [head, *([*row[:-1], other[row[-1]]] for row in rows)]
        file.write_text("".join("\t".join(row) + "\n" for row in changed), encoding="utf-8")
    found = tune(place.config("scrambled", corpus=scrambled, search={"space": RATES}))

    def learned(called: Called) -> list[Any]:
        probes = sorted((line["name"], line["accuracy"]) for line in called.journal if line["fidelity"] == "probe")
        tuned = [line for line in called.journal if line["fidelity"] == "fine_tune"]
        return [probes, [(line["point"], line["epochs"], line["accuracy"]) for line in tuned]]

    assert learned(found) == learned(watched.called)
    (chosen,) = {line for line in found.table.splitlines() if line.startswith("chosen: ")}
    assert chosen in watched.called.table


def test_a_trial_of_tune_scores_as_the_loop_alone_does(watched: Watched) -> None:
    asked, corpus = prepare.prepared(space.load(watched.called.config))
    visible = corpus.for_training(asked.pool)
    whole = [line for line in watched.called.tuned().values() if line["whole"]]
    assert whole
    for line in whole:
        assert line["accuracy"] == fit_plainly(asked.experiment(line["point"]), visible).accuracy


def test_mlflow_holds_one_run_of_the_search_and_below_it_one_of_every_trial_and_model(
    watched: Watched, place: Place
) -> None:
    runs = place.runs("held_out")
    top = runs.pop("tiny")
    assert "mlflow.parentRunId" not in top.data.tags and top.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {top.info.run_id}
    trials = {name: run for name, run in runs.items() if run.data.tags["xlt.method"] == "trial"}
    tuned = {space.describe(line["point"]): line for line in watched.called.tuned().values()}
    assert set(trials) == set(tuned) and len(tuned) == 4
    for name, run in trials.items():
        assert {code: run.data.metrics[f"dev/accuracy/{code}"] for code in POOL} == tuned[name]["accuracy"]
        assert run.info.status == ("FINISHED" if tuned[name]["whole"] else "KILLED")
    assert set(runs) - set(trials) == {"tiny-chosen", "tiny-all-sources-alpha-1"}
    for run in (top, *runs.values()):
        assert run.data.tags["xlt.selection"] == "held_out_sources"
        assert not [key for key in run.data.metrics if "oracle" in key]
    score = top.data.metrics["test/chosen/accuracy/mean_zero_shot"]
    assert score == runs["tiny-chosen"].data.metrics["test/accuracy/mean_zero_shot"]


# a search by the labels of the targets


@pytest.fixture(scope="module")
def oracle(place: Place) -> Called:
    asked = {"searcher": "random", "selection": {"languages": "targets"}, "screening": {"trials": 0}}
    asked |= {"fine_tuning": {"trials": 4, "concurrent": None}, "retraining": {"seeds": 1, "baselines": []}}
    return tune(place.config("oracle", tracked=True, search=asked))


def test_a_search_by_target_labels_says_so_everywhere(oracle: Called, place: Place) -> None:
    assert "oracle" in oracle.table.splitlines()[0].lower()
    assert all("oracle" in line.lower() for line in oracle.table.splitlines() if line.startswith("Retrained"))
    assert "racle" in (oracle.folder / "chosen.yaml").read_text(encoding="utf-8")
    assert len(list(oracle.folder.glob("retrained/tiny-oracle-chosen-*/result.json"))) == 1
    runs = place.runs("oracle")
    top = runs.pop("tiny")
    trials = {name: run for name, run in runs.items() if run.data.tags["xlt.method"] == "trial"}
    assert set(runs) - set(trials) == {"tiny-oracle-chosen"} and len(trials) == 4
    assert {run.data.tags["xlt.selection"] for run in (top, *runs.values())} == {"oracle"}
    for run in trials.values():
        assert f"oracle_dev/accuracy/{TARGET}" in run.data.metrics and "dev/accuracy/eng_Latn" in run.data.metrics
        objective = run.data.metrics["oracle_dev/objective/mean"]
        assert objective == run.data.metrics[f"oracle_dev/accuracy/{TARGET}"]
    assert "oracle_dev/objective" in top.data.metrics and "dev/objective" not in top.data.metrics


def test_a_random_search_tries_distinct_mixes(oracle: Called) -> None:
    points = {tuple(line["point"]["sources"]) for line in oracle.tuned().values()}
    assert len(points) == len(oracle.tuned()) == 4
    assert all(1 <= len(sources) <= 2 and set(sources) < set(POOL) for sources in points)


# others


def test_labels_of_targets_are_compared_with_after_the_choice_and_read_once(place: Place) -> None:
    asked = {"selection": {"compare_oracle": True}, "screening": {"trials": 6}}
    called = tune(place.config("compared", training={"method": "probe"}, search=asked))
    assert all(set(line["accuracy"]) == set(POOL) for line in called.journal)
    file = called.folder / "oracle.json"
    extra = json.loads(file.read_text(encoding="utf-8"))
    assert set(extra) == {space.point_key(line["point"]) for line in called.journal}
    assert all(set(each) == {TARGET} for each in extra.values())
    assert "oracle" in called.table.lower()
    known = stamps([file, called.folder / "journal.jsonl"])
    (called.folder / "result.json").unlink()
    assert tune(called.config).table == called.table
    assert stamps(known) == known, "nothing was measured again"


def test_a_grid_tries_every_mix_once_and_two_objectives_give_a_pareto_front(place: Place) -> None:
    asked = {
        "searcher": "grid",
        "selection": {"languages": "sources", "objectives": ["mean", "worst"]},
        "screening": {"trials": 0},
        "fine_tuning": {"trials": 6, "concurrent": None},
    }
    called = tune(place.config("grid", training={"epochs": 2}, search=asked))
    tuned = list(called.tuned().values())
    assert all(line["whole"] for line in tuned), "nothing is stopped where two objectives count"
    assert sorted(tuple(line["point"]["sources"]) for line in tuned) == sorted(
        [(code,) for code in POOL] + [("deu_Latn", "eng_Latn"), ("deu_Latn", "swh_Latn"), ("eng_Latn", "swh_Latn")]
    )
    front = called.table.partition("Pareto front")[2].split("\n\n")[0].splitlines()[1:]
    values = {}
    for line in tuned:
        own = [line["accuracy"][code] for code in line["point"]["sources"]]
        values["+".join(code[:3] for code in line["point"]["sources"])] = (sum(own) / len(own), min(own))
    best = {
        name for name, mine in values.items()
        if not any(all(a >= b for a, b in zip(one, mine, strict=True)) and one != mine for one in values.values())
    }  # fmt: skip
    assert len(front) == len(best)
    assert {row.partition(":")[0].replace(" ", "") for row in front} == best


def test_a_search_of_probes_interrupted_goes_on_and_registers_its_choice_once(place: Place) -> None:
    asked = {
        "space": {"sources": {"at_most": 2}, "mixture.alpha": {"uniform": [0, 1]}},
        "screening": {"trials": 14},
        "retraining": {"seeds": 2, "baselines": []},
    }
    file = place.config(
        "probes", tracked=True, training={"method": "probe"}, tracking={"register_as": MODEL, "alias": "best"},
        search=asked,
    )  # fmt: skip

    stages = {"screen": 9, "retrain": 1}

    def interrupt(event: dict[str, Any]) -> None:
        if event["stage"] in stages and event["done"] >= stages[event["stage"]]:
            del stages[event["stage"]]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(space.load(file), interrupt)
    (folder,) = (file.parent / "runs").iterdir()
    before = journal(folder)
    assert len(before) == 9 and not (folder / "tuned.json").exists()
    with pytest.raises(KeyboardInterrupt):
        search.run(space.load(file), interrupt)
    (first,) = folder.glob("retrained/*/result.json")
    known = stamps((first, folder / "journal.jsonl"))
    called = tune(file)
    assert stamps(known) == known, "nothing was done again"
    assert called.journal[:9] == before
    names = [line["name"] for line in called.journal]
    assert len(names) == len(set(names)) == 14
    assert {line["fidelity"] for line in called.journal} == {"probe"}
    assert "Nothing was fine-tuned" in called.table and "mean of 2 new seeds" in called.table
    assert len(list(folder.glob("retrained/*/result.json"))) == 2

    import mlflow

    client = mlflow.MlflowClient(place.uri)
    experiment = client.get_experiment_by_name("probes").experiment_id
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    assert sorted(run.info.run_name for run in runs.values()) == ["tiny", "tiny-chosen", "tiny-chosen"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    (version,) = client.search_model_versions(f"name = '{MODEL}'")
    assert client.get_model_version_by_alias(MODEL, "best").version == version.version
    assert runs[version.run_id].info.run_name == "tiny-chosen"
    tune(file)
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1


def test_a_search_at_a_url_goes_on_on_another_machine(place: Place) -> None:
    root = place.root / "bucket"
    asked = {"space": {"sources": {"at_most": 1}}, "fine_tuning": {"trials": 3, "scheduler": "none"}}
    # `local://` is a file system of fsspec like any other here: only file:// and plain paths are taken as directories
    file = place.config("bucket-search", search=asked, storage=f"local://{root}")

    def interrupt(event: dict[str, Any]) -> None:
        if event["stage"] == "tune" and event["done"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(space.load(file), interrupt)
    (stored,) = root.iterdir()
    (local,) = (place.root / "cache" / "runs").glob("tiny-search-*")
    before = journal(stored)
    assert len([line for line in before if line["fidelity"] == "fine_tune"]) >= 2
    shutil.rmtree(local)
    events: list[dict[str, Any]] = []
    found = search.run(space.load(file), events.append)
    after = journal(stored)
    assert after[: len(before)] == before and len({line["name"] for line in after}) == len(after) == 3 + 2 + 3
    tuned = [event for event in events if event["stage"] == "tune"]
    done = [event["done"] for event in tuned]
    assert done[0] >= 1 and done[-1] == 3, "what a killed session did counts"
    best = found.findings.judge.value(next(one for one in found.findings.tried if one.whole and one.epochs))
    assert best is not None and tuned[0]["best"] >= best, "and so does what it found"
    assert (stored / "result.json").is_file()
