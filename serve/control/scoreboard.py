"""Compare challenger and champion on live traffic: a table, and a run in MLflow that scores both."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from serve.control import control
from serve.replica import challenge
from xlt_ray import durable
from xlt_ray.config.masking import masked
from xlt_ray.config.sections import TrackingConfig
from xlt_ray.languages import codes
from xlt_ray.tracking import courier
from xlt_ray.tracking.outbox import Outbox, reason


@dataclass(frozen=True)
class Board:
    """What the replicas of a server counted together: language -> counts, as `Challenge` names them."""

    champion: str
    challenger: str
    mode: str
    share: float
    languages: Mapping[str, Counter[str]]
    tracking_uri: str

    @property
    def whole(self) -> Counter[str]:
        """The counts of all languages together."""
        summed: Counter[str] = Counter()
        for counts in self.languages.values():
            summed.update(counts)
        return summed


def collect(server: control.Server) -> Board:
    """Ask every replica for what it counted; raises InputError where no challenge is on."""
    found = control.tallies(server)
    first = found[0]
    uri = control.settings_of(server).tracking_uri
    summed = challenge.total(found)
    return Board(first["champion"], first["challenger"], first["mode"], first["share"], summed, uri)


def p_value(counts: Mapping[str, int]) -> float | None:
    """Test whether the two are right equally often on the same judged texts: exact McNemar test (McNemar 1947).

    None where no text was judged differently.

    >>> round(p_value({"only_champion_right": 2, "only_challenger_right": 10}), 3)
    0.039
    """
    one, other = counts.get("only_champion_right", 0), counts.get("only_challenger_right", 0)
    return float(stats.binomtest(one, one + other).pvalue) if one + other else None


def table(board: Board) -> Any:
    """Make the table that `xlt challenge` prints."""
    from rich.table import Table

    shown = Table(
        *("language", "answered", "by challenger", "compared", "agree", "judged", "champion", "challenger", "p"),
        title=f"{board.champion} challenged by {board.challenger} ({board.mode}, {100 * board.share:g}%)",
    )
    rows = sorted(board.languages.items(), key=lambda item: -item[1]["compared"] - item[1]["judged"])
    for code, counts in [*rows, ("all", board.whole)]:
        p = p_value(counts)
        answered = counts["answered_by_champion"] + counts["answered_by_challenger"]
        cells = [
            *(str(counts[k]) for k in ("answered_by_challenger", "compared")),
            _share(counts["agreed"], counts["compared"]),
            str(counts["judged"]),
            *(_share(counts[f"{who}_right"], counts["judged"]) for who in ("champion", "challenger")),
            "" if p is None else f"{p:.3f}",
        ]
        shown.add_row(codes.name(code), str(answered), *cells)
    return shown


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else ""


def record(board: Board) -> tuple[str, int]:
    """Write both models' scores into one MLflow run of this pair, a step a call.

    Return a line that names where, or why records are kept; and how many are left to send.
    """
    pair = hashlib.sha256(json.dumps([board.champion, board.challenger, board.mode, board.share]).encode()).hexdigest()
    folder = durable.cache_folder("challenges", pair[:12])
    config = TrackingConfig(uri=board.tracking_uri, experiment="xlt-serving")
    outbox = Outbox.open(folder, config, f"challenge-{pair[:12]}", f"{board.challenger} against champion")
    outbox.params(
        {"champion": board.champion, "challenger": board.challenger, "mode": board.mode, "share": board.share}
    )
    values: dict[str, float] = {}
    for code, counts in [*board.languages.items(), ("all", board.whole)]:
        values |= {f"{kind}/{code}": float(number) for kind, number in counts.items()}
        if counts["compared"]:
            values[f"agreement/{code}"] = counts["agreed"] / counts["compared"]
        if counts["judged"]:
            for who in ("champion", "challenger"):
                values[f"accuracy_{who}/{code}"] = counts[f"{who}_right"] / counts["judged"]
        p = p_value(counts)
        if p is not None:
            values[f"p_value/{code}"] = p
    outbox.metrics(values, step=int(time.time()))
    outbox.finish("FINISHED")
    left = courier.start(outbox).close(60)
    if not left:
        return f"recorded at {masked(board.tracking_uri)}", 0
    why = reason(folder) or "no time was left"
    return f"{left} records are not sent and are kept ({why}); `xlt sync {shlex.quote(str(folder))}` sends them", left
