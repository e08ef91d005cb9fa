"""One code per language, whatever code is written; the table agrees with what is published."""

from __future__ import annotations

import csv
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from xlt_ray.languages.codes import all_languages, get, resolve

SHARED = Path(__file__).parents[2].parent / "shared"

# the 94 names on XLM-R's list that are no romanisation and no font, by ISO 639-1; Chinese is there in both scripts
XLMR = """
af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id is it ja
jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl so sq sr su
sv sw ta te th tl tr ug uk ur uz vi xh yi zh-Hans zh-Hant
"""
ROMANISED = ["bn_rom", "hi_rom", "ta_rom", "te_rom", "ur_rom"]
PUBLISHED_AS_UNSEEN = {"tgl_Latn", "ory_Orya", "pan_Guru"}
COUNTED_TWICE = {"nno_Latn", "azb_Arab", "srp_Latn"}


@pytest.mark.parametrize(
    ("code", "canonical"),
    [
        ("en", "eng_Latn"),
        ("eng", "eng_Latn"),
        ("eng_Latn", "eng_Latn"),
        ("ENG-latn", "eng_Latn"),
        ("en-Latn-GB", "eng_Latn"),
        ("ger", "deu_Latn"),
        ("de-1996", "deu_Latn"),
        ("zh", "zho_Hans"),
        ("zh-CN", "zho_Hans"),
        ("zh_TW", "zho_Hant"),
        ("zh-Hant-HK", "zho_Hant"),
        ("zh-HK", "zho_Hant"),
        ("cmn-Hans-CN", "zho_Hans"),
        ("yue-HK", "yue_Hant"),
        ("zh-yue", "yue_Hant"),
        ("sr", "srp_Cyrl"),
        ("sr-Latn", "srp_Latn"),
        ("sr_Cyrl_RS", "srp_Cyrl"),
        ("pt-BR", "por_Latn"),
        ("es-419", "spa_Latn"),
        ("no", "nob_Latn"),
        ("nb-NO", "nob_Latn"),
        ("nn", "nno_Latn"),
        ("iw", "heb_Hebr"),
        ("in", "ind_Latn"),
        ("tl", "tgl_Latn"),
        ("fil", "tgl_Latn"),
        ("sw", "swh_Latn"),
        ("swa", "swh_Latn"),
        ("ar-EG", "arb_Arab"),
        ("ara", "arb_Arab"),
        ("ar-Latn", "arb_Latn"),
        ("fa", "pes_Arab"),
        ("fas", "pes_Arab"),
        ("fa-AF", "prs_Arab"),
        ("az-Arab", "azb_Arab"),
        ("ku-Arab", "ckb_Arab"),
        ("ko-Kore-KR", "kor_Hang"),
        ("hi_rom", "hin_Latn"),
        ("hi-Latn", "hin_Latn"),
        ("my_zaw", "mya_Mymr"),
        ("kas-Deva", "kas_Deva"),
        ("ckb", "ckb_Arab"),
        (" hau ", "hau_Latn"),
    ],
)
def test_every_usual_way_to_write_a_language_leads_to_its_code(code: str, canonical: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(code) == canonical


@pytest.mark.parametrize("code", ["xx", "qqq_Latn", "English", "", "hau_Arab", "zh-Latn", "pa-Arab"])
def test_an_unknown_code_or_script_comes_back_unchanged_with_one_warning_that_names_it(code: str) -> None:
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        assert resolve(code) == code
        assert resolve(code) == code
    assert len(raised) == 1
    assert repr(code) in str(raised[0].message)
    assert raised[0].filename == __file__
    assert get(code) is None


def test_no_code_name_or_alias_belongs_to_two_languages() -> None:
    table = all_languages()
    assert [entry.code for entry in table] == sorted({entry.code for entry in table})
    assert len({entry.name for entry in table}) == len(table)
    written = [alias for entry in table for alias in entry.aliases] + [e.code.lower().replace("_", "-") for e in table]
    assert sorted(written) == sorted(set(written))


def test_every_code_and_alias_resolves_to_its_own_entry() -> None:
    for entry in all_languages():
        assert get(entry.code) is entry
        for written in (entry.code, *entry.aliases, *(alias.upper().replace("-", "_") for alias in entry.aliases)):
            assert resolve(written) == entry.code, written
        assert entry.name and entry.script and entry.family, entry


def test_in_xlmr_marks_what_xlm_r_lists_but_for_the_exceptions_that_the_module_states() -> None:
    names = XLMR.split() + ROMANISED
    assert len([*names, "Burmese in Zawgyi"]) == 100
    marked = {entry.code for entry in all_languages() if entry.in_xlmr}
    listed = {resolve(code) for code in names}
    assert len(listed) == 99
    assert listed - marked == PUBLISHED_AS_UNSEEN
    assert marked - listed == COUNTED_TWICE
    assert len(marked) == 99


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_family_and_in_xlmr_agree_with_every_published_row() -> None:
    with (SHARED / "facts" / "sib200_published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 204
    for row in rows:
        entry = get(row["code"])
        assert entry is not None, row["code"]
        assert (entry.family, entry.in_xlmr) == (row["family"], row["in_xlmr"] == "1"), row["code"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_every_folder_of_sib200_resolves_to_itself() -> None:
    codes = [folder.name for folder in (SHARED / "data" / "sib200").iterdir() if folder.is_dir()]
    assert codes
    for code in codes:
        assert resolve(code) == code
        assert get(code) is not None


def test_every_language_of_home_assistant_is_known() -> None:
    package = pytest.importorskip("home_assistant_intents")
    assert len(package.LANGUAGES) == 65
    for code in package.LANGUAGES:
        assert get(resolve(code)) is not None, code


def test_importing_reads_nothing_and_needs_nothing_but_the_standard_library() -> None:
    probe = (
        "import sys; before = set(sys.modules); from xlt_ray.languages import codes;"
        "new = set(sys.modules) - before;"
        "assert codes.all_languages.cache_info().currsize == 0;"
        "strangers = {m.split('.')[0] for m in new} - set(sys.stdlib_module_names) - {'xlt_ray'};"
        "assert not strangers, strangers"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=Path(__file__).parents[2])
