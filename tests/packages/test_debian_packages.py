"""The Debian packages, on a machine with systemd as its init."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from machine import Machine

ROOT = Path(__file__).parents[2]
DATASTORE = "/srv/nfs/ssd1"  # the one of the sample, which the package installs
STATE = "/var/lib/flatship"
EXPOSURE = 25  # tenths, of 100


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"takes {tool}")


def start(machine: Machine) -> None:
    machine.run(f"install -d -o flatship-receiver -g flatship-receiver {DATASTORE}")
    machine.run("systemctl start flatship-receiver")


def pair(machine: Machine) -> None:
    machine.run(
        "flatship-receiver invite --name kvm1 --address 127.0.0.1:7071"
        " | flatship-sender join --as store1"
    )


def properties(machine: Machine, *names: str) -> dict[str, str]:
    """What systemd says of the receiver's unit."""
    shown = machine.output(f"systemctl show -p {','.join(names)} flatship-receiver")
    return dict(line.split("=", 1) for line in shown.splitlines())


def files_of_ours(machine: Machine) -> list[str]:
    """Files and folders outside of what dpkg, its helpers and man keep for themselves."""
    found = machine.output(
        "find /etc /usr /var -name '*flatship*'"
        " -not -path '/var/cache/man/*' -not -path '/var/lib/dpkg/*'"
        " -not -path '/var/lib/systemd/deb-systemd-helper-*'"
    )
    return sorted(found.split("\n")) if found else []


def test_lintian_finds_nothing_wrong_with_the_packages(debs: Path) -> None:
    needs("lintian")
    found = subprocess.run(
        ["lintian", "--no-cfg", "--allow-root", *debs.glob("*.deb")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_mandoc_finds_nothing_wrong_with_a_manual_page(role: str) -> None:
    needs("mandoc")
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "manual.py", role], capture_output=True, check=True
    )
    found = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning"],
        input=made.stdout,
        capture_output=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, b"")


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_a_unit_is_accepted_and_leaves_little_exposed(installed: Machine, end: str) -> None:
    verified = installed.run(f"systemd-analyze verify flatship-{end}.service")
    assert verified.stderr == ""  # it ends well whatever it finds
    installed.run(f"systemd-analyze security --threshold={EXPOSURE} flatship-{end}.service")
    installed.run(f"flatship-{end} config check")


def test_a_reload_is_heard_and_a_daemon_that_hangs_is_started_again(installed: Machine) -> None:
    start(installed)
    installed.run("systemctl reload flatship-receiver")
    assert installed.has("/var/lib/flatship/receiver/journal.lock")
    installed.run("journalctl -u flatship-receiver --grep 'configuration read again'")
    folder = "/run/systemd/system/flatship-receiver.service.d"
    quick = "[Service]\\nWatchdogSec=2s\\nTimeoutAbortSec=2s\\n"
    installed.run(f"mkdir -p {folder} && printf '{quick}' > {folder}/quick.conf")
    installed.run("systemctl daemon-reload && systemctl restart flatship-receiver")
    before = properties(installed, "MainPID")["MainPID"]
    installed.run(f"kill -STOP {before}")
    installed.run(
        "timeout 60 sh -c 'until [ $(systemctl show -P NRestarts flatship-receiver) -ge 1 ]"
        " && systemctl is-active --quiet flatship-receiver; do sleep 0.5; done'"
    )
    assert properties(installed, "MainPID")["MainPID"] != before
    installed.run(f"rm -r {folder} && systemctl daemon-reload")
    installed.run("systemctl disable --now flatship-receiver")


def test_an_installed_receiver_runs_confined_and_publishes_what_a_sender_sends(
    installed: Machine,
) -> None:
    assert installed.run("systemctl is-active flatship-receiver", expect=3).stdout == "inactive\n"
    pair_first = "flatship-receiver invite --name early --address 127.0.0.1:7071"
    installed.run(pair_first)  # root's, before the first start
    start(installed)
    pair(installed)
    assert properties(installed, "User", "StatusText") == {
        "User": "flatship-receiver",
        "StatusText": "listening",
    }
    installed.run("head -c 3000000 /dev/urandom > /root/disk && truncate -s 8M /root/disk")
    installed.run("flatship-sender send /root/disk --to store1 --vm web01 --quiet")
    installed.run(f"flatship-receiver verify {DATASTORE}/web01/web01.vmdk --against /root/disk")
    assert installed.output(f"stat -c '%U %a' {DATASTORE}/web01/web01-flat.vmdk") == (
        "flatship-receiver 600"
    )
    assert installed.output(f"find {STATE}/receiver ! -user flatship-receiver") == ""


def test_a_datastore_outside_srv_is_writable_with_the_drop_in(installed: Machine) -> None:
    start(installed)
    pair(installed)
    installed.run("install -d -o flatship-receiver -g flatship-receiver /mnt/nfs1")
    installed.run("""echo 'nfs1 = "/mnt/nfs1"' >> /etc/flatship/receiver.toml""")
    installed.run("systemctl restart flatship-receiver")
    installed.run("truncate -s 2M /root/empty")
    send = "flatship-sender send /root/empty --to store1 --vm web02 --datastore nfs1 --quiet"
    refused = installed.run(f"{send} --json", expect=1)
    assert '"datastore_read_only"' in refused.stdout
    installed.run(
        "install -D -t /etc/systemd/system/flatship-receiver.service.d"
        " /usr/share/doc/flatship-receiver/examples/datastore.conf"
        " && systemctl daemon-reload && systemctl restart flatship-receiver"
    )
    installed.run(send)
    assert installed.has("/mnt/nfs1/web02/web02.vmdk")


def loops() -> list[str]:
    """The commands that deploy/README.md shows for forty VMs, in their order."""
    text = (ROOT / "deploy" / "README.md").read_text()
    section = text[text.index("\n## Forty VMs") : text.index("\n## Metrics")]
    return [
        textwrap.dedent(block)
        for block in re.findall(r"^ *```\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)
    ]


def test_the_loops_for_forty_vms_move_them(installed: Machine) -> None:
    start(installed)
    pair(installed)
    installed.run("systemctl start flatship-sender")
    _, ask, _, ahead, wave = loops()
    installed.run("mkdir /root/wave && cd /root/wave && truncate -s 2M a b c")
    installed.run("cd /root/wave && printf 'vm1 a b\\nvm2 c\\nvm3 missing\\n' > vms")
    virsh = "#!/bin/sh\\n[ $1 = shutdown ] || echo shut off\\n"
    installed.run(f"printf '{virsh}' > /usr/local/bin/virsh && chmod +x /usr/local/bin/virsh")
    told = [installed.run(f"cd /root/wave\n{loop}").stdout for loop in (ask, ahead, wave)]
    assert told[:2] == ["vm3: 10\n", "job 1 queued\njob 2 queued\nvm3: 10\n"]
    assert sorted(told[2].splitlines()) == ["vm1: 0", "vm2: 0", "vm3: 10"]
    assert installed.output(f"cd {DATASTORE} && ls vm*/*[^t].vmdk").split() == [
        "vm1/vm1.vmdk",
        "vm1/vm1_1.vmdk",
        "vm2/vm2.vmdk",
    ]


def test_a_receiver_with_a_wrong_configuration_is_not_started_again_and_again(
    installed: Machine,
) -> None:
    wrong = "/etc/flatship/receiver.conf.d/wrong.toml"
    installed.run(f"install -D /dev/null {wrong} && echo 'lsiten = 1' > {wrong}")
    installed.run("systemctl restart flatship-receiver", expect=1)
    assert properties(installed, "ActiveState", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed",
        "ExecMainStatus": "78",
        "NRestarts": "0",
    }
    installed.run("rm -r /etc/flatship/receiver.conf.d")


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("flatship-sender", "flatship-sender ins", "inspect"),
        ("flatship-receiver", "flatship-receiver senders rev", "revoke"),
    ],
)
def test_an_installed_program_completes_its_words_and_has_a_manual_page(
    installed: Machine, program: str, words: str, expected: str
) -> None:
    completed = installed.output(
        f". /usr/share/bash-completion/completions/{program};"
        f" COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1));"
        f" _{program.replace('-', '_')}_completion {program}; echo ${{COMPREPLY[*]}}"
    )
    assert completed == expected
    assert installed.output(f"man --where {program}").endswith(f"/{program}.1.gz")


def test_the_senders_daemon_works_confined_and_reads_images_where_a_drop_in_permits_it(
    installed: Machine,
) -> None:
    needs("qemu-storage-daemon")
    start(installed)
    pair(installed)
    installed.run("test -e /dev/fuse || mknod /dev/fuse c 10 229")
    installed.run("head -c 1048576 /dev/urandom > /root/given")
    installed.run("qemu-img convert -f raw -O qcow2 /root/given /root/given.qcow2")
    installed.run("systemctl start flatship-sender")
    send = "flatship-sender send /root/given{} --to store1 --vm {} --quiet"
    installed.run(send.format("", "given"))
    refused = installed.run(send.format(".qcow2", "image"), expect=12)
    assert "the package's images.conf permits it" in refused.stderr
    installed.run(
        "install -D -t /etc/systemd/system/flatship-sender.service.d"
        " /usr/share/doc/flatship-sender/examples/images.conf"
    )
    installed.run("systemctl daemon-reload && systemctl restart flatship-sender")
    installed.run(send.format(".qcow2", "image"))
    installed.run(f"cmp /root/given {DATASTORE}/image/image-flat.vmdk")
    # It was the daemon that did it.
    listed = installed.output("flatship-sender jobs --all --json")
    assert [job["state"] for job in json.loads(listed)["jobs"][-3:]] == ["done", "failed", "done"]
    installed.run("systemctl stop flatship-sender && systemctl is-failed flatship-sender", expect=1)
    installed.run("rm -r /etc/systemd/system/flatship-sender.service.d; systemctl daemon-reload")


def test_installing_again_restarts_a_daemon_that_runs(installed: Machine, debs: Path) -> None:
    start(installed)
    before = properties(installed, "MainPID")
    installed.run(f"dpkg --install {debs}/flatship-receiver_*.deb")
    assert properties(installed, "ActiveState") == {"ActiveState": "active"}
    assert properties(installed, "MainPID") != before


def test_removing_keeps_configuration_and_state_and_purging_what_cannot_be_had_again(
    installed: Machine,
) -> None:
    start(installed)
    pair(installed)
    installed.run("rm -rf /etc/systemd/system/flatship-receiver.service.d")
    installed.run("apt-get remove --yes flatship-receiver flatship-sender")
    assert installed.run("pgrep -u flatship-receiver", expect=1).stdout == ""
    assert files_of_ours(installed) == ["/etc/flatship", STATE]
    assert installed.has("/etc/flatship/receiver.toml")
    purged = installed.run("dpkg --purge flatship-receiver flatship-sender")
    assert files_of_ours(installed) == [STATE]
    for kept in ("receiver/identity.key", "receiver/journal.db", "sender/receivers.d/store1.toml"):
        assert installed.has(f"{STATE}/{kept}")
        assert f"{STATE}/{kept.split('/')[0]} is kept" in purged.stderr


@pytest.mark.parametrize(("end", "other"), [("sender", "receiver"), ("receiver", "sender")])
def test_an_end_is_installed_alone_and_purged_unused_it_leaves_nothing_but_a_user(
    end: str, other: str, debs: Path, tmp_path: Path
) -> None:
    with Machine(tmp_path, [debs]) as machine:
        machine.run(f"dpkg --install {debs}/flatship-{end}_*.deb")
        machine.run(f"flatship-{end} --version && ! command -v flatship-{other}")
        # What a program imports late is in its package; and only the sender is so heavy.
        assert machine.has(f"/usr/lib/flatship-{end}/numpy") == (end == "sender")
        late = {"sender": "known_pages", "receiver": "daemon"}[end]
        machine.run(
            f"cd /usr/lib/flatship-{end} && PYTHONPATH=. python3 -S -c"
            f" 'import flatship_{end}.{late}'"
        )
        assert machine.has(f"{STATE}/{end}")
        machine.run(f"dpkg --purge flatship-{end}")
        assert files_of_ours(machine) == []
