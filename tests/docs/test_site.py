"""The site builds without a warning, documents every public name, sets its equations, and asks no network."""

from __future__ import annotations

import ast
import dataclasses
import html
import html.parser
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
pytest.importorskip("furo")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(python, tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    sphinx = "import sys; from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
    options = ("-W", "--keep-going", "-q", "-b", "html", "-d", folder / "doctrees")
    done = python("-c", sphinx, *options, DOCS, folder / "html", cwd=folder)
    assert done.status == 0, done.stderr[-4000:]
    return folder / "html"


@pytest.fixture(scope="module")
def public_api():
    """The extension that writes the reference."""
    sys.path[:0] = [str(DOCS / "_ext"), str(ROOT / "kernels")]
    yield importlib.import_module("public_api")
    del sys.path[:2]


@pytest.fixture(scope="module")
def documented(site):
    """Full names of all that has a place in the reference."""
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, uri: uri)
    kinds = [kind for kind in inventory if kind.startswith("py:")]
    return {name for kind in kinds for name in inventory[kind]}


def test_every_public_name_has_a_docstring_and_a_place(public_api, documented):
    packages = {
        module
        for path in (ROOT / "torchrl_smore").rglob("__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
        for module in [".".join(path.parent.relative_to(ROOT).parts)]
    }
    assert packages
    assert packages <= set(public_api.documented_modules())
    missing, bare = [], []
    for module_name in public_api.documented_modules():
        module = importlib.import_module(module_name)
        for name in public_api.public_names(module_name):
            value = getattr(module, name)
            if public_api.homes()[f"{module_name}.{name}"] not in documented:
                missing.append(f"{module_name}.{name}")
            if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
                # a dataclass without a docstring gets its signature
                said = (value.__doc__ or "").removeprefix(f"{name}(")
            else:
                said = " ".join(public_api.constant_doc(module_name, name))
            if not said.strip():
                bare.append(f"{module_name}.{name}")
    assert not missing
    assert not bare


def test_what_recipes_and_benchmarks_import_is_documented(public_api):
    homes = public_api.homes()
    unknown = []
    for path in [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchrl_smore"):
                # benchmarks compare kernels by names of our own
                names = [f"{node.module}.{alias.name}" for alias in node.names if not alias.name.startswith("_")]
                modules = public_api.documented_modules()
                unknown += [f"{path.name}: {name}" for name in names if name not in homes and name not in modules]
    assert not unknown


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.equations, self.requests = 0, []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.equations += tag == "math" and given.get("display") == "block"
        if tag in ("script", "img", "link", "iframe", "source"):
            where = given.get("src") or given.get("href") or ""
            if re.match(r"(https?:)?//", where):
                self.requests.append(where)


def test_displayed_equations_are_mathml(site):
    pages = {"mathematics.html": DOCS / "mathematics.md", "tutorial.html": DOCS / "tutorial.md"}
    for name, source in pages.items():
        text = (site / name).read_text(encoding="utf-8")
        displayed = len(re.findall(r"^\$\$\n", source.read_text(encoding="utf-8"), re.MULTILINE)) // 2
        assert displayed > 2
        assert _Page(text).equations == displayed
    directives = sum(
        len(re.findall(r"^\s*\.\. math::", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in (ROOT / "torchrl_smore" / "functional").rglob("*.py")
    )
    assert directives > 5
    assert _Page((site / "api" / "functional.html").read_text(encoding="utf-8")).equations >= directives
    # what could not be converted would stand there as it is written
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "\\" not in "".join(re.findall(r"<math\b.*?</math>", text, re.DOTALL)), path
        assert not re.search(r"\\(frac|mathbb|beta|gamma|text)\b", text), path


def test_the_columns_of_aligned_equations_have_a_style(site):
    css = (DOCS / "_static" / "site.css").read_text(encoding="utf-8")
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    classes = {name for text in pages for name in re.findall(r'<mtable class="([\w-]+)"', text)}
    assert classes
    assert {name for name in classes if f"mtable.{name} " in css} == classes


def test_the_keys_of_the_main_loss_are_explained(site):
    text = (site / "api" / "objectives.html").read_text(encoding="utf-8")
    for name in ("action", "desired_goal", "actor_goal", "q", "score", "value", "priority_weight"):
        (said,) = re.findall(rf'id="[^"]*SMORELoss._AcceptedKeys.{name}".*?<dd><p>(.*?)</p>', text, re.DOTALL)
        assert len(said) > 20


def test_what_a_loss_has_of_another_is_linked_there(site, documented):
    text = (site / "api" / "objectives.html").read_text(encoding="utf-8")
    home = "torchrl_smore.objectives.baselines.in_sample.InSampleQLoss"
    for member in ("value_loss", "qvalue_loss", "advantage", "_AcceptedKeys"):
        assert f"{home}.{member}" in documented
    # three docstrings name it
    assert len(re.findall(rf'<a [^>]*href="#{re.escape(home)}\.qvalue_loss"[^>]*><code class="xref', text)) == 3


def test_what_a_function_returns_is_not_taken_for_a_type(site):
    # a colon in the first line below Returns, or of a property, ends a type
    for path in (site / "api").glob("*.html"):
        assert not re.search(r"Return type|<dt[^>]*>Type<", path.read_text(encoding="utf-8")), path


def test_signatures_are_written_as_a_reader_would(site):
    for path in (site / "api").glob("*.html"):
        for signature in re.findall(r'<dt class="sig .*?</dt>', path.read_text(encoding="utf-8"), re.DOTALL):
            text = html.unescape(re.sub(r"<[^>]*>", "", signature))
            assert not re.search(r"~|<factory>|<[a-z-]* ?function|ndarray\[|Path\('", text), text


def test_pages_that_docstrings_name_by_their_path_are_linked(site):
    losses = (site / "api" / "objectives.html").read_text(encoding="utf-8")
    assert re.search(
        r'<a [^>]*href="../paper_code_ours.html"[^>]*><span[^>]*>docs/paper_code_ours.md</span></a>', losses
    )
    for path in site.rglob("*.html"):
        named = set(re.findall(r"docs/([\w/]+)\.md</span></code>", path.read_text(encoding="utf-8")))
        assert not {name for name in named if (DOCS / f"{name}.md").exists()}, path


def test_every_option_of_every_command_is_listed(site, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    text = (site / "options.html").read_text(encoding="utf-8")
    commands = [path.stem for path in (ROOT / "recipes").glob("*.py") if "class Config" in path.read_text("utf-8")]
    assert len(commands) > 10
    for name in commands:
        (section,) = re.findall(rf'<section id="{name.replace("_", "-")}-py">(.*?)</section>', text, re.DOTALL)
        fields = dataclasses.fields(importlib.import_module(name).Config)
        rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", section, re.DOTALL)]
        said = [[html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in rows if row]
        listed = {option: text for option, _, text in said}
        plain = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "…": "..."})
        expected = {f"{field.name}=": field.metadata["help"] for field in fields}
        assert {name: text.translate(plain) for name, text in listed.items()} == expected


def test_pages_request_nothing_from_elsewhere(site):
    requests = {path.name: _Page(path.read_text(encoding="utf-8")).requests for path in site.rglob("*.html")}
    assert len(requests) > 30
    assert not {name: found for name, found in requests.items() if found}
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_an_equation_that_cannot_be_set_stops_the_build(tmp_path):
    (tmp_path / "index.md").write_text("# Page\n\n$$\n\\nosuchcommand{x}\n$$\n")
    settings = f"import sys\nsys.path.insert(0, {str(DOCS / '_ext')!r})\nextensions = ['myst_parser', 'mathml']\n"
    settings += "myst_enable_extensions = ['dollarmath']\nhtml_math_renderer = 'mathml'\n"
    (tmp_path / "conf.py").write_text(settings)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(tmp_path), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode != 0
    assert "nosuchcommand" in done.stderr


def test_a_loss_is_shown_with_the_options_of_its_constructor_and_a_protocol_with_none(public_api):
    from torchrl_smore.envs import Painter
    from torchrl_smore.objectives import AWRActorLoss

    anything = "(*args, **kwargs)"
    shown, _ = public_api.constructor_signature(None, "class", "AWRActorLoss", AWRActorLoss, None, anything, None)
    assert shown.startswith("(actor_network, *, temperature=3.0, advantage_unit='score', gamma=None, weight_clip=")
    assert public_api.constructor_signature(None, "class", "Painter", Painter, None, anything, None) == ("", None)
    assert public_api.constructor_signature(None, "class", "A", AWRActorLoss, None, "(a)", None) is None
    assert public_api.constructor_signature(None, "function", "f", len, None, anything, None) is None


def test_a_field_is_found_at_its_class_and_a_misspelt_one_nowhere(public_api):
    assert public_api._class_with_field("Task", "expert_noise") == ["torchrl_smore.envs.Task"]
    assert public_api._class_with_field("Task", "expert_nois") == []
    assert public_api._class_with_field("", "expert_noise") == []
