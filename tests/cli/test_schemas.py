"""``ask --schema``: files and JSON as users give them; errors take two lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unmask.cli.main import main

CASES = Path(__file__).parents[1] / "grammars" / "schemas"


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), "red").save("in.png")
    return "in.png"


@pytest.mark.parametrize("name", ["enum", "nested", "list_of_enum", "nullable-enum", "required-null"])
def test_reported_schemas_are_answered(name: str, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", picture, "what colour is the car?", "--schema", str(CASES / f"{name}.json")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == list(json.loads((CASES / f"{name}.json").read_text())["properties"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (str(CASES / "recursive.json"), "#/$defs/N refers to itself"),
        (str(CASES / "outside.json"), "is not a path inside this schema"),
        ("true", "schema: expected a schema, got true"),
        ("[]", "schema: expected a schema, got []"),
        ('"red"', 'schema: expected a schema, got "red"'),
        ('{"a":', "the schema is not JSON"),
        ('{"const": ' + "1" * 5000 + "}", "the schema has a number of 5000 digits"),
        ('{"anyOf": [' * 2000 + "{}" + "]}" * 2000, "nested"),
        ("missing.json", "missing.json"),
        ("latin.json", "the schema is not text in UTF-8"),
        ("empty.json", "the schema is not JSON"),
        (".", "is a directory"),
    ],
)
def test_wrong_schemas_take_two_lines(given: str, said: str, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("latin.json").write_bytes(b'{"const": "\xe9"}')
    Path("empty.json").touch()
    assert main(["ask", picture, "what?", "--schema", given]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and len(err.splitlines()) == 2, err
    assert "codec" not in err and "int_max_str_digits" not in err
