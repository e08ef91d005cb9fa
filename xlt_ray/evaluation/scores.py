"""Hold the scores of a run or of a bundle, by language and as their summary, and keep them as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter

from xlt_ray import supervision, tasks
from xlt_ray.errors import InputError
from xlt_ray.evaluation import groups
from xlt_ray.languages import codes

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2  # of scores.json; 1 had no `format`, `task` or `metrics`, and is of classification
TITLES = {"macro_f1": "macro-F1", "f1": "F1"}  # of metrics, whose names else are titles


ENDS = ("", "_low", "_high")  # of the names of a metric and of its interval's ends


class Interval(NamedTuple):
    """A figure from 0 to 1, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LanguageScore:
    """The scores of one language.

    `metrics` are by name, the main one first; each can be read as an attribute too, with `_low` and `_high` for the
    ends of its interval, such as `accuracy` and `accuracy_low`.
    """

    code: str
    role: str  # as `groups` defines it: "source", "few-shot" or "zero-shot"
    support: int
    metrics: Mapping[str, Interval]
    transfer_gap: float | None  # best source's main metric minus this one's; None when no source was measured
    seen: bool | None  # by the encoder in pre-training; None when unknown
    confusion: tuple[tuple[int, ...], ...]  # of answers: rows gold, columns predicted
    # as `calibration` defines them; None where predictions have no confidences
    calibration_error: float | None = None
    calibration_error_low: float | None = None
    calibration_error_high: float | None = None
    reliability: tuple[tuple[int, ...], ...] | None = None
    supervision: str | None = None  # rung of `supervision.LADDER`; None of a source, and in scores of before

    @property
    def main(self) -> Interval:
        """The main metric."""
        return next(iter(self.metrics.values()))

    def __getattr__(self, name: str) -> float:
        if name != "metrics" and not name.startswith("__"):  # copying asks for these before there are any
            for metric, found in self.metrics.items():
                if name.startswith(metric) and (end := name.removeprefix(metric)) in ENDS:
                    return found[ENDS.index(end)]
        raise AttributeError(f"no metric or attribute {name!r}")

    def flat(self) -> dict[str, Any]:
        """Return all fields by name, with every metric and end of its interval as one of them."""
        fields = asdict(self)
        metrics = {
            f"{name}{end}": value for name, one in self.metrics.items() for end, value in zip(ENDS, one, strict=True)
        }
        first = {name: fields.pop(name) for name in ("code", "role", "support")}
        del fields["metrics"]
        return first | metrics | fields

    @classmethod
    def of_flat(cls, fields: Mapping[str, Any], metrics: Sequence[str]) -> LanguageScore:
        """Return what `flat` returned as it was."""
        rest = dict(fields)
        found = {name: Interval(*(rest.pop(f"{name}{end}") for end in ENDS)) for name in metrics}
        return TypeAdapter(cls).validate_python(rest | {"metrics": found})


@dataclass(frozen=True, repr=False)
class Scores:
    """The scores of every language, and their summary, whose keys `score` explains.

    `temperature` is the one by which confidences were computed, 1 where none was fitted.
    """

    labels: tuple[str, ...]
    languages: Mapping[str, LanguageScore]
    summary: Mapping[str, float]
    temperature: float = 1.0
    task: str = tasks.DEFAULT

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics by name, the main one first."""
        return tuple(next(iter(self.languages.values())).metrics)

    @property
    def main(self) -> str:
        """The name of the main metric."""
        return self.metrics[0]

    @property
    def supervision(self) -> str | None:
        """The highest rung of `supervision.LADDER` of the zero-shot languages; None where it is not known of any."""
        return self.rung(groups.of(self.languages).get(groups.ZERO_SHOT, ()))

    def rung(self, codes: Iterable[str]) -> str | None:
        """Return the highest rung of `supervision.LADDER` of these languages, None where it is not known of any."""
        return supervision.highest(self.languages[code].supervision for code in codes)

    def titles(self) -> dict[str, str]:
        """Return the title of every group of languages; where none of its labels was read, it says what else was."""
        members = groups.of(self.languages)
        rungs = {name: self.rung(members.get(name, ())) for name in groups.OF_TARGETS}
        return {name: supervision.titled(one.title, rungs.get(name)) for name, one in groups.GROUPS.items()}

    def worst(self) -> LanguageScore:
        """Return the language with the lowest main metric; of equals the first by code."""
        return min(self.languages.values(), key=lambda language: (language.main.value, language.code))

    def ranked(self) -> list[LanguageScore]:
        """List source languages, then few-shot, then zero-shot ones, each from best to worst."""
        each = self.languages.values()
        return sorted(each, key=lambda one: (groups.ROLES.index(one.role), -one.main.value, one.code))

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a language a row, sources first and then from the best to the worst; index: its code.

        Columns: `name`, `role`, `seen`, `support`, `supervision`, and each of the metrics (of classification
        `accuracy`, `macro_f1`) and `calibration_error` with its `_low` and `_high`, besides `transfer_gap`; fractions,
        NaN where there is none.
        """
        import pandas as pd

        rows = [{"name": codes.name(one.code), **one.flat()} for one in self.ranked()]
        frame = pd.DataFrame(rows).set_index("code").drop(columns=["confusion", "reliability"])
        described = ("name", "role", "seen", "support", "supervision")
        return frame.astype({name: float for name in frame if name not in described})

    def means(self) -> pd.DataFrame:
        """Return a table with a group of languages a row, named as by `compare`: how many, and means with intervals.

        Columns: `languages`, and each of the metrics and `calibration_error` with its `_low` and `_high`, NaN where
        there is none. Languages weigh the same, and intervals take into account that their rows may be shared.
        """
        import pandas as pd

        ends = [(metric, end) for metric in (*self.metrics, "calibration_error") for end in ENDS]
        rows = {
            name: [
                len(members),
                *(self.summary.get(f"{metric}/{groups.GROUPS[name].key}{end}") for metric, end in ends),
            ]
            for name, members in groups.of(self.languages).items()
        }
        columns = ["languages", *(f"{metric}{end}" for metric, end in ends)]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("group")
        return frame.astype(dict.fromkeys(columns[1:], float))

    def __repr__(self) -> str:
        mean = self.summary.get(f"{self.main}/mean", float("nan"))
        return f"Scores({len(self.languages)} languages, mean {metric_title(self.main)} {mean:.3f})"

    def _repr_html_(self) -> str:  # what a notebook shows
        return str(self.to_frame().to_html(float_format=lambda value: f"{value:.3f}"))

    def to_json(self) -> str:
        """Return the scores as JSON, one language a line."""
        rows = (f"  {json.dumps(code)}: {json.dumps(one.flat())}" for code, one in self.languages.items())
        kind = {"format": FORMAT, "task": self.task, "metrics": self.metrics}
        head = f'{json.dumps(kind)[:-1]},\n "labels": {json.dumps(self.labels)},\n'
        head += f' "summary": {json.dumps(dict(self.summary))},\n'
        head += f' "temperature": {json.dumps(self.temperature)},\n'
        return head + ' "languages": {\n' + ",\n".join(rows) + "}}\n"

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """Read what `to_json` wrote, also before there were confidences; the scores are equal to those written.

        Raises InputError for a format that is none of this version's.
        """
        content = json.loads(text)
        if (number := content.pop("format", 1)) not in (1, FORMAT):
            raise InputError(
                f"scores.json: format {number}, this version reads 1 and {FORMAT}; use the version it is of"
            )
        metrics = content.pop("metrics", tasks.build(tasks.DEFAULT).metrics)
        each = {code: LanguageScore.of_flat(one, metrics) for code, one in content["languages"].items()}
        return TypeAdapter(cls).validate_python(content | {"languages": each})


def load_scores(folder: Path) -> Scores:
    """Read the scores of a finished run or of a bundle; raise InputError where none are there or they are damaged."""
    file = folder / "scores.json"
    if not file.is_file():
        raise InputError(f"{folder}: no scores.json; give the folder of a finished run that learned a task")
    try:
        return Scores.from_json(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"{file}: damaged, no scores can be read from it; `xlt evaluate {folder} --out {file}` measures again"
        raise error if isinstance(error, InputError) else InputError(fault) from None


def metric_title(metric: str) -> str:
    """Return what a metric is called."""
    return TITLES.get(metric, metric)
