"""`cove shell` in a real terminal emulator (tmux), at real sandboxes: what a person types, and what a person sees."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cove
from tests_support import NewServer, RunningServer, make_images, make_server
from tmux_support import PROMPT, TERM, Tmux, tmux

pytestmark = pytest.mark.real

EDITOR = "test-editor"
BACK = rf"^{PROMPT.strip()} ?$"
MB = 1_000_000


def environment(server: RunningServer, home: Path) -> dict[str, str]:
    programs = home / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    program = programs / "cove"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-m", "cove.cli.main"])} "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVE_", "XDG_"))}
    path = f"{programs}:{kept['PATH']}"
    return kept | {"COVE_DATA_DIR": str(server.data_dir), "HOME": str(home), "PATH": path, "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def editor_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has an image with vim."""
    make_images(tmp_path_factory.mktemp("images") / "recipes", ["base", EDITOR])
    running = make_server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.down()


@pytest.fixture(scope="module")
def box(editor_server: RunningServer) -> Iterator[cove.Sandbox]:
    with cove.connect(f"unix:{editor_server.socket}") as client, _create(client) as box:
        yield box


def _create(client: cove.Client) -> cove.Sandbox:
    return client.create(EDITOR, name="otter", hostname="otter")


@pytest.fixture
def window(editor_server: RunningServer, box: cove.Sandbox, tmp_path: Path) -> Iterator[Tmux]:
    with tmux(tmp_path / "tmux", environment(editor_server, tmp_path / "home")) as window:
        yield window
    for terminal in box.terminals():
        terminal.forget()


def sit(window: Tmux, *options: str) -> None:
    window.line(shlex.join(["cove", "shell", "otter", *options]))
    window.wait_for(r"^root@otter:.*#")


def leave(window: Tmux) -> None:
    window.line("exit")
    window.wait_for(BACK)


def test_a_shell_looks_like_one_follows_the_window_and_passes_its_exit_code(window: Tmux, box: cove.Sandbox) -> None:
    window.line("stty -g > before")
    sit(window)
    window.line("tty; stty size; echo $TERM; echo done")
    screen = window.wait_for("^done$")
    assert re.search(r"^/dev/pts/\d+$", screen, re.MULTILINE)
    assert "\n24 80\n" in screen
    assert f"\n{TERM}\n" in screen
    window.resize(101, 33)
    window.line("clear; stty size")
    window.wait_for("^33 101$")
    window.line("clear; sleep 987")
    wait_for_process(box, "sleep 987")
    window.keys("C-c")
    window.wait_for(r"^root@otter:[^#]*# *$")
    window.line("echo rc=$?; exit 7")
    window.wait_for("^rc=130$")
    window.wait_for(BACK)
    window.line("echo code=$?; stty -g > after; cmp before after && echo same")
    window.wait_for("^code=7$")
    window.wait_for("^same$")
    assert box.terminals() == []


def test_vim_edits_and_saves_a_file(window: Tmux, box: cove.Sandbox) -> None:
    box.files["/root/poem.txt"] = b"first\nlast\n"
    sit(window, "--", "bash")
    window.line("vim -N poem.txt")
    window.wait_for(r'"poem.txt" 2L, 11B')
    window.wait(lambda screen: screen.splitlines()[:4] == ["first", "last", "~", "~"], "vim drawn")
    assert window.mode("alternate_on") == "1"
    window.keys("o", "middle ü", "Escape")
    window.resize(60, 18)
    window.wait(lambda screen: screen.splitlines()[:4] == ["first", "middle ü", "last", "~"], "vim redrawn")
    window.keys(":wq", "Enter")
    window.wait_for(r"^root@otter:.*#")
    assert window.mode("alternate_on") == "0"
    assert box.files["/root/poem.txt"] == "first\nmiddle ü\nlast\n".encode()
    leave(window)


def test_top_draws_and_quits(window: Tmux) -> None:
    sit(window)
    window.line("top -d 1")
    screen = window.wait_for(r"^ *\d+ root .* top$")
    assert re.search(r"^top - .* load average:", screen, re.MULTILINE)
    assert re.search(r"^ *PID USER", screen, re.MULTILINE)
    window.keys("q")
    window.wait_for(r"^root@otter:[^#]*# *$")
    window.line("echo quit=$?")
    window.wait_for("^quit=0$")
    leave(window)


def test_ten_megabytes_arrive_whole(window: Tmux, box: cove.Sandbox) -> None:
    lines = b"".join(b"%08d %s\n" % (number, b"x" * 90) for number in range(10 * MB // 100))
    box.files["/root/big"] = lines
    window.line("cove shell otter -- sh -c 'echo BEGIN; cat big; echo END-OF-IT'")
    window.wait_for("^END-OF-IT$", 60)
    window.wait_for(BACK)
    raw = window.raw.read_bytes()
    begin = raw.index(b"BEGIN\r\n") + 7
    whole = raw[begin : raw.index(b"END-OF-IT\r\n", begin)]
    assert len(whole) == len(lines) + lines.count(b"\n")
    assert whole.replace(b"\r\n", b"\n") == lines


def test_a_large_paste_arrives_whole_while_the_program_writes(window: Tmux, box: cove.Sandbox) -> None:
    text = "".join(f"line {number:06} ~.\n~. not ours\n" for number in range(20_000))
    window.line("cove shell otter -- sh -c 'stty -echo; echo READY; tee /root/pasted; echo CLOSED'")
    window.wait_for("^READY$")
    window.paste(text)
    window.keys("C-d")
    window.wait_for("^CLOSED$", 60)
    window.wait_for(BACK)
    assert hashlib.sha256(box.files["/root/pasted"]).digest() == hashlib.sha256(text.encode()).digest()


def test_detached_the_program_goes_on_and_one_comes_back_to_it(window: Tmux, box: cove.Sandbox) -> None:
    sit(window)
    window.line("word=kept; echo before")
    window.wait_for("^before$")
    window.keys("Enter", "~", "?")
    window.wait_for("detach; the program goes on")
    window.keys("Enter", "~", ".")
    screen = window.wait_for(r"^Detached from t[0-9a-f]{12}, which goes on\. Back: cove shell otter --attach")
    window.wait_for(BACK)
    terminal_id = re.search(r"t[0-9a-f]{12}", screen)
    assert terminal_id is not None
    assert [terminal.id for terminal in box.terminals()] == [terminal_id.group()]
    window.line("clear; cove shell -l otter")
    window.wait_for(rf"^{terminal_id.group()}  running +80x24")
    window.resize(90, 30)
    window.line(f"clear; cove shell otter --attach {terminal_id.group()}")
    window.wait_for("^before$")
    window.line("echo $word; stty size")
    screen = window.wait_for("^30 90$")
    assert "\nkept\n" in screen
    leave(window)
    assert box.terminals() == []


def test_one_comes_back_to_a_full_screen_that_is_drawn_anew(window: Tmux, box: cove.Sandbox) -> None:
    box.files["/root/poem.txt"] = b"first\nlast\n"
    sit(window)
    window.line("seq -w 200000; vim -N poem.txt")
    window.wait_for(r'"poem.txt" 2L, 11B')
    window.keys("Enter", "~", ".")
    window.wait_for("^Detached from")
    window.line("clear; cove shell otter --attach -")
    window.wait(lambda screen: screen.splitlines()[:4] == ["first", "last", "~", "~"], "vim drawn anew")
    window.keys("A", "!", "Escape")
    window.wait(lambda screen: "last!" in screen, "the line that vim was on")
    window.keys(":wq", "Enter")
    window.wait_for(r"^root@otter:.*#")
    assert box.files["/root/poem.txt"] == b"first\nlast!\n"
    leave(window)


def test_what_an_ended_program_left_on_the_terminal_is_put_right(window: Tmux, box: cove.Sandbox) -> None:
    window.line("stty -g > before")
    sit(window)
    window.line("vim -N -c 'set mouse=a'")
    window.wait_for("VIM - Vi IMproved")
    assert window.mode("alternate_on") == "1"
    assert window.mode("mouse_any_flag") == "1"
    box.run("pkill -KILL vim; pkill -KILL bash")
    window.wait_for(BACK)
    assert (window.mode("alternate_on"), window.mode("mouse_any_flag")) == ("0", "0")
    assert window.mode("cursor_flag") == "1"
    window.line("echo code=$?; stty -g > after; cmp before after && echo same")
    window.wait_for("^same$")
    assert "code=137" in window.screen()


@pytest.mark.parametrize("number", ["TERM", "HUP", "INT"])
def test_a_signal_to_us_leaves_a_usable_terminal_and_the_program(window: Tmux, box: cove.Sandbox, number: str) -> None:
    window.line("stty -g > before")
    sit(window)
    window.line("vim -N")
    window.wait_for("VIM - Vi IMproved")
    pid = subprocess.run(
        ["pgrep", "-f", "cove.cli.main shell otter$"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    subprocess.run(["kill", f"-{number}", pid], check=True)
    window.wait_for(BACK)
    window.line("stty -g > after; cmp before after && echo same")
    window.wait_for("^same$")
    assert window.mode("alternate_on") == "0"
    assert [terminal.refresh().running for terminal in box.terminals()] == [True]


def test_without_a_sandbox_there_is_a_new_one_which_goes_with_its_shell(
    window: Tmux, editor_server: RunningServer
) -> None:
    window.line("cove shell -- sh -c 'tty; exit 4'")
    screen = window.wait_for(r"^Removed [a-z]+-[a-z]+\.")
    name = re.search(r"^Removed ([a-z-]+)\.", screen, re.MULTILINE)
    assert name is not None
    assert "\n/dev/pts/" in screen
    window.line("echo code=$?")
    window.wait_for("^code=4$")
    with cove.connect(f"unix:{editor_server.socket}") as client:
        assert name[1] not in [box.name for box in client.list()]


def test_without_a_terminal_it_says_what_to_use(
    editor_server: RunningServer, box: cove.Sandbox, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["cove", "shell", "otter", "--", "ls", "-l"],
        env=environment(editor_server, tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a terminal" in done.stderr
    assert "hint: cove exec otter -- ls -l" in done.stderr
    assert box.terminals() == []


def test_a_restart_of_the_server_in_the_middle_of_output_loses_nothing(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server()
    with cove.connect(f"unix:{server.socket}") as client:
        client.create(name="otter")
    counting = "i=0; while [ $i -lt 2400 ]; do echo line $i; i=$((i+1)); [ $((i%40)) = 0 ] && sleep 0.03; done"
    program = f"{counting}; read x; echo got $x"
    with tmux(tmp_path / "tmux", environment(server, tmp_path / "home")) as window:
        window.line(f"cove shell otter -- sh -c {shlex.quote(program)}")
        window.wait_for(r"^line \d{3}$")
        server.kill()
        window.wait_for(r"^\[cove: connection lost, attaching again")
        server.start()
        window.wait_for(r"^line 2399$", 60)
        window.line("typed after")
        window.wait_for("^got typed after$")
        window.wait_for(BACK)
    raw = window.raw.read_bytes()
    assert b"[cove: attached again]\r\n" in raw
    assert [int(found) for found in re.findall(rb"line (\d+)\r\n", raw)] == list(range(2400))


def wait_for_process(box: cove.Sandbox, command: str) -> None:
    deadline = time.monotonic() + 60
    while command not in box.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out:
        assert time.monotonic() < deadline, f"{command} was never started"
        time.sleep(0.05)
