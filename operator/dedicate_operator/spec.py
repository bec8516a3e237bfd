"""The custom resource as the rest of the operator sees it: frozen, with every default filled in.

`parsing` makes these values. The CRD's defaults equal the ones below, which a test holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dedicate_operator.identity import Key
from dedicate_operator.routes import ControllerProfile, ParentRef, RouteType

Dtype = Literal["Auto", "Float32", "BFloat16", "Float16"]
RemoteCode = Literal["Deny", "Allow"]
SamplingDefaults = Literal["Specification", "Model"]
AccessMode = Literal["ReadWriteOnce", "ReadWriteMany"]
RetentionPolicy = Literal["Retain", "Delete"]
RolloutStrategy = Literal["Auto", "RollingUpdate", "Recreate"]
UpgradePolicy = Literal["OnSpecChange", "OnOperatorUpgrade"]
ScalingMetric = Literal["ActiveRequests", "WaitingRequests"]
AuthMode = Literal["APIKey", "None"]
NetworkPolicyMode = Literal["Restricted", "None"]


_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hugging Face hub."""

    repository: str
    revision: str | None = None
    token_secret: str | None = None
    token_key: str = "token"  # noqa: S105 - the name of a Secret's key

    @property
    def uri(self) -> str:
        return f"hf://{self.repository}"

    @property
    def default_name(self) -> str:
        return self.repository

    @property
    def commit(self) -> str | None:
        """The revision, if it cannot move."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def request(self) -> str:
        """What is resolved to a commit, once."""
        return f"{self.uri}@{self.revision or 'main'}"


@dataclass(frozen=True, slots=True)
class ClaimSource:
    """A folder, by its relative path, in a PersistentVolumeClaim; the empty path is the claim's root."""

    claim: str
    path: str = ""

    @property
    def default_name(self) -> str:
        return self.path.rpartition("/")[2] or self.claim


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image whose root is the model's folder, mounted as a volume."""

    reference: str

    @property
    def default_name(self) -> str:
        """The repository's last part, without tag and digest."""
        return self.reference.partition("@")[0].rpartition("/")[2].partition(":")[0]


Source = HubSource | ClaimSource | ImageSource


@dataclass(frozen=True, slots=True)
class Model:
    source: Source
    served_name: str | None = None
    dtype: Dtype = "Auto"
    max_length_tokens: int | None = None
    remote_code: RemoteCode = "Deny"
    sampling_defaults: SamplingDefaults = "Specification"

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names that clients may send; the first is the one that is reported."""
        name = self.source.default_name
        return (name,) if self.served_name is None or self.served_name == name else (self.served_name, name)


@dataclass(frozen=True, slots=True)
class EmptyDirCache:
    size_limit: str | None = None


@dataclass(frozen=True, slots=True)
class OwnedClaimCache:
    """A claim that the operator makes."""

    size: str
    access_mode: AccessMode = "ReadWriteOnce"
    storage_class_name: str | None = None
    retention_policy: RetentionPolicy = "Retain"


@dataclass(frozen=True, slots=True)
class ExistingClaimCache:
    name: str


Cache = EmptyDirCache | OwnedClaimCache | ExistingClaimCache


@dataclass(frozen=True, slots=True)
class Runtime:
    image: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    upgrade_policy: UpgradePolicy = "OnSpecChange"


@dataclass(frozen=True, slots=True)
class Accelerator:
    resource_name: str = "nvidia.com/gpu"
    count: int = 1
    shared_memory: str = "1Gi"


@dataclass(frozen=True, slots=True)
class Resources:
    requests: dict[str, str] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scheduling:
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] | None = None
    topology_spread_constraints: tuple[dict[str, Any], ...] = ()
    runtime_class_name: str | None = None
    priority_class_name: str | None = None


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Between which numbers of pods, and for which average of the metric over them."""

    max_replicas: int
    target_value: int
    min_replicas: int = 1
    metric: ScalingMetric = "ActiveRequests"
    scale_down_delay_s: int = 300


@dataclass(frozen=True, slots=True)
class ConfigMapEntry:
    """One file of a ConfigMap that is mounted as a folder."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Auth:
    mode: AuthMode = "APIKey"
    api_keys_secret: str | None = None
    limits: ConfigMapEntry | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """How clients reach the endpoint; `placement` fills in what is None."""

    type: RouteType | None = None
    host: str | None = None
    class_name: str | None = None
    controller_profile: ControllerProfile | None = None
    parent_refs: tuple[ParentRef, ...] = ()
    is_tls: bool = False
    tls_secret: str | None = None
    request_timeout_s: int | None = None
    max_body_size: str | None = None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Who may reach the pods; `mode` None leaves it to the operator's default."""

    mode: NetworkPolicyMode | None = None
    allow_from: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What one endpoint's author asked for."""

    dedicate: str
    model: Model
    cache: Cache | None = None
    is_suspended: bool = False
    replicas: int = 1
    runtime: Runtime = Runtime()
    accelerator: Accelerator = Accelerator()
    resources: Resources = field(default_factory=Resources)
    scheduling: Scheduling = field(default_factory=Scheduling)
    startup_timeout_s: int = 1800
    pre_stop_s: int = 15
    drain_s: int = 300
    rollout_strategy: RolloutStrategy = "Auto"
    progress_deadline_s: int | None = None
    autoscaling: Autoscaling | None = None
    min_available: int | None = None
    auth: Auth = Auth()
    route: Route = Route()
    network_policy: NetworkPolicy = NetworkPolicy()

    @property
    def wanted_replicas(self) -> int:
        if self.is_suspended:
            return 0
        # Zero is off, as for every autoscaler: it neither adds to it nor comes to it.
        if self.autoscaling is None or self.replicas == 0:
            return self.replicas
        return min(max(self.replicas, self.autoscaling.min_replicas), self.autoscaling.max_replicas)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One custom resource: who it is and what it asks for.

    Attributes:
        document: the specification as the API server gave it, from which `spec` was parsed.
    """

    key: Key
    uid: str
    generation: int
    spec: EndpointSpec
    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
