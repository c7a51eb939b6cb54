"""The base of every settings class: a frozen pydantic model whose errors are ConfigErrors that name the setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sgi2v.errors import ConfigError
from sgi2v.wording import did_you_mean

EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}
"""pydantic's type of an error -> what the value must be."""


LENGTH_LIMITS = {"min_length": "or more", "max_length": "at most"}


class Settings(BaseModel):
    """A frozen section of settings. Every field checks its type and range; unknown names are refused.

    Types are strict: an integer may stand for a float, and nothing else is converted. `False` stands for None where a
    field may be None, because TOML has no null. The docstring under a field is its description, with its unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    section: ClassVar[str]
    """Name of the TOML section, which error messages put before the field's name."""

    def __init__(self, **values: Any) -> None:
        """Raises ConfigError, with one line per field that cannot be used."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(self._messages(error))) from None

    @classmethod
    def parse(cls, values: object) -> Self:
        """The settings of plain values, as read from TOML or JSON. Raises ConfigError."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.section} must be a section of settings, not {values!r}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """The same settings with some fields changed, checked again. Raises ConfigError."""
        return type(self)(**{**dict(self), **changes})

    def plain(self) -> dict[str, Any]:
        """The fields as JSON values: tuples as lists, enums as text."""
        return self.model_dump(mode="json")

    @model_validator(mode="before")
    @classmethod
    def _false_is_none(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if NoneType in get_args(field.annotation)}
        return {name: None if value is False and name in optional else value for name, value in values.items()}

    @classmethod
    def _messages(cls, error: ValidationError) -> list[str]:
        """One line per problem. A list whose items are wrong is not called too short as well."""
        problems = error.errors()
        wrong_items = {problem["loc"][:1] for problem in problems if len(problem["loc"]) > 1}
        return [
            cls._message(each) for each in problems if each["type"] != "too_short" or each["loc"] not in wrong_items
        ]

    @classmethod
    def _message(cls, problem: Mapping[str, Any]) -> str:
        """One line on a problem as pydantic reports it."""
        name = f"{cls.section}.{_path(problem['loc'])}" if problem["loc"] else cls.section
        context, value = problem.get("ctx", {}), problem["input"]
        match problem["type"]:
            case "extra_forbidden":
                hint = did_you_mean(str(problem["loc"][-1]), cls.model_fields)
                return f"unknown setting {name}{hint}: known are {', '.join(cls.model_fields) or 'none'}"
            case "greater_than_equal":
                return f"{name} must be {context['ge']} or more, not {value!r}"
            case "greater_than":
                return f"{name} must be greater than {context['gt']}, not {value!r}"
            case "less_than_equal":
                return f"{name} must be {context['le']} or less, not {value!r}"
            case "literal_error" | "enum":
                choices = _choices(context["expected"])
                return f"{name} must be one of {choices}, not {value!r}{did_you_mean(str(value), choices.split(', '))}"
            case "too_short" | "too_long":
                limits = [f"{context[key]} {words}" for key, words in LENGTH_LIMITS.items() if key in context]
                return f"{name} must have {' and '.join(limits)} values, not {context['actual_length']}"
            case "missing":
                return f"{name} is missing" + (f" from {value!r}" if value else ": give it")
            case "string_too_short":
                return f"{name} must not be empty"
            case "value_error":
                return f"{name}: {context['error']}" if problem["loc"] else str(context["error"])
            case kind if kind in EXPECTED:
                return f"{name} must be {EXPECTED[kind]}, not {value!r}"
        return f"{name} cannot be {value!r}: {problem['msg']}"


def _path(location: Sequence[str | int]) -> str:
    """`layers[0][1]` for ("layers", 0, 1)."""
    first, *rest = location
    return str(first) + "".join(f"[{part}]" for part in rest if isinstance(part, int))


def _choices(expected: str) -> str:
    """pydantic's `'a', 'b' or 'c'` as `a, b, c`."""
    return expected.replace("'", "").replace(" or ", ", ")
