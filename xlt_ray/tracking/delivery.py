"""Send the records of one outbox to one server in order, and find out what is at fault when that fails.

A server that does not answer holds everything up, and nothing is lost. A record that the server refuses is set aside
with the reason, and the records after it go on; `xlt sync` tries it again. A server that refuses the whole run, because
nobody may write there or the experiment is deleted, is not waited for: the reason says what to do.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlt_ray.config.masking import masked
from xlt_ray.errors import InputError
from xlt_ray.tracking.mlflow_run import HOPELESS, Refused, Run
from xlt_ray.tracking.outbox import FILE, Sent, address, records

BATCH = 1000  # values a request
ATTEMPTS = 4  # at a record, while the server answers other questions

Entry = tuple[int, int, dict[str, Any]]  # offset, offset of the next, record
REMEDIES = (  # what the reason holds -> what to do; also where it does not come as an error of MLflow
    ("Invalid Host header", "start the server with --allowed-hosts and the name it is called by"),
    (
        r"UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED|error code 401|not authenticated",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    (r"PERMISSION_DENIED|error code 403", "ask for the right to write there, or name another server by --uri"),
    (
        r"authentication failed|Access denied for user|no password supplied|Login failed|role .* does not exist",
        "give the right user and password by --uri",
    ),
    (r"database .* does not exist|Unknown database", "create the database, or name another by --uri"),
    ("out-of-date database schema", "run `mlflow db upgrade URI`"),
    ("CERTIFICATE_VERIFY_FAILED", "set MLFLOW_TRACKING_SERVER_CERT_PATH to the server's certificate"),
    ("WRONG_VERSION_NUMBER|record layer failure", "the server speaks http: write http:// by --uri"),
    ("ENDPOINT_NOT_FOUND|not in a valid JSON format", "this is no MLflow server; give its address by --uri"),
)


class Unreachable(Exception):
    """A server that gives no useful answer; everything is kept for later."""


class Delivery:
    """One outbox on its way to one server; the caller holds the outbox's lock."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.sent = Sent.load(folder, uri)
        self._run: Run | None = None
        self._attempts: Counter[int] = Counter()

    def send(self, again: bool = False) -> None:
        """Send everything that waits, and with `again` what was refused before; raise whatever stops it."""
        self._connect()  # before anything is read: to a server where the run is gone, all is sent from the beginning
        for start in sorted(map(int, self.sent.failed)) if again else ():
            end, record = next(records(self.folder, start))
            self._send([(start, end, record)], again)
        while batch := self._batch():
            self._send(batch)
        self.note(None)

    def note(self, error: Exception | None) -> str:
        """Keep beside the outbox why delivery is held up, or None that it is not; return the reason in one line."""
        text = "" if error is None else f"{type(error).__name__}: {_line(error)}"
        if text != self.sent.error:
            self.sent.error = text
            self._save()
        return text

    def give_up(self) -> int:
        """Forget the records that were refused, and return how many."""
        count = len(self.sent.failed)
        self.sent.failed.clear()
        self._save()
        return count

    def mark_killed(self, driver: int) -> None:
        """Mark the run as killed if `driver`, now dead, was the last process to open the outbox and did not finish."""
        last = [record for _, record in records(self.folder) if record["kind"] in ("open", "finish")][-1]
        if last["kind"] == "open" and last["pid"] == driver:
            self._connect().end("KILLED")

    def _batch(self) -> list[Entry]:
        """Take the next records that can go in one request: several of a kind with values, or a single other one."""
        batch: list[Entry] = []
        size, start = 0, self.sent.offset
        for end, record in records(self.folder, start):
            size += len(record.get("values", ()))
            if batch and (record["kind"] != batch[0][2]["kind"] or "values" not in record or size > BATCH):
                break
            batch.append((start, end, record))
            start = end
        return batch

    def _send(self, batch: Sequence[Entry], again: bool = False) -> None:
        with (self.folder / FILE).open("rb") as stream:
            os.fsync(stream.fileno())  # after a power cut the run must not forget, and record anew, what a server has
        run = self._connect()
        try:
            run.log([record for _, _, record in batch])
        except Exception as error:
            self._find_fault(batch, error, again)
        else:
            self.sent.failed.pop(str(batch[0][0]), None)
            self._advance(batch[-1][1])

    def _find_fault(self, batch: Sequence[Entry], error: Exception, again: bool) -> None:
        """Find out whether the server or a record is at fault: raise for the first, set the second aside."""
        self._run, before = None, self.sent.run_id
        self._connect()  # raises when the server is at fault
        if self.sent.run_id != before:
            raise error
        if len(batch) > 1:
            for entry in batch:
                self._send([entry])
            return
        start, end, record = batch[0]
        self._attempts[start] += 1
        if not again and not isinstance(error, Refused) and self._attempts[start] < ATTEMPTS:
            raise error
        self.sent.failed[str(start)] = f"{record['kind']}: {_line(error)}"
        self._advance(end)

    def _connect(self) -> Run:
        """Return the MLflow run, found or created; raise Refused or Unreachable with the reason."""
        if self._run is not None:
            return self._run
        try:
            where = address(self.folder)
            if where is None:
                raise FileNotFoundError(f"{self.folder / FILE}: no such file; tracked runs write it")
            run = Run(self.folder, self.uri, where, self.sent.run_id)
            if run.id != self.sent.run_id:
                self.sent = Sent(run_id=run.id, adopted=run.found)
                self._save()
            if self.sent.adopted:
                run.skip_known()
        except Refused:
            raise
        except Exception as error:
            reason = masked(f"{self.uri}: {getattr(error, 'message', error)}")
            if (remedy := _remedy(error)) is not None:
                raise Refused(f"{reason}{remedy}") from error
            raise Unreachable(reason) from error
        self._run = run
        return run

    def _advance(self, offset: int) -> None:
        self.sent.offset = max(self.sent.offset, offset)
        self._save()

    def _save(self) -> None:
        self.sent.save(self.folder, self.uri)


def _remedy(error: Exception) -> str | None:
    """Return what to do about a refusal; None for an outage, which passes by itself."""
    code = getattr(error, "error_code", None)
    for sign, remedy in REMEDIES:
        if re.search(sign, f"{code} {error}"):
            return f"; {remedy}, and run `xlt sync`"
    return "" if code in HOPELESS or isinstance(error, InputError | ImportError) else None


def _line(error: Exception) -> str:
    return masked(" ".join(str(error).split()))[:1000]
