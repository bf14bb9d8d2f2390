"""`%adopt`: which fork is meant."""

from __future__ import annotations

import pytest

from agentvm_kernel.kernel.execution import CellResult
from agentvm_kernel.kernel.forks import ForkResult
from agentvm_kernel.magics import adopt
from agentvm_kernel.magics.call import Call, UsageError
from agentvm_kernel.magics.fork import scores
from agentvm_kernel.magics.registry import Registry


def call_of(code: str) -> Call:
    magic = Registry().find(code)
    assert magic is not None
    return magic.call  # type: ignore[attr-defined]


def test_only_kept_forks_with_a_finite_number_have_a_score() -> None:
    texts = {1: "3.5", 2: "-1", 3: "nan", 4: "text", 5: "7", 6: "1" * 400, 7: "inf", 8: ""}
    results = [ForkResult(fork, CellResult("ok", result=text), kept=fork != 5) for fork, text in texts.items()]
    assert scores(results) == {1: 3.5, 2: -1.0}


@pytest.mark.parametrize(("word", "fork"), [("min", 2), ("max", 3), ("1", 1), ("64", 64)])
def test_a_fork_is_named_by_number_or_by_its_result(word: str, fork: int) -> None:
    assert adopt._choose(call_of("%adopt 1"), word, {1: 3.5, 2: -1.0, 3: 8.0}) == fork


def test_without_numbers_there_is_no_best_fork() -> None:
    with pytest.raises(UsageError, match="gave a number"):
        adopt._choose(call_of("%adopt max"), "max", {})


def test_a_fork_of_another_run_is_not_taken_for_one_of_the_last() -> None:
    call = call_of("%adopt 1 --of 7")
    adopt._check_run(call, "7", 7)
    for of, forked in (("7", 8), ("7", 0)):
        with pytest.raises(UsageError, match="forks of run 7 are gone"):
            adopt._check_run(call, of, forked)


@pytest.mark.parametrize("of", ["0", "-1", "x", "٣"])
def test_a_run_is_named_by_its_number(of: str) -> None:
    with pytest.raises(UsageError, match="--of RUN"):
        adopt._check_run(call_of("%adopt 1"), of, 0)


@pytest.mark.parametrize("word", ["0", "-1", "best", "100", "٣"])
def test_anything_else_is_told_what_is_valid(word: str) -> None:
    with pytest.raises(UsageError, match="min"):
        adopt._choose(call_of("%adopt 1"), word, {1: 1.0})
