"""axe-core looks at a page: whom does it keep out who does not see, or uses no pointer?

Of contrast it says nothing in JupyterLab, where it takes none of the panel's text for text in sight.
"""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page
from ui_packages import ui_packages

_GRAVE = {"serious", "critical"}
_LOOK = """async places => {
  const found = await axe.run({include: places.map(place => [place])}, {resultTypes: ['violations']});
  return found.violations.map(({id, impact, nodes}) => ({id, impact, nodes: nodes.map(one => one.html.slice(0, 300))}));
}"""


def hindrances(page: Page, *places: str) -> list[dict[str, Any]]:
    """Return what axe-core finds grave.

    Args:
        page: The page.
        places: Selectors of what is looked at.
    """
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate((ui_packages() / "axe-core/axe.min.js").read_text())
    return [one for one in page.evaluate(_LOOK, list(places)) if one["impact"] in _GRAVE]
