"""The command line of the recipes: options as ``name=value`` by Hydra, and errors of one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import logging
import os
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

_USAGE = 2  # exit status
_LONGEST_CONFIG = 65_536  # bytes of a config.yaml, of which ours have about 2,000
_DEEPEST_CONFIG = 8  # nested lists and mappings in it
_LONGEST_NUMBER = 30  # characters of one, in messages
_HELP_COLUMN = 37  # where the text of an option begins
_NARROWEST_HELP = 80
_INTERPOLATION, _PLAIN = "${", "$\0{"  # YAML cannot hold a NUL
_GIVEN = "_given"  # attribute of a configuration: the options that stand on the command line


def option(default: Any, text: str) -> Any:
    """A field of a recipe's configuration with the text that ``--help`` shows."""
    return dataclasses.field(default=default, metadata={"help": text})


def as_given(value: Any) -> str:
    """A default as a command line would give it: ``null``, ``true``, ``[a,b]``."""
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_given, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def typed(config: type, name: str, value: Any, where: str) -> Any:
    """A value that an option of a recipe can take; a text for a number, such as ``"1e-4"``, as that number.

    Raises:
        ValueError: if it is of another type; begins with ``where``.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        _try_value(config, name, value)
        return _own_schema(config)[name] if isinstance(value, str) else value
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {name}: {_first_line(error)}.") from error


def _try_value(config: type, name: str, value: Any) -> None:
    """Sets one option of a configuration that nobody else has, for what OmegaConf says to its type."""
    from omegaconf import OmegaConf

    OmegaConf.update(_own_schema(config), name, value)


@functools.cache
def _own_schema(config: type) -> Any:
    # made once, since that takes 20 ms: each option of each file of defaults is tried
    from omegaconf import OmegaConf

    return OmegaConf.structured(config)


def run_recipe(config: type, main: Callable[[Any], None], description: str) -> None:
    """Parses the command line by Hydra and runs ``main``.

    Options alone are read by Hydra's parser into ``config``; only with a flag or an option of Hydra's own is a
    configuration composed by Hydra, which takes several times as long and comes to the same.

    Faults of the user's become one line on stderr and exit status 2; Ctrl-C becomes exit status 130, and other signals
    that a recipe stops on theirs, 128 + number.

    Args:
        config: dataclass whose fields are made by :func:`option`.
        main: takes the composed configuration as an instance of ``config``.
        description: first lines of ``--help``.
    """
    from omegaconf import OmegaConf

    if {"-h", "--help"} & set(sys.argv[1:]):
        print(_help(config, description))
        return
    sys.argv[1:] = [_quoted(config, argument) for argument in sys.argv[1:]]
    _check_options(config, sys.argv[1:])

    def run(composed: Any) -> None:
        # tensordict's own use of torch: nothing that a user could mend
        warnings.filterwarnings("ignore", r"torch\._dynamo\.config\.inline_inbuilt_nn_modules", FutureWarning)
        try:
            main(_taken(OmegaConf.to_object(composed), sys.argv[1:]))
        except KeyboardInterrupt as interrupt:
            with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                print(f"\ninterrupted. {interrupt}".rstrip(), file=sys.stderr)
            raise SystemExit(128 + getattr(interrupt, "signum", signal.SIGINT)) from None
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            # a traceback helps nobody who mistyped a name; HYDRA_FULL_ERROR=1 shows it
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            _exit(one_line(error))

    # Hydra knows interpolations that OmegaConf does not
    if any(argument.startswith("-") or "hydra" in argument or _INTERPOLATION in argument for argument in sys.argv[1:]):
        _run_by_hydra(config, run)
    else:
        # as configs/cli/recipe.yaml has it
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        run(_composed(config, sys.argv[1:]))


def _run_by_hydra(config: type, run: Callable[[Any], None]) -> None:
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=config)
    # a folder of its own: Hydra would take configs/task and configs/method for groups of options
    folder = Path(__file__).parents[1] / "configs" / "cli"
    hydra.main(version_base=None, config_path=str(folder), config_name="recipe")(run)()


def _composed(config: type, arguments: Sequence[str]) -> Any:
    """What Hydra would compose from options that :func:`_check_options` has let through."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    composed = OmegaConf.structured(config)
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
    return composed


def _taken(config: Any, arguments: Sequence[str]) -> Any:
    """A composed configuration as recipes take it: paths whole, and :func:`given_options` known."""
    names = [field.name for field in dataclasses.fields(config)]
    whole = dataclasses.replace(config, **{name: expanded(getattr(config, name)) for name in names})
    setattr(whole, _GIVEN, {argument.partition("=")[0] for argument in arguments} & {*names})
    return whole


def given_options(config: Any) -> set[str]:
    """Names of the options that stand on the command line; where there was none, of those that are no default."""
    default = type(config)()
    changed = {
        field.name
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(default, field.name)
    }
    found: set[str] = getattr(config, _GIVEN, changed)
    return found


def expanded(value: Any) -> Any:
    """A text, or a list of texts, with the home directory for a ``~`` at its beginning; no other options begin so."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(expanded, value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def read_config(config: type, path: Path) -> Any:
    """Reads an instance of ``config`` from a YAML file of plain values.

    Nothing in it is resolved: ``${oc.env:HOME}`` is a text like any other.

    Raises:
        ValueError: if the file is no YAML, larger or deeper nested than such a file can be, has aliases, or has an
            option that ``config`` lacks or whose value has another type.
        OSError: if it cannot be read.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        given = _replaced(read_plain(path), _INTERPOLATION, _PLAIN)
        read = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), OmegaConf.create(given)))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = _replaced(_first_line(error), _PLAIN, _INTERPOLATION)
        key = getattr(error, "full_key", None)
        reason = reason if not key or key in reason else f"{key}: {reason}"
        raise ValueError(f"{path} is not a configuration of this recipe: {reason}.") from error
    fields = {field.name: getattr(read, field.name) for field in dataclasses.fields(config)}
    return config(**_replaced(fields, _PLAIN, _INTERPOLATION))


def read_plain(path: Path) -> dict[str, Any]:
    """Reads YAML of plain values by name, within bounds.

    Raises:
        ValueError: if it is something else, or larger or deeper nested than a ``config.yaml`` can be.
        yaml.YAMLError: if it is no YAML.
        OSError: if it cannot be read.
    """
    import yaml

    with path.open("rb") as file:
        content = file.read(_LONGEST_CONFIG + 1)
    _check_plain(content)
    loaded = yaml.safe_load(content)
    if not isinstance(loaded, dict):
        raise ValueError(f"expected options by name, found {type(loaded).__name__}")
    return loaded


def _check_plain(content: bytes) -> None:
    """Refuses YAML that could become larger than it is, before anything of it is built."""
    import yaml

    if len(content) > _LONGEST_CONFIG:
        raise ValueError(f"expected at most {_LONGEST_CONFIG:,} bytes")
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"expected plain values, found the alias *{event.anchor}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST_CONFIG:
            raise ValueError(f"expected values nested at most {_DEEPEST_CONFIG} deep")


def _replaced(value: Any, old: str, new: str) -> Any:
    """Nested plain values with one text for another in all strings."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {_replaced(key, old, new): _replaced(each, old, new) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(each, old, new) for each in value)
    return value


def check_range(name: str, value: float | None, least: float, most: float) -> None:
    """Refuses a number that is given and not in ``[least, most]``, both finite.

    Raises:
        ValueError: naming the option and its range.
    """
    if value is not None and not least <= value <= most:
        shown = str(value) if len(str(value)) <= _LONGEST_NUMBER else f"{str(value)[:_LONGEST_NUMBER]}..."
        raise ValueError(f"{name} must be at least {least:,} and at most {most:,}, got {shown}.")


def resumed_config(config: Any, *free: str) -> Any:
    """The options that the run ``config.resume`` was begun with.

    Args:
        config: what the user gave.
        *free: options that a resumed run may change.

    Raises:
        FileNotFoundError: if that is no run folder.
        ValueError: if ``config`` has further options with other values than the run's, or these cannot be read.
    """
    path = Path(config.resume) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"resume={config.resume} is no run folder: it has no config.yaml.")
    own = read_config(type(config), path)
    new = {name: getattr(config, name) for name in given_options(config) - {"resume"}}
    # the command that began the run may be typed again, with resume= beside it
    names = [field.name for field in dataclasses.fields(config) if field.name in new.keys() - {*free}]
    others = [name for name in names if new[name] != getattr(own, name)]
    if others:
        raise ValueError(f"a resumed run keeps its own options; drop {', '.join(others)}.")
    return dataclasses.replace(own, resume=config.resume, **new)


def _quoted(config: type, argument: str) -> str:
    """A text that Hydra's grammar cannot read, such as a path with an ``=`` in it, in the quotes that it wants."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    name, equals, value = argument.partition("=")
    texts = [field.name for field in dataclasses.fields(config) if field.type in ("str", "str | None")]
    if not equals or name not in texts:
        return argument
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        escaped = value.replace('"', r"\"")
        return f'{name}="{escaped}"'
    return argument


def _check_options(config: type, arguments: Sequence[str]) -> None:
    """Finds unknown options and wrong types before Hydra does, which explains them in twelve lines."""
    names = [field.name for field in dataclasses.fields(config)]
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        # --run without a value is a flag of Hydra's
        if argument.startswith("-") and name.replace("-", "_") in names and (equals or name != "run"):
            _exit(f"{argument}: options have no dashes before them: {name.replace('-', '_')}={value or 'VALUE'}.")
    for before, argument in zip(["", *arguments], arguments):
        is_flag = argument.startswith("-") or (before.startswith("-") and "=" not in argument)
        if not is_flag and not argument.lstrip("+~").startswith("hydra"):
            _check_option(config, argument, multirun=bool({"-m", "--multirun"} & set(arguments)))


def _check_option(config: type, argument: str, multirun: bool) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    names = [field.name for field in dataclasses.fields(config)]
    name, equals, value = argument.partition("=")
    if not equals or name not in names:
        _exit(f"unknown option {argument!r}: options are written name=value, see --help.{nearest(name, names)}")
    quoted = f"""a value with special signs needs quotes of its own: '{name}="{value}"'"""
    try:
        parsed = OverridesParser.create().parse_override(argument)
        if not parsed.is_sweep_override():
            _try_value(config, name, parsed.value())
        elif not multirun:
            _exit(f"{argument}: several values need --multirun; {quoted}.")
    except OmegaConfBaseException as error:
        lists = [field.name for field in dataclasses.fields(config) if str(field.type).startswith(("list", "tuple"))]
        listed = f"; a list is written '{name}=[{value}]'" if name in lists and not value.startswith("[") else ""
        _exit(f"{argument}: {_first_line(error)}{listed}.")
    except HydraException:
        _exit(f"{argument} cannot be read; {quoted}.")


def nearest(name: str, valid: Sequence[str]) -> str:
    """A question that proposes the valid name nearest to ``name``, or nothing."""
    near = difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(_USAGE)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def one_line(error: BaseException) -> str:
    """Kind and message of an error, of a message of several lines the first and the last."""
    lines = str(error).strip().splitlines() or ["no message"]
    # of a worker's traceback the first line says who failed, the last one why
    text = lines[0] if len(lines) == 1 else f"{lines[0]} [...] {lines[-1].strip()}"
    return f"{type(error).__name__}: {text}"


def _help(config: type, description: str) -> str:
    """The text of ``--help``, as wide as the terminal; one line for each option where there is none, for ``grep``."""
    width = shutil.get_terminal_size((0, 0)).columns
    wrapped = textwrap.TextWrapper(
        width=max(width, _NARROWEST_HELP) if width else sys.maxsize,
        subsequent_indent=" " * _HELP_COLUMN,
        break_on_hyphens=False,  # names of tasks have some
        break_long_words=False,
    )
    lines = [description.strip(), "", "Options (name=value), with their defaults:", ""]
    for field in dataclasses.fields(config):
        default = field.default_factory() if callable(field.default_factory) else field.default
        wrapped.initial_indent = f"  {field.name}={as_given(default)}".ljust(_HELP_COLUMN - 1) + " "
        lines += wrapped.wrap(field.metadata["help"])
    return "\n".join([*lines, "", "Hydra's own options (--multirun, --cfg job, ...) work too: --hydra-help."])
