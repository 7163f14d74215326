"""Manual pages and completions follow the command lines: whole, well-formed, and they work."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from haclusterd.cli.completion import Command, bash, haclusterctl, zsh
from haclusterd.cli.main import main
from haclusterd.config import reference

ROOT = Path(__file__).parents[2]
COMMANDS = haclusterctl()
SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    script = runpy.run_path(str(ROOT / "scripts" / "documents.py"))
    assert script["main"]([str(folder)]) == 0
    return folder


def pages(tree: Path) -> list[Path]:
    return sorted((tree / "usr/share/man").rglob("*.[158]"))


def test_there_is_a_page_for_each_program_and_the_file(tree: Path) -> None:
    names = [page.name for page in pages(tree)]
    assert names == ["haclusterctl.1", "haclusterd.toml.5", "haclusterd.8"]


def test_pages_name_every_command_every_option_and_every_key(tree: Path) -> None:
    control, file, daemon = (page.read_text().replace("\\-", "-") for page in pages(tree))
    for command in COMMANDS:
        if not command.subcommands:
            assert f".SS {command.name}\n" in control
        for option in command.options:
            assert option.flags[0] in control
    for key in reference.asked():
        assert f".B {key.name}\n" in file
    for option_name in ("--config", "--node", "--run-dir"):
        assert option_name in daemon
    assert "takeover-fd" not in daemon


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_troff_has_nothing_to_complain_of(tree: Path) -> None:
    for page in pages(tree):
        words = ["groff", "-man", "-Tutf8", "-ww", "-rLL=100n", str(page)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "`" not in done.stdout


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash would offer for the last of `words`."""
    script = tmp_path / "completion"
    script.write_text(bash("haclusterctl", COMMANDS))
    source = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _haclusterctl; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-uec", source, "bash", str(script), "haclusterctl", *words],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": SYSTEM_PATH},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_values_and_files(tmp_path: Path) -> None:
    assert completed(tmp_path, "sta") == ["status"]
    assert set(completed(tmp_path, "")) >= {c.name for c in COMMANDS if len(c.path) == 1}
    assert completed(tmp_path, "--config", "x.toml", "rank", "--w") == ["--why"]
    assert completed(tmp_path, "maintenance", "o") == ["on", "off"]
    assert completed(tmp_path, "lab", "r") == ["run"]
    assert completed(tmp_path, "lab", "run", "--preset", "") == ["lan", "fast", "wan"]
    assert completed(tmp_path, "fs-conf", "render", "--output", "compl") == ["completion"]
    assert completed(tmp_path, "switchover", "--to", "") == []


def test_every_word_that_bash_offers_is_understood(tmp_path: Path) -> None:
    for command in COMMANDS:
        offered = completed(tmp_path, *command.path, "")
        wanted = [flag for option in command.options for flag in option.flags]
        wanted += [choice for p in command.positionals for choice in p.choices]
        assert sorted(set(offered)) == sorted({*wanted, *command.subcommands}), command.path


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_file(tmp_path: Path) -> None:
    script = tmp_path / "_haclusterctl"
    script.write_text(zsh("haclusterctl", COMMANDS))
    subprocess.run(["zsh", "-n", str(script)], check=True)
    source = (
        "_describe() { print -l -- $told }; _files() { print FILES }; _message() { print $1 };"
        'compadd() { shift; print $@ }; words=("$@"); CURRENT=$#; source $0'
    )
    for words, expected in (
        (["maintenance", ""], "on:"),
        (["lab", "run", "--preset", ""], "lan fast wan"),
        (["--config", ""], "FILES"),
        (["rank", ""], "--why:"),
    ):
        done = subprocess.run(["zsh", "-fc", source, str(script), "haclusterctl", *words],
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert expected in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_printed_for_those_without_a_package(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    write = {"bash": bash, "zsh": zsh}[shell]
    assert capsys.readouterr().out == write("haclusterctl", COMMANDS)


def test_a_command_without_a_word_about_it_is_found() -> None:
    silent = [command.name for command in COMMANDS[1:] if not command.text]
    assert silent == []
    nothing = Command((), "", "x", (), (), ())
    assert 'words=""' in bash("x", [nothing])
