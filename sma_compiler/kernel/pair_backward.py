"""The gradients of the quadratic plan: those of the operands as contractions, and those of what the mask reads.

The cotangent of a pair's weight (under a softmax of its logarithm) goes through the derivative of the weight by each
leaf, and is summed over the other end of the pairs. A log gate's gradient is what all pairs have whose path holds its
position u: those with the late end from u on, less those with the early end from u on as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from sma_compiler.ir.nodes import Apply, Expr, Kind, Param, ParamDecl, postorder
from sma_compiler.kernel.backward import ROWS, Backward, Chain, Gradients
from sma_compiler.kernel.chain import is_cut
from sma_compiler.kernel.derive import gradients, unplaced
from sma_compiler.kernel.gates import LOWEST
from sma_compiler.kernel.linear import varies
from sma_compiler.kernel.pair_paths import chunked
from sma_compiler.kernel.pairs import Along, End, Pairs, Table, adds
from sma_compiler.kernel.score import LN2
from sma_compiler.kernel.walk import Output
from sma_compiler.source import NOWHERE

AT = ("batch", "time", "head")
"""The axes of what the mask reads at an end of pairs, as the chain rule goes on from it."""


@dataclass(frozen=True)
class Sum:
    """What is summed over the other end of the pairs of each position of one end ("i" or "j"): [B, H, T].

    tensor: its name on the host. expr: of the pairs, it reads `PairBackward.cotangent`. path: whose end it is, where a
    gate is summed along a path: pairs of a position with itself, which both ends have, are left out if `apart`.
    table: where pairs are told apart by their level: [B, H, T, levels].
    """

    tensor: str
    end: str
    expr: Expr
    path: Along | None = None
    apart: bool = False
    table: Table | None = None


@dataclass(frozen=True)
class PathGradient:
    """The gradient of a log gate, from the sums at both ends. leaf: what the chain rule reads; late, early: tensors."""

    along: Along
    leaf: Param
    late: str
    early: str


@dataclass(frozen=True)
class PairBackward:
    """How the gradients of an op are computed.

    pairs: the op. made: the operands' walks, and `chain`, from sums to the parameters. cotangent: the leaf of pairs.
    delta: what is added to the cotangents of weights in each row; None: nothing is. logs: the logarithms of the sums of
    rows in base 2, as the kernels behind that of the queries' gradients read them; None: as they were kept. Where a
    path is a factor of all weights they hold besides what its exponents at rows lose where they are rounded.
    others: the share of each row that all but its largest weight have, as the forward pass kept it. care: whether a
    head has rows that need care: scores are large, or one pair has nearly all of them. There scores are summed
    exactly, `share` is what the weights of rows are multiplied by so that they sum to 1, and `low` what `delta` loses
    where it is rounded. None: nothing of this matters.
    rest: what such a path has inside the chunks of rows, less the logarithms; None: it is not told by chunks.
    sums: what is summed over pairs. lags: what is summed over pairs at the same distance, [S, H, lags]. paths: gates.
    ends: by the leaf that the chain rule reads, the sum that it stands for.
    """

    pairs: Pairs
    made: Backward
    cotangent: Param
    delta: Param | None
    logs: Param | None
    rest: Param | None
    others: Param | None
    share: Param | None
    low: Param | None
    care: Param | None
    sums: tuple[Sum, ...]
    lags: tuple[Sum, ...]
    paths: tuple[PathGradient, ...]
    ends: tuple[tuple[Param, str], ...]

    def at(self, end: str) -> tuple[Sum, ...]:
        """What is summed for the positions of one end."""
        return tuple(one for one in self.sums if one.end == end)

    @property
    def holds_logs(self) -> Along | None:
        """See `holds_logs`."""
        return holds_logs(self.pairs)

    @property
    def wide(self) -> tuple[str, ...]:
        """Those of them that are fp64."""
        return tuple(decl.name for decl in self.made.reads[2:]) if self.pairs.wide and self.pairs.softmax else ()

    @property
    def extra(self) -> tuple[ParamDecl, ...]:
        """The tensors that kernels of the backward pass read beside the parameters."""
        leaves = [path.leaf for path in self.paths] + [leaf for leaf, _ in self.ends]
        made = self.delta, self.logs, self.rest, self.others, self.share, self.low, self.care
        leaves += [leaf for leaf in made if leaf is not None]
        return (*self.made.reads, *(ParamDecl(x.name, x.kind, False, x.axes, NOWHERE) for x in leaves))


def pair_backward(pairs: Pairs) -> PairBackward:
    """The gradients of an op.

    Raises:
        NoTritonKernel: this version has no kernel for them.
    """
    return _PairGradients(pairs).all()


class _PairGradients(Gradients):
    """Builds a `PairBackward`."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__(pairs.linear, pairs.graph)
        self.pairs = pairs
        self.taken |= pairs.taken
        self.sums: list[Sum] = []
        self.lags: list[Sum] = []
        self.gates: list[PathGradient] = []
        self.ends: list[tuple[Param, str]] = []

    def all(self) -> PairBackward:
        """All of it."""
        self.cotangent = self._leaf("dweight", ())
        made = self.made()
        offset = made.dq.offset
        delta = None if offset is None else self._leaf("delta", AT)
        logs = self._leaf("logs", AT) if self.pairs.softmax and not self.pairs.wide else None
        holder = holds_logs(self.pairs)
        rest = self._leaf("rest", AT) if holder is not None and chunked(self.pairs, holder) else None
        kept = (("others", AT), ("share", AT), ("low", AT), ("care", AT[::2]))
        others, share, low, care = (self._leaf(*one) if self.pairs.cancels else None for one in kept)
        sums, lags = tuple(self.sums), tuple(self.lags)
        gates, ends = tuple(self.gates), tuple(self.ends)
        rows = delta, logs, rest, others, share, low, care
        return PairBackward(self.pairs, made, self.cotangent, *rows, sums, lags, gates, ends)

    def _chain(self) -> Chain | None:
        """The sums over pairs, and the chain rule from them to the parameters."""
        graph, pairs = self.graph, self.pairs
        if pairs.weight is None:
            return None
        if pairs.vanishing:
            raise self._refused("a factor of the mask may be 0, where its logarithm has no derivative")
        real = [end for end in pairs.ends if end.leaf.kind is Kind.REAL]
        static = [x for x in self.leaves if not varies(x) and any(node is x for node in postorder((pairs.weight,)))]
        varying = [end.leaf for end in real] + [along.leaf for along in pairs.paths]
        leaves = [*varying, *(table.leaf for table in pairs.tables), *static]
        found = gradients(graph, [(self._differentiable(pairs.weight), self.cotangent)], leaves)
        handed: list[tuple[Expr, Expr]] = []
        cut: list[Expr] = []
        for end in real:
            if end.leaf in found and self._reads_leaves(end.x):
                handed.append((unplaced(graph, end.x), self._end(end, found[end.leaf])))
        for along in pairs.paths:
            log = unplaced(graph, along.gate.log)
            if along.leaf in found and self._reads_leaves(log):
                handed.append((log, self._gate(along, log, found[along.leaf])))
                cut.append(log)
        for table in pairs.tables:
            if table.leaf in found and table.x in self.leaves:
                self._table(table, found[table.leaf])
        for param in static:
            if param in found:
                tensor = self._piece(param, "pairs", ROWS[1:])
                self.sums.append(Sum(tensor, "i", found[param]))
        outputs: list[Output] = []
        made = gradients(graph, handed, self.leaves, cut)
        for param in self._in(made):
            along_axis = "time" if varies(param) else "slot"
            axes = ("batch", along_axis, "head")
            outputs.append(Output(self._piece(param, "chain", axes), made[param], axes))
        return Chain((), tuple(outputs)) if outputs else None

    def _differentiable(self, weight: Expr) -> Expr:
        """The weight with a slope also where its logarithm is -inf: there the cotangent is 0."""
        graph, one = self.graph, self.graph.const(1.0)
        safe: dict[Expr, Expr] = {}
        for node in postorder((weight,)) if self.pairs.softmax else ():
            if isinstance(node, Apply) and node.fn == "log" and not self._is_static(node.args[0]):
                (x,) = node.args
                safe[node] = graph.apply("log", graph.apply("where", graph.apply("gt", x, graph.const(0.0)), x, one))
        return graph.replace(weight, safe)

    def _is_static(self, expr: Expr) -> bool:
        """Whether an expression is the same for all pairs."""
        pairs = self.pairs
        varying = {pairs.i, pairs.j, *(end.leaf for end in pairs.ends), *(along.leaf for along in pairs.paths)}
        varying |= {table.leaf for table in pairs.tables}
        return varying.isdisjoint(postorder((expr,)))

    def _reads_leaves(self, expr: Expr) -> bool:
        return any(node in self.leaves for node in postorder((expr,)) if isinstance(node, Param))

    def _table(self, table: Table, expr: Expr) -> None:
        """The gradient of what masks look up."""
        if table.axis == "level":
            tensor = self._piece(table.x, "pairs", (*ROWS[1:], "level"))
            self.sums.append(Sum(tensor, table.row or "i", expr, table=table))
            return
        ends = {"i": (self.pairs.i, self.pairs.j), "j": (self.pairs.j, self.pairs.i)}
        end = next((end for end, given in ends.items() if table.index is self.graph.apply("sub", *given)), None)
        if end is None or table.row or any(one.end != end for one in self.lags):
            raise self._refused("taps have gradients that are looked up by `i - j` alone or by `j - i` alone")
        self.lags.append(Sum(self._piece(table.x, "pairs", ("batch", "head", "lag")), end, expr, table=table))

    def _end(self, end: End, expr: Expr) -> Param:
        """The gradient of what a tensor has at one end."""
        leaf = self._leaf(f"d{end.leaf.name}", AT)
        self.sums.append(Sum(leaf.name, end.end, expr))
        self.ends.append((leaf, leaf.name))
        return leaf

    def _gate(self, along: Along, log: Expr, expr: Expr) -> Expr:
        """The gradient of a log gate; exactly 0 where it is a cut."""
        graph = self.graph
        leaf = self._leaf("dgate", AT)
        late, early = "j" if along.early == "i" else "i", along.early
        names = [f"late_{leaf.name}", f"early_{leaf.name}"]
        apart = along.gate.key_closed != along.gate.query_closed
        for name, end in zip(names, (late, early), strict=True):
            self.sums.append(Sum(name, end, expr, along, apart))
        self.gates.append(PathGradient(along, leaf, *names))
        if not is_cut(along.gate):
            return leaf
        below = graph.apply("lt", log, graph.const(LOWEST * LN2))
        return graph.apply("where", below, graph.const(0.0), leaf)


def holds_logs(pairs: Pairs) -> Along | None:
    """The path whose exponents at rows are taken together with the logarithms of the rows' sums.

    It is a factor of all weights. There is none where kernels are to round as little as fp32 can.
    """
    weight = pairs.weight
    if weight is None or not pairs.softmax or pairs.wide:
        return None
    return next((along for along in pairs.paths if along.one_sided and adds(weight, along.leaf)), None)


def whole_groups(made: PairBackward) -> tuple[Expr, ...]:
    """What a program of the gradients of keys and values reads once for all heads of a group."""
    linear = made.made.linear
    outputs = (*made.made.dk.outputs, *made.made.dv.outputs)
    return (linear.k, linear.v, *(output.expr for output in outputs))
