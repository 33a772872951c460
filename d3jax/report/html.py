"""The HTML that report.html is made of: tables, figures, marks, the page around them. No jax."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Looks = Mapping[str, tuple[str, Any]]
"""Colour and dash of every defence."""


def escape(text: Any) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def drawn(section: Callable[[], str]) -> str:
    """What a section of a page makes, or a line that says why it is not there: the rest of the page does not depend on it."""
    try:
        return section()
    except Exception as error:  # noqa: BLE001 (whatever it is)
        return f"<p class=note>A part of this section could not be drawn: {escape(type(error).__name__)}: {escape(error)}</p>"


def swatch(defense: str, looks: Looks) -> str:
    """A row's first cell: a defence's colour and name."""
    return f'<th scope=row><i class=swatch style="background:{looks[defense][0]}"></i>{escape(defense)}</th>'


def mark(words: str, short: bool = False) -> str:
    """A verdict, or with `short` only its sign; the sign is there so that colour is not all that carries it."""
    kinds = {
        "removed": ("good", "✓"),
        "weakened": ("fair", "◐"),
        "backdoor": ("before", "•"),
        "no": ("before", "•"),
    }
    kinds |= dict.fromkeys(("keeps", "not", "makes"), ("bad", "✗"))
    kind, sign = kinds.get(re.split("[ ,]", words)[0], ("bad", "!"))
    return (
        f'<span class="mark {kind}">{sign}{"" if short else " " + escape(words)}</span>'
        if words
        else ""
    )


def table(
    head: Sequence[str], bodies: Sequence[Sequence[str]], kind: str = "", style: str = ""
) -> str:
    """A table that scrolls sideways where it is wider than the screen, from finished cells and finished rows."""
    top = f"<thead><tr>{''.join(head)}</tr></thead>" if head else ""
    rest = "".join(f"<tbody>{''.join(body)}</tbody>" for body in bodies)
    return f'<div class=wide tabindex=0><table class="{kind}" style="{style}">{top}{rest}</table></div>'


def figure(path: Path | None, alt: str, caption: str) -> str:
    """A picture with its caption; \"\" where there is none."""
    if path is None:
        return ""
    return f"<figure><div class=wide tabindex=0>{image(path, alt)}</div><figcaption>{escape(caption)}</figcaption></figure>"


def image(path: Path, alt: str) -> str:
    """A picture inside the page."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{css}</style></head>
<body>
{body}
</body></html>
"""
CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2329;--soft:#5a646e;--line:#e1e5e8;--group:#f1f3f5;
--good:#00629b;--bad:#a83c00;--fair:#6b5300;--acc:#0072b2a0;--asr:#d55e00b0}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1b1f23;--ink:#e4e8eb;--soft:#9aa5af;--line:#2e353b;--group:#23292e;
--good:#6cbcf0;--bad:#ff9a5c;--fair:#e0c04c;--acc:#56b4e9a0;--asr:#e8743bb8}}
*{box-sizing:border-box}html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1.5rem clamp(.9rem,4vw,2.5rem) 4rem;max-width:1120px;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:.5rem 0 .25rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.75rem 0 .75rem;overflow-wrap:anywhere}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
.soft{color:var(--soft)}.note,figcaption{color:var(--soft);font-size:.875rem;margin:.5rem 0 0;max-width:96ch}
.lead{list-style:none;margin:0;padding:0;max-width:82ch}
.lead li{padding:.3rem 0 .3rem .9rem;border-left:3px solid var(--line);margin:.5rem 0}
nav{margin:1.25rem 0 0;font-size:.9rem;color:var(--soft);line-height:1.9}nav a{margin-right:.6rem}a{color:var(--good)}
.wide{overflow-x:auto;width:fit-content;max-width:100%;border:1px solid var(--line);border-radius:8px;background:var(--card)}
table{border-collapse:separate;border-spacing:0;font-size:.875rem;line-height:1.35}
.study{width:100%}th,td{padding:.45rem var(--pad,.7rem);text-align:left;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;vertical-align:bottom;font-weight:600}thead small,small{font-weight:400;color:var(--soft)}
tbody th{font-weight:500}td small,th.n small{display:block;font-size:.78rem}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.study th,.glance th{white-space:nowrap}
.study th:first-child,.glance th:first-child{position:sticky;left:0;background:var(--card);z-index:1}
.group th{background:var(--group)!important;font-weight:600}.group span{position:sticky;left:.7rem}
.before th,.before td{color:var(--soft)}td.text{min-width:9.5rem}
.bar{background:linear-gradient(90deg,var(--tint) calc(var(--v)*1%),var(--line) 0) no-repeat;
background-position:var(--pad,.7rem) 100%;background-size:calc(100% - 2*var(--pad,.7rem)) 3px}
.glance{--pad:.45rem;font-size:.83rem}.acc{--tint:var(--acc)}.asr{--tint:var(--asr)}
.swatch{display:inline-block;width:.65rem;height:.65rem;border-radius:2px;margin-right:.45rem}
.good,.better{color:var(--good)}.bad,small.worse{color:var(--bad)}.fair{color:var(--fair)}td small.better{color:var(--good)}
.mark.bad{font-weight:600}.mark.before{color:var(--soft)}
figure{margin:0 0 1.75rem}figure img{display:block;width:100%;min-width:680px;background:#fff}
.samples{max-width:none}.samples th,.samples td{padding:.3rem .4rem;font-size:.8rem;overflow-wrap:anywhere}
.samples th:first-child{width:var(--first)}.samples .strip{padding:0}.samples img{min-width:0}
.samples .triggered th,.samples .triggered td{border-top:0;padding-top:0}.samples b{font-weight:600;display:block}
dl{display:grid;grid-template-columns:auto 1fr;gap:.4rem 1rem;max-width:80ch;margin:0}dt{font-weight:600}dd{margin:0}
.formula{white-space:nowrap;font-variant-numeric:tabular-nums}pre{overflow-x:auto;font-size:.8rem;line-height:1.45}
details{margin-top:1rem}summary{cursor:pointer;font-weight:500}
.plain th{font-weight:500;color:var(--soft);white-space:nowrap}.plain tr:first-child>*{border-top:0}
@media(max-width:560px){dl{display:block}dd{margin:0 0 .6rem}.formula{white-space:normal}}
@media print{.wide{overflow:visible;border:0}section{break-inside:avoid-page}}
"""
