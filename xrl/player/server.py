"""`xrl dream RUN`: the dream player on a port of this machine."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xrl.common.errors import ConfigError
from xrl.common.registry import load

if TYPE_CHECKING:
    from xrl.player.app import DreamApp


def serve(place: str | Path, host: str = "127.0.0.1", port: int = 0, open_browser: bool = False) -> None:
    """Print an address where the model at ``place`` can be played in, and serve it until Ctrl-C.

    ``place``: a run folder, a folder of runs (its newest model) or a model file. ``port`` 0: any free one.

    Raises:
        ConfigError: aiohttp is missing, the port is taken, the host is none, or nothing is at ``place``.
        ModelFileError: there is no model, or it cannot be read.
    """
    try:
        app_class = load("xrl.player.app:DreamApp")
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ConfigError('dream: aiohttp is not installed; run: pip install aiohttp') from error
    with closing(listen(host, port)) as listener:  # before the model is loaded: a port in use is told at once
        player = load("xrl.player.session:load_player")(place)
        with closing(player):
            app = app_class(player, secrets.token_urlsafe(16), host)
            with suppress(KeyboardInterrupt):  # where no handler of signals can be set
                asyncio.run(run(app, listener, open_browser))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError."""
    if not 0 <= port < 65_536:  # some systems take the remainder
        raise ConfigError(f"--port {port}: is no port; use 1 to 65535, or leave it out")
    wrong_host = f"--host {host}: cannot be listened at: {{}}; use 127.0.0.1, or an address of this machine"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise ConfigError(wrong_host.format(error)) from error
    try:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(wrong_host.format(error)) from error
        raise ConfigError(f"--port {port}: cannot be listened at on {host}: {error}; name another port, or leave "
                          f"--port out to take any free one") from error
    return listener


def address_of(listener: socket.socket, host: str, token: str) -> str:
    """What to type into a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/?token={token}"


async def run(app: DreamApp, listener: socket.socket, open_browser: bool) -> None:
    """Serve ``app`` until Ctrl-C or SIGTERM, then close every session."""
    from aiohttp import web

    stop = asyncio.Event()
    with suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; a thread that is not the main one
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app.make(), access_log=None, shutdown_timeout=3.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        tell(app, address_of(listener, app.host, app.token), open_browser)
        await stop.wait()
    finally:
        await runner.cleanup()
        app.worker.shutdown()


def tell(app: DreamApp, address: str, open_browser: bool) -> None:
    """Say where the page is, and perhaps show it."""
    print(f"{app.player.path}: {app.player.config.env_id}, {app.player.agent.frames:,} frames of training")
    print(f"play in its dream at\n\n    {address}\n\nCtrl-C ends it", flush=True)
    if app.host not in load("xrl.player.app:LOOPBACK_NAMES"):
        print(f"--host {app.host}: whoever knows this address, or reads it on the way (it is not encrypted), can use "
              "the page; without --host only this machine can", file=sys.stderr)
    if open_browser:
        threading.Thread(target=_open, args=(address,), daemon=True).start()  # a browser may keep its caller waiting


def _open(address: str) -> None:
    if not webbrowser.open(address):
        print("--open: no browser was found here; open the address yourself", file=sys.stderr)
