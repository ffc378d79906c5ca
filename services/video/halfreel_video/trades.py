"""Quality given for time, where a request names it: which there are, and at which steps each one does what.

Off by default, and told in the reply. Knows nothing of torch; what each costs in likeness is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from halfreel_runtime.checks import Checks


class PartialGuidance:
    """Guidance in the middle half of the steps alone; the first and the last quarter compute one half instead of two.

    Early guidance harms and late guidance hardly shows: "Applying Guidance in a Limited Interval Improves Sample and
    Distribution Quality in Diffusion Models" (arXiv 2404.07724). On the pocket model the middle half was nearer to the
    exact clip than the first or the last. Nothing is traded where guidance is off, nor in fewer than 4 steps.
    """

    name = "partial_guidance"

    def rests(self, trades: Sequence[str], index: int, step_count: int) -> bool:
        """Whether the step with this index, from 0, goes without guidance."""
        return self.name in trades and step_count >= 4 and not step_count <= 4 * index < 3 * step_count


class ReuseFeatures:
    """The deep blocks run at every other step, and what they gave is used for the step after as well.

    Between neighbouring steps they change little; the blocks near the input and the output run always. After
    "DeepCache: Accelerating Diffusion Models for Free" (arXiv 2312.00858), with an interval of 2.
    """

    name = "reuse_features"

    def reuses(self, trades: Sequence[str], index: int) -> bool:
        """Whether the step with this index, from 0, leaves the deep blocks out, where the step before ran them."""
        return self.name in trades and index % 2 == 1


PARTIAL_GUIDANCE, REUSE_FEATURES = PartialGuidance(), ReuseFeatures()
TRADES = (PARTIAL_GUIDANCE.name, REUSE_FEATURES.name)
TEXT_TRADES = (PARTIAL_GUIDANCE.name,)  # of a text-to-video model, which has no deep blocks of this kind


def check_trades(trades: Sequence[str], checks: Checks, allowed: Sequence[str] = TRADES) -> None:
    """Notes every name that is no trade of a model, and one that comes twice."""
    if checks.require(len(trades) <= len(TRADES), "trades", f"has {len(trades)} names; it may have {len(TRADES)}"):
        for trade in trades:
            checks.one_of("trades", trade, allowed)
        checks.require(len(set(trades)) == len(trades), "trades", "names a trade twice; name each at most once")
