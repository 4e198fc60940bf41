"""Docstrings explain every argument, once: what all losses take is explained by their base."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pydoc
import re
import sys
from pathlib import Path

import pytest

from torchrl_smore import objectives

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[2]
# their fields are the arguments of what they make
BUILT_FROM_OTHERS = ("torchrl_smore.trainers.configs",)


@pytest.fixture(scope="module")
def public_api():
    """The extension that writes the reference."""
    sys.path[:0] = [str(ROOT / "docs" / "_ext"), str(ROOT / "kernels")]
    yield importlib.import_module("public_api")
    del sys.path[:2]


def _entries(lines: list[str]) -> set[str]:
    return set(re.findall(r"^    \*{0,2}(\w+):", "\n".join(lines), re.MULTILINE))


def _attributes(public_api, doc: str) -> set[str]:
    """Those that a docstring explains: they are made of arguments of their names."""
    return _entries(public_api.arguments_of(doc.replace("Args:", "").replace("Attributes:", "Args:")))


def _fields(public_api, kind: type) -> tuple[set[str], set[str]]:
    """Public fields of a dataclass or named tuple, inherited too, and those that are explained."""
    fields, said = set(), set()
    for base in kind.__mro__:
        own = [name for name in vars(base).get("__annotations__", {}) if not name.startswith("_")]
        if own and base.__module__.startswith(public_api._OWN):
            doc = inspect.getdoc(base) or ""
            said |= _entries(public_api.arguments_of(doc)) | _attributes(public_api, doc)
            comments = public_api._attribute_docs(base.__module__)
            said |= {name for name in own if (base.__qualname__, name) in comments}
            fields |= set(own)
    if dataclasses.is_dataclass(kind):
        fields = {field.name for field in dataclasses.fields(kind) if field.init and not field.name.startswith("_")}
    return fields, said


def undocumented(public_api, kind: object) -> list[str]:
    """What a class and its methods, or a function, take without an explanation, or explain and do not take."""
    if not inspect.isclass(kind):
        return _of_function(public_api, kind, inspect.getdoc(kind) or "")
    found = []
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        fields, said = _fields(public_api, kind)
        found += [f"{kind.__qualname__}: {name}" for name in sorted(fields - said)]
    elif "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False):
        doc = public_api.with_inherited_arguments(inspect.getdoc(kind) or "", kind)
        found += _of_function(public_api, kind.__init__, doc, attributes=_attributes(public_api, doc))
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if inspect.isfunction(function) and not name.startswith("_"):
            found += _of_function(public_api, function, inspect.getdoc(getattr(kind, name)) or "")
    return found


def _of_function(public_api, function, doc: str, *, attributes: set[str] | None = None) -> list[str]:
    """One argument may be explained by the sentence itself; so may several that the text names or refers for.

    Of a constructor, which has ``attributes``, none may.
    """
    taken = {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}
    said = _entries(public_api.arguments_of(doc))
    if attributes is None and not said:
        named = set(re.findall(r"\w+", " ".join(re.findall(r"``([^`]*)``", doc))))
        if len(taken) < 2 or taken <= named or re.search(r"\b[Ss]ee :(class|meth|func):", doc):
            return []
    wrong = (taken - said - (attributes or set())) | (said - taken)
    return [f"{function.__qualname__}: {name}" for name in sorted(wrong)]


def test_every_argument_is_explained(public_api):
    found = []
    for module_name in public_api.documented_modules():
        if module_name in BUILT_FROM_OTHERS:
            continue
        module = importlib.import_module(module_name)
        for name in public_api.public_names(module_name):
            value = getattr(module, name)
            full = f"{module_name}.{name}"
            if public_api.homes()[full] == full and (inspect.isclass(value) or inspect.isfunction(value)):
                found += [f"{module_name}: {line}" for line in undocumented(public_api, value)]
    assert not found, "\n".join(found)


def test_an_argument_without_an_explanation_or_an_explanation_without_an_argument_is_found(public_api):
    class Loss:
        """A loss.

        Args:
            network: of it.
            tau: there is none.
        """

        def __init__(self, network, gamma):
            pass

        def advantage(self, first, second):
            """Says nothing of them."""

    def described(first, second):
        """Adds ``first`` and ``second``."""

    assert undocumented(public_api, described) == []
    found = [line.removeprefix(f"{Loss.__qualname__}.") for line in undocumented(public_api, Loss)]
    assert found == ["__init__: gamma", "__init__: tau", "advantage: first", "advantage: second"]


@pytest.mark.parametrize("name", objectives.__all__)
def test_what_all_losses_take_is_explained_once_and_shown_with_each(public_api, name):
    kind = getattr(objectives, name)
    own = public_api.arguments_of(inspect.getdoc(kind))
    shown = public_api.with_inherited_arguments(inspect.getdoc(kind), kind)
    for argument in ("reduction", "deactivate_vmap", "scalar_output_mode"):
        # on the site after the loss's own, in ``help`` and in editors by the constructor
        assert len(re.findall(rf"^    {argument}: \w", shown, re.MULTILINE)) == 1
        assert shown.index(own[-1]) < shown.index(f"    {argument}:")
        assert f"{argument}: " in inspect.getdoc(kind.__init__)
        assert f"{argument}: " in pydoc.plain(pydoc.render_doc(kind))
        assert argument not in _entries(own)


@pytest.mark.parametrize("name", objectives.__all__)
def test_every_key_of_a_loss_is_explained(public_api, name):
    fields, said = _fields(public_api, getattr(objectives, name)._AcceptedKeys)
    assert fields
    assert fields <= said


@pytest.mark.parametrize(("owner", "taken"), [("torchrl_smore.objectives.base", True), ("torchrl.objectives", False)])
def test_a_constructor_hands_its_explanations_on_unless_another_library_wrote_them(public_api, owner, taken):
    class Base:
        def __init__(self, first):
            """Takes it.

            Args:
                first: of all.
            """

    Base.__module__ = owner
    kind = type("Own", (Base,), {})
    expected = "Own.\n\nArgs:\n    first: of all." if taken else "Own."
    assert public_api.with_inherited_arguments("Own.", kind) == expected
