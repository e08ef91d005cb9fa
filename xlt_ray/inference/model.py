"""Ask a model from Python: answers as a table, with what was measured in the language of each text beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from xlt_ray.errors import InputError
from xlt_ray.evaluation import groups
from xlt_ray.evaluation.scores import ENDS, Scores
from xlt_ray.inference import tagging
from xlt_ray.inference.bundle import Bundle
from xlt_ray.languages import codes
from xlt_ray.languages.identify import Identifier

TYPES = {"text": "str", "label": "str", "language": "str", "trained_on": "boolean"}  # also where there is no row
OF_WORDS = {
    "text": "int64", "word": "str", "start": "int64", "end": "int64", "tag": "str", "score": "float64",
    "span": "Int64", "language": "str",
}  # fmt: skip
Languages = str | Iterable[str | None] | None


@dataclass(frozen=True, eq=False)
class Model:
    """A model in memory. `name` is its folder, or models:/NAME/VERSION; `bundle` is what it consists of."""

    name: str
    bundle: Bundle = field(repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `predict_proba`."""
        return self.bundle.labels

    @property
    def scores(self) -> Scores | None:
        """What its run measured on test, language by language; None for a bundle without scores."""
        return self.bundle.scores

    def predict(
        self, texts: Iterable[str], languages: Languages = None, *, pairs: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """Classify texts; return one row a text, with the index of `texts` where that is a Series.

        Columns: `text`; `label`; `score`, its calibrated probability; `language`, a FLORES code, missing where it could
        not be guessed; `trained_on`, whether labels of that language were; and what was measured on test rows of that
        language: `measured_accuracy` with its 95% interval, `measured_accuracy_low` and `measured_accuracy_high`. The
        last four are missing where the language was not measured.

        `languages` is one code for all texts or one a text, of any usual kind, None where it is to be guessed from the
        text. `pairs` are the second texts of a model of pairs. Raises InputError where lengths differ, a text is empty
        or no text, or a language is unknown.
        """
        index = texts.index if isinstance(texts, pd.Series) else None
        texts = _texts(texts, "texts")
        known = self._languages(texts, languages)
        found = self._probabilities(texts, known, pairs)
        measured = self.scores.languages if self.scores else {}
        rows = [measured.get(code or "") for code in known]
        columns: dict[str, Any] = {
            "text": texts,
            "label": [self.labels[i] for i in found.argmax(1)],
            "score": found.max(1),
            "language": known,
            "trained_on": [None if one is None else groups.trained_on(one.role) for one in rows],
        }
        for name in ("accuracy", "accuracy_low", "accuracy_high"):
            columns[f"measured_{name}"] = np.array([getattr(one, name, np.nan) for one in rows], dtype=float)
        return pd.DataFrame(columns, index=index).astype(TYPES)

    def predict_proba(
        self, texts: Iterable[str], languages: Languages = None, *, pairs: Iterable[str] | None = None
    ) -> np.ndarray:
        """Return the calibrated probability of every label: (texts, labels) float32; parameters as for `predict`."""
        texts = _texts(texts, "texts")
        return self._probabilities(texts, self._languages(texts, languages), pairs)

    def tag(
        self,
        texts: Iterable[str],
        languages: Languages = None,
        *,
        words: Iterable[Sequence[str]] | None = None,
    ) -> pd.DataFrame:
        """Tag the words of texts with a model of words; return one row a word.

        Columns: `text`, the place of its text among `texts`; `word`, with the characters from `start` to the one before
        `end`; `tag`; `score`, its calibrated probability; `span`, the number of the span in its text that the word is
        of, missing outside of any; `language` of the text as for `predict`; and the main metric measured in that
        language with its 95% interval, such as `measured_f1`, `measured_f1_low` and `measured_f1_high`.

        `words` are those of each text, which stand in it in their order; without them a text is cut into runs of
        letters and digits and single other characters. Raises InputError as `predict` does, and for words that are not
        in their text.
        """
        texts = _texts(texts, "texts")
        known = self._languages(texts, languages)
        own = None if words is None else [list(each) for each in words]
        if own is not None and len(own) != len(texts):
            raise InputError(f"words: of {len(own)} texts, but there are {len(texts)}; give those of each text")
        found = tagging.tag(self.bundle, texts, own)
        rows = []
        for place, each in enumerate(found):
            spans = {
                n: k
                for k, span in enumerate(tagging.spans(self.bundle.task, each))
                for n in range(span.first, span.last)
            }
            rows += [
                (place, texts[place][word.start : word.end], *word, spans.get(number), known[place])
                for number, word in enumerate(each)
            ]
        columns = ["text", "word", "start", "end", "tag", "score", "span", "language"]
        table = pd.DataFrame(rows, columns=columns).astype(OF_WORDS)
        if self.scores is not None:
            for number, end in enumerate(ENDS):
                values = {code: one.main[number] for code, one in self.scores.languages.items()}
                table[f"measured_{self.scores.main}{end}"] = table["language"].map(values).astype(float)
        return table

    def _probabilities(
        self, texts: Sequence[str], known: Sequence[str | None], pairs: Iterable[str] | None
    ) -> np.ndarray:
        of_pairs = self.bundle.experiment.corpus.text_pair is not None
        if of_pairs != (pairs is not None):
            way_out = "pairs of texts; give the second texts" if of_pairs else "single texts; leave them out"
            raise InputError(f"pairs: {'missing' if of_pairs else 'given'}, and this model classifies {way_out}")
        second = None if pairs is None else _texts(pairs, "pairs")
        if second is not None and len(second) != len(texts):
            raise InputError(f"pairs: {len(second)} of them for {len(texts)} texts; give one a text")
        return self.bundle.probabilities(texts, second, known)

    def _languages(self, texts: Sequence[str], languages: Languages) -> list[str | None]:
        if languages is None or isinstance(languages, str):
            named: list[Any] = [languages] * len(texts)
        else:
            listed = _listed(languages, "languages")
            named = [None if code is None or code is pd.NA or isinstance(code, float) else code for code in listed]
        if len(named) != len(texts):
            raise InputError(f"languages: {len(named)} of them for {len(texts)} texts; give one a text, or one for all")
        return [
            self._identifier.guess(text).code if code is None else self._code(code)
            for text, code in zip(texts, named, strict=True)
        ]

    def _code(self, code: Any) -> str:
        found = codes.read(code) if isinstance(code, str) else None
        if found is None and isinstance(code, str) and self.scores and code in self.scores.languages:
            found = code  # a corpus may have names of its own
        if found is None:
            raise InputError(
                f"languages: {code!r} is no language known here; write a code such as swh_Latn or sw (`xlt languages` "
                "lists them), or None to have it guessed"
            )
        return found

    @cached_property
    def _identifier(self) -> Identifier:
        return Identifier()


def _listed(values: Any, name: str) -> list[Any]:
    if isinstance(values, Mapping | pd.DataFrame | set | frozenset) or not isinstance(values, Iterable):
        raise InputError(f"{name}: a {type(values).__name__}, no list of text; of a table give one column")
    return list(values)


def _texts(texts: Iterable[str], name: str) -> list[str]:
    if isinstance(texts, str):
        raise InputError(f"{name}: one text, {texts[:40]!r}, not several; put it into a list")
    found = _listed(texts, name)
    for position, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"{name}: number {position} is {text!r}, no text; leave it out")
        if not text.strip():
            raise InputError(f"{name}: number {position} is empty; leave it out")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{name}: number {position} has half a character ({text[:40]!r}); mend it") from None
    return [str(text) for text in found]
