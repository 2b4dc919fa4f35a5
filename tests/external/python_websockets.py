"""Checks that Python's `websockets` and the server understand each other: see python_websockets.sh.

Each function `check_…` or `fault_NN_…` is a check, and all of them run.
"""

import asyncio
import os
import random
import sys
import time
import urllib.error
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

URL, ROOT = sys.argv[1], sys.argv[2]
WS = URL.replace("http://", "ws://")


def append(name, **options):
    return connect(f"{WS}/{name}?verb=APPEND", max_size=None, **options)


def follow(name, **options):
    """As a browser does."""
    return connect(f"{WS}/{name}?verb=FOLLOW", max_size=None, **options)


def follow_by_header(name, **options):
    """As the original's client does."""
    return connect(f"{WS}/{name}", additional_headers={"X-Verb": "FOLLOW"}, max_size=None, **options)


async def to_end(ws):
    """All messages, and the close code."""
    messages = []
    try:
        while True:
            messages.append(await ws.recv())
    except ConnectionClosed as closed:
        return messages, closed.rcvd.code if closed.rcvd else None


def joined(messages):
    return b"".join(m.encode() if isinstance(m, str) else m for m in messages)


async def received(ws, size):
    """Messages of so many bytes altogether."""
    messages = []
    while len(joined(messages)) < size:
        messages.append(await ws.recv())
    return messages


async def get(name):
    """Status, stream state and body of a plain GET."""

    def blocking():
        try:
            with urllib.request.urlopen(f"{URL}/{name}", timeout=10) as answer:
                return answer.status, answer.headers["Stream-State"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, None, error.read()

    return await asyncio.to_thread(blocking)


async def comes_to(name, state):
    """Waits until a resource is in a state; its bytes."""
    while True:
        _, now, body = await get(name)
        if now == state:
            return body
        await asyncio.sleep(0.02)


async def refused(connecting):
    """The answer to a handshake that has to be refused."""
    try:
        async with connecting:
            pass
    except InvalidStatus as error:
        return error.response
    raise AssertionError("let in")


async def check_text_and_binary_are_appended_and_a_close_finishes():
    async with append("mixed") as out:
        await out.send("text, ")
        await out.send(b"binary \x00\xff, ")
        await out.send(["in ", "fragments", ", "])
        await out.send([b"binary ", b"fragments"])
        live = await get("mixed")
        await out.close(1000)
        assert out.close_code == 1000, out.close_code
    expected = b"text, binary \x00\xff, in fragments, binary fragments"
    assert live[0] == 200 and expected.startswith(live[2]), live
    # The close was answered, so it is all there.
    assert await get("mixed") == (200, "finished", expected)
    with open(f"{ROOT}/mixed", "rb") as file:
        assert file.read() == expected


async def fault_24_a_connection_that_breaks_is_interrupted_and_followers_get_1011():
    out = await append("broken")
    await out.send("kept")
    followers = [await follow("broken"), await follow_by_header("broken")]
    for ws in followers:
        assert joined(await received(ws, 4)) == b"kept"
    out.transport.abort()
    for ws in followers:
        messages, code = await to_end(ws)
        assert (messages, code) == ([], 1011), (messages, code)
    assert await comes_to("broken", "interrupted") == b"kept"


async def check_followers_by_query_get_text_until_the_bytes_are_no_text():
    async with append("query") as out:
        await out.send("plain ü ")
        async with follow("query") as ws:
            assert await ws.recv() == "plain ü "
            await out.send("€".encode()[:2])
            await out.send("€".encode()[2:] + b"!")
            messages = await received(ws, 4)
            assert all(isinstance(m, str) for m in messages) and joined(messages) == "€!".encode(), messages
            await out.send(b"bad: \xff\xfe")
            messages = await received(ws, 7)
            assert joined(messages) == b"bad: \xff\xfe" and isinstance(messages[-1], bytes), messages
            await out.send("text again")
            assert await ws.recv() == b"text again", "binary from there on"
            await out.close()
            assert await to_end(ws) == ([], 1000)


async def check_followers_by_header_get_text_in_small_frames():
    text = "".join(chr(random.choice([65, 0xE9, 0x20AC, 0x1F600])) for _ in range(100_000))
    async with append("header") as out:
        await out.send(text)
        async with follow_by_header("header") as ws:
            first = await received(ws, len(text.encode()))
            await out.send(text)
            await out.close()
            rest, code = await to_end(ws)
    assert code == 1000, code
    assert all(isinstance(m, str) and len(m.encode()) <= 10 * 1024 for m in first + rest)
    assert "".join(first) == text and "".join(rest) == text


async def check_followers_by_header_get_any_bytes_as_text():
    data = random.randbytes(100_000)
    async with append("opaque") as out:
        await out.send(data)
        async with follow_by_header("opaque") as ws:
            await out.close()
            got = b""
            try:
                while True:
                    # Without decoding, which would refuse it.
                    got += await ws.recv(decode=False)
            except ConnectionClosed as closed:
                assert closed.rcvd.code == 1000, closed
    assert got == data


async def fault_27_followers_that_join_at_random_miss_and_repeat_nothing():
    rng = random.Random(27)
    messages = [bytes(rng.choices(range(32, 127), k=rng.choice([1, 64, 300, 5000]))) for _ in range(3000)]
    whole = b"".join(messages)
    out = await append("random")
    await out.send(messages[0])

    async def one(delay, connecting):
        await asyncio.sleep(delay)
        async with connecting as ws:
            got, code = await to_end(ws)
            assert code == 1000, code
            assert joined(got) == whole, f"{len(joined(got))} of {len(whole)} bytes, or others"

    kinds = [follow, follow_by_header]
    tasks = [asyncio.create_task(one(rng.uniform(0, 3), kinds[i % 2]("random"))) for i in range(60)]
    start = time.monotonic()
    for i, message in enumerate(messages[1:]):
        await out.send(message)
        await asyncio.sleep(max(0, start + i / 800 - time.monotonic()))
    # Those who join later find it finished.
    await asyncio.sleep(max(0, start + 3.5 - time.monotonic()))
    await out.close()
    await asyncio.gather(*tasks)
    assert await get("random") == (200, "finished", whole)


async def fault_28_followers_that_join_at_the_end_get_all_of_it():
    for i in range(30):
        name = f"ends/{i}"
        out = await append(name)
        await out.send("everything")

        async def one():
            try:
                async with follow(name) as ws:
                    got, code = await to_end(ws)
                    assert (joined(got), code) == (b"everything", 1000), (got, code)
            except InvalidStatus as error:
                # It had ended: a plain answer.
                assert (error.response.status_code, error.response.body) == (200, b"everything"), error.response

        followers = [asyncio.create_task(one()) for _ in range(4)]
        await asyncio.sleep(random.uniform(0, 0.01))
        await out.close()
        await asyncio.gather(*followers)


async def fault_29_of_many_appenders_one_is_accepted():
    tries = await asyncio.gather(*(append("many").__aenter__() for _ in range(20)), return_exceptions=True)
    accepted = [ws for ws in tries if not isinstance(ws, Exception)]
    refusals = {ws.response.status_code for ws in tries if isinstance(ws, Exception)}
    assert len(accepted) == 1 and refusals == {409}, (accepted, refusals)
    await accepted[0].send("mine")
    await accepted[0].close()
    assert await get("many") == (200, "finished", b"mine")


async def check_absent_is_404_and_finished_is_a_plain_200():
    for kind in (follow, follow_by_header):
        assert (await refused(kind("absent"))).status_code == 404
    async with append("done") as out:
        await out.send("all")
    for kind in (follow, follow_by_header):
        response = await refused(kind("done"))
        assert (response.status_code, response.body) == (200, b"all"), response


async def check_a_second_append_continues():
    for part in ("one ", "two"):
        async with append("twice") as out:
            await out.send(part)
    assert await get("twice") == (200, "finished", b"one two")


async def check_pings_are_answered():
    async with append("pinged") as out:
        await out.send("x")
        await asyncio.wait_for(await out.ping(), 5)
        async with follow("pinged") as ws:
            await asyncio.wait_for(await ws.ping(b"payload"), 5)


async def fault_17_foreign_pages_are_403():
    for origin in ("http://evil.example", "null"):
        for kind in (append, follow):
            assert (await refused(kind("foreign", origin=origin))).status_code == 403
    assert not os.path.exists(f"{ROOT}/foreign")
    async with append("own", origin=URL) as out:
        await out.send("x")


async def fault_21_a_message_over_the_limit_is_1009():
    # Without `async with`, which stumbles over a connection that was closed while it sent.
    out = await append("large")
    await out.send("kept")
    try:
        await out.send(bytes(17 << 20))
        await out.recv()
        raise AssertionError("accepted")
    except ConnectionClosed as closed:
        assert closed.rcvd and closed.rcvd.code == 1009, closed
    assert await comes_to("large", "interrupted") == b"kept"


async def fault_25_a_follower_that_sends_data_is_closed():
    async with append("quiet") as out:
        await out.send("x")
        async with follow("quiet") as ws:
            await ws.send("hello?")
            messages, code = await to_end(ws)
            assert joined(messages) in (b"", b"x") and code == 1008, (messages, code)
        await out.close()
    assert await get("quiet") == (200, "finished", b"x")


async def fault_26_compression_is_declined():
    async with append("flat", compression="deflate") as out:
        assert out.protocol.extensions == [], out.protocol.extensions
        await out.send("x" * 1000)
    assert (await get("flat"))[2] == b"x" * 1000


async def main():
    checks = [f for name, f in globals().items() if name.startswith(("check_", "fault_"))]
    for check in checks:
        await asyncio.wait_for(check(), 30)
        print(f"ok {check.__name__}", flush=True)
    print(f"python_websockets.py: {len(checks)} passed, 0 failed")


asyncio.run(main())
