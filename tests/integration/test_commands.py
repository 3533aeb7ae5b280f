"""The commands around a transfer, and the exit codes and lines that operators rely on."""

import base64
import contextlib
import errno
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest
from disks import MIB, make_data_disk, make_disk
from processes import RECEIVER, SENDER, Pair, Receiver, Sender, run_program, wait_until
from test_metrics import fingerprint_of, sender_metrics_url

SIZE = 16 * MIB
CONFIGURATION = 78


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk.raw", SIZE)


def commands_of(program: tuple[str, ...]) -> list[str]:
    """Names in the list that ``--help`` prints."""
    text = run_program(*program, "--help").expect(0).stdout
    listed = text.partition("Commands:")[2]
    return [
        line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] > " "
    ]


@pytest.mark.parametrize("program", [SENDER, RECEIVER], ids=["sender", "receiver"])
def test_every_command_explains_itself(program: tuple[str, ...]) -> None:
    names = commands_of(program)
    assert len(names) >= 4
    for name in names:
        assert run_program(*program, name, "--help").expect(0).stdout.startswith("Usage:")
    assert run_program(*program, "--version").expect(0).stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("send",),
        ("send", "x", "--to", "esx", "--vm", "a", "--provisioning", "fat"),
        ("send", "x", "--to", "esx", "--vm", "a", "--limit", "fast"),
        ("send", "x", "--to", "esx", "--vm", "a", "--limit", "0"),
        ("send", "x", "--to", "esx", "--vm", "a", "--limit", "-1"),
        ("send", "x", "--to", "esx", "--vm", "a", "--disk-limit", "1kB"),
        ("send", "x", "--to", "esx", "--vm", "a", "--congestion-control", "warp"),
        ("send", "x", "--to", "esx", "--vm", "a", "--connections", "17"),
        ("send", "x", "--to", "esx", "--vm", "a", "--compression", "99"),
        ("send", "x", "--to", "../esx", "--vm", "a"),
        ("inspect",),
        ("join", "a", "b"),
    ],
    ids=" ".join,
)
def test_usage_errors_of_the_sender(sender: Sender, arguments: tuple[str, ...]) -> None:
    run = run_program(*SENDER, *arguments)
    assert run.exit_code == 2, str(run)
    assert run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--listen", "nowhere"),
        ("serve", "--datastore", "without-a-path"),
        ("invite",),
        ("invite", "--name", "a", "--expires", "soon"),
        ("verify",),
        ("senders", "nonsense"),
    ],
    ids=" ".join,
)
def test_usage_errors_of_the_receiver(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = run_program(*RECEIVER, *arguments)
    assert run.exit_code == 2, str(run)
    assert run.error


def test_an_identity_is_made_once(sender: Sender) -> None:
    first = sender.run("identity").expect(0)
    assert sender.run("identity").expect(0).stdout == first.stdout
    key, fingerprint = first.stdout.split()[-2:]
    assert fingerprint.startswith("SHA256:")
    assert key
    secrets = [path for path in sender.state.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in secrets if path.suffix != ".pub")


# Pairing


def test_an_invitation_works_once(receiver: Receiver, sender: Sender, tmp_path: Path) -> None:
    invitation = receiver.invite()
    joined = sender.join(invitation).expect(0).stdout
    assert receiver.run("identity").expect(0).stdout.split()[-1] in joined
    other = Sender(tmp_path / "other-host")
    run = other.join(invitation).expect(12)
    assert "used before" in run.error
    assert "esx" not in {path.stem for path in other.state.rglob("receivers.d/*")}


def test_an_invitation_from_a_file(receiver: Receiver, sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "invitation").write_text(receiver.invite())
    sender.run("join", "--as", "esx", tmp_path / "invitation").expect(0)


def test_an_invitation_that_has_expired(receiver: Receiver, sender: Sender) -> None:
    invitation = receiver.invite("--expires", "1s")
    time.sleep(1.1)  # there is no other way to make it expire
    assert "expired" in sender.join(invitation).expect(12).error


@pytest.mark.parametrize("text", ["", "hello\n", "\0\xff\n", "x" * 100_000, "flatship1:abc"])
def test_what_is_no_invitation(sender: Sender, text: str) -> None:
    run = sender.join(text).expect(2)
    assert "invit" in run.error
    assert len(run.error) < 400


def test_bytes_that_are_no_text_are_no_invitation(sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "invitation").write_bytes(bytes(range(256)))
    assert sender.run("join", tmp_path / "invitation").expect(2).error


def test_a_missing_invitation(sender: Sender, tmp_path: Path) -> None:
    assert "absent" in sender.run("join", tmp_path / "absent").expect(2).error


def test_a_mistyped_invitation(receiver: Receiver, sender: Sender) -> None:
    """Whichever character is wrong: one line, and nothing is kept."""
    invitation = receiver.invite().strip()
    for position in (0, len(invitation) // 3, len(invitation) // 2, len(invitation) - 1):
        wrong = "A" if invitation[position] != "A" else "B"
        run = sender.join(invitation[:position] + wrong + invitation[position + 1 :])
        assert run.exit_code in (2, 12), str(run)
        assert run.error
    assert sender.join(invitation[:-9]).expect(2).error
    sender.join(invitation).expect(0)


def test_a_name_that_is_taken_by_another_receiver(paired: Pair, tmp_path: Path) -> None:
    other = Receiver(tmp_path / "other")
    other.start()
    try:
        run = paired.sender.join(other.invite())
        assert run.exit_code not in (0, 1), str(run)
        assert "esx" in run.error
    finally:
        other.stop()


def test_an_invitation_of_a_receiver_that_is_not_there(sender: Sender, receiver: Receiver) -> None:
    invitation = receiver.invite()
    receiver.stop()
    assert "cannot be reached" in sender.join(invitation).expect(5).error


# Whom a receiver lets in


def test_senders_are_listed(paired: Pair) -> None:
    (line,) = paired.receiver.run("senders").expect(0).stdout.splitlines()
    assert line.endswith("kvm1")
    listed = paired.receiver.run("senders", "list", "--json").expect(0).json
    assert (listed["name"], listed["schema_version"]) == ("kvm1", 1)
    assert listed["fingerprint"] in paired.sender.run("identity").expect(0).stdout


def test_a_revoked_sender_is_refused_at_once(paired: Pair, source: Path) -> None:
    paired.send(source, vm="web01").expect(0)
    paired.receiver.run("senders", "revoke", fingerprint_of(paired)).expect(0)
    before = paired.receiver.metrics().value("flatship_receiver_auth_failures_total")
    run = paired.send(source, vm="web02").expect(12)
    assert "does not accept this sender's key" in run.error
    assert paired.receiver.metrics().value("flatship_receiver_auth_failures_total") > before
    assert paired.receiver.run("senders").expect(0).stdout == ""
    paired.sender.join(paired.receiver.invite()).expect(0)
    paired.send(source, vm="web02").expect(0)


def test_an_unknown_sender_cannot_be_revoked(paired: Pair) -> None:
    assert paired.receiver.run("senders", "revoke", "SHA256:nobody").expect(10).error


def test_a_sender_with_a_limited_invitation(
    receiver: Receiver, sender: Sender, source: Path
) -> None:
    sender.join(receiver.invite("--disks", "web-*")).expect(0)
    sender.send(source, vm="web-1").expect(0)
    run = sender.send(source, vm="db-1").expect(12)
    assert run.disk["error"]["code"] == "not_permitted"
    assert receiver.files("db-1") == []


def test_an_unknown_receiver(sender: Sender, source: Path) -> None:
    assert "nowhere" in sender.send(source, vm="a", to="nowhere").expect(10).error


def test_a_receiver_that_is_not_there(paired: Pair, source: Path) -> None:
    paired.receiver.stop()
    started = time.monotonic()
    run = paired.send(source, vm="web01").expect(5)
    assert "cannot be reached" in run.error
    assert paired.receiver.address in run.error
    assert time.monotonic() - started < 5


def test_somebody_else_answers_where_the_receiver_was(paired: Pair, source: Path) -> None:
    """Another receiver, another key: the sender talks to nobody but the one it paired with."""
    paired.receiver.stop()
    (paired.receiver.state / "identity.key").unlink()
    (paired.receiver.state / "identity.pub").unlink(missing_ok=True)
    paired.receiver.start()
    assert paired.send(source, vm="web01").expect(12).error
    assert paired.receiver.files("web01") == []


# inspect


def test_inspect_shows_what_a_disk_holds(sender: Sender, source: Path) -> None:
    text = run_program(*SENDER, "inspect", source).expect(0).stdout
    assert "16.0 MiB" in text
    report = run_program(*SENDER, "inspect", "--exact", "--json", source).expect(0).json
    assert report["schema_version"] == 1
    assert SIZE in report.values()


def test_inspect_of_several_sources_is_an_object_a_line(tmp_path: Path) -> None:
    sources = [make_disk(tmp_path / f"{n}.raw", SIZE) for n in range(2)]
    lines = run_program(*SENDER, "inspect", "--json", *sources).expect(0).stdout.splitlines()
    assert len([json.loads(line) for line in lines]) == 2


def test_inspect_of_what_is_not_there(tmp_path: Path) -> None:
    assert run_program(*SENDER, "inspect", tmp_path / "absent").expect(10).error


# Starting a receiver


def serve(state: Path, *options: str | Path) -> tuple[int, str]:
    """Start a receiver that is expected not to start; its exit code and error line."""
    run = run_program(
        *RECEIVER,
        *("serve", "--state", state, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        *options,
        timeout=20,
    )
    return run.exit_code, run.error


def test_a_receiver_without_datastores_does_not_start(tmp_path: Path) -> None:
    code, line = serve(tmp_path / "state")
    assert (code, "--datastore" in line) == (CONFIGURATION, True)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("listen = 1", "listen"),
        ("lisen = '127.0.0.1:1'", "lisen"),
        ("listen = 'nowhere'", "listen"),
        ("[datastore", "receiver.toml"),
        ("[datastore]\n'../x' = '/tmp'", "../x"),
        ("datastore = 'ds'", "datastore"),
    ],
)
def test_a_bad_configuration_is_named_and_ends_with_78(
    tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text(text)
    run = run_program(*RECEIVER, "serve", "--config", file, "--state", tmp_path / "state")
    assert named in run.expect(CONFIGURATION).error


def test_a_missing_configuration_file(tmp_path: Path) -> None:
    code, line = serve(tmp_path / "state", "--config", tmp_path / "absent.toml")
    assert code == CONFIGURATION
    assert "absent.toml" in line


def test_a_datastore_that_is_not_there(tmp_path: Path) -> None:
    code, line = serve(tmp_path / "state", "--datastore", f"ds={tmp_path}/absent")
    assert code != 0
    assert "absent" in line


def test_a_receiver_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "receiver.toml"
    (tmp_path / "here").mkdir()
    file.write_text(f"[datastore]\nhere = '{tmp_path}/here'\n")
    receiver = Receiver(tmp_path / "receiver")
    receiver.start("--config", file)
    assert receiver.metrics().value("flatship_receiver_datastore_up", datastore="ds") == 1
    receiver.stop()


def test_two_receivers_cannot_share_a_state_folder(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "ds2").mkdir()
    code, line = serve(receiver.state, "--datastore", f"ds={tmp_path}/ds2")
    assert code == 11
    assert str(receiver.state) in line


@pytest.mark.parametrize("option", ["--listen", "--http"])
def test_a_port_that_is_taken(tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "ds").mkdir()
        datastore = ("--datastore", f"ds={tmp_path}/ds")
        code, line = serve(tmp_path / "state", *datastore, option, address)
    assert code == CONFIGURATION
    assert address in line
    assert option in line


def test_a_sender_whose_metrics_port_is_taken(paired: Pair, source: Path) -> None:
    host_port = paired.receiver.metrics_url.split("/")[2]
    run = paired.send(source, vm="web01", options=("--http", host_port)).expect(2)
    assert host_port in run.error


# What is shown


def on_a_terminal(
    command: list[str], columns: int, environment: dict[str, str], seconds: float = 30
) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code and what it drew."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**kept, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    drawn = bytearray()
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                read = os.read(ours, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # what Linux says when the other end is closed
                    raise
                break
            if not read:
                break
            drawn += read
        return process.wait(5), drawn.decode(errors="replace")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("columns", [1, 40, 120])
def test_bars_are_drawn_on_a_terminal_of_any_width(
    pair: Pair, vm: str, tmp_path: Path, columns: int
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", SIZE)
    command = pair.sender.send_command(source, vm=vm, options=("--limit", "20MB"))
    shown = [str(word) for word in command if word != "--json"]
    code, drawn = on_a_terminal(shown, columns, {})
    assert code == 0, drawn
    assert "Traceback" not in drawn
    assert "\x1b[?25h" in drawn  # the cursor is shown again
    if columns >= 40:
        assert "sending" in drawn
        assert "published" in drawn


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["colour", "none"]
)
def test_no_color_is_heeded(
    pair: Pair, vm: str, source: Path, environment: dict[str, str], coloured: bool
) -> None:
    command = pair.sender.send_command(source, vm=vm)
    shown = [str(word) for word in command if word != "--json"]
    code, drawn = on_a_terminal(shown, 100, environment)
    assert code == 0
    assert any(f"\x1b[{colour}m" in drawn for colour in ("32", "31", "33")) is coloured, repr(drawn)


def test_a_terminal_that_hangs_up_ends_nothing(pair: Pair, vm: str, tmp_path: Path) -> None:
    """Nobody reads standard error: the transfer goes on, for it is the disk that counts."""
    source = make_data_disk(tmp_path / "disk.raw", SIZE)
    read, write = os.pipe()
    command = pair.sender.send_command(source, vm=vm, options=("--limit", "20MB"))
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=write
    ) as process:
        os.close(write)
        os.close(read)
        assert process.wait(30) == 0
    pair.receiver.verify(vm).expect(0)


def test_quiet_says_nothing(pair: Pair, vm: str, source: Path) -> None:
    run = pair.send(source, vm=vm, options=("--quiet",)).expect(0)
    lines = run.stderr.splitlines()
    assert all(line.startswith("warning:") for line in lines)


def test_no_secret_shows_in_logs_or_arguments(paired: Pair, source: Path) -> None:
    invitation = paired.receiver.invite().strip()
    key = base64.b64encode((paired.sender.state / "identity.key").read_bytes())
    sending = paired.start_send(
        source, vm="web01", options=("--limit", "8MB", "--http", "127.0.0.1:0")
    )
    sender_metrics_url(sending)
    arguments = Path(f"/proc/{sending.pid}/cmdline").read_bytes()
    run = sending.wait().expect(0)
    said = run.stderr + run.stdout + paired.receiver.log
    assert invitation not in said
    assert key.decode() not in said
    assert (paired.sender.state / "identity.key").read_bytes().strip() not in arguments


def test_the_receiver_logs_json_when_asked(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path / "r")
    receiver.start("--log-format", "json")
    sender = Sender(tmp_path / "s")
    sender.join(receiver.invite()).expect(0)
    wait_until(lambda: "paired" in receiver.log, "the pairing is logged")
    lines = [line for line in receiver.log.splitlines() if "listening on" not in line]
    assert all(json.loads(line)["event"] for line in lines)
    receiver.process.signal(signal.SIGTERM)
    receiver.wait_stopped()
