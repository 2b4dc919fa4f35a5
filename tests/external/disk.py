#!/usr/bin/env python3
"""Disks that are full, and disks that fail, under the server.

    disk.py full SERVER STRACE WORKDIR          a small file system that fills up, with and without preallocation
    disk.py errors SERVER STRACE WORKDIR        writes, syncs, opens, links and so on fail

In a run of `errors` the Nth call of one kind fails in each thread that gets so far: mostly one or two calls. No more may
be refused than failed, by the answer that is stated for it; all else is stored as it was sent, and everything goes on.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

MODE, SERVER, STRACE, WORK = sys.argv[1:5]
TEMPORARY = (409, 423, 503)
CALLS = ["openat", "pwritev,pwritev2", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "linkat",
         "unlinkat", "renameat,renameat2"]


class Refused(Exception):
    """The server said no: with a status, or with a close code."""

    def __init__(self, how, code):
        super().__init__(how, code)
        self.how, self.code = how, code


class NoAnswer(Exception):
    """The connection ended instead: hyper drops a head that is not written yet when its body fails."""


def request(port, head):
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.sendall(head.encode() + b"\r\n\r\n")
    got = b""
    while b"\r\n\r\n" not in got:
        more = sock.recv(65536)
        if not more:
            raise NoAnswer(head)
        got += more
    head, rest = got.split(b"\r\n\r\n", 1)
    return sock, int(head.split()[1]), head.decode().lower(), rest


class Appender:
    """An appender as the original's client is one."""

    def __init__(self, port, path):
        end = time.monotonic() + 15
        while True:
            self.sock, status, _, self.got = request(
                port, f"GET {path}?verb=APPEND HTTP/1.1\r\nHost: localhost\r\nUser-Agent: disk\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
            # The one before may not have let go yet.
            if status not in TEMPORARY or time.monotonic() > end:
                break
        if status != 101:
            raise Refused("status", status)

    def frame(self):
        """The next frame from the server: opcode and payload."""
        while True:
            if len(self.got) >= 2 and len(self.got) >= 2 + self.got[1]:
                opcode, length = self.got[0] & 15, self.got[1]
                payload, self.got = self.got[2:2 + length], self.got[2 + length:]
                return opcode, payload
            more = self.sock.recv(4096)
            assert more, "the connection broke without a close"
            self.got += more

    def send(self, data):
        """Appends, and waits until that is read; it may fail after that."""
        assert len(data) < 65536
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        try:
            self.sock.sendall(b"\x82" + length + bytes(4) + data + b"\x89\x80" + bytes(4))
        except ConnectionError:
            pass
        while True:
            opcode, payload = self.frame()
            if opcode == 10:
                return
            if opcode == 8:
                raise Refused("close", int.from_bytes(payload[:2], "big"))

    def finish(self):
        self.sock.sendall(b"\x88\x82" + bytes(4) + b"\x03\xe8")
        while True:
            opcode, payload = self.frame()
            if opcode == 8:
                code = int.from_bytes(payload[:2], "big")
                if code != 1000:
                    raise Refused("close", code)
                return

    def lose(self):
        self.sock.close()


def read(port, path):
    """The state and the bytes; None if it is absent. A read may be what fails, and can be asked again."""
    for _ in range(50):
        sock, status, head, body = request(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close")
        while more := sock.recv(65536):
            body += more
        if status != 500:
            break
    if status == 404:
        return None
    assert status == 200, (path, status, body)
    return re.search(r"stream-state: (\w+)", head)[1], body


def start(root, *before):
    log = os.path.join(WORK, "server.log")
    process = subprocess.Popen([*before, SERVER, f"-root={root}", "-http=127.0.0.1:0"],
                               stderr=open(log, "w"), start_new_session=True)
    for _ in range(400):
        if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", open(log).read()):
            return process, int(found[1])
        assert process.poll() is None, open(log).read()
        time.sleep(0.05)
    raise AssertionError("the server does not listen")


def stop(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def full(root, *before):
    ballast = os.path.join(root, "ballast")
    with open(ballast, "wb") as file:
        file.write(bytes(16 * 1024))
    server, port = start(root, *before)
    try:
        other = Appender(port, "/other")
        other.send(b"before. ")
        sent, taken = b"", 0
        victim = Appender(port, "/dir/log")
        try:
            for number in range(1000):
                piece = b"%06d" % number * 250
                sent += piece
                victim.send(piece)
                taken = len(sent) - len(piece)
            raise AssertionError("it is never full")
        except Refused as refused:
            assert (refused.how, refused.code) == ("close", 1011), refused
        state, stored = read(port, "/dir/log")
        while state == "live":
            state, stored = read(port, "/dir/log")
        assert state == "interrupted" and sent.startswith(stored) and len(stored) % 1500 == 0, (state, len(stored))
        assert len(stored) >= taken, (len(stored), taken)
        taken = len(stored)
        assert read(port, "/other")[1] == b"before. "
        try:
            new = Appender(port, "/new")
            new.send(b"x" * 5000)
            new.finish()
            raise AssertionError("there is room after all")
        except Refused as refused:
            assert refused.code in (1011, 507, 500), refused
        # Nothing of it was stored.
        while left := read(port, "/new"):
            assert left == ("live", b""), left
        os.unlink(ballast)
        other.send(b"after. ")
        other.finish()
        assert read(port, "/other") == ("finished", b"before. after. ")
        victim = Appender(port, "/dir/log")
        victim.send(b"and on")
        victim.finish()
        assert read(port, "/dir/log") == ("finished", sent[:taken] + b"and on")
    finally:
        stop(server)
    return taken


def run_full():
    root = os.path.join(WORK, "small")
    os.makedirs(root, exist_ok=True)
    no_preallocation = [STRACE, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fallocate",
                        "-e", "inject=fallocate:error=EOPNOTSUPP"]
    for before in [], no_preallocation:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", root], check=True)
        try:
            taken = full(root, *before)
        finally:
            subprocess.run(["umount", root], check=True)
        print(f"full after {taken} bytes {'without' if before else 'with'} preallocation, and on with more room")


def look(port, path):
    """Reads; once more if the one call that fails was of this very read."""
    try:
        return read(port, path)
    except NoAnswer:
        return read(port, path)


def failing(call, number):
    """One run; how many calls failed, and how many requests."""
    root, trace = os.path.join(WORK, "root"), os.path.join(WORK, "trace")
    shutil.rmtree(root, ignore_errors=True)
    what = f"{call} number {number}"
    server, port = start(root)
    tracer = subprocess.Popen([STRACE, "-f", "-o", trace, "-e", f"trace={call}",
                               "-e", f"inject={call}:error=EIO:when={number}", "-p", str(server.pid)],
                              stderr=subprocess.PIPE, text=True)
    for line in tracer.stderr:
        if "attached" in line:
            break
    sent = {"/dir/log": b"", "/other": b""}
    finished, refused = {}, []

    def harmed(path):
        return any(path == other for other, _ in refused)

    def attempt(path, call):
        """What was refused is refused as it is stated."""
        try:
            return call()
        except Refused as no:
            assert (no.how, no.code) in [("close", 1011), ("status", 500), ("status", 503)], f"{what}: {path}: {no}"
            refused.append((path, str(no)))

    def one(path, data, end):
        appender = attempt(path, lambda: Appender(port, path))
        if not appender:
            return
        before = len(refused)
        sent[path] += data
        attempt(path, lambda: appender.send(data))
        if len(refused) == before:
            finished.pop(path, None)
            if not end:
                appender.lose()
                while (found := look(port, path)) and found[0] == "live":
                    pass
                if not found or not found[1].endswith(data):
                    refused.append((path, "lost"))
                return
            attempt(path, appender.finish)
            if len(refused) == before:
                finished[path] = True

    try:
        bystander = attempt("/other", lambda: Appender(port, "/other"))
        if bystander:
            sent["/other"] += b"bystander. "
            attempt("/other", lambda: bystander.send(b"bystander. "))
        # What fails is appended anew, so that each part is there once, or not at all.
        for data, end in [(b"first, lost. ", False), (b"second, finished. ", True), (b"third, lost. ", False)]:
            count = len(refused)
            before = read(port, "/dir/log")
            one("/dir/log", data, end)
            if len(refused) > count:
                now = read(port, "/dir/log")
                kept, old = (now[1] if now else b""), (before[1] if before else b"")
                assert (old + data).startswith(kept), f"{what}: {kept!r} is no prefix of {old + data!r}"
                sent["/dir/log"] = kept
        if bystander and not harmed("/other"):
            attempt("/other", bystander.finish)
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        struck = open(trace).read().count("(INJECTED)")
        assert len(refused) <= struck, f"{what}: {struck} failed, and {refused} were refused"
        if not harmed("/other"):
            assert read(port, "/other") == ("finished", b"bystander. "), f"{what}: {read(port, '/other')}"
        # It goes on in the same server, and in the next.
        for restarted in False, True:
            if restarted:
                stop(server)
                server, port = start(root)
            for path in sent:
                found = read(port, path)
                stored = found[1] if found else b""
                assert stored == sent[path] or harmed(path) and sent[path].startswith(stored), \
                    f"{what}: {path} has {stored!r} of {sent[path]!r}"
                appender = Appender(port, path)
                appender.send(b"and on. ")
                appender.finish()
                sent[path] = stored + b"and on. "
                assert read(port, path) == ("finished", sent[path]), f"{what}: {read(port, path)}"
        left = [name for name in os.listdir(os.path.join(root, ".httpfstream", "new"))]
        assert left == [], f"{what}: {left} is left"
    finally:
        tracer.kill()
        tracer.wait()
        stop(server)
    return struck, len(refused)


def run_errors():
    failures = refusals = 0
    for call in CALLS:
        for number in range(1, 200):
            struck, refused = failing(call, number)
            if not struck:
                break
            failures, refusals = failures + 1, refusals + refused
    print(f"{failures} calls failed: {refusals} appends were refused, nothing else was harmed, and all went on")
    if failures < 30 or refusals < 10:
        sys.exit("too few failed to prove anything")


{"full": run_full, "errors": run_errors}[MODE]()
