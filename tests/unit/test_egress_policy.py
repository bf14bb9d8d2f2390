"""What a policy says about a name and a port."""

from __future__ import annotations

import pytest

from agentvm_kernel.egress.access import Access, AccessLimits, BudgetError
from agentvm_kernel.egress.defaults import default_rules
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.policy import Mode, Policy, Rule, Source, Verdict

_ORG = Pattern.parse("example.org")


def test_what_no_rule_allows_is_refused_with_the_remedy() -> None:
    decision = Policy().decide("example.org", 443)
    assert not decision.allowed
    assert decision.hint == "%net allow example.org"
    assert Policy().decide("example.org", 8080).hint == "%net allow example.org:8080"


@pytest.mark.parametrize("port", [22, 80, 443, 9418])
def test_a_rule_without_ports_is_about_the_usual_ones(port: int) -> None:
    assert Policy().allow(_ORG).decide("example.org", port).allowed


@pytest.mark.parametrize("port", [21, 25, 8080])
def test_other_ports_are_refused_by_number(port: int) -> None:
    decision = Policy().allow(_ORG).decide("example.org", port)
    assert not decision.allowed
    assert decision.reason == f"Port {port} of example.org is not allowed."
    assert Policy().allow(Pattern.parse(f"example.org:{port}")).decide("example.org", port).allowed


def test_deny_wins_wherever_it_stands() -> None:
    deny = Rule(Pattern.parse("**.org"), Verdict.DENY, Source.CONFIGURATION)
    allow = Rule(_ORG, Verdict.ALLOW, Source.SESSION)
    for rules in ([deny, allow], [allow, deny]):
        decision = Policy().plus(rules).decide("example.org", 443)
        assert not decision.allowed
        assert decision.rule == deny
        assert "configuration" in decision.hint


def test_allow_takes_back_the_sessions_own_deny_and_no_other() -> None:
    denied = Policy().plus(default_rules()).deny(Pattern.parse("pypi.org"))
    decision = denied.decide("pypi.org", 443)
    assert decision.hint == "%net allow pypi.org takes that back."
    assert denied.allow(Pattern.parse("pypi.org")).decide("pypi.org", 443).allowed
    elsewhere = Policy().plus([Rule(_ORG, Verdict.DENY, Source.CONFIGURATION)]).allow(_ORG)
    assert not elsewhere.decide("example.org", 443).allowed


def test_a_cells_rules_go_with_the_cell() -> None:
    policy = Policy().allow(_ORG, Source.CELL)
    assert policy.decide("example.org", 443).allowed
    assert not policy.without(Source.CELL).decide("example.org", 443).allowed


@pytest.mark.parametrize("mode", list(Mode))
def test_raw_addresses_are_never_allowed(mode: Mode) -> None:
    assert not Policy(mode).decide(None, 443).allowed


def test_isolated_refuses_all_and_record_only_all_but_what_is_denied() -> None:
    rules = (Rule(_ORG), Rule(Pattern.parse("evil.example"), Verdict.DENY))
    assert not Policy(Mode.ISOLATED, rules).decide("example.org", 443).allowed
    record = Policy(Mode.RECORD_ONLY, rules)
    assert record.decide("any.example", 8443).allowed
    assert not record.decide("evil.example", 443).allowed


def test_the_rule_that_names_the_host_best_decides() -> None:
    wide = Rule(Pattern.parse("**.example.org"), source=Source.CELL)
    near = Rule(Pattern.parse("a.example.org"), source=Source.DEFAULT, max_bytes=10)
    assert Policy().plus([near, wide]).decide("a.example.org", 443).rule == near


@pytest.mark.parametrize("name", ["pypi.org", "files.pythonhosted.org", "registry.npmjs.org", "deb.debian.org",
                                  "archive.ubuntu.com", "index.crates.io", "github.com", "gitlab.com",
                                  "huggingface.co", "api.openai.com"])  # fmt: skip
def test_the_shipped_list_has_what_agents_need(name: str) -> None:
    assert Policy().plus(default_rules()).decide(name, 443).allowed


async def test_budgets_hold_per_rule_and_in_all() -> None:
    rule = Rule(_ORG, max_bytes=100)
    access = Access("s", "n", "v", Policy().plus([rule]), AccessLimits(max_bytes=150))
    reached: list[str] = []
    access.on_limit = reached.append
    access.account(rule, 60, 40)
    with pytest.raises(BudgetError, match=r"example\.org"):
        access.account(rule, 1, 0)
    access.account(None, 0, 50)
    with pytest.raises(BudgetError, match="session"):
        access.account(None, 0, 1)
    assert (access.counters.bytes_sent, access.counters.bytes_received) == (60, 90)
    assert reached == ["max_bytes", "max_bytes"]


async def test_bytes_beyond_the_rate_are_to_wait() -> None:
    access = Access("s", "n", "v", Policy(), AccessLimits(bytes_per_second=1000))
    assert access.account(None, 1000, 0) == 0
    assert access.account(None, 0, 1_000_000) > 900
