from __future__ import annotations

import pytest

from dedicate_operator.diagnosis import (
    EXIT_REASONS,
    Cause,
    diagnose,
    diagnose_pod,
    diagnose_replica_failure,
    is_waiting_for_volumes,
)

SCHEDULED = {"type": "PodScheduled", "status": "True"}


def pod(conditions=(SCHEDULED,), uid="u", created="2026-01-01T00:00:00Z", **container):
    statuses = [{"name": "runtime", "image": "i", "ready": False, "started": False} | container] if container else []
    return {
        "metadata": {"uid": uid, "creationTimestamp": created},
        "status": {"phase": "Pending", "conditions": list(conditions), "containerStatuses": statuses},
    }


def unscheduled(message, reason="Unschedulable"):
    return pod([{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}])


def waiting(reason, message=""):
    return pod(state={"waiting": {"reason": reason, "message": message}})


def exited(code, *, message="", reason="Error", seconds=5, started=False, current=False):
    terminated = {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z",
    }
    if current:
        return pod(state={"terminated": terminated}, started=started)
    return pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": terminated}, started=started)


@pytest.mark.parametrize(
    ("subject", "cause"),
    [
        (pod(), None),
        (waiting("ContainerCreating"), None),
        (pod(state={"running": {}}), None),
        (
            unscheduled("0/1 nodes: 1 Insufficient nvidia.com/gpu."),
            Cause("Unschedulable", "0/1 nodes: 1 Insufficient nvidia.com/gpu."),
        ),
        (unscheduled("gated", "SchedulingGated"), Cause("SchedulingGated", "gated")),
        (
            unscheduled('persistentvolumeclaim "models" not found. not found'),
            Cause("ClaimNotFound", 'persistentvolumeclaim "models" not found. not found'),
        ),
        (waiting("ErrImagePull", "x: not found"), Cause("ImagePull", "x: not found")),
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: x: not found'),
            Cause("ImagePull", "x: not found"),
        ),
        (waiting("ErrImagePull"), Cause("ImagePull", "i cannot be pulled")),
        (waiting("InvalidImageName", "bad"), Cause("ImagePull", "bad")),
        (
            waiting("CreateContainerConfigError", 'secret "hub" not found'),
            Cause("SecretNotFound", 'secret "hub" not found'),
        ),
        (
            waiting("CreateContainerConfigError", "couldn't find key token in Secret team/hub"),
            Cause("SecretNotFound", "couldn't find key token in Secret team/hub"),
        ),
        (
            waiting("CreateContainerConfigError", 'configmap "c" not found'),
            Cause("ConfigMapNotFound", 'configmap "c" not found'),
        ),
        (
            waiting("CreateContainerConfigError", "couldn't find key k in ConfigMap team/c"),
            Cause("ConfigMapNotFound", "couldn't find key k in ConfigMap team/c"),
        ),
        (waiting("CreateContainerConfigError", "odd"), Cause("ContainerConfig", "odd")),
        (waiting("RunContainerError", "exec"), Cause("ContainerStart", "exec")),
        (exited(1), Cause("CrashLoop", "the runtime ended with exit code 1")),
        (exited(1, message="boom\n"), Cause("CrashLoop", "the runtime ended with exit code 1: boom")),
        (exited(10, message="No folder."), Cause("ModelNotFound", "No folder.")),
        (exited(10), Cause("ModelNotFound", "the runtime ended with exit code 10")),
        (exited(70, current=True, message="fault"), Cause("InternalError", "fault")),
        (
            exited(137, reason="OOMKilled"),
            Cause("OOMKilled", "the container exceeded spec.resources.limits.memory"),
        ),
        (exited(128, reason="StartError", message="no exec"), Cause("ContainerStart", "no exec")),
        (
            exited(143, seconds=61),
            Cause("StartupTimeout", "the model was not ready within spec.startup.timeoutSeconds (60 s)"),
        ),
        (
            exited(0, seconds=61),
            Cause("StartupTimeout", "the model was not ready within spec.startup.timeoutSeconds (60 s)"),
        ),
        (exited(0, seconds=5), None),
        (exited(143, seconds=61, started=True), Cause("CrashLoop", "the runtime ended with exit code 143")),
    ],
)
def test_diagnose_pod(subject, cause):
    assert diagnose_pod(subject, [], 60) == cause


@pytest.mark.parametrize(("code", "reason"), EXIT_REASONS.items())
def test_every_exit_code_of_the_contract_has_its_reason(code, reason):
    assert diagnose_pod(exited(code), [], 60).reason == reason


def test_crash_that_was_survived_is_no_cause():
    subject = exited(1)
    subject["status"]["containerStatuses"][0] |= {"ready": True, "state": {"running": {}}}
    assert diagnose_pod(subject, [], 60) is None


def test_evicted_pod():
    subject = {"metadata": {}, "status": {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}}
    assert diagnose_pod(subject, [], 60) == Cause("Evicted", "low on disk")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"reason": "FailedMount", "message": 'MountVolume.SetUp failed: secret "k" not found'}, "SecretNotFound"),
        (
            {"reason": "FailedMount", "message": "references non-existent secret key: token"},
            "SecretNotFound",
        ),
        (
            {"reason": "FailedMount", "message": 'MountVolume.SetUp failed for volume "l" : configmap "c" not found'},
            "ConfigMapNotFound",
        ),
        (
            {"reason": "FailedMount", "message": "references non-existent config key: limits.yaml"},
            "ConfigMapNotFound",
        ),
        ({"reason": "FailedMount", "message": "timed out"}, "VolumeMount"),
        ({"reason": "FailedAttachVolume", "message": "Multi-Attach"}, "VolumeMount"),
        ({"reason": "FailedCreatePodSandBox", "message": "cni"}, "PodSandbox"),
        ({"reason": "Unhealthy", "message": "probe"}, None),
    ],
)
def test_events_of_a_waiting_pod(event, reason):
    cause = diagnose_pod(waiting("ContainerCreating"), [event], 60)
    assert (cause and cause.reason) == reason


def test_newest_pod_speaks_first():
    old = exited(10) | {"metadata": {"uid": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    new = exited(11) | {"metadata": {"uid": "b", "creationTimestamp": "2026-01-02T00:00:00Z"}}
    assert diagnose([old, new], {}, startup_timeout_s=60).reason == "GatedRepo"


def test_unreadable_times_are_no_timeout():
    subject = exited(143, seconds=5)
    subject["status"]["containerStatuses"][0]["lastState"]["terminated"]["finishedAt"] = None
    assert diagnose_pod(subject, [], 60).reason == "CrashLoop"


@pytest.mark.parametrize(
    ("subject", "is_waiting"),
    [
        (waiting("ContainerCreating"), True),
        (waiting("PodInitializing"), True),
        (waiting("ErrImagePull"), False),
        (pod(state={"running": {}}, ready=True), False),
        (pod(), True),
        (pod([]), False),
        (unscheduled("no room"), False),
    ],
)
def test_is_waiting_for_volumes(subject, is_waiting):
    assert is_waiting_for_volumes(subject) is is_waiting


def test_replica_failure():
    def deployment(status, message):
        return {"status": {"conditions": [{"type": "ReplicaFailure", "status": status, "message": message}]}}

    assert diagnose_replica_failure(deployment("True", "exceeded quota: q")).reason == "QuotaExceeded"
    assert diagnose_replica_failure(deployment("True", "violates PodSecurity")).reason == "PodRefused"
    assert diagnose_replica_failure(deployment("False", "")) is None
    assert diagnose_replica_failure({}) is None


def with_download(**status):
    subject = waiting("PodInitializing")
    subject["status"]["initContainerStatuses"] = [{"name": "model-download", "image": "i", **status}]
    return subject


@pytest.mark.parametrize(
    ("subject", "is_waiting"),
    [
        (with_download(state={"waiting": {"reason": "PodInitializing"}}), True),
        (with_download(state={"running": {}}), False),
        (with_download(state={"waiting": {"reason": "CrashLoopBackOff"}}), False),
        (with_download(state={"terminated": {"exitCode": 0}}), True),
    ],
)
def test_a_pod_that_downloads_waits_for_no_volume(subject, is_waiting):
    assert is_waiting_for_volumes(subject) is is_waiting


def test_a_download_has_no_time_within_which_it_must_end():
    terminated = {"exitCode": 143, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T09:00:00Z"}
    cause = diagnose_pod(with_download(state={"terminated": terminated}), (), 10)
    assert cause == Cause("CrashLoop", "the download ended with exit code 143")
