"""The environment variable that turns the gate off."""

import pytest

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.switch import gate_mode


@pytest.mark.parametrize(
    ("value", "mode"), [(None, "1"), ("", "1"), ("1", "1"), (" warn ", "warn"), ("0", "0")]
)
def test_the_switch_has_three_positions(monkeypatch, value, mode):
    monkeypatch.delenv("MERGEKIT_COLLAPSE", raising=False)
    if value is not None:
        monkeypatch.setenv("MERGEKIT_COLLAPSE", value)
    assert gate_mode() == mode


@pytest.mark.parametrize("value", ["off", "2", "true"])
def test_another_value_is_an_error_with_the_valid_ones(monkeypatch, value):
    monkeypatch.setenv("MERGEKIT_COLLAPSE", value)
    with pytest.raises(InvalidRecipeError, match=r"valid are 1 .*, warn .* and 0"):
        gate_mode()
