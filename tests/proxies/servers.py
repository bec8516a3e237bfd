"""Each proxy configured as its controller does from our route, and from none.

What a controller makes of an annotation stands in its documentation; the tables below are that and no more.
Sources: https://kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/annotations/,
https://docs.nginx.com/nginx-ingress-controller/configuration/ingress-resources/advanced-configuration-with-annotations/,
https://gateway-api.sigs.k8s.io/guides/http-timeouts/.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import contextmanager

import httpx

from dedicate_operator.httproute import build_http_route
from dedicate_operator.ingress import build_ingress
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import place_route
from dedicate_operator.settings import EndpointDefaults
from dev.proxies import find_envoy, find_nginx, find_traefik

START_S = 30
ENVOY_TYPES = "type.googleapis.com/envoy.extensions.filters"
INGRESS_NGINX = {
    "proxy-buffering": "proxy_buffering {};",
    "proxy-request-buffering": "proxy_request_buffering {};",
    "proxy-read-timeout": "proxy_read_timeout {}s;",
    "proxy-send-timeout": "proxy_send_timeout {}s;",
    "proxy-body-size": "client_max_body_size {};",
}
F5_NGINX = {
    "proxy-buffering": "proxy_buffering {};",
    "proxy-read-timeout": "proxy_read_timeout {};",
    "proxy-send-timeout": "proxy_send_timeout {};",
    "client-max-body-size": "client_max_body_size {};",
}


def build_route(route):
    """Return the manifest that the operator writes for a route."""
    metadata = {"namespace": "team", "name": "chat", "uid": "u"}
    endpoint = parse_endpoint({"metadata": metadata, "spec": {"model": {"uri": "hf://a/b"}, "route": route}})
    placement = place_route(endpoint, EndpointDefaults(image="i"))
    return (build_http_route if placement.type == "HTTPRoute" else build_ingress)(endpoint, placement)


def read_directives(profile, prefix, table):
    """Return nginx's directives for what is written; every annotation of ours must be in the table."""
    annotations = build_route({"host": "llm.example.com", "controllerProfile": profile})["metadata"]["annotations"]
    ours = {name: value for name, value in annotations.items() if not name.startswith("dedicate.dev/")}
    words = {"True": "on", "False": "off"}
    return [table[name.removeprefix(f"{prefix}/")].format(words.get(value, value)) for name, value in ours.items()]


def nginx(directives):
    def configure(folder, port, upstream):
        folder.joinpath("nginx.conf").write_text(
            f"""
daemon off;
user root;
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location /chat/ {{
      proxy_http_version 1.1;
      proxy_pass http://127.0.0.1:{upstream};
      {" ".join(directives)}
    }}
  }}
}}
"""
        )
        return [find_nginx(), "-e", "stderr", "-c", f"{folder}/nginx.conf", "-p", str(folder)]

    return configure


def envoy(timeout):
    """Return a configuration with a route's timeout as a Gateway's controller sets it; None leaves Envoy's own."""

    def configure(folder, port, upstream):
        route = {"cluster": "model"} | ({} if timeout is None else {"timeout": timeout})
        hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/chat/"}, "route": route}]}]
        router = {"@type": f"{ENVOY_TYPES}.http.router.v3.Router"}
        manager = {
            "@type": f"{ENVOY_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": hosts},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        endpoint = {"endpoint": {"address": build_address(upstream)}}
        cluster = {
            "name": "model",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "model", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
        listener = {"address": build_address(port), "filter_chains": [{"filters": filters}]}
        config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
        folder.joinpath("envoy.json").write_text(json.dumps(config))
        return [
            find_envoy(),
            "-c",
            f"{folder}/envoy.json",
            "--concurrency",
            "1",
            "--log-level",
            "warn",
            "--use-dynamic-base-id",
        ]

    return configure


def build_address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def traefik(folder, port, upstream):
    """Configure as the Ingress provider does; an entry point has the timeouts that it has by default."""
    server = {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{upstream}"}]}}
    config = {
        "http": {"routers": {"chat": {"rule": "PathPrefix(`/chat`)", "service": "chat"}}, "services": {"chat": server}}
    }
    folder.joinpath("dynamic.yml").write_text(json.dumps(config))
    return [
        find_traefik(),
        f"--entrypoints.web.address=127.0.0.1:{port}",
        f"--providers.file.filename={folder}/dynamic.yml",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    ]


@contextmanager
def run(configure, folder, upstream):
    """Run a proxy in front of the upstream; yield the base URL of the model behind it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    log = folder / "log"
    with log.open("wb") as output:
        command = configure(folder, port, upstream)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        ends = time.monotonic() + START_S
        while not is_through(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/chat/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_through(port):
    """Tell whether the upstream answers, which knows no GET: a proxy listens before it has its routes."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/chat/", trust_env=False).status_code == 501
    except httpx.HTTPError:
        return False


def read_words(answer):
    """Yield the words of a stream as they come; one that is cut says so, and one that stands still raises."""
    try:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")
    except (httpx.NetworkError, httpx.ProtocolError) as error:
        yield f"cut: {error}"
