"""Lines of fields in a configuration's text."""

import pytest

from torchscript_predictor.config_places import Places

TEXT = """\
# name: "commented"
name: "a { } [ ] b" "and more"
input [
  { name: "x" dims: [ 3,
      32 ] },
  { name: 'y' dims: 4 dims: 5 reshape { shape: [ ] } }
]
max_batch_size: 8; parameters { key: "A" value: { string_value: "1" } }
parameters: < key: "B", value < string_value: "\\"2\\"" > >
parameters [ { key: "A" value { string_value: "3" } } ]
last: true
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("input",), 4),
        (("input", 0, "name"), 4),
        (("input", 0, "dims", 1), 5),
        (("input", 1, "dims", 1), 6),
        (("input", 1, "reshape", "shape"), 6),  # empty: the line of the message around it
        (("input", 1, "optional"), 6),
        (("input", 5), None),
        (("max_batch_size",), 8),
        (("parameters", 1, "value", "string_value"), 9),
        (("last",), 11),
        (("absent",), None),
    ],
)
def test_line(path, line):
    assert Places(TEXT).line(*path) == line


def test_entries_of_a_map_field_by_key():
    places = Places(TEXT)
    assert places.entries("parameters", "A") == [0, 2]
    assert places.entries("parameters", "B") == [1]
    assert places.entries("parameters", "C") == []


@pytest.mark.parametrize("text", ["", "}", "a", "a:", "a {", "a [", "[", ": :", '"', "{ } } ]", "a [ 1", 'a: "'])
def test_a_text_that_is_no_configuration_ends_the_scan(text):
    Places(text)
