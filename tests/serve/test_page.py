"""The page in a real Chromium: what it says, by which keys, to whom, and what it says when the server refuses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import chromium
import httpx
import local_server
import pytest
from artefacts import changed, word_by_word
from chromium import Page
from test_served_words import opened, saved

from serve.replica.model import Model
from serve.replica.service import Service
from xlt_ray.export import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.binary() is None, reason="no Chromium here; install it, or name one by CHROMIUM"),
]
READY = "document.querySelectorAll('tbody tr').length"
GERMAN = "Mach bitte das Licht in der Küche an, damit ich sehen kann, was ich koche."
ARABIC = "أغلق ستائر غرفة النوم من فضلك قبل أن يحل المساء"
HEBREW = "תדליק בבקשה את האור בסלון כי כבר חושך בחוץ"
PERSIAN = "لطفا چراغ آشپزخانه را روشن کن تا بتوانم غذا بپزم"


@dataclass
class Server:
    service: Service
    address: str


@pytest.fixture(scope="module")
def model(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return local_server.loaded(local_server.artefact_of(tiny_encoder, tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with chromium.browser() as page:
        yield page


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    made = local_server.service(model, limits={"texts": 4, "characters": 3000})
    with local_server.running(made) as address:
        yield Server(made, address + "/")


@pytest.fixture
def page(tab: Page, server: Server) -> Iterator[Page]:
    tab.size(1100, 900)
    tab.scheme("light")
    tab.faults.clear()
    tab.asked.clear()
    tab.open(server.address, READY)
    yield tab
    assert not tab.faults
    assert all(asked.startswith((server.address, "data:")) for asked in tab.asked), "fetches from somewhere else"


def ask(page: Page, text: str, answers: int = 1, apart: bool = False) -> str:
    """Type a text as a person would, send it by Ctrl+Enter and return the text of the answers."""
    page.js("document.getElementById('results').replaceChildren()")
    page.js(f"document.getElementById('lines').checked = {str(apart).lower()}")
    page.js("document.getElementById('text').value = ''; document.getElementById('text').focus()")
    page.write(text)
    page.press("Enter", modifiers=2)
    page.wait(f"document.querySelectorAll('.answer').length === {answers}")
    return str(page.js("document.getElementById('answered').innerText"))


def refusal(page: Page) -> str:
    return str(page.wait("document.getElementById('problem').textContent"))


# what it says


def test_an_answer_tells_label_probabilities_language_and_how_far_to_trust_it(page: Page) -> None:
    said = ask(page, GERMAN)
    assert GERMAN in said
    assert "Answered by models:/tiny/1, float32." in said
    assert "Taken for German" in said
    assert "In this language the model was right in 80.0% of 60 test texts (95% interval " in said
    assert re.search(r"\. Of \d\d test texts answered about as confidently \(\d+% to \d+%\), \d+ were right\.", said)
    best = page.js("document.querySelector('.label').innerText")
    assert best in local_server.LABELS
    assert page.js("document.querySelector('.scores .name').innerText") == best
    shares = page.js("[...document.querySelectorAll('.number')].map((one) => parseFloat(one.innerText))")
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_what_was_not_measured_is_said_plainly(page: Page) -> None:
    assert "Not measured in this language" in ask(page, PERSIAN)
    said = ask(page, "12 + 3")
    assert "Its language cannot be told" in said
    assert "In languages it was not trained on, of " in said
    page.js("document.getElementById('language').value = 'swh_Latn'")
    assert "Taken for Swahili. In this language the model was right in 40.0%" in ask(page, "12 + 3")
    page.js("document.getElementById('language').value = ''")


def test_an_answer_that_abstains_shows_no_label(page: Page, server: Server) -> None:
    args, engine = server.service.args, server.service.ready().engine
    texts = [f"eng{i} deu{i}" for i in range(40)]
    sure = engine.probabilities(engine.encode(texts)).max(axis=1)
    assert sure.min() < 0.99
    server.service.args = args.model_copy(update={"min_confidence": 1.0})
    try:
        ask(page, texts[sure.argmin()])
        assert page.js("document.querySelector('.label').innerText") == "No label: not sure enough"
        assert "No label, not sure enough, " in page.js("document.getElementById('said').textContent")
        assert page.js("document.querySelectorAll('.scores li').length") == 3
    finally:
        server.service.args = args


def test_the_table_can_be_searched_and_sorted(page: Page) -> None:
    names = "[...document.querySelectorAll('tbody th')].map((one) => one.innerText)"
    by_accuracy = page.js(names)
    assert by_accuracy[:2] == ["English", "German"]
    assert page.js("document.querySelector('tbody tr').innerText.split('\\t')")[1] == "90.0%"
    page.js("document.querySelector('[data-key=name]').focus()")
    page.press("Enter")
    assert page.js(names) == sorted(by_accuracy)
    assert page.js("document.querySelector('[aria-sort=ascending]').innerText") == "Language"
    page.js("document.getElementById('find').focus()")
    page.write("hebr")
    assert page.js(names) == ["Hebrew"]
    assert page.js("document.getElementById('count').innerText") == "1 of 6 languages"


def test_the_model_and_where_it_comes_from_are_shown(page: Page) -> None:
    assert page.js("document.getElementById('model').innerText") == "Model: models:/tiny/1, float32."
    assert "eng_Latn, deu_Latn" in page.js("document.getElementById('provenance').innerText")


# odd texts


@pytest.mark.parametrize(("text", "language"), [(ARABIC, "ar-Arab"), (HEBREW, "he-Hebr"), (PERSIAN, "fa-Arab")])
def test_scripts_from_right_to_left_are_shown_so(page: Page, text: str, language: str) -> None:
    ask(page, f"{text} (Wohnzimmer)!")
    quote = "document.querySelector('blockquote')"
    assert page.js(f"getComputedStyle({quote}).direction") == "rtl"
    assert page.js(f"{quote}.lang").split("-")[0] in (language.split("-")[0], "prs", "fas")
    # the last character is the leftmost
    last = f"const r = document.createRange(); r.setStart({quote}.firstChild, {quote}.firstChild.length - 1);"
    left = page.js(f"(() => {{ {last} r.setEnd({quote}.firstChild, {quote}.firstChild.length);"
                   f"return r.getBoundingClientRect().left; }})()")  # fmt: skip
    first = page.js(f"(() => {{ const r = document.createRange(); r.setStart({quote}.firstChild, 0);"
                    f"r.setEnd({quote}.firstChild, 1); return r.getBoundingClientRect().left; }})()")  # fmt: skip
    assert left < first
    assert page.js("getComputedStyle(document.querySelector('.label')).direction") == "ltr"


def test_lines_of_several_directions_each_begin_on_their_own_side(page: Page) -> None:
    ask(page, f"{GERMAN}\n{HEBREW}")
    sides = page.js("""(() => {
      const text = document.querySelector('blockquote').firstChild, second = text.data.indexOf('\\n') + 1;
      const box = text.parentNode.getBoundingClientRect();
      return [0, second].map((at) => { const r = document.createRange(); r.setStart(text, at); r.setEnd(text, at + 1);
        return r.getBoundingClientRect().left - box.left < box.width / 2; }); })()""")
    assert sides == [True, False]


def test_markup_is_text(page: Page) -> None:
    odd = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\"> &amp; 😀 \u202e abc"
    assert odd in ask(page, odd)
    assert page.js("document.title") != "x"
    assert page.js("document.querySelectorAll('#results :is(script, img)').length") == 0


def test_half_a_surrogate_pair_is_mended_and_not_refused(page: Page) -> None:
    page.js("document.getElementById('text').value = 'abc \\ud83d def'; document.getElementById('text').focus()")
    page.press("Enter", modifiers=2)
    page.wait("document.querySelectorAll('.answer').length === 1")
    assert page.js("document.querySelector('blockquote').innerText") == "abc \ufffd def"


def test_many_lines_are_asked_in_parts_that_the_server_takes(page: Page, server: Server) -> None:
    lines = [f"eng{i} eng{i + 1}" for i in range(11)]
    ask(page, "\n".join(lines) + "\n\n", answers=11, apart=True)
    assert page.js("[...document.querySelectorAll('blockquote')].map((one) => one.innerText)") == lines
    assert sum(asked == server.address + "v1/classify" for asked in page.asked) == 3
    assert "11 answers. The first: " in page.js("document.getElementById('said').textContent")


def test_a_long_text_scrolls_in_its_box_and_keys_reach_it(page: Page) -> None:
    ask(page, "eng1 wort " * 290)
    assert page.js("document.querySelector('blockquote').clientHeight") < 250
    assert page.js("document.querySelector('blockquote').tabIndex") == 0
    assert page.js("document.documentElement.scrollWidth <= innerWidth")


# refusals


@pytest.mark.parametrize(
    ("text", "apart", "sentence"),
    [
        (" \n ", False, "There is nothing to classify yet. Type or paste a text first."),
        ("a\n" * 501, True, "These are 501 lines, and this page shows 500 at most. Use the API for more."),
        ("😀" * 3001, False, "This text has 3,001 characters, and this server reads 3,000 characters at most."),
    ],
)
def test_what_cannot_be_asked_is_said_before_asking(page: Page, text: str, apart: bool, sentence: str) -> None:
    page.js(f"document.getElementById('lines').checked = {str(apart).lower()}")
    page.js("document.getElementById('text').focus()")
    page.write(text)
    page.press("Enter", modifiers=2)
    assert refusal(page) == sentence
    assert page.js("document.activeElement.id") == "text"


def test_a_busy_server_is_said_to_be_busy_and_asked_again(tab: Page, page: Page, server: Server) -> None:
    queue = server.service.queue
    queue.waiting, queue.speed = 3000, 100.0
    try:
        page.js("document.getElementById('text').focus()")
        page.write(GERMAN)
        page.press("Enter", modifiers=2)
        assert refusal(page) == (
            "The server is busy: too much is waiting to answer this in time. Try again in 30 seconds."
        )
    finally:
        queue.waiting = 0
    page.press("Enter", modifiers=2)
    page.wait("document.querySelectorAll('.answer').length === 1")
    assert page.js("document.getElementById('problem').textContent") == ""
    tab.faults.clear()  # the console notes the 503


def test_a_server_with_keys_is_given_one(tab: Page, model: Model) -> None:
    key = {"name": "ada", "sha256": hashlib.sha256(b"right").hexdigest(), "texts_per_minute": 1}
    with local_server.running(local_server.service(model, api_keys=[key])) as address:
        wants = "This server asks for a key. Enter it as “API key” and try again."
        tab.open(address + "/", "document.getElementById('keybox').open")
        assert tab.js("document.getElementById('model').innerText") == wants
        tab.js("document.getElementById('text').focus()")
        tab.write(GERMAN)
        for typed, found in (("", wants), ("wrong", wants), ("right", "")):
            tab.js("document.getElementById('key').value = ''; document.getElementById('key').focus()")
            tab.write(typed)
            tab.js("document.getElementById('problem').textContent = ''")
            tab.press("Enter")
            if found:
                assert refusal(tab) == found
        tab.wait("document.querySelectorAll('.answer').length === 1")
        tab.wait(READY)
        tab.press("Enter")
        assert refusal(tab) == "That is more than this key may classify in a minute. Try again in 60 seconds."
    assert tab.js("document.activeElement.id") == "text"
    tab.press("Enter", modifiers=2)
    tab.wait("document.getElementById('problem').textContent.startsWith('The server does not answer')")


def test_pairs_are_asked_as_pairs_and_a_log_is_owned_up_to(tab: Page, tiny_encoder: Path, tmp_path: Path) -> None:
    model = local_server.loaded(local_server.artefact_of(tiny_encoder, tmp_path, pairs=True))
    with local_server.running(local_server.service(model, log_texts=True)) as address:
        tab.open(address + "/", READY)
        assert "is sent to this server only and written to its log." in tab.js("document.body.innerText")
        tab.js("document.getElementById('text').focus()")
        tab.write("eng1 eng2")
        tab.press("Tab")
        assert tab.js("document.activeElement.id") == "pair"
        tab.write("eng3")
        tab.press("Enter", modifiers=2)
        tab.wait("document.querySelectorAll('.answer').length === 1")
        assert tab.js("[...document.querySelectorAll('blockquote')].map((one) => one.innerText)") == [
            "eng1 eng2",
            "eng3",
        ]


# readings


def test_how_a_text_was_read_is_said_and_its_readings_open_by_a_key(
    tab: Page, tiny_encoder: Path, tmp_path: Path
) -> None:
    known = ("eng_Latn", "swh_Latn")
    changed(tmp_path / "bundle", tiny_encoder, ["translate_test"], known, word_by_word())
    folder = export.export(tmp_path / "bundle", tmp_path / "artefact", precisions=["float32"]).folder
    service = local_server.service(local_server.loaded(folder))
    service._identifier = None  # whatever is guessed of made-up words
    tab.faults.clear()
    with local_server.running(service) as address:
        tab.open(address + "/", "told")
        ask(tab, "eng1 eng2")
        assert "Read as it stands." in tab.js("document.querySelector('.answer').innerText")
        assert not tab.js("document.querySelector('.answer details')")
        # no language was measured here, so that none can be chosen
        tab.js("document.getElementById('language').append(new Option('Swahili', 'swh_Latn', true, true))")
        markup = "swh2 <img src=x onerror=\"document.title='x'\"> swh3"
        said = ask(tab, markup)
        assert "Read as original + 2 word-by-word English readings" in said and "eng14" not in said
        assert tab.js("document.querySelectorAll('.answer details').length") == 1
        tab.js("document.querySelector('.answer summary').focus()")
        tab.press("Enter")
        tab.wait("document.querySelector('.answer details').open")
        quotes = tab.js("[...document.querySelectorAll('.answer details blockquote')].map((one) => one.innerText)")
        assert quotes == [
            markup,
            markup.replace("swh2", "eng14"),
            markup.replace("swh2", "eng14").replace("swh3", "eng21"),
        ]
        names = tab.js("[...document.querySelectorAll('.answer details p')].map((one) => one.innerText)")
        assert names == [
            f"{name}, weight 33%" for name in ("original", *(f"word by word, score {s}" for s in (0.3, 0.05)))
        ]
        assert tab.js("document.querySelectorAll('#results :is(script, img)').length") == 0
        assert tab.js(CONTRASTS) == [] and tab.js("document.title") != "x" and not tab.faults


# for everybody


def test_the_keyboard_alone_reaches_everything_and_leaves_it_again(page: Page) -> None:
    ask(page, GERMAN)
    page.js("document.querySelector('.skip').focus()")
    found: list[str] = []
    while not found or found[-1] not in ("end", *found[:-1]):
        found.append(page.js(
            "(() => { const a = document.activeElement; if (a === document.body) return 'end';"
            "const s = getComputedStyle(a); const seen = parseFloat(s.outlineWidth) >= 2 && s.outlineStyle !== 'none';"
            "return (a.id || a.dataset.key || a.className || a.innerText) + (seen ? '' : ' without focus ring'); })()"
        ))  # fmt: skip
        page.press("Tab")
    expected = [
        "skip",
        "text",
        "lines",
        "language",
        "This server may ask for a key",
        "Classify",
        "find",
        "wide",
        "name",
    ]
    assert found[:-1] == [*expected, "accuracy", "rows", "The API"]
    page.js("document.querySelector('.skip').focus()")
    page.press("Enter")
    assert page.js("document.activeElement.id") == "text"


def test_the_button_keeps_the_focus(page: Page) -> None:
    page.js("document.getElementById('text').value = 'eng1'; document.querySelector('[type=submit]').focus()")
    page.press("Space")
    page.wait("document.querySelectorAll('.answer').length === 1")
    assert page.js("document.activeElement.type") == "submit"


def test_a_screen_reader_is_told_what_everything_is(page: Page) -> None:
    ask(page, GERMAN)
    tree = page.tree()
    named = {(node["role"], node["name"]) for node in tree}
    for role, name in (
        ("textbox", "Text"), ("checkbox", "Each line is a text of its own"), ("combobox", "Language"),
        ("button", "Classify"), ("searchbox", "Find a language"), ("main", ""), ("columnheader", "Right"),
        ("rowheader", "German"), ("heading", "Classify text in any language"), ("list", "Probabilities"),
        ("region", "Answers"), ("region", "How good it is in each language"), ("link", "The API"),
    ):  # fmt: skip
        assert (role, name) in named
    nameless = [node for node in tree if node.get("focusable") and not node["name"] and node["role"] != "RootWebArea"]
    assert not nameless
    levels = [node["level"] for node in tree if node["role"] == "heading"]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), levels
    said = page.js("document.querySelector('#said[role=status]').textContent")
    assert said.endswith(page.js("document.querySelector('.trust').textContent"))
    assert ("alert", "") in named or page.js("document.querySelector('#problem').role") == "alert"


CONTRASTS = """(() => {
  const parse = (c) => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number); return { r, g, b, a }; };
  const light = ({ r, g, b }) => [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.a) return c; } };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(e.outerHTML.slice(0, 80) + ' ' + ((a + 0.05) / (b + 0.05)).toFixed(2));
  }
  return low; })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(page: Page, scheme: str) -> None:
    page.scheme(scheme)
    ask(page, f"{GERMAN}\n12 + 3", answers=2, apart=True)
    page.js("document.getElementById('problem').textContent = 'The server is busy.'")
    assert page.js("matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    assert page.js(CONTRASTS) == []


def test_a_phone_scrolls_one_way_only(page: Page, tmp_path: Path) -> None:
    page.size(360, 740, phone=True)
    ask(page, f"{'Donaudampfschifffahrtsgesellschaft' * 5}\n{ARABIC}", answers=2, apart=True)
    assert page.js("document.documentElement.scrollWidth") == 360
    wide = "[...document.querySelectorAll('.answer, table, textarea, select, .answer *')]"
    assert page.js(f"{wide}.filter((one) => one.getBoundingClientRect().right > 361).map((one) => one.outerHTML)") == []
    small = "[...document.querySelectorAll('button[type=submit], select, #text, #find')]"
    assert page.js(f"Math.min(...{small}.map((one) => one.getBoundingClientRect().height))") >= 34
    assert page.js(f"Math.min(...{small}.map((one) => parseFloat(getComputedStyle(one).fontSize)))") >= 16
    page.picture(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 10_000


def test_the_document_of_the_api_works_without_a_network(page: Page, server: Server) -> None:
    page.open(server.address + "docs", "document.querySelectorAll('.opblock').length > 5")
    assert "/v1/classify" in page.js("document.body.innerText")


# words


def test_spans_of_a_model_of_words_are_marked_in_the_text(tab: Page, tiny_encoder: Path, tmp_path: Path) -> None:
    tagger = opened(saved(tmp_path / "bundle", tiny_encoder))
    text = "😀 eng1 <b>eng2</b> eng3 & eng4, eng7 eng21 eng45"
    with local_server.running(local_server.service(tagger, identify=False)) as address:
        wanted = httpx.post(f"{address}/v1/tag", json={"texts": [text]}, trust_env=False).json()["results"][0]["spans"]
        assert len(wanted) > 2
        tab.faults.clear()
        tab.open(address + "/", READY)
        said = ask(tab, text)
        quote = "document.querySelector('blockquote')"
        marks = tab.js(f"[...{quote}.querySelectorAll('mark')].map((one) => one.textContent)")
        assert marks == [f"{one['text']}\u00a0{one['type']}" for one in wanted]
        tab.js(f"{quote}.querySelectorAll('mark b').forEach((one) => one.remove())")
        assert tab.js(f"{quote}.textContent") == text and tab.js(f"{quote}.querySelectorAll('b').length") == 0
        assert f"{len(wanted)} spans" in said and "Its language cannot be told" in said
        tab.js("document.getElementById('language').value = 'swh_Latn'")
        assert "In this language its F1 of spans was " in ask(tab, "swh1")
        assert tab.js("document.title") == "Tag words in any language"
        assert not tab.faults
