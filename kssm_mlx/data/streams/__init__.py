"""Text of any size into token files, in bounded memory: read in pieces, twice, and gone on with after a kill.

documents.py   the documents of file:, dir: and jsonl:, each in pieces; a smaller text beside them
repeats.py     which of their paragraphs say what was said before
survey.py      the first pass: digests, sizes, which document is held out
cuts.py        where a text may be cut so that its tokens are those of the whole
writer.py      the second pass: ids onto the disk, and a journal of how far it is
"""
