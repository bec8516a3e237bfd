"""The hub's HTTP protocol, as much of it as a download needs: resolve a revision, list a commit, read a file.

Every failure is one of two: `HubTroubleError`, which may pass, and `StartError`, which will not by itself.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

import httpx2
from huggingface_hub import constants, get_token

from dedicate_runtime.download.repository import COMMIT, ListingError, ModelSource, RemoteFile, parse_listing
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECT_S = 10.0
_PASSING = frozenset({408, 425, 429})
"""Besides every 5xx."""
_MAX_PAGES = 1000
"""Of a list of files, each with up to a thousand; arbitrary."""


class HubTroubleError(Exception):
    """The hub did not deliver now; later it may. `retry_after_s` is what it asked for."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class HubClient:
    """One repository's view of one hub, or of a mirror that speaks like it. Used by several threads."""

    def __init__(self, source: ModelSource, *, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._source = source
        token = get_token()
        headers = {"User-Agent": "dedicate-runtime", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._has_token = bool(token)
        timeout = httpx2.Timeout(_CONNECT_S, read=float(constants.HF_HUB_DOWNLOAD_TIMEOUT), pool=None)
        # The client takes the token off when a redirect leads to another host, as to a content network.
        self._client = httpx2.Client(headers=headers, follow_redirects=True, timeout=timeout)

    def close(self) -> None:
        self._client.close()

    def resolve(self) -> str:
        """Return the commit that the revision is now.

        Raises:
            HubTroubleError: the hub did not answer.
            StartError: MODEL_NOT_FOUND, GATED_REPO, UNAUTHORIZED.
        """
        url = f"{self.endpoint}/api/models/{self._source.repository}/revision/{quote(self._source.ref, safe='')}"
        answer, _ = self._get_json(url)
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise HubTroubleError(f"its answer names no commit of {self._source}")
        return commit

    def list_files(self, commit: str) -> tuple[RemoteFile, ...]:
        """Return all files of a commit.

        Raises:
            HubTroubleError: the hub did not answer, or not with a list.
            StartError: MODEL_NOT_FOUND, GATED_REPO, UNAUTHORIZED.
        """
        url: str | None = f"{self.endpoint}/api/models/{self._source.repository}/tree/{commit}?recursive=true"
        entries: list[Any] = []
        for _ in range(_MAX_PAGES):
            if url is None:
                break
            page, url = self._get_json(url, commit)
            if not isinstance(page, list):
                raise HubTroubleError(f"its answer is no list of the files of {commit}")
            entries += page
        try:
            return parse_listing(entries)
        except ListingError as error:
            raise HubTroubleError(f"its list of files cannot be used: {error}") from error

    @contextlib.contextmanager
    def open(self, commit: str, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Read a file from byte `start`; gives where the content really begins, which is 0 if the hub knows no ranges.

        Raises:
            HubTroubleError: the hub did not answer, or its answer broke off; also while the content is read.
            StartError: MODEL_NOT_FOUND, GATED_REPO, UNAUTHORIZED.
        """
        url = f"{self.endpoint}/{self._source.repository}/resolve/{commit}/{quote(path)}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                if response.is_error:
                    self._refuse(response, commit)
                begin = start if response.status_code == httpx2.codes.PARTIAL_CONTENT else 0
                yield begin, response.iter_raw()
        except httpx2.HTTPError as error:
            raise HubTroubleError(_describe(error)) from error

    def _get_json(self, url: str, commit: str | None = None) -> tuple[Any, str | None]:
        """Return the document and the address of the next page of it."""
        try:
            response = self._client.get(url)
            if response.is_error:
                self._refuse(response, commit)
            document = response.json()
        except httpx2.HTTPError as error:
            raise HubTroubleError(_describe(error)) from error
        except ValueError as error:
            raise HubTroubleError("its answer is not JSON") from error
        following = response.links.get("next", {}).get("url")
        if following is None:
            return document, None
        address = urljoin(url, following)
        # The token goes along, so nobody else is asked for the rest.
        if urlsplit(address)[:2] != urlsplit(url)[:2]:
            raise HubTroubleError(f"the rest of its answer is elsewhere, at {address}")
        return document, address

    def _refuse(self, response: httpx2.Response, commit: str | None) -> NoReturn:
        """Raise what the hub's refusal means. Its words for the same thing differ with the token's absence."""
        status, kind = response.status_code, response.headers.get("X-Error-Code")
        repository, endpoint = self._source.repository, self.endpoint
        if status in _PASSING or status >= 500:
            after = response.headers.get("Retry-After", "")
            raise HubTroubleError(f"status {status}", float(after) if after.isdigit() else None)
        if kind == "GatedRepo":
            why = "the token's account has not accepted its terms" if self._has_token else "no token was given"
            raise StartError(
                ExitCode.GATED_REPO,
                f"{repository} is gated and the hub answered {status}: {why} (see {endpoint}/{repository}).",
            )
        if kind == "RevisionNotFound":
            wanted = commit or self._source.ref
            raise StartError(ExitCode.MODEL_NOT_FOUND, f"The repository {repository} has no revision {wanted}.")
        if status in {401, 403}:
            why = (
                "the token is wrong, has expired or may not read it"
                if self._has_token
                else "it is private, which needs a token, or does not exist"
            )
            raise StartError(ExitCode.UNAUTHORIZED, f"The hub at {endpoint} answered {status} for {repository}: {why}.")
        if status == 404:
            what = f"not all files of {repository} at {commit}" if commit else f"no repository {repository}"
            also = "" if commit or kind == "RepoNotFound" else f", or it has no revision {self._source.ref}"
            raise StartError(ExitCode.MODEL_NOT_FOUND, f"The hub at {endpoint} has {what}{also}.")
        raise HubTroubleError(f"status {status}")


def _describe(error: httpx2.HTTPError) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
