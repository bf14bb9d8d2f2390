"""What anomalies.md, facts.md, network.md and output.md say is shown, is what the code shows."""

from __future__ import annotations

import json
from collections import Counter

from documents import all_blocks
from firewall_bed import Said

from agentvm_kernel.anomalies import shipped
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.firewall.html import clean_html
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.firewall.policy import note as left_out
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel.anomaly import noticed
from agentvm_kernel.kernel.facts import CellFacts
from agentvm_kernel.kernel.footer import line
from agentvm_kernel.kernel.network import note
from agentvm_kernel.supervisor.messages import Blocked, Noticed


def shown_in(page: str) -> list[str]:
    own = f"tests/unit/{__name__.rpartition('.')[2]}.py"
    return [one.text for one in all_blocks("run by") if (one.page.name, one.word) == (page, own)]


def test_the_note_about_an_anomaly() -> None:
    rule = next(one for one in shipped() if one.name == "unattended-cpu")
    event = Noticed(
        vm="vm-1", rule=rule.name, severity=rule.severity, text=rule.description, value=99.2,
        threshold=rule.threshold, response="note",
    )  # fmt: skip
    assert shown_in("anomalies.md") == [noticed(event)]


def test_the_line_that_says_what_a_cell_cost() -> None:
    facts = CellFacts(
        seconds=3.21, cpu_seconds=3.05, memory_peak=412_000_000, memory_grown=200_000_000, network_sent=1200,
        network_received=50_000_000, disk_read=0, disk_written=100_000_000, hosts=("pypi.org",), host_count=1,
    )  # fmt: skip
    assert shown_in("facts.md") == [f"{line(facts)}\n"]


def test_the_note_about_a_refused_connection() -> None:
    event = Blocked(name="data.example.org", port=443, reason="", hint="%net allow data.example.org")
    assert shown_in("network.md") == [note([event])]


def test_the_note_about_output_that_was_left_out_and_the_mark_beside_a_link() -> None:
    blocked: Counter[tuple[Reason, str]] = Counter()
    for _ in range(2):
        content = json.dumps({"data": {"application/x-unknown": "1"}, "metadata": {}}).encode()
        Firewall(Policy()).output("display_data", content, b"{}", [], lambda *what: blocked.update([what]))
    link = clean_html('<a href="https://evil.example/">https://good.example</a>', Said().context)
    assert link is not None
    assert shown_in("output.md") == [left_out(blocked), f"{link.partition('>')[2].removesuffix('</a>')}\n"]
