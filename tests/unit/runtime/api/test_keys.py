"""Keys: both header spellings, many clients, reload without restart."""

from __future__ import annotations

import logging

import httpx
import pytest

from dedicate_runtime.api.keys import KeyRing

KEY = "sk-unit-test"


def unauthorized(response):
    assert response.status_code == 401, response.text
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    return True


@pytest.fixture
def bare(api):
    """A client that sends no key of its own."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test")


@pytest.mark.parametrize("name", ["Authorization", "Autherization", "AUTHERIZATION"])
@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} "])
async def test_header_either_spelling(bare, name, value):
    assert (await bare.get("/unit/v1/models", headers={name: value})).status_code == 200


async def test_header_both_equal_is_fine_both_different_is_401(bare):
    same = {"Authorization": f"Bearer {KEY}", "Autherization": f"Bearer {KEY}"}
    assert (await bare.get("/unit/v1/models", headers=same)).status_code == 200
    assert unauthorized(await bare.get("/unit/v1/models", headers={**same, "Autherization": "Bearer other"}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY}x"},
        {"x-api-key": KEY},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["chat/completions", "completions", "models"])
async def test_header_missing_or_wrong_is_401(bare, headers, path):
    method = "GET" if path == "models" else "POST"
    assert unauthorized(await bare.request(method, f"/unit/v1/{path}", headers=headers, content=b"{"))


async def test_header_bytes_beyond_ascii_are_401(bare):
    assert unauthorized(await bare.get("/unit/v1/models", headers=[(b"authorization", b"Bearer \xff\xfe")]))


@pytest.mark.parametrize("path", ["/unit/health", "/unit/version", "/unit/docs", "/unit/openapi.json"])
async def test_open_routes_need_no_key(bare, path):
    assert (await bare.get(path)).status_code == 200


async def test_no_auth_mode(make_api):
    api = make_api("--auth", "none")
    client = httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test")
    assert (await client.get("/unit/v1/models")).status_code == 200


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ring(keys_dir, clock):
    return KeyRing(keys_dir, clock=clock)


def test_key_ring_knows_clients_by_file_name(ring, keys_dir):
    (keys_dir / "bob").write_text("sk-bob")
    assert ring.identify(KEY) == "alice"
    assert ring.identify("sk-bob") == "bob"
    assert ring.identify("sk-eve") is None


def test_key_ring_takes_a_new_key_at_once(ring, keys_dir):
    assert ring.identify("sk-new") is None
    (keys_dir / "new").write_text("sk-new")
    assert ring.identify("sk-new") == "new"


def test_key_ring_forgets_a_revoked_key_within_a_second(ring, keys_dir, clock):
    assert ring.identify(KEY) == "alice"
    (keys_dir / "alice").unlink()
    clock.now += 1
    assert ring.identify(KEY) is None


def test_key_ring_ignores_dot_files_folders_and_empty_files(keys_dir, caplog):
    (keys_dir / ".hidden").write_text("sk-hidden")
    (keys_dir / "empty").write_text("\n")
    (keys_dir / "folder").mkdir()
    ring = KeyRing(keys_dir)
    assert ring.ids == {"alice"}
    assert ring.identify("sk-hidden") is None
    assert ring.identify("") is None


def test_key_ring_follows_a_kubelet_swap(tmp_path, clock):
    """A mounted Secret: links to `..data`, which is a link to a folder that is swapped as a whole."""
    mount = tmp_path / "mount"
    for version, key in (("..v1", "sk-old"), ("..v2", "sk-new")):
        (mount / version).mkdir(parents=True)
        (mount / version / "default").write_text(key)
    (mount / "..data").symlink_to("..v1")
    (mount / "default").symlink_to("..data/default")
    ring = KeyRing(mount, clock=clock)
    assert ring.identify("sk-old") == "default"
    (mount / "..next").symlink_to("..v2")
    (mount / "..next").replace(mount / "..data")
    assert ring.identify("sk-new") == "default"
    assert ring.identify("sk-old") is None


def test_key_ring_keeps_its_keys_while_the_folder_is_gone(ring, keys_dir, clock):
    moved = keys_dir.rename(keys_dir.with_name("elsewhere"))
    clock.now += 1
    assert ring.identify(KEY) == "alice"
    moved.rename(keys_dir)


async def test_keys_are_in_no_log_and_no_metric(api, bare, caplog):
    from prometheus_client import generate_latest

    with caplog.at_level(logging.DEBUG):
        await api.chat("a private question")
        await bare.get("/unit/v1/models", headers={"Authorization": "Bearer sk-wrong-secret"})
    exposed = generate_latest(api.metrics.registry).decode() + "".join(
        str(vars(record)) for record in caplog.records if record.name.startswith("dedicate")
    )
    assert 'key_id="alice"' in exposed
    for secret in (KEY, "sk-wrong-secret", "a private question", "Hello, world."):
        assert secret not in exposed
