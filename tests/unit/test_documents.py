"""The documents say what is there, and what is there is in the documents."""

import ast
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import pytest

from flatship_protocol.errors import ErrorCode
from flatship_receiver import config as receiver_config
from flatship_receiver.cli import cli as receiver_cli
from flatship_receiver.metrics import AUTH_REASONS, OTHER, ReceiverMetrics, SpaceSample
from flatship_sender import config as sender_config
from flatship_sender.cli import cli as sender_cli
from flatship_sender.forecast.truth import Judged, Quantiles
from flatship_sender.metrics import SenderMetrics
from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.refusals import REFUSALS

ROOT = Path(__file__).parents[2]
PROGRAMS: dict[str, click.Group] = {
    "flatship-sender": sender_cli,
    "flatship-receiver": receiver_cli,
}
MANUALS = {
    "flatship-sender": ROOT / "sender" / "README.md",
    "flatship-receiver": ROOT / "receiver" / "README.md",
}
PACKAGES = [
    ROOT / "protocol" / "flatship_protocol",
    ROOT / "sender" / "flatship_sender",
    ROOT / "receiver" / "flatship_receiver",
    ROOT / "service" / "flatship_service",
]
PROSE = [
    ROOT / name
    for name in (
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "sender/README.md",
        "receiver/README.md",
        "protocol/SPEC.md",
        "deploy/README.md",
    )
]
EVERYWHERE = ("--help", "--version")  # said once, for all commands
# Absolute paths that mean something on every reader's machine.
KNOWN_FOLDERS = (
    "/dev/",
    "/etc/fish/completions",
    "/etc/flatship",
    "/etc/grafana/",
    "/etc/prometheus/",
    "/etc/systemd/system",
    "/mnt/",
    "/opt/flatship",
    "/proc",
    "/run/flatship",
    "/srv",
    "/sys",
    "/usr/lib/PACKAGE",
    "/usr/local/bin",
    "/usr/local/share",
    "/usr/share/doc/flatship",
    "/var/lib/flatship",
    "/var/lib/grafana/",
    "/healthz",
    "/metrics",
)


def markdown_files() -> list[Path]:
    """All documents of the tree; a folder that begins with a dot is not ours."""
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    )


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def sections(text: str) -> dict[str, str]:
    """Heading -> the text below it, up to the next heading; fenced blocks have none."""
    found: dict[str, str] = {"": ""}
    heading, fenced = "", False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        match = None if fenced else re.match(r"#+ +(.+)", line)
        if match:
            heading = match[1].strip()
            found[heading] = ""
        else:
            found[heading] += line
    return found


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command with its name as typed after the program's: ``senders list``."""
    for name, command in group.commands.items():
        yield f"{above}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")


def options(command: click.Command) -> set[str]:
    return {
        text
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for text in parameter.opts
    }


COMMANDS = [
    pytest.param(program, name, command, id=f"{program} {name}")
    for program, group in PROGRAMS.items()
    for name, command in commands(group)
]


def options_in_table(section: str) -> set[str]:
    """The options that rows of a table begin with."""
    return set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE))


@pytest.mark.parametrize(("program", "name", "command"), COMMANDS)
def test_a_manual_has_a_section_for_each_command_with_its_options_and_no_others(
    program: str, name: str, command: click.Command
) -> None:
    found = sections(MANUALS[program].read_text())
    assert name in found, f"{program} {name} has no section"
    assert options_in_table(found[name]) == options(command)


@pytest.mark.parametrize(("program", "name", "command"), COMMANDS)
def test_a_manual_names_each_choice_of_an_option(
    program: str, name: str, command: click.Command
) -> None:
    section = sections(MANUALS[program].read_text())[name]
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or not isinstance(parameter.type, click.Choice):
            continue
        if parameter.opts[0] not in section:
            continue
        row = next(line for line in section.splitlines() if f"`{parameter.opts[0]}" in line)
        for choice in parameter.type.choices:
            assert re.search(rf"\b{re.escape(str(choice))}\b", row), f"{name}: {choice}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_manual_has_no_section_for_a_command_that_does_not_exist(program: str) -> None:
    text = MANUALS[program].read_text()
    below = text[text.index("\n## Commands") : text.index("\n## Examples")]
    known = {name for name, _ in commands(PROGRAMS[program])}
    assert set(re.findall(r"^### (.+)$", below, re.MULTILINE)) == known


@dataclass(frozen=True)
class Typed:
    """A command line of ours, as a document shows it."""

    place: str
    program: str
    words: tuple[str, ...]


def typed_commands() -> Iterator[Typed]:
    """Lines of fenced blocks and code spans that begin with one of our programs."""
    for path in PROSE:
        text = path.read_text()
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                yield from _typed(path, re.sub(r"^\S+# ", "", line))
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`([^`]+)`", prose):
            yield from _typed(path, span)


def _typed(path: Path, line: str) -> Iterator[Typed]:
    program, _, rest = line.partition(" ")
    # Standard error that a program wrote, or a synopsis with its brackets, is no command line.
    if program in PROGRAMS and rest and " listening on " not in line and "[" not in line:
        rest = re.split(r" [|>] ", rest)[0]
        yield Typed(f"{relative(path)}: {line}", program, tuple(shlex.split(rest)))


def command_of(typed: Typed) -> tuple[click.Command, tuple[str, ...]]:
    """The command that is meant, and the words after its name."""
    command: click.Command = PROGRAMS[typed.program]
    words = typed.words
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("typed", list(typed_commands()), ids=lambda typed: typed.place)
def test_a_command_line_that_a_document_shows_exists(typed: Typed) -> None:
    command, words = command_of(typed)
    assert command not in PROGRAMS.values() or typed.words[0] in EVERYWHERE, "no such command"
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= options(command) | set(EVERYWHERE)


def test_options_that_documents_mention_exist() -> None:
    known = set(EVERYWHERE).union(
        *(options(command) for group in PROGRAMS.values() for _, command in commands(group))
    )
    for path in PROSE:
        if relative(path) in ("CONTRIBUTING.md", "deploy/README.md"):
            continue  # it speaks of other programs' options
        prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`(--[a-z-]+)", prose):
            assert span in known, f"{relative(path)}: {span}"


def metric_names(rendered: bytes) -> set[str]:
    return set(re.findall(r"^# TYPE (flatship_\S+) ", rendered.decode(), re.MULTILINE))


def metrics_in_table(program: str) -> set[str]:
    section = sections(MANUALS[program].read_text())["Metrics"]
    return set(re.findall(r"^\| `(flatship_[a-z_]+)`", section, re.MULTILINE))


def test_the_senders_manual_lists_its_metrics() -> None:
    metrics = SenderMetrics("1")
    metrics.watch(TransferProgress("r", "vm", [DiskProgress("s", "t", 512)]))
    metrics.watch_queue(lambda: {"queued": (1, 512)})
    assert metrics_in_table("flatship-sender") == metric_names(metrics.render()[0])


def test_the_receivers_manual_lists_its_metrics() -> None:
    metrics = ReceiverMetrics("1")
    metrics.datastore("d", lambda: SpaceSample(1, 1, 0))
    assert metrics_in_table("flatship-receiver") == metric_names(metrics.render()[0])


def labels_of(rendered: bytes) -> dict[str, set[str]]:
    """Metric -> the labels of its series; of those that have any series."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(
        r"^(flatship_\w+)(?:\{(.+)\})? ", rendered.decode(), re.MULTILINE
    ):
        metric = re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name)
        found.setdefault(metric, set()).update(re.findall(r"(\w+)=", labels))
    return {metric: labels - {"le"} for metric, labels in found.items()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_manuals_list_the_labels_of_each_metric_and_never_those_of_prometheus(
    program: str,
) -> None:
    disk = DiskProgress("s", "t", 512, level=3, last_progress=1.0, payload=Counter(zstd=1))
    sender, receiver = SenderMetrics("1"), ReceiverMetrics("1")
    said = Quantiles(1.0, 2.0)
    truth = Judged(
        made=0.0, seconds=said, wire=said, took=1.0, sent=1, ratio=1.0, wire_ratio=1.0,
        within_p90=True,
    )  # fmt: skip
    sender.watch(TransferProgress("r", "vm", [disk], limit=1, forecast=truth))
    sender.watch_queue(lambda: {"queued": (1, 512)})
    receiver.datastore("d", lambda: SpaceSample(1, 1, 0))
    receiver.disk_state("vm", "t", "receiving")
    receiver.disk_progress("vm", "t", 1.0, None)
    metrics = sender if program == "flatship-sender" else receiver
    shown = labels_of(metrics.render()[0])
    section = sections(MANUALS[program].read_text())["Metrics"]
    rows = re.findall(r"^\| `(flatship_[a-z_]+)` \| ?([a-z_, ]*) ?\|", section, re.MULTILINE)
    assert shown == {name: set(re.findall(r"\w+", labels)) for name, labels in rows}
    assert not {"job", "instance"} & set().union(*shown.values())


def test_the_receivers_manual_lists_why_callers_are_turned_away() -> None:
    section = sections(MANUALS["flatship-receiver"].read_text())["Metrics"]
    for reason in set(AUTH_REASONS) - {OTHER}:
        assert f"`{reason}`" in section


def test_the_senders_manual_explains_each_refusal_with_its_exit_code() -> None:
    section = sections(MANUALS["flatship-sender"].read_text())["When the receiver refuses"]
    listed: dict[str, int] = {}
    for codes, exit_code in re.findall(r"^\| (`[^|]+`) \| (\d+) \|", section, re.MULTILINE):
        listed |= dict.fromkeys(re.findall(r"`([a-z_]+)`", codes), int(exit_code))
    assert listed == {code.name.lower(): REFUSALS[code].exit_code for code in ErrorCode}


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("flatship-receiver", receiver_config.ConfigFile),
        ("flatship-sender", sender_config.ConfigFile),
    ],
)
def test_a_manual_lists_the_keys_of_its_configuration(
    program: str, kind: type[msgspec.Struct]
) -> None:
    section = sections(MANUALS[program].read_text())["Configuration"]
    listed = re.findall(r"^\| `\[?([a-z_.]+)\]?` \|", section, re.MULTILINE)
    (http,) = (each.type for each in msgspec.structs.fields(kind) if each.name == "http")
    assert [key for key in listed if "." not in key] == list(kind.__struct_fields__)
    below = [key.removeprefix("http.") for key in listed if "." in key]
    assert below == list(http.__struct_fields__)
    example = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert set(tomllib.loads("".join(example))) <= set(listed)


def anchors(path: Path) -> set[str]:
    """Headings as they are linked to: lower case, hyphens for blanks, no punctuation."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in sections(path.read_text())
        if heading
    }


@pytest.mark.parametrize("path", markdown_files(), ids=relative)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", PROSE, ids=relative)
def test_documents_mention_nothing_outside_the_project(path: Path) -> None:
    text = path.read_text()
    for host in re.findall(r"https?://([^/\s)`]+)", text):
        assert re.match(r"(127\.0\.0\.1|\[::1\]|[a-z0-9.-]*example\.(net|com))(:|$)", host), host
    for absolute in re.findall(r"(?<![\w.~/$\]…)}+-])/[a-z][\w./-]+", text):
        assert absolute.startswith(KNOWN_FOLDERS), absolute
    assert not re.findall(r"(?<![\w&])#\d+\b|\bissues? \d+\b", text), "an issue's number"


@dataclass(frozen=True)
class Names:
    """What the packages define: modules, names at their top level, members of their classes."""

    modules: dict[str, set[str]]
    classes: dict[str, set[str]]

    @classmethod
    def of_packages(cls) -> "Names":
        names = cls({}, {})
        for package in PACKAGES:
            names.modules.setdefault(package.name, set())
            for file in package.rglob("*.py"):
                names._add(file)
        return names

    def _add(self, file: Path) -> None:
        top = self.modules.setdefault(file.stem, set())
        for node in ast.parse(file.read_text()).body:
            top |= set(_defined(node))
            if isinstance(node, ast.ClassDef):
                members = self.classes.setdefault(node.name, set())
                for inner in ast.walk(node):
                    members |= set(_defined(inner))

    def knows(self, name: str) -> bool:
        owner, _, member = name.partition(".")
        if member:
            return member in self.classes.get(owner, set()) | self.modules.get(owner, set())
        everything = set(self.modules).union(*self.modules.values(), *self.classes.values())
        return owner in everything


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                yield target.id
            elif isinstance(target, ast.Attribute):
                yield target.attr


def is_file(name: str) -> bool:
    """Whether a name with a slash or an ending is a path in the tree or in a package."""
    return any((base / name).exists() for base in (ROOT, ROOT / "tests", *PACKAGES))


def test_files_and_symbols_that_the_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    names = Names.of_packages()
    checked = 0
    for span in re.findall(r"`([^`]+)`", text):
        if span.startswith((".", "make ", "flatship-receiver ")):  # endings of names, commands
            continue
        if "/" in span or re.search(r"\.(py|md|toml)$", span):
            assert is_file(span), span
        else:
            assert names.knows(span) or span in sys.stdlib_module_names, span
        checked += 1
    assert checked > 50, "this test has lost sight of the document"


def test_the_architecture_names_every_package_and_each_of_its_folders() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for package in PACKAGES:
        assert f"`{relative(package)}`" in text
    for folder in ("sources", "datastores"):
        assert f"`{folder}/`" in text


def test_the_architecture_names_symbols_and_never_line_numbers() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert not re.findall(r"\.py:\d+|\blines? \d+", text)
