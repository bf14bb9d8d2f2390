"""Every block of the documents is run, or says why not; what needs no machine is checked here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import markdown
import pytest
import yaml
from documents import CHECKED, PAGES, ROOT, Block, all_blocks, blocks

from agentvm_kernel.config import Paths, load_settings

RUN = {"run: host", "run: vm"}


def test_every_block_is_run_or_says_why_not() -> None:
    kinds = RUN | CHECKED | {"run by", "not run"}
    assert [str(one) for one in all_blocks() if one.kind not in kinds] == []


@pytest.mark.parametrize("block", all_blocks("not run"), ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert " " in block.word, "a reason is more than a word"
    pytest.skip(f"{block}: {block.word}")


@pytest.mark.parametrize("block", all_blocks("run by"), ids=str)
def test_the_test_that_runs_a_block_reads_its_page(block: Block) -> None:
    assert block.page.name in (ROOT / block.word).read_text()


@pytest.mark.parametrize("block", all_blocks("toml"), ids=str)
def test_a_configuration_in_the_documents_is_valid(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("URI", "IMAGE", "PROFILE", "ACCELERATOR", "TRANSPORT"):
        monkeypatch.delenv(f"AGENTVM_{name}", raising=False)
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text(block.text)
    load_settings(Paths.of_user())


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_json_in_the_documents_is_json(block: Block) -> None:
    rest = block.text.strip()
    while rest:
        _, end = json.JSONDecoder().raw_decode(rest)
        rest = rest[end:].lstrip()


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_yaml_in_the_documents_is_yaml(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.text), dict)


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_names_in_the_python_of_the_documents_are_defined(block: Block) -> None:
    command = [str(Path(sys.executable).with_name("ruff")), "check", "--isolated", "--select=E9,F", "-"]
    found = subprocess.run(command, input=block.text, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_blocks_are_blocks_in_the_built_documents_too(page: Path) -> None:
    extensions = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["markdown_extensions"]
    html = markdown.markdown(page.read_text(), extensions=[*extensions, "tables"])
    assert "```" not in html
    assert html.count("</pre>") == len(blocks(page))


@pytest.mark.parametrize(("link", "fails"), [("other.md", False), ("nowhere.md", True)])
def test_documents_with_a_broken_link_cannot_be_built(link: str, fails: bool, tmp_path: Path) -> None:
    (told,) = set(re.findall(r"/(mkdocs build .*)", (ROOT / "Makefile").read_text()))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"[a link]({link})")
    (tmp_path / "docs/other.md").write_text("text")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\n")
    command = [str(Path(sys.executable).with_name("mkdocs")), *told.split()[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr


def test_marks_are_read_only_directly_before_a_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run: vm -->\n```text\n%vm\n```\n\n<!-- run: host -->\n\n```bash\ntrue\n```\n")
    first, second = blocks(page)
    assert (first.kind, first.line, second.kind) == ("run: vm", 2, "")


def test_explanations_beside_commands_are_no_part_of_them(tmp_path: Path) -> None:
    block = Block(tmp_path, 1, "text", "agentvm vm show ID    one of them\n…\nagentvm vm kill ID…   all\n", "run", "vm")
    assert list(block.commands({"ID": "vm-1"})) == ["agentvm vm show vm-1", "agentvm vm kill vm-1"]
    cells = Block(tmp_path, 1, "text", "%vm facts         what it cost\n…\n%vm facts on\n", "run", "vm").cells()
    assert cells == ["%vm facts", "%vm facts on"]
    assert Block(tmp_path, 1, "text", "%%fork 2\n1    # x\n", "run", "vm").cells() == ["%%fork 2\n1    # x\n"]
