"""Whatever stands in an inventory file, it is either expanded or refused with the place and what to do."""

import os
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue_emulator.inventory.load import (
    InventoryError,
    example_inventory,
    example_names,
    expand,
    parse_inventory,
)
from retinue_emulator.inventory.model import Inventory

from ..nonsense import NONSENSE, spoiled

_EXAMPLES = settings(max_examples=int(os.environ.get("RETINUE_FUZZ_EXAMPLES", "150")), deadline=None, print_blob=True)
_DOCUMENTS = [
    example_inventory(name).model_dump(mode="json", by_alias=True, exclude_none=True) for name in example_names()
]
_MOST_NODES = 10_000
_WHERE = re.compile(r"\w+(\[.+\])?(\.\w.*)?: .+|\[.+\]: .+", re.DOTALL | re.IGNORECASE)
_WHOLE = ("is not YAML", "must be a mapping", "appears more than once")


def _parsed(text: str) -> Inventory | InventoryError:
    try:
        return parse_inventory(text)
    except InventoryError as error:
        return error


def _read(text: str) -> None:
    found = _parsed(text)
    if isinstance(found, InventoryError):
        assert found.problems
        for problem in found.problems:
            assert _WHERE.fullmatch(problem) or any(text in problem for text in _WHOLE), problem
        return
    nodes = expand(found)
    assert 0 < len(nodes) <= _MOST_NODES
    assert len({node.name for node in nodes}) == len(nodes)
    assert all(node.cpu_millis >= 0 and node.memory_bytes >= 0 for node in nodes)


@_EXAMPLES
@given(spoiled(st.sampled_from(_DOCUMENTS)))
def test_a_document_with_one_thing_wrong(document: Any) -> None:
    _read(yaml.safe_dump(document))


@_EXAMPLES
@given(NONSENSE.map(yaml.safe_dump) | st.text() | st.text(alphabet="-: []{}&*!|>'\"\n\tab1"))
def test_any_text(text: str) -> None:
    _read(text)


@pytest.mark.parametrize("text", ["cluster: 2001-99-99", "count: " + "9" * 5000, "[" * 50_000])
def test_what_the_parser_itself_stumbles_over(text: str) -> None:
    _read(text)


def test_anchors_that_multiply_cost_no_memory() -> None:
    levels = ["l0: &l0 {name: n, count: 1, preset: b200, cpu: 1}"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    _read("\n".join([*levels, "racks: *l11"]))
