"""`%report`: the record of the notebook as a document."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ReportError
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics.call import Call
from agentvm_kernel.run.places import permitted

HELP = """%report [NOTEBOOK] [--zip]

Write a report of this notebook beside it: what ran, what it reached, what was blocked, and what the cells show, in one
page that needs no network. Save the notebook first: the report shows what is in its file.

  NOTEBOOK  the notebook's file, where Jupyter has not told which it is
  --zip     one signed file with the notebook, the page and a description for machines

Example:

  %report --zip"""

_VALID: Final = "%report [NOTEBOOK] [--zip]"


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        PlaceError: this notebook may not use that one.
        AgentVMError: nobody knows which notebook this is, or the report could not be made.
    """
    read = call.read(_VALID, most=1, flags={"--zip"})
    name = os.environ.get("JPY_SESSION_NAME", "")
    if not (read.words or name):
        raise ReportError("Nobody has told which notebook this is.", "Say it: %report NOTEBOOK.")
    notebook = permitted(read.words[0]) if read.words else Path(name)
    from agentvm_kernel.report.writing import Wanted, write_report  # noqa: PLC0415 - takes a while to load

    await host.machine.network.audit(1)  # then all that ran is in the log
    wanted = Wanted(packed="--zip" in read.flags)
    written = await asyncio.to_thread(write_report, notebook, None, wanted, Paths.of_user())
    lines = [f"The report is in {path.name}, beside the notebook." for path in written.files]
    lines += ["It shows the notebook as it was saved last.", written.warning()]
    return {"text/plain": "\n".join(filter(None, lines))}
