"""An evaluation report as one HTML file that needs nothing else, or as Markdown with its pictures in a folder beside.

The HTML works offline and without scripts, in light and dark, on a phone and by keyboard.
"""

import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from models.training import plots
from models.training.report_document import Content, Details, Plots, Table, Text
from nearcast.errors import ConfigurationError

_TEMPLATE = "report.html.j2"


def check_place(out: Path) -> None:
    """Raises `ConfigurationError` if `write` could not write to `out`: better known before minutes of work."""
    if out.suffix.lower() not in (".html", ".md"):
        raise ConfigurationError(f"{out} must end in .html or .md: those are what a report can be")
    if not out.parent.is_dir():
        raise ConfigurationError(f"{out} can't be written: there is no folder {out.parent}")
    if out.is_dir():
        raise ConfigurationError(f"{out} can't be written: it is a folder")


def write(content: Content, out: Path) -> None:
    """Write the report to `out`, .html or .md; all of it or nothing. Raises `ConfigurationError` if it can't be."""
    check_place(out)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as scratch:
            made = Path(scratch)
            if out.suffix.lower() == ".html":
                (made / out.name).write_text(html(content), encoding="utf-8")
            else:
                pictures = picture_folder(out)
                (made / out.name).write_text(markdown(content, pictures.name), encoding="utf-8")
                (made / pictures.name).mkdir()
                for plot in content.plots():
                    (made / pictures.name / f"{plot.name}.svg").write_text(plot.file(), encoding="utf-8")
                if pictures.exists():
                    shutil.rmtree(pictures)
                (made / pictures.name).rename(pictures)
            (made / out.name).replace(out)
    except OSError as error:
        raise ConfigurationError(f"{out} can't be written: {error.strerror}") from None


def picture_folder(out: Path) -> Path:
    """Where the pictures of a Markdown report are."""
    return out.with_name(f"{out.stem}-pictures")


def html(content: Content) -> str:
    """One page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["plots"] = lambda block: isinstance(block, Plots)
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["details"] = lambda block: isinstance(block, Details)
    template = environment.from_string((files("models.training") / _TEMPLATE).read_text(encoding="utf-8"))
    return template.render(content=content, style=plots.STYLE)


def markdown(content: Content, pictures: str) -> str:
    """`pictures` is the name of the folder that has them, beside the file."""
    return "\n\n".join(_paragraphs(content, pictures)) + "\n"


def _paragraphs(content: Content, pictures: str) -> Iterator[str]:
    yield f"# {content.title}"
    yield from (f"> **Note.** {caution}" for caution in content.cautions)
    yield content.verdict
    yield _table(Table("", ("", "", ""), [(tile.label, f"**{tile.value}**", tile.note) for tile in content.tiles]))
    for section in content.sections:
        yield f"## {section.title}"
        for block in section.blocks:
            if isinstance(block, Details):
                # GitHub and others render Markdown inside, if blank lines stand around it.
                yield f"<details><summary>{block.summary}</summary>"
                for part in block.blocks:
                    yield _block(part, pictures)
                yield "</details>"
            else:
                yield _block(block, pictures)


def _block(block: Text | Table | Plots, pictures: str) -> str:
    if isinstance(block, Text):
        return block.words
    if isinstance(block, Table):
        return _table(block)
    return "\n".join(f"![{_plain(plot.shows)}]({pictures}/{plot.name}.svg)" for plot in block.plots)


def _table(table: Table) -> str:
    lines = [f"| {' | '.join(map(_plain, cells))} |" for cells in (table.head, *table.rows)]
    lines.insert(1, "|---" * len(table.head) + "|")
    return (f"*{table.caption}*\n\n" if table.caption else "") + "\n".join(lines)


def _plain(words: str) -> str:
    return words.replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
