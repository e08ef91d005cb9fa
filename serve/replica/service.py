"""Answer requests: guess languages, read texts as the model does, tokenise, wait for a place in a batch, and return how
far to trust the answer.

Nothing here knows of HTTP or Ray, so that the same code runs behind Ray Serve and in a test's own event loop.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from serve.replica import words
from serve.replica.admission import Queue
from serve.replica.challenge import Challenge
from serve.replica.measured import expected, language, reliability
from serve.replica.model import DIGITS, Answer, Chunk, Infer, Model, Question
from serve.replica.refusals import Refusal, not_ready, unfit
from serve.replica.telemetry import Telemetry
from serve.settings import ServeArgs
from xlt_ray.inference import tagging
from xlt_ray.inference.engine import Row
from xlt_ray.languages.identify import UNKNOWN, Guess, Identifier
from xlt_ray.model import batching
from xlt_ray.translation.readings import Asked, asked

logger = logging.getLogger("ray.serve")
PATIENCE = 600.0  # seconds: nobody watches a stream's single lines, and the next are not read before these are answered
CHUNK_TOKENS = {"cpu": 1024, "cuda": 16384}  # what fits a processor's cache, what keeps a GPU busy
TOKENISERS = 2  # threads, so that a long request does not hold up a short one; more of them compete for the GIL


def answer_all(chunks: Sequence[Chunk]) -> list[np.ndarray | Exception]:
    """Run a batch: each chunk's probabilities, or TimeoutError where its time is up. Blocks; no event loop needed.

    Where the engine fails at a batch, its chunks are tried one by one: only those at fault get the exception.
    """
    now = time.monotonic()
    results: list[np.ndarray | Exception] = [TimeoutError() for _ in chunks]
    alive = [i for i, chunk in enumerate(chunks) if chunk.until > now]
    for model in {id(chunks[i].model): chunks[i].model for i in alive}.values():
        mine = [i for i in alive if chunks[i].model is model]
        for i, part in zip(mine, _parts(model, [chunks[i] for i in mine]), strict=True):
            results[i] = part
    return results


def _parts(model: Model, parts: Sequence[Chunk]) -> Sequence[np.ndarray | Exception]:
    try:
        rows = [row for part in parts for row in part.rows]
        codes = [code for part in parts for code in part.codes or [None] * len(part.rows)]
        found = model.engine.probabilities(rows, codes)
        if not np.isfinite(found).all():
            raise ArithmeticError("the model's answer holds numbers that are none")
    except Exception as error:
        return [error] if len(parts) == 1 else [one for part in parts for one in _parts(model, [part])]
    return np.split(found, np.cumsum([part.answers for part in parts])[:-1])


class Service:
    """Everything that one replica knows: the model, its challenger, and what waits.

    `infer` runs one chunk, together with whatever else waits at that moment.
    """

    def __init__(
        self, args: ServeArgs, infer: Infer, telemetry: Telemetry | None = None, replica: str = "local"
    ) -> None:
        self.args, self.infer, self.replica = args, infer, replica
        self.telemetry = telemetry or Telemetry()
        self.queue = Queue(args.limits.waiting_texts)
        self.model: Model | None = None
        self.challenge: Challenge | None = None
        self.problem = ""  # why the model last asked for is not the one that answers
        self.loading = ""  # the model that is being loaded
        self._identifier = Identifier(args.cache) if args.identify else None
        self._tokenisers = ThreadPoolExecutor(TOKENISERS, thread_name_prefix="tokenise")
        self._background: set[asyncio.Task[None]] = set()

    def ready(self) -> Model:
        """Return the model that answers; raise the Refusal `not_ready` where there is none."""
        if self.model is None:
            raise not_ready(self.problem or "the model is still being loaded")
        return self.model

    def chunk_tokens(self, model: Model) -> int:
        """Return the most tokens of a model's chunk; what is batched together are two chunks' worth."""
        return max(self.args.tokens_per_batch or CHUNK_TOKENS[model.engine.device], model.engine.max_length)

    @property
    def rows_a_text(self) -> int:
        """The most rows that the model computes for a text; 1 where texts are read as they stand."""
        readings = self.ready().engine.readings
        return 1 if readings is None else len(readings.translators)

    async def classify(
        self,
        question: Question,
        deadline: float | None = None,
        min_confidence: float | None = None,
        patient: bool = False,
    ) -> Answer:
        """Classify texts, or each of their words; with `patient`, wait for room instead of being refused.

        Below `min_confidence`, by default that of the settings, a text gets no label.
        Raises a Refusal: 422 for what the model cannot take, 503 where nothing could be answered before `deadline` s.
        """
        model = self.ready()
        if self.challenge is not None:
            model = self.challenge.pick(model, question.texts)
        _check(model, question)
        deadline = min(deadline or self.args.limits.deadline_s, self.args.limits.deadline_s)
        texts = len(question.texts) if model.engine.words is None else int(_weights(model, question.texts).sum())
        while patient and not self.queue.free(texts, deadline):
            await asyncio.sleep(0.02)
            self.ready()
        with self.queue.enter(texts, deadline):
            patience = PATIENCE if patient else deadline
            answer = await self._answer(model, question, time.monotonic() + patience, patience)
        answer = replace(answer, least=self.args.min_confidence if min_confidence is None else min_confidence)
        self._count(answer)
        if self.args.log_texts:
            _log(answer)
        return answer

    async def _answer(self, model: Model, question: Question, until: float, deadline: float) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + until - time.monotonic()):
                prepare = functools.partial(self._prepare, model, question, until)
                rows, read, guesses = await loop.run_in_executor(self._tokenisers, prepare)
                groups = batching.steps([len(row) for row in rows], self.chunk_tokens(model))
                parts = read.parts
                if model.engine.words is not None:
                    parts = parts * _weights(model, question.texts)[read.owners]
                chunks = [
                    Chunk(model, [rows[i] for i in group], until, [read.keys[i] for i in group], parts[group].tolist())
                    for group in groups
                ]
                if len(chunks) == 1:  # as a rule, and without a task of its own
                    found = [await self.infer(chunks[0])]
                else:
                    found = await asyncio.gather(*(self.infer(chunk) for chunk in chunks))
        except TimeoutError:
            message = f"no answer within {deadline:g} s; ask for fewer texts at once, or try again later"
            raise Refusal(503, "deadline_exceeded", message, 1) from None
        except Refusal:
            raise
        except Exception as error:
            texts, kind = len(question.texts), type(error).__name__
            logger.error("%s failed at %d texts: %s: %s", model.name, texts, kind, error)
            message = "the model failed at this; whoever runs the server finds why in its log"
            raise Refusal(503, "model_failed", message, 5) from None
        order = np.concatenate([np.asarray(group) for group in groups])
        if model.engine.words is not None:
            of_words = np.repeat(order, tagging.sizes([rows[i] for i in order]))
            ordered = np.concatenate(found)[np.argsort(of_words, kind="stable")]
            answer = Answer(question, model, ordered, guesses, read)
            await loop.run_in_executor(self._tokenisers, lambda: answer.words)  # in a long text they are thousands
            return answer
        return Answer(question, model, read.joined(np.concatenate(found)[np.argsort(order)]), guesses, read)

    def _prepare(self, model: Model, question: Question, until: float) -> tuple[list[Row], Asked, list[Guess]]:
        """Guess the languages that are not named, read texts by their languages, tokenise. Blocks: runs in a thread.

        Raises TimeoutError where nobody waits any more, so that others need not wait for a request that is lost.
        """
        guess = self._identifier.guess if self._identifier else lambda text: UNKNOWN
        named = zip(question.texts, question.languages or [None] * len(question.texts), strict=True)
        guesses = [guess(text) if code is None else Guess(code, 1.0) for text, code in named]
        if model.engine.words is not None:
            windows = []
            for text in question.texts:
                if time.monotonic() > until:
                    raise TimeoutError
                windows += model.engine.words.rows([text])
            return [row for each in windows for row in each], _windowed(question, windows, guesses), guesses
        read = asked(model.engine.readings, question.texts, question.pairs, [guess.code for guess in guesses])
        return model.engine.encode(read.texts, read.pairs), read, guesses

    def _count(self, answer: Answer) -> None:
        measured = answer.model.artefact.languages
        guessed = [guess.code for guess in answer.guesses]
        languages = ["unknown" if code is None else code if code in measured else "unmeasured" for code in guessed]
        if answer.model.engine.words is None:
            self.telemetry.texts(answer.model.version, languages, answer.returned)
        else:
            self.telemetry.words(answer.model.version, languages, [[one.tag for one in own] for own in answer.words])

    def follow_up(self, answer: Answer) -> None:
        """Let a challenger in the shadow classify the same texts, once they are answered and while there is room."""
        challenge = self.challenge
        if challenge is None:
            return
        challenge.answered(answer)
        if not challenge.shadows(answer.question.texts) or self.queue.waiting > self.queue.most // 4:
            return
        task = asyncio.get_running_loop().create_task(self._shadow(challenge, answer))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _shadow(self, challenge: Challenge, answer: Answer) -> None:
        deadline = self.args.limits.deadline_s
        question = replace(answer.question, languages=[guess.code for guess in answer.guesses])
        try:
            with self.queue.enter(len(question.texts), deadline):
                second = await self._answer(challenge.model, question, time.monotonic() + deadline, deadline)
        except Refusal:
            return  # a shadow costs nobody an answer
        challenge.compared(answer, second)

    async def feedback(self, question: Question, labels: Sequence[str]) -> dict[str, Any]:
        """Score the model, and the challenger where there is one, on texts whose label is known."""
        champion, challenge = self.ready(), self.challenge
        known = champion.artefact.labels
        for i, label in enumerate(labels):
            if label not in known:
                raise unfit(f"labels[{i}]", f"{label!r} is not a label of this model; `GET /v1/model` lists them")
        _check(champion, question)
        models = [champion] + ([challenge.model] if challenge else [])
        deadline = self.args.limits.deadline_s
        with self.queue.enter(len(labels) * len(models), deadline):
            until = time.monotonic() + deadline
            answers = [await self._answer(model, question, until, deadline) for model in models]
        right = [(a.labels == np.asarray(labels)).tolist() for a in answers]
        if challenge is not None:
            challenge.judged([guess.code for guess in answers[0].guesses], right[0], right[1])
        return {
            model.name: {"version": model.version, "texts": len(labels), "right": sum(mine)}
            for model, mine in zip(models, right, strict=True)
        }


def _weights(model: Model, texts: Sequence[str]) -> np.ndarray:
    """Return as how many texts each waits with a model of words, (texts,): about the windows that it takes.

    Two bytes a token are few in most scripts, where a character is one to four bytes and a word several.
    """
    return np.array([1 + len(text.encode()) // (2 * model.engine.max_length) for text in texts])


def _windowed(question: Question, windows: Sequence[Sequence[Row]], guesses: Sequence[Guess]) -> Asked:
    """Return texts as a model of words reads them: as they stand, a row a window."""
    owners = np.repeat(np.arange(len(windows)), [len(each) for each in windows])
    keys = [guesses[owner].code for owner in owners.tolist()]
    return Asked(list(question.texts), None, keys, owners, 1 / np.bincount(owners)[owners])


def _check(model: Model, question: Question) -> None:
    pairs, texts = question.pairs, question.texts
    if (pairs is not None) != model.artefact.pairs:
        wanted = "pairs of texts: give `pairs`, as many as `texts`" if pairs is None else "one text: leave out `pairs`"
        raise unfit("pairs", f"this model classifies {wanted}")
    if pairs is not None and len(pairs) != len(texts):
        raise unfit("pairs", f"{len(pairs)} of them for {len(texts)} texts; give one a text")


def _log(answer: Answer) -> None:
    pairs = answer.question.pairs
    if answer.model.engine.words is not None:
        for text, own in zip(answer.question.texts, answer.words, strict=True):
            tags = {"text": text, "tags": [one.tag for one in own], "model": answer.model.name}
            logger.info(json.dumps(tags, ensure_ascii=False))
        return
    for i, (text, label) in enumerate(zip(answer.question.texts, answer.returned, strict=True)):
        pair = {"pair": pairs[i]} if pairs else {}
        line = {"text": text, **pair, "label": label, "model": answer.model.name}
        logger.info(json.dumps(line, ensure_ascii=False))


def shown(answer: Answer, top_k: int, readings: bool = False) -> list[dict[str, Any]]:
    """Write an answer as the list of results that a response holds, one a text; with `readings` as it was read."""
    if answer.model.engine.words is not None:
        return words.shown(answer)
    labels, measured = answer.model.artefact.labels, answer.model.artefact.languages
    others = answer.model.zero_shot
    best = np.argsort(-answer.probabilities, axis=1, kind="stable")[:, :top_k]
    results: list[dict[str, Any]] = []
    each = zip(answer.probabilities, best, answer.guesses, answer.returned, answer.read, strict=True)
    for row, ranked, guess, label, read in each:
        scores = [{"label": labels[i], "score": round(float(row[i]), DIGITS)} for i in ranked]
        results.append(
            {
                "label": label,
                "confidence": scores[0]["score"],
                "abstained": label is None,
                "scores": scores,
                "language": language(guess),
                "expected_accuracy": expected(measured.get(guess.code or "")),
                "reliability": reliability(measured, others, guess.code, float(row[ranked[0]])),
                "read": read,
            }
        )
    if readings:
        results = [one | {"readings": read} for one, read in zip(results, answer.readings, strict=True)]
    return results
