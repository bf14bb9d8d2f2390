"""Secrets: kept where only the user can read them, put into one header of requests to one host, shown nowhere."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import keyring.errors
import pytest
from click.testing import Result
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.config import Paths
from agentvm_kernel.egress.secrets import FILE, SecretStore
from agentvm_kernel.errors import AgentVMError, HostError, SecretError

VALUE = "sk-live-0123456789abcdef"


class MemoryKeyring(keyring.backend.KeyringBackend):
    """A keyring in memory."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise keyring.errors.KeyringLocked
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def ring() -> Iterator[MemoryKeyring]:
    before = keyring.get_keyring()
    ring = MemoryKeyring()
    keyring.set_keyring(ring)
    yield ring
    keyring.set_keyring(before)


@pytest.fixture
def no_ring(ring: MemoryKeyring) -> None:
    keyring.set_keyring(keyring.backends.fail.Keyring())


def store_in(folder: Path) -> SecretStore:
    return SecretStore(folder, "tag")


def test_a_keyring_keeps_the_value_and_the_list_does_not(tmp_path: Path, ring: MemoryKeyring) -> None:
    entry = store_in(tmp_path).put("API_KEY", "api.example.org", 443, "Authorization", VALUE)
    assert entry.kept == "keyring"
    assert ring.kept == {("agentvm-tag", "API_KEY"): VALUE}
    assert VALUE not in (tmp_path / FILE).read_text()
    headers, _ = (
        store_in(tmp_path).of_host("api.example.org", 443).insert([(b"Authorization", b"agentvm-secret-API_KEY")])
    )
    assert headers == [(b"Authorization", VALUE.encode())]
    store_in(tmp_path).remove("API_KEY")
    assert not ring.kept
    assert store_in(tmp_path).entries() == ()


@pytest.mark.parametrize("backend", [keyring.backends.fail.Keyring, keyring.backends.null.Keyring])
def test_without_a_keyring_a_private_file_keeps_it(
    tmp_path: Path, ring: MemoryKeyring, backend: type[keyring.backend.KeyringBackend]
) -> None:
    keyring.set_keyring(backend())
    entry = store_in(tmp_path).put("API_KEY", "api.example.org", 443, "Authorization", VALUE)
    assert entry.kept == "file"
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    headers, _ = (
        store_in(tmp_path)
        .of_host("api.example.org", 443)
        .insert([(b"authorization", b"Bearer agentvm-secret-API_KEY")])
    )
    assert headers == [(b"authorization", b"Bearer " + VALUE.encode())]


def test_a_locked_keyring_is_said_and_gives_nothing_away(tmp_path: Path, ring: MemoryKeyring) -> None:
    store_in(tmp_path).put("API_KEY", "api.example.org", 443, "Authorization", VALUE)
    ring.locked = True
    store = store_in(tmp_path)
    assert store.has("api.example.org", 443)
    with pytest.raises(SecretError, match="API_KEY") as caught:
        store.of_host("api.example.org", 443)
    assert "Unlock" in caught.value.hint
    ring.locked = False
    ring.kept.clear()
    with pytest.raises(SecretError, match="API_KEY"):
        store.of_host("api.example.org", 443)


@pytest.mark.usefixtures("no_ring")
def test_another_process_change_is_seen_at_once(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert not store.has("api.example.org", 443)
    store_in(tmp_path).put("API_KEY", "api.example.org", 443, "Authorization", VALUE)
    assert store.has("api.example.org", 443)
    store_in(tmp_path).put("API_KEY", "api.example.org", 443, "Authorization", VALUE[::-1])
    headers, _ = store.of_host("api.example.org", 443).insert([(b"Authorization", b"agentvm-secret-API_KEY")])
    assert headers == [(b"Authorization", VALUE[::-1].encode())]
    store_in(tmp_path).remove("API_KEY")
    assert not store.has("api.example.org", 443)


@pytest.mark.usefixtures("no_ring")
def test_only_the_named_header_of_the_named_host_and_port_gets_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put("API_KEY", "api.example.org", 443, "X-Key", VALUE)
    placeholder = b"agentvm-secret-API_KEY"
    sent = [(b"Authorization", placeholder), (b"x-key", placeholder), (b"X-Key-2", placeholder)]
    headers, _ = store.of_host("api.example.org", 443).insert(sent)
    assert headers == [(b"Authorization", placeholder), (b"x-key", VALUE.encode()), (b"X-Key-2", placeholder)]
    for host, port in [("api.example.org", 8443), ("example.org", 443), ("a.api.example.org", 443)]:
        assert not store.has(host, port)
        assert store.of_host(host, port).insert(sent)[0] == sent


@pytest.mark.usefixtures("no_ring")
def test_a_secret_may_be_for_some_notebooks_only(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put("API_KEY", "a.example", 443, "X-Key", VALUE, notebooks=["/work/a.ipynb"])
    store.put("COMMON", "a.example", 443, "X-Common", VALUE)
    sent = [(b"X-Key", b"agentvm-secret-API_KEY"), (b"X-Common", b"agentvm-secret-COMMON")]
    for notebook, key in [("/work/a.ipynb", VALUE.encode()), ("/work/b.ipynb", sent[0][1]), ("", sent[0][1])]:
        headers, _ = store_in(tmp_path).of_host("a.example", 443, notebook).insert(sent)
        assert headers == [(b"X-Key", key), (b"X-Common", VALUE.encode())]


@pytest.mark.usefixtures("no_ring")
def test_a_name_that_begins_another_ones_is_not_taken_for_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put("KEY", "a.example", 443, "Authorization", "first-secret")
    store.put("KEY_TWO", "a.example", 443, "Authorization", "second-secret")
    for text, wanted in [
        (b"agentvm-secret-KEY_TWO", b"second-secret"),
        (b"agentvm-secret-KEY", b"first-secret"),
        (b"agentvm-secret-KEY_THREE", b"agentvm-secret-KEY_THREE"),
    ]:
        assert store.of_host("a.example", 443).insert([(b"Authorization", text)])[0] == [(b"Authorization", wanted)]


@pytest.mark.usefixtures("no_ring")
def test_basic_credentials_hold_it_too_and_are_redacted_in_answers(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put("TOKEN", "git.example", 443, "Authorization", VALUE)
    secrets = store.of_host("git.example", 443)
    ours = base64.b64encode(b"me:agentvm-secret-TOKEN")
    headers, encoded = secrets.insert([(b"Authorization", b"Basic " + ours)])
    real = base64.b64encode(b"me:" + VALUE.encode())
    assert headers == [(b"Authorization", b"Basic " + real)]
    assert encoded == [real]
    assert real not in secrets.redaction(encoded).whole(b"you sent " + real)
    for other in (b"Basic " + base64.b64encode(b"me:mine"), b"Basic !", b"basic"):
        assert secrets.insert([(b"Authorization", other)]) == ([(b"Authorization", other)], [])


@pytest.mark.usefixtures("no_ring")
def test_no_representation_shows_a_value(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put("API_KEY", "a.example", 443, "Authorization", VALUE)
    assert VALUE not in repr((store.entries(), store.of_host("a.example", 443)._secrets, vars(store)))
    assert store.environment() == {"API_KEY": "agentvm-secret-API_KEY"}


@pytest.mark.usefixtures("no_ring")
@pytest.mark.parametrize(
    ("name", "header", "value"),
    [
        ("api_key", "Authorization", VALUE),
        ("A" * 65, "Authorization", VALUE),
        ("A\n", "Authorization", VALUE),
        ("API_KEY", "Host", VALUE),
        ("API_KEY", "transfer-encoding", VALUE),
        ("API_KEY", "X: Y", VALUE),
        ("API_KEY", "", VALUE),
        ("API_KEY", "Authorization", "7-chars"),
        ("API_KEY", "Authorization", "two\r\nX-Other: lines"),
        ("API_KEY", "Authorization", " begins-with-space"),
        ("API_KEY", "Authorization", "ends-with-newline\n"),
        ("API_KEY", "Authorization", "x" * 4097),
    ],
)
def test_what_is_not_valid_is_refused_and_not_kept(tmp_path: Path, name: str, header: str, value: str) -> None:
    with pytest.raises(SecretError) as caught:
        store_in(tmp_path).put(name, "a.example", 443, header, value)
    assert value not in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / FILE).exists()


@pytest.mark.usefixtures("no_ring")
@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 2, "secrets": []}', '{"secrets": [{"name": "hunter2hunter2"}]}']
)
def test_a_list_that_is_none_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(HostError, match="no list of secrets") as caught:
        store_in(tmp_path).entries()
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__} "


@pytest.mark.usefixtures("no_ring")
def test_a_list_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put("API_KEY", "a.example", 443, "Authorization", VALUE)
    (tmp_path / FILE).chmod(0o644)
    with pytest.raises(HostError, match="open to others"):
        store.entries()


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for variable in ("AGENTVM_STATE_DIR", "AGENTVM_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return Paths.of_user()


def run(*words: str, value: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, ["secret", *words], input=value)


@pytest.mark.usefixtures("no_ring")
def test_the_commands_set_list_and_remove_and_never_show_a_value(paths: Paths) -> None:
    assert "no secret" in run("list").output
    first = run("set", "API_KEY", "--host", "API.Example.org.", value=f"{VALUE}\n")
    assert first.exit_code == 0, first.output
    only = ("--notebook", "/work/b/../a.ipynb", "--notebook", "experiment")
    run("set", "OTHER_KEY", "--host", "b.example:8443", "--header", "X-Api-Key", *only, value=VALUE)
    listed = run("list", "--json")
    assert json.loads(listed.output) == [
        {"name": "API_KEY", "host": "api.example.org", "port": 443, "header": "Authorization", "kept": "file",
         "notebooks": []},
        {"name": "OTHER_KEY", "host": "b.example", "port": 8443, "header": "X-Api-Key", "kept": "file",
         "notebooks": ["/work/a.ipynb", "experiment"]},
    ]  # fmt: skip
    table = run("list")
    assert "X-Api-Key" in table.output
    assert "experiment" in table.output
    gone = run("rm", "API_KEY")
    assert [entry.name for entry in SecretStore(paths.state, paths.tag).entries()] == ["OTHER_KEY"]
    assert VALUE not in "".join(one.output for one in (first, listed, table, gone))
    assert isinstance(run("rm", "API_KEY").exception, SecretError)


@pytest.mark.usefixtures("no_ring", "paths")
@pytest.mark.parametrize("host", ["*.example.org", "a.example:80,443", "169.254.169.254", "", "a.example:x"])
def test_a_secret_is_for_one_host_with_a_name(host: str) -> None:
    assert isinstance(run("set", "API_KEY", "--host", host, value=VALUE).exception, AgentVMError)


@pytest.mark.usefixtures("no_ring", "paths")
def test_a_value_cannot_be_an_argument() -> None:
    assert run("set", "API_KEY", VALUE, "--host", "a.example").exit_code == 2
