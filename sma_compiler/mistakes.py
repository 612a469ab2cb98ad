"""One class for each mistake in what a spec says, and what to write instead (`syntax/mistakes.py`: how it is written).

`says` and `write` are filled in with the words that the place knows. A mistake inside the body of a `def` is shown
where the `def` was used, and names it.
"""

from __future__ import annotations

from typing import ClassVar

from sma_compiler.errors import SpecError
from sma_compiler.source import Span


class Mistake(SpecError):
    """Base of the classes below; `words` fill the braces of `says` and `write`, `inside` names the `def`."""

    says: ClassVar[str]
    write: ClassVar[str] = ""

    def __init__(self, span: Span, inside: str = "", **words: object) -> None:
        self._made = (span, inside, words)
        where = f"in `{inside}`: " if inside else ""
        super().__init__(where + self.says.format(**words), span, self.write.format(**words))

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (type(self), *self._made)


def _remake(kind: type[Mistake], span: Span, inside: str, words: dict[str, object]) -> Mistake:
    return kind(span, inside, **words)


class TooManyNodes(Mistake):
    """A spec that grows beyond the limit when its defs are expanded."""

    says = "the spec has more than {limit} operators and names once its defs are expanded"


class NotFinite(Mistake):
    """A constant expression without a finite value."""

    says = "`{text}` is not a finite number"


class NoOps(Mistake):
    """A file that declares no op."""

    says = "the file has no op"
    write = "write `op name(q, k, v):` and its statements"


class NoReturn(Mistake):
    """An op that returns nothing."""

    says = "op `{name}` returns nothing"
    write = "end it with `return ...`"


class AfterReturn(Mistake):
    """A statement that can never count."""

    says = "nothing after `return` counts"
    write = "move it before `return`, or remove it"


class DuplicateOp(Mistake):
    """Two ops of one name."""

    says = "op `{name}` is declared twice; the first is in line {line}"
    write = "choose another name"


class BoundTwice(Mistake):
    """A name that already has a meaning in this op or file."""

    says = "`{name}` already has a meaning: {what} in line {line}"
    write = "names are bound once: choose another name"


class ReservedName(Mistake):
    """A parameter, local or def named after something built in."""

    says = "`{name}` is reserved: it is {what}"
    write = "choose another name, such as `{name}_`"


class CallKeyword(Mistake):
    """A parameter named after a keyword of the op's call."""

    says = "`{name}` is a keyword of every op's call and no name for a parameter"
    write = "choose another name, such as `{name}_`"


class PythonKeyword(Mistake):
    """An op or parameter whose name Python cannot call."""

    says = "`{name}` is a word of Python, which could not name the {what} in a call"
    write = "choose another name, such as `{name}_`"


class MissingAnnotation(Mistake):
    """A parameter without axes that has no default."""

    says = "`{name}` needs its axes: only q, k and v have defaults"
    write = "write `{name}: [time, head]`, `{name}: int` or `{name}: real`"


class UnknownAxis(Mistake):
    """An axis that the language does not have."""

    says = "there is no axis `{name}`"
    write = "the axes are {axes}{guess}"


class RepeatedAxis(Mistake):
    """One axis twice in one parameter."""

    says = "axis `{name}` appears twice in `{param}`"
    write = "a tensor has each axis once"


class UnknownKind(Mistake):
    """A kind that the language does not have."""

    says = "there is no kind `{name}`"
    write = "{hint}"


class UnknownName(Mistake):
    """A name without a meaning."""

    says = "`{name}` has no meaning here"
    write = "{hint}"


class UnknownFunction(Mistake):
    """A call of something that is not there."""

    says = "there is no function `{name}`"
    write = "{hint}"


class DefinedLater(Mistake):
    """A def that uses itself or a later one."""

    says = "def `{define}` uses `{name}`, which {what}"
    write = "a def may use the defs above it: there is no recursion"


class NotAFunction(Mistake):
    """A call of a value."""

    says = "`{name}` is {what} and takes no arguments"
    write = "{hint}"


class FunctionNotCalled(Mistake):
    """A function used as a value."""

    says = "`{name}` is a function"
    write = "call it: `{call}`"


class WrongArity(Mistake):
    """A call with too few or too many arguments."""

    says = "`{name}` takes {expected}, and is given {got}"
    write = "write `{call}`"


class UnknownOption(Mistake):
    """An option that the function does not have."""

    says = "`{fn}` has no option `{name}`"
    write = "{hint}"


class BadOptionValue(Mistake):
    """An option given something else than one of its words."""

    says = "`{name}` cannot be `{value}`"
    write = "write one of {words}{guess}"


class RepeatedOption(Mistake):
    """One option twice in one call."""

    says = "option `{name}` is given twice"
    write = "keep one of them"


class AxisAsNumber(Mistake):
    """An axis whose size an op must not depend on, used as a number."""

    says = "the size of `{name}` is no number of the language"
    write = "only `head`, `key`, `value` and `mode` are; an op must not depend on how its sequences are cut or packed"


class NoSuchSize(Mistake):
    """The size of an axis that no parameter has."""

    says = "no parameter has the axis `{name}`, so it has no size"
    write = "give a parameter that axis, or write the number"


# Tensors and masks


class TimeNotIndexed(Mistake):
    """A tensor over time among positions."""

    says = "`{text}` has a time axis"
    write = "write `{text}[i]`, `{text}[j]`, or `{text}[t]` inside `sum`"


class NothingToIndex(Mistake):
    """An index on something without a time or lag axis."""

    says = "`{text}` has no time axis to index"
    write = "write `{text}` alone"


class MaskIndexed(Mistake):
    """An index on a mask."""

    says = "`{text}` already is an expression of positions"
    write = "index tensors, not masks"


class BadTimeIndex(Mistake):
    """A time axis indexed by something else than a position."""

    says = "a time axis is indexed by `i`, `j` or `t` alone"
    write = "shift the tensor first: `shift(x)[i]` is x at i - 1"


class BadLagIndex(Mistake):
    """A lag axis indexed by something else than an integer expression of i and j."""

    says = "a lag axis is indexed by an integer expression of `i` and `j`"
    write = "write `{text}[i - j]`"


class PathPosition(Mistake):
    """`t` outside a path sum."""

    says = "`t` has a meaning only inside a path sum"
    write = "write `sum(g[t], j < t <= i)`"


class BadPath(Mistake):
    """A path that is not between i and j."""

    says = "this is no path"
    write = "write `j < t <= i` or `i < t <= j`, with `<` or `<=` at either end"


class PathMentions(Mistake):
    """A path sum whose terms depend on its ends."""

    says = "the terms of a path sum may depend on `t`, not on `i` or `j`"
    write = "multiply outside the sum: `x[i] * sum(g[t], j < t <= i)`"


class MaskNeeded(Mistake):
    """Something without positions where a mask has to stand."""

    says = "{where} has to be a mask, and `{text}` is {what}"
    write = "{hint}"


class TensorNeeded(Mistake):
    """A mask, or a number, where a tensor has to stand."""

    says = "{where} has to be a tensor{over}, and `{text}` is {what}"
    write = "{hint}"


class NotBoolean(Mistake):
    """A number where a truth value has to stand."""

    says = "{where} has to be true or false, and `{text}` is a number"
    write = "compare it with something"


class BooleanCompared(Mistake):
    """An order between truth values."""

    says = "`{text}` is true or false, which has no order"
    write = "combine conditions by `and`, `or` and `not`"


class NoSuchAxis(Mistake):
    """A reduction over an axis that is not there."""

    says = "`{text}` has no axis `{axis}`: {has}"
    write = "{hint}"


class AxisExpected(Mistake):
    """A reduction over something that is no axis."""

    says = "the second argument of `{fn}` is an axis{path}"
    write = "{hint}"


class TimeReduced(Mistake):
    """A reduction over time."""

    says = "`{fn}` cannot run over `time`: what is in the future is not there yet"
    write = "{hint}"


class BatchReduced(Mistake):
    """A reduction over the batch, which would join sequences that know nothing of each other."""

    says = "`{fn}` cannot run over `batch`: the sequences of a batch do not see each other"
    write = "reduce after the call"


class RopeNeedsAxis(Mistake):
    """`rope` of something without the axis it turns."""

    says = "{what} of `rope` needs the axis `{axis}`, and `{text}` has {has}"
    write = "write `rope(x, angle)` with `key` on x and `mode` on angle"


class LevelsNeedsAxes(Mistake):
    """`levels` of something else than weights over time and level."""

    says = "`levels` needs weights with the axes time and level, and `{text}` has {has}"
    write = "declare `w: [time, head, level]` and write `levels(w)`"


class OperandAxis(Mistake):
    """An operand of a contraction with an axis that the contraction has no place for."""

    says = "{where} cannot have the axis `{axis}`"
    write = "{hint}"


class ActivationWithSoftmax(Mistake):
    """`activation` beside `normalize=softmax`, which already is one."""

    says = "`activation` and `normalize=softmax` exclude each other"
    write = "keep one of them"


class MaskPerKey(Mistake):
    """A mask per key channel where the weight is not linear in the score."""

    says = "the mask of `{option}` cannot have the axis `key`: the score is summed over it before"
    write = "use a gate for each head, or leave `{option}` out"


class ResultNotTensor(Mistake):
    """An op that returns something else than a tensor over time."""

    says = "an op returns a tensor over time, and `{text}` is {what}"
    write = "{hint}"


class ResultAxis(Mistake):
    """An op whose result still has an axis that is there to be contracted."""

    says = "the result still has the axis `{axis}`"
    write = "contract it: `sum(x, {axis})`"
