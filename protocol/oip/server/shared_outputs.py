"""Outputs that a request wants in shared memory: checked before the work, written after it.

Knows no transport: both ask it between decoding and encoding.  A tensor that was written keeps its head in the
answer, and the parameters that say where it lies.

Source: Triton's extension_shared_memory.
"""

from dataclasses import replace

from oip.errors import InvalidArgument
from oip.messages import InferenceRequest, InferenceResponse
from oip.raw_tensors import raw_of
from oip.regions import RegionRange, region_range
from oip.server.extensions import SharedMemory

CLASSIFICATION = "classification"

Places = dict[str, RegionRange]


def output_places(request: InferenceRequest, memory: SharedMemory) -> Places:
    """Where each output goes that goes into shared memory, by name.

    Raises:
        InvalidArgument: a range is not there, or is asked for together with a classification.
        Unsupported: shared memory is not served.
    """
    places: Places = {}
    for output in request.outputs:
        if not output.parameters:
            continue
        place = region_range(output.parameters, f"output '{output.name}'")
        if place is None:
            continue
        if CLASSIFICATION in output.parameters:
            raise InvalidArgument(
                f"output '{output.name}': a classification cannot go into shared memory; ask for one of the two"
            )
        memory.check(place)
        places[output.name] = place
    return places


def put_outputs(response: InferenceResponse, places: Places, memory: SharedMemory) -> InferenceResponse:
    """Write the outputs that have a place, and name it in the answer.

    Raises:
        InvalidArgument: an output is longer than its place.
    """
    if not places:
        return response
    outputs = []
    for tensor in response.outputs:
        place = places.get(tensor.name)
        if place is not None:
            content = raw_of(tensor)
            size = len(content)
            if size > place.byte_size:
                raise InvalidArgument(
                    f"shared memory size specified with the request for output '{tensor.name}' ({place.byte_size} "
                    f"bytes) should be at least {size} bytes to hold the results"
                )
            memory.write(place, content)
            written = RegionRange(place.region, place.offset, size)
            tensor = replace(tensor, parameters={**tensor.parameters, **written.parameters()})
        outputs.append(tensor)
    return replace(response, outputs=tuple(outputs))
