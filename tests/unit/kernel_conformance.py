"""jupyter_kernel_test against the kernel and against plain ipykernel, compared test by test."""

from __future__ import annotations

import unittest
from typing import Any

import jupyter_kernel_test


class PythonTests(jupyter_kernel_test.KernelTests):
    """The samples; the same for both kernels."""

    __test__ = False
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]  # noqa: RUF012
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = [  # noqa: RUF012
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data = [  # noqa: RUF012
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('\\\\frac{1}{2}'))", "mime": "text/latex"},
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.kc.execute_interactive("0", timeout=120)  # the first cell waits for the VM


class Welcome(jupyter_kernel_test.IopubWelcomeTests):
    __test__ = False
    support_iopub_welcome = True


class Outcomes(unittest.TestResult):
    """Collects an outcome for each test and subtest."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def _note(self, test: Any, outcome: str, error: Any = None) -> None:
        name = str(test.id()).removeprefix(f"{type(test).__module__}.").split(".", 1)[-1]
        self.outcomes[name] = outcome
        if error:
            self.details[name] = "".join(self._exc_info_to_string(error, test))  # type: ignore[attr-defined]

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        self._note(test, "passed")

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._note(test, "failed", err)

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        self._note(test, "error", err)

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self._note(test, "skipped")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        part = str(subtest).split(") ", 1)[-1]
        self._note(test, "passed")
        name = f"{test._testMethodName} {part}"
        self.outcomes[name] = "failed" if err else "passed"
        if err:
            self.details[name] = str(self._exc_info_to_string(err, test))  # type: ignore[attr-defined]


def outcomes(kernel_name: str) -> Outcomes:
    """Run everything against a kernel."""
    result = Outcomes()
    suite = unittest.TestSuite()
    for base in (PythonTests, Welcome):
        case = type(base.__name__, (base,), {"kernel_name": kernel_name})
        suite.addTest(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    suite.run(result)
    return result


def check_conformance() -> None:
    """Fail unless both kernels give the same outcome in every test and subtest."""
    plain, ours = outcomes("python3"), outcomes("agentvm")
    assert len([name for name in plain.outcomes if " " not in name]) >= 13
    differing = [name for name in plain.outcomes if ours.outcomes.get(name) != plain.outcomes[name]]
    assert ours.outcomes == plain.outcomes, "\n".join(ours.details.get(name, name) for name in differing)
