"""Keys and limits follow their files; what cannot be used changes nothing and is told; who is gone is forgotten."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dedicate_runtime.api.keys import KeyRing
from dedicate_runtime.api.limits import Limiter, LimitExceeded
from dedicate_runtime.api.limits_file import LimitsFile
from dedicate_runtime.api.mounted_files import FORGET_AFTER_S, MountedFiles
from dedicate_runtime.api.usage import UsageBook
from dedicate_runtime.metrics import Metrics

KEY = b"sk-unit-test"
TIGHT = "default: {requestsPerMinute: 1}"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@dataclass
class Mounted:
    keys: KeyRing
    limiter: Limiter
    usage: UsageBook
    metrics: Metrics
    clock: Clock
    files: MountedFiles

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"dedicate_{name}", labels)

    def ask(self, client):
        """One request, answered."""
        totals = self.usage.begin_request(client)
        totals.end_request(has_failed=False, num_prompt_tokens=1, num_completion_tokens=1)
        self.metrics.observe_start()
        self.metrics.observe_end(
            route="/r", status=200, key_id=client, duration_s=1, num_prompt_tokens=1, num_completion_tokens=1
        )
        self.metrics.observe_limited(client, "requests")


@pytest.fixture
def limits_path(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text(TIGHT)
    return path


@pytest.fixture
def mounted(keys_dir, limits_path):
    file = LimitsFile(limits_path)
    limiter = Limiter(file.read_if_changed(), clock=lambda: 0)
    keys, usage, metrics, clock = KeyRing(keys_dir), UsageBook(since=0), Metrics(CollectorRegistry()), Clock()
    files = MountedFiles(keys=keys, limits_file=file, limiter=limiter, usage=usage, metrics=metrics, clock=clock)
    return Mounted(keys, limiter, usage, metrics, clock, files)


async def test_keys_follow_their_folder(mounted, keys_dir):
    assert mounted.value("api_keys") == 1
    (keys_dir / "bob").write_text("sk-bob")
    await mounted.files.refresh()
    assert mounted.keys.identify(b"sk-bob") == "bob"
    assert mounted.value("api_keys") == 2
    moved = keys_dir.rename(keys_dir.with_name("elsewhere"))
    await mounted.files.refresh()
    assert mounted.keys.identify(KEY) == "alice"
    assert mounted.value("config_last_reload_successful", file="api_keys") == 0
    moved.rename(keys_dir)
    await mounted.files.refresh()
    assert mounted.value("config_last_reload_successful", file="api_keys") == 1


async def test_limits_follow_their_file_and_keep_what_was_spent(mounted, limits_path):
    mounted.limiter.admit("alice")
    limits_path.write_text("default: {requestsPerMinute: 10}")
    await mounted.files.refresh()
    assert mounted.limiter.account_of("alice").limits.requests_per_minute == 10
    with pytest.raises(LimitExceeded):
        mounted.limiter.admit("alice")
    mounted.limiter.admit("bob")


@pytest.mark.parametrize("damage", ["wrong", "gone"])
async def test_limits_that_cannot_be_used_leave_the_old_ones(mounted, limits_path, damage, caplog):
    assert mounted.value("config_last_reload_successful", file="limits") == 1
    limits_path.write_text("default: {requestsPerMinute: -1}")
    if damage == "gone":
        limits_path.unlink()
    for _ in range(3):
        await mounted.files.refresh()
    (told,) = [record for record in caplog.records if record.message == "Limits stay as they were"]
    expected = "default.requestsPerMinute must be" if damage == "wrong" else "it cannot be read"
    assert told.problem.startswith(f"--limits-file {limits_path}: {expected}")
    assert mounted.value("config_last_reload_successful", file="limits") == 0
    assert mounted.limiter.account_of("alice").limits.requests_per_minute == 1
    limits_path.write_text("default: {requestsPerMinute: 2}")
    await mounted.files.refresh()
    assert mounted.value("config_last_reload_successful", file="limits") == 1
    assert mounted.limiter.account_of("alice").limits.requests_per_minute == 2


async def test_who_is_gone_is_forgotten_after_a_while(mounted, keys_dir):
    (keys_dir / "bob").write_text("sk-bob")
    await mounted.files.refresh()
    for client in ("alice", "bob"):
        mounted.ask(client)
        mounted.limiter.admit(client)
    (keys_dir / "bob").unlink()
    await mounted.files.refresh()
    mounted.clock.now += FORGET_AFTER_S - 1
    await mounted.files.refresh()
    assert mounted.usage.of("bob").num_requests == 1
    assert b'key_id="bob"' in generate_latest(mounted.metrics.registry)
    mounted.clock.now += 1
    await mounted.files.refresh()
    assert mounted.usage.of("bob").num_requests == 0
    exposed = generate_latest(mounted.metrics.registry)
    assert b"bob" not in exposed
    assert exposed.count(b'key_id="alice"') == 8  # four counters, each with the time at which it was made
    assert mounted.usage.of("alice").num_requests == 1
    mounted.limiter.admit("bob")


async def test_who_comes_back_in_time_is_not_forgotten(mounted, keys_dir):
    mounted.ask("alice")
    (keys_dir / "alice").rename(keys_dir / ".alice")
    await mounted.files.refresh()
    mounted.clock.now += FORGET_AFTER_S / 2
    (keys_dir / ".alice").rename(keys_dir / "alice")
    await mounted.files.refresh()
    mounted.clock.now += FORGET_AFTER_S
    await mounted.files.refresh()
    assert mounted.usage.of("alice").num_requests == 1


async def test_rotations_leave_nothing_behind(mounted, keys_dir):
    """A year of daily rotations costs as much memory and as many series as the last few."""
    for day in range(365):
        client = f"alice-{day}"
        (keys_dir / client).write_text(f"sk-{day}")
        await mounted.files.refresh()
        mounted.ask(client)
        mounted.limiter.account_of(client)
        (keys_dir / client).unlink()
        mounted.clock.now += 86400
        await mounted.files.refresh()
    await mounted.files.refresh()
    assert generate_latest(mounted.metrics.registry).count(b"alice-") <= 2 * 8
    assert len(mounted.usage._totals) <= 2
    assert len(mounted.limiter._accounts) <= 2


async def test_watching_goes_on_after_a_fault(keys_dir, caplog):
    class Faulty(KeyRing):
        num_looks = 0
        seen_twice = asyncio.Event()

        def reload(self):
            self.num_looks += 1
            if self.num_looks == 2:
                raise ZeroDivisionError
            if self.num_looks == 3:
                loop.call_soon_threadsafe(self.seen_twice.set)
            super().reload()

    loop = asyncio.get_running_loop()
    keys = Faulty(keys_dir)
    metrics = Metrics(CollectorRegistry())
    files = MountedFiles(keys=keys, limits_file=None, limiter=None, usage=UsageBook(since=0), metrics=metrics)
    task = asyncio.create_task(files.watch(pause_s=0))
    async with asyncio.timeout(10):
        await keys.seen_twice.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "Mounted files cannot be looked at" in caplog.messages


async def test_a_runtime_without_either_has_nothing_to_look_at():
    metrics = Metrics(CollectorRegistry())
    files = MountedFiles(keys=None, limits_file=None, limiter=None, usage=UsageBook(since=0), metrics=metrics)
    await files.refresh()
    assert metrics.registry.get_sample_value("dedicate_config_last_reload_successful", {"file": "limits"}) is None
