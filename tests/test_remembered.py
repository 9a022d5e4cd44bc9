"""Small results that the store remembers."""

from raykd.common.remembered import remembered


def test_what_another_process_has_left_meanwhile_is_the_result(tmp_path):
    """Of two that compute at the same time the first to write counts, for both."""

    def slower() -> str:
        assert remembered(tmp_path, "kind", ["same"], lambda: "first") == "first"
        return "second"

    assert remembered(tmp_path, "kind", ["same"], slower) == "first"
    assert remembered(tmp_path, "kind", ["same"], lambda: "third") == "first"
    assert remembered(tmp_path, "kind", ["other"], lambda: "third") == "third"


def test_a_damaged_one_is_computed_again(tmp_path):
    def damaged() -> str:
        (file,) = (tmp_path / "checked").iterdir()
        file.write_text("{")
        return "again"

    assert remembered(tmp_path, "kind", [], lambda: None) is None
    (file,) = (tmp_path / "checked").iterdir()
    file.write_text("")
    assert remembered(tmp_path, "kind", [], damaged) == "again", "it is damaged also when it is to be written"
    assert [path.read_text() for path in (tmp_path / "checked").iterdir()] == ['"again"']
