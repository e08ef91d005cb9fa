"""Languages of texts: scripts decide what they can, and what cannot be told is not told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xlt_ray.languages import codes, identify
from xlt_ray.languages.identify import UNKNOWN, Identifier

TEXTS = {
    "deu_Latn": "Mach bitte das Licht im Bad an, und zwar sofort",
    "eng_Latn": "Please turn on the light in the bathroom right now",
    "swh_Latn": "Tafadhali washa taa jikoni kwa sababu kuna giza sana usiku huu",
    "zho_Hans": "今天天气怎么样，我们去公园吧",
    "zho_Hant": "今天天氣怎麼樣，我們去公園吧，這裡沒有開燈",
    "jpn_Jpan": "東京へ行くつもりです",
    "kor_Hang": "오늘 날씨가 어때요",
    "srp_Cyrl": "Добар дан, како сте данас? Надам се да је све у реду са вама и породицом.",
    "rus_Cyrl": "Включи, пожалуйста, свет на кухне, здесь очень темно",
    "arb_Arab": "أغلق ستائر غرفة النوم من فضلك قبل أن يحل المساء",
    "urd_Arab": "کھڑکی بند کر دو اور پھر مجھے بتاؤ کہ موسم کیسا ہے",
    "heb_Hebr": "תדליק בבקשה את האור בסלון כי כבר חושך בחוץ",
    "kat_Geor": "აანთე შუქი სამზარეულოში",
    "hin_Deva": "कृपया रसोई में बत्ती जला दो क्योंकि बाहर बहुत अंधेरा है",
}


@pytest.fixture(scope="module")
def identifier() -> Identifier:
    return Identifier()


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_is_identified_by_language_and_script(identifier: Identifier, code: str) -> None:
    found = identifier.guess(TEXTS[code])
    assert found.code == code
    assert identify.SURE <= found.confidence <= 1


@pytest.mark.parametrize("text", ["", " ", "12 + 3", "!?…", "😀😀", "\x00\x01", "٣٤٥", "́"])
def test_without_letters_nothing_is_guessed(identifier: Identifier, text: str) -> None:
    assert identifier.guess(text) == UNKNOWN


@pytest.mark.parametrize("text", ["a", "xyz", "ᏣᎳᎩ", "ⴰⵣⵓⵍ", "ꙮ", "ʘ", "zzzz qqqq"])
def test_too_little_text_is_not_guessed(identifier: Identifier, text: str) -> None:
    found = identifier.guess(text)
    assert found.code is None
    assert found.confidence < identify.SURE


def test_the_script_decides_between_the_scripts_of_a_language() -> None:
    text = "Dobar dan"
    assert identify._code("sr", "Cyrl", text) == "srp_Cyrl"
    assert identify._code("sr", "Latn", text) == "srp_Latn"
    assert identify._code("de", "Arab", text) is None
    assert identify._code(identify.NOT_A_LANGUAGE, "Latn", text) is None


def test_no_guess_contradicts_the_script(identifier: Identifier) -> None:
    for text in TEXTS.values():
        for mixed in (text, text[:3], text[-4:], text + " ok"):
            code, script = identifier.guess(mixed).code, identify.script_of(mixed)
            if code and code in {one.code for one in codes.all_languages()}:
                assert code.endswith(script or "") or script == "Hani"


def test_characters_decide_between_the_two_kinds_of_chinese(identifier: Identifier) -> None:
    assert identify._han("这里没有") == "Hans"
    assert identify._han("這裡沒有") == "Hant"
    assert identify._han("人山") == "Hans"  # both sets have these: what is more common
    assert identify._han("😀 abc") == "Hans"


def test_only_the_beginning_of_a_long_text_is_read(identifier: Identifier) -> None:
    german = TEXTS["deu_Latn"] + " "
    assert identifier.guess(german * 30 + TEXTS["rus_Cyrl"] * 1000).code == "deu_Latn"


def test_threads_may_share_it_and_order_is_kept(identifier: Identifier) -> None:
    texts = list(TEXTS.values()) * 20
    one = identifier.guess_all(texts)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(identifier.guess, texts)) == one
    assert [guess.code for guess in one] == list(TEXTS) * 20


def test_every_code_guessed_is_in_the_table(identifier: Identifier) -> None:
    table = {language.code for language in codes.all_languages()}
    assert {identifier.guess(text).code for text in TEXTS.values()} <= table


def test_tables_on_disk_change_no_guess(tmp_path: Path, identifier: Identifier) -> None:
    texts = [*TEXTS.values(), "", "12 + 3"]
    mapped, again = Identifier(tmp_path), Identifier(tmp_path)
    for _ in range(identify.RELEASE // len(texts) + 1):  # past the point where pages are given back
        assert mapped.guess_all(texts) == identifier.guess_all(texts)
    assert again.guess_all(texts) == identifier.guess_all(texts)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("py3langid-")
