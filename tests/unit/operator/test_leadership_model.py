"""Whole elections in simulated time: no delay, loss, suspension or clock makes two processes write at once.

Candidates are the operator's own; the API server is a dictionary with optimistic concurrency. Requests are delayed or
lost on either way, and take effect long after their sender gave them up; processes are suspended for a minute, killed,
and replaced; the Lease is deleted, edited and stolen.
"""

from __future__ import annotations

import heapq
import itertools
import math
from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from dedicate_operator.identity import Key
from dedicate_operator.leadership import NOBODY, TRANSIT_S, Candidate

KEY = Key("dedicate-system", "dedicate")
TURN_S = 4.0
LOST = math.inf


class Process:
    """One operator with clocks of its own: `offset` is where the steady one began, `skew` what the other is off by."""

    def __init__(self, name, offset, skew):
        self.candidate = Candidate(name, KEY)
        self.offset = offset
        self.skew = timedelta(seconds=skew)
        self.is_gone = False
        self.turn = 0


class Simulation:
    """Runs events in the order of a time that no process knows."""

    def __init__(self, random, *, hardship):
        self.random = random
        self.hardship = hardship
        self.time = 0.0
        self.lease = None
        self.version = 0
        self.names = (f"operator-{number}" for number in itertools.count())
        self.processes = []
        self.ends = {}
        self._events = []
        self._sequence = itertools.count()

    def at(self, delay_s, action, *arguments):
        if delay_s < LOST:
            heapq.heappush(self._events, (self.time + delay_s, next(self._sequence), action, arguments))

    def run(self, until):
        while self._events and self._events[0][0] <= until:
            self.time, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
            assert len(self.leaders()) <= 1
        self.time = until

    def leaders(self):
        return [p for p in self.processes if not p.is_gone and p.candidate.leads(self.local(p))]

    def local(self, process):
        return self.time + process.offset

    def wall(self, process):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time) + process.skew

    # The network and the machines.

    def delay_s(self):
        luck = self.random.random()
        if luck < 0.5 * self.hardship:
            return self.random.choice([LOST, self.random.uniform(0, 40)])
        return self.random.uniform(0, 5) if luck < self.hardship else self.random.uniform(0, 0.05)

    def suspension_s(self):
        return self.random.uniform(0, 60) if self.random.random() < 0.1 * self.hardship else 0.0

    # A process.

    def start(self):
        offset, skew = self.random.uniform(-1e6, 1e6), self.random.uniform(-1e8, 1e8)
        process = Process(next(self.names), offset, skew)
        self.processes.append(process)
        self.at(self.random.uniform(0, 1), self.begin_turn, process)
        return process

    def begin_turn(self, process):
        if process.is_gone:
            return
        process.turn += 1
        self.at(TURN_S + self.suspension_s(), self.give_up, process, process.turn)
        if process.candidate.must_look:
            self.send(process, None)
        else:
            self.claim(process)

    def claim(self, process):
        write = process.candidate.plan_write(self.local(process), self.wall(process))
        if write is not None:
            self.send(process, write)
        else:
            self.end_turn(process)

    def send(self, process, body):
        self.at(self.delay_s() + self.suspension_s(), self.serve, process, process.turn, body, self.local(process))

    def receive(self, process, turn, body, sent_at, answer):
        if process.is_gone or turn != process.turn:
            return
        if body is None:
            process.candidate.see(answer, self.local(process))
            self.claim(process)
        elif answer == "conflict":
            process.candidate.doubt()
            self.end_turn(process)
        else:
            process.candidate.take_note(answer, sent_at, self.local(process))
            self.ends[process.candidate.identity] = process.candidate.writes_until - process.offset
            self.end_turn(process)

    def give_up(self, process, turn):
        if not process.is_gone and turn == process.turn:
            process.candidate.doubt()
            self.end_turn(process)

    def end_turn(self, process):
        process.turn += 1
        pause_s = process.candidate.pause_s(self.local(process), self.random.random())
        self.at(pause_s + self.suspension_s(), self.begin_turn, process)

    def kill(self, process):
        process.is_gone = True

    def hand_over(self, process):
        """As `Election.resign` does it: no more writes, then the release."""
        process.is_gone = True
        self.ends.pop(process.candidate.identity, None)
        self.at(self.delay_s(), self.release, process)

    def release(self, process):
        process.candidate.see(self.lease, self.local(process))
        release = process.candidate.plan_release(self.wall(process))
        if release is not None:
            assert self.replace(release) != "conflict"

    # The API server.

    def serve(self, process, turn, body, sent_at):
        answer = self.lease if body is None else self.replace(body)
        self.at(self.delay_s() + self.suspension_s(), self.receive, process, turn, body, sent_at, answer)

    def replace(self, body):
        named = body["metadata"]
        if self.lease is None:
            # As Kubernetes has it: only a uid keeps a PUT from making what is not there.
            is_conflict = "uid" in named
        else:
            is_conflict = any(named.get(name) != self.lease["metadata"][name] for name in ("uid", "resourceVersion"))
        if is_conflict:
            return "conflict"
        self.check_distance(body["spec"]["holderIdentity"])
        return self.store(body, named.get("uid"))

    def store(self, body, uid):
        self.version += 1
        identity = {"uid": uid or f"uid-{self.version}", "resourceVersion": str(self.version)}
        self.lease = {"metadata": body["metadata"] | identity, "spec": body["spec"]}
        return self.lease

    def check_distance(self, taker):
        """A Lease is granted to nobody before the last write of others had time to arrive."""
        for identity, end in self.ends.items():
            assert taker in {identity, "", NOBODY} or self.time >= end + TRANSIT_S - 1e-6

    # Whoever else may change the Lease.

    def delete(self):
        self.version += 1
        self.lease = None

    def edit(self):
        if self.lease is not None:
            self.store(
                self.lease | {"metadata": self.lease["metadata"] | {"annotations": {}}}, self.lease["metadata"]["uid"]
            )

    def steal(self):
        if self.lease is not None:
            self.store(
                self.lease | {"spec": self.lease["spec"] | {"holderIdentity": "x"}}, self.lease["metadata"]["uid"]
            )


SEEDS = st.integers(0, 2**32)
EVENTS = st.sampled_from(["hand_over", "kill", "start", "delete", "edit", "steal"])


@settings(max_examples=400, deadline=None)
@given(
    seed=SEEDS,
    hardship=st.sampled_from([0.0, 0.05, 0.3, 0.6]),
    events=st.lists(st.tuples(st.floats(0, 25), EVENTS), max_size=12),
)
def test_never_do_two_write_at_once(seed, hardship, events):
    random = Random(seed)
    simulation = Simulation(random, hardship=hardship)
    for _ in range(2):
        simulation.start()
    for after_s, event in events:
        simulation.run(simulation.time + after_s)
        alive = [process for process in simulation.processes if not process.is_gone]
        if event in {"hand_over", "kill"} and len(alive) > 1:
            # Mostly the leader: with nobody to lose, little happens.
            getattr(simulation, event)(random.choice([*simulation.leaders(), *alive]))
            simulation.start()
        elif event == "start" and len(alive) < 4:
            simulation.start()
        elif event in {"delete", "edit", "steal"}:
            getattr(simulation, event)()
    simulation.run(simulation.time + 60)


def settle(random):
    """Return an election that has a leader, on a network without delays, and that leader."""
    simulation = Simulation(random, hardship=0.0)
    simulation.start()
    simulation.run(20)
    simulation.start()
    simulation.run(30 + 3 * random.random())
    (leader,) = simulation.leaders()
    return simulation, leader


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS)
def test_killed_leader_is_replaced_within_20_s(seed):
    simulation, leader = settle(Random(seed))
    simulation.kill(leader)
    simulation.run(simulation.time + 20)
    assert simulation.leaders()


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS)
def test_hand_over_takes_no_3_s(seed):
    simulation, leader = settle(Random(seed))
    simulation.hand_over(leader)
    simulation.run(simulation.time + 3)
    assert simulation.leaders()


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, event=st.sampled_from(["delete", "edit", "steal"]))
def test_lease_that_others_change_is_led_under_again_within_20_s(seed, event):
    simulation, _ = settle(Random(seed))
    getattr(simulation, event)()
    simulation.run(simulation.time + 20)
    assert simulation.leaders()
