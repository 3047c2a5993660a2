"""Votes are counted as the paper says, and a bad row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import inside

from djepa_mm.errors import UserError
from djepa_mm.evaluate.win_rate import win_rates

VOTES = """model,prompt,adherence,coherence,realism
ours,1,better,worse,worse
ours,2,same,worse,better
ours,3,same,same,better

ours,4,Same , same,same
ours,5,worse,,
other,"1, the first",same,better,
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_first_question_that_is_not_the_same_decides(tmp_path: Path) -> None:
    rates = win_rates(written(tmp_path / "votes.csv", VOTES))
    assert rates["ours"] == {
        "votes": 5,
        "better": 2,
        "same": 1,
        "worse": 2,
        "win_rate": (2 + 0.5) / 5,
        "decided_by": {"adherence": 2, "coherence": 1, "realism": 1},
    }
    assert rates["other"]["win_rate"] == 1
    (only,) = win_rates(written(tmp_path / "one.csv", "\ufeffRealism,adherence,coherence\nworse,same,same\n")).values()
    assert only["win_rate"] == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"bad\.csv:1: expected one column 'adherence'"),
        ("adherence,coherence\nbetter,same\n", r"bad\.csv:1: expected one column 'realism'"),
        ("adherence,coherence,realism\n", "no votes"),
        ("adherence,coherence,realism\nsame,bettr,same\n", r"bad\.csv:2: coherence 'bettr' is none of better"),
        ("adherence,coherence,realism\nbetter,same,same\nsame,,better\n", r"bad\.csv:3: coherence '' is none"),
        ("adherence,coherence,realism\nbetter,same,2\n", r"bad\.csv:2: realism '2'"),
        ("adherence,coherence,realism\nbetter,same\n", r"bad\.csv:2: 2 fields, and the header names 3"),
        (
            "model,model,adherence,coherence,realism\na,b,same,same,same\n",
            r"bad\.csv:1: .*'model' comes twice",
        ),
        ("model,adherence,coherence,realism\n,same,same,same\n", r"bad\.csv:2: says no model"),
        ('adherence,coherence,realism\n"better,same,same\n', "cannot be read as CSV"),
    ],
)
def test_bad_votes_are_named(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        win_rates(written(tmp_path / "bad.csv", text))


def test_the_command(tmp_path: Path) -> None:
    """A run folder of that name stays one."""
    votes = written(tmp_path / "votes.csv", VOTES)
    result = inside("evaluate", "winrate", str(votes), "--out", "rates.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "50.0%" in result.stdout
    assert json.loads((tmp_path / "rates.json").read_text())["ours"]["win_rate"] == 0.5
    for arguments, reason in (
        (("winrate", "none.csv"), "none.csv: cannot be read"),
        (("runs/digits", str(votes)), "one RUN is measured at a time"),
        (("winrate", str(votes), "--count", "3"), "--count does not go with winrate"),
        (("winrate", str(votes), "--out", str(tmp_path)), "that is a folder"),
        (("winrate",), "evaluate winrate: which votes? name their file: djepa-mm evaluate winrate VOTES.csv"),
    ):
        result = inside("evaluate", *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1
