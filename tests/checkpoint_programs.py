"""Small programs that each hold one kind of thing over a checkpoint, and say afterwards whether it is as it was.

Each calls `kept()` where the checkpoint may come; what stands behind it must hold in the source and in every copy.
A program that ends without an error has written `ok` into `/tmp/res/<its name>`.
"""

from __future__ import annotations

from typing import Final

COMMON: Final = """
import ctypes, fcntl, mmap, os, select, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
name = sys.argv[1]
home = "/tmp/" + name
os.makedirs(home, exist_ok=True)
os.makedirs("/tmp/res", exist_ok=True)
os.chdir(home)

def kept():
    open("/tmp/res/" + name, "w").write("ready")
    while not os.path.exists("/tmp/go"):
        time.sleep(0.05)

"""

KEPT: Final = {
    "deleted": """
f = open("d", "w+b"); f.write(b"x" * 3_000_000); f.flush(); os.unlink("d")
g = os.open(".", os.O_TMPFILE | os.O_RDWR); os.write(g, b"abc")
open("a", "w").write("A"); os.link("a", "b"); h = open("a"); os.unlink("a")
kept()
f.seek(0); assert f.read() == b"x" * 3_000_000
os.lseek(g, 0, 0); assert os.read(g, 9) == b"abc"
assert h.read() == "A" and os.listdir(".") == ["b"], os.listdir(".")""",
    "memory": """
m = mmap.mmap(-1, 8192); p = os.fork()
if p == 0:
    while m[0] != 1: time.sleep(0.01)
    m[1] = 2; os._exit(0)
f = open("mapped", "w+b"); f.truncate(1 << 16); n = mmap.mmap(f.fileno(), 1 << 16); n[:3] = b"abc"; os.unlink("mapped")
s = os.memfd_create("m", 2); os.write(s, b"hello"); fcntl.fcntl(s, 1033, 0xF)
kept()
m[0] = 1; os.waitpid(p, 0); assert m[1] == 2
assert n[:3] == b"abc"
os.lseek(s, 0, 0); assert os.read(s, 5) == b"hello" and fcntl.fcntl(s, 1034) == 0xF""",
    "sockets": """
s = socket.socket(); s.bind(("127.0.0.1", 5000)); s.listen()
c = socket.create_connection(("127.0.0.1", 5000)); d = s.accept()[0]
a, b = socket.socketpair(); a.send(b"q")
u = socket.socket(1); u.bind("u"); u.listen(); v = socket.socket(1); v.connect("u"); w = u.accept()[0]; v.send(b"z")
o = socket.socket(2, 2); o.bind(("127.0.0.1", 5001)); i = socket.socket(2, 2); i.connect(("127.0.0.1", 5001))
kept()
assert b.recv(9) == b"q" and w.recv(9) == b"z"
i.send(b"2"); o.settimeout(5); assert o.recv(9) == b"2"
c2 = socket.create_connection(("127.0.0.1", 5000)); e = s.accept()[0]; c2.send(b"n"); assert e.recv(1) == b"n"
e = socket.socket(1); e.connect("u")
try:
    c.send(b"x"); d.settimeout(5); got = d.recv(9)
except OSError as error:
    got = error
open("/tmp/connection", "w").write(repr(got))""",
    "watch": """
os.makedirs("sub"); fd = libc.inotify_init1(0)
assert libc.inotify_add_watch(fd, os.path.abspath("sub").encode(), 0x100) > 0
assert libc.inotify_add_watch(fd, b"/etc", 0x100) > 0
kept()
open("sub/new", "w"); assert b"new" in os.read(fd, 1000)""",
    "locks": """
f = open("l", "w"); fcntl.flock(f, 2); g = open("p", "w"); fcntl.lockf(g, 2)
kept()
assert subprocess.run(["flock", "-n", "l", "true"]).returncode == 1""",
    "events": """
e = select.epoll(); r, w = os.pipe(); e.register(r, 1); v = libc.eventfd(3, 0); t = libc.timerfd_create(1, 0)
libc.timerfd_settime(t, 0, struct.pack("qqqq", 0, 50_000_000, 0, 50_000_000), None)
ticks = [0]; signal.signal(14, lambda *_: ticks.__setitem__(0, ticks[0] + 1)); signal.setitimer(0, 0.05, 0.05)
os.mkfifo("f"); q = os.open("f", os.O_RDWR); os.write(q, b"zz")
kept()
seen = ticks[0]; time.sleep(0.5); assert ticks[0] > seen + 2
assert struct.unpack("Q", os.read(v, 8)) == (3,) and os.read(t, 8)
os.write(w, b"x"); assert e.poll(1) and os.read(q, 2) == b"zz" """,
    "jobs": """
p = subprocess.Popen(["sleep", "100"]); os.kill(p.pid, 19); z = os.fork()
if z == 0: os._exit(7)
x = subprocess.Popen(["setsid", "sh", "-c", "sleep 101 & sleep 0"]); x.wait()
kept()
assert open(f"/proc/{p.pid}/stat").read().split()[2] == "T"
os.kill(p.pid, 18); time.sleep(0.1); assert open(f"/proc/{p.pid}/stat").read().split()[2] == "S"
assert os.waitpid(z, 0)[1] == 7 << 8; p.kill()""",
    "terminal": """
import pty
a, b = pty.openpty()
p = subprocess.Popen(["bash", "-i"], stdin=b, stdout=b, stderr=b, start_new_session=True,
                     preexec_fn=lambda: fcntl.ioctl(0, 0x540E, 0))
time.sleep(0.5); os.write(a, b"X=41\\n"); time.sleep(0.3)
kept()
os.read(a, 65536); os.write(a, b"echo r$((X+1))\\n"); said = b""
while b"r42" not in said: said += os.read(a, 65536)
p.kill()""",
    "user": """
os.chmod("/tmp/res", 0o1777); os.chown(home, 1000, 1000); os.chmod(home, 0o700)
open("/tmp/res/" + name, "w").close(); os.chown("/tmp/res/" + name, 1000, 1000)
os.setgroups([5, 1000]); os.setgid(1000); os.setuid(1000); os.nice(5); f = open("mine", "w")
kept()
assert os.getuid() == 1000 and os.getgroups() == [5, 1000] and os.nice(0) == 5; f.write("x")""",
    "shared": """
libc.shmat.restype = ctypes.c_void_p; i = libc.shmget(0x1234, 65536, 0o1666); p = libc.shmat(i, None, 0)
ctypes.memmove(p, b"hey", 3)
open("/dev/shm/seg", "wb").write(b"s" * 100_000)
kept()
assert ctypes.string_at(p, 3) == b"hey" and libc.shmget(0x1234, 65536, 0o666) == i
assert open("/dev/shm/seg", "rb").read() == b"s" * 100_000""",
    "time": """
m, b = time.monotonic(), time.clock_gettime(7)
sleeper = threading.Thread(target=time.sleep, args=(1,)); sleeper.start()
kept()
assert 0 < time.monotonic() - m < 60 and 0 < time.clock_gettime(7) - b < 60
sleeper.join(5); assert not sleeper.is_alive()""",
    "filter": """
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 0xFFFF), (6, 0, 0, 0x00050001), (6, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", 4, ctypes.addressof(program))) == 0, ctypes.get_errno()
kept()
assert "Seccomp_filters:\\t2" in open("/proc/self/status").read()""",
}
"""By name: what programs do, and what must hold of it afterwards."""

REFUSED: Final = {
    "lost its leader": """
libc.prctl(36, 1)
subprocess.run(["setsid", "sh", "-c", "sleep 101 & sleep 0"])
kept()""",
    "traced": """
child = os.fork()
if child == 0:
    libc.ptrace(0, 0, 0, 0); os.kill(os.getpid(), 19); time.sleep(100)
os.waitpid(child, 2)
kept()""",
    "has opened /dev/tty": """
import pty
pid, fd = pty.fork()
if pid == 0:
    if os.fork() == 0:
        tty = os.open("/dev/tty", os.O_RDWR); time.sleep(100)
    time.sleep(100)
time.sleep(0.3)
kept()""",
    "has something open": """
fd = libc.syscall(444, struct.pack("Q", 2), 8, 0); assert fd >= 0
kept()""",
}
"""By a word of the reason: what criu cannot keep."""
