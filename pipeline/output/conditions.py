"""Conditions on the columns of a table, such as `control_gain > 0.6 and flicker < 10`.

The text has Python's grammar of expressions, of which only what is listed in `HELP` is allowed; nothing of it is run as
Python. A comparison with a null is neither true nor false, as in SQL, and a row is taken only where the whole condition
is true.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sgi2v.errors import ConfigError, ErrorCode
from sgi2v.metrics.following import NullReason
from sgi2v.wording import did_you_mean

HELP = (
    "a condition has column names, numbers, 'text', True, False, None, == != < <= > >=, in [...], and, or, not, "
    'abs(...), + - * / and ( ). `x == None` asks whether x is null, and `col("a name")` is a column whose name is not '
    "a plain word"
)
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
}
"""Of float64: integers would overflow without a word."""
_JOINS: dict[type[ast.boolop], Callable[[Any, Any], Any]] = {ast.And: pc.and_kleene, ast.Or: pc.or_kleene}
_MAX_CHARACTERS = 4096
_CODES: dict[str, tuple[str, ...]] = {
    "error_code": tuple(map(str, ErrorCode)),
    **dict.fromkeys(("null_reason", "background_null_reason"), tuple(map(str, NullReason))),
}
"""Columns whose texts are codes, and the codes. A null reason may be several, joined by `, `."""


@dataclass(frozen=True)
class Condition:
    """A condition that was checked against the columns of a table. Made by `parse_condition`."""

    text: str
    """As it was typed."""
    schema: pa.Schema
    """The columns that it may name."""

    @cached_property
    def _tree(self) -> ast.expr:
        return ast.parse(self.text.strip(), mode="eval").body

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of the columns that it reads."""
        return frozenset(filter(None, map(_column_of, ast.walk(self._tree))))

    @cached_property
    def parts(self) -> tuple[Condition, ...]:
        """The conditions that its outermost `and` joins; itself where there is none."""
        tree = self._tree
        if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
            return tuple(Condition(ast.unparse(value), self.schema) for value in tree.values)
        return (self,)

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Which rows of a table with these columns it takes: booleans without nulls."""
        value = _evaluate(self._tree, table)
        if isinstance(value, pa.Scalar):
            value = pa.chunked_array([pa.repeat(value, table.num_rows)])
        if not pa.types.is_boolean(value.type):
            raise ValueError(f"it is {_kind(value.type)}, and neither true nor false")
        return pc.fill_null(value, False)

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether it takes one row. A column that the row does not have is null."""
        schema = pa.schema([self.schema.field(name) for name in sorted(self.columns)])
        table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema)
        if not schema.names:
            table = pa.table({"row": [0]})
        return bool(self.mask(table)[0].as_py())


def parse_condition(text: str, schema: pa.Schema, option: str = "--where") -> Condition:
    """Check a condition against the columns that it may name. Raises ConfigError. option: names it in messages."""
    condition = Condition(text, schema)
    try:
        if len(text) > _MAX_CHARACTERS:
            raise ValueError(f"it has more than {_MAX_CHARACTERS} characters")
        for name in sorted(condition.columns):
            if name not in schema.names:
                raise ValueError(f"there is no column {name!r}{did_you_mean(name, schema.names)}")
        _check_codes(ast.parse(text.strip(), mode="eval"))
        condition.mask(schema.empty_table())
    except SyntaxError as error:
        raise ConfigError(f"{option} {text!r} cannot be read{_hint(text)}: {HELP}") from error
    except pa.ArrowNotImplementedError as error:
        raise ConfigError(
            f"{option} {text!r} cannot be used: it joins values of types that do not go together ({error})"
        ) from error
    except (ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise ConfigError(f"{option} {text!r} cannot be used: {error or HELP}") from error
    return condition


def _check_codes(tree: ast.AST) -> None:
    """Raise ValueError for a comparison with a code that does not exist, which would never be true."""
    for node in ast.walk(tree):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        codes = next((_CODES[name] for side in sides if (name := _column_of(side)) in _CODES), None)
        constants = (each for side in sides if _column_of(side) is None for each in ast.walk(side))
        texts = [each.value for each in constants if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        for code in (code for text in texts for code in text.split(", ")):
            if codes is not None and code not in codes:
                raise ValueError(f"there is no code {code!r}{did_you_mean(code, codes)}")


def _hint(text: str) -> str:
    """What people of other languages write, in our words."""
    for theirs, ours in (("&&", "and"), ("||", "or"), (" AND ", "and"), (" OR ", "or"), ("<>", "!="), (" IS ", "==")):
        if theirs in text:
            return f" (write `{ours}` for `{theirs.strip()}`)"
    return " (write `==` for `=`)" if "=" in text else ""


def _column_of(node: ast.AST) -> str | None:
    """The column that a node names."""
    match node:
        case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str(name))], keywords=[]):
            return name
        case ast.Name(id=name) if name not in {"col", "abs"}:
            return name
    return None


def _evaluate(node: ast.expr, table: pa.Table) -> Any:
    """The value of a node for every row: a chunked array, or a scalar. Raises ValueError for what is not allowed."""
    if (name := _column_of(node)) is not None:
        return _plain(table[name], name)
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return pa.scalar(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(_evaluate(operand, table))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return pc.negate(_evaluate(operand, table))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            values = (pc.cast(_evaluate(each, table), pa.float64()) for each in (left, right))
            return _ARITHMETIC[type(op)](*values)
        case ast.BoolOp(op=op, values=values):
            return reduce(_JOINS[type(op)], (_evaluate(value, table) for value in values))
        case ast.Call(func=ast.Name(id="abs"), args=[value], keywords=[]):
            return pc.abs(_evaluate(value, table))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            pairs = zip([left, *comparators], ops, comparators, strict=False)
            return reduce(pc.and_kleene, (_compare(one, op, other, table) for one, op, other in pairs))
    raise ValueError(f"`{ast.unparse(node)}` is not allowed: {HELP}")


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr, table: pa.Table) -> Any:
    """One comparison, for every row."""
    value = _evaluate(left, table)
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise ValueError(f"`{ast.unparse(right)}` is not a list, such as ['a', 'b']")
        values = [_evaluate(each, table).as_py() for each in right.elts]
        found = pc.is_in(value, value_set=pa.array(values, value.type))
        found = pc.if_else(pc.is_valid(value), found, pa.scalar(None, pa.bool_()))
        return pc.invert(found) if isinstance(op, ast.NotIn) else found
    is_none = isinstance(right, ast.Constant) and right.value is None
    if is_none and isinstance(op, ast.Eq | ast.Is):
        return pc.is_null(value)
    if is_none and isinstance(op, ast.NotEq | ast.IsNot):
        return pc.is_valid(value)
    other = _evaluate(right, table)
    if type(op) not in _COMPARISONS:
        raise ValueError(f"`{ast.unparse(ast.Compare(left, [op], [right]))}` is not allowed: {HELP}")
    if pa.types.is_string(value.type) != pa.types.is_string(other.type):
        shown = ast.unparse(ast.Compare(left, [op], [right]))
        raise ValueError(f"`{shown}` compares {_kind(value.type)} with {_kind(other.type)}")
    return _COMPARISONS[type(op)](value, other)


def _plain(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A column in a type that can be compared: NaN is null, and every kind of text is one."""
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(f"the column {name!r} holds {kind}, which cannot be compared")
    if pa.types.is_dictionary(kind):
        return _plain(pc.cast(column, kind.value_type), name)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pc.cast(column, pa.string())
    if pa.types.is_floating(kind):
        column = pc.cast(column, pa.float64())
        return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    return column


def _kind(kind: pa.DataType) -> str:
    """A type in words."""
    if pa.types.is_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "true or false"
    return "a number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else f"a value of type {kind}"
