"""Readable names for the nodes of a converted graph, from their module and operation."""

from __future__ import annotations

import ast
from collections import Counter

import onnx

# Key under which the exporter stores the modules around a node, as a Python list of paths.
SCOPES = "pkg.torch.onnx.name_scopes"


def name_by_modules(graph: onnx.GraphProto, root: str) -> None:
    """Name every node ROOT/module/path/Operation, with a number if a module has several of a kind.

    Tensors between nodes get the name of the node that makes them. Inputs, outputs and weights keep their names."""
    kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    seen: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for node in graph.node:
        name = "/".join([root, *_module(node), node.op_type])
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for index, output in enumerate(node.output):
            if output and output not in kept:
                renamed[output] = node.name if len(node.output) == 1 else f"{node.name}:{index}"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)


def _module(node: onnx.NodeProto) -> list[str]:
    """The path of the innermost module around a node; empty if the exporter gives none."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = ast.literal_eval(entry.value)[:-1]  # the last is the node's own name
            # a leading _ marks a scope without a module
            paths = [path for path in scopes if path and not path.startswith("_")]
            return paths[-1].split(".") if paths else []
    return []
