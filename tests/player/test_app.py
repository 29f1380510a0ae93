"""What the server answers, and to whom."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from xrl.common.errors import XrlError
from xrl.player import app as module
from xrl.player.app import DreamApp, answer, describe, encode, host_allowed, reward_label
from xrl.player.session import DreamSession

TOKEN = "a-secret"


def unpack(message):
    """The protocol once more, from its description."""
    size, = struct.unpack_from("<I", message)
    head = json.loads(message[4:4 + size])
    place, arrays = 4 + size, {}
    for role, name, length in head["arrays"]:
        arrays[role, name] = message[place:place + length]
        place += length
    assert place == len(message)
    return head, arrays


def with_client(player, talk, host="127.0.0.1"):
    """What ``talk(client)`` returns, a real server on a free port behind the client."""
    async def main():
        app = DreamApp(player, TOKEN, host)
        async with TestClient(TestServer(app.make())) as client:
            try:
                return await talk(client)
            finally:
                app.worker.shutdown()

    return asyncio.run(main())


@pytest.fixture
def catch(players):
    return players("toy", "Catch-v0")


# Who is let in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "headers", "status"), [
    (f"?token={TOKEN}", {}, 200),
    ("", {}, 403),
    ("?token=", {}, 403),
    ("?token=a-secreT", {}, 403),
    ("?token=%C3%A4", {}, 403),
    (f"?token={TOKEN}&token=x", {}, 200),
    (f"?token={TOKEN}", {"Host": "evil.example"}, 403),
    (f"?token={TOKEN}", {"Host": "evil.example:80"}, 403),
    (f"?token={TOKEN}", {"Host": "localhost.evil.example"}, 403),
    (f"?token={TOKEN}", {"Host": "10.0.0.1"}, 403),
    (f"?token={TOKEN}", {"Host": "localhost:8000"}, 200),  # through a tunnel
    (f"?token={TOKEN}", {"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
    (f"?token={TOKEN}", {"Host": "localhost:8000", "Origin": "http://evil.example"}, 403),
    (f"?token={TOKEN}", {"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
    (f"?token={TOKEN}", {"Origin": "null"}, 403),
])
def test_who_gets_the_page(catch, query, headers, status):
    async def talk(client):
        for path in ("/", "/ws", "/elsewhere"):
            response = await client.get(path + query, headers=headers)
            wanted = status if status == 403 else {"/": 200, "/ws": 400, "/elsewhere": 404}[path]
            assert response.status == wanted, path
            if response.status == 403:
                assert "xrl dream" in await response.text() and TOKEN not in await response.text()

    with_client(catch, talk)


def test_the_page_loads_nothing_from_elsewhere(catch):
    async def talk(client):
        response = await client.get(f"/?token={TOKEN}")
        return await response.text(), response.headers

    text, headers = with_client(catch, talk)
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert policy.startswith("default-src 'none'") and text.count(f'nonce="{nonce}"') == 2 and "{{" not in text
    assert "http://" not in text and "https://" not in text and "src=" not in text
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(("header", "bound", "allowed"), [
    ("127.0.0.1:99", "127.0.0.1", True), ("[::1]:99", "::1", True), ("LOCALHOST", "127.0.0.1", True),
    ("192.168.1.5:80", "127.0.0.1", False), ("192.168.1.5:80", "0.0.0.0", True), ("[fe80::1]:80", "::", True),
    ("evil.example", "0.0.0.0", False), ("box.lan:1", "box.lan", True), ("other.lan:1", "box.lan", False),
    (socket.gethostname(), "0.0.0.0", True), ("", "0.0.0.0", False), ("[", "0.0.0.0", False),
])
def test_names_of_this_machine(header, bound, allowed):
    assert host_allowed(header, bound) is allowed


# A session ------------------------------------------------------------------------------------------------------


async def connect(client):
    connection = await client.ws_connect(f"/ws?token={TOKEN}")
    return connection, await connection.receive_json(), unpack(await connection.receive_bytes())


async def until(true):
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")


def test_a_session(catch):
    async def talk(client):
        connection, hello, (head, arrays) = await connect(client)
        heads = []
        for action in (0, "agent", 2):
            await connection.send_json({"do": "step", "action": action, "real": action != 2})
            heads.append(unpack(await connection.receive_bytes()))
        await connection.send_json({"do": "new"})
        again, _ = unpack(await connection.receive_bytes())
        await connection.close()
        return hello, head, arrays, heads, again

    hello, head, arrays, heads, again = with_client(catch, talk)
    assert hello["names"] == ["LEFT", "NOOP", "RIGHT"] and hello["env"] == "Catch-v0" and hello["frames"] == 123
    assert hello["run"].startswith("DreamerV2/Catch-v0/seed_1_") and hello["obs"][0]["shape"] == [64, 64, 1]
    assert head["step"] == 0 and again["step"] == 0 and head["total"] == 0
    assert {key: len(value) for key, value in arrays.items()} == {("dream", "image"): 4096, ("real", "image"): 4096}
    assert [step["step"] for step, _ in heads] == [1, 2, 3]
    assert heads[0][0]["action"] == [1, 0, 0] and heads[2][0]["action"] == [0, 0, 1]
    assert heads[1][0]["action"][int(np.argmax(heads[0][0]["policy"]))] == 1
    assert heads[2][0]["real"] is None and list(heads[2][1]) == [("dream", "image")]
    assert heads[0][0]["real"].keys() == {"reward", "total", "ended"}


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"new"', "{}", '{"do": "quit"}', '{"do": "step"}', "[" * 5000,
                                  '{"do": "step", "action": 99}', '{"do": ["step"]}'])
def test_what_is_no_message(catch, text):
    async def talk(client):
        connection, _, _ = await connect(client)
        await connection.send_str(text)
        error = await connection.receive_json()
        await connection.send_json({"do": "step", "action": 1})
        head, _ = unpack(await connection.receive_bytes())
        await connection.close()
        return error, head

    error, head = with_client(catch, talk)
    assert error["error"] and head["step"] == 1  # the session goes on


def test_sessions_are_few_and_each_its_own(catch, monkeypatch):
    closed = []
    monkeypatch.setattr(DreamSession, "close", lambda self: closed.append(self.envs.close()))

    async def talk(client):
        open_ones = [(await connect(client))[0] for _ in range(module.MOST_SESSIONS)]
        await open_ones[0].send_json({"do": "step", "action": 1})
        await open_ones[1].send_json({"do": "step", "action": 1})
        steps = [unpack(await each.receive_bytes())[0]["step"] for each in open_ones[:2]]
        late = await client.ws_connect(f"/ws?token={TOKEN}")
        refused = await late.receive_json()
        assert (await late.receive()).type is aiohttp.WSMsgType.CLOSE
        await open_ones[0].close()
        await until(lambda: closed)
        other, hello, _ = await connect(client)
        for each in [*open_ones[1:], other]:
            await each.close()
        await until(lambda: len(closed) == 5)
        return steps, refused, hello

    steps, refused, hello = with_client(catch, talk)
    assert steps == [1, 1] and "4 pages play already" in refused["error"] and "env" in hello


def test_the_end_of_the_server_ends_the_sessions(catch, monkeypatch):
    closed = []
    monkeypatch.setattr(DreamSession, "close", lambda self: closed.append(self.envs.close()))

    async def main():
        app = DreamApp(catch, TOKEN, "127.0.0.1")
        client = TestClient(TestServer(app.make()))
        await client.start_server()
        connection, _, _ = await connect(client)
        await client.server.close()
        assert (await connection.receive()).type is aiohttp.WSMsgType.CLOSE
        await client.close()
        app.worker.shutdown()

    asyncio.run(main())
    assert len(closed) == 1


# What is sent ---------------------------------------------------------------------------------------------------


def test_vectors_and_pictures(players):
    session = DreamSession(players("classic_control", "CartPole-v1"), 1)
    frame = session.start()
    head, arrays = unpack(encode(frame))
    session.close()
    assert np.array_equal(np.frombuffer(arrays["real", "vector"], "<f4"), frame.real.obs["vector"])
    assert np.array_equal(np.frombuffer(arrays["dream", "vector"], "<f4"), frame.look.obs["vector"][0])
    assert arrays["picture", ""][:8] == b"\x89PNG\r\n\x1a\n"
    assert head["cont"] == pytest.approx(float(frame.look.cont[0])) and "obs" not in head


def test_a_continuous_session(players):
    session = DreamSession(players("classic_control", "Pendulum-v1"), 1)
    assert describe(session)["kind"] == "continuous" and describe(session)["size"] == 1
    session.start()
    head, _ = unpack(answer(session, '{"do": "step", "action": [0.25]}'))
    assert head["action"] == [0.25]
    with pytest.raises(XrlError):
        answer(session, '{"do": "step", "action": [NaN]}')
    session.close()


@pytest.mark.parametrize(("transform", "scale", "label"), [
    ("identity", 1.0, "reward"), ("tanh", 1.0, "tanh(reward)"), ("identity", 0.1, "0.1 x reward"),
    ("sign", 2.0, "sign(2 x reward)")])
def test_the_unit_of_rewards(players, transform, scale, label):
    keys = {"world_model.reward_transform": transform, "world_model.reward_scale": scale}
    player = players("toy", "Catch-v0", **keys)
    assert reward_label(player.config) == label
