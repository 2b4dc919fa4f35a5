#!/usr/bin/env python3
"""Kills the server at each system call of its bookkeeping, and looks at what it serves afterwards.

    kills.py SERVER STRACE WORKDIR

One run: four appends to one resource (lost, lost, finished, lost), with a SIGKILL injected at the Nth call of one kind.
After the restart the resource must be a prefix of what was sent, hold at least all that was answered, be in a state that
can be, and take another append; nothing of the bookkeeping may be left over once it is finished.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

SERVER, STRACE, WORK = sys.argv[1:4]
PARTS = [
    (b"first part, lost. ", False),
    (b"second part, lost. ", False),
    (b"third part, finished. ", True),
    (b"fourth part, lost. ", False),
]
FINISHED_AT = len(b"".join(part for part, _ in PARTS[:3]))
# Each with how often it is called in a run, at most.
CALLS = {
    "linkat": 3,
    "renameat,renameat2": 8,
    "unlinkat": 10,
    "fsync": 16,
    "fdatasync": 12,
    "ftruncate": 4,
    "fallocate": 4,
    "pwritev,pwritev2": 4,
    "pwrite64": 16,
}


class Dead(Exception):
    """The server is gone."""


def start(root, *before):
    """The server's process (or strace's), and its port."""
    command = [*before, SERVER, f"-root={root}", "-http=127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    process.wait()
    raise Dead


def request(port, head):
    """Sends a head and reads the answer's head; the socket, the status and what came behind it."""
    try:
        sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        sock.sendall(head.encode() + b"\r\n\r\n")
        got = b""
        while b"\r\n\r\n" not in got:
            more = sock.recv(65536)
            if not more:
                raise Dead
            got += more
    except ConnectionError:
        raise Dead from None
    head, rest = got.split(b"\r\n\r\n", 1)
    return sock, int(head.split()[1]), head.decode().lower(), rest


def append(port, data, finish):
    """Appends; whether the end was confirmed. Without `finish` the appender is lost once its bytes can be read."""
    sock, status, _, _ = request(port, "GET /dir/log?verb=APPEND HTTP/1.1\r\nHost: localhost\r\nUser-Agent: kills\r\n"
                                 "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    assert status == 101, status
    try:
        sock.sendall(bytes([0x82, 0x80 | len(data)]) + bytes(4) + data)
        if finish:
            sock.sendall(b"\x88\x82" + bytes(4) + b"\x03\xe8")
        else:
            # The answer to a ping behind the data says that the data was taken.
            sock.sendall(b"\x89\x80" + bytes(4))
        got = b""
        while True:
            more = sock.recv(4096)
            if not more:
                raise Dead
            got += more
            if finish and b"\x88\x02\x03\xe8" in got:
                return True
            if not finish and b"\x8a\x00" in got:
                break
        sock.close()
        # Lost is what it is once nobody appends.
        while True:
            _, status, head, _ = request(port, "HEAD /dir/log HTTP/1.1\r\nHost: localhost\r\nConnection: close")
            if "stream-state: live" not in head:
                return True
    except ConnectionError:
        raise Dead from None


def read(port):
    """The state and the bytes; None if the resource is absent."""
    sock, status, head, body = request(port, "GET /dir/log HTTP/1.1\r\nHost: localhost\r\nConnection: close")
    while more := sock.recv(65536):
        body += more
    if status == 404:
        return None
    assert status == 200, status
    return re.search(r"stream-state: (\w+)", head)[1], body


def run(call, number):
    """One run; whether the kill struck."""
    root = os.path.join(WORK, "root")
    shutil.rmtree(root, ignore_errors=True)
    inject = f"inject={call}:signal=KILL:when={number}"
    answered = 0
    sent = b""
    try:
        tracer, port = start(root, STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        try:
            for part, finish in PARTS:
                sent += part
                append(port, part, finish)
                answered = len(sent)
        finally:
            survived = answered == len(b"".join(part for part, _ in PARTS))
            os.killpg(tracer.pid, signal.SIGKILL)
            tracer.wait()
    except Dead:
        survived = False
    what = f"{call} number {number}"
    server, port = start(root)
    try:
        found = read(port)
        if found is None:
            assert answered == 0, f"{what}: absent, though {answered} bytes were answered"
            before = b""
        else:
            state, before = found
            assert sent.startswith(before), f"{what}: {before!r} is no prefix of {sent!r}"
            assert len(before) >= answered, f"{what}: {len(before)} bytes of {answered} that were answered"
            assert state in ("finished", "interrupted"), f"{what}: {state}"
            whole = len(before) == FINISHED_AT
            assert state == "interrupted" or whole, f"{what}: finished at {len(before)} of {len(sent)}"
            assert state == "finished" or not whole or answered < FINISHED_AT, f"{what}: no longer finished"
        assert append(port, b"and on", True)
        assert read(port) == ("finished", before + b"and on"), what
        books = os.path.join(root, ".httpfstream")
        left = os.listdir(os.path.join(books, "records")) + os.listdir(os.path.join(books, "new"))
        assert left == [], f"{what}: {left} is left"
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    return not survived


def main():
    kills = 0
    for call, most in CALLS.items():
        for number in range(1, most + 1):
            if not run(call, number):
                # There are no more of them.
                break
            kills += 1
    print(f"{kills} kills at system calls: no byte that was answered is lost, nothing is served that was not sent")
    if kills < 20:
        sys.exit("too few kills struck to prove anything")


main()
