from __future__ import annotations

import hashlib

import pytest

from dedicate_runtime.download.repository import (
    ListingError,
    ModelSource,
    RemoteFile,
    format_bytes,
    parse_listing,
    select_files,
)
from dedicate_runtime.errors import StartError

SHA1, SHA256 = "a" * 40, "b" * 64


def entry(**fields):
    return {"type": "file", "path": "config.json", "size": 1, "oid": SHA1} | fields


def file(path, size=1):
    return RemoteFile(path=path, size=size, blob=SHA1, is_large=False)


def test_large_files_are_named_by_their_sha256_and_folders_are_left_out():
    listed = parse_listing([entry(), entry(path="a/b", lfs={"oid": SHA256}), {"type": "directory", "path": "a"}])
    assert listed == (file("config.json"), RemoteFile(path="a/b", size=1, blob=SHA256, is_large=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "/etc/passwd"},
        {"path": "../config.json"},
        {"path": "a//b"},
        {"path": "a/./b"},
        {"path": "a\\..\\b"},
        {"path": ""},
        {"path": None},
        {"size": -1},
        {"size": "1"},
        {"size": True},
        {"oid": "../../refs/main"},
        {"oid": None},
        {"lfs": {"oid": SHA1}},
        {"lfs": {}},
    ],
)
def test_a_list_that_would_lead_elsewhere_or_cannot_be_checked_is_refused(fields):
    with pytest.raises(ListingError):
        parse_listing([entry(**fields)])


def test_only_what_the_runtime_reads_is_chosen_the_largest_first():
    files = [file("config.json", 1), file("model.safetensors", 9), file("x.py", 2), file("x.gguf", 3)]
    files += [file("original/params.json", 4), file("onnx/model.json", 5), file("consolidated.safetensors", 6)]
    assert [item.path for item in select_files(files, with_code=False)] == ["model.safetensors", "config.json"]
    assert [item.path for item in select_files(files, with_code=True)] == ["model.safetensors", "x.py", "config.json"]


def test_digests_are_those_that_the_hub_uses():
    content = b"hello\n"
    small = RemoteFile(path="x", size=len(content), blob="ce013625030ba8dba906f756967f9e9ca394464a", is_large=False)
    digest = small.new_digest()
    digest.update(content)
    assert digest.hexdigest() == small.blob  # what `git hash-object` says of it
    large = RemoteFile(path="x", size=len(content), blob=hashlib.sha256(content).hexdigest(), is_large=True)
    digest = large.new_digest()
    digest.update(content)
    assert digest.hexdigest() == large.blob


def test_a_revision_that_is_a_commit_cannot_move():
    assert ModelSource(repository="a/b", revision=SHA1).commit == SHA1
    assert ModelSource(repository="a/b", revision="v1").commit is None
    assert ModelSource(repository="a/b").ref == "main"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0.0 MB"), (99_900_000, "99.9 MB"), (123_000_000, "0.1 GB"), (16_100_000_000, "16.1 GB")],
)
def test_amounts(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize("revision", ["../../blobs/x", "a/../../x", "/etc/passwd"])
def test_a_revision_never_leads_out_of_the_cache(revision):
    with pytest.raises(StartError, match="--revision"):
        ModelSource(repository="a/b", revision=revision)
