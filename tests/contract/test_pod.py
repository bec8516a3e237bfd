"""The pod that the operator writes is one in which the runtime starts."""

import re

import pytest

from dedicate_operator.downloads import parse_progress
from dedicate_operator.manifests import build_deployment, build_service
from dedicate_operator.pins import build_pin
from dedicate_operator.situation import DownloadProgress
from dedicate_operator.spec import ClaimSource, HubSource
from dedicate_operator.template import build_args
from dedicate_runtime.download.options import parse_options
from dedicate_runtime.download.page import PATH
from dedicate_runtime.download.progress import Progress, Stage
from dedicate_runtime.errors import StartError
from dedicate_runtime.settings import AuthMode, failure_file_of, parse_settings


@pytest.fixture
def pod(endpoint, defaults):
    return build_deployment(endpoint, defaults)["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    (only,) = pod["containers"]
    return only


@pytest.fixture
def mounts(container):
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


@pytest.fixture
def settings(container, tmp_path):
    """The runtime's own reading of the operator's arguments; the folder of keys stands elsewhere than in a pod."""
    keys = tmp_path / "keys"
    keys.mkdir()
    arguments = [str(keys) if argument == "/etc/dedicate/keys" else argument for argument in container["args"]]
    environment = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    return parse_settings(arguments, environment)


def test_arguments_mean_what_the_specification_says(settings, endpoint):
    spec, model = endpoint.spec, endpoint.spec.model
    assert settings.dedicate == spec.dedicate
    assert settings.served_model_names == model.served_names
    assert settings.dtype.value == model.dtype.lower()
    assert settings.sampling_defaults.value == model.sampling_defaults.lower()
    assert settings.max_model_len == model.max_length_tokens
    assert settings.trust_remote_code == (model.remote_code == "Allow")
    assert settings.device.value == ("cuda" if spec.accelerator.count else "cpu")
    assert settings.drain_seconds == spec.drain_s
    assert settings.auth is (AuthMode.NONE if spec.auth.mode == "None" else AuthMode.API_KEY)


def test_model_is_a_folder_wherever_it_comes_from(settings, endpoint):
    source = endpoint.spec.model.source
    if isinstance(source, HubSource):
        assert settings.model == "/models/current"
    elif isinstance(source, ClaimSource):
        assert settings.model == f"/models/{source.path}".rstrip("/")
    else:
        assert settings.model == "/models"
    assert settings.revision is None


@pytest.fixture
def download(pod, endpoint):
    """The container that downloads the model."""
    found = pod.get("initContainers", [])
    if not isinstance(endpoint.spec.model.source, HubSource):
        assert found == []
        pytest.skip("nothing is downloaded")
    (only,) = found
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


def test_exit_codes_and_stages_are_those_of_the_download():
    assert {stage.value for stage in Stage} == {"resolving", "waiting", "downloading", "verifying"}
    progress = Progress()
    progress.enter(Stage.DOWNLOADING, total_bytes=9, downloaded_bytes=3)
    assert parse_progress(progress.look().to_json()) == DownloadProgress("downloading", 3, 9)
    assert PATH == "/progress"


def test_the_authors_own_arguments_win(settings, endpoint):
    if endpoint.spec.runtime.args == ("--max-num-seqs", "8"):
        assert settings.max_num_seqs == 8
    else:
        assert settings.max_num_seqs == 32


def test_ports(settings, container, endpoint):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.port, "management": settings.management_port}
    (exposed,) = build_service(endpoint)["spec"]["ports"]
    assert (exposed["port"], exposed["targetPort"]) == (80, "http")


def test_probes(container, endpoint, document):
    for row in document("docs/contract.md").table("Ports, probes"):
        action = container[f"{row['probe']}Probe"]["httpGet"]
        assert (action["path"], action["port"]) == (row["path on `management`"].strip("`"), "management")
    startup = container["startupProbe"]
    budget_s = startup["failureThreshold"] * startup["periodSeconds"]
    assert 0 <= budget_s - endpoint.spec.startup_timeout_s < startup["periodSeconds"]


def test_keys_are_mounted_where_the_runtime_looks(container, pod, mounts, endpoint):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    if endpoint.spec.auth.mode == "None":
        assert "/etc/dedicate/keys" not in mounts
        return
    mount = mounts["/etc/dedicate/keys"]
    assert mount["readOnly"] is True
    secret = volumes[mount["name"]]["secret"]
    assert secret["defaultMode"] == 0o440
    assert secret["secretName"] == endpoint.spec.auth.api_keys_secret or f"{endpoint.key.name}-api-keys"
    assert container["args"][container["args"].index("--api-keys-dir") + 1] == "/etc/dedicate/keys"


def test_limits_are_mounted_where_the_runtime_looks(settings, pod, mounts, endpoint):
    limits = endpoint.spec.auth.limits
    if limits is None:
        assert settings.limits_file is None
        assert "/etc/dedicate/limits" not in mounts
        return
    assert str(settings.limits_file) == f"/etc/dedicate/limits/{limits.key}"
    mount = mounts["/etc/dedicate/limits"]
    assert mount["readOnly"] is True
    assert "subPath" not in mount  # or a change would never arrive
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert volume["configMap"] == {"name": limits.name, "defaultMode": 0o440}


def test_the_runtime_is_offline_and_has_no_token(container, mounts, endpoint):
    environment = {item["name"]: item for item in container["env"]}
    assert mounts["/models"]["readOnly"] is True
    assert environment["HF_HUB_OFFLINE"]["value"] == "1"
    assert "HF_TOKEN" not in environment
    assert ("/cache" in mounts) == isinstance(endpoint.spec.model.source, HubSource)


def test_the_download_has_the_token(download, endpoint):
    environment = {item["name"]: item for item in download["env"]}
    token = endpoint.spec.model.source.token_secret
    assert ("HF_TOKEN" in environment) == (token is not None)
    if token:
        assert environment["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": token, "key": "token"}


def test_every_mount_has_a_volume_and_the_other_way_round(pod, container):
    containers = [*pod.get("initContainers", []), container]
    mounted = {mount["name"] for each in containers for mount in each["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == mounted


def test_what_the_runtime_writes_to_is_writable(container, mounts):
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    environment = {item["name"]: item.get("value") for item in container["env"]}
    for folder in (environment["HOME"], "/tmp", "/dev/shm"):
        assert not mounts[folder].get("readOnly")


def test_the_failure_file_is_the_termination_message(container, settings):
    path = container["terminationMessagePath"]
    assert str(settings.failure_file) == path
    assert container["terminationMessagePolicy"] == "File"
    # Also where the arguments are wrong: that sentence is wanted most.
    assert str(failure_file_of([*container["args"], "--no-such-option"], {})) == path


def test_termination_leaves_time_for_the_drain(pod, container, settings, endpoint):
    pre_stop_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pre_stop_s == endpoint.spec.pre_stop_s
    assert pod["terminationGracePeriodSeconds"] == pre_stop_s + settings.drain_seconds + 15


def test_nothing_but_the_operator_names_the_runtimes_variables(pod, container):
    """A Service called `dedicate` must not become DEDICATE_PORT, which the runtime would read as --port."""
    assert pod["enableServiceLinks"] is False
    assert not [item["name"] for item in container["env"] if item["name"].startswith("DEDICATE_")]


def test_the_image_is_started_by_its_own_entry_point(container, document):
    assert "command" not in container
    text = document("docs/contract.md").text
    assert re.search(r"`ENTRYPOINT \[\"python\", \"-m\", \"dedicate_runtime\"\]`", text)


@pytest.mark.parametrize("program", ["operator", "runtime"])
def test_dockerfiles_keep_the_contract(program, document):
    lines = document(f"{program}/Dockerfile").text.splitlines()
    assert f'ENTRYPOINT ["python", "-m", "dedicate_{program}"]' in lines
    assert "USER 10001:10001" in lines


def test_the_pod_runs_as_the_images_user(pod):
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (10001, 10001, 10001)


def test_an_option_of_the_operator_that_the_runtime_lacks_would_be_noticed(endpoint):
    with pytest.raises(StartError):
        parse_settings([*build_args(endpoint), "--no-such-option"], {})
