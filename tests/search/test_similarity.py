"""Ranking sources without labels: what is known of languages, how measures become a rank, and what can be read."""

from __future__ import annotations

import dataclasses
import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray_runs import environment
from rich.console import Console
from typer.testing import CliRunner

from xlt_ray import cli, errors
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.read import build
from xlt_ray.corpora import loaders
from xlt_ray.corpora.corpus import Corpus
from xlt_ray.errors import InputError
from xlt_ray.languages import typology
from xlt_ray.languages.codes import all_languages
from xlt_ray.search import similarity
from xlt_ray.search.similarity import coverage, greedy, normalised_ranks, ranked

NAN = float("nan")
ROOT = Path(__file__).parents[2]


def values(**measures: list[list[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(rows, dtype=np.float64) for name, rows in measures.items()}


# what is known of languages


def test_kin_share_more_of_the_line_of_descent() -> None:
    assert typology.kinship("swh_Latn", "zul_Latn") > typology.kinship("yor_Latn", "zul_Latn") > 0
    assert typology.kinship("eng_Latn", "swh_Latn") == typology.kinship("eng_Latn", "eus_Latn") == 0
    assert typology.kinship("eng_Latn", "deu_Latn") > typology.kinship("fra_Latn", "deu_Latn") > 0
    assert typology.kinship("azj_Latn", "azj_Latn") == 1
    assert typology.kinship("rus_Cyrl", "deu_Latn") == typology.kinship("fra_Latn", "deu_Latn"), "by where they part"


def test_macrolanguages_and_languages_the_tree_lacks_have_a_family() -> None:
    assert typology.lineage("zho_Hans")[0] == typology.lineage("zho_Hant")[0] == "Sino-Tibetan"
    assert len(typology.lineage("est_Latn")) > 2
    assert typology.kinship("ita_Latn", "srd_Latn") > 0, "by our own table"
    assert typology.kinship("bam_Latn", "nqo_Nkoo") > 0, "the tree calls it an artificial language"
    assert typology.kinship("epo_Latn", "nqo_Nkoo") == 0


def test_every_language_of_the_table_has_a_family_and_nearly_all_a_place() -> None:
    codes = [language.code for language in all_languages()]
    assert all(typology.lineage(code) for code in codes)
    assert sum(np.isnan(typology.distance_km("eng_Latn", code)) for code in codes) < 5


def test_distances_are_those_of_the_globe() -> None:
    assert typology.distance_km("eng_Latn", "eng_Latn") == 0
    assert 500 < typology.distance_km("fra_Latn", "deu_Latn") < 1200
    assert 8500 < typology.distance_km("eng_Latn", "jpn_Jpan") < 10500
    assert typology.distance_km("mri_Latn", "spa_Latn") > 18_000


@pytest.mark.parametrize("code", ["my-lang", "simple", "qqq", "nothing at all"])
def test_of_a_name_that_is_no_code_nothing_is_known(code: str) -> None:
    for measure in (typology.kinship, typology.same_script, typology.distance_km):
        assert np.isnan(measure(code, "eng_Latn")) and np.isnan(measure("eng_Latn", code))


# text


def test_cosines_are_of_centred_means() -> None:
    far = np.array([100.0, 100.0])
    cosine = similarity.cosines({"a": far + [[1, 0], [1, 0]], "b": far + [[2, 0]], "c": far + [[-3, 0]]})
    assert cosine("a", "b") == pytest.approx(1) and cosine("a", "c") == pytest.approx(-1)
    assert np.isnan(cosine("a", "not there"))
    assert np.isnan(similarity.cosines({"a": far[None], "b": far[None]})("a", "b")), "no direction to compare"


def test_overlap_counts_the_targets_tokens_as_often_as_they_occur() -> None:
    share = similarity.overlap({"a": np.array([1, 2, 9]), "b": np.array([1, 1, 1, 7]), "none": np.array([], int)})
    assert share("a", "b") == 0.75 and share("b", "a") == pytest.approx(1 / 3)
    assert np.isnan(share("none", "a")) and np.isnan(share("a", "none")) and np.isnan(share("a", "not there"))


def test_a_sample_is_drawn_evenly_from_rows_with_text() -> None:
    table = pa.table({"text": [None, *(str(i) for i in range(1000))]})
    picked = [int(text) for text in similarity._sample(table)["text"].to_pylist()]
    assert len(picked) == similarity.SAMPLE and picked[0] == 0 and picked[-1] == 999
    assert set(np.diff(picked)) <= {10, 11}
    assert similarity._sample(table.slice(0, 3)).num_rows == 2 and similarity._sample(table.slice(0, 1)).num_rows == 0


# ranking


def test_ranks_are_from_0_to_1_and_equals_share_theirs() -> None:
    column = np.array([[5.0, NAN], [5.0, 2.0], [1.0, NAN], [9.0, NAN]])
    np.testing.assert_allclose(normalised_ranks(column), [[0.5, NAN], [0.5, 0.5], [0, NAN], [1, NAN]])


def test_a_score_is_the_mean_over_known_measures_then_over_targets() -> None:
    found = ranked(
        ["eng_Latn", "fra_Latn", "rus_Cyrl"],
        ["deu_Latn", "pol_Latn"],
        values(
            text=[[0.9, NAN], [0.5, NAN], [0.1, NAN]],  # deu: 1, 1/2, 0; pol has no text
            geography=[[600, 1500], [800, 1400], [3000, 1300]],  # deu: 1, 1/2, 0; pol: 0, 1/2, 1
            script=[[1, 1], [1, 1], [0, 0]],  # 3/4, 3/4, 0
        ),
    )
    assert found.scores["eng_Latn"] == pytest.approx({"deu_Latn": 2.75 / 3, "pol_Latn": 0.375})
    assert found.scores["rus_Cyrl"] == pytest.approx({"deu_Latn": 0, "pol_Latn": 0.5})
    assert [row.code for row in found.rows] == list(found.scores) == ["eng_Latn", "fra_Latn", "rus_Cyrl"]
    first, second, third = found.rows
    assert first.score == pytest.approx((2.75 / 3 + 0.375) / 2)
    assert first.measures == pytest.approx(
        {"text": 0.9, "tokens": None, "family": None, "script": 1.0, "geography": 1050.0}
    )
    assert (first.best_for, second.best_for, third.best_for) == (("deu_Latn",), ("pol_Latn",), ())
    assert (first.nearest, third.nearest) == (1, 0)
    assert first.reasons == "same script as 2 of 2 targets, closest text for 1; 1,050 km away on average"


def test_candidates_that_tie_share_a_target_and_stand_in_the_order_of_their_codes() -> None:
    found = ranked(["fra_Latn", "eng_Latn"], ["deu_Latn"], values(script=[[1], [1]]))
    assert [(row.code, row.score, row.nearest) for row in found.rows] == [("eng_Latn", 0.5, 1), ("fra_Latn", 0.5, 1)]


def test_an_unknown_measure_is_left_out_and_not_taken_for_the_worst() -> None:
    known = values(script=[[1], [0]], text=[[0.9], [0.1]])
    unknown = values(script=[[1], [0]], text=[[NAN], [0.1]])
    assert ranked(["a", "b"], ["t"], known).rows[0].score == ranked(["a", "b"], ["t"], unknown).rows[0].score == 1


def test_reasons_name_the_nearest_kin() -> None:
    sources, targets = ["swh_Latn"], ["zul_Latn", "sot_Latn", "bam_Latn", "ewe_Latn"]
    kin = [[typology.kinship("swh_Latn", target) for target in targets]]
    text = ranked(sources, targets, values(family=kin)).rows[0].reasons
    assert text == "same family as 3 (Atlantic-Congo; Bantu: Zulu, Southern Sotho)"


@pytest.mark.parametrize(
    ("source", "targets", "expected"),
    [
        ("fra_Latn", ["ita_Latn", "deu_Latn", "swh_Latn"], "same family as 2 (Indo-European; Romance: Italian)"),
        ("fra_Latn", ["deu_Latn", "hin_Deva"], "same family as 2 (Indo-European: German, Hindi)"),
        ("spa_Latn", ["ron_Latn", "por_Latn"], "same family as 2 (Romance: Portuguese, Romanian)"),  # the nearest first
        ("rus_Cyrl", ["lit_Latn", "ell_Grek"], "same family as 2 (Indo-European; Balto-Slavic: Lithuanian)"),
        ("arb_Arab", ["amh_Ethi", "hau_Latn"], "same family as 2 (Afro-Asiatic; Semitic: Amharic)"),
        ("tur_Latn", ["kaz_Cyrl", "azj_Latn"], "same family as 2 (Turkic; Oghuz: Azerbaijani)"),
        ("tam_Taml", ["tel_Telu"], "same family as 1 (Dravidian: Telugu)"),
        ("fin_Latn", ["hun_Latn"], "same family as 1 (Uralic: Hungarian)"),
        ("jpn_Jpan", ["kor_Hang"], "same family as none"),
    ],
)
def test_kin_are_named_by_a_family_or_branch_that_people_know(source: str, targets: list[str], expected: str) -> None:
    kin = [[typology.kinship(source, target) for target in targets]]
    assert ranked([source], targets, values(family=kin)).rows[0].reasons == expected


def test_branches_are_those_of_the_tree() -> None:
    known = {
        "fra_Latn": "Romance", "deu_Latn": "Germanic", "rus_Cyrl": "Slavic", "hin_Deva": "Indo-Aryan",
        "pes_Arab": "Iranian", "cym_Latn": "Celtic", "hye_Armn": "Armenian", "swh_Latn": "Bantu", "tha_Thai": "Tai",
        "lvs_Latn": "Baltic", "khk_Cyrl": "Mongolic", "kaz_Cyrl": "Kipchak", "eus_Latn": "Basque",
    }  # fmt: skip
    assert {code: typology.branch(typology.lineage(code)) for code in known} == known


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0, NAN]), min_size=n, max_size=n), min_size=1)
    )
)
def test_scores_lie_between_0_and_1_or_what_is_unknown_is_named(rows: list[list[float]]) -> None:
    sources, targets = [f"s{i}" for i in range(len(rows))], [f"t{i}" for i in range(len(rows[0]))]
    array = np.array(rows)
    if np.isnan(array).all(axis=0).any() or np.isnan(array).all(axis=1).any():
        with pytest.raises(InputError, match="neither text nor family"):
            ranked(sources, targets, {"text": array})
        return
    found = ranked(sources, targets, {"text": array})
    assert all(0 <= row.score <= 1 for row in found.rows)
    assert {target for row in found.rows for target in row.best_for} == set(targets)


# mixes

MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 4)).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(0, 1, allow_subnormal=False), min_size=size[1], max_size=size[1]),
        min_size=size[0],
        max_size=size[0],
    )
)


@given(MATRICES, st.data())
def test_greedy_is_within_its_bound_of_the_best_mix(rows: list[list[float]], data: st.DataObject) -> None:
    scores = {f"s{i}": {f"t{j}": score for j, score in enumerate(row)} for i, row in enumerate(rows)}
    k = data.draw(st.integers(1, len(scores)))
    chosen = greedy(scores, k)
    best = max(coverage(scores, mix) for mix in itertools.combinations(scores, k))
    reached = coverage(scores, chosen)
    assert len(set(chosen)) == k and reached <= best + 1e-12
    assert reached >= (best if k in (1, len(scores)) else (1 - 1 / np.e) * best) - 1e-12
    assert greedy(scores, k)[: k - 1] == (greedy(scores, k - 1) if k > 1 else ())


def test_a_mix_is_not_the_best_ones_by_themselves() -> None:
    scores = {"eng": {"deu": 1.0, "spa": 0.7}, "fra": {"deu": 0.9, "spa": 0.75}, "swh": {"zul": 1.0}}
    assert greedy(scores, 2) == ("eng", "swh")
    assert coverage(scores, ["eng", "swh"]) == pytest.approx(2.7 / 3) and coverage(scores, []) == 0


@pytest.mark.parametrize("k", [0, 3])
def test_a_mix_of_more_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"mix: {k} sources asked for, but there are 2 candidates; give 1 to 2"):
        greedy({"a": {"t": 1.0}, "b": {"t": 0.5}}, k)


def test_a_table_fits_80_columns_and_says_that_no_label_was_used() -> None:
    sources = ["zho_Hans", "srp_Latn", "eng_Latn"]
    kin = [[typology.kinship(source, "deu_Latn")] for source in sources]
    ranking = ranked(sources, ["deu_Latn"], values(family=kin, geography=[[12345], [NAN], [1]]))
    written = io.StringIO()
    Console(width=80, file=written).print(similarity.table(ranking))
    text = written.getvalue()
    assert "no label was used" in text and "12,345" in text and "Chinese (Simplified)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "'sources=[eng_Latn," in similarity.mix_lines(ranking, 2)


# what is refused


def bare(sources: list[str], targets: list[str]) -> Experiment:
    return build({"sources": sources, "targets": targets})


def test_languages_without_text_are_ranked_by_typology() -> None:
    found = similarity.rank(bare(["eng_Latn", "swh_Latn"], ["zul_Latn"]), Corpus("none", (), {}), print)
    assert [row.code for row in found.rows] == ["swh_Latn", "eng_Latn"]
    assert found.rows[0].measures["text"] is None and found.rows[0].measures["tokens"] is None


@pytest.mark.filterwarnings("ignore:language 'nowhere'")
def test_a_language_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(InputError, match="sources: nowhere: neither text nor family.*leave it out of sources"):
        similarity.rank(bare(["nowhere", "eng_Latn"], ["zul_Latn"]), Corpus("none", (), {}), print)
    with pytest.raises(InputError, match="targets: nowhere: neither"):
        similarity.rank(bare(["eng_Latn"], ["zul_Latn", "nowhere"]), Corpus("none", (), {}), print)


def test_targets_that_are_all_candidates_are_refused() -> None:
    with pytest.raises(InputError, match="targets: every one of them is among sources"):
        similarity.rank(bare(["eng_Latn", "zul_Latn"], ["zul_Latn"]), Corpus("none", (), {}), print)


# on Ray


def relabelled(corpus: Corpus) -> Corpus:
    """Turn all labels of a corpus, and all texts of its test, into something else."""

    def other(split: str, table: pa.Table) -> pa.Table:
        zeros = pa.array(np.zeros(table.num_rows, np.int32))
        table = table.set_column(table.column_names.index("label"), "label", zeros)
        if split != "test":
            return table
        return table.set_column(table.column_names.index("text"), "text", pa.array(["gone"] * table.num_rows))

    return dataclasses.replace(
        corpus, splits={s: {c: other(s, t) for c, t in of.items()} for s, of in corpus.splits.items()}
    )


@pytest.mark.slow
def test_a_ranking_depends_on_no_label_and_no_row_of_test(tiny_experiment: Experiment, local_ray: None) -> None:
    corpus = loaders.load(tiny_experiment.corpus)
    events: list[dict[str, object]] = []
    found = similarity.rank(tiny_experiment, corpus, events.append)
    assert {row.code for row in found.rows} == {"eng_Latn", "deu_Latn"}
    assert found.targets == ("hin_Deva", "swh_Latn")
    assert all(value is not None for row in found.rows for value in row.measures.values())
    assert all(row.measures["tokens"] == 0 for row in found.rows), "the tiny languages have no word in common"
    assert events[-1]["stage"] == "embed" and events[-1]["done"] == events[-1]["total"]
    assert similarity.rank(tiny_experiment, relabelled(corpus), events.append) == found


@pytest.mark.slow
@pytest.mark.long
def test_the_verb_ranks_a_search_file_through_a_pipe(tiny_settings: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({**tiny_settings, "search": {"anything": 1}}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "xlt_ray.cli", "rank-sources", str(file), "targets=[swh_Latn]", "--mix", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "computing features" in done.stderr and "computing features" not in done.stdout
    assert "candidate sources: 2, targets: 1; no label was used" in done.stdout
    assert "eng_Latn" in done.stdout and "'sources=[" in done.stdout


def test_work_that_stops_on_ray_is_told_in_one_message(
    tiny_settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_settings), encoding="utf-8")

    def stop(*arguments: object) -> None:
        raise errors.TrainingError("the cluster is gone")

    monkeypatch.setattr(similarity, "rank_file", stop)
    done = CliRunner().invoke(cli.app, ["rank-sources", str(file)])
    assert done.exit_code == 1 and done.stderr == "error: the cluster is gone\n"


def test_the_verb_refuses_in_one_message(tiny_settings: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_settings), encoding="utf-8")
    done = CliRunner().invoke(cli.app, ["rank-sources", str(file), "sources=[]"])
    assert done.exit_code == 2 and "error: " in done.stderr and "sources" in done.stderr
