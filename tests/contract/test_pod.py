"""The pod that the operator writes is one in which the runtime starts."""

import re

import pytest

from dedicate_operator.manifests import build_service
from dedicate_operator.spec import ClaimSource, HubSource
from dedicate_operator.template import build_args
from dedicate_runtime.errors import StartError
from dedicate_runtime.settings import AuthMode, failure_file_of, parse_settings


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


def test_nothing_is_downloaded_but_from_a_hub(pod, endpoint):
    assert ("initContainers" in pod) == isinstance(endpoint.spec.model.source, HubSource)


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
    assert secret["secretName"] == (endpoint.spec.auth.api_keys_secret or f"{endpoint.key.name}-api-keys")
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
    with pytest.raises(StartError, match="--no-such-option"):
        parse_settings([*build_args(endpoint), "--no-such-option"], {})
