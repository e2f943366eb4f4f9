"""Names of images: what Docker means by them, and nothing that is not one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.errors import BadRequest
from cove.model.reference import MAX_LENGTH, Reference, check_registry, parse_local, parse_reference

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("GHCR.io/team/app:V1", "ghcr.io/team/app:V1"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine:3@{DIGEST}"),
        ("a__b/c-d.e--f", "docker.io/a__b/c-d.e--f:latest"),
    ],
)
def test_a_name_is_normalised_as_docker_does(text: str, canonical: str) -> None:
    parsed = parse_reference(text)
    assert str(parsed) == canonical
    assert parse_reference(canonical) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", "Alpine", "alpine:", "alpine@", "alpine:a b", "alpine@sha256:12", "alpine@md5:" + "0" * 32,
        f"alpine@{DIGEST.upper()}", "a//b", "/a", "a/", "a/../b", "../etc", "a___b", "-a", "a.", "http://host/a",
        "host.example:99999/a", "host.example:0/a", "host.example:08/a", "host..example/a", "-host.example/a",
        "[::1]/a/", "[fe80::1%eth0]/a", "[nonsense.x]/a", "a\nb", "a\0b", "ä", "alpine:ä", "a" * 256, ":tag",
        "host.example/", f"a:{'t' * 129}", "x" * (MAX_LENGTH + 1), "\uff11\uff12.0.0.1/a", "alpine:latest\n",
        "user@host.example/a",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_reference(text)
    assert caught.value.field == "image"


def test_the_default_registry_is_the_operators() -> None:
    assert str(parse_reference("alpine", default_registry="mirror.example:5000")) == "mirror.example:5000/alpine:latest"


def test_an_image_made_here_is_found_by_its_short_and_its_full_name() -> None:
    assert str(parse_local("mine")) == "localhost/mine:latest"
    assert parse_local("localhost/mine:v1") == parse_local("mine:v1")
    assert parse_local("team/mine").is_local
    with pytest.raises(BadRequest):
        parse_local(f"mine@{DIGEST}")


@pytest.mark.parametrize("text", ["", "a b", "host:0", "host:x", "http://host", "a/b", "*"])
def test_a_registry_in_a_setting_must_be_a_host(text: str) -> None:
    with pytest.raises(BadRequest):
        check_registry(text)


names = st.from_regex(r"[a-z0-9]{1,9}([._-][a-z0-9]{1,9}){0,2}", fullmatch=True)


@given(
    registry=st.sampled_from(["ghcr.io", "host.example:5000", "127.0.0.1:80", "[2001:db8::1]:5000", "localhost"]),
    path=st.lists(names, min_size=1, max_size=4).map("/".join),
    tag=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.none() | st.just(DIGEST),
)
def test_every_reference_survives_its_own_text(registry: str, path: str, tag: str | None, digest: str | None) -> None:
    tag = "latest" if tag is None and digest is None else tag
    reference = Reference(registry=registry, path=path, tag=tag, digest=digest)
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=80))
def test_any_text_is_either_a_reference_or_a_bad_request(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except BadRequest:
        return
    assert parse_reference(str(parsed)) == parsed
    assert ".." not in str(parsed).split("/")
    assert str(parsed).isascii()
    assert str(parsed).isprintable()


@pytest.mark.parametrize(
    ("text", "default", "familiar"),
    [
        ("alpine", "docker.io", "alpine:latest"),
        ("docker.io/library/node:22", "docker.io", "node:22"),
        ("team/app:1", "docker.io", "team/app:1"),
        ("quay.example/team/app:1", "docker.io", "quay.example/team/app:1"),
        ("docker.io/node:22", "mirror.example:5000", "docker.io/library/node:22"),
        ("mirror.example:5000/node:22", "mirror.example:5000", "node:22"),
    ],
)
def test_the_familiar_form_means_the_same(text: str, default: str, familiar: str) -> None:
    parsed = parse_reference(text, default_registry=default)
    assert parsed.familiar(default) == familiar
    assert parse_reference(familiar, default_registry=default) == parsed
