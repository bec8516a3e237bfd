"""Keys: both header spellings, many clients, reload without restart."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

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
    spelled = {"Authorization": f"Bearer {KEY}", "Autherization": f"bearer  {KEY}"}
    assert (await bare.get("/unit/v1/models", headers=spelled)).status_code == 200
    assert unauthorized(await bare.get("/unit/v1/models", headers={**same, "Autherization": "Bearer other"}))
    assert unauthorized(await bare.get("/unit/v1/models", headers={**same, "Autherization": "Basic x"}))
    twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]
    assert unauthorized(await bare.get("/unit/v1/models", headers=twice))


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


@pytest.fixture
def ring(keys_dir):
    return KeyRing(keys_dir)


def test_key_ring_knows_clients_by_file_name(keys_dir):
    (keys_dir / "bob").write_text("sk-bob")
    ring = KeyRing(keys_dir)
    assert ring.identify(KEY.encode()) == "alice"
    assert ring.identify(b"sk-bob") == "bob"
    assert ring.identify(b"sk-eve") is None
    assert ring.identify(b"") is None
    assert ring.ids == {"alice", "bob"}


def test_key_ring_follows_its_folder(ring, keys_dir):
    assert ring.identify(b"sk-new") is None
    (keys_dir / "new").write_text("sk-new")
    ring.reload()
    assert ring.identify(b"sk-new") == "new"
    (keys_dir / "alice").unlink()
    ring.reload()
    assert ring.identify(KEY.encode()) is None
    assert ring.ids == {"new"}


def test_key_ring_looks_at_no_file_for_a_request(ring, keys_dir):
    """Neither a right key nor a flood of wrong ones makes it read: a key that is new is unknown until `reload`."""
    (keys_dir / "new").write_text("sk-new")
    shutil.rmtree(keys_dir)
    assert ring.identify(KEY.encode()) == "alice"
    assert {ring.identify(b"sk-%d" % number) for number in range(1000)} == {None}
    assert ring.identify(b"sk-new") is None


def test_key_ring_notices_a_change_of_equal_size_and_time(ring, keys_dir):
    file = keys_dir / "alice"
    times = file.stat()
    file.write_text(KEY[::-1] + "\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    ring.reload()
    assert ring.identify(KEY.encode()) is None
    assert ring.identify(KEY[::-1].encode()) == "alice"


USELESS = {
    "empty": (b"\n", "it is empty"),
    "long": (b"k" * 4097, "it has more than 4096 bytes"),
    "two-lines": (b"sk-one\nsk-two\n", "it holds a line break or another control character"),
    "nul": (b"sk-\x00", "it holds a line break or another control character"),
    "with\nbreak": (b"sk-break", "its name has characters"),
    "surrogate-\udcff": (b"sk-surrogate", "its name has characters"),
}


def test_key_ring_tells_once_of_files_that_hold_no_key(keys_dir, caplog):
    (keys_dir / ".hidden").write_text("sk-hidden")
    (keys_dir / "folder").mkdir()
    os.mkfifo(keys_dir / "pipe")
    (keys_dir / "nowhere").symlink_to("..data/nowhere")
    (keys_dir / "loop").symlink_to("loop")
    (keys_dir / "longest").write_bytes(b"k" * 4096 + b"\r\n")
    for name, (content, _) in USELESS.items():
        (keys_dir / name).write_bytes(content)
    ring = KeyRing(keys_dir)
    assert ring.ids == {"alice", "longest"}
    assert ring.is_current
    assert ring.identify(b"sk-hidden") is None
    told = {record.file: record.problem for record in caplog.records if record.levelname == "WARNING"}
    expected = {ascii(name): problem for name, (_, problem) in USELESS.items()}
    expected |= dict.fromkeys(("'folder'", "'pipe'", "'loop'"), "it is no file")
    assert told.keys() == expected.keys()
    assert all(told[name].startswith(problem) for name, problem in expected.items())
    assert "sk-" not in caplog.text
    caplog.clear()
    (keys_dir / "bob").write_text("sk-bob")
    ring.reload()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


def test_key_ring_says_so_where_no_key_is(tmp_path, caplog):
    assert KeyRing(tmp_path).ids == set()
    assert "the folder holds no key" in {record.problem for record in caplog.records}.pop()


@pytest.mark.parametrize("key", ["schl\u00fcssel", "\u043a\u043b\u044e\u0447", "\ufffd"])
def test_key_ring_beyond_ascii(keys_dir, key):
    (keys_dir / "umlaut").write_text(key, encoding="utf-8")
    ring = KeyRing(keys_dir)
    assert ring.identify(key.encode()) == "umlaut"
    # As HTTP has it, and as node and Python's own client send it.
    latin = key.encode("latin-1", "ignore")
    assert ring.identify(latin) == ("umlaut" if latin.decode("latin-1") == key else None)
    assert ring.identify(b"\xff\xfe") is None


def test_key_ring_two_clients_with_one_key(keys_dir, caplog):
    (keys_dir / "zoe").write_text(KEY)
    (keys_dir / "Abe").write_text(f"{KEY}\n")
    ring = KeyRing(keys_dir)
    assert ring.identify(KEY.encode()) == "Abe"
    assert ring.ids == {"Abe"}
    told = {record.file: record.problem for record in caplog.records if record.levelname == "WARNING"}
    assert set(told) == {"'alice'", "'zoe'"}
    assert KEY not in caplog.text + str(told)
    (keys_dir / "Abe").unlink()
    ring.reload()
    assert ring.identify(KEY.encode()) == "alice"


def swap(mount, version):
    """What a kubelet does: a new folder, then `..data` leads to it, by one rename."""
    (mount / "..data_tmp").symlink_to(version)
    (mount / "..data_tmp").replace(mount / "..data")


def test_key_ring_follows_a_kubelet_swap(tmp_path):
    """A mounted Secret: links to `..data`, which is a link to a folder that is swapped as a whole."""
    mount = tmp_path / "mount"
    for version, keys in (("..v1", {"default": "sk-old", "bob": "sk-bob"}), ("..v2", {"default": "sk-new"})):
        (mount / version).mkdir(parents=True)
        for name, key in keys.items():
            (mount / version / name).write_text(key)
    swap(mount, "..v1")
    for name in ("default", "bob"):
        (mount / name).symlink_to(f"..data/{name}")
    ring = KeyRing(mount)
    assert ring.ids == {"default", "bob"}
    assert ring.identify(b"sk-old") == "default"
    swap(mount, "..v2")
    ring.reload()  # bob's link leads nowhere until the kubelet removes it
    assert ring.is_current
    assert ring.identify(b"sk-new") == "default"
    assert ring.identify(b"sk-old") is None
    assert ring.identify(b"sk-bob") is None
    (mount / "bob").unlink()
    ring.reload()
    assert ring.ids == {"default"}


def test_key_ring_keeps_its_keys_while_the_folder_is_gone(ring, keys_dir, caplog):
    moved = keys_dir.rename(keys_dir.with_name("elsewhere"))
    for _ in range(3):
        ring.reload()
    assert ring.identify(KEY.encode()) == "alice"
    assert not ring.is_current
    assert [record.problem for record in caplog.records if record.levelname == "WARNING"] == [
        "the folder cannot be read: No such file or directory"
    ]
    moved.rename(keys_dir)
    ring.reload()
    assert ring.is_current


class Unreadable(type(Path())):
    """A path below which the file `alice` cannot be opened: root, as which tests may run, can open any real one."""

    def open(self, *args, **kwargs):
        if self.name == "alice" and (self.parent / ".sealed").exists():
            raise PermissionError(13, "Permission denied")
        return super().open(*args, **kwargs)


def test_key_ring_keeps_a_key_that_cannot_be_read_and_tries_again(keys_dir):
    ring = KeyRing(Unreadable(keys_dir))
    (keys_dir / ".sealed").touch()
    (keys_dir / "alice").write_text("sk-unread")
    (keys_dir / "bob").write_text("sk-bob")
    ring.reload()
    assert not ring.is_current
    assert ring.identify(KEY.encode()) == "alice"
    assert ring.identify(b"sk-bob") == "bob"
    (keys_dir / ".sealed").unlink()
    ring.reload()  # nothing of the folder is another than at the last look
    assert ring.is_current
    assert ring.identify(b"sk-unread") == "alice"


def test_key_ring_of_thousands_does_as_much_for_each_request_as_of_one(tmp_path):
    """Counted, not timed: one look-up by digest, two for a key beyond ASCII."""

    class CountingDict(dict):
        num_lookups = 0

        def get(self, *args):
            self.num_lookups += 1
            return super().get(*args)

        def __iter__(self):
            raise AssertionError("a look-up must not go through all keys")

    for number in range(3000):
        (tmp_path / f"client-{number}").write_text(f"sk-{number}")
    ring = KeyRing(tmp_path)
    owners = ring._owners = CountingDict(ring._owners)
    assert ring.identify(b"sk-2999") == "client-2999"
    assert ring.identify(b"sk-3000") is None
    assert owners.num_lookups == 2


def test_key_ring_digests_differ_between_processes(keys_dir):
    """A digest that leaked would tell nothing: it cannot be compared with one that is made elsewhere."""
    first, second = KeyRing(keys_dir), KeyRing(keys_dir)
    assert not set(first._owners) & set(second._owners)
    assert hashlib.sha256(KEY.encode()).digest() not in first._owners
