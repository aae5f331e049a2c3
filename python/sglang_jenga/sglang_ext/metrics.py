# SPDX-License-Identifier: Apache-2.0
"""Jenga's metrics in SGLang's own registry: ``--enable-metrics``, endpoint ``/metrics``.

They are published where SGLang publishes its own, after ``SchedulerMetricsCollector.log_stats``:
once per prefill batch, every ``--decode-log-interval`` decode steps, and when a server goes idle.
No other step does any work for them. They carry the labels of SGLang's scheduler metrics and their
own, on the ranks that publish SGLang's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang_jenga.sglang_ext.metric_table import COUNTER, METRICS, Metric
from sglang_jenga.sglang_ext.report import counts

if TYPE_CHECKING:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

_ATTRIBUTE = "jenga_metrics"


class Publisher:
    """Writes the numbers of one arena into prometheus metrics.

    Args:
        labels: names and values that every series carries.
        registry: where the metrics are registered, None: prometheus_client's own.
        gauge, counter: classes like prometheus_client's, None: those (SGLang's collectors can be
            told to use others, for Ray).
    """

    def __init__(
        self,
        arena: ArenaAllocatorBase,
        tree_cache: Any,
        scheduler: Any,
        labels: dict[str, Any],
        *,
        registry: Any = None,
        gauge: Any = None,
        counter: Any = None,
    ) -> None:
        # Not at the head of the module: SGLang sets PROMETHEUS_MULTIPROC_DIR before it is imported.
        from prometheus_client import Counter, Gauge

        self._arena = arena
        self._tree_cache = tree_cache
        self._scheduler = scheduler
        self._labels = labels
        self._longest_tokens = arena.demand.longest_request_tokens
        where = {} if registry is None else {"registry": registry}
        self._metrics: dict[str, Any] = {}
        for metric in METRICS:
            names = [*labels, *metric.labels]
            if metric.type == COUNTER:
                made = (counter or Counter)(metric.name, metric.meaning, names, **where)
            else:
                made = (gauge or Gauge)(
                    metric.name, metric.meaning, names, multiprocess_mode="mostrecent", **where
                )
            self._metrics[metric.name] = made
        #: One series per metric and label values, and what was last added up in it.
        self._series: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._published_version = -1

    def publish(self) -> None:
        """Write all metrics. Host integers only."""
        self._published_version = self._arena.core.version
        data = counts(
            self._arena, self._tree_cache, self._scheduler, longest_tokens=self._longest_tokens
        )
        for metric in METRICS:
            for values, number in metric.read(data).items():
                series = self._series_of(metric, values)
                if metric.type == COUNTER:
                    key = (metric.name, values)
                    series.inc(number - self._totals.get(key, 0))
                    self._totals[key] = number
                else:
                    series.set(number)

    def publish_if_stale(self) -> None:
        """Write them if the arena has changed since."""
        if self._arena.core.version != self._published_version:
            self.publish()

    def _series_of(self, metric: Metric, values: tuple[str, ...]) -> Any:
        key = (metric.name, values)
        if key not in self._series:
            own = dict(zip(metric.labels, values, strict=True))
            self._series[key] = self._metrics[metric.name].labels(**self._labels, **own)
        return self._series[key]


def attach(scheduler: Any, context: Any) -> None:
    """Begin to publish for ``scheduler``, whose arena and tree are built.

    ``context``: SGLang's ``SchedulerMetricsCollectorContext``.
    """
    collector = context.collector
    if collector is None or not context.current_scheduler_metrics_enabled:
        return
    publisher = Publisher(
        scheduler.token_to_kv_pool_allocator,
        scheduler.tree_cache,
        scheduler,
        collector.labels,
        gauge=collector._gauge_cls,
        counter=collector._counter_cls,
    )
    setattr(collector, _ATTRIBUTE, publisher)
    publisher.publish()


def publish(collector: Any) -> None:
    """SGLang's collector has published its own numbers."""
    publisher = getattr(collector, _ATTRIBUTE, None)
    if publisher is not None:
        publisher.publish()


def publish_idle(collector: Any) -> None:
    """The scheduler is idle; SGLang may leave its own numbers as they are for half a minute."""
    publisher = getattr(collector, _ATTRIBUTE, None)
    if publisher is not None:
        publisher.publish_if_stale()
