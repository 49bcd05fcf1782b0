"""Tables in LaTeX."""

from __future__ import annotations

from taming.evaluation.latex import DOWN, UP, latex_table

ROWS = [
    {"first stage": "a_b & 50%", "images": 12, "rFID": "3.20", "codes used": "5.9%"},
    {"first stage": r"c\d", "images": 7, "rFID": "-", "codes used": "-"},
]


def test_a_table_with_arrows() -> None:
    assert latex_table(ROWS, {"rFID": DOWN, "images": UP, "codes used": ""}).splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"first stage & images $\uparrow$ & rFID $\downarrow$ & codes used \\",
        r"\midrule",
        r"a\_b \& 50\% & 12 & 3.20 & 5.9\% \\",
        r"c\textbackslash{}d & 7 & -- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_numbers_and_nothing() -> None:
    assert latex_table([{"k": 0.123456789}]).splitlines()[4] == r"0.123457 \\"
    assert latex_table([]).splitlines()[0] == r"\begin{tabular}{}"
