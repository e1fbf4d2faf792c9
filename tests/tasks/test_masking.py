"""A secret is in no output, however the output comes, and nothing else is taken away."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import textwrap
from itertools import pairwise
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.drivers.ssh import Lines
from tasks.masking import MASK, Masker

# A small alphabet, so that values overlap, repeat and contain each other; none of it is in the mask itself.
letters = st.sampled_from("abAB01 \n")
values = st.lists(st.text(letters, min_size=4, max_size=12), min_size=1, max_size=4)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[list[str], str, list[int]]:
    """Values, a text that is full of them and of parts of them, and where the text is cut."""
    secrets = draw(values)
    whole = st.sampled_from(secrets)
    parts = whole.flatmap(lambda value: st.integers(0, len(value)).map(lambda cut: value[:cut]))
    text = "".join(draw(st.lists(st.one_of(whole, parts, letters), max_size=12)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return secrets, text, cuts


def in_pieces(masker: Masker, text: str, cuts: list[int]) -> str:
    stream = masker.stream()
    places = [0, *cuts, len(text)]
    shown = [stream.feed(text[start:end]) for start, end in pairwise(places)]
    return "".join(shown) + stream.close()


@given(outputs())
def test_a_text_in_pieces_is_masked_as_the_whole_is(given_output):
    secrets, text, cuts = given_output
    masker = Masker(secrets)
    assert in_pieces(masker, text, cuts) == masker.mask(text)


@given(outputs())
def test_no_value_is_in_what_is_shown_nor_any_long_line_of_one(given_output):
    secrets, text, cuts = given_output
    shown = in_pieces(Masker(secrets), text, cuts)
    for secret in secrets:
        for hidden in (secret, *(line for line in secret.splitlines() if len(line) >= 4)):
            assert hidden not in shown


@given(outputs())
def test_what_is_no_value_is_shown_as_it_is(given_output):
    secrets, text, cuts = given_output
    free = (
        text.replace("a", "x").replace("b", "y").replace("0", "z").replace("1", "z").replace("A", "x").replace("B", "y")
    )
    free = free.replace(" ", "_").replace("\n", "_")
    assert in_pieces(Masker(secrets), free, cuts) == free


@given(st.text(st.characters(exclude_categories=()), min_size=4).filter(str.strip), st.text(), st.text())
def test_any_text_can_be_a_value(secret, before, after):
    masker = Masker([secret])
    shown = in_pieces(masker, before + secret + after, [len(before) + 1, len(before) + 2])
    assert shown == masker.mask(before + secret + after)
    if secret not in MASK and secret not in before + MASK + after:
        assert secret not in shown


@pytest.mark.parametrize(
    "spelling",
    [
        lambda secret: quote(secret, safe=""),
        lambda secret: json.dumps({"key": secret}),
        lambda secret: base64.b64encode(secret.encode()).decode(),
        lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
        lambda secret: f"  {secret.strip()}\r\n",
        quote,
        quote_plus,
        lambda secret: re.sub("%..", lambda hit: hit[0].lower(), quote(secret, safe="")),
        lambda secret: json.dumps({"key": secret}, ensure_ascii=False),
        lambda secret: json.dumps(secret).replace("/", "\\/"),
        lambda secret: json.dumps(secret).replace("\\u00f6", "\\u00F6"),
        html.escape,
        shlex.quote,
        repr,
        lambda secret: secret.encode().hex(),
        lambda secret: secret.encode().hex().upper(),
    ],
)
def test_the_usual_spellings_of_a_value_are_masked_too(spelling):
    secret = "pa/ss+\"wö rd'?>\n"
    shown = Masker([secret]).mask(spelling(secret))
    assert shown.strip("'\"{} =\r\n").removeprefix('key": "') == MASK


@pytest.mark.parametrize("before", ["u:", "me:", "user:", ""])
@pytest.mark.parametrize("after", [":", "\n", "", '"}'])
def test_a_value_inside_of_base64_is_masked_but_for_what_it_shares_with_its_neighbours(before, after):
    secret = "Tr0ub4dor&3é"
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(f"{before}{secret}{after}".encode()).decode()
        shown = Masker([secret]).mask(f"Authorization: Basic {whole}")
        head, mask, tail = shown.removeprefix("Authorization: Basic ").partition(MASK)
        assert mask
        assert len(head) <= -(-len(before) * 8 // 6)
        assert len(tail.rstrip("=")) <= -(-len(after) * 8 // 6)


@pytest.mark.parametrize("width", [64, 76])
def test_base64_in_lines_is_masked(width):
    secret = "".join(f"line {n} of a key\n" for n in range(20))
    lines = textwrap.wrap(base64.b64encode(secret.encode()).decode(), width)
    assert Masker([secret]).mask("\n".join(lines)).rstrip("=").replace(MASK, "").split() == []


def test_each_line_of_a_value_of_several_is_masked():
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nabc\n-----END KEY-----\n"
    shown = Masker([key]).mask("line MIIEvQIBADANBg of it, and abc")
    assert shown == f"line {MASK} of it, and abc"  # three letters are no secret


def test_a_value_that_continues_a_shorter_one_is_hidden_whole():
    masker = Masker(["token", "token-and-more"])
    stream = masker.stream()
    assert stream.feed("a token") == "a "
    assert stream.feed("-and-m") == ""
    assert stream.feed("ore b") == f"{MASK} b"
    assert stream.feed("token") + stream.feed(" c") == f"{MASK} c"
    assert stream.close() == ""


def test_a_beginning_that_leads_nowhere_comes_with_the_end():
    stream = Masker(["secret-value"]).stream()
    assert stream.feed("x secret-val") == "x "
    assert stream.close() == "secret-val"


def test_values_too_short_to_be_secrets_hide_nothing():
    assert Masker(["1", "no", "", "   "]).mask("1 no more") == "1 no more"
    assert Masker([]).mask("text") == "text"
    assert in_pieces(Masker([]), "text", [1, 2]) == "text"


@pytest.mark.slow
def test_a_large_value_is_followed_through_many_pieces():
    secret = "".join(f"{n:06d}" for n in range(10_000))
    text = f"before {secret} after"
    cuts = list(range(0, len(text), 997))
    assert in_pieces(Masker([secret]), text, cuts) == f"before {MASK} after"


@pytest.mark.parametrize("piece", [1, 1000, 17_000, 65_536])
def test_a_host_s_line_that_does_not_end_is_cut_through_no_secret(piece):
    """Each piece gets the host's name before it and a line's end behind it, so two halves would stand apart."""
    said: list[str] = []

    class Listening:
        def log(self, _stream: str, text: str) -> None:
            said.append(text)

    secret = "s3cret-välue"
    masker = Masker([secret])
    lines = Lines("web1", "stdout", Listening(), Masker(["production", secret]))
    printed = ("x" * 16_380 + secret + "y" * 5) * 5 + "\n" + secret
    data = printed.encode()
    for start in range(0, len(data), piece):
        lines.add(data[start : start + piece])
    lines.close()
    stream = masker.stream()
    shown = "".join(map(stream.feed, said)) + stream.close()
    assert shown.count(MASK) == 6
    assert shown.replace("web1: ", "").replace("\n", "") == masker.mask(printed).replace("\n", "")
    assert max(map(len, shown.split("\n"))) < 90_000
