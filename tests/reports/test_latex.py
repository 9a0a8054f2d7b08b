from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.latex import escape, table
from reports.tables import Table
from reports.text import clean

#: All that may be left of what TeX acts on: commands that this module writes, and braces around a sign.
WRITTEN = re.compile(
    r"\\[&%$#_{}]|\\(?:text(?:backslash|asciitilde|asciicircum|asciigrave|less|greater|bar)|ldots|dag)\{\}"
    r"|\$(?:-|\\[A-Za-z]+)\$|\{(?:''|[\[\]*])?\}"
)

foreign = st.text() | st.text("\\{}$&#^_~%[]*-`'\"<>|?! a1↑±\N{EN DASH}—\n", max_size=12)


@given(foreign)
def test_foreign_text_is_inert(text: str) -> None:
    shown = escape(text)
    assert not set('\\{}$&#^_~%[]*`"<>|\n') & set(WRITTEN.sub("", shown))
    assert "--" not in escape(text.replace("\N{EN DASH}", "").replace("—", ""))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("50 % of $5 & #1", r"50 \% of \$5 \& \#1"),
        ("a_b^c~d", r"a\_b\textasciicircum{}c\textasciitilde{}d"),
        ("[x] *", "{[}x{]} {*}"),
        ("<|>", r"\textless{}\textbar{}\textgreater{}"),
        ("-0.5 ± 0.1", r"$-$0.5 $\pm$ 0.1"),
        ("(-3\N{EN DASH}-1)", "($-$3--$-$1)"),
        ("coda-prompt --seed 0", "coda-prompt -{}-seed 0"),
        ("inflora †", r"inflora \dag{}"),
        ("accuracy (%) ↑ forgetting ↓ —", r"accuracy (\%) $\uparrow$ forgetting $\downarrow$ ---"),
        ("a\nb", "a b"),
    ],
)
def test_signs_become_commands(text: str, shown: str) -> None:
    assert escape(text) == shown


SMALL = Table(("method", "accuracy (%) ↑"), (("[a]_1", "-1.0"), ("b", "2.0 ± 0.5")), frozenset({(1, 1)}))


def test_a_table_is_set_with_booktabs() -> None:
    assert table(SMALL, "Results & more.", "tab:x-1").splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\caption{Results \& more.}",
        r"\label{tab:x-1}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & accuracy (\%) $\uparrow$ \\",
        r"\midrule",
        r"{[}a{]}\_1 & $-$1.0 \\",
        r"b & \textbf{2.0 $\pm$ 0.5} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


cells = st.lists(st.lists(foreign, min_size=3, max_size=3), min_size=1, max_size=4)


@given(cells, foreign)
def test_any_table_is_balanced(rows: list[list[str]], caption: str) -> None:
    head, *body = map(tuple, rows)
    text = table(Table(head, tuple(body), frozenset({(0, 2)})), caption, "tab:x")
    bare = re.sub(r"\\[\\{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [
        ("begin", "table"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("end", "table"),
    ]
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(lines) == len(rows)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in lines)


@given(foreign)
def test_a_line_of_text_stays_a_line(text: str) -> None:
    assert len(escape(text).splitlines()) == (1 if clean(text) else 0)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_table_can_be_set(tmp_path: Path) -> None:
    hostile = Table(SMALL.columns, (*SMALL.rows, ("*x", r"\par{$^_~%#&}"), ("[y", "--<>|`\"'")))
    text = table(hostile, "A caption.", "tab:x")
    document = (
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{text}\\end{{document}}\n"
    )
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
