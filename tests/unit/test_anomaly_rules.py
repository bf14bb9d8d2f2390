"""The anomaly detector: each rule fires, does not fire just below, and tells of an episode once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.anomalies import AnomalySettings, Rule, RuleChange, shipped
from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import ConfigError
from agentvm_kernel.observe.anomaly.detector import Anomaly, Detector
from agentvm_kernel.observe.anomaly.judges import Deviation
from agentvm_kernel.observe.anomaly.moment import Moment, Moments
from agentvm_kernel.observe.anomaly.reading import Contact, Reading
from agentvm_kernel.observe.anomaly.trace import Step, Trace


def only(name: str, **changes: object) -> AnomalySettings:
    """Settings in which one rule is looked at."""
    rules = {rule.name: RuleChange(enabled=rule.name == name) for rule in shipped()}
    rules[name] = RuleChange.model_validate(changes)
    return AnomalySettings(rules=rules)


def look(settings: AnomalySettings, steps: Iterable[Step]) -> list[Anomaly]:
    detector = Detector(settings)
    return [anomaly for reading, contacts in steps for anomaly in detector.look(reading, contacts)]


def counting(metric: str, amounts: Iterable[float], **same: float) -> Iterator[Step]:
    """Readings of a counter that grows by these amounts, a second each."""
    total = 0.0
    yield Reading(0.0, **same)._replace(**{metric: 0.0}), ()
    for second, amount in enumerate(amounts, 1):
        total += amount
        yield Reading(float(second), **same)._replace(**{metric: total}), ()


def level(metric: str, values: Iterable[float], **same: float) -> Iterator[Step]:
    for second, value in enumerate(values):
        yield Reading(float(second), **same)._replace(**{metric: value}), ()


def contacts(
    times: Iterable[float], end: int, host: str = "a.example", port: int = 443, verdict: str = "allowed"
) -> list[Step]:
    """A reading a second, with connections at these times."""
    wanted = [
        Contact(time, number, host, port, verdict)  # type: ignore[arg-type]
        for number, time in enumerate(times)
    ]
    return [
        (Reading(float(now)), tuple(contact for contact in wanted if now - 1 < contact.time <= now))
        for now in range(end)
    ]


def names(found: Iterable[Anomaly]) -> list[str]:
    return [anomaly.rule.name for anomaly in found]


# Rules by their kinds


@pytest.mark.parametrize("metric", ["cpu_percent", "cpu_wanted"])
def test_cpu_without_a_cell_is_found_after_a_minute_and_not_before(metric: str) -> None:
    (found,) = look(only("unattended-cpu"), level(metric, [99.0] * 200))
    assert (found.time, found.value) == (60, pytest.approx(99))
    assert look(only("unattended-cpu"), level(metric, [99.0] * 60)) == []
    assert look(only("unattended-cpu"), level(metric, [94.0] * 200)) == []


def test_cpu_of_a_cell_is_none_of_its_business() -> None:
    assert look(only("unattended-cpu"), level("cpu_percent", [100.0] * 200, executing=1)) == []


def test_cells_in_between_do_not_hide_what_computes_between_them() -> None:
    steps = [(Reading(float(now), cpu_percent=100, executing=float(now % 40 < 20)), ()) for now in range(200)]
    assert names(look(only("unattended-cpu"), steps)) == ["unattended-cpu"]


def test_a_moments_rest_in_ten_does_not_hide_it_and_more_does() -> None:
    for resting, expected in ((10, ["unattended-cpu"]), (5, [])):
        values = [0.0 if second % resting == 0 else 99.0 for second in range(300)]
        assert names(look(only("unattended-cpu"), level("cpu_percent", values))) == expected


@pytest.mark.parametrize(
    ("rule", "metric", "seconds", "limit"),
    [
        ("bulk-upload", "network_sent", 10, 100e6),
        ("slow-upload", "network_sent", 600, 40e6),
        ("refused-connections", "refused", 30, 100),
        ("output-flood", "output", 10, 100e6),
        ("disk-fill", "disk_space", 60, 1e9),
        ("process-storm", "processes", 5, 1000),
    ],
)
def test_too_much_within_a_window(rule: str, metric: str, seconds: int, limit: float) -> None:
    just = [limit / seconds * 0.999] * (seconds * 3)
    assert look(only(rule), counting(metric, just)) == []
    (found,) = look(only(rule), counting(metric, [amount * 1.01 for amount in just]))
    assert found.rule.name == rule
    assert found.value > limit
    (again,) = look(only(rule), counting(metric, [limit * 1.01, *[0.0] * 30]))
    assert again.time == 1


def test_what_is_received_makes_up_for_what_is_sent() -> None:
    steps = [(Reading(float(now), network_sent=now * 1e6, network_received=now * 2e6), ()) for now in range(700)]
    assert look(only("slow-upload"), steps) == []


def test_processes_are_marked_as_claimed_and_unknown_where_the_guest_says_nothing() -> None:
    (found,) = look(only("process-storm"), counting("processes", [300.0] * 10))
    assert found.rule.is_claimed
    assert look(only("process-storm"), level("processes", [-1.0, 5000.0])) == []


@pytest.mark.parametrize("by", ["host", "port"])
def test_a_scan_is_many_targets_not_many_attempts(by: str) -> None:
    def scan(number: int, step: int) -> list[Step]:
        return [
            (
                Reading(float(now)),
                (
                    Contact(
                        now - 0.5, now, f"h{now % number}.example" if by == "host" else "h.example",
                        now % number if by == "port" else 1, "refused",
                    ),
                ),
            )
            for now in range(0, 100 * step, step)
        ]  # fmt: skip

    assert names(look(only("port-scan"), scan(26, 1))) == ["port-scan"]
    assert look(only("port-scan"), scan(25, 1)) == []
    assert look(only("port-scan"), scan(60, 2)) == []


def test_a_connection_counts_once_whether_it_is_told_of_once_or_twice() -> None:
    moments = Moments((), ())
    opened = Contact(0.5, 1, "a.example", 443, "allowed")
    refused = Contact(0.6, 2, "a.example", 443, "refused", is_over=True)
    moments.take(Reading(0.0), ())
    first = moments.take(Reading(1.0), (opened, refused))
    second = moments.take(Reading(2.0), (opened._replace(is_over=True),))
    assert first is not None
    assert second is not None
    assert (first.arrivals, second.arrivals) == ((opened, refused), ())


@pytest.mark.parametrize("times", [(0.0, 1.0), (5.0, 4.0, 5.0), (0.0, 0.0, 1.0)])
def test_what_was_wanted_before_there_is_anything_to_compare_belongs_to_the_next_moment(
    times: tuple[float, ...],
) -> None:
    moments = Moments((), ())
    wanted = Contact(0.5, 1, "a.example", 443, "allowed")
    taken = [moments.take(Reading(time), (wanted,) if index == 0 else ()) for index, time in enumerate(times)]
    assert [moment.arrivals for moment in taken if moment is not None] == [(wanted,)]


def test_targets_that_are_allowed_are_no_scan() -> None:
    steps = [(Reading(float(now)), (Contact(now, now, f"h{now}.example", 443, "allowed"),)) for now in range(100)]
    assert look(only("port-scan"), steps) == []


@pytest.mark.parametrize("verdict", ["allowed", "refused"])
def test_a_beacon_is_found_by_its_regularity(verdict: str) -> None:
    early_and_late = [30 * number + (2 if number % 2 else -2) for number in range(1, 20)]
    (found,) = look(only("beacon"), contacts(early_and_late, 600, verdict=verdict))
    assert found.about == "a.example"
    assert found.time == pytest.approx(9 * 30 + 3, abs=3)
    unsteady = [30 * number + (9 if number % 2 else -9) for number in range(1, 20)]
    assert look(only("beacon"), contacts(unsteady, 600, verdict=verdict)) == []


def test_a_dozen_connections_at_once_are_one_visit_and_many_visits_a_second_no_beacon() -> None:
    assert look(only("beacon"), contacts([number * 0.5 for number in range(20)], 60)) == []
    visits = [20.0 * number + extra for number in range(1, 20) for extra in (0.0, 0.1, 0.2)]
    assert names(look(only("beacon"), contacts(visits, 400))) == ["beacon"]


def test_a_beacon_that_has_stopped_is_over_and_a_new_one_is_told_again() -> None:
    times = [*(10.0 * n for n in range(1, 15)), *(2000 + 10.0 * n for n in range(1, 15))]
    assert names(look(only("beacon"), contacts(times, 2300))) == ["beacon", "beacon"]


@pytest.mark.parametrize(
    ("host", "port", "length", "expected"),
    [
        ("a.example", 3333, 200, ["mining-cpu"]),
        ("a.example", 443, 200, []),
        ("a.example", 3333, 10, []),
        ("eu.supportxmr.example", 443, 200, ["mining-cpu"]),
    ],
)
def test_a_miner_computes_and_is_connected_even_while_a_cell_runs(
    host: str, port: int, length: int, expected: list[str]
) -> None:
    opened = Contact(5.0, 1, host, port, "allowed")
    steps = [
        (
            Reading(float(now), cpu_percent=90, executing=1),
            (opened,) if now == 5 else (opened._replace(is_over=True),) if now == 5 + length else (),
        )
        for now in range(120)
    ]
    assert names(look(only("mining-cpu"), steps)) == expected


def test_a_miners_host_is_told_even_if_it_is_refused() -> None:
    steps = contacts([5.0], 20, host="pool.minexmr.example", verdict="refused")
    assert names(look(only("mining-name"), steps)) == ["mining-name"]
    assert look(only("mining-name"), contacts([5.0], 20, host="data.example")) == []


# What is usual in a VM


def test_what_is_unusual_is_found_only_once_it_is_known_what_is_usual() -> None:
    at_once = only("unusual-refusals", window=1)
    assert look(at_once, counting("refused", [*[0.0] * 50, 50.0])) == []
    assert names(look(at_once, counting("refused", [*[0.0] * 60, 50.0]))) == ["unusual-refusals"]
    settings = only("unusual-refusals")
    quiet = [float(second % 2) for second in range(100)]
    (found,) = look(settings, counting("refused", [*quiet, *[20.0] * 30]))
    assert 105 <= found.time <= 112
    assert look(settings, counting("refused", [*quiet, *[3.0] * 30])) == []
    assert look(settings, counting("refused", [*quiet, *[20.0] * 3, *[0.0] * 30])) == []


def test_a_series_that_never_changes_has_no_verdict_by_division() -> None:
    settings = only("unusual-refusals")
    assert look(settings, counting("refused", [0.0] * 300)) == []
    assert names(look(only("unusual-refusals", floor=0), counting("refused", [*[0.0] * 100, *[1.0] * 20]))) == [
        "unusual-refusals"
    ]


def test_what_goes_on_for_long_becomes_usual() -> None:
    rule = next(rule for rule in shipped() if rule.name == "unusual-refusals")
    judge = Deviation(rule)
    values = [0.0] * 100 + [20.0] * 2000
    verdicts = [judge.look(Moment(float(n), 1.0, {"refused": value}, ())).is_on for n, value in enumerate(values)]
    assert verdicts[120]
    assert not verdicts[-1]


# Episodes


def test_an_episode_is_told_once_and_again_after_a_calm() -> None:
    storm = [10.0] * 100
    assert names(look(only("refused-connections"), counting("refused", storm * 5))) == ["refused-connections"]
    short = [*storm, *[0.0] * 40, *storm]
    assert names(look(only("refused-connections"), counting("refused", short))) == ["refused-connections"]
    calm = [*storm, *[0.0] * 120, *storm]
    assert names(look(only("refused-connections"), counting("refused", calm))) == ["refused-connections"] * 2


def test_a_counter_that_begins_anew_and_a_clock_that_is_set_back_do_no_harm() -> None:
    settings = only("bulk-upload")
    steps = [Reading(1.0, network_sent=1e9), Reading(2.0, network_sent=0.0), Reading(3.0, network_sent=1e6)]
    assert look(settings, [(one, ()) for one in steps]) == []
    back = [Reading(5000.0), Reading(10.0), Reading(11.0, network_sent=2e8), Reading(11.0, network_sent=9e9)]
    assert names(look(settings, [(one, ()) for one in back])) == ["bulk-upload"]
    usual = [reading for reading, _ in counting("refused", [0.0, 1.0] * 50)]
    later = [reading._replace(time=reading.time + 5000) for reading in usual]
    assert look(only("unusual-refusals"), [(one, ()) for one in (*later, *usual)]) == []


@given(
    st.lists(
        st.builds(
            Reading,
            time=st.floats(0, 1e4),
            cpu_percent=st.floats(0, 400),
            network_sent=st.floats(0, 1e12),
            refused=st.floats(0, 1e6),
            processes=st.floats(-1, 1e6),
        ),
        max_size=30,
    )
)
def test_no_series_breaks_it(readings: list[Reading]) -> None:
    look(AnomalySettings(), [(one, (Contact(one.time, 1, "a", 1, "refused"),)) for one in readings])


def test_what_a_guest_can_make_up_does_not_pile_up() -> None:
    detector = Detector(AnomalySettings())
    for now in range(30):
        many = [Contact(float(now), now * 5000 + n, f"h{now}-{n}.example", 1, "allowed") for n in range(5000)]
        detector.look(Reading(float(now)), many)
    sizes = [len(getattr(episode.judge, name, ())) for episode in detector._episodes for name in ("_seen", "_arrivals")]
    assert max(sizes) <= 4096
    assert len(detector._moments._open) <= 1024


# Configuration


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "config.toml"))
    return Paths.of_user()


def test_the_shipped_rules_are_valid_and_hold_by_default() -> None:
    assert AnomalySettings().effective() == shipped()
    assert {rule.kind for rule in shipped()} == {"above", "sum", "distinct", "regular", "deviation"}
    assert AnomalySettings(enabled=False).effective() == ()


def test_a_rule_can_be_changed_switched_off_and_added(paths: Paths) -> None:
    paths.config.write_text(
        """
[anomalies]
critical = "pause"
[anomalies.rules.beacon]
enabled = false
[anomalies.rules.bulk-upload]
threshold = 5
[anomalies.rules.own]
kind = "sum"
metric = "disk_written"
threshold = 7
window = 3
severity = "critical"
description = "writes"
"""
    )
    settings = load_settings(paths).anomalies
    rules = {rule.name: rule for rule in settings.effective()}
    assert "beacon" not in rules
    before = next(rule for rule in shipped() if rule.name == "bulk-upload")
    assert rules["bulk-upload"] == before.model_copy(update={"threshold": 5})
    assert names(look(settings, counting("disk_written", [8.0]))) == ["own"]
    assert isinstance(rules["own"], Rule)
    assert settings.action(rules["own"].severity) == "pause"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[anomalies]\nwarning = 'shout'", 'config.toml:2: anomalies.warning is "shout", but must be "audit", "note"'),
        (
            "[anomalies.rules.own]\nkind = 'sum'\nmetric = 'refused'\nthreshold = 3\nwindow = 9\nseverity = 'info'",
            "config.toml:1: anomalies.rules.own.description is missing; it must be a text",
        ),
        (
            "[anomalies.rules.beacon]\n\nmetric = 'memory'",
            "config.toml:3: anomalies.rules.beacon.metric: a rule of kind regular looks at one of refused_targets, ta",
        ),
        ("[anomalies.rules.beacon]\nwindow = 0", "config.toml:2: anomalies.rules.beacon.window is 0, but must be a n"),
        ("[anomalies.rules.beacon]\ntreshold = 1", "config.toml:2: There is no 'treshold' in anomalies.rules.beacon."),
        ("[anomalies.rules.'My Own']\nwindow = 3", "config.toml:1: anomalies.rules.My Own has a name that is not val"),
    ],
)
def test_a_mistake_is_said_with_its_line(paths: Paths, text: str, said: str) -> None:
    paths.config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(paths)
    assert said in caught.value.message


# Traces


def test_a_trace_is_what_was_put_in() -> None:
    contact = Contact(0.5, 1, "a.example", 443, "refused", True, 3)
    trace = Trace("name", "kind", 3.0, True, ((Reading(0.0, cpu_percent=1.5), ()), (Reading(1.0), (contact,))))
    lines = list(trace.dump())
    assert Trace.load(lines) == trace
    assert all(json.loads(line) for line in lines)
