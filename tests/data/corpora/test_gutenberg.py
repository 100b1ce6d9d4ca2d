"""Fake Project Gutenberg texts: what is cut, what is refused by name, what is kept once."""

import pytest

from kssm_mlx.checks.data.token_data import measure_overlap
from kssm_mlx.data.corpora.books import key
from kssm_mlx.data.corpora.gutenberg import clean_book, open_shelf, read_catalogue, same_title
from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.errors import DataError
from tests.support.text_fakes import DataSection

FRAME = """The Project Gutenberg eBook of {title}

This eBook is for the use of anyone anywhere.

Title: {title}

Author: Nobody

Release date: May 1, 2001 [eBook #{number}]

*** START OF THE PROJECT GUTENBERG EBOOK {upper} ***

Produced by A. Volunteer and the Online
Distributed Proofreading Team

{text}

End of the Project Gutenberg EBook of {title}, by Nobody

*** END OF THE PROJECT GUTENBERG EBOOK {upper} ***

Updated editions will replace the previous one. Section 1. General Terms of Use.
"""


def story(name, paragraphs=12):
    """Paragraphs of which each is long, and none is in a story of another name."""
    return "\n\n".join(
        f"Of {name} they said in the {name} of paragraph {i} that {name}\nwent {i} miles and came to {name}."
        for i in range(paragraphs)
    )


def write(folder, name, title, number, text):
    folder.mkdir(exist_ok=True)
    framed = FRAME.format(title=title, upper=title.upper(), number=number, text=text)
    (folder / name).write_text(framed, "utf-8")


@pytest.fixture
def folder(tmp_path):
    books = tmp_path / "books"
    for i, name in enumerate(["amber", "basalt", "copper"]):
        write(books, f"pg{100 + i}.txt", f"The Book of {name.title()}", 100 + i, story(name))
    return books


def test_a_book_is_what_stands_between_the_markers(folder):
    found = open_shelf(folder)
    assert [book.title for book in found.books] == [f"The Book of {n}" for n in ("Amber", "Basalt", "Copper")]
    assert [(book.id, book.file) for book in found.books] == [(i, f"pg{i}.txt") for i in (100, 101, 102)]
    assert found.books[0].text == story("amber") and found.left_out == {}


def test_page_numbers_chapter_numbers_and_loose_space_go_and_paragraphs_stay():
    raw = (
        "CHAPTER I.\n\nIt  was\tlate\x0c \n[Pg 12]\nin 1805, and\n1805\nmen came.\n\n\n\n{13}\n\n - 14 -\n\n"
        "XIV\n\n15\n\nI\n\nI went.\n\nCHAPTER II. The Storm\n\n\u00a0Rain.\n"
    )
    assert (
        clean_book(raw)
        == "It was late\nin 1805, and\n1805\nmen came.\n\nI went.\n\nCHAPTER II. The Storm\n\nRain."
    )


def test_old_line_ends_and_a_marker_over_two_lines(folder):
    path = folder / "pg100.txt"
    text = path.read_text().replace("EBOOK THE BOOK OF AMBER", "EBOOK\nTHE BOOK OF AMBER")
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert open_shelf(folder).books[0].text == story("amber")


@pytest.mark.parametrize(
    "name, message",
    [
        ("pg7.txt", r"pg7\.txt is number 100 by its header, 'The Book of Amber'; rename it or get 7"),
        ("100 War and Peace.txt", "'The Book of Amber' by its header and 'War and Peace' by its name"),
        ("moby-dick.txt", "'The Book of Amber' by its header and 'moby-dick' by its name"),
    ],
)
def test_a_file_of_another_title_or_number_is_refused_by_name(folder, name, message):
    (folder / "pg100.txt").rename(folder / name)
    with pytest.raises(DataError, match=message):
        open_shelf(folder)


@pytest.mark.parametrize("name", ["100-0.txt", "100.txt", "100_the_book_of_amber.txt", "Book of Amber.txt"])
def test_names_that_say_the_same_are_fine(folder, name):
    (folder / "pg100.txt").rename(folder / name)
    assert len(open_shelf(folder).books) == 3


def test_titles_agree_without_case_accents_articles_and_subtitles():
    assert same_title("The Émile", "emile, or: On Education")
    assert same_title("Frankenstein; Or, The Modern Prometheus", "Frankenstein")
    assert not same_title("Middlemarch", "Ulysses") and not same_title("", "Ulysses")
    assert not same_title("War", "Warlock")


def test_the_catalogue_must_agree_with_the_headers(folder):
    catalogue = folder / "pg_catalog.csv"
    catalogue.write_text('Text#,Type,Title\n100,Text,"The Book of Amber\nA Tale"\n101,Text,Book of Basalt\n')
    assert len(open_shelf(folder).books) == 3
    catalogue.write_text("Text#,Title\n102,Anna Karenina\n")
    with pytest.raises(
        DataError, match=r"pg102.txt is 'The Book of Copper' .* 'Anna Karenina' by pg_catalog"
    ):
        open_shelf(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            "Text#,Title\n1399,Anna Karenina\n1399,The Republic\n",
            "number 1399 to 'Anna Karenina' and to 'The Rep",
        ),
        ("id,title\n1,x\n", "has the columns id, title; expected Text# and Title"),
        ("Text#,Title\nnine,x\n", "line 2: Text# is 'nine'; expected a number"),
    ],
)
def test_a_catalogue_that_contradicts_itself_is_refused(tmp_path, content, message):
    path = tmp_path / "pg_catalog.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_catalogue(path)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("*** START OF", "START OF", r"pg100\.txt has no START marker"),
        ("*** END OF", "END OF", r"pg100\.txt has no END marker"),
        ("Title:", "Heading:", r"pg100\.txt has no 'Title:' before its START marker"),
        (
            "amber they",
            "amber \ufffd they",
            r"pg100\.txt: 12 of \d+ characters are U\+FFFD, a share of more than 1e-05",
        ),
    ],
)
def test_what_is_no_whole_text_is_refused_by_name(folder, old, new, message):
    path = folder / "pg100.txt"
    path.write_text(path.read_text().replace(old, new), "utf-8")
    with pytest.raises(DataError, match=message):
        open_shelf(folder)


def test_a_folder_without_texts_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(DataError, match=r"has no \.txt file; expected texts of Project Gutenberg"):
        open_shelf(tmp_path)


def test_a_book_is_kept_once_by_number_and_by_content(folder):
    write(folder, "the-book-of-amber.txt", "The Book of Amber", 100, story("amber") + "\n\nA shorter note.")
    write(folder, "pg900.txt", "The Book of Basalt, Again", 900, story("basalt").replace("\n", " \n"))
    found = open_shelf(folder)
    assert [book.file for book in found.books] == ["pg101.txt", "pg102.txt", "the-book-of-amber.txt"]
    assert found.left_out == {
        "pg100.txt": "the-book-of-amber.txt has the same number, 100",
        "pg900.txt": "pg101.txt has the same text",
    }


def test_a_work_that_a_collection_holds_is_left_out_in_any_printing(folder):
    everything = "\n\n".join(story(name) for name in ("amber", "zinc", "basalt"))
    write(
        folder,
        "pg500.txt",
        "The Complete Works of Nobody",
        500,
        everything.upper().replace("\nWENT", ", went"),
    )
    found = open_shelf(folder)
    assert [book.file for book in found.books] == ["pg102.txt", "pg500.txt"]
    assert found.left_out["pg100.txt"] == "12 of its 12 paragraphs are in pg500.txt or another longer book"


def test_a_story_in_two_anthologies_stays_in_the_longer_one(folder):
    for number, own in ((600, 20), (601, 16)):
        text = story("shared", 8) + "\n\n" + story(f"own{number}", own)
        write(folder, f"pg{number}.txt", f"Tales {number}", number, text)
    longer, shorter = (book.text for book in open_shelf(folder).books[3:])
    assert "Of shared" in longer and "shared" not in shorter and shorter == story("own601", 16)


def test_books_are_split_whole_and_share_nothing(folder, tmp_path):
    """Also few books, which "auto" would cut elsewhere, and with duplicates among the files."""
    for i in range(6):
        write(
            folder, f"pg{200 + i}.txt", "Twice Told", 200 + i, story("twice") if i < 2 else story(f"tale{i}")
        )
    data = prepare(DataSection(f"gutenberg:{folder}", validation=0.3), tmp_path / "data")
    assert data.index["split"]["method"] == "documents" and data.index["corpus"]["documents"] == 8
    assert "Project Gutenberg" in data.index["corpus"]["licence"]
    sides = [side.ids for side in (data.train, data.validation)]
    texts = [data.tokenizer.decode(ids).split("\0")[1:] for ids in sides]
    assert sorted(texts[0] + texts[1]) == sorted(open_corpus(f"gutenberg:{folder}").documents)
    assert measure_overlap(*sides) == 0.0
    keys = [{key(part) for text in side for part in text.split("\n\n")} for side in texts]
    assert keys[0].isdisjoint(keys[1]) and len(texts[1]) >= 1


def test_advance_hears_the_bytes_of_every_file(folder):
    heard = []
    open_shelf(folder, heard.append)
    assert heard == [path.stat().st_size for path in sorted(folder.glob("*.txt"))]


def test_two_books_in_one_file_are_refused_with_both_titles(tmp_path):
    books = [
        FRAME.format(title=title, number=number, upper=title.upper(), text=story(title))
        for number, title in ((1, "First Book"), (2, "Second Book"))
    ]
    (tmp_path / "both.txt").write_text("".join(books))
    with pytest.raises(DataError, match="more than one book \\('First Book' and 'Second Book'"):
        open_shelf(tmp_path)
