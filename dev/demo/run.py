"""The demonstration itself: from nothing to a completion streamed through the ingress, and back to nothing."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from dev.cluster import preconditions
from dev.cluster.addons import INGRESS_CLASS
from dev.cluster.api import DEFAULT_NAME, Cluster
from dev.cluster.locks import is_locked
from dev.cluster.plan import NUM_SLOTS, Profile
from dev.cluster.slots import slot_lock
from dev.cluster.toolchain import obtain_helm
from dev.demo import objects
from dev.demo.completion import Client
from dev.demo.endpoint import await_ready, read_key
from dev.demo.errors import DemoError
from dev.demo.kube import Kube, build_namespace
from dev.demo.model_folder import MODEL_FOLDER, ensure_models_folder
from dev.demo.progress import Progress
from dev.images.api import are_images_built, push_images
from dev.images.recipe import RECIPES
from dev.paths import cache_dir, state_dir

_GIB = 1 << 30
# Measured from empty caches: packages, programs, images, their copy in the registry and their unpacked copy.
_COLD_DISK_BYTES = 28 * _GIB
_READY_DEADLINE_S = 900  # the first pull and unpacking of 5.6 GB, on a slow disk
_GONE_DEADLINE_S = 400  # preStop, drain and grace of an endpoint's pod, by its defaults
_QUESTION = "What is Kubernetes, in one sentence?"
_HUB_MODEL = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Remote:
    """A cluster of the user's own, and what only the user can know about it."""

    context: str
    registry: str | None
    tag: str | None
    value_files: tuple[Path, ...]
    model_uri: str | None


def demo_log() -> Path:
    """Return where a run writes its details."""
    return state_dir() / "demo.log"


def run_local(progress: Progress, *, ingress_port: int) -> None:
    """Bring everything up on this machine and print how to use it; what is there already is left as it is."""
    cluster = Cluster(DEFAULT_NAME, Profile.NODE, ingress_port=ingress_port)
    _check_local(cluster, ingress_port)
    with progress.step("Cluster: control plane, node, ingress") as say:
        cluster = Cluster(DEFAULT_NAME, Profile.NODE, ingress_port=ingress_port, say=say)
        cluster.up()
        obtain_helm()
    with progress.step("Images: operator and runtime") as say:
        images = push_images(RECIPES, cluster.registry, say)
    with progress.step("Model: SmolLM2-135M-Instruct"):
        models = ensure_models_folder()
    kube = Kube(kubeconfig=cluster.kubeconfig)
    values = objects.build_local_values(images, host="localhost", class_name=INGRESS_CLASS, ports=cluster.plan.ports)
    _deploy(kube, progress, values, ())
    kube.apply(*objects.build_model_volume(models, objects.ENDPOINT_NAMESPACE))
    client = _serve(kube, progress, f"pvc://{objects.MODELS_CLAIM}/{MODEL_FOLDER}")
    _finish(client, progress, environment=f"export KUBECONFIG={cluster.kubeconfig}", stop="make down")


def run_remote(progress: Progress, remote: Remote) -> None:
    """Do the same on a cluster of the user's own, which must be able to pull the images and, by default, the model.

    Raises:
        DemoError: the cluster does not answer, or it was not said where the images are; nothing was changed.
    """
    kube = Kube(context=remote.context)
    kube.kubectl("version", "--output=json", "--request-timeout=10s")
    if remote.registry is None and not remote.value_files:
        raise DemoError(
            "Say where the cluster pulls the images from: push dedicate-operator and dedicate-runtime to a registry "
            "of yours (`docker build -f operator/Dockerfile .`) and set IMAGE_REGISTRY=registry.example.com/team, "
            "and IMAGE_TAG if it is not the chart's version; or give --values FILE."
        )
    with progress.step("Helm"):
        obtain_helm()
    values = objects.build_registry_values(remote.registry, remote.tag) if remote.registry else {}
    _deploy(kube, progress, values, remote.value_files)
    client = _serve(kube, progress, remote.model_uri or _HUB_MODEL)
    context = f"kubectl config use-context {remote.context}"
    _finish(client, progress, environment=context, stop=f"python -m dev.demo down --context {remote.context}")


def end_local(progress: Progress) -> None:
    """End the local cluster with every process, mount, link and rule of it; caches stay."""
    with progress.step("Ending the cluster"):
        Cluster(DEFAULT_NAME, Profile.NODE).down()


def end_remote(progress: Progress, context: str) -> None:
    """Remove from a cluster of the user's own what the demonstration put there; the CRD stays, as the chart says."""
    kube = Kube(context=context)
    namespace = f"--namespace={objects.ENDPOINT_NAMESPACE}"
    with progress.step("Removing the demonstration"):
        kube.helm("uninstall", objects.RELEASE, f"--namespace={objects.OPERATOR_NAMESPACE}", "--ignore-not-found")
        # Pods first: a namespace with pods in it is looked at again only after half of their grace period.
        kube.kubectl("delete", "deployments", "--all", "--cascade=foreground", namespace, timeout_s=_GONE_DEADLINE_S)
        for name in (objects.ENDPOINT_NAMESPACE, objects.OPERATOR_NAMESPACE):
            kube.kubectl("delete", "namespace", name, "--ignore-not-found", timeout_s=_GONE_DEADLINE_S)


def remove_caches(progress: Progress) -> None:
    """End the local cluster and remove every cache and all state.

    Raises:
        DemoError: another local cluster is up, whose files these are too.
    """
    end_local(progress)
    if any(is_locked(slot_lock(slot)) for slot in range(NUM_SLOTS)):
        raise DemoError("Another local cluster is up and uses the caches; end it first.")
    with progress.step("Removing caches"):
        shutil.rmtree(cache_dir(), ignore_errors=True)
        shutil.rmtree(state_dir(), ignore_errors=True)


def _check_local(cluster: Cluster, ingress_port: int) -> None:
    """Raise one sentence for the first thing that the machine lacks, before anything is changed."""
    if not cluster.is_up():
        preconditions.check(Profile.NODE, ingress_port)
    if not are_images_built(RECIPES):
        folder = next(path for path in (cache_dir(), *cache_dir().parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if free < _COLD_DISK_BYTES:
            raise DemoError(
                f"{_COLD_DISK_BYTES / _GIB:.0f} GiB of disk are needed for the first run, and {folder} has "
                f"{free / _GIB:.1f} free."
            )


def _deploy(kube: Kube, progress: Progress, values: dict[str, object], value_files: tuple[Path, ...]) -> None:
    with progress.step("Chart: helm upgrade --install") as say:
        kube.apply(build_namespace(objects.OPERATOR_NAMESPACE), build_namespace(objects.ENDPOINT_NAMESPACE))
        kube.install_chart(objects.RELEASE, objects.OPERATOR_NAMESPACE, values, value_files, say=say)


def _serve(kube: Kube, progress: Progress, model_uri: str) -> Client:
    """Apply the endpoint, wait until it serves, and stream a completion from it."""
    with progress.step(f"DedicatedEndpoint {objects.ENDPOINT}") as say:
        kube.apply(objects.build_endpoint(model_uri))
        endpoint = await_ready(kube, objects.ENDPOINT, objects.ENDPOINT_NAMESPACE, say, deadline_s=_READY_DEADLINE_S)
        client = Client(endpoint["status"]["url"], read_key(kube, endpoint), objects.ENDPOINT)
        say(f"waiting for the route {client.url}")
        client.await_route()
    print(f"\n> {_QUESTION}\n", flush=True)
    for piece in client.stream_chat(_QUESTION):
        print(piece, end="", flush=True)
    print("\n", flush=True)
    return client


def _finish(client: Client, progress: Progress, *, environment: str, stop: str) -> None:
    chat, completions = client.curl_lines()
    lines = (
        f"URL   {client.url}",
        f"Key   {client.key}",
        "",
        "Chat, streamed:",
        chat,
        "",
        "Text completion (with the other spelling of the header):",
        completions,
        "",
        "Look around:",
        environment,
        f"kubectl get de --namespace {objects.ENDPOINT_NAMESPACE}",
        "",
        f"Stop: {stop}",
    )
    print("\n".join(lines), flush=True)
    print(f"==> Ready in {progress.elapsed_s:.0f} s", file=sys.stderr)


def remote_from_environment(context: str, value_files: list[Path]) -> Remote:
    """Read what the user said about the cluster from IMAGE_REGISTRY, IMAGE_TAG and MODEL_URI."""
    return Remote(
        context=context,
        registry=os.environ.get("IMAGE_REGISTRY") or None,
        tag=os.environ.get("IMAGE_TAG") or None,
        value_files=tuple(value_files),
        model_uri=os.environ.get("MODEL_URI") or None,
    )
