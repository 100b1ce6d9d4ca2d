import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kssm_mlx.data.splits import resolve_method, split_by_document, split_contiguous, split_documents
from kssm_mlx.errors import DataError

DOCUMENTS = st.lists(st.text(alphabet="abc", min_size=1, max_size=30), min_size=2, max_size=40)
SHARE = st.floats(0.01, 0.49)


@given(DOCUMENTS, SHARE, st.integers(0, 2**32))
def test_documents_go_whole_to_one_side(documents, share, seed):
    assume(len(set(documents)) > 1)
    train, validation = split_by_document(documents, share, seed)
    assert sorted(train + validation) == sorted(documents)
    assert train and validation and set(train).isdisjoint(validation)
    assert (train, validation) == split_by_document(documents, share, seed)
    room = share * sum(map(len, documents))
    assert sum(map(len, validation)) <= room or len(set(validation)) == 1


def test_many_documents_come_close_to_the_share():
    documents = [f"{i} " * (1 + i % 17) for i in range(400)] * 2
    _, validation = split_by_document(documents, 0.1, seed=3)
    assert 0.095 < sum(map(len, validation)) / sum(map(len, documents)) <= 0.1


def test_the_seed_chooses_the_documents():
    documents = [str(i) for i in range(100)]
    assert split_by_document(documents, 0.1, 0)[1] != split_by_document(documents, 0.1, 1)[1]


@given(DOCUMENTS, SHARE)
def test_the_tail_is_cut_off_at_one_character(documents, share):
    train, validation = split_contiguous(documents, share)
    whole = "".join(documents)
    assert "".join(train) + "".join(validation) == whole
    assert len("".join(train)) == int((1 - share) * len(whole))


def test_tinyshakespeare_is_cut_where_everybody_cuts_it(shared_text):
    (train,), (validation,) = split_contiguous([shared_text.read_text("utf-8")], 0.1)
    assert (len(train), len(validation)) == (1_003_854, 111_540)


def test_auto_takes_documents_when_there_are_many():
    assert [resolve_method("auto", count) for count in (19, 20)] == ["contiguous", "documents"]
    assert resolve_method("contiguous", 99) == "contiguous" and resolve_method("documents", 1) == "documents"


@pytest.mark.parametrize(
    "documents, method", [(["one text"], "documents"), (["same"] * 30, "documents"), (["a"], "contiguous")]
)
def test_an_empty_side_is_refused(documents, method):
    with pytest.raises(
        DataError, match=rf"leave one side of the split '{method}' empty at validation = 0\.1"
    ):
        split_documents(documents, method, 0.1, 0)
