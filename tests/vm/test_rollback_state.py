"""Whatever lives in the machine under a notebook is after a rollback as it was: in memory, on disk, in processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from kernel_client import Notebook, notebook
from travel import back, named, ok, saved, value

pytestmark = pytest.mark.timeout(300)

WAIT = """
import time
def wait_until(condition):
    deadline = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def nb(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(named(vm_environment, "/tests/state.ipynb")) as running:
        ok(running, WAIT)
        yield running


@dataclass(frozen=True)
class Trip:
    """Something that is there before a snapshot, is damaged after it, and whole again after the rollback.

    Attributes:
        before: Makes it.
        after: Damages it.
        check: An expression of plain data.
        whole: Its value while the thing is whole.
    """

    before: str
    after: str
    check: str
    whole: object


TRIPS = {
    "variables": Trip(
        "nest = {'a': [1, 2]}\nalias = nest['a']",
        "alias.append(3)\nextra = 1",
        "(nest, alias is nest['a'], 'extra' in globals())",
        ({"a": [1, 2]}, True, False),
    ),
    "imports": Trip(
        "import sys, colorsys\ncolorsys.patched = 'yes'",
        "import wave\ndel sys.modules['colorsys'], colorsys",
        "(colorsys.patched, sys.modules['colorsys'] is colorsys, 'wave' in sys.modules)",
        ("yes", True, False),
    ),
    "generator": Trip(
        "def count():\n    yield from range(10)\nhalf = count()\ntaken = [next(half), next(half)]",
        "taken += half",
        "(taken, [next(half), next(half)])",
        ([0, 1], [2, 3]),
    ),
    "unpicklable": Trip(
        "import threading\n"
        "open('lines', 'w').write('one\\ntwo\\nthree\\n')\n"
        "lock, lines = threading.Lock(), open('lines')\n"
        "lines.readline(), lock.acquire()\n"
        "half = (n for n in range(5))\nnext(half)\n"
        "things = [lock, lines, lambda: len(things), half]",
        "lock.release(), lines.close(), half.close(), things.clear()",
        "(things[0].locked(), things[1].readline(), things[2](), next(things[3]))",
        (True, "two\n", 4, 1),
    ),
    "environment": Trip(
        "import os, subprocess\nos.environ['STAGE'] = 'before'\nos.environ.pop('LATER', None)",
        "os.environ['LATER'] = 'x'\nos.environ['STAGE'] = 'after'",
        "subprocess.run('echo $STAGE $LATER', shell=True, capture_output=True, text=True).stdout",
        "before\n",
    ),
    "working directory": Trip(
        "import os\nos.makedirs('/tmp/here', exist_ok=True)\nos.chdir('/tmp/here')\nopen('mark', 'w').write('m')",
        "import shutil\nos.chdir('/')\nshutil.rmtree('/tmp/here')",
        "(os.getcwd(), os.listdir())",
        ("/tmp/here", ["mark"]),
    ),
    "deleted files": Trip(
        "import os, pathlib, subprocess\n"
        "tree = pathlib.Path('/home/agent/tree')\n"
        "for n in range(40):\n"
        "    (tree / str(n % 4)).mkdir(parents=True, exist_ok=True)\n"
        "    (tree / str(n % 4) / str(n)).write_text(str(n) * 5000)\n"
        "os.sync()\n"
        "subprocess.run('echo 3 | sudo tee /proc/sys/vm/drop_caches', shell=True, check=True)",
        "import shutil\n"
        "shutil.rmtree(tree)\n"
        "pathlib.Path('/home/agent/fill').write_bytes(os.urandom(8 << 20))\n"
        "os.sync()",
        "(sum((tree / str(n % 4) / str(n)).read_text() == str(n) * 5000 for n in range(40)), os.path.exists('fill'))",
        (40, False),
    ),
}


@pytest.mark.parametrize("trip", TRIPS.values(), ids=TRIPS.keys())
def test_it_is_as_it_was(nb: Notebook, request: pytest.FixtureRequest, trip: Trip) -> None:
    label = request.node.callspec.id.replace(" ", "-")
    ok(nb, trip.before)
    saved(nb, label)
    ok(nb, trip.after)
    changed = nb.run(f"print(repr({trip.check}))")
    assert changed.status == "error" or changed.text() != f"{trip.whole!r}\n", "the damage shows"
    back(nb, label)
    assert value(nb, trip.check) == trip.whole


def test_a_thread_goes_on_from_where_it_was(nb: Notebook) -> None:
    ok(
        nb,
        "import threading\nphase, seen, ticks, going = 'before', [], 0, True\n"
        "def tick():\n"
        "    global ticks\n"
        "    own = 0\n"
        "    while going:\n"
        "        own, ticks = own + 1, ticks + 1\n"
        "        assert own == ticks\n"
        "        if phase not in seen:\n"
        "            seen.append(phase)\n"
        "        time.sleep(0.001)\n"
        "ticker = threading.Thread(target=tick)\nticker.start()\nwait_until(lambda: ticks > 20)",
    )
    saved(nb, "thread")
    ok(nb, "phase = 'after'\nwait_until(lambda: 'after' in seen)\ngoing = False\nticker.join()")
    back(nb, "thread")
    assert value(nb, "(phase, seen, ticker.is_alive(), ticks > 20)") == ("before", ["before"], True, True)
    ok(nb, "then = ticks\nwait_until(lambda: ticks > then + 20)\ngoing = False\nticker.join()")


def test_a_background_process_goes_on_counting(nb: Notebook) -> None:
    ok(
        nb,
        "import subprocess\n"
        "loop = 'n=0; while :; do n=$((n+1)); echo $n >> /home/agent/count; sleep 0.01; done'\n"
        "counter = subprocess.Popen(loop, shell=True)\n"
        "def count():\n    return [int(line) for line in open('/home/agent/count')]\n"
        "wait_until(lambda: os.path.exists('/home/agent/count') and len(count()) > 5)",
    )
    saved(nb, "process")
    ok(nb, "counter.kill()\ncounter.wait()\nos.remove('/home/agent/count')")
    back(nb, "process")
    ok(nb, "then = len(count())\nwait_until(lambda: len(count()) > then + 5)")
    assert value(nb, "(counter.poll(), then > 5)") == (None, True)
    ok(nb, "counter.kill()\ncounter.wait()")
    assert value(nb, "count() == list(range(1, len(count()) + 1))") is True


def test_an_open_transaction_can_be_committed(nb: Notebook) -> None:
    ok(
        nb,
        "import sqlite3\n"
        "path = '/home/agent/data.db'\n"
        "base = sqlite3.connect(path)\n"
        "base.execute('create table t (n)')\nbase.execute('insert into t values (1)')\nbase.commit()\n"
        "base.execute('insert into t values (2)')\n"
        "def others():\n    with sqlite3.connect(path) as other:\n"
        "        return other.execute('select n from t order by n').fetchall()",
    )
    saved(nb, "transaction")
    ok(nb, "base.rollback()\nbase.execute('drop table t')\nbase.close()")
    back(nb, "transaction")
    assert value(nb, "(base.in_transaction, others())") == (True, [(1,)])
    ok(nb, "base.execute('insert into t values (3)')\nbase.commit()")
    assert value(nb, "others()") == [(1,), (2,), (3,)]


SERVER = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for number, line in enumerate(self.rfile):
            self.wfile.write(b"%d %s" % (number, line))
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""


def test_a_server_and_its_connected_client_stay_connected(nb: Notebook) -> None:
    ok(
        nb,
        "import socket, subprocess, sys\n"
        f"server = subprocess.Popen([sys.executable, '-c', {SERVER!r}], stdout=subprocess.PIPE)\n"
        "port = int(server.stdout.readline())\n"
        "def connect():\n    return socket.create_connection(('127.0.0.1', port), timeout=50).makefile('rw')\n"
        "def ask(peer, text):\n    peer.write(text + '\\n')\n    peer.flush()\n    return peer.readline()\n"
        "client = connect()",
    )
    assert value(nb, "ask(client, 'one')") == "0 one\n"
    # On its way, read by nobody yet, when the machine is frozen.
    ok(nb, "client.write('two\\n')\nclient.flush()")
    saved(nb, "server")
    ok(nb, "client.close()\nserver.kill()\nserver.wait()")
    back(nb, "server")
    assert value(nb, "client.readline()") == "1 two\n"
    assert value(nb, "ask(client, 'three')") == "2 three\n"
    assert value(nb, "ask(connect(), 'a new one')") == "0 a new one\n"
    ok(nb, "server.kill()\nserver.wait()")


WHEEL = """
import subprocess, sys, zipfile
with zipfile.ZipFile('/tmp/tiny-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('tiny.py', 'answer = 42')
    wheel.writestr('tiny-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n')
    wheel.writestr('tiny-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr('tiny-1.0.dist-info/RECORD', '')
def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
def pip(*arguments):
    done = run('-m', 'pip', *arguments)
    assert done.returncode == 0, done.stderr
"""
ANSWER = "run('-c', 'import tiny; print(tiny.answer)').stdout"


def test_a_package_comes_and_goes_with_its_snapshot(nb: Notebook) -> None:
    ok(nb, WHEEL)
    saved(nb, "without")
    ok(nb, "pip('install', '--no-index', '--no-deps', '/tmp/tiny-1.0-py3-none-any.whl')\nimport tiny")
    saved(nb, "with")
    ok(nb, "pip('uninstall', '--yes', 'tiny')\ndel sys.modules['tiny'], tiny")
    assert value(nb, ANSWER) == ""
    back(nb, "with")
    assert value(nb, f"(tiny.answer, {ANSWER})") == (42, "42\n")
    back(nb, "without")
    assert value(nb, f"({ANSWER}, 'tiny' in sys.modules)") == ("", False)


def test_200_megabytes_of_random_data_come_back_whole(nb: Notebook) -> None:
    ok(
        nb,
        "import hashlib, os\n"
        "data = bytearray(200_000_000)\n"
        "for start in range(0, len(data), 1_000_000):\n"
        "    data[start:start + 1_000_000] = os.urandom(1_000_000)\n"
        "def digest():\n    return hashlib.blake2b(data).hexdigest()",
    )
    whole = value(nb, "digest()")
    saved(nb, "large")
    ok(nb, "for start in range(0, len(data), 4096):\n    data[start] ^= 255")
    spoilt = value(nb, "digest()")
    assert spoilt != whole
    saved(nb, "spoilt")
    back(nb, "large")
    assert value(nb, "digest()") == whole
    back(nb, "spoilt")
    assert value(nb, "digest()") == spoilt
