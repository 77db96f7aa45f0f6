"""Makes explicit in an ONNX graph what torch's exporter leaves ambiguous, so that all runtimes agree."""

from typing import Any, Collection


def portable(graph: Any, known: Collection[str] = ()) -> None:
    """Repairs a graph in place, and the graphs within its nodes; ``known`` are names of constants outside it.

    A constant without elements becomes a filled one: OpenVINO reads it as a scalar, and for an image without detections returns
    a box of the previous image. A 0 in a computed shape means 0, not "unchanged": ONNX Runtime may otherwise combine it with a -1, and fail.
    """
    from onnx import TensorProto, helper

    known = {*known, *(tensor.name for tensor in graph.initializer)}
    known.update(name for node in graph.node if node.op_type == "Constant" for name in node.output)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                portable(attribute.g, known)
        if node.op_type == "Reshape" and node.input[1] not in known:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("allowzero", 1))
        elif node.op_type == "Constant" and 0 in node.attribute[0].t.dims:
            empty, shape = node.attribute[0].t, f"{node.output[0]}_shape"
            graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [len(empty.dims)], list(empty.dims)))
            fill = helper.make_tensor("value", empty.data_type, [1], [0])
            del node.attribute[:]
            node.op_type = "ConstantOfShape"
            node.input.append(shape)
            node.attribute.append(helper.make_attribute("value", fill))
