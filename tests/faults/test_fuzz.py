"""500 cases of made-up input: refused in a sentence or fine, never a traceback, a hang or worse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.fuzz import CAMPAIGNS, run_campaign
from tests.faults.sandbox import Sandbox

COUNT = 500


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_made_up_input_is_refused_in_a_sentence(sandbox: Sandbox, name: str) -> None:
    campaign = run_campaign(sandbox, name, round(COUNT * CAMPAIGNS[name][2]))
    told = [f"{answer}\n    {str(case)[:400]}" for answer, case in campaign.bad.values()]
    assert not told, "\n".join([f"{campaign.bad_cases} of {campaign.cases}:", *told])
