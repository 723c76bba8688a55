"""The generated pages in docs/ are those of the present declarations."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from schemas.enums import BLENDING_METHODS
from tamiyo_stream.reference import PAGES, write_pages

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `tamiyo-stream reference`"


def test_only_pages_that_changed_are_written(tmp_path) -> None:
    assert {path.relative_to(tmp_path).as_posix() for path in write_pages(tmp_path)} == set(PAGES)
    stale = tmp_path / "reference" / "features.md"
    stale.write_text("old", encoding="utf-8")
    assert write_pages(tmp_path) == [stale]


def test_the_picture_of_the_curves_names_every_method_and_ends_each_curve_at_one() -> None:
    picture = ET.fromstring(PAGES["reference/alpha-curves.svg"]())  # noqa: S314 - our own text
    named = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert set(BLENDING_METHODS) <= named
    curves = list(picture.iter("{http://www.w3.org/2000/svg}polyline"))
    heights = [[float(point.split(",")[1]) for point in curve.attrib["points"].split()] for curve in curves]
    assert {tuple(h[:1] + h[-1:]) for h in heights} == {(224.0, 36.0)}
