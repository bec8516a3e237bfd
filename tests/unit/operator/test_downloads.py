"""Whom to ask for progress, when to tell, and what a page may say; the page itself is the runtime's."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dedicate_operator import names
from dedicate_operator.downloads import Downloads, ProgressPage, is_news, parse_progress
from dedicate_operator.identity import Key
from dedicate_operator.situation import DownloadProgress

CHAT = Key("team", "chat")
GB = 10**9


def downloading(address="10.0.0.1", **metadata):
    status = {"podIP": address, "initContainerStatuses": [{"name": "model-download", "state": {"running": {}}}]}
    return {"metadata": {"name": "p", **metadata}, "status": status}


def at(done, total=100 * GB, stage="downloading", trouble=None):
    return DownloadProgress(stage, done, total, trouble)


class Source:
    def __init__(self):
        self.answers = {}
        self.asked = []

    async def fetch_progress(self, address):
        self.asked.append(address)
        return self.answers.get(address)


class World:
    def __init__(self):
        self.source, self.told, self.now = Source(), [], 0.0
        self.downloads = Downloads(self.source, notify=self.told.append, clock=lambda: self.now)

    async def turn(self):
        """Let it ask once those that are due."""
        task = asyncio.create_task(self.downloads.run())
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world():
    return World()


async def test_a_download_that_runs_is_asked_and_told(world):
    world.source.answers["10.0.0.1"] = at(GB)
    assert world.downloads.follow(CHAT, [downloading()]) is None
    await world.turn()
    assert world.told == [CHAT]
    assert world.downloads.follow(CHAT, [downloading()]) == at(GB)


async def test_a_download_that_begins_is_asked_though_there_was_none(world):
    task = asyncio.create_task(world.downloads.run())
    await asyncio.sleep(0)
    world.downloads.follow(CHAT, [downloading()])
    for _ in range(10):
        await asyncio.sleep(0)
    assert world.source.asked == ["10.0.0.1"]
    task.cancel()


async def test_it_is_told_again_only_when_there_is_news(world):
    world.source.answers["10.0.0.1"] = at(GB)
    world.downloads.follow(CHAT, [downloading()])
    await world.turn()
    for now, done, num_told in [
        (2, 2 * GB, 1),
        (4, 3 * GB, 1),
        (6, 6 * GB, 2),
        (17, 7 * GB, 3),
        (19, 8 * GB, 3),
        (40, 7 * GB, 3),
    ]:
        world.now, world.source.answers["10.0.0.1"] = now, at(done)
        await world.turn()
        assert len(world.told) == num_told, done


async def test_who_does_not_answer_is_asked_less_and_less(world):
    world.downloads.follow(CHAT, [downloading()])
    asked_at = []
    for second in range(300):
        world.now = float(second)
        await world.turn()
        asked_at += [second] * (len(world.source.asked) - len(asked_at))
    assert asked_at == [0, 4, 12, 28, 60, 120, 180, 240]
    assert world.told == []
    # One answer, and it is asked as often as at first.
    world.source.answers["10.0.0.1"] = at(GB)
    for world.now in (300.0, 302.0, 304.0):
        await world.turn()
    assert len(world.source.asked) == len(asked_at) + 3


async def test_the_first_pod_that_downloads_now_is_asked(world):
    world.downloads.follow(CHAT, [downloading()])
    world.downloads.follow(CHAT, [downloading("10.0.0.1", deletionTimestamp="x"), downloading("10.0.0.2")])
    await world.turn()
    assert world.source.asked == ["10.0.0.2"]


async def test_some_are_asked_at_once_and_not_all(world):
    answered = asyncio.Event()
    num_asked = 0

    async def wait(_address):
        nonlocal num_asked
        num_asked += 1
        await answered.wait()

    world.source.fetch_progress = wait
    for index in range(40):
        world.downloads.follow(Key("team", f"chat-{index}"), [downloading(f"10.0.0.{index}")])
    await world.turn()
    assert num_asked == 16


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [downloading(address=None)],
        [downloading(deletionTimestamp="x")],
        [{"metadata": {}, "status": {"podIP": "10.0.0.1"}}],
    ],
)
async def test_what_does_not_download_is_not_asked(world, pods):
    world.downloads.follow(CHAT, [downloading()])
    assert world.downloads.follow(CHAT, pods) is None
    await world.turn()
    assert world.source.asked == []


@pytest.mark.parametrize(
    ("progress", "told", "since_s", "is_new"),
    [
        (at(0), None, 0, True),
        (at(1), at(1), 1000, False),
        (at(1), at(0), 9.9, False),
        (at(1), at(0), 10, True),
        (at(5 * GB), at(0), 0, True),
        (at(0), at(5 * GB), 0, True),
        (at(1, stage="verifying"), at(1), 0, True),
        (at(1, trouble="503"), at(1), 0, True),
        (at(1, trouble="503"), at(1, trouble="504"), 0, False),
        (at(0, total=0), at(0, total=0), 0, False),
    ],
)
def test_news(progress, told, since_s, is_new):
    assert is_news(progress, told, since_s) is is_new


@pytest.mark.parametrize(
    ("document", "progress"),
    [
        ({"stage": "downloading", "downloadedBytes": 1, "totalBytes": 2, "trouble": None}, at(1, 2)),
        ({"stage": "downloading", "downloadedBytes": 3, "totalBytes": 2}, at(2, 2)),
        (
            {"stage": "waiting", "downloadedBytes": 1, "totalBytes": 2, "trouble": "x" * 999},
            at(1, 2, "waiting", "x" * 256),
        ),
        ({"stage": "downloading", "downloadedBytes": -1, "totalBytes": 2}, None),
        ({"stage": "downloading", "downloadedBytes": True, "totalBytes": 2}, None),
        ({"stage": "downloading", "downloadedBytes": 1, "totalBytes": 2**60}, None),
        ({"stage": 1, "downloadedBytes": 1, "totalBytes": 2}, None),
        ([], None),
    ],
)
def test_what_a_page_may_say(document, progress):
    assert parse_progress(document) == progress


SAID = {"stage": "downloading", "downloadedBytes": 1, "totalBytes": 2}


@pytest.mark.parametrize(
    ("body", "status", "progress"),
    [
        (json.dumps(SAID), 200, at(1, 2)),
        ("{", 200, None),
        (json.dumps(SAID | {"trouble": "x" * 5000}), 200, None),
        (json.dumps(SAID), 500, None),
        # A pod must not send the operator elsewhere.
        (json.dumps(SAID), 302, None),
    ],
)
async def test_a_page_is_read_within_bounds(monkeypatch, body, status, progress):
    async def answer(_):
        return web.Response(text=body, status=status, headers={"Location": "/elsewhere"})

    async def answer_elsewhere(_):
        return web.json_response(SAID)

    application = web.Application()
    application.add_routes([web.get("/progress", answer), web.get("/elsewhere", answer_elsewhere)])
    # Pods are reached without the proxy that leads out of the cluster.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    page = ProgressPage()
    async with TestServer(application, host="127.0.0.1") as server:
        monkeypatch.setattr(names, "MANAGEMENT_PORT", server.port)
        assert await page.fetch_progress("127.0.0.1") == progress
    assert await page.fetch_progress("127.0.0.1") is None
    await page.close()
