"""300 cases of made-up input: refused in a sentence or fine, never a traceback, a hang or worse."""

from __future__ import annotations

import pytest

from tests.faults.fuzz import CAMPAIGNS, known_cases, run_campaign, shown
from tests.faults.sandbox import GOOD, Sandbox

COUNT = 300


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_made_up_input_is_refused_in_a_sentence(sandbox: Sandbox, name: str) -> None:
    campaign = run_campaign(sandbox, name, round(COUNT * CAMPAIGNS[name][2]))
    told = [f"{answer}\n    {shown(case)}" for answer, case in campaign.bad.values()]
    assert not told, "\n".join([f"{campaign.bad_cases} of {campaign.cases}:", *told])


def test_what_once_failed(sandbox: Sandbox) -> None:
    answers = [(case, sandbox.run(target, case)) for target, case in known_cases()]
    bad = [(case, answer) for case, answer in answers if answer.partition(":")[0] not in GOOD]
    assert not bad, "\n".join(f"{answer}\n    {shown(case)}" for case, answer in bad)
