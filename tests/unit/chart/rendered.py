"""Look-ups in what the chart renders."""

import copy

from dev.chart import render


def nest(path, value):
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def merge(*trees):
    merged = {}
    for tree in copy.deepcopy(trees):
        for name, value in tree.items():
            is_map = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = merge(merged[name], value) if is_map else value
    return merged


def of_kind(objects, kind, suffix=""):
    """The one object of a kind; hooks of `helm test` end in -test."""
    found = [
        item
        for item in objects
        if item["kind"] == kind and item["metadata"]["name"].endswith("-test") == (suffix == "-test")
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def deployment(values=None):
    return of_kind(render(values), "Deployment")


def pod_spec(values=None):
    return deployment(values)["spec"]["template"]["spec"]


def container(values=None):
    (only,) = pod_spec(values)["containers"]
    return only


def iterate_pods(objects):
    for item in objects:
        if item["kind"] == "Deployment":
            yield item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            yield item["spec"]
