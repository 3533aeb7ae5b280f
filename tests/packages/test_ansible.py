"""The Ansible role, against a machine that is both ends at once."""

import os
import subprocess
from pathlib import Path

import pytest
from machine import Machine

from flatship_protocol.invitation import PREFIX

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / ".cache" / "ansible"  # scripts/ansible-env makes it
ROLE = ROOT / "deploy" / "ansible"
INVENTORY = """
all:
  vars:
    ansible_connection: local
    ansible_python_interpreter: /usr/bin/python3
    ansible_become: false
    flatship_packages: {debs}
  children:
    flatship_receivers:
      hosts:
        store1:
          flatship_datastores: {{nfs1: /mnt/nfs1, ssd1: /srv/ssd1}}
    flatship_senders:
      hosts:
        kvm1:
      vars:
        flatship_pair_with:
          - name: store1
            host: store1
            address: 127.0.0.1:7071
            disks: ['web*', 'db*']
"""


@pytest.fixture(scope="module", autouse=True)
def ansible() -> None:
    subprocess.run([ROOT / "scripts" / "ansible-env"], check=True, timeout=600)


def test_ansible_lint_finds_nothing() -> None:
    found = subprocess.run(
        [ANSIBLE / "bin" / "ansible-lint", "--offline", "--nocolor", "-q"],
        cwd=ROLE,
        env={**os.environ, "PATH": f"{ANSIBLE / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_role_installs_and_pairs_both_ends_and_a_second_run_changes_nothing(
    debs: Path, tmp_path: Path
) -> None:
    offered = tmp_path / "offered"
    offered.mkdir()
    inventory = offered / "inventory.yml"
    inventory.write_text(INVENTORY.format(debs=debs))
    disk = tmp_path / "machine"
    disk.mkdir()
    with Machine(disk, [debs, offered, ANSIBLE, ROLE]) as machine:
        play = (
            f"cd {ROLE} && ANSIBLE_NOCOLOR=1 {ANSIBLE}/bin/python -m ansible.cli.playbook -vvv"
            f" -i {inventory} site.yml"
        )
        first = machine.run(play)
        assert PREFIX + ":" not in first.stdout + first.stderr
        assert machine.run(f"journalctl --grep {PREFIX}:", expect=1).stdout.strip() in (
            "",
            "-- No entries --",
        )
        machine.run("truncate -s 2M /root/disk")
        for vm, datastore in (("web01", "nfs1"), ("db01", "ssd1")):
            machine.run(
                f"flatship-sender send /root/disk --to store1 --vm {vm} --datastore {datastore}"
                " --quiet"
            )
        machine.run("flatship-sender send /root/disk --to store1 --vm mail --quiet", expect=12)
        assert machine.has("/mnt/nfs1/web01/web01.vmdk")
        assert machine.output("systemctl is-enabled flatship-receiver") == "enabled"
        again = machine.output(play)
        assert again.count("changed=0") == 2, again
