"""Predict the answers to whole splits, sharded over workers and gathered on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import distributed

from xlt_ray.corpora.arrow import Chunked
from xlt_ray.evaluation import calibration
from xlt_ray.evaluation.predictions import Predictions, answers_of
from xlt_ray.model import collate
from xlt_ray.model.collate import Tokenize
from xlt_ray.model.network import Network
from xlt_ray.model.precision import autocast, token_budget
from xlt_ray.tasks.task import Task
from xlt_ray.translation.readings import Readings

CHUNK = 4096  # rows tokenised at once: enough to sort well by length, little enough to hold
TOLD = 512  # rows after which `compute` tells how far it is


@dataclass(frozen=True)
class Inputs:
    """How rows become batches: a tokenizer, the precision to compute in, and the most tokens a batch may have.

    `tokens` None leaves the choice to the device, see `token_budget`.
    """

    tokenize: Tokenize
    precision: str
    tokens: int | None = None


@dataclass(frozen=True)
class Asked:
    """What is asked of rows: a task, or for None their features; `language` is their place among the network's.

    It is -1 where theirs is not among them.
    """

    language: int = -1
    task: Task | None = None


def outputs(
    call: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    device: torch.device,
    table: pa.Table,
    rows: np.ndarray,
    inputs: Inputs,
    asked: Asked = Asked(),
) -> np.ndarray:
    """Apply `call` (a network for logits, its `features` for features) to rows of a table: (rows, width) float32.

    Where a task is asked there is a row for every answer it wants, those of a row of the table together.
    """

    def answer(encoded: Sequence[Mapping[str, Sequence[int]]]) -> np.ndarray:
        return forward(call, device, encoded, inputs, [asked.language] * len(encoded))

    parts: list[np.ndarray] = []
    chunked = Chunked(table)
    for start in range(0, len(rows), CHUNK):
        chunk = chunked.take(rows[start : start + CHUNK])
        if asked.task is None:
            parts.append(answer(inputs.tokenize.rows(chunk)))
        else:
            parts.append(asked.task.answers(answer, inputs.tokenize, chunk))
    return np.concatenate(parts)


@torch.inference_mode()
def forward(
    call: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    device: torch.device,
    encoded: Sequence[Mapping[str, Sequence[int]]],
    inputs: Inputs,
    languages: Sequence[int] | None = None,
) -> np.ndarray:
    """Compute `call` on one or more rows encoded as `Tokenize` does: (rows, width) float32, in their order.

    `languages` are the places of the rows' languages among the network's; without them all are unknown. Rows that mark
    words (`word`, see `Network.answers`) have an answer for each.
    """
    order: list[int] = []
    found: list[np.ndarray] = []
    budget = token_budget(inputs.tokens, device)
    for positions, batch in collate.budgeted(encoded, budget, inputs.tokenize.tokenizer.pad_token_id):
        if languages is not None:
            batch["language"] = torch.tensor([languages[i] for i in positions])
        with autocast(device, inputs.precision):
            found.append(call({key: value.to(device) for key, value in batch.items()}).float().cpu().numpy())
        order += positions
    answers, places = np.concatenate(found), np.argsort(order)
    if "word" not in encoded[0]:
        return answers[places]
    ends = np.cumsum([len(encoded[row]["word"]) for row in order])
    parts = np.split(answers, ends[:-1])
    return np.concatenate([parts[place] for place in places])


def predict(
    network: Network,
    task: Task,
    tables: Mapping[str, pa.Table],
    inputs: Inputs,
    progress: Callable[[int, int], None] = lambda done, all_rows: None,
    readings: Readings | None = None,
) -> dict[str, Predictions]:
    """Predict every row of every language's table, sharded over `torch.distributed`'s workers and gathered on all.

    `progress(done, total)` is called on every worker with the rows that this worker has done and has to do. With
    `readings` the logits of every row's readings are averaged.
    """
    scored = score(network, task, read(tables, readings), inputs, progress)
    return predictions(task, scored, tables, network.temperature, readings)


def read(tables: Mapping[str, pa.Table], readings: Readings | None) -> Mapping[str, pa.Table]:
    """Return tables by language as they are read, by key of their readings."""
    return tables if readings is None else readings.tables(tables)


def predictions(
    task: Task,
    scored: Mapping[str, np.ndarray],
    tables: Mapping[str, pa.Table],
    temperature: float,
    readings: Readings | None = None,
) -> dict[str, Predictions]:
    """Return the predictions for tables by language from logits by key of a reading, (answers, labels) float32."""
    found = {}
    for language, table in tables.items():
        logits = averaged(scored, language, readings)
        gold, predicted, sizes = task.gold(table), logits.argmax(1), task.sizes(table)
        found[language] = Predictions(
            gold=gold,
            predicted=predicted,
            ids=np.asarray(table["id"].to_pylist(), dtype=np.str_),
            confidence=calibration.confidence(logits, temperature),
            sizes=sizes,
            ratios=task.ratios(gold, predicted, sizes),
        )
    return found


def score(
    network: Network,
    task: Task,
    tables: Mapping[str, pa.Table],
    inputs: Inputs,
    progress: Callable[[int, int], None] = lambda done, all_rows: None,
) -> dict[str, np.ndarray]:
    """Compute the logits of every answer to tables by language or key of a reading: (answers, labels) float32.

    Rows are sharded over `torch.distributed`'s workers, and logits gathered on all; `progress` as for `predict`.
    """
    return dict(_sharded(network, (network, network.head.out_features, task), tables, inputs, progress))


def averaged(found: Mapping[str, np.ndarray], language: str, readings: Readings | None) -> np.ndarray:
    """Return the weighted mean over a language's readings of logits by key: (rows, classes) float32."""
    if readings is None or not readings.several(language):
        return found[language]
    keys = readings.keys(language)
    parts = [share * found[key].astype(np.float64) for key, share in zip(keys, readings.shares(language), strict=True)]
    return np.sum(parts, axis=0).astype(np.float32)


def apart(
    task: Task, scored: Mapping[str, np.ndarray], tables: Mapping[str, pa.Table], readings: Readings | None
) -> dict[str, float]:
    """Return the share of right answers of each reading by itself, by key, in languages that are read in several."""
    if readings is None:
        return {}
    several = {code: task.gold(table) for code, table in tables.items() if readings.several(code)}
    return {
        key: float((scored[key].argmax(1) == gold).mean())
        for code, gold in several.items()
        for key in readings.keys(code)
    }


def embed(
    network: Network,
    tables: Mapping[str, pa.Table],
    inputs: Inputs,
    progress: Callable[[int, int], None] = lambda done, all_rows: None,
) -> dict[str, np.ndarray]:
    """Compute pooled features, not yet transformed, of every row: language -> (rows, width) float32.

    Rows are sharded over `torch.distributed`'s workers, and features gathered on all; `progress` as for `predict`.
    """
    width = network.head.in_features
    return dict(_sharded(network, (network.features, width, None), tables, inputs, progress))


def compute(
    network: Network,
    call: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    encoded: Sequence[Mapping[str, Sequence[int]]],
    inputs: Inputs,
    width: int,
    progress: Callable[[int, int], None] = lambda done, all_rows: None,
) -> np.ndarray:
    """Apply `call`, of a network in evaluation mode, to encoded rows that are the same on all workers: (rows, width).

    Workers of `torch.distributed` share the rows, and all get what these give, float32; `progress` as for `predict`.
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    was_training, device = network.training, next(network.parameters()).device
    network.eval()
    whole, mine = np.zeros((len(encoded), width), dtype=np.float32), np.arange(rank, len(encoded), world)
    for start in range(0, len(mine), TOLD):
        rows = mine[start : start + TOLD]
        whole[rows] = forward(call, device, [encoded[row] for row in rows], inputs)
        progress(start + len(rows), len(mine))
    network.train(was_training)
    return _summed(whole, device) if world > 1 else whole


def on_any_worker(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Return which flags, as many on all, are set on any of `torch.distributed`'s workers."""
    counts = torch.tensor(list(map(int, flags)), device=device)
    if distributed.is_initialized():
        distributed.all_reduce(counts)
    return [count > 0 for count in counts.tolist()]


def temperature(network: Network, task: Task, tables: Mapping[str, pa.Table], inputs: Inputs) -> float:
    """Fit a network's temperature on labelled rows, which are dev of the sources; the same on all workers."""
    logits = score(network, task, tables, inputs)
    return calibration.temperature(logits, {code: task.gold(table) for code, table in tables.items()})


def _sharded(
    network: Network,
    asked: tuple[Callable[[dict[str, torch.Tensor]], torch.Tensor], int, Task | None],
    tables: Mapping[str, pa.Table],
    inputs: Inputs,
    progress: Callable[[int, int], None] = lambda done, all_rows: None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (language, (answers, width) float32) of every table, complete on every worker.

    `asked` is what to apply to rows, the width of what it gives, and the task, None for features.
    """
    call, width, task = asked
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    was_training, device = network.training, next(network.parameters()).device
    network.eval()
    mine = {language: np.arange(rank, table.num_rows, world) for language, table in tables.items()}
    total, done = sum(map(len, mine.values())), 0
    for language, rows in mine.items():
        sizes = None if task is None else task.sizes(tables[language])
        answers = tables[language].num_rows if sizes is None else int(sizes.sum())
        whole = np.zeros((answers, width), dtype=np.float32)
        if len(rows):
            about = Asked(network.index(language), task)
            whole[rows if sizes is None else answers_of(rows, sizes)] = outputs(
                call, device, tables[language], rows, inputs, about
            )
        done += len(rows)
        progress(done, total)
        yield language, _summed(whole, device) if world > 1 else whole
    network.train(was_training)


def _summed(answers: np.ndarray, device: torch.device) -> np.ndarray:
    # every row was answered by one worker and is 0 on the others, so the sum over workers is the whole
    tensor = torch.from_numpy(answers).to(device)
    distributed.all_reduce(tensor)
    return tensor.cpu().numpy()
