"""Jinja for code that is not ours: no attribute that leads out, no file, no import, bounded in time and in text.

Jinja's own sandbox keeps templates from reaching anything but their variables. It does not keep them from looping for
hours or from making gigabytes, so here every block that is entered, every call, filter, operator, slice and output goes
through the budget of the rendering it belongs to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Template, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter, sync_do_join
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dedicate_runtime.api.template_budget import (
    RenderBudget,
    check_width,
    cost_of_filter,
    cost_of_format,
    cost_of_join,
    cost_of_method,
    cost_of_operator,
    size_of,
)

if TYPE_CHECKING:
    from jinja2.ext import Extension

_UNBOUNDED_GLOBALS = ("lipsum",)
"""Make text of any length, and have no place in a prompt."""
_LOCALS = frozenset({"_loop_vars", "_block_vars"})
"""What compiled templates pass to `call` besides the arguments that were written."""


class BoundedContext(Context):
    """The variables of one rendering, and what it may still cost."""

    budget: RenderBudget

    def derived(self, locals: dict[str, Any] | None = None) -> Context:  # noqa: A002 - as jinja2 has it
        context = super().derived(locals)
        if isinstance(context, BoundedContext):
            context.budget = self.budget
        return context


class _CheckingCodeGenerator(CodeGenerator):
    """Compiles what no hook of the environment reaches to calls of methods that have one."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Checks the time wherever a body begins: of a loop, each time around, a macro, a branch."""
        self.writeline("environment.enter(context)")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - as jinja2 has it
        self.write("environment.concatenate(context, (")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - likewise
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(context, ")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            self.visit(bound or nodes.Const(None), frame)
        self.write(")")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.emit(context, {super()._output_const_repr(group)})"

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        self.write("environment.emit(context, ")
        super()._output_child_pre(node, frame, finalize)

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        super()._output_child_post(node, frame, finalize)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that `render` runs within a budget."""

    code_generator_class = _CheckingCodeGenerator
    context_class = BoundedContext
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, extensions: Sequence[str | type[Extension]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters |= {"join": _join, "sum": _sum}
        for name in _UNBOUNDED_GLOBALS:
            del self.globals[name]

    def bound_filters(self) -> None:
        """Puts the budget before each filter; to be called once, when all are there."""
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}

    def render(self, template: Template, variables: dict[str, Any], budget: RenderBudget) -> str:
        """Writes a template's text.

        Raises:
            TemplateLimitError: the budget is used up.
            Exception: whatever the template, or one of Jinja's functions, raises.
        """
        context = template.new_context(variables)
        if not isinstance(context, BoundedContext):
            raise TypeError("the template is not of this environment")
        context.budget = budget
        return "".join(template.root_render_func(context))

    def enter(self, context: BoundedContext) -> None:
        context.budget.tick()

    def emit(self, context: BoundedContext, text: str) -> str:
        context.budget.spend(len(text))
        return text

    def concatenate(self, context: BoundedContext, operands: tuple[Any, ...]) -> str:
        texts = [operand if isinstance(operand, str) else str(operand) for operand in operands]
        context.budget.require(cost_of_join("", texts))
        joined: str = (markup_join if context.eval_ctx.autoescape else str_join)(operands)
        context.budget.spend(len(joined))
        return joined

    def cut(self, context: BoundedContext, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        context.budget.spend(size_of(part))
        return part

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget_of(context)
        budget.require(cost_of_operator(operator, left, right))
        result = super().call_binop(context, operator, left, right)
        budget.spend(size_of(result))
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget_of(context)
        budget.tick()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str | bytes) and isinstance(name, str):
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                budget.require(cost_of_join(owner, args[0]))
            named = {key: value for key, value in kwargs.items() if key not in _LOCALS}
            budget.require(cost_of_method(name, owner, args, named))
        elif isinstance(owner, int) and args:
            check_width(args[0])  # of to_bytes
        result = super().call(context, obj, *args, **kwargs)
        budget.spend(size_of(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        sandboxed = super().wrap_str_format(value)
        if sandboxed is None:
            return None
        pattern = value.__self__

        @pass_context
        def bounded(context: Context, *args: Any, **kwargs: Any) -> str:
            named = args[0] if value.__name__ == "format_map" and args else kwargs
            _budget_of(context).require(cost_of_format(pattern, args, named))
            return sandboxed(*args, **kwargs)

        return bounded


def _budget_of(context: Context) -> RenderBudget:
    if not isinstance(context, BoundedContext):
        raise TypeError("the context is not of a bounded environment")
    return context.budget


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a filter; being given the context, it is not computed while the template is compiled either."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    @functools.wraps(function)
    def bounded(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = _budget_of(context)
        if args:
            budget.require(cost_of_filter(name, args[0], args[1:], kwargs))
        given = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(given[passed], *args, **kwargs) if passed is not None else function(*args, **kwargs)
        budget.spend(size_of(result))
        return result

    return bounded


@pass_context
def _join(context: Context, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Does what Jinja's own does, after a look at how much it is."""
    items = list(value if attribute is None else map(make_attrgetter(context.environment, attribute), value))
    texts = [item if isinstance(item, str) else str(item) for item in items]
    _budget_of(context).require(cost_of_join(str(d), texts))
    return sync_do_join(context.eval_ctx, items, d)


@pass_context
def _sum(context: Context, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Adds as `+` does, budget included: of lists the sum takes time that grows with its square."""
    total = start
    environment = context.environment
    items = iterable if attribute is None else map(make_attrgetter(environment, attribute), iterable)
    for item in items:
        total = environment.call_binop(context, "+", total, item)  # type: ignore[attr-defined] # of the sandbox
    return total
