"""Whether a system is factored or iterated on: by counted cost, and said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.plan import Plan
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.linalg.iterative.options import NAMES, Iterations, LeastSquaresMethod, Method, SystemIterations
from dlscale.linalg.iterative.systems import plan_system
from dlscale.storage.inputs import Inputs
from dlscale.storage.scaled import promoted

#: Iterations must win so clearly: at their limit they take at most this part of the time of a factorization.
CLEARLY = 0.5
#: The method for what is known of a matrix.
FOR_ASSUMED: dict[str, Method] = {"pos": "cg", "sym": "minres", "her": "minres", "general": "gmres"}


def plan_by_method(
    inputs: Inputs,
    method: Method | Literal["auto", "direct"],
    assume: str,
    options: SystemIterations,
    facts: ClusterFacts,
    *,
    direct: Callable[[], Plan],
) -> Plan:
    """The plan of the method that was asked for; with ``auto`` the one that is sooner done.

    Notes
    -----
    Iterations are chosen where factors do not fit and the matrix is said to be definite or a tolerance was given; and where
    a tolerance was given and all iterations that are allowed take less than half of the time of a factorization, both counted at
    fixed rates.

    Raises
    ------
    SpecError, DoesNotFitError
    """
    B = inputs["rhs"]
    A = promoted(inputs["matrix"], B.dtype)
    options.require_suited(method)
    if method == "direct":
        options.require_direct()
        return direct()
    if method != "auto":
        if "factors" in inputs.results:
            raise SpecError(f"input.factors: goes with method direct; got method {method}.")
        return plan_system(A, B, method, options, facts)
    other = FOR_ASSUMED.get(assume)
    if other is None or "factors" in inputs.results:
        return direct()
    options.require_suited(other)
    iterated = partial(plan_system, A, B, other, options, facts)
    return sooner_done(direct, iterated, options, A.shape[0], where_it_fits=assume == "pos")


def sooner_done(
    direct: Callable[[], Plan], iterated: Callable[[], Plan], options: Iterations, n: int, *, where_it_fits: bool = False
) -> Plan:
    """The plan of iterations where they are chosen as `plan_by_method` says, or else the direct one.

    Parameters
    ----------
    direct, iterated : callable
        Make the plans.
    options : Iterations
    n : int
        The order of what is solved.
    where_it_fits : bool
        Whether iterations take the place of factors that do not fit though no tolerance was given.

    Raises
    ------
    DoesNotFitError
        If neither fits.
    """
    try:
        plan = direct()
    except DoesNotFitError as error:
        if options.tolerance is None and not where_it_fits:
            raise
        return _because(iterated(), f"a factorization does not fit: {error}")
    if options.tolerance is None:
        return plan
    with suppress(DoesNotFitError):
        other = iterated()
        if other.nominal_seconds <= CLEARLY * plan.nominal_seconds:
            return _because(other, f"{options.iterations_for(n)} iterations take at most half of the time of a factorization")
    return plan


def _because(plan: Plan, why: str) -> Plan:
    return replace(plan, notes=(*plan.notes, f"method auto: {NAMES[plan.method]}, since {why}"))


def is_iterative(plan: Plan) -> bool:
    """Whether a plan is of an iterative method."""
    return plan.method in (*get_args(Method), *get_args(LeastSquaresMethod))
