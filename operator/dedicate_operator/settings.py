"""The operator's environment, parsed once into frozen values; docs/contract.md has the table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from dedicate_operator.errors import SettingsError, SpecError
from dedicate_operator.fields import Fields
from dedicate_operator.routes import ControllerProfile, DefaultRouteType, ParentRef, Scheme, parse_parent_refs

LogFormat = Literal["json", "plain"]
LogLevel = Literal["debug", "info", "warning", "error"]
NetworkPolicyDefault = Literal["Restricted", "None"]

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_URL = re.compile(r"https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]{0,255})?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")
_PEER_FIELDS = frozenset({"namespaceSelector", "podSelector", "ipBlock"})
_EGRESS_FIELDS = frozenset({"ports", "to"})


@dataclass(frozen=True, slots=True)
class NetworkPolicyDefaults:
    """What stands in every endpoint's NetworkPolicy, in the words of the Kubernetes API.

    Attributes:
        mode: whether an endpoint that does not say so has one.
        allow_from: peers that reach the API port besides those that the endpoint names; anyone where neither names any.
        management_from: peers that reach the management port: who scrapes metrics, and the operator.
        extra_egress: rules that are added to what the pods may reach.
    """

    mode: NetworkPolicyDefault = "Restricted"
    allow_from: tuple[dict[str, Any], ...] = ()
    management_from: tuple[dict[str, Any], ...] = ()
    extra_egress: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointDefaults:
    """What an endpoint that leaves a field out is given. `None`: the cluster decides."""

    image: str
    image_pull_secrets: tuple[str, ...] = ()
    route_host: str | None = None
    route_class_name: str | None = None
    route_type: DefaultRouteType = "Ingress"
    route_controller_profile: ControllerProfile = "Auto"
    route_parent_refs: tuple[ParentRef, ...] = ()
    route_external_scheme: Scheme | None = None
    route_external_port: int | None = None
    prometheus_url: str | None = None
    network_policy: NetworkPolicyDefaults = NetworkPolicyDefaults()
    route_external_tls_port: int | None = None
    hub_endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the operator is told from outside."""

    defaults: EndpointDefaults
    watch_namespaces: tuple[str, ...] = ()
    lease_name: str = "dedicate-operator"
    lease_namespace: str | None = None
    log_format: LogFormat = "json"
    log_level: LogLevel = "info"
    liveness_port: int = 8080
    metrics_port: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Parse the variables that start with `DEDICATE_`.

        Raises:
            SettingsError: a value is missing or cannot be used; the message names the variable.
        """
        reader = _Reader(environment)
        return cls(
            defaults=EndpointDefaults(
                image=reader.required("DEDICATE_RUNTIME_IMAGE", _IMAGE, "an image reference"),
                image_pull_secrets=reader.names("DEDICATE_RUNTIME_IMAGE_PULL_SECRETS", _DNS_NAME),
                route_host=reader.optional("DEDICATE_ROUTE_HOST", _DNS_NAME, "a DNS name"),
                route_class_name=reader.optional("DEDICATE_ROUTE_CLASS_NAME", _DNS_NAME, "a DNS name"),
                route_type=cast(
                    "DefaultRouteType", reader.choice("DEDICATE_ROUTE_TYPE", get_args(DefaultRouteType), "Ingress")
                ),
                route_controller_profile=cast(
                    "ControllerProfile",
                    reader.choice("DEDICATE_ROUTE_CONTROLLER_PROFILE", get_args(ControllerProfile), "Auto"),
                ),
                route_parent_refs=reader.parent_refs("DEDICATE_ROUTE_PARENT_REFS"),
                route_external_scheme=cast(
                    "Scheme | None",
                    reader.optional("DEDICATE_ROUTE_EXTERNAL_SCHEME", re.compile("http|https"), "http or https"),
                ),
                route_external_port=reader.port("DEDICATE_ROUTE_EXTERNAL_PORT"),
                prometheus_url=reader.optional("DEDICATE_PROMETHEUS_URL", _URL, "a URL such as http://prometheus:9090"),
                network_policy=_read_network_policy(reader),
                route_external_tls_port=reader.port("DEDICATE_ROUTE_EXTERNAL_TLS_PORT"),
                hub_endpoint=reader.optional("DEDICATE_HUB_ENDPOINT", _URL, "a URL such as https://hub.example.com"),
            ),
            watch_namespaces=reader.names("DEDICATE_WATCH_NAMESPACES", _DNS_LABEL),
            lease_name=reader.optional("DEDICATE_LEASE_NAME", _DNS_NAME, "a DNS name") or "dedicate-operator",
            lease_namespace=reader.optional("DEDICATE_LEASE_NAMESPACE", _DNS_LABEL, "a namespace"),
            log_format=cast("LogFormat", reader.choice("DEDICATE_LOG_FORMAT", get_args(LogFormat), "json")),
            log_level=cast("LogLevel", reader.choice("DEDICATE_LOG_LEVEL", get_args(LogLevel), "info")),
            liveness_port=reader.port("DEDICATE_LIVENESS_PORT") or 8080,
            metrics_port=reader.port("DEDICATE_METRICS_PORT"),
        )


def _read_network_policy(reader: _Reader) -> NetworkPolicyDefaults:
    prefix = "DEDICATE_NETWORK_POLICY"
    mode = reader.choice(f"{prefix}_MODE", get_args(NetworkPolicyDefault), "Restricted")
    return NetworkPolicyDefaults(
        mode=cast("NetworkPolicyDefault", mode),
        allow_from=reader.objects(f"{prefix}_ALLOW_FROM", _PEER_FIELDS),
        management_from=reader.objects(f"{prefix}_MANAGEMENT_FROM", _PEER_FIELDS),
        extra_egress=reader.objects(f"{prefix}_EXTRA_EGRESS", _EGRESS_FIELDS),
    )


class _Reader:
    """Reads single variables; an empty one counts as absent, as a chart's empty value does."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def _text(self, name: str) -> str | None:
        return self._environment.get(name, "").strip() or None

    def optional(self, name: str, pattern: re.Pattern[str], what: str) -> str | None:
        text = self._text(name)
        if text is not None and not pattern.fullmatch(text):
            raise SettingsError(f"{name} must be {what}, not {text!r}")
        return text

    def required(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        text = self.optional(name, pattern, what)
        if text is None:
            raise SettingsError(f"{name} must be set to {what}")
        return text

    def names(self, name: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        """Return the comma-separated names, sorted and each once."""
        parts = {part.strip() for part in (self._text(name) or "").split(",")} - {""}
        for part in sorted(parts):
            if not pattern.fullmatch(part):
                raise SettingsError(f"{name} must be names separated by commas, and {part!r} is none")
        return tuple(sorted(parts))

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        text = self._text(name) or default
        if text not in choices:
            raise SettingsError(f"{name} must be one of {', '.join(choices)}, not {text!r}")
        return text

    def parent_refs(self, name: str) -> tuple[ParentRef, ...]:
        """Return the Gateways of a JSON list such as `[{"namespace": "infra", "name": "public"}]`."""
        text = self._text(name)
        try:
            return parse_parent_refs(Fields({name: json.loads(text)}, "environment"), name) if text else ()
        except (ValueError, SpecError) as error:
            raise SettingsError(f"{name} must be a JSON list of Gateways: {error}") from error

    def port(self, name: str) -> int | None:
        text = self._text(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
            raise SettingsError(f"{name} must be a port from 1 to 65535, not {text!r}")
        return int(text)

    def objects(self, name: str, fields: frozenset[str]) -> tuple[dict[str, Any], ...]:
        """Return the objects of a JSON list; what is in their fields only the API server knows."""
        try:
            items = json.loads(self._text(name) or "[]")
        except ValueError as error:
            raise SettingsError(f"{name} must be JSON: {error}") from error
        is_list = isinstance(items, list) and all(isinstance(item, dict) for item in items)
        if not is_list or not all(item and item.keys() <= fields for item in items):
            raise SettingsError(f"{name} must be a list of objects with {', '.join(sorted(fields))}, not {items!r}")
        return tuple(items)
