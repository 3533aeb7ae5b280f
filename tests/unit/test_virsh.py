"""How libvirt is asked, and what becomes of one that is not there, not ours, or hangs."""

import os
import time
from pathlib import Path

import pytest

from flatship_sender.domains.virsh import (
    LibvirtFailed,
    LibvirtRefuses,
    LibvirtUnavailable,
    NoSuchDomain,
    Virsh,
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Where a virsh is put that does what a test wants; it notes its arguments beside itself."""
    return tmp_path / "virsh"


def speaking(program: Path, *lines: str, connect: str | None = None, timeout: float = 20) -> Virsh:
    words = f'printf "%s\\n" "$@" > {program.parent}/arguments'
    program.write_text("\n".join(("#!/bin/sh", words, *lines, "")))
    program.chmod(0o755)
    return Virsh(connect, str(program), timeout)


def arguments(program: Path) -> list[str]:
    return (program.parent / "arguments").read_text().splitlines()


def test_only_reading_is_asked_for(program: Path) -> None:
    assert speaking(program, "echo shut off; echo").state("web01") == "shut off"
    assert arguments(program) == ["--quiet", "--readonly", "domstate", "--domain=web01"]


def test_another_libvirt_is_asked_where_one_is_named(program: Path) -> None:
    assert speaking(program, "echo; echo a; echo b; echo", connect="qemu:///session").names() == [
        "a",
        "b",
    ]
    assert arguments(program)[2] == "--connect=qemu:///session"


@pytest.mark.parametrize("name", ["-x", "--all", "a b", "$(touch x)", "a\nb", "", "\udc80"])
def test_a_name_is_never_an_option_nor_a_command(program: Path, name: str) -> None:
    virsh = speaking(program, f'printf "%s" "$4" > {program.parent}/fourth')
    virsh.describe(name)
    assert os.fsdecode((program.parent / "fourth").read_bytes()) == f"--domain={name}"


def test_virsh_speaks_english_and_sees_little_of_our_environment(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("VIRSH_DEBUG", "0")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")
    virsh = speaking(program, "echo $LC_ALL,$LANG,$VIRSH_DEBUG,$LIBVIRT_DEFAULT_URI")
    assert virsh.uri() == "C,,,test:///default"


def test_a_virsh_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(LibvirtFailed, match="install the package libvirt-clients"):
        Virsh(program="/nowhere/virsh").uri()


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ((), NoSuchDomain),
        (("Domain not found: no domain with matching name 'x'",), NoSuchDomain),
        (("Cannot recv data: Connection reset by peer",), LibvirtFailed),
        (("access denied: 'domain' denied",), LibvirtRefuses),
    ],
)
def test_a_domain_that_is_not_there_is_told_from_one_that_cannot_be_asked_for(
    program: Path, more: tuple[str, ...], kind: type[Exception]
) -> None:
    lines = ("failed to get domain 'x'", *more)
    virsh = speaking(program, *(f'echo "error: {line}" >&2' for line in lines), "exit 1")
    with pytest.raises(kind) as refusal:
        virsh.state("x")
    assert type(refusal.value) is kind


@pytest.mark.parametrize(
    ("said", "remedy", "exit_code"),
    [
        ("Failed to connect socket to '/run/x': Permission denied", "run as root", 12),
        ("authentication unavailable: no polkit agent available", "run as root", 12),
        ("Failed to connect socket to '/run/x': No such file or directory", "libvirt running", 5),
        ("Cannot recv data: Connection reset by peer", "hypervisor: Cannot recv data", 5),
    ],
)
def test_a_libvirt_that_cannot_be_had_says_why_and_what_to_do(
    program: Path, said: str, remedy: str, exit_code: int
) -> None:
    virsh = speaking(
        program,
        'echo "2026-11-24 10:00:00.000+0000: 77: info : libvirt version: 9.0.0" >&2',
        'echo "error: failed to connect to the hypervisor" >&2',
        f'echo "error: {said}" >&2',
        "exit 1",
    )
    with pytest.raises(LibvirtFailed, match=remedy) as refusal:
        virsh.state("web01")
    assert "libvirt version" not in str(refusal.value)
    assert refusal.value.exit_code == exit_code


def test_a_virsh_that_says_nothing_is_quoted_with_its_exit_code(program: Path) -> None:
    with pytest.raises(LibvirtFailed, match="virsh list: exit code 7") as refusal:
        speaking(program, "exit 7").names()
    assert refusal.value.exit_code == 1


def test_a_libvirt_that_hangs_is_left_with_all_that_was_started_for_it(program: Path) -> None:
    # A child of virsh's, such as ssh, holds its pipes: it must not be waited for either.
    virsh = speaking(program, f"sleep 60 & echo $! > {program.parent}/child; wait", timeout=0.5)
    began = time.monotonic()
    with pytest.raises(LibvirtUnavailable, match="has not answered virsh domstate") as refusal:
        virsh.state("web01")
    assert time.monotonic() - began < 20
    assert refusal.value.exit_code == 5
    child = int((program.parent / "child").read_text())
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether a process lives; one that waits for its parent to notice its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False
