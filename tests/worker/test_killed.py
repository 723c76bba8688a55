"""A worker process that is killed without warning: its successor loses nothing and doubles nothing."""

from __future__ import annotations

import redis

from schemas.catalogue import Stream
from schemas.entry import encode_entry
from schemas.signing import Keyring
from schemas.tolaria import SystemStatePacket
from tamiyo_stream.demo.audit import audit
from tamiyo_stream.demo.worker_process import WorkerProcess
from tests.upstream.waiting import wait_until

STEPS = 120
KEYRING = Keyring({"k1": b"secret"})


def test_a_killed_workers_steps_are_decided_once_by_its_successor(redis_url, tmp_path) -> None:
    environment = {
        "TAMIYO_REDIS_URL": redis_url,
        "TAMIYO_VAR_DIR": str(tmp_path / "var"),
        "TAMIYO_SIGNING_SECRET": "secret",
        "TAMIYO_LEASE_TTL_MS": "1000",
        "TAMIYO_MIN_IDLE_MS": "200",
        "TAMIYO_CLAIM_COUNT": "2",  # small claims: many commits to be killed between
    }
    successor = WorkerProcess(environment, tmp_path / "second.log")
    with redis.Redis.from_url(redis_url) as bus, WorkerProcess(environment, tmp_path / "first.log") as first:
        first.wait_until_ready()
        for step in range(1, STEPS + 1):
            packet = SystemStatePacket(run_id="run", packet_id=f"p{step}", global_step=step, timestamp_ns=1)
            bus.xadd(Stream.STATE.value, encode_entry(packet, KEYRING))
        wait_until(lambda: bus.xlen(Stream.COMMANDS.value) >= 3, "the first worker has begun to decide")
        first.kill()
        answered = audit(bus, "run", KEYRING)
        assert answered.missing > 0  # or the kill came too late to prove anything
        with successor:
            wait_until(lambda: audit(bus, "run", KEYRING).missing == 0, "the successor has answered the rest", 60)
            account = audit(bus, "run", KEYRING)
            pending = bus.xpending(Stream.STATE.value, "tamiyo")["pending"]
    assert (account.published, account.missing, account.duplicates) == (STEPS, 0, 0)
    assert account.decided + account.superseded == STEPS
    assert pending == 0
