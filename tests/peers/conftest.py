"""What of a peer's tests ends otherwise on purpose: by name, with the reason, and strictly, so that no entry outlives its cause."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dlscale.errors import DlscaleError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that a module lists as REFUSED (by an error of dlscale's own) and as DIFFERENT (another assertion)."""
    for item in items:
        module = getattr(item, "module", None)
        for table, ends in (("REFUSED", DlscaleError), ("DIFFERENT", (AssertionError, AttributeError, pytest.fail.Exception))):
            for pattern, reason in getattr(module, table, {}).items():
                if re.fullmatch(pattern, item.name):
                    item.add_marker(pytest.mark.xfail(reason=reason, raises=ends, strict=True))


@pytest.fixture
def global_random_seed() -> int:
    """Of scikit-learn's own tests, which take it from their environment."""
    return 42


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def global_dtype(request: pytest.FixtureRequest) -> type[np.floating]:  # type: ignore[type-arg]
    """Of scikit-learn's own tests; both of the values that it may have there."""
    return request.param  # type: ignore[no-any-return]
