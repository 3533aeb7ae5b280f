#!/usr/bin/env python3
"""Removes one guard after another, in a copy of the tree, and sees a test fail for each.

A guard that no test misses is one that the next change may lose without
anybody noticing. The copy is removed at the end; the checkout stays as it is.
Exits 1 if a guard is not missed, or is no longer where this list says.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "sender", "receiver", "service")
TIMEOUT = 150.0  # seconds; without a guard a test may also wait in vain
LONG = 600.0  # seconds for tests that take minutes where no guard is missing

RESUME = "tests/simulation/test_resume.py"
DELTAS = "tests/simulation/test_deltas.py"
TRANSFERS = "tests/simulation/test_in_process_transfers.py"
STORE = "tests/unit/test_local_datastore.py"
PROOF = "tests/unit/test_proof.py"
PACING = "tests/unit/test_pacing.py"
THROTTLE = "tests/unit/test_throttle.py"
SCHEDULE = "tests/unit/test_schedule.py"
RULES = "tests/unit/test_rules.py"
SCHEDULES = "tests/simulation/test_schedules.py"
POWER_CUTS = "tests/crash/test_power_loss.py"  # which takes root


@dataclass(frozen=True, slots=True)
class Guard:
    """A piece of code, what stands in its place without it, and the tests that must miss it."""

    name: str
    file: str
    code: str
    without: str
    tests: tuple[str, ...]
    timeout: float = TIMEOUT


RECEIVER = "receiver/flatship_receiver"
SENDER = "sender/flatship_sender"
PROTOCOL = "protocol/flatship_protocol"
PROMETHEUS = "deploy/prometheus"

GUARDS = (
    Guard(
        "a disk that is not acknowledged leaves credit to the others",
        f"{SENDER}/sharing.py",
        " and (alone or claim.outstanding + claim.length <= free)",
        "",
        ("tests/unit/test_sharing.py",),
    ),
    Guard(
        "a disk that was idle does not make up for it at the cost of others",
        f"{SENDER}/sharing.py",
        "            self._time = max(self._time, rank)\n",
        "            pass\n",
        ("tests/unit/test_sharing.py",),
    ),
    Guard(
        "what hangs takes no more frames than it leaves",
        f"{RECEIVER}/frame_shares.py",
        "        return share.held < self._pool.count - self._pool.in_use - self._promised\n",
        "        return self._pool.in_use + self._promised < self._pool.count\n",
        ("tests/unit/test_frame_shares.py",),
    ),
    Guard(
        "a datastore has threads of its own",
        f"{RECEIVER}/facilities.py",
        "            workers=store.workers or self.workers,\n",
        "",
        ("tests/integration/test_datastore_apart.py",),
    ),
    Guard(
        "a command that is stopped between two passes makes no other",
        f"{SENDER}/passes.py",
        "            if self._sessions.stopped:\n                raise Cancelled\n",
        "",
        ("tests/unit/test_passes.py",),
    ),
    Guard(
        "what changes in a day is not taken for what changes in a minute",
        f"{SENDER}/convergence.py",
        "each.wire * max(1.0, growth) / slowest",
        "each.wire * growth / slowest",
        ("tests/unit/test_convergence.py",),
    ),
    Guard(
        "passes over other disks are not taken for those of these",
        f"{SENDER}/downtimes.py",
        " if record.disks == self._disks else []",
        "",
        ("tests/unit/test_downtimes.py",),
    ),
    Guard(
        "a range is wide while there are few passes",
        f"{SENDER}/convergence.py",
        "max(*highs, expected * (1 + unsure))",
        "max(highs)",
        ("tests/unit/test_passes.py", "tests/unit/test_convergence.py"),
    ),
    Guard(
        "a stream begins anew after a chunk that was coded and not sent",
        f"{SENDER}/lanes.py",
        "        if not sent:\n            self._lane.begin_anew()\n",
        "        if not sent:\n",
        ("tests/unit/test_lanes.py",),
    ),
    Guard(
        "a lane's stream moves only when its connection is closed",
        f"{SENDER}/lanes.py",
        "(self._carrier is not mine and self._carrier.closed)",
        "self._carrier is not mine",
        ("tests/unit/test_lanes.py",),
    ),
    Guard(
        "a connection carries one stream at most",
        f"{SENDER}/lanes.py",
        "            if mine in others:  # so few are left\n                return mine, False\n",
        "",
        ("tests/unit/test_lanes.py",),
    ),
    Guard(
        "the next chunk of a stream is coded after this one",
        f"{SENDER}/lanes.py",
        "                await lane._sending.acquire()\n",
        "                lane._coding.release()\n"
        "                await lane._sending.acquire()\n"
        "                await lane._coding.acquire()\n",
        ("tests/unit/test_lanes.py",),
    ),
    Guard(
        "no goodbye on a connection for which a chunk is made",
        f"{SENDER}/client.py",
        "        while self._kept[old]:\n"
        "            self._let_go.clear()\n"
        "            await self._let_go.wait()\n",
        "",
        ("tests/simulation/test_sender_sessions.py",),
    ),
    Guard(
        "a link that idles for want of chunks is not taken for a fast one",
        f"{SENDER}/compression.py",
        "        if self._rung.level is None or look.compressing < 0.3 * look.working:\n"
        "            return False\n",
        "        return True\n",
        ("tests/unit/test_compression.py",),
    ),
    Guard(
        "what compression for a slow receiver did not bring is taken back",
        f"{SENDER}/compression.py",
        "        trial, self._trial = self._trial, None\n        if trial is None or",
        "        trial, self._trial = None, None\n        if trial is None or",
        ("tests/unit/test_compression.py",),
    ),
    Guard(
        "a chunk is on record only after its flush",
        f"{RECEIVER}/pipeline.py",
        "            await self._shared.slow_workers.run(self._image.flush)\n        finally:",
        "            await self._shared.journal.run(Journal.hold, self.uuid, list(runs(batch)))\n"
        "            await self._shared.slow_workers.run(self._image.flush)\n        finally:",
        (RESUME,),
    ),
    Guard(
        "STORED only after the flush",
        f"{RECEIVER}/pipeline.py",
        "            await self._shared.slow_workers.run(self._image.flush)\n        finally:",
        "            pass\n        finally:",
        (TRANSFERS, RESUME),
    ),
    Guard(
        "what is written again is off the record first",
        f"{RECEIVER}/holdings.py",
        "                await self._journal.run("
        "Journal.let_go, self._uuid, list(_in_chunks(leaving)))\n",
        "",
        ("tests/unit/test_holdings.py",),
    ),
    Guard(
        "a sample is read before the record is believed",
        f"{RECEIVER}/holdings.py",
        "        if chunk_digest(buffer) != digest:\n            return False\n",
        "        del digest\n",
        (RESUME,),
    ),
    Guard(
        "only the same source is gone on with",
        f"{RECEIVER}/target.py",
        "if record is None or not self._resumes or not self._is_same(record):",
        "if record is None or not self._resumes:",
        (RESUME,),
    ),
    Guard(
        "files of a disk whose proof failed are not kept",
        f"{RECEIVER}/pipeline.py",
        "return self._resumes and self._target.on_record and harmless and not self._doubted",
        "return self._resumes and self._target.on_record and harmless",
        (RESUME,),
    ),
    Guard(
        "incomplete files are known by their uuid",
        f"{RECEIVER}/datastores/local_image.py",
        "whole = image_named_in(lock_fd) == request.uuid and",
        "whole =",
        ("tests/conformance/test_datastores.py",),
    ),
    Guard(
        "the sender compares what it read with what is held",
        f"{SENDER}/prepare.py",
        "    if digest == earlier.digest:",
        "    if earlier.digest is not None:",
        (RESUME,),
    ),
    Guard(
        "the re-read is compared with the record",
        f"{RECEIVER}/proof.py",
        "        if found != recorded:\n",
        "        if False:\n",
        (PROOF,),
    ),
    Guard(
        "the re-read behind the writers is compared",
        f"{RECEIVER}/proof.py",
        "(place + 1) * CHUNK_SIZE]) != digest:",
        "(place + 1) * CHUNK_SIZE]) == b'':",
        ("tests/unit/test_running_proof.py",),
    ),
    Guard(
        "the sender compares the root that was proven",
        f"{SENDER}/disk_transfer.py",
        "        if proven.root_digest != root:\n            raise RootDiffers\n",
        "",
        (TRANSFERS,),
    ),
    Guard(
        "a re-read through the cache only where the cache is empty",
        f"{RECEIVER}/datastores/flat.py",
        "        if left != 0:\n            return False\n",
        "",
        (STORE,),
    ),
    Guard(
        "an image's folder is synced",
        f"{RECEIVER}/datastores/folder.py",
        "        os.fsync(self.fd)\n",
        "        pass\n",
        (STORE,),
    ),
    Guard(
        "extents are synced before they are published",
        f"{RECEIVER}/datastores/local_image.py",
        "            self._sync(FlatExtent.sync)\n",
        "",
        (STORE,),
    ),
    Guard(
        "a flush syncs the data",
        f"{RECEIVER}/datastores/flat.py",
        "            os.fdatasync(self.fd)\n",
        "            pass\n",
        (POWER_CUTS,),
    ),
    Guard(
        "a descriptor is synced before its name decides",
        f"{RECEIVER}/datastores/local_image.py",
        "written:], written)\n        os.fsync(self._lock_fd)\n",
        "written:], written)\n",
        (POWER_CUTS,),
    ),
    Guard(
        "what the journal commits is synced",
        f"{RECEIVER}/journal.py",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL",
        (POWER_CUTS,),
    ),
    Guard(
        "the digest of a chunk is checked before it is written",
        f"{RECEIVER}/store.py",
        "    if chunk_digest(data) != chunk.digest:\n"
        "        raise (KeptDiffers if chunk.guesses else DigestMismatch)(chunk.offset)\n",
        "    del data, chunk\n",
        ("tests/unit/test_store.py",),
    ),
    Guard(
        "a chunk put together with kept pages is checked, too",
        f"{RECEIVER}/store.py",
        "    _check(whole, chunk)\n",
        "    chunk.guesses or _check(whole, chunk)\n",
        (DELTAS,),
    ),
    Guard(
        "kept pages are those that were written last",
        f"{RECEIVER}/store.py",
        "            image.read_latest(whole, chunk.offset)\n",
        "            whole[:] = bytes(len(whole))\n",
        (DELTAS,),
    ),
    Guard(
        "what is patched is off the record first",
        f"{RECEIVER}/pipeline.py",
        "            await self._target.held.let_go(chunk.offset, chunk.length)\n"
        "            async with self._copying.lend(self._peer, references) as sources:\n"
        "                effect = await self._shared.workers.run("
        "store, self._image, chunk, sources)\n",
        "            async with self._copying.lend(self._peer, references) as sources:\n"
        "                effect = await self._shared.workers.run("
        "store, self._image, chunk, sources)\n"
        "            await self._target.held.let_go(chunk.offset, chunk.length)\n",
        (DELTAS,),
    ),
    Guard(
        "what could not be taken off the record is not written",
        f"{RECEIVER}/holdings.py",
        "            if leaving := self._leaving.copy():\n",
        "            leaving = self._leaving.copy()\n"
        "            self._leaving.clear()\n"
        "            if leaving:\n",
        ("tests/unit/test_holdings.py",),
    ),
    Guard(
        "a page index is used only under the digest that the receiver states",
        f"{SENDER}/page_index.py",
        "        return None if slot is None or slot.digest != digest else slot\n",
        "        return slot\n",
        ("tests/unit/test_page_index.py", "tests/unit/test_prepare_delta.py"),
    ),
    Guard(
        "a slot is of the chunk that it was written for",
        f"{SENDER}/page_slots.py",
        "    return _NUMBER.pack(chunk)\n",
        "    return _NUMBER.pack(0 * chunk)\n",
        ("tests/unit/test_page_index.py",),
    ),
    Guard(
        "what the table of anchors guesses is confirmed by the slot",
        f"{SENDER}/known_pages.py",
        "np.flatnonzero(there == self._numbers[page]).tolist()\n",
        "[page % len(there)]\n",
        ("tests/unit/test_known_pages.py",),
    ),
    Guard(
        "a chunk on its way is no source of others",
        f"{SENDER}/known_pages.py",
        "            return None if number == own or number in self._avoided else",
        "            return None if number == own else",
        ("tests/unit/test_known_pages.py",),
    ),
    Guard(
        "pages are remembered of chunks that were stored, and of no others",
        f"{SENDER}/unanswered.py",
        "            self._slots.pop(start, None)\n",
        "",
        ("tests/unit/test_unanswered.py",),
    ),
    Guard(
        "each connection is told of an image before a chunk there copies from it",
        f"{SENDER}/references.py",
        "            bound = self._bound.setdefault(connection, set())\n",
        "            bound = self._bound.setdefault(References, set())\n",
        ("tests/unit/test_references.py",),
    ),
    Guard(
        "a pass does not end while the receiver may want a chunk whole",
        f"{SENDER}/disk_transfer.py",
        "        while unanswered.uncertain and not unanswered.wanted and self._failure is None:\n",
        "        while False:\n",
        (DELTAS,),
    ),
    Guard(
        "what the receiver holds is void once it wants a chunk whole",
        f"{SENDER}/disk_transfer.py",
        "        if self._unanswered.must_be_whole(work.offset):\n            return Earlier(None,",
        "        if False:\n            return Earlier(None,",
        (DELTAS,),
    ),
    Guard(
        "keep is refused where it was not agreed on",
        f"{RECEIVER}/sessions.py",
        "        if Capability.DELTA in self._capabilities:\n",
        "        if True:\n",
        ("tests/integration/test_hostile_peers.py",),
    ),
    Guard(
        "a chunk of which a part is copied is checked, too",
        f"{RECEIVER}/store.py",
        "    _check(whole, chunk)\n",
        "    chunk.guesses or _check(whole, chunk)\n",
        ("tests/unit/test_store.py",),
    ),
    Guard(
        "a copy lies within its source",
        f"{RECEIVER}/store.py",
        "segment.source_offset + len(out) > source.size:",
        "False:",
        ("tests/unit/test_store.py",),
    ),
    Guard(
        "a sender copies only from its own images on record",
        f"{RECEIVER}/journal.py",
        '"WHERE peer = ? AND uuid = ?", peer, uuid)',
        '"WHERE uuid = ?", uuid)',
        ("tests/unit/test_copy_sources.py",),
    ),
    Guard(
        "a sender copies only from its own images under way",
        f"{RECEIVER}/copy_sources.py",
        "        self._under_way[peer, uuid] = ImageSource(size, image.read_latest)\n",
        "        self._under_way.update(dict.fromkeys("
        "[(who, uuid) for who in (peer, b'O' * 32)], ImageSource(size, image.read_latest)))\n",
        ("tests/unit/test_copy_sources.py",),
    ),
    Guard(
        "a reference is of its connection",
        f"{RECEIVER}/sessions.py",
        "            if segment.kind is SegmentKind.COPY and segment.image not in bound:\n",
        "            if False:\n",
        ("tests/integration/test_copies.py",),
    ),
    Guard(
        "a view is of the image that was asked for",
        f"{RECEIVER}/datastores/local_view.py",
        "        if image_named_in(lock_fd) != uuid:\n",
        "        if False:\n",
        ("tests/conformance/test_datastores.py",),
    ),
    Guard(
        "a view is of the disk whose descriptor stands when it is open",
        f"{RECEIVER}/datastores/local_view.py",
        "    if view is not None and _described(folder, disk, uuid) != files:\n",
        "    if False:\n",
        (STORE,),
    ),
    Guard(
        "no view of what is being written",
        f"{RECEIVER}/datastores/local_view.py",
        "    locks.require_free(folder, lock_file)\n",
        "",
        ("tests/conformance/test_datastores.py",),
    ),
    Guard(
        "a source is let go of soon",
        f"{RECEIVER}/copy_sources.py",
        "            if self._clock() - viewed.opened > MAX_AGE:\n",
        "            if False:\n",
        ("tests/unit/test_copy_sources.py",),
    ),
    Guard(
        "a stream decodes to no more than was promised",
        f"{PROTOCOL}/codec/history.py",
        "            if self._sink.came > promised:\n",
        "            if False:\n",
        ("tests/unit/test_history.py",),
    ),
    Guard(
        "a stream's window is no larger than was announced",
        f"{PROTOCOL}/codec/history.py",
        "        if window > self._window_size:\n",
        "        if False:\n",
        ("tests/unit/test_history.py",),
    ),
    Guard(
        "a stream's frame is never ended",
        f"{PROTOCOL}/codec/history.py",
        "        if last or kind == _RESERVED:\n",
        "        if False:\n",
        ("tests/unit/test_history.py",),
    ),
    Guard(
        "no more streams than were granted",
        f"{RECEIVER}/windows.py",
        "        if self._open == self.count:\n",
        "        if False:\n",
        ("tests/unit/test_windows.py",),
    ),
    Guard(
        "an epoch that is over is refused",
        f"{PROTOCOL}/session/tables.py",
        "    if theirs != ours:\n",
        "    if False:\n",
        ("tests/unit/test_session.py",),
    ),
    Guard(
        "an epoch is claimed once",
        f"{RECEIVER}/journal.py",
        "            if row is not None and claimed <= row[0]:\n",
        "            if row is not None and claimed < row[0]:\n",
        ("tests/unit/test_journal.py",),
    ),
    Guard(
        "a record number is used once",
        f"{PROTOCOL}/records.py",
        "        direction.sequence += 1\n        header = ",
        "        header = ",
        ("tests/unit/test_records.py",),
    ),
    Guard(
        "no symbolic link is followed in a datastore",
        f"{RECEIVER}/datastores/folder.py",
        "os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK",
        "os.O_CLOEXEC | os.O_NONBLOCK",
        (STORE,),
    ),
    Guard(
        "credit is held to",
        f"{PROTOCOL}/session/receiver.py",
        "        if self.outstanding + message.length > self.credit:\n",
        "        if False:\n",
        ("tests/unit/test_session.py",),
    ),
    Guard(
        "the folder of a VM is synced although it was there",
        f"{RECEIVER}/datastores/local.py",
        "        self._root.sync()  # of an old one too",
        "        if is_new:\n            self._root.sync()  # of an old one too",
        (SCHEDULES,),
        LONG,
    ),
    Guard(
        "the lock file changes in one write",
        f"{RECEIVER}/datastores/local_image.py",
        '            padded = text.ljust(_LOCK_FILE_SIZE - len(tail), b"\\n") + tail\n',
        "            os.ftruncate(self._lock_fd, 0)\n",
        (SCHEDULES,),
        LONG,
    ),
    Guard(
        "an incarnation that is over is not let in again",
        f"{RECEIVER}/sessions.py",
        "        if claim is not EpochClaim.NEW:\n",
        "        if False:\n",
        (SCHEDULES,),
        LONG,
    ),
    Guard(
        "a publication that was begun is gone on with",
        f"{RECEIVER}/journal.py",
        "        incomplete = (ImageState.RECEIVING, ImageState.PUBLISHING)\n",
        "        incomplete = (ImageState.RECEIVING,)\n",
        (SCHEDULES,),
        LONG,
    ),
    Guard(
        "a failed publication is finished at the next opening",
        f"{RECEIVER}/target.py",
        "            await shared.slow_workers.run(datastore.finish, opening.vm, opening.name)\n",
        "            return False\n",
        ("tests/simulation/test_unfinished_publication.py",),
    ),
    Guard(
        "a commit that a crash cut off is finished at the start",
        f"{RECEIVER}/daemon.py",
        "    recovery = await workers.run(datastore.recover)\n",
        "    return\n",
        (SCHEDULES,),
        LONG,
    ),
    Guard(
        "an idle hour is worth no more than a small burst",
        f"{SENDER}/pacing.py",
        "min(self.depth, level))",
        "level)",
        (PACING,),
    ),
    Guard(
        "what TCP sent beyond what was expected is made up for",
        f"{SENDER}/throttle.py",
        "        return self.excess - before\n",
        "        return 0\n",
        (THROTTLE,),
    ),
    Guard(
        "periods that overlap are refused",
        f"{SENDER}/schedule.py",
        "                    if other is not None:\n",
        "                    if other is each:\n",
        (SCHEDULE,),
    ),
    Guard(
        "a schedule with gaps needs a rate beside it",
        f"{SENDER}/config.py",
        "    return Schedule(rate, periods)",
        "    return Schedule(inf if rate is None else rate, periods)",
        ("tests/unit/test_sender_config.py",),
    ),
    Guard(
        "a run takes more of a shared limit only when others had time to take less",
        f"{SENDER}/limits.py",
        "return self._caution.look(share, alone=not others)",
        "return share",
        ("tests/unit/test_limits.py",),
    ),
    Guard(
        "errors are counted from 0, or increase() would miss the first",
        f"{SENDER}/metrics.py",
        "        for code in ErrorCode:  # from 0, or increase() would miss the first one\n"
        "            self._errors.labels(code.name.lower())\n",
        "",
        ("tests/unit/test_sender_metrics.py",),
    ),
    Guard(
        "a link that may carry nothing is not used without end",
        f"{PROMETHEUS}/flatship-rules.yml",
        "(flatship_sender_link_limit_bytes_per_second) > 0)",
        "(flatship_sender_link_limit_bytes_per_second))",
        (RULES,),
    ),
    Guard(
        "a disk at its end does not stall",
        f"{PROMETHEUS}/flatship-alerts.yml",
        '(flatship_sender_transfer_state{state=~"waiting|opening|sending|proving"} == 1)',
        "flatship_sender_transfer_state",
        (RULES,),
    ),
)

# What these guard is durable order, which a real file system has its own word in.
ORDER = (
    "a chunk is on record only after its flush",
    "STORED only after the flush",
    "what is written again is off the record first",
    "an image's folder is synced",
)
GUARDS_OF_ORDER = tuple(
    replace(guard, name=f"{guard.name}, when the power fails", tests=(POWER_CUTS,), timeout=LONG)
    for guard in GUARDS
    if guard.name in ORDER
)


def main() -> int:
    """Try every guard and print the table."""
    missing, guards = 0, (*GUARDS, *GUARDS_OF_ORDER)
    with tempfile.TemporaryDirectory(prefix="flatship-guards-") as name:
        tree = Path(name)
        _copy(tree)
        print("| guard | without it |\n|---|---|")
        for guard in guards:
            verdict = _without(guard, tree)
            missing += verdict is None
            print(f"| {guard.name} | {verdict or '**no test fails**'} |", flush=True)
    print(f"\n{len(guards) - missing} passed, {missing} failed")
    return 1 if missing else 0


def _copy(tree: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for file in listed:
        if (ROOT / file).is_file():
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)


def _without(guard: Guard, tree: Path) -> str | None:
    """The test that failed without the guard; None if none did."""
    path = tree / guard.file
    whole = path.read_text()
    if whole.count(guard.code) != 1:
        raise SystemExit(f"guards: {guard.file} has {guard.code!r} {whole.count(guard.code)} times")
    path.write_text(whole.replace(guard.code, guard.without))
    try:
        return _first_failure(guard, tree)
    finally:
        path.write_text(whole)


def _first_failure(guard: Guard, tree: Path) -> str | None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(tree / package) for package in PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *guard.tests]
    try:
        finished = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=guard.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"hangs for more than {guard.timeout:.0f} s"
    failed = [line for line in finished.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"`{failed[0].split()[1].rpartition('::')[2]}`" if failed else None


if __name__ == "__main__":
    sys.exit(main())
