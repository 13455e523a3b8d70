"""index.html: the clips of a folder, playing, with what they were made of; it asks for nothing but
them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

from .ledger import write_whole

STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 2rem }
main { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)) }
figure { margin: 0 } video, img { width: 100%; background: #8883 } audio { width: 100% }
figcaption { overflow-wrap: anywhere } small { opacity: .7 }
"""
# A clip plays without sound while it is seen, and with sound under the pointer.
SCRIPT = """
const seen = new IntersectionObserver(all => all.forEach(one =>
  one.isIntersecting ? one.target.play() : one.target.pause()));
document.querySelectorAll("video").forEach(clip => {
  seen.observe(clip);
  clip.onmouseenter = () => clip.muted = false;
  clip.onmouseleave = () => clip.muted = true;
});
"""
PLAYERS = {
    ".mp4": '<video src="{}" loop muted playsinline controls preload="metadata"></video>',
    ".png": '<img src="{}" loading="lazy" alt="">',
    ".flac": '<audio src="{}" controls preload="none"></audio>',
}
KINDS = {".webm": ".mp4", ".mov": ".mp4", ".mkv": ".mp4", ".jpg": ".png", ".webp": ".png"}
KINDS |= {".wav": ".flac", ".mp3": ".flac", ".opus": ".flac"}


def write_page(folder: Path, records: list[dict], failures: list[dict]) -> None:
    """Write index.html of a folder of clips."""
    figures = "\n".join(_figure(record) for record in sorted(records, key=lambda one: one["row"]))
    failed = "".join(
        f"<li>row {record['row']}: {escape(record['error'])}</li>" for record in failures
    )
    seconds = sum(record["seconds"] for record in records)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{len(records)} clips</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>{len(records)} clips</h1>
<p>{seconds:.0f} s of work. {len(failures)} failed.</p>
{f"<ul>{failed}</ul>" if failed else ""}
<main>
{figures}
</main>
<script>{SCRIPT}</script>
</html>
"""
    write_whole(folder / "index.html", page.encode())


def _figure(record: dict) -> str:
    players = "".join(_player(name) for name in record["files"])
    values = "<br>".join(
        f"{escape(name)}: {escape(str(value))}" for name, value in record["values"].items()
    )
    about = f"row {record['row']}, {record['seconds']:.1f} s, {record['host']}, {record['id']}"
    return (
        f"<figure>{players}<figcaption>{values}<br><small>{escape(about)}</small></figcaption>"
        "</figure>"
    )


def _player(name: str) -> str:
    suffix = Path(name).suffix.lower()
    link = escape(quote(name), quote=True)
    player = PLAYERS.get(KINDS.get(suffix, suffix), '<a href="{}">{}</a>')
    return player.format(link, link)
