"""`serve`: its address, its port, its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from xrl.common.errors import ConfigError, ModelFileError
from xrl.player import server
from xrl.player.server import address_of, listen, serve


def test_serves_until_ctrl_c(save, tmp_path):
    run = save("toy", "Catch-v0")
    code = f"from xrl.player.server import serve; serve({str(run)!r}, open_browser=True)"
    nothing = {"BROWSER": "false", "PATH": "/nowhere", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, **nothing}) as process:
        try:
            lines = [process.stdout.readline() for _ in range(4)]
            address = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{20,}", "".join(lines))[0]
            assert "Catch-v0, 123 frames of training" in lines[0]
            with urllib.request.urlopen(address) as page:
                assert page.status == 200
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(address.partition("?")[0])
            early = []
            while not early or "no browser was found" not in early[-1]:  # a thread says it, in its own time
                early.append(process.stderr.readline())
                assert early[-1], "the server has ended"
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in "".join([*early, complaints])


def test_a_port_in_use_is_told_before_the_model_is_loaded():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: cannot be listened at .*name another port"):
            serve("/there/is/no/such/run", port=port)


@pytest.mark.parametrize(("host", "port", "told"), [
    ("no.such.host.invalid", 8123, r"^--host no.such.host.invalid: cannot be listened at: .*; use 127.0.0.1, or an"),
    ("192.0.2.1", 8123, r"^--host 192.0.2.1: cannot be listened at: .*; use 127.0.0.1, or an"),  # for documentation
    ("127.0.0.1", 70_000, "^--port 70000: is no port; use 1 to 65535, or leave it out$"),
    ("127.0.0.1", -1, "^--port -1: is no port")])
def test_no_such_address(host, port, told):
    with pytest.raises(ConfigError, match=told) as caught:
        listen(host, port)
    assert "--host" not in told or "--port" not in str(caught.value)


def test_the_port_is_given_back_where_there_is_no_model(tmp_path):
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    for _ in range(2):
        with pytest.raises(ModelFileError, match="no run and no model"):
            serve(tmp_path, port=port)


def test_without_aiohttp(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "xrl.player.app", raising=False)
    with pytest.raises(ConfigError, match=r'pip install aiohttp'):
        serve(tmp_path)


def test_addresses():
    with listen("127.0.0.1", 0) as local:
        port = local.getsockname()[1]
        assert address_of(local, "127.0.0.1", "t") == f"http://127.0.0.1:{port}/?token=t"
        assert address_of(local, "::1", "t") == f"http://[::1]:{port}/?token=t"
        assert address_of(local, "0.0.0.0", "t") == f"http://{socket.gethostname()}:{port}/?token=t"


def test_other_machines_are_warned_of(players, capsys):
    from xrl.player.app import DreamApp

    app = DreamApp(players("toy", "Catch-v0"), "t", "0.0.0.0")
    server.tell(app, "http://box:1/?token=t", open_browser=False)
    assert "--host 0.0.0.0: whoever knows this address" in capsys.readouterr().err
    app.host = "127.0.0.1"
    server.tell(app, "http://127.0.0.1:1/?token=t", open_browser=False)
    assert capsys.readouterr().err == ""
