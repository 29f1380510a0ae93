"""What the browser talks to: one page, and a websocket per session. Needs aiohttp (see server.py)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import torch
from aiohttp import WSMsgType, web

from xrl.common.config_keys import flatten
from xrl.common.errors import XrlError
from xrl.player.session import DreamSession, Frame, Player

MOST_SESSIONS = 4
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_PAGE = Path(__file__).with_name("page.html")
_WIDEST_PICTURE = 300  # pixels
_REFUSED = ("<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            "<title>xrl dream</title><p style='font:16px system-ui;max-width:40em;margin:4em auto;padding:1em'>{}")
_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY"}


class DreamApp:
    """The web application around a Player. ``token`` must be in every request; ``host`` is where it listens.

    All steps of all sessions run in one thread: the networks are shared, and more would only take turns.
    """

    def __init__(self, player: Player, token: str, host: str) -> None:
        self.player, self.token, self.host = player, token, host
        # Products this small gain little from more threads, and lose much where another process wants the cores.
        self.worker = ThreadPoolExecutor(1, "dream", initializer=torch.set_num_threads, initargs=(1,))
        self.sockets: set[web.WebSocketResponse] = set()
        self.sessions = 0

    def make(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/ws", self._connect)
        app.on_shutdown.append(self._close)
        return app

    @web.middleware
    async def _guard(self, request: web.Request,
                     handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """403 without the token, and to a page of another site, whatever name it gives this machine (DNS rebinding)."""
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if not host_allowed(host, self.host) or (origin is not None and urlsplit(origin).netloc != host):
            return _refusal("This address is not answered under that name. Use the one that xrl dream printed.")
        if not secrets.compare_digest(request.query.get("token", "").encode(), self.token.encode()):
            return _refusal("This page opens only with its token: use the whole address that xrl dream printed.")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        policy = (f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
                  "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        text = _PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        return web.Response(text=text, content_type="text/html",
                            headers={**_HEADERS, "Content-Security-Policy": policy})

    async def _connect(self, request: web.Request) -> web.WebSocketResponse:
        # No compression: frames are small, and deflating one costs more than drawing it.
        connection = web.WebSocketResponse(timeout=1.0, heartbeat=30, max_msg_size=65_536, compress=False)
        await connection.prepare(request)
        if len(self.sockets) >= MOST_SESSIONS:
            await connection.send_json({"error": f"{MOST_SESSIONS} pages play already; close one and load this again"})
            await connection.close()
            return connection
        self.sockets.add(connection)
        try:
            await self._play(connection)
        except XrlError as error:
            await connection.send_json({"error": str(error)})
        except ConnectionError:
            pass  # the page was closed while a frame was under way
        finally:
            self.sockets.discard(connection)
        return connection

    async def _play(self, connection: web.WebSocketResponse) -> None:
        self.sessions += 1
        session = await self._work(DreamSession, self.player, self.sessions)
        try:
            await connection.send_json(describe(session))
            await connection.send_bytes(await self._work(lambda: encode(session.start())))
            async for message in connection:
                if message.type is WSMsgType.TEXT:
                    try:
                        await connection.send_bytes(await self._work(answer, session, message.data))
                    except XrlError as error:
                        await connection.send_json({"error": str(error)})
        finally:
            self.worker.submit(session.close)  # not awaited: where the page is gone this task is cancelled

    async def _work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.worker, function, *arguments)

    async def _close(self, _: web.Application) -> None:
        for connection in list(self.sockets):
            await connection.close(message=b"xrl dream has ended")


def host_allowed(header: str, bound: str) -> bool:
    """Whether a Host header names this machine. Any port: a tunnel may have another. A name that an attacker's DNS
    could lead here is none of these; an address is no name."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
        if name in LOOPBACK_NAMES:
            return True
        if bound in LOOPBACK_NAMES:
            return False
        return name in (bound.lower(), socket.gethostname().lower()) or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _refusal(why: str) -> web.Response:
    return web.Response(status=403, text=_REFUSED.format(why), content_type="text/html", headers=_HEADERS)


def answer(session: DreamSession, text: str) -> bytes:
    """One message of the page, ``{"do": "new"}`` or ``{"do": "step", "action": ..., "real": bool}``, to a frame.

    Raises XrlError with what is wrong about it.
    """
    try:
        message = json.loads(text)
        what = message["do"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise XrlError("not a message of this page; load it again") from None
    if what == "new":
        return encode(session.start())
    if what != "step":
        raise XrlError(f"do: {what!r}: use step or new")
    return encode(session.step(session.read_action(message.get("action")), bool(message.get("real", True))))


def describe(session: DreamSession) -> dict[str, Any]:
    """What the page must know before the first frame."""
    player, agent = session.player, session.agent
    run = player.path.parent
    return {"run": "/".join(run.absolute().parts[-3:]), "model": player.path.name, "env": player.config.env_id,
            "method": player.config.method, "frames": agent.frames, "updates": agent.updates, "fps": player.fps,
            "kind": "discrete" if session.buttons else "continuous",
            "size": len(session.buttons.names) if session.buttons else session.spec.size, "names": player.names,
            "reward": reward_label(player.config),
            "obs": [{"name": name, "kind": spec.kind, "shape": spec.shape}
                    for name, spec in session.envs.obs_spec.items()]}


def reward_label(config: Any) -> str:
    """In which unit rewards are shown: as the world model learns them, for methods that scale or transform them."""
    keys = flatten(config)
    scale, transform = keys.get("world_model.reward_scale", 1), keys.get("world_model.reward_transform", "identity")
    inner = "reward" if scale == 1 else f"{scale:g} x reward"
    return inner if transform == "identity" else f"{transform}({inner})"


def encode(frame: Frame) -> bytes:
    """A frame in one message: length of the head (4 bytes, little-endian), the head (JSON), then the arrays that it
    lists, raw: images as bytes, vectors as float32. A picture is a PNG."""
    look, real = frame.look, frame.real
    arrays = [("dream", name, value[0].tobytes()) for name, value in look.obs.items()]
    if real is not None:
        arrays += [("real", name, value.tobytes()) for name, value in real.obs.items()]
        if real.picture is not None:
            arrays.append(("picture", "", _png(real.picture)))
    head = {
        "step": frame.step, "total": frame.total, "action": _rounded(frame.taken), "policy": _rounded(frame.policy),
        **{name: float(value[0]) for name, value in vars(look).items() if name not in ("obs", "action")},
        "real": real and {"reward": real.reward, "total": real.total, "ended": real.ended},
        "arrays": [(role, name, len(data)) for role, name, data in arrays]}
    text = json.dumps(head).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(data for _, _, data in arrays)])


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def _png(picture: np.ndarray) -> bytes:
    scale = min(1.0, _WIDEST_PICTURE / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", small[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
