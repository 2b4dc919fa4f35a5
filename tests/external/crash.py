#!/usr/bin/env python3
"""Kills the server under load again and again, and its clients too; every byte has to arrive exactly once.

    crash.py BIN STRACE WORKDIR KILLS SEED

Four streams run all the time: `httpfstream-append --resume FILE` and `httpfstream-follow --output FILE`, over and over with
new resources. Meanwhile the server is killed with SIGKILL: half of the times at a moment of chance, half of the times at
a system call of chance (strace). Now and then a client is killed as well, and started again. What is stored and what
was followed have to be the very file that was appended; after each restart what is served has to be a prefix of it.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

BIN, STRACE, WORK, KILLS, SEED = sys.argv[1:6]
KILLS, SEED = int(KILLS), int(SEED)
STREAMS = 4
CALLS = ["pwritev,pwritev2", "pwrite64", "fdatasync", "fsync", "syncfs", "ftruncate", "fallocate", "linkat", "unlinkat",
         "renameat,renameat2", "openat", "sendto", "writev", "recvfrom", "accept4"]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


ROOT = os.path.join(WORK, "root")
PORT = free_port()
URL = f"http://127.0.0.1:{PORT}"
failures = []
stop = threading.Event()


def get(key):
    """The bytes that are served; None if the resource is absent or the server down."""
    try:
        with urllib.request.urlopen(f"{URL}/{key}", timeout=20) as answer:
            return answer.read()
    except (OSError, urllib.error.URLError, EOFError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 404:
            return b""
        return None
    except Exception:  # A body that was cut by a kill, mostly.
        return None


class Stream(threading.Thread):
    def __init__(self, number):
        super().__init__()
        self.random = random.Random(SEED * 1000 + number)
        self.number = number
        self.rounds = self.bytes = self.killed = 0
        self.key = self.data = None
        self.running = {}
        self.lock = threading.Lock()

    def client(self, name, *arguments):
        """Runs a client to its end; again when it was killed."""
        while True:
            log = os.path.join(WORK, f"{name}{self.number}.log")
            with open(log, "ab") as stderr:
                process = subprocess.Popen([os.path.join(BIN, f"httpfstream-{name}"), "--retry-for", "600", "-v", *arguments],
                                           stdin=subprocess.DEVNULL, stderr=stderr)
            with self.lock:
                self.running[name] = process
            code = process.wait()
            with self.lock:
                del self.running[name]
            if code == -signal.SIGKILL:
                self.killed += 1
            elif code == 1 and self.never_got_in(log):
                # The first connection is not tried again: whoever starts a client against a server that is down is told.
                time.sleep(0.05)
            else:
                break
        if code != 0:
            raise AssertionError(f"{name} of {self.key} ended with {code}; see {log}")

    @staticmethod
    def never_got_in(log):
        with open(log, "rb") as file:
            last = file.read().splitlines()[-1]
        return b"no connection to" in last or b"before the server answered" in last

    def kill_one(self, choice):
        with self.lock:
            if self.running:
                name = choice.choice(sorted(self.running))
                self.running[name].kill()

    def run(self):
        try:
            while not stop.is_set():
                self.round()
        except BaseException as error:  # Whatever it is, the campaign has failed.
            failures.append(f"stream {self.number}: {error!r}")

    def round(self):
        key = f"s{self.number}/r{self.rounds}"
        data = self.random.randbytes(self.random.choice([1, 1000, 300_000, 3_000_000, 12_000_000, 30_000_000]))
        source, out = (os.path.join(WORK, f"{kind}{self.number}") for kind in ("source", "out"))
        with open(source, "wb") as file:
            file.write(data)
        self.data, self.key = data, key
        errors = []

        def follow():
            try:
                self.client("follow", "--wait", "--output", out, f"{URL}/{key}")
            except AssertionError as error:
                errors.append(error)

        following = threading.Thread(target=follow)
        following.start()
        self.client("append", "--resume", source, f"{URL}/{key}")
        following.join()
        if errors:
            raise errors[0]
        with open(out, "rb") as file:
            assert file.read() == data, f"{key}: another file was followed"
        with open(os.path.join(ROOT, key), "rb") as file:
            assert file.read() == data, f"{key}: another file is stored"
        self.key = None
        for path in (source, out):
            os.remove(path)
            if os.path.exists(path + ".httpfstream"):
                os.remove(path + ".httpfstream")
        self.rounds += 1
        self.bytes += len(data)


def start(*before):
    """Starts the server, and returns once it answers, with how long that took."""
    began = time.monotonic()
    command = [*before, os.path.join(BIN, "httpfstream-server"), f"-root={ROOT}", f"-http=127.0.0.1:{PORT}", "--grace=600"]
    log = open(os.path.join(WORK, "server.log"), "ab")
    process = subprocess.Popen(command, stderr=log, start_new_session=True)
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=5).close()
            return process, time.monotonic() - began
        except OSError:
            assert time.monotonic() - began < 30, "the server doesn't come up"
            time.sleep(0.005)
    return process, None


def kill(process):
    """Kills the server, and whatever strace leaves behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def main():
    choice = random.Random(SEED)
    streams = [Stream(number) for number in range(STREAMS)]
    process, slowest = start()
    for stream in streams:
        stream.start()
    by_call = by_time = prefixes = 0
    while by_call + by_time < KILLS and not failures:
        for stream in streams:
            key, data = stream.key, stream.data
            if key and choice.random() < 0.3 and (found := get(key)) is not None:
                if stream.key == key:
                    assert data.startswith(found), f"{key}: what is served is no prefix of what was appended"
                    prefixes += 1
        if by_call < by_time:
            call = choice.choice(CALLS)
            inject = f"inject={call}:signal=KILL:when={choice.choice([1, 2, 3, 5, 8, 20, 60])}"
            kill(process)
            process, took = start(STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
            try:
                process.wait(choice.uniform(0.3, 1.5))
                by_call += 1
            except subprocess.TimeoutExpired:
                by_time += 1
        else:
            time.sleep(choice.uniform(0.02, 0.5))
            by_time += 1
        kill(process)
        if choice.random() < 0.25:
            choice.choice(streams).kill_one(choice)
        process, took = start()
        slowest = max(slowest, took or 0)
    stop.set()
    until = time.monotonic() + 600
    while any(stream.is_alive() for stream in streams) and time.monotonic() < until:
        # The one before it, killed with the strace that it was under, may have held the root for a moment more.
        if process.poll() is not None:
            process, _ = start()
        time.sleep(0.2)
    failures.extend(f"stream {stream.number} does not come to its end" for stream in streams if stream.is_alive())
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(20)
    # Those that tell who finished are kept for a while.
    records = [name for name in os.listdir(os.path.join(ROOT, ".httpfstream", "records")) if not name.endswith(".rest")]
    if not failures and records:
        failures.append(f"records are left though everything is finished: {records}")
    rounds, sent, killed = (sum(getattr(stream, name) for stream in streams) for name in ("rounds", "bytes", "killed"))
    print(f"crash: {by_time + by_call} kills of the server ({by_call} at system calls), {killed} of clients, seed {SEED}: "
          f"{rounds} resources, {sent} bytes, {prefixes} prefixes checked, slowest start {slowest:.2f} s; "
          + ("FAILED" if failures else "0 bytes lost, repeated or wrong"))
    if rounds < STREAMS:
        failures.append("too few resources to prove anything")
    if failures:
        sys.exit("\n".join(failures))


main()
