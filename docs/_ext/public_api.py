"""The API reference: every public name of a module under the name that users import, and references that find it.

``public-api:: package.module`` writes a table of the public names and then their documentation. A name that a package
hands on from another documented module is documented in one of them and linked from the other; a module without
``__all__`` shows what no package hands on.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import re
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from numpy.typing import ArrayLike, NDArray
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import signature as signature_of
from sphinx.util.inspect import stringify_signature
from sphinx.util.typing import ExtensionMetadata, stringify_annotation

_TRAINING = ("checkpoint", "configs", "evaluation", "fused", "stacked", "step_graph", "update")
# besides everything below `functional`; a module stands before those that hand its names on
_MODULES = (
    "torchrl_smore.objectives",
    "torchrl_smore.objectives.base",
    "torchrl_smore.objectives.baselines.in_sample",
    "torchrl_smore.objectives.terms",
    "torchrl_smore.modules",
    "torchrl_smore.modules.precision",
    "torchrl_smore.modules.linear",
    *(f"torchrl_smore.data.readers.{name}" for name in ("csv", "d4rl", "minari", "ogbench", "wgcsl")),
    "torchrl_smore.data.readers",
    *(f"torchrl_smore.data.writers.{name}" for name in ("d4rl", "minari", "ogbench", "wgcsl")),
    "torchrl_smore.data.writers",
    "torchrl_smore.data",
    "torchrl_smore.envs.experts",
    "torchrl_smore.envs",
    *(f"torchrl_smore.envs.{name}" for name in ("batch", "point", "wrappers")),
    "torchrl_smore.trainers",
    *(f"torchrl_smore.trainers.{name}" for name in _TRAINING),
    "torchrl_smore.reports",
    *(f"torchrl_smore.reports.{name}" for name in ("numbers", "paper", "figures")),
    "smore_kernels",
    "torchrl_smore",
)
_LONGEST_VALUE = 100
_KINDS = (np.float32, np.uint8, np.int64, np.bool_)
_OWN = ("torchrl_smore", "smore_kernels")
# what numpy's names of array types are short for, as signatures have it
_ARRAYS = {
    stringify_annotation(ArrayLike, "smart"): "~numpy.typing.ArrayLike",
    stringify_annotation(NDArray[Any], "smart"): "~numpy.ndarray",
    **{
        stringify_annotation(NDArray[kind], "smart"): f"~numpy.typing.NDArray[~numpy.{kind.__name__}]"
        for kind in _KINDS
    },
}


@cache
def documented_modules() -> tuple[str, ...]:
    """Names of all modules in the reference."""
    package = importlib.import_module("torchrl_smore.functional")
    found = [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    found.sort(key=lambda name: (".baselines" in name, name))
    return (*(name for name in found if "._" not in name and public_names(name)), *_MODULES)


def public_names(module_name: str) -> list[str]:
    """``__all__``, or what a module without it defines: functions, classes, and constants with a ``#:`` comment."""
    module = importlib.import_module(module_name)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    commented = {name for scope, name in _attribute_docs(module_name) if not scope}
    own = {
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and value.__module__ == module_name
    }
    return [name for name in vars(module) if not name.startswith("_") and name in own | commented]


@cache
def homes() -> dict[str, str]:
    """Each public name, qualified by each module that has it, to the qualified name that it is documented under."""
    found: dict[str, str] = {}
    first: dict[tuple[str, int], str] = {}
    for module_name in documented_modules():
        module = importlib.import_module(module_name)
        for name in public_names(module_name):
            value = getattr(module, name)
            full = value.__name__ if inspect.ismodule(value) else f"{module_name}.{name}"
            home = first.setdefault((name, id(value)), full)
            found[f"{module_name}.{name}"] = home
            if inspect.isclass(value) or inspect.isroutine(value):
                found[f"{value.__module__}.{value.__qualname__}"] = home
    return found


@cache
def _homes_by_ending() -> dict[str, set[str]]:
    """Homes by each text that one of their names is, or ends with after a dot."""
    found: dict[str, set[str]] = {}
    for name, home in homes().items():
        parts = name.split(".")
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), set()).add(home)
    return found


@cache
def _attribute_docs(module_name: str) -> dict[tuple[str, str], list[str]]:
    return ModuleAnalyzer.for_module(module_name).find_attr_docs()


def constant_doc(module_name: str, name: str) -> list[str]:
    """Lines of the ``#:`` comment of a constant, where it is defined or in the module that it comes from."""
    docs = _attribute_docs(module_name)
    if ("", name) in docs:
        return docs["", name]
    tree = ast.parse(inspect.getsource(importlib.import_module(module_name)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return constant_doc(str(node.module), name)
    return []


def _constant(module_name: str, name: str, value: Any) -> list[str]:
    text = repr(value)
    lines = [f".. py:data:: {name}"]
    if len(text) <= _LONGEST_VALUE and " object at " not in text:
        lines.append(f"   :value: {text}")
    return [*lines, "", *(f"   {line}" for line in constant_doc(module_name, name)), ""]


def _entry(module_name: str, name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        return [f".. autoclass:: {name}", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {name}", ""]
    return _constant(module_name, name, value)


def _summary(module_name: str, name: str, value: Any) -> str:
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        text = inspect.getdoc(value) or ""
    else:
        text = "\n".join(constant_doc(module_name, name))
    return " ".join(text.split("\n\n")[0].split())


def _role(value: Any) -> str:
    if inspect.ismodule(value):
        return "mod"
    return "class" if inspect.isclass(value) else "func" if inspect.isroutine(value) else "data"


class PublicApi(SphinxDirective):
    """``public-api:: module``: docstring, table and entries; ``:below:`` a section for each module below it instead."""

    required_arguments = 1
    option_spec = {"below": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Expands to reStructuredText."""
        root = self.arguments[0]
        if "below" not in self.options:
            return self.parse_text_to_nodes("\n".join(self._module(root)))
        lines = []
        for name in documented_modules():
            if name.startswith(f"{root}."):
                title = f"``{name}``"
                lines += [title, "=" * len(title), "", *self._module(name)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def _module(self, module_name: str) -> list[str]:
        module: ModuleType = importlib.import_module(module_name)
        self.env.note_dependency(str(module.__file__))
        table = [".. list-table::", "   :class: api-names", ""]
        entries = []
        for name in public_names(module_name):
            value = getattr(module, name)
            home = homes()[f"{module_name}.{name}"]
            if home != f"{module_name}.{name}" and not hasattr(module, "__all__"):
                continue
            table += [f"   * - :py:{_role(value)}:`~{home}`", f"     - {_summary(module_name, name, value)}"]
            if home == f"{module_name}.{name}" and not inspect.ismodule(value):
                entries += _entry(module_name, name, value)
        head = [f".. automodule:: {module_name}", "   :no-members:", ""]
        return [*head, *table, "", f".. currentmodule:: {module_name}", "", *entries]


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Node | None:
    """Finds a name that a reference gives by the module that defines it, or without a module."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    owner, _, member = target.rpartition(".")
    members = {f"{home}.{member}" for home in _homes_by_ending().get(owner, ())}
    candidates = _homes_by_ending().get(target, set()) | members
    domain = env.domains.python_domain
    known = sorted(candidate for candidate in candidates if candidate in domain.objects)
    if not known and node["reftype"] == "meth":
        known = [home for home in _inherited(owner or node.get("py:class") or "", member) if home in domain.objects][:1]
    if not known and node["reftype"] == "attr":
        known = _class_with_field(owner or node.get("py:class") or "", member)
    if len(known) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", known[0], node, content)


def _inherited(owner: str, member: str) -> list[str]:
    """Where a class of that name may have the member from, nearest first: the places of its bases."""
    classes = _homes_by_ending().get(owner, ())
    kinds = [getattr(importlib.import_module(home.rpartition(".")[0]), home.rpartition(".")[2]) for home in classes]
    bases = [f"{base.__module__}.{base.__qualname__}" for kind in kinds for base in kind.__mro__]
    return [f"{homes()[base]}.{member}" for base in bases if base in homes()]


def _class_with_field(owner: str, field: str) -> list[str]:
    """Where the class of that name is documented, if it has the field: fields have no place of their own."""
    found = set()
    for home in _homes_by_ending().get(owner, ()):
        module_name, _, class_name = home.rpartition(".")
        kind = getattr(importlib.import_module(module_name), class_name)
        found |= {home} if any(field in vars(base).get("__annotations__", {}) for base in kind.__mro__) else set()
    return sorted(found)


def _skip_others(app: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out fields of named tuples, which by themselves say their number alone, and others' functions."""
    if (getattr(value, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    # what another library explains, such as ``forward`` of a base
    return True if inspect.isfunction(value) and not value.__module__.startswith(_OWN) else None


def readable_signature(
    app: Sphinx | None, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Arrays as people write them, and no defaults that Python could not read, or that name this machine."""
    if signature is None:
        return None
    signature = re.sub(r"<factory>|\w+Path\('[^']*'\)", "...", signature)
    return _short_arrays(re.sub(r"<(?:built-in )?function (\w+)>", r"\1", signature)), returned and _short_arrays(
        returned
    )


def _short_arrays(text: str) -> str:
    for kind, short in _ARRAYS.items():
        text = text.replace(kind, short)
    return text


def constructor_signature(
    app: Sphinx | None, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """The signature of ``__init__`` for a class whose base has a ``__new__`` that takes anything, as TorchRL's do.

    A protocol, which nobody makes, has none.
    """
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    if getattr(obj, "_is_protocol", False):
        return "", returned
    own = signature_of(obj.__init__, bound_method=True)
    return stringify_signature(own, show_annotation=False), returned


def arguments_of(docstring: str) -> list[str]:
    """Lines of the entries below ``Args:`` of a docstring in Google's style, cleaned; none without such a section."""
    lines = docstring.splitlines()
    if "Args:" not in lines:
        return []
    inside = itertools.takewhile(lambda line: not line or line.startswith(" "), lines[lines.index("Args:") + 1 :])
    return "\n".join(inside).rstrip().splitlines()


def with_inherited_arguments(docstring: str, kind: type) -> str:
    """A class's docstring, with the arguments that the docstring of its constructor explains after its own.

    A constructor without a docstring has that of the nearest base class which has one, as in ``help``; what is not of
    this project explains nothing.
    """
    owner = next(base for base in kind.__mro__ if "__init__" in vars(base) and base.__init__.__doc__)
    inherited = arguments_of(inspect.getdoc(owner.__init__) or "") if owner.__module__.startswith(_OWN) else []
    if not inherited:
        return docstring
    own = arguments_of(docstring)
    if not own:
        return "\n".join([docstring, "", "Args:", *inherited])
    head, tail = docstring.split("\n".join(own), 1)
    return "\n".join([head + "\n".join(own), *inherited]) + tail


def _add_inherited_arguments(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Changes the lines of a docstring in place, before napoleon reads its sections."""
    if what == "class":
        lines[:] = with_inherited_arguments("\n".join(lines), obj).splitlines()


def _link_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Makes a link of each path to a page, as docstrings and the files at the root of the repository name it."""
    for literal in list(doctree.findall(nodes.literal)):
        match = re.fullmatch(r"docs/([\w/]+)\.md", literal.astext())
        linked = isinstance(literal.parent, nodes.reference | pending_xref | nodes.title)
        if match is None or linked or match[1] not in app.env.found_docs:
            continue
        place = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{match[1]}"}
        link = pending_xref(
            "", nodes.inline("", literal.astext()), refdoc=app.env.docname, refexplicit=True, refwarn=True
        )
        link.attributes.update(place)
        literal.replace_self(link)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Adds the directive and the resolver."""
    app.connect("autodoc-process-docstring", _add_inherited_arguments, priority=400)
    app.add_directive("public-api", PublicApi)
    app.connect("autodoc-skip-member", _skip_others)
    app.connect("autodoc-process-signature", constructor_signature)
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("missing-reference", _resolve)
    app.connect("doctree-read", _link_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
