"""axe-core looks at a page: whom does it keep out who does not see well, or at all, or uses no pointer?"""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page
from ui_packages import ui_packages

_GRAVE = {"serious", "critical"}
# What lies in a container without a size is not in sight, says axe-core, and it does not look at its colours.
_LOOK = """async places => {
  const style = document.head.appendChild(document.createElement('style'));
  style.textContent = '.jp-ThemedContainer { min-width: 100vw; min-height: 100vh; }';
  const found = await axe.run({include: places.map(place => [place])}, {resultTypes: ['violations']});
  style.remove();
  const contrast = ['violations', 'passes'].flatMap(kind => found[kind].filter(({id}) => id === 'color-contrast'));
  return {
    isContrastSeen: contrast.some(({nodes}) => nodes.length > 0),
    violations: found.violations.map(({id, impact, nodes}) => ({
      id, impact, nodes: nodes.map(one => `${one.html.slice(0, 300)} ${one.failureSummary}`)
    }))
  };
}"""


def hindrances(page: Page, *places: str) -> list[dict[str, Any]]:
    """Return what axe-core finds grave.

    Args:
        page: The page.
        places: Selectors of what is looked at; there is text in it.
    """
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate((ui_packages() / "axe-core/axe.min.js").read_text())
    found = page.evaluate(_LOOK, list(places))
    assert found["isContrastSeen"]
    return [one for one in found["violations"] if one["impact"] in _GRAVE]
