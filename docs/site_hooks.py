"""Makes links work in the site as they stand in the repository. mkdocs.yml names this file.

Pages beside docs/ become pages of the site (`extra.beside`), without a copy. A file of the code that a page links to is shown under source/.
"""

import os
import re

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINK = re.compile(r'(?<=\]\()[^)\s#:]+(?=[)#])|(?<= src=")[^":]+(?=")')


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def target(link, path):
    """The file or folder of the repository that a page's link leads to."""
    return os.path.normpath(os.path.join(os.path.dirname(path), link))


def place(path, beside):
    """Where the site has a file of the repository."""
    if path in beside:
        return beside[path]
    return path[len("docs/") :] if path.startswith("docs/") else f"source/{path}.md"


def shown(path):
    """The page that shows a file of the code, or what a folder holds."""
    if os.path.isdir(os.path.join(ROOT, path)):
        names = sorted(name for name in os.listdir(os.path.join(ROOT, path)) if "." in name[1:])
        text = "\n".join(f"- [{name}]({os.path.basename(path)}/{name}.md)" for name in names)
    else:
        text = f"`````{os.path.splitext(path)[1][1:]}\n{read(path)}\n`````"
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n{text}\n"


def on_config(config):
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")  # as the code host names headings


def on_files(files, config):
    beside = config.extra["beside"]
    for path, page in beside.items():
        if path.startswith("docs/"):
            files.remove(files.get_file_from_path(path[len("docs/") :]))
        files.append(File.generated(config, page, abs_src_path=os.path.join(ROOT, path)))
    paths = {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()} | {page: path for path, page in beside.items()}
    config.extra["paths"] = paths
    found = {target(link, path) for path in paths.values() for link in LINK.findall(read(path))}
    for path in list(found):
        if os.path.isdir(os.path.join(ROOT, path)):
            found |= {os.path.join(path, name) for name in os.listdir(os.path.join(ROOT, path)) if "." in name[1:]}
    for path in sorted(found):
        page = place(path, beside)
        if page.startswith("source/") and os.path.exists(os.path.join(ROOT, path)):
            files.append(File.generated(config, page, content=shown(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    path = config.extra["paths"].get(page.file.src_uri)
    if path is None:
        return markdown

    def moved(match):
        to = target(match[0], path)
        if not os.path.exists(os.path.join(ROOT, to)):
            return match[0]  # no link, or one that the build complains of
        return os.path.relpath(place(to, config.extra["beside"]), os.path.dirname(page.file.src_uri))

    return LINK.sub(moved, markdown)
