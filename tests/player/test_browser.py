"""The page in a real browser. Where XRL_SCREENSHOTS names a folder, its pictures go there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.player.browser import CHROMIUM, chromium
from xrl.player.app import DreamApp
from xrl.player.server import address_of, listen

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

PIXELS = "[...screens['{} image'].getContext('2d').getImageData(0, 0, 64, 64).data].join()"
STEP = "Number(document.body?.dataset.step)"


def in_browser(player, folder, talk):
    """What ``talk(browser)`` returns, which has the page of ``player`` open. Nothing may go wrong in the page."""
    async def main():
        from aiohttp import web

        with listen("127.0.0.1", 0) as listener:
            app = DreamApp(player, "a-secret", "127.0.0.1")
            runner = web.AppRunner(app.make(), shutdown_timeout=1.0)
            await runner.setup()
            await web.SockSite(runner, listener).start()
            async with chromium(folder) as browser:
                await browser.look(1280, 900, dark=False)
                await browser.open(address_of(listener, app.host, app.token))
                await browser.wait(f"{STEP} === 0")
                await talk(browser)
                assert browser.trouble == []
                await photograph(browser, player.config.env_id)
            await runner.cleanup()
            app.worker.shutdown()

    asyncio.run(main())


async def photograph(browser, name):
    if folder := os.environ.get("XRL_SCREENSHOTS"):
        for width, height in ((1280, 900), (390, 844)):
            for dark in (False, True):
                await browser.look(width, height, dark)
                await browser.ask("new Promise(done => setTimeout(done, 100))")
                await browser.picture(Path(folder) / f"{name}_{width}_{'dark' if dark else 'light'}.png")


def test_keys_act_frames_change_and_the_agent_takes_over(players, tmp_path):
    async def talk(browser):
        first = await browser.ask(PIXELS.format("dream"))
        assert "Paused" in await browser.ask("$('say').innerText")
        assert await browser.ask("[$('reward').innerText, plots[0].number.innerText]") == ["-", "-"]
        await browser.key("keyDown", "ArrowRight")  # the first key begins the game
        await browser.wait(f"{STEP} >= 3")
        await browser.key("keyUp", "ArrowRight")
        assert await browser.ask(PIXELS.format("dream")) != first
        await browser.wait("document.querySelector('.action.taken').dataset.index === '1'")  # no key: NOOP
        await browser.key("keyDown", "ArrowLeft")
        await browser.wait("document.querySelector('.action.taken').dataset.index === '0'")
        await browser.key("keyUp", "ArrowLeft")
        shares = await browser.ask("[...document.querySelectorAll('.action em')].map(e => parseInt(e.innerText))")
        assert len(shares) == 3 and sum(shares) == pytest.approx(100, abs=2)

        await browser.key("keyDown", "a")
        assert await browser.ask("$('agent').getAttribute('aria-pressed')") == "true"
        before = await browser.ask(STEP)
        await browser.wait(f"{STEP} > {before + 1}")
        await browser.key("keyDown", "2")  # and whoever acts has it again
        await browser.key("keyUp", "2")
        assert await browser.ask("$('agent').getAttribute('aria-pressed')") == "false"
        await browser.wait("$('say').innerText.startsWith('Real: the episode ended')")

        await browser.click("#play")
        await browser.wait("!running && waiting === 0")
        before = await browser.ask(STEP)
        await browser.click("#step")
        await browser.wait(f"{STEP} === {before + 1}")
        await browser.click("#split")
        assert await browser.ask("[...document.querySelectorAll('figure.card')].map(f => !f.hidden)") == [
            False, True, False]
        await browser.click("#split")
        await browser.click("#new")
        await browser.wait(f"{STEP} === 0")
        await browser.click("[data-index='2']")
        await browser.wait(f"{STEP} > 0")

    in_browser(players("toy", "Catch-v0"), tmp_path / "browser", talk)


def test_sliders_and_plots(players, tmp_path):
    async def talk(browser):
        await browser.key("keyDown", "ArrowLeft")
        await browser.wait(f"{STEP} >= 2 && frame.action[0] === -1")
        await browser.key("keyUp", "ArrowLeft")
        await browser.wait("frame.action[0] === 0")
        await browser.ask("(s => { s.value = 0.5; s.oninput(); })(document.querySelector('.slider input'))")
        await browser.wait("frame.action[0] === 0.5")
        assert await browser.ask("[...document.querySelectorAll('#plots figcaption')].map(e => e.firstChild.innerText)"
                                 ) == ["0.1 x reward", "goes on", "value", "vector[0]", "vector[1]", "vector[2]"]
        assert await browser.ask("plots.every(each => each.dream.length === frame.step + 1)")
        await browser.wait("screens.picture && screens.picture.width === 300")

    in_browser(players("classic_control", "Pendulum-v1"), tmp_path / "browser", talk)
