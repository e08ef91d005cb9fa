"""Define the sections of a configuration as frozen pydantic models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from xlt_ray.config import keys
from xlt_ray.durable import cache_folder
from xlt_ray.languages.codes import resolve

CONLL = ("conll", "conllu")  # formats of a word a line


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def _cache_dir() -> str:
    # below ~ where it is, so that a worker, or whoever loads a bundle on another machine, has it in a home of their own
    folder, home = cache_folder(), Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


class CorpusConfig(Section):
    """Where labelled rows come from."""

    loader: Literal["voice_commands", "files", "hub"] = "voice_commands"
    path: str | None = Field(None, description="files: directory, URL or pattern with {language} and {split}; hub: id")
    revision: str | None = Field(None, description="hub: commit or branch to pin")
    subset: str | None = Field(None, description="hub: configuration name; may hold {language}")
    format: Literal["tsv", "csv", "jsonl", "parquet", "conll", "conllu"] | None = Field(
        None, description="files: guessed from the suffix; conll, conllu: a word and its tag a line"
    )
    quoting: Literal["auto", "quoted", "plain"] = Field(
        "auto",
        description="tsv, csv: double quotes enclose fields, or are characters; auto: a csv's enclose, a tsv's where "
        "what it holds says so",
    )
    text: str = Field("text", description="column of the text; several joined by '+' as in 'headline+text'")
    text_pair: str | None = Field(None, description="column of the second text, for pair tasks")
    words: str | None = Field(
        None, min_length=1, description="column of a list of words, where `label` has as many tags: jsonl, parquet, hub"
    )
    label: str = Field(
        "label",
        description="column; conll: its number, such as '4', else the last; conllu: UPOS, or another; "
        "voice_commands: 'slots' tags what commands are about",
    )
    id: str | None = Field(None, description="column of an id; equal ids in two splits are refused")
    language: str | None = Field(None, description="column of the language, where one file holds several")
    splits: Mapping[Literal["train", "dev", "test"], str] = Field(
        {"train": "train", "dev": "dev", "test": "test"}, description="our split -> its name in the files"
    )
    languages: tuple[str, ...] | Mapping[str, str] | None = Field(
        None, description="restrict to these; or a mapping from our code to the name used by path or subset"
    )
    labels: tuple[str, ...] | None = Field(None, description="the label set; default: the labels of train")
    drop_labels: tuple[str, ...] = Field(
        (), description="labels whose rows are left out and counted, such as -1 for none; '' for an empty one"
    )
    overlap: Literal["refuse", "drop_train"] = Field(
        "refuse", description="same id or text in train/dev and test: refuse, or drop the row from train/dev"
    )
    parallel: str | None = Field(
        None,
        min_length=1,
        description="parallel text beside the rows, without labels: .tsv files with a column a language, "
        ".tmx files, or files aligned by line whose suffixes are languages; a folder, file or pattern like opus/*.tsv",
    )
    unlabelled: str | None = Field(
        None,
        min_length=1,
        description="plain text beside the rows, for losses that want no label: a path like text/{language}.txt, whose "
        "lines are texts",
    )
    cache_dir: str = Field(default_factory=_cache_dir, description="Arrow files and frozen features, keyed by content")

    @field_validator("splits", mode="before")
    @classmethod
    def _other_splits_keep_their_names(cls, splits: Any) -> Any:
        # so that corpus.splits.dev=validation alone does not do away with train and test
        return {"train": "train", "dev": "dev", "test": "test", **splits} if isinstance(splits, dict) else splits

    @field_validator("drop_labels", mode="before")
    @classmethod
    def _one_or_more(cls, names: Any) -> Any:
        # so that corpus.drop_labels=-1 is enough, and corpus.drop_labels= names the empty label
        return ("",) if names is None else (names,) if isinstance(names, str) else names

    @property
    def tagged(self) -> bool:
        """Whether rows are words, each with a tag, and not texts with one label."""
        named = re.search(r"\.conllu?(\.(gz|bz2|zst))?(\?.*)?$", self.path or "", re.IGNORECASE)
        in_files = self.loader == "files" and (self.format in CONLL or (self.format is None and named is not None))
        return in_files or self.words is not None or (self.loader == "voice_commands" and self.label == "slots")

    @model_validator(mode="after")
    def _tags(self) -> CorpusConfig:
        if self.words is not None and (self.loader == "voice_commands" or self.format in {"tsv", "csv", *CONLL}):
            what = "voice_commands" if self.loader == "voice_commands" else self.format
            raise ValueError(
                f"words: {self.words} names a column of jsonl, parquet or a data set of the hub, and this is {what}; "
                "leave it out"
            )
        for name in ("drop_labels", "text_pair") if self.tagged else ():
            if getattr(self, name):
                raise ValueError(
                    f"{name}: {getattr(self, name)}, but every word has a tag of its own here; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _labels_once(self) -> CorpusConfig:
        stated = self.labels or ()
        if twice := keys.repeated(stated):
            raise ValueError(f"labels: {', '.join(twice)} given twice; name each label once")
        if both := sorted(set(stated) & set(self.drop_labels)):
            raise ValueError(f"drop_labels: {', '.join(both)} is in labels too; take it out of one of them")
        return self


class MixtureConfig(Section):
    """How training draws are shared among the source languages: p(language) ~ weight * rows ** alpha."""

    alpha: float = Field(0.3, ge=0, le=5, description="1 keeps the corpus sizes, 0 gives every language the same share")
    weights: Mapping[str, float] = Field({}, description="per language, default 1; 0 leaves a language out")
    draws_per_epoch: int | None = Field(None, ge=1, description="default: as many as the sources have rows")
    label_balance: float = Field(
        0.0, ge=0, le=1, description="weight of rows in the loss: 0 the same for all, 1 the same for every label"
    )

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: Mapping[str, float]) -> Mapping[str, float]:
        for language, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{language}: a weight is 0 or more, got {weight}")
        resolved = {resolve(code): weight for code, weight in weights.items()}
        if len(resolved) < len(weights):
            raise ValueError(f"{', '.join(weights)}: two of these are one language; give each one weight")
        return resolved


class NetworkConfig(Section):
    """The encoder, its input, and the head on it."""

    init: str = Field(
        "bundled:e5-small", description="bundled:e5-small, a hub id, a local directory or bundle, or run:FILE"
    )
    revision: str | None = None
    head: Literal["fresh", "bundle"] = Field("fresh", description="bundle: continue with that of the bundle `init`")
    pooling: Literal["mean", "first"] = Field("mean", description="mean over tokens, or the first token")
    prefix: str | None = Field(
        None, description="put before every text; default 'query: ' for the bundled e5, else none"
    )
    layers: int | None = Field(
        None, ge=1, description="blocks to keep of the encoder's, evenly spaced with first and last; default: all"
    )
    max_length: int = Field(128, ge=8, le=8192, description="tokens; longer inputs are cut")
    dropout: float | None = Field(None, ge=0, lt=1, description="default: what the encoder's own configuration says")
    freeze: tuple[Literal["embeddings"] | int, ...] = Field(
        ("embeddings",),
        description="'embeddings' (word embeddings; 96 of the 118 M parameters) and numbers of blocks from the bottom",
    )

    @property
    def bundle(self) -> Path | None:
        """The folder of the bundle that `init` is, or is the encoder of; None for any other encoder."""
        init = Path(self.init).expanduser()
        folder = init.parent if init.name == "encoder" else init
        return folder if (folder / "bundle.json").is_file() else None


class TrainingConfig(Section):
    """How the network is fitted."""

    method: Literal["fine_tune", "probe", "adapt"] = Field(
        "fine_tune", description="adapt: of the encoder alone, by losses of techniques that want no label"
    )
    epochs: int = Field(5, ge=1)
    batch_size: int = Field(32, ge=1, description="rows an update, over all workers together")
    tokens_per_step: int | None = Field(
        None,
        ge=8,
        description="padded tokens a worker forwards at once, more accumulate; default: 1024 on CPU, 16384 on GPU",
    )
    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float | None = Field(None, gt=0, description="default: learning_rate")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the updates over which the rate rises linearly")
    decay: Literal["linear", "cosine", "constant"] = "linear"
    clip: float = Field(1.0, gt=0, allow_inf_nan=True, description="largest norm of the gradient; .inf: any")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    unlabelled_rows: int | None = Field(
        None,
        ge=0,
        description="unlabelled train rows of sources and targets that join an update, for losses that need no label; "
        "default: batch_size where there is such a loss, else none",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where measured faster"
    )
    all_reduce: Literal["float32", "bfloat16"] = Field(
        "float32", description="in what workers send each other gradients; bfloat16 halves the bytes and rounds the sum"
    )
    average_last: int = Field(1, ge=1, description="epochs at whose ends weights are averaged; 1 takes the last alone")
    checkpoint_every: int | None = Field(None, ge=1, description="updates between checkpoints besides each epoch's end")
    select: Literal["last", "source_dev", "target_dev"] = Field(
        "last", description="which epoch to keep; target_dev is an oracle and is labelled so everywhere"
    )
    probe_strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0),
        min_length=1,
        description="probe: inverse L2 penalties to choose from",
    )
    probe_select: Literal["source_dev", "cross_validation"] = Field(
        "source_dev",
        description="probe: how a penalty is chosen: by accuracy on source dev; or by cross-validation over train and "
        "dev of the sources, the strongest within one standard error of the best, which few dev rows ask for",
    )
    refit: Literal["none", "source_dev"] = Field(
        "none",
        description="probe: source_dev fits once more on train and dev of the sources, by the penalty that dev chose",
    )

    @property
    def labelled(self) -> bool:
        """Whether a task is learned from labels; else the encoder alone is trained, and nothing is measured on test."""
        return self.method != "adapt"


class EvaluationConfig(Section):
    """What is measured after training, on test, once."""

    resamples: int = Field(2000, ge=100, description="bootstrap resamples for every interval")
    tokens_per_step: int | None = Field(
        None, ge=8, description="padded tokens a worker forwards at once; default: 1024 on CPU, 16384 on GPU"
    )


class TrackingConfig(Section):
    """Where results are recorded in MLflow."""

    uri: str = Field("sqlite:///xlt.db", repr=False, description="any MLflow tracking URI; 'off' for none")
    experiment: str = "xlt"
    register_as: str | None = Field(None, description="name of the registered model; default: none is registered")
    alias: str | None = Field(None, description="alias to move to the new version, such as champion")
    flush_seconds: float = Field(120, ge=0, description="wait at the end for what is not yet sent; the rest is kept")


class ResourcesConfig(Section):
    """The resources that are requested from Ray."""

    workers: int | tuple[int, int] = Field(
        1, description="or [fewest, most]: as many as there is room for, others when machines come or go in training"
    )
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    shard_optimizer: bool = Field(
        False,
        description="each worker keeps a part of the optimiser's state: less memory, the same weights",
    )
    max_failures: int = Field(3, ge=0, description="worker failures survived before the run stops")
    wait_minutes: float | None = Field(
        None,
        gt=0,
        description="how long missing machines are waited for; default: 30, on this machine alone 2",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _counts(cls, workers: Any) -> Any:
        given = list(workers) if isinstance(workers, list | tuple) and len(workers) == 2 else [workers]
        try:
            counts = [int(count) for count in given]
            sound = all(n >= 1 and float(g) == n and g is not True for n, g in zip(counts, given, strict=True))
        except (TypeError, ValueError, OverflowError):  # the last of an infinity
            sound = False
        if not sound:
            raise ValueError(f"{workers!r}; give a number of 1 or more, or two, as in [1, 4]")
        if counts != sorted(counts):
            raise ValueError(f"{counts}; give the fewest first, as in {sorted(counts)}")
        return counts[0] if counts[0] == counts[-1] else tuple(counts)

    @model_validator(mode="after")
    def _whole(self) -> ResourcesConfig:
        if self.fewest < self.most and (self.cpus_per_worker % 1 or self.gpus_per_worker % 1):
            raise ValueError(
                f"workers: [{self.fewest}, {self.most}] needs whole cpus_per_worker and gpus_per_worker, which are "
                f"{self.cpus_per_worker:g} and {self.gpus_per_worker:g}; make them whole, or give one number of workers"
            )
        return self

    @property
    def fewest(self) -> int:
        """The workers without which nothing is trained."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The workers that are asked for."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]
