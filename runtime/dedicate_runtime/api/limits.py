"""How much one client may ask for: rates by token bucket, and answers at a time. Pure; the clock is an argument.

Time is in nanoseconds and amounts are integers, so that nothing is ever rounded in a client's favour or against it: a
request that is told to wait is admitted at the very nanosecond it was told, and not before. A refusal takes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

_MINUTE_NS = 60 * 10**9


class LimitKind(Enum):
    """What can run out."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT_REQUESTS = "concurrent_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may do; None is as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPolicy:
    """The limits of each client; `default` is for those that are not named."""

    default: Limits = Limits()
    by_client: Mapping[str, Limits] = field(default_factory=dict)

    def of(self, client: str) -> Limits:
        return self.by_client.get(client, self.default)


class LimitExceeded(Exception):  # noqa: N818 - names what happened, which is no error of ours
    """A request that goes over a limit of its client.

    `wait_ns` is how long it is until the same request is admitted if nobody else's is; None where that is never, for
    it asks for more than a full bucket holds, and also where it depends on when another answer ends.
    """

    def __init__(self, kind: LimitKind, *, limit: int, num_used: int, num_asked: int, wait_ns: int | None) -> None:
        super().__init__(kind.value)
        self.kind = kind
        self.limit = limit
        self.num_used = num_used
        self.num_asked = num_asked
        self.wait_ns = wait_ns

    @property
    def is_for_good(self) -> bool:
        """Whether the request can never be admitted under this limit."""
        return self.num_asked > self.limit


class Bucket:
    """What may be taken within a minute: full at first, holds one minute's worth, and fills evenly.

    The level counts units of 1 / 60e9 of what is taken, of which `per_minute` flow back each nanosecond.
    """

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: int) -> None:
        self.per_minute = per_minute
        self._level = per_minute * _MINUTE_NS
        self._at = now

    def num_left(self, now: int) -> int:
        self._refill(now)
        return self._level // _MINUTE_NS

    def wait_ns(self, amount: int, now: int) -> int:
        """Tells how long it is until `amount`, of at most a minute's worth, can be taken; 0 if it can be now."""
        self._refill(now)
        lacking = amount * _MINUTE_NS - self._level
        return max(0, -(-lacking // self.per_minute))

    def full_in_ns(self, now: int) -> int:
        return self.wait_ns(self.per_minute, now)

    def take(self, amount: int, now: int) -> None:
        """Takes what `wait_ns` said is there."""
        self._refill(now)
        self._level -= amount * _MINUTE_NS
        assert self._level >= 0, "more was taken than was there"

    def give_back(self, amount: int, now: int) -> None:
        """Puts back what was taken and not used; what flowed in meanwhile may have left no room for all of it."""
        self._level += amount * _MINUTE_NS
        self._refill(now)

    def resize(self, per_minute: int, now: int) -> None:
        """Takes up another rate; the bucket stays as full as it was, in proportion."""
        self._refill(now)
        self._level = self._level * per_minute // self.per_minute
        self.per_minute = per_minute

    def _refill(self, now: int) -> None:
        self._level = min(self._level + (now - self._at) * self.per_minute, self.per_minute * _MINUTE_NS)
        self._at = now


@dataclass(slots=True)
class Account:
    """What one client has taken of its limits."""

    limits: Limits
    requests: Bucket | None
    tokens: Bucket | None
    num_running: int = 0

    @property
    def num_free_places(self) -> int | None:
        """How many more of the client's requests may run just now; None for any number."""
        most = self.limits.concurrent_requests
        return None if most is None else max(0, most - self.num_running)


class Admission:
    """One request that was let in. It holds a place until `close`, which must be called on every path."""

    def __init__(self, account: Account, clock: Callable[[], int]) -> None:
        self._account = account
        self._clock = clock
        # Those from which something was taken: a policy that changes meanwhile may bring others, which owe nothing.
        self._requests: Bucket | None = account.requests
        self._tokens: Bucket | None = None
        self._num_reserved = 0
        self._is_open = True
        account.num_running += 1
        if self._requests is not None:
            self._requests.take(1, clock())

    def reserve_tokens(self, count: int) -> None:
        """Takes the most tokens that the request may come to use; at most once.

        Raises:
            LimitExceeded: they are not there; the request is not counted against its own limit either.
        """
        bucket, now = self._account.tokens, self._clock()
        if bucket is None:
            return
        try:
            _check(bucket, LimitKind.TOKENS, count, now)
        except LimitExceeded:
            self._give_request_back(now)
            raise
        bucket.take(count, now)
        self._tokens, self._num_reserved = bucket, count

    def close(self, *, num_used_tokens: int, was_turned_away: bool) -> None:
        """Frees the place, and gives back the tokens that were not used. Safe to call twice.

        A request that was turned away, for reasons that are the server's, is not counted.
        """
        if not self._is_open:
            return
        self._is_open = False
        self._account.num_running -= 1
        now = self._clock()
        if self._tokens is not None:
            self._tokens.give_back(max(0, self._num_reserved - num_used_tokens), now)
        if was_turned_away:
            self._give_request_back(now)

    def _give_request_back(self, now: int) -> None:
        if self._requests is not None:
            self._requests.give_back(1, now)
            self._requests = None


class Limiter:
    """Admits requests by a policy that may be replaced at any time; the accounts of clients live on."""

    def __init__(self, policy: LimitPolicy, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock
        self._policy = policy
        self._accounts: dict[str, Account] = {}

    def admit(self, client: str) -> Admission:
        """Lets one request in, before anything is known of its size.

        Raises:
            LimitExceeded: the client has as many requests as it may have, running or within the minute.
        """
        account, now = self.account_of(client), self.clock()
        most = account.limits.concurrent_requests
        if most is not None and account.num_running >= most:
            raise LimitExceeded(
                LimitKind.CONCURRENT_REQUESTS, limit=most, num_used=account.num_running, num_asked=1, wait_ns=None
            )
        if account.requests is not None:
            _check(account.requests, LimitKind.REQUESTS, 1, now)
        return Admission(account, self.clock)

    def account_of(self, client: str) -> Account:
        """Gives the client's account, opening it if need be; clients are known ones, so their number is bounded."""
        account = self._accounts.get(client)
        if account is None:
            limits, now = self._policy.of(client), self.clock()
            account = self._accounts[client] = Account(
                limits,
                requests=_resize(None, limits.requests_per_minute, now),
                tokens=_resize(None, limits.tokens_per_minute, now),
            )
        return account

    def replace(self, policy: LimitPolicy) -> None:
        """Takes up another policy. Buckets stay as full as they are, new ones are full, running requests go on."""
        self._policy = policy
        now = self.clock()
        for client, account in self._accounts.items():
            limits = account.limits = policy.of(client)
            account.requests = _resize(account.requests, limits.requests_per_minute, now)
            account.tokens = _resize(account.tokens, limits.tokens_per_minute, now)

    def forget(self, client: str) -> None:
        """Closes the account of a client that is gone; what it still runs is not affected."""
        self._accounts.pop(client, None)


def _check(bucket: Bucket, kind: LimitKind, amount: int, now: int) -> None:
    limit = bucket.per_minute
    wait_ns = None if amount > limit else bucket.wait_ns(amount, now)
    if wait_ns == 0:
        return
    num_used = limit - bucket.num_left(now)
    raise LimitExceeded(kind, limit=limit, num_used=num_used, num_asked=amount, wait_ns=wait_ns)


def _resize(bucket: Bucket | None, per_minute: int | None, now: int) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now)
    bucket.resize(per_minute, now)
    return bucket
