"""``python -m agentvm_kernel.image build FLAVOUR``: builds an image and says where it is; for developers."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.image import ImageStore


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    store = ImageStore(Paths.of_user().cache)
    if arguments == ["list"]:
        for image in store.images():
            print(image.digest, image.flavour, image.folder)
        return 0
    if len(arguments) != 2 or arguments[0] != "build":
        print("Usage: python -m agentvm_kernel.image build FLAVOUR | list", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def show(stage: str, done: float | None) -> None:
            if not console.is_terminal and done is None:
                console.print(stage)
            bars.update(task, description=stage, total=None if done is None else 1.0, completed=done or 0.0)

        try:
            image = store.build(arguments[1], show)
        except AgentVMError as error:
            console.print(str(error), style="red")
            return 1
    print(image.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
