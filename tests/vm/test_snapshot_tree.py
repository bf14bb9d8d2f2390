"""A notebook's snapshots form a tree of its own, in which every state can be reached from every other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping

import pytest
from kernel_client import Notebook, notebook
from travel import back, named, ok, refused, saved, told, value
from vms import shut_down

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(400)

CHAIN = 50
STATE = "(state, open('/home/agent/state').read())"


@pytest.fixture(scope="module")
def nb(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(named(vm_environment, "/tests/tree.ipynb")) as running:
        yield running


def enter(nb: Notebook, state: str) -> None:
    """Be in a state of that name, in memory and on disk."""
    ok(nb, f"state = {state!r}\nopen('/home/agent/state', 'w').write(state)\nimport os; os.sync()")


def test_a_chain_of_fifty_can_be_walked_in_any_order(nb: Notebook) -> None:
    names = [f"link-{number}" for number in range(CHAIN)]
    for name in names:
        enter(nb, name)
        saved(nb, name)
    order = random.Random(3).sample(names, k=CHAIN)
    for name in order:
        back(nb, name)
        assert value(nb, STATE) == (name, name)
    assert told(nb, "%snapshots").count("○ link-") + 1 == CHAIN


def test_branches_grow_from_where_one_went_back_to(nb: Notebook) -> None:
    enter(nb, "trunk")
    saved(nb, "trunk")
    for branch in ("left", "right"):
        for height in (1, 2):
            enter(nb, f"{branch}-{height}")
            saved(nb, f"{branch}-{height}")
        back(nb, "trunk")
        assert value(nb, STATE) == ("trunk", "trunk")
    for name in ("right-2", "left-1", "left-2", "right-1", "right-2"):
        back(nb, name)
        assert value(nb, STATE) == (name, name)
    back(nb, "~2")
    assert value(nb, STATE) == ("trunk", "trunk")
    tree = told(nb, "%snapshots")
    assert "├─○ left-1" in tree or "├─○ right-1" in tree
    assert "● trunk" in tree


def test_a_rollback_can_be_rolled_back(nb: Notebook) -> None:
    enter(nb, "early")
    early = saved(nb, "early")
    enter(nb, "late")
    late = saved(nb, "late")
    assert back(nb, early).metadata["agentvm"]["snapshot"] == early
    assert value(nb, STATE) == ("early", "early")
    assert back(nb, late).metadata["agentvm"]["snapshot"] == late
    assert value(nb, STATE) == ("late", "late")
    # Without a name it goes to the newest snapshot of the present branch, again and again.
    enter(nb, "lost")
    back(nb, "")
    assert value(nb, STATE) == ("late", "late")
    enter(nb, "lost again")
    back(nb, "")
    assert value(nb, STATE) == ("late", "late")


def test_a_plan_changes_nothing(nb: Notebook) -> None:
    enter(nb, "planned")
    saved(nb, "planned")
    enter(nb, "beyond")
    saved(nb, "beyond")
    ok(nb, "state = 'unsaved'")
    plan = told(nb, "%rollback planned --dry-run")
    assert "state = 'unsaved'" in plan
    assert "beyond" in plan
    assert value(nb, STATE) == ("unsaved", "beyond")


def test_the_count_goes_back_and_the_run_number_does_not(nb: Notebook) -> None:
    ok(nb, "counted = 1")
    saved(nb, "counted")
    first = ok(nb, "counted += 1")
    ok(nb, "counted += 1")
    returned = back(nb, "counted")
    again = ok(nb, "counted += 1")
    assert again.reply["execution_count"] == first.reply["execution_count"]
    runs = [cell.metadata["agentvm"]["run"] for cell in (first, returned, again)]
    assert runs == sorted(set(runs))


def test_cells_are_taken_back_one_by_one(nb: Notebook) -> None:
    told(nb, "%timetravel on")
    for number in range(4):
        ok(nb, f"step = {number}\nopen('/home/agent/step', 'w').write(str(step))")
    assert nb.run("del step\n1/0").status == "error"
    step = "(step, open('/home/agent/step').read())"
    told(nb, "%undo")
    assert value(nb, step) == (3, "3")
    told(nb, "%undo 3")  # the look was a cell, too
    assert value(nb, step) == (1, "1")
    told(nb, "%timetravel off")


@pytest.mark.parametrize(
    "label",
    [
        pytest.param("../evil", id="upwards"),
        pytest.param("/etc/evil", id="absolute"),
        pytest.param("a\0b", id="nul"),
        pytest.param("a" * 300, id="long"),
        pytest.param("\N{CYRILLIC SMALL LETTER A}bc", id="look-alike"),
        pytest.param("a\N{RIGHT-TO-LEFT OVERRIDE}b", id="override"),
        pytest.param("-rf", id="dash"),
        pytest.param("'two words'", id="words"),
        pytest.param("~1", id="steps"),
        pytest.param("0123456789ab", id="looks like an id"),
    ],
)
def test_a_label_that_is_none_is_refused_in_one_line(nb: Notebook, label: str) -> None:
    before = told(nb, "%snapshots").splitlines()
    line = refused(nb, f"%snapshot {label}")
    assert "label" in line.lower()
    assert line.isprintable()
    assert len(told(nb, "%snapshots").splitlines()) == len(before)


def test_a_label_is_given_once(nb: Notebook) -> None:
    saved(nb, "unique")
    assert "taken" in refused(nb, "%snapshot unique")
    assert "There is no snapshot" in refused(nb, "%rollback nowhere")


def test_notebooks_do_not_see_each_others_snapshots(nb: Notebook, vm_environment: Mapping[str, str]) -> None:
    enter(nb, "mine")
    name = saved(nb, "mine")
    with notebook(named(vm_environment, "/tests/other.ipynb")) as other:
        assert told(other, "%snapshots").startswith("This notebook has no snapshots yet")
        for to in ("mine", name, name[:6], "~1", ""):
            assert "There is no" in refused(other, f"%rollback {to}")
        enter(other, "theirs")
        saved(other, "mine")  # a name of its own tree
        assert name not in told(other, "%snapshots")
        enter(other, "later")
        back(other, "mine")
        assert value(other, STATE) == ("theirs", "theirs")
    enter(nb, "later")
    back(nb, "mine")
    assert value(nb, STATE) == ("mine", "mine")


def test_a_notebook_finds_its_snapshots_again(vm_environment: Mapping[str, str], vm_paths: Paths) -> None:
    environment = named(vm_environment, "/tests/again.ipynb")
    with notebook(environment) as first:
        enter(first, "kept")
        saved(first, "kept")
        enter(first, "more")
        name = saved(first, "more")
        first.manager.restart_kernel()
        first.client.wait_for_ready(timeout=60)
        assert first.run("state").reply["ename"] == "NameError"
        back(first, "kept")
        assert value(first, STATE) == ("kept", "kept")
    asyncio.run(shut_down(vm_paths))
    with notebook(environment) as second:
        assert name in told(second, "%snapshots")
        back(second, "more")
        assert value(second, STATE) == ("more", "more")
        enter(second, "newest")
        saved(second, "newest")
        back(second, "~")
        assert value(second, STATE) == ("more", "more")
