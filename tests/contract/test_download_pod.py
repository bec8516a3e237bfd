"""Where the model comes from a hub, the pod downloads it, and the runtime finds it where the download has put it."""

import pytest

from dedicate_operator.downloads import parse_progress
from dedicate_operator.pins import build_pin
from dedicate_operator.situation import DownloadProgress
from dedicate_runtime.download.options import parse_options
from dedicate_runtime.download.page import PATH
from dedicate_runtime.download.progress import Progress, Stage
from tests.contract.resources import HUB_RESOURCES


@pytest.fixture(params=HUB_RESOURCES, scope="session")
def endpoint(request, parse_stored):
    """Each resource of the table whose model comes from a hub."""
    return parse_stored(HUB_RESOURCES[request.param])


@pytest.fixture
def download(pod):
    """The container that downloads the model."""
    (only,) = pod["initContainers"]
    return only


def test_the_download_means_what_the_specification_says(download, endpoint):
    assert download["command"] == ["python", "-m", "dedicate_runtime.download"]
    options = parse_options(download["args"], {})
    model = endpoint.spec.model
    assert f"hf://{options.source.repository}" == model.source.uri
    assert options.source.revision == model.source.revision
    assert options.source.with_code == (model.remote_code == "Allow")
    assert str(options.link) == "/models/current"
    assert str(options.failure_file) == download["terminationMessagePath"]
    assert [port["containerPort"] for port in download["ports"]] == [options.management_port]
    if model.source.commit is None:
        assert options.pin == endpoint.uid
        assert str(options.pinned_commit_file) == "/etc/dedicate/model/commit"
    else:
        assert options.pin is None
    limit = getattr(endpoint.spec.cache, "size_limit", None)
    assert options.max_bytes == (20 * 2**30 if limit == "20Gi" else None)


def test_the_download_writes_where_the_runtime_reads(download, container):
    written = {mount["mountPath"]: mount for mount in download["volumeMounts"]}
    read = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for path in ("/models", "/cache"):
        assert written[path]["name"] == read[path]["name"]
        assert not written[path].get("readOnly")
        assert read[path]["readOnly"] is True
    environment = {item["name"]: item.get("value") for item in download["env"]}
    assert environment["HF_HOME"] == "/cache/huggingface"


def test_the_download_is_as_confined_as_the_runtime_and_asks_for_no_device(download, container, endpoint):
    for field in ("image", "securityContext", "terminationMessagePath", "terminationMessagePolicy"):
        assert download[field] == container[field]
    device = endpoint.spec.accelerator.resource_name
    assert device not in download["resources"]["limits"]
    for kind in ("requests", "limits"):
        theirs = {name: amount for name, amount in container["resources"][kind].items() if name != device}
        assert download["resources"][kind] == theirs


def test_the_pin_is_mounted_if_it_is_there(download, pod, endpoint):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in download["volumeMounts"]}
    if endpoint.spec.model.source.commit is not None:
        assert "/etc/dedicate/model" not in mounts
        return
    config_map = volumes[mounts["/etc/dedicate/model"]["name"]]["configMap"]
    assert config_map["optional"] is True
    pin = build_pin(endpoint, endpoint.spec.model.source, "1" * 40)
    assert config_map["name"] == pin["metadata"]["name"]
    assert pin["data"]["commit"] == "1" * 40


def test_the_page_of_the_download_says_what_the_operator_reads():
    assert {stage.value for stage in Stage} == {"resolving", "waiting", "downloading", "verifying"}
    progress = Progress()
    progress.enter(Stage.DOWNLOADING, total_bytes=9, downloaded_bytes=3)
    assert parse_progress(progress.look().to_json()) == DownloadProgress("downloading", 3, 9)
    assert PATH == "/progress"


def test_the_download_has_the_token(download, endpoint):
    environment = {item["name"]: item for item in download["env"]}
    token = endpoint.spec.model.source.token_secret
    assert ("HF_TOKEN" in environment) == (token is not None)
    if token:
        assert environment["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": token, "key": "token"}
