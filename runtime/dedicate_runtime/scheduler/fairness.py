"""Whose turn it is: start-time fair queueing among clients, counted in tokens.

A sequence's turn is a point in virtual time, drawn when it arrives: the moment at which what its client had before is
paid for, and not before now. Now is the latest turn that has come. So a client that has asked for nothing lately is
served next, whatever others have piled up, and clients that always have something waiting get tokens in equal parts:
two of them never differ by more than the dearest sequence of either. Whoever waits is overtaken by a bounded amount of
each other client's work. Turns of one client keep the order of arrival, so a single client is served as in a plain
queue.

What a sequence will cost is not known when it arrives. It is charged its prompt, and for its output what outputs
lately were, at most its `max_tokens`: charging `max_tokens` itself would make those pay who leave it at its default.
When it ends, the client's account is set right, so in the long run what is shared is what was computed; a sequence that
never began costs nothing. A prompt counts whole, cached or not: who shares a prefix shall not wait because of it, nor
gain a larger share. What is computed twice after a preemption is charged once.

Accounts are kept while their client has unfinished sequences or has not paid for its last ones; when nothing is
unfinished, nobody owes anybody anything.

Source: P. Goyal, H. M. Vin, H. Cheng, Start-time Fair Queueing, SIGCOMM 1996; and Y. Sheng et al., Fairness in Serving
Large Language Models, OSDI 2024, for what to count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dedicate_runtime.core.sequence import Sequence

_FIRST_GUESS = 256.0
"""Tokens of output, before any has been seen; arbitrary."""
_GUESS_WEIGHT = 1 / 16
"""Of the newest output in the mean; arbitrary: the guess follows a change of habits within a few dozen sequences."""
_MIN_SWEEP = 64
"""Accounts before it is worth a look which of them are paid; arbitrary."""


@dataclass(slots=True)
class _Account:
    paid_until: int
    """Virtual time at which the client's sequences so far are paid for."""
    last_turn: int = 0
    """Of its newest sequence; of no meaning unless one of its sequences has yet to begin."""
    num_unfinished: int = 0
    num_unbegun: int = 0


class FairOrder:
    """Gives each sequence its turn and keeps the clients' accounts."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._now = 0
        self._mean_output = _FIRST_GUESS
        self._sweep_at = _MIN_SWEEP
        self._num_unfinished = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def enter(self, sequence: Sequence) -> None:
        """Gives a new sequence its turn and charges its client."""
        account = self._find_account(sequence.request.client_id)
        turn = max(self._now, account.paid_until)
        if account.num_unbegun:
            turn = max(turn, account.last_turn)
        expected_output = min(sequence.request.sampling.max_tokens, round(self._mean_output))
        sequence.price = sequence.num_prompt_tokens + expected_output
        sequence.rank = (turn, sequence.arrival)
        account.paid_until = turn + sequence.price
        account.last_turn = turn
        account.num_unfinished += 1
        account.num_unbegun += 1
        self._num_unfinished += 1

    def begin(self, sequence: Sequence) -> None:
        """Notes that a sequence's turn has come; called once for each, not again after a preemption."""
        self._now = max(self._now, sequence.rank[0])
        self._accounts[sequence.request.client_id].num_unbegun -= 1

    def settle(self, sequence: Sequence) -> None:
        """Charges what a sequence that ends has really cost."""
        account = self._accounts[sequence.request.client_id]
        account.num_unfinished -= 1
        if sequence.has_been_admitted:
            account.paid_until += sequence.num_tokens - sequence.price
            self._mean_output += _GUESS_WEIGHT * (sequence.num_output_tokens - self._mean_output)
        else:
            account.num_unbegun -= 1
            account.paid_until -= sequence.price
        self._num_unfinished -= 1
        if not self._num_unfinished:
            self._accounts.clear()

    def _find_account(self, client_id: str) -> _Account:
        account = self._accounts.get(client_id)
        if account is None:
            if len(self._accounts) >= self._sweep_at:
                self._drop_paid_accounts()
            account = self._accounts[client_id] = _Account(paid_until=self._now)
        return account

    def _drop_paid_accounts(self) -> None:
        """Forgets clients to whom an account makes no difference; so seldom that arrivals do not feel it."""
        self._accounts = {
            client_id: account
            for client_id, account in self._accounts.items()
            if account.num_unfinished or account.paid_until > self._now
        }
        self._sweep_at = max(_MIN_SWEEP, 2 * len(self._accounts))

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Asserts that the accounts are those of `sequences`, all unfinished ones, and their turns in order."""
        by_client: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            by_client.setdefault(sequence.request.client_id, []).append(sequence)
        for client_id, account in self._accounts.items():
            own = sorted(by_client.pop(client_id, []), key=lambda sequence: sequence.arrival)
            unbegun = [sequence for sequence in own if not sequence.has_been_admitted]
            assert (account.num_unfinished, account.num_unbegun) == (len(own), len(unbegun)), client_id
            assert all(sequence.rank[0] <= self._now for sequence in own if sequence.has_been_admitted), client_id
            ranks = [sequence.rank for sequence in own]
            assert ranks == sorted(ranks), f"the sequences of {client_id} overtake each other"
            assert not unbegun or unbegun[-1].rank[0] <= account.last_turn, client_id
        assert not by_client, "a sequence's client has no account"
