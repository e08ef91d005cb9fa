"""Lexicons: induced from parallel rows, read from tables and FreeDict's two formats, written and read back."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from parallel_texts import parallel
from typer.testing import CliRunner

from xlt_ray import cli
from xlt_ray.errors import InputError
from xlt_ray.languages import lexicon, word_alignment
from xlt_ray.languages.lexicon import Lexicon

PAIR = ("eng_Latn", "deu_Latn")
SIB200 = Path(__file__).parents[3] / "shared/data/sib200"
TEI = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE TEI SYSTEM "freedict-P5.dtd">
<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><title>invented</title></teiHeader><text><body>
<entry><form><orth>Blick</orth><pron>blik</pron></form>
 <sense><cit type="trans"><quote>stova</quote></cit><cit type="translation"><quote>mirra (rare)</quote></cit>
  <cit type="example"><quote>a blick</quote><cit type="trans"><quote>en stova</quote></cit></cit></sense></entry>
<entry><form><orth>drove hill</orth></form><sense><sense><cit type="trans"><quote>&#x6B;olm</quote></cit></sense>
</sense></entry>
<entry><form><orth>old</orth></form><trans><tr>vanna</tr></trans></entry>
</body></text></TEI>
"""
ARTICLES = {
    "00-database-short": "00-database-short\n   Invented\n",
    "blick": 'blick /blik/ <n>\n1. stova <fem>, mirra [rare]\n      "a blick" - en stova\n Synonym: {glance}\n',
    "drove hill": "drove hill\n\nkolm\n see: {hill}\n",
}
EXPECTED = {
    "blick": (("stova", 1.0), ("mirra", 1.0)),
    "drove hill": (("kolm", 1.0),),
}


def table(texts: list[str], ids: list[str] | None = None) -> pa.Table:
    return pa.table({"id": ids or [str(i) for i in range(len(texts))], "text": texts})


def base64(number: int) -> str:
    digits = ""
    while number or not digits:
        digits = lexicon.BASE64[number % 64] + digits
        number //= 64
    return digits


def write_dictd(folder: Path, packed: bool) -> Path:
    data, index = b"", []
    for word, article in ARTICLES.items():
        index.append(f"{word}\t{base64(len(data))}\t{base64(len(article.encode()))}")
        data += article.encode()
    folder.joinpath("x-y.index").write_text("\n".join(index) + "\n", encoding="utf-8")
    folder.joinpath("x-y.dict" + ".dz" * packed).write_bytes(gzip.compress(data) if packed else data)
    return folder / "x-y.index"


def test_induction_recovers_the_dictionary_of_a_noisy_translation() -> None:
    sources, targets, dictionary = parallel(300)
    found = lexicon.induce(sources, targets, PAIR, phrases=False)
    right = sum(dictionary[word] == options[0][0] for word, options in found.entries.items())
    assert right / len(found.entries) > 0.9
    assert right > 0.7 * len(dictionary)
    assert all(0.5 <= score <= 1 for options in found.entries.values() for _, score in options)
    assert lexicon.induce(sources, targets, PAIR, score=0.8, phrases=False).entries.keys() < found.entries.keys()


def test_phrases_are_consistent_alignments_seen_at_least_twice() -> None:
    sources, targets, _ = parallel(200)
    sources = [f"{text} red ice" if i % 9 == 0 else f"{text} blue" for i, text in enumerate(sources)]
    targets = [f"{text} kal rosso" if i % 9 == 0 else f"{text} azul" for i, text in enumerate(targets)]
    sources[1], targets[1] = "only once here", "nur einmal hier"
    found = lexicon.induce(sources, targets, PAIR)
    # order is the target's own
    assert found.entries["red ice"][0][0] == "kal rosso"
    assert "only once" not in found.entries
    assert found.phrases == sum(" " in key for key in found.entries) > 0
    assert max(len(key.split()) for key in found.entries) <= 3


def test_translations_keep_the_capitals_they_have_inside_a_sentence() -> None:
    verbs = {"is": "ist", "was": "war", "has": "hat", "sees": "sieht"}
    nouns = {"sea": "Meer", "land": "Land", "wood": "Holz"}
    pairs = [(verb, noun) for verb in verbs for noun in nouns] * 10
    sources = [f"The {noun} {verb}" for verb, noun in pairs]
    found = lexicon.induce(sources, [f"Das {nouns[noun]} {verbs[verb]}" for verb, noun in pairs], PAIR, phrases=False)
    assert {key: options[0][0] for key, options in found.entries.items()} == {**verbs, **nouns, "the": "Das"}


def test_rows_are_paired_by_id_whatever_their_order() -> None:
    sources, targets, _ = parallel(150)
    whole = lexicon.induce(sources, targets, PAIR)
    ids = [str(i) for i in range(150)]
    turned = table([*targets[::-1], "strange"], [*ids[::-1], "other"])
    assert lexicon.induce_tables(table(sources), turned, PAIR) == whole
    doubled = pa.concat_tables([table(sources), table(["w1 again"], ["3"])])
    assert word_alignment.shared(doubled, turned)[0]["text"].to_pylist() == sources


def test_too_few_shared_ids_are_refused_with_their_number() -> None:
    sources, targets, _ = parallel(120)
    shifted = table(targets, [str(i + 60) for i in range(120)])
    with pytest.raises(InputError, match=r"eng_Latn -> deu_Latn: 60 rows .* fewer than 100 .* corpus.id"):
        lexicon.induce_tables(table(sources), shifted, PAIR)


@pytest.mark.parametrize("pair", [("eng_Latn", "tha_Thai"), ("zho_Hans", "eng_Latn"), ("eng_Latn", "dzo_Tibt")])
def test_languages_without_spaces_are_refused_by_name(pair: tuple[str, str]) -> None:
    named = next(code for code in pair if code != "eng_Latn")
    with pytest.raises(InputError, match=f"{named} is written without spaces .* give a table"):
        lexicon.induce(["a"], ["b"], pair)


def test_the_longest_phrase_is_found_first() -> None:
    entries = {key: ((key.upper(), 1.0),) for key in ("new", "new york", "new york city", "city")}
    found = Lexicon(*PAIR, entries)
    words = ["new", "york", "city", "now"]
    assert found.match(words) == 3
    assert found.match(words[:2]) == 2
    assert found.match(["in", *words]) == 0
    assert found.match(words[2:]) == 1


def test_a_written_lexicon_reads_back_equal(tmp_path: Path) -> None:
    sources, targets, _ = parallel(150)
    made = lexicon.induce(sources, targets, PAIR)
    odd = lexicon.of_pairs([('say "x"', 'sag "x"', 1 / 3), ("straße, lang", "#road", 1.0), ("sea", "海", 0.5)], *PAIR)
    for number, one in enumerate((made, odd, Lexicon(*PAIR, {}))):
        lexicon.write(tmp_path / "made" / f"{number}.tsv", one)
        assert lexicon.read_table(tmp_path / "made" / f"{number}.tsv") == one
    assert len(list((tmp_path / "made").iterdir())) == 3  # nothing passing is left behind


@pytest.mark.parametrize("content", [
    "sea\tMeer\nIce cream\tEis\n",
    "\ufeffsource\ttranslation\nsea\tMeer\nice-cream\tEis\n",
    'word,translation,score\nsea,Meer,\n"Ice cream",Eis,1\n\n',
])  # fmt: skip
def test_tables_of_two_columns_with_or_without_header_and_score(tmp_path: Path, content: str) -> None:
    file = tmp_path / "words.txt"
    file.write_text(content, encoding="utf-8")
    found = lexicon.read(file, *PAIR)
    assert found == Lexicon(*PAIR, {"sea": (("Meer", 1.0),), "ice cream": (("Eis", 1.0),)})


@pytest.mark.parametrize(("content", "place"), [
    (b"sea\tMeer\nlonely\n", "line 2.*separate them by tabs"),
    (b"sea\tMeer\t0.5\nice\tEis\thigh\n", "line 2: score 'high'"),
    (b"sea\tMeer\t7\n", "line 1: score '7'"),
    (b"sea\tMeer\nice\tEis\n\xff\tx\n", "line 3: byte 17 of the file"),
    (b"a,b\n" + b"x" * (csv.field_size_limit() + 1), "line 2: field larger"),
])  # fmt: skip
def test_a_faulty_table_is_named_with_its_line(tmp_path: Path, content: bytes, place: str) -> None:
    file = tmp_path / "words.tsv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"words.tsv, {place}"):
        lexicon.read(file)


def test_freedict_tei_of_both_versions(tmp_path: Path) -> None:
    file = tmp_path / "x-y.tei"
    file.write_text(TEI, encoding="utf-8")
    # a remark in brackets and the translation of an example are no translations
    assert lexicon.read(file, *PAIR).entries == {**EXPECTED, "old": (("vanna", 1.0),)}


@pytest.mark.parametrize("packed", [True, False])
def test_freedict_in_the_form_of_dictd(tmp_path: Path, packed: bool) -> None:
    index = write_dictd(tmp_path, packed)
    assert lexicon.read(index, *PAIR).entries == EXPECTED
    assert lexicon.read(index.with_name("x-y.dict" + ".dz" * packed)).entries == EXPECTED


def test_faulty_dictionaries_are_named_with_their_line(tmp_path: Path) -> None:
    tei = tmp_path / "x.tei"
    tei.write_text(TEI.replace("</cit></cit>", "</cit>"), encoding="utf-8")
    with pytest.raises(InputError, match="x.tei, line .*not well-formed"):
        lexicon.read(tei)
    index = write_dictd(tmp_path, packed=True)
    good = index.read_text()
    for line, what in (("bad\tA", "line 4: 'bad.*not headword"), ("far\t////\tB", "line 4: 'far.*beyond the articles")):
        index.write_text(f"{good}{line}\n")
        with pytest.raises(InputError, match=f"x-y.index, {what}"):
            lexicon.read(index)
    index.with_name("x-y.dict.dz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="x-y.dict.dz: cannot be read"):
        lexicon.read(index)
    with pytest.raises(InputError, match="none.tei: no such file"):
        lexicon.read(tmp_path / "none.tei")


def test_entities_of_a_dictionary_neither_read_files_nor_grow(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    outer = f'<!DOCTYPE TEI [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    grows = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 20}">' for i in range(1, 9))
    for name, head in (("outer", outer), ("grows", f'<!DOCTYPE TEI [<!ENTITY a0 "lol">{grows}<!ENTITY x "&a8;">]>')):
        file = tmp_path / f"{name}.tei"
        body = '<entry><form><orth>w</orth></form><sense><cit type="trans"><quote>&x;</quote></cit></sense></entry>'
        file.write_text(f"{head}<TEI><text><body>{body}</body></text></TEI>", encoding="utf-8")
        with pytest.raises(InputError, match=f"{name}.tei, line 1: not well-formed"):
            lexicon.read(file)


def test_precision_counts_shared_beginnings_over_known_entries() -> None:
    made = lexicon.of_pairs([("sea", "Meeres", 0.5), ("house", "Baum", 1), ("ice", "eis", 1), ("odd", "x", 1)], *PAIR)
    reference = lexicon.of_pairs([("sea", "das Meeresufer", 1), ("house", "Haus", 1), ("ice", "Eis", 1)], *PAIR)
    assert lexicon.precision(made, reference) == (pytest.approx(2 / 3), 3)
    assert np.isnan(lexicon.precision(made, Lexicon(*PAIR, {}))[0])


def test_build_and_inspect_from_the_command_line(tmp_path: Path) -> None:
    sources, targets, dictionary = parallel(150)
    for code, texts in (("eng_Latn", sources), ("swh_Latn", targets), ("tha_Thai", targets)):
        for split, some in (("train", slice(0, 130)), ("dev", slice(130, 140)), ("test", slice(140, 150))):
            lines = [f"{i}\t{text}\t{'ab'[i % 2]}" for i, text in list(enumerate(texts))[some]]
            file = tmp_path / "rows" / code / f"{split}.tsv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(["id\ttext\tlabel", *lines]), encoding="utf-8")
    config = tmp_path / "config.yaml"
    corpus = {"loader": "files", "path": f"{tmp_path}/rows", "id": "id", "cache_dir": f"{tmp_path}/cache"}
    config.write_text(f"corpus: {corpus}\nsources: [eng_Latn]\n")
    run = CliRunner()
    asked = ["lexicon", "build", str(config), "--source", "en", "--out", str(tmp_path / "out")]
    built = run.invoke(cli.app, asked)
    assert built.exit_code == 0, built.output
    assert "tha_Thai: left out" in built.output
    made = lexicon.read(tmp_path / "out/eng_Latn-swh_Latn.tsv")
    assert (made.source, made.target) == ("eng_Latn", "swh_Latn")
    assert f"swh_Latn: {len(made.entries)} entries" in built.output
    refused = run.invoke(cli.app, [*asked, "--target", "tha_Thai"])
    assert refused.exit_code == 2
    assert "tha_Thai is written without spaces" in refused.output
    lexicon.write(tmp_path / "true.tsv", lexicon.of_pairs([(*pair, 1.0) for pair in dictionary.items()], *PAIR))
    shown = run.invoke(
        cli.app,
        ["lexicon", "inspect", str(tmp_path / "out/eng_Latn-swh_Latn.tsv"), "--reference", str(tmp_path / "true.tsv")],
    )
    assert shown.exit_code == 0, shown.output
    assert "score 0." in shown.output
    assert "% of them agree" in shown.output


def test_a_freedict_file_is_turned_into_a_table(tmp_path: Path) -> None:
    index = write_dictd(tmp_path, packed=True)
    out = tmp_path / "words.tsv"
    asked = ["lexicon", "build", "--from", str(index), "--out", str(out), "--source", "en", "--target", "sw"]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert lexicon.read(out) == Lexicon("eng_Latn", "swh_Latn", EXPECTED)
    looked = CliRunner().invoke(cli.app, ["lexicon", "inspect", str(out), "--word", "Drove-hill", "--word", "absent"])
    assert "Drove-hill: kolm (1.00)" in looked.output
    assert "absent: not there" in looked.output


@pytest.mark.skipif(not SIB200.is_dir(), reason="SIB-200 is not on this machine")
def test_sib200_yields_hundreds_of_german_words() -> None:
    def rows(code: str) -> pa.Table:
        lines = (SIB200 / code / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
        cells = [line.split("\t") for line in lines]
        return table([text for _, _, text in cells], [number for number, _, _ in cells])

    found = lexicon.induce_tables(rows("eng_Latn"), rows("deu_Latn"), PAIR)
    assert 150 < len(found.entries) < 400
    assert found.entries["or"][0][0] == "oder"
    assert found.phrases > 20
