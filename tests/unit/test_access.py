"""Tokens and certificates from mounted files: what they say, what is refused, and that no message shows a secret."""

import json
from pathlib import Path

import pytest

from retinue.access.files import Refreshed, RotatingFile, Rotation, ServingCertificate, Unusable, read_single_token
from retinue.access.tokens import BadTokens, bearer_token, read_tenants, read_token_lines

from ..certificates import write_pair

A, B, C = (f"{letter}-token-0123456789" for letter in "abc")


def tenants(*entries: object) -> str:
    return json.dumps({"tenants": entries})


def test_each_token_of_a_tenant_names_it_with_its_namespaces() -> None:
    book = read_tenants(
        f"tenants:\n- name: one\n  namespaces: [agents, batch]\n  tokens: [{A}, {B}]\n"
        f"- name: two\n  namespaces: ['*']\n  tokens: [{C}]\n  cacheGroup: shared\n"
    )
    one, two = book.find(A), book.find(C)
    assert one is not None
    assert two is not None
    assert book.find(B) == one
    assert (one.name, one.may_use("batch"), one.may_use("other")) == ("one", True, False)
    assert (two.cache_group, two.may_use("anything")) == ("shared", True)
    assert book.find(A[:-1]) is None
    assert book.find("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list with at least one entry"),
        ("tenants: []", "list with at least one entry"),
        (f"tenants: [{A}\n: {B}", "neither YAML nor JSON at line"),
        (tenants(A), r"tenants\[0\] must be an object"),
        (tenants({"name": "one", "namespaces": ["a"], "tokens": [A], A: 1}), "1 unknown fields; known are cacheGroup"),
        (tenants({"name": "One", "namespaces": ["a"], "tokens": [A]}), r"tenants\[0\].name must be 1 to 63 lower-case"),
        (tenants({"name": "one", "namespaces": [], "tokens": [A]}), r"tenants\[0\].namespaces must be a list"),
        (tenants({"name": "one", "namespaces": ["a", "*"], "tokens": [A]}), r"namespaces\[1\] must be"),
        (tenants({"name": "one", "namespaces": ["a"], "tokens": []}), r"tokens must hold at least one"),
        (tenants({"name": "one", "namespaces": ["a"], "tokens": [A[:9]]}), r"tokens\[0\] must be a text of 16 to 512"),
        (tenants({"name": "one", "namespaces": ["a"], "tokens": [A + " x"]}), r"tokens\[0\] holds a character"),
        (tenants({"name": "one", "namespaces": ["a"], "tokens": [A, A]}), "the same token is there twice"),
        (tenants(*({"name": "one", "namespaces": ["a"], "tokens": [t]} for t in (A, B))), "two tenants 'one'"),
    ],
)
def test_a_file_of_tenants_that_is_wrong_is_refused_and_its_tokens_are_not_shown(text: str, message: str) -> None:
    with pytest.raises(BadTokens, match=message) as refused:
        read_tenants(text)
    assert not any(secret[:9] in str(refused.value) for secret in (A, B, C))


def test_token_lines_may_have_comments_and_more_than_one_token() -> None:
    book = read_token_lines(f"# in use\n{A}\n\n# until Friday\n{B}\n")
    assert (len(book), book.find(A), book.find(B), book.find(C)) == (2, True, True, None)


@pytest.mark.parametrize(
    ("header", "token"),
    [(None, None), ("", None), ("Bearer", None), ("bearer x", "x"), ("Bearer  x ", "x"), ("Basic x", None)],
)
def test_only_the_bearer_scheme_carries_a_token(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token


def test_a_file_is_read_again_when_it_changed_and_what_was_good_stays_in_use(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(A)
    rotating = RotatingFile(file, read_token_lines)
    assert not rotating.refresh()
    file.write_text(B)
    assert rotating.refresh()
    assert (rotating.value.find(A), rotating.value.find(B)) == (None, True)
    file.write_text("short")
    with pytest.raises(Unusable, match=r"tokens: tokens\[0\] must be a text"):
        rotating.refresh()
    file.unlink()
    with pytest.raises(Unusable, match=r"cannot read .*: No such file"):
        rotating.refresh()
    assert rotating.value.find(B)


def test_all_files_are_looked_at_together_and_each_complaint_is_told_once(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_text(A)
    good.write_text(B)
    rotation = Rotation(RotatingFile(file, read_token_lines) for file in (bad, good))
    assert rotation.refresh() == Refreshed((), ())
    bad.write_text("short")
    good.write_text(C)
    found = rotation.refresh()
    assert found.renewed == ("RotatingFile",)
    assert len(found.complaints) == 1
    assert "must be a text of 16 to 512" in found.complaints[0]
    assert rotation.refresh() == Refreshed((), ())
    bad.unlink()
    assert "No such file" in rotation.refresh().complaints[0]
    bad.write_text(A)
    # It is as it was before the trouble, so nothing is new; the next trouble is told again.
    assert rotation.refresh() == Refreshed((), ())
    bad.unlink()
    assert "No such file" in rotation.refresh().complaints[0]


def test_a_header_names_the_holder_of_its_token() -> None:
    book = read_token_lines(A)
    assert book.named_by(f"Bearer {A}")
    for header in (None, "", A, f"Basic {A}", f"Bearer {B}"):
        assert book.named_by(header) is None


def test_a_certificate_that_does_not_fit_its_key_leaves_the_old_pair_in_use(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    served = ServingCertificate(pair.certificate, pair.key)
    good = pair.key.read_bytes()
    write_pair(tmp_path)
    pair.key.write_bytes(good)
    with pytest.raises(Unusable, match="are not a certificate and its key") as refused:
        served.refresh()
    assert "BEGIN" not in str(refused.value)
    write_pair(tmp_path)
    assert served.refresh()


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, password=b"secret")
    with pytest.raises(Unusable, match="without a password"):
        ServingCertificate(pair.certificate, pair.key)


@pytest.mark.parametrize("text", ["", "  \n", "two words", "line\nbreak", "naïve"])
def test_a_file_for_one_token_to_send_holds_just_that(text: str) -> None:
    assert read_single_token(f" {A}\n") == A
    with pytest.raises(ValueError, match="one token in printable ASCII"):
        read_single_token(text)
