"""The simulation of queues by which replicas are counted: against theory, and what is lost or refused in it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import capacity


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_one_replica_that_answers_one_by_one_is_the_queue_of_theory(busy: float) -> None:
    """Mean time in an M/D/1 queue: service + busy x service / (2 (1 - busy)) (Pollaczek and Khinchine)."""
    service = 0.01
    seen = capacity.opened(
        capacity.Simulation(capacity.Replica(0.0, service, 1), 1), capacity.poisson(busy / service, 400)
    )
    assert np.mean(seen.seconds) == pytest.approx(service * (1 + busy / (2 * (1 - busy))), rel=0.1)
    assert not seen.refused


def test_a_replica_fitted_answers_as_the_one_it_was_fitted_to() -> None:
    true = capacity.Replica(0.008, 0.004, 40)
    alone, many = (len(seen.seconds) / seen.wall for seen in (capacity.closed(true, 1, n) for n in (1, 64)))
    found = capacity.fitted(alone, many, 40)
    assert found.fixed == pytest.approx(true.fixed, rel=0.05) and found.text == pytest.approx(true.text, rel=0.1)


def test_every_request_is_answered_or_refused_where_replicas_go_and_come() -> None:
    replica = capacity.Replica(0.01, 0.005, 40)
    times = capacity.poisson(2.5 * replica.rate, 12)
    simulation = capacity.Simulation(replica, 4, proxies=2)
    simulation.at(5, lambda now: simulation.go(now, 2))
    simulation.at(8, lambda now: simulation.come(2))
    seen = capacity.opened(simulation, times)
    assert len(seen.seconds) + len(seen.refused) == len(times)
    assert max(seen.seconds) > 1, "two replicas are too few"
    quiet = capacity.opened(capacity.Simulation(replica, 4, proxies=2), times)
    assert not quiet.refused and max(quiet.seconds) < 1


def test_a_batch_waits_for_more_after_the_last_one_and_not_when_all_is_quiet() -> None:
    replica = capacity.Replica(0.1, 0.1, 40)
    simulation = capacity.Simulation(replica, 1)
    seen = capacity.opened(simulation, [0.0, 0.01, 0.02, 0.51, 9.0])
    # the first alone, two during it; what comes right after them waits for a tenth of their time, what comes later not
    assert seen.seconds == pytest.approx([0.2, 0.49, 0.48, 0.22, 0.2])
