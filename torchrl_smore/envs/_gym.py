"""gymnasium where it is installed; elsewhere names to define classes by, which say what to install when built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import gymnasium
    from gymnasium import Env, Wrapper, spaces
else:
    try:
        import gymnasium
        from gymnasium import Env, Wrapper, spaces
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":
            raise

        class _Absent:
            """Stands for a part of gymnasium: may be subclassed, not built or read."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                _refuse()

        class _AbsentModule:
            def __getattr__(self, name: str) -> NoReturn:
                _refuse()

        def _refuse() -> NoReturn:
            raise ModuleNotFoundError(
                'this environment needs gymnasium: pip install "torchrl-smore[envs]". Of the tasks, PointReach and '
                "PointRooms do without it, in collection and evaluation.",
                name="gymnasium",
            )

        Env = Wrapper = _Absent
        gymnasium = spaces = _AbsentModule()

__all__ = ["Env", "Wrapper", "gymnasium", "spaces"]
