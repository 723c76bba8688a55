"""The reference page of the risk rules is current."""

from __future__ import annotations

from pathlib import Path

from tamiyo_stream.policy.reference import render_risk_rules
from tamiyo_stream.policy.risk_rules import RISK_RULES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "risk-rules.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_risk_rules(), "write render_risk_rules() to the page"


def test_every_rule_has_its_row() -> None:
    page = render_risk_rules()
    assert all(f"| `{rule.event}` | {rule.level.name} |" in page for rule in RISK_RULES)
    assert "| 8–31 | germinate kernel 0–23 | SEED |" in page
