"""The protocols in shared memory: every order of steps and deaths, in small cases.

`python -m models --large`, run from `tests/`, tries larger ones: `make stress` does so.
"""

from __future__ import annotations

import os

import pytest

from models.__main__ import cases, is_right
from models.every_order import Case, explore

pytestmark = pytest.mark.skipif(
    os.environ.get("MPSHM") == "off" or "MPSHM_DEBUG" in os.environ,
    reason="touches neither the core nor the road: one of `make test`'s three runs is enough",
)

SMALL = [pytest.param(case, id=name) for name, case in cases().items() if not case.large]


@pytest.mark.parametrize("case", SMALL)
def test_every_order_of_steps_and_deaths(case: Case) -> None:
    """A protocol holds; a broken variant of it fails as it must."""
    found = explore(case.make())
    expected = case.fails or "no fault"
    assert is_right(case, found), f"{expected}, but found {found}"
