# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN204 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time

import pytest


@pytest.fixture
def folder(server, box, tmp_path):
    """A directory inside the sandbox."""
    path = f"/tmp/tree{os.getpid()}-{tmp_path.name}"
    assert server.client.post(f"/sandboxes/{box}/files/mkdir", json={"path": path, "parents": True}).status_code == 200
    yield path
    server.client.delete(f"/sandboxes/{box}/files", params={"path": path, "recursive": "true"})


@pytest.fixture
def files(server, box, folder):
    """Calls on the files of one sandbox, with paths below the folder."""
    return Calls(server.client, f"/sandboxes/{box}", folder)


class Calls:
    def __init__(self, client, box, folder):
        self.client, self.box, self.folder = client, box, folder

    def write(self, name, data=b"", **query):
        answer = self.client.put(
            f"{self.box}/files/content", params={"path": f"{self.folder}/{name}", **query}, content=data
        )
        assert answer.status_code == 200, answer.text

    def read(self, name):
        answer = self.client.get(f"{self.box}/files/content", params={"path": f"{self.folder}/{name}"})
        assert answer.status_code == 200, answer.text
        return answer.content

    def stat(self, name):
        return self.client.get(f"{self.box}/files", params={"path": f"{self.folder}/{name}"}).json()

    def run(self, command):
        answer = self.client.post(f"{self.box}/exec", json={"command": f"cd {self.folder}; {command}", "timeout_s": 60})
        assert answer.json()["exit_code"] == 0, answer.text
        return answer.json()["stdout"]

    def lines(self, what, **query):
        answer = self.client.get(f"{self.box}/files/{what}", params={"path": self.folder, **query})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/x-ndjson"
        *found, last = [json.loads(line) for line in answer.text.split("\n") if line]
        return found, last["end"]

    def find(self, **query):
        found, end = self.lines("find", **query)
        return [one["path"].removeprefix(self.folder + "/") for one in found], end

    def post(self, what, **body):
        return self.client.post(f"{self.box}/files/{what}", json={"path": self.folder, **body})

    def pack(self, **query):
        answer = self.client.get(f"{self.box}/files/archive", params={"path": self.folder, **query})
        assert answer.status_code == 200, answer.text
        return answer

    def unpack(self, data, name="in", **query):
        return self.client.put(
            f"{self.box}/files/archive", params={"path": f"{self.folder}/{name}", **query}, content=data
        )


def archive(*members, **options):
    """A tar of (name, kind, content or target) members."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **options) as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o644
            if kind == tarfile.REGTYPE:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content
                tar.addfile(member)
    return made.getvalue()


FILE, DIR, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_a_tree_is_listed_with_depth_globs_and_kinds(files):
    for name in ("a.py", "src/b.py", "src/deep/er/c.py", "src/d.txt", "node_modules/x.py"):
        files.write(name, b"x")
    files.run("ln -s /nowhere src/dangling; ln -s . loop")
    everything, end = files.find()
    assert everything == [
        *("a.py", "loop", "node_modules", "node_modules/x.py", "src", "src/b.py", "src/d.txt", "src/dangling"),
        *("src/deep", "src/deep/er", "src/deep/er/c.py"),
    ]
    assert end == {"entries": 11, "unreadable": 0, "stopped": None}
    assert files.find(glob="*.py", exclude="node_modules")[0] == ["a.py", "src/b.py", "src/deep/er/c.py"]
    assert files.find(glob="src/*.py")[0] == ["src/b.py"]
    assert files.find(glob="src/**/*.{py,txt}")[0] == ["src/b.py", "src/d.txt", "src/deep/er/c.py"]
    assert files.find(depth=1)[0] == ["a.py", "loop", "node_modules", "src"]
    links, _ = files.lines("find", kind="symlink")
    assert [(one["name"], one["kind"], one["target"]) for one in links] == [
        ("loop", "symlink", "."),
        ("dangling", "symlink", "/nowhere"),
    ]
    assert files.find(limit=2) == (["a.py", "loop"], {"entries": 2, "unreadable": 0, "stopped": "limit"})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"path": "relative"}, "path"),
        ({"path": "/a/../b"}, "path"),
        ({"depth": 2000}, "depth"),
        ({"glob": ""}, "glob"),
        ({"glob": "x" * 2000}, "glob"),
        ({"glob": ["x"] * 65}, "glob"),
        ({"kind": "socket"}, "kind"),
        ({"timeout_s": 0.1}, "timeout_s"),
        ({"what": "1"}, "what"),
    ],
)
def test_a_wrong_question_is_refused_by_name(server, box, query, field):
    answer = server.client.get(f"/sandboxes/{box}/files/find", params={"path": "/tmp", **query})
    assert answer.status_code in {400, 413}, answer.text
    assert answer.json()["field"] == field


def test_what_is_not_there_is_a_status_and_no_stream(server, box):
    for what, more in (("find", {}), ("search", {"pattern": "x"}), ("usage", {}), ("archive", {})):
        answer = server.client.get(f"/sandboxes/{box}/files/{what}", params={"path": "/no/such", **more})
        assert (answer.status_code, answer.json()["reason"]) == (404, "not_found"), what


def test_content_is_searched_by_regex_and_by_text(files):
    files.write("a.txt", b"one\ntwo TWO\nthr[e]e\n\xffbad utf8\n")
    files.write("sub/b.txt", b"x = 1\r\ntwo = 2\r\n")
    files.write("binary", b"two\0two")
    found, end = files.lines("search", pattern="^t(wo|hr)")
    assert [(one["path"].removeprefix(files.folder), one["line"], one["column"], one["text"]) for one in found] == [
        ("/a.txt", 2, 1, "two TWO"),
        ("/a.txt", 3, 1, "thr[e]e"),
        ("/sub/b.txt", 2, 1, "two = 2"),
    ]
    assert end == {"matches": 3, "files": 2, "binary": 1, "too_large": 0, "unreadable": 0, "stopped": None}
    assert [one["line"] for one in files.lines("search", pattern="[e]", literal=True)[0]] == [3]
    assert [one["column"] for one in files.lines("search", pattern="TWO$")[0]] == [5]
    assert len(files.lines("search", pattern="two", ignore_case=True, glob="sub/*")[0]) == 1
    assert [one["text"] for one in files.lines("search", pattern="1$")[0]] == ["x = 1"]
    assert [one["text"] for one in files.lines("search", pattern="bad")[0]] == ["\ufffdbad utf8"]
    assert files.lines("search", pattern="o", limit=1)[1]["stopped"] == "limit"
    assert files.lines("search", pattern="o", max_file_bytes=20)[1]["too_large"] == 1
    one_file = files.lines("search", pattern="x", path=f"{files.folder}/sub/b.txt")[0]
    assert [one["line"] for one in one_file] == [1]


def test_a_long_line_is_cut_around_its_match(files):
    files.write("minified", b"a" * 300_000 + "é".encode() * 100 + b"needle" + b"b" * 300_000 + b"\nneedle\n")
    found, _ = files.lines("search", pattern="needle", max_line_bytes=64)
    assert [(one["line"], one["cut"], "needle" in one["text"], len(one["text"]) <= 64) for one in found] == [
        (1, True, True, True),
        (2, False, True, True),
    ]
    assert found[0]["column"] == 300_201


def test_a_pattern_that_is_none_or_too_large_is_refused(files):
    for pattern in ("(", "a{1001}", "((a{100}){10}){10}", r"\p{L}{1000}\w{1000}x{900}"):
        answer = files.client.get(f"{files.box}/files/search", params={"path": files.folder, "pattern": pattern})
        assert answer.status_code == 400, pattern
        assert "pattern" in answer.json()["detail"]


def test_replacing_keeps_mode_and_owner_and_tells_what_it_did(files):
    files.write("a.py", b"import old\nold.go()\n", mode="0750")
    files.write("b.py", b"nothing\n")
    files.write("c.bin", b"old\0")
    planned = files.post("replace", pattern=r"\bold\b", replacement="new", dry_run=True).json()
    assert files.read("a.py") == b"import old\nold.go()\n"
    done = files.post("replace", pattern=r"\bold\b", replacement="new").json()
    assert (
        done
        == planned
        == {
            "files": [{"path": f"{files.folder}/a.py", "replacements": 2}],
            "replacements": 2,
            "searched": 2,
            "binary": 1,
            "too_large": 0,
            "unreadable": 0,
            "stopped": None,
        }
    )
    assert files.read("a.py") == b"import new\nnew.go()\n"
    assert files.stat("a.py")["mode"] == "0750"
    assert files.read("c.bin") == b"old\0"


def test_replacing_knows_groups_literals_and_line_ends(files):
    files.write("a", b"key = value\r\nother = thing\r\n")
    files.post("replace", pattern=r"(\w+) = (\w+)$", replacement="${2}=$1")
    assert files.read("a") == b"value=key\r\nthing=other\r\n"
    files.post("replace", pattern="key\r\nthing", replacement="$1", literal=True)
    assert files.read("a") == b"value=$1=other\r\n"
    files.post("replace", pattern="VALUE", replacement="$1", literal=True, ignore_case=True)
    assert files.read("a") == b"$1=$1=other\r\n"
    files.post("replace", pattern="^", replacement="> ", path=f"{files.folder}/a")
    assert files.read("a") == b"> $1=$1=other\r\n"


def test_one_file_that_cannot_be_rewritten_is_an_error(files):
    files.write("big", b"x" * 100)
    refused = files.post("replace", path=f"{files.folder}/big", pattern="x", replacement="y", max_file_bytes=10)
    assert (refused.status_code, refused.json()["reason"]) == (413, "too_large")
    assert files.post("replace", path=f"{files.folder}/none", pattern="x", replacement="y").status_code == 404
    assert files.post("replace", pattern="x", replacement="y", max_file_bytes=10).json()["too_large"] == 1
    bomb = files.post("replace", pattern="x", replacement="y" * 1_000_000, literal=True)
    assert bomb.json()["too_large"] == 1
    assert files.read("big") == b"x" * 100


def test_usage_counts_a_file_with_several_names_once(files):
    files.write("a/one", b"x" * 10_000)
    files.write("a/two", b"y" * 5)
    files.run("ln a/one a/again; ln -s one a/soft; mkfifo a/pipe; truncate -s 1T a/sparse")
    used = files.client.get(f"{files.box}/files/usage", params={"path": f"{files.folder}/a"}).json()
    assert used["bytes"] == 10_005 + 1024**4
    assert used["allocated_bytes"] < 1024**2
    assert (used["files"], used["directories"], used["symlinks"], used["others"]) == (3, 0, 1, 1)


def test_a_directory_goes_out_as_a_tar_and_comes_back(files):
    files.write("out/a", b"A" * 300_000, mode="0750")
    files.write("out/sub/" + "long" * 40, b"L")
    files.run("cd out; ln -s a link; ln a hard; mkfifo pipe; mkdir empty; touch -d @1000000000 a")
    for packed in (False, True):
        answer = files.pack(path=f"{files.folder}/out", gzip=str(packed).lower())
        assert answer.headers["content-type"] == ("application/gzip" if packed else "application/x-tar")
        data = gzip.decompress(answer.content) if packed else answer.content
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert sorted(tar.getnames()) == sorted([".", "a", "empty", "hard", "link", "sub", "sub/" + "long" * 40])
            assert tar.extractfile("hard").read() == b"A" * 300_000
            assert tar.getmember("link").linkname == "a"
        back = files.unpack(answer.content, name=f"back{packed}")
        assert back.json() == {"entries": 7, "bytes": 300_001}, back.text
        assert files.read(f"back{packed}/link") == b"A" * 300_000
        info = files.stat(f"back{packed}/a")
        assert (info["mode"], info["mtime"][:10]) == ("0750", "2001-09-09")
        assert files.run(f"stat -c %h back{packed}/hard") == "2\n"
    with tarfile.open(fileobj=io.BytesIO(files.pack(exclude="b*").content)) as tar:
        assert sorted(tar.getnames())[:3] == [".", "out", "out/a"]


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("/etc/evil", FILE, b"x")], "absolute"),
        ([("../evil", FILE, b"x")], ".."),
        ([("a/../../evil", FILE, b"x")], ".."),
        ([("null", tarfile.CHRTYPE, "")], "neither"),
        ([("disk", tarfile.BLKTYPE, "")], "neither"),
        ([("pipe", tarfile.FIFOTYPE, "")], "neither"),
        ([("out", LINK, "/etc")], "leads out"),
        ([("out", LINK, "../x")], "leads out"),
        ([("a/out", LINK, "../../x")], "leads out"),
        ([("a/out", LINK, "b/../../../x")], "leads out"),
        ([("shadow", HARD, "/etc/shadow")], "absolute"),
        ([("shadow", HARD, "../../etc/shadow")], ".."),
        ([("d", LINK, "."), ("d/evil", FILE, b"x")], "through a link"),
        ([("f", FILE, b"x"), ("f/evil", FILE, b"x")], "through a link or a file"),
    ],
)
def test_members_that_reach_outside_are_refused(files, members, word):
    answer = files.unpack(archive(("ok", FILE, b"fine"), *members))
    assert answer.status_code in {400, 409}, answer.text
    assert word in answer.json()["detail"]
    assert files.read("in/ok") == b"fine"
    assert "evil" not in files.run("find . -name 'evil*'")


def test_a_link_on_the_way_is_not_followed_even_if_it_was_there_before(files):
    files.run(
        "mkdir in outside; ln -s ../outside in/d; echo old > outside/f; ln outside/f in/f; ln -s ../outside/f in/l"
    )
    assert files.unpack(archive(("d/x", FILE, b"new"))).status_code == 409
    assert files.unpack(archive(("f", FILE, b"new"), ("l", FILE, b"new"))).status_code == 200
    assert files.run("cat outside/f; ls outside") == "old\nf\n"
    assert files.read("in/f") == files.read("in/l") == b"new"


def test_unpacking_keeps_special_bits_and_owners_only_if_asked(files):
    member = tarfile.TarInfo("tool")
    member.mode, member.uid, member.gid, member.size = 0o4755, 1234, 2345, 1
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(member, io.BytesIO(b"x"))
    assert files.unpack(made.getvalue()).status_code == 200
    assert (files.stat("in/tool")["mode"], files.stat("in/tool")["uid"]) == ("0755", 0)
    assert files.unpack(made.getvalue(), owners=True, special=True).status_code == 200
    found = files.stat("in/tool")
    assert (found["mode"], found["uid"], found["gid"]) == ("4755", 1234, 2345)
    assert files.unpack(made.getvalue(), owner="nobody", group="5").status_code == 200
    assert (files.stat("in/tool")["uid"], files.stat("in/tool")["gid"]) == (65534, 5)
    refused = files.unpack(made.getvalue(), owner="no-such-user")
    assert (refused.status_code, "no such user" in refused.json()["detail"]) == (400, True)


def test_what_is_no_archive_is_told_apart(files):
    whole = archive(("a", FILE, b"x" * 100_000))
    for data, word in (
        (b"", "empty"),
        (b"hello" * 1000, "no tar archive"),
        (whole[:50_000], "in the middle"),
        (gzip.compress(whole)[:-20], "in the middle"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "gzip or not at all"),
        (b"\x1f\x8b" + bytes(100), "damaged"),
    ):
        answer = files.unpack(data)
        assert (answer.status_code in {400, 501}, word in answer.json()["detail"]) == (True, True), answer.text
    assert files.unpack(whole, max_bytes=1000).status_code == 413
    assert files.run("find in -type f | wc -l") == "0\n"


def test_a_sparse_member_of_8_eib_is_refused(files):
    member = tarfile.TarInfo("giant")
    member.size = 0
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "giant",
        "GNU.sparse.realsize": str(2**63 - 1),
    }
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    started = time.monotonic()
    assert files.unpack(made.getvalue()).status_code in {400, 501}
    lying = bytearray(archive(("a", FILE, b"x" * 600), format=tarfile.GNU_FORMAT))
    lying[124:136] = b"\x80" + bytes(3) + (2**62).to_bytes(8, "big")
    lying[148:156] = b"        "
    lying[148:156] = b"%06o\0 " % sum(lying[:512])
    answer = files.unpack(bytes(lying))
    assert "in the middle" in answer.json()["detail"]
    assert time.monotonic() - started < 60


def test_links_are_made_and_shown_as_such(files):
    files.write("a", b"A")
    made = files.post("link", path=f"{files.folder}/soft", target="a").json()
    assert (made["kind"], made["target"]) == ("symlink", "a")
    assert files.post("link", path=f"{files.folder}/soft", target="b").json()["reason"] == "exists"
    assert files.post("link", path=f"{files.folder}/soft", target="b", overwrite=True).json()["target"] == "b"
    hard = files.post("link", path=f"{files.folder}/x/hard", target=f"{files.folder}/a", hard=True, parents=True)
    assert hard.json()["kind"] == "file"
    assert files.run("stat -c %h a") == "2\n"
    assert files.post("link", path=f"{files.folder}/d", target=files.folder, hard=True).status_code == 409
    again = files.post("link", path=f"{files.folder}/x/hard", target=f"{files.folder}/a", hard=True, overwrite=True)
    assert again.status_code == 200
    assert files.run("ls -A x") == "hard\n"


def test_attributes_go_by_name_and_for_whole_trees(files):
    files.write("t/a", b"1")
    files.write("t/sub/b", b"2")
    files.run("ln -s /etc/passwd t/link")
    before = files.run("stat -c %a:%u /etc/passwd")
    change = {"owner": "nobody", "group": "nogroup", "mode": "0640", "directory_mode": "0750", "recursive": True}
    answer = files.client.patch(f"{files.box}/files", json={"path": f"{files.folder}/t", **change})
    assert (answer.status_code, answer.json()["mode"]) == (200, "0750"), answer.text
    assert files.run("find t -printf '%p %m %U %y\\n' | sort").splitlines() == [
        "t 750 65534 d", "t/a 640 65534 f", "t/link 777 65534 l", "t/sub 750 65534 d", "t/sub/b 640 65534 f",
    ]  # fmt: skip
    assert files.run("stat -c %a:%u /etc/passwd") == before
    for bad in ({"owner": "nobody", "uid": 0}, {"owner": "no-such"}, {"owner": "a:b"}, {"directory_mode": "0700"}):
        answer = files.client.patch(f"{files.box}/files", json={"path": f"{files.folder}/t", **bad})
        assert answer.status_code == 400, bad


def test_a_synced_write_is_a_write(files):
    files.write("safe", b"data", sync="true")
    assert files.read("safe") == b"data"


def test_odd_names_are_safe_in_lines(files):
    names = ["line\nbreak", "bidi\u202etxt", "<script>", "quote\"'", "x" * 255, "\u2028sep"]
    for name in names:
        files.write(name)
    files.run("touch \"$(printf 'bad\\377utf8')\"")
    assert sorted(files.find()[0]) == sorted([*names, "bad\ufffdutf8"])


def test_leaving_a_search_early_stops_the_agent(files):
    files.run("mkdir many; head -c 2000000 /dev/zero | tr '\\0' x | fold -w 50 > many/1")
    files.run("cd many; for i in $(seq 2 40); do ln 1 $i; done")
    query = {"path": files.folder, "pattern": "(x+x+)+y|x", "limit": 0}
    with files.client.stream("GET", f"{files.box}/files/search", params=query) as answer:
        assert answer.status_code == 200
        next(answer.iter_raw())
    started = time.monotonic()
    assert files.find(depth=1)[1]["stopped"] is None
    assert time.monotonic() - started < 30


def test_a_walk_ends_at_its_time(server, box):
    started = time.monotonic()
    query = {"path": "/", "pattern": "(a|b|ab)*c{500}(x|y){300}", "timeout_s": 1, "limit": 0}
    answer = server.client.get(f"/sandboxes/{box}/files/search", params=query)
    last = json.loads(answer.text.strip().split("\n")[-1])
    assert time.monotonic() - started < 45
    assert last["end"]["stopped"] in {"timeout", None}


def test_a_list_whose_sandbox_ends_says_so_in_its_last_line(server, box):
    mortal, path = server.sandbox()["id"], f"/tmp/many{os.getpid()}"
    command = f"mkdir {path}; cd {path}; seq -f %0200g 25000 | xargs touch"
    server.client.post(f"/sandboxes/{mortal}/exec", json={"command": command, "timeout_s": 60})
    with server.client.stream("GET", f"/sandboxes/{mortal}/files/find", params={"path": path}) as answer:
        pieces = answer.iter_lines()
        assert json.loads(next(pieces))["kind"] == "file"
        server.client.delete(f"/sandboxes/{mortal}")
        last = [line for line in pieces if line][-1]
    assert json.loads(last)["error"]["code"] in {"sandbox-gone", "gone"}
    server.client.delete(f"/sandboxes/{box}/files", params={"path": path, "recursive": "true"})  # of the fake driver
