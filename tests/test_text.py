import unicodedata

import polars as pl
import pytest

from rankstill.text import (
    digest,
    normalise,
    normalise_column,
    normalise_query,
    pair_id,
    render_columns,
    render_item,
)

NASTY = [
    "",
    "   ",
    "\t\r\n",
    "\x00\x01 \x7f",
    "  two\u00a0\u2003blanks  ",
    "line\u2028separator\u2029and\x85next",
    "\x1cfile\x1dgroup\x1erecord\x1funit",
    "ﬁne ﬀ ½ ① ㎏ ＡＢＣ",
    "e\u0301 and é",
    "İstanbul ΣΑΣ ẞ straße",
    "東京　タワー ｶﾞ",
    "ящик для инструментов",
    "مفك كهربائي ﷺ",
    "हथौड़ा 👩‍👩‍👧 🇩🇪",
    "zero\u200bwidth\ufeffmarks",
    "|pipe | inside|",
    "\u3000wide\u3000",
]


def test_normalise_keeps_words_and_drops_what_is_invisible():
    assert normalise("  Cordless\t\n drill\x00 18\u00a0V ") == "Cordless drill 18 V"
    assert normalise("ﬁne ＡＢＣ ½") == "fine ABC 1⁄2"
    assert normalise("\x00 \x1f\x7f") == ""
    assert normalise("e\u0301") == "\u00e9"


def test_normalising_a_query_lowers_its_case():
    assert normalise_query("  BOSCH  Drill ") == "bosch drill"


@pytest.mark.parametrize("text", NASTY)
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


def test_python_and_polars_normalise_alike():
    frame = pl.DataFrame({"text": NASTY})
    assert frame.select(normalise_column("text"))["text"].to_list() == [normalise(text) for text in NASTY]
    lowered = frame.select(normalise_column("text").str.to_lowercase())["text"].to_list()
    assert lowered == [normalise_query(text) for text in NASTY]


def test_python_and_polars_agree_on_every_character_that_both_know():
    # Polars may know a newer Unicode than Python, so unassigned characters (Cn) are left out; Cs are surrogates.
    characters = [c for c in map(chr, range(0x20000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    column = pl.DataFrame({"text": [f"a{c}b" for c in characters]}).select(normalise_column("text"))["text"]
    differing = [c for c, found in zip(characters, column, strict=True) if found != normalise(f"a{c}b")]
    assert [hex(ord(c)) for c in differing] == []


def test_an_items_text_is_its_fields_in_order():
    item = {"title": " Cordless  drill", "brand": "Torkem", "price": 12.5, "description": None, "colour": " "}
    assert render_item(item, ("title", "brand")) == "Cordless drill | Torkem"
    assert render_item(item, ("brand", "title")) == "Torkem | Cordless drill"
    assert render_item(item, ("title", "description", "colour", "absent", "price")) == "Cordless drill | 12.5"
    assert render_item({}, ("title",)) == ""


def test_python_and_polars_render_alike():
    values = [*NASTY, None]
    rows = [{"title": a, "brand": b, "description": c} for a in values for b in values[:5] for c in (None, "x  y")]
    frame = pl.DataFrame(rows, dict.fromkeys(("title", "brand", "description"), pl.String))
    fields = ("title", "brand", "description")
    found = frame.select(text=render_columns(fields))["text"].to_list()
    assert found == [render_item(row, fields) for row in rows]


def test_a_pairs_identity_never_changes():
    # Label stores on users' disks are keyed by it.
    assert pair_id("cordless drill", "Torkem drill 18 V | Torkem") == "341147fbd57d4e680755b2db60884f0e"
    assert len(pair_id("", "")) == 32


def test_a_digest_tells_how_its_parts_are_split():
    splits = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c"), ("a\0bc",)]
    assert len({digest(*parts) for parts in splits}) == len(splits)
    assert pair_id("drill bit", "set") != pair_id("drill", "bit set")


def test_a_digest_has_the_asked_size_and_takes_any_string():
    assert len(digest("x", size=8)) == 16
    assert digest("\ud800") != digest("\ud801")
