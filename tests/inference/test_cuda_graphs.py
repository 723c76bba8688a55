"""Which batches are recorded, replayed and run eagerly; the recording itself needs a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tamiyo_stream.inference import cuda_graphs
from tamiyo_stream.inference.collate import Batch, collate
from tamiyo_stream.inference.cuda_graphs import GraphCache
from tamiyo_stream.inference.padding import Bucket
from tests.model.samples import random_step_graph


class Recorder:
    """Records nothing, but tells what it was asked for."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.cache = GraphCache(self.record, lambda batch: self.note("eager", batch))

    def record(self, bucket: Bucket):
        self.events.append(("record", dict(bucket.nodes)["layer"]))
        return lambda batch: self.note("replay", batch)

    def note(self, event: str, batch: Batch) -> Mapping[str, Tensor]:
        self.events.append((event, len(batch.batch)))
        return {}

    def run(self, layers: int) -> list[tuple[str, int]]:
        before = len(self.events)
        self.cache(collate([random_step_graph(1, layers=layers, seeds=0)]))
        return self.events[before:]


def test_a_bucket_is_recorded_when_it_comes_again_and_replayed_from_then_on() -> None:
    recorder = Recorder()
    assert recorder.run(100) == [("eager", 100)]
    assert recorder.run(101) == [("record", 118), ("replay", 101)]
    assert recorder.run(100) == [("replay", 100)]
    assert (len(recorder.cache), recorder.cache.replays) == (1, 2)


def test_the_least_recently_used_recording_leaves(monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    recorder = Recorder()
    for layers in (10, 10, 20, 20, 10, 40, 40):
        recorder.run(layers)
    assert len(recorder.cache) == 2
    assert [event for event, _ in recorder.run(10)] == ["replay"]
    assert [event for event, _ in recorder.run(20)] == ["record", "replay"]


def test_buckets_seen_once_are_forgotten_within_a_bound(monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MAX_SEEN", 2)
    recorder = Recorder()
    for layers in (10, 20, 40, 10):
        assert [event for event, _ in recorder.run(layers)] == ["eager"]
