"""One class for each mistake in how a spec is written; `sma_compiler/mistakes.py` has those in what it says."""

from __future__ import annotations

from sma_compiler.mistakes import Mistake

# Limits


class TextTooLong(Mistake):
    """More text than a spec may have."""

    says = "the text has {size} bytes; a spec may have {limit}"


class NestedTooDeep(Mistake):
    """Brackets, prefix operators and `**` inside one another beyond the limit."""

    says = "brackets and prefix operators are nested more than {limit} deep"
    write = "name parts of the expression"


class NumberTooLarge(Mistake):
    """A literal that no double holds exactly (an integer) or finitely (a real)."""

    says = "`{text}` is too large: integers go up to 2**53, reals must be finite"


# Characters and layout


class BadCharacter(Mistake):
    """A character that no spec has outside comments."""

    says = "{what} does not belong to the language"
    write = "{hint}"


class TabCharacter(Mistake):
    """A tab outside a comment."""

    says = "a tab"
    write = "indent and separate by spaces"


class BadIndentation(Mistake):
    """A line whose indentation fits no line before it."""

    says = "this line is indented by {got} spaces, the lines before it by {expected}"
    write = "indent all statements of an op alike"


class UnexpectedIndent(Mistake):
    """An indented line that follows no `op`."""

    says = "this line is indented, but no `op` is open here"
    write = "start `op` and `def` in the first column"


class UnclosedBracket(Mistake):
    """An opening bracket without its closing one."""

    says = "`{bracket}` is never closed"
    write = "write `{closing}` where it ends"


class UnmatchedBracket(Mistake):
    """A closing bracket that closes nothing, or a bracket of another kind."""

    says = "`{bracket}` closes {what}"
    write = "{hint}"


# Syntax


class BadSyntax(Mistake):
    """Text that fits no rule and no more particular mistake."""

    says = "`{token}` cannot stand here"
    write = "{hint}"


class MissingColon(Mistake):
    """An op's header that does not end in a colon."""

    says = "the header of an op ends in `:`"
    write = "write `op {name}(...):`"


class MissingBody(Mistake):
    """An op without statements."""

    says = "the op has no statements"
    write = "indent them below `op {name}(...):`, the last one being `return ...`"


class BodyOnHeaderLine(Mistake):
    """A statement on the line of the op's header."""

    says = "statements start on a line of their own"
    write = "start a new line after `:` and indent it"


class MissingParameters(Mistake):
    """An op without parentheses after its name."""

    says = "an op has parameters in parentheses after its name"
    write = "write `op {name}(q, k, v):`"


class MissingName(Mistake):
    """`op`, `def` or a parameter list where a name has to follow."""

    says = "a name has to follow {after}"
    write = "{hint}"


class KeywordAsName(Mistake):
    """A word of the language where a name has to stand."""

    says = "`{word}` is a word of the language and no name"
    write = "choose another name"


class MissingReturnValue(Mistake):
    """`return` alone."""

    says = "`return` returns nothing"
    write = "write the result after it: `return attend(L, q, k, v)`"


class MissingDefinition(Mistake):
    """A `def` without a value."""

    says = "this `def` gives no value"
    write = "write `def name = expression` or `def name(x) = expression`"


class MissingOperand(Mistake):
    """An operator, bracket or comma that an expression has to follow."""

    says = "an expression is missing after `{after}`"
    write = "{hint}"


class MissingOperator(Mistake):
    """Two expressions side by side."""

    says = "nothing joins `{before}` and `{token}`"
    write = "write an operator between them, or a comma, or start a new line"


class SingleEquals(Mistake):
    """`=` where a comparison was meant."""

    says = "`=` gives a name to a value, and there is no name to give here"
    write = "to compare write `==`"


class NotAStatement(Mistake):
    """A line of an op that neither binds a name nor returns."""

    says = "this is no statement"
    write = "a statement is `name = expression` or `return expression`"


class NotAnItem(Mistake):
    """A line in the first column that is neither `op` nor `def`."""

    says = "a file holds `op name(...):` and `def name = ...`, and this is neither"
    write = "indent statements below their op"


class BadAnnotation(Mistake):
    """A parameter's annotation that is no list of axes and no kind."""

    says = "this is no annotation of a parameter"
    write = "write `x: [time, head]`, `doc: int[time]`, `w: int` or `s: real`"


class OptionBeforeArgument(Mistake):
    """A positional argument after an option."""

    says = "arguments come before options"
    write = "move it before `{option}=`"
