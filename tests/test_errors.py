"""Errors carry a code, the key and a suggestion."""

import pickle

import pytest
from torch.utils.data import DataLoader

from backbones.errors import CODES, Finding, UserError, unknown


def test_fields_survive_copies():
    error = UserError("SOLVER.MAX_ITER is 0:\nit must be at least 1", "value", "SOLVER.MAX_ITER", 1)
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert str(copy) == "SOLVER.MAX_ITER is 0: it must be at least 1"
        assert (copy.code, copy.key, copy.suggestion) == ("value", "SOLVER.MAX_ITER", 1)
    assert Finding.of(error) == Finding("error", str(error), "", "value", "SOLVER.MAX_ITER")
    assert UserError("a message alone").code == "value"
    with pytest.raises(AssertionError):
        UserError("x", "no-such-code")


def test_nearest_name_is_suggested():
    for value, suggestion in (("CPU", "cpu"), ("cuba", "cuda"), ("zzzzzz", None)):
        error = unknown("MODEL.DEVICE", value, ("cpu", "cuda"), "MODEL.DEVICE")
        assert (error.code, error.key, error.suggestion) == ("unknown-name", "MODEL.DEVICE", suggestion)
    assert unknown("number", "11", (1, 12)).suggestion == 1


class Unreadable:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("image 'a.png' cannot be read", "bad-file")


def test_errors_of_workers_keep_their_line():
    with pytest.raises(UserError) as caught:
        list(DataLoader(Unreadable(), num_workers=1))
    assert str(caught.value) == "image 'a.png' cannot be read" and caught.value.code in CODES
