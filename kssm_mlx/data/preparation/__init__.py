"""From a recipe's [data] section to token files.

    source -> (deduplicate) -> split -> tokens -> index -> batches

prepare.py    the flow: token files that are there are reused, others are written, the index last
making.py     what a source is made of: the sections of the index, and how its files are written
texts.py      one text, or the sources of a mixture, in memory
streamed.py   the same, with equal bytes, of text that is never in memory whole: data/streams
tasks.py      the rows of a task
"""
