#!/usr/bin/env python3
"""A frozen file system under a server.

    freeze.py serves ADDRESS PID MOUNT      all that needs no write goes on; what does is answered for; then all goes on
    freeze.py stops ADDRESS PID MOUNT       SIGTERM meanwhile
"""

import os
import signal
import socket
import subprocess
import sys
import time

MODE, (HOST, PORT), PID, MOUNT = sys.argv[1], sys.argv[2].split(":"), int(sys.argv[3]), sys.argv[4]
# The server's --storage-timeout is 2 seconds: whoever waits for this long waits for ever.
LONG = 15
APPENDERS = 6


def connect():
    return socket.create_connection((HOST, int(PORT)), timeout=LONG)


class Socket:
    """A WebSocket as the original's clients are one."""

    def __init__(self, verb, path):
        self.sock = connect()
        self.sock.sendall(
            f"GET {path}?verb={verb} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
        self.got = b""
        self.payload = b""
        while b"\r\n\r\n" not in self.got:
            more = self.sock.recv(65536)
            assert more, f"no answer for {path}"
            self.got += more
        head, self.got = self.got.split(b"\r\n\r\n", 1)
        assert b" 101 " in head.split(b"\r\n")[0] + b" ", head

    def send(self, data):
        self.sock.sendall(bytes([0x82, 0x80 | len(data), 0, 0, 0, 0]) + data)

    def end(self):
        """Ends the resource."""
        self.sock.sendall(bytes([0x88, 0x82, 0, 0, 0, 0]) + (1000).to_bytes(2, "big"))

    def frame(self):
        while True:
            if len(self.got) >= 2 and self.got[1] < 126 and len(self.got) >= 2 + self.got[1]:
                size = self.got[1]
                opcode, payload = self.got[0] & 15, self.got[2:2 + size]
                self.got = self.got[2 + size:]
                return opcode, payload
            more = self.sock.recv(65536)
            if not more:
                return None, b""
            self.got += more

    def read(self, size):
        while len(self.payload) < size:
            opcode, payload = self.frame()
            assert opcode in (0, 1, 2), (opcode, payload, self.payload)
            self.payload += payload
        return self.payload

    def whatever_comes(self, seconds):
        """Everything that comes in this time."""
        self.sock.settimeout(seconds)
        try:
            while True:
                opcode, payload = self.frame()
                if opcode is None or opcode == 8:
                    break
                if opcode in (0, 1, 2):
                    self.payload += payload
        except TimeoutError:
            pass
        self.sock.settimeout(LONG)
        return self.payload

    def close_code(self):
        while True:
            opcode, payload = self.frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")
            if opcode is None:
                return None


def ask(method, path, body=None, host="localhost"):
    """Status and body of one request."""
    sock = connect()
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Length: {len(body)}\r\n"
    sock.sendall(head.encode() + b"\r\n" + (body or b""))
    got = b""
    while more := sock.recv(65536):
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def goes_on(when):
    begun = time.monotonic()
    assert ask("GET", "/.httpfstream/follow.js")[0] == 200, when
    assert ask("GET", "/x", host="evil.example")[0] in (403, 421), when
    finished = ask("GET", "/finished")
    assert finished == (200, b"finished"), (when, finished)
    assert ask("GET", "/nothing")[0] == 404, when
    print(f"{when}: answered within {time.monotonic() - begun:.2f} s", flush=True)


def freeze():
    subprocess.check_call(["fsfreeze", "-f", MOUNT])


def thaw():
    subprocess.check_call(["fsfreeze", "-u", MOUNT])


def begin():
    assert ask("PUT", "/finished?verb=APPEND", b"finished")[0] in (200, 201, 204)
    appenders = [Socket("APPEND", f"/a{i}") for i in range(APPENDERS)]
    for appender in appenders:
        appender.send(b"one two ")
    followers = []
    for i in range(APPENDERS):
        # Not before there is something to follow.
        end = time.monotonic() + LONG
        while True:
            try:
                followers.append(Socket("FOLLOW", f"/a{i}"))
                break
            except AssertionError:
                assert time.monotonic() < end
        assert followers[i].read(8) == b"one two "
    # Whatever sync was due is done, so that the next append is made at once.
    time.sleep(1.5)
    return appenders, followers


def serves():
    appenders, followers = begin()
    goes_on("before")
    freeze()
    try:
        for appender in appenders:
            appender.send(b"three ")
        for i in range(5):
            goes_on(f"frozen, look {i}")
        late = Socket("FOLLOW", "/a0")
        assert late.read(8) == b"one two "
        # All but the one that may hang on a thread of the runtime are told so.
        codes = []
        for appender in appenders:
            appender.sock.settimeout(6)
            try:
                codes.append(appender.close_code())
            except TimeoutError:
                codes.append("waits")
        print("appenders:", codes, flush=True)
        assert codes.count("waits") <= 1 and set(codes) <= {1011, "waits"}, codes
        for followed in followers:
            seen = followed.whatever_comes(.2)
            assert seen == b"one two ", seen
        status, body = ask("PUT", "/new?verb=APPEND", b"new")
        assert status == 503, (status, body)
        many = []
        for i in range(600):
            sock = connect()
            sock.sendall(f"PUT /many{i}?verb=APPEND HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx".encode())
            many.append(sock)
        for i in range(3):
            goes_on(f"frozen, with 600 that wait, look {i}")
        statuses = [int(sock.recv(65536).split()[1]) for sock in many]
        assert set(statuses) == {503}, statuses
        goes_on("frozen, with 600 that were answered")
    finally:
        thaw()
    goes_on("thawed")
    # Everything can be written again, and what was told is there.
    for i in range(APPENDERS):
        end = time.monotonic() + 30
        while True:
            status, body = ask("GET", f"/a{i}")
            if status == 200:
                break
            assert time.monotonic() < end, (status, body)
            time.sleep(.1)
        assert body in (b"one two ", b"one two three "), body
        seen = followers[i].whatever_comes(.2)
        assert body.startswith(seen) and seen.startswith(b"one two "), (seen, body)
    for name in ["new"] + [f"many{i}" for i in range(600)]:
        end = time.monotonic() + 30
        # Those that waited may be done with late, or not.
        while True:
            status, body = ask("PUT", f"/{name}?verb=APPEND", b"again")
            if status in (200, 201, 204):
                break
            assert status in (409, 423, 503) and time.monotonic() < end, (name, status, body)
            time.sleep(.1)
    assert ask("GET", "/new")[1].endswith(b"again")


def stops():
    appenders, followers = begin()
    freeze()
    try:
        for appender in appenders:
            appender.send(b"three ")
        goes_on("frozen")
        os.kill(PID, signal.SIGTERM)
        codes = [follower.close_code() for follower in followers]
        print("followers:", codes, flush=True)
        assert set(codes) <= {1001, 1011}, codes
        try:
            connect()
            raise AssertionError("still accepts")
        except ConnectionRefusedError:
            pass
    finally:
        thaw()


{"serves": serves, "stops": stops}[MODE]()
