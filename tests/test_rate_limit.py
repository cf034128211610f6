"""Rate, hours, pauses and back-off, on a fake clock."""

import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from fake_clock import FakeClock

from pipeline.core.settings import NetworkParams
from pipeline.corpus.fetch.failures import UnavailableError, retry_after_s
from pipeline.corpus.fetch.rate_limit import (
    BlockedError,
    Breaker,
    Clock,
    Gate,
    Hours,
    StoppedError,
    TokenBucket,
    back_off_s,
)

PARAMS = NetworkParams(
    tries=2, timeout_s=1.0, backoff_s=1.0, clips_per_hour=360.0, limit=0, from_hour=0.0,
    to_hour=24.0, refusals=3, pause_s=60.0, longest_pause_s=200.0, pauses=3, cookies="", proxy="",
    max_tool_age_days=90,
    look_up_mb=1.0,
)  # fmt: skip
BLOCKED = UnavailableError("blocked", "HTTP Error 429: Too Many Requests")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def breaker(clock):
    return Breaker(PARAMS, clock)


def refuse(breaker, times, retry_after_s=None):
    """Make requests that are refused; return when each was made."""
    made = []
    for _ in range(times):
        breaker.wait()
        ticket = breaker.enter()
        made.append(breaker.clock.now())
        breaker.refused(ticket, "429", retry_after_s)
    return made


def test_the_bucket_spreads_requests_evenly_at_the_rate(clock):
    bucket = TokenBucket(360.0, clock, random.Random(0))
    times = []
    for _ in range(1000):
        bucket.take()
        times.append(clock.now())
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0.0
    assert min(gaps) >= 5.0
    assert max(gaps) <= 15.0
    assert times[-1] / 999 == pytest.approx(10.0, rel=0.02)


def test_idle_time_saves_up_no_tokens(clock):
    bucket = TokenBucket(360.0, clock, random.Random(0))
    bucket.take()
    clock.wait(36_000)
    times = []
    for _ in range(3):
        bucket.take()
        times.append(clock.now())
    assert times[1] - times[0] >= 5.0
    assert times[2] - times[1] >= 5.0


def test_a_rate_of_zero_is_no_limit(clock):
    bucket = TokenBucket(0.0, clock, random.Random(0))
    for _ in range(10):
        bucket.take()
    assert clock.now() == 0.0


def test_threads_share_one_bucket():
    stop, taken = threading.Event(), []
    bucket = TokenBucket(3600.0 * 50, Clock(stop), random.Random(0))

    def work():
        for _ in range(5):
            bucket.take()
            taken.append(bucket.clock.now())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 20
    assert max(taken) - min(taken) >= 19 * 0.02 * 0.5


def test_refusals_in_a_row_start_pauses_that_double_up_to_a_limit_and_then_end_the_run(breaker):
    # three refusals, then one trial after each of the pauses of 60, 120 and 200 s
    with pytest.raises(BlockedError, match="refuses this client after 3 pauses: 429"):
        refuse(breaker, 10)
    assert breaker.clock.now() == 60.0 + 120.0 + 200.0


def test_there_is_one_request_between_pauses(breaker):
    made = refuse(breaker, 5)
    assert made == [0.0, 0.0, 0.0, 60.0, 180.0]


def test_many_threads_make_one_request_between_pauses(clock):
    gate = Gate(PARAMS.model_copy(update={"clips_per_hour": 0.0}), clock, random.Random(0))
    made, lock = Counter(), threading.Lock()

    def work():
        try:
            while True:
                ticket = gate.enter()
                with lock:
                    made[ticket] += 1
                gate.failed(ticket, BLOCKED)
        except BlockedError:
            clock.stop.set()
        except StoppedError:
            return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert 3 <= made.pop(0) <= 3 + 8  # before the first pause: three in a row, others under way
    assert made == {1: 1, 2: 1, 3: 1}


def test_an_answer_between_refusals_resets_the_count(breaker):
    for _ in range(5):
        refuse(breaker, 2)
        breaker.answered(breaker.enter())
    assert breaker.clock.now() == 0.0


def test_an_answer_after_a_pause_makes_the_next_pause_short_again(breaker):
    refuse(breaker, 4)
    breaker.wait()
    breaker.answered(breaker.enter())
    assert refuse(breaker, 4)[-1] == 60.0 + 120.0 + 60.0


def test_others_wait_for_the_trial_after_a_pause(breaker):
    refuse(breaker, 3)
    breaker.wait()
    trial = breaker.enter()
    assert trial is not None
    assert breaker.enter() is None
    breaker.answered(trial)
    assert breaker.enter() is not None
    assert breaker.enter() is not None


def test_a_trial_that_gets_no_answer_is_followed_by_another(breaker):
    refuse(breaker, 3)
    breaker.wait()
    breaker.unknown(breaker.enter())
    assert breaker.enter() is not None


def test_answers_to_requests_made_before_a_pause_are_ignored(breaker):
    early = [breaker.enter() for _ in range(5)]
    refuse(breaker, 3)
    breaker.answered(early[0])
    assert breaker.refused(early[1], "429", None)
    assert breaker.enter() is None
    breaker.wait()
    assert breaker.clock.now() == 60.0


def test_a_clip_is_to_blame_for_a_refusal_only_while_others_are_served(breaker):
    assert not breaker.refused(breaker.enter(), "429", None)
    refuse(breaker, 2)
    breaker.wait()
    assert breaker.refused(breaker.enter(), "429", None)


@pytest.mark.parametrize(("asked_s", "waited_s"), [(30.0, 30.0), (1e9, 86_400.0)])
def test_retry_after_is_respected_from_the_first_refusal(breaker, asked_s, waited_s):
    made = refuse(breaker, 2, asked_s)
    assert made == [0.0, waited_s]


def test_retry_after_makes_a_pause_longer_but_not_shorter(breaker):
    assert refuse(breaker, 4, 7.0) == [0.0, 7.0, 14.0, 14.0 + 60.0]
    breaker = Breaker(PARAMS, FakeClock())
    assert refuse(breaker, 4, 500.0)[-1] == 1500.0


@pytest.mark.parametrize(
    ("first", "last", "opens_at"),
    [(0, 24, 12), (9, 17, 12), (22, 6, 22), (13.5, 14, 13.5), (5, 12, 29), (6, 6, 12)],
)
def test_requests_wait_for_the_configured_hours(clock, first, last, opens_at):
    Hours(float(first), float(last), clock).enter()
    assert 12 + clock.now() / 3600 == pytest.approx(opens_at)


def test_the_gate_takes_no_token_in_a_pause_and_keeps_the_rate_after_it(clock):
    gate = Gate(PARAMS, clock, random.Random(0))
    for _ in range(3):
        gate.failed(gate.enter(), BLOCKED)
    paused = clock.now()
    trial = gate.enter()
    assert 60.0 <= clock.now() - paused <= 75.0
    gate.answered(trial)
    started = clock.now()
    gate.enter()
    assert clock.now() - started >= 5.0


@pytest.mark.parametrize(("kind", "reset"), [("gone", True), ("no_audio", True),
                                             ("transient", False)])  # fmt: skip
def test_any_answer_resets_the_count_of_refusals(clock, kind, reset):
    gate = Gate(PARAMS, clock, random.Random(0))
    for _ in range(2):
        gate.failed(gate.enter(), BLOCKED)
    gate.failed(gate.enter(), UnavailableError(kind, "x"))
    gate.failed(gate.enter(), BLOCKED)
    assert (gate.breaker.enter() is not None) == reset


def test_back_off_doubles_varies_by_half_and_respects_the_site():
    assert [back_off_s(n, 1.0, None, lambda: 0.5) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert back_off_s(2, 1.0, None, lambda: 0.0) == 1.0
    assert back_off_s(2, 1.0, None, lambda: 1.0) == 3.0
    assert back_off_s(1, 1.0, 20.0, lambda: 0.5) == 20.0
    assert back_off_s(5, 1.0, 3.0, lambda: 0.5) == 16.0


def test_every_wait_ends_when_the_download_stops():
    stop = threading.Event()
    clock = Clock(stop)
    clock.wait(0.0)
    stop.set()
    with pytest.raises(StoppedError):
        clock.wait(1000.0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), (" 120 ", 120.0), (None, None), ("soon", None), ("-5", None), ("", None)],
)
def test_retry_after_is_a_number_of_seconds(header, seconds):
    assert retry_after_s(header) == seconds


def test_retry_after_may_be_a_date():
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert retry_after_s(format_datetime(later, usegmt=True)) == pytest.approx(90, abs=5)
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
