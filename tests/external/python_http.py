"""Follows and appends by plain HTTP with `httpx` and `aiohttp`: see python_http.sh.

Each function `check_…` or `fault_NN_…` is a check, and all of them run, with each client.
"""

import asyncio
import base64
import json
import os
import random
import sys

import aiohttp
import httpx

URL, ROOT = sys.argv[1], sys.argv[2]
LIMIT = 30


class Cut(Exception):
    """A body that broke off."""


class Httpx:
    """One connection pool, of one version of HTTP."""

    def __init__(self, http2):
        self.again = lambda: Httpx(http2)
        self.name = "httpx over HTTP/2" if http2 else "httpx over HTTP/1.1"
        self.client = httpx.AsyncClient(http1=not http2, http2=http2, timeout=LIMIT, trust_env=False)

    async def ask(self, method, target, headers=None, body=None):
        """Status, headers and body of an answer; a body to send is bytes, or made by a generator."""
        answer = await self.client.request(method, URL + target, headers=headers, content=body)
        return answer.status_code, answer.headers, answer.content

    async def follow(self, target, headers=None):
        """First the status and the headers, then each piece of the body as it arrives."""
        async with self.client.stream("GET", URL + target, headers=headers) as answer:
            yield answer.status_code, answer.headers
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            except httpx.RemoteProtocolError as error:
                raise Cut from error

    async def close(self):
        await self.client.aclose()


class Aiohttp:
    name = "aiohttp"

    def __init__(self):
        self.again = Aiohttp
        timeout = aiohttp.ClientTimeout(total=LIMIT)
        self.client = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)

    async def ask(self, method, target, headers=None, body=None):
        async with self.client.request(method, URL + target, headers=headers, data=body) as answer:
            return answer.status, answer.headers, await answer.read()

    async def follow(self, target, headers=None):
        async with self.client.get(URL + target, headers=headers) as answer:
            yield answer.status, answer.headers
            try:
                async for piece in answer.content.iter_any():
                    yield piece
            except aiohttp.ClientPayloadError as error:
                raise Cut from error

    async def close(self):
        await self.client.close()


class Sender:
    """An append whose body is what is put into it, until it is ended or broken. It has a connection of its own."""

    def __init__(self, client, target, headers=None, method="POST"):
        self.pieces = asyncio.Queue()
        self.client = client.again()
        self.task = asyncio.create_task(self.client.ask(method, target, headers, self.body()))

    async def body(self):
        while (piece := await self.pieces.get()) is not None:
            yield piece

    def send(self, piece):
        self.pieces.put_nowait(piece)

    async def end(self):
        self.send(None)
        answer = await self.task
        await self.client.close()
        return answer

    async def break_off(self):
        """Closes the connection in the middle of the body. (httpx doesn't reset a stream that is cancelled.)"""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.close()


class Follower:
    """Reads one piece after the other."""

    def __init__(self, client, target, headers=None):
        self.stream = client.follow(target, headers)
        self.got = b""

    async def head(self):
        return await anext(self.stream)

    async def until(self, enough):
        """Reads until so much has come."""
        while len(self.got) < enough:
            self.got += await anext(self.stream)

    async def to_end(self):
        """Everything, and whether it was cut."""
        try:
            async for piece in self.stream:
                self.got += piece
        except Cut:
            return self.got, True
        return self.got, False


def events(stream):
    """(event, data, last id) of each event, by the HTML standard, section 9.2.6."""
    text = stream.decode("utf-8")
    name = data = last = ""
    found = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append((name or "message", data[:-1], last))
            name = data = ""
        elif field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
        elif field == "id":
            last = value
    return found


def told(found):
    """The resource's bytes, and the states."""
    whole, states = b"", []
    for name, data, _ in found:
        if name == "message":
            whole += data.encode()
        elif name == "base64":
            whole += base64.b64decode(data, validate=True)
        else:
            assert name == "state", name
            states.append(json.loads(data))
    return whole, states


async def eventually(asked):
    while not (found := await asked()):
        await asyncio.sleep(0.02)
    return found


async def stored(client, name, size):
    async def is_there():
        status, headers, _ = await client.ask("HEAD", f"/{name}")
        return status == 200 and int(headers["Upload-Offset"]) >= size

    await eventually(is_there)


async def is_state(client, name, state):
    async def is_there():
        status, headers, _ = await client.ask("HEAD", f"/{name}")
        return status == 200 and headers["Stream-State"] == state

    await eventually(is_there)


async def check_each_piece_arrives_before_the_next_is_sent(client, name):
    sender = Sender(client, f"/{name}?verb=APPEND")
    follower = Follower(client, f"/{name}?verb=FOLLOW&wait=20")
    reading = asyncio.create_task(follower.head())
    whole = b""
    for i in range(50):
        piece = random.randbytes(random.choice([1, 7, 100, 5000, 100_000]))
        sender.send(piece)
        whole += piece
        if i == 0:
            status, headers = await reading
            assert status == 200 and headers["Stream-State"] == "live", (status, headers)
        await follower.until(len(whole))
        assert follower.got == whole
    status, headers, _ = await sender.end()
    assert status == 201 and headers["Upload-Offset"] == str(len(whole)), (status, headers)
    assert await follower.to_end() == (whole, False)
    with open(f"{ROOT}/{name}", "rb") as file:
        assert file.read() == whole


async def check_many_bytes_go_through_at_once(client, name):
    pieces = [random.randbytes(random.randrange(1, 300_000)) for _ in range(60)]

    async def body():
        for piece in pieces:
            yield piece

    follower = Follower(client, f"/{name}?verb=FOLLOW&wait=20")
    following = asyncio.create_task(follower.head())
    status, _, _ = await client.ask("PUT", f"/{name}?verb=APPEND", None, body())
    assert status == 201, status
    await following
    assert await follower.to_end() == (b"".join(pieces), False)
    # A replay is none.
    status, headers, answer = await client.ask("PUT", f"/{name}?verb=APPEND", None, pieces[0])
    assert status == 409 and json.loads(answer)["type"] == "urn:httpfstream:problem:offset", answer
    assert headers["Upload-Offset"] == str(sum(map(len, pieces)))


async def check_events_hold_the_exact_bytes(client, name):
    pieces = [b"line\n", b"two\nlines", b"\r\n", b"\xff\xfe\x00", "€".encode()[:1], "€".encode()[1:], b"\n\n", b"data: x\n\n"]
    pieces += [random.randbytes(3000), b"", " text \u2028 behind it\n".encode() * 5000, b"\xc3"]
    whole = b"".join(pieces)
    sender = Sender(client, f"/{name}?verb=APPEND")
    follower = Follower(client, f"/{name}?verb=FOLLOW&wait=20", {"Accept": "text/event-stream"})
    reading = asyncio.create_task(follower.head())
    sender.send(pieces[0])
    status, headers = await reading
    assert status == 200 and headers["Content-Type"] == "text/event-stream", (status, headers)
    while told(events(follower.got))[0] != pieces[0]:
        await follower.until(len(follower.got) + 1)
    for piece in filter(None, pieces[1:]):
        sender.send(piece)
    assert (await sender.end())[0] == 201
    stream, cut = await follower.to_end()
    found = events(stream)
    got, states = told(found)
    assert got == whole and not cut
    life = headers["Stream-Life"]
    assert states == [
        {"offset": 0, "life": life, "state": "live"},
        {"state": "finished", "length": len(whole)},
    ], states
    # Going on behind each event gives the rest.
    for _, _, last in random.sample(found[:-1], 5):
        follower = Follower(client, f"/{name}?verb=FOLLOW", {"Accept": "text/event-stream", "Last-Event-ID": last})
        await follower.head()
        stream, cut = await follower.to_end()
        offset = int(last.split(":")[1])
        assert told(events(stream))[0] == whole[offset:] and not cut, last
    status, _, _ = await client.ask(
        "GET", f"/{name}?verb=FOLLOW", {"Accept": "text/event-stream", "Last-Event-ID": found[-1][2]}
    )
    assert status == 204, status


async def fault_24_a_broken_append_cuts_its_followers_who_go_on(client, name):
    first, second = random.randbytes(400_000), random.randbytes(300_000)
    sender = Sender(client, f"/{name}?verb=APPEND")
    follower = Follower(client, f"/{name}?verb=FOLLOW&wait=20")
    reading = asyncio.create_task(follower.head())
    sender.send(first)
    _, headers = await reading
    await follower.until(len(first))
    await sender.break_off()
    assert await follower.to_end() == (first, True), "not cut"
    await is_state(client, name, "interrupted")
    # Somebody goes on.
    again = Sender(client, f"/{name}?verb=APPEND&offset={len(first)}")
    again.send(second[:1])
    await stored(client, name, len(first) + 1)
    life = headers["Stream-Life"]
    follower = Follower(client, f"/{name}?verb=FOLLOW&offset={len(first) - 10}&life={life}")
    status, headers = await follower.head()
    assert (status, headers["Stream-Offset"]) == (200, str(len(first) - 10))
    again.send(second[1:])
    assert (await again.end())[0] == 200
    assert await follower.to_end() == (first[-10:] + second, False)
    # Bytes of another life are never spliced.
    assert (await client.ask("DELETE", f"/{name}"))[0] == 204
    assert (await client.ask("PUT", f"/{name}?verb=APPEND", None, second))[0] == 201
    status, _, answer = await client.ask("GET", f"/{name}?verb=FOLLOW&offset=10&life={life}")
    assert status == 412 and json.loads(answer)["type"] == "urn:httpfstream:problem:life", answer


async def fault_32_an_appender_comes_back_by_its_id_and_nobody_notices(client, name):
    pieces = [random.randbytes(200_000) for _ in range(4)]
    secret = {"Appender-Id": base64.urlsafe_b64encode(random.randbytes(18)).decode()}
    follower = Follower(client, f"/{name}?verb=FOLLOW&wait=20")
    reading = asyncio.create_task(follower.head())
    at = 0
    for piece in pieces[:-1]:
        sender = Sender(client, f"/{name}?verb=APPEND&offset={at}", secret)
        sender.send(piece)
        at += len(piece)
        if not reading.done():
            await reading
        await follower.until(at)
        await sender.break_off()
    status, headers, _ = await client.ask("POST", f"/{name}?verb=APPEND&offset={at}", secret, pieces[-1])
    assert status == 200, status
    assert await follower.to_end() == (b"".join(pieces), False)


async def fault_31_a_slow_reader_gets_everything_before_the_abort(client, name):
    whole = random.randbytes(12_000_000)
    sender = Sender(client, f"/{name}?verb=APPEND")
    sender.send(whole[:1])
    await stored(client, name, 1)
    # A connection of its own: who reads slowly over HTTP/2 holds up what else it asks for.
    other = client.again()
    follower = Follower(other, f"/{name}?verb=FOLLOW")
    await follower.head()
    for at in range(1, len(whole), 1_000_000):
        sender.send(whole[at : at + 1_000_000])
    await stored(client, name, len(whole))
    await sender.break_off()
    await is_state(client, name, "interrupted")
    got, cut = b"", False
    try:
        async for piece in follower.stream:
            got += piece
            await asyncio.sleep(len(piece) / 6_000_000)
    except Cut:
        cut = True
    # aiohttp throws away what it has read and not given out yet; so a reader goes on by what it has got. That may be a read
    # of asyncio's (256 KiB) on top of the 128 KiB at which it stops to read.
    missing = 384 * 1024 if client.name == "aiohttp" else 0
    assert cut and whole.startswith(got) and len(got) >= len(whole) - missing, (len(got), cut)
    await other.close()


async def fault_29_a_refusal_is_seen_while_the_body_is_sent(client, name):
    sender = Sender(client, f"/{name}?verb=APPEND")
    sender.send(b"mine")
    await stored(client, name, 4)
    for body in (b"x", random.randbytes(50_000)):
        status, _, answer = await client.ask("POST", f"/{name}?verb=APPEND", None, body)
        assert status == 409 and json.loads(answer)["type"] == "urn:httpfstream:problem:busy", (status, answer)
    assert (await sender.end())[0] == 201
    assert (await client.ask("GET", f"/{name}"))[2] == b"mine"


async def check_answers_to_head_have_no_body(client, name):
    # Over HTTP/2 one would break the protocol.
    for target in ("absent", "absent?verb=FOLLOW", "../x?verb=FOLLOW", f"{name}?verb=FOLLOW&offset=5", f"{name}?verb=APPEND"):
        status, _, body = await client.ask("HEAD", f"/{target}")
        assert status >= 400 and body == b"", (target, status, body)
    assert (await client.ask("PUT", f"/{name}?verb=APPEND", None, b"mine"))[0] == 201
    for target in (name, f"{name}?verb=FOLLOW"):
        status, headers, body = await client.ask("HEAD", f"/{target}")
        assert (status, headers["Content-Length"], body) == (200, "4", b""), (target, status, headers)


async def main():
    checks = [f for name, f in globals().items() if name.startswith(("check_", "fault_"))]
    passed = 0
    for make in (lambda: Httpx(False), lambda: Httpx(True), Aiohttp):
        for check in checks:
            client = make()
            # httpx lets a second request over HTTP/2 go only once it has read something.
            await client.ask("HEAD", "/absent")
            name = f"{client.name.replace('/', '').replace(' ', '-')}/{check.__name__}"
            await asyncio.wait_for(check(client, name), LIMIT)
            await client.close()
            passed += 1
            print(f"ok {check.__name__}: {client.name}", flush=True)
    print(f"python_http.py: {passed} passed, 0 failed")


asyncio.run(main())
