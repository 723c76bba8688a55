"""A thousand damaged and hostile checkpoints, the same ones every time (``performance.md`` R10)."""

from __future__ import annotations

import hashlib
import random
import resource
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest

from tamiyo_stream.checkpoints.checkpoint import Checkpoint, Provenance
from tamiyo_stream.checkpoints.reading import Trust, read_checkpoint
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason
from tamiyo_stream.checkpoints.writing import encode_checkpoint
from tamiyo_stream.graph.registries import digest_of
from tamiyo_stream.model.network import build_network
from tests.checkpoints.hostile import (
    CANARY,
    PICKLES,
    archive_of,
    flipped,
    renamed,
    sample_records,
    spliced,
    truncated,
    with_pickle,
    with_records,
)
from tests.checkpoints.samples import (
    FORMS,
    TINY,
    file_of,
    same,
    sample_checkpoint,
    sample_document,
    sample_file,
    sample_registries,
)

Random = random.Random
#: Beyond the largest file here, twice: its bytes, and what a reader makes of them.
MAX_GROWTH_BYTES = 192 * 1024 * 1024


def any_form(rng: Random) -> bytes:
    return sample_file(rng.choice(FORMS))


def flipped_header(rng: Random) -> bytes:
    data = sample_file(".safetensors")
    return flipped(rng, data, within=8 + int.from_bytes(data[:8], "little"))


def flipped_directory(rng: Random) -> bytes:
    data = sample_file(".pt")
    start = data.index(b"PK\x01\x02")
    return data[:start] + flipped(rng, data[start:])


def flipped_pickle(rng: Random) -> bytes:
    return with_pickle(flipped(rng, sample_records()["archive/data.pkl"]))


def spliced_pickle(rng: Random) -> bytes:
    return with_pickle(spliced(rng, sample_records()["archive/data.pkl"]))


def executing_pickle(rng: Random) -> bytes:
    """A pickle that executes, alone in the file, in the archive, or in the middle of a real one."""
    hostile = rng.choice(list(PICKLES.values()))
    real = sample_records()["archive/data.pkl"]
    place = rng.randrange(2, len(real))
    return rng.choice([hostile, with_pickle(hostile), with_pickle(real[:place] + hostile[2:-1] + real[place:])])


def other_manifest(rng: Random) -> bytes:
    document = sample_document()
    node = document["manifest"]["nodes"][rng.choice(["layer", "seed", "activation", "parameter"])]
    channel = rng.choice(node["channels"])
    channel[rng.choice(["slots", "mask", "source", "prior", "capacity", "transform"])] = rng.randint(1000, 2000)
    return file_of(rng.choice(FORMS), document)


def renumbered_registry(rng: Random) -> bytes:
    document = sample_document()
    name = rng.choice(["seed", "optimizer_family", "schedule", "hazard_class"])
    entries = document["registries"][name]["entries"]
    one, other = rng.sample(sorted(entries), 2)
    entries[one], entries[other] = entries[other], entries[one]
    if rng.random() < 0.8:
        document["registries"][name]["digest"] = digest_of(entries)
    return file_of(rng.choice(FORMS), document)


def other_field(rng: Random) -> bytes:
    document = sample_document()
    del document[rng.choice([name for name in document if name != "format"])]
    return file_of(".safetensors", document)


def huge_header(rng: Random) -> bytes:
    length = rng.choice([2**63 + rng.getrandbits(40), rng.randrange(2**20 + 1, 2**33)])
    return length.to_bytes(8, "little") + b'{"' + b"a" * 1000


def deep_header(rng: Random) -> bytes:
    opening = rng.choice([b"[", b'{"a":']) * rng.randrange(1_000, 20_000)
    return len(opening).to_bytes(8, "little") + b"{" + opening[1:]


def zip_bomb(rng: Random) -> bytes:
    return archive_of({"archive/data.pkl": bytes(rng.randrange(2**22, 2**24))}, zipfile.ZIP_DEFLATED)


def nested_zip(rng: Random) -> bytes:
    inner = sample_file(".pt")
    place = rng.choice(["archive/data.pkl", "archive/data/0", "archive/version", "archive/a.zip"])
    return with_records(**{place: inner})


def path_name(rng: Random) -> bytes:
    name = rng.choice(
        ["/etc/passwd", "../" * rng.randint(1, 9) + "data/0", "archive/data/../0", "C:\\data", "\x00"]
    )
    return renamed("archive/data/1", name)


def noise(rng: Random) -> bytes:
    start = rng.choice([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", (64).to_bytes(8, "little") + b"{"])
    return start + rng.randbytes(rng.randrange(4096))


@cache
def real_file(form: str) -> bytes:
    checkpoint = Checkpoint.of(
        build_network(), policy_version="p", provenance=Provenance("t"), registries=sample_registries().snapshots()
    )
    return encode_checkpoint(checkpoint, form)


def real_network(rng: Random) -> bytes:
    return rng.choice([flipped, spliced, truncated])(rng, real_file(rng.choice(FORMS)))


#: Reasons that must be among those given: the thousand reach every stage of reading.
EXPECTED = {
    Reason.NOT_A_CHECKPOINT,
    Reason.UNSAFE_PICKLE,
    Reason.DIGEST_MISMATCH,
    Reason.MANIFEST,
    Reason.REGISTRY_RENUMBERED,
    Reason.REGISTRY_DIGEST_MISMATCH,
    Reason.NAMES,
    Reason.NOT_FINITE,
}
#: What is sent, and how often.
KINDS: dict[Callable[[Random], bytes], int] = {
    lambda rng: flipped(rng, any_form(rng)): 220,
    lambda rng: spliced(rng, any_form(rng)): 150,
    lambda rng: truncated(rng, any_form(rng)): 100,
    flipped_header: 100,
    flipped_directory: 60,
    flipped_pickle: 40,
    spliced_pickle: 30,
    executing_pickle: 80,
    other_manifest: 30,
    renumbered_registry: 30,
    other_field: 15,
    huge_header: 20,
    deep_header: 10,
    zip_bomb: 10,
    nested_zip: 15,
    path_name: 20,
    noise: 60,
    real_network: 10,
}


def corrupted(seed: int) -> Iterator[bytes]:
    rng = Random(seed)
    sound = {make(form) for make in (sample_file, real_file) for form in FORMS}
    for make, count in KINDS.items():
        for _ in range(count):
            # A bit turned over twice, or zeros replaced by zeros, is no damage.
            yield next(data for data in iter(partial(make, rng), None) if data not in sound)


def is_harmless(checkpoint: Checkpoint) -> bool:
    """Return whether what was read is what had been written: the damage hit bytes that mean nothing."""
    return same(checkpoint, sample_checkpoint())


def test_a_thousand_corrupted_checkpoints_are_refused_and_none_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the digest that was announced, always; with a digest of their own, unless nothing in them changed."""
    monkeypatch.chdir(tmp_path)
    live = sample_registries()
    announced = {hashlib.sha256(sample_file(form)).hexdigest() for form in FORMS}
    for form in FORMS:
        real_file(form)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refused: Counter[Reason] = Counter()
    messages, harmless = [], 0
    for data in corrupted(seed=20):
        try:
            checkpoint = read_checkpoint(data, registries=live, config=TINY)
        except CheckpointRefused as error:
            refused[error.reason] += 1
            messages.append(str(error))
        else:
            harmless += 1
            assert is_harmless(checkpoint)
        for digest in announced:
            with pytest.raises(CheckpointRefused) as caught:
                read_checkpoint(data, Trust(sha256=digest), registries=live, config=TINY)
            assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert refused.total() + harmless == 1000
    assert harmless < 20, "bytes of the archive that mean nothing: dates, padding"
    assert refused.keys() >= EXPECTED
    assert max(map(len, messages)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MAX_GROWTH_BYTES
    assert not Path(CANARY).exists()


def test_the_thousand_are_the_same_every_time() -> None:
    first, second = corrupted(seed=20), corrupted(seed=20)
    assert all(next(first) == next(second) for _ in range(50))
