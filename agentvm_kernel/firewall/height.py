"""How a frame gets the height of its content: three scripts, each of which tells the next one out a number.

The innermost runs in the guest's document, which can forge all that it says: it is honest for honest documents, and
keeps from them that a document as high as its frame makes the frame grow without end. The outer frame's script, which
the guest cannot reach, bounds the number, how often it changes and how often altogether.
"""

from __future__ import annotations

import re
from typing import Final

DEFAULT: Final = 400
"""Height of a frame until its document says otherwise, pixels."""

_LEAST: Final = 20
_MOST: Final = 4000
_PAUSE: Final = 100
"""Milliseconds between two changes of a frame's height."""

_CHANGES: Final = 200
"""How often a frame's height may change altogether; then its document scrolls."""

# A document that is higher than its frame says by how much. Of one that is not, only what is in it tells: elements may
# have their height from the frame ("height: 100%", or "auto" within such), so that those which reach its end are looked
# into, and their white space does not count. Margins that collapse make that inexact by some pixels ("SLACK").
_MEASURE: Final = """
const root = document.documentElement, watched = new WeakSet(), SLACK = 24;
let view = 0, left = 0;

const inside = element => {
  let low = 0;
  for (const node of (element.shadowRoot || element).childNodes) {
    if (--left < 0) break;
    if (node.nodeType === 1) low = Math.max(low, end(node));
    else if (node.nodeType === 3 && node.data.trim()) {
      const text = document.createRange();
      text.selectNode(node);
      low = Math.max(low, text.getBoundingClientRect().bottom + scrollY);
    }
  }
  return low;
};

const isOpen = (element, low, style) => {
  if (style.overflowY !== 'visible' || element.ownerSVGElement !== undefined) return false;
  if (!element.computedStyleMap) return Math.abs(low - view) < SLACK;
  return /auto|%/.test(element.computedStyleMap().get('height'));
};

const end = element => {
  const style = getComputedStyle(element), pixels = name => parseFloat(style[name]) || 0;
  if (style.display === 'none' || style.position === 'fixed') return 0;
  if (style.display === 'contents') return inside(element);
  if (!watched.has(element)) { watched.add(element); sizes.observe(element) }
  const page = element === root || element === document.body, box = element.getBoundingClientRect();
  let low = box.bottom + scrollY;
  if (element !== root && style.overflowY === 'visible') low = Math.max(low, box.top + scrollY + element.scrollHeight);
  if (low < view - 1) low = page ? Math.max(low, inside(element)) : low;
  else if (page || isOpen(element, low, style)) {
    const within = inside(element);
    if (within) low = Math.min(low, within + pixels('paddingBottom') + pixels('borderBottomWidth'));
  }
  return low + pixels('marginBottom');
};

const measure = () => {
  view = root.clientHeight;
  left = 5000;
  const bar = innerHeight - view, body = document.body;
  const most = Math.max(root.scrollHeight, body ? body.getBoundingClientRect().top + scrollY + body.scrollHeight : 0);
  if (most > view + 1 && !(Math.abs(most - view - held) <= 2)) return Math.ceil(most + bar);
  const low = end(root), stretched = root.getBoundingClientRect().bottom + scrollY >= view - 1;
  return Math.max(LEAST, Math.ceil(stretched && low > view - SLACK || low > view ? view + bar : low + bar));
};
"""

# Growth is told at once, shrinking once it has rested. What comes of a change shows whether the content has its height
# from the frame: if it is as much too high as before ("100vh" with a margin), then that is how it is ("held"); if it
# shrank along, the frame takes back the height that it had, and shrinks no more. Charts that draw anew some time after
# a change are known by the third time; what only grew for long is tried again, a few times.
_TELL: Final = """
let height = 0, width = 0, told = 0, held = NaN, shrinks = true, touched = false;
let step = 0, when = 0, streak = 0, tries = 3, first = 0, rest = 0, timer = 0;

const tell = number => { told = number; touched = false; parent.postMessage(number, '*') };

const takeBack = number => { shrinks = false; tell(number) };

const follow = number => {
  const by = number - innerHeight, now = performance.now();
  const again = now - when < 2000 && (by > 0 ? step > 0 && by >= step - 2 : step < 0);
  streak = again ? streak + 1 : 0;
  if (!streak) first = innerHeight;
  step = by;
  when = now;
  if (streak < 3) tell(number);
  else if (by > 0) {
    held = by;
    if (tries-- > 0) setTimeout(() => { held = NaN; streak = 1; when = performance.now(); look() }, 3000);
  }
  else takeBack(first);
};

const look = () => {
  timer = 0;
  if (!innerHeight || !innerWidth) return;
  const number = measure(), by = number - innerHeight;
  if (number === told || Math.abs(by) <= 1 || Math.abs(by - held) <= 2) return;
  if (by > 0) follow(number);
  else if (shrinks && number !== rest) { rest = number; soon(250) }
  else if (shrinks) follow(number);
};

const soon = pause => { if (!timer) timer = setTimeout(look, pause) };
const changed = () => soon(50);
const sizes = new ResizeObserver(changed), parts = new MutationObserver(() => { touched = true; changed() });

const resized = () => {
  if (!innerHeight || !innerWidth) return;
  const before = height, same = width === innerWidth && !touched && !parts.takeRecords().length;
  if (width !== innerWidth) { held = NaN; shrinks = true }
  height = innerHeight;
  width = innerWidth;
  const by = measure() - height;
  if (same && height === told && height > before && by > 1) held = by;
  if (same && height === told && height < before && (by < -1 || height + by >= before - 1))
    takeBack(Math.max(before, height + by));
  changed();
};

const begin = () => {
  height = innerHeight;
  width = innerWidth;
  parts.observe(root, {subtree: true, childList: true, characterData: true, attributes: true});
  for (const kind of ['load', 'toggle', 'transitionend', 'animationend']) addEventListener(kind, changed, true);
  addEventListener('resize', resized);
  look();
};

if (document.readyState === 'loading') addEventListener('DOMContentLoaded', begin);
else begin();
"""

_NO_CALLS: Final = """
for (const name of ['RTCPeerConnection', 'webkitRTCPeerConnection'])
  Object.defineProperty(window, name, {value: undefined});
"""

# The guest's document may send what and as often as it likes; the page outside gets whole numbers within bounds, one
# each pause, and so many altogether. It asks for the last one when it has the frame anew.
_BOUND: Final = """
let last = 0, wanted = 0, left = CHANGES, timer = 0;
const isInner = source => source && source === document.querySelector('iframe').contentWindow;
const tell = () => parent.postMessage(last, '*');
const pass = () => {
  timer = 0;
  if (wanted === last || !left) return;
  left--;
  last = wanted;
  tell();
  timer = setTimeout(pass, PAUSE);
};
addEventListener('message', event => {
  if (event.source === parent) { if (last) tell() }
  else if (isInner(event.source) && Number.isFinite(event.data)) {
    wanted = Math.round(Math.min(Math.max(event.data, LEAST), MOST));
    if (!timer) pass();
  }
});
"""

# In a handler a bare name is looked up on the element first: hence "window.".
FOLLOW: Final = (
    "const f=this;f.contentWindow.postMessage(0,'*');if(f.agentvm)return;f.agentvm=1;"
    "window.addEventListener('message',function g(e){"
    "if(!f.isConnected){window.removeEventListener('message',g);f.agentvm=0;return}"
    "if(e.source&&e.source===f.contentWindow&&Number.isFinite(e.data))"
    f"f.style.height=Math.min(Math.max(e.data,{_LEAST}),{_MOST})+'px'}})"
)
"""The handler on the frame in the page: the only script of ours that stands there, and the same for every output."""


def _script(text: str) -> str:
    """A script of one line, with the bounds in the place of their names."""
    for name, value in (("LEAST", _LEAST), ("MOST", _MOST), ("PAUSE", _PAUSE), ("CHANGES", _CHANGES)):
        text = re.sub(rf"\b{name}\b", str(value), text)
    return f"<script>(() => {{ {' '.join(text.split())} }})()</script>"


INNER: Final = _script(_NO_CALLS + _MEASURE + _TELL)
"""Stands before the guest's document."""

OUTER: Final = _script(_BOUND)
"""Stands in the document around it."""
