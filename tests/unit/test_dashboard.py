# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard shows metrics that exist, all of ours, and can be provisioned as it is."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_jenga.sglang_ext.metric_table import COUNTER, METRICS, PREFIX

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "dashboards"
sys.path.insert(0, str(ROOT / "scripts"))

import make_dashboard  # noqa: E402

NAME = re.compile(r"sglang:\w+")
DASHBOARD: dict[str, Any] = json.loads(make_dashboard.PATH.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
OURS = {metric.name: metric for metric in METRICS}


def sglangs() -> set[str]:
    """Names of the metrics that SGLang's collectors register."""
    spec = find_spec("sglang.srt.observability.metrics_collector")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    return set(re.findall(r'name="(sglang:\w+)"', source))


def test_the_file_is_what_the_script_makes() -> None:
    found = make_dashboard.PATH.read_text(encoding="utf-8")
    assert found == make_dashboard.text(), "run `make docs` and commit what it writes"


def test_every_metric_that_a_panel_shows_exists() -> None:
    shown = set(NAME.findall(" ".join(EXPRESSIONS)))
    for name in shown:
        assert name in (OURS if name.startswith(PREFIX) else sglangs()), name
    assert len(shown) > len(OURS), "SGLang's own are beside ours"


def test_every_metric_of_ours_is_shown() -> None:
    assert set(OURS) <= set(NAME.findall(" ".join(EXPRESSIONS)))


def test_rates_are_taken_of_counters_and_of_nothing_else() -> None:
    rated = set(re.findall(r"rate\((sglang:\w+)", " ".join(EXPRESSIONS)))
    counters = {metric.name for metric in METRICS if metric.type == COUNTER}
    assert rated == counters


def test_grouping_labels_are_labels_of_the_metric() -> None:
    grouped = 0
    for expression in EXPRESSIONS:
        for labels, name in re.findall(r"by \(([^)]*)\) \((?:rate\()?(sglang:\w+)", expression):
            grouped += 1
            assert set(labels.split(", ")) <= set(OURS[name].labels), expression
    assert grouped > 8


def test_legends_name_labels_that_the_expression_keeps() -> None:
    for panel in PANELS:
        for target in panel.get("targets", []):
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), target


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_parentheses_and_braces_of_an_expression_are_balanced(expression: str) -> None:
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    assert "[[" not in expression and "]]" not in expression
    selectors = re.findall(r"sglang:\w+({[^}]*})?", expression)
    assert selectors and all('instance=~"$instance"' in found for found in selectors)


def test_ids_are_unique_and_panels_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_every_query_goes_to_the_data_source_that_is_chosen_above() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    used = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == used
        assert panel["targets"] and all(t["datasource"] == used for t in panel["targets"])
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
    for name in ("model", "instance"):
        assert variables[name]["datasource"] == used and f"${name}" in EXPRESSIONS[0]


def test_what_the_compose_file_mounts_is_there_and_fits_together() -> None:
    compose = yaml.safe_load((FOLDER / "docker-compose.yaml").read_text(encoding="utf-8"))
    mounts: dict[str, Path] = {}
    for service in compose["services"].values():
        image, _, version = service["image"].partition(":")
        assert image and version, "a version is pinned"
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), "nobody else reaches a try-out"
        for volume in service["volumes"]:
            source, target, _ = volume.split(":")
            mounts[target] = FOLDER / source
            assert mounts[target].exists(), volume
    scrape = yaml.safe_load(mounts["/etc/prometheus/prometheus.yaml"].read_text("utf-8"))
    assert scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    provisioning = mounts["/etc/grafana/provisioning"]
    (source,) = (provisioning / "datasources").glob("*.yaml")
    (server,) = yaml.safe_load(source.read_text(encoding="utf-8"))["datasources"]
    assert server["url"] == "http://prometheus:9090" and "prometheus" in compose["services"]
    (provider,) = (provisioning / "dashboards").glob("*.yaml")
    (entry,) = yaml.safe_load(provider.read_text(encoding="utf-8"))["providers"]
    assert f"{entry['options']['path']}/sglang-jenga.json" in mounts
