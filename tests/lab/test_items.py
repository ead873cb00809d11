"""The items that come with the package are those that the lab's models are not trained on."""

from mergekern.evaluate.packaged import ITEMS
from mergekern.lab import items


def test_the_packaged_items_are_what_the_generators_give(tmp_path):
    made = items.files()
    assert {path.name for path in ITEMS.iterdir()} == made.keys()
    for name, content in made.items():
        assert (ITEMS / name).read_text(encoding="utf-8") == content, (
            f"{name}: write it anew by `python -m mergekern.lab.items`"
        )
    items.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == made.keys()
