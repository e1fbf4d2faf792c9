"""What strangers wrote cannot act on a reader's terminal, nor hide what others wrote."""

from __future__ import annotations

import json

import pytest

from worker.cli.output import out, safe


@pytest.mark.parametrize(
    "text",
    ["\x1b]0;title\x07", "\x1b[2J", "\x1b[1A\x1b[2K", "\x9b2J", "\x9d0;title\x9c", "\x1bc", "\x1b\x1b[2J", "\r", "\x08",
     "\x1b[?1049h", "\x1bP1$r\x1b\\", "\x1b]8;;http://x\x07", "\u202e", "\u2066", "\x1b]52;c;eA==\x1b\\"],
)  # fmt: skip
@pytest.mark.parametrize("colours", [False, True])
def test_no_sequence_moves_the_cursor_sets_a_title_or_turns_text_around(text: str, colours: bool) -> None:
    for written in (text, f"a{text}b"):
        shown = safe(written, colours=colours)
        assert not set(shown) & set("\x1b\x9b\x9d\r\x08\x07\u202e\u2066"), repr(shown)


def test_a_sequence_that_does_not_end_hides_no_other_line() -> None:
    assert safe("\x1b]0;\nerror: something\n") == "\nerror: something\n"
    assert safe("\x1b[\nerror: something\n").endswith("error: something\n")


def test_colours_end_with_the_piece_that_set_them() -> None:
    assert safe("\x1b[30;40mdark", colours=True) == "\x1b[30;40mdark\x1b[0m"
    assert safe("plain", colours=True) == "plain"


def test_json_says_what_was_written_and_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x9b2J \x7f \u202e ü \x1b[2J \u2028"
    out.record({"text": text})
    written = capsys.readouterr().out
    assert json.loads(written)["text"] == text
    assert not set(written) & set("\x9b\x7f\u202e\x1b\u2028")
    assert "ü" in written
