"""What runs in the VM of the egress attacks: tools that do what no honest program does. Standard library only.

Every function returns how the attempt ended: ``data: …`` (somebody answered), ``reset``, ``eof``, an error's name, or
``hangs`` if nothing had happened when patience was over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import ssl
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PATIENCE = 45.0
FORGED = Path("/tmp/forged.json")

# What a forged forwarder adds to the real one: names for addresses that no resolver gave out.
FORGERY = f"""
import json as _json, pathlib as _pathlib
_honest = Names.name
def _forged(self, address):
    told = _json.loads(_pathlib.Path({str(FORGED)!r}).read_text())
    return told[address] if address in told else _honest(self, address)
Names.name = _forged
"""


def talk(address: str, port: int, *pieces: bytes, pause: float = 0.0, finish: bool = False) -> str:
    """Connect, send piece by piece, and tell what came of it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(PATIENCE)
        try:
            one.connect((address, port))
            for piece in pieces:
                one.sendall(piece)
                time.sleep(pause)
            if finish:
                one.shutdown(socket.SHUT_WR)
        except OSError as error:
            # What was said before the end may still be there to read.
            return read_all(one) if error.errno in {errno.EPIPE, errno.ENOTCONN} else name_of(error)
        return read_all(one)


def read_all(one: socket.socket, last: bytes = b"") -> str:
    """Read to the end, or to what is wanted as the last."""
    data = b""
    try:
        while chunk := one.recv(65536):
            data += chunk
            if last and data.endswith(last):
                break
    except OSError as error:
        return f"data: {data.decode('latin-1')}" if data else name_of(error)
    return f"data: {data.decode('latin-1')}" if data else "eof"


def name_of(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "hangs"
    return "reset" if isinstance(error, ConnectionResetError) else type(error).__name__ + f" {error.errno}"


def question(name: bytes, kind: int = 1) -> bytes:
    """A DNS query for a name whose labels may hold any bytes; dots separate labels, the byte 255 stands for a dot."""
    labels = b"".join(bytes([len(label)]) + label.replace(b"\xff", b".") for label in name.split(b".") if label)
    return struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def ask(query: bytes, server: str = "127.0.0.1", *, tcp: bool = False) -> bytes:
    """Send a DNS query."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as one:
        one.settimeout(PATIENCE)
        one.connect((server, 53))
        one.sendall(struct.pack(">H", len(query)) + query if tcp else query)
        return one.recv(65535)[2 if tcp else 0 :]


def look_up(name: bytes, kind: int = 1) -> str:
    """What the resolver says: an address, or ``code N`` without one."""
    try:
        reply = ask(question(name, kind))
    except OSError as error:
        return f"code {name_of(error)}"
    code, answers = reply[3] & 15, struct.unpack_from(">H", reply, 6)[0]
    return socket.inet_ntoa(reply[-4:]) if answers and kind == 1 else f"code {code}"


def through(name: bytes, port: int, *pieces: bytes, **options: object) -> str:
    """Look a name up, and talk to the address that stands for it."""
    address = look_up(name)
    return talk(address, port, *pieces, **options) if "code" not in address else address


def get(
    host: str, path: str = "/", *lines: str, version: str = "1.1", method: str = "GET", close: bool = True
) -> bytes:
    """A request, with whatever lines somebody wants to have in it."""
    head = [f"{method} {path} HTTP/{version}", *([f"Host: {host}"] if host else []), *lines]
    if close:
        head.append("Connection: close")
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


def client_hello(name: str | None, *extensions: bytes) -> bytes:
    """A ClientHello as OpenSSL makes it, and more extensions if wanted (RFC 8446, section 4.1.2)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    half = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    body = out.read()[9:]
    position = 34
    position += 1 + body[position]
    position += 2 + int.from_bytes(body[position : position + 2])
    position += 1 + body[position]
    more = body[position + 2 :] + b"".join(extensions)
    body = body[:position] + len(more).to_bytes(2) + more
    handshake = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(handshake).to_bytes(2) + handshake


def server_name(name: bytes) -> bytes:
    """The extension that names the server, with any bytes in it (RFC 6066, section 3)."""
    entry = b"\0" + len(name).to_bytes(2) + name
    return b"\0\0" + (len(entry) + 2).to_bytes(2) + len(entry).to_bytes(2) + entry


ECH = b"\xfe\x0d" + (10).to_bytes(2) + bytes(10)


def hellos(name: str, other: str) -> dict[str, list[bytes]]:
    """Beginnings of TLS connections to a name that must not be let through."""
    whole = client_hello(name)
    return {
        "another name": [client_hello(other)],
        "no name": [client_hello(None)],
        "encrypted name": [client_hello(name, ECH)],
        "two names": [client_hello(name, server_name(other.encode()))],
        "NUL": [client_hello(None, server_name(name.encode() + b"\0." + other.encode()))],
        "an address": [client_hello(None, server_name(b"169.254.169.254"))],
        "empty name": [client_hello(None, server_name(b""))],
        "not UTF-8": [client_hello(None, server_name(b"\xff\xfe" + name.encode()))],
        "a subdomain": [client_hello(f"www.{name}")],
        "http": [get(other)],
        "ssh": [b"SSH-2.0-OpenSSH_9.9\r\n"],
        "garbage": [b"\x16\x03\x01\xff\xff" + os.urandom(3000)],
        "too long a record": [b"\x16\x03\x01\xff\xff" + whole[5:] + bytes(70000)],
        "another name in pieces": [bytes([byte]) for byte in client_hello(other)],
        "cut off": [whole[:-20]],
        "an alert": [b"\x15\x03\x01\x00\x02\x02\x28"],
    }


def endless_hello() -> str:
    """A ClientHello of 16 MB in records of one byte each, never complete."""
    record = b"\x16\x03\x01\x00\x01"
    first = record + b"\x01" + record + b"\xff" + record + b"\xff" + record + b"\xff"
    return through(b"good.example.org", 443, first, *([(record + b"\0") * 10000] * 20))


def slow_hello() -> str:
    """A ClientHello of which a byte comes every second."""
    hello = client_hello("good.example.org")
    return through(b"good.example.org", 443, *(bytes([byte]) for byte in hello[:40]), pause=1.0)


def requests(name: str, other: str) -> dict[str, bytes]:
    """Requests to a name that must not reach it as they are."""
    post, chunked = "POST", "Transfer-Encoding: chunked"
    return {
        "another host": get(other),
        "no host": get("", version="1.1"),
        "two hosts": get(name, "/", f"Host: {other}"),
        "another target": get(name, f"http://{other}/"),
        "user in host": get(f"{name}@{other}"),
        "user in target": get(name, f"http://{name}@{other}/"),
        "host with another port": get(f"{name}:8080"),
        "NUL in host": get(f"{name}\0.{other}"),
        "space in host": get(f"{name} {other}"),
        "folded host": get(name, "/", f"X: y\r\n Host: {other}"),
        "host after a bare line feed": get(name, "/", f"X: y\nHost: {other}"),
        "name with space": get(name, "/", f"Host : {other}"),
        "CONNECT": get(f"{other}:443", f"{other}:443", method="CONNECT"),
        "CONNECT to itself": get(f"{name}:443", f"{name}:443", method="CONNECT"),
        "two lengths": get(name, "/", "Content-Length: 3", "Content-Length: 40", method=post) + b"abc" + get(other),
        "length and chunks": get(name, "/", "Content-Length: 5", "Transfer-Encoding: chunked", method=post)
        + b"0\r\n\r\n" + get(other),
        "strange coding": get(name, "/", "Transfer-Encoding: xchunked", method=post) + b"0\r\n\r\n" + get(other),
        "coding twice": get(name, "/", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", method=post)
        + b"0\r\n\r\n" + get(other),
        "coding with tab": get(name, "/", "Transfer-Encoding:\x0bchunked", method=post) + b"0\r\n\r\n" + get(other),
        "strange length": get(name, "/", "Content-Length: +5", method=post) + b"abcde" + get(other),
        "hexadecimal length": get(name, "/", "Content-Length: 0x5", method=post) + b"abcde" + get(other),
        "negative length": get(name, "/", "Content-Length: -1", method=post) + get(other),
        "strange chunk": get(name, "/", chunked, method=post) + b"0x3\r\nabc\r\n0\r\n\r\n" + get(other),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "HTTP/0.9": b"GET /\r\n",
        "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
        "TLS": client_hello(other),
        "endless header": f"GET / HTTP/1.1\r\nHost: {name}\r\nX: ".encode() + b"y" * (4 << 20),
    }  # fmt: skip


def kept(name: str, first: bytes, second: bytes) -> tuple[str, str]:
    """Two requests over one connection, the second when the first was answered."""
    with socket.socket() as one:
        one.settimeout(PATIENCE)
        one.connect((look_up(name.encode()), 80))
        one.sendall(first)
        answer = read_all(one, b"caught\n")
        try:
            one.sendall(second)
        except OSError as error:
            return answer, name_of(error)
        return answer, read_all(one)


def raw_packets(target: str) -> dict[str, str]:
    """Everything but TCP, as root."""
    ways = {
        "udp": (socket.SOCK_DGRAM, 0, b"x"),
        "icmp": (socket.SOCK_RAW, socket.IPPROTO_ICMP, bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0])),
        "sctp": (socket.SOCK_RAW, 132, bytes(32)),
        "gre": (socket.SOCK_RAW, 47, bytes(32)),
        "raw tcp": (socket.SOCK_RAW, socket.IPPROTO_TCP, struct.pack(">HHIIBBHHH", 999, 80, 1, 0, 0x50, 2, 99, 0, 0)),
    }
    said = {}
    for way, (kind, protocol, packet) in ways.items():
        with socket.socket(socket.AF_INET, kind, protocol) as one:
            one.settimeout(3)
            try:
                one.connect((target, 53))
                one.send(packet)
                one.send(packet)
                said[way] = f"data: {one.recv(100)!r}"
            except OSError as error:
                said[way] = name_of(error)
    return said


def frames() -> str:
    """Ethernet frames on every device that is up, as root."""
    frame = b"\xff" * 12 + b"\x08\x00" + bytes.fromhex("45000014000000004011" + "0000c6120001a9fea9fe")
    sent = 0
    for device in Path("/sys/class/net").iterdir():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one, contextlib.suppress(OSError):
            one.bind((device.name, 0x0800))
            sent += one.send(frame)
    return f"{sent} bytes"


def together(address: str, port: int, count: int, request: bytes) -> dict[str, int]:
    """Open so many connections, then ask for something on all, then read all answers; count what came of them."""

    async def run() -> list[str]:
        ends = await asyncio.gather(*(asyncio.open_connection(address, port) for _ in range(count)))
        for _, writer in ends:
            writer.write(request)
        answers = await asyncio.gather(*(reader.read() for reader, _ in ends))
        for _, writer in ends:
            writer.close()
        return [answer.split(b"\r\n")[0].decode() for answer in answers]

    with ThreadPoolExecutor(1) as pool:
        said = Counter(pool.submit(asyncio.run, run()).result())
    return {"connected": count, **said}


def hoard(address: str, port: int, count: int) -> dict[str, int]:
    """Open so many connections, and keep all that can be had, saying nothing on them."""
    kept_open, ends = [], {}
    for _ in range(count):
        one = socket.socket()
        one.setblocking(True)
        one.settimeout(PATIENCE)
        try:
            one.connect((address, port))
            kept_open.append(one)
            end = "connected"
        except OSError as error:
            one.close()
            end = name_of(error)
        ends[end] = ends.get(end, 0) + 1
    dead = 0
    for one in kept_open:
        one.setblocking(False)
        try:
            one.recv(1)
            dead += 1
        except BlockingIOError:
            pass
        except OSError:
            dead += 1
        one.close()
    return {**ends, "ended by the other side": dead}


def show(value: object) -> None:
    print("\n@" + json.dumps(value))
