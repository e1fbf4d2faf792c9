"""Documents: what is read is what was written, and what is no document is refused with its line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.errors import InvalidInput
from worker import documents

BASIC = """# a comment
applications:
  web:
    command: [./deploy.sh, --fast]
    configuration:
      shell: yes
      timeout_seconds: 60
"""


def read(text: str) -> documents.Document:
    return documents.read(text.encode(), "ops.yaml")


def test_values_come_with_their_lines() -> None:
    found = read(BASIC)
    assert found.values["applications"]["web"]["command"] == ["./deploy.sh", "--fast"]
    assert found.line(("applications", "web", "command")) == 4
    assert found.line(("applications", "web", "command", 1)) == 4
    assert found.line(("applications", "web", "configuration", "timeout_seconds")) == 7
    assert found.line(("applications", "web", "missing", "deeper")) == 3
    assert found.place(("applications", "web", "command")) == "ops.yaml:4: applications.web.command"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: yes", "yes"), ("a: 03:00", "03:00"), ("a: 2026-12-01", "2026-12-01"), ("a: 010", "010"), ("a: 1e3", "1e3"),
        ("a: 1_000", "1_000"), ("a: 0x1F", "0x1F"), ("a: 12", 12), ("a: -1.5", -1.5), ("a: true", True), ("a: ~", None),
        ("a:", None), ("a: '12'", "12"), ("a: \"\\u0041\"", "A"), ("a: |\n  x\n  y\n", "x\ny\n"), ("a: .inf", ".inf"),
        ('{"a": [1, {"b": null}]}', [1, {"b": None}]), ("a: on", "on"), ("\ufeffa: 1", 1),
        ("a: caf\u00e9", "caf\u00e9"),
        ("a: <<", "<<"), ("a: 1.10", 1.1),
    ],
)  # fmt: skip
def test_it_is_what_it_looks_like(text: str, value: Any) -> None:
    assert read(text).values == {"a": value}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300)
@given(PLAIN)
def test_what_is_written_is_read_as_the_same(values: Any) -> None:
    assert documents.read(documents.write(values).encode(), "x").values == values


BAD = [
    (b"a: 1\nb: \x00", 2, "U\\+0000"),
    (b"a: 1\n\nb: \xff", 3, "UTF-8"),
    (b"a: \xed\xa0\x80", 1, "UTF-8"),
    ("a: \u202ename".encode(), 1, "U\\+202E"),
    ("a: x\u2028y".encode(), 1, "U\\+2028"),
    (b"a: \x1b[2J", 1, "U\\+001B"),
    (b"a: &x 1\nb: *x", 1, "anchor"),
    (b"a: 1\nb: *x", 2, "alias"),
    (b"a: &a [x]\nb: [*a, *a]", 1, "anchor"),
    (b"&a a: [*a]", 1, "anchor"),
    (b"a: 1\nb: !!python/object/apply:os.system [x]", 2, "tag"),
    (b"a: !!binary aGk=", 1, "tag"),
    (b"a: ! x", 1, "tag"),
    (b"a: !!set {x}", 1, "tag"),
    (b"a: 1\nb: 2\na: 3", 3, "second time, after line 1"),
    (b"a: 1\n---\nb: 2", 2, "second document"),
    (b"a: [1, 2", 1, "expected"),
    (b"a: 1\n  b: 2", 2, "."),
    (b"a: 'x", 1, "."),
    (b'a: "\\z"', 1, "escape"),
    (b"a:\n\t- 1", 2, "."),
    (b"? [a]\n: 1", 1, "a key is a text"),
    (b"? {a: 1}\n: 1", 1, "a key is a text"),
    (b"[" * 100_000, 1, "nest"),
    (b"a: " + b"{a: " * 50, 1, "deeper than 20"),
    (b"\n".join(b" " * n + b"a:" for n in range(40)), 21, "deeper than 20"),
    (b"[" + b"1," * 60_000 + b"1]", 1, "more than 50000 values"),
    (b"a: " + b"9" * 5000, 1, "64 bits"),
    (b"a: 1\nb: 1.0e999999999", 2, "too large"),
    (b"a" * 201 + b": 1", 1, "key of more than"),
    (b"#" * 1_000_001, 1, "more than 1000000 bytes"),
    (b"a: @x", 1, "."),
    (b"a: `x`", 1, "."),
    (b"%YAML 9.9\n---\na: 1", 1, "."),
    (b"a: }", 1, "."),
    (b"- a\nb: 1", 2, "."),
]


def test_what_is_no_document_is_refused_in_one_line_with_its_number() -> None:
    for data, line, says in BAD:
        with pytest.raises(InvalidInput, match=f"^ops.yaml:{line}: .*{says}") as error:
            documents.read(data, "ops.yaml")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300
