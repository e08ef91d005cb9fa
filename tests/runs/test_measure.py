"""`xlt evaluate`: what a run measured is reported again only where it was asked for and still holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import registered
from xlt_ray import cli
from xlt_ray.config.read import build
from xlt_ray.errors import InputError
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.paired import comparison
from xlt_ray.evaluation.predictions import save_predictions
from xlt_ray.evaluation.scores import Scores, load_scores
from xlt_ray.inference import bundle
from xlt_ray.runs import measure

SHARES = {"eng_Latn": 0.8, "deu_Latn": 0.8, "swh_Latn": 0.6, "hin_Deva": 0.4}  # right, by the scores that are kept


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tiny_corpus: Path) -> Path:
    """The folder of a run whose bundle holds scores that measuring it would not give, so that the two differ."""
    folder = tmp_path_factory.mktemp("run")
    data = registered.settings(tiny_encoder, tiny_corpus, folder / "cache")
    model = bundle.load(registered.made_bundle(folder / "made", data))
    found = registered.answers(data, SHARES)
    scores = metrics.score(found, model.labels, Roles(model.experiment.sources, ("hin_Deva",)), 200)
    identity = json.loads((folder / "made" / "bundle.json").read_text(encoding="utf-8"))["encoder"]
    bundle.save(folder / "bundle", replace(model, scores=scores), identity)
    return folder


def asked(*arguments: Any) -> str:
    done = CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("inside", ["", "bundle"])
def test_a_report_alone_is_what_the_run_measured_and_says_so(run: Path, inside: str) -> None:
    printed = asked(run / inside, "--report", "sw", "--report", "hin_Deva")
    assert f"as the finished run measured it; `xlt evaluate {run / inside}` measures the bundle again" in printed
    assert "measuring on test" not in printed and "eng_Latn" not in printed
    assert "swh_Latn (zero-shot): accuracy 60.0 [" in printed and "hin_Deva (few-shot): accuracy 40.0 [" in printed
    assert all(printed.count(label) == 2 for label in ("food", "sport", "travel"))


@pytest.mark.parametrize("changed", [["evaluation.resamples=100"], ["--config"]])
def test_with_anything_changed_only_the_languages_asked_for_are_measured(
    run: Path, tmp_path: Path, changed: list[str]
) -> None:
    if changed == ["--config"]:
        (tmp_path / "other.yaml").write_text(json.dumps(bundle.load(run / "bundle").experiment.model_dump(mode="json")))
        changed = ["--config", str(tmp_path / "other.yaml")]
    printed = asked(run, "--report", "sw", *changed)
    assert "as the finished run" not in printed and "measuring on test  45 of 45" in printed
    assert "swh_Latn (zero-shot)" in printed and "accuracy 60.0" not in printed and "hin_Deva" not in printed


def test_without_a_report_or_with_a_file_to_write_all_is_measured(run: Path, tmp_path: Path) -> None:
    printed = asked(run, "--report", "sw", "--out", tmp_path / "scores.json")
    assert "as the finished run" not in printed and "180 of 180" in printed
    found = Scores.from_json((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert set(found.languages) == set(SHARES) and found.languages["swh_Latn"].accuracy != 0.6
    assert found.languages["hin_Deva"].role == "few-shot", "as in the run, whose bundle saw rows of it"
    assert "180 of 180" in asked(run)


def test_what_damaged_scores_are_refused_with_writes_them_again(run: Path, tmp_path: Path) -> None:
    for name in ("bundle", "scores.json"):
        (tmp_path / name).symlink_to(run / "bundle" / name.replace("bundle", ""))
    whole = load_scores(tmp_path)
    (tmp_path / "scores.json").unlink()
    (tmp_path / "scores.json").write_text("{}", encoding="utf-8")
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert done.exit_code == 2, done.output
    remedy = done.stderr.split("`")[1].split()
    assert remedy[0] == "xlt" and CliRunner().invoke(cli.app, remedy[1:]).exit_code == 0
    assert load_scores(tmp_path).languages.keys() == whole.languages.keys()


def test_what_may_no_longer_hold_is_not_reported_again(run: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    assert measure.kept(run / "bundle", ["swh_Latn"]) is not None
    assert measure.kept(run / "made", ["swh_Latn"]) is None, "a bundle without scores"
    with pytest.raises(InputError, match="--report fra_Latn: not measured; measured are deu_Latn, eng_Latn"):
        measure.kept(run / "bundle", ["fra_Latn"])
    content = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    for name in content["sha256"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((run / "bundle" / name).read_bytes())
    # `xlt adapt` changes such a bundle after it was measured
    (tmp_path / "bundle.json").write_text(json.dumps(content | {"steps": "steps-0123.safetensors"}), encoding="utf-8")
    assert measure.kept(tmp_path, ["swh_Latn"]) is None
    (tmp_path / "scores.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"scores\.json: not the file that was saved"):
        measure.kept(tmp_path, ["swh_Latn"])


@pytest.mark.parametrize(
    ("languages", "few_shot"), [("targets", {"swh_Latn", "hin_Deva"}), (["swh_Latn"], {"swh_Latn"})]
)
def test_of_a_bundle_without_scores_the_techniques_know_what_is_few_shot(
    languages: Any, few_shot: set[str], tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    data = registered.settings(tiny_encoder, tiny_corpus, tmp_path / "cache")
    data["techniques"] = [{"few_shot": {"shots": 2, "languages": languages}}]
    folder = registered.made_bundle(tmp_path / "made", data)
    model = bundle.load(folder)
    found = measure.measure(model, model.experiment, lambda event: None)
    assert {code for code, one in found.languages.items() if one.role == "few-shot"} == few_shot
    assert {code for code, one in found.languages.items() if one.role == "source"} == {"deu_Latn", "eng_Latn"}


def test_a_language_that_was_added_to_a_bundle_is_not_few_shot(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    data = registered.settings(tiny_encoder, tiny_corpus, tmp_path / "cache")
    data["techniques"] = [{"few_shot": {"shots": 2}}]
    made = bundle.load(registered.made_bundle(tmp_path / "made", data))
    roles = Roles(("eng_Latn", "deu_Latn"), ("swh_Latn",))
    scores = metrics.score(registered.answers(data, {"eng_Latn": 0.9, "swh_Latn": 0.5}), made.labels, roles, 50)
    known = measure._few_shot(replace(made, scores=scores), ["eng_Latn", "swh_Latn", "hin_Deva"])
    assert known == ("swh_Latn",), "hin_Deva was measured by no run, so no label of it was trained on"


def test_two_runs_are_compared_in_the_groups_that_a_language_belongs_to_in_both(
    tiny_encoder: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    data = registered.settings(tiny_encoder, tiny_corpus, tmp_path / "cache")
    seen = frozenset({"eng_Latn", "swh_Latn", "hin_Deva"})
    # one is a source in the first run alone, one has shots in the second alone
    kinds = {
        "first": Roles(("eng_Latn", "deu_Latn"), seen=seen),
        "second": Roles(("eng_Latn",), ("hin_Deva",), seen=seen),
    }
    for name, roles in kinds.items():
        predictions = registered.answers(data, SHARES, seed=len(name))
        (tmp_path / name).mkdir()
        save_predictions(tmp_path / name / "predictions.npz", predictions)
        scores = metrics.score(predictions, ("food", "sport", "travel"), roles, 50)
        (tmp_path / name / "scores.json").write_text(scores.to_json(), encoding="utf-8")
    for pair in (("first", "second"), ("second", "first")):
        found = comparison.compare_runs(*(tmp_path / name for name in pair))
        assert {name: sorted(one.per_language) for name, one in found.items()} == {
            "all": sorted(SHARES),
            "source": ["eng_Latn"],
            "zero-shot": ["swh_Latn"],
            "zero-shot seen": ["swh_Latn"],
        }


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("network.max_length=8", "network"),
        ("network.pooling=first", "network"),
        ("task=tag", "task"),
        ("techniques.centre.rows=30", "techniques"),
    ],
)
def test_a_change_that_would_make_another_model_is_refused_where_one_is_measured(
    tiny_settings: dict[str, Any], change: str, part: str
) -> None:
    own = build(tiny_settings | {"techniques": ["centre"]})
    with pytest.raises(InputError, match=f"{change}: RUN is measured as it was trained, and {part} is part of that"):
        measure.changed(own, [change], "RUN")
    assert measure.changed(own, ["evaluation.resamples=150"], "RUN").evaluation.resamples == 150
    assert measure.changed(own, [], "RUN") == own
