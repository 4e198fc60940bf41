"""Puts a class and all that it needs of this package into the text of one module.

What is reached from the class is copied as it stands, comments included: definitions of modules in the order of the
layers, methods that nothing calls left out. One choice is made on the way: the fused kernels stay behind. Arguments
and attributes named ``kernels`` go, and of a branch on ``resolve_kernels`` the reference stays.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = "torchrl_smore"
_Span = tuple[int, int, str]
# what docstrings say of the kernels: the argument, errors, an empty list of errors, a sentence
_IN_DOCSTRINGS = (
    (r"\n +kernels: (?:.|\n)*?(?=\n +\w+: |\n *\n|\n *\"\"\")", ""),
    (r"\n +\w+: see :func:`resolve_kernels`\.", ""),
    (r", or see :func:`resolve_kernels`\.", "."),
    (r"\n\n +Raises:(?=\n *\"\"\"|\n\n)", ""),
    (r" The kernel is differentiable once\.", ""),
)


class FlattenError(RuntimeError):
    """The package has something that one module cannot say."""


@dataclass(frozen=True)
class Definition:
    """A statement at the top of a module that binds names.

    Attributes:
        module: dotted name.
        node: its syntax tree.
        start: offset of its first character in the module's text, comments above it included.
        stop: offset after its last.
    """

    module: str
    node: ast.stmt
    start: int
    stop: int

    def __hash__(self) -> int:
        return hash((self.module, self.start))


@dataclass
class Module:
    """A parsed module of the package.

    Attributes:
        text: its source.
        definitions: by the name that each binds.
        own: name here -> (module, name there) for what is imported from the package; name ``""`` is the module itself.
        foreign: name here -> the import statement that brings it from elsewhere.
    """

    text: str
    definitions: dict[str, Definition] = field(default_factory=dict)
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)


class Source:
    """The package at a place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.module = cache(self._parse)

    def path(self, name: str) -> Path | None:
        """Where a module lies; ``None`` if it is none."""
        base = self.root.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
        return None

    def _parse(self, name: str) -> Module:
        path = self.path(name)
        if path is None:
            raise FlattenError(f"there is no module {name} below {self.root}.")
        text = path.read_text(encoding="utf-8")
        module = Module(text)
        starts = _line_starts(text)
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    target = (inner, "") if self.path(inner) is not None else (str(node.module), alias.name)
                    module.own[alias.asname or alias.name] = target
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    single = ast.Import([alias]) if isinstance(node, ast.Import) else None
                    module.foreign[bound] = ast.unparse(single or ast.ImportFrom(node.module, [alias], node.level))
            else:
                definition = Definition(name, node, _start(text, starts, node), _offset(starts, *_end(node)))
                for bound in _bound(node):
                    module.definitions[bound] = definition
        return module

    def resolve(self, module: str, name: str) -> tuple[str, str] | None:
        """Where a name of a module is defined in the package; ``None`` if it is not of the package."""
        found = self.module(module)
        if name in found.definitions:
            return module, name
        if name not in found.own:
            return None
        target, inner = found.own[name]
        return (target, "") if not inner else self.resolve(target, inner)


def flatten(root: Path, module: str, name: str) -> str:
    """The text of one module with ``name`` of ``module`` and everything of the package that it reaches.

    Args:
        root: folder that holds the package.
        module: dotted name of where it is defined.
        name: of a class or function.

    Raises:
        FlattenError: if two different definitions have one name, or a module of the package is used as a value.
    """
    source = Source(root)
    found = source.resolve(module, name)
    if found is None or not found[1]:
        raise FlattenError(f"{module} has no {name}.")
    pieces = _reach(source, *found)
    order = _sorted(source, pieces)
    renamed = _collisions(order)
    used = _used_attributes(pieces)
    imports: set[str] = set()
    texts = []
    for definition in order:
        text, names = pieces[definition]
        module_ = source.module(definition.module)
        imports |= {module_.foreign[one] for one in names if one in module_.foreign}
        texts.append(_without_unused_methods(_renamed(source, definition, text, renamed), used))
    body = "\n\n\n".join(_plain_references(text.strip("\n")) for text in _without_unused_functions(texts))
    needed = sorted(line for line in imports if re.search(rf"\b{re.escape(_binds(line))}\b", body))
    return "\n".join(["from __future__ import annotations", "", *needed, "", "", body, ""])


def _reach(source: Source, module: str, name: str) -> dict[Definition, tuple[str, set[str]]]:
    """Every definition that is needed, with its text and the names it uses, the kernels left out."""
    pieces: dict[Definition, tuple[str, set[str]]] = {}
    todo = [(module, name)]
    while todo:
        place, wanted = todo.pop()
        definition = source.module(place).definitions[wanted]
        if definition in pieces:
            continue
        text = source.module(place).text[definition.start : definition.stop]
        text = without_kernels(text)
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        pieces[definition] = (text, names)
        todo += list(_needed(source, place, text, names))
    return pieces


def _needed(source: Source, module: str, text: str, names: set[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        target = source.resolve(module, name)
        if target is None:
            continue
        if target[1]:
            yield target
            continue
        attributes = {
            node.attr
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
        }
        for attribute in attributes:
            inner = source.resolve(target[0], attribute)
            if inner is None or not inner[1]:
                raise FlattenError(f"{module} uses {name}.{attribute}, which is no definition of {target[0]}.")
            yield inner


def _sorted(source: Source, pieces: dict[Definition, tuple[str, set[str]]]) -> list[Definition]:
    """Modules after those that they import, definitions in the order of their module."""
    order: list[str] = []

    def visit(module: str) -> None:
        if module in order:
            return
        for target, _ in source.module(module).own.values():
            if target in modules:
                visit(target)
        if module not in order:
            order.append(module)

    modules = {definition.module for definition in pieces}
    for module in sorted(modules):
        visit(module)
    return sorted(pieces, key=lambda each: (order.index(each.module), each.start))


def _collisions(order: list[Definition]) -> dict[tuple[str, str], str]:
    """New names, by module and name, of what a later module defines again; equal statements are one."""
    seen: dict[str, Definition] = {}
    renamed: dict[tuple[str, str], str] = {}
    for definition in list(order):
        for name in _bound(definition.node):
            if name not in seen:
                seen[name] = definition
            elif ast.dump(seen[name].node) == ast.dump(definition.node):
                order.remove(definition)
            else:
                first = seen[name]
                renamed[first.module, name] = f"_{name.lstrip('_')}_of_{first.module.rsplit('.', 1)[-1].lstrip('_')}"
                seen[name] = definition
    return renamed


def _renamed(source: Source, definition: Definition, text: str, renamed: dict[tuple[str, str], str]) -> str:
    """The text with names of other modules as they are called in the one module."""
    starts = _line_starts(text)
    edits: list[_Span] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            target = source.resolve(definition.module, node.value.id)
            if target is not None and not target[1]:
                inner = source.resolve(target[0], node.attr)
                assert inner is not None
                edits.append((*_extent(starts, node), renamed.get(inner, inner[1])))
        elif isinstance(node, ast.Name):
            target = source.resolve(definition.module, node.id)
            if target is not None and target[1] and renamed.get(target, target[1]) != node.id:
                edits.append((*_extent(starts, node), renamed.get(target, target[1])))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.col_offset == 0:
            new = renamed.get((definition.module, node.name))
            if new is not None:
                keyword = "class" if isinstance(node, ast.ClassDef) else "def"
                at = text.index(f"{keyword} {node.name}", _offset(starts, node.lineno, 0)) + len(keyword) + 1
                edits.append((at, at + len(node.name), new))
    return _edited(text, edits)


def without_kernels(text: str) -> str:
    """Definitions without the choice of kernels: they run the reference."""
    starts = _line_starts(text)
    edits: list[_Span] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and _is_about_kernels(node):
            edits.append((_offset(starts, node.lineno, 0), _offset(starts, node.end_lineno or node.lineno, 0, 1), ""))
        elif isinstance(node, ast.FunctionDef):
            edits += _without_argument(text, starts, node)
            edits += _reference_branch(text, starts, node)
        elif isinstance(node, ast.Call):
            edits += [
                (*_with_comma(text, *_extent(starts, keyword)), "")
                for keyword in node.keywords
                if keyword.arg == "kernels"
            ]
    text = _edited(text, _outermost(edits))
    for pattern, new in _IN_DOCSTRINGS:
        text = re.sub(pattern, new, text)
    return text


def _is_about_kernels(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == "_set_kernels"
    if isinstance(node, ast.AnnAssign | ast.Assign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(ast.unparse(target) in ("kernels", "self.kernels") for target in targets)
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("self._set_kernels(")


def _without_argument(text: str, starts: list[int], node: ast.FunctionDef) -> list[_Span]:
    edits: list[_Span] = []
    arguments = node.args
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        if argument.arg == "kernels":
            start, stop = _extent(starts, argument)
            if default is not None:
                stop = _extent(starts, default)[1]
            edits.append((*_with_comma(text, start, stop), ""))
    if len(edits) == 1 and len(arguments.kwonlyargs) == 1:
        raise FlattenError(f"{node.name} takes nothing by name but kernels.")
    return edits


def _reference_branch(text: str, starts: list[int], node: ast.FunctionDef) -> list[_Span]:
    """Replaces ``if resolve_kernels(...) == "reference":`` and what follows it by its body."""
    for statement in node.body:
        if not (isinstance(statement, ast.If) and "resolve_kernels(" in ast.unparse(statement.test)):
            continue
        if not isinstance(statement.body[-1], ast.Return):
            raise FlattenError(f"{node.name}: the reference is not all of its branch.")
        # with comments above the first statement
        first = _offset(starts, (statement.test.end_lineno or statement.lineno) + 1, 0)
        last = _offset(starts, *_end(statement.body[-1]))
        indent = statement.body[0].col_offset - statement.col_offset
        body = "\n".join(line[indent:] if line.startswith(" ") else line for line in text[first:last].split("\n"))
        return [(_offset(starts, statement.lineno, 0), _offset(starts, *_end(node.body[-1])), body)]
    return []


def _used_attributes(pieces: dict[Definition, tuple[str, set[str]]]) -> set[str]:
    """Every attribute and string that the reached code mentions: what may name a method or a network."""
    used = set()
    for text, _ in pieces.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
    return used


def _without_unused_methods(text: str, used: set[str]) -> str:
    """Drops private methods that nothing mentions, and annotations of networks that the class does not have."""
    starts = _line_starts(text)
    edits: list[_Span] = []
    for outer in ast.parse(text).body:
        for node in outer.body if isinstance(outer, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef):
                private = node.name.startswith("_") and not node.name.startswith("__")
                drop = private and node.name not in used
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is None:
                network = re.fullmatch(r"(?:target_)?(\w+_network)(?:_params)?", node.target.id)
                drop = network is not None and network[1] not in used
            else:
                continue
            if drop:
                edits.append((_start(text, starts, node), _offset(starts, node.end_lineno or 0, 0, 1), ""))
    return _edited(text, edits)


def _without_unused_functions(texts: list[str]) -> list[str]:
    """Drops private functions that no other definition mentions, such as one that a dropped method alone called."""
    kept = list(texts)
    while True:
        for text in kept:
            (node,) = ast.parse(text).body
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("_")):
                continue
            if not any(re.search(rf"\b{node.name}\b", other) for other in kept if other is not text):
                kept.remove(text)
                break
        else:
            return kept


def _plain_references(text: str) -> str:
    """Cross references into this package as plain names: there are none in one module's documentation."""
    text = re.sub(rf":(?:func|class|mod|attr|meth):`~?{PACKAGE}[\w.]*?\.(\w+)`", r"``\1``", text)
    return re.sub(r":(?:func|class|meth):`(?!~?(?:torch|torchrl|tensordict)\.)([\w.]+)`", r"``\1``", text)


def _binds(line: str) -> str:
    return re.split(r" as | import |^import ", line)[-1].split(".")[0].strip()


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _line_starts(text: str) -> list[int]:
    """Offsets of lines; one more than there are, for the end."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _offset(starts: list[int], line: int, column: int, lines: int = 0) -> int:
    return starts[line - 1 + lines] + column


def _end(node: ast.stmt | ast.expr) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _extent(starts: list[int], node: ast.expr | ast.arg | ast.keyword) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return _offset(starts, node.lineno, node.col_offset), _offset(starts, node.end_lineno, node.end_col_offset)


def _start(text: str, starts: list[int], node: ast.stmt) -> int:
    """Where a statement begins, with its decorators and the comments directly above."""
    decorators = getattr(node, "decorator_list", [])
    line = min([node.lineno, *(each.lineno for each in decorators)])
    while line > 1 and text[starts[line - 2] : starts[line - 1]].lstrip().startswith("#"):
        line -= 1
    return starts[line - 1]


def _with_comma(text: str, start: int, stop: int) -> tuple[int, int]:
    """An extent with the comma that separates it, the one after it if there is one."""
    after = re.match(r"\s*,\s*", text[stop:])
    if after:
        return start, stop + after.end()
    before = re.search(r",\s*$", text[:start])
    return (before.start() if before else start), stop


def _outermost(edits: list[_Span]) -> list[_Span]:
    """Edits without those that lie inside another; an enclosing one must have seen to them."""
    kept: list[_Span] = []
    for edit in sorted(set(edits), key=lambda each: (each[0], -each[1])):
        if not kept or edit[0] >= kept[-1][1]:
            kept.append(edit)
    return kept


def _edited(text: str, edits: list[_Span]) -> str:
    for start, stop, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[stop:]
    return text
