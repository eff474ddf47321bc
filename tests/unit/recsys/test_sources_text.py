"""Parsing of text: what is written comes back, every row is accounted for, and cuts change nothing."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import schema
from recsys.data.sources import scan as scanning
from recsys.data.sources.base import Columns, Delimited, EventFile, Parsed
from recsys.data.sources.files import File
from recsys.data.sources.parse import Range, parse_adjacency, parse_range
from recsys.data.sources.scan import Cutter, scan
from recsys.data.sources.text import OPEN_QUOTE, parse_delimited
from recsys.data.sources.values import FIELDS, LINE_BREAK, NO_ITEM, NO_USER, NOT_UTF8, RATING_TEXT

NAMES = ("user", "item", "rating", "time")
COLUMNS = Columns(*NAMES)
DAT, CSV = Delimited("::", NAMES, COLUMNS), Delimited(",", NAMES, COLUMNS, quoted=True)
REVIEWED = Delimited(",", (*NAMES, "review"), COLUMNS, quoted=True)

fewer = settings(max_examples=60)
plain = st.text(st.characters(codec="utf-8", exclude_characters=':,\t"\r\n'), min_size=1, max_size=8)
odd = '",\0\u202eא\U0001f600'
quotable = st.text(
    st.one_of(st.characters(codec="utf-8", exclude_characters="\r\n"), st.sampled_from(odd)), min_size=1, max_size=8
)
review = st.lists(st.sampled_from([*odd, "\n", "\r\n", "x"]), max_size=6).map("".join)  # csv leaves a lone return unquoted
numbers = st.integers(0, 10**9)
rows_of = {
    "plain": st.lists(st.tuples(plain, plain, st.integers(0, 10), numbers), max_size=12),
    "quoted": st.lists(st.tuples(quotable, quotable, st.integers(0, 10), numbers, review), max_size=12),
}


def parse(data: bytes, layout: Delimited) -> Parsed:
    return parse_delimited(data, layout, "file", 1, 0, 0)


def events(parsed: Parsed) -> list[tuple[str, str, int, int]]:
    columns = (schema.USER_ID, schema.ITEM_ID, schema.RATING, schema.TIME)
    return list(zip(*(parsed.events.column(name).to_pylist() for name in columns), strict=True))


@fewer
@given(
    rows=rows_of["plain"], newline=st.sampled_from(["\n", "\r\n"]), last=st.booleans(), delimiter=st.sampled_from(["::", "\t"])
)
def test_plain_text_comes_back_byte_for_byte(rows, newline, last, delimiter):
    text = newline.join(delimiter.join(map(str, row)) for row in rows) + (newline if last and rows else "")
    parsed = parse(text.encode(), Delimited(delimiter, NAMES, COLUMNS))
    assert events(parsed) == rows
    assert not len(parsed.rejects)


@fewer
@given(
    rows=rows_of["quoted"],
    newline=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_quoted_csv_comes_back_byte_for_byte(rows, newline, quoting):
    parsed = parse(as_csv(rows, newline, quoting), REVIEWED)
    assert events(parsed) == [row[:4] for row in rows]
    assert not len(parsed.rejects)


@fewer
@given(data=st.binary(max_size=60), layout=st.sampled_from([DAT, CSV]))
def test_whatever_the_bytes_every_line_is_an_event_or_a_reject(data, layout):
    parsed = parse(data, layout)
    if not layout.quoted:
        lines = [line for line in data.replace(b"\r", b"\n").split(b"\n") if line]
        assert len(parsed.events) + len(parsed.rejects) == len(lines)
    assert all(parsed.events.column(schema.USER_ID).to_pylist()) and all(parsed.events.column(schema.ITEM_ID).to_pylist())


@fewer
@given(
    lines=st.lists(
        st.one_of(
            st.tuples(plain, plain, st.integers(0, 5), numbers).map(lambda row: ("::".join(map(str, row)), None)),
            st.tuples(plain, plain, numbers).map(lambda row: (f"{row[0]}::{row[1]}::4.x::{row[2]}", RATING_TEXT)),
            st.tuples(plain, plain).map(lambda row: ("::".join(row), FIELDS)),
            st.just(("::7::4::1", NO_USER)),
            st.just(("7::::4::1", NO_ITEM)),
            st.just(("", "blank")),
        ),
        max_size=20,
    )
)
def test_rejects_name_line_reason_and_raw_text(lines):
    parsed = parse("\n".join(text for text, _ in lines).encode(), DAT)
    planted = [(number, reason, text) for number, (text, reason) in enumerate(lines, 1) if reason not in (None, "blank")]
    found = parsed.rejects.to_pylist()
    assert [(row["position"], row["reason"], row["raw"]) for row in found] == planted
    assert len(parsed.events) == sum(reason is None for _, reason in lines)


def test_rejects_of_quoted_text_name_the_line_where_the_record_begins():
    data = b'a,1,5,1,"two\nlines"\nx,1,bad,1,"more\nlines"\n\nz,1\n"q""r",1,5,2,""\n,1,5,3,\n'
    parsed = parse(data, REVIEWED)
    assert [(row["position"], row["reason"], row["raw"]) for row in parsed.rejects.to_pylist()] == [
        (3, RATING_TEXT, 'x,1,bad,1,"more\nlines"'),
        (6, FIELDS, "z,1"),
        (8, NO_USER, ",1,5,3,"),
    ]
    assert [row[0] for row in events(parsed)] == ["a", 'q"r']


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_an_open_quote_costs_one_line_not_the_rest_of_the_file(newline):
    lines = [b"a,1,5,1", b'"b,1",1,5,2', b"c,1,5,3", b'd,"1,5,4', b"e,1,5,5", b'"f,1",1,5,6']
    parsed = parse(newline.join(lines[:4]), CSV)
    assert [row[0] for row in events(parsed)] == ["a", "b,1", "c"]
    assert [(row["position"], row["reason"], row["raw"]) for row in parsed.rejects.to_pylist()] == [(4, OPEN_QUOTE, 'd,"1,5,4')]
    parsed = parse(newline.join(lines[:5]), CSV)
    assert [row[0] for row in events(parsed)] == ["a", "b,1", "c", "e"]
    order = parsed.events.column(schema.ORDER).to_pylist()
    assert order == sorted(order)


def test_lines_that_two_stray_quotes_swallow_are_all_counted():
    lines = [b"a,1,5,1", b'b,"1,5,2', b"c,1,5,3", b'd,"1,5,4', b"e,1,5,5"]
    parsed = parse(b"\n".join(lines), CSV)
    assert [row[0] for row in events(parsed)] == ["a", "e"]
    assert [row["position"] for row in parsed.rejects.to_pylist()] == [2, 3, 4]
    assert set(parsed.rejects.column("reason").to_pylist()) == {LINE_BREAK}


def test_text_that_is_not_utf8_is_rejected_and_shown_escaped():
    parsed = parse(b"a::1::5::1\n\xff\xfe::1::5::1\n", DAT)
    assert len(parsed.events) == 1
    assert parsed.rejects.to_pylist() == [{"file": "file", "position": 2, "reason": NOT_UTF8, "raw": "\\xff\\xfe::1::5::1"}]


def test_latin_1_is_read_where_asked():
    layout = Delimited("::", NAMES, COLUMNS, encoding="latin-1")
    assert events(parse("Zoë::Amélie::5::1".encode("latin-1"), layout)) == [("Zoë", "Amélie", 5, 1)]


def test_a_control_character_in_the_text_is_not_taken_for_the_delimiter():
    assert events(parse(b"a\x1fb::c::5::1", DAT)) == [("a\x1fb", "c", 5, 1)]


@fewer
@given(rows=rows_of["quoted"], size=st.integers(1, 40), quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
def test_ranges_cut_anywhere_give_the_rows_of_the_whole(tmp_path_factory, rows, size, quoting):
    data = as_csv(rows, "\n", quoting) or b"a,b,1,1,\n"
    assert_ranges_give_the_whole(tmp_path_factory.mktemp("cut"), data, REVIEWED, size)


@fewer
@given(
    data=st.lists(st.sampled_from([b"a::1::5::1\n", b"\n", b"b::2::x::1\r\n", b"c::3\r", b"\r\n"]), min_size=1),
    size=st.integers(1, 40),
)
def test_ranges_keep_line_numbers(tmp_path_factory, data, size):
    assert_ranges_give_the_whole(tmp_path_factory.mktemp("cut"), b"".join(data), DAT, size)


def test_a_stray_quote_does_not_glue_a_file_together(monkeypatch):
    monkeypatch.setattr(scanning, "STRAY_QUOTE", 100)
    cutter = Cutter(50, 0, 1, quoted=True)
    cutter.feed(b'a,5" disk,1,1\n' + b"b,1,1,1\n" * 100)
    assert max(cut.last - cut.first for cut in cutter.cuts()) <= 160


def test_chunks_of_a_stream_do_not_change_the_cuts():
    data = b'a,1,5,1\r\nb,"x\ny",5,1\r\n\rc,1,5,1\n' * 50
    whole, pieces = Cutter(64, 3, 2, quoted=True), Cutter(64, 3, 2, quoted=True)
    whole.feed(data)
    for chunk in (data[start : start + 7 * 31] for start in range(0, len(data), 7 * 31)):
        pieces.feed(chunk)
    assert pieces.cuts() == whole.cuts()


def test_adjacency_lines_become_events_in_order():
    parsed = parse_adjacency(b"u1 a b\nu2\n\nu3 \xff\nu4 c\n", "train.txt", 1, 0, 2)
    assert [row[:2] for row in events(parsed)] == [("u1", "a"), ("u1", "b"), ("u4", "c")]
    assert parsed.events.column(schema.ROLE).to_pylist() == [2, 2, 2]
    assert [(row["position"], row["reason"]) for row in parsed.rejects.to_pylist()] == [(4, NOT_UTF8)]


def as_csv(rows: list[tuple], newline: str, quoting: int) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=newline, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue().encode()


def assert_ranges_give_the_whole(folder: Path, data: bytes, layout: Delimited, size: int) -> None:
    path = folder / "events.txt"
    path.write_bytes(data)
    event_file = EventFile(File("file", str(path)), layout)
    found = scan(event_file, size, folder / "staged")
    parts = [parse_range(Range(index, event_file, found.path, cut)) for index, cut in enumerate(found.cuts)]
    whole = parse(data, layout)
    assert [row for part in parts for row in events(part)] == events(whole)
    assert [row for part in parts for row in part.rejects.to_pylist()] == whole.rejects.to_pylist()
    order = [place for part in parts for place in part.events.column(schema.ORDER).to_pylist()]
    assert order == sorted(order) and len(set(order)) == len(order)
