"""The launchers of an op of several contractions: they call those of its stages, and add up their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sma_compiler.ir.nodes import Kind, Op, ParamDecl
from sma_compiler.kernel.build import Builder, E, Operand, choose, lift, path, sequence
from sma_compiler.kernel.host import SIZES
from sma_compiler.kernel.nodes import Function, Parameter
from sma_compiler.kernel.prepare import either, name_of, shape_of
from sma_compiler.kernel.stages import Stage


class StagesLauncher:
    """What both launchers share.

    launchers: those of the stages, by name. reserved: names of the file. names: the op's parameters, and what stages
    hand on. before: the state that every contraction begins with. inverses: of what is solved.
    """

    def __init__(
        self, op: Op, stages: Sequence[Stage], launchers: Mapping[str, Function], reserved: Iterable[str]
    ) -> None:
        self.op = op
        self.stages = tuple(stages)
        self.launchers = launchers
        self.tensors = [decl for decl in op.params if not decl.number]
        self.b = b = Builder({*reserved, op.name})
        self.names = {decl.name: path(b.fresh(decl.name)) for decl in op.params}
        self.given = list(self.names.values())
        self.initial, self.pack, self.precision = (
            path(b.fresh(x)) for x in ("initial_state", "cu_seqlens", "precision")
        )
        values = [stage.value.name for stage in stages if stage.value is not None]
        self.names |= {name: path(b.fresh(name)) for name in values}
        self.before = {stage.site: path(b.fresh(f"s0_{stage.site}")) for stage in stages}
        solved = [stage.site for stage in stages if stage.right is not None]
        self.inverses = {site: path(b.fresh(f"inverse_{site}")) for site in solved}
        self.spread: dict[str, tuple[ParamDecl, E]] = {}
        self.states = all("initial_state" in keywords(launchers[stage.op.name]) for stage in stages)
        self.rounds = any("precision" in keywords(function) for function in launchers.values())

    @property
    def kept(self) -> list[E]:
        """What is kept for the gradients: the value of every stage that has one, behind it what was inverted."""
        found: list[E] = []
        for stage in self.stages:
            found += [self.names[stage.value.name]] if stage.value is not None else []
            found += [self.inverses[stage.site]] if stage.right is not None else []
        return found

    def options(self, launcher: str, **more: Operand) -> dict[str, Operand]:
        """The keywords of a call, as far as the launcher of a stage takes them."""
        known = keywords(self.launchers[launcher])
        more |= {"cu_seqlens": self.pack, "precision": self.precision}
        states = () if self.states else ("initial_state", "return_state", "dstate")
        return {name: value for name, value in more.items() if name in known and name not in states}

    def parameters(self, first: Iterable[E], options: Iterable[tuple[E, Operand]]) -> list[Parameter]:
        """What a launcher takes. options: keywords with their defaults, without those that all launchers take."""
        last = [(self.pack, None), *([(self.precision, "ieee")] if self.rounds else [])]
        return [
            *(Parameter(name_of(x)) for x in first),
            *(Parameter(name_of(x), default=lift(y).node, keyword=True) for x, y in (*options, *last)),
        ]

    def take(self, states: E, parts: Mapping[str, E]) -> None:
        """The state of every contraction, by where it stands."""
        with self.b.branch(states.missing()):
            self.b.set(states, sequence([lift(None)]) * len(parts))
        self.b.assign(parts.values(), states if len(parts) > 1 else states.at(0))

    def heads(self) -> None:
        """Give stages all heads of which no tensor need have them: one of theirs has each entry as often as needed."""
        found: dict[str, ParamDecl] = {}
        for stage in self.stages:
            held = [decl for decl in stage.given if "head" in decl.dims]
            narrow = [decl for decl in held if {"key", "value"} & set(decl.dims) and decl in self.tensors]
            if len(narrow) == len(held) > 0:
                found[stage.site] = next((decl for decl in narrow if "time" in decl.dims), narrow[0])
        if not found:
            return
        b = self.b
        b.section("As many heads as any tensor has, in every stage")
        sizes = [self.size(decl, "head") for decl in self.tensors if "head" in decl.dims]
        every = b.let("H", path("max").call(*sizes) if sizes[1:] else sizes[0])
        for site, decl in found.items():
            wide = path("of_all_heads").call(self.names[decl.name], decl.dims.index("head"), every)
            self.spread[site] = decl, b.let(f"{decl.name}_{site}", wide)

    def size(self, decl: ParamDecl, axis: str) -> E:
        """The size of one axis of a parameter."""
        return self.names[decl.name].attr("shape").at(decl.dims.index(axis))

    def arguments(self, stage: Stage) -> list[E]:
        """What the forward launcher of a stage takes."""
        decl, wide = self.spread.get(stage.site, (None, None))
        return [wide if wide is not None and x is decl else self.names[x.name] for x in stage.given]


class ForwardStages(StagesLauncher):
    """Builds the launcher that is named after the op."""

    def build(self) -> Function:
        """The launcher."""
        b, initial = self.b, self.initial
        final, keep = path(b.fresh("return_state")), path(b.fresh("return_kept"))
        result = path(b.fresh("y"))
        if self.states:
            self.take(initial, self.before)
        self.heads()
        after: list[E] = []
        for stage in self.stages:
            b.section(f"{stage.site}")
            value = result if stage.value is None else self.names[stage.value.name]
            found = [value, *([self.inverses[stage.site]] if stage.right is not None else [])]
            options = self.options(stage.op.name, initial_state=self.before[stage.site], return_state=final)
            b.set(value, path(stage.op.name).call(*self.arguments(stage), **options))
            if self.states:
                after.append(path(b.fresh(f"s1_{stage.site}")))
                alone = value + sequence([lift(None)]) if found[1:] else sequence([value, lift(None)])
                b.assign((*found, after[-1]), choose(final, value, alone))
            elif found[1:]:
                b.assign(found, value)
        y = value
        b.section("")
        dtype = self.names[self.tensors[0].name].attr("dtype")
        b.set(y, y.attr("to").call(dtype))
        more = b.let("more", sequence([]))
        if self.states:
            with b.branch(final):
                b.set(more, sequence([sequence(after)]))
        with b.branch(keep):
            # What autograd is given shares no memory
            kept = [x.attr("clone").call() if x is y else x for x in self.kept]
            b.set(more, more + sequence([sequence(kept)]))
        b.give(choose(more, sequence([y]) + more, y))
        given = self.parameters(
            self.given, [*([(initial, None), (final, False)] if self.states else []), (keep, False)]
        )
        return b.function(self.op.name, self.doc(), given, jit=False)

    def doc(self) -> list[str]:
        """The launcher's docstring."""
        sites = ", ".join(stage.site for stage in self.stages)
        lines = [f"{self.op.name}: one contraction after the other: {sites}.", "", "Args:", *_documented(self.op)]
        if self.states:
            lines += [
                f"    initial_state: what earlier positions left of each of {sites}, as their launchers take it;",
                "        None: nothing.",
                "    return_state: whether to return these states after y.",
            ]
        lines += ["    return_kept: whether to return last, as a tuple, what the gradients need again."]
        axes = ", ".join(SIZES[axis] for axis in self.op.result.axes)
        return [
            *lines,
            *_rest(self.rounds),
            "",
            "Returns:",
            f"    y: [{axes}], in the dtype of {self.tensors[0].name}.",
        ]


class BackwardStages(StagesLauncher):
    """Builds the launcher of the gradients."""

    def build(self) -> Function:
        """The launcher."""
        b = self.b
        dy, kept, dstate, needs = (path(b.fresh(x)) for x in ("dy", "kept", "dstate", "needs"))
        asked_of = {decl.name for stage in self.stages for decl in stage.op.params}
        need = {
            decl.name: path(b.fresh(f"{'' if decl.name in asked_of else '_'}need_{decl.name}")) for decl in self.tensors
        }
        after = {stage.site: path(b.fresh(f"ds1_{stage.site}")) for stage in self.stages}
        last = {stage.site: path(b.fresh(f"ds0_{stage.site}")) for stage in self.stages}
        if self.states:
            b.section("States: what came before, and the cotangents of what was left")
            self.take(self.initial, self.before)
            self.take(dstate, after)
        b.section("What the stages gave")
        with b.branch(kept.missing()):
            options: dict[str, Operand] = {"initial_state": self.initial} if self.states else {}
            options |= {"return_kept": True, "cu_seqlens": self.pack}
            options |= {"precision": self.precision} if self.rounds else {}
            b.assign((path("_"), kept), path(self.op.name).call(*self.given, **options))
        b.assign(self.kept, kept if self.kept[1:] else kept.at(0))
        b.section("Which gradients are asked for, and which of the values that lead to them")
        with b.branch(needs.missing()):
            b.set(needs, sequence([lift(True)]) * len(self.tensors))
        b.assign(need.values(), needs)
        for stage in self.stages[:-1]:
            if stage.value is not None:
                asked = [need[decl.name] for decl in real(stage.given)]
                asked += [self.before[stage.site].given()] if self.states else []
                need[stage.value.name] = b.let(f"need_{stage.value.name}", either(*asked))
        self.heads()
        parts: dict[str, list[E]] = {}
        for stage in reversed(self.stages):
            b.section(f"{stage.site}")
            wanted = real(stage.given)
            found = [path(b.fresh(f"d{decl.name}_{stage.site}")) for decl in wanted]
            states = [last[stage.site]] if self.states else []
            if stage.value is None or stage is self.stages[-1]:
                self.stage(stage, dy, need, after, found, states)
            else:
                with b.branch(need[stage.value.name]):
                    cotangent = b.let(f"d{stage.value.name}", added(parts[stage.value.name]))
                    self.stage(stage, cotangent, need, after, found, states)
                with b.otherwise():
                    b.assign((*found, *states), sequence([lift(None)]) * len([*found, *states]))
            for decl, x in zip(wanted, found, strict=True):
                parts.setdefault(decl.name, []).append(x)
        b.section("What the stages bring to each gradient is added")
        gradients = b.let("gradients", sequence(self.whole(decl, parts.get(decl.name, [])) for decl in self.tensors))
        if self.states:
            with b.branch(self.before[self.stages[0].site].given()):
                b.set(gradients, gradients + sequence([sequence(last.values())]))
        b.give(gradients)
        asked_for = [kept, *([self.initial, dstate] if self.states else []), needs]
        taken = self.parameters([dy, *self.given], [(x, None) for x in asked_for])
        return b.function(f"{self.op.name}_backward", self.doc(), taken, jit=False)

    def stage(
        self,
        stage: Stage,
        cotangent: E,
        need: Mapping[str, E],
        after: Mapping[str, E],
        found: Sequence[E],
        states: Sequence[E],
    ) -> None:
        """The gradients of what one stage takes, and of the state that it begins with."""
        b, name, given = self.b, f"{stage.op.name}_backward", self.arguments(stage)
        before, left = self.before[stage.site], after[stage.site]
        if stage.right is not None and stage.value is not None:
            given += [self.names[stage.value.name], self.inverses[stage.site]]
        tensors = [decl for decl in stage.op.params if not decl.number]
        needs = sequence(need[decl.name] if decl is not stage.value else lift(False) for decl in tensors)
        options = self.options(name, initial_state=before, dstate=left, needs=needs)
        made = b.let(f"gradients_{stage.site}", path(name).call(cotangent, *given, **options))
        for decl, x in zip(real(stage.given), found, strict=True):
            b.set(x, made.at(tensors.index(decl)))
            if decl is self.spread.get(stage.site, (None,))[0]:
                with b.branch(x.given()):
                    b.set(x, path("of_groups").call(x, self.size(decl, "head")))
        for state in states:
            b.set(state, choose(before.given(), made.at(-1), lift(None)))

    def whole(self, decl: ParamDecl, parts: Sequence[E]) -> E:
        """A parameter's gradient from its parts, in its dtype."""
        if not parts[1:]:
            return added(parts)
        return path("sum_of").call(*parts, dtype=self.names[decl.name].attr("dtype"))

    def doc(self) -> list[str]:
        """The launcher's docstring."""
        axes = ", ".join(SIZES[axis] for axis in self.op.result.axes)
        lines = [f"The gradients of {self.op.name}, by the chain rule from its last contraction to its first.", ""]
        lines += ["Args:", f"    dy: the cotangent of its result, [{axes}].", *_documented(self.op)]
        lines += [f"    kept: what {self.op.name} returned as such; None: it is computed again."]
        if self.states:
            lines += [
                f"    initial_state: as {self.op.name} took it.",
                "    dstate: the cotangent of the state that it returned; None: 0.",
            ]
        lines += [
            "    needs: of which tensors gradients are needed, a bool for each; None: of all.",
            *_rest(self.rounds),
            "",
            "Returns:",
            f"    A tuple: the gradients of {', '.join(decl.name for decl in self.tensors)}, each None where it is not",
            f"    needed{', then, where there was an initial state, its gradient' if self.states else ''}.",
        ]
        return lines


def keywords(launcher: Function) -> frozenset[str]:
    """What a launcher takes by name alone."""
    return frozenset(parameter.name for parameter in launcher.parameters if parameter.keyword)


def real(decls: Iterable[ParamDecl]) -> list[ParamDecl]:
    """The tensors that may have gradients."""
    return [decl for decl in decls if not decl.number and decl.kind is Kind.REAL]


def added(parts: Sequence[E]) -> E:
    """A gradient from its parts."""
    if len(parts) == 1:
        return parts[0]
    return path("sum_of").call(*parts) if parts else lift(None)


def _documented(op: Op) -> list[str]:
    grouped = {decl.name: "head" in decl.dims and bool({"key", "value"} & set(decl.dims)) for decl in op.params}
    return [
        f"    {decl.name}: {'a number' if decl.number else shape_of(decl, grouped[decl.name])}." for decl in op.params
    ]


def _rest(rounds: bool) -> list[str]:
    """What is said of the keywords that all launchers take."""
    lines = ["    cu_seqlens: a pack: [S + 1], where each of S sequences begins, and the end; B = 1."]
    return [*lines, '    precision: of fp32 matrix products, "ieee" or "tf32".'] if rounds else lines
