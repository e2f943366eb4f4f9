"""Code in contexts as its users meet it: image `code`, the SDK, real sandboxes, packages from an index of the test's.

One server and few sandboxes for all of it; a test that leaves its context in another state has one of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import cove
from index_support import MODULE, WHEEL, Index, serving_packages
from tests_support import SOAK, RunningServer, make_images, make_server
from tmux_support import PROMPT, Tmux, tmux
from waiting_support import until
from world_support import World

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

LIMIT_S = 60.0
LONG_S = 600 if SOAK else 90
STDOUT_MIB = 1024 if SOAK else 100
FLAT_KIB = 96 * 1024
"""What the server may hold more while it passes on a large output: twice what a call may have in flight, and slack."""
DRIVERS = ["crun", "gvisor"]
"""Beside runc, on which everything is run."""


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with serving_packages(world, tmp_path_factory.mktemp("index")) as served:
        yield served


@pytest.fixture(scope="module")
def code_server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose pool keeps sandboxes of the image `code`, with kernels that run."""
    make_images(tmp_path_factory.mktemp("images") / "recipes", ["code"])
    running = world.server(tmp_path_factory.mktemp("server"), COVE_POOL_IMAGES="code", COVE_POOL_SIZE="1")
    running.start()
    yield running
    running.down()


@pytest.fixture(scope="module")
def client(code_server: RunningServer) -> Iterator[cove.Client]:
    with cove.connect(code_server.url, code_server.key) as client:
        yield client


@pytest.fixture(scope="module")
def box(client: cove.Client, index: Index) -> Iterator[cove.Sandbox]:
    """The sandbox of most tests: it may reach the index, and nothing else."""
    with client.create("code", memory="1g", network=[index.rule], env=index.env) as box:
        yield box


@pytest.fixture
def context(box: cove.Sandbox) -> Iterator[cove.Context]:
    """A context of one test alone."""
    with box.contexts.create() as context:
        yield context


class LongRun(threading.Thread):
    """A cell that takes long, in a sandbox of its own, while everything else goes on."""

    def __init__(self, client: cove.Client) -> None:
        super().__init__(daemon=True)
        self.box = client.create()
        self.ticks: list[str] = []
        self.done: cove.Execution | None = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        code = f"import time\nfor n in range({LONG_S}):\n    print(n, flush=True)\n    time.sleep(1)\n'whole'"
        try:
            self.done = self.box.run_code(code, on_stdout=self.ticks.append)
        except BaseException as error:
            self.failure = error
            raise

    def check(self) -> None:
        """To be called at the very end: wait for it, and see that nothing of it is missing."""
        self.join(LONG_S + 120)
        assert self.failure is None, self.failure
        assert self.done is not None, f"it still runs after {len(self.ticks)} ticks"
        assert "".join(self.ticks).split() == [str(n) for n in range(LONG_S)]
        assert (self.done.text, self.done.status) == ("'whole'", "ok")
        assert self.done.duration_ms >= LONG_S * 1000


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongRun]:
    """Begun by the first test here, checked when all tests of this process are over: nobody waits for it before.

    On a server of its own, so that no other test meets its sandbox.
    """
    running = make_server(tmp_path_factory.mktemp("long"), COVE_POOL_SIZE="0")
    running.start()
    try:
        with cove.connect(running.url, running.key) as client:
            run = LongRun(client)
            run.start()
            yield run
            run.check()
    finally:
        running.down()


def png_size(picture: bytes) -> tuple[int, int]:
    """Decode a PNG far enough to know that it is whole; its width and height."""
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    kinds: list[bytes] = []
    place, data = 8, b""
    while place < len(picture):
        (length,) = struct.unpack_from(">I", picture, place)
        kind, content = picture[place + 4 : place + 8], picture[place + 8 : place + 8 + length]
        (crc,) = struct.unpack_from(">I", picture, place + 8 + length)
        assert crc == zlib.crc32(kind + content), kind
        kinds.append(kind)
        data += content if kind == b"IDAT" else b""
        place += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    width, height, depth, colour = struct.unpack_from(">IIBB", picture, 16)
    assert (depth, colour) == (8, 6)
    assert len(zlib.decompress(data)) == height * (1 + 4 * width)
    return width, height


# ---- what comes back


def test_a_value_and_what_was_printed_come_back_in_order(box: cove.Sandbox, long_run: LongRun) -> None:
    assert long_run.failure is None
    seen: list[tuple[str, str]] = []
    code = """import os, sys
for n in range(3):
    print('o', n)
    print('e', n, file=sys.stderr)
os.system('echo child')
6 * 7"""
    done = box.run_code(
        code, on_stdout=lambda text: seen.append(("o", text)), on_stderr=lambda text: seen.append(("e", text))
    )
    assert (done.status, done.text, done.error) == ("ok", "42", None)
    assert done.logs.stdout == "o 0\no 1\no 2\nchild\n"
    assert done.logs.stderr == "e 0\ne 1\ne 2\n"
    assert [stream for stream, text in seen for _ in range(text.count("\n"))] == ["o", "e"] * 3 + ["o"]
    again = box.run_code("n + 1")
    assert (again.text, again.fresh, again.context) == ("3", False, "python")
    assert again.count == done.count + 1


def test_what_is_raised_says_where(box: cove.Sandbox) -> None:
    told: list[cove.Raised] = []
    done = box.run_code("kept = 1\ndef inner():\n    return 1 / 0\ninner()", on_error=told.append)
    assert done.error is not None
    assert (done.status, done.error.name, done.error.value) == ("error", "ZeroDivisionError", "division by zero")
    assert told == [done.error]
    assert "return 1 / 0" in str(done.error)
    assert "\x1b" not in str(done.error)
    assert box.run_code("kept").text == "1", "the state stays as the code left it"
    wrong = box.run_code("def (")
    assert wrong.error is not None
    assert wrong.error.name == "SyntaxError"
    with pytest.raises(cove.CodeFailed, match="NameError"):
        box.run_code("nowhere", check=True)


def test_a_data_frame_is_a_table(box: cove.Sandbox) -> None:
    code = "import pandas as pd\npd.DataFrame({'name': ['ann', 'bob'], 'age': [41, 42]})"
    done = box.run_code(code, check=True)
    assert done.main is not None
    assert done.main.html is not None
    assert "<table" in done.main.html
    assert "<td>ann</td>" in done.main.html
    assert (done.text or "").split() == ["name", "age", "0", "ann", "41", "1", "bob", "42"]


def test_a_figure_is_a_picture_of_its_size(context: cove.Context) -> None:
    context.run("%config InlineBackend.print_figure_kwargs = {'bbox_inches': None}", check=True)
    code = "import matplotlib.pyplot as plt\nplt.figure(figsize=(4, 3), dpi=100)\nplt.plot([1, 2, 3])\nplt.show()"
    done = context.run(f"{code}; print('on')", check=True)
    (picture,) = [result.png for result in done.results if result.png]
    assert png_size(picture) == (400, 300)
    assert done.logs.stdout == "on\n"
    implicit = context.run("plt.figure(figsize=(2, 1), dpi=100)\nplt.bar(['a', 'b'], [1, 2])", check=True)
    assert [png_size(one.png) for one in implicit.results if one.png] == [(200, 100)], "shown without plt.show()"


def test_displays_are_updated_and_cleared(box: cove.Sandbox) -> None:
    code = """
from IPython.display import HTML, JSON, Latex, Markdown, clear_output, display
display('gone'); clear_output()
bar = display('0 %', display_id=True); bar.update('100 %')
display(HTML('<b>x</b>')); display(Markdown('*x*')); display(Latex('$x$')); display(JSON({'a': [1]}))
class Mine:
    def _repr_svg_(self): return '<svg/>'
    def _repr_mimebundle_(self, include=None, exclude=None): return {'text/plain': 'mine', 'application/x-own': '1'}
display(Mine())
"""
    shown: list[cove.CodeResult] = []
    done = box.run_code(code, on_result=shown.append, check=True)
    first, html, markdown, latex, data, mine = done.results
    assert first.text == "'100 %'"
    assert (html.html, markdown.markdown, latex.latex, data.json) == ("<b>x</b>", "*x*", "$x$", {"a": [1]})
    assert (mine.svg, mine.data["application/x-own"]) == ("<svg/>", "1")
    assert [(one.text, one.update) for one in shown[:3]] == [("'gone'", False), ("'0 %'", False), ("'100 %'", True)]
    assert done.main is None


def test_magics_and_commands_work(context: cove.Context) -> None:
    done = context.run("names = !printf 'a\\nb'\nnames", check=True)
    assert done.text == "['a', 'b']"
    assert context.run("!echo out; echo err >&2; false\n_exit_code", check=True).text == "1"
    assert context.run("%%bash\necho $((6 * 7))", check=True).logs.stdout == "42\n"
    assert context.run("%env COVE_SAID=yes\nimport os; os.environ['COVE_SAID']", check=True).text == "'yes'"
    assert "loop" in context.run("%timeit -n1 -r1 1", check=True).logs.stdout
    assert context.run("import asyncio\nawait asyncio.sleep(0, 'awaited')", check=True).text == "'awaited'"


def test_a_run_has_an_environment_of_its_own(box: cove.Sandbox) -> None:
    ask = "import os; os.environ.get('ONLY_NOW')"
    assert box.run_code(ask, env={"ONLY_NOW": "yes"}).text == "'yes'"
    assert box.run_code(ask).text is None


# ---- packages


def test_packages_are_installed_from_the_index_and_nowhere_else(box: cove.Sandbox, index: Index, world: World) -> None:
    done = box.run_code(f"%pip install {WHEEL}", check=True)
    assert f"Successfully installed {WHEEL}" in done.logs.stdout
    assert box.run_code(f"import {WHEEL}; {WHEEL}.tabulate([[1]], tablefmt='plain')", check=True).text == "'1'"
    done = box.run_code(f"!mkdir -p /srv/app && cd /srv/app && npm install --silent {MODULE}", check=True)
    assert box.run_code(f"process.chdir('/srv/app'); require('{MODULE}')(3)", language="javascript").text == "true"
    assert f"/simple/{WHEEL}/" in index.asked
    assert "/is-number" in index.asked, "what it depends on came too"
    world.seen.clear()
    code = "import urllib.request; urllib.request.urlopen('http://good.example/', timeout=20)"
    refused = box.run_code(code)
    assert refused.error is not None
    assert refused.error.name == "URLError"
    assert world.seen == [], "only the index may be reached"


# ---- how runs end


def test_a_run_that_takes_too_long_is_interrupted_and_keeps_its_state(context: cove.Context) -> None:
    done = context.run("before = 1\nimport time\nwhile True: time.sleep(0.05)", timeout=0.5)
    assert done.status == "timeout"
    assert context.run("before").text == "1"


def test_an_interrupt_ends_what_runs(box: cove.Sandbox, context: cove.Context) -> None:
    begun = threading.Event()
    ended: list[cove.Execution] = []

    def run() -> None:
        code = "here = 2\nprint('on', flush=True)\nimport time\nwhile True: time.sleep(0.05)"
        ended.append(context.run(code, on_stdout=lambda _: begun.set()))

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(LIMIT_S)
    assert box.contexts.get(context.id).info.busy
    context.interrupt()
    thread.join(LIMIT_S)
    (done,) = ended
    assert done.status == "interrupted"
    assert done.error is not None
    assert done.error.name == "KeyboardInterrupt"
    assert context.run("here").text == "2"


def test_whoever_stops_reading_interrupts(context: cove.Context) -> None:
    def stop(_: str) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        context.run("seen = 3\nprint('on', flush=True)\nimport time\nwhile True: time.sleep(0.05)", on_stdout=stop)
    assert context.run("seen").text == "3", "the next run did not wait for it"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; os._exit(3)", "3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
)
def test_a_kernel_that_dies_is_told_and_a_fresh_one_comes(context: cove.Context, code: str, told: str) -> None:
    context.run("lost = 1", check=True)
    done = context.run(code)
    assert done.status == "kernel-died"
    assert told in (done.detail or "")
    after = context.run("'lost' in globals()", check=True)
    assert (after.text, after.fresh, after.count) == ("False", True, 1)


def test_restarting_begins_anew(context: cove.Context) -> None:
    context.run("x = 1", check=True)
    assert context.restart().alive
    after = context.run("'x' in globals()", check=True)
    assert (after.text, after.count) == ("False", 1)


def test_a_large_output_passes_through_a_server_that_stays_small(
    code_server: RunningServer, context: cove.Context
) -> None:
    assert code_server.process is not None
    status = Path(f"/proc/{code_server.process.pid}/status")

    def resident() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))

    before, most, count = resident(), 0, 0

    def take(text: str) -> None:
        nonlocal most, count
        count += len(text)
        most = max(most, resident()) if count % 64 == 0 else most

    code = f"line = 'x' * 1023 + '\\n'\nimport sys\nfor _ in range({STDOUT_MIB} * 1024): sys.stdout.write(line)"
    done = context.run(code, on_stdout=take, check=True)
    assert count == STDOUT_MIB << 20
    assert most - before < FLAT_KIB, (before, most)
    assert len(done.logs.stdout) + done.logs.stdout_dropped == STDOUT_MIB << 20
    assert len(done.logs.stdout) == 10 << 20
    whole = context.run("for _ in range(20 * 1024): sys.stdout.write(line)")
    assert (len(whole.logs.stdout), whole.logs.stdout_dropped) == (10 << 20, 10 << 20)


def test_a_fork_bomb_in_a_cell_harms_its_own_sandbox_alone(client: cove.Client, box: cove.Sandbox) -> None:
    with client.create("code", memory="1g", pids=64) as small:
        small.run_code("x = 1", check=True)
        with suppress(cove.SandboxError):  # its kernel has hardly a process left to say more with
            done = small.run_code("import os\nwhile True: os.fork()", timeout=60)
            assert done.status in {"error", "kernel-died"}, done
            assert done.error is None or done.error.name == "BlockingIOError"
        assert box.run_code("1 + 1").text == "2"
        until(lambda: recovered(small), "code runs again")


def recovered(small: cove.Sandbox) -> bool:
    """Whether code runs again in the sandbox, if need be in a fresh kernel. What is raised meanwhile is typed."""
    with suppress(cove.Conflict, cove.SandboxError):
        if small.run_code("6 * 7", timeout=20).text == "42":
            return True
        small.contexts.get("python").restart()
    return False


# ---- contexts


def test_contexts_stand_side_by_side(box: cove.Sandbox) -> None:
    with box.contexts.create() as one, box.contexts.create(cwd="/tmp") as other:
        one.run("who = 'one'", check=True)
        other.run("who = 'other'", check=True)
        waiting = threading.Thread(target=one.run, args=("import os\nwhile not os.path.exists('/srv/go'): pass",))
        waiting.start()
        assert other.run("import os; open('/srv/go', 'w').close(); os.getcwd()").text == "'/tmp'"
        waiting.join(LIMIT_S)
        assert not waiting.is_alive(), "they run at the same time"
        assert (one.run("who").text, other.run("who").text) == ("'one'", "'other'")
        assert {one.id, other.id} < {each.id for each in box.contexts.list()}
        assert "os.getcwd" in other.complete("os.getc").matches
    assert not {one.id, other.id} & {each.id for each in box.contexts.list()}
    with pytest.raises(cove.NotFound):
        one.run("1")


def test_javascript_and_typescript_keep_their_state(box: cove.Sandbox) -> None:
    for language, first in (("javascript", "let a = 20"), ("typescript", "let a: number = 20")):
        assert box.run_code(first, language=language, check=True).context == language
        done = box.run_code("console.log('said'); console.error('oops'); a * 2 + 2", language=language, check=True)
        assert (done.text, done.logs.stdout, done.logs.stderr) == ("42", "said\n", "oops\n")
        assert box.run_code("await Promise.resolve(7)", language=language, check=True).text == "7"
        failed = box.run_code("null.x", language=language)
        assert failed.error is not None
        assert failed.error.name == "TypeError"


def test_bash_keeps_its_state(box: cove.Sandbox) -> None:
    box.run_code('cd /srv; word=kept; f() { echo "$word $PWD"; }', language="bash", check=True)
    assert box.run_code("f", language="bash", check=True).logs.stdout == "kept /srv\n"
    failed = box.run_code("(exit 3)", language="bash")
    assert failed.error is not None
    assert (failed.status, failed.error.value) == ("error", "exit status 3")


def test_a_jupyter_kernel_of_the_image_is_a_language(box: cove.Sandbox) -> None:
    argv = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = json.dumps({"argv": argv, "language": "own", "display_name": "Own"})
    box.run("mkdir -p /usr/local/share/jupyter/kernels/own", check=True)
    box.files["/usr/local/share/jupyter/kernels/own/kernel.json"] = spec.encode()
    assert "own" in {one.name for one in box.languages() if one.usable}
    done = box.run_code("print('said'); 6 * 7", language="own", check=True)
    assert (done.text, done.logs.stdout) == ("42", "said\n")
    assert box.contexts.get(done.context).info.kernel == "jupyter:own"
    assert box.run_code("1 / 0", language="own").status == "error"


def test_plain_python_does_with_less_and_says_so(client: cove.Client) -> None:
    with client.create() as plain:
        done = plain.run_code("x = 20\nprint('said')\nx * 2 + 2", check=True)
        assert (done.text, done.logs.stdout) == ("42", "said\n")
        failed = plain.run_code("x / 0")
        assert failed.error is not None
        assert failed.error.name == "ZeroDivisionError"
        info = plain.contexts.get("python").info
        assert not info.rich
        assert "IPython" in " ".join(info.missing)
        languages = {one.name: one for one in plain.languages()}
        assert languages["python"].usable
        assert not languages["javascript"].usable
        assert "node" in " ".join(languages["javascript"].missing)
        with pytest.raises(cove.Unsupported, match="node"):
            plain.run_code("1", language="javascript")
        with pytest.raises((cove.BadRequest, cove.Unsupported)):
            plain.run_code("1", language="cobol")


@pytest.mark.parametrize("driver", DRIVERS)
def test_other_drivers_run_code_too(client: cove.Client, driver: str) -> None:
    with client.create("code", memory="1g", driver=driver) as other:
        assert other.run_code("import pandas as pd\npd.DataFrame({'a': [1]})", check=True).main is not None
        done = other.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()", check=True)
        assert [png_size(one.png) for one in done.results if one.png]
        assert other.run_code("import time\nwhile True: time.sleep(0.05)", timeout=0.5).status == "timeout"
        assert other.run_code("import os; os._exit(1)").status == "kernel-died"
        assert other.run_code("6 * 7", check=True).text == "42"
        assert other.run_code("[1, 2].map((x) => x * 2)", language="javascript", check=True).text is not None


# ---- what one caller leaves for the next


MARK = "the-marked-secret-4711"
LEAVE = f"""
import os, socket, subprocess
secret = '{MARK}'
os.environ['LEFT'] = secret
for place in ('/root', '/tmp', '/srv', '/var/tmp', '/dev/shm', '/run', '/workspace', '/etc', '/var/log'):
    with open(f'{{place}}/left', 'w') as file:
        file.write(secret)
with open('/etc/hosts', 'a') as file:
    file.write(f'1.2.3.4 {{secret}}\\n')
%pip download --no-deps -d /tmp {WHEEL}
subprocess.Popen(['sh', '-c', 'sleep 4321; true', secret], start_new_session=True)
address = socket.gethostbyname('packages.example')
"""
FIND = f"""
import glob, os, socket, subprocess
half = '{MARK[:11]}'
mark = (half + '{MARK[11:]}').encode()
found = []
for pattern in ('/proc/[0-9]*/environ', '/proc/[0-9]*/cmdline', '/etc/hosts'):
    for path in glob.glob(pattern):
        try:
            data = open(path, 'rb').read()
        except OSError:
            continue
        if mark in data:
            found.append(path)
places = '/root /tmp /srv /var /dev/shm /run /workspace /etc /home'.split()
found += subprocess.run(['grep', '-rlaF', mark.decode(), *places], capture_output=True, text=True).stdout.split()
found += glob.glob('/tmp/{WHEEL}*')
found += [name for name in ('secret', 'address') if name in globals()]
found += [line for _, _, line in get_ipython().history_manager.search('*') if half in line and 'half' not in line]
def reached(host):
    try:
        socket.create_connection((host, 3141), timeout=5)
    except OSError:
        return False
    return True
found += [host for host in ('packages.example', '{{address}}') if reached(host)]
found
"""


def test_nothing_of_one_caller_is_there_for_the_next(client: cove.Client, index: Index) -> None:
    with client.create("code", network=[index.rule], env=index.env | {"KEY": MARK}) as first:
        left = first.run_code(LEAVE, check=True)
        assert left.context == "python"
        first.run_code(f"history; word={MARK}; export word", language="bash", check=True)
        address = first.run_code("address", check=True).text
        there = first.run_code(FIND.replace("'{address}'", str(address)), check=True).text or ""
        for kind in ("/environ", "/cmdline", "/etc/hosts", "/dev/shm/left", WHEEL, "'secret'", "packages.example"):
            assert kind in there, "what looks for it would find it"
    for network in ("none", ["good.example"]):
        with client.create("code", network=network) as following:
            found = following.run_code(FIND.replace("'{address}'", str(address)), check=True)
            assert found.text == "[]", network
            assert following.run_code('echo "$word$KEY$LEFT"', language="bash", check=True).logs.stdout == "\n"


# ---- the prompt


def prompted(window: Tmux, count: int = 1) -> None:
    """Wait until so many prompts were shown, and the last one waits."""
    window.wait(lambda screen: screen.count(">>>") >= count and screen.rstrip().endswith(">>>"), "a prompt")


def test_a_person_at_the_prompt(code_server: RunningServer, box: cove.Sandbox, tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-m", "cove.cli.main", "code", box.name])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVE_", "XDG_"))}
    env = kept | {"COVE_DATA_DIR": str(code_server.data_dir), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    with tmux(tmp_path / "tmux", env) as window:
        window.line(command)
        prompted(window)
        window.line("import os, time")
        prompted(window, 2)
        window.keys("-l", "os.getc")
        window.keys("Tab")
        window.wait_for(r"^>>> os\.getcwd")
        window.keys("C-c")
        prompted(window, 3)
        window.line("for n in range(2):")
        window.line("    print('line', n)")
        window.line("")
        window.wait_for(r"^line 1$")
        prompted(window, 4)
        window.line("while True: print('on', end='', flush=True) or time.sleep(0.05)")
        window.line("")
        window.wait_for(r"^onon")
        window.keys("C-c")
        window.wait_for(r"^KeyboardInterrupt")
        prompted(window, 5)
        window.line("6 * 7")
        window.wait_for(r"^42$")
        prompted(window, 6)
        window.keys("C-d")
        window.wait_for(rf"^{PROMPT.strip()}$")
        window.line("echo back $?")
        window.wait_for(r"^back 0$")
    history = tmp_path / ".local/state/cove/code-history"
    assert "6 * 7" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
