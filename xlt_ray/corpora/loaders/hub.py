"""Load a corpus through `datasets`: one of the Hugging Face hub, or a local copy of one.

`corpus.path` is the id on the hub, a directory of `save_to_disk` (one data set, or a directory of them that are named
by language), or a directory of parquet or csv files as `load_dataset` takes it. The language is the value of the column
`corpus.language`, or what stands for {language} in `corpus.subset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
import pyarrow as pa

from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora.arrow import BATCH_ROWS, with_origin
from xlt_ray.corpora.corpus import Corpus, refuse
from xlt_ray.corpora.loaders import conversion, formats
from xlt_ray.corpora.loaders.diagnosis import FileFaults, require_columns
from xlt_ray.errors import InputError
from xlt_ray.languages import codes

PARQUET = "refs/convert/parquet"  # where the hub keeps a converted copy of most data sets, subsets as directories
SAVED = ("dataset_dict.json", "state.json")

Loaded = dict[str | None, datasets.DatasetDict]  # by the language's name; None: it is in a column


def load(config: CorpusConfig) -> Corpus:
    """Fetch the data set, convert it to Arrow in `corpus.cache_dir`, once, and open that memory-mapped.

    A data set pinned to a commit (`corpus.revision`, 40 digits) is not asked for again once it is converted, so that
    workers without a network can open it. Raises InputError that lists what is wrong.
    """
    if config.path is None:
        raise InputError("corpus.path: not set; name a data set of the hub, such as Davlan/sib200, or a directory")
    name = config.path.rstrip("/").rpartition("/")[2]
    if re.fullmatch(r"[0-9a-f]{40}", config.revision or "") and not Path(config.path).expanduser().is_dir():
        return conversion.corpus(config, conversion.key(config, None), name, lambda _: _rows(_fetch(config), config))
    fetched = _fetch(config)
    origin = [[language, {split: parts[split]._fingerprint for split in parts}] for language, parts in fetched.items()]
    return conversion.corpus(config, conversion.key(config, origin), name, lambda _: _rows(fetched, config))


def _fetch(config: CorpusConfig) -> Loaded:
    """Load every language's splits, memory-mapped from the cache of `datasets` or from the directory."""
    templated = "{language}" in (config.subset or "")
    place = Path(config.path or "").expanduser()
    if config.language:
        return {None: _parts(config, place, config.subset)}
    if not templated and not _is_saved(place) and (names := _saved_in(place)):
        return {name: _parts(config, place / name, None) for name in _chosen(names, config)}
    if not templated:
        raise InputError(
            f"corpus.path {config.path}: nothing tells the language of a row; set corpus.language to the column that "
            "holds it, or corpus.subset to the name of a language's subset, such as '{language}'"
        )
    return {name: _parts(config, place, (config.subset or "").replace("{language}", name)) for name in _asked(config)}


def _is_saved(place: Path) -> bool:
    return any((place / file).is_file() for file in SAVED)


def _saved_in(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir() if _is_saved(entry)) if place.is_dir() else []


def _chosen(names: list[str], config: CorpusConfig) -> list[str]:
    claims: dict[str, str] = {}
    chosen = [name for name in names if conversion.wanted(name, config, claims) is not None]
    missing = [code for code in config.languages or () if codes.resolve(code) not in claims]
    if missing:
        raise InputError(
            f"corpus.languages: {', '.join(missing)} not among those of corpus.path {config.path}: {', '.join(names)}; "
            "take one of these, or write OUR_CODE: THEIR_NAME"
        )
    return chosen


def _asked(config: CorpusConfig) -> list[str]:
    """List the languages' names in the subsets: those configured, or all that the data set has."""
    if config.languages is not None:
        given = config.languages.values() if isinstance(config.languages, Mapping) else config.languages
        return _chosen(list(given), config)
    try:
        subsets = _saved_in(Path(config.path or "").expanduser()) or datasets.get_dataset_config_names(
            str(config.path), revision=config.revision
        )
    except Exception as error:
        raise _explained(error, config, config.subset) from error
    pattern = re.escape(config.subset or "").replace(re.escape("{language}"), "(.+)", 1)
    names = [match[1] for subset in subsets if (match := re.fullmatch(pattern, subset))]
    if not names:
        raise InputError(
            f"corpus.subset {config.subset!r}: matches none of the subsets {', '.join(subsets[:10])}; correct it"
        )
    return _chosen(names, config)


def _parts(config: CorpusConfig, place: Path, subset: str | None) -> datasets.DatasetDict:
    """Load one subset and return its splits by our names."""
    if subset and _is_saved(place / subset):
        place = place / subset
    source = str(place) if place.is_dir() else config.path
    try:
        if _is_saved(place):
            loaded = datasets.load_from_disk(source)
        elif config.revision == PARQUET:
            loaded = datasets.load_dataset(source, data_dir=subset, revision=config.revision)
        else:
            loaded = datasets.load_dataset(source, subset, revision=config.revision)
    except Exception as error:
        raise _explained(error, config, subset) from error
    if not isinstance(loaded, datasets.DatasetDict):
        raise InputError(
            f"corpus.path {place}: one table without splits; save a DatasetDict whose splits are called "
            f"{', '.join(config.splits.values())}"
        )
    parts = datasets.DatasetDict({split: loaded[name] for split, name in config.splits.items() if name in loaded})
    _refuse_other_splits(config, place, subset, list(loaded), parts)
    return parts


def _refuse_other_splits(
    config: CorpusConfig, place: Path, subset: str | None, there: list[str], parts: datasets.DatasetDict
) -> None:
    where = f"corpus.path {place}" + (f", subset {subset}" if subset else "")
    if not parts:
        raise InputError(
            f"{where}: the splits are {', '.join(there)} and none of {', '.join(config.splits.values())}; set "
            f"corpus.splits.train, .dev and .test to their names"
        )
    if "dev" not in parts and config.splits["dev"] == "dev" and "validation" in there:
        raise InputError(f"{where}: no split dev, but validation; set corpus.splits.dev=validation")


def _rows(fetched: Loaded, config: CorpusConfig) -> conversion.Rows:
    faults: list[str] = []
    for split in config.splits:
        for language, parts in fetched.items():
            if split in parts:
                shown = ", ".join(filter(None, [config.path, language, config.splits[split]]))
                try:
                    yield from ((split, language, table) for table in _tables(parts[split], shown, config))
                except FileFaults as error:
                    faults += error.faults
    if faults:
        refuse(f"corpus.path {config.path}", faults)


def _tables(part: datasets.Dataset, shown: str, config: CorpusConfig) -> Iterator[pa.Table]:
    require_columns(shown, part.column_names, config)
    feature = part.features[config.label]
    feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)  # of a list's values
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    arrow = part.with_format("arrow")
    # a split without rows is passed on as well, so that `check` can name it
    for start in range(0, max(len(arrow), 1), BATCH_ROWS):
        table = arrow[start : start + BATCH_ROWS]
        yield with_origin(formats.shape(table, shown, config, names), shown, None)


def _explained(error: Exception, config: CorpusConfig, subset: str | None) -> InputError:
    """Turn what `datasets` raises into an error with a remedy."""
    where = f"corpus.path {config.path}" + (f", subset {subset}" if subset else "")
    text = str(error)
    if "scripts are no longer supported" in text:
        remedy = f"set corpus.revision={PARQUET}, the hub's converted copy, or save the data set as parquet"
    elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
        remedy = "check the id and corpus.revision; for a gated or private one, run `hf auth login`"
    elif isinstance(error, ConnectionError) or "offline" in text.lower():
        remedy = (
            "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE where there is a network; where there is none, save the data "
            "set elsewhere with save_to_disk, copy the directory here and name it in corpus.path"
        )
    elif "BuilderConfig" in text:
        remedy = "correct corpus.subset, or choose languages that it has in corpus.languages"
    else:
        remedy = "check corpus.path, corpus.subset and corpus.revision"
    return InputError(f"{where}: {type(error).__name__}: {text}; {remedy}")
