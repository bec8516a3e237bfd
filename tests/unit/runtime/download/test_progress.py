from __future__ import annotations

import pytest

from dedicate_runtime.download.progress import Progress, Stage


def test_amounts_are_counted_and_trouble_is_over_when_bytes_come():
    progress = Progress()
    progress.enter(Stage.DOWNLOADING, total_bytes=10, downloaded_bytes=2)
    progress.note_trouble("status 503")
    assert progress.look().to_json()["trouble"] == "status 503"
    progress.add(3)
    assert progress.look().to_json() == {
        "stage": "downloading",
        "downloadedBytes": 5,
        "totalBytes": 10,
        "trouble": None,
    }


def test_what_another_process_says_is_shown_as_waiting():
    progress = Progress()
    progress.mirror({"downloadedBytes": 3, "totalBytes": 9, "stage": "downloading", "trouble": "slow"})
    assert progress.look().to_json() == {"stage": "waiting", "downloadedBytes": 3, "totalBytes": 9, "trouble": "slow"}


@pytest.mark.parametrize("seen", [{}, {"downloadedBytes": "3", "totalBytes": 9}, {"downloadedBytes": 1}])
def test_what_is_no_progress_is_not_shown(seen):
    progress = Progress()
    progress.mirror(seen)
    assert progress.look().stage is Stage.RESOLVING
