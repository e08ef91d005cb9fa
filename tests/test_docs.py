"""The documents: their links lead somewhere, and the technique that docs/add_a_technique.md shows works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from xlt_ray import techniques
from xlt_ray.config import build
from xlt_ray.techniques.technique import Example

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_technique_in_the_document_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add_a_technique.md").read_text("utf-8"), re.DOTALL)
    space: dict[str, object] = {"__name__": "word_dropout"}
    exec(code, space)  # noqa: S102 - our own document
    monkeypatch.setitem(techniques.CATALOGUE, "word_dropout", "word_dropout.WordDropout")
    monkeypatch.setattr(techniques, "load", lambda name: space["WordDropout"])
    (one,) = techniques.build(build({"sources": ["eng_Latn"], "techniques": [{"word_dropout": {"rate": 0.5}}]}))
    assert one.changes_examples
    row = Example("a b c d e f g h", None, "eng_Latn")
    found = [one.example(row, np.random.default_rng([7, step])).text for step in range(200)]
    assert found == [one.example(row, np.random.default_rng([7, step])).text for step in range(200)]
    assert 3.5 < np.mean([len(text.split()) for text in found]) < 4.5 and all(found)
