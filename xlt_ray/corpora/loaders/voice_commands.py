"""Make the embedded corpus: what people say to a voice assistant at home, labelled by intent, in about 48 languages.

The sentence templates come from the PyPI package home-assistant-intents (Apache-2.0), where the Home Assistant
community writes them for a voice assistant in daily use; hassil parses them. A template such as `turn on [the] {name}`
is expanded here into a few sentences, with words of its own language in the slots (the package's lists, or
`voice_commands.tsv`), drawn by a generator seeded with the template's address, so that everybody gets the same
rows. The label is the intent; where Home Assistant files unlike actions under one intent (open the blinds, lock the
door and start a scene are all HassTurnOn), the kind of device decides (`ACTIONS`).

What is kept is decided by rule: labels that at least 60 % of the package's languages have templates for, then languages
with at least 15 of these labels and 50 test sentences. Languages are not evened out: German has 14 times the training
rows of Persian.

No template is in two splits. Test takes up to a third of a label's templates, the only one where there is but one, and
at most five sentences; train and dev hold no text that stands in a test split of any language.

What it is not: a record of how people talk. Sentences are stilted in places (fillers are seldom inflected, optional
words combine freely), labels differ in size, languages differ in which labels they have, and rows are not translations
of each other. European languages dominate; of African ones there is only Afrikaans. Serbian is here in both scripts,
with the same templates: whoever trains on one has all but seen the other. Portuguese joins two varieties. For how good
an encoder is, SIB-200 is the better measure; this corpus is for learning what the numbers mean, offline and at once.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.corpus import SPLITS, Corpus
from xlt_ray.corpora.loaders import conversion
from xlt_ray.errors import InputError
from xlt_ray.languages import codes, words

if TYPE_CHECKING:
    from hassil.expression import Expression

COLUMNS = ("text", "label", "id")
SLOT = re.compile(r"\{(\w+)=([^{}]*)\}")  # the name of a slot, and what was drawn for it
PINS = ("home-assistant-intents==2026.10.27", "hassil==3.12.1")
VERSION = 1  # of the rows this module makes of the packages; part of the cache key
LABEL_SHARE = 0.6  # of the package's languages that must have a label
MIN_LABELS = 15  # of these that a language must have
MIN_TEST = 50  # sentences, or an interval would say nothing
EXPANSIONS = 3  # sentences drawn of a template at most; train takes the first two
TRAIN_EXPANSIONS = 2
MOST_TEMPLATES = 40  # of a label in train, so that the many ways to set a timer do not drown the rest
LEAVE_OUT = 0.6  # how often an optional part is left out; more often in, and articles that do not agree pile up
PER_LABEL = {"dev": 4, "test": 5}

# the package's codes name a country; what is written under these two is another language than the code's own
DIALECTS = {"de-CH": "gsw_Latn", "zh-HK": "yue_Hant"}

ACTIONS = {
    ("HassTurnOn", "cover"): "open",
    ("HassTurnOn", "valve"): "open",
    ("HassTurnOn", "lock"): "lock",
    ("HassTurnOn", "scene"): "activate_scene",
    ("HassTurnOn", "script"): "activate_scene",
    ("HassTurnOn", "button"): "press_button",
    ("HassTurnOff", "cover"): "close",
    ("HassTurnOff", "valve"): "close",
    ("HassTurnOff", "lock"): "unlock",
    ("HassGetState", "person"): "locate_person",
}

# kinds of device whose names are taken from the column of another kind
NAMED_LIKE = {"switch": "light", "sensor": "climate", "binary_sensor": "lock", "script": "scene"}

PERCENT = tuple(range(10, 101, 10))
NUMBERS = {
    "timer_hours": (1, 2, 3, 4, 5),
    "timer_minutes": (2, 3, 5, 10, 15, 20, 25, 30, 45),
    "timer_seconds": (10, 15, 20, 30, 45),
    "temperature": (18, 19, 20, 21, 22, 23),
    "color_temperature": (2700, 3000, 4000, 5000, 6500),
    "brightness": PERCENT,
    "fan_speed": PERCENT,
    "position": PERCENT,
    "volume": PERCENT,
}


class Group(NamedTuple):
    """Templates of one label about the same kinds of device."""

    label: str
    kinds: tuple[str, ...]
    templates: list[tuple[str, str]]  # (intent/number, template)


class Row(NamedTuple):
    """One sentence, and which draw from which template it is."""

    id: str
    text: str
    label: str
    template: str
    expansion: int
    slots: tuple[tuple[int, int, str], ...]  # start, end and name


def load(config: CorpusConfig) -> Corpus:
    """Open the corpus, restricted to `corpus.languages`; the first time its files are made in `corpus.cache_dir`.

    Raises InputError when the packages are missing, the cache cannot be written, or a language is not there.
    """
    # the files are those of all languages, whichever are asked for
    whole = CorpusConfig(cache_dir=config.cache_dir, drop_labels=config.drop_labels)
    if config.tagged:
        whole = whole.model_copy(update={"label": config.label})
    named = conversion.key(whole, ["voice_commands", VERSION, *_versions()])
    corpus = conversion.corpus(whole, named, "voice_commands", lambda _: _rows(whole.tagged))
    corpus = replace(corpus, labels=(*corpus.labels, *corpus.unknown_labels), unknown_labels=())
    splits = corpus.splits
    if config.languages is not None:
        wanted = [codes.resolve(code) for code in config.languages]
        splits = {split: {code: corpus.table(split, code) for code in wanted} for split in SPLITS}
    return replace(corpus, splits=splits, licence="Apache-2.0", labels_stated=True)


def _versions() -> list[str]:
    try:
        return [importlib.metadata.version(pin.split("==")[0]) for pin in PINS]
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"corpus.loader: voice_commands needs the package {error.name}; pip install {' '.join(PINS)}"
        ) from None


def _rows(tagged: bool) -> Iterator[tuple[str, str, pa.Table]]:
    splits = build()
    for split in SPLITS:
        for language, held in splits.items():
            columns = {name: pa.array([getattr(row, name) for row in held[split]], pa.string()) for name in COLUMNS}
            if tagged:
                found = [tags(row.text, row.slots) for row in held[split]]
                lists = ([listed for listed, _ in found], [listed for _, listed in found])
                columns |= {
                    k: pa.array(v, pa.list_(pa.string())) for k, v in zip(("words", "label"), lists, strict=True)
                }
            yield split, language, pa.table(columns)


def tags(text: str, slots: Iterable[tuple[int, int, str]]) -> tuple[list[str], list[str]]:
    """Return the words of a text, and for each B-NAME or I-NAME where it has a part of that slot's span, or O.

    Words are cut without a look at the slots, as they are where nothing is known of them, so that a word may be more
    than its slot: an ending in Finnish, a prefix in Hebrew.

    >>> tags("Licht im Bad an", [(9, 12, "area")])
    (['Licht', 'im', 'Bad', 'an'], ['O', 'O', 'B-area', 'O'])
    """
    spans = words.split(text)
    found = ["O"] * len(spans)
    for start, end, name in slots:
        inside = [at for at, (low, high) in enumerate(spans) if low < end and start < high and found[at] == "O"]
        for at in inside:
            found[at] = f"{'B' if at == inside[0] else 'I'}-{name}"
    return [text[low:high] for low, high in spans], found


def build() -> dict[str, dict[str, list[Row]]]:
    """Generate the rows, language -> split -> rows, from the installed packages; takes seconds."""
    from home_assistant_intents import LANGUAGES, get_intents

    data = {code: found for code in LANGUAGES if (found := get_intents(code))}
    groups = {code: list(_groups(data[code]["intents"])) for code in data}
    having = Counter(label for found in groups.values() for label in {group.label for group in found})
    labels = {label for label, count in having.items() if count >= LABEL_SHARE * len(data)}
    rows: dict[str, list[Row]] = defaultdict(list)
    for code in groups:
        kept = [group for group in groups[code] if group.label in labels]
        if len({group.label for group in kept}) >= MIN_LABELS and code in _words():
            rows[DIALECTS.get(code) or codes.resolve(code)] += _expand(code, data[code], kept)
    every = {language: _split(language, _unambiguous(rows[language])) for language in sorted(rows)}
    splits = {language: held for language, held in every.items() if len(held["test"]) >= MIN_TEST}
    held_out = {row.text.casefold() for held in splits.values() for row in held["test"]}
    for held in splits.values():
        held["dev"] = [row for row in held["dev"] if row.text.casefold() not in held_out]
        reserved = held_out | {row.text.casefold() for row in held["dev"]}
        held["train"] = [row for row in held["train"] if row.text.casefold() not in reserved]
    return splits


def _groups(intents: Mapping[str, Any]) -> Iterator[Group]:
    for intent, block in intents.items():
        templates = itertools.count()
        for group in block["data"]:
            kinds = {**group.get("slots", {}), **group.get("requires_context", {})}.get("domain", [])
            kinds = [kinds] if isinstance(kinds, str) else list(kinds)
            label = ACTIONS.get((intent, kinds[0])) if kinds else None
            # TimerStatus -> timer_status
            label = label or re.sub(r"(?<!^)(?=[A-Z])", "_", intent.removeprefix("Hass")).lower()
            numbered = [(f"{intent}/{next(templates)}", sentence) for sentence in group["sentences"]]
            yield Group(label, tuple(kinds), numbered)


def _expand(code: str, data: Mapping[str, Any], groups: Iterable[Group]) -> Iterator[Row]:
    from hassil.parse_expression import parse_sentence

    parse = functools.cache(lambda sentence: parse_sentence(sentence).expression)
    filling = _slots(code, data["lists"], parse)
    choices = {f"{{{slot}}}": texts for slot, texts in filling.items()}
    choices |= {f"<{rule}>": [parse(body)] for rule, body in data["expansion_rules"].items()}
    for group in groups:
        choices["{name}"] = [name for kind in group.kinds for name in filling.get(NAMED_LIKE.get(kind, kind), ())]
        for number, template in group.templates:
            rng = np.random.default_rng(zlib.crc32(f"{code}/{number}/{template}".encode()))
            drawn = (_draw(parse(template), choices, rng) for _ in range(2 * EXPANSIONS))
            for expansion, (text, slots) in enumerate(_distinct(drawn).items()):
                yield Row(f"{code}/{number}/{expansion}", text, group.label, template, expansion, slots)


def _distinct(drawn: Iterable[str | None]) -> dict[str, tuple[tuple[int, int, str], ...]]:
    texts: dict[str, tuple[tuple[int, int, str], ...]] = {}
    for marked in drawn:
        if len(texts) == EXPANSIONS:
            break
        text, slots = _unmarked(marked or "")
        # a template may leave all but a number out
        if any(character.isalpha() for character in text):
            texts.setdefault(text, slots)
    return texts


def _unmarked(drawn: str) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """Return what `_draw` drew with single spaces, and (start, end, name) of its slots.

    >>> _unmarked(" dim {area= living  room}  now")
    ('dim living room now', ((4, 15, 'area'),))
    """
    plain, *rest = SLOT.split(drawn)
    found = []
    for name, value, after in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        found.append((len(" ".join(plain.split())), " ".join(value.split()), name))
        plain += value + after
    text = " ".join(plain.split())
    # a space may stand between what is before and the value
    starts = [(text.index(value, end), value, name) for end, value, name in found if value]
    return text, tuple((start, start + len(value), name) for start, value, name in starts)


def _slots(code: str, lists: Mapping[str, Any], parse: Callable[[str], Expression]) -> dict[str, Sequence[Any]]:
    slots: dict[str, Sequence[Any]] = {}
    for name, entry in lists.items():
        if "values" in entry:
            slots[name] = [parse(value["in"]) for value in entry["values"]]
        elif "range" in entry:
            bounds = entry["range"]
            whole = range(bounds["from"], bounds["to"] + 1, bounds.get("step", 1))
            slots[name] = NUMBERS.get(name) or [number for number in whole if number % 5 == 0 < number] or whole
    own = _words()[code]
    covers = slots.get("cover_classes") or own["lock"]
    return {**slots, **own, "shopping_list_item": own["todo_list_item"], "cover": covers}


def _draw(part: Any, choices: Mapping[str, Sequence[Any]], rng: np.random.Generator) -> str | None:
    """Draw one text that a parsed template allows, with its slots marked as SLOT has them.

    None where every way needs a slot that has no words here.
    """
    match type(part).__name__:
        case "TextChunk":
            return str(part.original_text)
        case "RuleReference" | "ListReference" as kind:
            name = f"<{part.rule_name}>" if kind == "RuleReference" else f"{{{part.list_name}}}"
            parts = choices.get(name)
            filled = _draw(parts[int(rng.integers(len(parts)))], choices, rng) if parts else None
            if filled is None or kind == "RuleReference":
                return filled
            inside = SLOT.sub(r"\2", filled)
            return f"{{{part.slot_name}={inside}}}"
        case "Alternative":
            if part.is_optional and rng.random() < LEAVE_OUT:
                return ""
            # an exponential race: templates name the usual wording first, and each next one is half as likely
            order = np.argsort(rng.exponential(size=len(part.items)) * 2.0 ** np.arange(len(part.items)))
            drawn = (_draw(part.items[i], choices, rng) for i in order)
            return next((text for text in drawn if text is not None), None)
        case "Sequence" | "Permutation" as kind:
            order = rng.permutation(len(part.items)) if kind == "Permutation" else np.arange(len(part.items))
            texts = [_draw(part.items[i], choices, rng) for i in order]
            return None if None in texts else "".join(text for text in texts if text)
    return str(part)  # a word or a number of ours


def _unambiguous(rows: Iterable[Row]) -> list[Row]:
    """Keep the first row of every text, and none of a text that stands under two labels."""
    labels: dict[str, set[str]] = defaultdict(set)
    first: dict[str, Row] = {}
    for row in rows:
        labels[row.text.casefold()].add(row.label)
        first.setdefault(row.text.casefold(), row)
    return [row for text, row in first.items() if len(labels[text]) == 1]


def _split(language: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Assign every template, and with it its rows, to one split, label by label."""
    by_label: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_label[row.label][row.template].append(row)
    split_of: dict[str, str] = {}
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    # small labels choose first, since a template may serve two
    for label, templates in sorted(by_label.items(), key=lambda item: (len(item[1]), item[0])):
        rng = np.random.default_rng(zlib.crc32(f"{language}/{label}".encode()))
        order = [list(templates)[i] for i in rng.permutation(len(templates))]
        quota = {"test": min(max(len(order) // 3, 1), PER_LABEL["test"]), "dev": min(len(order) // 5, PER_LABEL["dev"])}
        for split, wanted in quota.items():
            have = sum(split_of.get(template) == split for template in order)
            free = [template for template in order if template not in split_of]
            split_of |= dict.fromkeys(free[: max(wanted - have, 0)], split)
        split_of |= dict.fromkeys((t for t in order if t not in split_of), "train")
        for split in SPLITS:
            splits[split] += _choose([templates[t] for t in order if split_of[t] == split], PER_LABEL.get(split))
    return {split: sorted(chosen) for split, chosen in splits.items()}


def _choose(templates: Sequence[Sequence[Row]], most: int | None) -> list[Row]:
    """Take a row of every template in turn, then a second of each, so that few rows show many templates."""
    if most is None:
        return [row for rows in templates[:MOST_TEMPLATES] for row in rows if row.expansion < TRAIN_EXPANSIONS]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*templates))
    return list(itertools.islice((row for row in turns if row is not None), most))


@functools.cache
def _words() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Read the words that fill open slots: the package's language code -> column -> words."""
    text = resources.files("xlt_ray.corpora.loaders").joinpath("voice_commands.tsv").read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in text.splitlines())
    return {row[0]: {name: tuple(cell.split(", ")) for name, cell in zip(header, row, strict=True)} for row in rows}
