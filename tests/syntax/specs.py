"""Random trees of the language, small enough to print and parse thousands of."""

from __future__ import annotations

from hypothesis import strategies as st

from sma_compiler.syntax import tree

KEYWORDS = {"op", "def", "return", "and", "or", "not"}

names = st.one_of(
    st.sampled_from(["q", "k", "v", "g", "i", "j", "t", "key", "causal", "x1", "_y", "sum", "none"]),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True).filter(lambda name: name not in KEYWORDS),
)
numbers = st.one_of(
    st.integers(0, 2**53), st.floats(0, allow_nan=False, allow_infinity=False).map(lambda value: abs(value))
)
leaves = st.one_of(st.builds(tree.Name, names), st.builds(tree.Number, numbers))


def _rest(
    operators: list[str], inner: st.SearchStrategy[tree.Expr]
) -> st.SearchStrategy[tuple[tuple[str, tree.Expr], ...]]:
    return st.lists(st.tuples(st.sampled_from(operators), inner), min_size=1, max_size=3).map(tuple)


def _wider(inner: st.SearchStrategy[tree.Expr]) -> st.SearchStrategy[tree.Expr]:
    options = st.lists(st.builds(tree.Option, names, inner), max_size=2).map(tuple)
    return st.one_of(
        st.builds(tree.Negative, inner),
        st.builds(tree.Not, inner),
        st.builds(tree.Chain, inner, _rest(["+", "-"], inner)),
        st.builds(tree.Chain, inner, _rest(["*", "/", "//", "%", "@"], inner)),
        st.builds(tree.Compare, inner, _rest(["<", "<=", ">", ">=", "==", "!="], inner)),
        st.builds(tree.Logic, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(tree.Power, inner, inner),
        st.builds(tree.Index, inner, inner),
        st.builds(tree.Call, names, st.lists(inner, max_size=3).map(tuple), options),
    )


expressions: st.SearchStrategy[tree.Expr] = st.recursive(leaves, _wider, max_leaves=12)

_axes = st.lists(st.builds(tree.Axis, names), max_size=3).map(tuple)
_params = st.one_of(
    st.builds(tree.Param, names),
    st.builds(tree.Param, names, names),
    st.builds(tree.Param, names, st.none() | names, _axes),
)
_doc_line = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8).map(str.strip)
_doc = st.lists(_doc_line, max_size=2).map("\n".join)
_statements = st.one_of(st.builds(tree.Bind, names, expressions), st.builds(tree.Return, expressions))
_ops = st.builds(
    tree.Op,
    names,
    st.lists(_params, max_size=3).map(tuple),
    st.lists(_statements, min_size=1, max_size=3).map(tuple),
    _doc,
)
_defines = st.builds(
    tree.Define,
    names,
    st.none() | st.lists(st.builds(tree.Name, names), min_size=1, max_size=3).map(tuple),
    expressions,
)
files: st.SearchStrategy[tree.File] = st.builds(tree.File, st.lists(st.one_of(_ops, _defines), max_size=3).map(tuple))
