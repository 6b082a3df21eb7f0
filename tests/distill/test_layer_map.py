import pytest
import torch

from bitkd.distill.layer_map import HeadSelection, group_mean_heads, hidden_map, uniform_map
from bitkd.errors import InputError


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(6, 12, [1, 3, 5, 7, 9, 11]), (4, 12, [2, 5, 8, 11]), (3, 3, [0, 1, 2]), (1, 4, [3])],
)
def test_uniform(student: int, teacher: int, expected: list[int]) -> None:
    assert uniform_map(student, teacher) == expected


def test_hidden_states_follow_their_layers() -> None:
    assert hidden_map([2, 4, 6, 8, 10]) == [0, 3, 5, 7, 9, 11]
    k = 3
    assert hidden_map(uniform_map(4, 12)) == [j * k for j in range(5)]


@pytest.mark.parametrize("student", [0, 5, 13])
def test_uneven(student: int) -> None:
    with pytest.raises(InputError, match=f"{student} student layers do not divide 12 teacher layers"):
        uniform_map(student, 12)


def test_group_mean() -> None:
    scores = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 3, 3)
    assert group_mean_heads(scores, 3)[0, :, 0, 0].tolist() == [0.5, 2.5, 4.5]
    assert group_mean_heads(scores, 6).equal(scores)
    with pytest.raises(InputError, match="6 teacher heads do not form 4 equal groups"):
        group_mean_heads(scores, 4)


@pytest.mark.parametrize(("heads", "copies"), [([0, 1, 2, 3], False), ([1, 2], False), ([2, 0], True), ([3], False)])
def test_selected_heads_are_copied_only_where_they_are_not_consecutive(heads: list[int], copies: bool) -> None:
    scores = torch.arange(8.0).reshape(2, 4, 1, 1).expand(2, 4, 3, 3)
    selection = HeadSelection([[0], heads])
    found = selection(scores, 1)
    assert torch.equal(found, scores[:, heads])
    assert (found.untyped_storage().data_ptr() != scores.untyped_storage().data_ptr()) == copies
    assert not selection.state_dict()
