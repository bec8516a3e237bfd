"""HTTP to one API server: who we are there, deadlines, and requests that leave in one piece.

lightkube finds the configuration and knows how each kind of user proves itself; aiohttp carries the bytes. What a
request means is `cluster`'s.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import httpx2
from aiohttp.abc import AbstractStreamWriter
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError
from yarl import URL

from dedicate_operator.errors import ClusterError, OperatorError

_CONNECT_S = 5.0
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=_CONNECT_S, sock_read=15.0)
# The API server sends a bookmark about once a minute of kinds that change at all.
_STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=90.0)
_MAX_CONNECTIONS = 128
# A peer that is gone without a word is noticed by the kernel within half a minute, on watches, too.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}

Check = Callable[[], None]


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes


class Connection:
    """A pool of connections; used from one event loop.

    Args:
        unacknowledged_s: for how long the kernel tries to deliver what was sent.
    """

    def __init__(self, config: SingleConfig | None, *, unacknowledged_s: float) -> None:
        """Find the cluster in the pod's service account, else in `KUBECONFIG`.

        Raises:
            ClusterError: there is no usable configuration.
        """
        try:
            found = config or KubeConfig.from_env().get()
            assert found is not None, "there is a current context, or get() has raised"
            assert found.user is not None, "lightkube gives an empty one where there is none"
            self._context = verify_cluster(found.cluster, found.user, found.abs_file, trust_env=False)
            self._auth = user_auth(found.user)
        except (ConfigError, OSError, KeyError) as error:
            raise ClusterError(f"no usable Kubernetes configuration: {error}", code=0) from error
        self._server = str(found.cluster.server).rstrip("/")
        self.namespace = str(found.namespace or "default")
        self._unacknowledged_s = unacknowledged_s
        self._authorization: str | None = None
        self._is_authorized = self._auth is None
        self._pool: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()

    async def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        *,
        body: bytes | None = None,
        type_: str = "application/json",
        check: Check | None = None,
    ) -> Answer:
        """Send a request and return its answer, whatever its status.

        `check` is called last, just before head and body leave together; what it raises is raised here, and then
        nothing has left.

        Raises:
            ClusterError: there was no answer.
        """
        headers = {} if body is None else {"Content-Type": type_}
        for is_last in (False, True):
            data = None if body is None else _Body(body, check)
            async with self._open(method, path, params, _REQUEST_TIMEOUT, headers=headers, data=data) as response:
                answer = Answer(response.status, response.headers, await response.read())
            if answer.status != 401 or is_last or not await self._authorize(has_failed=True):
                break
        return answer

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes | Answer, None]:
        """Yield the answer, without its content if it is no error, and then its lines as they come.

        Ends where the server says nothing for long.

        Raises:
            ClusterError: the stream broke.
        """
        try:
            async with self._open("GET", path, params, _STREAM_TIMEOUT) as response:
                if response.status >= 400:
                    yield Answer(response.status, response.headers, await response.read())
                    if response.status == 401:
                        await self._authorize(has_failed=True)
                    return
                yield Answer(response.status, response.headers, b"")
                async with aclosing(_iterate_lines(response.content)) as lines:
                    async for line in lines:
                        yield line
        except _SilentError:
            return

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        patience: aiohttp.ClientTimeout,
        *,
        headers: Mapping[str, str] | None = None,
        data: _Body | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if not self._is_authorized:
            await self._authorize(has_failed=False)
        if self._authorization is not None:
            headers = {**(headers or {}), "Authorization": self._authorization}
        url = URL(f"{self._server}{path}?{urlencode(params)}", encoded=True)
        pool = self._ensure_pool()
        try:
            async with pool.request(method, url, data=data, headers=headers, timeout=patience) as response:
                yield response
        except aiohttp.SocketTimeoutError as error:
            if patience is _STREAM_TIMEOUT:
                raise _SilentError from error
            raise ClusterError(f"{method} {path}: no answer in time") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error.__cause__, OperatorError):
                # What the check raised; aiohttp takes it for a broken connection.
                raise error.__cause__ from None
            raise ClusterError(f"{method} {path}: {error!r}") from error

    def _ensure_pool(self) -> aiohttp.ClientSession:
        """Return the pool, made when the event loop runs."""
        if self._pool is None:
            connector = aiohttp.TCPConnector(
                ssl=self._context, limit=_MAX_CONNECTIONS, socket_factory=self._make_socket, ttl_dns_cache=30
            )
            # Compression would cost both sides more time than it saves within a cluster.
            headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
            self._pool = aiohttp.ClientSession(connector=connector, headers=headers, trust_env=False)
        return self._pool

    def _make_socket(self, address: Any) -> socket.socket:
        family, type_, protocol, _, _ = address
        made = socket.socket(family, type_, protocol)
        made.setblocking(False)  # noqa: FBT003 - takes no keyword
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        # The kernel repeats for minutes what is not acknowledged, even after the connection was closed.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._unacknowledged_s * 1000))
        return made

    async def _authorize(self, *, has_failed: bool) -> bool:
        """Ask lightkube how to prove who we are; after a refusal, which renews what may be old. Tell if it changed."""
        if self._auth is None:
            return False
        before = self._authorization
        request = httpx2.Request("GET", self._server)
        try:
            async with aclosing(self._auth.async_auth_flow(request)) as flow:
                request = await anext(flow)
                if has_failed:
                    try:
                        request = await flow.asend(httpx2.Response(401, request=request))
                    except StopAsyncIteration:
                        return False
        except (ConfigError, OSError) as error:
            raise ClusterError(f"no credentials: {error}") from error
        self._authorization, self._is_authorized = request.headers.get("Authorization"), True
        return self._authorization != before


class _SilentError(Exception):
    """Nothing was heard on a stream for long."""


class _Body(aiohttp.BytesPayload):
    """A body that takes a last look before it leaves.

    aiohttp keeps the head back until the first bytes of the body, and hands both to the socket without giving way to
    any other task.
    """

    def __init__(self, value: bytes, check: Check | None) -> None:
        super().__init__(value, content_type="application/json")
        self._check = check

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if self._check is not None:
            self._check()
        await super().write_with_length(writer, content_length)


async def _iterate_lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """Yield whole lines of any length."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        if b"\n" not in chunk:
            continue
        *lines, last = rest.split(b"\n")
        rest = last
        for line in lines:
            if line:
                yield bytes(line)
    if rest:
        yield bytes(rest)
