#!/usr/bin/env python3
"""Takes the power from a process that appends, at random moments, and looks at what is there afterwards.

    power.py CHILD WORKDIR FILESYSTEM CYCLES SEED [lies|same-boot]

CHILD is the program of tests/power.rs. Each cycle: the file system (`ext4` or `xfs`, in an image, mounted by loop) gets a
process that appends to some dozens of resources, syncs and finishes, while its data files are written back out of order;
then the file system is shut down as a power loss does it (nothing that is not on the disk by then ever gets there), the
process is killed, and the image mounted again, in another boot of the system as far as a process can see. Demanded:

- every length that was told to be durable by the time of the loss, and every name, is there;
- what is served is a prefix of what was appended: no zeros, no other bytes;
- a finished resource is finished, in its life; one that is not is lost or interrupted, as it was claimed;
- a deleted one is gone.

`lies`: the process says that it is durable what isn't. `same-boot`: the process can't see that the system was started
anew. Both have to be found out, or this proves nothing.
"""

import ctypes
import fcntl
import hashlib
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
import uuid

CHILD, WORK, KIND, CYCLES, SEED = sys.argv[1:6]
CYCLES, SEED = int(CYCLES), int(SEED)
TRICK = sys.argv[6] if len(sys.argv) > 6 else ""
IMAGE, MOUNT, BOOT = (os.path.join(WORK, name) for name in (KIND + ".img", KIND, KIND + ".boot"))
SIZE = 512 << 20
SHUTDOWN, NO_FLUSH = 0x8004587D, 2


class Found(Exception):
    """What must not be."""


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Child:
    """The process on the file system; whatever talks its protocol can be in its place."""

    def __init__(self, mode, cycle):
        env = {
            **os.environ,
            "POWER_ROOT": os.path.join(MOUNT, "root"),
            "POWER_MODE": mode,
            "POWER_SEED": str(SEED),
            "POWER_CYCLE": str(cycle),
        }
        if TRICK == "lies":
            env["POWER_LIES"] = "1"
        # In a mount namespace of its own, where the system's boot has the name that we gave it.
        script = f"mount --bind '{BOOT}' /proc/sys/kernel/random/boot_id && exec \"$@\""
        test = ["child", "--exact", "--include-ignored", "--nocapture", "--test-threads=2"]
        self.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", CHILD, *test],
            env=env, stdout=subprocess.PIPE, stderr=open(os.path.join(WORK, "child.log"), "w"),
        )
        self.rest = b""

    def lines(self, wait):
        """What it said by now; after `wait` seconds at most."""
        out = self.process.stdout
        while select.select([out], [], [], wait)[0]:
            said = os.read(out.fileno(), 1 << 16)
            if not said:
                break
            *lines, self.rest = (self.rest + said).split(b"\n")
            yield from (line.decode().split() for line in lines if line)
            wait = 0

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Disorder(threading.Thread):
    """Writes pieces of the data back in an order that no file system would choose."""

    def __init__(self, rng):
        super().__init__(daemon=True)
        self.rng = rng
        self.stop = threading.Event()
        self.libc = ctypes.CDLL(None)
        self.args = lambda fd, at, length: (fd, ctypes.c_int64(at), ctypes.c_int64(length), 2)

    def run(self):
        while not self.stop.wait(0.002):
            try:
                files = [os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(MOUNT, "root"))
                         if ".httpfstream" not in folder for name in names]
                for path in self.rng.sample(files, min(len(files), 10)):
                    with open(path, "rb") as file:
                        size = os.fstat(file.fileno()).st_size
                        at = self.rng.randrange(size + 1) & ~4095
                        self.libc.sync_file_range(*self.args(file.fileno(), at, 4096 << self.rng.randrange(6)))
            except OSError:
                pass


def prefix_hash(name, length):
    blocks = b"".join(hashlib.sha256(name.encode() + struct.pack("<Q", n)).digest() for n in range(length // 32 + 1))
    return hashlib.sha256(blocks[:length]).hexdigest()


class Campaign:
    def __init__(self):
        self.rng = random.Random(SEED)
        self.durable = {}  # name: length that was told to be durable
        self.finished = {}  # name: (length, life)
        self.deleting = set()
        self.deleted = set()
        self.checked = self.losses = 0

    def boot(self):
        with open(BOOT, "w") as file:
            print(uuid.UUID(int=self.rng.getrandbits(128), version=4), file=file)

    def heard(self, line):
        match line:
            case ["synced", name, length]:
                self.durable[name] = max(self.durable.get(name, 0), int(length))
            case ["finished", name, length, life]:
                self.durable[name] = int(length)
                self.finished[name] = (int(length), life)
            case ["deleting", name]:
                self.deleting.add(name)
            case ["deleted", name]:
                self.deleted.add(name)
                self.durable.pop(name, None)
                self.finished.pop(name, None)

    def lose_power(self, cycle):
        child = Child("append", cycle)
        disorder = Disorder(random.Random(self.rng.random()))
        disorder.start()
        top = os.open(MOUNT, os.O_RDONLY)
        until = time.monotonic() + 20
        ready, after = False, self.rng.uniform(0.05, 1.5)
        while (now := time.monotonic()) < until:
            for line in child.lines(until - now):
                if line == ["ready"]:
                    ready, until = True, time.monotonic() + after
                self.heard(line)
            if child.process.poll() is not None:
                break
        if not ready:
            raise SystemExit(f"the child did not start: {open(os.path.join(WORK, 'child.log')).read()}")
        # What was said by now counts; what is said from here on may be about a disk that is gone.
        for line in child.lines(0):
            self.heard(line)
        fcntl.ioctl(top, SHUTDOWN, struct.pack("I", NO_FLUSH))
        os.close(top)
        disorder.stop.set()
        child.kill()
        disorder.join()
        run("umount", MOUNT)
        run("mount", "-o", "loop", IMAGE, MOUNT)
        if TRICK != "same-boot":
            self.boot()

    def check(self, cycle):
        child = Child("check", cycle)
        seen, done = {}, False
        while not done:
            some = False
            for line in child.lines(60):
                some = True
                match line:
                    case ["has", name, *what]:
                        seen[name] = what
                    case ["done"]:
                        done = True
            if not some:
                break
        child.process.wait()
        child.kill()
        if not done:
            raise Found(f"it can't be read: {open(os.path.join(WORK, 'child.log')).read()[-2000:]}")
        for name, (state, length, life, found) in seen.items():
            length = int(length)
            if found != prefix_hash(name, length):
                raise Found(f"{name}: its {length} bytes are not those that were appended")
            self.checked += self.durable.get(name, 0)
            if name in self.deleted:
                raise Found(f"{name} was deleted")
            if name in self.finished:
                if (state, (length, life)) != ("finished", self.finished[name]):
                    raise Found(f"{name}: finished as {self.finished[name]}, now {state} {length} {life}")
            elif state != "finished":
                # (An end that nobody was told of may be there.)
                expected = "lost" if name.endswith("k") else "interrupted"
                if state != expected:
                    raise Found(f"{name}: {state}, expected {expected}")
                self.losses += 1
        for name, length in self.durable.items():
            have = int(seen[name][1]) if name in seen else None
            if name not in self.deleting and (have is None or have < length):
                raise Found(f"{name}: {length} bytes were durable, {have} are there")
        self.deleting = {name for name in self.deleting if name in seen}
        # An end that was there once has to stay.
        self.finished |= {name: (int(length), life) for name, (state, length, life, _) in seen.items()
                          if state == "finished"}
        self.durable |= {name: int(length) for name, (_, length, _, _) in seen.items()}
        for name in [name for name in self.durable if name not in seen]:
            del self.durable[name]

    def run(self):
        run("truncate", "-s", str(SIZE), IMAGE)
        run(f"mkfs.{KIND}", *(["-q", "-F"] if KIND == "ext4" else ["-q", "-f"]), IMAGE)
        os.makedirs(MOUNT, exist_ok=True)
        self.boot()
        run("mount", "-o", "loop", IMAGE, MOUNT)
        try:
            for cycle in range(CYCLES):
                self.lose_power(cycle)
                try:
                    self.check(cycle)
                except Found as found:
                    raise Found(f"cycle {cycle}: {found}") from None
        finally:
            run("umount", MOUNT)
        if not self.checked or not self.losses:
            raise Found("nothing was at stake")


campaign = Campaign()
try:
    campaign.run()
except Found as found:
    sys.exit(f"{KIND}, seed {SEED}: {found}")
print(f"{KIND}: {CYCLES} power losses, seed {SEED}: {campaign.checked} bytes that were told to be durable, "
      f"{campaign.losses} resources cut")
