"""The operator's own errors; each says what may be done about it."""

from __future__ import annotations


class OperatorError(Exception):
    """Base of every error that the operator raises on purpose."""


class SettingsError(OperatorError):
    """The environment holds a value that cannot be used; the operator does not start."""


class SpecError(OperatorError):
    """A specification that the CRD let through and that cannot be served; only its author can help.

    Reached when the CRD in the cluster is older or newer than the operator.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


class ClusterError(OperatorError):
    """The API server refused or could not be reached."""

    def __init__(
        self, message: str, *, code: int | None = None, retry_after_s: float | None = None, reason: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def is_retryable(self) -> bool:
        """Whether the same request can succeed later, without a change of what is asked."""
        if self.reason == "NamespaceTerminating" or self.is_right_missing:
            return True
        if self.is_field_unknown:
            return False
        return self.code is None or self.code in {401, 409, 410, 429} or self.code >= 500

    @property
    def is_right_missing(self) -> bool:
        """Whether the operator may not do it, now: an API server that just started knows no roles yet.

        An admission policy or a quota answers 403 as well, but about the object and not about the user.
        """
        return self.code == 403 and 'is forbidden: User "' in str(self)

    @property
    def is_field_unknown(self) -> bool:
        """Whether the object has a field that its kind has not; the API server calls that a fault of its own.

        Source: https://github.com/kubernetes/kubernetes/issues/122480
        """
        return self.code in {400, 500} and "failed to create typed patch object" in str(self)

    @property
    def is_not_found(self) -> bool:
        return self.code == 404

    @property
    def is_conflict(self) -> bool:
        return self.code == 409

    @property
    def is_invalid(self) -> bool:
        return self.code == 422

    @property
    def is_over_quota(self) -> bool:
        return self.code == 403 and "exceeded quota" in str(self)

    @property
    def is_gone(self) -> bool:
        return self.code == 410


class NotLeaderError(ClusterError):
    """A write was not sent, or cut off, because another process may lead; whoever leads makes it good."""
