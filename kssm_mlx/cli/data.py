"""`kssm data`: text made, cleaned, counted and cut into tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

data = typer.Typer(rich_markup_mode=None, help="Make, clean, count and tokenise text.")

Out = Annotated[Path, typer.Argument(help="The JSONL file to write; a recipe reads it as jsonl:PATH.")]


@data.command("synthetic-themes")
def synthetic_themes(
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="What is drawn; the same seed, the same file.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="How many samples.")] = 800,
) -> None:
    """Make short samples on sixteen themes, no two of which share 64 bytes.

    A recipe has them without a file as source = "themes:seed=0,samples=800".
    """
    from kssm_mlx.data.corpora.jsonl import write_records
    from kssm_mlx.data.corpora.themes import themed_samples

    made = themed_samples(seed, samples)
    write_records(out, [{"text": sample.text, "theme": sample.theme} for sample in made])
    typer.echo(f"written: {out}, {len(made)} samples on {len({s.theme for s in made})} themes")


@data.command()
def gutenberg(
    folder: Annotated[
        Path, typer.Argument(help="Project Gutenberg texts, and pg_catalog.csv if you have it.")
    ],
    out: Out,
) -> None:
    """Clean a folder of Project Gutenberg texts: one document per book, each book once.

    A recipe does the same with source = "gutenberg:FOLDER". What is left out is listed with the reason.
    """
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.data.corpora.gutenberg import book_files, open_shelf
    from kssm_mlx.data.corpora.jsonl import write_records
    from kssm_mlx.terminal import Bytes

    with Bytes() as meter:
        meter.start(sum(path.stat().st_size for path in book_files(folder)))
        found = open_shelf(folder, meter.advance)
    write_records(out, [{"text": b.text, "title": b.title, "id": b.id, "file": b.file} for b in found.books])
    if found.left_out:
        show(console(), table(("left out", "because"), found.left_out.items(), str(folder)))
    typer.echo(f"written: {out}, {len(found.books)} books, {len(found.left_out)} left out")


@data.command()
def wikitext(
    file: Annotated[Path, typer.Argument(help="One raw file, such as wiki.train.raw.")],
    out: Out,
    join_markers: Annotated[
        bool, typer.Option("--join-markers", help="Write @-@, @,@ and @.@ as the signs they stand for.")
    ] = False,
) -> None:
    """Cut a raw WikiText file into its articles, one document each.

    A recipe does the same with source = "wikitext:FILE", and with "wikitext:FOLDER" it has the official
    validation split as well.
    """
    from kssm_mlx.data.corpora.jsonl import write_records
    from kssm_mlx.data.corpora.wikitext import read_articles
    from kssm_mlx.terminal import Bytes

    with Bytes() as meter:
        meter.start(file.stat().st_size if file.is_file() else 0)
        found = read_articles(file, join_markers, meter.advance)
    write_records(out, [{"text": article.text, "title": article.title} for article in found])
    typer.echo(f"written: {out}, {len(found)} articles")


@data.command()
def bpe(
    source: Annotated[str, typer.Argument(help="As data.source in a recipe: file:PATH, jsonl:PATH, ...")],
    out: Annotated[Path, typer.Argument(help="The tokenizer.json to write; a recipe reads it as hf:PATH.")],
    vocab: Annotated[int, typer.Option(help="Tokens, with the 256 bytes and the separator.")] = 16384,
) -> None:
    """Learn a byte-level BPE from a corpus.

    A corpus with its own validation split gives its training side only. A recipe with tokenizer =
    "bpe:16384" learns one from what it trains on, in every run again.
    """
    from kssm_mlx.data.corpora.jsonl import write_text
    from kssm_mlx.data.corpora.sources import open_corpus
    from kssm_mlx.data.streams.cuts import cut_at_lines
    from kssm_mlx.data.streams.documents import open_streams
    from kssm_mlx.data.tokenizers.bpe import train_bpe
    from kssm_mlx.terminal import Bytes

    streams = open_streams([source])  # of text too large to be read at once
    with Bytes() as meter:
        if streams:
            documents = (document.pieces() for document in streams[0].documents())
            parts = (part for pieces in documents for part in cut_at_lines(pieces))
            texts = meter.count_pieces(parts, streams[0].nbytes)
        else:
            texts = meter.count_texts(open_corpus(source).documents)
        tokenizer = train_bpe(texts, vocab)
    write_text(out, tokenizer.backend.to_str(pretty=True))
    typer.echo(f"written: {out}, {tokenizer.vocab_size} tokens, digest {tokenizer.digest[:12]}")


@data.command()
def describe(
    source: Annotated[str, typer.Argument(help="As data.source in a recipe: file:PATH, themes, ...")],
    tokenizer: Annotated[str, typer.Option(help="As data.tokenizer in a recipe.")] = "bytes",
) -> None:
    """Count documents, bytes, tokens, what is there twice and what was decoded wrongly."""
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.data.corpora.description import describe_corpus as run
    from kssm_mlx.data.corpora.sources import open_corpus
    from kssm_mlx.data.tokenizers.factory import make_tokenizer
    from kssm_mlx.terminal import Bytes

    corpus = open_corpus(source)
    everything = [*corpus.documents, *corpus.validation]
    made = make_tokenizer(tokenizer, everything, corpus.documents)
    with Bytes() as meter:
        found = run(meter.count_texts(everything), made)
    rows = [
        *_rows(found),
        ("documents held out by the corpus", f"{len(corpus.validation):,}"),
        ("licence", corpus.licence),
        ("digest", corpus.digest[:12]),
    ]
    show(console(), table(("", f"in {tokenizer}"), rows, source))


def _rows(found: Any) -> list[tuple[str, str]]:
    return [
        ("documents", f"{found.documents:,}"),
        ("characters", f"{found.characters:,}"),
        ("bytes", f"{found.bytes:,}"),
        ("tokens, without separators", f"{found.tokens:,}"),
        ("bytes/token", f"{found.bytes / max(1, found.tokens):.3f}"),
        ("longest document, tokens", f"{found.longest:,}"),
        ("documents equal to an earlier one", f"{found.duplicates:,}"),
        ("long paragraphs of an earlier document", f"{found.repeated:.3%}"),
        ("share of U+FFFD", f"{found.replaced:.1e}"),
    ]
