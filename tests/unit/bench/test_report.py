"""What people read of a comparison: plan, table and picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from bench.chart import decade_ticks, draw, linear_ticks
from bench.plan import Options, plan_starts
from bench.report import Run, format_table
from bench.servers import SERVERS

SVG = "{http://www.w3.org/2000/svg}"
OPTIONS = Options(concurrency=(1, 8, 32), rounds=2, max_tokens=128, arrivals_per_s=0.5, num_arrivals=10)


def run(server, concurrency, speed, *, round_index=0, arrivals=None, ttft=100.0):
    return Run(
        server=server,
        round=round_index,
        concurrency=concurrency,
        arrivals_per_s=arrivals,
        num_requests=4,
        tokens_per_s=speed,
        ttft_p50_ms=ttft,
        ttft_p90_ms=ttft,
        ttft_p99_ms=2 * ttft,
        gap_p50_ms=1.0,
        gap_p99_ms=2.0,
        num_tokens=100,
        num_text_tokens=100,
        first_token_s=2.0,
        pss_bytes=2**30,
    )


def test_table_gives_median_spread_and_the_ratio_to_the_reference():
    runs = [run("ours", 1, speed, round_index=i) for i, speed in enumerate([40.0, 30.0, 50.0])]
    runs += [run("peer", 1, 20.0), run("ours", 8, 90.0), run("ours", 32, 1.0, arrivals=0.5)]
    lines = format_table(
        runs, {"absent": "cannot be installed: no compiler"}, ["ours", "peer", "absent"], {"peer": "ours"}
    ).splitlines()
    assert "40.0 (30.0 to 50.0)" in lines[2]
    assert "100 / 200" in lines[2]
    assert "20.0, x2.00" in lines[3]
    assert "absent | cannot be installed: no compiler" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_a_server_that_failed_halfway_keeps_its_figures_and_is_named():
    table = format_table([run("ours", 1, 5.0)], {"ours": "broke off"}, ["ours"], {})
    assert "5.0" in table
    assert "* ours: broke off" in table


def test_rounds_go_round_the_servers_and_all_get_the_same_loads():
    names = ["dedicate-f32", "llamacpp-f32", "transformers"]
    starts = plan_starts([SERVERS[name] for name in names], OPTIONS)
    assert [start.server.name for start in starts if start.round == 1] == ["dedicate-f32"] + ["llamacpp-f32"] * 3
    loads = {name: [load for s in starts if s.server.name == name for load in s.loads] for name in names}
    assert loads["dedicate-f32"] == loads["llamacpp-f32"]
    assert {load.concurrency for load in loads["transformers"]} == {1, 8}
    seeds = [load.seed for load in loads["dedicate-f32"]]
    assert len(seeds) == len(set(seeds)) == 7


def test_slots_are_what_is_in_flight():
    starts = plan_starts([SERVERS["llamacpp-q8"]], OPTIONS)
    assert [start.slots for start in starts] == [1, 8, 32, 32, 1, 8, 32]
    assert all(len(start.loads) == 1 for start in starts)


def test_picture_is_well_formed_and_has_a_line_for_each_server_in_both_panels():
    runs = [run(name, level, 10.0 * level, ttft=5.0 * level) for name in ("a <b>", "c") for level in (1, 8)]
    root = ET.fromstring(draw(runs, ["a <b>", "c", "absent"]))
    assert len(root.findall(f"{SVG}polyline")) == 4
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {"a <b>", "c", "C=1", "C=8"} <= set(texts)
    assert "absent" not in texts
    for line in root.findall(f"{SVG}polyline"):
        for point in line.get("points").split():
            x, y = (float(number) for number in point.split(","))
            assert 0 <= x <= 960
            assert 40 <= y <= 320


def test_picture_of_nothing_is_a_picture():
    assert ET.fromstring(draw([], ["ours"])).tag == f"{SVG}svg"


@pytest.mark.parametrize("highest", [0.3, 7.0, 99.0, 400.0, 12345.0])
def test_ticks_hold_all_values_and_are_few(highest):
    ticks = linear_ticks([1e-3, highest])
    assert ticks[0] == 0
    assert ticks[-1] >= highest
    assert 3 <= len(ticks) <= 7
    decades = decade_ticks([highest / 50, highest])
    assert decades[0] <= highest / 50
    assert decades[-1] >= highest
