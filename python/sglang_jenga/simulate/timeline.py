# SPDX-License-Identifier: Apache-2.0
"""Who held the bytes, over the steps of a replay: a few hundred points, however long it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sglang_jenga.simulate.engine import KindBytes

#: Points kept at most; when there are as many, every second goes and samples come half as often.
MAX_POINTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One step. waiting: requests in the queue. kinds: in the order of the plan."""

    step: int
    running: int
    waiting: int
    kinds: tuple[KindBytes, ...]


@dataclass(slots=True)
class Timeline:
    """Samples at equal distances, thinned out as the replay goes on."""

    points: list[Point] = field(default_factory=list)
    every: int = 1

    def is_due(self, step: int) -> bool:
        """Whether this step (counted from 1) is to be sampled."""
        return step % self.every == 0

    def add(self, step: int, running: int, waiting: int, kinds: tuple[KindBytes, ...]) -> None:
        """Note a step that was due."""
        self.points.append(Point(step=step, running=running, waiting=waiting, kinds=kinds))
        if len(self.points) >= MAX_POINTS:
            self.every *= 2
            self.points = [point for point in self.points if point.step % self.every == 0]

    def mean(self, value: Callable[[KindBytes], int], kinds: Sequence[int] | None = None) -> float:
        """Mean over the points of a value summed over kinds (all, or those of these indices)."""
        if not self.points:
            return 0.0
        total = 0
        for point in self.points:
            chosen = point.kinds if kinds is None else [point.kinds[kind] for kind in kinds]
            total += sum(map(value, chosen))
        return total / len(self.points)

    def peak(self, value: Callable[[KindBytes], int], kind: int) -> int:
        """The largest value of one kind at any point."""
        return max((value(point.kinds[kind]) for point in self.points), default=0)
