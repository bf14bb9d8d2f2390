"""Judges what a client is given of a guest's output, from what renderers do with it and not from how it was cleaned.

Written from the threat model and from what the front ends' renderers do: HTML is parsed as browsers parse it, CSS is
read as text after its escapes are undone, and everything is refused that runs, fetches, submits, draws outside its own
place, takes a name of the page, or is of a kind that no renderer should get.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import html5lib

from agentvm_kernel.firewall.height import FOLLOW


def words(text: str) -> set[str]:
    """Return a set of words written as one text."""
    return set(text.split())


HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"

ACTIVE = words(
    """
    script iframe frame frameset object embed applet base meta link form button select textarea option optgroup datalist
    fieldset output keygen isindex template noscript noembed noframes plaintext xmp portal dialog fencedframe slot
    foreignobject use image animate animatemotion animatetransform set feimage handler listener annotation-xml maction
    semantics marquee blink bgsound layer ilayer param source track body html head title menuitem command
    """
)
"""Elements that run, fetch, submit, take part in a form, or mean something to the page around them."""

ADDRESSES = words(
    """
    srcset action formaction poster background data code codebase classid archive manifest profile longdesc lowsrc
    dynsrc usemap ping icon imagesrcset from to values by attributename begin xlink:href xml:base xmlns
    """
)
FORBIDDEN = words(
    """
    srcdoc form target autofocus contenteditable accesskey is slot part exportparts nonce popover popovertarget
    popovertargetaction command commandfor commands http-equiv inert draggable dropzone itemref virtualkeyboardpolicy
    formmethod formtarget download
    """
)
NAMING = {"id", "name", "class", "for", "headers", "list", "aria-labelledby", "aria-describedby", "aria-controls"}
OURS = re.compile(r"vm-|agentvm-scope-[0-9a-f]+\Z|dataframe\Z")
LINK = re.compile(r"https?://[^\s/\\]|mailto:|#vm-", re.IGNORECASE)
PICTURES = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
    "image/bmp": (b"BM",),
}

FETCHES = re.compile(
    r"(?<![\w-])(?:url|src|image|(?:-[a-z]+-)?image-set|(?:-[a-z]+-)?cross-fade|(?:-[a-z]+-)?element|paint|expression|attr"
    r"|env|url-prefix|domain|format|local)\s*\(|@|javascript\s*:|behaviou?r\s*:|-moz-binding"
)
MOVES = re.compile(
    r"(?<![\w-])(?:top|left|right|bottom|inset(?:-[a-z-]+)?|z-index|(?:-[a-z]+-)?transform|translate|scale|rotate|zoom"
    r"|content|(?:-[a-z]+-)?animation(?:-[a-z]+)?|(?:-[a-z]+-)?transition(?:-[a-z]+)?|(?:-[a-z]+-)?filter"
    r"|backdrop-filter|(?:-[a-z]+-)?mask(?:-[a-z]+)?|clip-path|offset(?:-[a-z]+)?|anchor-name|position-anchor"
    r"|position-area|all|pointer-events|(?:-[a-z]+-)?box-shadow|outline(?:-[a-z]+)?|text-shadow|text-indent"
    r"|border-image(?:-[a-z]+)?|list-style-image|view-transition-name|will-change|counter-[a-z]+|quotes|shape-outside"
    r"|(?:margin|padding)-(?:block|inline)[a-z-]*|perspective)\s*:"
)
POSITION = re.compile(r"(?<![\w-])position\s*:\s*([^;}!]*)")
MARGIN = re.compile(r"(?<![\w-])(?:margin|letter-spacing|word-spacing)[a-z-]*\s*:\s*([^;}]*)")

TEX = re.compile(
    r"\\(?:href|url|style|class|cssId|data|require|includegraphics|mmlToken|[gex]?def|let|futurelet|newcommand"
    r"|renewcommand|providecommand|newenvironment|renewenvironment|DeclareMathOperator|csname|unicode|html[A-Z]?[a-zA-Z]*"
    r"|texttip|toggle|mathtip|action|tooltip|catcode|input|include|write|special|label|ref|eqref|bbox)(?![A-Za-z])"
)
PLAIN_BBOX = re.compile(r"\\bbox\s*(?:\[[a-zA-Z0-9#., ]*\])?\s*\{")

MARK = re.compile(r"\x1b\[(?:[0-9;:]{0,200}m|[0-2]?K|[0-9]{0,4}A)")
STEERING = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")

MODULES = {"@jupyter-widgets/base", "@jupyter-widgets/controls", "@jupyter-widgets/output"}
TARGETS = {"jupyter.widget", "jupyter.widget.control", "jupyter.widget.version"}
STATES = {"ok", "error", "abort", "aborted"}
MARKUP_MODELS = {"HTMLModel", "HTMLMathModel"}
MEDIA = {
    "ImageModel": {"png", "jpeg", "jpg", "gif", "webp", "bmp"},
    "AudioModel": {"wav", "mp3", "mpeg", "ogg", "webm", "flac", "aac", "mp4", "m4a", "opus", "x-wav", "wave"},
    "VideoModel": {"mp4", "webm", "ogg", "avi", "mov", "mpeg", "mkv", "ogv", "quicktime"},
}
TYPES = {"text/plain", "text/html", "text/latex", "application/json", "application/vnd.plotly.v1+json", *PICTURES} | {
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.jupyter.stdout",
    "application/vnd.jupyter.stderr",
}
VEGA = re.compile(r"application/vnd\.vega(?:lite)?\.v[0-9.]+\+json\Z")
WIDGET_CLASS = re.compile(r"(?:widget|jupyter|mod|vm)-[A-Za-z0-9_-]+\Z")
CURSORS = re.compile(r"[a-z-]{1,20}\Z")

Problems = Iterator[str]


def text_problems(text: object) -> Problems:
    """Of text that a front end shows with colours."""
    if not isinstance(text, str):
        yield f"a {type(text).__name__} for text"
    elif found := STEERING.search(MARK.sub("", text)):
        yield f"text that steers a terminal: {found[0]!r}"


def tex_problems(text: str) -> Problems:
    """Of text in which formulas are typeset."""
    for found in TEX.finditer(text):
        if not PLAIN_BBOX.match(text, found.start()):
            yield f"TeX that is more than mathematics: {found[0]}"


def css_problems(css: str) -> Problems:
    """Of declarations, or of a style sheet."""
    bare = re.sub(r"/\*.*?(?:\*/|\Z)", "", css, flags=re.DOTALL)
    bare = re.sub(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'", "''", bare)
    if bare.replace("''", "").count('"') or bare.replace("''", "").count("'"):
        yield "a string in CSS that does not end"
    bare = _unescaped(bare).lower()
    if found := FETCHES.search(bare):
        yield f"CSS that fetches or runs: {found[0]}"
    if found := MOVES.search(bare):
        yield f"CSS that draws outside its place: {found[0]}"
    for value in POSITION.findall(bare):
        if value.strip() not in {"relative", "static", "initial", "unset"}:
            yield f"CSS that moves out of the flow: {value}"
    for value in MARGIN.findall(bare):
        if "(" in value or re.search(r"-\s*[.0-9]", value):
            yield f"CSS that moves over what is around: {value}"


def _unescaped(css: str) -> str:
    def char(found: re.Match[str]) -> str:
        code = int(found[1], 16)
        return chr(code) if 0 < code <= 0x10FFFF else "\ufffd"

    return re.sub(r"\\([^0-9a-fA-F\n])", r"\1", re.sub(r"\\([0-9a-fA-F]{1,6})\s?", char, css))


def sheet_problems(css: str, classes: set[str]) -> Problems:
    """Of a style sheet: besides its declarations, that its rules reach only below an element of the same output."""
    yield from css_problems(re.sub(r"@media[^{};]*\{", "{", css))
    for selectors in re.findall(r"([^{}]+)\{", re.sub(r"@media[^{}]*\{", "", css)):
        for selector in selectors.split(","):
            scope = re.match(r"\s*\.(agentvm-scope-[0-9a-f]+)(?=[\s>])(?!\s*[+~])", selector)
            if scope is None or scope[1] not in classes:
                yield f"a rule that reaches beyond its own output: {selector.strip()[:80]}"
            if re.search(r":(?:root|host|has|is|where|not|target|slotted|part|before|after)", selector, re.IGNORECASE):
                yield f"a selector that looks elsewhere: {selector.strip()[:80]}"


def html_problems(html: object, hosts: Sequence[str] = ()) -> Problems:
    """Of HTML that is put into the page with scripts allowed to run."""
    if not isinstance(html, str):
        yield f"a {type(html).__name__} for HTML"
        return
    root = _parsed(html)
    classes = {name for element in _elements(root) for name in (element.get("class") or "").split()}
    for element in _elements(root):
        if element is not root:
            yield from _element_problems(element, classes, hosts)
    yield from tex_problems(_typeset_text(root))


def _parsed(html: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return html5lib.parseFragment(html, container="div", treebuilder="etree")


def _elements(root: Any) -> Iterator[Any]:
    return (element for element in root.iter() if isinstance(element.tag, str))


def _typeset_text(root: Any) -> str:
    """What MathJax looks at: text without that of code, joined over comments and ``wbr``."""
    parts: list[str] = []
    waiting: list[Any] = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        waiting.append(item.tail or "")
        if not isinstance(item.tag, str):
            continue
        name = item.tag.rpartition("}")[2]
        if name not in {"pre", "code", "style", "iframe"}:
            waiting.extend(reversed([item.text or "", *item]))
    return "".join(parts)


def _element_problems(element: Any, classes: set[str], hosts: Sequence[str]) -> Problems:
    name = element.tag.rpartition("}")[2].lower()
    if name == "iframe":
        yield from frame_problems(element, hosts)
        return
    if name in ACTIVE and not (name == "source" and element.tag.startswith(HTML)):
        yield f"an element <{name}>"
    if name == "style":
        yield from sheet_problems("".join(element.itertext()), classes)
    if name == "input" and element.get("type", "text").lower() not in {"checkbox", "radio"}:
        yield "an input that takes text or submits"
    for key, value in element.attrib.items():
        plain = key.rpartition("}")[2].lower()
        yield from (f"<{name}>: {problem}" for problem in _attribute_problems(name, plain, value))


def _attribute_problems(element: str, name: str, value: str) -> Problems:
    if name.startswith(("on", "data-", "xlink:", "xml:", "hx-", "ng-", "v-", "@", ":")):
        yield f"an attribute {name}"
    if name in FORBIDDEN and not (name == "target" and value == "_blank"):
        yield f"an attribute {name}"
    if name in ADDRESSES:
        yield f"an address in {name}: {value[:60]}"
    if name in NAMING and not all(map(OURS.match, value.split())):
        yield f"a name without our prefix in {name}: {value[:60]}"
    if name == "style":
        yield from css_problems(value)
    elif re.search(r"url\s*\(\s*(?!#vm-)", _unescaped(value), re.IGNORECASE):
        yield f"a reference in {name}: {value[:60]}"
    if name == "href" and not (element == "a" and LINK.match(value)):
        yield f"an address in href: {value[:60]}"
    if name == "src":
        yield from _source_problems(element, value)


def _source_problems(element: str, value: str) -> Problems:
    match = re.match(r"data:([a-z]+/[a-z0-9.+-]+);base64,", value, re.IGNORECASE)
    kind = match[1].lower() if match else ""
    fine = {
        # An image element neither runs nor fetches anything of an SVG.
        "img": kind in {*PICTURES, "image/jpg", "image/svg+xml"},
        "audio": kind.startswith("audio/"),
        "video": kind.startswith(("audio/", "video/")),
        "source": kind.startswith(("audio/", "video/")),
    }
    if not fine.get(element, False):
        yield f"what <{element}> is made of has to be fetched, or may run: {value[:60]}"


def frame_problems(element: Any, hosts: Sequence[str]) -> Problems:
    """Of a frame: only ours, of an opaque origin and without a network, is one."""
    given = {key.lower(): value for key, value in element.attrib.items()}
    if given.get("sandbox") != "allow-scripts":
        yield f"a frame that is not sandboxed: {given.get('sandbox')}"
    if given.pop("onload", FOLLOW) != FOLLOW:
        yield "a frame with a handler that is not ours"
    known = {"class", "sandbox", "referrerpolicy", "width", "height", "frameborder", "style", "srcdoc"}
    if set(given) - known or "srcdoc" not in given:
        yield f"a frame with other attributes than ours: {sorted(given)}"
    yield from css_problems(given.get("style", ""))
    outer = html5lib.parse(given.get("srcdoc", ""), treebuilder="etree")
    head, body = outer.find(f"{HTML}head"), outer.find(f"{HTML}body")
    metas = [item for item in head if item.tag == f"{HTML}meta"]
    policies = [item.get("content", "") for item in metas if item.get("http-equiv", "").lower().startswith("content-s")]
    if [item.tag for item in head][:1] != [f"{HTML}meta"] or len(policies) != 1 or head[1] is not _first(metas, 1):
        yield "a frame whose policy does not come first"
    for policy in policies:
        yield from _policy_problems(policy, hosts)
    inner = [item for item in body.iter() if item is not body]
    if [item.tag for item in inner] != [f"{HTML}iframe"] or set(inner[0].attrib) != {"sandbox", "srcdoc"}:
        yield "a frame in which the guest's document is not in a frame of its own"
    elif inner[0].get("sandbox") != "allow-scripts":
        yield "a frame within that is not sandboxed"


def _first(items: list[Any], place: int) -> Any:
    return items[place] if len(items) > place else None


def _policy_problems(policy: str, hosts: Sequence[str]) -> Problems:
    directives = {part.split()[0]: part.split()[1:] for part in policy.split(";") if part.strip()}
    for name in ("default-src", "frame-src", "form-action", "base-uri"):
        if directives.get(name) != ["'none'"]:
            yield f"a frame's policy without {name} 'none'"
    allowed = {"'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:", "'block'"}
    for name, sources in directives.items():
        if found := set(sources) - allowed - {f"https://{host}" for host in hosts}:
            yield f"a frame's policy lets {name} reach {found}"


def bundle_problems(data: object, metadata: object, hosts: Sequence[str] = ()) -> Problems:
    """Of a MIME bundle."""
    if not isinstance(data, dict) or not isinstance(metadata, dict):
        yield "a bundle that is none"
        return
    for mime, value in data.items():
        yield from (f"{mime}: {problem}" for problem in _value_problems(mime, value, hosts))
    for mime, about in metadata.items():
        yield from _metadata_problems(mime, about, data)


def _value_problems(mime: str, value: object, hosts: Sequence[str]) -> Problems:
    if VEGA.match(mime):
        yield from vega_problems(value)
    elif mime not in TYPES:
        yield "a type that is not on the list"
    elif mime == "text/html":
        yield from html_problems(value, hosts)
    elif mime in PICTURES:
        yield from _picture_problems(mime, value)
    elif mime == "application/vnd.plotly.v1+json":
        yield from plotly_problems(value)
    elif mime == "application/vnd.jupyter.widget-view+json":
        if not isinstance(value, dict) or not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", str(value.get("model_id"))):
            yield "a view of a widget without a proper name"
    elif mime != "application/json":
        yield from text_problems(value)
        if mime == "text/latex" and isinstance(value, str):
            yield from tex_problems(value)


def _picture_problems(mime: str, value: object) -> Problems:
    try:
        data = base64.b64decode(str(value).translate({9: None, 10: None, 13: None, 32: None}), validate=True)
    except (binascii.Error, ValueError):
        yield "a picture that is not base64"
        return
    if not data.startswith(PICTURES[mime]):
        yield "a picture of another format"


def _metadata_problems(mime: str, about: object, data: Mapping[str, object]) -> Problems:
    if mime not in data or not isinstance(about, dict):
        yield f"metadata of nothing: {mime[:60]}"
        return
    for name, value in about.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 100_000
        embed = VEGA.match(mime) and name == "embed_options"
        if embed and isinstance(value, dict):
            if value.get("ast") is not True or value.get("tooltip") is not False:
                yield f"a plot with options of the guest: {value}"
        elif not (name in {"width", "height"} and number) and not (name == "expanded" and isinstance(value, bool)):
            yield f"metadata that a renderer obeys: {name[:60]}"


def vega_problems(spec: object) -> Problems:
    """Of a plot: nothing fetched, no way to put an address where one is fetched from, no way out of its data."""
    for key, value in _pairs(spec, ""):
        if key in {"url", "href", "usermeta", "loader", "baseURL", "bind"}:
            yield f"a plot with {key}"
        if key == "mark" and value == "image":
            yield "a plot with image marks"
        if key == "cursor" and not _is_plain_cursor(value):
            yield "a plot that computes a cursor"
        if isinstance(value, dict) and key in {"marks", "mark"} and value.get("type") == "image":
            yield "a plot with image marks"
        if isinstance(value, dict) and value.get("name") == "cursor":
            yield "a plot with a signal of the view's own"
        if key == "marks" and isinstance(value, dict):
            yield from _mark_problems(value)
        if isinstance(value, str) and re.search(r"url\s*\(|constructor|__proto__|event\s*\.\s*view", value):
            yield f"a plot that reaches beyond its data: {value[:60]}"
        if isinstance(value, str) and key != "$schema" and re.search(r"(?<!\w)(?:modify|setdata)\s*\(", value):
            yield f"a plot that changes what is drawn: {value[:60]}"


def _is_plain_cursor(value: object) -> bool:
    if isinstance(value, dict):
        return not set(value) - {"value", "test"} and _is_plain_cursor(value.get("value", "auto"))
    return value is None or isinstance(value, list | int | float) or bool(CURSORS.match(str(value)))


def _mark_problems(mark: Mapping[str, Any]) -> Problems:
    """Of marks: their transforms and triggers write properties of what is drawn, addresses and cursors among them."""
    if "on" in mark:
        yield "a plot with triggers on its marks"
    transforms = mark.get("transform", [])
    for transform in transforms if isinstance(transforms, list) else [transforms]:
        kind = transform.get("type") if isinstance(transform, dict) else None
        if kind in {"formula", "lookup", "window", "load", "joinaggregate", "project", None}:
            yield f"a plot whose marks are computed by {kind}"
        elif re.search(r"url|href|cursor|tooltip|signal", json.dumps(transform.get("as", []))):
            yield f"a plot whose marks get what leads to a fetch: {transform['as']}"


def plotly_problems(figure: object) -> Problems:
    """Of a Plotly figure."""
    for key, value in _pairs(figure, ""):
        if key in {"mapbox", "map", "plotlyServerURL", "topojsonURL", "mapboxAccessToken"}:
            yield f"a figure with {key}"
        if isinstance(value, str):
            if key == "source" and not value.startswith("data:image/"):
                yield "a figure with a picture that is fetched"
            if re.search(r"<\s*/?[a-z]+[^>]*\s(?:href|src|on\w+|style)\s*=|url\s*\(|javascript:", value, re.IGNORECASE):
                yield f"a figure with markup: {value[:60]}"


def _pairs(value: object, key: str) -> Iterator[tuple[str, object]]:
    """Every value and the key that it, or the list it is in, stands under."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += list(value.items())
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]


class Checker:
    """Judges the messages of one kernel in their order: what a widget is stands only in the first about it.

    Args:
        hosts: Hosts that frames may load from.
    """

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self._hosts = hosts
        self._models: dict[str, str] = {}

    def output(self, msg_type: str, content: Any, metadata: Any = None, buffers: Sequence[bytes] = ()) -> list[str]:
        """Return what is wrong with a message of iopub."""
        return [*sound_problems(content), *sound_problems(metadata or {}), *self._output(msg_type, content, buffers)]

    def reply(self, msg_type: str, content: Any) -> list[str]:
        """Return what is wrong with the content of a reply."""
        return [*sound_problems(content), *self._reply(msg_type, content)]

    def prompt(self, content: Any) -> list[str]:
        """Return what is wrong with an input request."""
        problems = [*sound_problems(content), *text_problems(content["prompt"])]
        if set(content) != {"prompt", "password"} or not content["prompt"].startswith("[VM] "):
            problems.append("a prompt that does not say who asks")
        return problems

    def _output(self, msg_type: str, content: Any, buffers: Sequence[bytes]) -> Problems:
        known = {
            "stream": {"name", "text"},
            "display_data": {"data", "metadata", "transient"},
            "update_display_data": {"data", "metadata", "transient"},
            "execute_result": {"data", "metadata", "transient", "execution_count"},
            "error": {"ename", "evalue", "traceback"},
            "clear_output": {"wait"},
            "comm_open": {"comm_id", "target_name", "data"},
            "comm_msg": {"comm_id", "data"},
            "comm_close": {"comm_id", "data"},
        }
        if msg_type == "debug_event":
            return
        if msg_type not in known:
            yield f"a message that notebooks do not have: {msg_type}"
        elif set(content) - known[msg_type]:
            yield f"fields that a {msg_type} does not have: {set(content) - known[msg_type]}"
        elif msg_type in {"comm_open", "comm_msg", "comm_close"}:
            yield from self._comm(msg_type, content, buffers)
        elif "data" in content:
            yield from bundle_problems(content["data"], content["metadata"], self._hosts)
            yield from _display_problems(content)
        elif msg_type == "stream":
            yield from _stream_problems(content)
        elif msg_type == "error":
            yield from _error_problems(content)

    def _comm(self, msg_type: str, content: Any, buffers: Sequence[bytes]) -> Problems:
        name = content["comm_id"]
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", name):
            yield "a comm without a proper name"
        data = content.get("data", {})
        if msg_type == "comm_close":
            if data:
                yield "a closing comm with data"
        elif msg_type == "comm_open" and content["target_name"] not in TARGETS:
            yield f"a comm of a target that is not on the list: {content['target_name']}"
        elif isinstance(data, dict) and isinstance(data.get("state"), dict):
            if msg_type == "comm_open":
                self._models[name] = str(data["state"].get("_model_name"))
            yield from self._widget(self._models.get(name, ""), data["state"])
            paths = data.get("buffer_paths", [])
            if len(paths) != len(buffers) or any(path != ["value"] for path in paths):
                yield f"binary values where none may go: {paths}"

    def _widget(self, model: str, state: Mapping[str, Any]) -> Problems:
        for key in ("_model_module", "_view_module"):
            if state.get(key) is not None and state[key] not in MODULES:
                yield f"a widget of a module that is not on the list: {state[key]}"
        if found := {name for name in state if name in {"_esm", "_css", "_anywidget_id", "__proto__", "constructor"}}:
            yield f"a widget with code: {found}"
        for name, value in state.items():
            yield from (f"{model}.{name}: {problem}" for problem in self._trait(model, name, value, state))

    def _trait(self, model: str, name: str, value: Any, state: Mapping[str, Any]) -> Problems:
        if name == "value" and model in MARKUP_MODELS:
            yield from html_problems(value, self._hosts)
        elif name == "description" or (name == "value" and model == "LabelModel"):
            if name == "description" and state.get("description_allow_html"):
                yield from html_problems(value)
            yield from tex_problems(str(value))
        elif name == "format" and model in MEDIA and value not in MEDIA[model]:
            yield f"a format that may be fetched or run: {value}"
        elif name == "outputs":
            for output in value:
                yield from self._stored(output)
        elif name == "_dom_classes" and not all(
            isinstance(item, str) and re.match(r"(?:widget|jupyter|mod|vm)-[a-z-]+\Z", item) for item in value
        ):
            yield f"classes of the page: {value}"
        elif name in {"icon", "button_style", "bar_style", "tag_style", "box_style"} and not re.fullmatch(
            r"[a-z0-9-]*", value if isinstance(value, str) else ""
        ):
            yield f"a class of the page: {value}"
        elif model.endswith(("LayoutModel", "StyleModel")) and isinstance(value, str) and not name.startswith("_"):
            yield from _single_value_problems(name, value)

    def _stored(self, output: Any) -> Problems:
        kind = output.get("output_type")
        content = {name: value for name, value in output.items() if name != "output_type"}
        if kind in {"display_data", "execute_result", "stream", "error"}:
            yield from self._output(kind, content, ())
        else:
            yield f"an output of an unknown kind: {kind}"

    def _reply(self, msg_type: str, content: Any) -> Problems:
        states = (
            {"complete", "incomplete", "invalid", "unknown", "error"} if msg_type == "is_complete_reply" else STATES
        )
        if content.get("status") not in states:
            yield f"a status that does not exist: {content.get('status')}"
        if content.get("status") == "error":
            yield from _error_problems(content)
        match msg_type:
            case "execute_reply":
                yield from self._executed(content)
            case "inspect_reply" if "data" in content:
                yield from bundle_problems(content["data"], content["metadata"], self._hosts)
            case "complete_reply":
                yield from _completion_problems(content)
            case "kernel_info_reply" if content.get("help_links"):
                yield "links of the guest in the Help menu"
            case "debug_reply":
                body = content.get("body")
                # What is inspected richly is shown by the renderers of outputs.
                if isinstance(body, dict) and "data" in body:
                    yield from bundle_problems(body["data"], body.get("metadata", {}), self._hosts)

    def _executed(self, content: Any) -> Problems:
        for payload in content.get("payload", []):
            yield from _payload_problems(payload)
        for expression in content.get("user_expressions", {}).values():
            if expression.get("status") == "ok":
                yield from bundle_problems(expression["data"], expression["metadata"], self._hosts)
            else:
                yield from _error_problems(expression)


def _single_value_problems(name: str, value: str) -> Problems:
    """Of what a layout or a style of a widget sets, one property each."""
    yield from css_problems(value)
    if re.search(r"[;{}]", value):
        yield f"more than one value: {value[:60]}"
    if name.startswith("margin"):
        yield from css_problems(f"margin: {value}")
    if name in {"top", "left", "right", "bottom"} and re.search(r"-\s*[.0-9]|\(", value):
        yield f"a place over what is around: {value}"


def sound_problems(content: Any) -> Problems:
    """Of any message: every client must be able to read it."""
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        yield f"no JSON in UTF-8: {error}"


def _display_problems(content: Any) -> Problems:
    transient = content.get("transient", {})
    name = transient.get("display_id", "x") if isinstance(transient, dict) else None
    if set(transient) - {"display_id"} or not (isinstance(name, str) and name.isascii() and name.isprintable()):
        yield f"a transient that is none: {transient}"
    count = content.get("execution_count")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        yield "a count that is no number"


def _stream_problems(content: Any) -> Problems:
    if content.get("name") not in {"stdout", "stderr"}:
        yield f"a stream of another name: {content.get('name')}"
    yield from text_problems(content.get("text"))


def _error_problems(content: Any) -> Problems:
    for name in ("ename", "evalue"):
        yield from text_problems(content.get(name, ""))
    if not isinstance(content.get("traceback", []), list):
        yield "a traceback that is no list"
    for entry in content.get("traceback", []):
        yield from text_problems(entry)
        for line in re.sub(r"\x1b\[[^m]*m", "", str(entry)).split("\n"):
            # VS Code writes links of a traceback, and links around the places in it, as HTML.
            if re.search(r"<a", line, re.IGNORECASE):
                yield "a traceback with a link"
            if "'" in line and re.search(r"File\s+.+:\d+|Cell\s*In\s*\[\d|Input\s+In\s*\[\d", line):
                yield "a traceback with a place that ends early"


def _payload_problems(payload: Any) -> Problems:
    kind = payload.get("source")
    if kind == "page":
        if set(payload) - {"source", "data", "start"} or set(payload["data"]) != {"text/plain"}:
            yield "a pager with more than text"
        yield from text_problems(payload["data"].get("text/plain"))
    elif kind == "set_next_input":
        if set(payload) - {"source", "text", "replace"} or not isinstance(payload["text"], str):
            yield "a proposed cell with more than code"
        elif payload["text"].lstrip().startswith(("%", "!")):
            yield "a proposed cell that the host carries out"
    elif kind != "ask_exit" or set(payload) - {"source", "keepkernel"}:
        yield f"a payload of another kind: {kind}"


def _completion_problems(content: Any) -> Problems:
    texts = [value for _, value in _pairs(content.get("matches", []), "") if isinstance(value, str)]
    texts += [value for _, value in _pairs(content.get("metadata", {}), "") if isinstance(value, str)]
    if any("<" in text for text in texts):
        yield "completions with markup"
    for text in texts:
        yield from text_problems(text)
